//! Buckets whose objects may not go: all there is to do with one is done, by saying what was not deleted and not by failing.
//!
//! S3's object lock is about versions, and a deletion that names none is answered well: the version stays below a marker. Stores whose lock is on the object
//! itself, and credentials and policies that deny it, refuse the deletion (403).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use replicated::copy::{self, Copier};
use replicated::store::{Level, LtxName, SNAPSHOT_LEVEL};
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Program, eventually};
use replicated_testkit::locked::Lock;
use replicated_testkit::maintenance::Order;
use replicated_testkit::place::{Place, Worker};
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::page_compare;
use serde_json::Value;

const HOUR: Duration = Duration::from_secs(3600);
/// Rounds follow each other, and what is half a second old may go.
const BUSY: &[(&str, &str)] =
    &[("spans", "100ms,300ms,1s"), ("history", "300ms"), ("grace", "200ms"), ("snapshot_every", "500ms"), ("snapshot_change", "100000")];

fn server(lock: Lock) -> Server {
    Server::with_options(Options { lock, ..Options::default() }).unwrap()
}

fn place(server: &Server) -> Place {
    Place::with(tempfile::tempdir().unwrap(), Bucket::s3(server, "app"), None)
}

fn commits(worker: &mut Worker, uploads: usize) {
    for _ in 0..uploads {
        worker.write("more");
        worker.sync();
    }
}

/// Runs the command; its exit code, its document and its errors.
fn cli(bucket: &Bucket, command: &str, arguments: &[&str]) -> (i32, Value, String) {
    let mut process: Command = host::command(env!("CARGO_BIN_EXE_replicated"), &bucket.env);
    let output = process.arg(command).arg(&bucket.url).args(arguments).arg("--json").output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    (output.status.code().unwrap_or_else(|| panic!("{err}")), serde_json::from_str(&out).unwrap_or(Value::Null), err)
}

fn names(bucket: &Bucket) -> BTreeSet<LtxName> {
    bucket.list().iter().map(|file| file.name).collect()
}

fn is_restored(place: &Place, bucket: &Bucket) {
    let restored = place.dir.path().join("restored.db");
    bucket.restore(&restored);
    page_compare(&flattened(&place.path(), place.dir.path()), &restored).unwrap();
}

/// Waits until nothing is asked any more: a round that a close cuts off keeps the command out for two minutes.
fn silence(server: &Server) {
    let mut quiet = 0;
    eventually("silence", || {
        std::thread::sleep(Duration::from_millis(100));
        quiet = if server.take_log().is_empty() { quiet + 1 } else { 0 };
        quiet == 6
    });
}

/// Maintained as if days had passed, so that there is something to be deleted.
fn maintained_later(bucket: &Bucket) -> replicated::maintenance::Report {
    let order = Order { change_percent: 100_000, ..Order::of(bucket) };
    order.run(bucket).unwrap();
    order.later(26 * HOUR).run(bucket).unwrap();
    order.later(60 * HOUR).run(bucket).unwrap()
}

fn copied(from: &Bucket, to: &Bucket) -> copy::Report {
    let options = copy::Options { mirror: true, ..copy::Options::default() };
    copy::copy(&mut Copier::new(from.store(), to.store(), options)).unwrap_or_else(|error| panic!("{error}"))
}

/// The path of an object.
fn object(server: &Server, path: &str, name: LtxName) -> std::path::PathBuf {
    server.root().join(server.bucket()).join(path).join(format!("{:04x}", name.level.get())).join(name.file_name())
}

