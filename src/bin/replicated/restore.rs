//! `replicated restore`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use replicated::restore::{
    self, DEFAULT_MAX_MEMORY_BYTES, DEFAULT_PARALLELISM, Plan, PlanError, Progress, Report, RestoreError, RestoreOptions, Target,
};
use replicated::store::Store;
use replicated::types::{TimestampMs, Txid};
use serde_json::{Value, json};

use crate::Failure;
use crate::generation;
use crate::integrity::IntegrityCheck;
use crate::store_flags::StoreFlags;
use crate::text;
use crate::values::{duration, number, timestamp, txid};

/// Restore a database from a bucket, completely or not at all
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The replica: s3://bucket/path, gs://bucket/path, abs://account@container/path or file:///path
    url: String,
    /// The file to restore to; must not exist, or be empty
    #[arg(short, value_name = "PATH", required_unless_present = "dry_run")]
    pub(crate) output: Option<PathBuf>,
    /// Restore the state right after this TXID (hexadecimal) instead of the latest
    #[arg(long, value_name = "HEX", value_parser = txid, conflicts_with = "timestamp")]
    txid: Option<Txid>,
    /// Restore the last state at or before this time: 2026-11-22T13:49:05.448Z, "2 hours ago", "yesterday 14:30"
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    pub(crate) timestamp: Option<TimestampMs>,
    /// Do nothing, successfully, if the output exists
    #[arg(long)]
    if_db_not_exists: bool,
    /// Do nothing, successfully, if the bucket has nothing
    #[arg(long)]
    pub(crate) if_replica_exists: bool,
    /// Replace an existing output; its -wal, -shm and -journal are removed
    #[arg(long)]
    force: bool,
    /// Only show what would be read
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Let SQLite check the database before it is put in place
    #[arg(long, value_enum, default_value_t = IntegrityCheck::None, value_name = "none|quick|full", hide_possible_values = true)]
    pub(crate) integrity_check: IntegrityCheck,
    /// Requests at once, each of up to 4 MiB
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PARALLELISM as u64, value_parser = number(1..=128))]
    parallelism: u64,
    /// Memory for what was asked for and is not decoded yet, in MiB
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_MAX_MEMORY_BYTES >> 20, value_parser = number(8..=65536))]
    max_memory_mib: u64,
    /// Threads that decode [default: one for each core, up to 8]
    #[arg(long, value_name = "N", value_parser = number(1..=64))]
    threads: Option<u64>,
    /// Read large files only where newer ones have not replaced their pages; their checksums cannot be verified then
    #[arg(long)]
    skip_superseded: bool,
    /// Of a replica of Litestream 0.3: the generation, 16 hexadecimal digits [default: the one with the latest state]
    #[arg(long, value_name = "HEX", value_parser = hexadecimal, conflicts_with = "txid")]
    pub(crate) generation: Option<u64>,
    /// With --generation: the state at the end of the log of this number (hexadecimal)
    #[arg(long, value_name = "HEX", value_parser = hexadecimal, requires = "generation", conflicts_with = "timestamp")]
    pub(crate) index: Option<u64>,
    /// Keep the output current until stopped, as a copy to read from; it goes on where it was left
    #[arg(long, conflicts_with_all = ["txid", "timestamp", "generation", "dry_run", "if_db_not_exists"])]
    follow: bool,
    /// With --follow: the pause between two looks into the bucket
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration, requires = "follow")]
    every: Duration,
    /// Write the result to standard output as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Write nothing but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    store: StoreFlags,
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| "that is no hexadecimal number".to_owned())
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(output) = args.output.as_ref().filter(|output| args.if_db_not_exists && output.symlink_metadata().is_ok()) {
        return skipped(args, &format!("{} exists already", output.display()));
    }
    let store = args.store.open(&args.url)?;
    if let Some(output) = args.output.as_ref().filter(|_| args.follow) {
        return crate::follow::run(args, &*store, output, args.every);
    }
    let target = match (args.txid, args.timestamp) {
        (Some(txid), _) => Target::Txid(txid),
        (None, Some(at)) => Target::Timestamp(at),
        (None, None) => Target::Latest,
    };
    if args.generation.is_some() {
        return generation::run(args, &*store).map_err(|error| failure(args, &*store, &error));
    }
    let outcome = match &args.output {
        Some(output) if !args.dry_run => restore_to(args, &*store, target, output),
        _ => restore::plan_restore(&*store, target).map(|plan| show_plan(args, &*store, &plan)),
    };
    let outcome = match outcome {
        // A bucket that Litestream 0.3 has left, or what 0.3 has left in a bucket of 0.5, from before that.
        Err(RestoreError::Generations { .. }) if args.txid.is_none() => generation::run(args, &*store),
        Err(error @ RestoreError::Plan { source: PlanError::BeforeOldest { .. }, .. }) => match generation::run(args, &*store) {
            Err(RestoreError::Generation { .. }) => Err(error),
            older => older,
        },
        outcome => outcome,
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(error) if error.is_empty_bucket() && args.if_replica_exists => {
            skipped(args, &format!("{} has nothing to restore", store.url()))
        }
        Err(error) => Err(failure(args, &*store, &error)),
    }
}

