//! What a store knows of how it is reached, for whoever looks for what is wrong. Never a secret.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::types::TimestampMs;

/// How a store is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Where requests go: scheme, host, port and what stands before every key. `None` for a folder.
    pub endpoint: Option<String>,
    /// The region that requests are signed for (S3).
    pub region: Option<String>,
    /// What the requests are allowed by. `None` for a folder.
    pub credentials: Option<CredentialsSource>,
    /// What the store's last answer said of the time; `None` before the first one.
    pub clock: Option<ServerClock>,
}

/// Where credentials come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialsSource {
    /// In words, for people.
    pub from: String,
    /// Until when they are good, where that is known.
    pub expires: Option<TimestampMs>,
    /// Whether they are short-lived: a session's.
    pub is_temporary: bool,
    /// Whether they are had anew by themselves before their end.
    pub is_renewed: bool,
}

/// A store's clock beside this machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerClock {
    /// How far the store's is ahead; negative where it is behind.
    pub ahead_ms: i64,
    /// By how much that may be wrong: stores tell whole seconds, and an answer takes its time.
    pub uncertainty_ms: i64,
}

impl ServerClock {
    /// From an answer's `Date`, and from when it was asked for to when it came.
    fn of(date: &str, asked_ms: i64, took: Duration) -> Option<Self> {
        let date_ms = chrono::DateTime::parse_from_rfc2822(date.trim()).ok()?.timestamp_millis();
        let half_ms = i64::try_from(took.as_millis() / 2).unwrap_or(i64::MAX / 4);
        // In the midst of its second.
        Some(Self { ahead_ms: date_ms + 500 - (asked_ms + half_ms), uncertainty_ms: 500 + half_ms })
    }
}

/// What the answers of a store have told.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<Mutex<Facts>>);

#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    clock: Option<ServerClock>,
    credentials_expire: Option<TimestampMs>,
}

impl Told {
    /// An answer had this `Date`.
    pub(super) fn date(&self, date: &str, asked_ms: i64, took: Duration) {
        if let Some(clock) = ServerClock::of(date, asked_ms, took) {
            self.0.lock().clock = Some(clock);
        }
    }

    /// A source of credentials has said until when they are good.
    pub(super) fn credentials_expire(&self, at: TimestampMs) {
        self.0.lock().credentials_expire = Some(at);
    }

    /// What is known of how the store is reached, with what was told since.
    pub(super) fn added_to(&self, known: &About) -> About {
        let told = *self.0.lock();
        let mut about = About { clock: told.clock, ..known.clone() };
        if let (Some(credentials), Some(at)) = (&mut about.credentials, told.credentials_expire) {
            credentials.expires = Some(at);
        }
        about
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_compared_within_what_can_be_told() {
        let asked_ms = 784_111_777_000;
        let at = |date: &str, took_ms| ServerClock::of(date, asked_ms, Duration::from_millis(took_ms)).unwrap();
        assert_eq!(at("Sun, 06 Nov 1994 08:49:37 GMT", 200), ServerClock { ahead_ms: 400, uncertainty_ms: 600 });
        assert_eq!(at("Sun, 06 Nov 1994 09:49:37 GMT", 0).ahead_ms, 3_600_500);
        assert_eq!(at("Sun, 06 Nov 1994 08:39:37 GMT", 0).ahead_ms, -599_500);
        assert_eq!(ServerClock::of("today", asked_ms, Duration::ZERO), None);
    }
}
