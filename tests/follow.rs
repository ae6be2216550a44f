//! `replicated restore --follow`: a copy that is read while it follows, at every moment one committed state, whatever becomes of the bucket, of the
//! follower, and of the copy itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use replicated::restore::RestoreOptions;
use replicated::restore::follow::{Event, FollowOptions, Listener, follow};
use replicated::store::{Created, Level, Listed, LtxName, Store, StoreError, Upload};
use replicated::types::{TimestampMs, Txid};
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::follower::{Follower, Readers};
use replicated_testkit::host::{self, Db, Host, Program};
use replicated_testkit::life::Life;
use replicated_testkit::maintenance::Order;
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::pass_on;
use replicated_testkit::s3::Server;
use replicated_testkit::tools;
use rusqlite::Connection;

const HOUR: Duration = Duration::from_secs(3600);

/// A database that is replicated, its bucket, and where copies are made.
struct Place {
    dir: tempfile::TempDir,
    server: Option<Server>,
    bucket: Bucket,
    host: Host,
    db: Db,
    life: Life,
    n: i64,
}

impl Place {
    fn new(on_s3: bool, seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, bucket) = Bucket::somewhere(on_s3, dir.path());
        let mut host = Host::start(Program::Python, &bucket.env);
        let uri = host::replicated(&dir.path().join("app.db"), &bucket.url, &[("sync_interval", "10ms"), ("burst", "100")]);
        let db = host.open(&uri);
        host.run(db, "PRAGMA journal_mode=WAL");
        let life = Life { seed, most_large_bytes: 60_000 };
        life.begin().iter().for_each(|statement| drop(host.query(db, statement)));
        let mut place = Self { dir, server, bucket, host, db, life, n: 0 };
        place.commit(1);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn copy(&self) -> PathBuf {
        self.path("copy.db")
    }

    /// So many transactions, each its own upload; the answer is the TXID of the last.
    fn commit(&mut self, transactions: i64) -> String {
        let mut txid = String::new();
        for _ in 0..transactions {
            self.n += 1;
            for statement in self.life.transaction(self.n) {
                self.host.query(self.db, &statement);
            }
            txid = self.host.sync(self.db);
        }
        txid
    }

    fn run(&mut self, sql: &str) -> String {
        self.host.run(self.db, sql);
        self.host.sync(self.db)
    }

    fn follow(&self) -> Follower {
        self.follow_with(&[])
    }

    fn follow_with(&self, more: &[&str]) -> Follower {
        Follower::start(env!("CARGO_BIN_EXE_replicated"), &self.bucket, &self.copy(), more)
    }

    fn maintain(&self, order: &Order) {
        let report = order.run(&self.bucket).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(report.problems, Vec::<String>::new());
    }

    fn order(&self) -> Order {
        Order { change_percent: 100_000, ..Order::of(&self.bucket) }
    }

    /// The copy is what the database is, byte for byte but for what makes it a copy.
    fn assert_current(&self) {
        assert_eq!(self.life.state(&self.copy()), Ok(self.n));
        let with_header_of_a_copy = |path: &Path| {
            let mut bytes = std::fs::read(path).unwrap();
            for header in [18..20, 24..32, 92..96] {
                bytes[header].fill(0);
            }
            bytes
        };
        let database = flattened(&self.path("app.db"), self.dir.path());
        assert!(with_header_of_a_copy(&database) == with_header_of_a_copy(&self.copy()), "the copy is another database");
        // A follower that goes on may be about to replace its note.
        host::eventually("beside the copy is its note alone", || {
            let names = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.starts_with("copy.db")).count() == 2
        });
    }

    fn txid_of_copy(&self) -> String {
        std::fs::read_to_string(self.path("copy.db-txid")).unwrap().lines().next().unwrap().to_owned()
    }

    /// Ends with code 1 and those words.
    fn refused(&self, more: &[&str], words: &str) {
        let (status, told) = self.follow_with(more).end();
        assert!(status.code() == Some(1) && told.contains(words), "{status}: {told}");
    }
}

