//! What a process does to a database until it ends or is ended: a random life from a seed, with every state noted.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::model::{Model, Record, SCHEMA};
use super::own_files::Own;
use super::vfs;
use super::{disk, own_files};

/// How a database is used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Style {
    /// Page size of a database that is made, in bytes.
    pub page_bytes: u32,
    /// `PRAGMA synchronous`; several take turns.
    pub synchronous: Vec<String>,
    /// `PRAGMA journal_mode`; several take turns.
    pub journal: Vec<String>,
    /// `PRAGMA cache_size`, in pages: few make transactions spill.
    pub cache_pages: u32,
    /// `PRAGMA wal_autocheckpoint`, in pages.
    pub autocheckpoint_pages: u32,
    /// `PRAGMA journal_size_limit`, in bytes; -1 for none.
    pub journal_size_limit: i64,
    /// `PRAGMA auto_vacuum` of a database that is made.
    pub auto_vacuum: u8,
    /// A row's largest body.
    pub most_bytes: usize,
    /// A second thread reads and checkpoints.
    pub threads: bool,
    /// `PRAGMA locking_mode`.
    pub locking: String,
    /// The option `durability`.
    pub durability: String,
    /// SQLite itself may lose the database in a crash: without a journal on disk, or where nothing is ever synced and the power fails.
    pub may_be_damaged: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            page_bytes: 4096,
            synchronous: vec!["NORMAL".to_owned()],
            journal: vec!["WAL".to_owned()],
            cache_pages: 2000,
            autocheckpoint_pages: 1000,
            journal_size_limit: -1,
            auto_vacuum: 0,
            most_bytes: 3000,
            threads: false,
            locking: "NORMAL".to_owned(),
            durability: "local".to_owned(),
            may_be_damaged: false,
        }
    }
}

/// A power loss instead of a kill.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Power {
    /// What becomes of SQLite's files.
    pub loss: disk::Loss,
    /// And of ours.
    pub own: Own,
    /// Where the contents and `fates.json` go, for the harness to put them back.
    pub folder: PathBuf,
}

/// What a process is to do, as its only argument in JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    /// The database.
    pub database: PathBuf,
    /// Its replica.
    pub replica: String,
    /// Further parameters of its URI.
    pub options: Vec<(String, String)>,
    /// How it is used.
    pub style: Style,
    /// Chooses what is done.
    pub seed: u64,
    /// So many things are done.
    pub steps: u32,
    /// SQL that is run instead, where there is any, with `CUT_OFF` in between; then the power fails, if it is to.
    pub script: Vec<String>,
    /// The notes.
    pub record: PathBuf,
    /// Where the extension's log goes.
    pub log: PathBuf,
    /// When the process dies, if it does so at a call of the VFS.
    pub end: Option<vfs::End>,
    /// The power fails then.
    pub power: Option<Power>,
    /// At the end connections are closed; else the process just exits.
    pub closes: bool,
    /// Begins with a flush, and waits for a line of its input once the bucket has everything, before it goes on.
    pub flushes_first: bool,
    /// Replication may have stopped: then nothing is waited for.
    pub may_fail: bool,
}

/// In a script: from here on the replica, a folder, cannot be reached.
pub const CUT_OFF: &str = "-- the replica cannot be reached";

/// Why a session ended early.
pub type Failure = String;

struct Player {
    session: Session,
    uri: String,
    random: fastrand::Rng,
    writers: Vec<Connection>,
    readers: Vec<(Connection, i64)>,
    model: Model,
    record: Record,
    next_id: i64,
    damaged: bool,
}

/// The database is no database any more, or not a sound one.
fn is_damage(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        // Half a transaction: a table is not there, or a row is where it should not be.
        Some(code) => {
            matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown | ErrorCode::ConstraintViolation)
        }
        // A row that is not there, or holds something else.
        None => true,
    }
}

/// SQLite was busy: nothing happened.
fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn is_unacknowledged(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(failure, _) if failure.extended_code == replicated::NOT_ACKNOWLEDGED)
}

fn say(line: &serde_json::Value) {
    let mut out = std::io::stdout().lock();
    // The harness may be gone; then this process is no use either.
    let told = writeln!(out, "{line}").and_then(|()| out.flush());
    if told.is_err() {
        std::process::exit(4);
    }
}

struct FileLog {
    file: std::fs::File,
}

