//! One replicated database as SQLite's threads see it: what the FFI shim calls, quick and without the network.
//!
//! Locks, in this order: `outside`, `tail`, `preserver`. The commit path takes none of them.

mod file;
mod gate;
pub(crate) mod outside;
pub(crate) mod published;

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use self::file::PreserverSlot;
pub(crate) use self::published::Published;
use crate::config::Options;
use crate::fault::{fault_point, fault_value};
use crate::logging::event;
use crate::replicator::ahead::{Ahead, Checkpointed, Due};
use crate::replicator::aside::SetsAside;
use crate::replicator::background::{Neglect, Proof};
use crate::replicator::batch::WalFile;
use crate::replicator::control::FullReason;
use crate::replicator::database::outside::Outside;
use crate::replicator::durability::Unacknowledged;
use crate::replicator::frames::FrameLog;
use crate::replicator::hub::{Hub, Notice};
use crate::replicator::lease::{Lease, RELEASE_LIMIT};
use crate::replicator::local::Paths;
use crate::replicator::origin::Found;
use crate::replicator::preserve::DatabaseFile;
use crate::replicator::progress::{Progress, WaitError};
use crate::replicator::replicas::Replicas;
use crate::replicator::shared::{Locks, Mapped, Range, Shared};
use crate::replicator::tail::{Mode, Tail, TailGuard};
use crate::store::Store;
use crate::types::Txid;
use crate::wal::IndexHeader;

/// What the replicator needs of SQLite: the database file by a handle of SQLite's own.
pub(crate) trait Host: Send + Sync + std::fmt::Debug {
    /// Opens the file once more, through the VFS that SQLite itself uses for it.
    fn open_database(&self, path: &Path) -> io::Result<Box<dyn DatabaseFile>>;
    /// The WAL-index of a database that this process has open, as it is now; `None` where no connection has it mapped.
    fn wal_index(&self, path: &Path) -> Option<IndexHeader>;
    /// Maps what the processes share of a control file.
    fn map_shared(&self, control: &File) -> io::Result<Box<dyn Mapped>>;
    /// Why checkpoints are to be left to SQLite.
    fn obstacle_to_checkpoints(&self) -> Option<String>;
    /// Checkpoints a database that this process has open, on a connection that is gone when this returns. Waits for nobody.
    fn checkpoint(&self, path: &Path, replicas: &Replicas) -> Checkpointed;
}

/// What is there of a database when it is opened.
#[derive(Debug)]
pub(crate) struct OpenedTail {
    pub(crate) tail: Tail,
    pub(crate) shared: Arc<Shared>,
    pub(crate) locks: Locks,
    /// This process uploads.
    pub(crate) owns: bool,
    pub(crate) origin: Option<Found>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) id: u64,
    pub(crate) paths: Paths,
    pub(crate) options: Options,
    pub(crate) store: Arc<dyn Store>,
    /// Where the option asks for one. `store` writes nothing without it.
    pub(crate) lease: Option<Arc<Lease>>,
    pub(crate) progress: Progress,
    /// What it was restored from, where that was another replica of the database.
    pub(crate) origin: Option<Found>,
    pub(in crate::replicator) neglect: Neglect,
    /// What this process has found out of the bucket, if it is the one that looks: see `Proof::of`.
    pub(in crate::replicator) proof: Mutex<Option<Proof>>,
    /// Checkpoints ahead of SQLite's own, where the option asks for them.
    pub(crate) ahead: Option<Ahead>,
    hub: Arc<Hub>,
    host: Arc<dyn Host>,
    /// What all processes have in common that have the database open.
    pub(crate) shared: Arc<Shared>,
    /// Until the database is released.
    locks: Mutex<Option<Locks>>,
    /// This process uploads.
    pub(in crate::replicator) owns: AtomicBool,
    tail: Mutex<Tail>,
    preserver: Mutex<PreserverSlot>,
    /// What is set aside for the uploader of another process.
    sets_aside: Mutex<SetsAside>,
    /// Whether a snapshot needs to hear of writes to the database file.
    preserving: AtomicBool,
    /// What a transaction has written to the database file.
    pub(super) outside: Mutex<Outside>,
    /// Which page is in which frame of the WAL.
    frames: Arc<FrameLog>,
    /// The WAL, where commits have to be read from it.
    pub(super) exclusive_wal: Mutex<Option<WalFile>>,
    /// The control file, once a checkpoint has to be noted there.
    marks: Mutex<Option<Arc<File>>>,
    /// The header of a generation was written whose salts do not follow on those before: see `wal_synced`.
    begins_afresh: AtomicBool,
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

