//! The PRAGMAs of ours.

use std::sync::Arc;
use std::time::Duration;

use crate::replicator::database::Database;

/// What a PRAGMA gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// One value, as SQLite allows an extension's PRAGMA.
    Text(String),
    /// An error with this text.
    Error(String),
}

/// Answers a PRAGMA; `None` where it is SQLite's own business.
pub(crate) fn answer(database: &Arc<Database>, name: &str, value: Option<&str>) -> Option<Answer> {
    match name.to_ascii_lowercase().as_str() {
        "replicated_sync" => Some(sync(database, value)),
        "replicated_status" => Some(Answer::Text(status(database))),
        unknown if unknown.starts_with("replicated") => {
            Some(Answer::Error(format!("unknown PRAGMA {unknown}: there are replicated_status and replicated_sync")))
        }
        _ => None,
    }
}

/// `PRAGMA replicated_sync` waits for `sync_timeout`; `PRAGMA replicated_sync='10s'` for that long.
fn sync(database: &Arc<Database>, value: Option<&str>) -> Answer {
    let limit = match value.map(|text| (text, crate::config::parse_duration(text.trim_matches(['\'', '"'])))) {
        None => database.options.sync_timeout,
        Some((_, Ok(limit))) if limit <= Duration::from_secs(3600) => limit,
        Some((text, _)) => {
            return Answer::Error(format!("replicated_sync: got {text:?}; allowed is a time up to 1h, such as 500ms, 10s or 2m"));
        }
    };
    match database.sync(limit) {
        Ok(txid) => Answer::Text(txid.map(|t| t.to_string()).unwrap_or_default()),
        Err(error) => Answer::Error(format!("replicated_sync: {error}")),
    }
}

/// A line for each item: its name, a blank, its value.
fn status(database: &Arc<Database>) -> String {
    let lines: Vec<String> = database.status().into_iter().map(|(name, value)| format!("{name} {value}")).collect();
    lines.join("\n")
}
