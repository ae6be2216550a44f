//! What a process has one of: the hub, the uploader's thread and the table of databases.
//!
//! After a fork the child has none of its parent's threads, and its locks may be held by nobody: it gets a fresh `Process`, and the
//! inherited one is left alone for ever.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::control::{Control, Identity, State};
use super::database::{Database, Host, OpenedTail};
use super::hub::{Hub, Notice};
use super::lease::{self, Lease, LeasedStore};
use super::local::{OwnerMode, Paths, identity};
use super::progress::WaitError;
use super::shared::{Mapped, Private, Range, Shared};
use super::tail::{StopKind, Tail};
use super::{dispatcher, step};
use crate::config::Options;
use crate::fault::{fault_io, fault_point};
use crate::spool::{Limits, Spool, SpoolError};
use crate::store::{self, Env, HttpClients, ReplicaUrl, Store, StoreError, UrlError};

/// Why a database cannot be opened with replication.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("option replica: {0}")]
    Url(#[from] UrlError),
    #[error("option replica: {0}")]
    Store(#[from] StoreError),
    /// Local state cannot be made or read.
    #[error("cannot replicate {database}: {path}: {source}. The directory beside the database must be writable")]
    Local {
        database: String,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot replicate {database}: {source}")]
    Spool {
        database: String,
        #[source]
        source: SpoolError,
    },
    /// Another process has it open, and cannot be joined.
    #[error("{database} is open for replication in another process, which cannot be joined: {why}")]
    OtherProcess { database: String, why: &'static str },
    /// Two databases on one path of a bucket.
    #[error("option replica: {url} is in use for {other}, and each database needs a replica URL of its own; got it for {database} too")]
    UrlInUse { url: String, other: String, database: String },
    /// The same database with another replica.
    #[error("option replica: {database} is open with {first} in this process; got {second}")]
    OtherUrl { database: String, first: String, second: String },
    /// No thread could be started.
    #[error(
        "the uploader's thread could not be started: {0}. Raise the limit on threads (RLIMIT_NPROC, pids.max) or allow them, and open again"
    )]
    Thread(String),
}

/// The databases of this process by what they are, not by what they are called.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    databases: Mutex<HashMap<Identity, Arc<Database>>>,
    /// The shim's open files by the names that SQLite gave them, both as addresses: a name is a file's for as long as that is open.
    mains: Mutex<HashMap<usize, usize>>,
}

#[derive(Debug)]
pub(crate) struct Process {
    hub: Arc<Hub>,
    registry: &'static Registry,
    next_id: AtomicU64,
    /// All requests run on the uploader's runtime.
    http: Arc<HttpClients>,
}

/// How many forks deep a process may be. One slot each, so that nothing inherited is ever touched.
pub(crate) const MOST_FORKS: usize = 256;

/// Counts forks, from the child's side. The handler does nothing else: locks and thread-locals are off limits there.
static FORKS: AtomicUsize = AtomicUsize::new(0);
static PROCESSES: [Slot; MOST_FORKS] = [const { Slot { process: OnceLock::new(), starting: Mutex::new(()) } }; MOST_FORKS];

struct Slot {
    process: OnceLock<Process>,
    /// A start that failed is tried again by the next open: a limit on threads may have been lifted.
    starting: Mutex<()>,
}

/// To be called in the child of a fork.
pub(crate) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Which process of a chain of forks this is.
pub(crate) fn generation() -> usize {
    FORKS.load(Ordering::Relaxed)
}

/// Starts a thread with all signals blocked, so that no handler of the host ever runs on it.
pub(crate) type StartThread = fn(Box<dyn FnOnce() + Send>) -> std::io::Result<()>;

