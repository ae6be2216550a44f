//! A panic inside the extension, on SQLite's thread or in the uploader's: the application goes on, that database's replication has failed and its
//! status says why, and once every handle is closed another open recovers it. What the bucket has stays a history of committed states.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::sqlite::{integrity_check, same_but_for_free_pages};

struct Place {
    dir: tempfile::TempDir,
    bucket: Bucket,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        Self { dir, bucket }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn host(&self, faults: &str) -> Host {
        let mut env = self.bucket.env.clone();
        env.push(("REPLICATED_TEST_FAULT".to_owned(), faults.to_owned()));
        // Panics are what is wanted.
        env.push(("RUST_BACKTRACE".to_owned(), "0".to_owned()));
        env.push(("REPLICATED_TEST_LOG".to_owned(), self.path("log").display().to_string()));
        Host::start(Program::Faulty, &env)
    }

    fn uri(&self) -> String {
        host::replicated(&self.path("app.db"), &self.bucket.url, &[("sync_interval", "10ms"), ("burst", "100"), ("close_timeout", "1s")])
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The bucket is the database, and each of its states was committed.
    fn check(&self) {
        let restored = self.path("restored.db");
        self.bucket.restore(&restored);
        same_but_for_free_pages(&flattened(&self.path("app.db"), self.dir.path()), &restored).unwrap();
        let replay = self.bucket.replay(&self.path("replayed.db"), |txid, file| {
            integrity_check(file).unwrap();
            let connection = rusqlite::Connection::open(file).unwrap();
            let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 't'", [], |row| row.get(0)).unwrap();
            if tables > 0 {
                let whole = "SELECT (SELECT n FROM state) = (SELECT count(*) FROM t)";
                assert!(connection.query_row(whole, [], |row| row.get::<_, bool>(0)).unwrap(), "TXID {txid} is part of a transaction");
            }
        });
        replay.unwrap();
    }
}

fn commit(host: &mut Host, db: Db) {
    host.run(db, "BEGIN; INSERT INTO t(x) VALUES (randomblob(3000)); UPDATE state SET n = n + 1; COMMIT");
}

fn rows(host: &mut Host, db: Db) -> i64 {
    host.value(db, "SELECT count(*) FROM t").as_i64().unwrap()
}

/// Everything that an application may do, until replication has failed. Each statement must work.
fn work_until_failed(host: &mut Host, db: Db) {
    for round in 0..1000 {
        commit(host, db);
        match round % 10 {
            3 => drop(host.query(db, "PRAGMA wal_checkpoint(RESTART)")),
            6 => drop(host.query(db, "PRAGMA wal_checkpoint(TRUNCATE)")),
            _ => {}
        }
        if host.status(db, "state") == "failed" {
            return;
        }
    }
    panic!("replication has not failed");
}

/// The last words of a database whose replication has failed.
fn told(host: &mut Host, db: Db) -> String {
    assert_eq!(host.status(db, "state"), "failed");
    let error = host.status(db, "last_error");
    let refused = host.try_query(db, "PRAGMA replicated_sync='5s'").unwrap_err();
    assert!(refused.contains(&error), "{refused}");
    error
}

fn set_up(host: &mut Host, place: &Place, mode: &str) -> Db {
    let db = host.open(&place.uri());
    host.run(db, &format!("PRAGMA journal_mode={mode}"));
    host.run(db, "BEGIN; CREATE TABLE t(id INTEGER PRIMARY KEY, x); CREATE TABLE state(n); INSERT INTO state VALUES (0); COMMIT");
    db
}

fn a_panic_at(point: &str, mode: &str) {
    let place = Place::new();
    let mut host = place.host(&format!("{point}=panic@4"));
    let db = set_up(&mut host, &place, mode);
    work_until_failed(&mut host, db);
    let why = told(&mut host, db);
    assert!(why.contains(point), "{why}");
    // The application goes on.
    let before = rows(&mut host, db);
    for _ in 0..20 {
        commit(&mut host, db);
    }
    // Who joins meanwhile hears the same.
    let second = host.open(&place.uri());
    assert_eq!(rows(&mut host, second), before + 20);
    assert_eq!(told(&mut host, second), why);
    host.close(db);
    commit(&mut host, second);
    assert_eq!(told(&mut host, second), why);
    host.close(second);
    // The same process recovers.
    let db = host.open(&place.uri());
    assert_eq!(rows(&mut host, db), before + 21);
    host.sync(db);
    commit(&mut host, db);
    host.sync(db);
    assert_eq!(host.status(db, "state"), "idle", "{}", place.log());
    host.close(db);
    host.quit();
    place.check();
}

macro_rules! panics {
    ($($name:ident: $point:literal, $mode:literal;)*) => {
        $(#[test]
        fn $name() {
            a_panic_at($point, $mode);
        })*
    };
}

panics! {
    // On SQLite's thread.
    when_a_commit_is_told: "commit.publish", "WAL";
    when_the_wal_is_to_be_restarted: "gate.asked", "WAL";
    with_a_seal_half_done: "seal.begin", "WAL";
    when_a_generation_begins: "generation.begins", "WAL";
    with_a_generation_half_noted: "generation.save", "WAL";
    with_a_control_file_just_written: "control.saved", "WAL";
    while_a_commit_outside_the_wal_is_captured: "spool.written", "DELETE";
    // In the uploader.
    between_two_steps: "step", "WAL";
    before_a_request: "send.put", "WAL";
    after_a_request: "send.done", "WAL";
    with_a_batch_half_frozen: "freeze.encoded", "WAL";
    with_an_acknowledgement_half_noted: "ack.save", "WAL";
    with_an_acknowledgement_untold: "ack.told", "DELETE";
}

/// The same process closes the last handle, opens again, and replicates.
fn recovers_when_opened_again(mut host: Host, place: &Place, failed: Db) {
    host.close(failed);
    let db = host.open(&place.uri());
    commit(&mut host, db);
    host.sync(db);
    host.close(db);
    host.quit();
    place.check();
}

/// The uploader is busy when the last handle is closed, for longer than the close waits: the open after it does not join what has failed.
#[test]
fn opened_again_before_it_is_forgotten() {
    let place = Place::new();
    let mut host = place.host("commit.publish=panic@4;step=slow@2");
    let db = set_up(&mut host, &place, "WAL");
    work_until_failed(&mut host, db);
    recovers_when_opened_again(host, &place, db);
}

/// The first flush of a life: everything that happens once.
fn a_panic_at_the_first(point: &str) {
    let place = Place::new();
    let mut host = place.host(&format!("{point}=panic"));
    let db = set_up(&mut host, &place, "WAL");
    eventually("replication fails", || host.status(db, "state") == "failed");
    assert!(told(&mut host, db).contains(point));
    commit(&mut host, db);
    recovers_when_opened_again(host, &place, db);
}

macro_rules! first_panics {
    ($($name:ident: $point:literal;)*) => {
        $(#[test]
        fn $name() {
            a_panic_at_the_first($point);
        })*
    };
}

first_panics! {
    while_histories_are_compared: "verify.begin";
    when_a_full_state_begins: "full.begun";
    while_a_full_state_is_read: "full.run";
    when_a_full_state_has_arrived: "full.put-done";
    when_a_full_state_is_noted: "full.acked";
    while_continuity_is_judged: "resolve";
}

/// The last handle is being closed: what the panic leaves undone is found by the next open.
#[test]
fn while_it_is_closed() {
    for point in ["wal.vanishes", "stamp.take", "stamp.saved", "close.flush", "close.flushed", "forget.release", "forget.released"] {
        let place = Place::new();
        let mut host = place.host(&format!("{point}=panic"));
        let db = set_up(&mut host, &place, "WAL");
        commit(&mut host, db);
        host.sync(db);
        commit(&mut host, db);
        host.close(db);
        assert!(place.log().contains(point), "{point} was not come to");
        let db = host.open(&place.uri());
        assert_eq!(rows(&mut host, db), 2);
        commit(&mut host, db);
        host.sync(db);
        host.close(db);
        host.quit();
        place.check();
    }
}

/// A page that a snapshot needs was not set aside: that snapshot never comes to be.
#[test]
fn while_a_page_is_set_aside_for_a_snapshot() {
    let place = Place::new();
    let plain = rusqlite::Connection::open(place.path("app.db")).unwrap();
    plain
        .execute_batch(
            "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x); CREATE TABLE state(n); INSERT INTO state VALUES (0);
             CREATE TABLE large(x); INSERT INTO large SELECT randomblob(4000) FROM (WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM i
             WHERE n < 2000) SELECT n FROM i)",
        )
        .unwrap();
    plain.close().unwrap();
    let mut host = place.host("preserve.write=panic@3");
    let db = host.open(&place.uri());
    eventually("replication fails", || {
        host.run(db, "UPDATE large SET x = randomblob(4000) WHERE rowid % 50 = 1");
        commit(&mut host, db);
        host.query(db, "PRAGMA wal_checkpoint(PASSIVE)");
        // A snapshot that was done before the first checkpoint is begun anew.
        let state = host.status(db, "state");
        state == "failed" || place.log().contains("the full state is in the bucket")
    });
    if host.status(db, "state") == "failed" {
        assert!(told(&mut host, db).contains("preserve.write"));
        assert!(!place.log().contains("the full state is in the bucket"), "{}", place.log());
    }
    host.close(db);
    let db = host.open(&place.uri());
    commit(&mut host, db);
    host.sync(db);
    host.close(db);
    host.quit();
    place.check();
}

/// One database's fault is not another's.
#[test]
fn beside_another_database() {
    let (place, other) = (Place::new(), Place::new());
    let mut host = place.host("send.done=panic@2");
    let db = set_up(&mut host, &place, "WAL");
    while host.status(db, "state") != "failed" {
        commit(&mut host, db);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let beside = set_up(&mut host, &other, "WAL");
    commit(&mut host, beside);
    host.sync(beside);
    assert_eq!(host.status(beside, "state"), "idle");
    host.close(beside);
    other.check();
    assert_eq!(host.status(db, "state"), "failed");
}

/// The extension that is shipped has no fail points in it.
#[test]
fn only_programs_of_the_tests_have_fail_points() {
    let contains = |path: PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        let name = b"REPLICATED_TEST_FAULT";
        bytes.windows(name.len()).any(|window| window == name)
    };
    assert!(contains(host::faulty_program("fault-host")));
    assert!(!contains(host::extension()));
    assert!(!contains(host::program("sql-host")));
}
