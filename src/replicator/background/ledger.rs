//! What the bucket has, remembered beside the control file (`bucket`), so that maintenance need not list it.
//!
//! ```text
//!   header    whose it is, whether it knows what the bucket has and since which claim, when all was listed and the last round ended, uploads since
//!   record    a file that was made (by an upload, or a merge), or one that was deleted; appended, 40 bytes each with a CRC-32
//! ```
//!
//! Nothing but a listing depends on it: it is not synced, may be deleted at any time, and what does not follow on what it says (a gap in the TXIDs, another
//! node's number, a checksum, a tail that is torn) makes it forget what the bucket has. Then it goes on counting uploads, so that many processes that live
//! for a moment come to a round, too. Only the process that uploads writes to it, on the uploader's thread.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::local::OwnerMode;
use crate::fault::{fault_io, fault_point};
use crate::logging::{Beside, event};
use crate::maintenance::Known;
use crate::store::{Level, Listed, LtxName};
use crate::types::{TimestampMs, Txid};

const MAGIC: u64 = u64::from_le_bytes(*b"RPLBKT01");
const WORDS: usize = 12;
const HEADER_BYTES: usize = WORDS * 8 + 4;
const RECORD_BYTES: usize = 40;
/// More files are listed each time: remembered, they would take too much memory in a round.
const MOST_FILES: usize = 1 << 18;
/// Records that the file may have beyond twice the files that they say of.
const SLACK: usize = 1024;

/// Whose bucket it is, and who has written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) replica_hash: u64,
    pub(super) node_id: u64,
}

/// What the file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    key: Key,
    /// Else it counts uploads and nothing more.
    is_known: bool,
    generation: Option<u64>,
    listed_ms: i64,
    /// When the last round ended.
    round_ms: i64,
    /// When a closing process was last asked to wait for a round.
    waited_ms: i64,
    /// What stands before this is part of the last round.
    mark: u64,
    /// So long was the file when this was written: where it is shorter, or torn before, a power loss has taken what the header counts on.
    end: u64,
    /// The newest TXID before the mark.
    last: u64,
    /// Uploads since the last round that have no record.
    uploads: u64,
}

impl Header {
    const fn unknown(key: Key) -> Self {
        let mark = HEADER_BYTES as u64;
        Self { key, is_known: false, generation: None, listed_ms: 0, round_ms: 0, waited_ms: 0, mark, end: mark, last: 0, uploads: 0 }
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let signed = i64::cast_unsigned;
        let words: [u64; WORDS] = [
            MAGIC,
            self.key.replica_hash,
            self.key.node_id,
            u64::from(self.is_known) | u64::from(self.generation.is_some()) << 1,
            self.generation.unwrap_or_default(),
            signed(self.listed_ms),
            signed(self.round_ms),
            signed(self.waited_ms),
            self.mark,
            self.end,
            self.last,
            self.uploads,
        ];
        let mut bytes = [0; HEADER_BYTES];
        for (to, word) in bytes.chunks_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        seal(&mut bytes);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let words = words(unsealed(bytes)?);
        let [MAGIC, replica_hash, node_id, flags, generation, listed, round, waited, mark, end, last, uploads] = words[..] else {
            return None;
        };
        Some(Self {
            key: Key { replica_hash, node_id },
            is_known: flags & 1 != 0,
            generation: (flags & 2 != 0).then_some(generation),
            listed_ms: listed.cast_signed(),
            round_ms: round.cast_signed(),
            waited_ms: waited.cast_signed(),
            mark,
            end,
            last,
            uploads,
        })
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|chunk| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))).collect()
}

/// Puts the checksum of what is before them into the last four bytes.
fn seal(bytes: &mut [u8]) {
    let (body, end) = bytes.split_at_mut(bytes.len().saturating_sub(4));
    end.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
}

fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (body, end) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    (crc32fast::hash(body).to_le_bytes() == end).then_some(body)
}

/// A file that appeared, or one that went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Record {
    Made(Listed),
    Gone(LtxName),
}

const MADE: u8 = 1;
const GONE: u8 = 2;

