//! From the commit path to the uploader: the lock-free channel and the wake-up.
//!
//! A commit pushes a descriptor of its frames and, only where the uploader asked to be woken, writes one byte into a socket pair. Nothing
//! here blocks. Descriptors are cumulative, so that one dropped because the channel is full is contained in the database's newest state,
//! which the uploader reads then.

use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::database::Database;
use crate::types::WalPos;

/// Descriptors that wait at the most; the uploader drains them whenever it is awake.
const MOST_DESCRIPTORS: usize = 4096;

/// One commit: frames of the WAL, all final and visible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommittedFrames {
    /// Which database.
    pub(crate) database: u64,
    /// The first frame of the commit (or of several, where other processes' came before).
    pub(crate) first_frame: u32,
    /// Its last frame, with the salts.
    pub(crate) end: WalPos,
    /// The database's size in pages after it.
    pub(crate) database_pages: u32,
    /// Counts commits of this database in this process.
    pub(crate) sequence: u64,
}

/// What else the uploader is told. These are never dropped; there is one for an open, a close or a waiting caller.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A database to take care of.
    Opened(Arc<Database>),
    /// Something about it changed: look.
    Look(u64),
    /// Somebody may ask for metrics there.
    Listening(TcpListener),
}

/// The sending side, shared by all databases of a process.
#[derive(Debug)]
pub(crate) struct Hub {
    commits: Sender<CommittedFrames>,
    notices: Sender<Notice>,
    wake: UnixStream,
    awake: AtomicBool,
}

/// The uploader's side.
#[derive(Debug)]
pub(crate) struct HubReceiver {
    pub(crate) commits: Receiver<CommittedFrames>,
    pub(crate) notices: Receiver<Notice>,
    pub(crate) wake: UnixStream,
}

impl Hub {
    pub(crate) fn new() -> std::io::Result<(Self, HubReceiver)> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let (commits, commits_rx) = crossbeam_channel::bounded(MOST_DESCRIPTORS);
        let (notices, notices_rx) = crossbeam_channel::unbounded();
        let hub = Self { commits, notices, wake, awake: AtomicBool::new(false) };
        Ok((hub, HubReceiver { commits: commits_rx, notices: notices_rx, wake: woken }))
    }

    /// Hands a commit over; false where the channel was full, and then the newest state speaks for it.
    pub(crate) fn committed(&self, frames: CommittedFrames) -> bool {
        match self.commits.try_send(frames) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Tells the uploader something and wakes it. False where it has ended.
    pub(crate) fn notify(&self, notice: Notice) -> bool {
        let told = self.notices.send(notice).is_ok();
        self.wake();
        told
    }

    /// Wakes the uploader, once until it has looked.
    pub(crate) fn wake(&self) {
        if self.awake.swap(true, Ordering::AcqRel) {
            return;
        }
        // A full socket buffer holds a wake-up already; any other failure means that the uploader is gone.
        while let Err(error) = (&self.wake).write(&[1]) {
            if error.kind() != ErrorKind::Interrupted {
                break;
            }
        }
    }

    /// The uploader has read the wake-up and will look now.
    pub(crate) fn looked(&self) {
        self.awake.store(false, Ordering::Release);
    }
}
