//! What is due to be merged. Pure: from listings to groups of files.
//!
//! A file of level 1 to 3 spans the files of the level below that fall into one span of time, two of them at least: one that would repeat a single
//! file is not made, until something follows that it cannot be merged with. Nothing but a snapshot begins at TXID 1.

use super::policy::{COMPACTED_LEVELS, Policy, millis};
use super::retention;
use crate::restore::{self, Plan, PlanError, Target};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL};
use crate::types::{TimestampMs, Txid};

/// Files that become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The level that the file goes to.
    pub(super) level: Level,
    /// Oldest first, none leaves a gap to the one before.
    pub(super) inputs: Vec<Listed>,
    /// What follows cannot be merged with them, so that a single one is merged by itself.
    pub(super) is_cut_off: bool,
}

impl Group {
    /// What the file will be called.
    pub(super) fn name(&self) -> Option<LtxName> {
        let (first, last) = (self.inputs.first()?, self.inputs.last()?);
        Some(LtxName { level: self.level, min_txid: first.name.min_txid, max_txid: last.name.max_txid })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.inputs.iter().map(|input| input.size_bytes).sum()
    }
}

/// The levels that are filled by merging the level below, in that order.
pub(super) fn compacted_levels() -> impl Iterator<Item = (Level, usize)> {
    (0..COMPACTED_LEVELS).filter_map(|index| Some((Level::new(u8::try_from(index + 1).ok()?)?, index)))
}

fn at_level(listings: &[Listed], level: Level) -> impl Iterator<Item = &Listed> {
    listings.iter().filter(move |file| file.name.level == level)
}

/// The groups that are complete and not merged yet.
pub(super) fn groups(listings: &[Listed], level: Level, policy: &Policy, now: TimestampMs) -> Vec<Group> {
    let Some(below) = level.get().checked_sub(1).and_then(Level::new) else { return Vec::new() };
    let span = policy.spans.get(usize::from(below.get())).map_or(1, |span| millis(*span).max(1));
    let window = |at: TimestampMs| at.0.div_euclid(span);
    let merged = at_level(listings, level).map(|file| file.name.max_txid.get()).max().unwrap_or(0);
    let mut files: Vec<&Listed> =
        at_level(listings, below).filter(|file| file.name.min_txid != Txid::FIRST && file.name.max_txid.get() > merged).collect();
    files.sort_by_key(|file| (file.name.min_txid, file.name.max_txid));
    let mut groups = Vec::new();
    let mut group: Vec<Listed> = Vec::new();
    let mut close = |group: &mut Vec<Listed>, is_cut_off| {
        if !group.is_empty() {
            groups.push(Group { level, inputs: std::mem::take(group), is_cut_off });
        }
    };
    let mut reached = merged;
    for file in files {
        if file.name.max_txid.get() <= reached {
            continue;
        }
        if let Some(last) = group.last() {
            let is_gap = file.name.min_txid.get() > reached.saturating_add(1);
            if is_gap || group.len() >= policy.most_inputs() || group.len() >= 2 && window(file.timestamp) != window(last.timestamp) {
                close(&mut group, is_gap);
            }
        }
        reached = file.name.max_txid.get();
        group.push(*file);
    }
    if group.len() >= 2 && group.last().is_some_and(|last| window(last.timestamp) < window(now)) {
        close(&mut group, false);
    }
    groups
}

