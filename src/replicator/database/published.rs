//! The newest committed state, as those who commit publish it and the uploader reads it.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use super::{Database, commit_ms};

use crate::fault::fault_point;
use crate::replicator::batch::WalFile;
use crate::replicator::database::outside::NewestState;
use crate::replicator::frames::WrittenFrames;
use crate::replicator::hub::{CommittedFrames, Notice};
use crate::replicator::shared::{Page, monotonic_ns};
use crate::replicator::tail::{LiveEnd, Tail};
use crate::types::{PageSize, WalPos};
use crate::wal::IndexHeader;

/// The newest committed state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// False until the WAL-index, or for want of it the WAL, has been seen.
    pub(crate) known: bool,
    /// What is known comes from the WAL-index.
    pub(super) from_index: bool,
    pub(crate) end: WalPos,
    pub(crate) database_pages: u32,
    pub(crate) page_size: Option<PageSize>,
    /// Counts commits of all processes, since one of them was the first to open the database.
    pub(crate) sequence: u64,
    pub(crate) committed_ms: i64,
}

const KNOWN: u64 = 1;
const FROM_INDEX: u64 = 2;

impl Published {
    pub(crate) const fn live(&self) -> LiveEnd {
        LiveEnd { end: self.end, committed_ms: self.committed_ms, sequence: self.sequence }
    }

    fn words(&self) -> [u64; 6] {
        let flags = if self.known { KNOWN } else { 0 } | if self.from_index { FROM_INDEX } else { 0 };
        [
            flags | u64::from(self.page_size.map_or(0, PageSize::get)) << 32,
            pair(self.end.salts),
            u64::from(self.end.frame) | u64::from(self.database_pages) << 32,
            pair(self.end.checksum),
            self.sequence,
            self.committed_ms.cast_unsigned(),
        ]
    }

    fn of([flags, salts, frame, checksum, sequence, committed_ms]: [u64; 6]) -> Self {
        Self {
            known: flags & KNOWN != 0,
            from_index: flags & FROM_INDEX != 0,
            end: WalPos { salts: unpair(salts), frame: frame as u32, checksum: unpair(checksum) },
            database_pages: (frame >> 32) as u32,
            page_size: PageSize::new((flags >> 32) as u32),
            sequence,
            committed_ms: committed_ms.cast_signed(),
        }
    }
}

const fn pair([a, b]: [u32; 2]) -> u64 {
    (a as u64) << 32 | b as u64
}

const fn unpair(word: u64) -> [u32; 2] {
    [(word >> 32) as u32, word as u32]
}

/// What the processes share of the newest committed state.
///
/// Whoever commits holds SQLite's own lock for that, so that there is one at a time, and what they publish comes in the order of the commits. Whoever merely
/// finds that something is committed holds the tail's lock, and says after which of those he has looked: it counts until the next one is published.
struct Board<'a>(&'a Page);

impl Board<'_> {
    /// The newest, and the number that it follows on.
    fn read(&self) -> (u64, Published) {
        loop {
            let (number, published) = self.0.published.read();
            let looked = self.looked_after(number);
            // In one order with `advance`: either this sees that something was published meanwhile, or who has published it sees what was looked at.
            fence(Ordering::SeqCst);
            if self.0.published.number() == number {
                return (number, looked.unwrap_or_else(|| Published::of(published)));
            }
        }
    }

    /// What was seen after that number was published.
    fn looked_after(&self, number: u64) -> Option<Published> {
        let (_, [after, looked @ ..]) = self.0.looked.read();
        Some(Published::of(looked)).filter(|looked| after == number && looked.known)
    }

    fn put(&self, how: Put, after: u64, published: &Published) {
        match how {
            Put::Commit => self.publish(published),
            Put::Look => self.looked(after, published),
        }
    }

    fn publish(&self, published: &Published) {
        self.0.published.write(&published.words());
    }

    /// With the tail's lock held, and `after` read before it was looked.
    fn looked(&self, after: u64, published: &Published) {
        let [a, b, c, d, e, f] = published.words();
        self.0.looked.write(&[after, a, b, c, d, e, f]);
    }
}

/// How something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    /// By whoever has committed it, with SQLite's own lock for that.
    Commit,
    /// By whoever has seen it, with the tail's.
    Look,
}

/// How far the tail has captured, for the commit path's arithmetic.
fn captured(shared: &Page) -> WalPos {
    let (_, [salts, frame, checksum]) = shared.captured.read();
    WalPos { salts: unpair(salts), frame: frame as u32, checksum: unpair(checksum) }
}

/// How many frames wait.
fn behind(shared: &Page, published: &Published) -> u64 {
    if !published.known {
        // What it says is of an earlier open.
        return 0;
    }
    let captured = captured(shared);
    let frames =
        if published.end.salts == captured.salts { published.end.frame.saturating_sub(captured.frame) } else { published.end.frame };
    shared.unseen_frames.load(Ordering::Relaxed).saturating_add(u64::from(frames))
}

