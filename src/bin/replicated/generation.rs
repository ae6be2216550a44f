//! `replicated restore` of what Litestream 0.3 has left.

use std::path::Path;
use std::time::Instant;

use replicated::restore::generations::{self, GenerationPlan, GenerationReport, GenerationTarget, Moment};
use replicated::restore::{RestoreError, RestoreOptions};
use replicated::store::Store;
use serde_json::json;

use crate::integrity::IntegrityCheck;
use crate::restore::Args;
use crate::text;

/// What the flags ask for of such a replica.
pub(crate) fn target(args: &Args) -> GenerationTarget {
    let moment = match (args.index, args.timestamp) {
        (Some(index), _) => Moment::Index(index),
        (None, Some(at)) => Moment::Timestamp(at),
        (None, None) => Moment::Latest,
    };
    GenerationTarget { generation: args.generation, moment }
}

/// Restores it, or shows what would be read.
pub(crate) fn run(args: &Args, store: &dyn Store) -> Result<(), RestoreError> {
    let target = target(args);
    let Some(output) = args.output.as_ref().filter(|_| !args.dry_run) else {
        return generations::plan_generation(store, &target).map(|plan| show_plan(args, store, &plan));
    };
    let started = Instant::now();
    let check = |path: &Path| args.integrity_check.run(path);
    let options = RestoreOptions { check: Some(&check), ..args.options(output) };
    let report = generations::restore_generation(store, &options, &target)?;
    show_report(args, store, output, &report, started);
    Ok(())
}

fn show_report(args: &Args, store: &dyn Store, output: &Path, report: &GenerationReport, started: Instant) {
    let GenerationReport { plan, index, offset, page_size, size_pages } = report;
    let database_bytes = u64::from(*size_pages) * u64::from(page_size.get());
    let elapsed = started.elapsed();
    if args.json {
        return text::to_stdout_json(&json!({
            "status": "restored",
            "url": store.url(),
            "output": output.to_string_lossy(),
            "generation": format!("{:016x}", plan.generation),
            "index": format!("{index:08x}"),
            "offset": offset,
            "timestamp": plan.timestamp().to_rfc3339(),
            "asked_timestamp": args.timestamp.map(replicated::types::TimestampMs::to_rfc3339),
            "page_size": page_size.get(),
            "pages": size_pages,
            "database_bytes": database_bytes,
            "files": plan.files().map(ToString::to_string).collect::<Vec<_>>(),
            "read_bytes": plan.size_bytes(),
            "resumable": false,
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "integrity_check": args.integrity_check.name(),
        }));
    }
    if args.quiet {
        return;
    }
    text::to_stdout(&format!(
        "Restored {output} from {url}, a replica of Litestream 0.3\n\
         \x20 state     generation {generation:016x}, log {index:08x} up to byte {offset}\n\
         \x20 time      {time} ({age}), when that was stored\n\
         \x20 size      {size}, {size_pages} pages of {page_size} bytes\n\
         \x20 read      {read} in {files}, {took}\n\
         \x20 verified  every frame of the logs{checked}\n\
         \x20 replicates as a new database: give it a replica of its own\n",
        output = output.display(),
        url = store.url(),
        generation = plan.generation,
        time = text::time(plan.timestamp()),
        age = text::age(plan.timestamp()),
        size = text::size(database_bytes),
        read = text::size(plan.size_bytes()),
        files = text::count(plan.files().count(), "file"),
        took = text::elapsed(elapsed),
        checked = match args.integrity_check {
            IntegrityCheck::None => String::new(),
            check => format!(", and SQLite's {} integrity check", check.name()),
        },
    ));
}

fn show_plan(args: &Args, store: &dyn Store, plan: &GenerationPlan) {
    if args.json {
        return text::to_stdout_json(&json!({
            "status": "planned",
            "url": store.url(),
            "generation": format!("{:016x}", plan.generation),
            "timestamp": plan.timestamp().to_rfc3339(),
            "read_bytes": plan.size_bytes(),
            "files": plan.files().map(|file| json!({ "name": file.to_string(), "size_bytes": file.size_bytes })).collect::<Vec<_>>(),
        }));
    }
    if args.quiet {
        return;
    }
    let mut shown = format!("Would restore generation {:016x} of {}, a replica of Litestream 0.3\n", plan.generation, store.url());
    for file in plan.files() {
        shown.push_str(&format!("  {file}  {:>10}  {}\n", text::size(file.size_bytes), text::time(file.timestamp)));
    }
    text::to_stdout(&shown);
}
