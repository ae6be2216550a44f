//! One replicated database as SQLite's threads see it: what the FFI shim calls, quick and without the network.
//!
//! Locks, in this order: `tail`, `preserver`, `published`. The commit path takes only `published`, for a few loads and stores.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::batch::WalFile;
use super::control::{FullReason, Stamp};
use super::durability::{Policy, Unacknowledged};
use super::file_header::{FileHeader, HEADER_BYTES};
use super::frames::{FrameLog, WrittenFrames};
use super::hub::{CommittedFrames, Hub, Notice};
use super::local::Paths;
use super::mark::{self, Mark};
use super::outside::{NewestState, Outside};
use super::preserve::{DatabaseFile, Preserver};
use super::progress::{Facts, Progress, WaitError};
use super::stamp;
use super::tail::{LiveEnd, Mode, StopKind, Tail, TailError, TailGuard, restarted_from};
use crate::config::Options;
use crate::fault::{fault_io, fault_point};
use crate::store::Store;
use crate::types::{PageSize, Txid, WalPos};
use crate::wal::IndexHeader;

/// A writer that wants to restart the WAL waits at the most this long for the uploader to let go of the tail; then it appends.
const GATE_PATIENCE: Duration = Duration::from_millis(20);
/// And encodes at the most this many bytes itself.
const GATE_BYTES: u32 = 16 * 1024 * 1024;
/// With less room on the disk it does as an explicit checkpoint does: what it would append might not fit.
const NEARLY_FULL_BYTES: u64 = 64 * 1024 * 1024;

/// What the replicator needs of SQLite: the database file by a handle of SQLite's own.
pub(crate) trait Host: Send + Sync + std::fmt::Debug {
    /// Opens the file once more, through the VFS that SQLite itself uses for it.
    fn open_database(&self, path: &Path) -> io::Result<Box<dyn DatabaseFile>>;
}

/// The newest committed state, and what the uploader wants to hear of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Published {
    /// False until the WAL-index, or for want of it the WAL, has been seen.
    pub(crate) known: bool,
    /// What is known comes from the WAL-index.
    from_index: bool,
    pub(crate) end: WalPos,
    pub(crate) database_pages: u32,
    pub(crate) page_size: Option<PageSize>,
    pub(crate) sequence: u64,
    pub(crate) committed_ms: i64,
    /// When the oldest commit that is not in the bucket was made.
    oldest_waiting: Option<Instant>,
    /// Commits up to this one are in what is being sent, or was to be sent last.
    batch_sequence: u64,
    /// When the oldest commit after those was made.
    oldest_behind_batch: Option<Instant>,
    /// Commits up to this one shall be on their way at that time, token or not.
    due: Option<(u64, Instant)>,
    /// The uploader sleeps until so many frames are behind `captured`.
    wake_frames: u32,
    captured: WalPos,
    /// What was committed outside the WAL since the uploader looked, counted as if it were frames.
    unseen_frames: u32,
}

impl Published {
    pub(crate) const fn live(&self) -> LiveEnd {
        LiveEnd { end: self.end, committed_ms: self.committed_ms, sequence: self.sequence }
    }

    /// A commit was made that is not in the bucket.
    fn note_waiting(&mut self, now: Instant) {
        self.oldest_waiting.get_or_insert(now);
        self.oldest_behind_batch.get_or_insert(now);
    }

