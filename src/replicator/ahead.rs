//! Checkpoints ahead of SQLite's own (`checkpoint=background`).
//!
//! SQLite checkpoints within the COMMIT that takes the WAL to 1,000 pages, or to what `wal_autocheckpoint` says, and that one COMMIT takes the time of two syncs. Here a
//! thread does it as soon as the WAL has half of SQLite's default, on a connection of its own:
//!
//! ```text
//!   frames    0 ............ 500 ............ 1,000
//!   COMMITs   append ......... wake, append ... the WAL is restarted, as all of it is in the database file
//!   thread                     PASSIVE, and again where commits came meanwhile
//! ```
//!
//! Nothing of the application's is in its way: where it has run out of time, which a writer that never pauses sees to, SQLite's own comes at 1,000 as ever. A checkpoint that the
//! application asks for, the last close and a change of the journal mode wait until the connection is gone, and find what they would find without it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

use super::database::Database;
use super::process;
use super::shared::Shared;
use crate::fault::{fault_point, fault_value};
use crate::logging::event;

/// Half of SQLite's default.
const AHEAD_AT_FRAMES: u32 = 500;
/// How often it is tried for one generation of the WAL.
const MOST_TRIES: u32 = 4;
/// Where it has been in vain again and again, it is left out for so many generations at the most.
const MOST_LEFT_OUT: u32 = 64;
/// How long whoever wants the database to itself waits for a checkpoint. A disk that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// In `Ahead::at_frame`: nobody is to be woken.
const NEVER: u32 = u32::MAX;

/// What became of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checkpointed {
    /// The WAL had so many frames, and so many of them are in the database file now.
    Done { frames: u32, in_file: u32 },
    /// Somebody has the database to himself.
    NotNow,
    /// It cannot be done, and will not be the next time.
    Never(String),
}

/// Databases whose WAL is long enough.
pub(crate) type Due = Sender<Weak<Database>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Ahead {
    due: Due,
    /// A commit that takes the WAL there wakes the thread.
    at_frame: AtomicU32,
    /// Where the last commit of this process has taken it.
    last_frame: AtomicU32,
    turn: Mutex<Turn>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct Turn {
    is_running: bool,
    /// How many want the database to themselves.
    kept_out: u32,
    /// For this generation of the WAL.
    tries: u32,
    /// Generations in a row whose end SQLite's own checkpoint has come to.
    in_vain: u32,
    /// So many more are left to it.
    left_out: u32,
    is_off: bool,
}

/// How long a WAL is when a checkpoint ahead of SQLite's is due.
fn due_at_frames() -> u32 {
    fault_value!("REPLICATED_TEST_AHEAD_FRAMES", AHEAD_AT_FRAMES, |frames| u32::try_from(frames).unwrap_or(AHEAD_AT_FRAMES))
}

/// And when SQLite's own is, where the application leaves that as it is: past it another attempt would only be in its way.
fn inline_at_frames() -> u32 {
    2 * due_at_frames()
}

impl Ahead {
    pub(crate) fn new(due: Due) -> Self {
        Self { due, at_frame: AtomicU32::new(due_at_frames()), last_frame: AtomicU32::new(0), turn: Mutex::default(), over: Condvar::new() }
    }

    /// A commit has taken the WAL to that frame. Whether the thread is to be woken, by `wake`, once the connection does not read any more: what it reads cannot be overwritten in
    /// the file.
    pub(crate) fn is_due(&self, frame: u32) -> bool {
        if frame < self.last_frame.swap(frame, Ordering::Relaxed) {
            self.wal_began_anew();
        }
        frame >= self.at_frame.load(Ordering::Relaxed) && self.at_frame.swap(NEVER, Ordering::Relaxed) != NEVER
    }

    /// The thread shall look.
    pub(crate) fn wake(&self, database: &Arc<Database>) {
        // Where the thread has ended nobody is worse off than without it.
        let _ = self.due.send(Arc::downgrade(database));
    }

    fn wal_began_anew(&self) {
        let mut turn = self.turn.lock();
        turn.tries = 0;
        if turn.is_off {
            return;
        }
        let at_frame = if turn.left_out > 0 { NEVER } else { due_at_frames() };
        turn.left_out = turn.left_out.saturating_sub(1);
        self.at_frame.store(at_frame, Ordering::Relaxed);
    }

    /// Somebody is about to want the database to itself: waits until no connection of ours is there. None comes before `let_in`.
    pub(crate) fn keep_out(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut turn = self.turn.lock();
        turn.kept_out += 1;
        while turn.is_running && !self.over.wait_until(&mut turn, deadline).timed_out() {}
    }

    /// That is over.
    pub(crate) fn let_in(&self) {
        let mut turn = self.turn.lock();
        turn.kept_out = turn.kept_out.saturating_sub(1);
    }

    fn begin<'a>(&'a self, database: &'a Database) -> Option<Running<'a>> {
        let mut turn = self.turn.lock();
        // A WAL that was deleted since has no frames, and one that was restarted has few.
        let is_due = database.handles.load(Ordering::Acquire) > 0 && database.published().end.frame >= due_at_frames();
        if turn.is_running || turn.kept_out > 0 || turn.is_off || !is_due {
            return None;
        }
        turn.is_running = true;
        turn.tries += 1;
        database.shared.checkpointing.store(1, Ordering::Release);
        Some(Running { ahead: self, shared: &database.shared })
    }

    /// One attempt has begun with so many frames, and is over. Whether another one follows at once.
    fn tries_again(&self, began_with: u32, now: u32, outcome: &Checkpointed) -> bool {
        let mut turn = self.turn.lock();
        match *outcome {
            // What is all in the file the next commit restarts, if it has not done so already.
            Checkpointed::Done { frames, in_file } if in_file == frames && now <= frames => {
                (turn.in_vain, turn.left_out) = (0, 0);
                false
            }
            // As many frames come meanwhile as came this time.
            Checkpointed::Done { .. }
                if turn.tries < MOST_TRIES && now.saturating_mul(2).saturating_sub(began_with) < inline_at_frames() =>
            {
                true
            }
            Checkpointed::Done { .. } => {
                turn.left_out = 1_u32.checked_shl(turn.in_vain).unwrap_or(MOST_LEFT_OUT).min(MOST_LEFT_OUT) - 1;
                turn.in_vain = turn.in_vain.saturating_add(1);
                false
            }
            Checkpointed::NotNow => false,
            Checkpointed::Never(_) => {
                turn.is_off = true;
                false
            }
        }
    }
}

/// A connection of ours has the database open, as long as this is there.
struct Running<'a> {
    ahead: &'a Ahead,
    shared: &'a Shared,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.shared.checkpointing.store(0, Ordering::Release);
        self.ahead.turn.lock().is_running = false;
        self.ahead.over.notify_all();
    }
}

