//! The control file: what a database's replication must remember across a crash.
//!
//! One small file beside the database, `<database>-replicated/control`. Two slots are written in turn, each with a sequence number
//! and a CRC-32, so that a torn write leaves the older one. Its blocks exist from the start: saving needs no free disk space.
//! The layout is private to this version; an unknown one is treated as no control file at all: what the WAL does not prove is `diverged` then, and the
//! user decides.

pub(crate) mod slot;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use self::slot::{encode_slot, newest_slot};
use super::local::OwnerMode;
use super::looks::Looks;
use super::mark::{self, Mark};
use super::shared::{Locks, PAGE_BYTES, PAGE_OFFSET};
use crate::fault::{fault_io, fault_point};
use crate::types::{TimestampMs, Txid, WalPos};

const MAGIC: &[u8; 8] = b"RPLCTL03";
const SLOT_BYTES: usize = 1024;
const SLOTS_OFFSET: u64 = 1024;
const FILE_BYTES: usize = 4096;

/// Which file this is, so that a control file never speaks for another database put under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// When the file was made, in nanoseconds since the epoch: file systems soon give an inode's number to another file. 0 where not told.
    pub(crate) born_ns: u64,
}

/// What the bucket has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acked {
    pub(crate) txid: Txid,
    /// Where in the WAL that TXID ends.
    pub(crate) end: WalPos,
}

/// A batch that may be in the bucket: recorded before its first attempt, so that a successor sends the same bytes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) txid: Txid,
    /// Where its frames begin; used to build it again from the WAL where `in_file` is false.
    pub(crate) start: WalPos,
    pub(crate) end: WalPos,
    pub(crate) commit_pages: u32,
    pub(crate) timestamp_ms: i64,
    pub(crate) size_bytes: u64,
    /// The LTX file checksum.
    pub(crate) checksum: u64,
    /// Whether its bytes are in the spool directory.
    pub(crate) in_file: bool,
}

/// A full state that was sent by a request which could replace an object, and is not acknowledged: the request may still arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FullSent {
    pub(crate) txid: Txid,
    /// Not for the first time under this name: one of several states may end up there.
    pub(crate) again: bool,
}

/// The database file as it was when everything in the WAL had been captured. Equal later means: nobody wrote in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) size_bytes: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
    /// Header bytes 24..28 (change counter) and 92..96 (version-valid-for).
    pub(crate) header_words: [u32; 2],
    /// The header's write version says WAL.
    pub(crate) is_wal: bool,
    /// Taken so soon after the last write that a coarse clock could hide another one.
    pub(crate) too_fresh: bool,
    /// Which run of the machine it was taken in.
    pub(crate) boot: u64,
    /// SQLite had synced the file after its last write.
    pub(crate) synced: bool,
}

/// A rollback-mode transaction that has begun to write to the database file, and how its end can be told at the next open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum OpenTransaction {
    /// It has a journal, and its commit counts the change counter up.
    Journaled = 1,
    /// It has a journal; it follows another commit under one exclusive lock, which counted for both.
    Uncounted = 2,
    /// No journal on disk: a crash leaves what nobody can tell.
    Unprotected = 3,
}

impl OpenTransaction {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Journaled,
            2 => Self::Uncounted,
            3 => Self::Unprotected,
            _ => return None,
        })
    }
}

/// Why the full state has to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FullReason {
    /// The bucket has nothing yet.
    First = 1,
    /// The WAL was restarted, or the database file changed, by someone we did not see.
    ContinuityLost = 2,
    /// A power loss took commits that the bucket has.
    BucketAhead = 3,
    /// The local disk limit was reached, or local state could not be written.
    SpoolLost = 4,
    /// The bucket lost what it had acknowledged.
    BucketBehind = 5,
    /// Another tool wrote the bucket from this database.
    TakenOver = 6,
    /// The user declared the local file the truth.
    Adopted = 7,
    /// An upload of the full state was cut off.
    Unfinished = 8,
    /// The page size changed: files of two page sizes cannot follow each other.
    PageSize = 9,
    /// A transaction without a journal on disk was cut off: what it left nobody can tell.
    Unprotected = 10,
    /// A fault of ours ended replication.
    Fault = 11,
    /// The WAL is the one that was there, the database file under it is not.
    Exchanged = 12,
    /// The database was restored from its other replica, which has all that this one has.
    Restored = 13,
}

