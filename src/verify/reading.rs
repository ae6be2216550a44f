//! Reads a bucket's objects, each once, several requests at a time, and looks at each and at how they go together.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use super::pages::{Comparison, Disagreement, Neighbours, Pages, Place};
use super::report::{Kind, MOST_FINDINGS, Report};
use super::{Scope, shape};
use crate::logging::{PerProcess, event};
use crate::ltx::{Decoder, HEADER_BYTES, Header, LtxError, Summary, page_checksum};
use crate::maintenance::{MaintainError, Turn};
use crate::restore::fetch::{self, CHUNK_BYTES, Chunk};
use crate::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL, Store, StoreError, StoreErrorKind};
use crate::types::{PageSize, TimestampMs, Txid};

/// After so many objects that the store refuses to hand out the rest is not asked for.
const MOST_REFUSED: usize = 20;
const MOST_REQUESTS: u64 = 128;
/// So much is decoded in a stretch: a millisecond or so.
const PIECE_BYTES: usize = 16 << 10;

/// What is known of the state that the files so far lead to.
#[derive(Clone, Copy, Debug)]
struct State {
    txid: Txid,
    page_size: PageSize,
    commit_pages: u32,
    /// The checksum of the database that the last file gave for it.
    rolling: Option<u64>,
}

/// An object that is being read.
struct Open {
    file: Listed,
    decoder: Decoder,
    header: Option<Header>,
    /// What it is compared with; `None` where it extends the state.
    comparison: Option<Comparison>,
    /// The size of the database before, where that is known.
    commit_before: Option<u32>,
    tally: Tally,
}

/// What is counted of an object's pages.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Pages of the database, those beyond its end left out.
    inside: u64,
    /// Of these, those that the database has grown by.
    grown: u64,
    disagreement: Option<Disagreement>,
    disagreeing: u64,
}

/// How a reading ended.
pub(super) enum Ended {
    Whole,
    /// The store failed: what comes after was not read.
    Early,
}

pub(super) struct Reading<'a> {
    store: &'a dyn Store,
    listings: &'a [Listed],
    /// The states that there are snapshots of.
    snapshots: BTreeSet<Txid>,
    floor: Option<Listed>,
    pages: Pages,
    neighbours: Neighbours,
    state: Option<State>,
    report: &'a mut Report,
    /// Listed, and not there when they were asked for.
    pub(super) vanished: Vec<LtxName>,
    /// Files without a node id, as Litestream makes them.
    pub(super) theirs: BTreeSet<LtxName>,
    refused: usize,
    /// Nothing is said of how files go together: what leads to them may be gone rightly.
    is_alone: bool,
    /// When the last commit of each was, as they say themselves.
    pub(super) times: BTreeMap<LtxName, TimestampMs>,
}

impl<'a> Reading<'a> {
    /// `memory_bytes` is what the pages of the state may take; without it levels are not compared.
    pub(super) fn new(
        store: &'a dyn Store,
        listings: &'a [Listed],
        floor: Option<Listed>,
        memory_bytes: u64,
        report: &'a mut Report,
    ) -> Self {
        Self {
            store,
            listings,
            snapshots: listings
                .iter()
                .map(|file| file.name)
                .filter(|name| name.level == SNAPSHOT_LEVEL)
                .map(|name| name.max_txid)
                .collect(),
            floor,
            pages: Pages::new(memory_bytes),
            neighbours: Neighbours::default(),
            state: None,
            report,
            vanished: Vec::new(),
            theirs: BTreeSet::new(),
            refused: 0,
            is_alone: false,
            times: BTreeMap::new(),
        }
    }

    /// Reads files each by itself.
    pub(super) async fn read_alone(&mut self, files: &[Listed], scope: &Scope, turn: Option<&Turn>) -> Result<Ended, MaintainError> {
        self.is_alone = true;
        self.read(files, scope, turn).await
    }

