//! What a process has one of: the hub, the uploader's thread and the table of databases.
//!
//! After a fork the child has none of its parent's threads, and its locks may be held by nobody: it gets a fresh `Process`, and the
//! inherited one is left alone for ever.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ahead::{self, Due};
use super::beside::{OTHER_SECOND, Place, open_tail};
use super::control::{Identity, replica_hash};
use super::database::{Database, Host, OpenedTail};
use super::hub::{Hub, Notice};
use super::lease::{self, Lease, LeasedStore};
use super::local::{Paths, identity, room_or_right};
use super::origin;
use super::progress::WaitError;
use super::remember::peek;
use super::replicas::{Each, Replicas};
use super::roles::{Urls, Which};
use super::tail::StopKind;
use super::{dispatcher, roles, step};
use crate::config::Options;
use crate::fault::fault_point;
use crate::logging::{PerProcess, Unless, bucket_in_words, event};
use crate::metrics::{Counted, MeasuredStore, Meter, endpoint};
use crate::spool::SpoolError;
use crate::status::Status;
use crate::store::{self, Env, HttpClients, ReplicaUrl, Store, StoreError, UrlError};

/// Why a database cannot be opened with replication.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("option replica: {0}")]
    Url(#[from] UrlError),
    #[error("option replica: {0}")]
    Store(#[from] StoreError),
    /// Local state cannot be made or read.
    #[error("cannot replicate {database}: {path}: {source}. {}", room_or_right(.source))]
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
    #[error("option {option}: {database} is open with {first} in this process; got {second}. All connections to a database name the same")]
    OtherUrl { option: &'static str, database: String, first: String, second: String },
    /// Both replicas in one place.
    #[error(
        "option replica2: {second} is in one place with {first}, or within it: two replicas in one bucket and path are one, and would stop each other. Give the \
         second one a path of its own, at another provider where its loss is to be survived"
    )]
    SamePlace { first: String, second: String },
    #[error("option replica2: {0}")]
    SecondUrl(UrlError),
    #[error("option replica2: {0}")]
    SecondStore(StoreError),
    /// No thread could be started.
    #[error(
        "the uploader's thread could not be started: {0}. Raise the limit on threads (RLIMIT_NPROC, pids.max) or allow them, and open again"
    )]
    Thread(String),
}

/// The databases of this process by what they are, not by what they are called, and each of their replicas.
type Databases = HashMap<(Identity, Which), Arc<Database>>;

#[derive(Debug, Default)]
pub(crate) struct Registry {
    databases: Mutex<Databases>,
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
    /// Where metrics are told.
    metrics: Mutex<Option<SocketAddr>>,
    /// The thread that checkpoints, once a database asks for it.
    checkpoints: Mutex<Option<Due>>,
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

    /// Tells metrics, where an option asks for that. What comes of it is no matter of an open.
    fn tell_metrics(&self, options: &Options) {
        let Some(wanted) = options.metrics else { return };
        let mut told = self.metrics.lock();
        match *told {
            Some(address) if address == wanted => {}
            Some(address) => event!(
                Warn, "metrics", PerProcess;
                "option metrics: a process has one listener for all of its databases, and this one is at {address}; {wanted} is not listened at"
            ),
            None => match endpoint::listen(wanted) {
                Ok((listener, address)) => {
                    *told = Some(wanted);
                    self.hub.notify(Notice::Listening(listener));
                    event!(Info, "metrics", PerProcess; "metrics of this process are at http://{address}/metrics");
                }
                Err(error) => event!(
                    Error, "metrics", PerProcess, cause = error;
                    "option metrics: {wanted} cannot be listened at: {error}. Nothing else is the worse for it. Give each process a port of its own, or have \
                     `replicated metrics --textfile` tell of all of them; the next open of a database tries again"
                ),
            },
        }
    }

