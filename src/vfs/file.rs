//! Open files of ours: the database and its WAL. Everything is forwarded; the few methods with a behaviour of their own are `main_*` and `wal_*`.

use std::any::Any;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::abi::{
    File, IoMethods, SQLITE_AUTH, SQLITE_BUSY, SQLITE_FCNTL_CKPT_DONE, SQLITE_FCNTL_CKPT_START, SQLITE_FCNTL_COMMIT_PHASETWO,
    SQLITE_FCNTL_PDB, SQLITE_FCNTL_PRAGMA, SQLITE_FCNTL_SYNC, SQLITE_FCNTL_VFSNAME, SQLITE_IOERR, SQLITE_IOERR_COMMIT_ATOMIC,
    SQLITE_IOERR_SHORT_READ, SQLITE_LOCK_EXCLUSIVE, SQLITE_LOCK_NONE, SQLITE_LOCK_RESERVED, SQLITE_LOCK_SHARED, SQLITE_NOTFOUND, SQLITE_OK,
    SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_SHARED, SQLITE_SHM_UNLOCK, WAL_CHECKPOINT_LOCK, WAL_READ_LOCK_0, WAL_WRITE_LOCK,
};
use super::api::SqliteApi;
use super::group::{self, FileName, Refusal};
use super::pragma::{self, Answer};
use crate::replicator::database::Database;
use crate::replicator::durability::{self, NotAcknowledged, Policy};
use crate::replicator::frames::WrittenFrames;
use crate::replicator::outside::{FileChange, Writer};
use crate::replicator::process;
use crate::replicator::uploader::panic_text;
use crate::wal::{FRAME_HEADER_BYTES, FrameHeader, INDEX_HEADER_BYTES, IndexHeader};

/// What SQLite allocates for a file of ours; the base's file follows at once.
#[repr(C)]
pub(crate) struct ShimFile {
    methods: *const IoMethods,
    state: *mut FileState,
}

/// Bytes of ours before the base's file; keeps it aligned.
pub(crate) const SHIM_BYTES: usize = size_of::<ShimFile>();

enum FileState {
    Main(MainFile),
    Wal(WalSide),
}

/// A database file.
pub(super) struct MainFile {
    pub(super) api: &'static SqliteApi,
    /// `None`: opened read-only, everything passes through.
    database: Option<Arc<Database>>,
    /// As SQLite passed it.
    pub(super) name: FileName,
    /// Where SQLite keeps the connection that works with the file.
    pub(super) connection: AtomicPtr<*mut c_void>,
    /// The refusal of a transaction over several databases was logged.
    pub(super) told_of_group: AtomicBool,
    /// What this connection's commits wait for.
    pub(super) policy: Policy,
    /// The sequence number of the commit that this connection has published and that `COMMIT_PHASETWO` has not come for; 0 for none.
    own_commit: AtomicU64,
    /// The process of a chain of forks that opened it.
    pub(super) generation: usize,
    /// The WAL-index's first region, while it is mapped.
    index: AtomicPtr<u8>,
    /// This connection holds the WAL's write lock.
    pub(super) holds_write: AtomicBool,
    /// This connection holds the checkpoint lock.
    holds_checkpoint: AtomicBool,
    /// It has written to the database file under that lock.
    checkpoints: AtomicBool,
    /// A checkpoint has begun, and the WAL was not synced since.
    checkpoints_unsynced: AtomicBool,
    /// It has its WAL open, so that only checkpoints write to the database file.
    pub(super) in_wal_mode: AtomicBool,
    /// Frames were written without the WAL's write lock: there is no shared memory.
    wrote_unlocked: AtomicBool,
    /// How far they reach, in bytes of the file.
    unlocked_end: AtomicU64,
    /// The frames that were written since the transaction began.
    frames: Mutex<WrittenFrames>,
    /// A write or sync of the WAL has failed since the transaction began: what lies there is not committed.
    wal_failed: AtomicBool,
    /// The lock that it holds on the database file, of SQLite's five levels.
    pub(super) lock_level: AtomicI32,
    /// It took the EXCLUSIVE lock to roll back what a dead process left.
    rolls_back: AtomicBool,
    /// It has written to the database file, and neither committed nor given its lock up.
    writes_file: AtomicBool,
    /// It has committed to the database file under the lock that it holds.
    has_committed: AtomicBool,
    /// It is about to sync the database file at the end of a transaction that changes nothing else.
    ends_alone: AtomicBool,
}

