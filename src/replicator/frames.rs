//! Which page each frame of the WAL holds, as far as this process has written the frames itself.
//!
//! The shim sees the header of every frame that it writes. What a transaction has written counts once it is committed: until then, and where another
//! process wrote, nothing is known. With this a batch reads only the newest frame of each page. SQLite trusts the WAL-index for what the frames up to its
//! last commit hold, and so does this; frames that were there before are followed by their checksums, see `batch`.

use parking_lot::Mutex;

use crate::types::{PageSize, WalPos};
use crate::wal::{FRAME_HEADER_BYTES, FrameHeader, IndexHeader, WAL_HEADER_BYTES};

/// How many frames of one transaction are noted at the most, 2.5 MiB: a larger one is read from the WAL.
const MOST_WRITTEN: usize = 1 << 16;
/// How many frames of a WAL are noted at the most, 1 MiB. What is captured of a WAL that grows past that is captured by then.
const MOST_NOTED: usize = 1 << 18;
/// What is kept allocated.
const USUAL: usize = 1 << 12;

/// The frames that a connection has written since its transaction began.
#[derive(Debug, Default)]
pub(crate) struct WrittenFrames {
    frames: Vec<(u64, FrameHeader)>,
    /// Where the last of them begins.
    last: u64,
    too_many: bool,
}

impl WrittenFrames {
    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        self.frames.shrink_to(USUAL);
        self.last = 0;
        self.too_many = false;
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.frames.is_empty() && !self.too_many
    }

    /// The header of a frame is written at that place of the WAL. Whether it is behind all others: a frame is appended, and its page follows. The headers
    /// of frames that are there get other checksums by the commit that has written one of them over, without their pages.
    pub(crate) fn note(&mut self, offset: u64, header: FrameHeader) -> bool {
        let is_appended = offset > self.last;
        self.last = self.last.max(offset);
        if self.frames.len() < MOST_WRITTEN {
            self.frames.push((offset, header));
        } else {
            self.too_many = true;
        }
        is_appended
    }

    /// What a WAL-index would say after a commit, for want of one: these frames follow on `before`, or begin a new generation.
    pub(crate) fn as_committed(&self, before: &WalPos, page_size: PageSize) -> Option<IndexHeader> {
        let (first, _) = self.frames.first().filter(|_| !self.too_many)?;
        // The last to be written at the highest place: one written over within the transaction counts with what came last.
        let (last, header) = self.frames.iter().max_by_key(|(offset, _)| *offset)?;
        let follows = if header.salts == before.salts { before.frame } else { 0 };
        let (first, last) = (frame_at(*first, page_size)?, frame_at(*last, page_size)?);
        (first == follows + 1 && header.is_commit()).then_some(IndexHeader {
            page_size: Some(page_size),
            max_frame: last,
            db_pages: header.commit_pages,
            frame_checksum: header.checksum,
            salts: header.salts,
            change_counter: 0,
            is_init: true,
            big_endian_checksum: cfg!(target_endian = "big"),
        })
    }

    /// Whether the WAL-index covers what was written: it was committed, and not rolled back.
    pub(crate) fn are_in(&self, index: &IndexHeader) -> bool {
        let first = self.frames.first().zip(index.page_size).and_then(|((offset, header), size)| Some((frame_at(*offset, size)?, header)));
        first.is_some_and(|(frame, header)| header.salts == index.salts && frame <= index.max_frame)
    }

    /// The number of the first frame that was written.
    fn first(&self, page_size: PageSize) -> Option<u32> {
        frame_at(self.frames.first().filter(|_| !self.too_many)?.0, page_size)
    }

    /// Adds the pages of the frames from the first that was written up to the last one; false, and nothing, where not all of them are known.
    fn add_pages(&self, first: u32, last: u32, page_size: PageSize, pages: &mut Vec<u32>) -> bool {
        if let ([(_, header)], true) = (self.frames.as_slice(), first == last) {
            if header.pgno > 0 {
                pages.push(header.pgno);
            }
            return header.pgno > 0;
        }
        let Some(count) = last.checked_sub(first).map(|more| more as usize + 1).filter(|&count| count <= MOST_WRITTEN) else {
            return false;
        };
        let before = pages.len();
        pages.resize(before + count, 0);
        for (offset, header) in &self.frames {
            // What lies behind the last commit was rolled back.
            let at = frame_at(*offset, page_size).and_then(|frame| frame.checked_sub(first));
            if let Some(page) = at.and_then(|at| pages.get_mut(before + at as usize)) {
                *page = header.pgno;
            }
        }
        let is_whole = pages.iter().skip(before).all(|&page| page > 0);
        if !is_whole {
            pages.truncate(before);
        }
        is_whole
    }
}

