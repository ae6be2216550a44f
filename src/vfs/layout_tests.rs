//! Our declarations against SQLite's own, as `libsqlite3-sys` has them.

use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;
use std::sync::Mutex;

use libsqlite3_sys as ffi;

use super::abi::{self, File, IoMethods, Vfs};
use super::api::{ApiRoutines, slot};

macro_rules! same_offsets {
    ($ours:ty, $theirs:ty: $($our:ident = $their:ident),* $(,)?) => {{
        assert_eq!(size_of::<$ours>(), size_of::<$theirs>());
        assert_eq!(align_of::<$ours>(), align_of::<$theirs>());
        $(assert_eq!(offset_of!($ours, $our), offset_of!($theirs, $their), stringify!($our));)*
    }};
}

#[test]
fn structures_are_laid_out_as_sqlite_declares_them() {
    same_offsets!(File, ffi::sqlite3_file: methods = pMethods);
    same_offsets!(IoMethods, ffi::sqlite3_io_methods:
        version = iVersion, close = xClose, read = xRead, write = xWrite, truncate = xTruncate, sync = xSync, file_size = xFileSize,
        lock = xLock, unlock = xUnlock, check_reserved_lock = xCheckReservedLock, file_control = xFileControl, sector_size = xSectorSize,
        device_characteristics = xDeviceCharacteristics, shm_map = xShmMap, shm_lock = xShmLock, shm_barrier = xShmBarrier,
        shm_unmap = xShmUnmap, fetch = xFetch, unfetch = xUnfetch);
    assert_eq!(size_of::<abi::Module>(), size_of::<ffi::sqlite3_module>());
    assert_eq!(size_of::<abi::Table>(), size_of::<ffi::sqlite3_vtab>());
    assert_eq!(size_of::<abi::Cursor>(), size_of::<ffi::sqlite3_vtab_cursor>());
    same_offsets!(abi::Module, ffi::sqlite3_module:
        version = iVersion, create = xCreate, connect = xConnect, best_index = xBestIndex, disconnect = xDisconnect, destroy = xDestroy,
        open = xOpen, close = xClose, filter = xFilter, next = xNext, eof = xEof, column = xColumn, rowid = xRowid, unused = xUpdate);
    same_offsets!(abi::Table, ffi::sqlite3_vtab: module = pModule, references = nRef, error = zErrMsg);
    same_offsets!(abi::Cursor, ffi::sqlite3_vtab_cursor: table = pVtab);
    same_offsets!(Vfs, ffi::sqlite3_vfs:
        version = iVersion, file_bytes = szOsFile, max_path_bytes = mxPathname, next = pNext, name = zName, app_data = pAppData,
        open = xOpen, delete = xDelete, access = xAccess, full_pathname = xFullPathname, dl_open = xDlOpen, dl_error = xDlError,
        dl_sym = xDlSym, dl_close = xDlClose, randomness = xRandomness, sleep = xSleep, current_time = xCurrentTime,
        get_last_error = xGetLastError, current_time_int64 = xCurrentTimeInt64, set_system_call = xSetSystemCall,
        get_system_call = xGetSystemCall, next_system_call = xNextSystemCall);
}

