//! Continuous replication of SQLite databases to object storage, as a VFS in the application's own process.
//!
//! Load the extension (or call [`register!`] in an application that links its own SQLite), open a database with `vfs=replicated` and a
//! `replica` URL, and every commit is in the bucket a moment later. See the README and `docs/`.

pub mod config;
pub mod copy;
pub mod ltx;
pub mod maintenance;
pub mod metrics;
pub mod restore;
pub mod status;
pub mod store;
pub mod types;
pub mod verify;
pub mod wal;

#[cfg_attr(feature = "fault-injection", allow(missing_docs, reason = "tests only"))]
#[cfg(feature = "fault-injection")]
pub mod fault;
#[cfg(not(feature = "fault-injection"))]
mod fault;
mod logging;
mod replicator;
mod spool;
mod vfs;

pub use logging::log_line;
/// The clock of the uploader's schedule, in a test's hands.
#[cfg(feature = "fault-injection")]
pub use replicator::clock::simulated as simulated_clock;
pub use replicator::remember::{RememberError, adopt};
pub use vfs::{
    ApiRoutines, HostFunctions, NOT_ACKNOWLEDGED, OLDEST_SQLITE, RegisterError, extension_init, has_wal_reset_bug, last_refusal,
    register_with,
};
#[cfg(feature = "cli")]
pub use vfs::{ForeignSqlite, inspect_sqlite};
