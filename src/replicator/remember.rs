//! What tools write beside a database before it is opened with replication.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::control::{self, Acked, Control, RestoredEarlier, State, replica_hash};
use super::local::{OwnerMode, Paths, identity, room_or_right};
use super::origin::{self, Origin};
use super::shared::Range;
use super::stamp;
use crate::types::{PageSize, Txid, WalPos};

/// Why nothing could be remembered.
#[derive(Debug, thiserror::Error)]
pub enum RememberError {
    /// The directory beside the database, or the control file in it, cannot be written.
    #[error("{path} cannot be written: {source}. {}", room_or_right(.source))]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process has the database open and replicates it.
    #[error("{0} is open in a process that replicates it: stop that process first")]
    InUse(PathBuf),
}

/// What was restored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restored {
    pub(crate) txid: Txid,
    /// The newest TXID that the bucket had.
    pub(crate) newest: Txid,
    pub(crate) page_size: PageSize,
    /// The newest file that was restored, where it is known.
    pub(crate) origin: Option<Origin>,
    /// From the second replica. Else what is remembered of its URL tells.
    pub(crate) is_second: bool,
}

/// A restored database goes on replicating from its TXID, if that was the newest; else nothing is sent until the user has decided.
pub(crate) fn restored(database: &Path, replica_url: &str, restored: &Restored) -> Result<(), RememberError> {
    remember(database, replica_url, restored, false)
}

/// The same, unless the control file speaks of this very file and replica already.
pub(crate) fn restored_unless_known(database: &Path, replica_url: &str, restored: &Restored) -> Result<(), RememberError> {
    remember(database, replica_url, restored, true)
}

/// Whether a process has the control file locked, and so the database open for replication.
pub(crate) fn is_in_use(paths: &Paths) -> bool {
    let is_locked = || {
        let Ok(file) = std::fs::File::options().read(true).write(true).open(paths.control()) else { return false };
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
    };
    // This process's own lock would not be seen, and closing the file would drop it.
    super::process::unless_open(&paths.database, is_locked).unwrap_or(true)
}

fn remember(database: &Path, replica_url: &str, restored: &Restored, unless_known: bool) -> Result<(), RememberError> {
    let earlier = (restored.txid < restored.newest).then_some(RestoredEarlier { txid: restored.txid, newest: restored.newest });
    let is_known = |saved: &State, identity| {
        unless_known && saved.identity == Some(identity) && saved.replica_hash == replica_hash(replica_url) && saved.acked.is_some()
    };
    let fresh = |identity| State {
        identity: Some(identity),
        replica_hash: replica_hash(replica_url),
        node_id: fastrand::u64(1..),
        page_size: restored.page_size.get(),
        acked: Some(Acked { txid: restored.txid, end: WalPos::default() }),
        captured: Some(WalPos::default()),
        sealed: true,
        // The restore has synced it.
        stamp: stamp::settled(database, &|header| std::fs::File::open(database)?.read_exact_at(header, 0), true),
        restored_earlier: earlier,
        ..State::default()
    };
    write(database, replica_url, restored.is_second, restored.origin.as_ref(), |saved, identity| {
        saved.filter(|saved| is_known(saved, identity)).unwrap_or_else(|| fresh(identity))
    })
}

/// Declares a database file the truth over what its bucket holds up to `newest`: at its next open the full state is sent as the TXID after
/// that. What the bucket holds stays restorable.
///
/// # Errors
/// Where the database is open in a process that replicates it, or the directory beside it cannot be written.
pub fn adopt(database: &Path, replica_url: &str, newest: Txid) -> Result<(), RememberError> {
    write(database, replica_url, false, None, |saved, identity| {
        let fresh =
            State { identity: Some(identity), replica_hash: replica_hash(replica_url), node_id: fastrand::u64(1..), ..State::default() };
        let saved = saved.filter(|s| s.identity == fresh.identity && s.replica_hash == fresh.replica_hash);
        State { adopt: Some(newest), ..saved.unwrap_or(fresh) }
    })
}

fn write(
    database: &Path,
    replica_url: &str,
    is_second: bool,
    origin: Option<&Origin>,
    state: impl FnOnce(Option<State>, super::control::Identity) -> State,
) -> Result<(), RememberError> {
    let absolute = std::path::absolute(database).unwrap_or_else(|_| database.to_owned());
    let (first, second) = (Paths::of(&absolute), Paths::second_of(&absolute));
    let mut paths = first;
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| RememberError::Io { path, source }
    };
    let identity = identity(database).map_err(error(database))?;
    let owner = OwnerMode::of(database).map_err(error(database))?;
    let in_use = || RememberError::InUse(database.to_owned());
    // The control file's lock does not tell: it is the process's, and closing the file here would even drop it.
    if super::process::replicates(&identity) {
        return Err(in_use());
    }
    // One that had this name before.
    super::process::let_go_of_replaced(&absolute);
    let write = || {
        // Where it is the second replica's URL its control file says so.
        if is_second || peek(&second).is_some_and(|saved| saved.replica_hash == replica_hash(replica_url)) {
            paths = second;
        }
        write_alone(&paths, &owner, |saved| state(saved, identity))?;
        origin.map_or(Ok(()), |origin| origin::write(&paths, &owner, origin).map_err(error(&paths.directory)))
    };
    super::process::unless_open(&absolute, write).ok_or_else(in_use)?
}

/// What a control file says that this process does not have open: closing it gives up all locks on it.
pub(crate) fn peek(paths: &Paths) -> Option<State> {
    control::peek(&std::fs::File::open(paths.control()).ok()?)
}

/// While this process does not have it open.
fn write_alone(paths: &Paths, owner: &OwnerMode, state: impl FnOnce(Option<State>) -> State) -> Result<(), RememberError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| RememberError::Io { path, source }
    };
    paths.create_directory(owner).map_err(error(&paths.directory))?;
    let mut control = Control::open(&paths.control()).map_err(error(&paths.control()))?;
    let locks = control.locks();
    let locked = locks.lock(Range::Opening, true).and_then(|()| locks.try_lock(Range::Present, true));
    if !locked.map_err(error(&paths.control()))? {
        return Err(RememberError::InUse(paths.database.clone()));
    }
    let saved = control.load(owner).map_err(error(&paths.control()))?;
    control.save(&state(saved)).and_then(|()| control.file().sync_data()).map_err(error(&paths.control()))
}
