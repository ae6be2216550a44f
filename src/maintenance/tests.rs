//! The rules on random buckets: what is merged leaves no holes, and what is deleted was needed by no restore of the window.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::policy::{Policy, millis};
use super::{retention, schedule};
use crate::restore::{self, PlanError, Target};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL};
use crate::types::{TimestampMs, Txid};

fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

fn name(level: u8, min: u64, max: u64) -> LtxName {
    LtxName { level: Level::new(level).unwrap(), min_txid: txid(min), max_txid: txid(max) }
}

/// A bucket and a clock. What the listings say may be later than what was committed, as with S3.
#[derive(Clone, Debug)]
struct Bucket {
    now: i64,
    files: Vec<Listed>,
    committed: BTreeMap<LtxName, i64>,
    is_exact: bool,
    newest: u64,
    kept: Vec<Txid>,
    policy: Policy,
}

impl Bucket {
    fn new(is_exact: bool, is_ours: bool, policy: Policy) -> Self {
        let mut bucket =
            Self { now: 1_000_000_000, files: Vec::new(), committed: BTreeMap::new(), is_exact, newest: 0, kept: Vec::new(), policy };
        let at = bucket.now;
        if is_ours {
            bucket.put(name(9, 1, 2), 50_000, at);
            bucket.newest = 2;
            bucket.put(name(0, 2, 2), 131, at);
        } else {
            bucket.newest = 1;
            bucket.put(name(0, 1, 1), 50_000, at);
        }
        bucket
    }

    fn put(&mut self, name: LtxName, size_bytes: u64, committed: i64) {
        let timestamp = TimestampMs(if self.is_exact { committed } else { self.now });
        self.committed.insert(name, committed);
        self.files.push(Listed { name, size_bytes, timestamp, timestamp_is_exact: self.is_exact });
    }

    fn commit(&mut self, size_bytes: u64, delay: i64) {
        self.newest += 1;
        let at = self.now - delay;
        self.put(name(0, self.newest, self.newest), size_bytes, at);
    }

    /// As a restore sees it, that asks for the exact times.
    fn exact(&self) -> Vec<Listed> {
        let exact = |file: &Listed| Listed { timestamp: TimestampMs(self.committed[&file.name]), timestamp_is_exact: true, ..*file };
        self.files.iter().map(exact).collect()
    }

    fn add(&mut self, group: &schedule::Group) {
        let committed = self.committed[&group.inputs.last().unwrap().name];
        self.put(group.name().unwrap(), group.size_bytes() / 2 + 131, committed);
    }

    /// One round; it dies after so many steps.
    fn maintain(&mut self, steps: usize) {
        let mut left = steps;
        let now = TimestampMs(self.now);
        let policy = self.policy.clone();
        let mut step = || {
            left = left.saturating_sub(1);
            left > 0
        };
        let snapshot = |bucket: &mut Self| {
            if let Some(due) = schedule::snapshot(&bucket.files, &policy, now).unwrap() {
                bucket.add(&due.group);
            }
        };
        if !self.files.iter().any(|file| file.name.level == SNAPSHOT_LEVEL) {
            snapshot(self);
        }
        for (level, _) in schedule::compacted_levels() {
            // Nothing that a round does leaves one.
            assert_eq!(schedule::holes(&self.files, level, &policy, now), []);
            for group in schedule::groups(&self.files, level, &policy, now) {
                if group.inputs.len() > 1 || group.is_cut_off {
                    self.add(&group);
                    self.check_shape();
                }
                if !step() {
                    return;
                }
            }
        }
        snapshot(self);
        if !step() {
            return;
        }
        let outdated = retention::outdated(&self.files, &policy, now, &self.kept).unwrap();
        assert!(retention::still_leads(&self.files, &outdated, &self.kept));
        let before = self.clone();
        // In the order in which they are deleted; `files` has that of the levels.
        let spanned = outdated.spanned.values().rev().flatten();
        for file in outdated.snapshots.iter().chain(&outdated.increments).chain(spanned) {
            self.files.retain(|other| other.name != file.name);
            if !step() {
                break;
            }
        }
        self.check_against(&before);
        self.check_shape();
    }

