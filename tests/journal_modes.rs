//! Every journal mode and locking mode, and every switch between them, is replicated: increments, no second full state, and what is restored is
//! the database byte for byte.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;

use replicated::restore::Target;
use replicated::store::Level;
use replicated::types::Txid;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program};
use replicated_testkit::sqlite::{integrity_check, page_compare};
use rusqlite::Connection;

const MODES: [&str; 5] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"];
const BOTH: [Program; 2] = [Program::Python, Program::Rust];

struct Place {
    dir: tempfile::TempDir,
    bucket: Bucket,
    host: Host,
    which: Program,
}

impl Place {
    fn new(which: Program) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        let host = Host::start(which, &bucket.env);
        Self { dir, bucket, host, which }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn try_open(&mut self) -> Result<Db, String> {
        self.try_open_with("10ms")
    }

    fn try_open_with(&mut self, sync_interval: &str) -> Result<Db, String> {
        let log = self.dir.path().join("log");
        let options = [("sync_interval", sync_interval), ("log", log.to_str().unwrap()), ("log_level", "debug")];
        let uri = host::replicated(&self.path(), &self.bucket.url, &options);
        self.host.try_open(&uri)
    }

    fn open(&mut self, set_up: &str) -> Db {
        let db = self.try_open().unwrap();
        self.host.run(db, set_up);
        db
    }

    /// Kills the process, and starts another.
    fn kill(&mut self) {
        std::mem::replace(&mut self.host, Host::start(self.which, &self.bucket.env)).kill();
    }

    /// After a flush the bucket is the database, bytes and all.
    fn check(&mut self, db: Db) {
        self.host.sync(db);
        self.compare();
    }

    fn compare(&self) {
        let restored = self.dir.path().join("restored.db");
        self.bucket.restore(&restored);
        // Without its locks: under exclusive locking nobody else may read it.
        page_compare(&flattened(&self.path(), self.dir.path()), &restored).unwrap_or_else(|e| panic!("{e}\n{}", self.log()));
        integrity_check(&restored).unwrap();
    }

    /// Every TXID restores to a database whose one row of `state` tells how many rows `t` has.
    fn check_prefixes(&self) {
        let restored = self.dir.path().join("prefix.db");
        let newest = self.bucket.list().iter().map(|l| l.name.max_txid.get()).max().unwrap();
        for txid in 2..=newest {
            self.bucket.try_restore(Target::Txid(Txid::new(txid).unwrap()), &restored).unwrap();
            integrity_check(&restored).unwrap();
            let connection = Connection::open(&restored).unwrap();
            if connection.query_row("SELECT count(*) FROM sqlite_schema WHERE name='state'", [], |r| r.get::<_, i64>(0)).unwrap() == 0 {
                continue;
            }
            let (told, there): (i64, i64) = connection
                .query_row("SELECT (SELECT coalesce(sum(n), 0) FROM state), (SELECT count(*) FROM t)", [], |r| Ok((r.get(0)?, r.get(1)?)))
                .unwrap();
            assert_eq!(told, there, "TXID {txid}");
        }
    }

    /// How often the full state was sent; `TABLES` has pages that never change.
    fn full_states(&self) -> usize {
        self.bucket.full_states()
    }

    /// Makes the tables without the extension.
    fn prepare(&self, set_up: &str) {
        Connection::open(self.path()).unwrap().execute_batch(&format!("{set_up}; {TABLES}")).unwrap();
    }
}

/// A table, a row that tells how many it has, and pages that never change, so that a full state can be told from an increment.
const TABLES: &str = "CREATE TABLE still(x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<60) INSERT INTO still SELECT \
                      randomblob(3000) FROM n; CREATE TABLE t(id INTEGER PRIMARY KEY, x); CREATE TABLE state(n); INSERT INTO state VALUES (0)";
const ADD: &str = "BEGIN; INSERT INTO t(x) VALUES (randomblob(900)); UPDATE state SET n = n + 1; COMMIT";

