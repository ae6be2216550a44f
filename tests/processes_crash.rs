//! Several processes on one database, killed at fail points or by a signal while others go on: each time another takes over, what was acknowledged is in the
//! bucket, every TXID of it is a state that was committed, and at the end it is the database, page by page.
//!
//! `REPLICATED_TEST_SEED` chooses what happens, `REPLICATED_TEST_CRASH_ROUNDS` how many processes die in each campaign.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what a campaign has done")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::crash::life::number;
use replicated_testkit::host::{self, Db, Host, Program};
use replicated_testkit::sqlite::{integrity_check, page_compare, same_but_for_free_pages};
use rusqlite::Connection;
use serde_json::json;

/// Transactions whose rows are kept.
const KEPT: i64 = 30;
/// Processes at the same time.
const MOST: usize = 3;
static POINTS: LazyLock<Vec<String>> = LazyLock::new(host::points);

/// Why a full state may be sent where the journal is not the WAL.
const LOST: [&str; 2] =
    ["the WAL was restarted or the database changed outside the extension", "an earlier upload of the full state was cut off"];

/// How the database is used.
#[derive(Clone, Copy, Debug)]
struct Style {
    name: &'static str,
    modes: &'static [&'static str],
    autocheckpoint: u32,
    /// Some of the processes wait for the bucket with each commit.
    remote: bool,
    /// A kill may cost a full state: where a transaction outside the WAL is cut short nothing tells what became of it.
    full_states: bool,
}

struct Worker {
    host: Host,
    db: Db,
    remote: bool,
    faults: String,
}

/// One database and the processes that have it open.
struct Life {
    dir: tempfile::TempDir,
    bucket: Bucket,
    style: Style,
    seed: u64,
    random: fastrand::Rng,
    workers: Vec<Worker>,
    /// The mark of each transaction that was acknowledged.
    acknowledged: BTreeMap<i64, i64>,
    /// The newest that had to be in the bucket when its COMMIT returned.
    remote: i64,
    deaths: u64,
    told: Vec<String>,
}

type Gone = String;

/// Another process has it locked, or the statement came in the way of another: nothing has happened.
fn is_refused(error: &str) -> bool {
    error.contains("locked") || error.contains("busy")
}

fn is_gone(error: &str) -> bool {
    error.contains("the host is gone") || error.contains("Broken pipe") || error.contains("BrokenPipe")
}

