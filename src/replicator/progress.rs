//! How far replication is, for those who wait for it and those who ask.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::tail::StopKind;
use crate::types::Txid;

/// One word for the state of a database's replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplicationState {
    /// Everything committed is in the bucket, or nothing has been committed.
    Idle,
    /// Commits are on their way.
    Uploading,
    /// The store cannot be reached or refuses; it is tried again.
    Offline,
    /// SQLite cannot read the database file; it is looked at again.
    Damaged,
    /// Nothing is sent until the user decides which history is the right one.
    Diverged,
    /// Another writer has written to this bucket path.
    Fenced,
    /// A fault in the extension; the application goes on without replication.
    Failed,
}

impl ReplicationState {
    /// The word.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Uploading => "uploading",
            Self::Offline => "offline",
            Self::Damaged => "damaged",
            Self::Diverged => "diverged",
            Self::Fenced => "fenced",
            Self::Failed => "failed",
        }
    }
}

impl From<StopKind> for ReplicationState {
    fn from(kind: StopKind) -> Self {
        match kind {
            StopKind::Diverged => Self::Diverged,
            StopKind::Fenced => Self::Fenced,
            StopKind::Failed => Self::Failed,
        }
    }
}

/// What is known.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) state: ReplicationState,
    /// Commits of this process up to this one are in the bucket.
    pub(crate) acked_sequence: u64,
    pub(crate) remote_txid: Option<Txid>,
    pub(crate) last_error: Option<String>,
    pub(crate) last_success_ms: Option<i64>,
    pub(crate) uploads: u64,
    pub(crate) snapshots: u64,
    /// Whether the store really refuses to replace objects; `None` before it was asked.
    pub(crate) fencing: Option<bool>,
    /// The last handle is closed and has left a journal behind: nothing can be sent before the next open rolls that back.
    pub(crate) awaits_open: bool,
    /// The uploader has nothing more to do with it.
    pub(crate) released: bool,
}

impl Facts {
    /// Why nothing is sent until somebody acts.
    fn stopped(&self) -> Option<ReplicationState> {
        use ReplicationState::{Damaged, Diverged, Failed, Fenced};
        matches!(self.state, Damaged | Diverged | Fenced | Failed).then_some(self.state)
    }

    /// What anybody waits for.
    fn awaited(&self) -> (u64, Option<Txid>, Option<ReplicationState>, [bool; 2]) {
        (self.acked_sequence, self.remote_txid, self.stopped(), [self.awaits_open, self.released])
    }

    /// Commits are on their way. Another try of what has failed is not that yet.
    pub(crate) fn under_way(&mut self) {
        if self.last_error.is_none() {
            self.state = ReplicationState::Uploading;
        }
    }
}

/// The facts and those who wait for them to change.
///
/// The lock of the facts may be held while the database's `published` is taken, never the other way round.
#[derive(Debug)]
pub(crate) struct Progress {
    shared: Mutex<Shared>,
    changed: Condvar,
}

#[derive(Debug)]
struct Shared {
    facts: Facts,
    /// The commits that wait: one for each connection at the most.
    committers: Vec<u64>,
    /// Commits return one after the other, so far apart, and the next one not before that moment.
    spacing: Duration,
    next_return: Option<Instant>,
}

/// A commit that waits; counted as long as it lives.
#[derive(Debug)]
pub(crate) struct Committer<'a> {
    progress: &'a Progress,
    sequence: u64,
}

impl Committer<'_> {
    /// Waits until enough is in the bucket, by the newest commit that is. What is in the bucket is there, whatever has happened to replication since.
    pub(crate) fn wait(&self, limit: Duration, is_enough: &dyn Fn(u64) -> bool) -> Result<(), WaitError> {
        let mut shared = self.progress.shared.lock();
        self.progress.wait_for(&mut shared, limit, |facts| is_enough(facts.acked_sequence).then_some(()))?;
        let now = Instant::now();
        let turn = shared.next_return.map_or(now, |next| next.max(now));
        shared.next_return = Some(turn + shared.spacing);
        drop(shared);
        std::thread::sleep(turn.saturating_duration_since(now));
        Ok(())
    }
}

impl Drop for Committer<'_> {
    fn drop(&mut self) {
        let mut shared = self.progress.shared.lock();
        if let Some(at) = shared.committers.iter().position(|waiting| *waiting == self.sequence) {
            shared.committers.swap_remove(at);
        }
    }
}

/// Why a wait ended without success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WaitError {
    /// The time ran out.
    #[error("not in the bucket after {} ms{}", .0.as_millis(), .1.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    Timeout(Duration, Option<String>),
    /// Nobody has read the database since a crash left a journal to roll back.
    #[error("the database has not been read since it was opened: run a query first")]
    NotRead,
    /// Replication stands still.
    #[error("replication is {}: {}", .0.as_str(), .1)]
    Stopped(ReplicationState, String),
    /// A commit whose place in the order is not known.
    #[error("the commit was not seen as it should have been")]
    Unseen,
}

