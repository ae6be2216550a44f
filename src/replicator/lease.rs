//! The lease in the bucket: one host at a time writes to a replica, and hands over to the next.
//!
//! ```text
//!   old                                       lock.json                 new
//!   holds it, renews it every third of TTL -> generation 4, until T
//!                                                            <--------  reads it, waits (nothing of SQLite's is open yet)
//!   last close: flushes, lets it go --------> generation 4, let go
//!                                             generation 5, until T'    takes it, restores, compares, sends
//! ```
//!
//! Each write replaces just what was read before (`If-Match`), so that of two who take it one does. Nothing is sent without it: the `LeasedStore`
//! asks right before each request. The holder stops a margin before its time is over, and others wait a margin longer. That is what clocks of hosts
//! may differ by: a fifth of the TTL. Where they differ by more, conditional creation of each object keeps the histories apart all the same.
//!
//! A lease belongs to a node: a number in a file beside the database, bound to that file. So a process that was killed goes on with its own lease at
//! once when it is started again, on the same disk; a copy of that directory elsewhere is another node.

mod guard;
mod node;
mod open;
mod record;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use parking_lot::Mutex;

pub(crate) use self::guard::LeasedStore;
pub(crate) use self::node::node_of;
pub(crate) use self::open::{Taken, take_at_open};
pub(crate) use self::record::Record;
use super::database::{Database, now_ms};
use super::outage::{Outages, Over, Tell};
use super::progress::ReplicationState;
use super::step::panic_text;
use super::tail::Mode;
use crate::config::Options;
use crate::logging::repeats::{More, duration};
use crate::logging::{PerProcess, event};
use crate::store::{LockVersion, LockWritten, Store, StoreError, StoreErrorKind};
use crate::types::TimestampMs;

/// While a database is being closed its lease is not renewed; it may be opened again before that is done.
const CLOSING_PAUSE: Duration = Duration::from_millis(50);
/// How long a close waits for whoever has the tail.
const TAIL_PATIENCE: Duration = Duration::from_secs(1);
/// What a close waits for when it lets the lease go.
pub(crate) const RELEASE_LIMIT: Duration = Duration::from_secs(3);
/// Others may be faster each time.
const MOST_RACES: u32 = 3;

/// Why the lease could be neither taken nor renewed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("the lease: {0}")]
    Store(#[from] StoreError),
    /// What is there was written by nobody who keeps leases.
    #[error(
        "the lease: lock.json in {url} is no lease: {why}. Nothing is sent while it is there. Look at who has written it; once it is deleted the lease can be taken"
    )]
    Garbage { url: String, why: String },
}

impl LeaseError {
    fn passes(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }

    const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Store(error) => error.retry_after,
            Self::Garbage { .. } => None,
        }
    }
}

/// Whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Theirs(Record),
}

/// A lease that was ours when it was last written.
#[derive(Clone, Debug)]
struct Held {
    version: LockVersion,
    generation: i64,
    expires_ms: i64,
    /// Up to here something may be sent, by a clock that nobody sets.
    until: Instant,
}

/// What is known of the lease.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    held: Option<Held>,
    /// Who else has it.
    other: Option<Record>,
    /// The generation that was ours last, and how often it was taken anew after somebody else may have had it.
    generation: Option<i64>,
    turn: u64,
    /// It had not run out when it was first looked at: a process of this host may have it open.
    is_inherited: bool,
    /// Whether the store ignores conditions; `None` before it was asked.
    is_weak: Option<bool>,
    /// Why it could not be renewed.
    failure: Option<String>,
    /// What was told of it.
    outages: Outages,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Lease {
    /// The store itself, which asks nobody.
    store: Arc<dyn Store>,
    ttl: Duration,
    request_limit: Duration,
    node: u64,
    owner: String,
    standing: Mutex<Standing>,
    /// One request of the lease at a time.
    busy: tokio::sync::Mutex<()>,
    /// Ends the pause of who keeps it.
    look: tokio::sync::Notify,
}

impl Lease {
    pub(crate) fn new(store: Arc<dyn Store>, options: &Options, node: u64, standing: Standing) -> Self {
        Self {
            store,
            ttl: options.lease,
            request_limit: (options.lease / 3).clamp(Duration::from_millis(100), Duration::from_secs(10)).min(options.request_timeout),
            node,
            owner: owner(),
            standing: Mutex::new(standing),
            busy: tokio::sync::Mutex::default(),
            look: tokio::sync::Notify::new(),
        }
    }

