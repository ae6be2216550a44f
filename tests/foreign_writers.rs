//! Programs that write to a replicated database without the extension: what they do to its WAL is noticed, and replicated.
//!
//! The foreign program is the `sqlite3` shell, a process for each visit, which closes the database when it is done.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use replicated::types::Txid;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::sqlite::{integrity_check, page_compare};

/// With pages that never change, by which a full state is told from an increment.
const TABLES: &str = "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, who, x); CREATE TABLE still(x);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) INSERT INTO still SELECT randomblob(3000) FROM n";
const OURS: &str = "INSERT INTO t(who, x) VALUES ('ours', randomblob(3000))";
const FOREIGN: &str = "INSERT INTO t(who, x) VALUES ('foreign', randomblob(3000));";

struct Place {
    dir: tempfile::TempDir,
    bucket: Bucket,
    host: Host,
}

impl Place {
    /// A database that is open and has a commit in its bucket.
    fn new(which: Program) -> (Self, Db) {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        let host = Host::start(which, &bucket.env);
        let mut place = Self { dir, bucket, host };
        let db = place.open();
        place.host.run(db, TABLES);
        place.host.run(db, OURS);
        place.check(db);
        (place, db)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn open(&mut self) -> Db {
        self.open_with(&[("sync_interval", "10ms")])
    }

    fn open_with(&mut self, options: &[(&str, &str)]) -> Db {
        let log = self.dir.path().join("log");
        let options = [options, &[("log", log.to_str().unwrap()), ("log_level", "debug")]].concat();
        let uri = host::replicated(&self.path(), &self.bucket.url, &options);
        self.host.open(&uri)
    }

    /// What is in the bucket is the database, and every TXID of it a state that was committed.
    fn check(&mut self, db: Db) {
        self.host.sync(db);
        self.compare();
        let replayed = self.dir.path().join("replayed.db");
        self.bucket.replay(&replayed, |_, state| integrity_check(state).unwrap()).unwrap();
    }

    fn compare(&self) {
        let restored = self.dir.path().join("restored.db");
        let _ = std::fs::remove_file(&restored);
        self.bucket.restore(&restored);
        let dir = self.dir.path().join("flat");
        let _ = std::fs::create_dir(&dir);
        page_compare(&flattened(&self.path(), &dir), &restored).unwrap();
    }

    fn newest(&self) -> Txid {
        self.bucket.list().iter().map(|listed| listed.name.max_txid).max().unwrap()
    }

    fn rows(&mut self, db: Db, who: &str) -> u64 {
        self.host.value(db, &format!("SELECT count(*) FROM t WHERE who = '{who}'")).as_u64().unwrap()
    }
}

/// Has the shell do something, and waits until it has ended.
fn visit(database: &Path, sql: &str) {
    let output = Command::new("sqlite3").arg("-bail").arg(database).args([".timeout 10000", sql]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A shell that keeps the database open.
struct Visitor {
    child: Child,
    input: ChildStdin,
    done: PathBuf,
    times: u32,
}

impl Visitor {
    fn new(database: &Path) -> Self {
        let mut child = Command::new("sqlite3").arg("-bail").arg(database).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        Self { child, input, done: database.with_extension("visited"), times: 0 }
    }

    fn run(&mut self, sql: &str) {
        self.times += 1;
        let done = self.done.with_extension(format!("visited-{}", self.times));
        // Another visitor's.
        let _ = std::fs::remove_file(&done);
        writeln!(self.input, ".timeout 10000\n{sql}\n.output '{}'\n.print done\n.output", done.display()).unwrap();
        eventually("the visitor is done", || std::fs::read_to_string(&done).is_ok_and(|text| text.contains("done")));
    }

    fn leave(mut self) {
        drop(self.input);
        assert!(self.child.wait().unwrap().success());
    }
}

/// Frames that somebody else has appended go as if they were ours: with our next commit, or where somebody asks for it.
#[test]
fn appended_frames_are_replicated_as_if_they_were_ours() {
    for which in [Program::Rust, Program::Python] {
        let (mut place, db) = Place::new(which);
        for round in 0..4 {
            visit(&place.path(), &FOREIGN.repeat(round + 1));
            if round % 2 == 0 {
                place.host.run(db, OURS);
            }
            place.check(db);
            // Between two of ours, with ours between two of theirs.
            let mut visitor = Visitor::new(&place.path());
            visitor.run(FOREIGN);
            place.host.run(db, OURS);
            visitor.run(FOREIGN);
            place.host.run(db, OURS);
            visitor.run(FOREIGN);
            visitor.leave();
            place.check(db);
        }
        assert_eq!((place.rows(db, "foreign"), place.bucket.full_states()), (22, 1), "{}", place.log());
        assert_eq!(place.host.status(db, "snapshots"), "1");
    }
}

/// A transaction that somebody else is in the midst of, with frames in the WAL already, is not taken for committed; nor one that is rolled back.
#[test]
fn what_others_have_not_committed_is_not_sent() {
    let (mut place, db) = Place::new(Program::Rust);
    let mut visitor = Visitor::new(&place.path());
    visitor.run(&format!("PRAGMA cache_size=2; BEGIN; {}", FOREIGN.repeat(40)));
    place.host.sync(db);
    assert_eq!(place.rows(db, "foreign"), 0);
    place.check(db);
    visitor.run("ROLLBACK;");
    place.host.run(db, OURS);
    place.check(db);
    visitor.run(&format!("BEGIN; {} COMMIT;", FOREIGN.repeat(40)));
    place.check(db);
    visitor.leave();
    assert_eq!((place.rows(db, "foreign"), place.bucket.full_states()), (40, 1), "{}", place.log());
}

/// Somebody else restarts the WAL, with frames in it that we have and with frames that we do not have: the state is compared, and sent as a whole where
/// something may be missing.
#[test]
fn a_wal_that_others_restart() {
    let (mut place, db) = Place::new(Program::Python);
    let full_states = place.bucket.full_states();
    let mut visitor = Visitor::new(&place.path());
    // All of it is captured. What comes after the restart cannot be told from what was lost before.
    visitor.run(&format!("{FOREIGN} PRAGMA wal_checkpoint(RESTART); {FOREIGN}"));
    place.host.run(db, OURS);
    place.check(db);
    assert_eq!(place.bucket.full_states(), full_states + 1, "{}", place.log());
    assert!(place.log().contains("the WAL was restarted or the database changed outside the extension"), "{}", place.log());
    // Cut to nothing.
    visitor.run(&format!("{FOREIGN} PRAGMA wal_checkpoint(TRUNCATE);"));
    place.host.run(db, OURS);
    place.check(db);
    assert!(place.bucket.full_states() <= full_states + 2, "{}", place.log());
    let before = place.bucket.full_states();
    // From there it goes on by increments.
    for _ in 0..3 {
        visitor.run(FOREIGN);
        place.host.run(db, OURS);
        place.check(db);
    }
    assert_eq!(place.bucket.full_states(), before, "{}", place.log());
    assert_eq!(place.host.status(db, "snapshots"), before.to_string());
    visitor.leave();
}

/// Somebody else restarts the WAL with commits in it that nobody has captured, and commits nothing to the one that he has begun.
#[test]
fn a_wal_that_others_restart_and_leave_empty() {
    let (mut place, db) = Place::new(Program::Python);
    place.host.close(db);
    // What does not fit into the cache is written before it is rolled back.
    let rolled_back = format!("PRAGMA wal_checkpoint(RESTART); PRAGMA cache_size=2; BEGIN; {} ROLLBACK;", FOREIGN.repeat(20));
    for what in ["PRAGMA wal_checkpoint(TRUNCATE);", &rolled_back] {
        let db = place.open_with(&[("sync_interval", "60s"), ("burst", "1")]);
        // On credit, so that what comes next waits for the interval.
        for _ in 0..3 {
            place.host.run(db, OURS);
            place.host.sync(db);
        }
        let full_states = place.bucket.full_states();
        place.host.run(db, OURS);
        let mut visitor = Visitor::new(&place.path());
        visitor.run(what);
        place.check(db);
        assert_eq!(place.bucket.full_states(), full_states + 1, "{what}: {}", place.log());
        visitor.leave();
        place.host.close(db);
    }
}

/// Somebody else writes while we do, with restarts all the time.
#[test]
fn writers_that_take_turns_with_ours() {
    let (mut place, db) = Place::new(Program::Python);
    place.host.run(db, "PRAGMA wal_autocheckpoint=20; PRAGMA busy_timeout=10000");
    let mut visitor = Visitor::new(&place.path());
    visitor.run("PRAGMA wal_autocheckpoint=15;");
    for round in 0..30 {
        visitor.run(&FOREIGN.repeat(round % 5 + 1));
        for _ in 0..round % 4 {
            place.host.run(db, OURS);
        }
        if round % 6 == 0 {
            place.check(db);
        }
    }
    place.check(db);
    let (ours, foreign) = ((0..30).map(|round| round % 4).sum::<u64>() + 1, (0..30).map(|round| round % 5 + 1).sum::<u64>());
    assert_eq!((place.rows(db, "ours"), place.rows(db, "foreign")), (ours, foreign));
    visitor.leave();
    place.host.close(db);
    place.compare();
}

/// Somebody else's frames are the last in a WAL that our last close takes away, or cuts to nothing.
#[test]
fn what_others_have_appended_goes_with_our_last_close() {
    for set_up in ["", ".filectrl persist_wal 1\nPRAGMA journal_size_limit=0;"] {
        let (mut place, db) = Place::new(Program::Python);
        place.host.close(db);
        // The shell, since it can have SQLite keep the WAL.
        let uri = host::replicated(&place.path(), &place.bucket.url, &[("sync_interval", "10ms")]);
        let mut ours = Command::new("sqlite3").envs(place.bucket.env.iter().cloned()).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = ours.stdin.take().unwrap();
        let ready = place.dir.path().join("ready");
        writeln!(input, ".bail on\n.load {}\n.open '{uri}'\n{set_up}\n{OURS};", host::extension().display()).unwrap();
        writeln!(input, ".output '{}'\n.print ready\n.output", ready.display()).unwrap();
        eventually("the shell has committed", || std::fs::read_to_string(&ready).is_ok_and(|text| text.contains("ready")));
        visit(&place.path(), &FOREIGN.repeat(3));
        drop(input);
        assert!(ours.wait().unwrap().success());
        // All of it was sent at the close.
        place.compare();
        let db = place.open();
        assert_eq!(place.rows(db, "foreign"), 3);
        place.host.run(db, OURS);
        place.check(db);
        assert_eq!(place.bucket.full_states(), 1, "{set_up}: {}", place.log());
    }
}

/// Somebody else writes while none of ours has the database open, and takes the WAL away with them.
#[test]
fn a_visit_while_nobody_of_ours_is_there() {
    for sql in [FOREIGN.to_owned(), format!("{FOREIGN} VACUUM;")] {
        let (mut place, db) = Place::new(Program::Python);
        place.host.close(db);
        visit(&place.path(), &sql);
        let db = place.open();
        place.host.run(db, "SELECT count(*) FROM t");
        place.check(db);
        assert_eq!(place.bucket.full_states(), 2, "{sql}: {}", place.log());
        assert!(place.log().contains("the full state will be sent"), "{}", place.log());
        place.host.run(db, OURS);
        place.check(db);
        assert_eq!(place.bucket.full_states(), 2, "{sql}: {}", place.log());
    }
    // One that only reads costs nothing.
    let (mut place, db) = Place::new(Program::Rust);
    place.host.close(db);
    visit(&place.path(), "SELECT count(*) FROM t;");
    let db = place.open();
    place.host.run(db, OURS);
    place.check(db);
    assert_eq!(place.bucket.full_states(), 1, "{}", place.log());
}

/// Nothing of this touches the first page, where a change would be counted.
const IN_PLACE: &str = "UPDATE still SET x = randomblob(3000) WHERE rowid % 20 = 7;";

/// Opens again, and says why replication has stopped; nothing where it has not.
fn reopened(place: &mut Place) -> (Db, Option<String>) {
    let db = place.open();
    place.host.run(db, "SELECT count(*) FROM t");
    let synced = place.host.try_query(db, "PRAGMA replicated_sync='20s'");
    (db, synced.err())
}

/// A visit of which neither size, nor counter, nor the WAL's salts tell: the bucket does, and what it does not have is sent.
#[test]
fn a_visit_that_only_the_bucket_can_tell_of() {
    let (mut place, mut db) = Place::new(Program::Python);
    for round in 0..3 {
        place.host.close(db);
        visit(&place.path(), IN_PLACE);
        let newest = place.newest();
        let (opened, stopped) = reopened(&mut place);
        assert_eq!(stopped, None, "{}", place.log());
        place.compare();
        // What is in no state of the bucket is 3 pages.
        assert!(place.log().contains("3 of its pages are in no state of the bucket"), "{}", place.log());
        assert_eq!((place.bucket.full_states(), place.newest()), (2 + round, newest.next()), "{}", place.log());
        place.host.run(opened, OURS);
        place.check(opened);
        assert_eq!(place.bucket.full_states(), 2 + round, "{}", place.log());
        db = opened;
    }
}

/// The file's time is another one, its content is not: whoever comes after a kill and takes the WAL away leaves one like that, and so does a copy of the
/// newest state. Increments go on.
#[test]
fn a_visit_that_has_changed_nothing() {
    for (killed, checkpointed) in [(true, false), (true, true), (false, false)] {
        let (mut place, mut db) = Place::new(Program::Python);
        if checkpointed {
            // Its change counter is known, and what follows counts it up in the WAL.
            place.host.close(db);
            db = place.open();
            place.host.run(db, "CREATE TABLE later(x)");
        }
        place.host.run(db, "UPDATE still SET x = randomblob(3000) WHERE rowid % 20 = 3");
        place.check(db);
        if killed {
            let env = place.bucket.env.clone();
            std::mem::replace(&mut place.host, Host::start(Program::Python, &env)).kill();
            visit(&place.path(), "SELECT count(*) FROM t;");
            assert!(!place.dir.path().join("app.db-wal").exists());
        } else {
            place.host.close(db);
            let content = std::fs::read(place.path()).unwrap();
            std::fs::write(place.path(), content).unwrap();
        }
        let (db, stopped) = reopened(&mut place);
        assert_eq!(stopped, None, "{}", place.log());
        assert!(place.log().contains("increments go on"), "{}", place.log());
        for _ in 0..2 {
            place.host.run(db, OURS);
            place.check(db);
        }
        assert_eq!(place.bucket.full_states(), 1, "{}", place.log());
    }
}

/// A copy from before a kill is newer than what was last seen of the file, and older than the bucket.
#[test]
fn an_older_copy_with_a_newer_change_counter() {
    let (mut place, db) = Place::new(Program::Python);
    place.host.close(db);
    let db = place.open();
    place.host.run(db, "CREATE TABLE before(x)");
    place.host.sync(db);
    let flat = tempfile::tempdir().unwrap();
    let (older, its_txid) = (flattened(&place.path(), flat.path()), place.newest());
    place.host.run(db, "CREATE TABLE after(x)");
    place.host.sync(db);
    let newest = place.newest();
    let env = place.bucket.env.clone();
    std::mem::replace(&mut place.host, Host::start(Program::Python, &env)).kill();
    std::fs::copy(older, place.path()).unwrap();
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(place.dir.path().join(format!("app.db{suffix}"))).unwrap();
    }
    let (_, stopped) = reopened(&mut place);
    let stopped = stopped.unwrap_or_default();
    assert!(stopped.contains("diverged") && stopped.contains(&format!("TXID {its_txid}")), "{stopped}: {}", place.log());
    assert_eq!(place.newest(), newest);
}

/// An older copy is told by its TXID, whatever is committed to it meanwhile; one that somebody has gone on with, by its older pages. Nothing is sent.
#[test]
fn an_older_copy_is_told_by_the_bucket() {
    for gone_on_with in [false, true] {
        let (mut place, db) = Place::new(Program::Python);
        place.host.run(db, "UPDATE still SET x = randomblob(3000) WHERE rowid % 20 = 3");
        place.host.sync(db);
        place.host.close(db);
        let (older, its_txid) = (std::fs::read(place.path()).unwrap(), place.newest());
        for _ in 0..3 {
            let db = place.open();
            place.host.run(db, "UPDATE still SET x = randomblob(3000) WHERE rowid % 20 = 5");
            place.host.sync(db);
            place.host.close(db);
        }
        std::fs::write(place.path(), older).unwrap();
        if gone_on_with {
            visit(&place.path(), IN_PLACE);
        }
        let newest = place.newest();
        // The second time it has what was committed the first time, which is in no state of the bucket either.
        for round in 0..3 {
            let db = place.open();
            // The second one changes the first page, and so what is counted there.
            place.host.run(db, "UPDATE still SET x = randomblob(3000) WHERE rowid % 20 = 9");
            place.host.run(db, &format!("CREATE TABLE more{round}(x)"));
            let stopped = place.host.try_query(db, "PRAGMA replicated_sync='20s'").unwrap_err();
            assert!(stopped.contains("diverged"), "{stopped}");
            assert!(gone_on_with || stopped.contains(&format!("TXID {its_txid}")), "{stopped}");
            place.host.close(db);
            assert_eq!(place.newest(), newest);
        }
        let told = if gone_on_with { "some of its pages are older" } else { "it holds what the bucket has as TXID" };
        assert!(place.log().contains(told), "{}", place.log());
        replicated::adopt(&place.path(), &place.bucket.url, newest).unwrap();
        let db = place.open();
        place.host.run(db, OURS);
        place.check(db);
    }
}

/// What the bucket cannot tell stays to be decided: where states are missing, where it has gone on, where the file was written to before it was compared.
#[test]
fn what_the_bucket_cannot_tell_is_not_sent() {
    for what in ["a gap", "gone on", "written to"] {
        let (mut place, db) = Place::new(Program::Python);
        for _ in 0..3 {
            place.host.run(db, "UPDATE still SET x = randomblob(3000) WHERE rowid % 20 = 3");
            place.host.sync(db);
        }
        place.host.close(db);
        let newest = place.newest();
        let level0 = |txid: Txid| place.dir.path().join(format!("bucket/{}", replicated::store::LtxName::level0(txid)));
        visit(&place.path(), IN_PLACE);
        let (away, bucket) = (place.dir.path().join("away"), place.dir.path().join("bucket"));
        match what {
            "a gap" => std::fs::remove_file(find(&bucket, &level0(Txid::new(newest.get() - 1).unwrap()))).unwrap(),
            "gone on" => {
                std::fs::copy(
                    find(&bucket, &level0(newest)),
                    find(&bucket, &level0(newest)).with_file_name(format!("{0}-{0}.ltx", newest.next())),
                )
                .map(drop)
                .unwrap();
            }
            _ => {
                // The bucket comes back when the application has written and checkpointed already.
                std::fs::create_dir(&away).unwrap();
                let db = place.open();
                std::fs::rename(&bucket, away.join("bucket")).unwrap();
                std::fs::write(&bucket, b"not a folder").unwrap();
                place.host.run(db, "SELECT count(*) FROM t");
                place.host.run(db, "UPDATE still SET x = randomblob(3000) WHERE rowid % 20 = 9");
                place.host.query(db, "PRAGMA wal_checkpoint(TRUNCATE)");
                place.host.close(db);
                std::fs::remove_file(&bucket).unwrap();
                std::fs::rename(away.join("bucket"), &bucket).unwrap();
            }
        }
        let before = place.newest();
        for _ in 0..2 {
            let (db, stopped) = reopened(&mut place);
            assert!(stopped.as_ref().is_some_and(|why| why.contains("diverged")), "{what}: {stopped:?} {}", place.log());
            place.host.close(db);
        }
        assert_eq!(place.newest(), before, "{what}");
        let why = match what {
            "a gap" => "the bucket's history has a gap",
            "gone on" => "the bucket does not end where this database has left it",
            _ => "it was written to before it could be compared",
        };
        assert!(place.log().contains(why), "{what}: {}", place.log());
    }
}

/// The file in a bucket that is a folder which has that name.
fn find(bucket: &Path, name: &Path) -> PathBuf {
    let name = name.file_name().unwrap();
    let mut folders = vec![bucket.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false if entry.file_name() == name && !entry.path().to_string_lossy().contains("/9/") => return entry.path(),
                false => {}
            }
        }
    }
    panic!("{} is not there", name.display());
}
