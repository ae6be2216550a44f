//! Writers that never pause, readers that hold old snapshots, and transactions of any size: the WAL stays as short as SQLite keeps it, checkpoints
//! are as many as without us, memory is bounded, and everything arrives.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host;
use replicated_testkit::s3::{Options, Server};
use replicated_testkit::sqlite::{integrity_check, page_compare};
use serde_json::Value;

/// Commits without a pause and tells the longest WAL, the number of checkpoints that copied something, and the memory added since the start.
const SCRIPT: &str = r#"
import json, os, sqlite3, struct, sys
extension, path, uri, commits, blob_bytes, reader = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(extension)
def resident_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
def highest_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA synchronous=NORMAL")
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
# Kept open to the end: closing it would drop SQLite's locks.
shm = os.open(path + "-shm", os.O_RDONLY)
backfilled = lambda: struct.unpack("=I", os.pread(shm, 4, 96))[0]
longest, checkpoints, before, start_kib = 0, 0, backfilled(), resident_kib()
if reader:
    other = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM t").fetchall()
for i in range(commits):
    if blob_bytes > 1 << 20:
        db.execute("BEGIN")
        for _ in range(blob_bytes >> 20):
            db.execute("INSERT INTO t(x) VALUES (randomblob(1048576))")
        db.execute("COMMIT")
    else:
        db.execute("INSERT INTO t(x) VALUES (randomblob(?))", (blob_bytes,))
    now = backfilled()
    checkpoints += now > before
    before = now
    longest = max(longest, os.stat(path + "-wal").st_size)
if reader:
    assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)
    other.execute("COMMIT")
    other.close()
if "replica=" in uri and "close_timeout=0s" not in uri:
    db.execute("PRAGMA replicated_sync='600s'")
print(json.dumps({"longest_bytes": longest, "checkpoints": checkpoints, "added_kib": highest_kib() - start_kib}))
db.close()
"#;

fn run(path: &Path, uri: &str, env: &[(String, String)], commits: u32, blob_bytes: u64, reader: bool) -> Value {
    let mut command = host::command(host::python(), env);
    command.args(["-c", SCRIPT]).arg(host::extension()).arg(path).arg(uri);
    let output = command.args([commits.to_string(), blob_bytes.to_string(), u8::from(reader).to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn figure(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap()
}

/// What the WAL may grow by: 16 MiB that a writer would have to encode itself, and what is committed while the uploader encodes.
const MOST_ADDED_WAL_BYTES: u64 = 24 << 20;

#[test]
fn the_wal_stays_short_and_checkpoints_stay_rare() {
    for (commits, blob_bytes) in [(15_000, 100), (4_000, 20_000)] {
        let dir = tempfile::tempdir().unwrap();
        let plain_path = dir.path().join("plain.db");
        let plain = run(&plain_path, plain_path.to_str().unwrap(), &[], commits, blob_bytes, false);
        let written_bytes = u64::from(commits) * blob_bytes;
        for store in ["quick", "slow", "dead"] {
            let server =
                Server::with_options(Options { delay: Duration::from_millis(if store == "slow" { 300 } else { 0 }), ..Options::default() })
                    .unwrap();
            let bucket = Bucket::s3(&server, store);
            let bucket = if store == "dead" { bucket.through("http://127.0.0.1:9/") } else { bucket };
            let path = dir.path().join(format!("{store}.db"));
            let uri = host::replicated(&path, &bucket.url, &[("close_timeout", if store == "dead" { "0s" } else { "100s" })]);
            let told = run(&path, &uri, &bucket.env, commits, blob_bytes, false);
            let bound = figure(&plain, "longest_bytes") + MOST_ADDED_WAL_BYTES;
            assert!(figure(&told, "longest_bytes") <= bound, "{store}: {told}, plain {plain}");
            // A gate that only refuses has one with every commit. The few more are restarts that waited for a batch to be encoded, slowly in this build.
            assert!(figure(&told, "checkpoints") <= 10 * figure(&plain, "checkpoints") + 20, "{store}: {told}, plain {plain}");
            assert!(written_bytes < bound || figure(&told, "longest_bytes") < written_bytes, "{store}: {told}");
            if store != "dead" {
                let restored = dir.path().join("restored.db");
                bucket.restore(&restored);
                page_compare(&flattened(&path, dir.path()), &restored).unwrap();
            }
        }
    }
}

#[test]
fn a_reader_of_an_old_snapshot_holds_nothing_up() {
    let server = Server::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (bucket, path) = (Bucket::s3(&server, "reader"), dir.path().join("app.db"));
    let told = run(&path, &host::replicated(&path, &bucket.url, &[]), &bucket.env, 6_000, 3_000, true);
    // The reader keeps SQLite from restarting the WAL, as it does without us.
    assert!(figure(&told, "longest_bytes") > 20 << 20, "{told}");
    let restored = dir.path().join("restored.db");
    bucket.restore(&restored);
    page_compare(&flattened(&path, dir.path()), &restored).unwrap();
    integrity_check(&restored).unwrap();
    assert_eq!(bucket.full_states(), 1);
}

/// One transaction that is many times the memory allowed, in every way that a commit is captured. `REPLICATED_TEST_LARGE_MIB=2048` for the long form.
#[test]
fn a_large_transaction_takes_bounded_memory() {
    let mib = std::env::var("REPLICATED_TEST_LARGE_MIB").ok().and_then(|m| m.parse().ok()).unwrap_or(96_u64);
    for mode in ["WAL", "DELETE", "EXCLUSIVE"] {
        let dir = tempfile::tempdir().unwrap();
        let (bucket, path) = (Bucket::folder(&dir.path().join("bucket")), dir.path().join("app.db"));
        let uri = host::replicated(&path, &bucket.url, &[("max_memory", "16MiB"), ("max_local", "16GiB"), ("close_timeout", "600s")]);
        let mut command = host::command(host::python(), &bucket.env);
        let script = SCRIPT
            .replace("journal_mode=WAL", &format!("journal_mode={}", mode.replace("EXCLUSIVE", "WAL; PRAGMA locking_mode=EXCLUSIVE")))
            .replace(
                r#"db.execute("PRAGMA journal_mode=WAL; PRAGMA locking_mode=EXCLUSIVE")"#,
                r#"db.execute("PRAGMA locking_mode=EXCLUSIVE"); db.execute("PRAGMA journal_mode=WAL")"#,
            )
            .replace(r#"shm = os.open(path + "-shm", os.O_RDONLY)"#, r#"shm = os.open("/dev/zero", os.O_RDONLY)"#)
            .replace(r#"path + "-wal""#, "path");
        command.args(["-c", &script]).arg(host::extension()).arg(&path).arg(uri);
        let output = command.args(["1".to_owned(), (mib << 20).to_string(), "0".to_owned()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(figure(&told, "added_kib") < 48 << 10, "{mode}: {told}");
        let restored = dir.path().join("restored.db");
        bucket.restore(&restored);
        page_compare(&flattened(&path, dir.path()), &restored).unwrap();
    }
}
