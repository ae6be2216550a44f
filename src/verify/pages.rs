//! The pages of the state that has been read so far, by their checksums: what a file of a higher level says of a state is compared with what the files it
//! was made of have said, in bounded memory.
//!
//! ```text
//!   0/5-5   page 2, 7        extends the state: pages 2 and 7 are from 0/5-5 now
//!   0/6-6   page 7           extends the state
//!   1/3-6   page 2, 4, 7     ends where the state is: its pages must be the same, and those of TXID 3 to 6 must all be in it
//! ```
//!
//! Where memory does not do for all pages, every second, fourth, ... of them is kept.

use std::collections::BTreeMap;

use crate::ltx::CHECKSUM_FLAG;
use crate::store::LtxName;
use crate::types::{PageNo, PageSize};

/// A checksum and where it is from.
const BYTES_OF_PAGE: u64 = 12;
/// No state that is known ends there.
const NOWHERE: u64 = 0;

/// A page that two files disagree about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disagreement {
    pub(super) page: PageNo,
    /// The file that the state has the page from.
    pub(super) with: LtxName,
}

/// The state.
#[derive(Debug)]
pub(super) struct Pages {
    /// One of so many pages is kept; 0: none.
    stride: u32,
    most: usize,
    /// 0 where it is not known.
    checksums: Vec<u64>,
    /// Which step a page is from.
    origins: Vec<u32>,
    steps: Vec<Step>,
    /// XOR of the known ones.
    sum: u64,
    known: u64,
    /// The first step whose predecessors are all there: before it something is missing.
    whole_since: usize,
}

/// A file that the state was extended by.
#[derive(Clone, Copy, Debug)]
struct Step {
    name: LtxName,
    /// How many pages are from it still.
    pages: u64,
}

impl Pages {
    /// With so much memory; without any no page is kept.
    pub(super) fn new(memory_bytes: u64) -> Self {
        let most = usize::try_from(memory_bytes / BYTES_OF_PAGE).unwrap_or(usize::MAX);
        Self {
            stride: u32::from(most > 0),
            most,
            checksums: Vec::new(),
            origins: Vec::new(),
            steps: Vec::new(),
            sum: 0,
            known: 0,
            whole_since: 0,
        }
    }

    /// One of so many pages is kept; 0: none.
    pub(super) const fn stride(&self) -> u32 {
        self.stride
    }

    /// Whether a page is one of those that are kept.
    pub(super) const fn keeps(&self, page: PageNo) -> bool {
        self.stride > 0 && page.get().is_multiple_of(self.stride)
    }

    fn slot(&self, page: PageNo) -> Option<usize> {
        self.keeps(page).then(|| (page.get() / self.stride) as usize)
    }

    /// Begins to extend the state by a file.
    pub(super) fn step(&mut self, name: LtxName, commit_pages: u32) {
        while self.stride > 0 && (commit_pages / self.stride) as usize >= self.most {
            self.thin();
        }
        if let Some(last) = commit_pages.checked_div(self.stride) {
            let slots = (last as usize + 1).max(self.checksums.len());
            self.checksums.resize(slots, 0);
            self.origins.resize(slots, 0);
        }
        self.steps.push(Step { name, pages: 0 });
    }

    /// Every second one is kept from now on.
    fn thin(&mut self) {
        let halve = |at: &mut usize| {
            *at += 1;
            (*at - 1).is_multiple_of(2)
        };
        let mut at = 0;
        self.checksums.retain(|_| halve(&mut at));
        at = 0;
        self.origins.retain(|_| halve(&mut at));
        self.stride = self.stride.saturating_mul(2);
        (self.sum, self.known) = (0, 0);
        for step in &mut self.steps {
            step.pages = 0;
        }
        for (checksum, origin) in self.checksums.iter().zip(&self.origins).filter(|(checksum, _)| **checksum != 0) {
            self.sum ^= checksum;
            self.known += 1;
            if let Some(step) = self.steps.get_mut(*origin as usize) {
                step.pages += 1;
            }
        }
    }

    /// A page of the file that the state is being extended by.
    pub(super) fn set(&mut self, page: PageNo, checksum: u64) {
        let current = self.steps.len().saturating_sub(1);
        self.put(page, checksum, current);
    }

    fn put(&mut self, page: PageNo, checksum: u64, step: usize) {
        let Some(slot) = self.slot(page) else { return };
        let (Some(kept), Some(origin)) = (self.checksums.get_mut(slot), self.origins.get_mut(slot)) else { return };
        let (old, from) = (std::mem::replace(kept, checksum), std::mem::replace(origin, u32::try_from(step).unwrap_or(u32::MAX)));
        self.sum ^= old ^ checksum;
        if old != 0
            && let Some(from) = self.steps.get_mut(from as usize)
        {
            from.pages -= 1;
        }
        self.known += u64::from(old == 0);
        if let Some(step) = self.steps.get_mut(step) {
            step.pages += 1;
        }
    }

    /// The database has become smaller, or may have.
    pub(super) fn cut(&mut self, commit_pages: u32) {
        let Some(last) = commit_pages.checked_div(self.stride) else { return };
        let keep = (last as usize + 1).min(self.checksums.len());
        for (checksum, origin) in self.checksums.drain(keep..).zip(self.origins.drain(keep..)).filter(|(checksum, _)| *checksum != 0) {
            self.sum ^= checksum;
            self.known -= 1;
            if let Some(step) = self.steps.get_mut(origin as usize) {
                step.pages -= 1;
            }
        }
    }

