//! `restore=if-missing`: an open restores a database that is not there, once, and goes on from it; what cannot be restored is not opened.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use replicated::store::SNAPSHOT_LEVEL;
use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Host, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::Server;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

const IF_MISSING: (&str, &str) = ("restore", "if-missing");

/// A bucket that another machine has written: rows 1 to 5.
fn history(bucket: &Bucket) -> String {
    let machine = tempfile::tempdir().unwrap();
    let mut host = Host::start(Program::Rust, &bucket.env);
    let db = host.open(&host::replicated(&machine.path().join("app.db"), &bucket.url, &[IF_MISSING]));
    host.run(db, "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER PRIMARY KEY, v BLOB); CREATE TABLE ballast(v BLOB)");
    host.query(db, "INSERT INTO ballast VALUES (randomblob(200000))");
    for n in 1..=5 {
        host.query(db, &format!("INSERT INTO t VALUES ({n}, randomblob(1000))"));
        host.sync(db);
    }
    let newest = host.sync(db);
    host.quit();
    newest
}

fn rows(path: &Path) -> i64 {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

/// What the bucket has, restored by the tool's code.
fn rows_of(bucket: &Bucket) -> i64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restored.db");
    bucket.restore(&path);
    rows(&path)
}

fn next(txid: &str) -> String {
    format!("{:016x}", u64::from_str_radix(txid, 16).unwrap() + 1)
}

#[test]
fn a_container_starts_with_one_line_and_goes_on_without_a_snapshot() {
    let server = Server::start().unwrap();
    for (program, journal) in [(Program::Python, "wal"), (Program::Rust, "wal"), (Program::Python, "delete")] {
        let bucket = Bucket::s3(&server, &format!("{program:?}-{journal}"));
        let newest = history(&bucket);
        // Empty directories, one after the other: containers that keep nothing.
        for start in 1..=3 {
            let machine = tempfile::tempdir().unwrap();
            let path = machine.path().join("app.db");
            if start == 2 {
                // A file that something else has made.
                std::fs::write(&path, b"").unwrap();
            }
            let mut host = Host::start(program, &bucket.env);
            let db = host.open(&host::replicated(&path, &bucket.url, &[IF_MISSING]));
            assert_eq!(host.value(db, "SELECT count(*) FROM t"), 4 + start);
            host.query(db, &format!("PRAGMA journal_mode={journal}"));
            host.query(db, "INSERT INTO t(v) VALUES (zeroblob(100))");
            host.sync(db);
            assert_eq!(host.status(db, "snapshots"), "0");
            host.quit();
            assert_eq!(rows_of(&bucket), 5 + start);
        }
        assert_eq!(bucket.full_states(), 1, "{program:?}");
        assert_eq!(bucket.level(SNAPSHOT_LEVEL).len(), 1);
        assert!(bucket.list().iter().any(|listed| listed.name.max_txid.to_string() == next(&newest)));
    }
}

#[test]
fn the_option_comes_from_the_environment_and_the_shell_restores_too() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    history(&bucket);
    let path = dir.path().join("app.db");
    let env = [("REPLICATED_RESTORE".to_owned(), "if-missing".to_owned()), ("REPLICATED_REPLICA".to_owned(), bucket.url.clone())];
    let script = format!(
        ".load {}\n.open file:{}?vfs=replicated\nSELECT 'rows ' || count(*) FROM t;\nINSERT INTO t VALUES (6, 0);\nPRAGMA replicated_sync;\n",
        host::extension().display(),
        path.display()
    );
    let mut child = host::command("sqlite3", &env)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the sqlite3 shell is installed");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.lines().any(|line| line == "rows 5"), "{said}");
    assert_eq!(rows_of(&bucket), 6);
    assert_eq!(bucket.full_states(), 1);
}

#[test]
fn a_read_only_open_restores_and_never_leaves_an_empty_file() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let path = dir.path().join("app.db");
    let uri = host::replicated(&path, &bucket.url, &[IF_MISSING, ("mode", "ro")]);
    let mut host = Host::start(Program::Python, &[]);
    // Nothing there, and nothing in the bucket: as without us.
    host.try_open(&uri).unwrap_err();
    assert!(!path.exists());
    history(&bucket);
    let db = host.open(&uri);
    assert_eq!(host.value(db, "SELECT count(*) FROM t"), 5);
    assert!(host.try_query(db, "INSERT INTO t VALUES (6, 0)").unwrap_err().contains("readonly"));
    // A database that is there is opened as it is, whatever the bucket has.
    host.quit();
    std::fs::remove_dir_all(dir.path().join("bucket")).unwrap();
    let mut host = Host::start(Program::Python, &[]);
    let db = host.open(&uri);
    assert_eq!(host.value(db, "SELECT count(*) FROM t"), 5);
}

