//! Continuous replication of SQLite databases to object storage, as a VFS in the application's own process.

pub mod types;

pub mod config;
pub mod ltx;
pub mod restore;
pub mod store;
pub mod wal;
