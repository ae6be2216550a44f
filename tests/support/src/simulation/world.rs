//! Hosts with processes, a store, a user: what steps do to them, and what must hold after each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use replicated::restore::Target;
use replicated::store::Level;
use replicated::types::Txid;

use super::model::{Model, Promise};
use super::place::{Place, Stores};
use super::process::Process;
use super::step::{AT_ONCE, Act, FOREIGNER, HOSTS, PROCESSES, Step, Style, Weather};
use super::watch::{Watch, state_of};
use super::wire::{Answer, Deed, Line, Op, Outcome, Problem, Seen, Size};
use crate::bucket::try_flattened;
use crate::host;
use crate::sqlite::{integrity_check, same_but_for_free_pages};

/// The locks of others are in the way: `SQLITE_BUSY`, `SQLITE_LOCKED`, and their kinds.
const IN_THE_WAY: [i32; 2] = [5, 6];

/// A process and what is known of it.
struct Actor {
    process: Process,
    is_foreign: bool,
    is_open: bool,
    is_stopped: bool,
    /// The transaction that it has begun, and how many groups of it were written.
    within: Option<(u64, u32)>,
    /// The transaction that it was asked for and has not answered.
    asked: Option<u64>,
    /// What its other connection reads.
    holds: Option<Seen>,
    has_twin: bool,
}

/// A host.
struct Site {
    dir: PathBuf,
    actors: [Option<Actor>; PROCESSES + 1],
    /// The state of the database.
    head: u64,
    /// There is a twin, and it has been told everything.
    twin_is_right: bool,
    /// What this host has may rightly be held for another history: the user has put something in its place, or somebody has written without the extension.
    may_be_refused: bool,
    /// What the user has kept.
    kept: Option<u64>,
    /// An older copy was put in place that the extension has not seen.
    is_unseen: bool,
    /// Transactions whose processes were killed in the midst of them, and of which nobody has read since whether they were committed.
    unresolved: Vec<u64>,
}

/// See the module.
pub struct World {
    dir: PathBuf,
    style: Style,
    /// The store.
    pub place: Place,
    sites: Vec<Site>,
    /// What was committed.
    pub model: Model,
    /// What is in the bucket.
    pub watch: Watch,
    /// What happened, by name.
    pub counts: BTreeMap<&'static str, u64>,
    /// What was asked last had the same answer from SQLite alone.
    twin_agreed: bool,
}

/// How the text of a failure begins that is SQLite's own: its copy without the extension failed in the same way.
///
/// Known is one: a connection that leaves WAL mode after another process has committed and closed goes on with what it had read before, and writes over that commit.
pub const OF_SQLITE: &str = "SQLite by itself: ";

/// What a step came to: whether it did anything, or what does not hold.
pub type Done = Result<bool, String>;