    /// Whether nothing is in the WAL only.
    fn is_captured(&self, tail: &Tail) -> bool {
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

/// See the module.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) id: u64,
    pub(crate) paths: Paths,
    pub(crate) options: Options,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) progress: Progress,
    hub: Arc<Hub>,
    host: Arc<dyn Host>,
    published: Mutex<Published>,
    tail: Mutex<Tail>,
    preserver: Mutex<PreserverSlot>,
    /// Whether a snapshot needs to hear of writes to the database file.
    preserving: AtomicBool,
    /// A snapshot waits until nobody writes to the database file.
    pub(super) snapshot_waits: AtomicBool,
    /// What a transaction has written to the database file.
    pub(super) outside: Mutex<Outside>,
    /// Which page is in which frame of the WAL.
    frames: Arc<FrameLog>,
    /// The WAL, where commits have to be read from it.
    pub(super) exclusive_wal: Mutex<Option<WalFile>>,
    /// SQLite has synced the database file since its last write.
    file_synced: AtomicBool,
    /// The control file, once a checkpoint has to be noted there.
    marks: Mutex<Option<Arc<File>>>,
    /// The header of a generation was written whose salts do not follow on those before: see `wal_synced`.
    begins_afresh: AtomicBool,
    /// Commits up to this one shall go without a token of the budget.
    pub(crate) urgent: AtomicU64,
    /// How often a flush was asked for: each ends a pause.
    pub(crate) asked: AtomicU64,
    /// How often a commit began to wait, or wanted the next batch sooner.
    pub(crate) calls: AtomicU64,
    /// The uploader sleeps, or is about to, and a commit that waits must wake it.
    dozing: AtomicBool,
    pub(crate) unacknowledged: Unacknowledged,
    /// The last handle is closed; the uploader shall forget the database.
    pub(crate) closing: AtomicBool,
    /// The WAL was deleted: the next release of the last lock is the moment to stamp the file.
    pub(crate) stamp_due: AtomicBool,
    /// Open handles, changed under the registry's lock.
    pub(crate) handles: AtomicU32,
    /// Handles that were the last one when they were closed and are still flushing, changed under the registry's lock.
    pub(crate) flushing: AtomicU32,
}

/// Who tells of the WAL's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The WAL-index, read under the write lock.
    Writer,
    /// The WAL-index, read without it.
    Reader,
    /// The WAL itself.
    Wal,
}

#[derive(Debug, Default)]
struct PreserverSlot {
    active: Option<Preserver>,
    /// Checkpoints and transactions of this process that write to the database file now.
    writers: u32,
}

impl Database {
    pub(crate) fn new(
        id: u64,
        paths: Paths,
        options: Options,
        store: Arc<dyn Store>,
        hub: Arc<Hub>,
        host: Arc<dyn Host>,
        tail: Tail,
    ) -> Self {
        Self {
            id,
            paths,
            options,
            store,
            progress: Progress::new(),
            hub,
            host,
            published: Mutex::new(Published { wake_frames: 1, ..Published::default() }),
            preserver: Mutex::default(),
            preserving: AtomicBool::new(false),
            snapshot_waits: AtomicBool::new(false),
            outside: Mutex::default(),
            frames: tail.frames(),
            tail: Mutex::new(tail),
            exclusive_wal: Mutex::default(),
            file_synced: AtomicBool::new(false),
            marks: Mutex::default(),
            begins_afresh: AtomicBool::new(false),
            urgent: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            dozing: AtomicBool::new(false),
            unacknowledged: Unacknowledged::default(),
            closing: AtomicBool::new(false),
            stamp_due: AtomicBool::new(false),
            handles: AtomicU32::new(0),
            flushing: AtomicU32::new(0),
        }
    }

    // What the shim calls.

    /// The WAL-index as it is, with the write lock held.
    ///
    /// Cheap where nothing was committed; pushes a descriptor where something was, and returns the commit's sequence number.
    pub(crate) fn observe(&self, index: &IndexHeader) -> Option<u64> {
        self.publish(index, Source::Writer)
    }

    /// As `observe`, after this connection has written these frames.
    pub(crate) fn commits_in_wal(&self, index: &IndexHeader, written: &mut WrittenFrames) -> Option<u64> {
        if !written.is_empty() {
            // Before it is published: whoever captures up to this commit finds them noted.
            self.frames.append(index, written);
            written.clear();
        }
        self.observe(index)
    }

    /// The WAL-index as a reader found it. Commits may have followed, so it counts only while no other is known.
    pub(crate) fn observe_first(&self, index: &IndexHeader) {
        self.publish(index, Source::Reader);
    }

