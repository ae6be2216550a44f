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
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::{integrity_check, page_compare, same_but_for_free_pages};
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

/// What the small disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Small {
    All,
    /// What we keep is on another disk.
    Database,
    /// The database is on another disk.
    Spool,
}

struct Site {
    small: Small,
    options: &'static [(&'static str, &'static str)],
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
        Self::with(kilobytes, journal_mode, Small::All, &[])
    }

    fn with(kilobytes: u32, journal_mode: &str, small: Small, options: &'static [(&'static str, &'static str)]) -> Option<Self> {
        let server = Server::start().unwrap();
        let endpoint = Endpoint::start(&server, Box::new(|_| Fault::None)).unwrap();
        let direct = Bucket::s3(&server, "app");
        let env = direct.through(&endpoint.endpoint()).env;
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::mount(kilobytes, &dir.path().join("disk"))?;
        match small {
            Small::All => {}
            Small::Database => {
                std::fs::create_dir(dir.path().join("kept")).unwrap();
                std::os::unix::fs::symlink(dir.path().join("kept"), disk.path().join("app.db-replicated")).unwrap();
            }
            Small::Spool => {
                std::fs::create_dir(disk.path().join("kept")).unwrap();
                std::os::unix::fs::symlink(disk.folder.join("kept"), dir.path().join("app.db-replicated")).unwrap();
            }
        }
        let (host, db) = Self::start(&disk, &env, dir.path(), &direct.url, small, options);
        let mut site = Self { small, options, endpoint, direct, _server: server, dir, env, host, db, disk, rows: 0 };
        assert_eq!(site.host.value(site.db, &format!("PRAGMA journal_mode={journal_mode}")), json!(journal_mode));
        site.host.run(site.db, "CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)");
        Some(site)
    }

    fn start(
        disk: &Disk,
        env: &[(String, String)],
        dir: &Path,
        url: &str,
        small: Small,
        more: &[(&'static str, &'static str)],
    ) -> (Host, Db) {
        let wrapper = disk.wrapper();
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let mut host = Host::start_by(&wrapper, Program::Python, env);
        let log = dir.join("log");
        let mut options = vec![
            ("log", log.to_str().unwrap()),
            ("sync_interval", "10ms"),
            ("burst", "100"),
            ("request_timeout", "1s"),
            ("close_timeout", "0s"),
        ];
        options.extend(more);
        let folder = if small == Small::Spool { dir } else { &disk.folder };
        let db = host.open(&host::replicated(&folder.join("app.db"), url, &options));
        (host, db)
    }

    /// Kills the host, and has another one open the database.
    fn kill(self) -> Self {
        let Self { small, options, endpoint, direct, _server, dir, env, host, db: _, disk, rows } = self;
        host.kill();
        let (host, db) = Self::start(&disk, &env, dir.path(), &direct.url, small, options);
        Self { small, options, endpoint, direct, _server, dir, env, host, db, disk, rows }
    }

    /// The database, as seen from outside.
    fn path(&self) -> PathBuf {
        if self.small == Small::Spool { self.dir.path().join("app.db") } else { self.disk.path().join("app.db") }
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
        page_compare(&flattened(&self.path(), self.dir.path()), &restored).unwrap();
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
    // A file that was being made when the disk became full has made room by going.
    let refused = (0..200).find_map(|_| site.insert(200_000).err());
    assert_eq!(refused.as_deref(), Some(FULL));
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
            site = site.kill();
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

/// A disk that is full for two processes: the one that does not upload checkpoints and goes on, and what either has committed is there. What waits is in no
/// process's memory, so that whoever is left has all of it.
#[test]
fn a_full_disk_in_a_process_that_does_not_upload_loses_nothing() {
    for (journal_mode, killed) in [("wal", false), ("wal", true), ("delete", false), ("delete", true)] {
        let Some(mut site) = Site::new(12 << 10, journal_mode) else { return };
        site.insert(2000).unwrap();
        site.check();
        let (mut second, db) = Site::start(&site.disk, &site.env, site.dir.path(), &site.direct.url, site.small, site.options);
        let insert = |second: &mut Host| match second.try_query(db, "INSERT INTO t(x) VALUES (randomblob(9000))") {
            Ok(_) => 1,
            Err(error) => {
                assert_eq!(error, FULL);
                0
            }
        };
        site.rows += insert(&mut second);
        site.check();
        site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
        let mut refused = 0;
        for round in 0..1500 {
            let done = insert(&mut second);
            (site.rows, refused) = (site.rows + done, refused + (1 - done));
            if round % 10 == 0 && site.insert(3000).is_err() {
                refused += 1;
            }
            if round % 100 == 99
                && let Err(error) = second.try_query(db, "PRAGMA wal_checkpoint(TRUNCATE)")
            {
                assert_eq!(error, FULL);
            }
        }
        assert!(refused > 20, "{refused}");
        site.fill();
        for _ in 0..50 {
            site.rows += insert(&mut second);
        }
        assert_eq!(second.value(db, "SELECT count(*) FROM t"), json!(site.rows));
        site.disk.grow(64 << 10);
        if killed {
            // The one that uploads; the other takes over.
            site.host.kill();
            (site.host, site.db) = (second, db);
            site.insert(3000).unwrap();
            site.endpoint.behave();
            site.check();
        } else {
            site.rows += insert(&mut second);
            site.endpoint.behave();
            site.check();
            assert_eq!(second.value(db, "SELECT count(*) FROM t"), json!(site.rows));
        }
        assert_eq!(site.host.status(site.db, "state"), "idle");
    }
}

/// A table of 200 pages, in a database whose WAL, or journal, is as long as it gets: changes in place take no more room.
fn fill_table(host: &mut Host, db: Db) {
    host.run(
        db,
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 200) INSERT INTO t SELECT i, randomblob(3000) FROM c",
    );
    assert_eq!(change(host, db, 150), vec![None; 150]);
}

