//! A database file: its locks tell what is committed, its writes what a snapshot or a commit outside the WAL needs.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::abi::{
    File, SQLITE_AUTH, SQLITE_BUSY, SQLITE_FCNTL_CKPT_DONE, SQLITE_FCNTL_CKPT_START, SQLITE_FCNTL_COMMIT_PHASETWO, SQLITE_FCNTL_PDB,
    SQLITE_FCNTL_PRAGMA, SQLITE_FCNTL_SYNC, SQLITE_FCNTL_VFSNAME, SQLITE_IOERR_COMMIT_ATOMIC, SQLITE_IOERR_SHORT_READ,
    SQLITE_LOCK_EXCLUSIVE, SQLITE_LOCK_NONE, SQLITE_LOCK_RESERVED, SQLITE_LOCK_SHARED, SQLITE_NOTFOUND, SQLITE_OK, SQLITE_READONLY,
    SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_SHARED, SQLITE_SHM_UNLOCK, WAL_CHECKPOINT_LOCK, WAL_READ_LOCK_0, WAL_WRITE_LOCK,
};
use super::api::SqliteApi;
use super::fork;
use super::group::{self, FileName, Refusal};
use super::held::HeldHeader;
use super::pragma::{self, Answer};
use super::wal_file::release;
use crate::replicator::ahead::Ahead;
use crate::replicator::database::Database;
use crate::replicator::database::outside::{FileChange, Writer};
use crate::replicator::durability::{self, NotAcknowledged, Policy};
use crate::replicator::frames::WrittenFrames;
use crate::replicator::process;
use crate::replicator::replicas::{Each, Replicas};
use crate::wal::{FrameHeader, INDEX_HEADER_BYTES, IndexHeader};

use super::file::{file_control, file_size, guarded, lock, main_of, read, shm_lock, shm_map, shm_unmap, sync, truncate, unlock, write};
/// A database file.
pub(super) struct MainFile {
    pub(super) api: &'static SqliteApi,
    /// `None`: opened read-only, everything passes through.
    pub(super) replicas: Option<Replicas>,
    /// As SQLite passed it.
    pub(super) name: FileName,
    /// Where SQLite keeps the connection that works with the file.
    pub(super) connection: AtomicPtr<*mut c_void>,
    /// The refusal of a transaction over several databases was logged.
    pub(super) told_of_group: AtomicBool,
    /// What this connection's commits wait for.
    pub(super) policy: Policy,
    /// The sequence number, for the first replica and the second, of the commit that this connection has published and that `COMMIT_PHASETWO` has not
    /// come for; 0 for none.
    own_commit: [AtomicU64; 2],
    /// The process of a chain of forks that opened it.
    pub(super) generation: usize,
    /// The WAL-index's first region, while it is mapped.
    index: AtomicPtr<u8>,
    /// This connection holds the WAL's write lock.
    pub(super) holds_write: AtomicBool,
    /// This connection has a read transaction of the WAL, which every write transaction begins with.
    holds_read: AtomicBool,
    /// This connection holds the checkpoint lock.
    holds_checkpoint: AtomicBool,
    /// It has written to the database file under that lock.
    checkpoints: AtomicBool,
    /// It has synced the WAL since it took that lock.
    pub(super) has_synced_wal: AtomicBool,
    /// A checkpoint has begun to write what no sync of the WAL has come before.
    pub(super) checkpoints_unsynced: AtomicBool,
    /// It has its WAL open, so that only checkpoints write to the database file.
    pub(super) in_wal_mode: AtomicBool,
    /// Frames were written without the WAL's write lock: there is no shared memory.
    pub(super) wrote_unlocked: AtomicBool,
    /// How far they reach, in bytes of the file.
    pub(super) unlocked_end: AtomicU64,
    /// The frames that were written since the transaction began.
    pub(super) frames: Mutex<WrittenFrames>,
    /// The header of a frame whose page comes next.
    pub(super) held: HeldHeader,
    /// This connection has cut the WAL to nothing, and not begun another generation.
    pub(super) wal_is_cut: AtomicBool,
    /// A write or sync of the WAL has failed since the transaction began: what lies there is not committed.
    pub(super) wal_failed: AtomicBool,
    /// The lock that it holds on the database file, of SQLite's five levels.
    pub(super) lock_level: AtomicI32,
    /// It took the EXCLUSIVE lock to roll back what a dead process left.
    rolls_back: AtomicBool,
    /// It has written to the database file, and neither committed nor given its lock up.
    writes_file: AtomicBool,
    /// It has committed to the database file under the lock that it holds.
    has_committed: AtomicBool,
    /// It is about to sync the database file at the end of a transaction that changes nothing else.
    pub(super) ends_alone: AtomicBool,
    /// We have opened it ourselves: see `checkpointer`.
    pub(super) is_own: bool,
    /// A checkpoint of ours is due once it does not read any more.
    wakes_ahead: AtomicBool,
    /// Our own checkpoints wait for what it is at: with the file locked exclusively, and with the checkpoint lock.
    keeps_ahead_out: [AtomicBool; 2],
}

