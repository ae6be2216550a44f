//! Without a replica the VFS changes nothing; with one, what would not be replicated is refused, and so are options that mean nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Host, Program, Row};
use replicated_testkit::sqlite::page_compare;

/// Statements of every kind, rollback journals and exclusive locking among them.
const SCRIPT: &[&str] = &[
    "PRAGMA journal_mode",
    "PRAGMA page_size=1024",
    "CREATE TABLE t(id INTEGER PRIMARY KEY, x)",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500) INSERT INTO t SELECT i, hex(zeroblob(i)) FROM n",
    "BEGIN",
    "DELETE FROM t WHERE id % 3 = 0",
    "ROLLBACK",
    "PRAGMA journal_mode=PERSIST",
    "UPDATE t SET x = 'persist' WHERE id % 5 = 0",
    "PRAGMA journal_mode=WAL",
    "PRAGMA wal_autocheckpoint=50",
    "UPDATE t SET x = 'wal' WHERE id % 7 = 0",
    "PRAGMA wal_checkpoint(FULL)",
    "PRAGMA synchronous",
    "PRAGMA mmap_size=1000000",
    "SELECT count(*), sum(length(x)) FROM t",
    "PRAGMA locking_mode=EXCLUSIVE",
    "INSERT INTO t VALUES (1000, 'exclusive')",
    "PRAGMA locking_mode=NORMAL",
    "SELECT count(*) FROM t",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA journal_mode=DELETE",
    "DELETE FROM t WHERE id % 2 = 0",
    "VACUUM",
    "CREATE TEMP TABLE temporary AS SELECT * FROM t",
    "PRAGMA temp_store=FILE",
    "SELECT count(*) FROM (SELECT a.x FROM t a, t b ORDER BY a.x || b.id LIMIT 100000)",
    "ATTACH ':memory:' AS m",
    "CREATE TABLE m.copy AS SELECT * FROM t",
    "SELECT count(*) FROM m.copy",
    "DETACH m",
    "PRAGMA integrity_check",
    "PRAGMA database_list",
    "PRAGMA journal_size_limit",
    "PRAGMA quick_check",
];

fn answers(host: &mut Host, uri: &str, folder: &Path) -> Vec<Result<Vec<Row>, String>> {
    let db = host.open(uri);
    let mut answers: Vec<_> = SCRIPT.iter().map(|sql| host.try_query(db, sql)).collect();
    let other = folder.join("other.db");
    answers.push(host.try_query(db, &format!("ATTACH '{}' AS other", other.display())));
    answers.push(host.try_query(db, "CREATE TABLE other.u AS SELECT * FROM t"));
    answers.push(host.try_query(db, "SELECT count(*) FROM other.u"));
    host.close(db);
    answers
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn without_a_replica_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    // The same path both times, since some answers show it.
    let folder = dir.path().join("now");
    let mut seen = Vec::new();
    for vfs in ["unix", "replicated", "default"] {
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("app.db");
        let env = if vfs == "default" { vec![("REPLICATED_DEFAULT".to_owned(), "1".to_owned())] } else { Vec::new() };
        let mut host = if vfs == "unix" { Host::plain(&[]) } else { Host::start(Program::Python, &env) };
        let parameters: &[(&str, &str)] = if vfs == "default" { &[] } else { &[("vfs", vfs)] };
        let answers = answers(&mut host, &host::uri(&path, parameters), &folder);
        host.quit();
        let names = names(&folder);
        let kept = dir.path().join(vfs);
        std::fs::rename(&folder, &kept).unwrap();
        seen.push((answers, names, kept));
    }
    let (expected, names, plain) = &seen[0];
    assert_eq!(names, &["app.db", "other.db"]);
    for (answers, theirs, folder) in &seen[1..] {
        assert_eq!(answers, expected);
        assert_eq!(theirs, names);
        for name in names {
            page_compare(&plain.join(name), &folder.join(name)).unwrap();
        }
    }
}

