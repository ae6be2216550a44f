//! Reading the state of one moment from a database that goes on changing, without a lock that the application could meet.
//!
//! A snapshot takes each page from the newest frame up to its moment, or from the database file where the WAL has none. Checkpoints write
//! newer pages into that file, and a restart of the WAL destroys the frames: before either happens the pages that the snapshot still needs
//! are set aside in an unlinked file. So neither waits for the snapshot, nor does the snapshot hold a read mark.
//!
//! ```text
//!   page      1 ........ cursor ........................ commit_pages
//!             sent       needed: set aside before it is overwritten
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::aside::SetAside;
use super::batch::{FramePages, WalFile};
use crate::fault::{fault_io, fault_point};
use crate::types::{PageNo, PageSize};

/// More pages than this are not set aside for a truncation; the snapshot starts over.
pub(super) const MOST_TRUNCATED_PAGES: u32 = 4096;

/// The database file, read through SQLite's own VFS so that no lock is lost.
pub(crate) trait DatabaseFile: Send + Sync {
    /// Reads exactly that much. What the file is too short for is filled with zeros, and an error of the kind `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Has the disk keep what was written.
    fn sync(&self) -> io::Result<()>;
}

/// Where a page lies that was set aside.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In the unlinked file.
    Here(u64),
    /// In the others'.
    There(u64),
}

/// Pages of one moment that are still needed.
#[derive(Debug)]
pub(crate) struct Preserver {
    pub(crate) page_size: PageSize,
    pub(crate) commit_pages: u32,
    frames: FramePages,
    /// How long the database file was. What is neither there nor in the WAL, after a loss of power, SQLite reads as zeros.
    database_bytes: u64,
    /// Pages up to this one have been read.
    cursor: u32,
    aside: HashMap<u32, Place>,
    /// What other processes have set aside.
    others: Option<SetAside>,
    file: File,
    file_bytes: u64,
    /// The WAL's frames are set aside as well: it may have been restarted.
    wal_gone: bool,
    /// Something was lost that is needed: start over.
    broken: Option<String>,
}

