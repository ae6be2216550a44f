//! The disk that holds the database is full: commits fail as SQLite's own do, nothing that was committed is lost, and when there is room
//! again everything goes on.
//!
//! The disk is a small tmpfs in a mount namespace of the host's own. Where that is not allowed, a limit on the size of files stands in.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::faulty::{Endpoint, Fault};
use replicated_testkit::host::{self, Db, Host, Program};
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::{integrity_check, page_compare};
use replicated_testkit::tools;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

/// What SQLite says of a full disk.
const FULL: &str = "database or disk is full";
/// What it says of a file that may not grow.
const IO_ERROR: &str = "disk I/O error";

/// A small disk in a mount namespace of its own, which lives as long as this.
struct Disk {
    /// Waits for the end of its input, so that it goes with us whatever happens.
    holder: Child,
    folder: PathBuf,
    by_root: bool,
}

impl Disk {
    /// `None` where no file system may be mounted.
    fn mount(kilobytes: u32, folder: &Path) -> Option<Self> {
        std::fs::create_dir(folder).unwrap();
        let script = format!("mount -t tmpfs -o size={kilobytes}k,mode=777 tmpfs '{}' && echo ready && exec cat", folder.display());
        for by_root in [true, false] {
            let mut unshare = Command::new("unshare");
            unshare.args(if by_root { &["--mount"][..] } else { &["--map-root-user", "--mount"] }).args(["sh", "-c", &script]);
            let spawned = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
            let Ok(mut holder) = spawned else { continue };
            let mut line = String::new();
            BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
            if line == "ready\n" {
                return Some(Self { holder, folder: folder.to_owned(), by_root });
            }
            // It has ended.
            let _ = holder.wait();
        }
        tools::skipped("no file system may be mounted here; a limit on the size of files is tested all the same");
        None
    }

    /// The command that runs a program with this disk.
    fn wrapper(&self) -> Vec<String> {
        let target = self.holder.id().to_string();
        let user: &[&str] = if self.by_root { &[] } else { &["--user", "--preserve-credentials"] };
        ["nsenter", "--target", &target, "--mount"].iter().chain(user).chain(&["--"]).map(|word| (*word).to_owned()).collect()
    }

    /// Makes it larger.
    fn grow(&self, kilobytes: u32) {
        let (wrapper, options) = (self.wrapper(), format!("remount,size={kilobytes}k"));
        let mount = ["mount", "-o", &options].map(str::to_owned);
        let done = Command::new(&wrapper[0]).args(&wrapper[1..]).args(mount).arg(&self.folder).status().unwrap();
        assert!(done.success());
    }