    /// The thread that checkpoints ahead of SQLite; `None` where it cannot be had, which is logged.
    fn checkpoints(&self, database: &Database, host: &dyn Host, start_thread: StartThread) -> Option<Due> {
        let obstacle = || -> Result<Due, String> {
            if let Some(obstacle) = host.obstacle_to_checkpoints() {
                return Err(obstacle);
            }
            let mut checkpoints = self.checkpoints.lock();
            if let Some(due) = &*checkpoints {
                return Ok(due.clone());
            }
            let (due, receiver) = crossbeam_channel::unbounded();
            let run = move || {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| ahead::run(&receiver))) {
                    let error = step::panic_text(&*panic);
                    event!(Error, "checkpoint_inline", PerProcess, cause = error; "checkpoints are left to SQLite from here on: a fault in the extension ({error})");
                }
            };
            start_thread(Box::new(run)).map_err(|error| format!("its thread could not be started: {error}"))?;
            Ok(checkpoints.insert(due).clone())
        };
        obstacle()
            .inspect_err(|why| {
                event!(Warn, "checkpoint_inline", database, cause = why; "checkpoint=background: checkpoints are left to SQLite, inside of commits: {why}");
            })
            .ok()
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
            event!(Error, "uploader_ended", PerProcess, cause = error; "the uploader ended: {error}; nothing is replicated any more by this process");
            registry.fail_all(&error);
        }))?;
        Ok(Self {
            hub,
            registry,
            next_id: AtomicU64::new(1),
            http: Arc::default(),
            metrics: Mutex::default(),
            checkpoints: Mutex::default(),
        })
    }
}

/// Opens a database for replication, or joins those who have it open in this process.
pub(crate) fn open(
    path: &Path,
    options: &Options,
    host: &Arc<dyn Host>,
    start_thread: StartThread,
    leases: Each<Option<lease::Taken>>,
) -> Result<Replicas, OpenError> {
    let process = Process::current(start_thread)?;
    let local = |source| OpenError::Local { database: path.display().to_string(), path: path.display().to_string(), source };
    let identity = identity(path).map_err(local)?;
    let urls = Urls::of(path, options)?;
    process.registry.wait_for_failed(identity, &process.hub);
    let mut databases = process.registry.databases.lock();
    agree(&databases, identity, path, &urls)?;
    let_go(&mut databases, path, Some(identity));
    if ![Which::First, Which::Second].iter().any(|which| databases.contains_key(&(identity, *which))) {
        roles::settle(&Paths::of(path), &Paths::second_of(path), &urls);
    }
    let mut open = |which, url: &ReplicaUrl, options: &Options, second: Option<&ReplicaUrl>, taken| {
        let new = New { process, path, identity, which, options, url, second, start_thread };
        new.open(&mut databases, host, taken)
    };
    let (first, first_is_new) = open(Which::First, &urls.first, options, urls.second.as_ref(), leases.first)?;
    let second = match (options.second(), &urls.second) {
        (Some(options), Some(url)) => open(Which::Second, url, &options, None, leases.second.flatten()).map(Some),
        _ => Ok(None),
    };
    drop(databases);
    let tell_of = |database: &Arc<Database>, is_new: bool| {
        if is_new && !process.hub.notify(Notice::Opened(Arc::clone(database))) {
            database.poison("the uploader has ended");
        }
    };
    tell_of(&first, first_is_new);
    match second {
        Ok(second) => {
            if let Some((second, is_new)) = &second {
                tell_of(second, *is_new);
            }
            process.tell_metrics(options);
            fault_point!("open.registered");
            Ok(Replicas { first, second: second.map(|(second, _)| second) })
        }
        Err(error) => {
            // The first one goes as it came.
            close(&Replicas { first, second: None });
            Err(error)
        }
    }
}

/// All connections of a process name the same replicas, while one of them has the database open.
fn agree(databases: &Databases, identity: Identity, path: &Path, urls: &Urls) -> Result<(), OpenError> {
    let open = |which| databases.get(&(identity, which)).filter(|database| database.handles.load(Ordering::Acquire) > 0);
    let Some(_) = open(Which::First) else { return Ok(()) };
    let (before, now) = (open(Which::Second).map(|d| d.store.url()), urls.second.as_ref().map(ReplicaUrl::as_str));
    if before == now {
        return Ok(());
    }
    let or_none = |url: Option<&str>| url.unwrap_or("none").to_owned();
    Err(OpenError::OtherUrl { option: "replica2", database: path.display().to_string(), first: or_none(before), second: or_none(now) })
}

