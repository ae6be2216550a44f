//! Why maintenance failed.

use crate::ltx::LtxError;
use crate::restore::PlanError;
use crate::store::{LtxName, StoreError};
use crate::types::Txid;

/// Why maintenance failed. What it had done until then is complete; the next run goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaintainError {
    /// The store failed, retries included.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is not what its name and its checksum say.
    #[error("{object}: {why}")]
    Unfit {
        /// The object.
        object: LtxName,
        /// What is wrong with it.
        why: Unfit,
    },
    /// The store said that it has an object and has something else.
    #[error(
        "{object} was stored, and is not what was sent: look at what the store does with uploads (a proxy, a full disk), and whether somebody else writes to this bucket"
    )]
    NotStored {
        /// The object.
        object: LtxName,
    },
    /// The newest state, or one that is kept, cannot be restored.
    #[error("{0}")]
    Plan(#[from] PlanError),
    /// Another process maintains the bucket.
    #[error("{owner} maintains this bucket until {until}")]
    Busy {
        /// Host name and process id.
        owner: String,
        /// RFC 3339.
        until: String,
    },
    /// It was told to stop.
    #[error("it was told to stop")]
    Stopped,
    /// The runtime that drives the requests could not be started.
    #[error("what makes requests could not be started: {0}. Raise the limits on open files and threads (ulimit -n, ulimit -u)")]
    Runtime(std::io::Error),
}

/// What is wrong with an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// It is no good LTX file, or would not be one.
    #[error(transparent)]
    File(#[from] LtxError),
    /// It is a good one of another name.
    #[error("its header says TXID {0} to {1}")]
    Name(Txid, Txid),
    /// Its page index is wrong: who reads single pages is misled.
    #[error("its page index is not that of its pages")]
    Index,
    /// It is not the one that was made.
    #[error("it has {found} bytes and not {expected}")]
    Size {
        /// What it has.
        found: u64,
        /// What it had when it was made.
        expected: u64,
    },
    /// It has less than it had.
    #[error("it ends before {0} bytes")]
    Cut(u64),
    /// It cannot be one.
    #[error("it has {0} bytes and cannot be an LTX file")]
    Short(u64),
}
