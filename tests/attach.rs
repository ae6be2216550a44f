//! Transactions over several databases of a connection (ATTACH): with `durability=remote` such a transaction is committed in all of them and an error
//! says what it says for one, or it is refused before anything of it is committed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Once;

use replicated::NOT_ACKNOWLEDGED;
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Host, Program};
use replicated_testkit::sqlite::page_compare;
use rusqlite::{Connection, OpenFlags};

const REFUSED: i32 = 23;

/// One database of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    mode: &'static str,
    /// `None`: not replicated, opened by the VFS all the same.
    durability: Option<&'static str>,
    /// Opened by SQLite's own VFS.
    by_unix: bool,
}

const fn member(mode: &'static str, durability: &'static str) -> Member {
    Member { mode, durability: Some(durability), by_unix: false }
}

const fn plain(mode: &'static str) -> Member {
    Member { mode, durability: None, by_unix: false }
}

const fn foreign(mode: &'static str) -> Member {
    Member { mode, durability: None, by_unix: true }
}

impl Member {
    fn waits(&self) -> bool {
        matches!(self.durability, Some("remote" | "bounded"))
    }
}

/// A connection with databases `main`, `a1`, `a2` and so on, each with a table of its name that has one row.
struct Group {
    dir: tempfile::TempDir,
    connection: Connection,
    members: Vec<Member>,
    in_memory: bool,
}

impl Group {
    fn new(members: &[Member]) -> Self {
        Self::with(members, false)
    }

    /// `in_memory`: the main database is in memory, and all members are attached.
    fn with(members: &[Member], in_memory: bool) -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| replicated::register!(rusqlite::ffi).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let uri = |i: usize| uri(&dir, i, &members[i]);
        let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
        let first = if in_memory { "file::memory:?vfs=replicated".to_owned() } else { uri(0) };
        let connection = Connection::open_with_flags(first, flags).unwrap();
        let group = Self { connection, members: members.to_vec(), in_memory, dir };
        for (i, member) in members.iter().enumerate() {
            let schema = group.schema(i);
            if schema != "main" {
                group.connection.execute_batch(&format!("ATTACH '{}' AS {schema}", self::uri(&group.dir, i, member))).unwrap();
            }
            let set_up =
                format!("PRAGMA {schema}.journal_mode={}; CREATE TABLE {schema}.{schema}(x); INSERT INTO {schema} VALUES (0)", member.mode);
            group.connection.execute_batch(&set_up).unwrap();
            if let Some(durability) = member.durability {
                group.pragma(&schema, "replicated_sync='100s'");
                assert_eq!(group.pragma(&schema, &format!("replicated_durability={durability}")), durability);
            }
        }
        group
    }

    fn schema(&self, i: usize) -> String {
        if i == 0 && !self.in_memory { "main".to_owned() } else { format!("a{i}") }
    }

    fn pragma(&self, schema: &str, rest: &str) -> String {
        self.connection.query_row(&format!("PRAGMA {schema}.{rest}"), [], |row| row.get(0)).unwrap()
    }

    /// A transaction that changes these members; the extended code of its error, 0 for none.
    fn change(&self, begin: &str, which: &[usize]) -> i32 {
        let changes: String = which.iter().map(|i| format!("; INSERT INTO {} VALUES (1)", self.schema(*i))).collect();
        let result = self.connection.execute_batch(&format!("{begin}{changes}; COMMIT"));
        if !self.connection.is_autocommit() {
            // It was not the COMMIT that failed.
            self.connection.execute_batch("ROLLBACK").unwrap();
        }
        match result {
            Ok(()) => 0,
            Err(rusqlite::Error::SqliteFailure(error, _)) => error.extended_code,
            Err(other) => panic!("{other}"),
        }
    }

    fn change_all(&self) -> i32 {
        let all: Vec<usize> = (0..self.members.len()).collect();
        self.change("BEGIN", &all)
    }

    /// Rows of each member.
    fn rows(&self) -> Vec<i64> {
        let count = |i| self.connection.query_row(&format!("SELECT count(*) FROM {}", self.schema(i)), [], |row| row.get(0)).unwrap();
        (0..self.members.len()).map(count).collect()
    }

    fn outage(&self) {
        for i in (0..self.members.len()).filter(|i| self.members[*i].durability.is_some()) {
            let folder = folder(&self.dir, i);
            std::fs::rename(&folder, folder.with_extension("away")).unwrap();
            std::fs::write(&folder, b"not a folder").unwrap();
        }
    }

    fn outage_ends(&self) {
        for i in (0..self.members.len()).filter(|i| self.members[*i].durability.is_some()) {
            let folder = folder(&self.dir, i);
            std::fs::remove_file(&folder).unwrap();
            std::fs::rename(folder.with_extension("away"), &folder).unwrap();
        }
    }

    /// Each on its own is committed and acknowledged; closed, each bucket is its database, and nothing lies about.
    #[track_caller]
    fn ends_well(self) {
        // With a super-journal SQLite does not tell before it is too late whether a database in WAL mode has changed.
        let journals = self.members.iter().filter(|m| matches!(m.mode, "DELETE" | "TRUNCATE" | "PERSIST")).count();
        let unclear = !self.in_memory && journals > 1 && self.members.iter().any(|m| m.mode == "WAL" && m.waits());
        for i in 0..self.members.len() {
            if self.members[i].durability.is_some() {
                self.pragma(&self.schema(i), "replicated_sync='100s'");
            }
            assert_eq!(self.change("BEGIN IMMEDIATE", &[]), if unclear { REFUSED } else { 0 }, "{:?}", self.members);
            assert_eq!(self.change("BEGIN", &[i]), 0, "{:?}", self.members[i]);
        }
        for i in (0..self.members.len()).filter(|i| self.members[*i].durability.is_some()) {
            self.pragma(&self.schema(i), "replicated_sync='100s'");
        }
        self.connection.close().unwrap();
        for (i, member) in self.members.iter().enumerate() {
            if member.durability.is_some() {
                let restored = self.dir.path().join("restored.db");
                Bucket::folder(&folder(&self.dir, i)).restore(&restored);
                page_compare(&flattened(&self.dir.path().join(format!("{i}.db")), self.dir.path()), &restored).unwrap();
            }
        }
        let left: Vec<PathBuf> = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.iter().all(|path| !path.to_string_lossy().contains("-mj") && !path.ends_with("-journal")), "{left:?}");
    }
}

