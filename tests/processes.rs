//! Several processes that have one replicated database open: one of them uploads, the others' commits reach the bucket through it, and when it goes another
//! takes over without a full state.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use replicated::types::Txid;
use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Host, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::place::{Place, TABLES, Worker};
use replicated_testkit::s3::Server;
use serde_json::json;

const MODES: [&str; 4] = ["WAL", "DELETE", "PERSIST", "MEMORY"];

#[test]
fn what_any_process_commits_is_replicated_in_every_journal_mode() {
    for mode in MODES {
        for (one, another) in [(Program::Rust, Program::Python), (Program::Python, Program::Rust)] {
            let place = Place::in_folder();
            let mut workers = vec![place.first(mode, one), place.start(another), place.start(one)];
            for round in 0..12 {
                let turn = round % workers.len();
                workers[turn].write(&format!("{turn}"));
                if round % 4 == 3 {
                    // Whoever asks, it is in the bucket then.
                    let asks = (round + 1) % workers.len();
                    let worker = &mut workers[asks];
                    worker.host.sync(worker.db);
                    place.check();
                }
            }
            assert_eq!(workers[2].rows(), 13);
            for worker in workers {
                worker.leave();
            }
            place.check();
            place.assert_one_full_state();
        }
    }
}

/// Nobody asks: a commit of one process wakes the uploader of another.
#[test]
fn a_commit_in_one_process_wakes_the_uploader_of_another() {
    for mode in MODES {
        let place = Place::in_folder();
        let first = place.first(mode, Program::Rust);
        let mut second = place.start(Program::Python);
        let mut before = place.bucket.list().len();
        for _ in 0..5 {
            second.write("second");
            eventually(&format!("{mode}: the commit is in the bucket"), || place.bucket.list().len() > before);
            before = place.bucket.list().len();
        }
        eventually("all is in the bucket", || second.host.status(second.db, "state") == "idle");
        place.check();
        second.leave();
        first.leave();
        place.assert_one_full_state();
    }
}

/// The one that uploads is killed, or closes: another takes over, again and again.
#[test]
fn when_the_uploader_goes_another_takes_over_without_a_full_state() {
    for mode in ["WAL", "DELETE"] {
        for kills in [true, false] {
            let place = Place::in_folder();
            let mut workers = vec![place.first(mode, Program::Rust), place.start(Program::Rust)];
            for round in 0..6 {
                // Commits that the one may not have sent when it goes.
                for worker in &mut workers {
                    worker.write("before");
                }
                let gone = workers.remove(0);
                if kills {
                    gone.host.kill();
                } else {
                    gone.leave();
                }
                let before = place.bucket.list().len();
                workers[0].write("after");
                if round % 2 == 0 {
                    eventually("the successor uploads", || place.bucket.list().len() > before);
                }
                workers.push(place.start(if round % 3 == 0 { Program::Python } else { Program::Rust }));
            }
            let asks = &mut workers[1];
            asks.host.sync(asks.db);
            place.check();
            place.assert_one_full_state();
            assert_eq!(workers[0].rows(), 19);
        }
    }
}

/// A process that is idle and uploads is killed: nobody commits, and another takes over all the same what is on its way.
#[test]
fn what_was_on_its_way_is_sent_by_a_successor_that_does_nothing() {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let bucket = Bucket::s3(&server, "app").through(&proxy.endpoint());
    let place = Place::with(tempfile::tempdir().unwrap(), bucket, Some(server));
    let mut first = place.first("WAL", Program::Rust);
    let mut second = place.start(Program::Rust);
    assert_eq!(second.rows(), 1);
    proxy.set(Mode::Hang).unwrap();
    first.write("stuck");
    first.write("stuck behind it");
    eventually("the batch is on its way", || first.host.status(first.db, "state") == "uploading");
    std::thread::sleep(Duration::from_millis(100));
    first.host.kill();
    proxy.set(Mode::Forward).unwrap();
    eventually("the successor sends it", || {
        second.host.status(second.db, "state") == "idle" && second.host.status(second.db, "waiting_commits") == "0"
    });
    place.check();
    place.assert_one_full_state();
}

