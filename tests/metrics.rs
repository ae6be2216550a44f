//! Metrics, as a real Prometheus parser reads them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod built;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::place::{Place, TABLES};
use replicated_testkit::s3::Server;
use replicated_testkit::tools;
use serde_json::Value;

/// Prints what Prometheus' own client library makes of a text.
const PARSER: &str = r#"
import json, sys
from prometheus_client.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.documentation, family.name
    for sample in family.samples:
        print(json.dumps({"family": family.name, "kind": family.type, "name": sample.name, "labels": sample.labels, "value": sample.value}))
"#;

#[derive(Clone, Debug)]
struct Sample {
    family: String,
    kind: String,
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// `None` where the parser is not installed.
fn parsed(text: &str) -> Option<Vec<Sample>> {
    let python = tools::environment()?.join("bin/python3");
    let mut child = Command::new(python).args(["-c", PARSER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "is no text of metrics, or scripts/test-env.sh is to be run again: {text}");
    let sample = |line: &str| {
        let json: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| json[name].as_str().unwrap().to_owned();
        let labels = json["labels"].as_object().unwrap().iter().map(|(label, value)| (label.clone(), value.as_str().unwrap().to_owned()));
        Sample {
            family: text("family"),
            kind: text("kind"),
            name: text("name"),
            labels: labels.collect(),
            value: json["value"].as_f64().unwrap(),
        }
    };
    Some(String::from_utf8(output.stdout).unwrap().lines().map(sample).collect())
}

fn metrics(arguments: &[&str]) -> (i32, String, String) {
    let output = built::command(env!("CARGO_BIN_EXE_replicated")).arg("metrics").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn of(path: &Path) -> Option<Vec<Sample>> {
    let (code, text, err) = metrics(&[path.to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (0, ""));
    parsed(&text)
}

/// The one value with that name and those labels.
#[track_caller]
fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |sample: &&Sample| {
        sample.name == name && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|is| is == value))
    };
    let found: Vec<&Sample> = samples.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0].value
}

#[test]
fn what_was_done_is_counted_and_every_metric_is_documented() {
    let place = Place::in_folder();
    let mut worker = place.start_with(Program::Python, "", &[("durability", "remote")]);
    worker.host.run(worker.db, &format!("PRAGMA journal_mode=WAL; {TABLES}"));
    for _ in 0..5 {
        worker.write("one");
    }
    let Some(samples) = of(&place.path()) else { return };
    for (name, least) in
        [("uploads_total", 5.0), ("sent_bytes_total", 5.0 * 3000.0), ("remote_txid", 7.0), ("commit_wait_seconds_count", 5.0)]
    {
        assert!(value(&samples, &format!("replicated_{name}"), &[]) >= least, "{name}");
    }
    for (name, expected) in
        [("lag_seconds", 0.0), ("backlog_commits", 0.0), ("failing", 0.0), ("uploader_present", 1.0), ("max_lag_seconds", 10.0)]
    {
        assert_eq!(value(&samples, &format!("replicated_{name}"), &[]), expected, "{name}");
    }
    assert_eq!(value(&samples, "replicated_full_states_total", &[("reason", "first")]), 1.0);
    assert_eq!(value(&samples, "replicated_state", &[("state", "idle")]), 1.0);
    assert_eq!(value(&samples, "replicated_info", &[("url", &place.bucket.url), ("durability", "remote")]), 1.0);
    let puts = value(&samples, "replicated_request_duration_seconds_count", &[("operation", "put")]);
    assert_eq!(value(&samples, "replicated_request_duration_seconds_bucket", &[("operation", "put"), ("le", "+Inf")]), puts);
    assert!(puts >= value(&samples, "replicated_uploads_total", &[]) + 2.0);
    assert_eq!(value(&samples, "replicated_database_bytes", &[]), std::fs::metadata(place.path()).unwrap().len() as f64);
    assert!(value(&samples, "replicated_last_success_timestamp_seconds", &[]) > 1.7e9);
    assert!(samples.iter().all(|sample| sample.labels["database"] == place.path().to_str().unwrap() && sample.labels["replica"] == "1"));
    // Buckets grow, and names say what they are.
    for sample in &samples {
        assert_eq!(sample.kind == "counter", sample.name.ends_with("_total"), "{sample:?}");
    }
    let page = include_str!("../docs/metrics.md");
    let families: BTreeSet<(String, &str)> = samples
        .iter()
        .map(|s| {
            (if s.kind == "counter" { format!("{}_total", s.family.trim_end_matches("_total")) } else { s.family.clone() }, s.kind.as_str())
        })
        .collect();
    assert!(families.len() >= 30, "{families:?}");
    for (family, kind) in families {
        assert!(page.contains(&format!("`{family}`")), "{family} ({kind}) is not in docs/metrics.md");
    }
    worker.leave();
}

