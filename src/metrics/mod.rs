//! What is counted: requests to the store, what they took and how they failed.
//!
//! Plain words that only grow, in the page that the processes of a database share: whoever does something adds one, whoever asks reads, from whichever
//! process. They begin at zero when the first process opens the database, as Prometheus expects of a counter. Knows nothing of SQLite or of uploads.

pub(crate) mod endpoint;
mod prometheus;
mod store;

use std::array;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use self::prometheus::{CONTENT_TYPE, prometheus};
pub(crate) use self::store::{MeasuredStore, Meter};
use crate::store::StoreErrorKind;

/// What is asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Operation {
    /// Putting an object, or a part of a large one.
    Put = 0,
    /// Reading an object, or a range of it.
    Get = 1,
    /// Asking for an object's size and time.
    Head = 2,
    /// Listing a level. What a store answers in several pages counts once.
    List = 3,
    /// Deleting objects. Those of one call count once.
    Delete = 4,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Head, Self::List, Self::Delete];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// The upper bounds of a histogram's buckets, in milliseconds; one more has no bound.
pub const BUCKETS_MS: [u64; 13] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000];
const BUCKETS: usize = BUCKETS_MS.len() + 1;

/// Durations, by how long they were.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Histogram {
    /// In each bucket alone, not in those before it as well.
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: zeros(), sum_us: AtomicU64::new(0) }
    }
}

impl Histogram {
    pub(crate) fn add(&self, took: Duration) {
        let ms = took.as_millis();
        let at = BUCKETS_MS.iter().position(|bound| ms <= u128::from(*bound)).unwrap_or(BUCKETS - 1);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Durations {
        Durations {
            buckets: array::from_fn(|at| self.buckets.get(at).map_or(0, |bucket| bucket.load(Ordering::Relaxed))),
            sum: Duration::from_micros(self.sum_us.load(Ordering::Relaxed)),
        }
    }
}

/// A histogram as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many were as long as each of `BUCKETS_MS` allows and longer than the one before; the last longer than all.
    pub buckets: [u64; BUCKETS],
    /// All of them together.
    pub sum: Duration,
}

impl Durations {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// How many reasons for a full state there is room for.
const REASONS: usize = 24;
/// The same of kinds of errors.
const KINDS: usize = 16;
const _: () = assert!(StoreErrorKind::ALL.len() <= KINDS);

/// The words. All zeros is how they begin.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Counters {
    requests: [Histogram; Operation::ALL.len()],
    request_errors: [AtomicU64; Operation::ALL.len()],
    errors_by_kind: [AtomicU64; KINDS],
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    /// By the number of the reason.
    full_states: [AtomicU64; REASONS],
    /// Steps of the uploader that failed and are done again.
    pub(crate) retries: AtomicU64,
    /// Times that a writer was told to append instead of restarting the WAL.
    pub(crate) gate_refusals: AtomicU64,
    /// Times that what waits in the WAL was written into the spool.
    pub(crate) spooled: AtomicU64,
    /// COMMITs that waited for the bucket.
    pub(crate) commit_waits: Histogram,
    /// Those of them that returned an error for it.
    pub(crate) commits_unacknowledged: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            requests: Default::default(),
            request_errors: zeros(),
            errors_by_kind: zeros(),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            full_states: zeros(),
            retries: AtomicU64::new(0),
            gate_refusals: AtomicU64::new(0),
            spooled: AtomicU64::new(0),
            commit_waits: Histogram::default(),
            commits_unacknowledged: AtomicU64::new(0),
        }
    }
}

fn zeros<const N: usize>() -> [AtomicU64; N] {
    array::from_fn(|_| AtomicU64::new(0))
}

