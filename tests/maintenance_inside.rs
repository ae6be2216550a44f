//! The process that writes to a bucket maintains it, too: it stays small, every state that it promises is there at every moment, it is not listed, and no
//! commit waits for any of that.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use replicated::maintenance;
use replicated::restore::{PlanError, RestoreError, Target};
use replicated::store::{Level, LtxName, SNAPSHOT_LEVEL};
use replicated::types::Txid;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::faulty::{Endpoint, Fault, Kind};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::maintenance::Order;
use replicated_testkit::net::Proxy;
use replicated_testkit::s3::{Options, Seen, Server};
use replicated_testkit::sqlite::{integrity_check, page_compare};
use replicated_testkit::tools;

/// Rounds follow each other, and what is half a second old may go half a second later.
const BUSY: &[(&str, &str)] = &[
    ("sync_interval", "10ms"),
    ("burst", "100"),
    ("spans", "100ms,300ms,1s"),
    ("history", "300ms"),
    ("grace", "500ms"),
    ("snapshot_every", "500ms"),
    ("snapshot_change", "100000"),
];

/// An application, its database and its bucket, and what each TXID was.
struct App {
    dir: tempfile::TempDir,
    bucket: Bucket,
    uri: String,
    states: BTreeMap<Txid, PathBuf>,
    random: fastrand::Rng,
}