#[test]
fn failures_are_counted_by_kind_and_seen_when_the_process_is_gone() {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let bucket = Bucket::s3(&server, "app").through(&proxy.endpoint());
    let place = Place::with(tempfile::tempdir().unwrap(), bucket, None);
    let mut worker = place.start_with(Program::Python, "", &[("close_timeout", "10ms")]);
    worker.host.run(worker.db, &format!("PRAGMA journal_mode=WAL; {TABLES}"));
    worker.sync();
    proxy.set(Mode::Refuse).unwrap();
    worker.write("left");
    eventually("it is seen", || worker.status("state") == "offline");
    let Some(samples) = of(&place.path()) else { return };
    assert!(value(&samples, "replicated_errors_total", &[("kind", "unreachable")]) >= 1.0);
    assert!(value(&samples, "replicated_request_errors_total", &[("operation", "put")]) >= 1.0);
    assert!(value(&samples, "replicated_retries_total", &[]) >= 1.0);
    assert_eq!(value(&samples, "replicated_failing", &[]), 1.0);
    worker.signal("KILL");
    drop(worker);
    let Some(samples) = of(&place.path()) else { return };
    assert_eq!((value(&samples, "replicated_uploader_present", &[]), value(&samples, "replicated_backlog_commits", &[])), (0.0, 1.0));
    assert_eq!(value(&samples, "replicated_state", &[("state", "lagging")]), 1.0);
    assert!(value(&samples, "replicated_lag_seconds", &[]) > 0.0);
}

#[test]
fn a_file_for_the_node_exporter_is_replaced_as_a_whole() {
    let place = Place::in_folder();
    // What a path may have in it.
    let odd = place.dir.path().join("it's \"odd\" \\ here");
    std::fs::create_dir(&odd).unwrap();
    let mut worker = place.first("WAL", Program::Python);
    worker.sync();
    worker.leave();
    for name in ["app.db", "app.db-replicated"] {
        std::fs::rename(place.dir.path().join(name), odd.join(name)).unwrap();
    }
    let file = place.dir.path().join("replicated.prom");
    std::fs::write(&file, "the one before").unwrap();
    let (code, out, err) = metrics(&["--all", place.dir.path().to_str().unwrap(), "--textfile", file.to_str().unwrap()]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""));
    let Some(samples) = parsed(&std::fs::read_to_string(&file).unwrap()) else { return };
    assert!(samples.iter().all(|sample| sample.labels["database"] == odd.join("app.db").to_str().unwrap()), "{samples:?}");
    assert_eq!(value(&samples, "replicated_backlog_commits", &[]), 0.0);
    let names: Vec<String> =
        std::fs::read_dir(place.dir.path()).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.ends_with(".tmp")), "{names:?}");
    // What cannot be looked at keeps the others from nothing.
    let (code, out, err) = metrics(&[odd.join("app.db").to_str().unwrap(), "/nowhere/app.db"]);
    assert!(code == 1 && out.contains("replicated_lag_seconds{") && err.contains("/nowhere/app.db"), "{err}");
    let (code, _, err) = metrics(&[odd.join("app.db").to_str().unwrap(), "--textfile", "/nowhere/x.prom"]);
    assert!(code == 1 && err.contains("cannot write /nowhere/x.prom"), "{err}");
}

