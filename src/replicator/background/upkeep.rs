//! The bucket is maintained by the process that writes to it: when a round is due, and what becomes of it.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::Background;
use super::ledger::Pending;
use crate::fault::{fault_point, fault_value};
use crate::logging::event;
use crate::logging::repeats::{More, duration};
use crate::maintenance::{self, AtHand, MaintainError, Maintainer, Policy, Report, Turn};
use crate::replicator::database::Database;
use crate::replicator::outage::{Outages, Over, Tell};
use crate::replicator::step::panic_text;
use crate::store::{LtxName, StoreErrorKind};
use crate::types::Txid;

/// So many uploads are worth a round, however short the process has been up.
fn enough_uploads() -> u64 {
    fault_value!("REPLICATED_TEST_ENOUGH_UPLOADS", 256, |uploads| uploads)
}

/// After so many times as many without a round a closing process waits for one, once in a while.
const NEGLECTED: u64 = 4;
const NEGLECT_MS: i64 = 3_600_000;
/// Without a round for so many times as long as there should be between two: the process need not have been up for as long.
const LONG_AGO: u32 = 12;
/// After failures the pause doubles so many times. It is as long where each round costs a listing.
const MOST_DOUBLINGS: u32 = 4;
/// Where the store has refused to delete it is asked again after so long.
const REFUSED: Duration = Duration::from_secs(24 * 3600);
/// Of `max_memory`: the uploads have their part of it meanwhile.
const MEMORY_SHARE: u64 = 4;

/// Whether a closing process waits for a round.
pub(super) fn is_neglected(pending: &Pending) -> bool {
    pending.uploads >= NEGLECTED * enough_uploads() && maintenance::now().0.saturating_sub(pending.waited_ms) >= NEGLECT_MS
}

/// When rounds are due.
#[derive(Debug)]
struct Times {
    /// Between two rounds: the time that a file of level 2 spans.
    every: Duration,
    /// At the least: the time that a file of level 1 spans.
    least: Duration,
    /// The databases of a process do not come in step.
    jitter: f64,
    began: Instant,
    /// When the last round of this process ended.
    last: Option<Instant>,
    doublings: u32,
}

impl Times {
    /// How long it is until then; `None` where there is nothing to do.
    fn due(&self, pending: &Pending, now: Instant, now_ms: i64) -> Option<Duration> {
        if pending.uploads == 0 {
            return None;
        }
        let at = match self.last {
            Some(last) if self.doublings > 0 => last + self.every * (1 << self.doublings.min(MOST_DOUBLINGS)),
            Some(last) => last + if pending.uploads >= enough_uploads() { self.least } else { self.every },
            None if pending.uploads >= enough_uploads() => now,
            None => {
                let long_ago_ms = i64::try_from((self.every * LONG_AGO).as_millis()).unwrap_or(i64::MAX);
                let is_long_ago = pending.round_ms > 0 && now_ms.saturating_sub(pending.round_ms) > long_ago_ms;
                self.began + if is_long_ago { self.least } else { self.every }.mul_f64(1.0 + self.jitter)
            }
        };
        Some(at.saturating_duration_since(now))
    }
}

/// The maintenance of one bucket.
#[derive(Debug)]
pub(super) struct Upkeep {
    times: Times,
    policy: Policy,
    outages: Outages,
    /// When the store has refused to delete.
    refused: Option<Instant>,
}

impl Upkeep {
    pub(super) fn new(database: &Database) -> Self {
        let options = &database.options;
        let policy = options.upkeep.policy(options.max_memory_bytes / MEMORY_SHARE, true);
        let [least, every, _] = policy.spans;
        let times = Times { every, least, jitter: fastrand::f64(), began: Instant::now(), last: None, doublings: 0 };
        Self { times, policy, outages: Outages::default(), refused: None }
    }

    pub(super) fn due(&self, pending: &Pending) -> Option<Duration> {
        self.times.due(pending, Instant::now(), maintenance::now().0)
    }

