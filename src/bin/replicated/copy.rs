//! `replicated copy`.

use std::time::Duration;

use replicated::copy::{self, Copier, CopyError, DEFAULT_PARALLELISM, Options, Report};
use replicated::store::Store;
use serde_json::{Value, json};

use crate::Failure;
use crate::rounds;
use crate::store_flags::StoreFlags;
use crate::text;
use crate::values::{duration, number};

/// Copy a bucket to another store, or keep a mirror of it there
///
/// Only what is missing there is copied, so that it may be run again at any time. Each file is verified on its way, and the destination can be restored at
/// every instant. How the stores are reached may stand in the URLs: s3://bucket/path?endpoint=...&region=...&profile=...
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The bucket to copy: s3://bucket/path, gs://bucket/path, abs://account@container/path or file:///path
    from: String,
    /// Where to: as the first one
    to: String,
    /// Delete at the destination what the source no longer has, once all else is there
    #[arg(long)]
    mirror: bool,
    /// Compare the checksums of all files that both have, and not only their sizes and some checksums
    #[arg(long)]
    compare_all: bool,
    /// Go on, with a round every so often, such as 1m; without it there is one round
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    every: Option<Duration>,
    /// Only show what would be done
    #[arg(long, conflicts_with = "every")]
    dry_run: bool,
    /// Requests at once
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PARALLELISM as u64, value_parser = number(1..=128))]
    parallelism: u64,
    /// Memory for what is on its way, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = number(8..=65536))]
    max_memory_mib: u64,
    /// Write what is done to standard output as JSON, one document a round
    #[arg(long)]
    json: bool,
    /// Write nothing but errors
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    store: StoreFlags,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    rounds::check(args.every)?;
    let (from, to) = (args.store.open(&args.from)?, args.store.open(&args.to)?);
    if from.url() == to.url() {
        return Err(Failure::Usage(format!("{} is both the source and the destination", from.url())));
    }
    let options = Options {
        mirror: args.mirror,
        compares_all: args.compare_all,
        parallelism: usize::try_from(args.parallelism).unwrap_or(DEFAULT_PARALLELISM),
        max_memory_bytes: args.max_memory_mib << 20,
    };
    let mut copier = Copier::new(std::sync::Arc::clone(&from), std::sync::Arc::clone(&to), options);
    rounds::run(args.every, || once(args, &*from, &*to, &mut copier))
}

fn once(args: &Args, from: &dyn Store, to: &dyn Store, copier: &mut Copier) -> Result<(), Failure> {
    let done = if args.dry_run { copy::plan } else { copy::copy };
    let report = done(copier).map_err(|error| failure(args, from, to, &error))?;
    if args.json {
        text::to_stdout_json(&as_json(args, from, to, &report));
    } else if !args.quiet {
        text::to_stdout(&as_text(args, from, to, &report));
    }
    if report.problems.is_empty() && report.held_back.is_empty() {
        return Ok(());
    }
    let mut why = report.problems.clone();
    if let Some(first) = report.held_back.first() {
        let count = text::count(report.held_back.len(), "file");
        why.push(format!(
            "{count} from {first} on would leave a gap at the destination and {} held back",
            if report.held_back.len() == 1 { "is" } else { "are" }
        ));
    }
    Err(Failure::Failed {
        what: format!("not all of {} could be copied", from.url()),
        why: why.join("; "),
        advice: format!("See what is wrong with `replicated verify {}`; what is there at the destination is good", from.url()),
        // It has been written already.
        json: false,
    })
}

fn failure(args: &Args, from: &dyn Store, to: &dyn Store, error: &CopyError) -> Failure {
    let what = format!("cannot copy {} to {}", from.url(), to.url());
    let of_store = if let CopyError::Store(error) = error { Some(error) } else { None };
    // Which of the two it was stands in its words.
    let url = of_store.filter(|error| error.object.ends_with(to.url())).map_or_else(|| from.url(), |_| to.url());
    let (why, advice) = text::apart(error, of_store, error.advice().to_owned(), url);
    Failure::Failed { what, why, advice, json: args.json }
}

fn as_text(args: &Args, from: &dyn Store, to: &dyn Store, report: &Report) -> String {
    let (copies, deletes) = if args.dry_run { ("would copy", "would delete") } else { ("copied", "deleted") };
    let mut out = format!("{} to {}: {}, {}\n", from.url(), to.url(), text::count(report.files, "file"), text::size(report.bytes));
    if args.dry_run {
        for file in &report.copied {
            out.push_str(&format!("  {copies} {}, {}\n", file.name, text::size(file.size_bytes)));
        }
        for file in &report.deleted {
            out.push_str(&format!("  {deletes} {}, {}\n", file.name, text::size(file.size_bytes)));
        }
    }
    out.push_str(&format!(
        "  {copies} {}, {}; {} there already\n",
        text::count(report.copied.len(), "file"),
        text::size(report.copied_bytes()),
        report.same
    ));
    if !report.replaced.is_empty() {
        out.push_str(&format!(
            "  of these {} there and damaged\n",
            if report.replaced.len() == 1 { "1 was".to_owned() } else { format!("{} were", report.replaced.len()) }
        ));
    }
    if !report.deleted.is_empty() {
        out.push_str(&format!("  {deletes} {} that the source no longer has\n", text::count(report.deleted.len(), "file")));
    }
    if let Some(why) = &report.refused {
        out.push_str(&format!("  the destination does not let files be deleted that the source no longer has: {why}\n"));
    }
    match (report.newest, report.newest_of_source) {
        _ if args.dry_run => {}
        (Some(there), Some(here)) if there < here => {
            out.push_str(&format!("  the destination can be restored up to TXID {there}; the source goes on to {here}\n"));
        }
        (Some(there), _) => out.push_str(&format!("  the destination can be restored up to TXID {there}, the newest\n")),
        (None, _) => out.push_str("  the destination cannot be restored\n"),
    }
    out
}

fn as_json(args: &Args, from: &dyn Store, to: &dyn Store, report: &Report) -> Value {
    let files = |files: &[replicated::store::Listed]| -> Vec<Value> {
        files.iter().map(|file| json!({ "name": file.name.to_string(), "size_bytes": file.size_bytes })).collect()
    };
    let status = match (args.dry_run, report.problems.is_empty() && report.held_back.is_empty()) {
        (true, _) => "planned",
        (false, true) => "done",
        (false, false) => "incomplete",
    };
    json!({
        "status": status,
        "from": from.url(),
        "to": to.url(),
        "files": report.files,
        "bytes": report.bytes,
        "same": report.same,
        "copied": files(&report.copied),
        "copied_bytes": report.copied_bytes(),
        "replaced": report.replaced.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "deleted": files(&report.deleted),
        "newest": report.newest.map(|txid| txid.to_string()),
        "newest_of_source": report.newest_of_source.map(|txid| txid.to_string()),
        "held_back": report.held_back.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "refused": report.refused,
        "problems": report.problems,
    })
}