/// A port that nobody listens at just now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The head and the body of an answer.
fn get(port: u16, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn a_process_answers_for_all_of_its_databases() {
    for program in [Program::Python, Program::Rust] {
        let place = Place::in_folder();
        let address = format!("127.0.0.1:{}", free_port());
        let port = address.rsplit(':').next().unwrap().parse().unwrap();
        let mut worker = place.first_with("WAL", program, "", &[("metrics", &address)]);
        let other = place.dir.path().join("other.db");
        let uri = host::replicated(&other, &format!("file://{}/other", place.dir.path().display()), &[]);
        let second = worker.host.open(&uri);
        worker.host.run(second, "PRAGMA journal_mode=WAL; CREATE TABLE t(x)");
        worker.host.sync(second);
        worker.sync();
        // Those who connect and say nothing keep the uploader from nothing.
        let _silent: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(&address).unwrap()).collect();
        for round in 0..3 {
            worker.write("one");
            let txid = u64::from_str_radix(&worker.sync(), 16).unwrap();
            let (head, body) = get(port, "/metrics");
            assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
            let Some(samples) = parsed(&body) else { return };
            let path = place.path();
            assert_eq!(value(&samples, "replicated_remote_txid", &[("database", path.to_str().unwrap())]), txid as f64, "round {round}");
            assert_eq!(value(&samples, "replicated_backlog_commits", &[("database", other.to_str().unwrap())]), 0.0);
        }
        assert!(get(port, "/elsewhere").0.starts_with("HTTP/1.1 404"));
        assert!(get(port, "/").1.contains("/metrics"));
        // One that is closed is told of no more.
        worker.host.close(second);
        eventually("it is forgotten", || !get(port, "/metrics").1.contains("other.db"));
        worker.leave();
        assert!(TcpStream::connect(&address).is_err());
        place.check();
    }
}

#[test]
fn a_port_that_is_in_use_is_told_and_harms_nothing() {
    let place = Place::in_folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut worker = place.first_with("WAL", Program::Python, "", &[("metrics", &address)]);
    worker.write("one");
    worker.sync();
    let log = place.log();
    assert!(
        log.contains(&format!("option metrics: {address} cannot be listened at")) && log.contains("Give each process a port of its own"),
        "{log}"
    );
    worker.leave();
    let refused = place.start_with(Program::Python, "", &[]).host.try_open(&place.uri(&[("metrics", "9464")])).unwrap_err();
    assert!(refused.contains("unable to open"), "{refused}");
    place.check();
}

/// The child of a fork holds the parent's listener and answers nobody: once the parent has gone the port must be free.
#[test]
fn a_forked_child_does_not_keep_the_port() {
    const SCRIPT: &str = r#"
import os, sqlite3, sys
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
connection = sqlite3.connect(sys.argv[2], uri=True, isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("CREATE TABLE t(x)")
connection.execute("PRAGMA replicated_sync").fetchone()
if os.fork() == 0:
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"#;
    let place = Place::in_folder();
    let port = free_port();
    let uri = place.uri(&[("metrics", &format!("127.0.0.1:{port}"))]);
    let mut command = built::command(host::python());
    command.args(["-c", SCRIPT]).arg(host::extension()).arg(uri).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut parent = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "forked\n");
    assert!(get(port, "/metrics").1.contains("replicated_lag_seconds{"), "the parent does not answer");
    // It goes on until this is closed.
    let child_s_input = parent.stdin.take();
    parent.kill().unwrap();
    parent.wait().unwrap();
    TcpListener::bind(("127.0.0.1", port)).unwrap();
    drop(child_s_input);
}

/// Rules and dashboards that name what is not there would never fire and show nothing.
#[test]
fn the_alerts_and_the_dashboard_name_metrics_that_there_are() {
    let page = include_str!("../docs/metrics.md");
    let dashboard = include_str!("../deploy/grafana/replicated.json");
    let _: Value = serde_json::from_str(dashboard).unwrap();
    let mut named = 0;
    for text in [include_str!("../deploy/prometheus/replicated.rules.yml"), dashboard] {
        for part in text.split("replicated_").skip(1) {
            let rest: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let family = ["_bucket", "_count", "_sum"].iter().fold(rest.as_str(), |name, suffix| name.strip_suffix(suffix).unwrap_or(name));
            assert!(page.contains(&format!("`replicated_{family}`")), "replicated_{rest} is no metric");
            named += 1;
        }
    }
    assert!(named > 25, "{named}");
    // What they are compared with are words of ours.
    let words: Vec<String> = ["idle", "offline", "fenced", "failed"].map(|word| format!("`{word}`")).to_vec();
    assert!(words.iter().all(|word| page.contains(word)));
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/replicated.rules.yml");
    // Prometheus' own tool, where it can be had.
    let promtool = tools::environment().map(|environment| environment.join("promtool/usr/bin/promtool")).filter(|tool| tool.exists());
    if let Ok(output) = Command::new(promtool.unwrap_or_else(|| "promtool".into())).args(["check", "rules", rules]).output() {
        assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
}
