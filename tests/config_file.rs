//! `replicated.toml`: which file counts, what it says of which database, and what is refused; with the hosts that open the databases, and the command that
//! tells of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Host, Program};
use serde_json::Value;

/// A directory with databases, buckets and a file.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn bucket(&self, name: &str) -> Bucket {
        Bucket::folder(&self.path(name))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text.replace("HERE", self.path("").to_str().unwrap().trim_end_matches('/'))).unwrap();
        path
    }

    fn database(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }
}

fn named(file: &Path) -> Vec<(String, String)> {
    vec![("REPLICATED_CONFIG".to_owned(), file.to_str().unwrap().to_owned())]
}

fn uri(database: &Path) -> String {
    format!("file:{}?vfs=replicated", database.display())
}

/// Opens each in the same process, writes to it and waits until it is in its bucket.
fn fill(env: &[(String, String)], databases: &[&Path]) {
    for which in [Program::Python, Program::Rust] {
        let mut host = Host::start(which, env);
        for database in databases {
            let db = host.open(&uri(database));
            host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (1)");
            host.sync(db);
            host.close(db);
        }
    }
}

fn rows(bucket: &Bucket, place: &Place) -> i64 {
    let restored = place.path("restored.db");
    let _ = std::fs::remove_file(&restored);
    bucket.restore(&restored);
    rusqlite::Connection::open(&restored).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

fn config(env: &[(String, String)], arguments: &[&str]) -> (i32, String, String) {
    let output = host::command(env!("CARGO_BIN_EXE_replicated"), env).arg("config").args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn databases_by_path_pattern_and_template() {
    let place = Place::new();
    let file = place.write(
        "etc/anything.toml",
        "replica = \"file://HERE/general/{name}\"\nsync_interval = \"20ms\"\n\n[[database]]\npath = \"HERE/tenants/*/app.db\"\n\
         replica = \"file://HERE/tenants-bucket/{dir}/{name}\"\n\n[[database]]\npath = \"../tenants/quiet/*\"\nreplica = \"\"\n",
    );
    let (app, acme, other) = (place.database("app.db"), place.database("tenants/acme/app.db"), place.database("tenants/zoo/app.db"));
    let (deeper, quiet) = (place.database("tenants/acme/deep/app.db"), place.database("tenants/quiet/app.db"));
    fill(&named(&file), &[&app, &acme, &other]);
    for bucket in ["general/app.db", "tenants-bucket/acme/app.db", "tenants-bucket/zoo/app.db"] {
        assert_eq!(rows(&place.bucket(bucket), &place), 2, "{bucket}");
    }
    // A star stops at a directory; of two sections that match the later one counts, also for none.
    let mut host = Host::start(Program::Python, &named(&file));
    let db = host.open(&uri(&quiet));
    assert!(host.try_query(db, "PRAGMA replicated_sync").unwrap().is_empty());
    let db = host.open(&uri(&deeper));
    assert!(host.status(db, "replica").ends_with("/general/app.db"));
}

#[test]
fn what_is_nearer_to_the_database_wins() {
    let place = Place::new();
    let file = place.write(
        "x.toml",
        "replica = \"file://HERE/a\"\nburst = 3\nmax_lag = \"3s\"\nhistory = \"3h\"\nrefuse_lost_tail = true\n[[database]]\npath = \"app.db\"\nmax_lag = \"4s\"\n",
    );
    let database = place.database("app.db");
    let mut env = named(&file);
    env.push(("REPLICATED_MAX_LAG".to_owned(), "5s".to_owned()));
    env.push(("REPLICATED_BURST".to_owned(), String::new()));
    let shown = |env: &[(String, String)], database: &str| -> Value {
        let (code, out, err) = config(env, &["show", database, "--json"]);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let option = |shown: &Value, name: &str| {
        let option = &shown["options"][name];
        (option["value"].as_str().unwrap().to_owned(), option["from"].as_str().unwrap().to_owned())
    };
    let all = shown(&env, &format!("file:{}?vfs=replicated&max_lag=6s&replica=s3://k:secret@b/x", database.display()));
    assert_eq!(option(&all, "max_lag"), ("6s".to_owned(), "URI".to_owned()));
    assert_eq!(option(&all, "replica"), ("s3://***@b/x".to_owned(), "URI".to_owned()));
    assert!(!all.to_string().contains("secret"));
    let by_env = shown(&env, database.to_str().unwrap());
    assert_eq!(option(&by_env, "max_lag"), ("5s".to_owned(), "environment".to_owned()));
    let by_file = shown(&named(&file), database.to_str().unwrap());
    let line = |line: u32| format!("{}, line {line}", file.display());
    assert_eq!(option(&by_file, "max_lag"), ("4s".to_owned(), line(8)));
    assert_eq!(option(&by_env, "burst"), ("3".to_owned(), line(2)));
    assert_eq!(option(&by_file, "refuse_lost_tail"), ("true".to_owned(), line(5)));
    assert_eq!(option(&by_file, "durability"), ("local".to_owned(), "default".to_owned()));
    assert_eq!(option(&shown(&named(&file), place.path("b.db").to_str().unwrap()), "max_lag"), ("3s".to_owned(), line(3)));
    assert_eq!(by_file["replica_url"].as_str().unwrap(), format!("file://{}", place.path("a").display()));
    let (_, text, _) = config(&named(&file), &["show", database.to_str().unwrap(), "--given"]);
    assert_eq!(text.lines().count(), 2 + 5, "{text}");
    // What the host has is the same.
    let mut host = Host::start(Program::Python, &env);
    let db = host.open(&uri(&database));
    assert_eq!(host.status(db, "max_lag_ms"), "5000");
    assert_eq!(host.status(db, "replica"), by_file["replica_url"].as_str().unwrap());
}

#[test]
fn a_file_beside_the_database_counts_where_it_is_ours() {
    let place = Place::new();
    let database = place.database("srv/app.db");
    let file = place.write("srv/replicated.toml", "replica = \"file://HERE/beside\"\n[[database]]\npath = \"other.db\"\nreplica = \"\"\n");
    fill(&[], &[&database]);
    assert_eq!(rows(&place.bucket("beside"), &place), 2);
    let asked = |env: &[(String, String)]| {
        let mut host = Host::start(Program::Python, env);
        let db = host.open(&uri(&database));
        !host.try_query(db, "PRAGMA replicated_status").unwrap().is_empty()
    };
    assert!(asked(&[]));
    // The one that is named counts instead of it.
    assert!(!asked(&named(&place.write("empty.toml", ""))));
    // Everybody might have written it.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(!asked(&[]));
    let (_, told, _) = config(&[], &["show", database.to_str().unwrap()]);
    assert!(told.contains(&format!("not heeded: {}", file.display())), "{told}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    // Only root can give files away.
    if std::os::unix::fs::chown(&file, Some(65534), None).is_ok() {
        assert!(!asked(&[]));
    }
}

#[test]
fn what_is_wrong_with_it_is_told_by_its_line_and_refuses_every_open() {
    let place = Place::new();
    let database = place.database("app.db");
    let cases = [
        ("replica = \"s3://b/x\"\nsync_intervall = \"1s\"\n", "x.toml, line 2: unknown option sync_intervall: did you mean sync_interval?"),
        ("burst = 1000\n", "x.toml, line 1: option burst: got \"1000\", that is too large; allowed is a number from 1 to 100"),
        ("\n\nburst = [1]\n", "x.toml, line 3: option burst: got \"\", it is to be a text in quotes, a number, true or false"),
        // In a section that is another database's, too.
        ("[[database]]\npath = \"/nowhere/*\"\nlog_level = \"loud\"\n", "x.toml, line 3: option log_level: got \"loud\""),
        ("[[database]]\nburst = 2\n", "x.toml, line 1: a [[database]] has no path"),
        ("[database]\npath = \"x\"\n", "x.toml, line 1: databases are listed as [[database]], in double brackets"),
        ("[[database]]\npath = \"a[\"\n", "x.toml, line 2: path is no pattern"),
        ("[[databases]]\npath = \"a\"\n", "x.toml, line 1: unknown option databases: did you mean database?"),
        ("replica = s3://b\n", "x.toml, line 1: it is no TOML"),
        ("replica = \"s3://b\"\nreplica = \"s3://c\"\n", "x.toml, line 2: it is no TOML: duplicate key"),
        (
            "replica = \"s3://k:secret@b/{path}\"\n",
            "x.toml, line 1: option replica: got \"s3://***@b/{path}\", it has an unknown placeholder",
        ),
        ("exact = \"25h\"\n", "x.toml, line 1: option exact: got \"25h\", that is longer than history, which is 24h"),
        ("replica2 = \"s3://b\"\n", "x.toml, line 1: option replica2: got \"s3://b\", there is no replica beside it"),
        ("[[database]]\npath = \"~/app.db\"\n", "x.toml, line 2: path begins with ~, which only a shell understands"),
    ];
    for (text, expected) in cases {
        let file = place.write("x.toml", text);
        let (code, _, told) = config(&named(&file), &["check"]);
        assert!(code == 1 && told.contains(expected), "{text}: {told}");
        assert!(!told.contains("secret"), "{told}");
        let mut host = Host::start(Program::Python, &named(&file));
        let refused = host.try_open(&uri(&database)).and_then(|db| host.try_query(db, "SELECT 1"));
        assert!(refused.is_err(), "{text}");
        assert!(!database.exists());
    }
    for (file, expected) in
        [(place.path("none.toml"), "cannot be read: No such file"), ("x.toml".into(), "is to name it by an absolute path")]
    {
        let (code, _, told) = config(&named(&file), &["check"]);
        assert!(code == 1 && told.contains(expected), "{told}");
    }
    let (code, out, told) = config(&[], &["check", place.write("y.toml", "[[database]]\npath = \"*.db\"\n").to_str().unwrap()]);
    assert!(code == 0 && out.contains("all right, 1 [[database]]") && out.contains("/*.db"), "{out}{told}");
    // What only the open of the database that is meant would find.
    for (url, expected) in [
        ("s4://b/{name}", "replica URL scheme \"s4\" is not supported"),
        ("s3://key:secret@b/{dir}", "replica URL carries credentials"),
        ("file://relative", "names no folder by an absolute path"),
    ] {
        let file = place.write("z.toml", &format!("[[database]]\npath = \"/srv/*.db\"\nreplica = \"{url}\"\n"));
        let (code, _, told) = config(&[], &["check", file.to_str().unwrap()]);
        assert!(code == 1 && told.contains(expected) && told.contains("z.toml, line 3: option replica"), "{told}");
        assert!(!told.contains("secret"), "{told}");
    }
    let (code, _, told) = config(&[], &["check"]);
    assert!(code == 2 && told.contains("which file?"), "{told}");
}

/// What is wrong with some databases only, and a URL that no store has: found before they are opened.
#[test]
fn what_is_wrong_for_some_databases_only_is_found_by_check_as_by_their_open() {
    let place = Place::new();
    let database = place.database("a/app.db");
    let general = "replica = \"file://HERE/bucket/{name}\"\n";
    let cases = [
        ("[[database]]\npath = \"a/*\"\nexact = \"48h\"\n", "line 4: option exact: got \"48h\", that is longer than history"),
        ("[[database]]\npath = \"[ab]/app.db\"\nreplica = \"\"\nendpoint = \"x\"\n", ""),
        ("[[database]]\npath = \"**\"\nreplica = \"ftp://x/y\"\n", "line 4: option replica: replica URL scheme \"ftp\" is not supported"),
        ("[[database]]\npath = \"**/a??.db\"\nreplica2 = \"s3://b\"\n", "line 4: option replica2: replica URL s3://b has no path"),
        (
            "ca_bundle = \"/nowhere.pem\"\n[[database]]\npath = \"[!c]/app.db\"\nreplica = \"s3://b/x\"\n",
            "ca_bundle /nowhere.pem: No such file",
        ),
        // Of two that match, what the one allows the other may use.
        ("history = \"3d\"\n[[database]]\npath = \"**\"\nhistory = \"7d\"\n[[database]]\npath = \"a/app.db\"\nexact = \"5d\"\n", ""),
    ];
    for (text, expected) in cases {
        let file = place.write("x.toml", &format!("{general}{text}"));
        let (code, out, told) = config(&named(&file), &["check"]);
        assert_eq!(code, i32::from(!expected.is_empty()), "{text}: {out}{told}");
        assert!(told.contains(expected), "{text}: {told}");
        let mut host = Host::start(Program::Python, &named(&file));
        let opened = host.try_open(&uri(&database)).and_then(|db| host.try_query(db, "SELECT 1"));
        assert_eq!(opened.is_ok(), expected.is_empty(), "{text}");
    }
}

/// The store's options of the tool's other commands, too: what holds for all.
#[test]
fn the_other_commands_heed_it() {
    let place = Place::new();
    let (_server, bucket) = Bucket::somewhere(true, &place.path("x"));
    let value = |name: &str| bucket.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap();
    let file = place.write(
        "x.toml",
        &format!("endpoint = \"{}\"\npath_style = true\nallow_http = true\nregion = \"us-east-1\"\n", value("AWS_ENDPOINT_URL")),
    );
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| (name.to_owned(), value(name)));
    let env: Vec<(String, String)> = keys.into_iter().chain(named(&file)).collect();
    let database = place.database("app.db");
    let mut host = Host::start(Program::Rust, &env);
    let db = host.open(&host::replicated(&database, &bucket.url, &[]));
    host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(x)");
    host.sync(db);
    host.close(db);
    let output = host::command(env!("CARGO_BIN_EXE_replicated"), &env).args(["list", &bucket.url, "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
