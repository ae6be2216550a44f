//! The tail as several processes have it: one at a time changes it, and begins with what the one before has left.
//!
//! What must outlive all of them is in the control file; how far continuity is known, and what has been noticed on the way, in the page that they share. Whoever
//! dies while it holds the lock leaves what it has saved, as after a crash.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::{Body, Inflight, Mode, StopKind, Tail};
use crate::logging::repeated_event;
use crate::replicator::control::{FullReason, State};
use crate::replicator::shared::Range;

/// In `Page::tail_flags`.
const EXCHANGED: u64 = 1;
const REBOOTED_WITHOUT_WAL: u64 = 2;
const ROLLED_BACK: u64 = 4;
const COMPARES: u64 = 8;

/// The tail, locked. A panic while it is held leaves it half changed: then it has failed, before anybody else sees it.
#[derive(Debug)]
pub(crate) struct TailGuard<'a>(MutexGuard<'a, Tail>);

impl<'a> TailGuard<'a> {
    pub(crate) fn lock(tail: &'a Mutex<Tail>) -> Self {
        let mut guard = tail.lock();
        let locked = guard.locks().map_or(Ok(()), |locks| locks.lock(Range::Tail, true));
        guard.enter(locked);
        Self(guard)
    }

    /// `None` where somebody holds it for longer than that.
    pub(crate) fn try_lock_for(tail: &'a Mutex<Tail>, limit: Duration) -> Option<Self> {
        let deadline = Instant::now() + limit;
        let mut guard = tail.try_lock_until(deadline)?;
        let rest = deadline.saturating_duration_since(Instant::now());
        let locked = guard.locks().map_or(Ok(true), |locks| locks.try_lock_for(Range::Tail, true, rest));
        if matches!(locked, Ok(false)) {
            return None;
        }
        guard.enter(locked.map(drop));
        Some(Self(guard))
    }
}

impl Deref for TailGuard<'_> {
    type Target = Tail;

    fn deref(&self) -> &Tail {
        &self.0
    }
}

impl DerefMut for TailGuard<'_> {
    fn deref_mut(&mut self) -> &mut Tail {
        &mut self.0
    }
}

impl Drop for TailGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Why is told by whoever catches the panic.
            self.0.mode = Mode::Stopped(StopKind::Failed, String::new());
        }
        self.0.leave();
    }
}

impl Tail {
    /// The locks, unless this process has left the others.
    fn locks(&self) -> Option<&super::Locks> {
        self.locks.as_ref().filter(|_| !self.shared.has_left())
    }

    /// Takes over what another process has left.
    fn enter(&mut self, locked: std::io::Result<()>) {
        if self.has_failed() || self.shared.has_left() {
            return;
        }
        if let Err(error) = locked {
            repeated_event!(Error, "local_file", self, cause = error; "{} cannot be locked: {error}", self.paths.control().display());
        }
        let has_died = self.shared.tail_held.swap(1, Ordering::AcqRel) != 0;
        self.shared.stuck.store(0, Ordering::Release);
        let turn = self.shared.tail_turns.fetch_add(1, Ordering::Relaxed) + 1;
        let was_another_s = std::mem::replace(&mut self.turn, turn) + 1 != turn;
        if self.shared.joined.load(Ordering::Relaxed) != 0 {
            // What is in memory nobody else could send.
            self.spool.keep_nothing_in_memory();
        }
        (self.mode, self.captured_sequence) = (self.shared_mode(has_died), self.shared.captured_sequence.load(Ordering::Relaxed));
        let flags = self.shared.tail_flags.load(Ordering::Relaxed);
        (self.exchanged, self.rebooted_without_wal) = (flags & EXCHANGED != 0, flags & REBOOTED_WITHOUT_WAL != 0);
        (self.rolled_back, self.compares) = (flags & ROLLED_BACK != 0, flags & COMPARES != 0);
        if has_died || was_another_s {
            match self.control.as_mut().map_or(Ok(None), super::Control::newer) {
                Ok(newer) => self.adopt(newer.unwrap_or_else(|| self.state.clone())),
                Err(error) => repeated_event!(Warn, "local_file", self, cause = error; "{}: {error}", self.paths.control().display()),
            }
        }
        if has_died {
            self.mode = self.shared_mode(true);
        }
        if self.shared.lost.swap(0, Ordering::AcqRel) != 0 && !matches!(self.mode, Mode::Stopped(..)) {
            self.lose(FullReason::ContinuityLost);
        }
    }

    /// What another process has left, which may have died with the lock.
    fn adopt(&mut self, state: State) {
        self.state = state;
        self.wal = None;
        self.inflight = self.inflight.take().and_then(|inflight| {
            let attempt = self.state.attempt.filter(|a| (a.txid, a.checksum) == (inflight.attempt.txid, inflight.attempt.checksum))?;
            Some(Inflight { attempt, ..inflight })
        });
        // Entries may have been merged, which the state does not tell.
        match self.spool.reopen(self.state.spool_first, self.state.spool_next, self.state.attempt.map(|a| a.txid)) {
            Ok(spool) => self.spool = spool,
            Err(error) => {
                repeated_event!(Warn, "local_file", self, cause = error; "{error}");
                self.lose(FullReason::SpoolLost);
            }
        }
    }

