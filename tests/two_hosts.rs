//! Two hosts on one bucket. One of them has gone on with the history, and the other one finds that out: at whatever step it was, and in either order,
//! it never damages what the first has written, stays stopped until somebody decides, and says who and when.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;

use replicated::restore::Target;
use replicated::types::Txid;
use replicated_testkit::bucket::Bucket;
use replicated_testkit::faulty::{Endpoint, Fault, Kind, Seen};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::rows::{insert, restored, rows, rows_of};
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::integrity_check;
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

const READONLY: &str = "attempt to write a readonly database";

/// A machine with a disk of its own.
struct Machine {
    dir: TempDir,
    bucket: Bucket,
    more: Vec<(String, String)>,
}

impl Machine {
    fn new(bucket: &Bucket, more: &[(&str, &str)]) -> Self {
        let mut all = vec![("restore", "if-missing"), ("sync_interval", "10ms"), ("burst", "100"), ("close_timeout", "500ms")];
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

    fn start(&self, fault: &str) -> Host {
        let mut env = self.bucket.env.clone();
        env.push(("REPLICATED_TEST_FAULT".to_owned(), fault.to_owned()));
        env.push(("REPLICATED_TEST_LOG".to_owned(), self.dir.path().join("log").display().to_string()));
        Host::start(Program::Faulty, &env)
    }

    fn open(&self) -> (Host, Db) {
        let mut host = self.start("");
        let db = host.open(&self.uri());
        (host, db)
    }
}

/// Makes the history that both begin with.
fn begin(machine: &Machine, journal: &str) {
    let (mut host, db) = machine.open();
    host.run(
        db,
        &format!("PRAGMA journal_mode={journal}; CREATE TABLE t(n INTEGER PRIMARY KEY, who TEXT, v BLOB); CREATE TABLE ballast(v BLOB)"),
    );
    host.query(db, "INSERT INTO ballast VALUES (randomblob(200000))");
    for _ in 0..2 {
        host.query(db, &insert("both"));
        host.sync(db);
    }
    host.quit();
}

/// Every state of the bucket is one of the winner's, in its order.
fn is_the_history_of(bucket: &Bucket, winner: &[String], what: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut reached = 0;
    bucket
        .replay(&dir.path().join("state.db"), |txid, state| {
            integrity_check(state).unwrap_or_else(|error| panic!("{what}: TXID {txid}: {error}"));
            let has_table = Connection::open(state).unwrap().prepare("SELECT n FROM t").is_ok();
            let rows = if has_table { rows(state) } else { Vec::new() };
            assert!(winner.starts_with(&rows) && rows.len() >= reached, "{what}: TXID {txid} is not of the winner's history");
            reached = rows.len();
        })
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(restored(bucket), winner, "{what}");
}

fn is_stopped(host: &Host) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", host.id())).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
}