/// The newest committed state, and how many frames of it nobody has captured, as a page says that this process may only look at.
pub(crate) fn of_page(page: &Page) -> (Published, u64) {
    let (_, published) = Board(page).read();
    let frames = behind(page, &published);
    (published, frames)
}

/// A commit is about to be told of that is not in the bucket.
fn note_waiting(shared: &Page) {
    let set = |word: &AtomicU64| {
        if word.load(Ordering::Relaxed) == 0 {
            // Another one has been quicker, otherwise.
            let _ = word.compare_exchange(0, monotonic_ns(), Ordering::AcqRel, Ordering::Relaxed);
        }
    };
    set(&shared.oldest_waiting_ns);
    set(&shared.oldest_behind_batch_ns);
}

/// How long to wait for the tail to look at what is committed.
pub(super) const LOOK_PATIENCE: Duration = Duration::from_secs(10);
/// `Page::wake_frames` where nobody is to be woken.
const NEVER: u64 = u64::MAX;

/// Who tells of the WAL's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The WAL-index, read under the write lock.
    Writer,
    /// The WAL-index, read without it by somebody who wants to know.
    Asker,
    /// The same by whoever comes first.
    Reader,
    /// The WAL itself.
    Wal,
}

impl Database {
    /// The WAL-index as it is, with the write lock held.
    ///
    /// Cheap where nothing was committed; pushes a descriptor where something was, and returns the commit's sequence number.
    pub(crate) fn observe(&self, index: &IndexHeader) -> Option<u64> {
        fault_point!("commit.publish");
        self.publish(Board(&self.shared).read(), index, Source::Writer, Put::Commit)
    }

    /// As `observe`, after this connection has written these frames, which it forgets then.
    pub(crate) fn commits_in_wal(&self, index: &IndexHeader, written: &WrittenFrames) -> Option<u64> {
        if written.is_empty() {
            return self.observe(index);
        }
        // Before it is published: whoever captures up to this commit finds them noted.
        self.frames.append(index, written);
        let committed = written.are_in(index);
        // Somebody who asked may have found it in the WAL-index, and published it, already.
        self.observe(index).or_else(|| committed.then(|| self.published().sequence))
    }

    /// The WAL-index as `read` finds it now, for somebody who asks what is committed: nothing tells of commits that were made without us.
    pub(crate) fn look_at_index(&self, read: impl Fn() -> Option<IndexHeader>) {
        // What is published after this number is newer than what is read now.
        self.look(Source::Asker, read);
    }

    /// The WAL-index as any connection of this process has it mapped, for the uploader.
    pub(crate) fn look_at_mapped_index(&self) {
        self.look_at_index(|| self.host.wal_index(&self.paths.database));
    }

    /// Before the full state is read: a process without the extension may have begun a generation of the WAL and committed nothing to it. What was in the one
    /// before is in the database file by then, and there alone.
    pub(super) fn look_for_restart(&self) {
        let Some(_tail) = self.tail_within(LOOK_PATIENCE) else { return };
        let (after, published) = Board(&self.shared).read();
        let Some(index) = self.host.wal_index(&self.paths.database) else { return };
        let salts = index.end().salts;
        if published.known && published.end.frame > 0 && index.max_frame == 0 && salts != published.end.salts {
            let end = WalPos { salts, ..WalPos::default() };
            Board(&self.shared).put(Put::Look, after, &Published { end, ..published });
        }
    }

    /// The WAL-index as a reader finds it. Commits may have followed, so it counts only while no other is known.
    pub(crate) fn observe_first(&self, read: impl Fn() -> Option<IndexHeader>) {
        self.look(Source::Reader, read);
    }

    fn look(&self, source: Source, read: impl Fn() -> Option<IndexHeader>) -> Option<u64> {
        const TRIES: usize = 16;
        // Where somebody holds it for long he who asks is told what is known.
        let _tail = self.tail_within(LOOK_PATIENCE)?;
        let mut found = None;
        for _ in 0..TRIES {
            let newest = Board(&self.shared).read();
            let index = read()?;
            found = self.publish(newest, &index, source, Put::Look).or(found);
            // Else what was seen may be newer than what was published meanwhile, and would not count.
            if Board(&self.shared).read().0 == newest.0 {
                break;
            }
        }
        found
    }

