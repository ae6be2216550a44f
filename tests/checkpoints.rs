//! SQLite's checkpoints with replication: the same answers and the same WAL as without it, whatever the store does; and a WAL that does not
//! grow without end where the store is slow.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Host, Program};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::{integrity_check, page_compare};

const PAGE_BYTES: u64 = 4096;
/// A frame of the WAL, with its header.
const FRAME_BYTES: u64 = PAGE_BYTES + 24;
/// Where SQLite checkpoints by itself.
const AUTOCHECKPOINT_FRAMES: u64 = 1000;

/// Who runs a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Writer,
    Reader,
}
use On::{Reader, Writer};

type Step = (On, &'static str);

const CREATE: &[Step] = &[
    (Writer, "PRAGMA journal_mode=WAL"),
    (Writer, "CREATE TABLE t(id INTEGER PRIMARY KEY, x)"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(3000))"),
];

/// Each kind of checkpoint: with frames waiting, with none, and twice; then a commit, which shows whether the WAL was restarted.
const KINDS: &[Step] = &[
    (Writer, "PRAGMA wal_checkpoint"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(9000))"),
    (Writer, "PRAGMA wal_checkpoint(PASSIVE)"),
    (Writer, "PRAGMA wal_checkpoint(PASSIVE)"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(1000))"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(2000))"),
    (Writer, "PRAGMA wal_checkpoint(FULL)"),
    (Writer, "PRAGMA wal_checkpoint(FULL)"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(3000))"),
    (Writer, "PRAGMA wal_checkpoint(RESTART)"),
    (Writer, "PRAGMA wal_checkpoint(RESTART)"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(4000))"),
    (Writer, "UPDATE t SET x = zeroblob(5000)"),
    (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Writer, "PRAGMA wal_checkpoint(RESTART)"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(6000))"),
    (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Writer, "BEGIN IMMEDIATE"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(700))"),
    (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Writer, "ROLLBACK"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(800))"),
    (Writer, "PRAGMA wal_checkpoint(PASSIVE)"),
];

/// A reader that stands in the way at its start, in the middle and at the end of the WAL.
const WITH_A_READER: &[Step] = &[
    (Reader, "BEGIN"),
    (Reader, "SELECT count(*) FROM t"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(9000))"),
    (Writer, "PRAGMA wal_checkpoint(PASSIVE)"),
    (Writer, "PRAGMA wal_checkpoint(FULL)"),
    (Writer, "PRAGMA wal_checkpoint(RESTART)"),
    (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(2000))"),
    (Reader, "SELECT count(*) FROM t"),
    (Reader, "COMMIT"),
    (Writer, "PRAGMA wal_checkpoint(FULL)"),
    (Reader, "BEGIN"),
    (Reader, "SELECT count(*) FROM t"),
    (Writer, "PRAGMA wal_checkpoint(RESTART)"),
    (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(4000))"),
    (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Reader, "PRAGMA wal_checkpoint(PASSIVE)"),
    (Reader, "COMMIT"),
    (Reader, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Reader, "INSERT INTO t(x) VALUES (zeroblob(100))"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(100))"),
    (Writer, "PRAGMA wal_checkpoint(RESTART)"),
    (Reader, "INSERT INTO t(x) VALUES (zeroblob(100))"),
    (Writer, "PRAGMA wal_checkpoint(FULL)"),
    // A writer that has not finished.
    (Writer, "BEGIN IMMEDIATE"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(5000))"),
    (Reader, "PRAGMA wal_checkpoint(PASSIVE)"),
    (Reader, "PRAGMA wal_checkpoint(FULL)"),
    (Reader, "PRAGMA wal_checkpoint(RESTART)"),
    (Reader, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Writer, "COMMIT"),
    (Reader, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(100))"),
];

