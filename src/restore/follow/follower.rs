//! Looks again and again, finds the way to the newest state, and has it applied.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::batch::{Batch, BatchError};
use super::copy::{self, Copy, CopyError};
use super::note::{self, Note, Object};
use super::onwards::{NoWay, onwards};
use super::{Applied, Event, FollowError, FollowOptions, SHORTEST_PAUSE};
use crate::logging::event;
use crate::restore::error::RestoreError;
use crate::restore::fetch::{self, CHUNK_BYTES, retried};
use crate::restore::plan::{Plan, Target, plan};
use crate::restore::{MAX_PARALLELISM, Progress, RestoreOptions, output, restore_to_path};
use crate::store::{Level, Listed, LtxName, Store, StoreErrorKind};
use crate::types::Txid;

/// The longest, after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A way of more files of level 0 may be shorter through other levels.
const FEW_FILES: usize = 64;
/// A batch has no more files, and no more bytes unless it is a single one.
const BATCH_FILES: usize = 256;
const BATCH_BYTES: u64 = 64 << 20;
/// Where a listing of all levels brought nothing the next one comes so much later, unless level 0 has changed.
const LISTING_PAUSE: Duration = Duration::from_secs(60);
/// What is told is told again so much later, if it has become something else.
const TELL_PAUSE: Duration = Duration::from_secs(60);
/// How often a look begins anew at once, since something has gone or is damaged.
const MAX_TRIES: usize = 4;

/// It does not end well.
pub(super) enum Never {}

/// Why a look ended without the newest state.
enum Failure {
    /// It may pass.
    Passing(String),
    /// It does not.
    Final(FollowError),
    /// An object that was listed is gone.
    Vanished(String),
    /// No files lead on, as far as was listed. A folder that is written to while it is listed may leave a file out.
    Gap(String),
    /// A file is damaged: maybe another level has what it has.
    Damaged(LtxName, String),
    PageSize,
}

pub(super) struct Follower<'a> {
    store: &'a dyn Store,
    options: &'a FollowOptions<'a>,
    path: PathBuf,
    /// Told and not over: since when it was told.
    problem: Option<(String, Instant)>,
    /// When all levels were listed, and what the newest file of level 0 was then.
    listed: Option<(Instant, Option<LtxName>)>,
    /// The level-0 object of the copy's TXID as it was compared last.
    compared: Option<Listed>,
    damaged: Vec<LtxName>,
}

impl<'a> Follower<'a> {
    pub(super) fn new(store: &'a dyn Store, options: &'a FollowOptions<'a>) -> Self {
        let path = output::real_path(&options.restore.output);
        Self { store, options, path, problem: None, listed: None, compared: None, damaged: Vec::new() }
    }

    pub(super) async fn run(mut self) -> Result<Never, FollowError> {
        let (copy, mut note) = self.begin().await?;
        let mut failures = 0_u32;
        loop {
            match self.look(&copy, &mut note).await {
                Ok(()) => {
                    failures = 0;
                    if self.problem.take().is_some() {
                        self.options.listener.tell(&Event::Over);
                    }
                }
                Err(Failure::Passing(why) | Failure::Vanished(why) | Failure::Gap(why) | Failure::Damaged(_, why)) => {
                    failures = failures.saturating_add(1);
                    self.tell(why);
                }
                Err(Failure::PageSize) => self.tell("its files have pages of several sizes".to_owned()),
                Err(Failure::Final(error)) => return Err(error),
            }
            let longer = Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(LONGEST_PAUSE);
            let every = self.options.every.max(SHORTEST_PAUSE);
            tokio::time::sleep(if failures > 0 { every.max(longer) } else { every }).await;
        }
    }

    /// The same once, something else after a while: a store that is away says so in many words.
    fn tell(&mut self, why: String) {
        let is_news = self.problem.as_ref().is_none_or(|(told, since)| *told != why && since.elapsed() >= TELL_PAUSE);
        event!(Debug, "copy_problem", self.path, cause = why; "{why}");
        if is_news {
            self.options.listener.tell(&Event::Problem(&why));
            self.problem = Some((why, Instant::now()));
        }
    }

