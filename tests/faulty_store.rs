//! One fault of the store at a time, by script: what the application sees, what the bucket gets, what the log says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use replicated::restore::Target;
use replicated::store::{Level, LtxName, SNAPSHOT_LEVEL};
use replicated::types::Txid;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::faulty::{Endpoint, Fault, Kind, Seen};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::{integrity_check, page_compare};

/// A server that can misbehave, and a database.
struct Site {
    server: Server,
    endpoint: Endpoint,
    bucket: Bucket,
    /// Around the faults.
    direct: Bucket,
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Site {
    fn new(options: Options) -> Self {
        let server = Server::with_options(options).unwrap();
        let endpoint = Endpoint::start(&server, Box::new(|_| Fault::None)).unwrap();
        let direct = Bucket::s3(&server, "app");
        let bucket = direct.through(&endpoint.endpoint());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let plain = rusqlite::Connection::open(&path).unwrap();
        plain.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE base(x); CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)").unwrap();
        // Pages that nobody changes, so that no increment counts as a full state.
        plain.execute_batch("INSERT INTO base VALUES (randomblob(200000))").unwrap();
        plain.close().unwrap();
        Self { server, endpoint, bucket, direct, dir, path }
    }

    fn host(&self) -> Host {
        Host::start(Program::Python, &self.bucket.env)
    }

