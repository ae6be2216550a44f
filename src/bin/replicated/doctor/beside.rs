//! What is kept beside the database: how far replication is, who is at work, and whether database and bucket belong together.

use std::path::Path;
use std::time::Duration;

use replicated::status::{LookError, look as look_outside};
use replicated::types::TimestampMs;
use replicated::verify::{self, Beside, Told};

use super::bounded::blocking;
use super::contents::Contents;
use super::database::Database;
use super::report::{Report, brief};
use super::transactions::named;
use crate::text;

/// A commit that waits for longer is told of.
const LONG: Duration = Duration::from_secs(60);
const APART: &str = "docs/troubleshooting.md, \"Replication has stopped\": decide which of the two is right. `replicated verify URL --against app.db` compares them";

/// Reads it; what is of this replica.
pub(super) fn look(database: &Path, url: &str, limit: Duration, report: &mut Report) -> Option<Beside> {
    let path = database.to_owned();
    let found = match blocking(limit, move || verify::beside(&path)) {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            report.unknown(
                "replication",
                format!("what is beside the database cannot be read: {error}"),
                "Run this as the user of the application, or as root",
            );
            return None;
        }
        Err(late) => {
            report.unknown("replication", late.to_string(), "Its file system does not answer: look at `mount`");
            return None;
        }
    };
    let others = found.len();
    let Some(beside) = found.into_iter().find(|beside| beside.is_of(url)) else {
        if others > 0 {
            report.warning(
                "replication",
                "the database is, or was, replicated to another URL than this one",
                "What is remembered beside it says nothing of this bucket",
                "Compare the URL with the application's (PRAGMA replicated_status, REPLICATED_REPLICA)",
            );
        } else if let Err(error @ LookError::Unreadable(_)) = look_outside(database) {
            report.warning(
                "replication",
                error.to_string(),
                "The next open makes it anew, and goes on where the WAL shows that database and bucket are one history; where it does not, it refuses (`diverged`)",
                "Use the tool and the extension of one version; docs/troubleshooting.md, \"Replication has stopped\", says how to decide",
            );
        } else {
            report.skipped(
                "replication",
                "nothing is kept beside the database: no process has opened it for replication yet, or under another path",
            );
        }
        return None;
    };
    if !beside.is_of_this_file {
        report.warning(
            "replication",
            format!("{} is about another file that had this name", beside.directory.display()),
            "The database was moved, copied or restored by other means: the next open compares it with the bucket",
            "Nothing, if that is known; the log of the next open says what it finds",
        );
        return None;
    }
    standing(&beside, report);
    Some(beside)
}

fn standing(beside: &Beside, report: &mut Report) {
    if let Some(why) = &beside.local.apart {
        report.problem("replication", why.clone(), "The application works on, and nothing of what it commits is replicated", APART);
    } else if beside.is_open {
        at_work(beside, report);
    } else {
        at_rest(beside, report);
    }
    let Some(told) = &beside.told else { return };
    match (&told.maintenance_error, told.last_maintenance) {
        (Some(error), _) => report.warning(
            "maintenance",
            error.clone(),
            "The bucket is not kept small, and grows",
            "`replicated maintain URL --dry-run` shows the same from anywhere",
        ),
        (None, Some(at)) => report.ok("maintenance", format!("last by the application {}", text::age(at))),
        (None, None) => report.skipped("maintenance", "not by the application yet: it begins after some uploads, unless maintenance=off"),
    }
}

fn last(told: &Told) -> String {
    told.last_success.map(|at: TimestampMs| format!("; the last upload was {}", text::age(at))).unwrap_or_default()
}

fn at_work(beside: &Beside, report: &mut Report) {
    let who = match beside.uploader {
        Some(process) => format!("{} uploads", named(process)),
        None => "a process has it open, and none uploads at the moment".to_owned(),
    };
    let Some(told) = &beside.told else {
        return report.unknown(
            "replication",
            format!("{who}; what it says of itself is of another version"),
            "Use the tool and the extension of one version",
        );
    };
    let lag = told.lag.filter(|lag| *lag > LONG);
    let what = format!("{}: {who}{}", told.state, last(told));
    let error = told.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    match told.state {
        "offline" => report.problem(
            "replication",
            format!("{what}{error}"),
            "The store cannot be reached or refuses; commits wait on the local disk and are sent when it is back",
            "See what is said of the store above. If all of that is well, the application's environment differs from this shell's: its keys, its proxy, its network",
        ),
        "damaged" => report.problem(
            "replication",
            format!("{what}{error}"),
            "SQLite cannot read the database file, and nothing of it is sent",
            "docs/troubleshooting.md, \"The database file is damaged\"",
        ),
        "diverged" | "fenced" => report.problem("replication", format!("{what}{error}"), "The application works on, and nothing of what it commits is replicated", APART),
        "failed" => report.problem(
            "replication",
            format!("{what}{error}"),
            "A fault in the extension has ended replication; the application works on",
            "Close and open the database, and report the log",
        ),
        _ => match lag {
            Some(lag) => report.warning(
                "replication",
                format!("{what}; the oldest commit that the bucket lacks has waited for {}{error}", brief(lag)),
                "What was committed since is lost with this machine",
                "Look at the speed above, and at the log of the application",
            ),
            None => report.ok("replication", what),
        },
    }
}

