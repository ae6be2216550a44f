//! Opening what is beside a database: its control file, alone or together with the processes that have it open.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::control::{Control, FullReason, Identity, State, replica_hash};
use super::database::{Host, OpenedTail};
use super::local::{OwnerMode, Paths};
use super::process::OpenError;
use super::roles;
use super::shared::{Mapped, Private, Range, Shared};
use super::stamp;
use super::tail::Tail;
use crate::config::Options;
use crate::fault::{fault_io, fault_point};
use crate::logging::event;
use crate::spool::{Limits, Spool, SpoolError};

/// What a control file is to say of a replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) url: &'a str,
    /// Of the second replica's URL, where this is the first of two.
    pub(super) second_hash: u64,
    /// The other replica's: what both have written is of one host.
    pub(super) node_id: Option<u64>,
}

pub(super) const OTHER_SECOND: &str = "it has another replica2, or one of the two has none, and all processes must name the same one";
/// How long to wait for another process that is about to open the database as well.
const OPENING_PATIENCE: Duration = Duration::from_secs(10);

/// Opens what is beside the database, or joins the processes that have it open.
pub(super) fn open_tail(
    paths: &Paths,
    identity: Identity,
    place: &Place<'_>,
    options: &Options,
    host: &dyn Host,
) -> Result<OpenedTail, OpenError> {
    let database = paths.database.display().to_string();
    let local = |path: &Path, source| OpenError::Local { database: database.clone(), path: path.display().to_string(), source };
    let refused = |why| OpenError::OtherProcess { database: database.clone(), why };
    let on_control = |source| local(&paths.control(), source);
    let owner = OwnerMode::of(&paths.database).map_err(|e| local(&paths.database, e))?;
    paths.create_directory(&owner).map_err(|e| local(&paths.directory, e))?;
    let (control, locks) = loop {
        let control = Control::open(&paths.control()).map_err(on_control)?;
        let locks = control.locks();
        if !locks.try_lock_for(Range::Opening, true, OPENING_PATIENCE).map_err(on_control)? {
            return Err(refused("it has been opening it for a long time"));
        }
        if roles::is_in_place(&control.file(), paths).map_err(on_control)? {
            break (control, locks);
        }
        // It has become the other replica's meanwhile.
        paths.create_directory(&owner).map_err(|e| local(&paths.directory, e))?;
    };
    let is_first = locks.try_lock(Range::Present, true).map_err(on_control)?;
    fault_io!("control.locked").map_err(on_control)?;
    let beside = Beside { paths, identity, place: *place, options, owner, database: database.clone() };
    let file = control.file();
    let (tail, shared, is_shared) = if is_first {
        let tail = beside.first(control, |file| host.map_shared(file))?;
        fault_point!("open.saved");
        tail
    } else {
        let mapped = host.map_shared(&file).map_err(|_| refused("the memory that they would share cannot be mapped"))?;
        if !locks.try_lock_for(Range::Tail, true, OPENING_PATIENCE).map_err(on_control)? {
            return Err(refused("it holds what they share and does not go on: was it stopped? Have it go on, or kill it"));
        }
        let joined = beside.join(control, Shared::new(mapped), refused);
        locks.unlock(Range::Tail);
        let (tail, shared) = joined?;
        (tail, shared, true)
    };
    drop(file);
    let owns = locks.try_lock(Range::Owner, true).map_err(on_control)?;
    if is_shared {
        locks.lock(Range::Present, false).map_err(on_control)?;
    }
    locks.lock(Range::Staying, false).map_err(on_control)?;
    locks.unlock(Range::Opening);
    Ok(OpenedTail { tail, shared, locks, owns, origin: None })
}

/// What is beside a database that is opened.
struct Beside<'a> {
    paths: &'a Paths,
    identity: Identity,
    place: Place<'a>,
    options: &'a Options,
    owner: OwnerMode,
    database: String,
}

