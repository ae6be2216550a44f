//! What happens between two calls of SQLite's to its VFS: somebody else comes at that very moment.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replicated_testkit::bucket::flattened;
use replicated_testkit::crash::beneath::Beneath;
use replicated_testkit::crash::vfs::{self, Call, Kind, Method};
use replicated_testkit::host;
use replicated_testkit::sqlite::same_but_for_free_pages;
use rusqlite::{Connection, ErrorCode, OpenFlags};

fn open(place: &Beneath, options: &[(&str, &str)]) -> Connection {
    let connection = place.open(options);
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE IF NOT EXISTS t(x)").unwrap();
    connection
}

/// Has something done, once, after a call of that kind for the database.
fn after(
    place: &Beneath,
    is_meant: impl Fn(&Call<'_>) -> bool + Send + Sync + 'static,
    then: impl Fn() + Send + Sync + 'static,
) -> Arc<AtomicBool> {
    let came = Arc::new(AtomicBool::new(false));
    let (seen, path) = (Arc::clone(&came), place.path("app.db"));
    vfs::set_hook(Some(Arc::new(move |call| {
        if call.is_done && call.path == Some(&*path) && is_meant(call) && !seen.swap(true, Ordering::SeqCst) {
            then();
        }
    })));
    came
}

fn sync(connection: &Connection) {
    connection.query_row("PRAGMA replicated_sync='20s'", [], |row| row.get::<_, String>(0)).unwrap();
}

/// Another process, without the extension.
fn elsewhere(path: &Path, sql: &str) {
    const SCRIPT: &str =
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.executescript(sys.argv[2]); c.close()";
    let status = Command::new(host::python()).args(["-c", SCRIPT]).arg(path).arg(sql).status().unwrap();
    assert!(status.success());
}

/// The write lock is released, and before the next instruction another connection has committed: what the WAL-index tells then is not of this commit, which
/// is waited for all the same.
#[test]
fn somebody_commits_when_the_write_lock_is_released() {
    const RELEASE: [i64; 3] = [0, 1, 1 | 8];
    let place = Beneath::new();
    let first = open(&place, &[("durability", "remote"), ("ack_timeout", "300ms")]);
    let second = open(&place, &[("durability", "local")]);
    second.busy_timeout(Duration::from_millis(1)).unwrap();
    sync(&first);
    // From now on nothing can be acknowledged.
    let (bucket, away) = (place.dir.path().join("bucket"), place.dir.path().join("away"));
    std::fs::rename(&bucket, &away).unwrap();
    std::fs::write(&bucket, b"not a folder").unwrap();
    let second = Mutex::new(second);
    let commit = move || second.lock().unwrap().execute_batch("INSERT INTO t VALUES (2)").unwrap();
    let came = after(&place, |call| call.method == Method::ShmLock && call.arguments == RELEASE, commit);
    let committed = first.execute_batch("INSERT INTO t VALUES (1)");
    assert!(came.load(Ordering::SeqCst));
    let Err(rusqlite::Error::SqliteFailure(refused, _)) = committed else { panic!("it was acknowledged") };
    assert_eq!((refused.code, refused.extended_code), (ErrorCode::SystemIoFailure, replicated::NOT_ACKNOWLEDGED));
    std::fs::remove_file(&bucket).unwrap();
    std::fs::rename(&away, &bucket).unwrap();
    sync(&first);
    let restored = place.dir.path().join("restored.db");
    place.bucket.restore(&restored);
    same_but_for_free_pages(&flattened(&place.path("app.db"), place.dir.path()), &restored).unwrap();
}

/// The last lock is given up, and before the file is closed somebody else has committed.
#[test]
fn somebody_commits_between_the_last_unlock_and_the_close() {
    let place = Beneath::new();
    let connection = open(&place, &[]);
    connection.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    sync(&connection);
    let (path, wal) = (place.path("app.db"), place.dir.path().join("app.db-wal"));
    let came = after(
        &place,
        move |call| call.method == Method::Unlock && call.kind == Kind::Main && call.arguments[0] == 0 && !wal.exists(),
        move || elsewhere(&path, "CREATE TABLE u(y); INSERT INTO t VALUES (2)"),
    );
    connection.close().unwrap();
    assert!(came.load(Ordering::SeqCst));
    let connection = open(&place, &[]);
    connection.execute_batch("INSERT INTO t VALUES (3)").unwrap();
    sync(&connection);
    let restored = place.dir.path().join("restored.db");
    place.bucket.restore(&restored);
    same_but_for_free_pages(&flattened(&place.path("app.db"), place.dir.path()), &restored).unwrap();
    let rows: i64 = Connection::open(restored).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 3);
}

