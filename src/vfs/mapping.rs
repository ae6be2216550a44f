//! The page of a database's control file that all of its processes have in common.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use crate::replicator::shared::{Mapped, PAGE_BYTES, PAGE_OFFSET, Page};

/// A mapping of the page, for as long as this is there.
#[derive(Debug)]
struct Mapping(NonNull<Page>);

// SAFETY: the page consists of atomics, and stays mapped until this is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Maps it, where it is all there.
pub(super) fn map(control: &File) -> io::Result<Box<dyn Mapped>> {
    map_as(control, libc::PROT_READ | libc::PROT_WRITE)
}

/// The same to look at, of a file that may be opened for reading only. Its words are only ever loaded: a store would be a fault of this process.
pub(crate) fn map_to_look(control: &File) -> io::Result<Box<dyn Mapped>> {
    map_as(control, libc::PROT_READ)
}

fn map_as(control: &File, protection: libc::c_int) -> io::Result<Box<dyn Mapped>> {
    if control.metadata()?.len() < PAGE_OFFSET + PAGE_BYTES as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let offset = libc::off_t::try_from(PAGE_OFFSET).map_err(io::Error::other)?;
    // SAFETY: a new mapping at an address that the kernel chooses; the descriptor is open. On machines with larger pages than the offset the kernel
    // refuses it.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), PAGE_BYTES, protection, libc::MAP_SHARED, control.as_raw_fd(), offset) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).map(|page| Box::new(Mapping(page)) as Box<dyn Mapped>).ok_or_else(|| io::Error::other("no address"))
}

impl Mapped for Mapping {
    fn page(&self) -> &Page {
        // SAFETY: mapped, aligned to a page, at least as long as a `Page`; any bytes are values of its atomics.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows from it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE_BYTES) };
    }
}
