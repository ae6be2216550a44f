//! A bucket that is maintained: every state that it promises is there before and after, byte for byte, for us and for Litestream's programs, at every
//! moment of a round, also of one that dies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use replicated::maintenance::{self, MaintainError, Maintainer, Policy};
use replicated::restore;
use replicated::store::{Created, Level, Listed, LtxName, SNAPSHOT_LEVEL, Store, StoreError, Upload};
use replicated::types::{TimestampMs, Txid};
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::history::{History as Place, succeeds};
use replicated_testkit::host;
use replicated_testkit::maintenance::{Locked, Order};
use replicated_testkit::s3::Requests;
use replicated_testkit::sqlite::{integrity_check, page_compare};
use replicated_testkit::tools;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn every_state_of_the_window_is_there_before_and_after() {
    let tools = tools::environment();
    for on_s3 in [true, false] {
        let mut place = Place::new(on_s3, 1);
        for round in 0..25 {
            place.commit();
            if round % 5 == 4 {
                place.run(&place.order().later(Duration::from_secs(3)));
                assert_eq!(place.available().len(), place.states.len(), "history was lost");
            }
        }
        assert!(!place.level(1).is_empty() && !place.level(3).is_empty(), "{:?}", place.bucket.list());
        assert_eq!(place.level(9).len(), 1, "no base image but the snapshot");
        assert!(place.bucket.list().iter().all(|file| file.name.level == SNAPSHOT_LEVEL || file.name.min_txid != Txid::FIRST));
        if let Some(tools) = &tools {
            place.litestream_agrees(tools, None);
            for txid in place.states.keys().step_by(6) {
                place.litestream_agrees(tools, Some(*txid));
            }
        }
        // A day later a snapshot is due, and another day after that the history before it is over.
        place.commit();
        let report = place.run(&place.order().later(25 * HOUR));
        assert_eq!(report.made.iter().filter(|made| made.name.level == SNAPSHOT_LEVEL).count(), 1, "{report:?}");
        let newest = place.newest();
        assert!(place.check(newest));
        place.run(&place.order().later(50 * HOUR));
        assert_eq!(place.available(), [newest]);
        if let Some(tools) = &tools {
            place.litestream_agrees(tools, None);
        }
        // And the application goes on, as if nothing had happened.
        place.commit();
        place.host.close(place.db);
        assert!(place.check(place.newest()));
        if let Some(tools) = &tools {
            place.litestream_agrees(tools, None);
        }
    }
}

/// Commits, rounds at any time, deaths at any point, restores.
#[test]
fn a_round_may_die_anywhere() {
    let tools = tools::environment();
    let seed = std::env::var("REPLICATED_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    for on_s3 in [true, false] {
        let mut place = Place::new(on_s3, seed);
        let (mut deaths, mut later) = (0, Duration::ZERO);
        for step in 0..24 {
            for _ in 0..place.random.u32(1..5) {
                place.commit();
            }
            // Time passes in steps of up to an hour and a half; the window is two hours, the last of them to the commit.
            later += Duration::from_secs(place.random.u64(1..5400));
            let hour = 3_600_000;
            let order = Order {
                history_ms: 2 * hour,
                exact_ms: hour,
                snapshot_ms: hour,
                spans_ms: [20, 60_000, 600_000],
                change_percent: 30,
                ..place.order().later(later)
            };
            let points = ["claimed", "part", "create", "created", "merged", "verify", "delete", "deleted"];
            let point = place.random.choice(points).unwrap();
            let fault = format!("maintain.{point}=kill@{}", place.random.u32(1..4));
            let died = order.run_apart(&place.bucket, &fault).unwrap_or_else(|error| panic!("seed {seed}, step {step}, {fault}: {error}"));
            deaths += u32::from(died);
            let newest = place.newest();
            assert!(place.check(newest), "seed {seed}, step {step}, {fault}");
            for txid in place.states.keys().rev().step_by(3) {
                place.check(*txid);
            }
            if let Some(tools) = tools.as_ref().filter(|_| step % 4 == 0) {
                place.litestream_agrees(tools, None);
            }
            if place.random.bool() {
                assert!(!order.run_apart(&place.bucket, "").unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error}")));
                assert!(place.check(newest));
            }
        }
        assert!(deaths > 4, "only {deaths} rounds died");
    }
}