    pub(crate) fn url(&self) -> &str {
        self.store.url()
    }

    /// Replication has stopped: whoever waits for the lease need not wait until it runs out.
    pub(crate) fn is_stopped(&self) {
        self.look.notify_one();
    }

    /// Another process of this host has had it until now, and may have written it since this one did.
    pub(crate) fn is_taken_over(&self) {
        self.standing.lock().is_inherited = true;
    }

    /// So much before its end it is no longer used, and so much after it is taken by others.
    fn margin(&self) -> Duration {
        self.ttl / 10
    }

    /// How long something may be sent from now on; `None` where the lease is not ours, or about to run out.
    pub(crate) fn left(&self) -> Option<Duration> {
        let standing = self.standing.lock();
        let held = standing.held.as_ref()?;
        // By two clocks: one that may be set, and one that may stand still while the machine sleeps.
        let by_calendar = u64::try_from(held.expires_ms.saturating_sub(now_ms())).unwrap_or_default();
        let left = held.until.checked_duration_since(Instant::now())?.min(Duration::from_millis(by_calendar).saturating_sub(self.margin()));
        (!left.is_zero()).then_some(left)
    }

    /// Whether something may be sent; and then how often somebody else may have sent something in between.
    pub(crate) fn turn(&self) -> Option<u64> {
        self.left()?;
        Some(self.standing.lock().turn)
    }

    async fn limited<T>(&self, operation: &'static str, request: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let limit = self.request_limit;
        tokio::time::timeout(limit, request).await.unwrap_or_else(|_| {
            Err(StoreError {
                kind: StoreErrorKind::Timeout,
                operation,
                object: format!("lock.json in {}", self.url()),
                cause: format!("no answer within {} ms", limit.as_millis()),
                advice: "Check the network; where it is only slow, a longer lease gives its requests more time",
                retry_after: None,
            })
        })
    }

