//! Outages of hours under write load, by a clock that the test moves: what they cost in local disk, requests, memory and log lines.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use replicated::restore::Target;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::faulty::{Endpoint, Fault, Kind};
use replicated_testkit::host::{self, Db, Host, eventually};
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::page_compare;
use serde_json::{Value, json};

const PAGE_BYTES: u64 = 4096;
/// Rows that are updated all over, each on a page of its own.
const ROWS: u32 = 400;
/// The pages that change in the course of an outage, with what holds them together.
const CHANGED_BYTES: u64 = (ROWS as u64 + 20) * PAGE_BYTES;
/// Up to 32 files of 64 KiB are kept to be written over.
const SPARE_BYTES: u64 = 32 * 64 * 1024;

struct Site {
    server: Server,
    endpoint: Endpoint,
    direct: Bucket,
    env: Vec<(String, String)>,
    dir: tempfile::TempDir,
    path: PathBuf,
    host: Host,
    db: Db,
    random: fastrand::Rng,
    /// Before the outage: how many there are by then depends on how quickly the first one was taken.
    full_states: usize,
}

impl Site {
    fn new(options: &[(&str, &str)]) -> Self {
        let server = Server::start().unwrap();
        let endpoint = Endpoint::start(&server, Box::new(|_| Fault::None)).unwrap();
        let direct = Bucket::s3(&server, "app");
        let bucket = direct.through(&endpoint.endpoint());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let mut env = bucket.env;
        env.push(("REPLICATED_TEST_LOG".to_owned(), dir.path().join("log").display().to_string()));
        let mut host = Host::of(&mut host::command(host::clock_host(), &env));
        let db = host.open(&host::replicated(&path, &direct.url, options));
        let numbers = format!("WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM i WHERE n < {ROWS})");
        host.run(db, "PRAGMA page_size=4096; PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, x BLOB)");
        // Random, so that compression makes nothing smaller and sizes say what they seem to.
        host.query(db, &format!("{numbers} INSERT INTO t SELECT n, 0, randomblob(3500) FROM i"));
        // Pages that never change: a full state is told by them, and by its size.
        host.run(db, "CREATE TABLE ballast(x); INSERT INTO ballast VALUES (randomblob(400000))");
        let mut site = Self { server, endpoint, direct, env, dir, path, host, db, random: fastrand::Rng::with_seed(1), full_states: 0 };
        site.host.sync(db);
        site.full_states = site.direct.full_states();
        site
    }

    fn advance(&mut self, seconds: u64) {
        self.host.ask(&json!({"op": "advance", "ms": seconds * 1000})).unwrap();
    }

    /// Small transactions, as an application makes them.
    fn write(&mut self, transactions: u32) {
        for _ in 0..transactions {
            let ids: Vec<String> = (0..4).map(|_| self.random.u32(1..=ROWS).to_string()).collect();
            self.host.query(self.db, &format!("UPDATE t SET n = n + 1, x = randomblob(3500) WHERE id IN ({})", ids.join(",")));
        }
    }

    /// Bytes and files beside the database.
    fn spooled(&self) -> (u64, usize) {
        let files = std::fs::read_dir(self.dir.path().join("app.db-replicated")).unwrap().filter_map(Result::ok);
        let sizes: Vec<u64> = files.filter_map(|file| file.metadata().ok()).map(|m| m.len()).collect();
        (sizes.iter().sum(), sizes.len())
    }

    fn wal_bytes(&self) -> u64 {
        std::fs::metadata(self.dir.path().join("app.db-wal")).map_or(0, |m| m.len())
    }

    fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.host.id())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn full_states_told(&self) -> usize {
        self.log().lines().filter(|line| line.contains("the full state is in the bucket")).count()
    }

    /// The store is back: everything arrives, the bucket is the database, and then nothing more is asked for.
    fn end(mut self, more_full_states: usize) {
        self.endpoint.behave();
        self.host.sync(self.db);
        eventually("it is idle", || self.host.status(self.db, "state") == "idle");
        assert_eq!(self.host.ask(&json!({"op": "next"})), Ok(Value::Null), "an idle database waits for a time");
        self.host.close(self.db);
        self.host.quit();
        let restored = self.dir.path().join("restored.db");
        self.direct.restore(&restored);
        page_compare(&flattened(&self.path, self.dir.path()), &restored).unwrap();
        assert_eq!(self.direct.full_states(), self.full_states + more_full_states);
    }
}

