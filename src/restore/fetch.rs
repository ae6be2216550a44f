//! Reads a bucket: listings, times, and the bytes of a plan's files, in parallel, with bounded memory and bounded retries.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use futures_util::stream::{self, Stream, StreamExt};

use super::plan::{self, PlanError};
use super::times::TimeSearch;
use crate::logging::{PerProcess, event};
use crate::store::{Level, Listed, LtxName, Store, StoreError};
use crate::types::{TimestampMs, Txid};

/// What one request asks for at most. Files up to this size are had with one request.
pub(crate) const CHUNK_BYTES: u64 = 4 << 20;

const MAX_ATTEMPTS: u32 = 5;

/// An attempt that brought so much of a range counts as a success, though the rest is still to come.
const PROGRESS_BYTES: usize = 64 << 10;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A part of a file.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// Which file.
    pub(crate) file: Listed,
    pub(crate) range: Range<u64>,
}

impl Chunk {
    pub(crate) fn is_first(&self) -> bool {
        self.range.start == 0
    }

    pub(crate) fn is_last(&self) -> bool {
        self.range.end == self.file.size_bytes
    }
}

/// The chunks of files, in order. At most `parallelism` of them are in memory or on their way.
pub(crate) fn chunks<'a>(
    store: &'a dyn Store,
    files: impl Iterator<Item = Listed> + 'a,
    parallelism: usize,
) -> impl Stream<Item = Result<(Chunk, Bytes), StoreError>> + 'a {
    stream::iter(files.flat_map(ranges))
        .map(move |chunk| async move {
            let body = range(store, &chunk.file.name, chunk.range.clone()).await?;
            Ok((chunk, body))
        })
        .buffered(parallelism)
}

pub(crate) fn ranges(file: Listed) -> impl Iterator<Item = Chunk> {
    let count = file.size_bytes.div_ceil(CHUNK_BYTES);
    (0..count).map(move |i| {
        let start = i * CHUNK_BYTES;
        Chunk { file, range: start..file.size_bytes.min(start + CHUNK_BYTES) }
    })
}

/// The bytes of a range. One that breaks off is gone on with from where it ended; what counts are attempts that bring nothing to speak of.
pub(crate) async fn range(store: &dyn Store, name: &LtxName, range: Range<u64>) -> Result<Bytes, StoreError> {
    let mut body = Vec::with_capacity(usize::try_from(range.end.saturating_sub(range.start)).unwrap_or_default());
    let mut retries = Retries::new();
    loop {
        let had = body.len();
        match store.read_range(name, range.start + had as u64..range.end, &mut body).await {
            Ok(()) => return Ok(body.into()),
            Err(error) => {
                if body.len() - had >= PROGRESS_BYTES {
                    retries = Retries::new();
                }
                retries.pause(error).await?;
            }
        }
    }
}

/// Everything that a bucket has, all levels at once.
pub(super) async fn list(store: &dyn Store) -> Result<Vec<Listed>, StoreError> {
    let levels = Level::all().map(|level| retried(async move || store.list(level, None).await));
    Ok(try_join_all(levels).await?.into_iter().flatten().collect())
}

/// Everything that a bucket has, one level after the other, upwards.
///
/// Files are merged upwards and deleted below afterwards. In this order what was gone from a level when that was listed is on a higher
/// one, so that maintenance at work cannot look like a gap.
pub(crate) async fn list_upwards(store: &dyn Store) -> Result<Vec<Listed>, StoreError> {
    let mut listings = Vec::new();
    for level in Level::all() {
        listings.append(&mut retried(async || store.list(level, None).await).await?);
    }
    Ok(listings)
}

/// The TXID that a time stands for, or why there is none. See `TimeSearch` for the rule and the number of requests.
pub(super) async fn txid_at(store: &dyn Store, listings: &[Listed], at: TimestampMs) -> Result<Result<Txid, PlanError>, StoreError> {
    let mut search = TimeSearch::new(listings, at);
    loop {
        let wanted = search.wanted();
        if wanted.is_empty() {
            break;
        }
        let heads = join_all(wanted.iter().map(|name| retried(async move || store.head(name).await))).await;
        for (name, head) in wanted.into_iter().zip(heads) {
            search.answer(&Listed { name, ..head? });
        }
    }
    if let Some(found) = search.found() {
        return Ok(Ok(found.name.max_txid));
    }
    // The error names a time, which must be the exact one.
    let mut listings = listings.to_vec();
    if let Some(oldest) = plan::oldest(&listings).copied().filter(|oldest| !oldest.timestamp_is_exact) {
        let exact = retried(async || store.head(&oldest.name).await).await?;
        for file in listings.iter_mut().filter(|file| file.name == oldest.name) {
            file.timestamp = exact.timestamp;
        }
    }
    Ok(Err(plan::before_oldest(&listings, at)))
}

/// Tries again what may pass, with pauses that double.
pub(crate) async fn retried<T>(mut attempt: impl AsyncFnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut retries = Retries::new();
    loop {
        match attempt().await {
            Ok(answer) => return Ok(answer),
            Err(error) => retries.pause(error).await?,
        }
    }
}

/// Attempts that failed one after the other.
pub(super) struct Retries {
    tried: u32,
    pause: Duration,
}

impl Retries {
    pub(super) const fn new() -> Self {
        Self { tried: 0, pause: FIRST_PAUSE }
    }

    /// Waits before the next attempt, or gives the error back where there is none.
    pub(super) async fn pause(&mut self, error: StoreError) -> Result<(), StoreError> {
        self.tried += 1;
        if !error.is_transient() || self.tried >= MAX_ATTEMPTS {
            return Err(error);
        }
        event!(Debug, "restore_tries_again", PerProcess, cause = error; "attempt {} of {MAX_ATTEMPTS}: {error}", self.tried);
        let jitter = self.pause.mul_f64(fastrand::f64() / 2.0);
        let asked = error.retry_after.unwrap_or_default();
        tokio::time::sleep((self.pause + jitter).max(asked).min(LONGEST_PAUSE)).await;
        self.pause *= 2;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_a_file_exactly() {
        for size_bytes in [131, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let file = Listed { name: LtxName::level0(Txid::FIRST), size_bytes, timestamp: TimestampMs(0), timestamp_is_exact: true };
            let chunks: Vec<Chunk> = ranges(file).collect();
            let mut at = 0;
            for (i, chunk) in chunks.iter().enumerate() {
                assert_eq!(chunk.range.start, at);
                assert!(chunk.range.end > at && chunk.range.end - at <= CHUNK_BYTES);
                assert_eq!((chunk.is_first(), chunk.is_last()), (i == 0, i + 1 == chunks.len()));
                at = chunk.range.end;
            }
            assert_eq!(at, size_bytes);
        }
    }
}
