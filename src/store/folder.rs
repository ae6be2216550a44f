//! A replica in a folder of the file system.
//!
//! Blocking calls are made right in the futures. They run on the uploader's own single-threaded runtime, where nothing else would run
//! meanwhile but another database's upload to the same disk, and a pool of threads would cost every host process threads of ours.
//!
//! An object comes into being complete, with its time, or not at all:
//!
//! ```text
//! create <name>.<random>.tmp -> write -> set mtime -> fsync -> link to <name> (fails if it exists) -> unlink .tmp -> fsync folder
//! ```
//!
//! The object of a lease is replaced, which takes a lock of the kernel's: `flock` on a file beside it, given up by the kernel when its holder dies.
//! Network file systems that have such locks keep them for all hosts; where there are none, there is no lease.

mod scratch;

use std::fs::{self, File, FileTimes, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

use self::scratch::FolderScratch;
use super::keys::Keys;
use super::lock::{LOCK_FILE, MOST_LOCK_BYTES, NOTE_FILE};
use super::url::ReplicaUrl;
use super::{
    Created, GenerationFile, Level, Listed, LockObject, LockVersion, LockWritten, LtxName, PART_SIZE_BYTES, Scratch, Store, StoreError,
    StoreErrorKind, Upload,
};
use crate::types::{TimestampMs, Txid};

/// Other writers' temporary files are left alone for so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
const TEMPORARY: &str = ".tmp";

/// A replica in a folder.
#[derive(Debug)]
pub(super) struct FolderStore {
    url: String,
    root: PathBuf,
    keys: Keys,
    conditional: Mutex<Option<bool>>,
    /// Done once, before the first write: who only reads changes nothing.
    cleaned: Once,
}

impl FolderStore {
    /// Touches nothing.
    pub(super) fn open(url: &ReplicaUrl, root: &Path) -> Self {
        Self {
            url: url.to_string(),
            root: root.to_owned(),
            keys: Keys::new(url.location()),
            conditional: Mutex::new(None),
            cleaned: Once::new(),
        }
    }

    /// Removes what crashed writers left behind.
    fn clean(&self) {
        self.cleaned.call_once(|| {
            for level in Level::all() {
                remove_abandoned(&self.folder(level), ABANDONED_AFTER);
            }
        });
    }

    fn folder(&self, level: Level) -> PathBuf {
        self.root.join(self.keys.level(level))
    }

    fn path(&self, name: &LtxName) -> PathBuf {
        self.root.join(self.keys.file(name))
    }

    fn error(&self, operation: &'static str, what: &dyn std::fmt::Display, error: &io::Error) -> StoreError {
        failed(&self.url, operation, what, error)
    }

    fn entries(&self, level: Level, from: Option<Txid>) -> io::Result<Vec<Listed>> {
        let entries = match fs::read_dir(self.folder(level)) {
            Ok(entries) => entries,
            // Nothing was stored on this level yet.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_str().and_then(|name| LtxName::parse(level, name));
            let Some(name) = name.filter(|name| from.is_none_or(|from| name.min_txid >= from)) else { continue };
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() => listed.push(describe(name, &metadata)?),
                Ok(_) => {}
                // Deleted since the folder was read.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        listed.sort_unstable_by_key(|l| l.name);
        Ok(listed)
    }

    fn generations(&self) -> io::Result<Vec<GenerationFile>> {
        let root = self.root.join(self.keys.generations());
        let mut listed = Vec::new();
        for generation in folders(&root)? {
            for kind in ["snapshots", "wal"] {
                let folder = root.join(&generation).join(kind);
                for name in folders(&folder)? {
                    let metadata = fs::metadata(folder.join(&name))?;
                    let path = format!("{generation}/{kind}/{name}");
                    listed.extend(
                        GenerationFile::parse(&path, metadata.len(), timestamp(metadata.modified()?)).filter(|_| metadata.is_file()),
                    );
                }
            }
        }
        Ok(listed)
    }

    fn begin(&self, name: &LtxName, timestamp: TimestampMs) -> io::Result<Draft> {
        self.clean();
        Draft::begin(self.path(name), timestamp)
    }

    /// Puts the bytes of a range behind what is in `body`.
    fn read(&self, path: &Path, range: &Range<u64>, body: &mut Vec<u8>) -> io::Result<()> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        if size < range.end {
            let message = format!("the file has {size} bytes, bytes {} to {} were asked for", range.start, range.end);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let length = usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
        let before = body.len();
        body.resize(before + length, 0);
        let read = file.read_exact_at(body.get_mut(before..).unwrap_or_default(), range.start);
        if read.is_err() {
            body.truncate(before);
        }
        read
    }

    fn remove(&self, names: &[LtxName]) -> Result<(), StoreError> {
        let mut touched = Vec::new();
        for name in names {
            match fs::remove_file(self.path(name)) {
                Ok(()) if !touched.contains(&name.level) => touched.push(name.level),
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(self.error("delete", name, &e)),
            }
        }
        for level in touched {
            sync_folder(&self.folder(level)).map_err(|e| self.error("delete", &format_args!("level {level}"), &e))?;
        }
        Ok(())
    }

    fn probe(&self) -> io::Result<bool> {
        FolderScratch::new(&self.url, self.folder(Level::ZERO)).probe()
    }
}

impl FolderStore {
    fn lock_path(&self, file: &str) -> PathBuf {
        self.root.join(self.keys.beside(file))
    }

    fn read_lock_file(&self, file: &str) -> io::Result<Option<LockObject>> {
        let file = match File::open(self.lock_path(file)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut text = String::new();
        file.take(MOST_LOCK_BYTES).read_to_string(&mut text)?;
        let version = LockVersion { e_tag: Some(text.clone()), version: None };
        Ok(Some(LockObject { body: text.into(), version }))
    }

    /// Nobody else writes meanwhile.
    async fn write_lock_file(&self, file: &str, body: &[u8], expected: Option<&LockVersion>) -> io::Result<LockWritten> {
        let path = self.lock_path(file);
        make_folders(parent(&path))?;
        let _alone = Alone::take(&with_suffix(&path, ".lock")).await?;
        let found = self.read_lock_file(file)?;
        if found.map(|lock| lock.version).as_ref() != expected {
            return Ok(LockWritten::Changed);
        }
        let text = String::from_utf8(body.to_vec()).map_err(io::Error::other)?;
        // Of a fixed name: what a process left that died is overwritten.
        let temporary = with_suffix(&path, TEMPORARY);
        let mut file = File::create(&temporary)?;
        file.write_all(body)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        sync_folder(parent(&path))?;
        Ok(LockWritten::Written(LockVersion { e_tag: Some(text), version: None }))
    }

    fn lock_error(&self, operation: &'static str, file: &'static str, error: &io::Error) -> StoreError {
        let of_lock = match error.kind() {
            io::ErrorKind::WouldBlock => Some((
                StoreErrorKind::Timeout,
                "A process that has it locked does not go on: look for one that is stopped (lslocks, fuser), and end it",
            )),
            _ if lacks_locks(error) => Some((StoreErrorKind::Protocol, NO_LOCKS)),
            _ => None,
        };
        let error = self.error(operation, &file, error);
        match of_lock {
            Some((kind, advice)) => StoreError { kind, advice, ..error },
            None => error,
        }
    }
}

/// An error of an operation.
fn failed(url: &str, operation: &'static str, what: &dyn std::fmt::Display, error: &io::Error) -> StoreError {
    let (kind, advice) = match error.kind() {
        io::ErrorKind::NotFound => (StoreErrorKind::NotFound, ""),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (StoreErrorKind::PermissionDenied, "Give this process's user permission to read and write the replica's folder")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (StoreErrorKind::Io, "Free space on the file system that holds the replica's folder")
        }
        io::ErrorKind::UnexpectedEof => (StoreErrorKind::Truncated, ""),
        io::ErrorKind::NotADirectory => (StoreErrorKind::Io, "The replica's URL must name a folder"),
        _ => (StoreErrorKind::Io, "Look at the disk that holds the replica's folder, and at the system's log (dmesg)"),
    };
    StoreError { kind, operation, object: format!("{what} in {url}"), cause: error.to_string(), advice, retry_after: None }
}

const NO_LOCKS: &str = "This file system has no locks (flock), which a lease in a folder needs: open the database without the option lease";

fn lacks_locks(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::ENOTSUP | libc::ENOSYS)) || error.kind() == io::ErrorKind::Unsupported
}