    fn publish(&self, index: &IndexHeader, source: Source) -> Option<u64> {
        fault_point!("commit.publish");
        let mut published = self.published.lock();
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
    pub(super) fn publish_file(&self, state: &NewestState) -> u64 {
        self.advance(self.published.lock(), state, 1)
    }

    /// A WAL-index that was made for an empty WAL knows neither page size nor pages: where nothing else does, the file tells before it is changed.
    pub(super) fn note_size_before(&self, page_size: PageSize, pages: u32) {
        let mut published = self.published.lock();
        if published.end.frame == 0 && (published.page_size.is_none() || published.database_pages == 0) {
            (published.page_size, published.database_pages) = (Some(page_size), pages);
        }
    }

    fn advance(&self, mut published: MutexGuard<'_, Published>, state: &NewestState, first_frame: u32) -> u64 {
        let first_sight = !published.known;
        let committed_ms = now_ms();
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

    /// The WAL is to be restarted, with the write lock held and the WAL-index as given. False: the caller must append, or report busy.
    ///
    /// A writer waits for a moment only. A checkpoint that somebody asked for takes what it takes, as it does without us.
    pub(crate) fn may_restart(&self, index: &IndexHeader, asked_for: bool) -> bool {
        self.observe(index);
        fault_point!("gate.asked");
        // Nor does a writer that cannot append instead.
        let (tail, most_frames) = if asked_for || self.is_disk_nearly_full() {
            (Some(self.lock_tail()), u32::MAX)
        } else {
            (self.tail.try_lock_for(GATE_PATIENCE).map(TailGuard::new), self.most_gate_frames())
        };
        let Some(mut tail) = tail else { return false };
        match self.secure(&mut tail, most_frames) {
            Ok(()) => true,
            Err(error) => {
                log::debug!(target: "replicated", "{}: the WAL is not restarted yet: {error}", self.paths.database.display());
                drop(tail);
                self.hub.notify(Notice::Look(self.id));
                false
            }
        }
    }

    /// Whether the WAL may find no room to grow. A disk that does not say has room.
    fn is_disk_nearly_full(&self) -> bool {
        rustix::fs::statvfs(&self.paths.database).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < NEARLY_FULL_BYTES)
    }

    /// How many frames a writer encodes itself that wants to restart the WAL.
    pub(crate) fn most_gate_frames(&self) -> u32 {
        GATE_BYTES / self.published().page_size.unwrap_or(PageSize::MIN).get()
    }

    /// SQLite is about to destroy the WAL and cannot be refused. What cannot be saved costs a full upload later.
    pub(crate) fn wal_vanishes(&self) {
        if !self.is_known() {
            self.observe_without_index();
        }
        let mut tail = self.lock_tail();
        fault_point!("wal.vanishes");
        if let Err(error) = self.secure(&mut tail, u32::MAX) {
            log::warn!(target: "replicated", "{}: {error}", self.paths.database.display());
            self.lose(&mut tail, FullReason::SpoolLost);
        }
        self.wal_is_empty();
        self.stamp_due.store(true, Ordering::Relaxed);
        drop(tail);
        self.sync_seal();
        fault_point!("wal.vanished");
    }

    /// All of the WAL is in the database file, which alone is the newest state: SQLite holds the lock under which it begins a new generation,
    /// or is about to delete the WAL or to cut it to nothing. Frames are destroyed only later, with the tail locked.
    pub(crate) fn wal_is_empty(&self) {
        let mut published = self.published.lock();
        published.end = WalPos { salts: published.end.salts, ..WalPos::default() };
    }

    /// The WAL is about to be cut to that many bytes.
    pub(crate) fn wal_shrinks(&self, bytes: u64) {
        let published = self.published();
        let end = published.page_size.map_or(0, |size| crate::wal::end_offset(size, published.end.frame));
        if bytes >= end {
            // `journal_size_limit` cuts off what no commit is in.
            return;
        }
        let mut tail = self.lock_tail();
        fault_point!("wal.shrinks");
        if published.end.frame > 0 {
            // Sealed is what lay there before these frames, if anything.
            drop(tail);
            self.wal_vanishes();
        } else {
            self.preserve_wal(&mut tail);
            drop(tail);
            if bytes == 0 {
                self.sync_seal();
            }
        }
    }

    /// What the control file says of the WAL's end goes to disk before the WAL goes, where SQLite saw to it that the database file has it all:
    /// after a loss of power nothing else would tell.
    fn sync_seal(&self) {
        if self.is_file_synced() {
            self.sync_control();
        }
    }

    /// Syncs the control file, without the lock that a writer needs to restart the WAL.
    pub(crate) fn sync_control(&self) {
        let unsynced = self.lock_tail().unsynced();
        if let Some(control) = unsynced {
            // The next sync includes this one.
            let _ = fault_io!("control.sync").and_then(|()| control.sync_data());
            fault_point!("control.synced");
        }
    }

    /// SQLite has synced the WAL: its new header, maybe, which continues nothing that could be told by its salts.
    pub(crate) fn wal_synced(&self) {
        if self.begins_afresh.swap(false, Ordering::Relaxed) {
            self.sync_control();
        }
    }

    /// A snapshot that still needs frames gets them set aside before they are destroyed.
    fn preserve_wal(&self, tail: &mut Tail) {
        if !self.preserving.load(Ordering::Acquire) {
            return;
        }
        if let Some(preserver) = self.preserver.lock().active.as_mut().filter(|p| p.reads_wal()) {
            match tail.wal() {
                Ok(wal) => preserver.before_restart(wal),
                Err(error) => preserver.give_up(error.to_string()),
            }
        }
    }

    /// A fault of ours: replication of this database ends, the application goes on.
    pub(crate) fn poison(&self, why: &str) {
        let message =
            format!("a fault in the extension ({why}); closing the database everywhere in this process and opening it again recovers it");
        // A page that a snapshot needs may be gone.
        self.with_preserver(|preserver| preserver.give_up(why.to_owned()));
        self.lock_tail().fail(message.clone());
        self.progress.update(|f| {
            f.state = StopKind::Failed.into();
            f.last_error = Some(message);
        });
        // The uploader may be at something that is worth nothing any more.
        self.hub.notify(Notice::Look(self.id));
    }

    /// The TXID with which the bucket has everything that is committed so far, if no full state comes between and nothing fails for good.
    fn local_txid(&self, facts: &Facts) -> u64 {
        const PATIENCE: Duration = Duration::from_millis(100);
        let remote = facts.remote_txid.map_or(0, Txid::get);
        let tail = self.tail.try_lock_for(PATIENCE);
        let published = self.published();
        if published.sequence <= facts.acked_sequence {
            return remote;
        }
        let Some(tail) = tail else { return remote.max(1) + 1 };
        // Newer than the facts where an acknowledgement came between. An empty bucket begins with the snapshot 1-2.
        let newest = tail.state.acked.map_or(0, |acked| acked.txid.get()).max(remote).max(1);
        let is_under_way = match tail.mode {
            Mode::Full(_) => tail.state.captured.is_some(),
            _ => tail.inflight.is_some() || tail.state.attempt.is_some(),
        };
        newest + 1 + u64::from(is_under_way && !(tail.spool.is_empty() && published.is_captured(&tail)))
    }

    /// Names and values for people.
    pub(crate) fn status(&self, policy: &Policy) -> Vec<(&'static str, String)> {
        let facts = self.progress.facts();
        let published = self.published();
        let waiting = published.sequence.saturating_sub(facts.acked_sequence);
        let local = self.local_txid(&facts);
        let lag = published.oldest_waiting.filter(|_| waiting > 0).map(|oldest| oldest.elapsed()).unwrap_or_default();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            ("state", facts.state.as_str().to_owned()),
            ("local_txid", format!("{local:016x}")),
            ("remote_txid", or_dash(facts.remote_txid.map(|t| t.to_string()))),
            ("waiting_commits", waiting.to_string()),
            ("lag_ms", lag.as_millis().to_string()),
            ("durability", policy.durability().to_string()),
            ("max_lag_ms", policy.max_lag.as_millis().to_string()),
            ("last_success", or_dash(facts.last_success_ms.map(|ms| crate::types::TimestampMs(ms).to_string()))),
            ("last_error", or_dash(facts.last_error)),
            ("uploads", facts.uploads.to_string()),
            ("snapshots", facts.snapshots.to_string()),
            (
                "fencing",
                match facts.fencing {
                    None => "not probed",
                    Some(true) => "conditional",
                    Some(false) => "weak",
                }
                .to_owned(),
            ),
            ("replica", self.store.url().to_owned()),
        ]
    }

