//! Commits that no shared-memory WAL announces.
//!
//! In a rollback-journal mode the pages of a commit are in the database file alone. Every page that is written there is noted; at the commit
//! (`SQLITE_FCNTL_COMMIT_PHASETWO`, with SQLite's EXCLUSIVE lock held) they are read back and go into the spool as one entry.
//!
//! ```text
//!   first xWrite         the transaction begins: has anybody else written since the last commit? A note of it goes to the control file
//!   xWrite, xTruncate    pages are noted
//!   COMMIT_PHASETWO      noted pages, and those the file has grown over, go into the spool
//!   xUnlock without one  rolled back: the file holds what it held, but for the content of free pages, which SQLite does not restore
//! ```
//!
//! Under `locking_mode=EXCLUSIVE` there is no xUnlock, so that a transaction that was rolled back looks open until the next one commits, or until the full
//! state is to be sent: see `end_if_rolled_back`. And a WAL has no shared memory that could tell its end: the file itself is read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::published::LOOK_PATIENCE;
use super::{Database, commit_ms};
use crate::logging::repeated_event;
use crate::replicator::batch::WalFile;
use crate::replicator::control::{FullReason, OpenTransaction, Stamp};
use crate::replicator::durability::UNSEEN;
use crate::replicator::file_header::{FileHeader, HEADER_BYTES};
use crate::replicator::frames::WrittenFrames;
use crate::replicator::pages::PageSet;
use crate::replicator::stamp;
use crate::replicator::tail::{FileCommit, Mode, Tail};
use crate::types::{PageSize, WalPos};

/// What a small commit outside the WAL counts for, in frames: several of them make the uploader look, which then merges their spool entries.
const LEAST_WEIGHT_FRAMES: u32 = 32;

/// What a transaction has written to the database file since the last commit.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    pages: PageSet,
    /// The shortest that the file has been since.
    shortest_bytes: Option<u64>,
    /// It has begun and not ended.
    active: bool,
    /// It is SQLite rolling back what a dead process left.
    rolls_back: bool,
    /// What the header says once it is rolled back, where it says something else once it is committed.
    undone_words: Option<[u32; 2]>,
    /// It has a journal on disk.
    is_protected: bool,
    /// It has synced the file, and not written since.
    is_synced: bool,
}

/// A journal that undoes what was written to the database file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Journal {
    /// Also after a loss of power.
    Synced,
    /// With `synchronous=OFF`.
    Unsynced,
}

/// The state after a commit, for `Database::publish`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewestState {
    pub(crate) page_size: Option<PageSize>,
    pub(crate) pages: u32,
    pub(crate) end: WalPos,
    /// What it counts for beside the frames of the WAL.
    pub(crate) weight_frames: u32,
}

/// A change of the database file that is about to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FileChange {
    Write { offset: u64, bytes: u64 },
    Truncate { bytes: u64 },
}

/// What a handle knows of its transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    /// It rolls back what a dead process left.
    pub(crate) rolls_back: bool,
    /// It has committed under the lock that it holds: SQLite counts the change counter up once for a lock.
    pub(crate) has_committed: bool,
}

/// Reads the database file by the handle that holds its locks; false where that fails.
pub(crate) type ReadFile<'a> = dyn FnMut(&mut [u8], u64) -> bool + 'a;

fn read_header(read: &mut ReadFile<'_>) -> FileHeader {
    let mut bytes = [0; HEADER_BYTES];
    // An empty file has none.
    if read(&mut bytes, 0) { FileHeader::decode(&bytes) } else { FileHeader::decode(&[0; HEADER_BYTES]) }
}

/// When it is dropped, tells that a transaction writes to the database file no more.
struct EndsWriting<'a>(&'a Database);

impl Drop for EndsWriting<'_> {
    fn drop(&mut self) {
        self.0.writes_file(false);
    }
}

