//! `replicated maintain`.

use std::sync::Arc;
use std::time::Duration;

use replicated::config::parse_duration;
use replicated::maintenance::{self, MaintainError, Maintainer, Policy, Report};
use replicated::store::{Listed, Store};
use replicated::types::Txid;
use serde_json::{Value, json};

use crate::Failure;
use crate::store_flags::StoreFlags;
use crate::text;

/// Merge, make snapshots and delete what no restore within the window needs: once, or as a service
///
/// Any number of processes may be told to: one of them works at a time, the others say who does.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The replica: s3://bucket/path, gs://bucket/path, abs://account@container/path or file:///path
    url: String,
    /// Go on, with a round every so often, such as 30s; without it there is one round
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    every: Option<Duration>,
    /// Any state of the last so much time can be restored
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    history: Duration,
    /// Within the last so much of it, to each upload; before that to a span of level 1 [default: all of --history]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    exact: Option<Duration>,
    /// What nothing needs any more is kept for so much longer, for restores and readers that are under way
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    grace: Duration,
    /// The time that a file of level 1, 2 and 3 spans
    #[arg(long, value_name = "L1,L2,L3", default_value = "30s,5m,1h", value_parser = spans)]
    spans: Spans,
    /// Make a snapshot when the newest one is so old, where anything has changed
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    snapshot_every: Duration,
    /// Make one as well when the changes since are so large, in hundredths of its size
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    snapshot_change: u32,
    /// What the merging may take in memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u64).range(8..=1_048_576))]
    max_memory: u64,
    /// Delete nothing
    #[arg(long)]
    no_delete: bool,
    /// Only show what would be done
    #[arg(long, conflicts_with = "every")]
    dry_run: bool,
    /// Let the states go that a power loss took from the database, up to this TXID: they are kept until then
    #[arg(long, value_name = "TXID", value_parser = txid)]
    acknowledge: Option<Txid>,
    /// Write what is done to standard output as JSON, one document a round
    #[arg(long)]
    json: bool,
    /// Write nothing but errors
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    store: StoreFlags,
}

#[derive(Clone, Debug)]
struct Spans([Duration; maintenance::COMPACTED_LEVELS]);

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
}

fn spans(text: &str) -> Result<Spans, String> {
    let spans: Vec<Duration> = text.split(',').map(|part| parse_duration(part.trim())).collect::<Result<_, _>>()?;
    let spans =
        <[Duration; maintenance::COMPACTED_LEVELS]>::try_from(spans).map_err(|_| "three durations, such as 30s,5m,1h".to_owned())?;
    let ascend = spans.windows(2).all(|pair| pair.first() <= pair.last()) && spans.iter().all(|span| !span.is_zero());
    if ascend { Ok(Spans(spans)) } else { Err("the spans must not be zero, and not become shorter".to_owned()) }
}

fn txid(text: &str) -> Result<Txid, String> {
    Txid::from_hex(text).ok_or_else(|| "a TXID is 1 to 16 hexadecimal digits and not zero".to_owned())
}

impl Args {
    fn policy(&self) -> Result<Policy, Failure> {
        let exact = self.exact.unwrap_or(self.history);
        if exact > self.history {
            return Err(Failure::Usage("--exact is longer than --history".to_owned()));
        }
        if self.every.is_some_and(|every| every < Duration::from_secs(1)) {
            return Err(Failure::Usage("--every must be 1s or more".to_owned()));
        }
        if self.snapshot_every.is_zero() {
            return Err(Failure::Usage("--snapshot-every must not be zero".to_owned()));
        }
        Ok(Policy {
            history: self.history,
            exact,
            grace: self.grace,
            spans: self.spans.0,
            snapshot_every: self.snapshot_every,
            snapshot_change_percent: self.snapshot_change,
            max_memory_bytes: self.max_memory << 20,
            deletes: !self.no_delete,
        })
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let policy = args.policy()?;
    let store = args.store.open(&args.url)?;
    if let Some(upto) = args.acknowledge
        && !args.dry_run
    {
        let gone = maintenance::let_go(&store, upto).map_err(|error| failure(args, &*store, &error))?;
        for kept in gone.iter().filter(|_| !args.quiet && !args.json) {
            text::to_stdout(&format!("TXID {} is not kept any longer ({})\n", kept.txid, kept.why));
        }
    }
    let mut maintainer = Maintainer::new(Arc::clone(&store), policy);
    let Some(every) = args.every else { return once(args, &*store, &mut maintainer) };
    loop {
        match once(args, &*store, &mut maintainer) {
            Ok(()) => {}
            // A service goes on: the store may be back, the other one may have ended.
            Err(Failure::Failed { what, why, advice, .. }) => {
                text::to_stderr(&format!("error: {what}\n  why: {why}\n"));
                if !advice.is_empty() {
                    text::to_stderr(&format!("  try: {advice}\n"));
                }
            }
            Err(other) => return Err(other),
        }
        std::thread::sleep(every);
    }
}

fn once(args: &Args, store: &dyn Store, maintainer: &mut Maintainer) -> Result<(), Failure> {
    let done = if args.dry_run { maintenance::plan } else { maintenance::maintain };
    let report = done(maintainer, maintenance::now()).map_err(|error| failure(args, store, &error))?;
    if args.json {
        text::to_stdout_json(&as_json(args, store, &report));
    } else if !args.quiet {
        text::to_stdout(&as_text(args, store, &report));
    }
    if report.problems.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed {
        what: format!("{} is not in order", store.url()),
        why: report.problems.join("; "),
        advice:
            "See what can be restored with `replicated list`; a new open of the database sends the full state where the newest cannot be"
                .to_owned(),
        // It has been written already.
        json: false,
    })
}

