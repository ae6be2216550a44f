//! The copy: a database file that others read while batches are written to it, under SQLite's own locks and with SQLite's own journal.
//!
//! ```text
//!   SHARED, RESERVED -> is it as we left it? -> note: what it becomes -> journal: what changes, fsync -> EXCLUSIVE -> pages, size, fsync
//!     -> the journal is deleted: committed -> unlocked -> note: what it is
//! ```
//!
//! Readers see the state before or the one after: SQLite's do not read while EXCLUSIVE is held, and roll back a journal that somebody left before they read.
//! The header says that the copy has no WAL, whatever the primary has, and its change counter moves with every batch, so that open connections forget what they
//! had read.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::journal::{self, RolledBack};
use super::locks::{self, Locks};
use super::note::{Looks, Note};
use crate::fault::{fault_io, fault_point};
use crate::types::{PageNo, PageSize};

const HEADER_BYTES: usize = 100;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Of a database without a WAL.
const NO_WAL: [u8; 2] = [1, 1];

/// So long a batch waits for a moment without readers, letting new ones in.
const GENTLE: Duration = Duration::from_millis(250);
/// So long it then waits for those that read, and lets none in.
const FIRM: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(2);
/// So long another follower may take to end.
const LEAVING: Duration = Duration::from_secs(3);

/// Why a copy could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// A file operation failed.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It is not what was left there.
    #[error("{path} cannot be gone on with: {why}")]
    Foreign {
        /// The copy.
        path: PathBuf,
        /// What about it.
        why: String,
    },
    /// Readers leave no moment to write, or somebody writes.
    #[error("{path} is locked: a reader has had a transaction open all the time, or somebody writes to it")]
    Busy {
        /// The copy.
        path: PathBuf,
    },
    /// Another process follows to the same file.
    #[error("another process follows to {path} already")]
    InUse {
        /// The copy.
        path: PathBuf,
    },
}

/// A copy that is open; no other follower has it.
#[derive(Debug)]
pub(super) struct Copy {
    file: File,
    path: PathBuf,
    journal: PathBuf,
}

/// Turns what was restored into a copy.
pub(super) fn prepare(draft: &Path) -> Result<Looks, String> {
    let told = |error: io::Error| format!("{}: {error}", draft.display());
    let file = OpenOptions::new().read(true).write(true).open(draft).map_err(told)?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).map_err(told)?;
    let size_bytes = file.metadata().map_err(told)?.len();
    let page_size = page_size(&header).ok_or("it is not a plain SQLite database (encrypted?), which is what can be followed")?;
    let size_pages = u32::try_from(size_bytes / u64::from(page_size.get())).map_err(|_| "it is too large")?;
    let looks = Looks { page_size, size_pages, counter: next_counter(word(&header, 24)) };
    as_copy(&mut header, &looks);
    file.write_all_at(&header, 0).map_err(told)?;
    Ok(looks)
}

