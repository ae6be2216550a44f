//! As `sql-host`, with a clock for the uploader's schedule that moves only when it is told to: hours pass in seconds.

use std::io;
use std::time::Duration;

use replicated::simulated_clock;
use serde_json::{Value, json};

fn main() -> io::Result<()> {
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
