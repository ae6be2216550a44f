//! Which TXID a time stands for, in stores whose listings do not carry the times of commits (S3).
//!
//! The rule: a time stands for the highest TXID that ends a file whose timestamp is at or before it. Where listings are exact every
//! file is compared. Elsewhere the timestamps of a level are taken to ascend with the TXID, as they do unless a clock was set back, and each
//! level is searched by bisection: about ten requests for a thousand objects, instead of one for each.
//!
//! Pure: the requests are the caller's.

use crate::store::{Level, Listed, LtxName};
use crate::types::TimestampMs;

/// The search for the last file at or before a time.
#[derive(Debug)]
pub(super) struct TimeSearch {
    at: TimestampMs,
    levels: Vec<Bisection>,
    found: Option<Listed>,
}

/// The files of one level by ascending TXID: those before `low` are known to be at or before the time, those from `high` on after it.
#[derive(Debug)]
struct Bisection {
    files: Vec<Listed>,
    low: usize,
    high: usize,
}

impl TimeSearch {
    /// Begins a search in the listings of all levels.
    pub(super) fn new(listings: &[Listed], at: TimestampMs) -> Self {
        let mut search = Self { at, levels: Vec::new(), found: None };
        for file in listings.iter().filter(|file| file.timestamp_is_exact) {
            search.compare(file);
        }
        for level in Level::all() {
            let mut files: Vec<Listed> =
                listings.iter().filter(|file| file.name.level == level && !file.timestamp_is_exact).copied().collect();
            files.sort_by_key(|file| (file.name.max_txid, file.name.min_txid));
            search.levels.push(Bisection { low: 0, high: files.len(), files });
        }
        search
    }

    /// The files whose exact timestamps are needed next, at most one for each level. Empty: the search is over.
    pub(super) fn wanted(&self) -> Vec<LtxName> {
        self.levels.iter().filter_map(Bisection::middle).map(|file| file.name).collect()
    }

    /// Takes the answer for one wanted file.
    pub(super) fn answer(&mut self, exact: &Listed) {
        let is_before = self.compare(exact);
        let level = self.levels.iter_mut().find(|level| level.middle().is_some_and(|middle| middle.name == exact.name));
        if let Some(level) = level {
            let middle = level.middle_index();
            if is_before {
                level.low = middle + 1;
            } else {
                level.high = middle;
            }
        }
    }

    /// The file whose end the time stands for, as far as is known.
    pub(super) fn found(&self) -> Option<&Listed> {
        self.found.as_ref()
    }

    fn compare(&mut self, file: &Listed) -> bool {
        let is_before = file.timestamp <= self.at;
        if is_before && self.found.is_none_or(|found| found.name.max_txid < file.name.max_txid) {
            self.found = Some(*file);
        }
        is_before
    }
}

impl Bisection {
    fn middle_index(&self) -> usize {
        self.low + (self.high - self.low) / 2
    }

    fn middle(&self) -> Option<&Listed> {
        if self.low < self.high { self.files.get(self.middle_index()) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Txid;
    use proptest::prelude::*;

    fn listed(level: u8, max: u64, timestamp: i64, exact: bool) -> Listed {
        let txid = Txid::new(max).unwrap();
        let name = LtxName { level: Level::new(level).unwrap(), min_txid: txid, max_txid: txid };
        Listed { name, size_bytes: 200, timestamp: TimestampMs(timestamp), timestamp_is_exact: exact }
    }

    proptest! {
        #[test]
        fn bisection_finds_what_reading_every_timestamp_would(
            steps in proptest::collection::vec((0u8..3, 0i64..4, any::<bool>()), 0..200),
            at in -1i64..300,
        ) {
            let mut now = 0;
            let exact: Vec<Listed> = steps.iter().enumerate().map(|(i, (level, step, is_exact))| {
                now += step;
                listed(*level, i as u64 + 1, now, *is_exact)
            }).collect();
            let listings: Vec<Listed> = exact.iter().map(|file| {
                if file.timestamp_is_exact { *file } else { Listed { timestamp: TimestampMs(999), ..*file } }
            }).collect();
            let mut search = TimeSearch::new(&listings, TimestampMs(at));
            let mut requests = 0;
            loop {
                let wanted = search.wanted();
                if wanted.is_empty() {
                    break;
                }
                prop_assert!(wanted.len() <= 10);
                for name in wanted {
                    requests += 1;
                    search.answer(exact.iter().find(|file| file.name == name).unwrap());
                }
            }
            prop_assert!(requests <= 3 * 9, "{requests} requests for {} files", exact.len());
            let expected = exact.iter().filter(|file| file.timestamp.0 <= at).map(|file| file.name.max_txid).max();
            prop_assert_eq!(search.found().map(|file| file.name.max_txid), expected);
        }
    }
}
