//! Which files of a bucket make up the state that was asked for. Pure: from listings to a plan or to the reason why there is none.
//!
//! The choice is Litestream's (the last snapshot, then always the file that reaches furthest), so that both read the same files of
//! the same bucket. The strictness is ours: a plan ends exactly at what was asked for or there is none (invariant I7).

use std::cmp::Reverse;

use crate::store::{Listed, LtxName, SNAPSHOT_LEVEL};
use crate::types::{TimestampMs, Txid};

/// Header, end of pages, empty index and trailer: no LTX file is shorter.
pub(crate) const SMALLEST_FILE_BYTES: u64 = 131;

/// The state that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The newest of the bucket.
    Latest,
    /// The state right after this TXID.
    Txid(Txid),
    /// The last state at or before this time.
    Timestamp(TimestampMs),
}

/// The files that make up a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The files to apply, oldest first; the first one starts at TXID 1, and none leaves a gap to the one before.
    pub files: Vec<Listed>,
    /// The state they lead to.
    pub txid: Txid,
    /// The newest TXID that the bucket has at any level.
    pub max_txid_in_bucket: Txid,
}

impl Plan {
    /// The size of all files together.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }
}

/// Why the state that was asked for cannot be had from the files that are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No file at all.
    #[error("the bucket has no LTX files")]
    Empty,
    /// Newer than everything.
    #[error("TXID {asked} is not in the bucket: the newest is {newest}")]
    NotYet {
        /// What was asked for.
        asked: Txid,
        /// The newest TXID of the bucket.
        newest: Txid,
    },
    /// Older than everything that can be restored, by TXID.
    #[error("TXID {asked} cannot be restored any more: the oldest state of the bucket is TXID {oldest} ({timestamp})")]
    TooOld {
        /// What was asked for.
        asked: Txid,
        /// The oldest TXID that can be restored.
        oldest: Txid,
        /// The time that the listing gives for it.
        timestamp: TimestampMs,
    },
    /// Older than everything that can be restored, by time.
    #[error("nothing as old as {asked} is in the bucket: the oldest state that can be restored is TXID {oldest}, of {timestamp}")]
    BeforeOldest {
        /// What was asked for.
        asked: TimestampMs,
        /// The oldest TXID that can be restored.
        oldest: Txid,
        /// Its time.
        timestamp: TimestampMs,
    },
    /// There is nothing to start from.
    #[error("no file starts at TXID 1, so there is nothing to start from: the first file is {first}; no TXID can be restored")]
    NoBase {
        /// The file with the lowest TXID.
        first: LtxName,
    },
    /// TXIDs that no file covers.
    #[error("the chain of files has a gap: it ends at TXID {last_good}, the next file is {next}; the last good TXID is {last_good}")]
    Gap {
        /// The last TXID that can be restored without crossing the gap.
        last_good: Txid,
        /// The file behind the gap.
        next: LtxName,
    },
    /// The TXID lies inside of a file that goes on beyond it.
    #[error(
        "TXID {asked} was merged into {merged_into} and cannot be restored by itself; the nearest that can are TXID {last_good} before and \
         TXID {next_good} after it"
    )]
    Merged {
        /// What was asked for, or what a time stands for.
        asked: Txid,
        /// The file that spans it.
        merged_into: LtxName,
        /// The last TXID before it that can be restored.
        last_good: Txid,
        /// The first one after it that can be restored.
        next_good: Txid,
    },
    /// A file that is needed is too short to be one, as an interrupted copy leaves behind.
    #[error("{object} has {size_bytes} bytes and cannot be an LTX file; {}", last_good_words(*.last_good))]
    TooShort {
        /// The object.
        object: LtxName,
        /// Its size.
        size_bytes: u64,
        /// The last TXID that can be restored without it.
        last_good: Option<Txid>,
    },
}

pub(super) fn last_good_words(txid: Option<Txid>) -> String {
    txid.map_or_else(|| "no TXID can be restored without it".to_owned(), |txid| format!("the last good TXID is {txid}"))
}

/// Chooses the files for a target. Timestamps count as they are listed; `plan_restore` also asks stores whose listings lack the exact ones.
///
/// # Errors
///
/// When the files do not lead exactly to the target.
pub fn plan(listings: &[Listed], target: Target) -> Result<Plan, PlanError> {
    let newest = listings.iter().map(|file| file.name.max_txid).max().ok_or(PlanError::Empty)?;
    let txid = match target {
        Target::Latest => newest,
        Target::Txid(asked) if asked > newest => return Err(PlanError::NotYet { asked, newest }),
        Target::Txid(asked) => asked,
        Target::Timestamp(at) => match listings.iter().filter(|file| file.timestamp <= at).max_by_key(|file| file.name.max_txid) {
            Some(file) => file.name.max_txid,
            None => return Err(before_oldest(listings, at)),
        },
    };
    let files = chain(listings, txid);
    match files.last() {
        Some(last) if last.name.max_txid == txid => Ok(Plan { files, txid, max_txid_in_bucket: newest }),
        last => Err(diagnose(listings, txid, last.map(|file| file.name.max_txid))),
    }
}

