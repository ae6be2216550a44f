//! SQLite's C interfaces for virtual file systems, as declared in `sqlite3.h` since 3.8.
//!
//! Our own declarations, so that no SQLite binding crate (whose `links` key would pin every user's version) is needed.
//! `layout_tests` compares them with `libsqlite3-sys`.

#![allow(missing_docs)] // The names are SQLite's own; its manual documents them.

use std::ffi::{c_char, c_int, c_void};

pub(crate) const SQLITE_OK: c_int = 0;
pub(crate) const SQLITE_ERROR: c_int = 1;
pub(crate) const SQLITE_BUSY: c_int = 5;
pub(crate) const SQLITE_LOCKED: c_int = 6;
pub(crate) const SQLITE_NOMEM: c_int = 7;
pub(crate) const SQLITE_READONLY: c_int = 8;
pub(crate) const SQLITE_IOERR: c_int = 10;
pub(crate) const SQLITE_IOERR_SHORT_READ: c_int = 10 | 2 << 8;
/// Nothing that SQLite reports by itself: where an atomic batch write fails it falls back to a journal.
pub(crate) const SQLITE_IOERR_COMMIT_ATOMIC: c_int = 10 | 30 << 8;
pub(crate) const SQLITE_NOTFOUND: c_int = 12;
pub(crate) const SQLITE_CANTOPEN: c_int = 14;
pub(crate) const SQLITE_AUTH: c_int = 23;
pub(crate) const SQLITE_NOTICE: c_int = 27;
pub(crate) const SQLITE_WARNING: c_int = 28;
pub(crate) const SQLITE_OK_LOAD_PERMANENTLY: c_int = 256;

pub(crate) const SQLITE_OPEN_READONLY: c_int = 0x0000_0001;
pub(crate) const SQLITE_OPEN_READWRITE: c_int = 0x0000_0002;
pub(crate) const SQLITE_OPEN_CREATE: c_int = 0x0000_0004;
pub(crate) const SQLITE_OPEN_MAIN_DB: c_int = 0x0000_0100;
pub(crate) const SQLITE_OPEN_SUPER_JOURNAL: c_int = 0x0000_4000;
pub(crate) const SQLITE_OPEN_NOMUTEX: c_int = 0x0000_8000;
pub(crate) const SQLITE_OPEN_PRIVATECACHE: c_int = 0x0004_0000;
pub(crate) const SQLITE_OPEN_WAL: c_int = 0x0008_0000;

pub(crate) const SQLITE_LOCK_NONE: c_int = 0;
pub(crate) const SQLITE_LOCK_SHARED: c_int = 1;
pub(crate) const SQLITE_LOCK_RESERVED: c_int = 2;
pub(crate) const SQLITE_LOCK_EXCLUSIVE: c_int = 4;

pub(crate) const SQLITE_TXN_WRITE: c_int = 2;

pub(crate) const SQLITE_CHECKPOINT_PASSIVE: c_int = 0;
pub(crate) const SQLITE_FCNTL_FILE_POINTER: c_int = 7;
pub(crate) const SQLITE_SYNC_NORMAL: c_int = 2;

pub(crate) const SQLITE_SHM_UNLOCK: c_int = 1;
pub(crate) const SQLITE_SHM_LOCK: c_int = 2;
pub(crate) const SQLITE_SHM_SHARED: c_int = 4;
pub(crate) const SQLITE_SHM_EXCLUSIVE: c_int = 8;

/// The WAL-index lock that a writer holds.
pub(crate) const WAL_WRITE_LOCK: c_int = 0;
/// The WAL-index lock that a checkpointer holds.
pub(crate) const WAL_CHECKPOINT_LOCK: c_int = 1;
/// The first of the five locks of the read marks.
pub(crate) const WAL_READ_LOCK_0: c_int = 3;

pub(crate) const SQLITE_FCNTL_VFSNAME: c_int = 12;
pub(crate) const SQLITE_FCNTL_PRAGMA: c_int = 14;
pub(crate) const SQLITE_FCNTL_SYNC: c_int = 21;
pub(crate) const SQLITE_FCNTL_COMMIT_PHASETWO: c_int = 22;
pub(crate) const SQLITE_FCNTL_JOURNAL_POINTER: c_int = 28;
pub(crate) const SQLITE_FCNTL_PDB: c_int = 30;
pub(crate) const SQLITE_FCNTL_CKPT_DONE: c_int = 37;
pub(crate) const SQLITE_FCNTL_CKPT_START: c_int = 39;

/// `sqlite3_file`: an open file begins with its methods.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) methods: *const IoMethods,
}

