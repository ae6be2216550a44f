//! Faults that were found by thinking through interleavings, each kept as the property that it broke.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // Helpers and child processes are part of tests.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use replicated::restore::{RestoreOptions, restore};
use replicated::store::{self, Listed, ReplicaUrl, StoreOptions};
use replicated::types::Txid;
use replicated_testkit::sqlite::integrity_check;
use rusqlite::{Connection, OpenFlags};

/// The tests share the process's one uploader, which some of them block or measure.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A database and its bucket.
struct Pair {
    _dir: tempfile::TempDir,
    db: PathBuf,
    bucket: PathBuf,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (db, bucket) = (dir.path().join("app.db"), dir.path().join("bucket"));
        Self { _dir: dir, db, bucket }
    }

    fn at(db: &str, bucket: &str) -> Self {
        Self { _dir: tempfile::tempdir().unwrap(), db: db.into(), bucket: bucket.into() }
    }

    fn url(&self) -> String {
        format!("file://{}", self.bucket.display())
    }

    fn try_open(&self, more: &str) -> rusqlite::Result<Connection> {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let _ = log::set_logger(&Gate);
            log::set_max_level(log::LevelFilter::Debug);
            replicated::register!(rusqlite::ffi).unwrap();
        });
        let uri = format!("file:{}?vfs=replicated&replica={}&sync_interval=100ms&burst=100{more}", self.db.display(), self.url());
        Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI)
    }

    fn open(&self) -> Connection {
        self.try_open("").unwrap()
    }

    /// Opens, makes a table, waits for the bucket.
    fn begin(&self) -> Connection {
        let connection = self.open();
        wal(&connection);
        connection.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
        sync(&connection).unwrap();
        connection
    }

    /// The bucket becomes unreachable: its place is taken by a file.
    fn outage(&self) {
        if self.bucket.is_dir() {
            std::fs::rename(&self.bucket, self.bucket.with_extension("away")).unwrap();
        }
        // An upload that is under way makes the folder anew.
        while std::fs::write(&self.bucket, b"not a folder").is_err() {
            let _ = std::fs::remove_dir_all(&self.bucket);
        }
    }

    fn outage_ends(&self) {
        std::fs::remove_file(&self.bucket).unwrap();
        let away = self.bucket.with_extension("away");
        if away.exists() {
            std::fs::rename(away, &self.bucket).unwrap();
        }
    }

    fn listed(&self) -> Vec<Listed> {
        let store = store::open(&ReplicaUrl::parse(&self.url()).unwrap(), &StoreOptions::default()).unwrap();
        replicated::restore::catalogue(&*store).unwrap_or_default()
    }

    fn newest(&self) -> Txid {
        self.listed().iter().map(|l| l.name.max_txid).max().unwrap()
    }

    fn level0(&self, txid: Txid) -> PathBuf {
        self.bucket.join("ltx/0").join(format!("{txid}-{txid}.ltx"))
    }

    /// What the bucket restores to has the content of the database, and is sound.
    #[track_caller]
    fn assert_restores(&self) {
        let store = store::open(&ReplicaUrl::parse(&self.url()).unwrap(), &StoreOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("restored.db");
        restore(&*store, &RestoreOptions::latest(&out)).unwrap();
        integrity_check(&out).unwrap();
        assert_eq!(rows(&Connection::open(&out).unwrap()), rows(&Connection::open(&self.db).unwrap()));
    }
}