impl Database {
    pub(crate) fn new(
        id: u64,
        paths: Paths,
        options: Options,
        (store, lease): (Arc<dyn Store>, Option<Arc<Lease>>),
        hub: Arc<Hub>,
        host: Arc<dyn Host>,
        opened: OpenedTail,
    ) -> Self {
        let OpenedTail { tail, shared, locks, owns, origin } = opened;
        Self {
            id,
            paths,
            options,
            store,
            lease,
            progress: Progress::new(Arc::clone(&shared)),
            origin,
            neglect: Neglect::default(),
            proof: Mutex::default(),
            ahead: None,
            hub,
            host,
            shared,
            locks: Mutex::new(Some(locks)),
            owns: AtomicBool::new(owns),
            preserver: Mutex::default(),
            sets_aside: Mutex::default(),
            preserving: AtomicBool::new(false),
            outside: Mutex::default(),
            frames: tail.frames(),
            tail: Mutex::new(tail),
            exclusive_wal: Mutex::default(),
            marks: Mutex::default(),
            begins_afresh: AtomicBool::new(false),
            unacknowledged: Unacknowledged::default(),
            closing: AtomicBool::new(false),
            stamp_due: AtomicBool::new(false),
            handles: AtomicU32::new(0),
            flushing: AtomicU32::new(0),
        }
    }

    /// Has checkpoints made by that thread, ahead of SQLite's own.
    pub(crate) fn checkpoints_by(&mut self, due: Due) {
        self.ahead = Some(Ahead::new(due));
    }

    /// See `Host::checkpoint`.
    pub(crate) fn checkpoint(&self, replicas: &Replicas) -> Checkpointed {
        self.host.checkpoint(&self.paths.database, replicas)
    }

    // What the shim calls.

    /// A fault of ours: replication of this database ends, the application goes on.
    pub(crate) fn poison(&self, why: &str) {
        let message =
            format!("a fault in the extension ({why}); closing the database everywhere in this process and opening it again recovers it");
        // A page that a snapshot needs may be gone.
        self.with_preserver(|preserver| preserver.give_up(why.to_owned()));
        self.lock_tail().fail(message.clone());
        self.progress.fail(message);
        // The uploader may be at something that is worth nothing any more.
        self.hub.notify(Notice::Look(self.id));
    }

    /// Waits until everything up to a commit is in the bucket; the newest TXID, if there is one.
    pub(crate) fn wait_synced(&self, sequence: u64, limit: Duration) -> Result<Option<Txid>, WaitError> {
        self.progress.wait(sequence, limit)
    }

    /// As `ask_for_all`, for the last handle, which is being closed.
    pub(crate) fn ask_at_close(&self) -> Result<u64, WaitError> {
        self.progress.update(|f| f.awaits_open = false);
        self.ask_for_all()
    }

    /// As `wait_synced`, but nothing is waited for that only the next open can bring on its way.
    pub(crate) fn wait_at_close(&self, sequence: u64, limit: Duration) -> Result<(), WaitError> {
        self.progress.wait_at_close(sequence, limit)
    }

    /// Has the uploader send everything committed so far at once. Returns the newest commit's number.
    pub(crate) fn ask_for_all(&self) -> Result<u64, WaitError> {
        if !self.is_known() {
            self.observe_without_index();
        }
        if !self.is_known() {
            return Err(WaitError::NotRead);
        }
        self.look_at_file();
        let sequence = self.published().sequence;
        self.progress.look_again();
        self.shared.urgent.fetch_max(sequence.max(1), Ordering::AcqRel);
        self.look_at_once();
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
        self.shared.urgent.fetch_max(sequence, Ordering::AcqRel);
        self.call();
    }

