//! The uploader: one thread for all databases of the process, one task for each.
//!
//! A task sleeps until the commit path wakes it, sends what there is at once where the request budget allows, and otherwise lets commits
//! accumulate. While it cannot send, it turns frames into spool entries as the WAL grows, so that SQLite finds little left to do when it wants
//! to restart the WAL. One request is under way per database.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::budget::{Backoff, Budget, Siblings};
use super::control::{Attempt, FullReason};
use super::database::{Database, now_ms};
use super::guest;
use super::hub::{Hub, HubReceiver, Notice};
use super::lease;
use super::lineage::{self, Exists};
use super::outage::{Outages, Over, Tell};
use super::process::Registry;
use super::progress::{Facts, ReplicationState};
use super::send::{self, Patience};
use super::snapshot;
use super::tail::{Inflight, Mode, StopKind, TailError};
use super::turns::{REQUESTS_OF_VERIFY, StoreTurns, Turns};
use super::{clock, compare};
use crate::fault::fault_point;
use crate::store::{Created, LtxName, StoreError, StoreErrorKind};

/// Frames in the WAL only at which the uploader spools while it may not send: a quarter of SQLite's checkpoint threshold.
const ENCODE_AHEAD_FRAMES: u32 = 250;
/// How often it is asked, while there is something to send, whether the bucket still has what was sent before.
const LOOK_BACK: Duration = Duration::from_secs(60);
/// How long nothing is done without a lease, unless whoever keeps it says so.
const WITHOUT_LEASE: Duration = Duration::from_secs(60);
const MEMORY_STACK_BYTES: usize = 1024 * 1024;

/// Why a step could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tail(#[from] TailError),
    /// Reading the live database.
    #[error("reading the database: {0}")]
    Database(#[from] std::io::Error),
    #[error("encoding: {0}")]
    Ltx(#[from] crate::ltx::LtxError),
    /// The last handle was closed meanwhile.
    #[error("closed")]
    Closed,
    /// What the full state is made of was lost while it was read.
    #[error("the snapshot starts over: {0}")]
    StartOver(String),
    /// SQLite cannot read the database file.
    #[error(
        "the database file is damaged: {0}. SQLite cannot read it, and nothing of it is sent. Restore what the bucket has, or repair the file: \
         replication goes on by itself then"
    )]
    Damaged(String),
    /// An object of the bucket is no LTX file, however often it is read.
    #[error("{0}")]
    Unreadable(String),
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// There may be more.
    Again,
    /// Nothing until something is committed.
    Idle,
    /// Nothing until something is committed, or the time has passed.
    Quiet(Duration),
    /// Nothing for a moment, in real time, unless another commit waits or there is much to spool.
    Moment(Duration),
    /// Nothing, whatever is committed, until somebody acts.
    Stopped,
    /// Nothing until a commit waits, or the time has passed.
    After(Duration),
    /// Nothing until the time has passed: the second, shorter one where a commit waits.
    Backoff(Duration, Duration),
}