/// COMMIT waits in whichever process, and what returned is there after all of them are killed.
#[test]
fn remote_commits_of_every_process_are_in_the_bucket_when_they_return() {
    for mode in ["WAL", "DELETE"] {
        let place = Place::in_folder();
        let mut first = place.first(mode, Program::Rust);
        let mut second = place.start_with(Program::Python, "", &[("durability", "remote"), ("ack_timeout", "60s")]);
        let mut third = place.start_with(Program::Rust, "", &[("durability", "bounded"), ("max_lag", "50ms"), ("ack_timeout", "60s")]);
        let rows_in_bucket = || {
            let restored = place.dir.path().join("restored.db");
            let _ = std::fs::remove_file(&restored);
            place.bucket.restore(&restored);
            rows(&restored)
        };
        for round in 0..8_u64 {
            third.write("third");
            first.write("first");
            second.write("second");
            assert_eq!(rows_in_bucket(), 4 + 3 * round);
        }
        first.host.kill();
        // Whoever uploads now, it is there when COMMIT returns.
        second.write("second");
        assert_eq!(rows_in_bucket(), 26);
        third.host.kill();
        second.host.kill();
        assert_eq!(rows_in_bucket(), 26);
        place.assert_one_full_state();
    }
}

/// Writers in several processes at once, with checkpoints of every kind, restarts of the WAL among them.
#[test]
fn many_writers_at_once_lose_nothing() {
    const COMMITS: u32 = 400;
    for (mode, checkpoint) in [("WAL", 20), ("WAL", 1000), ("DELETE", 0)] {
        let place = Place::in_folder();
        let first = place.first(mode, Program::Rust);
        let mut workers = vec![first, place.start(Program::Rust), place.start(Program::Python), place.start(Program::Rust)];
        let commits = if mode == "WAL" { COMMITS } else { COMMITS / 8 };
        for worker in &mut workers {
            worker.host.query(worker.db, &format!("PRAGMA wal_autocheckpoint={checkpoint}"));
        }
        std::thread::scope(|scope| {
            for (number, worker) in workers.iter_mut().enumerate() {
                scope.spawn(move || {
                    for commit in 0..commits {
                        worker.write(&format!("{number}"));
                        if commit % 50 == 17 {
                            let kind = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][(commit as usize / 50 + number) % 4];
                            worker.host.query(worker.db, &format!("PRAGMA wal_checkpoint({kind})"));
                        }
                    }
                });
            }
        });
        let asks = &mut workers[2];
        asks.host.sync(asks.db);
        assert_eq!(asks.rows(), u64::from(commits) * 4 + 1);
        place.check();
        place.assert_one_full_state();
        let wal = place.dir.path().join("app.db-wal");
        let wal_bytes = wal.metadata().map_or(0, |m| m.len());
        assert!(wal_bytes < 24 * 1024 * 1024, "{wal_bytes}");
        for worker in workers {
            worker.leave();
        }
        place.check();
    }
}

/// A process for each commit beside one that stays, and without one.
#[test]
fn processes_that_come_and_go_cost_what_their_commits_cost() {
    for stays in [true, false] {
        let place = Place::in_folder();
        let mut first = Some(place.first("WAL", Program::Rust));
        if !stays {
            first.take().unwrap().leave();
        }
        let objects = place.bucket.list().len();
        for _ in 0..25 {
            let mut visitor = place.start(Program::Rust);
            visitor.write("visitor");
            visitor.leave();
        }
        let mut last = first.unwrap_or_else(|| place.start(Program::Rust));
        last.host.sync(last.db);
        assert_eq!(last.rows(), 26);
        place.check();
        place.assert_one_full_state();
        assert!(place.bucket.list().len() <= objects + 25);
    }
}

/// The gate holds in a process that does not upload: with the store gone its writer appends, its checkpoints answer, nothing is lost.
#[test]
fn the_gate_holds_in_every_process_while_the_store_is_gone() {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let bucket = Bucket::s3(&server, "app").through(&proxy.endpoint());
    let place = Place::with(tempfile::tempdir().unwrap(), bucket, Some(server));
    let mut first = place.first("WAL", Program::Rust);
    let mut second = place.start(Program::Python);
    second.host.query(second.db, "PRAGMA wal_autocheckpoint=10");
    proxy.set(Mode::Refuse).unwrap();
    for round in 0..200 {
        second.write("second");
        if round % 10 == 0 {
            first.write("first");
        }
        if round % 40 == 39 {
            assert_eq!(second.host.query(second.db, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0], json!(0));
        }
    }
    // The one that uploads is killed with all of that unsent.
    first.host.kill();
    second.write("second");
    proxy.set(Mode::Forward).unwrap();
    second.host.sync(second.db);
    assert_eq!(second.rows(), 1 + 200 + 20 + 1);
    place.check();
    place.assert_one_full_state();
}

