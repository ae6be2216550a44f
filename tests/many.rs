//! Many databases in one process: one thread, few descriptors, little memory, and nothing at all while nobody commits.
//!
//! `REPLICATED_TEST_DATABASES` sets how many there are (`make test-many`: 2,000).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic)] // The helpers are part of tests.

mod built;

use replicated_testkit::bucket::Bucket;
use replicated_testkit::host;
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::page_compare;
use serde_json::Value;

/// Opens databases, tells what that took, and does nothing for a while. Then each commits once more, and is closed.
const SCRIPT: &str = r#"
import json, os, resource, sqlite3, sys, time
count, folder = int(sys.argv[2]), sys.argv[3]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
# Nine a database, if it comes to that, and not more: a process that takes more than it should fails.
count = min(count, (hard - 300) // 9)
resource.setrlimit(resource.RLIMIT_NOFILE, (count * 9 + 300, hard))
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
def links():
    for name in os.listdir("/proc/self/fd"):
        try: yield os.readlink("/proc/self/fd/" + name)
        except OSError: pass
def switches():
    status = dict(line.split(":", 1) for line in open(f"/proc/self/task/{uploader()}/status"))
    return int(status["voluntary_ctxt_switches"]) + int(status["nonvoluntary_ctxt_switches"])
def uploader():
    return next(t for t in os.listdir("/proc/self/task") if open(f"/proc/self/task/{t}/comm").read().strip() == "replicated")
def usage():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return dict(kib=int(status["VmRSS"].split()[0]), threads=int(status["Threads"]), files=len(list(links())), sockets=sum(l.startswith("socket:") for l in links()))
def say(**what): print(json.dumps(what), flush=True)
def open_all():
    all = []
    for i in range(count):
        db = sqlite3.connect(f"file:{folder}/{i}.db?vfs=replicated", uri=True, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE IF NOT EXISTS t(x)")
        db.execute("INSERT INTO t VALUES (1)")
        all.append(db)
    for db in all: assert len(db.execute("PRAGMA replicated_sync='300s'").fetchone()[0]) == 16
    return all
say(count=count, **usage())
all = open_all()
say(**usage())
sys.stdin.readline()
# The uploader's thread is asleep, or is about to be.
for attempt in range(100):
    before, cpu = switches(), time.process_time()
    time.sleep(0.5)
    if switches() == before: break
say(woken=switches() - before)
sys.stdin.readline()
for db in all: db.execute("INSERT INTO t VALUES (2)")
for db in all: assert len(db.execute("PRAGMA replicated_sync='300s'").fetchone()[0]) == 16
for db in all: db.close()
say(**usage())
"#;

struct Used {
    count: u64,
    before: Value,
    open: Value,
    closed: Value,
}

/// Runs the script; `idle` is called twice, around a time in which nothing happens.
fn run(bucket: &Bucket, folder: &std::path::Path, count: u64, mut idle: impl FnMut()) -> Used {
    use std::io::{BufRead, Write};
    let mut env = bucket.env.clone();
    env.push(("REPLICATED_REPLICA".to_owned(), format!("{}/{{name}}", bucket.url)));
    let mut command = host::command(host::python(), &env);
    command.args(["-c", SCRIPT]).arg(host::extension()).arg(count.to_string()).arg(folder);
    let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut told = || -> Value {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    };
    let before = told();
    let open = told();
    idle();
    to.write_all(b"\n").unwrap();
    assert_eq!(told()["woken"], 0, "the uploader's thread wakes up while nothing is committed");
    idle();
    to.write_all(b"\n").unwrap();
    let closed = told();
    assert!(child.wait().unwrap().success());
    Used { count: before["count"].as_u64().unwrap(), before, open, closed }
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap()
}

#[test]
fn many_databases_in_one_process() {
    if !built::has_python() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let count = std::env::var("REPLICATED_TEST_DATABASES").map_or(200, |text| text.parse().unwrap());
    let used = run(&bucket, dir.path(), count, || {});
    let more = |name: &str| number(&used.open, name) - number(&used.before, name);
    let (count, kib) = (used.count, more("kib"));
    eprintln!("{count} databases: {} KiB and {:.2} descriptors each", kib / count, more("files") as f64 / count as f64);
    assert_eq!(more("threads"), 1);
    // Three are SQLite's own: the database, its WAL and the `-shm`. Ours are the control file, the FIFO and the WAL, and SQLite keeps the descriptor that a
    // snapshot has read the database by until no lock is held on it any more; two of
    // them, where two were read at once.
    assert!(more("files") <= 7 * count + count / 10 + 30, "{} for {count}", more("files"));
    assert!(kib <= 300 * count + 20_000, "{kib} KiB for {count}");
    assert_eq!(number(&used.closed, "threads"), number(&used.open, "threads"));
    assert!(number(&used.closed, "files") <= number(&used.before, "files") + 30);
    for i in [0, count / 2, count - 1] {
        let own = Bucket { url: format!("{}/{i}.db", bucket.url), env: Vec::new() };
        let restored = dir.path().join("restored.db");
        own.restore(&restored);
        page_compare(&dir.path().join(format!("{i}.db")), &restored).unwrap();
    }
}

/// In a bucket: connections are shared, and bounded, and an idle database makes no request.
#[test]
fn databases_of_a_process_share_connections() {
    if !built::has_python() {
        return;
    }
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    let bucket = Bucket::s3(&server, "many");
    let mut idle = Vec::new();
    let used = run(&bucket, dir.path(), 60, || idle.push(server.requests()));
    assert_eq!(idle.len(), 2);
    assert_eq!(idle[0], idle[1], "an idle database asks the store");
    // Eight databases at a time compare themselves with ten listings each, as do eight that send their full state; the rest of 64 requests are batches.
    assert!(number(&used.open, "sockets") <= 64 + 80 + 80 + 10, "{:?}", used.open);
    assert_eq!(number(&used.open, "threads") - number(&used.before, "threads"), 1);
    for i in 0..used.count {
        let own = Bucket { url: format!("{}/{i}.db", bucket.url), env: bucket.env.clone() };
        assert_eq!(own.level(replicated::store::SNAPSHOT_LEVEL).len(), 1);
    }
}