    /// The copy that is there, or a new one.
    async fn begin(&mut self) -> Result<(Copy, Note), FollowError> {
        match self.go_on().await {
            Ok(Some(begun)) => return Ok(begun),
            Ok(None) => {}
            Err(error) if error.is_about_the_copy() && self.options.restore.overwrite => {
                event!(Info, "copy_begins_anew", self.path, cause = error; "{error}: it is restored anew");
            }
            Err(error) => return Err(error),
        }
        self.restore().await
    }

    async fn go_on(&mut self) -> Result<Option<(Copy, Note)>, FollowError> {
        let failed = |source| CopyError::Io { operation: "look at", path: self.path.clone(), source };
        match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source).into()),
            Ok(found) if found.len() == 0 => return Ok(None),
            Ok(_) => {}
        }
        let Some(Some(note)) = Note::load(&self.path).map_err(failed)? else {
            return Err(FollowError::NoCopy { path: self.path.clone(), note: note::path_of(&self.path) });
        };
        if note.replica != note::replica_of(self.store.url()) {
            let (path, url) = (self.path.clone(), self.store.url().to_owned());
            return Err(FollowError::OtherReplica { path, of: note.replica, url });
        }
        let copy = Copy::open(&self.path).await?;
        loop {
            match copy.recover(note.clone()).await {
                Ok(note) => {
                    if self.problem.take().is_some() {
                        self.options.listener.tell(&Event::Over);
                    }
                    self.options.listener.tell(&Event::GoesOn { txid: note.txid });
                    return Ok(Some((copy, note)));
                }
                Err(error @ CopyError::Busy { .. }) => self.tell(error.to_string()),
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(self.options.every.max(SHORTEST_PAUSE)).await;
        }
    }

    /// Restores to a temporary name, notes what that will be, and puts it in its place.
    async fn restore(&mut self) -> Result<(Copy, Note), FollowError> {
        let planned = Planned { to: self.options.restore.progress, txid: Cell::new(None) };
        let noted = Cell::new(None);
        let check = |draft: &Path| {
            if let Some(check) = self.options.restore.check {
                check(draft)?;
            }
            let looks = copy::prepare(draft)?;
            let txid = planned.txid.get().ok_or("nothing was planned")?;
            let replica = note::replica_of(self.store.url());
            let note = Note { txid, replica, looks, mtime_ns: None, object: None, next: None };
            note.save(&self.path).map_err(|error| format!("{}: {error}", note::path_of(&self.path).display()))?;
            noted.set(Some(note));
            Ok(())
        };
        let restore = RestoreOptions {
            output: self.path.clone(),
            target: Target::Latest,
            progress: Some(&planned),
            check: Some(&check),
            remembers: false,
            ..self.options.restore
        };
        let report = restore_to_path(self.store, &restore).await?;
        let Some(mut note) = noted.take() else {
            return Err(RestoreError::Runtime(std::io::Error::other("the restored copy was not noted")).into());
        };
        let copy = Copy::open(&self.path).await?;
        // Which object that state ended with is known from the beginning, so that another history does not pass for this one. What fails here is found out by
        // the first look.
        if let Ok(level0) = self.store.list(Level::ZERO, Some(note.txid)).await {
            let _ = self.compare(&level0, &mut note).await;
        }
        copy.settle(&mut note)?;
        self.options.listener.tell(&Event::Restored(&report));
        Ok((copy, note))
    }

    /// Brings the copy to the newest state that the bucket has.
    async fn look(&mut self, copy: &Copy, note: &mut Note) -> Result<(), Failure> {
        self.damaged.clear();
        let (mut damage, mut gaps) = (None, 0);
        let mut outcome = self.look_once(copy, note, false).await;
        for _ in 1..MAX_TRIES {
            match outcome {
                Err(Failure::Vanished(_)) => {}
                Err(Failure::Gap(_)) if gaps == 0 && self.problem.is_none() => {
                    gaps += 1;
                    tokio::time::sleep(SHORTEST_PAUSE).await;
                }
                Err(Failure::Damaged(name, why)) => {
                    self.damaged.push(name);
                    damage = damage.or(Some((name, why)));
                }
                Err(Failure::PageSize) => {
                    outcome = self.start_over(copy, note).await;
                    break;
                }
                _ => break,
            }
            outcome = self.look_once(copy, note, true).await;
        }
        match (outcome, damage) {
            (Err(Failure::Final(error @ FollowError::OtherHistory { .. })), _) if self.options.restore.overwrite => {
                event!(Warn, "copy_begins_anew", self.path, cause = error; "{error}: the copy becomes what the bucket holds now");
                self.compared = None;
                self.start_over(copy, note).await
            }
            // There is no way around it.
            (Err(Failure::Passing(_) | Failure::Gap(_)), Some((name, why))) => Err(Failure::Damaged(name, why)),
            (outcome, _) => outcome,
        }
    }

    async fn look_once(&mut self, copy: &Copy, note: &mut Note, everywhere: bool) -> Result<(), Failure> {
        let level0 = retried(async || self.store.list(Level::ZERO, Some(note.txid)).await).await.map_err(|error| passing(&error))?;
        let knew = note.object;
        self.compare(&level0, note).await?;
        if note.object != knew {
            copy.settle(note)?;
        }
        let is_current = level0.last().is_some_and(|last| last.name.max_txid == note.txid);
        if is_current && !everywhere {
            return Ok(());
        }
        let way = match onwards(&level0, note.txid, &self.damaged) {
            Ok(way) if !everywhere && !way.is_empty() && way.len() <= FEW_FILES => way,
            _ => match self.list_everything(&level0, everywhere).await? {
                Some(listings) => self.way(&listings, note)?,
                None => return Ok(()),
            },
        };
        self.advance(copy, note, &way).await
    }

    /// Everything that the bucket has, if it is time for that.
    async fn list_everything(&mut self, level0: &[Listed], everywhere: bool) -> Result<Option<Vec<Listed>>, Failure> {
        let newest = level0.last().map(|last| last.name);
        let is_known = |(since, known): (Instant, Option<LtxName>)| known == newest && since.elapsed() < LISTING_PAUSE;
        // After a failure it is the pause that becomes longer.
        if self.listed.is_some_and(is_known) && self.problem.is_none() && !everywhere {
            return Ok(None);
        }
        let listings = fetch::list_upwards(self.store).await.map_err(|error| passing(&error))?;
        self.listed = Some((Instant::now(), newest));
        Ok(Some(listings))
    }

    fn way(&self, listings: &[Listed], note: &Note) -> Result<Vec<Listed>, Failure> {
        match onwards(listings, note.txid, &self.damaged) {
            Ok(way) => Ok(way),
            Err(NoWay::Behind { newest }) => Err(self.other_history(note, format!("its newest state is TXID {newest}"))),
            Err(NoWay::Empty) => Err(Failure::Passing(format!("{} has no LTX files any more", self.store.url()))),
            Err(NoWay::Gap { newest }) => {
                // In the words of a restore, which fails for the same reason.
                let why = match plan(listings, Target::Latest) {
                    Err(error) => error.to_string(),
                    Ok(_) => "files are missing".to_owned(),
                };
                let (url, txid) = (self.store.url(), note.txid);
                Err(Failure::Gap(format!("{url}: no files lead from TXID {txid}, which the copy has, to {newest}: {why}")))
            }
        }
    }

    /// Whether the object of the copy's TXID is the one that the copy was made of.
    async fn compare(&mut self, level0: &[Listed], note: &mut Note) -> Result<(), Failure> {
        let Some(object) = level0.iter().find(|object| object.name == LtxName::level0(note.txid)).copied() else { return Ok(()) };
        if self.compared == Some(object) {
            return Ok(());
        }
        let is_other = |why: &str| self.other_history(note, format!("{} is another one: its {why} differs", object.name));
        if note.object.is_some_and(|known| known.size_bytes != object.size_bytes) {
            return Err(is_other("size"));
        }
        let last8 = fetch::range(self.store, &object.name, object.size_bytes.saturating_sub(8)..object.size_bytes).await;
        let last8 = last8.map_err(|error| passing(&error))?;
        let checksum = last8.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let found = Object { size_bytes: object.size_bytes, checksum };
        if note.object.is_some_and(|known| known != found) {
            return Err(is_other("checksum"));
        }
        (note.object, self.compared) = (Some(found), Some(object));
        Ok(())
    }

    fn other_history(&self, note: &Note, why: String) -> Failure {
        let url = self.store.url().to_owned();
        Failure::Final(FollowError::OtherHistory { url, txid: note.txid, why })
    }

    async fn advance(&mut self, copy: &Copy, note: &mut Note, way: &[Listed]) -> Result<(), Failure> {
        let mut rest = way;
        while !rest.is_empty() {
            let mut bytes = 0_u64;
            let fits = |file: &&Listed| {
                bytes = bytes.saturating_add(file.size_bytes);
                bytes <= BATCH_BYTES
            };
            let count = rest.iter().take(BATCH_FILES).take_while(fits).count().max(1);
            let (files, others) = rest.split_at(count.min(rest.len()));
            self.apply(copy, note, files, true).await?;
            rest = others;
        }
        Ok(())
    }

    /// From a snapshot on: its pages have another size than those of the copy.
    async fn start_over(&mut self, copy: &Copy, note: &mut Note) -> Result<(), Failure> {
        let listings = fetch::list_upwards(self.store).await.map_err(|error| passing(&error))?;
        let plan = plan(&listings, Target::Latest).map_err(|error| Failure::Passing(format!("{}: {error}", self.store.url())))?;
        self.apply(copy, note, &plan.files, false).await
    }

    async fn apply(&mut self, copy: &Copy, note: &mut Note, files: &[Listed], upon: bool) -> Result<(), Failure> {
        let options = &self.options.restore;
        let memory = usize::try_from(options.max_memory_bytes / CHUNK_BYTES).unwrap_or(MAX_PARALLELISM);
        let parallelism = options.parallelism.min(memory).clamp(1, MAX_PARALLELISM);
        let looks = note.looks;
        let batch = Batch::fetch(self.store, files, upon.then_some(&looks), copy.path(), (note.txid, parallelism)).await?;
        copy.apply(note, &batch).await?;
        let (txid, timestamp, size_pages) = (batch.txid(), batch.timestamp(), batch.size_pages());
        let (files, read_bytes, pages) = (batch.files(), batch.read_bytes, batch.count());
        self.options.listener.tell(&Event::Applied(Applied { txid, timestamp, files, read_bytes, pages, size_pages }));
        Ok(())
    }
}