    /// Leaves what the next one needs.
    fn leave(&mut self) {
        if !self.shared.has_left() {
            if !self.has_failed() {
                let shared = &self.shared;
                shared.mode.store(encode(&self.mode), Ordering::Relaxed);
                shared.captured_sequence.store(self.captured_sequence, Ordering::Relaxed);
                let flag = |is_set: bool, flag: u64| if is_set { flag } else { 0 };
                let flags = flag(self.exchanged, EXCHANGED)
                    | flag(self.rebooted_without_wal, REBOOTED_WITHOUT_WAL)
                    | flag(self.rolled_back, ROLLED_BACK)
                    | flag(self.compares, COMPARES);
                shared.tail_flags.store(flags, Ordering::Relaxed);
                shared.in_memory.store(u64::from(self.has_only_in_memory()), Ordering::Relaxed);
                shared.tail_held.store(0, Ordering::Release);
            }
            if let Some(locks) = &self.locks {
                locks.unlock(Range::Tail);
            }
        }
        if self.control.is_none() {
            self.locks = None;
        }
    }

    /// A fault has ended what this process does. The others go on, with the full state.
    pub(super) fn leave_the_others(&mut self) {
        if self.shared.has_left() {
            return;
        }
        self.shared.mode.store(encode(&Mode::Full(FullReason::Fault)), Ordering::Relaxed);
        self.shared.in_memory.store(0, Ordering::Relaxed);
        self.shared.tail_held.store(0, Ordering::Release);
        self.shared.leave();
        if let Some(locks) = &self.locks {
            locks.unlock(Range::Tail);
            locks.unlock(Range::Owner);
            locks.unlock(Range::Staying);
        }
    }

    /// The user has decided: whoever has stopped for want of that decides anew. For a process that joins, with the lock held and what was decided saved.
    pub(crate) fn look_again(&self) {
        self.shared.tail_turns.fetch_add(1, Ordering::Relaxed);
        if matches!(decode(self.shared.mode.load(Ordering::Relaxed)), Shown::Stopped(StopKind::Diverged | StopKind::Fenced)) {
            self.shared.mode.store(encode(&Mode::Unresolved), Ordering::Relaxed);
            self.shared.refuses_writes.store(0, Ordering::Relaxed);
        }
    }

    /// Whether what waits, or is being sent, is where no other process could find it.
    fn has_only_in_memory(&self) -> bool {
        let sends_from_memory =
            |inflight: &Inflight| inflight.attempt.in_file && matches!(inflight.body, Body::Memory(_)) && !self.spool.has_attempt();
        self.spool.has_in_memory() || self.inflight.as_ref().is_some_and(sends_from_memory)
    }

    /// How far continuity is known, as whoever changed it last has left it.
    fn shared_mode(&self, has_died: bool) -> Mode {
        let word = self.shared.mode.load(Ordering::Relaxed);
        match (decode(word), self.state.full) {
            (Shown::Unresolved, _) => Mode::Unresolved,
            (Shown::Stopped(kind), _) => match &self.mode {
                Mode::Stopped(known, message) if *known == kind => Mode::Stopped(kind, message.clone()),
                _ => Mode::Stopped(kind, self.shared.error().unwrap_or_default()),
            },
            (Shown::Full(reason), None) if !has_died => Mode::Full(reason),
            (_, Some(reason)) if has_died => Mode::Full(reason),
            (Shown::Full(reason), Some(_)) => Mode::Full(reason),
            (Shown::Running | Shown::Full(_), _) => Mode::Running,
        }
    }
}

/// What the page says of the mode.
enum Shown {
    Unresolved,
    Running,
    Full(FullReason),
    Stopped(StopKind),
}

fn encode(mode: &Mode) -> u64 {
    match mode {
        Mode::Unresolved => 0,
        Mode::Running => 1,
        Mode::Full(reason) => 2 | (*reason as u64) << 8,
        Mode::Stopped(kind, _) => 3 | (*kind as u64) << 8,
    }
}

fn decode(word: u64) -> Shown {
    let detail = u8::try_from(word >> 8).unwrap_or(0);
    match word & 0xff {
        1 => Shown::Running,
        2 => Shown::Full(FullReason::from_byte(detail).unwrap_or(FullReason::ContinuityLost)),
        3 if detail == StopKind::Diverged as u8 => Shown::Stopped(StopKind::Diverged),
        3 if detail == StopKind::Fenced as u8 => Shown::Stopped(StopKind::Fenced),
        3 => Shown::Stopped(StopKind::Failed),
        _ => Shown::Unresolved,
    }
}
