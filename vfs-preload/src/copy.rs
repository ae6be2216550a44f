//! One copy of SQLite: our VFS is registered with it and its default.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use parking_lot::Mutex;

use crate::Open;
use crate::linker::{Scope, extension, library_of};

const VFS: &CStr = c"replicated";

/// A lock that another thread held in the moment of a fork is never given back in the child. It is held while the extension is loaded.
const FORKED_WHILE_HELD: Duration = Duration::from_secs(10);

/// The copies that have been prepared: where the library is, and the VFS that was the default one.
static PREPARED: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

type VfsFind = unsafe extern "C" fn(*const c_char) -> *mut c_void;
type VfsRegister = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
type EnableLoadExtension = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
type LoadExtension = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, *mut *mut c_char) -> c_int;
type Close = unsafe extern "C" fn(*mut c_void) -> c_int;
type Free = unsafe extern "C" fn(*mut c_void);

struct Functions {
    vfs_find: VfsFind,
    vfs_register: VfsRegister,
    open: Open,
    close: Close,
    enable_load_extension: EnableLoadExtension,
    load_extension: LoadExtension,
    free: Free,
}

impl Functions {
    fn of(scope: &Scope) -> Result<Self, String> {
        fn missing(name: &CStr) -> String {
            format!("this SQLite has no {}: it cannot load extensions", name.to_string_lossy())
        }
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the one of SQLite's header.
                unsafe { scope.function($name) }.ok_or_else(|| missing($name))?
            };
        }
        Ok(Self {
            vfs_find: function!(c"sqlite3_vfs_find"),
            vfs_register: function!(c"sqlite3_vfs_register"),
            open: function!(c"sqlite3_open"),
            close: function!(c"sqlite3_close"),
            enable_load_extension: function!(c"sqlite3_enable_load_extension"),
            load_extension: function!(c"sqlite3_load_extension"),
            free: function!(c"sqlite3_free"),
        })
    }
}

/// Makes it so where it is not.
pub(crate) fn is_replicated(scope: &Scope) -> Result<(), String> {
    let sqlite = Functions::of(scope)?;
    let Some((_, library)) = library_of(sqlite.open as *const c_void) else {
        return Err("the loader does not know SQLite's library".to_owned());
    };
    let Some(mut prepared) = PREPARED.try_lock_for(FORKED_WHILE_HELD) else {
        return Err("this process was forked while its parent opened its first database: open the first one before the fork, or after it"
            .to_owned());
    };
    // SAFETY: functions of one SQLite with arguments of their types.
    let default = unsafe { (sqlite.vfs_find)(std::ptr::null()) };
    let known = prepared.iter().find(|(known, _)| *known == library).map(|(_, below)| *below);
    // After `sqlite3_shutdown` SQLite takes its own VFS for the default again. One that the program has made the default since stays it.
    if known.is_some_and(|below| below != default as usize) {
        return Ok(());
    }
    // SAFETY: as above.
    let mut ours = unsafe { (sqlite.vfs_find)(VFS.as_ptr()) };
    if ours.is_null() {
        load(&sqlite)?;
        // SAFETY: as above.
        ours = unsafe { (sqlite.vfs_find)(VFS.as_ptr()) };
    }
    // SAFETY: as above; a registered VFS.
    if ours.is_null() || unsafe { (sqlite.vfs_register)(ours, 1) } != 0 {
        return Err("the VFS `replicated` is not registered".to_owned());
    }
    if known.is_none() {
        // Where the program has made ours the default by itself there is nothing to come back to.
        prepared.push((library, if default == ours { 0 } else { default as usize }));
    }
    Ok(())
}

/// Loads the extension by a connection of our own, which is closed again. It stays.
fn load(sqlite: &Functions) -> Result<(), String> {
    let file = extension().ok_or("the folder of replicated-preload.so is not found: give LD_PRELOAD an absolute path")?;
    if !file.exists() {
        return Err(format!("{} is not there: the extension belongs beside replicated-preload.so", file.display()));
    }
    let path = CString::new(file.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    let mut connection = std::ptr::null_mut();
    let mut message: *mut c_char = std::ptr::null_mut();
    // SAFETY: as in `is_replicated`. The message is SQLite's memory, given back to it.
    unsafe {
        let mut code = (sqlite.open)(c":memory:".as_ptr(), &raw mut connection);
        if code == 0 {
            (sqlite.enable_load_extension)(connection, 1);
            code = (sqlite.load_extension)(connection, path.as_ptr(), std::ptr::null(), &raw mut message);
        }
        let why = if message.is_null() { format!("code {code}") } else { CStr::from_ptr(message).to_string_lossy().into_owned() };
        (sqlite.free)(message.cast());
        (sqlite.close)(connection);
        if code == 0 { Ok(()) } else { Err(format!("{} cannot be loaded: {why}", file.display())) }
    }
}
