//! A file that is neither provably newer nor provably unchanged is compared with the bucket, page by page.
//!
//! A process without the extension that commits, takes the WAL away and has not touched the first page leaves such a file, and so does who puts a copy in
//! its place. What the bucket has of the history tells them apart. It is read once, oldest first; of each page of the file a checksum is kept, and
//! whether the state that is read has that content now or has had it:
//!
//! ```text
//!   TXID       2       3       4 = newest, and what the control file says was acknowledged
//!   page 1     A       A       A'        all as in 4:                            unchanged, increments go on
//!   page 2     B       B'      B'        all as in 3:                            an older copy, of TXID 3
//!   page 3     C       C       C'        some in no state, the others as in 4:   written later, the full state follows
//!                                        some in no state, others as in 2 or 3:  nobody can tell
//! ```
//!
//! Whatever cannot be decided so stays `diverged`, unless the file's change counter tells that it is newer: then the full state follows. The file is read as it was found: what this process commits meanwhile is in the WAL, and once a
//! checkpoint has written that to the file, there is nothing to compare any more.

use std::pin::pin;

use futures_util::StreamExt;
use futures_util::future::try_join_all;

use super::control::{FullReason, RestoredEarlier, Stamp};
use super::database::Database;
use super::file_header::FileHeader;
use super::lineage;
use super::stamp;
use super::step::{StepError, stop};
use super::tail::{StopKind, undecided};
use crate::logging::event;
use crate::ltx::{Decoder, LtxError};
use crate::restore;
use crate::restore::fetch::{CHUNK_BYTES, chunks};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL};
use crate::types::{PageNo, PageSize, Txid};

/// What is read of a history at most: a longer one is for the user to look at.
const MOST_REQUESTS: usize = 8;
const MOST_FILES: usize = 20_000;
const MOST_BYTES: u64 = 8 << 30;
/// What is kept of a page.
const BYTES_OF_PAGE: u64 = 10;
/// Pages of the file are read in runs of so many.
const RUN_PAGES: usize = 64;

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// What the bucket has.
    Unchanged,
    /// What the bucket had with an older TXID.
    Older(Txid),
    /// It goes on from what the bucket has, by so many pages.
    Later(u32),
    /// Nobody can tell.
    Undecided(String),
}

/// Compares the file that waits for it, and does what follows from that.
pub(crate) async fn decide(database: &Database) -> Result<(), StepError> {
    // Should the power fail, what is committed from here on is not taken for the work of others.
    database.sync_control();
    let Some(found) = database.lock_tail().to_be_compared() else { return Ok(()) };
    event!(Info, "compared", database; "is neither provably newer nor provably unchanged, and is compared with the bucket");
    let verdict = verdict(database, &found).await?;
    let mut tail = database.lock_tail();
    // Nothing that a checkpoint writes from here on is lost: it stays in the WAL until it is captured.
    let now = database.stamp().filter(|now| now.is_same_file(&found));
    let is_newer = tail.is_newer(&found);
    let (Some(acked), Some(now)) = (tail.state.acked, now) else {
        if is_newer {
            database.lose(&mut tail, FullReason::ContinuityLost);
            return Ok(());
        }
        tail.was_compared(None, &database.published().end);
        drop(tail);
        stop(database, StopKind::Diverged, undecided("it was written to while it was compared with the bucket"));
        return Ok(());
    };
    let message = match verdict {
        Verdict::Unchanged => {
            event!(Info, "resumed", database, txid = acked.txid; "holds what the bucket has as TXID {}: increments go on", acked.txid);
            let live = database.published().live();
            tail.was_compared(Some(now), &live.end);
            database.note_captured(&tail);
            return Ok(());
        }
        Verdict::Later(pages) => {
            event!(
                Warn, "written_elsewhere", database, txid = acked.txid;
                "{pages} of its pages are in no state of the bucket, and the others as in the newest: somebody has written to it without the \
                 extension"
            );
            database.lose(&mut tail, FullReason::ContinuityLost);
            return Ok(());
        }
        Verdict::Older(txid) => {
            tail.state.restored_earlier = Some(RestoredEarlier { txid, newest: acked.txid });
            undecided(&format!("it holds what the bucket has as TXID {txid}, and the bucket goes on to {}", acked.txid))
        }
        Verdict::Undecided(why) if is_newer => {
            event!(Info, "compared", database, txid = acked.txid, cause = why; "is newer than when it was last seen, and {why}");
            database.lose(&mut tail, FullReason::ContinuityLost);
            return Ok(());
        }
        Verdict::Undecided(why) => undecided(&why),
    };
    tail.was_compared(None, &database.published().end);
    tail.save()?;
    drop(tail);
    stop(database, StopKind::Diverged, message);
    Ok(())
}

