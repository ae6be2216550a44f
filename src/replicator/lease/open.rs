//! Waiting for the lease before a database is opened: before it is restored, compared or sent, and before SQLite has locked anything.
//!
//! On a thread of its own, which goes on renewing what it has taken until the database is open, however long a restore takes, and lets it go where the
//! open fails.

use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::node::NodeFile;
use super::record::Record;
use super::{Lease, LeaseError, Standing, Whose};
use crate::config::Options;
use crate::logging::{event, repeated_event};
use crate::replicator::local::{Paths, room_or_right};
use crate::replicator::process::{self, StartThread};
use crate::replicator::replicas::Each;
use crate::replicator::roles::Which;
use crate::store::{self, ReplicaUrl, StoreError, UrlError};

/// How often a lease of somebody else's is looked at: one that is let go is taken soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What taking a free lease takes.
const NOT_LONG: Duration = Duration::from_secs(2);

/// Why a database is not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseOpenError {
    #[error("option replica: {0}")]
    Url(#[from] UrlError),
    #[error("option replica: {0}")]
    Store(#[from] StoreError),
    #[error("option lease: {path}: {source}. {}", room_or_right(.source))]
    Local {
        path: String,
        #[source]
        source: io::Error,
    },
    /// Somebody else has it, and does not let go.
    #[error(
        "option lease: the lease on {url} is not free: {holder}, and that was waited for {} s (lease_wait). Stop that process: it lets the lease go when it \
         closes the database. Of one that is gone the lease runs out by itself: then wait longer. If its clock is wrong, delete lock.json",
        .waited.as_secs_f64()
    )]
    Held { url: String, holder: String, waited: Duration },
    #[error(
        "option lease: another thread or process of this host waits for the lease on {url}, and that was waited for {} s (lease_wait). Open it again when that one has \
         come to an end: its own error says who has the lease",
        .waited.as_secs_f64()
    )]
    Busy { url: String, waited: Duration },
    #[error("option lease: the database is not opened without the lease: {0}")]
    Lease(#[from] LeaseError),
    #[error(
        "option lease: no thread could be started: {0}. Raise the limit on threads (RLIMIT_NPROC, pids.max) or allow them, and open again"
    )]
    Thread(io::Error),
    #[error("option lease: a fault in the extension: please report it with the log. The next open tries again")]
    Fault,
    #[error("replica2: {0}")]
    Second(#[source] Box<Self>),
}

/// The lease, taken and renewed until it is handed over. Let go where it is dropped instead.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) node: u64,
    over: oneshot::Sender<mpsc::SyncSender<Standing>>,
}

impl Taken {
    /// What is known of it, for who renews it from now on.
    pub(crate) fn hand_over(self) -> Standing {
        let (to, from) = mpsc::sync_channel(1);
        // Where the thread is gone, nothing is known: it is asked for again.
        let _ = self.over.send(to);
        from.recv().unwrap_or_default()
    }
}

/// Waits until the lease of each replica is ours, where the option asks for one and this process does not have the database open already.
///
/// In this order: of two hosts that open it at once one waits for the other, and not each for one of the two. The second one's store may be away, or that would be
/// one more that an open cannot do without: then its lease is taken when it is back, and nothing is sent there before.
pub(crate) fn take_at_open(path: &Path, options: &Options, start_thread: StartThread) -> Result<Each<Option<Taken>>, LeaseOpenError> {
    if options.lease.is_zero() || process::has_handles(path) {
        return Ok(Each::default());
    }
    let first = take(path, Which::First, options.clone(), start_thread)?;
    let Some(second) = options.second() else { return Ok(Each { first: Some(first), second: None }) };
    let second = match take(path, Which::Second, second, start_thread) {
        Ok(taken) => Some(taken),
        Err(LeaseOpenError::Lease(error)) if error.passes() => {
            event!(Warn, "lease_failed", Paths::second_of(path), cause = error; "opened without the lease of replica2, which is taken later: {error}");
            None
        }
        Err(error) => return Err(LeaseOpenError::Second(Box::new(error))),
    };
    Ok(Each { first: Some(first), second: Some(second) })
}

fn take(path: &Path, which: Which, options: Options, start_thread: StartThread) -> Result<Taken, LeaseOpenError> {
    let url = ReplicaUrl::parse(&options.replica_for(path).unwrap_or_default())?;
    let paths = which.paths(path);
    let (to, from) = mpsc::sync_channel(1);
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(wait_and_keep(&paths, &url, &options, &to)),
            // Nobody listens any more where the caller is gone.
            Err(error) => drop(to.send(Err(LeaseOpenError::Thread(error)))),
        }
    };
    start_thread(Box::new(body)).map_err(LeaseOpenError::Thread)?;
    from.recv().unwrap_or(Err(LeaseOpenError::Fault))
}

