//! The uploader's task for one database.
//!
//! It sleeps until the commit path wakes it, sends what there is at once where the request budget allows, and otherwise lets commits
//! accumulate. While it cannot send, it turns frames into spool entries as the WAL grows, so that SQLite finds little left to do when it wants
//! to restart the WAL. One request is under way per database.

mod outcome;
mod waiting;

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::waiting::Heard;
use super::background::{Background, Housekeeping};
use super::budget::{Backoff, Budget, Siblings};
use super::control::Attempt;
use super::database::{Database, now_ms};
use super::dispatcher::{LeftAlone, Mailbox};
use super::guest;
use super::lease;
use super::lineage::{self, Exists};
use super::looks::LOOK_BACK;
use super::outage::Outages;
use super::process::Registry;
use super::progress::{Facts, ReplicationState};
use super::send::{self, Patience};
use super::snapshot;
use super::step::{Next, StepError, panic_text, recover, report_stop, stop};
use super::tail::{Inflight, Mode, StopKind};
use super::turns::{REQUESTS_OF_VERIFY, StoreTurns};
use super::{clock, compare, looks};
use crate::fault::fault_point;
use crate::logging::event;
use crate::store::{Created, Listed, LtxName, StoreErrorKind};
use crate::types::TimestampMs;

/// Frames in the WAL only at which the uploader spools while it may not send: a quarter of SQLite's checkpoint threshold.
const ENCODE_AHEAD_FRAMES: u32 = 250;
/// Where these are of fewer pages it does not: whoever restarts the WAL has little to do then.
const ENCODE_AHEAD_PAGES: u32 = 100;
/// How long the tail is waited for on the thread of all databases. Who waits longer for it lets the others go on.
const TAIL_PATIENCE: Duration = Duration::from_millis(20);
/// How long nothing is done without a lease, unless whoever keeps it says so.
const WITHOUT_LEASE: Duration = Duration::from_secs(60);

/// Something that goes on beside a database's task, as long as this is there.
struct Companion(tokio::task::JoinHandle<()>);

