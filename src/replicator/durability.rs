//! COMMIT that waits for the bucket, as its connection was told to.
//!
//! ```text
//!   local     returns at once
//!   bounded   waits while the oldest commit that is not in the bucket is older than max_lag
//!   remote    waits until the bucket has this commit
//! ```
//!
//! Whoever waits holds no lock of ours and needs none of SQLite's: in rollback-journal modes and under exclusive locking the wait happens with
//! the database locked exclusively, which the uploader does not care about. Those who wait need no token of the request budget and share one
//! upload. Where there are two replicas `wait_for` says whose acknowledgement counts.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::database::Database;
use super::progress::{Committer, WaitError};
use super::replicas::{Each, Replicas};
use crate::config::{Durability, Options, WaitFor};
use crate::logging::repeats::{Repeats, in_words};
use crate::logging::{Unless, event, txid_in_words};

/// What stands for the sequence number of a commit that was not seen as it should have been.
pub(crate) const UNSEEN: u64 = u64::MAX;

/// What the commits of one connection wait for.
#[derive(Debug)]
pub(crate) struct Policy {
    durability: AtomicU8,
    pub(crate) wait_for: WaitFor,
    pub(crate) max_lag: Duration,
    pub(crate) ack_timeout: Duration,
}

impl Policy {
    pub(crate) const fn of(options: &Options) -> Self {
        Self {
            durability: AtomicU8::new(options.durability as u8),
            wait_for: options.wait_for,
            max_lag: options.max_lag,
            ack_timeout: options.ack_timeout,
        }
    }

    pub(crate) fn durability(&self) -> Durability {
        let stored = self.durability.load(Ordering::Relaxed);
        Durability::ALL.into_iter().find(|durability| *durability as u8 == stored).unwrap_or_default()
    }

    pub(crate) fn set(&self, durability: Durability) {
        self.durability.store(durability as u8, Ordering::Relaxed);
    }

    /// Whether a commit may have to wait.
    pub(crate) fn waits(&self) -> bool {
        self.durability() != Durability::Local
    }
}

/// A commit that is made here and not known to be in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAcknowledged;

/// Waits as the connection's policy says, after its commit was published under these sequence numbers; `None` for a transaction that has changed
/// nothing, which has nothing to wait for.
pub(crate) fn after_commit(replicas: &Replicas, policy: &Policy, own: Each<Option<u64>>) -> Result<(), NotAcknowledged> {
    let durability = policy.durability();
    if durability == Durability::Local {
        return Ok(());
    }
    let deadline = Instant::now() + policy.ack_timeout;
    let second = replicas.second.as_ref().filter(|_| policy.wait_for != WaitFor::First);
    // Both are told before one is waited for.
    let first = Waiting::begin(&replicas.first, policy, durability, own.first);
    let second = second.map(|database| Waiting::begin(database, policy, durability, own.second.unwrap_or(Some(UNSEEN))));
    let (began, waits) = (Instant::now(), first.committer.is_some() || second.as_ref().is_some_and(|second| second.committer.is_some()));
    let waited = match second {
        None => first.wait(deadline),
        Some(second) if policy.wait_for == WaitFor::Any => wait_for_any(&first, &second, deadline),
        Some(second) => {
            let waited = first.wait(deadline);
            // What the second one says is told as well.
            second.wait(deadline).and(waited)
        }
    };
    let counters = &replicas.first.shared.counters;
    if waits {
        counters.commit_waits.add(began.elapsed());
    }
    waited.map_err(|()| {
        counters.commits_unacknowledged.fetch_add(1, Ordering::Relaxed);
        NotAcknowledged
    })
}

/// A commit that is waited for in one of the replicas.
struct Waiting<'a> {
    database: &'a Database,
    policy: &'a Policy,
    durability: Durability,
    sequence: u64,
    /// `None` where there is nothing to wait for.
    committer: Option<Committer<'a>>,
}

