//! Who this is, to a lease: a number in the file `lease` beside the database.
//!
//! The file says of itself which one it is, so that a copy of the directory is not taken for the original. It is locked (`flock`, so that it keeps out
//! threads as well) while a lease is waited for: of all threads and processes of the host one waits in the bucket.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::PathBuf;

use crate::replicator::control::Identity;
use crate::replicator::local::{OwnerMode, Paths, identity};

/// A line of numbers.
const MOST_BYTES: usize = 256;
const BEGINNING: &str = "lease-1";

fn path_of(paths: &Paths) -> PathBuf {
    paths.directory.join("lease")
}

/// The file, locked.
#[derive(Debug)]
pub(super) struct NodeFile {
    file: File,
    pub(super) path: PathBuf,
}

impl NodeFile {
    /// `None` where another thread or process has it.
    pub(super) fn try_lock(paths: &Paths) -> io::Result<Option<Self>> {
        // Of a database that is not there yet nobody knows the owner.
        let owner = OwnerMode::of(&paths.database).ok();
        match owner {
            Some(owner) => paths.create_directory(&owner)?,
            None => match std::fs::DirBuilder::new().mode(0o777).create(&paths.directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            },
        }
        let path = path_of(paths);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        if let Some(owner) = owner.filter(|_| file.metadata().is_ok_and(|metadata| metadata.len() == 0)) {
            owner.apply(&file)?;
        }
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file, path })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The number, made now where there is none.
    pub(super) fn node(&self) -> io::Result<u64> {
        let of_file = identity(&self.path)?;
        if let Some(node) = read(&self.file, of_file) {
            return Ok(node);
        }
        let node = fastrand::u64(1..);
        let Identity { device, inode, born_ns } = of_file;
        self.file.set_len(0)?;
        self.file.write_all_at(format!("{BEGINNING} {device} {inode} {born_ns} {node:016x}\n").as_bytes(), 0)?;
        self.file.sync_all()?;
        Ok(node)
    }
}

impl Drop for NodeFile {
    fn drop(&mut self) {
        // Closing is not enough where the process was forked meanwhile: the child has the same open file.
        let _ = self.file.unlock();
    }
}

fn read(file: &File, of_file: Identity) -> Option<u64> {
    let mut text = [0; MOST_BYTES];
    let bytes = file.read_at(&mut text, 0).ok()?;
    let mut words = std::str::from_utf8(text.get(..bytes)?).ok()?.strip_suffix('\n')?.split(' ');
    let mut word = || words.next();
    let is_it = word()? == BEGINNING
        && word()?.parse() == Ok(of_file.device)
        && word()?.parse() == Ok(of_file.inode)
        && word()?.parse() == Ok(of_file.born_ns);
    is_it.then(word).flatten().and_then(|node| u64::from_str_radix(node, 16).ok())
}

/// The number, where it was made before; another one where nothing is known.
pub(crate) fn node_of(paths: &Paths) -> u64 {
    let path = path_of(paths);
    let known = File::open(&path).ok().zip(identity(&path).ok()).and_then(|(file, of_file)| read(&file, of_file));
    known.unwrap_or_else(|| fastrand::u64(1..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_stays_and_a_copy_gets_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (Paths::of(&dir.path().join("a.db")), Paths::of(&dir.path().join("b.db")));
        let file = NodeFile::try_lock(&one).unwrap().unwrap();
        assert!(NodeFile::try_lock(&one).unwrap().is_none());
        let node = file.node().unwrap();
        assert_eq!(file.node().unwrap(), node);
        assert_eq!(node_of(&one), node);
        drop(file);
        std::fs::create_dir(&other.directory).unwrap();
        std::fs::copy(path_of(&one), path_of(&other)).unwrap();
        let copied = NodeFile::try_lock(&other).unwrap().unwrap();
        assert_ne!(copied.node().unwrap(), node);
        assert_eq!(NodeFile::try_lock(&one).unwrap().unwrap().node().unwrap(), node);
    }
}
