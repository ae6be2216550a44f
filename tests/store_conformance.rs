//! Every store keeps the same promises. The folder and the testkit's S3 server are always asked; other servers where
//! `scripts/test-stores.sh` has started them and says so in the environment.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use replicated::store::{
    Created, Env, Level, Listed, LockWritten, LtxName, ReplicaUrl, SNAPSHOT_LEVEL, Store, StoreErrorKind, StoreOptions, open_with_env,
};
use replicated::types::{TimestampMs, Txid};
use replicated_testkit::s3::{Dialect, Options, Server};

const COMMITTED: TimestampMs = TimestampMs(1_763_819_345_448);

/// What one kind of store can do that others cannot.
#[derive(Clone, Copy)]
struct Traits {
    /// Listings carry the commit's time.
    lists_exact_timestamps: bool,
    /// A second creation is refused, by several writers at once too.
    creates_atomically: bool,
}

fn store(url: &str, env: &Env) -> Arc<dyn Store> {
    open_with_env(&ReplicaUrl::parse(url).unwrap(), &StoreOptions::default(), env).unwrap()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    // The uploader's own kind of runtime.
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn name(level: u8, min: u64, max: u64) -> LtxName {
    LtxName { level: Level::new(level).unwrap(), min_txid: Txid::new(min).unwrap(), max_txid: Txid::new(max).unwrap() }
}

fn body(seed: u8, length: usize) -> Bytes {
    (0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed).collect()
}

fn names(listed: &[Listed]) -> Vec<LtxName> {
    listed.iter().map(|l| l.name).collect()
}

/// The whole suite, on a place of its own. `foreign` puts a file of any name beside those of a level, where the test can.
async fn conformance(store: &dyn Store, traits: Traits, foreign: Option<&dyn Fn(&str)>) {
    empty_replicas_list_nothing(store).await;
    created_objects_are_read_back(store, traits).await;
    objects_are_never_replaced(store, traits).await;
    listings_are_sorted_and_begin_where_asked(store, traits, foreign).await;
    large_objects_go_up_in_parts(store, traits).await;
    deleting_is_idempotent(store).await;
    the_probe_tells_the_truth(store, traits).await;
    the_lock_is_replaced_by_one_who_has_read_it(store).await;
    the_note_is_another_object(store).await;
    a_scratch_object_comes_and_goes(store, traits).await;
}

/// Nobody else sees it, and what is asked of it is answered as it is of files.
async fn a_scratch_object_comes_and_goes(store: &dyn Store, traits: Traits) {
    let (scratch, before) = (store.scratch().unwrap(), store.list(Level::ZERO, None).await.unwrap());
    let is_listed = async || scratch.list().await.unwrap().iter().any(|name| scratch.name().ends_with(name.as_str()));
    assert!(!is_listed().await);
    assert_eq!(scratch.read().await.unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(scratch.create(body(1, 100)).await.unwrap(), Some(Created::New));
    let again = if traits.creates_atomically { Created::AlreadyExists } else { Created::New };
    assert_eq!(scratch.create(body(1, 100)).await.unwrap(), Some(again));
    assert!(!scratch.replace_on_false_condition(body(2, 100)).await.unwrap());
    assert_eq!(scratch.read().await.unwrap(), body(1, 100));
    scratch.put(body(3, 70_000)).await.unwrap();
    assert_eq!(scratch.read().await.unwrap(), body(3, 70_000));
    assert!(is_listed().await);
    assert_eq!(store.list(Level::ZERO, None).await.unwrap(), before);
    scratch.begin_parts().await.unwrap();
    for _ in 0..2 {
        scratch.delete().await.unwrap();
        assert!(!is_listed().await);
    }
}

/// Beside the lock, which it leaves alone, and replaced in the same way.
async fn the_note_is_another_object(store: &dyn Store) {
    let (lock, text) = (store.read_lock().await.unwrap(), |n: u32| Bytes::from(format!("{{\"kept\":[{n}]}}")));
    assert_eq!(store.read_note().await.unwrap(), None);
    let LockWritten::Written(version) = store.write_note(text(1), None).await.unwrap() else { panic!("it was there") };
    assert!(matches!(store.write_note(text(2), None).await.unwrap(), LockWritten::Changed));
    assert!(matches!(store.write_note(text(33), Some(&version)).await.unwrap(), LockWritten::Written(_)));
    assert!(matches!(store.write_note(text(4), Some(&version)).await.unwrap(), LockWritten::Changed));
    assert_eq!(store.read_note().await.unwrap().unwrap().body, text(33));
    assert_eq!(store.read_lock().await.unwrap(), lock);
}

/// What a lease is kept in. Every store that is asked here has conditions on what it replaces.
async fn the_lock_is_replaced_by_one_who_has_read_it(store: &dyn Store) {
    assert_eq!(store.read_lock().await.unwrap(), None);
    let written = |outcome: LockWritten| match outcome {
        LockWritten::Written(version) => Some(version),
        LockWritten::Changed => None,
    };
    let mut expected = None;
    for round in 0..3 {
        let bodies: Vec<Bytes> = (0..6).map(|writer| format!("{{\"round\":{round},\"writer\":{writer}}}").into()).collect();
        let outcomes = join_all(bodies.iter().map(|body| store.write_lock(body.clone(), expected.as_ref()))).await;
        // Two at the same time may both be told to try again: then one of them does.
        let mut winners: Vec<_> = Vec::new();
        for (body, outcome) in bodies.iter().zip(outcomes) {
            match outcome {
                Ok(outcome) => winners.extend(written(outcome).map(|version| (body.clone(), version))),
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
        if winners.is_empty() {
            let version = written(store.write_lock(bodies[0].clone(), expected.as_ref()).await.unwrap());
            winners.extend(version.map(|version| (bodies[0].clone(), version)));
        }
        let [(body, version)] = winners.as_slice() else { panic!("{winners:?}") };
        let lock = store.read_lock().await.unwrap().unwrap();
        assert_eq!((&lock.body, &lock.version), (body, version));
        // What was expected before is not there any more.
        assert_eq!(store.write_lock(Bytes::from_static(b"late"), expected.as_ref()).await.unwrap(), LockWritten::Changed);
        expected = Some(lock.version);
    }
}

async fn empty_replicas_list_nothing(store: &dyn Store) {
    for level in Level::all() {
        assert_eq!(store.list(level, None).await.unwrap(), []);
    }
    let missing = name(0, 77, 77);
    let errors = [store.head(&missing).await.unwrap_err(), store.get_range(&missing, 0..4).await.unwrap_err()];
    for error in errors {
        assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
        assert!(!error.is_transient());
        assert!(error.object.contains("0/000000000000004d-000000000000004d.ltx"), "{error}");
    }
}

async fn created_objects_are_read_back(store: &dyn Store, traits: Traits) {
    let (object, content) = (name(0, 1, 1), body(1, 100_000));
    assert_eq!(store.create(&object, content.clone(), COMMITTED).await.unwrap(), Created::New);
    assert_eq!(store.get_range(&object, 0..100_000).await.unwrap(), content);
    assert_eq!(store.get_range(&object, 0..1).await.unwrap(), content[..1]);
    assert_eq!(store.get_range(&object, 65_530..65_550).await.unwrap(), content[65_530..65_550]);
    assert_eq!(store.get_range(&object, 99_999..100_000).await.unwrap(), content[99_999..]);
    assert_eq!(store.get_range(&object, 5..5).await.unwrap(), Bytes::new());
    for beyond in [99_990..100_001, 100_000..100_001, 200_000..200_010] {
        let error = store.get_range(&object, beyond.clone()).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Truncated, "{beyond:?}: {error}");
    }
    let head = store.head(&object).await.unwrap();
    assert_eq!(head, Listed { name: object, size_bytes: 100_000, timestamp: COMMITTED, timestamp_is_exact: true });
    let listed = store.list(Level::ZERO, None).await.unwrap();
    assert_eq!(names(&listed), [object]);
    assert_eq!(listed[0].size_bytes, 100_000);
    timestamp_is_the_commits_or_recent(listed[0], traits);
}

fn timestamp_is_the_commits_or_recent(listed: Listed, traits: Traits) {
    assert_eq!(listed.timestamp_is_exact, traits.lists_exact_timestamps);
    if traits.lists_exact_timestamps {
        assert_eq!(listed.timestamp, COMMITTED);
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        assert!((now - listed.timestamp.0).abs() < 60_000, "{} is not now", listed.timestamp);
    }
}

async fn objects_are_never_replaced(store: &dyn Store, traits: Traits) {
    let object = name(0, 1, 1);
    let second = store.create(&object, body(2, 10), COMMITTED).await.unwrap();
    if !traits.creates_atomically {
        return;
    }
    assert_eq!(second, Created::AlreadyExists);
    assert_eq!(store.get_range(&object, 0..100_000).await.unwrap(), body(1, 100_000));
    // Eight writers of one name: one of them wins, and its content stays.
    for txid in 1000..1010 {
        let contested = name(3, txid, txid);
        let outcomes = join_all((0..8).map(|i| store.create(&contested, body(i, 2000), COMMITTED)).collect::<Vec<_>>()).await;
        let winners: Vec<u8> = (0..8).filter(|&i| matches!(outcomes[usize::from(i)], Ok(Created::New))).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        assert_eq!(store.get_range(&contested, 0..2000).await.unwrap(), body(winners[0], 2000));
    }
}

async fn listings_are_sorted_and_begin_where_asked(store: &dyn Store, traits: Traits, foreign: Option<&dyn Fn(&str)>) {
    let expected = [name(1, 2, 9), name(1, 2, 16), name(1, 10, 11), name(1, 255, 256), name(1, 4096, 70_000)];
    for i in [3, 0, 4, 2, 1] {
        assert_eq!(store.create(&expected[i], body(0, 10 + i), COMMITTED).await.unwrap(), Created::New);
    }
    if let Some(foreign) = foreign {
        for file in ["README", "0000000000000003-0000000000000003.ltx.tmp", "000000000000000A-000000000000000B.ltx", "lock.json"] {
            foreign(file);
        }
    }
    let level = Level::new(1).unwrap();
    let listed = store.list(level, None).await.unwrap();
    assert_eq!(names(&listed), expected);
    assert_eq!(listed.iter().map(|l| l.size_bytes).collect::<Vec<_>>(), [10, 11, 12, 13, 14]);
    listed.iter().for_each(|&l| timestamp_is_the_commits_or_recent(l, traits));
    for (from, skipped) in [(1, 0), (2, 0), (3, 2), (10, 2), (11, 3), (256, 4), (4096, 4), (4097, 5)] {
        let listed = store.list(level, Txid::new(from)).await.unwrap();
        assert_eq!(names(&listed), expected[skipped..], "from {from}");
    }
    assert_eq!(store.list(Level::new(2).unwrap(), None).await.unwrap(), []);
    // Levels do not mix.
    assert_eq!(names(&store.list(Level::ZERO, None).await.unwrap()), [name(0, 1, 1)]);
}

async fn large_objects_go_up_in_parts(store: &dyn Store, traits: Traits) {
    const SIZE: usize = 20 * 1024 * 1024;
    let snapshot = LtxName::snapshot(Txid::new(28).unwrap());
    let content = body(9, SIZE);
    let begun = |name| async move { store.upload(name, COMMITTED).await.unwrap() };
    // Given up, and dropped: nothing is visible.
    let mut upload = begun(&snapshot).await;
    upload.part(content.slice(..store.part_size_bytes())).await.unwrap();
    upload.abort().await;
    let mut upload = begun(&snapshot).await;
    upload.part(content.slice(..store.part_size_bytes())).await.unwrap();
    drop(upload);
    assert_eq!(store.list(SNAPSHOT_LEVEL, None).await.unwrap(), []);

    let (mut first, mut second) = (begun(&snapshot).await, begun(&snapshot).await);
    for start in (0..SIZE).step_by(store.part_size_bytes()) {
        let part = content.slice(start..SIZE.min(start + store.part_size_bytes()));
        first.part(part.clone()).await.unwrap();
        if start == 0 {
            second.part(body(7, 1000)).await.unwrap();
        }
    }
    assert_eq!(first.finish().await.unwrap(), Created::New);
    assert_eq!(second.finish().await.unwrap(), Created::AlreadyExists);
    let head = store.head(&snapshot).await.unwrap();
    assert_eq!(head, Listed { name: snapshot, size_bytes: SIZE as u64, timestamp: COMMITTED, timestamp_is_exact: true });
    let range = 8 * 1024 * 1024 - 5..8 * 1024 * 1024 + 5;
    assert_eq!(store.get_range(&snapshot, range.start as u64..range.end as u64).await.unwrap(), content[range]);
    assert!(store.get_range(&snapshot, 0..SIZE as u64).await.unwrap() == content);
    let listed = store.list(SNAPSHOT_LEVEL, None).await.unwrap();
    assert_eq!(names(&listed), [snapshot]);
    timestamp_is_the_commits_or_recent(listed[0], traits);
    // A large object is no reason for a small one to replace it.
    if traits.creates_atomically {
        assert_eq!(store.create(&snapshot, body(1, 1), COMMITTED).await.unwrap(), Created::AlreadyExists);
    }
}

async fn deleting_is_idempotent(store: &dyn Store) {
    let many: Vec<LtxName> = (1..=30).map(|txid| name(4, txid, txid)).collect();
    for name in &many {
        store.create(name, body(0, 5), COMMITTED).await.unwrap();
    }
    store.delete(&many[..1]).await.unwrap();
    // One is gone already, one never was.
    let mut rest = many[..29].to_vec();
    rest.push(name(5, 1, 1));
    store.delete(&rest).await.unwrap();
    store.delete(&rest).await.unwrap();
    store.delete(&[]).await.unwrap();
    assert_eq!(names(&store.list(Level::new(4).unwrap(), None).await.unwrap()), many[29..]);
    // A name that was deleted is free again.
    assert_eq!(store.create(&many[0], body(0, 5), COMMITTED).await.unwrap(), Created::New);
    store.delete(&many).await.unwrap();
    assert_eq!(store.list(Level::new(4).unwrap(), None).await.unwrap(), []);
}

async fn the_probe_tells_the_truth(store: &dyn Store, traits: Traits) {
    assert_eq!(store.creates_are_conditional().await.unwrap(), traits.creates_atomically);
    assert_eq!(store.creates_are_conditional().await.unwrap(), traits.creates_atomically);
    assert_eq!(names(&store.list(Level::ZERO, None).await.unwrap()), [name(0, 1, 1)]);
}

const BUCKET: Traits = Traits { lists_exact_timestamps: false, creates_atomically: true };

fn put_into(folder: &Path) -> impl Fn(&str) {
    move |file| std::fs::write(folder.join(file), "not ours").unwrap()
}

#[test]
fn a_folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("not/yet/there");
    let store = store(&format!("file://{}", root.display()), &Env::default());
    let traits = Traits { lists_exact_timestamps: true, creates_atomically: true };
    run(conformance(&*store, traits, Some(&put_into(&root.join("ltx/1")))));
    assert_eq!(std::fs::read_dir(root.join("ltx/9")).unwrap().count(), 1, "temporary files were left");
}

#[test]
fn the_testkits_s3_server_conforms() {
    let server = Server::start().unwrap();
    let env: Env = server.env().into_iter().collect();
    let store = store("s3://replicas/app/db", &env);
    run(conformance(&*store, BUCKET, Some(&put_into(&server.root().join("replicas/app/db/0001")))));
    let requests = server.requests();
    assert!(requests.put > 0 && requests.get > 0 && requests.list > 0 && requests.head > 0 && requests.delete > 0, "{requests:?}");
}

#[test]
fn listings_longer_than_a_page_are_whole() {
    let server = Server::start().unwrap();
    let env: Env = server.env().into_iter().collect();
    let folder = server.root().join("replicas/db/0000");
    std::fs::create_dir_all(&folder).unwrap();
    let expected: Vec<LtxName> = (1..=2345).map(|txid| name(0, txid, txid)).collect();
    for name in &expected {
        std::fs::write(folder.join(name.file_name()), "x").unwrap();
    }
    let store = store("s3://replicas/db", &env);
    assert_eq!(names(&run(store.list(Level::ZERO, None)).unwrap()), expected);
    assert_eq!(server.requests().list, 3);
    assert_eq!(names(&run(store.list(Level::ZERO, Txid::new(1200))).unwrap()), expected[1199..]);
    assert_eq!(server.requests().list, 5);
}

#[test]
fn googles_dialect_conforms() {
    let server = Server::with_options(Options { dialect: Dialect::Google, ..Options::default() }).unwrap();
    let env: Env = server.env().into_iter().collect();
    let store = store(&server.url("app/db"), &env);
    run(conformance(&*store, BUCKET, Some(&put_into(&server.root().join("replicas/app/db/ltx/1")))));
}

/// Runs the suite against a server that the environment names by a replica URL, below a path that no earlier run has used.
fn conforms_where_named(variable: &str, traits: Traits) {
    let Ok(base) = std::env::var(variable) else {
        eprintln!("{variable} is not set: not tried");
        return;
    };
    let (base, query) = base.split_once('?').unwrap_or((&base, ""));
    let url = format!("{base}/{:016x}?{query}", fastrand::u64(..));
    run(conformance(&*store(&url, &Env::process()), traits, None));
}

/// Wrong keys and a bucket that is not there, as that server reports them.
fn refuses_where_named(variable: &str, wrong_keys: &[(&str, &str)], bucket: &str, refused: StoreErrorKind) {
    let Ok(url) = std::env::var(variable) else { return };
    let list = |url: &str, env: &Env| run(store(url, env).list(Level::ZERO, None)).unwrap_err();
    let error = list(&url, &wrong_keys.iter().copied().collect());
    assert_eq!(error.kind, refused, "{error}");
    for (_, secret) in wrong_keys {
        assert!(!format!("{error} {error:?}").contains(secret), "{error}");
    }
    let error = list(&url.replacen(bucket, "no-such-bucket", 1), &Env::process());
    assert_eq!(error.kind, StoreErrorKind::NoSuchBucket, "{error}");
}

#[test]
fn seaweedfs_refuses() {
    let wrong = [("AWS_ACCESS_KEY_ID", "wrong-key-id"), ("AWS_SECRET_ACCESS_KEY", "wrong-secret")];
    refuses_where_named("REPLICATED_TEST_S3", &wrong, "conformance", StoreErrorKind::Credentials);
}

#[test]
fn azurite_refuses() {
    let wrong = [("AZURE_STORAGE_ACCOUNT_KEY", "d3JvbmcgYWNjb3VudCBrZXkgb2YgdGhlIHRlc3Q=")];
    // Azure itself says AuthenticationFailed; Azurite says AuthorizationFailure, which to Azure means a missing permission.
    refuses_where_named("REPLICATED_TEST_ABS", &wrong, "conformance", StoreErrorKind::PermissionDenied);
}

#[test]
fn seaweedfs_conforms() {
    conforms_where_named("REPLICATED_TEST_S3", BUCKET);
}

#[test]
fn azurite_conforms() {
    conforms_where_named("REPLICATED_TEST_ABS", BUCKET);
}

#[test]
fn google_conforms() {
    conforms_where_named("REPLICATED_TEST_GS", BUCKET);
}