    fn secure(&self, tail: &mut Tail, most_frames: u32) -> Result<(), TailError> {
        let live = self.published.lock().live();
        tail.resolve(&live.end, &|| self.stamp());
        let frames = self.with_preserver(|p| p.frames_needed()).unwrap_or(0);
        if frames > most_frames {
            return Err(TailError::TooMuch { frames });
        }
        self.preserve_wal(tail);
        let result = tail.seal(&live, most_frames, self.stamp());
        if let Err(error) = &result
            && error.is_out_of_room()
        {
            // The user's limit, or the disk's: the WAL must not grow instead, where it can grow at all.
            log::warn!(target: "replicated", "{}: {error}", self.paths.database.display());
            self.lose(tail, FullReason::SpoolLost);
            return Ok(());
        }
        self.note_captured(tail);
        if result.is_ok() && tail.spool.is_crowded() {
            // Entries that wait are merged by the uploader, which may not have been told of frames as few as these.
            self.hub.notify(Notice::Look(self.id));
        }
        result
    }

    /// The header of a new WAL generation is about to be written.
    pub(crate) fn generation_begins(&self, salts: [u32; 2]) {
        let mut tail = self.lock_tail();
        fault_point!("generation.begins");
        let live = self.published.lock().live();
        tail.resolve(&live.end, &|| self.stamp());
        self.preserve_wal(&mut tail);
        // A restart by a connection that knows the log counts the first salt up; others choose it by chance.
        let follows = tail.state.captured.is_some_and(|captured| restarted_from(salts, captured.salts));
        self.begins_afresh.store(!follows, Ordering::Relaxed);
        if !tail.generation_begins(salts, &live.end) {
            self.lose(&mut tail, FullReason::ContinuityLost);
        }
        // All of the generation before is in the database file.
        self.published.lock().end = WalPos { salts, ..WalPos::default() };
    }

