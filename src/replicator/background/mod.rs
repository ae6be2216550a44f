//! What goes on beside a database's task, when there is time for it: nothing that a commit waits for. It is done by the process that uploads.
//!
//! ```text
//!   task       sends a batch, has it acknowledged  --->  ledger: one more upload
//!   companion  sleeps without a timer while nothing is uploaded
//!              is something due? ... sleeps until then ... takes the turn of the process ... does it, request by request, each after those of the task
//! ```
//!
//! | module | what it knows |
//! |---|---|
//! | `ledger` | what the bucket has, beside the control file |
//! | `recent` | what was uploaded and merged lately, on the local disk |
//! | `upkeep` | when a round of maintenance is due, and what becomes of it |
//! | `assurance` | when the bucket is to be verified, and what comes of it |
//! | `proof` | what came of it last, beside the control file |
//! | `traffic` | which uploads of the process go first |
//!
//! One thing is done at a time in a process, whatever it is and for whichever database: memory is bounded for all of them together, and a thousand databases
//! that are opened at once do not begin at once.

mod assurance;
mod ledger;
mod neglect;
mod proof;
mod recent;
mod traffic;
mod upkeep;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};

use self::assurance::Assurance;
use self::ledger::{Key, Ledger};
pub(super) use self::neglect::Neglect;
pub(super) use self::proof::Proof;
use self::recent::Recent;
use self::traffic::{Traffic, UnderWay};
use self::upkeep::Upkeep;
use super::budget::Budget;
use super::database::Database;
use super::progress::ReplicationState;
use crate::maintenance::{AtHand, MaintainError};
use crate::store::{Listed, LtxName};
use crate::types::Txid;

/// A process verifies with so many requests a second, once some have been made at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const LOOKS_AT_ONCE: u32 = 40;

/// What a process has one of.
#[derive(Debug)]
pub(super) struct Housekeeping {
    turn: Semaphore,
    traffic: Traffic,
    /// Of what only looks at a bucket.
    looks: RefCell<Budget>,
}

impl Default for Housekeeping {
    fn default() -> Self {
        let looks = RefCell::new(Budget::new(LOOK_INTERVAL, LOOKS_AT_ONCE, Instant::now()));
        Self { turn: Semaphore::new(1), traffic: Traffic::default(), looks }
    }
}

/// What a database's task and its companion tell each other.
#[derive(Debug)]
pub(super) struct Background {
    database: Arc<Database>,
    housekeeping: Rc<Housekeeping>,
    ledger: RefCell<Ledger>,
    recent: Arc<Recent>,
    news: Notify,
}

impl Background {
    pub(super) fn new(database: Arc<Database>, housekeeping: Rc<Housekeeping>) -> Self {
        let ledger = RefCell::new(Ledger::new(database.paths.bucket(), database.paths.database.clone()));
        let recent = Recent::new(database.paths.recent(), database.paths.database.clone(), database.options.max_local_bytes);
        Self { database, housekeeping, ledger, recent: Arc::new(recent), news: Notify::new() }
    }

    /// Neither changes as long as the database is open, so that no other process need be waited for.
    fn key(&self) -> Key {
        let tail = self.database.lock_tail_here();
        Key { replica_hash: tail.state.replica_hash, node_id: tail.state.node_id }
    }

    /// The newest TXID that the bucket has acknowledged. Nobody else has anything acknowledged.
    fn acked(&self) -> Option<Txid> {
        self.database.lock_tail_here().state.acked.map(|acked| acked.txid)
    }

    // What the task tells.

    /// An upload is under way, as long as this is there.
    pub(super) fn under_way(&self) -> UnderWay {
        Traffic::begin(&self.housekeeping)
    }

    /// A batch has been acknowledged.
    pub(super) fn uploaded(&self, file: Listed) {
        self.news.notify_one();
        if !self.database.options.maintenance {
            return;
        }
        let key = self.key();
        let mut ledger = self.ledger.borrow_mut();
        ledger.uploaded(key, file);
        if upkeep::is_neglected(&ledger.pending(key)) {
            ledger.waits(crate::maintenance::now().0);
            self.database.neglect.begin();
        }
    }

    /// What a batch was, if it went in one request: told after everybody who waits for it.
    pub(super) fn sent(&self, name: &LtxName, content: &Bytes) {
        if self.database.options.maintenance && self.keeps_recent() {
            self.recent.keep(name, content);
        }
    }

