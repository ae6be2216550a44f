//! Copies a bucket to another store, or keeps a mirror of it, while it is written to and maintained.
//!
//! ```text
//! list both -> one history? -> what is missing or damaged there -> snapshots, oldest first
//!                                                              -> the other files, by the state that they end with
//!                                                              -> (mirror) what the source no longer has is deleted
//! ```
//!
//! At every instant the destination is a bucket that can be restored: a file goes there only when what it follows on is there. Each is read to its end and
//! verified on its way, becomes visible only then, and only where nothing of its name is; and what the store has of it is looked at afterwards.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;

use crate::restore::fetch::{CHUNK_BYTES, list_upwards, retried};
use crate::restore::{self, PlanError, Target};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL, Store};
use crate::types::Txid;

mod error;
mod history;
mod transfer;

pub use error::CopyError;

use history::Compared;
use transfer::{Body, Moved};

/// Requests at once, unless the caller says otherwise.
pub const DEFAULT_PARALLELISM: usize = 8;
/// Memory for what is on its way, unless the caller says otherwise.
pub const DEFAULT_MAX_MEMORY_BYTES: u64 = 64 << 20;
/// Objects of one request that deletes.
const BATCH: usize = 500;
/// Maintenance may take files away while they are being copied: then the source is listed anew.
const MOST_PASSES: u32 = 3;

/// How a bucket is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether what the source no longer has is deleted at the destination, once all else is there.
    pub mirror: bool,
    /// Whether the checksums of all files that both have are compared, and not only their sizes and the checksums of some.
    pub compares_all: bool,
    /// Requests at once. Clamped to 1 to 128.
    pub parallelism: usize,
    /// Memory for what is on its way, beside a part of 8 MiB.
    pub max_memory_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { mirror: false, compares_all: false, parallelism: DEFAULT_PARALLELISM, max_memory_bytes: DEFAULT_MAX_MEMORY_BYTES }
    }
}

/// What a round did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that the source has, and their size together.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Files that the destination had already.
    pub same: usize,
    /// Files that were copied, in their order.
    pub copied: Vec<Listed>,
    /// Of these, those that were there and damaged.
    pub replaced: Vec<LtxName>,
    /// Files that were deleted at the destination, in their order.
    pub deleted: Vec<Listed>,
    /// The newest state that can be restored from the destination.
    pub newest: Option<Txid>,
    /// The newest state of the source.
    pub newest_of_source: Option<Txid>,
    /// Files that were gone when they were to be copied: maintenance was at work.
    pub gone: usize,
    /// Files that were not copied, since the destination would have had a gap before them.
    pub held_back: Vec<LtxName>,
    /// Why the store did not let files be deleted.
    pub refused: Option<String>,
    /// What is wrong with the source; nothing is deleted then.
    pub problems: Vec<String>,
}

impl Report {
    /// The bytes that were copied.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.copied.iter().map(|file| file.size_bytes).sum()
    }
}

/// Copies one bucket, round after round.
#[derive(Debug)]
pub struct Copier {
    from: Arc<dyn Store>,
    to: Arc<dyn Store>,
    options: Options,
    /// Known to be the same in both.
    same: BTreeSet<LtxName>,
}

/// What is to be done.
struct Todo {
    source: Vec<Listed>,
    destination: Vec<Listed>,
    /// In the order in which it is copied.
    copies: Vec<Listed>,
    /// Of these, what the destination has and is damaged.
    damaged: BTreeSet<LtxName>,
    extra: Vec<Listed>,
}

impl Copier {
    /// From one store to another.
    #[must_use]
    pub const fn new(from: Arc<dyn Store>, to: Arc<dyn Store>, options: Options) -> Self {
        Self { from, to, options, same: BTreeSet::new() }
    }

    /// Copies what is missing.
    ///
    /// # Errors
    /// Where a store fails, or the destination holds another history. What was copied until then is complete.
    pub async fn round(&mut self) -> Result<Report, CopyError> {
        let mut total = Report::default();
        for pass in 1..=MOST_PASSES {
            let todo = self.look().await?;
            let report = self.carry_out(todo).await?;
            let is_over = report.gone == 0 || pass == MOST_PASSES;
            total.copied.extend(&report.copied);
            total.replaced.extend(&report.replaced);
            total.gone += report.gone;
            total = Report { copied: total.copied, replaced: total.replaced, gone: total.gone, ..report };
            if is_over {
                break;
            }
        }
        Ok(total)
    }

    /// What a round would do.
    ///
    /// # Errors
    /// Where a store cannot be listed, or the destination holds another history.
    pub async fn plan(&mut self) -> Result<Report, CopyError> {
        let todo = self.look().await?;
        let mut report = Report::of(&todo);
        report.replaced = todo.damaged.iter().copied().collect();
        report.copied = todo.copies;
        report.deleted = if self.options.mirror { in_order_of_deletion(todo.extra) } else { Vec::new() };
        Ok(report)
    }

