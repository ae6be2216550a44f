//! Where LTX files are kept: object names, conditional creation, timestamps, one interface over every store.
//!
//! The layout is Litestream 0.5's, see `docs/format.md`. This part knows nothing of SQLite.

mod about;
mod clients;
mod credentials;
mod env;
mod folder;
mod generations;
mod http;
mod keys;
mod lock;
mod open;
mod parts;
mod profile;
mod remote;
mod remote_error;
mod scratch;
pub mod url;

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use self::about::{About, CredentialsSource, ServerClock};
pub use self::env::Env;
pub use self::generations::{GenerationFile, GenerationPart};
pub(crate) use self::http::HttpClients;
pub use self::lock::{LockObject, LockVersion, LockWritten};
pub(crate) use self::open::open_sharing;
pub use self::open::{StoreOptions, open, open_with_env};
pub use self::scratch::Scratch;
pub use self::url::{ReplicaUrl, UrlError};
use crate::types::{TimestampMs, Txid};

/// The size of all parts of a multipart upload but the last. S3 allows 10,000 parts: 78 GiB.
const PART_SIZE_BYTES: usize = 8 * 1024 * 1024;

/// The level of full snapshots.
pub const SNAPSHOT_LEVEL: Level = Level(9);

/// A level of the bucket: 0 holds what was uploaded, 1 to 8 compactions, 9 snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// Level 0, what was uploaded.
    pub const ZERO: Self = Self(0);

    /// `None` above 9.
    #[must_use]
    pub const fn new(level: u8) -> Option<Self> {
        if level <= 9 { Some(Self(level)) } else { None }
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// All of them, 0 to 9.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..=9).map(Self)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What names an LTX file in a bucket: its level and the TXIDs it spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LtxName {
    /// The level.
    pub level: Level,
    /// The first TXID.
    pub min_txid: Txid,
    /// The last TXID, not below the first.
    pub max_txid: Txid,
}

impl LtxName {
    /// The level-0 file of one TXID.
    #[must_use]
    pub const fn level0(txid: Txid) -> Self {
        Self { level: Level::ZERO, min_txid: txid, max_txid: txid }
    }

    /// The snapshot of everything up to a TXID.
    #[must_use]
    pub const fn snapshot(max_txid: Txid) -> Self {
        Self { level: SNAPSHOT_LEVEL, min_txid: Txid::FIRST, max_txid }
    }

    /// `0000000000000001-000000000000001c.ltx`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}-{}.ltx", self.min_txid, self.max_txid)
    }

    /// Reads a file name; `None` for anything else, which the format says to ignore.
    #[must_use]
    pub fn parse(level: Level, file_name: &str) -> Option<Self> {
        let (min, max) = file_name.strip_suffix(".ltx")?.split_once('-')?;
        let hex = |s: &str| {
            let lower = s.len() == 16 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if lower { Txid::from_hex(s) } else { None }
        };
        let (min_txid, max_txid) = (hex(min)?, hex(max)?);
        (min_txid <= max_txid).then_some(Self { level, min_txid, max_txid })
    }
}

impl fmt::Display for LtxName {
    /// The level and the file name, for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}.ltx", self.level, self.min_txid, self.max_txid)
    }
}

/// One object of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: LtxName,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The time of its last commit where the listing itself carries it (folder, Google, Azure), else when it was stored.
    pub timestamp: TimestampMs,
    /// False where `timestamp` is only the time of storing and `Store::timestamp` knows better (S3).
    pub timestamp_is_exact: bool,
}

/// What became of a conditional creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The object was not there and is now.
    New,
    /// An object of that name was there. It may be our own of an earlier attempt: compare before calling it a conflict.
    AlreadyExists,
}

/// A large object on its way, in parts. Dropping it without `finish` leaves nothing visible.
pub trait Upload: Send {
    /// Sends the next part. All but the last must have `Store::part_size_bytes` bytes.
    fn part(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Makes the object visible. Creation is conditional where the store can do that, else checked just before.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<Created, StoreError>>;
    /// Gives the parts back.
    fn abort(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// A bucket, or a folder of one: where one database's LTX files are.
///
/// Implementations make one attempt per call and do not retry on their own, so that the caller's budget and backoff are the only ones; but
/// for the parts of an upload, of which a broken one must not cost all the others.
pub trait Store: fmt::Debug + Send + Sync {
    /// The URL as the user gave it, without secrets.
    fn url(&self) -> &str;

    /// The objects of a level whose `min_txid` is at least `from`, ascending by (min, max). Foreign names are left out.
    fn list(&self, level: Level, from: Option<Txid>) -> BoxFuture<'_, Result<Vec<Listed>, StoreError>>;

    /// Creates a small object if it does not exist, with its timestamp where Litestream looks for it.
    fn create<'a>(&'a self, name: &'a LtxName, body: Bytes, timestamp: TimestampMs) -> BoxFuture<'a, Result<Created, StoreError>>;

    /// Begins a large object.
    fn upload<'a>(&'a self, name: &'a LtxName, timestamp: TimestampMs) -> BoxFuture<'a, Result<Box<dyn Upload>, StoreError>>;

    /// The size of all parts of an `Upload` but the last, in bytes.
    fn part_size_bytes(&self) -> usize;

    /// The bytes of a range; fails with `NotFound` where the object is gone and `Truncated` where it is shorter.
    fn get_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, StoreError>>;

    /// The same, put behind what is in `body`. Where it fails, what did come is kept, so that another request can go on from there.
    fn read_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>, body: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            body.extend_from_slice(&self.get_range(name, range).await?);
            Ok(())
        })
    }

    /// The object's size and exact timestamp; `NotFound` where there is none.
    fn head<'a>(&'a self, name: &'a LtxName) -> BoxFuture<'a, Result<Listed, StoreError>>;

