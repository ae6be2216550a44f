//! `replicated adopt`.

use std::path::PathBuf;

use replicated::{maintenance, restore};

use crate::Failure;
use crate::store_flags::StoreFlags;
use crate::text;

/// Declare a database file the truth, where it and its bucket have become two histories
///
/// At its next open the full state is sent as the next TXID. What the bucket holds until then stays restorable by TXID and time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database file; no process may have it open for replication
    database: PathBuf,
    /// The replica: s3://bucket/path, gs://bucket/path, abs://account@container/path or file:///path
    url: String,
    #[command(flatten)]
    store: StoreFlags,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let store = args.store.open(&args.url)?;
    let failed = |why: String, advice: String| Failure::Failed {
        what: format!("cannot adopt {} over {}", args.database.display(), store.url()),
        why,
        advice,
        json: false,
    };
    let listed = restore::catalogue(&*store).map_err(|error| {
        let (why, advice) = text::apart(&error, error.store(), error.advice(), store.url());
        failed(why, advice)
    })?;
    let Some(newest) = listed.iter().map(|l| l.name.max_txid).max() else {
        return Err(failed("the bucket is empty".to_owned(), "Nothing to decide: open the database with this replica".to_owned()));
    };
    replicated::adopt(&args.database, store.url(), newest).map_err(|error| failed(error.to_string(), String::new()))?;
    // What a power loss took from the file was kept for this decision.
    if let Err(error) = maintenance::let_go(&store, newest) {
        text::to_stderr(&format!("warning: what was kept in the bucket is still kept: {error}\n"));
    }
    text::to_stdout(&format!(
        "{} is the truth from now on: its next open sends the full state as TXID {}.\nWhat {} holds up to TXID {newest} stays restorable with --txid.\n",
        args.database.display(),
        newest.next(),
        store.url(),
    ));
    Ok(())
}
