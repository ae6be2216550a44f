//! Every kind of host replicates: through the loadable extension from Python, the sqlite3 shell and C, and through the library from Rust.
//! What they wrote is restored from an S3 server that checks signatures, page by page.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Host, Program};
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::{integrity_check, page_compare};
use serde_json::json;

const ROWS: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<200) INSERT INTO t SELECT i, randomblob(300) FROM n";

/// Restores by the command-line tool and compares with the source, which nobody has open.
fn restored_equals(bucket: &Bucket, source: &Path) {
    let output = source.with_extension("restored");
    let mut command = host::command(env!("CARGO_BIN_EXE_replicated"), &bucket.env);
    let done = command.args(["restore", &bucket.url, "--integrity-check", "full", "--force", "-o"]).arg(&output).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    page_compare(source, &output).unwrap();
    integrity_check(&output).unwrap();
}

fn a_program_replicates(which: Program) {
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let bucket = Bucket::s3(&server, "apps/main");
    let path = dir.path().join("app.db");
    let mut host = Host::start(which, &bucket.env);
    let db = host.open(&host::replicated(&path, &bucket.url, &[]));
    assert_eq!(host.value(db, "PRAGMA journal_mode=WAL"), "wal");
    host.run(db, ROWS);
    host.run(db, "DELETE FROM t WHERE id % 3 = 0; UPDATE t SET x = zeroblob(500) WHERE id % 5 = 0");
    let txid = host.sync(db);
    assert_eq!(host.status(db, "remote_txid"), txid);
    host.run(db, "BEGIN; INSERT INTO t(x) VALUES (randomblob(10000)); DELETE FROM t WHERE id = 1; COMMIT");
    host.close(db);
    restored_equals(&bucket, &path);
    host.quit();
    assert!(server.requests().put >= 3, "{:?}", server.requests());
}

#[test]
fn python_replicates() {
    a_program_replicates(Program::Python);
}

#[test]
fn a_rust_program_with_a_bundled_sqlite_replicates() {
    a_program_replicates(Program::Rust);
}

