//! The local end of replication: which frames are captured, in which batch or spool entry, and what the control file says of it.
//!
//! Everything here is local and quick, and happens under the database's tail lock: by the uploader, which builds batches, and by SQLite's own
//! threads where frames must be made safe before SQLite destroys them, in whichever process. What has to wait for the network is in `uploader`.
//!
//! ```text
//!   frames of the WAL:   1 ... acked.end ... attempt.end ... captured ... live end
//!                          in the bucket     being sent      spooled      in the WAL only
//! ```

mod attempt;
mod capture;
mod continuity;
#[cfg(test)]
mod tests;
mod together;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::batch::{BatchError, WalFile};
use super::control::{Control, FullReason, Stamp, State};
use super::frames::FrameLog;
use super::local::Paths;
use super::shared::{Locks, Shared};
use crate::fault::fault_point;
use crate::logging::{Unless, event, repeated_event};
use crate::ltx::LtxError;
use crate::spool::{Spool, SpoolError, is_disk_full};
use crate::types::{PageNo, Txid, WalPos};

pub(crate) use self::attempt::{Body, Inflight};
pub(crate) use self::capture::FileCommit;
pub(crate) use self::continuity::{restarted_from, undecided};
pub(crate) use self::together::TailGuard;

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
    /// The uploader of another process reads the full state, which needs what is there.
    #[error("the full state is being read by another process")]
    Preserved,
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

/// The live end of the WAL, as a commit or the WAL-index told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveEnd {
    pub(crate) end: WalPos,
    pub(crate) committed_ms: i64,
    pub(crate) sequence: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tail {
    paths: Paths,
    /// `None` once the database is forgotten: closing a second descriptor later would drop the lock of a successor in this process.
    control: Option<Control>,
    /// The control file's, as long as it is open.
    locks: Option<Locks>,
    /// What the other processes see of it.
    shared: Arc<Shared>,
    /// Which turn this process had last.
    turn: u64,
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
    /// What the file is is still to be found out, by the uploader: see `State::to_compare`.
    compares: bool,
    /// The newest TXID that the bucket had when it was compared, and nothing was known of a position in it.
    pub(crate) found_newest: Option<Txid>,
}