fn work(host: &mut Host, db: Db) {
    for _ in 0..5 {
        host.run(db, ADD);
    }
    // Rolled back, some of it written before.
    host.run(db, "PRAGMA cache_size=5");
    host.run(
        db,
        "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<50) INSERT INTO t(x) SELECT randomblob(2000) FROM n",
    );
    if host.value(db, "PRAGMA journal_mode") == "off" {
        // There a rollback is undefined.
        host.run(db, "UPDATE state SET n = n + 50; COMMIT");
    } else {
        host.run(db, "ROLLBACK");
    }
    host.run(db, "PRAGMA cache_size=-2000");
    host.run(db, ADD);
    // The file grows over pages that are never written (fact 0.19).
    host.run(db, "PRAGMA secure_delete=OFF");
    host.run(db, "BEGIN; CREATE TABLE brief(x); INSERT INTO brief VALUES (zeroblob(100000)); DELETE FROM brief; COMMIT");
    host.run(db, "DROP TABLE brief");
    host.run(db, ADD);
}

#[test]
fn rollback_modes_send_increments() {
    for which in BOTH {
        for mode in MODES {
            let mut place = Place::new(which);
            place.prepare("");
            let db = place.open(&format!("PRAGMA journal_mode={mode}"));
            place.host.run(db, ADD);
            place.check(db);
            for _ in 0..3 {
                work(&mut place.host, db);
                place.check(db);
            }
            place.host.run(db, "BEGIN; DELETE FROM t; UPDATE state SET n = 0; COMMIT");
            place.check(db);
            assert_eq!(place.full_states(), 1, "{mode}: {}", place.log());
            place.host.run(db, "VACUUM");
            place.host.run(db, ADD);
            place.check(db);
            place.host.close(db);
            place.compare();
            // Another process goes on where this one ended.
            let full = place.full_states();
            place.kill();
            let db = place.open(&format!("PRAGMA journal_mode={mode}"));
            place.host.run(db, ADD);
            place.check(db);
            assert_eq!(place.full_states(), full, "{mode}: {}", place.log());
            place.check_prefixes();
        }
    }
}

#[test]
fn exclusive_locking_sends_increments() {
    for which in BOTH {
        for mode in ["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] {
            for later in [false, true] {
                let mut place = Place::new(which);
                place.prepare("");
                let exclusive = "PRAGMA locking_mode=EXCLUSIVE";
                let db = place.open(if later { "" } else { exclusive });
                place.host.run(db, &format!("PRAGMA journal_mode={mode}"));
                place.host.run(db, ADD);
                place.check(db);
                if later {
                    place.host.run(db, exclusive);
                }
                for round in 0..3 {
                    work(&mut place.host, db);
                    place.check(db);
                    if mode == "WAL" {
                        let kind = ["PASSIVE", "RESTART", "TRUNCATE"][round];
                        assert_eq!(place.host.query(db, &format!("PRAGMA wal_checkpoint({kind})"))[0][0], 0);
                        place.host.run(db, ADD);
                        place.check(db);
                    }
                }
                assert_eq!(place.host.value(db, "PRAGMA locking_mode"), "exclusive");
                place.host.run(db, "PRAGMA locking_mode=NORMAL; SELECT count(*) FROM t");
                place.host.run(db, ADD);
                place.check(db);
                place.host.close(db);
                place.compare();
                assert_eq!(place.full_states(), 1, "{mode} {later}: {}", place.log());
                place.check_prefixes();
            }
        }
    }
}

#[test]
fn an_exclusive_wal_is_restarted_over_and_over() {
    let mut place = Place::new(Program::Rust);
    place.prepare("");
    let db = place.open("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=20");
    for round in 0..300 {
        place.host.run(db, ADD);
        if round % 60 == 0 {
            place.check(db);
        }
    }
    place.check(db);
    assert_eq!(place.full_states(), 1, "{}", place.log());
    place.check_prefixes();
}

#[test]
fn switches_on_an_open_database() {
    for which in BOTH {
        let mut place = Place::new(which);
        place.prepare("");
        let db = place.open("");
        place.host.run(db, ADD);
        place.check(db);
        let order = ["WAL", "DELETE", "WAL", "PERSIST", "TRUNCATE", "WAL", "MEMORY", "WAL", "OFF", "DELETE", "MEMORY", "PERSIST", "WAL"];
        for (index, mode) in order.iter().enumerate() {
            let answer = place.host.value(db, &format!("PRAGMA journal_mode={mode}"));
            assert_eq!(answer, mode.to_lowercase());
            // Else the database would be in WAL mode again at the next open.
            let has_wal = place.dir.path().join("app.db-wal").exists();
            assert!(!has_wal || *mode == "WAL", "{mode}");
            place.host.run(db, ADD);
            if index % 2 == 0 {
                place.check(db);
            }
            if index == 6 {
                place.host.run(db, "PRAGMA locking_mode=EXCLUSIVE");
            }
            if index == 9 {
                place.host.run(db, "PRAGMA locking_mode=NORMAL; SELECT count(*) FROM t");
            }
            place.host.run(db, ADD);
        }
        place.check(db);
        assert_eq!(place.full_states(), 1, "{}", place.log());
        place.host.close(db);
        assert!(!place.dir.path().join("app.db-wal").exists(), "the last close left it");
        place.check_prefixes();
    }
}