/// Readers of several kinds, in processes of their own, while everything happens that can happen to a database and a bucket.
#[test]
fn readers_see_one_committed_state_after_the_other() {
    for on_s3 in [false, true] {
        let mut place = Place::new(on_s3, 1);
        place.commit(3);
        let mut follower = place.follow();
        follower.until("restored");
        let readers = Readers::start(&place.copy(), place.dir.path());
        for round in 0..4 {
            let txid = place.commit(12);
            follower.reaches(&txid);
            let txid = match round {
                0 => place.run("DELETE FROM ballast; VACUUM"),
                // Another page size: from a snapshot on.
                1 => place.run("PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=WAL"),
                2 => place.run("INSERT INTO ballast VALUES (randomblob(3000000))"),
                _ => place.run("DELETE FROM ballast; PRAGMA wal_checkpoint(TRUNCATE); VACUUM"),
            };
            place.maintain(&place.order().later(Duration::from_secs(3)));
            follower.reaches(&txid);
            place.assert_current();
        }
        // All but the newest of level 0 goes, and then the snapshots.
        let long = 1000 * 3_600_000;
        place.maintain(&Order { exact_ms: 0, history_ms: long, snapshot_ms: long, ..place.order().later(25 * HOUR) });
        let txid = place.commit(10);
        follower.reaches(&txid);
        place.assert_current();
        let seen = readers.end();
        assert!(seen.iter().all(|states| *states > 3), "{seen:?}");
        let told = follower.stop("TERM");
        assert!(!told.contains("files are missing"), "{told}");
        assert_eq!(place.txid_of_copy(), txid);
        place.assert_current();
    }
}

/// Stopped and started again: over states that only higher levels have, and over those that only a snapshot has.
#[test]
fn the_same_command_goes_on_over_what_was_merged_and_deleted_meanwhile() {
    let mut place = Place::new(true, 2);
    let mut follower = place.follow();
    follower.until("restored");
    follower.stop("INT");
    let was = place.txid_of_copy();
    for which in ["level 0 is there", "level 1 spans it", "a snapshot is beyond it"] {
        place.commit(15);
        let long = 1000 * 3_600_000;
        let order = place.order().later(25 * HOUR);
        match which {
            "level 0 is there" => {}
            "level 1 spans it" => place.maintain(&Order { exact_ms: 0, history_ms: long, snapshot_ms: long, ..order }),
            _ => place.maintain(&Order { history_ms: 1, exact_ms: 1, snapshot_ms: 1000, ..order.later(26 * HOUR) }),
        }
        let txid = place.commit(1);
        let next = Txid::from_hex(&place.txid_of_copy()).unwrap().next();
        let is_there = place.bucket.list().iter().any(|file| file.name == LtxName::level0(next));
        assert_eq!(is_there, which == "level 0 is there", "{which}");
        let mut follower = place.follow();
        assert!(follower.until("goes on")["txid"].as_str().unwrap() >= was.as_str());
        follower.reaches(&txid);
        follower.stop("TERM");
        place.assert_current();
    }
}

/// kill -9 at each point, first before SQLite looks at the copy, then before another follower does.
#[test]
fn a_follower_may_die_at_every_point() {
    let mut place = Place::new(false, 3);
    let copy = place.copy();
    Follower::faulty(&place.bucket, &copy, "").until("restored");
    let points = ["noted", "journal", "journal-written", "locked", "page", "written", "synced", "committed"];
    for (i, point) in points.iter().enumerate() {
        // Of those that leave something to be rolled back, both.
        let both = ["journal-written", "page", "synced"].contains(point);
        for sqlite_first in [true, false].into_iter().filter(|first| both || *first == (i % 2 == 0)) {
            let before = place.n;
            let txid = match i % 3 {
                0 => place.commit(3),
                1 => {
                    place.run(&format!("PRAGMA journal_mode=DELETE; PRAGMA page_size={}; VACUUM; PRAGMA journal_mode=WAL", 1024 << (i % 4)))
                }
                _ => place.run("INSERT INTO ballast VALUES (randomblob(100000)); DELETE FROM ballast WHERE rowid % 2; VACUUM"),
            };
            let times = if *point == "page" { 3 } else { 1 };
            let mut follower = Follower::faulty(&place.bucket, &copy, &format!("follow.{point}=kill@{times}"));
            follower.until("goes on");
            assert!(follower.try_until(|line| line["status"] == "applied").is_none(), "it did not die at {point}");
            drop(follower);
            if sqlite_first {
                let state = if *point == "committed" { place.n } else { before };
                // Who may write rolls back what is left; others have to wait for somebody who may.
                let connection = Connection::open(&copy).unwrap();
                connection.query_row("SELECT n FROM counter", [], |row| row.get::<_, i64>(0)).unwrap();
                assert_eq!(place.life.state(&copy), Ok(state), "killed at {point}");
            }
            let mut follower = place.follow();
            follower.reaches(&txid);
            follower.stop("TERM");
            place.assert_current();
        }
    }
}