impl Database {
    /// The database file is about to be changed by something else than a checkpoint.
    pub(crate) fn changes_file(&self, change: FileChange, writer: Writer, read: &mut ReadFile<'_>) {
        let mut outside = self.outside.lock();
        if writer.rolls_back && !outside.active {
            let now = stamp::take(&self.paths.database, &read_header(read), self.is_file_synced());
            let was_synced = self.hot_journal() == Some(Journal::Synced);
            if let Some(mut tail) = self.tail_or_lost() {
                tail.rolls_back_in_file(now, was_synced);
            }
            (outside.rolls_back, outside.is_protected) = (true, true);
        } else if !writer.rolls_back && (!outside.active || outside.rolls_back) {
            // A rollback that has come to its end under an exclusive lock, without a word.
            outside.rolls_back = false;
            (outside.is_protected, outside.undone_words) = self.begin_in_file(writer, read);
        }
        if !std::mem::replace(&mut outside.active, true) {
            self.writes_file(true);
        }
        outside.is_synced = false;
        match change {
            FileChange::Write { offset, bytes } => {
                let size =
                    u64::from(self.published().page_size.unwrap_or_else(|| read_header(read).page_size.unwrap_or(PageSize::MIN)).get());
                let last = offset.saturating_add(bytes).saturating_sub(1) / size;
                for index in offset / size..=last {
                    outside.pages.insert(u32::try_from(index + 1).unwrap_or(u32::MAX));
                }
            }
            FileChange::Truncate { bytes } => {
                outside.shortest_bytes = Some(outside.shortest_bytes.map_or(bytes, |shortest| shortest.min(bytes)));
            }
        }
    }

    /// A transaction writes for the first time, with nobody else writing. Returns whether it has a journal on disk, and the header's words where a
    /// commit changes them.
    fn begin_in_file(&self, writer: Writer, read: &mut ReadFile<'_>) -> (bool, Option<[u32; 2]>) {
        let header = read_header(read);
        let now = stamp::take(&self.paths.database, &header, self.is_file_synced());
        let Some(mut tail) = self.tail_or_lost() else { return (true, None) };
        if !self.is_known()
            && let Some(state) = self.state_in_file(&header, now)
        {
            self.publish_file(&state);
        }
        if let Some(page_size) = header.page_size {
            self.note_size_before(page_size, header.pages(now.map_or(0, |s| s.size_bytes)));
        }
        let live = self.published().live();
        tail.resolve(&live.end, &|| now);
        tail.mark(None);
        let journal = self.hot_journal();
        let transaction = match (journal, writer.has_committed) {
            (None, _) => OpenTransaction::Unprotected,
            (Some(_), true) => OpenTransaction::Uncounted,
            (Some(_), false) => OpenTransaction::Journaled,
        };
        let undone = journal != Some(Journal::Synced) && tail.file_may_be_lost();
        let begun = tail.begins_in_file(transaction, now);
        if let Err(error) = &begun {
            repeated_event!(Warn, "local_file", self, cause = error; "{error}");
        }
        if !begun.unwrap_or(false) {
            self.lose_unless_stopped(&mut tail, FullReason::ContinuityLost);
        }
        drop(tail);
        if undone {
            // Once: from then on nothing counts as being on disk.
            self.sync_control();
        }
        (transaction != OpenTransaction::Unprotected, (transaction == OpenTransaction::Journaled).then(|| header.words()))
    }

    fn lose_unless_stopped(&self, tail: &mut Tail, reason: FullReason) {
        if tail.state.captured.is_some() && !matches!(tail.mode, Mode::Stopped(..)) {
            self.lose(tail, reason);
        }
    }

    /// `COMMIT_PHASETWO` on a handle that is not in WAL mode. Returns the commit's number, where something was committed.
    pub(crate) fn commits_file(&self, read: &mut ReadFile<'_>) -> Option<u64> {
        let mut outside = self.outside.lock();
        if !outside.active && outside.pages.is_empty() && outside.shortest_bytes.is_none() {
            return None;
        }
        let change = std::mem::take(&mut *outside);
        // Also where it panics: another process, which goes on, waits for the end of it before it reads the full state.
        let _writing = change.active.then_some(EndsWriting(self));
        let header = read_header(read);
        let stamp = stamp::take(&self.paths.database, &header, self.is_file_synced());
        Some(match self.tail_or_lost() {
            Some(mut tail) => self.capture_file(&mut tail, &change, &header, stamp, read),
            None => UNSEEN,
        })
    }

