//! Hosts that end without closing their databases, are unloaded, interrupted by signals without end, or may not start a thread: a C program, which the
//! system's compiler builds, and Python. What they committed is in the bucket, or the next open sends it; nothing hangs, and nothing crashes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic)] // The helpers are part of tests.

mod built;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Host, Program};
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::{integrity_check, page_compare};
use rusqlite::Connection;

const SOURCE: &str = include_str!("exits.c");

struct Ending {
    server: Server,
    dir: tempfile::TempDir,
    bucket: Bucket,
    path: PathBuf,
}

impl Ending {
    fn new() -> Self {
        let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
        let bucket = Bucket::s3(&server, "apps/main");
        let path = dir.path().join("app.db");
        Self { server, dir, bucket, path }
    }

    fn uri(&self) -> String {
        host::replicated(&self.path, &self.bucket.url, &[("sync_interval", "20ms")])
    }

    fn program(&self) -> Option<PathBuf> {
        // The program's functions come before those of libraries only where it exports them.
        built::c_program(self.dir.path(), "exits", SOURCE, &["-rdynamic"])
    }

    /// Runs the C program, ended where it hangs.
    fn run(&self, program: &Path, before: &[&str], how: &str, rows: u32, after: &[&Path]) -> Output {
        let mut command = host::command("timeout", &self.bucket.env);
        command.args(["-s", "KILL", "100"]).args(before).arg(program).arg(how).arg(host::extension()).arg(self.uri());
        command.arg(rows.to_string()).args(after).output().unwrap()
    }

    /// How many rows there are after another process has opened the database, all of them in the bucket then.
    fn settled(&self) -> i64 {
        let mut host = Host::start(Program::Rust, &self.bucket.env);
        let db = host.open(&self.uri());
        host.sync(db);
        host.close(db);
        host.quit();
        let restored = self.path.with_extension("restored");
        self.bucket.restore(&restored);
        page_compare(&flattened(&self.path, self.dir.path()), &restored).unwrap();
        integrity_check(&restored).unwrap();
        assert!(self.server.requests().put > 0);
        Connection::open(&restored).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }
}

#[track_caller]
fn ended_well(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}{err}", output.status);
    out.into_owned()
}

#[test]
fn a_program_that_ends_without_closing() {
    for how in ["exit", "_exit", "close"] {
        let ending = Ending::new();
        let Some(program) = ending.program() else { return };
        for round in 1..=4 {
            ended_well(&ending.run(&program, &[], how, 50, &[]));
            if round % 2 == 0 {
                assert_eq!(ending.settled(), 50 * round, "{how}");
            }
        }
    }
}

#[test]
fn a_program_that_aborts() {
    use std::os::unix::process::ExitStatusExt;
    let ending = Ending::new();
    let Some(program) = ending.program() else { return };
    let output = ending.run(&program, &[], "abort", 50, &[]);
    // `timeout` ends in the same way, or tells it as shells do.
    assert!(output.status.signal() == Some(6) || output.status.code() == Some(134), "{output:?}");
    assert_eq!(ending.settled(), 50);
}

/// `exit` runs the handlers of a C program, and destructors, beside threads that commit and upload.
#[test]
fn a_program_that_ends_while_another_thread_commits() {
    for how in ["exit-while-committing", "_exit-while-committing"] {
        let ending = Ending::new();
        let Some(program) = ending.program() else { return };
        let mut before = 0;
        for _ in 0..5 {
            let told = ended_well(&ending.run(&program, &[], how, 200, &[]));
            let rows = ending.settled();
            assert!(rows >= before + told.trim().parse::<i64>().unwrap(), "{how}: {rows} after {before} and {told}");
            before = rows;
        }
    }
}

/// Handlers without `SA_RESTART`, thousands of times a second: calls of SQLite's threads are interrupted, ours are not.
#[test]
fn a_storm_of_signals() {
    let ending = Ending::new();
    let Some(program) = ending.program() else { return };
    let told = ended_well(&ending.run(&program, &[], "storm", 500, &[]));
    assert!(told.trim().parse::<u32>().unwrap() > 0);
    assert_eq!(ending.settled(), 500);
}

/// A database is not opened where no thread can be started; once one can, it is, without a new start of the program.
#[test]
fn a_host_that_may_not_start_threads() {
    let ending = Ending::new();
    let Some(program) = ending.program() else { return };
    ended_well(&ending.run(&program, &[], "no-threads", 50, &[]));
    assert_eq!(ending.settled(), 50);
}

/// A program that knows nothing of SQLite loads a library that does, and unloads it, SQLite with it.
#[test]
fn a_plugin_that_is_unloaded() {
    for how in ["plugin-closed", "plugin-open"] {
        let ending = Ending::new();
        if ending.program().is_none() {
            return;
        }
        let plugin = built::c_program(ending.dir.path(), "plugin", SOURCE, &["-shared", "-fPIC", "-DPLUGIN"]).unwrap();
        // It has no SQLite of its own: what the linker finds no use for is left out.
        let program = built::c_program(ending.dir.path(), "bare", BARE, &[]).unwrap();
        ended_well(&ending.run(&program, &[], how, 50, &[&plugin]));
        assert_eq!(ending.settled(), 50, "{how}");
    }
}

/// Python ends with threads that commit, without closing anything, with and without its finalizers.
#[test]
fn an_interpreter_that_shuts_down() {
    const SCRIPT: &str = r#"
import os, sqlite3, sys, threading
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
db = sqlite3.connect(sys.argv[2], uri=True, isolation_level=None, check_same_thread=False, timeout=60)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS t(x)")
done = threading.Event()
def write():
    for i in range(1000000):
        db.execute("INSERT INTO t VALUES (randomblob(300))")
        if i == 100: done.set()
threading.Thread(target=write, daemon=True).start()
done.wait()
print(db.execute("SELECT count(*) FROM t").fetchone()[0], flush=True)
if sys.argv[3] == "_exit": os._exit(0)
"#;
    if !built::has_python() {
        return;
    }
    for how in ["_exit", "end"] {
        let ending = Ending::new();
        for _ in 0..3 {
            let mut command = host::command("timeout", &ending.bucket.env);
            command.args(["-s", "KILL", "100", host::python(), "-c", SCRIPT]).arg(host::extension()).arg(ending.uri()).arg(how);
            let told = ended_well(&command.output().unwrap());
            assert!(ending.settled() >= told.trim().parse::<i64>().unwrap(), "{how}");
        }
    }
}

/// No invalid read or write in the extension, however the program ends.
#[test]
fn valgrind_finds_nothing() {
    let found = Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        replicated_testkit::tools::skipped("valgrind is not installed");
        return;
    }
    let memcheck = ["valgrind", "-q", "--error-exitcode=99", "--undef-value-errors=no"];
    for how in ["close", "exit"] {
        let ending = Ending::new();
        let Some(program) = ending.program() else { return };
        ended_well(&ending.run(&program, &memcheck, how, 20, &[]));
        assert_eq!(ending.settled(), 20, "{how}");
    }
}

const BARE: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
  int (*plugin)(const char *, const char *, const char *, int);
  void *library = argc < 6 ? 0 : dlopen(argv[5], RTLD_NOW | RTLD_LOCAL);
  if (!library) { fprintf(stderr, "%s\n", dlerror()); return 2; }
  *(void **)&plugin = dlsym(library, "plugin");
  if (!plugin || plugin(argv[1] + strlen("plugin-"), argv[2], argv[3], atoi(argv[4]))) return 3;
  if (dlclose(library)) return 4;
  /* Somewhere for what was unloaded to be missed. */
  usleep(300000);
  return 0;
}
"#;
