//! The local end of replication: which frames are captured, in which batch or spool entry, and what the control file says of it.
//!
//! Everything here is local and quick, and happens under the database's tail lock: by the uploader, which builds batches, and by SQLite's own
//! threads where frames must be made safe before SQLite destroys them. What has to wait for the network is in `uploader`.
//!
//! ```text
//!   frames of the WAL:   1 ... acked.end ... attempt.end ... captured ... live end
//!                          in the bucket     being sent      spooled      in the WAL only
//! ```

use std::fs::File;
use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::MutexGuard;

use super::batch::{BatchError, FramePages, WalFile};
use super::control::{Acked, Attempt, Control, FullReason, OpenTransaction, Stamp, State};
use super::frames::FrameLog;
use super::local::Paths;
use crate::fault::{fault_io, fault_point};
use crate::ltx::{Encoder, Header, LtxError, Reader, merge};
use crate::spool::{Spool, SpoolError, Stored, entry_header, is_disk_full};
use crate::types::{PageNo, PageSize, TimestampMs, Txid, WalPos};

/// A first salt that is greater by less than this is that of the same WAL, restarted.
const MOST_RESTARTS: u32 = 1 << 20;

/// Why local capture failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TailError {
    /// The control file cannot be written.
    #[error("control file {path}: {source}")]
    Control {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Frames cannot be read or encoded.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The spool cannot be read or written.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Too much to encode while a writer waits.
    #[error("{frames} frames are not replicated yet")]
    TooMuch { frames: u32 },
    /// A page of the database file cannot be read.
    #[error("page {page} of the database cannot be read")]
    Page { page: PageNo },
}

impl TailError {
    /// There is no room for what should be spooled, neither on the local disk nor in memory, or it is over the limit.
    pub(crate) fn is_out_of_room(&self) -> bool {
        match self {
            Self::Spool(error) => error.is_out_of_room(),
            Self::Batch(BatchError::Ltx(LtxError::Io(error))) => is_disk_full(error),
            // The control file has its blocks.
            _ => false,
        }
    }
}

impl From<LtxError> for TailError {
    fn from(error: LtxError) -> Self {
        Self::Batch(BatchError::Ltx(error))
    }
}

/// Why replication of a database stands still until somebody acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopKind {
    /// The local file and the bucket are not provably one history.
    Diverged,
    /// Another writer has taken our next name.
    Fenced,
    /// A fault of ours.
    Failed,
}

/// How far continuity is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The WAL has not been seen yet.
    Unresolved,
    /// Frames after `captured` follow on what is captured.
    Running,
    /// The full state must be sent.
    Full(FullReason),
    /// Nothing is sent.
    Stopped(StopKind, String),
}

/// The bytes of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Memory(Bytes),
    File(PathBuf),
}

/// A frozen batch on its way.
#[derive(Clone, Debug)]
pub(crate) struct Inflight {
    pub(crate) attempt: Attempt,
    pub(crate) body: Body,
    /// The commits that it contains.
    pub(crate) sequence: u64,
}

/// The live end of the WAL, as a commit or the WAL-index told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveEnd {
    pub(crate) end: WalPos,
    pub(crate) committed_ms: i64,
    pub(crate) sequence: u64,
}

/// A commit that changed the database file itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileCommit {
    pub(crate) page_size: PageSize,
    /// The database's size in pages.
    pub(crate) pages: u32,
    pub(crate) committed_ms: i64,
    pub(crate) sequence: u64,
    /// The file after it.
    pub(crate) stamp: Option<Stamp>,
}

/// Reads a page of the database file; false where that fails.
pub(crate) type ReadPage<'a> = dyn FnMut(PageNo, &mut [u8]) -> bool + 'a;

/// The tail, locked. A panic while it is held leaves it half changed: then it has failed, before anybody else sees it.
#[derive(Debug)]
pub(crate) struct TailGuard<'a>(MutexGuard<'a, Tail>);

impl<'a> TailGuard<'a> {
    pub(crate) const fn new(guard: MutexGuard<'a, Tail>) -> Self {
        Self(guard)
    }
}

impl Deref for TailGuard<'_> {
    type Target = Tail;

    fn deref(&self) -> &Tail {
        &self.0
    }
}

impl DerefMut for TailGuard<'_> {
    fn deref_mut(&mut self) -> &mut Tail {
        &mut self.0
    }
}