    /// The last lock on the database is about to be given up, after the WAL was deleted: nobody can have written since.
    pub(crate) fn stamp_clean(&self) {
        self.stamp_due.store(false, Ordering::Relaxed);
        let mut tail = self.lock_tail();
        if tail.state.sealed && !matches!(tail.mode, Mode::Stopped(..)) {
            fault_point!("stamp.take");
            let settled = stamp::settled(&self.paths.database, &|header| self.open_file()?.read_exact_at(header, 0), self.is_file_synced());
            tail.stamp(settled);
            if let Err(error) = tail.save() {
                log::warn!(target: "replicated", "{error}");
            }
            fault_point!("stamp.saved");
        }
    }

    /// Whether `before_write` has to be called.
    pub(crate) fn is_preserving(&self) -> bool {
        self.preserving.load(Ordering::Acquire)
    }

    /// A page of the database file is about to be overwritten.
    pub(crate) fn before_write(&self, offset: u64, bytes: usize, read: &mut dyn FnMut(&mut [u8], u64) -> bool) {
        if let Some(preserver) = &mut self.preserver.lock().active {
            preserver.before_write(offset, bytes, read);
        }
    }

    /// The database file is about to become shorter.
    pub(crate) fn before_truncate(&self, new_bytes: u64, read: &mut dyn FnMut(&mut [u8], u64) -> bool) {
        if let Some(preserver) = &mut self.preserver.lock().active {
            preserver.before_truncate(new_bytes, read);
        }
    }

    /// A checkpoint or transaction of this process begins or ends to write the database file.
    pub(crate) fn writes_file(&self, begins: bool) {
        let mut slot = self.preserver.lock();
        slot.writers = if begins { slot.writers + 1 } else { slot.writers.saturating_sub(1) };
        let waits = slot.writers == 0 && self.snapshot_waits.swap(false, Ordering::AcqRel);
        drop(slot);
        if waits {
            self.asked.fetch_add(1, Ordering::AcqRel);
            self.hub.notify(Notice::Look(self.id));
        }
    }

    /// A checkpoint of this process begins to write the database file.
    pub(crate) fn checkpoint_begins(&self) {
        self.writes_file(true);
        let mut marks = self.marks.lock();
        if marks.is_none() {
            // How what is captured relates to what is there is decided before the file is changed.
            let mut tail = self.lock_tail();
            let live = self.published.lock().live();
            tail.resolve(&live.end, &|| self.stamp());
            *marks = tail.control_file();
        }
        let known = marks.as_ref().map(|control| mark::write(control, None));
        drop(marks);
        self.warn_of_mark(known);
    }

    /// A checkpoint is about to write what no sync of the WAL has come before, as with `synchronous=OFF`: after a loss of power the file may have
    /// pages of commits that the WAL has lost, and what it held before counts no longer as being on disk.
    pub(crate) fn checkpoint_outruns_wal(&self) {
        let undone = self.lock_tail().file_may_be_lost();
        if undone {
            self.sync_control();
        }
    }