    /// What is on it, as seen from outside.
    fn path(&self) -> PathBuf {
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(self.folder.strip_prefix("/").unwrap())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A row for each of 200 pages.
fn filled_table() -> String {
    "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 200) INSERT INTO t SELECT i, randomblob(3000) FROM c".to_owned()
}

/// Changes ten of them in place.
fn change(nth: u32) -> String {
    format!("UPDATE t SET x = randomblob(3000) WHERE (id - 1) / 10 = {}", nth * 7 % 20)
}

struct Site {
    endpoint: Endpoint,
    direct: Bucket,
    _server: Server,
    dir: tempfile::TempDir,
    env: Vec<(String, String)>,
    host: Host,
    db: Db,
    disk: Disk,
    /// Rows of which SQLite said that they are committed.
    rows: u64,
}

impl Site {
    /// `None` where no small disk is to be had.
    fn new(kilobytes: u32, journal_mode: &str) -> Option<Self> {
        let server = Server::start().unwrap();
        let endpoint = Endpoint::start(&server, Box::new(|_| Fault::None)).unwrap();
        let direct = Bucket::s3(&server, "app");
        let env = direct.through(&endpoint.endpoint()).env;
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::mount(kilobytes, &dir.path().join("disk"))?;
        let (host, db) = Self::start(&disk, &env, dir.path(), &direct.url);
        let mut site = Self { endpoint, direct, _server: server, dir, env, host, db, disk, rows: 0 };
        assert_eq!(site.host.value(site.db, &format!("PRAGMA journal_mode={journal_mode}")), json!(journal_mode));
        site.host.run(site.db, "CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)");
        Some(site)
    }

    fn start(disk: &Disk, env: &[(String, String)], dir: &Path, url: &str) -> (Host, Db) {
        let wrapper = disk.wrapper();
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let mut host = Host::start_by(&wrapper, Program::Python, env);
        let log = dir.join("log");
        let options = [
            ("log", log.to_str().unwrap()),
            ("sync_interval", "10ms"),
            ("burst", "100"),
            ("request_timeout", "1s"),
            ("close_timeout", "0s"),
        ];
        let db = host.open(&host::replicated(&dir.join("disk/app.db"), url, &options));
        (host, db)
    }

    /// A database without replication on the same disk.
    fn plain(&self, journal_mode: &str) -> (Host, Db) {
        let wrapper = self.disk.wrapper();
        let mut host = Host::start_by(&wrapper.iter().map(String::as_str).collect::<Vec<_>>(), Program::Python, &[]);
        let db = host.open(self.disk.folder.join("plain.db").to_str().unwrap());
        assert_eq!(host.value(db, &format!("PRAGMA journal_mode={journal_mode}")), json!(journal_mode));
        host.run(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)");
        (host, db)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn insert(&mut self, bytes: u32) -> Result<(), String> {
        let done = self.host.try_query(self.db, &format!("INSERT INTO t(x) VALUES (randomblob({bytes}))"));
        self.rows += u64::from(done.is_ok());
        done.map(drop)
    }

    /// A checkpoint needs room for pages that are new to the database file. Where it has it, a restart of the WAL is refused as by a reader.
    fn checkpoint(&mut self, kind: &str) {
        if let Err(error) = self.host.try_query(self.db, &format!("PRAGMA wal_checkpoint({kind})")) {
            assert_eq!(error, FULL);
        }
    }

    /// Takes the room that is left.
    fn fill(&self) {
        let filler = self.disk.path().join("filler");
        let mut bytes = 1 << 20;
        let mut file = std::fs::File::create(&filler).unwrap();
        while bytes >= 512 {
            if std::io::Write::write_all(&mut file, &vec![0; bytes]).is_err() {
                bytes /= 2;
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.disk.path().join("filler")).unwrap();
    }

    /// What is committed, and nothing else, is in the database and in the bucket.
    fn check(&mut self) {
        self.host.sync(self.db);
        assert_eq!(self.host.value(self.db, "SELECT count(*) FROM t"), json!(self.rows));
        let restored = self.dir.path().join("restored.db");
        self.direct.restore(&restored);
        page_compare(&flattened(&self.disk.path().join("app.db"), self.dir.path()), &restored).unwrap();
        integrity_check(&restored).unwrap();
    }
}

/// The store is there: what was committed goes on to it although nothing can be written beside the database.
#[test]
fn a_full_disk_does_not_stop_what_was_committed_from_being_sent() {
    for journal_mode in ["wal", "delete"] {
        let Some(mut site) = Site::new(12 << 10, journal_mode) else { return };
        for _ in 0..10 {
            site.insert(2000).unwrap();
        }
        site.check();
        site.fill();
        let mut refused = 0;
        for _ in 0..400 {
            if let Err(error) = site.insert(3000) {
                assert_eq!(error, FULL);
                refused += 1;
            }
        }
        assert!(refused > 100, "{refused}");
        site.check();
        site.checkpoint("TRUNCATE");
        site.make_room();
        site.host.run(site.db, "PRAGMA wal_checkpoint(TRUNCATE)");
        for _ in 0..20 {
            site.insert(3000).unwrap();
        }
        site.check();
        assert_eq!(site.host.status(site.db, "state"), "idle");
        assert!(site.log().lines().count() < 30, "{}", site.log());
    }
}

/// A transaction that is larger than what goes through memory otherwise, on a disk that has no room for its file.
#[test]
fn a_large_transaction_is_sent_from_a_full_disk() {
    let Some(mut site) = Site::new(48 << 10, "wal") else { return };
    site.check();
    site.host.run(site.db, "PRAGMA wal_autocheckpoint=0");
    site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
    site.insert(10_000_000).unwrap();
    site.fill();
    assert_eq!(site.insert(200_000), Err(FULL.to_owned()));
    site.endpoint.behave();
    site.check();
    assert_eq!(site.host.status(site.db, "snapshots"), "1", "{}", site.log());
}

/// The store is gone as well, so that nothing can go anywhere: no crash, no loss, no log without end.
#[test]
fn a_full_disk_in_an_outage_loses_nothing() {
    for (journal_mode, killed) in [("wal", false), ("wal", true), ("delete", false), ("persist", true)] {
        let Some(mut site) = Site::new(12 << 10, journal_mode) else { return };
        for _ in 0..10 {
            site.insert(2000).unwrap();
        }
        site.check();
        site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
        let mut refused = 0;
        // Until the WAL, the spool and the database have filled it by themselves.
        for _ in 0..1500 {
            if let Err(error) = site.insert(9000) {
                assert_eq!(error, FULL);
                refused += 1;
            }
        }
        assert!(refused > 100, "{refused}");
        site.fill();
        // A checkpoint that has to wait for a reader gives up at once, and so it does here.
        site.host.run(site.db, "PRAGMA busy_timeout=0");
        for _ in 0..200 {
            if let Err(error) = site.insert(9000) {
                assert_eq!(error, FULL);
            }
            site.checkpoint("RESTART");
        }
        site.host.run(site.db, "PRAGMA busy_timeout=30000");
        assert!(site.log().lines().count() < 60, "{}", site.log());
        assert_eq!(site.host.value(site.db, "SELECT count(*) FROM t"), json!(site.rows));
        if killed {
            site.host.kill();
            (site.host, site.db) = Site::start(&site.disk, &site.env, site.dir.path(), &site.direct.url);
            assert_eq!(site.host.value(site.db, "SELECT count(*) FROM t"), json!(site.rows));
        }
        site.disk.grow(64 << 10);
        site.insert(3000).unwrap();
        site.endpoint.behave();
        site.check();
        for _ in 0..20 {
            site.insert(3000).unwrap();
        }
        site.check();
        assert_eq!(site.host.status(site.db, "state"), "idle");
    }
}

/// Rows that are changed in place take no more room, so that SQLite goes on for ever on a full disk: so it does with us, whether or not the store is there.
#[test]
fn changes_in_place_go_on_as_without_us() {
    for journal_mode in ["wal", "delete", "persist", "truncate", "memory"] {
        let Some(mut site) = Site::new(16 << 10, journal_mode) else { return };
        let (mut plain, plain_db) = site.plain(journal_mode);
        for (host, db) in [(&mut plain, plain_db), (&mut site.host, site.db)] {
            host.run(db, &filled_table());
            // The WAL has been as long as it gets before it is restarted, and a journal that stays is there.
            for nth in 0..150 {
                host.run(db, &change(nth));
            }
        }
        site.rows = 200;
        site.check();
        for outage in [false, true] {
            if outage {
                site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
            }
            site.fill();
            let mut results = Vec::new();
            for (host, db) in [(&mut plain, plain_db), (&mut site.host, site.db)] {
                results.push((0..300).map(|nth| host.try_query(db, &change(nth)).err()).collect::<Vec<_>>());
            }
            let failed = |of: &[Option<String>]| of.iter().filter(|result| result.is_some()).count();
            eprintln!("{journal_mode} {outage}: {} {} snapshots {}", failed(&results[0]), failed(&results[1]), site.host.status(site.db, "snapshots"));
            site.endpoint.behave();
            site.check();
            site.make_room();
        }
        eprintln!("{}", site.log());
    }
}

/// The same by a limit on the size of files, which needs no rights.
#[test]
fn files_that_may_not_grow_lose_nothing() {
    let server = Server::start().unwrap();
    let endpoint = Endpoint::start(&server, Box::new(|_| Fault::None)).unwrap();
    let direct = Bucket::s3(&server, "app");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let log = dir.path().join("log");
    let mut host = Host::start(Program::Python, &direct.through(&endpoint.endpoint()).env);
    let options = [("log", log.to_str().unwrap()), ("sync_interval", "10ms"), ("burst", "100"), ("request_timeout", "1s")];
    let db = host.open(&host::replicated(&path, &direct.url, &options));
    host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)");
    let pid = Pid::from_raw(i32::try_from(host.id()).unwrap()).unwrap();
    let limit = |bytes: Option<u64>| {
        prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    };
    let mut rows = 0;
    let mut insert = |host: &mut Host, expected: &[&str]| match host.try_query(db, "INSERT INTO t(x) VALUES (randomblob(3000))") {
        Ok(_) => rows += 1,
        Err(error) => assert!(expected.contains(&error.as_str()), "{error}"),
    };
    for round in 0..3 {
        insert(&mut host, &[]);
        host.sync(db);
        if round == 1 {
            endpoint.follow(Box::new(|_| Fault::ResetBefore));
        }
        // Below what the files have already, so that nothing of anybody's grows.
        limit(Some(64 << 10));
        for _ in 0..300 {
            insert(&mut host, &[IO_ERROR, FULL]);
        }
        if round != 1 {
            host.sync(db);
        }
        limit(None);
        endpoint.behave();
        for _ in 0..20 {
            insert(&mut host, &[]);
        }
        host.sync(db);
    }
    assert_eq!(host.value(db, "SELECT count(*) FROM t"), json!(rows));
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.lines().count() < 40, "{text}");
    host.close(db);
    let restored = dir.path().join("restored.db");
    direct.restore(&restored);
    page_compare(&flattened(&path, dir.path()), &restored).unwrap();
    integrity_check(&restored).unwrap();
}
