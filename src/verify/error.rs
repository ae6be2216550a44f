//! Why nothing could be said of a bucket.

use crate::maintenance::MaintainError;
use crate::store::StoreError;

/// Why a bucket could not be looked at. It says nothing about the bucket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The store failed, retries included.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The note of the maintenance cannot be read, or whoever gives the turns has ended the work.
    #[error(transparent)]
    Maintenance(#[from] MaintainError),
    /// The bucket holds a replica of Litestream 0.3 and nothing newer.
    #[error("{url}: this is a bucket of Litestream 0.3 (it has generations), which has no checksums that could be verified file by file")]
    Generations {
        /// The bucket.
        url: String,
    },
    /// The runtime that drives the requests could not be started.
    #[error("what makes requests could not be started: {0}. Raise the limits on open files and threads (ulimit -n, ulimit -u)")]
    Runtime(std::io::Error),
}

impl VerifyError {
    /// What to do about it; may be empty.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Generations { .. } => "Restore it to know whether it is whole: `replicated restore`, or Litestream 0.3.13",
            Self::Store(error) => error.advice,
            Self::Maintenance(_) | Self::Runtime(_) => "",
        }
    }
}
