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

mod error;
mod merging;
mod out;
mod waits;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub(crate) use self::error::SpoolError;
use self::error::io_error;
use self::merging::Held;
pub(crate) use self::merging::{Made, Merged, Merging};
use self::out::Room;
pub(crate) use self::out::{Out, Stored, is_disk_full};
pub(crate) use self::waits::Waits;
use crate::fault::{fault_io, fault_point};
use crate::ltx::{Header, Reader};
use crate::replicator::local::OwnerMode;
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

/// All entries to be merged, oldest first, and the newest one's header.
#[cfg(test)]
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
    held: Held,
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
        // Others that have it open do without what they were making.
        remove_merging(directory)?;
        Self::load(directory, owner, limits, first, next, keep_attempt)
    }

    fn load(
        directory: &Path,
        owner: OwnerMode,
        limits: Limits,
        first: u64,
        next: u64,
        keep_attempt: Option<Txid>,
    ) -> Result<Self, SpoolError> {
        let (found, attempt_bytes) = sweep(directory, first, next, keep_attempt)?;
        let mut spool = Self {
            directory: directory.to_owned(),
            owner,
            limits,
            entries: VecDeque::new(),
            next,
            attempt_bytes,
            spare: Vec::new(),
            held: Held::default(),
        };
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
        Self::load(&self.directory, self.owner, self.limits, first, next, keep_attempt)
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
        self.unheld() > MOST_ENTRIES
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
            taken_bytes,
            copies,
            limit_bytes: self.limits.disk_bytes,
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
        let stored = write_file(&path, &self.owner, room, write).inspect_err(|_| drop(std::fs::remove_file(&path)))?;
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
        while self.unheld() >= MOST_UNMERGED {
            self.merge_waiting()?;
        }
        Ok(())
    }

    /// Merges the newest entries while that is cheap.
    pub(crate) fn merge_waiting(&mut self) -> Result<(), SpoolError> {
        let Some(merging) = self.merge_newest()? else { return Ok(()) };
        self.take(merging.run()).map(drop)
    }

    /// How many of the newest entries are worth merging, of so many that may be.
    fn cheap_run(&self, free: usize) -> Option<usize> {
        if free <= MOST_ENTRIES {
            return None;
        }
        let mut run_bytes = 0;
        let mut run = 0;
        for entry in self.entries.iter().rev().take(free.min(MOST_UNMERGED)) {
            if run >= 2 && entry.bytes > 2 * run_bytes && free - run < MOST_ENTRIES {
                break;
            }
            run_bytes += entry.bytes;
            run += 1;
        }
        Some(run)
    }

    /// How many entries nobody in this process is merging.
    fn unheld(&self) -> usize {
        let below = self.held.below();
        self.entries.iter().rev().take_while(|entry| entry.first >= below).count()
    }

    /// An entry's file is not needed any more.
    fn discard(&mut self, input: &Entry) -> Result<(), SpoolError> {
        let path = self.path(input);
        let spare_bytes = self.spare_bytes() + input.bytes;
        if input.bytes <= MOST_SPARE_BYTES && self.spare.len() < MOST_SPARES && spare_bytes <= self.limits.disk_bytes / SPARE_PART {
            self.spare.push(Spare { path, bytes: input.bytes });
            return Ok(());
        }
        remove(&path)
    }

    /// Readers of all entries, oldest first, and the newest entry's header; `None` when empty.
    #[cfg(test)]
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
        let made = write_file(&temporary, &self.owner, room, write).and_then(|stored| {
            if let Stored::File(_) = stored {
                std::fs::rename(&temporary, path).map_err(|source| io_error(path, source))?;
            }
            fault_point!("spool.renamed");
            Ok(stored)
        });
        // The error to report is the first one; a temporary file left over is removed at the next open.
        made.inspect_err(|_| drop(std::fs::remove_file(&temporary)))
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

/// A file of a directory, made by `write`.
fn write_file<E: From<SpoolError>>(
    path: &Path,
    owner: &OwnerMode,
    room: Room,
    write: impl FnOnce(&mut Out) -> Result<(), E>,
) -> Result<Stored, E> {
    let mut out = Out::create(path, owner, room).map_err(|source| io_error(path, source))?;
    let written = write(&mut out);
    if let Some(bytes) = out.over_limit_bytes() {
        return Err(room.over_limit(path, bytes).into());
    }
    written?;
    Ok(out.finish().map_err(|source| io_error(path, source))?)
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
        } else if name.starts_with("spool-") || name.starts_with("attempt-") || name.ends_with(".tmp") && !name.starts_with(merging::PREFIX)
        {
            remove(&item.path())?;
        }
    }
    Ok((found, attempt_bytes))
}

/// Removes what processes were making that are gone.
fn remove_merging(directory: &Path) -> Result<(), SpoolError> {
    for item in std::fs::read_dir(directory).map_err(|source| io_error(directory, source))? {
        let item = item.map_err(|source| io_error(directory, source))?;
        if item.file_name().to_str().is_some_and(|name| name.starts_with(merging::PREFIX)) {
            remove(&item.path())?;
        }
    }
    Ok(())
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
