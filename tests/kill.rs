//! kill -9 of a busy writer at random moments. What the bucket has is a state that was committed, with everything in it that was
//! acknowledged; after a reopening it is the database, page by page, and the full state was never sent again.
//!
//! `REPLICATED_TEST_KILL_ROUNDS` sets how often each writer is killed, `REPLICATED_TEST_SEED` which moments are chosen.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic)] // The helpers are part of tests.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::{integrity_check, page_compare};
use rusqlite::Connection;

/// Rows of the table that is updated all over.
const CHURN: i64 = 100;
/// Transactions whose rows are kept.
const KEPT: i64 = 40;

struct Scenario {
    name: &'static str,
    program: Program,
    sync_interval: &'static str,
    delay: Duration,
    /// 0 leaves SQLite's own.
    autocheckpoint: u32,
    page_size: u32,
    /// The transactions' rows are at the most that large.
    most_bytes: u32,
    /// Checkpoints that were asked for, and closing and opening again.
    mixed: bool,
    /// The network fails at random before each kill.
    faulty: bool,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// How many transactions a database holds; checks that they are whole and a prefix of those that were made.
fn transactions(path: &Path) -> i64 {
    integrity_check(path).unwrap();
    let connection = Connection::open(path).unwrap();
    let one = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    if one("SELECT count(*) FROM sqlite_schema WHERE name = 'done'") == 0 {
        return 0;
    }
    let n = one("SELECT n FROM counter");
    assert_eq!(
        one("SELECT count(*) FROM (SELECT count(*) c, max(parts) p FROM t GROUP BY txn HAVING c <> p)"),
        0,
        "{n}: a part is missing"
    );
    assert_eq!(one("SELECT count(DISTINCT txn) FROM t"), n.min(KEPT));
    assert_eq!(one("SELECT coalesce(max(txn), 0) FROM t"), n);
    let newest = format!("SELECT count(*) FROM churn WHERE v <> CASE WHEN id > {n} THEN 0 ELSE {n} - ({n} - id) % {CHURN} END");
    assert_eq!(one(&newest), 0, "{n}: the rows are of several moments");
    n
}

fn set_up(host: &mut Host, db: Db, scenario: &Scenario) {
    host.run(db, &format!("PRAGMA page_size={}; PRAGMA journal_mode=WAL", scenario.page_size));
    if scenario.autocheckpoint > 0 {
        host.run(db, &format!("PRAGMA wal_autocheckpoint={}", scenario.autocheckpoint));
    }
    let made = host.value(db, "SELECT count(*) FROM sqlite_schema WHERE name = 'done'");
    if made == 0 {
        host.run(
            db,
            &format!(
                "BEGIN; CREATE TABLE counter(n); INSERT INTO counter VALUES (0);
                 CREATE TABLE t(txn INTEGER, parts INTEGER, x BLOB);
                 CREATE TABLE churn(id INTEGER PRIMARY KEY, v INTEGER, x BLOB);
                 WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM i WHERE n < {CHURN})
                 INSERT INTO churn SELECT n, 0, zeroblob(700) FROM i; 
                 -- Pages that never change, so that only a full state has every page.
                 CREATE TABLE ballast(x); INSERT INTO ballast VALUES (zeroblob(200000)); CREATE TABLE done(x); COMMIT"
            ),
        );
    }
}

/// One transaction, and sometimes something else. The statements stop where the host is killed.
fn step(host: &mut Host, db: &mut Db, uri: &str, scenario: &Scenario, random: &mut fastrand::Rng) -> Result<(), String> {
    let n = host.try_query(*db, "SELECT n + 1 FROM counter")?[0][0].as_i64().unwrap();
    let parts = random.u32(1..8);
    let (bytes, id) = (random.u32(1..scenario.most_bytes), 1 + (n - 1) % CHURN);
    for sql in [
        "BEGIN IMMEDIATE".to_owned(),
        format!("UPDATE counter SET n = {n}"),
        format!(
            "WITH RECURSIVE i(p) AS (SELECT 1 UNION ALL SELECT p+1 FROM i WHERE p < {parts})
             INSERT INTO t SELECT {n}, {parts}, randomblob({bytes}) FROM i"
        ),
        format!("UPDATE churn SET v = {n}, x = randomblob(700) WHERE id = {id}"),
        format!("DELETE FROM t WHERE txn <= {}", n - KEPT),
        "COMMIT".to_owned(),
    ] {
        host.try_query(*db, &sql)?;
    }
    if scenario.mixed {
        match random.u32(0..40) {
            kind @ 0..4 => {
                let kind = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][kind as usize];
                host.try_query(*db, &format!("PRAGMA wal_checkpoint({kind})"))?;
            }
            4 => {
                host.try_close(*db)?;
                *db = host.try_open(uri)?;
                host.try_query(*db, &format!("PRAGMA wal_autocheckpoint={}", scenario.autocheckpoint.max(1)))?;
            }
            5 => drop(host.try_query(*db, "BEGIN IMMEDIATE")?.len() + host.try_query(*db, "ROLLBACK")?.len()),
            _ => {}
        }
    }
    Ok(())
}

