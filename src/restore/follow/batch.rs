//! Files on their way into a copy: fetched to the disk and verified before anything of the copy is touched.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use futures_util::StreamExt;

use super::note::{Looks, Object};
use crate::ltx::{Decoder, Header, LtxError};
use crate::restore::apply::SMALLEST_PAGE_BYTES;
use crate::restore::error::{Damage, RestoreError};
use crate::restore::fetch;
use crate::restore::output::Draft;
use crate::store::{Level, Listed, LtxName, Store};
use crate::types::{PageNo, PageSize, TimestampMs, Txid};

/// What is read of the disk at once.
const READ_BYTES: usize = 256 << 10;

/// Why a batch could not be had.
#[derive(Debug)]
pub(super) enum BatchError {
    /// Its pages have another size than those of the copy: the database must be taken from a snapshot on.
    PageSize,
    Restore(RestoreError),
}

/// Files that together lead from one committed state to another.
#[derive(Debug)]
pub(super) struct Batch {
    draft: Draft,
    /// Oldest first, and where each is in the draft.
    files: Vec<(Listed, Range<u64>)>,
    newest: Header,
    pages: Pages,
    /// Of the last file, where that is of level 0.
    pub(super) object: Option<Object>,
    pub(super) read_bytes: u64,
}

impl Batch {
    /// Reads the files and verifies them. With `upon` they are to be applied to a database that looks so; without they must hold every page.
    pub(super) async fn fetch(
        store: &dyn Store,
        files: &[Listed],
        upon: Option<&Looks>,
        copy: &Path,
        (from, parallelism): (Txid, usize),
    ) -> Result<Self, BatchError> {
        let draft = Draft::create(copy, true).and_then(|draft| draft.hide().map(|()| draft)).map_err(BatchError::Restore)?;
        let bytes = files.iter().map(|file| file.size_bytes).sum();
        let mut reading = Reading { store, upon, from, bytes, found: Vec::new(), last: None };
        let mut pages = Pages::default();
        let mut chunks = std::pin::pin!(fetch::chunks(store, files.iter().copied(), parallelism));
        let mut decoder = Decoder::new();
        let (mut offset, mut start) = (0, 0);
        let mut last = None;
        while let Some(chunk) = chunks.next().await {
            let (chunk, body) = chunk.map_err(|error| BatchError::Restore(error.into()))?;
            draft.file().write_all_at(&body, offset).map_err(|source| BatchError::Restore(draft.failed("write", source)))?;
            offset += body.len() as u64;
            let mut numbers = Vec::new();
            let pushed = decoder.push(&body, &mut |page, _| {
                numbers.push(page);
                Ok(())
            });
            pushed.map_err(|error| reading.damaged(&chunk.file, Damage::File(error)))?;
            // The header is in the first chunk: no LTX file that is listed as usable is shorter.
            if chunk.is_first() {
                let header = decoder.header().copied();
                reading.begin(&chunk.file, header)?;
            }
            let within = reading.found.last().map_or(0, |(_, header)| header.commit_pages);
            numbers.into_iter().filter(|page| page.get() <= within).for_each(|page| pages.mark(page));
            if chunk.is_last() {
                let summary = std::mem::take(&mut decoder).finish();
                let summary = summary.map_err(|error| reading.damaged(&chunk.file, Damage::File(error)))?;
                let is_object = chunk.file.name.level == Level::ZERO && chunk.file.name.min_txid == chunk.file.name.max_txid;
                last = is_object.then_some(Object { size_bytes: chunk.file.size_bytes, checksum: summary.file_checksum });
                if let Some((range, _)) = reading.found.last_mut() {
                    *range = start..offset;
                }
                start = offset;
            }
        }
        let Some(newest) = reading.found.last().map(|(_, header)| *header) else { return Err(reading.nothing()) };
        reading.check_growth(&newest, &pages)?;
        let files = files.iter().copied().zip(reading.found.iter().map(|(range, _)| range.clone())).collect();
        Ok(Self { draft, files, newest, pages, object: last, read_bytes: offset })
    }

    pub(super) const fn txid(&self) -> Txid {
        self.newest.max_txid
    }

    pub(super) const fn timestamp(&self) -> TimestampMs {
        self.newest.timestamp
    }

    pub(super) const fn page_size(&self) -> PageSize {
        self.newest.page_size
    }

    pub(super) const fn size_pages(&self) -> u32 {
        self.newest.commit_pages
    }

    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    /// How many pages it writes.
    pub(super) fn count(&self) -> u32 {
        (1..=self.size_pages()).filter_map(PageNo::new).filter(|page| self.writes(*page)).map(|_| 1).sum()
    }

    /// Whether it writes a page of the database.
    pub(super) fn writes(&self, page: PageNo) -> bool {
        page.get() <= self.size_pages() && page != self.page_size().lock_page() && self.pages.has(page)
    }

