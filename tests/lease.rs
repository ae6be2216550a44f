//! The lease in the bucket: of several hosts one at a time writes to a replica, the next one waits for it, and neither loses a commit.
//!
//! Times to live are short here and nothing is said of how long anything takes: only of what comes before what, and who has the lease.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;

use replicated_testkit::bucket::Bucket;
use replicated_testkit::faulty::{Endpoint, Fault, Kind, Plan};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::rows::{insert, restored, rows, rows_of};
use replicated_testkit::s3::Server;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Short enough to be waited for.
const SHORT: &str = "1s";
/// Never runs out within a test.
const LONG: &str = "10m";

/// A machine with a disk of its own.
struct Machine {
    dir: TempDir,
    bucket: Bucket,
    more: Vec<(String, String)>,
}

impl Machine {
    fn new(bucket: &Bucket, lease: &str, more: &[(&str, &str)]) -> Self {
        let mut all = vec![("restore", "if-missing"), ("sync_interval", "10ms"), ("burst", "100"), ("lease", lease)];
        all.extend_from_slice(more);
        let more = all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { dir: tempfile::tempdir().unwrap(), bucket: bucket.clone(), more }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn uri(&self) -> String {
        let more: Vec<(&str, &str)> = self.more.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        host::replicated(&self.path(), &self.bucket.url, &more)
    }

    fn start(&self) -> Host {
        let mut env = self.bucket.env.clone();
        env.push(("REPLICATED_LOG".to_owned(), self.log_path().display().to_string()));
        Host::start(Program::Python, &env)
    }

    fn open(&self) -> (Host, Db) {
        let mut host = self.start();
        let db = host.open(&self.uri());
        (host, db)
    }

    /// Why it is not opened.
    fn refusal(&self) -> String {
        let mut host = self.start();
        host.try_open(&self.uri()).expect_err("it is refused");
        let log = self.log();
        log.lines().rev().find(|line| line.contains("the database is not opened")).expect(&log).to_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

/// A host that is about to open the database, and cannot yet.
struct Waiting(Host);

impl Waiting {
    fn begin(machine: &Machine) -> Self {
        let mut host = machine.start();
        host.send(&json!({"op": "open", "uri": machine.uri()})).unwrap();
        eventually("it waits", || machine.log().contains("waits for the lease"));
        Self(host)
    }

    fn opened(mut self) -> (Host, Db) {
        let id = self.0.answer().unwrap();
        (self.0, Db::of(id.as_u64().unwrap()))
    }
}

fn begin(host: &mut Host, db: Db) {
    host.run(db, "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER PRIMARY KEY, who TEXT, v BLOB); CREATE TABLE ballast(v BLOB)");
    host.query(db, "INSERT INTO ballast VALUES (randomblob(200000))");
    host.query(db, &insert("first"));
    host.sync(db);
}

/// The lease as it lies in the store.
fn lock_path(server: &Server, path: &str) -> PathBuf {
    server.root().join(server.bucket()).join(path).join("lock.json")
}

fn lock(server: &Server, path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(lock_path(server, path)).unwrap()).unwrap()
}

/// Puts another writer's into the store, as its client would.
fn put_lock(bucket: &Bucket, body: &str) {
    let store = bucket.store();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let found = store.read_lock().await.unwrap().map(|lock| lock.version);
        store.write_lock(body.to_owned().into(), found.as_ref()).await.unwrap();
    });
}

fn in_seconds(seconds: i64) -> String {
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    replicated::types::TimestampMs(i64::try_from(at).unwrap() + seconds * 1000).to_rfc3339()
}