fn folder(dir: &tempfile::TempDir, i: usize) -> PathBuf {
    dir.path().join(format!("bucket-{i}"))
}

fn uri(dir: &tempfile::TempDir, i: usize, member: &Member) -> String {
    let path = dir.path().join(format!("{i}.db"));
    match (member.durability, member.by_unix) {
        (Some(_), _) => {
            let options = [("ack_timeout", "2s"), ("close_timeout", "0s"), ("sync_interval", "10ms"), ("burst", "100")];
            host::replicated(&path, &format!("file://{}", folder(dir, i).display()), &options)
        }
        (None, true) => host::uri(&path, &[("vfs", "unix")]),
        (None, false) => host::uri(&path, &[("vfs", "replicated")]),
    }
}

const MEMBERS: [Member; 8] = [
    member("WAL", "remote"),
    member("WAL", "local"),
    member("DELETE", "remote"),
    member("DELETE", "bounded"),
    member("DELETE", "local"),
    plain("WAL"),
    plain("DELETE"),
    foreign("DELETE"),
];

/// Whether a transaction that changes both is refused, by the modes and the order.
fn is_refused(first: &Member, second: &Member) -> bool {
    match (first.mode, second.mode) {
        // SQLite would roll the second back where the first fails.
        ("WAL", "DELETE") => first.waits(),
        // SQLite would ignore the error of either.
        ("DELETE", "DELETE") => first.waits() || second.waits(),
        _ => false,
    }
}

#[test]
fn two_databases_in_every_combination_and_order() {
    for first in &MEMBERS {
        for second in &MEMBERS {
            let group = Group::new(&[*first, *second]);
            let what = format!("{first:?}, {second:?}");
            if is_refused(first, second) {
                assert_eq!(group.change_all(), REFUSED, "{what}");
                assert_eq!(group.rows(), [1, 1], "{what}: all of it is rolled back");
                let why = replicated::last_refusal().unwrap();
                assert!(why.contains("is refused and rolled back") && why.contains("durability="), "{what}: {why}");
            } else {
                assert_eq!(group.change_all(), 0, "{what}");
                assert_eq!(group.rows(), [2, 2], "{what}");
                group.outage();
                // A bounded commit waits for nothing yet.
                let expected = if [first, second].iter().any(|m| m.durability == Some("remote")) { NOT_ACKNOWLEDGED } else { 0 };
                assert_eq!(group.change_all(), expected, "{what}");
                assert_eq!(group.rows(), [3, 3], "{what}: all of it is committed");
                group.outage_ends();
            }
            group.ends_well();
        }
    }
}

