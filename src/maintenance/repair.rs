//! Damaged objects. Where files of lower levels, or an older snapshot, still have what an object had, it is made anew of them; else the round goes on as if it
//! were not there, and says what is lost.
//!
//! ```text
//! an object is no good -> it is read once more, alone
//!                      -> the files that lead from its first to its last TXID without it are read to their ends
//!                      -> it is deleted: every reader takes those files now
//!                      -> it is made again of them, under its name
//! ```
//!
//! A name that is taken cannot be written to (creation is conditional), and readers prefer the object that spans most: so it has to go before what replaces it
//! can have its name. What was cut off in between is a hole in a level, which the next round fills.

use super::at_hand::Inputs;
use super::error::{MaintainError, Unfit};
use super::merging;
use super::round::{Doing, Round};
use super::run::is_refusal;
use super::{retention, schedule};
use crate::fault::fault_point;
use crate::restore::fetch::retried;
use crate::restore::states::lost_without;
use crate::restore::{self, SMALLEST_FILE_BYTES, Target};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL};

/// What became of an object that was taken for damaged.
enum Renewal {
    /// It is good after all: whoever read it was told something else.
    Good,
    /// It was made anew of so many files.
    Renewed(usize),
    /// It cannot be, for this reason.
    Impossible(String),
}

/// Too short to be an LTX file, as an upload leaves one that was cut off where the store allows it. What was uploaded is not looked at here.
pub(super) fn is_short(file: &Listed) -> bool {
    file.name.level != Level::ZERO && file.size_bytes < SMALLEST_FILE_BYTES
}