/// A WAL, with the database that it belongs to. SQLite closes it before that.
struct WalSide {
    main: *const MainFile,
}

impl MainFile {
    /// The replicated database, unless this is the child of a fork that happened since: SQLite forbids using the connection there.
    pub(super) fn database(&self) -> Option<&Arc<Database>> {
        self.database.as_ref().filter(|_| self.generation == process::generation())
    }

    /// The WAL-index header as it is; `None` where it is not mapped, not initialised or being written.
    fn index_header(&self) -> Option<IndexHeader> {
        let index = self.index.load(Ordering::Acquire);
        if index.is_null() {
            return None;
        }
        let read = |copy: usize| {
            let mut bytes = [0_u8; INDEX_HEADER_BYTES];
            for (at, word) in bytes.chunks_exact_mut(4).enumerate() {
                // SAFETY: the region is mapped (SQLite unmaps it through `main_shm_unmap`), at least 32 KiB long and aligned; other
                // processes may write it, hence volatile.
                let value = unsafe { index.add(copy * INDEX_HEADER_BYTES).cast::<u32>().add(at).read_volatile() };
                word.copy_from_slice(&value.to_ne_bytes());
            }
            bytes
        };
        let (first, second) = (read(0), read(1));
        if first == second { IndexHeader::decode(&first) } else { None }
    }
}

/// Makes an opened file ours. The base's file is open behind `file`.
///
/// # Safety
/// `file` points to the memory that SQLite passed to `xOpen` of our VFS, with an open base file behind our part.
pub(crate) unsafe fn become_main(
    file: *mut File,
    api: &'static SqliteApi,
    name: FileName,
    database: Option<Arc<Database>>,
    policy: Policy,
) {
    if database.is_some() {
        process::note_main(name as usize, file as usize);
    }
    let main = MainFile {
        api,
        database,
        name,
        connection: AtomicPtr::new(std::ptr::null_mut()),
        told_of_group: AtomicBool::new(false),
        policy,
        own_commit: AtomicU64::new(0),
        generation: process::generation(),
        index: AtomicPtr::new(std::ptr::null_mut()),
        holds_write: AtomicBool::new(false),
        holds_checkpoint: AtomicBool::new(false),
        checkpoints: AtomicBool::new(false),
        checkpoints_unsynced: AtomicBool::new(false),
        in_wal_mode: AtomicBool::new(false),
        wrote_unlocked: AtomicBool::new(false),
        unlocked_end: AtomicU64::new(0),
        frames: Mutex::default(),
        wal_failed: AtomicBool::new(false),
        lock_level: AtomicI32::new(SQLITE_LOCK_NONE),
        rolls_back: AtomicBool::new(false),
        writes_file: AtomicBool::new(false),
        has_committed: AtomicBool::new(false),
        ends_alone: AtomicBool::new(false),
    };
    // SAFETY: passed on; what has become ours has its state.
    unsafe {
        become_ours(file, FileState::Main(main), &MAIN);
        if let Some(FileState::Main(main)) = state_of(file)
            && main.database.is_some()
        {
            group::opened(main);
        }
    }
}

/// Makes an opened super-journal ours, so that we hear which databases a transaction has.
///
/// # Safety
/// As `become_main`.
pub(crate) unsafe fn become_super_journal(file: *mut File) {
    // SAFETY: the base's file is open, and our part of the memory is ours.
    unsafe {
        let table = table_for(base_of(file).1, &SUPER_JOURNAL);
        file.cast::<ShimFile>().write(ShimFile { methods: table, state: std::ptr::null_mut() });
    }
}

