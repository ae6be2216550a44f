//! Locks between processes: ranges of the control file, which the kernel gives up when their holder dies and which a fork does not pass on.
//!
//! All of a process go when any descriptor of the control file is closed. So there is one for each database of a process.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// What can be locked: bytes far behind what the file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// Whoever opens the database, while it finds out who else has it open.
    Opening = 0,
    /// Shared by all who have it open.
    Present = 1,
    /// The process whose uploader serves the database, for as long as it does.
    Owner = 2,
    /// Whoever changes the tail.
    Tail = 3,
    /// Shared by those who write to the database file: checkpoints, and transactions outside the WAL.
    Writing = 4,
    /// Shared by those who have it open and are not about to close it.
    Staying = 5,
}

const FIRST_BYTE: i64 = 1 << 40;
/// How long to wait before a lock is tried again that the kernel takes for a deadlock: it knows processes and not their threads.
const DEADLOCK_PAUSE: Duration = Duration::from_millis(1);
/// How often a lock is tried that is waited for only so long.
const TRY_PAUSE: Duration = Duration::from_micros(200);

/// The control file as something to be locked.
#[derive(Clone, Debug)]
pub(crate) struct Locks(Arc<File>);

impl Locks {
    pub(crate) const fn new(control: Arc<File>) -> Self {
        Self(control)
    }

    /// Takes a lock, or turns one that is held into it, and waits for whoever has it.
    pub(crate) fn lock(&self, range: Range, exclusive: bool) -> io::Result<()> {
        let lock = request(range, kind_of(exclusive));
        loop {
            match fcntl(&self.0, FcntlArg::F_SETLKW(&lock)) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EDEADLK) => std::thread::sleep(DEADLOCK_PAUSE),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The same without waiting; false where somebody else has it.
    pub(crate) fn try_lock(&self, range: Range, exclusive: bool) -> io::Result<bool> {
        match fcntl(&self.0, FcntlArg::F_SETLK(&request(range, kind_of(exclusive)))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The same, waiting for so long.
    pub(crate) fn try_lock_for(&self, range: Range, exclusive: bool, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            if self.try_lock(range, exclusive)? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(TRY_PAUSE);
        }
    }

    pub(crate) fn unlock(&self, range: Range) {
        // It fails for no lock that was there to be given up.
        let _ = fcntl(&self.0, FcntlArg::F_SETLK(&request(range, libc::F_UNLCK as libc::c_short)));
    }

    /// Whether another process holds a lock there.
    pub(crate) fn is_held_elsewhere(&self, range: Range) -> bool {
        self.holder(range).is_some()
    }

    /// The process that holds a lock there, if it is another one; its id is 0 where it is of a container that this process does not see into. Asks, and takes
    /// nothing.
    pub(crate) fn holder(&self, range: Range) -> Option<u32> {
        let mut lock = request(range, libc::F_WRLCK as libc::c_short);
        let asked = fcntl(&self.0, FcntlArg::F_GETLK(&mut lock));
        let is_held = asked.is_ok() && i32::from(lock.l_type) != i32::from(libc::F_UNLCK as libc::c_short);
        is_held.then(|| u32::try_from(lock.l_pid).unwrap_or(0))
    }
}

const fn kind_of(exclusive: bool) -> libc::c_short {
    (if exclusive { libc::F_WRLCK } else { libc::F_RDLCK }) as libc::c_short
}

fn request(range: Range, kind: libc::c_short) -> libc::flock {
    libc::flock { l_type: kind, l_whence: libc::SEEK_SET as libc::c_short, l_start: FIRST_BYTE + range as i64, l_len: 1, l_pid: 0 }
}
