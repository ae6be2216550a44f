//! Reads one LTX file from chunks of any size, verifying everything, without doing any I/O.

use super::checksum::{CHECKSUM_FLAG, FileCrc, RollingChecksum};
use super::index;
use super::page::{self, PAGE_HEADER_BYTES, Step};
use super::{HEADER_BYTES, Header, LtxError, TRAILER_BYTES};
use crate::types::PageNo;

/// What a [`Decoder`] hands pages to: the page's number and content.
pub type OnPage<'a> = dyn FnMut(PageNo, &[u8]) -> Result<(), LtxError> + 'a;

/// Reads one LTX file as its bytes arrive.
///
/// What is kept is one page frame and one page, whatever the file says. Pages are handed out before the file checksum is known: until
/// [`Decoder::finish`] returns `Ok`, nothing that was handed out may be relied on.
///
/// Pages behind the end of the database (`Header::commit_pages`) are handed out like others; whoever applies the file drops them.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// The beginning of the header or page frame that is being read; in the tail, its last bytes.
    buffer: Vec<u8>,
    /// Where the buffer's first byte is in the file.
    offset: u64,
    /// How many bytes the buffer must have before it is looked at again.
    need: usize,
    page: Vec<u8>,
    header: Option<Header>,
    crc: FileCrc,
    rolling: Option<RollingChecksum>,
    last_page: u32,
    page_count: u32,
    expected_index: IndexDigest,
    found_index: IndexDigest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Pages,
    /// Behind the last page. The last 16 bytes, wherever they are, are the trailer; what is before them is the page index.
    Tail,
    Failed,
}

