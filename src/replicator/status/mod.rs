//! What is told of a database, made of what the page says that its processes share, and of its tail.
//!
//! `inside` asks the database that this process has open; `outside` looks at what is beside a database, for whoever has it not open.

mod inside;
mod outside;

use std::path::Path;
use std::time::Duration;

pub use self::outside::{LookError, look};
use super::control::{FullReason, State as Saved};
use super::database::now_ms;
use super::local::Paths;
use super::progress::{Facts, ReplicationState};
use super::tail::Mode;
use crate::config::Durability;
use crate::metrics::Counts;
use crate::spool::Waits;
use crate::status::{Known, Row, Signs, Status, Uploader, Verification, advice};
use crate::store::StoreErrorKind;
use crate::types::{PageSize, TimestampMs, Txid};

/// Where the tail is.
#[derive(Clone, Copy, Debug, Default)]
struct Local {
    /// What the bucket has acknowledged, or the user has declared the file the truth over; 0 for nothing.
    acked: u64,
    /// The full state is due, or on its way.
    full: Option<FullReason>,
    /// Replication has stopped: what is committed is neither captured nor sent.
    is_stopped: bool,
    /// The file is known to be what was acknowledged and what waits; else it may be another, or is about to be sent in full.
    is_proven: bool,
    /// Its moment is known: commits after that go into a batch of their own.
    is_full_read: bool,
    /// It was begun at an earlier moment already, and may be in the bucket as of that.
    was_full_begun: bool,
    /// It will have this TXID at the least; 0 where that is not known.
    full_txid: u64,
    /// The batch that was sent, or may have been.
    batch_bytes: Option<u64>,
    spool: Waits,
    /// What is in the WAL only.
    frames: u64,
}

impl Local {
    fn new(saved: &Saved, mode: &Mode, facts: &Facts, batch_bytes: Option<u64>, spool: Waits, frames: u64) -> Self {
        let is_fenced = saved.conflict.is_some_and(|conflict| saved.adopt.is_none_or(|adopt| adopt < conflict.txid));
        Self {
            is_stopped: is_fenced || matches!(mode, Mode::Stopped(..)),
            acked: saved.acked.map_or(0, |acked| acked.txid.get()).max(saved.adopt.map_or(0, Txid::get)),
            full: if let Mode::Full(reason) = mode { Some(*reason) } else { None },
            is_proven: matches!(mode, Mode::Running) && saved.adopt.is_none(),
            is_full_read: saved.captured.is_some(),
            was_full_begun: saved.full == Some(FullReason::Unfinished) || facts.full_txid.is_some(),
            full_txid: facts.full_txid.map_or(0, Txid::get),
            batch_bytes,
            spool,
            frames,
        }
    }

    /// The TXID with which the bucket has everything that is committed so far, if no full state comes between and nothing fails for good; `None` where it is
    /// not known yet how far the bucket goes.
    fn txid_of_all(&self, remote: u64) -> Option<Txid> {
        if self.acked == 0 && remote == 0 && self.full != Some(FullReason::First) {
            return None;
        }
        if self.full.is_some() && !self.is_full_read && self.was_full_begun {
            // Whether the next one takes the same TXID shows when the bucket is asked again.
            return None;
        }
        // Newer than what the bucket is known to have where an acknowledgement came between. An empty bucket begins with the snapshot 1-2.
        let of_full = if self.full.is_some() { self.full_txid.saturating_sub(1) } else { 0 };
        let newest = self.acked.max(remote).max(of_full).max(1);
        let has_batch = self.batch_bytes.is_some();
        // One that was frozen before the full state became due goes before it, whatever it contains.
        let (is_under_way, goes_before) = if self.full.is_some() { (self.is_full_read, has_batch) } else { (has_batch, false) };
        let has_more = self.spool.files > 0 || self.frames > 0;
        if self.full.is_none() && !self.is_stopped && !has_batch && !has_more && self.acked > 0 {
            // All of it has been acknowledged, which the count of commits has not heard of yet.
            return Txid::new(newest).filter(|_| self.is_proven);
        }
        Txid::new(newest + 1 + u64::from(goes_before) + u64::from(is_under_way && has_more))
    }

    /// What waits, in bytes.
    fn bytes(&self, page_size: Option<PageSize>, paths: &Paths) -> u64 {
        if self.full.is_some() {
            return size(&paths.database);
        }
        let frames_bytes = self.frames.saturating_mul(page_size.map_or(0, |size| u64::from(size.get())));
        frames_bytes.saturating_add(self.spool.bytes).saturating_add(self.batch_bytes.unwrap_or(0))
    }
}

/// Everything that a status is made of.
struct Parts<'a> {
    paths: &'a Paths,
    facts: Facts,
    counts: Counts,
    local: Local,
    local_txid: Option<Txid>,
    remote_txid: Option<Txid>,
    uploader: Uploader,
    waiting_commits: u64,
    /// How long the oldest of them has waited, where that is known.
    lag: Option<Duration>,
    page_size: Option<PageSize>,
    is_unproved: bool,
    durability: Durability,
    max_lag: Duration,
    max_local_bytes: Option<u64>,
    replica: Option<String>,
    verification: Verification,
    more: Vec<Row>,
}