    /// Something is missing, or was damaged: of the pages so far none is known any more.
    pub(super) fn forget(&mut self) {
        self.checksums.fill(0);
        (self.sum, self.known) = (0, 0);
        for step in &mut self.steps {
            step.pages = 0;
        }
        self.whole_since = self.steps.len();
    }

    /// A page of a file that ends where the state is: the answer is what disagrees. One that is not known yet is taken.
    pub(super) fn compare(&mut self, page: PageNo, checksum: u64, by: &mut Comparison) -> Option<Disagreement> {
        let slot = self.slot(page)?;
        let (kept, origin) = (*self.checksums.get(slot)?, *self.origins.get(slot)? as usize);
        if kept == 0 {
            // Of an unknown step before all others.
            self.put(page, checksum, usize::MAX);
            by.has_given = true;
            return None;
        }
        if by.first_step.is_some_and(|first| origin >= first && origin < self.steps.len()) {
            by.found += 1;
        }
        if kept == checksum {
            return None;
        }
        let with = self.steps.get(origin).map_or(by.name, |step| step.name);
        Some(Disagreement { page, with })
    }

    /// Begins to compare a file with the state.
    pub(super) fn comparison(&self, name: LtxName) -> Comparison {
        // The steps that the file spans, where they are known to be these and no others.
        let first = self.steps.partition_point(|step| step.name.max_txid < name.min_txid);
        let begins_there = match first.checked_sub(1).and_then(|before| self.steps.get(before)) {
            Some(before) => before.name.max_txid.next() == name.min_txid,
            None => self.steps.first().is_some_and(|step| step.name.min_txid <= name.min_txid),
        };
        // Of one that begins before the file, such as a snapshot that was made while the first batch waited, it need not have the pages.
        let of_file = self.steps.get(first..).unwrap_or_default();
        let begin_before = of_file.iter().rposition(|step| step.name.min_txid < name.min_txid).map_or(0, |last| last + 1);
        let first_step = first + begin_before;
        let is_whole = self.stride > 0 && begins_there && first >= self.whole_since && first_step < self.steps.len();
        Comparison { name, first_step: is_whole.then_some(first_step), found: 0, has_given: false }
    }

    /// How many pages the file lacks that were changed in its span.
    pub(super) fn lacking(&self, by: &Comparison) -> u64 {
        let Some(first) = by.first_step else { return 0 };
        let changed: u64 = self.steps.get(first..).unwrap_or_default().iter().map(|step| step.pages).sum();
        changed.saturating_sub(by.found)
    }

    /// A file that has a page which the other lacks.
    pub(super) fn example(&self, by: &Comparison) -> Option<LtxName> {
        self.steps.get(by.first_step?..)?.iter().find(|step| step.pages > 0).map(|step| step.name)
    }

    /// The checksum of the whole database, where every page is known.
    pub(super) fn rolling(&self, page_size: PageSize, commit_pages: u32) -> Option<u64> {
        let pages = u64::from(commit_pages) - u64::from(page_size.lock_page().get() <= commit_pages);
        (self.stride == 1 && self.known == pages).then_some(self.sum | CHECKSUM_FLAG)
    }
}

/// A file that is compared with the state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Comparison {
    name: LtxName,
    first_step: Option<usize>,
    found: u64,
    /// Pages of the state are from it, which nobody else had.
    pub(super) has_given: bool,
}

/// Of the level-0 files that were read last, what tells whether they go together.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    last: BTreeMap<u64, Place>,
}

/// Where a file of level 0 is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: LtxName,
    pub(super) node_id: u64,
    pub(super) salts: [u32; 2],
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Neighbours {
    /// Takes the next file; the answer is the one before it, where that does not go together with both of its neighbours, and why.
    pub(super) fn take(&mut self, place: Place) -> Option<(LtxName, String)> {
        let txid = place.name.max_txid.get();
        self.last.insert(txid, place);
        while self.last.len() > 3 {
            self.last.pop_first();
        }
        let of = |back: u64| txid.checked_sub(back).filter(|txid| *txid != NOWHERE).and_then(|txid| self.last.get(&txid));
        let (before, middle) = (of(2)?, of(1)?);
        let goes_on = before.salts == place.salts && before.salts != [0; 2] && before.end == place.start;
        let (a, b) = (before.name.max_txid, place.name.max_txid);
        // A single node's log goes on around it, or a writer that came back with nothing of its own lost: both do not happen.
        if goes_on && middle.salts != before.salts && middle.salts != [0; 2] {
            return Some((
                middle.name,
                format!("it is of another write-ahead log than TXID {a} and TXID {b}, which follow on each other without it"),
            ));
        }
        let is_node = before.node_id != 0 && before.node_id == place.node_id;
        if is_node && middle.node_id != before.node_id && middle.node_id != 0 {
            return Some((
                middle.name,
                format!(
                    "node {:016x} has written it, and TXID {a} and TXID {b} around it are node {:016x}'s",
                    middle.node_id, before.node_id
                ),
            ));
        }
        None
    }
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
