//! What other processes overwrite of the moment that is being sent: they set it aside for the process that sends.
//!
//! ```text
//!   aside        pages of the database file as they were: a record for each, with its number before it
//!   aside-wal    the WAL up to the moment, where another process has begun a new generation
//! ```
//!
//! A record counts once the page that the processes share says how many there are, which it does before SQLite overwrites the database's. So whoever
//! sends reads a page and looks for a record then: where there is none, what it has read was still as it was. One process at a time writes to a
//! database file, under SQLite's locks, and adds records.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::batch::WalFile;
use super::local::{OwnerMode, Paths};
use super::preserve::MOST_TRUNCATED_PAGES;
use super::shared::Shared;
use crate::types::{PageNo, PageSize};
use crate::wal::end_offset;

/// A page's number, before its content.
const NUMBER_BYTES: u64 = 8;

fn file(paths: &Paths) -> std::path::PathBuf {
    paths.directory.join("aside")
}

fn wal_copy(paths: &Paths) -> std::path::PathBuf {
    paths.directory.join("aside-wal")
}

fn create(path: &std::path::Path, owner: &OwnerMode) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    owner.apply(&file)?;
    Ok(file)
}

const fn record_bytes(page_size: PageSize) -> u64 {
    NUMBER_BYTES + page_size.get() as u64
}

/// Removes what a process has left that died while it sent.
pub(crate) fn remove(paths: &Paths) {
    for path in [file(paths), wal_copy(paths)] {
        // It is not there, mostly.
        let _ = std::fs::remove_file(path);
    }
}

/// What others have set aside, for the process that sends.
#[derive(Debug)]
pub(crate) struct SetAside {
    shared: Arc<Shared>,
    paths: Paths,
    page_size: PageSize,
    file: File,
    seen: u64,
    wal: Option<WalFile>,
}

impl SetAside {
    /// Begins for a moment with so many pages, of which the WAL's frames up to one are needed. Before anybody is told that it is being sent.
    pub(crate) fn begin(shared: &Arc<Shared>, paths: &Paths, page_size: PageSize, commit_pages: u32, wal_frames: u32) -> io::Result<Self> {
        remove(paths);
        let file = create(&file(paths), &OwnerMode::of(&paths.database)?)?;
        let page = &**shared;
        page.aside_records.store(0, Ordering::Relaxed);
        page.aside_cursor.store(0, Ordering::Relaxed);
        page.aside_wal_frames.store(u64::from(wal_frames), Ordering::Relaxed);
        page.aside_wal_copied.store(0, Ordering::Relaxed);
        page.aside_pages.store(u64::from(commit_pages) | u64::from(page_size.get()) << 32, Ordering::Relaxed);
        page.aside_snapshot.fetch_add(1, Ordering::Release);
        Ok(Self { shared: Arc::clone(shared), paths: paths.clone(), page_size, file, seen: 0, wal: None })
    }

    /// Pages up to this one are not needed any more.
    pub(crate) fn advance(&self, cursor: u32) {
        self.shared.aside_cursor.store(u64::from(cursor), Ordering::Relaxed);
    }

    /// Calls `found` with each record that is new, by its page and where its content lies.
    pub(crate) fn look(&mut self, mut found: impl FnMut(u32, u64)) -> io::Result<()> {
        let records = self.shared.aside_records.load(Ordering::Acquire);
        while self.seen < records {
            let at = self.seen * record_bytes(self.page_size);
            let mut number = [0; NUMBER_BYTES as usize];
            self.file.read_exact_at(&mut number, at)?;
            self.seen += 1;
            found(u32::try_from(u64::from_le_bytes(number)).unwrap_or(0), at + NUMBER_BYTES);
        }
        Ok(())
    }

    pub(crate) fn read(&self, page: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(page, at)
    }

    /// The WAL of the moment, where another process has begun a new generation since.
    pub(crate) fn wal(&mut self) -> io::Result<Option<&WalFile>> {
        if !self.has_wal() {
            return Ok(None);
        }
        if self.wal.is_none() {
            self.wal = Some(WalFile::open(&wal_copy(&self.paths)).map_err(io::Error::other)?);
        }
        Ok(self.wal.as_ref())
    }

    pub(crate) fn has_wal(&self) -> bool {
        self.shared.aside_wal_copied.load(Ordering::Acquire) != 0
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        remove(&self.paths);
    }
}

/// What this process sets aside for another.
#[derive(Debug, Default)]
pub(crate) struct SetsAside(Option<Writer>);

