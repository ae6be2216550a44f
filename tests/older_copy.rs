//! An older copy in the place of a database is not sent over the newer state in the bucket: not at the next open, not at any later one, until
//! the user declares it the truth.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use replicated::restore::{self, RestoreOptions};
use replicated::store::{ReplicaUrl, StoreOptions};
use replicated::types::Txid;
use rusqlite::{Connection, OpenFlags};

fn open(database: &Path, replica: &str) -> Connection {
    replicated::register!(rusqlite::ffi).unwrap();
    let uri = format!("file:{}?vfs=replicated&replica={replica}", database.display());
    let db = Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI).unwrap();
    db.pragma_update(None, "journal_mode", "wal").unwrap();
    db.execute_batch("CREATE TABLE IF NOT EXISTS t(x)").unwrap();
    db
}

fn insert(db: &Connection, x: i64) {
    db.execute("INSERT INTO t VALUES (?1)", [x]).unwrap();
}

fn sync(db: &Connection) -> Result<String, String> {
    db.query_row("PRAGMA replicated_sync", [], |row| row.get(0)).map_err(|error| error.to_string())
}

fn rows(database: &Path) -> Vec<i64> {
    let db = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut statement = db.prepare("SELECT x FROM t ORDER BY x").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn an_older_copy_stays_refused_until_it_is_adopted() {
    let work = tempfile::tempdir().unwrap();
    let (database, older) = (work.path().join("app.db"), work.path().join("older.db"));
    let replica = format!("file://{}", work.path().join("bucket").display());

    let db = open(&database, &replica);
    insert(&db, 1);
    sync(&db).unwrap();
    drop(db);
    std::fs::copy(&database, &older).unwrap();
    let db = open(&database, &replica);
    insert(&db, 2);
    let newest = Txid::from_hex(&sync(&db).unwrap()).unwrap();
    drop(db);

    // Into the same file, so that the control file speaks of it.
    std::fs::copy(&older, &database).unwrap();
    for attempt in 0..3 {
        let db = open(&database, &replica);
        insert(&db, 100 + attempt);
        let error = sync(&db).unwrap_err();
        assert!(error.contains("diverged"), "open {attempt}: {error}");
    }

    let store = replicated::store::open(&ReplicaUrl::parse(&replica).unwrap(), &StoreOptions::default()).unwrap();
    let restored = work.path().join("restored.db");
    restore::restore(&*store, &RestoreOptions::latest(&restored)).unwrap();
    assert_eq!(rows(&restored), [1, 2], "the newer state is untouched");

    replicated::adopt(&database, &replica, newest).unwrap();
    let db = open(&database, &replica);
    assert_eq!(sync(&db).unwrap(), newest.next().to_string());
    drop(db);
    let adopted = work.path().join("adopted.db");
    restore::restore(&*store, &RestoreOptions::latest(&adopted)).unwrap();
    assert_eq!(rows(&adopted), [1, 100, 101, 102]);
}

/// Its change counter comes to that of the newer file, and goes past it, when enough is committed.
#[test]
fn an_older_copy_stays_refused_however_much_is_committed_to_it() {
    let work = tempfile::tempdir().unwrap();
    let (database, older) = (work.path().join("app.db"), work.path().join("older.db"));
    let replica = format!("file://{}", work.path().join("bucket").display());
    let db = open(&database, &replica);
    insert(&db, 1);
    sync(&db).unwrap();
    drop(db);
    std::fs::copy(&database, &older).unwrap();
    for x in 2..5 {
        let db = open(&database, &replica);
        insert(&db, x);
        db.execute_batch(&format!("CREATE TABLE newer_{x}(x)")).unwrap();
        sync(&db).unwrap();
    }
    std::fs::copy(&older, &database).unwrap();
    for attempt in 0..10 {
        let db = open(&database, &replica);
        insert(&db, 100 + attempt);
        // In WAL mode only what changes the first page counts.
        db.execute_batch(&format!("CREATE TABLE made_{attempt}(x)")).unwrap();
        let error = sync(&db).unwrap_err();
        assert!(error.contains("diverged"), "open {attempt}: {error}");
    }
    let store = replicated::store::open(&ReplicaUrl::parse(&replica).unwrap(), &StoreOptions::default()).unwrap();
    let restored = work.path().join("restored.db");
    let report = restore::restore(&*store, &RestoreOptions::latest(&restored)).unwrap();
    assert_eq!(rows(&restored), [1, 2, 3, 4], "the newer state is untouched");
    replicated::adopt(&database, &replica, report.txid).unwrap();
    let db = open(&database, &replica);
    assert_eq!(sync(&db).unwrap(), report.txid.next().to_string());
}

/// The store is away, and the full state is due for it was written to without the extension. Then an older copy comes in its place: what is due is the full
/// state of the file that was there.
fn while_the_full_state_is_due(mode: &str) {
    let work = tempfile::tempdir().unwrap();
    let (database, older) = (work.path().join("app.db"), work.path().join("older.db"));
    let (bucket, away) = (work.path().join("bucket"), work.path().join("away"));
    let replica = format!("file://{}&close_timeout=100ms", bucket.display());
    let made = |db: &Connection, x: i64| {
        db.pragma_update(None, "journal_mode", mode).unwrap();
        insert(db, x);
        // In WAL mode only what changes the first page counts.
        db.execute_batch(&format!("CREATE TABLE made_{x}(x)")).unwrap();
    };
    let db = open(&database, &replica);
    made(&db, 1);
    sync(&db).unwrap();
    drop(db);
    std::fs::copy(&database, &older).unwrap();
    let db = open(&database, &replica);
    made(&db, 2);
    sync(&db).unwrap();
    drop(db);
    std::fs::rename(&bucket, &away).unwrap();
    std::fs::write(&bucket, b"not a folder").unwrap();
    let elsewhere = Connection::open(&database).unwrap();
    made(&elsewhere, 3);
    drop(elsewhere);
    let db = open(&database, &replica);
    made(&db, 4);
    drop(db);

    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(work.path().join(format!("app.db{suffix}")));
    }
    std::fs::copy(&older, &database).unwrap();
    std::fs::remove_file(&bucket).unwrap();
    std::fs::rename(&away, &bucket).unwrap();
    for attempt in 0..10 {
        let db = open(&database, &replica);
        made(&db, 100 + attempt);
        let error = sync(&db).unwrap_err();
        assert!(error.contains("diverged"), "open {attempt}: {error}");
    }
    let url = format!("file://{}", bucket.display());
    let store = replicated::store::open(&ReplicaUrl::parse(&url).unwrap(), &StoreOptions::default()).unwrap();
    let restored = work.path().join("restored.db");
    let report = restore::restore(&*store, &RestoreOptions::latest(&restored)).unwrap();
    assert_eq!(rows(&restored), [1, 2], "the newer state is untouched");

    replicated::adopt(&database, &url, report.txid).unwrap();
    let db = open(&database, &replica);
    assert!(sync(&db).unwrap() > report.txid.to_string());
    drop(db);
    let adopted = work.path().join("adopted.db");
    restore::restore(&*store, &RestoreOptions::latest(&adopted)).unwrap();
    assert_eq!(rows(&adopted), rows(&database));
}

