//! What one process does to a database that others have open as well: it dies, panics, forks, stops, changes modes, fills or replaces the file. The others
//! go on, and nothing that was committed is missing in the bucket.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod built;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use replicated::types::Txid;
use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::place::{Place, TABLES, Worker};
use serde_json::json;

fn place() -> Place {
    Place::in_folder().with_faults()
}

/// A process is killed when it has published its commit and not woken the uploader yet: the next commit, of another process, wakes it.
#[test]
fn a_wake_up_is_not_lost_with_who_was_about_to_give_it() {
    let place = place();
    let mut first = place.first("WAL", Program::Faulty);
    let mut third = place.start(Program::Faulty);
    for round in 0..3 {
        let mut second = place.start_with(Program::Faulty, "commit.wake=kill", &[]);
        eventually("the uploader sleeps", || first.status("state") == "idle");
        std::thread::sleep(Duration::from_millis(50));
        second.try_write("second").unwrap_err();
        let before = place.bucket.list().len();
        third.write("third");
        eventually(&format!("round {round}: nobody asks, and it is in the bucket"), || place.bucket.list().len() > before);
    }
    assert_eq!(first.rows(), 7);
    first.sync();
    place.check_but_for_free_pages();
    place.assert_one_full_state();
}

/// Survivors go on after a panic, also those that were idle: one of them uploads, and is woken by the others. The process that has panicked goes on without
/// replication, and what it commits is found by the others.
fn a_panic(mode: &str, point: &str, of_owner: bool) {
    let place = place();
    let what = format!("{mode}, {point}, owner {of_owner}");
    place.first(mode, Program::Faulty).leave();
    let mut ill = place.start_with(Program::Faulty, &if of_owner { format!("{point}=panic@8") } else { String::new() }, &[]);
    let mut others = vec![place.start(Program::Faulty), place.start(Program::Faulty)];
    if !of_owner {
        others.push(ill);
        ill = place.start_with(Program::Faulty, &format!("{point}=panic@3"), &[]);
    }
    for round in 0..60 {
        ill.write("ill");
        others[round % 2].write("other");
        if round % 5 == 4 {
            ill.host.query(ill.db, "PRAGMA wal_checkpoint(TRUNCATE)");
        }
        // A pragma that panics itself has no answer.
        let told = ill.host.query(ill.db, "PRAGMA replicated_status");
        if told.is_empty() || told[0][0].as_str().unwrap().contains("state failed") {
            break;
        }
    }
    assert_eq!(ill.status("state"), "failed", "{what}: {}", place.log());
    for round in 0..4 {
        ill.write("ill");
        let before = place.bucket.list().len();
        others[round % 2].write("other");
        eventually(&format!("{what}, round {round}: nobody asks, and it is in the bucket"), || {
            place.bucket.list().len() > before && others[1].status("waiting_commits") == "0"
        });
        assert_eq!(others[1].status("state"), "idle", "{what}");
    }
    others[0].sync();
    place.check_but_for_free_pages();
    for worker in others {
        worker.leave();
    }
    ill.leave();
    // What the one has committed alone the next open finds.
    let mut last = place.start(Program::Faulty);
    last.sync();
    last.leave();
    place.check_but_for_free_pages();
}

#[test]
fn a_panic_of_who_uploads_leaves_the_others_at_work() {
    for point in ["commit.publish", "gate.asked", "step", "ack.told", "freeze.encoded"] {
        a_panic("WAL", point, true);
    }
    for point in ["spool.create", "control.saved", "send.done"] {
        a_panic("DELETE", point, true);
    }
}

#[test]
fn a_panic_of_who_does_not_upload_leaves_the_others_at_work() {
    for point in ["commit.publish", "gate.asked", "seal.begin", "control.save"] {
        a_panic("WAL", point, false);
    }
    // In the midst of a commit to the database file, which the uploader waits for before it sends the full state.
    for point in ["spool.create", "control.save", "control.saved"] {
        a_panic("DELETE", point, false);
    }
}

const FORKS: &str = r#"
import os, sqlite3, sys, time
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
db = sqlite3.connect(sys.argv[2], uri=True, isolation_level=None, timeout=60)
db.execute("INSERT INTO t(who, x) VALUES ('parent', randomblob(3000))")
db.execute("PRAGMA replicated_sync='60s'").fetchall()
child = os.fork()
if child == 0:
    time.sleep(100)
    os._exit(0)
