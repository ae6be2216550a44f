//! The doctor finds what is wrong, tells it from everything else that may be, says what to do, leaves nothing behind, and never hangs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use replicated_testkit::bucket::Bucket;
use replicated_testkit::faulty::{Endpoint, Fault, Kind};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::{Options, Server};
use rusqlite::Connection;
use serde_json::Value;

mod tls;

use tls::TLS;

/// What came of a run.
struct Told {
    code: i32,
    value: Value,
    text: String,
}

impl Told {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Self { code: output.status.code().unwrap_or_else(|| panic!("{text}")), value, text }
    }

    fn lines(&self) -> &[Value] {
        self.value["checks"].as_array().unwrap_or_else(|| panic!("{}", self.text))
    }

    /// The verdicts of a check, with what was found.
    fn all(&self, check: &str) -> Vec<(&str, &str)> {
        let of = |line: &'_ Value, name: &str| -> String { line[name].as_str().unwrap().to_owned() };
        assert!(
            self.lines().iter().all(|line| of(line, "verdict") == "ok" || of(line, "verdict") == "skipped" || !of(line, "next").is_empty()),
            "{}",
            self.text
        );
        let lines = self.lines().iter().filter(|line| line["check"] == check);
        lines.map(|line| (line["verdict"].as_str().unwrap(), line["what"].as_str().unwrap())).collect()
    }

    fn verdict(&self, check: &str) -> &str {
        self.all(check).first().unwrap_or_else(|| panic!("no {check} in {}", self.text)).0
    }

    fn line(&self, check: &str) -> &Value {
        self.lines().iter().find(|line| line["check"] == check).unwrap_or_else(|| panic!("no {check} in {}", self.text))
    }

    /// What is a problem, and nothing else.
    fn problems(&self) -> Vec<&str> {
        self.lines().iter().filter(|line| line["verdict"] == "problem").map(|line| line["check"].as_str().unwrap()).collect()
    }

    /// There is this one problem, whose text has that.
    fn is_only(&self, check: &str, part: &str) -> &Self {
        assert_eq!((self.code, self.problems()), (1, vec![check]), "{}", self.text);
        assert!(self.line(check).to_string().contains(part), "{}", self.text);
        self
    }
}

/// Without what the machine's own programs would say.
fn command(bucket: &Bucket) -> Command {
    let mut command = host::command(env!("CARGO_BIN_EXE_replicated"), &bucket.env);
    command.env("PATH", "/nowhere").args(["doctor", "--json", &bucket.url]);
    command
}

fn doctor(bucket: &Bucket, more: &[&str]) -> Told {
    Told::of(command(bucket).args(more))
}

/// A server's bucket by another endpoint, named in the URL.
fn at(bucket: &Bucket, endpoint: &str, more: &str) -> Bucket {
    Bucket { url: format!("{}?endpoint={endpoint}{more}", bucket.url), env: bucket.env.clone() }
}

/// A database that is replicated to a bucket, and open.
struct Place {
    dir: tempfile::TempDir,
    server: Option<Server>,
    bucket: Bucket,
    host: Host,
    db: Db,
}

impl Place {
    fn new(on_s3: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, bucket) = Bucket::somewhere(on_s3, dir.path());
        let mut host = Host::start(Program::Python, &bucket.env);
        let db = host.open(&host::replicated(&dir.path().join("app.db"), &bucket.url, &[]));
        host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t(x) VALUES (randomblob(60000))");
        host.sync(db);
        Self { dir, server, bucket, host, db }
    }

    fn database(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn doctor(&self, more: &[&str]) -> Told {
        let database = self.database();
        doctor(&self.bucket, &[&[database.to_str().unwrap()], more].concat())
    }
}

/// All files below a folder, with their sizes; but for the one that the application takes away a moment after the full state was sent.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else if entry.file_name() != "aside" {
            found.push((entry.path(), entry.metadata().unwrap().len()));
        }
    }
    found.sort();
    found
}

/// Where a server keeps its objects, without what it keeps of them elsewhere.
fn objects(server: &Server) -> PathBuf {
    server.root().join(server.bucket())
}

