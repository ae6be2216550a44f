//! A status as rows of name and value. The names are an interface: `docs/status.md` is tested against them.

use serde_json::json;

use super::{Status, Uploader};
use crate::types::{TimestampMs, Txid};

/// What a row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing is known, or there is nothing to say.
    Nothing,
    /// A text.
    Text(String),
    /// A number, in the unit that the name ends with.
    Number(u64),
    /// A time.
    Time(TimestampMs),
}

impl Value {
    /// In JSON: null, a string, a number, a time in RFC 3339.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Nothing => serde_json::Value::Null,
            Self::Text(text) => json!(text),
            Self::Number(number) => json!(number),
            Self::Time(at) => json!(at.to_rfc3339()),
        }
    }
}

impl std::fmt::Display for Value {
    /// On one line: `-` for nothing.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("-"),
            Self::Text(text) => f.write_str(&text.replace(['\n', '\r'], " ")),
            Self::Number(number) => number.fmt(f),
            Self::Time(at) => at.fmt(f),
        }
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<TimestampMs> for Value {
    fn from(at: TimestampMs) -> Self {
        Self::Time(at)
    }
}

impl From<Txid> for Value {
    fn from(txid: Txid) -> Self {
        Self::Text(txid.to_string())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nothing, Into::into)
    }
}

/// A name and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The name.
    pub name: &'static str,
    /// What it says.
    pub value: Value,
}

impl Row {
    pub(crate) fn new(name: &'static str, value: impl Into<Value>) -> Self {
        Self { name, value: value.into() }
    }

    /// One that is a text, with `-` for nothing.
    pub(crate) fn of_text((name, text): (&'static str, String)) -> Self {
        Self { name, value: if text == "-" { Value::Nothing } else { Value::Text(text) } }
    }
}

impl Status {
    /// All of it, in the order in which people want to read it.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let row = |name, value: Value| Row { name, value };
        let pid = if let Uploader::Process(pid) = self.uploader { Some(u64::from(pid)).filter(|pid| *pid > 0) } else { None };
        let fencing = self.strong_fencing.map_or("unknown", |is_strong| if is_strong { "strong" } else { "weak" });
        let mut rows = vec![
            row("state", self.state.as_str().into()),
            row("reason", self.reason.into()),
            row("uploader", self.uploader.as_str().into()),
            row("uploader_pid", pid.into()),
            row("local_txid", self.local_txid.map_or_else(|| "0000000000000000".into(), Value::from)),
            row("remote_txid", self.remote_txid.into()),
            row("waiting_commits", self.waiting_commits.into()),
            row("waiting_bytes", self.waiting_bytes.into()),
            row("waiting_since", self.waiting_since.into()),
            row("lag_ms", u64::try_from(self.lag.as_millis()).unwrap_or(u64::MAX).into()),
            row("durability", self.durability.as_str().into()),
            row("max_lag_ms", u64::try_from(self.max_lag.as_millis()).unwrap_or(u64::MAX).into()),
            row("last_success", self.last_success.into()),
            row("last_error", self.last_error.clone().into()),
            row("last_error_time", self.last_error_time.into()),
            row("advice", self.advice.into()),
            row("uploads", self.uploads.into()),
            row("snapshots", self.snapshots.into()),
            row("last_snapshot", self.last_snapshot.into()),
            row("last_snapshot_reason", self.last_snapshot_reason.into()),
            row("requests", self.counts.requests().into()),
            row("requests_failed", self.counts.failed_requests().into()),
            row("bytes_sent", self.counts.sent_bytes.into()),
            row("bytes_received", self.counts.received_bytes.into()),
            row("wal_bytes", self.wal_bytes.into()),
            row("spool_bytes", self.spool_bytes.into()),
            row("spool_files", self.spool_files.into()),
            row("max_local_bytes", self.max_local_bytes.into()),
            row("fencing", fencing.into()),
            row("last_maintenance", self.last_maintenance.into()),
            row("maintenance_error", self.maintenance_error.clone().into()),
            row("bucket_bytes", self.bucket_bytes.into()),
            row("replica", self.replica.clone().into()),
        ];
        rows.extend(self.more.iter().cloned());
        rows
    }
}

/// `{"database":"/srv/app.db","replicas":[{"replica_number":1,"state":"idle",...},...]}`, on one line, in the order of the rows.
#[must_use]
pub fn as_json(replicas: &[Status]) -> String {
    let database = replicas.first().map(|status| status.database.to_string_lossy().into_owned());
    let objects: Vec<String> = replicas
        .iter()
        .map(|status| {
            let number = Row::new("replica_number", u64::from(status.number));
            let members: Vec<String> =
                std::iter::once(number).chain(status.rows()).map(|row| format!("{}:{}", json!(row.name), row.value.to_json())).collect();
            format!("{{{}}}", members.join(","))
        })
        .collect();
    format!("{{\"database\":{},\"replicas\":[{}]}}", json!(database), objects.join(","))
}
