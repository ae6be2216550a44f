//! Files that were replaced, deleted or damaged by somebody: found, told in the log, and then either the state is sent again, or nothing is sent until
//! the user decides. The bucket never holds a mixture of two histories.
//!
//! What is not here: an older copy in the same file (`older_copy.rs`), an unrelated database in it, and one made anew (`regressions.rs`).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use replicated::maintenance::{self, Maintainer, Policy};
use replicated::restore::Target;
use replicated::types::Txid;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::sqlite::{integrity_check, page_compare, same_but_for_free_pages};
use rusqlite::Connection;

struct Place {
    dir: tempfile::TempDir,
    bucket: Bucket,
    /// Who writes into the database: no state of the bucket may have rows of two.
    who: &'static str,
}

/// What shall be said of a damage, and the damage.
type Damage<'a, T> = (&'a str, &'a dyn Fn(&T));

/// What an opening comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It goes on with increments.
    GoesOn,
    /// The full state is sent.
    FullState,
    /// Nothing is sent.
    Diverged,
}

impl Place {
    fn new(who: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        Self { dir, bucket, who }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn database(&self) -> PathBuf {
        self.path("app.db")
    }

    fn wal(&self) -> PathBuf {
        self.path("app.db-wal")
    }

    fn control(&self) -> PathBuf {
        self.path("app.db-replicated/control")
    }

    fn spool(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("app.db-replicated")).unwrap().map(|entry| entry.unwrap().path());
        let mut spool: Vec<_> = entries.filter(|path| path.to_string_lossy().contains("/spool-")).collect();
        spool.sort();
        spool
    }

    fn open(&self) -> (Host, Db) {
        let log = ("REPLICATED_TEST_LOG".to_owned(), self.path("log").display().to_string());
        let mut host = Host::start(Program::Rust, &[log]);
        let options = [("sync_interval", "10ms"), ("burst", "100"), ("close_timeout", "500ms")];
        let db = host.open(&host::replicated(&self.database(), &self.bucket.url, &options));
        host.run(db, "PRAGMA journal_mode=WAL");
        host.run(db, "PRAGMA wal_autocheckpoint=0");
        (host, db)
    }

    /// A history, all of it in the bucket.
    fn begin(&self) -> (Host, Db) {
        let (mut host, db) = self.open();
        host.run(db, "BEGIN; CREATE TABLE t(id INTEGER PRIMARY KEY, who, x); CREATE TABLE n(n); INSERT INTO n VALUES (0); COMMIT");
        self.commit(&mut host, db, 10);
        host.sync(db);
        (host, db)
    }

    fn commit(&self, host: &mut Host, db: Db, times: u32) {
        for _ in 0..times {
            host.run(
                db,
                &format!("BEGIN; INSERT INTO t(who, x) VALUES ('{}', randomblob(2000)); UPDATE n SET n = n + 1; COMMIT", self.who),
            );
        }
    }