fn signal(host: &Host, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(host.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn snapshots(bucket: &Bucket) -> usize {
    bucket.list().iter().filter(|listed| listed.name.level == replicated::store::SNAPSHOT_LEVEL).count()
}

#[test]
fn a_rolling_deployment_loses_nothing_of_either_side_and_makes_no_snapshot() {
    let server = Server::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, bucket) in [("s3", Bucket::s3(&server, "rolling")), ("folder", Bucket::folder(&dir.path().join("bucket")))] {
        let (old, new) = (Machine::new(&bucket, LONG, &[]), Machine::new(&bucket, LONG, &[]));
        let (mut a, of_a) = old.open();
        begin(&mut a, of_a);
        assert_eq!(a.status(of_a, "lease"), "ours", "{name}");
        let waiting = Waiting::begin(&new);
        // Not there yet: neither restored nor made.
        assert!(!new.path().exists(), "{name}");
        for _ in 0..20 {
            a.query(of_a, &insert("old"));
        }
        let rows_of_old = rows_of(&mut a, of_a);
        a.quit();
        let (mut b, of_b) = waiting.opened();
        assert_eq!(rows_of(&mut b, of_b), rows_of_old, "{name}");
        for _ in 0..3 {
            b.query(of_b, &insert("new"));
        }
        b.sync(of_b);
        assert_eq!((b.status(of_b, "lease").as_str(), b.status(of_b, "state").as_str()), ("ours", "idle"), "{name}");
        assert_eq!(b.status(of_b, "snapshots"), "0", "{name}");
        assert_eq!(restored(&bucket), rows_of(&mut b, of_b), "{name}");
        assert_eq!(snapshots(&bucket), 1, "{name}");
        // Back again: the file that the old one has left is an older copy by now, and says so.
        b.quit();
        let (mut again, db) = old.open();
        eventually("it is stopped", || again.try_query(db, "SELECT 1 FROM t").is_ok() && again.status(db, "state") == "fenced");
        // Who sends nothing keeps nobody waiting, although it has the database open.
        let third = Machine::new(&bucket, LONG, &[]);
        let (mut c, of_c) = third.open();
        assert_eq!(again.status(db, "lease"), "none", "{name}");
        assert_eq!(rows_of(&mut c, of_c), restored(&bucket), "{name}");
    }
}

#[test]
fn one_that_was_killed_is_waited_for_until_its_lease_runs_out() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "killed");
    let (old, new) = (Machine::new(&bucket, "3s", &[]), Machine::new(&bucket, SHORT, &[]));
    let (mut a, of_a) = old.open();
    begin(&mut a, of_a);
    let all = rows_of(&mut a, of_a);
    let theirs = lock(&server, "killed");
    a.kill();
    let (mut b, of_b) = Waiting::begin(&new).opened();
    let ours = lock(&server, "killed");
    assert_eq!(ours["generation"].as_i64(), theirs["generation"].as_i64().map(|generation| generation + 1));
    assert_ne!(ours["node"], theirs["node"]);
    assert_eq!(rows_of(&mut b, of_b), all);
    b.query(of_b, &insert("new"));
    b.sync(of_b);
    assert_eq!(restored(&bucket), rows_of(&mut b, of_b));
    assert_eq!(snapshots(&bucket), 1);
}

#[test]
fn one_that_is_started_again_goes_on_with_its_own_lease() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "again");
    let machine = Machine::new(&bucket, LONG, &[]);
    let (mut a, of_a) = machine.open();
    begin(&mut a, of_a);
    let before = lock(&server, "again");
    a.kill();
    // Its lease has minutes left, and nobody waits for as long here.
    let (mut b, of_b) = machine.open();
    b.query(of_b, &insert("again"));
    b.sync(of_b);
    let after = lock(&server, "again");
    assert_eq!((&after["generation"], &after["node"]), (&before["generation"], &before["node"]));
    assert_eq!(b.status(of_b, "snapshots"), "0");
    assert!(!machine.log().contains("waits for the lease"), "{}", machine.log());
    assert_eq!(restored(&bucket), rows_of(&mut b, of_b));
    // Closed in good order it is let go, and taken as a new one.
    b.quit();
    assert_eq!(lock(&server, "again")["expires_at"], "0001-01-01T00:00:00Z");
    let (mut c, of_c) = machine.open();
    assert_eq!(rows_of(&mut c, of_c), restored(&bucket));
    assert_eq!(lock(&server, "again")["generation"].as_i64(), after["generation"].as_i64().map(|generation| generation + 1));
}