#[test]
fn another_page_size_begins_a_new_line_of_increments() {
    for which in BOTH {
        let mut place = Place::new(which);
        let db = place.open("PRAGMA page_size=4096; PRAGMA journal_mode=WAL");
        place.host.run(db, TABLES);
        place.host.run(db, ADD);
        place.check(db);
        for page_size in [8192, 512, 4096] {
            place.host.run(db, &format!("PRAGMA journal_mode=DELETE; PRAGMA page_size={page_size}; VACUUM"));
            place.host.run(db, ADD);
            assert_eq!(place.host.value(db, "PRAGMA page_size"), page_size);
            place.check(db);
            place.host.run(db, "PRAGMA journal_mode=WAL");
            place.host.run(db, ADD);
            place.check(db);
        }
        // A snapshot and its marker for each.
        assert_eq!(place.bucket.level(Level::new(9).unwrap()).len(), 4, "{}", place.log());
        place.check_prefixes();
    }
}

#[test]
fn auto_vacuum_in_rollback_mode() {
    let mut place = Place::new(Program::Rust);
    place.prepare("PRAGMA auto_vacuum=FULL");
    let db = place.open("");
    for _ in 0..3 {
        for _ in 0..30 {
            place.host.run(db, ADD);
        }
        place.check(db);
        place.host.run(db, "BEGIN; DELETE FROM t; UPDATE state SET n = 0; COMMIT");
        place.check(db);
    }
    assert_eq!(place.full_states(), 1, "{}", place.log());
    place.check_prefixes();
}

/// The backup API writes a whole database as one transaction; where it brings another page size, that begins a new line.
#[test]
fn a_backup_into_a_replicated_database_and_out_of_it() {
    for mode in ["WAL", "DELETE"] {
        for page_size in [4096, 1024] {
            let mut place = Place::new(Program::Python);
            let source = place.dir.path().join("source.db");
            let connection = Connection::open(&source).unwrap();
            connection.execute_batch(&format!("PRAGMA page_size={page_size}; {TABLES}; {ADD}")).unwrap();
            drop(connection);
            let db = place.open(&format!("PRAGMA journal_mode={mode}; CREATE TABLE old(x)"));
            place.check(db);
            let restored = place.host.backup_from(db, &source);
            if mode == "WAL" && page_size != 4096 {
                // SQLite's own rule.
                assert!(restored.unwrap_err().contains("readonly"), "{mode} {page_size}");
                continue;
            }
            restored.unwrap();
            place.host.run(db, ADD);
            place.check(db);
            let copy = place.dir.path().join("copy.db");
            place.host.backup_to(db, &copy).unwrap();
            place.host.close(db);
            integrity_check(&copy).unwrap();
            assert_eq!(Connection::open(&copy).unwrap().query_row("SELECT count(*) FROM t", [], |r| r.get::<_, i64>(0)).unwrap(), 2);
        }
    }
}

/// A backup of an empty database into one of larger pages leaves a file shorter than one page of the size that its header names. To SQLite that is a page.
#[test]
fn a_backup_of_nothing_into_larger_pages() {
    for flushed in [false, true] {
        let mut place = Place::new(Program::Python);
        let db = place.open("PRAGMA page_size=8192; CREATE TABLE old(x); CREATE INDEX i ON old(x)");
        if flushed {
            place.check(db);
        }
        place.host.backup_from(db, &place.dir.path().join("nothing.db")).unwrap();
        let mut local = std::fs::read(place.path()).unwrap();
        assert_eq!(local.len(), 4096);
        place.host.sync(db);
        let restored = place.dir.path().join("restored.db");
        place.bucket.restore(&restored);
        local.resize(8192, 0);
        assert!(std::fs::read(&restored).unwrap() == local, "{}", place.log());
        integrity_check(&restored).unwrap();
        // And an open that finds such a file.
        place.host.close(db);
        let db = place.open(&format!("{TABLES}; {ADD}"));
        place.check(db);
    }
}