impl Life {
    fn new(style: Style, seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        let random = fastrand::Rng::with_seed(seed);
        Self {
            dir,
            bucket,
            style,
            seed,
            random,
            workers: Vec::new(),
            acknowledged: BTreeMap::new(),
            remote: 0,
            deaths: 0,
            told: Vec::new(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn tell(&mut self, what: String) {
        self.told.push(what);
    }

    fn fail(&self, what: &str) -> ! {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let log = lines[lines.len().saturating_sub(400)..].join("\n");
        panic!("{} seed {}: {what}\n{}\n{log}", self.style.name, self.seed, self.told.join("\n"));
    }

    fn uri(&self, remote: bool) -> String {
        let mut options = vec![("sync_interval", "10ms"), ("burst", "100"), ("close_timeout", "300ms")];
        if remote {
            options.extend([("durability", "remote"), ("ack_timeout", "60s")]);
        }
        host::replicated(&self.path(), &self.bucket.url, &options)
    }

    /// Starts a process that may die; false where it has died before it had the database open.
    fn start(&mut self, faults: String) -> bool {
        let remote = self.style.remote && self.random.bool();
        let mut env = self.bucket.env.clone();
        env.push(("REPLICATED_TEST_FAULT".to_owned(), faults.clone()));
        env.push(("REPLICATED_TEST_LOG".to_owned(), self.dir.path().join("log").display().to_string()));
        let mut host = Host::start(Program::Faulty, &env);
        self.tell(format!("process {} starts, {faults:?}, remote {remote}", host.id()));
        let opened = host.try_open(&self.uri(remote)).and_then(|db| self.set_up(&mut host, db).map(|()| db));
        match opened {
            Ok(db) => {
                self.workers.push(Worker { host, db, remote, faults });
                true
            }
            Err(error) if is_gone(&error) && !faults.is_empty() => {
                self.tell(format!("process {} died opening", host.id()));
                self.deaths += 1;
                false
            }
            Err(error) => self.fail(&format!("cannot open: {error}")),
        }
    }

    fn set_up(&mut self, host: &mut Host, db: Db) -> Result<(), Gone> {
        host.try_query(db, "PRAGMA busy_timeout=60000")?;
        host.try_query(db, &format!("PRAGMA wal_autocheckpoint={}", self.style.autocheckpoint))?;
        if host.try_query(db, "SELECT count(*) FROM sqlite_schema WHERE name = 'still'")?[0][0] != json!(0) {
            return Ok(());
        }
        host.try_query(db, &format!("PRAGMA journal_mode={}", self.style.modes[0]))?;
        for sql in [
            "BEGIN",
            "CREATE TABLE counter(n)",
            "INSERT INTO counter VALUES (0)",
            "CREATE TABLE t(txn INTEGER, mark INTEGER, parts INTEGER, x)",
            "CREATE TABLE still(x)",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) INSERT INTO still SELECT randomblob(3000) FROM n",
            "COMMIT",
        ] {
            host.try_query(db, sql)?;
        }
        Ok(())
    }

    fn faults(&mut self) -> String {
        match self.random.u8(0..10) {
            0..4 => format!("*=kill@{}", self.random.u32(1..300)),
            4..9 => {
                let point = &POINTS[self.random.usize(0..POINTS.len())];
                format!("{point}=kill@{}", if self.random.bool() { 1 } else { self.random.u32(1..25) })
            }
            _ => String::new(),
        }
    }

    /// What a worker answered; it is buried where it did not.
    fn after(&mut self, which: usize, answer: Result<(), Gone>) -> bool {
        match answer {
            Ok(()) => true,
            Err(error) if is_gone(&error) => {
                let worker = self.workers.remove(which);
                self.tell(format!("process {} died", worker.host.id()));
                if worker.faults.is_empty() {
                    self.fail("a process died that was not told to");
                }
                self.deaths += 1;
                false
            }
            Err(error) if is_refused(&error) => {
                let worker = &mut self.workers[which];
                let _ = worker.host.try_query(worker.db, "ROLLBACK");
                true
            }
            Err(error) => self.fail(&error),
        }
    }

    fn transaction(&mut self, which: usize) -> Result<(), Gone> {
        let (mark, parts, bytes) = (self.random.i64(1..1 << 50), self.random.u32(1..6), self.random.u32(1..4000));
        let worker = &mut self.workers[which];
        let (host, db) = (&mut worker.host, worker.db);
        host.try_query(db, "BEGIN IMMEDIATE")?;
        let n = host.try_query(db, "SELECT n + 1 FROM counter")?[0][0].as_i64().unwrap();
        for sql in [
            format!("UPDATE counter SET n = {n}"),
            format!(
                "WITH RECURSIVE i(p) AS (SELECT 1 UNION ALL SELECT p + 1 FROM i WHERE p < {parts})
                 INSERT INTO t SELECT {n}, {mark}, {parts}, randomblob({bytes}) FROM i"
            ),
            format!("DELETE FROM t WHERE txn <= {}", n - KEPT),
            "COMMIT".to_owned(),
        ] {
            host.try_query(db, &sql)?;
        }
        self.acknowledged.insert(n, mark);
        if worker.remote {
            self.remote = n;
        }
        Ok(())
    }

    fn statement(&mut self, which: usize, sql: &str) -> Result<(), Gone> {
        let worker = &mut self.workers[which];
        worker.host.try_query(worker.db, sql).map(drop)
    }

    /// Two at once: one checkpoints or commits while the other is at the same.
    fn both(&mut self) {
        const AT_ONCE: [&str; 5] = [
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "PRAGMA wal_checkpoint(RESTART)",
            "UPDATE still SET x = randomblob(3000) WHERE rowid % 7 = 3",
            "PRAGMA wal_checkpoint(PASSIVE)",
            "PRAGMA replicated_sync='50s'",
        ];
        let mut sent = Vec::new();
        for which in 0..self.workers.len() {
            let sql = AT_ONCE[self.random.usize(0..AT_ONCE.len())];
            let worker = &mut self.workers[which];
            self.told.push(format!("process {}: {sql} at once", worker.host.id()));
            sent.push(worker.host.send(&json!({"op": "sql", "db": 1, "sql": sql})).map_err(|e| e.to_string()));
        }
        for which in (0..self.workers.len()).rev() {
            let answer = sent[which].clone().and_then(|()| self.workers[which].host.answer().map(drop));
            self.after(which, answer);
        }
    }

    fn step(&mut self) {
        let which = self.random.usize(0..self.workers.len());
        let id = self.workers[which].host.id();
        let action = self.random.u8(0..100);
        let answer = match action {
            0..55 => {
                let done = self.transaction(which);
                self.tell(format!("process {id} commits {:?}: {done:?}", self.acknowledged.keys().last()));
                done
            }
            55..65 => {
                let kind = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][self.random.usize(0..4)];
                self.tell(format!("process {id}: {kind}"));
                self.statement(which, &format!("PRAGMA wal_checkpoint({kind})"))
            }
            65..75 => return self.both(),
            75..78 => {
                let mode = self.style.modes[self.random.usize(0..self.style.modes.len())];
                if self.style.modes.len() == 1 {
                    return;
                }
                self.tell(format!("process {id}: {mode}"));
                self.statement(which, "PRAGMA busy_timeout=20")
                    .and_then(|()| self.statement(which, &format!("PRAGMA journal_mode={mode}")))
                    .and_then(|()| self.statement(which, "PRAGMA busy_timeout=60000"))
            }
            78..84 => {
                self.tell(format!("process {id}: sync"));
                self.statement(which, "PRAGMA replicated_sync='60s'")
            }
            84..86 => {
                std::thread::sleep(Duration::from_millis(self.random.u64(1..15)));
                Ok(())
            }
            86..91 => {
                self.tell(format!("process {id} leaves"));
                let mut worker = self.workers.remove(which);
                if let Err(error) = worker.host.try_close(worker.db)
                    && !is_gone(&error)
                {
                    self.fail(&format!("cannot close: {error}"));
                }
                return;
            }
            91..95 => {
                self.tell(format!("process {id} is killed"));
                self.workers.remove(which).host.kill();
                self.deaths += 1;
                return;
            }
            95..98 => {
                self.tell(format!("process {id} stops for a moment"));
                let signal = |name: &str| Command::new("kill").args([name, &id.to_string()]).status().unwrap().success();
                // One that is gone already is found out later.
                if signal("-STOP") {
                    std::thread::sleep(Duration::from_millis(self.random.u64(1..20)));
                    signal("-CONT");
                }
                Ok(())
            }
            _ => self.statement(which, "PRAGMA replicated_status"),
        };
        self.after(which, answer);
    }

    /// Checks that what a state holds was committed, all of it, and returns its number.
    fn number_of(&self, file: &Path, what: &str) -> i64 {
        if let Err(error) = integrity_check(file) {
            self.fail(&format!("{what}: {error}"));
        }
        let connection = Connection::open(file).unwrap();
        let one = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        if one("SELECT count(*) FROM sqlite_schema WHERE name = 'still'") == 0 {
            return 0;
        }
        let n = one("SELECT n FROM counter");
        let whole =
            one("SELECT count(*) FROM (SELECT count(*) c, max(parts) p FROM t GROUP BY txn HAVING c <> p OR min(mark) <> max(mark))") == 0;
        if !whole || one("SELECT count(DISTINCT txn) FROM t") != n.min(KEPT) || one("SELECT coalesce(max(txn), 0) FROM t") != n {
            self.fail(&format!("{what}: it is no state that was committed"));
        }
        let mut marks = connection.prepare("SELECT DISTINCT txn, mark FROM t").unwrap();
        let marks = marks.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).unwrap();
        for (txn, mark) in marks.map(Result::unwrap) {
            if self.acknowledged.get(&txn).is_some_and(|known| *known != mark) {
                self.fail(&format!("{what}: transaction {txn} is another than was acknowledged"));
            }
        }
        n
    }

