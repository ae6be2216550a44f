//! Forks, and our thread within the VFS below.
//!
//! SQLite's VFS has locks of the process, which a fork leaves held in the child if another thread has one at that moment: the child's first open would wait
//! for ever. Our thread is there to read a database file. So a fork waits until it has come out, and it does not go in while a fork is under way:
//!
//! ```text
//!   our thread    INSIDE += 1; is FORKING 0?  no: INSIDE -= 1, wait, again   yes: call, INSIDE -= 1
//!   prepare       FORKING += 1; wait until INSIDE is 0
//!   parent        FORKING -= 1
//!   child         both are 0: nobody else is there
//! ```
//!
//! Both only spin and sleep, for a bounded time, and hold nothing: whoever forks may itself be within SQLite, or hold what our thread waits for, and then goes
//! on as if none of this were here. A lock could not be given back in the child, where those who wait for it are gone.
//!
//! Threads of the application are not kept waiting. Where those are within SQLite when another one forks, it is as without the extension.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::metrics::endpoint;
use crate::replicator::{process, wake};

/// How often who waits looks, before it does not wait any longer: for a second in all. What is waited for takes microseconds, but on a disk that hangs.
const LOOKS: u32 = 10_000;
const PAUSE: Duration = Duration::from_micros(100);

static FORKING: AtomicUsize = AtomicUsize::new(0);
static INSIDE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Without a destructor, so that it may be looked at in any thread at any time.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// This thread is one of ours.
pub(super) fn is_ours() {
    IS_OURS.with(|ours| ours.set(true));
}

fn wait_until(is_so: impl Fn() -> bool) {
    for look in 0..LOOKS {
        if is_so() {
            return;
        }
        if look < 100 { std::thread::yield_now() } else { std::thread::sleep(PAUSE) }
    }
}

/// Whether this thread is one of ours, within `apart`.
pub(super) fn is_inside() -> bool {
    IS_INSIDE.with(Cell::get)
}

/// Makes a short call into SQLite or the VFS below, not in the midst of a fork.
pub(super) fn apart<T>(call: impl FnOnce() -> T) -> T {
    if !IS_OURS.with(Cell::get) || IS_INSIDE.with(Cell::get) {
        return call();
    }
    let generation = enter();
    let result = call();
    leave(generation);
    result
}

/// Makes a call within `apart` that may take long, and with which SQLite holds no lock of the process.
pub(super) fn unlocked<T>(call: impl FnOnce() -> T) -> T {
    if !IS_INSIDE.with(Cell::get) {
        return call();
    }
    leave(process::generation());
    let result = call();
    enter();
    result
}

fn enter() -> usize {
    let generation = process::generation();
    IS_INSIDE.with(|inside| inside.set(true));
    loop {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        if FORKING.load(Ordering::SeqCst) == 0 {
            break;
        }
        INSIDE.fetch_sub(1, Ordering::SeqCst);
        wait_until(|| FORKING.load(Ordering::SeqCst) == 0);
        if FORKING.load(Ordering::SeqCst) > 0 {
            // Somebody has waited long enough for another handler of a fork.
            INSIDE.fetch_add(1, Ordering::SeqCst);
            break;
        }
    }
    generation
}

fn leave(generation: usize) {
    IS_INSIDE.with(|inside| inside.set(false));
    if generation == process::generation() {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Before a fork.
pub(super) extern "C" fn prepare() {
    FORKING.fetch_add(1, Ordering::SeqCst);
    // A handler of another's, called by the VFS below within our own call, may fork as well: it would wait for itself.
    if !IS_OURS.with(Cell::get) {
        wait_until(|| INSIDE.load(Ordering::SeqCst) == 0);
    }
}

/// After it.
pub(super) extern "C" fn in_parent() {
    FORKING.fetch_sub(1, Ordering::SeqCst);
}

/// After it, in the child, which has this thread only.
pub(super) extern "C" fn in_child() {
    FORKING.store(0, Ordering::SeqCst);
    INSIDE.store(0, Ordering::SeqCst);
    process::forked();
    wake::forked();
    endpoint::forked();
}
