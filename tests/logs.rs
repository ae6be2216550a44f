//! What the extension logs: one line an event, with its database, TXID and cause; as text and as JSON; to SQLite's log, stderr or a file; and never a secret.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Output;

use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::Server;
use serde_json::Value;

type Env = Vec<(String, String)>;

/// Reads a log as a program of somebody else's would, and tells what is in it.
const READER: &str = r#"
import datetime, json, sys
lines = []
for line in open(sys.argv[1], encoding="utf-8", newline="\n"):
    o = json.loads(line)
    assert list(o)[:3] == ["timestamp", "level", "event"] and list(o)[-2:] == ["message", "pid"], line
    datetime.datetime.strptime(o["timestamp"], "%Y-%m-%dT%H:%M:%S.%fZ")
    assert o["level"] in ("error", "warn", "info", "debug") and type(o["pid"]) is int, line
    assert all(type(value) is str and value for key, value in o.items() if key != "pid"), line
    lines.append(o)
print(json.dumps(lines))
"#;

/// Opens one database after the other, as an application does that goes on whatever happens, and says what it was told.
const APPLICATION: &str = r#"
import sqlite3, sys, time
def until_told(db):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return db.execute("PRAGMA replicated_sync='100ms'").fetchall()
        except sqlite3.Error as error:
            print(error, file=sys.stderr)
        if "\nlast_error -\n" not in db.execute("PRAGMA replicated_status").fetchone()[0]:
            return
scratch = sqlite3.connect(":memory:")
scratch.enable_load_extension(True)
scratch.load_extension(sys.argv[1])
for uri in sys.argv[2:]:
    try:
        db = sqlite3.connect(uri, uri=True, isolation_level=None)
        db.execute("PRAGMA journal_mode=wal")
        db.execute("CREATE TABLE IF NOT EXISTS t(x)")
        db.execute("INSERT INTO t VALUES (1)")
        until_told(db)
        print(db.execute("PRAGMA replicated_status").fetchall(), file=sys.stderr)
        db.close()
    except sqlite3.Error as error:
        print(error, file=sys.stderr)
    print(scratch.execute("SELECT replicated_last_error()").fetchall(), file=sys.stderr)
"#;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn folder(&self) -> Bucket {
        Bucket::folder(&self.path("bucket"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A database that logs into the file `log`.
    fn uri(&self, replica: &str, more: &[(&str, &str)]) -> String {
        let log = self.path("log").display().to_string();
        let options: Vec<_> = [("log", log.as_str()), ("sync_interval", "10ms")].into_iter().chain(more.iter().copied()).collect();
        host::replicated(&self.path("app.db"), replica, &options)
    }
}

fn read(log: &Path) -> Vec<Value> {
    let out = host::command(host::python(), &[]).args(["-c", READER, log.to_str().unwrap()]).output().unwrap();
    assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), std::fs::read_to_string(log).unwrap());
    serde_json::from_slice(&out.stdout).unwrap()
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

fn of_event<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| text(line, "event") == event).collect()
}

fn run_application(env: &Env, uris: &[String]) -> Output {
    let mut command = host::command(host::python(), env);
    command.args(["-c", APPLICATION, host::extension().to_str().unwrap()]).args(uris).output().unwrap()
}

fn create(host: &mut Host, db: Db) {
    host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(x)");
}

fn commit(host: &mut Host, db: Db) {
    host.query(db, "INSERT INTO t VALUES (randomblob(300))");
}

