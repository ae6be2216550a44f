//! Several connections on several threads write, checkpoint, open and close at once, from before the first snapshot on. Every TXID restores
//! to a state that was committed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use replicated::restore::Target;
use replicated::types::Txid;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host;
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::{integrity_check, page_compare};
use rusqlite::Connection;

/// Each writer moves amounts between cells and notes the number of its transaction; checkpoints of all kinds come in between, and
/// connections come and go.
const SCRIPT: &str = r#"
import random, sqlite3, sys, threading
extension, uri, seed, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(extension)
def connect():
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60, check_same_thread=False)
    connection.execute("PRAGMA wal_autocheckpoint=40")
    return connection
first = connect()
first.execute("PRAGMA journal_mode=WAL")
writing, failures = [4], []
def writer(which):
    rng = random.Random(seed * 100 + which)
    connection = connect()
    for n in range(1, rounds + 1):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE writers SET n = ? WHERE id = ?", (n, which))
        amount = rng.randrange(1000)
        for sign in (1, -1):
            connection.execute("UPDATE cells SET v = v + ?, x = randomblob(?) WHERE id = ?",
                               (sign * amount, rng.randrange(3000), rng.randrange(1, 501)))
        if rng.random() < 0.1:
            connection.execute("SAVEPOINT s")
            connection.execute("UPDATE cells SET v = v + 1, x = randomblob(1000)")
            connection.execute("ROLLBACK TO s")
        connection.execute("COMMIT")
        if rng.random() < 0.05:
            connection.close()
            connection = connect()
    connection.close()
def checkpointer():
    rng = random.Random(seed)
    connection = connect()
    while writing[0]:
        try:
            connection.execute("PRAGMA wal_checkpoint(%s)" % rng.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])).fetchall()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error): raise
    connection.close()
def reader():
    while writing[0]:
        connection = connect()
        for _ in range(20):
            assert connection.execute("SELECT sum(v) FROM cells").fetchone() == (0,)
        connection.close()
def guarded(body, *arguments):
    try:
        body(*arguments)
    except BaseException as error:
        failures.append(repr(error))
threads = [threading.Thread(target=guarded, args=(writer, i)) for i in range(1, 5)]
others = [threading.Thread(target=guarded, args=(checkpointer,)), threading.Thread(target=guarded, args=(reader,))]
for thread in threads + others: thread.start()
for thread in threads: thread.join()
writing[0] = 0
for thread in others: thread.join()
assert not failures, failures
first.execute("PRAGMA replicated_sync='100s'")
first.close()
"#;

fn whole(path: &std::path::Path, earlier: &[i64]) -> Vec<i64> {
    integrity_check(path).unwrap();
    let connection = Connection::open(path).unwrap();
    assert_eq!(connection.query_row("SELECT sum(v) FROM cells", [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    let mut statement = connection.prepare("SELECT n FROM writers ORDER BY id").unwrap();
    let now: Vec<i64> = statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    assert!(now.iter().zip(earlier).all(|(now, earlier)| now >= earlier), "{now:?} after {earlier:?}");
    now
}

#[test]
fn threads_that_do_everything_at_once() {
    for (seed, delay, interval) in [(1, 0, "10ms"), (2, 40, "10ms"), (3, 10, "1s")] {
        let server = Server::with_options(Options { delay: Duration::from_millis(delay), ..Options::default() }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (path, log) = (dir.path().join("app.db"), dir.path().join("log"));
        let plain = Connection::open(&path).unwrap();
        plain
            .execute_batch(
                "PRAGMA journal_mode=WAL; CREATE TABLE writers(id INTEGER PRIMARY KEY, n); INSERT INTO writers VALUES (1,0),(2,0),(3,0),(4,0);
                 CREATE TABLE cells(id INTEGER PRIMARY KEY, v INTEGER, x BLOB);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500) INSERT INTO cells SELECT i, 0, randomblob(3000) FROM n;
                 -- Pages that never change, so that only a full state has every page.
                 CREATE TABLE ballast(x); INSERT INTO ballast VALUES (zeroblob(200000))",
            )
            .unwrap();
        drop(plain);
        let bucket = Bucket::s3(&server, "threads");
        let uri = host::replicated(&path, &bucket.url, &[("sync_interval", interval), ("log", log.to_str().unwrap())]);
        let mut command = host::command(host::python(), &bucket.env);
        command.args(["-c", SCRIPT]).arg(host::extension()).arg(uri).args([seed.to_string(), "120".to_owned()]);
        let output = command.output().unwrap();
        let told = || std::fs::read_to_string(&log).unwrap_or_default();
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), told());
        let restored = dir.path().join("restored.db");
        let newest = bucket.list().iter().map(|l| l.name.max_txid.get()).max().unwrap();
        let mut state = Vec::new();
        for txid in 2..=newest {
            if txid < 10 || txid == newest || txid % 11 == 0 {
                bucket.try_restore(Target::Txid(Txid::new(txid).unwrap()), &restored).unwrap();
                state = whole(&restored, &state);
            }
        }
        assert_eq!(state, [120; 4], "{}", told());
        page_compare(&flattened(&path, dir.path()), &restored).unwrap();
        assert_eq!(bucket.full_states(), 1, "{}", told());
        assert!(!told().contains("ERROR") && !told().contains("WARN"), "{}", told());
    }
}