    /// The checkpoint that `checkpoint_begins` told of is about to give its lock up.
    pub(crate) fn checkpoint_ended(&self) {
        let Some(now) = self.stamp() else { return };
        let marked = self.marks.lock().as_ref().map(|control| mark::write(control, Some(Mark::of(&now))));
        self.warn_of_mark(marked);
    }

    fn warn_of_mark(&self, written: Option<std::io::Result<()>>) {
        if let Some(Err(error)) = written {
            log::debug!(target: "replicated", "{}: {error}", self.paths.control().display());
        }
    }

    /// Has the uploader look, where a snapshot waits for a transaction that may have ended.
    pub(super) fn look_for_snapshot(&self) {
        if self.snapshot_waits.swap(false, Ordering::AcqRel) {
            self.asked.fetch_add(1, Ordering::AcqRel);
            self.hub.notify(Notice::Look(self.id));
        }
    }

    /// Whether a snapshot could begin now, as far as writes to the database file go; if not, the next end of one wakes the uploader.
    pub(crate) fn awaits_writers(&self) -> bool {
        self.end_if_rolled_back();
        let slot = self.preserver.lock();
        let waits = slot.writers > 0;
        self.snapshot_waits.store(waits, Ordering::Release);
        waits
    }

    /// The database file was written to, or synced.
    pub(crate) fn note_synced(&self, synced: bool) {
        self.file_synced.store(synced, Ordering::Relaxed);
    }

    /// Has the disk keep the database file as it is, so that what is built on it outlives a loss of power.
    pub(super) fn sync_file(&self) {
        // Whoever writes meanwhile says so after this.
        self.note_synced(true);
        if let Err(error) = self.open_file().and_then(|file| file.sync()) {
            log::debug!(target: "replicated", "{}: {error}", self.paths.database.display());
            self.note_synced(false);
        }
    }

    pub(super) fn is_file_synced(&self) -> bool {
        self.file_synced.load(Ordering::Relaxed)
    }

    /// Waits until everything committed so far is in the bucket; the newest TXID, if there is one.
    pub(crate) fn sync(&self, limit: Duration) -> Result<Option<Txid>, WaitError> {
        self.progress.wait(self.ask_for_all()?, limit)
    }

    /// The same for the last handle, which is being closed: nothing is waited for that only the next open can bring on its way.
    pub(crate) fn sync_at_close(&self, limit: Duration) -> Result<(), WaitError> {
        self.progress.update(|f| f.awaits_open = false);
        self.progress.wait_at_close(self.ask_for_all()?, limit)
    }

    /// Has the uploader send everything committed so far at once. Returns the newest commit's number.
    fn ask_for_all(&self) -> Result<u64, WaitError> {
        if !self.is_known() {
            self.observe_without_index();
        }
        if !self.is_known() {
            return Err(WaitError::NotRead);
        }
        let sequence = self.published.lock().sequence;
        self.progress.look_again();
        self.urgent.fetch_max(sequence.max(1), Ordering::AcqRel);
        self.asked.fetch_add(1, Ordering::AcqRel);
        self.hub.notify(Notice::Look(self.id));
        Ok(sequence)
    }

    /// Waits until the bucket has a TXID; the newest that it has. Nothing is sent the sooner for it.
    pub(crate) fn wait_txid(&self, txid: Txid, limit: Duration) -> Result<Txid, WaitError> {
        if !self.is_known() {
            self.observe_without_index();
        }
        self.progress.wait_txid(txid, limit)
    }

    /// Commits up to this one shall go without a token of the budget, because somebody waits for them.
    pub(crate) fn hasten(&self, sequence: u64) {
        self.urgent.fetch_max(sequence, Ordering::AcqRel);
        self.call();
    }

