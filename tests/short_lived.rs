//! Processes that open the database, commit once and close it, again and again: as cron jobs and CGI programs do. What they cost in requests is
//! counted by the server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic)] // The helpers are part of tests.

mod built;

use std::path::Path;
use std::time::Duration;

use replicated::store::{Level, LtxName};
use replicated::types::Txid;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Host, Program, eventually};
use replicated_testkit::maintenance::Order;
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::{integrity_check, page_compare};

const SCRIPT: &str = r#"
import sqlite3, sys
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
db = sqlite3.connect(sys.argv[2], uri=True, isolation_level=None, timeout=60)
for sql in sys.argv[3:]: db.execute(sql).fetchall()
db.close()
"#;

fn process(env: &[(String, String)], uri: &str, statements: &[&str]) {
    let mut command = host::command(host::python(), env);
    built::run(command.args(["-c", SCRIPT]).arg(host::extension()).arg(uri).args(statements));
}

fn restored_equals(bucket: &Bucket, path: &Path, folder: &Path) {
    let restored = folder.join("restored.db");
    bucket.restore(&restored);
    page_compare(&flattened(path, folder), &restored).unwrap();
    integrity_check(&restored).unwrap();
}

const MAKE: [&str; 3] = ["PRAGMA journal_mode=WAL", "CREATE TABLE t(x)", "CREATE TABLE ballast AS SELECT zeroblob(200000) AS x"];
const COMMIT: &str = "INSERT INTO t VALUES (randomblob(300))";

#[test]
fn a_hundred_processes_with_a_commit_each_cost_a_hundred_requests() {
    if !built::has_python() {
        return;
    }
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let (bucket, path) = (Bucket::s3(&server, "apps/short"), dir.path().join("app.db"));
    let uri = host::replicated(&path, &bucket.url, &[]);
    process(&bucket.env, &uri, &MAKE);
    let (before, began) = (server.requests(), std::time::Instant::now());
    for _ in 0..100 {
        process(&bucket.env, &uri, &[COMMIT]);
    }
    let now = server.requests();
    let asked = |what: fn(&replicated_testkit::s3::Requests) -> u64| what(&now) - what(&before);
    assert_eq!(asked(|r| r.put), 100, "{before:?} {now:?}");
    assert_eq!((asked(|r| r.get), asked(|r| r.list), asked(|r| r.delete), asked(|r| r.multipart)), (0, 0, 0, 0), "{before:?} {now:?}");
    // Whether the bucket still has what was sent before, where that was not asked within two seconds.
    assert!(asked(|r| r.head) <= began.elapsed().as_secs() / 2, "{before:?} {now:?}");
    assert_eq!(bucket.full_states(), 1);
    restored_equals(&bucket, &path, dir.path());
    // One that only reads, or does nothing, sends nothing.
    let before = server.requests();
    for _ in 0..10 {
        process(&bucket.env, &uri, &["SELECT count(*) FROM t"]);
    }
    assert_eq!(server.requests().put, before.put);
}

/// Without the objects of another writer under their names nothing would be in the way of ours: what was merged and deleted, and what another tool has sent of
/// commits that this very file has.
#[test]
fn another_writer_whose_objects_are_merged_is_noticed() {
    if !built::has_python() {
        return;
    }
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let (bucket, path) = (Bucket::s3(&server, "apps/merged"), dir.path().join("app.db"));
    let uri = host::replicated(&path, &bucket.url, &[]);
    process(&bucket.env, &uri, &MAKE);
    process(&bucket.env, &uri, &[COMMIT]);
    let other = dir.path().join("other.db");
    bucket.restore(&other);
    let theirs = host::replicated(&other, &bucket.url, &[("maintenance", "off")]);
    for _ in 0..3 {
        process(&bucket.env, &theirs, &[COMMIT]);
    }
    let newest = bucket.list().iter().map(|file| file.name.max_txid).max().unwrap();
    let order = Order { exact_ms: 0, ..Order::of(&bucket) };
    for hours in [3, 6] {
        order.later(Duration::from_secs(hours * 3600)).run(&bucket).unwrap();
    }
    let taken = |bucket: &Bucket, txid: Txid| bucket.level(Level::ZERO).iter().any(|file| file.name.max_txid == txid);
    // The name that ours is to have next.
    let ours = Txid::new(newest.get() - 2).unwrap();
    assert!(!taken(&bucket, ours), "{:?}", bucket.list());
    // Nobody has asked for longer than nothing can have been merged in.
    std::thread::sleep(Duration::from_millis(2100));
    let mut host = Host::start(Program::Rust, &bucket.env);
    let db = host.open(&uri);
    host.run(db, COMMIT);
    host.try_query(db, "PRAGMA replicated_sync='60s'").unwrap_err();
    assert_eq!(host.status(db, "state"), "fenced");
    assert!(!taken(&bucket, ours));
}

