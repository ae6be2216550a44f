//! `checkpoint=background`: a thread checkpoints before SQLite does, and nothing else is any different for the application.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::sqlite::{integrity_check, page_compare};

/// When the thread checkpoints, and when SQLite would.
const AHEAD_AT_FRAMES: u64 = 500;
const INLINE_AT_FRAMES: u64 = 1000;
const FRAME_BYTES: u64 = 4096 + 24;

struct App {
    dir: tempfile::TempDir,
    bucket: Bucket,
    uri: String,
}

impl App {
    fn new(options: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        let log = dir.path().join("log").display().to_string();
        let ours = [("checkpoint", "background"), ("log", log.as_str()), ("log_level", "debug"), ("sync_interval", "20ms")];
        let options = [&ours, options].concat();
        let uri = host::replicated(&dir.path().join("app.db"), &bucket.url, &options);
        Self { dir, bucket, uri }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, program: Program) -> (Host, Db) {
        let log = ("REPLICATED_TEST_LOG".to_owned(), self.path("log").display().to_string());
        let mut host = Host::start(program, &[self.bucket.env.clone(), vec![log]].concat());
        let db = host.open(&self.uri);
        host.run(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x)");
        (host, db)
    }

    fn logged(&self, text: &str) -> usize {
        std::fs::read_to_string(self.path("log")).unwrap_or_default().lines().filter(|line| line.contains(text)).count()
    }

    /// How many frames the WAL has, and how many of them are in the database file, as the WAL-index says.
    fn frames(&self) -> (u64, u64) {
        let index = std::fs::read(self.path("app.db-shm")).unwrap();
        let word = |at: usize| u64::from(u32::from_ne_bytes(index[at..at + 4].try_into().unwrap()));
        (word(16), word(96))
    }

    fn wal_frames(&self) -> u64 {
        std::fs::metadata(self.path("app.db-wal")).map_or(0, |wal| wal.len() / FRAME_BYTES)
    }

    /// The bucket is the database.
    fn check(&self) {
        let restored = self.path("restored.db");
        self.bucket.restore(&restored);
        page_compare(&flattened(&self.path("app.db"), self.dir.path()), &restored).unwrap();
        integrity_check(&restored).unwrap();
        std::fs::remove_file(restored).unwrap();
    }
}

/// One transaction of a little more than the thread waits for.
fn enough(host: &mut Host, db: Db) {
    let bytes = (AHEAD_AT_FRAMES + 20) * 4096;
    host.query(db, &format!("REPLACE INTO t VALUES (1, zeroblob({bytes}))"));
}

/// A writer that leaves the thread its time never has a checkpoint within a commit.
#[test]
fn the_wal_is_restarted_before_sqlite_would_checkpoint_it() {
    let app = App::new(&[]);
    let (mut host, db) = app.start(Program::Rust);
    for _ in 0..4 {
        let mut last = 0;
        loop {
            host.query(db, "INSERT INTO t(x) VALUES (randomblob(300))");
            let (frames, _) = app.frames();
            if frames < last {
                break;
            }
            last = frames;
            assert!(frames < INLINE_AT_FRAMES, "{frames} frames");
            if frames >= AHEAD_AT_FRAMES {
                eventually("all of it is in the file", || {
                    let (frames, in_file) = app.frames();
                    in_file == frames
                });
            }
        }
        assert!(last >= AHEAD_AT_FRAMES, "{last}");
    }
    assert!(app.wal_frames() < INLINE_AT_FRAMES);
    assert!(app.logged("Done { frames: ") >= 4);
    host.sync(db);
    host.close(db);
    drop(host);
    app.check();
}

/// One that never pauses has SQLite's own, as ever, and the WAL does not grow for it.
#[test]
fn who_never_pauses_has_sqlites_own_checkpoints() {
    let app = App::new(&[]);
    let (mut host, db) = app.start(Program::Rust);
    host.run(
        db,
        "CREATE TABLE many AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) SELECT i, zeroblob(4000) AS x FROM n",
    );
    for number in 0..60 {
        host.query(db, &format!("UPDATE many SET x = zeroblob({})", 3000 + number));
    }
    assert!(app.wal_frames() < 3 * INLINE_AT_FRAMES, "{}", app.wal_frames());
    host.sync(db);
    host.close(db);
    drop(host);
    app.check();
}

