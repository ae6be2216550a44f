//! What the database file looked like after the last checkpoint, or when it was opened.
//!
//! While the WAL has frames only checkpoints change the database file. So where a process has died and its WAL is still there, the file must be as the
//! last of them left it. If it is not, somebody has put another one in its place, under a WAL that is not its own: an older copy, most likely.
//!
//! The mark is a block of its own in the control file, written by the thread that checkpoints, without the tail's lock:
//!
//! ```text
//!   CKPT_START                 nothing is known while it writes
//!   release of the CKPT lock   the file's size, time and header words
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::control::Stamp;

/// Where it lies in the control file, behind the two slots.
const OFFSET: u64 = 3072;
const BYTES: usize = 48;

/// In the last word, beside whether the header says WAL: SQLite had synced the file.
const SYNCED: u64 = 2;

/// Size, time of modification, header words and run of the machine. Not the time of change, which a backup program alters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    words: [u64; 4],
    boot: u64,
}

impl Mark {
    pub(crate) const fn of(stamp: &Stamp) -> Self {
        let [changes, valid_for] = stamp.header_words;
        let header = (changes as u64) << 32 | valid_for as u64;
        let kind = stamp.is_wal as u64 | if stamp.synced { SYNCED } else { 0 };
        Self { words: [stamp.size_bytes, stamp.mtime_ns.cast_unsigned(), header, kind], boot: stamp.boot }
    }

    /// What it was made of. The time of change is not in it: the time of modification is no later than that.
    pub(crate) const fn stamp(&self) -> Stamp {
        let [size_bytes, modified, header, kind] = self.words;
        let mtime_ns = modified.cast_signed();
        Stamp {
            size_bytes,
            mtime_ns,
            ctime_ns: mtime_ns,
            header_words: [(header >> 32) as u32, header as u32],
            is_wal: kind & !SYNCED != 0,
            too_fresh: true,
            boot: self.boot,
            synced: kind & SYNCED != 0,
        }
    }

    /// Whether somebody else has written to the file, or put another in its place.
    ///
    /// After the machine was started again this one may be older than the file, where the power has failed, and times tell nothing. But a file that was
    /// synced has not become older than this.
    pub(crate) fn is_not(&self, now: &Self) -> bool {
        let [.., header, kind] = self.words;
        if self.boot == now.boot {
            let told = |[size, modified, header, kind]: [u64; 4]| [size, modified, header, kind & !SYNCED];
            return told(self.words) != told(now.words);
        }
        let counter = |header: u64| (header >> 32) as u32;
        let [.., now_header, _] = now.words;
        kind & SYNCED != 0 && (1..1 << 30).contains(&counter(header).wrapping_sub(counter(now_header)))
    }

    pub(crate) fn read(control: &File) -> Option<Self> {
        let mut bytes = [0; BYTES];
        control.read_exact_at(&mut bytes, OFFSET).ok()?;
        let (body, crc) = bytes.split_last_chunk::<8>()?;
        let word = |index: usize| body.get(index * 8..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word));
        // Nothing but zeros is no mark.
        (word(0) > 0 && u64::from(crc32fast::hash(body)) == u64::from_le_bytes(*crc))
            .then(|| Self { words: [word(0), word(1), word(2), word(3)], boot: word(4) })
    }
}

/// Writes it, or that nothing is known.
pub(crate) fn write(control: &File, mark: Option<Mark>) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(BYTES);
    if let Some(Mark { words: [size, modified, header, wal], boot }) = mark {
        [size, modified, header, wal, boot].iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        bytes.extend_from_slice(&u64::from(crc32fast::hash(&bytes)).to_le_bytes());
    } else {
        bytes.resize(BYTES, 0);
    }
    control.write_all_at(&bytes, OFFSET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_told_by_its_time_or_by_a_counter_that_went_back() {
        let stamp = Stamp {
            size_bytes: 4096,
            mtime_ns: 5,
            ctime_ns: 6,
            header_words: [7, 7],
            is_wal: true,
            too_fresh: false,
            boot: 1,
            synced: true,
        };
        let is_not = |now: Stamp| Mark::of(&stamp).is_not(&Mark::of(&now));
        assert!(!is_not(Stamp { ctime_ns: 99, synced: false, ..stamp }));
        for other in [
            Stamp { size_bytes: 8192, ..stamp },
            Stamp { mtime_ns: 99, ..stamp },
            Stamp { header_words: [8, 8], ..stamp },
            Stamp { is_wal: false, ..stamp },
        ] {
            assert!(is_not(other), "{other:?}");
            // It may have been checkpointed once more before the power failed.
            assert!(!is_not(Stamp { boot: 2, ..other }), "{other:?}");
        }
        let older = Stamp { boot: 2, header_words: [6, 6], ..stamp };
        assert!(is_not(older));
        // With nothing synced the power may have taken the file back.
        assert!(!Mark::of(&Stamp { synced: false, ..stamp }).is_not(&Mark::of(&older)));
    }
}
