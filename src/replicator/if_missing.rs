//! `restore=if-missing`: a database that is not there is restored before SQLite opens it.
//!
//! ```text
//!   is the database there, and nothing left to be finished?  -> nothing is done: two looks at the file system, no request
//!   lock <database>-replicated/restore                       one restore at a time, of all threads and processes of the machine
//!   restore to a temporary name, verify, fsync
//!   note in the locked file what is about to be put in place
//!   rename, write the control file, empty the locked file
//! ```
//!
//! Who comes meanwhile finds the note and waits for the lock, and so never opens a database whose control file is still to be written. A
//! process that died in between leaves the note, and the next open finishes what it says.

use std::cell::Cell;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::control::Identity;
use super::local::{Paths, identity};
use super::process::{self, StartThread};
use super::remember::{self, RememberError, Restored};
use super::stamp;
use crate::config::Options;
use crate::fault::fault_point;
use crate::logging::event;
use crate::restore::{self, Plan, Progress, RestoreError, RestoreOptions};
use crate::store::{self, ReplicaUrl, Store, StoreError, UrlError};
use crate::types::{PageSize, Txid};
/// A note is a line of numbers.
const MOST_NOTE_BYTES: usize = 512;

/// Why a database that is not there could not be restored. It is not opened then: an empty one would be sent over the history.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IfMissingError {
    #[error("option replica: {0}")]
    Url(#[from] UrlError),
    #[error("option replica: {0}")]
    Store(#[from] StoreError),
    #[error("restore=if-missing: cannot {operation} {path}: {source}")]
    Local {
        operation: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "restore=if-missing: {database} is not there and could not be restored: {source}{}. No empty database is made in its place; \
         restore=never makes one",
        advice(.source)
    )]
    Restore {
        database: String,
        #[source]
        source: Box<RestoreError>,
    },
    #[error(
        "restore=if-missing: {database} was restored, but where replication goes on from could not be noted: {why}. The next open tries it again"
    )]
    NotResumable { database: String, why: String },
    #[error(
        "restore=if-missing: {database} is being restored{by}, which has taken longer than restore_wait ({waited:?}). Open it again when that is done, wait \
         longer, or end that process if it hangs: the next open begins anew"
    )]
    Busy { database: String, by: String, waited: Duration },
    #[error(
        "restore=if-missing: no thread could be started: {0}. Raise the limit on threads (RLIMIT_NPROC, pids.max) or allow them, and open again"
    )]
    Thread(io::Error),
    #[error("restore=if-missing: a fault in the extension: please report it with the log. The next open tries again")]
    Fault,
    #[error("option replica2: {0}")]
    SecondUrl(UrlError),
    #[error("option replica2: {0}")]
    SecondStore(StoreError),
    /// The first replica has nothing, and the second one may be all that is left.
    #[error(
        "restore=if-missing: {database} is not there, {first} has nothing to restore, and {second} (replica2) {has}. No empty database is made in its place, and \
         the second replica is restored only where restore_from=any allows it; restore=never makes an empty one"
    )]
    SecondMayHave { database: String, first: String, second: String, has: String },
}

fn advice(error: &RestoreError) -> String {
    let advice = error.advice();
    if advice.is_empty() { advice } else { format!(". What to do: {advice}") }
}

/// Restores the database if it is not there and the replica has one. Blocks until that is done.
///
/// # Errors
/// Where it is not known what the replica has, or it could not be restored.
pub(crate) fn restore_if_missing(path: &Path, options: &Options, start_thread: StartThread) -> Result<(), IfMissingError> {
    let paths = Paths::of(path);
    if !is_missing(&paths)? && !has_note(&paths) {
        return Ok(());
    }
    let parsed = |options: &Options| ReplicaUrl::parse(&options.replica_for(path).unwrap_or_default());
    let second = options.second().map(|options| parsed(&options).map_err(IfMissingError::SecondUrl)).transpose()?;
    let places = Places { first: parsed(options)?, second };
    let options = options.clone();
    // On a thread of its own: the application's may be one of a runtime that does not let itself be blocked by another, and has its own signal
    // handlers and stack.
    let (to, from) = mpsc::sync_channel(1);
    let body = move || {
        // Nobody listens any more where the caller is gone.
        let _ = to.send(restore_alone(&paths, &places, &options));
    };
    start_thread(Box::new(body)).map_err(IfMissingError::Thread)?;
    from.recv().unwrap_or(Err(IfMissingError::Fault))
}

