//! The two forms of a line: a text for people, a JSON object for programs.

use std::fmt::Write;

use log::Record;
use log::kv::{Error, Key, Value, VisitSource};

use crate::config::LogFormat;
use crate::types::TimestampMs;

/// What a server answers may be long; a line is not.
const MOST_BYTES: usize = 8 << 10;

/// A record as a line of its own, with the end of the line: what `log=stderr` and a file get. For an application with a logger of its own that wants the same.
#[must_use]
pub fn log_line(record: &Record<'_>, format: LogFormat) -> String {
    let now = TimestampMs(crate::replicator::database::now_ms());
    let (message, pid) = (record.args().to_string(), std::process::id());
    match format {
        LogFormat::Text => format!("{now} {:5} replicated[{pid}]: {}\n", record.level(), on_one_line(&message)),
        LogFormat::Json => json(now, record, &message, pid),
    }
}

/// The order is the same in every line, so that people can read them too.
fn json(now: TimestampMs, record: &Record<'_>, message: &str, pid: u32) -> String {
    let mut fields = Fields::default();
    // Collecting texts does not fail.
    let _ = record.key_values().visit(&mut fields);
    // The name of the database is a field of its own.
    let database = fields.0.iter().find(|(key, _)| key == "database").map(|(_, database)| database.as_str()).unwrap_or_default();
    let message =
        message.strip_prefix(database).and_then(|rest| rest.strip_prefix(": ")).filter(|_| !database.is_empty()).unwrap_or(message);
    let mut line = format!("{{\"timestamp\":\"{now}\",\"level\":\"{}\"", record.level().as_str().to_ascii_lowercase());
    let told = fields.0.iter().map(|(key, value)| (key.as_str(), value.as_str())).chain([("message", message)]);
    for (key, value) in told {
        // Nothing fails that writes into a text.
        let _ = write!(line, ",{}:{}", quoted(key), quoted(cut(value)));
    }
    let _ = writeln!(line, ",\"pid\":{pid}}}");
    line
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[derive(Default)]
struct Fields(Vec<(String, String)>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = value.to_string();
        if !value.is_empty() {
            self.0.push((key.to_string(), value));
        }
        Ok(())
    }
}

/// One line an event, whatever a server or a file name has in it: line feeds and other controls are shown as in a program's text.
pub(super) fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in cut(text).chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

fn cut(text: &str) -> &str {
    (0..=MOST_BYTES.min(text.len())).rev().find_map(|at| text.get(..at)).unwrap_or_default()
}