/// In `MainFile::keeps_ahead_out`.
#[derive(Clone, Copy)]
enum KeepsOut {
    ByFileLock,
    ByCheckpointLock,
}

impl MainFile {
    pub(super) fn new(api: &'static SqliteApi, name: FileName, replicas: Option<Replicas>, policy: Policy, is_own: bool) -> Self {
        Self {
            api,
            replicas,
            name,
            connection: AtomicPtr::new(std::ptr::null_mut()),
            told_of_group: AtomicBool::new(false),
            policy,
            own_commit: [const { AtomicU64::new(0) }; 2],
            generation: process::generation(),
            index: AtomicPtr::new(std::ptr::null_mut()),
            holds_write: AtomicBool::new(false),
            holds_read: AtomicBool::new(false),
            holds_checkpoint: AtomicBool::new(false),
            checkpoints: AtomicBool::new(false),
            has_synced_wal: AtomicBool::new(false),
            checkpoints_unsynced: AtomicBool::new(false),
            in_wal_mode: AtomicBool::new(false),
            wrote_unlocked: AtomicBool::new(false),
            unlocked_end: AtomicU64::new(0),
            frames: Mutex::default(),
            held: HeldHeader::default(),
            wal_is_cut: AtomicBool::new(false),
            wal_failed: AtomicBool::new(false),
            lock_level: AtomicI32::new(SQLITE_LOCK_NONE),
            rolls_back: AtomicBool::new(false),
            writes_file: AtomicBool::new(false),
            has_committed: AtomicBool::new(false),
            ends_alone: AtomicBool::new(false),
            is_own,
            wakes_ahead: AtomicBool::new(false),
            keeps_ahead_out: [const { AtomicBool::new(false) }; 2],
        }
    }

    /// What checkpoints ahead of SQLite, where that is asked for; not for a connection of its own.
    fn ahead(&self) -> Option<&Ahead> {
        self.replicas()?.first.ahead.as_ref().filter(|_| !self.is_own)
    }

    /// Waits until our own connection is gone, and has none come until `lets_ahead_in`.
    fn keeps_ahead_out(&self, by: KeepsOut) {
        let [file, checkpoint] = &self.keeps_ahead_out;
        let is_kept_out = if matches!(by, KeepsOut::ByFileLock) { file } else { checkpoint };
        if let Some(ahead) = self.ahead()
            && !is_kept_out.swap(true, Ordering::Relaxed)
        {
            guarded(self, (), || ahead.keep_out());
        }
    }

    fn lets_ahead_in(&self, by: KeepsOut) {
        let [file, checkpoint] = &self.keeps_ahead_out;
        let is_kept_out = if matches!(by, KeepsOut::ByFileLock) { file } else { checkpoint };
        // Most files never do.
        if is_kept_out.load(Ordering::Relaxed)
            && is_kept_out.swap(false, Ordering::Relaxed)
            && let Some(ahead) = self.ahead()
        {
            ahead.let_in();
        }
    }

    /// It is about to be given back.
    pub(super) fn keeps_ahead_out_at_close(&self) {
        self.keeps_ahead_out(KeepsOut::ByFileLock);
    }

    /// It was.
    pub(super) fn lets_ahead_in_again(&self) {
        self.lets_ahead_in(KeepsOut::ByFileLock);
        self.lets_ahead_in(KeepsOut::ByCheckpointLock);
    }

    /// The replicated database, unless this is the child of a fork that happened since: SQLite forbids using the connection there.
    pub(super) fn replicas(&self) -> Option<&Replicas> {
        self.replicas.as_ref().filter(|_| self.generation == process::generation())
    }

    /// That database, for what its replicas have in common: the files.
    pub(super) fn database(&self) -> Option<&Arc<Database>> {
        self.replicas().map(|replicas| &replicas.first)
    }

    fn note_own_commit(&self, own: Each<u64>) {
        let [first, second] = &self.own_commit;
        first.store(own.first, Ordering::Relaxed);
        if let Some(own) = own.second {
            second.store(own, Ordering::Relaxed);
        }
    }

