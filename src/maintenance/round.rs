//! What a round does with the files of a bucket: merges those that are due, and makes snapshots.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::at_hand::{AtHand, Inputs};
use super::error::MaintainError;
use super::merging::{self, Merged};
use super::pace::Pace;
use super::policy::Policy;
use super::run::{Made, Report};
use super::schedule::{self, Due, Group};
use crate::fault::fault_point;
use crate::restore::{self, Target};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL, Store};
use crate::types::TimestampMs;

/// What a round may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    All,
    /// Says what it would do.
    Nothing,
}

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// So many of its inputs are merged.
    Merged(usize),
    /// It is too little by itself.
    Waits,
    /// It cannot be made, as the report says.
    Unfit,
    /// An input was damaged: the files are others now, by which the groups are to be formed again.
    Changed,
}

/// What a round knows.
pub(super) struct Round<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) at_hand: Option<&'a dyn AtHand>,
    pub(super) policy: &'a Policy,
    pub(super) now: TimestampMs,
    pub(super) pace: &'a Pace<'a>,
    pub(super) doing: Doing,
    /// What the bucket has now.
    pub(super) listings: Vec<Listed>,
    pub(super) made: Vec<Listed>,
    pub(super) gone: BTreeSet<LtxName>,
    /// Damaged, and not to be made anew: the round goes on as if they were not there.
    pub(super) bad: BTreeSet<LtxName>,
    /// Looked at again, and made anew where it was necessary: once in a round.
    pub(super) renewed: BTreeSet<LtxName>,
    /// Something was not made that should have been: nothing is deleted.
    pub(super) holds_back: bool,
    pub(super) report: &'a mut Report,
}