impl App {
    fn on(bucket: Option<Bucket>, more: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = bucket.unwrap_or_else(|| Bucket::folder(&dir.path().join("bucket")));
        let options: Vec<(&str, &str)> =
            BUSY.iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name)).chain(more).copied().collect();
        let uri = host::replicated(&dir.path().join("app.db"), &bucket.url, &options);
        Self { dir, bucket, uri, states: BTreeMap::new(), random: fastrand::Rng::with_seed(5) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn start(&self, which: Program, env: &[(&str, &str)]) -> (Host, Db) {
        let mut all = self.bucket.env.clone();
        all.push(("REPLICATED_TEST_LOG".to_owned(), self.path("log").display().to_string()));
        all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut host = Host::start(which, &all);
        let db = host.open(&self.uri);
        host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x)");
        (host, db)
    }

    fn open(&self) -> (Host, Db) {
        self.start(Program::Rust, &[])
    }

    /// One upload, or `None` where the process has died of it.
    fn try_commit(&mut self, host: &mut Host, db: Db) -> Option<Txid> {
        let bytes = self.random.u32(1..6000);
        host.try_query(db, &format!("INSERT INTO t(x) VALUES (randomblob({bytes}))")).ok()?;
        host.try_query(db, "DELETE FROM t WHERE id <= (SELECT max(id) FROM t) - 40").ok()?;
        host.try_query(db, "PRAGMA replicated_sync='100s'").ok()?.first()?.first()?.as_str().and_then(Txid::from_hex)
    }

    fn commit(&mut self, host: &mut Host, db: Db) -> Txid {
        self.try_commit(host, db).unwrap()
    }

    /// The same, and what it was is remembered.
    fn remember(&mut self, host: &mut Host, db: Db) -> Txid {
        let txid = self.commit(host, db);
        let copy = self.path(&format!("state-{txid}.db"));
        std::fs::copy(flattened(&self.path("app.db"), self.dir.path()), &copy).unwrap();
        self.states.insert(txid, copy);
        txid
    }

    /// A state that the bucket has is the state that it was. Whether it has it.
    fn check(&self, txid: Txid) -> bool {
        let output = self.path("restored.db");
        loop {
            match self.bucket.try_restore(Target::Txid(txid), &output) {
                Ok(_) => {
                    page_compare(&self.states[&txid], &output).unwrap();
                    integrity_check(&output).unwrap();
                    return true;
                }
                Err(RestoreError::Plan { source: PlanError::TooOld { .. } | PlanError::Merged { .. }, .. }) => return false,
                // It went while it was read, which `grace` is for.
                Err(error) if error.to_string().contains("No such file") || error.to_string().contains("NoSuchKey") => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The newest state is what the application has, for us and for Litestream. Nothing may be committed meanwhile.
    fn check_newest(&self) {
        let (ours, theirs) = (self.path("restored.db"), self.path("theirs.db"));
        let local = flattened(&self.path("app.db"), self.dir.path());
        self.bucket.restore(&ours);
        page_compare(&local, &ours).unwrap();
        integrity_check(&ours).unwrap();
        if let Some(tools) = tools::environment() {
            litestream_restore(&tools, &self.bucket, &theirs);
            page_compare(&local, &theirs).unwrap();
        }
    }

    /// Commits until something is so.
    fn commit_until(&mut self, host: &mut Host, db: Db, what: &str, mut is_so: impl FnMut(&mut Host) -> bool) {
        let deadline = std::time::Instant::now() + host::PATIENCE;
        loop {
            self.commit(host, db);
            if is_so(host) {
                return;
            }
            let status = || host.value(db, "PRAGMA replicated_status");
            assert!(std::time::Instant::now() < deadline, "{what}: not so: {}", self.told(status));
        }
    }

    fn told(&self, status: impl FnOnce() -> serde_json::Value) -> String {
        let log = self.log();
        let end: Vec<&str> = log.lines().rev().take(40).collect();
        format!("{}\n{}\n{:?}", status(), end.join("\n"), self.bucket.list())
    }

    /// Commits until the bucket has been maintained once more.
    fn maintained(&mut self, host: &mut Host, db: Db) {
        let before = host.status(db, "last_maintenance");
        self.commit_until(host, db, "a round", |host| host.status(db, "last_maintenance") != before);
    }

    fn level(&self, level: u8) -> usize {
        self.bucket.level(Level::new(level).unwrap()).len()
    }
}

fn litestream_restore(tools: &Path, bucket: &Bucket, output: &Path) {
    // It may not be there.
    let _ = std::fs::remove_file(output);
    let mut command = host::command(tools.join("bin/litestream"), &bucket.env);
    let endpoint = bucket.env.iter().find(|(name, _)| name == "AWS_ENDPOINT_URL").map(|(_, endpoint)| endpoint);
    let url = match endpoint {
        Some(endpoint) => format!("{}?endpoint={endpoint}&forcePathStyle=true&region=us-east-1", bucket.url),
        None => bucket.url.clone(),
    };
    let done = command.arg("restore").arg("-o").arg(output).arg(url).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn is_listing(seen: &Seen) -> bool {
    seen.method == "GET" && seen.path.trim_matches('/').split_once('/').is_none()
}

/// A listing of level 1: the uploader itself has no business there.
fn lists_all(seen: &Seen) -> bool {
    is_listing(seen) && seen.query.contains("0001")
}

fn makes(seen: &Seen, level: u8) -> bool {
    seen.method == "PUT" && seen.path.contains(&format!("/000{level}/"))
}

fn deletes(seen: &Seen) -> bool {
    seen.method == "POST" && seen.query.contains("delete")
}

#[test]
fn a_bucket_stays_small_while_the_application_writes() {
    let server = Server::start().unwrap();
    for bucket in [Some(Bucket::s3(&server, "small")), None] {
        let mut app = App::on(bucket, &[]);
        let (mut host, db) = app.open();
        for round in 0..60 {
            app.remember(&mut host, db);
            if round % 15 == 0 {
                app.check_newest();
                let older: Vec<Txid> = app.states.keys().rev().step_by(5).take(4).copied().collect();
                for txid in older {
                    app.check(txid);
                }
            }
        }
        let bucket = app.bucket.clone();
        app.commit_until(&mut host, db, "a small bucket", |_| {
            let files = bucket.list();
            let newest = files.iter().map(|file| file.name.max_txid.get()).max().unwrap_or_default();
            files.len() as u64 * 3 < newest
        });
        assert!(app.level(9) >= 1 && app.level(1) >= 1, "{:?}", app.bucket.list());
        assert_eq!(host.status(db, "maintenance_error"), "-");
        app.check_newest();
        host.close(db);
        app.check_newest();
    }
}

/// What is made and deleted is known from what was made and deleted before; and when nothing is committed any more, nothing is asked either.
#[test]
fn nothing_is_listed_and_nothing_is_asked_when_nothing_is_committed() {
    let server = Server::start().unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "quiet")), &[]);
    let (mut host, db) = app.open();
    app.maintained(&mut host, db);
    let at_first = server.take_log();
    let listings = at_first.iter().filter(|seen| lists_all(seen)).count();
    assert_eq!(listings, 2 + 1, "an empty bucket, before the full state is sent, and what it has then: {at_first:?}");
    let mut log = Vec::new();
    app.commit_until(&mut host, db, "a life of the bucket", |_| {
        log.extend(server.take_log());
        let count = |is: &dyn Fn(&Seen) -> bool| log.iter().filter(|seen| is(seen)).count();
        count(&|seen| makes(seen, 1)) > 8 && count(&|seen| makes(seen, 9)) > 1 && count(&deletes) > 4
    });
    let listings: Vec<&Seen> = log.iter().filter(|seen| is_listing(seen)).collect();
    assert!(listings.is_empty(), "{listings:?}");
    // The next process knows as much.
    host.close(db);
    drop(host);
    server.take_log();
    let (mut host, db) = app.open();
    app.maintained(&mut host, db);
    app.maintained(&mut host, db);
    let log: Vec<Seen> = server.take_log().into_iter().filter(lists_all).collect();
    assert!(log.is_empty(), "{log:?}");
    // What was committed last is seen to, and that is all.
    let mut quiet = 0;
    eventually("silence", || {
        std::thread::sleep(Duration::from_millis(250));
        quiet = if server.take_log().is_empty() { quiet + 1 } else { 0 };
        quiet == 4
    });
    app.check_newest();
    // Without it, or where it is damaged, all is listed once.
    for damage in ["", "RPLBKT01 and nothing else"] {
        host.close(db);
        drop(host);
        let ledger = app.path("app.db-replicated/bucket");
        if damage.is_empty() { std::fs::remove_file(&ledger).unwrap() } else { std::fs::write(&ledger, damage).unwrap() }
        server.take_log();
        (host, _) = app.open();
        app.maintained(&mut host, db);
        app.maintained(&mut host, db);
        assert_eq!(server.take_log().iter().filter(|seen| lists_all(seen)).count(), 1);
    }
    drop(host);
}

