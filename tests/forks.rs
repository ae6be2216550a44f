//! Processes that fork, with Python as the host: servers that fork workers, `multiprocessing`, a child that is replaced by another program, and one that
//! goes on with what its parent had opened.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic)] // The helpers are part of tests.

mod built;

use std::path::{Path, PathBuf};

use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Host, Program};
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::{integrity_check, page_compare};
use rusqlite::Connection;

/// What every script begins with: the extension is loaded, and a process that hangs is ended, so that the test fails instead.
const BEGIN: &str = r#"
import os, signal, sqlite3, sys, threading, time
signal.alarm(100)
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
def connect(uri):
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=60)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE IF NOT EXISTS t(x)")
    return db
def sync(db):
    assert len(db.execute("PRAGMA replicated_sync='60s'").fetchone()[0]) == 16
def rows(db):
    return db.execute("SELECT count(*) FROM t").fetchone()[0]
def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"#;

/// A folder, and databases in it with a bucket each.
struct Databases {
    _server: Option<Server>,
    _dir: tempfile::TempDir,
    all: Vec<(PathBuf, Bucket)>,
}

impl Databases {
    fn in_s3(count: usize) -> Self {
        let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
        let all = (0..count).map(|i| (dir.path().join(format!("{i}.db")), Bucket::s3(&server, &format!("apps/{i}")))).collect();
        Self { _server: Some(server), _dir: dir, all }
    }

    fn in_folders(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = |i| Bucket::folder(&dir.path().join(format!("bucket-{i}")));
        let all = (0..count).map(|i| (dir.path().join(format!("{i}.db")), bucket(i))).collect();
        Self { _server: None, _dir: dir, all }
    }

    fn uri(&self, i: usize) -> String {
        host::replicated(&self.all[i].0, &self.all[i].1.url, &[("sync_interval", "20ms")])
    }

    /// Runs a script with the databases' URIs as arguments.
    fn run(&self, script: &str) -> String {
        let mut command = host::command(host::python(), &self.all[0].1.env);
        command.args(["-c", &format!("{BEGIN}{script}")]).arg(host::extension());
        command.args((0..self.all.len()).map(|i| self.uri(i)));
        built::run(&mut command)
    }

    /// What a database has of rows, when another process has opened it after all that and it is restored from its bucket.
    fn settled(&self, i: usize) -> i64 {
        let (path, bucket) = &self.all[i];
        let mut host = Host::start(Program::Rust, &bucket.env);
        let db = host.open(&self.uri(i));
        // So that SQLite finds the WAL that a killed process has left, and puts it into the file when it closes.
        host.query(db, "SELECT count(*) FROM t");
        host.sync(db);
        host.close(db);
        host.quit();
        let restored = path.with_extension("restored");
        bucket.restore(&restored);
        page_compare(path, &restored).unwrap();
        integrity_check(&restored).unwrap();
        rows(&restored)
    }
}