impl Record {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let (kind, file) = match self {
            Self::Made(file) => (MADE, *file),
            Self::Gone(name) => (GONE, Listed { name: *name, size_bytes: 0, timestamp: TimestampMs(0), timestamp_is_exact: false }),
        };
        let mut bytes = [0; RECORD_BYTES];
        let numbers = [file.name.min_txid.get(), file.name.max_txid.get(), file.size_bytes, file.timestamp.0.cast_unsigned()];
        for (to, number) in bytes.chunks_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        for (to, byte) in bytes.iter_mut().skip(32).zip([kind, file.name.level.get(), u8::from(file.timestamp_is_exact), 0]) {
            *to = byte;
        }
        seal(&mut bytes);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let body = unsealed(bytes)?;
        let [min, max, size_bytes, timestamp] = words(body.get(..32)?)[..] else { return None };
        let [kind, level, exact, _] = body.get(32..36)? else { return None };
        let name = LtxName { level: Level::new(*level)?, min_txid: Txid::new(min)?, max_txid: Txid::new(max)? };
        match *kind {
            MADE => Some(Self::Made(Listed {
                name,
                size_bytes,
                timestamp: TimestampMs(timestamp.cast_signed()),
                timestamp_is_exact: *exact != 0,
            })),
            GONE => Some(Self::Gone(name)),
            _ => None,
        }
    }

    const fn is_upload(&self) -> bool {
        matches!(self, Self::Made(Listed { name: LtxName { level: Level::ZERO, .. }, .. }))
    }
}

/// What is known to be in the file.
#[derive(Clone, Copy, Debug)]
struct Open {
    header: Header,
    /// Its end.
    bytes: u64,
    /// The newest TXID that was uploaded.
    last: u64,
    /// Uploads since the last round.
    since: u64,
}

/// A round is at work: what is uploaded meanwhile, which takes memory as long as it lasts.
#[derive(Debug, Default)]
struct Meanwhile {
    uploads: Vec<Listed>,
    /// Where the file ended when it began.
    mark: u64,
    /// What it knows counts for nothing.
    is_void: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    database: PathBuf,
    /// `None` before it was asked for; then whether there is one.
    open: Option<Option<Open>>,
    round: Option<Meanwhile>,
    /// Something was uploaded by this process since its last round.
    has_news: bool,
}

/// How much there is to do, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pending {
    /// Uploads since the last round; 0 where there is nothing to do.
    pub(super) uploads: u64,
    /// When the last round ended; 0 for never.
    pub(super) round_ms: i64,
    /// When a closing process was last asked to wait for one.
    pub(super) waited_ms: i64,
}

impl Ledger {
    pub(super) const fn new(path: PathBuf, database: PathBuf) -> Self {
        Self { path, database, open: None, round: None, has_news: false }
    }

    fn open(&mut self, key: Key) -> Option<Open> {
        let path = &self.path;
        *self.open.get_or_insert_with(|| read_end(path, key).ok().flatten())
    }

    /// The process has sent something, after what it had sent before.
    pub(super) fn uploaded(&mut self, key: Key, file: Listed) {
        let (min, max) = (file.name.min_txid.get(), file.name.max_txid.get());
        self.has_news = true;
        if let Some(round) = &mut self.round {
            round.uploads.push(file);
        }
        if self.open(key).is_none() {
            let header = Header::unknown(key);
            self.settle(|ledger| ledger.write(header, &[]));
        }
        let Some(open) = self.open(key) else { return };
        if max == open.last {
            // Sent again by a successor.
            return;
        }
        if open.header.is_known && (Some(min) != open.last.checked_add(1) || open.bytes > (2 * MOST_FILES * RECORD_BYTES) as u64) {
            event!(Debug, "local_file", Beside(&self.path); "{}: TXID {min} does not follow on {}", self.path.display(), open.last);
            self.forget();
        }
        self.settle(|ledger| ledger.count(&file));
    }

    fn count(&mut self, file: &Listed) -> io::Result<()> {
        let Some(Some(open)) = &mut self.open else { return Ok(()) };
        open.last = file.name.max_txid.get();
        open.since += 1;
        if open.header.is_known {
            append(&self.path, open.bytes, &Record::Made(*file).encode())?;
            open.bytes += RECORD_BYTES as u64;
            return Ok(());
        }
        (open.header.uploads, open.header.last) = (open.since, open.last);
        write_header(&self.path, &open.header)
    }

