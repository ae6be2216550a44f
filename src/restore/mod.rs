//! Turns a bucket into a database: lists it, plans, fetches and decodes in parallel, verifies every checksum, writes each page once, renames.
//!
//! ```text
//! list -> plan -> chunks of files, newest first -> frames of pages not yet supplied -> threads that decode -> temporary file -> check -> fsync -> rename
//! ```
//!
//! A gap, a wrong checksum or a missing page is an error and leaves no file behind, never a shorter database (invariant I7).

use std::path::{Path, PathBuf};

use crate::fault::fault_point;
use crate::logging::event;
use crate::replicator::origin::Origin;
use crate::replicator::remember::{self, Restored};
use crate::store::{Listed, LtxName, Store};
use crate::types::{PageSize, TimestampMs, Txid, WalPos};

mod apply;
mod decode;
mod error;
pub(crate) mod fetch;
pub mod follow;
pub mod generations;
mod output;
mod pipeline;
mod plan;
pub(crate) mod states;
mod times;

pub use error::{Damage, RestoreError};
pub use plan::{Plan, PlanError, Target, oldest, plan};
pub(crate) use plan::{SMALLEST_FILE_BYTES, is_usable};

use output::Draft;
use pipeline::Outcome;

/// Requests at once, unless the caller says otherwise.
pub const DEFAULT_PARALLELISM: usize = 16;
/// The most requests at once.
pub const MAX_PARALLELISM: usize = 128;
/// Memory for what has been asked for and is not decoded yet, unless the caller says otherwise.
pub const DEFAULT_MAX_MEMORY_BYTES: u64 = 64 << 20;
/// The most threads that decode.
pub const MAX_THREADS: usize = 64;

/// How often a restore starts over because maintenance deleted an object that it needed.
const MAX_PLANS: u32 = 3;

/// What to restore, and how.
pub struct RestoreOptions<'a> {
    /// The file to make.
    pub output: PathBuf,
    /// The state to restore.
    pub target: Target,
    /// Whether a file that is there may be replaced, its `-wal`, `-shm` and `-journal` removed.
    pub overwrite: bool,
    /// Requests at once, each of up to 4 MiB, as far as `max_memory_bytes` has room for them. Clamped to 1 to 128.
    pub parallelism: usize,
    /// Memory for what has been asked for and is not decoded yet, at least 8 MiB. Beside it there are one bit for each page of the database,
    /// 1 MiB a thread, and what the HTTP client takes.
    pub max_memory_bytes: u64,
    /// Threads that decode. Clamped to 1 to 64. One more has the disk write what they have written, and requests are made on the caller's.
    pub threads: usize,
    /// Whether files of more than 4 MiB are read only where they have pages that no newer file has, if that spares a quarter of them. The checksum of such a
    /// file cannot be verified then: it covers all of its pages.
    pub skip_superseded: bool,
    /// Whether the position is kept beside the output, so that replication can go on from it.
    pub remembers: bool,
    /// Who is told how far it is.
    pub progress: Option<&'a dyn Progress>,
    /// Looks at the complete database, by its temporary name, before it gets its own; an error refuses it.
    pub check: Option<&'a Check<'a>>,
    /// The database's second replica is what it is restored from.
    pub is_second: bool,
}

/// Looks at a restored database; an error says why it is refused.
pub type Check<'a> = dyn Fn(&Path) -> Result<(), String> + 'a;

impl RestoreOptions<'_> {
    /// Restores the latest state to a file that is not there yet.
    #[must_use]
    pub fn latest(output: impl Into<PathBuf>) -> Self {
        let output = output.into();
        Self {
            output,
            target: Target::Latest,
            overwrite: false,
            parallelism: DEFAULT_PARALLELISM,
            max_memory_bytes: DEFAULT_MAX_MEMORY_BYTES,
            threads: default_threads(),
            skip_superseded: false,
            remembers: true,
            progress: None,
            check: None,
            is_second: false,
        }
    }
}