    /// A folder is as near as a file of our own; and where the store replaces objects, what was sent or merged may be another's by now.
    fn keeps_recent(&self) -> bool {
        let is_folder = self.database.store.url().starts_with("file:");
        !is_folder && self.database.progress.facts().fencing == Some(true)
    }

    /// The full state is about to be sent: what is known of the bucket ends there.
    pub(super) fn forget_bucket(&self) {
        if self.database.options.maintenance {
            let key = self.key();
            self.ledger.borrow_mut().forget_all(key);
            self.recent.forget();
        }
    }

    /// The full state was sent.
    pub(super) fn began_anew(&self) {
        if self.database.options.maintenance {
            self.ledger.borrow_mut().has_news();
        }
        self.news.notify_one();
    }

    // The companion.

    /// Goes on as long as the database's task does.
    pub(super) async fn keep(self: Rc<Self>) {
        let _ends = EndsNeglect(Arc::clone(&self.database));
        self.recent.begin();
        let mut upkeep = self.begin_upkeep();
        let mut assurance = Assurance::new(&self);
        if upkeep.is_none() && assurance.is_none() {
            return;
        }
        loop {
            let upkeep_in = upkeep.as_ref().and_then(|upkeep| upkeep.due(&self.pending()));
            let assurance_in = assurance.as_ref().and_then(|assurance| assurance.due(self.acked()));
            if upkeep_in.is_none_or(|pause| !pause.is_zero()) {
                // A close is not to wait for what does not even begin.
                self.database.neglect.end();
            }
            match [upkeep_in, assurance_in].into_iter().flatten().min() {
                None => {
                    self.news.notified().await;
                    continue;
                }
                Some(pause) if !pause.is_zero() => {
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.news.notified() => {}
                    }
                    continue;
                }
                Some(_) => {}
            }
            let Ok(_turn) = self.housekeeping.turn.acquire().await else { return };
            // In a box of its own: most databases have nothing to do.
            match (&mut upkeep, &mut assurance) {
                (Some(upkeep), _) if upkeep_in.is_some_and(|pause| pause.is_zero()) => {
                    Box::pin(upkeep.round(&self)).await;
                    self.database.neglect.end();
                }
                (_, Some(assurance)) => Box::pin(assurance.round(&self)).await,
                _ => {}
            }
        }
    }

    /// Where the option asks for it.
    fn begin_upkeep(&self) -> Option<Upkeep> {
        if !self.database.options.maintenance {
            return None;
        }
        let key = self.key();
        let last_round_ms = self.ledger.borrow_mut().round_ms(key);
        self.database.progress.update(|f| f.last_maintenance_ms = f.last_maintenance_ms.or(Some(last_round_ms).filter(|ms| *ms > 0)));
        Some(Upkeep::new(&self.database))
    }

    fn pending(&self) -> ledger::Pending {
        let key = self.key();
        self.ledger.borrow_mut().pending(key)
    }

    /// This process has nothing more to do with it.
    fn is_over(&self) -> bool {
        let database = &self.database;
        database.closing.load(Ordering::Acquire) || database.shared.has_left() || !database.is_owner()
    }

    /// Why nothing is done beside the task now.
    fn is_idle(&self) -> Result<(), MaintainError> {
        let database = &self.database;
        let is_good = matches!(database.progress.facts().state, ReplicationState::Idle | ReplicationState::Uploading);
        let may_write = database.lease.as_ref().is_none_or(|lease| lease.turn().is_some());
        if !self.is_over() && is_good && may_write { Ok(()) } else { Err(MaintainError::Stopped) }
    }

    /// Whether a commit, of whichever process, waits for an upload that has not begun.
    fn somebody_waits(&self) -> bool {
        let database = &self.database;
        let acked = database.progress.acked_sequence();
        database.published().sequence > acked && database.shared.urgent.load(Ordering::Acquire) > acked
    }

    /// Returns when there is time for one more request of a round: after the uploads that are under way, and after commits that wait.
    async fn make_way(&self) -> Result<(), MaintainError> {
        self.is_idle()?;
        self.housekeeping.traffic.gone(|| self.somebody_waits(), || self.is_idle()).await?;
        if self.ledger.borrow().is_void() { Err(MaintainError::Stopped) } else { Ok(()) }
    }
}

/// Who waits for a round at close waits in vain, once the companion is gone.
struct EndsNeglect(Arc<Database>);

impl Drop for EndsNeglect {
    fn drop(&mut self) {
        self.0.neglect.end();
    }
}
