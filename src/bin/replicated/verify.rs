//! `replicated verify`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use replicated::maintenance::{self, MaintainError};
use replicated::restore::{DEFAULT_PARALLELISM, Target};
use replicated::store::{Listed, Store};
use replicated::types::{TimestampMs, Txid};
use replicated::verify::{self, Outcome, Point, PointReport, Report, Scope, Verifier, VerifyError};
use serde_json::{Value, json};

use crate::Failure;
use crate::against::{self, Against};
use crate::integrity::IntegrityCheck;
use crate::private::PrivateFolder;
use crate::store_flags::StoreFlags;
use crate::text;
use crate::values::{duration, number, timestamp, txid};

/// Find out whether a bucket holds what it promises: read and verify it, restore states of it, compare it with the live database
///
/// Nothing is written to the bucket. Exit codes: 0 verified, 1 something is wrong, 2 wrong usage, 3 could not be checked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The replica: s3://bucket/path, gs://bucket/path, abs://account@container/path or file:///path
    url: String,
    /// Any state of the last so much time must be there: as `replicated maintain` is told
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    history: Duration,
    /// Within the last so much of it, each upload [default: all of --history]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    exact: Option<Duration>,
    /// Read what is older than that as well, each file by itself
    #[arg(long)]
    all: bool,
    /// Read the newest state's files alone, and restore nothing
    #[arg(long, conflicts_with_all = ["all", "points", "txid", "timestamp", "against"])]
    light: bool,
    /// Restore so many more states, chosen at random, beside the newest and the oldest
    #[arg(long, value_name = "N", default_value_t = 0)]
    points: usize,
    /// Restore the state right after this TXID as well; may be given several times
    #[arg(long, value_name = "HEX", value_parser = txid)]
    txid: Vec<Txid>,
    /// Restore the last state at or before this time as well, such as "yesterday 14:30"; may be given several times
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    timestamp: Vec<TimestampMs>,
    /// Restore nothing but what --txid, --timestamp, --points and --against ask for
    #[arg(long)]
    no_restore: bool,
    /// What SQLite is to check of each state that is restored
    #[arg(long, value_name = "HOW", value_enum, default_value_t = IntegrityCheck::Full)]
    integrity_check: IntegrityCheck,
    /// Compare the newest state with this database, which may be in use
    #[arg(long, value_name = "DATABASE")]
    against: Option<PathBuf>,
    /// Call it wrong where the database goes on from a newest state that is older than this
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "against")]
    max_lag: Option<Duration>,
    /// Where states are restored to, one at a time [default: the system's, TMPDIR]
    #[arg(long, value_name = "FOLDER")]
    temp_dir: Option<PathBuf>,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PARALLELISM as u64, value_parser = number(1..=128))]
    parallelism: u64,
    /// Memory for what was asked for and for comparing levels with each other, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = number(8..=65536))]
    max_memory_mib: u64,
    /// Write the result to standard output as JSON
    #[arg(long)]
    json: bool,
    /// Write nothing but errors
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    store: StoreFlags,
}

impl Args {
    fn scope(&self) -> Result<Scope, Failure> {
        let exact = self.exact.unwrap_or(self.history);
        if exact > self.history {
            return Err(Failure::Usage("--exact is longer than --history".to_owned()));
        }
        Ok(Scope {
            history: self.history,
            exact,
            everything: self.all,
            parallelism: usize::try_from(self.parallelism).unwrap_or(DEFAULT_PARALLELISM),
            max_memory_bytes: self.max_memory_mib << 20,
        })
    }

    fn points(&self, report: &Report, has_newest: bool) -> Vec<Point> {
        let mut points = Point::choose(report, self.points);
        points.retain(|point| point.why == "random" || !self.no_restore);
        points.retain(|point| point.why != "newest" || !has_newest);
        points.extend(self.txid.iter().map(|txid| Point { target: Target::Txid(*txid), why: "txid" }));
        points.extend(self.timestamp.iter().map(|at| Point { target: Target::Timestamp(*at), why: "timestamp" }));
        points
    }
}