/// A replica of a database that is being opened.
struct New<'a> {
    process: &'static Process,
    path: &'a Path,
    identity: Identity,
    which: Which,
    /// As if it were the only one.
    options: &'a Options,
    url: &'a ReplicaUrl,
    /// The other one, where this is the first of two.
    second: Option<&'a ReplicaUrl>,
    start_thread: StartThread,
}

impl New<'_> {
    fn open(
        &self,
        databases: &mut Databases,
        host: &Arc<dyn Host>,
        taken: Option<lease::Taken>,
    ) -> Result<(Arc<Database>, bool), OpenError> {
        let Self { process, path, identity, which, options, url, .. } = *self;
        if let Some(database) = databases.get(&(identity, which)) {
            // It has the lease, whoever has written it last.
            taken.map(lease::Taken::hand_over);
            if which == Which::First {
                self.agree_with_others(database)?;
            }
            return Ok((join(database, which, url)?, false));
        }
        let url_text = url.to_string();
        if let Some(other) = databases.values().find(|d| d.store.url() == url_text) {
            return Err(OpenError::UrlInUse {
                url: url_text,
                other: other.paths.database.display().to_string(),
                database: path.display().to_string(),
            });
        }
        let store = store::open_sharing(url, &options.store_options(), &Env::process(), &process.http).map_err(|error| match which {
            Which::First => OpenError::Store(error),
            Which::Second => OpenError::SecondStore(error),
        })?;
        let paths = which.paths(path);
        let meter = Arc::<Meter>::default();
        let store = with_lease(Arc::new(MeasuredStore::new(store, Arc::clone(&meter))), options, &paths, taken);
        let opened = self.open_tail(databases, &paths, host.as_ref())?;
        meter.begin(Arc::clone(&opened.shared) as Arc<dyn Counted>);
        let conflict = opened.tail.conflict();
        let id = process.next_id.fetch_add(1, Ordering::Relaxed);
        let mut database = Database::new(id, paths, options.clone(), store, Arc::clone(&process.hub), Arc::clone(host), opened);
        if options.checkpoint_in_background
            && which == Which::First
            && let Some(due) = process.checkpoints(&database, host.as_ref(), self.start_thread)
        {
            database.checkpoints_by(due);
        }
        let database = Arc::new(database);
        database.handles.store(1, Ordering::Release);
        if let Some(message) = conflict {
            // Known from before: nothing is committed until the uploader has looked.
            step::report_stop(&database, StopKind::Fenced, message);
        }
        databases.insert((identity, which), Arc::clone(&database));
        Ok((database, true))
    }

    /// It was closed, and not forgotten yet: it may have had another second replica than now, or none.
    fn agree_with_others(&self, database: &Database) -> Result<(), OpenError> {
        let (told, now) = (&database.shared.second_hash, self.second.map_or(0, |url| replica_hash(url.as_str())));
        if told.load(Ordering::Acquire) != now && !database.is_alone() {
            return Err(OpenError::OtherProcess { database: self.path.display().to_string(), why: OTHER_SECOND });
        }
        told.store(now, Ordering::Release);
        Ok(())
    }

    /// With the number that the other replica has: what both have written is of one host. And with what it was restored from, if that was the other one.
    fn open_tail(&self, databases: &Databases, paths: &Paths, host: &dyn Host) -> Result<OpenedTail, OpenError> {
        const NODE_PATIENCE: Duration = Duration::from_secs(1);
        let Self { identity, options, .. } = *self;
        let other = match self.which {
            Which::First => self.second.is_some().then_some(Which::Second),
            Which::Second => Some(Which::First),
        };
        let other_paths = other.map(|other| other.paths(self.path));
        let node_id = other.and_then(|other| match databases.get(&(identity, other)) {
            Some(database) => Some(database.try_lock_tail_for(NODE_PATIENCE)?.state.node_id),
            None => Some(peek(other_paths.as_ref()?)?).filter(|state| state.identity == Some(identity)).map(|state| state.node_id),
        });
        let second_hash = self.second.map_or(0, |url| replica_hash(url.as_str()));
        let opened = open_tail(paths, identity, &Place { url: self.url.as_str(), second_hash, node_id }, options, host)?;
        Ok(OpenedTail { origin: other_paths.and_then(|paths| origin::find(&paths)), ..opened })
    }
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
fn let_go(databases: &mut Databases, path: &Path, stays: Option<Identity>) {
    let is_gone = |(of, d): &((Identity, Which), &Arc<Database>)| d.paths.database == path && Some(of.0) != stays;
    let gone: Vec<_> = databases.iter().map(|(of, d)| (*of, d)).filter(is_gone).map(|(_, d)| Arc::clone(d)).collect();
    for gone in gone {
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
        let_go(&mut registry.databases.lock(), path, None);
    }
}