async fn verdict(database: &Database, found: &Stamp) -> Result<Verdict, StepError> {
    let undecided = |why: &str| Ok(Verdict::Undecided(why.to_owned()));
    let (acked, waits) = {
        let tail = database.lock_tail();
        (tail.state.acked, tail.state.attempt.is_some() || tail.inflight.is_some() || !tail.spool.is_empty())
    };
    let Some(acked) = acked else { return undecided("nothing is known of the bucket") };
    if waits {
        return undecided("commits that the bucket does not have wait beside it");
    }
    let lists = try_join_all(Level::all().map(|level| database.store.list(level, None))).await?;
    let listed: Vec<Listed> = lists.into_iter().flatten().collect();
    let newest = listed.iter().map(|file| file.name.max_txid).max();
    let goes_on = newest != Some(acked.txid) || lineage::look(database, &LtxName::level0(acked.txid.next())).await?.is_some();
    if goes_on {
        return undecided("the bucket does not end where this database has left it");
    }
    let (files, is_whole) = match history(&listed, acked.txid) {
        Ok(history) => history,
        Err(why) => return undecided(why),
    };
    if files.len() > MOST_FILES || files.iter().map(|file| file.size_bytes).sum::<u64>() > MOST_BYTES {
        return undecided("the bucket's history is too long to be compared with it");
    }
    let Some(mut comparison) = read(database, found).await? else {
        return undecided("it cannot be read, is larger than max_memory allows to compare, or was written to");
    };
    let parallelism = usize::try_from(database.options.max_memory_bytes / 2 / CHUNK_BYTES).unwrap_or(usize::MAX);
    let mut chunks = pin!(chunks(&*database.store, files.into_iter(), parallelism.clamp(1, MOST_REQUESTS)));
    while let Some(chunk) = chunks.next().await {
        let (chunk, body) = chunk?;
        let taken = comparison.take(chunk.is_first(), chunk.is_last(), &body);
        if let Err(error) = taken {
            return Ok(Verdict::Undecided(format!("{} cannot be compared with it: {error}", chunk.file.name)));
        }
    }
    Ok(comparison.verdict(is_whole))
}

/// The checksums of the file's pages, where it is as it was found.
async fn read(database: &Database, found: &Stamp) -> Result<Option<Comparison>, StepError> {
    let file = database.open_file()?;
    let settled = stamp::settled(&database.paths.database, &|header| file.read_exact_at(header, 0), database.is_file_synced());
    if !settled.is_some_and(|now| !now.too_fresh && now.is_same_file(found)) {
        return Ok(None);
    }
    let header: FileHeader = database.file_header()?;
    let Some(page_size) = header.page_size.filter(|size| found.size_bytes.is_multiple_of(u64::from(size.get()))) else { return Ok(None) };
    let pages = header.pages(found.size_bytes);
    if u64::from(pages) * BYTES_OF_PAGE > database.options.max_memory_bytes / 4 {
        return Ok(None);
    }
    let mut comparison = Comparison::new(page_size, pages);
    let mut content = vec![0; page_size.bytes()];
    for number in 1..=pages {
        let Some(page) = PageNo::new(number).filter(|page| *page != page_size.lock_page()) else { continue };
        file.read_exact_at(&mut content, page_size.offset_of(page))?;
        comparison.found(page, &content);
        if (number as usize).is_multiple_of(RUN_PAGES) {
            tokio::task::yield_now().await;
        }
    }
    Ok(Some(comparison))
}

/// The files that lead to a TXID in the smallest steps, oldest first, and whether no state between the first one and that is missing.
fn history(listed: &[Listed], newest: Txid) -> Result<(Vec<Listed>, bool), &'static str> {
    let Some(base) = restore::oldest(listed) else { return Err("the bucket has no beginning") };
    let mut steps: Vec<&Listed> = listed.iter().filter(|file| file.name.level != SNAPSHOT_LEVEL).collect();
    // Of those that can follow the shortest, and of the same length the lowest level.
    steps.sort_by_key(|file| (file.name.max_txid, file.name.level));
    let (mut files, mut reached) = (vec![*base], base.name.max_txid);
    // Nothing is sent before this one.
    let mut is_whole = reached <= Txid::FIRST.next();
    for step in steps {
        if step.name.max_txid > reached && step.name.min_txid <= reached.next() {
            is_whole &= step.name.max_txid == reached.next();
            reached = step.name.max_txid;
            files.push(*step);
        }
    }
    if reached == newest { Ok((files, is_whole)) } else { Err("the bucket's history has a gap") }
}