/// Whether there is no database: no file, or one that was made and never written to.
fn is_missing(paths: &Paths) -> Result<bool, IfMissingError> {
    match std::fs::metadata(&paths.database) {
        Ok(metadata) => Ok(metadata.is_file() && metadata.len() == 0 && !paths.has_log()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(local("look at", &paths.database)(source)),
    }
}

fn lock_path(paths: &Paths) -> PathBuf {
    paths.directory.join("restore")
}

fn has_note(paths: &Paths) -> bool {
    std::fs::metadata(lock_path(paths)).is_ok_and(|metadata| metadata.len() > 0)
}

fn local(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IfMissingError {
    let path = path.display().to_string();
    move |source| IfMissingError::Local { operation, path, source }
}

/// Where it may be restored from.
struct Places {
    first: ReplicaUrl,
    second: Option<ReplicaUrl>,
}

/// What came of a restore.
enum Done {
    Restored,
    /// The replica has nothing.
    Nothing,
    /// Somebody has made it by other means.
    IsThere,
}

fn restore_alone(paths: &Paths, places: &Places, options: &Options) -> Result<(), IfMissingError> {
    let lock = Lock::take(paths, options.restore_wait)?;
    let database = &paths.database;
    if let Some(note) = lock.read() {
        let url = if note.is_second { places.second.as_ref() } else { Some(&places.first) };
        // Another second one than before, or none: then what was restored is nobody's.
        url.map_or(Ok(()), |url| note.finish(paths, url.as_str()))?;
        lock.empty().map_err(local("write", &lock.path))?;
    }
    // Somebody else may have restored it while this one waited. Who has an empty database open for replication is about to fill it.
    if !is_missing(paths)? || process::has_open(database) {
        return Ok(());
    }
    process::let_go_of_replaced(database);
    if remember::is_in_use(paths) {
        return Ok(());
    }
    let _restorer = Restorer::tell(paths);
    let restored = restore_one(paths, &lock, &places.first, options, false);
    let Some(second) = &places.second else { return restored.map(|done| tell_of_nothing(&done, database, &places.first)) };
    match restored {
        Ok(Done::Restored | Done::IsThere) => Ok(()),
        Err(error) if !options.restore_from_any => Err(error),
        Ok(Done::Nothing) if !options.restore_from_any => {
            let store = second_store(second, options)?;
            let has = match restore::catalogue(&*store) {
                Ok(listed) => listed.iter().map(|l| l.name.max_txid).max().map(|newest| format!("goes up to TXID {newest}")),
                Err(error) if error.is_empty_bucket() => None,
                Err(error) => Some(format!("cannot be asked: {error}")),
            };
            let Some(has) = has else {
                tell_of_nothing(&Done::Nothing, database, &places.first);
                return Ok(());
            };
            let (first, second) = (places.first.to_string(), second.to_string());
            Err(IfMissingError::SecondMayHave { database: database.display().to_string(), first, second, has })
        }
        failed => {
            let why = failed.as_ref().err().map_or_else(|| "it has nothing".to_owned(), ToString::to_string);
            event!(
                Warn, "restored_from_second", database, cause = why;
                "{} (replica) cannot be restored: {why}. It is restored from {second} (replica2), as restore_from=any allows: what only the first one \
                 has is missing, and nothing is sent over it then",
                places.first
            );
            match (restore_one(paths, &lock, second, options, true)?, failed) {
                // What the first one has is not known.
                (Done::Nothing, Err(error)) => Err(error),
                (done, _) => {
                    tell_of_nothing(&done, database, second);
                    Ok(())
                }
            }
        }
    }
}

fn tell_of_nothing(done: &Done, database: &Path, url: &ReplicaUrl) {
    if matches!(done, Done::Nothing) {
        event!(Info, "nothing_to_restore", database; "{url} has nothing to restore: it begins here");
    }
}

fn second_store(url: &ReplicaUrl, options: &Options) -> Result<Arc<dyn Store>, IfMissingError> {
    store::open(url, &options.store_options()).map_err(IfMissingError::SecondStore)
}

fn restore_one(paths: &Paths, lock: &Lock, url: &ReplicaUrl, options: &Options, is_second: bool) -> Result<Done, IfMissingError> {
    let database = &paths.database;
    let store = if is_second { second_store(url, options)? } else { store::open(url, &options.store_options())? };
    event!(Info, "restore_begins", database; "is not there, and is restored from {url} first");
    let watcher = Watcher::default();
    let check = |draft: &Path| {
        let note = Note { is_second, ..Note::of(draft, &watcher).map_err(|error| error.to_string())? };
        lock.write(&note).map_err(|error| format!("{}: {error}", lock.path.display()))?;
        paths.sync_directories();
        fault_point!("if-missing.noted");
        Ok(())
    };
    let max_memory_bytes = options.max_memory_bytes;
    let threads = restore::threads_up_to(options.restore_threads);
    let how = RestoreOptions {
        max_memory_bytes,
        threads,
        progress: Some(&watcher),
        check: Some(&check),
        is_second,
        ..RestoreOptions::latest(database)
    };
    let report = match restore::restore(&*store, &how) {
        Ok(report) => report,
        Err(error) if error.is_empty_bucket() => return Ok(Done::Nothing),
        Err(RestoreError::OutputExists { .. }) if !is_missing(paths)? => {
            lock.empty().map_err(local("write", &lock.path))?;
            return Ok(Done::IsThere);
        }
        Err(error) => {
            let source = Box::new(error);
            return Err(IfMissingError::Restore { database: database.display().to_string(), source });
        }
    };
    fault_point!("if-missing.restored");
    if let Some(why) = report.not_resumable {
        return Err(IfMissingError::NotResumable { database: database.display().to_string(), why });
    }
    lock.empty().map_err(local("write", &lock.path))?;
    event!(
        Info, "restored", database, txid = report.txid;
        "restored from {url} to TXID {}, {} pages of {} bytes",
        report.txid, report.commit_pages, report.page_size
    );
    Ok(Done::Restored)
}

/// What the plan said, for the note.
#[derive(Default)]
struct Watcher {
    state: Cell<Option<(Txid, Txid)>>,
}

impl Progress for Watcher {
    fn planned(&self, plan: &Plan) {
        self.state.set(Some((plan.txid, plan.max_txid_in_bucket)));
    }

    fn applied(&self, _bytes: u64) {}
}

/// The file that is locked, and holds the note. It stays where it is: one that is deleted would be locked by two.
struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Of the open file and not of the process, so that it keeps out other threads as well.
    fn take(paths: &Paths, limit: Duration) -> Result<Self, IfMissingError> {
        /// Between two looks whether it can be had: who waits is waiting for a restore.
        const PAUSE: Duration = Duration::from_millis(20);
        match std::fs::DirBuilder::new().mode(0o777).create(&paths.directory) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => return Err(local("create", &paths.directory)(source)),
            _ => {}
        }
        let path = lock_path(paths);
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(local("create", &path))?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file, path }),
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(TryLockError::Error(source)) => return Err(local("lock", &path)(source)),
                Err(TryLockError::WouldBlock) if began.elapsed() >= limit => {
                    return Err(IfMissingError::Busy {
                        database: paths.database.display().to_string(),
                        by: Restorer::of(paths),
                        waited: limit,
                    });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE.min(limit.saturating_sub(began.elapsed()))),
            }
        }
    }

    fn read(&self) -> Option<Note> {
        let mut text = [0; MOST_NOTE_BYTES];
        let bytes = self.file.read_at(&mut text, 0).ok()?;
        Note::parse(std::str::from_utf8(text.get(..bytes)?).ok()?)
    }

    fn write(&self, note: &Note) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(note.to_string().as_bytes(), 0)?;
        self.file.sync_all()
    }

    fn empty(&self) -> io::Result<()> {
        self.file.set_len(0)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough where the process was forked meanwhile: the child has the same open file.
        let _ = self.file.unlock();
    }
}

