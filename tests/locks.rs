//! POSIX drops all locks that a process has on a file as soon as it closes any descriptor of that file. Nothing that the extension does while an
//! application holds a lock may take it away: each step is done with the locks held, and another process looks at them before and after.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic)] // The helpers are part of tests.

mod built;

use std::collections::BTreeSet;
use std::path::Path;

use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Db, Host, Program};
use replicated_testkit::s3::Server;
use serde_json::json;

/// Asks for each byte on which SQLite locks, by a process of its own, who has it and how. Of the database: PENDING, RESERVED and the first of SHARED; of the
/// `-shm`: the eight locks of the WAL and the one that says that the file is in use.
const PROBE: &str = r#"
import fcntl, os, struct, sys
for suffix, at in (("", range(0x40000000, 0x40000003)), ("-shm", range(120, 129))):
    try: f = os.open(sys.argv[1] + suffix, os.O_RDWR)
    except FileNotFoundError: continue
    for byte in at:
        # l_type, l_whence, l_start, l_len, l_pid
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(f, fcntl.F_GETLK, asked))
        if kind != fcntl.F_UNLCK: print(f"db{suffix} {byte} {'write' if kind == fcntl.F_WRLCK else 'read'} {pid}")
"#;

/// The locks that a process has, as another one sees them.
fn locks(path: &Path, host: &Host) -> BTreeSet<String> {
    let output = built::run(built::command(host::python()).args(["-c", PROBE]).arg(path));
    let own = format!(" {}", host.id());
    output.lines().filter_map(|line| line.strip_suffix(&own)).map(str::to_owned).collect()
}

/// What the application holds while everything else goes on.
struct Held {
    name: &'static str,
    journal_mode: &'static str,
    begin: &'static [&'static str],
    /// Some of the locks that it must hold then.
    expected: &'static [&'static str],
    /// Others can write meanwhile.
    others_write: bool,
}

/// SHARED of the database; in WAL mode it is held for as long as the database is open.
const SHARED: &str = "db 1073741826 read";
const RESERVED: &str = "db 1073741825 write";
const WAL_WRITE: &str = "db-shm 120 write";
const SHM_IN_USE: &str = "db-shm 128 read";

const ALL: [Held; 5] = [
    Held {
        name: "a WAL that nobody reads",
        journal_mode: "WAL",
        begin: &["SELECT count(*) FROM t"],
        expected: &[SHARED, SHM_IN_USE],
        others_write: true,
    },
    Held {
        name: "a read transaction on a WAL",
        journal_mode: "WAL",
        begin: &["BEGIN", "SELECT count(*) FROM t"],
        expected: &[SHARED, SHM_IN_USE],
        others_write: true,
    },
    Held {
        name: "a write transaction on a WAL",
        journal_mode: "WAL",
        begin: &["BEGIN IMMEDIATE", "INSERT INTO t VALUES (1)"],
        expected: &[SHARED, SHM_IN_USE, WAL_WRITE],
        others_write: false,
    },
    Held {
        name: "a read transaction with a rollback journal",
        journal_mode: "DELETE",
        begin: &["BEGIN", "SELECT count(*) FROM t"],
        expected: &[SHARED],
        others_write: false,
    },
    Held {
        name: "a write transaction with a rollback journal",
        journal_mode: "DELETE",
        begin: &["BEGIN IMMEDIATE", "INSERT INTO t VALUES (1)"],
        expected: &[SHARED, RESERVED],
        others_write: false,
    },
];

