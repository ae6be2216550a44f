//! An ordered, crash-safe, bounded queue of LTX files on the local disk.
//!
//! Here goes what the WAL cannot keep any longer and the bucket does not have yet. An entry is a file `spool-<first>-<last>.ltx`, named by
//! the sequence numbers it covers; it counts once the control file names them. Entries that wait are merged, newest page wins: an outage
//! costs disk in the order of the pages that changed, not of the writes made.
//!
//! A batch that was sent, or may have been, is kept apart as `attempt-<txid>.ltx`, byte for byte, and never merged.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Seek as _};
use std::path::{Path, PathBuf};

use crate::fault::{fault_io, fault_point};
use crate::ltx::{Header, LtxError, Reader, merge};
use crate::replicator::local::OwnerMode;
use crate::types::{TimestampMs, Txid};

/// Entries beyond this many are merged when the uploader looks.
const MOST_ENTRIES: usize = 8;
/// With this many whoever adds one merges them: each commit outside a shared WAL adds one, faster than the uploader may come to look. Bounds the
/// descriptors that a merge, or building a batch, needs.
const MOST_UNMERGED: usize = 32;
const IO_BUFFER_BYTES: usize = 64 * 1024;
const LEAST_BUFFER_BYTES: usize = 4 * 1024;
/// Files that are kept to be written over, and how large one may be: 2 MiB beside what `max_local` counts.
const MOST_SPARES: usize = MOST_UNMERGED;
const MOST_SPARE_BYTES: u64 = 64 * 1024;

/// What went wrong in the spool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// A file operation failed.
    #[error("spool {path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// An entry is not what it should be, or could not be encoded.
    #[error("spool {path}: {source}")]
    Ltx {
        path: PathBuf,
        #[source]
        source: LtxError,
    },
    /// The control file speaks of entries that are not there.
    #[error("spool {directory}: entries {first} to {last} should be there and are not")]
    Missing { directory: PathBuf, first: u64, last: u64 },
    /// An entry of another node's, or under another's name.
    #[error("spool {path}: it is another entry, made by node {found:016x} (this is {node_id:016x})")]
    Foreign { path: PathBuf, found: u64, node_id: u64 },
    /// The limit of local disk would be passed.
    #[error("spool {directory}: {needed_bytes} bytes are over the limit of {limit_bytes} (max_local)")]
    Full { directory: PathBuf, needed_bytes: u64, limit_bytes: u64 },
}

impl SpoolError {
    /// Merging entries into a file has failed: by a file operation, or by what an entry holds.
    pub(crate) fn of(path: &Path, error: LtxError) -> Self {
        let path = path.to_owned();
        match error {
            LtxError::Io(source) => Self::Io { path, source },
            source => Self::Ltx { path, source },
        }
    }

    /// Something that was spooled cannot be had any more, however often it is tried.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Ltx { .. } | Self::Missing { .. } | Self::Foreign { .. } | Self::Full { .. } => true,
        }
    }
}

/// All entries to be merged, oldest first, and the newest one's header.
pub(crate) type Contents = (Vec<Reader<BufReader<File>>>, Header);

/// One file.
#[derive(Clone, Debug)]
struct Entry {
    first: u64,
    last: u64,
    bytes: u64,
}

/// The queue of one database.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: PathBuf,
    owner: OwnerMode,
    limit_bytes: u64,
    entries: VecDeque<Entry>,
    next: u64,
    /// Files of entries that were merged into others, to be written over: where commits are spooled one by one, making a file and removing it costs
    /// more than filling it. They keep their names, under which the next open removes them.
    spare: Vec<PathBuf>,
}

impl Spool {
    /// Opens the queue, which must hold exactly the sequence numbers `first..next`. What else lies in the directory is removed, but for
    /// the attempt of `keep_attempt`.
    pub(crate) fn open(
        directory: &Path,
        owner: OwnerMode,
        limit_bytes: u64,
        first: u64,
        next: u64,
        keep_attempt: Option<Txid>,
    ) -> Result<Self, SpoolError> {
        let mut found = Vec::new();
        let read = std::fs::read_dir(directory).map_err(|source| io_error(directory, source))?;
        for item in read {
            let item = item.map_err(|source| io_error(directory, source))?;
            let name = item.file_name();
            let Some(name) = name.to_str() else { continue };
            let entry = parse_name(name).filter(|(a, b)| first <= *a && *b < next);
            let stray = match entry {
                Some(_) => false,
                None => {
                    let attempt = name.starts_with("attempt-") && Some(name) != keep_attempt.map(attempt_name).as_deref();
                    name.starts_with("spool-") || name.ends_with(".tmp") || attempt
                }
            };
            if stray {
                remove(&item.path())?;
            } else if let Some((a, b)) = entry {
                let bytes = item.metadata().map_err(|source| io_error(&item.path(), source))?.len();
                found.push(Entry { first: a, last: b, bytes });
            }
        }
        let mut spool = Self { directory: directory.to_owned(), owner, limit_bytes, entries: VecDeque::new(), next, spare: Vec::new() };
        spool.adopt_found(found, first)?;
        Ok(spool)
    }

