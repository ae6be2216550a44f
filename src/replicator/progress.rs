//! How far replication is, for those who wait for it and those who ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::control::FullReason;
use super::database::now_ms;
use super::shared::{Page, Shared};
use super::tail::StopKind;
use crate::store::StoreErrorKind;
use crate::types::Txid;

/// One word for the state of a database's replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
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
    const ALL: [Self; 7] = [Self::Idle, Self::Uploading, Self::Offline, Self::Damaged, Self::Diverged, Self::Fenced, Self::Failed];

    /// What the shared page says; what it could not say is nothing yet.
    pub(crate) fn of(word: u64) -> Self {
        Self::ALL.into_iter().find(|state| *state as u64 == word).unwrap_or(Self::Idle)
    }

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

/// What is known, in all processes.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) state: ReplicationState,
    /// Commits up to this one are in the bucket.
    pub(crate) acked_sequence: u64,
    pub(crate) remote_txid: Option<Txid>,
    pub(crate) last_error: Option<String>,
    /// Where the store has said it, what kind it is.
    pub(crate) error_kind: Option<StoreErrorKind>,
    /// When it was met first.
    pub(crate) last_error_ms: Option<i64>,
    pub(crate) last_success_ms: Option<i64>,
    pub(crate) uploads: u64,
    pub(crate) snapshots: u64,
    /// When the last one was sent, and why.
    pub(crate) last_snapshot: Option<(i64, FullReason)>,
    /// Whether the store really refuses to replace objects; `None` before it was asked.
    pub(crate) fencing: Option<bool>,
    /// When the bucket was maintained last by a process that had this database open, this one or another before.
    pub(crate) last_maintenance_ms: Option<i64>,
    /// What the files of the bucket took then.
    pub(crate) bucket_bytes: Option<u64>,
    /// Why it is not, or not as it should be.
    pub(crate) maintenance_error: Option<String>,
    /// The last handle is closed and has left a journal behind: nothing can be sent before the next open rolls that back.
    pub(crate) awaits_open: bool,
    /// The full state that is being sent is to have this TXID, or a later one.
    pub(crate) full_txid: Option<Txid>,
}

impl Facts {
    /// What the page says.
    pub(crate) fn of(page: &Page) -> Self {
        let at = |word: &AtomicU64| Some(word.load(Ordering::Relaxed).cast_signed()).filter(|ms| *ms != 0);
        let reason = || FullReason::from_byte(u8::try_from(page.last_snapshot_reason.load(Ordering::Relaxed)).ok()?);
        let acked_sequence = page.acked_sequence.load(Ordering::Acquire);
        let remote_txid = Txid::new(page.remote_txid.load(Ordering::Acquire));
        // After those: what a bucket of another history has is told once it is known to be another one.
        let state = ReplicationState::of(page.state.load(Ordering::Acquire));
        Self {
            state,
            acked_sequence,
            remote_txid,
            last_error: page.error(),
            last_success_ms: at(&page.last_success_ms),
            uploads: page.uploads.load(Ordering::Relaxed),
            snapshots: page.snapshots.load(Ordering::Relaxed),
            fencing: match page.fencing.load(Ordering::Relaxed) {
                0 => None,
                word => Some(word == STRONG),
            },
            last_maintenance_ms: at(&page.last_maintenance_ms),
            bucket_bytes: page.bucket_bytes.load(Ordering::Relaxed).checked_sub(1),
            maintenance_error: page.maintenance_error(),
            awaits_open: page.awaits_open.load(Ordering::Relaxed) != 0,
            full_txid: Txid::new(page.full_txid.load(Ordering::Acquire)),
            error_kind: page.error_kind.load(Ordering::Relaxed).checked_sub(1).and_then(|at| StoreErrorKind::ALL.get(at as usize).copied()),
            last_error_ms: at(&page.last_error_ms),
            last_snapshot: at(&page.last_snapshot_ms).and_then(|ms| Some((ms, reason()?))),
        }
    }

    /// Why nothing is sent until somebody acts.
    pub(crate) fn stopped(&self) -> Option<ReplicationState> {
        use ReplicationState::{Damaged, Diverged, Failed, Fenced};
        matches!(self.state, Damaged | Diverged | Fenced | Failed).then_some(self.state)
    }

    /// What anybody waits for.
    fn awaited(&self) -> (u64, Option<Txid>, Option<ReplicationState>, bool) {
        (self.acked_sequence, self.remote_txid, self.stopped(), self.awaits_open)
    }

    /// Commits are on their way. Another try of what has failed is not that yet.
    pub(crate) fn under_way(&mut self) {
        if self.last_error.is_none() {
            self.state = ReplicationState::Uploading;
        }
    }
}

/// How often whoever waits looks whether there still is an uploader.
const LOOK: Duration = Duration::from_secs(1);

/// The facts, which all processes share, and those who wait for them to change.
#[derive(Debug)]
pub(crate) struct Progress {
    shared: Arc<Shared>,
    local: Mutex<Local>,
    released: Condvar,
}

