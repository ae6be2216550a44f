//! Open files of ours: the database and its WAL. Everything is forwarded; the few methods with a behaviour of their own are `main_*` and `wal_*`.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::abi::{File, IoMethods, SQLITE_IOERR, SQLITE_NOTFOUND, SQLITE_OK};
use super::api::SqliteApi;
use super::group::{self, FileName};
use super::main_file::{
    MainFile, main_file_control, main_lock, main_shm_lock, main_shm_map, main_shm_unmap, main_sync, main_truncate, main_unlock, main_write,
};
use super::wal_file::{
    WalSide, release, super_journal_write, wal_file_control, wal_file_size, wal_read, wal_sync, wal_truncate, wal_write,
};
use crate::replicator::durability::Policy;
use crate::replicator::process;
use crate::replicator::replicas::Replicas;
use crate::replicator::step::panic_text;

/// What SQLite allocates for a file of ours; the base's file follows at once.
#[repr(C)]
pub(crate) struct ShimFile {
    methods: *const IoMethods,
    state: *mut FileState,
}

/// Bytes of ours before the base's file; keeps it aligned.
pub(crate) const SHIM_BYTES: usize = size_of::<ShimFile>();

#[expect(clippy::large_enum_variant, reason = "what a WAL wastes is less than another step on the way to every commit costs")]
enum FileState {
    Main(MainFile),
    Wal(WalSide),
}

/// Makes an opened file ours. The base's file is open behind `file`. One that `is_own` was opened by ourselves, see `checkpointer`.
///
/// # Safety
/// `file` points to the memory that SQLite passed to `xOpen` of our VFS, with an open base file behind our part.
pub(crate) unsafe fn become_main(
    file: *mut File,
    api: &'static SqliteApi,
    name: FileName,
    replicas: Option<Replicas>,
    policy: Policy,
    is_own: bool,
) {
    if replicas.is_some() {
        process::note_main(name as usize, file as usize);
    }
    let main = MainFile::new(api, name, replicas, policy, is_own);
    // SAFETY: passed on; what has become ours has its state.
    unsafe {
        become_ours(file, FileState::Main(main), &MAIN);
        if let Some(FileState::Main(main)) = state_of(file)
            && main.replicas.is_some()
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
    if main.replicas.is_none() {
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
pub(super) unsafe fn base_of(file: *mut File) -> (*mut File, &'static IoMethods) {
    let base = base_at(file);
    // SAFETY: an open file's methods are static.
    (base, unsafe { &*(*base).methods })
}

/// Runs a callback's own part. A panic ends the replication of the database and nothing else. What concerns one replica or the other is guarded by
/// `Replicas::each`.
pub(super) fn guarded<T>(main: &MainFile, after_panic: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        if let Some(replicas) = &main.replicas {
            replicas.poison(&panic_text(&*panic));
        }
        after_panic
    })
}

/// The state of a main file.
///
/// # Safety
/// `file` is an open file with a table of `MAIN`.
pub(super) unsafe fn main_of<'a>(file: *mut File) -> &'a MainFile {
    // SAFETY: passed on.
    match unsafe { &*(*file.cast::<ShimFile>()).state } {
        FileState::Main(main) => main,
        // SAFETY: only to satisfy the type: a WAL's partner is open as long as the WAL.
        FileState::Wal(wal) => unsafe { &*wal.main },
    }
}

macro_rules! forward {
    ($name:ident, $slot:ident, ($($arg:ident: $type:ty),*), $missing:expr) => {
        pub(super) unsafe extern "C" fn $name(file: *mut File $(, $arg: $type)*) -> c_int {
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

/// Comes before a commit is published.
unsafe extern "C" fn main_shm_barrier(file: *mut File) {
    // SAFETY: see above.
    unsafe {
        let main = main_of(file);
        if release(main) != SQLITE_OK
            && let Some(replicas) = &main.replicas
        {
            // There is nobody who could be told.
            guarded(main, (), || replicas.poison("the header of a frame was not written: look at the disk"));
        }
        shm_barrier(file);
    }
}

/// Closes the file, then flushes if it was the last: no lock is held by then.
unsafe extern "C" fn close(file: *mut File) -> c_int {
    // SAFETY: see above; the state is freed once, and the methods are cleared so that nobody comes back.
    let (rc, state) = unsafe {
        match state_of(file) {
            Some(FileState::Main(main)) if main.replicas().is_some() => group::closes(main),
            // SQLite deletes it next.
            Some(FileState::Wal(wal)) => {
                let main = &*wal.main;
                // What SQLite has not gone on with is no commit.
                let _of_nobody = release(main);
                if let Some(replicas) = main.replicas() {
                    guarded(main, (), || main.before_unlocked_end(replicas));
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
            let replicas = main.replicas().cloned();
            if let Some(replicas) = replicas {
                process::forget_main(file as usize);
                if !main.is_own {
                    // What is closed last is to be the application's.
                    main.keeps_ahead_out_at_close();
                    guarded(&main, (), || process::close(&replicas));
                    main.lets_ahead_in_again();
                }
            } else if main.replicas.is_some() {
                // Opened before a fork: what the parent's thread shares with us is left alone for ever.
                std::mem::forget(main);
            }
        }
        // SAFETY: a WAL's partner is open as long as the WAL.
        FileState::Wal(wal) => unsafe { &*wal.main }.in_wal_mode.store(false, Ordering::Relaxed),
    }
    rc
}

/// Closes a super-journal, which has no state of ours.
unsafe extern "C" fn super_journal_close(file: *mut File) -> c_int {
    // SAFETY: see above; there is no state to be freed.
    unsafe {
        let (base, methods) = base_of(file);
        let rc = methods.close.map_or(SQLITE_OK, |close| close(base));
        (*file.cast::<ShimFile>()).methods = std::ptr::null();
        rc
    }
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
    shm_barrier: Some(main_shm_barrier),
    shm_unmap: Some(main_shm_unmap),
    ..FORWARD
});

static WAL: [IoMethods; TABLES] = shapes(IoMethods {
    read: Some(wal_read),
    write: Some(wal_write),
    truncate: Some(wal_truncate),
    sync: Some(wal_sync),
    file_size: Some(wal_file_size),
    file_control: Some(wal_file_control),
    ..FORWARD
});

static SUPER_JOURNAL: [IoMethods; TABLES] =
    shapes(IoMethods { write: Some(super_journal_write), close: Some(super_journal_close), ..FORWARD });