/// Under exclusive locking nothing but its WAL tells of a commit, and one whose sync has failed lies there as if it were one. What comes next may have
/// changed nothing, and is told of all the same.
#[test]
fn a_commit_that_could_not_be_synced_is_not_sent() {
    let place = Beneath::new();
    let exclusive = |connection: &Connection| connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=FULL").unwrap();
    drop(open(&place, &[]));
    let uri = place.uri(&[]);
    let connection = Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI).unwrap();
    exclusive(&connection);
    connection.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    sync(&connection);
    vfs::set_refusal(Some(Arc::new(|call| call.method == Method::Sync && call.kind == Kind::Wal)));
    connection.execute_batch("INSERT INTO t VALUES (2)").unwrap_err();
    vfs::set_refusal(None);
    connection.execute_batch("BEGIN IMMEDIATE; COMMIT").unwrap();
    sync(&connection);
    let rows = || {
        let restored = place.dir.path().join("restored.db");
        place.bucket.restore(&restored);
        let restored = Connection::open(restored).unwrap();
        let mut statement = restored.prepare("SELECT x FROM t").unwrap();
        statement.query_map([], |row| row.get::<_, i64>(0)).unwrap().collect::<Result<Vec<_>, _>>().unwrap()
    };
    assert_eq!(rows(), [1]);
    connection.execute_batch("INSERT INTO t VALUES (3)").unwrap();
    sync(&connection);
    assert_eq!(rows(), [1, 3]);
}

/// Our thread is within the VFS below, which may hold locks of the process, and the application forks: the child does not begin before our thread is out
/// again. One that forks within SQLite, and whatever it holds, comes on as well.
#[test]
fn somebody_forks_while_our_thread_is_within_the_vfs_below() {
    let place = Beneath::new();
    let path = place.path("app.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE still(x); INSERT INTO still SELECT zeroblob(400000)").unwrap();
    connection.close().unwrap();
    let (inside, times) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (seen, counted) = (Arc::clone(&inside), Arc::clone(&times));
    // What a child finds, where the application forks within SQLite, with the connection's lock held.
    let (forks_within, found_within) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(u32::MAX)));
    let (is_asked, found) = (Arc::clone(&forks_within), Arc::clone(&found_within));
    vfs::set_hook(Some(Arc::new(move |call| {
        if std::thread::current().name() != Some("replicated") && is_asked.swap(false, Ordering::SeqCst) {
            let child = vfs::fork(|| u8::from(seen.load(Ordering::SeqCst)));
            return found.store(u32::from(child), Ordering::SeqCst);
        }
        let reads = matches!(call.method, Method::Open | Method::Read | Method::Close) && call.kind == Kind::Main;
        // The hook is the VFS below: it stays there for a while.
        if reads && call.path == Some(&*path) && !call.is_done && std::thread::current().name() == Some("replicated") {
            counted.fetch_add(1, Ordering::SeqCst);
            seen.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(10));
            seen.store(false, Ordering::SeqCst);
        }
    })));
    let connection = open(&place, &[]);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let mut forks = 0;
    while forks < 20 {
        assert!(std::time::Instant::now() < deadline, "our thread was there {} times only", times.load(Ordering::SeqCst));
        if !inside.load(Ordering::SeqCst) {
            std::thread::yield_now();
            continue;
        }
        forks += 1;
        let found_inside = if forks % 2 == 0 {
            forks_within.store(true, Ordering::SeqCst);
            connection.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
            found_within.swap(u32::MAX, Ordering::SeqCst)
        } else {
            u32::from(vfs::fork(|| u8::from(inside.load(Ordering::SeqCst))))
        };
        assert_eq!(found_inside, 0, "fork {forks}: the child has our thread's locks");
    }
    vfs::set_hook(None);
    sync(&connection);
}