#[test]
fn switched_off_it_leaves_the_bucket_to_others() {
    let mut app = App::on(None, &[("maintenance", "off")]);
    let (mut host, db) = app.open();
    for _ in 0..60 {
        app.commit(&mut host, db);
    }
    host.close(db);
    assert!(app.level(1) == 0 && app.level(9) == 1 && app.level(0) > 60, "{:?}", app.bucket.list());
    assert!(!app.path("app.db-replicated/bucket").exists());
}

/// While an upload is under way what begins of a round was on its way already: one request, or a few small reads. And with each upload that ends as much does.
#[test]
fn commits_that_wait_go_first() {
    let server = Server::start().unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "first")), &[("durability", "remote")]);
    let (mut host, db) = app.open();
    app.maintained(&mut host, db);
    server.delay_uploads(Duration::from_millis(150));
    server.take_log();
    let mut log = Vec::new();
    eventually("a round beside commits", || {
        host.query(db, "INSERT INTO t(x) VALUES (randomblob(3000))");
        log.extend(server.take_log());
        log.iter().filter(|seen| seen.ended.is_some() && makes(seen, 1)).count() > 1
    });
    let uploads: Vec<&Seen> = log.iter().filter(|seen| seen.is_upload() && seen.ended.is_some()).collect();
    assert!(uploads.len() > 2, "{uploads:?}");
    for upload in uploads {
        let within = |seen: &&Seen| !seen.is_upload() && upload.began < seen.began && Some(seen.began) < upload.ended;
        let begun: Vec<&Seen> = log.iter().filter(within).collect();
        assert!(begun.len() <= 1 || begun.len() <= 8 && begun.iter().all(|seen| seen.method == "GET"), "{upload:?}: {begun:?}");
    }
    server.delay_uploads(Duration::ZERO);
    app.commit(&mut host, db);
    app.check_newest();
}

/// kill -9 at each step of a round within the application.
#[test]
fn an_application_may_die_at_any_step_of_a_round() {
    let server = Server::start().unwrap();
    let points = [
        "upkeep.begin",
        "maintain.claimed",
        "maintain.create",
        "maintain.created",
        "maintain.merged",
        "maintain.verify",
        "maintain.delete",
        "maintain.deleted",
        "ledger.append",
        "ledger.written",
        "upkeep.done",
    ];
    for (number, point) in points.into_iter().enumerate() {
        let bucket = (number % 2 == 0).then(|| Bucket::s3(&server, point));
        let mut app = App::on(bucket, &[]);
        let fault = format!("{point}=kill@{}", app.random.u32(1..4));
        let (mut host, db) = app.start(Program::Faulty, &[("REPLICATED_TEST_FAULT", &fault)]);
        let mut last = app.remember(&mut host, db);
        for _ in 0..400 {
            match app.try_commit(&mut host, db) {
                Some(txid) => last = txid,
                None => break,
            }
        }
        assert!(host.try_query(db, "SELECT 1").is_err(), "{fault}: it has not died");
        drop(host);
        // What was acknowledged is there, for us and for Litestream.
        let restored = app.path("restored.db");
        assert!(app.bucket.restore(&restored).txid >= last, "{fault}");
        integrity_check(&restored).unwrap();
        if let Some(tools) = tools::environment() {
            let theirs = app.path("theirs.db");
            litestream_restore(&tools, &app.bucket, &theirs);
            page_compare(&restored, &theirs).unwrap();
        }
        // The next process goes on, without a full state, and goes on maintaining: its own claim does not keep it out.
        let (mut host, db) = app.open();
        app.commit(&mut host, db);
        app.maintained(&mut host, db);
        app.maintained(&mut host, db);
        assert_eq!(host.status(db, "maintenance_error"), "-", "{fault}");
        assert_eq!(host.status(db, "snapshots"), "0", "{fault}");
        app.check_newest();
        host.close(db);
    }
}
