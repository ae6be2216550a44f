//! States that are restored to be looked at, one at a time.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Verifier;
use super::report::{Finding, Kind, Report};
use crate::restore::{self, RestoreError, Target};
use crate::types::Txid;

/// A state that is to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Which one.
    pub target: Target,
    /// Why: `newest`, `floor`, `random`, `txid`, `timestamp`.
    pub why: &'static str,
}

/// What became of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointReport {
    /// Which one it was.
    pub point: Point,
    /// The state that was restored; `None` where none was.
    pub restored: Option<restore::Report>,
    /// Why not, or what is wrong with it.
    pub problem: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Looks at a restored database; an error says what is wrong with it.
pub type Look<'a> = dyn Fn(&Point, &Path) -> Result<(), String> + 'a;

impl Point {
    /// The newest state, the oldest that is promised, and so many of those between, chosen at random.
    #[must_use]
    pub fn choose(report: &Report, random: usize) -> Vec<Self> {
        let of = |why| move |txid: &Txid| Self { target: Target::Txid(*txid), why };
        let mut points: Vec<Self> = Vec::new();
        let newest = report.states.last().filter(|newest| report.newest.is_some_and(|file| file.name.max_txid == **newest));
        points.extend(newest.map(of("newest")));
        points.extend(report.states.first().filter(|oldest| Some(*oldest) != newest).map(of("floor")));
        let mut between: Vec<&Txid> = report.states.iter().skip(1).filter(|txid| Some(*txid) != newest).collect();
        fastrand::shuffle(&mut between);
        between.truncate(random);
        between.sort_unstable();
        points.extend(between.into_iter().map(of("random")));
        points
    }

    fn name(&self) -> String {
        match self.target {
            Target::Latest => "the newest state".to_owned(),
            Target::Txid(txid) => format!("TXID {txid}"),
            Target::Timestamp(at) => format!("the last state at or before {at}"),
        }
    }
}

/// Restores them, one after the other.
pub(super) async fn restore_all(
    verifier: &Verifier,
    points: &[Point],
    folder: &Path,
    look: &Look<'_>,
    report: &mut Report,
) -> Vec<PointReport> {
    let mut done = Vec::with_capacity(points.len());
    for point in points {
        let started = Instant::now();
        let outcome = verifier.restore(point.target, folder, &|path| look(point, path)).await;
        let (restored, problem) = match outcome {
            Ok(restored) => (Some(restored), None),
            Err(error) => (None, Some(told(point, &error, report))),
        };
        done.push(PointReport { point: *point, restored, problem, elapsed: started.elapsed() });
    }
    done
}

/// Puts it where it belongs.
fn told(point: &Point, error: &RestoreError, report: &mut Report) -> String {
    let what = match error {
        RestoreError::Refused { why, .. } => format!("{} is restored, and is damaged: {why}", point.name()),
        error => format!("{} cannot be restored: {error}", point.name()),
    };
    let (kind, object) = match error {
        RestoreError::Refused { .. } => (Kind::Integrity, None),
        RestoreError::Damaged { object, .. } => (Kind::Damaged, Some(*object)),
        RestoreError::Plan { .. } | RestoreError::MissingPage { .. } => (Kind::Restore, None),
        // Of these nothing is the bucket's fault.
        _ => {
            let advice = error.advice();
            let advice = if advice.is_empty() { String::new() } else { format!("; {advice}") };
            report.not_checked.push(format!("{what}{advice}"));
            return what;
        }
    };
    let advice = match kind {
        Kind::Integrity => {
            "Restore an earlier state and look whether it is whole (`--txid`). Where the live database is whole, `replicated adopt` has its next open send the full state"
                .to_owned()
        }
        _ => error.advice(),
    };
    // The object was named when it was read.
    let is_known = |finding: &Finding| finding.object.is_some() && finding.object == object;
    if !report.findings.iter().any(is_known) {
        report.add(Finding { kind, object, what: what.clone(), advice });
    }
    what
}