/// Who had called when a step began: what comes after that ends the sleep behind the step.
#[derive(Clone, Copy, Debug)]
struct Heard {
    asked: u64,
    calls: u64,
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

/// Runs the uploader's thread; returns when the process has no hub any more, that is never.
pub(crate) fn run(hub: &Arc<Hub>, receiver: HubReceiver, registry: &'static Registry) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_stack_size(MEMORY_STACK_BYTES).build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, dispatch(hub, receiver, registry))
}

/// Reads wake-ups and passes on what the channel holds.
async fn dispatch(hub: &Arc<Hub>, receiver: HubReceiver, registry: &'static Registry) -> std::io::Result<()> {
    let HubReceiver { commits, notices, wake } = receiver;
    let wake = UnixStream::from_std(wake)?;
    let mailboxes: Rc<RefCell<HashMap<u64, Rc<Mailbox>>>> = Rc::default();
    let left_alone = LeftAlone::default();
    let mut turns = Turns::default();
    loop {
        wake.readable().await?;
        let mut bytes = [0; 64];
        // A wake-up that was read already is no reason to stop.
        let _ = wake.try_read(&mut bytes);
        hub.looked();
        while let Ok(notice) = notices.try_recv() {
            match notice {
                Notice::Opened(database) => {
                    let mailbox = Rc::new(Mailbox::default());
                    mailboxes.borrow_mut().insert(database.id, Rc::clone(&mailbox));
                    let turns = turns.of(&database);
                    let task = Task::new(database, mailbox, Rc::clone(&left_alone), turns);
                    let mailboxes = Rc::clone(&mailboxes);
                    tokio::task::spawn_local(async move {
                        let id = task.database.id;
                        task.run_guarded(registry).await;
                        mailboxes.borrow_mut().remove(&id);
                    });
                }
                Notice::Look(id) => {
                    if let Some(mailbox) = mailboxes.borrow().get(&id) {
                        mailbox.notify.notify_one();
                    }
                }
            }
        }
        while let Ok(frames) = commits.try_recv() {
            log::trace!(
                target: "replicated",
                "database {}: commit {} is frames {} to {}, {} pages in all",
                frames.database, frames.sequence, frames.first_frame, frames.end, frames.database_pages
            );
            if let Some(mailbox) = mailboxes.borrow().get(&frames.database) {
                mailbox.notify.notify_one();
            }
        }
    }
}

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

/// What the dispatcher leaves for a database's task.
#[derive(Debug, Default)]
struct Mailbox {
    notify: Notify,
}

/// Until when stores have asked to be left alone, by their URL: closing a database and opening it again is no way around that.
type LeftAlone = Rc<RefCell<HashMap<String, Instant>>>;

/// One database's task.
struct Task {
    database: Arc<Database>,
    mailbox: Rc<Mailbox>,
    budget: Budget,
    backoff: Backoff,
    siblings: Siblings,
    patience: Patience,
    /// The bucket has been compared with what the control file says.
    verified: bool,
    outages: RefCell<Outages>,
    left_alone: LeftAlone,
    turns: Rc<StoreTurns>,
    /// When the bucket was looked at last, and whether something was sent since.
    looked: (Instant, bool),
    /// The turn of the lease that the bucket was compared in.
    lease_turn: u64,
    /// On a store that replaces objects: what was sent last, to be looked at before the next.
    sent: Option<Attempt>,
}

impl Task {
    fn new(database: Arc<Database>, mailbox: Rc<Mailbox>, left_alone: LeftAlone, turns: Rc<StoreTurns>) -> Self {
        let budget = Budget::new(database.options.sync_interval, database.options.burst, clock::now());
        Self {
            database,
            mailbox,
            budget,
            backoff: Backoff::default(),
            siblings: Siblings::default(),
            patience: Patience::default(),
            verified: false,
            outages: RefCell::default(),
            left_alone,
            turns,
            looked: (clock::now(), false),
            lease_turn: 0,
            sent: None,
        }
    }

