//! What is told of a database's replication: one struct, and the names and units by which it is written everywhere.
//!
//! ```text
//!   PRAGMA replicated_status     replicated_status()     the table replicated_status     replicated status     metrics
//!            \                          |                          |                            |               /
//!             +---- lines of text ------+------ rows of name and value --------- JSON ----------+--------------+
//!                                                    Status
//!                          by a process that has it open | by any other, from what is beside the database
//! ```

pub(crate) mod advice;
mod rows;

use std::path::PathBuf;
use std::time::Duration;

pub use self::rows::{Row, Value, as_json};
pub use crate::config::Durability;
use crate::metrics::Counts;
pub use crate::replicator::status::{LookError, look};
use crate::types::{TimestampMs, Txid};

/// How replication is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Everything committed is in the bucket, as far as is known.
    Idle,
    /// Commits are on their way.
    Uploading,
    /// Commits wait for longer than `max_lag`, or nobody is there to upload them.
    Lagging,
    /// The store cannot be reached or refuses; it is tried again.
    Offline,
    /// Nothing is sent: the bucket has another history, or another writer has it. Somebody has to decide.
    Fenced,
    /// Nothing is sent: the database file is damaged, or a fault in the extension has ended it.
    Failed,
}

impl State {
    /// All of them, the best first.
    pub const ALL: [Self; 6] = [Self::Idle, Self::Uploading, Self::Lagging, Self::Offline, Self::Fenced, Self::Failed];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Uploading => "uploading",
            Self::Lagging => "lagging",
            Self::Offline => "offline",
            Self::Fenced => "fenced",
            Self::Failed => "failed",
        }
    }
}

/// Who uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploader {
    /// This process, by its id, or another one; 0 where it is in a container that cannot be seen into.
    Process(u32),
    /// Nobody at the moment: a process has the database open and takes over with its next commit.
    Nobody,
    /// No process has it open.
    NotOpen,
}

/// What came of verifying the bucket, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is not asked for.
    Off,
    /// Nothing yet.
    None,
    /// The newest state restores.
    Verified,
    /// Something is wrong with the bucket.
    Wrong,
    /// It could not be carried out.
    NotChecked,
}

impl Outcome {
    pub(crate) const ALL: [Self; 5] = [Self::Off, Self::None, Self::Verified, Self::Wrong, Self::NotChecked];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::None => "none",
            Self::Verified => "verified",
            Self::Wrong => "wrong",
            Self::NotChecked => "not_checked",
        }
    }
}

/// What is known of whether the bucket can be restored: the option `verify_every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verification {
    /// What came of it.
    pub outcome: Outcome,
    /// When one last came to its end, whatever it has found.
    pub last: Option<TimestampMs>,
    /// The newest state that was found whole.
    pub txid: Option<Txid>,
    /// And when.
    pub at: Option<TimestampMs>,
}

/// The state of one replica of a database.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// The database file.
    pub database: PathBuf,
    /// 1, or 2 for its second replica.
    pub number: u8,
    /// In one word.
    pub state: State,
    /// The same in a finer word: see `docs/status.md`.
    pub reason: Option<&'static str>,
    /// Who uploads.
    pub uploader: Uploader,
    /// With which TXID the bucket will have everything committed so far; `None` where that is not known.
    pub local_txid: Option<Txid>,
    /// The newest that the bucket has.
    pub remote_txid: Option<Txid>,
    /// Transactions that the bucket does not have; of those that nobody has counted, at least.
    pub waiting_commits: u64,
    /// What they take: frames of the WAL, files of the spool and the batch that is being sent; the whole database where its full state is due.
    pub waiting_bytes: u64,
    /// Since when the oldest of them waits.
    pub waiting_since: Option<TimestampMs>,
    /// For how long.
    pub lag: Duration,
    /// What COMMIT waits for.
    pub durability: Durability,
    /// From which lag on it is called lagging, and with `durability=bounded` COMMIT waits.
    pub max_lag: Duration,
    /// When something was sent last.
    pub last_success: Option<TimestampMs>,
    /// What stands in the way now, with its cause and what to do about it.
    pub last_error: Option<String>,
    /// Since when.
    pub last_error_time: Option<TimestampMs>,
    /// What to do, where no error says so.
    pub advice: Option<&'static str>,
    /// Batches that were sent, since the database was opened.
    pub uploads: u64,
    /// The same of full states.
    pub snapshots: u64,
    /// When the last one was.
    pub last_snapshot: Option<TimestampMs>,
    /// And why.
    pub last_snapshot_reason: Option<&'static str>,
    /// Requests to the store and what came of them, since the database was opened.
    pub counts: Counts,
    /// The size of the WAL file.
    pub wal_bytes: u64,
    /// What waits in the spool.
    pub spool_bytes: u64,
    /// The same in files.
    pub spool_files: u64,
    /// The option `max_local`; `None` where no process has told it.
    pub max_local_bytes: Option<u64>,
    /// Whether the store refuses to replace objects; `None` before it was asked.
    pub strong_fencing: Option<bool>,
    /// When the bucket was maintained last.
    pub last_maintenance: Option<TimestampMs>,
    /// Why it is not.
    pub maintenance_error: Option<String>,
    /// What the files of the bucket took when it was maintained last.
    pub bucket_bytes: Option<u64>,
    /// Its URL, without secrets; `None` where no process has told it.
    pub replica: Option<String>,
    /// Whether the bucket can be restored, as far as it was looked at.
    pub verification: Verification,
    /// What came of that in full; and, from a process that has the database open, the lease.
    pub more: Vec<Row>,
}