    fn capture_file(&self, tail: &mut Tail, change: &Outside, header: &FileHeader, stamp: Option<Stamp>, read: &mut ReadFile<'_>) -> u64 {
        let before = self.published();
        let pages = header.pages(stamp.map_or(0, |s| s.size_bytes));
        let written = u32::try_from(change.pages.iter().take(LEAST_WEIGHT_FRAMES as usize * 8).count()).unwrap_or(u32::MAX);
        let weight_frames = written.max(LEAST_WEIGHT_FRAMES);
        let state = NewestState { page_size: header.page_size, pages, end: WalPos::default(), weight_frames };
        // The uploader looks only when it has the tail, which is ours until the pages are spooled.
        let sequence = self.publish_file(&state);
        let (Some(page_size), 1..) = (header.page_size, pages) else {
            self.lose_unless_stopped(tail, FullReason::ContinuityLost);
            return sequence;
        };
        if before.page_size.is_some_and(|size| size != page_size) {
            self.lose_unless_stopped(tail, FullReason::PageSize);
        } else if tail.mode == Mode::Unresolved {
            // Nothing has been compared before the file was changed.
            self.lose_unless_stopped(tail, FullReason::ContinuityLost);
        }
        // SQLite may let the file grow over pages that it never writes.
        let shortest =
            change.shortest_bytes.map_or(u32::MAX, |bytes| u32::try_from(bytes / u64::from(page_size.get())).unwrap_or(u32::MAX));
        let grown_from = before.database_pages.min(shortest);
        let page_set = change.pages.iter().take_while(|&page| page <= grown_from).chain(grown_from.saturating_add(1)..=pages);
        let commit = FileCommit { page_size, pages, committed_ms: commit_ms(), sequence, stamp };
        let captured = tail.commits_in_file(&commit, page_set, &mut |page, content| read(content, page_size.offset_of(page)));
        if let Err(error) = captured {
            repeated_event!(Warn, "local_file", self, cause = error; "{error}");
            self.lose_unless_stopped(tail, FullReason::SpoolLost);
        }
        self.note_captured(tail);
        sequence
    }

    /// The handle that wrote gives its lock up without a commit, or has rolled back what a dead process left.
    pub(crate) fn leaves_file(&self, read: &mut ReadFile<'_>) {
        let mut outside = self.outside.lock();
        if !outside.active || self.has_hot_journal() {
            // In the second case the next handle rolls it back.
            return;
        }
        self.was_rolled_back(&mut outside, &read_header(read));
    }

    /// Under exclusive locking nobody tells of a rollback. Where the journal has gone and the header is what it was, there was one. For the
    /// uploader, which cannot read the full state while a transaction is open.
    ///
    /// Where the header tells nothing, because SQLite counts its change counter up once for a lock, or there is no journal on disk, the file holds a
    /// committed state all the same: what is rolled back, or what is committed and about to be announced.
    ///
    /// ```text
    ///   a journal on disk    made durable before the first write to the file; gone, or without its header, once SQLite has committed or rolled back
    ///   none                 both end with a sync of the file, which nothing comes after but, for a commit, COMMIT_PHASETWO
    /// ```
    ///
    /// For the latter the pages stay noted and become an increment that says what the full state has said. The control file does not hear of either:
    /// it says that the full state is due, until that is begun.
    pub(super) fn end_if_rolled_back(&self) {
        let mut outside = self.outside.lock();
        if !outside.active || self.has_hot_journal() {
            return;
        }
        let Ok(header) = self.file_header() else { return };
        if outside.rolls_back || outside.undone_words == Some(header.words()) {
            self.was_rolled_back(&mut outside, &header);
        } else if outside.undone_words.is_none() && (outside.is_protected || outside.is_synced) {
            self.ended(&mut outside);
        }
    }

