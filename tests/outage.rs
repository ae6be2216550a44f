//! The bucket refuses, is gone, or hangs: the application's commits go on unhindered, the reason is told once, and replication catches up
//! when the cause is gone, without sending the full state again. Secrets are told nowhere.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::page_compare;

struct Place {
    dir: tempfile::TempDir,
    server: Server,
    proxy: Proxy,
    bucket: Bucket,
}

impl Place {
    fn new() -> Self {
        let server = Server::start().unwrap();
        let proxy = Proxy::start(&server.endpoint()).unwrap();
        let bucket = Bucket::s3(&server, "app");
        Self { dir: tempfile::tempdir().unwrap(), server, proxy, bucket }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn host(&self) -> Host {
        Host::start(Program::Python, &self.bucket.through(&self.proxy.endpoint()).env)
    }

    fn open(&self, host: &mut Host, more: &[(&str, &str)]) -> Db {
        let log = self.dir.path().join("log");
        let mut options =
            vec![("log", log.to_str().unwrap()), ("sync_interval", "10ms"), ("connect_timeout", "500ms"), ("request_timeout", "1s")];
        options.extend_from_slice(more);
        let db = host.open(&host::replicated(&self.path(), &self.bucket.url, &options));
        host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x)");
        db
    }

    fn bucket_is_the_database(&self) {
        let restored = self.dir.path().join("restored.db");
        self.bucket.restore(&restored);
        page_compare(&flattened(&self.path(), self.dir.path()), &restored).unwrap();
    }