/// Whether this process replicates the file that has that name now.
pub(crate) fn has_open(path: &Path) -> bool {
    identity(path).is_ok_and(|identity| replicates(&identity))
}

/// Whether a connection of this process has it open, so that it is not about to be forgotten.
pub(crate) fn has_handles(path: &Path) -> bool {
    let (Ok(identity), Some(registry)) = (identity(path), registry()) else { return false };
    registry.databases.lock().get(&(identity, Which::First)).is_some_and(|database| database.handles.load(Ordering::Acquire) > 0)
}

fn join(database: &Arc<Database>, which: Which, url: &ReplicaUrl) -> Result<Arc<Database>, OpenError> {
    let second = url.to_string();
    if database.store.url() != second {
        let first = database.store.url().to_owned();
        let option = which.option();
        return Err(OpenError::OtherUrl { option, database: database.paths.database.display().to_string(), first, second });
    }
    if database.handles.fetch_add(1, Ordering::AcqRel) == 0 {
        database.reopened();
    }
    Ok(Arc::clone(database))
}

/// Gives a handle back. The last one flushes, for a bounded time.
pub(crate) fn close(replicas: &Replicas) {
    let Some(process) = PROCESSES.get(generation()).and_then(|slot| slot.process.get()) else { return };
    let last = {
        let _registry = process.registry.databases.lock();
        let is_last = |database: &&Arc<Database>| database.handles.fetch_sub(1, Ordering::AcqRel) == 1;
        let databases: Vec<_> = replicas.iter().filter(is_last).collect();
        for database in &databases {
            database.flushing.fetch_add(1, Ordering::AcqRel);
            database.is_about_to_leave();
        }
        // Also where the flush panics: else nobody could ever open the database afresh.
        Flushing { databases, process }
    };
    if last.databases.is_empty() {
        return;
    }
    fault_point!("close.flush");
    let limit = replicas.first.options.close_timeout;
    let deadline = Instant::now() + limit;
    // What another process uploads, and goes on to, need not be waited for.
    let sends =
        |database: &&&Arc<Database>| !limit.is_zero() && (database.is_owner() || database.nobody_else_stays()) && database.is_known();
    // Both are asked before one is waited for.
    let asked: Vec<_> =
        last.databases.iter().filter(sends).filter_map(|database| Some((database, database.ask_at_close().ok()?))).collect();
    for (database, sequence) in asked {
        let rest = deadline.saturating_duration_since(Instant::now());
        if let Err(WaitError::Timeout(_, why)) = database.wait_at_close(sequence, rest) {
            let error = WaitError::Timeout(limit, why);
            let remote = Unless(database.progress.facts().remote_txid);
            event!(
                Warn, "left_behind", database, txid = remote, cause = error;
                "closed with commits that are not in the bucket{} ({error}); {}. They are kept beside the database, and the next open goes on from there",
                database.paths.of_second(), bucket_in_words(remote.0)
            );
        }
    }
    let maintained_by = Instant::now() + limit;
    for database in last.databases.iter().filter(|database| database.is_owner()) {
        // Only where rounds have been left undone by many processes that lived for a moment.
        database.neglect.wait(maintained_by.saturating_duration_since(Instant::now()));
    }
    fault_point!("close.flushed");
}

