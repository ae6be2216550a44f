//! An ordered, crash-safe, bounded queue of LTX files on the local disk.
//!
//! Here goes what the WAL cannot keep any longer and the bucket does not have yet. An entry is a file `spool-<first>-<last>.ltx`, named by
//! the sequence numbers it covers; it counts once the control file names them. Entries that wait are merged, newest page wins: an outage
//! costs disk in the order of the pages that changed, not of the writes made.
//!
//! A batch that was sent, or may have been, is kept apart as `attempt-<txid>.ltx`, byte for byte, and never merged.
//!
//! All of it, what is being made included, stays below a limit of bytes, and below what it leaves free on its disk. What a full disk does not
//! take is kept in memory, up to another limit, so that SQLite need not be held up: should the process die meanwhile, the entry that the
//! control file names is missed at the next open, and the full state follows.

mod out;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use self::out::Room;
pub(crate) use self::out::{Out, Stored, is_disk_full};
use crate::fault::{fault_io, fault_point};
use crate::ltx::{Header, LtxError, Reader, merge};
use crate::replicator::local::OwnerMode;
use crate::replicator::stamp::mtime_ns;
use crate::types::{TimestampMs, Txid};

/// Entries beyond this many are merged when the uploader looks.
const MOST_ENTRIES: usize = 8;
/// With this many whoever adds one merges them: each commit outside a shared WAL adds one, faster than the uploader may come to look. Bounds the
/// descriptors that a merge, or building a batch, needs.
const MOST_UNMERGED: usize = 32;
const IO_BUFFER_BYTES: usize = 64 * 1024;
const LEAST_BUFFER_BYTES: usize = 4 * 1024;
/// Files that are kept to be written over, how large one may be, and the part of the limit that they may have.
const MOST_SPARES: usize = MOST_UNMERGED;
const MOST_SPARE_BYTES: u64 = 64 * 1024;
const SPARE_PART: u64 = 16;
/// That much may wait on a disk that has hardly anything left, too.
const ALWAYS_BYTES: u64 = 1024 * 1024;

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
    #[error("spool {directory}: what waits and its sending take {needed_bytes} bytes, over the limit of {limit_bytes} (max_local)")]
    Full { directory: PathBuf, needed_bytes: u64, limit_bytes: u64 },
    /// It takes more of its disk than it leaves to everybody else.
    #[error("spool {directory}: {bytes} bytes wait there, and only {free_bytes} are left on that disk")]
    Crowding { directory: PathBuf, bytes: u64, free_bytes: u64 },
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
            Self::Ltx { .. } | Self::Missing { .. } | Self::Foreign { .. } | Self::Full { .. } | Self::Crowding { .. } => true,
        }
    }

    /// More waits than there is room for.
    pub(crate) fn is_out_of_room(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Crowding { .. } => true,
            Self::Io { source, .. } | Self::Ltx { source: LtxError::Io(source), .. } => is_disk_full(source),
            Self::Ltx { .. } | Self::Missing { .. } | Self::Foreign { .. } => false,
        }
    }
}

/// All entries to be merged, oldest first, and the newest one's header.
pub(crate) type Contents = (Vec<Reader<Input>>, Header);

/// An entry that is read.
pub(crate) enum Input {
    File(BufReader<File>),
    Memory(Cursor<Bytes>),
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buf),
            Self::Memory(bytes) => bytes.read(buf),
        }
    }
}

/// What the spool may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// All files together, those that are being made included.
    pub(crate) disk_bytes: u64,
    /// What a full disk does not take.
    pub(crate) memory_bytes: u64,
}

/// One file, or what takes its place.
#[derive(Clone, Debug)]
struct Entry {
    first: u64,
    last: u64,
    bytes: u64,
    /// It is here and not on the disk, which was full.
    memory: Option<Bytes>,
}

impl Entry {
    const fn is_on_disk(&self) -> bool {
        self.memory.is_none()
    }

    fn stored(self, stored: Stored) -> Self {
        Self { bytes: stored.bytes(), memory: stored.into_memory(), ..self }
    }
}