/// The same connection has a replicated database, a plain one, one in memory and temporary ones; only the first leaves traces.
#[test]
fn only_what_has_a_replica_is_replicated() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let mut host = Host::start(Program::Rust, &[]);
    let db = host.open(&host::replicated(&dir.path().join("app.db"), &bucket.url, &[]));
    host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1)");
    host.query(db, &format!("ATTACH '{}' AS plain", host::uri(&dir.path().join("plain.db"), &[])));
    host.run(
        db,
        "ATTACH ':memory:' AS m; CREATE TABLE m.t(x); INSERT INTO m.t VALUES (2); CREATE TEMP TABLE tt(x); INSERT INTO tt VALUES (3);
         CREATE TABLE plain.t(x); INSERT INTO plain.t SELECT x FROM main.t; BEGIN; UPDATE plain.t SET x = 5; UPDATE main.t SET x = 5; COMMIT",
    );
    host.close(db);
    assert_eq!(names(dir.path()), ["app.db", "app.db-replicated", "bucket", "plain.db"]);
}

/// Opens by a URI with a parameter, or with a variable set, and returns the line of the log.
fn refusal(parameters: &[(&str, &str)], env: &[(&str, &str)]) -> String {
    const SCRIPT: &str = r#"
import ctypes, sqlite3, sys
library = ctypes.CDLL("libsqlite3.so.0")
lines = []
@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
def log(_, code, message):
    lines.append(message.decode())
assert library.sqlite3_shutdown() == 0
SQLITE_CONFIG_LOG = 16
assert library.sqlite3_config(SQLITE_CONFIG_LOG, log, None) == 0
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
try:
    sqlite3.connect(sys.argv[2], uri=True).execute("SELECT 1 FROM sqlite_schema")
except sqlite3.OperationalError as error:
    assert "unable to open database file" in str(error), error
    print(*(line for line in lines if line.startswith("replicated: ")), sep="\n")
else:
    print("opened")
"#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut command = host::command(host::python(), &env);
    command.args(["-c", SCRIPT]).arg(host::extension()).arg(host::uri(&path, parameters));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!dir.path().join("app.db-replicated").exists());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_option_that_means_nothing_refuses_the_open() {
    let replica = ("replica", "file:///nowhere/bucket");
    let vfs = ("vfs", "replicated");
    for (parameters, env, told) in [
        (&[vfs, replica, ("sync_intervall", "1s")][..], &[][..], &["sync_intervall", "sync_interval"][..]),
        (&[vfs, replica, ("sync_interval", "soon")], &[], &["sync_interval", "soon", "10ms to 1h"]),
        (&[vfs, replica, ("burst", "0")], &[], &["burst", "\"0\"", "1 to 100"]),
        (&[vfs, ("replica", "ftp://x/y")], &[], &["replica", "ftp", "s3, gs"]),
        (&[vfs, ("burst", "x")], &[], &["burst", "\"x\""]),
        (&[vfs, replica], &[("REPLICATED_BURST", "many")], &["REPLICATED_BURST", "many", "1 to 100"]),
        (&[vfs, replica], &[("REPLICATED_BURTS", "4")], &["REPLICATED_BURTS", "REPLICATED_BURST"]),
        (&[vfs], &[("REPLICATED_REPLICA", "bucket")], &["REPLICATED_REPLICA", "bucket", "s3://"]),
    ] {
        let log = refusal(parameters, env);
        for word in told {
            assert!(log.contains(word), "{parameters:?} {env:?}: {word} is not in {log:?}");
        }
    }
    // Neither is an option that the user does not turn to us.
    assert_eq!(refusal(&[("vfs", "unix"), ("burst", "0")], &[]).trim(), "opened");
}