/// With versions: everything works as in any bucket, uploads have checksums once they are asked for, and what was deleted is there below its marker.
#[test]
fn with_versions_all_works_and_every_version_stays() {
    let server = server(Lock::Versions);
    let place = place(&server);
    let mut worker = place.first_with("WAL", Program::Python, "", BUSY);
    let mut seen = BTreeSet::new();
    eventually("a life of the bucket", || {
        commits(&mut worker, 4);
        seen.extend(names(&place.bucket));
        let files = names(&place.bucket);
        seen.len() > 60 && files.len() * 3 < seen.len() && files.iter().any(|name| name.level.get() == 1)
    });
    for (name, value) in [("maintenance_error", "-"), ("last_error", "-"), ("state", "idle"), ("fencing", "strong")] {
        assert_eq!(worker.status(name), value, "{}", place.log());
    }
    // More than a part: it is begun anew with checksums where it is the first that is sent.
    worker.host.run(worker.db, "INSERT INTO still VALUES (randomblob(20000000))");
    worker.sync();
    silence(&server);
    worker.leave();
    is_restored(&place, &place.bucket);
    // Whatever was seen in the listing is there, or is an older version; each of them is what it was.
    let there = names(&place.bucket);
    let versions: BTreeSet<String> = server.versions().iter().map(|version| version.key.clone()).collect();
    for name in seen.difference(&there) {
        let key = format!("app/{:04x}/{}", name.level.get(), name.file_name());
        assert!(versions.contains(&key), "{key}");
    }
    assert!(server.versions().iter().all(|version| !version.body.is_empty()));
    let refused = server.refused_by_lock();
    // The process's first write, and the command's.
    assert!(!refused.is_empty() && refused.len() < 8 && refused.iter().all(|refused| refused.ends_with("InvalidRequest")), "{refused:?}");

    // The commands.
    let (code, told, errors) = cli(&place.bucket, "verify", &["--history", "0s"]);
    assert_eq!((code, &told["status"]), (0, &"verified".into()), "{errors}");
    let (code, told, errors) =
        cli(&place.bucket, "maintain", &["--history", "0s", "--grace", "0s", "--snapshot-every", "1ms", "--spans", "1ms,2ms,3ms"]);
    assert_eq!((code, &told["refused"]), (0, &Value::Null), "{errors}");
    let mut worker = place.start_with(Program::Python, "", &[("maintenance", "off")]);
    commits(&mut worker, 6);
    worker.leave();
    let (before, deletions) = (names(&place.bucket), server.versions().len());
    assert_eq!(maintained_later(&place.bucket).refused, None);
    assert!(!names(&place.bucket).is_superset(&before) && server.versions().len() > deletions);
    // A file of several parts goes to another such bucket as the first that is written there.
    let to = Bucket { url: format!("{}-copy", place.bucket.url), ..place.bucket.clone() };
    assert!(place.bucket.level(SNAPSHOT_LEVEL).iter().any(|file| file.size_bytes > 16 << 20));
    let report = copied(&place.bucket, &to);
    assert_eq!((report.problems.len(), report.refused, report.newest), (0, None, report.newest_of_source));
    is_restored(&place, &to);
    // One that is damaged there is replaced, and stays below.
    let damaged = to.level(SNAPSHOT_LEVEL)[0].name;
    let path = object(&server, "app-copy", damaged);
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    let report = copied(&place.bucket, &to);
    assert_eq!((report.replaced, report.refused), (vec![damaged], None));
    assert!(std::fs::read(&path).unwrap() == good);
    assert!(server.versions().iter().any(|version| version.key.contains("app-copy") && version.body.len() == good.len() / 2));
    assert_eq!(cli(&to, "verify", &["--history", "0s"]).0, 0);
}

/// A store that refuses: what nothing needs stays, is reported, and everything else is done.
#[test]
fn where_deleting_is_refused_it_is_said_and_all_else_is_done() {
    let server = server(Lock::NoDeletion);
    let place = place(&server);
    let mut worker = place.first_with("WAL", Program::Python, "", BUSY);
    eventually("a refusal", || {
        commits(&mut worker, 2);
        worker.status("maintenance_error").contains("AccessDenied")
    });
    assert!(worker.status("maintenance_error").starts_with("nothing is deleted: "));
    let tried = |server: &Server| server.refused_by_lock().iter().filter(|refused| !refused.contains("probe")).count();
    let before = tried(&server);
    eventually("more of it", || {
        commits(&mut worker, 4);
        place.bucket.level(Level::new(2).unwrap()).len() > 1 && place.bucket.level(SNAPSHOT_LEVEL).len() > 2
    });
    assert_eq!(tried(&server), before, "it is not asked again for a day");
    assert_eq!((worker.status("state"), worker.status("last_error")), ("idle".to_owned(), "-".to_owned()));
    assert_eq!(place.log().matches("does not let files be deleted").count(), 1, "{}", place.log());
    silence(&server);
    worker.leave();
    is_restored(&place, &place.bucket);

    let before = names(&place.bucket);
    let arguments = ["--history", "0s", "--grace", "0s", "--snapshot-every", "1ms", "--spans", "1ms,2ms,3ms"];
    for _ in 0..2 {
        let (code, told, errors) = cli(&place.bucket, "maintain", &arguments);
        assert_eq!((code, told["deleted"].as_array().unwrap().len()), (0, 0), "{errors}");
        assert!(told["refused"].as_str().unwrap().contains("AccessDenied"), "{told:#}");
        assert_eq!(told["problems"].as_array().unwrap().len(), 0, "{told:#}");
    }
    assert!(names(&place.bucket).is_superset(&before));
    // Many at once, one by one, and in a round of the library.
    let report = maintained_later(&place.bucket);
    assert!(report.refused.unwrap().contains("AccessDenied") && report.problems.is_empty() && report.deleted.is_empty());
    let (code, told, errors) = cli(&place.bucket, "verify", &["--all", "--points", "3"]);
    assert_eq!((code, &told["status"]), (0, &"verified".into()), "{errors}");

    // A mirror in such a bucket keeps what its source no longer has.
    let source = Bucket::folder(&place.dir.path().join("elsewhere"));
    assert_eq!(copied(&place.bucket, &source).refused, None);
    let to = Bucket { url: format!("{}-mirror", place.bucket.url), ..place.bucket.clone() };
    assert_eq!(copied(&source, &to).refused, None);
    let all = names(&to);
    maintained_later(&source);
    assert!(!names(&source).is_superset(&all));
    let report = copied(&source, &to);
    assert!(report.refused.unwrap().contains("AccessDenied") && report.problems.is_empty() && report.deleted.is_empty());
    assert!(names(&to).is_superset(&all));
    let (code, told, errors) = cli(&Bucket { url: source.url.clone(), ..to.clone() }, "copy", &[&to.url, "--mirror"]);
    assert_eq!((code, &told["status"]), (0, &"done".into()), "{errors}");
    assert!(told["refused"].as_str().unwrap().contains("AccessDenied"), "{told:#}");
    is_restored(&place, &to);
    // What is damaged there can neither be replaced nor is it passed over.
    let damaged = to.level(SNAPSHOT_LEVEL).last().unwrap().name;
    let path = object(&server, "app-mirror", damaged);
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    let report = copied(&source, &to);
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert!(report.problems[0].contains(&damaged.to_string()) && report.problems[0].contains("cannot be replaced"), "{report:?}");
}