/// SQLite's own checkpoints at a small threshold, and the limit to which a WAL is cut when it begins anew.
const LIMITS: &[Step] = &[
    (Writer, "PRAGMA wal_autocheckpoint=8"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(60000))"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(60000))"),
    (Writer, "UPDATE t SET x = zeroblob(20000)"),
    (Writer, "PRAGMA wal_checkpoint(PASSIVE)"),
    (Writer, "PRAGMA journal_size_limit=20000"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(10))"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(60000))"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(10))"),
    (Writer, "PRAGMA journal_size_limit=0"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(30000))"),
    (Writer, "PRAGMA wal_checkpoint(RESTART)"),
    (Writer, "INSERT INTO t(x) VALUES (zeroblob(10))"),
    (Writer, "PRAGMA wal_checkpoint(PASSIVE)"),
    (Writer, "PRAGMA journal_size_limit=-1"),
    (Writer, "PRAGMA wal_autocheckpoint=0"),
    (Writer, "UPDATE t SET x = zeroblob(50000)"),
    (Writer, "UPDATE t SET x = zeroblob(40000)"),
    (Writer, "PRAGMA wal_checkpoint(PASSIVE)"),
    (Writer, "VACUUM"),
    (Writer, "PRAGMA wal_checkpoint(TRUNCATE)"),
    (Writer, "DELETE FROM t WHERE id > 2"),
    (Writer, "VACUUM"),
    (Writer, "PRAGMA wal_checkpoint(FULL)"),
];

/// What a statement answered, and how large the WAL was then; `None` for no WAL.
type Seen = (Step, Result<Vec<host::Row>, String>, Option<u64>);

fn wal_bytes(database: &Path) -> Option<u64> {
    std::fs::metadata(format!("{}-wal", database.display())).ok().map(|m| m.len())
}

/// Runs the steps on two connections, which wait for no lock.
fn run(host: &mut Host, uri: &str, path: &Path, steps: &[Step]) -> Vec<Seen> {
    let (writer, reader) = (host.open(uri), host.open(uri));
    let mut seen = Vec::new();
    for db in [writer, reader] {
        host.run(db, "PRAGMA busy_timeout=0");
    }
    for &(on, sql) in steps {
        let answer = host.try_query(if on == Writer { writer } else { reader }, sql);
        seen.push(((on, sql), answer, wal_bytes(path)));
    }
    host.close(reader);
    host.close(writer);
    seen.push(((Writer, "the last close"), Ok(Vec::new()), wal_bytes(path)));
    seen
}

/// What the store does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Quick,
    Slow,
    Refusing,
    Hanging,
}

struct Place {
    _server: Server,
    proxy: Proxy,
    bucket: Bucket,
    direct: Bucket,
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new(delay: Duration) -> Self {
        let (server, dir) = (Server::with_options(Options { delay, ..Options::default() }).unwrap(), tempfile::tempdir().unwrap());
        let proxy = Proxy::start(&server.endpoint()).unwrap();
        let direct = Bucket::s3(&server, "app");
        let bucket = direct.through(&proxy.endpoint());
        let path = dir.path().join("app.db");
        Self { _server: server, proxy, bucket, direct, dir, path }
    }

    fn assert_restored_equals(&self) {
        let restored = self.dir.path().join("restored.db");
        self.direct.restore(&restored);
        page_compare(&flattened(&self.path, self.dir.path()), &restored).unwrap();
        integrity_check(&restored).unwrap();
    }
}

/// A commit that restarts the WAL appends instead where the uploader reads the WAL at that very moment: frames differ by chance then.
const TRIES: usize = 5;

/// The same steps plainly and with replication, on the same SQLite.
fn as_without_replication(which: Program, store: Store, steps: &[Step]) {
    let steps = [CREATE, steps].concat();
    let differs = |_| differs_from_plain(which, store, &steps);
    if let Some(all) = (0..TRIES).map(differs).collect::<Option<Vec<_>>>() {
        panic!("{store:?}: {}", all.join("\n"));
    }
}

/// Without the frames: rows or error, and of a checkpoint whether it was busy.
fn without_frames((step, answer, _): &Seen) -> (Step, Result<Vec<host::Row>, String>) {
    let mut answer = answer.clone();
    if let (true, Ok(rows)) = (step.1.contains("wal_checkpoint"), &mut answer) {
        rows.iter_mut().for_each(|row| row.truncate(1));
    }
    (*step, answer)
}

