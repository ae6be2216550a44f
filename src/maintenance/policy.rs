//! What is merged when, what is kept how long.

use std::time::Duration;

/// The levels that compaction fills: 1, 2 and 3.
pub const COMPACTED_LEVELS: usize = 3;

/// How a bucket is maintained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Any state younger than this can be restored.
    pub history: Duration,
    /// Within the last so much of it, to each upload: level 0 is kept for so long. Not longer than `history`.
    pub exact: Duration,
    /// What nothing needs any more is kept for so much longer, for restores and readers that are under way.
    pub grace: Duration,
    /// The time that a file of level 1, 2 and 3 spans.
    pub spans: [Duration; COMPACTED_LEVELS],
    /// How old the newest snapshot may be before another one is made, where anything has changed.
    pub snapshot_every: Duration,
    /// Another one is made as well once what a restore has to read after it is so many hundredths of its size.
    pub snapshot_change_percent: u32,
    /// What the merging may take in memory, beside the page index of a snapshot (about ten bytes a page).
    pub max_memory_bytes: u64,
    /// Whether anything is deleted at all.
    pub deletes: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            history: Duration::from_secs(24 * 3600),
            exact: Duration::from_secs(24 * 3600),
            grace: Duration::from_secs(3600),
            spans: [Duration::from_secs(30), Duration::from_secs(300), Duration::from_secs(3600)],
            snapshot_every: Duration::from_secs(24 * 3600),
            snapshot_change_percent: 100,
            max_memory_bytes: 32 << 20,
            deletes: true,
        }
    }
}

impl Policy {
    /// Below this no change is worth a snapshot of its own.
    pub(super) const LEAST_CHANGE_BYTES: u64 = 1 << 20;
    /// Each input of a merge takes a buffer and a page or two.
    const INPUT_BYTES: u64 = 128 << 10;
    /// More do not make a merge better.
    const MOST_INPUTS: u64 = 256;

    /// The most files that are merged at once.
    pub(super) fn most_inputs(&self) -> usize {
        usize::try_from((self.max_memory_bytes / Self::INPUT_BYTES).clamp(8, Self::MOST_INPUTS)).unwrap_or(8)
    }

    /// What the buffers of a merge's inputs may take together.
    pub(super) const fn buffer_bytes(&self) -> u64 {
        self.max_memory_bytes / 2
    }
}

/// In the milliseconds that times are counted in.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
