//! `replicated list`.

use replicated::restore::{self, PlanError, Target};
use replicated::store::{Level, Listed, Store};
use serde_json::{Value, json};

use crate::Failure;
use crate::store_flags::StoreFlags;
use crate::text;

/// Show what a bucket has: levels, TXIDs, times, sizes, and what can be restored
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The replica: s3://bucket/path, gs://bucket/path, abs://account@container/path or file:///path
    url: String,
    /// Show the files of this level only: 0 what was uploaded, 1 to 8 compactions, 9 snapshots
    #[arg(long, value_name = "N", value_parser = level)]
    level: Option<Level>,
    /// Write to standard output as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreFlags,
}

fn level(text: &str) -> Result<Level, String> {
    text.parse().ok().and_then(Level::new).ok_or_else(|| "a level is a number from 0 to 9".to_owned())
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let store = args.store.open(&args.url)?;
    let all = match restore::catalogue(&*store) {
        Ok(listings) => listings,
        Err(error) => {
            let what = format!("cannot list {}", store.url());
            let (why, advice) = text::apart(&error, error.store(), error.advice(), store.url());
            return Err(Failure::Failed { what, why, advice, json: args.json });
        }
    };
    let shown: Vec<Listed> = all.iter().filter(|file| args.level.is_none_or(|level| file.name.level == level)).copied().collect();
    let latest = restore::plan(&all, Target::Latest).map(|plan| plan.files.last().copied());
    if args.json {
        text::to_stdout_json(&as_json(&*store, &all, &shown, &latest));
    } else {
        text::to_stdout(&as_text(&*store, &all, &shown, &latest));
    }
    Ok(())
}

fn as_text(store: &dyn Store, all: &[Listed], shown: &[Listed], latest: &Result<Option<Listed>, PlanError>) -> String {
    let mut out = format!("{}\n\n", store.url());
    out.push_str("LEVEL  FIRST TXID        LAST TXID         TIME                              SIZE\n");
    for file in shown {
        let about = if file.timestamp_is_exact { ' ' } else { '~' };
        let (first, last) = (file.name.min_txid, file.name.max_txid);
        out.push_str(&format!(
            "{:>5}  {first}  {last} {about}{}  {:>10}\n",
            file.name.level,
            text::time(file.timestamp),
            text::size(file.size_bytes)
        ));
    }
    let total = shown.iter().map(|file| file.size_bytes).sum();
    out.push_str(&format!("\n{}, {}\n", text::count(shown.len(), "file"), text::size(total)));
    if shown.iter().any(|file| !file.timestamp_is_exact) {
        out.push_str("~ is the time of the upload: this store does not list the time of the commit\n");
    }
    match (restore::oldest(all), latest) {
        (Some(oldest), Ok(Some(newest))) => out.push_str(&format!(
            "Restorable from TXID {} ({}) to TXID {} ({})\n",
            oldest.name.max_txid,
            text::time(oldest.timestamp),
            newest.name.max_txid,
            text::time(newest.timestamp),
        )),
        (_, Err(problem)) => out.push_str(&format!("The newest state cannot be restored: {problem}\n")),
        (None, Ok(_)) | (_, Ok(None)) => {}
    }
    out
}

fn as_json(store: &dyn Store, all: &[Listed], shown: &[Listed], latest: &Result<Option<Listed>, PlanError>) -> Value {
    let state = |file: &Listed| json!({ "txid": file.name.max_txid.to_string(), "timestamp": file.timestamp.to_rfc3339(), "timestamp_is_exact": file.timestamp_is_exact });
    let files: Vec<Value> = shown
        .iter()
        .map(|file| {
            json!({
                "level": file.name.level.get(),
                "min_txid": file.name.min_txid.to_string(),
                "max_txid": file.name.max_txid.to_string(),
                "timestamp": file.timestamp.to_rfc3339(),
                "timestamp_is_exact": file.timestamp_is_exact,
                "size_bytes": file.size_bytes,
            })
        })
        .collect();
    json!({
        "url": store.url(),
        "files": files,
        "total_bytes": shown.iter().map(|file| file.size_bytes).sum::<u64>(),
        "oldest": restore::oldest(all).map(state),
        "newest": latest.as_ref().ok().and_then(|newest| newest.as_ref()).map(state),
        "problem": latest.as_ref().err().map(ToString::to_string),
    })
}
