//! What is told of failures: each cause once, what goes on every ten minutes, and of a store that works and fails in turn the sum.

use std::time::{Duration, Instant};

/// What was told is not told again for so long.
const SUMMARY: Duration = Duration::from_secs(600);
/// A known cause is told again where an outage lasts so long.
const LASTING: Duration = Duration::from_secs(60);
/// Causes beyond this many are not told.
const MOST_CAUSES: usize = 8;

/// The failures of one database.
#[derive(Debug, Default)]
pub(crate) struct Outages {
    failing_since: Option<Instant>,
    /// Since then.
    failures: u64,
    /// Something was told since then.
    told: bool,
    /// What was told, and when.
    causes: Vec<(String, Instant)>,
    /// Outages of which nothing was told, and their failures.
    untold: (u64, u64),
    untold_since: Option<Instant>,
}

/// What to tell of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tell {
    Nothing,
    /// The cause.
    Cause,
    /// That it goes on, after so many failures.
    Still(u64),
}

/// What to tell of the end of an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Nothing,
    /// It works again.
    Works {
        after: Duration,
        failures: u64,
    },
    /// It worked and failed in turn.
    Flapped {
        outages: u64,
        failures: u64,
        within: Duration,
    },
}

impl Outages {
    /// One more failure, of a cause that `key` names.
    pub(crate) fn failed(&mut self, key: &str, now: Instant) -> Tell {
        let since = *self.failing_since.get_or_insert(now);
        self.failures += 1;
        let room = self.causes.len() < MOST_CAUSES;
        let tell = match self.causes.iter_mut().find(|(cause, _)| cause == key) {
            Some((_, at)) if now.saturating_duration_since(*at) >= SUMMARY => {
                *at = now;
                if self.told { Tell::Still(self.failures) } else { Tell::Cause }
            }
            Some((_, at)) if !self.told && now.saturating_duration_since(since) >= LASTING => {
                *at = now;
                Tell::Cause
            }
            None if room => {
                self.causes.push((key.to_owned(), now));
                Tell::Cause
            }
            _ => Tell::Nothing,
        };
        self.told |= tell != Tell::Nothing;
        tell
    }

    /// Whether something that is no failure of the replication as a whole is to be told now.
    pub(crate) fn is_news(&mut self, key: &str, now: Instant) -> bool {
        match self.causes.iter_mut().find(|(cause, _)| cause == key) {
            Some((_, at)) if now.saturating_duration_since(*at) < SUMMARY => false,
            Some((_, at)) => {
                *at = now;
                true
            }
            None => {
                self.causes.retain(|(_, at)| now.saturating_duration_since(*at) < SUMMARY);
                self.causes.truncate(MOST_CAUSES - 1);
                self.causes.push((key.to_owned(), now));
                true
            }
        }
    }

    /// Something was sent.
    pub(crate) fn succeeded(&mut self, now: Instant) -> Over {
        let Some(since) = self.failing_since.take() else { return Over::Nothing };
        let (failures, told) = (std::mem::take(&mut self.failures), std::mem::take(&mut self.told));
        self.causes.retain(|(_, at)| now.saturating_duration_since(*at) < SUMMARY);
        if told {
            return Over::Works { after: now.saturating_duration_since(since), failures };
        }
        self.untold = (self.untold.0 + 1, self.untold.1 + failures);
        let within = now.saturating_duration_since(*self.untold_since.get_or_insert(since));
        if within < SUMMARY {
            return Over::Nothing;
        }
        self.untold_since = None;
        let (outages, failures) = std::mem::take(&mut self.untold);
        Over::Flapped { outages, failures, within }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn an_outage_is_told_at_its_beginning_and_at_its_end_and_now_and_then() {
        let (mut outages, start) = (Outages::default(), Instant::now());
        assert_eq!(outages.succeeded(start), Over::Nothing);
        let told: Vec<_> = (0..3600).map(|s| outages.failed("refused", at(start, s))).filter(|t| *t != Tell::Nothing).collect();
        assert_eq!(told, [Tell::Cause, Tell::Still(601), Tell::Still(1201), Tell::Still(1801), Tell::Still(2401), Tell::Still(3001)]);
        assert_eq!(outages.succeeded(at(start, 3600)), Over::Works { after: Duration::from_secs(3600), failures: 3600 });
        assert_eq!(outages.succeeded(at(start, 3601)), Over::Nothing);
    }

    #[test]
    fn a_store_that_works_and_fails_in_turn_is_summed_up() {
        let (mut outages, start) = (Outages::default(), Instant::now());
        let mut lines = Vec::new();
        // Two failures and a success, every three seconds, for an hour.
        for s in 0..1200 {
            for (offset, key) in [(0, "refused"), (1, "time-out")] {
                lines
                    .extend(Some(outages.failed(key, at(start, 3 * s + offset))).filter(|t| *t != Tell::Nothing).map(|t| format!("{t:?}")));
            }
            lines.extend(Some(outages.succeeded(at(start, 3 * s + 2))).filter(|o| *o != Over::Nothing).map(|o| format!("{o:?}")));
        }
        assert!(lines.len() <= 6 * 5, "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("Flapped { outages: 2")), "{lines:?}");
    }

    #[test]
    fn an_outage_that_lasts_is_told_whatever_was_before() {
        let (mut outages, start) = (Outages::default(), Instant::now());
        assert_eq!(outages.failed("refused", start), Tell::Cause);
        assert!(matches!(outages.succeeded(at(start, 1)), Over::Works { .. }));
        let told: Vec<_> = (30..300).filter(|s| outages.failed("refused", at(start, *s)) == Tell::Cause).collect();
        assert_eq!(told, [90]);
        assert!(matches!(outages.succeeded(at(start, 300)), Over::Works { failures: 270, .. }));
    }

    #[test]
    fn many_causes_take_a_bounded_place() {
        let (mut outages, start) = (Outages::default(), Instant::now());
        let told = (0..1000).filter(|i| outages.failed(&format!("cause {i}"), start) != Tell::Nothing).count();
        assert_eq!(told, MOST_CAUSES);
        for i in 0..1000 {
            assert!(outages.is_news(&format!("news {i}"), start));
            assert!(!outages.is_news(&format!("news {i}"), start));
        }
        assert_eq!(outages.causes.len(), MOST_CAUSES);
    }
}