    /// Where the file cannot be written there is none.
    fn settle(&mut self, work: impl FnOnce(&mut Self) -> io::Result<()>) {
        if let Err(error) = work(self) {
            event!(Debug, "local_file", Beside(&self.path), cause = error; "{}: {error}", self.path.display());
            self.open = Some(None);
            if let Some(round) = &mut self.round {
                round.is_void = true;
            }
            // It may not be there. One that cannot be deleted has a gap before what comes next.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// What the bucket has is not known any more: it has to be listed.
    pub(super) fn forget(&mut self) {
        if let Some(round) = &mut self.round {
            round.is_void = true;
        }
        if let Some(Some(Open { header, since, last, .. })) = self.open
            && header.is_known
        {
            let Header { key, round_ms, waited_ms, .. } = header;
            let header = Header { round_ms, waited_ms, last, uploads: since, ..Header::unknown(key) };
            self.settle(|ledger| ledger.write(header, &[]));
        }
    }

    /// The same, also of what was not looked at yet.
    pub(super) fn forget_all(&mut self, key: Key) {
        self.open(key);
        self.forget();
    }

    /// There is something to do, although no batch was uploaded.
    pub(super) const fn has_news(&mut self) {
        self.has_news = true;
    }

    /// When the last round ended, of this process or one before; 0 for never.
    pub(super) fn round_ms(&mut self, key: Key) -> i64 {
        self.open(key).map_or(0, |open| open.header.round_ms)
    }

    pub(super) fn pending(&mut self, key: Key) -> Pending {
        match self.open(key) {
            _ if !self.has_news => Pending::default(),
            Some(open) => Pending { uploads: open.since.max(1), round_ms: open.header.round_ms, waited_ms: open.header.waited_ms },
            None => Pending { uploads: 1, ..Pending::default() },
        }
    }

    /// A closing process is asked to wait.
    pub(super) fn waits(&mut self, now_ms: i64) {
        self.settle(|ledger| {
            let Some(Some(open)) = &mut ledger.open else { return Ok(()) };
            open.header.waited_ms = now_ms;
            write_header(&ledger.path, &open.header)
        });
    }

    /// A round begins: what it may go by. `acked` is what was uploaded last.
    pub(super) fn begin(&mut self, key: Key, acked: Option<Txid>) -> Option<Known> {
        let open = self.open(key);
        let known = open.filter(|open| open.header.is_known && Txid::new(open.last) == acked).and_then(|open| read_all(&self.path, &open));
        if known.is_none() {
            self.forget();
        }
        self.round = Some(Meanwhile { mark: open.map_or(0, |open| open.bytes), ..Meanwhile::default() });
        known
    }

    /// Whether what the running round knows counts for nothing any more.
    pub(super) fn is_void(&self) -> bool {
        self.round.as_ref().is_none_or(|round| round.is_void)
    }

    /// A round has ended, and has left this behind; `None` where it has failed. Where nothing was listed `made` and `gone` is all that it has changed. Whether
    /// it is remembered.
    pub(super) fn end(&mut self, key: Key, known: Option<Known>, changed: Option<(&[Listed], &[LtxName])>, now_ms: i64) -> bool {
        let round = self.round.take().unwrap_or_default();
        self.has_news = !round.uploads.is_empty();
        let Some(known) = known.filter(|_| !round.is_void) else {
            self.forget();
            return false;
        };
        let is_appended = changed.is_some_and(|(made, gone)| self.append_round(&known, made, gone, &round, now_ms));
        if !is_appended {
            self.settle(|ledger| ledger.rewrite(key, known, &round, now_ms));
        }
        self.open.flatten().is_some_and(|open| open.header.is_known)
    }

    /// The round has failed, and has changed nothing.
    pub(super) fn give_up(&mut self) {
        self.has_news = self.round.take().is_some_and(|round| !round.uploads.is_empty());
    }

    /// False where it has to be written anew.
    fn append_round(&mut self, known: &Known, made: &[Listed], gone: &[LtxName], round: &Meanwhile, now_ms: i64) -> bool {
        let Some(Some(open)) = self.open else { return false };
        let records: Vec<u8> = made
            .iter()
            .map(|file| Record::Made(*file))
            .chain(gone.iter().map(|name| Record::Gone(*name)))
            .flat_map(|r| r.encode())
            .collect();
        let bytes = open.bytes + records.len() as u64;
        let most = HEADER_BYTES + (2 * (known.files.len() + round.uploads.len()) + SLACK) * RECORD_BYTES;
        if bytes > most as u64 {
            return false;
        }
        let since = round.uploads.len() as u64;
        let last = open.last.saturating_sub(since);
        let header = Header { generation: known.generation, round_ms: now_ms, mark: round.mark, end: bytes, last, ..open.header };
        let written = append(&self.path, open.bytes, &records).and_then(|()| write_header(&self.path, &header));
        self.open = Some(Some(Open { header, bytes, since, ..open }));
        written.is_ok()
    }

    fn rewrite(&mut self, key: Key, known: Known, round: &Meanwhile, now_ms: i64) -> io::Result<()> {
        let mut files: BTreeMap<LtxName, Listed> = known.files.into_iter().map(|file| (file.name, file)).collect();
        // What a listing has found of them is not uploaded again.
        for file in &round.uploads {
            files.remove(&file.name);
        }
        if files.len() + round.uploads.len() > MOST_FILES {
            return Err(io::Error::other(format!("{} files are too many to be remembered", files.len())));
        }
        let last = files.keys().map(|name| name.max_txid.get()).max().unwrap_or_default();
        let mark = (HEADER_BYTES + files.len() * RECORD_BYTES) as u64;
        let waited_ms = self.open.flatten().map_or(0, |open| open.header.waited_ms);
        let (generation, listed_ms) = (known.generation, known.listed.0);
        let header = Header { key, is_known: true, generation, listed_ms, round_ms: now_ms, waited_ms, mark, end: mark, last, uploads: 0 };
        let files: Vec<Listed> = files.into_values().chain(round.uploads.iter().copied()).collect();
        self.write(header, &files)?;
        if let Some(Some(open)) = &mut self.open {
            open.since = round.uploads.len() as u64;
            open.last = round.uploads.last().map_or(last, |file| file.name.max_txid.get());
        }
        Ok(())
    }

    /// Puts a new file in the place of what is there.
    fn write(&mut self, header: Header, files: &[Listed]) -> io::Result<()> {
        let mut bytes = header.encode().to_vec();
        for file in files {
            bytes.extend_from_slice(&Record::Made(*file).encode());
        }
        let draft = self.path.with_extension("tmp");
        fault_io!("ledger.write")?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&draft)?;
        OwnerMode::of(&self.database)?.apply(&file)?;
        file.write_all(&bytes)?;
        std::fs::rename(&draft, &self.path)?;
        fault_point!("ledger.written");
        self.open = Some(Some(Open { header, bytes: bytes.len() as u64, last: header.last, since: header.uploads }));
        Ok(())
    }
}

/// Puts bytes at the end, where the file is as it was left.
fn append(path: &Path, end: u64, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() < end {
        return Err(io::Error::other("it was changed by somebody else"));
    }
    fault_io!("ledger.append")?;
    file.write_all_at(bytes, end)
}

fn write_header(path: &Path, header: &Header) -> io::Result<()> {
    fault_io!("ledger.count")?;
    OpenOptions::new().write(true).open(path)?.write_all_at(&header.encode(), 0)
}

/// The header, and what was uploaded since the last round.
fn read_end(path: &Path, key: Key) -> io::Result<Option<Open>> {
    let file = File::open(path)?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let length = file.metadata()?.len();
    let Some(header) = Header::decode(&header).filter(|header| header.key == key && (HEADER_BYTES as u64..=length).contains(&header.mark))
    else {
        return Ok(None);
    };
    let mut open = Open { header, bytes: header.mark, last: header.last, since: header.uploads };
    for record in records(&file, header.mark, length)? {
        open.bytes += RECORD_BYTES as u64;
        if let Record::Made(upload) = record
            && record.is_upload()
        {
            (open.last, open.since) = (open.last.max(upload.name.max_txid.get()), open.since + 1);
        }
    }
    Ok(Some(open).filter(|open| open.bytes >= header.end))
}

/// What stands between two places, up to the first record that is torn.
fn records(file: &File, from: u64, to: u64) -> io::Result<Vec<Record>> {
    let most = (3 * MOST_FILES * RECORD_BYTES) as u64;
    let mut bytes = vec![0; usize::try_from(to.saturating_sub(from).min(most)).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes.chunks_exact(RECORD_BYTES).map_while(Record::decode).collect())
}

fn read_all(path: &Path, open: &Open) -> Option<Known> {
    let read = || -> io::Result<Vec<Record>> { records(&File::open(path)?, HEADER_BYTES as u64, open.bytes) };
    let records = read().ok()?;
    if (HEADER_BYTES + records.len() * RECORD_BYTES) as u64 != open.bytes {
        return None;
    }
    let mut files = BTreeMap::new();
    for record in records {
        match record {
            Record::Made(file) => drop(files.insert(file.name, file)),
            Record::Gone(name) => drop(files.remove(&name)),
        }
    }
    let Header { generation, listed_ms, .. } = open.header;
    let files: Vec<Listed> = files.into_values().collect();
    (files.len() <= MOST_FILES).then_some(Known { files, listed: TimestampMs(listed_ms), generation })
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