fn goes_on(host: &Host) {
    let pid = rustix::process::Pid::from_raw(host.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
}

/// A host that opens, commits and flushes, and is stopped in the midst of it. What it says comes later.
struct Halted {
    host: Host,
}

impl Halted {
    fn at(machine: &Machine, point: &str) -> Self {
        let mut host = machine.start(&format!("{point}=stop@1"));
        for request in [
            json!({"op": "open", "uri": machine.uri()}),
            json!({"op": "sql", "db": 1, "sql": insert("halted")}),
            json!({"op": "sql", "db": 1, "sql": "PRAGMA replicated_sync='20s'"}),
        ] {
            host.send(&request).unwrap();
        }
        eventually(&format!("it is stopped at {point}"), || is_stopped(&host));
        Self { host }
    }

    /// What it says to the three requests.
    fn goes_on(mut self) -> (Host, Vec<Result<Value, String>>) {
        goes_on(&self.host);
        let answers = (0..3).map(|_| self.host.answer()).collect();
        (self.host, answers)
    }
}

/// Steps of a writer that has a history and commits. Whether its commit is in the bucket by then differs.
const WRITING: &[&str] = &[
    "control.locked",
    "open.saved",
    "open.registered",
    "resolve",
    "verify.begin",
    "verify.done",
    "commit.publish",
    "freeze.encoded",
    "attempt.save",
    "attempt.saved",
    "send.put",
    "send.done",
    "ack.save",
    "ack.saved",
    "ack.told",
];
/// Steps of one that comes to an empty disk, before those.
const ARRIVING: &[&str] = &["if-missing.noted", "if-missing.placed", "control.saved", "if-missing.restored"];

fn the_loser_is_stopped(host: &mut Host, db: Db, what: &str) {
    // With `on_conflict=readonly` it is refused where the comparison that follows an open was quicker.
    if let Err(error) = host.try_query(db, &insert("loser")) {
        assert!(error.contains(READONLY), "{what}: {error}");
    }
    let error = host.try_query(db, "PRAGMA replicated_sync='20s'").expect_err(what);
    assert_eq!(host.status(db, "state"), "fenced", "{what}: {error}");
    let why = host.status(db, "last_error");
    assert!(why.contains("another writer has written TXID") && why.contains("replicated adopt"), "{what}: {why}");
}

/// Whatever the loser does, open anew or not, the bucket stays as it is.
fn the_loser_does_no_harm(loser: &Machine, mut host: Host, bucket: &Bucket, winner: &[String], what: &str) {
    for sql in ["PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM", "PRAGMA journal_mode=delete", "UPDATE t SET v = 0", "PRAGMA journal_mode=wal"]
    {
        host.try_query(Db::of(1), sql).unwrap_or_else(|error| panic!("{what}: {sql}: {error}"));
    }
    host.quit();
    for _ in 0..2 {
        let (mut host, db) = loser.open();
        the_loser_is_stopped(&mut host, db, what);
        host.quit();
    }
    is_the_history_of(bucket, winner, what);
}

/// The one at a step, stopped there, and the other one commits meanwhile: then it is the winner, and goes on.
fn who_was_stopped_loses(server: &Server, old_is_stopped: bool, point: &str) {
    let what = format!("{} stopped at {point}", if old_is_stopped { "the old one" } else { "the new one" });
    let bucket = Bucket::s3(server, &what.replace(' ', "-"));
    let (old, new) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
    begin(&old, "wal");
    let (stopped, other) = if old_is_stopped { (&old, &new) } else { (&new, &old) };
    let early = (!old_is_stopped).then(|| other.open());
    let halted = Halted::at(stopped, point);
    // Its commit may be in the bucket already. The new one then restores it, and the old one finds itself overtaken.
    let (mut winner, db) = early.unwrap_or_else(|| other.open());
    winner.query(db, &insert("winner"));
    let overtaken = winner.try_query(db, "PRAGMA replicated_sync='20s'").is_err();
    if overtaken {
        assert!(!old_is_stopped, "{what}");
        assert_eq!(winner.status(db, "state"), "fenced", "{what}");
        let (mut host, answers) = halted.goes_on();
        assert!(answers.iter().all(Result::is_ok), "{what}: {answers:?}");
        let rows = rows_of(&mut host, Db::of(1));
        the_loser_does_no_harm(other, winner, &bucket, &rows, &what);
        return;
    }
    winner.query(db, &insert("winner"));
    winner.sync(db);
    let (mut host, answers) = halted.goes_on();
    assert!(answers[0].is_ok() && answers[1].is_ok(), "{what}: {answers:?}");
    the_loser_is_stopped(&mut host, Db::of(1), &what);
    winner.query(db, &insert("winner"));
    winner.sync(db);
    assert_eq!(winner.status(db, "state"), "idle", "{what}");
    let rows = rows_of(&mut winner, db);
    the_loser_does_no_harm(stopped, host, &bucket, &rows, &what);
    winner.query(db, &insert("winner"));
    winner.sync(db);
    let rows = rows_of(&mut winner, db);
    is_the_history_of(&bucket, &rows, &what);
}

#[test]
fn an_old_writer_that_was_stopped_at_any_step_loses() {
    let server = Server::start().unwrap();
    for point in WRITING {
        who_was_stopped_loses(&server, true, point);
    }
}

#[test]
fn a_new_writer_that_was_stopped_at_any_step_loses_or_has_won_already() {
    let server = Server::start().unwrap();
    for point in ARRIVING.iter().chain(WRITING) {
        who_was_stopped_loses(&server, false, point);
    }
}

/// Killed instead, and opened again after the other one has gone on.
#[test]
fn an_old_writer_that_died_at_any_step_comes_back_and_loses() {
    let server = Server::start().unwrap();
    for point in WRITING {
        let what = format!("died at {point}");
        let bucket = Bucket::s3(&server, &what.replace(' ', "-"));
        let (old, new) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
        begin(&old, "wal");
        let mut host = old.start(&format!("{point}=kill@1"));
        for request in [
            json!({"op": "open", "uri": old.uri()}),
            json!({"op": "sql", "db": 1, "sql": insert("dead")}),
            json!({"op": "sql", "db": 1, "sql": "PRAGMA replicated_sync='20s'"}),
        ] {
            if host.ask(&request).is_err() {
                break;
            }
        }
        host.kill();
        let (mut winner, db) = new.open();
        for _ in 0..3 {
            winner.query(db, &insert("winner"));
            winner.sync(db);
        }
        let (mut host, again) = old.open();
        the_loser_is_stopped(&mut host, again, &what);
        let rows = rows_of(&mut winner, db);
        the_loser_does_no_harm(&old, host, &bucket, &rows, &what);
    }
}

/// The TXID that a commit would have had is in the bucket, and another writer's.
#[test]
fn a_txid_of_another_writer_is_not_waited_for_with_success() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let (old, new) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
    begin(&old, "wal");
    let (mut winner, wins) = new.open();
    let mut txids = Vec::new();
    for _ in 0..2 {
        winner.query(wins, &insert("winner"));
        txids.push(winner.sync(wins));
    }
    let (mut loser, loses) = old.open();
    the_loser_is_stopped(&mut loser, loses, "it has been overtaken");
    for txid in txids {
        let error = loser.try_query(loses, &format!("PRAGMA replicated_wait='{txid}'")).expect_err("it is not ours");
        assert!(error.contains("fenced"), "{error}");
    }
}