#[test]
fn constants_are_sqlites() {
    let pairs = [
        (abi::SQLITE_OK, ffi::SQLITE_OK),
        (abi::SQLITE_ERROR, ffi::SQLITE_ERROR),
        (abi::SQLITE_BUSY, ffi::SQLITE_BUSY),
        (abi::SQLITE_LOCKED, ffi::SQLITE_LOCKED),
        (abi::SQLITE_NOMEM, ffi::SQLITE_NOMEM),
        (abi::SQLITE_IOERR, ffi::SQLITE_IOERR),
        (abi::SQLITE_IOERR_COMMIT_ATOMIC, ffi::SQLITE_IOERR_COMMIT_ATOMIC),
        (abi::SQLITE_NOTFOUND, ffi::SQLITE_NOTFOUND),
        (abi::SQLITE_CANTOPEN, ffi::SQLITE_CANTOPEN),
        (abi::SQLITE_AUTH, ffi::SQLITE_AUTH),
        (abi::SQLITE_OPEN_CREATE, ffi::SQLITE_OPEN_CREATE),
        (abi::SQLITE_OPEN_SUPER_JOURNAL, ffi::SQLITE_OPEN_SUPER_JOURNAL),
        (abi::SQLITE_FCNTL_JOURNAL_POINTER, ffi::SQLITE_FCNTL_JOURNAL_POINTER),
        (abi::SQLITE_FCNTL_PDB, ffi::SQLITE_FCNTL_PDB),
        (abi::SQLITE_TXN_WRITE, ffi::SQLITE_TXN_WRITE),
        (abi::SQLITE_NOTICE, ffi::SQLITE_NOTICE),
        (abi::SQLITE_WARNING, ffi::SQLITE_WARNING),
        (abi::SQLITE_OK_LOAD_PERMANENTLY, ffi::SQLITE_OK_LOAD_PERMANENTLY),
        (abi::SQLITE_OPEN_READONLY, ffi::SQLITE_OPEN_READONLY),
        (abi::SQLITE_OPEN_READWRITE, ffi::SQLITE_OPEN_READWRITE),
        (abi::SQLITE_OPEN_NOMUTEX, ffi::SQLITE_OPEN_NOMUTEX),
        (abi::SQLITE_OPEN_PRIVATECACHE, ffi::SQLITE_OPEN_PRIVATECACHE),
        (abi::SQLITE_CHECKPOINT_PASSIVE, ffi::SQLITE_CHECKPOINT_PASSIVE),
        (abi::SQLITE_FCNTL_FILE_POINTER, ffi::SQLITE_FCNTL_FILE_POINTER),
        (abi::SQLITE_OPEN_MAIN_DB, ffi::SQLITE_OPEN_MAIN_DB),
        (abi::SQLITE_OPEN_WAL, ffi::SQLITE_OPEN_WAL),
        (abi::SQLITE_LOCK_NONE, ffi::SQLITE_LOCK_NONE),
        (abi::SQLITE_LOCK_EXCLUSIVE, ffi::SQLITE_LOCK_EXCLUSIVE),
        (abi::SQLITE_SHM_UNLOCK, ffi::SQLITE_SHM_UNLOCK),
        (abi::SQLITE_SHM_LOCK, ffi::SQLITE_SHM_LOCK),
        (abi::SQLITE_SHM_SHARED, ffi::SQLITE_SHM_SHARED),
        (abi::SQLITE_SHM_EXCLUSIVE, ffi::SQLITE_SHM_EXCLUSIVE),
        (abi::SQLITE_FCNTL_VFSNAME, ffi::SQLITE_FCNTL_VFSNAME),
        (abi::SQLITE_FCNTL_PRAGMA, ffi::SQLITE_FCNTL_PRAGMA),
        (abi::SQLITE_FCNTL_COMMIT_PHASETWO, ffi::SQLITE_FCNTL_COMMIT_PHASETWO),
        (abi::SQLITE_FCNTL_CKPT_DONE, ffi::SQLITE_FCNTL_CKPT_DONE),
        (abi::SQLITE_FCNTL_CKPT_START, ffi::SQLITE_FCNTL_CKPT_START),
    ];
    for (index, (ours, theirs)) in pairs.into_iter().enumerate() {
        assert_eq!(ours, theirs, "constant {index}");
    }
}