    /// What was noted, which is over with that.
    fn take_own_commit(&self) -> Each<Option<u64>> {
        let [first, second] = self.own_commit.each_ref().map(|own| Some(own.swap(0, Ordering::Relaxed)).filter(|own| *own > 0));
        Each { first, second: Some(second) }
    }

    /// Whether SQLite works with this file itself: what is stacked on our VFS may do more to a page than to write it.
    ///
    /// # Safety
    /// As `SqliteApi::schemas`, with the connection that the file is of.
    unsafe fn is_seen_by_sqlite(&self, file: *mut File) -> bool {
        let connection = self.connection.load(Ordering::Acquire);
        if connection.is_null() {
            return false;
        }
        // SAFETY: it was told by SQLite, where it keeps the connection.
        let connection = unsafe { *connection };
        // SAFETY: passed on.
        !connection.is_null() && unsafe { self.api.works_with(connection, file, self.name) }
    }

    /// The WAL-index header as it is; `None` where it is not mapped, not initialised or being written.
    pub(super) fn index_header(&self) -> Option<IndexHeader> {
        let index = self.index.load(Ordering::Acquire);
        if index.is_null() {
            return None;
        }
        let read = |copy: usize| {
            let mut bytes = [0_u8; INDEX_HEADER_BYTES];
            for (at, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                // SAFETY: the region is mapped (SQLite unmaps it through `main_shm_unmap`), at least 32 KiB long and aligned; other
                // processes may write it, hence volatile.
                *word = unsafe { index.add(copy * INDEX_HEADER_BYTES).cast::<u64>().add(at).read_volatile() }.to_ne_bytes();
            }
            bytes
        };
        let (first, second) = (read(0), read(1));
        if first == second { IndexHeader::decode(&first) } else { None }
    }
}

impl MainFile {
    /// The database file is about to be changed: a snapshot may still need what is there, and what no checkpoint writes is a transaction's.
    ///
    /// # Safety
    /// `file` is this file, open.
    unsafe fn before_change(&self, file: *mut File, change: FileChange) {
        let Some(replicas) = self.replicas() else { return };
        // SAFETY: passed on.
        let read = &mut |page: &mut [u8], at| unsafe { read_base(file, page, at) };
        let outruns_wal = self.checkpoints_unsynced.swap(false, Ordering::Relaxed);
        let is_outside = !self.in_wal_mode.load(Ordering::Relaxed);
        if is_outside {
            self.writes_file.store(true, Ordering::Relaxed);
        }
        let writer =
            Writer { rolls_back: self.rolls_back.load(Ordering::Relaxed), has_committed: self.has_committed.load(Ordering::Relaxed) };
        replicas.each((), |database| {
            database.note_synced(false);
            if outruns_wal {
                database.checkpoint_outruns_wal();
            }
            if is_outside {
                database.changes_file(change, writer, read);
            }
            if database.is_preserved_elsewhere() {
                database.set_aside(change, read);
            } else if database.is_preserving() {
                match change {
                    FileChange::Write { offset, bytes } => database.before_write(offset, usize::try_from(bytes).unwrap_or(0), read),
                    FileChange::Truncate { bytes } => database.before_truncate(bytes, read),
                }
            }
        });
    }

    /// A commit is complete. What the release of the WAL's write lock has not told is told here. Returns its number, where it has changed anything.
    ///
    /// # Safety
    /// `file` is this file, open.
    unsafe fn committed(&self, file: *mut File, replicas: &Replicas) -> Each<Option<u64>> {
        let published = self.take_own_commit();
        if self.wrote_unlocked.swap(false, Ordering::Relaxed) {
            let written_bytes = self.unlocked_end.swap(0, Ordering::Relaxed);
            let mut frames = self.frames.lock();
            if self.wal_failed.swap(false, Ordering::Relaxed) {
                frames.clear();
                return Each::default();
            }
            let index = self.index_header();
            let own = replicas.each(Some(durability::UNSEEN), |database| match &index {
                Some(index) => database.commits_in_wal(index, &frames),
                None => database.commits_exclusively(written_bytes, &frames),
            });
            frames.clear();
            own
        } else if !self.in_wal_mode.load(Ordering::Relaxed) {
            // SAFETY: passed on.
            let read = &mut |page: &mut [u8], at| unsafe { read_base(file, page, at) };
            let own = replicas.each(Some(durability::UNSEEN), |database| database.commits_file(read));
            if self.writes_file.swap(false, Ordering::Relaxed) {
                self.has_committed.store(true, Ordering::Relaxed);
            }
            own
        } else {
            published
        }
    }

