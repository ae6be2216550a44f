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
    /// A store that asks to be left alone is, for at the most this long.
    pub(crate) const LONGEST_ASKED: Duration = Duration::from_secs(3600);

    /// The pause before the next attempt. `jitter` is from 0 to 1.
    pub(crate) fn failed(&mut self, transient: bool, retry_after: Option<Duration>, jitter: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let (first, longest) = if transient { (Self::FIRST, Self::LONGEST_TRANSIENT) } else { (Self::REFUSED, Self::LONGEST_REFUSED) };
        let pause = first.saturating_mul(doubled).min(longest);
        pause.mul_f64(0.5 + jitter / 2.0).max(retry_after.unwrap_or_default().min(Self::LONGEST_ASKED))
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
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
    fn pauses_grow_to_a_bound_and_heed_the_store() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..20).map(|_| backoff.failed(true, None, 1.0)).collect();
        assert_eq!(pauses[0], Duration::from_millis(200));
        assert!(pauses.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(pauses[19], Duration::from_secs(30));
        backoff.succeeded();
        assert_eq!(backoff.failed(true, Some(Duration::from_secs(86_400)), 0.0), Duration::from_secs(3600));
        backoff.succeeded();
        assert_eq!(backoff.failed(true, Some(Duration::from_secs(7)), 0.0), Duration::from_secs(7));
        assert!(backoff.failed(false, None, 0.0) >= Duration::from_secs(2));
    }
}
