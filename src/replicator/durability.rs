//! COMMIT that waits for the bucket, as its connection was told to.
//!
//! ```text
//!   local     returns at once
//!   bounded   waits while the oldest commit that is not in the bucket is older than max_lag
//!   remote    waits until the bucket has this commit
//! ```
//!
//! Whoever waits holds no lock of ours and needs none of SQLite's: in rollback-journal modes and under exclusive locking the wait happens with
//! the database locked exclusively, which the uploader does not care about. Those who wait need no token of the request budget and share one
//! upload.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::database::Database;
use super::progress::WaitError;
use crate::config::{Durability, Options};

/// What stands for the sequence number of a commit that was not seen as it should have been.
pub(crate) const UNSEEN: u64 = u64::MAX;

/// What the commits of one connection wait for.
#[derive(Debug)]
pub(crate) struct Policy {
    durability: AtomicU8,
    pub(crate) max_lag: Duration,
    pub(crate) ack_timeout: Duration,
}

impl Policy {
    pub(crate) const fn of(options: &Options) -> Self {
        Self { durability: AtomicU8::new(options.durability as u8), max_lag: options.max_lag, ack_timeout: options.ack_timeout }
    }

    pub(crate) fn durability(&self) -> Durability {
        let stored = self.durability.load(Ordering::Relaxed);
        Durability::ALL.into_iter().find(|durability| *durability as u8 == stored).unwrap_or_default()
    }

    pub(crate) fn set(&self, durability: Durability) {
        self.durability.store(durability as u8, Ordering::Relaxed);
    }

    /// Whether a commit may have to wait.
    pub(crate) fn waits(&self) -> bool {
        self.durability() != Durability::Local
    }
}

/// A commit that is made here and not known to be in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAcknowledged;

/// Waits as the connection's policy says, after its commit was published under that sequence number; `None` for a transaction that has changed
/// nothing, which has nothing to wait for.
pub(crate) fn after_commit(database: &Database, policy: &Policy, sequence: Option<u64>) -> Result<(), NotAcknowledged> {
    let (Some(sequence), durability) = (sequence, policy.durability()) else { return Ok(()) };
    let waited = match durability {
        Durability::Local => return Ok(()),
        _ if sequence == UNSEEN => Err(WaitError::Unseen),
        Durability::Bounded => wait_while_lagging(database, policy, sequence),
        Durability::Remote => wait(database, policy, sequence, &|acked| acked >= sequence),
    };
    waited.map_err(|error| {
        database.unacknowledged.tell(database, durability, sequence, &error);
        NotAcknowledged
    })
}

fn wait_while_lagging(database: &Database, policy: &Policy, sequence: u64) -> Result<(), WaitError> {
    // Half of the time is left for the request.
    database.send_within(sequence, policy.max_lag / 2);
    let is_within = |_acked| database.lag().is_none_or(|lag| lag <= policy.max_lag);
    if is_within(0) { Ok(()) } else { wait(database, policy, sequence, &is_within) }
}

fn wait(database: &Database, policy: &Policy, sequence: u64, is_enough: &dyn Fn(u64) -> bool) -> Result<(), WaitError> {
    // Counted before the uploader is told, so that it does not take it for a flush that waits for nobody else.
    let committer = database.progress.committer(sequence);
    database.progress.look_again();
    database.hasten(sequence);
    committer.wait(policy.ack_timeout, is_enough)
}

/// Tells of commits that were not acknowledged, without flooding the log.
#[derive(Debug, Default)]
pub(crate) struct Unacknowledged {
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    /// Those that were not told of since.
    more: u64,
}

impl Unacknowledged {
    const PAUSE: Duration = Duration::from_secs(10);

    fn tell(&self, database: &Database, durability: Durability, sequence: u64, error: &WaitError) {
        let more = {
            let mut told = self.told.lock();
            if told.last.is_some_and(|last| last.elapsed() < Self::PAUSE) {
                told.more += 1;
                return;
            }
            told.last = Some(Instant::now());
            std::mem::take(&mut told.more)
        };
        let remote = database.progress.facts().remote_txid.map_or_else(|| "no TXID".to_owned(), |txid| format!("TXID {txid}"));
        log::error!(
            target: "replicated",
            "{}: a COMMIT with durability={durability} returned an I/O error: it is committed here and not known to be in the bucket, which has {remote} \
             ({}{error}){}",
            database.paths.database.display(),
            if sequence == UNSEEN { String::new() } else { format!("commit {sequence} of this process, ") },
            if more > 0 { format!("; so had {more} before it") } else { String::new() }
        );
    }
}
