//! Why a bucket could not be copied.

use crate::store::{LtxName, StoreError};
use crate::types::Txid;

/// Why a bucket could not be copied. What was copied until then is complete, and the destination can be restored as far as it goes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// A store failed, retries included.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to copy, and nothing is deleted for that.
    #[error("{url}: the bucket has no LTX files")]
    Empty {
        /// The source.
        url: String,
    },
    /// The source is a replica of Litestream 0.3.
    #[error("{url}: this is a bucket of Litestream 0.3 (it has generations), which is not copied")]
    Generations {
        /// The source.
        url: String,
    },
    /// Source and destination are one.
    #[error("{url} is both the source and the destination")]
    SamePlace {
        /// It.
        url: String,
    },
    /// An object of one name is another one in each.
    #[error("{url} holds another history: its {object} is another file than the source's of that name")]
    OtherHistory {
        /// The destination.
        url: String,
        /// The object.
        object: LtxName,
    },
    /// Nothing shows that both are of one history.
    #[error("{url} holds files, none of which the source has: nothing shows that they are of one history")]
    NothingInCommon {
        /// The destination.
        url: String,
    },
    /// Somebody has gone on at the destination.
    #[error(
        "{url} goes on to TXID {destination}, and the source ends with TXID {source_newest}: they are two histories, or the source has lost its end"
    )]
    Ahead {
        /// The destination.
        url: String,
        /// Its newest TXID.
        destination: Txid,
        /// The source's.
        source_newest: Txid,
    },
    /// The destination said that it has an object and has something else.
    #[error("{object} was stored in {url}, and is not what was sent")]
    NotStored {
        /// The destination.
        url: String,
        /// The object.
        object: LtxName,
    },
    /// The runtime that drives the requests could not be started.
    #[error("what makes requests could not be started: {0}. Raise the limits on open files and threads (ulimit -n, ulimit -u)")]
    Runtime(std::io::Error),
}

impl CopyError {
    /// What to do about it; may be empty.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Empty { .. } => "Check the URL: is it the path that the replica was written to?",
            Self::Generations { .. } => "Copy it with the store's own tools (rclone, aws s3 sync): it has no order that matters",
            Self::SamePlace { .. } => "Give two places",
            Self::OtherHistory { .. } | Self::NothingInCommon { .. } => {
                "Choose an empty path as the destination, or empty this one if nothing of it is needed any more. Nothing was changed there"
            }
            Self::Ahead { .. } => {
                "Look which of the two is the right one (`replicated list`, `replicated verify`). A destination is written to by nobody else; where the source \
                 has lost files, copy the other way round to an empty path"
            }
            Self::NotStored { .. } => {
                "Look at what the destination's store does with uploads (a proxy, a full disk), and run the copy again"
            }
            Self::Store(_) | Self::Runtime(_) => "",
        }
    }
}