impl Drop for TailGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Why is told by whoever catches the panic.
            self.0.mode = Mode::Stopped(StopKind::Failed, String::new());
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tail {
    paths: Paths,
    /// `None` once the database is forgotten: closing a second descriptor later would drop the lock of a successor in this process.
    control: Option<Control>,
    pub(crate) state: State,
    pub(crate) spool: Spool,
    pub(crate) mode: Mode,
    pub(crate) inflight: Option<Inflight>,
    /// The commits that are captured.
    pub(crate) captured_sequence: u64,
    wal: Option<WalFile>,
    /// What is known of the WAL's frames without reading them.
    frames: Arc<FrameLog>,
    /// A batch of up to this many bytes of pages is kept in memory; a larger one goes through a file.
    memory_batch_bytes: u64,
    /// Commits that a power loss took and the bucket has stop replication.
    refuse_lost_tail: bool,
    /// The database file was another than the last checkpoint left, when it was first looked at.
    pub(crate) exchanged: bool,
    /// The machine was started again since the file was noted, and there was nothing in the WAL when it was first looked at.
    pub(crate) rebooted_without_wal: bool,
    /// Saved since the last sync to disk.
    unsynced: bool,
    /// The last attempt to save failed.
    unsaved: bool,
    /// SQLite has rolled a dead process's transaction back, through us: it had not been committed.
    rolled_back: bool,
}

impl Tail {
    pub(crate) fn new(paths: Paths, control: Control, state: State, spool: Spool, mode: Mode, memory_batch_bytes: u64) -> Self {
        Self {
            paths,
            control: Some(control),
            state,
            spool,
            mode,
            inflight: None,
            captured_sequence: 0,
            wal: None,
            frames: Arc::default(),
            memory_batch_bytes,
            refuse_lost_tail: false,
            exchanged: false,
            rebooted_without_wal: false,
            unsynced: false,
            unsaved: false,
            rolled_back: false,
        }
    }

    pub(crate) fn save(&mut self) -> Result<(), TailError> {
        if self.has_failed() {
            // What it was at is half done.
            return Ok(());
        }
        self.write()
    }

    fn write(&mut self) -> Result<(), TailError> {
        self.state.spool_first = self.spool.first();
        self.state.spool_next = self.spool.next();
        self.unsynced = true;
        let saved = self.control.as_mut().map_or(Ok(()), |control| control.save(&self.state));
        self.unsaved = saved.is_err();
        saved.map_err(|source| TailError::Control { path: self.paths.control(), source })
    }

    /// Saves what could not be saved before.
    pub(crate) fn save_if_unsaved(&mut self) -> Result<(), TailError> {
        if self.unsaved { self.save() } else { Ok(()) }
    }

    /// The file to be synced so that what was saved survives a power loss, without this lock: a writer that restarts the WAL would wait for
    /// the disk. What a power loss takes before that costs a comparison or a full upload, never a commit.
    pub(crate) fn unsynced(&mut self) -> Option<Arc<File>> {
        std::mem::take(&mut self.unsynced).then_some(self.control.as_ref()?.file())
    }

    /// Decides, once, how what is captured relates to the WAL as it is. `stamp` reads the database file's stamp as it is now.
    pub(crate) fn resolve(&mut self, live: &WalPos, stamp: &dyn Fn() -> Option<Stamp>) {
        if self.mode != Mode::Unresolved {
            return;
        }
        fault_point!("resolve");
        log::debug!(
            target: "replicated",
            "{}: the WAL is at {live}; captured {:?}, sealed {}, then {:x?}; the file was {:?} and is {:?}",
            self.paths.database.display(), self.state.captured, self.state.sealed, self.state.next_salts, self.state.stamp, stamp()
        );
        self.exchanged = self.was_exchanged(stamp);
        let rebooted = matches!((self.state.stamp, stamp()), (Some(then), Some(now)) if then.boot != now.boot);
        self.rebooted_without_wal = rebooted && live.frame == 0;
        self.mode = match self.judge(live, stamp) {
            Mode::Full(FullReason::BucketAhead) if self.state.full.is_none() && self.refuse_lost_tail => self.lost_tail_refused(),
            mode => mode,
        };
        if self.mode == Mode::Running && self.state.open_transaction.take().is_some() {
            // It left nothing.
            self.stamp(stamp());
            self.save_or_warn();
        }
        // From here on it counts as it is; before this no checkpoint of ours has begun.
        self.mark(stamp().as_ref());
        match &self.mode {
            Mode::Full(reason) => self.lose(*reason),
            Mode::Stopped(kind, message) => self.stop(*kind, message.clone()),
            Mode::Running => log::debug!(target: "replicated", "{}: continuing at {live}", self.paths.database.display()),
            Mode::Unresolved => {}
        }
    }

