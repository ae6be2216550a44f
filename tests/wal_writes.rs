//! What the system is asked to write for a commit in the WAL: what SQLite writes, byte for byte, a frame's header and page at once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::{Arc, Mutex};

use replicated_testkit::bucket::flattened;
use replicated_testkit::crash::beneath::Beneath;
use replicated_testkit::crash::vfs::{self, Kind, Method};
use replicated_testkit::sqlite::{integrity_check, same_but_for_free_pages};
use rusqlite::Connection;

const FRAME_HEADER_BYTES: i64 = 24;

fn open(place: &Beneath, page_bytes: i64, more: &str) -> Connection {
    let connection = place.open(&[]);
    connection
        .execute_batch(&format!(
            "PRAGMA page_size={page_bytes}; {more}; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0;
             CREATE TABLE t(id INTEGER PRIMARY KEY, x)"
        ))
        .unwrap();
    connection
}

/// Offset and bytes of each write to the WAL that `work` makes.
fn writes_of(work: impl FnOnce()) -> Vec<(i64, i64)> {
    let writes = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&writes);
    vfs::set_hook(Some(Arc::new(move |call| {
        if call.is_done && call.method == Method::Write && call.kind == Kind::Wal {
            noted.lock().unwrap().push((call.arguments[0], call.arguments[1]));
        }
    })));
    work();
    vfs::set_hook(None);
    std::mem::take(&mut *writes.lock().unwrap())
}

/// As after a kill: what another process finds in the files.
fn rows_of_copy(place: &Beneath) -> Vec<(i64, i64)> {
    let copy = place.path("copy.db");
    for suffix in ["", "-wal"] {
        std::fs::copy(place.path(&format!("app.db{suffix}")), place.path(&format!("copy.db{suffix}"))).unwrap();
    }
    integrity_check(&copy).unwrap();
    rows(&Connection::open(&copy).unwrap())
}

fn rows(connection: &Connection) -> Vec<(i64, i64)> {
    let mut statement = connection.prepare("SELECT id, length(x) FROM t ORDER BY id").unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap()
}

fn is_in_bucket(place: &Beneath, connection: &Connection) {
    connection.query_row("PRAGMA replicated_sync='20s'", [], |row| row.get::<_, String>(0)).unwrap();
    let restored = place.path("restored.db");
    place.bucket.restore(&restored);
    let flat = flattened(Path::new(&place.path("copy.db")), place.dir.path());
    same_but_for_free_pages(&flat, &restored).unwrap();
}

/// A frame is one write, of all page sizes that are copied for it; a larger one is two, as without us.
#[test]
fn a_frame_is_one_write() {
    for (page_bytes, more) in [(512, ""), (4096, ""), (16384, ""), (65536, ""), (4096, "PRAGMA locking_mode=EXCLUSIVE")] {
        let place = Beneath::new();
        let connection = open(&place, page_bytes, more);
        for round in 0..3 {
            let writes = writes_of(|| {
                connection.execute_batch("INSERT INTO t(x) VALUES (randomblob(100))").unwrap();
            });
            let frame = FRAME_HEADER_BYTES + page_bytes;
            let at = writes[0].0;
            let expected =
                if page_bytes <= 16384 { vec![(at, frame)] } else { vec![(at, FRAME_HEADER_BYTES), (at + FRAME_HEADER_BYTES, page_bytes)] };
            assert_eq!(writes, expected, "{page_bytes}, round {round}");
            assert_eq!((at - 32) % frame, 0);
        }
        assert_eq!(rows_of_copy(&place), rows(&connection), "{page_bytes}, {more}");
        is_in_bucket(&place, &connection);
    }
}

/// A transaction that is too large for its cache writes frames over, and by its commit the headers of all that follow, alone: what lies there is SQLite's
/// WAL to the byte, so that whoever recovers it finds the transaction.
#[test]
fn headers_that_are_written_again_are_not_held() {
    for more in ["", "PRAGMA locking_mode=EXCLUSIVE"] {
        let place = Beneath::new();
        let connection = open(&place, 4096, more);
        connection.execute_batch("PRAGMA cache_size=5; PRAGMA cache_spill=1").unwrap();
        let writes = writes_of(|| {
            connection
                .execute_batch(
                    "BEGIN;
                     WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 60) INSERT INTO t SELECT i, randomblob(3000) FROM n;
                     UPDATE t SET x = randomblob(2000);
                     UPDATE t SET x = randomblob(1000) WHERE id % 7 = 0;
                     COMMIT",
                )
                .unwrap();
        });
        let alone = writes.iter().filter(|(_, bytes)| *bytes == FRAME_HEADER_BYTES).count();
        let pages = writes.iter().filter(|(_, bytes)| *bytes == 4096).count();
        assert!(alone > 20 && pages > 20, "{alone} headers and {pages} pages alone, of {} writes", writes.len());
        let copied = rows_of_copy(&place);
        assert_eq!(copied.len(), 60);
        assert_eq!(copied, rows(&connection));
        is_in_bucket(&place, &connection);
    }
}

/// The write of a frame fails: the statement does, as without us, and what comes next is whole.
#[test]
fn a_frame_that_is_not_written_is_told() {
    for more in ["", "PRAGMA locking_mode=EXCLUSIVE"] {
        let place = Beneath::new();
        let connection = open(&place, 4096, more);
        connection.execute_batch("INSERT INTO t(x) VALUES (randomblob(100))").unwrap();
        vfs::set_refusal(Some(Arc::new(|call| call.method == Method::Write && call.kind == Kind::Wal)));
        connection.execute_batch("INSERT INTO t(x) VALUES (randomblob(200))").unwrap_err();
        vfs::set_refusal(None);
        assert_eq!(rows_of_copy(&place), [(1, 100)]);
        connection.execute_batch("INSERT INTO t(x) VALUES (randomblob(300))").unwrap();
        assert_eq!(rows_of_copy(&place), [(1, 100), (2, 300)]);
        is_in_bucket(&place, &connection);
    }
}
