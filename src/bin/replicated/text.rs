//! How sizes, times and results are written.

use std::io::Write;
use std::time::Duration;

use replicated::store::{StoreError, StoreErrorKind};
use replicated::types::TimestampMs;

/// Writes to standard output. A reader that has gone away (`| head`) is no failure.
pub(crate) fn to_stdout(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Writes one JSON document to standard output.
pub(crate) fn to_stdout_json(value: &serde_json::Value) {
    to_stdout(&format!("{value:#}\n"));
}

/// Writes to standard error; where that fails there is nobody left to tell.
pub(crate) fn to_stderr(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Why something failed, and what to do: a store's error has both in its words, and there may be more to find.
pub(crate) fn apart(error: &dyn std::fmt::Display, store: Option<&StoreError>, advice: String, url: &str) -> (String, String) {
    let Some(store) = store else {
        let why = error.to_string();
        // Which bucket it is has been said with what was tried.
        return (why.strip_prefix(url).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&why).to_owned(), advice);
    };
    let advice = if advice.is_empty() { store.advice.to_owned() } else { advice };
    let of_access = matches!(
        store.kind,
        StoreErrorKind::Credentials
            | StoreErrorKind::PermissionDenied
            | StoreErrorKind::NoSuchBucket
            | StoreErrorKind::Unreachable
            | StoreErrorKind::Timeout
            | StoreErrorKind::Protocol
    );
    let more = if of_access { format!("`replicated doctor {url}` looks for the cause") } else { String::new() };
    let advice = [advice, more].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    (store.what(), advice)
}

/// `1.2 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.into_iter().peekable();
    loop {
        match units.next() {
            Some(_) if value >= 1023.95 && units.peek().is_some() => value /= 1024.0,
            unit => return format!("{value:.1} {}", unit.unwrap_or_default()),
        }
    }
}

/// `2026-11-22 13:49:05.448 UTC`.
pub(crate) fn time(at: TimestampMs) -> String {
    at.to_rfc3339().replacen('T', " ", 1).replacen('Z', " UTC", 1)
}

/// `3 minutes ago`.
pub(crate) fn age(at: TimestampMs) -> String {
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    let seconds = (i64::try_from(now_ms).unwrap_or(i64::MAX).saturating_sub(at.0)) / 1000;
    let (count, unit) = match seconds {
        ..0 => return "in the future".to_owned(),
        0..2 => return "just now".to_owned(),
        2..120 => (seconds, "seconds"),
        120..7_200 => (seconds / 60, "minutes"),
        7_200..172_800 => (seconds / 3_600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit} ago")
}

/// `0.12 s` or `3 min 20 s`.
pub(crate) fn elapsed(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{:.2} s", duration.as_secs_f64()) } else { format!("{} min {} s", seconds / 60, seconds % 60) }
}

/// `1 file`, `2 files`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let written = [0, 1023, 1024, 1536, 1 << 20, (1 << 20) - 1, 5 << 30, u64::MAX].map(size);
        assert_eq!(written, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "5.0 GiB", "16384.0 PiB"]);
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(TimestampMs(1_795_355_345_448)), "2026-11-22 13:49:05.448 UTC");
    }
}
