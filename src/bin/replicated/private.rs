//! A folder that only this user sees into, and that is gone afterwards: a restored database is as secret as the database.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The folder. Locked while its process lives, by which one that was left behind is known.
#[derive(Debug)]
pub(crate) struct PrivateFolder {
    path: PathBuf,
    _locked: File,
}

impl PrivateFolder {
    /// Makes it, and removes those that killed processes of this user have left there.
    pub(crate) fn make(within: &Path) -> io::Result<Self> {
        let prefix = format!("replicated-verify-{}-", rustix::process::geteuid().as_raw());
        remove_abandoned(within, &prefix);
        let mut tries = 0;
        loop {
            let path = within.join(format!("{prefix}{:016x}", fastrand::u64(..)));
            DirBuilder::new().mode(0o700).create(&path)?;
            let locked = File::open(&path)?;
            // A file system without locks only keeps what is left behind.
            let _ = locked.try_lock();
            // Somebody who cleans up may have come first.
            if path.exists() || tries == 3 {
                return Ok(Self { path, _locked: locked });
            }
            tries += 1;
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        // What is left is removed by the next one.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn remove_abandoned(within: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(within) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)) {
        let path = entry.path();
        let is_ours = path.symlink_metadata().is_ok_and(|there| there.is_dir() && there.uid() == rustix::process::geteuid().as_raw());
        if is_ours && File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok()) {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_behind_is_removed_and_what_is_in_use_is_not() {
        use std::os::unix::fs::PermissionsExt;
        let within = tempfile::tempdir().unwrap();
        let first = PrivateFolder::make(within.path()).unwrap();
        let left = within.path().join(format!("replicated-verify-{}-00", rustix::process::geteuid().as_raw()));
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("half a database"), "x").unwrap();
        let second = PrivateFolder::make(within.path()).unwrap();
        assert!(first.path().exists() && second.path().exists() && !left.exists());
        assert_eq!(second.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        drop((first, second));
        assert_eq!(std::fs::read_dir(within.path()).unwrap().count(), 0);
    }
}
