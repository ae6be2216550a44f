//! A WAL, and the super-journal of a transaction over several databases.

use std::ffi::{c_int, c_void};
use std::panic::catch_unwind;
use std::sync::atomic::Ordering;

use super::abi::{File, SQLITE_AUTH, SQLITE_OK};
use super::file::{file_control, file_size, guarded, main_of, read, sync, truncate, write};
use super::fork;
use super::group;
use super::main_file::MainFile;
use crate::wal::{FRAME_HEADER_BYTES, FrameHeader};

/// A WAL, with the database that it belongs to. SQLite closes it before that.
pub(super) struct WalSide {
    pub(super) main: *const MainFile,
}

/// Notices the header of a new generation and, where no shared memory announces commits, what belongs to one.
pub(super) unsafe extern "C" fn wal_write(file: *mut File, from: *const c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    let Some(replicas) = main.replicas() else {
        // SAFETY: see above.
        return unsafe { write(file, from, bytes, offset) };
    };
    // SAFETY: SQLite passes as many bytes as it says.
    let content = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), usize::try_from(bytes).unwrap_or(0)) };
    let unlocked = !main.holds_write.load(Ordering::Relaxed);
    if offset == 0
        && let Some(&[a, b, c, d, e, f, g, h]) = content.get(16..24)
    {
        let salts = [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])];
        guarded(main, (), || {
            if unlocked {
                main.before_unlocked_end(replicas);
            }
            replicas.each((), |database| {
                if unlocked {
                    database.restarts_exclusively(salts);
                }
                database.generation_begins(salts);
            });
            main.wal_is_cut.store(false, Ordering::Relaxed);
            main.frames.lock().clear();
        });
    }
    let header_bytes: Option<&[u8; FRAME_HEADER_BYTES]> = content.try_into().ok();
    let header = header_bytes.map(FrameHeader::decode);
    if let Some(header) = &header {
        // SAFETY: see above. Without shared memory there is no lock before this.
        let refused = unsafe { main.refusal_before_frame(header) }.or_else(|| unlocked.then(|| main.refusal_of_writes()).flatten());
        if let Some(rc) = refused {
            main.wal_failed.store(true, Ordering::Relaxed);
            return rc;
        }
    }
    if unlocked {
        main.wrote_unlocked.store(true, Ordering::Relaxed);
        main.unlocked_end.fetch_max(offset.cast_unsigned() + content.len() as u64, Ordering::Relaxed);
        if replicas.each(false, |database| database.begins_in_wal(offset.cast_unsigned())).any() {
            main.wal_failed.store(false, Ordering::Relaxed);
            main.frames.lock().clear();
        }
    }
    if let (Some(header), Some(bytes)) = (header, header_bytes)
        && main.frames.lock().note(offset.cast_unsigned(), header)
    {
        // SAFETY: see above.
        let rc = unsafe { release(main) };
        if rc == SQLITE_OK {
            main.held.hold(file, bytes, offset);
        }
        return rc;
    }
    // SAFETY: see above.
    let rc = unsafe { main.held.write(file, from, bytes, offset) };
    if rc != SQLITE_OK {
        main.wal_failed.store(true, Ordering::Relaxed);
    }
    rc
}

pub(super) unsafe extern "C" fn wal_sync(file: *mut File, flags: c_int) -> c_int {
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    // SAFETY: see above.
    let rc = unsafe { after_header(file, || fork::unlocked(|| sync(file, flags))) };
    if rc != SQLITE_OK {
        main.wal_failed.store(true, Ordering::Relaxed);
    } else if let Some(replicas) = main.replicas() {
        main.has_synced_wal.store(true, Ordering::Relaxed);
        replicas.each((), |database| database.wal_synced());
    }
    rc
}

/// SQLite writes the names of the journals of all databases that a transaction has, one at a time, before it commits any of them.
pub(super) unsafe extern "C" fn super_journal_write(file: *mut File, from: *const c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: see above; SQLite passes as many bytes as it says.
    unsafe {
        let name = std::slice::from_raw_parts(from.cast::<u8>(), usize::try_from(bytes).unwrap_or(0));
        match catch_unwind(|| group::joins_super_journal(name)) {
            Ok(None) => write(file, from, bytes, offset),
            Ok(Some(rc)) => rc,
            Err(_) => SQLITE_AUTH,
        }
    }
}

/// What is cut off must be safe before.
pub(super) unsafe extern "C" fn wal_truncate(file: *mut File, bytes: i64) -> c_int {
    // SAFETY: see above.
    let main = unsafe { main_of(file) };
    if let Some(replicas) = main.replicas() {
        guarded(main, (), || {
            if bytes == 0 {
                main.before_unlocked_end(replicas);
                main.look_at_index(replicas);
                main.wal_is_cut.store(true, Ordering::Relaxed);
            }
            replicas.each((), |database| database.wal_shrinks(bytes.cast_unsigned()));
        });
    }
    // SAFETY: see above.
    unsafe { after_header(file, || truncate(file, bytes)) }
}

/// # Safety
/// The WAL for which a header is held is open.
pub(super) unsafe fn release(main: &MainFile) -> c_int {
    // SAFETY: passed on.
    let rc = unsafe { main.held.release() };
    if rc != SQLITE_OK {
        main.wal_failed.store(true, Ordering::Relaxed);
    }
    rc
}

/// What asks for anything but the next write finds the file as SQLite has written it.
///
/// # Safety
/// `file` is an open WAL of ours.
unsafe fn after_header(file: *mut File, then: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: passed on.
    let rc = unsafe { release(main_of(file)) };
    if rc == SQLITE_OK { then() } else { rc }
}

pub(super) unsafe extern "C" fn wal_read(file: *mut File, to: *mut c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: see above.
    unsafe { after_header(file, || read(file, to, bytes, offset)) }
}

pub(super) unsafe extern "C" fn wal_file_size(file: *mut File, bytes: *mut i64) -> c_int {
    // SAFETY: see above.
    unsafe { after_header(file, || file_size(file, bytes)) }
}

pub(super) unsafe extern "C" fn wal_file_control(file: *mut File, operation: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: see above.
    unsafe { after_header(file, || file_control(file, operation, argument)) }
}
