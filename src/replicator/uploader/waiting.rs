//! How a task waits: for its turn, for a request, for the next one to be due. What is committed meanwhile is spooled as the WAL grows.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{ENCODE_AHEAD_FRAMES, ENCODE_AHEAD_PAGES, TAIL_PATIENCE, Task};
use crate::logging::{event, repeated_event};
use crate::replicator::clock;
use crate::replicator::control::FullReason;
use crate::replicator::database::Database;
use crate::replicator::step::{StepError, recover};
use crate::replicator::tail::{Inflight, Mode, TailError};
use crate::store::LtxName;

/// Who had called when a step began: what comes after that ends the sleep behind the step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) asked: u64,
    pub(super) calls: u64,
}

impl Task {
    /// Awaits what a batch takes: where that is one request, not as long as requests may take.
    pub(super) async fn patiently<T>(
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
    pub(super) async fn turn<'a>(&self, turns: &'a Semaphore, requests: u32) -> Result<SemaphorePermit<'a>, StepError> {
        // At once, where it can be had: to wait means to ask to be woken.
        if let Ok(turn) = turns.try_acquire_many(requests) {
            return Ok(turn);
        }
        self.meanwhile(turns.acquire_many(requests)).await?.map_err(|_| StepError::Closed)
    }

    /// Awaits a request; spools as the WAL grows, and ends early where the last handle is closed.
    pub(super) async fn meanwhile<T>(&self, request: impl Future<Output = T>) -> Result<T, StepError> {
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

    /// Waits until the tail can be locked, as for a request.
    pub(super) async fn tail_comes_free(&self) -> Result<(), StepError> {
        if !self.database.is_tail_free() {
            self.meanwhile(self.database.tail_comes_free()).await?;
        }
        Ok(())
    }

    /// How long the store is still to be left alone.
    pub(super) fn left_alone_for(&self) -> Option<Duration> {
        let until = *self.left_alone.borrow().get(self.database.store.url())?;
        Some(until.saturating_duration_since(clock::now())).filter(|wait| !wait.is_zero())
    }

    /// Waits for a token or the end of a backoff, unless somebody has asked for a flush since the step before began; not as long where a commit
    /// waits. Where the store has asked to be left alone nobody's flush or commit ends that.
    pub(super) async fn pause(&self, pause: Duration, while_waited_for: Option<Duration>, mut heard: Heard) {
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
    pub(super) fn encode_ahead(&self) -> u32 {
        let database = &self.database;
        let Some(mut tail) = database.try_lock_tail_for(TAIL_PATIENCE) else { return u32::MAX };
        if tail.state.captured.is_none() || matches!(tail.mode, Mode::Stopped(..) | Mode::Unresolved) {
            return u32::MAX;
        }
        database.note_looked();
        let live = database.published().live();
        let frames = tail.uncaptured_frames(&live.end);
        // What is written again and again is read once where the WAL is restarted: that is for its writer, who need not be woken with then either. But not where it may be more frames
        // than such a writer takes on.
        let most_left = database.most_gate_frames() / 2;
        let is_left = (ENCODE_AHEAD_FRAMES..most_left).contains(&frames);
        let few_pages = if is_left { tail.uncaptured_pages(&live.end) } else { None }.filter(|&pages| pages < ENCODE_AHEAD_PAGES);
        let spools = frames >= ENCODE_AHEAD_FRAMES && few_pages.is_none();
        let spooled = if spools { tail.capture_to_spool(&live, u32::MAX) } else { Ok(()) };
        database.note_captured(&tail);
        let merged = match spooled.and_then(|()| tail.merge_waiting()) {
            Ok(None) => Ok(()),
            Ok(Some(merging)) => {
                // A writer that restarts the WAL must not wait for what takes a while.
                drop(tail);
                let merged = merging.run();
                let Some(locked) = database.try_lock_tail_for(TAIL_PATIENCE) else { return u32::MAX };
                tail = locked;
                tail.spool.take(merged).map(drop).map_err(TailError::Spool)
            }
            Err(error) => Err(error),
        };
        let Err(error) = merged else {
            let at_this_rate = |pages: u32| (frames / pages.max(1)).saturating_mul(ENCODE_AHEAD_PAGES).max(frames + ENCODE_AHEAD_FRAMES);
            return few_pages.map_or(ENCODE_AHEAD_FRAMES, |pages| at_this_rate(pages).min(most_left));
        };
        if error.is_out_of_room() && frames > database.most_gate_frames() {
            // A writer that wants to restart the WAL would not try it, and the WAL would grow without end.
            event!(Warn, "local_file", database, cause = error; "{error}");
            database.lose(&mut tail, FullReason::SpoolLost);
            return u32::MAX;
        }
        if let Err(error) = recover(database, &mut tail, error) {
            // A disk that is full fails at every try, and with every commit comes one.
            repeated_event!(Warn, "local_file", database, cause = error; "{error}");
        }
        u32::MAX
    }
}
