//! Random lives of an application against a store that misbehaves: what was acknowledged is in the bucket at that moment, every TXID of the
//! bucket is a state that was committed, and once the store behaves the bucket is the database.
//!
//! `REPLICATED_TEST_ROUNDS` sets how many lives each campaign has, `REPLICATED_TEST_OPERATIONS` how long one is, `REPLICATED_TEST_SEED` which
//! life is the first: every later one counts on from there. `make test-faults` is the long form.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use replicated::restore::Target;
use replicated::store::Level;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::faulty::{self, Endpoint};
use replicated_testkit::host::{self, Db, Host, Program};
use replicated_testkit::life::Life;
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::page_compare;
use replicated_testkit::tools;

struct Campaign {
    name: &'static str,
    program: Program,
    /// The store replaces objects, whatever condition it is given.
    ignores_conditions: bool,
    /// Journal modes that the application uses in turn.
    modes: &'static [&'static str],
    /// 0 leaves SQLite's own.
    autocheckpoint: u32,
    page_size: u32,
    most_large_bytes: u32,
    /// One operation of so many is a kill; 0 for none.
    kill_every: u32,
    max_local: &'static str,
    sync_interval: &'static str,
    /// Full states may be necessary after the first: a limit is passed, a process dies with one on its way.
    more_full_states: bool,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// One life, from an empty bucket to the last comparison.
struct Run<'a> {
    campaign: &'a Campaign,
    seed: u64,
    random: fastrand::Rng,
    life: Life,
    endpoint: Endpoint,
    /// Around the faults.
    direct: Bucket,
    dir: tempfile::TempDir,
    uri: String,
    env: Vec<(String, String)>,
    host: Option<Host>,
    db: Option<Db>,
    /// The last transaction that was made.
    n: i64,
    /// What is known to be in the bucket, state and TXID.
    acknowledged: Option<(i64, String)>,
    server: Server,
}