/// The pages of a file beside those of one state after the other.
struct Comparison {
    page_size: PageSize,
    pages: u32,
    /// A checksum of each.
    found: Vec<u64>,
    /// The state that has been read has that content, and one so far has had it.
    same: Vec<bool>,
    was_same: Vec<bool>,
    differing: u32,
    /// Of the state that has been read.
    commit_pages: u32,
    decoder: Decoder,
    /// The newest state that was the file, and whether it is the last that was read.
    equal: Option<(Txid, bool)>,
}

fn checksum(content: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, content)
}

impl Comparison {
    fn new(page_size: PageSize, pages: u32) -> Self {
        let count = pages as usize;
        let lock_page = u32::from(page_size.lock_page().get() <= pages);
        Self {
            page_size,
            pages,
            found: vec![0; count],
            same: vec![false; count],
            was_same: vec![false; count],
            differing: pages - lock_page,
            commit_pages: 0,
            decoder: Decoder::new(),
            equal: None,
        }
    }

    fn found(&mut self, page: PageNo, content: &[u8]) {
        if let Some(found) = self.found.get_mut(page.get() as usize - 1) {
            *found = checksum(content);
        }
    }

    /// Takes the next part of the next file.
    fn take(&mut self, is_first: bool, is_last: bool, bytes: &[u8]) -> Result<(), LtxError> {
        if is_first {
            self.decoder = Decoder::new();
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        decoder.push(bytes, &mut |page, content| {
            self.reads(page, content);
            Ok(())
        })?;
        if is_last {
            // Where its checksum is wrong nothing of all this counts.
            let header = decoder.finish()?.header;
            if header.page_size != self.page_size {
                return Err(LtxError::Io(std::io::Error::other("it has another page size")));
            }
            self.ends(header.max_txid, header.commit_pages);
        } else {
            self.decoder = decoder;
        }
        Ok(())
    }

    fn reads(&mut self, page: PageNo, content: &[u8]) {
        let at = page.get() as usize - 1;
        if page == self.page_size.lock_page() {
            return;
        }
        let (Some(found), Some(same), Some(was_same)) = (self.found.get(at), self.same.get_mut(at), self.was_same.get_mut(at)) else {
            return;
        };
        let is_same = *found == checksum(content);
        self.differing = self.differing + u32::from(*same) - u32::from(is_same);
        *was_same |= is_same;
        *same = is_same;
    }

    /// A state is complete.
    fn ends(&mut self, txid: Txid, commit_pages: u32) {
        if commit_pages < self.commit_pages {
            for same in self.same.iter_mut().skip(commit_pages as usize) {
                self.differing += u32::from(std::mem::take(same));
            }
        }
        self.commit_pages = commit_pages;
        if self.differing == 0 && commit_pages == self.pages {
            self.equal = Some((txid, true));
        } else if let Some((_, is_last)) = &mut self.equal {
            *is_last = false;
        }
    }

    fn verdict(&self, is_whole: bool) -> Verdict {
        let lock_page = self.page_size.lock_page().get() as usize - 1;
        let differing = || self.same.iter().zip(&self.was_same).enumerate().filter(|(at, (same, _))| !**same && *at != lock_page);
        let why = match self.equal {
            Some((_, true)) => return Verdict::Unchanged,
            Some((txid, false)) => return Verdict::Older(txid),
            // A commit that changes the size changes the first page, and every other one of a copy that is older or no copy shows there, too, most often.
            None if self.same.first() != Some(&true) || self.commit_pages != self.pages => {
                "its first page or its size is another than in the bucket's newest state, and it is none of the bucket's states"
            }
            None if !is_whole => "the bucket has not kept every state that it might be a copy of",
            None if differing().any(|(_, (_, was_same))| *was_same) => {
                "some of its pages are older than in the bucket's newest state and others are in none of its states"
            }
            None => return Verdict::Later(self.differing),
        };
        Verdict::Undecided(why.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ltx::{Encoder, Header};
    use crate::types::TimestampMs;

    const SIZE: PageSize = PageSize::MIN;

    fn txid(number: u64) -> Txid {
        Txid::new(number).unwrap()
    }

    fn listed(level: Level, min: u64, max: u64) -> Listed {
        let name = if level == SNAPSHOT_LEVEL {
            LtxName::snapshot(txid(max))
        } else {
            LtxName { level, min_txid: txid(min), max_txid: txid(max) }
        };
        Listed { name, size_bytes: 500, timestamp: TimestampMs(0), timestamp_is_exact: true }
    }

    /// States of a file, each with those of its pages that it changes and with its size.
    fn compared(file: &[u8], states: &[(&[(u32, u8)], u32)], is_whole: bool) -> Verdict {
        let pages = u32::try_from(file.len()).unwrap();
        let mut comparison = Comparison::new(SIZE, pages);
        for (page, byte) in (1..).zip(file) {
            comparison.found(PageNo::new(page).unwrap(), &[*byte; 512]);
        }
        for (number, (changed, commit_pages)) in (2..).zip(states) {
            let min = if number == 2 { Txid::FIRST } else { txid(number) };
            let mut encoder = Encoder::new(Vec::new(), &Header::new(SIZE, *commit_pages, min, txid(number), TimestampMs(1))).unwrap();
            for (page, byte) in *changed {
                encoder.page(PageNo::new(*page).unwrap(), &[*byte; 512]).unwrap();
            }
            let bytes = encoder.finish().unwrap().out;
            let (first, second) = bytes.split_at(bytes.len() / 2);
            comparison.take(true, false, first).unwrap();
            comparison.take(false, true, second).unwrap();
        }
        comparison.verdict(is_whole)
    }

    const STATES: [(&[(u32, u8)], u32); 3] = [(&[(1, b'a'), (2, b'b'), (3, b'c')], 3), (&[(2, b'B')], 3), (&[(3, b'C')], 3)];

    fn is_undecided(verdict: &Verdict, why: &str) -> bool {
        matches!(verdict, Verdict::Undecided(text) if text.contains(why))
    }

    #[test]
    fn a_file_is_told_by_its_pages() {
        assert_eq!(compared(b"aBC", &STATES, true), Verdict::Unchanged);
        assert_eq!(compared(b"aBC", &STATES, false), Verdict::Unchanged);
        assert_eq!(compared(b"aBc", &STATES, true), Verdict::Older(txid(3)));
        assert_eq!(compared(b"abc", &STATES, false), Verdict::Older(txid(2)));
        assert_eq!(compared(b"aBx", &STATES, true), Verdict::Later(1));
        assert_eq!(compared(b"axy", &STATES, true), Verdict::Later(2));
        // A page of one state and another of none; of two states that were never one.
        assert!(is_undecided(&compared(b"axc", &STATES, true), "older"));
        assert!(is_undecided(&compared(b"abC", &STATES, true), "older"));
        assert!(is_undecided(&compared(b"aBx", &STATES, false), "kept"));
        // Another database.
        assert!(is_undecided(&compared(b"xyz", &STATES, true), "first page"));
        assert!(is_undecided(&compared(b"aBCx", &STATES, true), "size"));
        assert!(is_undecided(&compared(b"aB", &STATES, true), "size"));
    }

    #[test]
    fn a_database_that_shrinks_and_grows_again_has_lost_what_it_held() {
        let states: [(&[(u32, u8)], u32); 4] =
            [(&[(1, b'a'), (2, b'b'), (3, b'c')], 3), (&[(1, b'A')], 2), (&[(1, b'a'), (3, b'x')], 3), (&[(2, b'B')], 3)];
        assert_eq!(compared(b"aBx", &states, true), Verdict::Unchanged);
        assert_eq!(compared(b"Ab", &states, true), Verdict::Older(txid(3)));
        assert_eq!(compared(b"abc", &states, true), Verdict::Older(txid(2)));
        assert!(is_undecided(&compared(b"aBc", &states, true), "older"));
    }

    #[test]
    fn a_history_is_read_in_its_smallest_steps() {
        let (snapshot, merged) = (SNAPSHOT_LEVEL, Level::new(1).unwrap());
        let whole = [listed(snapshot, 1, 2), listed(Level::ZERO, 2, 2), listed(Level::ZERO, 3, 3), listed(Level::ZERO, 4, 4)];
        let names = |listed: &[Listed], upto| history(listed, txid(upto)).map(|(files, whole)| (files.len(), whole));
        assert_eq!(names(&whole, 4), Ok((3, true)));
        // What was merged, or put into a later snapshot, beside what it was made of.
        let beside = [&whole[..], &[listed(merged, 2, 4), listed(snapshot, 1, 4)]].concat();
        assert_eq!(names(&beside, 4), Ok((3, true)));
        // And in its place.
        assert_eq!(names(&[whole[0], whole[1], listed(merged, 3, 4)], 4), Ok((2, false)));
        assert_eq!(names(&[listed(snapshot, 1, 3), whole[3]], 4), Ok((2, false)));
        assert!(names(&[whole[0], whole[3]], 4).is_err());
        assert!(names(&[whole[3]], 4).is_err());
    }
}
