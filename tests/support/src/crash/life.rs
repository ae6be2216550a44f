//! The life of a database through many processes, most of which die, and what must hold in between.
//!
//! ```text
//!   process: open, flush ──► "synced" ──► random work ──────────────► dies, or ends
//!   harness:                 compare      (1) restore: a committed state, not newer than the file
//!                            with local   (2) the next process
//! ```

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use replicated::restore::Target;
use serde_json::Value;

use super::disk::{Fate, Loss, put_back};
use super::model::{Notes, State, state_of};
use super::own_files::Own;
use super::session::{Power, Session, Style};
use super::vfs;
use crate::bucket::{Bucket, flattened, try_flattened};
use crate::host;
use crate::sqlite::same_but_for_free_pages;

/// A process that does nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a process ends.
#[derive(Clone, Debug)]
pub enum Ending {
    /// By itself, its connections closed or not.
    Itself {
        /// Whether it closes its connections.
        closes: bool,
    },
    /// By kill -9 at a call of the VFS, unless it ends by itself before.
    Call(vfs::End),
    /// As `REPLICATED_TEST_FAULT` says.
    Fault(String),
    /// By a power loss at a call of the VFS.
    PowerLoss(vfs::End, Loss, Own),
}

/// What became of a process.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The bucket had everything after the opening, and was compared.
    pub synced: bool,
    /// Why replication did not come that far.
    pub stopped: Option<String>,
    /// `PRAGMA replicated_status` after the opening.
    pub status: String,
    /// It ended by itself: how many calls of the VFS there were, and how often it came to each fail point.
    pub ended: Option<Value>,
    /// SQLite found the database damaged, where a crash may do that.
    pub damaged: bool,
    /// It was killed.
    pub killed: bool,
    /// It failed, with what it said.
    pub failed: Option<String>,
}

/// See the module.
pub struct Life {
    folder: Option<tempfile::TempDir>,
    name: String,
    seed: u64,
    random: fastrand::Rng,
    round: u32,
    /// Where the database is replicated to.
    pub bucket: Bucket,
    /// How it is used.
    pub style: Style,
    /// Parameters of its URI.
    pub options: Vec<(String, String)>,
    /// So many things a process does.
    pub steps: u32,
    /// Processes begin with a flush, after which the bucket is compared with the database.
    pub flushes_first: bool,
    /// How often the power failed: since then the bucket may have what the file lost.
    pub power_losses: u32,
    reproduction: String,
    /// What was noted before the last process.
    noted_before: Notes,
}

/// A number from the environment.
#[must_use]
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

impl Life {
    /// A database that does not exist yet.
    ///
    /// # Panics
    /// Where there is no room for it.
    #[must_use]
    pub fn new(name: &str, seed: u64, style: Style, bucket: impl FnOnce(&Path) -> Bucket) -> Self {
        // In memory where there is such a place: what a kill or our own power loss leaves does not depend on the disk.
        let memory = Path::new("/dev/shm");
        let mut named = tempfile::Builder::new();
        named.prefix("crash-life-");
        let folder = if memory.is_dir() { named.tempdir_in(memory) } else { named.tempdir() }.expect("a folder");
        let bucket = bucket(folder.path());
        let of_name = name.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let options = [("sync_interval", "10ms"), ("burst", "50"), ("close_timeout", "2s")];
        Self {
            folder: Some(folder),
            name: name.to_owned(),
            seed,
            random: fastrand::Rng::with_seed(seed ^ of_name),
            round: 0,
            bucket,
            style,
            options: options.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            steps: 60,
            flushes_first: true,
            power_losses: 0,
            reproduction: String::new(),
            noted_before: Notes::default(),
        }
    }

    /// A thread checkpoints once the WAL has so many frames.
    pub fn checkpoints_ahead(&mut self, at_frames: u32) {
        self.options.push(("checkpoint".to_owned(), "background".to_owned()));
        self.bucket.env.push(("REPLICATED_TEST_AHEAD_FRAMES".to_owned(), at_frames.to_string()));
    }

    /// Chances, from the seed.
    pub fn random(&mut self) -> &mut fastrand::Rng {
        &mut self.random
    }