/// Makes an opened WAL ours, if its database is.
///
/// # Safety
/// As `become_main`; `main` is an open file of this process that SQLite closes after the WAL, or null.
pub(crate) unsafe fn become_wal(file: *mut File, main: *mut File) -> bool {
    // SAFETY: `main` is null or an open file.
    let Some(FileState::Main(main)) = (unsafe { state_of(main) }) else { return false };
    if main.database.is_none() {
        return false;
    }
    main.in_wal_mode.store(true, Ordering::Relaxed);
    // SAFETY: passed on.
    unsafe { become_ours(file, FileState::Wal(WalSide { main }), &WAL) };
    true
}

/// The state of a file if it is one of ours.
///
/// # Safety
/// `file` is null or an open file.
unsafe fn state_of<'a>(file: *mut File) -> Option<&'a FileState> {
    // SAFETY: an open file begins with its methods.
    let methods = unsafe { file.as_ref() }?.methods;
    let ours = MAIN.iter().chain(&WAL).any(|table| std::ptr::eq(table, methods));
    // SAFETY: our methods stand only in a `ShimFile`, whose state lives until `close`.
    if ours { unsafe { (*file.cast::<ShimFile>()).state.as_ref() } } else { None }
}

unsafe fn become_ours(file: *mut File, state: FileState, tables: &'static [IoMethods; TABLES]) {
    // SAFETY: the base's file is open.
    let table = table_for(unsafe { base_of(file) }.1, tables);
    let shim = file.cast::<ShimFile>();
    // SAFETY: the memory is ours, `SHIM_BYTES` of it.
    unsafe { shim.write(ShimFile { methods: table, state: Box::into_raw(Box::new(state)) }) };
}

/// The table whose shape is that of the base's.
const fn table_for(base: &IoMethods, tables: &'static [IoMethods; TABLES]) -> &'static IoMethods {
    match (base.version, base.shm_map.is_some()) {
        (..=1, _) => &tables[0],
        (2, false) => &tables[1],
        (2, true) => &tables[2],
        (_, false) => &tables[3],
        (_, true) => &tables[4],
    }
}

/// Where the base's file lies.
pub(crate) const fn base_at(file: *mut File) -> *mut File {
    file.cast::<u8>().wrapping_add(SHIM_BYTES).cast()
}

/// The base's file and its methods.
///
/// # Safety
/// `file` is ours and the base's file is open.
unsafe fn base_of(file: *mut File) -> (*mut File, &'static IoMethods) {
    let base = base_at(file);
    // SAFETY: an open file's methods are static.
    (base, unsafe { &*(*base).methods })
}

/// A panic was caught.
pub(crate) fn poison(database: &Database, panic: &(dyn Any + Send)) {
    // Should the panic repeat here, it is caught as well; there is nothing left to do.
    let _ = catch_unwind(AssertUnwindSafe(|| database.poison(&panic_text(panic))));
}

/// Runs a callback's own part. A panic ends the replication of the database and nothing else.
fn guarded<T>(main: &MainFile, after_panic: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        if let Some(database) = &main.database {
            poison(database, &*panic);
        }
        after_panic
    })
}

/// The state of a main file.
///
/// # Safety
/// `file` is an open file with a table of `MAIN`.
unsafe fn main_of<'a>(file: *mut File) -> &'a MainFile {
    // SAFETY: passed on.
    match unsafe { &*(*file.cast::<ShimFile>()).state } {
        FileState::Main(main) => main,
        // SAFETY: only to satisfy the type: a WAL's partner is open as long as the WAL.
        FileState::Wal(wal) => unsafe { &*wal.main },
    }
}

macro_rules! forward {
    ($name:ident, $slot:ident, ($($arg:ident: $type:ty),*), $missing:expr) => {
        unsafe extern "C" fn $name(file: *mut File $(, $arg: $type)*) -> c_int {
            // SAFETY: SQLite calls the methods of an open file only; the arguments pass through untouched.
            unsafe {
                let (base, methods) = base_of(file);
                match methods.$slot {
                    Some(method) => method(base $(, $arg)*),
                    None => $missing,
                }
            }
        }
    };
}

