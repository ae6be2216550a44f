//! The shim between SQLite and the replicator: a VFS named `replicated` that forwards everything to the host's default VFS, and tells the
//! replicator what is committed and what is about to be destroyed.
//!
//! This is the only part with unsafe code. It knows SQLite's C interfaces and nothing of buckets.

#![allow(unsafe_code)]

mod abi;
mod api;
mod base;
mod checkpointer;
mod file;
#[cfg(feature = "cli")]
mod foreign;
mod fork;
mod functions;
mod group;
mod held;
mod host;
#[cfg(test)]
mod layout_tests;
mod main_file;
mod mapping;
mod pragma;
mod shim;
mod versions;
mod wal_file;

use std::ffi::{c_char, c_int, c_void};
use std::panic::catch_unwind;

use parking_lot::Mutex;

pub use api::ApiRoutines;
#[cfg(feature = "cli")]
pub use foreign::{ForeignSqlite, inspect_sqlite};
pub use versions::{OLDEST_SQLITE, has_wal_reset_bug};

use abi::{SQLITE_ERROR, SQLITE_OK_LOAD_PERMANENTLY};
pub(crate) use abi::{SQLITE_NOTICE, SQLITE_WARNING};
pub(crate) use api::SqliteApi;
pub(crate) use mapping::map_to_look;

/// The extended result code of a statement or COMMIT that did not reach the bucket in time with `durability=bounded` or `remote`: it is committed
/// here and not known to be there. `SQLITE_IOERR_COMMIT_ATOMIC`, which SQLite itself reports for nothing.
pub const NOT_ACKNOWLEDGED: i32 = abi::SQLITE_IOERR_COMMIT_ATOMIC;

/// Functions of the SQLite that a Rust application links, by which `register` hands the VFS to it. Made by `register!`.
#[derive(Clone, Copy, Debug)]
pub struct HostFunctions {
    /// `sqlite3_auto_extension`.
    pub auto_extension: *const c_void,
    /// `sqlite3_cancel_auto_extension`.
    pub cancel_auto_extension: *const c_void,
    /// `sqlite3_open`.
    pub open: *const c_void,
    /// `sqlite3_close`.
    pub close: *const c_void,
}

/// Why the VFS could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// SQLite cannot be used, with the reason.
    #[error("the VFS `replicated` could not be registered: {0}")]
    Host(String),
}

/// The reason why the last database was not opened, or the last transaction over several databases refused, for hosts that see only SQLite's
/// "unable to open database file" or "authorization denied".
#[must_use]
pub fn last_refusal() -> Option<String> {
    LAST_REFUSAL.try_lock_for(FORKED_WHILE_HELD)?.clone()
}

/// A lock that a thread of the parent held in the moment of a fork is never given up in the child. Those that are held for a few instructions only are waited
/// for so long.
pub(crate) const FORKED_WHILE_HELD: std::time::Duration = std::time::Duration::from_millis(100);

static LAST_REFUSAL: Mutex<Option<String>> = Mutex::new(None);

pub(crate) fn note_refusal(error: &str) {
    if let Some(mut last) = LAST_REFUSAL.try_lock_for(FORKED_WHILE_HELD) {
        *last = Some(error.to_owned());
    }
}

/// The loadable extension's entry point: registers the VFS and does nothing else.
///
/// # Safety
/// Called by SQLite with the arguments of an extension's entry point.
pub unsafe extern "C" fn extension_init(database: *mut c_void, error_message: *mut *mut c_char, routines: *const ApiRoutines) -> c_int {
    // SAFETY: passed on; the default is decided by a variable that is only looked at.
    let registered = catch_unwind(|| unsafe { shim::register(routines, std::env::var_os("REPLICATED_DEFAULT").is_some_and(|v| v == "1")) });
    match registered {
        Ok(Ok(api)) => {
            crate::logging::install(api);
            // SAFETY: the connection that loads the extension, or none where SQLite is asked to register only.
            let _ = catch_unwind(|| unsafe { functions::offer(database, &api) });
            SQLITE_OK_LOAD_PERMANENTLY
        }
        Ok(Err(error)) => {
            // SAFETY: where the table can be read, the message is made with it.
            if let Ok(api) = unsafe { SqliteApi::from_routines(routines) }
                && !error_message.is_null()
            {
                // SAFETY: SQLite's own pointer, to be set to memory of its allocator.
                unsafe { *error_message = api.sqlite_string(&error.to_string()) };
            }
            SQLITE_ERROR
        }
        Err(_) => SQLITE_ERROR,
    }
}