/// The names in a folder; none where there is no such folder.
fn folders(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(io::Result::transpose).collect()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}

/// The lock of who replaces the object.
struct Alone(File);

impl Alone {
    /// It is held for a few calls only: who has it longer does not run.
    async fn take(path: &Path) -> io::Result<Self> {
        const TRIES: u32 = 100;
        const PAUSE: Duration = Duration::from_millis(20);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        for _ in 0..TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(PAUSE).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, format!("{} is locked by another process", path.display())))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Closing is not enough where the process was forked meanwhile: the child has the same open file.
        let _ = self.0.unlock();
    }
}

impl Store for FolderStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn list(&self, level: Level, from: Option<Txid>) -> BoxFuture<'_, Result<Vec<Listed>, StoreError>> {
        ready(self.entries(level, from).map_err(|e| self.error("list", &format_args!("level {level}"), &e))).boxed()
    }

    fn create<'a>(&'a self, name: &'a LtxName, body: Bytes, timestamp: TimestampMs) -> BoxFuture<'a, Result<Created, StoreError>> {
        let created = || {
            // Spares the write where the answer is known; publishing decides.
            if self.path(name).try_exists()? {
                return Ok(Created::AlreadyExists);
            }
            let mut draft = self.begin(name, timestamp)?;
            draft.write(&body)?;
            Ok(draft.publish()?.into())
        };
        ready(created().map_err(|e: io::Error| self.error("create", name, &e))).boxed()
    }

    fn upload<'a>(&'a self, name: &'a LtxName, timestamp: TimestampMs) -> BoxFuture<'a, Result<Box<dyn Upload>, StoreError>> {
        let begun = self.begin(name, timestamp).map_err(|e| self.error("upload", name, &e));
        let upload = |draft| -> Box<dyn Upload> { Box::new(FolderUpload { url: self.url.clone(), name: *name, draft }) };
        ready(begun.map(upload)).boxed()
    }

    fn part_size_bytes(&self) -> usize {
        // A folder takes parts of any size: with small ones tests of crashes need no large databases.
        if cfg!(feature = "fault-injection") { 256 * 1024 } else { PART_SIZE_BYTES }
    }

    fn get_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        let mut body = Vec::new();
        let read = self.read(&self.path(name), &range, &mut body).map_err(|e| self.error("get", name, &e));
        ready(read.map(|()| body.into())).boxed()
    }

    fn read_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>, body: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), StoreError>> {
        ready(self.read(&self.path(name), &range, body).map_err(|e| self.error("get", name, &e))).boxed()
    }

    fn head<'a>(&'a self, name: &'a LtxName) -> BoxFuture<'a, Result<Listed, StoreError>> {
        let described = fs::metadata(self.path(name)).and_then(|metadata| describe(*name, &metadata));
        ready(described.map_err(|e| self.error("head", name, &e))).boxed()
    }

    fn delete<'a>(&'a self, names: &'a [LtxName]) -> BoxFuture<'a, Result<(), StoreError>> {
        ready(self.remove(names)).boxed()
    }

    fn has_generations(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        let generations = self.root.join(self.keys.generations());
        ready(generations.try_exists().map_err(|e| self.error("list", &"generations", &e))).boxed()
    }

    fn list_generations(&self) -> BoxFuture<'_, Result<Vec<GenerationFile>, StoreError>> {
        ready(self.generations().map_err(|e| self.error("list", &"generations", &e))).boxed()
    }

    fn read_generation<'a>(
        &'a self,
        file: &'a GenerationFile,
        range: Range<u64>,
        body: &'a mut Vec<u8>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let path = self.root.join(self.keys.generations()).join(&file.path);
        ready(self.read(&path, &range, body).map_err(|e| self.error("get", file, &e))).boxed()
    }

    fn read_lock(&self) -> BoxFuture<'_, Result<Option<LockObject>, StoreError>> {
        ready(self.read_lock_file(LOCK_FILE).map_err(|e| self.lock_error("get", LOCK_FILE, &e))).boxed()
    }

    fn write_lock<'a>(&'a self, body: Bytes, expected: Option<&'a LockVersion>) -> BoxFuture<'a, Result<LockWritten, StoreError>> {
        async move { self.write_lock_file(LOCK_FILE, &body, expected).await.map_err(|e| self.lock_error("put", LOCK_FILE, &e)) }.boxed()
    }

    fn read_note(&self) -> BoxFuture<'_, Result<Option<LockObject>, StoreError>> {
        ready(self.read_lock_file(NOTE_FILE).map_err(|e| self.lock_error("get", NOTE_FILE, &e))).boxed()
    }

    fn write_note<'a>(&'a self, body: Bytes, expected: Option<&'a LockVersion>) -> BoxFuture<'a, Result<LockWritten, StoreError>> {
        async move { self.write_lock_file(NOTE_FILE, &body, expected).await.map_err(|e| self.lock_error("put", NOTE_FILE, &e)) }.boxed()
    }

    fn scratch(&self) -> Option<Box<dyn Scratch>> {
        Some(Box::new(FolderScratch::tidy(&self.url, self.folder(Level::ZERO))))
    }

    fn creates_are_conditional(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        let mut known = self.conditional.lock();
        let answer = match *known {
            Some(answer) => Ok(answer),
            None => self.probe().map_err(|e| self.error("probe", &"level 0", &e)),
        };
        *known = answer.as_ref().ok().copied();
        ready(answer).boxed()
    }
}

