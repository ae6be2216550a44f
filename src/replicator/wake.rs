//! How a process tells the one that uploads to look, and learns that it has gone: a FIFO beside the database.
//!
//! The owner reads from it; a byte means that there is something to look at. When the owner has died or let go nobody reads any more, and the kernel tells
//! the others so.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use nix::sys::stat::Mode;
use tokio::io::Interest;
use tokio::net::unix::pipe;

use super::local::OwnerMode;

/// How many FIFOs of a process a fork closes in its child; it has more where it uploads more databases.
const MOST_CLOSED: usize = 8192;
const NONE: i32 = -1;

/// The descriptors that are read from: in the child of a fork nobody does, and a FIFO that it kept open would not tell the others that its parent has gone.
static LISTENING: [AtomicI32; MOST_CLOSED] = [const { AtomicI32::new(NONE) }; MOST_CLOSED];
/// How much of that was ever in use.
static MOST_LISTENING: AtomicUsize = AtomicUsize::new(0);

/// To be called in the child of a fork, where it may make system calls and nothing else.
pub(crate) fn forked() {
    for slot in LISTENING.iter().take(MOST_LISTENING.load(Ordering::Acquire)) {
        let descriptor = slot.swap(NONE, Ordering::AcqRel);
        if descriptor != NONE {
            // What has it open is left alone for ever, so that nobody closes it again.
            let _ = nix::unistd::close(descriptor);
        }
    }
}

/// The owner's end.
#[derive(Debug)]
pub(crate) struct Listener {
    receiver: pipe::Receiver,
    slot: Option<usize>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Before it is closed: its number may be another file's at once.
        if let Some(slot) = self.slot.and_then(|slot| LISTENING.get(slot)) {
            slot.store(NONE, Ordering::Release);
        }
    }
}

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
        let descriptor = file.as_raw_fd();
        let receiver = pipe::Receiver::from_file_unchecked(file)?;
        let is_free = |slot: &AtomicI32| slot.compare_exchange(NONE, descriptor, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let slot = LISTENING.iter().position(is_free);
        if let Some(slot) = slot {
            MOST_LISTENING.fetch_max(slot + 1, Ordering::AcqRel);
        }
        Ok(Self { receiver, slot })
    }

    /// Waits until somebody has rung.
    pub(crate) async fn heard(&self) -> io::Result<()> {
        let mut bytes = [0; 256];
        loop {
            self.receiver.readable().await?;
            match self.receiver.try_read(&mut bytes) {
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