impl log::Log for FileLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "replicated"
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            // One write for a line, so that a kill does not tear it.
            let _ = (&self.file).write_all(format!("{} {} {}\n", std::process::id(), record.level(), record.args()).as_bytes());
        }
    }

    fn flush(&self) {}
}

fn log_to(path: &Path) -> std::io::Result<()> {
    let file = std::fs::File::options().append(true).create(true).open(path)?;
    if log::set_boxed_logger(Box::new(FileLog { file })).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
    Ok(())
}

/// Carries a session out, to its end or the process's.
///
/// # Errors
/// What went wrong that must not.
pub fn run(session: Session) -> Result<(), Failure> {
    log_to(&session.log).map_err(|e| e.to_string())?;
    vfs::register(session.power.is_some());
    replicated::register!(rusqlite::ffi).map_err(|e| e.to_string())?;
    if let Some(end) = session.end {
        let (power, database, seed) = (session.power.clone(), session.database.clone(), session.seed);
        let last_act = Box::new(move |disk: &disk::Disk| {
            if let Some(power) = &power {
                own_files::power_fails(power, &database, disk, seed).expect("what is left can be written");
            }
        });
        vfs::end_at(end, last_act);
    }
    let parameters: Vec<(&str, &str)> = session.options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let uri = crate::host::replicated(&session.database, &session.replica, &parameters);
    if !session.script.is_empty() {
        return run_script(&session, &uri).map_err(|error| error.to_string());
    }
    let record = Record::open(&session.record).map_err(|e| e.to_string())?;
    let random = fastrand::Rng::with_seed(session.seed);
    let may_be_damaged = session.style.may_be_damaged;
    let (writers, readers, model) = (Vec::new(), Vec::new(), Model::default());
    let mut player = Player { session, uri, random, writers, readers, model, record, next_id: 0, damaged: false };
    match player.play() {
        Err(error) if may_be_damaged && is_damage(&error) => {
            say(&json!({"damaged": error.to_string()}));
            Ok(())
        }
        other => other.map_err(|error| error.to_string()),
    }
}

fn run_script(session: &Session, uri: &str) -> rusqlite::Result<()> {
    let connection = Connection::open(uri)?;
    for sql in &session.script {
        if sql == CUT_OFF {
            let folder = Path::new(session.replica.trim_start_matches("file://"));
            let gone = std::fs::rename(folder, folder.with_extension("away")).and_then(|()| std::fs::write(folder, b"not a folder"));
            gone.map_err(|_| rusqlite::Error::InvalidPath(folder.to_owned()))?;
        } else {
            connection.execute_batch(sql)?;
        }
    }
    if session.power.is_some() {
        vfs::end_now();
    }
    connection.close().map_err(|(_, error)| error)
}

impl Player {
    fn play(&mut self) -> rusqlite::Result<()> {
        if self.session.style.auto_vacuum > 0 && !self.session.database.exists() {
            self.make_plainly()?;
        }
        let may_be_damaged = self.session.style.may_be_damaged;
        match self.open() {
            // No statement is for it.
            Err(error) if may_be_damaged && is_damage(&error) => {
                self.damaged = true;
                self.writers.push(Connection::open(&self.uri)?);
            }
            first => self.writers.push(first?),
        }
        match if self.damaged { Ok(()) } else { self.begin() } {
            // It is sent as it is.
            Err(error) if may_be_damaged && is_damage(&error) => self.damaged = true,
            other => other?,
        }
        if self.session.flushes_first {
            self.flush_first()?;
        }
        if self.damaged {
            say(&json!({"damaged": "before it was opened"}));
            return Ok(());
        }
        let helper = self.session.style.threads.then(|| self.start_helper());
        for _ in 0..self.session.steps {
            self.step()?;
        }
        if let Some((stop, thread)) = helper {
            stop.store(true, Ordering::SeqCst);
            // It reads and checkpoints; what goes wrong there goes wrong here, too.
            thread.join().map_err(|_| rusqlite::Error::InvalidQuery)?;
        }
        self.readers.clear();
        if self.session.closes {
            for writer in self.writers.drain(..) {
                writer.close().map_err(|(_, error)| error)?;
            }
        }
        let (all, changing) = vfs::calls();
        say(&json!({"ended": {"calls": all, "changing": changing, "points": points()}}));
        if !self.session.closes {
            // As a program that just ends: no destructor of a connection runs.
            std::process::exit(0);
        }
        Ok(())
    }

