//! A checkpoint on a connection of our own: opened for it, and closed after it.
//!
//! The connection is one of the host's own SQLite, by our VFS, so that a snapshot and the gate see what it writes as they see any other. The open is told from the application's
//! by the thread, and counts for nothing: the last close of the application's is the last one.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::abi::{File, SQLITE_BUSY, SQLITE_LOCKED};
use super::api::SqliteApi;
use super::versions::has_wal_reset_bug;
use super::{file, fork};
use crate::replicator::ahead::Checkpointed;
use crate::replicator::durability::Policy;
use crate::replicator::replicas::Replicas;

thread_local! {
    /// What the database that this thread opens next is replicated by.
    static OPENS: RefCell<Option<Replicas>> = const { RefCell::new(None) };
}

/// The replicas of the database that is opened by this thread, if it is our own that opens it.
pub(super) fn opens() -> Option<Replicas> {
    // In a thread of the application's nothing is made that it would have to clear away at its end.
    if !fork::is_inside() {
        return None;
    }
    OPENS.with(|opens| opens.try_borrow_mut().ok()?.take())
}

/// Why this SQLite is left to its own checkpoints.
pub(super) fn obstacle(api: &SqliteApi) -> Option<String> {
    let version = api.version();
    if has_wal_reset_bug(version) {
        // Another connection that checkpoints makes it likelier.
        return Some(format!(
            "this is SQLite {}.{}.{}, which has a bug that can corrupt a database where several connections checkpoint it (the WAL-reset bug; 3.51.3 has it mended)",
            version / 1_000_000,
            version / 1000 % 1000,
            version % 1000
        ));
    }
    (!api.has_mutexes()).then(|| "this SQLite was built or configured without mutexes, for one thread".to_owned())
}

/// Makes a database that this connection's `xOpen` is for ours, without counting as a handle of the application's.
///
/// # Safety
/// As `file::become_main`.
pub(super) unsafe fn become_own(out: *mut File, api: &'static SqliteApi, name: *const c_char, replicas: Replicas) {
    let policy = Policy::of(&replicas.first.options);
    // SAFETY: passed on.
    unsafe { file::become_main(out, api, name, Some(replicas), policy, true) };
}

/// A PASSIVE checkpoint, which waits for nobody and keeps nobody waiting.
pub(super) fn checkpoint(api: &SqliteApi, path: &Path, replicas: &Replicas) -> Checkpointed {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else { return Checkpointed::NotNow };
    OPENS.with(|opens| opens.replace(Some(replicas.clone())));
    // A fork within it would leave SQLite's own locks held in the child, but while it syncs: see `fork`.
    let outcome = fork::apart(|| api.checkpoint(&name, super::shim::NAME));
    OPENS.with(|opens| opens.replace(None));
    match outcome {
        Ok((frames, in_file)) => match (u32::try_from(frames), u32::try_from(in_file)) {
            (Ok(frames), Ok(in_file)) => Checkpointed::Done { frames, in_file },
            // It is not in WAL mode any more.
            _ => Checkpointed::NotNow,
        },
        Err((code, _)) if matches!(code & 0xff, SQLITE_BUSY | SQLITE_LOCKED) => Checkpointed::NotNow,
        Err((code, why)) => Checkpointed::Never(format!("{why} (code {code})")),
    }
}