/// What is of this process alone.
#[derive(Debug)]
struct Local {
    /// The commits that wait: one for each connection at the most.
    committers: Vec<u64>,
    /// Commits return one after the other, so far apart, and the next one not before that moment.
    spacing: Duration,
    next_return: Option<Instant>,
    /// The uploader has nothing more to do with it.
    released: bool,
    /// A fault has ended the replication of this process's commits.
    failure: Option<String>,
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
        self.progress.wait_for(limit, |facts| is_enough(facts.acked_sequence).then_some(()))?;
        let mut local = self.progress.local.lock();
        let now = Instant::now();
        let turn = local.next_return.map_or(now, |next| next.max(now));
        local.next_return = Some(turn + local.spacing);
        drop(local);
        std::thread::sleep(turn.saturating_duration_since(now));
        Ok(())
    }
}

impl Drop for Committer<'_> {
    fn drop(&mut self) {
        let mut local = self.progress.local.lock();
        if let Some(at) = local.committers.iter().position(|waiting| *waiting == self.sequence) {
            local.committers.swap_remove(at);
        }
    }
}

/// Why a wait ended without success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WaitError {
    /// The time ran out.
    #[error("not in the bucket after {} ms: {}", .0.as_millis(), .1.as_deref().unwrap_or("no request has failed so far"))]
    Timeout(Duration, Option<String>),
    /// Nobody has read the database since a crash left a journal to roll back.
    #[error("the database has not been read since it was opened: run a query first")]
    NotRead,
    /// Replication stands still.
    #[error("replication is {}: {}", .0.as_str(), .1)]
    Stopped(ReplicationState, String),
    /// A commit whose place in the order is not known.
    #[error(
        "the commit was not seen as it should have been, so that nobody knows when the bucket has it: it is committed here, and `PRAGMA replicated_sync` tells when all is there"
    )]
    Unseen,
}