/// One outage of a store, with a second cause in the midst of it.
#[test]
fn an_outage_is_told_in_json_with_database_txid_and_cause() {
    let (place, server) = (Place::new(), Server::start().unwrap());
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let bucket = Bucket::s3(&server, "app").through(&proxy.endpoint());
    let mut host = Host::start(Program::Python, &bucket.env);
    let options = [("log_format", "json"), ("burst", "100"), ("request_timeout", "300ms")];
    let db = host.open(&place.uri(&bucket.url, &options));
    create(&mut host, db);
    commit(&mut host, db);
    let before = host.sync(db);
    let told_before = read(&place.path("log")).len();

    // Which of the two limits of time ends a request is the machine's affair.
    let (refused, hangs): (&[&str], &[&str]) = (&["Connection refused"], &["timed out", "no answer within"]);
    let is_of = |text: &str, causes: &[&str]| causes.iter().any(|cause| text.contains(cause));
    let mut fails_until = |causes: &[&str]| {
        eventually(&format!("{causes:?}"), || {
            commit(&mut host, db);
            // It makes the uploader try again at once.
            let _ = host.try_query(db, "PRAGMA replicated_sync='50ms'");
            is_of(&place.log(), causes)
        });
    };
    proxy.set(Mode::Refuse).unwrap();
    fails_until(refused);
    proxy.set(Mode::Hang).unwrap();
    fails_until(hangs);
    proxy.set(Mode::Forward).unwrap();
    let after = host.sync(db);
    eventually("it is told", || place.log().contains("replication_works_again"));
    let pid = host.id();
    host.close(db);
    host.quit();

    let lines = read(&place.path("log"));
    let database = place.path("app.db").display().to_string();
    for line in &lines {
        assert_eq!((text(line, "database"), line["pid"].as_u64()), (database.as_str(), Some(u64::from(pid))), "{line}");
        assert!(!text(line, "message").contains(&database), "{line}");
    }
    assert_eq!(of_event(&lines, "full_state_sent").len(), 1);
    let failed = of_event(&lines[told_before..], "replication_failed");
    // What hangs is told for each kind of request, and is tried more often than that.
    assert!((2..=6).contains(&failed.len()), "{failed:?}");
    for (line, causes) in failed.iter().zip([refused, hangs, hangs, hangs, hangs, hangs]) {
        assert_eq!((text(line, "level"), text(line, "txid")), ("error", before.as_str()), "{line}");
        assert!(is_of(text(line, "cause"), causes) && text(line, "cause").contains("s3://"), "{line}");
        assert!(text(line, "message").contains(text(line, "cause")) && text(line, "message").contains(&before), "{line}");
    }
    let over = of_event(&lines[told_before..], "replication_works_again");
    assert_eq!(over.len(), 1, "{over:?}");
    assert!(text(over[0], "txid") > before.as_str() && text(over[0], "txid") <= after.as_str(), "{over:?}");
    assert!(text(over[0], "message").contains(" failures; the bucket is at TXID "), "{over:?}");
}

/// Nothing of it depends on the form.
#[test]
fn the_text_has_what_the_json_has() {
    let place = Place::new();
    let dead = [("endpoint", "http://127.0.0.1:9"), ("allow_http", "true"), ("region", "x"), ("close_timeout", "0s")];
    let env: Env = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "other")].map(|(n, v)| (n.to_owned(), v.to_owned())).into();
    let told: Vec<Vec<String>> = ["text", "json"]
        .iter()
        .map(|format| {
            let _ = std::fs::remove_file(place.path("log"));
            let with: Vec<_> = dead.into_iter().chain([("log_format", *format)]).collect();
            let out = run_application(
                &env,
                &[place.uri("s3://bucket/app", &with), place.uri("s3://bucket/app", &[("burst", "many"), ("log_format", format)])],
            );
            assert!(out.stdout.is_empty(), "{out:?}");
            if *format == "json" {
                let lines = read(&place.path("log"));
                let line = |line: &Value| format!("{} {}: {}", text(line, "level"), text(line, "database"), text(line, "message"));
                return lines.iter().map(line).collect();
            }
            let log = place.log();
            let line = |line: &str| {
                let (head, message) = line.split_once("]: ").unwrap();
                let words: Vec<&str> = head.split_whitespace().collect();
                assert!(words[0].ends_with('Z') && words[0].contains('T') && words[2].starts_with("replicated["), "{line}");
                format!("{} {message}", words[1].to_lowercase())
            };
            log.lines().map(line).collect()
        })
        .collect();
    assert!(told[0].iter().any(|line| line.contains("Connection refused")), "{told:?}");
    assert!(told[0].iter().any(|line| line.contains("the database is not opened: parameter burst")), "{told:?}");
    // The first process has left something, which the next one tells of in other words: what both tell is the same.
    let common = |lines: &[String]| lines.iter().filter(|line| line.starts_with("error")).cloned().collect::<Vec<_>>();
    assert_eq!(common(&told[0]), common(&told[1]));
}