impl<'a> Waiting<'a> {
    fn begin(database: &'a Database, policy: &'a Policy, durability: Durability, own: Option<u64>) -> Self {
        let mut waiting = Self { database, policy, durability, sequence: own.unwrap_or_default(), committer: None };
        let Some(sequence) = own.filter(|sequence| *sequence != UNSEEN) else { return waiting };
        if durability == Durability::Bounded {
            // Half of the time is left for the request.
            database.send_within(sequence, policy.max_lag / 2);
            if waiting.is_enough(0) {
                return waiting;
            }
        }
        // Counted before the uploader is told, so that it does not take it for a flush that waits for nobody else.
        waiting.committer = Some(database.progress.committer(sequence));
        database.progress.look_again();
        database.hasten(sequence);
        waiting
    }

    fn is_enough(&self, acked: u64) -> bool {
        match self.durability {
            Durability::Bounded => self.database.lag().is_none_or(|lag| lag <= self.policy.max_lag),
            Durability::Local | Durability::Remote => acked >= self.sequence,
        }
    }

    fn wait_until(&self, limit: Duration) -> Result<(), WaitError> {
        match &self.committer {
            _ if self.sequence == UNSEEN => Err(WaitError::Unseen),
            None => Ok(()),
            Some(committer) => committer.wait(limit, &|acked| self.is_enough(acked)),
        }
    }

    /// Until then at the most, and tells where that was in vain.
    fn wait(&self, deadline: Instant) -> Result<(), ()> {
        let limit = deadline.saturating_duration_since(Instant::now()).min(self.policy.ack_timeout);
        self.wait_until(limit).map_err(|error| self.tell(&error))
    }

    fn tell(&self, error: &WaitError) {
        let error = match error {
            // What is left of the time where the other one was waited for before says nothing.
            WaitError::Timeout(_, why) => &WaitError::Timeout(self.policy.ack_timeout, why.clone()),
            error => error,
        };
        self.database.unacknowledged.tell(self.database, self.durability, self.sequence, error);
    }
}

/// Waits for the first of the two that has it. One that has stopped is not waited for.
fn wait_for_any(first: &Waiting<'_>, second: &Waiting<'_>, deadline: Instant) -> Result<(), ()> {
    /// There is no sleeping on two pages at once. A request takes longer.
    const LOOK: Duration = Duration::from_millis(1);
    let mut failed = [None, None];
    loop {
        for (waiting, failed) in [first, second].iter().zip(&mut failed) {
            let is_over = Instant::now() >= deadline;
            if matches!(failed, Some(error) if is_over || !matches!(error, WaitError::Timeout(..))) {
                continue;
            }
            match waiting.wait_until(LOOK) {
                Ok(()) => return Ok(()),
                Err(error) => *failed = Some(error),
            }
        }
        let has_stopped = |error: &Option<WaitError>| !matches!(error, Some(WaitError::Timeout(..)));
        if Instant::now() >= deadline || failed.iter().all(has_stopped) {
            for (waiting, error) in [first, second].iter().zip(&failed) {
                error.iter().for_each(|error| waiting.tell(error));
            }
            return Err(());
        }
    }
}

/// Tells of commits that were not acknowledged, without flooding the log.
#[derive(Debug, Default)]
pub(crate) struct Unacknowledged {
    told: Mutex<Repeats>,
}

impl Unacknowledged {
    fn tell(&self, database: &Database, durability: Durability, sequence: u64, error: &WaitError) {
        let Some(more) = self.told.lock().happens(Instant::now()) else { return };
        let remote = Unless(database.progress.facts().remote_txid);
        let at = txid_in_words(remote.0);
        event!(
            Error, "commit_unacknowledged", database, txid = remote, cause = error;
            "a COMMIT with durability={durability} returned an I/O error: it is committed here and not known to be in the bucket{}, which has {at} \
             ({}{error}){}",
            database.paths.of_second(),
            if sequence == UNSEEN { String::new() } else { format!("commit {sequence} of this process, ") },
            in_words(more)
        );
    }
}
