//! The process that writes to a bucket maintains it, too: it stays small, every state that it promises is there at every moment, it is not listed, and no
//! commit waits for any of that.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use replicated::maintenance;
use replicated::restore::{PlanError, RestoreError, Target};
use replicated::store::{Level, LtxName};
use replicated::types::Txid;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::faulty::{Endpoint, Fault, Kind};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::maintenance::Order;
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
    is_listing(seen) && seen.query.contains("%2F0001%2F")
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
        for round in 0..45 {
            if round % 3 == 0 {
                app.remember(&mut host, db)
            } else {
                app.commit(&mut host, db)
            };
            if round % 15 == 0 {
                app.check_newest();
                let older: Vec<Txid> = app.states.keys().rev().step_by(2).take(3).copied().collect();
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
    // The next process knows as much. (Of a round that a close has cut off the claim would tell.)
    silence(&server);
    host.close(db);
    drop(host);
    let _ = server.take_log();
    let (mut host, db) = app.open();
    app.maintained(&mut host, db);
    app.maintained(&mut host, db);
    let log: Vec<Seen> = server.take_log().into_iter().filter(lists_all).collect();
    assert!(log.is_empty(), "{log:?}");
    // What was committed last is seen to, and that is all.
    silence(&server);
    app.check_newest();
    // Without it, or where it is damaged, all is listed once.
    for damage in ["", "RPLBKT01 and nothing else"] {
        host.close(db);
        drop(host);
        let ledger = app.path("app.db-replicated/bucket");
        if damage.is_empty() {
            std::fs::remove_file(&ledger).unwrap()
        } else {
            std::fs::write(&ledger, damage).unwrap()
        }
        let _ = server.take_log();
        (host, _) = app.open();
        app.maintained(&mut host, db);
        app.maintained(&mut host, db);
        // Where a round lasts until the uploader compares, two seconds after the open, what that saw last may just be gone: then it looks for itself.
        let listings = server.take_log().iter().filter(|seen| lists_all(seen)).count();
        assert!((1..=2).contains(&listings), "{listings}");
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

/// While an upload is under way what begins of a round was on its way already: one request, or a few small reads, or the two of the claim. And with each upload
/// that ends as much does.
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
        let (of_note, begun): (Vec<&Seen>, Vec<&Seen>) =
            log.iter().filter(within).partition(|seen| seen.path.ends_with("maintenance.json"));
        assert!(of_note.len() <= 2, "{upload:?}: {of_note:?}");
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
        "recent.write",
        "recent.read",
    ];
    std::thread::scope(|scope| {
        for (number, point) in points.into_iter().enumerate() {
            let bucket = (number % 2 == 0 || point.starts_with("recent.")).then(|| Bucket::s3(&server, point));
            let fault = format!("{point}=kill@{}", 1 + number % 3);
            scope.spawn(move || dies_and_goes_on(bucket, &fault));
        }
    });
}

fn dies_and_goes_on(bucket: Option<Bucket>, fault: &str) {
    let mut app = App::on(bucket, &[]);
    let (mut host, db) = app.start(Program::Faulty, &[("REPLICATED_TEST_FAULT", fault)]);
    let mut last = None;
    for _ in 0..1000 {
        match app.try_commit(&mut host, db) {
            Some(txid) => last = Some(txid),
            None => break,
        }
    }
    assert!(host.try_query(db, "SELECT 1").is_err(), "{fault}: it has not died");
    drop(host);
    // What was acknowledged is there, for us and for Litestream.
    let restored = app.path("restored.db");
    assert!(Some(app.bucket.restore(&restored).txid) >= last, "{fault}");
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
    assert_eq!((host.status(db, "maintenance_error").as_str(), host.status(db, "snapshots").as_str()), ("-", "0"), "{fault}");
    host.close(db);
    app.check_newest();
}

/// Another process takes over: what the one before knew it knows, and nothing is listed. The one that does not upload does not maintain.
#[test]
fn what_is_known_goes_on_with_whoever_uploads() {
    let server = Server::start().unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "over")), &[]);
    let (mut owner, of_owner) = app.open();
    let (mut guest, of_guest) = app.open();
    app.maintained(&mut owner, of_owner);
    app.maintained(&mut guest, of_guest);
    assert_eq!(guest.status(of_guest, "last_maintenance"), owner.status(of_owner, "last_maintenance"));
    // Between two rounds: one that was cut off would be found by its claim.
    silence(&server);
    owner.kill();
    app.maintained(&mut guest, of_guest);
    app.maintained(&mut guest, of_guest);
    let log: Vec<Seen> = server.take_log().into_iter().filter(lists_all).collect();
    assert!(log.is_empty(), "{log:?}");
    app.check_newest();
    // One that is killed in the midst of it all has left what is known, or it is listed once; the uploader looks for itself where what it saw last is gone.
    let (mut other, of_other) = app.open();
    let _ = server.take_log();
    guest.kill();
    app.maintained(&mut other, of_other);
    app.maintained(&mut other, of_other);
    assert!(server.take_log().iter().filter(|seen| lists_all(seen)).count() <= 2);
    app.check_newest();
}