#[test]
fn all_is_well_where_it_is_and_nothing_is_left_behind() {
    for on_s3 in [false, true] {
        let mut place = Place::new(on_s3);
        // It is in the bucket before what it took beside the database is tidied up.
        eventually("the full state has ended", || !place.dir.path().join("app.db-replicated/aside").exists());
        let root = place.server.as_ref().map_or_else(|| place.dir.path().to_owned(), objects);
        let before = (files(place.dir.path()), files(&root));
        let told = place.doctor(&[]);
        assert_eq!((told.code, told.problems(), told.value["status"].as_str()), (0, vec![], Some("well")), "{}", told.text);
        for check in ["url", "list", "put", "get", "delete", "fencing", "lease", "parts", "speed", "contents", "restorable", "backup"] {
            assert_eq!(told.verdict(check), "ok", "{}", told.text);
        }
        for check in ["database", "replication", "together", "transactions", "wal", "integrity", "space", "writable"] {
            assert_eq!(told.verdict(check), "ok", "{}", told.text);
        }
        assert_eq!((files(place.dir.path()), files(&root)), before);
        let uploads = format!("(process {}) uploads", place.host.id());
        assert!(told.line("replication")["what"].as_str().unwrap().contains(&uploads), "{}", told.text);
        if let Some(server) = &place.server {
            assert!(!told.text.contains(server.secret_key()) && !told.text.contains(server.access_key()));
            for check in ["connection", "tls", "credentials", "clock"] {
                assert_eq!(told.verdict(check), "ok", "{}", told.text);
            }
        } else {
            assert_eq!(told.verdict("apart"), "warning");
        }
        // Nobody was kept from writing; and closed, it is as well.
        place.host.run(place.db, "INSERT INTO t(x) VALUES (1)");
        place.host.close(place.db);
        let told = place.doctor(&[]);
        assert_eq!((told.code, told.verdict("replication"), told.verdict("together")), (0, "ok", "ok"), "{}", told.text);
    }
}

#[test]
fn for_people_each_finding_says_what_it_means_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let run = |more: &[&str]| {
        let mut command = host::command(env!("CARGO_BIN_EXE_replicated"), &bucket.env);
        Told::of(command.env("PATH", "/nowhere").args(["doctor", &bucket.url, dir.path().join("app.db").to_str().unwrap()]).args(more))
    };
    let told = run(&[]);
    assert!(told.text.contains("PROBLEM  database") && told.text.contains("means: ") && told.text.contains("next: "), "{}", told.text);
    let quiet = run(&["--quiet"]);
    assert!(!quiet.text.contains("ok  ") && quiet.text.lines().count() < told.text.lines().count(), "{}", quiet.text);
    // A mistyped URL leaves no folders of that name.
    assert!(!dir.path().join("bucket").exists());
    let wrong = Told::of(
        host::command(env!("CARGO_BIN_EXE_replicated"), &[]).args(["doctor", "s3://k:hush@bucket/app", "--json"]).env("PATH", "/nowhere"),
    );
    wrong.is_only("url", "credentials");
    assert!(!wrong.text.contains("hush"), "{}", wrong.text);
}

#[test]
fn keys_a_bucket_and_a_region_that_are_wrong_are_told_apart() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "app");
    let with = |name: &str, value: &str| {
        let mut bucket = bucket.clone();
        bucket.env.retain(|(known, _)| known != name);
        bucket.env.push((name.to_owned(), value.to_owned()));
        bucket
    };
    let told = doctor(&with("AWS_SECRET_ACCESS_KEY", "wrong/secret+hush="), &[]);
    told.is_only("credentials", "the environment (AWS_ACCESS_KEY_ID)");
    assert!(told.text.contains("SignatureDoesNotMatch") && !told.text.contains("hush"), "{}", told.text);
    doctor(&with("AWS_ACCESS_KEY_ID", "AKIAHUSHHUSHHUSH"), &[]).is_only("credentials", "AWS_ACCESS_KEY_ID");
    doctor(&with("AWS_ACCESS_KEY_ID", ""), &[]).is_only("settings", "AWS_SECRET_ACCESS_KEY is set without");
    let nowhere = Bucket { url: bucket.url.clone(), env: vec![bucket.env[3].clone()] };
    doctor(&nowhere, &[]).is_only("credentials", "no credentials in the environment or in a profile");
    doctor(&Bucket { url: "s3://no-such-bucket/app".to_owned(), ..bucket.clone() }, &[]).is_only("bucket", "NoSuchBucket");

    let elsewhere = Endpoint::start(&server, Box::new(|_| Fault::Refusal(400, "AuthorizationHeaderMalformed", None))).unwrap();
    doctor(&bucket.through(&elsewhere.endpoint()), &[]).is_only("bucket", "region");
    elsewhere.follow(Box::new(|_| Fault::Refusal(500, "InternalError", None)));
    doctor(&bucket.through(&elsewhere.endpoint()), &[]).is_only("answer", "InternalError");
    elsewhere.follow(Box::new(|_| Fault::Refusal(503, "SlowDown", None)));
    let told = doctor(&bucket.through(&elsewhere.endpoint()), &[]);
    assert_eq!((told.code, told.verdict("answer")), (3, "not_checked"), "{}", told.text);
    elsewhere.follow(Box::new(|_| Fault::Refusal(403, "RequestTimeTooSkewed", None)));
    doctor(&bucket.through(&elsewhere.endpoint()), &[]).is_only("credentials", "clock");
}