/// A full state that becomes due while the database is open is not sent over what another host has written meanwhile.
#[test]
fn a_lost_continuity_is_no_reason_to_go_over_another_history() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let (old, new) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
    begin(&old, "wal");
    let (mut loser, loses) = old.open();
    loser.query(loses, &insert("both"));
    loser.sync(loses);
    let (mut winner, wins) = new.open();
    for _ in 0..2 {
        winner.query(wins, &insert("winner"));
        winner.sync(wins);
    }
    // The WAL begins anew, and nobody has seen what was in it before.
    let mut foreigner = Host::plain(&[]);
    let plain = foreigner.open(old.path().to_str().unwrap());
    for who in ["one", "two"] {
        foreigner.query(plain, &format!("UPDATE t SET who = '{who}' WHERE n = 1"));
        foreigner.query(plain, "PRAGMA wal_checkpoint(RESTART)");
    }
    foreigner.query(plain, "UPDATE t SET who = 'three' WHERE n = 1");
    the_loser_is_stopped(&mut loser, loses, "a foreign process has begun the WAL anew");
    let log = std::fs::read_to_string(old.dir.path().join("log")).unwrap();
    assert!(log.contains("the full state will be sent: the WAL was restarted"), "{log}");
    let of_winner = rows_of(&mut winner, wins);
    is_the_history_of(&bucket, &of_winner, "the loser has lost continuity");
}