impl FullReason {
    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::First,
            2 => Self::ContinuityLost,
            3 => Self::BucketAhead,
            4 => Self::SpoolLost,
            5 => Self::BucketBehind,
            6 => Self::TakenOver,
            7 => Self::Adopted,
            8 => Self::Unfinished,
            9 => Self::PageSize,
            10 => Self::Unprotected,
            11 => Self::Fault,
            12 => Self::Exchanged,
            13 => Self::Restored,
            _ => return None,
        })
    }

    /// One word, for status and metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::ContinuityLost => "continuity_lost",
            Self::BucketAhead => "bucket_ahead",
            Self::SpoolLost => "spool_lost",
            Self::BucketBehind => "bucket_behind",
            Self::TakenOver => "taken_over",
            Self::Adopted => "adopted",
            Self::Unfinished => "unfinished",
            Self::PageSize => "page_size",
            Self::Unprotected => "unprotected",
            Self::Fault => "fault",
            Self::Exchanged => "exchanged",
            Self::Restored => "restored",
        }
    }

    /// For logs.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::First => "the bucket has nothing yet",
            Self::ContinuityLost => "the WAL was restarted or the database changed outside the extension",
            Self::BucketAhead => "a power loss took commits that the bucket still has",
            Self::SpoolLost => "the local spool was lost or its limit reached",
            Self::BucketBehind => "the bucket lost what it had acknowledged",
            Self::TakenOver => "taken over from another replication tool",
            Self::Adopted => "the local database was declared the truth",
            Self::Unfinished => "an earlier upload of the full state was cut off",
            Self::PageSize => "the page size changed",
            Self::Unprotected => "a transaction without a journal on disk (journal_mode OFF or MEMORY, or exclusive locking) was cut off",
            Self::Fault => "a fault in the extension had ended replication",
            Self::Restored => "the database was restored from its other replica, which had all that this one has",
            Self::Exchanged => "the database file is not the one that the WAL beside it belongs to: was a copy put in its place?",
        }
    }
}

/// The words of all reasons for a full state, in the order of their numbers, which begin with 1.
pub(crate) fn full_state_reasons() -> impl Iterator<Item = &'static str> {
    (1..=u8::MAX).map_while(FullReason::from_byte).map(FullReason::as_str)
}

/// A database restored to a point before the bucket's newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RestoredEarlier {
    pub(crate) txid: Txid,
    pub(crate) newest: Txid,
}

/// Another writer's object where ours was to be: nothing is sent any more until the user has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// The TXID that it ends with.
    pub(crate) txid: Txid,
    /// Who wrote it, as its header says; 0 for other tools.
    pub(crate) node_id: u64,
    /// When, as the store says.
    pub(crate) timestamp_ms: i64,
    pub(crate) size_bytes: u64,
}

impl Conflict {
    /// Who, when and what to do.
    pub(crate) fn message(&self, ours: u64) -> String {
        let who = if self.node_id == 0 { "no node id, so another tool".to_owned() } else { format!("node {:016x}", self.node_id) };
        format!(
            "another writer has written TXID {} ({} bytes, {who}, {}), and this one is node {ours:016x}: replication of this database stops, so that two \
             histories do not mix. What is committed here is not replicated any more. Stop one of the two. To go on with the other's history move this \
             file and what is beside it away and restore; to go on with this one declare it the truth with `replicated adopt`",
            self.txid,
            self.size_bytes,
            TimestampMs(self.timestamp_ms)
        )
    }
}

/// Everything that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) identity: Option<Identity>,
    /// Which replica this speaks of.
    pub(crate) replica_hash: u64,
    /// Marks our own objects; random, chosen once.
    pub(crate) node_id: u64,
    pub(crate) page_size: u32,
    pub(crate) acked: Option<Acked>,
    pub(crate) attempt: Option<Attempt>,
    /// Up to here every frame is in the bucket, in the attempt or in the spool.
    pub(crate) captured: Option<WalPos>,
    /// Everything of the captured generation is captured and SQLite was allowed to begin another.
    pub(crate) sealed: bool,
    /// The salts of the generation that the extension saw begin after the seal.
    pub(crate) next_salts: Option<[u32; 2]>,
    /// Sequence numbers of the spool's entries: first, and one past the last.
    pub(crate) spool_first: u64,
    pub(crate) spool_next: u64,
    pub(crate) stamp: Option<Stamp>,
    /// What writes to the database file now, or did when the process died.
    pub(crate) open_transaction: Option<OpenTransaction>,
    pub(crate) full: Option<FullReason>,
    pub(crate) restored_earlier: Option<RestoredEarlier>,
    /// The user declared the local file the truth over the bucket's history up to here.
    pub(crate) adopt: Option<Txid>,
    /// Whether the store refuses to replace objects; `None` before it was asked.
    pub(crate) fencing: Option<bool>,
    pub(crate) full_sent: Option<FullSent>,
    /// A level-0 file that the bucket had when it was looked at last.
    pub(crate) witness: Option<Txid>,
    /// Another writer has gone on; lasts until the file is declared the truth over that.
    pub(crate) conflict: Option<Conflict>,
    pub(crate) looks: Looks,
    /// The database file as it was found when it was neither provably newer nor provably unchanged: see `compare`.
    pub(crate) to_compare: Option<Stamp>,
}