impl Progress {
    pub(crate) const fn new() -> Self {
        Self {
            shared: Mutex::new(Shared {
                facts: Facts {
                    state: ReplicationState::Idle,
                    acked_sequence: 0,
                    remote_txid: None,
                    last_error: None,
                    last_success_ms: None,
                    uploads: 0,
                    snapshots: 0,
                    fencing: None,
                    awaits_open: false,
                    released: false,
                },
                committers: Vec::new(),
                spacing: Duration::ZERO,
                next_return: None,
            }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn facts(&self) -> Facts {
        self.shared.lock().facts.clone()
    }

    pub(crate) fn acked_sequence(&self) -> u64 {
        self.shared.lock().facts.acked_sequence
    }

    /// Changes the facts, and wakes those who wait where it matters to them.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Facts)) {
        let mut shared = self.shared.lock();
        let before = shared.facts.awaited();
        change(&mut shared.facts);
        if shared.facts.awaited() != before {
            self.changed.notify_all();
        }
    }

    /// Somebody is about to wait: a file that was damaged may have been repaired, and is looked at again before anybody is told that it is not.
    pub(crate) fn look_again(&self) {
        self.update(|f| {
            if f.state == ReplicationState::Damaged {
                f.state = ReplicationState::Offline;
            }
        });
    }

    /// How many commits wait for what is not in the bucket yet.
    pub(crate) fn committers_behind(&self) -> usize {
        let shared = self.shared.lock();
        shared.committers.iter().filter(|sequence| **sequence > shared.facts.acked_sequence).count()
    }

    /// The commits that are about to be released by a request that took so long return one after the other; how many commits wait.
    ///
    /// Threads that all come for SQLite's write lock in the same instant go into its busy handler in step: each time they wake up together, one of
    /// them gets the lock, and the last of sixteen has slept for 180 ms.
    pub(crate) fn release_apart(&self, request: Duration) -> usize {
        const LONGEST: Duration = Duration::from_micros(250);
        /// Of the request's time, for all of them.
        const SHARE: u32 = 8;
        let mut shared = self.shared.lock();
        let waiting = shared.committers.len();
        let among = u32::try_from(waiting).unwrap_or(u32::MAX).max(1);
        shared.spacing = if waiting > 1 { LONGEST.min(request / SHARE / among) } else { Duration::ZERO };
        waiting
    }

    /// Waits until the uploader has let go, at the most that long.
    pub(crate) fn wait_released(&self, limit: Duration) {
        let mut shared = self.shared.lock();
        // Whether it was released or the time ran out, the caller goes on.
        let _ = self.changed.wait_while_for(&mut shared, |s| !s.facts.released, limit);
    }

    /// Waits until everything up to a commit is in the bucket.
    pub(crate) fn wait(&self, sequence: u64, limit: Duration) -> Result<Option<Txid>, WaitError> {
        let done = |facts: &Facts| (facts.stopped().is_none() && facts.acked_sequence >= sequence).then_some(facts.remote_txid);
        self.wait_for(&mut self.shared.lock(), limit, done)
    }

    /// Waits until everything up to a commit is in the bucket, or the next open has to come first.
    pub(crate) fn wait_at_close(&self, sequence: u64, limit: Duration) -> Result<(), WaitError> {
        let done = |facts: &Facts| (facts.awaits_open || facts.acked_sequence >= sequence).then_some(());
        self.wait_for(&mut self.shared.lock(), limit, done)
    }

    /// Waits until the bucket has a TXID; the newest that it has.
    pub(crate) fn wait_txid(&self, txid: Txid, limit: Duration) -> Result<Txid, WaitError> {
        // What a bucket of another history has counts for nothing.
        let ours = |facts: &Facts| facts.state != ReplicationState::Diverged;
        self.wait_for(&mut self.shared.lock(), limit, |facts| facts.remote_txid.filter(|newest| *newest >= txid && ours(facts)))
    }

    /// A COMMIT is about to wait.
    pub(crate) fn committer(&self, sequence: u64) -> Committer<'_> {
        self.shared.lock().committers.push(sequence);
        Committer { progress: self, sequence }
    }

    /// Waits until `done` gives something, replication stands still or the time runs out.
    fn wait_for<T>(
        &self,
        shared: &mut MutexGuard<'_, Shared>,
        limit: Duration,
        done: impl Fn(&Facts) -> Option<T>,
    ) -> Result<T, WaitError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(result) = done(&shared.facts) {
                return Ok(result);
            }
            if let Some(state) = shared.facts.stopped() {
                return Err(WaitError::Stopped(state, shared.facts.last_error.clone().unwrap_or_default()));
            }
            if Instant::now() >= deadline {
                return Err(WaitError::Timeout(limit, shared.facts.last_error.clone()));
            }
            // Whether it was woken or the time ran out: it looks once more.
            let _ = self.changed.wait_until(shared, deadline);
        }
    }
}