fn file_size(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// A day without the store, with a transaction every few seconds: some 50 times the size of the pages that change is written.
#[test]
fn a_day_without_the_store_costs_the_disk_of_the_pages_that_change() {
    const HOURS: u64 = 24;
    let mut site = Site::new(&[]);
    let quiet = site.resident_bytes();
    site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
    let (begun, mut hourly) = (site.endpoint.requests(), Vec::new());
    let (mut most_spooled, mut most_files, mut most_wal) = (0, 0, 0);
    for _ in 0..HOURS {
        let before = site.endpoint.requests();
        for _ in 0..30 {
            site.write(8);
            site.advance(120);
            let (bytes, files) = site.spooled();
            (most_spooled, most_files) = (most_spooled.max(bytes), most_files.max(files));
            most_wal = most_wal.max(site.wal_bytes());
        }
        hourly.push(site.endpoint.requests() - before);
    }
    let written = HOURS * 60 * 4 * 4 * PAGE_BYTES;
    assert!(written > 50 * CHANGED_BYTES, "{written}");
    // What waits, merged; beside it the batch that was tried, and for a moment what a merge makes; and the small files that are written over next.
    assert!(most_spooled < 4 * CHANGED_BYTES + SPARE_BYTES, "{most_spooled} bytes of {CHANGED_BYTES}");
    assert!(most_files < 16, "{most_files}");
    // As without replication: SQLite's own threshold of 1000 frames, and what comes before it looks again.
    assert!(most_wal < 1300 * (PAGE_BYTES + 24), "{most_wal}");
    // Attempts come half a minute apart at the most, and a quarter at the least.
    assert!(hourly.iter().all(|n| (100..=250).contains(n)), "{hourly:?}");
    assert!(site.endpoint.requests() - begun < HOURS * 250);
    let grown = site.resident_bytes().saturating_sub(quiet);
    assert!(grown < 24 << 20, "{grown}");
    let lines = site.log().lines().count();
    assert!(site.log().contains("still not replicated: failed "), "{}", site.log());
    assert!(lines < 10 + usize::try_from(HOURS).unwrap() * 6, "{lines} lines");
    assert_eq!(site.host.status(site.db, "state"), "offline");
    site.end(0);
}

/// The same where the application checkpoints so often that few frames ever wait in the WAL.
#[test]
fn small_checkpoints_in_an_outage_leave_few_files() {
    let mut site = Site::new(&[]);
    site.host.query(site.db, "PRAGMA wal_autocheckpoint=12");
    site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
    let (mut most_spooled, mut most_files) = (0, 0);
    for _ in 0..600 {
        site.write(4);
        site.advance(10);
        let (bytes, files) = site.spooled();
        (most_spooled, most_files) = (most_spooled.max(bytes), most_files.max(files));
    }
    assert!(most_spooled < 4 * CHANGED_BYTES + SPARE_BYTES, "{most_spooled} bytes of {CHANGED_BYTES}");
    assert!(most_files < 24, "{most_files}");
    site.end(0);
}

/// The limit of local disk is kept for as long as the outage lasts, and one full state follows it.
#[test]
fn past_the_limit_of_local_disk_one_full_state_follows() {
    const LIMIT_BYTES: u64 = 1 << 20;
    let mut site = Site::new(&[("max_local", "1MiB")]);
    let told = |log: String| log.lines().filter(|line| line.contains("max_local")).count();
    // Where the machine is slow what it begins with was too much already.
    let told_before = told(site.log());
    site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
    let (mut most_spooled, mut most_wal) = (0, 0);
    for _ in 0..3 * 60 {
        site.write(5);
        site.advance(60);
        most_spooled = most_spooled.max(site.spooled().0);
        most_wal = most_wal.max(site.wal_bytes());
    }
    // The batch that was tried is kept beside the spool, and the entry that was one too many is there for a moment.
    assert!(most_spooled < 3 * LIMIT_BYTES, "{most_spooled}");
    assert!(most_wal < 1300 * (PAGE_BYTES + 24), "{most_wal}");
    assert_eq!(told(site.log()), told_before + 1, "{}", site.log());
    site.end(1);
}

/// Hours of a store that asks for an hour of rest each time.
#[test]
fn a_store_that_asks_for_hours_of_rest_gets_them() {
    let mut site = Site::new(&[]);
    site.endpoint.follow(Box::new(|_| Fault::Refusal(503, "SlowDown", Some(3600))));
    let before = site.endpoint.requests();
    site.write(1);
    eventually("it was refused", || site.host.status(site.db, "last_error").contains("SlowDown"));
    assert_eq!(site.endpoint.requests(), before + 1);
    for hour in 1..=5 {
        for _ in 0..59 {
            site.write(1);
            site.advance(60);
            // Nobody's flush is a reason.
            assert!(site.host.try_query(site.db, "PRAGMA replicated_sync='10ms'").is_err());
        }
        site.advance(59);
        assert_eq!(site.endpoint.requests(), before + hour);
        site.advance(1);
        eventually("the hour is over", || site.endpoint.requests() == before + hour + 1);
    }
    site.endpoint.behave();
    site.advance(3600);
    site.end(0);
}

/// Something refuses for good, as a bucket that is gone: it is asked once a minute, and the first look after it is back finds it.
#[test]
fn refusals_are_tried_once_a_minute() {
    let mut site = Site::new(&[]);
    site.endpoint.follow(Box::new(|_| Fault::Refusal(403, "AccessDenied", None)));
    site.write(1);
    eventually("it was refused", || site.host.status(site.db, "last_error").contains("AccessDenied"));
    site.advance(3600);
    let before = site.endpoint.requests();
    for _ in 0..12 {
        site.write(10);
        site.advance(3600);
    }
    let requests = site.endpoint.requests() - before;
    assert!((12 * 58..=12 * 125).contains(&requests), "{requests}");
    site.endpoint.behave();
    site.advance(61);
    eventually("it was found", || site.host.status(site.db, "waiting_commits") == "0");
    site.end(0);
}

/// Writes without a pause go in one request per interval, whatever a day brings.
#[test]
fn a_day_of_writes_keeps_to_the_budget() {
    // Uploads alone: what maintenance makes of them is none of this budget.
    let mut site = Site::new(&[("sync_interval", "10s"), ("burst", "2"), ("maintenance", "off")]);
    let before = site.endpoint.of_kind(Kind::Put);
    for _ in 0..8640 / 4 {
        site.write(1);
        site.advance(4);
    }
    let puts = site.endpoint.of_kind(Kind::Put) - before;
    assert!((8640 / 12..=8640 / 10 + 3).contains(&puts), "{puts}");
    assert!(file_size(&site.path) > CHANGED_BYTES);
    site.end(0);
}

/// Somebody empties the bucket while the application runs. Increments alone are worth nothing, so that the full state follows within a
/// minute in which there is something to send, or a moment after the next open.
#[test]
fn a_bucket_that_is_emptied_is_filled_again() {
    for killed in [false, true] {
        let mut site = Site::new(&[]);
        for _ in 0..3 {
            let looks = site.endpoint.of_kind(Kind::Head);
            site.advance(61);
            site.write(1);
            site.host.sync(site.db);
            eventually("it is looked at", || site.endpoint.of_kind(Kind::Head) > looks);
            // The next upload comes after that.
            site.write(1);
            site.host.sync(site.db);
        }
        let requests = site.endpoint.requests();
        std::fs::remove_dir_all(site.server.root().join(site.server.bucket()).join("app")).unwrap();
        site.write(2);
        site.host.sync(site.db);
        assert!(site.direct.try_restore(Target::Latest, &site.dir.path().join("none.db")).is_err());
        let before = site.full_states_told();
        if killed {
            site.host.kill();
            site.host = Host::of(&mut host::command(host::clock_host(), &site.env));
            site.db = site.host.open(&host::replicated(&site.path, &site.direct.url, &[]));
            site.host.sync(site.db);
            site.advance(3);
        } else {
            site.advance(61);
            site.write(1);
            site.host.sync(site.db);
        }
        eventually("the full state is sent", || site.full_states_told() > before);
        assert!(site.log().contains("the bucket lost what it had acknowledged"), "{}", site.log());
        site.write(3);
        site.host.sync(site.db);
        // What looks cost: not one for each upload.
        assert!(site.endpoint.requests() - requests < 60);
        site.full_states = 0;
        // Below what is left of the old chain there is a base again, and the level-0 file that it was made of.
        site.end(2);
    }
}