/// The disk fails or is full in the middle of a batch: the copy is what it was, and the batch is tried again.
#[test]
fn a_batch_that_cannot_be_written_is_taken_back() {
    let mut place = Place::new(false, 4);
    let copy = place.copy();
    for (point, error) in [("journal", "full@1"), ("page", "full@4"), ("written", "error@1")] {
        if !copy.exists() {
            Follower::faulty(&place.bucket, &copy, "").until("restored");
        }
        let before = place.n;
        let txid = place.commit(4);
        let mut follower = Follower::faulty(&place.bucket, &copy, &format!("follow.{point}={error}"));
        let why = follower.until("waiting");
        assert!(why["why"].as_str().unwrap().contains("copy.db: "), "{why}");
        // Until it is tried again.
        let state = place.life.state(&copy).unwrap();
        assert!(state == before || state == place.n, "{state} is neither {before} nor {}", place.n);
        follower.reaches(&txid);
        follower.until("over");
        follower.kill();
        place.assert_current();
    }
}

#[test]
fn a_copy_that_somebody_has_written_to_is_refused_until_it_may_be_restored_anew() {
    let mut place = Place::new(false, 5);
    let copy = place.copy();
    let execute = |sql: &str| Connection::open(&copy).unwrap().execute_batch(sql).unwrap();
    place.follow().until("restored");
    execute("INSERT INTO ballast VALUES (1)");
    place.refused(&[], "somebody has written to it");
    // While it is followed.
    let mut follower = place.follow_with(&["--force"]);
    follower.until("restored");
    execute("DELETE FROM ballast");
    place.commit(1);
    let (status, told) = follower.end();
    assert!(status.code() == Some(1) && told.contains("somebody has written to it"), "{told}");
    // Anew; a copy that is as it was left is not restored again.
    place.follow_with(&["--force"]).until("restored");
    place.follow_with(&["--force"]).until("goes on");
    let connection = Connection::open(&copy).unwrap();
    connection.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(())).unwrap();
    connection.execute_batch("INSERT INTO ballast VALUES (1)").unwrap();
    place.refused(&[], "WAL mode");
    drop(connection);
    place.follow_with(&["--force"]).until("restored");
    // The file itself goes while it is followed.
    let mut follower = place.follow();
    follower.until("goes on");
    std::fs::rename(&copy, place.path("gone.db")).unwrap();
    place.commit(1);
    let (status, told) = follower.end();
    assert!(status.code() == Some(1) && told.contains("another file in its place"), "{told}");
    place.follow().until("restored");
    // Past SQLite.
    std::fs::File::options().write(true).open(&copy).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    place.refused(&[], "it was changed after the last batch");
    place.follow_with(&["--force"]).until("restored");
    // A file that never was a copy, one whose note is Litestream's, and one of another bucket.
    std::fs::write(place.path("copy.db-txid"), format!("{}\n", place.txid_of_copy())).unwrap();
    place.refused(&[], "does not say that it is a copy");
    std::fs::remove_file(place.path("copy.db-txid")).unwrap();
    place.refused(&[], "exists already");
    place.follow_with(&["--force"]).until("restored");
    let other = Bucket { url: format!("{}-other", place.bucket.url), ..place.bucket.clone() };
    let (status, told) = Follower::start(env!("CARGO_BIN_EXE_replicated"), &other, &copy, &[]).end();
    assert!(status.code() == Some(1) && told.contains("is a copy of"), "{told}");
    let txid = place.commit(1);
    let mut follower = place.follow();
    follower.reaches(&txid);
    // One at a time.
    place.refused(&[], "another process follows to");
    follower.stop("TERM");
    place.assert_current();
}