    /// Looks for commits of processes without the extension, which nobody tells of.
    pub(super) fn look_at_index(&self, replicas: &Replicas) {
        const TRIES: usize = 1000;
        // One that is being written is whole again a moment later.
        let read = || {
            (0..TRIES).find_map(|_| {
                self.index_header().or_else(|| {
                    std::hint::spin_loop();
                    None
                })
            })
        };
        // SQLite leaves the WAL-index as it is where it cuts a WAL to nothing that it keeps after the last close.
        if !self.index.load(Ordering::Acquire).is_null() && !self.wal_is_cut.load(Ordering::Relaxed) {
            replicas.each((), |database| database.look_at_index(read));
        }
    }

    /// The WAL is about to be destroyed, under exclusive locking. A transaction over several databases of which another one has failed is committed in
    /// this one all the same, and no `COMMIT_PHASETWO` has told so.
    pub(super) fn before_unlocked_end(&self, replicas: &Replicas) {
        if self.wrote_unlocked.load(Ordering::Relaxed) && !self.wal_failed.load(Ordering::Relaxed) && self.index_header().is_none() {
            let mut frames = self.frames.lock();
            let written_bytes = self.unlocked_end.load(Ordering::Relaxed);
            // Its number is for those who wait for it, and nobody does.
            replicas.each(None, |database| database.commits_exclusively(written_bytes, &frames));
            frames.clear();
        }
    }

    /// The replica that another writer has gone on with, where that refuses writes: one is enough, as it is one database.
    fn refuses_writes(&self) -> Option<&Arc<Database>> {
        self.replicas()?.iter().find(|database| database.shared.refuses_writes.load(Ordering::Acquire) != 0)
    }

    /// Refuses a write transaction before it has changed anything, where `on_conflict=readonly` and another writer has gone on. What applications
    /// handle as they do a database that they may only read.
    pub(super) fn refusal_of_writes(&self) -> Option<c_int> {
        let database = self.refuses_writes()?;
        guarded(self, (), || {
            let why = database.progress.facts().last_error.unwrap_or_default();
            super::note_refusal(&format!("on_conflict=readonly: nothing can be committed: {why}"));
        });
        Some(SQLITE_READONLY)
    }

    /// The same for a transaction that begins with no lock, in a rollback mode under exclusive locking: the EXCLUSIVE lock is held since an earlier one has
    /// committed. What it changes first in the database file is refused, with everything as it was there. So what SQLite then writes to roll it back is what
    /// the file holds, and is answered without being written: `is_there` tells.
    fn answer_of_change(&self, is_there: impl FnOnce() -> bool) -> Option<c_int> {
        let is = |state: &AtomicBool| state.load(Ordering::Relaxed);
        let may_be_refused = is(&self.has_committed) && !is(&self.in_wal_mode) && !is(&self.rolls_back) && !is(&self.writes_file);
        if !may_be_refused || self.refuses_writes().is_none() {
            return None;
        }
        if guarded(self, false, is_there) { Some(SQLITE_OK) } else { self.refusal_of_writes() }
    }

    /// The EXCLUSIVE lock comes when a transaction commits, and all of its databases are known.
    ///
    /// # Safety
    /// SQLite is about to lock this file.
    unsafe fn refusal_before_lock(&self, level: c_int) -> Option<c_int> {
        if level != SQLITE_LOCK_EXCLUSIVE || self.lock_level.load(Ordering::Relaxed) != SQLITE_LOCK_RESERVED {
            return None;
        }
        // SAFETY: passed on.
        guarded(self, None, || unsafe { self.refuses_group() }.map(|refusal| self.refuse_group(refusal)))
    }

    /// The header of a frame that completes a transaction comes when it commits.
    ///
    /// # Safety
    /// SQLite is about to write this to the WAL.
    pub(super) unsafe fn refusal_before_frame(&self, header: &FrameHeader) -> Option<c_int> {
        if !header.is_commit() {
            return None;
        }
        // SAFETY: passed on.
        guarded(self, None, || unsafe { self.refuses_group() }.map(|refusal| self.refuse_group(refusal)))
    }

    /// Waits for the bucket as this connection's commits do, and says what SQLite gets.
    ///
    /// An I/O error, since a busy one would have the application make the transaction again, and this one among them because an application that
    /// asks for extended codes sees it for nothing else.
    fn await_acknowledgement(&self, replicas: &Replicas, own_commit: Each<Option<u64>>) -> c_int {
        let waited = guarded(self, Err(NotAcknowledged), || durability::after_commit(replicas, &self.policy, own_commit));
        if waited.is_ok() { SQLITE_OK } else { SQLITE_IOERR_COMMIT_ATOMIC }
    }
}