impl Process {
    /// This process's, with the thread started if it is the first call.
    fn current(start_thread: StartThread) -> Result<&'static Self, OpenError> {
        let slot = PROCESSES.get(generation()).ok_or_else(|| OpenError::Thread(format!("more than {MOST_FORKS} forks deep")))?;
        let _starting = slot.starting.lock();
        if slot.process.get().is_none() {
            // Nobody else sets it while the lock is held.
            let _ = slot.process.set(Self::start(start_thread).map_err(|e| OpenError::Thread(e.to_string()))?);
        }
        slot.process.get().ok_or_else(|| OpenError::Thread("it has not started".to_owned()))
    }

    fn start(start_thread: StartThread) -> std::io::Result<Self> {
        let (hub, receiver) = Hub::new()?;
        let hub = Arc::new(hub);
        // Lives as long as the process; nothing of ours is torn down at exit, where thread-locals are gone.
        let registry: &'static Registry = Box::leak(Box::default());
        let thread_hub = Arc::clone(&hub);
        start_thread(Box::new(move || {
            let ended = catch_unwind(AssertUnwindSafe(|| dispatcher::run(&thread_hub, receiver, registry)));
            let error = match ended {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(panic) => step::panic_text(&*panic),
            };
            log::error!(target: "replicated", "the uploader ended: {error}; nothing is replicated any more by this process");
            registry.fail_all(&error);
        }))?;
        Ok(Self { hub, registry, next_id: AtomicU64::new(1), http: Arc::default() })
    }
}

/// Opens a database for replication, or joins those who have it open in this process.
pub(crate) fn open(
    path: &Path,
    options: &Options,
    host: Arc<dyn Host>,
    start_thread: StartThread,
    taken: Option<lease::Taken>,
) -> Result<Arc<Database>, OpenError> {
    let process = Process::current(start_thread)?;
    let local = |source| OpenError::Local { database: path.display().to_string(), path: path.display().to_string(), source };
    let identity = identity(path).map_err(local)?;
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let url = ReplicaUrl::parse(&options.replica_for(name).unwrap_or_default())?;
    let mut databases = process.registry.databases.lock();
    if let Some(database) = databases.get(&identity) {
        // It has the lease, whoever has written it last.
        taken.map(lease::Taken::hand_over);
        return join(database, &url);
    }
    let_go(&mut databases, path);
    let url_text = url.to_string();
    if let Some(other) = databases.values().find(|d| d.store.url() == url_text) {
        return Err(OpenError::UrlInUse {
            url: url_text,
            other: other.paths.database.display().to_string(),
            database: path.display().to_string(),
        });
    }
    let store = store::open_sharing(&url, &options.store_options(), &Env::process(), &process.http)?;
    let paths = Paths::of(path);
    let store = with_lease(store, options, &paths, taken);
    let opened = open_tail(&paths, identity, &url_text, options, host.as_ref())?;
    let conflict = opened.tail.conflict();
    let id = process.next_id.fetch_add(1, Ordering::Relaxed);
    let database = Arc::new(Database::new(id, paths, options.clone(), store, Arc::clone(&process.hub), host, opened));
    database.handles.store(1, Ordering::Release);
    if let Some(message) = conflict {
        // Known from before: nothing is committed until the uploader has looked.
        step::report_stop(&database, StopKind::Fenced, message);
    }
    databases.insert(identity, Arc::clone(&database));
    drop(databases);
    if !process.hub.notify(Notice::Opened(Arc::clone(&database))) {
        database.poison("the uploader has ended");
    }
    fault_point!("open.registered");
    Ok(database)
}

/// The store that writes only with the lease, where the option asks for that; and the lease, as it was taken.
fn with_lease(
    store: Arc<dyn Store>,
    options: &Options,
    paths: &Paths,
    taken: Option<lease::Taken>,
) -> (Arc<dyn Store>, Option<Arc<Lease>>) {
    if options.lease.is_zero() {
        return (store, None);
    }
    let node = taken.as_ref().map_or_else(|| lease::node_of(paths), |taken| taken.node);
    let standing = taken.map(lease::Taken::hand_over).unwrap_or_default();
    let lease = Arc::new(Lease::new(Arc::clone(&store), options, node, standing));
    (Arc::new(LeasedStore::new(store, Arc::clone(&lease))), Some(lease))
}

/// SQLite lets an application delete or replace a file that it still has open; what is beside it now belongs to the new one.
fn let_go(databases: &mut HashMap<Identity, Arc<Database>>, path: &Path) {
    if let Some(gone) = databases.values().find(|d| d.paths.database == path).cloned() {
        let message = "the file was deleted or replaced while a connection had it open: what that connection commits is not replicated";
        // First of all: what it would tell the others is told in the page that the new one uses.
        gone.progress.fail(message.to_owned());
        gone.lock_tail().stop(StopKind::Failed, message.to_owned());
        gone.release();
        databases.retain(|_, d| !Arc::ptr_eq(d, &gone));
    }
}

