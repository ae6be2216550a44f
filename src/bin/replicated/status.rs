//! `replicated status`: how the replication of databases is, from outside the application.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use replicated::status::{LookError, State, Status, Uploader, as_json, look};
use serde_json::json;

use crate::Failure;
use crate::found::{self, Found, Unsearched};
use crate::status_text;
use crate::text;
use crate::values::{duration, duration_from};

/// Show how replication is: what waits, since when, who uploads, the last error
///
/// Looks at what the processes of a database keep beside it, and says what waits also where none is left. It makes no request, takes no lock, writes nothing,
/// and no process notices. Exit code 0: current; 3: commits wait for too long, or the bucket cannot be reached; 4: replication stands still until somebody acts.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database files; with --all the directories to search, or none for this one
    #[arg(value_name = "PATH", required_unless_present = "all")]
    paths: Vec<PathBuf>,
    /// Show every replicated database below these directories, found by the directory `<database>-replicated` beside it. Symbolic links are not followed
    #[arg(long)]
    all: bool,
    /// Write to standard output as JSON, one document on a line; the names are those of the table in docs/status.md
    #[arg(long)]
    json: bool,
    /// Show it again every so often, until interrupted
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_parser = duration_from("100ms"))]
    watch: Option<Duration>,
    /// From which lag on the exit code is 3, instead of the `max_lag` that the application was given (10s by default)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    max_lag: Option<Duration>,
    /// Exit with code 3 as well where no process has a database open, even if nothing waits
    #[arg(long)]
    running: bool,
    /// Write nothing but errors: the exit code tells
    #[arg(long, short, conflicts_with_all = ["json", "watch"])]
    quiet: bool,
}

/// What there is to tell, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Current,
    /// Could not be looked at.
    Unknown,
    Behind,
    Stopped,
}

impl Verdict {
    const fn exit_code(self) -> u8 {
        match self {
            Self::Current => 0,
            Self::Unknown => 1,
            Self::Behind => 3,
            Self::Stopped => 4,
        }
    }
}

/// One database, or why there is nothing to say of it.
type Looked = (PathBuf, Result<Vec<Status>, LookError>);

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let Some(interval) = args.watch else { return once(args) };
    let clears = !args.json && std::io::stdout().is_terminal();
    loop {
        if clears {
            text::to_stdout("\x1b[H\x1b[2J");
        }
        // What is shown says it.
        let _ = once(args);
        if !args.json && !clears {
            text::to_stdout("\n");
        }
        std::thread::sleep(interval);
    }
}

fn once(args: &Args) -> Result<(), Failure> {
    let Found { databases, unsearched } = found::databases(&args.paths, args.all);
    let looked: Vec<Looked> = databases.into_iter().map(|path| (path.clone(), look(&path))).collect();
    for one in &unsearched {
        text::to_stderr(&crate::failed_text(&one.what(), &one.error.to_string(), one.advice()));
    }
    for (path, error) in looked.iter().filter_map(|(path, looked)| Some((path, looked.as_ref().err()?))) {
        text::to_stderr(&crate::failed_text(&format!("cannot tell the status of {}", path.display()), &error.to_string(), &error.advice()));
    }
    if args.json {
        text::to_stdout(&format!("{}\n", document(args, &looked, &unsearched)));
    } else if !args.quiet {
        text::to_stdout(&readable(args, &looked));
    }
    let unknown = unsearched.iter().map(|_| Verdict::Unknown);
    match looked.iter().map(|looked| verdict(args, looked)).chain(unknown).max() {
        None | Some(Verdict::Current) => Ok(()),
        Some(other) => Err(Failure::Told(other.exit_code())),
    }
}

fn verdict(args: &Args, (_, looked): &Looked) -> Verdict {
    let Ok(statuses) = looked else { return Verdict::Unknown };
    let of = |status: &Status| match (status.state, status.reason) {
        (State::Fenced | State::Failed, _) => Verdict::Stopped,
        (State::Offline, _) => Verdict::Behind,
        (State::Lagging, reason) if reason != Some("slow") => Verdict::Behind,
        _ if args.running && status.uploader == Uploader::NotOpen => Verdict::Behind,
        _ if status.lag > args.max_lag.unwrap_or(status.max_lag) => Verdict::Behind,
        _ => Verdict::Current,
    };
    statuses.iter().map(of).max().unwrap_or(Verdict::Unknown)
}

fn document(args: &Args, looked: &[Looked], unsearched: &[Unsearched]) -> String {
    let of = |(path, looked): &Looked| match looked {
        Ok(statuses) => as_json(statuses),
        Err(error) => json!({ "database": path, "error": error.to_string(), "advice": error.advice() }).to_string(),
    };
    let of_directory =
        |one: &Unsearched| json!({ "directory": one.directory, "error": one.error.to_string(), "advice": one.advice() }).to_string();
    match looked {
        [one] if !args.all => of(one),
        several => {
            let all: Vec<String> = several.iter().map(of).chain(unsearched.iter().map(of_directory)).collect();
            format!("{{\"databases\":[{}]}}", all.join(","))
        }
    }
}

fn readable(args: &Args, looked: &[Looked]) -> String {
    let found: Vec<&Status> = looked.iter().filter_map(|(_, looked)| looked.as_ref().ok()).flatten().collect();
    if !args.all {
        return found.iter().map(|status| status_text::block(status)).collect::<Vec<String>>().join("\n");
    }
    if looked.is_empty() {
        return "no replicated database found\n".to_owned();
    }
    status_text::table(&found)
}