    /// Writes ours over what was expected; false where there is something else.
    async fn write(&self, generation: i64, expected: Option<&LockVersion>) -> Result<bool, StoreError> {
        // Both from before the request: it counts from the moment that it was asked for.
        let (began, now) = (Instant::now(), now_ms());
        let expires_ms = now.saturating_add(i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX));
        let record = Record { generation, expires_ms, owner: self.owner.clone(), node: Some(self.node) };
        match self.limited("put", self.store.write_lock(record.encode().into(), expected)).await? {
            LockWritten::Changed => Ok(false),
            LockWritten::Written(version) => {
                let until = began + self.ttl.saturating_sub(self.margin());
                self.standing.lock().held = Some(Held { version, generation, expires_ms, until });
                Ok(true)
            }
        }
    }

    fn is_free(&self, record: &Record) -> bool {
        let margin = i64::try_from(self.margin().as_millis()).unwrap_or(i64::MAX);
        record.node == Some(self.node) || record.is_released() || record.expires_ms.saturating_add(margin) < now_ms()
    }

    /// Takes the lease if it is free, or ours from before.
    async fn take(&self) -> Result<Whose, LeaseError> {
        let mut refused: Option<LockVersion> = None;
        for _ in 0..MOST_RACES {
            let found = self.limited("get", self.store.read_lock()).await?;
            let record = found.as_ref().map(|lock| Record::parse(&lock.body)).transpose();
            let record = record.map_err(|why| LeaseError::Garbage { url: self.url().to_owned(), why })?;
            if let Some(record) = record.as_ref().filter(|record| !self.is_free(record)) {
                let mut standing = self.standing.lock();
                (standing.held, standing.other) = (None, Some(record.clone()));
                return Ok(Whose::Theirs(record.clone()));
            }
            let ours = record.as_ref().filter(|record| record.node == Some(self.node));
            if refused.is_some() && refused == found.as_ref().map(|lock| lock.version.clone()) {
                return Err(self.refused(
                    StoreErrorKind::Protocol,
                    "the store refuses to replace it although it is what was expected (If-Match)",
                    "A lease needs that: open the database without the option lease, and make sure yourself that there is one writer",
                ));
            }
            let generation = match (&record, ours) {
                (_, Some(ours)) if !ours.is_released() => ours.generation,
                (Some(record), _) => record.generation.saturating_add(1),
                (None, _) => 1,
            };
            if self.write(generation, found.as_ref().map(|lock| &lock.version)).await? {
                {
                    let mut standing = self.standing.lock();
                    // Nobody has had it since it was ours.
                    let goes_on = ours.is_some_and(|ours| standing.generation == Some(ours.generation));
                    standing.turn += u64::from(!goes_on);
                    standing.is_inherited |= standing.generation.is_none() && ours.is_some_and(|ours| ours.expires_ms > now_ms());
                    (standing.generation, standing.other) = (Some(generation), None);
                }
                self.probe().await;
                return Ok(Whose::Ours);
            }
            refused = found.map(|lock| lock.version);
        }
        Err(self.refused(StoreErrorKind::Server, "others write it at the same time", ""))
    }

    fn refused(&self, kind: StoreErrorKind, cause: &str, advice: &'static str) -> LeaseError {
        let object = format!("lock.json in {}", self.url());
        LeaseError::Store(StoreError { kind, operation: "put", object, cause: cause.to_owned(), advice, retry_after: None })
    }

    /// Finds out, once, whether the store honours conditions: ours is written over, by the same, under a condition that does not hold.
    async fn probe(&self) {
        let (known, held) = {
            let standing = self.standing.lock();
            (standing.is_weak, standing.held.clone())
        };
        let (None, Some(held)) = (known, held) else { return };
        let record = Record { generation: held.generation, expires_ms: held.expires_ms, owner: self.owner.clone(), node: Some(self.node) };
        match self.limited("put", self.store.write_lock(record.encode().into(), Some(&LockVersion::of_nothing()))).await {
            Ok(LockWritten::Changed) => self.standing.lock().is_weak = Some(false),
            Ok(LockWritten::Written(version)) => {
                {
                    let mut standing = self.standing.lock();
                    standing.is_weak = Some(true);
                    if let Some(held) = &mut standing.held {
                        held.version = version;
                    }
                }
                event!(
                    Warn, "store_is_weak", PerProcess;
                    "the lease: {} replaces objects even when asked not to: two hosts that take the lease in the same moment both get it. Make sure \
                     that they do not start at once",
                    self.url()
                );
            }
            // Then it is asked with the next one that is taken.
            Err(error) => event!(Debug, "lease_failed", PerProcess, cause = error; "the lease: {error}"),
        }
    }

    /// Renews it, or takes it where it is not ours or was replaced.
    async fn renew_or_take(&self) -> Result<Whose, LeaseError> {
        let (held, is_weak) = {
            let standing = self.standing.lock();
            (standing.held.clone(), standing.is_weak == Some(true))
        };
        // Where conditions are ignored only a look tells that it is still ours.
        if let Some(held) = held.filter(|_| !is_weak)
            && self.write(held.generation, Some(&held.version)).await?
        {
            // Whether or not it had run out: nobody has taken it.
            return Ok(Whose::Ours);
        }
        // By a request of ours whose answer was lost, perhaps.
        self.take().await
    }

    /// Lets it go, if it is ours: as one that is over, which needs no permission to delete, and whose deletion no store could get wrong.
    ///
    /// Who has the control file's lock may do so for all of the host: another process of it that has written the lease since was told that it cannot open
    /// the database. Others only what they have written themselves.
    async fn release(&self, of_host: bool) -> Result<bool, StoreError> {
        let _one = self.busy.lock().await;
        let (held, is_weak) = {
            let mut standing = self.standing.lock();
            (standing.held.take(), standing.is_weak == Some(true))
        };
        let Some(held) = held else { return Ok(false) };
        let record = Record { generation: held.generation, expires_ms: 0, owner: self.owner.clone(), node: Some(self.node) }.released();
        let write = async |version: &LockVersion| {
            let written = self.limited("put", self.store.write_lock(record.encode().into(), Some(version))).await;
            written.map(|written| matches!(written, LockWritten::Written(_)))
        };
        if !is_weak && write(&held.version).await? {
            return Ok(true);
        }
        // It may also have been this very process, by a request whose answer was lost.
        let Some(lock) = self.limited("get", self.store.read_lock()).await? else { return Ok(false) };
        let is_ours = Record::parse(&lock.body).is_ok_and(|found| found.node == Some(self.node) && (of_host || found.owner == self.owner));
        if is_ours { write(&lock.version).await } else { Ok(false) }
    }

    /// Renews the lease, or takes it again; tells those who want to know. Returns how long to wait before the next time.
    async fn tend(&self, database: &Database) -> Duration {
        let third = self.ttl / 3;
        database.tail_comes_free().await;
        if matches!(database.lock_tail().mode, Mode::Stopped(..)) {
            // Nothing will be sent by this one: somebody else may be waiting for it.
            self.let_go(database, "nothing is sent any more").await;
            return third;
        }
        let _one = self.busy.lock().await;
        if database.closing.load(Ordering::Acquire) {
            return CLOSING_PAUSE;
        }
        let was_ours = self.left().is_some();
        let taken = self.renew_or_take().await;
        let (cause, text, pause) = match taken {
            Ok(Whose::Ours) => {
                {
                    let mut standing = self.standing.lock();
                    (standing.failure, standing.other) = (None, None);
                }
                self.tell_of_success(database, was_ours);
                if !was_ours {
                    self.is_ours_again(database);
                }
                return third;
            }
            Ok(Whose::Theirs(record)) => {
                let free_in = record.expires_ms.saturating_sub(now_ms()).try_into().map_or(Duration::ZERO, Duration::from_millis);
                let free_in = free_in + self.margin() + Duration::from_millis(1);
                self.standing.lock().failure = None;
                // Whose it is, without the time that each renewal moves on.
                let cause = format!("{} {:?} {}", record.owner, record.node, record.generation);
                (cause, self.message(&record), free_in.min(third).max(Duration::from_millis(20)))
            }
            Err(error) => {
                let pause = if self.left().is_some() { (self.ttl / 10).max(Duration::from_millis(20)) } else { third };
                self.standing.lock().failure = Some(error.to_string());
                (error.to_string(), error.to_string(), error.retry_after().unwrap_or(pause))
            }
        };
        self.report(database);
        let (tell, level) = {
            let mut standing = self.standing.lock();
            (standing.outages.failed(&cause, Instant::now()), if standing.other.is_some() { log::Level::Error } else { log::Level::Warn })
        };
        match tell {
            Tell::Nothing => {}
            Tell::Cause => event!(level, "lease_failed", database, cause = text; "{text}"),
            Tell::Still { more: More { times, within }, failures } => event!(
                level, "lease_still_fails", database, cause = text;
                "the lease could still not be had: tried {times} more times in the last {}, {failures} in all. The last answer: {text}",
                duration(within)
            ),
        }
        pause
    }

    fn message(&self, record: &Record) -> String {
        format!(
            "the lease on {} is not ours: {}, and this one is node {:016x}. Nothing is sent. What is committed here is sent once the lease is ours again, if the \
             other has written nothing; else the two are different histories. Stop one of the two; to go on with the other's history move this file and what \
             is beside it away and restore",
            self.url(),
            record.describe(),
            self.node
        )
    }

    /// Puts into the status why nothing is sent.
    pub(crate) fn report(&self, database: &Database) {
        if self.left().is_some() {
            return;
        }
        let (other, failure) = {
            let standing = self.standing.lock();
            (standing.other.clone(), standing.failure.clone())
        };
        if other.is_some() && database.options.readonly_on_conflict {
            database.shared.refuses_writes.store(1, Ordering::Release);
        }
        database.progress.update(|f| match (&other, failure) {
            (Some(record), _) => {
                (f.state, f.last_error, f.error_kind) =
                    (ReplicationState::Fenced, Some(self.message(record)), Some(StoreErrorKind::NoLease));
            }
            (None, Some(failure)) => {
                (f.state, f.last_error, f.error_kind) = (ReplicationState::Offline, Some(failure), Some(StoreErrorKind::NoLease));
            }
            (None, None) => {}
        });
    }

    fn tell_of_success(&self, database: &Database, was_ours: bool) {
        let over = self.standing.lock().outages.succeeded(Instant::now());
        match over {
            Over::Nothing => {}
            Over::Works { after, failures } => {
                let (is_so, after) = (if was_ours { "is renewed" } else { "is ours" }, duration(after));
                event!(Info, "lease_works_again", database; "the lease {is_so} again after {after} and {failures} tries in vain");
            }
            Over::Flapped { outages, failures, within } => event!(
                Warn, "lease_flaps", database;
                "the lease can be renewed and cannot in turn: {outages} more times and {failures} failures in {}", duration(within)
            ),
        }
    }

    fn is_ours_again(&self, database: &Database) {
        if matches!(database.lock_tail().mode, Mode::Stopped(..)) {
            // That is for other reasons, and the next look lets the lease go.
            return self.is_stopped();
        }
        database.shared.refuses_writes.store(0, Ordering::Release);
        database.progress.update(|f| {
            if matches!(f.state, ReplicationState::Fenced | ReplicationState::Offline) {
                (f.state, f.last_error) = (ReplicationState::Uploading, None);
            }
        });
        database.look_at_once();
    }

    /// Lets it go, and says so.
    async fn let_go(&self, database: &Database, why: &str) {
        match tokio::time::timeout(RELEASE_LIMIT, self.release(true)).await {
            Ok(Ok(true)) => event!(Info, "lease_released", database, cause = why; "the lease is let go: {why}"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                event!(Warn, "lease_failed", database, cause = error; "the lease could not be let go, and others wait until it runs out: {error}")
            }
            Err(_) => event!(Warn, "lease_failed", database; "the lease could not be let go in time, and others wait until it runs out"),
        }
    }

    /// Names and values for people.
    pub(crate) fn rows(&self) -> [(&'static str, String); 3] {
        let is_ours = self.left().is_some();
        let standing = self.standing.lock();
        let (state, holder, expires_ms) = match (&standing.held, &standing.other) {
            (Some(held), _) => {
                let state = if !is_ours {
                    "run out"
                } else if standing.is_weak == Some(true) {
                    "ours (weak: the store ignores conditions)"
                } else {
                    "ours"
                };
                (state, self.owner.as_str(), Some(held.expires_ms))
            }
            (None, Some(other)) => ("another's", other.owner.as_str(), Some(other.expires_ms)),
            (None, None) => ("none", "-", None),
        };
        let expires = expires_ms.map_or_else(|| "-".to_owned(), |ms| TimestampMs(ms).to_string());
        [("lease", state.to_owned()), ("lease_holder", holder.to_owned()), ("lease_expires", expires)]
    }
}

