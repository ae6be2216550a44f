//! `replicated doctor`: each thing that replication needs, looked at in the order in which it is needed, with what it means and what to do.
//!
//! ```text
//!   address       the URL, its name, its port, TLS
//!   access        whether the store lets one in; the keys, the clock
//!   permissions   each request, fencing, speed: with an object of its own, by the store that replication uses
//!   contents      what the bucket has, whether that can be restored, who holds its lease
//!   database      the file, and what SQLite says of it
//!   beside        what is kept beside it; whether the two belong together
//!   transactions  who keeps the WAL from shrinking
//!   disk          where it lies
//!   sqlite        the SQLite of the host
//! ```
//!
//! Nothing is written but that object. Each check ends after a time.

mod access;
mod address;
mod beside;
mod bounded;
mod contents;
mod database;
mod disk;
mod permissions;
mod report;
mod sqlite;
mod transactions;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use replicated::config::Options;
use replicated::store::url::Location;
use replicated::store::{ReplicaUrl, Store};
use serde_json::json;

use self::access::{Access, Reached};
use self::address::Address;
use self::bounded::Requests;
use self::contents::Contents;
use self::report::{Report, brief};
pub(crate) use self::sqlite::inspect;
use crate::Failure;
use crate::store_flags::StoreFlags;
use crate::text;
use crate::values::duration_from;

/// Less time is not told of.
const WORTH_SAYING: Duration = Duration::from_secs(10);

/// Find what is wrong: looks at the store, the bucket, the database and the host's SQLite, and says what each finding means and what to do
///
/// Nothing is written but a small object, which is taken away again. Exit codes: 0 all well (warnings included), 1 problems, 2 wrong usage, 3 something could not be checked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The replica: s3://bucket/path, gs://bucket/path, abs://account@container/path or file:///path
    url: String,
    /// The database, which may be in use
    database: Option<PathBuf>,
    /// The SQLite library that the application uses, such as /usr/lib/x86_64-linux-gnu/libsqlite3.so.0 [default: what sqlite3 and python3 on the path have]
    #[arg(long, value_name = "LIBRARY")]
    sqlite: Option<PathBuf>,
    /// The extension that is to load in it [default: replicated.so beside this program]
    #[arg(long, value_name = "FILE")]
    extension: Option<PathBuf>,
    /// How long one request, or one look, may take
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration_from("100ms"))]
    timeout: Duration,
    /// How long SQLite may check the database
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration_from("100ms"))]
    check_timeout: Duration,
    /// Write the result to standard output as JSON
    #[arg(long)]
    json: bool,
    /// Write nothing but what is not well
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    store: StoreFlags,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let began = Instant::now();
    // By the whole of its path, as the extension looks it up.
    let database = args.database.as_ref().and_then(|path| std::path::absolute(path).ok());
    let options = args.store.options(database.as_deref())?;
    let mut report = Report::default();
    let named = match &database {
        Some(path) => Options { replica: Some(args.url.clone()), ..options.clone() }.replica_for(path).unwrap_or_default(),
        None => args.url.clone(),
    };
    let url = ReplicaUrl::parse(&named);
    match &url {
        Ok(url) => with_bucket(args, &options, url, &mut report),
        Err(error) => {
            report.problem("url", error.to_string(), "An open with this URL fails", "docs/stores.md has the forms of all stores");
            with_database(args, &options, None, &Contents::default(), Reached::default(), &mut report);
        }
    }
    sqlite::look(args.sqlite.as_deref(), args.extension.as_deref(), args.timeout, &mut report);
    let (status, code) = report.outcome();
    if args.json {
        text::to_stdout_json(&json!({
            "status": status,
            "url": url.as_ref().ok().map(ToString::to_string),
            "database": args.database.as_ref().map(|path| path.to_string_lossy()),
            "checks": report.as_json(),
            "elapsed_ms": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }));
    } else {
        text::to_stdout(&report.as_text(args.quiet));
    }
    if code == 0 { Ok(()) } else { Err(Failure::Told(code)) }
}

