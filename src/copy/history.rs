//! Whether two buckets hold one history, by what the objects themselves say: their headers, which name the writer, the place in its log and the millisecond,
//! and the checksums at their ends.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::ltx::{HEADER_BYTES, Header, TRAILER_BYTES};
use crate::restore::fetch::retried;
use crate::restore::is_usable;
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL, Store, StoreError, StoreErrorKind};

/// Of what both have: the newest of each level and some at random, beside all snapshots.
const NEWEST: usize = 4;
const RANDOM: usize = 8;

/// What two objects of one name are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    Same,
    /// The destination's is not whole.
    Damaged,
    Other,
    /// One of them is not there any more.
    Gone,
}

/// The files that both have.
pub(super) fn in_both(source: &[Listed], destination: &[Listed]) -> Vec<(Listed, Listed)> {
    let there: BTreeMap<LtxName, &Listed> = destination.iter().map(|file| (file.name, file)).collect();
    source.iter().filter_map(|file| Some((*file, **there.get(&file.name)?))).collect()
}

/// Which of them are to be compared by their checksums: those of another size in any case.
pub(super) fn to_be_compared(both: &[(Listed, Listed)], known: &BTreeSet<LtxName>, all: bool) -> Vec<(Listed, Listed)> {
    let mut asked: BTreeSet<LtxName> = BTreeSet::new();
    for level in Level::all() {
        let mut names: Vec<LtxName> = both.iter().map(|(file, _)| file.name).filter(|name| name.level == level).collect();
        names.sort_unstable_by_key(|name| std::cmp::Reverse(name.max_txid));
        let newest = if all || level == SNAPSHOT_LEVEL { names.len() } else { NEWEST };
        asked.extend(names.iter().take(newest));
    }
    let mut others: Vec<LtxName> = both.iter().map(|(file, _)| file.name).filter(|name| !asked.contains(name)).collect();
    fastrand::shuffle(&mut others);
    asked.extend(others.into_iter().take(RANDOM));
    let is_asked = |(mine, other): &&(Listed, Listed)| {
        mine.size_bytes != other.size_bytes || (asked.contains(&mine.name) && !known.contains(&mine.name))
    };
    both.iter().filter(is_asked).copied().collect()
}

/// Compares two objects of one name.
pub(super) async fn compare(from: &dyn Store, mine: &Listed, to: &dyn Store, other: &Listed) -> Result<Compared, StoreError> {
    if !is_usable(other) {
        return Ok(Compared::Damaged);
    }
    let (ours, theirs) = futures_util::future::join(ends(from, mine), ends(to, other)).await;
    let (Some((head, end)), Some((their_head, their_end))) = (ours?, theirs?) else { return Ok(Compared::Gone) };
    Ok(match (head == their_head, end == their_end && mine.size_bytes == other.size_bytes) {
        (true, true) => Compared::Same,
        (true, false) => Compared::Damaged,
        // What is no header is nobody's history.
        (false, _) if Header::decode(&their_head).is_err() && Header::decode(&head).is_ok() => Compared::Damaged,
        (false, _) => Compared::Other,
    })
}

/// Whether the destination's newest upload is of the writer of the source's oldest: all that both had is gone from one of them.
pub(super) async fn goes_on(from: &dyn Store, source: &[Listed], to: &dyn Store, destination: &[Listed]) -> Result<bool, StoreError> {
    let level0 = |files: &[Listed]| -> Vec<Listed> {
        files.iter().filter(|file| file.name.level == Level::ZERO && is_usable(file)).copied().collect()
    };
    let oldest = level0(source).into_iter().min_by_key(|file| file.name.max_txid);
    let newest = level0(destination).into_iter().max_by_key(|file| file.name.max_txid);
    let (Some(oldest), Some(newest)) = (oldest, newest) else { return Ok(false) };
    let (Some((ours, _)), Some((theirs, _))) = (ends(from, &oldest).await?, ends(to, &newest).await?) else { return Ok(false) };
    let node = |head: &Bytes| Header::decode(head).map_or(0, |header| header.node_id);
    Ok(node(&ours) != 0 && node(&ours) == node(&theirs))
}

/// Header and trailer; `None` where the object is gone.
async fn ends(store: &dyn Store, file: &Listed) -> Result<Option<(Bytes, Bytes)>, StoreError> {
    let size = file.size_bytes;
    let head = retried(async || store.get_range(&file.name, 0..size.min(HEADER_BYTES as u64)).await);
    let end = retried(async || store.get_range(&file.name, size.saturating_sub(TRAILER_BYTES as u64)..size).await);
    match futures_util::future::try_join(head, end).await {
        Ok(both) => Ok(Some(both)),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