/// The thread: one for all databases of a process.
pub(crate) fn run(due: &Receiver<Weak<Database>>) {
    for database in due {
        if let Some(database) = database.upgrade() {
            checkpoint(&database);
        }
    }
}

fn checkpoint(database: &Arc<Database>) {
    let Some(ahead) = &database.ahead else { return };
    loop {
        let Some(replicas) = process::opened_at(&database.paths.database).filter(|replicas| Arc::ptr_eq(&replicas.first, database)) else {
            return;
        };
        let Some(running) = ahead.begin(database) else { return };
        let began_with = database.published().end.frame;
        fault_point!("ahead.begin");
        let outcome = database.checkpoint(&replicas);
        fault_point!("ahead.done");
        drop(running);
        if let Checkpointed::Never(why) = &outcome {
            event!(
                Warn, "checkpoint_inline", database, cause = why;
                "checkpoint=background: checkpoints are left to SQLite, inside of commits: {why}"
            );
        } else {
            event!(Debug, "checkpointed", database; "{outcome:?}, of {began_with} frames");
        }
        if !ahead.tries_again(began_with, database.published().end.frame, &outcome) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead() -> Ahead {
        Ahead::new(crossbeam_channel::unbounded().0)
    }

    const DONE: fn(u32, u32) -> Checkpointed = |frames, in_file| Checkpointed::Done { frames, in_file };

    #[test]
    fn it_is_tried_again_while_there_is_time() {
        let ahead = ahead();
        assert!(!ahead.tries_again(500, 500, &DONE(500, 500)));
        // Restarted meanwhile.
        assert!(!ahead.tries_again(500, 3, &DONE(500, 500)));
        assert!(ahead.tries_again(500, 600, &DONE(500, 500)));
        assert!(!ahead.tries_again(500, 760, &DONE(500, 500)));
        ahead.turn.lock().tries = MOST_TRIES;
        assert!(!ahead.tries_again(500, 501, &DONE(500, 500)));
        assert!(!ahead.tries_again(500, 501, &Checkpointed::NotNow));
    }

    #[test]
    fn who_never_pauses_is_left_to_sqlite_for_ever_longer() {
        let ahead = ahead();
        let generations_left_out = || {
            let mut left_out = 0;
            ahead.wal_began_anew();
            while ahead.at_frame.load(Ordering::Relaxed) == NEVER {
                left_out += 1;
                ahead.wal_began_anew();
            }
            left_out
        };
        let mut all = Vec::new();
        for _ in 0..9 {
            assert!(!ahead.tries_again(500, 900, &DONE(500, 500)));
            all.push(generations_left_out());
        }
        assert_eq!(all, [0, 1, 3, 7, 15, 31, 63, 63, 63]);
        assert!(!ahead.tries_again(500, 500, &DONE(500, 500)));
        assert!(!ahead.tries_again(500, 900, &DONE(500, 500)));
        assert_eq!(generations_left_out(), 0);
        assert!(!ahead.tries_again(500, 900, &Checkpointed::Never(String::new())));
        ahead.at_frame.store(NEVER, Ordering::Relaxed);
        ahead.wal_began_anew();
        assert_eq!(ahead.at_frame.load(Ordering::Relaxed), NEVER);
    }
}
