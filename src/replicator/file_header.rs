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
    /// It begins as every database does.
    is_database: bool,
}

impl FileHeader {
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        const MAGIC: &[u8] = b"SQLite format 3\0";
        const WAL_VERSION: u8 = 2;
        /// What bytes 21 to 23 are in every database.
        const FRACTIONS: &[u8] = &[64, 32, 32];
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
            is_database: bytes.starts_with(MAGIC) && bytes.get(21..24) == Some(FRACTIONS),
        }
    }

    /// The words by which two states of one file are told apart.
    pub(crate) const fn words(&self) -> [u32; 2] {
        [self.change_counter, self.version_valid_for]
    }

    /// The database's size in pages as SQLite's pager counts it, by the file. The header may tell of fewer: where SQLite was killed before it cut off what a
    /// commit had left over, or has the file grow in chunks. But the next commit to a WAL tells of as many as there are.
    ///
    /// A last one that is not whole counts: SQLite reads zeros beyond the end of a file.
    pub(crate) fn pages(&self, file_bytes: u64) -> u32 {
        self.page_size.map_or(0, |size| u32::try_from(file_bytes.div_ceil(u64::from(size.get()))).unwrap_or(u32::MAX))
    }

    /// What SQLite finds wrong with a file that begins like this, so that it reads nothing of it; only where there is no WAL with another first page.
    pub(crate) fn damage(&self, file_bytes: u64) -> Option<String> {
        if !self.is_database || self.page_size.is_none() {
            return Some("it does not begin as a database does (one that is encrypted does not, either)".to_owned());
        }
        let there = self.pages(file_bytes);
        let is_told = self.change_counter == self.version_valid_for;
        (is_told && self.stored_pages > there).then(|| format!("its header tells of {} pages and it has {there}", self.stored_pages))
    }
}