fn wal(connection: &Connection) {
    let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |r| r.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

fn insert(connection: &Connection, rows: u32) {
    for _ in 0..rows {
        connection.execute("INSERT INTO t(v) VALUES (randomblob(3000))", []).unwrap();
    }
}

fn rows(connection: &Connection) -> Vec<(i64, Vec<u8>)> {
    let mut statement = connection.prepare("SELECT id, CAST(v AS BLOB) FROM t ORDER BY id").unwrap();
    statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect()
}

fn sync(connection: &Connection) -> rusqlite::Result<String> {
    connection.query_row("PRAGMA replicated_sync='10s'", [], |r| r.get(0))
}

fn status(connection: &Connection, name: &str) -> String {
    let text: String = connection.query_row("PRAGMA replicated_status", [], |r| r.get(0)).unwrap();
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).unwrap().to_owned()
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processor time that the process takes within that much time.
fn cpu_within(time: Duration) -> Duration {
    // User and system time, in clock ticks of 10 ms.
    let now = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        Duration::from_millis((fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10)
    };
    let before = now();
    std::thread::sleep(time);
    now() - before
}

/// A logger that holds the uploader's thread at a line that a test chose.
struct Gate;

static HELD_AT: Mutex<Option<String>> = Mutex::new(None);
static IS_HELD: Mutex<bool> = Mutex::new(false);
static LET_GO: Condvar = Condvar::new();

impl log::Log for Gate {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target() != "replicated" {
            return;
        }
        let line = record.args().to_string();
        if std::env::var_os("SHOW_LOG").is_some() {
            eprintln!("{} {line}", record.level());
        }
        let mut held = HELD_AT.lock().unwrap();
        if held.as_ref().is_some_and(|text| line.contains(text.as_str())) {
            *IS_HELD.lock().unwrap() = true;
            while held.is_some() {
                held = LET_GO.wait(held).unwrap();
            }
            *IS_HELD.lock().unwrap() = false;
        }
    }

    fn flush(&self) {}
}

fn hold_uploader_at(text: &str) {
    *HELD_AT.lock().unwrap() = Some(text.to_owned());
}

fn let_uploader_go() {
    *HELD_AT.lock().unwrap() = None;
    LET_GO.notify_all();
}

/// Runs one of `child`'s parts in a process of its own, up to the line `ready`; the caller kills it.
fn spawn_child(part: &str, pair: &Pair) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("REGRESSION_PART", part)
        .env("REGRESSION_DB", &pair.db)
        .env("REGRESSION_BUCKET", &pair.bucket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    wait_for_line(&mut out, "ready");
    (child, out)
}

fn wait_for_line(out: &mut impl BufRead, expected: &str) {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the child ended");
        if line.trim_end().ends_with(expected) {
            return;
        }
    }
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Not a test of its own: what runs in the processes that are killed.
#[test]
fn child() {
    let Ok(part) = std::env::var("REGRESSION_PART") else { return };
    let pair = Pair::at(&std::env::var("REGRESSION_DB").unwrap(), &std::env::var("REGRESSION_BUCKET").unwrap());
    let wait = || {
        println!("ready");
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
    };
    match part.as_str() {
        // The bucket cannot be reached; the WAL is restarted.
        "first-outage" => {
            let connection = pair.open();
            wal(&connection);
            connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
            insert(&connection, 20);
            let _: i64 = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |r| r.get(0)).unwrap();
            insert(&connection, 1);
            wait();
        }
        // Two moments, each with everything in the bucket.
        "two-moments" => {
            let connection = pair.begin();
            insert(&connection, 3);
            sync(&connection).unwrap();
            wait();
            insert(&connection, 3);
            sync(&connection).unwrap();
            insert(&connection, 3);
            sync(&connection).unwrap();
            wait();
        }
        // A batch is being sent to a bucket that is away, and the WAL is restarted meanwhile.
        "attempt-in-file" => {
            let connection = pair.begin();
            insert(&connection, 3);
            sync(&connection).unwrap();
            pair.outage();
            insert(&connection, 5);
            eventually("the attempt", || status(&connection, "state") == "offline");
            let _: i64 = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |r| r.get(0)).unwrap();
            insert(&connection, 1);
            wait();
        }
        other => panic!("{other}"),
    }
    std::process::abort();
}

fn control(pair: &Pair) -> PathBuf {
    pair.db.with_file_name("app.db-replicated").join("control")
}

/// Replaces a file's content without giving it another inode.
fn overwrite(path: &Path, content: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(content, 0).unwrap();
    file.set_len(content.len() as u64).unwrap();
}

