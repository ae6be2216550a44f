//! `verify_every`: the process that writes to a bucket reads it, too, and says whether it is whole. What is damaged is named, and told from a store that
//! cannot be asked; who was killed or has closed leaves what is known to who comes next; and no commit waits for any of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use replicated::restore::{self, Target};
use replicated::store::LtxName;
use replicated::types::Txid;
use replicated_testkit::bucket::Bucket;
use replicated_testkit::faulty::{Endpoint, Fault, Kind};
use replicated_testkit::host::{self, Host, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::place::{Place, Worker};
use replicated_testkit::s3::{Seen, Server};

/// The bucket is left as it was uploaded.
const ALONE: &[(&str, &str)] = &[("maintenance", "off")];

/// The option that is under test, and how often that is by the test's clock.
fn often(mut place: Place) -> Place {
    place = place.with_faults();
    place.env.push(("REPLICATED_TEST_VERIFY_MS".to_owned(), "300".to_owned()));
    place
}

fn asked<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("verify_every", "24h")], more].concat()
}

fn on(server: &Server, path: &str) -> Place {
    often(Place::with(tempfile::tempdir().unwrap(), Bucket::s3(server, path), None))
}

fn begin(place: &Place, more: &[(&str, &str)]) -> Worker {
    place.first_with("WAL", Program::Faulty, "", &asked(more))
}

fn join(place: &Place, more: &[(&str, &str)]) -> Worker {
    place.start_with(Program::Faulty, "", &asked(more))
}

/// A value of the status.
fn is(worker: &mut Worker, name: &str) -> String {
    worker.status(name)
}

/// Waits until the next verification has come to its end.
fn verified_again(worker: &mut Worker) {
    let before = is(worker, "last_verification");
    eventually("a verification", || is(worker, "last_verification") != before);
}

