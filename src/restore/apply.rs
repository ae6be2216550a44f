//! Makes a database file out of LTX files, newest first: a page is written once, from the newest file that has it.
//!
//! This is the part that goes in order: which file a page is taken from, and whether every file is what it should be. Decoding is done elsewhere.
//! A file that is read whole is decoded whole and its checksum verified, also where newer files have all its pages.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::decode::{Done, Job};
use super::error::{Damage, RestoreError};
use super::fetch::CHUNK_BYTES;
use super::output::Draft;
use crate::ltx::{Ending, FrameDigest, HEADER_BYTES, Header, IndexEntry, Ledger, LtxError, PageIndex, Splitter, Sum};
use crate::store::{Listed, LtxName};
use crate::types::{PageNo, PageSize};

/// No page takes less of an LTX file: a page header, a size and the shortest LZ4 block of a page of zeroes.
pub(super) const SMALLEST_PAGE_BYTES: u64 = 16;

/// What compresses more than so many times is a sparse file rather than a database full of data.
const MOST_COMPRESSION: u64 = 16;

/// Frames that nobody needs are read with those around them where that costs less than a request of their own.
const SKIP_BYTES: u64 = 64 << 10;

/// Why a file could not be applied.
#[derive(Debug)]
pub(super) enum ApplyError {
    Damage(Damage),
    Write(io::Error),
    Output(RestoreError),
}

/// How an assembly ended.
#[derive(Debug)]
pub(super) enum Finished {
    /// Every page is there.
    Whole(Header),
    /// A page is missing.
    Missing { page: PageNo, newest: LtxName, header: Header },
    /// There were no files.
    Nothing,
}

/// What one request asks for.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Which file of the plan, counted from the newest.
    pub(super) place: usize,
    pub(super) file: Listed,
    pub(super) range: Range<u64>,
    /// Where only a part of the file is read: the file's header, and what its index says of the frames in the range.
    pub(super) part: Option<Box<(Header, FrameDigest)>>,
}

/// Frames of a file that are to be read with one request.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    pub(super) frames: FrameDigest,
}

/// A database file in the making.
#[derive(Debug)]
pub(super) struct Assembly<'a> {
    draft: &'a Draft,
    plan_bytes: u64,
    newest: Option<(LtxName, Header)>,
    supplied: Vec<u64>,
    /// The file whose bytes arrive, and how many runs of it there were.
    open: Option<(Splitter, u64)>,
    /// Files that are not verified yet.
    pending: BTreeMap<usize, Pending>,
}

#[derive(Debug)]
struct Pending {
    ledger: Ledger,
    /// What stands behind its last frame, and how many runs there are.
    ending: Option<(Ending, u64)>,
}

impl<'a> Assembly<'a> {
    /// Begins with an empty output. `plan_bytes` is the size of all files that will come.
    pub(super) fn new(draft: &'a Draft, plan_bytes: u64) -> Self {
        Self { draft, plan_bytes, newest: None, supplied: Vec::new(), open: None, pending: BTreeMap::new() }
    }

    /// Takes the next bytes, in the order of the plan; the answer is what is to be decoded.
    pub(super) fn take(&mut self, piece: &Piece, body: &Bytes) -> Result<Option<Job>, ApplyError> {
        let Some(part) = &piece.part else { return self.take_whole(piece, body) };
        let (header, expected) = &**part;
        let mut splitter = Splitter::within(*header, piece.range.start);
        let run = self.claim(&mut splitter, body)?;
        splitter.finish_part(expected).map_err(|error| ApplyError::Damage(Damage::File(error)))?;
        Ok(run.map(|run| Job { place: piece.place, number: 0, run, page_size: header.page_size, held_bytes: body.len() as u64 }))
    }