fn no_lock_is_dropped(held: &Held, bucket: &Bucket, folder: &Path) {
    let path = folder.join("app.db");
    let uri = host::replicated(&path, &bucket.url, &[("sync_interval", "10ms")]);
    let mut host = Host::start(Program::Python, &bucket.env);
    let first = host.open(&uri);
    host.run(first, &format!("PRAGMA journal_mode={}; CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(100000))", held.journal_mode));
    // Before the first snapshot, which is then taken with the locks held: nothing has been sent, as far as that can be arranged.
    for sql in held.begin {
        host.query(first, sql);
    }
    let before = locks(&path, &host);
    for lock in held.expected {
        assert!(before.contains(*lock), "{}: {lock} is not among {before:?}", held.name);
    }
    let check = |host: &Host, what: &str| {
        // The rest comes and goes with others' transactions: read marks, SHARED by its other two bytes.
        let now = locks(&path, host);
        let lost: Vec<_> = held.expected.iter().filter(|lock| !now.contains(**lock)).collect();
        assert!(lost.is_empty(), "{}: {what} has dropped {lost:?} of {before:?}", held.name);
    };
    // The snapshot, and whatever increments there are: with its write transaction open the application can still wait for what was committed before.
    host.query(first, "PRAGMA replicated_sync='60s'");
    check(&host, "the snapshot");
    host.query(first, "PRAGMA replicated_status");
    check(&host, "the status");
    let second = host.open(&uri);
    check(&host, "a second open");
    host.query(second, "SELECT count(*) FROM t");
    check(&host, "a read by the second handle");
    host.query(second, "PRAGMA replicated_status");
    check(&host, "the second handle's status");
    let write = |host: &mut Host, db: Db| {
        if held.others_write {
            host.run(db, "INSERT INTO t VALUES (2)");
            host.query(db, "PRAGMA replicated_sync='60s'");
        } else {
            host.try_query(db, "PRAGMA busy_timeout=0").unwrap();
            host.try_query(db, "BEGIN EXCLUSIVE").unwrap_err();
        }
    };
    write(&mut host, second);
    check(&host, "a commit by the second handle, or an attempt");
    for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        // It may be busy.
        let _ = host.try_query(second, &format!("PRAGMA busy_timeout=0; PRAGMA wal_checkpoint({kind})"));
        let _ = host.try_query(second, &format!("PRAGMA wal_checkpoint({kind})"));
        check(&host, kind);
    }
    let copy = folder.join("copy.db");
    host.run(second, &format!("VACUUM INTO '{}'", copy.display()));
    check(&host, "a backup");
    host.close(second);
    check(&host, "the second handle's close");
    // A refused open, with another replica, goes another way out.
    host.try_open(&host::replicated(&path, &format!("{}-other", bucket.url), &[])).unwrap_err();
    check(&host, "a refused open");
    let reader = host.open(&format!("file:{}?mode=ro", path.display()));
    host.query(reader, "SELECT count(*) FROM t");
    host.close(reader);
    check(&host, "a reader that is not replicated");
    let restored = folder.join("restored.db");
    bucket.restore(&restored);
    check(&host, "a restore by another process");
    // The locks are worth something: another process is kept out by them, or is not.
    let mut plain = Host::plain(&[]);
    let other = plain.open(path.to_str().unwrap());
    plain.query(other, "PRAGMA busy_timeout=0");
    assert_eq!(plain.try_query(other, "INSERT INTO t VALUES (3)").is_ok(), held.others_write, "{}", held.name);
    plain.close(other);
    check(&host, "another process's close");
    // The transaction is whole.
    if held.begin.len() > 1 {
        host.query(first, "COMMIT");
    }
    assert_eq!(host.value(first, "PRAGMA integrity_check"), json!("ok"));
    host.sync(first);
    host.close(first);
    assert!(locks(&path, &host).is_empty(), "{}: locks are left behind", held.name);
    host.quit();
}

#[test]
fn no_lock_of_the_application_is_dropped() {
    if !built::has_python() {
        return;
    }
    let (server, dir) = (Server::start().unwrap(), tempfile::tempdir().unwrap());
    for (i, held) in ALL.iter().enumerate() {
        let folder = dir.path().join(i.to_string());
        std::fs::create_dir(&folder).unwrap();
        no_lock_is_dropped(held, &Bucket::s3(&server, &format!("s3/{i}")), &folder);
        let folder = folder.join("again");
        std::fs::create_dir(&folder).unwrap();
        no_lock_is_dropped(held, &Bucket::folder(&folder.join("bucket")), &folder);
    }
}
