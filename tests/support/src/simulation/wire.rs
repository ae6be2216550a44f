//! What the harness asks of an actor, and what the actor answers: a line of JSON each way.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::step::PROCESSES;

/// Rows that transactions write to, from 1 on: a database does not grow for ever.
pub const ROWS: u64 = 32;

/// How much a transaction writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Size {
    /// A row or two.
    Small,
    /// Several rows, some of them over several pages.
    Medium,
    /// Most rows, so that pages spill from a small cache and the WAL is long.
    Large,
}

/// What one statement group of a transaction writes: it depends on these three alone, so that the harness knows it without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// The transaction.
    pub commit: u64,
    /// Which of its groups.
    pub part: u32,
    /// How much.
    pub size: Size,
}

/// One row as it shall be; `None` deletes it.
pub type Write = (u64, Option<Vec<u8>>);

impl Deed {
    /// The rows.
    #[must_use]
    pub fn writes(&self) -> Vec<Write> {
        let mut random = fastrand::Rng::with_seed(self.commit.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(self.part));
        let (rows, most_bytes) = match self.size {
            Size::Small => (random.u64(1..3), 120),
            Size::Medium => (random.u64(2..8), 3000),
            Size::Large => (ROWS * 3 / 4, 6000),
        };
        let mut write = |_| {
            let row = random.u64(1..=ROWS);
            if random.u8(0..8) == 0 {
                return (row, None);
            }
            let mut body = vec![0; random.usize(1..most_bytes)];
            random.fill(&mut body);
            (row, Some(body))
        };
        (0..rows).map(&mut write).collect()
    }

    /// The tag of its rows, which is indexed.
    #[must_use]
    pub fn tag(&self) -> String {
        format!("{:08x}", self.commit)
    }
}

/// What one row adds to a state's sum.
#[must_use]
pub fn row_sum(row: u64, tag: &str, body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (row, tag).hash(&mut hasher);
    hasher.write(body);
    hasher.finish()
}

/// The last states before one, the newest first; 0 where there was none. So many may be committed, one on the other, by processes that could not say so:
/// all of a host that are stopped, and one that was killed.
pub type Line = [u64; PROCESSES + 2];

/// A state as a database says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The transaction that made it; 0 before the tables are made.
    pub id: u64,
    /// The states that it was made from.
    pub line: Line,
    /// All rows.
    pub sum: u64,
}

/// A thing to do with the one connection (or, for `Hold` and `Release`, with a second one).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Opens the database, and its twin without the extension.
    Open {
        /// The database.
        uri: String,
        /// The twin.
        twin: Option<String>,
        /// Pragmas for both.
        pragmas: String,
        /// Of a file that is made.
        page_bytes: u32,
    },
    /// Closes both.
    Close,
    /// Goes on without the twin.
    ForgetTwin,
    /// Begins a transaction, which takes the write lock.
    Begin {
        /// The transaction.
        commit: u64,
    },
    /// Writes rows.
    Write(Deed),
    /// Ends the transaction.
    Commit,
    /// Undoes it.
    Rollback,
    /// A whole transaction.
    Transaction {
        /// What it writes.
        deeds: Vec<Deed>,
        /// It is undone.
        rolls_back: bool,
        /// Its commit waits for the bucket.
        remote: bool,
    },
    /// `PRAGMA wal_checkpoint`.
    Checkpoint(String),
    /// `PRAGMA journal_mode`.
    Journal(String),
    /// `PRAGMA locking_mode`.
    Locking(String),
    /// `VACUUM`.
    Vacuum,
    /// Reads everything.
    Read,
    /// The second connection begins to read, and keeps its read transaction.
    Hold,
    /// It reads again and ends its transaction.
    Release,
    /// `PRAGMA replicated_sync`.
    Sync(String),
    /// `PRAGMA replicated_wait` for the TXID that `replicated_status` names, and that TXID.
    WaitFor,
    /// `PRAGMA replicated_status`.
    Status,
}

/// An error of SQLite's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The extended result code; 0 where it is none of SQLite's.
    pub code: i32,
    /// What it says.
    pub text: String,
}

/// What something gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing to say.
    Done,
    /// A text or a number.
    Text(String),
    /// A whole state.
    State(Seen),
    /// The states that a transaction was made from.
    MadeFrom(Line),
    /// An error.
    Failed(Problem),
}

/// What an operation gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// On the database.
    pub real: Outcome,
    /// On its twin, where there is one and the operation concerns it.
    pub twin: Option<Outcome>,
}
