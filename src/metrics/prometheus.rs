//! Metrics in Prometheus' text format, version 0.0.4: made of statuses, wherever those come from.
//!
//! Names and units follow <https://prometheus.io/docs/practices/naming/>; `docs/metrics.md` lists them and is tested against this.

use std::fmt::{Display, Write};

use super::{BUCKETS_MS, Counts, Durations, Operation};
use crate::replicator::full_state_reasons;
use crate::status::{Outcome, State, Status, Uploader};
use crate::types::{TimestampMs, Txid};

/// What such a text is, in HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// With more replicas than this there are no histograms, which are most of a text: that is made in the memory of the application.
const MOST_WITH_HISTOGRAMS: usize = 250;

/// The metrics of these replicas, as Prometheus reads them.
#[must_use]
pub fn prometheus(statuses: &[Status]) -> String {
    let mut text = Text { out: String::new(), labels: statuses.iter().map(labels_of).collect(), statuses };
    gauges(&mut text);
    counters(&mut text);
    if statuses.len() <= MOST_WITH_HISTOGRAMS {
        histograms(&mut text);
    }
    text.out
}

fn gauges(text: &mut Text<'_>) {
    let flag = |is_so: bool| f64::from(u8::from(is_so));
    text.family("info", "gauge", "Always 1; what the replica is, in labels.", |status, out| {
        let fencing = status.strong_fencing.map_or("unknown", |is_strong| if is_strong { "strong" } else { "weak" });
        let url = escaped(status.replica.as_deref().unwrap_or_default());
        out.labelled(&format!("url=\"{url}\",durability=\"{}\",fencing=\"{fencing}\"", status.durability), 1);
    });
    text.family("state", "gauge", "1 for the state that the replica is in, 0 for the others.", |status, out| {
        for state in State::ALL {
            out.labelled(&format!("state=\"{}\"", state.as_str()), u8::from(state == status.state));
        }
    });
    text.family("uploader_present", "gauge", "Whether a process has the database open and uploads.", |status, out| {
        out.value(u8::from(matches!(status.uploader, Uploader::Process(_))));
    });
    text.family(
        "lag_seconds",
        "gauge",
        "For how long the oldest commit waits that the bucket does not have; 0 where none does.",
        |status, out| {
            out.value(status.lag.as_secs_f64());
        },
    );
    text.family("max_lag_seconds", "gauge", "The option max_lag: from which lag on the state is lagging.", |status, out| {
        out.value(status.max_lag.as_secs_f64());
    });
    text.family("backlog_commits", "gauge", "Transactions that the bucket does not have.", |status, out| out.value(status.waiting_commits));
    text.family(
        "backlog_bytes",
        "gauge",
        "What they take in WAL and spool; all of the file where its full state is due.",
        |status, out| {
            out.value(status.waiting_bytes);
        },
    );
    text.family("local_txid", "gauge", "The TXID with which the bucket will have all that is committed.", |status, out| {
        out.known(status.local_txid.map(Txid::get));
    });
    text.family("remote_txid", "gauge", "The newest TXID that the bucket has.", |status, out| out.known(status.remote_txid.map(Txid::get)));
    text.family("last_success_timestamp_seconds", "gauge", "When something was sent last.", |status, out| out.time(status.last_success));
    text.family("failing", "gauge", "Whether an error stands in the way now.", |status, out| out.value(flag(status.last_error.is_some())));
    text.family("last_error_timestamp_seconds", "gauge", "Since when it does.", |status, out| out.time(status.last_error_time));
    text.family("last_full_state_timestamp_seconds", "gauge", "When the full state was sent last.", |status, out| {
        out.time(status.last_snapshot)
    });
    text.family("last_maintenance_timestamp_seconds", "gauge", "When the bucket was maintained last by the application.", |status, out| {
        out.time(status.last_maintenance);
    });
    text.family("maintenance_failing", "gauge", "Whether the last round of that has failed.", |status, out| {
        out.value(flag(status.maintenance_error.is_some()));
    });
    text.family("verification", "gauge", "1 for what came of verifying the bucket last, 0 for the others.", |status, out| {
        for outcome in Outcome::ALL {
            out.labelled(&format!("outcome=\"{}\"", outcome.as_str()), u8::from(outcome == status.verification.outcome));
        }
    });
    text.family("last_verification_timestamp_seconds", "gauge", "When a verification last came to its end.", |status, out| {
        out.time(status.verification.last);
    });
    text.family("verified_txid", "gauge", "The newest state that was found to restore.", |status, out| {
        out.known(status.verification.txid.map(Txid::get));
    });
    text.family("verified_timestamp_seconds", "gauge", "When it was.", |status, out| out.time(status.verification.at));
    text.family("database_bytes", "gauge", "The size of the database file.", |status, out| {
        out.known(std::fs::metadata(&status.database).ok().map(|metadata| metadata.len()));
    });
    text.family("bucket_bytes", "gauge", "What the files of the bucket took when the application maintained it last.", |status, out| {
        out.known(status.bucket_bytes);
    });
    text.family("wal_bytes", "gauge", "The size of its WAL.", |status, out| out.value(status.wal_bytes));
    text.family("spool_bytes", "gauge", "What waits beside the database because the WAL does not hold it any more.", |status, out| {
        out.value(status.spool_bytes);
    });
    text.family("spool_files", "gauge", "The same in files.", |status, out| out.value(status.spool_files));
    text.family("local_limit_bytes", "gauge", "The option max_local: of what waits there may be half of that.", |status, out| {
        out.known(status.max_local_bytes);
    });
}

