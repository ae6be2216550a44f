//! Comparing databases.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

/// Compares two database files page by page.
///
/// # Errors
///
/// Names the first page that differs, or the sizes.
pub fn page_compare(a: &Path, b: &Path) -> Result<(), String> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let (left, right) = (read(a)?, read(b)?);
    // A page size of 1 stands for 65536.
    let size = match left.get(16..18) {
        Some([0, 1]) => 65536,
        Some(&[high, low]) if left.starts_with(b"SQLite format 3\0") => usize::from(u16::from_be_bytes([high, low])),
        // Empty or encrypted.
        _ => 4096,
    };
    let pages = left.chunks(size.max(512)).zip(right.chunks(size.max(512))).enumerate();
    for (index, (l, r)) in pages {
        if let Some(offset) = l.iter().zip(r).position(|(l, r)| l != r) {
            return Err(format!("page {} differs at byte {offset} of {size}: {} and {}", index + 1, a.display(), b.display()));
        }
    }
    if left.len() != right.len() {
        return Err(format!("{} has {} bytes, {} has {}", a.display(), left.len(), b.display(), right.len()));
    }
    Ok(())
}

/// Compares what two database files hold, page by page. What means nothing is left out: the content of free pages, which SQLite does not put back
/// when a transaction is rolled back, and pages beyond the end that the header tells, which it cuts off after a commit, unless it dies before. A last page that
/// is not whole counts as filled up with zeros, as SQLite reads it.
///
/// # Errors
///
/// Names the first page that differs, or the sizes.
pub fn same_but_for_free_pages(a: &Path, b: &Path) -> Result<(), String> {
    let Err(difference) = page_compare(a, b) else { return Ok(()) };
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let (left, right) = (whole_pages(read(a)?), whole_pages(read(b)?));
    let (left, right) = (used(&left), used(&right));
    if left.len() != right.len() {
        return Err(difference);
    }
    let (size, free) = free_pages(left);
    let same = left.chunks(size).zip(right.chunks(size)).enumerate().all(|(index, (l, r))| l == r || free.contains(&(index + 1)));
    if same { Ok(()) } else { Err(difference) }
}

fn number(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, |bytes| u32::from_be_bytes(bytes) as usize)
}

fn page_size(database: &[u8]) -> usize {
    match number(database, 16) >> 16 {
        1 => 65536,
        other => other.max(512),
    }
}

fn whole_pages(mut database: Vec<u8>) -> Vec<u8> {
    database.resize(database.len().next_multiple_of(page_size(&database)), 0);
    database
}

/// The pages that the header tells of, where it can be believed.
fn used(database: &[u8]) -> &[u8] {
    let (pages, changes, valid_for) = (number(database, 28), number(database, 24), number(database, 92));
    let there = database.len() / page_size(database);
    let pages = if pages > 0 && changes == valid_for { pages.min(there) } else { there };
    &database[..pages * page_size(database)]
}

/// The page size, and the pages that the list of free pages names: its leaves, of which nothing is used.
fn free_pages(database: &[u8]) -> (usize, std::collections::BTreeSet<usize>) {
    let size = page_size(database);
    let number = |at| number(database, at);
    let (mut free, mut trunk, mut seen) = (std::collections::BTreeSet::new(), number(32), 0);
    // A damaged list may go round in circles.
    while trunk > 0 && seen < database.len() / size {
        let at = (trunk - 1) * size;
        free.extend((0..number(at + 4).min(size / 4)).map(|leaf| number(at + 8 + 4 * leaf)));
        trunk = number(at);
        seen += 1;
    }
    (size, free)
}

/// Runs `PRAGMA integrity_check` without writing to the database.
///
/// # Errors
///
/// What SQLite found, or why it could not look.
pub fn integrity_check(path: &Path) -> Result<(), String> {
    let told = |e: rusqlite::Error| format!("{}: {e}", path.display());
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(told)?;
    let mut statement = connection.prepare("PRAGMA integrity_check").map_err(told)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).map_err(told)?;
    let findings = rows.collect::<Result<Vec<_>, _>>().map_err(told)?;
    if findings == ["ok"] { Ok(()) } else { Err(format!("{}: {}", path.display(), findings.join("; "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(dir: &Path, name: &str) -> std::path::PathBuf {
        let path = dir.join(name);
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA page_size=1024; CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(5000));").unwrap();
        path
    }

    #[test]
    fn differences_are_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (database(dir.path(), "a"), database(dir.path(), "b"));
        assert_eq!(page_compare(&a, &b), Ok(()));
        assert_eq!(integrity_check(&a), Ok(()));
        let mut bytes = std::fs::read(&b).unwrap();
        bytes[2 * 1024 + 7] ^= 1;
        std::fs::write(&b, &bytes).unwrap();
        assert!(page_compare(&a, &b).unwrap_err().contains("page 3 differs at byte 7 of 1024"));
        bytes[2 * 1024 + 7] ^= 1;
        bytes.truncate(3 * 1024);
        std::fs::write(&b, &bytes).unwrap();
        assert!(page_compare(&a, &b).unwrap_err().contains("has 3072"));
        assert!(integrity_check(&b).is_err());
    }
}