#[test]
fn what_was_committed_while_replication_stood_still_is_never_taken_for_sent() {
    let _alone = alone();
    let pair = Pair::new();
    let connection = pair.begin();
    insert(&connection, 20);
    sync(&connection).unwrap();
    connection.close().unwrap();
    // Something that looks like another writer's file: replication refuses to go on.
    let newest = pair.newest();
    std::fs::copy(pair.level0(newest), pair.level0(newest.next())).unwrap();
    let connection = pair.open();
    connection.execute_batch("UPDATE t SET v = zeroblob(3000); INSERT INTO t(v) VALUES ('not sent')").unwrap();
    // Found by a listing, or by the name that is taken.
    let has_stopped = |connection: &Connection| status(connection, "state") == "fenced";
    eventually("divergence", || has_stopped(&connection));
    connection.close().unwrap();
    // The user removes it. What was committed meanwhile is in no batch, so only the full state continues the history.
    std::fs::remove_file(pair.level0(newest.next())).unwrap();
    let connection = pair.open();
    insert(&connection, 1);
    if sync(&connection).is_ok() {
        connection.close().unwrap();
        pair.assert_restores();
    } else {
        assert!(has_stopped(&connection));
    }
}

#[test]
fn reopening_while_the_last_close_flushes_leaves_the_uploader_at_work_and_asleep() {
    let _alone = alone();
    let pair = Pair::new();
    let first = pair.begin();
    first.close().unwrap();
    let first = pair.try_open("&close_timeout=1s").unwrap();
    insert(&first, 3);
    sync(&first).unwrap();
    pair.outage();
    insert(&first, 3);
    let closing = std::thread::spawn(move || first.close().unwrap());
    std::thread::sleep(Duration::from_millis(300));
    let second = pair.open();
    assert_eq!(rows(&second).len(), 6);
    closing.join().unwrap();
    // More than what is left in the WAL while nothing can be sent.
    insert(&second, 180);
    let spent = cpu_within(Duration::from_millis(1500));
    assert!(spent < Duration::from_millis(500), "{spent:?} of processor time in 1.5 s of waiting");
    pair.outage_ends();
    sync(&second).unwrap();
    second.close().unwrap();
    pair.assert_restores();
}

#[test]
fn a_handle_that_reads_nothing_costs_nothing_and_holds_up_nobody() {
    let _alone = alone();
    let pair = Pair::new();
    pair.begin().close().unwrap();
    let first = pair.try_open("&close_timeout=1s").unwrap();
    insert(&first, 3);
    sync(&first).unwrap();
    // Keeps the WAL beyond the last close.
    let reader = pair.try_open("&mode=ro").unwrap();
    assert_eq!(rows(&reader).len(), 3);
    pair.outage();
    insert(&first, 3);
    let closing = std::thread::spawn(move || first.close().unwrap());
    std::thread::sleep(Duration::from_millis(300));
    let idle = pair.try_open("&close_timeout=1s").unwrap();
    // Only now is the file opened for real, yet nothing is read.
    let _: String = idle.query_row("PRAGMA replicated_status", [], |r| r.get(0)).unwrap();
    closing.join().unwrap();
    let spent = cpu_within(Duration::from_millis(1500));
    assert!(spent < Duration::from_millis(500), "{spent:?} of processor time in 1.5 s of waiting");
    let other = Pair::new();
    other.begin().close().unwrap();
    other.assert_restores();
    pair.outage_ends();
    insert(&idle, 1);
    sync(&idle).unwrap();
    drop(reader);
    idle.close().unwrap();
    pair.assert_restores();
}

#[test]
fn a_commit_that_the_full_channel_dropped_is_sent_without_another() {
    let _alone = alone();
    let (loud, quiet, blocker) = (Pair::new(), Pair::new(), Pair::new());
    let many = loud.begin();
    let one = quiet.begin();
    hold_uploader_at("sending the full state");
    let blocked = blocker.open();
    wal(&blocked);
    blocked.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
    eventually("the uploader is held", || *IS_HELD.lock().unwrap());
    for _ in 0..5000 {
        many.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    }
    one.execute("INSERT INTO t(v) VALUES (zeroblob(1))", []).unwrap();
    let before = quiet.newest();
    let_uploader_go();
    eventually("the commit is in the bucket", || quiet.newest() > before);
}