/// `BEGIN IMMEDIATE` opens all databases for writing, and `BEGIN EXCLUSIVE` locks them.
#[test]
fn a_database_that_is_open_for_writing_and_not_changed_is_no_part_of_it() {
    for begin in ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"] {
        for (first, second) in [
            (member("WAL", "remote"), plain("DELETE")),
            (member("WAL", "remote"), member("DELETE", "local")),
            (member("WAL", "local"), member("DELETE", "remote")),
            (member("DELETE", "local"), member("DELETE", "remote")),
            (member("DELETE", "local"), member("WAL", "remote")),
            (plain("DELETE"), member("DELETE", "remote")),
            (foreign("DELETE"), member("DELETE", "remote")),
        ] {
            let group = Group::new(&[first, second]);
            let what = format!("{begin}: {first:?}, {second:?}");
            assert_eq!(group.change(begin, &[]), 0, "{what}");
            assert_eq!(group.change(begin, &[0]), 0, "{what}");
            assert_eq!(group.rows(), [2, 1], "{what}");
            let expected = if first.mode == "DELETE" && second.mode == "DELETE" { REFUSED } else { 0 };
            assert_eq!(group.change(begin, &[1]), expected, "{what}: SQLite makes a super-journal all the same");
            assert_eq!(group.change(begin, &[0, 1]), if is_refused(&first, &second) { REFUSED } else { 0 }, "{what}");
            group.ends_well();
        }
    }
}

#[test]
fn a_refused_transaction_leaves_no_third_database_changed() {
    for members in [
        [member("WAL", "local"), member("DELETE", "remote"), member("DELETE", "local")],
        [member("WAL", "remote"), member("DELETE", "local"), plain("DELETE")],
        [plain("WAL"), member("DELETE", "bounded"), plain("DELETE")],
        [member("DELETE", "local"), plain("DELETE"), member("WAL", "remote")],
        [member("DELETE", "local"), member("WAL", "remote"), plain("DELETE")],
        [member("WAL", "remote"), member("WAL", "local"), member("PERSIST", "local")],
        [member("WAL", "remote"), member("WAL", "remote"), member("TRUNCATE", "remote")],
        [member("WAL", "remote"), plain("WAL"), member("MEMORY", "local")],
        [plain("WAL"), member("DELETE", "remote"), plain("MEMORY")],
    ] {
        let group = Group::new(&members);
        assert_eq!(group.change_all(), REFUSED, "{members:?}");
        assert_eq!(group.rows(), [1, 1, 1], "{members:?}");
        group.ends_well();
    }
    let group = Group::new(&[member("WAL", "remote"), member("WAL", "remote"), member("WAL", "local")]);
    assert_eq!(group.change_all(), 0);
    group.outage();
    assert_eq!(group.change_all(), NOT_ACKNOWLEDGED);
    assert_eq!(group.rows(), [3, 3, 3]);
    group.outage_ends();
    group.ends_well();
}

/// Without a file of its own the main database gives no super-journal its name, so that SQLite commits one database after the other.
#[test]
fn databases_beside_a_main_one_in_memory() {
    let group = Group::with(&[member("DELETE", "remote"), member("DELETE", "local")], true);
    assert_eq!(group.change_all(), REFUSED);
    assert_eq!(group.rows(), [1, 1]);
    group.ends_well();
    let group = Group::with(&[member("DELETE", "local"), member("DELETE", "remote")], true);
    assert_eq!(group.change_all(), 0);
    group.outage();
    assert_eq!(group.change_all(), NOT_ACKNOWLEDGED);
    assert_eq!(group.rows(), [3, 3]);
    group.outage_ends();
    group.ends_well();
}

#[test]
fn temporary_and_in_memory_databases_are_no_reason_to_refuse() {
    for mode in ["WAL", "DELETE"] {
        let group = Group::new(&[member(mode, "remote")]);
        group.connection.execute_batch("ATTACH ':memory:' AS m; CREATE TABLE m.m(x); CREATE TEMP TABLE t(x)").unwrap();
        let both = "BEGIN; INSERT INTO m VALUES (1); INSERT INTO t VALUES (1)";
        assert_eq!(group.change(both, &[0]), 0, "{mode}");
        group.outage();
        assert_eq!(group.change(both, &[0]), NOT_ACKNOWLEDGED, "{mode}");
        assert_eq!(group.rows(), [3], "{mode}");
        group.outage_ends();
        group.ends_well();
    }
}

#[test]
fn exclusive_locking_makes_no_difference() {
    for (first, second, expected) in [
        (member("WAL", "remote"), member("DELETE", "local"), REFUSED),
        (member("WAL", "remote"), plain("DELETE"), REFUSED),
        (member("DELETE", "remote"), member("DELETE", "local"), REFUSED),
        (member("DELETE", "local"), member("DELETE", "remote"), REFUSED),
        (member("DELETE", "remote"), member("WAL", "remote"), 0),
        (member("WAL", "remote"), member("WAL", "remote"), 0),
    ] {
        let group = Group::new(&[first, second]);
        group.connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
        for i in [0, 1] {
            assert_eq!(group.change("BEGIN", &[i]), 0);
        }
        for _ in 0..2 {
            assert_eq!(group.change_all(), expected, "{first:?}, {second:?}");
        }
        assert_eq!(group.rows(), if expected == 0 { [4, 4] } else { [2, 2] }, "{first:?}, {second:?}");
        group.ends_well();
    }
}

