//! Whether a bucket holds what it promises: reads it, restores states of it, and says what is wrong, object by object.
//!
//! ```text
//! list -> what the window promises, and whether names lead there   (shape)
//!      -> every object of that, once, in the order of the states   (reading: checksums, index, header; pages: what the levels say of one state)
//!      -> some states, restored to a temporary place                (points)
//! ```
//!
//! It writes nothing to the bucket. `Verifier::light` is what a process can do beside its work: the newest state's files, and no database.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::ltx::{HEADER_BYTES, Header};
use crate::maintenance::{Turn, note};
use crate::restore::fetch::{list_upwards, retried};
use crate::restore::{self, Plan, PlanError, RestoreError, RestoreOptions, Target};
use crate::store::{Level, Listed, LtxName, Store, StoreErrorKind};
use crate::types::{TimestampMs, Txid};

mod beside;
mod error;
mod lease;
mod local;
mod pages;
mod points;
mod reading;
mod report;
mod shape;

pub use beside::{Beside, Told, beside};
pub use error::VerifyError;
pub use lease::{Lease, lease};
pub use local::{Local, local};
pub use points::{Look, Point, PointReport};
pub use report::{Finding, Kind, MOST_FINDINGS, Outcome, Report};

use reading::{Ended, Reading};
use shape::Shape;

/// What is wrong with a listing is looked at so often: it may have been one of the moment.
const MOST_LOOKS: u32 = 3;
const NOT_THERE: &str = "the store lists it, and says that it is not there when it is asked for";

/// What of a bucket is looked at, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Any state younger than this is promised: see `maintenance::Policy`.
    pub history: Duration,
    /// Within the last so much of it, each upload is.
    pub exact: Duration,
    /// Whether what nothing promises any more is read as well, each file by itself.
    pub everything: bool,
    /// Requests at once.
    pub parallelism: usize,
    /// Memory for what has been asked for, and for the checksums of pages by which levels are compared, each a half.
    pub max_memory_bytes: u64,
}

impl Default for Scope {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self {
            history: day,
            exact: day,
            everything: false,
            parallelism: restore::DEFAULT_PARALLELISM,
            max_memory_bytes: restore::DEFAULT_MAX_MEMORY_BYTES,
        }
    }
}

/// Looks at one bucket.
#[derive(Debug)]
pub struct Verifier {
    store: Arc<dyn Store>,
    scope: Scope,
}

impl Verifier {
    /// Of a bucket.
    #[must_use]
    pub const fn new(store: Arc<dyn Store>, scope: Scope) -> Self {
        Self { store, scope }
    }

    /// Its store.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Reads all that the bucket promises. `turn` is asked before each request for an object.
    ///
    /// # Errors
    /// Where the bucket cannot be listed, or `turn` ends the work. What cannot be read later is in the report.
    pub async fn read(&self, now: TimestampMs, turn: Option<&Turn>) -> Result<Report, VerifyError> {
        let store = &*self.store;
        let (kept, _) = note::read(store).await?;
        let txids: Vec<Txid> = kept.iter().map(|kept| kept.txid).collect();
        let (mut listings, mut shape) = self.look(now, &txids).await?;
        for _ in 1..MOST_LOOKS {
            if shape.findings.is_empty() && shape.if_ours.is_empty() {
                break;
            }
            // Somebody may have been at work between one level and the next.
            (listings, shape) = self.look(now, &txids).await?;
        }
        let mut report = Report {
            files: listings.len(),
            bytes: listings.iter().map(|file| file.size_bytes).sum(),
            files_not_promised: listings.len().saturating_sub(shape.reads.len() + shape.others.len()),
            kept,
            ..Report::default()
        };
        let mut reading = Reading::new(store, &listings, shape.floor, self.scope.max_memory_bytes / 2, &mut report);
        if let Ended::Whole = reading.read(&shape.reads, &self.scope, turn).await? {
            reading.read_alone(&shape.others, &self.scope, turn).await?;
        }
        let (vanished, theirs) = (std::mem::take(&mut reading.vanished), std::mem::take(&mut reading.theirs));
        let times = std::mem::take(&mut reading.times);
        if !times.is_empty() {
            // The listing had the times of the uploads, or of a copy, which are later: less than it seemed may be promised.
            for file in &mut listings {
                file.timestamp = times.get(&file.name).copied().unwrap_or(file.timestamp);
            }
            shape = shape::look(&listings, &self.scope, now, &txids);
        }
        (report.floor, report.newest) = (shape.floor, shape.newest);
        (report.states, report.notes) = (shape.states, shape.notes);
        let of_objects = std::mem::take(&mut report.findings);
        shape.findings.into_iter().for_each(|finding| report.add(finding));
        for finding in shape.if_ours {
            if is_theirs(&finding, &theirs) {
                report.notes.push(format!("{}, as Litestream keeps its buckets", finding.what));
            } else {
                report.add(finding);
            }
        }
        of_objects.into_iter().for_each(|finding| report.add(finding));
        if let Err(error) = self.look_again(now, &txids, &vanished, &mut report).await {
            report.not_checked.push(format!("{} files that were gone when they were to be read: {error}", vanished.len()));
        }
        Ok(report)
    }