/// The file of that name is about to be another one: whoever has the one before open is let go of.
pub(crate) fn let_go_of_replaced(path: &Path) {
    if let Some(registry) = registry() {
        let_go(&mut registry.databases.lock(), path);
    }
}

/// Whether this process replicates the file that has that name now.
pub(crate) fn has_open(path: &Path) -> bool {
    identity(path).is_ok_and(|identity| replicates(&identity))
}

/// Whether a connection of this process has it open, so that it is not about to be forgotten.
pub(crate) fn has_handles(path: &Path) -> bool {
    let (Ok(identity), Some(registry)) = (identity(path), registry()) else { return false };
    registry.databases.lock().get(&identity).is_some_and(|database| database.handles.load(Ordering::Acquire) > 0)
}

fn join(database: &Arc<Database>, url: &ReplicaUrl) -> Result<Arc<Database>, OpenError> {
    let second = url.to_string();
    if database.store.url() != second {
        let first = database.store.url().to_owned();
        return Err(OpenError::OtherUrl { database: database.paths.database.display().to_string(), first, second });
    }
    if database.handles.fetch_add(1, Ordering::AcqRel) == 0 {
        database.reopened();
    }
    Ok(Arc::clone(database))
}

/// Gives a handle back. The last one flushes, for a bounded time.
pub(crate) fn close(database: &Arc<Database>) {
    let Some(process) = PROCESSES.get(generation()).and_then(|slot| slot.process.get()) else { return };
    {
        let _registry = process.registry.databases.lock();
        if database.handles.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        database.flushing.fetch_add(1, Ordering::AcqRel);
    }
    // Also where the flush panics: else nobody could ever open the database afresh.
    let _flushing = Flushing { database, process };
    fault_point!("close.flush");
    let limit = database.options.close_timeout;
    // What another process uploads need not be waited for: that one goes on. Where it has just gone, this one is about to take over.
    if (database.is_owner() || database.is_alone())
        && database.is_known()
        && !limit.is_zero()
        && let Err(error @ WaitError::Timeout(..)) = database.sync_at_close(limit)
    {
        log::warn!(
            target: "replicated",
            "{}: closed with commits that are not in the bucket ({error}); they are kept beside the database, and the next open goes on from there",
            database.paths.database.display()
        );
    }
    if database.is_owner() {
        // Only where rounds have been left undone by many processes that lived for a moment.
        database.neglect.wait(limit);
    }
    fault_point!("close.flushed");
}

/// The last handle is being closed.
struct Flushing<'a> {
    database: &'a Arc<Database>,
    process: &'a Process,
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        let database = self.database;
        {
            let _registry = self.process.registry.databases.lock();
            // Opened again meanwhile, or closed by another who is still flushing: then it is theirs.
            if database.flushing.fetch_sub(1, Ordering::AcqRel) != 1 || database.handles.load(Ordering::Acquire) > 0 {
                return;
            }
            database.closing.store(true, Ordering::Release);
        }
        database.wait_forgotten();
    }
}

/// Does something that would harm a control file which this process has open: not while it has, nor while it opens it. `None` where it has.
pub(crate) fn unless_open<T>(path: &Path, body: impl FnOnce() -> T) -> Option<T> {
    let databases = registry().map(|registry| registry.databases.lock());
    let is_open = databases.as_ref().is_some_and(|databases| databases.values().any(|database| database.paths.database == path));
    (!is_open).then(body)
}

/// Whether this process replicates that file.
pub(crate) fn replicates(identity: &Identity) -> bool {
    registry().is_some_and(|registry| registry.databases.lock().contains_key(identity))
}

fn registry() -> Option<&'static Registry> {
    PROCESSES.get(generation())?.process.get().map(|process| process.registry)
}

/// Whether this process has a replicated database open.
pub(crate) fn replicates_any() -> bool {
    registry().is_some_and(|registry| !registry.mains.lock().is_empty())
}

/// Remembers the shim's open file of a replicated database by the address of the name that SQLite gave it.
pub(crate) fn note_main(name: usize, file: usize) {
    if let Some(registry) = registry() {
        registry.mains.lock().insert(name, file);
    }
}

/// That file; 0 where there is none.
pub(crate) fn main_named(name: usize) -> usize {
    registry().and_then(|registry| registry.mains.lock().get(&name).copied()).unwrap_or_default()
}