    /// Has the uploader look, where it sleeps.
    fn call(&self) {
        // In one order with `doze`: either this sees that the uploader sleeps, or the uploader sees the call.
        self.shared.calls.fetch_add(1, Ordering::SeqCst);
        if self.shared.dozing.load(Ordering::SeqCst) != 0 {
            self.hub.notify(Notice::Look(self.id));
        }
    }

    /// The last handle is being closed. From here on others wait for what they have committed, if nobody else stays.
    pub(crate) fn is_about_to_leave(&self) {
        if let Some(locks) = self.locks() {
            locks.unlock(Range::Staying);
        }
    }

    /// Whether no other process has it open that is not about to leave as well: nobody else is going to send what there is, or to let the lease go.
    ///
    /// Whoever leaves says so first, looks for others then, and for what there is to be sent last: of two who leave at once, one at least sees
    /// that the other does, or what it has committed.
    pub(crate) fn nobody_else_stays(&self) -> bool {
        self.locks().is_none_or(|locks| !locks.is_held_elsewhere(Range::Staying))
    }

    /// Opened again after the last handle was closed but before the uploader forgot it: look afresh, others may have written.
    pub(crate) fn reopened(&self) {
        self.closing.store(false, Ordering::Release);
        if let Some(locks) = self.locks().filter(|_| !self.shared.has_left()) {
            // Where it cannot be had, others wait for longer.
            let _ = locks.try_lock(Range::Staying, false);
        }
        if self.is_alone()
            && let Some(mut tail) = self.tail_or_lost()
        {
            if tail.mode == Mode::Running {
                tail.mode = Mode::Unresolved;
            }
            self.forget_published();
            self.shared.wake_frames.store(1, Ordering::Release);
        }
    }

    /// Whether no other process has it open.
    pub(crate) fn is_alone(&self) -> bool {
        self.locks.lock().as_ref().is_none_or(|locks| !locks.is_held_elsewhere(Range::Present))
    }

    /// The locks of the control file, until the database is released.
    pub(crate) fn locks(&self) -> Option<Locks> {
        self.locks.lock().clone()
    }

    /// Has the uploader forget the database, which is `closing`.
    pub(crate) fn have_forgotten(&self) {
        self.hub.notify(Notice::Look(self.id));
    }

    /// Waits until it has, for a moment.
    pub(crate) fn wait_forgotten(&self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        self.progress.wait_released(PATIENCE + if self.lease.is_some() { RELEASE_LIMIT } else { Duration::ZERO });
    }

    /// The uploader forgets it: the control file's lock goes before a successor can take it.
    pub(crate) fn release(&self) {
        /// How long to wait for a thread that syncs the file.
        const PATIENCE: Duration = Duration::from_secs(1);
        const PAUSE: Duration = Duration::from_millis(1);
        fault_point!("forget.release");
        // Closing the descriptor gives the locks up.
        *self.marks.lock() = None;
        *self.locks.lock() = None;
        let control = match self.try_lock_tail_for(PATIENCE) {
            Some(mut tail) => tail.release(),
            None => self.lock_tail_here().release_without_lock(),
        };
        // Closed by somebody else later it would take the locks of a successor in this process away, too.
        let deadline = Instant::now() + PATIENCE;
        while control.as_ref().is_some_and(|file| Arc::strong_count(file) > 1) && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
        drop(control);
        fault_point!("forget.released");
        self.progress.set_released();
    }

    // What the uploader calls.

