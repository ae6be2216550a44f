//! The other side of [`crate::host::Host`]: a program that does as it is told over its standard input.
//!
//! `REPLICATED_TEST_LOG` names the file that log lines go to: a Rust program has a logger of its own.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, Write};

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::{Value, json};

struct Lines(File);

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "replicated" && metadata.level() <= log::Level::Debug
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            // A log that cannot be written is no reason to stop.
            let _ = (&self.0).write_all(format!("{} {}\n", record.level(), record.args()).as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Logs to the file that `REPLICATED_TEST_LOG` names.
///
/// # Errors
/// Where it cannot be written.
pub fn log_as_told() -> io::Result<()> {
    if let Some(path) = std::env::var_os("REPLICATED_TEST_LOG") {
        let file = File::options().append(true).create(true).open(path)?;
        log::set_boxed_logger(Box::new(Lines(file))).map_err(io::Error::other)?;
        log::set_max_level(log::LevelFilter::Debug);
    }
    Ok(())
}

/// Does what comes until nothing more does. `more` answers what is no matter of SQLite's.
///
/// # Errors
/// Where the pipes fail.
pub fn serve(more: impl Fn(&Value) -> Option<Value>) -> io::Result<()> {
    log_as_told()?;
    let mut connections = HashMap::new();
    let mut opened = 0_u64;
    for line in io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = match more(&request).map_or_else(|| carry_out(&request, &mut connections, &mut opened), Ok) {
            Ok(answer) => json!({"ok": answer}),
            Err(error) => json!({"error": error.to_string()}),
        };
        writeln!(io::stdout(), "{answer}")?;
    }
    Ok(())
}

fn carry_out(request: &Value, connections: &mut HashMap<u64, Connection>, opened: &mut u64) -> rusqlite::Result<Value> {
    let text = |name: &str| request[name].as_str().unwrap_or_default();
    let db = request["db"].as_u64().unwrap_or_default();
    match text("op") {
        "open" => {
            let connection = Connection::open(text("uri"))?;
            connection.busy_timeout(std::time::Duration::from_secs(30))?;
            *opened += 1;
            connections.insert(*opened, connection);
            Ok(json!(*opened))
        }
        "close" => {
            if let Some(connection) = connections.remove(&db) {
                connection.close().map_err(|(_, error)| error)?;
            }
            Ok(Value::Null)
        }
        _ => match connections.get(&db) {
            Some(connection) => query(connection, text("sql")),
            None => Err(rusqlite::Error::InvalidQuery),
        },
    }
}

fn query(connection: &Connection, sql: &str) -> rusqlite::Result<Value> {
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut answer = Vec::new();
    while let Some(row) = rows.next()? {
        let values: rusqlite::Result<Vec<Value>> = (0..columns).map(|i| Ok(shown(row.get_ref(i)?))).collect();
        answer.push(Value::from(values?));
    }
    Ok(answer.into())
}

fn shown(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(blob) => blob.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
    }
}