/// The error for a time before everything that can be restored.
pub(super) fn before_oldest(listings: &[Listed], asked: TimestampMs) -> PlanError {
    match (oldest(listings), first(listings)) {
        (Some(oldest), _) => PlanError::BeforeOldest { asked, oldest: oldest.name.max_txid, timestamp: oldest.timestamp },
        (None, Some(first)) => PlanError::NoBase { first: first.name },
        (None, None) => PlanError::Empty,
    }
}

/// The file that alone is the oldest state that can be restored.
#[must_use]
pub fn oldest(listings: &[Listed]) -> Option<&Listed> {
    listings.iter().filter(|file| is_usable(file) && file.name.min_txid == Txid::FIRST).min_by_key(|file| file.name.max_txid)
}

/// The last TXID that could be restored if an object were not there.
pub(super) fn reach_without(listings: &[Listed], object: &LtxName) -> Option<Txid> {
    let others: Vec<Listed> = listings.iter().filter(|file| file.name != *object).copied().collect();
    let newest = others.iter().map(|file| file.name.max_txid).max()?;
    chain(&others, newest).last().map(|file| file.name.max_txid)
}

/// The last snapshot and then, again and again, the file that reaches furthest without a gap and not beyond `upto`.
///
/// Where any chain leads to `upto`, this one does: what can follow a TXID can also follow every later one.
fn chain(listings: &[Listed], upto: Txid) -> Vec<Listed> {
    let usable = || listings.iter().filter(|file| is_usable(file) && file.name.max_txid <= upto);
    let snapshot = usable().filter(|file| file.name.level == SNAPSHOT_LEVEL).max_by_key(|file| file.name.max_txid);
    let mut reached = snapshot.map_or(0, |file| file.name.max_txid.get());
    let mut files: Vec<Listed> = snapshot.copied().into_iter().collect();

    let mut candidates: Vec<&Listed> = usable().filter(|file| file.name.level != SNAPSHOT_LEVEL).collect();
    candidates.sort_by_key(|file| file.name.min_txid);
    let mut candidates = candidates.into_iter().peekable();
    let mut best: Option<&Listed> = None;
    loop {
        while let Some(file) = candidates.next_if(|file| file.name.min_txid.get() <= reached.saturating_add(1)) {
            best = best.into_iter().chain([file]).max_by_key(preference);
        }
        match best {
            Some(file) if file.name.max_txid.get() > reached => {
                reached = file.name.max_txid.get();
                files.push(*file);
            }
            _ => return files,
        }
    }
}

/// Litestream's order among files that can follow: the furthest reach, the earliest start, the highest level, the oldest.
fn preference(file: &&Listed) -> impl Ord + use<> {
    (file.name.max_txid, Reverse(file.name.min_txid), file.name.level, Reverse(file.timestamp.0))
}

/// Level 9 holds snapshots; one that does not start at TXID 1 is none.
pub(crate) fn is_usable(file: &Listed) -> bool {
    file.size_bytes >= SMALLEST_FILE_BYTES && (file.name.level != SNAPSHOT_LEVEL || file.name.min_txid == Txid::FIRST)
}

fn first(listings: &[Listed]) -> Option<&Listed> {
    listings.iter().min_by_key(|file| (file.name.min_txid, file.name.level))
}

/// Why the chain to `asked` ended at `reached`.
fn diagnose(listings: &[Listed], asked: Txid, reached: Option<Txid>) -> PlanError {
    let reached_number = reached.map_or(0, Txid::get);
    let continues =
        |file: &&Listed| file.name.min_txid.get() <= reached_number.saturating_add(1) && file.name.max_txid.get() > reached_number;
    let too_short = listings.iter().filter(|file| file.size_bytes < SMALLEST_FILE_BYTES).filter(continues).max_by_key(preference);
    // What continues the chain and is usable must reach beyond what was asked for, or it would be part of the chain.
    let beyond = listings.iter().filter(|file| is_usable(file)).filter(continues).min_by_key(|file| file.name.max_txid);
    if let Some(file) = too_short.filter(|file| file.name.max_txid <= asked || beyond.is_none()) {
        return PlanError::TooShort { object: file.name, size_bytes: file.size_bytes, last_good: reached };
    }
    match (reached, beyond) {
        (Some(last_good), Some(file)) => PlanError::Merged { asked, merged_into: file.name, last_good, next_good: file.name.max_txid },
        (None, Some(file)) => PlanError::TooOld { asked, oldest: file.name.max_txid, timestamp: file.timestamp },
        (Some(last_good), None) => match listings.iter().filter(|file| file.name.max_txid > last_good).min_by_key(|f| f.name.min_txid) {
            Some(next) => PlanError::Gap { last_good, next: next.name },
            None => PlanError::NotYet { asked, newest: last_good },
        },
        (None, None) => first(listings).map_or(PlanError::Empty, |file| PlanError::NoBase { first: file.name }),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