print(child, flush=True)
sys.stdin.readline()
db.execute("INSERT INTO t(who, x) VALUES ('parent', randomblob(3000))")
print("written", flush=True)
time.sleep(100)
"#;

/// The child of a fork keeps what its parent had open. When the parent is killed, another process that does nothing takes over all the same.
#[test]
fn a_child_that_outlives_the_uploader_keeps_nobody_from_taking_over() {
    if !built::has_python() {
        return;
    }
    let place = Place::on_server().with_faults();
    place.first("WAL", Program::Faulty).leave();
    let proxy = Proxy::start(&place.server.as_ref().unwrap().endpoint()).unwrap();
    let mut parent = host::command(host::python(), &place.bucket.through(&proxy.endpoint()).env)
        .args(["-c", FORKS])
        .arg(host::extension())
        .arg(place.uri(&[]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let child = lines.next().unwrap().unwrap();
    let mut second = place.start(Program::Faulty);
    assert_eq!(second.rows(), 2);
    proxy.set(Mode::Hang).unwrap();
    drop(parent.stdin.take());
    assert_eq!(lines.next().unwrap().unwrap(), "written");
    let before = place.bucket.list().len();
    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually("who does nothing takes over", || place.bucket.list().len() > before);
    assert!(Command::new("kill").args(["-9", &child]).status().unwrap().success(), "the child was there all the time");
    second.sync();
    assert_eq!(second.rows(), 3);
    second.leave();
    place.check_but_for_free_pages();
    place.assert_one_full_state();
}

/// Processes that live for one commit, beside one that stays: what they cost is their batches.
#[test]
fn short_lived_processes_beside_one_that_stays_cost_no_list_and_no_snapshot() {
    let place = Place::on_server().with_faults();
    let mut first = place.first("WAL", Program::Faulty);
    let requests = || place.server.as_ref().unwrap().requests();
    let before = requests();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let mut visitor = place.start(Program::Faulty);
                    visitor.write("visitor");
                    visitor.leave();
                }
            });
        }
    });
    first.sync();
    assert_eq!(first.rows(), 101);
    let now = requests();
    assert_eq!((now.list, now.get, now.head, now.multipart), (before.list, before.get, before.head, before.multipart));
    assert!(now.put - before.put <= 101, "{before:?} {now:?}");
    place.check_but_for_free_pages();
    place.assert_one_full_state();
    first.leave();
}

/// Of several that find the database missing one restores it; all go on with it.
#[test]
fn a_missing_database_is_restored_once_and_written_by_all() {
    let place = place();
    place.first("WAL", Program::Faulty).leave();
    for name in ["app.db", "app.db-wal", "app.db-shm"] {
        let _ = std::fs::remove_file(place.dir.path().join(name));
    }
    let uri = place.uri(&[("restore", "if-missing")]);
    let mut hosts: Vec<Host> = (0..5).map(|_| Host::start(Program::Rust, &place.bucket.env)).collect();
    for host in &mut hosts {
        host.send(&json!({"op": "open", "uri": uri})).unwrap();
    }
    let mut workers: Vec<Worker> = hosts
        .into_iter()
        .map(|mut host| {
            host.answer().unwrap();
            Worker { host, db: Db::of(1) }
        })
        .collect();
    for _ in 0..3 {
        for worker in &mut workers {
            worker.write("all");
        }
    }
    workers[3].sync();
    assert_eq!(workers[4].rows(), 16);
    place.check_but_for_free_pages();
    place.assert_one_full_state();
    for worker in workers {
        worker.leave();
    }
}

/// ATTACH of a database that another process uploads: a transaction over it and an own one.
#[test]
fn a_database_of_another_process_is_attached() {
    for mode in ["WAL", "DELETE"] {
        let (place, own) = (place(), place());
        let mut first = place.first(mode, Program::Faulty);
        let mut second = own.first(mode, Program::Faulty);
        second.host.query(second.db, &format!("ATTACH '{}' AS other", place.uri(&[]).replace('\'', "''")));
        for _ in 0..10 {
            second.host.run(
                second.db,
                "BEGIN; INSERT INTO t(who, x) VALUES ('second', randomblob(3000)); INSERT INTO other.t(who, x) VALUES ('second', randomblob(3000)); COMMIT",
            );
            first.write("first");
        }
        second.host.query(second.db, "PRAGMA other.replicated_sync='60s'");
        second.sync();
        assert_eq!(first.rows(), 21);
        place.check_but_for_free_pages();
        own.check_but_for_free_pages();
        second.leave();
        first.write("first");
        first.sync();
        place.check_but_for_free_pages();
        place.assert_one_full_state();
        own.assert_one_full_state();
    }
}