/// `sqlite3_io_methods`. Entries after `device_characteristics` exist only from the version named beside them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoMethods {
    pub(crate) version: c_int,
    pub(crate) close: Option<unsafe extern "C" fn(*mut File) -> c_int>,
    pub(crate) read: Option<unsafe extern "C" fn(*mut File, *mut c_void, c_int, i64) -> c_int>,
    pub(crate) write: Option<unsafe extern "C" fn(*mut File, *const c_void, c_int, i64) -> c_int>,
    pub(crate) truncate: Option<unsafe extern "C" fn(*mut File, i64) -> c_int>,
    pub(crate) sync: Option<unsafe extern "C" fn(*mut File, c_int) -> c_int>,
    pub(crate) file_size: Option<unsafe extern "C" fn(*mut File, *mut i64) -> c_int>,
    pub(crate) lock: Option<unsafe extern "C" fn(*mut File, c_int) -> c_int>,
    pub(crate) unlock: Option<unsafe extern "C" fn(*mut File, c_int) -> c_int>,
    pub(crate) check_reserved_lock: Option<unsafe extern "C" fn(*mut File, *mut c_int) -> c_int>,
    pub(crate) file_control: Option<unsafe extern "C" fn(*mut File, c_int, *mut c_void) -> c_int>,
    pub(crate) sector_size: Option<unsafe extern "C" fn(*mut File) -> c_int>,
    pub(crate) device_characteristics: Option<unsafe extern "C" fn(*mut File) -> c_int>,
    /// Version 2.
    pub(crate) shm_map: Option<unsafe extern "C" fn(*mut File, c_int, c_int, c_int, *mut *mut c_void) -> c_int>,
    pub(crate) shm_lock: Option<unsafe extern "C" fn(*mut File, c_int, c_int, c_int) -> c_int>,
    pub(crate) shm_barrier: Option<unsafe extern "C" fn(*mut File)>,
    pub(crate) shm_unmap: Option<unsafe extern "C" fn(*mut File, c_int) -> c_int>,
    /// Version 3.
    pub(crate) fetch: Option<unsafe extern "C" fn(*mut File, i64, c_int, *mut *mut c_void) -> c_int>,
    pub(crate) unfetch: Option<unsafe extern "C" fn(*mut File, i64, *mut c_void) -> c_int>,
}

/// A function of unknown type, as the system-call and dynamic-library methods hand it about.
pub(crate) type AnyFn = Option<unsafe extern "C" fn()>;

/// `sqlite3_vfs`, version 3. A base of a lower version lacks the entries behind its own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vfs {
    pub(crate) version: c_int,
    pub(crate) file_bytes: c_int,
    pub(crate) max_path_bytes: c_int,
    pub(crate) next: *mut Vfs,
    pub(crate) name: *const c_char,
    pub(crate) app_data: *mut c_void,
    pub(crate) open: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, *mut File, c_int, *mut c_int) -> c_int>,
    pub(crate) delete: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int) -> c_int>,
    pub(crate) access: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_int) -> c_int>,
    pub(crate) full_pathname: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_char) -> c_int>,
    pub(crate) dl_open: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> *mut c_void>,
    pub(crate) dl_error: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char)>,
    pub(crate) dl_sym: Option<unsafe extern "C" fn(*mut Vfs, *mut c_void, *const c_char) -> AnyFn>,
    pub(crate) dl_close: Option<unsafe extern "C" fn(*mut Vfs, *mut c_void)>,
    pub(crate) randomness: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int>,
    pub(crate) sleep: Option<unsafe extern "C" fn(*mut Vfs, c_int) -> c_int>,
    pub(crate) current_time: Option<unsafe extern "C" fn(*mut Vfs, *mut f64) -> c_int>,
    pub(crate) get_last_error: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int>,
    /// Version 2.
    pub(crate) current_time_int64: Option<unsafe extern "C" fn(*mut Vfs, *mut i64) -> c_int>,
    /// Version 3.
    pub(crate) set_system_call: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, AnyFn) -> c_int>,
    pub(crate) get_system_call: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> AnyFn>,
    pub(crate) next_system_call: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> *const c_char>,
}

/// `sqlite3_module`, of the first version: what a table needs that is only read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Module {
    pub(crate) version: c_int,
    /// Missing: the table is there by its name alone, without having been made.
    pub(crate) create: Option<Connect>,
    pub(crate) connect: Option<Connect>,
    pub(crate) best_index: Option<unsafe extern "C" fn(*mut Table, *mut c_void) -> c_int>,
    pub(crate) disconnect: Option<unsafe extern "C" fn(*mut Table) -> c_int>,
    pub(crate) destroy: Option<unsafe extern "C" fn(*mut Table) -> c_int>,
    pub(crate) open: Option<unsafe extern "C" fn(*mut Table, *mut *mut Cursor) -> c_int>,
    pub(crate) close: Option<unsafe extern "C" fn(*mut Cursor) -> c_int>,
    pub(crate) filter: Option<unsafe extern "C" fn(*mut Cursor, c_int, *const c_char, c_int, *mut *mut c_void) -> c_int>,
    pub(crate) next: Option<unsafe extern "C" fn(*mut Cursor) -> c_int>,
    pub(crate) eof: Option<unsafe extern "C" fn(*mut Cursor) -> c_int>,
    pub(crate) column: Option<unsafe extern "C" fn(*mut Cursor, *mut c_void, c_int) -> c_int>,
    pub(crate) rowid: Option<unsafe extern "C" fn(*mut Cursor, *mut i64) -> c_int>,
    /// Writing, transactions, functions of its own and names to be changed: none of it. Those of later versions are not looked at.
    pub(crate) unused: [AnyFn; 12],
}

/// How a table of a module begins to be there for a connection.
pub(crate) type Connect =
    unsafe extern "C" fn(*mut c_void, *mut c_void, c_int, *const *const c_char, *mut *mut Table, *mut *mut c_char) -> c_int;

/// `sqlite3_vtab`: what a table of ours begins with.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) module: *const Module,
    pub(crate) references: c_int,
    pub(crate) error: *mut c_char,
}

/// `sqlite3_vtab_cursor`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Cursor {
    pub(crate) table: *mut Table,
}
