use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::store::Level;

fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

fn name(level: u8, min: u64, max: u64) -> LtxName {
    LtxName { level: Level::new(level).unwrap(), min_txid: txid(min), max_txid: txid(max) }
}

/// Timestamps are ten times the last TXID unless a test says otherwise.
fn file(level: u8, min: u64, max: u64) -> Listed {
    let timestamp = TimestampMs(i64::try_from(max).unwrap() * 10);
    Listed { name: name(level, min, max), size_bytes: 1000, timestamp, timestamp_is_exact: true }
}

fn names(plan: &Plan) -> Vec<LtxName> {
    plan.files.iter().map(|file| file.name).collect()
}

/// What Litestream 0.5.17 leaves behind: see `fixtures/litestream-0.5.17-block`.
fn litestreams_shape() -> Vec<Listed> {
    let l0 = (0x18..=0x1c).map(|n| file(0, n, n));
    let l1 = [(1, 1), (2, 2), (3, 7), (8, 0xc), (0xd, 0x11), (0x12, 0x16), (0x17, 0x1b), (0x1c, 0x1c)].map(|(a, b)| file(1, a, b));
    let l2 = [(1, 1), (2, 7), (8, 0x1b)].map(|(a, b)| file(2, a, b));
    let l9 = [1, 0xc, 0x1c].map(|n| file(9, 1, n));
    l0.chain(l1).chain(l2).chain(l9).collect()
}

#[test]
fn the_last_snapshot_comes_first_and_the_longest_reach_next() {
    let files = litestreams_shape();
    let latest = plan(&files, Target::Latest).unwrap();
    assert_eq!(names(&latest), [name(9, 1, 0x1c)]);
    assert_eq!((latest.txid, latest.max_txid_in_bucket), (txid(0x1c), txid(0x1c)));
    let earlier = plan(&files, Target::Txid(txid(0x1b))).unwrap();
    assert_eq!(names(&earlier), [name(9, 1, 0xc), name(2, 8, 0x1b)]);
    let middle = plan(&files, Target::Txid(txid(0x11))).unwrap();
    assert_eq!(names(&middle), [name(9, 1, 0xc), name(1, 0xd, 0x11)]);
    assert_eq!((middle.txid, middle.max_txid_in_bucket), (txid(0x11), txid(0x1c)));
}

#[test]
fn a_snapshot_with_increments_behind_it_is_our_own_shape() {
    let files = [file(9, 1, 2), file(0, 2, 2), file(0, 3, 3), file(0, 4, 4)];
    assert_eq!(names(&plan(&files, Target::Latest).unwrap()), [name(9, 1, 2), name(0, 3, 3), name(0, 4, 4)]);
    let too_old = plan(&files, Target::Txid(txid(1))).unwrap_err();
    assert_eq!(too_old, PlanError::TooOld { asked: txid(1), oldest: txid(2), timestamp: TimestampMs(20) });
}

#[test]
fn every_target_refuses_a_gap_and_names_it() {
    let files = [file(9, 1, 2), file(0, 3, 3), file(0, 5, 5), file(0, 6, 6)];
    let gap = PlanError::Gap { last_good: txid(3), next: name(0, 5, 5) };
    for target in [Target::Latest, Target::Txid(txid(6)), Target::Timestamp(TimestampMs(60)), Target::Timestamp(TimestampMs(55))] {
        assert_eq!(plan(&files, target), Err(gap), "{target:?}");
    }
    assert_eq!(
        gap.to_string(),
        "the chain of files has a gap: it ends at TXID 0000000000000003, the next file is 0/0000000000000005-0000000000000005.ltx; the last good TXID is 0000000000000003"
    );
    assert_eq!(plan(&files, Target::Timestamp(TimestampMs(49))).unwrap().txid, txid(3));
    assert_eq!(plan(&files, Target::Txid(txid(4))), Err(gap));
}

#[test]
fn a_gap_that_a_higher_level_covers_is_none() {
    let files = [file(9, 1, 2), file(0, 3, 3), file(0, 6, 6), file(3, 2, 5)];
    assert_eq!(names(&plan(&files, Target::Latest).unwrap()), [name(9, 1, 2), name(3, 2, 5), name(0, 6, 6)]);
}