/// A change of the page size, and the full state after a break of continuity: nothing is merged across the first, and of what is below the second
/// no page comes back.
#[test]
fn breaks_of_every_kind_are_merged_right() {
    let tools = tools::environment();
    for on_s3 in [false, true] {
        let mut place = Place::new(on_s3, 3);
        for page_size in [8192, 4096] {
            for _ in 0..4 {
                place.commit();
            }
            place.host.run(place.db, &format!("PRAGMA journal_mode=DELETE; PRAGMA page_size={page_size}; VACUUM; PRAGMA journal_mode=WAL"));
            place.remember();
            place.run(&place.order().later(Duration::from_secs(3)));
        }
        for _ in 0..3 {
            place.commit();
        }
        // Somebody writes to it without us: the next open sends the full state. It is smaller than before.
        place.host.close(place.db);
        let plain = rusqlite::Connection::open(place.path("app.db")).unwrap();
        plain.execute_batch("DELETE FROM t WHERE id % 3 <> 0; DELETE FROM ballast; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        drop(plain);
        let uri = host::replicated(&place.path("app.db"), &place.bucket.url, &[("sync_interval", "10ms"), ("burst", "100")]);
        place.db = place.host.open(&uri);
        place.host.run(place.db, "INSERT INTO t(x) VALUES (randomblob(100000))");
        place.remember();
        for _ in 0..4 {
            place.commit();
        }
        place.run(&place.order().later(Duration::from_secs(3)));
        place.run(&place.order().later(Duration::from_secs(6)));
        assert_eq!(place.available().len(), place.states.len());
        place.commit();
        // Level 0 goes, and what was merged has to stand by itself.
        let long = 1000 * 3_600_000;
        place.run(&Order { exact_ms: 0, history_ms: long, snapshot_ms: long, ..place.order().later(25 * HOUR) });
        let available = place.available();
        assert!(available.contains(&place.newest()) && available.len() >= 5, "{available:?} of {:?}", place.states.keys());
        assert!(available.len() < place.states.len());
        if let Some(tools) = &tools {
            place.litestream_agrees(tools, None);
            for txid in available.iter().step_by(2) {
                place.litestream_agrees(tools, Some(*txid));
            }
        }
    }
}

/// A file that is missing is told, and the bucket is left as it is: by the next open, or by whoever has the file.
#[test]
fn a_gap_is_told_and_nothing_is_changed() {
    let mut place = Place::new(false, 13);
    for _ in 0..6 {
        place.commit();
    }
    let lost = *place.states.keys().nth(3).unwrap();
    let file = place.path(&format!("bucket/ltx/0/{lost}-{lost}.ltx"));
    std::fs::rename(&file, place.path("aside")).unwrap();
    let before = place.bucket.list();
    let order = place.order().later(60 * HOUR);
    let report = order.run(&place.bucket).unwrap();
    assert!(report.problems.iter().any(|problem| problem.contains("gap")), "{report:?}");
    assert_eq!(place.bucket.list(), before);
    // It is back, and everything goes on.
    std::fs::rename(place.path("aside"), &file).unwrap();
    assert!(!place.run(&order).made.is_empty());
    assert!(place.check(place.newest()));
}

/// What is kept stays, whatever its age, until it is let go.
#[test]
fn a_lost_tail_is_kept_until_it_is_acknowledged() {
    for on_s3 in [true, false] {
        let mut place = Place::new(on_s3, 5);
        let mut tail = place.commit();
        for _ in 0..3 {
            tail = place.commit();
        }
        maintenance::keep(&place.bucket.store(), tail, "a power loss").unwrap();
        for _ in 0..4 {
            place.commit();
        }
        place.run(&place.order().later(25 * HOUR));
        let report = place.run(&place.order().later(60 * HOUR));
        assert_eq!(report.kept.iter().map(|kept| kept.txid).collect::<Vec<_>>(), [tail]);
        let available = place.available();
        assert!(available.contains(&tail) && available.contains(&place.newest()), "{available:?}");
        let acknowledged = tool(&place.bucket, &["--acknowledge", &tail.to_string(), "--grace", "0s"]);
        assert!(acknowledged.contains("not kept any longer"), "{acknowledged}");
        let again = tool(&place.bucket, &["--acknowledge", &tail.to_string(), "--grace", "0s"]);
        assert!(again.contains("no state up to that TXID was kept"), "{again}");
        place.run(&place.order().later(60 * HOUR));
        assert_eq!(place.available(), [place.newest()]);
    }
}

/// `replicated maintain`.
fn tool(bucket: &Bucket, arguments: &[&str]) -> String {
    let mut command = host::command(host::program("replicated"), &bucket.env);
    let output = succeeds(command.arg("maintain").arg(&bucket.url).args(arguments));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_dry_run_says_what_a_round_then_does() {
    let mut place = Place::new(true, 6);
    for _ in 0..6 {
        place.commit();
    }
    let options = ["--spans", "1ms,2ms,3ms", "--history", "0s", "--grace", "0s", "--snapshot-every", "1ms"];
    let before = place.bucket.list();
    let planned: serde_json::Value =
        serde_json::from_str(&tool(&place.bucket, &[&options[..], &["--dry-run", "--json"]].concat())).unwrap();
    assert_eq!(place.bucket.list(), before);
    let text = tool(&place.bucket, &[&options[..], &["--dry-run"]].concat());
    assert!(text.contains("would make 1/") && text.contains("would make 9/"), "{text}");
    let done: serde_json::Value = serde_json::from_str(&tool(&place.bucket, &[&options[..], &["--json"]].concat())).unwrap();
    let names = |value: &serde_json::Value, field: &str| {
        value[field].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&planned, "made"), names(&done, "made"));
    assert_eq!(names(&planned, "deleted"), names(&done, "deleted"));
    assert!(!names(&done, "deleted").is_empty(), "{done}");
    assert_eq!((planned["status"].as_str(), done["status"].as_str()), (Some("planned"), Some("done")));
    assert!(place.check(place.newest()));
    // With no history at all the newest snapshot is what remains, and the newest file of each level.
    tool(&place.bucket, &options);
    assert!(place.bucket.list().len() <= 5, "{:?}", place.bucket.list());
    assert!(place.check(place.newest()));
}

/// A bucket in which a round of maintenance runs when a restore has made its plan and asks for the first bytes.
struct Meanwhile<F> {
    inner: Arc<dyn Store>,
    round: Mutex<Option<F>>,
}

impl<F> std::fmt::Debug for Meanwhile<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl<F: FnOnce() + Send> Store for Meanwhile<F> {
    replicated_testkit::pass_on!(url, list, create, upload, part_size_bytes, head, delete, creates_are_conditional);

    fn get_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        if let Some(round) = self.round.lock().unwrap().take() {
            // It has a runtime of its own.
            std::thread::scope(|scope| scope.spawn(round).join().unwrap());
        }
        self.inner.get_range(name, range)
    }
}