impl Preserver {
    /// Begins for the state that `frames` and the database file make together. The file for pages set aside is made in `directory`.
    pub(crate) fn new(frames: FramePages, commit_pages: u32, database_bytes: u64, directory: &Path) -> io::Result<Self> {
        let path = directory.join("snapshot.tmp");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self {
            page_size: frames.page_size,
            commit_pages,
            frames,
            database_bytes,
            cursor: 0,
            aside: HashMap::new(),
            others: None,
            file,
            file_bytes: 0,
            wal_gone: false,
            broken: None,
        })
    }

    /// Other processes set pages aside as well.
    pub(crate) fn with_others(self, others: SetAside) -> Self {
        Self { others: Some(others), ..self }
    }

    /// How many frames of the WAL it began with.
    pub(crate) fn wal_frames(&self) -> u32 {
        if self.frames.after(0).next().is_some() { self.frames.end.frame } else { 0 }
    }

    /// Takes note of what other processes have set aside.
    fn look_at_others(&mut self) -> io::Result<()> {
        let Some(mut others) = self.others.take() else { return Ok(()) };
        let looked = others.look(|page, at| {
            // The first counts: what comes later was new by then.
            if self.needed(page) && self.frames.frame_of(page).is_none() {
                self.aside.insert(page, Place::There(at));
            }
        });
        self.others = Some(others);
        looked
    }

    /// Why the snapshot must start over, if it must.
    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    pub(crate) fn give_up(&mut self, reason: String) {
        self.broken.get_or_insert(reason);
    }

    fn needed(&self, page: u32) -> bool {
        page > self.cursor && page <= self.commit_pages && !self.aside.contains_key(&page)
    }

    /// Whether the database file ended before a page.
    fn is_beyond(&self, page: PageNo) -> bool {
        self.page_size.offset_of(page) >= self.database_bytes
    }

    /// Whether the database file ended within a page.
    fn is_last_in_file(&self, page: PageNo) -> bool {
        (self.page_size.offset_of(page)..self.page_size.offset_of(page) + u64::from(self.page_size.get())).contains(&self.database_bytes)
    }

    /// The first and the last of the pages that are neither in the database file nor in the WAL, or not whole.
    pub(crate) fn missing(&self) -> Option<(u32, u32)> {
        let whole = u32::try_from(self.database_bytes / u64::from(self.page_size.get())).unwrap_or(u32::MAX);
        let lock_page = self.page_size.lock_page().get();
        let mut missing =
            (whole.saturating_add(1)..=self.commit_pages).filter(|page| *page != lock_page && self.frames.frame_of(*page).is_none());
        let first = missing.next()?;
        Some((first, missing.next_back().unwrap_or(first)))
    }

    /// A page of the database file is about to be overwritten; `read` reads it as it is.
    pub(crate) fn before_write(&mut self, offset: u64, bytes: usize, read: &mut dyn FnMut(&mut [u8], u64) -> bool) {
        fault_point!("preserve.write");
        // What another process has overwritten before is set aside already.
        if let Err(error) = self.look_at_others() {
            return self.give_up(format!("reading what was set aside: {error}"));
        }
        let size = u64::from(self.page_size.get());
        let first = offset / size;
        let last = offset.saturating_add(bytes as u64).saturating_sub(1) / size;
        for index in first..=last {
            let Some(page) = u32::try_from(index + 1).ok().and_then(PageNo::new) else { return };
            if self.needed(page.get()) && !self.is_beyond(page) && self.frames.frame_of(page.get()).is_none() {
                let mut data = vec![0; self.page_size.bytes()];
                if read(&mut data, self.page_size.offset_of(page)) {
                    self.set_aside(page.get(), &data);
                } else {
                    self.give_up(format!("page {page} could not be read before a checkpoint overwrote it"));
                }
            }
        }
    }

    /// The database file is about to become shorter.
    pub(crate) fn before_truncate(&mut self, new_bytes: u64, read: &mut dyn FnMut(&mut [u8], u64) -> bool) {
        let keep = u32::try_from(new_bytes / u64::from(self.page_size.get())).unwrap_or(u32::MAX);
        let from = keep.max(self.cursor);
        let gone = self.commit_pages.saturating_sub(from);
        if gone > MOST_TRUNCATED_PAGES {
            self.give_up(format!("the database is about to shrink by {gone} pages"));
            return;
        }
        for index in from..self.commit_pages {
            self.before_write(u64::from(index) * u64::from(self.page_size.get()), 1, read);
        }
    }

    /// How many frames would have to be set aside before the WAL is destroyed.
    pub(crate) fn frames_needed(&self) -> u32 {
        if self.wal_gone || self.has_wal_copy() { 0 } else { u32::try_from(self.frames.after(self.cursor).count()).unwrap_or(u32::MAX) }
    }

    /// The frames of the WAL are about to be destroyed.
    pub(crate) fn before_restart(&mut self, wal: &WalFile) {
        // Another process has copied it, when it was the one of the moment.
        if self.has_wal_copy() || std::mem::replace(&mut self.wal_gone, true) {
            return;
        }
        fault_point!("preserve.restart");
        let mut data = vec![0; self.page_size.bytes()];
        let needed: Vec<_> = self.frames.after(self.cursor).collect();
        for (page, frame) in needed {
            match wal.read_page(self.page_size, frame, &mut data) {
                Ok(()) => self.set_aside(page, &data),
                Err(error) => return self.give_up(error.to_string()),
            }
        }
    }

    fn set_aside(&mut self, page: u32, data: &[u8]) {
        if let Err(error) = fault_io!("preserve.aside").and_then(|()| self.file.write_all_at(data, self.file_bytes)) {
            return self.give_up(format!("setting a page aside: {error}"));
        }
        self.aside.insert(page, Place::Here(self.file_bytes));
        self.file_bytes += data.len() as u64;
    }

    /// Reads the next page of the moment; `None` at the end. The lock page is passed over.
    pub(crate) fn next(&mut self, database: &dyn DatabaseFile, wal: Option<&WalFile>, page: &mut [u8]) -> io::Result<Option<PageNo>> {
        let mut number = self.cursor + 1;
        if number == self.page_size.lock_page().get() {
            number += 1;
        }
        let Some(pgno) = PageNo::new(number).filter(|_| number <= self.commit_pages) else { return Ok(None) };
        self.look_at_others()?;
        if self.read_aside(number, page)? {
        } else if let Some(frame) = self.frames.frame_of(number) {
            self.read_frame(frame, wal, page)?;
        } else if self.is_beyond(pgno) {
            page.fill(0);
        } else {
            let read = database.read_exact_at(page, self.page_size.offset_of(pgno));
            // It may have been overwritten meanwhile, and then it was set aside before.
            self.look_at_others()?;
            if !self.read_aside(number, page)? {
                match read {
                    // The VFS fills up with zeros.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.is_last_in_file(pgno) => {}
                    read => {
                        let told = |error| io::Error::other(format!("page {pgno} of {} cannot be read: {error}", self.commit_pages));
                        read.map_err(told)?;
                    }
                }
            }
        }
        self.cursor = number;
        if let Some(others) = &self.others {
            others.advance(number);
        }
        Ok(Some(pgno))
    }

    fn read_aside(&self, number: u32, page: &mut [u8]) -> io::Result<bool> {
        match (self.aside.get(&number), &self.others) {
            (None, _) => return Ok(false),
            (Some(Place::Here(offset)), _) => self.file.read_exact_at(page, *offset)?,
            (Some(Place::There(offset)), Some(others)) => others.read(page, *offset)?,
            (Some(Place::There(_)), None) => return Err(io::ErrorKind::NotFound.into()),
        }
        Ok(true)
    }

    fn read_frame(&mut self, frame: u32, wal: Option<&WalFile>, page: &mut [u8]) -> io::Result<()> {
        let page_size = self.page_size;
        let read = wal.map(|wal| wal.read_page(page_size, frame, page).map_err(io::Error::other));
        // Copied before it was destroyed: then what was read may be of the generation that followed.
        if let Some(copy) = self.others.as_mut().map(SetAside::wal).transpose()?.flatten() {
            return copy.read_page(page_size, frame, page).map_err(io::Error::other);
        }
        read.unwrap_or_else(|| Err(io::Error::other("the WAL is gone")))
    }

    fn has_wal_copy(&self) -> bool {
        self.others.as_ref().is_some_and(SetAside::has_wal)
    }

    /// Whether pages were read from the WAL to the end.
    pub(crate) fn reads_frames(&self) -> bool {
        !self.wal_gone && !self.has_wal_copy() && self.frames.after(0).next().is_some()
    }

    /// Whether frames of the WAL are still read.
    pub(crate) const fn reads_wal(&self) -> bool {
        !self.wal_gone
    }
}