/// The number of the frame whose header lies there.
fn frame_at(offset: u64, page_size: PageSize) -> Option<u32> {
    let (behind, frame_bytes) = (offset.checked_sub(WAL_HEADER_BYTES as u64)?, u64::from(page_size.get()) + FRAME_HEADER_BYTES as u64);
    behind.is_multiple_of(frame_bytes).then(|| u32::try_from(behind / frame_bytes + 1).ok()).flatten()
}

/// The pages of the committed frames of a generation. Shared by those who commit and those who capture.
#[derive(Debug, Default)]
pub(crate) struct FrameLog(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    salts: [u32; 2],
    /// Frames up to this one are not known.
    from: u32,
    pages: Vec<u32>,
}

impl FrameLog {
    /// What a connection has written is committed: the WAL-index is as given.
    pub(crate) fn append(&self, index: &IndexHeader, written: &WrittenFrames) {
        let Some((first, size)) = index.page_size.and_then(|size| Some((written.first(size)?, size))) else { return };
        let Some(count) = index.max_frame.saturating_add(1).checked_sub(first).map(|count| count as usize) else { return };
        let mut noted = self.0.lock();
        let follows = noted.salts == index.salts && noted.from as usize + noted.pages.len() + 1 == first as usize;
        if follows && noted.pages.len() + count <= MOST_NOTED {
            written.add_pages(first, index.max_frame, size, &mut noted.pages);
            return;
        }
        let mut pages = Vec::new();
        if written.add_pages(first, index.max_frame, size, &mut pages) {
            (noted.salts, noted.from) = (index.salts, first - 1);
            noted.pages.clear();
            noted.pages.shrink_to(USUAL);
            noted.pages.extend(pages);
        }
    }

    /// The newest frame of each page between two places, as (page, frame), ascending; `None` where not all of them are known.
    pub(crate) fn newest(&self, after: &WalPos, to: &WalPos) -> Option<Vec<(u32, u32)>> {
        let noted = self.0.lock();
        if noted.salts != to.salts || after.salts != to.salts {
            return None;
        }
        let range = after.frame.checked_sub(noted.from)? as usize..to.frame.checked_sub(noted.from)? as usize;
        let mut newest: Vec<_> = noted.pages.get(range)?.iter().copied().zip(after.frame + 1..).collect();
        drop(noted);
        newest.sort_unstable_by_key(|&(page, frame)| (page, std::cmp::Reverse(frame)));
        newest.dedup_by_key(|&mut (page, _)| page);
        Some(newest)
    }