/// Who was away has commits of others in the WAL: another tool may have sent them.
#[test]
fn commits_of_others_have_the_bucket_compared() {
    if !built::has_python() {
        return;
    }
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let (bucket, path) = (Bucket::s3(&server, "apps/foreign"), dir.path().join("app.db"));
    let uri = host::replicated(&path, &bucket.url, &[]);
    process(&bucket.env, &uri, &MAKE);
    process(&bucket.env, &uri, &[COMMIT]);
    let foreign = rusqlite::Connection::open(&path).unwrap();
    foreign.execute_batch(COMMIT).unwrap();
    let listed = server.requests().list;
    process(&bucket.env, &uri, &[COMMIT, "PRAGMA replicated_sync='60s'"]);
    assert!(server.requests().list > listed);
    drop(foreign);
    restored_equals(&bucket, &path, dir.path());
}

/// Each of them fails to reach the bucket; the first that can sends everything at once.
#[test]
fn what_short_lived_processes_could_not_send_the_next_one_sends() {
    if !built::has_python() {
        return;
    }
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let (bucket, path) = (Bucket::s3(&server, "apps/outage"), dir.path().join("app.db"));
    let through = bucket.through(&proxy.endpoint());
    let uri = host::replicated(&path, &bucket.url, &[("close_timeout", "100ms")]);
    // The first state is not cut off in the midst of its upload.
    process(&through.env, &host::replicated(&path, &bucket.url, &[("close_timeout", "60s")]), &MAKE);
    process(&through.env, &uri, &["PRAGMA replicated_sync='60s'"]);
    proxy.set(Mode::Refuse).unwrap();
    let before = server.requests();
    for _ in 0..20 {
        process(&through.env, &uri, &[COMMIT]);
    }
    assert_eq!(server.requests(), before);
    proxy.set(Mode::Forward).unwrap();
    process(&through.env, &uri, &[COMMIT, "PRAGMA replicated_sync='60s'"]);
    let now = server.requests();
    // What the first one was about to send goes as it was; the rest is one object, and the last one's own commit may come after it.
    assert!(now.put - before.put <= 3, "{before:?} {now:?}");
    assert_eq!(bucket.full_states(), 1);
    restored_equals(&bucket, &path, dir.path());
}

/// Without a listing another writer is noticed all the same: by the name that is taken. Nothing of the other's is replaced, and nothing follows it.
#[test]
fn another_writer_is_noticed_where_no_listing_was_made() {
    if !built::has_python() {
        return;
    }
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let (bucket, path) = (Bucket::s3(&server, "apps/taken"), dir.path().join("app.db"));
    let uri = host::replicated(&path, &bucket.url, &[]);
    process(&bucket.env, &uri, &MAKE);
    let listed = server.requests().list;
    process(&bucket.env, &uri, &[COMMIT]);
    assert_eq!(server.requests().list, listed, "no listing is left");
    // What another writer has sent: any content that is not ours will do.
    let newest = bucket.level(Level::ZERO).last().unwrap().name;
    let next = LtxName::level0(newest.max_txid.next());
    let place = |name: &LtxName| server.root().join(server.bucket()).join("apps/taken/0000").join(name.file_name());
    std::fs::copy(place(&newest), place(&next)).unwrap();
    let theirs = std::fs::read(place(&next)).unwrap();
    let mut host = Host::start(Program::Rust, &bucket.env);
    let db = host.open(&uri);
    host.run(db, COMMIT);
    host.try_query(db, "PRAGMA replicated_sync='60s'").unwrap_err();
    assert_eq!(host.status(db, "state"), "fenced");
    assert_eq!(std::fs::read(place(&next)).unwrap(), theirs);
    assert_eq!(bucket.level(Level::ZERO).last().unwrap().name, next);
}

/// Whoever keeps the database open compares it with the bucket all the same, also where nothing is committed.
#[test]
fn whoever_stays_compares() {
    if !built::has_python() {
        return;
    }
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let (bucket, path) = (Bucket::s3(&server, "apps/stays"), dir.path().join("app.db"));
    let uri = host::replicated(&path, &bucket.url, &[]);
    process(&bucket.env, &uri, &MAKE);
    let newest = bucket.level(Level::ZERO).last().unwrap().name;
    let next = LtxName::level0(newest.max_txid.next());
    let place = |name: &LtxName| server.root().join(server.bucket()).join("apps/stays/0000").join(name.file_name());
    let before = server.requests();
    let mut host = Host::start(Program::Rust, &bucket.env);
    let db = host.open(&uri);
    host.query(db, "SELECT count(*) FROM t");
    eventually("it has compared", || server.requests().list > before.list);
    eventually("it is idle", || host.status(db, "state") == "idle");
    host.close(db);
    std::fs::copy(place(&newest), place(&next)).unwrap();
    let db = host.open(&uri);
    host.query(db, "SELECT count(*) FROM t");
    eventually("it has noticed that the bucket goes on", || host.status(db, "reason") == "diverged");
    assert_eq!(server.requests().put, before.put);
}