    /// Has the uploader look, where it sleeps.
    fn call(&self) {
        // In one order with `doze`: either this sees that the uploader sleeps, or the uploader sees the call.
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.dozing.load(Ordering::SeqCst) {
            self.hub.notify(Notice::Look(self.id));
        }
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

    /// A program that asks before it has read anything: the WAL itself tells, as it tells SQLite's recovery.
    pub(super) fn observe_without_index(&self) -> Option<u64> {
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
    pub(super) fn observe_wal(&self, index: &IndexHeader) -> Option<u64> {
        self.publish(index, Source::Wal)
    }

    /// Opened again after the last handle was closed but before the uploader forgot it: look afresh, others may have written.
    pub(crate) fn reopened(&self) {
        let mut tail = self.lock_tail();
        self.closing.store(false, Ordering::Release);
        if tail.mode == Mode::Running {
            tail.mode = Mode::Unresolved;
        }
        let mut published = self.published.lock();
        (published.known, published.from_index) = (false, false);
        published.wake_frames = 1;
    }

    /// Has the uploader forget the database, which is `closing`, and waits until it has, for a moment.
    pub(crate) fn wait_forgotten(&self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        self.hub.notify(Notice::Look(self.id));
        self.progress.wait_released(PATIENCE);
    }

    /// The uploader forgets it: the control file's lock goes before a successor can take it.
    pub(crate) fn release(&self) {
        fault_point!("forget.release");
        // Closing the last descriptor gives the lock up.
        *self.marks.lock() = None;
        self.lock_tail().release();
        fault_point!("forget.released");
        self.progress.update(|f| f.released = true);
    }

    // What the uploader calls.

    pub(crate) fn published(&self) -> Published {
        *self.published.lock()
    }

    pub(crate) fn lock_tail(&self) -> TailGuard<'_> {
        TailGuard::new(self.tail.lock())
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

    /// The uploader is about to sleep; false where it was called since `calls` was read.
    pub(crate) fn doze(&self, calls: u64) -> bool {
        self.dozing.store(true, Ordering::SeqCst);
        self.calls.load(Ordering::SeqCst) == calls
    }

    /// It is awake: whoever waits from now on need not wake it.
    pub(crate) fn is_up(&self) {
        self.dozing.store(false, Ordering::SeqCst);
    }

    /// Gives continuity up; a snapshot that runs is worthless then.
    pub(crate) fn lose(&self, tail: &mut Tail, reason: FullReason) {
        if let Some(preserver) = &mut self.preserver.lock().active {
            preserver.give_up(reason.text().to_owned());
        }
        tail.lose(reason);
        self.note_captured(tail);
    }

    pub(crate) fn open_file(&self) -> io::Result<Box<dyn DatabaseFile>> {
        self.host.open_database(&self.paths.database)
    }

    /// Begins to preserve the state as it is now, if no checkpoint runs; `build` makes the preserver for it and completes what is published.
    pub(crate) fn begin_preserving<E>(
        &self,
        build: impl FnOnce(Published) -> Result<(Preserver, Published), E>,
    ) -> Result<Option<Published>, E> {
        let mut slot = self.preserver.lock();
        if slot.writers > 0 {
            return Ok(None);
        }
        let (preserver, published) = build(self.published_for_batch())?;
        slot.active = Some(preserver);
        self.preserving.store(true, Ordering::Release);
        Ok(Some(published))
    }

    /// Works with the preserver while SQLite's writes to the file wait.
    pub(crate) fn with_preserver<T>(&self, work: impl FnOnce(&mut Preserver) -> T) -> Option<T> {
        self.preserver.lock().active.as_mut().map(work)
    }

    pub(crate) fn end_preserving(&self) {
        self.preserving.store(false, Ordering::Release);
        self.preserver.lock().active = None;
    }

    /// What the database file looks like now; `None` where it cannot be told.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        stamp::take(&self.paths.database, &self.file_header().ok()?, self.is_file_synced())
    }

    /// The header of the database file, by a handle of its own.
    pub(crate) fn file_header(&self) -> io::Result<FileHeader> {
        let mut header = [0; HEADER_BYTES];
        self.open_file()?.read_exact_at(&mut header, 0)?;
        Ok(FileHeader::decode(&header))
    }

    /// The uploader looks now at what was committed outside the WAL.
    pub(crate) fn note_looked(&self) {
        self.published.lock().unseen_frames = 0;
    }

    /// Whether nothing is waiting to be sent, as far as is known.
    pub(crate) fn is_settled(&self, tail: &Tail) -> bool {
        let published = self.published.lock();
        tail.inflight.is_none()
            && tail.state.attempt.is_none()
            && tail.spool.is_empty()
            && tail.mode == Mode::Running
            && published.is_captured(tail)
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