    fn judge(&mut self, live: &WalPos, stamp: &dyn Fn() -> Option<Stamp>) -> Mode {
        if let Some(reason) = self.state.full {
            return Mode::Full(reason);
        }
        if let (Some(earlier), None) = (self.state.restored_earlier, self.state.adopt) {
            return Mode::Stopped(
                StopKind::Diverged,
                format!(
                    "this database was restored to TXID {}, the bucket goes on to {}: nothing is sent over it. \
                     Restore the newest state, or use another replica URL, or declare this file the truth with `replicated adopt`",
                    earlier.txid, earlier.newest
                ),
            );
        }
        let adopted = |adopt: Txid| self.state.acked.is_none_or(|acked| adopt >= acked.txid);
        if self.state.captured.is_some() && self.state.adopt.is_some_and(adopted) {
            return Mode::Full(FullReason::Adopted);
        }
        let Some(captured) = self.state.captured.filter(|_| self.state.acked.is_some()) else {
            // Nothing is known of the bucket, so the bucket decides. Until then frames are kept from the start of the WAL; what was spooled of
            // an earlier one is in the database file.
            self.spool.clear();
            self.state.captured = Some(start_of(live));
            // With nothing in the WAL, whatever generation SQLite begins next follows on.
            (self.state.sealed, self.state.next_salts, self.state.stamp, self.state.open_transaction) = (live.frame == 0, None, None, None);
            return Mode::Running;
        };
        let live = &self.with_salts(live);
        let sealed_before_live = self.state.sealed && self.state.next_salts == Some(live.salts);
        let same_log = live.salts == captured.salts;
        if live.frame == 0 && (sealed_before_live && self.kept_earlier_logs(stamp) || self.is_unchanged(stamp)) {
            return Mode::Running;
        }
        if same_log && live.frame < captured.frame {
            // A power loss took frames, all of them even where only the WAL's header had been synced.
            return Mode::Full(FullReason::BucketAhead);
        }
        if live.frame == 0 {
            return self.judge_lost(live, stamp);
        }
        if (same_log || sealed_before_live) && self.exchanged {
            return Mode::Full(FullReason::Exchanged);
        }
        if same_log {
            return if self.wal().is_ok_and(|w| w.holds(&captured)) && self.kept_earlier_logs(stamp) {
                self.state.sealed = false;
                Mode::Running
            } else {
                Mode::Full(FullReason::BucketAhead)
            };
        }
        if sealed_before_live && !self.kept_earlier_logs(stamp) {
            return Mode::Full(FullReason::BucketAhead);
        }
        if sealed_before_live || self.is_unchanged(stamp) {
            self.begin_at(live);
            return Mode::Running;
        }
        self.judge_lost(live, stamp)
    }

    /// SQLite does not look at the header of a WAL that has nothing else, as a power loss may leave it. The salts are there.
    fn with_salts(&mut self, live: &WalPos) -> WalPos {
        if live.frame > 0 || live.salts != [0; 2] {
            return *live;
        }
        let header = self.wal().and_then(WalFile::header);
        header.map_or(*live, |header| WalPos { salts: header.salts, ..WalPos::default() })
    }

    /// Has commits that a power loss took stop replication where the bucket has them.
    pub(crate) const fn refuse_lost_tail(&mut self) {
        self.refuse_lost_tail = true;
    }

    fn lost_tail_refused(&self) -> Mode {
        let newest = self.state.attempt.map(|a| a.txid).or(self.state.acked.map(|a| a.txid));
        Mode::Stopped(
            StopKind::Diverged,
            format!(
                "a power loss took commits that the bucket still has, up to TXID {} at least, and refuse_lost_tail is set: nothing is sent. Restore \
                 the newest state, or declare this file the truth with `replicated adopt`",
                newest.map_or_else(|| "?".to_owned(), |txid| txid.to_string())
            ),
        )
    }

    /// Whether the option asks to stop there.
    pub(crate) const fn refuses_lost_tail(&self) -> bool {
        self.refuse_lost_tail
    }

    /// Whether the file under this WAL is another than the one that it belongs to.
    fn was_exchanged(&self, stamp: &dyn Fn() -> Option<Stamp>) -> bool {
        match (&self.control, stamp()) {
            (Some(control), Some(now)) => control.was_exchanged(&now),
            _ => false,
        }
    }

    /// Notes what the database file looks like, or that nothing is known of it because something else than a checkpoint writes to it.
    pub(crate) fn mark(&self, now: Option<&Stamp>) {
        if let Some(Err(error)) = self.control.as_ref().map(|control| control.mark(now)) {
            log::debug!(target: "replicated", "{}: {error}", self.paths.control().display());
        }
    }

    /// The control file, for whoever notes something in it without this lock.
    pub(crate) fn control_file(&self) -> Option<Arc<File>> {
        self.control.as_ref().map(Control::file)
    }

    /// Whether the database file has all of the generations before this one: with `synchronous=OFF` it may have lost them with the power.
    fn kept_earlier_logs(&self, stamp: &dyn Fn() -> Option<Stamp>) -> bool {
        !matches!((self.state.stamp, stamp()), (Some(then), Some(now)) if !then.is_durable(&now))
    }