/// The first step whose frames are not those of plain SQLite; what else differs is a failure at once.
fn differs_from_plain(which: Program, store: Store, steps: &[Step]) -> Option<String> {
    let plain_dir = tempfile::tempdir().unwrap();
    let plain_path = plain_dir.path().join("app.db");
    let mut host = Host::start(which, &[]);
    let expected = run(&mut host, &host::uri(&plain_path, &[]), &plain_path, steps);
    host.quit();

    let place = Place::new(if store == Store::Slow { Duration::from_millis(100) } else { Duration::ZERO });
    match store {
        Store::Quick | Store::Slow => {}
        Store::Refusing => place.proxy.set(Mode::Refuse).unwrap(),
        Store::Hanging => place.proxy.set(Mode::Hang).unwrap(),
    }
    let mut host = Host::start(which, &place.bucket.env);
    let options = [("sync_interval", "10ms"), ("burst", "100"), ("close_timeout", "50ms"), ("request_timeout", "10s")];
    let uri = host::replicated(&place.path, &place.bucket.url, &options);
    let seen = run(&mut host, &uri, &place.path, steps);
    for (plain, ours) in expected.iter().zip(&seen) {
        assert_eq!(without_frames(plain), without_frames(ours), "{store:?}");
    }
    assert_eq!(seen.last().unwrap().2, None);
    // Nothing but what SQLite itself writes is in the file.
    assert!(std::fs::read(&plain_path).unwrap() == std::fs::read(&place.path).unwrap(), "the database files differ");

    place.proxy.set(Mode::Forward).unwrap();
    let db = host.open(&uri);
    host.sync(db);
    host.close(db);
    host.quit();
    place.assert_restored_equals();
    expected.iter().zip(&seen).find(|(plain, ours)| plain != ours).map(|(plain, ours)| format!("{plain:?} is {ours:?}"))
}

fn with_every_store(which: Program, steps: &[Step]) {
    for store in [Store::Quick, Store::Slow, Store::Refusing, Store::Hanging] {
        as_without_replication(which, store, steps);
    }
}

#[test]
fn each_kind_of_checkpoint_answers_as_without_replication() {
    with_every_store(Program::Rust, KINDS);
}

#[test]
fn each_kind_of_checkpoint_answers_as_without_replication_in_debian_s_sqlite() {
    with_every_store(Program::Python, KINDS);
}

#[test]
fn checkpoints_beside_a_reader_answer_as_without_replication() {
    with_every_store(Program::Rust, WITH_A_READER);
}

#[test]
fn checkpoints_beside_a_reader_answer_as_without_replication_in_debian_s_sqlite() {
    with_every_store(Program::Python, WITH_A_READER);
}

#[test]
fn limits_of_the_wal_are_kept_as_without_replication() {
    with_every_store(Program::Rust, LIMITS);
}

#[test]
fn limits_of_the_wal_are_kept_as_without_replication_in_debian_s_sqlite() {
    with_every_store(Program::Python, LIMITS);
}

/// After each checkpoint, and the commit behind it, the bucket gives the database as it is then.
#[test]
fn the_bucket_gives_the_state_after_each_checkpoint() {
    for (name, steps) in [("kinds", KINDS), ("reader", WITH_A_READER), ("limits", LIMITS)] {
        let place = Place::new(Duration::ZERO);
        let mut host = Host::start(Program::Rust, &place.bucket.env);
        let uri = host::replicated(&place.path, &place.bucket.url, &[("sync_interval", "10ms"), ("burst", "100")]);
        let (writer, reader) = (host.open(&uri), host.open(&uri));
        for db in [writer, reader] {
            host.run(db, "PRAGMA busy_timeout=0");
        }
        for &(on, sql) in CREATE.iter().chain(steps) {
            // It may be busy, as it would be without us.
            let _ = host.try_query(if on == Writer { writer } else { reader }, sql);
            if sql.contains("checkpoint(") {
                host.sync(writer);
                place.assert_restored_equals();
            }
        }
        host.sync(writer);
        assert_eq!(host.status(writer, "snapshots"), "1", "{name}");
        host.close(reader);
        host.close(writer);
        assert!(wal_bytes(&place.path).is_none());
        place.assert_restored_equals();
    }
}

/// Commits without a pause, an upload an interval, each answer late: the WAL stays in the order of SQLite's own threshold, since what the
/// bucket does not have goes to the spool.
fn a_sustained_writer(sync_interval: &str, fault: Option<Mode>) {
    const COMMITS: u64 = 3000;
    /// Beyond SQLite's threshold only what was written while a restart was put off.
    const MOST_FRAMES: u64 = 3 * AUTOCHECKPOINT_FRAMES / 2;
    let place = Place::new(Duration::from_millis(200));
    let mut host = Host::start(Program::Rust, &place.bucket.env);
    let options = [("sync_interval", sync_interval), ("request_timeout", "2s")];
    let db = host.open(&host::replicated(&place.path, &place.bucket.url, &options));
    host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    host.sync(db);
    if let Some(fault) = fault {
        place.proxy.set(fault).unwrap();
    }
    let mut most = 0;
    for at in 0..COMMITS {
        host.query(db, "INSERT INTO t(x) VALUES (randomblob(1500))");
        if at % 10 == 0 {
            most = most.max(wal_bytes(&place.path).unwrap());
        }
    }
    assert_eq!(host.value(db, "SELECT count(*) FROM t"), COMMITS);
    let frames = most / FRAME_BYTES;
    assert!((AUTOCHECKPOINT_FRAMES / 2..MOST_FRAMES).contains(&frames), "the WAL has grown to {frames} frames");
    place.proxy.set(Mode::Forward).unwrap();
    host.sync(db);
    assert_eq!(host.status(db, "snapshots"), "1");
    host.close(db);
    assert_eq!(wal_bytes(&place.path), None);
    host.quit();
    place.assert_restored_equals();
}

