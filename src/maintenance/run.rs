//! One round of maintenance: merges what is due, makes a snapshot where one is due, deletes what nothing needs any more. In that order, and each
//! step leaves a bucket that every reader can use: an object appears complete, and goes only once what replaces it was read to its end.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::at_hand::AtHand;
use super::catalogue::{Catalogue, Certainty, Changes, Known, Leads, leads_there, list, uploaded_since};
use super::error::MaintainError;
use super::merging;
use super::note::{Claim, Kept};
use super::pace::{Pace, Turn};
use super::policy::Policy;
use super::repair;
use super::retention::{self, Outdated};
use super::round::{Doing, Round};
use super::schedule::{self, Group};
use crate::fault::fault_point;
use crate::restore::fetch::retried;
use crate::restore::{self, Target};
use crate::store::{Listed, LtxName, Store, StoreError};
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
    /// Files that were damaged, and were made anew.
    pub repaired: Vec<String>,
    /// Why the store did not let files be deleted that could have been.
    pub refused: Option<String>,
    /// What was found wrong, and could not be put right.
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
    /// What need not be asked of the store.
    at_hand: Option<Arc<dyn AtHand>>,
    /// Whether every file above level 0 is read, to see whether it is damaged.
    examines: bool,
    /// What the last round has changed.
    changes: Changes,
}

impl Maintainer {
    /// Of a bucket, by a policy.
    #[must_use]
    pub const fn new(store: Arc<dyn Store>, policy: Policy) -> Self {
        let changes = Changes { has_begun: false, is_listed: false, found_others: false, made: Vec::new(), gone: Vec::new() };
        Self { store, policy, verified: BTreeSet::new(), known: None, inside: None, at_hand: None, examines: false, changes }
    }

    /// For the process that uploads, and what it remembers: it makes no listing as long as that can be trusted.
    pub(crate) fn inside(store: Arc<dyn Store>, policy: Policy, node: u64, known: Option<Known>, at_hand: Option<Arc<dyn AtHand>>) -> Self {
        Self { known, inside: Some(node), at_hand, ..Self::new(store, policy) }
    }