/// It is closed.
pub(crate) fn forget_main(file: usize) {
    if let Some(registry) = registry() {
        registry.mains.lock().retain(|_, noted| *noted != file);
    }
}

/// The database whose WAL that is, if it is replicated by this process.
pub(crate) fn find_by_wal(path: &Path) -> Option<Arc<Database>> {
    let name = path.as_os_str().as_encoded_bytes();
    if !name.ends_with(b"-wal") {
        return None;
    }
    registry()?.databases.lock().values().find(|d| d.paths.wal == path).cloned()
}

/// How long to wait for another process that is about to open the database as well.
const OPENING_PATIENCE: Duration = Duration::from_secs(10);

/// Opens what is beside the database, or joins the processes that have it open.
fn open_tail(paths: &Paths, identity: Identity, url: &str, options: &Options, host: &dyn Host) -> Result<OpenedTail, OpenError> {
    let database = paths.database.display().to_string();
    let local = |path: &Path, source| OpenError::Local { database: database.clone(), path: path.display().to_string(), source };
    let refused = |why| OpenError::OtherProcess { database: database.clone(), why };
    let on_control = |source| local(&paths.control(), source);
    let owner = OwnerMode::of(&paths.database).map_err(|e| local(&paths.database, e))?;
    paths.create_directory(&owner).map_err(|e| local(&paths.directory, e))?;
    let control = Control::open(&paths.control()).map_err(on_control)?;
    let locks = control.locks();
    if !locks.try_lock_for(Range::Opening, true, OPENING_PATIENCE).map_err(on_control)? {
        return Err(refused("it has been opening it for a long time"));
    }
    let is_first = locks.try_lock(Range::Present, true).map_err(on_control)?;
    fault_io!("control.locked").map_err(on_control)?;
    let beside = Beside { paths, identity, url, options, owner, database: database.clone() };
    let file = control.file();
    let (tail, shared, is_shared) = if is_first {
        let tail = beside.first(control, |file| host.map_shared(file))?;
        fault_point!("open.saved");
        tail
    } else {
        let mapped = host.map_shared(&file).map_err(|_| refused("the memory that they would share cannot be mapped"))?;
        if !locks.try_lock_for(Range::Tail, true, OPENING_PATIENCE).map_err(on_control)? {
            return Err(refused("it holds what they share and does not go on: was it stopped? Have it go on, or kill it"));
        }
        let joined = beside.join(control, Shared::new(mapped), refused);
        locks.unlock(Range::Tail);
        let (tail, shared) = joined?;
        (tail, shared, true)
    };
    drop(file);
    let owns = locks.try_lock(Range::Owner, true).map_err(on_control)?;
    if is_shared {
        locks.lock(Range::Present, false).map_err(on_control)?;
    }
    locks.unlock(Range::Opening);
    Ok(OpenedTail { tail, shared, locks, owns })
}

/// What is beside a database that is opened.
struct Beside<'a> {
    paths: &'a Paths,
    identity: Identity,
    url: &'a str,
    options: &'a Options,
    owner: OwnerMode,
    database: String,
}

