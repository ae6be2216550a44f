//! What waits in a spool, for those who tell of it.

use std::path::Path;

use super::parse_name;
use crate::replicator::stamp::mtime_ns;

/// What a spool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waits {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// When the oldest file was written, where that was looked at.
    pub(crate) oldest_ms: Option<i64>,
}

impl Waits {
    /// What lies in the directory of these numbers, for whoever looks from outside. Nothing is touched.
    pub(crate) fn beside(directory: &Path, first: u64, next: u64) -> Self {
        let mut waits = Self::default();
        for item in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = item.file_name();
            // One that has gone meanwhile does not wait any more.
            let Some(metadata) =
                name.to_str().and_then(parse_name).filter(|(a, b)| first <= *a && *b < next).and_then(|_| item.metadata().ok())
            else {
                continue;
            };
            let written_ms = mtime_ns(&metadata) / 1_000_000;
            waits.files += 1;
            waits.bytes += metadata.len();
            waits.oldest_ms = Some(waits.oldest_ms.map_or(written_ms, |oldest| oldest.min(written_ms)));
        }
        waits
    }
}
