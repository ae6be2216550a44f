//! `replicated maintain`.

use std::sync::Arc;
use std::time::Duration;

use replicated::config::Upkeep;
use replicated::maintenance::{self, MaintainError, Maintainer, Policy, Report};
use replicated::store::{Listed, Store};
use replicated::types::Txid;
use serde_json::{Value, json};

use crate::Failure;
use crate::rounds;
use crate::store_flags::StoreFlags;
use crate::text;
use crate::values::{duration, number, txid};

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
    #[arg(long, value_name = "DURATION", default_value = Upkeep::default_of("history"), value_parser = option("history"))]
    history: String,
    /// Within the last so much of it, to each upload; before that to a span of level 1 [default: all of --history]
    #[arg(long, value_name = "DURATION", value_parser = option("exact"))]
    exact: Option<String>,
    /// What nothing needs any more is kept for so much longer, for restores and readers that are under way
    #[arg(long, value_name = "DURATION", default_value = Upkeep::default_of("grace"), value_parser = option("grace"))]
    grace: String,
    /// The time that a file of level 1, 2 and 3 spans
    #[arg(long, value_name = "L1,L2,L3", default_value = Upkeep::default_of("spans"), value_parser = option("spans"))]
    spans: String,
    /// Make a snapshot when the newest one is so old, where anything has changed
    #[arg(long, value_name = "DURATION", default_value = Upkeep::default_of("snapshot_every"), value_parser = option("snapshot_every"))]
    snapshot_every: String,
    /// Make one as well when the changes since are so large, in hundredths of its size
    #[arg(long, value_name = "PERCENT", default_value = Upkeep::default_of("snapshot_change"), value_parser = option("snapshot_change"))]
    snapshot_change: String,
    /// What the merging may take in memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = number(8..=1_048_576))]
    max_memory_mib: u64,
    /// Delete nothing
    #[arg(long)]
    no_delete: bool,
    /// Read every snapshot and every file of level 1 to 3, and make those anew that are damaged
    #[arg(long)]
    repair: bool,
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

/// One of the options that the application has as well.
fn option(name: &'static str) -> impl Fn(&str) -> Result<String, String> + Clone {
    move |text| Upkeep::check(name, text).map(|()| text.to_owned())
}

impl Args {
    fn policy(&self) -> Result<Policy, Failure> {
        let mut upkeep = Upkeep::default();
        let given = [
            ("history", Some(&self.history)),
            ("exact", self.exact.as_ref()),
            ("grace", Some(&self.grace)),
            ("spans", Some(&self.spans)),
            ("snapshot_every", Some(&self.snapshot_every)),
            ("snapshot_change", Some(&self.snapshot_change)),
        ];
        for (name, text) in given.into_iter().filter_map(|(name, text)| Some((name, text?))) {
            upkeep.set(name, text).map_err(|why| Failure::Usage(format!("--{}: {why}", name.replace('_', "-"))))?;
        }
        upkeep.agrees().map_err(|(name, why)| Failure::Usage(format!("--{}: {why}", name.replace('_', "-"))))?;
        rounds::check(self.every)?;
        Ok(upkeep.policy(self.max_memory_mib << 20, !self.no_delete))
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
        if !args.quiet && !args.json {
            for kept in &gone {
                text::to_stdout(&format!("TXID {} is not kept any longer ({})\n", kept.txid, kept.why));
            }
            if gone.is_empty() {
                text::to_stdout(&format!("--acknowledge {upto}: no state up to that TXID was kept\n"));
            }
        }
    }
    let maintainer = Maintainer::new(Arc::clone(&store), policy);
    let mut maintainer = if args.repair { maintainer.examining() } else { maintainer };
    rounds::run(args.every, || once(args, &*store, &mut maintainer))
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
        advice: "See what can be restored with `replicated list` and `replicated verify`".to_owned(),
        // It has been written already.
        json: false,
    })
}

fn failure(args: &Args, store: &dyn Store, error: &MaintainError) -> Failure {
    let advice = match error {
        MaintainError::Busy { .. } => "Leave it to that process; where it was killed, wait until then".to_owned(),
        _ => String::new(),
    };
    let of_store = if let MaintainError::Store(error) = error { Some(error) } else { None };
    let (why, advice) = text::apart(error, of_store, advice, store.url());
    Failure::Failed { what: format!("cannot maintain {}", store.url()), why, advice, json: args.json }
}

fn total(files: &[Listed]) -> u64 {
    files.iter().map(|file| file.size_bytes).sum()
}

fn as_text(args: &Args, store: &dyn Store, report: &Report) -> String {
    let mut out = format!("{}: {}, {}\n", store.url(), text::count(report.files, "file"), text::size(report.bytes));
    let (makes, deletes) = if args.dry_run { ("would make", "would delete") } else { ("made", "deleted") };
    for what in &report.repaired {
        out.push_str(&format!("  was damaged: {what}\n"));
    }
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
        let hint = if report.files == 0 { ": there is nothing at this path yet, or it is not the one that is replicated to" } else { "" };
        out.push_str(&format!("  nothing to do{hint}\n"));
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
        "repaired": report.repaired,
        "refused": report.refused,
        "problems": report.problems,
    })
}