/// Who restores, in a file of its own, for whoever waits in vain. Nothing rests on it: one that a dead process has left is written anew by the next.
struct Restorer {
    path: PathBuf,
}

impl Restorer {
    fn path(paths: &Paths) -> PathBuf {
        paths.directory.join("restorer")
    }

    fn tell(paths: &Paths) -> Self {
        let path = Self::path(paths);
        let told = std::fs::write(&path, std::process::id().to_string());
        if let Err(error) = told {
            event!(Debug, "local_file", paths, cause = error; "{}: {error}", path.display());
        }
        Self { path }
    }

    /// In words, where it is known.
    fn of(paths: &Paths) -> String {
        let id = std::fs::read_to_string(Self::path(paths)).ok().and_then(|text| text.parse::<u32>().ok());
        id.map_or_else(String::new, |id| if id == std::process::id() { " by this process".to_owned() } else { format!(" by process {id}") })
    }
}

impl Drop for Restorer {
    fn drop(&mut self) {
        // The lock is still held: this is ours.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What is about to be put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    identity: Identity,
    size_bytes: u64,
    mtime_ns: i64,
    txid: Txid,
    newest: Txid,
    page_size: PageSize,
    /// From the second replica.
    is_second: bool,
}

impl Note {
    const BEGINNING: &str = "restored-1";
    const BEGINNING_OF_SECOND: &str = "restored2-1";