/// Waits until nothing is asked any more.
fn silence(server: &Server) {
    let mut quiet = 0;
    eventually("silence", || {
        std::thread::sleep(Duration::from_millis(250));
        quiet = if server.take_log().is_empty() { quiet + 1 } else { 0 };
        quiet == 4
    });
}

/// `replicated maintain` beside it: one of them works at a time, and what the other has done is found.
#[test]
fn the_command_may_maintain_the_same_bucket() {
    let server = Server::start().unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "both")), &[("history", "24h")]);
    let (mut host, db) = app.open();
    let mut order = Order { history_ms: 24 * 3_600_000, ..Order::of(&app.bucket) };
    order.spans_ms = [100, 300, 1000];
    let (mut worked, mut busy) = (0, 0);
    eventually("rounds of both", || {
        for _ in 0..5 {
            app.remember(&mut host, db);
        }
        match order.run(&app.bucket) {
            Ok(report) => {
                assert_eq!(report.problems, Vec::<String>::new());
                worked += usize::from(!report.made.is_empty());
            }
            Err(maintenance::MaintainError::Busy { .. }) => busy += 1,
            Err(error) => panic!("{error}"),
        }
        worked + busy > 3 && worked > 0 && host.status(db, "last_maintenance") != "-"
    });
    app.check_newest();
    let missing: Vec<&Txid> = app.states.keys().filter(|txid| !app.check(**txid)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(host.status(db, "state"), "idle");
    // The application goes on with it.
    app.maintained(&mut host, db);
    assert_eq!(host.status(db, "maintenance_error"), "-");
}

/// Of many databases in one process one is maintained at a time, and each comes to its turn.
#[test]
fn many_databases_are_maintained_one_after_the_other() {
    const COUNT: usize = 12;
    let server = Server::with_options(Options { delay: Duration::from_millis(1), ..Options::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let buckets: Vec<Bucket> = (0..COUNT).map(|number| Bucket::s3(&server, &format!("many/{number}"))).collect();
    let mut host = Host::start(Program::Rust, &server.env());
    let open = |number: usize| host::replicated(&dir.path().join(format!("{number}.db")), &buckets[number].url, BUSY);
    let databases: Vec<Db> = (0..COUNT).map(|number| host.open(&open(number))).collect();
    for db in &databases {
        host.run(*db, "PRAGMA journal_mode=WAL; CREATE TABLE t(x)");
        host.sync(*db);
    }
    let mut log = server.take_log();
    eventually("a turn for each", || {
        for db in &databases {
            host.run(*db, "INSERT INTO t VALUES (randomblob(1000))");
            host.sync(*db);
        }
        log.extend(server.take_log());
        buckets.iter().all(|bucket| bucket.level(Level::new(1).unwrap()).len() > 1)
    });
    // From one claim to the end of it nobody else makes one.
    let claims: Vec<&str> =
        log.iter().filter(|seen| seen.method == "PUT" && seen.path.ends_with("maintenance.json")).map(|seen| seen.path.as_str()).collect();
    assert!(claims.len() > 2 * COUNT);
    let turns: Vec<&[&str]> = claims.chunk_by(|one, next| one == next).collect();
    assert!(turns.iter().rev().skip(1).all(|turn| turn.len() > 1), "{claims:?}");
    drop(host);
    for (number, bucket) in buckets.iter().enumerate() {
        let restored = dir.path().join("restored.db");
        bucket.restore(&restored);
        page_compare(&flattened(&dir.path().join(format!("{number}.db")), dir.path()), &restored).unwrap();
    }
}

/// Once another writer has gone on, nothing of the bucket is touched any more.
#[test]
fn who_is_fenced_maintains_nothing() {
    let server = Server::start().unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "fenced")), &[("history", "24h")]);
    let (mut host, db) = app.open();
    app.maintained(&mut host, db);
    let newest = app.commit(&mut host, db);
    let place = |txid: Txid| server.root().join(server.bucket()).join("fenced/0000").join(LtxName::level0(txid).file_name());
    std::fs::copy(place(newest), place(newest.next())).unwrap();
    // There may be a round before it is found out.
    let _ = host.try_query(db, "INSERT INTO t(x) VALUES (1)");
    host.try_query(db, "PRAGMA replicated_sync='100s'").unwrap_err();
    assert_eq!(host.status(db, "state"), "fenced");
    silence(&server);
    let before = app.bucket.list();
    let _ = server.take_log();
    for _ in 0..20 {
        let _ = host.try_query(db, "INSERT INTO t(x) VALUES (1)");
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = server.take_log();
    assert!(log.is_empty(), "{log:?}");
    assert_eq!(app.bucket.list(), before);
}