impl Args {
    /// How to restore, by the flags.
    pub(crate) fn options(&self, output: &Path) -> RestoreOptions<'static> {
        RestoreOptions {
            overwrite: self.force,
            parallelism: usize::try_from(self.parallelism).unwrap_or(DEFAULT_PARALLELISM),
            max_memory_bytes: self.max_memory_mib << 20,
            threads: self.threads.and_then(|threads| usize::try_from(threads).ok()).unwrap_or_else(restore::default_threads),
            skip_superseded: self.skip_superseded,
            ..RestoreOptions::latest(output)
        }
    }
}

fn restore_to(args: &Args, store: &dyn Store, target: Target, output: &Path) -> Result<(), RestoreError> {
    let started = Instant::now();
    let bar = Bar::new(args.quiet || args.json);
    let check = |path: &Path| {
        bar.checking(args.integrity_check);
        args.integrity_check.run(path)
    };
    let options = RestoreOptions { target, progress: Some(&bar), check: Some(&check), ..args.options(output) };
    let outcome = restore::restore(store, &options);
    bar.end();
    show_report(args, store, output, &outcome?, started);
    Ok(())
}

/// On a terminal, on stderr.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(is_hidden: bool) -> Self {
        if is_hidden || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        // Fits into 80 columns, message included.
        let style =
            ProgressStyle::with_template("  {bar:24} {percent:>3}% of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left{msg}");
        Self(ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    }

    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }

    pub(crate) fn checking(&self, check: IntegrityCheck) {
        if check != IntegrityCheck::None {
            self.0.set_message("; checking");
            self.0.tick();
        }
    }
}

impl Progress for Bar {
    fn planned(&self, plan: &Plan) {
        self.0.set_length(plan.size_bytes());
        self.0.set_position(0);
    }

