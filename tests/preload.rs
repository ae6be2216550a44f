//! `LD_PRELOAD`: programs that use the system's SQLite replicate without a change, and whatever else is started with it does not notice.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic, clippy::print_stdout)] // The helpers are part of tests.

use std::path::Path;
use std::process::Command;

use replicated_testkit::{sqlite, tools};
use tempfile::TempDir;

mod built;

/// A folder to work in, in which `dist/` lies.
fn laid_out() -> TempDir {
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    work
}

/// A command in that folder, preloaded and not configured.
fn preloaded(work: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = built::command(program);
    command.current_dir(work).env("LD_PRELOAD", work.join("dist/replicated-preload.so"));
    command
}

/// A command whose databases are replicated to `bucket/NAME`.
fn replicated(work: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = preloaded(work, program);
    command.env("REPLICATED_REPLICA", format!("file://{}/bucket/{{name}}", work.display()));
    command
}

fn restored_equals(work: &Path, name: &str) {
    let restored = work.join(format!("{name}.restored"));
    let url = format!("file://{}/bucket/{name}", work.display());
    built::run(built::command(env!("CARGO_BIN_EXE_replicated")).args(["restore", &url, "-o"]).arg(&restored));
    sqlite::page_compare(&work.join(name), &restored).unwrap();
}

#[test]
fn the_sqlite3_shell_as_it_is() {
    if !built::has("sqlite3", &["-version"]) {
        return;
    }
    let work = laid_out();
    let script =
        "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (randomblob(5000)); PRAGMA replicated_sync";
    let mut newest = String::new();
    for _ in 0..2 {
        let told = built::run(replicated(work.path(), "sqlite3").args(["-bail", "app.db", script]));
        let txid = told.lines().last().unwrap();
        assert!(txid.len() == 16 && txid > newest.as_str(), "{told}");
        txid.clone_into(&mut newest);
    }
    restored_equals(work.path(), "app.db");
}