#[test]
fn without_a_file_from_txid_1_there_is_nothing_to_start_from() {
    let files = [file(0, 3, 3), file(0, 2, 2), file(9, 2, 4)];
    assert_eq!(plan(&files, Target::Latest), Err(PlanError::NoBase { first: name(0, 2, 2) }));
    assert_eq!(plan(&files, Target::Timestamp(TimestampMs(5))), Err(PlanError::NoBase { first: name(0, 2, 2) }));
    assert_eq!(plan(&[], Target::Latest), Err(PlanError::Empty));
    assert_eq!(plan(&[file(9, 1, 4)], Target::Txid(txid(5))), Err(PlanError::NotYet { asked: txid(5), newest: txid(4) }));
}

#[test]
fn a_txid_that_was_merged_away_is_refused_with_its_neighbours() {
    let files = [file(9, 1, 2), file(1, 3, 6), file(2, 3, 9)];
    let merged = PlanError::Merged { asked: txid(5), merged_into: name(1, 3, 6), last_good: txid(2), next_good: txid(6) };
    assert_eq!(plan(&files, Target::Txid(txid(5))), Err(merged));
    // The state at 55 is not known to differ from TXID 2: nothing that ends between them is listed.
    assert_eq!(plan(&files, Target::Timestamp(TimestampMs(55))).unwrap().txid, txid(2));
    // Here it is known: TXID 5 was there at 50, and what leads to it is gone.
    let files = [file(9, 1, 2), file(1, 3, 6), file(0, 5, 5), file(0, 6, 6)];
    assert_eq!(plan(&files, Target::Timestamp(TimestampMs(55))), Err(merged));
}

#[test]
fn a_file_too_short_to_be_one_is_used_by_no_plan() {
    let short = |file: Listed| Listed { size_bytes: 0, ..file };
    let tail = [file(9, 1, 2), file(0, 3, 3), short(file(0, 4, 4))];
    let expected = PlanError::TooShort { object: name(0, 4, 4), size_bytes: 0, last_good: Some(txid(3)) };
    assert_eq!(plan(&tail, Target::Latest), Err(expected));
    assert_eq!(plan(&tail, Target::Txid(txid(3))).unwrap().txid, txid(3));
    let base = PlanError::TooShort { object: name(9, 1, 2), size_bytes: 0, last_good: None };
    assert_eq!(plan(&[short(file(9, 1, 2)), file(0, 3, 3)], Target::Latest), Err(base));
    // Where other files cover the same, nothing is lost.
    let covered = [file(9, 1, 2), short(file(0, 3, 3)), file(1, 3, 4), file(0, 4, 4)];
    assert_eq!(names(&plan(&covered, Target::Latest).unwrap()), [name(9, 1, 2), name(1, 3, 4)]);
}

#[test]
fn a_time_stands_for_the_last_state_at_or_before_it() {
    let files = [file(9, 1, 2), file(0, 3, 3), file(0, 4, 4)];
    let at = |time: i64| plan(&files, Target::Timestamp(TimestampMs(time)));
    assert_eq!(at(29).unwrap().txid, txid(2));
    assert_eq!(at(30).unwrap().txid, txid(3));
    assert_eq!(at(39).unwrap().txid, txid(3));
    assert_eq!(at(1_000_000).unwrap().txid, txid(4));
    let early = PlanError::BeforeOldest { asked: TimestampMs(19), oldest: txid(2), timestamp: TimestampMs(20) };
    assert_eq!(at(19), Err(early));
}

#[test]
fn a_snapshot_taken_after_the_time_still_serves_when_it_holds_nothing_later() {
    let late_snapshot = Listed { timestamp: TimestampMs(90), ..file(9, 1, 4) };
    let files = [late_snapshot, file(0, 4, 4), file(0, 5, 5)];
    assert_eq!(names(&plan(&files, Target::Timestamp(TimestampMs(45))).unwrap()), [name(9, 1, 4)]);
}

#[test]
fn what_is_left_without_a_damaged_object_is_known() {
    let files = litestreams_shape();
    assert_eq!(reach_without(&files, &name(9, 1, 0x1c)), Some(txid(0x1c)));
    assert_eq!(reach_without(&[file(9, 1, 2), file(0, 3, 3), file(0, 4, 4)], &name(0, 3, 3)), Some(txid(2)));
    assert_eq!(reach_without(&[file(9, 1, 2), file(0, 3, 3)], &name(9, 1, 2)), None);
}

