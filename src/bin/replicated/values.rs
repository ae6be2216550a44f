//! What several commands take as the value of a flag.

use std::ops::RangeInclusive;
use std::time::Duration;

use replicated::config::parse_duration;
use replicated::types::{TimestampMs, Txid};

use crate::moment;

pub(crate) fn txid(text: &str) -> Result<Txid, String> {
    Txid::from_hex(text).ok_or_else(|| "a TXID is 1 to 16 hexadecimal digits and not zero".to_owned())
}

pub(crate) fn timestamp(text: &str) -> Result<TimestampMs, String> {
    moment::parse(text, &jiff::Zoned::now())
}

/// A time that passes.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|why| format!("{why}; allowed is a duration such as 500ms, 10s, 5m or 2h"))
}

/// The same, and no shorter than that.
pub(crate) fn duration_from(shortest: &'static str) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| match (duration(text)?, parse_duration(shortest)?) {
        (given, shortest) if given >= shortest => Ok(given),
        _ => Err(format!("the shortest is {shortest}")),
    }
}

/// A whole number within limits, which the error names.
pub(crate) fn number(allowed: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| allowed.contains(number));
        number.ok_or_else(|| format!("allowed is a whole number from {} to {}", allowed.start(), allowed.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_told_with_what_is_allowed() {
        for text in ["", "many", "-1", "0", "65", "1.5", "0x10"] {
            assert_eq!(number(1..=64)(text).unwrap_err(), "allowed is a whole number from 1 to 64", "{text}");
        }
        assert_eq!(number(1..=64)("64"), Ok(64));
        for text in ["", "5", "soon", "-1s", "5 parsecs"] {
            let why = duration(text).unwrap_err();
            assert!(why.contains("; allowed is a duration such as 500ms"), "{text}: {why}");
        }
        assert_eq!(duration_from("100ms")("0s").unwrap_err(), "the shortest is 100ms");
        assert_eq!(duration_from("100ms")("100ms"), Ok(Duration::from_millis(100)));
    }
}
