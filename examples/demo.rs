//! `make demo`: the main job, on real parts, in a minute.
//!
//! A writer process loads the extension and commits as fast as it can; it is killed with SIGKILL in mid-load; the database is restored from
//! the bucket and compared. First with a folder as the bucket, then with an S3 server in this process that checks every signature.

#![allow(clippy::print_stdout)] // It is made to be read.

use std::error::Error;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use replicated_testkit::{s3, sqlite};
use rusqlite::{Connection, OpenFlags};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long the writer lives: a few uploads long, at one a second.
const LIFE: Duration = Duration::from_millis(3_400);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match arguments.get(1).map(String::as_str) {
        Some("writer") => writer(&arguments),
        Some("reopen") => reopen(&arguments),
        _ => demo(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let dist = std::env::var_os("DEMO_DIST").map_or_else(|| PathBuf::from("dist"), PathBuf::from);
    let dist = dist.canonicalize().map_err(|e| format!("{}: {e}; run `make build` first", dist.display()))?;
    let work = tempfile::tempdir()?;
    title("replicated: every commit is in the bucket a moment later");
    say("one row a commit, as fast as one connection can; under such a load about one upload a second");

    heading("1. A folder as the bucket");
    let folder = work.path().join("bucket");
    round(&dist, &work.path().join("one"), &format!("file://{}", folder.display()), &[])?;

    heading("2. An S3 server in this process, which checks every signature");
    let server = s3::Server::start()?;
    round(&dist, &work.path().join("two"), &server.url("demo/app"), &server.env())?;
    let requests = server.requests();
    say(&format!("the server saw {} PUTs, {} LISTs and {} GETs in all", requests.put, requests.list, requests.get));

    title("Nothing that had reached the bucket was lost, and nothing was made up.");
    say("dist/replicated.so is the extension, dist/replicated restores. README.md goes on from here.");
    println!();
    Ok(())
}

/// Writes, kills, restores, compares, goes on, restores again.
fn round(dist: &Path, directory: &Path, replica: &str, env: &[(String, String)]) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let database = directory.join("app.db");
    let uri = format!("file:{}?vfs=replicated&replica={}", database.display(), encode(replica));
    say(&format!("a writer opens  file:app.db?vfs=replicated&replica={}", replica.split('?').next().unwrap_or_default()));

    let committed = write_and_kill(dist, &uri, env)?;
    let seconds = LIFE.as_secs_f64();
    good(&format!("{} commits in {seconds:.1} s, then SIGKILL in mid-load", grouped(committed.count)));

    let restored = directory.join("restored.db");
    restore(dist, replica, &restored, env)?;
    sqlite::integrity_check(&restored)?;
    let found = rows(&restored)?;
    // One more may have been committed than the writer had the time to tell.
    if found.count > committed.count + 1 {
        return Err(format!("the restored database has {} commits, and only {} were made", found.count, committed.count).into());
    }
    let behind_ms = committed.last_ms.saturating_sub(found.last_ms);
    good(&format!(
        "restored on \"another machine\": {} commits in a row, integrity ok; the last {:.1} s were still on their way",
        grouped(found.count),
        behind_ms as f64 / 1000.0
    ));

    let again = run_self("reopen", dist, &uri, env)?;
    let [txid, snapshots, sync_ms, total] = again.split_whitespace().collect::<Vec<_>>()[..] else { return Err(again.into()) };
    if snapshots != "0" {
        return Err("the database was sent a second time".into());
    }
    let again = directory.join("again.db");
    restore(dist, replica, &again, env)?;
    sqlite::page_compare(&database, &again)?;
    good(&format!(
        "the dead writer's database opened again: {} commits; what was missing followed, without a second snapshot",
        grouped(total.parse()?)
    ));
    good(&format!("one more commit after a pause: in the bucket {sync_ms} ms after COMMIT had returned"));
    good(&format!("restored again, TXID {}: equal to the original, page by page", txid));
    Ok(())
}

/// What a database has, by its rows.
struct Rows {
    count: i64,
    /// When the last one was made, in milliseconds since the epoch.
    last_ms: i64,
}

fn write_and_kill(dist: &Path, uri: &str, env: &[(String, String)]) -> Result<Rows> {
    let mut child = command("writer", dist, uri, env)?.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let mut rows = Rows { count: 0, last_ms: 0 };
    let mut started = Instant::now();
    let mut shown = Instant::now();
    for line in BufReader::new(output).lines() {
        rows =
            line?.split_once(' ').and_then(|(n, ms)| Some(Rows { count: n.parse().ok()?, last_ms: ms.parse().ok()? })).ok_or("no row")?;
        if rows.count == 1 {
            started = Instant::now();
        }
        if shown.elapsed() > Duration::from_millis(100) {
            progress(&format!("{} commits", grouped(rows.count)));
            shown = Instant::now();
        }
        if started.elapsed() >= LIFE {
            break;
        }
    }
    progress("");
    child.kill()?;
    child.wait()?;
    if started.elapsed() < LIFE {
        return Err("the writer ended early".into());
    }
    Ok(rows)
}