/// Without the lease nothing is written, and what is under way ends.
#[test]
fn a_lost_lease_ends_it() {
    let server = Server::with_options(Options { delay: Duration::from_millis(5), ..Options::default() }).unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "lease")), &[("lease", "1s"), ("history", "24h")]);
    let (mut host, db) = app.open();
    app.maintained(&mut host, db);
    let until = replicated::types::TimestampMs(maintenance::now().0 + 600_000).to_rfc3339();
    let theirs = format!(r#"{{"generation":100,"expires_at":"{until}","owner":"another"}}"#);
    let (store, runtime) = (app.bucket.store(), tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    eventually("somebody else takes it", || {
        runtime.block_on(async {
            let version = store.read_lock().await.unwrap().map(|lock| lock.version);
            let written = store.write_lock(theirs.clone().into(), version.as_ref()).await.unwrap();
            matches!(written, replicated::store::LockWritten::Written(_))
        })
    });
    eventually("the lease is another's", || {
        let _ = host.try_query(db, "INSERT INTO t(x) VALUES (1)");
        host.status(db, "lease") == "another's"
    });
    let before = app.bucket.list();
    let _ = server.take_log();
    for _ in 0..30 {
        let _ = host.try_query(db, "INSERT INTO t(x) VALUES (1)");
        std::thread::sleep(Duration::from_millis(50));
    }
    let written: Vec<Seen> = server.take_log().into_iter().filter(|seen| seen.method == "PUT" || seen.method == "POST").collect();
    assert!(written.is_empty(), "{written:?}");
    assert_eq!(app.bucket.list(), before);
}

/// The full state, a change of the page size and a file that was declared the truth, while rounds are at work.
#[test]
fn breaks_of_every_kind_come_in_the_midst_of_rounds() {
    let server = Server::with_options(Options { delay: Duration::from_millis(3), ..Options::default() }).unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "breaks")), &[("history", "24h"), ("snapshot_every", "24h")]);
    let (mut host, db) = app.open();
    for page_size in [8192, 1024] {
        app.maintained(&mut host, db);
        for _ in 0..12 {
            app.remember(&mut host, db);
        }
        host.run(db, &format!("PRAGMA journal_mode=DELETE; PRAGMA page_size={page_size}; VACUUM; PRAGMA journal_mode=WAL"));
        app.remember(&mut host, db);
    }
    // Somebody writes to it without us: the next open sends the full state, and a round is soon due.
    host.close(db);
    let plain = rusqlite::Connection::open(app.path("app.db")).unwrap();
    plain.execute_batch("CREATE TABLE other(x); INSERT INTO other VALUES (randomblob(50000)); PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(plain);
    let db = host.open(&app.uri);
    app.remember(&mut host, db);
    assert_eq!(host.status(db, "snapshots"), "1");
    app.maintained(&mut host, db);
    for _ in 0..5 {
        app.remember(&mut host, db);
    }
    app.maintained(&mut host, db);
    assert_eq!(host.status(db, "maintenance_error"), "-", "{}", app.log());
    app.check_newest();
    let missing: Vec<&Txid> = app.states.keys().filter(|txid| !app.check(**txid)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // An older copy, declared the truth.
    host.close(db);
    drop(host);
    std::fs::copy(app.states.values().next().unwrap(), app.path("app.db")).unwrap();
    let mut tool = host::command(host::program("replicated"), &app.bucket.env);
    let done = tool.arg("adopt").arg(app.path("app.db")).arg(&app.bucket.url).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let (mut host, db) = app.open();
    app.remember(&mut host, db);
    app.maintained(&mut host, db);
    app.check_newest();
    assert!(app.check(*app.states.keys().next().unwrap()));
}

/// What a power loss took from the database, and the bucket still has, is kept until somebody lets it go.
#[test]
fn what_is_kept_stays() {
    let mut app = App::on(None, &[]);
    let (mut host, db) = app.open();
    let kept = app.remember(&mut host, db);
    maintenance::keep(&app.bucket.store(), kept, "a power loss").unwrap();
    let other = app.remember(&mut host, db);
    app.remember(&mut host, db);
    let gone = |app: &App, txid| !app.check(txid);
    eventually("the state beside it is gone", || {
        app.commit(&mut host, db);
        gone(&app, other)
    });
    assert!(app.check(kept));
    let _ = maintenance::let_go(&app.bucket.store(), kept).unwrap();
    eventually("it is gone", || {
        app.commit(&mut host, db);
        gone(&app, kept)
    });
    app.check_newest();
}

/// The last close ends a round at once, and what it was making is not there.
#[test]
fn a_close_waits_for_no_round() {
    let server = Server::start().unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "close")), &[("history", "24h")]);
    let (mut host, db) = app.open();
    app.maintained(&mut host, db);
    for _ in 0..40 {
        app.commit(&mut host, db);
    }
    // In the midst of one: it has made something, and is not done.
    server.delay_all(Duration::from_millis(40));
    let _ = server.take_log();
    let mut log = Vec::new();
    eventually("a round", || {
        log.extend(server.take_log());
        if log.iter().all(|seen| seen.is_upload()) {
            app.commit(&mut host, db);
        }
        log.iter().any(|seen| seen.method == "PUT" && seen.path.ends_with("maintenance.json"))
    });
    host.close(db);
    let _ = server.take_log();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(server.take_log(), []);
    server.delay_all(Duration::ZERO);
    app.check_newest();
    // The next process takes its own claim again, and looks what the round has left.
    let db = host.open(&app.uri);
    app.maintained(&mut host, db);
    assert_eq!(host.status(db, "maintenance_error"), "-");
    app.check_newest();
}