    /// Takes the entries that cover the range without a gap; a merge that died half-way leaves both its inputs and its output.
    fn adopt_found(&mut self, mut found: Vec<Entry>, first: u64) -> Result<(), SpoolError> {
        found.sort_by_key(|e| (e.first, std::cmp::Reverse(e.last)));
        let mut expected = first;
        for entry in found {
            if entry.last < expected {
                remove(&self.path(&entry))?;
            } else if entry.first == expected {
                expected = entry.last + 1;
                self.entries.push_back(entry);
            } else {
                break;
            }
        }
        if expected == self.next {
            Ok(())
        } else {
            Err(SpoolError::Missing { directory: self.directory.clone(), first: expected, last: self.next.saturating_sub(1) })
        }
    }

    /// Fails where an entry is not what it is called: another database's, or another of this one, put here by somebody.
    pub(crate) fn check_node(&self, node_id: u64) -> Result<(), SpoolError> {
        for entry in &self.entries {
            let path = self.path(entry);
            let header = read_header(&path)?;
            if header.node_id != node_id || header.min_txid != placeholder(entry.first) || header.max_txid != placeholder(entry.last) {
                return Err(SpoolError::Foreign { path, found: header.node_id, node_id });
            }
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn first(&self) -> u64 {
        self.entries.front().map_or(self.next, |e| e.first)
    }

    pub(crate) const fn next(&self) -> u64 {
        self.next
    }

    /// Whether entries wait to be merged.
    pub(crate) fn is_crowded(&self) -> bool {
        self.entries.len() > MOST_ENTRIES
    }

    /// Bytes of all entries.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.bytes).sum()
    }

    /// Adds an entry, which `write` encodes into the file given to it.
    ///
    /// Fails with `Full` once the entry is there but the limit is passed; the caller then gives the whole queue up.
    pub(crate) fn append<E: From<SpoolError>>(&mut self, write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>) -> Result<(), E> {
        // Before it and not after it: what is merged must have been named by the control file.
        self.bound()?;
        let entry = Entry { first: self.next, last: self.next, bytes: 0 };
        // Nobody looks at it before the control file names its number, so that it needs no rename to be there as a whole.
        let path = self.path(&entry);
        if let Some(spare) = self.spare.pop() {
            // Where it has gone one is made.
            let _ = std::fs::rename(spare, &path);
        }
        let bytes = self.write_file(&path, write).inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        self.entries.push_back(Entry { bytes, ..entry });
        self.next += 1;
        let needed_bytes = self.bytes();
        if needed_bytes > self.limit_bytes {
            return Err(SpoolError::Full { directory: self.directory.clone(), needed_bytes, limit_bytes: self.limit_bytes }.into());
        }
        Ok(())
    }

    /// Merges until there are fewer entries than a merge may open.
    pub(crate) fn bound(&mut self) -> Result<(), SpoolError> {
        while self.entries.len() >= MOST_UNMERGED {
            self.merge_waiting()?;
        }
        Ok(())
    }

    /// Merges the newest entries while that is cheap: each byte is rewritten a number of times logarithmic in the backlog.
    pub(crate) fn merge_waiting(&mut self) -> Result<(), SpoolError> {
        if !self.is_crowded() {
            return Ok(());
        }
        let mut run_bytes = 0;
        let mut run = 0;
        for entry in self.entries.iter().rev().take(MOST_UNMERGED) {
            if run >= 2 && entry.bytes > 2 * run_bytes && self.entries.len() - run < MOST_ENTRIES {
                break;
            }
            run_bytes += entry.bytes;
            run += 1;
        }
        let keep = self.entries.len() - run;
        fault_point!("merge.begin");
        let inputs: Vec<Entry> = self.entries.range(keep..).cloned().collect();
        let (Some(oldest), Some(newest)) = (inputs.first(), inputs.last()) else { return Ok(()) };
        let output = Entry { first: oldest.first, last: newest.last, bytes: 0 };
        let readers = inputs.iter().map(|e| self.reader(e)).collect::<Result<Vec<_>, _>>()?;
        let newest_path = self.path(newest);
        let mut header = read_header(&newest_path)?;
        header.min_txid = placeholder(oldest.first);
        let output_path = self.path(&output);
        let bytes =
            self.create(&output_path, |out| merge(readers, &header, out).map(drop).map_err(|source| SpoolError::of(&output_path, source)))?;
        fault_point!("merge.written");
        self.entries.truncate(keep);
        self.entries.push_back(Entry { bytes, ..output });
        // One that cannot be removed is removed at the next open.
        inputs.iter().try_for_each(|input| {
            let path = self.path(input);
            if input.bytes <= MOST_SPARE_BYTES && self.spare.len() < MOST_SPARES {
                self.spare.push(path);
            } else {
                remove(&path)?;
            }
            fault_point!("merge.removed");
            Ok(())
        })
    }

    /// Readers of all entries, oldest first, and the newest entry's header; `None` when empty.
    pub(crate) fn readers(&self) -> Result<Option<Contents>, SpoolError> {
        let Some(newest) = self.entries.back() else { return Ok(None) };
        let readers = self.entries.iter().map(|e| self.reader(e)).collect::<Result<Vec<_>, _>>()?;
        Ok(Some((readers, read_header(&self.path(newest))?)))
    }

    /// Forgets all entries. Their files go when the caller has saved that they are not needed: see `remove_stale`.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Removes the files of entries below a sequence number, and attempts but for one.
    pub(crate) fn remove_stale(&self, keep_attempt: Option<Txid>) -> Result<(), SpoolError> {
        let reopened = Self::open(&self.directory, self.owner, self.limit_bytes, self.first(), self.next, keep_attempt)?;
        drop(reopened);
        Ok(())
    }

    /// Where the bytes of an attempted batch are kept.
    pub(crate) fn attempt_path(&self, txid: Txid) -> PathBuf {
        self.directory.join(attempt_name(txid))
    }

    /// Creates a file in the directory under its final name, whole or not at all; returns its size in bytes.
    pub(crate) fn create<E: From<SpoolError>>(
        &self,
        path: &Path,
        write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
    ) -> Result<u64, E> {
        let temporary = path.with_extension("tmp");
        let made = self.write_file(&temporary, write).and_then(|bytes| {
            std::fs::rename(&temporary, path).map_err(|source| io_error(path, source))?;
            fault_point!("spool.renamed");
            Ok(bytes)
        });
        // The error to report is the first one; a temporary file left over is removed at the next open.
        made.inspect_err(|_| drop(std::fs::remove_file(&temporary)))
    }

    fn write_file<E: From<SpoolError>>(&self, path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>) -> Result<u64, E> {
        fault_io!("spool.create").map_err(|source| io_error(path, source))?;
        // One that is written over is cut at its end only: a file that was cut to nothing, ext4 sends to the disk when it is closed.
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(|source| io_error(path, source))?;
        self.owner.apply(&file).map_err(|source| io_error(path, source))?;
        let mut out = BufWriter::with_capacity(IO_BUFFER_BYTES, file);
        write(&mut out)?;
        let mut file = out.into_inner().map_err(|e| io_error(path, e.into_error()))?;
        fault_io!("spool.written").map_err(|source| io_error(path, source))?;
        let bytes = file.stream_position().map_err(|source| io_error(path, source))?;
        if file.metadata().map_err(|source| io_error(path, source))?.len() != bytes {
            file.set_len(bytes).map_err(|source| io_error(path, source))?;
        }
        Ok(bytes)
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.directory.join(format!("spool-{:016x}-{:016x}.ltx", entry.first, entry.last))
    }

    fn reader(&self, entry: &Entry) -> Result<Reader<BufReader<File>>, SpoolError> {
        let path = self.path(entry);
        let file = File::open(&path).map_err(|source| io_error(&path, source))?;
        // A small entry costs a small buffer: many are merged at once.
        let capacity = usize::try_from(entry.bytes).unwrap_or(usize::MAX).clamp(LEAST_BUFFER_BYTES, IO_BUFFER_BYTES);
        Ok(Reader::new(BufReader::with_capacity(capacity, file)))
    }
}

/// The header of an entry before it has a TXID of its own: TXIDs are given when a batch is frozen.
///
/// In their place stand the entry's own numbers, so that one under another's name is noticed.
pub(crate) fn entry_header(
    page_size: crate::types::PageSize,
    commit_pages: u32,
    timestamp: TimestampMs,
    node_id: u64,
    number: u64,
) -> Header {
    let placeholder = placeholder(number);
    let mut header = Header::new(page_size, commit_pages, placeholder, placeholder, timestamp);
    header.node_id = node_id;
    header
}

fn placeholder(number: u64) -> Txid {
    Txid::new(number.saturating_add(2)).unwrap_or(Txid::FIRST)
}

fn attempt_name(txid: Txid) -> String {
    format!("attempt-{txid}.ltx")
}

fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (first, last) = name.strip_prefix("spool-")?.strip_suffix(".ltx")?.split_once('-')?;
    let number = |s: &str| if s.len() == 16 { u64::from_str_radix(s, 16).ok() } else { None };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

fn read_header(path: &Path) -> Result<Header, SpoolError> {
    use std::io::Read;
    let mut bytes = [0; crate::ltx::HEADER_BYTES];
    File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).map_err(|source| io_error(path, source))?;
    Header::decode(&bytes).map_err(|source| SpoolError::Ltx { path: path.to_owned(), source })
}