/// The writer: one row a commit, and a line once the commit has returned.
fn writer(arguments: &[String]) -> Result<()> {
    let connection = open(arguments)?;
    connection.execute_batch("PRAGMA synchronous=normal; CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, at_ms INTEGER, what TEXT)")?;
    let mut insert = connection.prepare("INSERT INTO t(at_ms, what) VALUES(?1, ?2)")?;
    let mut out = std::io::stdout().lock();
    for n in 1_u64.. {
        let at_ms = now_ms();
        insert.execute((at_ms, format!("commit number {n}, made by a process that will not live long")))?;
        writeln!(out, "{n} {at_ms}")?;
    }
    Ok(())
}

/// Opens the database again, waits until everything is in the bucket, commits once more, and waits again.
fn reopen(arguments: &[String]) -> Result<()> {
    let connection = open(arguments)?;
    let total: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    connection.query_row("PRAGMA replicated_sync", [], |_| Ok(()))?;
    connection.execute("INSERT INTO t(at_ms, what) VALUES(?1, 'one more')", [now_ms()])?;
    let committed = Instant::now();
    let txid: String = connection.query_row("PRAGMA replicated_sync", [], |row| row.get(0))?;
    let sync_ms = committed.elapsed().as_millis();
    let status: String = connection.query_row("PRAGMA replicated_status", [], |row| row.get(0))?;
    let snapshots = status.lines().find_map(|line| line.strip_prefix("snapshots ")).unwrap_or("?");
    println!("{txid} {snapshots} {} {total}", sync_ms.max(1));
    Ok(())
}

fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

fn open(arguments: &[String]) -> Result<Connection> {
    let [_, _, extension, uri] = arguments else { return Err("wrong arguments".into()) };
    load(Path::new(extension))?;
    let connection = Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI)?;
    connection.query_row("PRAGMA journal_mode=wal", [], |_| Ok(()))?;
    Ok(connection)
}

/// What `.load dist/replicated` does in the shell. Loading on any connection registers the VFS for all that follow.
#[allow(unsafe_code)]
fn load(extension: &Path) -> Result<()> {
    let scratch = Connection::open_in_memory()?;
    // SAFETY: it is our own extension.
    unsafe {
        scratch.load_extension_enable()?;
        scratch.load_extension(extension, None::<&str>)?;
    }
    Ok(())
}

fn command(role: &str, dist: &Path, uri: &str, env: &[(String, String)]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).arg(dist.join("replicated")).arg(uri).envs(env.iter().cloned());
    Ok(command)
}

fn run_self(role: &str, dist: &Path, uri: &str, env: &[(String, String)]) -> Result<String> {
    let output = command(role, dist, uri, env)?.stderr(Stdio::inherit()).output()?;
    if output.status.success() { Ok(String::from_utf8(output.stdout)?) } else { Err(format!("{role} failed").into()) }
}

fn restore(dist: &Path, replica: &str, to: &Path, env: &[(String, String)]) -> Result<()> {
    let status =
        Command::new(dist.join("replicated")).args(["restore", "--quiet", replica, "-o"]).arg(to).envs(env.iter().cloned()).status()?;
    if status.success() { Ok(()) } else { Err("the restore failed".into()) }
}

/// The rows of a restored database, which must be the first ones without a gap.
fn rows(database: &Path) -> Result<Rows> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let (count, last, last_ms): (i64, i64, i64) =
        connection.query_row("SELECT count(*), coalesce(max(n), 0), coalesce(max(at_ms), 0) FROM t", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    if count == last { Ok(Rows { count, last_ms }) } else { Err(format!("{count} rows, and the last is number {last}").into()) }
}

/// `12 345`.
fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A replica URL inside a database URI.
fn encode(text: &str) -> String {
    text.replace('%', "%25").replace('&', "%26").replace('?', "%3f").replace('#', "%23")
}

fn paint(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn title(text: &str) {
    println!("\n{}", paint("1", text));
}

fn heading(text: &str) {
    println!("\n{}", paint("1;36", text));
}

fn say(text: &str) {
    println!("   {text}");
}

fn good(text: &str) {
    println!("   {} {text}", paint("32", "✓"));
}

fn progress(text: &str) {
    if std::io::stdout().is_terminal() {
        print!("\x1b[2K   {text}\r");
        // A progress line that is not shown is no reason to stop.
        let _ = std::io::stdout().flush();
    }
}