/// A file that nothing needs.
#[derive(Debug)]
struct Spare {
    path: PathBuf,
    bytes: u64,
}

/// What a spool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waits {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// When the oldest file was written, where that was looked at.
    pub(crate) oldest_ms: Option<i64>,
}

impl Waits {
    /// What lies in the directory of these numbers, for whoever looks from outside. Nothing is touched.
    pub(crate) fn beside(directory: &Path, first: u64, next: u64) -> Self {
        let mut waits = Self::default();
        for item in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = item.file_name();
            // One that has gone meanwhile does not wait any more.
            let Some(metadata) =
                name.to_str().and_then(parse_name).filter(|(a, b)| first <= *a && *b < next).and_then(|_| item.metadata().ok())
            else {
                continue;
            };
            let written_ms = mtime_ns(&metadata) / 1_000_000;
            waits.files += 1;
            waits.bytes += metadata.len();
            waits.oldest_ms = Some(waits.oldest_ms.map_or(written_ms, |oldest| oldest.min(written_ms)));
        }
        waits
    }
}

/// The queue of one database.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: PathBuf,
    owner: OwnerMode,
    limits: Limits,
    entries: VecDeque<Entry>,
    next: u64,
    /// What the batch that is being sent takes on the disk.
    attempt_bytes: u64,
    /// Files of entries that were merged into others, to be written over: where commits are spooled one by one, making a file and removing it costs
    /// more than filling it. They keep their names, under which the next open removes them.
    spare: Vec<Spare>,
}