/// A checkpoint that the application asks for is never told that ours is at it.
#[test]
fn the_applications_own_checkpoints_are_answered_as_without_it() {
    let app = App::new(&[]);
    let (mut host, db) = app.start(Program::Rust);
    let (mut other, beside) = app.start(Program::Rust);
    for round in 0..60 {
        enough(&mut host, db);
        let (asks, of) = if round % 3 == 2 { (&mut other, beside) } else { (&mut host, db) };
        let rows = asks.query(of, &format!("PRAGMA wal_checkpoint({})", ["FULL", "RESTART", "TRUNCATE", "PASSIVE"][round % 4]));
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!(row[0], 0, "{round}: {row:?}");
        assert_eq!(row[1], row[2], "{round}: {row:?}");
    }
    host.sync(db);
    other.close(beside);
    host.close(db);
    app.check();
}

/// The last close takes the WAL along, other journal modes can be had, and so can the database for oneself, whatever the thread is at.
#[test]
fn nothing_of_ours_is_in_the_way_of_a_close_or_another_mode() {
    let app = App::new(&[]);
    let (mut host, db) = app.start(Program::Rust);
    host.close(db);
    for round in 0..40 {
        let db = host.open(&app.uri);
        enough(&mut host, db);
        match round % 4 {
            0 => {
                assert_eq!(host.value(db, "PRAGMA journal_mode=DELETE"), "delete");
                enough(&mut host, db);
                assert_eq!(host.value(db, "PRAGMA journal_mode=WAL"), "wal");
                enough(&mut host, db);
            }
            1 => {
                host.run(db, "PRAGMA locking_mode=EXCLUSIVE");
                enough(&mut host, db);
                enough(&mut host, db);
            }
            _ => {}
        }
        host.close(db);
        for name in ["app.db-wal", "app.db-shm"] {
            assert!(!app.path(name).exists(), "{round}: {name}");
        }
    }
    let db = host.open(&app.uri);
    host.sync(db);
    host.close(db);
    app.check();
}

/// While a reader keeps frames from the file, and where they are kept for the upload.
#[test]
fn readers_and_snapshots_see_what_they_should() {
    let app = App::new(&[]);
    let (mut host, db) = app.start(Program::Rust);
    let (mut other, reader) = app.start(Program::Rust);
    host.query(db, "INSERT INTO t VALUES (7, 'before')");
    other.query(reader, "BEGIN");
    assert_eq!(other.value(reader, "SELECT x FROM t WHERE id = 7"), "before");
    let done = app.logged("Done { frames: ");
    for number in 0..6 {
        host.query(db, &format!("UPDATE t SET x = 'after {number}' WHERE id = 7"));
        enough(&mut host, db);
    }
    eventually("a checkpoint beside a reader", || app.logged("Done { frames: ") > done);
    assert_eq!(other.value(reader, "SELECT x FROM t WHERE id = 7"), "before");
    other.query(reader, "COMMIT");
    host.sync(db);
    other.close(reader);
    host.close(db);
    app.check();
}

/// With a bug that more checkpoints would bring out more often, SQLite's own are enough.
#[test]
fn an_old_sqlite_is_left_to_its_own_checkpoints() {
    if !Path::new(host::python()).exists() {
        return;
    }
    let app = App::new(&[]);
    let (mut host, db) = app.start(Program::Python);
    let version = host.value(db, "SELECT sqlite_version()");
    let numbers: Vec<i32> = version.as_str().unwrap().split('.').map(|number| number.parse().unwrap()).collect();
    let is_old = replicated::has_wal_reset_bug(numbers[0] * 1_000_000 + numbers[1] * 1000 + numbers[2]);
    enough(&mut host, db);
    enough(&mut host, db);
    host.sync(db);
    host.close(db);
    assert_eq!(app.logged("checkpoints are left to SQLite") > 0, is_old, "{version}");
    app.check();
}