    fn take_whole(&mut self, piece: &Piece, body: &Bytes) -> Result<Option<Job>, ApplyError> {
        let is_first = piece.range.start == 0;
        let (mut splitter, mut runs) = match self.open.take() {
            Some(open) if !is_first => open,
            _ => {
                let splitter = Splitter::begin(body)?;
                self.begin(&piece.file.name, splitter.header())?;
                let ledger = Ledger::new(splitter.header(), body);
                self.pending.insert(piece.place, Pending { ledger, ending: None });
                (splitter, 0)
            }
        };
        let page_size = splitter.header().page_size;
        let after_header = if is_first { body.slice(HEADER_BYTES.min(body.len())..) } else { body.clone() };
        let run = self.claim(&mut splitter, &after_header)?;
        let job = run.map(|run| Job { place: piece.place, number: runs, run, page_size, held_bytes: body.len() as u64 });
        runs += u64::from(job.is_some());
        if piece.range.end == piece.file.size_bytes {
            let ending = splitter.finish()?;
            if let Some(pending) = self.pending.get_mut(&piece.place) {
                pending.ending = Some((ending, runs));
            }
            self.verify(piece.place)?;
        } else {
            self.open = Some((splitter, runs));
        }
        Ok(job)
    }

    fn claim(&mut self, splitter: &mut Splitter, body: &Bytes) -> Result<Option<crate::ltx::Run>, ApplyError> {
        let supplied = &mut self.supplied;
        let newest = self.newest.map(|(_, header)| header);
        let mut want = |page| newest.is_some_and(|newest| is_inside(&newest, page)) && mark(supplied, page);
        Ok(splitter.push(body, &mut want)?)
    }

    /// Takes what a run has given.
    pub(super) fn add(&mut self, done: Done) -> Result<(), ApplyError> {
        let sum: Sum = done.outcome?;
        if let Some(pending) = self.pending.get_mut(&done.place) {
            pending.ledger.add(done.number, sum);
        }
        self.verify(done.place)
    }

    /// Verifies a file once all of it has been decoded.
    fn verify(&mut self, place: usize) -> Result<(), ApplyError> {
        let is_complete = |pending: &Pending| pending.ending.as_ref().is_some_and(|(_, runs)| pending.ledger.added() == *runs);
        if !self.pending.get(&place).is_some_and(is_complete) {
            return Ok(());
        }
        match self.pending.remove(&place) {
            Some(Pending { ledger, ending: Some((ending, _)) }) => Ok(ledger.finish(&ending)?),
            _ => Ok(()),
        }
    }

    /// Checks a file's header against its name and the other files. The first one tells what the database is like.
    pub(super) fn begin(&mut self, name: &LtxName, header: &Header) -> Result<(), ApplyError> {
        if (header.min_txid, header.max_txid) != (name.min_txid, name.max_txid) {
            return Err(ApplyError::Damage(Damage::Name { min_txid: header.min_txid, max_txid: header.max_txid }));
        }
        match self.newest {
            Some((newest, first)) if first.page_size != header.page_size => {
                let (expected, found) = (first.page_size, header.page_size);
                Err(ApplyError::Damage(Damage::PageSize { found, expected, newest }))
            }
            Some(_) => Ok(()),
            None => self.shape(name, header),
        }
    }