#[test]
fn every_process_tells_the_same_of_replication() {
    let place = place();
    let mut first = place.first("WAL", Program::Faulty);
    let mut second = place.start(Program::Faulty);
    for _ in 0..5 {
        second.write("second");
        let txid = second.sync();
        for name in ["state", "remote_txid", "local_txid", "waiting_commits", "last_error"] {
            eventually(&format!("both tell the same {name}"), || first.status(name) == second.status(name));
        }
        assert_eq!(first.status("remote_txid"), txid);
        assert_eq!(second.status("state"), "idle");
    }
}

#[test]
fn a_database_that_others_have_open_is_not_adopted() {
    let place = place();
    let mut first = place.first("WAL", Program::Faulty);
    let mut second = place.start(Program::Faulty);
    let newest = Txid::from_hex(&second.sync()).unwrap();
    for _ in 0..2 {
        let said = replicated::adopt(&place.path(), &place.bucket.url, newest).unwrap_err();
        assert!(said.to_string().contains("is open in a process"), "{said}");
        // Nothing was taken away from those who have it.
        second.write("second");
        first.sync();
    }
    second.leave();
    replicated::adopt(&place.path(), &place.bucket.url, newest).unwrap_err();
    first.leave();
    place.assert_one_full_state();
    replicated::adopt(&place.path(), &place.bucket.url, newest.next().next()).unwrap();
}

/// Another writer has gone on: with `on_conflict=readonly` every process refuses commits, those that do not upload and those that join.
#[test]
fn every_process_refuses_commits_after_a_conflict() {
    for mode in ["WAL", "DELETE"] {
        let place = place();
        let more = [("on_conflict", "readonly")];
        let mut first = place.first_with(mode, Program::Faulty, "", &more);
        let mut second = place.start_with(Program::Faulty, "", &more);
        second.write("second");
        second.sync();
        let elsewhere = tempfile::tempdir().unwrap();
        let mut other = Host::start(Program::Rust, &place.bucket.env);
        let db = other.open(&host::replicated(&elsewhere.path().join("app.db"), &place.bucket.url, &[("restore", "if-missing")]));
        other.query(db, "INSERT INTO t(who, x) VALUES ('other', randomblob(3000))");
        other.sync(db);
        // The commit that finds it out is made.
        second.write("second");
        eventually("it is noticed", || second.status("state") == "fenced");
        for worker in [&mut first, &mut second] {
            let said = worker.try_write("refused").unwrap_err();
            assert!(said.contains("readonly"), "{said}");
            assert_eq!(worker.status("state"), "fenced");
        }
        let mut third = place.start_with(Program::Faulty, "", &more);
        assert_eq!(third.rows(), 3);
        assert!(third.try_write("refused").unwrap_err().contains("readonly"));
        first.host.kill();
        assert!(third.try_write("refused").unwrap_err().contains("readonly"));
        let restored = place.dir.path().join("restored.db");
        place.bucket.restore(&restored);
        assert_eq!(who(&restored), ["first", "second", "other"]);
    }
}