    /// One round, if the bucket may be maintained now. Whatever comes of it, the replication is none of its business.
    pub(super) async fn round(&mut self, background: &Rc<Background>) {
        fault_point!("upkeep.begin");
        let outcome = AssertUnwindSafe(self.try_round(background)).catch_unwind().await;
        self.times.last = Some(Instant::now());
        let outcome = outcome.unwrap_or_else(|panic| {
            let key = background.key();
            background.ledger.borrow_mut().end(key, None, None, 0);
            Err(Failure::Fault(panic_text(&*panic)))
        });
        fault_point!("upkeep.done");
        match outcome {
            Ok(Done { report, is_seldom, at_ms }) => {
                if report.problems.is_empty() {
                    self.times.doublings = if is_seldom { MOST_DOUBLINGS } else { 0 };
                }
                self.tell(background, &report, at_ms);
            }
            // It is looked at again after the next upload.
            Err(Failure::Store(error)) if is_stopped(&error) => self.times.doublings = 0,
            Err(Failure::Store(error @ MaintainError::Busy { .. })) => {
                event!(Debug, "maintenance_elsewhere", background.database, cause = error; "{error}");
                self.times.doublings = 0;
            }
            Err(error) => self.failed(background, &error.to_string()),
        }
    }

    async fn try_round(&mut self, background: &Rc<Background>) -> Result<Done, Failure> {
        background.is_idle()?;
        let database = &background.database;
        let (key, acked) = (background.key(), background.acked());
        let known = background.ledger.borrow_mut().begin(key, acked);
        // It may have been long.
        tokio::task::yield_now().await;
        let others = Rc::clone(background);
        let turn: Box<Turn> = Box::new(move || {
            let background = Rc::clone(&others);
            Box::pin(async move { background.make_way().await })
        });
        let is_refused = self.refused.is_some_and(|at| at.elapsed() < REFUSED);
        let policy = Policy { deletes: !is_refused, ..self.policy.clone() };
        let at_hand = background.keeps_recent().then(|| Arc::clone(&background.recent) as Arc<dyn AtHand>);
        let mut maintainer = Maintainer::inside(Arc::clone(&database.store), policy, key.node_id, known, at_hand);
        let outcome = maintainer.round(maintenance::now(), Some(&*turn)).await;
        let (known, changes) = maintainer.into_known();
        let mut ledger = background.ledger.borrow_mut();
        match outcome {
            // It has changed nothing, and what is known holds.
            Err(error) if !changes.has_begun => {
                ledger.give_up();
                Err(error.into())
            }
            Err(error) => {
                ledger.end(key, None, None, 0);
                background.recent.forget();
                Err(error.into())
            }
            Ok(report) => {
                if known.is_none() {
                    // Something is not as it should be.
                    background.recent.forget();
                }
                forget_witness(database, &changes.gone, acked);
                let appended = (!changes.is_listed).then_some((changes.made.as_slice(), changes.gone.as_slice()));
                let bucket_bytes = known.as_ref().map(|known| known.files.iter().map(|file| file.size_bytes).sum());
                database.progress.update(|f| f.bucket_bytes = bucket_bytes.or(f.bucket_bytes));
                let at_ms = maintenance::now().0;
                let is_remembered = ledger.end(key, known, appended, at_ms);
                Ok(Done { report, is_seldom: changes.found_others || !is_remembered, at_ms })
            }
        }
    }

    /// A round has come to its end.
    fn tell(&mut self, background: &Background, report: &Report, at_ms: i64) {
        let database = &background.database;
        let of_second = database.paths.of_second();
        for what in &report.repaired {
            event!(Warn, "file_repaired", database, cause = what; "a file of the bucket{of_second} was damaged: {what}");
        }
        if !report.problems.is_empty() {
            return self.failed(background, &format!("the bucket is not in order: {}", report.problems.join("; ")));
        }
        let (made, deleted) = (report.made.len(), report.deleted.len());
        event!(Debug, "maintained", database; "maintenance has made {made} files and deleted {deleted}");
        if let Over::Works { after, failures } = self.outages.succeeded(Instant::now()) {
            let after = duration(after);
            event!(Info, "maintenance_works_again", database; "maintenance works again after {after} and {failures} failures");
        }
        if let Some(why) = &report.refused {
            if self.refused.is_none() {
                event!(
                    Warn, "deletion_refused", database, cause = why;
                    "the store{of_second} does not let files be deleted that nothing needs any more, and the bucket grows until something else does: {why}"
                );
            }
            self.refused = Some(Instant::now());
        } else if deleted > 0 {
            self.refused = None;
        }
        let still_refused = self.refused.is_some();
        database.progress.update(|f| {
            f.last_maintenance_ms = Some(at_ms);
            match &report.refused {
                Some(why) => f.maintenance_error = Some(format!("nothing is deleted: {why}")),
                None if still_refused => {}
                None => f.maintenance_error = None,
            }
        });
    }

