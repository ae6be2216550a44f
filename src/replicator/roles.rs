//! The two replicas that a database may have, and which of the two directories beside it belongs to which.
//!
//! What is remembered of a replica stays its own when the replica changes its place among the options: the second one becomes the first, where the first one's provider
//! was given up, or `replicated restore` has taken the database from the second one, and knows of no options.

use std::fs::File;
use std::io;
use std::path::Path;

use super::control::{Control, replica_hash};
use super::local::Paths;
use super::process::OpenError;
use super::remember::peek;
use super::shared::Range;
use crate::config::Options;
use crate::logging::event;
use crate::store::ReplicaUrl;

/// Which replica of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Which {
    First,
    Second,
}

impl Which {
    pub(super) const fn option(self) -> &'static str {
        match self {
            Self::First => "replica",
            Self::Second => "replica2",
        }
    }

    pub(crate) fn paths(self, database: &Path) -> Paths {
        match self {
            Self::First => Paths::of(database),
            Self::Second => Paths::second_of(database),
        }
    }
}

/// Where the replicas of a database are.
#[derive(Debug)]
pub(crate) struct Urls {
    pub(crate) first: ReplicaUrl,
    pub(crate) second: Option<ReplicaUrl>,
}

impl Urls {
    pub(crate) fn of(path: &Path, options: &Options) -> Result<Self, OpenError> {
        let first = ReplicaUrl::parse(&options.replica_for(path).unwrap_or_default())?;
        let Some(second) = options.second() else { return Ok(Self { first, second: None }) };
        let second = ReplicaUrl::parse(&second.replica_for(path).unwrap_or_default()).map_err(OpenError::SecondUrl)?;
        if first.meets(&second, options.endpoint.as_deref()) {
            return Err(OpenError::SamePlace { first: first.to_string(), second: second.to_string() });
        }
        Ok(Self { first, second: Some(second) })
    }
}

/// Before any of it is opened by this process, which must not have it open: looking at a control file gives up all locks on it.
pub(crate) fn settle(first: &Paths, second: &Paths, urls: &Urls) {
    let has_second = second.directory.exists();
    if !has_second && urls.second.is_none() {
        return;
    }
    let of = |paths: &Paths| peek(paths).map(|state| state.replica_hash);
    let (is, is_second) = (of(first), of(second));
    let (wanted, wanted_second) = (Some(replica_hash(urls.first.as_str())), urls.second.as_ref().map(|url| replica_hash(url.as_str())));
    let is_promoted = is_second == wanted && is != wanted;
    let is_of_second = is.is_some() && is == wanted_second && is_second.is_none();
    if !is_promoted && !is_of_second {
        return;
    }
    match exchange(first, second) {
        Ok(true) => event!(
            Info, "roles_exchanged", first;
            "what is remembered of {} is where it belongs now: {}",
            if is_promoted { &urls.first } else { urls.second.as_ref().unwrap_or(&urls.first) },
            if is_promoted { first.directory.display() } else { second.directory.display() }
        ),
        // Then those who have it open have named other replicas, and this open is refused.
        Ok(false) => {}
        Err(error) => event!(
            Warn, "position_unknown", first, cause = error;
            "{} and {} cannot be exchanged: {error}. What they remember is not used",
            first.directory.display(),
            second.directory.display()
        ),
    }
}

/// Exchanges the two directories, or moves the only one; false where a process has one of them open.
fn exchange(first: &Paths, second: &Paths) -> io::Result<bool> {
    let mut held = Vec::new();
    for paths in [first, second] {
        match Control::open_existing(&paths.control()) {
            Ok(control) => held.push(control.locks()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    for locks in &held {
        if !(locks.try_lock(Range::Opening, true)? && locks.try_lock(Range::Present, true)?) {
            return Ok(false);
        }
    }
    let (from, to) = if first.directory.exists() { (first, second) } else { (second, first) };
    if to.directory.exists() {
        swap(from, to)?;
    } else {
        std::fs::rename(&from.directory, &to.directory)?;
    }
    first.sync_directories();
    Ok(true)
}

#[cfg(target_os = "linux")]
fn swap(from: &Paths, to: &Paths) -> io::Result<()> {
    let here = rustix::fs::CWD;
    Ok(rustix::fs::renameat_with(here, &from.directory, here, &to.directory, rustix::fs::RenameFlags::EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
fn swap(_from: &Paths, _to: &Paths) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether that is the control file still which has its name: it may have been moved before it was locked.
pub(crate) fn is_in_place(control: &File, paths: &Paths) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (held, named) = (control.metadata()?, std::fs::metadata(paths.control())?);
    Ok((held.dev(), held.ino()) == (named.dev(), named.ino()))
}