    fn newest(&self) -> Txid {
        self.bucket.list().iter().map(|listed| listed.name.max_txid).max().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The bucket becomes unreachable: its place is taken by a file.
    fn outage(&self) {
        std::fs::rename(self.path("bucket"), self.path("bucket-away")).unwrap();
        std::fs::write(self.path("bucket"), b"not a folder").unwrap();
    }

    fn outage_ends(&self) {
        std::fs::remove_file(self.path("bucket")).unwrap();
        std::fs::rename(self.path("bucket-away"), self.path("bucket")).unwrap();
    }

    /// Opens what is there now, commits and flushes. `reason` must stand in the log of this opening as a warning or an error.
    #[track_caller]
    fn opens(&self, expected: Outcome, reason: &str) {
        let (before, told) = (self.newest(), self.log().len());
        let (mut host, db) = self.open();
        // The commit is refused where the file is no database any more; nothing of that is ours.
        self.commit(&mut host, db, 2);
        let synced = host.try_query(db, "PRAGMA replicated_sync='20s'");
        host.close(db);
        host.quit();
        let log = self.log()[told..].to_owned();
        let found = match &synced {
            Err(error) if error.contains("diverged") => Outcome::Diverged,
            Err(error) => panic!("{error}\n{log}"),
            Ok(_) if log.contains("sending the full state") => Outcome::FullState,
            Ok(_) => Outcome::GoesOn,
        };
        assert_eq!(found, expected, "{log}");
        // The level-0 file itself has every page: whatever is merged across it brings no older page back.
        assert!(found != Outcome::FullState || log.contains("pages, as 0/"), "{log}");
        let says = |line: &str| (line.starts_with("WARN") || line.starts_with("ERROR")) && line.contains(reason);
        assert!(expected == Outcome::GoesOn || log.lines().any(says), "{reason:?} is not in\n{log}");
        if found == Outcome::Diverged {
            assert_eq!(self.newest(), before, "something was sent");
        } else {
            self.assert_equal();
        }
        self.assert_history();
    }

    fn assert_equal(&self) {
        let restored = self.path("restored.db");
        self.bucket.restore(&restored);
        same_but_for_free_pages(&flattened(&self.database(), self.dir.path()), &restored).unwrap();
    }

    fn rows(&self) -> i64 {
        let restored = self.path("restored.db");
        self.bucket.restore(&restored);
        Connection::open(restored).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    /// Every TXID is a whole state of one history.
    fn assert_history(&self) {
        self.bucket
            .replay(&self.path("replayed.db"), |txid, file| {
                integrity_check(file).unwrap_or_else(|error| panic!("TXID {txid}: {error}\n{}", self.log()));
                let connection = Connection::open(file).unwrap();
                let tables: i64 =
                    connection.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'n'", [], |row| row.get(0)).unwrap();
                if tables > 0 {
                    let whole = "SELECT (SELECT n FROM n) = (SELECT count(*) FROM t) AND (SELECT count(DISTINCT who) <= 1 FROM t)";
                    assert!(connection.query_row(whole, [], |row| row.get::<_, bool>(0)).unwrap(), "TXID {txid} is of two histories");
                }
            })
            .unwrap();
    }
}

/// Replaces a file's content without giving it another inode, as `cp` does.
fn copy_over(from: &Path, to: &Path) {
    let content = std::fs::read(from).unwrap();
    let file = std::fs::File::options().write(true).truncate(true).create(true).open(to).unwrap();
    std::io::Write::write_all(&mut &file, &content).unwrap();
}

/// Puts a copy in the place of a file, as `mv` does.
fn move_over(from: &Path, to: &Path) {
    let copy = to.with_extension("moved");
    std::fs::copy(from, &copy).unwrap();
    std::fs::rename(copy, to).unwrap();
}

const BY: [fn(&Path, &Path); 2] = [copy_over, move_over];

// The database file.

#[test]
fn another_database_moved_into_its_place() {
    let (place, other) = (Place::new("first"), Place::new("second"));
    for place in [&place, &other] {
        let (mut host, db) = place.begin();
        host.close(db);
        host.quit();
    }
    move_over(&other.database(), &place.database());
    place.opens(Outcome::Diverged, "nothing shows that this file continues it");
    assert!(place.log().contains("belongs to another file"));
    // Nor at any later open.
    place.opens(Outcome::Diverged, "nothing shows that this file continues it");
}

#[test]
fn an_older_copy_moved_into_its_place() {
    let place = Place::new("first");
    let (mut host, db) = place.begin();
    host.close(db);
    host.quit();
    std::fs::copy(place.database(), place.path("older.db")).unwrap();
    let (mut host, db) = place.open();
    place.commit(&mut host, db, 5);
    host.sync(db);
    host.close(db);
    host.quit();
    move_over(&place.path("older.db"), &place.database());
    place.opens(Outcome::Diverged, "nothing shows that this file continues it");
}

/// A copy of an hour ago, put in place after a crash, under the WAL of now. SQLite takes the two for one database: what it makes of them is sent as it
/// is, with every page, so that no increment is built on pages that the bucket has of another time.
#[test]
fn an_older_copy_under_the_wal_of_now() {
    for copy in BY {
        let place = Place::new("first");
        let (mut host, db) = place.begin();
        host.query(db, "PRAGMA wal_checkpoint(TRUNCATE)");
        std::fs::copy(place.database(), place.path("older.db")).unwrap();
        // The older half of the rows is in the file, the newer in the WAL.
        host.run(db, "UPDATE t SET x = randomblob(2000)");
        host.sync(db);
        host.query(db, "PRAGMA wal_checkpoint(RESTART)");
        place.commit(&mut host, db, 3);
        host.sync(db);
        host.kill();
        assert!(std::fs::metadata(place.wal()).unwrap().len() > 0);
        copy(&place.path("older.db"), &place.database());
        let (mut host, db) = place.open();
        host.run(db, "UPDATE t SET x = zeroblob(1) WHERE id = 2");
        host.sync(db);
        host.close(db);
        host.quit();
        assert!(place.log().contains("is not the one that the WAL beside it belongs to"), "{}", place.log());
        place.assert_equal();
    }
}

/// Nothing of the kind: the files were moved with everything that lies beside them.
#[test]
fn the_same_database_moved_elsewhere_and_back() {
    let place = Place::new("first");
    let (mut host, db) = place.begin();
    host.query(db, "PRAGMA wal_checkpoint(PASSIVE)");
    place.commit(&mut host, db, 3);
    host.sync(db);
    host.kill();
    let status = std::process::Command::new("cp").arg("-p").arg(place.database()).arg(place.path("moved.db")).status().unwrap();
    assert!(status.success());
    std::fs::rename(place.path("moved.db"), place.database()).unwrap();
    place.opens(Outcome::GoesOn, "");
}

#[test]
fn the_database_deleted_and_its_wal_left() {
    let place = Place::new("first");
    let (host, _) = place.begin();
    host.kill();
    std::fs::remove_file(place.database()).unwrap();
    let before = place.newest();
    let (mut host, db) = place.open();
    host.run(db, "CREATE TABLE other(x)");
    let synced = host.try_query(db, "PRAGMA replicated_sync='20s'");
    assert!(synced.as_ref().is_err_and(|refused| refused.contains("diverged")), "{synced:?}\n{}", place.log());
    assert_eq!(place.newest(), before);
    place.assert_history();
}

// A database file that SQLite itself would not read, or only in parts: what a power loss with `synchronous=OFF` leaves.

impl Place {
    /// A database that was not replicated yet, with everything in its file.
    fn unreplicated(&self) {
        let plain = Connection::open(self.database()).unwrap();
        plain.execute_batch("PRAGMA page_size=4096; CREATE TABLE n(n); INSERT INTO n VALUES (1)").unwrap();
        plain.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, who, x); INSERT INTO t VALUES (1, 'first', zeroblob(20000))").unwrap();
    }

    fn open_only(&self) -> (Host, Db) {
        let mut host = Host::start(Program::Rust, &[("REPLICATED_TEST_LOG".to_owned(), self.path("log").display().to_string())]);
        let db = host.open(&host::replicated(&self.database(), &self.bucket.url, &[("sync_interval", "10ms"), ("close_timeout", "500ms")]));
        (host, db)
    }
}

fn cut(path: &Path, bytes: u64) {
    std::fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// Nothing of it is sent, the status says so, and once it is repaired replication goes on, in the same process.
#[test]
fn a_file_that_sqlite_refuses_is_not_sent_and_its_repair_is_found() {
    let damages: [Damage<'_, Path>; 4] = [
        ("tells of", &|file| cut(file, 8192)),
        ("tells of", &|file| cut(file, 8192 + 100)),
        ("does not begin as a database does", &|file| cut(file, 50)),
        ("does not begin as a database does", &|file| {
            let mut bytes = std::fs::read(file).unwrap();
            bytes[..512].fill(0);
            std::fs::write(file, bytes).unwrap();
        }),
    ];
    for (why, damage) in damages {
        let place = Place::new("first");
        place.unreplicated();
        let whole = std::fs::read(place.database()).unwrap();
        damage(&place.database());
        let (mut host, db) = place.open_only();
        let refused = host.try_query(db, "SELECT count(*) FROM sqlite_schema").unwrap_err();
        assert!(refused.contains("malformed") || refused.contains("not a database"), "{refused}");
        for _ in 0..2 {
            let refused = host.try_query(db, "PRAGMA replicated_sync='20s'").unwrap_err();
            assert!(refused.contains("the database file is damaged") && refused.contains(why), "{refused}");
        }
        assert_eq!((host.status(db, "state").as_str(), host.status(db, "reason").as_str()), ("failed", "damaged"));
        assert!(host.status(db, "last_error").contains(why));
        assert!(place.bucket.try_list().is_empty(), "something was sent");
        std::fs::write(place.database(), whole).unwrap();
        // The first connection has kept what it read.
        let damaged = db;
        let db = host.open(&host::replicated(&place.database(), &place.bucket.url, &[]));
        assert_eq!(host.query(db, "SELECT n FROM n"), [[1]]);
        host.sync(db);
        assert_eq!(host.status(db, "state"), "idle");
        host.run(db, "UPDATE t SET x = 2");
        host.sync(db);
        host.close(db);
        host.close(damaged);
        host.quit();
        place.assert_equal();
    }
}

/// The WAL tells of pages that are nowhere. SQLite reads zeros there, and so does whoever restores.
#[test]
fn pages_that_neither_the_file_nor_its_wal_has_are_sent_as_sqlite_reads_them() {
    // Whole pages, and a part of one.
    for keep in [3 * 4096, 4 * 4096 + 1000] {
        let place = Place::new("first");
        place.unreplicated();
        let mut plain = Host::plain(&[]);
        let db = plain.open(&host::uri(&place.database(), &[]));
        plain.query(db, "PRAGMA journal_mode=WAL");
        plain.run(db, "UPDATE n SET n = 2");
        plain.kill();
        let pages = std::fs::metadata(place.database()).unwrap().len() / 4096;
        assert!(pages > 6 && std::fs::metadata(place.wal()).unwrap().len() > 0);
        cut(&place.database(), keep);
        let expected = flattened(&place.database(), place.dir.path());
        assert_eq!(std::fs::metadata(&expected).unwrap().len(), pages * 4096);
        let (mut host, db) = place.open_only();
        assert_eq!(host.query(db, "SELECT n FROM n"), [[2]]);
        host.sync(db);
        let restored = place.path("restored.db");
        place.bucket.restore(&restored);
        page_compare(&expected, &restored).unwrap();
        assert!(place.log().lines().any(|line| line.starts_with("WARN") && line.contains("is damaged: of pages")), "{}", place.log());
        host.close(db);
        host.quit();
    }
}

/// SQLite counts pages by the file where the header does not hold, and the last of them need not be whole.
#[test]
fn a_last_page_that_is_not_whole_counts() {
    let place = Place::new("first");
    place.unreplicated();
    let mut bytes = std::fs::read(place.database()).unwrap();
    // As a program writes it that is older than the field.
    bytes[92..96].fill(0);
    bytes.truncate(bytes.len() - 1000);
    std::fs::write(place.database(), &bytes).unwrap();
    bytes.resize(bytes.len() + 1000, 0);
    let (mut host, db) = place.open_only();
    assert_eq!(host.query(db, "SELECT count(*) FROM t"), [[1]]);
    host.sync(db);
    let restored = place.path("restored.db");
    place.bucket.restore(&restored);
    assert_eq!(std::fs::read(restored).unwrap(), bytes);
    host.close(db);
    host.quit();
}

/// As a process leaves it that was killed before it cut off what a VACUUM had left over. A commit to a WAL tells of as many pages as the file has, and
/// writes those only that it changes.
#[test]
fn a_file_that_is_longer_than_its_header_tells() {
    for mode in ["WAL", "DELETE"] {
        let place = Place::new("first");
        place.unreplicated();
        let bytes = std::fs::metadata(place.database()).unwrap().len();
        cut(&place.database(), bytes + 5 * 4096);
        let (mut host, db) = place.open_only();
        host.query(db, &format!("PRAGMA journal_mode={mode}"));
        host.sync(db);
        host.run(db, "INSERT INTO t VALUES (2, 'first', zeroblob(9000))");
        host.sync(db);
        host.query(db, "PRAGMA journal_mode=WAL");
        host.run(db, "UPDATE n SET n = 2");
        host.sync(db);
        place.assert_equal();
        host.run(db, "VACUUM");
        host.sync(db);
        host.close(db);
        host.quit();
        place.assert_equal();
    }
}

// The WAL.

#[test]
fn the_wal_deleted_by_hand() {
    for captured in [true, false] {
        let place = Place::new("first");
        let (mut host, db) = place.begin();
        host.query(db, "PRAGMA wal_checkpoint(TRUNCATE)");
        place.commit(&mut host, db, 5);
        if captured {
            host.sync(db);
        }
        host.kill();
        std::fs::remove_file(place.wal()).unwrap();
        place.opens(Outcome::Diverged, "neither provably newer nor provably unchanged");
    }
}

#[test]
fn an_older_wal_of_the_same_generation_put_back() {
    let place = Place::new("first");
    let (mut host, db) = place.begin();
    std::fs::copy(place.wal(), place.path("older-wal")).unwrap();
    place.commit(&mut host, db, 5);
    host.sync(db);
    host.kill();
    let lost = place.newest();
    copy_over(&place.path("older-wal"), &place.wal());
    // As after a power loss: the warning names what the bucket still has.
    place.opens(Outcome::FullState, &format!("they can be restored with TXID {lost}"));
    // Maintenance keeps it until somebody has decided.
    let mut maintainer = Maintainer::new(place.bucket.store(), Policy::default());
    let kept = maintenance::plan(&mut maintainer, maintenance::now()).unwrap().kept;
    assert_eq!(kept.iter().map(|kept| kept.txid.to_string()).collect::<Vec<_>>(), [lost.to_string()]);
}

#[test]
fn an_older_generation_of_the_wal_put_back() {
    let place = Place::new("first");
    let (mut host, db) = place.begin();
    std::fs::copy(place.wal(), place.path("older-wal")).unwrap();
    host.query(db, "PRAGMA wal_checkpoint(RESTART)");
    place.commit(&mut host, db, 5);
    host.sync(db);
    host.kill();
    copy_over(&place.path("older-wal"), &place.wal());
    place.opens(Outcome::Diverged, "neither provably newer nor provably unchanged");
}

#[test]
fn the_wal_of_another_database_put_there() {
    let (place, other) = (Place::new("first"), Place::new("first"));
    let (host, _) = place.begin();
    let (beside, _) = other.begin();
    host.kill();
    beside.kill();
    copy_over(&other.wal(), &place.wal());
    place.opens(Outcome::Diverged, "neither provably newer nor provably unchanged");
}

/// A damaged frame ends the log, as SQLite sees it. What was behind it is lost, and the bucket has it.
#[test]
fn a_frame_of_the_wal_damaged() {
    let place = Place::new("first");
    let (host, _) = place.begin();
    host.kill();
    let lost = place.newest();
    let mut wal = std::fs::read(place.wal()).unwrap();
    let middle = wal.len() * 2 / 3;
    wal[middle] ^= 0xff;
    std::fs::write(place.path("damaged"), &wal).unwrap();
    copy_over(&place.path("damaged"), &place.wal());
    place.opens(Outcome::FullState, &format!("they can be restored with TXID {lost}"));
}

/// A commit of somebody without the extension, who is killed: a new WAL with frames, and the database file as it was.
#[test]
fn a_new_wal_of_somebody_else_beside_an_unchanged_file() {
    let place = Place::new("first");
    let (mut host, db) = place.begin();
    host.close(db);
    host.quit();
    assert!(!place.wal().exists());
    let mut plain = Host::plain(&[]);
    let db = plain.open(&host::uri(&place.database(), &[]));
    place.commit(&mut plain, db, 1);
    plain.kill();
    assert!(std::fs::metadata(place.wal()).unwrap().len() > 0);
    place.opens(Outcome::GoesOn, "");
    assert_eq!(place.rows(), 13);
}

// The spool.

/// Commits that wait in the spool, of a process that died.
fn with_a_spool(who: &'static str) -> Place {
    let place = Place::new(who);
    let (mut host, db) = place.begin();
    place.outage();
    place.commit(&mut host, db, 3);
    eventually("the first batch is on its way", || host.status(db, "state") == "offline");
    for _ in 0..3 {
        place.commit(&mut host, db, 3);
        host.query(db, "PRAGMA wal_checkpoint(RESTART)");
    }
    place.commit(&mut host, db, 1);
    host.kill();
    place.outage_ends();
    assert!(place.spool().len() >= 2, "{:?}", place.spool());
    place
}

fn damaged_spool(reason: &str, damage: impl Fn(&Path)) {
    for which in [0, 1] {
        let place = with_a_spool("first");
        damage(&place.spool()[which]);
        place.opens(Outcome::FullState, reason);
    }
}

#[test]
fn a_whole_spool_is_sent() {
    with_a_spool("first").opens(Outcome::GoesOn, "");
}

#[test]
fn an_entry_of_the_spool_deleted() {
    damaged_spool("should be there and are not", |entry| std::fs::remove_file(entry).unwrap());
}

#[test]
fn an_entry_of_the_spool_cut_short() {
    for keep in [0, 50, 100, 300] {
        damaged_spool("spool", |entry| std::fs::File::options().write(true).open(entry).unwrap().set_len(keep).unwrap());
    }
}

#[test]
fn an_entry_of_the_spool_full_of_something_else() {
    for fill in [0, 0xa5] {
        damaged_spool("spool", |entry| std::fs::write(entry, vec![fill; std::fs::metadata(entry).unwrap().len() as usize]).unwrap());
    }
    // One byte of a page.
    damaged_spool("spool", |entry| {
        let mut bytes = std::fs::read(entry).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(entry, bytes).unwrap();
    });
}

#[test]
fn an_entry_of_another_database_s_spool() {
    let other = with_a_spool("second");
    let foreign = other.spool()[0].clone();
    damaged_spool("it is another entry", |entry| std::fs::copy(&foreign, entry).map(drop).unwrap());
}

#[test]
fn entries_of_the_spool_exchanged() {
    let place = with_a_spool("first");
    let [first, second, ..] = &place.spool()[..] else { panic!("two entries") };
    std::fs::rename(first, place.path("kept")).unwrap();
    std::fs::rename(second, first).unwrap();
    std::fs::rename(place.path("kept"), second).unwrap();
    place.opens(Outcome::FullState, "it is another entry");
}

// The control file.

/// A control file of an earlier moment, and everything of a later one in the bucket. The process was closed or killed.
fn with_an_older_control_file(closed: bool) -> (Place, Vec<u8>) {
    let place = Place::new("first");
    let (mut host, db) = place.begin();
    host.query(db, "PRAGMA wal_checkpoint(TRUNCATE)");
    host.run(db, "UPDATE t SET x = randomblob(2000)");
    host.sync(db);
    let older = std::fs::read(place.control()).unwrap();
    for _ in 0..2 {
        host.run(db, "UPDATE t SET x = randomblob(2000)");
        place.commit(&mut host, db, 3);
        host.query(db, "PRAGMA wal_checkpoint(RESTART)");
    }
    host.run(db, "UPDATE t SET x = randomblob(2000)");
    host.sync(db);
    if closed {
        host.close(db);
        host.quit();
    } else {
        host.kill();
    }
    (place, older)
}

#[test]
fn an_older_control_file_put_back() {
    // The WAL shows by its salts that the file is the newer one.
    let (place, older) = with_an_older_control_file(false);
    std::fs::write(place.control(), older).unwrap();
    place.opens(Outcome::FullState, "was restarted");
    // Nothing shows it.
    let (place, older) = with_an_older_control_file(true);
    std::fs::write(place.control(), older).unwrap();
    place.opens(Outcome::Diverged, "neither provably newer nor provably unchanged");
}

/// As a version writes it that this one knows nothing of.
fn with_other_layout(control: &Path) {
    std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(control).unwrap(), b"RPLCTL99", 0).unwrap();
}

/// What docs/operations.md says of an upgrade whose version does not understand what is beside the database: it is known beforehand, and declared the truth
/// before it is opened it goes on.
#[test]
fn an_upgrade_over_a_control_file_of_another_layout() {
    let (place, _) = with_an_older_control_file(true);
    let tool = |arguments: &[&str]| {
        let output = host::command(env!("CARGO_BIN_EXE_replicated"), &place.bucket.env).args(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let database = place.database();
    let database = database.to_str().unwrap();
    assert_eq!(tool(&["status", database, "--quiet"]).0, 0);
    with_other_layout(&place.control());
    let before = std::fs::read(place.control()).unwrap();
    let (code, told) = tool(&["status", database]);
    assert!(code == 1 && told.contains("is not what this version writes"), "{told}");
    assert!(std::fs::read(place.control()).unwrap() == before, "the status has written to it");
    let (code, told) = tool(&["adopt", database, &place.bucket.url]);
    assert_eq!(code, 0, "{told}");
    place.opens(Outcome::FullState, "declared the truth");
}

/// A process that has it open goes on with what it has: the open of another version is refused, and makes nothing anew.
#[test]
fn a_control_file_of_another_layout_that_a_process_has_open() {
    let place = Place::new("first");
    let (mut host, db) = place.begin();
    with_other_layout(&place.control());
    let mut other = Host::start(Program::Rust, &[("REPLICATED_TEST_LOG".to_owned(), place.path("other").display().to_string())]);
    let opened = other.try_open(&host::replicated(&place.database(), &place.bucket.url, &[]));
    assert!(opened.and_then(|db| other.try_query(db, "SELECT * FROM t")).is_err());
    let told = std::fs::read_to_string(place.path("other")).unwrap();
    assert!(told.contains("it is of another version, or shares nothing; close it there first"), "{told}");
    assert!(std::fs::read(place.control()).unwrap().starts_with(b"RPLCTL99"), "it was made anew");
    place.commit(&mut host, db, 3);
    host.sync(db);
    host.close(db);
    assert_eq!(place.bucket.full_states(), 1);
}

#[test]
fn a_control_file_deleted_or_damaged() {
    let (_elsewhere, foreign) = with_an_older_control_file(true);
    let damages: [Damage<'_, Place>; 6] = [
        ("deleted", &|place| std::fs::remove_file(place.control()).unwrap()),
        ("empty", &|place| std::fs::write(place.control(), b"").unwrap()),
        ("cut", &|place| std::fs::File::options().write(true).open(place.control()).unwrap().set_len(1500).unwrap()),
        ("random", &|place| std::fs::write(place.control(), vec![0x5a; 4096]).unwrap()),
        ("of another database", &|place| std::fs::write(place.control(), &foreign).unwrap()),
        ("of another version", &|place| with_other_layout(&place.control())),
    ];
    for (what, damage) in damages {
        // The WAL shows where the bucket ends.
        let (place, _) = with_an_older_control_file(false);
        damage(&place);
        eprintln!("{what}, killed");
        // What the other one says of its database file is not so of this: then every page is sent.
        let expected = if what == "of another database" { Outcome::FullState } else { Outcome::GoesOn };
        place.opens(expected, "is not the one that the WAL");
        // Nothing shows it.
        let (place, _) = with_an_older_control_file(true);
        damage(&place);
        eprintln!("{what}, closed");
        place.opens(Outcome::Diverged, "nothing shows that this file continues it");
    }
}

/// Everything beside the database is of an hour ago, and the database is not.
#[test]
fn everything_of_ours_put_back() {
    let place = with_a_spool("first");
    let ours = place.path("app.db-replicated");
    let copy = |from: &Path, to: &Path| {
        let _ = std::fs::remove_dir_all(to);
        let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(status.success());
    };
    copy(&ours, &place.path("kept"));
    place.opens(Outcome::GoesOn, "");
    copy(&place.path("kept"), &ours);
    // By its change counter the file is the newer one.
    place.opens(Outcome::FullState, "was restarted");
}

/// Everything of an hour ago, each file fitting to the others, and the WAL was restarted since.
#[test]
fn everything_put_back() {
    let place = Place::new("first");
    let (host, _) = place.begin();
    host.kill();
    let files = ["app.db", "app.db-wal", "app.db-replicated/control"];
    std::fs::create_dir(place.path("kept")).unwrap();
    let kept = |file: &str| place.path("kept").join(file.replace('/', "-"));
    for file in files {
        std::fs::copy(place.path(file), kept(file)).unwrap();
    }
    let (mut host, db) = place.open();
    for _ in 0..2 {
        host.query(db, "PRAGMA wal_checkpoint(RESTART)");
        place.commit(&mut host, db, 3);
    }
    host.sync(db);
    host.close(db);
    host.quit();
    for file in files {
        copy_over(&kept(file), &place.path(file));
    }
    // With its time, as a copy of a whole disk has it.
    let _ = std::fs::remove_file(place.path("app.db-shm"));
    std::fs::File::options()
        .write(true)
        .open(place.database())
        .unwrap()
        .set_modified(std::fs::metadata(kept("app.db")).unwrap().modified().unwrap())
        .unwrap();
    place.opens(Outcome::Diverged, "the bucket goes on to TXID");
}

/// What our tool has restored goes on from there, if it is the latest state.
#[test]
fn a_restored_database_is_gone_on_from() {
    for latest in [true, false] {
        let place = Place::new("first");
        let (mut host, db) = place.begin();
        let earlier = place.newest();
        place.commit(&mut host, db, 3);
        host.sync(db);
        host.close(db);
        host.quit();
        std::fs::remove_file(place.database()).unwrap();
        let target = if latest { Target::Latest } else { Target::Txid(earlier) };
        place.bucket.try_restore(target, &place.database()).unwrap();
        if latest {
            place.opens(Outcome::GoesOn, "");
        } else {
            place.opens(Outcome::Diverged, "this database was restored to TXID");
        }
    }
}