    /// What was noted has turned out not to be so.
    pub(crate) fn forget(&self) {
        *self.0.lock() = Noted::default();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SALTS: [u32; 2] = [7, 8];

    fn header(pgno: u32, commit_pages: u32) -> FrameHeader {
        FrameHeader { pgno, commit_pages, salts: SALTS, checksum: [pgno, commit_pages] }
    }

    fn written(frames: &[(u32, u32)]) -> WrittenFrames {
        let mut written = WrittenFrames::default();
        for (frame, page) in frames {
            written.note(crate::wal::frame_offset(PageSize::MIN, frame - 1), header(*page, 0));
        }
        written
    }

    fn index(max_frame: u32) -> IndexHeader {
        IndexHeader {
            page_size: Some(PageSize::MIN),
            max_frame,
            db_pages: 9,
            frame_checksum: [0; 2],
            salts: SALTS,
            change_counter: 0,
            is_init: true,
            big_endian_checksum: false,
        }
    }

    fn at(frame: u32) -> WalPos {
        WalPos { salts: SALTS, frame, checksum: [0; 2] }
    }

    #[test]
    fn the_newest_frame_of_each_page() {
        let log = FrameLog::default();
        log.append(&index(3), &written(&[(1, 5), (2, 3), (3, 5)]));
        log.append(&index(4), &written(&[(4, 3)]));
        assert_eq!(log.newest(&at(0), &at(4)).unwrap(), [(3, 4), (5, 3)]);
        assert_eq!(log.newest(&at(1), &at(3)).unwrap(), [(3, 2), (5, 3)]);
        assert_eq!(log.newest(&at(4), &at(4)).unwrap(), []);
        // More than is known.
        assert_eq!(log.newest(&at(1), &at(5)), None);
        assert_eq!(log.newest(&WalPos { salts: [1, 2], ..at(0) }, &at(4)), None);
    }

    #[test]
    fn what_was_rolled_back_does_not_count() {
        let log = FrameLog::default();
        log.append(&index(1), &written(&[(1, 5)]));
        // All of it.
        log.append(&index(1), &written(&[(2, 6), (3, 7)]));
        // The end of it: written over, then cut off.
        log.append(&index(3), &written(&[(2, 6), (3, 7), (4, 8), (3, 9)]));
        assert_eq!(log.newest(&at(0), &at(3)).unwrap(), [(5, 1), (6, 2), (9, 3)]);
    }

    #[test]
    fn another_process_s_frames_are_not_known() {
        let log = FrameLog::default();
        log.append(&index(2), &written(&[(1, 5), (2, 6)]));
        // Frames 3 and 4 are somebody else's.
        log.append(&index(6), &written(&[(5, 7), (6, 8)]));
        assert_eq!(log.newest(&at(0), &at(6)), None);
        assert_eq!(log.newest(&at(4), &at(6)).unwrap(), [(7, 5), (8, 6)]);
        // A frame of the transaction is missing.
        log.append(&index(9), &written(&[(7, 7), (9, 8)]));
        assert_eq!(log.newest(&at(6), &at(9)), None);
    }

    #[test]
    fn too_many_are_not_known() {
        let mut written = WrittenFrames::default();
        for frame in 0..=u32::try_from(MOST_WRITTEN).unwrap() {
            written.note(crate::wal::frame_offset(PageSize::MIN, frame), header(1, 1));
        }
        assert_eq!(written.as_committed(&at(0), PageSize::MIN), None);
        let log = FrameLog::default();
        log.append(&index(u32::try_from(MOST_WRITTEN).unwrap() + 1), &written);
        assert_eq!(log.newest(&at(0), &at(1)), None);
        written.clear();
        assert!(written.is_empty());
    }

    #[test]
    fn the_commit_that_the_frames_tell_of() {
        let mut written = written(&[(4, 2), (5, 3)]);
        assert_eq!(written.as_committed(&at(3), PageSize::MIN), None);
        written.note(crate::wal::frame_offset(PageSize::MIN, 4), header(3, 12));
        let found = written.as_committed(&at(3), PageSize::MIN).unwrap();
        assert_eq!((found.end().frame, found.db_pages, found.frame_checksum), (5, 12, [3, 12]));
        // They do not follow.
        assert_eq!(written.as_committed(&at(2), PageSize::MIN), None);
        // Nor begin a generation.
        assert_eq!(written.as_committed(&WalPos { salts: [1, 1], ..at(3) }, PageSize::MIN), None);
    }
}