/// One for each core, up to 8: that is 20 GB a second of pages, which no store sends and no disk takes.
#[must_use]
pub fn default_threads() -> usize {
    threads_up_to(8)
}

/// One for each core, up to so many.
#[must_use]
pub fn threads_up_to(most: u32) -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(usize::try_from(most.max(1)).unwrap_or(MAX_THREADS))
}

impl std::fmt::Debug for RestoreOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { output, target, overwrite, parallelism, .. } = self;
        f.debug_struct("RestoreOptions")
            .field("output", output)
            .field("target", target)
            .field("overwrite", overwrite)
            .field("parallelism", parallelism)
            .finish_non_exhaustive()
    }
}

/// Is told how far a restore is. Called on the restoring thread, so it should return soon.
pub trait Progress {
    /// A plan was made and is now carried out; more than once where it had to be made again.
    fn planned(&self, plan: &Plan);
    /// So many bytes of the plan's files have been applied.
    fn applied(&self, bytes: u64);
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The state.
    pub txid: Txid,
    /// The newest TXID that the bucket had.
    pub max_txid_in_bucket: Txid,
    /// The time of the state's last commit, as the newest file says.
    pub timestamp: TimestampMs,
    /// The page size.
    pub page_size: PageSize,
    /// The size of the database in pages.
    pub commit_pages: u32,
    /// Where the newest file ended in the WAL that it was made of, if it says so.
    pub wal_end: Option<WalPos>,
    /// Who wrote the newest file; 0 for Litestream.
    pub node_id: u64,
    /// The files that were read, oldest first.
    pub files: Vec<LtxName>,
    /// How much was read of them.
    pub read_bytes: u64,
    /// How many of them were read only in part (`RestoreOptions::skip_superseded`), so that their checksums could not be verified.
    pub files_in_part: usize,
    /// Why replication cannot go on from here by itself: the restored position could not be written beside the database.
    pub not_resumable: Option<String>,
}

impl Report {
    /// The size of the database.
    #[must_use]
    pub fn database_bytes(&self) -> u64 {
        u64::from(self.commit_pages) * u64::from(self.page_size.get())
    }
}

/// Restores a database; blocks the thread, on which it runs its own event loop.
///
/// # Errors
///
/// When not exactly what was asked for could be restored and verified. Then the output is as it was before.
pub fn restore(store: &dyn Store, options: &RestoreOptions<'_>) -> Result<Report, RestoreError> {
    block_on(restore_to_path(store, options))
}

/// Plans a restore without making it; blocks like `restore`.
///
/// # Errors
///
/// As `restore`, save what only reading the files can tell.
pub fn plan_restore(store: &dyn Store, target: Target) -> Result<Plan, RestoreError> {
    block_on(make_plan(store, target)).map(|(plan, _)| plan)
}

/// Lists everything that a bucket has, ascending by level and TXID; blocks like `restore`.
///
/// # Errors
///
/// When the store cannot be listed.
pub fn catalogue(store: &dyn Store) -> Result<Vec<Listed>, RestoreError> {
    block_on(async {
        let listings = fetch::list(store).await?;
        if listings.is_empty() { Err(nothing_listed(store, Target::Latest).await) } else { Ok(listings) }
    })
}

fn block_on<T>(future: impl Future<Output = Result<T, RestoreError>>) -> Result<T, RestoreError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RestoreError::Runtime)?;
    runtime.block_on(future)
}

/// Restores a database. See `restore`.
///
/// # Errors
///
/// As `restore`.
pub async fn restore_to_path(store: &dyn Store, options: &RestoreOptions<'_>) -> Result<Report, RestoreError> {
    let target = output::real_path(&options.output);
    let (report, draft) = restore_draft(store, options, &target).await?;
    draft.sync()?;
    draft.publish()?;
    fault_point!("if-missing.placed");
    if !options.remembers {
        return Ok(report);
    }
    // After the rename, which changes the file's ctime. After a crash in between the user has to say that this file goes on.
    let origin = Origin { txid: report.txid, node_id: report.node_id, timestamp: report.timestamp, wal_end: report.wal_end };
    let restored = Restored {
        txid: report.txid,
        newest: report.max_txid_in_bucket,
        page_size: report.page_size,
        origin: Some(origin),
        is_second: options.is_second,
    };
    let remembered = remember::restored(&target, store.url(), &restored);
    Ok(Report { not_resumable: remembered.err().map(|error| error.to_string()), ..report })
}