pub(super) unsafe extern "C" fn main_write(file: *mut File, from: *const c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: see above.
    unsafe {
        let change = FileChange::Write { offset: offset.cast_unsigned(), bytes: u64::try_from(bytes).unwrap_or(0) };
        let is_there = || {
            let size = usize::try_from(bytes).unwrap_or(0);
            let mut there = vec![0; size];
            read_base(file, &mut there, offset.cast_unsigned()) && there == std::slice::from_raw_parts(from.cast::<u8>(), size)
        };
        if let Some(rc) = main_of(file).answer_of_change(is_there) {
            return rc;
        }
        main_of(file).before_change(file, change);
        write(file, from, bytes, offset)
    }
}

pub(super) unsafe extern "C" fn main_truncate(file: *mut File, bytes: i64) -> c_int {
    // SAFETY: see above.
    unsafe {
        let is_so_long = || {
            let mut size = 0;
            file_size(file, &raw mut size) == SQLITE_OK && size == bytes
        };
        if let Some(rc) = main_of(file).answer_of_change(is_so_long) {
            return rc;
        }
        main_of(file).before_change(file, FileChange::Truncate { bytes: bytes.cast_unsigned() });
        truncate(file, bytes)
    }
}

pub(super) unsafe extern "C" fn main_sync(file: *mut File, flags: c_int) -> c_int {
    // SAFETY: see above.
    let (main, rc) = unsafe { (main_of(file), fork::unlocked(|| sync(file, flags))) };
    if rc == SQLITE_OK
        && let Some(replicas) = main.replicas()
    {
        let ends_alone = main.ends_alone.swap(false, Ordering::Relaxed);
        replicas.each((), |database| {
            database.note_synced(true);
            if ends_alone {
                database.ends_with_sync();
            }
        });
    }
    rc
}

/// Whether a read failed only because the file ends within what was to be read: a page that is there in part. SQLite takes it for one that ends with
/// zeros, as the VFS below has put them behind what it read.
///
/// # Safety
/// `file` is an open file of ours.
unsafe fn begins_within(file: *mut File, rc: c_int, offset: i64) -> bool {
    let mut size = 0;
    // SAFETY: passed on.
    rc == SQLITE_IOERR_SHORT_READ && unsafe { file_size(file, &raw mut size) } == SQLITE_OK && offset < size
}

/// Reads the base's file; false on failure.
///
/// # Safety
/// `file` is an open file of ours.
unsafe fn read_base(file: *mut File, page: &mut [u8], at: u64) -> bool {
    let (Ok(bytes), Ok(at)) = (c_int::try_from(page.len()), i64::try_from(at)) else { return false };
    // SAFETY: the buffer has that many bytes.
    unsafe {
        let rc = read(file, page.as_mut_ptr().cast(), bytes, at);
        rc == SQLITE_OK || begins_within(file, rc, at)
    }
}

/// Keeps account of the lock: one that goes from SHARED straight to EXCLUSIVE with a journal there is about to roll that back.
pub(super) unsafe extern "C" fn main_lock(file: *mut File, level: c_int) -> c_int {
    // A hot journal is rolled back without RESERVED, and so is a journal mode left. Under exclusive locking RESERVED may be held from a transaction that
    // has changed nothing.
    // SAFETY: see above.
    let held = unsafe { main_of(file) }.lock_level.load(Ordering::Relaxed);
    if (level == SQLITE_LOCK_RESERVED || level == SQLITE_LOCK_EXCLUSIVE && held == SQLITE_LOCK_RESERVED)
        // SAFETY: see above.
        && let Some(rc) = unsafe { main_of(file) }.refusal_of_writes()
    {
        return rc;
    }
    // SAFETY: see above.
    if let Some(rc) = unsafe { main_of(file).refusal_before_lock(level) } {
        return rc;
    }
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    // To leave WAL mode, or to delete the WAL at the last close.
    let wants_all = level == SQLITE_LOCK_EXCLUSIVE
        && main.in_wal_mode.load(Ordering::Relaxed)
        && main.database().is_some_and(|database| database.handles.load(Ordering::Acquire) == 1);
    if wants_all {
        main.keeps_ahead_out(KeepsOut::ByFileLock);
    }
    // SAFETY: see above.
    let rc = unsafe { lock(file, level) };
    if rc != SQLITE_OK && wants_all {
        main.lets_ahead_in(KeepsOut::ByFileLock);
    }
    if rc == SQLITE_OK
        && let Some(database) = main.database()
    {
        let before = main.lock_level.swap(level, Ordering::Relaxed);
        if level == SQLITE_LOCK_EXCLUSIVE && before == SQLITE_LOCK_SHARED {
            main.rolls_back.store(guarded(main, false, || database.has_hot_journal()), Ordering::Relaxed);
        }
    }
    rc
}

