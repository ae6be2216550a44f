//! Who reads an old state of the database, or has a write transaction open, and for how long: seen by SQLite's own locks, without taking any.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use replicated::wal::{INDEX_HEADER_BYTES, IndexHeader};

use super::bounded::blocking;
use super::database::{Database, with_suffix};
use super::report::{Report, brief};
use crate::text;

/// Two looks are so far apart: what is there in both is no passing thing.
const APART: Duration = Duration::from_millis(750);
/// A WAL of more is told of. SQLite's own checkpoints begin at 4 MB.
const LARGE_WAL_BYTES: u64 = 64 << 20;

/// Of the WAL-index: <https://www.sqlite.org/walformat.html>.
const BACKFILLED: u64 = 96;
const READ_MARKS: u64 = 100;
const MARKS: u64 = 5;
const WRITE_LOCK: i64 = 120;
const READ_LOCKS: i64 = 123;
/// Of the database file: <https://www.sqlite.org/lockingv3.html>.
const RESERVED_LOCK: i64 = 0x4000_0001;
const SHARED_LOCKS: i64 = 0x4000_0002;
const SHARED_COUNT: i64 = 510;

/// Somebody who reads a state by a mark in the WAL-index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reader {
    slot: u64,
    process: u32,
    frame: u32,
}

/// What is to be seen at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Moment {
    /// Frames of the log, and those that the database file has too.
    frames: u32,
    backfilled: u32,
    readers: Vec<Reader>,
    writer: Option<u32>,
}

/// The first of two looks.
#[derive(Debug)]
pub(super) struct Watch {
    at: Instant,
    first: io::Result<Moment>,
    limit: Duration,
}

impl Watch {
    pub(super) fn begin(path: &Path, database: &Database, limit: Duration) -> Self {
        Self { at: Instant::now(), first: look(path, database, limit), limit }
    }

    /// The second one, some time later.
    pub(super) fn end(self, path: &Path, database: &Database, report: &mut Report) {
        std::thread::sleep(APART.saturating_sub(self.at.elapsed()));
        let (first, now) = match (self.first, look(path, database, self.limit)) {
            (Ok(first), Ok(now)) => (first, now),
            (Err(error), _) | (_, Err(error)) => {
                return report.unknown("transactions", error.to_string(), "Run this as the user of the application, or as root");
            }
        };
        let since = brief(self.at.elapsed());
        let old: Vec<&Reader> =
            now.readers.iter().filter(|reader| first.readers.contains(reader) && is_old(reader, &now, database)).collect();
        let is_writing = now.writer.is_some() && now.writer == first.writer && now.frames == first.frames;
        for reader in &old {
            let behind =
                if database.is_wal { format!(", {} frames behind", now.frames.saturating_sub(reader.frame)) } else { String::new() };
            report.warning(
                "transactions",
                format!("{} has had a read transaction open for {since} at least{behind}", named(reader.process)),
                if database.is_wal {
                    "While it lasts the WAL cannot be begun anew and grows with every commit; nothing is lost"
                } else {
                    "While it lasts nobody can commit"
                },
                "Look for a query whose result is not read to its end, or a BEGIN without COMMIT; a backup that copies for hours does the same",
            );
        }
        if let Some(process) = now.writer.filter(|_| is_writing) {
            report.warning(
                "transactions",
                format!("{} has had a write transaction open for {since} at least", named(process)),
                "Nobody else can commit meanwhile, and nothing of it is sent before its COMMIT",
                "Look for a transaction that waits for something else: a request, a lock, a user",
            );
        }
        if old.is_empty() && !is_writing {
            report.ok("transactions", "none that lasts");
        }
        if database.is_wal {
            log_size(path, database, &now, !old.is_empty(), report);
        }
    }
}

/// In the log what is behind its end; in the other modes any reader keeps writers waiting.
fn is_old(reader: &Reader, now: &Moment, database: &Database) -> bool {
    !database.is_wal || (reader.frame < now.frames && (reader.slot > 0 || now.backfilled < now.frames))
}

