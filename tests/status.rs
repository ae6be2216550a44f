//! What a connection is told of its database's replication, in each of the forms in which it can ask.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{Db, Host, Program, Row, eventually, uri};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::place::Place;
use replicated_testkit::s3::Server;
use serde_json::{Value, json};

const TABLE: &str = "SELECT schema, replica, name, value FROM replicated_status";

/// What the table says of one replica of one database.
fn table(host: &mut Host, db: Db, schema: &str, replica: u64) -> BTreeMap<String, Value> {
    let of = |row: &Row| row[0] == schema && row[1] == replica;
    let rows = host.query(db, TABLE);
    rows.into_iter().filter(of).map(|row| (row[2].as_str().unwrap().to_owned(), row[3].clone())).collect()
}

fn value(host: &mut Host, db: Db, name: &str) -> Value {
    host.value(db, &format!("SELECT value FROM replicated_status WHERE name = '{name}'"))
}

/// A place whose store can go away.
fn behind_a_proxy() -> (Place, Server, Proxy) {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let mut bucket = Bucket::s3(&server, "app");
    bucket.url = format!("{}?endpoint={}", bucket.url.split('?').next().unwrap(), proxy.endpoint());
    (Place::with(tempfile::tempdir().unwrap(), bucket, None), server, proxy)
}