#[test]
fn a_database_is_sent_though_its_wal_was_truncated_before_the_bucket_came() {
    let _alone = alone();
    let pair = Pair::new();
    pair.outage();
    let connection = pair.open();
    wal(&connection);
    connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
    insert(&connection, 5);
    eventually("an attempt", || status(&connection, "state") == "offline");
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0)).unwrap();
    assert_eq!(busy, 0);
    pair.outage_ends();
    sync(&connection).unwrap();
    assert_eq!(status(&connection, "snapshots"), "1");
    insert(&connection, 5);
    sync(&connection).unwrap();
    assert_eq!(status(&connection, "snapshots"), "1");
    connection.close().unwrap();
    pair.assert_restores();
}

#[test]
fn a_snapshot_that_is_begun_again_leaves_nothing_of_the_first_moment_to_be_sent_after_it() {
    let _alone = alone();
    let pair = Pair::new();
    hold_uploader_at("sending the full state");
    let connection = pair.open();
    wal(&connection);
    connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
    eventually("the first moment", || *IS_HELD.lock().unwrap());
    pair.outage();
    let_uploader_go();
    eventually("its end", || status(&connection, "state") == "offline");
    insert(&connection, 20);
    // Goes into the spool, as it comes after the first moment.
    connection.execute_batch("UPDATE t SET v = zeroblob(3000)").unwrap();
    let _: i64 = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |r| r.get(0)).unwrap();
    // Newer versions of those pages, which the second moment has.
    connection.execute_batch("UPDATE t SET v = randomblob(3000)").unwrap();
    pair.outage_ends();
    sync(&connection).unwrap();
    connection.execute_batch("CREATE TABLE other(x)").unwrap();
    sync(&connection).unwrap();
    pair.assert_restores();
}

#[test]
fn a_full_state_that_arrived_before_the_crash_is_recognised() {
    let _alone = alone();
    let pair = Pair::new();
    let connection = pair.begin();
    insert(&connection, 3);
    connection.close().unwrap();
    let before = std::fs::read(control(&pair)).unwrap();
    // Continuity is lost, the full state is sent.
    let plain = Connection::open(&pair.db).unwrap();
    plain.execute_batch("CREATE TABLE other(x); INSERT INTO t(v) VALUES (1)").unwrap();
    plain.close().unwrap();
    let connection = pair.open();
    let first = pair.newest();
    insert(&connection, 1);
    sync(&connection).unwrap();
    assert!(pair.newest() > first);
    connection.close().unwrap();
    // A crash between the object's arrival and the control file's.
    overwrite(&control(&pair), &before);
    let connection = pair.open();
    insert(&connection, 1);
    sync(&connection).unwrap();
    connection.close().unwrap();
    pair.assert_restores();
}

#[test]
fn a_control_file_set_back_by_a_power_loss_does_not_end_replication() {
    let _alone = alone();
    let pair = Pair::new();
    let (mut child, mut out) = spawn_child("two-moments", &pair);
    let before = std::fs::read(control(&pair)).unwrap();
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    wait_for_line(&mut out, "ready");
    kill(child);
    overwrite(&control(&pair), &before);
    let connection = pair.open();
    insert(&connection, 1);
    sync(&connection).unwrap();
    assert_eq!(status(&connection, "snapshots"), "0", "the WAL proves where the bucket ends");
    connection.close().unwrap();
    pair.assert_restores();
}

#[test]
fn a_database_that_the_bucket_never_had_is_sent_whatever_happened_to_its_wal() {
    let _alone = alone();
    let pair = Pair::new();
    pair.outage();
    let (child, _out) = spawn_child("first-outage", &pair);
    kill(child);
    // Somebody else checkpoints and deletes the WAL.
    let plain = Connection::open(&pair.db).unwrap();
    plain.execute_batch("INSERT INTO t(v) VALUES (1)").unwrap();
    plain.close().unwrap();
    pair.outage_ends();
    let connection = pair.open();
    assert_eq!(rows(&connection).len(), 22);
    sync(&connection).unwrap();
    connection.close().unwrap();
    pair.assert_restores();
}