impl Companion {
    fn begin(body: impl Future<Output = ()> + 'static) -> Self {
        Self(tokio::task::spawn_local(body))
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether the bucket was compared with what the control file says.
#[derive(Clone, Copy, Debug)]
enum Compared {
    /// Not since the open.
    AtOpen,
    /// This host has done so just before: not until then.
    LeftOutUntil(Instant),
    /// It has to be, whoever has done it.
    Due,
    Done,
}

impl Compared {
    fn is_due(self) -> bool {
        match self {
            Self::AtOpen | Self::Due => true,
            Self::LeftOutUntil(until) => clock::now() >= until,
            Self::Done => false,
        }
    }
}

/// One database's task.
pub(super) struct Task {
    pub(super) database: Arc<Database>,
    mailbox: Rc<Mailbox>,
    budget: Budget,
    backoff: Backoff,
    siblings: Siblings,
    patience: Patience,
    compared: Compared,
    outages: RefCell<Outages>,
    left_alone: LeftAlone,
    turns: Rc<StoreTurns>,
    background: Rc<Background>,
    /// When the bucket was looked at last, and whether something was sent since.
    looked: (Instant, bool),
    /// The turn of the lease that the bucket was compared in.
    lease_turn: u64,
    /// On a store that replaces objects: what was sent last, to be looked at before the next.
    sent: Option<Attempt>,
    /// Somebody else was in the way when a batch was made without the lock on the tail. The next one is made with it.
    in_vain: bool,
}

impl Task {
    pub(super) fn new(
        database: Arc<Database>,
        mailbox: Rc<Mailbox>,
        left_alone: LeftAlone,
        turns: Rc<StoreTurns>,
        housekeeping: Rc<Housekeeping>,
    ) -> Self {
        let background = Rc::new(Background::new(Arc::clone(&database), housekeeping));
        let budget = Budget::new(database.options.sync_interval, database.options.burst, clock::now());
        Self {
            database,
            mailbox,
            budget,
            backoff: Backoff::default(),
            siblings: Siblings::default(),
            patience: Patience::default(),
            compared: Compared::AtOpen,
            outages: RefCell::default(),
            left_alone,
            turns,
            background,
            looked: (clock::now(), false),
            lease_turn: 0,
            sent: None,
            in_vain: false,
        }
    }

    /// A panic ends the replication of this database, says so in its status, and harms nothing else.
    pub(super) async fn run_guarded(self, registry: &'static Registry) {
        let (database, mailbox) = (Arc::clone(&self.database), Rc::clone(&self.mailbox));
        let Err(error) = tokio::task::spawn_local(self.run(registry)).await else { return };
        let why = error.try_into_panic().map_or_else(|error| error.to_string(), |panic| panic_text(&*panic));
        database.poison(&why);
        database.end_preserving();
        // Its handles go on without replication. Another open begins afresh, but not before they are closed: what they write would not be seen.
        while !is_over(&database, registry).await {
            mailbox.notify.notified().await;
        }
    }

    async fn run(mut self, registry: &'static Registry) {
        let (database, mailbox) = (Arc::clone(&self.database), Rc::clone(&self.mailbox));
        let has_ended = || database.closing.load(Ordering::Acquire) && registry.forget_if_closed(&database);
        if !guest::serve(&database, &mailbox.notify, has_ended).await {
            return;
        }
        // Other processes wake it as commits of this one do.
        let mut _listening = database.listen().map(|listener| {
            Companion::begin(async move {
                while listener.heard().await.is_ok() {
                    mailbox.notify.notify_one();
                }
            })
        });
        let _keeping = database.lease.is_some().then(|| Companion::begin(lease::keep(Arc::clone(&database))));
        let mut _beside = Some(Companion::begin(Rc::clone(&self.background).keep()));
        loop {
            if self.database.closing.load(Ordering::Acquire) {
                // What a round was making is not there: nobody waits for it.
                _beside = None;
            }
            if is_over(&self.database, registry).await {
                return;
            }
            if _beside.is_none() && !self.database.shared.has_left() {
                // Opened again meanwhile.
                _beside = Some(Companion::begin(Rc::clone(&self.background).keep()));
            }
            if self.database.shared.has_left() {
                // Another process uploads from here on, and must hear all that is said; those who wait for this one to go hear that it has.
                _listening = None;
                _beside = None;
            }
            let heard = Heard {
                asked: self.database.shared.asked.load(Ordering::Acquire),
                calls: self.database.shared.calls.load(Ordering::SeqCst),
            };
            let next = match self.step().await {
                Ok(next) => next,
                Err(StepError::Closed) => Next::Again,
                Err(error) => self.failed(&error),
            };
            match next {
                Next::Again => tokio::task::yield_now().await,
                Next::Idle => {
                    if self.database.doze(heard.calls) && self.database.arm(1) {
                        clock::rest(self.mailbox.notify.notified()).await;
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
                Next::Quiet(pause) | Next::Moment(pause) => {
                    let wake_frames = if matches!(next, Next::Quiet(_)) { 1 } else { ENCODE_AHEAD_FRAMES };
                    if self.database.doze(heard.calls) && self.database.arm(wake_frames) {
                        // Woken or not, there is something to do.
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            () = self.mailbox.notify.notified() => {}
                        }
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
                Next::Stopped => {
                    let _ = self.database.arm(u32::MAX);
                    clock::rest(self.mailbox.notify.notified()).await;
                }
                Next::After(pause) => self.pause(pause, None, heard).await,
                Next::Backoff(pause, while_waited_for) => self.pause(pause, Some(while_waited_for), heard).await,
            }
            self.database.is_up();
        }
    }

    /// Does the one thing that is next.
    async fn step(&mut self) -> Result<Next, StepError> {
        let database = Arc::clone(&self.database);
        fault_point!("step");
        let published = database.published();
        if !published.known {
            return Ok(Next::Idle);
        }
        self.tail_comes_free().await?;
        database.note_looked();
        let (mode, compares) = {
            let mut tail = database.lock_tail();
            let live = database.published().live();
            tail.resolve(&live.end, &|| database.stamp());
            database.note_captured(&tail);
            (tail.mode.clone(), tail.to_be_compared().is_some())
        };
        if let Mode::Stopped(kind, message) = &mode
            && !compares
        {
            report_stop(&database, *kind, message.clone());
            if let Some(lease) = &database.lease {
                lease.is_stopped();
            }
            return Ok(Next::Stopped);
        }
        if let Some(wait) = self.left_alone_for() {
            return Ok(Next::After(wait));
        }
        if let Some(lease) = &database.lease {
            let Some(turn) = lease.turn() else {
                // Who keeps it ends the pause.
                lease.report(&database);
                return Ok(Next::Backoff(WITHOUT_LEASE, WITHOUT_LEASE));
            };
            // Somebody else may have gone on meanwhile.
            if turn != self.lease_turn && !matches!(self.compared, Compared::AtOpen) {
                self.compared = Compared::Due;
            }
            self.lease_turn = turn;
        }
        if compares {
            let turns = Rc::clone(&self.turns);
            let _turn = self.turn(&turns.full, 1).await?;
            self.meanwhile(compare::decide(&database)).await??;
            self.succeeded();
            return Ok(Next::Again);
        }
        if self.compared.is_due() {
            fault_point!("verify.begin");
            let turns = Rc::clone(&self.turns);
            let _turn = self.turn(&turns.requests, REQUESTS_OF_VERIFY).await?;
            let may_be_left_out = matches!(self.compared, Compared::AtOpen) && database.lease.is_none();
            let is_done = self.meanwhile(lineage::verify(&database, may_be_left_out)).await??;
            fault_point!("verify.done");
            self.compared = if is_done { Compared::Done } else { Compared::LeftOutUntil(clock::now() + looks::SOON) };
            self.looked = (clock::now(), false);
            self.succeeded();
            return Ok(Next::Again);
        }
        if database.lock_tail().inflight.is_some() {
            // Before the batch is looked at: it may be gone after a wait.
            let turns = Rc::clone(&self.turns);
            let _turn = self.turn(&turns.requests, 1).await?;
            return self.send_inflight().await;
        }
        if matches!(mode, Mode::Full(_)) {
            let turns = Rc::clone(&self.turns);
            let _turn = self.turn(&turns.full, 1).await?;
            let Mode::Full(reason) = database.lock_tail().mode.clone() else { return Ok(Next::Again) };
            self.background.forget_bucket();
            let before = database.progress.facts().snapshots;
            let next = self.meanwhile(snapshot::send_full(&database, reason)).await??;
            if database.progress.facts().snapshots > before {
                self.budget.take(clock::now());
                self.succeeded();
                self.background.began_anew();
            } else if next == Next::Again && matches!(database.lock_tail().mode, Mode::Full(_)) {
                // The name was taken, and nothing but another try came of it.
                return Ok(self.back_off(true, None));
            }
            return Ok(next);
        }
        if self.looked.1 && clock::now().saturating_duration_since(self.looked.0) >= LOOK_BACK {
            // After what was sent and not before it: no commit waits for this.
            let turns = Rc::clone(&self.turns);
            let _turn = self.turn(&turns.requests, REQUESTS_OF_VERIFY).await?;
            self.meanwhile(lineage::look_back(&database)).await??;
            self.looked = (clock::now(), false);
            return Ok(Next::Again);
        }
        self.freeze_when_due(&database)
    }

    /// Freezes the next batch if there is one and the budget, or somebody who waits, allows it.
    fn freeze_when_due(&mut self, database: &Database) -> Result<Next, StepError> {
        let mut tail = database.lock_tail();
        let published = database.published_for_batch();
        if database.is_settled(&tail) {
            database.note_acked(published.sequence);
            database.progress.update(|f| {
                f.acked_sequence = published.sequence;
                f.remote_txid = tail.state.acked.map(|a| a.txid);
                f.state = ReplicationState::Idle;
            });
            if let Some(pause) = self.siblings.may_come_back(Instant::now()) {
                // The next commit must not wait for the disk as well.
                return Ok(Next::Quiet(pause));
            }
            drop(tail);
            database.sync_control();
            return Ok(match self.compared {
                Compared::LeftOutUntil(until) => Next::Quiet(until.saturating_duration_since(clock::now())),
                _ => Next::Idle,
            });
        }
        database.progress.update(Facts::under_way);
        let (now, acked) = (clock::now(), database.progress.acked_sequence());
        let urgent = database.shared.urgent.load(Ordering::Acquire) > acked;
        let wait = self.budget.wait(now);
        if urgent {
            let pause = self.siblings.still_to_come(database.progress.committers_behind(), Instant::now());
            if !pause.is_zero() {
                return Ok(Next::Moment(pause));
            }
        } else {
            let pause = database.due_in(acked).map_or(wait, |due| due.min(wait));
            if !pause.is_zero() {
                return Ok(Next::After(pause));
            }
        }
        let frozen = tail.freeze(&published.live());
        database.note_captured(&tail);
        let frozen = match frozen {
            Ok(None) => Ok(true),
            Ok(Some(spooled)) => {
                // What a full disk keeps in memory is not there twice.
                let batch = if self.in_vain || tail.spool.has_in_memory() {
                    spooled.run()
                } else {
                    // A writer that restarts the WAL must not wait for what takes a while.
                    drop(tail);
                    let batch = spooled.run();
                    self.in_vain = true;
                    let Some(locked) = database.try_lock_tail_for(TAIL_PATIENCE) else { return Ok(Next::Again) };
                    tail = locked;
                    batch
                };
                tail.freeze_spooled(batch)
            }
            Err(error) => Err(error),
        };
        match frozen {
            Ok(is_frozen) => self.in_vain = !is_frozen,
            Err(error) => return recover(database, &mut tail, error),
        }
        if self.in_vain {
            return Ok(Next::Again);
        }
        Ok(if tail.inflight.is_some() || matches!(tail.mode, Mode::Full(_)) {
            Next::Again
        } else {
            Next::After(wait.max(self.budget.wait(clock::now())))
        })
    }

    /// Sends the frozen batch; frames that arrive meanwhile are spooled where the WAL grows.
    async fn send_inflight(&mut self) -> Result<Next, StepError> {
        let database = Arc::clone(&self.database);
        let inflight = {
            let mut tail = database.lock_tail();
            // What may be in the bucket must be known to a successor.
            tail.save_if_unsaved()?;
            tail.inflight.clone()
        };
        let Some(inflight) = inflight else { return Ok(Next::Again) };
        let _under_way = self.background.under_way();
        // A restored database has not asked yet.
        self.meanwhile(lineage::probe(&database)).await??;
        let replaces = database.progress.facts().fencing == Some(false);
        let began = Instant::now();
        self.budget.take(clock::now());
        let name = LtxName::level0(inflight.attempt.txid);
        if replaces && let Some(next) = self.look_before(&database, &inflight).await? {
            return Ok(next);
        }
        fault_point!("send.put");
        let (created, bytes) = self.patiently(&database, &inflight, send::send(&database, &name, &inflight)).await?;
        fault_point!("send.done");
        if created == Created::AlreadyExists || replaces {
            fault_point!("send.compare");
            if !self.is_ours(&database, &inflight, &name, &inflight.attempt).await? {
                return Ok(Next::Again);
            }
        }
        self.tail_comes_free().await?;
        self.sent = replaces.then_some(inflight.attempt);
        let ended = Instant::now();
        self.siblings.released(database.progress.release_apart(ended - began), began, ended);
        self.acknowledged(&database, &inflight)?;
        if let Some(bytes) = bytes {
            // Nobody waits for this any more.
            self.background.sent(&name, &bytes);
        }
        self.looked.1 = true;
        Ok(Next::Again)
    }

    /// Where the store replaces objects: whether somebody has put another in the place of our last one, or of the next. What comes between this
    /// look and the request is found by the look after it, or by the next one before.
    async fn look_before(&mut self, database: &Database, inflight: &Inflight) -> Result<Option<Next>, StepError> {
        for attempt in self.sent.into_iter().chain([inflight.attempt]) {
            match self.is_ours(database, inflight, &LtxName::level0(attempt.txid), &attempt).await {
                Ok(true) => {}
                Ok(false) => return Ok(Some(Next::Idle)),
                // The next one is not there yet, and the last one may have been merged into another.
                Err(StepError::Store(error)) if error.kind == StoreErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Compares an object with what we have sent, or are about to. Another writer's stops replication.
    async fn is_ours(&mut self, database: &Database, inflight: &Inflight, name: &LtxName, attempt: &Attempt) -> Result<bool, StepError> {
        match self.patiently(database, inflight, lineage::compare(database, name, attempt)).await? {
            Exists::Ours => return Ok(true),
            // Who it is can be told better with what else there is.
            Exists::Foreign(_) if matches!(self.compared, Compared::LeftOutUntil(_)) => self.compared = Compared::Due,
            Exists::Foreign(conflict) => lineage::fence(database, conflict),
            Exists::Unreadable(message) => stop(database, StopKind::Fenced, message),
        }
        Ok(false)
    }

    fn acknowledged(&mut self, database: &Database, inflight: &Inflight) -> Result<(), StepError> {
        let settled = {
            let mut tail = database.lock_tail();
            tail.acknowledged()?;
            database.is_settled(&tail)
        };
        fault_point!("ack.told");
        let Attempt { txid, size_bytes, timestamp_ms, .. } = inflight.attempt;
        let timestamp = TimestampMs(timestamp_ms);
        self.background.uploaded(Listed { name: LtxName::level0(txid), size_bytes, timestamp, timestamp_is_exact: true });
        database.note_acked(inflight.sequence);
        database.progress.update(|f| {
            f.acked_sequence = f.acked_sequence.max(inflight.sequence);
            f.remote_txid = Some(inflight.attempt.txid);
            f.last_success_ms = Some(now_ms());
            f.uploads += 1;
            f.state = if settled { ReplicationState::Idle } else { ReplicationState::Uploading };
        });
        event!(
            Debug, "uploaded", database, txid = inflight.attempt.txid;
            "TXID {} is in the bucket{}, {} bytes",
            inflight.attempt.txid, database.paths.of_second(), inflight.attempt.size_bytes
        );
        self.succeeded();
        Ok(())
    }
}

/// Whether the last handle was closed and the database is forgotten.
async fn is_over(database: &Arc<Database>, registry: &Registry) -> bool {
    if !database.closing.load(Ordering::Acquire) {
        return false;
    }
    lease::release_at_close(database).await;
    registry.forget_if_closed(database)
}
