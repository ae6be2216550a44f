//! What a bucket has: listed, or remembered and then looked at before anything is deleted.

use super::error::{MaintainError, Unfit};
use super::note::{self, Kept};
use super::retention::Outdated;
use super::round::Round;
use crate::restore::fetch::{list_upwards, retried};
use crate::restore::{self, Target};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL, Store, StoreErrorKind};
use crate::types::{TimestampMs, Txid};

/// What is known of a bucket is asked for again after so long.
const LISTED_EVERY_MS: i64 = 3_600_000;

/// What a round has left behind, or what is remembered of one.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) files: Vec<Listed>,
    /// When all levels were listed.
    pub(crate) listed: TimestampMs,
    /// The claim it was made with: if nobody has taken another one, nobody else has changed anything but by uploading. `None` where nobody counts.
    pub(crate) generation: Option<u64>,
}

impl Known {
    /// Whether it was listed not long ago.
    pub(super) const fn is_recent(&self, now: TimestampMs) -> bool {
        now.0.saturating_sub(self.listed.0) < LISTED_EVERY_MS
    }
}

/// What a round has changed of what was known before.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The claim was taken: from here on the bucket may be another.
    pub(crate) has_begun: bool,
    /// All levels were listed: nothing that was known before counts.
    pub(crate) is_listed: bool,
    /// Somebody else has maintained the bucket since.
    pub(crate) found_others: bool,
    pub(crate) made: Vec<Listed>,
    pub(crate) gone: Vec<LtxName>,
}

/// How sure it is what the bucket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Certainty {
    /// All levels have been listed just now.
    Listed,
    /// It is what this process, which alone uploads and maintains, has left there. Before anything is deleted, what it leads to is looked at.
    Remembered,
    /// It was listed a while ago, and what others have uploaded since was asked for. Nothing is deleted.
    Added,
}

/// The files of a bucket, and how they came to be known.
pub(super) struct Catalogue {
    pub(super) files: Vec<Listed>,
    pub(super) listed: TimestampMs,
    pub(super) generation: Option<u64>,
    pub(super) kept: Vec<Kept>,
    pub(super) certainty: Certainty,
}

impl Catalogue {
    pub(super) fn remembered(known: Known) -> Self {
        let Known { files, listed, generation } = known;
        Self { files, listed, generation, kept: Vec::new(), certainty: Certainty::Remembered }
    }

    pub(super) fn into_known(self) -> Known {
        Known { files: self.files, listed: self.listed, generation: self.generation }
    }
}

/// Everything that the bucket has, and what its note says: in this order the note cannot be newer than the listing.
pub(super) async fn list(store: &dyn Store, now: TimestampMs) -> Result<Catalogue, MaintainError> {
    let (kept, generation) = note::read(store).await?;
    let files = list_upwards(store).await?;
    Ok(Catalogue { files, listed: now, generation: Some(generation), kept, certainty: Certainty::Listed })
}

/// What was known and what uploads have added: behind the end of level 0, and a snapshot where the page size has changed.
pub(super) async fn uploaded_since(store: &dyn Store, known: Known) -> Result<Catalogue, MaintainError> {
    let Known { mut files, listed, generation } = known;
    let newest = files.iter().filter(|file| file.name.level == Level::ZERO).map(|file| file.name.max_txid).max();
    let added = retried(async || store.list(Level::ZERO, newest.map(Txid::next)).await).await?;
    files.extend(added);
    let snapshots = retried(async || store.list(SNAPSHOT_LEVEL, None).await).await?;
    files.retain(|file| file.name.level != SNAPSHOT_LEVEL);
    files.extend(snapshots);
    Ok(Catalogue { files, listed, generation, kept: Vec::new(), certainty: Certainty::Added })
}

/// What is known of the files that lead to the states which must stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// They are there.
    Certainly,
    /// One was damaged, and was made anew or is left out from here on.
    Changed,
    /// One is not there.
    Not,
}

/// Before anything below the floor goes by what is remembered: whether each file is still there that leads to the newest state, and to what is kept. The
/// floor itself, and what replaces files of level 0, are read to their ends anyway.
pub(super) async fn leads_there(
    round: &mut Round<'_>,
    files: &[Listed],
    outdated: &Outdated,
    kept: &[Txid],
) -> Result<Leads, MaintainError> {
    if outdated.snapshots.is_empty() && outdated.increments.is_empty() {
        return Ok(Leads::Certainly);
    }
    let targets = kept.iter().copied().map(Target::Txid).chain([Target::Latest]);
    let mut leading: Vec<Listed> = targets.filter_map(|target| restore::plan(files, target).ok()).flat_map(|plan| plan.files).collect();
    leading.sort_by_key(|file| file.name);
    leading.dedup_by_key(|file| file.name);
    for file in leading {
        round.pace.wait().await?;
        match retried(async || round.store.head(&file.name).await).await {
            Ok(found) if found.size_bytes == file.size_bytes => {}
            Ok(found) => {
                let why = Unfit::Size { found: found.size_bytes, expected: file.size_bytes };
                round.resized(&file.name, found.size_bytes);
                round.damaged(&file.name, &MaintainError::Unfit { object: file.name, why }).await?;
                return Ok(Leads::Changed);
            }
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                round.report.problems.push(format!("{} is not there any more: nothing is deleted", file.name));
                return Ok(Leads::Not);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Leads::Certainly)
}
