//! Scratch objects in a folder, and what it is asked with one at its first use: whether it refuses to replace a file.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::{Draft, NO_LOCKS, Published, failed, lacks_locks, make_folders, parent, sync_folder};
use crate::store::scratch::{SCRATCH, Scratch};
use crate::store::{Created, StoreError, StoreErrorKind};
use crate::types::TimestampMs;

/// A scratch object.
#[derive(Clone, Debug)]
pub(super) struct FolderScratch {
    url: Arc<str>,
    /// Level 0's.
    folder: PathBuf,
    path: PathBuf,
    name: String,
    /// Folders that were not there before, the innermost first: they go with it.
    made: Vec<PathBuf>,
}

impl FolderScratch {
    pub(super) fn new(url: &str, folder: PathBuf) -> Self {
        let path = folder.join(format!("{SCRATCH}{:016x}", fastrand::u64(..)));
        Self { url: url.into(), name: path.display().to_string(), folder, path, made: Vec::new() }
    }

    /// One that leaves nothing at all: where a URL is mistyped it is another folder's place.
    pub(super) fn tidy(url: &str, folder: PathBuf) -> Self {
        let made = folder.ancestors().take_while(|folder| !folder.exists()).map(Path::to_owned).collect();
        Self { made, ..Self::new(url, folder) }
    }

    fn draft(&self, body: &[u8]) -> io::Result<Draft> {
        let mut draft = Draft::begin(self.path.clone(), TimestampMs(0))?;
        draft.write(body)?;
        Ok(draft)
    }

    fn create_it(&self, body: &[u8]) -> io::Result<Option<Created>> {
        match self.draft(body)?.publish()? {
            Published::Atomically => Ok(Some(Created::New)),
            Published::Exists => Ok(Some(Created::AlreadyExists)),
            // By a look before: somebody may have been faster.
            Published::Checked => Ok(None),
        }
    }

    fn put_it(&self, body: &[u8]) -> io::Result<()> {
        make_folders(parent(&self.path))?;
        fs::write(&self.path, body)
    }

    /// A folder compares under a lock of the kernel's, so all depends on whether that can be had.
    fn lock_it(&self) -> io::Result<bool> {
        match File::options().write(true).open(&self.path)?.try_lock() {
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn list_them(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(SCRATCH.as_bytes())) {
                names.push(path.display().to_string());
            }
        }
        Ok(names)
    }

    fn delete_it(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.and_then(|()| sync_folder(&self.folder))?,
        }
        for folder in &self.made {
            // Somebody has put something there meanwhile.
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Creates it twice.
    pub(super) fn probe(&self) -> io::Result<bool> {
        let first = self.create_it(b"")?;
        let second = self.create_it(b"");
        // Where deleting fails, the answer still counts.
        let _ = self.delete_it();
        Ok(first == Some(Created::New) && second? == Some(Created::AlreadyExists))
    }

    fn told<T: Send + 'static>(&self, operation: &'static str, result: io::Result<T>) -> BoxFuture<'_, Result<T, StoreError>> {
        ready(result.map_err(|error| failed(&self.url, operation, &self.name, &error))).boxed()
    }
}

impl Scratch for FolderScratch {
    fn name(&self) -> &str {
        &self.name
    }

    fn create(&self, body: Bytes) -> BoxFuture<'_, Result<Option<Created>, StoreError>> {
        self.told("create", self.create_it(&body))
    }

    fn put(&self, body: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        self.told("put", self.put_it(&body))
    }

    fn replace_on_false_condition(&self, _body: Bytes) -> BoxFuture<'_, Result<bool, StoreError>> {
        let locked = self.lock_it().map_err(|error| {
            let told = failed(&self.url, "put", &self.name, &error);
            if lacks_locks(&error) { StoreError { kind: StoreErrorKind::Protocol, advice: NO_LOCKS, ..told } } else { told }
        });
        ready(locked).boxed()
    }

    fn read(&self) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        self.told("get", fs::read(&self.path).map(Bytes::from))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        self.told("list", self.list_them())
    }

    /// Files in parts are written as all others are.
    fn begin_parts(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(Ok(())).boxed()
    }

    fn delete(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.told("delete", self.delete_it())
    }
}