impl<'a> Round<'a> {
    /// The files that are not known to be bad.
    pub(super) fn usable(&self) -> Cow<'_, [Listed]> {
        if self.bad.is_empty() {
            return Cow::Borrowed(&self.listings);
        }
        Cow::Owned(self.listings.iter().filter(|file| !self.bad.contains(&file.name)).copied().collect())
    }

    /// Whether the newest state can be restored; else nothing is merged any more, and nothing deleted.
    pub(super) fn leads(&self) -> bool {
        restore::plan(&self.usable(), Target::Latest).is_ok()
    }

    /// Whether the bucket has a snapshot.
    pub(super) fn has_base(&self) -> bool {
        self.usable().iter().any(|file| file.name.level == SNAPSHOT_LEVEL && restore::is_usable(file))
    }

    /// Merges what is due at a level.
    pub(super) async fn compact(&mut self, level: Level) -> Result<(), MaintainError> {
        // Each time something has been made anew or left out, of which there is an end.
        while self.leads() && self.compact_once(level).await? == Outcome::Changed {}
        Ok(())
    }

    async fn compact_once(&mut self, level: Level) -> Result<Outcome, MaintainError> {
        for group in schedule::holes(&self.usable(), level, self.policy, self.now) {
            if let outcome @ (Outcome::Changed | Outcome::Unfit) = self.merge(&group, Some("it was missing")).await? {
                return Ok(outcome);
            }
        }
        let mut waiting = Vec::new();
        let groups = schedule::groups(&self.usable(), level, self.policy, self.now);
        for mut group in groups {
            group.inputs.splice(0..0, std::mem::take(&mut waiting));
            // Where the page size changes a group becomes several.
            while !group.inputs.is_empty() {
                match self.merge(&group, None).await? {
                    Outcome::Merged(inputs) => drop(group.inputs.drain(..inputs.min(group.inputs.len()))),
                    // It waits for what follows, and nothing may be merged past it: a level has no holes.
                    Outcome::Waits => waiting = std::mem::take(&mut group.inputs),
                    outcome @ (Outcome::Unfit | Outcome::Changed) => return Ok(outcome),
                }
            }
        }
        Ok(Outcome::Waits)
    }

    /// Makes a snapshot where one is due.
    pub(super) async fn snapshot(&mut self) -> Result<(), MaintainError> {
        loop {
            let due = match schedule::snapshot(&self.usable(), self.policy, self.now) {
                Ok(Some(due)) => due,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.report.problems.push(error.to_string());
                    return Ok(());
                }
            };
            let Due { group, why } = due;
            if self.merge(&group, Some(why)).await? != Outcome::Changed {
                return Ok(());
            }
        }
    }

    /// Merges a group, as far as it can be.
    async fn merge(&mut self, group: &Group, why: Option<&'static str>) -> Result<Outcome, MaintainError> {
        let Some(name) = group.name() else { return Ok(Outcome::Waits) };
        let (inputs, input_bytes) = (group.inputs.len(), group.size_bytes());
        let is_first_snapshot =
            name.level == SNAPSHOT_LEVEL && group.inputs.first().is_some_and(|first| first.name.level != SNAPSHOT_LEVEL);
        let least = if is_first_snapshot || group.is_cut_off { 1 } else { 2 };
        if inputs < least {
            return Ok(Outcome::Waits);
        }
        if self.bad.contains(&name) {
            // What is damaged there could not be replaced. What follows is merged all the same.
            return Ok(Outcome::Merged(inputs));
        }
        if self.doing == Doing::Nothing {
            self.report.made.push(Made { name, inputs, input_bytes, size_bytes: 0, why });
            self.add(&group.inputs, name, input_bytes);
            return Ok(Outcome::Merged(inputs));
        }
        loop {
            match merging::merge(self.inputs(), &group.inputs, name, (least, self.policy.buffer_bytes()), self.pace).await {
                Ok(Some(merged)) => {
                    fault_point!("maintain.merged");
                    return Ok(Outcome::Merged(self.merged(&group.inputs, &merged, why)));
                }
                Ok(None) => return Ok(Outcome::Waits),
                // What was at hand is no good: the store has it.
                Err(MaintainError::Unfit { object, .. }) if self.at_hand.is_some_and(|at_hand| at_hand.discard(&object)) => {}
                // One object that is damaged does not keep the others from being looked after.
                Err(error @ MaintainError::Unfit { object, .. }) if group.inputs.iter().any(|input| input.name == object) => {
                    self.damaged(&object, &error).await?;
                    return Ok(Outcome::Changed);
                }
                Err(error @ (MaintainError::Unfit { .. } | MaintainError::NotStored { .. })) => {
                    self.report.problems.push(error.to_string());
                    self.holds_back = true;
                    return Ok(Outcome::Unfit);
                }
                Err(error) => return Err(error),
            }
        }
    }

    const fn inputs(&self) -> Inputs<'a> {
        Inputs { store: self.store, at_hand: self.at_hand }
    }

    /// Notes what was made; of how many inputs.
    pub(super) fn merged(&mut self, inputs: &[Listed], merged: &Merged, why: Option<&'static str>) -> usize {
        let Merged { name, inputs: count, size_bytes, .. } = *merged;
        let input_bytes = inputs.iter().take(count).map(|input| input.size_bytes).sum();
        self.report.made.push(Made { name, inputs: count, input_bytes, size_bytes, why });
        self.add(inputs, name, size_bytes);
        count
    }

    /// An object has another size than was known.
    pub(super) fn resized(&mut self, name: &LtxName, size_bytes: u64) {
        if let Some(file) = self.listings.iter_mut().find(|file| file.name == *name && file.size_bytes != size_bytes) {
            file.size_bytes = size_bytes;
            self.made.push(*file);
        }
    }

    /// Notes what was deleted.
    pub(super) fn deleted(&mut self, files: &[Listed]) {
        self.report.deleted.extend(files);
        self.gone.extend(files.iter().map(|file| file.name));
        let gone = &self.gone;
        self.listings.retain(|file| !gone.contains(&file.name));
        self.made.retain(|file| !gone.contains(&file.name));
    }

    fn add(&mut self, inputs: &[Listed], name: LtxName, size_bytes: u64) {
        let last = inputs.iter().rfind(|input| input.name.max_txid == name.max_txid);
        let Some(last) = last else { return };
        let timestamp = if last.timestamp_is_exact { last.timestamp } else { self.now };
        let made = Listed { name, size_bytes, timestamp, timestamp_is_exact: last.timestamp_is_exact };
        self.listings.push(made);
        self.made.push(made);
    }
}