/// Every TXID that some sequence of files leads to.
fn reachable(files: &[Listed]) -> BTreeSet<u64> {
    let mut reached = BTreeSet::from([0]);
    loop {
        let before = reached.len();
        for file in files.iter().filter(|file| is_usable(file)) {
            let (min, max) = (file.name.min_txid.get(), file.name.max_txid.get());
            if reached.iter().any(|r| min <= r + 1 && max > *r) {
                reached.insert(max);
            }
        }
        if reached.len() == before {
            reached.remove(&0);
            return reached;
        }
    }
}

fn any_file() -> impl Strategy<Value = Listed> {
    let span = prop_oneof![4 => Just(0u64), 2 => 0u64..6, 1 => 0u64..20];
    let level = prop_oneof![4 => Just(0u8), 3 => 1u8..9, 2 => Just(9u8)];
    (level, 1u64..24, span, prop::bool::weighted(0.05), prop::bool::weighted(0.3)).prop_map(|(level, min, span, short, from_one)| {
        let min = if (level == 9 && min > 2) || from_one { 1 } else { min };
        Listed { size_bytes: if short { 10 } else { 500 }, ..file(level, min, min + span) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_plan_is_found_exactly_where_one_exists(files in prop::collection::vec(any_file(), 0..30), asked in 1u64..45, by_time in any::<bool>()) {
        let reachable = reachable(&files);
        let newest = files.iter().map(|file| file.name.max_txid.get()).max();
        let (target, wanted) = if by_time {
            let last = files.iter().map(|file| file.name.max_txid.get()).filter(|max| max * 10 <= asked * 10 + 5).max();
            (Target::Timestamp(TimestampMs(i64::try_from(asked).unwrap() * 10 + 5)), last)
        } else if asked == 44 {
            (Target::Latest, newest)
        } else {
            (Target::Txid(txid(asked)), Some(asked))
        };
        match plan(&files, target) {
            Ok(plan) => {
                prop_assert_eq!(Some(plan.txid.get()), wanted);
                prop_assert_eq!(Some(plan.max_txid_in_bucket.get()), newest);
                let mut reached = 0;
                for file in &plan.files {
                    prop_assert!(files.contains(file) && is_usable(file));
                    prop_assert!(file.name.min_txid.get() <= reached + 1, "gap before {}", file.name);
                    prop_assert!(file.name.max_txid.get() > reached, "{} adds nothing", file.name);
                    reached = file.name.max_txid.get();
                }
                prop_assert_eq!(reached, plan.txid.get());
            }
            Err(error) => {
                prop_assert!(wanted.is_none_or(|wanted| !reachable.contains(&wanted)), "{error} although {wanted:?} can be reached");
                check_error(&error, &files, &reachable)?;
            }
        }
    }
}

/// Whatever an error says must be so.
fn check_error(error: &PlanError, files: &[Listed], reachable: &BTreeSet<u64>) -> Result<(), TestCaseError> {
    let last_below = |limit: u64| reachable.range(..limit).next_back().copied();
    match *error {
        PlanError::Empty => prop_assert!(files.is_empty()),
        PlanError::NotYet { asked, newest } => {
            prop_assert!(asked > newest && files.iter().all(|file| file.name.max_txid <= newest), "{error}");
        }
        PlanError::TooOld { oldest, .. } | PlanError::BeforeOldest { oldest, .. } => {
            prop_assert_eq!(reachable.first().copied(), Some(oldest.get()));
        }
        PlanError::NoBase { .. } => prop_assert!(last_below(u64::MAX).is_none() || files.iter().any(|file| !is_usable(file)), "{error}"),
        PlanError::Gap { last_good, next } => {
            let is_behind = next.min_txid.get() > last_good.get() + 1;
            prop_assert!(reachable.contains(&last_good.get()) && (is_behind || next.level == SNAPSHOT_LEVEL), "{error}");
        }
        PlanError::Merged { asked, merged_into, last_good, next_good } => {
            prop_assert_eq!(last_below(asked.get()), Some(last_good.get()));
            prop_assert!(reachable.contains(&next_good.get()) && next_good > asked && merged_into.max_txid == next_good, "{error}");
        }
        PlanError::TooShort { last_good, size_bytes, .. } => {
            prop_assert!(size_bytes < SMALLEST_FILE_BYTES);
            prop_assert!(last_good.is_none_or(|txid| reachable.contains(&txid.get())), "{error}");
        }
    }
    Ok(())
}
