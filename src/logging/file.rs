//! A log file: bounded, shared by the processes of a host, and never in the way of the application.
//!
//! A line is one write to the end of the file, so that those of several processes do not mix. Past its limit the file is renamed to one with `.1` at its end,
//! in place of the one before, and the next line makes a new one. Who renames holds the file's own lock (`flock`) and looks under it whether the name is still this
//! file's, so that of several processes one does it; the others find another file under the name, or none, and go on there. So it is after `logrotate`, too.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Access, FlockOperation};

use crate::vfs::FORKED_WHILE_HELD;

/// Where it cannot be renamed a file may become so many times as large as asked for, and then takes no more.
const MOST_TIMES: u64 = 2;
const NEW_FILE_MODE: u32 = 0o666;
pub(super) const TO_SQLITE: &str = "lines go to sqlite3_log until it can be written to";

/// What became of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    Written,
    /// It was not written. The cause where the line before was.
    Missed {
        cause: Option<String>,
    },
    /// It was, and so many before it were not.
    WrittenAgain {
        missed: u64,
    },
}

#[derive(Debug)]
pub(super) struct LogFile {
    asked: PathBuf,
    max_bytes: u64,
    /// Held for an instant: another thread's line is not waited for.
    open: Mutex<Option<Arc<Opened>>>,
    /// Since the first one that was not written.
    missed: AtomicU64,
    is_told: AtomicBool,
    /// The last line is not there as a whole.
    is_torn: AtomicBool,
    /// What the next one is to be like, as the last one was.
    mode: AtomicU32,
}

#[derive(Debug)]
struct Opened {
    file: File,
    /// Without symbolic links, so that the file is renamed and not a link to it.
    path: PathBuf,
    identity: (u64, u64),
    /// Terminals, pipes and what the host has open under another name are not renamed.
    is_bounded: bool,
    /// A thread of this process renames it: `flock` keeps processes apart, not threads.
    is_being_renamed: AtomicBool,
}

impl LogFile {
    pub(super) fn new(path: &Path, max_bytes: u64) -> Self {
        let (missed, is_told, is_torn) = Default::default();
        // A process that has died may have renamed it and come no further.
        let mode = std::fs::metadata(with_suffix(path)).map_or(NEW_FILE_MODE, |before| before.mode() & NEW_FILE_MODE);
        Self { asked: path.to_owned(), max_bytes, open: Mutex::default(), missed, is_told, is_torn, mode: AtomicU32::new(mode) }
    }

    pub(super) fn is(&self, path: &Path, max_bytes: u64) -> bool {
        (self.asked.as_path(), self.max_bytes) == (path, max_bytes)
    }

