//! What is told of failures: each cause at once, what goes on as a sum at growing intervals, that it is over, and of a store that works and fails in turn the sum.

use std::time::{Duration, Instant};

use crate::logging::repeats::{More, Schedule};

/// What was told of an outage is not told again of the next ones for so long.
const SUMMARY: Duration = Duration::from_secs(600);
/// A known cause is told again where an outage lasts so long.
const LASTING: Duration = Duration::from_secs(60);
/// Causes beyond this many are not told.
const MOST_CAUSES: usize = 8;

/// The failures of one database.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outages {
    failing_since: Option<Instant>,
    /// Since then.
    failures: u64,
    /// Since something was told.
    more: u64,
    /// When the next sum is due, where something was told since it fails.
    schedule: Option<Schedule>,
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
    /// That it goes on.
    Still {
        more: More,
        /// Since it began.
        failures: u64,
    },
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
        (self.failures, self.more) = (self.failures + 1, self.more + 1);
        let is_told = self.schedule.is_some();
        let room = self.causes.len() < MOST_CAUSES;
        let is_news = match self.causes.iter_mut().find(|(cause, _)| cause == key) {
            Some((_, at)) => {
                // Of this outage something else was told, or nothing yet.
                let is_news = if is_told { *at < since } else { now.saturating_duration_since(*at) >= SUMMARY || now - since >= LASTING };
                if is_news {
                    *at = now;
                }
                is_news
            }
            None if room => {
                self.causes.push((key.to_owned(), now));
                true
            }
            None => false,
        };
        if is_news {
            self.more = 0;
            self.schedule.get_or_insert(Schedule::begin(now)).tells(now);
            return Tell::Cause;
        }
        match self.schedule.as_mut().and_then(|schedule| schedule.is_due(now)) {
            Some(within) => Tell::Still { more: More { times: std::mem::take(&mut self.more), within }, failures: self.failures },
            None => Tell::Nothing,
        }
    }

    /// Something was sent.
    pub(crate) fn succeeded(&mut self, now: Instant) -> Over {
        let Some(since) = self.failing_since.take() else { return Over::Nothing };
        let (failures, is_told) = (std::mem::take(&mut self.failures), self.schedule.take().is_some());
        self.more = 0;
        self.causes.retain(|(_, at)| now.saturating_duration_since(*at) < SUMMARY);
        if is_told {
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
        let still = |times, failures| Tell::Still { more: More { times, within: Duration::from_secs(times) }, failures };
        assert_eq!(told, [Tell::Cause, still(300, 301), still(600, 901), still(900, 1801)]);
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
    fn another_cause_is_told_at_once_and_the_sums_name_the_last_one() {
        let (mut outages, start) = (Outages::default(), Instant::now());
        assert_eq!(outages.failed("refused", start), Tell::Cause);
        assert!(matches!(outages.succeeded(at(start, 1)), Over::Works { .. }));
        // The next outage begins with another cause, and goes over into the one that was told before.
        assert_eq!(outages.failed("no such host", at(start, 100)), Tell::Cause);
        assert_eq!(outages.failed("refused", at(start, 101)), Tell::Cause);
        let changing = |s: u64| outages.failed(["refused", "no such host"][s as usize % 2], at(start, s));
        let told: Vec<_> = (102..100 + 3600).map(changing).filter(|tell| *tell != Tell::Nothing).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told.iter().all(|tell| matches!(tell, Tell::Still { .. })), "{told:?}");
    }

    #[test]
    fn many_causes_take_a_bounded_place() {
        let (mut outages, start) = (Outages::default(), Instant::now());
        let told = (0..1000).filter(|i| outages.failed(&format!("cause {i}"), start) != Tell::Nothing).count();
        assert_eq!(told, MOST_CAUSES);
        assert_eq!(outages.causes.len(), MOST_CAUSES);
    }
}
