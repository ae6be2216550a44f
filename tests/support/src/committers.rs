//! Threads that commit, and say on stdout of each commit that it returned: so that a test that kills their process knows what was acknowledged.

use std::io::{self, Write};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// How the programs `committers` and `crash-host committers` are called.
const USAGE: &str = "URI THREADS COMMITS SQL

Runs SQL on a connection for each thread, which then makes so many commits (0: until it is killed), each of one row (thread, n). Prints
`<thread> <n>` after a COMMIT has returned, `failed <thread> <n> <extended code>` where it has failed.";

/// Runs them as the arguments say.
///
/// # Errors
/// Where the arguments are wrong, or SQLite fails at anything but a COMMIT.
pub fn run(arguments: &[String]) -> io::Result<()> {
    let [uri, threads, commits, sql] = arguments else { return Err(io::Error::other(USAGE)) };
    let number = |text: &str| text.parse::<u64>().map_err(|_| io::Error::other(USAGE));
    let (threads, commits) = (number(threads)?, number(commits)?);
    replicated::register!(rusqlite::ffi).map_err(io::Error::other)?;
    let connections: rusqlite::Result<Vec<Connection>> = (0..threads).map(|_| open(uri, sql)).collect();
    let running: Vec<_> = connections
        .map_err(io::Error::other)?
        .into_iter()
        .zip(1..)
        .map(|(connection, thread)| std::thread::spawn(move || commit(&connection, thread, commits).map_err(io::Error::other)))
        .collect();
    for thread in running {
        thread.join().map_err(|_| io::Error::other("a thread panicked"))??;
    }
    Ok(())
}

fn open(uri: &str, sql: &str) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI)?;
    connection.busy_timeout(Duration::from_secs(60))?;
    connection.execute_batch(sql)?;
    connection.execute_batch("CREATE TABLE IF NOT EXISTS t(thread INTEGER, n INTEGER, x BLOB)")?;
    Ok(connection)
}

fn commit(connection: &Connection, thread: i64, commits: u64) -> rusqlite::Result<()> {
    let first: i64 = connection.query_row("SELECT coalesce(max(n), 0) + 1 FROM t WHERE thread = ?1", [thread], |row| row.get(0))?;
    let last = if commits == 0 { i64::MAX } else { first.saturating_add_unsigned(commits - 1) };
    for n in first..=last {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        connection.execute("INSERT INTO t VALUES (?1, ?2, randomblob(300))", [thread, n])?;
        let said = match connection.execute_batch("COMMIT") {
            Ok(()) => writeln!(io::stdout().lock(), "{thread} {n}"),
            Err(rusqlite::Error::SqliteFailure(error, _)) => writeln!(io::stdout().lock(), "failed {thread} {n} {}", error.extended_code),
            Err(other) => return Err(other),
        };
        if said.is_err() {
            // Nobody listens any more.
            return Ok(());
        }
    }
    Ok(())
}