/// All that was found out.
struct Found {
    report: Report,
    points: Vec<PointReport>,
    against: Option<Against>,
    elapsed: Duration,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let scope = args.scope()?;
    if let Some(missing) = args.against.as_ref().filter(|path| !path.is_file()) {
        return Err(Failure::Usage(format!("--against: {} is no file", missing.display())));
    }
    let folder = args.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
    if !folder.is_dir() {
        return Err(Failure::Usage(format!("--temp-dir: {} is no folder", folder.display())));
    }
    let store = args.store.open(&args.url)?;
    let verifier = Verifier::new(Arc::clone(&store), scope);
    let found = match find(args, &verifier, &folder) {
        Ok(found) => found,
        Err(error) => return Err(not_checked(args, &*store, &error)),
    };
    let outcome = found.report.outcome();
    if args.json {
        text::to_stdout_json(&as_json(&*store, &found));
    } else if !args.quiet {
        text::to_stdout(&as_text(args, &*store, &found));
    }
    match outcome {
        Outcome::Verified => Ok(()),
        Outcome::Wrong => {
            text::to_stderr(&wrong(&found.report, &*store));
            Err(Failure::Told(1))
        }
        Outcome::NotChecked => {
            text::to_stderr(&format!("error: {} could not be checked\n{}", store.url(), unlooked(&found.report)));
            Err(Failure::Told(3))
        }
    }
}

fn find(args: &Args, verifier: &Verifier, folder: &Path) -> Result<Found, VerifyError> {
    let started = Instant::now();
    let mut report = if args.light { verify::light(verifier)? } else { verify::read(verifier, maintenance::now())? };
    let (mut points, mut compared) = (Vec::new(), None);
    if !args.light && !report.states.is_empty() {
        match PrivateFolder::make(folder) {
            Ok(private) => {
                let private = private.path();
                if let Some(database) = &args.against {
                    let most_bytes = args.max_memory_mib << 20;
                    let (against, point) =
                        against::compare(verifier, database, private, most_bytes, args.integrity_check, args.max_lag, &mut report);
                    compared = Some(against);
                    points.extend(point);
                }
                let chosen = args.points(&report, !points.is_empty());
                let look = |_: &Point, path: &Path| args.integrity_check.run(path);
                points.extend(verify::restore_points(verifier, &chosen, private, &look, &mut report)?);
            }
            Err(error) => {
                report.not_checked.push(format!("no state was restored: {}: {error}; choose another --temp-dir", folder.display()))
            }
        }
    }
    Ok(Found { report, points, against: compared, elapsed: started.elapsed() })
}

fn not_checked(args: &Args, store: &dyn Store, error: &VerifyError) -> Failure {
    let of_store = match error {
        VerifyError::Store(error) | VerifyError::Maintenance(MaintainError::Store(error)) => Some(error),
        _ => None,
    };
    let (why, advice) = text::apart(error, of_store, error.advice().to_owned(), store.url());
    let mut message = format!("error: {} could not be checked\n  why: {why}\n", store.url());
    if !advice.is_empty() {
        message.push_str(&format!("  try: {advice}\n"));
    }
    text::to_stderr(&message);
    if args.json {
        text::to_stdout_json(&json!({
            "status": Outcome::NotChecked.name(),
            "url": store.url(),
            "findings": [],
            "not_checked": [why],
            "advice": advice,
        }));
    }
    Failure::Told(3)
}

fn wrong(report: &Report, store: &dyn Store) -> String {
    let count = report.findings.len() + report.more_findings;
    let mut out = format!(
        "error: {}: {}\n",
        store.url(),
        if count == 1 { "1 thing is wrong".to_owned() } else { format!("{count} things are wrong") }
    );
    for finding in &report.findings {
        let object = finding.object.map_or_else(String::new, |object| format!("{object}: "));
        out.push_str(&format!("  {object}{}\n    try: {}\n", finding.what, finding.advice));
    }
    if report.more_findings > 0 {
        out.push_str(&format!("  and {} more\n", report.more_findings));
    }
    out + &unlooked(report)
}

fn unlooked(report: &Report) -> String {
    report.not_checked.iter().map(|what| format!("  not checked: {what}\n")).collect()
}