/// What stands in the way of any command: cause and advice apart, and where to look further.
#[test]
fn other_commands_lead_to_the_doctor() {
    let server = Server::start().unwrap();
    let mut bucket = Bucket::s3(&server, "app");
    bucket.env.iter_mut().filter(|(name, _)| name == "AWS_SECRET_ACCESS_KEY").for_each(|(_, value)| "wrong/secret+hush=".clone_into(value));
    let gone = at(&bucket, "http://127.0.0.1:9", "");
    let database = tempfile::NamedTempFile::new().unwrap();
    for (bucket, cause, advice) in
        [(&bucket, "SignatureDoesNotMatch", "Check the access key"), (&gone, "http://127.0.0.1:9: ", "Nothing listens there")]
    {
        for command in [
            &["list"] as &[&str],
            &["restore", "-o", "/nowhere/app.db"],
            &["verify"],
            &["maintain", "--dry-run"],
            &["adopt", database.path().to_str().unwrap()],
        ] {
            let told = Told::of(host::command(env!("CARGO_BIN_EXE_replicated"), &bucket.env).args(command).arg(&bucket.url));
            let line = |name: &str| {
                told.text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{command:?}: {}", told.text))
            };
            assert!(line("  why: ").contains(cause) && !line("  why: ").contains(advice), "{command:?}: {}", told.text);
            assert!(line("  try: ").starts_with(advice), "{command:?}: {}", told.text);
            assert!(line("  try: ").contains(&format!("`replicated doctor {}`", bucket.url)), "{command:?}: {}", told.text);
            assert!(!told.text.contains("hush"), "{}", told.text);
        }
    }
}

#[test]
fn short_lived_keys_are_told_of_before_they_end() {
    let server = Server::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let keys = format!("[app]\naws_access_key_id = {}\naws_secret_access_key = {}\n", server.access_key(), server.secret_key());
    let file = dir.path().join("credentials");
    let mut bucket = Bucket::s3(&server, "app");
    bucket.env.retain(|(name, _)| !name.contains("ACCESS_KEY"));
    bucket.env.extend(
        [("AWS_PROFILE", "app"), ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap()), ("AWS_CONFIG_FILE", "/nowhere")]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let hour = replicated::types::TimestampMs(replicated::maintenance::now().0 + 3_600_000).to_rfc3339();
    for (ends, verdict, part) in
        [("", "ok", "do not say that they end"), (&hour, "warning", &hour[..10]), ("2020-01-01T00:00:00Z", "problem", "2020-01-01")]
    {
        let ends = if ends.is_empty() { String::new() } else { format!("x_security_token_expires = {ends}\n") };
        fs::write(&file, format!("{keys}{ends}")).unwrap();
        let told = doctor(&bucket, &[]);
        assert_eq!(told.verdict("credentials"), verdict, "{}", told.text);
        let what = told.line("credentials")["what"].as_str().unwrap();
        assert!(what.contains(part) && what.contains("profile \"app\""), "{what}");
    }
}