/// The newest state in a control file, without a lock: each slot has a checksum.
pub(crate) fn peek(file: &File) -> Option<State> {
    let mut page = [0; FILE_BYTES];
    file.read_exact_at(&mut page, 0).ok()?;
    (page.get(..MAGIC.len())? == MAGIC.as_slice()).then(|| newest_slot(&page))?.map(|(_, state)| state)
}

/// The open control file.
#[derive(Debug)]
pub(crate) struct Control {
    file: Arc<File>,
    sequence: u64,
    /// What it said of the database file when it was opened.
    mark: Option<Mark>,
}

impl Control {
    /// Opens or creates the file. Nothing of it is to be read before a lock is held that keeps others from writing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        fault_io!("control.opened")?;
        Ok(Self { file: Arc::new(file), sequence: 0, mark: None })
    }

    /// The same where it is there.
    pub(crate) fn open_existing(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file: Arc::new(file), sequence: 0, mark: None })
    }

    /// The locks that lie in it.
    pub(crate) fn locks(&self) -> Locks {
        Locks::new(self.file())
    }

    /// Whether it has this version's layout. For whoever joins a process that has it open: what that one goes on with must not be made anew.
    pub(crate) fn is_of_this_version(&self) -> io::Result<bool> {
        let mut magic = [0; MAGIC.len()];
        self.file.read_exact_at(&mut magic, 0)?;
        Ok(&magic == MAGIC)
    }

    /// Makes it a control file where it is none, and reads the newest valid state, if there is one. For whoever opens it, with the lock for that held: the
    /// process that has given it up may have just saved.
    pub(crate) fn load(&mut self, owner: &OwnerMode) -> io::Result<Option<State>> {
        let mut page = [0; FILE_BYTES];
        if (self.file.metadata()?.len() as usize) >= FILE_BYTES {
            self.file.read_exact_at(&mut page, 0)?;
        }
        if page.get(..MAGIC.len()) != Some(MAGIC.as_slice()) {
            page = [0; FILE_BYTES];
            owner.apply(&self.file)?;
            self.file.write_all_at(&page, 0)?;
            fault_io!("control.made")?;
            self.file.write_all_at(MAGIC, 0)?;
        }
        let newest = newest_slot(&page);
        self.sequence = newest.as_ref().map_or(0, |(sequence, _)| *sequence);
        self.mark = Mark::read(&self.file);
        Ok(newest.map(|(_, state)| state))
    }

    /// Makes the page that processes share one that nobody has begun, and its blocks exist: a store to a hole of a full disk would be a signal to the host. For
    /// whoever opens it first.
    pub(crate) fn clear_page(&self) -> io::Result<()> {
        self.file.write_all_at(&[0; PAGE_BYTES], PAGE_OFFSET)
    }

    /// The state that another process has saved since this one has read or saved it. With the tail's lock held.
    pub(crate) fn newer(&mut self) -> io::Result<Option<State>> {
        let mut sequences = [0; 2];
        for (at, sequence) in sequences.iter_mut().enumerate() {
            let mut word = [0; 8];
            self.file.read_exact_at(&mut word, SLOTS_OFFSET + (at * SLOT_BYTES) as u64)?;
            *sequence = u64::from_le_bytes(word);
        }
        if sequences.iter().all(|sequence| *sequence <= self.sequence) {
            return Ok(None);
        }
        let mut page = [0; FILE_BYTES];
        self.file.read_exact_at(&mut page, 0)?;
        let Some((sequence, state)) = newest_slot(&page).filter(|(sequence, _)| *sequence > self.sequence) else { return Ok(None) };
        self.sequence = sequence;
        Ok(Some(state))
    }

    /// Writes the state into the older slot.
    pub(crate) fn save(&mut self, state: &State) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let slot = encode_slot(sequence, state);
        let offset = SLOTS_OFFSET + (sequence % 2) * SLOT_BYTES as u64;
        fault_io!("control.save")?;
        self.file.write_all_at(&slot, offset)?;
        self.sequence = sequence;
        fault_point!("control.saved");
        Ok(())
    }

    /// Whether the database file is another than the one that the last checkpoint left.
    pub(crate) fn was_exchanged(&self, now: &Stamp) -> bool {
        self.mark.is_some_and(|mark| mark.is_not(&Mark::of(now)))
    }

    /// What that one left, as far as it was noted.
    pub(crate) fn left(&self) -> Option<Stamp> {
        self.mark.map(|mark| mark.stamp())
    }

    /// Notes what the database file looks like, or that nothing is known.
    pub(crate) fn mark(&self, now: Option<&Stamp>) -> io::Result<()> {
        mark::write(&self.file, now.map(Mark::of))
    }

    /// The file, to be synced by whoever must not hold a lock meanwhile, or mapped. Not a second descriptor: closing one would drop the locks.
    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }
}