/// A restore of what the window has just lost ends well as long as the grace period lasts.
#[test]
fn the_grace_period_protects_a_restore_that_is_under_way() {
    let mut place = Place::new(false, 11);
    for _ in 0..6 {
        place.commit();
    }
    let order = Order { history_ms: 0, exact_ms: 0, snapshot_ms: 1, ..place.order().later(Duration::from_secs(5)) };
    place.run(&order);
    let target = place.newest();
    place.commit();
    let dir = tempfile::tempdir().unwrap();
    let before = place.bucket.list();
    let round = |grace: Duration, later: Duration| {
        let order = order.later(later);
        let policy = Policy { grace, ..order.policy() };
        maintenance::maintain(&mut Maintainer::new(place.bucket.store(), policy), order.at()).unwrap()
    };
    let restore_while = |name: &str, grace: Duration| {
        let mut report = None;
        let run = || report = Some(round(grace, Duration::from_secs(600)));
        let output = dir.path().join(name);
        let store = Meanwhile { inner: place.bucket.store(), round: Mutex::new(Some(run)) };
        let options = restore::RestoreOptions { target: restore::Target::Txid(target), ..restore::RestoreOptions::latest(&output) };
        let restored = restore::restore(&store, &options).map(|_| page_compare(&output, &place.states[&target]));
        drop(store);
        (restored, report.unwrap())
    };
    let (restored, report) = restore_while("protected.db", HOUR);
    restored.unwrap().unwrap();
    assert!(!report.made.is_empty() && report.deleted.is_empty(), "{report:?}");
    assert!(before.iter().all(|file| place.bucket.list().contains(file)));
    // Without it what it needs is gone, and it says so.
    let (restored, report) = restore_while("unprotected.db", Duration::ZERO);
    assert!(!report.deleted.is_empty(), "{report:?}");
    let error = restored.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(&target.to_string()), "{error}");
}

