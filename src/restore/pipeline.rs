//! From a plan to a draft: requests in flight, runs being decoded, both within one bound of memory.
//!
//! ```text
//! files, newest first -> pieces of up to 4 MiB -> requests, several at once -> (in order) which page from which file -> decoding, several threads
//! ```

use std::ops::Range;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};

use super::apply::{ApplyError, Assembly, Finished, Piece};
use super::decode::Workers;
use super::error::RestoreError;
use super::fetch::{self, CHUNK_BYTES};
use super::output::Draft;
use super::plan::{self, Plan, PlanError};
use super::{MAX_PARALLELISM, MAX_THREADS, RestoreOptions};
use crate::ltx::{HEADER_BYTES, Header, PageIndex};
use crate::store::{Listed, LtxName, Store, StoreError};

/// No less can be worked with: a piece that is on its way, and one that is being decoded.
const LEAST_MEMORY_BYTES: u64 = 2 * CHUNK_BYTES;

/// What is read of a file's end to find its page index: all of it where the file has no more than some 8,000 pages.
const TAIL_BYTES: u64 = 64 << 10;

/// A file with a larger page index (of some 2 million pages) is read whole.
const MOST_INDEX_BYTES: u64 = 16 << 20;

/// What was read.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The newest file's header.
    pub(super) header: Header,
    pub(super) read_bytes: u64,
    /// Files of which only a part was read, so that their checksums could not be verified.
    pub(super) files_in_part: usize,
}

type Request<'a> = BoxFuture<'a, (Piece, Result<Bytes, StoreError>)>;

struct Pipeline<'a> {
    store: &'a dyn Store,
    plan: &'a Plan,
    listings: &'a [Listed],
    options: &'a RestoreOptions<'a>,
    draft: &'a Draft,
    assembly: Assembly<'a>,
    read_bytes: u64,
    files_in_part: usize,
}

/// Reads all files of a plan into a draft.
pub(super) async fn run<'a>(
    store: &'a dyn Store,
    plan: &'a Plan,
    listings: &'a [Listed],
    options: &'a RestoreOptions<'a>,
    draft: &'a Draft,
) -> Result<Outcome, RestoreError> {
    let assembly = Assembly::new(draft, plan.size_bytes());
    Pipeline { store, plan, listings, options, draft, assembly, read_bytes: 0, files_in_part: 0 }.run().await
}

impl<'a> Pipeline<'a> {
    async fn run(mut self) -> Result<Outcome, RestoreError> {
        let mut workers = Workers::start(self.options.threads.clamp(1, MAX_THREADS), self.draft.file()).map_err(RestoreError::Runtime)?;
        let parallelism = self.options.parallelism.clamp(1, MAX_PARALLELISM);
        let mut free_bytes = self.options.max_memory_bytes.max(LEAST_MEMORY_BYTES);
        let mut files = self.plan.files.iter().rev().copied().enumerate().peekable();
        let mut pieces: Box<dyn Iterator<Item = Piece> + Send> = Box::new(std::iter::empty());
        let mut next: Option<Piece> = None;
        let mut requests: FuturesOrdered<Request<'a>> = FuturesOrdered::new();
        let mut decoding = 0_u32;
        loop {
            while requests.len() < parallelism {
                next = next.take().or_else(|| pieces.next());
                let Some(piece) = next.take() else {
                    let Some((_, file)) = files.peek() else { break };
                    let in_part = self.options.skip_superseded && file.size_bytes > CHUNK_BYTES;
                    // What of a file is needed is known once all newer ones have come.
                    if in_part && !requests.is_empty() {
                        break;
                    }
                    let Some((place, file)) = files.next() else { break };
                    let parts = if in_part { self.parts(place, &file).await? } else { None };
                    pieces = match parts {
                        Some(parts) => Box::new(parts.into_iter()),
                        None => Box::new(fetch::ranges(file).map(move |chunk| Piece { place, file, range: chunk.range, part: None })),
                    };
                    continue;
                };
                let bytes = size(&piece.range);
                if bytes > free_bytes && !(requests.is_empty() && decoding == 0) {
                    next = Some(piece);
                    break;
                }
                free_bytes = free_bytes.saturating_sub(bytes);
                let store = self.store;
                requests.push_back(
                    async move {
                        let body = fetch::range(store, &piece.file.name, piece.range.clone()).await;
                        (piece, body)
                    }
                    .boxed(),
                );
            }
            if requests.is_empty() && decoding == 0 {
                break;
            }
            tokio::select! {
                biased;
                done = workers.done(), if decoding > 0 => {
                    let done = done.map_err(RestoreError::Runtime)?;
                    decoding -= 1;
                    free_bytes += done.held_bytes;
                    let name = self.name(done.place);
                    self.applied(done.held_bytes);
                    self.assembly.add(done).map_err(|error| self.failed(error, &name))?;
                }
                Some((piece, body)) = requests.next(), if !requests.is_empty() => {
                    let body = body?;
                    self.read_bytes += body.len() as u64;
                    match self.assembly.take(&piece, &body).map_err(|error| self.failed(error, &piece.file.name))? {
                        Some(job) => {
                            decoding += 1;
                            workers.send(job);
                        }
                        None => {
                            free_bytes += size(&piece.range);
                            self.applied(size(&piece.range));
                        }
                    }
                }
            }
        }
        workers.finish().map_err(|source| self.draft.failed("sync", source))?;
        self.end()
    }