    pub(crate) fn lock_tail(&self) -> TailGuard<'_> {
        TailGuard::lock(&self.tail)
    }

    /// What of it is this process's own.
    pub(crate) fn lock_tail_here(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock()
    }

    /// Whether the tail can be locked at once: who was stopped with it may go on in an hour, and the uploader has other databases.
    pub(crate) fn is_tail_free(&self) -> bool {
        self.shared.joined.load(Ordering::Relaxed) == 0
            || self.shared.has_left()
            || self.locks.lock().as_ref().is_none_or(|locks| !locks.is_held_elsewhere(Range::Tail))
    }

    /// Waits until it is.
    pub(crate) async fn tail_comes_free(&self) {
        const PAUSE: Duration = Duration::from_millis(2);
        const LONGEST_PAUSE: Duration = Duration::from_millis(100);
        let mut pause = PAUSE;
        while !self.is_tail_free() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The same for SQLite's threads, which must not wait for ever where a process was stopped that holds it. `None` then: what was to be captured is lost, and
    /// whoever has the tail next finds that out.
    fn tail_or_lost(&self) -> Option<TailGuard<'_>> {
        /// Encoding a large batch takes as long.
        const PATIENCE: Duration = Duration::from_secs(30);
        let tail = self.tail_within(fault_value!("REPLICATED_TEST_PATIENCE_MS", PATIENCE, Duration::from_millis));
        if tail.is_none() && self.shared.lost.swap(1, Ordering::AcqRel) == 0 {
            event!(
                Error, "process_stuck", self;
                "another process holds what is captured for {} s and does not go on (was it stopped?): the application goes on without it, and the full \
                 state follows",
                PATIENCE.as_secs()
            );
        }
        tail
    }

    /// The same, for whoever can do without it; not as long where somebody has waited in vain already.
    fn tail_within(&self, limit: Duration) -> Option<TailGuard<'_>> {
        const AGAIN: Duration = Duration::from_millis(10);
        let is_stuck = self.shared.stuck.load(Ordering::Acquire) != 0;
        let tail = self.try_lock_tail_for(if is_stuck { AGAIN } else { limit });
        if tail.is_none() {
            self.shared.stuck.store(1, Ordering::Release);
        }
        tail
    }

    /// `None` where somebody else has it for longer than that.
    pub(crate) fn try_lock_tail_for(&self, limit: Duration) -> Option<TailGuard<'_>> {
        TailGuard::try_lock_for(&self.tail, limit)
    }

    /// Ends a pause of the uploader's.
    pub(crate) fn look_at_once(&self) {
        self.shared.asked.fetch_add(1, Ordering::AcqRel);
        self.hub.notify(Notice::Look(self.id));
    }

    /// The uploader is about to sleep; false where it was called since `calls` was read.
    pub(crate) fn doze(&self, calls: u64) -> bool {
        self.shared.dozing.store(1, Ordering::SeqCst);
        self.shared.calls.load(Ordering::SeqCst) == calls
    }

    /// It is awake: whoever waits from now on need not wake it.
    pub(crate) fn is_up(&self) {
        self.disarm();
        self.shared.dozing.store(0, Ordering::SeqCst);
    }

    /// Gives continuity up; a snapshot that runs is worthless then.
    pub(crate) fn lose(&self, tail: &mut Tail, reason: FullReason) {
        if let Some(preserver) = &mut self.preserver.lock().active {
            preserver.give_up(reason.text().to_owned());
        }
        tail.lose(reason);
        self.note_captured(tail);
    }

    /// Whether nothing is waiting to be sent, as far as is known.
    pub(crate) fn is_settled(&self, tail: &Tail) -> bool {
        tail.inflight.is_none()
            && tail.state.attempt.is_none()
            && tail.spool.is_empty()
            && tail.mode == Mode::Running
            && self.is_captured(tail)
    }
}

thread_local! {
    /// Without a destructor, so that it may be looked at in any thread at any time.
    static MOMENT: Cell<Option<i64>> = const { Cell::new(None) };
}

/// Does something during which `commit_ms` stands still: what both replicas are told of has one time, by which their histories are compared later.
pub(crate) fn at_one_moment<T>(body: impl FnOnce() -> T) -> T {
    let before = MOMENT.with(|moment| moment.replace(Some(now_ms())));
    let result = body();
    MOMENT.with(|moment| moment.set(before));
    result
}

/// When what is committed now was committed.
pub(super) fn commit_ms() -> i64 {
    MOMENT.with(Cell::get).unwrap_or_else(now_ms)
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