/// Two that find an empty bucket: who is there first begins the history.
#[test]
fn of_two_new_databases_one_makes_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let (first, second) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
    let mut host = second.start("verify.done=stop@1");
    for request in [
        json!({"op": "open", "uri": second.uri()}),
        json!({"op": "sql", "db": 1, "sql": "CREATE TABLE t(n INTEGER PRIMARY KEY, who TEXT, v BLOB)"}),
        json!({"op": "sql", "db": 1, "sql": "PRAGMA replicated_sync='20s'"}),
    ] {
        host.send(&request).unwrap();
    }
    eventually("it has seen an empty bucket", || is_stopped(&host));
    begin(&first, "wal");
    let (mut winner, wins) = first.open();
    goes_on(&host);
    let answers: Vec<Result<Value, String>> = (0..3).map(|_| host.answer()).collect();
    assert!(answers[1].is_ok() && answers[2].is_err(), "{answers:?}");
    assert_eq!(host.status(Db::of(1), "reason"), "diverged");
    winner.query(wins, &insert("winner"));
    winner.sync(wins);
    let of_winner = rows_of(&mut winner, wins);
    is_the_history_of(&bucket, &of_winner, "the second one has come too late");
}

/// What the user has looked at may be replaced, and nothing that came after it.
#[test]
fn what_is_written_after_the_adoption_is_not_gone_over() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let (theirs, mut ours) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
    ours.more.retain(|(option, _)| option != "restore");
    begin(&theirs, "wal");
    let (mut winner, wins) = theirs.open();
    let newest = Txid::from_hex(&winner.sync(wins)).unwrap();
    let (mut host, db) = ours.open();
    host.run(db, "CREATE TABLE t(n INTEGER PRIMARY KEY, who TEXT, v BLOB)");
    host.try_query(db, "PRAGMA replicated_sync='20s'").unwrap_err();
    host.quit();
    replicated::adopt(&ours.path(), &bucket.url, newest).unwrap();
    let mut host = ours.start("verify.done=stop@1");
    for request in [
        json!({"op": "open", "uri": ours.uri()}),
        json!({"op": "sql", "db": 1, "sql": insert("adopted")}),
        json!({"op": "sql", "db": 1, "sql": "PRAGMA replicated_sync='20s'"}),
    ] {
        host.send(&request).unwrap();
    }
    eventually("it has seen what the bucket had", || is_stopped(&host));
    for _ in 0..2 {
        winner.query(wins, &insert("winner"));
        winner.sync(wins);
    }
    goes_on(&host);
    let answers: Vec<Result<Value, String>> = (0..3).map(|_| host.answer()).collect();
    assert!(answers[1].is_ok() && answers[2].is_err(), "{answers:?}");
    assert_eq!(host.status(Db::of(1), "reason"), "diverged");
    host.quit();
    let of_winner = rows_of(&mut winner, wins);
    is_the_history_of(&bucket, &of_winner, "it was declared the truth over less");
    // Over all of it, it is.
    replicated::adopt(&ours.path(), &bucket.url, Txid::from_hex(&winner.sync(wins)).unwrap()).unwrap();
    let (mut host, db) = ours.open();
    host.sync(db);
    assert_eq!(restored(&bucket), rows_of(&mut host, db));
}

/// The node id in the header of the bucket's newest file.
fn newest_writer(bucket: &Bucket) -> (Txid, String) {
    let newest = bucket.list().into_iter().max_by_key(|listed| listed.name.max_txid).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bytes = runtime.block_on(bucket.store().get_range(&newest.name, 0..newest.size_bytes)).unwrap();
    let header = replicated::ltx::Reader::new(&bytes[..]).read_header().unwrap();
    (newest.name.max_txid, format!("node {:016x}", header.node_id))
}