/// What a state follows from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signs {
    pub(crate) known: Known,
    /// What kind of error the store has told, if it was the store.
    pub(crate) error_kind: Option<&'static str>,
    /// Something is not in the bucket.
    pub(crate) waits: bool,
    /// The full state is due, or on its way.
    pub(crate) is_full_due: bool,
    /// The database file has changed while nobody has told of it.
    pub(crate) is_unproved: bool,
    pub(crate) lags: bool,
    pub(crate) uploader: Uploader,
}

/// What the uploader has found last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Working,
    Offline,
    Damaged,
    Diverged,
    Fenced,
    /// The lease is another's.
    Leased,
    Fault,
}

impl Signs {
    /// The word, and the finer one.
    pub(crate) fn state(&self) -> (State, Option<&'static str>) {
        let is_open = self.uploader != Uploader::NotOpen;
        match self.known {
            Known::Fenced => (State::Fenced, Some("another_writer")),
            Known::Diverged => (State::Fenced, Some("diverged")),
            // A lease goes with its process.
            Known::Leased if is_open => (State::Fenced, Some("lease")),
            Known::Damaged => (State::Failed, Some("damaged")),
            Known::Fault if is_open => (State::Failed, Some("fault")),
            Known::Offline if is_open => (State::Offline, Some(self.error_kind.unwrap_or("local"))),
            _ if !self.waits && !self.is_unproved => (State::Idle, (!is_open).then_some("not_open")),
            _ if !is_open => (State::Lagging, Some(if self.waits { "not_open" } else { "changed_outside" })),
            _ if self.lags => (State::Lagging, Some(if self.uploader == Uploader::Nobody { "no_uploader" } else { "slow" })),
            _ => (State::Uploading, self.is_full_due.then_some("full_state")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Signs = Signs {
        known: Known::Working,
        error_kind: None,
        waits: false,
        is_full_due: false,
        is_unproved: false,
        lags: false,
        uploader: Uploader::Process(1),
    };

    #[test]
    fn one_word_says_how_it_is_and_a_finer_one_why() {
        let gone = Signs { uploader: Uploader::NotOpen, ..WELL };
        let cases = [
            (WELL, State::Idle, None),
            (gone, State::Idle, Some("not_open")),
            (Signs { waits: true, ..WELL }, State::Uploading, None),
            (Signs { waits: true, is_full_due: true, ..WELL }, State::Uploading, Some("full_state")),
            (Signs { waits: true, lags: true, ..WELL }, State::Lagging, Some("slow")),
            (Signs { waits: true, lags: true, uploader: Uploader::Nobody, ..WELL }, State::Lagging, Some("no_uploader")),
            (Signs { waits: true, ..gone }, State::Lagging, Some("not_open")),
            (Signs { is_unproved: true, ..gone }, State::Lagging, Some("changed_outside")),
            (
                Signs { known: Known::Offline, error_kind: Some("timeout"), waits: true, lags: true, ..WELL },
                State::Offline,
                Some("timeout"),
            ),
            (Signs { known: Known::Offline, ..WELL }, State::Offline, Some("local")),
            // What a process has met that is not there any more is no more than why it waits.
            (Signs { known: Known::Offline, waits: true, ..gone }, State::Lagging, Some("not_open")),
            (Signs { known: Known::Fault, ..gone }, State::Idle, Some("not_open")),
            (Signs { known: Known::Leased, ..WELL }, State::Fenced, Some("lease")),
            (Signs { known: Known::Diverged, ..gone }, State::Fenced, Some("diverged")),
            (Signs { known: Known::Fenced, ..gone }, State::Fenced, Some("another_writer")),
            (Signs { known: Known::Damaged, ..WELL }, State::Failed, Some("damaged")),
            (Signs { known: Known::Fault, ..WELL }, State::Failed, Some("fault")),
        ];
        for (signs, state, reason) in cases {
            assert_eq!(signs.state(), (state, reason), "{signs:?}");
        }
    }
}
