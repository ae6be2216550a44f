//! The newest committed state, as those who commit publish it and the uploader reads it.

use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::{Database, now_ms};

use crate::fault::fault_point;
use crate::replicator::batch::WalFile;
use crate::replicator::database::outside::NewestState;
use crate::replicator::frames::WrittenFrames;
use crate::replicator::hub::{CommittedFrames, Notice};
use crate::replicator::tail::{LiveEnd, Tail};
use crate::types::{PageSize, WalPos};
use crate::wal::IndexHeader;

/// The newest committed state, and what the uploader wants to hear of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Published {
    /// False until the WAL-index, or for want of it the WAL, has been seen.
    pub(crate) known: bool,
    /// What is known comes from the WAL-index.
    pub(super) from_index: bool,
    pub(crate) end: WalPos,
    pub(crate) database_pages: u32,
    pub(crate) page_size: Option<PageSize>,
    pub(crate) sequence: u64,
    pub(crate) committed_ms: i64,
    /// When the oldest commit that is not in the bucket was made.
    pub(super) oldest_waiting: Option<Instant>,
    /// Commits up to this one are in what is being sent, or was to be sent last.
    batch_sequence: u64,
    /// When the oldest commit after those was made.
    oldest_behind_batch: Option<Instant>,
    /// Commits up to this one shall be on their way at that time, token or not.
    due: Option<(u64, Instant)>,
    /// The uploader sleeps until so many frames are behind `captured`.
    pub(super) wake_frames: u32,
    captured: WalPos,
    /// What was committed outside the WAL since the uploader looked, counted as if it were frames.
    unseen_frames: u32,
}

impl Published {
    /// Nothing has been seen yet.
    pub(super) fn unseen() -> Self {
        Self { wake_frames: 1, ..Self::default() }
    }

    pub(crate) const fn live(&self) -> LiveEnd {
        LiveEnd { end: self.end, committed_ms: self.committed_ms, sequence: self.sequence }
    }

    /// A commit was made that is not in the bucket.
    fn note_waiting(&mut self, now: Instant) {
        self.oldest_waiting.get_or_insert(now);
        self.oldest_behind_batch.get_or_insert(now);
    }

    /// Whether nothing is in the WAL only.
    pub(super) fn is_captured(&self, tail: &Tail) -> bool {
        tail.state.captured.is_some_and(|c| self.end.frame == 0 || c == self.end || tail.state.sealed && self.behind() == 0)
    }

    const fn behind(&self) -> u32 {
        if !self.known {
            // What it says is of an earlier open.
            return 0;
        }
        self.unseen_frames.saturating_add(self.frames_behind())
    }

    const fn frames_behind(&self) -> u32 {
        if self.end.salts[0] == self.captured.salts[0] && self.end.salts[1] == self.captured.salts[1] {
            self.end.frame.saturating_sub(self.captured.frame)
        } else {
            self.end.frame
        }
    }
}

/// Who tells of the WAL's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The WAL-index, read under the write lock, or while nobody here publishes.
    Writer,
    /// The WAL-index, read without it.
    Reader,
    /// The WAL itself.
    Wal,
}

impl Database {
    /// The WAL-index as it is, with the write lock held.
    ///
    /// Cheap where nothing was committed; pushes a descriptor where something was, and returns the commit's sequence number.
    pub(crate) fn observe(&self, index: &IndexHeader) -> Option<u64> {
        self.publish(index, Source::Writer)
    }

    /// As `observe`, after this connection has written these frames.
    pub(crate) fn commits_in_wal(&self, index: &IndexHeader, written: &mut WrittenFrames) -> Option<u64> {
        if written.is_empty() {
            return self.observe(index);
        }
        // Before it is published: whoever captures up to this commit finds them noted.
        self.frames.append(index, written);
        let committed = written.are_in(index);
        written.clear();
        // Somebody who asked may have found it in the WAL-index, and published it, already.
        self.observe(index).or_else(|| committed.then(|| self.published.lock().sequence))
    }