    /// Whether the database file holds what was captured last, and nothing else.
    fn is_unchanged(&self, stamp: &dyn Fn() -> Option<Stamp>) -> bool {
        let (true, Some(then), Some(now)) = (self.state.sealed, self.state.stamp, stamp()) else { return false };
        // A transaction that was cut off has touched the file. It left nothing where SQLite rolled it back, which it does unless it was committed.
        // A commit to a WAL need not count the change counter up: in that mode somebody else may have rolled it back, and committed since.
        let left_nothing = |told: bool| told && (self.rolled_back || !now.is_wal) && then.has_same_content(&now) && then.is_durable(&now);
        match self.state.open_transaction {
            None => then.still_holds(&now),
            Some(OpenTransaction::Journaled) => left_nothing(true),
            Some(OpenTransaction::Uncounted) => left_nothing(self.rolled_back),
            Some(OpenTransaction::Unprotected) => false,
        }
    }

    /// Continuity is lost: is this file at least provably the newer one?
    fn judge_lost(&self, live: &WalPos, stamp: &dyn Fn() -> Option<Stamp>) -> Mode {
        if self.state.acked.is_none() {
            // There is nothing that this file would have to continue. Whether the bucket has something else is asked there.
            return Mode::Full(FullReason::ContinuityLost);
        }
        let follows = |salts: [u32; 2]| live.salts != salts && restarted_from(live.salts, salts);
        if self.state.captured.is_some_and(|captured| follows(captured.salts)) || self.state.next_salts.is_some_and(follows) {
            return Mode::Full(FullReason::ContinuityLost);
        }
        if let (Some(then), Some(now)) = (self.state.stamp, stamp()) {
            // The change counter only grows. An equal one under a changed file proves nothing.
            let counted = now.header_words[0].wrapping_sub(then.header_words[0]);
            if (1..1 << 30).contains(&counted) {
                return Mode::Full(FullReason::ContinuityLost);
            }
            // Where a process died in the midst of a transaction the file is its work, whatever became of it.
            if counted == 0 && self.state.sealed && self.state.open_transaction.is_some() {
                return Mode::Full(FullReason::Unprotected);
            }
            // Outside the WAL a file that was touched without a commit is one in which somebody else's transaction was rolled back.
            if counted == 0 && !then.is_wal && !now.is_wal {
                return Mode::Full(FullReason::ContinuityLost);
            }
            // The same but for a write that the clock's tick may hide, which can only have come after the stamp, or for what a loss of power took.
            if self.state.sealed && then.is_same_file(&now) {
                return Mode::Full(FullReason::ContinuityLost);
            }
            if then.may_have_lost_power(&now, self.rolled_back) {
                return Mode::Full(FullReason::BucketAhead);
            }
        }
        Mode::Stopped(
            StopKind::Diverged,
            "the database file is neither provably newer nor provably unchanged since the last replicated commit (was an older copy put in its \
             place?): nothing is sent. Restore the newest state, or declare this file the truth with `replicated adopt`"
                .to_owned(),
        )
    }

    /// Whether a fault of ours has ended it. That lasts until the database is opened anew.
    pub(crate) const fn has_failed(&self) -> bool {
        matches!(self.mode, Mode::Stopped(StopKind::Failed, _))
    }

    /// A fault of ours: nothing that is known here is trusted any more, and the next open sends the full state.
    pub(crate) fn fail(&mut self, message: String) {
        self.stop(StopKind::Failed, message);
        self.give_up(FullReason::Fault);
        if let Err(error) = self.write() {
            log::warn!(target: "replicated", "{error}");
        }
    }

    /// Gives continuity up: the full state will be sent.
    pub(crate) fn lose(&mut self, reason: FullReason) {
        if self.has_failed() {
            return;
        }
        let level = if reason == FullReason::First { log::Level::Debug } else { log::Level::Warn };
        let newest = self.state.attempt.map(|a| a.txid).or(self.state.acked.map(|a| a.txid));
        let lost_tail = newest.filter(|_| reason == FullReason::BucketAhead);
        log::log!(
            target: "replicated",
            level,
            "{}: the full state will be sent: {}{}",
            self.paths.database.display(),
            reason.text(),
            lost_tail.map_or_else(String::new, |txid| format!("; they can be restored with TXID {txid}"))
        );
        self.mode = Mode::Full(reason);
        self.give_up(reason);
        fault_point!("lose.save");
        self.save_or_warn();
        fault_point!("lose.saved");
        if let Err(error) = self.spool.remove_stale(self.state.attempt.map(|a| a.txid)) {
            log::warn!(target: "replicated", "{error}");
        }
    }

    fn give_up(&mut self, reason: FullReason) {
        self.state.full = Some(reason);
        self.state.captured = None;
        self.state.sealed = false;
        self.state.next_salts = None;
        self.spool.clear();
    }

