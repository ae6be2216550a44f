//! Databases of every shape come back as they were: page sizes, the lock page, growth and shrinking, spills, large transactions, and a
//! first snapshot of a database that changes all over while it is taken.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use replicated::restore::Target;
use replicated::store::Level;
use replicated::types::Txid;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program};
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::{integrity_check, page_compare};
use rusqlite::Connection;

struct Place {
    dir: tempfile::TempDir,
    bucket: Bucket,
    host: Host,
}

impl Place {
    fn folder(which: Program) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        let host = Host::start(which, &bucket.env);
        Self { dir, bucket, host }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn open(&mut self, set_up: &str) -> Db {
        let uri = host::replicated(&self.path(), &self.bucket.url, &[("sync_interval", "10ms")]);
        let db = self.host.open(&uri);
        self.host.run(db, set_up);
        self.host.run(db, "PRAGMA journal_mode=WAL");
        db
    }

    /// After a flush the bucket is the database, bytes and all.
    fn check(&mut self, db: Db) {
        self.host.sync(db);
        let restored = self.dir.path().join("restored.db");
        self.bucket.restore(&restored);
        page_compare(&flattened(&self.path(), self.dir.path()), &restored).unwrap();
        integrity_check(&restored).unwrap();
    }
}

const FILL: &str = "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300) INSERT INTO t(x) SELECT randomblob(700) FROM n";

#[test]
fn every_page_size() {
    for (index, page_size) in (9..=16).map(|bits| 1_u32 << bits).enumerate() {
        let mut place = Place::folder(if index % 2 == 0 { Program::Python } else { Program::Rust });
        let db = place.open(&format!("PRAGMA page_size={page_size}"));
        place.host.run(db, FILL);
        place.check(db);
        assert_eq!(place.host.value(db, "PRAGMA page_size"), page_size);
        place
            .host
            .run(db, "DELETE FROM t WHERE id % 4 = 0; UPDATE t SET x = zeroblob(2000) WHERE id % 5 = 0; PRAGMA wal_checkpoint(TRUNCATE)");
        place.host.run(db, FILL);
        place.check(db);
        place.host.close(db);
        let db = place.open("");
        place.host.run(db, FILL);
        place.check(db);
        assert_eq!(place.bucket.level(Level::new(9).unwrap()).len(), 1);
    }
}

#[test]
fn growing_and_shrinking() {
    let mut place = Place::folder(Program::Rust);
    let mut db = place.open("");
    place.host.run(db, "PRAGMA auto_vacuum=INCREMENTAL; VACUUM");
    place.host.run(db, FILL);
    assert_eq!(place.host.value(db, "PRAGMA auto_vacuum"), 2);
    place.check(db);
    for round in 0..3 {
        place.host.run(db, FILL);
        place.host.run(db, FILL);
        place.check(db);
        place.host.run(db, "DELETE FROM t WHERE id % 5 <> 0; PRAGMA incremental_vacuum(20); PRAGMA incremental_vacuum");
        place.check(db);
        place.host.run(db, FILL);
        place.host.run(db, "DELETE FROM t WHERE id % 3 <> 0; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)");
        place.check(db);
        // Shrinks and grows again before anything of it is sent.
        place.host.run(db, "DELETE FROM t; VACUUM");
        place.host.run(db, FILL);
        place.check(db);
        if round == 1 {
            place.host.close(db);
            db = place.open("");
        }
    }
    assert_eq!(place.bucket.level(Level::new(9).unwrap()).len(), 1);
}

#[test]
fn transactions_that_spill_and_savepoints_that_roll_back() {
    for which in [Program::Python, Program::Rust] {
        let mut place = Place::folder(which);
        let db = place.open("PRAGMA cache_size=10; PRAGMA cache_spill=5");
        place.host.run(db, "PRAGMA cache_size=10");
        place.host.run(db, FILL);
        for _ in 0..3 {
            place.host.run(
                db,
                "BEGIN; UPDATE t SET x = randomblob(900); SAVEPOINT s; UPDATE t SET x = randomblob(1100); DELETE FROM t WHERE id % 2 = 0;
                 ROLLBACK TO s; UPDATE t SET x = randomblob(800) WHERE id % 3 = 0; RELEASE s; COMMIT",
            );
            place.check(db);
            place.host.run(db, "BEGIN; UPDATE t SET x = randomblob(1200); ROLLBACK");
            place.host.run(db, "INSERT INTO t(x) VALUES (1)");
            place.check(db);
        }
    }
}

/// A transaction of tens of megabytes goes up in parts.
#[test]
fn a_large_transaction() {
    let server = Server::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::s3(&server, "large");
    let host = Host::start(Program::Rust, &bucket.env);
    let mut place = Place { dir, bucket, host };
    let db = place.open("");
    place.host.run(db, FILL);
    place.check(db);
    let before = server.requests().multipart;
    place.host.run(
        db,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<24) INSERT INTO t(x) SELECT randomblob(1048576) FROM n",
    );
    place.check(db);
    assert!(server.requests().multipart >= before + 2, "{:?}", server.requests());
    // And again through the spool: the last close finds it in the WAL.
    place.host.run(db, "UPDATE t SET x = randomblob(length(x))");
    place.host.close(db);
    let db = place.open("");
    place.check(db);
    assert_eq!(place.bucket.level(Level::new(9).unwrap()).len(), 1);
}