impl World {
    /// An empty one in an empty folder.
    ///
    /// # Panics
    /// Where the folder cannot be used.
    #[must_use]
    pub fn new(dir: &Path, seed: u64, style: Style, stores: Stores<'_>) -> Self {
        let site = |number: usize| {
            let dir = dir.join(format!("host-{number}"));
            std::fs::create_dir_all(&dir).expect("a folder can be made");
            Site {
                dir,
                actors: [const { None }; PROCESSES + 1],
                head: 0,
                twin_is_right: true,
                may_be_refused: false,
                kept: None,
                is_unseen: false,
                unresolved: Vec::new(),
            }
        };
        let place = Place::new(stores, dir, seed);
        let sites = (0..HOSTS).map(site).collect();
        Self {
            dir: dir.to_owned(),
            style,
            place,
            sites,
            model: Model::new(),
            watch: Watch::new(dir),
            counts: BTreeMap::new(),
            twin_agreed: false,
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Does a step.
    ///
    /// # Errors
    /// What does not hold.
    pub fn step(&mut self, step: &Step) -> Done {
        match step {
            Step::Process { host, process, act } => self.act(*host, *process, act),
            Step::Turns { host, times } => {
                for _ in 0..*times {
                    for process in 0..=PROCESSES {
                        if self.is_ready(*host, process) {
                            self.act(*host, process, &Act::Transaction(Size::Small))?;
                        }
                    }
                }
                Ok(true)
            }
            Step::Weather(weather) => {
                self.place.set(*weather);
                self.count("weather");
                Ok(true)
            }
            Step::NewHost(host) => self.new_host(*host),
            Step::KeepCopy(host) => self.keep_copy(*host),
            Step::PutBack(host, same_file) => self.put_back(*host, *same_file),
            Step::Restore(host, thousandths) => self.restore(*host, *thousandths),
            Step::Adopt(host) => self.adopt(*host),
            Step::Look => self.look(false),
            Step::RestoreAside(thousandths) => self.restore_aside(*thousandths),
            Step::Pass(ms) => {
                std::thread::sleep(std::time::Duration::from_millis(*ms));
                Ok(true)
            }
        }
    }

    /// Looks at the bucket.
    ///
    /// # Errors
    /// What does not hold.
    pub fn look(&mut self, thoroughly: bool) -> Done {
        self.count("look");
        let asked = |site: &Site| {
            site.actors.iter().flatten().filter_map(|actor| actor.asked).chain(site.unresolved.iter().copied()).collect::<Vec<_>>()
        };
        self.model.doubtful = self.sites.iter().flat_map(asked).collect();
        self.watch.look(&self.place.direct, &self.model, thoroughly).map(|()| true)
    }

    fn actor(&mut self, host: usize, process: usize) -> Result<&mut Actor, String> {
        self.sites[host].actors[process].as_mut().ok_or_else(|| format!("process {process} of host {host} does not run"))
    }

    fn is_open(&self, host: usize, process: usize) -> bool {
        self.sites[host].actors[process].as_ref().is_some_and(|actor| actor.is_open)
    }

    fn nobody_has_it_open(&self, host: usize) -> bool {
        (0..=PROCESSES).all(|process| !self.is_open(host, process))
    }

    /// A process that is there, and neither stopped nor waited for.
    fn is_ready(&self, host: usize, process: usize) -> bool {
        self.sites[host].actors[process].as_ref().is_some_and(|actor| actor.is_open && !actor.is_stopped)
    }

    fn somebody_is_stopped(&self, host: usize) -> bool {
        self.sites[host].actors.iter().flatten().any(|actor| actor.is_stopped)
    }

    /// A full state does not begin before such a transaction has ended: there is no moment of which the file could tell.
    fn is_written_outside_the_wal(&self, host: usize) -> bool {
        const WRITE_VERSION_OFFSET: usize = 18;
        const WAL: u8 = 2;
        let is_wal = || std::fs::read(self.database(host)).is_ok_and(|file| file.get(WRITE_VERSION_OFFSET) == Some(&WAL));
        self.sites[host].actors.iter().flatten().any(|actor| actor.within.is_some()) && !is_wal()
    }

    fn database(&self, host: usize) -> PathBuf {
        self.sites[host].dir.join("app.db")
    }

    /// An empty file without anything beside it is none, for SQLite and for an open that restores what is missing.
    fn has_database(&self, host: usize) -> bool {
        let database = self.database(host);
        let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", database.display())).exists();
        std::fs::metadata(&database).is_ok_and(|file| file.len() > 0 || beside("-wal") || beside("-journal"))
    }

    fn twin(&self, host: usize) -> PathBuf {
        self.sites[host].dir.join("twin.db")
    }

    fn ask(&mut self, host: usize, process: usize, op: &Op) -> Result<Answer, String> {
        let actor = self.actor(host, process)?;
        let told = |error| format!("host {host}, process {process}, {op:?}: {error}");
        actor.process.send(op).map_err(told)?;
        let answer = actor.process.answer().map_err(told)?;
        self.twin_agreed = answer.twin.is_some() && self.sites[host].twin_is_right;
        if let Some(twin) = &answer.twin
            && !matches!(op, Op::ForgetTwin)
        {
            // How far a reader is in the way of a checkpoint depends on whether the WAL was begun anew since.
            let is_read = matches!(op, Op::Checkpoint(_)) && self.sites[host].actors.iter().flatten().any(|actor| actor.holds.is_some());
            // One that was stopped with what is captured keeps the others from beginning the WAL anew: after 10 s that is told as busy.
            let is_kept = matches!(op, Op::Checkpoint(_)) && self.somebody_is_stopped(host);
            // Whoever is stopped holds locks of SQLite's, and what our processes share.
            let is_refused = matches!(op, Op::Open { .. })
                && matches!((&answer.real, twin), (Outcome::Failed(_), Outcome::Failed(_)))
                && self.somebody_is_stopped(host);
            let agreed = if is_read || is_kept || is_refused { Ok(()) } else { agree(op, &answer.real, twin) };
            agreed.map_err(|why| {
                // What is damaged without us, too, differs by what each connection has in its cache.
                let is_damaged = integrity_check(&self.twin(host)).is_err_and(|why| why.contains("missing from index"));
                let whose = if is_damaged { OF_SQLITE } else { "" };
                format!("{whose}I4: host {host}, process {process}, {op:?}: {why}")
            })?;
        }
        Ok(answer)
    }

    /// From here on nothing is known of the twin, until nobody has the database open.
    fn forget_twin(&mut self, host: usize) -> Result<(), String> {
        self.sites[host].twin_is_right = false;
        for process in 0..=PROCESSES {
            if self.is_ready(host, process) && self.actor(host, process)?.has_twin {
                self.ask(host, process, &Op::ForgetTwin)?;
                self.actor(host, process)?.has_twin = false;
            }
        }
        Ok(())
    }

    fn act(&mut self, host: usize, process: usize, act: &Act) -> Done {
        match act {
            Act::Open => return self.open(host, process),
            Act::Kill => return self.kill(host, process),
            Act::GoOn => return self.go_on(host, process),
            _ => {}
        }
        // Whoever is there does it instead.
        let others = (process..process + PROCESSES).map(|other| other % PROCESSES).find(|other| self.is_ready(host, *other));
        let process = match others {
            Some(other) if process != FOREIGNER => other,
            _ if process == FOREIGNER && self.is_ready(host, FOREIGNER) => FOREIGNER,
            // Nobody: then somebody comes.
            None if process != FOREIGNER && matches!(act, Act::Transaction(_)) => {
                // A restore from a store that is not there takes its time to fail.
                let can_be_had = self.has_database(host) || self.place.weather == Weather::Fine;
                return if can_be_had { self.open(host, process) } else { Ok(false) };
            }
            _ => return Ok(false),
        };
        let actor = self.actor(host, process)?;
        let (within, is_foreign, holds) = (actor.within, actor.is_foreign, actor.holds);
        match (act, within) {
            (Act::Close, _) => self.close(host, process, false),
            (Act::Quit, _) => self.close(host, process, true),
            (Act::Transaction(size), None) => self.transaction(host, process, *size, false, false),
            (Act::Undone(size), None) => self.transaction(host, process, *size, true, false),
            (Act::Waits(size), None) if !is_foreign => self.transaction(host, process, *size, false, true),
            (Act::Begin, None) => {
                let commit = self.model.begin(is_foreign);
                let answer = self.ask(host, process, &Op::Begin { commit })?;
                match answer.real {
                    Outcome::MadeFrom(line) => {
                        self.learn_of_line(line)?;
                        self.is_head(host, line[0])?;
                        self.actor(host, process)?.within = Some((commit, 0));
                        Ok(true)
                    }
                    other => self.was_in_the_way(host, process, &other),
                }
            }
            (Act::Write(size), Some((commit, part))) => {
                let deed = Deed { commit, part, size: *size };
                let answer = self.ask(host, process, &Op::Write(deed))?;
                match answer.real {
                    Outcome::Done => {
                        self.model.writes(deed);
                        self.actor(host, process)?.within = Some((commit, part + 1));
                        Ok(true)
                    }
                    // A spill where others read: a part of it may have been written.
                    other => {
                        self.was_in_the_way(host, process, &other)?;
                        self.ask(host, process, &Op::Rollback)?;
                        self.actor(host, process)?.within = None;
                        Ok(true)
                    }
                }
            }
            (Act::Commit, Some((commit, _))) => {
                let answer = self.ask(host, process, &Op::Commit)?;
                match answer.real {
                    Outcome::MadeFrom(line) => {
                        self.actor(host, process)?.within = None;
                        self.committed(host, process, commit, line)
                    }
                    other => self.was_in_the_way(host, process, &other),
                }
            }
            (Act::Rollback, Some(_)) => {
                let answer = self.ask(host, process, &Op::Rollback)?;
                self.actor(host, process)?.within = None;
                if answer.real == Outcome::Done { Ok(true) } else { Err(format!("a rollback failed: {:?}", answer.real)) }
            }
            (Act::Checkpoint(kind), _) => {
                if is_foreign {
                    // Not while a full state may be on its way: guarantees.md says so.
                    if self.extension_is_at_work(host) {
                        return Ok(false);
                    }
                    self.sites[host].may_be_refused = true;
                }
                self.plain(host, process, &Op::Checkpoint((*kind).to_owned()), "checkpoint")
            }
            (Act::Journal(mode), None) => {
                if is_foreign && self.extension_is_at_work(host) {
                    return Ok(false);
                }
                self.plain(host, process, &Op::Journal((*mode).to_owned()), "journal mode")
            }
            (Act::Vacuum, None) => {
                if is_foreign && self.extension_is_at_work(host) {
                    return Ok(false);
                }
                self.plain(host, process, &Op::Vacuum, "vacuum")
            }
            (Act::Read, None) => {
                let answer = self.ask(host, process, &Op::Read)?;
                self.reads(host, process, &answer.real)?;
                Ok(true)
            }
            (Act::Hold, _) if holds.is_none() => {
                let answer = self.ask(host, process, &Op::Hold)?;
                if let Some(seen) = self.reads(host, process, &answer.real)? {
                    self.actor(host, process)?.holds = Some(seen);
                }
                Ok(true)
            }
            (Act::Release, _) if holds.is_some() => {
                let answer = self.ask(host, process, &Op::Release)?;
                self.actor(host, process)?.holds = None;
                match (answer.real, holds) {
                    (Outcome::State(seen), Some(held)) if seen == held => Ok(true),
                    (other, held) => Err(format!("a read transaction began with {held:?} and ended with {other:?}")),
                }
            }
            (Act::Sync, None) if !is_foreign => self.sync(host, process).map(|_| true),
            (Act::WaitFor, None) if !is_foreign => self.wait_for(host, process),
            (Act::Locking(mode), None) => self.plain(host, process, &Op::Locking((*mode).to_owned()), "locking mode"),
            (Act::KillWithin(size, us), None) => self.kill_within(host, process, *size, *us),
            (Act::Stop, _) => {
                self.actor(host, process)?.process.stop()?;
                self.actor(host, process)?.is_stopped = true;
                self.count("stop");
                Ok(true)
            }
            (Act::StopWithin(size, us), None) => self.stop_within(host, process, *size, *us),
            _ => Ok(false),
        }
    }

    fn extension_is_at_work(&self, host: usize) -> bool {
        (0..PROCESSES).any(|process| self.is_open(host, process))
    }

    /// Pragmas and the like, of which SQLite may say that others are in the way.
    fn plain(&mut self, host: usize, process: usize, op: &Op, what: &'static str) -> Done {
        let answer = self.ask(host, process, op)?;
        self.count(what);
        match answer.real {
            Outcome::Failed(_) => self.was_in_the_way(host, process, &answer.real),
            _ => Ok(true),
        }
    }

    /// An error is one that SQLite gives where others hold locks.
    fn was_in_the_way(&mut self, host: usize, process: usize, outcome: &Outcome) -> Done {
        match outcome {
            Outcome::Failed(Problem { code, .. }) if IN_THE_WAY.contains(&(code & 0xff)) => {
                self.count("busy");
                Ok(true)
            }
            // `PRAGMA journal_mode` and VACUUM say so without a code of their own, where this very process is in the way.
            Outcome::Failed(Problem { code: 1, .. }) if self.actor(host, process)?.has_twin => Ok(true),
            Outcome::Failed(Problem { code: 1, text })
                if text.contains("within a transaction") || text.contains("SQL statements in progress") =>
            {
                Ok(true)
            }
            other => Err(format!("host {host}, process {process}: {other:?}")),
        }
    }

    /// A state that was found somewhere, which nobody may know of yet, nor of those before it: who was stopped or killed after the commit could not say so.
    fn learn(&mut self, seen: Seen) -> Result<(), String> {
        self.learn_of_line(seen.line)?;
        self.learn_of(seen.id)
    }

    fn learn_of_line(&mut self, line: Line) -> Result<(), String> {
        line.into_iter().rev().try_for_each(|id| self.learn_of(id))
    }

    fn learn_of(&mut self, id: u64) -> Result<(), String> {
        let is_of = |site: &Site| site.unresolved.contains(&id) || site.actors.iter().flatten().any(|actor| actor.asked == Some(id));
        match (0..self.sites.len()).find(|host| !self.model.knows(id) && self.sites.get(*host).is_some_and(is_of)) {
            Some(host) => self.is_head(host, id),
            None => Ok(()),
        }
    }

    fn is_head(&mut self, host: usize, id: u64) -> Result<(), String> {
        let head = self.sites[host].head;
        if !self.model.knows(id) && self.sites[host].actors.iter().flatten().any(|actor| actor.asked == Some(id))
            || !self.model.knows(id) && self.sites[host].unresolved.contains(&id)
        {
            // It was stopped after it had committed.
            self.model.commit(id, head)?;
            self.sites[host].head = id;
            return Ok(());
        }
        let whose = if self.twin_agreed && self.model.knows(id) { OF_SQLITE } else { "" };
        if id == head { Ok(()) } else { Err(format!("{whose}host {host}: the database is at state {id}, and {head} was committed last")) }
    }

    fn reads(&mut self, host: usize, process: usize, outcome: &Outcome) -> Result<Option<Seen>, String> {
        match outcome {
            Outcome::State(seen) => {
                self.learn_of_line(seen.line)?;
                self.is_head(host, seen.id)?;
                self.model.check(*seen).map_err(|error| format!("host {host}: {error}"))?;
                self.count("read");
                Ok(Some(*seen))
            }
            other => self.was_in_the_way(host, process, other).map(|_| None),
        }
    }

    fn committed(&mut self, host: usize, process: usize, commit: u64, line: Line) -> Done {
        self.learn_of_line(line)?;
        self.is_head(host, line[0])?;
        self.model.commit(commit, line[0])?;
        self.sites[host].head = commit;
        let is_foreign = self.actor(host, process)?.is_foreign;
        self.count(if is_foreign { "foreign commit" } else { "commit" });
        Ok(true)
    }

    fn deeds(&mut self, host: usize, process: usize, size: Size) -> Result<(u64, Vec<Deed>), String> {
        let is_foreign = self.actor(host, process)?.is_foreign;
        let commit = self.model.begin(is_foreign);
        let deed = Deed { commit, part: 0, size };
        self.model.writes(deed);
        Ok((commit, vec![deed]))
    }

    fn transaction(&mut self, host: usize, process: usize, size: Size, rolls_back: bool, remote: bool) -> Done {
        let (commit, deeds) = self.deeds(host, process, size)?;
        let answer = self.ask(host, process, &Op::Transaction { deeds, rolls_back, remote })?;
        match answer.real {
            Outcome::MadeFrom(_) if rolls_back => Ok(true),
            Outcome::MadeFrom(line) => {
                self.committed(host, process, commit, line)?;
                if remote {
                    self.count("remote commit");
                    let newest = self.place.direct.try_list().iter().map(|listed| listed.name.max_txid).max();
                    let txid = newest.ok_or_else(|| format!("I2: state {commit} was acknowledged, and the bucket is empty"))?;
                    self.model.promises.push(Promise { id: commit, txid });
                }
                Ok(true)
            }
            // Committed, and not known to be in the bucket.
            Outcome::Failed(Problem { code, .. }) if remote && code == replicated::NOT_ACKNOWLEDGED => {
                self.count("not acknowledged");
                // Another one may have been committed before it, of which nobody has heard.
                let line = match self.ask(host, process, &Op::Read)?.real {
                    Outcome::State(seen) if seen.id == commit => seen.line,
                    _ => [self.sites[host].head; PROCESSES + 2],
                };
                self.committed(host, process, commit, line)
            }
            other => self.was_in_the_way(host, process, &other),
        }
    }

    fn options(&self, host: usize) -> String {
        let options = [
            ("restore", "if-missing"),
            ("sync_interval", "10ms"),
            ("burst", "100"),
            ("close_timeout", "200ms"),
            ("sync_timeout", "300ms"),
            ("ack_timeout", "400ms"),
            ("connect_timeout", "400ms"),
            ("request_timeout", "1s"),
        ];
        host::replicated(&self.database(host), &self.place.outside.url, &options)
    }

    fn open(&mut self, host: usize, process: usize) -> Done {
        let is_foreign = process == FOREIGNER;
        if self.sites[host].actors[process].as_ref().is_some_and(|actor| actor.is_open || actor.is_stopped) {
            return Ok(false);
        }
        let database = self.database(host);
        // A new database is made by ours.
        // And what a foreign process commits to an older copy makes it look like a newer file, unless the extension has seen it before.
        if is_foreign && (!self.has_database(host) || self.sites[host].is_unseen) {
            return Ok(false);
        }
        if !is_foreign && (0..PROCESSES).filter(|other| self.is_open(host, *other)).count() >= AT_ONCE {
            return Ok(false);
        }
        let is_first = self.nobody_has_it_open(host);
        let is_missing = !self.has_database(host);
        if is_first {
            self.make_twin(host)?;
        }
        if self.sites[host].actors[process].is_none() {
            let log = self.sites[host].dir.join("log");
            let process_started = Process::start(&self.place.outside.env, &log).map_err(|error| error.to_string())?;
            self.sites[host].actors[process] = Some(Actor {
                process: process_started,
                is_foreign,
                is_open: false,
                is_stopped: false,
                within: None,
                asked: None,
                holds: None,
                has_twin: false,
            });
        }
        let has_twin = self.sites[host].twin_is_right;
        let uri = if is_foreign { host::uri(&database, &[]) } else { self.options(host) };
        let twin = has_twin.then(|| host::uri(&self.twin(host), &[]));
        let (pragmas, page_bytes) = (self.style.pragmas.clone(), self.style.page_bytes);
        let answer = self.ask(host, process, &Op::Open { uri, twin, pragmas, page_bytes })?;
        if let Outcome::Failed(problem) = &answer.real {
            if is_missing && self.place.weather != Weather::Fine && problem.code & 0xff == 14 {
                // There is no database, and the bucket cannot be asked for it.
                self.count("open refused");
            } else if problem.code & 0xff == 14 && problem.text.contains("unable to open") && self.somebody_is_stopped(host) {
                // It holds what the processes share. Each open would wait for it in vain, for seconds: whoever meets that has it go on.
                self.count("open refused");
                self.sites[host].actors[process] = None;
                for other in 0..=PROCESSES {
                    self.go_on(host, other)?;
                }
            } else {
                self.was_in_the_way(host, process, &answer.real)?;
            }
            self.sites[host].actors[process] = None;
            return Ok(true);
        }
        let actor = self.actor(host, process)?;
        (actor.is_open, actor.has_twin) = (true, has_twin);
        if is_missing && let Outcome::State(seen) = answer.real {
            // What the bucket had, or nothing.
            self.learn(seen)?;
            self.model.check(seen)?;
            self.sites[host].head = seen.id;
            self.count(if seen.id > 0 { "restored at open" } else { "new database" });
            if seen.id > 0 {
                self.forget_twin(host)?;
            }
        }
        self.reads(host, process, &answer.real)?;
        self.count(if is_foreign { "foreign open" } else { "open" });
        if is_foreign {
            self.sites[host].may_be_refused = true;
        }
        Ok(true)
    }

    /// The twin is what the database is, while nobody has it open.
    fn make_twin(&mut self, host: usize) -> Result<(), String> {
        let (database, twin) = (self.database(host), self.twin(host));
        let beside = |path: &Path, suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
        if !self.has_database(host) {
            remove_all(&twin)?;
            // What the bucket has is put there by the open.
            self.sites[host].twin_is_right = self.place.weather == Weather::Fine && self.place.direct.try_list().is_empty();
            return Ok(());
        }
        if self.sites[host].twin_is_right {
            return Ok(());
        }
        remove_all(&twin)?;
        for suffix in ["", "-wal", "-journal"] {
            if beside(&database, suffix).exists() {
                std::fs::copy(beside(&database, suffix), beside(&twin, suffix)).map_err(|error| error.to_string())?;
            }
        }
        self.sites[host].twin_is_right = true;
        self.count("twin made");
        Ok(())
    }

    fn close(&mut self, host: usize, process: usize, quits: bool) -> Done {
        let answer = self.ask(host, process, &Op::Close)?;
        let is_foreign = self.actor(host, process)?.is_foreign;
        if answer.real != Outcome::Done {
            return Err(format!("host {host}, process {process}: close: {:?}", answer.real));
        }
        self.sites[host].is_unseen &= is_foreign;
        let actor = self.actor(host, process)?;
        (actor.is_open, actor.within, actor.holds, actor.has_twin) = (false, None, None, false);
        if quits {
            // Its input ends.
            self.sites[host].actors[process] = None;
        }
        if is_foreign && self.nobody_has_it_open(host) {
            // The last one to close, and it has done what SQLite does then.
            self.sites[host].may_be_refused = true;
        }
        self.count("close");
        Ok(true)
    }

    /// What the files of a host hold, as recovery finds it, without touching them.
    fn files_hold(&mut self, host: usize) -> Result<Seen, String> {
        let database = self.database(host);
        if !database.exists() {
            return Ok(Seen::default());
        }
        let flat = try_flattened(&database, &self.dir).map_err(|error| format!("host {host}: the database after a kill: {error}"))?;
        state_of(&flat).map_err(|error| format!("host {host}: the database after a kill: {error}"))
    }

    /// A transaction was asked for and its answer is not known: the files say whether it was committed.
    fn resolve(&mut self, host: usize, asked: Option<u64>) -> Result<(), String> {
        self.sites[host].unresolved.extend(asked);
        // Where somebody has it open there is no recovery: frames that the WAL-index does not tell of count for nothing.
        let reader = (0..=PROCESSES).find(|process| {
            self.is_ready(host, *process) && self.sites[host].actors[*process].as_ref().is_some_and(|actor| actor.within.is_none())
        });
        let told = match reader {
            Some(process) => Some(self.ask(host, process, &Op::Read)?.real),
            None => None,
        };
        let seen = match told {
            Some(Outcome::State(seen)) => seen,
            // Locked, or somebody is in the midst of a transaction or stopped: the next who reads says it.
            _ if !self.nobody_has_it_open(host) => return Ok(()),
            _ => self.files_hold(host)?,
        };
        self.learn(seen)?;
        self.sites[host].unresolved.clear();
        self.is_head(host, seen.id)?;
        self.model.check(seen).map_err(|error| format!("host {host}: {error}"))
    }

    fn kill(&mut self, host: usize, process: usize) -> Done {
        let Some(actor) = self.sites[host].actors[process].take() else { return Ok(false) };
        let asked = actor.asked;
        // What it had begun with its twin may be half done.
        let was_within = actor.asked.is_some();
        actor.process.kill();
        if was_within {
            self.forget_twin(host)?;
        }
        self.count("kill");
        self.resolve(host, asked)?;
        Ok(true)
    }

    fn kill_within(&mut self, host: usize, process: usize, size: Size, us: u64) -> Done {
        self.begin_to(host, process, size)?;
        pause(us);
        self.count("kill within");
        self.kill(host, process)
    }

    fn begin_to(&mut self, host: usize, process: usize, size: Size) -> Result<u64, String> {
        let (commit, deeds) = self.deeds(host, process, size)?;
        let op = Op::Transaction { deeds, rolls_back: false, remote: false };
        let actor = self.actor(host, process)?;
        actor.process.send(&op)?;
        actor.asked = Some(commit);
        Ok(commit)
    }

    fn stop_within(&mut self, host: usize, process: usize, size: Size, us: u64) -> Done {
        self.begin_to(host, process, size)?;
        pause(us);
        let actor = self.actor(host, process)?;
        actor.process.stop()?;
        actor.is_stopped = true;
        self.count("stop within");
        // It may be between the two. Whether it was committed is seen by the next who reads, or when it goes on.
        self.forget_twin(host)?;
        Ok(true)
    }

    fn go_on(&mut self, host: usize, process: usize) -> Done {
        if !self.sites[host].actors[process].as_ref().is_some_and(|actor| actor.is_stopped) {
            return Ok(false);
        }
        let twin_is_right = self.sites[host].twin_is_right;
        let actor = self.actor(host, process)?;
        actor.process.go_on()?;
        actor.is_stopped = false;
        if let Some(commit) = actor.asked.take() {
            let answer = actor.process.answer()?;
            match answer.real {
                Outcome::MadeFrom(_) if self.model.knows(commit) => {}
                Outcome::MadeFrom(line) => {
                    self.committed(host, process, commit, line)?;
                }
                other => {
                    if self.model.knows(commit) {
                        return Err(format!("a transaction was committed and failed: {other:?}"));
                    }
                    self.was_in_the_way(host, process, &other)?;
                }
            }
        }
        if !twin_is_right && self.actor(host, process)?.has_twin {
            self.ask(host, process, &Op::ForgetTwin)?;
            self.actor(host, process)?.has_twin = false;
        }
        Ok(true)
    }

    /// Waits for the bucket. Whether it has everything; where replication has stopped, that it may.
    fn sync(&mut self, host: usize, process: usize) -> Result<bool, String> {
        let may_fail = self.place.weather != Weather::Fine || self.somebody_is_stopped(host) || self.is_written_outside_the_wal(host);
        let answer = self.ask(host, process, &Op::Sync(if may_fail { "150ms" } else { "60s" }.to_owned()))?;
        let head = self.sites[host].head;
        match answer.real {
            // There is nothing yet.
            Outcome::Text(txid) if txid.is_empty() && head == 0 => Ok(true),
            Outcome::Text(txid) => {
                let txid = Txid::from_hex(&txid).ok_or_else(|| format!("replicated_sync says {txid:?}"))?;
                self.count("sync");
                self.sites[host].may_be_refused = self.is_open(host, FOREIGNER);
                let id = self.model.of_ours(head);
                let listed = self.place.direct.try_list();
                if id > 0 && !listed.iter().any(|listed| listed.name.max_txid == txid) {
                    return Err(format!("I2: state {id} was acknowledged as TXID {txid}, which the bucket does not have"));
                }
                if id > 0 {
                    self.model.promises.push(Promise { id, txid });
                }
                Ok(true)
            }
            Outcome::Failed(problem) => {
                let status = self.ask(host, process, &Op::Status)?.real;
                let Outcome::Text(status) = status else { return Err(format!("no status: {status:?}")) };
                let state = status.lines().find_map(|line| line.strip_prefix("state ")).unwrap_or_default();
                let reason = status.lines().find_map(|line| line.strip_prefix("reason ")).unwrap_or_default();
                match state {
                    "fenced" => {
                        self.count(if reason == "diverged" { "diverged" } else { "fenced" });
                        self.was_rightly_stopped(host, &status)?;
                        Ok(false)
                    }
                    "failed" => Err(format!("host {host}: replication is {state}: {status}")),
                    _ if may_fail => Ok(false),
                    _ => Err(format!("host {host}: a flush failed in fine weather: {problem:?}; {status}")),
                }
            }
            other => Err(format!("replicated_sync says {other:?}")),
        }
    }

    /// Waits for the TXID with which what is committed now will be in the bucket.
    fn wait_for(&mut self, host: usize, process: usize) -> Done {
        let answer = self.ask(host, process, &Op::WaitFor)?;
        let Outcome::Text(txid) = answer.real else { return Ok(true) };
        let id = self.model.of_ours(self.sites[host].head);
        if let Some(txid) = Txid::from_hex(&txid).filter(|_| id > 0) {
            self.model.promises.push(Promise { id, txid });
            self.count("waited for");
        }
        Ok(true)
    }

    /// A history that goes on from what the bucket has must not be refused.
    fn was_rightly_stopped(&mut self, host: usize, status: &str) -> Result<(), String> {
        self.look(false)?;
        let (head, newest) = (self.sites[host].head, self.watch.newest());
        let Some((txid, state)) = newest else {
            // The other one's first snapshot is there, and the empty file beside it is not yet.
            let is_empty = self.place.direct.try_list().is_empty();
            return if is_empty { Err(format!("host {host} was stopped by an empty bucket: {status}")) } else { Ok(()) };
        };
        // Two that begin with nothing have no history in common. And another host may have sent what changes no row, such as a VACUUM.
        if self.sites[host].may_be_refused || !self.model.continues(head, state) || state == 0 {
            return Ok(());
        }
        if let Some(node) = self.watch.writer_of(&self.place.direct, txid)? {
            let node = format!("node {node:016x}");
            if status.contains(&format!("another writer has written TXID {txid}"))
                && status.contains(&node)
                && !status.contains(&format!("this one is {node}"))
            {
                return Ok(());
            }
        }
        Err(format!("host {host} is at state {head}, which continues state {state} of TXID {txid}, and was stopped: {status}"))
    }

    /// The application is ended, as a user does it before touching its files.
    fn end_all(&mut self, host: usize) -> Result<(), String> {
        for process in 0..=PROCESSES {
            self.go_on(host, process)?;
        }
        for process in 0..=PROCESSES {
            if self.is_open(host, process) {
                self.close(host, process, true)?;
            }
        }
        Ok(())
    }

    fn new_host(&mut self, host: usize) -> Done {
        for process in 0..=PROCESSES {
            if let Some(actor) = self.sites[host].actors[process].take() {
                actor.process.kill();
            }
        }
        let (database, twin) = (self.database(host), self.twin(host));
        remove_all(&database)?;
        remove_all(&twin)?;
        let site = &mut self.sites[host];
        (site.head, site.may_be_refused, site.kept, site.is_unseen) = (0, false, None, false);
        self.count("new host");
        Ok(true)
    }

    fn kept(&self, host: usize) -> PathBuf {
        self.sites[host].dir.join("kept.db")
    }

    fn keep_copy(&mut self, host: usize) -> Done {
        if !self.has_database(host) {
            return Ok(false);
        }
        self.end_all(host)?;
        let flat = try_flattened(&self.database(host), &self.dir).map_err(|error| error.to_string())?;
        std::fs::copy(flat, self.kept(host)).map_err(|error| error.to_string())?;
        self.sites[host].kept = Some(self.sites[host].head);
        self.count("copy kept");
        Ok(true)
    }

    fn put_back(&mut self, host: usize, same_file: bool) -> Done {
        let Some(kept) = self.sites[host].kept else { return Ok(false) };
        self.end_all(host)?;
        let database = self.database(host);
        for suffix in ["-wal", "-shm", "-journal"] {
            remove(&PathBuf::from(format!("{}{suffix}", database.display())))?;
        }
        if !same_file {
            remove(&database)?;
        }
        std::fs::copy(self.kept(host), &database).map_err(|error| error.to_string())?;
        let site = &mut self.sites[host];
        (site.head, site.twin_is_right, site.may_be_refused, site.is_unseen) = (kept, false, true, true);
        self.count("older copy");
        Ok(true)
    }

    fn some_txid(&self, thousandths: u32) -> Option<Txid> {
        let mut chain: Vec<Txid> =
            self.place.direct.try_list().iter().filter(|l| l.name.level == Level::ZERO).map(|l| l.name.max_txid).collect();
        chain.sort_unstable();
        chain.get(chain.len().saturating_sub(1) * thousandths as usize / 1000).copied()
    }

    fn restore(&mut self, host: usize, thousandths: u32) -> Done {
        self.end_all(host)?;
        let Some(txid) = self.some_txid(thousandths) else { return Ok(false) };
        let target = if thousandths == 1000 { Target::Latest } else { Target::Txid(txid) };
        let database = self.database(host);
        remove_all(&database)?;
        self.place.direct.try_restore(target, &database).map_err(|error| format!("restore of {target:?}: {error}"))?;
        let seen = state_of(&database)?;
        self.learn(seen)?;
        self.model.check(seen)?;
        let site = &mut self.sites[host];
        (site.head, site.twin_is_right, site.may_be_refused, site.is_unseen) = (seen.id, false, true, true);
        self.count("restored by hand");
        Ok(true)
    }

    fn adopt(&mut self, host: usize) -> Done {
        if !self.has_database(host) {
            return Ok(false);
        }
        self.end_all(host)?;
        let Some(newest) = self.place.direct.try_list().iter().map(|listed| listed.name.max_txid).max() else { return Ok(false) };
        let adopted = replicated::adopt(&self.database(host), &self.place.outside.url, newest);
        if adopted.is_ok() {
            self.model.adopted.insert(newest);
            self.count("adopted");
        }
        adopted.map(|()| true).map_err(|error| format!("adopt: {error}"))
    }

    fn restore_aside(&mut self, thousandths: u32) -> Done {
        let Some(txid) = self.some_txid(thousandths) else { return Ok(false) };
        let file = self.dir.join("restored.db");
        if let Err(error) = self.place.direct.try_restore(Target::Txid(txid), &file) {
            return Err(format!("I1: restore of TXID {txid}: {error}"));
        }
        let seen = state_of(&file).map_err(|error| format!("I1: TXID {txid}: {error}"))?;
        self.learn(seen)?;
        self.model.check(seen).map_err(|error| format!("I1: TXID {txid}: {error}"))?;
        self.count("restored aside");
        Ok(true)
    }

    /// The end of it: the store is well, every host opens its database once more and flushes, and everything is compared.
    ///
    /// # Errors
    /// What does not hold.
    pub fn end(&mut self, seed: u64) -> Result<(), String> {
        let mut random = fastrand::Rng::with_seed(seed ^ 0xe4d);
        self.place.set(Weather::Fine);
        self.place.release_late();
        for host in 0..HOSTS {
            for process in 0..=PROCESSES {
                self.go_on(host, process)?;
            }
            for process in 0..=PROCESSES {
                if random.bool() {
                    self.kill(host, process)?;
                } else if self.is_open(host, process) {
                    self.close(host, process, true)?;
                }
            }
            if self.sites[host].twin_is_right && self.has_database(host) {
                self.compare_with_twin(host)?;
            }
        }
        let mut hosts: Vec<usize> = (0..HOSTS).collect();
        random.shuffle(&mut hosts);
        // One after the other, and the one that was stopped once more: it changes nothing.
        for host in hosts.iter().chain(&hosts) {
            if self.has_database(*host) {
                self.last_flush(*host)?;
            }
        }
        if !self.counts.contains_key("equal in the end")
            && let Some(host) = hosts.iter().copied().find(|host| self.has_database(*host))
            && self.adopt(host)?
        {
            // All were stopped: the user decides, and it goes on.
            self.last_flush(host)?;
            if !self.counts.contains_key("equal in the end") {
                return Err(format!("host {host} was declared the truth, and is stopped"));
            }
        }
        self.look(true)?;
        self.watch.keeps_promises(&self.model)?;
        let Some((txid, state)) = self.watch.newest() else { return Ok(()) };
        let file = self.dir.join("restored.db");
        self.place.direct.try_restore(Target::Latest, &file).map_err(|error| format!("restore of the latest state: {error}"))?;
        let seen = state_of(&file)?;
        if seen.id != state {
            return Err(format!("a restore gives state {}, and TXID {txid} is state {state}", seen.id));
        }
        Ok(())
    }

    fn last_flush(&mut self, host: usize) -> Result<(), String> {
        self.open(host, 0)?;
        self.transaction(host, 0, Size::Small, false, false)?;
        let before = self.place.direct.try_list().len();
        if self.sync(host, 0)? && self.sites[host].head > 0 {
            let file = self.dir.join("restored.db");
            self.place.direct.try_restore(Target::Latest, &file).map_err(|error| format!("I3: host {host} has flushed, and {error}"))?;
            let flat = try_flattened(&self.database(host), &self.dir).map_err(|error| error.to_string())?;
            same_but_for_free_pages(&flat, &file)
                .map_err(|error| format!("I3: host {host} has flushed, and the restored database differs: {error}"))?;
            let seen = state_of(&file)?;
            self.is_head(host, seen.id)?;
            self.count("equal in the end");
        } else {
            self.count("stopped in the end");
            self.close(host, 0, true)?;
            let after = self.place.direct.try_list().len();
            if after != before {
                return Err(format!("host {host} is stopped, and the bucket has {after} objects instead of {before}"));
            }
            return Ok(());
        }
        self.close(host, 0, true).map(drop)
    }

    /// The database file is what SQLite makes it (I4).
    fn compare_with_twin(&mut self, host: usize) -> Result<(), String> {
        let flat = |path: &Path| try_flattened(path, &self.dir).map_err(|error| format!("{}: {error}", path.display()));
        let aside = self.dir.join("twin-flattened.db");
        std::fs::copy(flat(&self.twin(host))?, &aside).map_err(|error| error.to_string())?;
        let real = flat(&self.database(host))?;
        without_counters(&aside)?;
        without_counters(&real)?;
        same_but_for_free_pages(&real, &aside)
            .map_err(|error| format!("I4: host {host}: the database is not what it is without the extension: {error}"))?;
        self.count("twin equal");
        Ok(())
    }

    /// The last lines of a host's log, and how its replication is.
    #[must_use]
    pub fn logs(&self) -> String {
        let tail = |site: &Site| {
            let log = std::fs::read_to_string(site.dir.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(25).collect();
            lines.into_iter().rev().map(|line| format!("    {line}\n")).collect::<String>()
        };
        self.sites.iter().map(|site| format!("  log of {}:\n{}", site.dir.display(), tail(site))).collect()
    }
}

/// In WAL mode the change counter, and who wrote it last, depend on which commits a connection had in its cache when the WAL was begun anew; nothing
/// is told by them then.
fn without_counters(database: &Path) -> Result<(), String> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(database).map_err(|error| error.to_string())?;
    if file.metadata().is_ok_and(|file| file.len() == 0) {
        return Ok(());
    }
    let written = file.write_all_at(&[0; 4], 24).and_then(|()| file.write_all_at(&[0; 8], 92));
    written.map_err(|error| error.to_string())
}

fn pause(us: u64) {
    std::thread::sleep(std::time::Duration::from_micros(us));
}

fn remove(path: &Path) -> Result<(), String> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
        _ => Ok(()),
    }
}

/// A database with all that lies beside it.
fn remove_all(database: &Path) -> Result<(), String> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        remove(&PathBuf::from(format!("{}{suffix}", database.display())))?;
    }
    match std::fs::remove_dir_all(format!("{}-replicated", database.display())) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Whether the extension has changed a result (I4).
fn agree(op: &Op, real: &Outcome, twin: &Outcome) -> Result<(), String> {
    let same = match (real, twin) {
        (Outcome::Failed(real), Outcome::Failed(twin)) => real.code == twin.code,
        // The error that was asked for.
        (Outcome::Failed(real), Outcome::MadeFrom(_)) if real.code == replicated::NOT_ACKNOWLEDGED => {
            matches!(op, Op::Transaction { remote: true, .. })
        }
        // Without a database, and without a bucket to ask, there is none.
        (Outcome::Failed(real), _) if matches!(op, Op::Open { .. }) => real.code & 0xff == 14,
        // What the bucket has had since it was looked at.
        (Outcome::State(_), Outcome::State(Seen { id: 0, .. })) if matches!(op, Op::Open { .. }) => true,
        _ => real == twin,
    };
    if same { Ok(()) } else { Err(format!("{real:?} with the extension, {twin:?} without it")) }
}