    pub(crate) fn stop(&mut self, kind: StopKind, message: String) {
        if self.has_failed() && kind != StopKind::Failed {
            return;
        }
        log::error!(target: "replicated", "{}: replication stopped: {message}", self.paths.database.display());
        self.mode = Mode::Stopped(kind, message);
    }

    /// How many frames are in the WAL only. Notices a generation that began with and without us.
    pub(crate) fn uncaptured_frames(&mut self, live: &WalPos) -> u32 {
        let Some(captured) = self.state.captured else { return 0 };
        if live.frame == 0 {
            return 0;
        }
        if live.salts == captured.salts {
            if live.frame < captured.frame {
                self.lose(FullReason::ContinuityLost);
                return 0;
            }
            if live.frame > captured.frame {
                // The generation goes on after a seal that nothing came of.
                (self.state.sealed, self.state.next_salts) = (false, None);
            }
            return live.frame - captured.frame;
        }
        if self.state.sealed && self.state.next_salts == Some(live.salts) {
            self.begin_at(live);
            return live.frame;
        }
        self.lose(FullReason::ContinuityLost);
        0
    }

    /// What is known of the WAL's frames, for those who write them.
    pub(crate) fn frames(&self) -> Arc<FrameLog> {
        Arc::clone(&self.frames)
    }

    fn begin_at(&mut self, live: &WalPos) {
        self.state.captured = Some(start_of(live));
        self.state.sealed = false;
        self.state.next_salts = None;
    }

    /// Encodes what is in the WAL only into the spool, unless that is more than `most_frames`.
    pub(crate) fn capture_to_spool(&mut self, live: &LiveEnd, most_frames: u32) -> Result<(), TailError> {
        let frames = self.uncaptured_frames(&live.end);
        if frames > most_frames {
            return Err(TailError::TooMuch { frames });
        }
        if frames > 0
            && let Some(captured) = self.state.captured
        {
            fault_point!("capture.begin");
            let wal = open_wal(&mut self.wal, &self.paths)?;
            let pages = wal.committed_pages(&self.frames, &captured, &live.end)?;
            let mut header =
                entry_header(pages.page_size, pages.commit_pages, TimestampMs(live.committed_ms), self.state.node_id, self.spool.next());
            header.set_wal_range(captured.frame, &pages.end);
            self.spool.append(|out| wal.encode(&pages, &header, out).map(drop).map_err(TailError::Batch))?;
            fault_point!("capture.spooled");
            self.state.page_size = pages.page_size.get();
            self.state.captured = Some(pages.end);
            self.captured_sequence = live.sequence;
            self.save()?;
            fault_point!("capture.saved");
        }
        Ok(())
    }

    /// What is noted of the database file will not be true of it after a loss of power; whether it would have been until now.
    pub(crate) fn file_may_be_lost(&mut self) -> bool {
        let was_safe = self.state.stamp.as_mut().is_some_and(|stamp| std::mem::take(&mut stamp.synced));
        if was_safe {
            self.save_or_warn();
        }
        was_safe
    }

    /// A rollback-mode transaction is about to write to the database file, which looks as given. False where somebody else has written to it
    /// since the last captured commit.
    pub(crate) fn begins_in_file(&mut self, transaction: OpenTransaction, now: Option<Stamp>) -> Result<bool, TailError> {
        if let Mode::Stopped(..) = self.mode {
            // See `seal`.
            if self.state.sealed {
                (self.state.sealed, self.state.next_salts) = (false, None);
                self.save()?;
            }
            return Ok(true);
        }
        if self.state.captured.is_none() {
            return Ok(true);
        }
        let words = |stamp: Option<Stamp>| stamp.map(|s| s.header_words);
        if !self.state.sealed || self.state.stamp.is_some() && words(self.state.stamp) != words(now) {
            return Ok(false);
        }
        self.state.stamp = self.state.stamp.or(now);
        self.state.next_salts = None;
        // What one without a journal left, and nothing has captured since, no later journal can undo.
        let left = self.state.open_transaction.filter(|&left| left == OpenTransaction::Unprotected);
        self.state.open_transaction = left.or(Some(transaction));
        self.save()?;
        Ok(true)
    }

    /// Encodes the pages of a commit that is in the database file into the spool: `pages`, ascending, and what else lies below its size.
    pub(crate) fn commits_in_file(
        &mut self,
        commit: &FileCommit,
        pages: impl Iterator<Item = u32>,
        read: &mut ReadPage<'_>,
    ) -> Result<(), TailError> {
        self.state.open_transaction = None;
        if self.state.captured.is_none() || matches!(self.mode, Mode::Stopped(..)) {
            return self.save();
        }
        let header = entry_header(commit.page_size, commit.pages, TimestampMs(commit.committed_ms), self.state.node_id, self.spool.next());
        self.spool.append(|out| {
            let mut encoder = Encoder::new(out, &header)?;
            let mut content = vec![0; commit.page_size.bytes()];
            for page in pages.filter_map(PageNo::new) {
                if page.get() > commit.pages {
                    break;
                }
                if page == commit.page_size.lock_page() {
                    continue;
                }
                if !read(page, &mut content) {
                    return Err(TailError::Page { page });
                }
                encoder.page(page, &content)?;
            }
            encoder.finish()?;
            Ok::<_, TailError>(())
        })?;
        self.state.page_size = commit.page_size.get();
        (self.state.captured, self.state.sealed, self.state.next_salts) = (Some(WalPos::default()), true, None);
        self.state.stamp = commit.stamp;
        self.captured_sequence = commit.sequence;
        self.save()
    }