    /// A file of this life.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().expect("it is there until the end").path().join(name)
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.path("app.db")
    }

    /// The notes so far.
    #[must_use]
    pub fn notes(&self) -> Notes {
        Notes::read(&self.path("record"))
    }

    /// The extension's log lines so far that contain a text.
    #[must_use]
    pub fn logged(&self, text: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// Why the full state was sent, each time.
    #[must_use]
    pub fn full_states(&self) -> Vec<String> {
        self.logged("sending the full state")
    }

    fn session(&mut self, ending: &Ending) -> Session {
        let (end, power, closes) = match ending {
            Ending::Itself { closes } => (None, None, *closes),
            Ending::Call(end) => (Some(*end), None, self.random.bool()),
            Ending::Fault(_) => (None, None, self.random.bool()),
            Ending::PowerLoss(end, loss, own) => {
                (Some(*end), Some(Power { loss: *loss, own: *own, folder: self.path("power") }), self.random.bool())
            }
        };
        Session {
            database: self.database(),
            replica: self.bucket.url.clone(),
            options: self.options.iter().cloned().chain([("durability".to_owned(), self.style.durability.clone())]).collect(),
            style: self.style.clone(),
            seed: self.random.u64(..),
            steps: self.steps,
            script: Vec::new(),
            record: self.path("record"),
            log: self.path("log"),
            end,
            power,
            closes,
            flushes_first: self.flushes_first,
            may_fail: false,
        }
    }

    /// One process, and everything that must hold after it.
    ///
    /// # Panics
    /// Where something does not hold.
    pub fn round(&mut self, ending: &Ending) -> Outcome {
        let session = self.session(ending);
        self.round_of(&session, ending)
    }

    /// A process that runs this SQL and closes its connection; or the power fails then, and leaves what is said.
    ///
    /// # Panics
    /// Where that does not work.
    pub fn scripted(&mut self, script: &[&str], left: Option<(Loss, Own)>) {
        let never = vfs::End { call: u64::MAX, counted: vfs::Counted::All, after: false };
        let ending = left.map_or(Ending::Itself { closes: true }, |(loss, own)| Ending::PowerLoss(never, loss, own));
        let script = script.iter().map(|sql| (*sql).to_owned()).collect();
        let session = Session { script, flushes_first: false, ..self.session(&ending) };
        let outcome = self.round_of(&session, &ending);
        assert_eq!(outcome.killed, left.is_some(), "{outcome:?}");
    }

    fn round_of(&mut self, session: &Session, ending: &Ending) -> Outcome {
        self.noted_before = self.notes();
        let outcome = self.run(session, ending);
        if let Some(error) = &outcome.failed {
            self.fail(&format!("the process failed: {error}"));
        }
        if outcome.killed && session.power.is_some() {
            self.power_losses += 1;
            self.put_back();
        }
        self.round += 1;
        outcome
    }

    /// Has a session carried out.
    ///
    /// # Panics
    /// Where it cannot be started, hangs, or what it flushed is not the database.
    pub fn run(&mut self, session: &Session, ending: &Ending) -> Outcome {
        let json = serde_json::to_string(session).expect("a session can be written down");
        let mut env = self.bucket.env.clone();
        env.push(("REPLICATED_TEST_POWER".to_owned(), self.power_losses.to_string()));
        if let Ending::Fault(rules) = ending {
            env.push(("REPLICATED_TEST_FAULT".to_owned(), rules.clone()));
        }
        self.reproduction = format!("{ending:?}\n{json}");
        let mut command: Command = host::command(host::faulty_program("crash-host"), &env);
        let piped = command.arg(&json).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("the host starts");
        let (Some(mut to), Some(from), Some(mut errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            unreachable!("all are pipes")
        };
        let (told, lines) = channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                if told.send(line).is_err() {
                    break;
                }
            }
        });
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = std::io::Read::read_to_string(&mut errors, &mut text);
            text
        });
        let mut outcome = Outcome::default();
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    let said: Value = serde_json::from_str(&line).unwrap_or_default();
                    outcome.status = said["status"].as_str().map_or(outcome.status, str::to_owned);
                    if said["synced"].is_string() {
                        outcome.synced = true;
                        self.check_equal();
                    } else if let Some(why) = said["stopped"].as_str() {
                        outcome.stopped = Some(why.to_owned());
                    } else if said["damaged"].is_string() {
                        outcome.damaged = true;
                    } else {
                        outcome.ended = Some(said["ended"].clone());
                    }
                    // It may have been killed since.
                    let _ = to.write_all(b"go on\n");
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let _ = child.kill();
                    self.fail("the process hangs");
                }
            }
        }
        let status = child.wait().expect("the host ends");
        let _ = reader.join();
        let errors = errors.join().unwrap_or_default();
        outcome.killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
        if !outcome.killed && !status.success() {
            outcome.failed = Some(format!("{status}: {errors}"));
        }
        outcome
    }

    fn put_back(&self) {
        let folder = self.path("power");
        let fates = std::fs::read(folder.join("fates.json")).expect("the power loss was written down");
        let fates: Vec<(PathBuf, Fate)> = serde_json::from_slice(&fates).expect("as it was written");
        put_back(&fates).expect("files can be put back");
        std::fs::remove_dir_all(folder).expect("it is ours");
    }

    /// What the local files hold, as SQLite's recovery finds it.
    ///
    /// # Panics
    /// Where they are no sound database.
    #[must_use]
    pub fn local(&self) -> State {
        let folder = self.path("");
        state_of(&flattened(&self.database(), &folder)).unwrap_or_else(|error| self.fail(&error))
    }

    /// Whether a crash has cost SQLite the database, or a part of a transaction.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        let flat = try_flattened(&self.database(), &self.path(""));
        !flat.is_ok_and(|flat| state_of(&flat).is_ok_and(|state| self.notes().knows(state)))
    }

    /// What the bucket holds; `None` where it is empty.
    ///
    /// # Panics
    /// Where that is no sound database.
    #[must_use]
    pub fn remote(&self) -> Option<State> {
        if self.bucket.try_list().is_empty() {
            return None;
        }
        let restored = self.restored(Target::Latest);
        Some(state_of(&restored).unwrap_or_else(|error| self.fail(&error)))
    }

    fn restored(&self, target: Target) -> PathBuf {
        let restored = self.path("restored.db");
        if let Err(error) = self.bucket.try_restore(target, &restored) {
            self.fail(&format!("restore of {target:?}: {error}"));
        }
        restored
    }

    /// What the bucket has was committed.
    ///
    /// # Panics
    /// Where that is not so.
    pub fn check_bucket(&self) -> Option<State> {
        let remote = self.remote()?;
        if !self.notes().knows(remote) {
            self.fail(&format!("the bucket is in a state that was never committed: {remote:?}"));
        }
        Some(remote)
    }

    /// After a kill: what the bucket has was committed, and the file has it, too.
    ///
    /// # Panics
    /// Where that is not so.
    pub fn check_prefix(&self) {
        let (notes, local) = (self.notes(), self.local());
        if !notes.knows(local) {
            self.fail(&format!("the file is in a state that was never committed: {local:?}"));
        }
        let Some(remote) = self.check_bucket() else { return };
        if self.power_losses == 0 && (remote.number > local.number || remote.number == local.number && remote.sum != local.sum) {
            self.fail(&format!("the bucket has {remote:?}, the file only {local:?}"));
        }
    }

    /// After a process with `durability=remote`, on a fresh machine: every commit that returned is there.
    ///
    /// # Panics
    /// Where that is not so.
    pub fn check_acknowledged(&self) {
        let notes = self.notes();
        let Some(acknowledged) = notes.last_done.filter(|_| notes.done.len() > self.noted_before.done.len()) else { return };
        let remote = self.check_bucket();
        // One more may have been committed, and the process have died before it heard of it.
        if remote != Some(acknowledged) && remote != notes.last_begun {
            self.fail(&format!("{acknowledged:?} was acknowledged, and the bucket has {remote:?}"));
        }
    }

    /// After a flush: the bucket restores to the database, page by page.
    ///
    /// # Panics
    /// Where it does not.
    pub fn check_equal(&self) {
        let folder = self.path("");
        let restored = self.restored(Target::Latest);
        let same = match try_flattened(&self.database(), &folder) {
            Ok(flat) => same_but_for_free_pages(&flat, &restored),
            // It can be read so far that it was sent, and no further.
            Err(_) if self.style.may_be_damaged && state_of(&restored).is_err() => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(difference) = same {
            self.fail(&difference);
        }
    }

    /// Each TXID of the bucket restores to a state that was committed, none of them older than the one before, unless the power failed.
    ///
    /// # Panics
    /// Where that is not so.
    pub fn check_history(&self) {
        let notes = self.notes();
        let mut before = State { number: 0, sum: 0 };
        let replay = self.bucket.replay(&self.path("replayed.db"), |txid, file| {
            let state = state_of(file).unwrap_or_else(|error| self.fail(&format!("TXID {txid}: {error}")));
            if !notes.knows(state) {
                self.fail(&format!("TXID {txid} is a state that was never committed: {state:?}"));
            }
            if self.power_losses == 0 && state.number < before.number {
                self.fail(&format!("TXID {txid} is {state:?}, the one before it was {before:?}"));
            }
            before = state;
        });
        if let Err(error) = replay {
            self.fail(&error);
        }
    }

    /// The last process: everything is in the bucket after it, which is then examined from its beginning.
    ///
    /// # Panics
    /// Where something does not hold.
    pub fn end(&mut self) -> Outcome {
        (self.steps, self.flushes_first) = (self.steps.min(20), true);
        let outcome = self.round(&Ending::Itself { closes: true });
        if outcome.killed || !outcome.synced {
            self.fail(&format!("the last process did not end as it should: {outcome:?}"));
        }
        self.check_prefix();
        self.check_history();
        outcome
    }

    /// A last process on a database that SQLite has lost. What SQLite still reads of it is sent as it is. Where it reads nothing, nothing is sent, the
    /// status says so, and what the bucket has, put in its place, is gone on from.
    ///
    /// # Panics
    /// Where that is not so.
    pub fn end_damaged(&mut self) {
        let outcome = self.round(&Ending::Itself { closes: true });
        match &outcome.stopped {
            Some(why) if why.contains("the database file is damaged") => {
                if try_flattened(&self.database(), &self.path("")).is_ok() {
                    self.fail(&format!("SQLite reads what is not sent: {why}"));
                }
                if self.remote().is_some() {
                    self.repair();
                }
            }
            Some(why) if why.contains("diverged") => {}
            Some(why) => self.fail(&format!("what is left was not sent: {why}")),
            None if !outcome.synced => self.fail(&format!("what is left was not sent: {outcome:?}")),
            None => {}
        }
    }

    fn repair(&mut self) {
        for suffix in ["-wal", "-shm", "-journal"] {
            // It may not be there.
            let _ = std::fs::remove_file(format!("{}{suffix}", self.database().display()));
        }
        std::fs::remove_file(self.database()).expect("it is there, and ours");
        if let Err(error) = self.bucket.try_restore(Target::Latest, &self.database()) {
            self.fail(&format!("what the bucket has cannot take the place of what is damaged: {error}"));
        }
        let outcome = self.round(&Ending::Itself { closes: true });
        if !outcome.synced {
            self.fail(&format!("what was put in place of a damaged file is not gone on from: {outcome:?}"));
        }
        self.check_prefix();
    }

    /// Somebody without the extension writes to the database and restarts its WAL: replication has to send the full state. The rows stay as they are.
    ///
    /// # Panics
    /// Where that does not work.
    pub fn disturb(&mut self) {
        let version = self.random.i32(1..);
        let disturbed = rusqlite::Connection::open(self.database()).and_then(|plain| {
            plain.execute_batch(&format!("PRAGMA user_version = {version}"))?;
            plain.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            // A new generation of the WAL, by a connection that knows the one before.
            plain.execute_batch(&format!("PRAGMA user_version = {}", version - 1))
        });
        disturbed.unwrap_or_else(|error| self.fail(&error.to_string()));
    }

    /// The user declares the file the truth.
    ///
    /// # Panics
    /// Where that does not work.
    pub fn adopt(&self) {
        let newest = self.bucket.list().iter().map(|listed| listed.name.max_txid).max();
        let newest = newest.unwrap_or_else(|| self.fail("there is nothing in the bucket to be declared outdated"));
        replicated::adopt(&self.database(), &self.bucket.url, newest).unwrap_or_else(|error| self.fail(&error.to_string()));
    }

    /// Fails with everything that is needed to see why.
    ///
    /// # Panics
    /// Always.
    pub fn fail(&self, why: &str) -> ! {
        panic!(
            "{}, round {}, REPLICATED_TEST_SEED={}: {why}\nthe process: {}\nwhat is left: {}",
            self.name,
            self.round,
            self.seed,
            self.reproduction,
            self.path("").display()
        )
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // What is left is what a failure is understood by.
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            let _ = folder.keep();
        }
    }
}
