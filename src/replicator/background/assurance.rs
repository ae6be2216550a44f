//! The bucket is read by the process that writes to it, every so often: whether its newest state is there and whole (`verify_every`).
//!
//! What it comes to is one of three: the state is whole; something is wrong, which is told until it is not any more; or it could not be looked at, which
//! says nothing of the bucket. None of them changes anything for the replication.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::Background;
use super::proof::{Proof, Whole, told};
use crate::config::Options;
use crate::fault::{fault_point, fault_value};
use crate::logging::event;
use crate::logging::repeats::{More, duration};
use crate::maintenance::{self, MaintainError, Turn};
use crate::replicator::outage::{Outages, Over, Tell};
use crate::replicator::progress::ReplicationState;
use crate::replicator::step::panic_text;
use crate::types::Txid;
use crate::verify::{Finding, Kind, Outcome, Report, Scope, Verifier, VerifyError};

/// A process that has been up for less has other things to do: from a half of it to all.
const SETTLED: Duration = Duration::from_secs(60);
/// What could not be carried out is tried again after so long, then after twice that, up to `verify_every`.
const AGAIN: Duration = Duration::from_secs(300);
const MOST_DOUBLINGS: u32 = 10;
/// Of `max_memory`: maintenance has its turn at another time, the uploads have their part of it meanwhile.
const MEMORY_SHARE: u64 = 4;
/// However much memory there is.
const REQUESTS_AT_ONCE: usize = 4;
/// Objects that are named; of more the number.
const NAMED: usize = 3;

/// What the option asks for; `None` where it does not ask.
fn every(options: &Options) -> Option<Duration> {
    let every = options.verify_every;
    (!every.is_zero()).then(|| fault_value!("REPLICATED_TEST_VERIFY_MS", every, Duration::from_millis))
}

/// When a verification is due.
#[derive(Debug)]
struct Times {
    every: Duration,
    /// This process has been up for long enough.
    settled: Instant,
    /// After one that could not be carried out.
    not_before: Option<Instant>,
    failures: u32,
}

impl Times {
    /// How long it is until then, where the last one ended at that time.
    fn due(&self, ended_ms: i64, now: Instant, now_ms: i64) -> Duration {
        let at = self.not_before.unwrap_or_else(|| {
            // One that ended in the future was told by a clock that went wrong.
            let age_ms = Some(ended_ms).filter(|ended| *ended > 0).and_then(|ended| u64::try_from(now_ms.saturating_sub(ended)).ok());
            let rest = age_ms.map_or(Duration::ZERO, |age_ms| self.every.saturating_sub(Duration::from_millis(age_ms)));
            (now + rest).max(self.settled)
        });
        at.saturating_duration_since(now)
    }

    fn failed(&mut self, now: Instant) {
        let pause = AGAIN.saturating_mul(1 << self.failures.min(MOST_DOUBLINGS)).min(self.every);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
    }