/// The last moment at which nobody else can write: notes what the database file looks like after a transaction was rolled back, or the WAL deleted.
pub(super) unsafe extern "C" fn main_unlock(file: *mut File, level: c_int) -> c_int {
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    if let Some(replicas) = main.replicas() {
        // SAFETY: see above.
        let read = &mut |page: &mut [u8], at| unsafe { read_base(file, page, at) };
        let writes_file = main.writes_file.swap(false, Ordering::Relaxed);
        replicas.each((), |database| {
            if writes_file {
                database.leaves_file(read);
            }
            if level == SQLITE_LOCK_NONE {
                if main.lock_level.load(Ordering::Relaxed) >= SQLITE_LOCK_SHARED {
                    database.sees_file(read);
                }
                if database.stamp_due.load(Ordering::Relaxed) {
                    database.stamp_clean();
                }
            }
        });
        main.lock_level.store(level, Ordering::Relaxed);
        main.rolls_back.store(false, Ordering::Relaxed);
        main.has_committed.store(false, Ordering::Relaxed);
    }
    // SAFETY: see above.
    let rc = unsafe { unlock(file, level) };
    if level < SQLITE_LOCK_EXCLUSIVE {
        main.lets_ahead_in(KeepsOut::ByFileLock);
    }
    rc
}

pub(super) unsafe extern "C" fn main_shm_map(file: *mut File, region: c_int, bytes: c_int, extend: c_int, out: *mut *mut c_void) -> c_int {
    // SAFETY: see above; `out` is SQLite's.
    unsafe {
        let rc = shm_map(file, region, bytes, extend, out);
        if rc == SQLITE_OK && region == 0 {
            main_of(file).index.store((*out).cast(), Ordering::Release);
        }
        rc
    }
}

pub(super) unsafe extern "C" fn main_shm_unmap(file: *mut File, delete: c_int) -> c_int {
    // SAFETY: see above.
    unsafe {
        let main = main_of(file);
        if let Some(replicas) = main.replicas() {
            // The last that this connection can tell of other processes' commits: SQLite may delete the WAL next.
            guarded(main, (), || main.look_at_index(replicas));
        }
        if main.generation != process::generation() {
            // The child of a fork: the list is the parent's.
            main.index.store(std::ptr::null_mut(), Ordering::Release);
            return shm_unmap(file, delete);
        }
        group::while_nobody_reads(main, || {
            main.index.store(std::ptr::null_mut(), Ordering::Release);
            shm_unmap(file, delete)
        })
    }
}

