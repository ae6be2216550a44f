//! What is told again and again is summed up, at intervals that grow.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::vfs::FORKED_WHILE_HELD;

/// Between what was told and the next sum: after 5, 15, 30 and 60 minutes, then every hour.
const PAUSES: [Duration; 5] =
    [Duration::from_secs(300), Duration::from_secs(600), Duration::from_secs(900), Duration::from_secs(1800), Duration::from_secs(3600)];
/// What has not happened for so long begins anew.
const QUIET: Duration = Duration::from_secs(600);
/// So many different lines are known; of more the one that was told longest ago is forgotten.
const MOST_LINES: usize = 64;

/// When the next sum is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    told: Instant,
    sums: usize,
}

impl Schedule {
    /// Something was told for the first time.
    pub(crate) const fn begin(now: Instant) -> Self {
        Self { told: now, sums: 0 }
    }

    /// Something else was told.
    pub(crate) const fn tells(&mut self, now: Instant) {
        self.told = now;
    }

    /// How long ago the last line was, if a sum is due; the next one is due later than this one was.
    pub(crate) fn is_due(&mut self, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.told);
        let pause = PAUSES.get(self.sums).or(PAUSES.last()).copied().unwrap_or_default();
        (since >= pause).then(|| {
            *self = Self { told: now, sums: self.sums + 1 };
            since
        })
    }
}

/// How often something has happened since it was told last, and how long ago that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct More {
    pub(crate) times: u64,
    pub(crate) within: Duration,
}

/// A text that is left out where it happened once only.
pub(crate) fn in_words(more: Option<More>) -> String {
    more.map_or_else(String::new, |More { times, within }| format!(" ({times} times more in the last {})", duration(within)))
}

/// In one unit, as people say it.
pub(crate) fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        seconds @ 60..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// One thing that may happen with every commit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Repeats(Option<Repeated>);

#[derive(Clone, Copy, Debug)]
struct Repeated {
    schedule: Schedule,
    last: Instant,
    times: u64,
}

impl Repeats {
    /// It happens. `None`: nothing is told of it now. Otherwise that, and how often it was passed over.
    pub(crate) fn happens(&mut self, now: Instant) -> Option<Option<More>> {
        let Some(repeated) = self.0.as_mut().filter(|repeated| now.saturating_duration_since(repeated.last) < QUIET) else {
            self.0 = Some(Repeated { schedule: Schedule::begin(now), last: now, times: 0 });
            return Some(None);
        };
        (repeated.last, repeated.times) = (now, repeated.times + 1);
        repeated.schedule.is_due(now).map(|within| Some(More { times: std::mem::take(&mut repeated.times), within }))
    }
}

/// Lines that may come with every commit, of all databases of the process.
#[derive(Debug)]
struct Lines(Vec<(u64, Repeats)>);

impl Lines {
    fn happens(&mut self, key: u64, now: Instant) -> Option<Option<More>> {
        let at = self.0.iter().position(|(known, _)| *known == key);
        let (_, mut repeats) = at.map_or((key, Repeats::default()), |at| self.0.remove(at));
        if self.0.len() >= MOST_LINES {
            self.0.remove(0);
        }
        let told = repeats.happens(now);
        self.0.push((key, repeats));
        told
    }
}

static LINES: Mutex<Lines> = Mutex::new(Lines(Vec::new()));

/// The same for a line of which nobody keeps account.
pub(crate) fn happens(database: Option<&Path>, event: &str, text: &str) -> Option<Option<More>> {
    let mut key = DefaultHasher::new();
    (database, event, text).hash(&mut key);
    let Some(mut lines) = LINES.try_lock_for(FORKED_WHILE_HELD) else { return Some(None) };
    lines.happens(key.finish(), Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_of_a_day_are_few_and_nothing_is_left_out_of_them() {
        let (start, mut repeats) = (Instant::now(), Repeats::default());
        let happens = |s: u64| repeats.happens(start + Duration::from_secs(s)).map(|more| (s, more.map_or(0, |more| more.times)));
        let told: Vec<_> = (0..24 * 3600).filter_map(happens).collect();
        assert_eq!(told[..6], [(0, 0), (300, 300), (900, 600), (1800, 900), (3600, 1800), (7200, 3600)]);
        assert_eq!(told.len(), 5 + 22);
        assert!(told.windows(2).all(|pair| pair[1].0 - pair[0].0 == pair[1].1), "{told:?}");
    }

    #[test]
    fn after_a_pause_it_is_told_as_if_it_were_new() {
        let (start, mut repeats) = (Instant::now(), Repeats::default());
        let mut at = |s: u64| repeats.happens(start + Duration::from_secs(s));
        assert_eq!((at(0), at(1), at(601)), (Some(None), None, Some(None)));
    }

    #[test]
    fn many_lines_take_a_bounded_place() {
        let (start, mut lines) = (Instant::now(), Lines(Vec::new()));
        for key in 0..1000 {
            assert_eq!((lines.happens(key, start), lines.happens(key, start)), (Some(None), None));
        }
        assert_eq!(lines.0.len(), MOST_LINES);
    }

    #[test]
    fn durations_are_told_in_one_unit() {
        let told = [200, 59_900, 60_000, 600_000, 7_199_000, 7_200_000].map(|ms| duration(Duration::from_millis(ms)));
        assert_eq!(told, ["0.2 s", "59.9 s", "1 min", "10 min", "119 min", "2 h"]);
    }
}