impl Round<'_> {
    /// Objects that are too short to be any: they are seen in the listing.
    pub(super) async fn renew_short(&mut self) -> Result<(), MaintainError> {
        let short: Vec<Listed> = self.listings.iter().filter(|file| is_short(file)).copied().collect();
        for file in short {
            let error = MaintainError::Unfit { object: file.name, why: Unfit::Short(file.size_bytes) };
            self.damaged(&file.name, &error).await?;
        }
        Ok(())
    }

    /// Reads every file of the levels above 0, the finest level first, and makes those anew that are damaged.
    pub(super) async fn examine(&mut self) -> Result<(), MaintainError> {
        let mut names: Vec<LtxName> = self.listings.iter().map(|file| file.name).filter(|name| name.level != Level::ZERO).collect();
        names.sort_unstable();
        for name in names {
            let error = match merging::verify(self.store, &name, self.pace).await {
                Ok(summary) if summary.index_matches => continue,
                Ok(_) => MaintainError::Unfit { object: name, why: Unfit::Index },
                Err(error @ MaintainError::Unfit { .. }) => error,
                Err(error) => return Err(error),
            };
            self.damaged(&name, &error).await?;
        }
        Ok(())
    }

    /// An object was found damaged: it is made anew, or left out from here on.
    pub(super) async fn damaged(&mut self, object: &LtxName, why: &MaintainError) -> Result<(), MaintainError> {
        if self.bad.contains(object) {
            return Ok(());
        }
        if self.doing == Doing::Nothing {
            self.report.problems.push(format!("{why}; a round makes it anew, where other files have the same"));
            self.bad.insert(*object);
            return Ok(());
        }
        let reason = if self.renewed.insert(*object) {
            match self.renew(object).await? {
                Renewal::Good => return Ok(()),
                Renewal::Renewed(inputs) => {
                    self.report.repaired.push(format!("{why}: it was made anew of {inputs} others"));
                    return Ok(());
                }
                Renewal::Impossible(reason) => reason,
            }
        } else {
            "it has been looked at, or made anew, in this round".to_owned()
        };
        let told = self.loss(object, why, &reason);
        self.report.problems.push(told);
        // With a wrong index it can be merged and restored all the same.
        if !matches!(why, MaintainError::Unfit { why: Unfit::Index, .. }) {
            self.bad.insert(*object);
        }
        Ok(())
    }

    async fn renew(&mut self, object: &LtxName) -> Result<Renewal, MaintainError> {
        // Once more, before anything is deleted for it: what was read of it may have been damaged on its way.
        match merging::verify(self.store, object, self.pace).await {
            Ok(summary) if summary.index_matches => {
                self.resized(object, summary.size_bytes);
                return Ok(Renewal::Good);
            }
            Ok(_) | Err(MaintainError::Unfit { .. }) => {}
            Err(error) => return Err(error),
        }
        let inputs = match Box::pin(self.sound_inputs(object)).await? {
            Ok(inputs) => inputs,
            Err(reason) => return Ok(Renewal::Impossible(reason)),
        };
        if !self.policy.deletes {
            return Ok(Renewal::Impossible("nothing may be deleted, and only so it can be replaced".to_owned()));
        }
        self.pace.wait().await?;
        fault_point!("maintain.renew");
        match retried(async || self.store.delete(std::slice::from_ref(object)).await).await {
            Ok(()) => {}
            Err(error) if is_refusal(&error) => {
                return Ok(Renewal::Impossible(format!(
                    "it can only be replaced by deleting it, and the store does not let that be done: {error}"
                )));
            }
            Err(error) => return Err(error.into()),
        }
        fault_point!("maintain.renewing");
        self.listings.retain(|file| file.name != *object);
        let merged = merging::merge(Inputs::stored(self.store), &inputs, *object, (1, self.policy.buffer_bytes()), self.pace).await?;
        let Some(merged) = merged else { return Ok(Renewal::Impossible("what it was made of has changed meanwhile".to_owned())) };
        Ok(Renewal::Renewed(self.merged(&inputs, &merged, Some("it was damaged"))))
    }

    /// The files that have all that an object had, each read to its end and verified; or why there are none.
    async fn sound_inputs(&mut self, object: &LtxName) -> Result<Result<Vec<Listed>, String>, MaintainError> {
        loop {
            let Some(inputs) = self.inputs_without(object) else {
                return Ok(Err(format!("no other files lead from TXID {} to {}", object.min_txid, object.max_txid)));
            };
            if inputs.len() > self.policy.most_inputs() {
                return Ok(Err(format!("the {} files that have the same are too many to be merged at once", inputs.len())));
            }
            let mut page_sizes = Vec::new();
            for input in &inputs {
                match merging::verify(self.store, &input.name, self.pace).await {
                    Ok(summary) => page_sizes.push(summary.header.page_size),
                    Err(error @ MaintainError::Unfit { .. }) => {
                        // Made anew first, or gone around.
                        Box::pin(self.damaged(&input.name, &error)).await?;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            if page_sizes.len() < inputs.len() {
                continue;
            }
            page_sizes.dedup();
            return Ok(if page_sizes.len() == 1 { Ok(inputs) } else { Err("the page size changes in what it spans".to_owned()) });
        }
    }

    fn inputs_without(&self, object: &LtxName) -> Option<Vec<Listed>> {
        let others: Vec<Listed> = self.usable().iter().filter(|file| file.name != *object).copied().collect();
        if object.level != SNAPSHOT_LEVEL {
            return schedule::finer(&others, object.level, object.min_txid, object.max_txid);
        }
        let files = restore::plan(&others, Target::Txid(object.max_txid)).ok()?.files;
        // An empty file stands for the snapshot of its TXID, and carries nothing of what has changed with it.
        let is_marker = |file: &Listed| file.name.level == Level::ZERO && file.size_bytes <= SMALLEST_FILE_BYTES;
        let leads_by = others.iter().filter(|file| is_marker(file) && file.name.max_txid <= object.max_txid);
        let base = files.first().map(|base| base.name.max_txid);
        (leads_by.map(|marker| marker.name.max_txid).max() <= base).then_some(files)
    }

    /// What a damaged object costs that cannot be made anew, and what to do.
    fn loss(&self, object: &LtxName, why: &MaintainError, reason: &str) -> String {
        // As it was when it was good: one that is too short counts for nothing.
        let mut files = self.usable().into_owned();
        for file in files.iter_mut().filter(|file| file.name == *object) {
            file.size_bytes = file.size_bytes.max(SMALLEST_FILE_BYTES);
        }
        let floor = retention::floor(&files, self.policy, self.now);
        let lost = lost_without(&files, object, floor.as_ref());
        let newest = files.iter().map(|file| file.name.max_txid).max();
        let (Some(first), Some(last)) = (lost.first(), lost.last()) else {
            return format!(
                "{why}, and it is not made anew: {reason}. Other files lead to every state without it: move it out of the bucket"
            );
        };
        let states = if first == last { format!("TXID {first}") } else { format!("TXID {first} to {last} ({} states)", lost.len()) };
        let advice = if newest == Some(*last) {
            ", the newest state among them. Bring the object back from a mirror, a copy or an older version of the bucket; or give these states up: move the object \
             out of the bucket, and have the full state sent (`replicated adopt DATABASE URL`, and open it)"
        } else {
            ". Bring the object back from a mirror, a copy or an older version of the bucket"
        };
        format!("{why}, and it cannot be made anew: {reason}. Without it {states} cannot be restored{advice}")
    }
}
