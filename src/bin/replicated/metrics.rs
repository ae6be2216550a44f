//! `replicated metrics`: the status of databases in Prometheus' format, from outside the application.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use replicated::metrics::prometheus;
use replicated::status::{Status, look};

use crate::Failure;
use crate::found::{self, Found, Unsearched};
use crate::rounds;
use crate::text;
use crate::values::duration;

/// Write metrics in Prometheus' text format: to standard output, or to a file for the node exporter
///
/// As `replicated status` does, it looks at what the processes of a database keep beside it, and no process notices. Counters begin at zero when the first process
/// opens a database.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database files; with --all the directories to search, or none for this one
    #[arg(value_name = "PATH", required_unless_present = "all")]
    paths: Vec<PathBuf>,
    /// Every replicated database below these directories, found by the directory `<database>-replicated` beside it
    #[arg(long)]
    all: bool,
    /// Write to this file instead, which is replaced as a whole: one that ends with .prom in the directory of the node exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    textfile: Option<PathBuf>,
    /// Go on, and write the file again every so often, such as 15s
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "textfile")]
    every: Option<Duration>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    rounds::check(args.every)?;
    rounds::run(args.every, || once(args))
}

fn once(args: &Args) -> Result<(), Failure> {
    let Found { databases, unsearched } = found::databases(&args.paths, args.all);
    let (mut statuses, mut failures): (Vec<Status>, Vec<Failure>) = (Vec::new(), unsearched.iter().map(Unsearched::failure).collect());
    for path in databases {
        match look(&path) {
            Ok(found) => statuses.extend(found),
            Err(error) => failures.push(Failure::Failed {
                what: format!("cannot tell the metrics of {}", path.display()),
                why: error.to_string(),
                advice: error.advice(),
                json: false,
            }),
        }
    }
    let metrics = prometheus(&statuses);
    match &args.textfile {
        None => text::to_stdout(&metrics),
        Some(file) => write(file, &metrics).map_err(|error| Failure::Failed {
            what: format!("cannot write {}", file.display()),
            why: error.to_string(),
            advice: match error.kind() {
                ErrorKind::NotFound => "Make the directory first, or correct the path",
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "Free some space on that disk",
                _ => "The file is made beside its place and renamed: this user must be able to write to the directory",
            }
            .to_owned(),
            json: false,
        })?,
    }
    // The others' are written all the same. All but the first are told here.
    let mut failures = failures.into_iter();
    let first = failures.next();
    for failure in failures {
        // The first one's exit code stands for all.
        let _ = crate::report(&failure);
    }
    first.map_or(Ok(()), Err)
}

/// The node exporter never sees half a file, and need not be of the same user.
fn write(file: &Path, metrics: &str) -> std::io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = file.file_name().ok_or(std::io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::File::create(&temporary).and_then(|mut to| {
        to.write_all(metrics.as_bytes())?;
        to.set_permissions(std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(&temporary, file)
    });
    // Where it was renamed there is nothing to be removed.
    written.inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}