/// Changes ten rows at a time in place. Returns what SQLite said.
fn change(host: &mut Host, db: Db, times: u32) -> Vec<Option<String>> {
    let sql = |nth: u32| format!("UPDATE t SET x = randomblob(3000) WHERE (id - 1) / 10 = {}", nth * 7 % 20);
    (0..times).map(|nth| host.try_query(db, &sql(nth)).err()).collect()
}

/// SQLite goes on for ever on a full disk where it needs no more room: so it does with us, whether or not the store is there.
#[test]
fn changes_in_place_go_on_as_without_us() {
    for (journal_mode, small) in [
        ("wal", Small::All),
        ("wal", Small::Database),
        ("wal", Small::Spool),
        ("delete", Small::All),
        ("persist", Small::All),
        ("persist", Small::Spool),
        ("memory", Small::All),
    ] {
        let Some(mut site) = Site::with(16 << 10, journal_mode, small, &[]) else { return };
        let (mut plain, plain_db) = site.plain(journal_mode);
        fill_table(&mut plain, plain_db);
        fill_table(&mut site.host, site.db);
        site.rows = 200;
        site.check();
        for outage in [false, true] {
            if outage {
                site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
            }
            site.fill();
            let expected = if small == Small::Spool { vec![None; 300] } else { change(&mut plain, plain_db, 300) };
            assert!(
                expected.iter().flatten().all(|error| error == FULL) && (journal_mode == "delete" || expected == [const { None }; 300])
            );
            assert_eq!(change(&mut site.host, site.db, 300), expected, "{journal_mode} {small:?} {outage}");
            site.endpoint.behave();
            // While it is full.
            site.check();
            site.make_room();
        }
        // What has not found room on the disk was in memory.
        assert_eq!(site.host.status(site.db, "snapshots"), "1", "{journal_mode} {small:?}: {}", site.log());
        assert!(site.log().lines().count() < 10, "{}", site.log());
    }
}

/// What is in memory goes with the process: the next one sends the full state.
#[test]
fn what_a_full_disk_did_not_take_is_made_good_after_a_kill() {
    for (journal_mode, has_room_again) in [("wal", false), ("persist", false), ("wal", true), ("persist", true)] {
        let Some(mut site) = Site::new(16 << 10, journal_mode) else { return };
        fill_table(&mut site.host, site.db);
        site.rows = 200;
        site.check();
        site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
        site.fill();
        assert_eq!(change(&mut site.host, site.db, 300), vec![None; 300]);
        if has_room_again {
            site.make_room();
            assert_eq!(change(&mut site.host, site.db, 150), vec![None; 150]);
        }
        site = site.kill();
        site.endpoint.behave();
        site.check();
        let full_states = site.direct.full_states();
        if has_room_again {
            // It has found its way to the disk.
            assert_eq!(full_states, 1, "{journal_mode}: {}", site.log());
        } else {
            assert_eq!(full_states, 2, "{journal_mode}: {}", site.log());
        }
        site.host.run(site.db, &format!("PRAGMA journal_mode={journal_mode}"));
        assert_eq!(change(&mut site.host, site.db, 150), vec![None; 150]);
        site.check();
    }
}

