//! Where nothing is replicated the VFS is not there: the same results, the same bytes, no file more. Where something is, what would not be
//! replicated whole is refused with a reason.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Host, Program};
use replicated_testkit::sqlite::{integrity_check, page_compare};

/// A folder with a database and a folder for its replica.
struct Place {
    dir: tempfile::TempDir,
    bucket: Bucket,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        Self { dir, bucket }
    }

    fn path(&self) -> PathBuf {
        self.file("app.db")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn uri(&self, more: &[(&str, &str)]) -> String {
        host::replicated(&self.path(), &self.bucket.url, more)
    }

    /// A database in a journal mode, made without us.
    fn make(&self, journal_mode: &str) {
        let plain = rusqlite::Connection::open(self.path()).unwrap();
        plain.query_row(&format!("PRAGMA journal_mode={journal_mode}"), [], |_| Ok(())).unwrap();
        plain.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t(x) VALUES ('one'), ('two')").unwrap();
        plain.close().unwrap();
    }

    /// Neither the directory beside the database nor anything in the bucket.
    fn assert_untouched(&self) {
        assert!(!self.file("app.db-replicated").exists());
        assert!(!self.file("bucket").exists());
    }

    /// The bucket's newest state is the database's, which nobody has open.
    fn assert_restored_equals(&self) {
        let restored = self.file("restored.db");
        self.bucket.restore(&restored);
        page_compare(&flattened(&self.path(), self.dir.path()), &restored).unwrap();
        integrity_check(&restored).unwrap();
    }
}

