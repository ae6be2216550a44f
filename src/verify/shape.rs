//! What the names of a bucket's files promise, and what their neighbours say of them. Pure: from listings to findings.
//!
//! ```text
//!             floor                      beginning of the exact time      newest
//!   level 9     1-100                                  1-220
//!   level 1        101-130 131-170 171-200 201-230            all that is behind the floor, without holes
//!   level 0                                  (229) 230 ... 260             without holes from here on
//! ```

use std::collections::BTreeSet;

use super::Scope;
use super::report::{Finding, Kind, MOST_FINDINGS};
use crate::maintenance::policy::millis;
use crate::restore::states::{ends, lost_without};
use crate::restore::{self, Target, is_usable};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL};
use crate::types::{TimestampMs, Txid};

/// What the listing of a bucket says.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// The snapshot that the oldest states of the window begin with.
    pub(super) floor: Option<Listed>,
    pub(super) newest: Option<Listed>,
    /// What has to be read, in the order in which it is: by the state that a file ends with, and of those the shortest first.
    pub(super) reads: Vec<Listed>,
    /// What nothing promises any more, where it is to be read all the same.
    pub(super) others: Vec<Listed>,
    /// States behind the floor that some files lead to.
    pub(super) states: Vec<Txid>,
    pub(super) findings: Vec<Finding>,
    /// What is wrong where the bucket is ours, and usual where Litestream keeps it.
    pub(super) if_ours: Vec<Finding>,
    pub(super) notes: Vec<String>,
}

/// What to do about an object that is no good.
pub(super) fn advice(listings: &[Listed], object: &LtxName, floor: Option<&Listed>) -> String {
    let lost = lost_without(listings, object, floor);
    match (lost.first(), lost.last()) {
        (Some(first), Some(last)) => {
            let states = if first == last { format!("TXID {first}") } else { format!("TXID {first} to {last} ({} states)", lost.len()) };
            let newest = listings.iter().map(|file| file.name.max_txid).max();
            let anew = ". Where there is none, move it out of the bucket and run `replicated adopt`: the next open of the database sends a snapshot";
            format!(
                "Bring the object back from a mirror, a copy or an older version of the bucket: {states} cannot be restored without it{}",
                if Some(*last) == newest { anew } else { "" }
            )
        }
        _ if object.level == Level::ZERO => {
            "Bring the object back from a mirror, a copy or an older version of the bucket, or leave it to retention: \
                                             other files lead to every state without it"
                .to_owned()
        }
        _ => "Have it made anew with `replicated maintain URL --repair`, or move it out of the bucket: other files lead to every state without it"
            .to_owned(),
    }
}

/// Looks at a listing.
pub(super) fn look(listings: &[Listed], scope: &Scope, now: TimestampMs, kept: &[Txid]) -> Shape {
    let mut shape = Shape::default();
    let before = |duration| TimestampMs(now.0.saturating_sub(millis(duration)));
    shape.newest = listings.iter().max_by_key(|file| (file.name.max_txid, std::cmp::Reverse(file.name.level))).copied();
    let Some(newest) = shape.newest.map(|file| file.name.max_txid) else {
        shape.wrong(Kind::Empty, None, "the bucket has no LTX files", "Check the URL: is it the path that the replica was written to?");
        return shape;
    };
    let is_base = |file: &&Listed| is_usable(file) && file.name.level == SNAPSHOT_LEVEL && file.timestamp <= before(scope.history);
    shape.floor = listings.iter().filter(is_base).max_by_key(|file| file.name.max_txid).copied();
    let floor = shape.floor;
    let reached = floor.map_or(0, |floor| floor.name.max_txid.get());
    let is_promised = |file: &&Listed| file.name.max_txid.get() > reached || floor.is_some_and(|floor| floor.name == file.name);

    let mut reads: BTreeSet<LtxName> = listings.iter().filter(is_promised).map(|file| file.name).collect();
    for txid in kept {
        match restore::plan(listings, Target::Txid(*txid)) {
            Ok(plan) => reads.extend(plan.files.iter().map(|file| file.name)),
            Err(error) => shape.wrong(
                Kind::Gap,
                None,
                format!("TXID {txid} is to be kept, and cannot be restored: {error}"),
                format!("Bring the files back from a copy, or let it go with `replicated maintain URL --acknowledge {txid}`"),
            ),
        }
    }
    for file in listings.iter().filter(|file| reads.contains(&file.name)) {
        shape.one(listings, file);
    }
    shape.reads = listings.iter().filter(|file| reads.contains(&file.name) && is_usable(file)).copied().collect();
    if scope.everything {
        shape.others = listings.iter().filter(|file| !reads.contains(&file.name) && is_usable(file)).copied().collect();
    }
    shape.reads.sort_unstable_by_key(|file| (file.name.max_txid, std::cmp::Reverse(file.name.min_txid), file.name.level));

    let since = before(scope.exact.min(scope.history));
    shape.gaps(listings, reached, since);
    for level in Level::all().filter(|level| *level != SNAPSHOT_LEVEL && *level != Level::ZERO) {
        shape.holes(listings, level, reached);
    }
    shape.exact(listings, since, reached);
    shape.end(listings, newest);
    shape
}