/// The same where nothing has changed the first page, so that the change counter is that of the newer file: the full state is due for somebody has begun the WAL anew.
#[test]
fn an_older_copy_of_the_same_change_counter_while_the_full_state_is_due() {
    let work = tempfile::tempdir().unwrap();
    let (database, older) = (work.path().join("app.db"), work.path().join("older.db"));
    let (bucket, away) = (work.path().join("bucket"), work.path().join("away"));
    let replica = format!("file://{}&close_timeout=100ms", bucket.display());
    let commit = |x: i64| {
        let db = open(&database, &replica);
        insert(&db, x);
        db
    };
    for x in [1, 2] {
        let db = commit(x);
        sync(&db).unwrap();
        drop(db);
        if x == 1 {
            std::fs::copy(&database, &older).unwrap();
        }
    }
    std::fs::rename(&bucket, &away).unwrap();
    std::fs::write(&bucket, b"not a folder").unwrap();
    let db = commit(3);
    // Whatever the WAL held of ours, nothing tells that it was all when somebody else begins it anew.
    let elsewhere = Connection::open(&database).unwrap();
    elsewhere.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    insert(&elsewhere, 4);
    drop(elsewhere);
    insert(&db, 5);
    drop(db);
    drop(commit(6));
    let counter = |path: &Path| std::fs::read(path).unwrap()[24..28].to_vec();
    assert_eq!(counter(&database), counter(&older));

    std::fs::copy(&older, &database).unwrap();
    std::fs::remove_file(&bucket).unwrap();
    std::fs::rename(&away, &bucket).unwrap();
    for attempt in 0..3 {
        let error = sync(&commit(100 + attempt)).unwrap_err();
        assert!(error.contains("diverged"), "open {attempt}: {error}");
    }
    let url = format!("file://{}", bucket.display());
    let store = replicated::store::open(&ReplicaUrl::parse(&url).unwrap(), &StoreOptions::default()).unwrap();
    let restored = work.path().join("restored.db");
    restore::restore(&*store, &RestoreOptions::latest(&restored)).unwrap();
    assert_eq!(rows(&restored), [1, 2], "the newer state is untouched");
}

#[test]
fn an_older_copy_while_the_full_state_is_due() {
    while_the_full_state_is_due("wal");
}

#[test]
fn an_older_copy_while_the_full_state_is_due_outside_the_wal() {
    while_the_full_state_is_due("delete");
}
