//! SQLite's own check of a restored database.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use rusqlite::{Connection, InterruptHandle, OpenFlags};

/// How much SQLite checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IntegrityCheck {
    /// Nothing: every checksum of the bucket's files is verified anyway
    None,
    /// PRAGMA quick_check: all but indexes against tables
    Quick,
    /// PRAGMA integrity_check
    Full,
}

impl IntegrityCheck {
    /// The name of the flag's value.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }

    /// Checks a database that nobody else has open.
    pub(crate) fn run(self, path: &Path) -> Result<(), String> {
        let pragma = match self {
            Self::None => return Ok(()),
            Self::Quick => "PRAGMA quick_check(10)",
            Self::Full => "PRAGMA integrity_check(10)",
        };
        let findings = findings(path, pragma).map_err(|error| format!("{pragma} failed: {error}"))?;
        if findings == ["ok"] { Ok(()) } else { Err(format!("{pragma} says: {}", findings.join("; "))) }
    }
}

fn findings(path: &Path, pragma: &str) -> rusqlite::Result<Vec<String>> {
    ask(&opened(path, true)?, pragma)
}

const QUICK: &str = "PRAGMA quick_check(10)";
/// For a lock that somebody has for a moment.
const BUSY: Duration = Duration::from_secs(5);

/// SQLite's quick check of a database in WAL mode that is in use: its reader keeps nobody from writing. `began` gets what ends it.
pub(crate) fn live_findings(path: &Path, began: &dyn Fn(InterruptHandle)) -> rusqlite::Result<Vec<String>> {
    let connection = opened(path, false)?;
    connection.busy_timeout(BUSY)?;
    connection.execute_batch("PRAGMA query_only=1")?;
    began(connection.get_interrupt_handle());
    ask(&connection, QUICK)
}

/// The same of a file that nobody writes to, which the caller sees to.
pub(crate) fn still_findings(path: &Path, began: &dyn Fn(InterruptHandle)) -> rusqlite::Result<Vec<String>> {
    let connection = opened(path, true)?;
    began(connection.get_interrupt_handle());
    ask(&connection, QUICK)
}

fn opened(path: &Path, is_still: bool) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri(path) + if is_still { "?immutable=1" } else { "?mode=ro" }, flags)
}

fn ask(connection: &Connection, pragma: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(pragma)?;
    let findings = statement.query_map([], |row| row.get(0))?;
    findings.collect()
}

/// With `immutable=1` SQLite makes neither a WAL nor shared memory for a WAL-mode database, and locks nothing.
fn uri(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            _ => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_database_is_told_from_a_good_one_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("odd name?#%.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a, b); CREATE INDEX i ON t(a);").unwrap();
        connection
            .execute_batch(
                "WITH n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500) INSERT INTO t SELECT i, hex(randomblob(50)) FROM n;",
            )
            .unwrap();
        drop(connection);
        for check in [IntegrityCheck::None, IntegrityCheck::Quick, IntegrityCheck::Full] {
            assert_eq!(check.run(&path), Ok(()));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3 * 4096..4 * 4096].fill(0x5a);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(IntegrityCheck::None.run(&path), Ok(()));
        assert!(IntegrityCheck::Quick.run(&path).is_err());
        assert!(IntegrityCheck::Full.run(&path).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
