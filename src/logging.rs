//! Where log lines go: by default to the host's `sqlite3_log`.
//!
//! A logger is installed by the loadable extension only, whose copy of the `log` facade is its own. An application that links the library has
//! its own logger, and gets the lines under the target `replicated`.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, OnceLock};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

use crate::config::{LogTarget, Options};
use crate::vfs::{FORKED_WHILE_HELD, SQLITE_NOTICE, SQLITE_WARNING, SqliteApi};

const SQLITE_ERROR: i32 = 1;

static LOGGER: OnceLock<HostLogger> = OnceLock::new();

#[derive(Debug)]
struct HostLogger {
    api: SqliteApi,
    sink: Mutex<Sink>,
}

#[derive(Clone, Debug)]
enum Sink {
    Sqlite,
    Stderr,
    File(Arc<File>),
}

/// Installs the logger of the extension. The first SQLite that loads it gets the lines.
pub(crate) fn install(api: SqliteApi) {
    let logger = LOGGER.get_or_init(|| HostLogger { api, sink: Mutex::new(Sink::Sqlite) });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Applies a database's options; the last one that was opened decides for the process. Does nothing in an application with its own logger.
pub(crate) fn configure(options: &Options) {
    let Some(logger) = LOGGER.get() else { return };
    log::set_max_level(options.log_level);
    let sink = match &options.log {
        LogTarget::Sqlite => Sink::Sqlite,
        LogTarget::Stderr => Sink::Stderr,
        LogTarget::File(path) => match File::options().append(true).create(true).open(path) {
            Ok(file) => Sink::File(Arc::new(file)),
            Err(error) => {
                log::warn!(target: "replicated", "option log: {}: {error}; lines go to sqlite3_log", path.display());
                Sink::Sqlite
            }
        },
    };
    if let Some(mut current) = logger.sink.try_lock_for(FORKED_WHILE_HELD) {
        *current = sink;
    }
}

impl Log for HostLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What the libraries below us log is not the user's business.
        metadata.target() == "replicated"
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = crate::types::TimestampMs(crate::replicator::database::now_ms());
        let stamped = || format!("{now} {:5} replicated: {}\n", record.level(), record.args());
        // No lock of ours is held while something is written: SQLite's log may call back into the application, and a child forked meanwhile
        // would find the lock held for ever.
        let sink = self.sink.try_lock_for(FORKED_WHILE_HELD).map_or(Sink::Sqlite, |sink| sink.clone());
        // A line that cannot be written has nowhere else to go.
        let _ = match sink {
            Sink::Stderr => std::io::stderr().write_all(stamped().as_bytes()),
            Sink::File(file) => (&*file).write_all(stamped().as_bytes()),
            Sink::Sqlite => {
                for piece in pieces(&record.args().to_string()) {
                    self.api.log(sqlite_code(record.level()), &piece);
                }
                Ok(())
            }
        };
    }

    fn flush(&self) {}
}

/// A message in lines that `sqlite3_log` does not cut: it drops what goes beyond 209 bytes, and advice stands at the end.
fn pieces(message: &str) -> Vec<String> {
    const MOST_BYTES: usize = 200;
    let mut pieces = vec!["replicated:".to_owned()];
    for word in message.split(' ') {
        let mut rest = word;
        while let Some(piece) = pieces.last_mut() {
            let room = MOST_BYTES.saturating_sub(piece.len() + 1);
            // A word is cut only where it is too long for a line of its own.
            if rest.len() <= room || room > MOST_BYTES - 20 {
                let cut = (0..=room.min(rest.len())).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or_default();
                let (head, tail) = rest.split_at(cut);
                piece.push(' ');
                piece.push_str(head);
                if tail.is_empty() {
                    break;
                }
                rest = tail;
            }
            pieces.push("replicated: ...".to_owned());
        }
    }
    pieces
}

const fn sqlite_code(level: Level) -> i32 {
    match level {
        Level::Error => SQLITE_ERROR,
        Level::Warn => SQLITE_WARNING,
        _ => SQLITE_NOTICE,
    }
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn a_short_message_is_one_line() {
        assert_eq!(pieces("all is well"), ["replicated: all is well"]);
    }

    #[test]
    fn a_long_message_is_told_to_its_end() {
        let long_word = "ä".repeat(300);
        for message in ["word ".repeat(200), long_word.clone(), format!("a {long_word} z"), "two  blanks".to_owned()] {
            let pieces = pieces(&message);
            assert!(pieces.iter().all(|p| p.len() <= 200), "{pieces:?}");
            let told: Vec<&str> = pieces.iter().map(|p| p.strip_prefix("replicated: ").unwrap()).collect();
            let told: String = told.iter().map(|p| p.strip_prefix("... ").unwrap_or(p)).collect::<Vec<_>>().join("");
            assert_eq!(told.replace(' ', ""), message.replace(' ', ""));
        }
    }
}
