//! How often the bucket is written to: a token bucket for uploads and a backoff for failures.

use std::time::{Duration, Instant};

/// One token per interval, a few saved up. A flush goes without a token and leaves a debt.
#[derive(Debug)]
pub(crate) struct Budget {
    interval: Duration,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Budget {
    pub(crate) fn new(interval: Duration, burst: u32, now: Instant) -> Self {
        Self { interval, burst: f64::from(burst), tokens: f64::from(burst), at: now }
    }

    /// How long until there is a token; zero if there is one.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        self.refill(now);
        if self.tokens >= 1.0 { Duration::ZERO } else { self.interval.mul_f64(1.0 - self.tokens) }
    }

    /// Takes a token, on credit if need be. The debt is bounded: no more than a burst.
    pub(crate) fn take(&mut self, now: Instant) {
        self.refill(now);
        self.tokens = (self.tokens - 1.0).max(-self.burst);
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed / self.interval.as_secs_f64()).min(self.burst);
        self.at = now;
    }
}

/// Exponential, with jitter: what may pass is tried again soon, a refusal slowly.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST_TRANSIENT: Duration = Duration::from_secs(30);
    const REFUSED: Duration = Duration::from_secs(5);
    const LONGEST_REFUSED: Duration = Duration::from_secs(60);
    const WAITED_FOR: Duration = Duration::from_millis(500);

    /// The pause before the next attempt. `jitter` is from 0 to 1.
    pub(crate) fn failed(&mut self, transient: bool, retry_after: Option<Duration>, jitter: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let (first, longest) = if transient { (Self::FIRST, Self::LONGEST_TRANSIENT) } else { (Self::REFUSED, Self::LONGEST_REFUSED) };
        let pause = first.saturating_mul(doubled).min(longest);
        pause.mul_f64(0.5 + jitter / 2.0).max(retry_after.unwrap_or_default().min(Self::LONGEST_REFUSED))
    }

    /// What is left of a pause where a commit waits: that is worth more requests, but no storm of them.
    pub(crate) fn while_waited_for(pause: Duration, transient: bool, retry_after: Option<Duration>) -> Duration {
        let longest = if transient { Self::WAITED_FOR } else { Self::REFUSED };
        pause.min(longest.max(retry_after.unwrap_or_default()))
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// Commits that wait come in groups: the threads that one upload releases commit again at once. To send the first of them alone would have the
/// others wait for two requests, so that the next batch waits for as many as there were, for a small part of what a request takes.
#[derive(Debug, Default)]
pub(crate) struct Siblings {
    /// How many waited when the last batch was acknowledged.
    expected: usize,
    /// Until when they are waited for.
    patience_until: Option<Instant>,
    /// Until when the next of them is sure to come, if at all.
    near_until: Option<Instant>,
}

impl Siblings {
    /// Of the time that the request before took.
    const SHARE: u32 = 8;
    const MOST: Duration = Duration::from_millis(10);
    const NEAR: Duration = Duration::from_millis(50);

    /// A batch that was sent from `began` on is acknowledged, and so many commits were waiting.
    pub(crate) fn released(&mut self, waiting: usize, began: Instant, now: Instant) {
        self.expected = waiting;
        self.patience_until = Some(now + (now.saturating_duration_since(began) / Self::SHARE).min(Self::MOST));
        self.near_until = (waiting > 0).then_some(now + Self::NEAR);
    }

    /// How long to wait for more, where so many wait already.
    pub(crate) fn still_to_come(&self, waiting: usize, now: Instant) -> Duration {
        let patience = self.patience_until.map(|until| until.saturating_duration_since(now)).unwrap_or_default();
        if waiting == 0 || waiting >= self.expected { Duration::ZERO } else { patience }
    }

    /// How long it is likely that one of them commits again; `None` where it is not.
    pub(crate) fn may_come_back(&self, now: Instant) -> Option<Duration> {
        self.near_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_then_one_an_interval() {
        let start = Instant::now();
        let mut budget = Budget::new(Duration::from_secs(1), 3, start);
        let mut sent = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            if budget.wait(now).is_zero() {
                budget.take(now);
                sent += 1;
            }
        }
        assert_eq!(sent, 3 + 9);
    }

    #[test]
    fn a_flush_leaves_a_bounded_debt() {
        let start = Instant::now();
        let mut budget = Budget::new(Duration::from_secs(1), 2, start);
        for _ in 0..100 {
            budget.take(start);
        }
        assert_eq!(budget.wait(start), Duration::from_secs(3));
    }

    #[test]
    fn a_batch_waits_for_as_many_as_there_were_and_not_for_long() {
        let (ms, start) = (Duration::from_millis, Instant::now());
        let mut siblings = Siblings::default();
        assert_eq!(siblings.still_to_come(1, start), Duration::ZERO);
        siblings.released(16, start, start + ms(32));
        let now = start + ms(33);
        assert_eq!(siblings.still_to_come(1, now), ms(3));
        assert_eq!(siblings.still_to_come(16, now), Duration::ZERO);
        assert_eq!(siblings.still_to_come(0, now), Duration::ZERO, "a flush waits for nobody");
        assert_eq!(siblings.still_to_come(1, start + ms(36)), Duration::ZERO);
        assert_eq!(siblings.may_come_back(now), Some(ms(49)));
        siblings.released(1, now, now + Duration::from_secs(60));
        assert_eq!(siblings.still_to_come(1, now), Duration::ZERO);
        siblings.released(2, now, now + Duration::from_secs(60));
        assert_eq!(siblings.still_to_come(1, now + Duration::from_secs(60)), Siblings::MOST);
        siblings.released(0, now, now);
        assert_eq!(siblings.may_come_back(now), None);
    }

    #[test]
    fn a_commit_that_waits_shortens_a_pause_and_heeds_the_store() {
        let (short, long) = (Duration::from_millis(300), Duration::from_secs(30));
        assert_eq!(Backoff::while_waited_for(short, true, None), short);
        assert_eq!(Backoff::while_waited_for(long, true, None), Duration::from_millis(500));
        assert_eq!(Backoff::while_waited_for(long, false, None), Duration::from_secs(5));
        assert_eq!(Backoff::while_waited_for(long, true, Some(Duration::from_secs(12))), Duration::from_secs(12));
    }

    #[test]
    fn pauses_grow_to_a_bound_and_heed_the_store() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..20).map(|_| backoff.failed(true, None, 1.0)).collect();
        assert_eq!(pauses[0], Duration::from_millis(200));
        assert!(pauses.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(pauses[19], Duration::from_secs(30));
        backoff.succeeded();
        assert_eq!(backoff.failed(true, Some(Duration::from_secs(7)), 0.0), Duration::from_secs(7));
        assert!(backoff.failed(false, None, 0.0) >= Duration::from_secs(2));
    }
}
