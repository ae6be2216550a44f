//! `LD_PRELOAD=replicated-preload.so`: programs that use a shared library of SQLite replicate without a change, also those that cannot load extensions.
//!
//! It stands before SQLite's three functions that open a database. Where the environment (or the name that is opened) asks for it, the first call of each copy of
//! SQLite loads `replicated.so`, which lies beside this library, and makes its VFS the default one; then SQLite's own function opens. It is a library of its own and not the
//! extension, since a program that loads the extension for all to see must not find functions of SQLite in it. Nothing happens when it is loaded, and in programs without SQLite nothing
//! ever does.
//!
//! Where a program cannot be made to replicate as it is asked to, its databases are not opened: it must not go on without a replica in silence.

#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
#![allow(unsafe_code)] // C on both sides.

mod copy;
mod linker;

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::catch_unwind;

use linker::Scope;

const SQLITE_CANTOPEN: c_int = 14;

type Open = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
type Open16 = unsafe extern "C" fn(*const c_void, *mut *mut c_void) -> c_int;
type OpenV2 = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, *const c_char) -> c_int;

/// An exported function: passes the address that it returns to on as one more argument, by which the copy of SQLite is found that the caller means. The instruction
/// puts it where the next argument is expected; the others stay where they are.
macro_rules! interposed {
    ($name:ident, $inner:ident, $x86:literal, $arm:literal) => {
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            #[cfg(target_arch = "x86_64")]
            std::arch::naked_asm!("endbr64", $x86, "jmp {inner}", inner = sym $inner);
            #[cfg(target_arch = "aarch64")]
            std::arch::naked_asm!("hint #34", $arm, "b {inner}", inner = sym $inner);
        }
    };
}

interposed!(sqlite3_open, open, "mov rdx, [rsp]", "mov x2, x30");
interposed!(sqlite3_open16, open16, "mov rdx, [rsp]", "mov x2, x30");
interposed!(sqlite3_open_v2, open_v2, "mov r8, [rsp]", "mov x4, x30");

unsafe extern "C" fn open(name: *const c_char, out: *mut *mut c_void, caller: *const c_void) -> c_int {
    // SAFETY: SQLite's own arguments; the type is that of the function named.
    unsafe {
        match prepared::<Open>(caller, c"sqlite3_open", || is_asked_for(utf8(name))) {
            Ok(next) => next(name, out),
            Err(error) => refuse(out, &error),
        }
    }
}

unsafe extern "C" fn open16(name: *const c_void, out: *mut *mut c_void, caller: *const c_void) -> c_int {
    // SAFETY: as above. What a UTF-16 name says is not looked at: there the environment has to ask.
    unsafe {
        match prepared::<Open16>(caller, c"sqlite3_open16", || is_asked_for(&[])) {
            Ok(next) => next(name, out),
            Err(error) => refuse(out, &error),
        }
    }
}

unsafe extern "C" fn open_v2(name: *const c_char, out: *mut *mut c_void, flags: c_int, vfs: *const c_char, caller: *const c_void) -> c_int {
    // SAFETY: as above.
    unsafe {
        match prepared::<OpenV2>(caller, c"sqlite3_open_v2", || utf8(vfs) == b"replicated" || is_asked_for(utf8(name))) {
            Ok(next) => next(name, out, flags, vfs),
            Err(error) => refuse(out, &error),
        }
    }
}

/// SQLite's own function, once our VFS is the default of that SQLite, if it is to be.
///
/// # Safety
/// `F` is the type of the function of that name.
unsafe fn prepared<F: Copy>(caller: *const c_void, name: &CStr, asked: impl Fn() -> bool + std::panic::UnwindSafe) -> Result<F, String> {
    thread_local! {
        // A program's own automatic extension may open databases while ours is being loaded.
        static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
    }
    let scope = Scope::of(caller, name).ok_or_else(|| format!("no SQLite with {} is in this process", name.to_string_lossy()))?;
    // SAFETY: the caller vouches for it.
    let next = unsafe { scope.function::<F>(name) }.ok_or_else(|| "the loader has lost SQLite".to_owned())?;
    if IS_INSIDE.get() {
        return Ok(next);
    }
    IS_INSIDE.set(true);
    let done = catch_unwind(std::panic::AssertUnwindSafe(|| if asked() { copy::is_replicated(&scope) } else { Ok(()) }));
    IS_INSIDE.set(false);
    done.unwrap_or_else(|_| Err("a fault".to_owned())).map(|()| next)
}

/// Whether replication is asked for: by any variable of ours, so that a misspelt one is found, or by the name of the database. `REPLICATED_DEFAULT=0` says no.
fn is_asked_for(name: &[u8]) -> bool {
    let mut is_asked = name.windows(14).any(|part| part == b"vfs=replicated");
    for (variable, value) in std::env::vars_os() {
        let variable = variable.as_encoded_bytes();
        if variable == b"REPLICATED_DEFAULT" && value == "0" {
            return false;
        }
        is_asked |= variable.starts_with(b"REPLICATED_") && !value.is_empty();
    }
    is_asked
}

/// # Safety
/// `text` is null or a C string that outlives what is returned.
unsafe fn utf8<'a>(text: *const c_char) -> &'a [u8] {
    if text.is_null() {
        return &[];
    }
    // SAFETY: not null.
    unsafe { CStr::from_ptr(text) }.to_bytes()
}

/// As SQLite refuses: a code, and no connection.
///
/// # Safety
/// `out` is null or where a connection is to be put.
unsafe fn refuse(out: *mut *mut c_void, why: &str) -> c_int {
    eprintln!("replicated-preload: the database is not opened: {why}");
    if !out.is_null() {
        // SAFETY: the caller's variable.
        unsafe { *out = std::ptr::null_mut() };
    }
    SQLITE_CANTOPEN
}
