//! The PRAGMAs of ours.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Durability;
use crate::replicator::database::Database;
use crate::replicator::durability::Policy;
use crate::types::Txid;

/// What a PRAGMA gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// One value, as SQLite allows an extension's PRAGMA.
    Text(String),
    /// An error with this text.
    Error(String),
}

/// Answers a PRAGMA of a connection with that policy; `None` where it is SQLite's own business.
pub(crate) fn answer(database: &Arc<Database>, policy: &Policy, name: &str, value: Option<&str>) -> Option<Answer> {
    let bare = value.map(|text| text.trim_matches(['\'', '"']));
    match name.to_ascii_lowercase().as_str() {
        "replicated_sync" => Some(sync(database, value)),
        "replicated_wait" => Some(wait(database, bare)),
        "replicated_status" => Some(Answer::Text(status(database, policy))),
        "replicated_durability" => Some(durability(policy, bare)),
        unknown if unknown.starts_with("replicated") => {
            let names = "replicated_durability, replicated_status, replicated_sync and replicated_wait";
            Some(Answer::Error(format!("unknown PRAGMA {unknown}: there are {names}")))
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

/// `PRAGMA replicated_wait='000000000000001c'` waits until the bucket has that TXID, and makes no request for it.
fn wait(database: &Arc<Database>, value: Option<&str>) -> Answer {
    let Some(txid) = value.and_then(Txid::from_hex) else {
        let got = value.map_or_else(|| "nothing".to_owned(), |text| format!("{text:?}"));
        return Answer::Error(format!(
            "replicated_wait: got {got}; allowed is a TXID in quotes, 1 to 16 hexadecimal digits and not zero, such as local_txid of replicated_status"
        ));
    };
    match database.wait_txid(txid, database.options.sync_timeout) {
        Ok(newest) => Answer::Text(newest.to_string()),
        Err(error) => Answer::Error(format!("replicated_wait: {error}")),
    }
}

/// `PRAGMA replicated_durability` tells, `PRAGMA replicated_durability=remote` sets what this connection's commits wait for.
fn durability(policy: &Policy, value: Option<&str>) -> Answer {
    if let Some(text) = value {
        let Some(wanted) = Durability::parse(&text.to_ascii_lowercase()) else {
            return Answer::Error(format!("replicated_durability: got {text:?}; allowed is local, bounded or remote"));
        };
        policy.set(wanted);
    }
    Answer::Text(policy.durability().to_string())
}

/// A line for each item: its name, a blank, its value.
fn status(database: &Arc<Database>, policy: &Policy) -> String {
    let lines: Vec<String> = database.status(policy).into_iter().map(|(name, value)| format!("{name} {value}")).collect();
    lines.join("\n")
}
