//! `replicated status`: what anybody is told of a database who does not have it open, whether processes have it open or none is left.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod built;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use replicated::status::{State, Uploader, look};
use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{Host, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::place::{Place, TABLES, Worker};
use replicated_testkit::s3::Server;
use serde_json::Value;

/// The exit code, and what was written.
fn status(arguments: &[&str]) -> (i32, String, String) {
    let output = built::command(env!("CARGO_BIN_EXE_replicated")).arg("status").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(path: &Path) -> (i32, Value) {
    let (code, out, err) = status(&[path.to_str().unwrap(), "--json"]);
    assert_eq!(out.lines().count(), 1, "{out}{err}");
    (code, serde_json::from_str(&out).unwrap())
}

/// Of the first replica.
fn first(path: &Path) -> (i32, Value) {
    let (code, mut document) = json(path);
    (code, document["replicas"][0].take())
}

/// Everything below a directory: what it is, when it was changed, and what is in it.
fn everything(directory: &Path) -> BTreeMap<PathBuf, (i64, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for item in std::fs::read_dir(directory).unwrap() {
        let path = item.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            all.extend(everything(&path));
        }
        let content = if metadata.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        all.insert(path, (metadata.mtime_nsec(), metadata.ctime_nsec(), content));
    }
    all
}

/// A place whose store can go away.
fn behind_a_proxy() -> (Place, Server, Proxy) {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let mut bucket = Bucket::s3(&server, "app");
    bucket.url = format!("{}?endpoint={}", bucket.url, proxy.endpoint());
    (Place::with(tempfile::tempdir().unwrap(), bucket, None), server, proxy)
}

fn begin(place: &Place, mode: &str) -> Worker {
    let mut worker = place.start_with(Program::Python, "", &[("close_timeout", "10ms")]);
    worker.host.run(worker.db, &format!("PRAGMA journal_mode={mode}; {TABLES}"));
    worker.sync();
    worker
}

#[test]
fn it_says_the_same_from_outside_as_from_inside_and_nobody_notices() {
    let place = Place::in_folder();
    let mut worker = place.first("WAL", Program::Python);
    let mut other = place.start(Program::Python);
    worker.write("one");
    other.write("two");
    worker.sync();
    eventually("it is idle", || worker.status("state") == "idle");
    let inside: Value = serde_json::from_str(worker.host.value(worker.db, "SELECT replicated_status('json')").as_str().unwrap()).unwrap();
    for _ in 0..3 {
        let (code, outside) = json(&place.path());
        assert_eq!((code, &outside["database"]), (0, &inside["database"]));
        let (inside, outside) = (inside["replicas"][0].as_object().unwrap(), outside["replicas"][0].as_object().unwrap());
        // The lease is a process's own.
        let told = inside.iter().filter(|(name, _)| !name.starts_with("lease"));
        for (name, value) in told {
            assert_eq!(Some(value), outside.get(name), "{name}");
        }
        assert_eq!(outside["uploader_pid"], worker.host.id());
    }
    // It still uploads, and the other still knows.
    other.write("three");
    let txid = other.sync();
    assert_eq!((worker.status("uploader_pid"), other.status("uploader_pid")), (worker.host.id().to_string(), worker.host.id().to_string()));
    let (code, text, _) = status(&[place.path().to_str().unwrap()]);
    assert_eq!(code, 0);
    for part in [
        "idle: everything committed is in the bucket",
        &place.bucket.url,
        &format!("TXID {txid}"),
        &format!("process {}", worker.host.id()),
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    worker.leave();
    // The other one has taken over or is about to.
    let (_, after) = first(&place.path());
    assert_ne!(after["uploader"], "not_open");
    other.leave();
    let (code, after) = first(&place.path());
    assert_eq!((code, &after["state"], &after["reason"], &after["uploader"]), (0, &"idle".into(), &"not_open".into(), &"not_open".into()));
    assert_eq!(status(&[place.path().to_str().unwrap(), "--running", "-q"]), (3, String::new(), String::new()));
    place.check();
}

#[test]
fn a_process_that_died_is_noticed_with_what_it_left() {
    for mode in ["WAL", "DELETE"] {
        let (place, _server, proxy) = behind_a_proxy();
        let mut worker = begin(&place, mode);
        let before = worker.status("remote_txid");
        proxy.set(Mode::Refuse).unwrap();
        for _ in 0..5 {
            worker.write("left");
        }
        eventually("it is seen", || worker.status("state") == "offline");
        let (code, outside) = first(&place.path());
        assert_eq!((code, &outside["state"], &outside["waiting_commits"]), (3, &"offline".into(), &5.into()), "{mode}");
        worker.signal("KILL");
        drop(worker);
        let files = everything(place.dir.path());
        let (code, left) = first(&place.path());
        assert_eq!((code, &left["state"], &left["reason"]), (3, &"lagging".into(), &"not_open".into()), "{mode}: {left}");
        assert_eq!((&left["waiting_commits"], &left["remote_txid"]), (&5.into(), &before.as_str().into()), "{mode}: {left}");
        assert!(left["waiting_bytes"].as_u64().unwrap() > 5 * 3000, "{mode}: {left}");
        assert!(left["waiting_since"].is_string() && left["advice"].is_string() && left["last_error"].is_string(), "{mode}: {left}");
        let (_, text, _) = status(&[place.path().to_str().unwrap()]);
        assert!(text.contains("nobody uploads") && text.contains("at least 5 commits") && text.contains("Start the application"), "{text}");
        assert_eq!(everything(place.dir.path()), files, "{mode}: something was written");
        // Whoever opens it and has not read from it knows nothing of that yet.
        let idler = place.start_with(Program::Python, "", &[("close_timeout", "0s")]);
        let (_, left) = first(&place.path());
        // What had been put into one batch or one file counts as one then.
        assert_eq!(
            (&left["uploader"], (1..=5).contains(&left["waiting_commits"].as_u64().unwrap())),
            (&"process".into(), true),
            "{mode}: {left}"
        );
        assert_ne!(left["state"], "idle");
        drop(idler);
        proxy.set(Mode::Forward).unwrap();
        let mut worker = place.start(Program::Python);
        worker.rows();
        worker.sync();
        worker.leave();
        let (code, after) = first(&place.path());
        assert_eq!((code, &after["state"], &after["waiting_commits"]), (0, &"idle".into(), &0.into()), "{mode}: {after}");
        place.check();
    }
}

#[test]
fn a_clean_end_that_could_not_send_all_is_no_less_noticed() {
    let (place, _server, proxy) = behind_a_proxy();
    let mut worker = begin(&place, "WAL");
    proxy.set(Mode::Refuse).unwrap();
    worker.write("left");
    worker.write("left");
    worker.leave();
    let (code, left) = first(&place.path());
    assert_eq!((code, &left["state"], &left["reason"]), (3, &"lagging".into(), &"not_open".into()), "{left}");
    assert_eq!((&left["waiting_commits"], &left["wal_bytes"]), (&2.into(), &0.into()));
    assert!(left["spool_files"].as_u64().unwrap() > 0 || left["waiting_bytes"].as_u64().unwrap() > 0, "{left}");
}

/// Commits that a killed process never told of, and those of a program without the extension, are in the WAL or show in the file.
#[test]
fn what_others_have_written_since_is_noticed() {
    let place = Place::in_folder();
    let mut worker = begin(&place, "WAL");
    worker.write("before");
    worker.sync();
    eventually("it is idle", || worker.status("state") == "idle");
    worker.signal("KILL");
    drop(worker);
    let (code, after) = first(&place.path());
    assert_eq!((code, &after["state"], &after["reason"]), (0, &"idle".into(), &"not_open".into()), "{after}");
    let mut plain = Host::plain(&[]);
    let db = plain.open(place.path().to_str().unwrap());
    for _ in 0..3 {
        plain.query(db, "INSERT INTO t(who, x) VALUES ('plain', randomblob(3000))");
    }
    let (code, after) = first(&place.path());
    assert_eq!((code, &after["state"], &after["waiting_commits"]), (3, &"lagging".into(), &3.into()), "{after}");
    // It takes the WAL with it.
    plain.close(db);
    let (code, after) = first(&place.path());
    assert_eq!((code, &after["state"], &after["reason"]), (3, &"lagging".into(), &"changed_outside".into()), "{after}");
    assert!(after["advice"].as_str().unwrap().contains("Open it with its replica"));
}

#[test]
fn a_writer_that_was_fenced_stays_so_when_it_is_gone() {
    let place = Place::on_server();
    let server = place.server.as_ref().unwrap();
    let mut worker = begin(&place, "WAL");
    let newest = place.bucket.list().iter().map(|file| file.name.max_txid).max().unwrap();
    let folder = server.root().join(server.bucket()).join("app/0000");
    let name = |txid| folder.join(replicated::store::LtxName::level0(txid).file_name());
    std::fs::copy(name(newest), name(newest.next())).unwrap();
    worker.write("meets it");
    eventually("it is found", || worker.status("state") == "fenced");
    for is_open in [true, false] {
        let (code, outside) = first(&place.path());
        assert_eq!((code, &outside["state"], &outside["reason"]), (4, &"fenced".into(), &"another_writer".into()), "{outside}");
        assert!(outside["last_error"].as_str().unwrap().contains("another writer has written TXID"), "{outside}");
        if is_open {
            worker.host.close(worker.db);
        }
    }
}

#[test]
fn all_databases_below_a_directory_are_found() {
    let (fine, bad) = (Place::in_folder(), Place::in_folder());
    let root = tempfile::tempdir().unwrap();
    let mut worker = fine.first_with("WAL", Program::Python, "", &[("replica2", &format!("file://{}/second", root.path().display()))]);
    worker.sync();
    worker.leave();
    begin(&bad, "WAL").leave();
    std::fs::write(root.path().join("no database"), b"").unwrap();
    std::fs::create_dir(root.path().join("empty-replicated")).unwrap();
    let into = |place: &Place, name: &str| {
        // Moved, its times and number stay: a copy would be another file.
        std::fs::rename(place.dir.path(), root.path().join(name)).unwrap();
        root.path().join(name).join("app.db")
    };
    let (fine, bad) = (into(&fine, "fine"), into(&bad, "bad"));
    let all = root.path().to_str().unwrap();
    let (code, text, err) = status(&["--all", all]);
    assert_eq!((code, err.as_str()), (0, ""), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("idle")).count(), 3, "{text}");
    assert!(text.contains(fine.to_str().unwrap()) && text.contains("app.db, replica 2"), "{text}");
    // One is changed by somebody, and one is lost.
    let plain = rusqlite::Connection::open(&bad).unwrap();
    plain.execute_batch("PRAGMA journal_mode=DELETE; CREATE TABLE changed(x)").unwrap();
    plain.close().unwrap();
    std::fs::remove_file(&fine).unwrap();
    let (code, out, err) = status(&["--all", all, "--json"]);
    assert_eq!(code, 3);
    assert!(err.contains("No such file"), "{err}");
    let document: Value = serde_json::from_str(&out).unwrap();
    let states: Vec<_> = document["databases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["replicas"][0]["reason"].clone(), one["error"].is_string()))
        .collect();
    assert_eq!(states, [("changed_outside".into(), false), (Value::Null, true)]);
}

#[test]
fn what_is_not_replicated_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plain.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    let (code, out, err) = status(&[path.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("is not replicated: there is no") && err.contains("plain.db-replicated"), "{err}");
    assert_eq!(status(&[]).0, 2);
    let (code, _, err) = status(&["--all", dir.path().to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (0, ""));
    // Beside it lies what was made for another file.
    let place = Place::in_folder();
    begin(&place, "WAL").leave();
    std::fs::copy(place.path(), place.dir.path().join("copy.db")).unwrap();
    std::fs::rename(place.dir.path().join("copy.db"), place.path()).unwrap();
    let (code, _, err) = status(&[place.path().to_str().unwrap()]);
    assert!(code == 1 && err.contains("belongs to another file"), "{err}");
}

/// To open and close a control file drops the locks that a process has on it: the library does not do that to itself.
#[test]
fn a_process_may_look_at_its_own_database() {
    replicated::register!(rusqlite::ffi).unwrap();
    let place = Place::in_folder();
    let flags = rusqlite::OpenFlags::default() | rusqlite::OpenFlags::SQLITE_OPEN_URI;
    let connection = rusqlite::Connection::open_with_flags(place.uri(&[]), flags).unwrap();
    connection.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x)").unwrap();
    connection.query_row("PRAGMA replicated_sync", [], |_| Ok(())).unwrap();
    // The library's functions are there for whoever has linked it, too.
    let state = "SELECT value FROM replicated_status WHERE name = 'remote_txid'";
    let txid: String = connection.query_row(state, [], |row| row.get(0)).unwrap();
    for _ in 0..3 {
        let inside = look(&place.path()).unwrap();
        assert_eq!((inside.len(), inside[0].remote_txid.unwrap().to_string()), (1, txid.clone()));
        assert_eq!(inside[0].uploader, Uploader::Process(std::process::id()));
        let (code, outside) = first(&place.path());
        assert_eq!((code, &outside["uploader_pid"]), (0, &std::process::id().into()));
    }
    connection.close().unwrap();
    eventually("it is forgotten", || look(&place.path()).unwrap()[0].uploader == Uploader::NotOpen);
    assert_eq!(look(&place.path()).unwrap()[0].state, State::Idle);
}