    /// The light form: the newest state's files alone, each read to its end and its checksums verified; that they lead to that state and leave out no page.
    /// It takes the memory of the requests on their way and writes nothing. `turn` is asked before each request.
    ///
    /// # Errors
    /// As `read`.
    pub async fn light(&self, turn: Option<&Turn>) -> Result<Report, VerifyError> {
        self.light_from(None, turn).await
    }

    /// The same by who knows of a state that the bucket had before: it must lead there at least.
    ///
    /// # Errors
    /// As `read`.
    pub(crate) async fn light_from(&self, had: Option<Txid>, turn: Option<&Turn>) -> Result<Report, VerifyError> {
        let store = &*self.store;
        let (mut listings, mut planned) = self.newest_state(had, turn).await?;
        let mut looks = 0;
        loop {
            looks += 1;
            let newest = listings.iter().max_by_key(|file| (file.name.max_txid, std::cmp::Reverse(file.name.level))).copied();
            let bytes = listings.iter().map(|file| file.size_bytes).sum();
            let mut report = Report { files: listings.len(), bytes, newest, ..Report::default() };
            let plan = match planned {
                Ok(plan) => plan,
                Err(PlanError::Empty) if store.has_generations().await? => {
                    return Err(VerifyError::Generations { url: store.url().to_owned() });
                }
                Err(error) => {
                    let (kind, object) = match error {
                        PlanError::Empty => (Kind::Empty, None),
                        PlanError::TooShort { object, .. } => (Kind::Damaged, Some(object)),
                        _ => (Kind::Gap, None),
                    };
                    let advice = "See `replicated verify URL` for what is missing, and bring it back from a mirror or an older version of the bucket; or run \
                                  `replicated adopt`, and the next open of the database sends a snapshot";
                    report.wrong(kind, object, error.to_string(), advice);
                    return Ok(report);
                }
            };
            if let Some(had) = had.filter(|had| *had > plan.txid) {
                let what = format!("the bucket ends at TXID {}, and has acknowledged TXID {had} before", plan.txid);
                let advice = "Look who deletes from it. Replication finds that out with its next commits, and sends the full state";
                report.wrong(Kind::Gap, LtxName::level0(had), what, advice);
            }
            report.files_not_promised = listings.len() - plan.files.len();
            report.states = vec![plan.txid];
            let mut reading = Reading::new(store, &listings, None, 0, &mut report);
            if let Ended::Early = reading.read(&plan.files, &self.scope, turn).await? {
                return Ok(report);
            }
            let vanished = std::mem::take(&mut reading.vanished);
            if vanished.is_empty() {
                return Ok(report);
            }
            (listings, planned) = self.newest_state(had, turn).await?;
            let listed: BTreeSet<LtxName> = listings.iter().map(|file| file.name).collect();
            let (there, gone): (Vec<LtxName>, Vec<LtxName>) = vanished.into_iter().partition(|name| listed.contains(name));
            for name in there.iter().take(MOST_FINDINGS) {
                report.wrong(Kind::Damaged, *name, NOT_THERE, shape::advice(&listings, name, None));
                // In a large bucket that takes a while.
                tokio::task::yield_now().await;
            }
            report.more_findings += there.len().saturating_sub(MOST_FINDINGS);
            if !there.is_empty() {
                return Ok(report);
            }
            if looks == MOST_LOOKS {
                report.not_checked.push(format!("{} files were taken away meanwhile: maintenance was at work", gone.len()));
                return Ok(report);
            }
        }
    }

    /// What the bucket has, and which files of that lead to its newest state; looked at again where they do not, since maintenance may be at work.
    async fn newest_state(&self, had: Option<Txid>, turn: Option<&Turn>) -> Result<(Vec<Listed>, Result<Plan, PlanError>), VerifyError> {
        let is_good = |planned: &Result<Plan, PlanError>| planned.as_ref().is_ok_and(|plan| had.is_none_or(|had| plan.txid >= had));
        let mut listings = self.list(turn).await?;
        let mut planned = restore::plan(&listings, Target::Latest);
        if !is_good(&planned) {
            listings = self.list(turn).await?;
            planned = restore::plan(&listings, Target::Latest);
        }
        Ok((listings, planned))
    }