impl Beside<'_> {
    /// Nobody else has it open.
    fn first(
        &self,
        mut control: Control,
        map: impl FnOnce(&File) -> std::io::Result<Box<dyn Mapped>>,
    ) -> Result<(Tail, Arc<Shared>, bool), OpenError> {
        let paths = self.paths;
        let on_control = |source| OpenError::Local { database: self.database.clone(), path: paths.control().display().to_string(), source };
        let saved = control.load(&self.owner).map_err(on_control)?;
        let mapped = control.clear_page().and_then(|()| map(&control.file())).inspect_err(|error| {
            log::warn!(target: "replicated", "{}: cannot be mapped ({error}): no other process can join", paths.control().display());
        });
        let is_shared = mapped.is_ok();
        let shared = Shared::new(mapped.unwrap_or_else(|_| Box::new(Private::default())));
        shared.begin();
        let mut state = saved_for(saved, self.identity, self.url, &self.database);
        if self.options.adopt.is_some() {
            state.adopt = self.options.adopt;
        }
        let whole = |spool: Spool| spool.check_node(state.node_id).map(|()| spool);
        let opened = match self.spool(&state).and_then(whole) {
            Err(error)
                if error.is_lasting() || matches!(&error, SpoolError::Io { source, .. } if source.kind() == ErrorKind::UnexpectedEof) =>
            {
                log::warn!(target: "replicated", "{error}");
                state.full = Some(super::control::FullReason::SpoolLost);
                state.spool_first = state.spool_next;
                self.spool(&state)
            }
            other => other,
        };
        let mut tail = self.tail(control, &shared, state, opened)?;
        tail.save().map_err(|e| on_control(std::io::Error::other(e)))?;
        Ok((tail, shared, is_shared))
    }

    /// Others have it open. With the tail's lock held.
    fn join(
        &self,
        mut control: Control,
        shared: Arc<Shared>,
        refused: impl Fn(&'static str) -> OpenError,
    ) -> Result<(Tail, Arc<Shared>), OpenError> {
        let on_control =
            |source| OpenError::Local { database: self.database.clone(), path: self.paths.control().display().to_string(), source };
        if !shared.is_begun() {
            return Err(refused("it is of another version, or shares nothing; close it there first"));
        }
        let Some(mut state) = control.load(&self.owner).map_err(on_control)? else {
            return Err(refused("the control file beside it is damaged; close it there first"));
        };
        if state.identity != Some(self.identity) {
            return Err(refused("it has another file open, which had this name before; close it there first"));
        }
        if state.replica_hash != super::control::replica_hash(self.url) {
            return Err(refused("it replicates to another URL, and all processes must name the same one"));
        }
        if shared.in_memory.load(Ordering::Acquire) != 0 {
            return Err(refused("the disk is full, and what waits to be sent is in the memory of that process; make room and try again"));
        }
        shared.joined.store(1, Ordering::Release);
        let is_adopted = self.options.adopt.is_some() && state.adopt != self.options.adopt;
        if is_adopted {
            state.adopt = self.options.adopt;
        }
        let spool = self.spool(&state);
        let mut tail = self.tail(control, &shared, state, spool)?;
        if is_adopted {
            tail.save().map_err(|e| on_control(std::io::Error::other(e)))?;
            tail.look_again();
        }
        Ok((tail, shared))
    }

    fn spool(&self, state: &State) -> Result<Spool, SpoolError> {
        let attempt = state.attempt.map(|a| a.txid);
        // With one more that is being made, of what `max_memory` allows.
        let limits = Limits { disk_bytes: self.options.max_local_bytes, memory_bytes: self.options.max_memory_bytes / 2 };
        Spool::open(&self.paths.directory, self.owner, limits, state.spool_first, state.spool_next, attempt)
    }

    fn tail(&self, control: Control, shared: &Arc<Shared>, state: State, spool: Result<Spool, SpoolError>) -> Result<Tail, OpenError> {
        let spool = spool.map_err(|source| OpenError::Spool { database: self.database.clone(), source })?;
        let mut tail = Tail::new(self.paths.clone(), control, Arc::clone(shared), state, spool, self.options.max_memory_bytes / 8);
        if self.options.refuse_lost_tail {
            tail.refuse_lost_tail();
        }
        Ok(tail)
    }
}

/// What was saved, if it was saved for this very file and this replica.
fn saved_for(saved: Option<State>, identity: Identity, url: &str, database: &str) -> State {
    let replica_hash = crate::replicator::control::replica_hash(url);
    let fresh = State { identity: Some(identity), replica_hash, node_id: fastrand::u64(1..), ..State::default() };
    let Some(saved) = saved else { return fresh };
    if saved.identity != Some(identity) {
        log::warn!(target: "replicated", "{database}: the control file beside it belongs to another file; its position is not used");
        return fresh;
    }
    if saved.replica_hash != replica_hash {
        log::info!(target: "replicated", "{database}: has another replica URL than before");
        return fresh;
    }
    saved
}

impl Registry {
    /// Forgets a database that nobody has open; false where somebody has opened it again.
    pub(crate) fn forget_if_closed(&self, database: &Arc<Database>) -> bool {
        let mut databases = self.databases.lock();
        if !database.closing.load(Ordering::Acquire) || database.handles.load(Ordering::Acquire) > 0 {
            return false;
        }
        database.release();
        databases.retain(|_, d| !Arc::ptr_eq(d, database));
        true
    }

    fn fail_all(&self, error: &str) {
        for database in self.databases.lock().values() {
            database.poison(&format!("the uploader ended: {error}"));
        }
    }
}
