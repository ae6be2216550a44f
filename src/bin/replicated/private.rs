//! A folder that only this user sees into, and that is gone afterwards: a restored database is as secret as the database.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const JUST_MADE: Duration = Duration::from_secs(60);

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
        let path = within.join(format!("{prefix}{:016x}", fastrand::u64(..)));
        DirBuilder::new().mode(0o700).create(&path)?;
        let locked = File::open(&path)?;
        // A file system without locks only keeps what is left behind.
        let _ = locked.try_lock();
        Ok(Self { path, _locked: locked })
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
        // One that has just been made is not locked yet.
        let is_old = |there: &std::fs::Metadata| there.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > JUST_MADE));
        let is_left = |there: std::fs::Metadata| there.is_dir() && there.uid() == rustix::process::geteuid().as_raw() && is_old(&there);
        if path.symlink_metadata().is_ok_and(is_left) && File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok()) {
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
        let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        File::open(&left).unwrap().set_modified(hour_ago).unwrap();
        File::open(first.path()).unwrap().set_modified(hour_ago).unwrap();
        let second = PrivateFolder::make(within.path()).unwrap();
        assert!(first.path().exists() && second.path().exists() && !left.exists());
        assert_eq!(second.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        drop((first, second));
        assert_eq!(std::fs::read_dir(within.path()).unwrap().count(), 0);
    }
}