    /// Reads files in the order of the states that they end with.
    pub(super) async fn read(&mut self, files: &[Listed], scope: &Scope, turn: Option<&Turn>) -> Result<Ended, MaintainError> {
        let store = self.store;
        let most = usize::try_from((scope.max_memory_bytes / 2 / CHUNK_BYTES).clamp(1, MOST_REQUESTS)).unwrap_or(1);
        let ask = |chunk: Chunk| async move {
            // A folder's requests never wait by themselves.
            tokio::task::yield_now().await;
            if let Some(turn) = turn {
                turn().await?;
            }
            let body = fetch::range(store, &chunk.file.name, chunk.range.clone()).await;
            Ok::<_, MaintainError>((chunk, body))
        };
        let chunks = stream::iter(files.iter().copied().flat_map(fetch::ranges)).map(ask).buffered(scope.parallelism.clamp(1, most));
        let mut chunks = std::pin::pin!(chunks);
        let mut open: Option<Open> = None;
        let mut skipped: Option<LtxName> = None;
        while let Some(chunk) = chunks.next().await {
            let (chunk, body) = chunk?;
            if skipped == Some(chunk.file.name) {
                continue;
            }
            match body {
                Ok(body) => {
                    let current = match open.take() {
                        Some(current) if !chunk.is_first() => current,
                        _ => Open::begin(chunk.file),
                    };
                    self.report.bytes_read += body.len() as u64;
                    match self.take(current, &chunk, &body).await {
                        Some(current) => open = Some(current),
                        None => skipped = Some(chunk.file.name),
                    }
                }
                Err(error) => {
                    (open, skipped) = (None, Some(chunk.file.name));
                    self.lose(chunk.file.name.max_txid);
                    if let Ended::Early = self.not_had(&chunk.file, error) {
                        return Ok(Ended::Early);
                    }
                }
            }
        }
        self.report.compared_one_page_of = self.pages.stride();
        Ok(Ended::Whole)
    }

    /// Takes the next part of an object; the answer is the object while there is more to come.
    async fn take(&mut self, mut open: Open, chunk: &Chunk, body: &Bytes) -> Option<Open> {
        let name = open.file.name;
        let mut rest: &[u8] = body;
        if open.header.is_none() {
            let (head, pages) = rest.split_at_checked(HEADER_BYTES).unwrap_or((rest, &[]));
            rest = pages;
            let begun = open.decoder.push(head, &mut |_, _| Ok(()));
            let header = open.decoder.header().copied();
            match (begun, header) {
                (Ok(()), Some(header)) => self.begin(&mut open, header)?,
                (outcome, _) => {
                    let error = outcome.err().unwrap_or(LtxError::Truncated { offset: body.len() as u64, part: "header" });
                    self.damaged(&open, &error);
                    return None;
                }
            }
        }
        let header = open.header?;
        let (before, is_alone) = (open.commit_before, self.is_alone);
        for piece in rest.chunks(PIECE_BYTES) {
            let (pages, tally, comparison) = (&mut self.pages, &mut open.tally, &mut open.comparison);
            let pushed = open.decoder.push(piece, &mut |page, content| {
                if page.get() > header.commit_pages || is_alone {
                    return Ok(());
                }
                tally.inside += 1;
                tally.grown += u64::from(before.is_some_and(|before| page.get() > before));
                if !pages.keeps(page) {
                    return Ok(());
                }
                let checksum = page_checksum(page.get(), content);
                match comparison {
                    None => pages.set(page, checksum),
                    Some(comparison) => {
                        if let Some(found) = pages.compare(page, checksum, comparison) {
                            tally.disagreement.get_or_insert(found);
                            tally.disagreeing += 1;
                        }
                    }
                }
                Ok(())
            });
            if let Err(error) = pushed {
                self.damaged(&open, &error);
                return None;
            }
            // Whoever shares the thread may have a commit to send.
            tokio::task::yield_now().await;
        }
        if !chunk.is_last() {
            return Some(open);
        }
        match std::mem::take(&mut open.decoder).finish() {
            Ok(summary) => {
                self.report.files_read += 1;
                self.end(&open, &summary);
            }
            Err(error) => self.damaged(&open, &error),
        }
        event!(Debug, "verifying", PerProcess; "{name} was read");
        None
    }

