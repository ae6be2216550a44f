//! SQLite's rollback journal, as <https://www.sqlite.org/fileformat2.html#the_rollback_journal> describes it: what a batch is about to change in the copy, so that
//! whoever opens it after a crash rolls the batch back, SQLite's readers included.
//!
//! ```text
//!   zeroes for a header: none yet -> pages as they are -> fsync -> the header -> fsync -> (the copy is changed, fsync) -> deleted
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::fault::fault_io;
use crate::types::{PageNo, PageSize};

const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// The header takes a sector. SQLite takes the size from the header, but looks for one that is no shorter than its own, of 4096 bytes at most by default.
const SECTOR_BYTES: u32 = 4096;
/// What a page has around it: its number before, a checksum after it.
const AROUND_BYTES: u64 = 8;
const BUFFER_BYTES: usize = 256 << 10;

/// What was found beside a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RolledBack {
    /// Nothing that had to be rolled back.
    Nothing,
    /// The database is as it was before the batch.
    Batch,
    /// A journal that nobody here writes; it is left alone.
    Foreign,
}

/// Whether there is one that has something to roll back.
pub(super) fn is_there(path: &Path) -> io::Result<bool> {
    let mut first = [0];
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // One that begins with a zero, or is empty, SQLite takes for none.
        opened => Ok(opened?.read_at(&mut first, 0)? == 1 && first != [0]),
    }
}

/// Writes down pages of a database as they are now, durably. The caller has it reserved.
pub(super) fn write(
    path: &Path,
    database: &File,
    page_size: PageSize,
    size_pages: u32,
    pages: impl Iterator<Item = PageNo>,
) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.set_permissions(database.metadata()?.permissions())?;
    let nonce = fastrand::u32(..);
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, &file);
    out.write_all(&[0; SECTOR_BYTES as usize])?;
    let mut data = vec![0; page_size.bytes()];
    let mut count = 0_u32;
    for page in pages {
        database.read_exact_at(&mut data, page_size.offset_of(page))?;
        out.write_all(&page.get().to_be_bytes())?;
        out.write_all(&data)?;
        out.write_all(&checksum(nonce, &data).to_be_bytes())?;
        count += 1;
    }
    out.flush()?;
    drop(out);
    fault_io!("follow.journal")?;
    file.sync_all()?;
    let mut header = Vec::from(MAGIC);
    for word in [count, nonce, size_pages, SECTOR_BYTES, page_size.get()] {
        header.extend_from_slice(&word.to_be_bytes());
    }
    file.write_all_at(&header, 0)?;
    file.sync_data()?;
    sync_folder_of(path)
}

/// Puts back what a journal holds, and deletes it. The caller has the database for itself.
pub(super) fn roll_back(path: &Path, database: &File) -> io::Result<RolledBack> {
    let journal = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RolledBack::Nothing),
        opened => opened?,
    };
    let length = journal.metadata()?.len();
    let Some(Header { count, nonce, size_pages, sector_bytes, page_size }) = Header::read(&journal, length)? else {
        // Its writer had not come to change anything.
        end(path)?;
        return Ok(RolledBack::Nothing);
    };
    let ours = u64::from(SECTOR_BYTES) + u64::from(count) * (u64::from(page_size.get()) + AROUND_BYTES);
    if (sector_bytes, length) != (SECTOR_BYTES, ours) {
        return Ok(RolledBack::Foreign);
    }
    journal.sync_all()?;
    let mut record = vec![0; page_size.bytes() + AROUND_BYTES as usize];
    let mut at = u64::from(SECTOR_BYTES);
    for _ in 0..count {
        journal.read_exact_at(&mut record, at)?;
        at += record.len() as u64;
        let parts = record.split_first_chunk::<4>().and_then(|(page, rest)| Some((page, rest.split_last_chunk::<4>()?)));
        let Some((page, (data, sum))) = parts else { return Ok(RolledBack::Foreign) };
        if u32::from_be_bytes(*sum) != checksum(nonce, data) {
            // All of it was synced before its count was: this is another's, or the disk's fault.
            return Ok(RolledBack::Foreign);
        }
        match PageNo::new(u32::from_be_bytes(*page)) {
            Some(page) if page.get() <= size_pages => database.write_all_at(data, page_size.offset_of(page))?,
            _ => return Ok(RolledBack::Foreign),
        }
    }
    database.set_len(u64::from(size_pages) * u64::from(page_size.get()))?;
    database.sync_all()?;
    end(path)?;
    Ok(RolledBack::Batch)
}

/// Deletes it, durably: what it could have undone is committed.
pub(super) fn end(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_folder_of(path),
    }
}

/// What was made, renamed or deleted beside a file is so after a power loss.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(folder)?.sync_all()
}

struct Header {
    count: u32,
    nonce: u32,
    size_pages: u32,
    sector_bytes: u32,
    page_size: PageSize,
}

impl Header {
    /// `None` where there is nothing to roll back.
    fn read(journal: &File, length: u64) -> io::Result<Option<Self>> {
        let mut bytes = [0; 28];
        if length < bytes.len() as u64 {
            return Ok(None);
        }
        journal.read_exact_at(&mut bytes, 0)?;
        let (magic, words) = bytes.split_at(MAGIC.len());
        let mut words = words.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word));
        let mut word = || words.next().unwrap_or_default();
        let (count, nonce, size_pages, sector_bytes, page_size) = (word(), word(), word(), word(), word());
        let page_size = PageSize::new(page_size).filter(|_| magic == MAGIC && count > 0);
        Ok(page_size.map(|page_size| Self { count, nonce, size_pages, sector_bytes, page_size }))
    }
}

/// Every two hundredth byte, from the end, without the first ones.
fn checksum(nonce: u32, page: &[u8]) -> u32 {
    let places = (1..).map(|i| page.len().checked_sub(i * 200)).take_while(|at| at.is_some_and(|at| at > 0)).flatten();
    places.filter_map(|at| page.get(at)).fold(nonce, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}
