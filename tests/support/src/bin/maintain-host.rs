//! One round of maintenance that can be told where to die: see `replicated_testkit::maintenance`.

use std::io::Write;
use std::sync::Arc;

use replicated::maintenance::{self, Maintainer};
use replicated::store::{ReplicaUrl, StoreOptions};
use replicated_testkit::maintenance::Order;

fn main() {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let done = serde_json::from_str::<Order>(&argument).map_err(|error| error.to_string()).and_then(|order| {
        let url = ReplicaUrl::parse(&order.url).map_err(|error| error.to_string())?;
        let store = replicated::store::open(&url, &StoreOptions::default()).map_err(|error| error.to_string())?;
        let mut maintainer = Maintainer::new(Arc::clone(&store), order.policy());
        maintenance::maintain(&mut maintainer, order.at()).map_err(|error| error.to_string())
    });
    let mut out = std::io::stdout();
    let (text, code) = match done {
        Ok(report) if report.problems.is_empty() => (format!("{} {}", report.made.len(), report.deleted.len()), 0),
        Ok(report) => (report.problems.join("; "), 1),
        Err(error) => (error, 1),
    };
    // Where nobody reads it there is nobody to tell.
    let _ = writeln!(out, "{text}");
    std::process::exit(code);
}
