//! Keeps a bucket small, quick to restore and trustworthy: merges what was uploaded (levels 1 to 3), makes snapshots of what the bucket has
//! (level 9), and deletes what no restore within the window needs.
//!
//! It knows levels and policies, and nothing of commits: a bucket is maintained where its database is, or anywhere else (`replicated maintain`).
//!
//! ```text
//! list -> groups of level 0 to 2 that are complete -> merged a level up, read back
//!      -> the newest state, where a snapshot is due -> level 9
//!      -> what nothing needs any more               -> what replaces it is read to its end -> deleted
//! ```

use std::sync::Arc;

use crate::store::Store;
use crate::types::{TimestampMs, Txid};

mod at_hand;
mod catalogue;
mod error;
mod merging;
pub(crate) mod note;
mod pace;
pub(crate) mod policy;
mod repair;
mod retention;
mod round;
mod run;
mod schedule;

#[cfg(test)]
mod tests;

pub(crate) use at_hand::AtHand;
pub(crate) use catalogue::Known;
pub use error::{MaintainError, Unfit};
pub use note::Kept;
pub use pace::Turn;
pub use policy::{COMPACTED_LEVELS, Policy};
pub use run::{Made, Maintainer, Report};

/// The time as rounds count it.
#[must_use]
pub fn now() -> TimestampMs {
    TimestampMs(chrono::Utc::now().timestamp_millis())
}

/// One round, as of a time; blocks the thread, on which it runs its own event loop.
///
/// # Errors
/// Where the store fails, or another process maintains the bucket.
pub fn maintain(maintainer: &mut Maintainer, at: TimestampMs) -> Result<Report, MaintainError> {
    block_on(maintainer.round(at, None))
}

/// What a round would do; blocks as `maintain`.
///
/// # Errors
/// Where the store cannot be listed.
pub fn plan(maintainer: &mut Maintainer, at: TimestampMs) -> Result<Report, MaintainError> {
    block_on(maintainer.plan(at))
}

/// Has a state kept, whatever its age, until `let_go`; blocks as `maintain`.
///
/// # Errors
/// Where the store fails.
pub fn keep(store: &Arc<dyn Store>, txid: Txid, why: &str) -> Result<(), MaintainError> {
    block_on(note::keep(&**store, txid, why))
}

/// Lets go what is kept up to a TXID, and says what that was; blocks as `maintain`.
///
/// # Errors
/// Where the store fails.
pub fn let_go(store: &Arc<dyn Store>, upto: Txid) -> Result<Vec<Kept>, MaintainError> {
    block_on(note::let_go(&**store, upto))
}

fn block_on<T>(future: impl Future<Output = Result<T, MaintainError>>) -> Result<T, MaintainError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(MaintainError::Runtime)?;
    runtime.block_on(future)
}