    fn open(&self, host: &mut Host, more: &[(&str, &str)]) -> Db {
        let log = self.dir.path().join("log");
        let mut options = vec![("log", log.to_str().unwrap()), ("sync_interval", "10ms"), ("burst", "100"), ("close_timeout", "100ms")];
        options.extend_from_slice(more);
        host.open(&host::replicated(&self.path, &self.bucket.url, &options))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn lines(&self, with: &str) -> usize {
        self.log().lines().filter(|line| line.contains(with)).count()
    }

    /// The first of the requests that a condition picks gets the fault, and nothing else does.
    fn once(&self, fault: Fault, picks: impl Fn(&Seen) -> bool + Send + 'static) {
        let mut done = false;
        self.endpoint.follow(Box::new(move |seen| {
            if done || !picks(seen) {
                return Fault::None;
            }
            done = true;
            fault
        }));
    }

    fn restored_equals(&self) {
        let restored = self.dir.path().join("restored.db");
        self.direct.restore(&restored);
        page_compare(&flattened(&self.path, self.dir.path()), &restored)
            .unwrap_or_else(|difference| panic!("{difference}\n{}", self.log()));
        integrity_check(&restored).unwrap();
    }

    /// Every TXID of level 0 is a whole database.
    fn every_txid_restores(&self) {
        let restored = self.dir.path().join("prefix.db");
        for listed in self.direct.level(Level::ZERO) {
            let txid = listed.name.max_txid;
            self.direct.try_restore(Target::Txid(txid), &restored).unwrap_or_else(|error| panic!("{txid}: {error}"));
            integrity_check(&restored).unwrap();
        }
    }
}

fn commit(host: &mut Host, db: Db, rows: usize) {
    for _ in 0..rows {
        host.query(db, "INSERT INTO t(x) VALUES (randomblob(700))");
    }
}

/// History goes on past a full state, and then the one request that is still on its way arrives.
fn goes_on_and_gets_the_late_one(site: &Site, host: &mut Host, db: Db) {
    commit(host, db, 30);
    host.query(db, "UPDATE base SET x = randomblob(200000)");
    host.sync(db);
    commit(host, db, 5);
    host.sync(db);
    host.close(db);
    site.restored_equals();
    assert_eq!(site.endpoint.release_late(), 1);
    site.restored_equals();
    site.every_txid_restores();
}

/// A store that replaces objects, and a request for the first state that arrives when all is done: it must not put pages back.
#[test]
fn a_first_state_that_arrives_late_harms_nothing() {
    for ignores_conditions in [true, false] {
        let site = Site::new(Options { ignores_conditions, ..Options::default() });
        site.once(Fault::Late(u64::MAX / 2), |seen| seen.kind == Kind::Put && seen.key.starts_with("app/0009/"));
        let mut host = site.host();
        let db = site.open(&mut host, &[]);
        commit(&mut host, db, 1);
        eventually("the first attempt has failed", || site.endpoint.faults().contains_key("late"));
        // Another moment than that of the request which is on its way.
        goes_on_and_gets_the_late_one(&site, &mut host, db);
    }
}

/// The same after a break, where the full state is a level-0 file and history goes on before and after it.
#[test]
fn a_later_full_state_that_arrives_late_harms_nothing() {
    for (ignores_conditions, killed) in [(true, false), (true, true), (false, false)] {
        let site = Site::new(Options { ignores_conditions, ..Options::default() });
        let mut host = site.host();
        let db = site.open(&mut host, &[]);
        commit(&mut host, db, 3);
        host.sync(db);
        host.kill();
        // A program without the extension restarts the WAL.
        let plain = rusqlite::Connection::open(&site.path).unwrap();
        plain.execute_batch("UPDATE t SET x = randomblob(700); PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET x = randomblob(700)").unwrap();
        std::mem::forget(plain);
        site.once(Fault::Late(u64::MAX / 2), |seen| seen.kind == Kind::Put && seen.key.starts_with("app/0000/"));
        let mut host = site.host();
        let mut db = site.open(&mut host, &[]);
        commit(&mut host, db, 1);
        eventually("the first attempt has failed", || site.endpoint.faults().contains_key("late"));
        if killed {
            host.kill();
            host = site.host();
            db = site.open(&mut host, &[]);
        }
        goes_on_and_gets_the_late_one(&site, &mut host, db);
    }
}

/// Increments keep their bytes: the same request twice, early or late, is one.
#[test]
fn an_increment_that_arrives_late_harms_nothing() {
    for ignores_conditions in [true, false] {
        let site = Site::new(Options { ignores_conditions, ..Options::default() });
        let mut host = site.host();
        let db = site.open(&mut host, &[]);
        host.sync(db);
        for _ in 0..5 {
            site.once(Fault::Late(u64::MAX / 2), |seen| seen.kind == Kind::Put);
            commit(&mut host, db, 4);
            host.sync(db);
        }
        commit(&mut host, db, 3);
        host.sync(db);
        host.close(db);
        assert_eq!(site.endpoint.release_late(), 5);
        site.restored_equals();
        site.every_txid_restores();
        assert_eq!(site.direct.full_states(), 1);
    }
}

/// Nobody's flush, and no closing and opening again, makes a request before the time that the store has named.
#[test]
fn a_store_that_asks_to_be_left_alone_is_left_alone() {
    let site = Site::new(Options::default());
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    host.sync(db);
    for (status, code) in [(503, "SlowDown"), (429, "TooManyRequests"), (500, "InternalError")] {
        site.once(Fault::Refusal(status, code, Some(2)), |seen| seen.kind == Kind::Put);
        commit(&mut host, db, 1);
        eventually("it was refused", || host.status(db, "last_error").contains(code));
        let requests = site.endpoint.requests();
        for _ in 0..5 {
            commit(&mut host, db, 1);
            assert!(host.try_query(db, "PRAGMA replicated_sync='20ms'").is_err() || site.endpoint.requests() > requests);
        }
        host.sync(db);
        assert_eq!(site.endpoint.too_early(), Vec::<String>::new());
    }
    site.once(Fault::Refusal(503, "SlowDown", Some(2)), |seen| seen.kind == Kind::Put);
    commit(&mut host, db, 1);
    eventually("it was refused", || host.status(db, "last_error").contains("SlowDown"));
    host.close(db);
    let db = site.open(&mut host, &[]);
    host.sync(db);
    assert_eq!(site.endpoint.too_early(), Vec::<String>::new());
    host.close(db);
    site.restored_equals();
    assert_eq!(site.direct.full_states(), 1);
}

/// What a listing leaves out is there all the same: no full state is sent for it, and no name is given twice.
#[test]
fn listings_that_lag_cost_nothing() {
    for fault in [Fault::ListOmits, Fault::ListLags(1000)] {
        let site = Site::new(Options::default());
        let mut host = site.host();
        let db = site.open(&mut host, &[]);
        host.sync(db);
        host.close(db);
        host.quit();
        site.endpoint.follow(Box::new(move |seen| if seen.kind == Kind::List { fault } else { Fault::None }));
        for _ in 0..3 {
            let mut host = site.host();
            let db = site.open(&mut host, &[]);
            commit(&mut host, db, 3);
            host.sync(db);
            assert_eq!(host.status(db, "snapshots"), "0", "{}", site.log());
            host.kill();
        }
        // The position is lost, and the bucket alone tells: it ends where the WAL says, whatever is listed.
        std::fs::remove_dir_all(site.dir.path().join("app.db-replicated")).unwrap();
        let mut host = site.host();
        let db = site.open(&mut host, &[]);
        commit(&mut host, db, 3);
        host.sync(db);
        assert_eq!(host.status(db, "state"), "idle", "{}", site.log());
        host.close(db);
        site.restored_equals();
        assert_eq!(site.direct.full_states(), 1, "{}", site.log());
        let requests = site.endpoint.requests();
        assert!(requests < 200, "{requests}");
    }
}

/// Full states are given names that are free, and where that fails it is not tried without pause.
#[test]
fn a_full_state_takes_a_free_name_whatever_is_listed() {
    let site = Site::new(Options { ignores_conditions: true, ..Options::default() });
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    for _ in 0..4 {
        commit(&mut host, db, 2);
        host.sync(db);
    }
    host.kill();
    let before = site.direct.level(Level::ZERO);
    let plain = rusqlite::Connection::open(&site.path).unwrap();
    plain.execute_batch("UPDATE t SET x = randomblob(700); PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET x = randomblob(700)").unwrap();
    std::mem::forget(plain);
    site.endpoint.follow(Box::new(|seen| if seen.kind == Kind::List { Fault::ListLags(1000) } else { Fault::None }));
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    host.sync(db);
    host.close(db);
    site.restored_equals();
    assert_eq!(site.direct.full_states(), 2, "{}", site.log());
    let after = site.direct.level(Level::ZERO);
    assert_eq!(after[..before.len()], before[..], "an object was replaced");
}

/// Something that is no LTX file has our next name: it is no failure that passes.
#[test]
fn an_object_that_is_no_ltx_file_stops_replication_and_says_so() {
    for (bytes, where_it_is) in [(vec![b'x'; 5000], "ahead"), (Vec::new(), "ahead"), (vec![b'x'; 5000], "newest"), (vec![0; 100], "newest")]
    {
        let site = Site::new(Options::default());
        let mut host = site.host();
        let db = site.open(&mut host, &[]);
        let txid = host.sync(db);
        let next = LtxName::level0(Txid::from_hex(&txid).unwrap().next());
        let key = site.server.root().join(site.server.bucket()).join("app/0000").join(next.file_name());
        std::fs::write(&key, &bytes).unwrap();
        if where_it_is == "newest" {
            // Found at an open that knows nothing of its own.
            host.close(db);
            std::fs::remove_dir_all(site.dir.path().join("app.db-replicated")).unwrap();
            site.open(&mut host, &[]);
        }
        let db = if where_it_is == "newest" { site.open(&mut host, &[]) } else { db };
        commit(&mut host, db, 1);
        let error = host.try_query(db, "PRAGMA replicated_sync='100s'").unwrap_err();
        assert!(error.contains("is no LTX file") && error.contains(&next.to_string()), "{error}");
        let state = host.status(db, "state");
        assert_eq!(state, "fenced");
        let requests = site.endpoint.requests();
        commit(&mut host, db, 20);
        assert!(host.try_query(db, "PRAGMA replicated_sync='1s'").is_err());
        assert_eq!(site.endpoint.requests(), requests, "it is asked for again and again");
        assert_eq!(site.lines("is no LTX file"), 1, "{}", site.log());
        host.quit();
        // As the message says.
        std::fs::remove_file(&key).unwrap();
        let mut host = site.host();
        let db = site.open(&mut host, &[]);
        if where_it_is == "newest" {
            // Without its position the database cannot show that it continues the bucket.
            assert!(host.try_query(db, "PRAGMA replicated_sync='100s'").is_err());
            continue;
        }
        host.sync(db);
        host.close(db);
        site.restored_equals();
    }
}

/// A broken part is sent again by itself, and a whole upload is not begun again for it.
#[test]
fn a_large_state_survives_failures_of_its_parts() {
    let site = Site::new(Options::default());
    let plain = rusqlite::Connection::open(&site.path).unwrap();
    // Some 40 MB, five parts.
    plain.execute_batch("INSERT INTO base VALUES (randomblob(40000000))").unwrap();
    plain.close().unwrap();
    let failures = [
        Fault::ResetBefore,
        Fault::Refusal(503, "SlowDown", Some(1)),
        Fault::ResetAfter,
        Fault::Refusal(500, "InternalError", None),
        Fault::Cut,
    ];
    let mut parts = 0;
    site.endpoint.follow(Box::new(move |seen| {
        if seen.kind != Kind::Part {
            return Fault::None;
        }
        parts += 1;
        // Every second one.
        if parts % 2 == 1 { failures[parts / 2 % failures.len()] } else { Fault::None }
    }));
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    host.sync(db);
    assert_eq!((site.endpoint.of_kind(Kind::Begin), site.endpoint.of_kind(Kind::Complete)), (1, 1), "{}", site.log());
    assert!(site.endpoint.of_kind(Kind::Part) >= 8, "{}", site.endpoint.of_kind(Kind::Part));
    assert_eq!(site.endpoint.too_early(), Vec::<String>::new());
    assert_eq!(site.lines("not replicated"), 0, "{}", site.log());
    host.close(db);
    site.restored_equals();
}

/// The answer to the last request of an upload gets lost, or comes too late: what is there is recognised.
#[test]
fn a_large_state_whose_end_is_not_answered_is_not_sent_again() {
    for fault in [Fault::ResetAfter, Fault::HangAfter, Fault::Cut] {
        let site = Site::new(Options::default());
        let plain = rusqlite::Connection::open(&site.path).unwrap();
        plain.execute_batch("INSERT INTO base VALUES (randomblob(12000000))").unwrap();
        plain.close().unwrap();
        site.once(fault, |seen| seen.kind == Kind::Complete);
        let mut host = site.host();
        let db = site.open(&mut host, &[("request_timeout", "2s")]);
        host.sync(db);
        assert_eq!((site.endpoint.of_kind(Kind::Begin), site.direct.full_states()), (1, 1), "{fault:?}\n{}", site.log());
        commit(&mut host, db, 3);
        host.sync(db);
        host.close(db);
        site.restored_equals();
    }
}

/// The same for a state that is one request.
#[test]
fn a_state_whose_answer_is_lost_is_not_sent_again() {
    let site = Site::new(Options::default());
    site.once(Fault::ResetAfter, |seen| seen.kind == Kind::Put && seen.key.starts_with("app/0009/"));
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    host.sync(db);
    host.close(db);
    assert_eq!(site.direct.full_states(), 1, "{}", site.log());
    site.restored_equals();
}

/// A request hangs, for as long as requests may take: a commit that waits is acknowledged all the same, by another one.
#[test]
fn a_request_that_hangs_does_not_use_up_the_time_of_a_commit_that_waits() {
    for fault in [Fault::Hang, Fault::HangAfter] {
        let site = Site::new(Options::default());
        let mut host = site.host();
        let db = site.open(&mut host, &[("durability", "remote"), ("ack_timeout", "9s"), ("request_timeout", "1h")]);
        commit(&mut host, db, 1);
        site.once(fault, |seen| seen.kind == Kind::Put);
        // An error of this would be COMMIT's: not known to be in the bucket.
        commit(&mut host, db, 2);
        host.close(db);
        site.restored_equals();
    }
}

/// A store that works and fails in turn is told of as what it is, not turn by turn.
#[test]
fn a_store_that_flaps_fills_no_log() {
    let site = Site::new(Options::default());
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    host.sync(db);
    let turn = Arc::new(AtomicU64::new(0));
    site.endpoint.follow({
        let turn = Arc::clone(&turn);
        Box::new(move |_| {
            let faults = [Fault::None, Fault::ResetBefore, Fault::None, Fault::Refusal(500, "InternalError", None)];
            faults[usize::try_from(turn.fetch_add(1, Ordering::SeqCst)).unwrap_or(0) % faults.len()]
        })
    });
    while turn.load(Ordering::SeqCst) < 120 {
        commit(&mut host, db, 1);
        host.sync(db);
    }
    assert!(site.lines("not replicated") <= 2 && site.lines("works again") <= 2, "{}", site.log());
    host.close(db);
    site.restored_equals();
}

/// Credentials expire, the store says so, and they are renewed: by status and code as Amazon sends them.
#[test]
fn credentials_that_expire_and_are_renewed_cost_nothing() {
    let site = Site::new(Options::default());
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    host.sync(db);
    for (status, code, advice) in [
        (400, "ExpiredToken", "Check the access key, its secret and the session token"),
        (403, "InvalidAccessKeyId", "Check the access key, its secret and the session token"),
        (403, "RequestTimeTooSkewed", "Set this machine's clock"),
        (403, "AccessDenied", "Allow the credentials to list, read, write and delete"),
    ] {
        let expired = Arc::new(AtomicBool::new(true));
        site.endpoint.follow({
            let expired = Arc::clone(&expired);
            Box::new(move |_| if expired.load(Ordering::SeqCst) { Fault::Refusal(status, code, None) } else { Fault::None })
        });
        commit(&mut host, db, 3);
        assert!(host.try_query(db, "PRAGMA replicated_sync='100ms'").is_err());
        assert_eq!(host.status(db, "state"), "offline");
        let told = host.status(db, "last_error");
        assert!(told.contains(code) && told.contains(advice), "{told}");
        expired.store(false, Ordering::SeqCst);
        host.sync(db);
        assert_eq!(host.status(db, "last_error"), "-");
    }
    host.close(db);
    site.restored_equals();
    assert_eq!(site.direct.full_states(), 1);
}

/// Answers that come a byte now and a byte then end at the time limit of a request; slow ones within it are answers.
#[test]
fn slow_answers_are_answers_until_the_time_limit() {
    let site = Site::new(Options::default());
    let mut host = site.host();
    let db = site.open(&mut host, &[("request_timeout", "3s")]);
    site.endpoint.follow(Box::new(|_| Fault::Drip(Duration::from_millis(200))));
    commit(&mut host, db, 1);
    host.sync(db);
    assert_eq!(site.lines("not replicated"), 0, "{}", site.log());
    site.endpoint.follow(Box::new(|_| Fault::Drip(Duration::from_secs(60))));
    commit(&mut host, db, 1);
    eventually("the limit is kept", || host.status(db, "last_error").contains("time"));
    site.endpoint.behave();
    host.sync(db);
    host.close(db);
    site.restored_equals();
}

/// A body that is shorter than it says is no object: neither for the uploader nor for a restore.
#[test]
fn bodies_cut_short_are_never_taken_for_whole() {
    let site = Site::new(Options::default());
    let mut host = site.host();
    let db = site.open(&mut host, &[]);
    commit(&mut host, db, 5);
    host.sync(db);
    host.close(db);
    let output = site.dir.path().join("cut.db");
    for kind in [Kind::Get, Kind::List] {
        site.endpoint.follow(Box::new(move |seen| if seen.kind == kind { Fault::Cut } else { Fault::None }));
        let error = site.bucket.try_restore(Target::Latest, &output).unwrap_err();
        assert!(!output.exists(), "{error}");
    }
    // Now one, now another, and so each in its turn.
    site.endpoint.follow(Box::new(|seen| if fastrand::Rng::with_seed(seen.index).u32(0..20) == 0 { Fault::Cut } else { Fault::None }));
    std::fs::remove_dir_all(site.dir.path().join("app.db-replicated")).unwrap();
    let mut host = site.host();
    let db = site.open(&mut host, &[("adopt", "ffff")]);
    for _ in 0..20 {
        commit(&mut host, db, 3);
        host.sync(db);
    }
    assert!(site.endpoint.faults()["cut"] > 4);
    host.close(db);
    site.endpoint.behave();
    site.restored_equals();
    assert!(site.direct.list().iter().any(|listed| listed.name.level == SNAPSHOT_LEVEL));
}