    fn flush_first(&mut self) -> rusqlite::Result<()> {
        let synced = self.writers[0].query_row("PRAGMA replicated_sync='60s'", [], |row| row.get::<_, String>(0));
        let status: String = self.writers[0].query_row("PRAGMA replicated_status", [], |row| row.get(0))?;
        match synced {
            Ok(txid) => say(&json!({"synced": txid, "status": status})),
            Err(error) => {
                self.session.may_fail = true;
                say(&json!({"stopped": error.to_string(), "status": status}));
            }
        }
        let mut line = String::new();
        // Where the harness is gone, so is the pipe.
        let _ = std::io::stdin().lock().read_line(&mut line);
        Ok(())
    }

    fn open(&mut self) -> rusqlite::Result<Connection> {
        let connection = Connection::open(&self.uri)?;
        // Locks of this very thread are never given up by waiting.
        connection.busy_timeout(Duration::from_millis(if self.session.style.threads { 200 } else { 5 }))?;
        let style = &self.session.style;
        let fresh: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        if fresh == 0 {
            connection.execute_batch(&format!("PRAGMA page_size={}", style.page_bytes))?;
        }
        if let [mode] = style.journal.as_slice() {
            connection.query_row(&format!("PRAGMA journal_mode={mode}"), [], |row| row.get::<_, String>(0))?;
        }
        if style.locking != "NORMAL" {
            connection.query_row(&format!("PRAGMA locking_mode={}", style.locking), [], |row| row.get::<_, String>(0))?;
        }
        let synchronous = self.random.choice(&style.synchronous).map_or("NORMAL", String::as_str);
        connection.execute_batch(&format!(
            "PRAGMA synchronous={synchronous}; PRAGMA cache_size={}; PRAGMA wal_autocheckpoint={}; PRAGMA journal_size_limit={}",
            style.cache_pages, style.autocheckpoint_pages, style.journal_size_limit
        ))?;
        Ok(connection)
    }

    /// `PRAGMA auto_vacuum` writes to a new file before it can be in WAL mode.
    fn make_plainly(&self) -> rusqlite::Result<()> {
        let style = &self.session.style;
        let plain = Connection::open(&self.session.database)?;
        plain.execute_batch(&format!("PRAGMA page_size={}; PRAGMA auto_vacuum={}", style.page_bytes, style.auto_vacuum))?;
        plain.query_row("PRAGMA journal_mode=WAL", [], |row| row.get::<_, String>(0))?;
        plain.close().map_err(|(_, error)| error)
    }

