//! A VFS between SQLite's own and ours that counts calls, has the process die at one of them, and keeps account of what a disk would keep.
//!
//! Registered as the default before the VFS `replicated`, it becomes the one that `replicated` forwards to: so it sees what SQLite and the
//! extension do together. Everything is forwarded to the VFS that was the default before.

#![allow(unsafe_code, reason = "a VFS is a C interface, and this is the only file of the testkit that has one")]
#![allow(clippy::missing_safety_doc, reason = "nothing unsafe is public")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rusqlite::ffi;
use rusqlite::ffi::{sqlite3_file as File, sqlite3_io_methods as IoMethods, sqlite3_vfs as Vfs};

use super::disk::Disk;

/// What kind of file a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A database.
    Main,
    /// Its WAL.
    Wal,
    /// A rollback journal or a super-journal.
    Journal,
    /// A temporary file.
    Temporary,
}

/// A method of SQLite's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "SQLite's manual has them, with an x before")]
pub enum Method {
    Open,
    Delete,
    Access,
    Close,
    Read,
    Write,
    Truncate,
    Sync,
    FileSize,
    Lock,
    Unlock,
    CheckReservedLock,
    FileControl,
    ShmMap,
    ShmLock,
    ShmBarrier,
    ShmUnmap,
    Fetch,
    Unfetch,
}

impl Method {
    /// Whether a call changes a file or a lock.
    const fn changes(self) -> bool {
        use Method::{Access, CheckReservedLock, Fetch, FileSize, Read, ShmBarrier, Unfetch};
        !matches!(self, Read | FileSize | CheckReservedLock | Access | Fetch | Unfetch | ShmBarrier)
    }
}

/// A call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Of which method.
    pub method: Method,
    /// About which kind of file.
    pub kind: Kind,
    /// Which file; `None` for one without a name.
    pub path: Option<&'a Path>,
    /// The method's numbers, in its order: offset and length, lock level, operation, lock offset, count and flags.
    pub arguments: [i64; 3],
    /// It was forwarded already.
    pub is_done: bool,
}

/// Which calls count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Counted {
    /// All of them.
    All,
    /// Those that change a file or a lock.
    Changing,
    /// Deletions of a WAL.
    WalDeletions,
}

/// When the process dies.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct End {
    /// At which call, from 1.
    pub call: u64,
    /// Of which calls.
    pub counted: Counted,
    /// After it was carried out, not before.
    pub after: bool,
}

