//! What is kept on the local disk beside a database, and with which owner and mode.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::control::Identity;
use crate::logging::event;

/// What to do where what is kept beside a database cannot be written.
pub(crate) fn room_or_right(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "Free some space on that disk: a few KiB beside the database are enough"
        }
        _ => "The directory beside the database must be writable by the user whose database it is",
    }
}

/// The files of one database.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) database: PathBuf,
    pub(crate) wal: PathBuf,
    /// `<database>-replicated/`: the control file and the spool. `<database>-replicated2/` for the second replica.
    pub(crate) directory: PathBuf,
}

/// Behind the database's name.
pub(crate) const FIRST: &str = "-replicated";
pub(crate) const SECOND: &str = "-replicated2";

impl Paths {
    pub(crate) fn of(database: &Path) -> Self {
        Self::with(database, FIRST)
    }

    /// Those of its second replica.
    pub(crate) fn second_of(database: &Path) -> Self {
        Self::with(database, SECOND)
    }

    pub(crate) fn is_second(&self) -> bool {
        self.directory.as_os_str().as_encoded_bytes().ends_with(SECOND.as_bytes())
    }

    /// Whether a WAL or a journal has what the file does not.
    pub(crate) fn has_log(&self) -> bool {
        let mut journal = self.database.clone().into_os_string();
        journal.push("-journal");
        [self.wal.as_path(), Path::new(&journal)].iter().any(|log| log.symlink_metadata().is_ok())
    }

    /// Where a message speaks of what is sent.
    pub(crate) fn to_second(&self) -> &'static str {
        if self.is_second() { " to replica2" } else { "" }
    }

    /// Where a message speaks of the bucket.
    pub(crate) fn of_second(&self) -> &'static str {
        if self.is_second() { " of replica2" } else { "" }
    }

    fn with(database: &Path, suffix: &str) -> Self {
        let with = |suffix: &str| {
            let mut name = OsString::from(database);
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { database: database.to_owned(), wal: with("-wal"), directory: with(suffix) }
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.directory.join("control")
    }

    /// By which the process that uploads is woken.
    pub(crate) fn wake(&self) -> PathBuf {
        self.directory.join("wake")
    }

    /// What the bucket has, as far as it is remembered.
    pub(crate) fn bucket(&self) -> PathBuf {
        self.directory.join("bucket")
    }

    /// What was put into the bucket lately.
    pub(crate) fn recent(&self) -> PathBuf {
        self.directory.join("recent")
    }

    /// What was last found when the bucket was verified.
    pub(crate) fn verified(&self) -> PathBuf {
        self.directory.join("verified")
    }

    /// Has the disk keep what files there are.
    pub(crate) fn sync_directories(&self) {
        for directory in [Some(self.directory.as_path()), self.directory.parent()].into_iter().flatten() {
            if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
                event!(Debug, "local_file", self, cause = error; "{}: {error}", directory.display());
            }
        }
    }

    /// Makes the directory with the database's owner, and its mode with search permission for whoever may read.
    pub(crate) fn create_directory(&self, owner: &OwnerMode) -> io::Result<()> {
        match std::fs::DirBuilder::new().mode(0o700).create(&self.directory) {
            Ok(()) => owner.apply_to_directory(&self.directory),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Owner and mode of the database, which our files take as SQLite's `-wal` does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnerMode {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl OwnerMode {
    pub(crate) fn of(database: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(database)?;
        Ok(Self { mode: metadata.mode() & 0o777, uid: metadata.uid(), gid: metadata.gid() })
    }

    pub(crate) fn apply(&self, file: &File) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(self.mode & 0o666))?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid))?;
        }
        Ok(())
    }

    fn apply_to_directory(&self, path: &Path) -> io::Result<()> {
        let search = (self.mode & 0o444) >> 2;
        std::fs::set_permissions(path, Permissions::from_mode(self.mode | search | 0o100))?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))?;
        }
        Ok(())
    }
}

/// Device, inode and birth of a path. Only `stat`: opening and closing the database would drop the application's locks.
pub(crate) fn identity(path: &Path) -> io::Result<Identity> {
    let metadata = std::fs::metadata(path)?;
    let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let born_ns = born.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or_default();
    Ok(Identity { device: metadata.dev(), inode: metadata.ino(), born_ns })
}