    /// What commits had waited for is there on a fresh machine.
    fn check_remote(&self) {
        if self.remote == 0 {
            return;
        }
        let restored = self.dir.path().join("fresh.db");
        let _ = std::fs::remove_file(&restored);
        self.bucket.restore(&restored);
        let n = self.number_of(&restored, "restored");
        if n < self.remote {
            self.fail(&format!("the bucket has {n}, and {} was acknowledged", self.remote));
        }
    }

    fn round(&mut self) {
        while self.workers.len() < MOST {
            let faults = self.faults();
            if !self.start(faults) && self.random.bool() {
                break;
            }
        }
        for _ in 0..self.random.u8(3..25) {
            if self.workers.is_empty() {
                break;
            }
            self.step();
        }
        if self.random.u8(0..4) == 0 {
            self.check_remote();
        }
    }

    fn end(mut self) {
        while !self.start(String::new()) {}
        let worker = self.workers.last_mut().unwrap();
        let synced = worker.host.try_query(worker.db, "PRAGMA replicated_sync='60s'");
        if let Err(error) = synced {
            self.fail(&error);
        }
        let n = worker_number(self.workers.last_mut().unwrap());
        if self.acknowledged.keys().last().is_some_and(|newest| *newest > n) {
            self.fail("SQLite has lost a commit");
        }
        // Others may have died since, or do when they close.
        while let Some(mut worker) = self.workers.pop() {
            let _ = worker.host.try_close(worker.db);
        }
        let restored = self.dir.path().join("restored.db");
        self.bucket.restore(&restored);
        let local = flattened(&self.path(), self.dir.path());
        let compare = if self.style.modes == ["WAL"] { page_compare } else { same_but_for_free_pages };
        if let Err(difference) = compare(&local, &restored) {
            self.fail(&difference);
        }
        let replayed = self.dir.path().join("replayed.db");
        let mut last = 0;
        let order = self.bucket.replay(&replayed, |txid, state| {
            let n = self.number_of(state, &format!("TXID {txid}"));
            if n < last {
                self.fail(&format!("TXID {txid}: {n} comes after {last}"));
            }
            last = n;
        });
        if let Err(error) = order {
            self.fail(&error);
        }
        let full_states = self.bucket.full_states();
        // Outside the WAL, where SQLite has committed and the process is killed before it could note the pages, or while it sends what that costs.
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let allowed =
            if self.style.full_states { log.lines().filter(|line| LOST.iter().any(|reason| line.ends_with(reason))).count() } else { 0 };
        if full_states > 1 + allowed {
            self.fail(&format!("{full_states} full states were sent, and {allowed} were due"));
        }
        eprintln!(
            "{} seed {}: {} died, {} commits, {full_states} full states",
            self.style.name,
            self.seed,
            self.deaths,
            self.acknowledged.len()
        );
    }
}