    fn end(self) -> Result<Outcome, RestoreError> {
        let url = || self.store.url().to_owned();
        let (plan, read_bytes, files_in_part) = (self.plan, self.read_bytes, self.files_in_part);
        if let Some(place) = self.assembly.first_unverified() {
            // Cannot be; were it so, nothing could be trusted.
            return Err(RestoreError::Runtime(std::io::Error::other(format!("{} was not verified", self.name(place)))));
        }
        match self.assembly.finish() {
            Finished::Whole(header) => Ok(Outcome { header, read_bytes, files_in_part }),
            Finished::Missing { page, newest, header } => {
                let (commit_pages, files, txid) = (header.commit_pages, plan.files.len(), plan.txid);
                Err(RestoreError::MissingPage { url: url(), page, commit_pages, files, txid, newest })
            }
            Finished::Nothing => Err(RestoreError::Plan { url: url(), target: self.options.target, source: PlanError::Empty }),
        }
    }

    /// What of a large file is still needed; `None` where all of it is to be read.
    async fn parts(&mut self, place: usize, file: &Listed) -> Result<Option<Vec<Piece>>, RestoreError> {
        let tail_bytes = TAIL_BYTES.min(file.size_bytes);
        let (head, tail) = futures_util::future::try_join(
            fetch::range(self.store, &file.name, 0..HEADER_BYTES as u64),
            fetch::range(self.store, &file.name, file.size_bytes - tail_bytes..file.size_bytes),
        )
        .await?;
        let header = Header::decode(&head).map_err(|error| self.failed(error.into(), &file.name))?;
        self.assembly.begin(&file.name, &header).map_err(|error| self.failed(error, &file.name))?;
        // A wrong index is no failure: who reads the whole file does not need it.
        let Ok(at) = PageIndex::locate(&tail, file.size_bytes) else { return Ok(None) };
        if size(&at) > MOST_INDEX_BYTES {
            return Ok(None);
        }
        let tail_start = file.size_bytes - tail_bytes;
        let mut index = Vec::new();
        let mut from = at.start;
        while from < at.end.min(tail_start) {
            let to = at.end.min(tail_start).min(from + CHUNK_BYTES);
            index.extend_from_slice(&fetch::range(self.store, &file.name, from..to).await?);
            from = to;
        }
        let in_tail = |offset: u64| usize::try_from(offset.saturating_sub(tail_start)).unwrap_or(usize::MAX);
        index.extend_from_slice(tail.get(in_tail(from)..in_tail(at.end)).unwrap_or_default());
        let Some(parts) = self.assembly.parts(file, &index, &at) else { return Ok(None) };
        let read = HEADER_BYTES as u64 + tail_bytes + size(&(at.start..at.end.min(tail_start).max(at.start)));
        self.read_bytes += read;
        self.files_in_part += 1;
        self.applied(file.size_bytes - parts.iter().map(|part| size(&part.range)).sum::<u64>());
        let piece = |part: super::apply::Part| Piece { place, file: *file, range: part.range, part: Some(Box::new((header, part.frames))) };
        Ok(Some(parts.into_iter().map(piece).collect()))
    }

    fn applied(&self, bytes: u64) {
        if let Some(progress) = self.options.progress {
            progress.applied(bytes);
        }
    }

    /// The object of a place in the order from the newest.
    fn name(&self, place: usize) -> LtxName {
        let last = self.plan.files.len().saturating_sub(1);
        self.plan.files.get(last.saturating_sub(place)).map_or(LtxName::level0(self.plan.txid), |file| file.name)
    }

    fn failed(&self, error: ApplyError, object: &LtxName) -> RestoreError {
        match error {
            ApplyError::Damage(damage) => {
                let last_good = plan::reach_without(self.listings, object);
                RestoreError::Damaged { url: self.store.url().to_owned(), object: *object, damage, last_good }
            }
            ApplyError::Write(source) => self.draft.failed("write", source),
            ApplyError::Output(error) => error,
        }
    }
}

fn size(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}