    /// SQLite is about to roll back what a dead process left in the database file, which looks as given.
    pub(crate) fn rolls_back_in_file(&mut self, now: Option<Stamp>) {
        self.rolled_back = true;
        let untouched = matches!((self.state.stamp, now), (Some(then), Some(now)) if then.still_holds(&now));
        if self.mode == Mode::Unresolved && self.state.sealed && untouched && self.state.open_transaction.is_none() {
            // It died when it had synced its journal and not written to the database yet. From here on the file's times tell nothing.
            self.state.open_transaction = Some(OpenTransaction::Journaled);
            self.save_or_warn();
        }
    }

    /// A transaction that wrote to the database file was rolled back, by its journal: the file holds what it held before.
    pub(crate) fn rolled_back_in_file(&mut self, now: Option<Stamp>) -> Result<(), TailError> {
        if self.mode == Mode::Unresolved {
            // Still to be judged by what is noted.
            return Ok(());
        }
        let same = matches!((self.state.stamp, now), (Some(then), Some(now)) if then.header_words == now.header_words);
        if self.state.captured.is_some() && self.state.sealed && same && !matches!(self.mode, Mode::Stopped(..)) {
            self.state.stamp = now;
        }
        self.state.open_transaction = None;
        self.save()
    }

    /// Makes everything safe that SQLite is about to destroy, so that a generation of the WAL may end.
    pub(crate) fn seal(&mut self, live: &LiveEnd, most_frames: u32, stamp: Option<Stamp>) -> Result<(), TailError> {
        if let Mode::Stopped(..) = self.mode {
            // What is committed while nothing is captured must never pass for captured: a later open then finds continuity lost.
            if self.state.sealed && live.end.frame > 0 && self.state.captured != Some(live.end) {
                (self.state.sealed, self.state.next_salts) = (false, None);
                self.save()?;
            }
            return Ok(());
        }
        fault_point!("seal.begin");
        self.capture_to_spool(live, most_frames)?;
        if self.inflight.is_none() && !matches!(self.mode, Mode::Full(_)) {
            // A predecessor's, which the uploader has not come to yet: its frames go now. Where it cannot be built the uploader finds that out.
            self.rebuild_attempt()?;
        }
        self.save_attempt()?;
        self.spool.settle();
        if self.state.captured.is_some() {
            self.state.sealed = true;
            self.stamp(stamp);
        }
        self.wal = None;
        self.save()?;
        fault_point!("seal.saved");
        Ok(())
    }

    /// Notes what the database file looks like. What was known to be on disk stays so while nobody writes.
    pub(crate) fn stamp(&mut self, now: Option<Stamp>) {
        let durable = matches!((self.state.stamp, now), (Some(then), Some(now)) if then.synced && then.is_same_file(&now));
        self.state.stamp = now.map(|now| Stamp { synced: now.synced || durable, ..now });
    }

    /// The bytes of a batch on its way go to disk, so that a successor can send exactly them.
    fn save_attempt(&mut self) -> Result<(), TailError> {
        let Some(inflight) = &mut self.inflight else { return Ok(()) };
        let Body::Memory(bytes) = &inflight.body else { return Ok(()) };
        let path = self.spool.attempt_path(inflight.attempt.txid);
        let write_error = |source| SpoolError::Io { path: path.clone(), source };
        fault_io!("attempt.write").map_err(write_error)?;
        // What a full disk does not take is still here. A successor misses it, and sends the full state.
        let _stored = self.spool.create_attempt(inflight.attempt.txid, |out| out.write_all(bytes).map_err(write_error))?;
        fault_point!("attempt.written");
        inflight.attempt.in_file = true;
        self.state.attempt = Some(inflight.attempt);
        Ok(())
    }

