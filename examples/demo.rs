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

/// Commits to see before the writer is killed.
const COMMITS: u64 = 4_000;

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

    heading("1. A folder as the bucket");
    let folder = work.path().join("bucket");
    round(&dist, &work.path().join("one"), &format!("file://{}", folder.display()), &[])?;

    heading("2. An S3 server in this process, which checks every signature");
    let server = s3::Server::start()?;
    round(&dist, &work.path().join("two"), &server.url("demo/app"), &server.env())?;
    let requests = server.requests();
    say(&format!("the server saw {} PUTs, {} LISTs and {} GETs in all", requests.put, requests.list, requests.get));

    title("Nothing that had reached the bucket was lost, and nothing was made up.");
    Ok(())
}

/// Writes, kills, restores, compares, goes on, restores again.
fn round(dist: &Path, directory: &Path, replica: &str, env: &[(String, String)]) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let database = directory.join("app.db");
    let uri = format!("file:{}?vfs=replicated&replica={}", database.display(), encode(replica));
    say(&format!("a writer opens  file:app.db?vfs=replicated&replica={}", replica.split('?').next().unwrap_or_default()));

    let (committed, rate) = write_and_kill(dist, &uri, env)?;
    good(&format!("{committed} commits at {rate:.0} a second, then SIGKILL in mid-load"));

    let restored = directory.join("restored.db");
    restore(dist, replica, &restored, env)?;
    let count = counter(&restored)?;
    sqlite::integrity_check(&restored)?;
    if count > committed + 1 {
        return Err(format!("the restored database has {count} commits, and only {committed} were made").into());
    }
    good(&format!(
        "restored on \"another machine\": {count} commits, integrity ok{}",
        if count >= committed { ", nothing lost".to_owned() } else { format!("; the last {} were still on their way", committed - count) }
    ));

    let txid = run_self("reopen", dist, &uri, env)?;
    let again = directory.join("again.db");
    restore(dist, replica, &again, env)?;
    sqlite::page_compare(&database, &again)?;
    good(&format!(
        "reopened: the rest followed (TXID {}), no second snapshot; restored again: equal to the original, page by page",
        txid.trim()
    ));
    Ok(())
}

fn write_and_kill(dist: &Path, uri: &str, env: &[(String, String)]) -> Result<(u64, f64)> {
    let mut child = command("writer", dist, uri, env)?.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let (mut last, mut started) = (0, Instant::now());
    let mut shown = Instant::now();
    for line in BufReader::new(output).lines() {
        let commit: u64 = line?.trim().parse()?;
        if commit == 1 {
            started = Instant::now();
        }
        last = commit;
        if shown.elapsed() > Duration::from_millis(100) {
            progress(&format!("{commit} commits"));
            shown = Instant::now();
        }
        if commit >= COMMITS {
            break;
        }
    }
    let rate = last as f64 / started.elapsed().as_secs_f64().max(0.001);
    child.kill()?;
    child.wait()?;
    if last < COMMITS {
        return Err("the writer ended early".into());
    }
    Ok((last, rate))
}

/// The writer: one row a commit, and a line once the commit has returned.
fn writer(arguments: &[String]) -> Result<()> {
    let connection = open(arguments)?;
    connection.execute_batch("PRAGMA synchronous=normal; CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, what TEXT)")?;
    let mut insert = connection.prepare("INSERT INTO t(what) VALUES(?1)")?;
    let mut out = std::io::stdout().lock();
    for n in 1_u64.. {
        insert.execute([format!("commit number {n}, made by a process that will not live long")])?;
        writeln!(out, "{n}")?;
    }
    Ok(())
}

/// Opens the database again and waits until everything is in the bucket.
fn reopen(arguments: &[String]) -> Result<()> {
    let connection = open(arguments)?;
    connection.query_row("SELECT count(*) FROM t", [], |_| Ok(()))?;
    let txid: String = connection.query_row("PRAGMA replicated_sync", [], |row| row.get(0))?;
    println!("{txid}");
    Ok(())
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

fn counter(database: &Path) -> Result<u64> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let count: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    Ok(count.try_into()?)
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
        print!("   {text}\r");
        // A progress line that is not shown is no reason to stop.
        let _ = std::io::stdout().flush();
    }
}