impl Shape {
    fn wrong(&mut self, kind: Kind, object: impl Into<Option<LtxName>>, what: impl Into<String>, advice: impl Into<String>) {
        self.findings.push(Finding { kind, object: object.into(), what: what.into(), advice: advice.into() });
    }

    /// What the name and size of a file say by themselves.
    fn one(&mut self, listings: &[Listed], file: &Listed) {
        let name = file.name;
        if self.is_enough() {
            return;
        }
        if file.size_bytes < restore::SMALLEST_FILE_BYTES {
            let what = format!("it has {} bytes, fewer than any LTX file", file.size_bytes);
            // As if it were whole: such a file leads nowhere as it is, so that nothing would be lost with it.
            let whole = |one: &Listed| if one.name == name { Listed { size_bytes: restore::SMALLEST_FILE_BYTES, ..*one } } else { *one };
            let listings: Vec<Listed> = listings.iter().map(whole).collect();
            self.wrong(Kind::Damaged, name, what, advice(&listings, &name, self.floor.as_ref()));
        }
        if name.level == SNAPSHOT_LEVEL && name.min_txid != Txid::FIRST {
            let what =
                format!("it begins at TXID {}, and is no snapshot: Litestream refuses to restore a bucket with such a file", name.min_txid);
            self.wrong(Kind::Misplaced, name, what, "Move the object out of the bucket");
        }
        if name.level == Level::ZERO && name.min_txid != name.max_txid {
            let what = "it spans several TXIDs, and level 0 has one file for each upload: Litestream cannot go on after such a file";
            self.wrong(
                Kind::Misplaced,
                name,
                what,
                "Move the object out of the bucket, once `replicated verify` finds the states in other files",
            );
        }
    }

    /// States that no files lead to.
    fn gaps(&mut self, listings: &[Listed], from: u64, since: TimestampMs) {
        let ends = ends(listings);
        self.states = ends.iter().filter(|(txid, leads)| **leads && txid.get() >= from.max(1)).map(|(txid, _)| *txid).collect();
        if !ends.values().any(|leads| *leads) {
            let first = listings.iter().map(|file| file.name).min_by_key(|name| (name.min_txid, name.level));
            let what = "no file begins at TXID 1: there is nothing to start from, and no state can be restored";
            let advice = "Bring the snapshots (level 9) back from a mirror, a copy or older versions of the bucket. An application that is replicating \
                          sends its full state at its next open";
            self.wrong(Kind::NoBase, first, what, advice);
            return;
        }
        let mut last_good: Option<Txid> = None;
        let mut run: Option<(Txid, Txid, usize)> = None;
        let all: Vec<(Txid, bool)> = ends.into_iter().filter(|(txid, _)| txid.get() >= from).collect();
        for (txid, leads) in all.into_iter().map(|(txid, leads)| (Some(txid), leads)).chain([(None, true)]) {
            if let Some(txid) = txid.filter(|_| !leads) {
                run = Some(run.map_or((txid, txid, 1), |(first, _, count)| (first, txid, count + 1)));
                continue;
            }
            if self.is_enough() {
                return;
            }
            if let Some((first, last, count)) = run.take() {
                self.gap(listings, last_good, (first, last, count), txid, since);
            }
            last_good = txid;
        }
    }