fn who(file: &Path) -> Vec<String> {
    let db = rusqlite::Connection::open(file).unwrap();
    let mut statement = db.prepare("SELECT who FROM t ORDER BY a").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Journal modes and exclusive locking are changed by a process that does not upload, while others have the database open.
#[test]
fn modes_are_changed_beside_others() {
    let place = place();
    let mut first = place.first("WAL", Program::Faulty);
    let mut second = place.start(Program::Faulty);
    second.write("second");
    second.host.query(second.db, "PRAGMA busy_timeout=10");
    assert!(second.host.try_query(second.db, "PRAGMA journal_mode=DELETE").unwrap_err().contains("locked"));
    first.write("first");
    first.sync();
    place.check_but_for_free_pages();
    // Alone it may.
    first.leave();
    second.host.query(second.db, "PRAGMA journal_mode=DELETE");
    second.write("second");
    let mut first = place.start(Program::Faulty);
    first.write("first");
    for mode in ["WAL", "WAL"] {
        // The first keeps no lock between its transactions.
        second.host.query(second.db, &format!("PRAGMA journal_mode={mode}"));
        second.write("second");
        first.write("first");
        second.sync();
        place.check_but_for_free_pages();
    }
    first.leave();
    second.host.query(second.db, "PRAGMA journal_mode=DELETE");
    let mut first = place.start(Program::Faulty);
    for round in 0..3 {
        second.host.query(second.db, "PRAGMA locking_mode=EXCLUSIVE");
        second.write("second");
        first.host.query(first.db, "PRAGMA busy_timeout=10");
        assert!(first.try_write("first").unwrap_err().contains("locked"), "round {round}");
        second.write("second");
        second.sync();
        second.host.query(second.db, "PRAGMA locking_mode=NORMAL");
        second.rows();
        first.host.query(first.db, "PRAGMA busy_timeout=60000");
        first.write("first");
        second.sync();
        place.check_but_for_free_pages();
    }
    place.assert_one_full_state();
}

#[test]
fn another_process_vacuums_and_changes_the_page_size() {
    for mode in ["WAL", "DELETE"] {
        let place = place();
        let mut first = place.first(mode, Program::Faulty);
        let mut second = place.start(Program::Faulty);
        second.host.query(second.db, "DELETE FROM still WHERE rowid % 2");
        second.host.query(second.db, "VACUUM");
        first.write("first");
        second.write("second");
        first.sync();
        place.check_but_for_free_pages();
        if mode == "DELETE" {
            second.host.run(second.db, "PRAGMA page_size=8192; VACUUM");
            first.write("first");
            second.write("second");
            second.sync();
            place.check_but_for_free_pages();
            first.write("first");
            first.sync();
            place.check_but_for_free_pages();
        }
        second.leave();
        first.leave();
        place.check_but_for_free_pages();
    }
}

/// Who is stopped in the midst of a change that it makes beside the database has a lock that others wait for, as it may have one of SQLite's.
fn goes_on_in_a_moment(worker: &Worker) -> std::thread::JoinHandle<()> {
    let id = worker.host.id().to_string();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        assert!(Command::new("kill").args(["-CONT", &id]).status().unwrap().success());
    })
}

/// The uploader's process is stopped for a while, wherever it is: checkpoints and last closes of others end, and nothing is lost.
#[test]
fn a_stopped_uploader_holds_no_checkpoint_and_no_close_up() {
    for mode in ["WAL", "DELETE"] {
        let place = place();
        let mut first = place.first(mode, Program::Faulty);
        let mut second = place.start(Program::Faulty);
        for round in 0..6 {
            first.write("first");
            first.signal("STOP");
            let goes_on = goes_on_in_a_moment(&first);
            for commit in 0..30 {
                second.write("second");
                if commit % 10 == 9 {
                    second.host.query(second.db, "PRAGMA wal_checkpoint(TRUNCATE)");
                }
            }
            let mut third = place.start(Program::Faulty);
            third.write("third");
            third.leave();
            if round % 2 == 0 {
                second.leave();
                second = place.start(Program::Faulty);
                assert_eq!(second.rows(), 1 + (round + 1) * 32);
            }
            goes_on.join().unwrap();
        }
        first.sync();
        place.check_but_for_free_pages();
        // The stopped one is killed: another takes over.
        first.signal("STOP");
        second.write("second");
        first.host.kill();
        second.sync();
        place.check_but_for_free_pages();
        place.assert_one_full_state();
    }
}

/// Whoever was stopped with the lock of a database that others change may go on in an hour: what else this process has open is replicated, and what is closed
/// and opened meanwhile waits for nobody.
#[test]
fn who_was_stopped_with_one_database_holds_up_no_other() {
    if !built::has_python() {
        return;
    }
    let mut place = place();
    place.env.push(("REPLICATED_TEST_PATIENCE_MS".to_owned(), "500".to_owned()));
    let mut first = place.first("WAL", Program::Faulty);
    // With a process that has joined the lock is one between processes.
    let mut second = place.start(Program::Faulty);
    second.write("second");
    first.sync();
    // Another one that has the lock and does nothing.
    let held = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1, (1 << 40) + 3); print('held', flush=True); sys.stdin.read()";
    let control = place.path().with_file_name("app.db-replicated").join("control");
    let mut holder =
        Command::new(host::python()).args(["-c", held]).arg(control).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(BufReader::new(holder.stdout.take().unwrap()).lines().next().unwrap().unwrap(), "held");
    first.write("first");
    for round in 0..3 {
        let bucket = Bucket::folder(&place.dir.path().join(format!("bucket-{round}")));
        let path = place.dir.path().join(format!("other-{round}.db"));
        let other = first.host.open(&host::replicated(&path, &bucket.url, &[("sync_interval", "10ms")]));
        first.host.run(other, "PRAGMA journal_mode=WAL; CREATE TABLE o(x); INSERT INTO o VALUES (1)");
        first.host.sync(other);
        if round == 1 {
            first.host.close(first.db);
        }
    }
    drop(holder.stdin.take());
    holder.wait().unwrap();
    second.write("second");
    second.sync();
    assert_eq!(second.rows(), 4);
    place.check_but_for_free_pages();
    place.assert_one_full_state();
}