#[test]
fn an_unrelated_database_under_the_same_name_is_not_sent_over_the_bucket() {
    let _alone = alone();
    let pair = Pair::new();
    let connection = pair.begin();
    for i in 0..5 {
        connection.execute_batch(&format!("CREATE TABLE more{i}(x)")).unwrap();
    }
    connection.close().unwrap();
    let newest = pair.newest();
    let other = pair.db.with_file_name("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
    overwrite(&pair.db, &std::fs::read(&other).unwrap());
    let connection = pair.open();
    wal(&connection);
    insert(&connection, 1);
    let error = sync(&connection).unwrap_err().to_string();
    assert!(error.contains("diverged"), "{error}");
    connection.close().unwrap();
    assert_eq!(pair.newest(), newest);
}

#[test]
fn a_database_made_anew_under_the_same_name_is_another_one_even_where_the_inode_is_reused() {
    let _alone = alone();
    let pair = Pair::new();
    let connection = pair.begin();
    insert(&connection, 1);
    connection.close().unwrap();
    let newest = pair.newest();
    std::fs::remove_file(&pair.db).unwrap();
    let connection = pair.open();
    wal(&connection);
    for i in 0..50 {
        connection.execute_batch(&format!("CREATE TABLE t{i}(x)")).unwrap();
    }
    let error = sync(&connection).unwrap_err().to_string();
    assert!(error.contains("diverged"), "{error}");
    connection.close().unwrap();
    assert_eq!(pair.newest(), newest);
}

#[test]
fn a_file_that_was_declared_the_truth_is_sent() {
    let _alone = alone();
    let pair = Pair::new();
    pair.begin().close().unwrap();
    let older = std::fs::read(&pair.db).unwrap();
    let connection = pair.open();
    connection.execute_batch("CREATE TABLE more(x)").unwrap();
    insert(&connection, 5);
    connection.close().unwrap();
    overwrite(&pair.db, &older);
    let connection = pair.open();
    assert_eq!(rows(&connection).len(), 0);
    let error = sync(&connection).unwrap_err().to_string();
    assert!(error.contains("diverged"), "{error}");
    connection.close().unwrap();
    let newest = pair.newest();
    replicated::adopt(&pair.db, &pair.url(), newest).unwrap();
    let connection = pair.open();
    insert(&connection, 2);
    sync(&connection).unwrap();
    connection.close().unwrap();
    pair.assert_restores();
    // Once.
    let sent = pair.newest();
    let connection = pair.open();
    assert_eq!(rows(&connection).len(), 2);
    sync(&connection).unwrap();
    assert_eq!(pair.newest(), sent);
}

#[test]
fn an_unreadable_control_file_is_replaced_by_one_that_lasts() {
    let _alone = alone();
    let pair = Pair::new();
    std::fs::create_dir(control(&pair).parent().unwrap()).unwrap();
    std::fs::write(control(&pair), vec![0xa5; 4096]).unwrap();
    pair.begin().close().unwrap();
    let connection = pair.open();
    insert(&connection, 1);
    sync(&connection).unwrap();
    assert_eq!(status(&connection, "snapshots"), "0");
    connection.close().unwrap();
    pair.assert_restores();
}

#[test]
fn a_clock_that_was_set_back_does_not_end_replication() {
    let _alone = alone();
    let pair = Pair::new();
    let connection = pair.begin();
    insert(&connection, 3);
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get(0)).unwrap();
    assert_eq!(busy, 0);
    // As if the last checkpoint had been written by a clock that went an hour ahead.
    let ahead = std::time::SystemTime::now() + Duration::from_secs(3600);
    let seconds = ahead.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut touched = Command::new("touch");
    touched.arg("-d").arg(format!("@{seconds}")).arg(&pair.db);
    assert!(touched.status().unwrap().success());
    connection.close().unwrap();
    let connection = pair.open();
    insert(&connection, 1);
    sync(&connection).unwrap();
    connection.close().unwrap();
    pair.assert_restores();
}

