//! What `PRAGMA replicated_status` says.

use std::time::Duration;

use super::Database;

use crate::replicator::background::Proof;
use crate::replicator::control::FullReason;
use crate::replicator::durability::Policy;
use crate::replicator::lease;
use crate::replicator::progress::Facts;
use crate::replicator::tail::Mode;
use crate::types::Txid;

impl Database {
    /// The TXID with which the bucket has everything that is committed so far, if no full state comes between and nothing fails for good; 0 where it is not
    /// known yet how far the bucket goes.
    fn local_txid(&self) -> u64 {
        // Right after an open it is asked how far the bucket goes.
        const LOOKS: u32 = 200;
        const PAUSE: Duration = Duration::from_millis(10);
        for _ in 0..LOOKS {
            if let Some(txid) = self.local_txid_by(&self.progress.facts()) {
                return txid;
            }
            std::thread::sleep(PAUSE);
        }
        0
    }

    /// `None` while it is being found out how far the bucket goes.
    fn local_txid_by(&self, facts: &Facts) -> Option<u64> {
        const PATIENCE: Duration = Duration::from_millis(100);
        let remote = facts.remote_txid.map_or(0, Txid::get);
        let tail = self.try_lock_tail_for(PATIENCE);
        let published = self.published();
        if published.sequence <= facts.acked_sequence {
            return Some(remote);
        }
        let Some(tail) = tail else { return Some(remote.max(1) + 1) };
        let acked = tail.state.acked.map_or(0, |acked| acked.txid.get()).max(tail.state.adopt.map_or(0, Txid::get));
        if acked == 0 && remote == 0 && tail.mode != Mode::Full(FullReason::First) {
            let will_be_known = facts.last_error.is_none() && published.known;
            return if will_be_known { None } else { Some(0) };
        }
        // Newer than the facts where an acknowledgement came between. An empty bucket begins with the snapshot 1-2.
        let newest = acked.max(remote).max(1);
        let has_batch = tail.inflight.is_some() || tail.state.attempt.is_some();
        // One that was frozen before the full state became due goes before it, whatever it contains.
        let (is_under_way, goes_before) = match tail.mode {
            Mode::Full(_) => (tail.state.captured.is_some(), has_batch),
            _ => (has_batch, false),
        };
        Some(newest + 1 + u64::from(goes_before) + u64::from(is_under_way && !(tail.spool.is_empty() && self.is_captured(&tail))))
    }

    /// Names and values for people.
    pub(crate) fn status(&self, policy: &Policy) -> Vec<(&'static str, String)> {
        let facts = self.progress.facts();
        let published = self.published();
        let waiting = published.sequence.saturating_sub(facts.acked_sequence);
        let local = self.local_txid();
        let lag = self.lag().filter(|_| waiting > 0).unwrap_or_default();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let mut rows = vec![
            ("state", facts.state.as_str().to_owned()),
            ("local_txid", format!("{local:016x}")),
            ("remote_txid", or_dash(facts.remote_txid.map(|t| t.to_string()))),
            ("waiting_commits", waiting.to_string()),
            ("lag_ms", lag.as_millis().to_string()),
            ("durability", policy.durability().to_string()),
            ("max_lag_ms", policy.max_lag.as_millis().to_string()),
            ("last_success", or_dash(facts.last_success_ms.map(|ms| crate::types::TimestampMs(ms).to_string()))),
            ("last_error", or_dash(facts.last_error)),
            ("uploads", facts.uploads.to_string()),
            ("snapshots", facts.snapshots.to_string()),
            (
                "fencing",
                match facts.fencing {
                    None => "unknown",
                    Some(true) => "strong",
                    Some(false) => "weak",
                }
                .to_owned(),
            ),
            ("last_maintenance", or_dash(facts.last_maintenance_ms.map(|ms| crate::types::TimestampMs(ms).to_string()))),
            ("maintenance_error", or_dash(facts.maintenance_error)),
            ("replica", self.store.url().to_owned()),
        ];
        rows.extend(Proof::of(self).rows(!self.options.verify_every.is_zero()));
        rows.extend(self.lease.as_ref().map_or_else(lease::no_rows, |lease| lease.rows()));
        rows
    }
}