    /// Makes the tables, or learns what there is.
    fn begin(&mut self) -> rusqlite::Result<()> {
        self.model = Model::read(&self.writers[0])?;
        if self.model.number == 0 {
            self.model.number = 1;
            self.record.begun(self.model.state());
            match self.writers[0].execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT")) {
                // It is committed here, and why it is not acknowledged is asked next.
                Err(error) if is_unacknowledged(&error) => {}
                other => {
                    other?;
                    self.record.done(self.model.state());
                }
            }
        }
        self.next_id = self.model.ids().last().copied().unwrap_or(0) + 1;
        Ok(())
    }

    /// Reads and checkpoints beside the writer.
    fn start_helper(&mut self) -> (Arc<AtomicBool>, std::thread::JoinHandle<()>) {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, uri, mut random) = (Arc::clone(&stop), self.uri.clone(), self.random.fork());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                if let Err(error) = help(&uri, &mut random, &stopped)
                    && !is_busy(&error)
                {
                    panic!("the second thread: {error}");
                }
            }
        });
        (stop, thread)
    }

    fn step(&mut self) -> rusqlite::Result<()> {
        let which = self.random.usize(0..self.writers.len());
        let done = match self.random.u32(0..100) {
            0..58 => self.transaction(which),
            58..70 => self.checkpoint(which),
            70..73 => self.writers[which].execute_batch("VACUUM"),
            73..75 => self.writers[which].execute_batch("PRAGMA incremental_vacuum(5)"),
            75..79 => self.reader(),
            79..83 => self.second_writer(),
            83..86 => self.reopen(),
            86..88 => self.switch(which),
            88..92 => self.flush(which),
            _ => {
                std::thread::sleep(Duration::from_millis(self.random.u64(0..8)));
                Ok(())
            }
        };
        match done {
            Err(error) if is_busy(&error) => Ok(()),
            // A VACUUM, which ends with a commit as well.
            Err(error) if self.session.may_fail && is_unacknowledged(&error) => Ok(()),
            other => other,
        }
    }

    fn transaction(&mut self, which: usize) -> rusqlite::Result<()> {
        let mut model = self.model.clone();
        model.number += 1;
        let begin = *self.random.choice(&["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"]).unwrap_or(&"BEGIN");
        self.writers[which].execute_batch(begin)?;
        let can_roll_back = self.can_roll_back(which)?;
        let result = self.work(which, &mut model, can_roll_back);
        let commits = result.is_ok() && (self.random.u8(0..12) > 0 || !can_roll_back);
        let connection = &self.writers[which];
        if !commits {
            // SQLite may have rolled back already.
            let rolled_back = if connection.is_autocommit() { Ok(()) } else { connection.execute_batch("ROLLBACK") };
            return result.and(rolled_back);
        }
        self.record.begun(model.state());
        if let Err(error) = connection.execute_batch("COMMIT") {
            if self.session.may_fail && is_unacknowledged(&error) {
                // It is committed here.
                self.model = model;
                return Ok(());
            }
            if !connection.is_autocommit() {
                connection.execute_batch("ROLLBACK")?;
            }
            return Err(error);
        }
        self.record.done(model.state());
        self.model = model;
        Ok(())
    }

    /// What a transaction changes.
    fn work(&mut self, which: usize, model: &mut Model, can_roll_back: bool) -> rusqlite::Result<()> {
        self.writers[which].execute("UPDATE state SET number = ?1", params![model.number])?;
        let most_kept_bytes = 400 * self.session.style.most_bytes as u64;
        if model.bytes() > most_kept_bytes || self.random.u8(0..60) == 0 {
            let ids = model.ids();
            for id in ids.iter().take(ids.len() * 2 / 3) {
                self.delete(which, model, *id)?;
            }
        }
        for _ in 0..self.random.u8(1..8) {
            match self.random.u8(0..20) {
                0 => {
                    // The file grows over pages that SQLite never writes in a rollback mode.
                    let bytes = 25 * self.session.style.most_bytes;
                    let id = self.insert(which, model, bytes)?;
                    self.delete(which, model, id)?;
                }
                1 => {
                    let bytes = 8 * self.session.style.most_bytes;
                    self.insert(which, model, bytes)?;
                }
                2 | 3 => {
                    let mut within = model.clone();
                    self.writers[which].execute_batch("SAVEPOINT s")?;
                    for _ in 0..self.random.u8(1..6) {
                        self.change(which, &mut within)?;
                    }
                    if can_roll_back && self.random.bool() {
                        self.writers[which].execute_batch("ROLLBACK TO s; RELEASE s")?;
                    } else {
                        self.writers[which].execute_batch("RELEASE s")?;
                        *model = within;
                    }
                }
                4 => {
                    let sql = if self.random.bool() {
                        "CREATE TABLE IF NOT EXISTS extra(x); INSERT INTO extra VALUES (randomblob(3000))"
                    } else {
                        "DROP TABLE IF EXISTS extra"
                    };
                    self.writers[which].execute_batch(sql)?;
                }
                _ => self.change(which, model)?,
            }
        }
        Ok(())
    }

    fn change(&mut self, which: usize, model: &mut Model) -> rusqlite::Result<()> {
        let ids = model.ids();
        match self.random.choice(&ids).copied() {
            Some(id) if self.random.bool() => {
                let (tag, body) = self.content(self.session.style.most_bytes);
                self.writers[which].execute("UPDATE item SET tag = ?2, body = ?3 WHERE id = ?1", params![id, tag, body])?;
                model.put(id, &tag, &body);
                Ok(())
            }
            Some(id) if self.random.u8(0..4) == 0 => self.delete(which, model, id),
            _ => {
                let bytes = self.session.style.most_bytes;
                self.insert(which, model, bytes).map(drop)
            }
        }
    }

    fn content(&mut self, most_bytes: usize) -> (String, Vec<u8>) {
        let mut body = vec![0; self.random.usize(0..=most_bytes)];
        // One half can be compressed.
        let half = body.len() / 2;
        self.random.fill(&mut body[half..]);
        (format!("{:016x}", self.random.u64(..)), body)
    }

    fn insert(&mut self, which: usize, model: &mut Model, most_bytes: usize) -> rusqlite::Result<i64> {
        let (tag, body) = self.content(most_bytes);
        let id = self.next_id;
        self.next_id += 1;
        self.writers[which].execute("INSERT INTO item VALUES (?1, ?2, ?3)", params![id, tag, body])?;
        model.put(id, &tag, &body);
        Ok(id)
    }

    fn delete(&self, which: usize, model: &mut Model, id: i64) -> rusqlite::Result<()> {
        self.writers[which].execute("DELETE FROM item WHERE id = ?1", [id])?;
        model.remove(id);
        Ok(())
    }

    fn checkpoint(&mut self, which: usize) -> rusqlite::Result<()> {
        let kind = *self.random.choice(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]).unwrap_or(&"PASSIVE");
        self.writers[which].query_row(&format!("PRAGMA wal_checkpoint({kind})"), [], |row| row.get::<_, i64>(0)).map(drop)
    }

    /// A reader begins, or the oldest one ends: it must still see what it saw.
    fn reader(&mut self) -> rusqlite::Result<()> {
        // One that is in the way of a commit without a journal would have it rolled back.
        if self.readers.len() < 2 && self.random.bool() && !self.session.style.journal.iter().any(|mode| mode == "OFF") {
            let connection = self.open()?;
            connection.execute_batch("BEGIN")?;
            let number = connection.query_row("SELECT number FROM state", [], |row| row.get(0))?;
            self.readers.push((connection, number));
        } else if !self.readers.is_empty() {
            let (connection, number) = self.readers.remove(0);
            let now: i64 = connection.query_row("SELECT number FROM state", [], |row| row.get(0))?;
            assert_eq!(now, number, "a reader's snapshot changed");
        }
        Ok(())
    }

    fn second_writer(&mut self) -> rusqlite::Result<()> {
        if self.writers.len() > 1 {
            self.writers.truncate(1);
        } else {
            let second = self.open()?;
            self.writers.push(second);
        }
        Ok(())
    }

    fn reopen(&mut self) -> rusqlite::Result<()> {
        self.readers.clear();
        for writer in self.writers.drain(..) {
            writer.close().map_err(|(_, error)| error)?;
        }
        loop {
            match self.open() {
                // The second thread has it.
                Err(error) if is_busy(&error) => {}
                opened => {
                    self.writers.push(opened?);
                    return Ok(());
                }
            }
        }
    }

    /// Without a journal nothing can be rolled back.
    fn can_roll_back(&self, which: usize) -> rusqlite::Result<bool> {
        let mode: String = self.writers[which].query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        Ok(!mode.eq_ignore_ascii_case("off"))
    }

    /// Another journal mode, where there are several.
    fn switch(&mut self, which: usize) -> rusqlite::Result<()> {
        let modes = &self.session.style.journal;
        match self.random.choice(modes) {
            Some(mode) if modes.len() > 1 => {
                self.writers[which].query_row(&format!("PRAGMA journal_mode={mode}"), [], |row| row.get::<_, String>(0)).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn flush(&mut self, which: usize) -> rusqlite::Result<()> {
        let synced = self.writers[which].query_row("PRAGMA replicated_sync='60s'", [], |row| row.get::<_, String>(0));
        if self.session.may_fail { Ok(()) } else { synced.map(drop) }
    }
}

fn help(uri: &str, random: &mut fastrand::Rng, stopped: &AtomicBool) -> rusqlite::Result<()> {
    let connection = Connection::open(uri)?;
    connection.busy_timeout(Duration::from_millis(20))?;
    for _ in 0..random.u32(1..30) {
        if stopped.load(Ordering::SeqCst) {
            break;
        }
        match random.u8(0..6) {
            0 => {
                let kind = *random.choice(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]).unwrap_or(&"PASSIVE");
                let sql = format!("PRAGMA wal_checkpoint({kind})");
                connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?;
            }
            1..4 => {
                connection.execute_batch("BEGIN")?;
                let read = Model::read(&connection).and_then(|first| {
                    std::thread::sleep(Duration::from_millis(random.u64(0..3)));
                    Model::read(&connection).map(|second| assert_eq!(first.state(), second.state(), "a reader's snapshot changed"))
                });
                connection.execute_batch("ROLLBACK")?;
                read?;
            }
            _ => std::thread::sleep(Duration::from_millis(random.u64(0..4))),
        }
    }
    Ok(())
}

#[cfg(feature = "fault-injection")]
fn points() -> std::collections::BTreeMap<&'static str, u64> {
    replicated::fault::hits().into_iter().collect()
}

#[cfg(not(feature = "fault-injection"))]
fn points() -> std::collections::BTreeMap<&'static str, u64> {
    std::collections::BTreeMap::new()
}
