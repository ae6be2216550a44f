//! Which files lead from the state of a copy to the newest one. Pure.

use std::collections::BTreeMap;

use crate::restore::plan::is_usable;
use crate::store::{Listed, LtxName};
use crate::types::Txid;

/// What another file costs beside its bytes: a request.
const REQUEST_BYTES: u64 = 64 << 10;

/// Why there is no way to the newest state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoWay {
    /// The bucket has nothing.
    Empty,
    /// The bucket ends before the state that the copy has.
    Behind { newest: Txid },
    /// Nothing leads over a gap.
    Gap { newest: Txid },
}

/// At which cost a state is reached, and by which file from which state.
type Reached<'a> = (u64, Option<(&'a Listed, u64)>);

/// The files that lead from a state to the newest at the least cost, oldest first; none where that is the newest.
///
/// A file leads on from every state that it begins right after or spans, and a snapshot from every state before its end.
pub(super) fn onwards(listings: &[Listed], from: Txid, avoided: &[LtxName]) -> Result<Vec<Listed>, NoWay> {
    let newest = listings.iter().map(|file| file.name.max_txid).max().ok_or(NoWay::Empty)?;
    if newest < from {
        return Err(NoWay::Behind { newest });
    }
    let mut files: Vec<&Listed> =
        listings.iter().filter(|file| file.name.max_txid > from && is_usable(file) && !avoided.contains(&file.name)).collect();
    files.sort_by_key(|file| file.name.max_txid);
    // For each state that can be reached.
    let mut reached: BTreeMap<u64, Reached<'_>> = BTreeMap::from([(from.get(), (0, None))]);
    for file in files {
        let end = file.name.max_txid.get();
        let before = reached.range(file.name.min_txid.get() - 1..end).min_by_key(|(_, (cost, _))| *cost);
        let Some((&start, &(cost, _))) = before else { continue };
        let cost = cost.saturating_add(file.size_bytes).saturating_add(REQUEST_BYTES);
        if reached.get(&end).is_none_or(|(known, _)| cost < *known) {
            reached.insert(end, (cost, Some((file, start))));
        }
    }
    let mut files = Vec::new();
    let mut at = newest.get();
    while at > from.get() {
        let Some((_, Some((file, start)))) = reached.get(&at) else { return Err(NoWay::Gap { newest }) };
        files.push(**file);
        at = *start;
    }
    files.reverse();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Level;
    use crate::types::TimestampMs;
    use proptest::prelude::*;

    fn txid(number: u64) -> Txid {
        Txid::new(number).unwrap()
    }

    fn file(level: u8, min: u64, max: u64, size_bytes: u64) -> Listed {
        let name = LtxName { level: Level::new(level).unwrap(), min_txid: txid(min), max_txid: txid(max) };
        Listed { name, size_bytes, timestamp: TimestampMs(0), timestamp_is_exact: true }
    }

    fn names(listings: &[Listed], from: u64) -> Result<Vec<String>, NoWay> {
        onwards(listings, txid(from), &[]).map(|files| files.iter().map(|file| file.name.to_string()[..1].to_owned()).collect())
    }

    #[test]
    fn the_cheapest_way_is_taken_and_a_gap_is_crossed_where_a_level_spans_it() {
        let mut all: Vec<Listed> = (10..=20).map(|n| file(0, n, n, 500)).collect();
        all.extend([file(1, 5, 14, 4000), file(2, 5, 18, 2_000_000_000), file(9, 1, 12, 9_000_000)]);
        assert_eq!(names(&all, 18), Ok(vec!["0".to_owned(); 2]));
        assert_eq!(names(&all, 20), Ok(vec![]));
        // Level 1 for fewer requests.
        assert_eq!(names(&all, 9), Ok(["1", "0", "0", "0", "0", "0", "0"].map(str::to_owned).to_vec()));
        // From before what is left: the snapshot.
        assert_eq!(names(&all, 3), Ok(["9", "1", "0", "0", "0", "0", "0", "0"].map(str::to_owned).to_vec()));
        all.retain(|file| file.name.max_txid != txid(19));
        assert_eq!(names(&all, 12), Err(NoWay::Gap { newest: txid(20) }));
        assert_eq!(names(&all, 21), Err(NoWay::Behind { newest: txid(20) }));
        assert_eq!(names(&[], 1), Err(NoWay::Empty));
        // What is damaged is gone around.
        let around = onwards(&all[..5], txid(10), &[all[1].name]);
        assert_eq!(around, Err(NoWay::Gap { newest: txid(14) }));
    }

    proptest! {
        #[test]
        fn a_way_has_no_gaps_and_ends_at_the_newest_state(
            files in proptest::collection::vec((0u8..=9, 1u64..30, 0u64..10, 131u64..1_000_000), 0..40),
            from in 1u64..40,
        ) {
            let listings: Vec<Listed> = files.iter().map(|(level, min, span, size)| {
                if *level == 9 { file(9, 1, min + span, *size) } else { file(*level, *min, min + span, *size) }
            }).collect();
            let newest = listings.iter().map(|file| file.name.max_txid).max();
            let mut can = vec![txid(from)];
            loop {
                let next = listings.iter().find(|file| {
                    !can.contains(&file.name.max_txid) && can.iter().any(|at| file.name.min_txid.get() <= at.get() + 1 && file.name.max_txid > *at)
                });
                match next {
                    Some(file) => can.push(file.name.max_txid),
                    None => break,
                }
            }
            match onwards(&listings, txid(from), &[]) {
                Ok(way) => {
                    let mut at = from;
                    for file in &way {
                        prop_assert!(file.name.min_txid.get() <= at + 1 && file.name.max_txid.get() > at);
                        at = file.name.max_txid.get();
                    }
                    prop_assert_eq!(Some(txid(at)), newest);
                }
                Err(NoWay::Empty) => prop_assert_eq!(newest, None),
                Err(NoWay::Behind { newest: end }) => prop_assert!(Some(end) == newest && end < txid(from)),
                Err(NoWay::Gap { newest }) => prop_assert!(!can.contains(&newest)),
            }
        }
    }
}