    /// Level by level upwards: see `list_upwards`.
    async fn list(&self, turn: Option<&Turn>) -> Result<Vec<Listed>, VerifyError> {
        let mut listings = Vec::new();
        for level in Level::all() {
            if let Some(turn) = turn {
                turn().await?;
            }
            listings.append(&mut retried(async || self.store.list(level, None).await).await?);
        }
        Ok(listings)
    }

    /// Restores one state to a file in a folder, where `look` sees it, and which is gone afterwards.
    ///
    /// # Errors
    /// As a restore; what `look` says, as `RestoreError::Refused`.
    pub async fn restore(&self, target: Target, folder: &Path, look: &restore::Check<'_>) -> Result<restore::Report, RestoreError> {
        let options = RestoreOptions {
            target,
            parallelism: self.scope.parallelism,
            max_memory_bytes: self.scope.max_memory_bytes,
            check: Some(look),
            ..RestoreOptions::latest(folder.join("replicated-verify"))
        };
        restore::restore_aside(&*self.store, &options).await
    }

    async fn look(&self, now: TimestampMs, kept: &[Txid]) -> Result<(Vec<Listed>, Shape), VerifyError> {
        let listings = list_upwards(&*self.store).await?;
        if listings.is_empty() && self.store.has_generations().await? {
            return Err(VerifyError::Generations { url: self.store.url().to_owned() });
        }
        let shape = shape::look(&listings, &self.scope, now, kept);
        Ok((listings, shape))
    }

    /// What was listed and then gone is no loss where what is there now is whole without it.
    async fn look_again(&self, now: TimestampMs, kept: &[Txid], vanished: &[LtxName], report: &mut Report) -> Result<(), VerifyError> {
        if vanished.is_empty() {
            return Ok(());
        }
        let (listings, shape) = self.look(now, kept).await?;
        for name in vanished {
            if listings.iter().any(|file| file.name == *name) {
                report.wrong(Kind::Damaged, *name, NOT_THERE, shape::advice(&listings, name, shape.floor.as_ref()));
            } else {
                report.files_gone += 1;
            }
        }
        for finding in shape.findings {
            report.add(finding);
        }
        Ok(())
    }
}

/// Whether what is found missing went before what Litestream wrote, which keeps less.
fn is_theirs(finding: &Finding, theirs: &BTreeSet<LtxName>) -> bool {
    let behind = |missing: &LtxName| theirs.iter().any(|name| name.level == missing.level && name.min_txid == missing.max_txid.next());
    finding.object.is_some_and(|object| theirs.contains(&object) || behind(&object))
}

/// Reads all that a bucket promises, as of a time; blocks the thread, on which it runs its own event loop.
///
/// # Errors
/// As `Verifier::read`.
pub fn read(verifier: &Verifier, now: TimestampMs) -> Result<Report, VerifyError> {
    block_on(verifier.read(now, None))
}

/// `Verifier::light`; blocks as `read`.
///
/// # Errors
/// As `Verifier::light`.
pub fn light(verifier: &Verifier) -> Result<Report, VerifyError> {
    block_on(verifier.light(None))
}

/// Restores states and looks at them, one after the other; blocks as `read`. What is wrong is added to the report.
///
/// # Errors
/// Where no event loop can be started.
pub fn restore_points(
    verifier: &Verifier,
    points: &[Point],
    folder: &Path,
    look: &Look<'_>,
    report: &mut Report,
) -> Result<Vec<PointReport>, VerifyError> {
    block_on(async { Ok(points::restore_all(verifier, points, folder, look, report).await) })
}

/// The checksum that a page gives to that of its database, as the format has it; never 0.
#[must_use]
pub fn page_checksum(page: u32, content: &[u8]) -> u64 {
    crate::ltx::page_checksum(page, content)
}

/// The newest upload and its header; `None` where there is none that is an LTX file. It is looked for from a TXID on, if that is known. Blocks as `read`.
///
/// # Errors
/// Where the store fails.
pub fn newest_upload(store: &dyn Store, from: Option<Txid>) -> Result<Option<(Listed, Header)>, VerifyError> {
    block_on(async {
        // What was listed may be gone when it is asked for, and there is a newer one then.
        for _ in 0..3 {
            let mut level0 = retried(async || store.list(Level::ZERO, from).await).await?;
            if level0.is_empty() && from.is_some() {
                level0 = retried(async || store.list(Level::ZERO, None).await).await?;
            }
            let Some(newest) = level0.into_iter().max_by_key(|file| file.name.max_txid) else { return Ok(None) };
            match retried(async || store.get_range(&newest.name, 0..HEADER_BYTES as u64).await).await {
                Ok(head) => return Ok(Header::decode(&head).ok().map(|header| (newest, header))),
                Err(error) if error.kind == StoreErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    })
}

fn block_on<T>(future: impl Future<Output = Result<T, VerifyError>>) -> Result<T, VerifyError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(VerifyError::Runtime)?;
    runtime.block_on(future)
}