/// Credentials that cannot delete: it is told once, tried once, and everything else goes on.
#[test]
fn who_may_not_delete_is_told_once() {
    let server = Server::start().unwrap();
    let endpoint = Endpoint::start(
        &server,
        Box::new(|seen| {
            let is_deletion = seen.kind == Kind::Delete && !seen.key.contains("probe");
            if is_deletion { Fault::Refusal(403, "AccessDenied", None) } else { Fault::None }
        }),
    )
    .unwrap();
    let bucket = Bucket::s3(&server, "locked");
    let mut app = App::on(Some(bucket.through(&endpoint.endpoint())), &[]);
    let (mut host, db) = app.open();
    app.commit_until(&mut host, db, "a refusal", |host| host.status(db, "maintenance_error").contains("AccessDenied"));
    let tried = server.take_log().iter().filter(|seen| deletes(seen)).count() as u64 + endpoint.of_kind(Kind::Delete);
    for _ in 0..3 {
        app.maintained(&mut host, db);
    }
    assert_eq!(server.take_log().iter().filter(|seen| deletes(seen)).count() as u64 + endpoint.of_kind(Kind::Delete), tried);
    assert_eq!(host.status(db, "state"), "idle");
    let told = app.log().lines().filter(|line| line.starts_with("WARN") && line.contains("does not let files be deleted")).count();
    assert_eq!(told, 1, "{}", app.log());
    app.check_newest();
    assert!(app.level(1) > 1);
}

