//! The store cannot be used: commits go on, the reason is told once, and replication catches up when the cause is gone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, PATIENCE, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::{Requests, Server};
use replicated_testkit::sqlite::{integrity_check, page_compare};
use serde_json::json;

/// Far from anything that a limit of a second or two could become on a busy machine, and less than what a hang would take.
const NO_HANG: Duration = Duration::from_secs(30);

/// A server, the network before it, and a database.
struct Site {
    server: Server,
    proxy: Proxy,
    /// What the application uses.
    bucket: Bucket,
    /// The same around the proxy.
    direct: Bucket,
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Site {
    fn new() -> Self {
        let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
        let proxy = Proxy::start(&server.endpoint()).unwrap();
        let direct = Bucket::s3(&server, "apps/main");
        let bucket = direct.through(&proxy.endpoint());
        let path = dir.path().join("app.db");
        Self { server, proxy, bucket, direct, dir, path }
    }

    /// The same with a database that has pages which nobody changes, so that no increment counts as a full state.
    fn with_database() -> Self {
        let site = Self::new();
        let plain = rusqlite::Connection::open(&site.path).unwrap();
        plain.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE base(x); CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)").unwrap();
        let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<60)";
        plain.execute_batch(&format!("{numbers} INSERT INTO base SELECT randomblob(3500) FROM n")).unwrap();
        plain.close().unwrap();
        site
    }

    /// Python with the extension: the logger is the extension's.
    fn host(&self) -> Host {
        Host::start(Program::Python, &self.bucket.env)
    }

    fn open(&self, host: &mut Host, more: &[(&str, &str)]) -> Db {
        self.open_at(host, &self.bucket.url, more)
    }

    fn open_at(&self, host: &mut Host, url: &str, more: &[(&str, &str)]) -> Db {
        let log = self.log_path();
        let mut options = vec![("log", log.to_str().unwrap()), ("sync_interval", "10ms"), ("burst", "100")];
        options.extend_from_slice(more);
        host.open(&host::replicated(&self.path, url, &options))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("replicated.log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn state_directory(&self) -> PathBuf {
        self.dir.path().join("app.db-replicated")
    }

    /// The bucket's newest state is the database's, which nobody has open.
    fn assert_restored_equals(&self) {
        let restored = self.dir.path().join("restored.db");
        self.direct.restore(&restored);
        page_compare(&flattened(&self.path, self.dir.path()), &restored).unwrap();
        integrity_check(&restored).unwrap();
    }
}

/// A new database.
fn create(host: &mut Host, db: Db) {
    host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)");
}

/// One transaction with that many rows of random bytes.
fn insert(host: &mut Host, db: Db, into: &str, rows: u32, bytes: u32) {
    let numbers = format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows})");
    host.query(db, &format!("{numbers} INSERT INTO {into} SELECT randomblob({bytes}) FROM n"));
}

/// Commits that many transactions of one row each, all of which must succeed and be there.
fn commit(host: &mut Host, db: Db, transactions: usize) {
    let before = rows(host, db);
    for _ in 0..transactions {
        host.query(db, "INSERT INTO t(x) VALUES (randomblob(700))");
    }
    assert_eq!(rows(host, db), before + transactions as u64);
}

fn rows(host: &mut Host, db: Db) -> u64 {
    host.value(db, "SELECT count(*) FROM t").as_u64().unwrap()
}

/// A flush that must fail: it makes the uploader try again at once. What SQLite said.
fn failing_sync(host: &mut Host, db: Db) -> String {
    host.try_query(db, "PRAGMA replicated_sync='50ms'").unwrap_err()
}

/// Commits and has them sent until the condition is true.
fn commit_until(host: &mut Host, db: Db, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "the uploader does not try again");
        commit(host, db, 1);
        // A network that cuts late may let a small upload through: what counts is that it was tried.
        let _ = host.try_query(db, "PRAGMA replicated_sync='50ms'");
    }
}

/// The same where an attempt may succeed.
fn commit_while(host: &mut Host, db: Db, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while condition() {
        assert!(Instant::now() < deadline, "the uploader does not try again");
        commit(host, db, 1);
        // Whether it succeeds is the network's matter.
        let _ = host.try_query(db, "PRAGMA replicated_sync='50ms'");
    }
}