#[test]
fn an_attempt_that_a_power_loss_emptied_is_not_sent() {
    let _alone = alone();
    let pair = Pair::new();
    let (child, _out) = spawn_child("attempt-in-file", &pair);
    kill(child);
    let directory = control(&pair).parent().unwrap().to_owned();
    let attempt =
        std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().contains("attempt-")).unwrap();
    let length = std::fs::metadata(&attempt).unwrap().len();
    overwrite(&attempt, &vec![0; usize::try_from(length).unwrap()]);
    pair.outage_ends();
    let connection = pair.open();
    assert_eq!(rows(&connection).len(), 9);
    sync(&connection).unwrap();
    connection.close().unwrap();
    pair.assert_restores();
}

#[test]
fn tools_leave_a_database_alone_that_this_process_replicates() {
    let _alone = alone();
    let pair = Pair::new();
    let connection = pair.begin();
    let error = replicated::adopt(&pair.db, &pair.url(), Txid::FIRST).unwrap_err();
    assert!(matches!(error, replicated::RememberError::InUse(_)), "{error}");
    insert(&connection, 1);
    sync(&connection).unwrap();
    connection.close().unwrap();
    pair.assert_restores();
}

#[test]
fn opening_and_closing_leaks_neither_descriptors_nor_threads() {
    let _alone = alone();
    let pair = Pair::new();
    pair.begin().close().unwrap();
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let (descriptors, threads) = (count("fd"), count("task"));
    for _ in 0..50 {
        let connection = pair.open();
        insert(&connection, 1);
        connection.close().unwrap();
    }
    assert!(count("fd") <= descriptors + 2, "{} descriptors, before {descriptors}", count("fd"));
    assert!(count("task") <= threads, "{} threads, before {threads}", count("task"));
    pair.assert_restores();
}

#[test]
fn a_flush_before_anything_was_read_sends_what_is_there() {
    let _alone = alone();
    let pair = Pair::new();
    Connection::open(&pair.db)
        .unwrap()
        .execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); INSERT INTO t(v) VALUES (1)")
        .unwrap();
    let connection = pair.try_open("&close_timeout=0s").unwrap();
    sync(&connection).unwrap();
    pair.assert_restores();
    connection.close().unwrap();
}

#[test]
fn no_refusal_repeats_a_secret() {
    let _alone = alone();
    let pair = Pair::new();
    pair.try_open("").unwrap();
    for replica in [
        "s3://AKIAKEY:hush-hush@bucket/path",
        "s3://bucket/path?secret_access_key=hush-hush",
        "abs://account:hush-hush@container/path",
        "s3://bucket/path?endpoint=http://user:hush-hush@127.0.0.1:9",
        "s3://bucket/hush/{nam}?sig=hush-hush",
    ] {
        let escaped = replica.replace('?', "%3f").replace('&', "%26");
        let uri = format!("file:{}?vfs=replicated&replica={escaped}", pair.db.display());
        if Connection::open_with_flags(&uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI).is_err() {
            let why = replicated::last_refusal().unwrap();
            assert!(!why.contains("hush-hush"), "{why}");
        }
    }
}

