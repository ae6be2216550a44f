//! How often an open compares the bucket with what is remembered of it.
//!
//! Each open does, but for those of a program that is run again and again: to list the bucket costs as much as to write to it. Between two comparisons
//! nothing is sent over another history all the same, as creation is conditional and the name of the next batch tells; an object that went from the bucket is found by
//! the next comparison.

use super::control::State;
use super::database::now_ms;
use super::stamp;

/// One comparison is saved up for each of these.
const INTERVAL_MS: i64 = 15_000;
/// So many are saved up at the most.
const BURST: i64 = 4;

/// What was spent of the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Looks {
    /// The run of the machine that it was spent in: a power loss may have set the control file back.
    pub(crate) boot: u64,
    /// Until when it is spent, as it were, in milliseconds since the epoch.
    pub(crate) spent_until_ms: i64,
}

impl Looks {
    /// What is left after one more.
    pub(crate) fn after_one(self) -> Self {
        let now = now_ms();
        let spent = if self.is_of_now(now) { self.spent_until_ms.max(now) } else { now };
        Self { boot: stamp::boot(), spent_until_ms: spent + INTERVAL_MS }
    }

    /// Whether the clock may have been the same then: it is none that counts.
    const fn is_of_now(self, now_ms: i64) -> bool {
        self.spent_until_ms <= now_ms + BURST * INTERVAL_MS
    }

    fn are_spent(self) -> bool {
        let now = now_ms();
        self.boot != 0 && self.boot == stamp::boot() && self.is_of_now(now) && self.spent_until_ms > now + (BURST - 1) * INTERVAL_MS
    }
}

/// Whether an open may go on without a comparison: where all is plain, and comparisons were made just before.
pub(crate) fn may_be_left_out(state: &State) -> bool {
    let is_plain = state.acked.is_some()
        && state.attempt.is_none()
        && state.full.is_none()
        && state.full_sent.is_none()
        && state.restored_earlier.is_none()
        && state.adopt.is_none()
        // The store refuses to replace objects.
        && state.fencing == Some(true);
    is_plain && state.looks.are_spent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_spent_after_a_burst_and_come_back_with_time_another_boot_or_another_clock() {
        let mut looks = Looks::default();
        for _ in 0..BURST {
            assert!(!looks.are_spent());
            looks = looks.after_one();
        }
        assert!(looks.are_spent());
        assert!(!Looks { boot: looks.boot ^ 1, ..looks }.are_spent());
        assert!(!Looks { spent_until_ms: looks.spent_until_ms - INTERVAL_MS, ..looks }.are_spent());
        // The clock was put back by a day: what it said before is worth nothing.
        let from_another_day = Looks { spent_until_ms: looks.spent_until_ms + 86_400_000, ..looks };
        assert!(!from_another_day.are_spent());
        assert!(from_another_day.after_one().spent_until_ms <= looks.spent_until_ms);
    }
}
