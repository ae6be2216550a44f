//! `replicated restore --follow`.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use replicated::restore::RestoreOptions;
use replicated::restore::follow::{self, Applied, Event, FollowError, FollowOptions, Listener, SHORTEST_PAUSE};
use replicated::store::Store;
use replicated::types::Txid;
use serde_json::{Value, json};

use crate::Failure;
use crate::restore::{Args, Bar, report_json, show_report, skipped};
use crate::text;

/// Restores and follows until it is told to stop.
pub(crate) fn run(args: &Args, store: &dyn Store, output: &Path, every: Duration) -> Result<(), Failure> {
    if every < SHORTEST_PAUSE {
        return Err(Failure::Usage(format!("--every must be {}ms or more", SHORTEST_PAUSE.as_millis())));
    }
    let stop = asked_to_stop().map_err(|error| failed(args, store, output, &error.to_string(), String::new()))?;
    let bar = Bar::new(args.quiet || args.json);
    let check = |path: &Path| {
        bar.checking(args.integrity_check);
        args.integrity_check.run(path)
    };
    let shown = Shown { args, store, output, bar: &bar, started: Instant::now(), txid: Cell::new(None) };
    let restore = RestoreOptions { check: Some(&check), progress: Some(&bar), ..args.options(output) };
    let outcome = follow::follow(store, &FollowOptions { restore, every, listener: &shown }, stop);
    bar.end();
    match outcome {
        Ok(()) => {
            shown.stopped();
            Ok(())
        }
        Err(error) if error.is_empty_bucket() && args.if_replica_exists => {
            skipped(args, &format!("{} has nothing to restore", store.url()))
        }
        Err(error) => Err(failure(args, store, output, &error)),
    }
}

fn failure(args: &Args, store: &dyn Store, output: &Path, error: &FollowError) -> Failure {
    let of_store = if let FollowError::Restore(error) = error { error.store() } else { None };
    let (why, advice) = text::apart(error, of_store, error.advice(), store.url());
    failed(args, store, output, &why, advice)
}

fn failed(args: &Args, store: &dyn Store, output: &Path, why: &str, advice: String) -> Failure {
    let what = format!("cannot follow {} to {}", store.url(), output.display());
    if args.json {
        // As everything else here, a line.
        text::to_stdout(&format!("{}\n", json!({ "status": "error", "what": &what, "why": why, "advice": &advice })));
    }
    Failure::Failed { what, why: why.to_owned(), advice, json: false }
}

/// Ready at the first SIGINT or SIGTERM. The second ends the process at once, which the copy survives like any other death.
fn asked_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    // Threads that are started from now on have them blocked as well.
    signals.thread_block()?;
    let (to, from) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.wait().is_ok() {
            // Nobody listens any more where it is over.
            let _ = to.send(());
            if signals.wait().is_ok() {
                std::process::exit(130);
            }
        }
    })?;
    Ok(async {
        if from.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// Says what happens: as text, or as one JSON document a line.
struct Shown<'a> {
    args: &'a Args,
    store: &'a dyn Store,
    output: &'a Path,
    bar: &'a Bar,
    started: Instant,
    txid: Cell<Option<Txid>>,
}

impl Shown<'_> {
    fn line(&self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        if self.args.json {
            text::to_stdout(&format!("{}\n", json()));
        } else if !self.args.quiet {
            text::to_stdout(&text());
        }
    }

    fn stopped(&self) {
        let txid = self.txid.get();
        let json = || json!({ "status": "stopped", "txid": txid.map(|txid| txid.to_string()) });
        self.line(json, || match txid {
            Some(txid) => format!("Stopped at TXID {txid}; the same command goes on from there\n"),
            None => "Stopped before there was a copy\n".to_owned(),
        });
    }

    fn applied(&self, applied: &Applied) {
        let Applied { txid, timestamp, files, read_bytes, pages, size_pages } = *applied;
        let json = || {
            json!({
                "status": "applied",
                "txid": txid.to_string(),
                "timestamp": timestamp.to_rfc3339(),
                "files": files,
                "read_bytes": read_bytes,
                "pages_written": pages,
                "pages": size_pages,
            })
        };
        self.line(json, || {
            format!(
                "TXID {txid}, {}: {} of {size_pages}, {} in {}\n",
                text::time(timestamp),
                text::count(pages as usize, "page"),
                text::size(read_bytes),
                text::count(files, "file"),
            )
        });
    }
}

impl Listener for Shown<'_> {
    fn tell(&self, event: &Event<'_>) {
        match event {
            Event::Restored(report) => {
                self.bar.end();
                self.txid.set(Some(report.txid));
                if self.args.json {
                    text::to_stdout(&format!("{}\n", report_json(self.args, self.store, self.output, report, self.started)));
                } else {
                    show_report(self.args, self.store, self.output, report, self.started);
                }
            }
            Event::GoesOn { txid } => {
                self.txid.set(Some(*txid));
                let json = || json!({ "status": "goes on", "url": self.store.url(), "output": self.output.to_string_lossy(), "txid": txid.to_string() });
                self.line(json, || format!("{} is at TXID {txid} of {} and goes on from there\n", self.output.display(), self.store.url()));
            }
            Event::Applied(applied) => {
                self.txid.set(Some(applied.txid));
                self.applied(applied);
            }
            Event::Problem(why) => {
                text::to_stderr(&format!("error: {} stays as it is for now\n  why: {why}\n", self.output.display()));
                if self.args.json {
                    text::to_stdout(&format!("{}\n", json!({ "status": "waiting", "why": why })));
                }
            }
            Event::Over => {
                text::to_stderr(&format!("{} goes on\n", self.output.display()));
                if self.args.json {
                    text::to_stdout(&format!("{}\n", json!({ "status": "over" })));
                }
            }
            _ => {}
        }
    }
}