/// A store that fails, for the maintenance alone: told once, shown, and the replication does not know of it.
#[test]
fn a_failure_is_told_and_changes_nothing_for_the_replication() {
    let server = Server::start().unwrap();
    let works = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_up = std::sync::Arc::clone(&works);
    let plan = move |seen: &replicated_testkit::faulty::Seen| {
        let fails = seen.key.ends_with("maintenance.json") && !is_up.load(std::sync::atomic::Ordering::SeqCst);
        if fails { Fault::Refusal(403, "AccessDenied", None) } else { Fault::None }
    };
    let endpoint = Endpoint::start(&server, Box::new(plan)).unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "failing").through(&endpoint.endpoint())), &[]);
    let (mut host, db) = app.open();
    app.commit_until(&mut host, db, "an error", |host| host.status(db, "maintenance_error").contains("maintenance.json"));
    for _ in 0..20 {
        app.commit(&mut host, db);
    }
    assert_eq!((host.status(db, "state").as_str(), host.status(db, "last_error").as_str()), ("idle", "-"));
    assert_eq!((host.status(db, "last_maintenance").as_str(), host.status(db, "bucket_bytes").as_str()), ("-", "-"));
    let told = |app: &App| app.log().lines().filter(|line| line.contains("the bucket is not maintained")).count();
    assert_eq!(told(&app), 1, "{}", app.log());
    works.store(true, std::sync::atomic::Ordering::SeqCst);
    app.maintained(&mut host, db);
    assert_eq!(host.status(db, "maintenance_error"), "-");
    // As of a moment ago: another round may have merged since.
    let bytes: u64 = host.status(db, "bucket_bytes").parse().unwrap();
    let there: u64 = app.bucket.list().iter().map(|file| file.size_bytes).sum();
    assert!((there / 4..there * 4).contains(&bytes), "{bytes} and {there}");
    assert!(app.log().contains("maintenance works again"));
    app.check_newest();
}

/// A fault of ours in a round is told like a failure: replication goes on, and so does the maintenance.
#[test]
fn a_fault_in_it_harms_nothing() {
    let mut app = App::on(None, &[]);
    let (mut host, db) = app.start(Program::Faulty, &[("REPLICATED_TEST_FAULT", "maintain.merged=panic@2")]);
    app.commit_until(&mut host, db, "a fault", |host| host.status(db, "maintenance_error").contains("a fault in the extension"));
    assert_eq!((host.status(db, "state").as_str(), host.status(db, "last_error").as_str()), ("idle", "-"));
    app.commit_until(&mut host, db, "a round", |host| host.status(db, "maintenance_error") == "-");
    let last = host.status(db, "last_maintenance");
    host.close(db);
    app.check_newest();
    // The next process knows when that was.
    let (mut host, db) = app.open();
    host.sync(db);
    assert!(host.status(db, "last_maintenance") >= last);
}

/// Processes that open, commit and close make no round, until so many have gone without one that a close waits for it.
#[test]
fn many_short_processes_come_to_a_round_in_the_end() {
    let server = Server::start().unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "short")), &[("spans", "1ms,1h,2h"), ("history", "24h"), ("snapshot_every", "24h")]);
    let mut host = Host::start(
        Program::Faulty,
        &[app.bucket.env.clone(), vec![("REPLICATED_TEST_ENOUGH_UPLOADS".to_owned(), "8".to_owned())]].concat(),
    );
    let mut once = |app: &mut App, sql: &str| {
        let db = host.open(&app.uri);
        host.run(db, sql);
        host.close(db);
    };
    once(&mut app, "PRAGMA journal_mode=WAL; CREATE TABLE t(x)");
    for _ in 0..6 {
        once(&mut app, "INSERT INTO t VALUES (randomblob(500))");
    }
    let log = server.take_log();
    assert!(!log.iter().any(|seen| seen.path.ends_with("maintenance.json") || makes(seen, 1)), "{log:?}");
    for _ in 0..40 {
        once(&mut app, "INSERT INTO t VALUES (randomblob(500))");
    }
    let log = server.take_log();
    assert!(log.iter().any(|seen| makes(seen, 1)), "{log:?}");
    assert!(app.level(1) >= 1);
    app.check_newest();
}

fn reads(seen: &Seen, level: u8) -> bool {
    seen.method == "GET" && seen.path.contains(&format!("/000{level}/"))
}