/// What SQLite really hands over: each slot holds the function that we take it for.
#[test]
fn slots_of_the_function_table_hold_what_we_call() {
    static FOUND: Mutex<Vec<(&str, usize, usize)>> = Mutex::new(Vec::new());
    unsafe extern "C" fn entry(_database: *mut ffi::sqlite3, _error: *mut *mut c_char, routines: *const ApiRoutines) -> c_int {
        let at = |index: usize| {
            // SAFETY: the table has more than 264 slots in the SQLite of the tests.
            unsafe { *routines.cast::<*const c_void>().add(index) as usize }
        };
        *FOUND.lock().unwrap() = vec![
            ("libversion_number", at(slot::LIBVERSION_NUMBER), ffi::sqlite3_libversion_number as *const () as usize),
            ("mprintf", at(slot::MPRINTF), ffi::sqlite3_mprintf as *const () as usize),
            ("declare_vtab", at(slot::DECLARE_VTAB), ffi::sqlite3_declare_vtab as *const () as usize),
            ("free", at(slot::FREE), ffi::sqlite3_free as *const () as usize),
            ("result_error", at(slot::RESULT_ERROR), ffi::sqlite3_result_error as *const () as usize),
            ("result_int64", at(slot::RESULT_INT64), ffi::sqlite3_result_int64 as *const () as usize),
            ("value_text", at(slot::VALUE_TEXT), ffi::sqlite3_value_text as *const () as usize),
            ("create_module_v2", at(slot::CREATE_MODULE_V2), ffi::sqlite3_create_module_v2 as *const () as usize),
            ("context_db_handle", at(slot::CONTEXT_DB_HANDLE), ffi::sqlite3_context_db_handle as *const () as usize),
            ("auto_extension", at(slot::AUTO_EXTENSION), ffi::sqlite3_auto_extension as *const () as usize),
            ("result_null", at(slot::RESULT_NULL), ffi::sqlite3_result_null as *const () as usize),
            ("result_text", at(slot::RESULT_TEXT), ffi::sqlite3_result_text as *const () as usize),
            ("vfs_find", at(slot::VFS_FIND), ffi::sqlite3_vfs_find as *const () as usize),
            ("vfs_register", at(slot::VFS_REGISTER), ffi::sqlite3_vfs_register as *const () as usize),
            ("create_function_v2", at(slot::CREATE_FUNCTION_V2), ffi::sqlite3_create_function_v2 as *const () as usize),
            ("log", at(slot::LOG), ffi::sqlite3_log as *const () as usize),
            ("uri_parameter", at(slot::URI_PARAMETER), ffi::sqlite3_uri_parameter as *const () as usize),
            ("file_control", at(slot::FILE_CONTROL), ffi::sqlite3_file_control as *const () as usize),
            ("db_filename", at(slot::DB_FILENAME), ffi::sqlite3_db_filename as *const () as usize),
            ("txn_state", at(slot::TXN_STATE), ffi::sqlite3_txn_state as *const () as usize),
            ("db_name", at(slot::DB_NAME), ffi::sqlite3_db_name as *const () as usize),
            ("uri_key", at(slot::URI_KEY), ffi::sqlite3_uri_key as *const () as usize),
            ("close", at(slot::CLOSE), ffi::sqlite3_close as *const () as usize),
            ("errmsg", at(slot::ERRMSG), ffi::sqlite3_errmsg as *const () as usize),
            ("exec", at(slot::EXEC), ffi::sqlite3_exec as *const () as usize),
            ("mutex_alloc", at(slot::MUTEX_ALLOC), ffi::sqlite3_mutex_alloc as *const () as usize),
            ("mutex_free", at(slot::MUTEX_FREE), ffi::sqlite3_mutex_free as *const () as usize),
            ("open_v2", at(slot::OPEN_V2), ffi::sqlite3_open_v2 as *const () as usize),
            ("wal_checkpoint_v2", at(slot::WAL_CHECKPOINT_V2), ffi::sqlite3_wal_checkpoint_v2 as *const () as usize),
            ("filename_database", at(slot::FILENAME_DATABASE), ffi::sqlite3_filename_database as *const () as usize),
        ];
        0
    }
    type Hidden = unsafe extern "C" fn(*mut ffi::sqlite3, *mut *mut c_char, *const ffi::sqlite3_api_routines) -> c_int;
    // SAFETY: the entry point differs from SQLite's type in the name of an opaque pointer only; the connection is closed where it was opened.
    unsafe {
        let hidden =
            std::mem::transmute::<unsafe extern "C" fn(*mut ffi::sqlite3, *mut *mut c_char, *const ApiRoutines) -> c_int, Hidden>(entry);
        assert_eq!(ffi::sqlite3_auto_extension(Some(hidden)), ffi::SQLITE_OK);
        let mut database = std::ptr::null_mut();
        assert_eq!(ffi::sqlite3_open(c":memory:".as_ptr(), &raw mut database), ffi::SQLITE_OK);
        ffi::sqlite3_cancel_auto_extension(Some(hidden));
        ffi::sqlite3_close(database);
    }
    let found = FOUND.lock().unwrap();
    assert_eq!(found.len(), 30);
    for (name, there, expected) in found.iter() {
        assert_eq!(there, expected, "{name}");
    }
}