#[test]
fn who_is_fenced_says_by_whom_and_stays_so_until_it_is_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("bucket");
    let bucket = Bucket::folder(&folder);
    let (old, new) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
    begin(&old, "wal");
    let (mut loser, loses) = old.open();
    loser.query(loses, &insert("both"));
    loser.sync(loses);
    let (mut winner, wins) = new.open();
    winner.query(wins, &insert("winner"));
    winner.sync(wins);
    the_loser_is_stopped(&mut loser, loses, "both are open");
    let (theirs, who) = newest_writer(&bucket);
    let why = loser.status(loses, "last_error");
    assert!(why.contains(&who) && why.contains(&format!("TXID {theirs}")), "{who}: {why}");
    assert_eq!(loser.status(loses, "fencing"), "strong");
    let log = std::fs::read_to_string(old.dir.path().join("log")).unwrap();
    assert_eq!(log.matches("replication stopped: another writer").count(), 1, "{log}");

    // In the same process and in another one, and where the bucket cannot be reached. Local writes go on.
    loser.close(loses);
    let loses = loser.open(&old.uri());
    the_loser_is_stopped(&mut loser, loses, "opened again in the process");
    loser.quit();
    std::fs::rename(&folder, dir.path().join("away")).unwrap();
    let (mut loser, loses) = old.open();
    assert_eq!(loser.status(loses, "state"), "fenced");
    the_loser_is_stopped(&mut loser, loses, "opened again without the bucket");
    let local = rows_of(&mut loser, loses);
    assert_eq!(local.iter().filter(|row| row.starts_with("loser")).count(), 3);
    loser.quit();
    std::fs::rename(dir.path().join("away"), &folder).unwrap();

    let of_winner = rows_of(&mut winner, wins);
    is_the_history_of(&bucket, &of_winner, "before it is adopted");
    replicated::adopt(&old.path(), &bucket.url, theirs).unwrap();
    let (mut adopted, db) = old.open();
    assert_eq!(adopted.sync(db), theirs.next().to_string());
    adopted.query(db, &insert("adopted"));
    adopted.sync(db);
    assert_eq!(adopted.status(db, "state"), "idle");
    assert_eq!(restored(&bucket), rows_of(&mut adopted, db));
    // What the other one had written is still there, and now it is the one that is stopped.
    let output = dir.path().join("theirs.db");
    bucket.try_restore(Target::Txid(theirs), &output).unwrap();
    assert_eq!(rows(&output), of_winner);
    the_loser_is_stopped(&mut winner, wins, "the other way round");
}

/// What a stopped database commits is in no TXID that the bucket has.
#[test]
fn nobody_waits_with_success_for_what_a_stopped_database_commits() {
    for (journal, is_unrelated) in [("wal", false), ("delete", false), ("wal", true), ("delete", true)] {
        let what = format!("{journal}, unrelated: {is_unrelated}");
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        let (mut old, new) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
        let is_in_vain = |host: &mut Host, db: Db| {
            let (local, remote) = (host.status(db, "local_txid"), host.status(db, "remote_txid"));
            if local == "0000000000000000" {
                return;
            }
            assert!(local > remote, "{what}: {local} {remote}");
            let error = host.try_query(db, &format!("PRAGMA replicated_wait='{local}'")).unwrap_err();
            assert!(error.contains("replication is "), "{what}: {error}");
        };
        if is_unrelated {
            old.more.retain(|(option, _)| option != "restore");
            begin(&new, journal);
            let (mut host, db) = old.open();
            host.run(db, &format!("PRAGMA journal_mode={journal}; CREATE TABLE t(n INTEGER PRIMARY KEY, who TEXT, v BLOB)"));
            host.try_query(db, "PRAGMA replicated_sync='20s'").unwrap_err();
            is_in_vain(&mut host, db);
            host.quit();
        } else {
            begin(&old, journal);
            let (mut host, db) = old.open();
            let (mut winner, wins) = new.open();
            winner.query(wins, &insert("winner"));
            winner.sync(wins);
            the_loser_is_stopped(&mut host, db, journal);
            is_in_vain(&mut host, db);
            host.quit();
        }
        for _ in 0..2 {
            let (mut host, db) = old.open();
            host.query(db, "SELECT count(*) FROM t");
            eventually("it is known to be stopped", || ["fenced", "failed"].contains(&host.status(db, "state").as_str()));
            is_in_vain(&mut host, db);
            host.query(db, &insert("loser"));
            is_in_vain(&mut host, db);
            host.quit();
        }
    }
}