    /// Whatever could be restored within the window still can.
    fn check_against(&self, before: &Self) {
        let (old, new) = (before.exact(), self.exact());
        assert_eq!(restore::plan(&old, Target::Latest), restore::plan(&new, Target::Latest));
        let exact_from = self.now - millis(self.policy.exact.min(self.policy.history));
        let from = self.now - millis(self.policy.history);
        let mut times: Vec<i64> = old.iter().flat_map(|file| [file.timestamp.0, file.timestamp.0 + 1]).collect();
        times.extend([from, exact_from, self.now]);
        for at in times.into_iter().filter(|at| *at >= from) {
            let target = Target::Timestamp(TimestampMs(at));
            match (restore::plan(&old, target), restore::plan(&new, target)) {
                (Ok(was), Ok(is)) if at >= exact_from => assert_eq!((was.txid, was.files), (is.txid, is.files), "{at}"),
                (Ok(was), Ok(is)) => assert!(is.txid <= was.txid, "{at}"),
                (Ok(was), Err(error)) => panic!("{at}: {} is gone: {error}", was.txid),
                (Err(_), _) => {}
            }
        }
        for txid in (1..=self.newest).map(txid) {
            let was = restore::plan(&old, Target::Txid(txid));
            let is = restore::plan(&new, Target::Txid(txid));
            // The state that was the newest when the window began, and all after it.
            let next = self.committed.get(&LtxName::level0(txid.next())).copied().unwrap_or(i64::MAX);
            if next > exact_from || self.kept.contains(&txid) {
                assert!(was.is_err() || was == is, "{txid}: {was:?} {is:?}");
            } else if let (Ok(was), Ok(is)) = (&was, &is) {
                assert_eq!(was.txid, is.txid);
            }
        }
    }

    /// What Litestream's programs need at every moment.
    fn check_shape(&self) {
        let level = |number| {
            let mut files: Vec<LtxName> = self.files.iter().map(|file| file.name).filter(|name| name.level.get() == number).collect();
            files.sort_by_key(|name| (name.min_txid, name.max_txid));
            files
        };
        assert_eq!(level(0).last().unwrap().max_txid, txid(self.newest));
        for number in 1..=9 {
            let files = level(number);
            assert!(files.iter().all(|name| name.max_txid.get() <= self.newest));
            assert!(number == 9 || files.iter().all(|name| name.min_txid != Txid::FIRST));
            assert!(number != 9 || files.iter().all(|name| name.min_txid == Txid::FIRST));
            // What ends before every snapshot leads nowhere any more, and may have lost its neighbours.
            let snapshots = level(9);
            let ends = snapshots.iter().map(|name| name.max_txid);
            let floor = if self.kept.is_empty() { ends.min() } else { ends.max() };
            for pair in files.windows(2).filter(|_| number != 9) {
                let is_below = floor.is_some_and(|floor| pair[1].min_txid <= floor.next());
                assert!(pair[1].min_txid == pair[0].max_txid.next() || is_below, "{pair:?}");
            }
        }
    }
}

