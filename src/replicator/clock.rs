//! What time it is for the uploader's schedule: budget, backoff, pauses, summaries.
//!
//! With the feature `fault-injection` a test can put a clock of its own in place of it, so that hours pass in seconds and every attempt comes
//! at its exact time. Requests and SQLite's own threads keep real time.

use std::future::Future;
use std::time::Instant;

/// The time now.
pub(crate) fn now() -> Instant {
    #[cfg(feature = "fault-injection")]
    if let Some(now) = simulated::now() {
        return now;
    }
    Instant::now()
}

/// Waits until then.
pub(crate) async fn sleep_until(deadline: Instant) {
    #[cfg(feature = "fault-injection")]
    if simulated::now().is_some() {
        return simulated::Sleep::until(deadline).await;
    }
    tokio::time::sleep_until(deadline.into()).await;
}

/// Waits for something that no time brings.
pub(crate) async fn rest(until: impl Future<Output = ()>) {
    #[cfg(feature = "fault-injection")]
    let _resting = simulated::Resting::begin();
    until.await;
}

/// A clock that moves only when a test says so.
#[cfg(feature = "fault-injection")]
pub mod simulated {
    use std::collections::BTreeMap;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};
    use std::time::{Duration, Instant};

    use parking_lot::{Condvar, Mutex};

    /// How long, in real time, whoever has been woken may take to come to its next pause.
    const PATIENCE: Duration = Duration::from_secs(10);

    struct Clock {
        now: Instant,
        next_id: u64,
        sleepers: BTreeMap<u64, (Instant, Option<Waker>)>,
        resting: usize,
    }

    impl Clock {
        fn is_somebody_awake(&mut self) -> bool {
            self.sleepers.is_empty() && self.resting == 0 || self.sleepers.values().any(|(at, _)| *at <= self.now)
        }
    }

    static CLOCK: Mutex<Option<Clock>> = Mutex::new(None);
    static CHANGED: Condvar = Condvar::new();

    /// Puts it in place, for the rest of the process's life.
    pub fn start() {
        CLOCK.lock().get_or_insert_with(|| Clock { now: Instant::now(), next_id: 0, sleepers: BTreeMap::new(), resting: 0 });
    }

    pub(super) fn now() -> Option<Instant> {
        CLOCK.lock().as_ref().map(|clock| clock.now)
    }

    /// Moves on by so much, from one deadline to the next: whoever sleeps wakes at its exact time and comes to its next pause before the
    /// clock moves on.
    pub fn advance(by: Duration) {
        let mut guard = CLOCK.lock();
        let Some(target) = guard.as_ref().map(|clock| clock.now + by) else { return };
        loop {
            // Where somebody takes too long, the clock moves on all the same.
            let _ = CHANGED.wait_while_for(&mut guard, |clock| clock.as_mut().is_some_and(Clock::is_somebody_awake), PATIENCE);
            let Some(clock) = guard.as_mut() else { return };
            let next = clock.sleepers.values().map(|(at, _)| *at).filter(|at| *at <= target).min();
            let Some(next) = next else {
                clock.now = target;
                return;
            };
            clock.now = clock.now.max(next);
            let now = clock.now;
            for (_, waker) in clock.sleepers.values_mut().filter(|(at, _)| *at <= now) {
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// How long the clock has to move on until somebody wakes; `None` where nobody sleeps.
    #[must_use]
    pub fn next_deadline() -> Option<Duration> {
        let guard = CLOCK.lock();
        let clock = guard.as_ref()?;
        clock.sleepers.values().map(|(at, _)| at.saturating_duration_since(clock.now)).min()
    }

    pub(super) struct Resting;

    impl Resting {
        pub(super) fn begin() -> Self {
            CLOCK.lock().iter_mut().for_each(|clock| clock.resting += 1);
            CHANGED.notify_all();
            Self
        }
    }

    impl Drop for Resting {
        fn drop(&mut self) {
            CLOCK.lock().iter_mut().for_each(|clock| clock.resting -= 1);
        }
    }

    pub(super) struct Sleep {
        deadline: Instant,
        id: Option<u64>,
    }

    impl Sleep {
        pub(super) const fn until(deadline: Instant) -> Self {
            Self { deadline, id: None }
        }
    }

    impl Future for Sleep {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            let mut guard = CLOCK.lock();
            let Some(clock) = guard.as_mut() else { return Poll::Ready(()) };
            if clock.now >= self.deadline {
                return Poll::Ready(());
            }
            let id = self.id.unwrap_or(clock.next_id);
            clock.next_id = clock.next_id.max(id + 1);
            clock.sleepers.insert(id, (self.deadline, Some(context.waker().clone())));
            self.id = Some(id);
            CHANGED.notify_all();
            Poll::Pending
        }
    }

    impl Drop for Sleep {
        fn drop(&mut self) {
            if let (Some(id), Some(clock)) = (self.id, CLOCK.lock().as_mut()) {
                clock.sleepers.remove(&id);
                CHANGED.notify_all();
            }
        }
    }
}