/// With `on_conflict=readonly` nothing is committed any more once it is known, and everything else works.
#[test]
fn a_fenced_database_refuses_commits_where_that_is_asked_for() {
    let wal = "PRAGMA journal_mode=wal";
    let exclusive = "PRAGMA locking_mode=exclusive";
    let cases = [
        ("wal", wal),
        ("delete", "PRAGMA journal_mode=delete"),
        ("wal", exclusive),
        ("delete", exclusive),
        ("delete", "PRAGMA locking_mode=exclusive; PRAGMA journal_mode=truncate"),
        ("delete", "PRAGMA locking_mode=exclusive; PRAGMA journal_mode=persist"),
        ("delete", "PRAGMA locking_mode=exclusive; PRAGMA journal_mode=memory"),
        ("delete", "PRAGMA locking_mode=exclusive; PRAGMA synchronous=off"),
        ("delete", "PRAGMA locking_mode=exclusive; PRAGMA cache_size=2"),
        ("delete", "PRAGMA locking_mode=exclusive; PRAGMA journal_mode=off"),
    ];
    for (journal, prepare) in cases {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("bucket");
        let bucket = Bucket::folder(&folder);
        let (old, new) = (Machine::new(&bucket, &[("on_conflict", "readonly")]), Machine::new(&bucket, &[]));
        begin(&old, journal);
        let (mut loser, loses) = old.open();
        loser.run(loses, prepare);
        loser.query(loses, &insert("both"));
        loser.sync(loses);
        let (mut winner, wins) = new.open();
        winner.query(wins, &insert("winner"));
        let newest = winner.sync(wins);
        // The commit that finds it out is made; those after it are not.
        the_loser_is_stopped(&mut loser, loses, prepare);
        let rows = rows_of(&mut loser, loses);
        for sql in [insert("refused"), "UPDATE t SET v = 0".to_owned(), "CREATE TABLE u(x)".to_owned(), "VACUUM".to_owned()] {
            let error = loser.try_query(loses, &sql).expect_err(&format!("{prepare}: {sql}"));
            assert!(error.contains(READONLY), "{prepare}: {sql}: {error}");
        }
        if !prepare.contains("exclusive") {
            let error = loser.try_query(loses, "BEGIN IMMEDIATE").unwrap_err();
            assert!(error.contains(READONLY), "{prepare}: {error}");
        }
        assert_eq!(rows_of(&mut loser, loses), rows, "{prepare}");
        assert_eq!(loser.value(loses, "PRAGMA integrity_check"), "ok");
        loser.query(loses, "PRAGMA wal_checkpoint(TRUNCATE)");
        // Killed: SQLite has to recover the WAL, which takes the lock of writers.
        loser.kill();
        std::fs::rename(&folder, dir.path().join("away")).unwrap();
        for _ in 0..2 {
            let (mut loser, loses) = old.open();
            assert_eq!(rows_of(&mut loser, loses), rows, "{prepare}");
            let error = loser.try_query(loses, &insert("refused")).unwrap_err();
            assert!(error.contains(READONLY), "{prepare}: {error}");
            assert_eq!(rows_of(&mut loser, loses), rows, "{prepare}");
            loser.quit();
        }
        std::fs::rename(dir.path().join("away"), &folder).unwrap();
        replicated::adopt(&old.path(), &bucket.url, Txid::from_hex(&newest).unwrap()).unwrap();
        let (mut adopted, db) = old.open();
        adopted.query(db, &insert("adopted"));
        adopted.sync(db);
        assert_eq!(restored(&bucket), rows_of(&mut adopted, db), "{prepare}");
    }
}

/// The same where nothing shows that the file continues what the bucket has.
#[test]
fn a_database_that_has_diverged_refuses_commits_too() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let (first, other) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[("on_conflict", "readonly")]));
    begin(&first, "wal");
    let unrelated = Connection::open(other.path()).unwrap();
    unrelated.execute_batch("PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER PRIMARY KEY, who TEXT, v BLOB)").unwrap();
    unrelated.close().unwrap();
    let (mut host, db) = other.open();
    assert!(rows_of(&mut host, db).is_empty());
    eventually("it has stopped", || host.status(db, "reason") == "diverged");
    assert!(host.try_query(db, &insert("refused")).unwrap_err().contains(READONLY));
    assert_eq!(restored(&bucket).len(), 2);
}

