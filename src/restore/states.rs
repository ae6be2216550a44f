//! The states that the files of a bucket lead to. Pure: from listings.

use std::collections::BTreeMap;

use super::plan::is_usable;
use crate::store::{Listed, LtxName};
use crate::types::Txid;

/// Every state that files lead to, and whether it is one: all that some file ends with.
pub(crate) fn ends(listings: &[Listed]) -> BTreeMap<Txid, bool> {
    let mut usable: Vec<&LtxName> = listings.iter().filter(|file| is_usable(file)).map(|file| &file.name).collect();
    usable.sort_unstable_by_key(|name| name.max_txid);
    let mut ends: BTreeMap<Txid, bool> = BTreeMap::new();
    // What can follow one state can follow every later one that it goes beyond.
    let (mut reached, mut before, mut at) = (0_u64, 0_u64, 0_u64);
    for name in usable {
        let max = name.max_txid.get();
        if max > at {
            (before, at) = (reached, max);
        }
        let leads = name.min_txid == Txid::FIRST || (before > 0 && name.min_txid.get() <= before.saturating_add(1));
        *ends.entry(name.max_txid).or_default() |= leads;
        if leads {
            reached = max;
        }
    }
    ends
}

/// The states that cannot be restored without an object, and could with it.
pub(crate) fn lost_without(listings: &[Listed], object: &LtxName, floor: Option<&Listed>) -> Vec<Txid> {
    let others: Vec<Listed> = listings.iter().filter(|file| file.name != *object).copied().collect();
    let (with, without) = (ends(listings), ends(&others));
    let from = floor.map(|floor| floor.name.max_txid);
    with.into_iter()
        .filter(|(txid, leads)| *leads && Some(*txid) >= from && without.get(txid) != Some(&true))
        .map(|(txid, _)| txid)
        .collect()
}