    /// Looks at a header, and says how the object goes on from the state. `None` where it is not worth reading.
    fn begin(&mut self, open: &mut Open, header: Header) -> Option<()> {
        let name = open.file.name;
        if (header.min_txid, header.max_txid) != (name.min_txid, name.max_txid) {
            let what = format!("its header says that it holds TXID {} to {}", header.min_txid, header.max_txid);
            self.wrong(Kind::Renamed, &name, what);
            self.lose(name.max_txid);
            return None;
        }
        open.header = Some(header);
        if !open.file.timestamp_is_exact {
            self.times.insert(name, header.timestamp);
        }
        if header.node_id == 0 {
            self.theirs.insert(name);
        }
        if self.is_alone {
            return Some(());
        }
        let has_snapshot = self.snapshots.contains(&name.max_txid);
        let (min, is_base) = (name.min_txid.get(), name.min_txid == Txid::FIRST);
        if let Some(state) = self.state.filter(|state| state.txid == name.max_txid) {
            if (state.page_size, state.commit_pages) != (header.page_size, header.commit_pages) {
                let what = format!(
                    "its database has {} pages of {} bytes, and by another file of the same state {} pages of {} bytes",
                    header.commit_pages, header.page_size, state.commit_pages, state.page_size
                );
                self.wrong(Kind::Contradiction, &name, what);
                return None;
            }
            open.comparison = Some(self.pages.comparison(name));
            return Some(());
        }
        let goes_on = self.state.filter(|state| !is_base && min <= state.txid.get().saturating_add(1));
        if goes_on.is_none() {
            self.pages.forget();
        }
        if let Some(state) = goes_on.filter(|state| state.page_size != header.page_size) {
            self.pages.forget();
            self.pages.cut(0);
            if !has_snapshot {
                let what = format!("its pages have {} bytes, and those of the state before it {}", header.page_size, state.page_size);
                self.wrong(Kind::Foreign, &name, what);
            }
        } else if let Some(state) = goes_on {
            // With a snapshot of the same state, an empty file stands for it here.
            open.commit_before = (!has_snapshot).then_some(state.commit_pages);
        }
        if let (false, Some(before)) = (header.no_checksum, goes_on.and_then(|state| state.rolling))
            && goes_on.is_some_and(|state| state.txid.get().saturating_add(1) == min)
            && header.pre_apply_checksum != before
        {
            let what = format!(
                "it is to be applied to a database of checksum {:016x}, and the one before it has {before:016x}",
                header.pre_apply_checksum
            );
            self.wrong(Kind::Foreign, &name, what);
        }
        self.pages.step(name, header.commit_pages);
        Some(())
    }

    /// What there is to say once all of an object has been read, and is good by itself.
    fn end(&mut self, open: &Open, summary: &Summary) {
        let (name, header, tally) = (open.file.name, &summary.header, open.tally);
        if !summary.index_matches {
            let advice = "A restore does not need it. Litestream's read replica does: have the bucket's maintenance make the file anew, or copy the bucket";
            self.report.wrong(Kind::Index, name, "its page index is not that of its pages", advice);
        }
        if self.is_alone {
            return;
        }
        let lock_page = header.page_size.lock_page().get();
        let pages_from = |first: u32| {
            u64::from(header.commit_pages.saturating_sub(first))
                - u64::from((first.saturating_add(1)..=header.commit_pages).contains(&lock_page))
        };
        if name.level == SNAPSHOT_LEVEL && tally.inside != pages_from(0) {
            let what = format!("it is a snapshot of {} pages and has {} of them", header.commit_pages, tally.inside);
            self.wrong(Kind::Incomplete, &name, what);
        }
        if let Some(before) = open.commit_before.filter(|before| tally.grown != pages_from(*before)) {
            let what = format!(
                "the database grows from {before} to {} pages with it, and it lacks {} of the new ones",
                header.commit_pages,
                pages_from(before).saturating_sub(tally.grown)
            );
            self.wrong(Kind::Incomplete, &name, what);
        }
        let mut rolling = (!header.no_checksum).then_some(summary.post_apply_checksum);
        match &open.comparison {
            Some(comparison) => self.compared(&name, &tally, comparison),
            None => {
                self.pages.cut(header.commit_pages);
                let computed = self.pages.rolling(header.page_size, header.commit_pages);
                if let (Some(stored), Some(computed)) = (rolling, computed)
                    && stored != computed
                {
                    let what = format!("the database has the checksum {computed:016x} with it, and it says {stored:016x}");
                    self.wrong(Kind::Foreign, &name, what);
                }
                rolling = rolling.or(computed);
                let (page_size, commit_pages) = (header.page_size, header.commit_pages);
                self.state = Some(State { txid: name.max_txid, page_size, commit_pages, rolling });
            }
        }
        if name.level == Level::ZERO {
            let (salts, start) = (header.wal_salts, header.wal_offset);
            let place = Place { name, node_id: header.node_id, salts, start, end: start.saturating_add(header.wal_size) };
            if let Some((foreign, why)) = self.neighbours.take(place) {
                self.wrong(Kind::Foreign, &foreign, why);
            }
        }
    }