forward!(read, read, (to: *mut c_void, bytes: c_int, offset: i64), SQLITE_IOERR);
forward!(write, write, (from: *const c_void, bytes: c_int, offset: i64), SQLITE_IOERR);
forward!(truncate, truncate, (bytes: i64), SQLITE_IOERR);
forward!(sync, sync, (flags: c_int), SQLITE_IOERR);
forward!(file_size, file_size, (bytes: *mut i64), SQLITE_IOERR);
forward!(lock, lock, (level: c_int), SQLITE_IOERR);
forward!(unlock, unlock, (level: c_int), SQLITE_IOERR);
forward!(check_reserved_lock, check_reserved_lock, (out: *mut c_int), SQLITE_IOERR);
forward!(file_control, file_control, (operation: c_int, argument: *mut c_void), SQLITE_NOTFOUND);
forward!(sector_size, sector_size, (), 0);
forward!(device_characteristics, device_characteristics, (), 0);
forward!(shm_map, shm_map, (region: c_int, bytes: c_int, extend: c_int, out: *mut *mut c_void), SQLITE_IOERR);
forward!(shm_lock, shm_lock, (offset: c_int, n: c_int, flags: c_int), SQLITE_IOERR);
forward!(shm_unmap, shm_unmap, (delete: c_int), SQLITE_OK);
forward!(fetch, fetch, (offset: i64, bytes: c_int, out: *mut *mut c_void), SQLITE_IOERR);
forward!(unfetch, unfetch, (offset: i64, page: *mut c_void), SQLITE_OK);

unsafe extern "C" fn shm_barrier(file: *mut File) {
    // SAFETY: as `forward!`.
    unsafe {
        let (base, methods) = base_of(file);
        if let Some(barrier) = methods.shm_barrier {
            barrier(base);
        }
    }
}

// The methods with a behaviour of their own. SAFETY of each: SQLite calls them on an open file of ours, and never two at once on one file.

/// Closes the file, then flushes if it was the last: no lock is held by then.
unsafe extern "C" fn close(file: *mut File) -> c_int {
    // SAFETY: see above; the state is freed once, and the methods are cleared so that nobody comes back.
    let (rc, state) = unsafe {
        match state_of(file) {
            Some(FileState::Main(main)) if main.database().is_some() => group::closes(main),
            // SQLite deletes it next.
            Some(FileState::Wal(wal)) => {
                let main = &*wal.main;
                if let Some(database) = main.database() {
                    guarded(main, (), || main.before_unlocked_end(database));
                }
            }
            _ => {}
        }
        let (base, methods) = base_of(file);
        let rc = methods.close.map_or(SQLITE_OK, |close| close(base));
        let shim = &mut *file.cast::<ShimFile>();
        shim.methods = std::ptr::null();
        (rc, Box::from_raw(std::mem::replace(&mut shim.state, std::ptr::null_mut())))
    };
    match *state {
        FileState::Main(main) => {
            let database = main.database().cloned();
            if let Some(database) = database {
                process::forget_main(file as usize);
                guarded(&main, (), || process::close(&database));
            } else if main.database.is_some() {
                // Opened before a fork: what the parent's thread shares with us is left alone for ever.
                std::mem::forget(main);
            }
        }
        // SAFETY: a WAL's partner is open as long as the WAL.
        FileState::Wal(wal) => unsafe { &*wal.main }.in_wal_mode.store(false, Ordering::Relaxed),
    }
    rc
}