    /// SQLite writes the header of a new generation.
    ///
    /// False where frames of the one before may have been lost by that.
    pub(crate) fn generation_begins(&mut self, salts: [u32; 2], live: &WalPos) -> bool {
        let Some(captured) = self.state.captured else { return true };
        if let Mode::Stopped(..) = self.mode {
            // What goes on in a file that was not recognised must not vouch for it at the next open.
            return true;
        }
        if captured.salts == salts || self.state.next_salts == Some(salts) {
            return true;
        }
        fault_point!("generation.save");
        if self.state.sealed {
            self.state.next_salts = Some(salts);
            self.save_or_warn();
        } else if captured.frame == 0 && live.frame == 0 {
            // Nothing was ever committed to the generation before: a transaction that was rolled back had written its header.
            self.state.captured = Some(WalPos { salts, ..WalPos::default() });
            self.save_or_warn();
        } else {
            return false;
        }
        fault_point!("generation.saved");
        true
    }

    /// Freezes the next batch: everything that is captured or in the WAL becomes one LTX file with the next TXID.
    pub(crate) fn freeze(&mut self, live: &LiveEnd) -> Result<(), TailError> {
        let Some(acked) = self.state.acked else { return Ok(()) };
        let txid = acked.txid.next();
        if !self.spool.is_empty() {
            self.capture_to_spool(live, u32::MAX)?;
            return self.freeze_spool(txid);
        }
        if self.uncaptured_frames(&live.end) == 0 {
            return Ok(());
        }
        let Some(captured) = self.state.captured else { return Ok(()) };
        let wal = open_wal(&mut self.wal, &self.paths)?;
        let pages = wal.committed_pages(&self.frames, &captured, &live.end)?;
        let mut attempt = Attempt {
            txid,
            start: captured,
            end: pages.end,
            commit_pages: pages.commit_pages,
            timestamp_ms: live.committed_ms,
            size_bytes: 0,
            checksum: 0,
            in_file: pages.content_bytes() > self.memory_batch_bytes,
        };
        let header = attempt_header(&attempt, &pages, self.state.node_id);
        let body = if attempt.in_file {
            let stored = self.spool.create_attempt(txid, |out| {
                let finished = wal.encode(&pages, &header, out)?;
                (attempt.size_bytes, attempt.checksum) = (finished.size_bytes, finished.file_checksum);
                Ok::<_, TailError>(())
            })?;
            // Where it is in memory the WAL has it, too.
            attempt.in_file = matches!(stored, Stored::File(_));
            self.body(txid, stored)
        } else {
            let finished = wal.encode(&pages, &header, Vec::new())?;
            (attempt.size_bytes, attempt.checksum) = (finished.size_bytes, finished.file_checksum);
            Body::Memory(finished.out.into())
        };
        self.state.page_size = pages.page_size.get();
        self.state.captured = Some(pages.end);
        self.captured_sequence = live.sequence;
        self.begin_attempt(attempt, body)
    }

    fn freeze_spool(&mut self, txid: Txid) -> Result<(), TailError> {
        self.spool.bound()?;
        let Some((readers, mut header)) = self.spool.readers()? else { return Ok(()) };
        (header.min_txid, header.max_txid, header.node_id) = (txid, txid, self.state.node_id);
        let path = self.spool.attempt_path(txid);
        // A successor finds it in the file, or misses it.
        let mut attempt = Attempt {
            txid,
            start: WalPos::default(),
            end: header.wal_end().unwrap_or_default(),
            commit_pages: header.commit_pages,
            timestamp_ms: header.timestamp.0,
            size_bytes: 0,
            checksum: 0,
            in_file: true,
        };
        let stored = self.spool.create_attempt(txid, |out| {
            let finished = merge(readers, &header, out).map_err(|error| SpoolError::of(&path, error))?;
            (attempt.size_bytes, attempt.checksum) = (finished.size_bytes, finished.file_checksum);
            Ok::<_, TailError>(())
        })?;
        self.spool.clear();
        self.begin_attempt(attempt, self.body(txid, stored))?;
        fault_point!("freeze.spool-sent");
        Ok(self.spool.remove_stale(Some(txid))?)
    }

    fn body(&self, txid: Txid, stored: Stored) -> Body {
        match stored {
            Stored::File(_) => Body::File(self.spool.attempt_path(txid)),
            Stored::Memory(bytes) => Body::Memory(bytes),
        }
    }

    fn begin_attempt(&mut self, attempt: Attempt, body: Body) -> Result<(), TailError> {
        fault_point!("freeze.encoded");
        self.inflight = Some(Inflight { attempt, body, sequence: self.captured_sequence });
        self.state.attempt = Some(attempt);
        fault_point!("attempt.save");
        self.save()?;
        fault_point!("attempt.saved");
        Ok(())
    }

    /// Builds the batch again that a predecessor may have sent; false where its bytes cannot be had any more.
    pub(crate) fn rebuild_attempt(&mut self) -> Result<bool, TailError> {
        let Some(attempt) = self.state.attempt else { return Ok(true) };
        fault_point!("attempt.rebuild");
        let body = if attempt.in_file {
            let path = self.spool.attempt_path(attempt.txid);
            // A power loss can leave a file of the right length without its content.
            is_intact(&path, &attempt).then_some(Body::File(path))
        } else {
            self.encode_attempt(&attempt).unwrap_or_default().map(Body::Memory)
        };
        let Some(body) = body else { return Ok(false) };
        self.inflight = Some(Inflight { attempt, body, sequence: 0 });
        Ok(true)
    }