/// The bucket was emptied, and another database replicated to it: the copy may be the last one of the old history.
#[test]
fn another_history_in_the_bucket_does_not_replace_the_copy_unasked() {
    for commits in [1, 40] {
        let mut place = Place::new(false, 6);
        let txid = place.commit(20);
        let mut follower = place.follow();
        follower.reaches(&txid);
        let copy = place.copy();
        place.host.close(place.db);
        let before = place.n;
        std::fs::remove_dir_all(place.path("bucket")).unwrap();
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(place.path(&format!("app.db{suffix}")));
        }
        std::fs::remove_dir_all(place.path("app.db-replicated")).unwrap();
        let uri = host::replicated(&place.path("app.db"), &place.bucket.url, &[("sync_interval", "10ms"), ("burst", "100")]);
        place.db = place.host.open(&uri);
        place.host.run(place.db, "PRAGMA journal_mode=WAL");
        place.life.begin().iter().for_each(|statement| drop(place.host.query(place.db, statement)));
        place.n = 0;
        place.commit(commits);
        // Shorter than the copy's, or with another object under the copy's TXID.
        let (status, told) = follower.end();
        assert!(status.code() == Some(1) && told.contains("holds another history"), "{told}");
        assert_eq!(place.life.state(&copy), Ok(before));
        place.refused(&[], "holds another history");

        // Asked to, it becomes what the bucket holds, under the eyes of who has it open.
        let reader = Connection::open(&copy).unwrap();
        let state = |reader: &Connection| reader.query_row("SELECT n FROM counter", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(state(&reader), before);
        let mut follower = place.follow_with(&["--force"]);
        follower.until("goes on");
        follower.until("applied");
        assert_eq!(state(&reader), place.n);
        let txid = place.commit(2);
        follower.reaches(&txid);
        assert_eq!(state(&reader), place.n);
        follower.stop("TERM");
        place.assert_current();
    }
}

#[test]
fn a_store_that_is_away_is_told_once_and_waited_for() {
    let mut place = Place::new(true, 7);
    let proxy = Proxy::start(&place.server.as_ref().unwrap().endpoint()).unwrap();
    let through = place.bucket.through(&proxy.endpoint());
    let mut follower = Follower::start(env!("CARGO_BIN_EXE_replicated"), &through, &place.copy(), &[]);
    follower.until("restored");
    proxy.set(Mode::Refuse).unwrap();
    let why = follower.until("waiting");
    assert!(why["why"].as_str().unwrap().contains("list"), "{why}");
    let txid = place.commit(3);
    proxy.set(Mode::Forward).unwrap();
    follower.reaches(&txid);
    follower.until("over");
    proxy.set(Mode::Refuse).unwrap();
    follower.until("waiting");
    let told = follower.stop("INT");
    assert_eq!(told.matches("stays as it is for now").count(), 2, "{told}");
    place.assert_current();

    // A copy that is there is gone on with, also while the store is away.
    let mut follower = Follower::start(env!("CARGO_BIN_EXE_replicated"), &through, &place.copy(), &[]);
    follower.until("goes on");
    follower.until("waiting");
    proxy.set(Mode::Forward).unwrap();
    let txid = place.commit(1);
    follower.reaches(&txid);
    follower.stop("TERM");
    place.assert_current();
}

#[test]
fn a_reader_that_does_not_end_delays_the_copy_and_nobody_else() {
    let mut place = Place::new(false, 8);
    let mut follower = place.follow();
    follower.until("restored");
    let before = place.n;
    let mut slow = Host::plain(&[]);
    let reader = slow.open(place.copy().to_str().unwrap());
    slow.run(reader, "BEGIN");
    assert_eq!(slow.value(reader, "SELECT n FROM counter"), before);
    let txid = place.commit(2);
    let why = follower.until("waiting");
    assert!(why["why"].as_str().unwrap().contains("is locked"), "{why}");
    // Others read, also while it waits; the one sees what it saw.
    let mut other = Host::plain(&[]);
    let another = other.open(place.copy().to_str().unwrap());
    for _ in 0..20 {
        assert_eq!(other.value(another, "SELECT n FROM counter"), before);
        assert_eq!(slow.value(reader, "SELECT max(txn) FROM ledger"), before);
    }
    slow.run(reader, "COMMIT");
    follower.reaches(&txid);
    follower.until("over");
    assert_eq!(slow.value(reader, "SELECT n FROM counter"), place.n);
    assert_eq!(other.value(another, "SELECT n FROM counter"), place.n);
    follower.stop("TERM");
    place.assert_current();
}