/// What is done at the end, with the files as they are then; the process is killed after it.
pub type LastAct = Box<dyn Fn(&Disk) + Send + Sync>;
/// Something that is called before and after every call.
pub type Hook = Arc<dyn Fn(&Call<'_>) + Send + Sync>;

/// Says of a call whether it fails, with an I/O error, and is not carried out.
pub type Refusal = Arc<dyn Fn(&Call<'_>) -> bool + Send + Sync>;

#[derive(Default)]
struct State {
    all: AtomicU64,
    changing: AtomicU64,
    end: OnceLock<(End, LastAct)>,
    /// Only kept where the power may fail.
    disk: Option<Mutex<Disk>>,
    hook: Mutex<Option<Hook>>,
    refusal: Mutex<Option<Refusal>>,
    wal_deletions: AtomicU64,
}

static STATE: OnceLock<State> = OnceLock::new();
static BASE: AtomicPtr<Vfs> = AtomicPtr::new(std::ptr::null_mut());

/// Registers the VFS as the default one. `models_disk` is for a power loss.
///
/// # Panics
/// Where it is registered already, or SQLite refuses.
pub fn register(models_disk: bool) {
    let state = State { disk: models_disk.then(Mutex::default), ..State::default() };
    assert!(STATE.set(state).is_ok(), "the VFS is registered already");
    // SAFETY: SQLite's own functions; the base VFS lives as long as the process, and so does ours, which is leaked.
    unsafe {
        let base = ffi::sqlite3_vfs_find(std::ptr::null());
        assert!(!base.is_null(), "SQLite has no VFS");
        BASE.store(base, Ordering::Release);
        // The methods that are taken over as they are do not look at what is replaced here.
        let vfs = Vfs {
            szOsFile: (*base).szOsFile + c_int::try_from(OUR_BYTES).expect("a small number"),
            pNext: std::ptr::null_mut(),
            zName: c"crashing".as_ptr(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            ..*base
        };
        assert_eq!(ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 1), ffi::SQLITE_OK);
    }
}

/// Has the process die at a call, after a last act.
///
/// # Panics
/// Where the VFS is not registered, or an end is set already.
pub fn end_at(end: End, last_act: LastAct) {
    let state = STATE.get().expect("the VFS is registered");
    assert!(state.end.set((end, last_act)).is_ok(), "an end is set already");
}

/// Has the process die now, after the last act, between two calls.
///
/// # Panics
/// Where no end is set.
pub fn end_now() -> ! {
    let state = STATE.get().expect("the VFS is registered");
    let (_, last_act) = state.end.get().expect("an end is set");
    let disk = state.disk.as_ref().map(lock);
    last_act(disk.as_deref().unwrap_or(&Disk::default()));
    die();
}

/// Has something called before and after every call, or nothing any more.
///
/// # Panics
/// Where the VFS is not registered.
pub fn set_hook(hook: Option<Hook>) {
    let before = std::mem::replace(&mut *lock(&STATE.get().expect("the VFS is registered").hook), hook);
    // Not under the lock: it may have a connection, whose end comes by here.
    drop(before);
}

/// Has calls fail, or none any more.
///
/// # Panics
/// Where the VFS is not registered.
pub fn set_refusal(refusal: Option<Refusal>) {
    let before = std::mem::replace(&mut *lock(&STATE.get().expect("the VFS is registered").refusal), refusal);
    drop(before);
}

/// Forks, as a program that the extension is loaded into does; the child ends at once, with this code. Returns the code that it has ended with.
///
/// # Panics
/// Where the process cannot be forked.
pub fn fork(code: impl FnOnce() -> u8) -> u8 {
    unsafe extern "C" {
        #[link_name = "fork"]
        fn libc_fork() -> c_int;
        fn _exit(code: c_int) -> !;
        fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    }
    // SAFETY: the C library's own functions. In the child nothing is called but `code`, which its callers have look at atomics only.
    unsafe {
        let pid = libc_fork();
        assert!(pid >= 0, "the process cannot be forked");
        if pid == 0 {
            _exit(c_int::from(code()));
        }
        let mut status = 0;
        assert_eq!(waitpid(pid, &raw mut status, 0), pid);
        u8::try_from(status >> 8 & 0xff).unwrap_or(u8::MAX)
    }
}

/// How many calls there were: all, and those that change something.
#[must_use]
pub fn calls() -> (u64, u64) {
    STATE.get().map_or((0, 0), |state| (state.all.load(Ordering::SeqCst), state.changing.load(Ordering::SeqCst)))
}

/// Kills the process as kill -9 does.
pub fn die() -> ! {
    // The signal has arrived when the call returns; nothing more runs here.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a call, forwards it, notes what it did to the disk, and ends the process where that is due.
fn carry_out(call: &Call<'_>, forward: impl FnOnce() -> c_int, note: impl FnOnce(&mut Disk)) -> c_int {
    let Some(state) = STATE.get() else { return forward() };
    let changes = call.method.changes();
    let all = state.all.fetch_add(1, Ordering::SeqCst) + 1;
    let changing = if changes { state.changing.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
    let is_wal_deletion = call.method == Method::Delete && call.kind == Kind::Wal;
    let wal_deletions = if is_wal_deletion { state.wal_deletions.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
    let end = state.end.get().filter(|(end, _)| {
        end.call
            == match end.counted {
                Counted::All => all,
                Counted::Changing => changing,
                Counted::WalDeletions => wal_deletions,
            }
    });
    let refusal = lock(&state.refusal).clone();
    if refusal.is_some_and(|refuses| refuses(call)) {
        return ffi::SQLITE_IOERR;
    }
    let hook = lock(&state.hook).clone();
    if let Some(hook) = &hook {
        hook(call);
    }
    // Nobody else changes a file between a call and the note of it: the power fails between calls.
    let mut disk = if changes || end.is_some() { state.disk.as_ref().map(lock) } else { None };
    let finish = |disk: &mut Option<MutexGuard<'_, Disk>>| {
        if let Some((_, last_act)) = end {
            last_act(disk.as_deref().unwrap_or(&Disk::default()));
            die();
        }
    };
    if end.is_some_and(|(end, _)| !end.after) {
        finish(&mut disk);
    }
    let rc = forward();
    if rc == ffi::SQLITE_OK
        && let Some(disk) = &mut disk
    {
        note(disk);
    }
    finish(&mut disk);
    drop(disk);
    if let Some(hook) = &hook {
        hook(&Call { is_done: true, ..*call });
    }
    rc
}

/// What SQLite allocates for a file; the base's follows at once.
#[repr(C)]
struct OurFile {
    methods: *const IoMethods,
    named: *mut Named,
}

struct Named {
    kind: Kind,
    path: Option<PathBuf>,
}

const OUR_BYTES: usize = size_of::<OurFile>();

fn base_vfs() -> *mut Vfs {
    BASE.load(Ordering::Acquire)
}

fn base_file(file: *mut File) -> *mut File {
    file.cast::<u8>().wrapping_add(OUR_BYTES).cast()
}

/// The path that SQLite passes by a pointer, if it is one.
unsafe fn path_of(name: *const c_char) -> Option<PathBuf> {
    // SAFETY: SQLite passes null or a C string.
    (!name.is_null()).then(|| PathBuf::from(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes())))
}

unsafe extern "C" fn open(_: *mut Vfs, name: *const c_char, file: *mut File, flags: c_int, out_flags: *mut c_int) -> c_int {
    // SAFETY: SQLite calls the method with memory of `szOsFile` bytes and a name that is null or a C string.
    unsafe {
        (*file).pMethods = std::ptr::null();
        let path = path_of(name);
        let kind = match flags {
            f if f & ffi::SQLITE_OPEN_MAIN_DB != 0 => Kind::Main,
            f if f & ffi::SQLITE_OPEN_WAL != 0 => Kind::Wal,
            f if f & (ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL) != 0 => Kind::Journal,
            _ => Kind::Temporary,
        };
        let path = path.filter(|_| kind != Kind::Temporary && flags & ffi::SQLITE_OPEN_DELETEONCLOSE == 0);
        if let (Some(path), Some(disk)) = (&path, STATE.get().and_then(|state| state.disk.as_ref())) {
            lock(disk).known(path);
        }
        let call = Call { method: Method::Open, kind, path: path.as_deref(), arguments: [i64::from(flags), 0, 0], is_done: false };
        let forward = || {
            let base = base_file(file);
            (*base).pMethods = std::ptr::null();
            let rc = (*base_vfs()).xOpen.map_or(ffi::SQLITE_ERROR, |open| open(base_vfs(), name, base, flags, out_flags));
            if rc != ffi::SQLITE_OK
                && let Some(close) = (*base).pMethods.as_ref().and_then(|methods| methods.xClose)
            {
                close(base);
            }
            rc
        };
        let rc = carry_out(&call, forward, |disk| {
            if let Some(path) = &path {
                disk.opened(path);
            }
        });
        if rc == ffi::SQLITE_OK {
            let named = Box::into_raw(Box::new(Named { kind, path }));
            file.cast::<OurFile>().write(OurFile { methods: &raw const METHODS, named });
        }
        rc
    }
}

unsafe extern "C" fn delete(_: *mut Vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: SQLite passes a C string.
    let path = unsafe { path_of(name) };
    let wal = path.as_ref().is_some_and(|path| path.as_os_str().as_bytes().ends_with(b"-wal"));
    let kind = if wal { Kind::Wal } else { Kind::Journal };
    if let (Some(path), Some(disk)) = (&path, STATE.get().and_then(|state| state.disk.as_ref())) {
        lock(disk).known(path);
    }
    let call = Call { method: Method::Delete, kind, path: path.as_deref(), arguments: [i64::from(sync_directory), 0, 0], is_done: false };
    let forward = || {
        // SAFETY: passed on to the base.
        unsafe { (*base_vfs()).xDelete.map_or(ffi::SQLITE_ERROR, |delete| delete(base_vfs(), name, sync_directory)) }
    };
    carry_out(&call, forward, |disk| {
        if let Some(path) = &path {
            disk.deleted(path, sync_directory != 0);
        }
    })
}

unsafe extern "C" fn access(_: *mut Vfs, name: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    let call = Call { method: Method::Access, kind: Kind::Temporary, path: None, arguments: [i64::from(flags), 0, 0], is_done: false };
    let forward = || {
        // SAFETY: passed on to the base.
        unsafe { (*base_vfs()).xAccess.map_or(ffi::SQLITE_ERROR, |access| access(base_vfs(), name, flags, out)) }
    };
    carry_out(&call, forward, |_| {})
}

/// What is known of an open file.
unsafe fn named<'a>(file: *mut File) -> &'a Named {
    // SAFETY: our methods stand only in files that `open` completed; `close` frees the state as the last thing.
    unsafe { &*(*file.cast::<OurFile>()).named }
}

/// The base's methods of an open file.
unsafe fn methods<'a>(file: *mut File) -> &'a IoMethods {
    // SAFETY: the base's file is open as long as ours.
    unsafe { &*(*base_file(file)).pMethods }
}

macro_rules! method {
    ($name:ident, $slot:ident, $method:ident, ($($arg:ident: $type:ty),*), [$a:expr, $b:expr, $c:expr], $note:expr) => {
        unsafe extern "C" fn $name(file: *mut File $(, $arg: $type)*) -> c_int {
            // SAFETY: SQLite calls the methods of an open file, with arguments that pass through untouched.
            unsafe {
                let Named { kind, path } = named(file);
                let arguments = [i64::from($a), i64::from($b), i64::from($c)];
                let call = Call { method: Method::$method, kind: *kind, path: path.as_deref(), arguments, is_done: false };
                let forward = || methods(file).$slot.map_or(ffi::SQLITE_ERROR, |method| method(base_file(file) $(, $arg)*));
                carry_out(&call, forward, |disk| {
                    if let Some(path) = path {
                        let note: &dyn Fn(&mut Disk, &Path) = &$note;
                        note(disk, path);
                    }
                })
            }
        }
    };
}

fn nothing(_: &mut Disk, _: &Path) {}

method!(read, xRead, Read, (to: *mut c_void, bytes: c_int, offset: i64), [offset, bytes, 0], nothing);
method!(write, xWrite, Write, (from: *const c_void, bytes: c_int, offset: i64), [offset, bytes, 0], |disk, path| {
    // SAFETY: SQLite passes that many bytes.
    let content = std::slice::from_raw_parts(from.cast::<u8>(), usize::try_from(bytes).unwrap_or(0));
    disk.written(path, offset.cast_unsigned(), content);
});
method!(truncate, xTruncate, Truncate, (bytes: i64), [bytes, 0, 0], |disk, path| disk.cut(path, bytes.cast_unsigned()));
method!(sync, xSync, Sync, (flags: c_int), [flags, 0, 0], |disk, path| disk.synced(path));
method!(file_size, xFileSize, FileSize, (out: *mut i64), [0, 0, 0], nothing);
method!(take_lock, xLock, Lock, (level: c_int), [level, 0, 0], nothing);
method!(unlock, xUnlock, Unlock, (level: c_int), [level, 0, 0], nothing);
method!(check_reserved_lock, xCheckReservedLock, CheckReservedLock, (out: *mut c_int), [0, 0, 0], nothing);
method!(file_control, xFileControl, FileControl, (operation: c_int, argument: *mut c_void), [operation, 0, 0], nothing);
method!(shm_map, xShmMap, ShmMap, (region: c_int, bytes: c_int, extend: c_int, out: *mut *mut c_void), [region, bytes, extend], nothing);
method!(shm_lock, xShmLock, ShmLock, (offset: c_int, n: c_int, flags: c_int), [offset, n, flags], nothing);
method!(shm_unmap, xShmUnmap, ShmUnmap, (delete_flag: c_int), [delete_flag, 0, 0], nothing);
method!(fetch, xFetch, Fetch, (offset: i64, bytes: c_int, out: *mut *mut c_void), [offset, bytes, 0], nothing);
method!(unfetch, xUnfetch, Unfetch, (offset: i64, page: *mut c_void), [offset, 0, 0], nothing);

unsafe extern "C" fn close(file: *mut File) -> c_int {
    // SAFETY: as of the other methods; the state is freed once, and nobody comes back after a close.
    unsafe {
        let Named { kind, path } = named(file);
        let call = Call { method: Method::Close, kind: *kind, path: path.as_deref(), arguments: [0; 3], is_done: false };
        let forward = || methods(file).xClose.map_or(ffi::SQLITE_OK, |close| close(base_file(file)));
        let rc = carry_out(&call, forward, |_| {});
        let ours = &mut *file.cast::<OurFile>();
        ours.methods = std::ptr::null();
        drop(Box::from_raw(ours.named));
        rc
    }
}

unsafe extern "C" fn shm_barrier(file: *mut File) {
    // SAFETY: as of the other methods.
    unsafe {
        let Named { kind, path } = named(file);
        let call = Call { method: Method::ShmBarrier, kind: *kind, path: path.as_deref(), arguments: [0; 3], is_done: false };
        let forward = || {
            if let Some(barrier) = methods(file).xShmBarrier {
                barrier(base_file(file));
            }
            ffi::SQLITE_OK
        };
        carry_out(&call, forward, |_| {});
    }
}

unsafe extern "C" fn sector_size(file: *mut File) -> c_int {
    // SAFETY: as of the other methods.
    unsafe { methods(file).xSectorSize.map_or(0, |method| method(base_file(file))) }
}

unsafe extern "C" fn device_characteristics(file: *mut File) -> c_int {
    // SAFETY: as of the other methods.
    unsafe { methods(file).xDeviceCharacteristics.map_or(0, |method| method(base_file(file))) }
}

/// The `unix` VFS below has version 3 with shared memory for every database.
static METHODS: IoMethods = IoMethods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(take_lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
};