impl Copy {
    /// Opens it and keeps other followers out. One that has ended may be in the way for a moment: a child that its process has forked holds its lock until
    /// it runs another program.
    pub(super) async fn open(path: &Path) -> Result<Self, CopyError> {
        let failed = |operation| move |source| CopyError::Io { operation, path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("open"))?;
        let begun = Instant::now();
        while !locks::only_follower(&file).map_err(failed("lock"))? {
            if begun.elapsed() >= LEAVING {
                return Err(CopyError::InUse { path: path.to_owned() });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(Self { file, path: path.to_owned(), journal: beside(path, "-journal") })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Finds out what it is by what was noted, after it was rolled back where a batch was under way. The note then says what it is.
    pub(super) async fn recover(&self, mut note: Note) -> Result<Note, CopyError> {
        let _locks = self.reserve().await?;
        let is = self.looks().map_err(|source| self.failed("read", source))?;
        match note.next {
            Some((txid, next)) if is == Some(next) => (note.txid, note.looks, note.object) = (txid, next, None),
            // What it looks like does not tell that its pages are what they were; the time of its last change does, where none was under way.
            None if is == Some(note.looks) => {
                let mtime_ns = self.mtime_ns()?;
                if note.mtime_ns.is_some_and(|noted| noted != mtime_ns) {
                    return Err(self.foreign("somebody has written to it: it was changed after the last batch"));
                }
            }
            _ => self.check(is.as_ref(), &note)?,
        }
        // One that has nothing to roll back.
        journal::end(&self.journal).map_err(|source| self.failed("delete the journal of", source))?;
        self.settle(&mut note)?;
        Ok(note)
    }

    /// Applies a batch, or leaves the copy as it was. The note then says what it is.
    pub(super) async fn apply(&self, note: &mut Note, batch: &Batch) -> Result<(), CopyError> {
        let locks = self.reserve().await?;
        let is = self.looks().map_err(|source| self.failed("read", source))?;
        self.check(is.as_ref(), note)?;
        let had = note.looks;
        let looks = Looks { page_size: batch.page_size(), size_pages: batch.size_pages(), counter: next_counter(had.counter) };
        let noted = Note { next: Some((batch.txid(), looks)), ..note.clone() };
        noted.save(&self.path).map_err(|source| self.failed("write the note beside", source))?;
        fault_point!("follow.noted");
        let mut guard = Unneeded(Some(&self.journal));
        let is_changed = |page: &PageNo| {
            let is_rewritten = had.page_size != looks.page_size || page.get() == 1 || page.get() > looks.size_pages;
            *page != had.page_size.lock_page() && (is_rewritten || batch.writes(*page))
        };
        let changed = (1..=had.size_pages).filter_map(PageNo::new).filter(is_changed);
        let written = journal::write(&self.journal, &self.file, had.page_size, had.size_pages, changed);
        written.map_err(|source| self.failed("write the journal of", source))?;
        fault_point!("follow.journal-written");
        self.exclude(&locks).await?;
        fault_point!("follow.locked");
        // From here on only the journal tells what the copy was.
        guard.0 = None;
        if let Err(source) = self.write(batch, &looks) {
            self.roll_back()?;
            return Err(self.failed("write to", source));
        }
        journal::end(&self.journal).map_err(|source| self.failed("delete the journal of", source))?;
        fault_point!("follow.committed");
        drop(locks);
        (note.txid, note.looks, note.object) = (batch.txid(), looks, batch.object);
        self.settle(note)
    }

    /// Notes what it is.
    pub(super) fn settle(&self, note: &mut Note) -> Result<(), CopyError> {
        (note.mtime_ns, note.next) = (Some(self.mtime_ns()?), None);
        note.save(&self.path).map_err(|source| self.failed("write the note beside", source))
    }

    fn write(&self, batch: &Batch, looks: &Looks) -> io::Result<()> {
        let mut has_first = false;
        let first = |data: &mut Vec<u8>| {
            as_copy(data, looks);
            self.file.write_all_at(data, 0)
        };
        batch.each(&mut |page, data| {
            fault_io!("follow.page")?;
            if page.get() > 1 {
                return self.file.write_all_at(data, looks.page_size.offset_of(page));
            }
            has_first = true;
            first(&mut data.to_vec())
        })?;
        if !has_first {
            let mut data = vec![0; looks.page_size.bytes()];
            self.file.read_exact_at(&mut data, 0)?;
            first(&mut data)?;
        }
        self.file.set_len(looks.size_bytes())?;
        fault_io!("follow.written")?;
        self.file.sync_all()?;
        fault_point!("follow.synced");
        Ok(())
    }

    /// The lock of who is about to write, once nobody else has it and nothing is left to be rolled back.
    async fn reserve(&self) -> Result<Locks<'_>, CopyError> {
        let locked = |source| self.failed("lock", source);
        let begun = Instant::now();
        loop {
            if let Some(locks) = Locks::shared(&self.file).map_err(locked)? {
                let left = journal::is_there(&self.journal).map_err(|source| self.failed("read the journal of", source))?;
                // Who rolls back must not have it reserved: readers would take the journal for that of somebody at work, and read on.
                if left && locks.exclude(false).map_err(locked)? {
                    self.roll_back()?;
                } else if !left && locks.reserve().map_err(locked)? {
                    return Ok(locks);
                }
            }
            if begun.elapsed() > GENTLE + FIRM {
                return Err(CopyError::Busy { path: self.path.clone() });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn exclude(&self, locks: &Locks<'_>) -> Result<(), CopyError> {
        let begun = Instant::now();
        loop {
            if locks.exclude(begun.elapsed() > GENTLE).map_err(|source| self.failed("lock", source))? {
                return Ok(());
            }
            if begun.elapsed() > GENTLE + FIRM {
                return Err(CopyError::Busy { path: self.path.clone() });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// With the file for itself.
    fn roll_back(&self) -> Result<(), CopyError> {
        match journal::roll_back(&self.journal, &self.file).map_err(|source| self.failed("roll back", source))? {
            RolledBack::Nothing | RolledBack::Batch => Ok(()),
            RolledBack::Foreign => {
                Err(self.foreign("another program left a journal beside it; open it with SQLite once, which rolls that back"))
            }
        }
    }

    /// What it looks like; `None` where it is no copy of ours.
    fn looks(&self) -> io::Result<Option<Looks>> {
        let mut header = [0; HEADER_BYTES];
        let metadata = self.file.metadata()?;
        let size_bytes = metadata.len();
        // What was deleted or replaced under its name nobody reads any more.
        let is_named = fs::metadata(&self.path).is_ok_and(|named| (named.dev(), named.ino()) == (metadata.dev(), metadata.ino()));
        if !is_named || size_bytes < HEADER_BYTES as u64 || beside(&self.path, "-wal").symlink_metadata().is_ok() {
            return Ok(None);
        }
        self.file.read_exact_at(&mut header, 0)?;
        let Some(page_size) = page_size(&header) else { return Ok(None) };
        let looks = Looks { page_size, size_pages: word(&header, 28), counter: word(&header, 24) };
        let is_ours = looks.size_bytes() == size_bytes && word(&header, 92) == looks.counter && header.get(18..20) == Some(&NO_WAL);
        Ok(is_ours.then_some(looks))
    }

    fn check(&self, is: Option<&Looks>, note: &Note) -> Result<(), CopyError> {
        match is {
            Some(is) if *is == note.looks => Ok(()),
            Some(is) if is.counter.wrapping_sub(note.looks.counter) < LEAST_STEP => Err(self.foreign("somebody has written to it")),
            Some(_) => Err(self.foreign("it is not the file that was left there")),
            None => Err(self.foreign("somebody has written to it, has put it into WAL mode, or has put another file in its place")),
        }
    }

    fn mtime_ns(&self) -> Result<i64, CopyError> {
        let metadata = self.file.metadata().map_err(|source| self.failed("look at", source))?;
        Ok(metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()))
    }

    fn foreign(&self, why: &str) -> CopyError {
        CopyError::Foreign { path: self.path.clone(), why: why.to_owned() }
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> CopyError {
        CopyError::Io { operation, path: self.path.clone(), source }
    }
}

/// A journal that has nothing to undo goes when its batch does not come to pass.
struct Unneeded<'a>(Option<&'a Path>);

impl Drop for Unneeded<'_> {
    fn drop(&mut self) {
        // One that stays undoes nothing.
        let _ = self.0.map(fs::remove_file);
    }
}

/// No other writer counts so far in one transaction, so that what we wrote is told from what others did.
const LEAST_STEP: u32 = 1 << 12;

fn next_counter(counter: u32) -> u32 {
    counter.wrapping_add(fastrand::u32(LEAST_STEP..1 << 20))
}

fn page_size(header: &[u8]) -> Option<PageSize> {
    match header.get(16..18)? {
        _ if !header.starts_with(MAGIC) => None,
        [0, 1] => Some(PageSize::MAX),
        bytes => PageSize::new(u32::from(u16::from_be_bytes(bytes.try_into().ok()?))),
    }
}

fn word(header: &[u8], at: usize) -> u32 {
    header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// The header of a database as it stands in the copy: no WAL, our change counter, and the size that is then believed.
fn as_copy(header: &mut [u8], looks: &Looks) {
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(to) = header.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    put(18, &NO_WAL);
    put(24, &looks.counter.to_be_bytes());
    put(28, &looks.size_pages.to_be_bytes());
    put(92, &looks.counter.to_be_bytes());
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
