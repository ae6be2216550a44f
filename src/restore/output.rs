//! The restored file: complete under its name or not there at all.
//!
//! ```text
//! create <out>.replicated-tmp-<pid> -> write -> fsync -> (remove stale -wal, -shm, -journal) -> rename to <out> -> fsync directory
//! ```

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::RestoreError;
use crate::logging::event;

const TEMPORARY: &str = ".replicated-tmp-";
const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A file in the making; removed when dropped before it is published.
#[derive(Debug)]
pub(super) struct Draft {
    file: Arc<File>,
    temporary: PathBuf,
    target: PathBuf,
    overwrite: bool,
}

/// Refuses an output that would replace something: a file that is not empty, or what SQLite would take for the output's own WAL or journal. What is no
/// file is never replaced: a device such as `/dev/null` is the whole machine's.
pub(super) fn check_target(path: &Path, overwrite: bool) -> Result<(), RestoreError> {
    let look = |path: &Path| match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RestoreError::Output { operation: "look at", path: path.to_owned(), source }),
    };
    let found = look(path)?;
    // A link that leads nowhere is one that SQLite would follow, too.
    let is_file = found.as_ref().is_none_or(|found| found.is_file() || found.is_symlink());
    if path.file_name().is_none() || !is_file {
        let is = if found.is_some_and(|found| !found.is_dir()) { "a device, a socket or a FIFO" } else { "a directory" };
        return Err(RestoreError::NotAFile { path: path.to_owned(), is });
    }
    if overwrite {
        return Ok(());
    }
    let in_the_way = found.is_some_and(|found| found.len() > 0);
    if in_the_way {
        return Err(RestoreError::OutputExists { path: path.to_owned() });
    }
    for suffix in SIDE_FILES {
        let side_file = with_suffix(path, suffix);
        if look(&side_file)?.is_some() {
            return Err(RestoreError::OutputExists { path: side_file });
        }
    }
    Ok(())
}

/// The file that a path leads to. SQLite follows symbolic links before it names the WAL, and so must what replaces the database.
pub(super) fn real_path(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

impl Draft {
    /// Makes the temporary file beside the target, and removes those of processes that died.
    pub(super) fn create(target: &Path, overwrite: bool) -> Result<Self, RestoreError> {
        remove_abandoned(target);
        let temporary = with_suffix(target, &format!("{TEMPORARY}{}", std::process::id()));
        let failed = |source| RestoreError::Output { operation: "create", path: temporary.clone(), source };
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&temporary).map_err(failed)?;
        let draft = Self { file: Arc::new(file), temporary, target: target.to_owned(), overwrite };
        // Held until the end: what nobody holds is abandoned. A file system without locks only keeps its garbage.
        let _ = draft.file.try_lock();
        if let Ok(replaced) = fs::metadata(target) {
            draft.file.set_permissions(replaced.permissions()).map_err(|source| draft.failed("set the mode of", source))?;
        }
        Ok(draft)
    }

    /// Takes its name away, for one that is never published: then nothing of it is left, however this process ends.
    pub(super) fn hide(&self) -> Result<(), RestoreError> {
        fs::remove_file(&self.temporary).map_err(|source| self.failed("unlink", source))
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Empties it and gives it its size, if that fits on the disk. One that is expected to be full is also given its place there: then
    /// pages that are written in any order lie in order.
    pub(super) fn resize(&self, size_bytes: u64, is_full: bool) -> Result<(), RestoreError> {
        self.file.set_len(0).map_err(|source| self.failed("empty", source))?;
        // Better now than after hours. Where the system does not say, writing will.
        if let Ok(space) = rustix::fs::fstatvfs(&*self.file) {
            let available_bytes = space.f_bavail.saturating_mul(space.f_frsize);
            if available_bytes < size_bytes {
                return Err(RestoreError::NoSpace { path: self.target.clone(), needed_bytes: size_bytes, available_bytes });
            }
        }
        if is_full && size_bytes > 0 {
            match rustix::fs::fallocate(&*self.file, rustix::fs::FallocateFlags::empty(), 0, size_bytes) {
                Err(rustix::io::Errno::NOSPC) => return Err(self.failed("make room for", rustix::io::Errno::NOSPC.into())),
                // Not every file system can.
                Err(error) => {
                    event!(Debug, "local_file", self.target, cause = error; "{}: no room is set aside: {error}", self.temporary.display())
                }
                Ok(()) => {}
            }
        }
        self.file.set_len(size_bytes).map_err(|source| self.failed("resize", source))
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> Result<(), RestoreError> {
        self.file.sync_all().map_err(|source| self.failed("sync", source))
    }

    /// Puts the file in its place.
    pub(super) fn publish(self) -> Result<(), RestoreError> {
        // Hours may have passed, and an application may have been started meanwhile.
        check_target(&self.target, self.overwrite)?;
        // Before the rename: an old WAL beside the new database would be replayed into it.
        for suffix in SIDE_FILES {
            let side_file = with_suffix(&self.target, suffix);
            match fs::remove_file(&side_file) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(RestoreError::Output { operation: "remove", path: side_file, source });
                }
                _ => {}
            }
        }
        fs::rename(&self.temporary, &self.target).map_err(|source| self.failed("rename", source))?;
        let directory = match self.target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| RestoreError::Output { operation: "sync", path: directory.to_owned(), source })
    }

    pub(super) fn failed(&self, operation: &'static str, source: io::Error) -> RestoreError {
        RestoreError::Output { operation, path: self.temporary.clone(), source }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already where it was renamed; nothing better can be done where it cannot be removed.
        let _ = fs::remove_file(&self.temporary);
        for suffix in SIDE_FILES {
            let _ = fs::remove_file(with_suffix(&self.temporary, suffix));
        }
    }
}

/// A failure costs disk space only.
fn remove_abandoned(target: &Path) {
    let Some(name) = target.file_name() else { return };
    let mut prefix = name.to_owned();
    prefix.push(TEMPORARY);
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let is_temporary = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        if is_temporary && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path: OsString = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