/// Restores a database that is gone afterwards: `RestoreOptions::check` sees it, complete, beside where the output would be.
pub(crate) async fn restore_aside(store: &dyn Store, options: &RestoreOptions<'_>) -> Result<Report, RestoreError> {
    restore_draft(store, options, &output::real_path(&options.output)).await.map(|(report, _)| report)
}

/// Restores a database, complete and checked but for its name.
async fn restore_draft(store: &dyn Store, options: &RestoreOptions<'_>, target: &Path) -> Result<(Report, Draft), RestoreError> {
    output::check_target(target, options.overwrite)?;
    let mut plans = 1;
    let (report, draft) = loop {
        let (plan, listings) = make_plan(store, options.target).await?;
        let draft = Draft::create(target, options.overwrite)?;
        if let Some(progress) = options.progress {
            progress.planned(&plan);
        }
        match pipeline::run(store, &plan, &listings, options, &draft).await {
            Ok(outcome) => break (report(&plan, &outcome), draft),
            Err(error) if error.is_vanished_object() && plans < MAX_PLANS => {
                event!(Info, "restore_plans_again", target, cause = error; "{error}: planning again");
                plans += 1;
            }
            Err(error) => return Err(error),
        }
    };
    if let Some(check) = options.check {
        check(draft.path()).map_err(|why| RestoreError::Refused { url: store.url().to_owned(), txid: report.txid, why })?;
    }
    Ok((report, draft))
}

async fn make_plan(store: &dyn Store, target: Target) -> Result<(Plan, Vec<Listed>), RestoreError> {
    let listings = fetch::list(store).await?;
    if listings.is_empty() {
        return Err(nothing_listed(store, target).await);
    }
    match plan_listed(store, &listings, target).await? {
        Ok(plan) => Ok((plan, listings)),
        // Levels that were listed at once can miss a file on its way up.
        Err(_) => {
            let listings = fetch::list_upwards(store).await?;
            let plan = plan_listed(store, &listings, target).await?;
            plan.map(|plan| (plan, listings)).map_err(|source| RestoreError::Plan { url: store.url().to_owned(), target, source })
        }
    }
}

async fn plan_listed(store: &dyn Store, listings: &[Listed], target: Target) -> Result<Result<Plan, PlanError>, RestoreError> {
    let target = match target {
        Target::Timestamp(at) => match fetch::txid_at(store, listings, at).await? {
            Ok(txid) => Target::Txid(txid),
            Err(error) => return Ok(Err(error)),
        },
        Target::Latest | Target::Txid(_) => target,
    };
    Ok(plan(listings, target))
}

/// What to say of a bucket without LTX files. One that has them beside generations was upgraded and is restored as it is now.
async fn nothing_listed(store: &dyn Store, target: Target) -> RestoreError {
    let url = store.url().to_owned();
    match store.has_generations().await {
        Ok(true) => RestoreError::Generations { url },
        Ok(false) => RestoreError::Plan { url, target, source: PlanError::Empty },
        Err(error) => RestoreError::Store(error),
    }
}

fn report(plan: &Plan, Outcome { header, read_bytes, files_in_part }: &Outcome) -> Report {
    Report {
        txid: plan.txid,
        max_txid_in_bucket: plan.max_txid_in_bucket,
        timestamp: header.timestamp,
        page_size: header.page_size,
        commit_pages: header.commit_pages,
        wal_end: header.wal_end(),
        node_id: header.node_id,
        files: plan.files.iter().map(|file| file.name).collect(),
        read_bytes: *read_bytes,
        files_in_part: *files_in_part,
        not_resumable: None,
    }
}