/// Status rows of a database without the option.
pub(crate) fn no_rows() -> [(&'static str, String); 3] {
    ["lease", "lease_holder", "lease_expires"].map(|name| (name, if name == "lease" { "off" } else { "-" }.to_owned()))
}

/// `<host name>:<process id>`, as Litestream names itself.
fn owner() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{name}:{}", std::process::id())
}

/// Keeps a database's lease until it is dropped.
pub(crate) async fn keep(database: Arc<Database>) {
    let tending = async {
        let Some(lease) = &database.lease else { return };
        // One that another process of this host had may have been let go by it since.
        let is_inherited = lease.standing.lock().is_inherited;
        if let Some(left) = lease.left().filter(|_| !is_inherited) {
            // Renewed just before it was handed over.
            let pause = left.saturating_sub(lease.ttl.saturating_sub(lease.margin() + lease.ttl / 3));
            // As below.
            let _ = tokio::time::timeout(pause, lease.look.notified()).await;
        }
        loop {
            let pause = lease.tend(&database).await;
            // Over or not, it looks.
            let _ = tokio::time::timeout(pause, lease.look.notified()).await;
        }
    };
    if let Err(panic) = std::panic::AssertUnwindSafe(tending).catch_unwind().await {
        // It runs out, and nothing is sent.
        database.poison(&panic_text(&*panic));
    }
}

