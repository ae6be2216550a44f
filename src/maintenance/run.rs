//! One round of maintenance: merges what is due, makes a snapshot where one is due, deletes what nothing needs any more. In that order, and each
//! step leaves a bucket that every reader can use: an object appears complete, and goes only once what replaces it was read to its end.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::catalogue::{Catalogue, Certainty, Changes, Known, leads_there, list, uploaded_since};
use super::error::MaintainError;
use super::merging::{self, Merged};
use super::note::{Claim, Kept};
use super::pace::{Pace, Turn};
use super::policy::Policy;
use super::retention::{self, Outdated};
use super::schedule::{self, Due, Group};
use crate::fault::fault_point;
use crate::restore::fetch::retried;
use crate::restore::{self, Target, is_usable};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL, Store, StoreError};
use crate::types::{TimestampMs, Txid};

/// Objects of one request that deletes.
const BATCH: usize = 500;

/// A file that was made of others, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its name.
    pub name: LtxName,
    /// How many files it was made of.
    pub inputs: usize,
    /// Their size together.
    pub input_bytes: u64,
    /// Its size; 0 where it was not made.
    pub size_bytes: u64,
    /// Why: of a snapshot.
    pub why: Option<&'static str>,
}

/// What a round did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that the bucket had before.
    pub files: usize,
    /// Their size together.
    pub bytes: u64,
    /// Files that were made, in their order.
    pub made: Vec<Made>,
    /// Files that were deleted, in their order.
    pub deleted: Vec<Listed>,
    /// The snapshot that the oldest states of the window begin with; `None` while all history is younger than the window.
    pub floor: Option<Listed>,
    /// States that are kept although they are old.
    pub kept: Vec<Kept>,
    /// Why the store did not let files be deleted that could have been.
    pub refused: Option<String>,
    /// What was found wrong; nothing is deleted then.
    pub problems: Vec<String>,
}

/// Maintains one bucket, round after round.
#[derive(Debug)]
pub struct Maintainer {
    store: Arc<dyn Store>,
    policy: Policy,
    /// Read to their end by this process: not again before their inputs go.
    verified: BTreeSet<LtxName>,
    /// What the bucket has, as far as this process knows.
    known: Option<Known>,
    /// It is in the process that uploads, which knows by itself what is uploaded; claims are made under this number.
    inside: Option<u64>,
    /// What the last round has changed.
    changes: Changes,
}

/// What a round may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    All,
    /// Says what it would do.
    Nothing,
}

impl Maintainer {
    /// Of a bucket, by a policy.
    #[must_use]
    pub const fn new(store: Arc<dyn Store>, policy: Policy) -> Self {
        let changes = Changes { has_begun: false, is_listed: false, found_others: false, made: Vec::new(), gone: Vec::new() };
        Self { store, policy, verified: BTreeSet::new(), known: None, inside: None, changes }
    }

    /// For the process that uploads, and what it remembers: it makes no listing as long as that can be trusted.
    pub(crate) fn inside(store: Arc<dyn Store>, policy: Policy, node: u64, known: Option<Known>) -> Self {
        Self { known, inside: Some(node), ..Self::new(store, policy) }
    }

    /// What is known after a round, and what that has changed; `None` where it has found something wrong, or has failed.
    pub(crate) fn into_known(self) -> (Option<Known>, Changes) {
        (self.known, self.changes)
    }

    /// One round. `turn` is asked before each request.
    ///
    /// Of rounds that follow each other the first lists the bucket, and then one an hour; the others ask what was uploaded since, and delete nothing. In the
    /// process that uploads none does that knows what is there.
    ///
    /// # Errors
    /// Where the store fails, or another process maintains the bucket. What was done until then is complete.
    pub async fn round(&mut self, now: TimestampMs, turn: Option<&Turn>) -> Result<Report, MaintainError> {
        let store = Arc::clone(&self.store);
        self.changes = Changes::default();
        // Whatever happens on the way, what is known is forgotten with it.
        let mut catalogue = match self.known.take() {
            // Where nobody counts who has maintained the bucket, somebody may have.
            Some(known) if self.inside.is_some() && (known.generation.is_some() || known.is_recent(now)) => Catalogue::remembered(known),
            Some(known) if self.inside.is_none() && known.is_recent(now) => uploaded_since(&*store, known).await?,
            _ => self.list(now, turn).await?,
        };
        if !self.is_due(&catalogue, now) {
            let report = Report::of(&catalogue);
            self.known = Some(catalogue.into_known());
            return Ok(report);
        }
        self.make_way(turn).await?;
        let claim = Claim::take(&*store, self.inside).await?;
        self.changes.has_begun = true;
        fault_point!("maintain.claimed");
        if claim.generation().is_some_and(|generation| catalogue.generation.map(|known| known.saturating_add(1)) != Some(generation)) {
            self.changes.found_others = !claim.was_ours();
            catalogue = self.list(now, turn).await?;
        }
        catalogue.generation = claim.generation();
        let outcome = self.work(&*store, now, catalogue, &Pace::new(turn, Some(&claim)), Some(&claim)).await;
        claim.release().await;
        outcome
    }

