//! The database file: whether it is one, how it is kept, and what SQLite says of it. Nothing is locked that a writer could meet.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use replicated::types::PageSize;
use rusqlite::InterruptHandle;

use super::bounded::blocking;
use super::report::{Report, brief};
use crate::file_head::FileHead;
use crate::integrity;
use crate::text;

/// Whoever writes all the time is given up on after so many looks.
const TRIES: u32 = 3;

/// What the file says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Database {
    pub(super) page_size: PageSize,
    pub(super) is_wal: bool,
    pub(super) bytes: u64,
}

/// `app.db` and `-wal`.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().as_bytes().to_vec();
    name.extend_from_slice(suffix.as_bytes());
    std::ffi::OsStr::from_bytes(&name).into()
}

fn bytes_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Looks at the file; `None` where it is no database.
pub(super) fn file(path: &Path, limit: Duration, report: &mut Report) -> Option<Database> {
    let at = path.to_owned();
    let read = blocking(limit, move || {
        let metadata = std::fs::metadata(&at)?;
        let mut head = [0; 100];
        let file = File::open(&at)?;
        let length = if metadata.is_file() { file.read_at(&mut head, 0)? } else { 0 };
        let told = if length == head.len() { Some(FileHead::read(&file)?) } else { None };
        Ok((metadata, told, head))
    });
    let name = path.display();
    let (metadata, head, first): (Metadata, _, _) = match read {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => {
            not_read(path, &error, report);
            return None;
        }
        Err(late) => {
            report.unknown("database", format!("{name}: {late}"), "Its file system does not answer: look at `mount`");
            return None;
        }
    };
    if !metadata.is_file() {
        report.problem("database", format!("{name} is no file"), "There is nothing to replicate", "Name the database file");
        return None;
    }
    if metadata.len() == 0 {
        report.warning(
            "database",
            format!("{name} is empty"),
            "SQLite takes it for a database that nothing was written to yet",
            "Look whether this is the path that the application uses",
        );
        return None;
    }
    let Some((page_size, head)) = head.and_then(|head: FileHead| Some((head.page_size?, head))) else {
        let (means, next) = if is_random(&first) && metadata.len().is_multiple_of(512) {
            (
                "It looks encrypted (SQLCipher, SEE): what the extension sees is what it would send, and it needs the header in the clear",
                "Encrypted databases are not supported",
            )
        } else {
            (
                "SQLite says \"file is not a database\" to it, and nothing of it is sent",
                "Look whether this is the right file; restore it if it was one",
            )
        };
        report.problem("database", format!("{name} does not begin as a SQLite database does"), means, next);
        return None;
    };
    let mode = if head.is_wal { "journal mode WAL" } else { "a rollback journal" };
    report.ok("database", format!("{}, pages of {} bytes, {mode}", text::size(metadata.len()), page_size.get()));
    if !head.is_wal {
        report
            .ok("journal", "rollback-journal modes are replicated too; in WAL mode COMMIT costs less, and readers do not wait for writers");
    }
    Some(Database { page_size, is_wal: head.is_wal, bytes: metadata.len() })
}

fn not_read(path: &Path, error: &io::Error, report: &mut Report) {
    let name = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => report.problem(
            "database",
            format!("{name} is not there"),
            "An open makes an empty database, or with restore=if-missing restores it",
            "Correct the path, or restore it: replicated restore URL -o …",
        ),
        io::ErrorKind::PermissionDenied => {
            report.unknown("database", format!("{name}: {error}"), "Run this as the user of the application, or as root")
        }
        _ => report.unknown("database", format!("{name}: {error}"), "Look at the disk and at the system's log (dmesg)"),
    }
}

/// Whether bytes look like noise: no text, no zeros.
fn is_random(bytes: &[u8]) -> bool {
    let distinct = bytes.iter().collect::<std::collections::HashSet<_>>().len();
    distinct * 2 > bytes.len() && bytes.iter().filter(|byte| byte.is_ascii_graphic() || **byte == 0).count() * 4 < bytes.len() * 3
}

