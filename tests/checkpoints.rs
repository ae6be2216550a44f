//! Checkpoints give what they give without us, and the WAL stays bounded however slow the bucket is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program, Row};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::page_compare;

const INSERT: &str = "INSERT INTO t(x) VALUES (zeroblob(3000))";

fn wal_of(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", path.display()))
}

fn wal_bytes(path: &Path) -> Option<u64> {
    std::fs::metadata(wal_of(path)).ok().map(|m| m.len())
}

/// What a step shows: its rows or error, and the size of the WAL after it.
type Shown = (Result<Vec<Row>, String>, Option<u64>);

/// The same statements on two connections, with a reader that holds checkpoints up at times.
fn script(host: &mut Host, uri: &str, path: &Path) -> Vec<Shown> {
    let (writer, reader) = (host.open(uri), host.open(uri));
    let mut shown = Vec::new();
    let mut step = |host: &mut Host, db: Db, sql: &str| {
        let answer = host.try_query(db, sql);
        shown.push((answer, wal_bytes(path)));
    };
    for sql in ["PRAGMA journal_mode=WAL", "CREATE TABLE t(id INTEGER PRIMARY KEY, x)", "PRAGMA busy_timeout=0"] {
        step(host, writer, sql);
    }
    step(host, reader, "PRAGMA busy_timeout=0");
    for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        for _ in 0..5 {
            step(host, writer, INSERT);
        }
        step(host, writer, &format!("PRAGMA wal_checkpoint({kind})"));
        // Nothing is left to do.
        step(host, reader, &format!("PRAGMA wal_checkpoint({kind})"));
        step(host, writer, INSERT);
        // A reader of an older state.
        step(host, reader, "BEGIN");
        step(host, reader, "SELECT count(*) FROM t");
        step(host, writer, INSERT);
        step(host, writer, &format!("PRAGMA wal_checkpoint({kind})"));
        step(host, writer, INSERT);
        step(host, reader, "COMMIT");
        step(host, writer, &format!("PRAGMA wal_checkpoint({kind})"));
        // A writer that has not finished.
        step(host, writer, "BEGIN IMMEDIATE");
        step(host, writer, INSERT);
        step(host, reader, &format!("PRAGMA wal_checkpoint({kind})"));
        step(host, writer, "ROLLBACK");
        step(host, writer, INSERT);
        step(host, writer, "PRAGMA wal_checkpoint");
    }
    step(host, writer, "PRAGMA journal_size_limit=20000");
    step(host, writer, "PRAGMA wal_autocheckpoint=10");
    for _ in 0..40 {
        step(host, writer, INSERT);
    }
    step(host, writer, "PRAGMA wal_autocheckpoint=0");
    for _ in 0..40 {
        step(host, writer, INSERT);
    }
    step(host, writer, "PRAGMA wal_checkpoint(RESTART)");
    step(host, writer, INSERT);
    step(host, writer, "PRAGMA wal_checkpoint(TRUNCATE)");
    host.close(reader);
    step(host, writer, INSERT);
    host.close(writer);
    shown.push((Ok(Vec::new()), wal_bytes(path)));
    shown
}

#[test]
fn checkpoints_give_what_they_give_without_us() {
    for which in [Program::Python, Program::Rust] {
        let dir = tempfile::tempdir().unwrap();
        let (plain, path) = (dir.path().join("plain.db"), dir.path().join("app.db"));
        // The bucket in three states: quick, slow, and never reached.
        let slow = Server::with_options(Options { delay: Duration::from_millis(100), ..Options::default() }).unwrap();
        let quick = Server::start().unwrap();
        let gone = Proxy::start(&quick.endpoint()).unwrap();
        gone.set(Mode::Hang).unwrap();
        let expected = {
            let mut host = Host::start(which, &[]);
            script(&mut host, &host::uri(&plain, &[]), &plain)
        };
        for (name, bucket) in [
            ("quick", Bucket::s3(&quick, "quick")),
            ("slow", Bucket::s3(&slow, "slow")),
            ("gone", Bucket::s3(&quick, "gone").through(&gone.endpoint())),
        ] {
            let mut host = Host::start(which, &bucket.env);
            let uri = host::replicated(&path, &bucket.url, &[("sync_interval", "10ms"), ("close_timeout", "200ms")]);
            let shown = script(&mut host, &uri, &path);
            for (index, (ours, theirs)) in shown.iter().zip(&expected).enumerate() {
                assert_eq!(ours, theirs, "{which:?}, {name}, step {index}");
            }
            assert_eq!(shown.len(), expected.len());
            page_compare(&path, &plain).unwrap();
            host.quit();
            gone.set(Mode::Forward).unwrap();
            let mut host = Host::start(which, &bucket.env);
            let db = host.open(&host::replicated(&path, &bucket.url, &[]));
            host.sync(db);
            let restored = dir.path().join("restored.db");
            bucket.restore(&restored);
            page_compare(&flattened(&path, dir.path()), &restored).unwrap();
            host.kill();
            gone.set(Mode::Hang).unwrap();
            for name in ["app.db", "app.db-wal", "app.db-shm"] {
                // They may not be there.
                let _ = std::fs::remove_file(dir.path().join(name));
            }
            std::fs::remove_dir_all(dir.path().join("app.db-replicated")).unwrap();
        }
    }
}

/// However long a put takes, a writer that never rests finds the WAL restarted: the spool takes what the bucket does not have yet.
#[test]
fn the_wal_stays_bounded_under_a_writer_that_never_rests() {
    /// SQLite restarts at 1000 frames of 4 KiB when nobody is in its way; four times that leaves room for a writer that was told to
    /// append a few times.
    const BOUND: u64 = 4 * 1000 * (4096 + 24);
    for (name, delay, more) in [("slow", 300, &[("sync_interval", "10ms")][..]), ("seldom", 0, &[("sync_interval", "1h")])] {
        let server = Server::with_options(Options { delay: Duration::from_millis(delay), ..Options::default() }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let bucket = Bucket::s3(&server, name);
        let mut host = Host::start(Program::Rust, &bucket.env);
        let db = host.open(&host::replicated(&path, &bucket.url, more));
        host.run(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
        let mut most = 0;
        for _ in 0..6000 {
            host.query(db, "INSERT INTO t(x) VALUES (randomblob(3000))");
            most = most.max(wal_bytes(&path).unwrap());
        }
        assert!(most <= BOUND, "{name}: the WAL grew to {most} bytes");
        host.sync(db);
        host.close(db);
        let restored = dir.path().join("restored.db");
        bucket.restore(&restored);
        page_compare(&path, &restored).unwrap();
        assert_eq!(bucket.full_states(), 1);
    }
}