/// A large file on its way.
struct FolderUpload {
    url: String,
    name: LtxName,
    draft: Draft,
}

fn upload_error(url: &str, name: &LtxName, error: &io::Error) -> StoreError {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    StoreError {
        kind: StoreErrorKind::Io,
        operation: "upload",
        object: format!("{name} in {url}"),
        cause: error.to_string(),
        advice: if full { "Free space on the file system that holds the replica's folder" } else { "" },
        retry_after: None,
    }
}

impl Upload for FolderUpload {
    fn part(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(self.draft.write(&body).map_err(|e| upload_error(&self.url, &self.name, &e))).boxed()
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<Created, StoreError>> {
        let Self { url, name, draft } = *self;
        ready(draft.publish().map(Created::from).map_err(|e| upload_error(&url, &name, &e))).boxed()
    }

    fn abort(self: Box<Self>) -> BoxFuture<'static, ()> {
        drop(self);
        ready(()).boxed()
    }
}

/// A file that nobody else sees yet; removed when dropped.
struct Draft {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    timestamp: TimestampMs,
}

/// How a draft came to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Published {
    /// By an operation that fails where the name is taken.
    Atomically,
    /// After looking, on a file system that has no such operation.
    Checked,
    /// Not at all.
    Exists,
}

impl From<Published> for Created {
    fn from(published: Published) -> Self {
        if published == Published::Exists { Self::AlreadyExists } else { Self::New }
    }
}