    /// The WAL-index as `read` finds it now, for somebody who asks what is committed: nothing tells of other processes' commits.
    ///
    /// It is read while nobody in this process can publish, so that what they publish later is newer.
    pub(crate) fn look_at_index(&self, read: impl FnOnce() -> Option<IndexHeader>) {
        let published = self.published.lock();
        if let Some(index) = read() {
            self.publish_to(published, &index, Source::Writer);
        }
    }

    /// The WAL-index as a reader found it. Commits may have followed, so it counts only while no other is known.
    pub(crate) fn observe_first(&self, index: &IndexHeader) {
        self.publish(index, Source::Reader);
    }

    fn publish(&self, index: &IndexHeader, source: Source) -> Option<u64> {
        fault_point!("commit.publish");
        self.publish_to(self.published.lock(), index, source)
    }

    fn publish_to(&self, mut published: MutexGuard<'_, Published>, index: &IndexHeader, source: Source) -> Option<u64> {
        let end = index.end();
        if source == Source::Reader && published.from_index {
            return None;
        }
        published.from_index |= source != Source::Wal;
        if published.known && (published.end == end || end.frame == 0) {
            return None;
        }
        if published.known && end == published.captured {
            // A checkpoint that restarted nothing: the frames are still there, and nothing is new.
            published.end = end;
            return None;
        }
        let same_log = published.known && published.end.salts == end.salts;
        let first_frame = if same_log { published.end.frame + 1 } else { 1 };
        let state = NewestState { page_size: index.page_size, pages: index.db_pages, end, weight_frames: 0 };
        Some(self.advance(published, &state, first_frame))
    }

    /// Something was committed outside the WAL, or is seen in the database file for the first time. Returns its number.
    pub(crate) fn publish_file(&self, state: &NewestState) -> u64 {
        self.advance(self.published.lock(), state, 1)
    }

    /// A WAL-index that was made for an empty WAL knows neither page size nor pages: where nothing else does, the file tells before it is changed.
    pub(crate) fn note_size_before(&self, page_size: PageSize, pages: u32) {
        let mut published = self.published.lock();
        if published.end.frame == 0 && (published.page_size.is_none() || published.database_pages == 0) {
            (published.page_size, published.database_pages) = (Some(page_size), pages);
        }
    }

    fn advance(&self, mut published: MutexGuard<'_, Published>, state: &NewestState, first_frame: u32) -> u64 {
        let first_sight = !published.known;
        let committed_ms = now_ms();
        if first_sight {
            self.frames.begins(state.end.frame == 0);
        }
        published.known = true;
        published.database_pages = state.pages;
        published.page_size = state.page_size;
        published.end = state.end;
        published.unseen_frames = published.unseen_frames.saturating_add(state.weight_frames);
        // What there is at first sight counts as a commit, in the WAL or not: the bucket may lack all of it.
        published.sequence += 1;
        published.committed_ms = committed_ms;
        published.note_waiting(Instant::now());
        let wake = first_sight || published.behind() >= published.wake_frames;
        if wake {
            published.wake_frames = u32::MAX;
        }
        let sequence = published.sequence;
        let frames = CommittedFrames { database: self.id, first_frame, end: state.end, database_pages: state.pages, sequence };
        drop(published);
        // One that does not fit is contained in what is published; but then nothing in the channel tells whom to wake.
        let told = self.hub.committed(frames);
        if wake && told {
            self.hub.wake();
        } else if wake {
            self.hub.notify(Notice::Look(self.id));
        }
        sequence
    }

    /// Whether the WAL-index has been seen since the open.
    pub(crate) fn is_known(&self) -> bool {
        self.published.lock().known
    }

    /// Whether the WAL-index has been seen since the open.
    pub(crate) fn has_seen_index(&self) -> bool {
        self.published.lock().from_index
    }

