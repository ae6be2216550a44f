//! Small objects beside the levels that are replaced only by who has read them: `lock.json`, what a lease is kept in, and `maintenance.json`, who
//! maintains the bucket and what is not to be deleted.

use bytes::Bytes;

/// What the object is called, as Litestream calls it.
pub(super) const LOCK_FILE: &str = "lock.json";
/// What the note of the maintenance is called. Litestream does not look at it.
pub(super) const NOTE_FILE: &str = "maintenance.json";
/// A larger one is none.
pub(super) const MOST_LOCK_BYTES: u64 = 64 * 1024;

/// Which content of the object was read or written, as its store tells contents apart. Opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockVersion {
    pub(super) e_tag: Option<String>,
    pub(super) version: Option<String>,
}

impl LockVersion {
    /// One that no object ever has: a store that replaces the object all the same ignores the condition.
    pub(crate) fn of_nothing() -> Self {
        Self { e_tag: Some("\"00000000000000000000000000000000\"".to_owned()), version: Some("1".to_owned()) }
    }
}

/// The object as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockObject {
    /// Its bytes.
    pub body: Bytes,
    /// Which ones these are.
    pub version: LockVersion,
}

/// What became of a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockWritten {
    /// It is there, as this version.
    Written(LockVersion),
    /// There is another object than was expected, or none: nothing was written.
    Changed,
}