#[test]
fn memory_mapped_reads_and_vacuum_into() {
    for mode in ["WAL", "DELETE"] {
        let mut place = Place::new(Program::Python);
        place.prepare("");
        let db = place.open(&format!("PRAGMA mmap_size=268435456; PRAGMA journal_mode={mode}"));
        work(&mut place.host, db);
        place.check(db);
        let copy = place.dir.path().join("copy.db");
        place.host.run(db, &format!("VACUUM INTO '{}'", copy.display()));
        assert!(!place.dir.path().join("copy.db-replicated").exists());
        integrity_check(&copy).unwrap();
        work(&mut place.host, db);
        place.check(db);
        assert_eq!(place.full_states(), 1, "{}", place.log());
    }
}

/// SQLite takes a journal's transaction back when the next process reads; the file is then what was captured, and increments go on.
#[test]
fn a_process_killed_within_a_transaction_costs_no_full_state() {
    for which in BOTH {
        for (mode, exclusive) in [("DELETE", false), ("TRUNCATE", false), ("PERSIST", false), ("DELETE", true), ("PERSIST", true)] {
            let mut place = Place::new(which);
            let set_up = format!(
                "PRAGMA locking_mode={}; PRAGMA journal_mode={mode}; PRAGMA cache_size=5",
                if exclusive { "EXCLUSIVE" } else { "NORMAL" }
            );
            place.prepare("");
            let mut db = place.open(&set_up);
            place.host.run(db, ADD);
            place.check(db);
            for _ in 0..3 {
                place.host.run(db, ADD);
                place.host.run(db, "BEGIN; UPDATE still SET x = randomblob(3000)");
                assert!(place.dir.path().join("app.db-journal").exists());
                place.kill();
                db = place.open(&set_up);
                assert_eq!(place.host.value(db, "SELECT count(*) = (SELECT n FROM state) FROM t"), 1);
                place.check(db);
                place.host.run(db, ADD);
                place.check(db);
            }
            assert_eq!(place.full_states(), 1, "{mode} {exclusive}: {}", place.log());
            place.check_prefixes();
        }
    }
}

/// Without a journal on disk nobody can tell what a killed transaction left: the full state is sent.
#[test]
fn a_transaction_without_a_journal_that_was_cut_off_costs_a_full_state() {
    for mode in ["MEMORY", "OFF"] {
        let mut place = Place::new(Program::Python);
        place.prepare("");
        let set_up = format!("PRAGMA journal_mode={mode}; PRAGMA cache_size=5");
        let db = place.open(&set_up);
        place.host.run(db, ADD);
        place.check(db);
        // Between transactions nothing is lost.
        place.kill();
        let db = place.open(&set_up);
        place.host.run(db, ADD);
        place.check(db);
        assert_eq!(place.full_states(), 1, "{mode}: {}", place.log());
        place.host.run(db, "BEGIN; UPDATE still SET x = zeroblob(3000)");
        place.kill();
        let db = place.open(&set_up);
        place.host.sync(db);
        let restored = place.dir.path().join("restored.db");
        place.bucket.restore(&restored);
        page_compare(&place.path(), &restored).unwrap();
        assert_eq!(place.full_states(), 2, "{mode}: {}", place.log());
        assert!(place.log().contains("a transaction without a journal on disk"), "{}", place.log());
    }
}

/// A process without the extension writes between two of ours: what it did is sent, as the full state.
#[test]
fn a_foreign_commit_in_rollback_mode_is_noticed() {
    let mut place = Place::new(Program::Rust);
    place.prepare("");
    let db = place.open("");
    place.host.run(db, ADD);
    place.check(db);
    let foreign = Connection::open(place.path()).unwrap();
    foreign.execute_batch(ADD).unwrap();
    place.host.run(db, ADD);
    place.check(db);
    assert_eq!(place.full_states(), 2, "{}", place.log());
    place.host.close(db);
    foreign.execute_batch(ADD).unwrap();
    let db = place.open("");
    place.host.query(db, "SELECT count(*) FROM t");
    place.check(db);
    assert_eq!(place.full_states(), 3, "{}", place.log());
    // One that only rolls back what it wrote leaves nothing to send.
    place.host.close(db);
    foreign.execute_batch("PRAGMA cache_size=5; BEGIN; UPDATE still SET x = zeroblob(3000); ROLLBACK").unwrap();
    drop(foreign);
    let db = place.open("");
    place.host.run(db, ADD);
    place.check(db);
    place.check_prefixes();
}