impl Parts<'_> {
    fn status(self) -> Status {
        let Self { paths, facts, local, .. } = self;
        let waits = self.waiting_commits > 0;
        let lag = self.lag.filter(|_| waits).unwrap_or_default();
        let signs = Signs {
            known: known(&facts),
            error_kind: facts.error_kind.map(StoreErrorKind::as_str),
            waits,
            is_full_due: local.full.is_some(),
            is_unproved: self.is_unproved,
            lags: lag > self.max_lag,
            uploader: self.uploader,
        };
        let (state, reason) = signs.state();
        let lag_ms = i64::try_from(lag.as_millis()).unwrap_or(i64::MAX);
        Status {
            database: paths.database.clone(),
            number: if paths.is_second() { 2 } else { 1 },
            state,
            reason,
            uploader: self.uploader,
            local_txid: self.local_txid,
            remote_txid: self.remote_txid,
            waiting_commits: self.waiting_commits,
            waiting_bytes: if waits { local.bytes(self.page_size, paths) } else { 0 },
            waiting_since: (waits && self.lag.is_some()).then(|| TimestampMs(now_ms().saturating_sub(lag_ms))),
            lag,
            durability: self.durability,
            max_lag: self.max_lag,
            last_success: facts.last_success_ms.map(TimestampMs),
            advice: advice::of(state, reason).filter(|_| facts.last_error.is_none() || self.uploader == Uploader::NotOpen),
            last_error: facts.last_error,
            last_error_time: facts.last_error_ms.map(TimestampMs),
            uploads: facts.uploads,
            snapshots: facts.snapshots,
            last_snapshot: facts.last_snapshot.map(|(ms, _)| TimestampMs(ms)),
            last_snapshot_reason: facts.last_snapshot.map(|(_, reason)| reason.as_str()),
            counts: self.counts,
            wal_bytes: size(&paths.wal),
            spool_bytes: local.spool.bytes,
            spool_files: local.spool.files,
            max_local_bytes: self.max_local_bytes,
            strong_fencing: facts.fencing,
            last_maintenance: facts.last_maintenance_ms.map(TimestampMs),
            maintenance_error: facts.maintenance_error,
            bucket_bytes: facts.bucket_bytes,
            replica: self.replica,
            verification: self.verification,
            more: self.more,
        }
    }
}

fn known(facts: &Facts) -> Known {
    match facts.state {
        ReplicationState::Idle | ReplicationState::Uploading => Known::Working,
        ReplicationState::Offline => Known::Offline,
        ReplicationState::Damaged => Known::Damaged,
        ReplicationState::Diverged => Known::Diverged,
        ReplicationState::Fenced if facts.error_kind == Some(StoreErrorKind::NoLease) => Known::Leased,
        ReplicationState::Fenced => Known::Fenced,
        ReplicationState::Failed => Known::Fault,
    }
}

/// Only `stat`: the database must not be opened and closed.
fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicator::shared::Page;

    fn local(mode: &Mode, adopt: Option<Txid>) -> Local {
        let saved = Saved { adopt, ..Saved::default() };
        Local { acked: 7, ..Local::new(&saved, mode, &Facts::of(&Page::default()), None, Waits::default(), 0) }
    }

    #[test]
    fn what_is_not_proved_yet_is_not_said_to_be_in_the_bucket() {
        let of = |local: Local| local.txid_of_all(7).map(Txid::get);
        assert_eq!(of(local(&Mode::Running, None)), Some(7));
        // What was changed while nobody had it open may not be in there.
        assert_eq!(of(local(&Mode::Unresolved, None)), None);
        // What it was declared the truth over is not what it holds.
        assert_eq!(of(local(&Mode::Running, Txid::new(7))), None);
        assert_eq!(of(local(&Mode::Unresolved, Txid::new(7))), None);
        assert_eq!(of(local(&Mode::Full(FullReason::Adopted), Txid::new(7))), Some(8));
    }

    #[test]
    fn a_full_state_that_is_begun_again_may_have_taken_the_txid() {
        let of = |local: &Local| local.txid_of_all(7).map(Txid::get);
        let due = Local { full: Some(FullReason::ContinuityLost), ..local(&Mode::Running, None) };
        assert_eq!(of(&due), Some(8));
        // It was sent as of a moment before the commit, and is void.
        let void = Local { full_txid: 8, was_full_begun: true, ..due };
        assert_eq!(of(&void), None);
        // It was in the bucket: the next one takes the next TXID, also while the bucket is not known to have it.
        let again = Local { full_txid: 9, is_full_read: true, ..void };
        assert_eq!(of(&again), Some(9));
        assert_eq!(of(&Local { frames: 1, ..again }), Some(10));
    }
}