    /// Whether a transaction has written to the database file of which no journal on disk tells whether it has ended.
    pub(crate) fn is_unprotected(&self) -> bool {
        let outside = self.outside.lock();
        outside.active && !outside.is_protected
    }

    /// SQLite has synced the database file at the end of a transaction that changes no other database: it is committed, or rolled back.
    pub(crate) fn ends_with_sync(&self) {
        let mut outside = self.outside.lock();
        if !outside.active {
            return;
        }
        outside.is_synced = true;
        drop(outside);
        self.look_for_snapshot();
    }

    /// Whether somebody else has a transaction open that may have written to the database file: a hot journal which is not this process's.
    pub(crate) fn awaits_others(&self) -> bool {
        self.is_in_file() && self.has_hot_journal() && !self.outside.lock().active
    }

    /// Whether somebody else has written to the database file since it was last noted what it looks like, or is about to.
    pub(crate) fn is_touched_by_others(&self) -> bool {
        let outside = self.outside.lock();
        if outside.active || !self.is_in_file() {
            return false;
        }
        // In this order: commits of other processes change both.
        let tail = self.lock_tail();
        let now = self.stamp();
        let is_touched = |then: Stamp, now: Stamp| !then.is_wal && !then.is_same_file(&now);
        // A process that replicates, too, notes that it has begun; its journal is there before.
        if tail.state.open_transaction.is_some() {
            return false;
        }
        tail.state.sealed
            && (self.has_hot_journal() && self.is_alone()
                || matches!((tail.state.stamp, now), (Some(then), Some(now)) if is_touched(then, now)))
    }

    /// Looks for a commit that nobody has told of, in a rollback-journal mode: of a process that was killed between SQLite's commit and ours, say. What it has
    /// changed nobody knows. For somebody who is about to wait for all that is committed; whoever writes next finds it as well.
    pub(super) fn look_at_file(&self) {
        let outside = self.outside.lock();
        if outside.active || !self.is_in_file() || self.has_hot_journal() {
            return;
        }
        let Some(mut tail) = self.tail_within(LOOK_PATIENCE) else { return };
        if tail.mode != Mode::Running || !tail.state.sealed {
            return;
        }
        let find = || {
            let (then, now) = (tail.state.stamp?, self.stamp()?);
            let is_missed = !then.is_wal && !now.is_wal && then.header_words != now.header_words;
            let header = self.file_header().ok().filter(|_| is_missed && !self.has_hot_journal())?;
            self.state_in_file(&header, Some(now))
        };
        // Whoever is at a commit tells of it when the tail is free.
        if let Some(state) = self.while_nobody_writes(find).flatten() {
            self.publish_file(&state);
            self.lose(&mut tail, FullReason::ContinuityLost);
        }
    }

    /// Whether the database file alone is the newest state, in a rollback-journal mode.
    fn is_in_file(&self) -> bool {
        self.published().end.frame == 0 && self.file_header().is_ok_and(|header| !header.is_wal)
    }

    fn was_rolled_back(&self, outside: &mut Outside, header: &FileHeader) {
        let now = stamp::take(&self.paths.database, header, self.is_file_synced());
        let Some(mut tail) = self.tail_or_lost() else { return self.ended(outside) };
        // The pages stay noted: SQLite does not put back what free pages held.
        if tail.state.open_transaction != Some(OpenTransaction::Unprotected)
            && let Err(error) = tail.rolled_back_in_file(now)
        {
            repeated_event!(Warn, "local_file", self, cause = error; "{error}");
        }
        drop(tail);
        self.ended(outside);
    }

    /// The pages stay noted.
    fn ended(&self, outside: &mut Outside) {
        (outside.active, outside.rolls_back, outside.undone_words) = (false, false, None);
        self.writes_file(false);
    }

    /// Whether what waits for a transaction's end waits for the next open: the last handle is closed, and a journal lies there that only then is
    /// rolled back.
    pub(crate) fn awaits_open(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 0 && self.has_hot_journal()
    }