/// What a machine hands out has an end, and is renewed.
#[test]
fn credentials_of_a_container_are_renewed_by_themselves() {
    let server = Server::start().unwrap();
    let mut bucket = Bucket::s3(&server, "app");
    bucket.env.retain(|(name, _)| !name.contains("ACCESS_KEY"));
    let ends = replicated::types::TimestampMs(replicated::maintenance::now().0 + 3_600_000).to_rfc3339();
    let (id, secret) = (server.access_key(), server.secret_key());
    let body = format!(r#"{{"AccessKeyId":"{id}","SecretAccessKey":"{secret}","Token":"","Expiration":"{ends}"}}"#);
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}/credentials", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if matches!(stream.read(&mut [0; 4096]), Ok(1..)) {
                stream.write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "token").unwrap();
    let more =
        [("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str()), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.path().to_str().unwrap())];
    bucket.env.extend(more.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let told = doctor(&bucket, &[]);
    assert_eq!(told.verdict("credentials"), "ok", "{}", told.text);
    let what = told.line("credentials")["what"].as_str().unwrap();
    assert!(what.contains("container's credentials service") && what.contains(&ends[..10]) && what.contains("renewed"), "{what}");
    assert!(!told.text.contains(secret));
}

#[test]
fn each_permission_that_is_missing_is_named() {
    let server = Server::start().unwrap();
    let endpoint = Endpoint::start(&server, Box::new(|_| Fault::None)).unwrap();
    let bucket = Bucket::s3(&server, "app").through(&endpoint.endpoint());
    let refuse = |refused: Kind| {
        endpoint.follow(Box::new(move |seen| if seen.kind == refused { Fault::Refusal(403, "AccessDenied", None) } else { Fault::None }));
        doctor(&bucket, &[])
    };
    refuse(Kind::List).is_only("list", "s3:ListBucket");
    refuse(Kind::Put).is_only("put", "s3:PutObject");
    refuse(Kind::Get).is_only("get", "s3:GetObject");
    refuse(Kind::Begin).is_only("parts", "s3:AbortMultipartUpload");
    assert_eq!(files(&objects(&server)), []);
    let told = refuse(Kind::Delete);
    // An upload in parts that cannot be given up is one that is left.
    assert_eq!((told.code, told.problems(), told.verdict("delete")), (1, vec!["parts"], "warning"), "{}", told.text);
    let left = files(&objects(&server));
    assert_eq!(left.len(), 1);
    let name = left[0].0.file_name().unwrap().to_str().unwrap();
    assert!(told.line("delete")["what"].as_str().unwrap().contains(name), "{}", told.text);
    assert_eq!(told.all("speed"), []);
    // It is told of until it is deleted, and no restore takes it for a file.
    endpoint.behave();
    let told = doctor(&bucket, &[]);
    assert!(told.code == 0 && told.line("leftovers")["what"].as_str().unwrap().contains(name), "{}", told.text);
    assert!(told.line("contents")["what"].as_str().unwrap().contains("nothing yet"), "{}", told.text);
}

#[test]
fn a_store_without_conditions_is_found_out() {
    let server = Server::with_options(Options { ignores_conditions: true, ..Options::default() }).unwrap();
    let told = doctor(&Bucket::s3(&server, "app"), &[]);
    assert_eq!((told.code, told.verdict("fencing")), (0, "warning"), "{}", told.text);
    assert!(told.line("fencing")["what"].as_str().unwrap().contains("replaces"), "{}", told.text);

    let server = Server::start().unwrap();
    let mut first = true;
    let endpoint = Endpoint::start(
        &server,
        Box::new(move |seen| {
            if seen.kind == Kind::Put && std::mem::take(&mut first) { Fault::Refusal(501, "NotImplemented", None) } else { Fault::None }
        }),
    );
    let told = doctor(&Bucket::s3(&server, "app").through(&endpoint.unwrap().endpoint()), &[]);
    assert_eq!((told.code, told.verdict("put"), told.verdict("fencing")), (0, "ok", "warning"), "{}", told.text);
    assert!(told.line("fencing")["what"].as_str().unwrap().contains("refuses conditions"), "{}", told.text);
    assert_eq!(files(&objects(&server)), []);
}

/// Refuses everything, over TLS.
fn serve(certificate: &str) -> String {
    tls::serve(certificate, "403 Forbidden", "")
}

#[test]
fn certificates_are_told_apart() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "app");
    let trusted = format!("&ca_bundle={TLS}/others-ca.pem");
    doctor(&at(&bucket, &serve("server"), ""), &[]).is_only("tls", "ca_bundle");
    doctor(&at(&bucket, &serve("expired"), &trusted), &[]).is_only("tls", "run out");
    doctor(&at(&bucket, &serve("other-name"), &trusted), &[]).is_only("tls", "another name");
    doctor(&at(&bucket, &server.endpoint().replace("http://", "https://"), ""), &[]).is_only("tls", "speaks no TLS");
    let told = doctor(&at(&bucket, &serve("server").replace("https://", "http://"), ""), &[]);
    told.is_only("answer", "https://");
    // One that is good is said to be, whatever comes after.
    let told = doctor(&at(&bucket, &serve("server"), &format!("&ca_bundle={TLS}/ca.pem")), &[]);
    assert_eq!((told.code, told.verdict("tls"), told.verdict("list")), (1, "ok", "problem"), "{}", told.text);
    assert_eq!(told.verdict("contents"), "skipped");
    doctor(&at(&bucket, "https://localhost", "&ca_bundle=/nowhere/ca.pem"), &[]).is_only("settings", "/nowhere/ca.pem");
}