fn variables(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What the sqlite3 shell says to some lines, errors and log included. It has loaded the extension.
fn shell(env: &[(&str, &str)], lines: &str) -> String {
    let mut command = host::command("sqlite3", &variables(env));
    command.arg("-batch").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let input = format!(".load {}\n.log stdout\n{lines}\n", host::extension().display());
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

/// The VFS of an opened database, by SQLite's own file control.
fn vfs_name(env: &[(&str, &str)], uri: &str) -> String {
    shell(env, &format!(".open {uri}\nSELECT count(*) FROM sqlite_schema;\n.vfsname"))
        .lines()
        .rfind(|line| !line.starts_with('('))
        .unwrap_or_default()
        .to_owned()
}

/// Everything that SQLite does to files, one statement each. `{other}` is the name of one more database.
const STATEMENTS: &[&str] = &[
    "PRAGMA page_size=1024",
    "PRAGMA journal_mode",
    "CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT UNIQUE)",
    "INSERT INTO t(x) VALUES ('one'), ('two')",
    "INSERT INTO t(x) VALUES ('one')",
    "PRAGMA journal_mode=TRUNCATE",
    "UPDATE t SET x = x || x",
    "PRAGMA journal_mode=PERSIST",
    "DELETE FROM t WHERE id = 1",
    "PRAGMA journal_mode=MEMORY",
    "INSERT INTO t(x) VALUES ('three')",
    "PRAGMA journal_mode=WAL",
    "PRAGMA replicated_status",
    "PRAGMA replicated_sync",
    "PRAGMA wal_autocheckpoint=10",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300) INSERT INTO t(x) SELECT hex(i * 1000003) FROM n",
    "PRAGMA wal_checkpoint",
    "BEGIN",
    "SAVEPOINT a",
    "UPDATE t SET x = x || '-' || id",
    "ROLLBACK TO a",
    "UPDATE t SET x = id || '-' || x",
    "COMMIT",
    "PRAGMA wal_checkpoint(FULL)",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA journal_size_limit=4096",
    "PRAGMA locking_mode=EXCLUSIVE",
    "INSERT INTO t(x) VALUES ('alone')",
    "PRAGMA locking_mode=NORMAL",
    "SELECT count(*), max(id) FROM t",
    "PRAGMA mmap_size=1048576",
    "SELECT sum(length(x)) FROM t",
    "ATTACH '{other}' AS other",
    "PRAGMA other.journal_mode",
    "CREATE TABLE other.u AS SELECT * FROM t WHERE id < 20",
    "BEGIN",
    "DELETE FROM t WHERE id % 3 = 0",
    "DELETE FROM u WHERE id % 3 = 0",
    "COMMIT",
    "ATTACH ':memory:' AS mem",
    "CREATE TABLE mem.v AS SELECT * FROM u",
    "ATTACH '' AS scratch",
    "CREATE TABLE scratch.w AS SELECT * FROM t",
    "PRAGMA temp_store=FILE",
    "CREATE TEMP TABLE y AS SELECT * FROM t ORDER BY x DESC",
    "SELECT (SELECT count(*) FROM v), (SELECT count(*) FROM w), (SELECT count(*) FROM y)",
    "DETACH other",
    "DETACH mem",
    "PRAGMA journal_mode=DELETE",
    "VACUUM",
    "PRAGMA auto_vacuum=INCREMENTAL",
    "PRAGMA page_size=4096",
    "VACUUM",
    "PRAGMA page_size",
    "DELETE FROM t WHERE id > 100",
    "PRAGMA incremental_vacuum",
    "PRAGMA journal_mode=WAL",
    "INSERT INTO t(x) VALUES ('last')",
    "PRAGMA integrity_check",
    "PRAGMA database_list",
    "SELECT * FROM nowhere",
    "PRAGMA locking_mode",
    "PRAGMA synchronous",
];

/// Names and sizes of all files, which a host sees after each statement.
fn listing(dir: &Path) -> Vec<(String, u64)> {
    let files = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = files.map(|f| (f.file_name().into_string().unwrap(), f.metadata().unwrap().len())).collect();
    files.sort();
    files
}

/// Answers, files after each statement, and the databases in the end.
type Course = (Vec<Result<Vec<host::Row>, String>>, Vec<Vec<(String, u64)>>, Vec<u8>, Vec<u8>);

/// Both connections read and write in turn, so that every lock is met.
fn course(mut host: Host, uri_of: impl Fn(&Path) -> String) -> Course {
    let place = Place::new();
    let (first, second) = (host.open(&uri_of(&place.path())), host.open(&uri_of(&place.path())));
    for db in [first, second] {
        host.run(db, "PRAGMA busy_timeout=0");
    }
    let (mut answers, mut files) = (Vec::new(), Vec::new());
    let own_place = |text: String| text.replace(place.dir.path().to_str().unwrap(), "");
    for statement in STATEMENTS {
        let sql = statement.replace("{other}", &uri_of(&place.file("other.db")));
        for (db, sql) in [(first, sql.as_str()), (second, "SELECT count(*) FROM sqlite_schema")] {
            let answer = host.try_query(db, sql).map_err(own_place);
            let text = serde_json::to_string(&answer.as_ref().ok()).unwrap();
            answers.push(answer.map(|_| serde_json::from_str::<Option<Vec<host::Row>>>(&own_place(text)).unwrap().unwrap_or_default()));
        }
        files.push(listing(place.dir.path()));
    }
    host.close(first);
    host.close(second);
    host.quit();
    files.push(listing(place.dir.path()));
    (answers, files, std::fs::read(place.path()).unwrap(), std::fs::read(place.file("other.db")).unwrap())
}

fn assert_same_course(host: Host, uri_of: impl Fn(&Path) -> String) {
    let plain = course(Host::plain(&[]), |path| host::uri(path, &[]));
    let ours = course(host, uri_of);
    for (at, (plain, ours)) in plain.0.iter().zip(&ours.0).enumerate() {
        assert_eq!(plain, ours, "{}", STATEMENTS[at / 2]);
    }
    for (at, (plain, ours)) in plain.1.iter().zip(&ours.1).enumerate() {
        assert_eq!(plain, ours, "after {}", STATEMENTS.get(at).unwrap_or(&"the close"));
    }
    assert!(plain.2 == ours.2 && plain.3 == ours.3, "the database files differ");
    assert!(plain.1.last().unwrap().iter().all(|(name, _)| name == "app.db" || name == "other.db"));
}

#[test]
fn without_a_replica_everything_is_as_without_the_vfs() {
    assert_same_course(Host::start(Program::Python, &[]), |path| host::uri(path, &[("vfs", "replicated")]));
}

#[test]
fn as_the_default_vfs_without_a_replica_everything_is_as_without_it() {
    let env = variables(&[("REPLICATED_DEFAULT", "1")]);
    assert_same_course(Host::start(Program::Python, &env), |path| path.display().to_string());
}

#[test]
fn an_empty_replica_switches_off_what_the_environment_says() {
    let bucket = tempfile::tempdir().unwrap();
    let replica = format!("file://{}/{{name}}", bucket.path().display());
    let env = variables(&[("REPLICATED_DEFAULT", "1"), ("REPLICATED_REPLICA", &replica)]);
    assert_same_course(Host::start(Program::Python, &env), |path| host::uri(path, &[("replica", "")]));
    assert_eq!(listing(bucket.path()), []);
}

#[test]
fn the_vfs_says_its_name_where_it_replicates_and_only_there() {
    let place = Place::new();
    place.make("WAL");
    let plain = host::uri(&place.path(), &[]);
    assert_eq!(vfs_name(&[], &plain), "unix");
    assert_eq!(vfs_name(&[], &host::uri(&place.path(), &[("vfs", "replicated")])), "unix");
    assert_eq!(vfs_name(&[("REPLICATED_DEFAULT", "1")], &plain), "unix");
    assert_eq!(vfs_name(&[], &place.uri(&[("mode", "ro")])), "unix");
    assert_eq!(vfs_name(&[], &place.uri(&[("immutable", "1")])), "unix");
    place.assert_untouched();
    assert_eq!(vfs_name(&[], &place.uri(&[])), "replicated/unix");
    let replica = [("REPLICATED_DEFAULT", "1"), ("REPLICATED_REPLICA", place.bucket.url.as_str())];
    assert_eq!(vfs_name(&replica, &plain), "replicated/unix");
    assert!(place.file("app.db-replicated").exists());
}

/// A replica in the environment does nothing to what is opened to be read, or is in no file of its own.
#[test]
fn what_is_only_read_or_only_in_memory_passes_through() {
    let place = Place::new();
    place.make("WAL");
    let env = variables(&[("REPLICATED_DEFAULT", "1"), ("REPLICATED_REPLICA", &place.bucket.url)]);
    for more in [[("mode", "ro")], [("immutable", "1")]] {
        let mut host = Host::start(Program::Python, &env);
        let db = host.open(&host::uri(&place.path(), &more));
        assert_eq!(host.value(db, "SELECT group_concat(x) FROM t"), "one,two");
        assert!(host.try_query(db, "DELETE FROM t").unwrap_err().contains("readonly"));
        assert_eq!(host.query(db, "PRAGMA replicated_status"), Vec::<host::Row>::new());
        host.close(db);
        host.quit();
        place.assert_untouched();
    }
    let mut host = Host::start(Program::Python, &env);
    for uri in [":memory:", "file::memory:?vfs=replicated", "", "file:shared?mode=memory&cache=shared", "file:x?mode=memory&vfs=replicated"]
    {
        let db = host.open(uri);
        host.run(db, "CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(10000000)); PRAGMA journal_mode=DELETE; UPDATE t SET x = 1");
        assert_eq!(host.value(db, "SELECT x FROM t"), 1);
        host.close(db);
    }
    host.quit();
    place.assert_untouched();
}

/// Temporary files, attached databases and in-memory ones beside a replicated database do what they do without it.
#[test]
fn what_stands_beside_a_replicated_database_passes_through() {
    let place = Place::new();
    let other = place.file("other.db");
    let mut host = Host::start(Program::Python, &[]);
    let db = host.open(&place.uri(&[]));
    host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(x); PRAGMA temp_store=FILE; CREATE TEMP TABLE y(x)");
    host.query(db, &format!("ATTACH '{}' AS other", other.display()));
    host.run(
        db,
        "ATTACH ':memory:' AS mem; ATTACH '' AS scratch; CREATE TABLE other.u(x); CREATE TABLE mem.v(x); CREATE TABLE scratch.w(x)",
    );
    host.run(db, "BEGIN; INSERT INTO t VALUES (1); INSERT INTO u VALUES (2); INSERT INTO v VALUES (3); INSERT INTO w VALUES (4); INSERT INTO y VALUES (5); COMMIT");
    host.run(db, "BEGIN; DELETE FROM t; DELETE FROM u; DELETE FROM v; DELETE FROM w; DELETE FROM y; ROLLBACK");
    for (table, value) in [("t", 1), ("u", 2), ("v", 3), ("w", 4), ("y", 5)] {
        assert_eq!(host.value(db, &format!("SELECT x FROM {table}")), value);
    }
    for mode in ["truncate", "memory", "delete"] {
        assert_eq!(host.value(db, &format!("PRAGMA other.journal_mode={mode}")), mode);
        host.run(db, "INSERT INTO other.u VALUES (6)");
    }
    host.close(db);
    host.quit();
    assert!(!place.file("other.db-replicated").exists());
    integrity_check(&other).unwrap();
    place.assert_restored_equals();
}

/// A database that one process replicates is read by others.
#[test]
fn a_replicated_database_is_read_by_other_processes() {
    let place = Place::new();
    place.make("WAL");
    let mut writer = Host::start(Program::Python, &[]);
    let db = writer.open(&place.uri(&[]));
    writer.run(db, "INSERT INTO t(x) VALUES ('three')");
    let mut reader = Host::start(Program::Python, &[]);
    let read = reader.open(&place.uri(&[("mode", "ro")]));
    assert_eq!(reader.value(read, "SELECT group_concat(x) FROM t"), "one,two,three");
    writer.run(db, "INSERT INTO t(x) VALUES ('four')");
    assert_eq!(reader.value(read, "SELECT count(*) FROM t"), 4);
    reader.close(read);
    writer.run(db, "INSERT INTO t(x) VALUES ('five')");
    writer.close(db);
    place.assert_restored_equals();
}

/// Refused opens: the URI's parameters, the environment, and what both the SQL function and the log must say.
#[test]
fn a_wrong_option_refuses_the_open_and_is_explained() {
    let place = Place::new();
    let replica = ("replica", place.bucket.url.as_str());
    let vfs = ("vfs", "replicated");
    type Pairs<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(Pairs<'_>, Pairs<'_>, &[&str])] = &[
        (&[vfs, replica, ("sync_intervall", "5s")], &[], &["parameter sync_intervall", "did you mean sync_interval?"]),
        (
            &[vfs, replica, ("something", "secret")],
            &[],
            &[
                "unknown parameter something",
                "allowed are replica, replica2, restore, restore_from, restore_wait, restore_threads, on_conflict, lease, lease_wait, sync_interval",
            ],
        ),
        (&[vfs, ("burst", "many")], &[], &["parameter burst", "got \"many\"", "allowed is a number from 1 to 100"]),
        (&[vfs, replica, ("burst", "101")], &[], &["parameter burst", "got \"101\"", "allowed is a number from 1 to 100"]),
        (&[vfs, replica, ("sync_interval", "5")], &[], &["parameter sync_interval", "got \"5\"", "unit is missing", "500ms, 1s, 5m"]),
        (&[vfs, replica, ("close_timeout", "11m")], &[], &["parameter close_timeout", "got \"11m\"", "too long", "from 0s to 10m"]),
        (&[vfs, replica, ("max_local", "64M")], &[], &["parameter max_local", "got \"64M\"", "such as 64MiB"]),
        (&[vfs, replica, ("log", "relative.log")], &[], &["parameter log", "got \"relative.log\"", "sqlite, stderr or an absolute path"]),
        (&[vfs, replica, ("log_level", "loud")], &[], &["parameter log_level", "got \"loud\"", "error, warn, info, debug or off"]),
        (&[vfs, replica, ("path_style", "maybe")], &[], &["parameter path_style", "got \"maybe\"", "true or false"]),
        (&[vfs, replica, ("adopt", "xyz")], &[], &["parameter adopt", "got \"xyz\"", "hexadecimal"]),
        (&[vfs, replica, replica], &[], &["parameter replica is given twice"]),
        (&[vfs, ("replica", "bucket/app")], &[], &["parameter replica", "got \"bucket/app\"", "s3://bucket/path"]),
        (&[vfs, ("replica", "s3://bucket/{nam}")], &[], &["parameter replica", "got \"s3://bucket/{nam}\"", "there are {name} and {dir}"]),
        (&[vfs, ("replica", "ftp://host/app")], &[], &["replica", "\"ftp\"", "s3, gs, abs or file"]),
        (&[vfs, ("replica", "file://relative")], &[], &["replica", "file://relative", "absolute path"]),
        (&[vfs, ("replica", "s3://b/p?colour=red")], &[], &["replica", "\"colour\"", "allowed are endpoint"]),
        (&[vfs, replica], &[("REPLICATED_BURST", "0")], &["environment variable REPLICATED_BURST", "got \"0\"", "from 1 to 100"]),
        (
            &[vfs, replica],
            &[("REPLICATED_SYNCINTERVAL", "1s")],
            &["environment variable REPLICATED_SYNCINTERVAL", "did you mean REPLICATED_SYNC_INTERVAL?"],
        ),
        (
            &[vfs, replica],
            &[("REPLICATED_WHATEVER_IT_IS", "1")],
            &["unknown environment variable REPLICATED_WHATEVER_IT_IS", "REPLICATED_REPLICA"],
        ),
        (
            &[vfs],
            &[("REPLICATED_REPLICA", "nonsense")],
            &["environment variable REPLICATED_REPLICA", "got \"nonsense\"", "s3://bucket/path"],
        ),
    ];
    for (parameters, env, told) in cases {
        let uri = host::uri(&place.path(), parameters);
        let said = shell(env, &format!("ATTACH '{uri}' AS x;\nSELECT 'reason: ' || replicated_last_error();"));
        assert!(said.contains("unable to open database"), "{uri} {env:?} was opened: {said}");
        let reason = said.lines().find_map(|line| line.strip_prefix("reason: ")).unwrap_or_default();
        for part in *told {
            assert!(reason.contains(part), "{part:?} is not in {reason:?}");
        }
        // The log's line may be cut at the end: SQLite allows it some two hundred bytes.
        let logged = said.lines().find(|line| line.contains("app.db: the database is not opened: "));
        assert!(logged.is_some_and(|line| line.contains(told[0]) && !line.contains("secret")), "{said}");
        assert!(!reason.contains("secret"), "{reason}");
        place.assert_untouched();
    }
    // Where the system refuses, that is told, and not what was wrong before.
    let folder = place.file("not-there").join("app.db");
    let uri = host::uri(&folder, &[vfs, replica]);
    let missing = host::uri(&place.file("missing.db"), &[vfs, replica, ("mode", "rw")]);
    for (uri, told) in [(uri, "its folder is not there"), (missing, "it is not there, and this connection makes none")] {
        let said = shell(
            &[],
            &format!(
                "ATTACH '{}' AS x;\nATTACH '{uri}' AS y;\nSELECT 'reason: ' || replicated_last_error();",
                host::uri(&place.path(), &[vfs, ("replica", "nonsense")])
            ),
        );
        let reason = said.lines().find_map(|line| line.strip_prefix("reason: ")).unwrap_or_default();
        assert!(reason.contains("the system does not open this database") && reason.contains(told), "{said}");
    }
    // What is right goes on after what was wrong, and nothing was refused where nothing was.
    let said = shell(&[], &format!("SELECT replicated_last_error() IS NULL;\nATTACH '{}' AS x;\nSELECT 'opened';", place.uri(&[])));
    assert!(said.contains("1\nopened\n"), "{said}");
}