/// Past 1 GiB lies a page that SQLite never uses. The file is sparse: blobs of zeroes, pages that were never written.
#[test]
fn a_database_beyond_the_lock_page() {
    let mut place = Place::folder(Program::Rust);
    let path = place.path();
    let plain = Connection::open(&path).unwrap();
    plain.execute_batch("PRAGMA page_size=65536; PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x)").unwrap();
    drop(plain);
    // Grown by a transaction that leaves free pages behind.
    let db = place.open("");
    place.host.run(db, "PRAGMA cache_size=-200000; BEGIN");
    for _ in 0..11 {
        place.host.run(db, "INSERT INTO t(x) VALUES (zeroblob(100000000))");
    }
    place.host.run(db, "COMMIT");
    place.host.sync(db);
    place.host.run(db, "INSERT INTO t(x) VALUES ('beyond'); UPDATE t SET x = zeroblob(100000001) WHERE id = 11");
    place.host.sync(db);
    let pages = place.host.value(db, "PRAGMA page_count").as_u64().unwrap();
    assert!(pages > (1 << 30) / 65536 + 100, "{pages}");
    place.host.close(db);
    let restored = place.dir.path().join("restored.db");
    place.bucket.restore(&restored);
    assert_eq!(std::fs::metadata(&restored).unwrap().len(), pages * 65536);
    same_files(&path, &restored);
    integrity_check(&restored).unwrap();
}

/// `page_compare` in pieces, for files that should not be in memory; the lock page's content means nothing.
fn same_files(a: &Path, b: &Path) {
    use std::io::Read;
    let (mut left, mut right) = (std::fs::File::open(a).unwrap(), std::fs::File::open(b).unwrap());
    assert_eq!(left.metadata().unwrap().len(), right.metadata().unwrap().len());
    let (mut l, mut r) = (vec![0; 65536], vec![0; 65536]);
    for page in 1..=left.metadata().unwrap().len() / 65536 {
        left.read_exact(&mut l).unwrap();
        right.read_exact(&mut r).unwrap();
        assert!(l == r || page == (1 << 30) / 65536 + 1, "page {page} differs");
    }
}

/// Rows of a table that every transaction changes all over.
const CELLS: i64 = 3000;

/// Every transaction moves amounts between random rows and counts itself: the sum never changes, and the counter tells which state it is.
fn whole(path: &Path, earlier: i64) -> i64 {
    let connection = Connection::open(path).unwrap();
    let one = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(one("SELECT sum(v) FROM cells"), 0, "a part of a transaction is missing");
    assert_eq!(one("SELECT count(*) FROM cells"), CELLS);
    let n = one("SELECT n FROM counter");
    assert_eq!(one("SELECT max(changed) FROM cells"), n);
    assert!(n >= earlier, "{n} after {earlier}");
    integrity_check(path).unwrap();
    n
}

/// The first snapshot of a database of 50 MB, while a writer updates it all over, checkpoints and truncates: it is the state of one moment,
/// and so is every TXID after it.
#[test]
fn a_snapshot_of_a_database_that_changes_while_it_is_taken() {
    for (which, seed) in [(Program::Rust, 1), (Program::Python, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let plain = Connection::open(&path).unwrap();
        plain
            .execute_batch(&format!(
                "PRAGMA journal_mode=WAL; CREATE TABLE counter(n); INSERT INTO counter VALUES (0);
                 CREATE TABLE cells(id INTEGER PRIMARY KEY, v INTEGER, changed INTEGER, x BLOB);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{CELLS})
                 INSERT INTO cells SELECT i, 0, 0, randomblob(16000) FROM n"
            ))
            .unwrap();
        drop(plain);
        // Slow enough that the parts of the snapshot and the writer's transactions alternate.
        let options = Options { delay: std::time::Duration::from_millis(60), ..Options::default() };
        let server = Server::with_options(options).unwrap();
        let bucket = Bucket::s3(&server, "cow");
        let mut host = Host::start(which, &bucket.env);
        let db = host.open(&host::replicated(&path, &bucket.url, &[("sync_interval", "10ms")]));
        host.run(db, "PRAGMA wal_autocheckpoint=100; PRAGMA journal_size_limit=200000; SELECT n FROM counter");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut during = 0;
        for n in 1..=400 {
            host.query(db, "BEGIN IMMEDIATE");
            host.query(db, &format!("UPDATE counter SET n = {n}"));
            let amount = random.i64(1..1000);
            for sign in [1, -1] {
                let id = random.i64(1..=CELLS);
                host.query(
                    db,
                    &format!("UPDATE cells SET v = v + {}, changed = {n}, x = randomblob(16000) WHERE id = {id}", sign * amount),
                );
            }
            host.query(db, "COMMIT");
            if n % 20 == 0 {
                let kind = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.usize(0..4)];
                host.query(db, &format!("PRAGMA wal_checkpoint({kind})"));
                during += u32::from(host.status(db, "remote_txid") == "-");
            }
        }
        assert!(during > 0, "the snapshot was over before anything changed");
        host.sync(db);
        host.close(db);
        let restored = dir.path().join("restored.db");
        let newest = bucket.list().iter().map(|l| l.name.max_txid.get()).max().unwrap();
        let mut state = 0;
        for txid in (2..=newest).filter(|t| *t < 8 || *t == newest || t % 9 == 0) {
            bucket.try_restore(Target::Txid(Txid::new(txid).unwrap()), &restored).unwrap();
            state = whole(&restored, state);
        }
        assert_eq!(state, 400);
        page_compare(&path, &restored).unwrap();
        assert_eq!(bucket.full_states(), 1);
    }
}