/// What the process has sent it does not ask the bucket for. It looks at the end of what it has made, once, and that is all. The next process has nothing at hand.
#[test]
fn what_was_sent_lately_is_merged_without_asking_the_bucket_for_it() {
    let server = Server::start().unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "local")), &[("history", "24h"), ("snapshot_every", "24h")]);
    let recent = app.path("app.db-replicated/recent");
    let (mut host, db) = app.open();
    let mut log = Vec::new();
    app.commit_until(&mut host, db, "two levels", |_| {
        log.extend(server.take_log());
        let count = |level| log.iter().filter(|seen| makes(seen, level)).count();
        count(1) > 5 && count(2) > 1
    });
    assert!(recent.exists());
    // But for the empty file beside the first snapshot, which was no batch.
    let marker = format!("/0000/{0}-{0}.ltx", Txid::FIRST.next());
    let inputs: Vec<&Seen> = log.iter().filter(|seen| reads(seen, 0) && !seen.path.ends_with(&marker)).collect();
    assert!(inputs.is_empty(), "{inputs:?}");
    for seen in log.iter().filter(|seen| (1..=3).any(|level| reads(seen, level))) {
        assert_eq!(log.iter().filter(|other| other.method == "GET" && other.path == seen.path).count(), 1, "{seen:?}");
    }
    app.check_newest();
    for _ in 0..3 {
        app.commit(&mut host, db);
    }
    host.close(db);
    // By the uploader's thread, for which a close waits for a second.
    eventually("it is gone", || !recent.exists());
    drop(host);
    let (mut host, db) = app.open();
    let _ = server.take_log();
    app.commit_until(&mut host, db, "inputs from the bucket", |_| server.take_log().iter().any(|seen| reads(seen, 0)));
    // A process that is killed leaves it, and the next one takes none of it for its own.
    app.commit(&mut host, db);
    assert!(recent.exists());
    drop(host);
    std::fs::write(&recent, "what was here before").unwrap();
    let (mut host, db) = app.open();
    app.maintained(&mut host, db);
    assert_eq!(host.status(db, "maintenance_error"), "-");
    app.check_newest();
}

/// What is at hand is verified as if it came from the bucket, which is asked where it is no good; and is right where the bucket is not.
#[test]
fn what_is_at_hand_is_believed_no_more_than_the_bucket() {
    let server = Server::start().unwrap();
    let mut app = App::on(Some(Bucket::s3(&server, "believed")), &[("history", "24h"), ("snapshot_every", "24h")]);
    let recent = app.path("app.db-replicated/recent");
    let (mut host, db) = app.open();
    app.maintained(&mut host, db);
    app.maintained(&mut host, db);
    let _ = server.take_log();
    app.commit_until(&mut host, db, "inputs from the bucket", |_| {
        if let Ok(bytes) = std::fs::read(&recent) {
            // It may be cut meanwhile.
            let _ = std::fs::write(&recent, bytes.iter().map(|byte| byte ^ 0x55).collect::<Vec<u8>>());
        }
        server.take_log().iter().any(|seen| reads(seen, 0))
    });
    app.maintained(&mut host, db);
    assert_eq!(host.status(db, "maintenance_error"), "-");
    app.check_newest();
    // The other way round: the bucket's copy goes bad before anybody has read it.
    app.maintained(&mut host, db);
    let txid = app.commit(&mut host, db);
    let object = server.root().join(server.bucket()).join(format!("believed/0000/{txid}-{txid}.ltx"));
    let mut bytes = std::fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&object, bytes).unwrap();
    let bucket = app.bucket.clone();
    app.commit_until(&mut host, db, "it is merged", |_| {
        bucket.level(Level::new(1).unwrap()).iter().any(|file| file.name.min_txid <= txid && txid <= file.name.max_txid)
    });
    assert_eq!(host.status(db, "maintenance_error"), "-");
    app.check_newest();
}

/// A folder is near enough, and what another writer may have replaced is not what was sent.
#[test]
fn nothing_is_kept_of_a_folder_and_where_objects_are_replaced() {
    let server = Server::with_options(Options { ignores_conditions: true, ..Options::default() }).unwrap();
    for bucket in [None, Some(Bucket::s3(&server, "replaced"))] {
        let mut app = App::on(bucket, &[]);
        let (mut host, db) = app.open();
        let recent = app.path("app.db-replicated/recent");
        let bucket = app.bucket.clone();
        app.commit_until(&mut host, db, "something is merged", |_| {
            assert!(!recent.exists());
            !bucket.level(Level::new(1).unwrap()).is_empty()
        });
        app.maintained(&mut host, db);
        assert!(!recent.exists());
    }
}