/// More than memory may take, too: what waits is given up rather than a commit, and the WAL stays short.
#[test]
fn a_spool_without_room_is_given_up_and_the_wal_stays_short() {
    for (journal_mode, small) in [("wal", Small::All), ("wal", Small::Spool), ("persist", Small::Spool)] {
        let Some(mut site) = Site::with(40 << 10, journal_mode, small, &[("max_memory", "16MiB")]) else { return };
        let rows = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 3000) INSERT INTO t SELECT i, randomblob(3000) FROM c";
        site.host.run(site.db, rows);
        site.host.run(site.db, "PRAGMA wal_checkpoint(TRUNCATE)");
        site.rows = 3000;
        // The WAL, or journal, as long as it gets.
        let change = |site: &mut Site, times: u32| {
            for nth in 0..times {
                site.host.run(site.db, &format!("UPDATE t SET x = randomblob(3000) WHERE (id - 1) / 100 = {}", nth * 7 % 30));
            }
        };
        change(&mut site, 25);
        site.check();
        site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
        site.fill();
        let wal_bytes = |site: &Site| std::fs::metadata(site.path().with_file_name("app.db-wal")).map_or(0, |m| m.len());
        let before = wal_bytes(&site);
        for _ in 0..10 {
            change(&mut site, 30);
            site.host.run(site.db, "PRAGMA wal_checkpoint(PASSIVE)");
        }
        assert!(wal_bytes(&site) <= before.max(5 << 20), "{} of {before}", wal_bytes(&site));
        assert!(site.log().contains("the full state will be sent: the local spool was lost or its limit reached"), "{}", site.log());
        assert!(site.log().lines().count() < 60, "{}", site.log());
        site.endpoint.behave();
        // While it is full.
        site.check();
        site.make_room();
        let full_states = site.direct.full_states();
        change(&mut site, 30);
        site.check();
        assert_eq!(site.direct.full_states(), full_states, "{}", site.log());
    }
}

/// A transaction for which there is no room anywhere but in the WAL, and which is too large for a writer to encode: the WAL is restarted all the same.
#[test]
fn a_transaction_that_fits_nowhere_does_not_keep_the_wal() {
    let Some(mut site) = Site::with(2 << 10, "wal", Small::Spool, &[("max_memory", "16MiB")]) else { return };
    site.check();
    site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
    site.fill();
    site.insert(24_000_000).unwrap();
    site.insert(1000).unwrap();
    eventually("it is given up", || site.log().contains("the full state will be sent"));
    let wal = site.path().with_file_name("app.db-wal");
    let before = std::fs::metadata(&wal).unwrap().len();
    for _ in 0..60 {
        site.insert(200_000).unwrap();
    }
    assert_eq!(std::fs::metadata(&wal).unwrap().len(), before, "{}", site.log());
    site.endpoint.behave();
    site.check();
}

/// An explicit checkpoint of each kind answers on a full disk, in an outage, as it does without us.
#[test]
fn checkpoints_answer_as_without_us() {
    let Some(mut site) = Site::new(16 << 10, "wal") else { return };
    let (mut plain, plain_db) = site.plain("wal");
    fill_table(&mut plain, plain_db);
    fill_table(&mut site.host, site.db);
    site.rows = 200;
    site.check();
    site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
    site.fill();
    for kind in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        for (host, db) in [(&mut plain, plain_db), (&mut site.host, site.db)] {
            assert_eq!(change(host, db, 3), vec![None; 3]);
        }
        let sql = format!("PRAGMA wal_checkpoint({kind})");
        let expected = plain.query(plain_db, &sql);
        assert_eq!(site.host.query(site.db, &sql), expected, "{kind}");
    }
    site.endpoint.behave();
    site.check();
}

/// The spool of an outage does not take the room that SQLite needs.
#[test]
fn a_spool_leaves_room_for_the_database() {
    for journal_mode in ["wal", "delete"] {
        let Some(mut site) = Site::new(32 << 10, journal_mode) else { return };
        site.check();
        site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
        let mut refused = None;
        // Without us that is 16 MB and what a WAL or a journal takes.
        for nth in 0..4000_u32 {
            if site.insert(3500).is_err() {
                refused.get_or_insert(nth);
            }
        }
        assert_eq!(refused, None, "{journal_mode}: {}", site.log());
        assert!(site.log().contains("bytes wait there"), "{}", site.log());
        site.endpoint.behave();
        site.check();
    }
}