    /// Everything that we leave on the disk or show.
    fn tells_no_secret(&self, shown: &str) {
        let mut text = self.log() + shown;
        for entry in std::fs::read_dir(format!("{}-replicated", self.path().display())).unwrap() {
            text.push_str(&String::from_utf8_lossy(&std::fs::read(entry.unwrap().path()).unwrap()));
        }
        for secret in [self.server.secret_key(), "wrong-secret"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

fn write(host: &mut Host, db: Db, commits: usize) {
    for _ in 0..commits {
        host.run(db, "INSERT INTO t(x) VALUES (randomblob(1500))");
    }
}

fn errors(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("ERROR")).collect()
}

/// The network fails in a way, commits go on, and what was missed follows; `existing`: the bucket has a first state already.
fn commits_go_on(mode: Mode, existing: bool) {
    let place = Place::new();
    let mut host = place.host();
    if !existing {
        place.proxy.set(mode).unwrap();
    }
    let db = place.open(&mut host, &[]);
    if existing {
        write(&mut host, db, 10);
        host.sync(db);
        place.proxy.set(mode).unwrap();
    }
    // More than SQLite's threshold for checkpoints, so that the WAL restarts meanwhile.
    write(&mut host, db, 1500);
    eventually("a reason in the status", || host.status(db, "state") == "offline");
    let reason = host.status(db, "last_error");
    assert_ne!(reason, "-");
    write(&mut host, db, 1500);
    let shown = host.value(db, "PRAGMA replicated_status").to_string();
    place.tells_no_secret(&shown);
    let log = place.log();
    assert!((1..=4).contains(&errors(&log).len()), "{log}");
    assert!(log.len() < 20_000, "{log}");
    let wal_bytes = std::fs::metadata(format!("{}-wal", place.path().display())).unwrap().len();
    assert!(wal_bytes < 32 << 20, "the WAL has grown to {wal_bytes} bytes");

    place.proxy.set(Mode::Forward).unwrap();
    eventually("replication goes on", || {
        let _ = host.try_query(db, "PRAGMA replicated_sync='10s'");
        host.status(db, "state") == "idle"
    });
    assert_eq!(host.status(db, "last_error"), "-");
    place.bucket_is_the_database();
    write(&mut host, db, 10);
    host.sync(db);
    place.bucket_is_the_database();
    assert!(place.log().contains("works again"), "{}", place.log());
    assert_eq!(place.bucket.full_states(), 1, "{}", place.log());
    host.close(db);
    place.bucket_is_the_database();
}

#[test]
fn a_refused_connection() {
    commits_go_on(Mode::Refuse, true);
}

#[test]
fn a_refused_connection_from_the_start() {
    commits_go_on(Mode::Refuse, false);
}

#[test]
fn an_endpoint_that_hangs() {
    commits_go_on(Mode::Hang, true);
}

#[test]
fn an_endpoint_that_hangs_from_the_start() {
    commits_go_on(Mode::Hang, false);
}

#[test]
fn answers_that_are_cut_off() {
    commits_go_on(Mode::Cut { after_bytes: 20 }, true);
}

/// The store answers, and says no. The reason is told once, with what to do, and neither commits nor the close suffer.
fn refused(place: &Place, bucket: &Bucket, told: &[&str]) {
    let mut host = Host::start(Program::Python, &bucket.env);
    let log = place.dir.path().join("log");
    let uri = host::replicated(&place.path(), &bucket.url, &[("log", log.to_str().unwrap()), ("close_timeout", "100ms")]);
    let db = host.open(&uri);
    host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    write(&mut host, db, 300);
    eventually("a reason in the status", || host.status(db, "state") == "offline");
    let error = host.try_query(db, "PRAGMA replicated_sync='2s'").unwrap_err();
    write(&mut host, db, 300);
    let text = host.status(db, "last_error") + &error;
    for word in told {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_eq!(errors(&place.log()).len(), 1, "{}", place.log());
    place.tells_no_secret(&text);
    host.close(db);
    host.quit();
    // The cause is gone at the next open.
    let mut host = Host::start(Program::Python, &place.bucket.env);
    let db = place.open(&mut host, &[]);
    host.sync(db);
    host.close(db);
    place.bucket_is_the_database();
    assert_eq!(place.bucket.full_states(), 1);
}

#[test]
fn wrong_credentials() {
    let place = Place::new();
    let mut bucket = place.bucket.clone();
    for (name, value) in &mut bucket.env {
        if name == "AWS_SECRET_ACCESS_KEY" {
            *value = "wrong-secret".to_owned();
        }
    }
    refused(&place, &bucket, &["403"]);
}

#[test]
fn no_such_bucket() {
    let place = Place::new();
    let bucket = Bucket { url: "s3://nowhere/app".to_owned(), env: place.bucket.env.clone() };
    refused(&place, &bucket, &["nowhere"]);
}

/// The last close waits as long as it may and no longer; the next open goes on from what was spooled.
#[test]
fn a_close_without_a_bucket_spools() {
    for mode in [Mode::Refuse, Mode::Hang] {
        let place = Place::new();
        let mut host = place.host();
        let db = place.open(&mut host, &[("close_timeout", "300ms")]);
        write(&mut host, db, 50);
        host.sync(db);
        place.proxy.set(mode).unwrap();
        let mut db = db;
        for _ in 0..3 {
            write(&mut host, db, 50);
            let before = Instant::now();
            host.close(db);
            let took = before.elapsed();
            // Far from the request's own time and the backoff's, and far from an exact time.
            assert!(took.as_secs() < 10, "{mode:?}: the close took {took:?}");
            assert!(!Path::new(&format!("{}-wal", place.path().display())).exists());
            db = place.open(&mut host, &[("close_timeout", "300ms")]);
        }
        host.kill();
        place.proxy.set(Mode::Forward).unwrap();
        let mut host = place.host();
        let db = place.open(&mut host, &[]);
        host.sync(db);
        place.bucket_is_the_database();
        assert_eq!(place.bucket.full_states(), 1, "{}", place.log());
        host.close(db);
    }
}

/// Nobody has read anything yet when the flush is asked for.
#[test]
fn what_was_spooled_is_sent_without_a_new_commit() {
    let place = Place::new();
    let mut host = place.host();
    let db = place.open(&mut host, &[("close_timeout", "0ms")]);
    write(&mut host, db, 50);
    host.sync(db);
    place.proxy.set(Mode::Refuse).unwrap();
    write(&mut host, db, 50);
    host.close(db);
    place.proxy.set(Mode::Forward).unwrap();
    let db = host.open(&host::replicated(&place.path(), &place.bucket.url, &[]));
    host.sync(db);
    place.bucket_is_the_database();
    assert_eq!(place.bucket.full_states(), 1);
}

/// The user's limit of local disk: what waits is given up instead, and the full state is sent when the bucket is back.
#[test]
fn an_outage_beyond_the_disk_limit_costs_the_full_state() {
    let place = Place::new();
    let mut host = place.host();
    let db = place.open(&mut host, &[("max_local", "1MiB")]);
    write(&mut host, db, 50);
    host.sync(db);
    place.proxy.set(Mode::Refuse).unwrap();
    write(&mut host, db, 4000);
    let spooled: u64 = std::fs::read_dir(format!("{}-replicated", place.path().display()))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(spooled < 4 << 20, "{spooled} bytes are kept");
    assert!(place.log().contains("max_local"), "{}", place.log());
    place.proxy.set(Mode::Forward).unwrap();
    eventually("replication goes on", || {
        let _ = host.try_query(db, "PRAGMA replicated_sync='10s'");
        host.status(db, "state") == "idle"
    });
    place.bucket_is_the_database();
    assert_eq!(place.bucket.full_states(), 2, "{}", place.log());
    assert!(place.log().len() < 40_000, "{}", place.log());
    write(&mut host, db, 10);
    host.close(db);
    place.bucket_is_the_database();
}

/// An older copy put in the database's place is not sent over what the bucket has, and the process does not wear itself out over it.
#[test]
fn an_older_copy_in_its_place_stops_replication_and_harms_nobody() {
    let place = Place::new();
    let mut host = place.host();
    let db = place.open(&mut host, &[]);
    write(&mut host, db, 20);
    host.close(db);
    let copy = place.dir.path().join("copy.db");
    std::fs::copy(place.path(), &copy).unwrap();
    let db = place.open(&mut host, &[]);
    write(&mut host, db, 20);
    host.close(db);
    let newest = place.dir.path().join("newest.db");
    place.bucket.restore(&newest);
    // In place, so that the file's identity stays.
    std::fs::write(place.path(), std::fs::read(&copy).unwrap()).unwrap();
    let db = place.open(&mut host, &[]);
    write(&mut host, db, 20);
    let error = host.try_query(db, "PRAGMA replicated_sync").unwrap_err();
    assert!(error.contains("diverged") && error.contains("adopt"), "{error}");
    assert_eq!(host.status(db, "state"), "diverged");
    let before = processor_ticks(host.id());
    write(&mut host, db, 300);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let ticks = processor_ticks(host.id()) - before;
    assert!(ticks < 100, "{ticks} ticks of the processor in 1.5 s of idling");
    host.close(db);
    assert_eq!(errors(&place.log()).len(), 1, "{}", place.log());
    let again = place.dir.path().join("again.db");
    place.bucket.restore(&again);
    page_compare(&newest, &again).unwrap();
}

/// Hundredths of a second that a process has used.
fn processor_ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