#[test]
fn an_empty_bucket_begins_with_an_empty_database_and_never_is_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let mut host = Host::start(Program::Python, &[]);
    let db = host.open(&host::replicated(&dir.path().join("app.db"), &bucket.url, &[IF_MISSING]));
    host.run(db, "CREATE TABLE t(n INTEGER PRIMARY KEY)");
    host.sync(db);
    assert_eq!(rows_of(&bucket), 0);
    // Another open of the same empty table, with the file there.
    let other = host.open(&host::replicated(&dir.path().join("app.db"), &bucket.url, &[IF_MISSING]));
    assert_eq!(host.value(other, "SELECT count(*) FROM t"), 0);
    host.quit();
    for options in [&[][..], &[("restore", "never")]] {
        let machine = tempfile::tempdir().unwrap();
        let mut host = Host::start(Program::Python, &[]);
        let db = host.open(&host::replicated(&machine.path().join("app.db"), &bucket.url, options));
        assert_eq!(host.value(db, "SELECT count(*) FROM sqlite_schema"), 0);
        host.query(db, "CREATE TABLE other(x)");
        // And what it then holds is not sent over the history.
        eventually("it has stopped", || host.status(db, "reason") == "diverged");
    }
    assert_eq!(rows_of(&bucket), 0);
    let error = host::replicated(&dir.path().join("app.db"), &bucket.url, &[("restore", "always")]);
    Host::start(Program::Python, &[]).try_open(&error).unwrap_err();
}

/// In one test, as the reason of the last refusal is the process's.
#[test]
fn what_cannot_be_restored_is_not_opened() {
    replicated::register!(rusqlite::ffi).unwrap();
    let server = Server::start().unwrap();
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let bucket = Bucket::s3(&server, "app");
    history(&bucket);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let endpoint = format!("{}?endpoint={}&region=us-east-1&path_style=true", bucket.url, proxy.endpoint());
    let fails = |replica: &str, flags: OpenFlags, words: &[&str]| {
        let uri = host::replicated(&path, replica, &[IF_MISSING, ("connect_timeout", "300ms")]);
        let error = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::CannotOpen), "{error}");
        let reason = replicated::last_refusal().unwrap();
        for word in words {
            assert!(reason.contains(word), "{word} is not in: {reason}");
        }
        assert!(!path.exists(), "{reason}");
        let left: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.iter().all(|path| path.ends_with("app.db-replicated")), "{left:?}");
    };
    let missing = "app.db is not there and could not be restored";
    // No credentials: this process has none.
    fails(&endpoint, OpenFlags::default(), &["restore=if-missing", missing, "restore=never"]);
    proxy.set(Mode::Refuse).unwrap();
    fails(&endpoint, OpenFlags::default(), &[missing]);
    fails(&endpoint, OpenFlags::SQLITE_OPEN_READ_ONLY, &[missing]);
    // A damaged object of a folder.
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = elsewhere.path().join("damaged");
    let damaged = Bucket::folder(&folder);
    history(&damaged);
    let snapshot = std::fs::read_dir(folder.join("ltx/9")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&snapshot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&snapshot, &bytes).unwrap();
    fails(&damaged.url, OpenFlags::default(), &[missing, "0000000000000001-0000000000000002.ltx"]);
    std::fs::remove_file(&snapshot).unwrap();
    fails(&damaged.url, OpenFlags::default(), &[missing, "What to do"]);
    // Once it is whole again the same line works.
    bytes[middle] ^= 1;
    std::fs::write(&snapshot, &bytes).unwrap();
    let uri = host::replicated(&path, &damaged.url, &[IF_MISSING]);
    let db = Connection::open(uri).unwrap();
    assert_eq!(db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)), Ok(5));
    db.close().unwrap();

    // Another process is at it, and does not come to its end: it is named. Once it has, the same line works.
    let held = tempfile::tempdir().unwrap();
    let uri = host::replicated(&held.path().join("app.db"), &damaged.url, &[IF_MISSING, ("restore_wait", "100ms"), ("mode", "ro")]);
    let mut host = Host::start(Program::Faulty, &[("REPLICATED_TEST_FAULT".to_owned(), "if-missing.noted=stop@1".to_owned())]);
    host.send(&serde_json::json!({"op": "open", "uri": uri})).unwrap();
    eventually("it has stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", host.id())).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    });
    for _ in 0..2 {
        let error = Connection::open(&uri).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::CannotOpen), "{error}");
        let reason = replicated::last_refusal().unwrap();
        let told = format!("app.db is being restored by process {}, which has taken longer than restore_wait (100ms)", host.id());
        assert!(reason.contains(&told), "{reason}");
    }
    let pid = rustix::process::Pid::from_raw(host.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert_eq!(host.answer().unwrap(), 1);
    host.quit();
    let db = Connection::open(&uri).unwrap();
    assert_eq!(db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)), Ok(5));
    let left: Vec<_> = std::fs::read_dir(held.path().join("app.db-replicated")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.contains(&"restorer".into()), "{left:?}");
}