/// Commits become visible, and the WAL is restarted, under these locks.
///
/// ```text
///   LOCK   EXCL WRITE            a write transaction begins
///   UNLOCK EXCL WRITE            ... is over: what the WAL-index shows now is committed, and stable until the lock is released
///   LOCK   EXCL READ(1)..READ(4) the WAL is to be restarted: the gate
///   LOCK   SHARED READ(k)        a reader: recovery is done, the WAL-index is valid
/// ```
pub(super) unsafe extern "C" fn main_shm_lock(file: *mut File, offset: c_int, n: c_int, flags: c_int) -> c_int {
    const TAKE: c_int = SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE;
    const GIVE: c_int = SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE;
    const READ: c_int = SQLITE_SHM_LOCK | SQLITE_SHM_SHARED;
    const GIVE_READ: c_int = SQLITE_SHM_UNLOCK | SQLITE_SHM_SHARED;
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    let Some(replicas) = main.replicas() else {
        // SAFETY: see above.
        return unsafe { shm_lock(file, offset, n, flags) };
    };
    let observe = || {
        let index = main.index_header();
        let mut frames = main.frames.lock();
        let own = replicas.each(durability::UNSEEN, |database| match &index {
            Some(index) => database.commits_in_wal(index, &frames).unwrap_or_default(),
            None => durability::UNSEEN,
        });
        if let Some(index) = &index {
            frames.clear();
            if main.ahead().is_some_and(|ahead| guarded(main, false, || ahead.is_due(index.max_frame))) {
                main.wakes_ahead.store(true, Ordering::Relaxed);
            }
        }
        own
    };
    match (flags, offset, n) {
        (GIVE, WAL_WRITE_LOCK, 1) => {
            main.holds_write.store(false, Ordering::Relaxed);
            main.note_own_commit(observe());
        }
        // Recovery takes the lock without a read transaction, and so does a checkpoint.
        (TAKE, WAL_WRITE_LOCK, 1) if main.holds_read.load(Ordering::Relaxed) && !main.holds_checkpoint.load(Ordering::Relaxed) => {
            if let Some(rc) = main.refusal_of_writes() {
                return rc;
            }
        }
        (GIVE_READ, WAL_READ_LOCK_0.., 1) => main.holds_read.store(false, Ordering::Relaxed),
        (GIVE, WAL_CHECKPOINT_LOCK, 1) => {
            main.holds_checkpoint.store(false, Ordering::Relaxed);
            if main.checkpoints.swap(false, Ordering::Relaxed) {
                replicas.each((), |database| database.checkpoint_ended());
                replicas.each((), |database| database.writes_file(false));
            }
        }
        (TAKE, WAL_CHECKPOINT_LOCK, 1) => main.keeps_ahead_out(KeepsOut::ByCheckpointLock),
        (TAKE, 4, 4) => {
            let asked_for = main.holds_checkpoint.load(Ordering::Relaxed);
            let index = main.index_header();
            // Also the one that comes second makes safe what it has, whatever the first one says.
            let allowed = replicas.each(false, |database| index.as_ref().is_some_and(|index| database.may_restart(index, asked_for)));
            if !allowed.all() {
                return SQLITE_BUSY;
            }
        }
        _ => {}
    }
    // SAFETY: see above.
    let mut rc = unsafe { shm_lock(file, offset, n, flags) };
    if flags == GIVE_READ
        && main.wakes_ahead.load(Ordering::Relaxed)
        && main.wakes_ahead.swap(false, Ordering::Relaxed)
        && let Some(ahead) = main.ahead()
        // SAFETY: SQLite is within this connection, and so is this thread.
        && guarded(main, false, || unsafe { main.is_seen_by_sqlite(file) })
    {
        guarded(main, (), || ahead.wake(&replicas.first));
    }
    if offset == WAL_CHECKPOINT_LOCK && n == 1 {
        if flags == TAKE && rc == SQLITE_BUSY && main.ahead().is_some() {
            // SAFETY: see above.
            rc = wait_while_ahead(&replicas.first, || unsafe { shm_lock(file, offset, n, flags) });
        }
        if flags == GIVE || rc != SQLITE_OK {
            main.lets_ahead_in(KeepsOut::ByCheckpointLock);
        }
    }
    if rc == SQLITE_OK {
        if flags == READ && offset >= WAL_READ_LOCK_0 {
            main.holds_read.store(true, Ordering::Relaxed);
        }
        match (flags, offset) {
            (TAKE, WAL_WRITE_LOCK) => {
                main.holds_write.store(true, Ordering::Relaxed);
                main.frames.lock().clear();
                main.note_own_commit(Each { first: 0, second: Some(0) });
                if !replicas.iter().all(|database| database.has_seen_index()) {
                    observe();
                }
            }
            (TAKE, 4) if n == 4 => drop(replicas.each((), |database| database.wal_is_empty())),
            (TAKE, WAL_CHECKPOINT_LOCK) if n == 1 => {
                main.holds_checkpoint.store(true, Ordering::Relaxed);
                main.has_synced_wal.store(false, Ordering::Relaxed);
            }
            (READ, WAL_READ_LOCK_0..) => {
                for database in replicas.iter().filter(|database| !database.has_seen_index()) {
                    guarded(main, (), || database.observe_first(|| main.index_header()));
                }
            }
            _ => {}
        }
    }
    rc
}

/// Takes the checkpoint lock, which the connection of ours of another process may have for a moment.
fn wait_while_ahead(database: &Database, take: impl Fn() -> c_int) -> c_int {
    /// A process may have died, or have been stopped, in the midst of it.
    const LIMIT: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_micros(200);
    let deadline = Instant::now() + LIMIT;
    let mut rc = SQLITE_BUSY;
    while rc == SQLITE_BUSY && database.shared.checkpointing.load(Ordering::Acquire) != 0 && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
        rc = take();
    }
    // It may have gone between the two.
    if rc == SQLITE_BUSY { take() } else { rc }
}