/// The last handle is being closed.
struct Flushing<'a> {
    databases: Vec<&'a Arc<Database>>,
    process: &'a Process,
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        {
            let _registry = self.process.registry.databases.lock();
            // Opened again meanwhile, or closed by another who is still flushing: then it is theirs.
            self.databases.retain(|database| {
                let is_over = database.flushing.fetch_sub(1, Ordering::AcqRel) == 1 && database.handles.load(Ordering::Acquire) == 0;
                if is_over {
                    database.closing.store(true, Ordering::Release);
                }
                is_over
            });
        }
        for database in &self.databases {
            database.have_forgotten();
        }
        for database in &self.databases {
            database.wait_forgotten();
        }
    }
}

/// Does something that would harm a control file which this process has open: not while it has, nor while it opens it. `None` where it has.
pub(crate) fn unless_open<T>(path: &Path, body: impl FnOnce() -> T) -> Option<T> {
    let databases = registry().map(|registry| registry.databases.lock());
    let is_open = databases.as_ref().is_some_and(|databases| databases.values().any(|database| database.paths.database == path));
    (!is_open).then(body)
}

/// A database that this process has open, by its name.
pub(crate) fn opened_at(path: &Path) -> Option<Replicas> {
    let databases = registry()?.databases.lock();
    let of = |which: Which| databases.iter().find(|((_, is), d)| *is == which && d.paths.database == path).map(|(_, d)| Arc::clone(d));
    Some(Replicas { first: of(Which::First)?, second: of(Which::Second) })
}

/// Whether this process replicates that file.
pub(crate) fn replicates(identity: &Identity) -> bool {
    let is_it = |(of, _): &(Identity, Which)| of == identity;
    registry().is_some_and(|registry| registry.databases.lock().keys().any(is_it))
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
pub(crate) fn find_by_wal(path: &Path) -> Option<Replicas> {
    let name = path.as_os_str().as_encoded_bytes();
    if !name.ends_with(b"-wal") {
        return None;
    }
    let databases = registry()?.databases.lock();
    let (identity, first) =
        databases.iter().find(|((_, which), d)| *which == Which::First && d.paths.wal == path).map(|((i, _), d)| (*i, d))?;
    let second = databases.get(&(identity, Which::Second)).filter(|d| d.paths.wal == path);
    Some(Replicas { first: Arc::clone(first), second: second.cloned() })
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

    /// Where a fault has ended the replication of a database, the open after its last close begins afresh: not before the uploader, which may be busy, has
    /// forgotten it.
    fn wait_for_failed(&self, identity: Identity, hub: &Hub) {
        const PATIENCE: Duration = Duration::from_secs(30);
        let is_failed = |(of, d): &(&(Identity, Which), &Arc<Database>)| {
            of.0 == identity && d.handles.load(Ordering::Acquire) == 0 && d.progress.has_failed()
        };
        let failed: Vec<_> = self.databases.lock().iter().filter(is_failed).map(|(_, d)| Arc::clone(d)).collect();
        for database in failed {
            // An uploader that has ended forgets nothing.
            if hub.notify(Notice::Look(database.id)) {
                database.progress.wait_released(PATIENCE);
            }
        }
    }

    /// Of all databases that are open, in order; `None` while one is being opened or closed, which may take its time.
    pub(crate) fn statuses(&self) -> Option<Vec<Status>> {
        let mut open: Vec<Arc<Database>> = self.databases.try_lock()?.values().map(Arc::clone).collect();
        open.sort_by(|a, b| (&a.paths.database, a.paths.is_second()).cmp(&(&b.paths.database, b.paths.is_second())));
        Some(open.iter().map(|database| database.status_now()).collect())
    }

    fn fail_all(&self, error: &str) {
        for database in self.databases.lock().values() {
            database.poison(&format!("the uploader ended: {error}"));
        }
    }
}