/// The last handle is closed and was flushed: others need not wait until the lease runs out. Where something was not sent it stays ours until then, so that
/// this host can go on with it.
pub(crate) async fn release_at_close(database: &Database) {
    let Some(lease) = &database.lease else { return };
    // Another process of this host goes on with it. Who is about to leave, too, does not: see `guest::serve`.
    let is_needed = database.handles.load(Ordering::Acquire) > 0 || !database.is_owner() || !database.nobody_else_stays();
    if is_needed || lease.standing.lock().held.is_none() {
        return;
    }
    let keeps = {
        let Some(tail) = database.try_lock_tail_for(TAIL_PATIENCE) else { return };
        let is_stopped = matches!(tail.mode, Mode::Stopped(..));
        !is_stopped && !if database.is_known() { database.is_settled(&tail) } else { is_clean(database, &tail.state) }
    };
    if keeps && !database.is_alone() {
        // By who has committed it, and waits for that before it leaves.
        return;
    }
    if keeps {
        event!(Warn, "lease_kept", database; "the lease is not let go, as something was not sent; it runs out by itself");
        return;
    }
    lease.let_go(database, "the database is closed").await;
}

/// Opened and closed without being read: whether there can be anything to send.
fn is_clean(database: &Database, state: &super::control::State) -> bool {
    let has_wal = std::fs::metadata(&database.paths.wal).is_ok_and(|wal| wal.len() > 0);
    !has_wal && state.attempt.is_none() && state.full.is_none() && state.acked.is_some() && state.spool_first == state.spool_next
}