impl Draft {
    fn begin(path: PathBuf, timestamp: TimestampMs) -> io::Result<Self> {
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{:016x}{TEMPORARY}", fastrand::u64(..)));
        let temporary = PathBuf::from(temporary);
        let open = || OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_folders(parent(&path))?;
                open()?
            }
            opened => opened?,
        };
        Ok(Self { file, temporary, path, timestamp })
    }

    fn write(&mut self, body: &[u8]) -> io::Result<()> {
        self.file.write_all(body)
    }

    fn publish(self) -> io::Result<Published> {
        self.file.set_times(FileTimes::new().set_modified(system_time(self.timestamp)))?;
        self.file.sync_all()?;
        let published = match fs::hard_link(&self.temporary, &self.path) {
            Ok(()) => Published::Atomically,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Published::Exists,
            Err(e) if lacks_links(&e) => rename_if_absent(&self.temporary, &self.path)?,
            Err(e) => return Err(e),
        };
        let folder = parent(&self.path).to_owned();
        drop(self);
        sync_folder(&folder)?;
        Ok(published)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already where it was renamed; otherwise a later open removes it.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// What file systems answer that have no hard links: FAT, some network and FUSE ones.
fn lacks_links(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOTSUP | libc::ENOSYS | libc::EMLINK | libc::EINVAL))
}

fn rename_if_absent(from: &Path, to: &Path) -> io::Result<Published> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(Published::Atomically),
        Err(rustix::io::Errno::EXIST) => return Ok(Published::Exists),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {}
        Err(e) => return Err(e.into()),
    }
    if to.try_exists()? {
        return Ok(Published::Exists);
    }
    fs::rename(from, to)?;
    Ok(Published::Checked)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// Makes a folder and those above it, each durable in its parent.
fn make_folders(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => sync_folder(parent(path)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.parent().is_some() => {
            make_folders(parent(path))?;
            match fs::create_dir(path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                made => made.and_then(|()| sync_folder(parent(path))),
            }
        }
        Err(e) => Err(e),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn describe(name: LtxName, metadata: &fs::Metadata) -> io::Result<Listed> {
    Ok(Listed { name, size_bytes: metadata.len(), timestamp: timestamp(metadata.modified()?), timestamp_is_exact: true })
}

fn system_time(timestamp: TimestampMs) -> SystemTime {
    let offset = Duration::from_millis(timestamp.0.unsigned_abs());
    let time = if timestamp.0 < 0 { UNIX_EPOCH.checked_sub(offset) } else { UNIX_EPOCH.checked_add(offset) };
    time.unwrap_or(UNIX_EPOCH)
}

fn timestamp(time: SystemTime) -> TimestampMs {
    let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    TimestampMs(match time.duration_since(UNIX_EPOCH) {
        Ok(after) => millis(after),
        Err(before) => -millis(before.duration()),
    })
}

/// Removes old temporary files of a folder. A failure costs disk space only, and the next open tries again.
fn remove_abandoned(folder: &Path, after: Duration) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.ends_with(TEMPORARY));
        // The change time: a draft's mtime is the commit's, which may be long ago.
        let age = entry.metadata().ok().filter(fs::Metadata::is_file).and_then(|m| SystemTime::now().duration_since(changed(&m)).ok());
        if ours && age.is_some_and(|age| age > after) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn changed(metadata: &fs::Metadata) -> SystemTime {
    use std::os::unix::fs::MetadataExt;
    system_time(TimestampMs(metadata.ctime().saturating_mul(1000).saturating_add(metadata.ctime_nsec() / 1_000_000)))
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
