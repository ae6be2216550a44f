//! How a process tells the one that uploads to look, and learns that it has gone: a FIFO beside the database.
//!
//! The owner reads from it; a byte means that there is something to look at. When the owner has died or let go nobody reads any more, and the kernel tells
//! the others so.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::stat::Mode;
use tokio::io::Interest;
use tokio::net::unix::pipe;

use super::local::OwnerMode;

/// The owner's end.
#[derive(Debug)]
pub(crate) struct Listener(pipe::Receiver);

impl Listener {
    /// Makes the FIFO where there is none, and begins to read from it. On a runtime only.
    pub(crate) fn open(path: &Path, owner: &OwnerMode) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_fifo() => {}
            Ok(_) => std::fs::remove_file(path)?,
            Err(_) => {}
        }
        match nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // For writing as well: else it would be at its end whenever nobody else has it open.
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        owner.apply(&file)?;
        Ok(Self(pipe::Receiver::from_file_unchecked(file)?))
    }

    /// Waits until somebody has rung.
    pub(crate) async fn heard(&self) -> io::Result<()> {
        let mut bytes = [0; 256];
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut bytes) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The others' end.
#[derive(Debug)]
pub(crate) struct Bell(pipe::Sender);

impl Bell {
    /// Fails where nobody listens. On a runtime only.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        pipe::OpenOptions::new().open_sender(path).map(Self)
    }

    /// False where nobody listens any more. To be called on a thread that has signals blocked: the kernel sends SIGPIPE then.
    pub(crate) fn ring(&self) -> bool {
        // Not by the runtime, which writes nothing before it has heard that it may.
        match rustix::io::write(&self.0, &[1]) {
            Ok(_) => true,
            // A full one is as good as another byte.
            Err(error) => matches!(error, rustix::io::Errno::AGAIN | rustix::io::Errno::INTR),
        }
    }

    /// Waits until nobody listens any more.
    pub(crate) async fn is_unheard(&self) {
        // Where that cannot be waited for whoever rings finds it out.
        if self.0.ready(Interest::ERROR).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