fn as_text(args: &Args, store: &dyn Store, found: &Found) -> String {
    let Found { report, points, against, elapsed } = found;
    let verdict = match report.outcome() {
        Outcome::Verified if args.light => "the newest state's files are good",
        Outcome::Verified => "verified",
        Outcome::Wrong => "something is wrong",
        Outcome::NotChecked => "not all could be checked",
    };
    let mut out = format!("{}: {verdict}\n", store.url());
    let mut line = |name: &str, what: String| out.push_str(&format!("  {name:<9} {what}\n"));
    let newest = report.newest.map_or_else(String::new, |newest| format!(", up to TXID {}{}", newest.name.max_txid, at(&newest)));
    line("bucket", format!("{}, {}{newest}", text::count(report.files, "file"), text::size(report.bytes)));
    if let (Some(first), Some(last), false) = (report.states.first(), report.states.last(), args.light) {
        let floor = report.floor.map_or_else(String::new, |floor| at(&floor));
        line("window", format!("{}, TXID {first}{floor} to {last}", text::count(report.states.len(), "state")));
    }
    let old =
        if report.files_not_promised > 0 { format!("; {} more not needed for that", report.files_not_promised) } else { String::new() };
    let gone = if report.files_gone > 0 { format!("; {} gone meanwhile", report.files_gone) } else { String::new() };
    line("read", format!("{}, {}, every checksum{old}{gone}", text::count(report.files_read, "file"), text::size(report.bytes_read)));
    match report.compared_one_page_of {
        _ if report.files_read == 0 => {}
        0 => {}
        1 => line("levels", "compared with each other, page by page".to_owned()),
        of => line("levels", format!("compared with each other, one page of {of} (--max-memory-mib)")),
    }
    for point in points {
        let problem = point.problem.as_ref().map_or_else(
            || match args.integrity_check {
                IntegrityCheck::None => "restored".to_owned(),
                check => format!("restored, SQLite's {} check finds nothing", check.name()),
            },
            |_| "NOT RESTORED, or damaged".to_owned(),
        );
        let size = point.restored.as_ref().map_or_else(String::new, |restored| format!(", {}", text::size(restored.database_bytes())));
        line(point.point.why, format!("{}: {problem}{size}, {}", named(point), text::elapsed(point.elapsed)));
    }
    if let Some(against) = against {
        line("against", against.as_text());
    }
    for kept in &report.kept {
        line("kept", format!("TXID {}: {}", kept.txid, kept.why));
    }
    for note in &report.notes {
        line("note", note.clone());
    }
    line("took", text::elapsed(*elapsed));
    out
}

fn at(file: &Listed) -> String {
    let about = if file.timestamp_is_exact { "" } else { "uploaded " };
    format!(" ({about}{}, {})", text::time(file.timestamp), text::age(file.timestamp))
}

fn named(point: &PointReport) -> String {
    match (point.restored.as_ref(), point.point.target) {
        (Some(restored), Target::Timestamp(at)) => format!("TXID {} for {}", restored.txid, text::time(at)),
        (Some(restored), _) => format!("TXID {}", restored.txid),
        (None, Target::Txid(txid)) => format!("TXID {txid}"),
        (None, Target::Timestamp(at)) => text::time(at),
        (None, Target::Latest) => "the newest".to_owned(),
    }
}

fn as_json(store: &dyn Store, found: &Found) -> Value {
    let Found { report, points, against, elapsed } = found;
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "kind": finding.kind.name(),
                "object": finding.object.map(|object| object.to_string()),
                "what": finding.what,
                "advice": finding.advice,
            })
        })
        .collect();
    let points: Vec<Value> = points
        .iter()
        .map(|point| {
            let restored = point.restored.as_ref();
            json!({
                "why": point.point.why,
                "txid": restored.map(|restored| restored.txid).or(if let Target::Txid(txid) = point.point.target { Some(txid) } else { None }).map(|t| t.to_string()),
                "asked_timestamp": if let Target::Timestamp(at) = point.point.target { Some(at.to_rfc3339()) } else { None },
                "timestamp": restored.map(|restored| restored.timestamp.to_rfc3339()),
                "database_bytes": restored.map(replicated::restore::Report::database_bytes),
                "problem": point.problem,
                "elapsed_ms": u64::try_from(point.elapsed.as_millis()).unwrap_or(u64::MAX),
            })
        })
        .collect();
    json!({
        "status": report.outcome().name(),
        "url": store.url(),
        "files": report.files,
        "bytes": report.bytes,
        "files_read": report.files_read,
        "bytes_read": report.bytes_read,
        "files_not_promised": report.files_not_promised,
        "files_gone": report.files_gone,
        "newest": report.newest.map(|newest| json!({
            "txid": newest.name.max_txid.to_string(),
            "timestamp": newest.timestamp.to_rfc3339(),
            "timestamp_is_exact": newest.timestamp_is_exact,
        })),
        "floor": report.floor.map(|floor| floor.name.to_string()),
        "states": report.states.len(),
        "oldest_state": report.states.first().map(ToString::to_string),
        "newest_state": report.states.last().map(ToString::to_string),
        "kept": report.kept.iter().map(|kept| json!({ "txid": kept.txid.to_string(), "why": kept.why })).collect::<Vec<_>>(),
        "compared_one_page_of": report.compared_one_page_of,
        "restored": points,
        "against": against.as_ref().map(Against::as_json),
        "findings": findings,
        "more_findings": report.more_findings,
        "not_checked": report.not_checked,
        "notes": report.notes,
        "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
    })
}