    /// Deletes objects; one that is gone already is no error.
    fn delete<'a>(&'a self, names: &'a [LtxName]) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Whether Litestream 0.3 has left a replica here (`generations/`), which is another format. Stores that it could not write to have none.
    fn has_generations(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    /// What Litestream 0.3 has left here, in no order. Foreign names are left out.
    fn list_generations(&self) -> BoxFuture<'_, Result<Vec<GenerationFile>, StoreError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// The bytes of a range of one of its objects, put behind what is in `body`; as `read_range`.
    fn read_generation<'a>(
        &'a self,
        file: &'a GenerationFile,
        _range: Range<u64>,
        _body: &'a mut Vec<u8>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(std::future::ready(Err(StoreError {
            kind: StoreErrorKind::NotFound,
            operation: "get",
            object: format!("{file} in {}", self.url()),
            cause: "this store has no generations".to_owned(),
            advice: "",
            retry_after: None,
        })))
    }

    /// The object that a lease is kept in; `None` where there is none.
    fn read_lock(&self) -> BoxFuture<'_, Result<Option<LockObject>, StoreError>> {
        Box::pin(std::future::ready(Err(self.lacks_lock())))
    }

    /// Writes it if it is still what was expected: that version, or nothing at all. In one step, or not at all.
    fn write_lock<'a>(&'a self, _body: Bytes, _expected: Option<&'a LockVersion>) -> BoxFuture<'a, Result<LockWritten, StoreError>> {
        Box::pin(std::future::ready(Err(self.lacks_lock())))
    }

    /// The note of the maintenance, an object like the lease's; `None` where there is none.
    fn read_note(&self) -> BoxFuture<'_, Result<Option<LockObject>, StoreError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Writes it as `write_lock` writes the lease's.
    fn write_note<'a>(&'a self, _body: Bytes, _expected: Option<&'a LockVersion>) -> BoxFuture<'a, Result<LockWritten, StoreError>> {
        Box::pin(std::future::ready(Err(self.lacks_lock())))
    }

    /// What a store says that cannot keep a lease.
    fn lacks_lock(&self) -> StoreError {
        StoreError {
            kind: StoreErrorKind::Protocol,
            operation: "put",
            object: format!("{} in {}", lock::LOCK_FILE, self.url()),
            cause: "this store has no conditional writes".to_owned(),
            advice: "A lease needs them: open the database without the option lease, and make sure yourself that there is one writer",
            retry_after: None,
        }
    }

    /// An object to find out with what the store lets one do; `None` where it has no such thing.
    fn scratch(&self) -> Option<Box<dyn Scratch>> {
        None
    }

    /// How it is reached, with what its answers have told so far.
    fn about(&self) -> About {
        About::default()
    }

    /// Whether `create` really refuses to replace an object. Asks the store at most once, with an object of its own that it deletes.
    fn creates_are_conditional(&self) -> BoxFuture<'_, Result<bool, StoreError>>;
}

/// What kind of failure an operation met; decides whether and how fast to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// No such object.
    NotFound,
    /// No such bucket or container.
    NoSuchBucket,
    /// The credentials are missing, wrong or expired.
    Credentials,
    /// The credentials are good but not for this.
    PermissionDenied,
    /// No connection: refused, name resolution, TLS.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The store asks for fewer requests (429, 503).
    Throttled,
    /// The store failed (other 5xx), or broke off.
    Server,
    /// A body shorter than asked for.
    Truncated,
    /// The store refused the request as malformed, or answered nonsense.
    Protocol,
    /// A local file operation failed.
    Io,
    /// The lease that allows to write is not ours. Nothing was asked of the store.
    NoLease,
}

impl StoreErrorKind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::NotFound,
        Self::NoSuchBucket,
        Self::Credentials,
        Self::PermissionDenied,
        Self::Unreachable,
        Self::Timeout,
        Self::Throttled,
        Self::Server,
        Self::Truncated,
        Self::Protocol,
        Self::Io,
        Self::NoLease,
    ];

    /// The word for it, in status and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::NoSuchBucket => "no_such_bucket",
            Self::Credentials => "credentials",
            Self::PermissionDenied => "permission_denied",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Throttled => "throttled",
            Self::Server => "server",
            Self::Truncated => "truncated",
            Self::Protocol => "protocol",
            Self::Io => "io",
            Self::NoLease => "no_lease",
        }
    }
}

/// A failed operation: what, on which object, why, and what to do about it. Never holds a secret.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {cause}{}{advice}", if .advice.is_empty() { "" } else { ". " })]
pub struct StoreError {
    /// What kind.
    pub kind: StoreErrorKind,
    /// The operation: `list`, `create`, ...
    pub operation: &'static str,
    /// The object or level, with the store's URL.
    pub object: String,
    /// The cause in one line.
    pub cause: String,
    /// What the user can do; empty where there is nothing to say.
    pub advice: &'static str,
    /// How long the store asked to be left alone.
    pub retry_after: Option<std::time::Duration>,
}

impl StoreError {
    /// What failed on what and why, without what to do about it.
    #[must_use]
    pub fn what(&self) -> String {
        format!("{} {}: {}", self.operation, self.object, self.cause)
    }

    /// Whether the store may have done, or may still do, what was asked for. Where it refused, or could not be reached, it has not.
    #[must_use]
    pub const fn may_have_been_done(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Timeout | StoreErrorKind::Server | StoreErrorKind::Truncated | StoreErrorKind::Protocol | StoreErrorKind::Io
        )
    }

    /// Whether trying again soon may help by itself.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Unreachable
                | StoreErrorKind::Timeout
                | StoreErrorKind::Throttled
                | StoreErrorKind::Server
                | StoreErrorKind::Truncated
        )
    }
}
