//! As `sql-host`, with a clock for the uploader's schedule that moves only when it is told to: hours pass in seconds.
//!
//! `REPLICATED_TEST_LOG` names the file that log lines go to: a Rust program has a logger of its own.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use replicated::simulated_clock;
use serde_json::{Value, json};

struct Lines(File);

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "replicated" && metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            // A log that cannot be written is no reason to stop.
            let _ = (&self.0).write_all(format!("{} {}\n", record.level(), record.args()).as_bytes());
        }
    }

    fn flush(&self) {}
}

fn main() -> io::Result<()> {
    if let Some(path) = std::env::var_os("REPLICATED_TEST_LOG") {
        log::set_boxed_logger(Box::new(Lines(File::create(path)?))).map_err(io::Error::other)?;
        log::set_max_level(log::LevelFilter::Info);
    }
    simulated_clock::start();
    replicated::register!(rusqlite::ffi).map_err(io::Error::other)?;
    replicated_testkit::serve::serve(|request| match request["op"].as_str() {
        Some("advance") => {
            simulated_clock::advance(Duration::from_millis(request["ms"].as_u64().unwrap_or(0)));
            Some(Value::Null)
        }
        Some("next") => Some(simulated_clock::next_deadline().map_or(Value::Null, |wait| json!(wait.as_millis()))),
        _ => None,
    })
}
