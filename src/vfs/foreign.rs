//! A look at another SQLite library, for the command-line tool: it is loaded, asked and left. A library may do anything when it is loaded, so this is for
//! a process of its own.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// What it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignSqlite {
    /// Such as `3.40.1`.
    pub version: String,
    /// Whether it was built with extension loading.
    pub loads_extensions: bool,
    /// Why the extension did not load in it; `None` where it did, or none was named.
    pub extension_error: Option<String>,
}

/// Loads a SQLite library into this process, and an extension into that.
///
/// # Errors
/// Where it is none.
pub fn inspect_sqlite(library: &Path, extension: Option<&Path>) -> Result<ForeignSqlite, String> {
    let library = Library::open(library)?;
    // SAFETY: SQLite declares these so, and has for as long as it has them.
    unsafe {
        let version = library.function("sqlite3_libversion").ok_or("it is no SQLite library (it has no sqlite3_libversion)")?;
        let version: unsafe extern "C" fn() -> *const c_char = std::mem::transmute(version);
        let mut seen = ForeignSqlite {
            version: CStr::from_ptr(version()).to_string_lossy().into_owned(),
            loads_extensions: library.function("sqlite3_load_extension").is_some() && !library.omits_loading(),
            extension_error: None,
        };
        if let Some(extension) = extension.filter(|_| seen.loads_extensions) {
            seen.extension_error = library.load(extension).err();
        }
        Ok(seen)
    }
}

/// A library that stays loaded until the process ends.
struct Library(ptr::NonNull<c_void>);

impl Library {
    fn open(path: &Path) -> Result<Self, String> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        // SAFETY: a C string; what the library does when it is loaded is what the caller has asked for.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        ptr::NonNull::new(handle).map(Self).ok_or_else(|| {
            // SAFETY: null, or a C string that is good until the next call of this family.
            let error = unsafe { libc::dlerror().as_ref().map(|error| CStr::from_ptr(error).to_string_lossy().into_owned()) };
            error.unwrap_or_default()
        })
    }

    fn function(&self, name: &str) -> Option<*mut c_void> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is open, the name a C string.
        let function = unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) };
        (!function.is_null()).then_some(function)
    }

    /// # Safety
    /// It is a SQLite library.
    unsafe fn omits_loading(&self) -> bool {
        let Some(used) = self.function("sqlite3_compileoption_used") else { return false };
        // SAFETY: as SQLite declares it.
        unsafe {
            let used: unsafe extern "C" fn(*const c_char) -> c_int = std::mem::transmute(used);
            used(c"OMIT_LOAD_EXTENSION".as_ptr()) != 0
        }
    }

    /// # Safety
    /// It is a SQLite library.
    unsafe fn load(&self, extension: &Path) -> Result<(), String> {
        type Open = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
        type Config = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
        type Load = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, *mut *mut c_char) -> c_int;
        const SQLITE_OK: c_int = 0;
        let extension = CString::new(extension.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        let need = |name: &str| self.function(name).ok_or_else(|| format!("it lacks {name}"));
        let (mut database, mut error) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: as SQLite declares them; the connection and the text live until the process ends.
        unsafe {
            let open: Open = std::mem::transmute(need("sqlite3_open")?);
            let enable: Config = std::mem::transmute(need("sqlite3_enable_load_extension")?);
            let load: Load = std::mem::transmute(need("sqlite3_load_extension")?);
            if open(c":memory:".as_ptr(), &raw mut database) != SQLITE_OK || enable(database, 1) != SQLITE_OK {
                return Err("it opens no database in memory".to_owned());
            }
            let code = load(database, extension.as_ptr(), ptr::null(), &raw mut error);
            if code == SQLITE_OK {
                return Ok(());
            }
            let text = error.as_ref().map(|text| CStr::from_ptr(text).to_string_lossy().into_owned());
            Err(text.unwrap_or_else(|| format!("code {code}")))
        }
    }
}
