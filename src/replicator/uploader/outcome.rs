//! What is told of a step's success or failure, and how long to wait after that.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Task;
use crate::logging::repeats::{More, duration};
use crate::logging::{Unless, bucket_in_words, event};
use crate::replicator::budget::Backoff;
use crate::replicator::clock;
use crate::replicator::outage::{Over, Tell};
use crate::replicator::progress::ReplicationState;
use crate::replicator::step::{Next, StepError, stop};
use crate::replicator::tail::StopKind;
use crate::store::StoreErrorKind;

impl Task {
    pub(super) fn succeeded(&mut self) {
        self.backoff.succeeded();
        let database = &self.database;
        let remote = || database.progress.facts().remote_txid;
        match self.outages.borrow_mut().succeeded(clock::now()) {
            Over::Nothing => {}
            Over::Works { after, failures } => event!(
                Info, "replication_works_again", database, txid = Unless(remote());
                "replication{} works again after {} and {failures} failures; {}",
                database.paths.to_second(), duration(after), bucket_in_words(remote())
            ),
            Over::Flapped { outages, failures, within } => event!(
                Warn, "replication_flaps", database, txid = Unless(remote());
                "the store{} fails and works again in turn: {outages} more times and {failures} failures in {}",
                database.paths.of_second(), duration(within)
            ),
        }
        self.database.progress.update(|f| {
            // What was found may be that it must stop.
            let is_stopped = matches!(f.state, ReplicationState::Diverged | ReplicationState::Fenced | ReplicationState::Failed);
            if !is_stopped && f.last_error.take().is_some() {
                f.state = ReplicationState::Uploading;
            }
        });
    }

    /// Reports a failure, once for each cause of an outage, and says how long to wait.
    pub(super) fn failed(&mut self, error: &StepError) -> Next {
        if self.database.lock_tail_here().has_failed() {
            // A snapshot that a panic has ended, say: that is told already.
            return Next::Again;
        }
        if matches!(error, StepError::Store(e) if e.kind == StoreErrorKind::NoLease) {
            // It ran out since the step began; the next one says so.
            return Next::Again;
        }
        if let StepError::Unreadable(message) = error {
            stop(&self.database, StopKind::Diverged, message.clone());
            return Next::Again;
        }
        self.database.shared.counters.retries.fetch_add(1, Ordering::Relaxed);
        let kind = if let StepError::Store(error) = error { Some(error.kind) } else { None };
        let (transient, retry_after, key) = match error {
            StepError::Store(e) => (e.is_transient(), e.retry_after, format!("{:?} {}", e.kind, e.operation)),
            StepError::Damaged(_) => (false, None, error.to_string()),
            other => (true, None, other.to_string()),
        };
        let database = &self.database;
        let remote = || database.progress.facts().remote_txid;
        match self.outages.borrow_mut().failed(&key, clock::now()) {
            Tell::Nothing => {}
            Tell::Cause if matches!(error, StepError::StartOver(_)) => {
                event!(Info, "full_state_starts_over", database, txid = Unless(remote()), cause = error; "{error}")
            }
            Tell::Cause if matches!(error, StepError::Damaged(_)) => {
                event!(Error, "database_damaged", database, txid = Unless(remote()), cause = error; "{error}")
            }
            Tell::Cause => event!(
                Error, "replication_failed", database, txid = Unless(remote()), cause = error;
                "not replicated{}: {error}. The application goes on, and it is tried again; {}",
                database.paths.to_second(), bucket_in_words(remote())
            ),
            Tell::Still { more: More { times, within }, failures } => event!(
                Warn, "replication_still_fails", database, txid = Unless(remote()), cause = error;
                "still not replicated{}: failed {times} more times in the last {}, {failures} in all; {}. The last cause: {error}",
                database.paths.to_second(), duration(within), bucket_in_words(remote())
            ),
        }
        self.database.progress.update(|f| {
            f.state = if matches!(error, StepError::Damaged(_)) { ReplicationState::Damaged } else { ReplicationState::Offline };
            (f.last_error, f.error_kind) = (Some(error.to_string()), kind);
        });
        if let Some(wait) = retry_after {
            let now = clock::now();
            let mut left_alone = self.left_alone.borrow_mut();
            left_alone.retain(|_, until| *until > now);
            left_alone.insert(self.database.store.url().to_owned(), now + wait.min(Backoff::LONGEST_ASKED));
        }
        self.back_off(transient, retry_after)
    }

    pub(super) fn back_off(&mut self, transient: bool, retry_after: Option<Duration>) -> Next {
        let pause = self.backoff.failed(transient, retry_after, fastrand::f64());
        Next::Backoff(pause, Backoff::while_waited_for(pause, transient, retry_after))
    }
}