    /// A panic ends the replication of this database, says so in its status, and harms nothing else.
    async fn run_guarded(self, registry: &'static Registry) {
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
        loop {
            if is_over(&self.database, registry).await {
                return;
            }
            if self.database.shared.has_left() {
                // Another process uploads from here on, and must hear all that is said; those who wait for this one to go hear that it has.
                _listening = None;
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
            self.verified &= turn == self.lease_turn;
            self.lease_turn = turn;
        }
        if compares {
            let turns = Rc::clone(&self.turns);
            let _turn = self.turn(&turns.full, 1).await?;
            self.meanwhile(compare::decide(&database)).await??;
            self.succeeded();
            return Ok(Next::Again);
        }
        if !self.verified {
            fault_point!("verify.begin");
            let turns = Rc::clone(&self.turns);
            let _turn = self.turn(&turns.requests, REQUESTS_OF_VERIFY).await?;
            self.meanwhile(lineage::verify(&database)).await??;
            fault_point!("verify.done");
            self.verified = true;
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
            let before = database.progress.facts().snapshots;
            let next = self.meanwhile(snapshot::send_full(&database, reason)).await??;
            if database.progress.facts().snapshots > before {
                self.budget.take(clock::now());
                self.succeeded();
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
            return Ok(Next::Idle);
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
        if let Err(error) = frozen {
            return recover(database, &mut tail, error);
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
        let created = self.patiently(&database, &inflight, send::send(&database, &name, &inflight)).await?;
        fault_point!("send.done");
        if created == Created::AlreadyExists || replaces {
            fault_point!("send.compare");
            if !self.is_ours(&database, &inflight, &name, &inflight.attempt).await? {
                return Ok(Next::Idle);
            }
        }
        self.sent = replaces.then_some(inflight.attempt);
        let ended = Instant::now();
        self.siblings.released(database.progress.release_apart(ended - began), began, ended);
        self.acknowledged(&database, &inflight)?;
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
        database.note_acked(inflight.sequence);
        database.progress.update(|f| {
            f.acked_sequence = f.acked_sequence.max(inflight.sequence);
            f.remote_txid = Some(inflight.attempt.txid);
            f.last_success_ms = Some(now_ms());
            f.uploads += 1;
            f.state = if settled { ReplicationState::Idle } else { ReplicationState::Uploading };
        });
        log::debug!(
            target: "replicated",
            "{}: TXID {} is in the bucket, {} bytes",
            database.paths.database.display(), inflight.attempt.txid, inflight.attempt.size_bytes
        );
        self.succeeded();
        Ok(())
    }

    /// Awaits what a batch takes: where that is one request, not as long as requests may take.
    async fn patiently<T>(
        &mut self,
        database: &Database,
        inflight: &Inflight,
        request: impl Future<Output = Result<T, StepError>>,
    ) -> Result<T, StepError> {
        let (name, bytes) = (LtxName::level0(inflight.attempt.txid), inflight.attempt.size_bytes);
        if bytes > database.store.part_size_bytes() as u64 {
            return self.meanwhile(request).await?;
        }
        let mut patience = std::mem::take(&mut self.patience);
        let done = self.meanwhile(patience.wait(database, &name, bytes, request)).await;
        self.patience = patience;
        done?
    }

    /// Awaits the turn of this database.
    async fn turn<'a>(&self, turns: &'a Semaphore, requests: u32) -> Result<SemaphorePermit<'a>, StepError> {
        // At once, where it can be had: to wait means to ask to be woken.
        if let Ok(turn) = turns.try_acquire_many(requests) {
            return Ok(turn);
        }
        self.meanwhile(turns.acquire_many(requests)).await?.map_err(|_| StepError::Closed)
    }

    /// Awaits a request; spools as the WAL grows, and ends early where the last handle is closed.
    async fn meanwhile<T>(&self, request: impl Future<Output = T>) -> Result<T, StepError> {
        let mut request = pin!(request);
        let mut wake_frames = ENCODE_AHEAD_FRAMES;
        loop {
            if self.database.arm(wake_frames) {
                tokio::select! {
                    done = &mut request => return Ok(done),
                    () = self.mailbox.notify.notified() => {}
                }
            }
            if self.database.closing.load(Ordering::Acquire) || self.database.shared.has_left() {
                return Err(StepError::Closed);
            }
            wake_frames = self.encode_ahead();
        }
    }

    /// How long the store is still to be left alone.
    fn left_alone_for(&self) -> Option<Duration> {
        let until = *self.left_alone.borrow().get(self.database.store.url())?;
        Some(until.saturating_duration_since(clock::now())).filter(|wait| !wait.is_zero())
    }

    /// Waits for a token or the end of a backoff, unless somebody has asked for a flush since the step before began; not as long where a commit
    /// waits. Where the store has asked to be left alone nobody's flush or commit ends that.
    async fn pause(&self, pause: Duration, while_waited_for: Option<Duration>, mut heard: Heard) {
        let began = clock::now();
        let mut until = began + pause;
        let mut wake_frames = ENCODE_AHEAD_FRAMES;
        while !self.database.closing.load(Ordering::Acquire) && !self.database.shared.has_left() {
            let alone = self.left_alone_for();
            if alone.is_none() {
                if self.database.shared.asked.load(Ordering::Acquire) != heard.asked {
                    return;
                }
                let called = !self.database.doze(heard.calls);
                match while_waited_for {
                    None if called => return,
                    Some(shorter) if self.database.progress.committers_behind() > 0 => until = until.min(began + shorter),
                    _ => {}
                }
                heard.calls = self.database.shared.calls.load(Ordering::SeqCst);
            }
            if self.database.arm(wake_frames) {
                tokio::select! {
                    () = clock::sleep_until(alone.map_or(until, |wait| clock::now() + wait)) => if alone.is_none() { return },
                    () = self.mailbox.notify.notified() => {}
                }
            }
            wake_frames = self.encode_ahead();
        }
    }

    /// Spools what waits in the WAL where it is much. Returns at how many frames to look again: never, where nothing can be spooled now.
    fn encode_ahead(&self) -> u32 {
        let database = &self.database;
        let mut tail = database.lock_tail();
        if tail.state.captured.is_none() || matches!(tail.mode, Mode::Stopped(..) | Mode::Unresolved) {
            return u32::MAX;
        }
        database.note_looked();
        let live = database.published().live();
        let frames = tail.uncaptured_frames(&live.end);
        let spooled =
            if frames >= ENCODE_AHEAD_FRAMES { tail.capture_to_spool(&live, u32::MAX) } else { Ok(()) }.and_then(|()| tail.merge_waiting());
        database.note_captured(&tail);
        let Err(error) = spooled else { return ENCODE_AHEAD_FRAMES };
        if error.is_out_of_room() && frames > database.most_gate_frames() {
            // A writer that wants to restart the WAL would not try it, and the WAL would grow without end.
            log::warn!(target: "replicated", "{}: {error}", database.paths.database.display());
            database.lose(&mut tail, FullReason::SpoolLost);
            return u32::MAX;
        }
        if let Err(error) = recover(database, &mut tail, error)
            // A disk that is full fails at every try, and with every commit comes one.
            && self.outages.borrow_mut().is_news("encode ahead", clock::now())
        {
            log::warn!(target: "replicated", "{}: {error}", database.paths.database.display());
        }
        u32::MAX
    }

    fn succeeded(&mut self) {
        self.backoff.succeeded();
        let name = self.database.paths.database.display();
        match self.outages.borrow_mut().succeeded(clock::now()) {
            Over::Nothing => {}
            Over::Works { after, failures } => log::info!(
                target: "replicated",
                "{name}: replication works again after {:.1} s and {failures} failures",
                after.as_secs_f64()
            ),
            Over::Flapped { outages, failures, within } => log::warn!(
                target: "replicated",
                "{name}: the store fails and works again in turn: {outages} more times and {failures} failures in {:.0} s",
                within.as_secs_f64()
            ),
        }
        self.database.progress.update(|f| {
            // What was found may be that it must stop.
            let is_stopped = matches!(f.state, ReplicationState::Diverged | ReplicationState::Fenced | ReplicationState::Failed);
            if !is_stopped && f.last_error.take().is_some() {
                f.state = ReplicationState::Uploading;
            }
        });
    }

    /// Reports a failure, once for each cause of an outage, and says how long to wait.
    fn failed(&mut self, error: &StepError) -> Next {
        if self.database.lock_tail().has_failed() {
            // A snapshot that a panic has ended, say: that is told already.
            return Next::Again;
        }
        if matches!(error, StepError::Store(e) if e.kind == StoreErrorKind::NoLease) {
            // It ran out since the step began; the next one says so.
            return Next::Again;
        }
        if let StepError::Unreadable(message) = error {
            stop(&self.database, StopKind::Diverged, message.clone());
            return Next::Again;
        }
        let (transient, retry_after, key) = match error {
            StepError::Store(e) => (e.is_transient(), e.retry_after, format!("{:?} {}", e.kind, e.operation)),
            StepError::Damaged(_) => (false, None, error.to_string()),
            other => (true, None, other.to_string()),
        };
        let name = self.database.paths.database.display();
        match self.outages.borrow_mut().failed(&key, clock::now()) {
            Tell::Nothing => {}
            Tell::Cause if matches!(error, StepError::StartOver(_)) => log::info!(target: "replicated", "{name}: {error}"),
            Tell::Cause if matches!(error, StepError::Damaged(_)) => log::error!(target: "replicated", "{name}: {error}"),
            Tell::Cause => log::error!(target: "replicated", "{name}: not replicated: {error}. The application goes on; it is tried again"),
            Tell::Still(failures) => log::warn!(target: "replicated", "{name}: still failing, {failures} times so far: {error}"),
        }
        self.database.progress.update(|f| {
            f.state = if matches!(error, StepError::Damaged(_)) { ReplicationState::Damaged } else { ReplicationState::Offline };
            f.last_error = Some(error.to_string());
        });
        if let Some(wait) = retry_after {
            let now = clock::now();
            let mut left_alone = self.left_alone.borrow_mut();
            left_alone.retain(|_, until| *until > now);
            left_alone.insert(self.database.store.url().to_owned(), now + wait.min(Backoff::LONGEST_ASKED));
        }
        self.back_off(transient, retry_after)
    }

    fn back_off(&mut self, transient: bool, retry_after: Option<Duration>) -> Next {
        let pause = self.backoff.failed(transient, retry_after, fastrand::f64());
        Next::Backoff(pause, Backoff::while_waited_for(pause, transient, retry_after))
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

/// What a local failure means: the full state where something is lost, another try where it may pass.
fn recover(database: &Database, tail: &mut super::tail::Tail, error: TailError) -> Result<Next, StepError> {
    use super::batch::BatchError;
    match &error {
        TailError::Spool(lost) if lost.is_lasting() => {
            log::warn!(target: "replicated", "{}: {error}", database.paths.database.display());
            database.lose(tail, FullReason::SpoolLost);
            Ok(Next::Again)
        }
        TailError::Batch(BatchError::Wal { .. } | BatchError::OtherGeneration { .. } | BatchError::OtherFrame { .. }) => {
            log::warn!(target: "replicated", "{}: {error}", database.paths.database.display());
            database.lose(tail, FullReason::ContinuityLost);
            Ok(Next::Again)
        }
        _ => Err(error.into()),
    }
}

/// Stops the replication of a database until somebody acts.
pub(crate) fn stop(database: &Database, kind: StopKind, message: String) {
    database.lock_tail().stop(kind, message.clone());
    report_stop(database, kind, message);
}

pub(crate) fn report_stop(database: &Database, kind: StopKind, message: String) {
    if kind == StopKind::Failed {
        // A fault of this process alone. It is told by whoever has caught it, once the others do not hear it any more: they go on.
        return;
    }
    if database.options.readonly_on_conflict && matches!(kind, StopKind::Fenced | StopKind::Diverged) {
        database.shared.refuses_writes.store(1, Ordering::Release);
    }
    database.progress.update(|f| {
        f.state = kind.into();
        f.last_error = Some(message);
    });
}
