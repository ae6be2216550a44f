//! Why the spool cannot keep something, or give it back.

use std::io;
use std::path::{Path, PathBuf};

use super::is_disk_full;
use crate::ltx::LtxError;

/// What went wrong in the spool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// A file operation failed.
    #[error("spool {path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// An entry is not what it should be, or could not be encoded.
    #[error("spool {path}: {source}")]
    Ltx {
        path: PathBuf,
        #[source]
        source: LtxError,
    },
    /// The control file speaks of entries that are not there.
    #[error("spool {directory}: entries {first} to {last} should be there and are not")]
    Missing { directory: PathBuf, first: u64, last: u64 },
    /// An entry of another node's, or under another's name.
    #[error("spool {path}: it is another entry, made by node {found:016x} (this is {node_id:016x})")]
    Foreign { path: PathBuf, found: u64, node_id: u64 },
    /// The limit of local disk would be passed.
    #[error("spool {directory}: what waits and its sending take {needed_bytes} bytes, over the limit of {limit_bytes} (max_local)")]
    Full { directory: PathBuf, needed_bytes: u64, limit_bytes: u64 },
    /// It takes more of its disk than it leaves to everybody else.
    #[error("spool {directory}: {bytes} bytes wait there, and only {free_bytes} are left on that disk")]
    Crowding { directory: PathBuf, bytes: u64, free_bytes: u64 },
}

impl SpoolError {
    /// Merging entries into a file has failed: by a file operation, or by what an entry holds.
    pub(crate) fn of(path: &Path, error: LtxError) -> Self {
        let path = path.to_owned();
        match error {
            LtxError::Io(source) => Self::Io { path, source },
            source => Self::Ltx { path, source },
        }
    }

    /// Something that was spooled cannot be had any more, however often it is tried.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Ltx { .. } | Self::Missing { .. } | Self::Foreign { .. } | Self::Full { .. } | Self::Crowding { .. } => true,
        }
    }

    /// More waits than there is room for.
    pub(crate) fn is_out_of_room(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Crowding { .. } => true,
            Self::Io { source, .. } | Self::Ltx { source: LtxError::Io(source), .. } => is_disk_full(source),
            Self::Ltx { .. } | Self::Missing { .. } | Self::Foreign { .. } => false,
        }
    }
}

pub(super) fn io_error(path: &Path, source: io::Error) -> SpoolError {
    SpoolError::Io { path: path.to_owned(), source }
}
