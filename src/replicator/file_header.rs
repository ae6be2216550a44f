//! The first bytes of a database file, as <https://www.sqlite.org/fileformat2.html#the_database_header> describes them.

use crate::types::PageSize;

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 100;

/// What of it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    /// `None` where the file is empty or no database.
    pub(crate) page_size: Option<PageSize>,
    /// The file format's write version says WAL.
    pub(crate) is_wal: bool,
    /// Goes up with every commit in a rollback-journal mode, but for those that follow one under exclusive locking.
    pub(crate) change_counter: u32,
    /// The change counter for which `stored_pages` holds.
    version_valid_for: u32,
    stored_pages: u32,
}

impl FileHeader {
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        const WAL_VERSION: u8 = 2;
        let word = |at: usize| bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b));
        let page_bytes = match u16::from_be_bytes([bytes[16], bytes[17]]) {
            1 => 65536,
            other => u32::from(other),
        };
        Self {
            page_size: PageSize::new(page_bytes),
            is_wal: bytes[18] == WAL_VERSION,
            change_counter: word(24),
            version_valid_for: word(92),
            stored_pages: word(28),
        }
    }

    /// The words by which two states of one file are told apart.
    pub(crate) const fn words(&self) -> [u32; 2] {
        [self.change_counter, self.version_valid_for]
    }

    /// The database's size in pages, as SQLite counts it: what the header says where that holds, else what the file has.
    pub(crate) fn pages(&self, file_bytes: u64) -> u32 {
        let Some(page_size) = self.page_size else { return 0 };
        // A page that is there in part counts: a backup of an empty database into one of larger pages leaves such a file.
        let there = u32::try_from(file_bytes.div_ceil(u64::from(page_size.get()))).unwrap_or(u32::MAX);
        if self.stored_pages > 0 && self.stored_pages <= there && self.change_counter == self.version_valid_for {
            self.stored_pages
        } else {
            there
        }
    }
}
