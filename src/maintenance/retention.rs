//! What may go. Pure: from listings to the files that no restore within the window needs.
//!
//! Two rules, each of them only older than the window and the grace period together:
//!
//! 1. **The floor** is the newest snapshot that is older than that. Whatever state of the window is asked for, a restore begins at the floor or at
//!    a later snapshot: nothing that ends before the floor, or with it, is part of any plan.
//! 2. **Level 0**: of the files that are older than the time for which each upload can be restored, those that a higher level spans. But the newest of
//!    them is the state at the very beginning of that time: it stays, and so does what a file spans that goes on beyond it.
//!
//! Never deleted: the newest file of any level (by which maintenance and Litestream know how far they are), and what leads to a state that is kept
//! (`kept`): the tail that a power loss took.
//!
//! Listings of S3 have the time of the upload instead of the commit's, which is later: a file is then kept for longer, not shorter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::policy::{Policy, millis};
use crate::restore::{self, Plan, PlanError, Target};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL};
use crate::types::{TimestampMs, Txid};

/// What may be deleted, and what must be good before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outdated {
    /// The snapshot that all restores of the window can begin with. Deleting anything needs it where `snapshots` or `increments` has something.
    pub(super) floor: Option<Listed>,
    /// Snapshots before the floor, oldest first.
    pub(super) snapshots: Vec<Listed>,
    /// Files of the other levels that end at or before the floor, oldest first.
    pub(super) increments: Vec<Listed>,
    /// Files of level 0, newest first, by the file that spans them.
    pub(super) spanned: BTreeMap<LtxName, Vec<Listed>>,
}

impl Outdated {
    /// Every file of it.
    pub(super) fn files(&self) -> impl Iterator<Item = &Listed> {
        self.snapshots.iter().chain(&self.increments).chain(self.spanned.values().flatten())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files().next().is_none()
    }
}

fn before(policy: &Policy, now: TimestampMs, duration: Duration) -> TimestampMs {
    TimestampMs(now.0.saturating_sub(millis(policy.grace)).saturating_sub(millis(duration)))
}

/// The newest snapshot that is older than the window.
pub(super) fn floor(listings: &[Listed], policy: &Policy, now: TimestampMs) -> Option<Listed> {
    let oldest = before(policy, now, policy.history);
    let is_base = |file: &&Listed| restore::is_usable(file) && file.name.level == SNAPSHOT_LEVEL;
    listings.iter().filter(is_base).filter(|file| file.timestamp <= oldest).max_by_key(|file| file.name.max_txid).copied()
}

/// Finds it.
///
/// # Errors
/// Where the newest state, or one that is kept, cannot be restored as the bucket is: then nothing is deleted.
pub(super) fn outdated(listings: &[Listed], policy: &Policy, now: TimestampMs, kept: &[Txid]) -> Result<Outdated, PlanError> {
    let exact = before(policy, now, policy.exact.min(policy.history));
    let mut needed: BTreeSet<LtxName> = restore::plan(listings, Target::Latest)?.files.iter().map(|file| file.name).collect();
    for txid in kept {
        needed.extend(restore::plan(listings, Target::Txid(*txid))?.files.iter().map(|file| file.name));
    }
    needed.extend(Level::all().filter_map(|level| {
        listings.iter().filter(|file| file.name.level == level).map(|file| (file.name.max_txid, file.name)).max().map(|(_, name)| name)
    }));
    let may_go = |file: &&Listed| !needed.contains(&file.name);
    let floor = floor(listings, policy, now);
    let reached = floor.map_or(0, |floor| floor.name.max_txid.get());
    let mut outdated = Outdated { floor, ..Outdated::default() };
    for file in listings.iter().filter(may_go).filter(|file| file.name.max_txid.get() <= reached) {
        let is_snapshot = file.name.level == SNAPSHOT_LEVEL;
        if !is_snapshot {
            outdated.increments.push(*file);
        } else if file.name.max_txid.get() < reached {
            outdated.snapshots.push(*file);
        }
    }
    outdated.snapshots.sort_by_key(|file| file.name.max_txid);
    outdated.increments.sort_by_key(|file| (file.name.max_txid, file.name.level));

    let mut level0: Vec<&Listed> = listings.iter().filter(|file| file.name.level == Level::ZERO).collect();
    level0.sort_by_key(|file| file.name);
    let old = level0.iter().take_while(|file| file.timestamp <= exact).count();
    // The state at the beginning of that time. What a file spans that goes on beyond it leads there, and stays.
    let Some(first) = old.checked_sub(1).and_then(|last| level0.get(last)).map(|file| file.name.max_txid) else { return Ok(outdated) };
    let spanning = spanning(listings);
    for file in level0.into_iter().take(old - 1).rev().filter(may_go).filter(|file| file.name.max_txid.get() > reached) {
        if let Some(by) = spanning.of(&file.name).filter(|by| by.max_txid <= first) {
            outdated.spanned.entry(by).or_default().push(*file);
        }
    }
    Ok(outdated)
}

/// What remains leads where it led: to the newest state, by the same files, to the floor, and to what is kept.
pub(super) fn still_leads(listings: &[Listed], outdated: &Outdated, kept: &[Txid]) -> bool {
    let gone: BTreeSet<LtxName> = outdated.files().map(|file| file.name).collect();
    let left: Vec<Listed> = listings.iter().filter(|file| !gone.contains(&file.name)).copied().collect();
    let floor = outdated.floor.map(|floor| floor.name.max_txid);
    let targets = kept.iter().copied().chain(floor).map(Target::Txid).chain([Target::Latest]);
    let files = |listings: &[Listed], target| restore::plan(listings, target).ok().map(|Plan { files, txid, .. }| (files, txid));
    targets.into_iter().all(|target| files(&left, target).is_some_and(|plan| files(listings, target).is_some_and(|same| same == plan)))
}

/// The files above level 0, to be asked for one that spans a TXID.
struct Spanning(Vec<(Txid, Txid, LtxName)>);

fn spanning(listings: &[Listed]) -> Spanning {
    let is_merged = |file: &&Listed| restore::is_usable(file) && ![Level::ZERO, SNAPSHOT_LEVEL].contains(&file.name.level);
    let mut spans: Vec<_> = listings.iter().filter(is_merged).map(|file| (file.name.min_txid, file.name.max_txid, file.name)).collect();
    // The lowest level first, whose files are the smallest.
    spans.sort_by_key(|(min, max, name)| (name.level, *min, *max));
    Spanning(spans)
}

impl Spanning {
    fn of(&self, name: &LtxName) -> Option<LtxName> {
        let mut rest = self.0.as_slice();
        // Each level by itself: there the files ascend.
        while let Some((_, _, first)) = rest.first() {
            let (level, others) = rest.split_at(rest.partition_point(|(_, _, other)| other.level <= first.level));
            let upto = level.partition_point(|(min, _, _)| *min <= name.min_txid);
            let candidates = level.get(..upto).unwrap_or_default();
            if let Some((_, _, by)) = candidates.iter().rev().take(8).find(|(_, max, _)| *max >= name.max_txid) {
                return Some(*by);
            }
            rest = others;
        }
        None
    }
}