/// Damage in level 0 is gone around by another level, and where there is none the copy stays what it is.
#[test]
fn a_damaged_file_is_never_applied() {
    let mut place = Place::new(false, 9);
    let mut follower = place.follow();
    follower.until("restored");
    follower.stop("TERM");
    let before = place.n;
    let txid = place.commit(5);
    let next = Txid::from_hex(&place.txid_of_copy()).unwrap().next().next();
    let file = place.path(&format!("bucket/ltx/0/{}", LtxName::level0(next).file_name()));
    let good = std::fs::read(&file).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0x55;
    std::fs::write(&file, &bad).unwrap();
    let mut follower = place.follow();
    let why = follower.until("waiting");
    assert!(why["why"].as_str().unwrap().contains(&LtxName::level0(next).to_string()), "{why}");
    assert_eq!(place.life.state(&place.copy()), Ok(before));
    // Level 1 is made of what was good, and spans it.
    std::fs::write(&file, &good).unwrap();
    follower.stop("TERM");
    place.maintain(&place.order().later(Duration::from_secs(3)));
    std::fs::write(&file, &bad).unwrap();
    assert!(place.bucket.level(Level::new(1).unwrap()).iter().any(|file| file.name.min_txid <= next && next <= file.name.max_txid));
    let mut follower = place.follow();
    follower.reaches(&txid);
    follower.stop("TERM");
    place.assert_current();
}

#[test]
fn what_cannot_be_followed_is_said() {
    let place = Place::new(false, 10);
    let usage = |args: &[&str], words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicated"));
        let output = command.args(["restore", &place.bucket.url, "-o"]).arg(place.copy()).args(args).env_clear().output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && told.contains(words), "{told}");
    };
    usage(&["--follow", "--txid", "1"], "--txid");
    usage(&["--follow", "--timestamp", "2 hours ago"], "--timestamp");
    usage(&["--follow", "--every", "1ms"], "--every must be 100ms or more");
    usage(&["--every", "1s"], "--follow");
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/litestream-0.3.13-generations");
    let (status, told) = Follower::start(env!("CARGO_BIN_EXE_replicated"), &Bucket::folder(&old), &place.copy(), &[]).end();
    assert!(status.code() == Some(1) && told.contains("Litestream 0.3"), "{told}");
    let nothing = Bucket::folder(&place.path("nothing"));
    let (status, told) = Follower::start(env!("CARGO_BIN_EXE_replicated"), &nothing, &place.copy(), &[]).end();
    assert!(status.code() == Some(1) && told.contains("no LTX files"), "{told}");
    let follower = Follower::start(env!("CARGO_BIN_EXE_replicated"), &nothing, &place.copy(), &["--if-replica-exists"]);
    assert_eq!(follower.end().0.code(), Some(0));
    assert!(!place.copy().exists());
}

/// A store that counts what is listed of it, and when it is asked to says that there was enough.
#[derive(Debug)]
struct Counted {
    inner: Arc<dyn Store>,
    listed: Mutex<Vec<(Level, Option<Txid>)>>,
    reads: AtomicUsize,
}

impl Store for Counted {
    pass_on!(url, create, upload, part_size_bytes, head, delete, creates_are_conditional);

    fn list(&self, level: Level, from: Option<Txid>) -> BoxFuture<'_, Result<Vec<Listed>, StoreError>> {
        self.listed.lock().unwrap().push((level, from));
        self.inner.list(level, from)
    }

    fn get_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.get_range(name, range)
    }
}

struct Quiet;

