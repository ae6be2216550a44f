//! The VFS below ours, and files of it.

use std::ffi::{OsStr, c_char, c_int, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use parking_lot::Mutex;

use super::abi::{File, IoMethods, SQLITE_IOERR_SHORT_READ, SQLITE_OK, SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_READONLY, SQLITE_SYNC_NORMAL, Vfs};
use super::fork;
use crate::replicator::preserve::DatabaseFile;

/// The VFS that ours wraps. It lives as long as the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BaseVfs(pub(crate) *mut Vfs);

// SAFETY: SQLite calls a VFS from any thread, and so may we; the pointer is never freed.
unsafe impl Send for BaseVfs {}
// SAFETY: as above.
unsafe impl Sync for BaseVfs {}

impl BaseVfs {
    /// Opens a database once more.
    pub(super) fn open_database(self, path: &Path) -> io::Result<Box<dyn DatabaseFile>> {
        Ok(Box::new(BaseFile::open(self.0, path)?))
    }
}

/// A file name as SQLite hands it to a VFS: zero bytes before it, and behind it an empty list of URI parameters.
fn vfs_name(path: &OsStr) -> Vec<u8> {
    let mut name = vec![0; 4];
    name.extend_from_slice(path.as_bytes());
    name.extend_from_slice(&[0; 8]);
    name
}

/// The database file by one more handle of SQLite's own VFS, which knows of the process's other handles: closing it drops no lock.
#[derive(Debug)]
struct BaseFile {
    file: Mutex<Box<[u64]>>,
    /// The base keeps a pointer into it.
    _name: Vec<u8>,
}

// SAFETY: the handle is only used under its lock, and the base VFS allows a file to move between threads.
unsafe impl Send for BaseFile {}
// SAFETY: as above.
unsafe impl Sync for BaseFile {}

impl BaseFile {
    fn open(vfs: *mut Vfs, path: &Path) -> io::Result<Self> {
        let name = vfs_name(path.as_os_str());
        // SAFETY: `vfs` is the registered base, alive for ever.
        let (open, bytes) = unsafe { ((*vfs).open, (*vfs).file_bytes) };
        let (Some(open), Ok(bytes)) = (open, usize::try_from(bytes)) else { return Err(io::ErrorKind::Unsupported.into()) };
        let mut file = vec![0_u64; bytes.div_ceil(8)].into_boxed_slice();
        let pointer = file.as_mut_ptr().cast::<File>();
        let mut out_flags = 0;
        // SAFETY: the buffer is as large as the base asks for and aligned; the name is terminated and stays where it is on the heap.
        let rc = fork::apart(|| unsafe {
            open(vfs, name.as_ptr().add(4).cast::<c_char>(), pointer, SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READONLY, &raw mut out_flags)
        });
        let this = Self { file: Mutex::new(file), _name: name };
        if rc == SQLITE_OK { Ok(this) } else { Err(sqlite_error("open", rc)) }
    }

    fn methods(file: &mut [u64]) -> Option<(&'static IoMethods, *mut File)> {
        let pointer = file.as_mut_ptr().cast::<File>();
        // SAFETY: an open base file begins with its methods, which are static; null where the open failed.
        unsafe { (*pointer).methods.as_ref() }.map(|methods| (methods, pointer))
    }
}

impl DatabaseFile for BaseFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut file = self.file.lock();
        let (Some((IoMethods { read: Some(read), .. }, pointer)), Ok(bytes), Ok(offset)) =
            (Self::methods(&mut file), c_int::try_from(buf.len()), i64::try_from(offset))
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: the file is open, and the buffer has that many bytes.
        let rc = fork::apart(|| unsafe { read(pointer, buf.as_mut_ptr().cast::<c_void>(), bytes, offset) });
        match rc {
            SQLITE_OK => Ok(()),
            // Every VFS fills up with zeros: SQLite's pager relies on it.
            SQLITE_IOERR_SHORT_READ => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(sqlite_error("read", rc)),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut file = self.file.lock();
        let Some((IoMethods { sync: Some(sync), .. }, pointer)) = Self::methods(&mut file) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // It takes as long as the disk does, and SQLite's own VFS holds no lock meanwhile: a fork does not wait for it.
        // SAFETY: the file is open.
        let rc = unsafe { sync(pointer, SQLITE_SYNC_NORMAL) };
        if rc == SQLITE_OK { Ok(()) } else { Err(sqlite_error("sync", rc)) }
    }
}

impl Drop for BaseFile {
    fn drop(&mut self) {
        let mut file = self.file.lock();
        if let Some((IoMethods { close: Some(close), .. }, pointer)) = Self::methods(&mut file) {
            // SAFETY: the file is open and not used after this.
            fork::apart(|| unsafe { close(pointer) });
        }
    }
}

fn sqlite_error(operation: &str, rc: c_int) -> io::Error {
    io::Error::other(format!("SQLite's VFS: {operation} failed with code {rc}"))
}