fn policies() -> impl Strategy<Value = Policy> {
    let seconds = |range: std::ops::Range<u64>| range.prop_map(Duration::from_secs);
    (seconds(100..5000), seconds(0..5000), seconds(0..500), seconds(500..3000), 10_u32..300, any::<bool>()).prop_map(
        |(history, exact, grace, snapshot_every, snapshot_change_percent, small)| Policy {
            history,
            exact,
            grace,
            spans: [10, 60, 300].map(Duration::from_secs),
            snapshot_every,
            snapshot_change_percent,
            max_memory_bytes: if small { 0 } else { 32 << 20 },
            deletes: true,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("REPLICATED_TEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300), ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_window_has_can_be_restored_before_and_after(
        policy in policies(),
        (is_exact, is_ours) in any::<(bool, bool)>(),
        steps in proptest::collection::vec((0_u8..10, 1_i64..60_000, 150_u64..400_000), 1..150),
    ) {
        let mut bucket = Bucket::new(is_exact, is_ours, policy);
        for (what, pause, size) in steps {
            bucket.now += if what == 0 { pause * 40 } else { pause };
            match what {
                0..=6 => bucket.commit(size, if size % 7 == 0 { pause / 4 } else { 0 }),
                7 => bucket.maintain(usize::try_from(size % 9 + 1).unwrap()),
                8 if size % 5 == 0 && restore::plan(&bucket.files, Target::Txid(txid(bucket.newest))).is_ok() => {
                    bucket.kept.push(txid(bucket.newest));
                }
                _ => bucket.maintain(usize::MAX),
            }
        }
        bucket.now += 20_000_000;
        bucket.maintain(usize::MAX);
        bucket.maintain(usize::MAX);
        // A window later little is left: the newest snapshots, the newest file of each level, what is kept.
        if bucket.kept.is_empty() && bucket.policy.snapshot_every < bucket.policy.history {
            bucket.now += 20_000_000;
            bucket.maintain(usize::MAX);
            prop_assert!(bucket.files.len() <= 12, "{} files are left", bucket.files.len());
        }
    }
}

fn file(level: u8, min: u64, max: u64, seconds: i64) -> Listed {
    Listed { name: name(level, min, max), size_bytes: 1000, timestamp: TimestampMs(seconds * 1000), timestamp_is_exact: true }
}

fn due(files: &[Listed], seconds: i64) -> Vec<LtxName> {
    let level = Level::new(1).unwrap();
    let groups = schedule::groups(files, level, &Policy::default(), TimestampMs(seconds * 1000));
    groups.iter().map(|group| group.name().unwrap()).collect()
}

#[test]
fn files_of_one_span_are_merged_once_it_is_over() {
    let files: Vec<Listed> = (2..=9).map(|n| file(0, n, n, i64::try_from(n).unwrap() * 10)).chain([file(9, 1, 2, 20)]).collect();
    // 2 (20 s); 3 to 5 (30 to 50 s); 6 to 8 (60 to 80 s); 9 (90 s). A single one waits for the next.
    assert_eq!(due(&files, 95), [name(1, 2, 5), name(1, 6, 8)].map(|n| LtxName { ..n }));
    assert_eq!(due(&files[..3], 41), []);
    assert_eq!(due(&files[..2], 1000), [name(1, 2, 3)]);
    assert_eq!(due(&files[..1], 1000), []);
}

#[test]
fn nothing_is_merged_across_a_gap() {
    let files = [file(0, 2, 2, 1), file(0, 3, 3, 2), file(0, 5, 5, 3), file(0, 6, 6, 4), file(0, 9, 9, 5)];
    assert_eq!(due(&files, 100), [name(1, 2, 3), name(1, 5, 6)]);
}

#[test]
fn a_hole_is_filled_of_what_the_levels_below_have() {
    let level0 = (2..=12).map(|n| file(0, n, n, i64::try_from(n).unwrap()));
    let whole: Vec<Listed> =
        level0.chain([file(9, 1, 2, 1), file(1, 2, 4, 4), file(1, 5, 8, 8), file(1, 9, 10, 10), file(2, 2, 8, 8)]).collect();
    let without = |names: &[LtxName]| whole.iter().filter(|file| !names.contains(&file.name)).copied().collect::<Vec<_>>();
    let holes = |files: &[Listed], level| {
        let groups = schedule::holes(files, Level::new(level).unwrap(), &Policy::default(), TimestampMs(20_000));
        groups.iter().map(|group| (group.name().unwrap(), group.inputs.len())).collect::<Vec<_>>()
    };
    assert_eq!((holes(&whole, 1), holes(&whole, 2), holes(&whole, 3)), (vec![], vec![], vec![]));
    assert_eq!(holes(&without(&[name(1, 5, 8)]), 1), [(name(1, 5, 8), 4)]);
    // The first one: what is before it is in the snapshot.
    assert_eq!(holes(&without(&[name(1, 2, 4)]), 1), [(name(1, 3, 4), 2)]);
    // The last one is merged again as it was the first time.
    assert_eq!(holes(&without(&[name(1, 9, 10)]), 1), []);
    // Not of what nobody has, and not of a part of it.
    assert_eq!(holes(&without(&[name(1, 5, 8), name(0, 6, 6)]), 1), []);
    // Nor below the floor, where things go.
    let old = without(&[name(1, 5, 8)]).into_iter().chain([file(9, 1, 8, -1_000_000)]).collect::<Vec<_>>();
    assert_eq!(holes(&old, 1), []);
    // The largest steps that there are.
    let tall: Vec<Listed> = whole.iter().copied().chain([file(2, 9, 12, 12), file(3, 2, 4, 4), file(3, 9, 12, 12)]).collect();
    assert_eq!(holes(&tall, 3), [(name(3, 5, 8), 1)]);
}

#[test]
fn the_state_at_the_beginning_of_the_exact_time_keeps_what_leads_to_it() {
    // Of an hour that began at 50 s only the end of TXID 5 is left, which is in the middle of what was merged.
    let level0 = (2..=9).map(|n| file(0, n, n, i64::try_from(n).unwrap() * 10));
    let files: Vec<Listed> = level0.chain([file(9, 1, 2, 20), file(1, 2, 3, 30), file(1, 4, 6, 60)]).collect();
    let hour = Duration::from_secs(3600);
    let policy = Policy { exact: hour, grace: Duration::ZERO, ..Policy::default() };
    let outdated = retention::outdated(&files, &policy, TimestampMs(3_655_000), &[]).unwrap();
    assert_eq!(outdated.files().map(|file| file.name).collect::<Vec<_>>(), [name(0, 3, 3), name(0, 2, 2)]);
}

#[test]
fn where_the_newest_state_cannot_be_restored_nothing_goes() {
    let day = 24 * 3600;
    let files = [file(9, 1, 2, 0), file(0, 2, 2, 0), file(9, 1, 4, 5 * day), file(0, 4, 4, 5 * day), file(0, 6, 6, 9 * day)];
    let gap = retention::outdated(&files, &Policy::default(), TimestampMs(10 * day * 1000), &[]);
    assert!(matches!(gap, Err(PlanError::Gap { .. })), "{gap:?}");
    let whole = retention::outdated(&files[..4], &Policy::default(), TimestampMs(10 * day * 1000), &[]).unwrap();
    assert_eq!(whole.files().map(|file| file.name).collect::<Vec<_>>(), [name(9, 1, 2), name(0, 2, 2)]);
    // The older state is what a power loss left behind.
    let kept = retention::outdated(&files[..4], &Policy::default(), TimestampMs(10 * day * 1000), &[txid(2)]).unwrap();
    assert_eq!(kept.files().map(|file| file.name).collect::<Vec<_>>(), [name(0, 2, 2)]);
}