    async fn look(&mut self) -> Result<Todo, CopyError> {
        if self.from.url() == self.to.url() {
            return Err(CopyError::SamePlace { url: self.from.url().to_owned() });
        }
        // In this order the destination cannot seem to be ahead.
        let destination = list_upwards(&*self.to).await?;
        let source = list_upwards(&*self.from).await?;
        if source.is_empty() {
            let url = self.from.url().to_owned();
            let is_older_format = self.from.has_generations().await?;
            return Err(if is_older_format { CopyError::Generations { url } } else { CopyError::Empty { url } });
        }
        let damaged = self.one_history(&source, &destination).await?;
        let has: BTreeSet<LtxName> = destination.iter().map(|file| file.name).collect();
        let of_source: BTreeSet<LtxName> = source.iter().map(|file| file.name).collect();
        let mut copies: Vec<Listed> =
            source.iter().filter(|file| !has.contains(&file.name) || damaged.contains(&file.name)).copied().collect();
        copies.sort_unstable_by_key(|file| order(&file.name));
        let extra = destination.iter().filter(|file| !of_source.contains(&file.name)).copied().collect();
        Ok(Todo { source, destination, copies, damaged, extra })
    }

    /// Whether both hold one history; the answer is what of the destination is damaged.
    async fn one_history(&mut self, source: &[Listed], destination: &[Listed]) -> Result<BTreeSet<LtxName>, CopyError> {
        let newest = |files: &[Listed]| files.iter().map(|file| file.name.max_txid).max();
        let (Some(theirs), Some(ours)) = (newest(destination), newest(source)) else { return Ok(BTreeSet::new()) };
        let url = || self.to.url().to_owned();
        if theirs > ours {
            return Err(CopyError::Ahead { url: url(), destination: theirs, source_newest: ours });
        }
        let mut damaged = BTreeSet::new();
        let both = history::in_both(source, destination);
        if both.is_empty() && !history::goes_on(&*self.from, source, &*self.to, destination).await? {
            return Err(CopyError::NothingInCommon { url: url() });
        }
        let asked = history::to_be_compared(&both, &self.same, self.options.compares_all);
        for group in asked.chunks(self.parallelism()) {
            let compared = group.iter().map(|(mine, other)| history::compare(&*self.from, mine, &*self.to, other));
            for ((mine, _), compared) in group.iter().zip(join_all(compared).await) {
                match compared? {
                    Compared::Same => drop(self.same.insert(mine.name)),
                    Compared::Damaged => drop(damaged.insert(mine.name)),
                    Compared::Gone => {}
                    Compared::Other => return Err(CopyError::OtherHistory { url: url(), object: mine.name }),
                }
            }
        }
        Ok(damaged)
    }

    async fn carry_out(&mut self, todo: Todo) -> Result<Report, CopyError> {
        let mut report = Report::of(&todo);
        let Todo { source, destination, copies, damaged, extra } = todo;
        let mut there = There::new(destination);
        let mut rest = copies.as_slice();
        while let Some(first) = rest.first() {
            if first.size_bytes > CHUNK_BYTES || damaged.contains(&first.name) {
                rest = rest.get(1..).unwrap_or_default();
                if there.may_follow(first) {
                    let moved = transfer::stream(&*self.from, &*self.to, first, damaged.contains(&first.name)).await?;
                    self.note(&mut report, &mut there, first, moved, damaged.contains(&first.name));
                } else {
                    report.held_back.push(first.name);
                }
                continue;
            }
            let is_small = |file: &&Listed| file.size_bytes <= CHUNK_BYTES && !damaged.contains(&file.name);
            let count = rest.iter().take_while(is_small).count().clamp(1, self.parallelism());
            let (group, others) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            rest = others;
            self.small(group, &mut there, &mut report).await?;
        }
        report.newest = there.reach();
        let is_whole = report.problems.is_empty() && report.held_back.is_empty() && report.gone == 0;
        if self.options.mirror && is_whole && restore::plan(&source, Target::Latest).is_ok() {
            self.delete(in_order_of_deletion(extra), &mut report).await?;
        }
        Ok(report)
    }

    /// Copies files that are read at once. Those that only add states between others go at the same time, those that go on from the end one after the other.
    async fn small(&mut self, group: &[Listed], there: &mut There, report: &mut Report) -> Result<(), CopyError> {
        let bodies = join_all(group.iter().map(|file| transfer::read(&*self.from, file))).await;
        let mut ready: Vec<(Listed, Body)> = Vec::with_capacity(group.len());
        let to = Arc::clone(&self.to);
        for (file, body) in group.iter().zip(bodies) {
            match body? {
                Ok(body) => ready.push((*file, body)),
                Err(moved) => self.note(report, there, file, moved, false),
            }
        }
        let reach = there.reach();
        if ready.iter().all(|(file, _)| Some(file.name.max_txid) <= reach) {
            let puts = ready.iter().map(|(file, body)| transfer::put(&*to, file, body));
            for ((file, _), moved) in ready.iter().zip(join_all(puts).await) {
                self.note(report, there, file, moved?, false);
            }
            return Ok(());
        }
        for (file, body) in ready {
            if there.may_follow(&file) {
                let moved = transfer::put(&*to, &file, &body).await?;
                self.note(report, there, &file, moved, false);
            } else {
                report.held_back.push(file.name);
            }
        }
        Ok(())
    }

