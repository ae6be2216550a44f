//! What is kept beside a database, as somebody sees it who has not opened it: its position, what waits, and whether a process is at work.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::local::{self, Local};
use crate::replicator::control::{self, replica_hash};
use crate::replicator::local::{Paths, identity};
use crate::replicator::process;
use crate::replicator::progress::Facts;
use crate::replicator::shared::{Locks, Page, Range};
use crate::types::TimestampMs;
use crate::vfs::map_to_look;

/// What is beside a database for one of its replicas.
#[derive(Clone, Debug)]
pub struct Beside {
    /// `app.db-replicated`, or `app.db-replicated2` for the second replica.
    pub directory: PathBuf,
    /// Whether it is of the second replica.
    pub is_second: bool,
    /// Whether it is about the file that has the name now. Of another one it says nothing.
    pub is_of_this_file: bool,
    /// How far it is.
    pub local: Local,
    /// What marks the objects that this database has written.
    pub node_id: u64,
    /// What lies there and waits to be sent, in bytes.
    pub waiting_bytes: u64,
    /// Whether a process has it open for replication.
    pub is_open: bool,
    /// The process that uploads; 0 where it is out of sight, in another container.
    pub uploader: Option<u32>,
    /// What the processes tell each other; where none has it open, what the last ones did. `None` where nothing can be read of it.
    pub told: Option<Told>,
    replica_hash: u64,
}

/// What the processes tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The state in one word, as `PRAGMA replicated_status` has it.
    pub state: &'static str,
    /// Why the last upload failed.
    pub last_error: Option<String>,
    /// When something was uploaded last.
    pub last_success: Option<TimestampMs>,
    /// For how long the oldest commit that the bucket does not have has waited.
    pub lag: Option<Duration>,
    /// When the bucket was maintained last.
    pub last_maintenance: Option<TimestampMs>,
    /// Why it is not, or not as it should be.
    pub maintenance_error: Option<String>,
}

impl Beside {
    /// Whether it speaks of that replica.
    #[must_use]
    pub fn is_of(&self, replica_url: &str) -> bool {
        self.replica_hash == replica_hash(replica_url)
    }
}

/// Looks beside a database, for each replica of which something is kept.
///
/// Nothing is written, and no lock is taken. It must not be asked in a process that replicates the database itself: then it says nothing.
///
/// # Errors
/// Where what is kept cannot be read.
pub fn beside(database: &Path) -> io::Result<Vec<Beside>> {
    let absolute = std::path::absolute(database)?;
    let mut found = Vec::new();
    for paths in [Paths::of(&absolute), Paths::second_of(&absolute)] {
        let look = || match File::open(paths.control()) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            opened => look(&absolute, &paths, opened?),
        };
        // Closing the file would drop the locks that this process has in it.
        found.extend(process::unless_open(&paths.database, look).unwrap_or(Ok(None))?);
    }
    Ok(found)
}

/// `None` where nothing was remembered yet.
fn look(database: &Path, paths: &Paths, control: File) -> io::Result<Option<Beside>> {
    let Some(state) = control::peek(&control) else { return Ok(None) };
    let page = map_to_look(&control).ok().filter(|mapped| mapped.page().is_begun());
    let locks = Locks::new(Arc::new(control));
    let is_open = locks.holder(Range::Present).is_some();
    Ok(Some(Beside {
        directory: paths.directory.clone(),
        is_second: paths.is_second(),
        is_of_this_file: state.identity == Some(identity(database)?),
        local: local::of_state(&state, database),
        node_id: state.node_id,
        waiting_bytes: waiting_bytes(&paths.directory)?,
        is_open,
        uploader: locks.holder(Range::Owner),
        told: page.map(|mapped| told(mapped.page(), is_open)),
        replica_hash: state.replica_hash,
    }))
}

fn told(page: &Page, is_open: bool) -> Told {
    let facts = Facts::of(page);
    Told {
        state: facts.state.as_str(),
        last_error: facts.last_error,
        last_success: facts.last_success_ms.map(TimestampMs),
        lag: page.lag().filter(|_| is_open),
        last_maintenance: facts.last_maintenance_ms.map(TimestampMs),
        maintenance_error: facts.maintenance_error,
    }
}

fn waiting_bytes(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let waits = ["spool-", "attempt-"].iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
        // Sent since the folder was read, perhaps.
        bytes += if waits { entry.metadata().map_or(0, |metadata| metadata.len()) } else { 0 };
    }
    Ok(bytes)
}