#[test]
fn one_that_was_stopped_for_longer_than_its_lease_sends_nothing_any_more() {
    for on_conflict in ["continue", "readonly"] {
        let server = Server::start().unwrap();
        let bucket = Bucket::s3(&server, "stopped");
        let old = Machine::new(&bucket, SHORT, &[("on_conflict", on_conflict), ("close_timeout", "1s")]);
        let new = Machine::new(&bucket, SHORT, &[]);
        let (mut a, of_a) = old.open();
        begin(&mut a, of_a);
        signal(&a, rustix::process::Signal::STOP);
        let (mut b, of_b) = new.open();
        b.query(of_b, &insert("new"));
        b.sync(of_b);
        let of_winner = rows_of(&mut b, of_b);
        let objects = bucket.list();
        // It comes to itself with a commit on its hands.
        a.send(&json!({"op": "sql", "db": 1, "sql": insert("old")})).unwrap();
        a.send(&json!({"op": "sql", "db": 1, "sql": "PRAGMA replicated_sync='20s'"})).unwrap();
        signal(&a, rustix::process::Signal::CONT);
        // Committed here, unless it was known before that nothing may be.
        let committed = a.answer();
        assert!(committed.is_ok() || on_conflict == "readonly", "{committed:?}");
        let error = a.answer().unwrap_err();
        assert!(error.contains("the lease on") && error.contains("is not ours"), "{error}");
        assert_eq!(a.status(of_a, "state"), "fenced");
        assert_eq!(a.status(of_a, "lease"), "another's");
        let holder = lock(&server, "stopped")["owner"].as_str().unwrap().to_owned();
        assert_eq!(a.status(of_a, "lease_holder"), holder);
        assert!(a.status(of_a, "last_error").contains(&holder));
        assert_eq!(bucket.list(), objects, "it has sent something");
        // Told once, however often the other renews it.
        let told = old.log();
        let renewed = lock(&server, "stopped")["expires_at"].clone();
        eventually("it is renewed", || lock(&server, "stopped")["expires_at"] != renewed);
        assert!(a.try_query(of_a, "PRAGMA replicated_sync='20s'").is_err());
        assert_eq!(old.log().matches("is not ours").count(), told.matches("is not ours").count());
        if on_conflict == "readonly" {
            let error = a.try_query(of_a, &insert("refused")).unwrap_err();
            assert!(error.contains("readonly"), "{error}");
        }
        // Nor at its close, nor when it is opened again after the other has let go: then the histories differ.
        a.quit();
        assert_eq!(bucket.list(), objects);
        b.quit();
        let (mut a, of_a) = old.open();
        a.try_query(of_a, "SELECT 1 FROM t").unwrap();
        if committed.is_ok() {
            eventually("it is fenced", || a.status(of_a, "state") == "fenced");
            assert!(a.status(of_a, "last_error").contains("another writer has written TXID"));
        }
        assert_eq!(restored(&bucket), of_winner);
    }
}

#[test]
fn a_lease_that_ran_out_and_that_nobody_took_is_taken_again_without_a_snapshot() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "nobody");
    let machine = Machine::new(&bucket, SHORT, &[]);
    let (mut a, of_a) = machine.open();
    begin(&mut a, of_a);
    let before = lock(&server, "nobody");
    signal(&a, rustix::process::Signal::STOP);
    eventually("it runs out", || lock(&server, "nobody")["expires_at"].as_str().unwrap() < in_seconds(0).as_str());
    signal(&a, rustix::process::Signal::CONT);
    a.query(of_a, &insert("again"));
    a.sync(of_a);
    assert_eq!(lock(&server, "nobody")["generation"], before["generation"]);
    assert_eq!((a.status(of_a, "state").as_str(), a.status(of_a, "snapshots").as_str()), ("idle", "1"));
    // Also where another one had it and has written nothing.
    signal(&a, rustix::process::Signal::STOP);
    let other = Machine::new(&bucket, SHORT, &[]);
    let (mut b, of_b) = other.open();
    assert_eq!(rows_of(&mut b, of_b).len(), 2);
    signal(&a, rustix::process::Signal::CONT);
    a.query(of_a, &insert("once more"));
    let error = a.try_query(of_a, "PRAGMA replicated_sync='20s'").unwrap_err();
    assert!(error.contains("is not ours"), "{error}");
    b.quit();
    eventually("it is sent", || a.try_query(of_a, "PRAGMA replicated_sync='20s'").is_ok());
    assert_eq!((a.status(of_a, "state").as_str(), a.status(of_a, "snapshots").as_str()), ("idle", "1"));
    assert_eq!(a.status(of_a, "last_error"), "-");
    assert_eq!(restored(&bucket), rows_of(&mut a, of_a));
}