impl Tail {
    pub(crate) fn new(paths: Paths, control: Control, shared: Arc<Shared>, state: State, spool: Spool, memory_batch_bytes: u64) -> Self {
        Self {
            paths,
            locks: Some(control.locks()),
            control: Some(control),
            turn: shared.tail_turns.load(std::sync::atomic::Ordering::Relaxed),
            shared,
            state,
            spool,
            mode: Mode::Unresolved,
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
            compares: false,
            found_newest: None,
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

    /// Another writer has gone on, and the user has not declared this file the truth over that.
    pub(crate) fn conflict(&self) -> Option<String> {
        let standing = self.state.conflict.filter(|conflict| self.state.adopt.is_none_or(|adopt| adopt < conflict.txid));
        standing.map(|conflict| conflict.message(self.state.node_id))
    }

    /// Has commits that a power loss took stop replication where the bucket has them.
    pub(crate) const fn refuse_lost_tail(&mut self) {
        self.refuse_lost_tail = true;
    }

    /// Whether the option asks to stop there.
    pub(crate) const fn refuses_lost_tail(&self) -> bool {
        self.refuse_lost_tail
    }

    /// Notes what the database file looks like, or that nothing is known of it because something else than a checkpoint writes to it.
    pub(crate) fn mark(&self, now: Option<&Stamp>) {
        if let Some(Err(error)) = self.control.as_ref().map(|control| control.mark(now)) {
            event!(Debug, "local_file", self, cause = error; "{}: {error}", self.paths.control().display());
        }
    }

    /// The control file, for whoever notes something in it without this lock.
    pub(crate) fn control_file(&self) -> Option<Arc<File>> {
        self.control.as_ref().map(Control::file)
    }

    /// Whether a fault of ours has ended it. That lasts until the database is opened anew.
    pub(crate) const fn has_failed(&self) -> bool {
        matches!(self.mode, Mode::Stopped(StopKind::Failed, _))
    }

    /// A fault of ours: nothing that is known here is trusted any more, and the next open sends the full state.
    pub(crate) fn fail(&mut self, message: String) {
        self.stop(StopKind::Failed, message);
        if let Some(Ok(Some(state))) = self.control.as_mut().map(Control::newer) {
            // Another process has gone on since the panic: what it has saved must not be set back.
            self.state = state;
        }
        self.give_up(FullReason::Fault);
        if let Err(error) = self.write() {
            repeated_event!(Warn, "local_file", self, cause = error; "{error}");
        }
        self.leave_the_others();
    }

    /// Gives continuity up: the full state will be sent.
    pub(crate) fn lose(&mut self, reason: FullReason) {
        if self.has_failed() {
            return;
        }
        let level = if reason == FullReason::First { log::Level::Debug } else { log::Level::Warn };
        let newest = self.state.attempt.map(|a| a.txid).or(self.state.acked.map(|a| a.txid));
        let lost_tail = newest.filter(|_| reason == FullReason::BucketAhead);
        event!(
            level, "full_state_due", self, txid = Unless(newest), cause = reason.text();
            "the full state will be sent{}: {}{}",
            self.paths.to_second(),
            reason.text(),
            lost_tail.map_or_else(String::new, |txid| format!("; they can be restored with TXID {txid}"))
        );
        self.mode = Mode::Full(reason);
        self.give_up(reason);
        fault_point!("lose.save");
        self.save_or_warn();
        fault_point!("lose.saved");
        if let Err(error) = self.spool.remove_stale(self.state.attempt.map(|a| a.txid)) {
            repeated_event!(Warn, "local_file", self, cause = error; "{error}");
        }
    }

    fn give_up(&mut self, reason: FullReason) {
        // What was begun may be in the bucket, or come to be: as of a moment that is not the one that will be sent.
        let was_begun = self.state.full.is_some_and(|full| full == FullReason::Unfinished || self.state.captured.is_some());
        self.state.full = Some(if was_begun && reason != FullReason::BucketAhead { FullReason::Unfinished } else { reason });
        self.state.captured = None;
        self.state.sealed = false;
        self.state.next_salts = None;
        self.state.to_compare = None;
        self.compares = false;
        self.spool.clear();
    }

    pub(crate) fn stop(&mut self, kind: StopKind, message: String) {
        if self.has_failed() && kind != StopKind::Failed {
            return;
        }
        let txid = Unless(self.state.acked.map(|acked| acked.txid));
        event!(Error, "stopped", self, txid = txid, cause = message; "replication{} stopped: {message}", self.paths.to_second());
        self.mode = Mode::Stopped(kind, message);
    }

    /// Where its files are.
    pub(crate) const fn paths(&self) -> &Paths {
        &self.paths
    }

    /// What is known of the WAL's frames, for those who write them.
    pub(crate) fn frames(&self) -> Arc<FrameLog> {
        Arc::clone(&self.frames)
    }

    /// Notes what the database file looks like. What was known to be on disk stays so while nobody writes.
    pub(crate) fn stamp(&mut self, now: Option<Stamp>) {
        let durable = matches!((self.state.stamp, now), (Some(then), Some(now)) if then.synced && then.is_same_file(&now));
        self.state.stamp = now.map(|now| Stamp { synced: now.synced || durable, ..now });
    }

    pub(crate) fn wal(&mut self) -> Result<&WalFile, BatchError> {
        open_wal(&mut self.wal, &self.paths)
    }

    /// Lets the control file and its lock go. Returns the file, which others may still have.
    pub(crate) fn release(&mut self) -> Option<Arc<File>> {
        self.settle();
        self.control.take().map(|control| control.file())
    }

    /// The same where another process has the lock, and was stopped. What is saved is there for a successor.
    pub(crate) fn release_without_lock(&mut self) -> Option<Arc<File>> {
        self.locks = None;
        self.control.take().map(|control| control.file())
    }

    fn save_or_warn(&mut self) {
        if let Err(error) = self.save() {
            repeated_event!(Warn, "local_file", self, cause = error; "{error}");
        }
    }
}

/// The WAL's start in the generation of a place.
const fn start_of(pos: &WalPos) -> WalPos {
    WalPos { salts: pos.salts, frame: 0, checksum: [0, 0] }
}

fn open_wal<'a>(slot: &'a mut Option<WalFile>, paths: &Paths) -> Result<&'a WalFile, BatchError> {
    if slot.as_ref().is_none_or(|w| !w.is_current()) {
        *slot = Some(WalFile::open(&paths.wal)?);
    }
    slot.as_ref().ok_or_else(|| BatchError::Io { path: paths.wal.clone(), source: std::io::ErrorKind::NotFound.into() })
}
