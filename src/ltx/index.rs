//! The page index: where each page's frame is in its file. See `docs/format.md`, "Page index".

use std::ops::Range;

use super::page::PAGE_HEADER_BYTES;
use super::{HEADER_BYTES, LtxError, TRAILER_BYTES};
use crate::types::PageNo;

/// The size field behind the entries.
const SIZE_BYTES: usize = 8;

/// Where a page is in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The page.
    pub pgno: PageNo,
    /// Where its frame starts, in bytes from the start of the file.
    pub offset: u64,
    /// The length of its frame in bytes.
    pub size: u64,
}

/// Finds and reads the page index of a stored file.
#[derive(Debug)]
pub struct PageIndex(());

impl PageIndex {
    /// How many bytes at the end of a file [`PageIndex::locate`] needs at least.
    pub const LOCATE_BYTES: usize = SIZE_BYTES + TRAILER_BYTES;

    /// The byte range of the index within its file: what [`PageIndex::parse`] reads.
    ///
    /// `tail` is the end of the file, `file_size` the length of the whole in bytes.
    ///
    /// # Errors
    /// `Index` where the tail is too short, or the index would not lie between the header and the trailer.
    pub fn locate(tail: &[u8], file_size: u64) -> Result<Range<u64>, LtxError> {
        let wrong = |reason| LtxError::Index { offset: 0, reason };
        let size = tail
            .last_chunk::<{ Self::LOCATE_BYTES }>()
            .and_then(|end| end.first_chunk::<SIZE_BYTES>())
            .map(|size| u64::from_be_bytes(*size))
            .ok_or_else(|| wrong("the end of the file is too short to hold its size"))?;
        let end = file_size.checked_sub(Self::LOCATE_BYTES as u64).ok_or_else(|| wrong("the file is too short to hold it"))?;
        let start = end.checked_sub(size).ok_or_else(|| wrong("it is larger than the file"))?;
        if size == 0 {
            return Err(wrong("it is empty"));
        }
        if start < (HEADER_BYTES + PAGE_HEADER_BYTES) as u64 {
            return Err(wrong("it overlaps the header"));
        }
        Ok(start..end)
    }

    /// Reads the bytes that [`PageIndex::locate`] found, the terminator included.
    ///
    /// The entries are ascending and their frames follow each other from the end of the header without a gap. Where the range is known,
    /// [`PageIndex::parse_at`] also checks that they end where the index starts. The memory used is at most 8 times that of `bytes`.
    ///
    /// # Errors
    /// `Index`, for everything else. Litestream tolerates a wrong index when it restores: read the whole file then.
    pub fn parse(bytes: &[u8]) -> Result<Vec<IndexEntry>, LtxError> {
        Self::entries(bytes).collect()
    }

    /// The same entry by entry, without memory for all of them. Nothing comes after an error.
    pub(crate) fn entries(bytes: &[u8]) -> Entries<'_> {
        Entries { bytes, at: 0, last: 0, next_offset: HEADER_BYTES as u64, is_over: false }
    }

    /// As [`PageIndex::parse`], for an index that was found at `range`.
    ///
    /// # Errors
    /// As [`PageIndex::parse`], and `Index` where the frames do not end just before the index.
    pub fn parse_at(bytes: &[u8], range: &Range<u64>) -> Result<Vec<IndexEntry>, LtxError> {
        let entries = Self::parse(bytes)?;
        let frames_end = entries.last().map_or(HEADER_BYTES as u64, |last| last.offset + last.size);
        if frames_end + PAGE_HEADER_BYTES as u64 == range.start {
            Ok(entries)
        } else {
            Err(LtxError::Index { offset: bytes.len() as u64, reason: "the frames do not end where it starts" })
        }
    }
}

/// The entries of a page index, one after the other.
#[derive(Debug)]
pub(crate) struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
    last: u32,
    next_offset: u64,
    is_over: bool,
}

impl Entries<'_> {
    fn entry(&mut self) -> Result<Option<IndexEntry>, LtxError> {
        let at = self.at;
        let wrong = |reason| LtxError::Index { offset: at as u64, reason };
        let mut rest = self.bytes.get(at..).unwrap_or_default();
        let number = uvarint(&mut rest).ok_or_else(|| wrong("no page number"))?;
        if number == 0 {
            return if self.bytes.get(at) == Some(&0) && rest.is_empty() { Ok(None) } else { Err(wrong("bytes follow its end")) };
        }
        let pgno = u32::try_from(number).ok().and_then(PageNo::new).ok_or_else(|| wrong("not a page number"))?;
        if pgno.get() <= self.last {
            return Err(wrong("the pages are not ascending"));
        }
        let offset = uvarint(&mut rest).ok_or_else(|| wrong("no offset"))?;
        let size = uvarint(&mut rest).ok_or_else(|| wrong("no size"))?;
        if offset != self.next_offset {
            return Err(wrong("the frame does not follow the one before"));
        }
        if size <= PAGE_HEADER_BYTES as u64 {
            return Err(wrong("the frame is too small"));
        }
        self.next_offset = offset.checked_add(size).ok_or_else(|| wrong("the frame is too large"))?;
        self.last = pgno.get();
        self.at = self.bytes.len() - rest.len();
        Ok(Some(IndexEntry { pgno, offset, size }))
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<IndexEntry, LtxError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let entry = self.entry().transpose();
        self.is_over = !matches!(entry, Some(Ok(_)));
        entry
    }
}

/// Appends an entry.
pub(super) fn put_entry(out: &mut Vec<u8>, page: PageNo, offset: u64, size: u64) {
    for number in [page.get().into(), offset, size] {
        put_uvarint(out, number);
    }
}

/// Ends an index of `entry_bytes` bytes of entries: the terminator and the size.
pub(super) fn ending(entry_bytes: u64) -> [u8; 1 + SIZE_BYTES] {
    let mut out = [0; 1 + SIZE_BYTES];
    if let Some(size) = out.last_chunk_mut() {
        *size = (entry_bytes + 1).to_be_bytes();
    }
    out
}

fn put_uvarint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes an unsigned LEB128 number; `None` where there is none or it needs more than 64 bits.
fn uvarint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if shift == 63 && byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}
