//! The header of a log and of its frames, and where they are.

use super::{WalError, checksum};
use crate::types::{PageNo, PageSize, WalPos};

/// The size of a log's header in bytes.
pub const WAL_HEADER_BYTES: usize = 32;
/// The size of the header before each page in bytes.
pub const FRAME_HEADER_BYTES: usize = 24;

/// The lowest bit says the byte order of the checksum: 1 for big-endian.
const MAGIC: u32 = 0x377f_0682;
pub(super) const VERSION: u32 = 3_007_000;

/// Where a frame's header starts in the log, in bytes. Here `frame_index` counts from 0.
#[must_use]
pub const fn frame_offset(page_size: PageSize, frame_index: u32) -> u64 {
    WAL_HEADER_BYTES as u64 + frame_index as u64 * frame_bytes(page_size)
}

/// Where a log of so many frames ends, in bytes.
#[must_use]
pub const fn end_offset(page_size: PageSize, frames: u32) -> u64 {
    frame_offset(page_size, frames)
}

pub(super) const fn frame_bytes(page_size: PageSize) -> u64 {
    FRAME_HEADER_BYTES as u64 + page_size.get() as u64
}

/// The header of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The page size of the database.
    pub page_size: PageSize,
    /// How many times the log was restarted. SQLite starts it again with a new connection.
    pub checkpoint_seq: u32,
    /// The two salts, as big-endian numbers. The first is counted up by a restart, the second is random.
    pub salts: [u32; 2],
    /// The checksum words stored in the header.
    pub checksum: [u32; 2],
    /// The byte order in which checksums read the words of the log.
    pub big_endian_checksum: bool,
}

impl Header {
    /// Reads the header at the start of `bytes`, which may go on behind it.
    ///
    /// # Errors
    /// `ShortHeader`, `Magic`, `Version`, `PageSize`, `HeaderChecksum`.
    pub fn decode(bytes: &[u8]) -> Result<Self, WalError> {
        let short = || WalError::ShortHeader { bytes: bytes.len() };
        let header = bytes.first_chunk::<WAL_HEADER_BYTES>().ok_or_else(short)?;
        let [magic, version, page_bytes, checkpoint_seq, salt1, salt2, sum1, sum2] = big_endian_words(header);
        if magic & !1 != MAGIC {
            return Err(WalError::Magic { found: magic });
        }
        if version != VERSION {
            return Err(WalError::Version { found: version });
        }
        let page_size = PageSize::new(page_bytes).ok_or(WalError::PageSize { found: page_bytes })?;
        let big_endian_checksum = magic & 1 != 0;
        let summed = header.first_chunk::<24>().ok_or_else(short)?;
        if checksum(big_endian_checksum, [0; 2], summed) != [sum1, sum2] {
            return Err(WalError::HeaderChecksum);
        }
        Ok(Self { page_size, checkpoint_seq, salts: [salt1, salt2], checksum: [sum1, sum2], big_endian_checksum })
    }

    /// The place before the first frame.
    #[must_use]
    pub const fn start(&self) -> WalPos {
        WalPos { salts: self.salts, frame: 0, checksum: self.checksum }
    }
}

/// The header of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page in the frame. 0 in no valid frame.
    pub pgno: u32,
    /// The size of the database in pages where the frame ends a transaction, else 0.
    pub commit_pages: u32,
    /// The salts of the log that the frame was written to, as big-endian numbers.
    pub salts: [u32; 2],
    /// The checksum words stored in the frame: over the log's header, all frames before, and this one.
    pub checksum: [u32; 2],
}

impl FrameHeader {
    /// Reads a frame's header. Whether the frame is valid only its log can tell: see [`super::read_frames`].
    #[must_use]
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Self {
        let [pgno, commit_pages, salt1, salt2, sum1, sum2] = big_endian_words(bytes);
        Self { pgno, commit_pages, salts: [salt1, salt2], checksum: [sum1, sum2] }
    }

    /// Whether it is a frame of that page and that log.
    #[must_use]
    pub const fn is_of(&self, page: PageNo, salts: [u32; 2]) -> bool {
        self.pgno == page.get() && self.salts[0] == salts[0] && self.salts[1] == salts[1]
    }

    /// Whether the frame ends a transaction.
    #[must_use]
    pub const fn is_commit(&self) -> bool {
        self.commit_pages != 0
    }
}

/// The words of a header; `N` is a quarter of the length.
fn big_endian_words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    words
}
