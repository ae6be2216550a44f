//! How far replication is, for those who wait for it and those who ask.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

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
    /// The uploader has nothing more to do with it.
    pub(crate) released: bool,
}

impl Facts {
    /// Commits are on their way. Another try of what has failed is not that yet.
    pub(crate) fn under_way(&mut self) {
        if self.last_error.is_none() {
            self.state = ReplicationState::Uploading;
        }
    }
}

/// The facts and those who wait for them to change.
#[derive(Debug)]
pub(crate) struct Progress {
    facts: Mutex<Facts>,
    changed: Condvar,
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
}

impl Progress {
    pub(crate) const fn new() -> Self {
        Self {
            facts: Mutex::new(Facts {
                state: ReplicationState::Idle,
                acked_sequence: 0,
                remote_txid: None,
                last_error: None,
                last_success_ms: None,
                uploads: 0,
                snapshots: 0,
                fencing: None,
                released: false,
            }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn facts(&self) -> Facts {
        self.facts.lock().clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.lock());
        self.changed.notify_all();
    }

    /// Waits until the uploader has let go, at the most that long.
    pub(crate) fn wait_released(&self, limit: Duration) {
        let mut facts = self.facts.lock();
        // Whether it was released or the time ran out, the caller goes on.
        let _ = self.changed.wait_while_for(&mut facts, |f| !f.released, limit);
    }

    /// Waits until a commit is in the bucket.
    pub(crate) fn wait(&self, sequence: u64, limit: Duration) -> Result<Option<Txid>, WaitError> {
        let deadline = Instant::now() + limit;
        let mut facts = self.facts.lock();
        loop {
            if let ReplicationState::Diverged | ReplicationState::Fenced | ReplicationState::Failed = facts.state {
                return Err(WaitError::Stopped(facts.state, facts.last_error.clone().unwrap_or_default()));
            }
            if facts.acked_sequence >= sequence {
                return Ok(facts.remote_txid);
            }
            if self.changed.wait_until(&mut facts, deadline).timed_out() && facts.acked_sequence < sequence {
                return Err(WaitError::Timeout(limit, facts.last_error.clone()));
            }
        }
    }
}
