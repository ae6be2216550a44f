//! SQLite's own locks on a database file, as its VFS for Unix takes them (`os_unix.c`, "locking overview").
//!
//! ```text
//!   byte 0x40000000         PENDING    whoever waits for readers to end; no new reader comes in
//!   byte 0x40000001         RESERVED   whoever is about to write
//!   the 510 bytes after it  SHARED     shared by readers, exclusive for who writes to the file
//! ```
//!
//! On Linux the locks belong to the open file and not to the process: another descriptor of the same file, opened and closed by a library in this
//! process, does not take them away, and SQLite's connections in this process see them.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

const PENDING: i64 = 0x4000_0000;
const RESERVED: i64 = PENDING + 1;
const SHARED: i64 = PENDING + 2;
const SHARED_BYTES: i64 = 510;
/// One follower at a time: far behind whatever a database holds.
const FOLLOWER: i64 = 1 << 60;

#[cfg(any(target_os = "linux", target_os = "android"))]
const fn set(lock: &libc::flock) -> FcntlArg<'_> {
    FcntlArg::F_OFD_SETLK(lock)
}
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const fn set(lock: &libc::flock) -> FcntlArg<'_> {
    FcntlArg::F_SETLK(lock)
}

const READ: libc::c_int = libc::F_RDLCK as libc::c_int;
const WRITE: libc::c_int = libc::F_WRLCK as libc::c_int;
const NONE: libc::c_int = libc::F_UNLCK as libc::c_int;

fn ask(file: &File, kind: libc::c_int, start: i64, bytes: i64) -> io::Result<bool> {
    let lock =
        libc::flock { l_type: kind as libc::c_short, l_whence: libc::SEEK_SET as libc::c_short, l_start: start, l_len: bytes, l_pid: 0 };
    loop {
        match fcntl(file, set(&lock)) {
            Ok(_) => return Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Keeps other followers out for as long as the file is open; false where there is one.
pub(super) fn only_follower(file: &File) -> io::Result<bool> {
    ask(file, WRITE, FOLLOWER, 1)
}

/// What is locked of a database; given up when dropped.
#[derive(Debug)]
pub(super) struct Locks<'a>(&'a File);

impl<'a> Locks<'a> {
    /// A reader's lock; `None` where somebody writes or waits to.
    pub(super) fn shared(file: &'a File) -> io::Result<Option<Self>> {
        if !ask(file, READ, PENDING, 1)? {
            return Ok(None);
        }
        let taken = ask(file, READ, SHARED, SHARED_BYTES);
        ask(file, NONE, PENDING, 1)?;
        Ok(taken?.then_some(Self(file)))
    }

    /// That of the one who is about to write.
    pub(super) fn reserve(&self) -> io::Result<bool> {
        ask(self.0, WRITE, RESERVED, 1)
    }

    /// That of the one who writes to the file. `waiting`: where readers are in the way no new ones are let in from now on.
    pub(super) fn exclude(&self, waiting: bool) -> io::Result<bool> {
        if !ask(self.0, WRITE, PENDING, 1)? {
            return Ok(false);
        }
        let taken = ask(self.0, WRITE, SHARED, SHARED_BYTES);
        if !waiting && !matches!(taken, Ok(true)) {
            self.let_readers_in()?;
        }
        taken
    }

    /// Ends the waiting for readers.
    pub(super) fn let_readers_in(&self) -> io::Result<()> {
        ask(self.0, NONE, PENDING, 1).map(|_| ())
    }
}

impl Drop for Locks<'_> {
    fn drop(&mut self) {
        // It fails for no lock that was there to be given up.
        let _ = ask(self.0, NONE, PENDING, SHARED - PENDING + SHARED_BYTES);
    }
}
