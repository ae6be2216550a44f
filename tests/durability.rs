//! `durability=bounded` and `durability=remote`: what a COMMIT waits for, what its error means, and that what was acknowledged survives the machine.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use replicated::NOT_ACKNOWLEDGED;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Host, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::{integrity_check, page_compare};
use rusqlite::{Connection, OpenFlags};

/// How a database is journaled and locked.
const WAL: &str = "PRAGMA journal_mode=WAL";
const DELETE: &str = "PRAGMA journal_mode=DELETE";
const PERSIST: &str = "PRAGMA journal_mode=PERSIST";
const MEMORY: &str = "PRAGMA journal_mode=MEMORY";
const WAL_EXCLUSIVE: &str = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL";
const WAL_EXCLUSIVE_LATER: &str =
    "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS x(y); PRAGMA locking_mode=EXCLUSIVE; INSERT INTO x VALUES (1)";
const DELETE_EXCLUSIVE: &str = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=DELETE";
const ALL: [&str; 7] = [WAL, DELETE, PERSIST, MEMORY, WAL_EXCLUSIVE, WAL_EXCLUSIVE_LATER, DELETE_EXCLUSIVE];

/// A database of this process and a folder as its bucket.
struct Pair {
    dir: tempfile::TempDir,
}

impl Pair {
    fn new() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| replicated::register!(rusqlite::ffi).unwrap());
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("bucket")
    }

    fn bucket(&self) -> Bucket {
        Bucket::folder(&self.folder())
    }

    fn open(&self, options: &[(&str, &str)], set_up: &str) -> Connection {
        let uri = host::replicated(&self.path(), &self.bucket().url, options);
        let connection = Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI).unwrap();
        connection.busy_timeout(Duration::from_secs(60)).unwrap();
        connection.execute_batch(set_up).unwrap();
        connection
    }

    /// The bucket becomes unreachable: its place is taken by a file.
    fn outage(&self) {
        std::fs::rename(self.folder(), self.folder().with_extension("away")).unwrap();
        std::fs::write(self.folder(), b"not a folder").unwrap();
    }

    fn outage_ends(&self) {
        std::fs::remove_file(self.folder()).unwrap();
        std::fs::rename(self.folder().with_extension("away"), self.folder()).unwrap();
    }

    /// What a machine that has only the bucket gets.
    fn restored(&self) -> Connection {
        let restored = self.dir.path().join("restored.db");
        self.bucket().restore(&restored);
        integrity_check(&restored).unwrap();
        Connection::open_with_flags(&restored, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }

    /// The bucket is the database, which nobody has open.
    fn assert_restores(&self) {
        let restored = self.dir.path().join("restored.db");
        self.bucket().restore(&restored);
        page_compare(&flattened(&self.path(), self.dir.path()), &restored).unwrap();
    }
}