fn remove(path: &Path) -> Result<(), SpoolError> {
    fault_io!("spool.remove").map_err(|source| io_error(path, source))?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path, error)),
        _ => Ok(()),
    }
}

fn io_error(path: &Path, source: io::Error) -> SpoolError {
    SpoolError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ltx::Encoder;
    use crate::types::{PageNo, PageSize};

    fn append(spool: &mut Spool, pages: &[(u32, u8)]) -> Result<(), SpoolError> {
        let header = entry_header(PageSize::MIN, 100, TimestampMs(1), 7, spool.next());
        spool.append(|out| {
            let mut encoder = Encoder::new(out, &header).unwrap();
            for (number, fill) in pages {
                encoder.page(PageNo::new(*number).unwrap(), &[*fill; 512]).unwrap();
            }
            encoder.finish().unwrap();
            Ok(())
        })
    }

    fn contents(spool: &Spool) -> Vec<(u32, u8)> {
        let (readers, header) = spool.readers().unwrap().unwrap();
        let merged = merge(readers, &header, Vec::new()).unwrap();
        let mut reader = Reader::new(merged.out.as_slice());
        let (mut pages, mut buf) = (Vec::new(), Vec::new());
        while let Some(number) = reader.next_page(&mut buf).unwrap() {
            pages.push((number.get(), buf[0]));
        }
        pages
    }

    #[test]
    fn many_entries_are_merged_into_few_and_read_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), OwnerMode::of(dir.path()).unwrap(), u64::MAX, 0, 0, None).unwrap();
        for i in 0..100_u32 {
            append(&mut spool, &[(1, i as u8), (2 + i % 7, i as u8)]).unwrap();
            spool.merge_waiting().unwrap();
            assert!(spool.entries.len() <= MOST_ENTRIES);
        }
        let expected = vec![(1, 99), (2, 98), (3, 99), (4, 93), (5, 94), (6, 95), (7, 96), (8, 97)];
        assert_eq!(contents(&spool), expected);
        let again = Spool::open(dir.path(), OwnerMode::of(dir.path()).unwrap(), u64::MAX, spool.first(), spool.next(), None).unwrap();
        assert_eq!(contents(&again), expected);
    }

    #[test]
    fn entries_are_few_where_nobody_merges() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), OwnerMode::of(dir.path()).unwrap(), u64::MAX, 0, 0, None).unwrap();
        for i in 0..500_u32 {
            append(&mut spool, &[(1, i as u8), (2 + i % 7, i as u8)]).unwrap();
            assert!(spool.entries.len() <= MOST_UNMERGED);
        }
        assert_eq!(contents(&spool)[0], (1, 499_u32 as u8));
        let again = Spool::open(dir.path(), OwnerMode::of(dir.path()).unwrap(), u64::MAX, spool.first(), spool.next(), None).unwrap();
        assert_eq!(contents(&again), contents(&spool));
    }

    #[test]
    fn a_missing_entry_is_an_error_and_strays_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), OwnerMode::of(dir.path()).unwrap(), u64::MAX, 5, 5, None).unwrap();
        append(&mut spool, &[(1, 1)]).unwrap();
        append(&mut spool, &[(1, 2)]).unwrap();
        std::fs::write(dir.path().join("half.tmp"), b"x").unwrap();
        assert!(matches!(
            Spool::open(dir.path(), OwnerMode::of(dir.path()).unwrap(), u64::MAX, 5, 8, None),
            Err(SpoolError::Missing { first: 7, last: 7, .. })
        ));
        assert!(!dir.path().join("half.tmp").exists());
        // What the control file does not name never happened.
        let shorter = Spool::open(dir.path(), OwnerMode::of(dir.path()).unwrap(), u64::MAX, 5, 6, None).unwrap();
        assert_eq!(contents(&shorter), [(1, 1)]);
    }

    #[test]
    fn the_limit_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), OwnerMode::of(dir.path()).unwrap(), 300, 0, 0, None).unwrap();
        append(&mut spool, &[(1, 1)]).unwrap();
        assert!(matches!(append(&mut spool, &[(1, 1)]), Err(SpoolError::Full { .. })));
    }
}