/// A random life of a database; each state in the bucket must be one that was committed, and the last one the database's.
fn live_a_life(seed: u64, steps: u32, more: &str) {
    let pair = Pair::new();
    let mut random = fastrand::Rng::with_seed(seed);
    let open = || {
        let connection = pair.try_open(&format!("&close_timeout=0s{more}")).unwrap();
        connection.busy_timeout(Duration::from_millis(200)).unwrap();
        connection
    };
    let mut connection = open();
    wal(&connection);
    connection
        .execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); CREATE TABLE n(id INTEGER PRIMARY KEY, n INTEGER, pad BLOB);
             WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 40)
             INSERT INTO n SELECT i, 0, zeroblob(1500) FROM c;",
        )
        .unwrap();
    let (mut commits, mut away, mut done) = (0, false, Vec::new());
    let mut held: Vec<Connection> = Vec::new();
    for _ in 0..steps {
        let what = random.u32(0..100);
        done.push(what);
        match what {
            0..50 => {
                commits += 1;
                let rows = if what < 5 { 300 } else { 1 };
                let deletes = if what.is_multiple_of(7) { "DELETE FROM t WHERE id % 3 = 1;" } else { "" };
                let one = format!(
                    "BEGIN IMMEDIATE; UPDATE n SET n = {commits}; {deletes}
                     WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows})
                     INSERT INTO t(v) SELECT randomblob(2000) FROM c; COMMIT"
                );
                connection.execute_batch(&one).unwrap();
            }
            50..65 => {
                let mode = *random.choice(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]).unwrap();
                let _: i64 = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |r| r.get(0)).unwrap();
            }
            65..68 => drop(connection.execute_batch("VACUUM")),
            68..72 => {
                let reader = open();
                reader.execute_batch("BEGIN; SELECT count(*) FROM n").unwrap();
                held.push(reader);
            }
            72..78 => held.clear(),
            78..84 => {
                if away {
                    pair.outage_ends();
                } else {
                    pair.outage();
                }
                away = !away;
            }
            84..90 => {
                connection.close().unwrap();
                if held.is_empty() && random.u32(0..5) == 0 {
                    let plain = Connection::open(&pair.db).unwrap();
                    commits += 1;
                    // Changes the schema: only then does the header tell that this file is the newer one.
                    plain.execute_batch(&format!("BEGIN; UPDATE n SET n = {commits}; CREATE TABLE foreign{commits}(x); COMMIT")).unwrap();
                    plain.close().unwrap();
                }
                connection = open();
            }
            90..95 => std::thread::sleep(Duration::from_millis(random.u64(0..30))),
            _ if !away => {
                sync(&connection).unwrap_or_else(|e| panic!("seed {seed}, after {done:?}: {e}"));
                assert_last(&pair, commits, &format!("seed {seed}, after {done:?}"));
            }
            _ => {}
        }
    }
    if away {
        pair.outage_ends();
    }
    sync(&connection).unwrap_or_else(|e| panic!("seed {seed}, after {done:?}: {e}"));
    assert_last(&pair, commits, &format!("seed {seed}, after {done:?}"));
    held.clear();
    connection.close().unwrap();
    pair.assert_restores();
    assert_each_state_was_committed(&pair, seed);
}

fn restored(pair: &Pair, target: replicated::restore::Target) -> (tempfile::TempDir, PathBuf) {
    let store = store::open(&ReplicaUrl::parse(&pair.url()).unwrap(), &StoreOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("restored.db");
    restore(&*store, &RestoreOptions { target, ..RestoreOptions::latest(&out) }).unwrap();
    (dir, out)
}

#[track_caller]
fn assert_last(pair: &Pair, commits: i64, when: &str) {
    let (_dir, out) = restored(pair, replicated::restore::Target::Latest);
    integrity_check(&out).unwrap_or_else(|e| panic!("{when}: {e}"));
    let found: (i64, i64) =
        Connection::open(&out).unwrap().query_row("SELECT min(n), max(n) FROM n", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
    assert_eq!(found, (commits, commits), "{when}");
}

#[track_caller]
fn assert_each_state_was_committed(pair: &Pair, seed: u64) {
    for txid in 2..=pair.newest().get() {
        let (_dir, out) = restored(pair, replicated::restore::Target::Txid(Txid::new(txid).unwrap()));
        integrity_check(&out).unwrap_or_else(|e| panic!("seed {seed}, TXID {txid}: {e}"));
        let connection = Connection::open(&out).unwrap();
        let made: bool = connection.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'n'", [], |r| r.get(0)).unwrap();
        if made {
            let differ: i64 = connection.query_row("SELECT count(DISTINCT n) FROM n", [], |r| r.get(0)).unwrap();
            assert!(differ <= 1, "seed {seed}, TXID {txid}: part of a transaction");
        }
    }
}

#[test]
fn every_state_of_a_random_life_was_committed_and_the_last_is_the_databases() {
    let _alone = alone();
    let first = std::env::var("REGRESSION_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let lives = std::env::var("REGRESSION_LIVES").ok().and_then(|s| s.parse().ok()).unwrap_or(4);
    for seed in first..first + lives {
        live_a_life(seed, 120, if seed % 4 == 0 { "&max_local=16MiB" } else { "" });
    }
}