impl MainFile {
    /// The database file is about to be changed: a snapshot may still need what is there, and what no checkpoint writes is a transaction's.
    ///
    /// # Safety
    /// `file` is this file, open.
    unsafe fn before_change(&self, file: *mut File, change: FileChange) {
        let Some(database) = self.database() else { return };
        // SAFETY: passed on.
        let read = &mut |page: &mut [u8], at| unsafe { read_base(file, page, at) };
        guarded(self, (), || {
            database.note_synced(false);
            if self.checkpoints_unsynced.swap(false, Ordering::Relaxed) {
                database.checkpoint_outruns_wal();
            }
            if !self.in_wal_mode.load(Ordering::Relaxed) {
                self.writes_file.store(true, Ordering::Relaxed);
                let writer = Writer {
                    rolls_back: self.rolls_back.load(Ordering::Relaxed),
                    has_committed: self.has_committed.load(Ordering::Relaxed),
                };
                database.changes_file(change, writer, read);
            }
            if database.is_preserving() {
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
    unsafe fn committed(&self, file: *mut File, database: &Arc<Database>) -> Option<u64> {
        let published = self.own_commit.swap(0, Ordering::Relaxed);
        if self.wrote_unlocked.swap(false, Ordering::Relaxed) {
            let written_bytes = self.unlocked_end.swap(0, Ordering::Relaxed);
            let mut frames = self.frames.lock();
            if self.wal_failed.swap(false, Ordering::Relaxed) {
                frames.clear();
                return None;
            }
            match self.index_header() {
                Some(index) => database.commits_in_wal(&index, &mut frames),
                None => database.commits_exclusively(written_bytes, &mut frames),
            }
        } else if !self.in_wal_mode.load(Ordering::Relaxed) {
            // SAFETY: passed on.
            let own = database.commits_file(&mut |page, at| unsafe { read_base(file, page, at) });
            if self.writes_file.swap(false, Ordering::Relaxed) {
                self.has_committed.store(true, Ordering::Relaxed);
            }
            own
        } else {
            (published > 0).then_some(published)
        }
    }

    /// The WAL is about to be destroyed, under exclusive locking. A transaction over several databases of which another one has failed is committed in
    /// this one all the same, and no `COMMIT_PHASETWO` has told so.
    fn before_unlocked_end(&self, database: &Arc<Database>) {
        if self.wrote_unlocked.load(Ordering::Relaxed) && !self.wal_failed.load(Ordering::Relaxed) && self.index_header().is_none() {
            // Its number is for those who wait for it, and nobody does.
            let _ = database.commits_exclusively(self.unlocked_end.load(Ordering::Relaxed), &mut self.frames.lock());
        }
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
    unsafe fn refusal_before_frame(&self, content: &[u8]) -> Option<c_int> {
        if content.len() != FRAME_HEADER_BYTES || content.get(4..8) == Some(&[0; 4]) {
            return None;
        }
        // SAFETY: passed on.
        guarded(self, None, || unsafe { self.refuses_group() }.map(|refusal| self.refuse_group(refusal)))
    }

    /// Waits for the bucket as this connection's commits do, and says what SQLite gets.
    ///
    /// An I/O error, since a busy one would have the application make the transaction again, and this one among them because an application that
    /// asks for extended codes sees it for nothing else.
    fn await_acknowledgement(&self, database: &Database, own_commit: Option<u64>) -> c_int {
        let waited = guarded(self, Err(NotAcknowledged), || durability::after_commit(database, &self.policy, own_commit));
        if waited.is_ok() { SQLITE_OK } else { SQLITE_IOERR_COMMIT_ATOMIC }
    }
}

unsafe extern "C" fn main_write(file: *mut File, from: *const c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: see above.
    unsafe {
        let change = FileChange::Write { offset: offset.cast_unsigned(), bytes: u64::try_from(bytes).unwrap_or(0) };
        main_of(file).before_change(file, change);
        write(file, from, bytes, offset)
    }
}

unsafe extern "C" fn main_truncate(file: *mut File, bytes: i64) -> c_int {
    // SAFETY: see above.
    unsafe {
        main_of(file).before_change(file, FileChange::Truncate { bytes: bytes.cast_unsigned() });
        truncate(file, bytes)
    }
}

unsafe extern "C" fn main_sync(file: *mut File, flags: c_int) -> c_int {
    // SAFETY: see above.
    let (main, rc) = unsafe { (main_of(file), sync(file, flags)) };
    if rc == SQLITE_OK
        && let Some(database) = main.database()
    {
        database.note_synced(true);
        if main.ends_alone.swap(false, Ordering::Relaxed) {
            guarded(main, (), || database.ends_with_sync());
        }
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
unsafe extern "C" fn main_lock(file: *mut File, level: c_int) -> c_int {
    // SAFETY: see above.
    if let Some(rc) = unsafe { main_of(file).refusal_before_lock(level) } {
        return rc;
    }
    // SAFETY: see above.
    let (main, rc) = unsafe { (main_of(file), lock(file, level)) };
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
unsafe extern "C" fn main_unlock(file: *mut File, level: c_int) -> c_int {
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    if let Some(database) = main.database() {
        // SAFETY: see above.
        let read = &mut |page: &mut [u8], at| unsafe { read_base(file, page, at) };
        guarded(main, (), || {
            if main.writes_file.swap(false, Ordering::Relaxed) {
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
    unsafe { unlock(file, level) }
}

unsafe extern "C" fn main_shm_map(file: *mut File, region: c_int, bytes: c_int, extend: c_int, out: *mut *mut c_void) -> c_int {
    // SAFETY: see above; `out` is SQLite's.
    unsafe {
        let rc = shm_map(file, region, bytes, extend, out);
        if rc == SQLITE_OK && region == 0 {
            main_of(file).index.store((*out).cast(), Ordering::Release);
        }
        rc
    }
}

unsafe extern "C" fn main_shm_unmap(file: *mut File, delete: c_int) -> c_int {
    // SAFETY: see above.
    unsafe {
        main_of(file).index.store(std::ptr::null_mut(), Ordering::Release);
        shm_unmap(file, delete)
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
unsafe extern "C" fn main_shm_lock(file: *mut File, offset: c_int, n: c_int, flags: c_int) -> c_int {
    const TAKE: c_int = SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE;
    const GIVE: c_int = SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE;
    const READ: c_int = SQLITE_SHM_LOCK | SQLITE_SHM_SHARED;
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    let Some(database) = main.database() else {
        // SAFETY: see above.
        return unsafe { shm_lock(file, offset, n, flags) };
    };
    let observe = || match main.index_header() {
        Some(index) => database.commits_in_wal(&index, &mut main.frames.lock()).unwrap_or_default(),
        None => durability::UNSEEN,
    };
    match (flags, offset, n) {
        (GIVE, WAL_WRITE_LOCK, 1) => {
            main.holds_write.store(false, Ordering::Relaxed);
            main.own_commit.store(guarded(main, durability::UNSEEN, observe), Ordering::Relaxed);
        }
        (GIVE, WAL_CHECKPOINT_LOCK, 1) => {
            main.holds_checkpoint.store(false, Ordering::Relaxed);
            if main.checkpoints.swap(false, Ordering::Relaxed) {
                guarded(main, (), || database.checkpoint_ended());
            }
        }
        (TAKE, 4, 4) => {
            let asked_for = main.holds_checkpoint.load(Ordering::Relaxed);
            let allowed = guarded(main, false, || main.index_header().is_some_and(|index| database.may_restart(&index, asked_for)));
            if !allowed {
                return SQLITE_BUSY;
            }
        }
        _ => {}
    }
    // SAFETY: see above.
    let rc = unsafe { shm_lock(file, offset, n, flags) };
    if rc == SQLITE_OK {
        match (flags, offset) {
            (TAKE, WAL_WRITE_LOCK) => {
                main.holds_write.store(true, Ordering::Relaxed);
                main.frames.lock().clear();
                main.own_commit.store(0, Ordering::Relaxed);
                if !database.has_seen_index() {
                    guarded(main, 0, observe);
                }
            }
            (TAKE, 4) if n == 4 => guarded(main, (), || database.wal_is_empty()),
            (TAKE, WAL_CHECKPOINT_LOCK) if n == 1 => main.holds_checkpoint.store(true, Ordering::Relaxed),
            (READ, WAL_READ_LOCK_0..) if !database.has_seen_index() => {
                guarded(main, (), || main.index_header().iter().for_each(|index| database.observe_first(index)));
            }
            _ => {}
        }
    }
    rc
}

unsafe extern "C" fn main_file_control(file: *mut File, operation: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    if operation == SQLITE_FCNTL_PRAGMA {
        // SAFETY: for this operation the argument is an array of at least three C strings, the first to be set by us.
        if let Some(rc) = unsafe { answer_pragma(main, argument.cast()) } {
            return rc;
        }
    }
    let mut own_commit = None;
    if let Some(database) = main.database() {
        match operation {
            SQLITE_FCNTL_PDB => main.connection.store(argument.cast(), Ordering::Release),
            // The name of a super-journal that is not ours.
            SQLITE_FCNTL_SYNC if !argument.is_null() && main.policy.waits() => {
                return guarded(main, SQLITE_AUTH, || main.refuse_group(Refusal::Ignored));
            }
            SQLITE_FCNTL_CKPT_START => guarded(main, (), || {
                main.checkpoints.store(true, Ordering::Relaxed);
                main.checkpoints_unsynced.store(true, Ordering::Relaxed);
                database.checkpoint_begins();
            }),
            SQLITE_FCNTL_CKPT_DONE => {
                main.checkpoints_unsynced.store(false, Ordering::Relaxed);
                guarded(main, (), || database.writes_file(false));
            }
            // The last that is heard of a rollback under an exclusive lock.
            SQLITE_FCNTL_SYNC => {
                main.rolls_back.store(false, Ordering::Relaxed);
                // SAFETY: see above.
                let alone = guarded(main, false, || database.is_unprotected() && unsafe { main.changes_alone() });
                main.ends_alone.store(alone, Ordering::Relaxed);
            }
            // SAFETY: see above.
            SQLITE_FCNTL_COMMIT_PHASETWO => {
                // SAFETY: see above.
                own_commit = guarded(main, Some(durability::UNSEEN), || unsafe { main.committed(file, database) });
            }
            _ => {}
        }
    }
    // SAFETY: see above.
    let rc = unsafe { file_control(file, operation, argument) };
    if operation == SQLITE_FCNTL_COMMIT_PHASETWO
        && matches!(rc, SQLITE_OK | SQLITE_NOTFOUND)
        && let Some(database) = main.database()
    {
        return main.await_acknowledgement(database, own_commit);
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
    let database = main.database()?;
    // SAFETY: the second is the pragma's name, the third its value or null.
    let (name, value) = unsafe {
        let value = *strings.add(2);
        (CStr::from_ptr(*strings.add(1)), (!value.is_null()).then(|| CStr::from_ptr(value)))
    };
    let answer = guarded(main, None, || {
        pragma::answer(database, &main.policy, &name.to_string_lossy(), value.map(CStr::to_string_lossy).as_deref())
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

/// Notices the header of a new generation and, where no shared memory announces commits, what belongs to one.
unsafe extern "C" fn wal_write(file: *mut File, from: *const c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    let Some(database) = main.database() else {
        // SAFETY: see above.
        return unsafe { write(file, from, bytes, offset) };
    };
    let unlocked = !main.holds_write.load(Ordering::Relaxed);
    if offset == 0 && bytes >= 24 {
        // SAFETY: SQLite passes at least that many bytes.
        let salts = unsafe { std::slice::from_raw_parts(from.cast::<u8>().add(16), 8) };
        guarded(main, (), || {
            if let ([a, b, c, d], [e, f, g, h]) = salts.split_at(4)
                && let (&[a, b, c, d], &[e, f, g, h]) = (&[*a, *b, *c, *d], &[*e, *f, *g, *h])
            {
                let salts = [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])];
                if unlocked {
                    main.before_unlocked_end(database);
                    database.restarts_exclusively(salts);
                }
                database.generation_begins(salts);
                main.frames.lock().clear();
            }
        });
    }
    // SAFETY: see above; SQLite passes as many bytes as it says.
    if let Some(rc) = unsafe { main.refusal_before_frame(std::slice::from_raw_parts(from.cast(), usize::try_from(bytes).unwrap_or(0))) } {
        main.wal_failed.store(true, Ordering::Relaxed);
        return rc;
    }
    if unlocked {
        main.wrote_unlocked.store(true, Ordering::Relaxed);
        main.unlocked_end.fetch_max(offset.cast_unsigned() + u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        if guarded(main, false, || database.begins_in_wal(offset.cast_unsigned())) {
            main.wal_failed.store(false, Ordering::Relaxed);
            main.frames.lock().clear();
        }
    }
    // SAFETY: see above; SQLite passes as many bytes as it says.
    let content = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), usize::try_from(bytes).unwrap_or(0)) };
    if let Ok(header) = content.try_into() {
        main.frames.lock().note(offset.cast_unsigned(), FrameHeader::decode(header));
    }
    // SAFETY: see above.
    let rc = unsafe { write(file, from, bytes, offset) };
    if rc != SQLITE_OK {
        main.wal_failed.store(true, Ordering::Relaxed);
    }
    rc
}

unsafe extern "C" fn wal_sync(file: *mut File, flags: c_int) -> c_int {
    // SAFETY: see above.
    let (main, rc) = unsafe { (main_of(file), sync(file, flags)) };
    if rc != SQLITE_OK {
        main.wal_failed.store(true, Ordering::Relaxed);
    } else if let Some(database) = main.database() {
        main.checkpoints_unsynced.store(false, Ordering::Relaxed);
        guarded(main, (), || database.wal_synced());
    }
    rc
}

/// SQLite writes the names of the journals of all databases that a transaction has, one at a time, before it commits any of them.
unsafe extern "C" fn super_journal_write(file: *mut File, from: *const c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: see above; SQLite passes as many bytes as it says.
    unsafe {
        let name = std::slice::from_raw_parts(from.cast::<u8>(), usize::try_from(bytes).unwrap_or(0));
        match catch_unwind(|| group::joins_super_journal(name)) {
            Ok(None) => write(file, from, bytes, offset),
            Ok(Some(rc)) => rc,
            Err(_) => SQLITE_AUTH,
        }
    }
}

unsafe extern "C" fn super_journal_close(file: *mut File) -> c_int {
    // SAFETY: see above; there is no state to be freed.
    unsafe {
        let (base, methods) = base_of(file);
        let rc = methods.close.map_or(SQLITE_OK, |close| close(base));
        (*file.cast::<ShimFile>()).methods = std::ptr::null();
        rc
    }
}

/// What is cut off must be safe before.
unsafe extern "C" fn wal_truncate(file: *mut File, bytes: i64) -> c_int {
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    if let Some(database) = main.database() {
        guarded(main, (), || {
            if bytes == 0 {
                main.before_unlocked_end(database);
            }
            database.wal_shrinks(bytes.cast_unsigned());
        });
    }
    // SAFETY: see above.
    unsafe { truncate(file, bytes) }
}

/// One table for each shape that a base file can have: SQLite decides by version and by null entries what it may use.
const TABLES: usize = 5;

const fn shapes(full: IoMethods) -> [IoMethods; TABLES] {
    let no_shm = IoMethods { shm_map: None, shm_lock: None, shm_barrier: None, shm_unmap: None, ..full };
    [
        IoMethods { version: 1, ..no_shm },
        IoMethods { version: 2, ..no_shm },
        IoMethods { version: 2, ..full },
        IoMethods { version: 3, ..no_shm },
        IoMethods { version: 3, ..full },
    ]
}

const FORWARD: IoMethods = IoMethods {
    version: 3,
    close: Some(close),
    read: Some(read),
    write: Some(write),
    truncate: Some(truncate),
    sync: Some(sync),
    file_size: Some(file_size),
    lock: Some(lock),
    unlock: Some(unlock),
    check_reserved_lock: Some(check_reserved_lock),
    file_control: Some(file_control),
    sector_size: Some(sector_size),
    device_characteristics: Some(device_characteristics),
    shm_map: Some(shm_map),
    shm_lock: Some(shm_lock),
    shm_barrier: Some(shm_barrier),
    shm_unmap: Some(shm_unmap),
    fetch: Some(fetch),
    unfetch: Some(unfetch),
};

static MAIN: [IoMethods; TABLES] = shapes(IoMethods {
    write: Some(main_write),
    truncate: Some(main_truncate),
    sync: Some(main_sync),
    lock: Some(main_lock),
    unlock: Some(main_unlock),
    file_control: Some(main_file_control),
    shm_map: Some(main_shm_map),
    shm_lock: Some(main_shm_lock),
    shm_unmap: Some(main_shm_unmap),
    ..FORWARD
});

static WAL: [IoMethods; TABLES] =
    shapes(IoMethods { write: Some(wal_write), truncate: Some(wal_truncate), sync: Some(wal_sync), ..FORWARD });

static SUPER_JOURNAL: [IoMethods; TABLES] =
    shapes(IoMethods { write: Some(super_journal_write), close: Some(super_journal_close), ..FORWARD });