/// By which it shows that somebody has written.
fn stamp(path: &Path) -> io::Result<[i64; 5]> {
    let now = std::fs::metadata(path)?;
    Ok([now.len().cast_signed(), now.mtime(), now.mtime_nsec(), now.ctime(), now.ctime_nsec()])
}

/// Why nothing can be said.
enum Unread {
    Changing,
    Log,
    Failed(String),
}

/// Has SQLite look at all of it, for as long as the limit allows.
pub(super) fn integrity(path: &Path, limit: Duration, report: &mut Report) {
    let interrupt: Arc<Mutex<Option<InterruptHandle>>> = Arc::default();
    let (at, handle) = (path.to_owned(), Arc::clone(&interrupt));
    let began = std::time::Instant::now();
    let checked = blocking(limit, move || check(&at, &handle));
    match checked {
        Ok(Ok(findings)) if findings == ["ok"] => {
            report.ok("integrity", format!("SQLite's quick_check finds nothing ({})", brief(began.elapsed())));
        }
        Ok(Ok(findings)) => report.problem(
            "integrity",
            findings.join("; "),
            "The database is damaged, and so is what was sent since it is",
            "Find the last good state (`replicated verify URL --points 10` restores some and has SQLite check them) and restore it; look at the disk",
        ),
        Ok(Err(Unread::Changing)) => report.unknown("integrity", "it is written to all the time", "`replicated verify URL` checks what is restored from the bucket"),
        Ok(Err(Unread::Log)) => report.unknown(
            "integrity",
            "a WAL lies beside it that no process has open",
            "Start the application, or open it once with any program as the application's user: SQLite then puts the two together",
        ),
        Ok(Err(Unread::Failed(why))) if why.contains("not a database") || why.contains("malformed") => {
            report.problem("integrity", why, "SQLite cannot read it", "Restore it; docs/troubleshooting.md, \"The database file is damaged\"");
        }
        Ok(Err(Unread::Failed(why))) => report.unknown("integrity", why, "Run this as the user of the application"),
        Err(late) => {
            if let Some(handle) = interrupt.lock().unwrap_or_else(PoisonError::into_inner).take() {
                handle.interrupt();
            }
            report.unknown("integrity", format!("not done within {}", brief(late.0)), "--check-timeout gives it longer; `replicated verify` checks what is restored");
        }
    }
}

fn check(path: &Path, interrupt: &Mutex<Option<InterruptHandle>>) -> Result<Vec<String>, Unread> {
    let tell = |handle| *interrupt.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
    if with_suffix(path, "-shm").exists() {
        // A reader in WAL mode keeps nobody from writing.
        return integrity::live_findings(path, &tell).map_err(|error| Unread::Failed(error.to_string()));
    }
    if bytes_of(&with_suffix(path, "-wal")) > 0 {
        return Err(Unread::Log);
    }
    // In the other modes a reader would: the file is read without a lock, and what is found counts if nobody has written meanwhile.
    let failed = |error: io::Error| Unread::Failed(error.to_string());
    for _ in 0..TRIES {
        let before = stamp(path).map_err(failed)?;
        let has_journal = || bytes_of(&with_suffix(path, "-journal")) > 0;
        let is_quiet = !has_journal();
        let findings = integrity::still_findings(path, &tell);
        if is_quiet && !has_journal() && before == stamp(path).map_err(failed)? {
            return findings.map_err(|error| Unread::Failed(error.to_string()));
        }
    }
    Err(Unread::Changing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_told_from_text() {
        let noise: Vec<u8> = (0..100_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        assert!(is_random(&noise));
        assert!(!is_random(b"PK\x03\x04 and so on, mostly text that anybody can read, with words of letters, and then some more of them."));
        assert!(!is_random(&[0; 100]));
    }
}