fn passing(error: &crate::store::StoreError) -> Failure {
    if error.kind == StoreErrorKind::NotFound { Failure::Vanished(error.to_string()) } else { Failure::Passing(error.to_string()) }
}

impl From<BatchError> for Failure {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::PageSize => Self::PageSize,
            BatchError::Restore(RestoreError::Store(error)) => passing(&error),
            BatchError::Restore(error @ RestoreError::Damaged { object, .. }) => Self::Damaged(object, error.to_string()),
            BatchError::Restore(error) => Self::Passing(error.to_string()),
        }
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        match error {
            // A disk that is full may be emptied.
            CopyError::Busy { .. } | CopyError::Io { .. } => Self::Passing(error.to_string()),
            CopyError::Foreign { .. } | CopyError::InUse { .. } => Self::Final(error.into()),
        }
    }
}

/// Hears of the plan on the way to somebody else.
struct Planned<'a> {
    to: Option<&'a dyn Progress>,
    txid: Cell<Option<Txid>>,
}

impl Progress for Planned<'_> {
    fn planned(&self, plan: &Plan) {
        self.txid.set(Some(plan.txid));
        if let Some(to) = self.to {
            to.planned(plan);
        }
    }

    fn applied(&self, bytes: u64) {
        if let Some(to) = self.to {
            to.applied(bytes);
        }
    }
}