/// Who may not delete is told, and everything else is done; whatever is due to go is still there, and goes once somebody may.
#[test]
fn credentials_that_cannot_delete_are_told_and_nothing_fails() {
    let mut place = Place::new(true, 9);
    for _ in 0..5 {
        place.commit();
    }
    let order = Order { history_ms: 0, exact_ms: 0, snapshot_ms: 1, ..place.order().later(Duration::from_secs(5)) };
    let locked: Arc<dyn Store> = Arc::new(Locked { inner: place.bucket.store() });
    let report = maintenance::maintain(&mut Maintainer::new(locked, order.policy()), order.at()).unwrap();
    assert!(!report.made.is_empty() && report.problems.is_empty(), "{report:?}");
    let order = order.later(Duration::from_secs(10));
    let locked: Arc<dyn Store> = Arc::new(Locked { inner: place.bucket.store() });
    let report = maintenance::maintain(&mut Maintainer::new(locked, order.policy()), order.at()).unwrap();
    assert!(report.refused.as_deref().is_some_and(|why| why.contains("AccessDenied")), "{report:?}");
    assert!(report.deleted.is_empty() && report.problems.is_empty());
    assert_eq!(place.available().len(), place.states.len());
    let report = place.run(&order);
    assert!(!report.deleted.is_empty());
    assert_eq!(place.available().last(), Some(&place.newest()));
}

/// A large database in little memory: its snapshot goes up in parts, and a round that has nothing to do asks for the listings alone.
#[test]
fn a_large_snapshot_goes_up_in_parts_and_nothing_to_do_costs_next_to_nothing() {
    let mut place = Place::new(true, 10);
    place.host.run(
        place.db,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<3000) INSERT INTO ballast SELECT randomblob(8000) FROM n",
    );
    place.remember();
    place.host.query(place.db, "INSERT INTO t(x) VALUES (1)");
    place.remember();
    let (server, order) = (place.server.as_ref().unwrap(), Order { change_percent: 100, ..place.order().later(Duration::from_secs(3)) });
    let before = server.requests();
    let little = Policy { max_memory_bytes: 1 << 20, ..order.policy() };
    let mut maintainer = Maintainer::new(place.bucket.store(), little);
    let report = maintenance::maintain(&mut maintainer, order.at()).unwrap();
    assert!(report.made.iter().any(|made| made.name.level == SNAPSHOT_LEVEL && made.size_bytes > 24_000_000), "{report:?}");
    let after = server.requests();
    assert!(after.multipart > before.multipart && after.put - before.put >= 4, "{before:?} {after:?}");
    // What was uploaded since, and nothing else.
    let before = server.requests();
    assert!(maintenance::maintain(&mut maintainer, order.at()).unwrap().made.is_empty());
    let after = server.requests();
    assert_eq!(after, Requests { list: before.list + 2, ..before });
    // A process of its own lists everything, and looks at the note.
    place.run(&order);
    let later = server.requests();
    assert_eq!(later, Requests { list: after.list + 10, get: after.get + 1, ..after });
    // What is uploaded from now on is merged by who knew the rest.
    for _ in 0..5 {
        place.commit();
    }
    let at = order.later(Duration::from_secs(10)).at();
    let report = maintenance::maintain(&mut maintainer, at).unwrap();
    assert!(!report.made.is_empty() && report.problems.is_empty(), "{report:?}");
    assert!(maintenance::maintain(&mut maintainer, at).unwrap().problems.is_empty());
    assert_eq!(place.available().len(), place.states.len());
}

/// What is merged and what becomes a snapshot is larger than what the process may have in memory.
#[test]
fn memory_is_bounded_whatever_is_merged() {
    const MEASURE: &str = "import resource, subprocess, sys\n\
        subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n\
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";
    let mut place = Place::new(false, 12);
    for _ in 0..3 {
        place.host.run(
            place.db,
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4000) INSERT INTO ballast SELECT randomblob(8000) FROM n",
        );
        place.remember();
    }
    let mut python = host::command("/usr/bin/python3", &place.bucket.env);
    python.args(["-c", MEASURE]).arg(host::program("replicated"));
    python.args(["maintain", &place.bucket.url, "--spans", "1ms,2ms,3ms", "--snapshot-every", "1ms", "--max-memory-mib", "8"]);
    let output = python.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let peak_kib: u64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let made = |level: u8| place.level(level).iter().map(|file| file.size_bytes).max().unwrap_or_default();
    assert!((1..=3).map(made).max() > Some(90_000_000) && made(9) > 90_000_000, "{:?}", place.bucket.list());
    assert!(peak_kib < 72 * 1024, "{peak_kib} KiB");
    assert!(place.check(place.newest()));
}

