//! Restores what Litestream 0.3 has left: a snapshot of the database file, and the logs after it, in segments.
//!
//! ```text
//! listing -> generation, snapshot, segments -> (fetch, decompress) the snapshot to the draft -> log by log: its segments put together, every frame's
//!   checksum followed, the committed ones written in place -> check -> fsync -> rename
//! ```
//!
//! What SQLite would do with the same logs (it recovers each and copies it into the file) is done here, so that nothing but this library is needed and a frame
//! that is damaged is an error where SQLite takes it for the end.

use std::io;
use std::path::Path;

mod apply;
mod plan;

pub use plan::GenerationPlan;

use super::error::RestoreError;
use super::fetch::retried;
use super::output::{self, Draft};
use super::{RestoreOptions, block_on};
use crate::store::Store;
use crate::types::{PageSize, TimestampMs};

/// The state that is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationTarget {
    /// Of which generation; else of the one that has the latest.
    pub generation: Option<u64>,
    /// Which state of it.
    pub moment: Moment,
}

/// A moment in the life of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moment {
    /// The latest state.
    #[default]
    Latest,
    /// The last that was stored at or before this time.
    Timestamp(TimestampMs),
    /// The state at the end of the log of this number.
    Index(u64),
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationReport {
    /// What was read.
    pub plan: GenerationPlan,
    /// The log that the state ends in.
    pub index: u64,
    /// Where in it the state ends, in bytes.
    pub offset: u64,
    /// The page size.
    pub page_size: PageSize,
    /// The size of the database in pages.
    pub size_pages: u32,
}

/// Why a replica of Litestream 0.3 cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// No snapshot at all.
    #[error("it has no snapshot of Litestream 0.3")]
    Empty,
    /// None of this name.
    #[error("it has no generation {asked:016x}")]
    NoSuchGeneration {
        /// What was asked for.
        asked: u64,
    },
    /// A generation without a beginning.
    #[error("generation {generation:016x} has no snapshot that leads to what was asked for")]
    NoSnapshot {
        /// The generation.
        generation: u64,
    },
    /// Before everything that can be restored.
    #[error("nothing as old as {asked} is in the bucket: the oldest snapshot is of {oldest}")]
    BeforeOldest {
        /// What was asked for.
        asked: TimestampMs,
        /// When the oldest snapshot was stored.
        oldest: TimestampMs,
    },
    /// Before everything that can be restored.
    #[error("the log {asked:08x} is before the oldest snapshot, of log {oldest:08x}")]
    NoSuchIndex {
        /// What was asked for.
        asked: u64,
        /// The log of the oldest snapshot.
        oldest: u64,
    },
    /// Behind everything that there is.
    #[error("the log {asked:08x} is not there: the last is {newest:08x}")]
    NotYet {
        /// What was asked for.
        asked: u64,
        /// The last log.
        newest: u64,
    },
    /// Segments are missing.
    #[error("segments are missing between {before} and {after}")]
    Gap {
        /// The last one before the gap.
        before: String,
        /// The first one behind it.
        after: String,
    },
    /// An object is not what it should be.
    #[error("{object}: {why}")]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong with it.
        why: String,
    },
}

impl GenerationError {
    /// What the user can do.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Empty => "check the URL: is it the path that the replica was written to?",
            Self::NoSuchGeneration { .. } => "the names below `generations/` in the bucket are the generations that there are",
            Self::NotYet { .. } => "leave --index out for the newest state",
            Self::BeforeOldest { .. } | Self::NoSuchIndex { .. } => "ask for a later state",
            Self::NoSnapshot { .. } | Self::Gap { .. } | Self::Damaged { .. } => {
                "bring the object back from a copy or an older version of the bucket; or restore the state before it with --timestamp or with --generation and --index"
            }
        }
    }
}

/// Restores what Litestream 0.3 has left to a file, completely or not at all; blocks the thread. Of `options` the target does not count.
///
/// # Errors
///
/// When not exactly what was asked for could be restored and verified. Then the output is as it was before.
pub fn restore_generation(
    store: &dyn Store,
    options: &RestoreOptions<'_>,
    target: &GenerationTarget,
) -> Result<GenerationReport, RestoreError> {
    block_on(async {
        let path = output::real_path(&options.output);
        output::check_target(&path, options.overwrite)?;
        let plan = make_plan(store, target).await?;
        let draft = Draft::create(&path, options.overwrite)?;
        let report = apply::run(store, plan, options, &draft, &path).await?;
        if let Some(check) = options.check {
            let refused = |why| RestoreError::RefusedGeneration { url: store.url().to_owned(), why };
            check(draft.path()).map_err(refused)?;
        }
        draft.sync()?;
        draft.publish()?;
        Ok(report)
    })
}

/// Plans a restore without making it; blocks the thread.
///
/// # Errors
///
/// As `restore_generation`, save what only reading the objects can tell.
pub fn plan_generation(store: &dyn Store, target: &GenerationTarget) -> Result<GenerationPlan, RestoreError> {
    block_on(make_plan(store, target))
}

async fn make_plan(store: &dyn Store, target: &GenerationTarget) -> Result<GenerationPlan, RestoreError> {
    let files = retried(async || store.list_generations().await).await?;
    plan::plan(&files, target).map_err(|source| RestoreError::Generation { url: store.url().to_owned(), source })
}

fn output_error(operation: &'static str, path: &Path, source: io::Error) -> RestoreError {
    RestoreError::Output { operation, path: path.to_owned(), source }
}
