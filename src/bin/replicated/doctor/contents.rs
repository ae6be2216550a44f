//! What is in the bucket: levels, the newest state and whether it can be restored, what Litestream 0.3 has left, and who else writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use replicated::ltx::Header;
use replicated::restore::{self, RestoreError, Target};
use replicated::store::{Listed, Store};
use replicated::verify::{self, Lease, Outcome, Scope, Verifier, VerifyError};

use super::bounded::{Late, blocking};
use super::report::Report;
use crate::text;

/// A newest state that is larger is not read: `replicated verify` does that.
const MOST_TO_READ_BYTES: u64 = 32 << 20;

/// What others ask of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    /// Whether it could be listed.
    pub(super) is_known: bool,
    /// The newest upload and its header.
    pub(super) newest: Option<(Listed, Header)>,
}

/// Looks at it. The store is one of its own: what is asked here runs on event loops of the library's.
///
/// `down` is how many bytes a second come, where that is known.
pub(super) fn look(store: &Arc<dyn Store>, down: Option<f64>, limit: Duration, report: &mut Report) -> Contents {
    let mut contents = Contents::default();
    let listing = Arc::clone(store);
    match blocking(limit, move || restore::catalogue(&*listing)) {
        Ok(Ok(listed)) => {
            contents.is_known = true;
            levels(&listed, report);
            newest(store, most_to_read(down, limit), limit, &listed, &mut contents, report);
        }
        Ok(Err(RestoreError::Plan { .. })) => {
            contents.is_known = true;
            report.ok("contents", "nothing yet: the first open sends the full state");
        }
        Ok(Err(RestoreError::Generations { .. })) => report.problem(
            "contents",
            "a replica of Litestream 0.3 (generations/), and nothing newer",
            "Replication begins beside it, in another format; what is there can only be restored to a file (`replicated restore`)",
            "Restore it if you need it, and give this database a path of its own; see docs/litestream.md",
        ),
        Ok(Err(RestoreError::Store(error))) => not_read("contents", &error.into(), report),
        Ok(Err(error)) => report.unknown("contents", error.to_string(), "`replicated list URL` tries it again"),
        Err(late) => too_late("contents", late, report),
    }
    lease(store, limit, report);
    contents
}

fn too_late(check: &'static str, late: Late, report: &mut Report) {
    report.unknown(check, late.to_string(), "Ask again; a bucket with very many files takes longer to list: --timeout");
}

fn levels(listed: &[Listed], report: &mut Report) {
    let mut levels: BTreeMap<u8, (usize, u64)> = BTreeMap::new();
    for file in listed {
        let (count, bytes) = levels.entry(file.name.level.get()).or_default();
        (*count, *bytes) = (*count + 1, *bytes + file.size_bytes);
    }
    let name = |level: u8, count: usize| match level {
        0 => text::count(count, "upload"),
        9 => text::count(count, "snapshot"),
        other => format!("{count} merged at level {other}"),
    };
    let shown: Vec<String> =
        levels.iter().map(|(level, (count, bytes))| format!("{} ({})", name(*level, *count), text::size(*bytes))).collect();
    report.ok("contents", shown.join(", "));
}

/// What comes in half the time that it may take.
fn most_to_read(down: Option<f64>, limit: Duration) -> u64 {
    down.map_or(MOST_TO_READ_BYTES, |down| (down * limit.as_secs_f64() / 2.0) as u64).min(MOST_TO_READ_BYTES)
}

