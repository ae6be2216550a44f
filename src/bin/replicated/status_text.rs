//! A status as people read it.

use std::time::Duration;

use replicated::status::{State, Status, Uploader};

use crate::text;

/// All of one replica.
pub(crate) fn block(status: &Status) -> String {
    let second = if status.number == 2 { " (replica 2)" } else { "" };
    let mut out = format!("{}{second}\n", status.database.display());
    let mut line = |name: &str, text: String| out.push_str(&format!("  {name:<11} {text}\n"));
    line("state", format!("{}: {}", status.state.as_str(), meaning(status)));
    if let Some(replica) = &status.replica {
        line("replica", replica.clone());
    }
    line("uploader", uploader(status));
    line("waiting", waiting(status));
    let last = status.last_success.map_or_else(String::new, |at| format!(", last upload {} ({})", text::age(at), text::time(at)));
    line("in bucket", status.remote_txid.map_or_else(|| "nothing that is known here".to_owned(), |txid| format!("TXID {txid}{last}")));
    if let Some(error) = &status.last_error {
        let since = status.last_error_time.map_or_else(String::new, |at| format!(" (since {})", text::time(at)));
        line(if status.uploader == Uploader::NotOpen { "last error" } else { "error" }, format!("{error}{since}"));
    }
    if let Some(advice) = status.advice {
        line("try", advice.to_owned());
    }
    let counts = &status.counts;
    line(
        "since open",
        format!(
            "{}, {}, {}{}, {} sent, {} received",
            count(status.uploads, "upload"),
            count(status.snapshots, "full state"),
            count(counts.requests(), "request"),
            if counts.failed_requests() > 0 { format!(" ({} failed)", counts.failed_requests()) } else { String::new() },
            text::size(counts.sent_bytes),
            text::size(counts.received_bytes),
        ),
    );
    if let (Some(at), Some(reason)) = (status.last_snapshot, status.last_snapshot_reason) {
        line("full state", format!("{} ({}), because: {}", text::age(at), text::time(at), reason.replace('_', " ")));
    }
    let spool = if status.spool_files == 0 {
        "nothing".to_owned()
    } else {
        format!("{} in {}", text::size(status.spool_bytes), count(status.spool_files, "file"))
    };
    line("local disk", format!("WAL {}, spool {spool}", text::size(status.wal_bytes)));
    let fencing = status.strong_fencing.map_or("unknown", |is_strong| if is_strong { "strong" } else { "weak" });
    line("durability", format!("{}, fencing {fencing}", status.durability));
    if let Some(at) = status.last_maintenance {
        let left = status.bucket_bytes.map_or_else(String::new, |bytes| format!(", the bucket took {}", text::size(bytes)));
        line("maintained", format!("{} ({}){left}", text::age(at), text::time(at)));
    }
    if let Some(error) = &status.maintenance_error {
        line("maintenance", error.clone());
    }
    out
}

/// A line for each replica.
pub(crate) fn table(statuses: &[&Status]) -> String {
    let mut out = format!("{:<10} {:>9} {:>9} {:>11}  DATABASE\n", "STATE", "LAG", "COMMITS", "WAITING");
    for status in statuses {
        let lag = if status.lag.is_zero() { "-".to_owned() } else { span(status.lag) };
        let second = if status.number == 2 { ", replica 2" } else { "" };
        let why = status.reason.map_or_else(String::new, |reason| format!(" ({})", reason.replace('_', " ")));
        out.push_str(&format!(
            "{:<10} {lag:>9} {:>9} {:>11}  {}{second}{why}\n",
            status.state.as_str(),
            status.waiting_commits,
            text::size(status.waiting_bytes),
            status.database.display(),
        ));
    }
    out
}

fn meaning(status: &Status) -> String {
    let known = match (status.state, status.reason.unwrap_or_default()) {
        (State::Idle, "not_open") => "everything committed is in the bucket, and no process has the database open",
        (State::Idle, _) => "everything committed is in the bucket",
        (State::Uploading, "full_state") => "the full state is on its way to the bucket",
        (State::Uploading, _) => "commits are on their way to the bucket",
        (State::Lagging, "not_open") => "commits wait, and no process has the database open: nobody uploads",
        (State::Lagging, "no_uploader") => "commits wait, and nobody uploads until the next commit",
        (State::Lagging, "changed_outside") => {
            "the database has changed since its last process knew it, and no process has it open: nobody uploads"
        }
        (State::Lagging, _) => return format!("the oldest commit waits for longer than {}", span(status.max_lag)),
        (State::Offline, kind) => return format!("the bucket cannot be written to ({}); it is tried again", kind.replace('_', " ")),
        (State::Fenced, "another_writer") => "another writer has written to the bucket path: nothing is sent",
        (State::Fenced, "diverged") => "the database and the bucket are not provably one history: nothing is sent",
        (State::Fenced, _) => "another host has the lease: nothing is sent",
        (State::Failed, "damaged") => "SQLite cannot read the database file: nothing is sent",
        (State::Failed, _) => "a fault in the extension has ended replication in that process",
    };
    known.to_owned()
}

fn uploader(status: &Status) -> String {
    match status.uploader {
        Uploader::Process(0) => "a process of another container".to_owned(),
        Uploader::Process(pid) => format!("process {pid}"),
        Uploader::Nobody => "nobody: a process has the database open and uploads with its next commit".to_owned(),
        Uploader::NotOpen => "nobody: no process has the database open".to_owned(),
    }
}

fn waiting(status: &Status) -> String {
    if status.waiting_commits == 0 {
        return "nothing".to_owned();
    }
    let at_least = if status.uploader == Uploader::NotOpen { "at least " } else { "" };
    let since = status.waiting_since.map_or_else(String::new, |at| format!(", for {} (since {})", span(status.lag), text::time(at)));
    format!("{at_least}{}, {}{since}", count(status.waiting_commits, "commit"), text::size(status.waiting_bytes))
}

fn count(number: u64, noun: &str) -> String {
    text::count(usize::try_from(number).unwrap_or(usize::MAX), noun)
}

/// `0.3 s`, `12 s`, `5 min`, `3 h`, `2 days`.
fn span(duration: Duration) -> String {
    match duration.as_secs() {
        0..2 => format!("{:.1} s", duration.as_secs_f64()),
        seconds @ 2..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}