/// Lines that tell of a failure.
fn complaints(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("not replicated")).collect()
}

/// How many failures the line that ends an outage counts.
fn failures_told(log: &str) -> u64 {
    let line = log.lines().rfind(|line| line.contains("works again")).unwrap_or_else(|| panic!("no recovery in:\n{log}"));
    line.split(" and ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

/// The common course of an outage: commits succeed, the reason is told once, everything arrives afterwards as increments.
///
/// `begin` makes the store unusable, `tried` tells how often it was tried since, `end` makes it usable.
fn outage(site: &Site, reason: &[&str], begin: impl Fn(), tried: impl Fn() -> u64, end: impl Fn(), options: &[(&str, &str)]) {
    let mut host = site.host();
    let db = site.open(&mut host, options);
    commit(&mut host, db, 20);
    host.sync(db);
    assert_eq!(host.status(db, "last_error"), "-");

    let (log_before, bucket_before) = (site.log().len(), site.direct.list());
    begin();
    let tried_before = tried();
    commit_until(&mut host, db, || tried() >= tried_before + 9);
    assert_eq!(host.status(db, "state"), "offline");
    let told = host.status(db, "last_error");
    for part in reason {
        assert!(told.contains(part), "{part:?} is not in {told:?}");
    }
    let log = site.log().split_off(log_before);
    let complaints = complaints(&log);
    assert_eq!(complaints.len(), 1, "{log}");
    for part in reason {
        assert!(complaints[0].contains(part), "{part:?} is not in {complaints:?}");
    }
    assert!(log.lines().count() <= 2, "{log}");
    // One batch is tried, again and again; where only the answer got lost the bucket has it.
    assert!(site.direct.list().len() <= bucket_before.len() + 1);

    end();
    host.sync(db);
    eventually("the outage is over", || host.status(db, "state") == "idle");
    assert_eq!((host.status(db, "last_error").as_str(), host.status(db, "waiting_commits").as_str()), ("-", "0"));
    assert!(failures_told(&site.log()) >= 8, "{}", site.log());
    commit(&mut host, db, 5);
    assert_eq!(host.status(db, "snapshots"), "1", "{}", site.log());
    host.close(db);
    host.quit();
    assert_eq!(site.direct.full_states(), 1);
    site.assert_restored_equals();
}

#[test]
fn refused_connections_hold_up_no_commit() {
    let site = Site::with_database();
    // Nobody counts refused connections: a flush makes one attempt, and the line at the end tells whether there were enough.
    let flushes = std::sync::atomic::AtomicU64::new(0);
    let tried = || flushes.fetch_add(1, std::sync::atomic::Ordering::Relaxed) / 3;
    let (begin, end) = (|| site.proxy.set(Mode::Refuse).unwrap(), || site.proxy.set(Mode::Forward).unwrap());
    outage(&site, &["Connection refused"], begin, tried, end, &[]);
}

#[test]
fn an_endpoint_that_hangs_holds_up_no_commit() {
    let site = Site::with_database();
    let (begin, end) = (|| site.proxy.set(Mode::Hang).unwrap(), || site.proxy.set(Mode::Forward).unwrap());
    outage(&site, &["time"], begin, || site.proxy.connections(), end, &[("request_timeout", "400ms")]);
}

#[test]
fn answers_that_are_cut_off_hold_up_no_commit() {
    let site = Site::with_database();
    let (begin, end) = (|| site.proxy.set(Mode::Cut { after_bytes: 20 }).unwrap(), || site.proxy.set(Mode::Forward).unwrap());
    outage(&site, &["create 0/"], begin, || site.proxy.connections(), end, &[]);
}

/// The keys in a profile become wrong and right again, as when a rotation goes wrong.
#[test]
fn wrong_credentials_hold_up_no_commit() {
    let mut site = Site::with_database();
    let file = site.dir.path().join("credentials");
    let (key, right) = (site.server.access_key().to_owned(), site.server.secret_key().to_owned());
    let write = |secret: &str| {
        std::fs::write(&file, format!("[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")).unwrap();
    };
    write(&right);
    let env = &mut site.bucket.env;
    env.retain(|(name, _)| !name.contains("KEY"));
    env.push(("AWS_SHARED_CREDENTIALS_FILE".to_owned(), file.display().to_string()));
    env.push(("AWS_CONFIG_FILE".to_owned(), site.dir.path().join("none").display().to_string()));
    let tried = || site.server.requests().put;
    outage(&site, &["403", "Check the access key"], || write("a-secret-that-is-wrong"), tried, || write(&right), &[]);
}

/// The bucket is gone for a while.
#[test]
fn a_bucket_that_is_not_there_holds_up_no_commit() {
    let site = Site::with_database();
    let bucket = site.server.root().join(site.server.bucket());
    let away = site.server.root().join("away");
    let tried = || site.server.requests().put;
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    host.sync(db);
    std::fs::rename(&bucket, &away).unwrap();
    let (log_before, tried_before) = (site.log().len(), tried());
    commit_until(&mut host, db, || tried() >= tried_before + 9);
    assert_eq!(host.status(db, "state"), "offline");
    assert!(host.status(db, "last_error").contains("NoSuchBucket"), "{}", host.status(db, "last_error"));
    let log = site.log().split_off(log_before);
    assert_eq!(complaints(&log).len(), 1, "{log}");
    assert!(complaints(&log)[0].contains("Create the bucket, or correct the replica URL"), "{log}");
    std::fs::rename(&away, &bucket).unwrap();
    host.sync(db);
    host.close(db);
    assert_eq!(site.direct.full_states(), 1);
    site.assert_restored_equals();
}

/// Nothing was ever sent: the first thing that the bucket gets is one snapshot with everything in it.
#[test]
fn a_store_that_is_not_there_at_first_gets_one_snapshot_later() {
    for cause in [Mode::Refuse, Mode::Hang] {
        let site = Site::new();
        site.proxy.set(cause).unwrap();
        let mut host = site.host();
        let db = site.open(&mut host, &[("request_timeout", "400ms")]);
        create(&mut host, db);
        let begun = Instant::now();
        commit_until(&mut host, db, || complaints(&site.log()).len() == 1 && begun.elapsed() > Duration::from_secs(1));
        commit(&mut host, db, 300);
        insert(&mut host, db, "t(x)", 1500, 3500);
        assert_eq!((host.status(db, "state").as_str(), host.status(db, "remote_txid").as_str()), ("offline", "-"));
        assert_eq!(complaints(&site.log()).len(), 1, "{}", site.log());
        assert_eq!(site.server.requests(), Requests::default());
        site.proxy.set(Mode::Forward).unwrap();
        host.sync(db);
        assert_eq!(host.status(db, "snapshots"), "1");
        host.close(db);
        assert_eq!(site.direct.full_states(), 1);
        // Nothing but level 9 ever begins at 1, and increments follow on the empty file beside it.
        let names: Vec<String> = site.direct.list().iter().map(|listed| listed.name.to_string()).collect();
        let has = |name: &str| names.iter().any(|listed| listed == name);
        assert!(has("9/0000000000000001-0000000000000002.ltx") && has("0/0000000000000002-0000000000000002.ltx"), "{names:?}");
        site.assert_restored_equals();
    }
}

/// Two causes that take turns are two lines, however often they do.
#[test]
fn causes_that_take_turns_are_told_once_each() {
    let site = Site::with_database();
    let mut host = site.host();
    let db = site.open(&mut host, &[("request_timeout", "200ms")]);
    host.sync(db);
    let log_before = site.log().len();
    for _ in 0..4 {
        site.proxy.set(Mode::Refuse).unwrap();
        eventually("refused", || {
            commit(&mut host, db, 1);
            failing_sync(&mut host, db).contains("Connection refused")
        });
        site.proxy.set(Mode::Hang).unwrap();
        eventually("hanging", || {
            commit(&mut host, db, 1);
            failing_sync(&mut host, db).contains("time")
        });
    }
    let log = site.log().split_off(log_before);
    assert!(complaints(&log).len() <= 3, "{log}");
    site.proxy.set(Mode::Forward).unwrap();
    host.sync(db);
    host.close(db);
    site.assert_restored_equals();
}

/// Breaks in the middle of the first snapshot: it is begun again, and is one in the end.
#[test]
fn a_snapshot_that_is_cut_off_is_begun_again() {
    let site = Site::new();
    let mut host = site.host();
    site.proxy.set(Mode::Hang).unwrap();
    let db = site.open(&mut host, &[("request_timeout", "2s")]);
    create(&mut host, db);
    insert(&mut host, db, "t(x)", 5000, 1000);
    for after_bytes in [0, 600, 1500] {
        site.proxy.set(Mode::Cut { after_bytes }).unwrap();
        let connections = site.proxy.connections();
        commit_while(&mut host, db, || site.proxy.connections() < connections + 3);
    }
    site.proxy.set(Mode::Forward).unwrap();
    host.sync(db);
    commit(&mut host, db, 10);
    host.close(db);
    assert_eq!(site.direct.full_states(), 1);
    site.assert_restored_equals();
}

/// The first state is read while a transaction has written frames that nobody may see yet: what it commits later follows on that.
#[test]
fn a_snapshot_in_the_midst_of_a_transaction_is_gone_on_from() {
    for end in ["COMMIT", "ROLLBACK"] {
        let site = Site::with_database();
        site.proxy.set(Mode::Refuse).unwrap();
        let mut host = site.host();
        let db = site.open(&mut host, &[]);
        host.run(db, "PRAGMA cache_size=5; BEGIN");
        insert(&mut host, db, "t(x)", 100, 3500);
        let wal = std::fs::metadata(site.dir.path().join("app.db-wal")).unwrap().len();
        assert!(wal > 100_000, "nothing was spilled: {wal}");
        site.proxy.set(Mode::Forward).unwrap();
        eventually("the snapshot is there", || host.status(db, "snapshots") == "1");
        host.run(db, end);
        commit(&mut host, db, 3);
        host.sync(db);
        assert_eq!(host.status(db, "snapshots"), "1", "{}", site.log());
        host.close(db);
        site.assert_restored_equals();
    }
}

/// The store can be read, but what is put there fails: lines do not pile up, neither of the failure nor of the attempts.
#[test]
fn a_snapshot_that_is_refused_is_told_once() {
    let site = Site::new();
    // A file where the snapshots' folder would be.
    let blocker = site.server.root().join(site.server.bucket()).join("apps/main/0009");
    std::fs::create_dir_all(blocker.parent().unwrap()).unwrap();
    std::fs::write(&blocker, "").unwrap();
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    create(&mut host, db);
    commit_until(&mut host, db, || site.server.requests().put >= 10);
    assert_eq!(host.status(db, "state"), "offline");
    assert!(site.log().lines().count() <= 3, "{}", site.log());
    std::fs::remove_file(&blocker).unwrap();
    host.sync(db);
    host.close(db);
    assert_eq!(site.direct.full_states(), 1);
    site.assert_restored_equals();
}

/// A process that never reached the store leaves a database that somebody else then writes: nothing was sent yet, so nothing can differ.
#[test]
fn a_database_that_was_never_sent_is_never_diverged() {
    let site = Site::new();
    site.proxy.set(Mode::Refuse).unwrap();
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    create(&mut host, db);
    commit(&mut host, db, 3);
    assert_eq!(host.query(db, "PRAGMA wal_checkpoint(TRUNCATE)"), [[json!(0), json!(0), json!(0)]]);
    host.kill();
    let plain = rusqlite::Connection::open(&site.path).unwrap();
    plain.execute_batch("UPDATE t SET x = randomblob(700) WHERE id = 1").unwrap();
    plain.close().unwrap();
    site.proxy.set(Mode::Forward).unwrap();
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    host.sync(db);
    host.close(db);
    assert_eq!(site.direct.full_states(), 1);
    site.assert_restored_equals();
}

/// The last close waits as long as it was told and keeps what is left; the next open sends it.
fn a_close_keeps_what_is_left(cause: Mode, close_timeout: &str) {
    let site = Site::with_database();
    // Requests alone would take far longer than the test allows.
    let options = [("close_timeout", close_timeout), ("request_timeout", "10m")];
    for _ in 0..2 {
        let mut host = site.host();
        let db = site.open(&mut host, &options);
        commit(&mut host, db, 30);
        host.sync(db);
        let newest = site.direct.list();
        site.proxy.set(cause).unwrap();
        // More than a WAL takes between two checkpoints.
        for _ in 0..30 {
            insert(&mut host, db, "t(x)", 50, 3500);
        }
        commit(&mut host, db, 20);
        let begun = Instant::now();
        host.close(db);
        assert!(begun.elapsed() < NO_HANG, "{:?}", begun.elapsed());
        host.quit();
        assert!(!site.dir.path().join("app.db-wal").exists());
        assert_eq!(site.direct.list(), newest);
        let log = site.log();
        assert!(log.contains("the next open goes on from there") || close_timeout == "0s", "{log}");

        site.proxy.set(Mode::Forward).unwrap();
        let mut host = site.host();
        let db = site.open(&mut host, &options);
        // Before anything is read or written.
        host.sync(db);
        assert_eq!((host.status(db, "snapshots").as_str(), host.status(db, "waiting_commits").as_str()), ("0", "0"), "{}", site.log());
        host.close(db);
        host.quit();
        assert_eq!(site.direct.full_states(), 1, "{}", site.log());
        site.assert_restored_equals();
    }
}

#[test]
fn a_close_before_refused_connections_keeps_what_is_left() {
    a_close_keeps_what_is_left(Mode::Refuse, "300ms");
}

#[test]
fn a_close_before_an_endpoint_that_hangs_keeps_what_is_left() {
    a_close_keeps_what_is_left(Mode::Hang, "300ms");
}

#[test]
fn a_close_that_may_not_wait_keeps_what_is_left() {
    a_close_keeps_what_is_left(Mode::Hang, "0s");
}

/// Processes come and go while the store is away: what each leaves is added to what the others left.
#[test]
fn what_several_processes_leave_arrives_as_increments() {
    let site = Site::with_database();
    let options = [("close_timeout", "10ms"), ("request_timeout", "300ms")];
    let mut host = site.host();
    let db = site.open(&mut host, &options);
    host.sync(db);
    site.proxy.set(Mode::Refuse).unwrap();
    for round in 0..4 {
        commit(&mut host, db, 40);
        if round % 2 == 0 {
            host.close(db);
            host.quit();
        } else {
            host.kill();
        }
        host = site.host();
        site.open(&mut host, &options);
    }
    site.proxy.set(Mode::Forward).unwrap();
    host.sync(db);
    host.close(db);
    assert_eq!(site.direct.full_states(), 1, "{}", site.log());
    site.assert_restored_equals();
}

/// The user's limit of local disk is kept by giving the spool up; the full state follows once.
#[test]
fn a_spool_over_its_limit_costs_one_full_state() {
    const LIMIT_BYTES: u64 = 2 << 20;
    let site = Site::with_database();
    let mut host = site.host();
    let db = site.open(&mut host, &[("max_local", "2MiB"), ("request_timeout", "400ms")]);
    commit(&mut host, db, 5);
    host.sync(db);
    let log_before = site.log().len();
    site.proxy.set(Mode::Refuse).unwrap();
    let spooled = || -> u64 {
        let files = std::fs::read_dir(site.state_directory()).unwrap().filter_map(Result::ok);
        files.filter_map(|file| file.metadata().ok()).map(|m| m.len()).sum()
    };
    let (mut most, mut wal) = (0, 0);
    for _ in 0..100 {
        // Pages of random bytes, which no compression makes smaller.
        insert(&mut host, db, "t(x)", 25, 3500);
        most = most.max(spooled());
        wal = wal.max(std::fs::metadata(site.dir.path().join("app.db-wal")).unwrap().len());
    }
    // Half of it is for what is made of that: a merge, or the batch that is sent. The control file comes on top.
    assert!(most > LIMIT_BYTES / 4 && most <= LIMIT_BYTES + 4096, "{most}");
    assert!(wal < 4 * 1000 * 4120, "{wal}");
    let log = site.log().split_off(log_before);
    let given_up = |log: &str| log.lines().filter(|line| line.contains("max_local")).count();
    assert_eq!(given_up(&log), 1, "{log}");
    assert!(log.contains("the full state will be sent: the local spool was lost or its limit reached"), "{log}");
    assert!(spooled() < LIMIT_BYTES);
    site.proxy.set(Mode::Forward).unwrap();
    host.sync(db);
    commit(&mut host, db, 5);
    host.sync(db);
    assert_eq!(host.status(db, "snapshots"), "2");
    host.close(db);
    assert_eq!(site.direct.full_states(), 2);
    site.assert_restored_equals();
}

/// Under an exclusive lock nobody says that a transaction was rolled back which had written to the file. The full state that is due is sent all the same,
/// while the application does nothing.
#[test]
fn a_full_state_does_not_wait_for_the_end_of_what_was_rolled_back() {
    for journal_mode in ["delete", "persist", "truncate", "memory"] {
        for ended in ["ROLLBACK", "COMMIT"] {
            let site = Site::with_database();
            let mut host = site.host();
            let db = site.open(&mut host, &[("max_local", "1MiB"), ("request_timeout", "400ms"), ("close_timeout", "0s")]);
            host.run(
                db,
                &format!("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode={journal_mode}; PRAGMA cache_size=10; PRAGMA cache_spill=10"),
            );
            commit(&mut host, db, 3);
            host.sync(db);
            site.proxy.set(Mode::Refuse).unwrap();
            // More than may wait.
            insert(&mut host, db, "t(x)", 500, 3500);
            assert!(site.log().contains("max_local"), "{}", site.log());
            // By another commit under the same lock, which does not count the change counter up, or none.
            host.run(db, "BEGIN");
            host.run(db, "UPDATE base SET x = randomblob(3500)");
            host.run(db, ended);
            site.proxy.set(Mode::Forward).unwrap();
            host.sync(db);
            assert_eq!(host.status(db, "snapshots"), "2", "{journal_mode} {ended}: {}", site.log());
            // While it is sent another one begins, is rolled back, and a third one commits.
            host.run(db, "BEGIN; UPDATE base SET x = randomblob(3400); ROLLBACK");
            commit(&mut host, db, 2);
            host.sync(db);
            host.close(db);
            host.quit();
            site.assert_restored_equals();
        }
    }
}

/// The same where the last close passes the limit, and another process takes over.
#[test]
fn a_spool_given_up_is_known_to_the_next_process() {
    let site = Site::with_database();
    let options = [("max_local", "1MiB"), ("close_timeout", "10ms"), ("request_timeout", "400ms")];
    let mut host = site.host();
    let db = site.open(&mut host, &options);
    commit(&mut host, db, 30);
    host.sync(db);
    site.proxy.set(Mode::Refuse).unwrap();
    host.run(db, "PRAGMA wal_autocheckpoint=0");
    // A batch that was tried is kept as it is, whatever its size: what comes behind it is spooled.
    commit_until(&mut host, db, || site.log().contains("not replicated"));
    insert(&mut host, db, "t(x)", 600, 3500);
    host.close(db);
    host.quit();
    site.proxy.set(Mode::Forward).unwrap();
    let mut host = site.host();
    let db = site.open(&mut host, &options);
    host.sync(db);
    assert_eq!(host.status(db, "snapshots"), "1", "{}", site.log());
    host.close(db);
    host.quit();
    let mut host = site.host();
    let db = site.open(&mut host, &options);
    commit(&mut host, db, 1);
    host.sync(db);
    host.close(db);
    assert_eq!(site.direct.full_states(), 2, "{}", site.log());
    site.assert_restored_equals();
}

#[test]
fn a_flush_that_fails_says_why_within_its_limit() {
    let site = Site::with_database();
    let mut host = site.host();
    let db = site.open(&mut host, &[("request_timeout", "300ms"), ("sync_timeout", "700ms")]);
    host.sync(db);
    for (cause, reason) in [(Mode::Refuse, "Connection refused"), (Mode::Hang, "time")] {
        site.proxy.set(cause).unwrap();
        eventually("the cause is known", || {
            commit(&mut host, db, 1);
            failing_sync(&mut host, db).contains(reason)
        });
        let begun = Instant::now();
        let error = host.try_query(db, "PRAGMA replicated_sync='600ms'").unwrap_err();
        assert!(begun.elapsed() < NO_HANG);
        assert!(error.contains("replicated_sync: not in the bucket after 600 ms: ") && error.contains(reason), "{error}");
        let error = host.try_query(db, "PRAGMA replicated_sync").unwrap_err();
        assert!(error.contains("not in the bucket after 700 ms: ") && error.contains(reason), "{error}");
    }
    for wrong in ["'soon'", "5", "'2h'", "-1"] {
        let error = host.try_query(db, &format!("PRAGMA replicated_sync={wrong}")).unwrap_err();
        assert!(error.contains("allowed is a time up to 1h"), "{wrong}: {error}");
    }
    site.proxy.set(Mode::Forward).unwrap();
    assert_eq!(host.sync(db), host.status(db, "remote_txid"));
    host.close(db);
    site.assert_restored_equals();
}

/// Keys, tokens and passwords stand in no log, status, file or message, at the most talkative level.
#[test]
fn secrets_appear_nowhere() {
    const SECRETS: [&str; 4] = ["wrong-secret-7f3a", "token-that-is-secret-55", "pass/word-91", "sas-signature-17"];
    let mut site = Site::new();
    for (name, value) in &mut site.bucket.env {
        if name == "AWS_SECRET_ACCESS_KEY" {
            SECRETS[0].clone_into(value);
        }
    }
    site.bucket.env.push(("AWS_SESSION_TOKEN".to_owned(), SECRETS[1].to_owned()));
    let mut seen = String::new();
    let mut host = site.host();
    let db = site.open(&mut host, &[("log_level", "debug"), ("close_timeout", "10ms")]);
    create(&mut host, db);
    eventually("refused", || host.status(db, "state") == "offline");
    commit(&mut host, db, 300);
    seen += &failing_sync(&mut host, db);
    seen += host.value(db, "PRAGMA replicated_status").as_str().unwrap();
    let log = format!("log={}", site.log_path().display());
    for uri in [
        format!("file:{}?vfs=replicated&replica=s3://AKIAKEY:{}@replicas/x&{log}", site.path.display(), SECRETS[2]),
        format!("file:{}?vfs=replicated&replica=s3://replicas/x%3Fsig={}&{log}", site.path.display(), SECRETS[3]),
        format!("file:{}?vfs=replicated&replica=abs://c/x%3Fsig={}%26bad{{&{log}", site.path.display(), SECRETS[3]),
        format!(
            "file:{}?vfs=replicated&replica=s3://replicas/x&endpoint=http://u:{}@h&sync_interval=x&{log}",
            site.path.display(),
            SECRETS[2]
        ),
        format!("file:{}?vfs=replicated&replica=s3://replicas/x&endpoint=http://u:{}@h&{log}", site.path.display(), SECRETS[2]),
        format!("file:{}?vfs=replicated&replica=s3://replicas/x%3Fendpoint=http://u:{}@h&{log}", site.path.display(), SECRETS[2]),
        format!("file:{}?vfs=replicated&secret_access_key={}&{log}", site.path.display(), SECRETS[0]),
    ] {
        seen += &host.try_open(&uri).unwrap_err();
        seen += host.value(db, "SELECT 1").to_string().as_str();
    }
    host.close(db);
    host.quit();
    seen += &site.log();
    assert!(seen.contains("403"), "{seen}");
    // A FIFO has no content, and whoever reads it waits.
    let is_file = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    for file in std::fs::read_dir(site.state_directory()).unwrap().filter_map(Result::ok).filter(is_file) {
        // Those of the user are in there, and compressed; they are none of ours.
        seen += &String::from_utf8_lossy(&std::fs::read(file.path()).unwrap());
    }
    for secret in SECRETS.into_iter().chain(["AKIAKEY", ":pass", site.server.secret_key()]) {
        assert!(!seen.contains(secret), "{secret} is in {seen}");
    }
}