    /// What of a file is still needed, by its page index: neighbouring frames together. `None` where the index is of no use, or
    /// almost all of the file is needed.
    pub(super) fn parts(&self, file: &Listed, index: &[u8], at: &Range<u64>) -> Option<Vec<Part>> {
        let (_, newest) = self.newest?;
        let mut parts: Vec<Part> = Vec::new();
        let mut current: Option<Part> = None;
        // The current part with the frames behind it that nobody needs.
        let mut with_gap: Option<Part> = None;
        let mut frames_end = HEADER_BYTES as u64;
        for entry in PageIndex::entries(index) {
            let entry: IndexEntry = entry.ok()?;
            let end = entry.offset + entry.size;
            frames_end = end;
            let extended = |part: Part| {
                let mut frames = part.frames;
                frames.add(&entry);
                Part { range: part.range.start..end, frames }
            };
            let fits = |part: &Part| end - part.range.start <= CHUNK_BYTES;
            let is_needed = is_inside(&newest, entry.pgno) && !is_marked(&self.supplied, entry.pgno);
            if !is_needed {
                let is_near = |part: &Part| current.as_ref().is_some_and(|current| end - current.range.end <= SKIP_BYTES) && fits(part);
                with_gap = with_gap.filter(is_near).map(extended);
                continue;
            }
            let joined = match with_gap.take().filter(fits) {
                Some(part) => extended(part),
                None => {
                    parts.extend(current.take());
                    extended(Part { range: entry.offset..end, frames: FrameDigest::new() })
                }
            };
            with_gap = Some(joined.clone());
            current = Some(joined);
        }
        parts.extend(current);
        // As `PageIndex::parse_at`: behind the frames stands the terminator, a page header of zeroes.
        let is_right = frames_end + 6 == at.start;
        let needed: u64 = parts.iter().map(|part| part.range.end - part.range.start).sum();
        (is_right && needed < file.size_bytes / 4 * 3).then_some(parts)
    }

    /// What is left to say when everything has been decoded: the newest file's header, or the first page that no file had.
    pub(super) fn finish(self) -> Finished {
        let Some((newest, header)) = self.newest else { return Finished::Nothing };
        // SQLite's lock page is in no file and stays zeroes.
        let must_be_there = |page: &PageNo| is_inside(&header, *page) && !is_marked(&self.supplied, *page);
        let missing = (1..=header.commit_pages).filter_map(PageNo::new).find(must_be_there);
        // Every file that was begun has come to its end, or there would have been an error before.
        missing.map_or(Finished::Whole(header), |page| Finished::Missing { page, newest, header })
    }

    /// The place of a file that was begun and not verified; there is none once everything has been decoded.
    pub(super) fn first_unverified(&self) -> Option<usize> {
        self.pending.keys().next().copied()
    }

    fn shape(&mut self, name: &LtxName, header: &Header) -> Result<(), ApplyError> {
        let commit_pages = header.commit_pages;
        if commit_pages == 0 {
            return Err(ApplyError::Damage(Damage::NoPages));
        }
        // Before any memory or disk is taken for them. The lock page is in no file.
        if u64::from(commit_pages) > self.plan_bytes / SMALLEST_PAGE_BYTES + 1 {
            return Err(ApplyError::Damage(Damage::Size { commit_pages, plan_bytes: self.plan_bytes }));
        }
        self.supplied = vec![0; usize::try_from(commit_pages / 64 + 1).unwrap_or(usize::MAX)];
        self.newest = Some((*name, *header));
        let size_bytes = u64::from(commit_pages) * u64::from(header.page_size.get());
        // Pages compress to a half or a third; where it is far more, most of them are zeroes, which stay holes.
        self.draft.resize(size_bytes, size_bytes / MOST_COMPRESSION <= self.plan_bytes).map_err(ApplyError::Output)
    }
}

impl From<LtxError> for ApplyError {
    fn from(error: LtxError) -> Self {
        match error {
            // Decoding does no I/O of its own: this is the output's.
            LtxError::Io(error) => Self::Write(error),
            error => Self::Damage(Damage::File(error)),
        }
    }
}

/// Whether a page is one of the database: a later truncation may have cut it off, and SQLite's lock page is in no file.
fn is_inside(newest: &Header, page: PageNo) -> bool {
    let lock_page: PageNo = PageSize::lock_page(newest.page_size);
    page.get() <= newest.commit_pages && page != lock_page
}

/// Whether the page was not marked before.
fn mark(pages: &mut [u64], page: PageNo) -> bool {
    let Some(word) = pages.get_mut(page.get() as usize / 64) else { return false };
    let bit = 1 << (page.get() % 64);
    let is_new = *word & bit == 0;
    *word |= bit;
    is_new
}

fn is_marked(pages: &[u64], page: PageNo) -> bool {
    pages.get(page.get() as usize / 64).is_some_and(|word| word & 1 << (page.get() % 64) != 0)
}