/// A replicated database in a rollback mode, or under exclusive locking, is never half-replicated: writes are refused, reads work.
#[test]
fn what_would_not_be_replicated_is_refused() {
    for which in [Program::Python, Program::Rust] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let mut plain = Host::plain(&[]);
        let db = plain.open(path.to_str().unwrap());
        plain.run(db, "CREATE TABLE t(x); INSERT INTO t VALUES (1)");
        plain.close(db);

        let bucket = Bucket::folder(&dir.path().join("bucket"));
        let mut host = Host::start(which, &[]);
        let uri = host::replicated(&path, &bucket.url, &[]);
        let db = host.open(&uri);
        assert_eq!(host.value(db, "SELECT x FROM t"), 1);
        assert!(host.try_query(db, "INSERT INTO t VALUES (2)").unwrap_err().contains("readonly"));
        assert!(host.try_query(db, "PRAGMA user_version=7").unwrap_err().contains("readonly"));
        assert_eq!(host.value(db, "PRAGMA journal_mode=WAL"), "wal");
        host.run(db, "INSERT INTO t VALUES (2)");
        for mode in ["DELETE", "truncate", "'persist'", "memory", "off"] {
            let error = host.try_query(db, &format!("PRAGMA journal_mode={mode}")).unwrap_err();
            assert!(error.contains("not replicated"), "{error}");
        }
        assert_eq!(host.value(db, "PRAGMA journal_mode"), "wal");
        let error = host.try_query(db, "PRAGMA locking_mode=EXCLUSIVE").unwrap_err();
        assert!(error.contains("locking_mode"), "{error}");
        assert_eq!(host.value(db, "PRAGMA locking_mode"), "normal");
        assert_eq!(host.value(db, "SELECT count(*) FROM t"), 2);
        host.run(db, "INSERT INTO t VALUES (3)");
        host.close(db);
        let restored = dir.path().join("restored.db");
        bucket.restore(&restored);
        page_compare(&path, &restored).unwrap();
    }
}

/// The extension's PRAGMAs: an unknown one is an error, and on a plain database they are SQLite's business.
#[test]
fn pragmas_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let mut host = Host::start(Program::Rust, &[]);
    let db = host.open(&host::replicated(&dir.path().join("app.db"), &bucket.url, &[]));
    assert!(host.try_query(db, "PRAGMA replicated_stats").unwrap_err().contains("replicated_status"));
    assert!(host.try_query(db, "PRAGMA replicated_sync='soon'").unwrap_err().contains("500ms"));
    // Nothing to wait for.
    assert_eq!(host.value(db, "PRAGMA replicated_sync"), "");
    host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(x)");
    assert_eq!(host.value(db, "PRAGMA replicated_sync"), "0000000000000002");
    let plain = host.open(&host::uri(&dir.path().join("plain.db"), &[("vfs", "replicated")]));
    assert!(host.query(plain, "PRAGMA replicated_status").is_empty());
}

/// One process replicates; a second one is told so instead of replicating as well.
#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let uri = host::replicated(&path, &bucket.url, &[]);
    let mut first = Host::start(Program::Rust, &[]);
    let db = first.open(&uri);
    first.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(x)");
    let mut second = Host::start(Program::Python, &[]);
    second.try_open(&uri).and_then(|db| second.try_query(db, "SELECT 1 FROM t")).unwrap_err();
    // Without a replica it may read and write, and what it writes is replicated with the first one's next commit.
    let plain = second.open(path.to_str().unwrap());
    second.run(plain, "INSERT INTO t VALUES (1)");
    first.run(db, "INSERT INTO t VALUES (2)");
    second.close(plain);
    first.close(db);
    // The lock goes with the last handle.
    let db = second.open(&uri);
    assert_eq!(second.value(db, "SELECT count(*) FROM t"), 2);
    second.close(db);
    let restored = dir.path().join("restored.db");
    bucket.restore(&restored);
    page_compare(&path, &restored).unwrap();
    assert_eq!(bucket.full_states(), 1);
}