#[test]
fn a_way_that_leads_nowhere_ends() {
    let server = Server::start().unwrap();
    let bucket = Bucket::s3(&server, "app");
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let by_proxy = bucket.through(&proxy.endpoint());
    proxy.set(Mode::Hang).unwrap();
    doctor(&by_proxy, &["--timeout", "300ms"]).is_only("answer", "no answer");
    proxy.set(Mode::Refuse).unwrap();
    doctor(&by_proxy, &[]).is_only("connection", "Nothing listens");
    doctor(&at(&bucket, "http://no-such-host.invalid", ""), &["--timeout", "20s"]).is_only("name", "no-such-host.invalid");
    // What answers is no store.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"220 mail.example ESMTP\r\n");
        }
    });
    doctor(&at(&bucket, &endpoint, ""), &[]).is_only("answer", "endpoint");
    // Nor is what says by a page for people that there is no such page.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\nconnection: close\r\n\r\nnot found");
        }
    });
    doctor(&at(&bucket, &endpoint, ""), &[]).is_only("answer", "a console has another port than the store");
}

#[test]
fn a_clock_that_is_wrong_is_seen_by_the_stores() {
    let server = Server::with_options(Options { date: Some("Sun, 06 Nov 1994 08:49:37 GMT"), ..Options::default() }).unwrap();
    let told = doctor(&Bucket::s3(&server, "app"), &[]);
    told.is_only("clock", "ahead of the store's");
}

#[test]
fn a_folder_that_nobody_may_write_to_is_one_problem() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("bucket");
    fs::create_dir(&folder).unwrap();
    let database = dir.path().join("app.db");
    Connection::open(&database).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    let program = dir.path().join("replicated");
    fs::copy(env!("CARGO_BIN_EXE_replicated"), &program).unwrap();
    for (path, mode) in [(&folder, 0o555), (&database, 0o444), (&program, 0o755), (&dir.path().to_owned(), 0o555)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = host::command(&program, &[]);
    command.env("PATH", "/nowhere").args(["doctor", "--json"]).arg(format!("file://{}/app", folder.display())).arg(&database);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let told = Told::of(&mut command);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!((told.code, told.problems()), (1, vec!["put", "writable"]), "{}", told.text);
    assert!(told.line("put")["next"].as_str().unwrap().contains("permission to read and write"), "{}", told.text);
    assert_eq!(told.verdict("integrity"), "ok", "{}", told.text);
}

#[test]
fn what_is_no_database_is_told_from_one_that_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let path = dir.path().join("app.db");
    let look = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        doctor(&bucket, &[path.to_str().unwrap()])
    };
    look(&b"This is a letter, and no database. ".repeat(200)).is_only("database", "file is not a database");
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(8192).collect();
    look(&noise).is_only("database", "encrypted");
    assert_eq!(look(b"").verdict("database"), "warning");
    fs::remove_file(&path).unwrap();
    doctor(&bucket, &[path.to_str().unwrap()]).is_only("database", "restore=if-missing");
    let nowhere = doctor(&bucket, &[dir.path().join("none/app.db").to_str().unwrap()]);
    assert_eq!(nowhere.problems(), ["database", "disk"], "{}", nowhere.text);
    assert!(nowhere.line("disk")["what"].as_str().unwrap().ends_with("none is not there"), "{}", nowhere.text);

    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE t(a, b); CREATE INDEX i ON t(a);").unwrap();
    connection
        .execute_batch(
            "WITH n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500) INSERT INTO t SELECT i, hex(randomblob(50)) FROM n;",
        )
        .unwrap();
    drop(connection);
    // What is beside it is no less looked at.
    let beside = dir.path().join("app.db-replicated");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("control"), "damaged").unwrap();
    let told = doctor(&bucket, &[path.to_str().unwrap()]);
    assert_eq!((told.code, told.verdict("replication")), (0, "warning"), "{}", told.text);
    assert!(told.line("replication")["what"].as_str().unwrap().contains("is not what this version writes"), "{}", told.text);
    fs::remove_dir_all(&beside).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[3 * 4096..4 * 4096].fill(0x5a);
    look(&bytes).is_only("integrity", "damaged");
}

