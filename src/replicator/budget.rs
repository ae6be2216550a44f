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
/// others wait for two requests, so that a batch waits for as many as there were, while they keep coming and for a part of what a request takes.
#[derive(Debug, Default)]
pub(crate) struct Siblings {
    /// How many waited when the last batch was acknowledged, when that was, and how long its request took.
    released: Option<(usize, Instant, Duration)>,
    /// How many wait for the next batch, since when they are as many, and whether there were fewer before.
    gathered: Option<(usize, Instant, bool)>,
    /// How often in a row nobody came.
    in_vain: u32,
    /// So many batches are not waited with.
    skip: u32,
}

impl Siblings {
    /// Of the time that the request took: how long the next one is waited for where half as many are missing as are there, and how long all of them.
    const NEXT: u32 = 4;
    const ALL: u32 = 2;
    const LONGEST_NEXT: Duration = Duration::from_millis(25);
    const LONGEST_ALL: Duration = Duration::from_millis(50);
    /// After an acknowledgement that somebody waited for: how long it is likely that he commits again.
    const NEAR: Duration = Duration::from_millis(50);

    /// A batch that was sent from `began` on is acknowledged, and so many commits were waiting.
    pub(crate) fn released(&mut self, waiting: usize, began: Instant, now: Instant) {
        self.released = (waiting > 0).then(|| (waiting, now, now.saturating_duration_since(began)));
        self.gathered = None;
        self.skip = self.skip.saturating_sub(1);
    }

    /// How long to wait for more, where so many wait already.
    pub(crate) fn still_to_come(&mut self, waiting: usize, now: Instant) -> Duration {
        let Some((expected, at, request)) = self.released.filter(|_| waiting > 0 && self.skip == 0) else { return Duration::ZERO };
        let gathered = match self.gathered {
            Some((before, _, _)) if waiting > before => (waiting, now, true),
            Some(gathered) => gathered,
            None => (waiting, now, false),
        };
        // To wait costs those who are there, and saves those who are missing a request.
        let share = (2.0 * expected.saturating_sub(waiting) as f64 / waiting as f64).min(1.0);
        let next = gathered.1 + (request / Self::NEXT).min(Self::LONGEST_NEXT).mul_f64(share);
        let left = next.min(at + (request / Self::ALL).min(Self::LONGEST_ALL)).saturating_duration_since(now);
        if waiting < expected && !left.is_zero() {
            self.gathered = Some(gathered);
            return left;
        }
        match self.gathered.take() {
            Some(_) if !gathered.2 => {
                self.in_vain = (self.in_vain + 1).min(4);
                self.skip = 1 << self.in_vain;
            }
            Some(_) => self.in_vain = 0,
            None => {}
        }
        Duration::ZERO
    }

    /// How long it is likely that one of them commits again; `None` where it is not.
    pub(crate) fn may_come_back(&self, now: Instant) -> Option<Duration> {
        let left = self.released.map(|(_, at, _)| (at + Self::NEAR).saturating_duration_since(now));
        left.filter(|left| !left.is_zero())
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
    fn a_batch_waits_while_more_come_and_not_for_long() {
        let (ms, mut now) = (Duration::from_millis, Instant::now());
        let mut siblings = Siblings::default();
        assert_eq!(siblings.still_to_come(1, now), Duration::ZERO, "nobody was released");
        siblings.released(16, now, now + ms(32));
        now += ms(33);
        assert_eq!(siblings.still_to_come(0, now), Duration::ZERO, "a flush waits for nobody");
        assert_eq!(siblings.still_to_come(1, now), ms(8));
        now += ms(3);
        assert_eq!(siblings.still_to_come(1, now), ms(5));
        assert_eq!(siblings.still_to_come(5, now), ms(8), "more have come");
        assert_eq!(siblings.still_to_come(15, now), ms(8).mul_f64(2.0 / 15.0), "one of many is not worth much");
        assert_eq!(siblings.still_to_come(16, now), Duration::ZERO, "that is all of them");
        siblings.released(16, now, now + ms(32));
        now += ms(32);
        for waiting in 1..=3 {
            assert_eq!(siblings.still_to_come(waiting, now), ms(8).min(ms(16) - ms(5) * (waiting as u32 - 1)));
            now += ms(5);
        }
        assert_eq!(siblings.still_to_come(4, now), ms(1));
        now += ms(1);
        assert_eq!(siblings.still_to_come(5, now), Duration::ZERO, "half of the request's time is over");
        siblings.released(1, now, now + ms(32));
        assert_eq!(siblings.still_to_come(1, now + ms(33)), Duration::ZERO, "one thread waits for nobody else");
    }

    #[test]
    fn who_does_not_come_back_is_waited_for_ever_more_rarely() {
        let ms = Duration::from_millis;
        let (mut siblings, mut now, mut waited) = (Siblings::default(), Instant::now(), 0);
        for _ in 0..160 {
            siblings.released(2, now, now + ms(80));
            now += ms(80);
            if !siblings.still_to_come(1, now).is_zero() {
                waited += 1;
                assert!(siblings.still_to_come(1, now + ms(20)).is_zero());
            }
        }
        assert!((5..20).contains(&waited), "{waited}");
        assert_eq!(siblings.may_come_back(now), Some(Siblings::NEAR));
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
        assert_eq!(backoff.failed(true, Some(Duration::from_secs(86_400)), 0.0), Duration::from_secs(3600));
        backoff.succeeded();
        assert_eq!(backoff.failed(true, Some(Duration::from_secs(7)), 0.0), Duration::from_secs(7));
        assert!(backoff.failed(false, None, 0.0) >= Duration::from_secs(2));
    }
}