    fn note(&mut self, report: &mut Report, there: &mut There, file: &Listed, moved: Moved, was_damaged: bool) {
        match moved {
            Moved::Copied | Moved::WasThere => {
                self.same.insert(file.name);
                there.add(*file);
                if moved == Moved::Copied {
                    report.copied.push(*file);
                }
                if was_damaged {
                    report.replaced.push(file.name);
                }
            }
            Moved::Gone => report.gone += 1,
            Moved::Damaged(why) => report.problems.push(format!("{} in {} is not copied: {why}", file.name, self.from.url())),
            Moved::Locked(why) => {
                report.problems.push(format!("{} in {} is damaged and cannot be replaced: {why}", file.name, self.to.url()));
            }
        }
    }

    async fn delete(&mut self, files: Vec<Listed>, report: &mut Report) -> Result<(), CopyError> {
        for batch in files.chunks(BATCH) {
            let names: Vec<LtxName> = batch.iter().map(|file| file.name).collect();
            match retried(async || self.to.delete(&names).await).await {
                Ok(()) => report.deleted.extend(batch),
                Err(error) if !error.is_transient() => {
                    report.refused = Some(error.to_string());
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn parallelism(&self) -> usize {
        let most = usize::try_from(self.options.max_memory_bytes / CHUNK_BYTES).unwrap_or(usize::MAX);
        self.options.parallelism.clamp(1, most.clamp(1, restore::MAX_PARALLELISM))
    }
}

impl Report {
    fn of(todo: &Todo) -> Self {
        Self {
            files: todo.source.len(),
            bytes: todo.source.iter().map(|file| file.size_bytes).sum(),
            same: todo.source.len().saturating_sub(todo.copies.len()),
            newest: reach(&todo.destination),
            newest_of_source: todo.source.iter().map(|file| file.name.max_txid).max(),
            ..Self::default()
        }
    }
}

/// Snapshots first, so that there is something to start from. Then by the state that a file ends with: whatever it follows on is there. Of those that end
/// together the longest first, which follows on the oldest state.
fn order(name: &LtxName) -> impl Ord + use<> {
    (name.level != SNAPSHOT_LEVEL, name.max_txid, name.min_txid, std::cmp::Reverse(name.level))
}

/// Snapshots first: once nothing leads to a state it is refused, where a chain that has lost a part of its middle would pass for an older state with
/// Litestream and a time. Of level 0 the newest first, for the same reason.
fn in_order_of_deletion(mut files: Vec<Listed>) -> Vec<Listed> {
    files.sort_unstable_by_key(|file| {
        let txid = file.name.max_txid.get();
        match file.name.level {
            SNAPSHOT_LEVEL => (0, txid),
            Level::ZERO => (2, u64::MAX - txid),
            _ => (1, txid),
        }
    });
    files
}

/// The newest state that can be restored.
fn reach(files: &[Listed]) -> Option<Txid> {
    match restore::plan(files, Target::Latest) {
        Ok(plan) => Some(plan.txid),
        Err(PlanError::Gap { last_good, .. }) => Some(last_good),
        Err(PlanError::TooShort { last_good, .. }) => last_good,
        Err(_) => None,
    }
}

/// What the destination has.
struct There {
    files: Vec<Listed>,
    reach: Option<Txid>,
    /// It has files behind a gap, so that one more may lead further than its own end.
    has_gap: bool,
}

impl There {
    fn new(files: Vec<Listed>) -> Self {
        let reach = reach(&files);
        let has_gap = files.iter().any(|file| Some(file.name.max_txid) > reach);
        Self { files, reach, has_gap }
    }

    const fn reach(&self) -> Option<Txid> {
        self.reach
    }

    /// Whether nothing would be missing before it.
    fn may_follow(&self, file: &Listed) -> bool {
        file.name.min_txid == Txid::FIRST || self.reach.is_some_and(|reach| file.name.min_txid <= reach.next())
    }

    fn add(&mut self, file: Listed) {
        self.files.push(file);
        if self.has_gap {
            *self = Self::new(std::mem::take(&mut self.files));
        } else if self.may_follow(&file) {
            self.reach = self.reach.max(Some(file.name.max_txid));
        }
    }
}

/// One round; blocks the thread, on which it runs its own event loop.
///
/// # Errors
/// As `Copier::round`.
pub fn copy(copier: &mut Copier) -> Result<Report, CopyError> {
    block_on(copier.round())
}

/// What a round would do; blocks as `copy`.
///
/// # Errors
/// As `Copier::plan`.
pub fn plan(copier: &mut Copier) -> Result<Report, CopyError> {
    block_on(copier.plan())
}

fn block_on<T>(future: impl Future<Output = Result<T, CopyError>>) -> Result<T, CopyError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CopyError::Runtime)?;
    runtime.block_on(future)
}