fn comes_to(place: &Place, worker: &mut Worker, outcome: &str) {
    let deadline = std::time::Instant::now() + host::PATIENCE;
    while is(worker, "verification") != outcome {
        assert!(std::time::Instant::now() < deadline, "{}\n{}", worker.host.value(worker.db, "PRAGMA replicated_status"), place.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A file of the bucket, as the test's server keeps it.
fn object(server: &Server, path: &str, name: LtxName) -> PathBuf {
    server.root().join(server.bucket()).join(path).join(format!("{:04x}", name.level.get())).join(name.file_name())
}

/// Changes one bit of it, and back.
fn flip(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

fn is_listing(seen: &Seen) -> bool {
    seen.method == "GET" && seen.path.trim_matches('/').split_once('/').is_none()
}

/// Of a level that nobody lists but who verifies or maintains.
fn lists(seen: &Seen, level: u8) -> bool {
    is_listing(seen) && seen.query.contains(&format!("%2F000{level}%2F"))
}

fn told(place: &Place, level: &str, text: &str) -> usize {
    place.log().lines().filter(|line| line.starts_with(level) && line.contains(text)).count()
}

/// Each round is one listing of each level and one request for each file of the newest state, and shows what it came to; with nothing committed, too.
#[test]
fn the_newest_state_is_read_every_so_often() {
    let server = Server::start().unwrap();
    let place = on(&server, "often");
    let mut worker = begin(&place, ALONE);
    for _ in 0..3 {
        worker.write("more");
        worker.sync();
    }
    let newest = worker.sync();
    eventually("the newest state is verified", || is(&mut worker, "verified_txid") == newest);
    server.take_log();
    for _ in 0..3 {
        verified_again(&mut worker);
    }
    assert_eq!(is(&mut worker, "verification"), "verified");
    assert_eq!(is(&mut worker, "verified_at"), is(&mut worker, "last_verification"));
    let metrics = host::command(env!("CARGO_BIN_EXE_replicated"), &[]).arg("metrics").arg(place.path()).output().unwrap();
    let metrics = String::from_utf8(metrics.stdout).unwrap();
    let sample = |name: &str, more: &str| {
        let line = metrics.lines().find(|line| line.starts_with(&format!("replicated_{name}{{")) && line.contains(more));
        line.and_then(|line| line.rsplit_once(' ')).unwrap_or_else(|| panic!("{name}: {metrics}")).1.parse::<f64>().unwrap()
    };
    assert_eq!((sample("verification", "\"verified\""), sample("verification", "\"wrong\"")), (1.0, 0.0));
    assert_eq!(sample("verified_txid", "") as u64, Txid::from_hex(&newest).unwrap().get());
    assert!(sample("verified_timestamp_seconds", "") > 1.7e9 && sample("last_verification_timestamp_seconds", "") > 1.7e9);
    assert_eq!((is(&mut worker, "verification_finding"), is(&mut worker, "verification_error")), ("-".to_owned(), "-".to_owned()));
    let files = place.bucket.list();
    let plan = restore::plan(&files, Target::Latest).unwrap();
    let expected = format!("{} of {}, {} bytes", plan.files.len(), files.len(), plan.size_bytes());
    assert_eq!(is(&mut worker, "verified_files"), expected);
    worker.host.close(worker.db);
    let log = server.take_log();
    let rounds = log.iter().filter(|seen| lists(seen, 5)).count();
    // The first and the last may be there in part.
    let is_once_a_round = |count: usize| (rounds - 1..=rounds + 1).contains(&count);
    for level in 0..=9 {
        let count = log.iter().filter(|seen| lists(seen, level)).count();
        // The uploader itself looks at level 0 once.
        assert!(is_once_a_round(count) || level == 0 && count == rounds + 2, "level {level}: {count} in {rounds} rounds");
    }
    let others = log.iter().filter(|seen| is_listing(seen) && (0..=9).all(|level| !lists(seen, level))).collect::<Vec<_>>();
    assert!(others.is_empty(), "{others:?}");
    for file in &files {
        let reads = log.iter().filter(|seen| seen.method == "GET" && seen.path.ends_with(&format!("/{}", file.name.file_name())));
        let (reads, is_of_it) = (reads.count(), plan.files.iter().any(|of_it| of_it.name == file.name));
        assert!(if is_of_it { is_once_a_round(reads) } else { reads == 0 }, "{}: {reads} in {rounds} rounds", file.name);
    }
    let written: Vec<&Seen> = log.iter().filter(|seen| seen.method != "GET" && seen.method != "HEAD").collect();
    assert!(written.is_empty(), "{written:?}");
}

/// A flipped bit is found by reading only. It is told once, by each process that comes to it, known to those that come after, and until it is not so any more.
#[test]
fn what_is_damaged_is_named_and_told_until_it_is_not() {
    let server = Server::start().unwrap();
    let place = on(&server, "damaged");
    let mut worker = begin(&place, ALONE);
    for _ in 0..4 {
        worker.write("more");
        worker.sync();
    }
    comes_to(&place, &mut worker, "verified");
    let newest = worker.sync();
    eventually("the newest state is verified", || is(&mut worker, "verified_txid") == newest);
    let good_since = is(&mut worker, "verified_at");
    let damaged = LtxName::level0(Txid::new(Txid::from_hex(&newest).unwrap().get() - 1).unwrap());
    flip(&object(&server, "damaged", damaged));
    comes_to(&place, &mut worker, "wrong");
    for _ in 0..2 {
        verified_again(&mut worker);
    }
    let finding = is(&mut worker, "verification_finding");
    assert!(finding.starts_with(&format!("{damaged}: ")) && finding.contains("cannot be restored without it"), "{finding}");
    assert_eq!(is(&mut worker, "verified_txid"), newest, "what was found whole last");
    assert!(is(&mut worker, "verified_at") >= good_since && is(&mut worker, "last_verification") > is(&mut worker, "verified_at"));
    assert_eq!(is(&mut worker, "verification_error"), "-");
    // It is none of the replication's business.
    assert_eq!((is(&mut worker, "state"), is(&mut worker, "last_error")), ("idle".to_owned(), "-".to_owned()));
    worker.write("goes on");
    worker.sync();
    // Which states cannot be restored without it changes; what is wrong does not.
    for _ in 0..2 {
        verified_again(&mut worker);
    }
    let finding = is(&mut worker, "verification_finding");
    assert_eq!(told(&place, "ERROR", &damaged.to_string()), 1, "{}", place.log());

    // The next process knows of it before it has looked, and so does one that never looks.
    worker.leave();
    let mut plain = place.start(Program::Python);
    assert_eq!((is(&mut plain, "verification"), is(&mut plain, "verification_finding")), ("off".to_owned(), finding.clone()));
    plain.leave();
    let mut worker = join(&place, ALONE);
    assert_eq!((is(&mut worker, "verification"), is(&mut worker, "verification_finding")), ("wrong".to_owned(), finding.clone()));
    for _ in 0..2 {
        verified_again(&mut worker);
    }
    assert_eq!(told(&place, "ERROR", &damaged.to_string()), 2, "{}", place.log());
    flip(&object(&server, "damaged", damaged));
    comes_to(&place, &mut worker, "verified");
    assert_eq!((is(&mut worker, "verification_finding"), is(&mut worker, "verified_txid")), ("-".to_owned(), worker.sync()));
    assert_eq!(told(&place, "INFO", "is whole again"), 1, "{}", place.log());
    worker.leave();
}

/// What is gone is found as well: the newest upload, which nothing that is left tells of, one in the midst, and one that is listed and not there.
#[test]
fn what_is_gone_is_found() {
    let server = Server::start().unwrap();
    let is_hidden = Arc::new(AtomicBool::new(false));
    let hides = Arc::clone(&is_hidden);
    let middle = LtxName::level0(Txid::new(4).unwrap());
    let plan = move |seen: &replicated_testkit::faulty::Seen| {
        let hidden = seen.kind == Kind::Get && seen.key.ends_with(&middle.file_name()) && hides.load(Ordering::SeqCst);
        if hidden { Fault::Refusal(404, "NoSuchKey", None) } else { Fault::None }
    };
    let endpoint = Endpoint::start(&server, Box::new(plan)).unwrap();
    let mut place = on(&server, "gone");
    place.bucket = place.bucket.through(&endpoint.endpoint());
    let mut worker = begin(&place, ALONE);
    for _ in 0..5 {
        worker.write("more");
        worker.sync();
    }
    comes_to(&place, &mut worker, "verified");
    let newest = Txid::from_hex(&worker.sync()).unwrap();
    assert!(newest.get() > 5);
    is_hidden.store(true, Ordering::SeqCst);
    comes_to(&place, &mut worker, "wrong");
    let finding = is(&mut worker, "verification_finding");
    assert!(finding.starts_with(&format!("{middle}: the store lists it")), "{finding}");
    is_hidden.store(false, Ordering::SeqCst);
    comes_to(&place, &mut worker, "verified");
    for name in [middle, LtxName::level0(newest)] {
        let (path, away) = (object(&server, "gone", name), place.dir.path().join("away"));
        std::fs::rename(&path, &away).unwrap();
        comes_to(&place, &mut worker, "wrong");
        let finding = is(&mut worker, "verification_finding");
        let names = if name == middle { Txid::new(3).unwrap() } else { newest };
        assert!(finding.contains(&names.to_string()), "{finding}");
        std::fs::rename(&away, &path).unwrap();
        comes_to(&place, &mut worker, "verified");
    }
    worker.leave();
}

/// A store that does not answer, and credentials that may not read: nothing is said of the bucket, and what was found before still holds.
#[test]
fn what_could_not_be_looked_at_is_not_called_damaged() {
    let server = Server::start().unwrap();
    let is_refused = Arc::new(AtomicBool::new(false));
    let refuses = Arc::clone(&is_refused);
    let plan = move |seen: &replicated_testkit::faulty::Seen| {
        let refused = seen.kind == Kind::Get && seen.key.ends_with(".ltx") && refuses.load(Ordering::SeqCst);
        if refused { Fault::Refusal(403, "AccessDenied", None) } else { Fault::None }
    };
    let endpoint = Endpoint::start(&server, Box::new(plan)).unwrap();
    let proxy = Proxy::start(&endpoint.endpoint()).unwrap();
    let mut place = on(&server, "refused");
    place.bucket = place.bucket.through(&proxy.endpoint());
    let mut worker = begin(&place, ALONE);
    comes_to(&place, &mut worker, "verified");
    let before = is(&mut worker, "last_verification");
    is_refused.store(true, Ordering::SeqCst);
    comes_to(&place, &mut worker, "not_checked");
    let error = is(&mut worker, "verification_error");
    assert!(error.contains("AccessDenied") && error.contains(".ltx"), "{error}");
    assert_eq!(is(&mut worker, "verification_finding"), "-");
    assert!(is(&mut worker, "last_verification") >= before);
    is_refused.store(false, Ordering::SeqCst);
    comes_to(&place, &mut worker, "verified");
    assert_eq!(is(&mut worker, "verification_error"), "-");
    assert_eq!(told(&place, "WARN", "could not be verified"), 1, "{}", place.log());
    assert_eq!(told(&place, "INFO", "could be verified again"), 1, "{}", place.log());
    // What is wrong stays so while nobody can look.
    worker.write("more");
    let newest = LtxName::level0(Txid::from_hex(&worker.sync()).unwrap());
    flip(&object(&server, "refused", newest));
    comes_to(&place, &mut worker, "wrong");
    let finding = is(&mut worker, "verification_finding");
    proxy.set(Mode::Refuse).unwrap();
    eventually("the store is not reached", || is(&mut worker, "verification_error") != "-");
    assert_eq!((is(&mut worker, "verification"), is(&mut worker, "verification_finding")), ("wrong".to_owned(), finding));
    flip(&object(&server, "refused", newest));
    proxy.set(Mode::Forward).unwrap();
    comes_to(&place, &mut worker, "verified");
    assert_eq!(told(&place, "ERROR", ""), 1, "{}", place.log());
    worker.leave();
}

/// When the last one was is known to whoever comes next, so that nobody begins anew; and a process that takes the uploading over goes on with it.
#[test]
fn who_takes_over_knows_when_it_was() {
    let server = Server::start().unwrap();
    let place = on(&server, "over");
    let mut owner = begin(&place, ALONE);
    // Of the guests the first is asked for it once a day, and the second often.
    let daily = |place: &Place| Host::start(Program::Rust, &place.bucket.env);
    let mut guest = daily(&place);
    let db = guest.open(&place.uri(&asked(ALONE)));
    let newest = owner.sync();
    eventually("the newest state is verified", || guest.status(db, "verified_txid") == newest);
    for name in ["last_verification", "verified_at", "verified_files"] {
        assert_ne!(guest.status(db, name), "-", "{name}");
    }
    owner.host.kill();
    let last = guest.status(db, "last_verification");
    server.take_log();
    guest.run(db, "INSERT INTO t(who, x) VALUES ('guest', randomblob(3000))");
    guest.sync(db);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(guest.status(db, "last_verification"), last);
    assert_eq!(server.take_log().iter().filter(|seen| lists(seen, 5)).count(), 0, "it is not due for a day");
    let mut other = join(&place, ALONE);
    assert_eq!(is(&mut other, "last_verification"), last);
    guest.kill();
    other.write("other");
    let newest = other.sync();
    eventually("the newest state is verified", || is(&mut other, "verified_txid") == newest);
    // And over a restart.
    other.leave();
    server.take_log();
    let mut later = daily(&place);
    let db = later.open(&place.uri(&asked(ALONE)));
    later.run(db, "INSERT INTO t(who, x) VALUES ('later', 1)");
    later.sync(db);
    assert_eq!((later.status(db, "verification"), later.status(db, "verified_txid")), ("verified".to_owned(), newest));
    later.close(db);
    assert_eq!(server.take_log().iter().filter(|seen| lists(seen, 5)).count(), 0);
}

/// Programs that open, commit and close have nothing to do with it.
#[test]
fn a_process_that_lives_for_a_moment_does_not_verify() {
    let server = Server::start().unwrap();
    let place = Place::with(tempfile::tempdir().unwrap(), Bucket::s3(&server, "short"), None);
    for round in 0..4 {
        let more = [("verify_every", "1m"), ("maintenance", if round % 2 == 0 { "off" } else { "on" })];
        let mut worker = match round {
            0 => place.first_with("WAL", Program::Python, "", &more),
            _ => place.start_with(Program::Python, "", &more),
        };
        worker.write("short");
        worker.sync();
        assert_eq!((is(&mut worker, "verification"), is(&mut worker, "last_verification")), ("none".to_owned(), "-".to_owned()));
        worker.leave();
    }
    let listed = server.take_log().iter().filter(|seen| lists(seen, 5)).count();
    assert_eq!(listed, 2, "by the uploader, of a bucket that it has not seen before");
}

/// The last close ends it at once.
#[test]
fn a_close_waits_for_no_verification() {
    let server = Server::start().unwrap();
    let place = on(&server, "close");
    let mut worker = begin(&place, ALONE);
    comes_to(&place, &mut worker, "verified");
    let _ = server.take_log();
    server.delay_all(Duration::from_millis(50));
    eventually("one is under way", || server.take_log().iter().any(|seen| lists(seen, 3)));
    worker.host.close(worker.db);
    let _ = server.take_log();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(server.take_log(), []);
    server.delay_all(Duration::ZERO);
    // And what was known before is.
    let mut worker = join(&place, ALONE);
    assert_eq!(is(&mut worker, "verification"), "verified");
    verified_again(&mut worker);
    worker.leave();
}

/// While an upload is under way what begins was on its way already.
#[test]
fn commits_that_wait_go_before_it() {
    let server = Server::start().unwrap();
    let place = on(&server, "first");
    let mut worker = begin(&place, &[("maintenance", "off"), ("durability", "remote")]);
    comes_to(&place, &mut worker, "verified");
    server.delay_uploads(Duration::from_millis(100));
    server.take_log();
    let mut log = Vec::new();
    eventually("verifications beside commits", || {
        worker.write("waits");
        log.extend(server.take_log());
        log.iter().filter(|seen| lists(seen, 9)).count() > 1
    });
    let uploads: Vec<&Seen> = log.iter().filter(|seen| seen.is_upload() && seen.ended.is_some()).collect();
    assert!(uploads.len() > 4, "{uploads:?}");
    for upload in uploads {
        let within = |seen: &&Seen| !seen.is_upload() && upload.began < seen.began && Some(seen.began) < upload.ended;
        let begun: Vec<&Seen> = log.iter().filter(within).collect();
        assert!(begun.len() <= 1, "{upload:?}: {begun:?}");
    }
    server.delay_uploads(Duration::ZERO);
    worker.leave();
}

/// Maintenance and verification of one bucket take turns, and what the one takes away the other does not miss.
#[test]
fn maintenance_at_the_same_time_is_no_damage() {
    let server = Server::start().unwrap();
    let place = on(&server, "both");
    let busy =
        [("spans", "100ms,300ms,1s"), ("history", "300ms"), ("grace", "100ms"), ("snapshot_every", "500ms"), ("snapshot_change", "100000")];
    let mut worker = begin(&place, &busy);
    let mut verifications = std::collections::BTreeSet::new();
    eventually("a life of the bucket", || {
        worker.write("more");
        worker.sync();
        verifications.insert(is(&mut worker, "verified_at"));
        assert_eq!((is(&mut worker, "verification_finding"), is(&mut worker, "verification_error")), ("-".to_owned(), "-".to_owned()));
        let deleted = server.requests().delete;
        verifications.len() > 4 && deleted > 3
    });
    assert_eq!(is(&mut worker, "maintenance_error"), "-");
    worker.leave();
}

/// Of two replicas each is verified by itself.
#[test]
fn of_two_replicas_each_has_its_own() {
    let server = Server::start().unwrap();
    let place = on(&server, "pair/one");
    let second = Bucket::s3(&server, "pair/two");
    let more = [("maintenance", "off"), ("replica2", second.url.as_str())];
    let mut worker = begin(&place, &more);
    worker.write("both");
    worker.sync();
    comes_to(&place, &mut worker, "verified");
    eventually("the second as well", || is(&mut worker, "replica2_verification") == "verified");
    let newest = LtxName::level0(Txid::from_hex(&is(&mut worker, "replica2_remote_txid")).unwrap());
    flip(&object(&server, "pair/two", newest));
    eventually("the second is damaged", || is(&mut worker, "replica2_verification") == "wrong");
    assert!(is(&mut worker, "replica2_verification_finding").contains(&newest.to_string()));
    verified_again(&mut worker);
    assert_eq!((is(&mut worker, "verification"), is(&mut worker, "verification_finding")), ("verified".to_owned(), "-".to_owned()));
    assert_eq!(told(&place, "ERROR", "the bucket of replica2 is not what it should be"), 1, "{}", place.log());
    worker.leave();
    let mut worker = join(&place, &more);
    assert_eq!((is(&mut worker, "verification"), is(&mut worker, "replica2_verification")), ("verified".to_owned(), "wrong".to_owned()));
    worker.leave();
}

/// A fault of ours is told like a store that fails, and a full disk keeps nobody from knowing.
#[test]
fn faults_in_it_harm_nothing() {
    let server = Server::start().unwrap();
    let place = on(&server, "faults");
    let mut worker = place.first_with("WAL", Program::Faulty, "assure.begin=panic@2..4;proof.write=full@1..3", &asked(ALONE));
    comes_to(&place, &mut worker, "verified");
    comes_to(&place, &mut worker, "not_checked");
    assert!(is(&mut worker, "verification_error").contains("a fault in the extension"));
    worker.write("goes on");
    worker.sync();
    assert_eq!((is(&mut worker, "state"), is(&mut worker, "last_error")), ("idle".to_owned(), "-".to_owned()));
    comes_to(&place, &mut worker, "verified");
    worker.leave();
    // Killed at each step.
    for point in ["assure.begin", "proof.write", "proof.written", "assure.done"] {
        let mut worker = place.start_with(Program::Faulty, &format!("{point}=kill@2"), &asked(ALONE));
        eventually("it dies", || worker.host.try_query(worker.db, "SELECT 1").is_err());
        drop(worker);
        let mut worker = join(&place, ALONE);
        assert_eq!(is(&mut worker, "verification"), "verified", "{point}");
        let newest = worker.sync();
        eventually("the newest state is verified", || is(&mut worker, "verified_txid") == newest);
        worker.leave();
    }
    // What is remembered may be lost, or be anything.
    for damage in ["", "{}", "nothing"] {
        std::fs::write(place.dir.path().join("app.db-replicated/verified"), damage).unwrap();
        let mut worker = join(&place, ALONE);
        assert_eq!(is(&mut worker, "last_verification"), "-");
        comes_to(&place, &mut worker, "verified");
        worker.leave();
    }
    place.check();
}