/// A file that takes the place of one that is still open in the same process: what is committed to the old one disturbs nothing of the new one.
#[test]
fn a_replaced_file_is_disturbed_by_nobody_who_has_the_old_one() {
    for mode in ["WAL", "DELETE"] {
        let place = place();
        let mut first = place.first(mode, Program::Faulty);
        for name in ["app.db", "app.db-wal", "app.db-shm", "app.db-journal"] {
            let _ = std::fs::remove_file(place.dir.path().join(name));
        }
        let new = Place::in_folder();
        let db = first.host.open(&host::replicated(&place.path(), &new.bucket.url, &[("sync_interval", "10ms"), ("burst", "100")]));
        first.host.run(db, &format!("PRAGMA journal_mode={mode}; {TABLES}"));
        let old = first.db;
        for _ in 0..10 {
            // SQLite may refuse this, and so it does in WAL mode.
            let _ = first.host.try_query(old, "INSERT INTO t(who, x) VALUES ('old', randomblob(3000))");
            first.host.query(db, "INSERT INTO t(who, x) VALUES ('new', randomblob(3000))");
            first.host.sync(db);
        }
        // Others join the new one.
        let mut second = Host::start(Program::Rust, &[]);
        let joined = second.open(&host::replicated(&place.path(), &new.bucket.url, &[]));
        second.query(joined, "INSERT INTO t(who, x) VALUES ('second', randomblob(3000))");
        let _ = first.host.try_query(old, "INSERT INTO t(who, x) VALUES ('old', randomblob(3000))");
        second.sync(joined);
        let restored = place.dir.path().join("restored.db");
        new.bucket.restore(&restored);
        assert_eq!(who(&restored).len(), 11);
        assert_eq!(new.bucket.full_states(), 1, "{}", place.log());
    }
}

/// Outside the WAL nobody tells of a commit whose process is killed before it could: whoever waits for all that is committed has it sent.
#[test]
fn a_commit_that_nobody_has_told_of_is_found_by_who_waits_for_all() {
    let place = place();
    let mut first = place.first("DELETE", Program::Faulty);
    for round in 1..3 {
        let mut second = place.start_with(Program::Faulty, "spool.create=kill", &[]);
        assert_eq!(second.rows(), round);
        second.try_write("second").unwrap_err();
        // SQLite had committed it.
        first.sync();
        assert_eq!(first.rows(), round + 1);
        place.check_but_for_free_pages();
        // Which pages it has changed nobody knows.
        assert_eq!(place.full_states(), 1 + usize::try_from(round).unwrap());
    }
    first.write("first");
    first.sync();
    place.check_but_for_free_pages();
    assert_eq!(place.full_states(), 3);
}

/// The processes of a server that ends close the database at once: what one of them commits when the one that uploads has all but gone is in the bucket all the
/// same before it goes.
#[test]
fn who_leaves_last_has_its_commits_sent_though_another_was_about_to_leave() {
    for mode in ["WAL", "DELETE"] {
        let place = place();
        let first = place.first_with(mode, Program::Faulty, "close.flushed=stop", &[]);
        let mut second = place.start(Program::Faulty);
        let id = first.host.id().to_string();
        let stat = format!("/proc/{id}/stat");
        let leaves = std::thread::spawn(move || first.leave());
        eventually("the uploader has sent all that it knows of", || {
            std::fs::read_to_string(&stat).unwrap().rsplit(") ").next().unwrap().starts_with('T')
        });
        // Another of its threads may hold what a commit outside the WAL waits for.
        let goes_on = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(400));
            assert!(Command::new("kill").args(["-CONT", &id]).status().unwrap().success());
        });
        second.write("second");
        second.leave();
        // At once, and not when the other one has gone as well.
        place.check_but_for_free_pages();
        goes_on.join().unwrap();
        leaves.join().unwrap();
        place.check_but_for_free_pages();
        place.assert_one_full_state();
    }
}