    fn ended(&mut self) {
        (self.failures, self.not_before) = (0, None);
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Assurance {
    times: Times,
    proof: Proof,
    /// Something was wrong when this process began, and it has not looked whether that is still so.
    is_in_doubt: bool,
    /// What this process has logged of it, by `key`.
    told: Option<String>,
    outages: Outages,
}

impl Assurance {
    /// `None` where it is not asked for.
    pub(super) fn new(background: &Background) -> Option<Self> {
        let every = every(&background.database.options)?;
        let settled = Instant::now() + SETTLED.min(every).mul_f64(0.5 + fastrand::f64() / 2.0);
        let times = Times { every, settled, not_before: None, failures: 0 };
        let proof = Proof::of(&background.database);
        let is_in_doubt = proof.finding.is_some();
        Some(Self { times, proof, is_in_doubt, told: None, outages: Outages::default() })
    }

    /// How long it is until one is due; `None` where the bucket has nothing yet.
    pub(super) fn due(&self, acked: Option<Txid>) -> Option<Duration> {
        let ended_ms = if self.is_in_doubt { 0 } else { self.proof.ended_ms };
        acked.map(|_| self.times.due(ended_ms, Instant::now(), maintenance::now().0))
    }

    /// One verification, if this process may do one now.
    pub(super) async fn round(&mut self, background: &Rc<Background>) {
        let outcome = AssertUnwindSafe(Self::try_round(background)).catch_unwind().await;
        let outcome = outcome.unwrap_or_else(|panic| Err(Failure::Fault(panic_text(&*panic))));
        match outcome {
            Ok(report) => match report.outcome() {
                Outcome::Verified => self.is_whole(background, &report),
                Outcome::Wrong => self.is_wrong(background, &report),
                Outcome::NotChecked => self.not_carried_out(background, &report.not_checked.join("; "), true),
            },
            Err(Failure::Verify(VerifyError::Maintenance(MaintainError::Stopped))) => match background.stands_still() {
                // The uploader has told why.
                Some(why) => self.not_carried_out(background, &why, false),
                // Somebody closes the database, or another process has it: whoever goes on does this as well.
                None => self.times.failed(Instant::now()),
            },
            Err(error) => self.not_carried_out(background, &error.to_string(), true),
        }
        fault_point!("assure.done");
    }

    async fn try_round(background: &Rc<Background>) -> Result<Report, Failure> {
        fault_point!("assure.begin");
        background.may_look()?;
        let database = &background.database;
        // Before the listing, which must have it.
        let acked = background.acked();
        let max_memory_bytes = database.options.max_memory_bytes / MEMORY_SHARE;
        let scope = Scope { parallelism: REQUESTS_AT_ONCE, max_memory_bytes, ..Scope::default() };
        let others = Rc::clone(background);
        let turn: Box<Turn> = Box::new(move || {
            let background = Rc::clone(&others);
            Box::pin(async move { background.make_way_to_look().await })
        });
        Ok(Verifier::new(Arc::clone(&database.store), scope).light_from(acked, Some(&*turn)).await?)
    }

    fn is_whole(&mut self, background: &Background, report: &Report) {
        let database = &background.database;
        let of_second = database.paths.of_second();
        let Some(txid) = report.states.last().copied() else { return };
        if self.told.take().is_some() || self.proof.finding.is_some() {
            event!(Info, "bucket_whole_again", database, txid = txid; "the bucket{of_second} is whole again, up to TXID {txid}");
        }
        if let Over::Works { after, failures } = self.outages.succeeded(Instant::now()) {
            let after = duration(after);
            event!(Info, "verification_works_again", database; "the bucket{of_second} could be verified again after {after} and {failures} failures");
        }
        event!(Debug, "verified", database, txid = txid; "the bucket{of_second} is whole up to TXID {txid}, by {} files", report.files_read);
        let at_ms = maintenance::now().0;
        let (files, files_in_bucket) = (report.files_read as u64, report.files as u64);
        let whole = Whole { txid, at_ms, files, files_in_bucket, bytes: report.bytes_read };
        self.ended();
        self.keep(background, Proof { ended_ms: at_ms, whole: Some(whole), finding: None, obstacle: None });
    }

    fn is_wrong(&mut self, background: &Background, report: &Report) {
        let database = &background.database;
        let (finding, key) = (finding(report), key(report));
        if self.told.as_ref() != Some(&key) {
            let of_second = database.paths.of_second();
            event!(Error, "bucket_wrong", database, cause = finding; "the bucket{of_second} is not what it should be: {finding}");
            self.told = Some(key);
        }
        self.ended();
        self.keep(background, Proof { ended_ms: maintenance::now().0, whole: self.proof.whole, finding: Some(finding), obstacle: None });
    }

    fn not_carried_out(&mut self, background: &Background, why: &str, is_news: bool) {
        let (database, now, why) = (&background.database, Instant::now(), told(why));
        self.times.failed(now);
        let of_second = database.paths.of_second();
        match if is_news { self.outages.failed(&why, now) } else { Tell::Nothing } {
            Tell::Nothing => {}
            Tell::Cause => {
                event!(Warn, "verification_failed", database, cause = why; "the bucket{of_second} could not be verified: {why}. Replication goes on; it is tried again")
            }
            Tell::Still { more: More { times, within }, failures } => event!(
                Warn, "verification_still_fails", database, cause = why;
                "the bucket{of_second} could still not be verified: failed {times} more times in the last {}, {failures} in all. The last cause: {why}",
                duration(within)
            ),
        }
        let obstacle = Some((maintenance::now().0, why));
        self.keep(background, Proof { obstacle, ..self.proof.clone() });
    }

    fn ended(&mut self) {
        self.times.ended();
        self.is_in_doubt = false;
    }

    fn keep(&mut self, background: &Background, proof: Proof) {
        proof.keep(&background.database);
        self.proof = proof;
    }
}

/// What is wrong, in a line.
fn finding(report: &Report) -> String {
    let of = |finding: &Finding| match finding.object {
        Some(object) => format!("{object}: {}", finding.what),
        None => finding.what.clone(),
    };
    let mut text = report.findings.iter().take(NAMED).map(of).collect::<Vec<_>>().join("; ");
    let more = report.findings.len().saturating_sub(NAMED) + report.more_findings;
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    if let Some(first) = report.findings.first() {
        text.push_str(&format!(". {}", first.advice));
    }
    told(&text)
}

/// What is the same as long as nothing else is wrong: which states that costs changes with every upload.
fn key(report: &Report) -> String {
    let of = |finding: &Finding| match finding.object.filter(|_| finding.kind != Kind::Gap) {
        Some(object) => format!("{} {object}", finding.kind.name()),
        None => finding.kind.name().to_owned(),
    };
    report.findings.iter().map(of).collect::<Vec<_>>().join("; ")
}

impl Background {
    /// Why this process does not look at the bucket now: also once the last close has begun, which waits for no such thing.
    fn may_look(&self) -> Result<(), MaintainError> {
        if self.database.handles.load(Ordering::Acquire) == 0 { Err(MaintainError::Stopped) } else { self.is_idle() }
    }

    /// Why it will not for a while.
    fn stands_still(&self) -> Option<String> {
        if self.is_over() || self.database.handles.load(Ordering::Acquire) == 0 {
            return None;
        }
        let facts = self.database.progress.facts();
        if matches!(facts.state, ReplicationState::Idle | ReplicationState::Uploading) {
            let has_lease = self.database.lease.as_ref().is_none_or(|lease| lease.turn().is_some());
            return (!has_lease).then(|| "this host does not have the lease".to_owned());
        }
        let why = facts.last_error.unwrap_or_default();
        Some(format!("replication is {}{}{why}", facts.state.as_str(), if why.is_empty() { "" } else { ": " }))
    }

    /// Returns when there is time for one more request: see `make_way`, and no more than so many in a time.
    async fn make_way_to_look(&self) -> Result<(), MaintainError> {
        loop {
            self.may_look()?;
            let pause = self.housekeeping.looks.borrow_mut().wait(Instant::now());
            if pause.is_zero() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        self.housekeeping.looks.borrow_mut().take(Instant::now());
        self.housekeeping.traffic.gone(|| self.somebody_waits(), || self.may_look()).await
    }
}

/// Why there was none.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("a fault in the extension ({0})")]
    Fault(String),
}

impl From<MaintainError> for Failure {
    fn from(error: MaintainError) -> Self {
        Self::Verify(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LtxName;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn it_is_due_so_long_after_the_last_one_whoever_did_that() {
        let began = Instant::now();
        let settled = began + Duration::from_secs(45);
        let mut times = Times { every: 24 * HOUR, settled, not_before: None, failures: 0 };
        let now_ms = 1_795_000_000_000;
        let hours = |hours: i64| now_ms - hours * 3_600_000;
        // Never yet, long ago, and by a clock that was ahead: as soon as the process has been up for a while.
        for ended_ms in [0, hours(100), hours(24), now_ms + 1] {
            assert_eq!(times.due(ended_ms, began, now_ms), Duration::from_secs(45), "{ended_ms}");
            assert_eq!(times.due(ended_ms, began + HOUR, now_ms), Duration::ZERO, "{ended_ms}");
        }
        assert_eq!(times.due(hours(1), began, now_ms), 23 * HOUR);
        assert_eq!(times.due(now_ms, began, now_ms), 24 * HOUR);
        // What could not be carried out is tried again, less and less often.
        let mut pauses = Vec::new();
        for _ in 0..12 {
            times.failed(began);
            pauses.push(times.due(hours(100), began, now_ms).as_secs());
        }
        assert_eq!(pauses[..4], [300, 600, 1200, 2400]);
        assert_eq!(pauses.last(), Some(&(24 * 3600)));
        times.ended();
        assert_eq!(times.due(hours(1), began, now_ms), 23 * HOUR);
    }

    #[test]
    fn a_finding_names_some_objects_and_counts_the_others() {
        let mut report = Report::default();
        for txid in 1..=9 {
            let object = Txid::new(txid).map(LtxName::level0);
            report.add(Finding { kind: Kind::Damaged, object, what: "cut short".to_owned(), advice: format!("advice {txid}") });
        }
        report.more_findings = 4;
        let before = key(&report);
        assert!(report.findings.iter_mut().all(|finding| std::mem::replace(&mut finding.advice, "of now".to_owned()) != "of now"));
        assert_eq!(key(&report), before);
        assert!(report.findings.pop().is_some() && key(&report) != before);
        let text = finding(&report);
        assert!(text.starts_with("0/0000000000000001-0000000000000001.ltx: cut short; 0/0000000000000002"), "{text}");
        assert!(text.ends_with("; and 9 more. of now"), "{text}");
    }
}