impl Spool {
    /// Opens the queue, which must hold exactly the sequence numbers `first..next`. What else lies in the directory is removed, but for
    /// the attempt of `keep_attempt`.
    pub(crate) fn open(
        directory: &Path,
        owner: OwnerMode,
        limits: Limits,
        first: u64,
        next: u64,
        keep_attempt: Option<Txid>,
    ) -> Result<Self, SpoolError> {
        let (found, attempt_bytes) = sweep(directory, first, next, keep_attempt)?;
        let mut spool =
            Self { directory: directory.to_owned(), owner, limits, entries: VecDeque::new(), next, attempt_bytes, spare: Vec::new() };
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

    /// The queue as another process has left it.
    pub(crate) fn reopen(&self, first: u64, next: u64, keep_attempt: Option<Txid>) -> Result<Self, SpoolError> {
        Self::open(&self.directory, self.owner, self.limits, first, next, keep_attempt)
    }

    /// From here on a disk that is full is an error.
    pub(crate) const fn keep_nothing_in_memory(&mut self) {
        self.limits.memory_bytes = 0;
    }

    /// Whether a full disk has left something in memory.
    pub(crate) fn has_in_memory(&self) -> bool {
        self.entries.iter().any(|entry| !entry.is_on_disk())
    }

    /// Fails where an entry is not what it is called: another database's, or another of this one, put here by somebody.
    pub(crate) fn check_node(&self, node_id: u64) -> Result<(), SpoolError> {
        for entry in &self.entries {
            let path = self.path(entry);
            let header = self.header(entry)?;
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

    /// What waits, in memory or on the disk.
    pub(crate) fn waits(&self) -> Waits {
        Waits { files: self.entries.len() as u64, bytes: self.entries.iter().map(|e| e.bytes).sum(), oldest_ms: None }
    }

    /// What the entries take of the disk.
    fn bytes(&self) -> u64 {
        self.entries.iter().filter(|e| e.is_on_disk()).map(|e| e.bytes).sum()
    }

    /// What there is room for: in a file beside all that is there or, with two copies, in one that will be there twice as the others will.
    fn room(&self, copies: u64) -> Room {
        let others_bytes = self.attempt_bytes.saturating_add(self.spare_bytes());
        let taken_bytes = others_bytes.saturating_add(copies.saturating_mul(self.bytes()));
        let in_memory: u64 = self.entries.iter().filter(|e| !e.is_on_disk()).map(|e| e.bytes).sum();
        Room {
            disk_bytes: self.limits.disk_bytes.saturating_sub(taken_bytes) / copies,
            memory_bytes: self.limits.memory_bytes.saturating_sub(in_memory),
        }
    }

    fn spare_bytes(&self) -> u64 {
        self.spare.iter().map(|spare| spare.bytes).sum()
    }

    fn remove_spare(&mut self) {
        for spare in self.spare.drain(..) {
            // One that cannot be removed is removed at the next open.
            let _ = std::fs::remove_file(spare.path);
        }
    }

    /// What waits must be able to be merged, and sent.
    fn make_room(&mut self) {
        if self.room(1).disk_bytes < self.bytes() {
            self.remove_spare();
        }
    }

    fn over_limit(&self, bytes: u64) -> SpoolError {
        let others_bytes = self.attempt_bytes.saturating_add(self.spare_bytes());
        let needed_bytes = others_bytes.saturating_add(self.bytes().saturating_add(bytes).saturating_mul(2));
        SpoolError::Full { directory: self.directory.clone(), needed_bytes, limit_bytes: self.limits.disk_bytes }
    }

    /// Adds an entry, which `write` encodes into the file given to it.
    ///
    /// Fails where there is no room for it, or too little left behind it; the caller then gives the whole queue up.
    pub(crate) fn append<E: From<SpoolError>>(&mut self, write: impl FnOnce(&mut Out) -> Result<(), E>) -> Result<(), E> {
        // Before it and not after it: what is merged must have been named by the control file.
        self.bound()?;
        let entry = Entry { first: self.next, last: self.next, bytes: 0, memory: None };
        // Nobody looks at it before the control file names its number, so that it needs no rename to be there as a whole.
        let path = self.path(&entry);
        let room = self.room(2);
        if let Some(spare) = self.spare.pop() {
            // Where it has gone one is made.
            let _ = std::fs::rename(spare.path, &path);
        }
        // What waits is written once more when it is merged or sent, and both are there then.
        let stored = self.write_file(&path, room, write).inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        if let Stored::Memory(_) = stored {
            self.remove_spare();
        }
        self.entries.push_back(entry.stored(stored));
        self.next += 1;
        Ok(self.leave_room_for_others()?)
    }

    /// Fails where the spool takes more of its disk than is left there: before it is full for SQLite as well.
    fn leave_room_for_others(&self) -> Result<(), SpoolError> {
        let bytes = self.bytes() + self.spare_bytes();
        if bytes <= ALWAYS_BYTES {
            return Ok(());
        }
        // Where it does not say, its own error does.
        let Ok(disk) = rustix::fs::statvfs(&self.directory) else { return Ok(()) };
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        if bytes > free_bytes { Err(SpoolError::Crowding { directory: self.directory.clone(), bytes, free_bytes }) } else { Ok(()) }
    }

    /// Puts what had to stay in memory onto the disk, as far as there is room now.
    pub(crate) fn settle(&mut self) {
        for at in 0..self.entries.len() {
            let Some(entry) = self.entries.get(at).filter(|e| !e.is_on_disk()).cloned() else { continue };
            let (path, bytes) = (self.path(&entry), entry.memory.clone().unwrap_or_default());
            let room = Room { memory_bytes: 0, ..self.room(2) };
            let stored = self.create_in(&path, room, |out| out.write_all(&bytes).map_err(|source| io_error(&path, source)));
            let (Ok(stored), Some(place)) = (stored, self.entries.get_mut(at)) else { return };
            *place = entry.stored(stored);
        }
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
        self.make_room();
        fault_point!("merge.begin");
        let inputs: Vec<Entry> = self.entries.range(keep..).cloned().collect();
        let (Some(oldest), Some(newest)) = (inputs.first(), inputs.last()) else { return Ok(()) };
        let output = Entry { first: oldest.first, last: newest.last, bytes: 0, memory: None };
        let readers = inputs.iter().map(|e| self.reader(e)).collect::<Result<Vec<_>, _>>()?;
        let mut header = self.header(newest)?;
        header.min_txid = placeholder(oldest.first);
        let output_path = self.path(&output);
        let stored =
            self.create(&output_path, |out| merge(readers, &header, out).map(drop).map_err(|source| SpoolError::of(&output_path, source)))?;
        fault_point!("merge.written");
        self.entries.truncate(keep);
        self.entries.push_back(output.stored(stored));
        // One that cannot be removed is removed at the next open.
        inputs.iter().filter(|input| input.is_on_disk()).try_for_each(|input| {
            let path = self.path(input);
            let spare_bytes = self.spare_bytes() + input.bytes;
            if input.bytes <= MOST_SPARE_BYTES && self.spare.len() < MOST_SPARES && spare_bytes <= self.limits.disk_bytes / SPARE_PART {
                self.spare.push(Spare { path, bytes: input.bytes });
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
        Ok(Some((readers, self.header(newest)?)))
    }

    /// Forgets all entries. Their files go when the caller has saved that they are not needed: see `remove_stale`.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Removes the files of entries below a sequence number, and attempts but for one.
    pub(crate) fn remove_stale(&mut self, keep_attempt: Option<Txid>) -> Result<(), SpoolError> {
        self.remove_spare();
        (_, self.attempt_bytes) = sweep(&self.directory, self.first(), self.next, keep_attempt)?;
        Ok(())
    }

    /// The bytes of an attempted batch are not needed any more. A file that stays behind is removed at the next open.
    pub(crate) fn remove_attempt(&mut self, txid: Txid) {
        let _ = std::fs::remove_file(self.attempt_path(txid));
        self.attempt_bytes = 0;
    }

    /// Whether there is a file of an attempted batch.
    pub(crate) const fn has_attempt(&self) -> bool {
        self.attempt_bytes > 0
    }

    /// Keeps the bytes of an attempted batch, of which there is one at a time.
    pub(crate) fn create_attempt<E: From<SpoolError>>(
        &mut self,
        txid: Txid,
        write: impl FnOnce(&mut Out) -> Result<(), E>,
    ) -> Result<Stored, E> {
        self.attempt_bytes = 0;
        self.make_room();
        let stored = self.create(&self.attempt_path(txid), write)?;
        self.attempt_bytes = if let Stored::File(bytes) = stored { bytes } else { 0 };
        Ok(stored)
    }

    /// Where the bytes of an attempted batch are kept.
    pub(crate) fn attempt_path(&self, txid: Txid) -> PathBuf {
        self.directory.join(attempt_name(txid))
    }

    /// Creates a file in the directory under its final name, whole or not at all; what a full disk does not take stays in memory.
    fn create<E: From<SpoolError>>(&self, path: &Path, write: impl FnOnce(&mut Out) -> Result<(), E>) -> Result<Stored, E> {
        self.create_in(path, self.room(1), write)
    }

    fn create_in<E: From<SpoolError>>(&self, path: &Path, room: Room, write: impl FnOnce(&mut Out) -> Result<(), E>) -> Result<Stored, E> {
        let temporary = path.with_extension("tmp");
        let made = self.write_file(&temporary, room, write).and_then(|stored| {
            if let Stored::File(_) = stored {
                std::fs::rename(&temporary, path).map_err(|source| io_error(path, source))?;
            }
            fault_point!("spool.renamed");
            Ok(stored)
        });
        // The error to report is the first one; a temporary file left over is removed at the next open.
        made.inspect_err(|_| drop(std::fs::remove_file(&temporary)))
    }

    fn write_file<E: From<SpoolError>>(&self, path: &Path, room: Room, write: impl FnOnce(&mut Out) -> Result<(), E>) -> Result<Stored, E> {
        let mut out = Out::create(path, &self.owner, room).map_err(|source| io_error(path, source))?;
        let written = write(&mut out);
        if let Some(bytes) = out.over_limit_bytes() {
            return Err(self.over_limit(bytes).into());
        }
        written?;
        Ok(out.finish().map_err(|source| io_error(path, source))?)
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.directory.join(format!("spool-{:016x}-{:016x}.ltx", entry.first, entry.last))
    }

    fn header(&self, entry: &Entry) -> Result<Header, SpoolError> {
        let path = self.path(entry);
        let Some(bytes) = &entry.memory else { return read_header(&path) };
        let mut start = [0; crate::ltx::HEADER_BYTES];
        bytes.as_ref().read_exact(&mut start).map_err(|source| io_error(&path, source))?;
        Header::decode(&start).map_err(|source| SpoolError::Ltx { path, source })
    }

    fn reader(&self, entry: &Entry) -> Result<Reader<Input>, SpoolError> {
        if let Some(bytes) = &entry.memory {
            return Ok(Reader::new(Input::Memory(Cursor::new(bytes.clone()))));
        }
        let path = self.path(entry);
        let file = File::open(&path).map_err(|source| io_error(&path, source))?;
        // A small entry costs a small buffer: many are merged at once.
        let capacity = usize::try_from(entry.bytes).unwrap_or(usize::MAX).clamp(LEAST_BUFFER_BYTES, IO_BUFFER_BYTES);
        Ok(Reader::new(Input::File(BufReader::with_capacity(capacity, file))))
    }
}

/// Removes what lies in the directory beside the entries of some sequence numbers and one attempt. Returns those entries, and the attempt's bytes.
fn sweep(directory: &Path, first: u64, next: u64, keep_attempt: Option<Txid>) -> Result<(Vec<Entry>, u64), SpoolError> {
    let (mut found, mut attempt_bytes) = (Vec::new(), 0);
    let read = std::fs::read_dir(directory).map_err(|source| io_error(directory, source))?;
    for item in read {
        let item = item.map_err(|source| io_error(directory, source))?;
        let name = item.file_name();
        let Some(name) = name.to_str() else { continue };
        let bytes = || item.metadata().map(|m| m.len()).map_err(|source| io_error(&item.path(), source));
        if let Some((first, last)) = parse_name(name).filter(|(a, b)| first <= *a && *b < next) {
            found.push(Entry { first, last, bytes: bytes()?, memory: None });
        } else if keep_attempt.is_some_and(|txid| name == attempt_name(txid)) {
            attempt_bytes = bytes()?;
        } else if name.starts_with("spool-") || name.starts_with("attempt-") || name.ends_with(".tmp") {
            remove(&item.path())?;
        }
    }
    Ok((found, attempt_bytes))
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

    fn open(dir: &Path, disk_bytes: u64, first: u64, next: u64) -> Result<Spool, SpoolError> {
        Spool::open(dir, OwnerMode::of(dir).unwrap(), Limits { disk_bytes, memory_bytes: 0 }, first, next, None)
    }

    fn encode(out: &mut Out, header: &Header, pages: &[(u32, u8)]) -> Result<(), LtxError> {
        let mut encoder = Encoder::new(out, header)?;
        for (number, fill) in pages {
            encoder.page(PageNo::new(*number).unwrap(), &[*fill; 512])?;
        }
        encoder.finish().map(drop)
    }

    fn append(spool: &mut Spool, pages: &[(u32, u8)]) -> Result<(), SpoolError> {
        let header = entry_header(PageSize::MIN, 10_000, TimestampMs(1), 7, spool.next());
        spool.append(|out| encode(out, &header, pages).map_err(|error| SpoolError::of(Path::new("entry"), error)))
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
        let mut spool = open(dir.path(), u64::MAX, 0, 0).unwrap();
        for i in 0..100_u32 {
            append(&mut spool, &[(1, i as u8), (2 + i % 7, i as u8)]).unwrap();
            spool.merge_waiting().unwrap();
            assert!(spool.entries.len() <= MOST_ENTRIES);
        }
        let expected = vec![(1, 99), (2, 98), (3, 99), (4, 93), (5, 94), (6, 95), (7, 96), (8, 97)];
        assert_eq!(contents(&spool), expected);
        let again = open(dir.path(), u64::MAX, spool.first(), spool.next()).unwrap();
        assert_eq!(contents(&again), expected);
    }

    #[test]
    fn entries_are_few_where_nobody_merges() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(dir.path(), u64::MAX, 0, 0).unwrap();
        for i in 0..500_u32 {
            append(&mut spool, &[(1, i as u8), (2 + i % 7, i as u8)]).unwrap();
            assert!(spool.entries.len() <= MOST_UNMERGED);
        }
        assert_eq!(contents(&spool)[0], (1, 499_u32 as u8));
        let again = open(dir.path(), u64::MAX, spool.first(), spool.next()).unwrap();
        assert_eq!(contents(&again), contents(&spool));
    }

    #[test]
    fn a_missing_entry_is_an_error_and_strays_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(dir.path(), u64::MAX, 5, 5).unwrap();
        append(&mut spool, &[(1, 1)]).unwrap();
        append(&mut spool, &[(1, 2)]).unwrap();
        std::fs::write(dir.path().join("half.tmp"), b"x").unwrap();
        assert!(matches!(open(dir.path(), u64::MAX, 5, 8), Err(SpoolError::Missing { first: 7, last: 7, .. })));
        assert!(!dir.path().join("half.tmp").exists());
        // What the control file does not name never happened.
        let shorter = open(dir.path(), u64::MAX, 5, 6).unwrap();
        assert_eq!(contents(&shorter), [(1, 1)]);
    }

    fn bytes_in(dir: &Path) -> u64 {
        std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }

    /// What waits, what is being sent and what is in the making: whatever waits can still be merged, and sent.
    #[test]
    fn the_limit_is_kept() {
        const LIMIT_BYTES: u64 = 20_000;
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(dir.path(), LIMIT_BYTES, 0, 0).unwrap();
        let attempted = |spool: &mut Spool, bytes: usize| {
            spool.create_attempt(Txid::FIRST, |out| out.write_all(&vec![1; bytes]).map_err(|source| io_error(Path::new("attempt"), source)))
        };
        attempted(&mut spool, 5000).unwrap();
        let mut number = 0;
        let full = loop {
            number += 1;
            match append(&mut spool, &[(number, 1), (number + 1000, 2)]) {
                Ok(()) => {
                    assert!(2 * spool.bytes() + spool.spare_bytes() + 5000 <= LIMIT_BYTES);
                    assert_eq!(spool.bytes() + spool.spare_bytes() + 5000, bytes_in(dir.path()));
                    spool.merge_waiting().unwrap();
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(full, SpoolError::Full { needed_bytes: LIMIT_BYTES.., limit_bytes: LIMIT_BYTES, .. }), "{full}");
        assert!(spool.bytes() > 6000 && contents(&spool).len() == 2 * (number as usize - 1));
        spool.remove_attempt(Txid::FIRST);
        append(&mut spool, &[(1, 3)]).unwrap();
        // A batch of all that waits fits, and a larger one stops where the limit is.
        let waiting = usize::try_from(spool.bytes()).unwrap();
        attempted(&mut spool, waiting).unwrap();
        assert!(bytes_in(dir.path()) <= LIMIT_BYTES);
        let rest = usize::try_from(LIMIT_BYTES - spool.bytes() - spool.spare_bytes()).unwrap();
        assert!(matches!(attempted(&mut spool, rest + 1), Err(SpoolError::Full { .. })));
        assert!(bytes_in(dir.path()) <= LIMIT_BYTES);
    }

    #[test]
    fn what_is_kept_in_memory_is_merged_and_put_onto_the_disk_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(dir.path(), u64::MAX, 0, 0).unwrap();
        for number in 1..20_u32 {
            append(&mut spool, &[(1, number as u8), (1 + number, 1)]).unwrap();
            // As if the disk had been full.
            let newest = spool.entries.pop_back().unwrap();
            let path = spool.path(&newest);
            let bytes = Bytes::from(std::fs::read(&path).unwrap());
            std::fs::remove_file(&path).unwrap();
            spool.entries.push_back(newest.stored(Stored::Memory(bytes)));
            spool.merge_waiting().unwrap();
        }
        let expected = contents(&spool);
        assert_eq!((expected.len(), expected[0]), (20, (1, 19)));
        assert!(spool.entries.iter().any(|entry| !entry.is_on_disk()));
        spool.settle();
        assert!(spool.entries.iter().all(Entry::is_on_disk));
        let again = open(dir.path(), u64::MAX, spool.first(), spool.next()).unwrap();
        assert_eq!(contents(&again), expected);
    }
}
