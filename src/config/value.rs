//! How the values of options are written: durations, sizes, switches.

use std::time::Duration;

/// Reads `500ms`, `1s`, `5m`, `1h` or `7d`. A number without a unit is refused, because people guess it differently.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let number: u64 = whole(number, text)?;
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(format!("the unit is missing: {text}ms, {text}s, {text}m, {text}h or {text}d")),
        _ => return Err("the unit must be ms, s, m, h or d".to_owned()),
    };
    number.checked_mul(millis_per_unit).map(Duration::from_millis).ok_or_else(|| "the number is too large".to_owned())
}

/// Reads bytes: `4096`, `4096B`, `500MB` (powers of ten) or `64MiB` (powers of two).
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let number: u64 = whole(number, text)?;
    let bytes_per_unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err("the unit must be B, KB, MB, GB, TB, KiB, MiB, GiB or TiB".to_owned()),
    };
    number.checked_mul(bytes_per_unit).ok_or_else(|| "the number is too large".to_owned())
}

/// Reads a whole number.
pub(super) fn count(text: &str) -> Result<u32, String> {
    whole(text, text)
}

/// Reads a switch.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("not a switch".to_owned()),
    }
}

/// Writes a duration as `duration` reads it.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (per_unit, unit) = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")]
        .into_iter()
        .find(|(per_unit, _)| millis >= *per_unit && millis.is_multiple_of(*per_unit))
        .unwrap_or((1, "ms"));
    if millis == 0 { "0s".to_owned() } else { format!("{}{unit}", millis / per_unit) }
}

/// Writes a size as `bytes` reads it.
pub(super) fn show_bytes(bytes: u64) -> String {
    let (shift, unit) = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes >= 1 << shift && bytes.trailing_zeros() >= *shift)
        .unwrap_or((0, "B"));
    format!("{}{unit}", bytes >> shift)
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    (number, unit.trim_start_matches(' '))
}

fn whole<N: std::str::FromStr>(number: &str, text: &str) -> Result<N, String> {
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(if text.starts_with('-') { "it must not be negative" } else { "it must be a whole number" }.to_owned());
    }
    number.parse().map_err(|_| "the number is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(duration("10 s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("5"), Err("the unit is missing: 5ms, 5s, 5m, 5h or 5d".to_owned()));
        for bad in ["", "s", "-1s", "1.5s", "1w", "1sec", "99999999999999999999s", "18446744073709551615h", "٣s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_know_powers_of_two_and_of_ten() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("4096B"), Ok(4096));
        assert_eq!(bytes("500MB"), Ok(500_000_000));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("1gib"), Ok(1 << 30));
        for bad in ["", "MiB", "-1", "1.5GiB", "64M", "64 elephants", "18446744073709551615KiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for millis in [0, 1, 10, 500, 1_000, 1_500, 60_000, 90_000, 3_600_000, 7_200_000] {
            let value = Duration::from_millis(millis);
            assert_eq!(duration(&show_duration(value)), Ok(value));
        }
        for value in [0, 1, 1023, 1024, 8 << 20, 4 << 30, (1 << 40) + 1, 3 << 40] {
            assert_eq!(bytes(&show_bytes(value)), Ok(value));
        }
    }
}