impl<'a> Run<'a> {
    fn new(campaign: &'a Campaign, seed: u64) -> Self {
        let server = Server::with_options(Options { ignores_conditions: campaign.ignores_conditions, ..Options::default() }).unwrap();
        let endpoint = Endpoint::start(&server, faulty::seeded(seed)).unwrap();
        let direct = Bucket::s3(&server, campaign.name);
        let mut env = direct.through(&endpoint.endpoint()).env;
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        env.push(("REPLICATED_TEST_LOG".to_owned(), log.display().to_string()));
        let options = [
            ("sync_interval", campaign.sync_interval),
            ("burst", "20"),
            ("close_timeout", "100ms"),
            ("connect_timeout", "400ms"),
            ("request_timeout", "500ms"),
            ("max_local", campaign.max_local),
            ("log", log.to_str().unwrap()),
            ("log_level", "debug"),
        ];
        let uri = host::replicated(&dir.path().join("app.db"), &direct.url, &options);
        let life = Life { seed, most_large_bytes: campaign.most_large_bytes };
        let random = fastrand::Rng::with_seed(seed.wrapping_mul(31));
        Self { campaign, seed, random, life, endpoint, direct, dir, uri, env, host: None, db: None, n: -1, acknowledged: None, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What a failure is reported with.
    fn fail(&self, what: &str) -> ! {
        let log = self.log();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        let objects: Vec<String> = self.direct.try_list().iter().map(|listed| listed.name.to_string()).collect();
        panic!(
            "{}, seed {}: {what}\nto repeat it: REPLICATED_TEST_SEED={} REPLICATED_TEST_ROUNDS=1 cargo test --test campaigns {}\nfaults: {:?}\nobjects: {}\n{}",
            self.campaign.name,
            self.seed,
            self.seed,
            self.campaign.name,
            self.endpoint.faults(),
            objects.join(" "),
            tail.join("\n")
        );
    }

    fn open(&mut self) {
        if self.host.is_none() {
            self.host = Some(Host::start(self.campaign.program, &self.env));
        }
        let Some(host) = &mut self.host else { return };
        let db = host.open(&self.uri);
        self.db = Some(db);
        host.run(db, &format!("PRAGMA page_size={}", self.campaign.page_size));
        if self.campaign.autocheckpoint > 0 {
            host.run(db, &format!("PRAGMA wal_autocheckpoint={}", self.campaign.autocheckpoint));
        }
        self.choose_mode();
        self.check_state();
    }

    fn choose_mode(&mut self) {
        let mode = self.campaign.modes[self.random.usize(0..self.campaign.modes.len())];
        // Once exclusive, always so until the file is closed, as far as SQLite is concerned.
        let exclusive = self.campaign.modes.len() > 1 && self.random.u32(0..4) == 0;
        let (host, db) = self.connected();
        if exclusive {
            host.run(db, "PRAGMA locking_mode=EXCLUSIVE");
        }
        assert_eq!(host.value(db, &format!("PRAGMA journal_mode={mode}")), mode);
    }

    fn connected(&mut self) -> (&mut Host, Db) {
        match (&mut self.host, self.db) {
            (Some(host), Some(db)) => (host, db),
            _ => unreachable!("it is open"),
        }
    }

    /// Whatever the store does, it is the one store of the one database.
    fn check_state(&mut self) {
        let (host, db) = self.connected();
        let state = host.status(db, "state");
        if !["idle", "uploading", "lagging", "offline"].contains(&state.as_str()) {
            self.fail(&format!("replication is {state}"));
        }
    }

    fn transaction(&mut self) {
        let statements = if self.n < 0 { self.life.begin() } else { self.life.transaction(self.n + 1) };
        let (host, db) = self.connected();
        for sql in &statements {
            host.query(db, sql);
        }
        self.n += 1;
    }

    /// Asks for an acknowledgement. Where there is one, the bucket is the database at this moment.
    fn sync(&mut self, limit: &str) -> bool {
        let (host, db) = self.connected();
        let answer = host.try_query(db, &format!("PRAGMA replicated_sync='{limit}'"));
        let Ok(rows) = answer else { return false };
        let txid = rows[0][0].as_str().unwrap_or_default().to_owned();
        let restored = self.path("restored.db");
        if let Err(error) = self.direct.try_restore(Target::Latest, &restored) {
            self.fail(&format!("acknowledged as TXID {txid}, and then {error}"));
        }
        if let Err(difference) = page_compare(&flattened(&self.path("app.db"), self.dir.path()), &restored) {
            self.fail(&format!("acknowledged as TXID {txid}, and then {difference}"));
        }
        self.acknowledged = Some((self.n, txid));
        true
    }

    fn close(&mut self) {
        let (host, db) = self.connected();
        host.close(db);
        self.db = None;
        // A request that was given up may be refused when nobody listens any more.
        self.endpoint.forget_who_waits();
    }

    /// kill -9, between two transactions or within one. What the bucket has then is a committed state with everything that was acknowledged.
    fn kill(&mut self) {
        let statements = self.life.transaction(self.n + 1);
        let cut = self.random.usize(0..=statements.len());
        let (host, db) = self.connected();
        for sql in &statements[..cut] {
            host.query(db, sql);
        }
        self.n += i64::from(cut == statements.len());
        if let Some(host) = self.host.take() {
            host.kill();
        }
        self.db = None;
        self.endpoint.forget_who_waits();
        let local = self.life.state(&flattened(&self.path("app.db"), self.dir.path()));
        if local != Ok(self.n) {
            self.fail(&format!("the database itself is at {local:?} after a kill, not at {}", self.n));
        }
        let Some((acknowledged, txid)) = self.acknowledged.clone() else { return };
        let restored = self.path("restored.db");
        if let Err(error) = self.direct.try_restore(Target::Latest, &restored) {
            self.fail(&format!("TXID {txid} was acknowledged, and after a kill {error}"));
        }
        match self.life.state(&restored) {
            Ok(state) if (acknowledged..=self.n).contains(&state) => {}
            other => self.fail(&format!("after a kill the bucket is at {other:?}; {acknowledged} was acknowledged, {} committed", self.n)),
        }
    }

    fn operation(&mut self) {
        if self.n < 0 {
            return self.transaction();
        }
        if self.campaign.kill_every > 0 && self.random.u32(0..self.campaign.kill_every) == 0 {
            self.kill();
            return self.open();
        }
        match self.random.u32(0..200) {
            kind @ 0..6 => {
                let kind = ["PASSIVE", "FULL", "RESTART", "TRUNCATE", "TRUNCATE", "RESTART"][kind as usize];
                let (host, db) = self.connected();
                host.query(db, &format!("PRAGMA wal_checkpoint({kind})"));
            }
            6..9 => {
                self.close();
                self.open();
            }
            9 => {
                self.close();
                if let Some(host) = self.host.take() {
                    host.quit();
                }
                self.endpoint.forget_who_waits();
                self.open();
            }
            10 => {
                let statements = self.life.transaction(self.n + 1);
                let (host, db) = self.connected();
                for sql in &statements[..statements.len() - 1] {
                    host.query(db, sql);
                }
                host.query(db, "ROLLBACK");
            }
            11 => {
                let (host, db) = self.connected();
                host.query(db, "VACUUM");
            }
            12..18 => {
                let limit = ["300ms", "1s", "3s"][self.random.usize(0..3)];
                self.sync(limit);
            }
            18..20 => self.choose_mode(),
            20..24 => std::thread::sleep(std::time::Duration::from_millis(self.random.u64(0..60))),
            _ => self.transaction(),
        }
    }

    fn full_states_told(&self) -> usize {
        self.log().lines().filter(|line| line.contains("the full state is in the bucket")).count()
    }

    /// The store behaves: everything arrives, and every TXID is a state.
    fn end(&mut self) {
        self.endpoint.behave();
        if self.n < 0 {
            self.transaction();
        }
        if !self.sync("100s") {
            self.fail("the store behaves, and what was committed does not arrive");
        }
        self.check_state();
        self.close();
        if let Some(host) = self.host.take() {
            host.quit();
        }
        let database = flattened(&self.path("app.db"), self.dir.path());
        // What was on its way for so long arrives when all is done.
        self.endpoint.release_late();
        let restored = self.path("restored.db");
        self.direct.restore(&restored);
        if let Err(difference) = page_compare(&database, &restored) {
            self.fail(&difference);
        }
        if self.life.state(&restored) != Ok(self.n) {
            self.fail(&format!("the last state is {:?}, not {}", self.life.state(&restored), self.n));
        }
        self.check_prefixes();
        let early = self.endpoint.too_early();
        if !early.is_empty() {
            self.fail(&format!("asked to wait, it did not: {}", early.join("; ")));
        }
        if !self.campaign.more_full_states && self.full_states_told() != 1 {
            self.fail(&format!("the full state was sent {} times", self.full_states_told()));
        }
        self.check_litestream();
    }

    /// States of the bucket are states of the database, in order.
    fn check_prefixes(&mut self) {
        let chain: Vec<_> = self.direct.level(Level::ZERO).into_iter().map(|listed| listed.name.max_txid).collect();
        let mut chosen: Vec<_> = (0..10).map(|_| chain[self.random.usize(0..chain.len())]).collect();
        chosen.sort_unstable();
        chosen.dedup();
        let prefix = self.path("prefix.db");
        let mut before = -1;
        for (i, txid) in chosen.iter().enumerate() {
            if i == 0 {
                // By the tool that a user has.
                let mut restore = host::command(env!("CARGO_BIN_EXE_replicated"), &self.direct.env);
                restore.args(["restore", "--force", "--txid", &txid.to_string(), "-o"]).arg(&prefix).arg(&self.direct.url);
                let output = restore.output().unwrap();
                if !output.status.success() {
                    self.fail(&format!("TXID {txid}: {}", String::from_utf8_lossy(&output.stderr)));
                }
            } else if let Err(error) = self.direct.try_restore(Target::Txid(*txid), &prefix) {
                self.fail(&format!("TXID {txid}: {error}"));
            }
            match self.life.state(&prefix) {
                Ok(state) if state >= before => before = state,
                other => self.fail(&format!("TXID {txid} is {other:?}, and {before} came before")),
            }
        }
    }

    /// Litestream restores the same.
    fn check_litestream(&mut self) {
        if !self.seed.is_multiple_of(3) {
            return;
        }
        let Some(tools) = tools::environment() else { return };
        let output = self.path("theirs.db");
        let url = format!("{}?endpoint={}&forcePathStyle=true&region=us-east-1", self.direct.url, self.server.endpoint());
        let mut restore: Command = host::command(tools.join("bin/litestream"), &self.direct.env);
        let done = restore.arg("restore").arg("-o").arg(&output).arg(url).output().unwrap();
        if !done.status.success() {
            self.fail(&format!("Litestream: {}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)));
        }
        if let Err(difference) = page_compare(&self.path("restored.db"), &output) {
            self.fail(&format!("Litestream restores something else: {difference}"));
        }
    }
}

fn run(campaign: &Campaign) {
    let first = number("REPLICATED_TEST_SEED", 1);
    let mut faults: BTreeMap<&'static str, u64> = BTreeMap::new();
    let (mut requests, mut transactions) = (0, 0);
    for seed in first..first + number("REPLICATED_TEST_ROUNDS", 1) {
        let mut run = Run::new(campaign, seed);
        run.open();
        for _ in 0..number("REPLICATED_TEST_OPERATIONS", 250) {
            run.operation();
        }
        run.end();
        for (name, count) in run.endpoint.faults() {
            *faults.entry(name).or_default() += count;
        }
        requests += run.endpoint.requests();
        transactions += run.n;
    }
    // A campaign in fine weather proves nothing.
    assert!(faults.len() > 5, "{faults:?}");
    // Past the capture of the test harness: what a long campaign consisted of.
    let _ = writeln!(std::io::stderr(), "{}: {transactions} transactions, {requests} requests, {faults:?}", campaign.name);
}

#[test]
fn steady() {
    run(&Campaign {
        name: "steady",
        program: Program::Python,
        ignores_conditions: false,
        modes: &["wal"],
        autocheckpoint: 0,
        page_size: 4096,
        most_large_bytes: 400_000,
        kill_every: 0,
        max_local: "1GiB",
        sync_interval: "10ms",
        more_full_states: false,
    });
}

#[test]
fn killed() {
    run(&Campaign {
        name: "killed",
        program: Program::Python,
        ignores_conditions: false,
        modes: &["wal"],
        autocheckpoint: 30,
        page_size: 1024,
        most_large_bytes: 200_000,
        kill_every: 60,
        max_local: "1GiB",
        sync_interval: "10ms",
        more_full_states: true,
    });
}

#[test]
fn replaced() {
    run(&Campaign {
        name: "replaced",
        program: Program::Python,
        ignores_conditions: true,
        modes: &["wal", "wal", "delete"],
        autocheckpoint: 50,
        page_size: 4096,
        most_large_bytes: 300_000,
        kill_every: 50,
        max_local: "1MiB",
        sync_interval: "20ms",
        more_full_states: true,
    });
}

#[test]
fn limited() {
    run(&Campaign {
        name: "limited",
        program: Program::Rust,
        ignores_conditions: false,
        modes: &["wal"],
        autocheckpoint: 20,
        page_size: 4096,
        most_large_bytes: 1_500_000,
        kill_every: 80,
        max_local: "1MiB",
        sync_interval: "50ms",
        more_full_states: true,
    });
}

#[test]
fn modes() {
    run(&Campaign {
        name: "modes",
        program: Program::Python,
        ignores_conditions: false,
        modes: &["wal", "delete", "truncate", "persist"],
        autocheckpoint: 40,
        page_size: 2048,
        most_large_bytes: 200_000,
        kill_every: 60,
        max_local: "1GiB",
        sync_interval: "10ms",
        more_full_states: true,
    });
}