fn rows(path: &Path) -> i64 {
    Connection::open(path).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

/// As gunicorn does: the program is loaded, the workers are forked, each opens what it needs, and who dies is forked again.
#[test]
fn a_server_that_forks_its_workers_before_they_open_anything() {
    if !built::has_python() {
        return;
    }
    let databases = Databases::in_s3(3);
    databases.run(
        r#"
def worker(uri, round):
    db = connect(uri)
    for i in range(20):
        db.execute("INSERT INTO t VALUES (randomblob(500))")
    if round == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(db)
    if round == 1:
        os._exit(0)
    db.close()
workers = {}
def fork(uri, round):
    pid = os.fork()
    if pid == 0:
        try:
            worker(uri, round)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    workers[pid] = (uri, round)
for uri in sys.argv[2:]:
    fork(uri, 0)
while workers:
    pid, status = os.wait()
    uri, round = workers.pop(pid)
    assert os.waitstatus_to_exitcode(status) == (-9 if round == 0 else 0), (uri, round, status)
    if round < 3:
        fork(uri, round + 1)
"#,
    );
    for i in 0..3 {
        assert_eq!(databases.settled(i), 80);
        assert!(databases.all[i].1.full_states() <= 2, "two, where a worker was killed while it sent the first");
    }
}

/// The parent replicates, with threads that commit all the time, while it forks: whatever is locked in the moment of a fork is of no use to the child.
#[test]
fn children_of_a_busy_parent_replicate_databases_of_their_own() {
    if !built::has_python() {
        return;
    }
    let databases = Databases::in_folders(13);
    databases.run(
        r#"
import multiprocessing
stop = False
# SQLite's own mutexes stay locked in the child of a process that forks while another of its threads is in SQLite. The uploader is not held up.
forks, writes = threading.Lock(), [threading.Lock() for _ in range(3)]
def write(uri):
    db = connect(uri)
    own = writes[sys.argv.index(uri) - 2]
    while not stop:
        with forks: pass
        with own: db.execute("INSERT INTO t VALUES (randomblob(500))")
    sync(db)
    db.close()
threads = [threading.Thread(target=write, args=(uri,)) for uri in sys.argv[2:5]]
for thread in threads: thread.start()
time.sleep(1)
def child(uri, name):
    signal.alarm(60)
    db = connect(uri)
    db.execute("INSERT INTO t VALUES (?)", (name,))
    sync(db)
    db.close()
fork = multiprocessing.get_context("fork")
for round in range(5):
    children = [fork.Process(target=child, args=(uri, round)) for uri in sys.argv[5:]]
    with forks:
        for own in writes: own.acquire()
        for one in children: one.start()
        for own in writes: own.release()
    for one in children:
        one.join()
        assert one.exitcode == 0, one.exitcode
stop = True
for thread in threads: thread.join()
"#,
    );
    for i in 0..3 {
        assert!(databases.settled(i) > 0);
    }
    for i in 3..13 {
        assert_eq!(databases.settled(i), 5);
    }
}

/// What is executed gets none of our files, and the parent goes on.
#[test]
fn a_program_that_is_executed_inherits_nothing() {
    if !built::has_python() {
        return;
    }
    let databases = Databases::in_s3(1);
    let inherited = databases.run(
        r#"
import subprocess
db = connect(sys.argv[2])
sync(db)
show = "import os\nfor f in os.listdir('/proc/self/fd'):\n try: print(os.readlink('/proc/self/fd/' + f))\n except OSError: pass"
subprocess.run([sys.executable, "-c", show], close_fds=False, check=True)
pid = os.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-c", show])
assert ended(pid) == 0
db.execute("INSERT INTO t VALUES (1)")
sync(db)
db.close()
"#,
    );
    assert!(!inherited.contains(".db") && !inherited.contains("control") && !inherited.contains("socket:"), "{inherited}");
    assert_eq!(databases.settled(0), 1);
}

/// SQLite forbids using a connection after a fork. Who closes it there, or only ends, must harm neither parent nor bucket.
#[test]
fn a_child_that_has_its_parents_connections_harms_nobody() {
    if !built::has_python() {
        return;
    }
    let databases = Databases::in_s3(2);
    databases.run(
        r#"
import gc
db = connect(sys.argv[2])
db.execute("INSERT INTO t VALUES ('parent')")
def closes(): db.close()
def reads():
    assert db.execute("SELECT count(*) FROM t").fetchone()[0] > 0
    db.close()
def asks():
    # The pragmas are not ours there.
    db.execute("PRAGMA replicated_status").fetchall()
    db.execute("PRAGMA replicated_sync='1s'").fetchall()
def opens_another():
    db.close()
    other = connect(sys.argv[3])
    other.execute("INSERT INTO t VALUES ('child')")
    sync(other)
    other.close()
for round in range(3):
    for child in (closes, reads, asks, opens_another, lambda: None):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                child()
            except BaseException as error:
                print(child, error, file=sys.stderr)
                os._exit(1)
            # With the interpreter's end, finalizers and all, and without.
            if round == 0: os._exit(0)
            sys.exit(0)
        # Goes on meanwhile.
        db.execute("INSERT INTO t VALUES ('parent')")
        assert ended(pid) == 0
        db.execute("INSERT INTO t VALUES ('parent')")
        sync(db)
assert rows(db) == 31, rows(db)
db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
db.execute("INSERT INTO t VALUES ('parent')")
db.close()
"#,
    );
    assert_eq!(databases.settled(0), 32);
    assert_eq!(databases.settled(1), 3);
    // One snapshot at the start: no child has sent anything, and the parent never lost its place.
    assert_eq!(databases.all[0].1.level(replicated::store::SNAPSHOT_LEVEL).len(), 1);
}

/// Children of children, as when a server restarts itself by forking, and the first one open all the time.
#[test]
fn generations_of_children_replicate() {
    if !built::has_python() {
        return;
    }
    let databases = Databases::in_folders(2);
    databases.run(
        r#"
first = connect(sys.argv[2])
def descend(depth):
    db = connect(sys.argv[3])
    db.execute("INSERT INTO t VALUES (?)", (depth,))
    sync(db)
    db.close()
    if depth < 12:
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            try:
                descend(depth + 1)
            except BaseException as error:
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        assert ended(pid) == 0
descend(0)
first.execute("INSERT INTO t VALUES (1)")
sync(first)
first.close()
"#,
    );
    assert_eq!(databases.settled(0), 1);
    assert_eq!(databases.settled(1), 13);
}

/// The parent forks, again and again, while its full states are read; each child opens a database with SQLite alone and one with the extension.
#[test]
fn children_that_are_forked_while_a_full_state_is_read() {
    if !built::has_python() {
        return;
    }
    const STATES: usize = 6;
    let databases = Databases::in_folders(STATES + 1);
    let forks = databases.run(
        r#"
*states, own = sys.argv[2:]
def path(uri):
    return uri.split("?")[0].removeprefix("file:")
for uri in states:
    plain = sqlite3.connect(path(uri), isolation_level=None)
    plain.execute("PRAGMA journal_mode=WAL")
    plain.execute("CREATE TABLE t(x)")
    plain.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) INSERT INTO t SELECT randomblob(9000) FROM n")
    plain.close()
def child(number):
    signal.alarm(60)
    plain = sqlite3.connect(path(own) + "-plain", isolation_level=None, timeout=60)
    plain.execute("CREATE TABLE IF NOT EXISTS t(x)")
    plain.execute("INSERT INTO t VALUES (?)", (number,))
    plain.close()
    db = connect(own)
    db.execute("INSERT INTO t VALUES (?)", (number,))
    sync(db)
    db.close()
forks, opened = 0, []
for uri in states:
    opened.append(connect(uri))
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                child(forks)
            except BaseException as error:
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        assert ended(pid) == 0
        forks += 1
for db in opened:
    sync(db)
    db.close()
print(forks)
"#,
    );
    assert_eq!(databases.settled(STATES), forks.trim().parse::<i64>().unwrap());
    for state in 0..STATES {
        assert_eq!(databases.settled(state), 400);
    }
}