fn failure(args: &Args, store: &dyn Store, error: &MaintainError) -> Failure {
    let advice = match error {
        MaintainError::Busy { .. } => "Leave it to that process; where it was killed, wait until then".to_owned(),
        _ => String::new(),
    };
    Failure::Failed { what: format!("cannot maintain {}", store.url()), why: error.to_string(), advice, json: args.json }
}

fn total(files: &[Listed]) -> u64 {
    files.iter().map(|file| file.size_bytes).sum()
}

fn as_text(args: &Args, store: &dyn Store, report: &Report) -> String {
    let mut out = format!("{}: {}, {}\n", store.url(), text::count(report.files, "file"), text::size(report.bytes));
    let (makes, deletes) = if args.dry_run { ("would make", "would delete") } else { ("made", "deleted") };
    for made in &report.made {
        let sizes = if args.dry_run { String::new() } else { format!(" to {}", text::size(made.size_bytes)) };
        let why = made.why.map_or_else(String::new, |why| format!(": {why}"));
        out.push_str(&format!(
            "  {makes} {} of {}, {}{sizes}{why}\n",
            made.name,
            text::count(made.inputs, "file"),
            text::size(made.input_bytes)
        ));
    }
    if args.dry_run {
        for file in &report.deleted {
            out.push_str(&format!("  {deletes} {}, {}, {}\n", file.name, text::time(file.timestamp), text::size(file.size_bytes)));
        }
    }
    if !report.deleted.is_empty() {
        out.push_str(&format!("  {deletes} {}, {}\n", text::count(report.deleted.len(), "file"), text::size(total(&report.deleted))));
    }
    for kept in &report.kept {
        out.push_str(&format!("  keeps TXID {} until `--acknowledge {}`: {}\n", kept.txid, kept.txid, kept.why));
    }
    if let Some(why) = &report.refused {
        out.push_str(&format!("  the store does not let files be deleted that nothing needs any more: {why}\n"));
    }
    if report.made.is_empty() && report.deleted.is_empty() {
        out.push_str("  nothing to do\n");
    }
    out
}

fn as_json(args: &Args, store: &dyn Store, report: &Report) -> Value {
    let made: Vec<Value> = report
        .made
        .iter()
        .map(|made| {
            json!({
                "name": made.name.to_string(),
                "inputs": made.inputs,
                "input_bytes": made.input_bytes,
                "size_bytes": if args.dry_run { Value::Null } else { made.size_bytes.into() },
                "why": made.why,
            })
        })
        .collect();
    let deleted: Vec<Value> =
        report.deleted.iter().map(|file| json!({ "name": file.name.to_string(), "size_bytes": file.size_bytes })).collect();
    let kept: Vec<Value> = report.kept.iter().map(|kept| json!({ "txid": kept.txid.to_string(), "why": kept.why })).collect();
    json!({
        "status": if args.dry_run { "planned" } else { "done" },
        "url": store.url(),
        "files_before": report.files,
        "bytes_before": report.bytes,
        "made": made,
        "deleted": deleted,
        "deleted_bytes": total(&report.deleted),
        "floor": report.floor.map(|floor| floor.name.to_string()),
        "kept": kept,
        "refused": report.refused,
        "problems": report.problems,
    })
}