impl Progress {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        let local = Local { committers: Vec::new(), spacing: Duration::ZERO, next_return: None, released: false, failure: None };
        Self { shared, local: Mutex::new(local), released: Condvar::new() }
    }

    pub(crate) fn facts(&self) -> Facts {
        let mut facts = self.shared_facts();
        if self.shared.has_left() {
            facts.state = ReplicationState::Failed;
            facts.last_error.clone_from(&self.local.lock().failure);
        }
        facts
    }

    fn shared_facts(&self) -> Facts {
        Facts::of(&self.shared)
    }

    pub(crate) fn acked_sequence(&self) -> u64 {
        self.shared.acked_sequence.load(Ordering::Acquire)
    }

    /// Changes the facts, and wakes those who wait where it matters to them.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Facts)) {
        let local = self.local.lock();
        if self.shared.has_left() {
            return;
        }
        let (page, before) = (&self.shared, self.shared_facts());
        let mut after = before.clone();
        change(&mut after);
        if after.last_error != before.last_error {
            page.set_error(after.last_error.as_deref());
            after.last_error_ms = after.last_error.as_ref().map(|_| now_ms());
        }
        if after.last_error.is_none() {
            after.error_kind = None;
        }
        if after.maintenance_error != before.maintenance_error {
            page.set_maintenance_error(after.maintenance_error.as_deref());
        }
        let set = |word: &AtomicU64, before: u64, after: u64| {
            if before != after {
                word.store(after, Ordering::Release);
            }
        };
        let txid = |txid: Option<Txid>| txid.map_or(0, Txid::get);
        set(&page.full_txid, txid(before.full_txid), txid(after.full_txid));
        set(&page.remote_txid, txid(before.remote_txid), txid(after.remote_txid));
        set(&page.last_success_ms, ms(before.last_success_ms), ms(after.last_success_ms));
        set(&page.last_maintenance_ms, ms(before.last_maintenance_ms), ms(after.last_maintenance_ms));
        let bytes = |bytes: Option<u64>| bytes.map_or(0, |bytes| bytes.saturating_add(1));
        set(&page.bucket_bytes, bytes(before.bucket_bytes), bytes(after.bucket_bytes));
        set(&page.last_error_ms, ms(before.last_error_ms), ms(after.last_error_ms));
        set(&page.error_kind, kind_word(before.error_kind), kind_word(after.error_kind));
        set(&page.uploads, before.uploads, after.uploads);
        if let Some((at_ms, reason)) = after.last_snapshot.filter(|last| before.last_snapshot != Some(*last)) {
            page.last_snapshot_reason.store(reason as u64, Ordering::Release);
            page.last_snapshot_ms.store(at_ms.cast_unsigned(), Ordering::Release);
            page.counters.full_state(reason as u8);
        }
        set(&page.snapshots, before.snapshots, after.snapshots);
        set(&page.fencing, fencing_word(before.fencing), fencing_word(after.fencing));
        set(&page.awaits_open, u64::from(before.awaits_open), u64::from(after.awaits_open));
        set(&page.acked_sequence, before.acked_sequence, after.acked_sequence);
        set(&page.state, before.state as u64, after.state as u64);
        drop(local);
        if after.awaited() != before.awaited() {
            self.shared.changed();
        }
    }

    /// A fault has ended the replication of this process's commits.
    pub(crate) fn fail(&self, message: String) {
        self.local.lock().failure = Some(message);
        self.shared.leave();
        self.shared.changed();
    }

    /// Whether one has.
    pub(crate) fn has_failed(&self) -> bool {
        self.local.lock().failure.is_some()
    }

    /// Somebody is about to wait: a file that was damaged may have been repaired, and is looked at again before anybody is told that it is not.
    pub(crate) fn look_again(&self) {
        let (damaged, offline) = (ReplicationState::Damaged as u64, ReplicationState::Offline as u64);
        // Where it is not damaged there is nothing to look at.
        let _ = self.shared.state.compare_exchange(damaged, offline, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// How many commits wait for what is not in the bucket yet.
    pub(crate) fn committers_behind(&self) -> usize {
        let acked = self.acked_sequence();
        self.local.lock().committers.iter().filter(|sequence| **sequence > acked).count()
    }

    /// The commits that are about to be released by a request that took so long return one after the other; how many commits wait.
    ///
    /// Threads that all come for SQLite's write lock in the same instant go into its busy handler in step: each time they wake up together, one of
    /// them gets the lock, and the last of sixteen has slept for 180 ms.
    pub(crate) fn release_apart(&self, request: Duration) -> usize {
        const LONGEST: Duration = Duration::from_micros(80);
        /// Of the request's time, for all of them.
        const SHARE: u32 = 8;
        let mut local = self.local.lock();
        let waiting = local.committers.len();
        let among = u32::try_from(waiting).unwrap_or(u32::MAX).max(1);
        local.spacing = if waiting > 1 { LONGEST.min(request / SHARE / among) } else { Duration::ZERO };
        waiting
    }

    /// The uploader has let go.
    pub(crate) fn set_released(&self) {
        self.local.lock().released = true;
        self.released.notify_all();
        // Whoever still waits for the bucket waits in vain.
        self.shared.changed();
    }

    /// Waits until the uploader has let go, at the most that long.
    pub(crate) fn wait_released(&self, limit: Duration) {
        let mut local = self.local.lock();
        // Whether it was released or the time ran out, the caller goes on.
        let _ = self.released.wait_while_for(&mut local, |local| !local.released, limit);
    }

    /// Waits until everything up to a commit is in the bucket.
    pub(crate) fn wait(&self, sequence: u64, limit: Duration) -> Result<Option<Txid>, WaitError> {
        self.wait_for(limit, |facts| (facts.stopped().is_none() && facts.acked_sequence >= sequence).then_some(facts.remote_txid))
    }

    /// Waits until everything up to a commit is in the bucket, or the next open has to come first.
    pub(crate) fn wait_at_close(&self, sequence: u64, limit: Duration) -> Result<(), WaitError> {
        self.wait_for(limit, |facts| (facts.awaits_open || facts.acked_sequence >= sequence).then_some(()))
    }

    /// Waits until the bucket has a TXID; the newest that it has.
    pub(crate) fn wait_txid(&self, txid: Txid, limit: Duration) -> Result<Txid, WaitError> {
        // What a bucket of another history has counts for nothing.
        let ours = |facts: &Facts| facts.state != ReplicationState::Diverged;
        self.wait_for(limit, |facts| facts.remote_txid.filter(|newest| *newest >= txid && ours(facts)))
    }

    /// A COMMIT is about to wait.
    pub(crate) fn committer(&self, sequence: u64) -> Committer<'_> {
        self.local.lock().committers.push(sequence);
        Committer { progress: self, sequence }
    }

    /// Waits until `done` gives something, replication stands still or the time runs out.
    fn wait_for<T>(&self, limit: Duration, done: impl Fn(&Facts) -> Option<T>) -> Result<T, WaitError> {
        let deadline = Instant::now() + limit;
        loop {
            let page = &*self.shared;
            let version = page.version();
            let facts = self.facts();
            if let Some(result) = done(&facts) {
                return Ok(result);
            }
            if let Some(state) = facts.stopped() {
                return Err(WaitError::Stopped(state, facts.last_error.unwrap_or_default()));
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(WaitError::Timeout(limit, facts.last_error));
            }
            page.wait_changed(version, rest.min(LOOK));
        }
    }
}

/// In `Page::fencing`.
const STRONG: u64 = 1;
const WEAK: u64 = 2;

const fn fencing_word(fencing: Option<bool>) -> u64 {
    match fencing {
        None => 0,
        Some(true) => STRONG,
        Some(false) => WEAK,
    }
}

fn kind_word(kind: Option<StoreErrorKind>) -> u64 {
    kind.map_or(0, |kind| kind as u64 + 1)
}

fn ms(at: Option<i64>) -> u64 {
    at.unwrap_or_default().cast_unsigned()
}
