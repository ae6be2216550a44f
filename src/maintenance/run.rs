//! One round of maintenance: merges what is due, makes a snapshot where one is due, deletes what nothing needs any more. In that order, and each
//! step leaves a bucket that every reader can use: an object appears complete, and goes only once what replaces it was read to its end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::error::MaintainError;
use super::merging::{self, Merged};
use super::note::{self, Claim, Kept};
use super::pace::{Pace, Turn};
use super::policy::{Policy, millis};
use super::retention::{self, Outdated};
use super::schedule::{self, Due, Group};
use crate::fault::fault_point;
use crate::restore::fetch::{list_upwards, retried};
use crate::restore::{self, Target, is_usable};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL, Store, StoreError};
use crate::types::{TimestampMs, Txid};

/// What is known of a bucket is asked for again after so long.
const LISTED_EVERY: Duration = Duration::from_secs(3600);
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
}

/// What a round has left behind.
#[derive(Debug)]
struct Known {
    files: Vec<Listed>,
    /// When all levels were listed.
    listed: TimestampMs,
    /// The claim it was made with: if nobody has taken another one, nobody else has changed anything but by uploading.
    generation: u64,
}

/// The files of a bucket, and how they came to be known.
struct Catalogue {
    files: Vec<Listed>,
    listed: TimestampMs,
    generation: u64,
    kept: Vec<Kept>,
    /// All levels have been listed just now. Only then is anything deleted.
    is_fresh: bool,
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
        Self { store, policy, verified: BTreeSet::new(), known: None }
    }

    /// One round. `turn` is asked before each request.
    ///
    /// Of rounds that follow each other the first lists the bucket, and then one an hour; the others ask what was uploaded since, and delete nothing.
    ///
    /// # Errors
    /// Where the store fails, or another process maintains the bucket. What was done until then is complete.
    pub async fn round(&mut self, now: TimestampMs, turn: Option<&Turn>) -> Result<Report, MaintainError> {
        let store = Arc::clone(&self.store);
        // Whatever happens on the way, what is known is forgotten with it.
        let mut catalogue = match self.known.take() {
            Some(known) if now.0.saturating_sub(known.listed.0) < millis(LISTED_EVERY) => uploaded_since(&*store, known).await?,
            _ => list(&*store, now).await?,
        };
        if !self.is_due(&catalogue, now) {
            let report = Report::of(&catalogue);
            self.known = Some(Known { files: catalogue.files, listed: catalogue.listed, generation: catalogue.generation });
            return Ok(report);
        }
        let claim = Claim::take(&*store).await?;
        fault_point!("maintain.claimed");
        if claim.generation().is_some_and(|generation| generation != catalogue.generation.saturating_add(1)) {
            catalogue = list(&*store, now).await?;
        }
        catalogue.generation = claim.generation().unwrap_or_default();
        let outcome = self.work(&*store, now, catalogue, &Pace::new(turn, Some(&claim)), Some(&claim)).await;
        claim.release().await;
        outcome
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
        let deletes =
            || catalogue.is_fresh && !retention::outdated(files, &self.policy, now, &[]).is_ok_and(|outdated| outdated.is_empty());
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
        let Catalogue { files: listings, listed, generation, is_fresh, .. } = catalogue;
        if listings.is_empty() {
            return Ok(report);
        }
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
        if is_fresh {
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
                        self.delete(store, &outdated, pace, doing, &mut report).await?;
                    }
                }
                Err(error) => report.problems.push(error.to_string()),
            }
        }
        report.problems.dedup();
        let gone: BTreeSet<LtxName> = report.deleted.iter().map(|file| file.name).collect();
        files.retain(|file| !gone.contains(&file.name));
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

/// Everything that the bucket has, and what its note says: in this order the note cannot be newer than the listing.
async fn list(store: &dyn Store, now: TimestampMs) -> Result<Catalogue, MaintainError> {
    let (kept, generation) = note::read(store).await?;
    let files = list_upwards(store).await?;
    Ok(Catalogue { files, listed: now, generation, kept, is_fresh: true })
}

/// What was known and what uploads have added: behind the end of level 0, and a snapshot where the page size has changed.
async fn uploaded_since(store: &dyn Store, known: Known) -> Result<Catalogue, MaintainError> {
    let Known { mut files, listed, generation } = known;
    let newest = files.iter().filter(|file| file.name.level == Level::ZERO).map(|file| file.name.max_txid).max();
    let added = retried(async || store.list(Level::ZERO, newest.map(Txid::next)).await).await?;
    files.extend(added);
    let snapshots = retried(async || store.list(SNAPSHOT_LEVEL, None).await).await?;
    files.retain(|file| file.name.level != SNAPSHOT_LEVEL);
    files.extend(snapshots);
    Ok(Catalogue { files, listed, generation, kept: Vec::new(), is_fresh: false })
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
