//! The bytes of `lock.json`, as Litestream's leaser writes and reads them, with one field more that it ignores.
//!
//! ```json
//! {"generation":7,"expires_at":"2026-11-22T13:49:05.448Z","owner":"web-1:4711","node":"00c0ffee00c0ffee"}
//! ```

use serde_json::Value;

use crate::types::TimestampMs;

/// What Go writes for no time at all: a lease that has been let go.
const NO_TIME: &str = "0001-01-01T00:00:00Z";
const NO_TIME_MS: i64 = -62_135_596_800_000;

/// A lease, ours or somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Counts those that were taken one after the other.
    pub(crate) generation: i64,
    /// Until when it holds, in milliseconds since the epoch.
    pub(crate) expires_ms: i64,
    /// `<host name>:<process id>`: for people.
    pub(crate) owner: String,
    /// Which replicated database it is on which disk; Litestream has none.
    pub(crate) node: Option<u64>,
}

impl Record {
    /// Reads what any version of Litestream's leaser has written, or this one.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(body).map_err(|error| format!("it is no JSON: {error}"))?;
        let number = |name: &str| value.get(name).and_then(Value::as_i64);
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let expires_ms = match value.get("expires_at") {
            Some(Value::String(text)) => TimestampMs::from_rfc3339(text).map(|time| time.0),
            // Seconds since the epoch, as it was documented once.
            Some(Value::Number(seconds)) => seconds.as_f64().map(|seconds| (seconds * 1000.0) as i64),
            _ => None,
        };
        Ok(Self {
            generation: number("generation").or_else(|| number("token")).unwrap_or_default(),
            expires_ms: expires_ms.ok_or("it does not say until when it holds (expires_at)")?,
            owner: text("owner").unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect(),
            node: text("node").and_then(|node| u64::from_str_radix(node, 16).ok()),
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let expires_at = if self.is_released() { NO_TIME.to_owned() } else { TimestampMs(self.expires_ms).to_rfc3339() };
        let owner = Value::from(self.owner.as_str());
        let node = self.node.map_or_else(String::new, |node| format!(",\"node\":\"{node:016x}\""));
        format!("{{\"generation\":{},\"expires_at\":\"{expires_at}\",\"owner\":{owner}{node}}}", self.generation).into_bytes()
    }

    /// The same, let go: anybody may take it at once.
    pub(crate) fn released(self) -> Self {
        Self { expires_ms: NO_TIME_MS, ..self }
    }

    pub(crate) const fn is_released(&self) -> bool {
        self.expires_ms <= NO_TIME_MS
    }

    /// Who has it and until when, for messages.
    pub(crate) fn describe(&self) -> String {
        let who = if self.owner.is_empty() { "somebody without a name" } else { self.owner.as_str() };
        let node = self.node.map_or_else(|| "another tool".to_owned(), |node| format!("node {node:016x}"));
        format!("{who} ({node}, generation {}) holds it until {}", self.generation, TimestampMs(self.expires_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_read_as_it_was_written() {
        let record = Record { generation: 7, expires_ms: 1_795_000_000_123, owner: "web \"1\":4711".to_owned(), node: Some(0xc0ffee) };
        assert_eq!(Record::parse(&record.encode()), Ok(record.clone()));
        let released = record.released();
        assert_eq!(Record::parse(&released.encode()), Ok(released.clone()));
        assert!(released.is_released());
        let text = String::from_utf8(released.encode()).unwrap();
        assert_eq!(text, r#"{"generation":7,"expires_at":"0001-01-01T00:00:00Z","owner":"web \"1\":4711","node":"0000000000c0ffee"}"#);
    }

    #[test]
    fn litestreams_are_read_in_each_form_it_had() {
        // encoding/json of its struct, with nanoseconds and any zone; and the names that it had before.
        for text in [
            r#"{"generation":3,"expires_at":"2026-11-22T13:49:05.448123456Z","owner":"host:1"}"#,
            r#"{"generation":3,"expires_at":"2026-11-22T14:49:05.448+01:00","owner":"host:1"}"#,
            r#"{"token":3,"expires_at":1795355345.448,"owner":"host:1","more":{"a":[1]}}"#,
        ] {
            let record = Record::parse(text.as_bytes()).unwrap();
            assert_eq!((record.generation, record.owner.as_str(), record.node), (3, "host:1", None), "{text}");
            assert_eq!(record.expires_ms, 1_795_355_345_448, "{text}");
        }
        // Its owner is left out where it is empty, and this is how it lets go on stores without a conditional deletion.
        let bare = Record::parse(br#"{"generation":1,"expires_at":"0001-01-01T00:00:00Z"}"#).unwrap();
        assert!(bare.is_released() && bare.owner.is_empty());
    }

    #[test]
    fn what_is_no_lease_is_none() {
        for text in ["", "lock", "{}", "[]", "null", r#"{"generation":1}"#, r#"{"generation":1,"expires_at":"soon"}"#, "\u{0}\u{1}"] {
            assert!(Record::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