/// Of two one works; the other says who.
#[test]
fn one_process_at_a_time() {
    let mut place = Place::new(true, 8);
    for _ in 0..4 {
        place.commit();
    }
    let store = place.bucket.store();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let other = Arc::clone(&store);
    let at = TimestampMs(maintenance::now().0 + 100_000);
    let refused = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let seen = std::rc::Rc::clone(&refused);
    let turn = move || -> futures_util::future::LocalBoxFuture<'static, Result<(), MaintainError>> {
        let (other, seen) = (Arc::clone(&other), std::rc::Rc::clone(&seen));
        Box::pin(async move {
            match Maintainer::new(other, Policy::default()).round(at, None).await {
                Err(error) => seen.borrow_mut().push(error.to_string()),
                // In the end there is nothing left to do.
                Ok(report) => assert_eq!((report.made.len(), report.deleted.len()), (0, 0)),
            }
            Ok(())
        })
    };
    let report = runtime.block_on(Maintainer::new(Arc::clone(&store), Policy::default()).round(at, Some(&turn))).unwrap();
    assert!(!report.made.is_empty());
    assert!(!refused.borrow().is_empty());
    let me = std::process::id().to_string();
    assert!(refused.borrow().iter().all(|why| why.contains("maintains this bucket until") && why.contains(&me)), "{refused:?}");
    // And it is free again.
    runtime.block_on(Maintainer::new(store, Policy::default()).round(at, None)).unwrap();
    assert!(restore::catalogue(&*place.bucket.store()).is_ok());
}

const READ_REPLICA: &str = r#"
import sqlite3, litestream_vfs
loader = sqlite3.connect(":memory:")
litestream_vfs.load(loader)
replica = sqlite3.connect("file:replica.db?vfs=litestream", uri=True)
print(replica.execute("SELECT count(*), sum(length(x)), max(id) FROM t").fetchone())
checked = [line for row in replica.execute("PRAGMA integrity_check") for line in row[0].split("\n")]
# It takes the highest page that it has ever seen for the end of a database that has become smaller.
harmless = lambda line: line == "ok" or line.startswith("***") or line.endswith("is never used")
assert all(map(harmless, checked)), checked
"#;

/// Litestream's read replica opens the bucket after rounds that ended well and after rounds that died.
#[test]
fn litestreams_read_replica_opens_what_a_round_leaves_behind() {
    let Some(tools) = tools::environment() else { return };
    for on_s3 in [true, false] {
        let mut place = Place::new(on_s3, 11);
        for (round, fault) in ["", "maintain.created=kill", "maintain.merged=kill@2", "maintain.deleted=kill", ""].into_iter().enumerate() {
            for _ in 0..6 {
                place.commit();
            }
            // Level 0 goes as soon as it may, and history is over at once.
            let order =
                Order { exact_ms: 0, history_ms: 0, snapshot_ms: 1, ..place.order().later(Duration::from_secs(5 * (round as u64 + 1))) };
            order.run_apart(&place.bucket, fault).unwrap();
            let row = place.host.query(place.db, "SELECT count(*), sum(length(x)), max(id) FROM t").remove(0);
            let mut command = host::command(tools.join("bin/python3"), &place.bucket.env);
            command.env("LITESTREAM_REPLICA_URL", place.url()).current_dir(place.dir.path()).args(["-c", READ_REPLICA]);
            let output = succeeds(&mut command);
            assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("({}, {}, {})", row[0], row[1], row[2]), "{fault}");
            place.litestream_agrees(&tools, None);
        }
        // With no history nearly nothing is left.
        let order = Order { exact_ms: 0, history_ms: 0, snapshot_ms: 1, ..place.order().later(HOUR) };
        place.run(&order);
        assert!(place.bucket.list().len() <= 6, "{:?}", place.bucket.list());
    }
}