type Answer = mpsc::SyncSender<Result<Taken, LeaseOpenError>>;

async fn wait_and_keep(paths: &Paths, url: &ReplicaUrl, options: &Options, answer: &Answer) {
    let lease = match wait(paths, url, options).await {
        Ok(lease) => lease,
        Err(error) => {
            // As above.
            let _ = answer.send(Err(error));
            return;
        }
    };
    let (over, mut handed_over) = oneshot::channel();
    // Where nobody listens, `over` is dropped and the lease let go.
    let _ = answer.send(Ok(Taken { node: lease.node, over }));
    loop {
        let renewed = async {
            tokio::time::sleep(lease.ttl / 3).await;
            lease.renew_or_take().await
        };
        // A renewal that is broken off here is found by the next one.
        let to = tokio::select! {
            to = &mut handed_over => to,
            renewed = renewed => {
                if let Err(error) = renewed {
                    repeated_event!(Warn, "lease_failed", paths, cause = error; "the lease{} could not be renewed: {error}", paths.of_second());
                }
                continue;
            }
        };
        let Ok(to) = to else { return let_go(&lease, paths).await };
        // Where nobody listens it runs out.
        let _ = to.send(lease.standing.lock().clone());
        return;
    }
}

/// The database is not opened after all.
async fn let_go(lease: &Lease, paths: &Paths) {
    if lease.standing.lock().is_inherited {
        event!(Info, "lease_released", paths; "is not opened; another process of this host may have the lease, and it is left to run out");
        return;
    }
    match lease.release(false).await {
        Ok(_) => event!(Info, "lease_released", paths; "is not opened, and the lease is let go"),
        Err(error) => event!(Warn, "lease_failed", paths, cause = error; "is not opened, and the lease could not be let go: {error}"),
    }
}

async fn wait(paths: &Paths, url: &ReplicaUrl, options: &Options) -> Result<Lease, LeaseOpenError> {
    let (began, limit) = (Instant::now(), options.lease_wait);
    let pause = (options.lease / 5).clamp(Duration::from_millis(20), LONGEST_PAUSE);
    let local = |source| LeaseOpenError::Local { path: paths.directory.join("lease").display().to_string(), source };
    let file = loop {
        if let Some(file) = NodeFile::try_lock(paths).map_err(local)? {
            break file;
        }
        // Who has it may be about to have the lease.
        let limit = limit.max(NOT_LONG);
        if began.elapsed() >= limit {
            return Err(LeaseOpenError::Busy { url: url.to_string(), waited: limit });
        }
        tokio::time::sleep(pause).await;
    };
    let node = file.node().map_err(local)?;
    let store = store::open(url, &options.store_options())?;
    let lease = Lease::new(Arc::clone(&store), options, node, Standing::default());
    let mut waits_for: Option<Record> = None;
    loop {
        let found = lease.take().await;
        let is_over = began.elapsed() >= limit;
        let mut next = pause;
        match found {
            Ok(Whose::Ours) => {
                if waits_for.is_some() {
                    event!(Info, "lease_taken", paths; "the lease on {url} is ours now");
                }
                return Ok(lease);
            }
            Ok(Whose::Theirs(record)) if is_over => {
                return Err(LeaseOpenError::Held { url: url.to_string(), holder: record.describe(), waited: limit });
            }
            Ok(Whose::Theirs(record)) => {
                if waits_for.as_ref().is_none_or(|before| (before.generation, &before.owner) != (record.generation, &record.owner)) {
                    event!(Info, "lease_waits", paths, cause = record.describe(); "waits for the lease on {url}: {}", record.describe());
                }
                waits_for = Some(record);
            }
            Err(error) if is_over || !error.passes() || paths.is_second() && began.elapsed() >= limit.min(NOT_LONG) => {
                return Err(error.into());
            }
            Err(error) => {
                // Whoever looks why a program does not start finds it here.
                repeated_event!(
                    Warn, "lease_failed", paths, cause = error;
                    "the open waits for up to {} s, since the lease on {url} could not be asked for: {error}", limit.as_secs()
                );
                next = error.retry_after().unwrap_or(pause);
            }
        }
        // A last look when the time is over.
        tokio::time::sleep(next.min(limit.saturating_sub(began.elapsed()))).await;
    }
}