/// The cache overflows, so that the database is written to before the transaction commits.
#[test]
fn large_transactions_are_refused_as_well() {
    for (first, second) in [
        (member("DELETE", "remote"), member("DELETE", "local")),
        (member("DELETE", "local"), member("DELETE", "remote")),
        (member("WAL", "remote"), member("DELETE", "local")),
        (foreign("DELETE"), member("DELETE", "remote")),
    ] {
        let group = Group::new(&[first, second]);
        group.connection.execute_batch("PRAGMA main.cache_size=5; PRAGMA a1.cache_size=5").unwrap();
        let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<100)";
        let begin = format!(
            "BEGIN; {numbers} INSERT INTO main SELECT randomblob(1000) FROM n; {numbers} INSERT INTO a1 SELECT randomblob(1000) FROM n"
        );
        assert_eq!(group.change(&begin, &[0, 1]), REFUSED, "{first:?}, {second:?}");
        assert_eq!(group.rows(), [1, 1], "{first:?}, {second:?}");
        group.ends_well();
    }
}

/// Another connection of the process has the same databases open, and one of them in a transaction with `remote`.
#[test]
fn another_connections_transaction_is_not_mistaken_for_this_ones() {
    let group = Group::new(&[member("DELETE", "local"), member("DELETE", "local"), member("DELETE", "local")]);
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
    let other = Connection::open_with_flags(uri(&group.dir, 0, &group.members[0]), flags).unwrap();
    other
        .execute_batch(&format!("ATTACH '{}' AS a2; PRAGMA a2.replicated_durability=remote", uri(&group.dir, 2, &group.members[2])))
        .unwrap();
    other.execute_batch("BEGIN; INSERT INTO a2 VALUES (5)").unwrap();
    assert_eq!(group.change("BEGIN", &[0, 1]), 0);
    other.execute_batch("COMMIT").unwrap();
    drop(other);
    assert_eq!(group.rows(), [2, 2, 2]);
    group.ends_well();
}

/// The system's SQLite, which is older, by the loadable extension.
#[test]
fn python_gets_the_same_answers() {
    each_combination_is_answered(Host::start(Program::Python, &[]), true);
}

/// One that does not tell which databases a connection has: those that are replicated are known without it.
#[test]
fn a_sqlite_before_3_39_gets_the_same_answers() {
    each_combination_is_answered(
        Host::start(Program::Faulty, &[("REPLICATED_TEST_SQLITE_VERSION".to_owned(), "3037002".to_owned())]),
        false,
    );
}

fn each_combination_is_answered(mut host: Host, knows_the_unchanged: bool) {
    let dir = tempfile::tempdir().unwrap();
    for (first, second, error) in [
        ("WAL", "WAL", None),
        ("WAL", "DELETE", Some("authorization denied")),
        ("DELETE", "WAL", None),
        ("DELETE", "DELETE", Some("authorization denied")),
    ] {
        let name = |which: &str| format!("{first}-{second}-{which}");
        let uri = |which: &str| {
            let bucket = Bucket::folder(&dir.path().join(name(which)).with_extension("bucket"));
            host::replicated(&dir.path().join(name(which)), &bucket.url, &[("durability", "remote")])
        };
        let db = host.open(&uri("main"));
        host.query(db, &format!("ATTACH '{}' AS other", uri("other")));
        host.run(
            db,
            &format!(
                "PRAGMA main.journal_mode={first}; PRAGMA other.journal_mode={second}; CREATE TABLE main.t(x); CREATE TABLE other.u(x)"
            ),
        );
        host.run(db, "BEGIN; INSERT INTO t VALUES (1); INSERT INTO u VALUES (1)");
        assert_eq!(host.try_query(db, "COMMIT").err().as_deref(), error, "{first}, {second}");
        let expected = i64::from(error.is_none());
        assert_eq!(host.value(db, "SELECT count(*) FROM t"), expected, "{first}, {second}");
        assert_eq!(host.value(db, "SELECT count(*) FROM u"), expected, "{first}, {second}");
        host.run(db, "INSERT INTO t VALUES (2); INSERT INTO u VALUES (2)");
        if knows_the_unchanged || first != second {
            host.run(db, "BEGIN IMMEDIATE; COMMIT");
        }
        host.close(db);
    }
}