/// Registers the VFS `replicated` with the SQLite that the application links. Use the macro `register!`.
///
/// # Errors
/// Where that SQLite is too old or hands over no function table.
///
/// # Safety
/// The pointers are the named functions of one SQLite library.
pub unsafe fn register_with(host: HostFunctions) -> Result<(), RegisterError> {
    type Entry = unsafe extern "C" fn();
    static RESULT: Mutex<Option<Result<(), String>>> = Mutex::new(None);
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    // SQLite hands the table to an automatic extension of a connection that is opened.
    unsafe extern "C" fn entry(_database: *mut c_void, _error: *mut *mut c_char, routines: *const ApiRoutines) -> c_int {
        // SAFETY: called by SQLite with its own table. The connection is about to be closed; others get the functions.
        let registered =
            catch_unwind(|| unsafe { shim::register(routines, false).inspect(|api| functions::offer(std::ptr::null_mut(), api)) });
        let result = registered.map_or_else(|_| Err("a fault in the extension".to_owned()), |r| r.map(drop).map_err(|e| e.to_string()));
        *RESULT.lock() = Some(result);
        0
    }

    let _only = ONE_AT_A_TIME.lock();
    *RESULT.lock() = None;
    // SAFETY: the caller vouches for the functions; these are their types, with the entry point's arguments hidden as SQLite declares it.
    unsafe {
        let auto_extension = std::mem::transmute::<*const c_void, unsafe extern "C" fn(Entry) -> c_int>(host.auto_extension);
        let cancel = std::mem::transmute::<*const c_void, unsafe extern "C" fn(Entry) -> c_int>(host.cancel_auto_extension);
        let open = std::mem::transmute::<*const c_void, unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int>(host.open);
        let close = std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void) -> c_int>(host.close);
        let hidden = std::mem::transmute::<unsafe extern "C" fn(*mut c_void, *mut *mut c_char, *const ApiRoutines) -> c_int, Entry>(entry);
        let mut database = std::ptr::null_mut();
        auto_extension(hidden);
        open(c":memory:".as_ptr(), &raw mut database);
        cancel(hidden);
        close(database);
    }
    let result = RESULT.lock().take();
    result.unwrap_or_else(|| Err("SQLite did not call the entry point".to_owned())).map_err(RegisterError::Host)
}

/// Registers the VFS `replicated` with the SQLite behind a module of C bindings, whichever crate or version it is.
///
/// ```no_run
/// # mod rusqlite { pub use libsqlite3_sys as ffi; }
/// replicated::register!(rusqlite::ffi)?;
/// // From here on: Connection::open("file:app.db?vfs=replicated&replica=s3://bucket/app")
/// # Ok::<(), replicated::RegisterError>(())
/// ```
#[macro_export]
macro_rules! register {
    ($($ffi:ident)::+) => {{
        #[allow(unsafe_code)]
        // SAFETY: the functions are those that the names say, of one library.
        unsafe {
            $crate::register_with($crate::HostFunctions {
                auto_extension: $($ffi)::+::sqlite3_auto_extension as *const ::std::ffi::c_void,
                cancel_auto_extension: $($ffi)::+::sqlite3_cancel_auto_extension as *const ::std::ffi::c_void,
                open: $($ffi)::+::sqlite3_open as *const ::std::ffi::c_void,
                close: $($ffi)::+::sqlite3_close as *const ::std::ffi::c_void,
            })
        }
    }};
}
