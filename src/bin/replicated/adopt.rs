//! `replicated adopt`.

use std::io;
use std::path::{Path, PathBuf};

use replicated::{maintenance, restore};

use crate::Failure;
use crate::file_head::FileHead;
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

/// Whether there is a database that could be sent: what is no database would stop replication for good where a good one was to go on.
fn is_database(path: &Path) -> Result<(), (String, &'static str)> {
    let name = path.display();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => (
            format!("{name} is not there"),
            "Correct the path. A database that is lost is had back with `replicated restore`, and goes on by itself: nothing need be adopted",
        ),
        io::ErrorKind::PermissionDenied => (format!("{name}: {error}"), "Do it as the user whose database it is"),
        _ => (format!("{name}: {error}"), "Look at the disk and at the system's log (dmesg)"),
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err((format!("{name} is no file"), "Name the database file"));
    }
    // SQLite takes an empty file for a database that nothing was written to yet.
    if metadata.len() == 0 {
        return Ok(());
    }
    match FileHead::of(path) {
        Ok(FileHead { page_size: Some(_), .. }) => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(failed(error)),
        _ => Err((
            format!("{name} does not begin as a SQLite database does"),
            "Look whether this is the right file; where it is, it is damaged or encrypted, and cannot be sent: `replicated restore` has the bucket's state",
        )),
    }
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
    is_database(&args.database).map_err(|(why, advice)| failed(why, advice.to_owned()))?;
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