    /// Reads the temporary file, which nobody has open as a database.
    fn of(draft: &Path, watcher: &Watcher) -> io::Result<Self> {
        let mut size = [0; 2];
        File::open(draft)?.read_exact_at(&mut size, 16)?;
        let page_size = match u16::from_be_bytes(size) {
            1 => 65536,
            bytes => u32::from(bytes),
        };
        let (Some((txid, newest)), Some(page_size)) = (watcher.state.get(), PageSize::new(page_size)) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let (size_bytes, mtime_ns) = looks(draft)?;
        Ok(Self { identity: identity(draft)?, size_bytes, mtime_ns, txid, newest, page_size, is_second: false })
    }

    fn parse(text: &str) -> Option<Self> {
        // A line that was cut off says nothing.
        let mut words = text.strip_suffix('\n')?.split(' ');
        let is_second = match words.next() {
            Some(Self::BEGINNING) => false,
            Some(Self::BEGINNING_OF_SECOND) => true,
            _ => return None,
        };
        let mut number = || words.next()?.parse::<u64>().ok();
        Some(Self {
            identity: Identity { device: number()?, inode: number()?, born_ns: number()? },
            size_bytes: number()?,
            mtime_ns: i64::try_from(number()?).ok()?,
            txid: Txid::new(number()?)?,
            newest: Txid::new(number()?)?,
            page_size: PageSize::new(u32::try_from(number()?).ok()?)?,
            is_second,
        })
    }

    /// The process that wrote this did not come to its end. Where the file is in its place, and nobody has written to it, replication goes on from it.
    fn finish(&self, paths: &Paths, url: &str) -> Result<(), IfMissingError> {
        let database = &paths.database;
        let is_it = identity(database).is_ok_and(|now| now == self.identity)
            && looks(database).is_ok_and(|now| now == (self.size_bytes, self.mtime_ns))
            && !paths.has_log()
            && !process::has_open(database);
        if !is_it {
            return Ok(());
        }
        let Self { txid, newest, page_size, is_second, .. } = *self;
        // Nothing tells the other replica where this one ended.
        let restored = Restored { txid, newest, page_size, origin: None, is_second };
        match remember::restored_unless_known(database, url, &restored) {
            // Then it is open, and known to who has it.
            Ok(()) | Err(RememberError::InUse(_)) => Ok(()),
            Err(error) => Err(IfMissingError::NotResumable { database: database.display().to_string(), why: error.to_string() }),
        }
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Identity { device, inode, born_ns } = self.identity;
        let (txid, newest, page_size) = (self.txid.get(), self.newest.get(), self.page_size.get());
        let beginning = if self.is_second { Self::BEGINNING_OF_SECOND } else { Self::BEGINNING };
        writeln!(f, "{beginning} {device} {inode} {born_ns} {} {} {txid} {newest} {page_size}", self.size_bytes, self.mtime_ns)
    }
}

/// Size and time of the last change: what a rename leaves as it is.
fn looks(path: &Path) -> io::Result<(u64, i64)> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.len(), stamp::mtime_ns(&metadata)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_a_torn_one_is_none() {
        let note = Note {
            identity: Identity { device: 1, inode: u64::MAX, born_ns: 3 },
            size_bytes: 4,
            mtime_ns: i64::MAX,
            txid: Txid::FIRST,
            newest: Txid::FIRST.next(),
            page_size: PageSize::new(65536).unwrap(),
            is_second: false,
        };
        for note in [note, Note { is_second: true, ..note }] {
            let text = note.to_string();
            assert!(text.len() <= MOST_NOTE_BYTES);
            assert_eq!(Note::parse(&text), Some(note));
            for end in 0..text.len() {
                assert_eq!(Note::parse(&text[..end]), None);
            }
        }
    }
}
