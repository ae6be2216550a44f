//! The loadable extension: SQLite's two entry points, nothing else.

#![allow(unsafe_code)] // The entry points are C.

use std::ffi::{c_char, c_int, c_void};

use replicated::{ApiRoutines, extension_init};

/// What SQLite looks for by the file's name, `replicated.so`.
///
/// # Safety
/// Called by SQLite.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_replicated_init(database: *mut c_void, error: *mut *mut c_char, routines: *const ApiRoutines) -> c_int {
    // SAFETY: SQLite's own arguments.
    unsafe { extension_init(database, error, routines) }
}

/// What SQLite looks for first, whatever the file is called.
///
/// # Safety
/// Called by SQLite.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_extension_init(database: *mut c_void, error: *mut *mut c_char, routines: *const ApiRoutines) -> c_int {
    // SAFETY: SQLite's own arguments.
    unsafe { extension_init(database, error, routines) }
}
