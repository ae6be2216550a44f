//! A database that several processes have open, its bucket, and what they log.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bucket::{Bucket, flattened};
use crate::host::{self, Db, Host, Program};
use crate::s3::Server;
use crate::sqlite::{integrity_check, page_compare, same_but_for_free_pages};

/// With pages that never change, by which a full state is told from an increment.
pub const TABLES: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, who, x); CREATE TABLE still(x);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) INSERT INTO still SELECT randomblob(3000) FROM n";

/// A folder with a database, and its bucket.
pub struct Place {
    /// Where all of it lies.
    pub dir: tempfile::TempDir,
    /// The database's.
    pub bucket: Bucket,
    /// The bucket's, where it has one.
    pub server: Option<Server>,
    options: Vec<(&'static str, String)>,
    /// More of the processes' environment.
    pub env: Vec<(String, String)>,
}

impl Place {
    /// With a folder for a bucket.
    pub fn in_folder() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::folder(&dir.path().join("bucket"));
        Self::with(dir, bucket, None)
    }

    /// With a bucket on a server of its own.
    pub fn on_server() -> Self {
        let server = Server::start().unwrap();
        Self::with(tempfile::tempdir().unwrap(), Bucket::s3(&server, "app"), Some(server))
    }

    /// With that bucket.
    pub fn with(dir: tempfile::TempDir, bucket: Bucket, server: Option<Server>) -> Self {
        let log = dir.path().join("log").to_str().unwrap().to_owned();
        let options = vec![("sync_interval", "10ms".to_owned()), ("log", log), ("log_level", "debug".to_owned())];
        Self { dir, bucket, server, options, env: Vec::new() }
    }

    /// For processes of `Program::Faulty`, which log by a logger of their own.
    #[must_use]
    pub fn with_faults(mut self) -> Self {
        self.options = vec![("sync_interval", "10ms".to_owned()), ("burst", "100".to_owned())];
        let log = self.dir.path().join("log").display().to_string();
        self.env = vec![("RUST_BACKTRACE".to_owned(), "0".to_owned()), ("REPLICATED_TEST_LOG".to_owned(), log)];
        self
    }

    /// The database.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    /// What all processes have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// To open it by, with more options.
    pub fn uri(&self, more: &[(&str, &str)]) -> String {
        let options: Vec<_> = self.options.iter().map(|(name, value)| (*name, value.as_str())).chain(more.iter().copied()).collect();
        host::replicated(&self.path(), &self.bucket.url, &options)
    }

    /// A process that has it open.
    pub fn start(&self, which: Program) -> Worker {
        self.start_with(which, "", &[])
    }

    /// A process in which something happens at a fail point, with more options.
    pub fn start_with(&self, which: Program, faults: &str, more: &[(&str, &str)]) -> Worker {
        let mut env = self.bucket.env.clone();
        env.extend_from_slice(&self.env);
        if !faults.is_empty() {
            env.push(("REPLICATED_TEST_FAULT".to_owned(), faults.to_owned()));
        }
        let mut host = Host::start(which, &env);
        let db = host.open(&self.uri(more));
        host.query(db, "PRAGMA busy_timeout=60000");
        Worker { host, db }
    }

    /// A database with what the tests need, and a process that has it open.
    pub fn first(&self, mode: &str, which: Program) -> Worker {
        self.first_with(mode, which, "", &[])
    }

    /// The same with faults and options.
    pub fn first_with(&self, mode: &str, which: Program, faults: &str, more: &[(&str, &str)]) -> Worker {
        let mut first = self.start_with(which, faults, more);
        first.host.run(first.db, &format!("PRAGMA journal_mode={mode}; {TABLES}"));
        first.write("first");
        first.sync();
        first
    }

    /// What is in the bucket is the database, and every TXID of it a state that was committed.
    pub fn check(&self) {
        self.check_by(page_compare);
    }

    /// As `check`, where a process has died that had changed pages nobody needs.
    pub fn check_but_for_free_pages(&self) {
        self.check_by(same_but_for_free_pages);
    }

    fn check_by(&self, same: impl Fn(&Path, &Path) -> Result<(), String>) {
        let restored = self.dir.path().join("restored.db");
        let _ = std::fs::remove_file(&restored);
        self.bucket.restore(&restored);
        let dir = self.dir.path().join("flat");
        let _ = std::fs::create_dir(&dir);
        same(&flattened(&self.path(), &dir), &restored).unwrap();
        let replayed = self.dir.path().join("replayed.db");
        self.bucket.replay(&replayed, |_, state| integrity_check(state).unwrap()).unwrap();
    }

    /// How often all pages were sent.
    pub fn full_states(&self) -> usize {
        self.bucket.full_states()
    }

    /// All pages were sent once.
    pub fn assert_one_full_state(&self) {
        assert_eq!(self.full_states(), 1, "{}", self.log());
    }
}

/// A process and its connection.
pub struct Worker {
    /// The process.
    pub host: Host,
    /// Its connection.
    pub db: Db,
}

impl Worker {
    /// Commits a row.
    pub fn try_write(&mut self, who: &str) -> Result<(), String> {
        self.host.try_query(self.db, &format!("INSERT INTO t(who, x) VALUES ('{who}', randomblob(3000))")).map(drop)
    }

    /// Commits a row.
    pub fn write(&mut self, who: &str) {
        self.try_write(who).unwrap();
    }

    /// How many rows it sees.
    pub fn rows(&mut self) -> u64 {
        self.host.value(self.db, "SELECT count(*) FROM t").as_u64().unwrap()
    }

    /// All that is committed is in the bucket; up to which TXID.
    pub fn sync(&mut self) -> String {
        self.host.sync(self.db)
    }

    /// A value of its status.
    pub fn status(&mut self, name: &str) -> String {
        self.host.status(self.db, name)
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([&format!("-{name}"), &self.host.id().to_string()]).status().unwrap().success());
    }

    /// Closes it and ends.
    pub fn leave(mut self) {
        self.host.close(self.db);
        self.host.quit();
    }
}
