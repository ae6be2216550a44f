//! What the first bytes of a database file say, and its list of free pages. See <https://www.sqlite.org/fileformat2.html>.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use replicated::types::{PageNo, PageSize};

const HEADER: usize = 100;

/// What the first bytes of a database file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHead {
    pub(crate) page_size: Option<PageSize>,
    pub(crate) is_wal: bool,
    pub(crate) change_counter: u32,
    pub(crate) stored_pages: u32,
    /// The size is of the last change.
    pub(crate) is_told: bool,
}

impl FileHead {
    /// Of an open file.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(crate) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; HEADER];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self::decode(&bytes))
    }

    /// Of a restored file.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        Self::read(&File::open(path)?)
    }

    fn decode(bytes: &[u8; HEADER]) -> Self {
        let word = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_be_bytes(*word));
        let page_bytes = match word(16) >> 16 {
            1 => 65536,
            other => other,
        };
        let is_database = bytes.starts_with(b"SQLite format 3\0");
        Self {
            page_size: PageSize::new(page_bytes).filter(|_| is_database),
            is_wal: bytes[18] == 2,
            change_counter: word(24),
            stored_pages: word(28),
            is_told: word(24) == word(92),
        }
    }
}

/// The pages that the list of free pages names: its leaves, of which nothing is used.
pub(crate) fn free_pages(file: &File, page_size: PageSize, pages: u32) -> io::Result<HashSet<u32>> {
    let mut free = HashSet::new();
    let word = |bytes: &[u8], at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_be_bytes(*word));
    let mut head = [0; HEADER];
    file.read_exact_at(&mut head, 0)?;
    let (mut trunk, mut seen) = (word(&head, 32), 0);
    let mut bytes = vec![0; page_size.bytes()];
    // A damaged list may go round in circles.
    while let Some(page) = PageNo::new(trunk).filter(|page| page.get() <= pages && seen < pages) {
        file.read_exact_at(&mut bytes, page_size.offset_of(page))?;
        let leaves = (word(&bytes, 4) as usize).min(page_size.bytes() / 4 - 2);
        free.extend((0..leaves).map(|leaf| word(&bytes, 8 + 4 * leaf)));
        trunk = word(&bytes, 0);
        seen += 1;
    }
    Ok(free)
}