#[test]
fn a_log_without_its_database_is_refused_and_an_empty_file_with_one_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    history(&bucket);
    let path = dir.path().join("app.db");
    let uri = host::replicated(&path, &bucket.url, &[IF_MISSING]);
    let wal = dir.path().join("app.db-wal");
    std::fs::write(&wal, b"frames").unwrap();
    let mut host = Host::start(Program::Python, &[]);
    host.try_open(&uri).unwrap_err();
    assert_eq!(std::fs::read(&wal).unwrap(), b"frames");
    assert!(!path.exists());
    std::fs::write(&path, b"").unwrap();
    let db = host.open(&uri);
    assert_eq!(host.value(db, "SELECT count(*) FROM sqlite_schema"), 0);
}

#[test]
fn of_many_that_open_at_once_one_restores() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "app");
    history(&bucket);
    let dir = tempfile::tempdir().unwrap();
    let before = server.requests().get;
    bucket.restore(&dir.path().join("measured.db"));
    let of_one = server.requests().get - before;

    // Processes.
    let uri = |name: &str| host::replicated(&dir.path().join(name), &bucket.url, &[IF_MISSING, ("mode", "ro")]);
    let mut hosts: Vec<Host> = (0..6).map(|_| Host::start(Program::Python, &bucket.env)).collect();
    let before = server.requests().get;
    for host in &mut hosts {
        host.send(&serde_json::json!({"op": "open", "uri": uri("processes.db")})).unwrap();
    }
    for host in &mut hosts {
        assert_eq!(host.answer().unwrap(), 1);
    }
    assert_eq!(server.requests().get - before, of_one);
    for host in &mut hosts {
        let counted = host.ask(&serde_json::json!({"op": "sql", "db": 1, "sql": "SELECT count(*) FROM t"})).unwrap();
        assert_eq!(counted, serde_json::json!([[5]]));
    }
}

/// Threads, of which some are those of an asynchronous runtime, which must not be blocked by another one.
#[test]
fn threads_of_a_runtime_open_at_once() {
    replicated::register!(rusqlite::ffi).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    history(&bucket);
    let path = dir.path().join("app.db");
    let uri = host::replicated(&path, &bucket.url, &[IF_MISSING]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let uri = uri.clone();
            runtime.spawn(async move {
                let db = Connection::open(uri).unwrap();
                db.busy_timeout(host::PATIENCE).unwrap();
                db.execute("INSERT INTO t(v) VALUES (?1)", [n]).unwrap();
                db
            })
        })
        .collect();
    let connections: Vec<Connection> = tasks.into_iter().map(|task| runtime.block_on(task).unwrap()).collect();
    let sync: String = connections[0].query_row("PRAGMA replicated_sync", [], |row| row.get(0)).unwrap();
    assert!(!sync.is_empty());
    drop(connections);
    assert_eq!((rows(&path), rows_of(&bucket), bucket.full_states()), (13, 13, 1));
}