fn counters(text: &mut Text<'_>) {
    text.family("uploads_total", "counter", "Batches that were sent.", |status, out| out.value(status.uploads));
    text.family("full_states_total", "counter", "Full states that were sent, by why.", |status, out| {
        for (reason, sent) in full_state_reasons().zip(status.counts.full_states.iter().skip(1)) {
            out.labelled(&format!("reason=\"{reason}\""), sent);
        }
    });
    text.family("request_errors_total", "counter", "Requests to the store that failed.", |status, out| {
        for (operation, errors) in Operation::ALL.iter().zip(status.counts.request_errors) {
            out.labelled(&format!("operation=\"{}\"", operation.as_str()), errors);
        }
    });
    text.family("errors_total", "counter", "The same by what kind of failure it was.", |status, out| {
        for (kind, errors) in &status.counts.errors_by_kind {
            out.labelled(&format!("kind=\"{}\"", kind.as_str()), errors);
        }
    });
    type Counter = (&'static str, &'static str, fn(&Counts) -> u64);
    let plain: [Counter; 6] = [
        ("sent_bytes_total", "Bytes of objects that were sent.", |counts| counts.sent_bytes),
        ("received_bytes_total", "Bytes of objects that were read.", |counts| counts.received_bytes),
        ("retries_total", "Steps of the uploader that failed and are done again.", |counts| counts.retries),
        ("gate_refusals_total", "Times that a writer appended to the WAL because it could not be restarted yet.", |counts| {
            counts.gate_refusals
        }),
        (
            "spool_writes_total",
            "Times that what waited in the WAL, or was committed outside of one, was written into the spool.",
            |counts| counts.spooled,
        ),
        ("unacknowledged_commits_total", "COMMITs that returned an error because the bucket did not have them in time.", |counts| {
            counts.commits_unacknowledged
        }),
    ];
    for (name, help, of) in plain {
        text.family(name, "counter", help, |status, out| out.value(of(&status.counts)));
    }
}

fn histograms(text: &mut Text<'_>) {
    text.family(
        "request_duration_seconds",
        "histogram",
        "How long requests to the store took, those that failed included.",
        |status, out| {
            for (operation, durations) in Operation::ALL.iter().zip(&status.counts.requests) {
                out.histogram(&format!("operation=\"{}\"", operation.as_str()), durations);
            }
        },
    );
    text.family(
        "commit_wait_seconds",
        "histogram",
        "How long COMMITs waited for the bucket (durability bounded or remote).",
        |status, out| {
            out.histogram("", &status.counts.commit_waits);
        },
    );
}

fn labels_of(status: &Status) -> String {
    format!("database=\"{}\",replica=\"{}\"", escaped(&status.database.to_string_lossy()), status.number)
}

/// Within quotes.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

struct Text<'a> {
    out: String,
    /// Of each status.
    labels: Vec<String>,
    statuses: &'a [Status],
}

impl Text<'_> {
    /// All samples of one name, which come together.
    fn family(&mut self, name: &str, kind: &str, help: &str, sample: impl Fn(&Status, &mut Samples<'_>)) {
        // Writing to a string does not fail.
        let _ = write!(self.out, "# HELP replicated_{name} {help}\n# TYPE replicated_{name} {kind}\n");
        for (status, labels) in self.statuses.iter().zip(&self.labels) {
            sample(status, &mut Samples { out: &mut self.out, name, labels });
        }
    }
}

/// Where the samples of one replica go.
struct Samples<'a> {
    out: &'a mut String,
    name: &'a str,
    labels: &'a str,
}

impl Samples<'_> {
    fn value(&mut self, value: impl Display) {
        self.write("", "", value);
    }

    fn labelled(&mut self, more: &str, value: impl Display) {
        self.write("", more, value);
    }

    /// No sample where nothing is known.
    fn known(&mut self, value: Option<u64>) {
        if let Some(value) = value {
            self.value(value);
        }
    }

    fn time(&mut self, at: Option<TimestampMs>) {
        if let Some(TimestampMs(ms)) = at {
            self.value(format_args!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000)));
        }
    }

    fn histogram(&mut self, more: &str, durations: &Durations) {
        let comma = if more.is_empty() { "" } else { "," };
        let bounds = BUCKETS_MS.iter().map(|ms| format!("{}", *ms as f64 / 1000.0)).chain(std::iter::once("+Inf".to_owned()));
        let mut up_to = 0;
        for (bound, count) in bounds.zip(durations.buckets) {
            up_to += count;
            self.write("_bucket", &format!("{more}{comma}le=\"{bound}\""), up_to);
        }
        self.write("_sum", more, durations.sum.as_secs_f64());
        self.write("_count", more, up_to);
    }

    fn write(&mut self, suffix: &str, more: &str, value: impl Display) {
        let comma = if more.is_empty() { "" } else { "," };
        let _ = writeln!(self.out, "replicated_{}{suffix}{{{}{comma}{more}}} {value}", self.name, self.labels);
    }
}