/// What is missing in the midst of a level, where the files below have it: an object that is gone, or one that was damaged.
pub(super) fn holes(listings: &[Listed], level: Level, policy: &Policy, now: TimestampMs) -> Vec<Group> {
    let snapshots = || at_level(listings, SNAPSHOT_LEVEL).filter(|file| restore::is_usable(file));
    // Nobody needs what is below. Where all is younger, a level begins with what follows on the oldest snapshot.
    let floor = retention::floor(listings, policy, now).or_else(|| snapshots().min_by_key(|file| file.name.max_txid).copied());
    let Some(mut reached) = floor.map(|floor| floor.name.max_txid) else { return Vec::new() };
    let mut files: Vec<&Listed> = at_level(listings, level).filter(|file| file.name.max_txid > reached).collect();
    files.sort_by_key(|file| (file.name.min_txid, file.name.max_txid));
    let mut groups = Vec::new();
    for file in files {
        if file.name.min_txid > reached.next()
            && let Some(mut inputs) = before(file.name.min_txid).and_then(|last| finer(listings, level, reached.next(), last))
        {
            // The rest is done in the next round.
            inputs.truncate(policy.most_inputs());
            groups.push(Group { level, inputs, is_cut_off: true });
        }
        reached = reached.max(file.name.max_txid);
    }
    groups
}

fn before(txid: Txid) -> Option<Txid> {
    Txid::new(txid.get() - 1)
}

/// Files of the levels below that together span exactly these TXIDs: at each step the one that reaches furthest.
pub(super) fn finer(listings: &[Listed], level: Level, first: Txid, last: Txid) -> Option<Vec<Listed>> {
    let is_within = |file: &&Listed| file.name.level < level && file.name.min_txid >= first && file.name.max_txid <= last;
    let mut candidates: Vec<&Listed> = listings.iter().filter(|file| restore::is_usable(file)).filter(is_within).collect();
    candidates.sort_by_key(|file| file.name.min_txid);
    let mut candidates = candidates.into_iter().peekable();
    let (mut reached, mut files): (u64, Vec<Listed>) = (first.get() - 1, Vec::new());
    while reached < last.get() {
        let mut best: Option<&Listed> = None;
        while let Some(file) = candidates.next_if(|file| file.name.min_txid.get() <= reached + 1) {
            best = best.into_iter().chain([file]).max_by_key(|file| (file.name.max_txid, file.name.level));
        }
        let file = best.filter(|file| file.name.max_txid.get() > reached)?;
        reached = file.name.max_txid.get();
        files.push(*file);
    }
    Some(files)
}

/// A snapshot that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) group: Group,
    pub(super) why: &'static str,
}

/// The snapshot that is due, if one is.
///
/// # Errors
/// Why the newest state cannot be restored, so that no snapshot can be made of it.
pub(super) fn snapshot(listings: &[Listed], policy: &Policy, now: TimestampMs) -> Result<Option<Due>, PlanError> {
    let Plan { files, .. } = restore::plan(listings, Target::Latest)?;
    let base = files.first().filter(|file| file.name.level == SNAPSHOT_LEVEL).copied();
    let changes = files.get(usize::from(base.is_some())..).unwrap_or_default();
    // What was uploaded goes before everything else: no level has what level 0 has not had.
    let newest = at_level(listings, Level::ZERO).map(|file| file.name.max_txid).max();
    if changes.is_empty() || newest.is_none() {
        return Ok(None);
    }
    let change_bytes: u64 = changes.iter().map(|file| file.size_bytes).sum();
    let every = millis(policy.snapshot_every).max(1);
    let why = match base {
        None => "there is none yet",
        Some(base) if base.timestamp.0.div_euclid(every) < now.0.div_euclid(every) => "the newest one is old",
        Some(base) if change_bytes >= enough_bytes(policy, base.size_bytes) => "enough has changed",
        Some(_) => return Ok(None),
    };
    let mut inputs = files;
    inputs.truncate(policy.most_inputs());
    while inputs.last().is_some_and(|last| Some(last.name.max_txid) > newest) {
        inputs.pop();
    }
    let reaches_further = inputs.len() > usize::from(base.is_some());
    let group = Group { level: SNAPSHOT_LEVEL, inputs, is_cut_off: false };
    Ok(reaches_further.then_some(Due { group, why }))
}

fn enough_bytes(policy: &Policy, snapshot_bytes: u64) -> u64 {
    let part = u128::from(snapshot_bytes) * u128::from(policy.snapshot_change_percent) / 100;
    u64::try_from(part).unwrap_or(u64::MAX).max(Policy::LEAST_CHANGE_BYTES)
}