#[test]
fn litestreams_lease_is_waited_for_and_ours_is_in_its_form() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "litestream");
    put_lock(&bucket, &format!(r#"{{"generation":41,"expires_at":"{}","owner":"sidecar:7"}}"#, in_seconds(600)));
    let machine = Machine::new(&bucket, LONG, &[]);
    let impatient = Machine::new(&bucket, LONG, &[("lease_wait", "100ms")]);
    let refusal = impatient.refusal();
    for part in ["option lease", "sidecar:7", "another tool, generation 41", "lease_wait", "holds it until 20"] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
    let waiting = Waiting::begin(&machine);
    // As it lets go: by deleting it.
    std::fs::remove_file(lock_path(&server, "litestream")).unwrap();
    let (mut a, of_a) = waiting.opened();
    begin(&mut a, of_a);
    let ours = lock(&server, "litestream");
    let names: Vec<&str> = ours.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["expires_at", "generation", "node", "owner"]);
    assert_eq!(ours["generation"], 1);
    assert_eq!(ours["owner"].as_str().unwrap().rsplit(':').next().unwrap(), a.id().to_string());
    assert!(ours["expires_at"].as_str().unwrap() > in_seconds(300).as_str());
    a.quit();
    // One of its own that has run out is taken over, with the next generation.
    put_lock(&bucket, &format!(r#"{{"generation":41,"expires_at":"{}","owner":"sidecar:7"}}"#, in_seconds(-600)));
    let (mut b, of_b) = machine.open();
    assert_eq!(rows_of(&mut b, of_b).len(), 1);
    assert_eq!(lock(&server, "litestream")["generation"], 42);
}

#[test]
fn what_is_no_lease_refuses_the_open_and_stops_who_has_it_open() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "garbage");
    let machine = Machine::new(&bucket, SHORT, &[]);
    let (mut a, of_a) = machine.open();
    begin(&mut a, of_a);
    put_lock(&bucket, "locked by hand");
    eventually("it is not sent any more", || a.status(of_a, "state") == "offline");
    assert!(a.status(of_a, "last_error").contains("lock.json in"), "{}", a.status(of_a, "last_error"));
    let objects = bucket.list();
    a.query(of_a, &insert("later"));
    assert!(a.try_query(of_a, "PRAGMA replicated_sync='100ms'").is_err());
    assert_eq!(bucket.list(), objects);
    let other = Machine::new(&bucket, SHORT, &[]);
    let refusal = other.refusal();
    assert!(refusal.contains("is no lease") && refusal.contains("once it is deleted"), "{refusal}");
    assert!(!other.path().exists());
    std::fs::remove_file(lock_path(&server, "garbage")).unwrap();
    eventually("it goes on", || a.try_query(of_a, "PRAGMA replicated_sync='20s'").is_ok());
    assert_eq!(restored(&bucket), rows_of(&mut a, of_a));
}

/// A plan that a test changes while it is followed.
fn switched(refuses: fn(&replicated_testkit::faulty::Seen) -> bool, fault: Fault) -> (Plan, std::sync::Arc<std::sync::atomic::AtomicBool>) {
    let on = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_on = std::sync::Arc::clone(&on);
    let plan = move |seen: &replicated_testkit::faulty::Seen| {
        if is_on.load(std::sync::atomic::Ordering::SeqCst) && refuses(seen) { fault } else { Fault::None }
    };
    (Box::new(plan), on)
}

#[test]
fn while_the_lease_cannot_be_renewed_nothing_is_sent_and_then_it_goes_on() {
    let server = Server::start().unwrap();
    // Only what concerns the lease fails: what is sent could be sent.
    let (plan, down) = switched(|seen| seen.key.ends_with("lock.json"), Fault::ResetBefore);
    let endpoint = Endpoint::start(&server, plan).unwrap();
    let direct = Bucket::s3(&server, "down");
    let bucket = direct.through(&endpoint.endpoint());
    let machine = Machine::new(&bucket, SHORT, &[]);
    let (mut a, of_a) = machine.open();
    begin(&mut a, of_a);
    down.store(true, std::sync::atomic::Ordering::SeqCst);
    eventually("it has run out", || a.status(of_a, "lease") == "run out" && a.status(of_a, "state") == "offline");
    let objects = direct.list();
    for _ in 0..3 {
        a.query(of_a, &insert("meanwhile"));
    }
    assert!(a.try_query(of_a, "PRAGMA replicated_sync='300ms'").is_err());
    assert_eq!(direct.list(), objects);
    assert!(a.status(of_a, "last_error").contains("the lease"), "{}", a.status(of_a, "last_error"));
    down.store(false, std::sync::atomic::Ordering::SeqCst);
    eventually("it is sent", || a.try_query(of_a, "PRAGMA replicated_sync='20s'").is_ok());
    assert_eq!((a.status(of_a, "lease").as_str(), a.status(of_a, "snapshots").as_str()), ("ours", "1"));
    assert_eq!(restored(&direct), rows_of(&mut a, of_a));
    // A store that is down when the database is opened: the error says so.
    a.quit();
    down.store(true, std::sync::atomic::Ordering::SeqCst);
    let other = Machine::new(&bucket, SHORT, &[("lease_wait", "500ms")]);
    let refusal = other.refusal();
    assert!(refusal.contains("not opened without the lease") && refusal.contains("lock.json"), "{refusal}");
    assert!(!other.path().exists());
}