    fn publish(&self, (after, mut published): (u64, Published), index: &IndexHeader, source: Source, how: Put) -> Option<u64> {
        let put = |published: &Published, after| Board(&self.shared).put(how, after, published);
        let end = index.end();
        if source == Source::Reader && published.from_index {
            return None;
        }
        let from_index = published.from_index || source != Source::Wal;
        if published.known && (published.end == end || end.frame == 0) {
            if !published.from_index && from_index {
                published.from_index = true;
                put(&published, after);
            }
            return None;
        }
        published.from_index = from_index;
        if published.known && end == captured(&self.shared) {
            // A checkpoint that restarted nothing: the frames are still there, and nothing is new.
            published.end = end;
            put(&published, after);
            return None;
        }
        let same_log = published.known && published.end.salts == end.salts;
        let first_frame = if same_log { published.end.frame + 1 } else { 1 };
        let state = NewestState { page_size: index.page_size, pages: index.db_pages, end, weight_frames: 0 };
        Some(self.advance((after, published), &state, first_frame, how))
    }

    /// Something was committed outside the WAL, with SQLite's lock for that held. Returns its number.
    pub(crate) fn publish_file(&self, state: &NewestState) -> u64 {
        self.advance(Board(&self.shared).read(), state, 1, Put::Commit)
    }

    /// What is in the database file is seen for the first time.
    pub(crate) fn publish_seen(&self, state: &NewestState) -> Option<u64> {
        let _tail = self.tail_within(LOOK_PATIENCE)?;
        let newest = Board(&self.shared).read();
        (!newest.1.known).then(|| self.advance(newest, state, 1, Put::Look))
    }

    /// A WAL-index that was made for an empty WAL knows neither page size nor pages: where nothing else does, the file tells before it is changed.
    pub(crate) fn note_size_before(&self, page_size: PageSize, pages: u32) {
        let mut published = self.published();
        if published.end.frame == 0 && (published.page_size.is_none() || published.database_pages == 0) {
            (published.page_size, published.database_pages) = (Some(page_size), pages);
            Board(&self.shared).publish(&published);
        }
    }

    /// The WAL's end is another, without a commit: SQLite's lock for that is held.
    pub(super) fn set_end(&self, end: WalPos) {
        Board(&self.shared).publish(&Published { end, ..self.published() });
    }

    /// Nothing counts as known any more, see `reopened`. With the tail's lock held, and nobody else there.
    pub(super) fn forget_published(&self) {
        Board(&self.shared).publish(&Published { known: false, from_index: false, ..self.published() });
    }

    fn advance(&self, (after, before): (u64, Published), state: &NewestState, first_frame: u32, how: Put) -> u64 {
        let shared = &*self.shared;
        if !before.known {
            shared.began_empty.store(u64::from(state.end.frame == 0), Ordering::Relaxed);
        }
        // What there is at first sight counts as a commit, in the WAL or not: the bucket may lack all of it.
        let mut published = Published {
            known: true,
            from_index: before.from_index,
            end: state.end,
            database_pages: state.pages,
            page_size: state.page_size,
            sequence: before.sequence + 1,
            committed_ms: commit_ms(),
        };
        note_waiting(shared);
        if state.weight_frames > 0 {
            shared.unseen_frames.fetch_add(u64::from(state.weight_frames), Ordering::Relaxed);
        }
        Board(shared).put(how, after, &published);
        // In one order with `arm`: either this sees what the uploader wants to hear of, or the uploader sees what is published.
        fence(Ordering::SeqCst);
        if how == Put::Commit
            && let Some(looked) = Board(shared).looked_after(after)
            && looked.sequence >= published.sequence
        {
            // Somebody has counted commits that nobody told of while this one was being told of: with their number they may be in the bucket without it.
            published.sequence = looked.sequence + 1;
            Board(shared).put(how, after, &published);
            fence(Ordering::SeqCst);
        }
        let wanted = shared.wake_frames.load(Ordering::Relaxed);
        // Whoever sleeps says itself when it is up, see `is_up`: said by us, who may be killed before the next line, it would be told by nobody any more.
        let wake = !before.known || behind(shared, &published) >= wanted;
        if wake {
            fault_point!("commit.wake");
        }
        let sequence = published.sequence;
        let frames = CommittedFrames { database: self.id, first_frame, end: state.end, database_pages: state.pages, sequence };
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
        self.published().known
    }