#[test]
fn the_wal_stays_small_where_the_store_is_slow() {
    a_sustained_writer("1s", None);
}

/// Hardly anything is ever sent: it is the spool that lets the WAL be restarted.
#[test]
fn the_wal_stays_small_where_uploads_are_seldom() {
    a_sustained_writer("1h", None);
}

#[test]
fn the_wal_stays_small_where_the_store_is_gone() {
    a_sustained_writer("1s", Some(Mode::Refuse));
}

#[test]
fn the_wal_stays_small_where_the_store_hangs() {
    a_sustained_writer("1s", Some(Mode::Hang));
}

/// Frames of hardly any pages are left to whoever restarts the WAL; but not more than that one takes on, where a reader has let the WAL grow.
#[test]
fn a_wal_of_few_pages_that_a_reader_has_held_is_restarted() {
    const COMMITS: u64 = 6000;
    let place = Place::new(Duration::from_millis(1));
    let mut host = Host::start(Program::Rust, &place.bucket.env);
    let uri = host::replicated(&place.path, &place.bucket.url, &[("sync_interval", "1h"), ("burst", "1")]);
    let (db, reader) = (host.open(&uri), host.open(&uri));
    host.run(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES (1, 0)");
    host.sync(db);
    host.query(reader, "BEGIN");
    assert_eq!(host.value(reader, "SELECT x FROM t"), 0);
    // Without SQLite's attempt at each, which the reader would make a vain one.
    host.query(db, "PRAGMA wal_autocheckpoint=0");
    for at in 1..=COMMITS {
        host.query(db, &format!("UPDATE t SET x = {at}"));
    }
    host.query(reader, "COMMIT");
    let index = place.path.with_extension("db-shm");
    let frames = || u64::from(u32::from_ne_bytes(std::fs::read(&index).unwrap()[16..20].try_into().unwrap()));
    assert!(frames() >= COMMITS);
    host.query(db, "PRAGMA wal_autocheckpoint=1000");
    host::eventually("the WAL is restarted", || {
        host.query(db, "UPDATE t SET x = x + 1");
        frames() < AUTOCHECKPOINT_FRAMES
    });
    host.sync(db);
    assert_eq!(host.status(db, "snapshots"), "1");
    host.close(reader);
    host.close(db);
    host.quit();
    place.assert_restored_equals();
}

/// The first snapshot of a large database takes its time, and the WAL is restarted meanwhile.
#[test]
fn the_wal_stays_small_while_the_first_snapshot_is_sent() {
    let place = Place::new(Duration::from_millis(200));
    let plain = rusqlite::Connection::open(&place.path).unwrap();
    plain.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x)").unwrap();
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<6000)";
    plain.execute_batch(&format!("{numbers} INSERT INTO t(x) SELECT randomblob(3500) FROM n")).unwrap();
    plain.close().unwrap();
    let mut host = Host::start(Program::Rust, &place.bucket.env);
    let db = host.open(&host::replicated(&place.path, &place.bucket.url, &[("sync_interval", "1s")]));
    let mut most = 0;
    let mut commits = 0;
    while host.status(db, "snapshots") == "0" || commits < 600 {
        host.query(db, &format!("UPDATE t SET x = randomblob(3500) WHERE id BETWEEN {0} AND {0} + 4", commits * 7 % 5990));
        most = most.max(wal_bytes(&place.path).unwrap());
        commits += 1;
    }
    assert!(most / FRAME_BYTES < 3 * AUTOCHECKPOINT_FRAMES / 2, "the WAL has grown to {} frames in {commits} commits", most / FRAME_BYTES);
    host.sync(db);
    assert_eq!(host.status(db, "snapshots"), "1");
    host.close(db);
    host.quit();
    place.assert_restored_equals();
}