fn number(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn text(connection: &Connection, sql: &str) -> String {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn status(connection: &Connection, name: &str) -> String {
    let all = text(connection, "PRAGMA replicated_status");
    all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_else(|| panic!("{name} is not in {all}")).to_owned()
}

fn insert(connection: &Connection) -> rusqlite::Result<usize> {
    connection.execute("INSERT INTO t(v) VALUES (randomblob(500))", [])
}

/// Commits until one is acknowledged in its time, which a busy machine may not keep at once; how many that took.
fn until_acknowledged(connection: &Connection) -> i64 {
    let mut tried = 0;
    eventually("a commit is acknowledged again", || {
        tried += 1;
        insert(connection).is_ok()
    });
    tried
}

#[track_caller]
fn code(result: rusqlite::Result<impl std::fmt::Debug>) -> i32 {
    match result.unwrap_err() {
        rusqlite::Error::SqliteFailure(error, _) => error.extended_code,
        other => panic!("{other}"),
    }
}

/// The budget would allow one upload an hour.
#[test]
fn a_remote_commit_is_in_the_bucket_when_it_returns() {
    for mode in ALL {
        let pair = Pair::new();
        let connection = pair.open(&[("durability", "remote"), ("sync_interval", "1h"), ("burst", "1")], mode);
        connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
        assert_eq!(number(&pair.restored(), "SELECT count(*) FROM t"), 0, "{mode}: the first commit waits for the snapshot");
        for n in 1..=6 {
            insert(&connection).unwrap();
            assert_eq!(number(&pair.restored(), "SELECT count(*) FROM t"), n, "{mode}");
        }
        connection.execute_batch("BEGIN; INSERT INTO t(v) VALUES (1); DELETE FROM t WHERE id = 1; COMMIT; VACUUM").unwrap();
        assert_eq!(number(&pair.restored(), "SELECT min(id) FROM t"), 2, "{mode}");
        assert_eq!(status(&connection, "waiting_commits"), "0", "{mode}");
        connection.close().unwrap();
        pair.assert_restores();
    }
}

#[test]
fn twenty_remote_commits_over_s3_do_not_wait_for_the_budget() {
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let bucket = Bucket::s3(&server, "remote");
    let mut host = Host::start(Program::Python, &bucket.env);
    let options = [("durability", "remote"), ("sync_interval", "1h"), ("burst", "1")];
    let db = host.open(&host::replicated(&dir.path().join("app.db"), &bucket.url, &options));
    host.run(db, &format!("{WAL}; CREATE TABLE t(n)"));
    let restored = dir.path().join("restored.db");
    for n in 1..=20 {
        host.query(db, &format!("INSERT INTO t VALUES ({n})"));
        bucket.restore(&restored);
        assert_eq!(number(&Connection::open(&restored).unwrap(), "SELECT max(n) FROM t"), n);
    }
    assert_eq!(bucket.full_states(), 1);
}

/// Runs `committers`; what it said.
fn committers(bucket: &Bucket, path: &Path, options: &[(&str, &str)], threads: u32, commits: u32, mode: &str) -> String {
    let mut command = host::command(host::program("committers"), &bucket.env);
    command.arg(host::replicated(path, &bucket.url, options)).args([threads.to_string(), commits.to_string()]).arg(mode);
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn threads_that_wait_share_uploads() {
    let server = Server::with_options(Options { delay: Duration::from_millis(200), ..Options::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (bucket, path, restored) = (Bucket::s3(&server, "shared"), dir.path().join("app.db"), dir.path().join("restored.db"));
    let said = committers(&bucket, &path, &[("durability", "remote"), ("sync_interval", "1h")], 16, 25, WAL);
    assert_eq!(said.lines().filter(|line| !line.starts_with("failed")).count(), 400, "{said}");
    bucket.restore(&restored);
    assert_eq!(number(&Connection::open(&restored).unwrap(), "SELECT count(*) FROM t"), 400);
    let puts = server.requests().put;
    assert!(puts < 100, "{puts} uploads for 400 commits of 16 threads");
}

#[test]
fn a_commit_that_is_not_acknowledged_says_so_and_is_committed_here() {
    for mode in ALL {
        let pair = Pair::new();
        let options = [("durability", "remote"), ("ack_timeout", "150ms"), ("close_timeout", "0s")];
        let connection = pair.open(&options, mode);
        connection.execute_batch("PRAGMA replicated_durability=local; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
        text(&connection, "PRAGMA replicated_sync");
        assert_eq!(text(&connection, "PRAGMA replicated_durability=remote"), "remote");
        pair.outage();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        insert(&connection).unwrap();
        assert_eq!(code(connection.execute_batch("COMMIT")), NOT_ACKNOWLEDGED, "{mode}");
        assert!(connection.is_autocommit(), "{mode}");
        assert_eq!(number(&connection, "SELECT count(*) FROM t"), 1, "{mode}");
        // There is nothing of its own to wait for.
        connection.execute_batch("BEGIN IMMEDIATE; COMMIT").unwrap();
        connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK").unwrap();
        assert_eq!(code(insert(&connection)), NOT_ACKNOWLEDGED, "{mode}");
        assert_eq!(code(connection.execute_batch("VACUUM")), NOT_ACKNOWLEDGED, "{mode}");
        assert_eq!(text(&connection, "PRAGMA integrity_check"), "ok", "{mode}");
        if !mode.contains("EXCLUSIVE") {
            let other = pair.open(&[], "");
            assert_eq!(number(&other, "SELECT count(*) FROM t"), 2, "{mode}: others see it");
        }
        pair.outage_ends();
        // Ends the pause between two attempts, which is longer than the time limit.
        text(&connection, "PRAGMA replicated_sync");
        let more = until_acknowledged(&connection);
        assert_eq!(number(&pair.restored(), "SELECT count(*) FROM t"), 2 + more, "{mode}: what failed to be acknowledged arrives");
        connection.close().unwrap();
        pair.assert_restores();
    }
}

/// Fact 0.22: an I/O error discards the connection's cache, so that statements which are under way end; others are as before.
#[test]
fn a_select_that_is_under_way_ends_and_the_connection_stays_usable() {
    for mode in [WAL, DELETE, WAL_EXCLUSIVE, DELETE_EXCLUSIVE] {
        let pair = Pair::new();
        let connection = pair.open(&[("ack_timeout", "50ms"), ("close_timeout", "0s")], mode);
        connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
        for _ in 0..50 {
            insert(&connection).unwrap();
        }
        text(&connection, "PRAGMA replicated_sync");
        pair.outage();
        text(&connection, "PRAGMA replicated_durability=remote");
        let mut select = connection.prepare("SELECT v FROM t ORDER BY id").unwrap();
        let mut rows = select.query([]).unwrap();
        assert!(rows.next().unwrap().is_some());
        assert_eq!(code(insert(&connection)), NOT_ACKNOWLEDGED, "{mode}");
        let ended = loop {
            match rows.next() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{mode}: all rows were read"),
                Err(error) => break error,
            }
        };
        assert!(ended.to_string().contains("disk I/O error"), "{mode}: {ended}");
        drop(rows);
        assert_eq!(number(&connection, "SELECT count(*) FROM t"), 51, "{mode}");
        pair.outage_ends();
        text(&connection, "PRAGMA replicated_sync");
        let more = until_acknowledged(&connection);
        assert_eq!(select.query_map([], |_| Ok(())).unwrap().count() as i64, 51 + more, "{mode}");
    }
}

#[test]
fn python_sees_a_disk_io_error_and_the_log_says_what_it_means() {
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let (bucket, proxy) = (Bucket::s3(&server, "python"), Proxy::start(&server.endpoint()).unwrap());
    let log = dir.path().join("log");
    let mut host = Host::start(Program::Python, &bucket.through(&proxy.endpoint()).env);
    let options = [("ack_timeout", "200ms"), ("request_timeout", "1s"), ("log", log.to_str().unwrap()), ("close_timeout", "0s")];
    let db = host.open(&host::replicated(&dir.path().join("app.db"), &bucket.url, &options));
    host.run(db, &format!("{WAL}; CREATE TABLE t(n); INSERT INTO t VALUES (1)"));
    let txid = host.sync(db);
    host.query(db, "PRAGMA replicated_durability=remote");
    for mode in [Mode::Refuse, Mode::Hang] {
        proxy.set(mode).unwrap();
        host.run(db, "BEGIN; INSERT INTO t VALUES (2)");
        assert_eq!(host.try_query(db, "COMMIT").unwrap_err(), "disk I/O error");
        assert_eq!(host.try_query(db, "INSERT INTO t VALUES (2)").unwrap_err(), "disk I/O error");
    }
    assert_eq!(host.value(db, "SELECT count(*) FROM t"), 5);
    let told = std::fs::read_to_string(&log).unwrap();
    let errors: Vec<&str> = told.lines().filter(|line| line.contains("durability=remote returned an I/O error")).collect();
    assert_eq!(errors.len(), 1, "told once in a while: {told}");
    for part in ["committed here and not known to be in the bucket", &txid, "not in the bucket after 200 ms"] {
        assert!(errors[0].contains(part), "{part} is not in {}", errors[0]);
    }
    proxy.set(Mode::Forward).unwrap();
    eventually("commits are acknowledged again", || host.try_query(db, "INSERT INTO t VALUES (3)").is_ok());
    let restored = dir.path().join("restored.db");
    bucket.restore(&restored);
    let all = host.value(db, "SELECT count(*) FROM t");
    assert_eq!(number(&Connection::open(&restored).unwrap(), "SELECT count(*) FROM t"), all.as_i64().unwrap());
}

/// Of what was acknowledged nothing is lost that is older than the bound.
#[test]
fn bounded_commits_go_on_for_max_lag_and_then_fail_until_the_bucket_is_back() {
    const MAX_LAG: Duration = Duration::from_millis(400);
    for mode in [WAL, DELETE, WAL_EXCLUSIVE] {
        let pair = Pair::new();
        let options = [("durability", "bounded"), ("max_lag", "400ms"), ("ack_timeout", "50ms"), ("close_timeout", "0s")];
        let connection = pair.open(&options, mode);
        connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
        text(&connection, "PRAGMA replicated_sync");
        pair.outage();
        insert(&connection).unwrap();
        let oldest = Instant::now();
        let (mut done, mut failed) = (1, 0);
        while failed < 3 {
            let began = Instant::now();
            match insert(&connection) {
                // Before max_lag is over nothing may fail, and after it nothing may succeed.
                Ok(_) => assert!(began < oldest + MAX_LAG && failed == 0, "{mode}: a commit succeeded {:?} later", began - oldest),
                Err(error) => {
                    assert_eq!(code(Err::<(), _>(error)), NOT_ACKNOWLEDGED);
                    failed += 1;
                }
            }
            done += 1;
        }
        connection.execute_batch("BEGIN IMMEDIATE; COMMIT").unwrap();
        pair.outage_ends();
        eventually("writes resume", || {
            done += 1;
            insert(&connection).is_ok()
        });
        text(&connection, "PRAGMA replicated_sync");
        assert_eq!(number(&pair.restored(), "SELECT count(*) FROM t"), done, "{mode}");
    }
}

/// A single commit, nobody who waits, and no token of the budget: it is sent all the same.
#[test]
fn bounded_sends_in_time_without_another_commit() {
    let pair = Pair::new();
    let options = [("durability", "bounded"), ("max_lag", "300ms"), ("sync_interval", "1h"), ("burst", "1")];
    let connection = pair.open(&options, WAL);
    connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
    text(&connection, "PRAGMA replicated_sync");
    let uploads = || status(&connection, "uploads").parse::<u32>().unwrap();
    let before = uploads();
    for n in 1..=3 {
        insert(&connection).unwrap();
        eventually("it is in the bucket", || uploads() >= before + n && status(&connection, "waiting_commits") == "0");
    }
    // Without the bound it waits for a token.
    assert_eq!(text(&connection, "PRAGMA replicated_durability=local"), "local");
    insert(&connection).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!((status(&connection, "waiting_commits").as_str(), uploads()), ("1", before + 3));
}

#[test]
fn durability_is_set_for_each_connection_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let (main, other) = (Bucket::folder(&dir.path().join("main")), Bucket::folder(&dir.path().join("other")));
    let uri = |options: &[(&str, &str)]| host::replicated(&dir.path().join("app.db"), &main.url, options);
    let mut host = Host::start(Program::Python, &[("REPLICATED_DURABILITY".to_owned(), "bounded".to_owned())]);
    let first = host.open(&uri(&[]));
    let second = host.open(&uri(&[("durability", "remote"), ("max_lag", "3s")]));
    let read = "PRAGMA replicated_durability";
    assert_eq!((host.value(first, read), host.value(second, read)), ("bounded".into(), "remote".into()));
    assert_eq!((host.status(first, "max_lag_ms"), host.status(second, "max_lag_ms")), ("10000".to_owned(), "3000".to_owned()));
    for (given, is) in [("local", "local"), ("'bounded'", "bounded"), ("REMOTE", "remote"), ("\"local\"", "local")] {
        assert_eq!(host.value(first, &format!("{read}={given}")), is);
        assert_eq!(host.status(first, "durability"), is);
    }
    assert_eq!(host.value(second, read), "remote");
    for wrong in ["full", "'local '", "1", "off", "''"] {
        let error = host.try_query(first, &format!("{read}={wrong}")).unwrap_err();
        assert!(error.contains("replicated_durability: got") && error.contains("allowed is local, bounded or remote"), "{error}");
    }
    let attached = host::replicated(&dir.path().join("other.db"), &other.url, &[("durability", "local")]);
    host.query(first, &format!("ATTACH '{attached}' AS aux"));
    assert_eq!(host.value(first, "PRAGMA aux.replicated_durability=remote"), "remote");
    assert_eq!((host.value(first, read), host.value(first, "PRAGMA main.replicated_durability")), ("local".into(), "local".into()));
    let error = host.try_query(first, "PRAGMA replicated_durabilty").unwrap_err();
    assert!(error.contains("there are replicated_durability, replicated_status, replicated_sync and replicated_wait"), "{error}");
    for wrong in [("durability", "all"), ("max_lag", "10"), ("ack_timeout", "2h")] {
        host.try_open(&uri(&[wrong])).unwrap_err();
    }
}

#[test]
fn a_txid_can_be_waited_for_without_a_request() {
    let server = Server::with_options(Options { delay: Duration::from_millis(300), ..Options::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (bucket, path, restored) = (Bucket::s3(&server, "wait"), dir.path().join("app.db"), dir.path().join("restored.db"));
    let mut host = Host::start(Program::Python, &bucket.env);
    let options = [("sync_interval", "1h"), ("burst", "20"), ("sync_timeout", "20s"), ("close_timeout", "0s")];
    let db = host.open(&host::replicated(&path, &bucket.url, &options));
    host.run(db, &format!("{WAL}; CREATE TABLE t(n)"));
    let mut reached = String::new();
    for n in 1..=6 {
        // The first of them while the snapshot is on its way, the others while a batch is, or is not.
        host.query(db, &format!("INSERT INTO t VALUES ({n})"));
        if n % 2 == 0 {
            std::thread::sleep(Duration::from_millis(100));
            host.query(db, "UPDATE t SET n = n");
        }
        let wanted = host.status(db, "local_txid");
        let newest = host.value(db, &format!("PRAGMA replicated_wait='{wanted}'"));
        assert_eq!(newest, wanted.as_str(), "the TXID is not later than it has to be");
        assert!(wanted > reached, "{wanted} after {reached}");
        bucket.restore(&restored);
        assert_eq!(number(&Connection::open(&restored).unwrap(), "SELECT max(n) FROM t"), n);
        reached = wanted;
    }
    assert_eq!(host.status(db, "local_txid"), host.status(db, "remote_txid"));
    assert_eq!(host.value(db, "PRAGMA replicated_wait=2"), reached.as_str());
    for wrong in ["", "=''", "='0'", "='xyz'", "=-1", "='00000000000000001'"] {
        let error = host.try_query(db, &format!("PRAGMA replicated_wait{wrong}")).unwrap_err();
        assert!(error.contains("replicated_wait: got") && error.contains("allowed is a TXID in quotes"), "{error}");
    }
    host.close(db);
    // Opened and not read yet; and a TXID that nobody has made.
    let options = [("sync_interval", "1h"), ("sync_timeout", "50ms"), ("close_timeout", "0s")];
    let db = host.open(&host::replicated(&path, &bucket.url, &options));
    let error = host.try_query(db, "PRAGMA replicated_wait='ffff'").unwrap_err();
    assert!(error.contains("replicated_wait: not in the bucket after 50 ms"), "{error}");
    let puts = server.requests().put;
    eventually("the bucket has been looked at", || host.try_query(db, &format!("PRAGMA replicated_wait='{reached}'")).is_ok());
    assert_eq!(server.requests().put, puts);
}

/// Whatever else happens to the database while a commit waits, it happens, and the commit is acknowledged in the end.
#[test]
fn nobody_waits_for_a_commit_that_waits() {
    let pair = Pair::new();
    let waits = pair.open(&[("durability", "remote"), ("ack_timeout", "1h")], WAL);
    waits.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); PRAGMA wal_autocheckpoint=1").unwrap();
    let other = pair.open(&[("durability", "local")], "");
    other.busy_timeout(Duration::ZERO).unwrap();
    pair.outage();
    let thread = std::thread::spawn(move || {
        insert(&waits).unwrap();
        waits
    });
    eventually("the commit has been made", || number(&other, "SELECT count(*) FROM t") == 1);
    let third = pair.open(&[("durability", "local")], "");
    for _ in 0..3 {
        insert(&other).unwrap();
        for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
            assert!((0..=1).contains(&number(&other, &format!("PRAGMA wal_checkpoint({kind})"))));
        }
    }
    insert(&third).unwrap();
    third.close().unwrap();
    assert_eq!(text(&other, "PRAGMA integrity_check"), "ok");
    assert!(!thread.is_finished());
    pair.outage_ends();
    let waits = thread.join().unwrap();
    assert_eq!(number(&pair.restored(), "SELECT min(id) FROM t"), 1);
    text(&other, "PRAGMA replicated_sync");
    other.close().unwrap();
    waits.close().unwrap();
    pair.assert_restores();
}

/// Where replication stops for good, those who wait are told at once: their time limit is an hour.
#[test]
fn a_stop_ends_the_wait() {
    let pair = Pair::new();
    let connection = pair.open(&[("durability", "remote"), ("ack_timeout", "1h"), ("close_timeout", "0s")], WAL);
    connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
    insert(&connection).unwrap();
    // Another writer takes the next name.
    let level0 = pair.folder().join("ltx/0");
    let newest = status(&connection, "remote_txid");
    let next = format!("{:016x}", u64::from_str_radix(&newest, 16).unwrap() + 1);
    std::fs::copy(level0.join(format!("{newest}-{newest}.ltx")), level0.join(format!("{next}-{next}.ltx"))).unwrap();
    assert_eq!(code(insert(&connection)), NOT_ACKNOWLEDGED);
    assert_eq!(status(&connection, "state"), "fenced");
    assert_eq!(code(insert(&connection)), NOT_ACKNOWLEDGED);
    text(&connection, "PRAGMA replicated_durability=bounded");
    insert(&connection).unwrap();
    text(&connection, "PRAGMA replicated_durability=local");
    insert(&connection).unwrap();
    assert_eq!(number(&connection, "SELECT count(*) FROM t"), 5);
}

/// While the full state is sent again a commit waits for that.
#[test]
fn a_commit_waits_for_the_full_state_after_a_break() {
    let pair = Pair::new();
    pair.open(&[], &format!("{WAL}; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")).close().unwrap();
    let foreign = Connection::open(pair.path()).unwrap();
    foreign.execute_batch("CREATE TABLE made_elsewhere(x)").unwrap();
    foreign.close().unwrap();
    let connection = pair.open(&[("durability", "remote"), ("sync_interval", "1h")], "");
    insert(&connection).unwrap();
    assert_eq!(number(&pair.restored(), "SELECT (SELECT count(*) FROM t) + count(*) FROM made_elsewhere"), 1);
    assert_eq!(status(&connection, "snapshots"), "1");
}

const FORK: &str = r#"
import os, sqlite3, sys
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
connection = sqlite3.connect(sys.argv[2], uri=True, isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("CREATE TABLE t(x)")
folder = sys.argv[3]
os.rename(folder, folder + ".away")
open(folder, "w").close()
child = os.fork()
if child == 0:
    # SQLite forbids this, and programs do it all the same.
    connection.execute("INSERT INTO t VALUES (1)")
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("done", flush=True)
os._exit(0)
"#;

#[test]
fn the_child_of_a_fork_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let uri = host::replicated(&dir.path().join("app.db"), &bucket.url, &[("durability", "remote"), ("ack_timeout", "1h")]);
    let mut command = host::command(host::python(), &[]);
    command.args(["-c", FORK]).arg(host::extension()).arg(uri).arg(dir.path().join("bucket"));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    eventually("the child of the fork returns", || child.try_wait().unwrap().is_some());
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "done\n");
}

/// `committers` with fail points, whose rules are given; what it said until it ended.
fn committers_with_faults(faults: &str, machine: &Path, bucket: &Bucket, threads: u32, commits: u32, mode: &str) -> Vec<String> {
    let mut env = bucket.env.clone();
    env.push(("REPLICATED_TEST_FAULT".to_owned(), faults.to_owned()));
    let mut command = host::command(host::faulty_program("crash-host"), &env);
    let options = [("durability", "remote"), ("ack_timeout", "1h"), ("close_timeout", "0s")];
    command.arg("committers").arg(host::replicated(&machine.join("app.db"), &bucket.url, &options));
    let output = command.args([threads.to_string(), commits.to_string()]).arg(mode).stderr(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Commits that returned.
fn acknowledged_by(said: &[String]) -> BTreeSet<(i64, i64)> {
    let words = said.iter().map(|line| line.split(' ').map(|word| word.parse::<i64>()).collect::<Vec<_>>());
    words.filter_map(|words| if let [Ok(thread), Ok(n)] = words.as_slice() { Some((*thread, *n)) } else { None }).collect()
}

/// A process that dies at any step of the extension.
#[test]
fn at_any_fail_point_nothing_acknowledged_is_lost() {
    let (seed, rounds) = (number_of("REPLICATED_TEST_SEED", 1), number_of("REPLICATED_TEST_KILL_ROUNDS", 6) * 3);
    let mut random = fastrand::Rng::with_seed(seed ^ 0xfa11);
    for (mode, threads) in [(WAL, 3), (DELETE, 2), (WAL_EXCLUSIVE, 1), (DELETE_EXCLUSIVE, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let (bucket, restored) = (Bucket::folder(&dir.path().join("bucket")), dir.path().join("restored.db"));
        let (mut acknowledged, mut deaths) = (BTreeSet::new(), 0);
        for round in 0..rounds {
            let point = random.u64(1..if round < 3 { 60 } else { 300 });
            let said = committers_with_faults(&format!("*=kill@{point}"), dir.path(), &bucket, threads, 40, mode);
            let when = format!("{mode}, round {round}, point {point}, seed {seed}");
            assert!(!said.iter().any(|line| line.starts_with("failed")), "{when}: {said:?}");
            acknowledged.append(&mut acknowledged_by(&said));
            deaths += usize::from(said.len() < threads as usize * 40);
            if acknowledged.is_empty() && bucket.try_list().is_empty() {
                continue;
            }
            bucket.restore(&restored);
            integrity_check(&restored).unwrap();
            let lost: Vec<_> = acknowledged.difference(&rows_of(&restored)).copied().collect();
            assert!(lost.is_empty(), "{when}: {lost:?} of {} were acknowledged and are lost", acknowledged.len());
        }
        assert!(deaths > 0 && !acknowledged.is_empty(), "{mode}: {deaths} deaths, {} commits", acknowledged.len());
    }
}

/// A fault of ours, in a thread of SQLite's or in the uploader's: no commit passes for acknowledged, and nobody waits for an hour.
#[test]
fn a_panic_acknowledges_nothing() {
    for (mode, fault) in [
        (WAL, "commit.publish=panic@12"),
        (WAL_EXCLUSIVE, "commit.publish=panic@12"),
        (DELETE, "spool.create=panic@5"),
        (WAL, "send.put=panic@5"),
        (DELETE, "send.done=panic@5"),
        (WAL, "ack.save=panic@5"),
        (WAL, "freeze.encoded=panic@5"),
        (WAL, "full.put=panic"),
        (DELETE, "step=panic@20"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (bucket, restored) = (Bucket::folder(&dir.path().join("bucket")), dir.path().join("restored.db"));
        let said = committers_with_faults(fault, dir.path(), &bucket, 1, 30, mode);
        let acknowledged = acknowledged_by(&said);
        let failed = said.iter().filter(|line| line.starts_with("failed") && line.ends_with(" 7690")).count();
        // Where the fault came before the first of them, the statement that made the table has failed.
        assert_eq!(acknowledged.len() + failed, said.len(), "{mode}, {fault}: {said:?}");
        assert!(said.is_empty() || failed > 0, "{mode}, {fault}: the fault was not reached: {said:?}");
        if !acknowledged.is_empty() {
            bucket.restore(&restored);
            assert!(acknowledged.is_subset(&rows_of(&restored)), "{mode}, {fault}: {said:?}");
        }
        // Another open recovers it.
        let again = committers_with_faults("", dir.path(), &bucket, 1, 3, mode);
        assert_eq!(acknowledged_by(&again).len(), 3, "{mode}, {fault}: {again:?}");
        bucket.restore(&restored);
        page_compare(&flattened(&dir.path().join("app.db"), dir.path()), &restored).unwrap();
    }
}

fn number_of(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The rows of a restored database that `committers` has written.
fn rows_of(path: &Path) -> BTreeSet<(i64, i64)> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    if number(&connection, "SELECT count(*) FROM sqlite_schema WHERE name = 't'") == 0 {
        return BTreeSet::new();
    }
    let mut select = connection.prepare("SELECT thread, n FROM t").unwrap();
    select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
}

/// kill -9 of a program with threads that commit, at random moments; then only the bucket is left, and every commit that returned is in it.
fn nothing_acknowledged_is_lost(name: &str, bucket: &Bucket, mode: &str, threads: u32, options: &[(&str, &str)]) {
    let (seed, rounds) = (number_of("REPLICATED_TEST_SEED", 1), number_of("REPLICATED_TEST_KILL_ROUNDS", 6));
    let mut random = fastrand::Rng::with_seed(seed ^ name.bytes().map(u64::from).sum::<u64>());
    let dir = tempfile::tempdir().unwrap();
    let mut machine = dir.path().join("machine-0");
    std::fs::create_dir(&machine).unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 1..=rounds {
        let when = format!("{name}, round {round}, seed {seed}");
        let mut all_options = vec![("durability", "remote")];
        all_options.extend_from_slice(options);
        let mut command = host::command(host::program("committers"), &bucket.env);
        command.arg(host::replicated(&machine.join("app.db"), &bucket.url, &all_options)).args([&threads.to_string(), "0", mode]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let moment = Duration::from_micros(random.u64(0..300_000));
        let mut killer = None;
        while let Some(Ok(line)) = lines.next() {
            let words: Vec<&str> = line.split(' ').collect();
            let [thread, n] = words.as_slice() else { panic!("{when}: {line}") };
            acknowledged.insert((thread.parse::<i64>().unwrap(), n.parse::<i64>().unwrap()));
            killer.get_or_insert_with(|| {
                let pid = child.id().to_string();
                std::thread::spawn(move || {
                    std::thread::sleep(moment);
                    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
                })
            });
        }
        killer.unwrap_or_else(|| panic!("{when}: nothing was committed")).join().unwrap();
        child.wait().unwrap();

        let next = dir.path().join(format!("machine-{round}"));
        std::fs::create_dir(&next).unwrap();
        let restored = next.join("app.db");
        let mut restore = host::command(env!("CARGO_BIN_EXE_replicated"), &bucket.env);
        let done = restore.args(["restore", &bucket.url, "-o"]).arg(&restored).output().unwrap();
        assert!(done.status.success(), "{when}: {}", String::from_utf8_lossy(&done.stderr));
        integrity_check(&restored).unwrap();
        let lost: Vec<_> = acknowledged.difference(&rows_of(&restored)).copied().collect();
        assert!(lost.is_empty(), "{when}: {lost:?} of {} were acknowledged and are lost", acknowledged.len());
        // Life goes on where it was, or on a new machine.
        if random.bool() {
            machine = next;
        }
    }
}

#[test]
fn threads_on_s3_lose_nothing_that_was_acknowledged() {
    let server = Server::with_options(Options { delay: Duration::from_millis(10), ..Options::default() }).unwrap();
    nothing_acknowledged_is_lost("wal", &Bucket::s3(&server, "kill"), WAL, 4, &[]);
}

#[test]
fn threads_whose_wal_restarts_lose_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mode = format!("{WAL}; PRAGMA wal_autocheckpoint=5");
    nothing_acknowledged_is_lost("restarts", &Bucket::folder(&dir.path().join("bucket")), &mode, 3, &[]);
}

#[test]
fn rollback_journals_lose_nothing_that_was_acknowledged() {
    let server = Server::with_options(Options { delay: Duration::from_millis(5), ..Options::default() }).unwrap();
    nothing_acknowledged_is_lost("delete", &Bucket::s3(&server, "kill"), DELETE, 2, &[]);
}

#[test]
fn exclusive_locking_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    nothing_acknowledged_is_lost("exclusive", &Bucket::folder(&dir.path().join("wal")), WAL_EXCLUSIVE, 1, &[]);
    nothing_acknowledged_is_lost("exclusive delete", &Bucket::folder(&dir.path().join("delete")), DELETE_EXCLUSIVE, 1, &[]);
}