    /// Opens it, and says what does not work, now or later on.
    pub(super) fn open_now(&self) -> Option<String> {
        let open = match self.current(0) {
            Ok(open) => open,
            Err(error) => {
                self.is_told.store(true, Ordering::Relaxed);
                return Some(format!("{}; {TO_SQLITE}", self.failed(&error)));
            }
        };
        let directory = open.path.parent()?;
        let cannot = |error: rustix::io::Errno| {
            let (path, directory) = (open.path.display(), directory.display());
            format!(
                "{path} cannot be renamed once it is full, as {directory} cannot be written to ({error}): it takes lines up to {} bytes",
                self.most_bytes()
            )
        };
        open.is_bounded.then(|| rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK).err().map(cannot)).flatten()
    }

    pub(super) fn put(&self, line: &str) -> Put {
        match self.try_put(line) {
            Ok(()) => match self.missed.swap(0, Ordering::Relaxed) {
                0 => Put::Written,
                missed => {
                    self.is_told.store(false, Ordering::Relaxed);
                    Put::WrittenAgain { missed }
                }
            },
            Err(error) => {
                self.missed.fetch_add(1, Ordering::Relaxed);
                let is_news = !self.is_told.swap(true, Ordering::Relaxed);
                Put::Missed { cause: is_news.then(|| self.failed(&error)) }
            }
        }
    }

    fn failed(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.asked.display())
    }

    fn try_put(&self, line: &str) -> io::Result<()> {
        let open = self.current(line.len() as u64)?;
        // What a full disk has left of the last line must not take this one with it.
        let torn = if self.is_torn.swap(false, Ordering::Relaxed) { "\n" } else { "" };
        let line = format!("{torn}{line}");
        let mut left = line.as_bytes();
        while !left.is_empty() {
            let written = match (&open.file).write(left) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                result => result,
            };
            match written {
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(error) => {
                    self.is_torn.store(!torn.is_empty() || left.len() < line.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    const fn most_bytes(&self) -> u64 {
        self.max_bytes.saturating_mul(MOST_TIMES)
    }

    /// The file that has the name now, with room for so much more.
    fn current(&self, room_bytes: u64) -> io::Result<Arc<Opened>> {
        let held = || io::Error::other("another thread held it when this process was forked");
        let mut open = self.open.try_lock_for(FORKED_WHILE_HELD).ok_or_else(held)?.clone();
        // Another process may fill the next one meanwhile, but not for ever.
        for _ in 0..4 {
            let was_open = match open.take().filter(|open| open.has_its_name()) {
                Some(open) => open,
                None => {
                    let next = Arc::new(Opened::of(&self.asked, &self.mode)?);
                    *self.open.try_lock_for(FORKED_WHILE_HELD).ok_or_else(held)? = Some(Arc::clone(&next));
                    next
                }
            };
            let has_bytes = if was_open.is_bounded { was_open.file.metadata()?.len() } else { 0 };
            if has_bytes == 0 || has_bytes + room_bytes <= self.max_bytes {
                return Ok(was_open);
            }
            match was_open.renamed() {
                Ok(true) => {}
                // Another process or thread is about to rename it.
                Ok(false) if has_bytes + room_bytes <= self.most_bytes() => return Ok(was_open),
                Err(_) if has_bytes + room_bytes <= self.most_bytes() => return Ok(was_open),
                Ok(false) => return Err(io::Error::other("it is full, and another process keeps it from being renamed")),
                Err(error) => return Err(io::Error::other(format!("it is full and cannot be renamed: {error}"))),
            }
            open = Some(was_open);
        }
        open.ok_or_else(|| io::Error::other("it is renamed again and again"))
    }
}

impl Opened {
    fn of(asked: &Path, mode: &AtomicU32) -> io::Result<Self> {
        // A pipe that nobody reads is not waited for, and a terminal does not become the process's.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let open = || -> io::Result<_> {
            let file = File::options().append(true).create(true).custom_flags(flags).mode(mode.load(Ordering::Relaxed)).open(asked)?;
            Ok((file, asked.canonicalize()?))
        };
        // Another process may rename it in between.
        let (file, path) = open().or_else(|error| if error.kind() == io::ErrorKind::NotFound { open() } else { Err(error) })?;
        let metadata = file.metadata()?;
        mode.store(metadata.mode() & NEW_FILE_MODE, Ordering::Relaxed);
        let is_bounded = metadata.is_file() && !["/dev", "/proc"].iter().any(|special| asked.starts_with(special));
        Ok(Self { file, path, identity: identity(&metadata), is_bounded, is_being_renamed: AtomicBool::new(false) })
    }

    fn has_its_name(&self) -> bool {
        !self.is_bounded || std::fs::metadata(&self.path).is_ok_and(|named| identity(&named) == self.identity)
    }

    /// `false`: somebody else is at it.
    fn renamed(&self) -> io::Result<bool> {
        if self.is_being_renamed.swap(true, Ordering::Acquire) {
            return Ok(false);
        }
        let is_locked = match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK) => {
                self.is_being_renamed.store(false, Ordering::Release);
                return Ok(false);
            }
            // A file system without locks: then two may do it, and one predecessor less is kept.
            Err(_) => false,
        };
        let renamed = if self.has_its_name() { std::fs::rename(&self.path, with_suffix(&self.path)) } else { Ok(()) };
        if is_locked {
            // It goes with the file, otherwise.
            let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
        }
        self.is_being_renamed.store(false, Ordering::Release);
        renamed.map(|()| true)
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