/// Workers that are forked by a parent which has the same database open: all write to it, one of them at a time uploads, and the parent goes on.
#[test]
fn workers_and_their_parent_write_to_one_database() {
    if !built::has_python() {
        return;
    }
    let databases = Databases::in_s3(1);
    databases.run(
        r#"
import multiprocessing
uri = sys.argv[2]
def work(number):
    db = connect(uri)
    for i in range(10):
        db.execute("INSERT INTO t VALUES (randomblob(500))")
        if i == 5 and number % 3 == 0: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    if number % 4 == 0: sync(db)
    if number % 2: db.close()
    return number
context = multiprocessing.get_context("fork")
# By one alone: of several that make a database a WAL database at once SQLite has all but one fail as "locked", without us too.
first = os.fork()
if first == 0:
    connect(uri).close()
    os._exit(0)
assert ended(first) == 0
# Before anything is open here, and after it; while the parent commits, and after it has closed. It closes nothing while children have the database open
# that were forked while it had: SQLite has them believe that they hold the lock that keeps the WAL, as they do without us.
with context.Pool(4) as pool:
    assert sorted(pool.imap_unordered(work, range(8))) == list(range(8))
db = connect(uri)
with context.Pool(4) as pool:
    asked = pool.map_async(work, range(8))
    for i in range(20): db.execute("INSERT INTO t VALUES (randomblob(500))")
    assert sorted(asked.get()) == list(range(8))
sync(db)
db.close()
with context.Pool(4) as pool:
    assert sorted(pool.imap_unordered(work, range(8))) == list(range(8))
db = connect(uri)
sync(db)
assert rows(db) == 260, rows(db)
"#,
    );
    assert_eq!(databases.settled(0), 260);
    assert_eq!(databases.all[0].1.level(replicated::store::SNAPSHOT_LEVEL).len(), 1);
}

/// As gunicorn does it, with one database for all: workers are killed, the one that uploads among them, and forked again.
#[test]
fn a_server_whose_forked_workers_share_one_database() {
    if !built::has_python() {
        return;
    }
    let databases = Databases::in_s3(1);
    databases.run(
        r#"
uri = sys.argv[2]
# The first state is made alone: who is killed while it sends that sends it again.
first = os.fork()
if first == 0:
    db = connect(uri)
    sync(db)
    os._exit(0)
assert ended(first) == 0
def worker(round):
    db = connect(uri)
    for i in range(10):
        db.execute("INSERT INTO t VALUES (randomblob(500))")
    if round % 2 == 0: os.kill(os.getpid(), signal.SIGKILL)
    if round % 3 == 0: sync(db)
    if round % 5 == 0: os._exit(0)
    db.close()
workers, begun = {}, 0
while begun < 24 or workers:
    while begun < 24 and len(workers) < 4:
        pid = os.fork()
        if pid == 0:
            try: worker(begun)
            except BaseException as error:
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        workers[pid] = begun
        begun += 1
    pid, status = os.wait()
    round = workers.pop(pid)
    assert os.waitstatus_to_exitcode(status) == (-9 if round % 2 == 0 else 0), (round, status)
"#,
    );
    assert_eq!(databases.settled(0), 240);
    assert_eq!(databases.all[0].1.level(replicated::store::SNAPSHOT_LEVEL).len(), 1);
}