/// The full state of one process's uploader while others write, in and outside the WAL.
#[test]
fn a_full_state_is_whole_while_other_processes_write() {
    for mode in ["WAL", "DELETE"] {
        let server = Server::start().unwrap();
        let bucket = Bucket::s3(&server, "app");
        let proxy = Proxy::start(&server.endpoint()).unwrap();
        let slow = bucket.through(&proxy.endpoint());
        let place = Place::with(tempfile::tempdir().unwrap(), slow, Some(server));
        {
            let plain = rusqlite::Connection::open(place.path()).unwrap();
            plain.execute_batch(&format!("PRAGMA journal_mode={mode}; {TABLES}")).unwrap();
            plain
                .execute_batch(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT INTO still SELECT randomblob(3000) FROM n",
                )
                .unwrap();
        }
        let mut workers = vec![place.start(Program::Rust), place.start(Program::Rust), place.start(Program::Rust)];
        std::thread::scope(|scope| {
            for (number, worker) in workers.iter_mut().enumerate() {
                let place = &place;
                scope.spawn(move || {
                    worker.host.query(worker.db, "PRAGMA wal_autocheckpoint=10");
                    // Until it is there: nobody's writing keeps it from coming to its end.
                    let mut commits = 0;
                    eventually("the full state is in the bucket", || {
                        worker.write(&format!("{number}"));
                        worker.host.query(worker.db, "UPDATE still SET x = randomblob(3000) WHERE rowid % 997 = abs(random() % 997)");
                        if commits % 7 == 6 {
                            worker.host.query(worker.db, "PRAGMA wal_checkpoint(TRUNCATE)");
                        }
                        commits += 1;
                        commits > 20 && !place.bucket.try_list().is_empty()
                    });
                });
            }
        });
        let asks = &mut workers[1];
        asks.host.sync(asks.db);
        place.check();
        for worker in workers {
            worker.leave();
        }
        place.check();
    }
}

/// Those who cannot be joined are refused, with the reason.
#[test]
fn a_process_with_another_replica_is_refused() {
    let place = Place::in_folder();
    let mut first = place.first("WAL", Program::Rust);
    let other = Bucket::folder(&place.dir.path().join("other"));
    let mut second = Host::start(Program::Python, &[]);
    let said = second.try_open(&host::replicated(&place.path(), &other.url, &[])).unwrap_err();
    assert!(said.contains("unable to open"), "{said}");
    // The attempt has taken nothing of the first's away.
    first.write("first");
    second.open(&place.uri(&[]));
    first.host.sync(first.db);
    place.check();
    place.assert_one_full_state();
}

/// A stopped process that uploads holds nobody up; when it is killed another goes on.
#[test]
fn a_stopped_uploader_holds_no_writer_up() {
    let signal = |worker: &Worker, name: &str| {
        assert!(Command::new("kill").args([&format!("-{name}"), &worker.host.id().to_string()]).status().unwrap().success());
    };
    let place = Place::in_folder();
    let mut first = place.first("WAL", Program::Rust);
    let mut second = place.start(Program::Rust);
    second.write("second");
    first.host.sync(first.db);
    signal(&first, "STOP");
    for _ in 0..100 {
        second.write("second");
    }
    signal(&first, "CONT");
    eventually("it goes on", || second.host.status(second.db, "waiting_commits") == "0");
    place.check();
    signal(&first, "STOP");
    second.write("second");
    first.host.kill();
    second.host.sync(second.db);
    place.check();
    place.assert_one_full_state();
}

/// TXIDs are one order over all processes, and each of them can be waited for anywhere.
#[test]
fn one_process_waits_for_the_txid_of_another() {
    let place = Place::in_folder();
    let mut first = place.first("WAL", Program::Rust);
    let mut second = place.start(Program::Python);
    for _ in 0..5 {
        first.write("first");
        let local = first.host.status(first.db, "local_txid");
        let waited = second.host.value(second.db, &format!("PRAGMA replicated_wait='{local}'"));
        let newest = Txid::from_hex(waited.as_str().unwrap()).unwrap();
        assert!(newest >= Txid::from_hex(&local).unwrap());
        let restored = place.dir.path().join("restored.db");
        let _ = std::fs::remove_file(&restored);
        place.bucket.restore(&restored);
        assert_eq!(rows(&restored), first.rows());
    }
}

fn rows(file: &Path) -> u64 {
    rusqlite::Connection::open(file).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap().cast_unsigned()
}