fn newest(store: &Arc<dyn Store>, most_bytes: u64, limit: Duration, listed: &[Listed], contents: &mut Contents, report: &mut Report) {
    let plan = match restore::plan(listed, Target::Latest) {
        Ok(plan) => plan,
        Err(error) => {
            return report.problem(
                "restorable",
                error.to_string(),
                "The newest state cannot be restored from this bucket",
                "`replicated verify URL` names what is missing; a running database sends its full state after `replicated adopt app.db URL`",
            );
        }
    };
    let (oldest, last) = (restore::oldest(listed), plan.files.last());
    let at = |file: Option<&Listed>| {
        file.map(|file| format!(" of {} ({})", text::time(file.timestamp), text::age(file.timestamp))).unwrap_or_default()
    };
    let from = oldest.map(|oldest| format!("from TXID {}{} ", oldest.name.max_txid, at(Some(oldest)))).unwrap_or_default();
    report.ok("restorable", format!("{from}to TXID {}{}; the newest needs {}", plan.txid, at(last), text::count(plan.files.len(), "file")));

    let reading = Arc::clone(store);
    match blocking(limit, move || verify::newest_upload(&*reading, Some(plan.txid))) {
        Ok(Ok(newest)) => contents.newest = newest,
        Ok(Err(error)) => not_read("restorable", &error, report),
        Err(late) => too_late("restorable", late, report),
    }
    let bytes = plan.files.iter().map(|file| file.size_bytes).sum();
    if bytes > most_bytes {
        return report.skipped(
            "backup",
            format!(
                "the newest state's files have {} and were not read: `replicated verify --light` reads them, without --light it restores",
                text::size(bytes)
            ),
        );
    }
    let verifier = Verifier::new(Arc::clone(store), Scope::default());
    match blocking(limit.saturating_mul(2), move || verify::light(&verifier)) {
        Ok(Ok(found)) => backup(&found, report),
        Ok(Err(error)) => not_read("backup", &error, report),
        Err(late) => report.unknown("backup", late.to_string(), "`replicated verify --light URL` takes its time"),
    }
}

fn backup(found: &verify::Report, report: &mut Report) {
    match found.outcome() {
        Outcome::Verified => report.ok(
            "backup",
            format!(
                "the newest state's files were read, {}, every checksum; `replicated verify` restores it as well",
                text::size(found.bytes_read)
            ),
        ),
        Outcome::Wrong => {
            let first = found.findings.first();
            let object = first.and_then(|finding| finding.object).map(|object| format!("{object}: ")).unwrap_or_default();
            report.problem(
                "backup",
                format!("{object}{}", first.map(|finding| finding.what.clone()).unwrap_or_default()),
                "The newest state cannot be restored as it is",
                first.map(|finding| finding.advice.clone()).unwrap_or_default(),
            );
        }
        Outcome::NotChecked => report.unknown("backup", found.not_checked.join("; "), "Ask again"),
    }
}

fn not_read(check: &'static str, error: &VerifyError, report: &mut Report) {
    let what = match error {
        VerifyError::Store(error) => format!("{} {}: {}", error.operation, error.object, error.cause),
        other => other.to_string(),
    };
    let next = if error.advice().is_empty() { "Ask again; `replicated verify URL` says more" } else { error.advice() };
    report.unknown(check, what, next);
}

fn lease(store: &Arc<dyn Store>, limit: Duration, report: &mut Report) {
    let reading = Arc::clone(store);
    match blocking(limit, move || verify::lease(&*reading)) {
        Ok(Ok(Lease::None)) => {
            report.skipped("writers", "no lease in the bucket (lock.json): nobody keeps two hosts apart but conditional creation")
        }
        Ok(Ok(Lease::Free { last })) => report.ok("writers", format!("the lease is free; it was let go or has run out: {last}")),
        Ok(Ok(Lease::Held { by })) => {
            report.ok("writers", format!("the lease is held: {by}. Nobody else may write to this bucket meanwhile"))
        }
        Ok(Ok(Lease::Garbage { why })) => report.problem(
            "writers",
            format!("lock.json is no lease: {why}"),
            "With the option lease nothing is opened or sent while it is there",
            "Look at who has written it, and delete it",
        ),
        Ok(Err(error)) => not_read("writers", &error, report),
        Err(late) => too_late("writers", late, report),
    }
}