fn killed_again_and_again(scenario: &Scenario) {
    let seed = number("REPLICATED_TEST_SEED", 1);
    let rounds = number("REPLICATED_TEST_KILL_ROUNDS", 13);
    let mut random = fastrand::Rng::with_seed(seed ^ scenario.name.bytes().map(u64::from).sum::<u64>());
    let server = Server::with_options(Options { delay: scenario.delay, ..Options::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::s3(&server, scenario.name);
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let env = if scenario.faulty { bucket.through(&proxy.endpoint()).env } else { bucket.env.clone() };
    let (path, restored) = (dir.path().join("app.db"), dir.path().join("restored.db"));
    let log = dir.path().join("log");
    let uri = host::replicated(
        &path,
        &bucket.url,
        &[
            ("sync_interval", scenario.sync_interval),
            ("close_timeout", "50ms"),
            ("request_timeout", "2s"),
            ("log", log.to_str().unwrap()),
            ("log_level", "debug"),
        ],
    );
    let tell = |round: u64| {
        eprintln!("{} round {round} seed {seed}\n{}", scenario.name, std::fs::read_to_string(&log).unwrap_or_default());
    };
    let mut at_least = 0;
    for round in 0..rounds {
        let mut host = Host::start(scenario.program, &env);
        let mut db = host.open(&uri);
        set_up(&mut host, db, scenario);
        if round > 0 || random.bool() {
            host.sync(db);
            at_least = host.value(db, "SELECT n FROM counter").as_i64().unwrap();
            bucket.restore(&restored);
            if let Err(difference) = page_compare(&flattened(&path, dir.path()), &restored) {
                tell(round);
                panic!("{difference}");
            }
        }
        if scenario.faulty {
            let modes = [Mode::Forward, Mode::Refuse, Mode::Hang, Mode::Cut { after_bytes: 100 }, Mode::Delay(Duration::from_millis(3))];
            proxy.set(modes[random.usize(0..modes.len())]).unwrap();
        }
        let pid = host.id();
        let moment = Duration::from_micros(random.u64(0..400_000));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(moment);
            assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        });
        while step(&mut host, &mut db, &uri, scenario, &mut random).is_ok() {}
        killer.join().unwrap();
        host.kill();
        proxy.set(Mode::Forward).unwrap();
        let local = transactions(&flattened(&path, dir.path()));
        if at_least > 0 || !bucket.try_list().is_empty() {
            bucket.restore(&restored);
            let remote = transactions(&restored);
            if remote < at_least || remote > local {
                tell(round);
                panic!("round {round}: the bucket has {remote} transactions of {local}; {at_least} were acknowledged");
            }
        }
    }
    let mut host = Host::start(scenario.program, &env);
    let db = host.open(&uri);
    host.sync(db);
    host.close(db);
    host.quit();
    bucket.restore(&restored);
    page_compare(&flattened(&path, dir.path()), &restored).unwrap();
    let full_states = bucket.full_states();
    if full_states != 1 {
        tell(rounds);
    }
    assert_eq!(full_states, 1, "the full state was sent again");
}

#[test]
fn a_python_program_that_uploads_without_pause() {
    killed_again_and_again(&Scenario {
        name: "python",
        program: Program::Python,
        sync_interval: "10ms",
        delay: Duration::ZERO,
        autocheckpoint: 0,
        page_size: 4096,
        most_bytes: 3000,
        mixed: false,
        faulty: false,
    });
}

#[test]
fn a_program_whose_wal_restarts_all_the_time() {
    killed_again_and_again(&Scenario {
        name: "restarts",
        program: Program::Python,
        sync_interval: "10ms",
        delay: Duration::from_millis(30),
        autocheckpoint: 20,
        page_size: 1024,
        most_bytes: 9000,
        mixed: true,
        faulty: false,
    });
}

#[test]
fn a_program_that_uploads_once_a_second() {
    killed_again_and_again(&Scenario {
        name: "seldom",
        program: Program::Python,
        sync_interval: "1s",
        delay: Duration::from_millis(5),
        autocheckpoint: 20,
        page_size: 4096,
        most_bytes: 2000,
        mixed: true,
        faulty: false,
    });
}

#[test]
fn a_rust_program_with_a_slow_bucket() {
    killed_again_and_again(&Scenario {
        name: "slow",
        program: Program::Rust,
        sync_interval: "10ms",
        delay: Duration::from_millis(80),
        autocheckpoint: 50,
        page_size: 4096,
        most_bytes: 20_000,
        mixed: true,
        faulty: false,
    });
}

#[test]
fn a_program_behind_a_faulty_network() {
    killed_again_and_again(&Scenario {
        name: "faulty",
        program: Program::Python,
        sync_interval: "10ms",
        delay: Duration::from_millis(10),
        autocheckpoint: 30,
        page_size: 4096,
        most_bytes: 4000,
        mixed: true,
        faulty: true,
    });
}
