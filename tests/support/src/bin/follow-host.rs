//! `replicated restore --follow` that can be told where to die: see `replicated_testkit::follower`. It says what happens as the tool does, and stops at nothing.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use replicated::restore::RestoreOptions;
use replicated::restore::follow::{Event, FollowOptions, Listener, follow};
use replicated::store::{ReplicaUrl, StoreOptions};
use serde_json::{Value, json};

struct Out;

fn say(value: &Value) {
    // Where nobody reads it there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{value}");
}

impl Listener for Out {
    fn tell(&self, event: &Event<'_>) {
        match event {
            Event::Restored(report) => say(&json!({ "status": "restored", "txid": report.txid.to_string() })),
            Event::GoesOn { txid } => say(&json!({ "status": "goes on", "txid": txid.to_string() })),
            Event::Applied(applied) => say(&json!({ "status": "applied", "txid": applied.txid.to_string() })),
            Event::Problem(why) => say(&json!({ "status": "waiting", "why": why })),
            _ => say(&json!({ "status": "over" })),
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, copy] = words.as_slice() else { panic!("the URL and the copy") };
    let url = ReplicaUrl::parse(url).unwrap_or_else(|error| panic!("{error}"));
    let store = replicated::store::open(&url, &StoreOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    let options = FollowOptions { restore: RestoreOptions::latest(Path::new(copy)), every: Duration::from_millis(100), listener: &Out };
    if let Err(error) = follow(&*store, &options, std::future::pending()) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
