//! Failures are told apart, told in one line with advice, tried once, and never repeat a secret.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use replicated::store::{Created, Env, Level, LtxName, ReplicaUrl, Store, StoreError, StoreErrorKind as Kind, StoreOptions, open_with_env};
use replicated::types::{TimestampMs, Txid};
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::Server;

const NAME: LtxName = LtxName::level0(Txid::FIRST);
const SECRETS: [&str; 3] = ["AKIAHUSHHUSHHUSH", "wrong/secret+hush=", "session-token-hush"];

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn impatient() -> StoreOptions {
    StoreOptions { request_timeout: Duration::from_millis(700), connect_timeout: Duration::from_millis(700), ..StoreOptions::default() }
}

fn env(variables: &[(&str, &str)]) -> Env {
    variables.iter().copied().chain([("AWS_EC2_METADATA_DISABLED", "true")]).collect()
}

fn wrong_credentials() -> Env {
    let [id, secret, token] = SECRETS;
    env(&[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_SESSION_TOKEN", token)])
}

fn open(url: &str, env: &Env) -> Arc<dyn Store> {
    open_with_env(&ReplicaUrl::parse(url).unwrap(), &impatient(), env).unwrap()
}

fn open_error(url: &str, env: &Env) -> StoreError {
    open_with_env(&ReplicaUrl::parse(url).unwrap(), &impatient(), env).unwrap_err()
}

/// Every operation's failure, by its name.
async fn failures(store: &dyn Store) -> Vec<(&'static str, StoreError)> {
    let timestamp = TimestampMs(0);
    vec![
        ("list", store.list(Level::ZERO, None).await.unwrap_err()),
        ("create", store.create(&NAME, Bytes::from_static(b"x"), timestamp).await.unwrap_err()),
        ("upload", store.upload(&NAME, timestamp).await.err().unwrap()),
        ("get", store.get_range(&NAME, 0..1).await.unwrap_err()),
        ("head", store.head(&NAME).await.unwrap_err()),
        ("delete", store.delete(&[NAME]).await.unwrap_err()),
        ("probe", store.creates_are_conditional().await.unwrap_err()),
    ]
}

fn says_no_secret(store: &dyn Store, error: &StoreError) {
    for said in [error.to_string(), format!("{error:?}"), format!("{store:?}"), store.url().to_owned()] {
        for secret in SECRETS {
            assert!(!said.contains(secret), "{said}");
        }
        assert!(!said.contains("Signature=") && !said.contains("AWS4-HMAC"), "{said}");
    }
    assert!(!error.cause.contains('\n') && error.cause.len() < 300, "{error}");
}

#[test]
fn wrong_credentials_are_told_from_missing_permissions() {
    let server = Server::start().unwrap();
    let right_id = env(&[("AWS_ACCESS_KEY_ID", server.access_key()), ("AWS_SECRET_ACCESS_KEY", SECRETS[1])]);
    for env in [wrong_credentials(), right_id] {
        let store = open(&server.url("db"), &env);
        for (operation, error) in run(failures(&*store)) {
            // An answer to HEAD has no body that would say which it is.
            let expected = if operation == "head" { Kind::PermissionDenied } else { Kind::Credentials };
            assert_eq!((operation, error.kind), (error.operation, expected), "{error}");
            assert!(error.cause.starts_with("HTTP 403"), "{error}");
            assert!(error.advice.to_lowercase().contains("credentials") || error.advice.contains("access key"), "{error}");
            assert!(!error.is_transient());
            says_no_secret(&*store, &error);
        }
    }
}

#[test]
fn a_missing_bucket_is_told_from_a_missing_object() {
    let server = Server::start().unwrap();
    let env: Env = server.env().into_iter().collect();
    let store = open("s3://no-such-bucket/db", &env);
    for (operation, error) in run(failures(&*store)) {
        match operation {
            "head" => assert_eq!(error.kind, Kind::NotFound),
            _ => assert_eq!(error.kind, Kind::NoSuchBucket, "{error}"),
        }
    }
}

#[test]
fn a_dead_network_is_unreachable_and_a_silent_one_times_out() {
    let server = Server::start().unwrap();
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    let url = format!("s3://replicas/db?endpoint={}", proxy.endpoint());
    let env: Env = server.env().into_iter().collect();
    let store = open(&url, &env);
    run(async {
        assert_eq!(store.create(&NAME, Bytes::from(vec![7; 300_000]), TimestampMs(0)).await.unwrap(), Created::New);
        proxy.set(Mode::Refuse).unwrap();
        // What is left of the connection that was open.
        assert!(store.head(&NAME).await.unwrap_err().is_transient());
        for (_, error) in failures(&*store).await {
            assert_eq!(error.kind, Kind::Unreachable, "{error}");
            assert!(error.is_transient() && error.cause.contains("refused"), "{error}");
            // Where it was asked is said, and nothing is said twice.
            assert!(error.cause.starts_with(&proxy.endpoint()) && error.advice.contains("listens"), "{error}");
            assert!(!error.cause.contains("error sending request"), "{error}");
        }
        proxy.set(Mode::Hang).unwrap();
        for (_, error) in failures(&*store).await {
            assert_eq!(error.kind, Kind::Timeout, "{error}");
        }
        proxy.set(Mode::Cut { after_bytes: 100_000 }).unwrap();
        let error = store.get_range(&NAME, 0..300_000).await.unwrap_err();
        assert_eq!(error.kind, Kind::Truncated, "{error}");
        proxy.set(Mode::Cut { after_bytes: 10 }).unwrap();
        for (_, error) in failures(&*store).await {
            assert_eq!(error.kind, Kind::Server, "{error}");
        }
        // The same store works again as soon as the network does.
        proxy.set(Mode::Forward).unwrap();
        assert!(store.list(Level::ZERO, None).await.is_ok());
    });
}

#[test]
fn a_server_that_speaks_no_tls_is_unreachable() {
    let server = Server::start().unwrap();
    let env: Env = server.env().into_iter().collect();
    let url = format!("s3://replicas/db?endpoint={}", server.endpoint().replace("http://", "https://"));
    let error = run(open(&url, &env).list(Level::ZERO, None)).unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable, "{error}");
    assert!(error.advice.contains("no TLS"), "{error}");
}

/// A server that gives each request the next of some answers, the last one again and again.
struct Scripted {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn start(answers: &[(u16, &str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let answers: Vec<String> = answers
            .iter()
            .map(|(status, headers, body)| {
                format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
            })
            .collect();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let served = AtomicUsize::new(0);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                let mut request = Vec::new();
                // The client sends all it has to say and waits.
                let _ = stream.read_to_end(&mut request);
                let head = String::from_utf8_lossy(&request).into_owned();
                seen.lock().unwrap().push(head.split("\r\n\r\n").next().unwrap().to_lowercase());
                let answer = &answers[served.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)];
                let is_head = request.starts_with(b"HEAD");
                let answer = if is_head { answer.split_inclusive("\r\n\r\n").next().unwrap() } else { answer };
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        Self { endpoint, requests }
    }

    fn store(&self) -> Arc<dyn Store> {
        open(&format!("s3://bkt/db?endpoint={}", self.endpoint), &wrong_credentials())
    }

    fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn xml(code: &str, message: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message><Key>k</Key></Error>")
}

fn created(status: u16, headers: &str, body: &str) -> Result<Created, StoreError> {
    let server = Scripted::start(&[(status, headers, body)]);
    let store = server.store();
    let outcome = run(store.create(&NAME, Bytes::from_static(b"body"), TimestampMs(0)));
    assert_eq!(server.count(), 1, "a call is one attempt");
    if let Err(error) = &outcome {
        says_no_secret(&*store, error);
    }
    outcome
}

#[test]
fn answers_become_kinds() {
    for (status, code, kind, said) in [
        (403, "AccessDenied", Kind::PermissionDenied, "Allow the credentials"),
        (403, "RequestTimeTooSkewed", Kind::Credentials, "clock"),
        (400, "ExpiredToken", Kind::Credentials, "session token"),
        (401, "Unauthorized", Kind::Credentials, "access key"),
        (404, "NoSuchBucket", Kind::NoSuchBucket, "Create the bucket"),
        (409, "ConditionalRequestConflict", Kind::Server, "409"),
        (429, "TooManyRequests", Kind::Throttled, "429"),
        (503, "SlowDown", Kind::Throttled, "503"),
        (503, "", Kind::Throttled, "503"),
        (500, "InternalError", Kind::Server, "500"),
        (502, "", Kind::Server, "502"),
        (504, "", Kind::Timeout, "504"),
        (400, "RequestTimeout", Kind::Timeout, "more time"),
        (400, "InvalidArgument", Kind::Protocol, "InvalidArgument"),
        (418, "", Kind::Protocol, "418"),
    ] {
        let error = created(status, "", &xml(code, "some\n  words")).unwrap_err();
        assert_eq!(error.kind, kind, "{status} {code}: {error}");
        assert!(error.to_string().contains(said) && error.cause.contains(&status.to_string()), "{error}");
        assert!(error.cause.contains("some words"), "{error}");
        assert_eq!(error.retry_after, None);
    }
    assert_eq!(created(412, "", &xml("PreconditionFailed", "exists")).unwrap(), Created::AlreadyExists);
    assert_eq!(created(409, "", "").unwrap(), Created::AlreadyExists);
}

#[test]
fn a_store_says_when_to_come_back_and_where_the_bucket_is() {
    let error = created(503, "retry-after: 17\r\n", "").unwrap_err();
    assert_eq!((error.kind, error.retry_after), (Kind::Throttled, Some(Duration::from_secs(17))));
    for (status, code) in [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")] {
        let error = created(status, "x-amz-bucket-region: eu-central-1\r\n", &xml(code, "elsewhere")).unwrap_err();
        assert_eq!(error.kind, Kind::Protocol);
        assert!(error.to_string().contains("the bucket is in eu-central-1") && error.to_string().contains("AWS_REGION"), "{error}");
    }
}

#[test]
fn a_store_that_repeats_secrets_is_not_quoted() {
    let [id, secret, token] = SECRETS;
    let body = xml("AccessDenied", &format!("key {id} secret {secret} token {token}")).replace("<Key>k", &format!("<AWSAccessKeyId>{id}"));
    let error = created(403, "", &body).unwrap_err();
    assert!(error.cause.contains("key *** secret *** token ***"), "{error}");
    // A message that is cut off is not cut off within a secret.
    let error = created(403, "", &xml("AccessDenied", &format!("{}{token}", "x".repeat(195)))).unwrap_err();
    assert!(!error.cause.contains("sess"), "{error}");
    // Nor where it is no XML at all.
    created(400, "", &format!("x-amz-security-token:{token} {}", "x".repeat(9000))).unwrap_err();
}

#[test]
fn a_store_without_conditions_is_looked_at_first() {
    let unsupported = xml("NotImplemented", "A header you provided implies functionality that is not implemented");
    let found = "last-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\netag: \"x\"\r\n";
    let server = Scripted::start(&[(501, "", &unsupported), (404, "", ""), (200, "etag: \"x\"\r\n", ""), (200, found, "")]);
    let store = server.store();
    let create = || store.create(&NAME, Bytes::from_static(b"body"), TimestampMs(0));
    assert_eq!(run(create()).unwrap(), Created::New);
    assert_eq!(run(create()).unwrap(), Created::AlreadyExists);
    let requests = server.requests.lock().unwrap().clone();
    let methods: Vec<_> = requests.iter().map(|r| r.split(' ').next().unwrap()).collect();
    assert_eq!(methods, ["put", "head", "put", "head"]);
    let conditional: Vec<_> = requests.iter().map(|r| r.contains("if-none-match: *")).collect();
    assert_eq!(conditional, [true, false, false, false]);
    assert!(requests[2].contains("x-amz-meta-litestream-timestamp: 1970-01-01t00:00:00.000z"), "{}", requests[2]);
    assert!(requests[0].contains(concat!("user-agent: replicated/", env!("CARGO_PKG_VERSION"))), "{}", requests[0]);
}

#[test]
fn a_store_that_ignores_conditions_is_found_out() {
    let server = Scripted::start(&[(200, "etag: \"x\"\r\n", "")]);
    let store = server.store();
    assert!(!run(store.creates_are_conditional()).unwrap());
    let asked = server.count();
    assert!(!run(store.creates_are_conditional()).unwrap());
    assert_eq!(server.count(), asked, "the answer is kept");
    let probed = server.requests.lock().unwrap().clone();
    assert!(probed.iter().all(|r| r.contains("/bkt/db/0000/.replicated-probe-")), "{probed:?}");
    assert!(probed.last().unwrap().starts_with("delete"), "{probed:?}");
}

#[test]
fn a_store_that_may_not_be_deleted_from_is_probed_all_the_same() {
    let ok = (200, "etag: \"x\"\r\n", "");
    let denied = xml("AccessDenied", "no");
    let server = Scripted::start(&[ok, (412, "", ""), (403, "", &denied)]);
    assert!(run(server.store().creates_are_conditional()).unwrap());
    assert_eq!(server.count(), 3);
}

#[test]
fn the_end_of_an_upload_is_conditional() {
    let begun = "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>";
    let ok = (200, "etag: \"x\"\r\n", "");
    let server = Scripted::start(&[(200, "", begun), ok, (404, "", ""), (412, "", ""), (204, "", "")]);
    let store = server.store();
    let outcome = run(async {
        let mut upload = store.upload(&NAME, TimestampMs(0)).await.unwrap();
        upload.part(Bytes::from_static(b"part")).await.unwrap();
        upload.finish().await
    });
    assert_eq!(outcome.unwrap(), Created::AlreadyExists);
    let requests = server.requests.lock().unwrap().clone();
    let methods: Vec<_> = requests.iter().map(|r| r.split(' ').next().unwrap()).collect();
    assert_eq!(methods, ["post", "put", "head", "post", "delete"]);
    assert!(requests[3].contains("if-none-match: *"), "{}", requests[3]);
}

#[test]
fn keys_begin_with_a_slash_where_litestreams_do() {
    let listing = "<ListBucketResult><Contents><Key>/0000/0000000000000001-0000000000000001.ltx</Key><Size>4</Size>\
                   <LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>";
    let server = Scripted::start(&[(200, "etag: \"x\"\r\n", ""), (200, "", listing), (204, "", "")]);
    let store = open(&format!("s3://bkt/?endpoint={}", server.endpoint), &wrong_credentials());
    run(async {
        store.create(&NAME, Bytes::new(), TimestampMs(0)).await.unwrap();
        assert_eq!(store.list(Level::ZERO, None).await.unwrap()[0].name, NAME);
        store.delete(&[NAME]).await.unwrap();
    });
    let requests = server.requests.lock().unwrap().clone();
    assert!(requests[0].starts_with("put /bkt//0000/0000000000000001-0000000000000001.ltx "), "{}", requests[0]);
    assert!(requests[1].starts_with("get /bkt/?list-type=2&prefix=%2f0000%2f "), "{}", requests[1]);
    assert!(requests[2].starts_with("delete /bkt//0000/0000000000000001-0000000000000001.ltx "), "{}", requests[2]);
}

#[test]
fn a_store_without_bulk_deletion_is_emptied_one_by_one() {
    let server = Scripted::start(&[(501, "", &xml("NotImplemented", "no")), (204, "", ""), (404, "", &xml("NoSuchKey", "gone"))]);
    let names = [NAME, LtxName::level0(Txid::new(2).unwrap())];
    run(server.store().delete(&names)).unwrap();
    assert_eq!(server.count(), 3);
}

#[test]
fn missing_credentials_are_told_at_the_first_operation() {
    let begun = Instant::now();
    let store = open("s3://bkt/db", &env(&[("HOME", "/nonexistent")]));
    let error = run(store.list(Level::ZERO, None)).unwrap_err();
    assert_eq!(error.kind, Kind::Credentials, "{error}");
    assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

/// An environment whose only source of credentials is the metadata service at an address.
fn machine(metadata: &str) -> Env {
    [("HOME", "/nonexistent"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)].into_iter().collect()
}

#[test]
fn a_machine_gives_credentials() {
    let server = Server::start().unwrap();
    let keys = format!(
        r#"{{"Code":"Success","AccessKeyId":"{}","SecretAccessKey":"{}","Token":"t","Expiration":"2100-01-01T00:00:00Z"}}"#,
        server.access_key(),
        server.secret_key()
    );
    let metadata = Scripted::start(&[(200, "", "metadata-token"), (200, "", "role"), (200, "", &keys)]);
    let store = open(&server.url("db"), &machine(&metadata.endpoint));
    run(async {
        assert_eq!(store.list(Level::ZERO, None).await.unwrap(), []);
        assert_eq!(store.list(Level::ZERO, None).await.unwrap(), []);
    });
    assert_eq!(metadata.count(), 3, "credentials are kept until they expire");
}

#[test]
fn a_machine_without_credentials_is_told_so() {
    let server = Server::start().unwrap();
    let metadata = Scripted::start(&[(404, "", "no role")]);
    let nobody = "http://127.0.0.1:1";
    for endpoint in [metadata.endpoint.as_str(), nobody] {
        let error = run(open(&server.url("db"), &machine(endpoint)).list(Level::ZERO, None)).unwrap_err();
        assert_eq!(error.kind, Kind::Credentials, "{error}");
        assert!(error.cause.starts_with("no credentials from the environment, a profile or this machine"), "{error}");
        assert!(error.advice.contains("AWS_ACCESS_KEY_ID"), "{error}");
    }
}

#[test]
fn settings_that_cannot_work_are_told_at_once() {
    let told = |url: &str, env: &Env, said: &str| {
        let error = open_error(url, env);
        assert!(error.to_string().contains(said) && !error.is_transient(), "{error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    };
    let keys = wrong_credentials();
    told("s3://b/db", &env(&[("AWS_ACCESS_KEY_ID", "x")]), "AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY");
    told("s3://b/db", &env(&[("LITESTREAM_SECRET_ACCESS_KEY", "hush")]), "set without AWS_ACCESS_KEY_ID");
    told("s3://b/db?profile=nope", &keys, "profile \"nope\" is in none of");
    told("s3://b/db?endpoint=http://h&allow_http=false", &keys, "allow_http is false");
    told("s3://b/db?ca_bundle=/nonexistent.pem", &keys, "ca_bundle /nonexistent.pem: No such file");
    told("s3://b/db?ca_bundle=/dev/null", &keys, "there is no certificate in it. Name a file");
    told("abs://box/db", &Env::default(), "Account must be specified. Write abs://account@container/path");
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let with_profile = env(&[("AWS_CONFIG_FILE", config.to_str().unwrap())]);
    std::fs::write(&config, "[default]\ncredential_process = /bin/hush\n").unwrap();
    told("s3://b/db", &with_profile, "by credential_process, which is not supported here. Put an access key");
    std::fs::write(&config, "[default]\nsso_session = x\n").unwrap();
    told("s3://b/db", &with_profile, "by sso_session");
}

#[test]
fn litestreams_variables_and_profiles_give_credentials() {
    let server = Server::start().unwrap();
    let (id, secret) = (server.access_key(), server.secret_key());
    let works = |url: &str, env: &Env| run(open(url, env).list(Level::ZERO, None)).map(|_| ());
    let endpoint = server.endpoint();
    let litestream = [("LITESTREAM_ACCESS_KEY_ID", id), ("LITESTREAM_SECRET_ACCESS_KEY", secret), ("LITESTREAM_S3_ENDPOINT", &endpoint)];
    works("s3://replicas/db", &env(&litestream)).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("credentials");
    let write = |secret: &str| {
        let text = format!("[dev]\naws_access_key_id={id}\naws_secret_access_key={secret}\nendpoint_url={endpoint}\n");
        std::fs::write(&path, text).unwrap();
    };
    write(secret);
    let files = ("AWS_SHARED_CREDENTIALS_FILE", path.to_str().unwrap());
    works("s3://replicas/db", &env(&[files, ("AWS_PROFILE", "dev")])).unwrap();
    // A named profile goes before the environment's keys, AWS_PROFILE does not.
    let wrong = [files, ("AWS_ACCESS_KEY_ID", SECRETS[0]), ("AWS_SECRET_ACCESS_KEY", SECRETS[1])];
    works("s3://replicas/db?profile=dev", &env(&wrong)).unwrap();
    let both = [&wrong[..], &[("AWS_PROFILE", "dev")]].concat();
    assert_eq!(works("s3://replicas/db", &env(&both)).unwrap_err().kind, Kind::Credentials);

    // Keys that are renewed in the file are taken up by a store that is open.
    let store = open("s3://replicas/db?profile=dev", &env(&[files]));
    run(store.list(Level::ZERO, None)).unwrap();
    write("rotated-away-and-no-longer-right");
    assert_eq!(run(store.list(Level::ZERO, None)).unwrap_err().kind, Kind::Credentials);
    write(secret);
    run(store.list(Level::ZERO, None)).unwrap();
}

#[test]
fn racing_creates_have_one_winner_each() {
    const KEYS: u64 = 50;
    let server = Server::start().unwrap();
    let env: Env = server.env().into_iter().collect();
    let url = server.url("race");
    let wins: Vec<usize> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8u8)
            .map(|writer| {
                let (url, env) = (&url, &env);
                scope.spawn(move || {
                    let store = open(url, env);
                    run(async {
                        let mut won = 0;
                        for txid in 1..=KEYS {
                            let name = LtxName::level0(Txid::new(txid).unwrap());
                            let created = store.create(&name, Bytes::from(vec![writer; 4096]), TimestampMs(0)).await.unwrap();
                            won += usize::from(created == Created::New);
                        }
                        won
                    })
                })
            })
            .collect();
        writers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    assert_eq!(wins.iter().sum::<usize>() as u64, KEYS, "{wins:?}");
    assert_eq!(server.requests().put, 8 * KEYS);
    assert_eq!(server.requests().list, 0);
}