    /// Hands out every page that it writes, once, from the newest file that has it.
    pub(super) fn each(&self, on_page: &mut dyn FnMut(PageNo, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut done = Pages::default();
        let mut buffer = vec![0; READ_BYTES];
        for (file, range) in self.files.iter().rev() {
            let mut decoder = Decoder::new();
            let mut at = range.start;
            while at < range.end {
                let length = usize::try_from(range.end - at).unwrap_or(READ_BYTES).min(READ_BYTES);
                let Some(part) = buffer.get_mut(..length) else { break };
                self.draft.file().read_exact_at(part, at)?;
                at += length as u64;
                let pushed = decoder.push(part, &mut |page, data| {
                    if self.writes(page) && !done.has(page) {
                        done.mark(page);
                        on_page(page, data).map_err(LtxError::Io)?;
                    }
                    Ok(())
                });
                pushed.map_err(|error| into_io(error, file))?;
            }
            decoder.finish().map_err(|error| into_io(error, file))?;
        }
        Ok(())
    }
}

/// It was verified when it was fetched: what is wrong now is this machine's disk.
fn into_io(error: LtxError, file: &Listed) -> io::Error {
    match error {
        LtxError::Io(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, format!("{} is not on the disk as it was read: {error}", file.name)),
    }
}

struct Reading<'a> {
    store: &'a dyn Store,
    upon: Option<&'a Looks>,
    from: Txid,
    bytes: u64,
    /// The files that were begun.
    found: Vec<(Range<u64>, Header)>,
    last: Option<LtxName>,
}

impl Reading<'_> {
    fn damaged(&self, file: &Listed, damage: Damage) -> BatchError {
        let url = self.store.url().to_owned();
        BatchError::Restore(RestoreError::Damaged { url, object: file.name, damage, last_good: Some(self.from) })
    }

    fn nothing(&self) -> BatchError {
        BatchError::Restore(RestoreError::Runtime(io::Error::other("a batch of no files")))
    }

    fn begin(&mut self, file: &Listed, header: Option<Header>) -> Result<(), BatchError> {
        let Some(header) = header else { return Err(self.nothing()) };
        if (header.min_txid, header.max_txid) != (file.name.min_txid, file.name.max_txid) {
            return Err(self.damaged(file, Damage::Name { min_txid: header.min_txid, max_txid: header.max_txid }));
        }
        let expected = self.found.first().map(|(_, first)| first.page_size).or(self.upon.map(|upon| upon.page_size));
        if expected.is_some_and(|expected| expected != header.page_size) {
            return Err(BatchError::PageSize);
        }
        let commit_pages = header.commit_pages;
        if commit_pages == 0 {
            return Err(self.damaged(file, Damage::NoPages));
        }
        let most = self.bytes / SMALLEST_PAGE_BYTES + 1 + self.upon.map_or(0, |upon| u64::from(upon.size_pages));
        if u64::from(commit_pages) > most {
            return Err(self.damaged(file, Damage::Size { commit_pages, plan_bytes: self.bytes }));
        }
        self.found.push((0..0, header));
        self.last = Some(file.name);
        Ok(())
    }

    /// Every page that the copy does not have must be there.
    fn check_growth(&self, newest: &Header, pages: &Pages) -> Result<(), BatchError> {
        let smallest = self.found.iter().map(|(_, header)| header.commit_pages).chain(self.upon.map(|upon| upon.size_pages)).min();
        // A snapshot holds all there is, or is none.
        let is_whole = self.upon.is_none() || self.found.iter().any(|(_, header)| header.is_snapshot());
        let had = if is_whole { 0 } else { smallest.unwrap_or_default() };
        let lock_page = newest.page_size.lock_page();
        let missing = (had + 1..=newest.commit_pages).filter_map(PageNo::new).find(|page| *page != lock_page && !pages.has(*page));
        let (Some(page), Some(last)) = (missing, self.last) else { return Ok(()) };
        let (commit_pages, files, txid) = (newest.commit_pages, self.found.len(), newest.max_txid);
        let url = self.store.url().to_owned();
        Err(BatchError::Restore(RestoreError::MissingPage { url, page, commit_pages, files, txid, newest: last }))
    }
}

/// A set of pages.
#[derive(Debug, Default)]
struct Pages(Vec<u64>);

impl Pages {
    fn mark(&mut self, page: PageNo) {
        let at = page.get() as usize / 64;
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        if let Some(word) = self.0.get_mut(at) {
            *word |= 1 << (page.get() % 64);
        }
    }

    fn has(&self, page: PageNo) -> bool {
        self.0.get(page.get() as usize / 64).is_some_and(|word| word & 1 << (page.get() % 64) != 0)
    }
}