#[test]
fn the_answer_to_a_renewal_may_be_lost() {
    let server = Server::start().unwrap();
    let (plan, lossy) =
        switched(|seen| seen.key.ends_with("lock.json") && seen.kind == Kind::Put && seen.index % 2 == 0, Fault::ResetAfter);
    let endpoint = Endpoint::start(&server, plan).unwrap();
    let direct = Bucket::s3(&server, "lossy");
    let machine = Machine::new(&direct.through(&endpoint.endpoint()), SHORT, &[]);
    let (mut a, of_a) = machine.open();
    begin(&mut a, of_a);
    let before = lock(&server, "lossy");
    lossy.store(true, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..20 {
        a.query(of_a, &insert("lossy"));
        a.sync(of_a);
        let expires = lock(&server, "lossy")["expires_at"].clone();
        eventually("it is renewed", || lock(&server, "lossy")["expires_at"] != expires);
    }
    let after = lock(&server, "lossy");
    assert_eq!((&after["generation"], &after["node"]), (&before["generation"], &before["node"]));
    assert_eq!(a.status(of_a, "snapshots"), "1");
    assert_eq!(restored(&direct), rows_of(&mut a, of_a));
}

#[test]
fn it_is_let_go_without_the_permission_to_delete() {
    let server = Server::start().unwrap();
    let endpoint = Endpoint::start(
        &server,
        Box::new(|seen| if seen.kind == Kind::Delete { Fault::Refusal(403, "AccessDenied", None) } else { Fault::None }),
    )
    .unwrap();
    let bucket = Bucket::s3(&server, "kept").through(&endpoint.endpoint());
    let (old, new) = (Machine::new(&bucket, LONG, &[]), Machine::new(&bucket, LONG, &[]));
    let (mut a, of_a) = old.open();
    begin(&mut a, of_a);
    let waiting = Waiting::begin(&new);
    a.quit();
    let (mut b, of_b) = waiting.opened();
    assert_eq!(rows_of(&mut b, of_b).len(), 1);
    assert!(old.log().contains("the lease is let go"), "{}", old.log());
}

/// What was not sent is this host's to send: nobody else is let in before the lease runs out.
#[test]
fn what_was_not_sent_keeps_the_lease() {
    let server = Server::start().unwrap();
    let (plan, down) = switched(|seen| !seen.key.ends_with("lock.json"), Fault::ResetBefore);
    let endpoint = Endpoint::start(&server, plan).unwrap();
    let direct = Bucket::s3(&server, "unsent");
    let machine = Machine::new(&direct.through(&endpoint.endpoint()), LONG, &[("close_timeout", "300ms")]);
    let (mut a, of_a) = machine.open();
    begin(&mut a, of_a);
    down.store(true, std::sync::atomic::Ordering::SeqCst);
    a.query(of_a, &insert("unsent"));
    a.quit();
    assert!(lock(&server, "unsent")["expires_at"].as_str().unwrap() > in_seconds(0).as_str());
    let other = Machine::new(&direct, LONG, &[("lease_wait", "0s")]);
    assert!(other.refusal().contains("is not free"), "{}", other.log());
    down.store(false, std::sync::atomic::Ordering::SeqCst);
    let (mut b, of_b) = machine.open();
    b.query(of_b, "SELECT 1 FROM t");
    b.sync(of_b);
    assert_eq!(restored(&direct), rows_of(&mut b, of_b));
    assert_eq!(restored(&direct).len(), 2);
}

/// Two processes of a host that end at once: one of them lets the lease go, whichever has just gone over what step.
#[test]
fn of_two_that_leave_at_once_one_lets_the_lease_go() {
    let server = Server::start().unwrap();
    for point in ["close.flush", "close.flushed", "forget.release", "forget.released"] {
        let bucket = Bucket::s3(&server, &format!("two-leave-at-{point}"));
        let machine = Machine::new(&bucket, LONG, &[]);
        let mut env = bucket.env.clone();
        env.push(("REPLICATED_TEST_FAULT".to_owned(), format!("{point}=stop@1")));
        let mut first = Host::start(Program::Faulty, &env);
        let of_first = first.open(&machine.uri());
        begin(&mut first, of_first);
        let mut second = Host::start(Program::Faulty, &bucket.env);
        let of_second = second.open(&machine.uri());
        second.query(of_second, &insert("second"));
        let rows = rows_of(&mut second, of_second);
        first.send(&json!({"op": "close", "db": 1})).unwrap();
        let stat = format!("/proc/{}/stat", first.id());
        eventually(&format!("it is stopped at {point}"), || {
            std::fs::read_to_string(&stat).unwrap().rsplit(')').next().unwrap().trim_start().starts_with('T')
        });
        let goes_on = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            signal(&first, rustix::process::Signal::CONT);
            first.answer().unwrap();
            first.quit();
        });
        second.quit();
        goes_on.join().unwrap();
        let let_go = lock(&server, &format!("two-leave-at-{point}"));
        assert!(let_go["expires_at"].as_str().unwrap() <= in_seconds(0).as_str(), "{point}: {let_go} {}", machine.log());
        assert_eq!(restored(&bucket), rows, "{point}");
        assert_eq!(snapshots(&bucket), 1, "{point}");
    }
}