/// What a complete and verified file was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its header.
    pub header: Header,
    /// How many pages it holds.
    pub page_count: u32,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// The file checksum, as its trailer stores it.
    pub file_checksum: u64,
    /// The rolling checksum of the database after the file is applied; 0 where there is none.
    pub post_apply_checksum: u64,
    /// Whether the page index is what the file's pages give. Only readers of single pages need it; a restore does not.
    pub index_matches: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder that expects a file's first byte.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Header,
            buffer: Vec::new(),
            offset: 0,
            need: HEADER_BYTES,
            page: Vec::new(),
            header: None,
            crc: FileCrc::new(),
            rolling: None,
            last_page: 0,
            page_count: 0,
            expected_index: IndexDigest::default(),
            found_index: IndexDigest::default(),
        }
    }

    /// The header, once its 100 bytes have arrived.
    #[must_use]
    pub const fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// Takes the next bytes of the file, and hands every page that they complete to `on_page`.
    ///
    /// # Errors
    /// What is wrong with the bytes, or the error of `on_page`. Nothing can be read after an error: then `Failed`.
    pub fn push(&mut self, mut bytes: &[u8], on_page: &mut OnPage<'_>) -> Result<(), LtxError> {
        while let Some(pgno) = self.advance(&mut bytes)? {
            on_page(pgno, &self.page).inspect_err(|_| self.state = State::Failed)?;
        }
        Ok(())
    }

    /// Ends the file and verifies its trailer.
    ///
    /// # Errors
    /// `Truncated`, `FileChecksum`, `PostApplyChecksum`; `Failed` where an earlier call failed.
    pub fn finish(self) -> Result<Summary, LtxError> {
        self.summary()
    }

    /// Takes bytes off the front of `bytes` until a page is complete, which is then in `self.page`; `None` once all are taken.
    pub(crate) fn advance(&mut self, bytes: &mut &[u8]) -> Result<Option<PageNo>, LtxError> {
        let state = std::mem::replace(&mut self.state, State::Failed);
        let (state, page) = self.advance_from(state, bytes)?;
        self.state = state;
        Ok(page)
    }

    /// Hands out the page that `advance` completed in exchange for another buffer.
    pub(crate) fn swap_page(&mut self, other: &mut Vec<u8>) {
        std::mem::swap(&mut self.page, other);
    }

    fn advance_from(&mut self, mut state: State, bytes: &mut &[u8]) -> Result<(State, Option<PageNo>), LtxError> {
        loop {
            match state {
                State::Failed => return Err(LtxError::Failed),
                State::Tail => {
                    self.take_tail(std::mem::take(bytes));
                    return Ok((state, None));
                }
                State::Header | State::Pages => {}
            }
            let missing = self.need.saturating_sub(self.buffer.len());
            let (taken, rest) = bytes.split_at_checked(missing).unwrap_or((*bytes, &[]));
            self.buffer.extend_from_slice(taken);
            *bytes = rest;
            if taken.len() < missing {
                return Ok((state, None));
            }
            let Some(header) = self.header else {
                self.take_header()?;
                state = State::Pages;
                continue;
            };
            match page::scan(&self.buffer, header.page_size, self.offset)? {
                Step::Need(need) => self.need = need,
                Step::Page { page, frame_bytes } if frame_bytes == self.buffer.len() => {
                    self.take_page(&header, page)?;
                    return Ok((state, Some(page)));
                }
                // `scan` never asks for more than the frame has, so this cannot be; were it so, nothing could be trusted.
                Step::Page { .. } => return Err(LtxError::Failed),
                Step::Terminator => {
                    self.take_terminator();
                    state = State::Tail;
                }
            }
        }
    }

    fn take_header(&mut self) -> Result<(), LtxError> {
        let header = Header::decode(&self.buffer)?;
        if !header.no_checksum && header.is_snapshot() {
            self.rolling = Some(RollingChecksum::new());
        }
        self.header = Some(header);
        self.crc.update(&self.buffer);
        self.next_part(PAGE_HEADER_BYTES);
        Ok(())
    }

    fn take_page(&mut self, header: &Header, page: PageNo) -> Result<(), LtxError> {
        if page.get() <= self.last_page {
            let expected = self.last_page.saturating_add(1);
            return Err(LtxError::PageOrder { offset: self.offset, page: page.get(), expected, exact: false });
        }
        self.page.resize(header.page_size.bytes(), 0);
        page::decompress(&self.buffer, page, self.offset, &mut self.page)?;
        self.crc.update(self.buffer.get(..page::hashed_bytes(&self.buffer)).unwrap_or_default());
        self.crc.update(&self.page);
        if let Some(rolling) = &mut self.rolling {
            rolling.add(page.get(), &self.page);
        }
        self.expected_index.entry(page, self.offset, self.buffer.len() as u64);
        self.last_page = page.get();
        self.page_count += 1;
        self.next_part(PAGE_HEADER_BYTES);
        Ok(())
    }

    fn take_terminator(&mut self) {
        self.crc.update(&self.buffer);
        self.expected_index.end();
        self.next_part(TRAILER_BYTES);
    }

    /// Keeps the last 16 bytes; what they push out belongs to the page index.
    fn take_tail(&mut self, bytes: &[u8]) {
        let surplus = (self.buffer.len() + bytes.len()).saturating_sub(TRAILER_BYTES);
        let old = surplus.min(self.buffer.len());
        let (passed, kept) = bytes.split_at_checked(surplus - old).unwrap_or((bytes, &[]));
        let pushed_out = self.buffer.get(..old).unwrap_or_default();
        for part in [pushed_out, passed] {
            self.crc.update(part);
            self.found_index.update(part);
        }
        self.buffer.drain(..old);
        self.buffer.extend_from_slice(kept);
        self.offset += surplus as u64;
    }

    fn next_part(&mut self, need: usize) {
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        self.need = need;
    }

    pub(super) fn summary(&self) -> Result<Summary, LtxError> {
        let size_bytes = self.offset + self.buffer.len() as u64;
        let truncated = |part| LtxError::Truncated { offset: size_bytes, part };
        let header = match (self.state, self.header) {
            (State::Failed, _) => return Err(LtxError::Failed),
            (State::Header, _) | (_, None) => return Err(truncated("header")),
            (State::Pages, _) => return Err(truncated("pages")),
            (State::Tail, Some(header)) => header,
        };
        let (post_apply_checksum, stored) = match self.buffer.split_first_chunk::<8>() {
            Some((post_apply, stored)) => (post_apply, stored.first_chunk::<8>().ok_or_else(|| truncated("trailer"))?),
            None => return Err(truncated("trailer")),
        };
        let mut crc = self.crc.clone();
        crc.update(post_apply_checksum);
        let (stored, computed) = (u64::from_be_bytes(*stored), crc.value());
        if stored != computed {
            return Err(LtxError::FileChecksum { stored, computed });
        }
        let post_apply_checksum = u64::from_be_bytes(*post_apply_checksum);
        self.check_post_apply(&header, post_apply_checksum)?;
        let index_matches = self.expected_index == self.found_index;
        Ok(Summary { header, page_count: self.page_count, size_bytes, file_checksum: stored, post_apply_checksum, index_matches })
    }

    fn check_post_apply(&self, header: &Header, stored: u64) -> Result<(), LtxError> {
        let wrong = |rule| Err(LtxError::PostApplyChecksum { stored, rule });
        match &self.rolling {
            _ if header.no_checksum && stored != 0 => wrong("it must be 0 in a file without checksums"),
            _ if header.no_checksum => Ok(()),
            Some(rolling) if rolling.value() != stored => wrong("it is not the checksum of the snapshot's pages"),
            _ if stored & CHECKSUM_FLAG == 0 => wrong("its highest bit must be set"),
            _ => Ok(()),
        }
    }
}