/// Tells replicas apart without keeping their URL. How the store is reached (endpoint, region) does not count: what it holds is compared anyway.
pub(crate) fn replica_hash(url: &str) -> u64 {
    let bucket_and_path = url.split('?').next().unwrap_or_default();
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, bucket_and_path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Option<State> {
        newest_slot(&std::fs::read(path).unwrap()).map(|(_, state)| state)
    }

    fn full_state() -> State {
        let pos = WalPos { salts: [1, u32::MAX], frame: 77, checksum: [5, 6] };
        let stamp =
            Stamp { size_bytes: 1, mtime_ns: -1, ctime_ns: 2, header_words: [3, 4], is_wal: true, too_fresh: true, boot: 5, synced: true };
        State {
            identity: Some(Identity { device: 3, inode: u64::MAX, born_ns: 4 }),
            replica_hash: 9,
            node_id: 10,
            page_size: 65536,
            acked: Some(Acked { txid: Txid::FIRST, end: pos }),
            attempt: Some(Attempt {
                txid: Txid::FIRST.next(),
                start: pos,
                end: pos,
                commit_pages: 4,
                timestamp_ms: -5,
                size_bytes: 131,
                checksum: u64::MAX,
                in_file: true,
            }),
            captured: Some(pos),
            sealed: true,
            next_salts: Some([7, 8]),
            spool_first: 1,
            spool_next: 4,
            stamp: Some(stamp),
            open_transaction: Some(OpenTransaction::Uncounted),
            full: Some(FullReason::Unfinished),
            restored_earlier: Some(RestoredEarlier { txid: Txid::FIRST, newest: Txid::FIRST.next() }),
            adopt: Some(Txid::FIRST),
            fencing: Some(false),
            full_sent: Some(FullSent { txid: Txid::FIRST, again: true }),
            witness: Some(Txid::FIRST.next()),
            conflict: Some(Conflict { txid: Txid::FIRST, node_id: u64::MAX, timestamp_ms: -1, size_bytes: 3 }),
            looks: Looks { boot: 6, compared_ms: 7, looked_back_ms: -8 },
            to_compare: Some(Stamp { boot: 8, ..stamp }),
        }
    }

    #[test]
    fn a_state_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let owner = OwnerMode::of(dir.path()).unwrap();
        let mut control = Control::open(&path).unwrap();
        assert!(control.load(&owner).unwrap().is_none());
        control.save(&State::default()).unwrap();
        control.save(&full_state()).unwrap();
        assert_eq!(Control::open(&path).unwrap().load(&owner).unwrap().unwrap(), full_state());
    }

    #[test]
    fn what_another_has_saved_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let owner = OwnerMode::of(dir.path()).unwrap();
        let [mut one, mut two] = [(); 2].map(|()| Control::open(&path).unwrap());
        one.load(&owner).unwrap();
        two.load(&owner).unwrap();
        assert_eq!(two.newer().unwrap(), None);
        for node_id in 1..5 {
            let state = State { node_id, ..full_state() };
            one.save(&state).unwrap();
            assert_eq!(two.newer().unwrap(), Some(state));
            assert_eq!(two.newer().unwrap(), None);
            std::mem::swap(&mut one, &mut two);
        }
    }

    #[test]
    fn a_torn_save_leaves_the_state_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let owner = OwnerMode::of(dir.path()).unwrap();
        let mut control = Control::open(&path).unwrap();
        control.load(&owner).unwrap();
        control.save(&full_state()).unwrap();
        control.save(&State { sealed: false, ..full_state() }).unwrap();
        let good = std::fs::read(&path).unwrap();
        // The second save went to slot 0.
        for at in (SLOTS_OFFSET as usize..SLOTS_OFFSET as usize + SLOT_BYTES).step_by(37) {
            let mut torn = good.clone();
            torn[at] ^= 0xff;
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(read(&path).unwrap(), full_state(), "byte {at}");
        }
    }

    #[test]
    fn another_kind_of_file_is_no_control_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        std::fs::write(&path, vec![0xa5; FILE_BYTES]).unwrap();
        assert!(read(&path).is_none());
        std::fs::write(&path, b"short").unwrap();
        assert!(read(&path).is_none());
    }
}