impl Beside<'_> {
    /// Nobody else has it open.
    fn first(
        &self,
        mut control: Control,
        map: impl Fn(&File) -> std::io::Result<Box<dyn Mapped>>,
    ) -> Result<(Tail, Arc<Shared>, bool), OpenError> {
        let paths = self.paths;
        let on_control = |source| OpenError::Local { database: self.database.clone(), path: paths.control().display().to_string(), source };
        let saved = control.load(&self.owner).map_err(on_control)?;
        let earlier = map(&control.file()).ok().and_then(|mapped| mapped.page().of_replica(self.place.url));
        let mapped = control.clear_page().and_then(|()| map(&control.file())).inspect_err(|error| {
            event!(Warn, "local_file", paths, cause = error; "{}: cannot be mapped ({error}): no other process can join", paths.control().display());
        });
        let is_shared = mapped.is_ok();
        let shared = Shared::new(mapped.unwrap_or_else(|_| Box::new(Private::default())));
        shared.begin();
        shared.second_hash.store(self.place.second_hash, Ordering::Release);
        self.tell_who_looks(&shared);
        if let Some(earlier) = earlier {
            shared.remember(&earlier);
        }
        let mut state = saved_for(saved, self.identity, &self.place, &self.database);
        if self.options.adopt.is_some() {
            state.adopt = self.options.adopt;
        }
        let whole = |spool: Spool| spool.check_node(state.node_id).map(|()| spool);
        let opened = match self.spool(&state).and_then(whole) {
            Err(error)
                if error.is_lasting() || matches!(&error, SpoolError::Io { source, .. } if source.kind() == ErrorKind::UnexpectedEof) =>
            {
                event!(Warn, "local_file", paths, cause = error; "{error}");
                state.full = Some(FullReason::SpoolLost);
                state.spool_first = state.spool_next;
                self.spool(&state)
            }
            other => other,
        };
        let mut tail = self.tail(control, &shared, state, opened)?;
        tail.save().map_err(|e| on_control(std::io::Error::other(e)))?;
        Ok((tail, shared, is_shared))
    }

    /// What somebody without the options could not tell: see `status`.
    fn tell_who_looks(&self, shared: &Shared) {
        shared.boot.store(stamp::boot(), Ordering::Relaxed);
        shared.set_url(self.place.url);
        shared.durability.store(self.options.durability as u64 + 1, Ordering::Relaxed);
        shared.max_local_bytes.store(self.options.max_local_bytes, Ordering::Relaxed);
        shared.max_lag_ms.store(u64::try_from(self.options.max_lag.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Others have it open. With the tail's lock held.
    fn join(
        &self,
        mut control: Control,
        shared: Arc<Shared>,
        refused: impl Fn(&'static str) -> OpenError,
    ) -> Result<(Tail, Arc<Shared>), OpenError> {
        let on_control =
            |source| OpenError::Local { database: self.database.clone(), path: self.paths.control().display().to_string(), source };
        if !shared.is_begun() || !control.is_of_this_version().map_err(on_control)? {
            return Err(refused("it is of another version, or shares nothing; close it there first"));
        }
        let Some(mut state) = control.load(&self.owner).map_err(on_control)? else {
            return Err(refused("the control file beside it is damaged; close it there first"));
        };
        if state.identity != Some(self.identity) {
            return Err(refused("it has another file open, which had this name before; close it there first"));
        }
        if state.replica_hash != replica_hash(self.place.url) {
            return Err(refused("it replicates to another URL, and all processes must name the same one"));
        }
        if shared.second_hash.load(Ordering::Acquire) != self.place.second_hash {
            return Err(refused(OTHER_SECOND));
        }
        if shared.in_memory.load(Ordering::Acquire) != 0 {
            return Err(refused("the disk is full, and what waits to be sent is in the memory of that process; make room and try again"));
        }
        shared.joined.store(1, Ordering::Release);
        let is_adopted = self.options.adopt.is_some() && state.adopt != self.options.adopt;
        if is_adopted {
            state.adopt = self.options.adopt;
        }
        let spool = self.spool(&state);
        let mut tail = self.tail(control, &shared, state, spool)?;
        if is_adopted {
            tail.save().map_err(|e| on_control(std::io::Error::other(e)))?;
            tail.look_again();
        }
        Ok((tail, shared))
    }

    fn spool(&self, state: &State) -> Result<Spool, SpoolError> {
        let attempt = state.attempt.map(|a| a.txid);
        // With one more that is being made, of what `max_memory` allows.
        let limits = Limits { disk_bytes: self.options.max_local_bytes, memory_bytes: self.options.max_memory_bytes / 2 };
        Spool::open(&self.paths.directory, self.owner, limits, state.spool_first, state.spool_next, attempt)
    }

    fn tail(&self, control: Control, shared: &Arc<Shared>, state: State, spool: Result<Spool, SpoolError>) -> Result<Tail, OpenError> {
        let spool = spool.map_err(|source| OpenError::Spool { database: self.database.clone(), source })?;
        let mut tail = Tail::new(self.paths.clone(), control, Arc::clone(shared), state, spool, self.options.max_memory_bytes / 8);
        if self.options.refuse_lost_tail {
            tail.refuse_lost_tail();
        }
        Ok(tail)
    }
}

/// What was saved, if it was saved for this very file and this replica.
fn saved_for(saved: Option<State>, identity: Identity, place: &Place<'_>, database: &str) -> State {
    let replica_hash = replica_hash(place.url);
    let node_id = place.node_id.unwrap_or_else(|| fastrand::u64(1..));
    let fresh = State { identity: Some(identity), replica_hash, node_id, ..State::default() };
    let Some(saved) = saved else { return fresh };
    if saved.identity != Some(identity) {
        event!(Warn, "position_unknown", Path::new(database); "the control file beside it belongs to another file; its position is not used");
        return fresh;
    }
    if saved.replica_hash != replica_hash {
        event!(Info, "replica_changed", Path::new(database); "has another replica URL than before");
        return fresh;
    }
    saved
}