#[derive(Debug)]
struct Writer {
    snapshot: u64,
    file: File,
    done: HashSet<u32>,
}

impl SetsAside {
    fn writer(&mut self, shared: &Shared, paths: &Paths) -> io::Result<&mut Writer> {
        let snapshot = shared.aside_snapshot.load(Ordering::Acquire);
        if self.0.as_ref().is_none_or(|writer| writer.snapshot != snapshot) {
            let file = File::options().write(true).open(file(paths))?;
            self.0 = Some(Writer { snapshot, file, done: HashSet::new() });
        }
        self.0.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A part of the database file is about to be overwritten; `read` reads it as it is.
    pub(crate) fn before_write(
        &mut self,
        shared: &Shared,
        paths: &Paths,
        offset: u64,
        bytes: u64,
        read: &mut dyn FnMut(&mut [u8], u64) -> bool,
    ) -> io::Result<()> {
        let writer = self.writer(shared, paths)?;
        let (commit_pages, page_size) = moment(shared)?;
        let size = u64::from(page_size.get());
        let first =
            u32::try_from(offset / size).unwrap_or(u32::MAX).max(u32::try_from(shared.aside_cursor.load(Ordering::Relaxed)).unwrap_or(0));
        let end = u32::try_from(offset.saturating_add(bytes).div_ceil(size)).unwrap_or(u32::MAX).min(commit_pages);
        let mut page = vec![0; page_size.bytes()];
        for number in (first..end).map(|index| index + 1) {
            let Some(pgno) = PageNo::new(number) else { continue };
            if !writer.done.insert(number) {
                continue;
            }
            if !read(&mut page, page_size.offset_of(pgno)) {
                return Err(io::Error::other(format!("page {number} cannot be read")));
            }
            let record = shared.aside_records.load(Ordering::Relaxed);
            let at = record * record_bytes(page_size);
            writer.file.write_all_at(&u64::from(number).to_le_bytes(), at)?;
            writer.file.write_all_at(&page, at + NUMBER_BYTES)?;
            shared.aside_records.store(record + 1, Ordering::Release);
        }
        Ok(())
    }

    /// The database file is about to become shorter.
    pub(crate) fn before_truncate(
        &mut self,
        shared: &Shared,
        paths: &Paths,
        new_bytes: u64,
        read: &mut dyn FnMut(&mut [u8], u64) -> bool,
    ) -> io::Result<()> {
        let (commit_pages, page_size) = moment(shared)?;
        let size = u64::from(page_size.get());
        let cursor = shared.aside_cursor.load(Ordering::Relaxed);
        let (from, end) = ((new_bytes / size).max(cursor), u64::from(commit_pages));
        if end.saturating_sub(from) > u64::from(MOST_TRUNCATED_PAGES) {
            return Err(io::Error::other("the database is about to shrink by much"));
        }
        self.before_write(shared, paths, from * size, end.saturating_sub(from) * size, read)
    }
}

fn moment(shared: &Shared) -> io::Result<(u32, PageSize)> {
    let word = shared.aside_pages.load(Ordering::Acquire);
    let page_size = u32::try_from(word >> 32).ok().and_then(PageSize::new).ok_or(io::ErrorKind::InvalidData)?;
    Ok((word as u32, page_size))
}

/// How many bytes of the WAL would have to be set aside before it is destroyed.
pub(crate) fn wal_bytes_needed(shared: &Shared) -> u64 {
    let frames = u32::try_from(shared.aside_wal_frames.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
    let is_copied = shared.aside_wal_copied.load(Ordering::Relaxed) != 0;
    moment(shared).ok().filter(|_| frames > 0 && !is_copied).map_or(0, |(_, page_size)| end_offset(page_size, frames))
}

/// The WAL is about to be destroyed, with the tail's lock held.
pub(crate) fn before_restart(shared: &Shared, paths: &Paths) -> io::Result<()> {
    let bytes = wal_bytes_needed(shared);
    if bytes == 0 {
        return Ok(());
    }
    let mut copy = create(&wal_copy(paths), &OwnerMode::of(&paths.database)?)?;
    let copied = io::copy(&mut File::open(&paths.wal)?.take(bytes), &mut copy)?;
    if copied < bytes {
        return Err(io::Error::other("the WAL is shorter than it should be"));
    }
    shared.aside_wal_copied.store(1, Ordering::Release);
    Ok(())
}