#[test]
fn transactions_that_last_are_seen_and_named() {
    let place = Place::new(false);
    let reader = Connection::open(place.database()).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    let writer = Connection::open(place.database()).unwrap();
    writer.execute_batch("INSERT INTO t(x) VALUES (2)").unwrap();
    let us = format!("(process {})", std::process::id());
    let told = place.doctor(&[]);
    assert_eq!((told.code, told.verdict("transactions")), (0, "warning"), "{}", told.text);
    let what = told.line("transactions")["what"].as_str().unwrap();
    assert!(what.contains(&us) && what.contains("read transaction") && what.contains("frames behind"), "{what}");
    reader.execute_batch("COMMIT").unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let told = place.doctor(&[]);
    let what = told.line("transactions")["what"].as_str().unwrap();
    assert!(told.code == 0 && what.contains(&us) && what.contains("write transaction"), "{}", told.text);
    writer.execute_batch("COMMIT").unwrap();
    assert_eq!(place.doctor(&[]).verdict("transactions"), "ok");

    // In a rollback-journal mode a reader keeps others from committing.
    let other = place.dir.path().join("other.db");
    let writer = Connection::open(&other).unwrap();
    writer.execute_batch("CREATE TABLE t(x); BEGIN IMMEDIATE; INSERT INTO t VALUES (1)").unwrap();
    let told = doctor(&place.bucket, &[other.to_str().unwrap()]);
    assert!(told.line("transactions")["what"].as_str().unwrap().contains("write transaction"), "{}", told.text);
    writer.execute_batch("COMMIT; BEGIN; SELECT count(*) FROM t").unwrap();
    let told = doctor(&place.bucket, &[other.to_str().unwrap()]);
    assert!(told.line("transactions")["what"].as_str().unwrap().contains("read transaction"), "{}", told.text);
}

#[test]
fn what_stands_in_the_way_of_a_running_application_is_said() {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (path, bucket) = (dir.path().join("app.db"), Bucket::s3(&server, "app"));
    let mut host = Host::start(Program::Python, &bucket.through(&proxy.endpoint()).env);
    let db = host.open(&host::replicated(&path, &bucket.url, &[("close_timeout", "0s")]));
    host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(x)");
    host.sync(db);
    proxy.set(Mode::Refuse).unwrap();
    host.run(db, "INSERT INTO t VALUES (1)");
    eventually("it is offline", || host.status(db, "state") == "offline");
    // The doctor's own way is good.
    let told = doctor(&bucket, &[path.to_str().unwrap()]);
    told.is_only("replication", "offline");
    assert!(told.text.contains("environment differs"), "{}", told.text);
    host.kill();
    let told = doctor(&bucket, &[path.to_str().unwrap()]);
    assert_eq!((told.code, told.verdict("replication")), (0, "warning"), "{}", told.text);
    assert!(told.line("replication")["what"].as_str().unwrap().contains("no process has it open"), "{}", told.text);
}