    /// In the process that uploads there is somebody to make way for from the beginning.
    async fn make_way(&self, turn: Option<&Turn>) -> Result<(), MaintainError> {
        if self.inside.is_some() { Pace::new(turn, None).wait().await } else { Ok(()) }
    }

    async fn list(&mut self, now: TimestampMs, turn: Option<&Turn>) -> Result<Catalogue, MaintainError> {
        self.changes.is_listed = true;
        self.make_way(turn).await?;
        list(&*self.store, now).await
    }

    /// What a round would do, without doing it.
    ///
    /// # Errors
    /// Where the store cannot be listed.
    pub async fn plan(&mut self, now: TimestampMs) -> Result<Report, MaintainError> {
        let store = Arc::clone(&self.store);
        let catalogue = list(&*store, now).await?;
        let outcome = self.work(&*store, now, catalogue, &Pace::none(), None).await;
        self.known = None;
        outcome
    }

    /// Whether there is anything to do or to tell. Asked without a claim.
    fn is_due(&self, catalogue: &Catalogue, now: TimestampMs) -> bool {
        let files = &catalogue.files;
        let is_merge = |group: &Group| group.is_cut_off || group.inputs.len() > 1;
        let may_delete = catalogue.certainty != Certainty::Added && (self.policy.deletes || self.inside.is_none());
        let deletes = || may_delete && !retention::outdated(files, &self.policy, now, &[]).is_ok_and(|outdated| outdated.is_empty());
        !files.is_empty()
            && (schedule::compacted_levels().any(|(level, _)| schedule::groups(files, level, &self.policy, now).iter().any(is_merge))
                || !matches!(schedule::snapshot(files, &self.policy, now), Ok(None))
                || deletes())
    }

    /// Does it, or says what it would do where there is no claim.
    async fn work(
        &mut self,
        store: &dyn Store,
        now: TimestampMs,
        catalogue: Catalogue,
        pace: &Pace<'_>,
        claim: Option<&Claim<'_>>,
    ) -> Result<Report, MaintainError> {
        let mut report = Report::of(&catalogue);
        let Catalogue { files: listings, listed, generation, certainty, .. } = catalogue;
        if listings.is_empty() {
            return Ok(report);
        }
        let before = listings.len();
        if let Err(error) = restore::plan(&listings, Target::Latest) {
            // A gap may be one of the listing only, and what is merged beyond it would leave a hole in a level for ever.
            report.problems.push(format!("{error}; nothing is merged or deleted"));
            return Ok(report);
        }
        let names: BTreeSet<LtxName> = listings.iter().map(|file| file.name).collect();
        self.verified.retain(|name| names.contains(name));
        let doing = if claim.is_some() { Doing::All } else { Doing::Nothing };
        let mut round = Round { store, policy: &self.policy, now, pace, doing, listings, report: &mut report };
        // Before Litestream could take what the others begin with for merged: it goes by the end of level 1 alone.
        if !round.listings.iter().any(|file| file.name.level == SNAPSHOT_LEVEL && is_usable(file)) {
            round.snapshot().await?;
        }
        for (level, _) in schedule::compacted_levels() {
            round.compact(level).await?;
        }
        round.snapshot().await?;
        let mut files = round.listings;
        self.changes.made = files.get(before..).unwrap_or_default().to_vec();
        if certainty != Certainty::Added {
            if let Some(claim) = claim {
                // Read again: what was kept since must not go.
                report.kept = claim.renew().await?;
            }
            let kept: Vec<Txid> = report.kept.iter().map(|kept| kept.txid).collect();
            match retention::outdated(&files, &self.policy, now, &kept) {
                Ok(outdated) => {
                    report.floor = outdated.floor;
                    if !retention::still_leads(&files, &outdated, &kept) {
                        report.problems.push("what would be left does not lead to every state that it must".to_owned());
                    } else if self.policy.deletes && report.problems.is_empty() && !outdated.is_empty() {
                        let is_there =
                            certainty == Certainty::Listed || leads_there(store, &files, &outdated, &kept, pace, &mut report).await?;
                        if is_there {
                            self.delete(store, &outdated, pace, doing, &mut report).await?;
                        }
                    }
                }
                Err(error) => report.problems.push(error.to_string()),
            }
        }
        report.problems.dedup();
        let gone: BTreeSet<LtxName> = report.deleted.iter().map(|file| file.name).collect();
        files.retain(|file| !gone.contains(&file.name));
        self.changes.gone = gone.into_iter().collect();
        self.known = Some(Known { files, listed, generation }).filter(|_| report.problems.is_empty());
        Ok(report)
    }

