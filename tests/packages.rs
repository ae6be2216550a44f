//! The packages, each made of this build, installed into a clean place and used from there: written to through it, and restored by the tool in it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic, clippy::print_stdout)] // The helpers are part of tests.

use std::path::{Path, PathBuf};

use replicated_testkit::host;

mod built;

/// Makes a package of this build, without its debug information.
fn made(work: &Path, kind: &str) -> PathBuf {
    built::lay_out_dist(work);
    let (extension, tool) = (work.join("dist/replicated.so"), work.join("dist/replicated"));
    if built::has("strip", &["--version"]) {
        built::run(built::command("strip").args([&extension, &tool]));
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package.py");
    let mut make = built::command(host::python());
    make.arg(script).arg(kind).arg("--extension").arg(extension).arg("--tool").arg(tool).arg("--out").arg(work.join("out"));
    PathBuf::from(built::run(&mut make).trim())
}

/// That the restored database has one row.
fn is_restored(restored: &Path) {
    let db = rusqlite::Connection::open(restored).unwrap();
    let rows: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
}

#[test]
fn the_python_wheel() {
    if !built::has_python() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let wheel = made(work.path(), "wheel");
    let environment = work.path().join("venv");
    built::run(built::command(host::python()).args(["-m", "venv"]).arg(&environment));
    let (python, pip) = (environment.join("bin/python"), environment.join("bin/pip"));
    built::run(built::command(pip).args(["install", "--quiet", "--no-index"]).arg(wheel));
    let program = "import os, sqlite3, sys, replicated\n\
                   assert os.path.exists(replicated.path()) and replicated.__version__\n\
                   db = replicated.connect('my app.db', replica=sys.argv[1], options={'sync_interval': '20ms', 'refuse_lost_tail': True})\n\
                   db.executescript('PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1)')\n\
                   db.execute('PRAGMA replicated_sync').fetchall()\n\
                   other = sqlite3.connect(':memory:')\n\
                   replicated.load(other)\n\
                   try:\n    other.load_extension(replicated.path())\n    sys.exit('it is still allowed')\n\
                   except sqlite3.OperationalError:\n    pass\n";
    let bucket = format!("file://{}", work.path().join("a bucket").display());
    built::run(built::command(python).args(["-c", program, &bucket]).current_dir(work.path()));
    let restored = work.path().join("restored.db");
    built::run(built::command(environment.join("bin/replicated")).args(["restore", &bucket, "-o"]).arg(&restored));
    is_restored(&restored);
}

#[test]
fn the_npm_package() {
    if !built::has_python() || !built::has("npm", &["--version"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let package = made(work.path(), "npm");
    let application = work.path().join("application");
    std::fs::create_dir(&application).unwrap();
    built::run(
        built::command("npm").args(["install", "--silent", "--offline", "--no-audit", "--no-fund"]).arg(package).current_dir(&application),
    );
    // What is there of drivers differs; the system's Python stands for one that takes a file to load and a URI.
    let bucket = format!("file://{}", work.path().join("bucket").display());
    let program = "const r = require('sqlite-replicated');\n\
                   r.load({ loadExtension(file) { require('node:fs').accessSync(file); } });\n\
                   console.log(JSON.stringify([r.getLoadablePath(), r.uri('my app.db', { replica: process.argv[1] })]));";
    let told = built::run(built::command("node").args(["-e", program, &bucket]).current_dir(&application));
    let told: Vec<String> = serde_json::from_str(&told).unwrap();
    let [extension, uri] = told.as_slice() else { panic!("{told:?}") };
    let driver = "import sqlite3, sys\n\
                  loader = sqlite3.connect(':memory:')\n\
                  loader.enable_load_extension(True)\n\
                  loader.load_extension(sys.argv[1])\n\
                  db = sqlite3.connect(sys.argv[2], uri=True)\n\
                  db.executescript('PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1)')\n\
                  db.execute('PRAGMA replicated_sync').fetchall()\n";
    built::run(built::command(host::python()).args(["-c", driver, extension, uri]));
    assert!(application.join("my app.db").exists());
    let restored = work.path().join("restored.db");
    built::run(built::command(application.join("node_modules/.bin/replicated")).args(["restore", &bucket, "-o"]).arg(&restored));
    is_restored(&restored);
}

#[test]
fn the_debian_package() {
    if !built::has_python() || !built::has("dpkg-deb", &["--version"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let package = made(work.path(), "deb");
    let root = work.path().join("root");
    built::run(built::command("dpkg-deb").arg("--extract").arg(&package).arg(&root));
    let told = built::run(built::command("dpkg-deb").arg("--info").arg(&package));
    assert!(told.contains("Package: sqlite-replicated") && told.contains("libc6 (>= 2."), "{told}");
    let listed = built::run(built::command("dpkg-deb").arg("--contents").arg(&package));
    assert!(listed.lines().all(|line| line.contains("root/root")), "{listed}");
    let library = std::fs::read_dir(root.join("usr/lib"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("replicated.so").exists());
    let bucket = format!("file://{}", work.path().join("bucket").display());
    if built::has("sqlite3", &["-version"]) {
        // By its bare name, as from where the package puts it.
        let script = format!(
            ".load replicated\n.open 'file:{}?vfs=replicated&replica={bucket}'\nPRAGMA journal_mode=WAL;\nCREATE TABLE t(x);\nINSERT INTO t VALUES (1);\nPRAGMA replicated_sync;\n",
            work.path().join("app.db").display()
        );
        let mut piped = built::command("sh");
        piped.args(["-c", "printf '%s' \"$1\" | sqlite3 -bail", "sh", &script]).env("LD_LIBRARY_PATH", library.unwrap());
        built::run(&mut piped);
        let restored = work.path().join("restored.db");
        built::run(built::command(root.join("usr/bin/replicated")).args(["restore", &bucket, "-o"]).arg(&restored));
        is_restored(&restored);
    }
    let units = root.join("usr/lib/systemd/system");
    let mut names: Vec<_> = std::fs::read_dir(&units).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["replicated-maintain@.service", "replicated-verify@.service", "replicated-verify@.timer"]);
}

/// What the units start is understood by the tool that they start; where systemd is there, it understands the units.
#[test]
fn the_systemd_units() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    let bucket = tempfile::tempdir().unwrap();
    let url = format!("file://{}", bucket.path().display());
    for (unit, empty_bucket_says) in [("replicated-maintain@.service", 0), ("replicated-verify@.service", 1)] {
        let text = std::fs::read_to_string(units.join(unit)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/replicated ")).unwrap();
        // Once, and not for ever.
        let arguments = line.replace("${URL}", &url).replace(" --every 5m", "");
        let status = built::command(env!("CARGO_BIN_EXE_replicated")).args(arguments.split(' ')).output().unwrap().status;
        assert_eq!(status.code(), Some(empty_bucket_says), "{arguments}");
        assert!(line.contains("--every 5m") || unit.contains("verify"));
    }
    if built::has("systemd-analyze", &["--version"]) {
        let work = tempfile::tempdir().unwrap();
        let mut copies = Vec::new();
        for unit in ["replicated-maintain@.service", "replicated-verify@.service", "replicated-verify@.timer"] {
            let copy = work.path().join(unit.replace('@', "@app"));
            let text = std::fs::read_to_string(units.join(unit)).unwrap();
            std::fs::write(&copy, text.replace("/usr/bin/replicated", env!("CARGO_BIN_EXE_replicated"))).unwrap();
            copies.push(copy);
        }
        let output = built::command("systemd-analyze").args(["verify", "--man=no"]).args(&copies).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        let ours: Vec<&str> = told.lines().filter(|line| line.contains("replicated-")).collect();
        assert!(ours.is_empty(), "{told}");
    }
}
