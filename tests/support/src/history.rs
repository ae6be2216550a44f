//! A database whose every uploaded state is remembered, and its bucket: as rounds of maintenance leave it, and as it is damaged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use replicated::maintenance::Report;
use replicated::restore::{PlanError, RestoreError, Target};
use replicated::store::{Level, Listed, LtxName};
use replicated::types::Txid;

use crate::bucket::{Bucket, flattened};
use crate::host::{self, Db, Host, Program};
use crate::maintenance::Order;
use crate::s3::Server;
use crate::sqlite::{integrity_check, page_compare};

/// What may happen to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A bit of it.
    Flipped,
    /// Half of it is gone.
    Cut,
    /// It has no bytes.
    Empty,
    /// It is gone.
    Missing,
}

/// A database, its bucket, and what each TXID was.
pub struct History {
    /// Where all of it lies.
    pub dir: tempfile::TempDir,
    /// The bucket's, where it has one.
    pub server: Option<Server>,
    /// The database's.
    pub bucket: Bucket,
    /// A process that has it open.
    pub host: Host,
    /// Its connection.
    pub db: Db,
    /// Copies of the database.
    pub states: BTreeMap<Txid, PathBuf>,
    /// What is random in it.
    pub random: fastrand::Rng,
}

impl History {
    /// A database with a page or two of its own, replicated to a folder or a server of its own.
    pub fn new(on_s3: bool, seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, bucket) = Bucket::somewhere(on_s3, dir.path());
        // There before it is replicated, so that the first snapshot is of some size.
        let plain = rusqlite::Connection::open(dir.path().join("app.db")).unwrap();
        plain.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x); CREATE TABLE ballast(x)").unwrap();
        plain.execute_batch("INSERT INTO ballast VALUES (randomblob(300000))").unwrap();
        drop(plain);
        let mut host = Host::start(Program::Python, &bucket.env);
        let db = host.open(&host::replicated(&dir.path().join("app.db"), &bucket.url, &[("sync_interval", "10ms"), ("burst", "100")]));
        Self { dir, server, bucket, host, db, states: BTreeMap::new(), random: fastrand::Rng::with_seed(seed) }
    }

    /// Beside the database.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One upload, whose state is remembered.
    pub fn commit(&mut self) -> Txid {
        let rows = self.random.u32(1..8);
        for _ in 0..rows {
            let bytes = self.random.u32(1..4000);
            self.host.query(self.db, &format!("INSERT INTO t(x) VALUES (randomblob({bytes}))"));
        }
        match self.random.u32(0..12) {
            0 => self.host.run(self.db, "DELETE FROM t WHERE id % 2 = 0; VACUUM"),
            1 => self.host.run(self.db, "PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET x = randomblob(500) WHERE id % 5 = 0"),
            _ => {}
        }
        self.remember()
    }

    /// What is committed is uploaded, and remembered.
    pub fn remember(&mut self) -> Txid {
        let txid = Txid::from_hex(&self.host.sync(self.db)).unwrap();
        let copy = self.path(&format!("state-{txid}.db"));
        std::fs::copy(flattened(&self.path("app.db"), self.dir.path()), &copy).unwrap();
        self.states.insert(txid, copy);
        txid
    }

    /// No snapshot for a lot of change: most states here are VACUUMs away from each other.
    pub fn order(&self) -> Order {
        Order { change_percent: 100_000, ..Order::of(&self.bucket) }
    }

    /// A round that finds nothing wrong.
    pub fn run(&self, order: &Order) -> Report {
        let report = order.run(&self.bucket).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(report.problems, Vec::<String>::new());
        report
    }

    /// A state that the bucket has is the state that it was, if that was remembered. Whether it has it.
    pub fn check(&self, txid: Txid) -> bool {
        let output = self.path("restored.db");
        match self.bucket.try_restore(Target::Txid(txid), &output) {
            Ok(_) => {
                if let Some(state) = self.states.get(&txid) {
                    page_compare(state, &output).unwrap();
                }
                integrity_check(&output).unwrap();
                true
            }
            Err(RestoreError::Plan { source: PlanError::TooOld { .. } | PlanError::Merged { .. }, .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Which of the states the bucket has; each of those is right.
    pub fn available(&self) -> Vec<Txid> {
        self.states.keys().copied().filter(|txid| self.check(*txid)).collect()
    }

    /// The last one that was remembered.
    pub fn newest(&self) -> Txid {
        *self.states.last_key_value().unwrap().0
    }

    /// For Litestream.
    pub fn url(&self) -> String {
        match &self.server {
            Some(server) => format!("{}?endpoint={}&forcePathStyle=true&region=us-east-1", self.bucket.url, server.endpoint()),
            None => self.bucket.url.clone(),
        }
    }

    /// Litestream restores a state to the same bytes; one that was not remembered to those that we restore.
    pub fn litestream_agrees(&self, tools: &Path, txid: Option<Txid>) {
        let output = self.path("theirs.db");
        // It may not be there.
        let _ = std::fs::remove_file(&output);
        let mut command = host::command(tools.join("bin/litestream"), &self.bucket.env);
        command.arg("restore").arg("-o").arg(&output);
        if let Some(txid) = txid {
            command.args(["-txid", &txid.to_string()]);
        }
        succeeds(command.arg(self.url()));
        let txid = txid.unwrap_or(self.newest());
        let state = self.states.get(&txid).cloned().unwrap_or_else(|| {
            assert!(self.check(txid));
            self.path("restored.db")
        });
        page_compare(&state, &output).unwrap();
    }

    /// Where the store keeps an object.
    pub fn object(&self, name: &LtxName) -> PathBuf {
        match &self.server {
            Some(server) => server.root().join(server.bucket()).join(format!("app/db/{:04x}/{}", name.level.get(), name.file_name())),
            None => self.path(&format!("bucket/ltx/{}/{}", name.level, name.file_name())),
        }
    }

    /// Damages an object where it lies. Its time stays.
    pub fn damage(&self, name: &LtxName, damage: Damage) {
        let path = self.object(name);
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        match damage {
            Damage::Flipped => bytes[middle] ^= 0x10,
            Damage::Cut => bytes.truncate(middle),
            Damage::Empty => bytes.clear(),
            Damage::Missing => return std::fs::remove_file(&path).unwrap(),
        }
        std::fs::write(&path, bytes).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    }

    /// The files of a level.
    pub fn level(&self, level: u8) -> Vec<Listed> {
        self.bucket.level(Level::new(level).unwrap())
    }
}

/// Runs a program, which must succeed.
pub fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output
}