    fn gap(
        &mut self,
        listings: &[Listed],
        last_good: Option<Txid>,
        (first, last, count): (Txid, Txid, usize),
        next_good: Option<Txid>,
        since: TimestampMs,
    ) {
        let states = if count == 1 { format!("TXID {first}") } else { format!("TXID {first} to {last} ({count} states)") };
        let usable = || listings.iter().filter(|file| is_usable(file));
        let behind = usable().filter(|file| file.name.max_txid == first).map(|file| file.name).min_by_key(|name| name.min_txid);
        let Some(good) = last_good else {
            let next = next_good.map_or_else(String::new, |next| format!("; the oldest state that can be restored is TXID {next}"));
            self.if_ours.push(Finding {
                kind: Kind::NoBase,
                object: behind,
                what: format!("no snapshot leads to {states}, which the window promises{next}"),
                advice: "Bring the snapshot back from a mirror, a copy or an older version of the bucket. Where somebody deletes snapshots earlier on purpose, \
                         say how much history there is with --history"
                    .to_owned(),
            });
            return;
        };
        let Some(behind) = behind.filter(|behind| behind.min_txid > good.next()) else {
            let advice = "Bring the missing files back from a mirror, a copy or older versions of the bucket";
            self.wrong(Kind::Gap, behind, format!("no files lead to {states}"), advice);
            return;
        };
        let upto = Txid::new(behind.min_txid.get() - 1).unwrap_or(good);
        let missing = LtxName { level: behind.level, min_txid: good.next(), max_txid: upto };
        let which = if good.next() == upto { format!("TXID {upto} is") } else { format!("TXID {} to {upto} are", good.next()) };
        // One that spans the missing ones and leads on: what is lost are the states in its midst.
        let spanning = next_good.and_then(|next| {
            let is_one =
                |file: &&Listed| file.name.max_txid == next && file.name.min_txid <= good.next() && file.name.min_txid != Txid::FIRST;
            usable().find(is_one).map(|file| file.name)
        });
        if let Some(spanning) = spanning {
            let newest_lost = usable().filter(|file| file.name.max_txid == last).map(|file| file.timestamp).min();
            if newest_lost.is_some_and(|timestamp| timestamp <= since) {
                return;
            }
            let finding = Finding {
                kind: Kind::MissingFile,
                object: Some(missing),
                what: format!("{which} in {spanning} alone, so that {states} cannot be restored one by one"),
                advice: "Where the bucket is maintained with a shorter --exact, give that one. Else something other than retention deletes from this bucket: \
                         find out what, and bring the missing file back from a mirror, a copy or an older version of the bucket"
                    .to_owned(),
            };
            // Litestream takes level 0 away from its beginning without regard to what spans it.
            let is_beginning =
                !usable().any(|file| file.name.level == behind.level && file.name.max_txid <= good && file.timestamp > since);
            if is_beginning {
                self.if_ours.push(finding)
            } else {
                self.findings.push(finding)
            }
            return;
        }
        let advice = match next_good {
            Some(_) => {
                "Bring the missing files back from a mirror, a copy or older versions of the bucket; the newest state is not concerned"
            }
            None => {
                "Bring the missing files back from a mirror, a copy or older versions of the bucket; without them the newest state cannot be restored. \
                 `replicated adopt` has the next open send the full state"
            }
        };
        let what = format!("{which} in no file, so that {states} cannot be restored; the last good state before is TXID {good}");
        self.wrong(Kind::Gap, missing, what, advice);
    }

    /// Files that are missing in the midst of a level above 0, where other files hold the same.
    fn holes(&mut self, listings: &[Listed], level: Level, from: u64) {
        let mut reached: Option<u64> = None;
        let mut overlaps = 0_usize;
        let files = listings.iter().filter(|file| file.name.level == level && file.name.max_txid.get() > from);
        let mut files: Vec<LtxName> = files.map(|file| file.name).collect();
        files.sort_unstable_by_key(|name| (name.min_txid, name.max_txid));
        for name in files {
            let min = name.min_txid.get();
            match reached {
                Some(reached) if min > reached.saturating_add(1) => self.hole(level, reached, min),
                Some(reached) if min <= reached => overlaps += 1,
                _ => {}
            }
            reached = reached.max(Some(name.max_txid.get()));
        }
        if overlaps > 0 {
            self.notes.push(format!(
                "level {level} has {overlaps} files that overlap with the one before, which readers take as long as they agree"
            ));
        }
    }

    /// Nobody reads more, and each takes a look at all files.
    fn is_enough(&self) -> bool {
        self.findings.len() > MOST_FINDINGS
    }

