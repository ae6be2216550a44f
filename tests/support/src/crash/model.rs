//! What a database must hold after each commit, kept outside of it.
//!
//! The host notes the number and the sum of a state before it commits it, and that it did so after. A verifier computes the same sum from any
//! copy of the database: so it can say "this is exactly the state after commit 7" without trusting anything that SQLite or the extension wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

/// Which state a database is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    /// How many transactions were committed.
    pub number: i64,
    /// Sums up all rows, in any order.
    pub sum: u64,
}

/// The tables that a host works on. `ballast` never changes, so that only a full state has every page.
pub const SCHEMA: &str = "
    CREATE TABLE state(number INTEGER NOT NULL);
    INSERT INTO state VALUES (1);
    CREATE TABLE item(id INTEGER PRIMARY KEY, tag TEXT, body BLOB);
    CREATE INDEX item_tag ON item(tag);
    CREATE TABLE ballast(x);
    INSERT INTO ballast VALUES (zeroblob(150000));";

/// What one row adds to a state's sum.
#[must_use]
pub fn row_sum(id: i64, tag: &str, body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (id, tag, body).hash(&mut hasher);
    hasher.finish()
}

/// The content as the host believes it to be.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The committed state's number.
    pub number: i64,
    rows: BTreeMap<i64, (u64, u32)>,
}

impl Model {
    /// What a database holds; nothing where the tables are not made yet.
    ///
    /// # Errors
    /// SQLite's.
    pub fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let made: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'ballast'", [], |row| row.get(0))?;
        if made == 0 {
            return Ok(Self::default());
        }
        let number = connection.query_row("SELECT number FROM state", [], |row| row.get(0))?;
        let mut rows = BTreeMap::new();
        // Not by the index, which integrity_check compares with the table.
        let mut statement = connection.prepare("SELECT id, tag, body FROM item NOT INDEXED")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            let id: i64 = row.get(0)?;
            let body = row.get_ref(2)?.as_blob()?;
            let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
            rows.insert(id, (row_sum(id, row.get_ref(1)?.as_str()?, body), bytes));
        }
        Ok(Self { number, rows })
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        let sum = self.rows.values().fold(0_u64, |sum, (row, _)| sum.wrapping_add(*row));
        State { number: self.number, sum }
    }

    /// A row was written.
    pub fn put(&mut self, id: i64, tag: &str, body: &[u8]) {
        self.rows.insert(id, (row_sum(id, tag, body), u32::try_from(body.len()).unwrap_or(u32::MAX)));
    }

    /// A row was deleted.
    pub fn remove(&mut self, id: i64) {
        self.rows.remove(&id);
    }

    /// The rows' keys.
    #[must_use]
    pub fn ids(&self) -> Vec<i64> {
        self.rows.keys().copied().collect()
    }

    /// All bodies together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.rows.values().map(|(_, bytes)| u64::from(*bytes)).sum()
    }
}

/// The state of a database file that nobody has open.
///
/// # Errors
/// That it is no sound database, with what was found.
pub fn state_of(path: &Path) -> Result<State, String> {
    let told = |error: rusqlite::Error| format!("{}: {error}", path.display());
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(told)?;
    let mut statement = connection.prepare("PRAGMA integrity_check").map_err(told)?;
    let found = statement.query_map([], |row| row.get::<_, String>(0)).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(told)?;
    if found != ["ok"] {
        return Err(format!("{}: {}", path.display(), found.join("; ")));
    }
    Model::read(&connection).map(|model| model.state()).map_err(told)
}

/// The host's notes.
#[derive(Debug)]
pub struct Record {
    file: File,
}

impl Record {
    /// Goes on with the notes of earlier processes.
    ///
    /// # Errors
    /// Where the file cannot be opened.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: File::options().append(true).create(true).open(path)? })
    }

    /// A state will be committed.
    ///
    /// # Panics
    /// Where it cannot be noted: a test without notes proves nothing.
    pub fn begun(&mut self, state: State) {
        self.line("begun", state);
    }

    /// A state was committed.
    ///
    /// # Panics
    /// As `begun`.
    pub fn done(&mut self, state: State) {
        self.line("done", state);
    }

    fn line(&mut self, what: &str, State { number, sum }: State) {
        self.file.write_all(format!("{what} {number} {sum}\n").as_bytes()).expect("the notes can be written");
    }
}

/// What a record says.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Every state that a commit was begun for.
    pub begun: BTreeSet<State>,
    /// Every state whose commit returned.
    pub done: BTreeSet<State>,
    /// The newest state that was begun.
    pub last_begun: Option<State>,
    /// The newest state whose commit returned.
    pub last_done: Option<State>,
}

impl Notes {
    /// Reads a record.
    ///
    /// # Panics
    /// Where it is none.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let mut notes = Self::default();
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            let mut words = line.split(' ');
            let what = words.next().unwrap_or_default();
            let mut word = || words.next().unwrap_or_default();
            let (Ok(number), Ok(sum)) = (word().parse(), word().parse()) else { panic!("{line:?} is no note") };
            let state = State { number, sum };
            if what == "begun" {
                notes.begun.insert(state);
                notes.last_begun = Some(state);
            } else {
                notes.done.insert(state);
                notes.last_done = Some(state);
            }
        }
        notes
    }

    /// Whether a state may have been committed at some time. The one before anything was is always one.
    #[must_use]
    pub fn knows(&self, state: State) -> bool {
        state == State { number: 0, sum: 0 } || self.begun.contains(&state)
    }
}
