//! A database in this process whose calls to the VFS below ours a test sees, and nobody else has that VFS meanwhile.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use rusqlite::{Connection, OpenFlags};

use super::vfs;
use crate::bucket::Bucket;
use crate::host;

/// See the module. The hook is gone when it is dropped.
pub struct Beneath {
    /// A folder of its own.
    pub dir: tempfile::TempDir,
    /// The replica.
    pub bucket: Bucket,
    /// The hook is the process's.
    _alone: MutexGuard<'static, ()>,
}

impl Beneath {
    /// Waits until no other test has it.
    ///
    /// # Panics
    /// Where there is no folder, or the VFS cannot be registered.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "it waits")]
    pub fn new() -> Self {
        static ONCE: Once = Once::new();
        static ALONE: Mutex<()> = Mutex::new(());
        ONCE.call_once(|| {
            vfs::register(false);
            replicated::register!(rusqlite::ffi).expect("the VFS can be registered");
        });
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().expect("a folder");
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        Self { dir, bucket, _alone: alone }
    }

    /// A file in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The URI of `app.db`, with these options as well.
    #[must_use]
    pub fn uri(&self, options: &[(&str, &str)]) -> String {
        host::replicated(&self.path("app.db"), &self.bucket.url, &[&[("sync_interval", "10ms"), ("burst", "100")], options].concat())
    }

    /// A connection to `app.db`.
    ///
    /// # Panics
    /// Where it cannot be opened.
    #[must_use]
    pub fn open(&self, options: &[(&str, &str)]) -> Connection {
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(self.uri(options), flags).expect("the database can be opened")
    }
}

impl Drop for Beneath {
    fn drop(&mut self) {
        vfs::set_hook(None);
        vfs::set_refusal(None);
    }
}