    fn hole(&mut self, level: Level, reached: u64, next_min: u64) {
        if self.is_enough() {
            return;
        }
        let (Some(min_txid), Some(max_txid)) = (Txid::new(reached + 1), Txid::new(next_min - 1)) else { return };
        let is_lost = |finding: &Finding| {
            matches!(finding.kind, Kind::Gap | Kind::MissingFile)
                && finding.object.is_some_and(|gap| gap.level == level && gap.min_txid <= max_txid && min_txid <= gap.max_txid)
        };
        if self.findings.iter().chain(&self.if_ours).any(is_lost) {
            return;
        }
        let which = if min_txid == max_txid { format!("TXID {min_txid}") } else { format!("TXID {min_txid} to {max_txid}") };
        let what = match level {
            Level::ZERO => format!(
                "level 0 has no file of {which}, whose states cannot be restored one by one; the states behind can, through other levels"
            ),
            _ => format!("level {level} has no file of {which} between others; restores go on through other levels"),
        };
        self.wrong(
            Kind::MissingFile,
            LtxName { level, min_txid, max_txid },
            what,
            "Something other than retention deletes from this bucket: find out what. Bring the file back from a mirror, a copy or an older version of the bucket",
        );
    }

    /// Level 0 from the beginning of the time within which each upload can be restored.
    fn exact(&mut self, listings: &[Listed], since: TimestampMs, from: u64) {
        let mut files: Vec<&Listed> =
            listings.iter().filter(|file| file.name.level == Level::ZERO && file.name.max_txid.get() > from).collect();
        files.sort_unstable_by_key(|file| file.name);
        // The newest one that is older is the state at that time's beginning.
        let old = files.iter().take_while(|file| file.timestamp <= since).count();
        let files = files.get(old.saturating_sub(1)..).unwrap_or_default();
        for pair in files.windows(2) {
            if let [before, next] = pair
                && next.name.min_txid > before.name.max_txid.next()
            {
                self.hole(Level::ZERO, before.name.max_txid.get(), next.name.min_txid.get());
            }
        }
        // What went before is outside of that time, if it ends with a state that is.
        let (Some(first), 0) = (files.first(), old) else { return };
        let Some(last_before) = Txid::new(first.name.min_txid.get() - 1).filter(|txid| txid.get() > from) else { return };
        let ends_there = |file: &&Listed| file.name.max_txid == last_before;
        let usable = || listings.iter().filter(|file| is_usable(file));
        // Where it lies in the midst of a merged file, it is younger than what was before it.
        // Where that goes on beyond the first one, nothing leads to the first one: it is told with the gaps.
        let is_within = |file: &&Listed| {
            file.name.min_txid != Txid::FIRST && file.name.min_txid <= last_before && file.name.max_txid == first.name.max_txid
        };
        let earlier = || usable().map(|file| file.name.max_txid).filter(|txid| *txid < last_before).max();
        let known =
            if usable().any(|file| ends_there(&file)) { Some(last_before) } else { usable().find(is_within).and_then(|_| earlier()) };
        let Some(timestamp) = usable().filter(|file| Some(file.name.max_txid) == known).map(|file| file.timestamp).min() else { return };
        // A bucket begins with a snapshot, whose own TXIDs level 0 never had.
        let is_beginning = listings.iter().filter(ends_there).any(|file| file.name.min_txid == Txid::FIRST)
            && !listings.iter().any(|file| file.name.max_txid < last_before);
        if timestamp > since && !is_beginning {
            self.if_ours.push(Finding {
                kind: Kind::MissingFile,
                object: Some(LtxName { level: Level::ZERO, min_txid: last_before, max_txid: last_before }),
                what: format!(
                    "level 0 begins with TXID {}, and uploads before it are within the time for which each of them can be restored",
                    first.name.min_txid
                ),
                advice: "Give the --exact that the bucket is maintained with. Where it is the same, something other than retention deletes from this bucket"
                    .to_owned(),
            });
        }
    }

    /// Level 0 goes before everything else, and its newest file is never deleted.
    fn end(&mut self, listings: &[Listed], newest: Txid) {
        let level0 = listings.iter().filter(|file| file.name.level == Level::ZERO).map(|file| file.name.max_txid).max();
        if level0 == Some(newest) {
            return;
        }
        if level0.is_none() && listings.len() == 1 {
            self.notes.push("the bucket has its first snapshot alone: whoever made it died before the file beside it".to_owned());
            return;
        }
        let what =
            format!("level 0 has no file of the newest state, TXID {newest}, which is never deleted: Litestream could not go on here");
        self.wrong(
            Kind::MissingFile,
            LtxName::level0(newest),
            what,
            "Something other than retention deletes from this bucket: find out what. The next upload makes it good",
        );
    }
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;