    fn applied(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

/// The result of a restore.
pub(crate) fn report_json(args: &Args, store: &dyn Store, output: &Path, report: &Report, started: Instant) -> Value {
    json!({
        "status": "restored",
        "url": store.url(),
        "output": output.to_string_lossy(),
        "txid": report.txid.to_string(),
        "max_txid_in_bucket": report.max_txid_in_bucket.to_string(),
        "timestamp": report.timestamp.to_rfc3339(),
        "asked_timestamp": args.timestamp.map(TimestampMs::to_rfc3339),
        "page_size": report.page_size.get(),
        "pages": report.commit_pages,
        "database_bytes": report.database_bytes(),
        "files": report.files.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "read_bytes": report.read_bytes,
        "files_read_in_part": report.files_in_part,
        "resumable": !args.follow && report.not_resumable.is_none() && report.txid == report.max_txid_in_bucket,
        "elapsed_ms": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "integrity_check": args.integrity_check.name(),
    })
}

/// The same, as the flags want it.
pub(crate) fn show_report(args: &Args, store: &dyn Store, output: &Path, report: &Report, started: Instant) {
    let elapsed = started.elapsed();
    if args.json {
        return text::to_stdout_json(&report_json(args, store, output, report, started));
    }
    if args.quiet {
        return;
    }
    let behind = if report.txid < report.max_txid_in_bucket {
        format!(", not the latest: the bucket goes up to {}", report.max_txid_in_bucket)
    } else {
        ", the latest".to_owned()
    };
    let checksums = match report.files_in_part {
        0 => "every checksum of the files read".to_owned(),
        in_part => format!("every checksum but of {} read in part (--skip-superseded)", text::count(in_part, "file")),
    };
    let checked = match args.integrity_check {
        IntegrityCheck::None => checksums,
        check => format!("{checksums}, and SQLite's {} integrity check", check.name()),
    };
    let speed = report.read_bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let asked = args.timestamp.map(|at| format!(", the last at or before {}", text::time(at))).unwrap_or_default();
    let next = match &report.not_resumable {
        _ if args.follow => "no, it follows the bucket and is there to be read".to_owned(),
        Some(why) => format!("its position could not be kept beside it ({why}): see `replicated adopt`"),
        None if report.txid < report.max_txid_in_bucket => "nothing until you decide with `replicated adopt`".to_owned(),
        None => "goes on from here when it is opened with this replica".to_owned(),
    };
    text::to_stdout(&format!(
        "Restored {output} from {url}\n\
         \x20 state     TXID {txid}{behind}\n\
         \x20 time      {time} ({age}){asked}\n\
         \x20 size      {size}, {pages} pages of {page_size} bytes\n\
         \x20 read      {read} in {files}, {took} ({speed}/s)\n\
         \x20 verified  {checked}\n\
         \x20 replicates {next}\n",
        output = output.display(),
        url = store.url(),
        txid = report.txid,
        time = text::time(report.timestamp),
        age = text::age(report.timestamp),
        size = text::size(report.database_bytes()),
        pages = report.commit_pages,
        page_size = report.page_size,
        read = text::size(report.read_bytes),
        files = text::count(report.files.len(), "file"),
        took = text::elapsed(elapsed),
        speed = text::size(speed as u64),
    ));
}

fn show_plan(args: &Args, store: &dyn Store, plan: &Plan) {
    if args.json {
        return text::to_stdout_json(&json!({
            "status": "planned",
            "url": store.url(),
            "asked_timestamp": args.timestamp.map(TimestampMs::to_rfc3339),
            "txid": plan.txid.to_string(),
            "max_txid_in_bucket": plan.max_txid_in_bucket.to_string(),
            "read_bytes": plan.size_bytes(),
            "files": plan.files.iter().map(|file| json!({ "name": file.name.to_string(), "size_bytes": file.size_bytes })).collect::<Vec<_>>(),
        }));
    }
    if args.quiet {
        return;
    }
    let asked = args.timestamp.map(|at| format!(", the last state at or before {},", text::time(at))).unwrap_or_default();
    let mut shown = format!("Would restore TXID {}{asked} from {}\n", plan.txid, store.url());
    for file in &plan.files {
        shown.push_str(&format!("  level {}  {}  {:>10}\n", file.name.level, file.name.file_name(), text::size(file.size_bytes)));
    }
    shown.push_str(&format!(
        "Would read {} in {}; the newest TXID of the bucket is {}\n",
        text::size(plan.size_bytes()),
        text::count(plan.files.len(), "file"),
        plan.max_txid_in_bucket
    ));
    text::to_stdout(&shown);
}

pub(crate) fn skipped(args: &Args, why: &str) -> Result<(), Failure> {
    if args.json {
        text::to_stdout_json(&json!({ "status": "skipped", "why": why }));
    } else if !args.quiet {
        text::to_stdout(&format!("Nothing restored: {why}\n"));
    }
    Ok(())
}

fn failure(args: &Args, store: &dyn Store, error: &RestoreError) -> Failure {
    let what = match &args.output {
        Some(output) if !args.dry_run => format!("cannot restore {} to {}", store.url(), output.display()),
        _ => format!("cannot plan a restore of {}", store.url()),
    };
    let advice = match error {
        RestoreError::Generations { .. } if args.txid.is_some() => {
            "it has no TXIDs: ask for a state with --timestamp, or with --generation and --index".to_owned()
        }
        error => error.advice(),
    };
    let (why, advice) = text::apart(error, error.store(), advice, store.url());
    Failure::Failed { what, why, advice, json: args.json }
}
