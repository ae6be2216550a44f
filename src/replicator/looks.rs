//! When an open may go on without comparing the bucket first.
//!
//! A program that is run again and again would list the bucket as often as it writes to it. Its runs count as one: where the host has compared the bucket just before,
//! or has sent something to a name that nobody had taken, what an open has to send is sent at once, and that creation is the comparison. Whoever keeps the database
//! open for longer compares all the same, a moment later (`SOON`). That the name is free says something only as long as nothing was deleted that had been sent to it:
//! one look tells, at an object that was sent before.

use std::time::Duration;

use super::control::State;
use super::database::now_ms;
use super::stamp;

/// How long a comparison counts. Not for long: once nothing is left of what another writer has sent under the next name, as everything was merged, that name is free.
const COMPARED: Duration = Duration::from_secs(300);
/// How often it is asked, while there is something to send, whether the bucket still has what was sent before.
pub(crate) const LOOK_BACK: Duration = Duration::from_secs(60);
/// An open that has left the comparison out makes it after so long.
pub(crate) const SOON: Duration = Duration::from_secs(2);

/// When the processes of this host have looked at the bucket last, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Looks {
    /// The run of the machine that it was in: a power loss may have set the control file back.
    pub(crate) boot: u64,
    /// Nobody else had gone on.
    pub(crate) compared_ms: i64,
    /// What was sent before was there.
    pub(crate) looked_back_ms: i64,
}

impl Looks {
    /// Nobody else has gone on.
    pub(crate) fn compared(&mut self) {
        self.compared_ms = now_ms();
        self.boot = stamp::boot();
    }

    /// What was sent before is there.
    pub(crate) fn looked_back(&mut self) {
        self.looked_back_ms = now_ms();
        self.boot = stamp::boot();
    }

    fn is_within(self, limit: Duration, when_ms: i64) -> bool {
        // A clock that was put back tells nothing.
        let age_ms = u64::try_from(now_ms() - when_ms).unwrap_or(u64::MAX);
        self.boot != 0 && self.boot == stamp::boot() && Duration::from_millis(age_ms) < limit
    }

    /// Whether it was asked just before what the bucket still has: nobody can have sent anything since, and merged and deleted it.
    pub(crate) fn has_just_looked_back(self) -> bool {
        self.is_within(SOON, self.looked_back_ms)
    }
}

/// Whether an open may go on without a comparison: where all is plain, and nobody else can have gone on for long.
pub(crate) fn may_be_left_out(state: &State) -> bool {
    let is_plain = state.acked.is_some()
        && state.attempt.is_none()
        && state.full.is_none()
        && state.full_sent.is_none()
        && state.restored_earlier.is_none()
        && state.adopt.is_none()
        // The store refuses to replace objects.
        && state.fencing == Some(true);
    is_plain && state.looks.is_within(COMPARED, state.looks.compared_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_looked_at_counts_for_a_while_in_one_boot_by_one_clock() {
        let mut looks = Looks::default();
        assert!(!looks.has_just_looked_back() && !looks.is_within(COMPARED, looks.compared_ms));
        looks.compared();
        assert!(!looks.has_just_looked_back() && looks.is_within(COMPARED, looks.compared_ms));
        looks.looked_back();
        assert!(looks.has_just_looked_back());
        assert!(!Looks { boot: looks.boot ^ 1, ..looks }.has_just_looked_back());
        assert!(!Looks { looked_back_ms: looks.looked_back_ms - 60_000, ..looks }.has_just_looked_back());
        // The clock was put back by a day.
        assert!(!Looks { looked_back_ms: looks.looked_back_ms + 86_400_000, ..looks }.has_just_looked_back());
    }
}