fn at_rest(beside: &Beside, report: &mut Report) {
    let waits = beside.local.waits.clone();
    let error = beside
        .told
        .as_ref()
        .and_then(|told| told.last_error.as_ref())
        .map(|error| format!("; the last error was: {error}"))
        .unwrap_or_default();
    let acked =
        beside.local.acked.map(|txid| format!("TXID {txid} is in the bucket")).unwrap_or_else(|| "nothing is in the bucket yet".to_owned());
    if let Some(waits) = waits {
        report.warning(
            "replication",
            format!("no process has it open; {acked}, and {waits}{error}"),
            "It is sent when the database is opened next. If this machine or container goes before that, it is lost",
            "Start the application. When it ends it must close its database (SIGTERM, and more grace than close_timeout), or it leaves this behind",
        );
    } else if !beside.local.is_unchanged {
        report.warning(
            "replication",
            format!("no process has it open; {acked}, and the file is not as it was when all of it was captured{error}"),
            "The process was killed, or a program without the extension has written to it since. The next open finds out, and sends what is missing or the full state",
            "Start the application. Let other programs open it with mode=ro, or through the extension",
        );
    } else {
        report.ok("replication", format!("no process has it open; {acked}, and that is all of it"));
    }
}

/// Whether database and bucket are one history, as far as their newest words tell.
pub(super) fn together(database: &Database, beside: Option<&Beside>, contents: &Contents, report: &mut Report) {
    if !contents.is_known {
        return report.skipped("together", "the bucket could not be looked at");
    }
    let acked = beside.and_then(|beside| beside.local.acked);
    let Some((file, header)) = &contents.newest else {
        if let Some(acked) = acked {
            report.problem(
                "together",
                format!("the bucket has acknowledged TXID {acked}, and has no uploads now"),
                "It was emptied, or this is another bucket or path: the next upload is the full state",
                "Compare the URL with the application's; look whether a lifecycle rule deletes there",
            );
        } else {
            report.skipped("together", "the bucket has no upload that could be compared");
        }
        return;
    };
    let newest = file.name.max_txid;
    if header.page_size != database.page_size {
        return report.problem(
            "together",
            format!(
                "the bucket's newest upload has pages of {} bytes, the database of {}",
                header.page_size.get(),
                database.page_size.get()
            ),
            "They are two databases, or the page size was changed without the extension",
            APART,
        );
    }
    let Some(beside) = beside else {
        return report.warning(
            "together",
            format!("nothing beside the database says that it is what the bucket has up to TXID {newest}"),
            "The first open compares the two, and refuses (`diverged`) where they are two histories",
            "`replicated verify URL --against app.db` compares them now; restore on an empty disk with restore=if-missing",
        );
    };
    match acked {
        Some(acked) if acked > newest => report.problem(
            "together",
            format!("the bucket has acknowledged TXID {acked}, and its newest upload is {newest}"),
            "It has lost objects, or was put back to an earlier state: the full state follows",
            "Look whether a lifecycle rule or another program deletes there",
        ),
        Some(acked) if acked == newest && header.node_id == beside.node_id => {
            report.ok("together", format!("the bucket's newest upload, TXID {newest}, is this database's"));
        }
        Some(acked) if acked == newest => report.ok(
            "together",
            format!("the bucket ends at TXID {newest}, as is remembered here; it was restored or taken over from another host"),
        ),
        _ if header.node_id == beside.node_id => report.ok(
            "together",
            format!(
                "the bucket's newest upload, TXID {newest}, is this database's; it has just arrived, or its acknowledgement was cut off"
            ),
        ),
        _ => report.problem(
            "together",
            format!(
                "the bucket's newest upload, TXID {newest}, was written by another (node {:016x}), and this database knows of {} only",
                header.node_id,
                acked.map_or_else(|| "nothing".to_owned(), |txid| format!("TXID {txid}"))
            ),
            "Another host, container or copy of the application writes to this URL: the one that comes later is fenced",
            APART,
        ),
    }
}