    /// A program that asks before it has read anything: the WAL itself tells, as it tells SQLite's recovery.
    pub(crate) fn observe_without_index(&self) -> Option<u64> {
        if self.has_hot_journal() {
            // What the file holds is no committed state before SQLite has rolled that back.
            return None;
        }
        let size_bytes = std::fs::metadata(&self.paths.database).map_or(0, |m| m.len());
        // A WAL beside an empty file is of a database that was there before. SQLite deletes it.
        let wal = if size_bytes > 0 { WalFile::open(&self.paths.wal).ok() } else { None };
        if let Some(index) = wal.as_ref().and_then(|wal| wal.last_commit_after(&WalPos::default(), u64::MAX).ok().flatten()) {
            return self.observe_wal(&index);
        }
        let salts = wal.and_then(|wal| wal.header().ok()).map(|header| header.salts).unwrap_or_default();
        // In a rollback-journal mode the file itself tells more.
        let header = self.file_header().ok().filter(|header| !header.is_wal);
        Some(self.publish_file(&NewestState {
            page_size: header.and_then(|h| h.page_size),
            pages: header.map_or(0, |h| h.pages(size_bytes)),
            end: WalPos { salts, ..WalPos::default() },
            weight_frames: 0,
        }))
    }

    /// The end of a WAL as the WAL itself tells it.
    pub(crate) fn observe_wal(&self, index: &IndexHeader) -> Option<u64> {
        self.publish(index, Source::Wal)
    }

    pub(crate) fn published(&self) -> Published {
        *self.published.lock()
    }

    /// The uploader is to be woken when that many frames are waiting. False if they are already: then nobody will wake it.
    pub(crate) fn arm(&self, frames: u32) -> bool {
        let mut published = self.published.lock();
        published.wake_frames = frames;
        published.behind() < frames
    }

    /// Mirrors how far the tail has captured for the commit path's arithmetic.
    pub(crate) fn note_captured(&self, tail: &Tail) {
        self.published.lock().captured = tail.state.captured.unwrap_or_default();
    }

    /// The newest committed state, all of which is about to be sent.
    pub(crate) fn published_for_batch(&self) -> Published {
        let mut published = self.published.lock();
        (published.batch_sequence, published.oldest_behind_batch) = (published.sequence, None);
        *published
    }

    /// Everything up to a commit is in the bucket.
    pub(crate) fn note_acked(&self, sequence: u64) {
        let mut published = self.published.lock();
        if sequence >= published.sequence {
            published.oldest_waiting = None;
        } else if sequence >= published.batch_sequence {
            published.oldest_waiting = published.oldest_behind_batch;
        }
    }

    /// How long it is until commits that are not in the bucket shall be on their way, where that was asked for.
    pub(crate) fn due_in(&self, acked: u64) -> Option<Duration> {
        let due = self.published.lock().due.filter(|(until, _)| *until > acked);
        due.map(|(_, due)| due.saturating_duration_since(Instant::now()))
    }

    /// Commits up to this one shall be on their way when the oldest that waits is that old.
    pub(crate) fn send_within(&self, sequence: u64, age: Duration) {
        let acked = self.progress.acked_sequence();
        let mut published = self.published.lock();
        let Some(oldest) = published.oldest_waiting else { return };
        let earlier = published.due.filter(|(until, _)| *until > acked).map(|(_, due)| due);
        let due = earlier.map_or(oldest + age, |earlier| earlier.min(oldest + age));
        let sooner = earlier.is_none_or(|earlier| due < earlier);
        published.due = Some((sequence, due));
        drop(published);
        if sooner {
            // Whoever sleeps may sleep for too long.
            self.call();
        }
    }

    /// How old the oldest commit is that is not in the bucket.
    pub(crate) fn lag(&self) -> Option<Duration> {
        self.published.lock().oldest_waiting.map(|oldest| oldest.elapsed())
    }

    /// The uploader looks now at what was committed outside the WAL.
    pub(crate) fn note_looked(&self) {
        self.published.lock().unseen_frames = 0;
    }
}