/// Where nothing can be replaced either (a retention policy of the whole bucket), nobody can claim the maintenance twice: it is said, and the bucket grows.
#[test]
fn where_nothing_can_be_replaced_replication_goes_on_without_maintenance() {
    let server = server(Lock::NoChange);
    let place = place(&server);
    let mut worker = place.first_with("WAL", Program::Python, "", BUSY);
    eventually("a refusal", || {
        commits(&mut worker, 2);
        worker.status("maintenance_error").contains("maintenance.json")
    });
    commits(&mut worker, 10);
    assert_eq!((worker.status("state"), worker.status("last_error")), ("idle".to_owned(), "-".to_owned()));
    worker.leave();
    is_restored(&place, &place.bucket);
    // The claim of that process could not be given back. Once it has run out nobody can take it over.
    std::fs::write(server.root().join(server.bucket()).join("app/maintenance.json"), r#"{"generation":1,"kept":[]}"#).unwrap();
    let (code, told, errors) = cli(&place.bucket, "maintain", &["--history", "0s", "--grace", "0s", "--spans", "1ms,2ms,3ms"]);
    let told = format!("{told} {errors}");
    assert!(code == 1 && told.contains("maintenance.json") && told.contains("AccessDenied"), "{told}");
    assert_eq!(cli(&place.bucket, "verify", &["--all"]).0, 0);
    let to = Bucket::folder(Path::new(&place.dir.path().join("elsewhere")));
    assert_eq!(copied(&place.bucket, &to).problems.len(), 0);
    is_restored(&place, &to);
}

/// The same by an implementation that somebody else wrote, where `scripts/test-stores.sh` has started it and made a bucket that keeps every version for a day.
#[test]
fn real_stores_with_versions() {
    let Ok(base) = std::env::var("REPLICATED_TEST_S3_LOCKED") else {
        eprintln!("REPLICATED_TEST_S3_LOCKED is not set: not tried");
        return;
    };
    let (base, query) = base.split_once('?').unwrap_or((&base, ""));
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"];
    let env: Vec<(String, String)> = keys.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
    let bucket = |path: &str| Bucket { url: format!("{base}/{path}?{query}"), env: env.clone() };
    let path = format!("{:016x}", fastrand::u64(..));
    let (bucket, to) = (bucket(&path), bucket(&format!("{path}-copy")));
    let place = Place::with(tempfile::tempdir().unwrap(), bucket.clone(), None);
    let mut worker = place.first_with("WAL", Program::Python, "", &[("maintenance", "off"), ("lease", "30s")]);
    worker.host.run(worker.db, "INSERT INTO still VALUES (randomblob(20000000))");
    commits(&mut worker, 8);
    assert_eq!((worker.status("state"), worker.status("last_error")), ("idle".to_owned(), "-".to_owned()), "{}", place.log());
    worker.leave();
    let before = names(&bucket);
    assert_eq!(maintained_later(&bucket).refused, None);
    assert!(!names(&bucket).is_superset(&before));
    let (code, told, errors) = cli(&bucket, "verify", &["--history", "0s"]);
    assert_eq!((code, &told["status"]), (0, &"verified".into()), "{errors}");
    let report = copied(&bucket, &to);
    assert_eq!((report.problems.len(), report.refused, report.newest), (0, None, report.newest_of_source));
    is_restored(&place, &bucket);
    is_restored(&place, &to);
}