    fn encode_attempt(&mut self, attempt: &Attempt) -> Result<Option<Bytes>, TailError> {
        let node_id = self.state.node_id;
        let wal = open_wal(&mut self.wal, &self.paths)?;
        let pages = wal.pages(&attempt.start, attempt.end.frame)?;
        if pages.end != attempt.end {
            return Ok(None);
        }
        let finished = wal.encode(&pages, &attempt_header(attempt, &pages, node_id), Vec::new())?;
        Ok((finished.file_checksum == attempt.checksum).then(|| finished.out.into()))
    }

    /// The bucket has the batch that was on its way.
    pub(crate) fn acknowledged(&mut self) -> Result<Option<Inflight>, TailError> {
        let Some(inflight) = self.inflight.take() else { return Ok(None) };
        self.state.acked = Some(Acked { txid: inflight.attempt.txid, end: inflight.attempt.end });
        self.state.attempt = None;
        fault_point!("ack.save");
        self.save()?;
        fault_point!("ack.saved");
        if inflight.attempt.in_file {
            self.spool.remove_attempt(inflight.attempt.txid);
        }
        Ok(Some(inflight))
    }

    /// Merges waiting spool entries.
    pub(crate) fn merge_waiting(&mut self) -> Result<(), TailError> {
        self.settle();
        self.spool.merge_waiting()?;
        Ok(())
    }

    /// Puts what a full disk did not take there, if it has room now. The control file speaks of it already.
    fn settle(&mut self) {
        self.spool.settle();
        if let Some(Inflight { attempt: Attempt { in_file: true, txid, .. }, body: Body::Memory(bytes), .. }) = &self.inflight
            && !self.spool.has_attempt()
        {
            let path = self.spool.attempt_path(*txid);
            let io = |source| SpoolError::Io { path: path.clone(), source };
            if let Err(error) = self.spool.create_attempt(*txid, |out| out.write_all(bytes).map_err(io)) {
                log::debug!(target: "replicated", "{error}");
            }
        }
    }

    pub(crate) fn wal(&mut self) -> Result<&WalFile, BatchError> {
        open_wal(&mut self.wal, &self.paths)
    }

    /// Lets the control file and its lock go.
    pub(crate) fn release(&mut self) {
        self.settle();
        self.control = None;
    }

    fn save_or_warn(&mut self) {
        if let Err(error) = self.save() {
            log::warn!(target: "replicated", "{error}");
        }
    }
}

/// Whether a generation of the WAL is an earlier one, restarted by connections that know the log: each adds one to the first salt, where others choose
/// it by chance. Salts of zero are those of no WAL at all, outside of WAL mode, and nothing follows on them or from them.
pub(super) fn restarted_from(salts: [u32; 2], earlier: [u32; 2]) -> bool {
    salts != [0; 2] && earlier != [0; 2] && salts[0].wrapping_sub(earlier[0]) < MOST_RESTARTS
}

/// The WAL's start in the generation of a place.
const fn start_of(pos: &WalPos) -> WalPos {
    WalPos { salts: pos.salts, frame: 0, checksum: [0, 0] }
}

fn attempt_header(attempt: &Attempt, pages: &FramePages, node_id: u64) -> Header {
    let mut header = Header::new(pages.page_size, pages.commit_pages, attempt.txid, attempt.txid, TimestampMs(attempt.timestamp_ms));
    header.set_wal_range(attempt.start.frame, &pages.end);
    header.node_id = node_id;
    header
}

/// Whether a file holds the attempt's bytes.
fn is_intact(path: &Path, attempt: &Attempt) -> bool {
    let Ok(file) = File::open(path) else { return false };
    if !file.metadata().is_ok_and(|m| m.len() == attempt.size_bytes) {
        return false;
    }
    let (mut reader, mut page) = (Reader::new(file), Vec::new());
    while let Ok(next) = reader.next_page(&mut page) {
        if next.is_none() {
            return reader.summary().is_some_and(|s| s.file_checksum == attempt.checksum);
        }
    }
    false
}

fn open_wal<'a>(slot: &'a mut Option<WalFile>, paths: &Paths) -> Result<&'a WalFile, BatchError> {
    if slot.as_ref().is_none_or(|w| !w.is_current()) {
        *slot = Some(WalFile::open(&paths.wal)?);
    }
    slot.as_ref().ok_or_else(|| BatchError::Io { path: paths.wal.clone(), source: std::io::ErrorKind::NotFound.into() })
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
