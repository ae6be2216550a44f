//! The header of the WAL-index: what the processes that use a database agree is in its log.

use super::checksum;
use super::header::VERSION;
use crate::types::{PageSize, WalPos};

/// The size of one copy of the header in bytes. The WAL-index starts with two, which are equal unless one is being written.
pub const INDEX_HEADER_BYTES: usize = 48;

/// One copy of the WAL-index header, which is in the byte order of the machine.
///
/// Frames behind `max_frame` are no part of the log: they were rolled back, or belong to a transaction that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    /// The page size of the database; `None` where the WAL-index was made for an empty log and nothing has been written since.
    pub page_size: Option<PageSize>,
    /// How many frames the log has.
    pub max_frame: u32,
    /// The size of the database in pages.
    pub db_pages: u32,
    /// The checksum words of the last frame, as they are stored in its header. Those of some older frame where `max_frame` is 0.
    pub frame_checksum: [u32; 2],
    /// The salts of the log, as big-endian numbers. Where `max_frame` is 0 the log's own header may have others, or be missing, and the
    /// next writer may choose others again.
    pub salts: [u32; 2],
    /// Counted up by every transaction.
    pub change_counter: u32,
    /// Whether the WAL-index has been made. SQLite then keeps it so until it makes it anew.
    pub is_init: bool,
    /// The byte order in which checksums read the words of the log.
    pub big_endian_checksum: bool,
}

impl IndexHeader {
    /// Reads one copy; `None` where it has not been made yet, is of another version, or is being written: its checksum is wrong then.
    #[must_use]
    pub fn decode(bytes: &[u8; INDEX_HEADER_BYTES]) -> Option<Self> {
        let word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word));
        let big_endian_word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word));
        let [_, _, _, _, _, _, _, _, _, _, _, _, is_init, big_endian_checksum, page_size_1, page_size_2, ..] = *bytes;
        if word(0)? != VERSION || is_init == 0 {
            return None;
        }
        let summed = checksum(cfg!(target_endian = "big"), [0; 2], bytes.get(..40)?);
        if summed != [word(40)?, word(44)?] {
            return None;
        }
        // 65536 does not fit: it is stored as 1.
        let page_bytes = match u16::from_ne_bytes([page_size_1, page_size_2]) {
            1 => 65536,
            other => u32::from(other),
        };
        let page_size = PageSize::new(page_bytes);
        if page_size.is_none() && page_bytes != 0 {
            return None;
        }
        Some(Self {
            page_size,
            max_frame: word(16)?,
            db_pages: word(20)?,
            frame_checksum: [word(24)?, word(28)?],
            salts: [big_endian_word(32)?, big_endian_word(36)?],
            change_counter: word(8)?,
            is_init: true,
            big_endian_checksum: big_endian_checksum != 0,
        })
    }

    /// The end of the last frame, as [`super::read_frames`] returns it for that frame.
    ///
    /// Where `max_frame` is 0 it is no place in a log: neither the salts nor the checksum words need be those of the log's header.
    #[must_use]
    pub const fn end(&self) -> WalPos {
        WalPos { salts: self.salts, frame: self.max_frame, checksum: self.frame_checksum }
    }
}