fn log_size(path: &Path, database: &Database, now: &Moment, has_old_reader: bool, report: &mut Report) {
    let bytes = std::fs::metadata(with_suffix(path, "-wal")).map_or(0, |metadata| metadata.len());
    let used = u64::from(now.frames) * (u64::from(database.page_size.get()) + 24);
    let what = format!(
        "{}, of which {} are in use ({} frames, {} not in the database file yet)",
        text::size(bytes),
        text::size(used),
        now.frames,
        now.frames.saturating_sub(now.backfilled)
    );
    if used <= LARGE_WAL_BYTES {
        return report.ok("wal", what);
    }
    let means = if has_old_reader {
        "A reader of an old state keeps it from being begun anew"
    } else {
        "It is begun anew once what is in it is in the bucket or in the spool, and a checkpoint has copied it: an outage, a large transaction or checkpoints that do not come to \
         their end keep it growing"
    };
    report.warning(
        "wal",
        what,
        means,
        "End the reader; look at the state of replication above; then `PRAGMA wal_checkpoint(TRUNCATE)` gives the space back",
    );
}

fn look(path: &Path, database: &Database, limit: Duration) -> io::Result<Moment> {
    let (path, is_wal) = (path.to_owned(), database.is_wal);
    let looked = blocking(limit, move || if is_wal { look_at_index(&path) } else { look_at_file(&path) });
    looked.unwrap_or_else(|late| Err(io::Error::new(io::ErrorKind::TimedOut, late.to_string())))
}

fn look_at_index(path: &Path) -> io::Result<Moment> {
    let index = match File::open(with_suffix(path, "-shm")) {
        // Nobody has it open.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Moment::default()),
        opened => opened?,
    };
    let mut head = [0; INDEX_HEADER_BYTES];
    if index.read_exact_at(&mut head, 0).is_err() {
        return Ok(Moment::default());
    }
    let word = |at: u64| {
        let mut bytes = [0; 4];
        index.read_exact_at(&mut bytes, at).map(|()| u32::from_ne_bytes(bytes))
    };
    let mut readers = Vec::new();
    for slot in 0..MARKS {
        if let Some(process) = holder(&index, READ_LOCKS + slot.cast_signed(), 1)? {
            readers.push(Reader { slot, process, frame: word(READ_MARKS + slot * 4)? });
        }
    }
    let frames = IndexHeader::decode(&head).map_or(0, |header| header.max_frame);
    Ok(Moment { frames, backfilled: word(BACKFILLED)?.min(frames), readers, writer: holder(&index, WRITE_LOCK, 1)? })
}

fn look_at_file(path: &Path) -> io::Result<Moment> {
    let file = File::open(path)?;
    let writer = holder(&file, RESERVED_LOCK, 1)?;
    // Who writes has a shared lock as well.
    let reader = holder(&file, SHARED_LOCKS, SHARED_COUNT)?.filter(|process| writer != Some(*process));
    let readers = reader.map(|process| Reader { slot: 0, process, frame: 0 }).into_iter().collect();
    Ok(Moment { writer, readers, ..Moment::default() })
}

/// The process that has something locked; 0 where it is in another container.
fn holder(file: &File, start: i64, length: i64) -> io::Result<Option<u32>> {
    let kind = |kind: i32| libc::c_short::try_from(kind).unwrap_or_default();
    let mut lock = libc::flock { l_type: kind(libc::F_WRLCK), l_whence: kind(libc::SEEK_SET), l_start: start, l_len: length, l_pid: 0 };
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    Ok((lock.l_type != kind(libc::F_UNLCK)).then(|| u32::try_from(lock.l_pid).unwrap_or(0)))
}

/// A process, for people.
pub(super) fn named(process: u32) -> String {
    if process == 0 {
        return "a process of another container".to_owned();
    }
    match std::fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(name) => format!("{} (process {process})", name.trim()),
        Err(_) => format!("process {process}"),
    }
}