/// What the log says goes into the file that the database names.
fn log_of(place: &Place) -> String {
    std::fs::read_to_string(place.file("log")).unwrap_or_default()
}

/// A PRAGMA without a schema's name is shown to the main database's VFS only, and changes the attached ones as well.
#[test]
fn pragmas_of_the_main_database_reach_an_attached_one_unseen_and_are_heeded() {
    let place = Place::new();
    place.make("WAL");
    let mut host = Host::start(Program::Python, &[]);
    let db = host.open(place.file("main.db").to_str().unwrap());
    let uri = place.uri(&[("log", place.file("log").to_str().unwrap()), ("sync_interval", "10ms")]);
    host.query(db, &format!("ATTACH '{uri}' AS r"));
    host.run(db, "INSERT INTO r.t(x) VALUES ('three')");
    host.query(db, "PRAGMA r.replicated_sync='100s'");

    host.run(db, "PRAGMA locking_mode=EXCLUSIVE; INSERT INTO r.t(x) VALUES ('four')");
    assert_eq!(host.value(db, "PRAGMA r.locking_mode"), "exclusive");
    host.run(db, "PRAGMA locking_mode=NORMAL; SELECT count(*) FROM r.t; INSERT INTO r.t(x) VALUES ('five')");
    host.query(db, "PRAGMA journal_mode=PERSIST");
    assert_eq!(host.value(db, "PRAGMA r.journal_mode"), "persist");
    host.run(db, "INSERT INTO r.t(x) VALUES ('six')");
    host.query(db, "PRAGMA journal_mode=OFF");
    host.run(db, "INSERT INTO r.t(x) VALUES ('seven')");
    host.query(db, "PRAGMA r.replicated_sync='100s'");
    assert_eq!(host.value(db, "SELECT group_concat(x) FROM r.t"), "one,two,three,four,five,six,seven");
    host.close(db);
    host.quit();
    place.assert_restored_equals();
    assert_eq!(place.bucket.full_states(), 1, "{}", log_of(&place));
}