#[test]
fn json_goes_to_stderr_and_nothing_to_stdout() {
    let place = Place::new();
    let options = [("log", "stderr"), ("log_format", "json"), ("log_level", "debug")];
    let uri = host::replicated(&place.path("app.db"), &place.folder().url, &options);
    let out = run_application(&Vec::new(), &[uri]);
    assert!(out.stdout.is_empty(), "{out:?}");
    let told = String::from_utf8(out.stderr).unwrap();
    let lines: Vec<Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let sent = of_event(&lines, "full_state_sent");
    assert!(sent.len() == 1 && text(sent[0], "txid").len() == 16, "{told}");
}

/// The shell's own log is SQLite's, in which lines are short.
#[test]
fn sqlite_s_log_gets_text_and_says_so() {
    let place = Place::new();
    let shell = |script: String| {
        let script = format!(".load {}\n.log stdout\n{script}", host::extension().display());
        let mut command = host::command("sqlite3", &[]);
        let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let open = |name: &str, options: &[(&str, &str)]| {
        let uri = host::replicated(&place.path(name), &format!("{}/{name}", place.folder().url), options);
        format!("ATTACH '{uri}' AS x;\nCREATE TABLE x.t(a);\nDETACH x;\n")
    };
    let json = [("log_format", "json")];
    let told = shell(open("a.db", &json) + &open("b.db", &json));
    assert_eq!(told.matches("option log_format: SQLite's own log takes short lines of text only").count(), 1, "{told}");
    assert_eq!(told.matches("the full state is in the bucket").count(), 2, "{told}");
    assert!(!told.contains("{\"timestamp\""), "{told}");

    // A directory that is not there, and is there later on.
    let folder = place.path("logs");
    let log = folder.join("log").display().to_string();
    let to_file = [("log", log.as_str()), ("log_format", "json")];
    let told =
        shell(open("c.db", &to_file) + &open("d.db", &to_file) + &format!(".shell mkdir {}\n", folder.display()) + &open("e.db", &to_file));
    assert_eq!(told.matches("lines go to sqlite3_log until it can be written to").count(), 1, "{told}");
    assert_eq!(told.matches("the full state is in the bucket").count(), 2, "{told}");
    let lines = read(Path::new(&log));
    assert_eq!(of_event(&lines, "full_state_sent").len(), 1);
    let missing = of_event(&lines, "log_target");
    assert!(missing.len() == 1 && text(missing[0], "message").contains("lines before the last one are missing here"), "{missing:?}");

    // A full disk.
    let told = shell(open("f.db", &[("log", "/dev/full")]) + &open("g.db", &[("log", "/dev/full")]));
    assert_eq!(told.matches("No space left on device").count(), 1, "{told}");
    assert_eq!(told.matches("the full state is in the bucket").count(), 2, "{told}");
}

/// Two processes with one file, which is renamed again and again while both write to it.
#[test]
fn two_processes_share_a_bounded_file() {
    const LIMIT_BYTES: u64 = 16 << 10;
    let place = Place::new();
    let log = place.path("log").display().to_string();
    let options = [
        ("log", log.as_str()),
        ("log_format", "json"),
        ("log_level", "debug"),
        ("log_max_bytes", "16KiB"),
        ("sync_interval", "10ms"),
        ("burst", "100"),
        ("maintenance", "off"),
    ];
    let mut hosts: Vec<(Host, Db)> = ["one.db", "two.db"]
        .iter()
        .map(|name| {
            let mut host = Host::start(Program::Python, &[]);
            let replica = format!("{}/{name}", place.folder().url);
            let db = host.open(&host::replicated(&place.path(name), &replica, &options));
            create(&mut host, db);
            (host, db)
        })
        .collect();
    let older = place.path("log.1");
    // The inode of one that is gone may be that of the next.
    let (mut last, mut renamed) = (None, 0);
    eventually("the file is renamed three times", || {
        for (host, db) in &mut hosts {
            commit(host, *db);
            host.sync(*db);
        }
        let now = std::fs::metadata(&older).ok().map(|found| std::os::unix::fs::MetadataExt::ino(&found));
        renamed += u32::from(now != last);
        last = now;
        renamed >= 3
    });
    let pids: BTreeSet<u64> = hosts.iter().map(|(host, _)| u64::from(host.id())).collect();
    for (mut host, db) in hosts {
        host.close(db);
        host.quit();
    }
    let lines = [read(&older), read(&place.path("log"))].concat();
    assert_eq!(lines.iter().filter_map(|line| line["pid"].as_u64()).collect::<BTreeSet<_>>(), pids);
    // Of each process its uploads follow one another without a gap.
    for pid in pids {
        let ours = lines.iter().filter(|line| line["pid"].as_u64() == Some(pid) && text(line, "event") == "uploaded");
        let txids: Vec<u64> = ours.map(|line| u64::from_str_radix(text(line, "txid"), 16).unwrap()).collect();
        assert!(txids.len() > 10 && txids.windows(2).all(|pair| pair[1] == pair[0] + 1), "{txids:?}");
    }
    for file in [place.path("log"), older] {
        assert!(std::fs::metadata(&file).unwrap().len() <= 2 * LIMIT_BYTES, "{file:?}");
    }
    let files = std::fs::read_dir(place.0.path()).unwrap().filter_map(Result::ok);
    let names: BTreeSet<String> =
        files.map(|file| file.file_name().to_string_lossy().into_owned()).filter(|name| name.starts_with("log")).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["log", "log.1"]);
}