    fn failed(&mut self, background: &Background, why: &str) {
        self.times.doublings = (self.times.doublings + 1).min(MOST_DOUBLINGS);
        let database = &background.database;
        let of_second = database.paths.of_second();
        match self.outages.failed(why, Instant::now()) {
            Tell::Nothing => {}
            Tell::Cause => {
                event!(Warn, "maintenance_failed", database, cause = why; "the bucket{of_second} is not maintained: {why}. Replication goes on; it is tried again")
            }
            Tell::Still { more: More { times, within }, failures } => event!(
                Warn, "maintenance_still_fails", database, cause = why;
                "the bucket{of_second} is still not maintained: failed {times} more times in the last {}, {failures} in all. The last cause: {why}",
                duration(within)
            ),
        }
        background.database.progress.update(|f| f.maintenance_error = Some(why.to_owned()));
    }
}

/// What the uploader looks for, to find out whether the bucket was emptied, may be among what went: it is not missed, as what replaces it was read.
fn forget_witness(database: &Database, gone: &[LtxName], acked: Option<Txid>) {
    // Where another process has the tail just now the uploader finds out by a listing.
    let Some(mut tail) = database.try_lock_tail_for(Duration::ZERO) else { return };
    if tail.state.witness.is_some_and(|witness| gone.contains(&LtxName::level0(witness))) {
        tail.state.witness = acked;
        if let Err(error) = tail.save() {
            event!(Debug, "local_file", database, cause = error; "{error}");
        }
    }
}

/// It is not the time for it, or the lease has just been lost.
fn is_stopped(error: &MaintainError) -> bool {
    match error {
        MaintainError::Stopped => true,
        MaintainError::Store(error) => error.kind == StoreErrorKind::NoLease,
        _ => false,
    }
}

/// What a round came to.
struct Done {
    report: Report,
    /// Each one costs a listing: another one maintains the bucket too, or what it has cannot be remembered.
    is_seldom: bool,
    at_ms: i64,
}

/// Why there was none.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Store(#[from] MaintainError),
    #[error("a fault in the extension ({0})")]
    Fault(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn pending(uploads: u64) -> Pending {
        Pending { uploads, round_ms: 0, waited_ms: 0 }
    }

    fn times(began: Instant) -> Times {
        let (every, least) = (Duration::from_secs(300), Duration::from_secs(30));
        Times { every, least, jitter: 0.5, began, last: None, doublings: 0 }
    }

    #[test]
    fn a_process_that_lives_for_a_moment_makes_no_round_and_what_is_left_undone_comes_due() {
        let began = Instant::now();
        let mut times = times(began);
        assert_eq!(times.due(&pending(0), began, 0), None);
        assert_eq!(times.due(&pending(1), began, 0), Some(Duration::from_secs(450)));
        // What many processes have left.
        assert_eq!(times.due(&pending(enough_uploads()), began, 0), Some(Duration::ZERO));
        // The last one was long ago.
        let old = Pending { round_ms: 1, ..pending(1) };
        assert_eq!(times.due(&old, began, 3_600_002), Some(Duration::from_secs(45)));
        assert_eq!(times.due(&old, began, 3_600_001), Some(Duration::from_secs(450)));
        // One after another: not sooner than a file of level 1 can be made.
        times.last = Some(began + Duration::from_secs(1000));
        let now = began + Duration::from_secs(1001);
        assert_eq!(times.due(&pending(1), now, 0), Some(Duration::from_secs(299)));
        assert_eq!(times.due(&pending(enough_uploads()), now, 0), Some(Duration::from_secs(29)));
        // Failures make it wait, however much there is to do.
        times.doublings = 2;
        assert_eq!(times.due(&pending(enough_uploads()), now, 0), Some(Duration::from_secs(1199)));
    }

    #[test]
    fn a_close_waits_for_a_round_once_in_a_while() {
        let now = maintenance::now().0;
        assert!(!is_neglected(&Pending { waited_ms: 0, ..pending(NEGLECTED * enough_uploads() - 1) }));
        assert!(is_neglected(&Pending { waited_ms: 0, ..pending(NEGLECTED * enough_uploads()) }));
        assert!(!is_neglected(&Pending { waited_ms: now - 1000, ..pending(10 * NEGLECTED * enough_uploads()) }));
        assert!(is_neglected(&Pending { waited_ms: now - NEGLECT_MS - 1, ..pending(NEGLECTED * enough_uploads()) }));
    }
}
