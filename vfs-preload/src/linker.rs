//! What the dynamic linker knows: which SQLite a caller would have got without us, and where this library lies.

use std::ffi::{CStr, OsStr, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a caller's functions of SQLite are found, by the linker's own rules: in what the program was started with, after us, or else in the library that the
/// caller is in and what that one needs (Python's `_sqlite3` brings SQLite with it, for itself only). A process can have several copies of SQLite.
pub(crate) enum Scope {
    Program,
    Library(Handle),
}

/// A library, kept while we look into it.
pub(crate) struct Handle(*mut c_void);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it was opened once, and is closed once.
        unsafe { libc::dlclose(self.0) };
    }
}

impl Scope {
    /// The one of the code at this address, which has called `name`.
    pub(crate) fn of(caller: *const c_void, name: &CStr) -> Option<Self> {
        if !Self::Program.address(name).is_null() {
            return Some(Self::Program);
        }
        let (file, _) = library_of(caller)?;
        // SAFETY: a C string; nothing is loaded that is not there already.
        let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        let scope = (!handle.is_null()).then_some(Self::Library(Handle(handle)))?;
        (!scope.address(name).is_null()).then_some(scope)
    }

    fn address(&self, name: &CStr) -> *mut c_void {
        let handle = match self {
            Self::Program => libc::RTLD_NEXT,
            Self::Library(handle) => handle.0,
        };
        // SAFETY: a handle that is open, and a C string.
        unsafe { libc::dlsym(handle, name.as_ptr()) }
    }

    /// A function of this SQLite.
    ///
    /// # Safety
    /// `F` is the type of the function of that name.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &CStr) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let address = self.address(name);
        // SAFETY: a function pointer has the size of an address, and the caller vouches for its type.
        (!address.is_null()).then(|| unsafe { std::mem::transmute_copy::<*mut c_void, F>(&address) })
    }
}

/// The file of the library that an address is in, and where it begins in memory.
pub(crate) fn library_of(address: *const c_void) -> Option<(&'static CStr, usize)> {
    let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the structure is ours. It is all zeros or filled; the name is the linker's, which keeps it while the library is loaded, and code of it has called us.
    unsafe {
        libc::dladdr(address, found.as_mut_ptr());
        let found = found.assume_init();
        (!found.dli_fname.is_null()).then(|| (CStr::from_ptr(found.dli_fname), found.dli_fbase as usize))
    }
}

/// The extension, which lies beside this library.
pub(crate) fn extension() -> Option<PathBuf> {
    let (own, _) = library_of(library_of as *const c_void)?;
    Path::new(OsStr::from_bytes(own.to_bytes())).canonicalize().ok()?.parent().map(|folder| folder.join("replicated.so"))
}