/// Its module brings SQLite with it for itself only; a child that was forked before anything was opened, and one forked after, open databases of their own.
#[test]
fn python_as_it_is_and_its_forks() {
    const SCRIPT: &str = r#"
import os, sqlite3
def write(name):
    db = sqlite3.connect(name, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t(x)")
    db.execute("INSERT INTO t VALUES (1)")
    assert len(db.execute("PRAGMA replicated_sync").fetchone()[0]) == 16
    assert db.execute("SELECT replicated_status()").fetchone()[0].startswith("state ")
    return db
def forked(name):
    child = os.fork()
    if child == 0:
        write(name).close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
forked("before.db")
db = write("app.db")
forked("after.db")
db.execute("INSERT INTO t VALUES (2)")
db.close()
"#;
    if !built::has_python() {
        return;
    }
    let work = laid_out();
    built::run(replicated(work.path(), replicated_testkit::host::python()).args(["-c", SCRIPT]));
    for name in ["before.db", "app.db", "after.db"] {
        restored_equals(work.path(), name);
    }
}

/// Python's own SQLite is the system's, that of `pysqlite3` is in its module: each opens by the functions of its own.
#[test]
fn two_copies_of_sqlite_are_kept_apart() {
    const SCRIPT: &str = r#"
import pysqlite3, sqlite3
versions = set()
for module, name in ((pysqlite3, "one.db"), (sqlite3, "two.db"), (pysqlite3, "three.db")):
    db = module.connect(name, isolation_level=None)
    versions.add(db.execute("SELECT sqlite_version()").fetchone()[0])
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t(x)")
    assert len(db.execute("PRAGMA replicated_sync").fetchone()[0]) == 16
    db.close()
assert len(versions) == 2, versions
"#;
    let Some(env) = tools::environment() else { return };
    let work = laid_out();
    built::run(replicated(work.path(), env.join("bin/python3")).args(["-c", SCRIPT]));
    for name in ["one.db", "two.db", "three.db"] {
        restored_equals(work.path(), name);
    }
}

#[test]
fn programs_without_sqlite_do_not_notice() {
    let work = laid_out();
    for words in [vec!["true"], vec!["ls", "-l"], vec!["sh", "-c", "echo $((1 + 1)) | cat"]] {
        let with = replicated(work.path(), words[0]).args(&words[1..]).output().unwrap();
        let without = built::command(words[0]).args(&words[1..]).current_dir(work.path()).output().unwrap();
        assert_eq!((with.status, with.stdout, with.stderr), (without.status, without.stdout, without.stderr), "{words:?}");
    }
    let maps = built::run(replicated(work.path(), "cat").arg("/proc/self/maps"));
    assert!(maps.contains("/replicated-preload.so") && !maps.contains("/replicated.so"), "{maps}");
}

/// Without a word of ours in the environment, and where that says no, the extension is not even loaded.
#[test]
fn nothing_is_done_where_nothing_is_asked_for() {
    const SCRIPT: &str = r#"
import sqlite3
db = sqlite3.connect("plain.db")
db.execute("CREATE TABLE IF NOT EXISTS t(x)")
maps = open("/proc/self/maps").read()
assert "/replicated-preload.so" in maps and "/replicated.so" not in maps
"#;
    if !built::has_python() {
        return;
    }
    let work = laid_out();
    let python = replicated_testkit::host::python();
    built::run(preloaded(work.path(), python).args(["-c", SCRIPT]));
    built::run(replicated(work.path(), python).args(["-c", SCRIPT]).env("REPLICATED_DEFAULT", "0"));
    built::run(preloaded(work.path(), python).args(["-c", SCRIPT]).env("REPLICATED_REPLICA", ""));
    assert!(!work.path().join("plain.db-replicated").exists() && !work.path().join("bucket").exists());
}

/// A database that cannot be replicated as it was asked is not opened without: the extension is missing, or a variable is misspelt.
#[test]
fn what_cannot_be_replicated_is_not_opened() {
    if !built::has("sqlite3", &["-version"]) {
        return;
    }
    let work = laid_out();
    let refused = |command: &mut Command, why: &str| {
        let output = command.args(["-bail", "app.db", "CREATE TABLE t(x)"]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(why), "{told}");
        assert!(!work.path().join("app.db").exists());
    };
    let mut misspelt = preloaded(work.path(), "sqlite3");
    refused(misspelt.env("REPLICATED_REPLIKA", "file:///nowhere").env("REPLICATED_LOG", "stderr"), "REPLICATED_REPLICA");
    std::fs::remove_file(work.path().join("dist/replicated.so")).unwrap();
    refused(&mut replicated(work.path(), "sqlite3"), "the extension belongs beside replicated-preload.so");
}

/// A URI that names the VFS needs no variable; UTF-16 names do; after `sqlite3_shutdown` SQLite has forgotten what its default was.
#[test]
fn every_way_of_opening() {
    const SOURCE: &str = r#"
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
static int written(sqlite3 *db) {
  char *error = 0;
  int rc = sqlite3_exec(db, "CREATE TABLE t(x); PRAGMA replicated_sync; SELECT replicated_status()", 0, 0, &error);
  if (rc) fprintf(stderr, "%s\n", error);
  return sqlite3_close(db) || rc;
}
int main(int argc, char **argv) {
  static const unsigned short utf16[] = {'1', '6', '.', 'd', 'b', 0};
  sqlite3 *db;
  if (argc > 1) {
    sqlite3_config(SQLITE_CONFIG_URI, 1);
    return sqlite3_open(argv[1], &db) || written(db);
  }
  if (sqlite3_open16(utf16, &db) || written(db)) return 2;
  if (sqlite3_open("8.db", &db) || written(db)) return 3;
  if (sqlite3_shutdown() || sqlite3_initialize()) return 4;
  if (!strcmp(sqlite3_vfs_find(0)->zName, "replicated")) return 5;
  if (sqlite3_open_v2("again.db", &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, 0)) return 6;
  /* The functions are gone with the shutdown, the PRAGMA is not. */
  if (sqlite3_exec(db, "CREATE TABLE t(x); PRAGMA replicated_sync", 0, 0, 0) || sqlite3_close(db)) return 7;
  if (sqlite3_open_v2("other.db", &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "unix")) return 8;
  return sqlite3_exec(db, "CREATE TABLE t(x)", 0, 0, 0) || sqlite3_close(db);
}
"#;
    let work = laid_out();
    let Some(program) = built::c_program(work.path(), "opens", SOURCE, &[]) else { return };
    built::run(&mut replicated(work.path(), &program));
    for name in ["16.db", "8.db", "again.db"] {
        restored_equals(work.path(), name);
    }
    assert!(!work.path().join("other.db-replicated").exists());
    let uri = format!("file:by-uri.db?vfs=replicated&replica=file://{}/bucket/by-uri.db", work.path().display());
    built::run(preloaded(work.path(), &program).arg(uri));
    restored_equals(work.path(), "by-uri.db");
}

#[test]
fn it_exports_what_opens_a_database_and_nothing_else() {
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(replicated_testkit::host::preload()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().last()).collect();
    names.sort_unstable();
    assert_eq!(names, ["sqlite3_open", "sqlite3_open16", "sqlite3_open_v2"]);
}
