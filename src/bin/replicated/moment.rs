//! Times as people write them.

use jiff::{Span, Zoned};
use parse_datetime::parse_datetime_at_date;
use replicated::types::TimestampMs;

const HOW: &str = "write it as 2026-11-22T13:49:05.448Z, \"2 hours ago\", \"yesterday 14:30\" or \"2026-11-22 14:30\"";

/// Reads a time: RFC 3339, or words and dates as GNU `date` understands them, in the zone of `now`.
///
/// Words that lead into the future are refused: who restores means the past, and `14:30` or `monday` are also the next ones.
pub(crate) fn parse(text: &str, now: &Zoned) -> Result<TimestampMs, String> {
    let text = text.trim();
    if let Some(at) = TimestampMs::from_rfc3339(text) {
        return Ok(at);
    }
    // GNU `date` takes nothing at all for midnight, and a number for an hour of today.
    if text.is_empty() || text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("that is no time: {HOW}"));
    }
    let far = || "that is too far away".to_owned();
    // To GNU `date` only the last part of "1 hour 30 minutes ago" is ago.
    let is_ago = text.starts_with('-') || text.to_ascii_lowercase().ends_with("ago");
    let at = match text.parse::<Span>() {
        Ok(span) if is_ago => now.checked_add(span).map_err(|_| far())?,
        // To GNU `date` "5m" is five o'clock in some time zone.
        Ok(_) if !text.contains(':') => return Err(format!("that is how long, not when: write \"{text} ago\"")),
        _ => {
            let found = parse_datetime_at_date(now.clone(), text).map_err(|_| format!("that is no time: {HOW}"))?;
            found.into_zoned().ok_or_else(far)?
        }
    };
    if at > *now {
        let shown = at.strftime("%A, %Y-%m-%d %H:%M:%S %Z");
        return Err(format!("that would be {shown}, which is in the future: say which one is meant, such as \"yesterday 14:30\""));
    }
    // What was committed later within the same millisecond is not before that time.
    Ok(TimestampMs(at.timestamp().as_nanosecond().div_euclid(1_000_000).try_into().unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Monday, one hour after noon in Berlin, where summer time has just ended: 26 hours ago it was one o'clock, too.
    fn now() -> Zoned {
        "2026-10-26T13:00:00.750+01:00[Europe/Berlin]".parse().unwrap()
    }

    fn parsed(text: &str) -> Result<String, String> {
        parse(text, &now()).map(TimestampMs::to_rfc3339)
    }

    #[test]
    fn what_people_write_is_understood() {
        for (text, expected) in [
            ("2026-10-26T11:59:05.448Z", "2026-10-26T11:59:05.448Z"),
            ("2026-10-26T12:59:05+01:00", "2026-10-26T11:59:05.000Z"),
            // In the future, and said so exactly that it is taken for it.
            ("2027-01-01T00:00:00Z", "2027-01-01T00:00:00.000Z"),
            ("2026-10-26T11:59:05.4489Z", "2026-10-26T11:59:05.448Z"),
            ("now", "2026-10-26T12:00:00.750Z"),
            ("2 hours ago", "2026-10-26T10:00:00.750Z"),
            ("90 minutes ago", "2026-10-26T10:30:00.750Z"),
            ("1 hour 30 minutes ago", "2026-10-26T10:30:00.750Z"),
            ("-1 hour 30 minutes", "2026-10-26T10:30:00.750Z"),
            ("1 day, 2 hours ago", "2026-10-25T10:00:00.750Z"),
            ("2 Hours Ago", "2026-10-26T10:00:00.750Z"),
            ("10 seconds ago", "2026-10-26T11:59:50.750Z"),
            // Two hours of the clock, one of which came twice.
            ("36 hours ago", "2026-10-25T00:00:00.750Z"),
            ("yesterday 14:30", "2026-10-25T13:30:00.000Z"),
            ("yesterday 01:30", "2026-10-24T23:30:00.000Z"),
            ("  yesterday 14:30:15.250  ", "2026-10-25T13:30:15.250Z"),
            ("today 09:00", "2026-10-26T08:00:00.000Z"),
            ("12:59", "2026-10-26T11:59:00.000Z"),
            ("last friday 18:00", "2026-10-23T16:00:00.000Z"),
            ("2026-10-24 14:30", "2026-10-24T12:30:00.000Z"),
            ("2026-10-24 14:30 UTC", "2026-10-24T14:30:00.000Z"),
            ("2026-10-24", "2026-10-23T22:00:00.000Z"),
            ("@1795355345.448", "2026-11-22T13:49:05.448Z"),
        ] {
            if text.starts_with('@') {
                // Of November, which is still to come.
                assert!(parsed(text).is_err_and(|why| why.contains("future")), "{text}");
            } else {
                assert_eq!(parsed(text).as_deref(), Ok(expected), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_time_or_still_to_come_is_refused() {
        for text in ["", "  ", "14", "20261024", "soon", "before lunch", "2026-13-01", "25:00", "2 hours ago or so"] {
            assert!(parsed(text).is_err_and(|why| why.contains("no time")), "{text}: {:?}", parsed(text));
        }
        for text in ["14:30", "in 2 hours", "tomorrow", "2 hours", "next friday"] {
            assert!(parsed(text).is_err(), "{text}: {:?}", parsed(text));
        }
        for text in ["5m", "2h", "30min", "2 hours", "1d"] {
            assert_eq!(parsed(text).unwrap_err(), format!("that is how long, not when: write \"{text} ago\""));
            assert!(parsed(&format!("{text} ago")).is_ok(), "{text}");
        }
        assert!(parsed("14:30").is_err_and(|why| why.contains("2026-10-26 14:30:00 CET")));
    }
}
