//! Two replicas of one database: each is what the database is, whatever happens to the other.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use replicated::store::{Level, SNAPSHOT_LEVEL};
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{Host, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::place::{Place, Worker};
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::{integrity_check, page_compare, same_but_for_free_pages};

/// A database with a replica in a folder and one on a server, behind a network that can fail.
struct Pair {
    place: Place,
    second: Bucket,
    proxy: Proxy,
    server: Server,
    /// The second one's URL as the application is given it.
    url: String,
}

impl Pair {
    /// The first one is the folder, the second the server, which is reached with keys of its own.
    fn new() -> Self {
        Self::with(false)
    }

    fn with_faults() -> Self {
        Self::with(true)
    }

    fn with(faults: bool) -> Self {
        let options = Options { access_key: "SECOND".to_owned(), secret_key: "of-another-provider".to_owned(), ..Options::default() };
        let server = Server::with_options(options).unwrap();
        let proxy = Proxy::start(&server.endpoint()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let credentials = dir.path().join("credentials");
        std::fs::write(
            &credentials,
            format!("[backup]\naws_access_key_id = {}\naws_secret_access_key = {}\n", server.access_key(), server.secret_key()),
        )
        .unwrap();
        let mut first = Bucket::folder(&dir.path().join("bucket"));
        // Those in the environment are the first one's.
        first.env = [("AWS_ACCESS_KEY_ID", "FIRST"), ("AWS_SECRET_ACCESS_KEY", "nobody-s"), ("AWS_EC2_METADATA_DISABLED", "true")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        first.env.push(("AWS_SHARED_CREDENTIALS_FILE".to_owned(), credentials.display().to_string()));
        let second = Bucket::s3(&server, "apps/second");
        let url = format!("{}?endpoint={}&profile=backup&region=us-east-1", second.url, proxy.endpoint());
        let place = Place::with(dir, first, None);
        Self { place: if faults { place.with_faults() } else { place }, second, proxy, server, url }
    }

    fn more<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut all = vec![("replica2", self.url.as_str())];
        all.extend_from_slice(more);
        all
    }

    fn start(&self, which: Program, faults: &str, more: &[(&str, &str)]) -> Worker {
        self.place.start_with(which, faults, &self.more(more))
    }

    fn first(&self, mode: &str, which: Program, faults: &str, more: &[(&str, &str)]) -> Worker {
        self.place.first_with(mode, which, faults, &self.more(more))
    }

    /// Each of them has the database, and every TXID of both is a state that was committed.
    fn check(&self) {
        self.check_by(page_compare);
    }

    fn check_by(&self, same: fn(&Path, &Path) -> Result<(), String>) {
        let dir = tempfile::tempdir().unwrap();
        let flat = flattened(&self.place.path(), dir.path());
        for (name, bucket) in [("first", &self.place.bucket), ("second", &self.second)] {
            let restored = dir.path().join(format!("{name}.db"));
            bucket.restore(&restored);
            same(&flat, &restored).unwrap_or_else(|error| panic!("{name}: {error}\n{}", self.place.log()));
            let replayed = dir.path().join(format!("{name}-replayed.db"));
            let whole = |txid, state: &Path| integrity_check(state).unwrap_or_else(|error| panic!("{name}: {txid}: {error}"));
            bucket.replay(&replayed, whole).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    fn full_states(&self) -> [usize; 2] {
        [self.place.full_states(), self.second.full_states()]
    }

    fn directory(&self, second: bool) -> PathBuf {
        self.place.dir.path().join(if second { "app.db-replicated2" } else { "app.db-replicated" })
    }
}

#[test]
fn both_are_the_database_in_every_journal_mode() {
    for mode in ["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] {
        for locking in ["NORMAL", "EXCLUSIVE"] {
            let pair = Pair::new();
            let mut worker = pair.start(Program::Python, "", &[]);
            worker.host.run(worker.db, &format!("PRAGMA locking_mode={locking}; PRAGMA journal_mode={mode}; CREATE TABLE still(x)"));
            worker.host.query(worker.db, "INSERT INTO still SELECT zeroblob(200000)");
            worker.host.query(worker.db, "CREATE TABLE t(a INTEGER PRIMARY KEY, who, x)");
            worker.sync();
            for n in 0..20 {
                worker.write("both");
                match n {
                    5 => worker.host.run(worker.db, "PRAGMA wal_checkpoint(TRUNCATE)"),
                    8 if mode != "OFF" => worker.host.run(worker.db, "BEGIN; DELETE FROM t; ROLLBACK"),
                    12 => worker.host.run(worker.db, "DELETE FROM t WHERE a % 3 = 0"),
                    _ => {}
                }
            }
            worker.sync();
            assert_eq!(
                (worker.status("state"), worker.status("replica2_state")),
                ("idle".to_owned(), "idle".to_owned()),
                "{mode} {locking}"
            );
            worker.leave();
            pair.check();
            // They go on where they were.
            let mut worker = pair.start(Program::Python, "", &[]);
            worker.write("again");
            worker.sync();
            worker.leave();
            assert_eq!(pair.full_states(), [1, 1], "{mode} {locking}: {}", pair.place.log());
            pair.check();
        }
    }
}

/// An outage of one neither stops nor slows the other, and costs no full state.
#[test]
fn one_that_is_away_for_long_catches_up() {
    for mode in ["WAL", "DELETE"] {
        let pair = Pair::new();
        let mut worker = pair.first(mode, Program::Python, "", &[("wait_for", "first"), ("close_timeout", "100ms")]);
        worker.host.query(worker.db, "PRAGMA wal_autocheckpoint=50");
        pair.proxy.set(Mode::Refuse).unwrap();
        let before = pair.second.level(Level::ZERO).len();
        for _ in 0..300 {
            worker.write("away");
        }
        worker.host.query(worker.db, "PRAGMA wal_checkpoint(TRUNCATE)");
        eventually("the first one has them all", || worker.status("waiting_commits") == "0");
        eventually("it is seen that the second one is away", || worker.status("replica2_state") == "offline");
        assert_eq!(pair.second.level(Level::ZERO).len(), before);
        let told = worker.host.try_query(worker.db, "PRAGMA replicated_sync='200ms'").unwrap_err();
        assert!(told.contains("replica2: not in the bucket"), "{told}");
        // Over a close, which waits for neither for long.
        worker.leave();
        let mut worker = pair.start(Program::Python, "", &[]);
        worker.write("back");
        pair.proxy.set(Mode::Forward).unwrap();
        worker.sync();
        worker.leave();
        assert_eq!(pair.full_states(), [1, 1], "{mode}: {}", pair.place.log());
        pair.check();
    }
}

#[test]
fn the_status_tells_of_each() {
    let pair = Pair::new();
    let mut worker = pair.first("WAL", Program::Python, "", &[]);
    for _ in 0..5 {
        worker.write("before");
        worker.sync();
    }
    let status = worker.host.value(worker.db, "PRAGMA replicated_status").as_str().unwrap().to_owned();
    let names: Vec<&str> = status.lines().filter_map(|line| line.split(' ').next()).collect();
    for name in ["state", "remote_txid", "replica", "wait_for", "replica2_state", "replica2_remote_txid", "replica2", "replica2_lease"] {
        assert_eq!(names.iter().filter(|found| **found == name).count(), 1, "{name}: {status}");
    }
    assert!(!names.contains(&"replica2_durability"), "{status}");
    assert_eq!(worker.status("replica2"), pair.url);
    // The full state goes to one of them once more: from here on they count differently.
    worker.leave();
    std::fs::remove_dir_all(pair.place.dir.path().join("bucket")).unwrap();
    std::fs::remove_dir_all(pair.directory(false)).unwrap();
    let mut worker = pair.start(Program::Python, "", &[]);
    worker.write("after");
    let synced = worker.sync();
    assert_eq!(synced, worker.status("remote_txid"));
    assert_ne!(synced, worker.status("replica2_remote_txid"));
    worker.leave();
    pair.check();
}

#[test]
fn a_second_one_comes_and_goes() {
    let pair = Pair::new();
    let mut worker = pair.place.first("WAL", Program::Python);
    for _ in 0..20 {
        worker.write("one");
    }
    let status = worker.host.value(worker.db, "PRAGMA replicated_status").as_str().unwrap().to_owned();
    assert!(!status.contains("replica2") && !status.contains("wait_for"), "{status}");
    worker.leave();
    assert!(!pair.directory(true).exists());
    let mut worker = pair.start(Program::Python, "", &[]);
    worker.write("two");
    worker.sync();
    worker.leave();
    assert_eq!(pair.full_states(), [1, 1], "{}", pair.place.log());
    pair.check();
    // While it is away, nothing of it is touched; when it comes back, it finds out what it has missed.
    let listed = pair.second.list();
    let mut worker = pair.place.start(Program::Python);
    worker.write("one again");
    worker.sync();
    worker.leave();
    assert_eq!(pair.second.list(), listed);
    let mut worker = pair.start(Program::Python, "", &[]);
    worker.write("two again");
    worker.sync();
    assert_eq!(worker.status("replica2_state"), "idle", "{}", pair.place.log());
    worker.leave();
    assert_eq!(pair.place.full_states(), 1);
    pair.check();
}

#[test]
fn all_who_have_it_open_name_the_same() {
    let pair = Pair::new();
    let mut worker = pair.first("WAL", Program::Python, "", &[]);
    let same_process = worker.host.try_open(&pair.place.uri(&[])).and_then(|db| worker.host.try_query(db, "SELECT 1 FROM t"));
    assert!(same_process.unwrap_err().contains("unable to open database file"));
    let mut other = Host::start(Program::Python, &pair.place.bucket.env);
    let other_process = other.try_open(&pair.place.uri(&[])).and_then(|db| other.try_query(db, "SELECT 1 FROM t"));
    assert!(other_process.unwrap_err().contains("unable to open database file"));
    let log = pair.place.log();
    assert!(log.contains("option replica2: ") && log.contains("it has another replica2"), "{log}");
    // Those who name the same share it, and what one commits the other's uploader sends to both.
    let mut joined = pair.start(Program::Python, "", &[]);
    joined.write("joined");
    joined.sync();
    worker.leave();
    joined.write("takes over");
    joined.sync();
    joined.leave();
    assert_eq!(pair.full_states(), [1, 1], "{}", pair.place.log());
    pair.check();
}

#[test]
fn two_in_one_place_are_refused() {
    let (dir, mut host) = (tempfile::tempdir().unwrap(), Host::start(Program::Python, &[]));
    let log = dir.path().join("log");
    let refused = |host: &mut Host, first: &str, second: &str| {
        let more = [("replica2", second), ("log", log.to_str().unwrap())];
        let uri = replicated_testkit::host::replicated(&dir.path().join("app.db"), first, &more);
        host.try_open(&uri).and_then(|db| host.try_query(db, "CREATE TABLE t(x)")).is_err()
    };
    let bucket = format!("file://{}", dir.path().join("bucket").display());
    for (first, second) in [
        (bucket.clone(), bucket.clone()),
        (bucket.clone(), format!("{bucket}/")),
        (bucket.clone(), format!("{bucket}/second")),
        (format!("{bucket}/first"), bucket.clone()),
        ("s3://b/app".to_owned(), "s3://b/app?region=eu-west-1".to_owned()),
        ("s3://b/app/x".to_owned(), "s3://b/app".to_owned()),
    ] {
        assert!(refused(&mut host, &first, &second), "{first} {second}");
    }
    assert_eq!(std::fs::read_to_string(&log).unwrap().matches("option replica2: ").count(), 6);
    // Of names that begin alike neither lies in the other.
    assert!(!refused(&mut host, &bucket, &format!("{bucket}2")));
    host.quit();
}

/// One replica costs what it did: no directory, no thread and no request more.
#[test]
fn one_replica_costs_nothing_more() {
    let server = Server::start().unwrap();
    let place = Place::with(tempfile::tempdir().unwrap(), Bucket::s3(&server, "app"), None);
    let mut worker = place.first("WAL", Program::Rust);
    for _ in 0..3 {
        worker.write("one");
        worker.sync();
    }
    let tasks = std::fs::read_dir(format!("/proc/{}/task", worker.host.id())).unwrap().count();
    let before = server.requests();
    worker.write("one");
    worker.sync();
    let now = server.requests();
    assert_eq!((now.put - before.put, now.get - before.get, now.list - before.list, now.head - before.head), (1, 0, 0, 0));
    worker.leave();
    let beside: Vec<_> = std::fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(beside.iter().any(|name| name == "app.db-replicated") && !beside.iter().any(|name| name == "app.db-replicated2"), "{beside:?}");
    // The application's, and ours: a second replica has none of its own either.
    let pair = Pair::new();
    let worker = pair.first("WAL", Program::Rust, "", &[]);
    assert_eq!(std::fs::read_dir(format!("/proc/{}/task", worker.host.id())).unwrap().count(), tasks);
    worker.leave();
}

#[test]
fn commit_waits_for_whom_it_is_told_to() {
    for mode in ["WAL", "DELETE"] {
        let pair = Pair::new();
        let mut worker = pair.first(mode, Program::Rust, "", &[]);
        worker.leave();
        let open = |wait_for: &str, durability: &str| {
            let mut worker = pair.start(Program::Rust, "", &[("wait_for", wait_for), ("ack_timeout", "300ms"), ("close_timeout", "100ms")]);
            worker.host.query(worker.db, &format!("PRAGMA replicated_durability={durability}"));
            worker.host.query(worker.db, "PRAGMA busy_timeout=60000");
            worker
        };
        // With both there, a COMMIT that has returned is in both.
        worker = open("both", "remote");
        worker.write("both");
        assert_eq!((worker.status("waiting_commits"), worker.status("replica2_waiting_commits")), ("0".to_owned(), "0".to_owned()));
        pair.check();
        worker.leave();
        pair.proxy.set(Mode::Refuse).unwrap();
        worker = open("both", "remote");
        assert!(worker.try_write("both, one is away").unwrap_err().contains("disk I/O error"));
        worker.leave();
        for wait_for in ["first", "any"] {
            worker = open(wait_for, "remote");
            worker.write(wait_for);
            assert_eq!(worker.status("waiting_commits"), "0", "{wait_for}");
            worker.leave();
        }
        // The same with the first one away.
        pair.proxy.set(Mode::Forward).unwrap();
        let bucket = pair.place.dir.path().join("bucket");
        worker = open("any", "remote");
        worker.sync();
        std::fs::rename(&bucket, bucket.with_extension("away")).unwrap();
        // A file where the folder was: nothing can be made in it.
        std::fs::write(&bucket, "").unwrap();
        worker.write("any, the first one is away");
        assert_eq!(worker.status("replica2_waiting_commits"), "0");
        worker.leave();
        worker = open("first", "remote");
        assert!(worker.try_write("first, which is away").unwrap_err().contains("disk I/O error"));
        worker.leave();
        std::fs::remove_file(&bucket).unwrap();
        std::fs::rename(bucket.with_extension("away"), &bucket).unwrap();
        worker = open("both", "bounded");
        worker.write("bounded");
        worker.sync();
        worker.leave();
        assert_eq!(pair.full_states(), [1, 1], "{mode}: {}", pair.place.log());
        pair.check();
    }
}

#[test]
fn a_process_that_is_killed_goes_on_with_both() {
    let points = [
        "open.saved",
        "commit.publish",
        "seal.saved",
        "generation.saved",
        "capture.spooled",
        "attempt.saved",
        "send.done",
        "ack.saved",
        "close.flush",
    ];
    for (n, point) in points.into_iter().enumerate() {
        let mode = if n % 2 == 0 { "WAL" } else { "DELETE" };
        let pair = Pair::with_faults();
        let mut worker = pair.first(mode, Program::Faulty, "", &[]);
        worker.write("before");
        worker.leave();
        // In what is done for the first of them, and for the second.
        for nth in [1, 2] {
            let faults = format!("{point}=kill@{nth}");
            let mut worker = start_or_die(&pair, &faults);
            if let Some(worker) = &mut worker {
                for _ in 0..10 {
                    if worker.try_write("at the point").is_err() {
                        break;
                    }
                }
                let _ = worker.host.try_query(worker.db, "PRAGMA wal_checkpoint(TRUNCATE)");
                let _ = worker.host.try_query(worker.db, "PRAGMA replicated_sync");
            }
            drop(worker);
        }
        let mut worker = pair.start(Program::Faulty, "", &[]);
        worker.write("after");
        worker.sync();
        worker.leave();
        pair.check_by(same_but_for_free_pages);
    }
}

fn start_or_die(pair: &Pair, faults: &str) -> Option<Worker> {
    let mut env = pair.place.bucket.env.clone();
    env.push(("REPLICATED_TEST_FAULT".to_owned(), faults.to_owned()));
    let mut host = Host::start(Program::Faulty, &env);
    let db = host.try_open(&pair.place.uri(&pair.more(&[]))).ok()?;
    host.try_query(db, "PRAGMA busy_timeout=60000").ok()?;
    Some(Worker { host, db })
}

/// Snapshots of both at once, while the application writes over what they read and checkpoints it.
#[test]
fn full_states_of_both_at_once() {
    let pair = Pair::new();
    let path = pair.place.path();
    let plain = rusqlite::Connection::open(&path).unwrap();
    plain.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, who, x); CREATE TABLE churn(x)").unwrap();
    let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4000)";
    plain.execute_batch(&format!("{numbers} INSERT INTO churn SELECT randomblob(3500) FROM n")).unwrap();
    plain.close().unwrap();
    let mut worker = pair.start(Program::Rust, "", &[]);
    for n in 0..40 {
        worker.write("meanwhile");
        worker.host.query(worker.db, &format!("UPDATE churn SET x = randomblob(3500) WHERE rowid % 40 = {n}"));
        if n % 8 == 0 {
            worker.host.query(worker.db, "PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }
    worker.sync();
    worker.leave();
    for bucket in [&pair.place.bucket, &pair.second] {
        assert_eq!(bucket.level(SNAPSHOT_LEVEL).len(), 1);
    }
    pair.check();
    assert!(pair.server.requests().put > 0);
}

/// Another disk: what lay beside the database is gone with it.
impl Pair {
    fn lose_disk(&self) {
        for entry in std::fs::read_dir(self.place.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            match path.file_name().unwrap().to_str().unwrap() {
                "app.db-replicated" | "app.db-replicated2" => std::fs::remove_dir_all(path).unwrap(),
                name if name.starts_with("app.db") => std::fs::remove_file(path).unwrap(),
                _ => {}
            }
        }
    }

    fn bucket(&self) -> PathBuf {
        self.place.dir.path().join("bucket")
    }

    /// The first one's provider is out of reach: a file is where the folder was.
    fn first_is_away(&self, away: bool) {
        let (here, there) = (self.bucket(), self.bucket().with_extension("away"));
        if away {
            std::fs::rename(&here, &there).unwrap();
            std::fs::write(&here, "").unwrap();
        } else {
            std::fs::remove_file(&here).unwrap();
            std::fs::rename(&there, &here).unwrap();
        }
    }

    fn newest(bucket: &Bucket) -> replicated::types::Txid {
        bucket.list().iter().map(|listed| listed.name.max_txid).max().unwrap()
    }
}

const IF_MISSING: (&str, &str) = ("restore", "if-missing");
const FROM_ANY: (&str, &str) = ("restore_from", "any");

/// A container with an empty disk: it is restored from the first one, and the second one goes on as well.
#[test]
fn after_a_restore_both_go_on() {
    for mode in ["WAL", "DELETE"] {
        let pair = Pair::new();
        let mut worker = pair.first(mode, Program::Python, "", &[]);
        for _ in 0..3 {
            worker.write("before");
            worker.sync();
        }
        worker.leave();
        for round in 0..2 {
            pair.lose_disk();
            let mut worker = pair.start(Program::Python, "", &[IF_MISSING]);
            worker.write("after");
            worker.sync();
            worker.write("after");
            worker.leave();
            pair.check();
            // In WAL mode the second one's last file proves that it ended with the same commit.
            if mode == "WAL" {
                assert_eq!(pair.full_states(), [1, 1], "{round}: {}", pair.place.log());
            }
        }
        assert_eq!(pair.place.full_states(), 1, "{mode}");
    }
}

#[test]
fn after_a_restore_one_that_was_behind_is_sent_the_full_state() {
    let pair = Pair::new();
    let mut worker = pair.first("WAL", Program::Python, "", &[("wait_for", "first"), ("close_timeout", "100ms")]);
    worker.write("both");
    worker.sync();
    pair.proxy.set(Mode::Refuse).unwrap();
    worker.write("the first one only");
    eventually("the first one has it", || worker.status("waiting_commits") == "0");
    worker.leave();
    pair.lose_disk();
    // It is found out when it is back.
    let mut worker = pair.start(Program::Python, "", &[IF_MISSING]);
    worker.write("after");
    eventually("it is seen that the second one is away", || worker.status("replica2_state") == "offline");
    pair.proxy.set(Mode::Forward).unwrap();
    worker.sync();
    worker.leave();
    assert_eq!(pair.full_states(), [1, 2], "{}", pair.place.log());
    assert!(pair.place.log().contains("restored from its other replica, which had all that this one has"));
    pair.check();
}

/// What the second one has and the first one has not is never passed over in silence.
#[test]
fn after_a_restore_one_that_was_ahead_is_not_written_over() {
    let pair = Pair::new();
    let mut worker = pair.first("WAL", Program::Python, "", &[("close_timeout", "100ms")]);
    worker.write("both");
    worker.sync();
    pair.first_is_away(true);
    worker.write("the second one only");
    eventually("the second one has it", || worker.status("replica2_waiting_commits") == "0");
    worker.leave();
    pair.first_is_away(false);
    pair.lose_disk();
    let before = pair.second.list();
    let mut worker = pair.start(Program::Python, "", &[IF_MISSING]);
    worker.write("after");
    eventually("the second one stops", || worker.status("replica2_reason") == "diverged");
    let told = worker.status("replica2_last_error");
    assert!(told.contains("was restored from the database's other replica"), "{told}");
    eventually("the first one goes on", || worker.status("waiting_commits") == "0");
    worker.leave();
    assert_eq!(pair.second.list(), before);
    // The user decides.
    let newest = Pair::newest(&pair.second).to_string();
    let mut worker = pair.start(Program::Python, "", &[("adopt2", &newest)]);
    worker.write("adopted");
    worker.sync();
    worker.leave();
    pair.check();
}

/// The first one's bucket is gone with all that it had.
#[test]
fn the_second_one_is_restored_where_the_first_is_lost() {
    for mode in ["WAL", "DELETE"] {
        let pair = Pair::new();
        let mut worker = pair.first(mode, Program::Python, "", &[]);
        worker.write("both");
        worker.sync();
        worker.leave();
        pair.lose_disk();
        std::fs::remove_dir_all(pair.bucket()).unwrap();
        let mut host = Host::start(Program::Python, &pair.place.bucket.env);
        let refused =
            |host: &mut Host| host.try_open(&pair.place.uri(&pair.more(&[IF_MISSING]))).and_then(|db| host.try_query(db, "SELECT 1"));
        assert!(refused(&mut host).is_err());
        let log = pair.place.log();
        assert!(log.contains("has nothing to restore, and") && log.contains("goes up to TXID"), "{log}");
        // Whether it has something is not known.
        pair.proxy.set(Mode::Refuse).unwrap();
        assert!(refused(&mut host).is_err());
        assert!(pair.place.log().contains("cannot be asked"), "{}", pair.place.log());
        pair.proxy.set(Mode::Forward).unwrap();
        host.quit();
        assert!(!pair.place.path().exists());
        let mut worker = pair.start(Program::Python, "", &[IF_MISSING, FROM_ANY]);
        assert_eq!(worker.rows(), 2);
        worker.write("after");
        worker.sync();
        worker.leave();
        assert_eq!(pair.full_states(), [1, 1], "{mode}: {}", pair.place.log());
        pair.check();
        let mut worker = pair.start(Program::Python, "", &[IF_MISSING, FROM_ANY]);
        worker.write("again");
        worker.sync();
        worker.leave();
        assert_eq!(pair.full_states(), [1, 1], "{mode}: {}", pair.place.log());
        pair.check();
    }
}

/// What is kept beside the database tells of each, while nobody has it open.
#[test]
fn a_verification_against_the_file_knows_what_each_waits_for() {
    let pair = Pair::new();
    let mut worker = pair.first("WAL", Program::Python, "", &[("close_timeout", "300ms")]);
    worker.write("both");
    worker.sync();
    pair.proxy.set(Mode::Refuse).unwrap();
    worker.write("the first one only");
    worker.leave();
    let local = |url: &str| replicated::verify::local(&pair.place.path(), url).unwrap();
    let first = local(&pair.place.bucket.url).unwrap();
    let second = local(&pair.second.url).unwrap();
    assert_eq!((first.acked, first.waits, first.is_unchanged), (Some(Pair::newest(&pair.place.bucket)), None, true));
    assert_eq!(second.acked, Some(Pair::newest(&pair.second)));
    assert!(second.waits.as_ref().is_some_and(|waits| waits.contains("spool") || waits.contains("on its way")), "{second:?}");
    assert_eq!(local("s3://somebody/else"), None);
}

/// The first one cannot be reached, and may have more.
#[test]
fn the_second_one_is_restored_where_the_first_is_away_and_that_is_allowed() {
    for ahead in [false, true] {
        let pair = Pair::new();
        let mut worker = pair.first("WAL", Program::Python, "", &[("wait_for", "first"), ("close_timeout", "100ms")]);
        worker.write("both");
        worker.sync();
        if ahead {
            pair.proxy.set(Mode::Refuse).unwrap();
            worker.write("the first one only");
            eventually("the first one has it", || worker.status("waiting_commits") == "0");
        }
        worker.leave();
        pair.proxy.set(Mode::Forward).unwrap();
        pair.lose_disk();
        pair.first_is_away(true);
        let mut host = Host::start(Program::Python, &pair.place.bucket.env);
        let refused = host.try_open(&pair.place.uri(&pair.more(&[IF_MISSING]))).and_then(|db| host.try_query(db, "SELECT 1"));
        assert!(refused.is_err());
        host.quit();
        let mut worker = pair.start(Program::Python, "", &[IF_MISSING, FROM_ANY, ("close_timeout", "100ms")]);
        assert_eq!(worker.rows(), 2);
        worker.write("after");
        eventually("the second one has it", || worker.status("replica2_waiting_commits") == "0");
        worker.leave();
        pair.first_is_away(false);
        let before = pair.place.bucket.list();
        let mut worker = pair.start(Program::Python, "", &[IF_MISSING, FROM_ANY]);
        worker.write("and after");
        if ahead {
            eventually("the first one stops", || worker.status("reason") == "diverged");
            worker.leave();
            assert_eq!(pair.place.bucket.list(), before);
        } else {
            worker.sync();
            worker.leave();
            assert_eq!(pair.place.full_states(), 2, "{}", pair.place.log());
            pair.check();
        }
    }
}

/// The tool restores from a URL, and knows nothing of options.
#[test]
fn what_the_tool_has_restored_goes_on_with_both() {
    for from_second in [false, true] {
        let pair = Pair::new();
        let mut worker = pair.first("WAL", Program::Python, "", &[]);
        worker.write("both");
        worker.sync();
        worker.leave();
        pair.lose_disk();
        let env: replicated::store::Env = pair.place.bucket.env.iter().cloned().collect();
        let url = if from_second { &pair.url } else { &pair.place.bucket.url };
        let url = replicated::store::ReplicaUrl::parse(url).unwrap();
        let store = replicated::store::open_with_env(&url, &replicated::store::StoreOptions::default(), &env).unwrap();
        replicated::restore::restore(&*store, &replicated::restore::RestoreOptions::latest(pair.place.path())).unwrap();
        let mut worker = pair.start(Program::Python, "", &[]);
        worker.write("after");
        worker.sync();
        worker.leave();
        assert_eq!(pair.full_states(), [1, 1], "{from_second}: {}", pair.place.log());
        pair.check();
    }
}

/// The first provider is given up: the second replica becomes the only one, and then the first of two.
#[test]
fn the_second_one_becomes_the_first() {
    let pair = Pair::new();
    let mut worker = pair.first("WAL", Program::Python, "", &[]);
    worker.write("both");
    worker.sync();
    worker.leave();
    let mut place = Place::with(tempfile::tempdir().unwrap(), pair.place.bucket.clone(), None);
    place.bucket.url.clone_from(&pair.url);
    let log = pair.place.dir.path().join("log").display().to_string();
    let mut host = Host::start(Program::Python, &pair.place.bucket.env);
    let third = Bucket::folder(&pair.place.dir.path().join("third"));
    for (n, more) in [&[][..], &[("replica2", third.url.as_str())][..]].into_iter().enumerate() {
        let mut options = vec![("sync_interval", "10ms"), ("log", log.as_str())];
        options.extend_from_slice(more);
        let db = host.open(&replicated_testkit::host::replicated(&pair.place.path(), &pair.url, &options));
        host.query(db, "INSERT INTO t(who, x) VALUES ('promoted', randomblob(3000))");
        host.sync(db);
        assert_eq!(host.status(db, "state"), "idle", "{n}: {}", pair.place.log());
        host.close(db);
    }
    host.quit();
    assert_eq!((pair.second.full_states(), third.full_states()), (1, 1), "{}", pair.place.log());
    let dir = tempfile::tempdir().unwrap();
    let flat = flattened(&pair.place.path(), dir.path());
    for (name, bucket) in [("second", &pair.second), ("third", &third)] {
        let restored = dir.path().join(format!("{name}.db"));
        bucket.restore(&restored);
        page_compare(&flat, &restored).unwrap();
    }
}

/// Who has the lease of one has that of the other; the second one's store may be away.
#[test]
fn each_has_a_lease() {
    let pair = Pair::new();
    let lease = [("lease", "2s"), ("lease_wait", "0s"), IF_MISSING];
    let mut worker = pair.first("WAL", Program::Python, "", &lease);
    assert_eq!((worker.status("lease"), worker.status("replica2_lease")), ("ours".to_owned(), "ours".to_owned()));
    // Another host, with a disk of its own.
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("app.db");
    let uri = replicated_testkit::host::replicated(&path, &pair.place.bucket.url, &pair.more(&lease));
    let mut other = Host::start(Program::Python, &pair.place.bucket.env);
    assert!(other.try_open(&uri).and_then(|db| other.try_query(db, "SELECT 1 FROM t")).is_err());
    worker.write("the first host");
    worker.leave();
    // It goes on where the other one has ended, in both.
    let db = other.open(&uri);
    assert_eq!(other.value(db, "SELECT count(*) FROM t"), 2);
    other.query(db, "INSERT INTO t(who, x) VALUES ('the other host', 'x')");
    other.sync(db);
    assert_eq!((other.status(db, "state"), other.status(db, "replica2_state")), ("idle".to_owned(), "idle".to_owned()));
    other.close(db);
    pair.proxy.set(Mode::Refuse).unwrap();
    let db = other.open(&uri);
    other.query(db, "INSERT INTO t(who, x) VALUES ('without the second one', 'x')");
    eventually("the first one has it", || other.status(db, "waiting_commits") == "0");
    assert_ne!(other.status(db, "replica2_lease"), "ours");
    pair.proxy.set(Mode::Forward).unwrap();
    eventually("its lease is taken later", || other.status(db, "replica2_lease") == "ours");
    other.sync(db);
    other.close(db);
    assert_eq!(pair.full_states(), [1, 1]);
    for bucket in [&pair.place.bucket, &pair.second] {
        let restored = elsewhere.path().join("restored.db");
        bucket.restore(&restored);
        page_compare(&path, &restored).unwrap();
    }
}

/// Another writer goes on with the second one's bucket: what `on_conflict` says counts for either.
#[test]
fn another_writer_in_one_of_them() {
    for readonly in [false, true] {
        let pair = Pair::new();
        let more = [("on_conflict", if readonly { "readonly" } else { "continue" }), ("close_timeout", "100ms")];
        let mut worker = pair.first("WAL", Program::Python, "", &more);
        // The next name is taken.
        let newest = Pair::newest(&pair.second);
        let folder = pair.server.root().join(pair.server.bucket()).join("apps/second/0000");
        let name = |txid| folder.join(replicated::store::LtxName::level0(txid).file_name());
        std::fs::copy(name(newest), name(newest.next())).unwrap();
        worker.write("meets it");
        eventually("it is found", || worker.status("replica2_state") == "fenced");
        if readonly {
            assert!(worker.try_write("refused").unwrap_err().contains("readonly database"));
        } else {
            worker.write("goes on with the first");
        }
        eventually("the first one has it", || worker.status("waiting_commits") == "0");
        worker.leave();
        let dir = tempfile::tempdir().unwrap();
        pair.place.bucket.restore(&dir.path().join("restored.db"));
        page_compare(&flattened(&pair.place.path(), dir.path()), &dir.path().join("restored.db")).unwrap();
    }
}

/// A fault of ours in what is done for one of them leaves the other as it is.
#[test]
fn a_panic_with_one_harms_the_other_not() {
    for nth in 1..=2 {
        let pair = Pair::with_faults();
        pair.first("WAL", Program::Faulty, "", &[]).leave();
        // Of two batches that are sent the first or the second.
        let mut worker = pair.start(Program::Faulty, &format!("send.put=panic@{nth}"), &[("close_timeout", "100ms")]);
        worker.write("one of them fails");
        eventually("one has failed and the other is idle", || {
            let mut states = [worker.status("state"), worker.status("replica2_state")];
            states.sort();
            states == ["failed", "idle"]
        });
        worker.write("and the other goes on");
        let waits = |worker: &mut Worker| [worker.status("waiting_commits"), worker.status("replica2_waiting_commits")];
        eventually("it has both", || waits(&mut worker).iter().filter(|waiting| *waiting == "0").count() == 1);
        worker.leave();
        let mut worker = pair.start(Program::Faulty, "", &[]);
        worker.write("after");
        worker.sync();
        worker.leave();
        pair.check();
    }
}