    /// Whether the WAL-index has been seen since the open.
    pub(crate) fn has_seen_index(&self) -> bool {
        // Where that was published it stays so, and the rest need not be read with it: this is asked twice in a commit.
        self.shared.published.first() & FROM_INDEX != 0 || self.published().from_index
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
            return self.look(Source::Wal, || Some(index));
        }
        let salts = wal.and_then(|wal| wal.header().ok()).map(|header| header.salts).unwrap_or_default();
        // In a rollback-journal mode the file itself tells more.
        let header = self.file_header().ok().filter(|header| !header.is_wal);
        self.publish_seen(&NewestState {
            page_size: header.and_then(|h| h.page_size),
            pages: header.map_or(0, |h| h.pages(size_bytes)),
            end: WalPos { salts, ..WalPos::default() },
            weight_frames: 0,
        })
    }

    /// The end of a WAL as the WAL itself tells it, after a commit under exclusive locking.
    pub(crate) fn observe_wal(&self, index: &IndexHeader) -> Option<u64> {
        fault_point!("commit.publish");
        self.publish(Board(&self.shared).read(), index, Source::Wal, Put::Commit)
    }

    pub(crate) fn published(&self) -> Published {
        Board(&self.shared).read().1
    }

    /// The uploader is to be woken when that many frames are waiting. False if they are already: then nobody will wake it.
    pub(crate) fn arm(&self, frames: u32) -> bool {
        let wanted = if frames == u32::MAX { NEVER } else { u64::from(frames) };
        self.shared.wake_frames.store(wanted, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        behind(&self.shared, &self.published()) < u64::from(frames)
    }

    /// The uploader is awake: nobody need wake it before it is armed again.
    pub(super) fn disarm(&self) {
        self.shared.wake_frames.store(NEVER, Ordering::Relaxed);
    }

    /// Mirrors how far the tail has captured for the commit path's arithmetic. With the tail's lock held.
    pub(crate) fn note_captured(&self, tail: &Tail) {
        let captured = tail.state.captured.unwrap_or_default();
        self.shared.captured.write(&[pair(captured.salts), u64::from(captured.frame), pair(captured.checksum)]);
    }

    /// Whether nothing is in the WAL only.
    pub(super) fn is_captured(&self, tail: &Tail) -> bool {
        let published = self.published();
        let end = published.end;
        tail.state.captured.is_some_and(|c| end.frame == 0 || c == end || tail.state.sealed && behind(&self.shared, &published) == 0)
    }

    /// How many frames are in the WAL only.
    pub(crate) fn frames_in_wal_only(&self, tail: &Tail) -> u64 {
        if self.is_captured(tail) { 0 } else { behind(&self.shared, &self.published()).max(1) }
    }

    /// The newest committed state, all of which is about to be sent.
    pub(crate) fn published_for_batch(&self) -> Published {
        self.shared.oldest_behind_batch_ns.store(0, Ordering::SeqCst);
        let published = self.published();
        self.shared.batch_sequence.store(published.sequence, Ordering::Release);
        published
    }

    /// Everything up to a commit is in the bucket.
    pub(crate) fn note_acked(&self, sequence: u64) {
        let (shared, published) = (&*self.shared, self.published());
        if shared.due_sequence.load(Ordering::Acquire) <= sequence {
            shared.due_ns.store(0, Ordering::Release);
        }
        if sequence >= published.sequence || sequence >= shared.batch_sequence.load(Ordering::Acquire) {
            // Commits that are told of meanwhile have noted themselves there.
            let oldest = shared.oldest_behind_batch_ns.load(Ordering::SeqCst);
            shared.oldest_waiting_ns.store(oldest, Ordering::SeqCst);
            let later = shared.oldest_behind_batch_ns.load(Ordering::SeqCst);
            if oldest == 0 && later != 0 {
                let _ = shared.oldest_waiting_ns.compare_exchange(0, later, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// How long it is until commits that are not in the bucket shall be on their way, where that was asked for.
    pub(crate) fn due_in(&self, acked: u64) -> Option<Duration> {
        let due = Some(self.shared.due_ns.load(Ordering::Acquire)).filter(|ns| *ns != 0)?;
        (self.shared.due_sequence.load(Ordering::Acquire) > acked).then(|| Duration::from_nanos(due.saturating_sub(monotonic_ns())))
    }

    /// Commits up to this one shall be on their way when the oldest that waits is that old.
    pub(crate) fn send_within(&self, sequence: u64, age: Duration) {
        let shared = &*self.shared;
        let oldest = shared.oldest_waiting_ns.load(Ordering::Acquire);
        if oldest == 0 {
            return;
        }
        let due = oldest.saturating_add(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        let is_over = shared.due_sequence.load(Ordering::Acquire) <= self.progress.acked_sequence();
        shared.due_sequence.fetch_max(sequence, Ordering::AcqRel);
        let sooner = |before: u64| (before == 0 || is_over || due < before).then_some(due);
        if shared.due_ns.fetch_update(Ordering::AcqRel, Ordering::Acquire, sooner).is_ok() {
            // Whoever sleeps may sleep for too long.
            self.call();
        }
    }

    /// How old the oldest commit is that is not in the bucket.
    pub(crate) fn lag(&self) -> Option<Duration> {
        let oldest = self.shared.oldest_waiting_ns.load(Ordering::Acquire);
        (oldest != 0).then(|| Duration::from_nanos(monotonic_ns().saturating_sub(oldest)))
    }

    /// The uploader looks now at what was committed outside the WAL.
    pub(crate) fn note_looked(&self) {
        self.shared.unseen_frames.store(0, Ordering::Relaxed);
    }
}
