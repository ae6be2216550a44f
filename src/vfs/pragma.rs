//! The PRAGMAs of ours.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Durability;
use crate::logging::txid_in_words;
use crate::replicator::database::Database;
use crate::replicator::durability::Policy;
use crate::replicator::progress::WaitError;
use crate::replicator::replicas::Replicas;
use crate::status::{Status, as_json};
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
pub(crate) fn answer(replicas: &Replicas, policy: &Policy, name: &str, value: Option<&str>) -> Option<Answer> {
    let bare = value.map(|text| text.trim_matches(['\'', '"']));
    match name.to_ascii_lowercase().as_str() {
        "replicated_sync" => Some(sync(replicas, value)),
        "replicated_wait" => Some(wait(&replicas.first, bare)),
        "replicated_status" => Some(status(replicas, policy, bare)),
        "replicated_durability" => Some(durability(policy, bare)),
        unknown if unknown.starts_with("replicated") => {
            let names = "replicated_durability, replicated_status, replicated_sync and replicated_wait";
            Some(Answer::Error(format!("unknown PRAGMA {unknown}: there are {names}")))
        }
        _ => None,
    }
}

/// `PRAGMA replicated_sync` waits for `sync_timeout`; `PRAGMA replicated_sync='10s'` for that long. With two replicas it waits for both, and tells the first
/// one's TXID.
fn sync(replicas: &Replicas, value: Option<&str>) -> Answer {
    let limit = match value.map(|text| (text, crate::config::parse_duration(text.trim_matches(['\'', '"'])))) {
        None => replicas.first.options.sync_timeout,
        Some((_, Ok(limit))) if limit <= Duration::from_secs(3600) => limit,
        Some((text, _)) => {
            return Answer::Error(format!("replicated_sync: got {text:?}; allowed is a time up to 1h, such as 500ms, 10s or 2m"));
        }
    };
    let deadline = Instant::now() + limit;
    // Both are asked before one is waited for.
    let asked: Vec<_> = replicas.iter().map(|database| (database, database.ask_for_all())).collect();
    let waited = asked.into_iter().map(|(database, sequence)| {
        let rest = deadline.saturating_duration_since(Instant::now()).min(limit);
        let synced = sequence.and_then(|sequence| database.wait_synced(sequence, rest));
        synced.map_err(|error| match error {
            WaitError::Timeout(_, why) => (database, WaitError::Timeout(limit, why)),
            error => (database, error),
        })
    });
    let waited: Vec<Result<Option<Txid>, _>> = waited.collect();
    let failed: Vec<String> = waited
        .iter()
        .filter_map(|waited| waited.as_ref().err())
        .map(|(database, error)| format!("{}{error}", if database.paths.is_second() { "replica2: " } else { "" }))
        .collect();
    if !failed.is_empty() {
        return Answer::Error(format!("replicated_sync: {}", failed.join("; ")));
    }
    let txid = waited.into_iter().next().and_then(Result::ok).flatten();
    Answer::Text(txid.map(|t| t.to_string()).unwrap_or_default())
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
        Err(error) => {
            let at = txid_in_words(database.progress.facts().remote_txid);
            Answer::Error(format!("replicated_wait: {error} (asked for TXID {txid}; the bucket has {at})"))
        }
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

/// What is the connection's, and no replica's.
const OF_CONNECTION: [&str; 2] = ["durability", "max_lag_ms"];

/// In lines without a value; `json`; and `rows` for the table of that name, which wants numbers as numbers and an order.
fn status(replicas: &Replicas, policy: &Policy, form: Option<&str>) -> Answer {
    let statuses: Vec<Status> = replicas.iter().map(|database| database.status(policy)).collect();
    match form.map(str::to_ascii_lowercase).as_deref() {
        None | Some("text") => Answer::Text(lines(&statuses, policy)),
        Some("json") => Answer::Text(as_json(&statuses)),
        Some("rows") => Answer::Text(serde_json::Value::from(rows(&statuses, policy)).to_string()),
        Some(other) => Answer::Error(format!("replicated_status: got {other:?}; allowed is text or json")),
    }
}

/// A line for each item: its name, a blank, its value. Those of the second replica come last, with its name before theirs.
fn lines(statuses: &[Status], policy: &Policy) -> String {
    let mut lines = Vec::new();
    for status in statuses {
        let rows = status.rows().into_iter();
        if status.number == 1 {
            lines.extend(rows.map(|row| format!("{} {}", row.name, row.value)));
            continue;
        }
        lines.push(format!("wait_for {}", policy.wait_for));
        lines.extend(rows.filter(|row| !OF_CONNECTION.contains(&row.name)).map(|row| match row.name {
            "replica" => format!("replica2 {}", row.value),
            name => format!("replica2_{name} {}", row.value),
        }));
    }
    lines.join("\n")
}

/// `[[1,"state","idle"],...]`.
fn rows(statuses: &[Status], policy: &Policy) -> Vec<serde_json::Value> {
    let wait_for = (statuses.len() > 1).then(|| serde_json::json!([1, "wait_for", policy.wait_for.as_str()]));
    let rows = statuses.iter().flat_map(|status| {
        let number = status.number;
        status.rows().into_iter().map(move |row| serde_json::json!([number, row.name, row.value.to_json()]))
    });
    rows.chain(wait_for).collect()
}
