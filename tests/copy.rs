//! A bucket goes from one kind of store to another and can be restored there at every instant, by us and by Litestream; what is broken off is gone on with;
//! another history is not mixed with.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use replicated::copy::{self, Copier, CopyError, Options, Report};
use replicated::maintenance;
use replicated::restore::{self, PlanError, Target};
use replicated::store::{Created, Level, Listed, LtxName, SNAPSHOT_LEVEL, Store, StoreError, StoreErrorKind, Upload};
use replicated::types::{TimestampMs, Txid};
use replicated::verify::{self, Outcome, Scope, Verifier};
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::maintenance::Order;
use replicated_testkit::s3::{self, Dialect, Server};
use replicated_testkit::sqlite::page_compare;
use replicated_testkit::{pass_on, tools};
use serde_json::Value;

const HOUR: Duration = Duration::from_secs(3600);

/// A place for a bucket, of some kind.
struct Home {
    bucket: Bucket,
    _dir: tempfile::TempDir,
    _server: Option<Server>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Folder,
    S3,
    Google,
}

impl Home {
    fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dialect = if let Kind::Google = kind { Dialect::Google } else { Dialect::S3 };
        let server = match kind {
            Kind::Folder => None,
            _ => Some(Server::with_options(s3::Options { dialect, ..s3::Options::default() }).unwrap()),
        };
        let bucket = match &server {
            Some(server) => Bucket { url: server.url("app/db"), env: server.env() },
            None => Bucket::folder(&dir.path().join("bucket")),
        };
        Self { bucket, _dir: dir, _server: server }
    }
}

impl Home {
    /// A fresh path of a store that others wrote, where the environment names one and what it takes to use it.
    fn named(variable: &str) -> Option<Self> {
        let base = std::env::var(variable).ok()?;
        let (base, query) = base.split_once('?').unwrap_or((&base, ""));
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AZURE_STORAGE_ACCOUNT_KEY"];
        let env = keys.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
        let bucket = Bucket { url: format!("{base}/{:016x}?{query}", fastrand::u64(..)), env };
        Some(Self { bucket, _dir: tempfile::tempdir().unwrap(), _server: None })
    }
}

/// A database and its bucket, with some life behind it.
struct Source {
    dir: tempfile::TempDir,
    home: Home,
    host: Host,
    db: Db,
}

impl Source {
    fn new(kind: Kind) -> Self {
        Self::at(Home::new(kind))
    }

    fn at(home: Home) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host::start(Program::Python, &home.bucket.env);
        let options = [("sync_interval", "10ms"), ("burst", "100")];
        let db = host.open(&host::replicated(&dir.path().join("app.db"), &home.bucket.url, &options));
        host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
        host.sync(db);
        Self { dir, home, host, db }
    }

    fn commit(&mut self, uploads: usize) {
        for _ in 0..uploads {
            self.host.run(
                self.db,
                "BEGIN; INSERT INTO t(x) VALUES (randomblob(3000)); UPDATE t SET x = randomblob(2000) WHERE id % 3 = 1; COMMIT",
            );
            self.host.sync(self.db);
        }
    }

    fn maintain(&self, later: Duration) {
        let order = Order { change_percent: 100_000, ..Order::of(&self.home.bucket) }.later(later);
        assert_eq!(order.run(&self.home.bucket).unwrap().problems, Vec::<String>::new());
    }

    /// Levels and a second snapshot, and level 0 behind it.
    fn grown(kind: Kind) -> Self {
        Self::new(kind).grows()
    }

    fn grows(self) -> Self {
        let mut source = self;
        source.commit(8);
        source.maintain(Duration::from_secs(5));
        source.commit(5);
        // One snapshot more, whatever else is due.
        let order = Order { change_percent: 0, ..Order::of(&source.home.bucket) }.later(Duration::from_secs(9));
        let mut policy = order.policy();
        policy.deletes = false;
        policy.snapshot_every = Duration::from_millis(1);
        let mut maintainer = maintenance::Maintainer::new(source.home.bucket.store(), policy);
        maintenance::maintain(&mut maintainer, order.at()).unwrap();
        source.commit(4);
        assert!(source.bucket().level(SNAPSHOT_LEVEL).len() > 1 && !source.bucket().level(Level::new(1).unwrap()).is_empty());
        source
    }

    fn bucket(&self) -> &Bucket {
        &self.home.bucket
    }

    fn is_restored_by(&self, bucket: &Bucket) {
        let output = self.dir.path().join("restored.db");
        bucket.restore(&output);
        page_compare(&flattened(&self.dir.path().join("app.db"), self.dir.path()), &output).unwrap();
    }
}