impl Counters {
    /// A request has been answered, or has failed.
    pub(crate) fn request(&self, operation: Operation, took: Duration, error: Option<StoreErrorKind>) {
        if let Some(histogram) = self.requests.get(operation as usize) {
            histogram.add(took);
        }
        let Some(kind) = error else { return };
        let errors = self.request_errors.get(operation as usize);
        for word in errors.into_iter().chain(self.errors_by_kind.get(kind as usize)) {
            word.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The full state was sent, for the reason of that number.
    pub(crate) fn full_state(&self, reason: u8) {
        if let Some(word) = self.full_states.get(usize::from(reason)) {
            word.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self) -> Counts {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        Counts {
            requests: array::from_fn(|at| self.requests.get(at).map(Histogram::read).unwrap_or_default()),
            request_errors: array::from_fn(|at| self.request_errors.get(at).map_or(0, load)),
            errors_by_kind: StoreErrorKind::ALL.map(|kind| (kind, self.errors_by_kind.get(kind as usize).map_or(0, load))).to_vec(),
            sent_bytes: load(&self.sent_bytes),
            received_bytes: load(&self.received_bytes),
            full_states: self.full_states.iter().map(load).collect(),
            retries: load(&self.retries),
            gate_refusals: load(&self.gate_refusals),
            spooled: load(&self.spooled),
            commit_waits: self.commit_waits.read(),
            commits_unacknowledged: load(&self.commits_unacknowledged),
        }
    }
}

/// The counters as they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// What requests took, by [`Operation`], those that failed included.
    pub requests: [Durations; Operation::ALL.len()],
    /// How many of them failed.
    pub request_errors: [u64; Operation::ALL.len()],
    /// The same by what kind of failure it was.
    pub errors_by_kind: Vec<(StoreErrorKind, u64)>,
    /// What objects sent had in bytes.
    pub sent_bytes: u64,
    /// What was read of objects.
    pub received_bytes: u64,
    /// How often the full state was sent, by the number of the reason.
    pub(crate) full_states: Vec<u64>,
    /// What the uploader had to do again.
    pub retries: u64,
    /// How often a writer was told to append instead of restarting the WAL.
    pub gate_refusals: u64,
    /// How often what waited in the WAL was written into the spool.
    pub spooled: u64,
    /// How long COMMITs waited for the bucket.
    pub commit_waits: Durations,
    /// How many of them returned an error for it.
    pub commits_unacknowledged: u64,
}

impl Counts {
    /// All requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.iter().map(Durations::count).sum()
    }

    /// Those that failed. That an object asked for is not there is no failure.
    #[must_use]
    pub fn failed_requests(&self) -> u64 {
        self.request_errors.iter().sum()
    }
}

/// Whoever has counters to add to.
pub(crate) trait Counted: Send + Sync + Debug {
    fn counters(&self) -> &Counters;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_bucket_whose_bound_it_does_not_pass() {
        let histogram = Histogram::default();
        for ms in [0, 5, 6, 60_000, 60_001, 1 << 40] {
            histogram.add(Duration::from_millis(ms));
        }
        let read = histogram.read();
        let filled: Vec<(usize, u64)> = read.buckets.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0, 2), (1, 1), (12, 1), (13, 2)]);
        assert_eq!(read.count(), 6);
        assert_eq!(read.sum, Duration::from_millis(5 + 6 + 60_000 + 60_001 + (1 << 40)));
    }

    #[test]
    fn requests_and_their_failures_are_told_by_operation_and_kind() {
        let counters = Counters::default();
        assert_eq!(counters.read().requests(), 0);
        counters.request(Operation::Put, Duration::from_millis(3), None);
        counters.request(Operation::Put, Duration::from_millis(3), Some(StoreErrorKind::NoLease));
        counters.request(Operation::Delete, Duration::from_secs(3), Some(StoreErrorKind::NotFound));
        counters.full_state(13);
        counters.full_state(255);
        let read = counters.read();
        assert_eq!((read.requests(), read.failed_requests()), (3, 2));
        assert_eq!(read.request_errors, [1, 0, 0, 0, 1]);
        let kinds: Vec<_> = read.errors_by_kind.iter().filter(|(_, count)| *count == 1).map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, ["not_found", "no_lease"]);
        assert_eq!(read.full_states.iter().sum::<u64>(), 1);
    }
}