    /// A read of the database ends, with its lock still held: in a rollback-journal mode the file is the newest state.
    pub(crate) fn sees_file(&self, read: &mut ReadFile<'_>) {
        if self.is_known() || self.has_hot_journal() {
            return;
        }
        let header = read_header(read);
        if let Some(state) = self.state_in_file(&header, stamp::take(&self.paths.database, &header, self.is_file_synced())) {
            self.publish_seen(&state);
        }
    }

    /// What is committed where the file itself tells; one that says WAL is judged by its WAL.
    fn state_in_file(&self, header: &FileHeader, now: Option<Stamp>) -> Option<NewestState> {
        let pages = header.pages(now.map_or(0, |s| s.size_bytes));
        (!header.is_wal && header.page_size.is_some()).then(|| NewestState {
            page_size: header.page_size,
            pages,
            end: WalPos::default(),
            weight_frames: 0,
        })
    }

    /// `COMMIT_PHASETWO` after writes to the first `written_bytes` of a WAL that has no shared memory: its own frames tell. Returns the commit's
    /// number, where something was committed. The frames are forgotten then.
    pub(crate) fn commits_exclusively(&self, written_bytes: u64, written: &WrittenFrames) -> Option<u64> {
        let published = self.published();
        if !published.known {
            return self.observe_without_index();
        }
        if let Some(index) = published.page_size.and_then(|size| written.as_committed(&published.end, size)) {
            return self.commits_in_wal(&index, written);
        }
        let mut file = self.exclusive_wal.lock();
        if file.as_ref().is_none_or(|wal| !wal.is_current()) {
            *file = WalFile::open(&self.paths.wal).ok();
        }
        let Some(wal) = file.as_ref() else { return Some(UNSEEN) };
        let found = wal.last_commit_after(&published.end, written_bytes);
        match found {
            Ok(Some(index)) => self.observe_wal(&index),
            Ok(None) => None,
            Err(error) => {
                repeated_event!(Warn, "local_file", self, cause = error; "{error}");
                if let Some(mut tail) = self.tail_or_lost() {
                    self.lose_unless_stopped(&mut tail, FullReason::ContinuityLost);
                }
                Some(UNSEEN)
            }
        }
    }

    /// SQLite begins a new generation in a WAL that has no shared memory, and so without asking: its frames are still there.
    pub(crate) fn restarts_exclusively(&self, salts: [u32; 2]) {
        if !self.is_known() {
            self.observe_without_index();
        }
        let end = self.published().end;
        if end.frame > 0 && end.salts != salts {
            self.wal_vanishes();
        }
    }

    /// Whether a write to the WAL at that offset is the first of a transaction.
    pub(crate) fn begins_in_wal(&self, offset: u64) -> bool {
        let published = self.published();
        offset <= crate::wal::WAL_HEADER_BYTES as u64
            || published.page_size.is_some_and(|size| offset == crate::wal::end_offset(size, published.end.frame))
    }

    /// Whether a journal lies beside the database that says how to undo what was written to it.
    pub(crate) fn has_hot_journal(&self) -> bool {
        self.hot_journal().is_some()
    }

    fn hot_journal(&self) -> Option<Journal> {
        const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
        /// Instead of the number of pages, which SQLite writes there when it has synced them.
        const NEVER_SYNCED: [u8; 4] = [0xff; 4];
        let start = self.journal_start::<{ MAGIC.len() + NEVER_SYNCED.len() }>()?;
        let journal = if start.ends_with(&NEVER_SYNCED) { Journal::Unsynced } else { Journal::Synced };
        start.starts_with(&MAGIC).then_some(journal)
    }

    /// How the rollback journal on disk begins; `None` where there is none, or a shorter one.
    pub(crate) fn journal_start<const BYTES: usize>(&self) -> Option<[u8; BYTES]> {
        let mut start = [0; BYTES];
        // It carries no locks, so that opening and closing it harms nobody.
        File::open(self.journal()).and_then(|file| file.read_exact_at(&mut start, 0)).ok()?;
        Some(start)
    }

    fn journal(&self) -> PathBuf {
        let mut name = self.paths.database.clone().into_os_string();
        name.push("-journal");
        name.into()
    }
}