fn copied(from: &Bucket, to: &Bucket, options: &Options) -> Result<Report, CopyError> {
    copy::copy(&mut Copier::new(from.store(), to.store(), options.clone()))
}

fn done(from: &Bucket, to: &Bucket, options: &Options) -> Report {
    let report = copied(from, to, options).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((&report.problems, &report.held_back), (&vec![], &vec![]));
    report
}

fn names(bucket: &Bucket) -> BTreeSet<LtxName> {
    bucket.try_list().iter().map(|file| file.name).collect()
}

fn verified(bucket: &Bucket) {
    let report = verify::read(&Verifier::new(bucket.store(), Scope::default()), maintenance::now()).unwrap();
    assert_eq!(report.outcome(), Outcome::Verified, "{report:#?}");
}

fn mirror() -> Options {
    Options { mirror: true, ..Options::default() }
}

fn cli(arguments: &[&str], env: &[(String, String)]) -> (i32, Value, String) {
    let output = host::command(env!("CARGO_BIN_EXE_replicated"), env).arg("copy").args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    (output.status.code().unwrap_or_else(|| panic!("{err}")), serde_json::from_str(&out).unwrap_or(Value::Null), err)
}

#[test]
fn every_kind_of_store_copies_to_every_other() {
    let sources = [Kind::Folder, Kind::S3, Kind::Google].map(Source::grown);
    for mut source in sources {
        for kind in [Kind::Folder, Kind::S3, Kind::Google] {
            let to = Home::new(kind);
            let first = done(source.bucket(), &to.bucket, &mirror());
            assert_eq!((first.copied.len(), first.same, first.newest), (first.files, 0, first.newest_of_source));
            assert_eq!(names(source.bucket()), names(&to.bucket));
            source.is_restored_by(&to.bucket);
            verified(&to.bucket);
            // A time means the same state there: each file has the time of its last commit.
            let level0 = source.bucket().level(Level::ZERO);
            let middle = level0[level0.len() / 2].name;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let committed = |bucket: &Bucket| runtime.block_on(bucket.store().head(&middle)).unwrap().timestamp;
            assert_eq!(committed(source.bucket()), committed(&to.bucket));
            let at = Target::Timestamp(committed(&to.bucket));
            assert_eq!(restore::plan_restore(&*to.bucket.store(), at).unwrap().txid, middle.max_txid);
            // Again, with nothing to do, and with something.
            let again = done(source.bucket(), &to.bucket, &mirror());
            assert_eq!((again.copied.len(), again.same, again.deleted.len()), (0, first.files, 0));
            source.commit(1);
            assert_eq!(done(source.bucket(), &to.bucket, &mirror()).copied.len(), 1);
            source.is_restored_by(&to.bucket);
        }
    }
}

/// What is done at the destination is looked at after each step, and may fail at one of them.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Store>,
    bucket: Bucket,
    litestream: Option<PathBuf>,
    steps: AtomicUsize,
    fails_at: usize,
    newest: Mutex<Option<Txid>>,
}

impl Watched {
    fn new(bucket: &Bucket, fails_at: usize, litestream: Option<PathBuf>) -> Arc<Self> {
        let (steps, newest) = (AtomicUsize::new(0), Mutex::new(None));
        Arc::new(Self { inner: bucket.store(), bucket: bucket.clone(), litestream, steps, fails_at, newest })
    }

