//! Makes a database file out of LTX files, newest first: a page is written once, from the newest file that has it.
//!
//! Every file is decoded to its end and its checksum verified, also where newer files have all its pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::error::{Damage, RestoreError};
use super::output::Draft;
use crate::ltx::{Decoder, HEADER_BYTES, Header, LtxError};
use crate::store::LtxName;
use crate::types::{PageNo, PageSize};

/// No page takes less of an LTX file: a page header, a size and the shortest LZ4 block of a page of zeroes.
const SMALLEST_PAGE_BYTES: u64 = 16;

/// Neighbouring pages are written together up to this size.
const WRITE_BYTES: usize = 256 << 10;

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

/// A database file in the making.
#[derive(Debug)]
pub(super) struct Assembly<'a> {
    draft: &'a Draft,
    out: Writer<'a>,
    plan_bytes: u64,
    newest: Option<(LtxName, Header)>,
    supplied: Vec<u64>,
    decoder: Decoder,
}

impl<'a> Assembly<'a> {
    /// Begins with an empty output. `plan_bytes` is the size of all files that will come.
    pub(super) fn new(draft: &'a Draft, plan_bytes: u64) -> Self {
        let out = Writer { file: draft.file(), start: 0, buffer: Vec::with_capacity(WRITE_BYTES) };
        Self { draft, out, plan_bytes, newest: None, supplied: Vec::new(), decoder: Decoder::new() }
    }

    /// Takes the first bytes of a file, its header among them.
    pub(super) fn begin(&mut self, name: &LtxName, bytes: &[u8]) -> Result<(), ApplyError> {
        self.decoder = Decoder::new();
        let (head, rest) = bytes.split_at_checked(HEADER_BYTES).unwrap_or((bytes, &[]));
        self.push(head)?;
        let Some(header) = self.decoder.header().copied() else {
            let error = LtxError::Truncated { offset: bytes.len() as u64, part: "header" };
            return Err(ApplyError::Damage(Damage::File(error)));
        };
        if (header.min_txid, header.max_txid) != (name.min_txid, name.max_txid) {
            return Err(ApplyError::Damage(Damage::Name { min_txid: header.min_txid, max_txid: header.max_txid }));
        }
        match self.newest {
            Some((newest, first)) if first.page_size != header.page_size => {
                let (expected, found) = (first.page_size, header.page_size);
                return Err(ApplyError::Damage(Damage::PageSize { found, expected, newest }));
            }
            Some(_) => {}
            None => self.shape(name, &header)?,
        }
        self.push(rest)
    }

    /// Takes the next bytes of the same file.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        let commit_pages = self.newest.map_or(0, |(_, header)| header.commit_pages);
        let lock_page = self.newest.map(|(_, header)| header.page_size.lock_page());
        let page_size = self.newest.map_or(PageSize::MIN, |(_, header)| header.page_size);
        let (out, supplied) = (&mut self.out, &mut self.supplied);
        let mut on_page = |page: PageNo, data: &[u8]| {
            // A later truncation has cut it off, or SQLite would never read it.
            if page.get() > commit_pages || Some(page) == lock_page || !mark(supplied, page) {
                return Ok(());
            }
            // The output is zeroes already, and a hole takes no disk.
            if data.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            out.write(page_size.offset_of(page), data).map_err(LtxError::Io)
        };
        self.decoder.push(bytes, &mut on_page).map_err(ApplyError::from)
    }

    /// Ends a file and verifies its checksums.
    pub(super) fn end(&mut self) -> Result<(), ApplyError> {
        std::mem::take(&mut self.decoder).finish().map(|_| ()).map_err(ApplyError::from)
    }

    /// Writes what is left; answers with the newest file's name and header, or with the first page that no file had.
    pub(super) fn finish(mut self) -> io::Result<Finished> {
        self.out.flush()?;
        let Some((newest, header)) = self.newest else { return Ok(Finished::Nothing) };
        // SQLite's lock page is in no file and stays zeroes.
        let must_be_there = |page: &PageNo| *page != header.page_size.lock_page() && !is_marked(&self.supplied, *page);
        let missing = (1..=header.commit_pages).filter_map(PageNo::new).find(must_be_there);
        Ok(missing.map_or(Finished::Whole(header), |page| Finished::Missing { page, newest, header }))
    }

    /// The newest file tells what the database is like.
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
        self.draft.resize(u64::from(commit_pages) * u64::from(header.page_size.get())).map_err(ApplyError::Output)
    }
}

impl From<LtxError> for ApplyError {
    fn from(error: LtxError) -> Self {
        match error {
            // The decoder does no I/O of its own: this is the output's.
            LtxError::Io(error) => Self::Write(error),
            error => Self::Damage(Damage::File(error)),
        }
    }
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

/// Gathers neighbouring pages, which in a snapshot all are, into fewer writes.
#[derive(Debug)]
struct Writer<'a> {
    file: &'a File,
    start: u64,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let is_next = offset == self.start + self.buffer.len() as u64;
        if !is_next || self.buffer.len() + data.len() > WRITE_BYTES {
            self.flush()?;
            self.start = offset;
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.file.write_all_at(&self.buffer, self.start)?;
            self.buffer.clear();
        }
        Ok(())
    }
}
