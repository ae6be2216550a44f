//! What is kept beside a database says how far its replication is.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::replicator::control::{Stamp, State, peek, replica_hash};
use crate::replicator::local::{Paths, identity};
use crate::replicator::process;
use crate::types::Txid;

/// How far a database's replication is, as is kept beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// The last TXID that the bucket has acknowledged.
    pub acked: Option<Txid>,
    /// What the bucket does not have yet; `None` where nothing is known to wait.
    pub waits: Option<String>,
    /// Why nothing is sent any more: the two are not one history.
    pub apart: Option<String>,
    /// Nobody has written to the file since all of it was captured.
    pub is_unchanged: bool,
}

/// Looks beside a database that is replicated to that URL, as its first or its second replica; `None` where nothing is kept, or it is about another file or
/// another replica.
///
/// Nothing is written or locked. It must not be asked in a process that replicates the database itself: then it says nothing.
///
/// # Errors
/// Where what is kept cannot be read.
pub fn local(database: &Path, replica_url: &str) -> io::Result<Option<Local>> {
    let absolute = std::path::absolute(database)?;
    let of_replica = |paths: &Paths| match File::open(paths.control()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(|file| peek(&file).filter(|state| state.replica_hash == replica_hash(replica_url))),
    };
    let read = || match of_replica(&Paths::of(&absolute))? {
        None => of_replica(&Paths::second_of(&absolute)),
        first => Ok(first),
    };
    // Closing the file would drop the locks that this process has in it.
    let found: Option<io::Result<Option<State>>> = process::unless_open(&Paths::of(&absolute).database, read);
    let Some(state) = found.transpose()?.flatten() else { return Ok(None) };
    if state.identity != Some(identity(&absolute)?) {
        return Ok(None);
    }
    Ok(Some(of_state(&state, &absolute)))
}

/// What a state says of a database, which it is about.
pub(super) fn of_state(state: &State, database: &Path) -> Local {
    let spooled = state.spool_next.saturating_sub(state.spool_first);
    let conflict = state.conflict.map(|conflict| format!("another writer has gone on with TXID {}, and nothing is sent", conflict.txid));
    let earlier = state.restored_earlier.filter(|earlier| state.adopt.is_none_or(|adopt| adopt < earlier.newest));
    let earlier = earlier.map(|earlier| format!("it was restored to TXID {}, and nothing is sent before `replicated adopt`", earlier.txid));
    let waits = if let Some(reason) = state.full {
        Some(format!("the full state is to be sent: {}", reason.text()))
    } else if state.adopt.is_some() {
        Some("the full state is to be sent at its next open".to_owned())
    } else if spooled > 0 {
        Some(format!("{spooled} entries wait in the spool beside it"))
    } else if state.attempt.is_some() {
        Some("an upload is on its way".to_owned())
    } else if state.open_transaction.is_some() {
        Some("a transaction was under way".to_owned())
    } else if state.to_compare.is_some() {
        Some("it is to be compared with the bucket at its next open".to_owned())
    } else {
        None
    };
    let is_unchanged = state.stamp.is_some_and(|stamp| is_as(database, &stamp));
    Local { acked: state.acked.map(|acked| acked.txid), waits, apart: conflict.or(earlier), is_unchanged }
}

fn is_as(database: &Path, stamp: &Stamp) -> bool {
    let ns = |seconds: i64, nanoseconds: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
    std::fs::metadata(database).is_ok_and(|now| {
        (now.len(), ns(now.mtime(), now.mtime_nsec()), ns(now.ctime(), now.ctime_nsec()))
            == (stamp.size_bytes, stamp.mtime_ns, stamp.ctime_ns)
    })
}