/// Compares page indexes without keeping them: their length and a CRC.
#[derive(Debug)]
struct IndexDigest {
    crc: FileCrc,
    bytes: u64,
    scratch: Vec<u8>,
}

impl Default for IndexDigest {
    fn default() -> Self {
        Self { crc: FileCrc::new(), bytes: 0, scratch: Vec::new() }
    }
}

impl IndexDigest {
    fn update(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn entry(&mut self, page: PageNo, offset: u64, size: u64) {
        let mut scratch = std::mem::take(&mut self.scratch);
        index::put_entry(&mut scratch, page, offset, size);
        self.update(&scratch);
        scratch.clear();
        self.scratch = scratch;
    }

    fn end(&mut self) {
        self.update(&index::ending(self.bytes));
    }
}

impl PartialEq for IndexDigest {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.crc.value() == other.crc.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{PageSize, TimestampMs, Txid};

    /// Pushes bytes one by one, as that gives the buffer every chance to grow, and returns the most that was kept.
    fn most_kept(bytes: impl Iterator<Item = u8>) -> usize {
        let mut decoder = Decoder::new();
        let mut most = 0;
        for byte in bytes {
            let result = decoder.push(&[byte], &mut |_, _| Ok(()));
            most = most.max(decoder.buffer.capacity() + decoder.page.capacity() + decoder.expected_index.scratch.capacity());
            if result.is_err() {
                break;
            }
        }
        most
    }

    #[test]
    fn no_more_than_a_few_pages_are_kept_whatever_arrives() {
        let txid = Txid::FIRST.next();
        let header = Header::new(PageSize::new(4096).unwrap(), u32::MAX, txid, txid, TimestampMs(0)).encode();
        let lz4_frame = [0, 0, 0, 1, 0, 0, 0x04, 0x22, 0x4d, 0x18, 0x64, 0x40, 0xa7];
        let starts: [&[u8]; 6] = [
            // The largest block that is allowed, and one that is not.
            &[0, 0, 0, 1, 0, 1, 0, 0, 0x10, 0x20],
            &[0, 0, 0, 1, 0, 1, 0xff, 0xff, 0xff, 0xff],
            // LZ4 frames of one large block, and of blocks without end.
            &[lz4_frame.as_slice(), &[0xff, 0xff, 0xff, 0x7f]].concat(),
            &[lz4_frame.as_slice(), &[0, 0, 0, 0x80].repeat(100_000)].concat(),
            &[lz4_frame.as_slice(), &[1, 0, 0, 0, 0].repeat(100_000)].concat(),
            // An index without end.
            &[0; 6],
        ];
        for (i, start) in starts.into_iter().enumerate() {
            let most = most_kept(header.iter().chain(start).copied().chain(std::iter::repeat_n(1, 200_000)));
            assert!(most < 5 * 4096, "input {i} made the decoder keep {most} bytes");
        }
    }
}