impl Listener for Quiet {
    fn tell(&self, _: &Event<'_>) {}
}

#[test]
fn a_look_that_finds_nothing_costs_one_listing_from_where_the_copy_is() {
    let mut place = Place::new(false, 11);
    let txid = Txid::from_hex(&place.commit(3)).unwrap();
    let store = Counted { inner: place.bucket.store(), listed: Mutex::default(), reads: AtomicUsize::new(0) };
    let copy = place.copy();
    let every = Duration::from_millis(100);
    let restore = RestoreOptions::latest(&copy);
    let looks = |count: usize| {
        let options = FollowOptions {
            restore: RestoreOptions { progress: None, check: None, output: copy.clone(), ..restore },
            every,
            listener: &Quiet,
        };
        let enough = async {
            while store.listed.lock().unwrap().len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        follow(&store, &options, enough).unwrap();
    };
    // A restore lists each level, and which object the state ends with is looked up.
    looks(11);
    store.listed.lock().unwrap().clear();
    store.reads.store(0, Ordering::SeqCst);
    looks(12);
    let listed = std::mem::take(&mut *store.listed.lock().unwrap());
    assert!(listed.iter().all(|asked| *asked == (Level::ZERO, Some(txid))), "{listed:?}");
    // After a start the object is compared with the one that is remembered: its last bytes.
    assert_eq!(store.reads.load(Ordering::SeqCst), 1);
    place.assert_current();
}

/// As a process that was just forked has it, and one that is being replaced by another.
#[test]
fn a_follower_that_is_about_to_end_is_waited_for() {
    let mut place = Place::new(false, 13);
    let mut first = place.follow();
    first.until("restored");
    let mut second = place.follow();
    // It meets the first.
    std::thread::sleep(Duration::from_millis(200));
    first.stop("TERM");
    second.until("goes on");
    let txid = place.commit(1);
    second.reaches(&txid);
    second.stop("TERM");
    place.assert_current();
}

/// Litestream writes the bucket, merges it and deletes level 0 all the time.
#[test]
fn a_bucket_that_litestream_writes_and_compacts_is_followed() {
    let Some(tools) = tools::environment() else { return };
    let mut place = Place::new(false, 12);
    place.host.close(place.db);
    let (app, copy, log) = (place.path("app.db"), place.copy(), place.path("litestream.log"));
    std::fs::remove_dir_all(place.path("bucket")).unwrap();
    std::fs::remove_dir_all(place.path("app.db-replicated")).unwrap();
    let config = place.path("litestream.yml");
    let text = format!(
        "levels:\n  - interval: 1s\n  - interval: 2s\nsnapshot:\n  interval: 2s\n  retention: 4s\nl0-retention: 1s\nl0-retention-check-interval: 1s\n\
         dbs:\n  - path: {}\n    monitor-interval: 100ms\n    replica:\n      type: file\n      path: {}\n      sync-interval: 100ms\n",
        app.display(),
        place.path("bucket").display()
    );
    std::fs::write(&config, text).unwrap();
    let (out, errors) = (std::fs::File::create(&log).unwrap(), std::fs::File::options().append(true).create(true).open(&log).unwrap());
    let mut command = host::command(tools.join("bin/litestream"), &[]);
    let mut litestream = command.arg("replicate").arg("-config").arg(&config).stdout(out).stderr(errors).spawn().unwrap();
    host::eventually("Litestream's first upload", || !place.bucket.try_list().is_empty());
    let plain = Connection::open(&app).unwrap();
    let mut follower = place.follow();
    follower.until("restored");
    let readers = Readers::start(&copy, place.dir.path());
    let commit = |place: &mut Place, count: i64| {
        for _ in 0..count {
            place.n += 1;
            plain.execute_batch(&place.life.transaction(place.n).join(";")).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let newest = |place: &Place| place.bucket.try_list().iter().map(|file| file.name.max_txid).max().unwrap();
    let reaches = |follower: &mut Follower, place: &Place| {
        let n = place.n;
        host::eventually("the copy has it", || {
            let connection = Connection::open(&copy).unwrap();
            connection.busy_timeout(Duration::from_secs(30)).unwrap();
            connection.query_row("SELECT n FROM counter", [], |row| row.get::<_, i64>(0)).unwrap() == n
        });
        assert!(follower.errors().is_empty(), "{}", follower.errors());
    };
    commit(&mut place, 40);
    reaches(&mut follower, &place);
    // What comes while nobody follows is merged, and level 0 deleted.
    follower.stop("TERM");
    let was = Txid::from_hex(&place.txid_of_copy()).unwrap();
    commit(&mut place, 40);
    host::eventually("Litestream has deleted of level 0 what follows on the copy", || {
        place.n += 1;
        plain.execute_batch(&place.life.transaction(place.n).join(";")).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        newest(&place) > was.next() && !place.bucket.list().iter().any(|file| file.name == LtxName::level0(was.next()))
    });
    let mut follower = place.follow();
    follower.until("goes on");
    reaches(&mut follower, &place);
    assert_eq!(place.life.state(&copy), Ok(place.n));
    readers.end();
    follower.stop("TERM");
    assert!(Command::new("kill").arg(litestream.id().to_string()).status().unwrap().success());
    litestream.wait().unwrap();
}