fn with_bucket(args: &Args, options: &Options, url: &ReplicaUrl, report: &mut Report) {
    let open = || replicated::store::open(url, &options.store_options());
    // One of each: what is asked of the second runs on event loops of the library's, and a connection stays with its own.
    let (store, second) = match (open(), open()) {
        (Ok(store), Ok(second)) => (store, second),
        (Err(error), _) | (_, Err(error)) => {
            report.ok("url", address::describe(url, None, None));
            report.problem(
                "settings",
                error.cause.clone(),
                "No store can be opened with these settings, so an open of the database fails",
                error.advice,
            );
            return with_database(args, options, Some(url), &Contents::default(), Reached::default(), report);
        }
    };
    let about = store.about();
    report.ok("url", address::describe(url, about.endpoint.as_deref(), about.region.as_deref()));
    let address = about.endpoint.as_deref().and_then(Address::of);
    let reached = reach(args, options, &store, address.as_ref(), report);
    let contents = match reached {
        Some(Reached { may_list: true, down, .. }) => contents::look(&second, down, args.timeout, report),
        Some(_) => {
            report.skipped("contents", "it cannot be listed");
            Contents::default()
        }
        None => {
            report.skipped("contents", "keys, permissions, clock, speed and the bucket were not looked at: see above");
            Contents::default()
        }
    };
    with_database(args, options, Some(url), &contents, reached.unwrap_or_default(), report);
}

fn reach(args: &Args, options: &Options, store: &Arc<dyn Store>, address: Option<&Address>, report: &mut Report) -> Option<Reached> {
    let limit = args.timeout;
    if let Some(address) = address
        && !address::way(address, limit.min(options.connect_timeout), report)
    {
        return None;
    }
    let requests = match Requests::new() {
        Ok(requests) => requests,
        Err(error) => {
            report.unknown("answer", format!("no request can be made: {error}"), "Look at this process's limits (ulimit -n)");
            return None;
        }
    };
    Access { store, requests: &requests, limit, request_timeout: options.request_timeout }.look(address, report)
}

fn with_database(args: &Args, options: &Options, url: Option<&ReplicaUrl>, contents: &Contents, reached: Reached, report: &mut Report) {
    let Some(path) = &args.database else {
        return report.skipped("database", "none was named: replicated doctor URL app.db looks at one, and at what is beside it");
    };
    let found = database::file(path, args.timeout, report);
    let Some(file) = found else {
        return disk(args, options, url, path, None, report);
    };
    let took = reached.up.map(|up| Duration::from_secs_f64((file.bytes as f64 / up).min(1e9)));
    if let Some(took) = took.filter(|took| *took > WORTH_SAYING) {
        report.skipped("full-state", format!("sending all of it takes {} at the speed above, or less as it is compressed", brief(took)));
    }
    is_as_set(options, url, path, report);
    let watch = transactions::Watch::begin(path, &file, args.timeout);
    let beside = url.and_then(|url| beside::look(path, url.as_str(), args.timeout, report));
    beside::together(&file, beside.as_ref(), contents, report);
    watch.end(path, &file, report);
    database::integrity(path, args.check_timeout, report);
    disk(args, options, url, path, beside.as_ref(), report);
}

/// Whether an open by these settings would have this replica.
fn is_as_set(options: &Options, url: Option<&ReplicaUrl>, path: &Path, report: &mut Report) {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let second = options.second().and_then(|second| second.replica_for(&path));
    let (Some(url), Some(first)) = (url, options.replica_for(&path)) else { return };
    let place = |url: &str| url.split('?').next().unwrap_or_default().to_owned();
    let others: Vec<String> = [Some(first), second].into_iter().flatten().map(|url| place(&url)).collect();
    if !others.contains(&place(url.as_str())) {
        report.warning(
            "settings",
            format!("the environment or the configuration file here has this database replicated to {}", others.join(" and ")),
            "What is said above is of another URL",
            "Name that one; `replicated config show` says where each setting comes from",
        );
    }
}

fn disk(
    args: &Args,
    options: &Options,
    url: Option<&ReplicaUrl>,
    path: &Path,
    beside: Option<&replicated::verify::Beside>,
    report: &mut Report,
) {
    let replica = url.and_then(|url| match url.location() {
        Location::Folder { path } => Some(path.as_path()),
        _ => None,
    });
    disk::Disk {
        database: path,
        max_local_bytes: options.max_local_bytes,
        waiting_bytes: beside.map_or(0, |beside| beside.waiting_bytes),
        replica,
        process: beside.and_then(|beside| beside.uploader).filter(|process| *process > 0),
    }
    .look(args.timeout, report);
}
