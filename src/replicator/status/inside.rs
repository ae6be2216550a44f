//! The status of a database that this process has open.

use std::time::Duration;

use super::{Local, Parts};
use crate::metrics::Counted;
use crate::replicator::background::Proof;
use crate::replicator::database::{Database, Published};
use crate::replicator::durability::Policy;
use crate::replicator::lease;
use crate::replicator::progress::Facts;
use crate::replicator::shared::Range;
use crate::status::{Row, Status, Uploader};
use crate::types::Txid;

/// How long the tail is waited for.
const PATIENCE: Duration = Duration::from_millis(100);

/// It is being found out how far the bucket goes.
struct NotKnownYet;

impl Database {
    /// What a connection with that policy is told.
    pub(crate) fn status(&self, policy: &Policy) -> Status {
        self.status_within(policy, PATIENCE, true)
    }

    /// The same with hardly any waiting, for the uploader's own thread.
    pub(crate) fn status_now(&self) -> Status {
        const PATIENCE: Duration = Duration::from_millis(5);
        self.status_within(&Policy::of(&self.options), PATIENCE, false)
    }

    fn status_within(&self, policy: &Policy, patience: Duration, waits: bool) -> Status {
        // Right after an open it is asked how far the bucket goes.
        const LOOKS: u32 = 200;
        const PAUSE: Duration = Duration::from_millis(10);
        let mut looks = 0;
        loop {
            let facts = self.progress.facts();
            let (local, published) = self.local(patience, &facts);
            let local_txid = match local_txid(&facts, local.as_ref(), &published) {
                Err(NotKnownYet) if waits && looks < LOOKS => {
                    looks += 1;
                    std::thread::sleep(PAUSE);
                    continue;
                }
                known => known.unwrap_or_default(),
            };
            return self.told(policy, facts, local, local_txid, &published);
        }
    }

    /// The tail and what is committed at one moment; of the tail nothing where somebody else has it for long.
    fn local(&self, patience: Duration, facts: &Facts) -> (Option<Local>, Published) {
        let tail = self.try_lock_tail_for(patience);
        let local = tail.as_ref().map(|tail| {
            let batch = tail.inflight.as_ref().map(|inflight| inflight.attempt).or(tail.state.attempt);
            Local::new(
                &tail.state,
                &tail.mode,
                facts,
                batch.map(|batch| batch.size_bytes),
                tail.spool.waits(),
                self.frames_in_wal_only(tail),
            )
        });
        (local, self.published())
    }

    fn told(&self, policy: &Policy, facts: Facts, local: Option<Local>, local_txid: Option<Txid>, published: &Published) -> Status {
        let uploader = if self.is_owner() {
            Uploader::Process(std::process::id())
        } else {
            self.locks().and_then(|locks| locks.holder(Range::Owner)).map_or(Uploader::Nobody, Uploader::Process)
        };
        let lease = self.lease.as_ref().map_or_else(lease::no_rows, |lease| lease.rows());
        let (proof, is_verified) = (Proof::of(self), !self.options.verify_every.is_zero());
        let more = proof.rows(is_verified).into_iter().chain(lease).map(Row::of_text);
        Parts {
            paths: &self.paths,
            counts: self.shared.counters().read(),
            local: local.unwrap_or_default(),
            local_txid,
            remote_txid: facts.remote_txid,
            uploader,
            waiting_commits: published.sequence.saturating_sub(facts.acked_sequence),
            lag: self.lag(),
            page_size: published.page_size,
            is_unproved: false,
            durability: policy.durability(),
            max_lag: policy.max_lag,
            max_local_bytes: Some(self.options.max_local_bytes),
            replica: Some(self.store.url().to_owned()),
            verification: proof.verification(is_verified),
            more: more.collect(),
            facts,
        }
        .status()
    }
}

/// The TXID with which the bucket has everything that is committed; none where that cannot be told.
fn local_txid(facts: &Facts, local: Option<&Local>, published: &Published) -> Result<Option<Txid>, NotKnownYet> {
    if published.sequence <= facts.acked_sequence {
        // Where replication has stopped an earlier process may have committed what was not even counted.
        let is_stopped = facts.stopped().is_some() || local.is_some_and(|local| local.is_stopped);
        return Ok(facts.remote_txid.filter(|_| !is_stopped));
    }
    let remote = facts.remote_txid.map_or(0, Txid::get);
    let Some(local) = local else { return Ok(Txid::new(remote.max(1) + 1)) };
    let will_be_known = facts.last_error.is_none() && published.known;
    match local.txid_of_all(remote) {
        None if will_be_known => Err(NotKnownYet),
        known => Ok(known),
    }
}