    /// Deletes it, each file only after what replaces it has been read.
    ///
    /// Snapshots first: once nothing leads to a state it is refused, where a chain that has lost a part of its middle would pass for an older state with
    /// Litestream and a time. Of level 0 the newest first, for the same reason.
    async fn delete(
        &mut self,
        store: &dyn Store,
        outdated: &Outdated,
        pace: &Pace<'_>,
        doing: Doing,
        report: &mut Report,
    ) -> Result<(), MaintainError> {
        if doing == Doing::Nothing {
            report.deleted = outdated.files().copied().collect();
            return Ok(());
        }
        let below: Vec<&[Listed]> = vec![&outdated.snapshots, &outdated.increments];
        let floor = outdated.floor.map(|floor| floor.name);
        let by_floor = below.into_iter().filter_map(|files| Some((floor?, files)));
        let by_spans = outdated.spanned.iter().rev().map(|(by, files)| (*by, files.as_slice()));
        for (by, files) in by_floor.chain(by_spans).filter(|(_, files)| !files.is_empty()) {
            if !self.verified.contains(&by) {
                fault_point!("maintain.verify");
                match merging::verify(store, &by, pace).await {
                    Ok(_) => self.verified.insert(by),
                    Err(error @ MaintainError::Unfit { .. }) => {
                        report.problems.push(format!("{error}; what it would replace is left alone"));
                        continue;
                    }
                    Err(error) => return Err(error),
                };
            }
            for batch in files.chunks(BATCH) {
                pace.wait().await?;
                let names: Vec<LtxName> = batch.iter().map(|file| file.name).collect();
                fault_point!("maintain.delete");
                match retried(async || store.delete(&names).await).await {
                    Ok(()) => report.deleted.extend(batch),
                    Err(error) if is_refusal(&error) => {
                        report.refused = Some(error.to_string());
                        return Ok(());
                    }
                    Err(error) => return Err(error.into()),
                }
                fault_point!("maintain.deleted");
            }
        }
        Ok(())
    }
}

impl Report {
    fn of(catalogue: &Catalogue) -> Self {
        let bytes = catalogue.files.iter().map(|file| file.size_bytes).sum();
        Self { files: catalogue.files.len(), bytes, kept: catalogue.kept.clone(), ..Self::default() }
    }
}

/// The store does not let it be deleted: by the credentials, or by a lock on the object. That is the user's wish.
const fn is_refusal(error: &StoreError) -> bool {
    !error.is_transient()
}

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// So many of its inputs are merged.
    Merged(usize),
    /// It is too little by itself.
    Waits,
    /// Something is wrong with an input, as the report says.
    Unfit,
}

/// What a round knows.
struct Round<'a> {
    store: &'a dyn Store,
    policy: &'a Policy,
    now: TimestampMs,
    pace: &'a Pace<'a>,
    doing: Doing,
    listings: Vec<Listed>,
    report: &'a mut Report,
}

impl Round<'_> {
    async fn compact(&mut self, level: Level) -> Result<(), MaintainError> {
        let mut waiting = Vec::new();
        for mut group in schedule::groups(&self.listings, level, self.policy, self.now) {
            group.inputs.splice(0..0, std::mem::take(&mut waiting));
            // Where the page size changes a group becomes several.
            while !group.inputs.is_empty() {
                match self.merge(&group, None).await? {
                    Outcome::Merged(inputs) => drop(group.inputs.drain(..inputs.min(group.inputs.len()))),
                    // It waits for what follows, and nothing may be merged past it: a level has no holes.
                    Outcome::Waits => waiting = std::mem::take(&mut group.inputs),
                    Outcome::Unfit => return Ok(()),
                }
            }
        }
        Ok(())
    }

    async fn snapshot(&mut self) -> Result<(), MaintainError> {
        match schedule::snapshot(&self.listings, self.policy, self.now) {
            Ok(Some(Due { group, why })) => self.merge(&group, Some(why)).await.map(drop),
            Ok(None) => Ok(()),
            Err(error) => {
                self.report.problems.push(error.to_string());
                Ok(())
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
        if self.doing == Doing::Nothing {
            self.report.made.push(Made { name, inputs, input_bytes, size_bytes: 0, why });
            self.add(group, name, input_bytes);
            return Ok(Outcome::Merged(inputs));
        }
        match merging::merge(self.store, &group.inputs, name, (least, self.policy.buffer_bytes()), self.pace).await {
            Ok(Some(Merged { inputs: merged, name, size_bytes, .. })) => {
                fault_point!("maintain.merged");
                let input_bytes = group.inputs.iter().take(merged).map(|input| input.size_bytes).sum();
                self.report.made.push(Made { name, inputs: merged, input_bytes, size_bytes, why });
                self.add(group, name, size_bytes);
                Ok(Outcome::Merged(merged))
            }
            Ok(None) => Ok(Outcome::Waits),
            // One object that is damaged does not keep the others from being looked after.
            Err(error @ (MaintainError::Unfit { .. } | MaintainError::NotStored { .. })) => {
                self.report.problems.push(error.to_string());
                Ok(Outcome::Unfit)
            }
            Err(error) => Err(error),
        }
    }

    fn add(&mut self, group: &Group, name: LtxName, size_bytes: u64) {
        let last = group.inputs.iter().rfind(|input| input.name.max_txid == name.max_txid);
        let Some(last) = last else { return };
        let timestamp = if last.timestamp_is_exact { last.timestamp } else { self.now };
        self.listings.push(Listed { name, size_bytes, timestamp, timestamp_is_exact: last.timestamp_is_exact });
    }
}