/// Litestream replicates into a bucket that we have maintained, compacts it and deletes from it, while we go on maintaining it; then we take it back.
#[test]
fn litestreams_daemon_and_we_maintain_one_bucket() {
    let Some(tools) = tools::environment() else { return };
    let mut place = Place::new(true, 12);
    for _ in 0..12 {
        place.commit();
    }
    place.run(&place.order().later(Duration::from_secs(3)));
    place.host.close(place.db);
    let path = place.path("app.db");
    let config = place.path("litestream.yml");
    let endpoint = place.server.as_ref().unwrap().endpoint();
    let (bucket, folder) = place.bucket.url.strip_prefix("s3://").unwrap().split_once('/').unwrap();
    let text = format!(
        "levels:\n  - interval: 1s\n  - interval: 2s\nsnapshot:\n  interval: 4s\n  retention: 8s\nl0-retention: 2s\nl0-retention-check-interval: 1s\n\
         dbs:\n  - path: {}\n    replica:\n      type: s3\n      bucket: {bucket}\n      path: {folder}\n      endpoint: {endpoint}\n      \
         force-path-style: true\n      region: us-east-1\n      sync-interval: 200ms\n",
        path.display()
    );
    std::fs::write(&config, text).unwrap();
    let log = place.path("litestream.log");
    let (out, errors) = (std::fs::File::create(&log).unwrap(), std::fs::File::options().append(true).create(true).open(&log).unwrap());
    let mut command = host::command(tools.join("bin/litestream"), &place.bucket.env);
    let mut litestream = command.arg("replicate").arg("-config").arg(&config).stdout(out).stderr(errors).spawn().unwrap();
    let plain = rusqlite::Connection::open(&path).unwrap();
    let newest = |place: &Place| place.bucket.list().iter().map(|file| file.name.max_txid).max().unwrap();
    let before = newest(&place);
    let merged = |place: &Place| place.level(1).iter().map(|file| file.name.max_txid).max();
    let ours = merged(&place);
    let (mut rounds, mut theirs) = (0, false);
    let deadline = std::time::Instant::now() + host::PATIENCE;
    while (rounds < 12 || !theirs) && std::time::Instant::now() < deadline {
        plain.execute_batch("INSERT INTO t(x) VALUES (randomblob(3000)); UPDATE t SET x = randomblob(300) WHERE id % 9 = 0").unwrap();
        std::thread::sleep(Duration::from_millis(500));
        // It may delete what we are about to read: then a round fails, and the next one goes on.
        if rounds % 2 == 0 {
            let _ = place.order().run(&place.bucket);
        }
        rounds += 1;
        theirs = merged(&place) > ours && newest(&place) > before;
    }
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    assert!(theirs, "{}", said());
    // What was committed last is sent before it ends.
    drop(plain);
    std::thread::sleep(Duration::from_secs(1));
    succeeds(Command::new("kill").arg(litestream.id().to_string()));
    litestream.wait().unwrap();
    assert!(!said().contains("non-contiguous"), "{}", said());
    let output = place.path("restored.db");
    place.bucket.restore(&output);
    page_compare(&flattened(&path, place.dir.path()), &output).unwrap();
    integrity_check(&output).unwrap();
    // And back.
    let uri = host::replicated(&path, &place.bucket.url, &[("sync_interval", "10ms"), ("burst", "100")]);
    place.db = place.host.open(&uri);
    place.states.clear();
    for _ in 0..8 {
        place.commit();
    }
    place.run(&place.order().later(Duration::from_secs(100)));
    assert_eq!(place.available().len(), place.states.len());
    place.litestream_agrees(&tools, None);
}

/// Buckets that Litestream wrote, of every form that it had: with base images in several levels, and pages in the older form.
#[test]
fn litestreams_buckets_are_maintained_too() {
    for fixture in ["litestream-0.5.17-block", "litestream-0.5.15-frame", "litestream-0.5.6-frame"] {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(fixture);
        succeeds(Command::new("cp").arg("-r").arg(source).arg(dir.path().join("bucket")));
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        let (before, after) = (dir.path().join("before.db"), dir.path().join("after.db"));
        bucket.restore(&before);
        let files = bucket.list().len();
        let order = Order { history_ms: 0, exact_ms: 0, snapshot_ms: 1, ..Order::of(&bucket).later(HOUR) };
        for _ in 0..2 {
            assert_eq!(order.run(&bucket).unwrap().problems, Vec::<String>::new(), "{fixture}");
            bucket.restore(&after);
            page_compare(&before, &after).unwrap();
        }
        assert!(bucket.list().len() <= files.min(6), "{fixture}: {:?}", bucket.list());
        if let Some(tools) = tools::environment() {
            let theirs = dir.path().join("theirs.db");
            succeeds(host::command(tools.join("bin/litestream"), &[]).arg("restore").arg("-o").arg(&theirs).arg(&bucket.url));
            page_compare(&before, &theirs).unwrap();
        }
    }
}