pub(super) unsafe extern "C" fn main_file_control(file: *mut File, operation: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    // SAFETY: a header is held for an open WAL only.
    let rc = unsafe { release(main) };
    if rc != SQLITE_OK {
        return rc;
    }
    if operation == SQLITE_FCNTL_PRAGMA {
        // SAFETY: for this operation the argument is an array of at least three C strings, the first to be set by us.
        if let Some(rc) = unsafe { answer_pragma(main, argument.cast()) } {
            return rc;
        }
    }
    let mut own_commit = Each::default();
    if let Some(replicas) = main.replicas() {
        match operation {
            SQLITE_FCNTL_PDB => main.connection.store(argument.cast(), Ordering::Release),
            // The name of a super-journal that is not ours.
            SQLITE_FCNTL_SYNC if !argument.is_null() && main.policy.waits() => {
                return guarded(main, SQLITE_AUTH, || main.refuse_group(Refusal::Ignored));
            }
            SQLITE_FCNTL_CKPT_START => guarded(main, (), || {
                main.checkpoints.store(true, Ordering::Relaxed);
                // SQLite syncs the WAL before it says this. Where it takes no lock nobody knows since when that counts.
                let is_synced = main.holds_checkpoint.load(Ordering::Relaxed) && main.has_synced_wal.load(Ordering::Relaxed);
                main.checkpoints_unsynced.store(!is_synced, Ordering::Relaxed);
                replicas.each((), |database| database.checkpoint_begins());
            }),
            SQLITE_FCNTL_CKPT_DONE => {
                main.checkpoints_unsynced.store(false, Ordering::Relaxed);
                // What it cuts off and syncs comes after this. Without shared memory no lock tells of the end.
                if !main.holds_checkpoint.load(Ordering::Relaxed) {
                    replicas.each((), |database| {
                        database.leave_unknown();
                        database.writes_file(false);
                    });
                }
            }
            // The last that is heard of a rollback under an exclusive lock.
            SQLITE_FCNTL_SYNC => {
                main.rolls_back.store(false, Ordering::Relaxed);
                // SAFETY: see above.
                let alone = guarded(main, false, || replicas.iter().any(|d| d.is_unprotected()) && unsafe { main.changes_alone() });
                main.ends_alone.store(alone, Ordering::Relaxed);
            }
            // SAFETY: see above.
            SQLITE_FCNTL_COMMIT_PHASETWO => {
                // SAFETY: see above.
                own_commit = guarded(main, Each::of(Some(durability::UNSEEN)), || unsafe { main.committed(file, replicas) });
            }
            _ => {}
        }
    }
    // SAFETY: see above.
    let rc = unsafe { file_control(file, operation, argument) };
    if operation == SQLITE_FCNTL_COMMIT_PHASETWO
        && matches!(rc, SQLITE_OK | SQLITE_NOTFOUND)
        && let Some(replicas) = main.replicas()
    {
        return main.await_acknowledgement(replicas, own_commit);
    }
    if operation == SQLITE_FCNTL_VFSNAME && rc == SQLITE_OK {
        let name = argument.cast::<*mut c_char>();
        // SAFETY: for this operation the argument points to a string of SQLite's allocator, which we replace.
        unsafe { *name = main.api.prefixed(c"replicated/", *name) };
    }
    rc
}

/// # Safety
/// `strings` is the argument of `SQLITE_FCNTL_PRAGMA`.
unsafe fn answer_pragma(main: &MainFile, strings: *mut *mut c_char) -> Option<c_int> {
    let replicas = main.replicas()?;
    // SAFETY: the second is the pragma's name, the third its value or null.
    let (name, value) = unsafe {
        let value = *strings.add(2);
        (CStr::from_ptr(*strings.add(1)), (!value.is_null()).then(|| CStr::from_ptr(value)))
    };
    let answer = guarded(main, None, || {
        if name.to_bytes().starts_with(b"replicated_") {
            main.look_at_index(replicas);
        }
        pragma::answer(replicas, &main.policy, &name.to_string_lossy(), value.map(CStr::to_string_lossy).as_deref())
    });
    let (rc, text) = match answer? {
        Answer::Text(text) => (SQLITE_OK, text),
        Answer::Error(text) => (super::abi::SQLITE_ERROR, text),
    };
    // A null here would leave the result's column without a name, which some clients do not survive.
    let text = main.api.sqlite_string(&text);
    if text.is_null() {
        return Some(super::abi::SQLITE_NOMEM);
    }
    // SAFETY: the first string is ours to set, to memory of SQLite's allocator.
    unsafe { *strings = text };
    Some(rc)
}