    fn compared(&mut self, name: &LtxName, tally: &Tally, comparison: &Comparison) {
        if let Some(Disagreement { page, with }) = tally.disagreement {
            let more = if tally.disagreeing > 1 { format!(" and {} more", tally.disagreeing - 1) } else { String::new() };
            let what = format!(
                "page {page}{more} of the state TXID {} is another one in it than in {with}: one of the two is of another history",
                name.max_txid
            );
            let advice = format!(
                "Find out which is right: restore the state with and without {name}, and look at it. Then bring the other one back from a mirror, a copy or an \
                 older version of the bucket, or move it out of the bucket"
            );
            self.report.wrong(Kind::Contradiction, *name, what, advice);
        }
        let lacking = self.pages.lacking(comparison);
        if lacking > 0 {
            let example = self.pages.example(comparison).map_or_else(String::new, |file| format!(", such as {file}"));
            let what = format!("it lacks {lacking} pages that the files which it spans have changed{example}");
            self.wrong(Kind::Incomplete, name, what);
        }
    }

    fn damaged(&mut self, open: &Open, error: &LtxError) {
        self.wrong(Kind::Damaged, &open.file.name, error.to_string());
        match open.comparison {
            // What it said of the state is not to be relied on.
            None => self.lose(open.file.name.max_txid),
            Some(comparison) if comparison.has_given => self.pages.forget(),
            Some(_) => {}
        }
    }

    /// The state is not known any more: what led there was not to be had.
    fn lose(&mut self, upto: Txid) {
        if self.state.is_none_or(|state| state.txid < upto) {
            self.pages.forget();
            self.state = None;
        }
    }

    fn wrong(&mut self, kind: Kind, name: &LtxName, what: impl Into<String>) {
        if self.report.findings.len() >= MOST_FINDINGS {
            self.report.more_findings += 1;
            return;
        }
        let advice = shape::advice(self.listings, name, self.floor.as_ref());
        self.report.wrong(kind, *name, what, advice);
    }

    /// What became of an object that could not be read.
    fn not_had(&mut self, file: &Listed, error: StoreError) -> Ended {
        match error.kind {
            StoreErrorKind::NotFound => self.vanished.push(file.name),
            StoreErrorKind::Truncated => {
                let what = format!("the store lists {} bytes of it and has fewer: {}", file.size_bytes, error.cause);
                self.wrong(Kind::Damaged, &file.name, what);
            }
            StoreErrorKind::PermissionDenied | StoreErrorKind::Protocol | StoreErrorKind::Io if self.refused < MOST_REFUSED => {
                self.refused += 1;
                self.report.not_checked.push(format!("{} was not read: {error}", file.name));
            }
            _ => {
                self.report.not_checked.push(format!("{} and what follows it were not read: {error}", file.name));
                return Ended::Early;
            }
        }
        Ended::Whole
    }
}

impl Open {
    fn begin(file: Listed) -> Self {
        Self { file, decoder: Decoder::new(), header: None, comparison: None, commit_before: None, tally: Tally::default() }
    }
}
