//! Writes one LTX file, page by page.

use std::io::Write;

use super::checksum::FileCrc;
use super::index;
use super::page::{self, FrameWriter, PAGE_HEADER_BYTES, PageForm};
use super::{HEADER_BYTES, Header, LtxError};
use crate::types::{PageNo, Txid};

/// Writes one LTX file. The same header and pages always give the same bytes.
///
/// Each page is written as soon as it is given, in one write. What is kept is the page index: 4 to 12 bytes a page.
///
/// A file that was not finished, or whose writing failed, is not an LTX file: it must not be kept.
pub struct Encoder<W: Write> {
    out: W,
    header: Header,
    frames: FrameWriter,
    crc: FileCrc,
    index: Vec<u8>,
    offset: u64,
    page_count: u32,
    last_page: u32,
    failed: bool,
}

/// A complete LTX file.
#[derive(Debug)]
pub struct Finished<W> {
    /// Where it was written to; not flushed.
    pub out: W,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// How many pages it holds.
    pub page_count: u32,
    /// The file checksum, as its trailer stores it.
    pub file_checksum: u64,
}

impl<W: Write> Encoder<W> {
    /// Begins a file in the form that current Litestream writes, and writes its header.
    ///
    /// # Errors
    /// As [`Encoder::with_form`].
    pub fn new(out: W, header: &Header) -> Result<Self, LtxError> {
        Self::with_form(out, header, PageForm::Block)
    }

    /// Begins a file, and writes its header.
    ///
    /// # Errors
    /// `Header` where it breaks a rule of the format, has no pages, or asks for checksums of the database, which we do not write because
    /// Litestream cannot restore files that have them. `Io`.
    pub fn with_form(mut out: W, header: &Header, form: PageForm) -> Result<Self, LtxError> {
        header.validate()?;
        if !header.no_checksum {
            return Err(LtxError::Header { field: "flags", value: 0, rule: "checksums of the database are not written" });
        }
        if header.commit_pages == 0 {
            return Err(LtxError::Header { field: "database size", value: 0, rule: "a database of no pages cannot be expressed" });
        }
        let bytes = header.encode();
        let mut crc = FileCrc::new();
        crc.update(&bytes);
        out.write_all(&bytes)?;
        Ok(Self {
            out,
            header: *header,
            frames: FrameWriter::new(form, header.page_size),
            crc,
            index: Vec::new(),
            offset: HEADER_BYTES as u64,
            page_count: 0,
            last_page: 0,
            failed: false,
        })
    }

    /// Writes the next page.
    ///
    /// # Errors
    /// `PageLength`, `LockPage`, `BeyondCommit`, `PageOrder` where pages do not ascend or a snapshot's page was left out; the page is
    /// not written then and another may be. After `Io` or `OutOfMemory` the file cannot be finished.
    pub fn page(&mut self, pgno: PageNo, data: &[u8]) -> Result<(), LtxError> {
        if self.failed {
            return Err(LtxError::Failed);
        }
        self.check(pgno, data)?;
        self.failed = true;
        let frame = self.frames.frame(pgno, data)?;
        self.crc.update(frame.get(..page::hashed_bytes(frame)).unwrap_or_default());
        self.crc.update(data);
        self.out.write_all(frame)?;
        self.index.try_reserve(32).map_err(|_| LtxError::OutOfMemory { bytes: self.index.len() })?;
        index::put_entry(&mut self.index, pgno, self.offset, frame.len() as u64);
        self.offset += frame.len() as u64;
        self.page_count += 1;
        self.last_page = pgno.get();
        self.failed = false;
        Ok(())
    }

    /// Writes what follows the last page. The output is not flushed.
    ///
    /// # Errors
    /// `MissingPages` where a snapshot does not reach the end of its database, `Failed` after an error of writing, `Io`.
    pub fn finish(mut self) -> Result<Finished<W>, LtxError> {
        if self.failed {
            return Err(LtxError::Failed);
        }
        let next = self.next_page();
        if self.header.is_snapshot() && next <= self.header.commit_pages.into() {
            return Err(LtxError::MissingPages { page: u32::try_from(next).unwrap_or(u32::MAX), commit_pages: self.header.commit_pages });
        }
        let ending = index::ending(self.index.len() as u64);
        let terminator = [0; PAGE_HEADER_BYTES];
        let post_apply_checksum = [0; 8];
        for part in [terminator.as_slice(), &self.index, &ending, &post_apply_checksum] {
            self.crc.update(part);
            self.out.write_all(part)?;
            self.offset += part.len() as u64;
        }
        let file_checksum = self.crc.value();
        let stored = file_checksum.to_be_bytes();
        self.out.write_all(&stored)?;
        self.offset += stored.len() as u64;
        Ok(Finished { out: self.out, size_bytes: self.offset, page_count: self.page_count, file_checksum })
    }

    /// Where it is written to, so that what is complete can be taken away while the file grows.
    pub const fn out_mut(&mut self) -> &mut W {
        &mut self.out
    }

    fn check(&self, pgno: PageNo, data: &[u8]) -> Result<(), LtxError> {
        let (page, offset) = (pgno.get(), self.offset);
        let page_size = self.header.page_size;
        if data.len() != page_size.bytes() {
            return Err(LtxError::PageLength { page, expected: page_size.bytes(), found: data.len() });
        }
        if pgno == page_size.lock_page() {
            return Err(LtxError::LockPage { offset, page });
        }
        if page > self.header.commit_pages {
            return Err(LtxError::BeyondCommit { page, commit_pages: self.header.commit_pages });
        }
        let next = self.next_page();
        let exact = self.header.min_txid == Txid::FIRST;
        if u64::from(page) < next || (exact && u64::from(page) != next) {
            return Err(LtxError::PageOrder { offset, page, expected: u32::try_from(next).unwrap_or(u32::MAX), exact });
        }
        Ok(())
    }

    /// The lowest page number that may follow, which is past the end of the numbers after the last one.
    fn next_page(&self) -> u64 {
        let next = u64::from(self.last_page) + 1;
        if next == u64::from(self.header.page_size.lock_page().get()) { next + 1 } else { next }
    }
}

impl<W: Write> std::fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("header", &self.header).field("page_count", &self.page_count).finish_non_exhaustive()
    }
}