/// What stands in every secret of the next test, and in base64.
const MARKS: [&str; 2] = ["s3cr3t", "YS1zM2NyM3Q"];

/// Servers that fail, each in its way.
struct Failing {
    server: Server,
    hanging: Proxy,
    cut: Proxy,
}

impl Failing {
    fn start() -> Self {
        let server = Server::start().unwrap();
        let before = |mode| {
            let proxy = Proxy::start(&server.endpoint()).unwrap();
            proxy.set(mode).unwrap();
            proxy
        };
        let (hanging, cut) = (before(Mode::Hang), before(Mode::Cut { after_bytes: 20 }));
        Self { server, hanging, cut }
    }

    fn keys(&self, more: &[(&str, &str)]) -> Env {
        let id = ("AWS_ACCESS_KEY_ID", self.server.access_key());
        let keys = [id, ("AWS_SECRET_ACCESS_KEY", "a-s3cr3t-key"), ("AWS_SESSION_TOKEN", "a-s3cr3t-token")];
        owned(&keys.into_iter().chain(more.iter().copied()).collect::<Vec<_>>())
    }
}

fn owned(variables: &[(&str, &str)]) -> Env {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Processes, each with its environment and the databases that it opens, with a secret wherever there is place for one.
fn with_secrets(failing: &Failing, place: &Place, format: &str) -> Vec<(Env, Vec<String>)> {
    let log = place.path("log").display().to_string();
    let uri = |name: &str, replica: &str, more: &[(&str, &str)]| {
        let of_log = [("log", log.as_str()), ("log_format", format), ("log_level", "debug")];
        let quick = [("close_timeout", "0s"), ("request_timeout", "5s")];
        host::replicated(&place.path(name), replica, &of_log.iter().chain(&quick).chain(more).copied().collect::<Vec<_>>())
    };
    let (bucket, endpoint) = (failing.server.bucket(), failing.server.endpoint());
    let at = |endpoint: &str| format!("s3://{bucket}/app?endpoint={endpoint}&allow_http=true&region=x");
    let dead = at("http://127.0.0.1:9");
    let with_password = endpoint.replace("://", "://user:a-s3cr3t@");
    let mut runs = vec![
        // The secrets of URIs, refused as they are.
        (
            failing.keys(&[]),
            vec![
                uri("a1.db", &dead, &[("colour", "a-s3cr3t")]),
                uri("a2.db", "s3://AKIA:a-s3cr3t@bucket/app", &[]),
                uri("a3.db", "s3://AKIA:a/s3cr3t@bucket/app", &[]),
                uri("a4.db", "s3://bucket/app?sig=a-s3cr3t", &[]),
                uri("a5.db", "s3://bucket/app?a-s3cr3t", &[]),
                uri("a6.db", "s3//AKIA:a-s3cr3t@bucket/app", &[]),
                uri("a7.db", "abs://account:a-s3cr3t@container/app", &[]),
                uri("a8.db", &at(&with_password), &[]),
                uri("a9.db", &format!("s3://{bucket}/app"), &[("endpoint", &with_password), ("allow_http", "true"), ("region", "x")]),
                uri("a10.db", &format!("s3://{bucket}/app"), &[("endpoint", "nonsense://user:a-s3cr3t@host")]),
            ],
        ),
        // Those of the environment, with stores that fail.
        (failing.keys(&[]), vec![uri("b1.db", &at(&endpoint), &[])]),
        (failing.keys(&[]), vec![uri("b2.db", &at(&endpoint).replace(bucket, "no-such-bucket"), &[])]),
        (failing.keys(&[]), vec![uri("b3.db", &dead, &[("durability", "remote"), ("ack_timeout", "100ms")])]),
        (failing.keys(&[]), vec![uri("b4.db", &at(&failing.hanging.endpoint()), &[("lease", "1s"), ("lease_wait", "300ms")])]),
        (failing.keys(&[]), vec![uri("b5.db", &at(&failing.cut.endpoint()), &[])]),
        (failing.keys(&[]), vec![uri("b6.db", &at("http://no-such-host.invalid"), &[])]),
        (failing.keys(&[]), vec![uri("b7.db", &dead, &[("restore", "if-missing")])]),
        (failing.keys(&[("REPLICATED_TOKEN", "a-s3cr3t")]), vec![uri("c1.db", &dead, &[])]),
        (failing.keys(&[("REPLICATED_ENDPOINT", "http://user:a-s3cr3t@")]), vec![uri("c2.db", "s3://bucket/app", &[])]),
        (failing.keys(&[("REPLICATED_REPLICA2", "s3://AKIA:a-s3cr3t@bucket/app")]), vec![uri("c3.db", &dead, &[])]),
    ];
    for (i, variable) in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"].iter().enumerate() {
        let asked_for = endpoint.replace("127.0.0.1", "behind-a-proxy.invalid");
        runs.push((failing.keys(&[(variable, "http://user:a-s3cr3t@127.0.0.1:9")]), vec![uri(&format!("d{i}.db"), &at(&asked_for), &[])]));
    }
    for (i, (variable, value)) in [
        ("AZURE_STORAGE_SAS_TOKEN", "sv=2022&sig=a-s3cr3t"),
        ("AZURE_STORAGE_SAS_KEY", "sv=2022&sig=a-s3cr3t"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "YS1zM2NyM3Q="),
        ("AZURE_STORAGE_ACCOUNT_KEY", "no base64: a-s3cr3t"),
        ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=account;AccountKey=a-s3cr3t"),
    ]
    .iter()
    .enumerate()
    {
        let azure = "abs://account@container/app?endpoint=http://127.0.0.1:9&allow_http=true";
        runs.push((owned(&[(variable, value)]), vec![uri(&format!("e{i}.db"), azure, &[])]));
    }
    // Those of files.
    let file = |name: &str, content: &str| {
        let path = place.path(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let service = r#"{"type":"service_account","client_email":"a@b","private_key":"a-s3cr3t","private_key_id":"1","project_id":"p"}"#;
    let service = file("service.json", service);
    let google = "gs://bucket/app?endpoint=http://127.0.0.1:9&allow_http=true";
    runs.push((owned(&[("GOOGLE_APPLICATION_CREDENTIALS", &service)]), vec![uri("f.db", google, &[])]));
    let wrong = ["[default]\naws_access_key_id=AKIA\naws_secret_access_key a-s3cr3t\n", "[default]\na-s3cr3t", "[default\na-s3cr3t=1\n"];
    for (i, content) in wrong.iter().enumerate() {
        let credentials = file(&format!("credentials{i}"), content);
        runs.push((owned(&[("AWS_SHARED_CREDENTIALS_FILE", &credentials)]), vec![uri(&format!("g{i}.db"), &dead, &[])]));
    }
    let wrong = [
        "secret = \"a-s3cr3t\"\n",
        "replica = \"s3://AKIA:a-s3cr3t@bucket/app\"\n",
        "endpoint = \"http://user:a-s3cr3t@127.0.0.1:9\"\nallow_http = true\nregion = \"x\"\n",
        "endpoint = \"a-s3cr3t\nregion = \"x\"\n",
        "sync_interval = { a-s3cr3t = 1 }\n",
    ];
    for (i, content) in wrong.iter().enumerate() {
        let config = file(&format!("{i}.toml"), content);
        runs.push((failing.keys(&[("REPLICATED_CONFIG", &config)]), vec![uri(&format!("h{i}.db"), "s3://bucket/app", &[])]));
    }
    runs
}

/// Everything that an application is told, and all that is logged, of opens that are refused and of stores that fail in every way.
#[test]
fn no_secret_reaches_a_log() {
    let failing = Failing::start();
    for format in ["text", "json"] {
        let place = Place::new();
        let runs = with_secrets(&failing, &place, format);
        // Built before they start.
        let _ = host::extension();
        // Most of the time they wait.
        let said: Vec<Output> = std::thread::scope(|scope| {
            let running: Vec<_> = runs.iter().map(|(env, uris)| scope.spawn(move || run_application(env, uris))).collect();
            running.into_iter().map(|run| run.join().unwrap()).collect()
        });
        let log = place.log();
        let told: String = said.iter().map(|out| String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr)).collect();
        let leaks: Vec<&str> = log.lines().chain(told.lines()).filter(|line| MARKS.iter().any(|mark| line.contains(mark))).collect();
        assert!(leaks.is_empty(), "{leaks:#?}");
        // All of it was come to.
        for part in [
            "unknown parameter colour",
            "***@bucket",
            "sig",
            "SignatureDoesNotMatch",
            "Connection refused",
            "b4.db",
            "no-such-host.invalid",
            "unknown environment variable REPLICATED_TOKEN",
            ".toml, line 1",
            "abs://account@container",
            "gs://bucket",
            "behind-a-proxy.invalid",
        ] {
            assert!(log.contains(part), "{part:?} is not in:\n{log}");
        }
        if format == "json" {
            assert!(read(&place.path("log")).len() > runs.len(), "{log}");
        }
    }
}

/// The list of events in the documentation is the code's.
#[test]
fn the_documentation_has_every_event() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = vec![root.join("src")];
    let mut events: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    while let Some(path) = sources.pop() {
        if path.is_dir() {
            sources.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let code = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join(" ");
        assert!(!path.starts_with(root.join("src/replicator")) || !code.contains("log::warn!"), "{path:?}: use event!");
        for call in code.split("event!(").skip(1).filter(|call| !call.trim_start().starts_with('$')) {
            let mut words = call.splitn(3, ',');
            let (level, name) = (words.next().unwrap().trim().to_lowercase(), words.next().unwrap().trim().trim_matches('"').to_owned());
            if level != "trace" {
                events.entry(name).or_default().insert(level);
            }
        }
    }
    let page = std::fs::read_to_string(root.join("docs/logs.md")).unwrap();
    let list = page.split("## Events").last().unwrap();
    let mut listed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in list.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let levels = cells[2].split(", ").map(str::to_owned).collect();
        assert!(listed.insert(cells[1].trim_matches('`').to_owned(), levels).is_none(), "{row}");
    }
    assert_eq!(listed.keys().collect::<Vec<_>>(), events.keys().collect::<Vec<_>>());
    for (event, levels) in &events {
        // Some are decided as it goes.
        let is_fixed = !levels.contains("level");
        let missing: Vec<&String> = levels.difference(&listed[event]).filter(|level| *level != "level").collect();
        assert!(missing.is_empty() && (!is_fixed || *levels == listed[event]), "{event}: {levels:?}, and listed {:?}", listed[event]);
    }
}
