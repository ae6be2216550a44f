//! The rows of the table that tests of several writers use, `t(n INTEGER PRIMARY KEY, who TEXT, v BLOB)`: who has written them, and what.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::bucket::Bucket;
use crate::host::{Db, Host};
use crate::sqlite::integrity_check;

const ROWS: &str = "SELECT who || ' ' || hex(v) FROM t ORDER BY n";

/// Adds one.
#[must_use]
pub fn insert(who: &str) -> String {
    format!("INSERT INTO t(who, v) VALUES ('{who}', randomblob(500))")
}

/// Those of a file.
pub fn rows(path: &Path) -> Vec<String> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut statement = db.prepare(ROWS).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Those that a bucket restores to.
pub fn restored(bucket: &Bucket) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restored.db");
    bucket.restore(&path);
    integrity_check(&path).unwrap();
    rows(&path)
}

/// Those of a database that a host has open.
pub fn rows_of(host: &mut Host, db: Db) -> Vec<String> {
    host.query(db, ROWS).into_iter().map(|row| row[0].as_str().unwrap().to_owned()).collect()
}