/// Killed at each step: the next open restores again, or goes on from what was put in place. Never is the full state sent again, or refused.
#[test]
fn a_restore_may_be_cut_off_at_each_step() {
    for point in ["if-missing.noted", "if-missing.placed", "control.opened", "control.save", "control.saved", "if-missing.restored"] {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        history(&bucket);
        let uri = host::replicated(&dir.path().join("app.db"), &bucket.url, &[IF_MISSING]);
        let mut host = Host::start(Program::Faulty, &[("REPLICATED_TEST_FAULT".to_owned(), format!("{point}=kill@1"))]);
        let error = host.try_open(&uri).unwrap_err();
        assert!(error.contains("the host is gone"), "{point}: {error}");
        drop(host);
        goes_on(dir, &bucket, &uri, point);
    }
}

fn goes_on(dir: TempDir, bucket: &Bucket, uri: &str, point: &str) {
    let mut host = Host::start(Program::Faulty, &[]);
    let db = host.open(uri);
    host.query(db, "INSERT INTO t(v) VALUES (zeroblob(100))");
    assert!(!host.sync(db).is_empty(), "{point}");
    assert_eq!(host.status(db, "state"), "idle", "{point}");
    host.quit();
    assert_eq!((rows_of(bucket), bucket.full_states()), (6, 1), "{point}");
    let left = std::fs::read_dir(dir.path()).unwrap().filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().contains("tmp"));
    assert_eq!(left.count(), 0, "{point}");
}

/// What somebody else wrote to the file between the death and the next open is not taken for what the bucket has.
#[test]
fn a_restored_file_that_was_written_to_before_it_was_noted_is_not_gone_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    history(&bucket);
    let path = dir.path().join("app.db");
    let uri = host::replicated(&path, &bucket.url, &[IF_MISSING]);
    let mut host = Host::start(Program::Faulty, &[("REPLICATED_TEST_FAULT".to_owned(), "if-missing.placed=kill@1".to_owned())]);
    host.try_open(&uri).unwrap_err();
    let foreign = Connection::open(&path).unwrap();
    foreign.execute_batch("PRAGMA journal_mode=delete; INSERT INTO t(v) VALUES (0)").unwrap();
    foreign.close().unwrap();
    let mut host = Host::start(Program::Faulty, &[]);
    let db = host.open(&uri);
    assert_eq!(host.value(db, "SELECT count(*) FROM t"), 6);
    eventually("it has stopped", || host.status(db, "reason") == "diverged");
    assert_eq!(rows_of(&bucket), 5);
}

#[test]
fn a_database_that_is_deleted_while_it_is_open_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    history(&bucket);
    let path = dir.path().join("app.db");
    let uri = host::replicated(&path, &bucket.url, &[IF_MISSING]);
    let mut host = Host::start(Program::Python, &[]);
    let gone = host.open(&uri);
    host.query(gone, "INSERT INTO t(v) VALUES (0)");
    host.sync(gone);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    let back = host.open(&uri);
    assert_eq!(host.value(back, "SELECT count(*) FROM t"), 6);
    host.query(back, "INSERT INTO t(v) VALUES (0)");
    host.sync(back);
    assert_eq!(host.status(gone, "state"), "failed");
    assert_eq!((rows_of(&bucket), bucket.full_states()), (7, 1));
}

/// In a host that has better things to do with its cores.
#[test]
fn an_open_that_restores_starts_no_more_threads_than_it_may() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "app");
    history(&bucket);
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let machine = tempfile::tempdir().unwrap();
    // So that there is time to look.
    proxy.set(Mode::Delay(std::time::Duration::from_millis(150))).unwrap();
    let mut host = Host::start(Program::Rust, &bucket.through(&proxy.endpoint()).env);
    let uri = host::replicated(&machine.path().join("app.db"), &bucket.url, &[IF_MISSING, ("restore_threads", "1")]);
    host.send(&serde_json::json!({"op": "open", "uri": uri})).unwrap();
    let decoding = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", host.id())).unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("replicated-deco")).count()
    };
    let mut most = 0;
    eventually("it decodes", || {
        most = most.max(decoding());
        most > 0
    });
    while decoding() > 0 {
        most = most.max(decoding());
    }
    assert_eq!(most, 1);
    assert_eq!(host.answer().unwrap(), 1);
    assert_eq!(rows(&machine.path().join("app.db")), 5);
}
