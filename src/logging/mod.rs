//! Where log lines go, and what they look like: by default to the host's `sqlite3_log`.
//!
//! A logger is installed by the loadable extension only, whose copy of the `log` facade is its own. An application that links the library has
//! its own logger, and gets the lines under the target `replicated`, with `event`, `database`, `replica`, `txid` and `cause` as key-values.
//!
//! The logger is a guest: it writes nothing to stdout, waits for nobody, and where a line cannot be written the application goes on.

use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

pub(crate) use event::{Beside, PerProcess, Subject, Unless, bucket_in_words, event, repeated_event, txid_in_words};
use file::{LogFile, Put, TO_SQLITE};
pub use line::log_line;

use crate::config::{LogFormat, LogTarget, Options};
use crate::vfs::{FORKED_WHILE_HELD, SQLITE_NOTICE, SQLITE_WARNING, SqliteApi};

mod event;
mod file;
mod line;
pub(crate) mod repeats;
#[cfg(test)]
mod tests;

const SQLITE_ERROR: i32 = 1;

static LOGGER: OnceLock<HostLogger> = OnceLock::new();

#[derive(Debug)]
struct HostLogger {
    api: SqliteApi,
    to: Mutex<To>,
}

/// What the database that was opened last has said.
#[derive(Clone, Debug)]
struct To {
    sink: Sink,
    format: LogFormat,
}

#[derive(Clone, Debug)]
enum Sink {
    Sqlite,
    Stderr,
    File(Arc<LogFile>),
}

/// Installs the logger of the extension. The first SQLite that loads it gets the lines.
pub(crate) fn install(api: SqliteApi) {
    let logger = LOGGER.get_or_init(|| HostLogger { api, to: Mutex::new(To { sink: Sink::Sqlite, format: LogFormat::Text }) });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Applies a database's options; the last one that was opened decides for the process. Does nothing in an application with its own logger.
pub(crate) fn configure(options: &Options) {
    let Some(logger) = LOGGER.get() else { return };
    log::set_max_level(options.log_level);
    let Some(before) = logger.now() else { return };
    let sink = match &options.log {
        LogTarget::Sqlite => Sink::Sqlite,
        LogTarget::Stderr => Sink::Stderr,
        LogTarget::File(path) => match &before.sink {
            // It knows what was told of it already.
            Sink::File(file) if file.is(path, options.log_max_bytes) => Sink::File(Arc::clone(file)),
            _ => Sink::File(Arc::new(LogFile::new(path, options.log_max_bytes))),
        },
    };
    let format = options.log_format;
    let is_in_vain =
        format == LogFormat::Json && matches!(sink, Sink::Sqlite) && (before.format, before.sink.is_sqlite()) != (format, true);
    let news = if let (Sink::File(file), Sink::File(same)) = (&sink, &before.sink)
        && Arc::ptr_eq(file, same)
    {
        None
    } else if let Sink::File(file) = &sink {
        file.open_now()
    } else {
        None
    };
    if let Some(mut to) = logger.to.try_lock_for(FORKED_WHILE_HELD) {
        *to = To { sink, format };
    }
    if let Some(news) = news {
        event!(Warn, "log_target", PerProcess; "option log: {news}");
    }
    if is_in_vain {
        event!(
            Warn, "log_target", PerProcess;
            "option log_format: SQLite's own log takes short lines of text only, and gets them; for JSON say log=stderr, or a file's absolute path"
        );
    }
}

impl Sink {
    const fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite)
    }
}

impl HostLogger {
    /// No lock of ours is held while something is written: SQLite's log may call back into the application, and a child forked meanwhile
    /// would find the lock held for ever.
    fn now(&self) -> Option<To> {
        self.to.try_lock_for(FORKED_WHILE_HELD).map(|to| to.clone())
    }

    fn to_sqlite(&self, level: Level, message: &str) {
        for piece in pieces(&line::on_one_line(message)) {
            self.api.log(sqlite_code(level), &piece);
        }
    }

    fn to_file(&self, file: &LogFile, format: LogFormat, record: &Record<'_>) {
        match file.put(&line::log_line(record, format)) {
            Put::Written => {}
            Put::Missed { cause } => {
                if let Some(cause) = cause {
                    self.to_sqlite(Level::Warn, &format!("option log: {cause}; {TO_SQLITE}"));
                }
                self.to_sqlite(record.level(), &record.args().to_string());
            }
            Put::WrittenAgain { missed } => {
                event!(Warn, "log_target", PerProcess; "option log: {missed} lines before the last one are missing here: they went to sqlite3_log, as this file could not be written to");
            }
        }
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
        match self.now() {
            Some(To { sink: Sink::Stderr, format }) => to_stderr(line::log_line(record, format).as_bytes()),
            Some(To { sink: Sink::File(file), format }) => self.to_file(&file, format, record),
            Some(To { sink: Sink::Sqlite, .. }) | None => self.to_sqlite(record.level(), &record.args().to_string()),
        }
    }

    fn flush(&self) {}
}

/// Without the lock of Rust's own stderr, which a forked child may find held.
fn to_stderr(mut line: &[u8]) {
    let stderr = std::io::stderr();
    while !line.is_empty() {
        match rustix::io::write(stderr.as_fd(), line) {
            Ok(0) => return,
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            // A line that cannot be written has nowhere else to go.
            Err(_) => return,
        }
    }
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