/// Steps of a writer that has a history, opens and commits.
const STEPS: &[&str] = &[
    "control.locked",
    "open.saved",
    "open.registered",
    "resolve",
    "verify.begin",
    "verify.done",
    "commit.publish",
    "freeze.encoded",
    "attempt.saved",
    "send.put",
    "send.done",
    "ack.saved",
    "ack.told",
    "close.flush",
    "close.flushed",
];

/// The old one is stopped at a step until its lease has run out and another has gone on. Whoever has taken the lease is never stopped by what comes late.
#[test]
fn one_that_was_stopped_at_any_step_leaves_the_next_holder_alone() {
    let server = Server::start().unwrap();
    for point in STEPS {
        let bucket = Bucket::s3(&server, &format!("stopped-at-{point}"));
        let more = [("close_timeout", "1s")];
        let (old, new) = (Machine::new(&bucket, "600ms", &more), Machine::new(&bucket, "600ms", &more));
        let (mut a, of_a) = old.open();
        begin(&mut a, of_a);
        a.quit();
        let mut env = bucket.env.clone();
        env.push(("REPLICATED_TEST_FAULT".to_owned(), format!("{point}=stop@1")));
        let mut halted = Host::start(Program::Faulty, &env);
        let requests = [
            json!({"op": "open", "uri": old.uri()}),
            json!({"op": "sql", "db": 1, "sql": insert("old")}),
            json!({"op": "sql", "db": 1, "sql": "PRAGMA replicated_sync='20s'"}),
            json!({"op": "close", "db": 1}),
        ];
        for request in &requests {
            halted.send(request).unwrap();
        }
        let stat = format!("/proc/{}/stat", halted.id());
        eventually(&format!("it is stopped at {point}"), || {
            std::fs::read_to_string(&stat).unwrap().rsplit(')').next().unwrap().trim_start().starts_with('T')
        });
        let (mut b, of_b) = new.open();
        let restored_rows = rows_of(&mut b, of_b);
        b.query(of_b, &insert("new"));
        b.sync(of_b);
        let objects = bucket.list();
        signal(&halted, rustix::process::Signal::CONT);
        let answers: Vec<_> = requests.iter().map(|_| halted.answer()).collect();
        assert!(answers[0].is_ok() && answers[1].is_ok() && answers[3].is_ok(), "{point}: {answers:?}");
        // Acknowledged only where it had been sent before the other began.
        let was_sent = restored_rows.iter().any(|row| row.starts_with("old"));
        assert!(was_sent || answers[2].is_err(), "{point}: {answers:?}");
        halted.quit();
        assert_eq!(bucket.list(), objects, "{point}: it has sent something");
        b.query(of_b, &insert("new"));
        b.sync(of_b);
        assert_eq!((b.status(of_b, "state").as_str(), b.status(of_b, "lease").as_str()), ("idle", "ours"), "{point}");
        assert_eq!(restored(&bucket), rows_of(&mut b, of_b), "{point}");
        assert_eq!(snapshots(&bucket), 1, "{point}");
    }
}