#[test]
fn databases_that_nobody_can_replicate_pass_through() {
    let mut place = Place::new(Program::Python);
    let db = place.open("");
    place.host.run(db, TABLES);
    place.host.close(db);
    let immutable = host::replicated(&place.path(), &place.bucket.url, &[("immutable", "1")]);
    let db = place.host.open(&immutable);
    assert_eq!(place.host.value(db, "SELECT count(*) FROM still"), 60);
    assert!(place.host.try_query(db, "INSERT INTO t VALUES (1, 1)").is_err());
    place.host.close(db);
    let db = place.host.open(":memory:");
    place.host.run(db, "CREATE TABLE t(x); INSERT INTO t VALUES (1)");
    assert_eq!(place.host.value(db, "SELECT count(*) FROM t"), 1);
}

/// Under exclusive locking no gate tells that the WAL is cut: where a generation has begun that the uploader has not looked at yet, it is spooled.
#[test]
fn an_exclusive_wal_that_is_cut_soon_after_its_restart_loses_nothing() {
    for which in BOTH {
        let mut place = Place::new(which);
        place.prepare("");
        // The uploader has no token until somebody asks.
        let db = place.try_open_with("1h").unwrap();
        place.host.run(db, "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL");
        place.check(db);
        for _ in 0..3 {
            place.host.run(db, ADD);
            assert_eq!(place.host.query(db, "PRAGMA wal_checkpoint(PASSIVE)")[0][0], 0);
            // It restarts the WAL.
            place.host.run(db, ADD);
            assert_eq!(place.host.query(db, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0], 0);
            place.host.run(db, ADD);
            place.check(db);
        }
        assert_eq!(place.full_states(), 1, "{}", place.log());
        place.check_prefixes();
    }
}

/// Of a WAL database that nobody has written to since it was opened no WAL-index tells the size: the file does.
#[test]
fn leaving_wal_mode_before_anything_was_written_sends_an_increment() {
    for first in ["SELECT count(*) FROM t", "PRAGMA replicated_sync"] {
        let mut place = Place::new(Program::Python);
        place.prepare("PRAGMA journal_mode=WAL");
        let db = place.open("SELECT count(*) FROM t");
        place.check(db);
        place.host.close(db);
        let db = place.open(first);
        assert_eq!(place.host.value(db, "PRAGMA journal_mode=DELETE"), "delete");
        place.host.run(db, ADD);
        place.check(db);
        assert_eq!(place.full_states(), 1, "{}", place.log());
    }
}

/// SQLite does not tell of a rollback under exclusive locking; the full state must not wait for the next commit.
#[test]
fn a_rollback_under_exclusive_locking_holds_no_full_state_up() {
    const SPILL: &str = "BEGIN; UPDATE still SET x = zeroblob(3000)";
    for which in BOTH {
        let mut place = Place::new(which);
        place.prepare("");
        let db = place.open("PRAGMA locking_mode=EXCLUSIVE; PRAGMA cache_size=5");
        place.host.run(db, SPILL);
        place.host.run(db, "ROLLBACK");
        place.check(db);
        // Rolled back where another process, without the extension, was killed.
        let mut place = Place::new(which);
        place.prepare("");
        let mut other = Host::plain(&[]);
        let db = other.open(place.path().to_str().unwrap());
        other.run(db, "PRAGMA cache_size=5");
        other.run(db, SPILL);
        other.kill();
        assert!(place.dir.path().join("app.db-journal").exists());
        let db = place.open("PRAGMA locking_mode=EXCLUSIVE; SELECT count(*) FROM t");
        place.check(db);
    }
}