/// A store that replaces objects although it is asked not to: who comes later looks, and finds out all the same.
#[test]
fn a_store_without_conditions_is_looked_at_before_and_after() {
    let server = Server::with_options(Options { ignores_conditions: true, ..Options::default() }).unwrap();
    for old_first in [true, false] {
        let bucket = Bucket::s3(&server, &format!("app-{old_first}"));
        let (old, new) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
        begin(&old, "wal");
        let (mut a, of_a) = old.open();
        a.query(of_a, &insert("both"));
        a.sync(of_a);
        let (mut b, of_b) = new.open();
        let (winner, wins, loser, loses) = if old_first { (&mut a, of_a, &mut b, of_b) } else { (&mut b, of_b, &mut a, of_a) };
        for _ in 0..2 {
            winner.query(wins, &insert("winner"));
            winner.sync(wins);
        }
        assert_eq!(winner.status(wins, "fencing"), "weak");
        the_loser_is_stopped(loser, loses, "weak");
        assert_ne!(loser.status(loses, "fencing"), "strong");
        winner.query(wins, &insert("winner"));
        winner.sync(wins);
        let rows = rows_of(winner, wins);
        is_the_history_of(&bucket, &rows, "weak");
    }
}

/// Where one slips between the other's look and its request, the one whose object was replaced finds that before it goes on.
#[test]
fn a_replaced_object_is_noticed_by_whose_it_was() {
    let server = Server::with_options(Options { ignores_conditions: true, ..Options::default() }).unwrap();
    let bucket = Bucket::s3(&server, "app");
    let (old, new) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
    begin(&old, "wal");
    let (mut b, of_b) = new.open();
    b.query(of_b, "SELECT count(*) FROM t");
    let halted = Halted::at(&old, "send.put");
    b.query(of_b, &insert("replaced"));
    b.sync(of_b);
    let (mut a, answers) = halted.goes_on();
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    the_loser_is_stopped(&mut b, of_b, "replaced");
    let rows = rows_of(&mut a, Db::of(1));
    is_the_history_of(&bucket, &rows, "replaced");
}

/// An object that has the name of what this host was about to send may be another writer's: until it was compared nobody hears that the bucket has it.
#[test]
fn another_writer_s_object_under_the_name_of_our_attempt_is_not_taken_for_it() {
    let server = Server::start().unwrap();
    // What is sent gets no answer.
    let plan = |seen: &Seen| if seen.kind == Kind::Put { Fault::ResetBefore } else { Fault::None };
    let endpoint = Endpoint::start(&server, Box::new(plan)).unwrap();
    let bucket = Bucket::s3(&server, "attempt");
    let (mut old, new) = (Machine::new(&bucket, &[]), Machine::new(&bucket, &[]));
    begin(&old, "wal");
    let mut host = old.start("send.put=kill@1");
    let db = host.open(&old.uri());
    // It is killed once it has noted what it is about to send.
    let _ = host.try_query(db, &insert("killed")).and_then(|_| host.try_query(db, "PRAGMA replicated_sync='20s'"));
    host.kill();
    let (mut winner, wins) = new.open();
    winner.query(wins, &insert("winner"));
    let txid = winner.sync(wins);
    old.bucket = bucket.through(&endpoint.endpoint());
    let (mut host, db) = old.open();
    host.query(db, "SELECT count(*) FROM t");
    eventually("it has been tried to send it again", || host.status(db, "last_error") != "-");
    assert_eq!(host.status(db, "local_txid"), txid);
    assert!(host.status(db, "remote_txid") < txid);
    host.try_query(db, "PRAGMA replicated_sync='200ms'").unwrap_err();
    host.quit();
    old.bucket = bucket;
    let (mut host, db) = old.open();
    host.query(db, "SELECT count(*) FROM t");
    eventually("it is stopped", || host.status(db, "state") == "fenced");
    assert_eq!(restored(&old.bucket), rows_of(&mut winner, wins));
}