fn worker_number(worker: &mut Worker) -> i64 {
    worker.host.value(worker.db, "SELECT n FROM counter").as_i64().unwrap()
}

fn campaign(style: Style) {
    let (seed, rounds) = (number("REPLICATED_TEST_SEED", 1), number("REPLICATED_TEST_CRASH_ROUNDS", 20));
    let (mut deaths, mut lives) = (0, 0);
    while deaths < rounds {
        lives += 1;
        let mut life = Life::new(style, seed.wrapping_mul(1000) + lives);
        // The first full state is not what is tested here.
        while !life.start(String::new()) {}
        let worker = &mut life.workers[0];
        worker.host.sync(worker.db);
        while life.deaths < (rounds - deaths).min(12) {
            life.round();
        }
        deaths += life.deaths;
        life.end();
    }
}

const WAL: Style = Style { name: "wal", modes: &["WAL"], autocheckpoint: 15, remote: false, full_states: false };

#[test]
fn in_wal_mode() {
    campaign(WAL);
}

#[test]
fn in_wal_mode_with_commits_that_wait_for_the_bucket() {
    campaign(Style { name: "remote", autocheckpoint: 40, remote: true, ..WAL });
}

#[test]
fn with_a_rollback_journal() {
    campaign(Style { name: "delete", modes: &["DELETE"], full_states: true, ..WAL });
}

#[test]
fn with_a_rollback_journal_and_commits_that_wait_for_the_bucket() {
    campaign(Style { name: "remote delete", modes: &["PERSIST"], remote: true, full_states: true, ..WAL });
}

#[test]
fn while_journal_modes_take_turns() {
    campaign(Style { name: "turns", modes: &["WAL", "DELETE", "TRUNCATE"], full_states: true, ..WAL });
}