fn shell(env: &[(String, String)], input: &str) -> String {
    let mut command = host::command("sqlite3", env);
    command.args(["-batch", "-bail"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_sqlite3_shell_replicates() {
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let bucket = Bucket::s3(&server, "apps/shell");
    let path = dir.path().join("app.db");
    let script = format!(
        ".load {}\n.open {}\nPRAGMA journal_mode=WAL;\n{ROWS};\nPRAGMA replicated_sync;\nSELECT count(*) FROM t;\nPRAGMA replicated_status;\n",
        host::extension().display(),
        host::replicated(&path, &bucket.url, &[])
    );
    let output = shell(&bucket.env, &script);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "wal");
    assert_eq!((lines[1].len(), lines[2]), (16, "200"), "{output}");
    restored_equals(&bucket, &path);
}

/// `REPLICATED_DEFAULT=1` and a replica in the environment: the host opens a plain path, and `{name}` tells databases apart.
#[test]
fn a_host_that_knows_no_uri_replicates_by_its_environment() {
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let bucket = Bucket::s3(&server, "all/{name}");
    let mut env = bucket.env.clone();
    env.push(("REPLICATED_DEFAULT".to_owned(), "1".to_owned()));
    env.push(("REPLICATED_REPLICA".to_owned(), bucket.url.clone()));
    let mut host = Host::start(Program::Python, &env);
    for name in ["one.db", "two.db"] {
        let path = dir.path().join(name);
        let db = host.open(path.to_str().unwrap());
        host.run(db, "PRAGMA journal_mode=WAL");
        host.run(db, ROWS);
        host.run(db, &format!("INSERT INTO t(x) VALUES ('{name}')"));
        assert_eq!(host.status(db, "replica"), bucket.url.replace("{name}", name));
        host.close(db);
        let own = Bucket { url: bucket.url.replace("{name}", name), env: bucket.env.clone() };
        restored_equals(&own, &path);
    }
    host.quit();
}

#[test]
fn an_attached_database_replicates_beside_the_main_one() {
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let (main, other) = (Bucket::s3(&server, "main"), Bucket::s3(&server, "other"));
    let (main_path, other_path) = (dir.path().join("main.db"), dir.path().join("other.db"));
    for which in [Program::Python, Program::Rust] {
        let mut host = Host::start(which, &main.env);
        let db = host.open(&host::replicated(&main_path, &main.url, &[]));
        host.query(db, &format!("ATTACH '{}' AS other", host::replicated(&other_path, &other.url, &[])));
        host.run(db, "PRAGMA main.journal_mode=WAL; PRAGMA other.journal_mode=WAL");
        host.run(db, "CREATE TABLE IF NOT EXISTS main.t(x); CREATE TABLE IF NOT EXISTS other.u(x)");
        for _ in 0..20 {
            host.run(db, "BEGIN; INSERT INTO t VALUES (randomblob(2000)); INSERT INTO u SELECT x FROM t; COMMIT");
        }
        host.query(db, "PRAGMA main.replicated_sync='100s'");
        host.query(db, "PRAGMA other.replicated_sync='100s'");
        host.close(db);
        restored_equals(&main, &main_path);
        restored_equals(&other, &other_path);
        host.quit();
    }
}

/// Two databases of one process cannot share a path in a bucket.
#[test]
fn a_replica_belongs_to_one_database() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let mut host = Host::start(Program::Rust, &[]);
    let _first = host.open(&host::replicated(&dir.path().join("a.db"), &bucket.url, &[]));
    host.try_open(&host::replicated(&dir.path().join("b.db"), &bucket.url, &[])).unwrap_err();
    let _again = host.open(&host::replicated(&dir.path().join("a.db"), &bucket.url, &[]));
}

const C_PROGRAM: &str = r#"
#include <sqlite3.h>
#include <stdio.h>
static int print(void *unused, int n, char **values, char **names) {
  (void)unused; (void)n; (void)names;
  return printf("%s\n", values[0] ? values[0] : "") < 0;
}
int main(int argc, char **argv) {
  sqlite3 *loader, *db;
  char *error = 0;
  if (argc < 3) return 2;
  if (sqlite3_open(":memory:", &loader)) return 3;
  sqlite3_enable_load_extension(loader, 1);
  if (sqlite3_load_extension(loader, argv[1], 0, &error)) { fprintf(stderr, "%s\n", error); return 4; }
  sqlite3_close(loader);
  if (sqlite3_open_v2(argv[2], &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, 0)) {
    fprintf(stderr, "%s\n", sqlite3_errmsg(db)); return 5;
  }
  for (int i = 3; i < argc; i++)
    if (sqlite3_exec(db, argv[i], print, 0, &error)) { fprintf(stderr, "%s: %s\n", argv[i], error); return 6; }
  return sqlite3_close(db);
}
"#;

#[test]
fn a_c_program_replicates() {
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let (source, binary, path) = (dir.path().join("host.c"), dir.path().join("host"), dir.path().join("app.db"));
    std::fs::write(&source, C_PROGRAM).unwrap();
    match Command::new("cc").arg(&source).arg("-o").arg(&binary).arg("-lsqlite3").output() {
        Ok(built) if built.status.success() => {}
        _ => {
            eprintln!("skipped: no C compiler with SQLite's headers");
            assert!(std::env::var_os("REPLICATED_TEST_REQUIRE").is_none());
            return;
        }
    }
    let bucket = Bucket::s3(&server, "apps/c");
    let mut command = host::command(&binary, &bucket.env);
    command.arg(host::extension()).arg(host::replicated(&path, &bucket.url, &[]));
    let output = command.args(["PRAGMA journal_mode=WAL", ROWS, "SELECT count(*) FROM t"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "wal\n200\n");
    restored_equals(&bucket, &path);
}

/// Python's own SQLite and the one of `pysqlite3` in one process, each with the extension, each with a database.
#[test]
fn two_copies_of_sqlite_in_one_process_replicate() {
    const SCRIPT: &str = r#"
import sys
import sqlite3
import pysqlite3
assert sqlite3.sqlite_version != pysqlite3.sqlite_version or sqlite3 is not pysqlite3
connections = []
for module, uri in ((sqlite3, sys.argv[2]), (pysqlite3, sys.argv[3])):
    loader = module.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(sys.argv[1])
    connections.append(module.connect(uri, uri=True, isolation_level=None))
for connection in connections:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t(x)")
for i in range(50):
    for connection in connections:
        connection.execute("INSERT INTO t VALUES (randomblob(1000))")
for connection, path in zip(connections, (sys.argv[2], sys.argv[3])):
    txid = connection.execute("PRAGMA replicated_sync").fetchone()[0]
    assert len(txid) == 16
    # Each copy's functions answer for its own database.
    rows = dict(connection.execute("SELECT name, value FROM replicated_status"))
    assert rows["remote_txid"] == txid and rows["replica"].split("?")[0] in path, rows
    assert connection.execute("SELECT replicated_status()").fetchone()[0].startswith("state ")
    assert connection.execute("SELECT replicated_last_error()").fetchone() == (None,)
    connection.close()
"#;
    let Some(env) = replicated_testkit::tools::environment() else { return };
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (Bucket::s3(&server, "one"), Bucket::s3(&server, "two"));
    let (first, second) = (dir.path().join("1.db"), dir.path().join("2.db"));
    let mut command = host::command(env.join("bin/python3"), &one.env);
    command.args(["-c", SCRIPT]).arg(host::extension());
    let output = command.arg(host::replicated(&first, &one.url, &[])).arg(host::replicated(&second, &two.url, &[])).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    restored_equals(&one, &first);
    restored_equals(&two, &second);
}

/// Load, fork, then open: what servers with worker processes do.
#[test]
fn a_child_forked_after_loading_replicates() {
    const SCRIPT: &str = r#"
import os, sqlite3, sys
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
first = sqlite3.connect(sys.argv[2], uri=True, isolation_level=None)
first.execute("PRAGMA journal_mode=WAL")
first.execute("CREATE TABLE t(x)")
child = os.fork()
if child == 0:
    second = sqlite3.connect(sys.argv[3], uri=True, isolation_level=None)
    second.execute("PRAGMA journal_mode=WAL")
    second.execute("CREATE TABLE u(x)")
    assert len(second.execute("PRAGMA replicated_sync").fetchone()[0]) == 16
    second.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
first.execute("INSERT INTO t VALUES (1)")
assert len(first.execute("PRAGMA replicated_sync").fetchone()[0]) == 16
first.close()
"#;
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (Bucket::s3(&server, "parent"), Bucket::s3(&server, "child"));
    let (first, second) = (dir.path().join("1.db"), dir.path().join("2.db"));
    let mut command = host::command(host::python(), &one.env);
    command.args(["-c", SCRIPT]).arg(host::extension());
    let output = command.arg(host::replicated(&first, &one.url, &[])).arg(host::replicated(&second, &two.url, &[])).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    restored_equals(&one, &first);
    restored_equals(&two, &second);
}

/// The child of a fork inherits the parent's files. What tells that a process replicates must go with that process all the same.
#[test]
fn a_child_that_outlives_its_parent_keeps_nobody_out() {
    const SCRIPT: &str = r#"
import os, sqlite3, sys, time
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
db = sqlite3.connect(sys.argv[2], uri=True, isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE t(x)")
child = os.fork()
if child == 0:
    sys.stdin.readline()
    os._exit(0)
print("forked", flush=True)
time.sleep(3600)
"#;
    let dir = tempfile::tempdir().unwrap();
    let (path, bucket) = (dir.path().join("app.db"), Bucket::folder(&dir.path().join("bucket")));
    let mut command = host::command(host::python(), &bucket.env);
    command.args(["-c", SCRIPT]).arg(host::extension()).arg(host::replicated(&path, &bucket.url, &[]));
    let mut parent = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(parent.stdout.take().unwrap()), &mut said).unwrap();
    assert_eq!(said, "forked\n");
    // The child's input, too: it goes on for as long as this is open.
    let input = parent.stdin.take();
    parent.kill().unwrap();
    parent.wait().unwrap();
    let mut host = Host::start(Program::Rust, &bucket.env);
    let db = host.open(&host::replicated(&path, &bucket.url, &[]));
    host.run(db, "INSERT INTO t VALUES (1)");
    host.sync(db);
    host.close(db);
    host.quit();
    restored_equals(&bucket, &path);
    drop(input);
}

/// Many connections on several threads: what is in the bucket is what they committed.
#[test]
fn several_connections_of_a_process_share_one_replication() {
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let bucket = Bucket::s3(&server, "apps/many");
    let path = dir.path().join("app.db");
    let mut host = Host::start(Program::Rust, &bucket.env);
    let uri = host::replicated(&path, &bucket.url, &[("sync_interval", "10ms")]);
    let connections: Vec<_> = (0..5).map(|_| host.open(&uri)).collect();
    host.run(connections[0], "PRAGMA journal_mode=WAL; CREATE TABLE t(x)");
    for round in 0..100_usize {
        host.run(connections[round % 5], "INSERT INTO t VALUES (randomblob(3000))");
    }
    assert_eq!(host.value(connections[3], "SELECT count(*) FROM t"), json!(100));
    for db in connections {
        host.close(db);
    }
    assert_eq!(bucket.full_states(), 1);
    restored_equals(&bucket, &path);
}

/// The extension brings its own everything: of SQLite's names it exports the two entry points only.
#[test]
fn the_extension_exports_two_names_of_sqlites() {
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(host::extension()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().last()).filter(|n| n.contains("sqlite3")).collect();
    names.sort_unstable();
    assert_eq!(names, ["sqlite3_extension_init", "sqlite3_replicated_init"]);
}