    /// The same, which reads every file above level 0 in each round, and makes those anew that are damaged. A round without it finds what it comes across.
    #[must_use]
    pub fn examining(self) -> Self {
        Self { examines: true, ..self }
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
            if let Some(at_hand) = self.at_hand.as_ref().filter(|_| self.changes.found_others) {
                at_hand.forget();
            }
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
        let holes = |level| schedule::holes(files, level, &self.policy, now);
        !files.is_empty()
            && (self.examines
                || files.iter().any(repair::is_short)
                || schedule::compacted_levels().any(|(level, _)| !holes(level).is_empty())
                || schedule::compacted_levels().any(|(level, _)| schedule::groups(files, level, &self.policy, now).iter().any(is_merge))
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
        let names: BTreeSet<LtxName> = listings.iter().map(|file| file.name).collect();
        self.verified.retain(|name| names.contains(name));
        let doing = if claim.is_some() { Doing::All } else { Doing::Nothing };
        let (policy, at_hand) = (self.policy.clone(), self.at_hand.clone());
        let mut round = Round {
            store,
            at_hand: at_hand.as_deref(),
            policy: &policy,
            now,
            pace,
            doing,
            listings,
            made: Vec::new(),
            gone: BTreeSet::new(),
            bad: BTreeSet::new(),
            renewed: BTreeSet::new(),
            holds_back: false,
            report: &mut report,
        };
        round.renew_short().await?;
        if self.examines {
            round.examine().await?;
        }
        if let Err(error) = restore::plan(&round.usable(), Target::Latest) {
            // A gap may be one of the listing only.
            round.report.problems.push(format!("{error}; nothing is merged or deleted"));
            return Ok(report);
        }
        // Before Litestream could take what the others begin with for merged: it goes by the end of level 1 alone.
        if !round.has_base() {
            round.snapshot().await?;
        }
        for (level, _) in schedule::compacted_levels() {
            round.compact(level).await?;
        }
        round.snapshot().await?;
        if certainty != Certainty::Added {
            if let Some(claim) = claim {
                // Read again: what was kept since must not go.
                round.report.kept = claim.renew().await?;
            }
            self.verified.retain(|name| !round.renewed.contains(name));
            // Each time something was found damaged, what leads where is another question.
            while self.delete_outdated(&mut round, certainty).await? == Deleted::Changed {}
        }
        let Round { listings: files, made, gone, .. } = round;
        (self.changes.made, self.changes.gone) = (made, gone.into_iter().collect());
        report.problems.dedup();
        self.known = Some(Known { files, listed, generation }).filter(|_| report.problems.is_empty());
        Ok(report)
    }

    /// Deletes what nothing needs any more, as far as what remains leads to every state that it must.
    async fn delete_outdated(&mut self, round: &mut Round<'_>, certainty: Certainty) -> Result<Deleted, MaintainError> {
        let kept: Vec<Txid> = round.report.kept.iter().map(|kept| kept.txid).collect();
        let files = round.usable().into_owned();
        let outdated = match retention::outdated(&files, round.policy, round.now, &kept) {
            Ok(outdated) => outdated,
            Err(error) => {
                round.report.problems.push(format!("{error}: nothing is deleted"));
                return Ok(Deleted::AsFarAsPossible);
            }
        };
        round.report.floor = outdated.floor;
        if !retention::still_leads(&files, &outdated, &kept) {
            round.report.problems.push("what would be left does not lead to every state that it must".to_owned());
            return Ok(Deleted::AsFarAsPossible);
        }
        if !round.policy.deletes || round.holds_back || outdated.is_empty() {
            return Ok(Deleted::AsFarAsPossible);
        }
        if certainty == Certainty::Remembered {
            match leads_there(round, &files, &outdated, &kept).await? {
                Leads::Certainly => {}
                Leads::Changed => return Ok(Deleted::Changed),
                Leads::Not => return Ok(Deleted::AsFarAsPossible),
            }
        }
        self.delete(&outdated, round).await
    }

    /// Deletes it, each file only after what replaces it has been read.
    ///
    /// Snapshots first: once nothing leads to a state it is refused, where a chain that has lost a part of its middle would pass for an older state with
    /// Litestream and a time. Of level 0 the newest first, for the same reason.
    async fn delete(&mut self, outdated: &Outdated, round: &mut Round<'_>) -> Result<Deleted, MaintainError> {
        if round.doing == Doing::Nothing {
            round.report.deleted = outdated.files().copied().collect();
            return Ok(Deleted::AsFarAsPossible);
        }
        let store = round.store;
        let below: Vec<&[Listed]> = vec![&outdated.snapshots, &outdated.increments];
        let floor = outdated.floor.map(|floor| floor.name);
        let by_floor = below.into_iter().filter_map(|files| Some((floor?, files)));
        let by_spans = outdated.spanned.iter().rev().map(|(by, files)| (*by, files.as_slice()));
        for (by, files) in by_floor.chain(by_spans).filter(|(_, files)| !files.is_empty()) {
            if !self.verified.contains(&by) {
                fault_point!("maintain.verify");
                match merging::verify(store, &by, round.pace).await {
                    Ok(_) => self.verified.insert(by),
                    Err(error @ MaintainError::Unfit { .. }) => {
                        round.damaged(&by, &error).await?;
                        return Ok(Deleted::Changed);
                    }
                    Err(error) => return Err(error),
                };
            }
            for batch in files.chunks(BATCH) {
                round.pace.wait().await?;
                let names: Vec<LtxName> = batch.iter().map(|file| file.name).collect();
                fault_point!("maintain.delete");
                match retried(async || store.delete(&names).await).await {
                    Ok(()) => round.deleted(batch),
                    Err(error) if is_refusal(&error) => {
                        round.report.refused = Some(error.to_string());
                        return Ok(Deleted::AsFarAsPossible);
                    }
                    Err(error) => return Err(error.into()),
                }
                fault_point!("maintain.deleted");
            }
        }
        Ok(Deleted::AsFarAsPossible)
    }
}

/// What became of deleting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deleted {
    /// What can go is gone.
    AsFarAsPossible,
    /// Something was found damaged, and was made anew or is left out from here on.
    Changed,
}

impl Report {
    fn of(catalogue: &Catalogue) -> Self {
        let bytes = catalogue.files.iter().map(|file| file.size_bytes).sum();
        Self { files: catalogue.files.len(), bytes, kept: catalogue.kept.clone(), ..Self::default() }
    }
}

/// The store does not let it be deleted: by the credentials, or by a lock on the object. That is the user's wish.
pub(super) const fn is_refusal(error: &StoreError) -> bool {
    !error.is_transient()
}
