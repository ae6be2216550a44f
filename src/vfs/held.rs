//! The header of a frame waits for its page, so that the system gets both by one write.
//!
//! SQLite writes each frame of the WAL by two calls, the 24 bytes of its header and right after them the page (`walWriteOneFrame`). The system takes
//! each as a write of its own into the same page of its cache; together they cost a quarter less, some 1 us of a commit. Nothing of a frame counts before
//! the WAL-index covers it or, after a crash, its checksum and that of a commit behind it are right, so that it makes no difference that a header
//! without its page is not in the file.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::abi::{File, SQLITE_OK};
use super::file::write;
use crate::wal::FRAME_HEADER_BYTES;

/// SQLite's default.
const USUAL_PAGE_BYTES: usize = 4096;
/// A page that is larger is not copied to an application's stack, and written by itself.
const LARGE_PAGE_BYTES: usize = 16384;

/// A header that SQLite has written and that is not in the file yet. Its methods are called under the connection's mutex, by which its words are in
/// order.
#[derive(Debug, Default)]
pub(super) struct HeldHeader {
    /// The WAL that it belongs to; null: nothing is held.
    wal: AtomicPtr<File>,
    offset: AtomicU64,
    words: [AtomicU64; FRAME_HEADER_BYTES / size_of::<u64>()],
}

impl HeldHeader {
    /// Holds the header of a frame that is appended to `wal`. What comes next is its page.
    pub(super) fn hold(&self, wal: *mut File, header: &[u8; FRAME_HEADER_BYTES], offset: i64) {
        for (word, bytes) in self.words.iter().zip(header.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        self.offset.store(offset.cast_unsigned(), Ordering::Relaxed);
        self.wal.store(wal, Ordering::Relaxed);
    }

    fn take(&self) -> Option<(*mut File, [u8; FRAME_HEADER_BYTES], i64)> {
        let wal = self.wal.load(Ordering::Relaxed);
        if wal.is_null() {
            return None;
        }
        self.wal.store(std::ptr::null_mut(), Ordering::Relaxed);
        let mut header = [0; FRAME_HEADER_BYTES];
        for (bytes, word) in header.as_chunks_mut().0.iter_mut().zip(&self.words) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        Some((wal, header, self.offset.load(Ordering::Relaxed).cast_signed()))
    }

    /// Writes the header that is held, if one is. SQLite never asks for anything between a header and its page; a VFS that is stacked on ours may.
    ///
    /// # Safety
    /// The WAL for which a header is held is open.
    pub(super) unsafe fn release(&self) -> c_int {
        // SAFETY: passed on; the header is read while it is on the stack.
        self.take().map_or(SQLITE_OK, |(wal, header, offset)| unsafe { write(wal, header.as_ptr().cast(), header.len() as c_int, offset) })
    }

    /// Writes to the WAL, together with the header that is held if this is its page.
    ///
    /// # Safety
    /// `file` is an open WAL of ours, `from` points to `bytes` bytes, and the WAL for which a header is held is open.
    pub(super) unsafe fn write(&self, file: *mut File, from: *const c_void, bytes: c_int, offset: i64) -> c_int {
        if let Some((wal, header, at)) = self.take() {
            let page_bytes = usize::try_from(bytes).unwrap_or(0);
            if wal == file && at + FRAME_HEADER_BYTES as i64 == offset {
                // SAFETY: SQLite passes as many bytes as it says.
                let page = unsafe { std::slice::from_raw_parts(from.cast(), page_bytes) };
                if page_bytes <= USUAL_PAGE_BYTES {
                    // SAFETY: passed on.
                    return unsafe { write_frame::<USUAL_PAGE_BYTES>(file, &header, page, at) };
                }
                if page_bytes <= LARGE_PAGE_BYTES {
                    // SAFETY: passed on.
                    return unsafe { write_frame::<LARGE_PAGE_BYTES>(file, &header, page, at) };
                }
            }
            // SAFETY: passed on.
            let rc = unsafe { write(wal, header.as_ptr().cast(), header.len() as c_int, at) };
            if rc != SQLITE_OK {
                return rc;
            }
        }
        // SAFETY: passed on.
        unsafe { write(file, from, bytes, offset) }
    }
}

/// A frame of a page of up to `PAGE_BYTES` bytes.
///
/// # Safety
/// `file` is an open WAL of ours.
// Not inlined: its buffer is to be on the stack of who needs it only.
#[inline(never)]
unsafe fn write_frame<const PAGE_BYTES: usize>(file: *mut File, header: &[u8; FRAME_HEADER_BYTES], page: &[u8], offset: i64) -> c_int {
    #[repr(C)]
    struct Frame<const PAGE_BYTES: usize> {
        header: [u8; FRAME_HEADER_BYTES],
        page: [MaybeUninit<u8>; PAGE_BYTES],
    }
    let mut frame = Frame { header: *header, page: [const { MaybeUninit::uninit() }; PAGE_BYTES] };
    let bytes = page.len().min(PAGE_BYTES);
    // SAFETY: passed on; the two do not overlap. So many bytes of the frame are initialised then, as the page follows on the header without a gap.
    unsafe {
        frame.page.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(page.as_ptr(), bytes);
        write(file, (&raw const frame).cast(), (FRAME_HEADER_BYTES + bytes) as c_int, offset)
    }
}