#[test]
fn all_forms_say_the_same() {
    for program in [Program::Python, Program::Rust] {
        let place = Place::in_folder();
        let mut worker = place.first("WAL", program);
        worker.write("one");
        let txid = worker.sync();
        let (host, db) = (&mut worker.host, worker.db);
        eventually("it is idle", || host.status(db, "state") == "idle");

        let rows = table(host, db, "main", 1);
        let lines = host.value(db, "PRAGMA replicated_status").as_str().unwrap().to_owned();
        assert_eq!(host.value(db, "SELECT replicated_status()"), lines);
        let names: Vec<&str> = lines.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(names.len(), rows.len());
        for (name, line) in names.iter().zip(lines.lines()) {
            let text = match &rows[*name] {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(line, format!("{name} {text}"));
        }
        let json: Value = serde_json::from_str(host.value(db, "SELECT replicated_status('json')").as_str().unwrap()).unwrap();
        assert_eq!(json["database"], place.path().to_str().unwrap());
        assert_eq!(json["replicas"].as_array().unwrap().len(), 1);
        let mut object = json["replicas"][0].as_object().unwrap().clone();
        assert_eq!(object.remove("replica_number"), Some(json!(1)));
        assert_eq!(object.into_iter().collect::<BTreeMap<_, _>>(), rows);
        assert_eq!(host.value(db, "PRAGMA replicated_status='json'"), host.value(db, "SELECT replicated_status('json')"));

        assert_eq!((rows["state"].as_str(), rows["reason"].as_str()), (Some("idle"), None));
        assert_eq!((&rows["local_txid"], &rows["remote_txid"]), (&json!(txid), &json!(txid)));
        assert_eq!(
            (rows["lag_ms"].as_u64(), rows["waiting_commits"].as_u64(), rows["waiting_bytes"].as_u64()),
            (Some(0), Some(0), Some(0))
        );
        assert_eq!((&rows["waiting_since"], &rows["last_error"], &rows["advice"]), (&Value::Null, &Value::Null, &Value::Null));
        assert_eq!((rows["uploader"].as_str(), rows["uploader_pid"].as_u64().is_some()), (Some("process"), true));
        assert_eq!((rows["snapshots"].as_u64(), rows["last_snapshot_reason"].as_str()), (Some(1), Some("first")));
        assert_eq!(rows["replica"], place.bucket.url.as_str());
        assert_eq!((rows["durability"].as_str(), rows["spool_files"].as_u64()), (Some("local"), Some(0)));
        assert!(rows["wal_bytes"].as_u64().unwrap() > 0);
        let sent: u64 = place.bucket.list().iter().map(|file| file.size_bytes).sum();
        assert_eq!(rows["bytes_sent"].as_u64(), Some(sent));
        assert!(rows["requests"].as_u64().unwrap() >= rows["uploads"].as_u64().unwrap() + 2);
        worker.leave();
    }
}

#[test]
fn the_table_can_be_asked_for_one_item_and_joined_and_put_into_a_view() {
    let place = Place::in_folder();
    let mut worker = place.first("WAL", Program::Python);
    let (host, db) = (&mut worker.host, worker.db);
    assert_eq!(value(host, db, "lag_ms"), 0);
    assert_eq!(host.value(db, "SELECT value >= 0 AND typeof(value) = 'integer' FROM replicated_status WHERE name = 'max_lag_ms'"), 1);
    host.run(db, "CREATE TEMP VIEW behind AS SELECT schema FROM replicated_status WHERE name = 'waiting_commits' AND value > 0");
    assert_eq!(host.value(db, "SELECT count(*) FROM behind"), 0);
    let twice = "SELECT count(*) FROM replicated_status a JOIN replicated_status b USING (schema, replica, name) WHERE a.value IS b.value";
    let rows = host.value(db, "SELECT count(*) FROM replicated_status");
    assert_eq!(host.value(db, twice), rows);
    assert!(host.try_query(db, "INSERT INTO replicated_status VALUES ('main', 1, 'state', 'idle')").is_err());
    worker.leave();
}

#[test]
fn every_connection_has_them_and_where_nothing_is_replicated_they_say_nothing() {
    for program in [Program::Python, Program::Rust] {
        let place = Place::in_folder();
        let mut worker = place.first("WAL", program);
        let plain = place.dir.path().join("plain.db");
        let other = worker.host.open(&uri(&plain, &[]));
        assert_eq!(worker.host.query(other, TABLE), Vec::<Row>::new());
        assert_eq!(worker.host.value(other, "SELECT replicated_status()"), Value::Null);
        assert_eq!(worker.host.value(other, "SELECT replicated_status('json', 'main')"), Value::Null);
        assert_eq!(worker.host.value(other, "SELECT replicated_last_error()"), Value::Null);
        // Attached to it, it is one of two databases.
        worker.host.query(other, &format!("ATTACH '{}' AS app", place.uri(&[])));
        assert_eq!(
            worker.host.value(other, "SELECT replicated_status('text', 'app')").as_str().unwrap().lines().next(),
            Some("state idle")
        );
        assert_eq!(worker.host.value(other, "SELECT replicated_status()"), Value::Null);
        assert_eq!(table(&mut worker.host, other, "app", 1)["state"], "idle");
        for (sql, why) in [
            ("SELECT replicated_status('xml')", "got \"xml\"; allowed is text or json"),
            ("SELECT replicated_status('json', 'main', 3)", "allowed are two arguments"),
        ] {
            let error = worker.host.try_query(other, sql).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        worker.leave();
    }
}

/// One before 3.39 does not tell which databases a connection has: the table has the first one, and the function takes names.
#[test]
fn an_older_sqlite_tells_of_the_first_database_and_of_those_that_are_named() {
    let mut place = Place::in_folder().with_faults();
    place.env.push(("REPLICATED_TEST_SQLITE_VERSION".to_owned(), "3037002".to_owned()));
    let mut worker = place.first("WAL", Program::Faulty);
    let other = replicated_testkit::host::replicated(
        &place.dir.path().join("other.db"),
        &format!("file://{}/other", place.dir.path().display()),
        &[],
    );
    let (host, db) = (&mut worker.host, worker.db);
    host.query(db, &format!("ATTACH '{other}' AS aux"));
    host.run(db, "CREATE TABLE aux.t(x)");
    assert_eq!(host.value(db, "SELECT group_concat(DISTINCT schema) FROM replicated_status"), "main");
    for schema in ["main", "aux"] {
        let text = host.value(db, &format!("SELECT replicated_status('text', '{schema}')"));
        assert!(text.as_str().unwrap().starts_with("state "), "{schema}: {text}");
    }
    worker.leave();
}

#[test]
fn an_outage_is_told_with_what_waits_and_why() {
    let (place, _server, proxy) = behind_a_proxy();
    let mut worker = place.start_with(Program::Python, "", &[("max_lag", "10ms"), ("close_timeout", "10ms")]);
    worker.host.run(worker.db, &format!("PRAGMA journal_mode=WAL; {}", replicated_testkit::place::TABLES));
    worker.sync();
    let local = worker.status("local_txid");
    proxy.set(Mode::Refuse).unwrap();
    for _ in 0..3 {
        worker.write("away");
    }
    let (host, db) = (&mut worker.host, worker.db);
    eventually("it is seen", || host.status(db, "state") == "offline");
    let rows = table(host, db, "main", 1);
    assert_eq!(rows["reason"], "unreachable");
    assert_eq!((&rows["waiting_commits"], &rows["remote_txid"]), (&json!(3), &json!(local)));
    assert!(rows["local_txid"].as_str() > Some(&local));
    assert!(rows["waiting_bytes"].as_u64().unwrap() > 3 * 3000, "{rows:?}");
    assert!(rows["waiting_since"].is_string() && rows["last_error_time"].is_string(), "{rows:?}");
    assert!(rows["last_error"].as_str().unwrap().contains("onnect"), "{rows:?}");
    assert!(rows["requests_failed"].as_u64().unwrap() > 0);
    proxy.set(Mode::Forward).unwrap();
    worker.sync();
    let (host, db) = (&mut worker.host, worker.db);
    eventually("it is over", || host.status(db, "state") == "idle");
    let rows = table(host, db, "main", 1);
    for name in ["reason", "waiting_since", "last_error", "last_error_time", "advice"] {
        assert_eq!(rows[name], Value::Null, "{name}");
    }
    worker.leave();
}

/// A store that answers nothing is no error yet, but what waits becomes older than it may.
#[test]
fn what_waits_for_too_long_is_called_lagging() {
    let (place, _server, proxy) = behind_a_proxy();
    let mut worker = place.start_with(Program::Python, "", &[("max_lag", "10ms"), ("close_timeout", "10ms"), ("ack_timeout", "1h")]);
    worker.host.run(worker.db, &format!("PRAGMA journal_mode=WAL; {}", replicated_testkit::place::TABLES));
    worker.sync();
    proxy.set(Mode::Hang).unwrap();
    worker.write("held");
    let (host, db) = (&mut worker.host, worker.db);
    eventually("it lags", || host.status(db, "state") == "lagging");
    let rows = table(host, db, "main", 1);
    assert_eq!((rows["reason"].as_str(), rows["last_error"].as_str()), (Some("slow"), None));
    assert!(rows["advice"].as_str().unwrap().contains("does not keep up"));
    proxy.set(Mode::Forward).unwrap();
    worker.leave();
}

#[test]
fn when_it_was_sent_last_is_known_to_the_next_process() {
    let place = Place::in_folder();
    let mut worker = place.first("WAL", Program::Python);
    worker.sync();
    let names = ["last_success", "last_snapshot", "last_snapshot_reason"];
    let before = names.map(|name| worker.status(name));
    assert!(before.iter().all(|value| value != "-"), "{before:?}");
    worker.leave();
    let mut worker = place.start(Program::Python);
    assert_eq!(names.map(|name| worker.status(name)), before);
    assert_eq!(worker.status("snapshots"), "0");
    worker.leave();
}

#[test]
fn every_item_and_every_word_is_documented() {
    let page = include_str!("../docs/status.md");
    let place = Place::in_folder();
    let mut worker = place.first("WAL", Program::Rust);
    let (host, db) = (&mut worker.host, worker.db);
    let items: Vec<String> = table(host, db, "main", 1).into_keys().collect();
    let states = replicated::status::State::ALL.map(|state| state.as_str().to_owned());
    let kinds = replicated::store::StoreErrorKind::ALL.map(|kind| kind.as_str().to_owned());
    let missing: Vec<&String> = items.iter().chain(&states).chain(&kinds).filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert!(items.len() > 30 && missing.is_empty(), "not in docs/status.md: {missing:?}");
    worker.leave();
}

#[test]
fn each_of_two_replicas_is_told_of() {
    let place = Place::in_folder();
    let second = format!("file://{}", place.dir.path().join("second").display());
    let mut worker = place.first_with("WAL", Program::Python, "", &[("replica2", second.as_str())]);
    worker.sync();
    let (host, db) = (&mut worker.host, worker.db);
    let (one, two) = (table(host, db, "main", 1), table(host, db, "main", 2));
    assert_eq!((&one["replica"], &two["replica"]), (&json!(place.bucket.url), &json!(second)));
    assert_eq!((&one["wait_for"], two.get("wait_for")), (&json!("both"), None));
    assert_eq!((&one["state"], &two["state"]), (&json!("idle"), &json!("idle")));
    let json: Value = serde_json::from_str(host.value(db, "SELECT replicated_status('json')").as_str().unwrap()).unwrap();
    assert_eq!(json["replicas"][1]["replica"], second.as_str());
    worker.leave();
}