/// A restore may take longer than the lease lasts.
#[test]
fn it_is_renewed_while_the_database_is_restored() {
    let server = Server::start().unwrap();
    let (plan, slow) =
        switched(|seen| seen.kind == Kind::Get && seen.key.ends_with(".ltx"), Fault::Drip(std::time::Duration::from_secs(4)));
    let endpoint = Endpoint::start(&server, plan).unwrap();
    let direct = Bucket::s3(&server, "slow");
    let (first, second) = (Machine::new(&direct, SHORT, &[]), Machine::new(&direct.through(&endpoint.endpoint()), SHORT, &[]));
    let (mut a, of_a) = first.open();
    begin(&mut a, of_a);
    a.quit();
    slow.store(true, std::sync::atomic::Ordering::SeqCst);
    let released = lock(&server, "slow");
    let mut b = second.start();
    b.send(&json!({"op": "open", "uri": second.uri()})).unwrap();
    eventually("it has the lease", || lock(&server, "slow") != released);
    let third = Machine::new(&direct, SHORT, &[]);
    let waiting = Waiting::begin(&third);
    let of_b = Db::of(b.answer().unwrap().as_u64().unwrap());
    slow.store(false, std::sync::atomic::Ordering::SeqCst);
    assert!(!third.path().exists());
    b.query(of_b, &insert("second"));
    let all = rows_of(&mut b, of_b);
    b.quit();
    let (mut c, of_c) = waiting.opened();
    assert_eq!(rows_of(&mut c, of_c), all);
    assert_eq!(snapshots(&direct), 1);
}

/// Threads of one process, and another process of the host while the first one waits.
#[test]
fn one_of_a_host_waits_for_all() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "host");
    let machine = Machine::new(&bucket, LONG, &[]);
    let (mut a, first) = machine.open();
    begin(&mut a, first);
    // More connections of the process that has it.
    let before = lock(&server, "host");
    let second = a.open(&machine.uri());
    a.query(second, &insert("second"));
    a.close(first);
    a.query(second, &insert("second"));
    a.sync(second);
    assert_eq!(lock(&server, "host"), before);
    // Another process of the host comes and goes, whether or not it may open the database: it takes nothing away from the first one.
    let mut b = machine.start();
    let _ = b.try_open(&machine.uri());
    b.quit();
    assert_ne!(lock(&server, "host")["expires_at"], "0001-01-01T00:00:00Z");
    assert_eq!(lock(&server, "host")["node"], before["node"]);
    a.query(second, &insert("second"));
    a.sync(second);
    assert_eq!(a.status(second, "lease"), "ours");
    // One that only reads asks nobody, here or elsewhere.
    let elsewhere = Machine::new(&bucket, LONG, &[]);
    let mut reader = elsewhere.start();
    let db = reader.open(&format!("{}&mode=ro", elsewhere.uri()));
    assert_eq!(rows_of(&mut reader, db), rows_of(&mut a, second));
    reader.quit();
    assert_eq!(a.status(second, "lease"), "ours");
    a.close(second);
    assert_eq!(lock(&server, "host")["expires_at"], "0001-01-01T00:00:00Z");
    // Opened again and again in one process.
    for _ in 0..3 {
        let db = a.open(&machine.uri());
        a.query(db, &insert("again"));
        a.close(db);
        assert_eq!(lock(&server, "host")["expires_at"], "0001-01-01T00:00:00Z");
    }
    assert_eq!(restored(&bucket), rows(&machine.path()));
    assert_eq!(snapshots(&bucket), 1);
}

/// The option is off: nothing of it is asked of the store.
#[test]
fn without_the_option_there_is_none() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "off");
    let machine = Machine::new(&bucket, "0s", &[]);
    let (mut a, of_a) = machine.open();
    begin(&mut a, of_a);
    assert_eq!(a.status(of_a, "lease"), "off");
    a.quit();
    assert!(!lock_path(&server, "off").exists());
}