    /// Fails from a step on.
    fn step(&self, operation: &'static str) -> Result<usize, StoreError> {
        let step = self.steps.fetch_add(1, Ordering::Relaxed);
        if step < self.fails_at {
            return Ok(step);
        }
        let (kind, cause) = (StoreErrorKind::PermissionDenied, "the test ends here".to_owned());
        Err(StoreError { kind, operation, object: String::new(), cause, advice: "", retry_after: None })
    }

    /// The newest state can be restored, and is no older than before.
    async fn look(&self, step: usize) {
        let mut files: Vec<Listed> = Vec::new();
        for level in Level::all() {
            files.extend(self.inner.list(level, None).await.unwrap());
        }
        let plan = match restore::plan(&files, Target::Latest) {
            Ok(plan) => plan,
            Err(error) => panic!("step {step}: {error}: {files:?}"),
        };
        let before = self.newest.lock().replace(plan.txid);
        assert!(before <= Some(plan.txid), "step {step}: {before:?} before, {} now", plan.txid);
        if let Some(litestream) = self.litestream.as_ref().filter(|_| step.is_multiple_of(4)) {
            let dir = tempfile::tempdir().unwrap();
            let mut command = host::command(litestream, &self.bucket.env);
            command.arg("restore").arg("-o").arg(dir.path().join("theirs.db")).arg(&self.bucket.url);
            let output = command.output().unwrap();
            assert!(output.status.success(), "step {step}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

impl Store for Watched {
    pass_on!(url, list, part_size_bytes, get_range, head, creates_are_conditional);

    fn create<'a>(&'a self, name: &'a LtxName, body: Bytes, timestamp: TimestampMs) -> BoxFuture<'a, Result<Created, StoreError>> {
        async move {
            let step = self.step("create")?;
            let created = self.inner.create(name, body, timestamp).await?;
            self.look(step).await;
            Ok(created)
        }
        .boxed()
    }

    fn upload<'a>(&'a self, name: &'a LtxName, timestamp: TimestampMs) -> BoxFuture<'a, Result<Box<dyn Upload>, StoreError>> {
        match self.step("upload") {
            Ok(_) => self.inner.upload(name, timestamp),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    fn delete<'a>(&'a self, names: &'a [LtxName]) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            // One after the other, as a store may do it.
            for name in names {
                let step = self.step("delete")?;
                self.inner.delete(&[*name]).await?;
                self.look(step).await;
            }
            Ok(())
        }
        .boxed()
    }
}

#[test]
fn the_destination_can_be_restored_at_every_instant() {
    let litestream = tools::environment().map(|tools| tools.join("bin/litestream"));
    let mut source = Source::grown(Kind::S3);
    let to = Home::new(Kind::Folder);
    for round in 0..3 {
        let watched = Watched::new(&to.bucket, usize::MAX, litestream.clone());
        let report = copy::copy(&mut Copier::new(source.bucket().store(), watched.clone(), mirror())).unwrap();
        assert_eq!(watched.steps.load(Ordering::Relaxed), report.copied.len() + report.deleted.len());
        assert_eq!(names(source.bucket()), names(&to.bucket));
        assert_eq!((report.deleted.is_empty(), report.refused), (round == 0, None));
        source.is_restored_by(&to.bucket);
        source.commit(4);
        // Whatever it had is outdated, and deleted at the source.
        source.maintain(26 * HOUR * (round + 1));
    }
}

#[test]
fn what_was_broken_off_is_gone_on_with() {
    let source = Source::grown(Kind::Folder);
    let all = names(source.bucket()).len();
    for fails_at in [0, 1, 2, 3, 5, 8, all - 1] {
        let to = Home::new(if fails_at % 2 == 0 { Kind::Folder } else { Kind::S3 });
        let options = Options { parallelism: 1 + fails_at % 4, ..Options::default() };
        let watched = Watched::new(&to.bucket, fails_at, None);
        let error = copy::copy(&mut Copier::new(source.bucket().store(), watched, options.clone())).unwrap_err();
        assert!(matches!(error, CopyError::Store(_)), "{error}");
        let there = names(&to.bucket).len();
        assert!(there >= fails_at.min(1) && there < all);
        let report = done(source.bucket(), &to.bucket, &options);
        assert_eq!((report.same, report.copied.len()), (there, all - there));
        source.is_restored_by(&to.bucket);
    }
}

#[test]
fn a_killed_copy_leaves_what_can_be_restored_and_gone_on_with() {
    let mut source = Source::new(Kind::Folder);
    source.commit(40);
    let to = Home::new(Kind::Folder);
    let mut deaths = 0;
    for files in 0.. {
        let mut command = host::command(env!("CARGO_BIN_EXE_replicated"), &[]);
        command.args(["copy", &source.bucket().url, &to.bucket.url, "--parallelism", "1"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // As soon as it has got somewhere.
        while names(&to.bucket).len() <= files * 5 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        deaths += usize::from(child.try_wait().unwrap().is_none());
        // It may have ended in the meantime.
        let _ = child.kill();
        child.wait().unwrap();
        match restore::plan_restore(&*to.bucket.store(), Target::Latest) {
            Ok(_) => {}
            Err(error) => assert!(error.is_empty_bucket(), "{error}"),
        }
        if names(&to.bucket).len() == names(source.bucket()).len() || files > 20 {
            break;
        }
    }
    assert!(deaths > 0, "it never died on its way");
    done(source.bucket(), &to.bucket, &Options::default());
    assert_eq!(names(source.bucket()), names(&to.bucket));
    source.is_restored_by(&to.bucket);
}

#[test]
fn another_history_is_not_mixed_with() {
    let mut source = Source::grown(Kind::Folder);
    let mut other = Source::grown(Kind::S3);
    let before = names(other.bucket());
    let error = copied(source.bucket(), other.bucket(), &mirror()).unwrap_err();
    assert!(matches!(error, CopyError::OtherHistory { .. } | CopyError::Ahead { .. }), "{error}");
    other.commit(9);
    let error = copied(source.bucket(), other.bucket(), &mirror()).unwrap_err();
    assert!(matches!(error, CopyError::Ahead { .. }), "{error}");
    assert!(names(other.bucket()).is_superset(&before) && !error.advice().is_empty());

    // A copy that somebody else goes on with, and one that has nothing in common any more.
    let to = Home::new(Kind::Folder);
    done(source.bucket(), &to.bucket, &mirror());
    source.commit(2);
    source.maintain(26 * HOUR);
    source.commit(1);
    source.maintain(60 * HOUR);
    let in_common = names(&to.bucket).intersection(&names(source.bucket())).count();
    let later = done(source.bucket(), &to.bucket, &mirror());
    assert!(!later.copied.is_empty() && names(&to.bucket) == names(source.bucket()), "{in_common} in common");
    let alone = Home::new(Kind::Folder);
    let newest = source.bucket().level(Level::ZERO).last().unwrap().name;
    let foreign = other.bucket().level(Level::ZERO)[0];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bytes = other.bucket().store().get_range(&foreign.name, 0..foreign.size_bytes).await.unwrap();
        alone.bucket.store().create(&foreign.name, bytes, foreign.timestamp).await.unwrap();
    });
    assert!(foreign.name.max_txid < newest.max_txid);
    let error = copied(source.bucket(), &alone.bucket, &mirror()).unwrap_err();
    assert!(matches!(error, CopyError::NothingInCommon { .. } | CopyError::OtherHistory { .. }), "{error}");
    assert_eq!(names(&alone.bucket).len(), 1);

    // Nothing is copied from nothing, and nothing deleted for it.
    let nothing = Home::new(Kind::Folder);
    assert!(matches!(copied(&nothing.bucket, &to.bucket, &mirror()), Err(CopyError::Empty { .. })));
    assert_eq!(names(&to.bucket), names(source.bucket()));
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/litestream-0.3.13-generations");
    assert!(matches!(copied(&Bucket::folder(&old), &nothing.bucket, &mirror()), Err(CopyError::Generations { .. })));
}

fn object(bucket: &Bucket, name: LtxName) -> PathBuf {
    Path::new(bucket.url.strip_prefix("file://").unwrap()).join(format!("ltx/{}/{}", name.level, name.file_name()))
}

#[test]
fn damage_is_neither_copied_nor_kept() {
    let source = Source::grown(Kind::Folder);
    let to = Home::new(Kind::Folder);
    done(source.bucket(), &to.bucket, &Options::default());
    // At the destination: what is cut short is sent again, and what is another one beneath the same checksum and size is for `verify` to find.
    let damaged = to.bucket.level(SNAPSHOT_LEVEL)[0].name;
    let path = object(&to.bucket, damaged);
    let bytes = fs::read(&path).unwrap();
    for left in [bytes.len() / 2, 50, 0] {
        fs::write(&path, &bytes[..left]).unwrap();
        let report = done(source.bucket(), &to.bucket, &Options::default());
        assert_eq!(report.replaced, [damaged]);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    let level0 = to.bucket.level(Level::ZERO);
    let in_the_midst = object(&to.bucket, level0[level0.len() / 2].name);
    let whole = fs::read(&in_the_midst).unwrap();
    let mut wrong = whole.clone();
    *wrong.last_mut().unwrap() ^= 1;
    fs::write(&in_the_midst, &wrong).unwrap();
    let all = Options { compares_all: true, ..Options::default() };
    assert_eq!(done(source.bucket(), &to.bucket, &all).replaced.len(), 1);
    assert_eq!(fs::read(&in_the_midst).unwrap(), whole);

    // At the source: it is named, what cannot follow without it is held back, and nothing is deleted.
    let other = Home::new(Kind::Folder);
    let newest = source.bucket().level(SNAPSHOT_LEVEL).last().unwrap().name.max_txid;
    let after = source.bucket().level(Level::ZERO).into_iter().find(|file| file.name.min_txid > newest).unwrap();
    let path = object(source.bucket(), after.name);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let report = copied(source.bucket(), &other.bucket, &mirror()).unwrap();
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert!(report.problems[0].contains(&after.name.to_string()));
    assert!(!report.held_back.is_empty());
    assert_eq!(report.newest, Some(newest));
    assert_eq!(restore::plan_restore(&*other.bucket.store(), Target::Latest).unwrap().txid, newest);
    let (code, told, errors) = cli(&[&source.bucket().url, &other.bucket.url, "--json"], &[]);
    assert_eq!((code, &told["status"]), (1, &"incomplete".into()), "{errors}");
    assert!(errors.contains(&after.name.to_string()), "{errors}");
    // Nor does it take the place of a good one that is damaged elsewhere.
    let good = fs::read(object(&to.bucket, after.name)).unwrap();
    fs::write(object(&to.bucket, after.name), &good[..good.len() - 1]).unwrap();
    let report = copied(source.bucket(), &to.bucket, &Options::default()).unwrap();
    assert_eq!((report.replaced.len(), report.problems.len()), (0, 1));
    assert!(object(&to.bucket, after.name).exists());
}

/// More than one part of a large object, in little memory.
#[test]
fn large_files_are_copied_in_parts() {
    let mut source = Source::new(Kind::Folder);
    source.host.run(source.db, "INSERT INTO t(x) VALUES (randomblob(19000000))");
    source.commit(2);
    let (to, back) = (Home::new(Kind::S3), Home::new(Kind::Folder));
    let options = Options { max_memory_bytes: 8 << 20, ..Options::default() };
    let report = done(source.bucket(), &to.bucket, &options);
    assert!(report.copied.iter().any(|file| file.size_bytes > 16 << 20));
    done(&to.bucket, &back.bucket, &options);
    source.is_restored_by(&back.bucket);
    for name in names(source.bucket()) {
        assert_eq!(fs::read(object(source.bucket(), name)).unwrap(), fs::read(object(&back.bucket, name)).unwrap());
    }
}

#[test]
fn a_mirror_follows_a_bucket_that_is_written_to_and_maintained() {
    let mut source = Source::new(Kind::Folder);
    let to = Home::new(Kind::S3);
    let mut copier = Copier::new(source.bucket().store(), to.bucket.store(), mirror());
    let mut deleted = 0;
    for round in 0..8_u32 {
        source.commit(3);
        source.maintain(if round < 4 { Duration::from_secs(5) } else { 26 * HOUR * (round - 3) });
        let bucket = source.bucket().clone();
        let order = Order { change_percent: 100_000, ..Order::of(&bucket) }.later(26 * HOUR * (round + 1));
        // Somebody deletes while it is copied.
        let other = (round % 2 == 1).then(|| std::thread::spawn(move || order.run(&bucket).unwrap()));
        let report = copy::copy(&mut copier).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!((report.problems.len(), report.newest), (0, report.newest_of_source), "round {round}: {report:?}");
        deleted += report.deleted.len();
        source.is_restored_by(&to.bucket);
        if let Some(other) = other {
            other.join().unwrap();
        }
    }
    assert!(deleted > 0);
    copy::copy(&mut copier).unwrap();
    assert_eq!(names(source.bucket()), names(&to.bucket));
    // Maintained as if days had passed, it promises no more than its newest snapshot.
    let scope = Scope { history: Duration::ZERO, exact: Duration::ZERO, ..Scope::default() };
    let report = verify::read(&Verifier::new(to.bucket.store(), scope), maintenance::now()).unwrap();
    assert_eq!(report.outcome(), Outcome::Verified, "{report:#?}");
}

#[test]
fn litestreams_bucket_is_copied_and_gone_on_with_from_there() {
    let Some(tools) = tools::environment() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (Home::new(Kind::Folder), Home::new(Kind::Folder));
    let database = dir.path().join("app.db");
    let plain = rusqlite::Connection::open(&database).unwrap();
    plain.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(90000))").unwrap();
    let replicate = |bucket: &Bucket| {
        let mut litestream = host::command(tools.join("bin/litestream"), &[]);
        litestream.arg("replicate").arg(&database).arg(&bucket.url).stdout(Stdio::null()).stderr(Stdio::null());
        litestream.spawn().unwrap()
    };
    let newest = |bucket: &Bucket| bucket.try_list().iter().map(|file| file.name.max_txid.get()).max().unwrap_or_default();
    let stop = |mut child: std::process::Child| {
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
        child.wait().unwrap();
    };
    let litestream = replicate(&from.bucket);
    for _ in 0..3 {
        let before = newest(&from.bucket);
        plain.execute_batch("INSERT INTO t VALUES (randomblob(5000))").unwrap();
        eventually("Litestream's upload", || newest(&from.bucket) > before);
    }
    stop(litestream);
    done(&from.bucket, &to.bucket, &Options::default());
    verified(&to.bucket);
    let output = dir.path().join("restored.db");
    to.bucket.restore(&output);
    page_compare(&flattened(&database, dir.path()), &output).unwrap();
    // The move: from now on it replicates into the copy, and the copy is ahead.
    let before = newest(&to.bucket);
    let litestream = replicate(&to.bucket);
    plain.execute_batch("INSERT INTO t VALUES (randomblob(5000))").unwrap();
    eventually("Litestream's upload to the copy", || newest(&to.bucket) > before);
    stop(litestream);
    verified(&to.bucket);
    assert!(matches!(copied(&from.bucket, &to.bucket, &mirror()), Err(CopyError::Ahead { .. })));
}

#[test]
fn the_command_shows_does_and_tells() {
    let mut source = Source::grown(Kind::Folder);
    let to = Home::new(Kind::Folder);
    let (from_url, to_url) = (source.bucket().url.clone(), to.bucket.url.clone());
    let (code, told, errors) = cli(&[&from_url, &to_url, "--dry-run", "--json"], &[]);
    assert_eq!((code, &told["status"]), (0, &"planned".into()), "{errors}");
    assert_eq!(told["copied"].as_array().unwrap().len(), names(source.bucket()).len());
    assert_eq!(names(&to.bucket), BTreeSet::new());
    let (code, told, errors) = cli(&[&from_url, &to_url, "--json"], &[]);
    assert_eq!((code, &told["status"], &told["newest"]), (0, &"done".into(), &told["newest_of_source"]), "{errors}");
    assert_eq!(cli(&[&from_url, &to_url, "--quiet"], &[]), (0, Value::Null, String::new()));
    source.commit(3);
    source.maintain(26 * HOUR);
    let (_, told, _) = cli(&[&from_url, &to_url, "--dry-run", "--mirror", "--json"], &[]);
    let deletes = told["deleted"].as_array().unwrap().len();
    assert!(deletes > 0);
    let (_, told, _) = cli(&[&from_url, &to_url, "--json"], &[]);
    assert_eq!(told["deleted"].as_array().unwrap().len(), 0);
    let (_, told, _) = cli(&[&from_url, &to_url, "--mirror", "--json"], &[]);
    assert_eq!(told["deleted"].as_array().unwrap().len(), deletes);
    for usage in [&[from_url.as_str(), &from_url][..], &[&from_url], &[&from_url, "nonsense://x"], &[&from_url, &to_url, "--every", "0s"]] {
        assert_eq!(cli(usage, &[]).0, 2, "{usage:?}");
    }
    let nowhere = format!("file://{}", to.bucket.url.strip_prefix("file://").unwrap().to_owned() + "/nothing");
    assert_eq!(cli(&[&nowhere, &to_url], &[]).0, 1);
    assert!(matches!(restore::plan(&[], Target::Latest), Err(PlanError::Empty)));
}

/// From S3 to Azure and back, by implementations that others wrote, where `scripts/test-stores.sh` has started them.
#[test]
fn real_stores_s3_and_azure_and_back() {
    let names_of = ["REPLICATED_TEST_S3", "REPLICATED_TEST_ABS", "REPLICATED_TEST_S3"].map(Home::named);
    let [Some(s3), Some(azure), Some(back)] = names_of else {
        eprintln!("REPLICATED_TEST_S3 and REPLICATED_TEST_ABS are not both set: not tried");
        return;
    };
    let mut source = Source::at(s3);
    // A file of several parts, first of all.
    source.host.run(source.db, "INSERT INTO t(x) VALUES (randomblob(19000000))");
    source = source.grows();
    // Maintained as if days had passed, it promises no more than its newest snapshot.
    let scope = Scope { history: Duration::ZERO, exact: Duration::ZERO, ..Scope::default() };
    let whole = |bucket: &Bucket| {
        let report = verify::read(&Verifier::new(bucket.store(), scope.clone()), maintenance::now()).unwrap();
        assert_eq!(report.outcome(), Outcome::Verified, "{}: {report:#?}", bucket.url);
    };
    for round in 0..2_u32 {
        for (from, to) in [(source.bucket(), &azure.bucket), (&azure.bucket, &back.bucket)] {
            let (code, told, errors) = cli(&[&from.url, &to.url, "--mirror", "--json"], &from.env);
            assert_eq!((code, &told["status"]), (0, &"done".into()), "{errors}");
            assert!(!told["copied"].as_array().unwrap().is_empty());
            assert_eq!(told["deleted"].as_array().unwrap().is_empty(), round == 0, "{told:#}");
            assert_eq!(names(from), names(to));
            source.is_restored_by(to);
            whole(to);
            // Nothing is left to be done.
            assert!(done(from, to, &mirror()).copied.is_empty());
        }
        // Each object, and the time of its last commit.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (first, last) = (source.bucket().store(), back.bucket.store());
        for file in source.bucket().list() {
            runtime.block_on(async {
                let heads = [first.head(&file.name).await.unwrap(), last.head(&file.name).await.unwrap()];
                assert_eq!(heads[0], heads[1]);
                let read = async |store: &Arc<dyn Store>| store.get_range(&file.name, 0..file.size_bytes).await.unwrap();
                assert!(read(&first).await == read(&last).await, "{}", file.name);
            });
        }
        source.commit(3);
        // The floor moves on, and what was before it goes.
        source.maintain(26 * HOUR);
        source.maintain(60 * HOUR);
        source.commit(2);
    }
}