/// What several processes do together is in `processes.rs`; here the shell comes and goes beside a program.
#[test]
fn a_shell_joins_a_program_and_leaves_it_alone() {
    let place = Place::new();
    place.make("WAL");
    let mut first = Host::start(Program::Python, &[]);
    let db = first.open(&place.uri(&[]));
    first.run(db, "INSERT INTO t(x) VALUES ('three')");
    let joins = |x: &str| {
        let said = shell(&[], &format!("ATTACH '{}' AS x;\nINSERT INTO x.t(x) VALUES ('{x}');\nPRAGMA x.replicated_sync;", place.uri(&[])));
        assert!(!said.contains("unable"), "{said}");
    };
    joins("four");
    // Its close took no lock of the first's away.
    first.run(db, "INSERT INTO t(x) VALUES ('five')");
    joins("six");
    first.close(db);
    joins("seven");
    let db = first.open(&place.uri(&[]));
    assert_eq!(first.value(db, "SELECT group_concat(x) FROM t"), "one,two,three,four,five,six,seven");
    first.close(db);
    first.quit();
    place.assert_restored_equals();
    assert_eq!(place.bucket.level(replicated::store::SNAPSHOT_LEVEL).len(), 1);
}

#[test]
fn a_replica_url_serves_one_database_of_a_process() {
    let place = Place::new();
    let other = host::replicated(&place.file("other.db"), &place.bucket.url, &[]);
    let said = shell(
        &[],
        &format!(
            "ATTACH '{}' AS one;\nPRAGMA one.journal_mode=WAL;\nCREATE TABLE one.t(x);\nATTACH '{other}' AS two;\n\
             SELECT 'reason: ' || replicated_last_error();\nINSERT INTO one.t VALUES (1);\nPRAGMA one.replicated_sync;\n",
            place.uri(&[])
        ),
    );
    let reason = said.lines().find_map(|line| line.strip_prefix("reason: ")).unwrap_or_default();
    for part in ["option replica: ", &place.bucket.url, "is in use for", "app.db", "other.db", "a replica URL of its own"] {
        assert!(reason.contains(part), "{part}: {said}");
    }
    assert!(!place.file("other.db-replicated").exists());
    place.assert_restored_equals();
    // One database with two replicas is as wrong.
    let second = format!("{}2", place.bucket.url);
    let again = host::replicated(&place.path(), &second, &[]);
    let said = shell(
        &[],
        &format!("ATTACH '{}' AS one;\nATTACH '{again}' AS two;\nSELECT 'reason: ' || replicated_last_error();", place.uri(&[])),
    );
    assert!(said.contains("is open with") && said.contains(&second), "{said}");
}

/// The PRAGMAs of ours: one row and one column, which SQLite names by the value; a misspelt one is told.
#[test]
fn the_pragmas_answer_with_a_named_column() {
    let place = Place::new();
    place.make("WAL");
    let said = shell(&[], &format!(".open {}\n.headers on\n.mode csv\nPRAGMA replicated_sync;\nPRAGMA replicated_stat;", place.uri(&[])));
    assert_eq!(said.lines().filter(|line| *line == "0000000000000002").count(), 2, "{said}");
    assert!(
        said.contains(
            "unknown PRAGMA replicated_stat: there are replicated_durability, replicated_status, replicated_sync and replicated_wait"
        ),
        "{said}"
    );
}
