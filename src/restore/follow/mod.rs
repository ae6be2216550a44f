//! Keeps a restored database current: looks into the bucket again and again, and applies what has come to the copy, which others read meanwhile.
//!
//! ```text
//!   a look: level 0 from the copy's TXID on --nothing new--> pause
//!     -> a way to the newest state: of level 0 alone, or of one listing of all levels where that has a gap or is long
//!     -> batches: fetched, verified, then applied under SQLite's locks (copy.rs), each from one committed state to another
//! ```
//!
//! It goes on over whatever may pass (a store that is away, a reader that never ends, a damaged file), telling it once. It ends where the copy is not what was
//! left there, or the bucket holds another history.

use std::path::PathBuf;
use std::time::Duration;

use super::error::RestoreError;
use super::{Report, RestoreOptions};
use crate::store::Store;
use crate::types::{TimestampMs, Txid};

mod batch;
mod copy;
mod follower;
mod journal;
mod locks;
mod note;
mod onwards;

pub use copy::CopyError;
use follower::Follower;

/// The shortest pause between two looks.
pub const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// What to follow to, and how.
pub struct FollowOptions<'a> {
    /// The copy, and how it is restored where it is not there. With `overwrite` a copy that cannot be gone on with is restored anew, and so is the copy
    /// of a bucket that holds another history. The target does not count.
    pub restore: RestoreOptions<'a>,
    /// The pause between two looks; at least `SHORTEST_PAUSE`.
    pub every: Duration,
    /// Who is told what happens.
    pub listener: &'a dyn Listener,
}

impl std::fmt::Debug for FollowOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FollowOptions").field("restore", &self.restore).field("every", &self.every).finish_non_exhaustive()
    }
}

/// Is told what happens, on the following thread, so it should return soon.
pub trait Listener {
    /// Something has happened.
    fn tell(&self, event: &Event<'_>);
}

/// What happens while a bucket is followed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The copy was made, or made anew.
    Restored(&'a Report),
    /// A copy was there and is gone on with.
    GoesOn {
        /// Its state.
        txid: Txid,
    },
    /// The copy has another state.
    Applied(Applied),
    /// It cannot go on for now. Told once, until it does.
    Problem(&'a str),
    /// It goes on again.
    Over,
}

/// A batch that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The state that the copy has now.
    pub txid: Txid,
    /// The time of its last commit.
    pub timestamp: TimestampMs,
    /// How many files were read.
    pub files: usize,
    /// How much was read.
    pub read_bytes: u64,
    /// How many pages were written.
    pub pages: u32,
    /// The size of the database in pages.
    pub size_pages: u32,
}

/// Why a bucket is not followed any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The copy could not be made.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The copy cannot be read, or is not what was left there.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Something is in the place of the copy that nobody has followed to.
    #[error("{path} exists already, and {note} does not say that it is a copy that was followed to")]
    NoCopy {
        /// What is in the way.
        path: PathBuf,
        /// Where it would stand.
        note: PathBuf,
    },
    /// It is a copy of something else.
    #[error("{path} is a copy of {of}, not of {url}")]
    OtherReplica {
        /// The copy.
        path: PathBuf,
        /// What it is a copy of.
        of: String,
        /// What was to be followed.
        url: String,
    },
    /// The bucket was replaced.
    #[error("{url} holds another history than the one that the copy is of, which goes up to TXID {txid}: {why}")]
    OtherHistory {
        /// The bucket.
        url: String,
        /// The state of the copy.
        txid: Txid,
        /// How that was seen.
        why: String,
    },
}

impl FollowError {
    /// What the user can do; empty where there is nothing to say that the message has not said.
    #[must_use]
    pub fn advice(&self) -> String {
        match self {
            Self::Restore(RestoreError::Generations { .. }) => {
                "what can be followed is a bucket of Litestream 0.5 or of the extension; restore this one without --follow".to_owned()
            }
            Self::Restore(error) => error.advice(),
            Self::Copy(CopyError::Foreign { .. }) => {
                "move it away to keep what was written, or restore it anew with --force; open it read-only (mode=ro) where it is read".to_owned()
            }
            Self::Copy(CopyError::Io { source, .. }) => super::error::output_advice(source).to_owned(),
            Self::Copy(CopyError::Busy { .. }) => "end the transaction that is open on the copy, and run the same command again: it goes on from there".to_owned(),
            Self::Copy(CopyError::InUse { .. }) => "one process is enough: stop that one first, or follow to another file".to_owned(),
            Self::NoCopy { .. } | Self::OtherReplica { .. } => {
                "choose another output, or have it replaced with --force once nothing has it open".to_owned()
            }
            Self::OtherHistory { .. } => {
                "the copy stays as it is, maybe the last of that history: move it away, or have it become what the bucket holds now with --force".to_owned()
            }
        }
    }

    /// The bucket has nothing of ours.
    #[must_use]
    pub const fn is_empty_bucket(&self) -> bool {
        matches!(self, Self::Restore(error) if error.is_empty_bucket())
    }

    /// Whether `overwrite` has the copy restored anew.
    const fn is_about_the_copy(&self) -> bool {
        matches!(self, Self::Copy(CopyError::Foreign { .. }) | Self::NoCopy { .. } | Self::OtherReplica { .. })
    }
}

/// Restores a database, or goes on with the copy that is there, and keeps it current until `stop` is ready. Blocks the thread, on which it runs its own
/// event loop.
///
/// # Errors
///
/// Where the copy cannot be made, is not what was left there, or the bucket holds another history; see `FollowOptions::restore`.
pub fn follow(store: &dyn Store, options: &FollowOptions<'_>, stop: impl Future<Output = ()>) -> Result<(), FollowError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RestoreError::Runtime)?;
    runtime.block_on(async {
        tokio::select! {
            biased;
            () = stop => Ok(()),
            outcome = Follower::new(store, options).run() => outcome.map(|never| match never {}),
        }
    })
}