/// A process without the extension writes when the full state is due.
#[test]
fn what_somebody_else_has_not_committed_is_not_sent() {
    let mut place = Place::new(Program::Python);
    place.prepare("");
    // Nothing can be sent yet.
    let bucket = place.dir.path().join("bucket");
    std::fs::write(&bucket, "").unwrap();
    let db = place.open("SELECT count(*) FROM t");
    assert!(place.host.try_query(db, "PRAGMA replicated_sync='100ms'").is_err());
    let foreign = Connection::open(place.path()).unwrap();
    // The database grows after we have read it.
    foreign.execute_batch(ADD).unwrap();
    foreign.execute_batch("PRAGMA cache_size=5; BEGIN; UPDATE still SET x = zeroblob(3000)").unwrap();
    std::fs::remove_file(&bucket).unwrap();
    assert!(place.host.try_query(db, "PRAGMA replicated_sync='3s'").is_err());
    assert!(place.bucket.try_list().is_empty(), "{}", place.log());
    foreign.execute_batch("ROLLBACK").unwrap();
    place.check(db);
    foreign.execute_batch(ADD).unwrap();
    place.host.run(db, ADD);
    place.check(db);
    place.check_prefixes();
}

/// A process may die when it has synced its journal, which takes most of the time of a commit, and not written to the database file yet. Rolling
/// that back writes what is there already.
#[test]
fn a_process_killed_when_it_had_only_written_its_journal_costs_no_full_state() {
    const PAGE_BYTES: usize = 4096;
    for which in BOTH {
        let mut place = Place::new(which);
        place.prepare("");
        let mut db = place.open("");
        for _ in 0..3 {
            place.host.run(db, ADD);
            place.check(db);
            place.kill();
            let content = std::fs::read(place.path()).unwrap();
            let pages = u32::try_from(content.len() / PAGE_BYTES).unwrap();
            // Magic number, records, what checksums begin with, pages before, bytes of a sector and of a page.
            let mut journal = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
            journal.extend([1, 0, pages, 512, PAGE_BYTES as u32].iter().flat_map(|word: &u32| word.to_be_bytes()));
            journal.resize(512, 0);
            let page = &content[PAGE_BYTES..2 * PAGE_BYTES];
            let checksum: u32 =
                (1..).map_while(|i| PAGE_BYTES.checked_sub(200 * i).filter(|&at| at > 0)).map(|at| u32::from(page[at])).sum();
            journal.extend([&2_u32.to_be_bytes(), page, &checksum.to_be_bytes()].concat());
            std::fs::write(place.dir.path().join("app.db-journal"), journal).unwrap();
            db = place.open("SELECT count(*) FROM t");
            assert!(!place.dir.path().join("app.db-journal").exists());
            place.check(db);
        }
        assert_eq!(place.full_states(), 1, "{}", place.log());
        place.check_prefixes();
    }
}

/// Of a transaction over several databases in WAL mode one may fail when another is committed already. Under exclusive locking nothing tells.
#[test]
fn a_commit_of_several_databases_that_fails_in_another_one_is_replicated() {
    const SCRIPT: &str = r"
import resource, sqlite3, sys
extension, uri, other = sys.argv[1:]
loader = sqlite3.connect(':memory:')
loader.enable_load_extension(True)
loader.load_extension(extension)
db = sqlite3.connect(uri, uri=True, isolation_level=None)
for statement in ('locking_mode=EXCLUSIVE', 'journal_mode=WAL'):
    db.execute('PRAGMA ' + statement).fetchall()
db.execute('ATTACH ? AS other', (other,))
for statement in ('other.journal_mode=WAL', 'other.cache_size=-100000'):
    db.execute('PRAGMA ' + statement).fetchall()
db.execute('CREATE TABLE other.u(x)')
db.execute('BEGIN')
db.execute('INSERT INTO t(x) VALUES (1)')
db.execute('UPDATE state SET n = n + 1')
db.execute('INSERT INTO other.u VALUES (zeroblob(20000000))')
resource.setrlimit(resource.RLIMIT_FSIZE, (8000000, resource.RLIM_INFINITY))
try:
    db.execute('COMMIT')
    sys.exit('it was committed')
except sqlite3.OperationalError:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert not db.in_transaction
assert db.execute('SELECT count(*) FROM t').fetchone() == (1,)
db.close()
";
    let mut place = Place::new(Program::Python);
    place.prepare("");
    let db = place.open("");
    place.check(db);
    place.host.close(db);
    place.kill();
    let uri = host::replicated(&place.path(), &place.bucket.url, &[]);
    let mut command = host::command(host::python(), &place.bucket.env);
    command.args(["-c", SCRIPT]).arg(host::extension()).arg(uri).arg(place.dir.path().join("other.db"));
    assert!(command.status().unwrap().success());
    place.compare();
    place.check_prefixes();
}