/// Whoever waits for the bucket gets the error that says what has happened: not committed where the disk is full, and committed but not known to
/// be in the bucket where the store is gone.
#[test]
fn a_remote_commit_on_a_full_disk_tells_what_has_happened() {
    let options = &[("ack_timeout", "1s")];
    for journal_mode in ["wal", "persist"] {
        let Some(mut site) = Site::with(16 << 10, journal_mode, Small::All, options) else { return };
        fill_table(&mut site.host, site.db);
        site.rows = 200;
        site.check();
        site.fill();
        site.host.run(site.db, "PRAGMA replicated_durability=remote");
        for outage in [false, true] {
            if outage {
                site.endpoint.follow(Box::new(|_| Fault::ResetBefore));
            }
            for id in [3, 4] {
                let done = site.host.try_query(site.db, &format!("UPDATE t SET x = 'new {outage}' WHERE id = {id}"));
                assert_eq!(done.err().as_deref(), outage.then_some(IO_ERROR), "{journal_mode}");
            }
            assert_eq!(site.host.value(site.db, &format!("SELECT count(*) FROM t WHERE x = 'new {outage}'")), json!(2));
            assert_eq!(site.host.try_query(site.db, "INSERT INTO t(x) VALUES (randomblob(9000000))"), Err(FULL.to_owned()));
            assert_eq!(site.host.value(site.db, "SELECT count(*) FROM t"), json!(200));
            site.endpoint.behave();
            site.check();
        }
    }
}

/// The first open needs room for the control file: there is none, it says so. Later ones need none.
#[test]
fn an_open_on_a_full_disk_works_or_says_why_not() {
    let Some(mut site) = Site::new(16 << 10, "wal") else { return };
    let (mut plain, plain_db) = site.plain("wal");
    fill_table(&mut site.host, site.db);
    site.rows = 200;
    site.check();
    site.fill();
    site = site.kill();
    site.check();
    plain.close(plain_db);
    plain.quit();
    let log = site.dir.path().join("log");
    let options = [("log", log.to_str().unwrap())];
    let uri = host::replicated(&site.disk.folder.join("plain.db"), &site.direct.url.replace("/app", "/plain"), &options);
    let refused = site.host.try_open(&uri).map(drop);
    assert!(refused.is_err(), "there was room for a directory and a control file");
    let told = |line: &str| line.contains("plain.db-replicated") && line.contains("No space left");
    assert!(site.log().lines().any(told), "{}", site.log());
    site.make_room();
    let other = site.host.open(&uri);
    site.host.sync(other);
    site.host.close(other);
}

/// Each of our own files meets a full disk for a while, and SQLite's do not: no statement fails, and in the end the bucket has everything.
#[test]
fn each_file_of_ours_may_find_the_disk_full() {
    for point in ["control.save", "spool.create", "spool.written", "attempt.write", "preserve.aside"] {
        for journal_mode in ["wal", "delete"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let log = dir.path().join("log");
            let bucket = Bucket::folder(&dir.path().join("bucket"));
            let mut env = bucket.env.clone();
            env.push(("REPLICATED_TEST_FAULT".to_owned(), format!("{point}=full@4..30")));
            env.push(("REPLICATED_TEST_LOG".to_owned(), log.display().to_string()));
            let mut host = Host::start(Program::Faulty, &env);
            // Seldom sent, so that there is something to spool, unless somebody waits.
            let options = [("sync_interval", "1h"), ("burst", "1"), ("close_timeout", "0s")];
            let db = host.open(&host::replicated(&path, &bucket.url, &options));
            host.run(db, &format!("PRAGMA journal_mode={journal_mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)"));
            for round in 0..80 {
                host.run(
                    db,
                    "BEGIN; INSERT INTO t(x) VALUES (randomblob(9000)); UPDATE t SET x = randomblob(3000) WHERE id % 7 = 1; COMMIT",
                );
                if journal_mode == "wal" && round % 4 == 3 {
                    let kind = if round % 8 == 3 { "RESTART" } else { "TRUNCATE" };
                    host.run(db, &format!("PRAGMA wal_checkpoint({kind})"));
                }
                if round % 20 == 19 {
                    host.sync(db);
                }
            }
            assert_eq!(host.value(db, "SELECT count(*) FROM t"), json!(80));
            host.sync(db);
            assert_eq!(host.status(db, "state"), "idle", "{point} {journal_mode}");
            let text = std::fs::read_to_string(&log).unwrap();
            if point.starts_with("spool") {
                // It was in memory meanwhile.
                assert_eq!(host.status(db, "snapshots"), "1", "{point} {journal_mode}: {text}");
            }
            host.close(db);
            host.quit();
            let restored = dir.path().join("restored.db");
            bucket.restore(&restored);
            same_but_for_free_pages(&flattened(&path, dir.path()), &restored).unwrap();
        }
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