#[test]
fn a_bucket_that_is_not_this_databases_is_told_of() {
    let mut place = Place::new(false);
    let path = place.database();
    place.host.close(place.db);
    // Another host has gone on with it.
    let other = place.dir.path().join("other.db");
    place.bucket.restore(&other);
    let db = place.host.open(&host::replicated(&other, &place.bucket.url, &[]));
    place.host.run(db, "INSERT INTO t(x) VALUES (1)");
    place.host.sync(db);
    place.host.close(db);
    place.doctor(&[]).is_only("together", "Another host");
    let told = doctor(&place.bucket, &[other.to_str().unwrap()]);
    assert_eq!((told.code, told.verdict("together")), (0, "ok"), "{}", told.text);

    // One that knows nothing of it, one of another page size, and one whose bucket was emptied.
    let strange = place.dir.path().join("strange.db");
    Connection::open(&strange).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    let told = doctor(&place.bucket, &[strange.to_str().unwrap()]);
    assert_eq!((told.code, told.verdict("together")), (0, "warning"), "{}", told.text);
    Connection::open(&strange).unwrap().execute_batch("PRAGMA page_size=1024; VACUUM").unwrap();
    doctor(&place.bucket, &[strange.to_str().unwrap()]).is_only("together", "of 1024");
    let elsewhere = Bucket { url: format!("{}/elsewhere", place.bucket.url), ..place.bucket.clone() };
    assert_eq!(doctor(&elsewhere, &[path.to_str().unwrap()]).verdict("replication"), "warning");
    // Settings that name another URL are told of; one with a placeholder is that of the database.
    let mut set = place.bucket.clone();
    set.env.push(("REPLICATED_REPLICA".to_owned(), format!("{}/{{name}}", place.bucket.url)));
    let told = doctor(&set, &[other.to_str().unwrap()]);
    assert_eq!((told.code, told.verdict("settings")), (0, "warning"), "{}", told.text);
    let by_name = Bucket { url: format!("file://{}/{{name}}", place.dir.path().display()), ..place.bucket.clone() };
    fs::rename(&other, place.dir.path().join("bucket.db")).unwrap();
    let told = doctor(&by_name, &[place.dir.path().join("bucket.db").to_str().unwrap()]);
    assert!(told.value["url"].as_str().unwrap().ends_with("/bucket.db"), "{}", told.text);
    fs::remove_dir_all(place.dir.path().join("bucket")).unwrap();
    place.doctor(&[]).is_only("together", "has no uploads now");
}

#[test]
fn damage_a_gap_and_a_lock_that_is_none_are_found_in_the_bucket() {
    let mut place = Place::new(false);
    place.host.run(place.db, "INSERT INTO t(x) VALUES (randomblob(9000))");
    place.host.sync(place.db);
    place.host.close(place.db);
    let bucket = place.dir.path().join("bucket");
    fs::write(bucket.join("lock.json"), "mine").unwrap();
    place.doctor(&[]).is_only("writers", "no lease");
    fs::remove_file(bucket.join("lock.json")).unwrap();
    let newest = files(&bucket.join("ltx/0")).pop().unwrap().0;
    let mut bytes = fs::read(&newest).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&newest, &bytes).unwrap();
    place.doctor(&[]).is_only("backup", newest.file_name().unwrap().to_str().unwrap());
    fs::remove_dir_all(bucket.join("ltx/9")).unwrap();
    let told = place.doctor(&[]);
    assert_eq!((told.code, told.verdict("restorable")), (1, "problem"), "{}", told.text);
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/litestream-0.3.13-generations");
    let copy = place.dir.path().join("old");
    let copied = Command::new("cp").arg("-r").arg(fixture).arg(&copy).status().unwrap();
    assert!(copied.success());
    doctor(&Bucket::folder(&copy), &[]).is_only("contents", "0.3");
}

#[test]
fn the_hosts_sqlite_is_looked_at_in_a_process_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let extension = host::extension();
    let extension = extension.to_str().unwrap();
    // The library that the system's Python has loaded.
    let script = "import sqlite3; print(next(l.split()[-1] for l in open('/proc/self/maps') if 'libsqlite3' in l))";
    let found = Command::new(host::python()).args(["-c", script]).output().unwrap();
    let library = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    assert!(found.status.success() && !library.is_empty());
    let told = doctor(&bucket, &["--sqlite", &library, "--extension", extension]);
    assert!(told.code == 0 && told.line("sqlite")["what"].as_str().unwrap().ends_with("and the extension loads in it"), "{}", told.text);
    // What is no extension does not load; what is no SQLite is none.
    doctor(&bucket, &["--sqlite", &library, "--extension", env!("CARGO_MANIFEST_PATH")]).is_only("sqlite", "make build");
    let told = doctor(&bucket, &["--sqlite", extension]);
    assert_eq!(
        (told.code, told.verdict("sqlite"), told.value["status"].as_str()),
        (3, "not_checked", Some("not_checked")),
        "{}",
        told.text
    );
    doctor(&bucket, &["--extension", "/nowhere/replicated.so"]).is_only("extension", "/nowhere/replicated.so");
    // Those on the path are asked as they are.
    let told = Told::of(command(&bucket).env("PATH", "/usr/bin:/bin").args(["--extension", extension]));
    assert!(told.code == 0 && told.line("python3")["what"].as_str().unwrap().contains("/usr/bin/python3"), "{}", told.text);
}
