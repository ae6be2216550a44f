//! Makes one object of several, from the bucket to the bucket, with ranged reads and in bounded memory, one request at a time once each of
//! them is open.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::at_hand::Inputs;
use super::error::{MaintainError, Unfit};
use super::pace::Pace;
use crate::fault::fault_point;
use crate::ltx::{Decoder, Encoder, HEADER_BYTES, Header, LtxError, Summary};
use crate::restore::fetch::{CHUNK_BYTES, retried};
use crate::store::{Created, Listed, LtxName, SNAPSHOT_LEVEL, Store, StoreError, Upload};
use crate::types::PageNo;

/// Most inputs are small, and had with one request each: so many of them are under way at once. What they bring has its place in any case.
const OPENED_AT_ONCE: usize = 8;
/// So many pages are decoded in a stretch: a fraction of a millisecond.
const PAGES_AT_ONCE: u32 = 32;
/// An input is read in pieces of this size at least.
const LEAST_CHUNK_BYTES: u64 = 16 << 10;

/// What became of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merged {
    pub(super) name: LtxName,
    /// How many of the inputs are in it: those of one page size.
    pub(super) inputs: usize,
    pub(super) size_bytes: u64,
    /// The time of its last commit.
    pub(super) header: Header,
}

/// An object that is read from its start to its end and verified.
struct Source {
    file: Listed,
    decoder: Decoder,
    header: Option<Header>,
    chunk: Bytes,
    chunk_bytes: u64,
    offset: u64,
    page: Vec<u8>,
    /// How many pages were decoded.
    pages: u32,
    summary: Option<Summary>,
}

impl Source {
    /// Reads its first piece, the header in it.
    async fn open(inputs: Inputs<'_>, file: Listed, chunk_bytes: u64) -> Result<Self, MaintainError> {
        let (decoder, chunk_bytes) = (Decoder::new(), chunk_bytes.max(LEAST_CHUNK_BYTES));
        let mut source =
            Self { file, decoder, header: None, chunk: Bytes::new(), chunk_bytes, offset: 0, page: Vec::new(), pages: 0, summary: None };
        if !source.fill(inputs).await? || source.chunk.len() < HEADER_BYTES {
            return Err(source.unfit(Unfit::Short(file.size_bytes)));
        }
        let mut head: &[u8] = &source.chunk.split_to(HEADER_BYTES);
        source.decoder.advance(&mut head).map_err(|error| source.unfit(error.into()))?;
        let header = source.decoder.header().copied().ok_or_else(|| source.unfit(Unfit::Short(file.size_bytes)))?;
        if (header.min_txid, header.max_txid) != (file.name.min_txid, file.name.max_txid) {
            return Err(source.unfit(Unfit::Name(header.min_txid, header.max_txid)));
        }
        source.header = Some(header);
        Ok(source)
    }

    fn unfit(&self, why: Unfit) -> MaintainError {
        MaintainError::Unfit { object: self.file.name, why }
    }

    /// Reads the next piece; false at the end of the object.
    async fn fill(&mut self, inputs: Inputs<'_>) -> Result<bool, MaintainError> {
        let end = self.file.size_bytes.min(self.offset.saturating_add(self.chunk_bytes));
        if end <= self.offset {
            return Ok(false);
        }
        self.chunk = inputs.range(&self.file, self.offset..end).await?;
        self.offset = end;
        Ok(true)
    }

    /// The next page, which is then in `page`; `None` once the object is read and verified.
    async fn next(&mut self, inputs: Inputs<'_>, pace: &Pace<'_>) -> Result<Option<PageNo>, MaintainError> {
        if self.summary.is_some() {
            return Ok(None);
        }
        loop {
            let mut rest: &[u8] = &self.chunk;
            let page = self.decoder.advance(&mut rest).map_err(|error| self.unfit(error.into()))?;
            let taken = self.chunk.len() - rest.len();
            self.chunk = self.chunk.slice(taken..);
            if page.is_some() {
                self.decoder.swap_page(&mut self.page);
                self.pages = self.pages.wrapping_add(1);
                if self.pages.is_multiple_of(PAGES_AT_ONCE) {
                    // Whoever shares the thread may have a commit to send.
                    tokio::task::yield_now().await;
                }
                return Ok(page);
            }
            if self.offset < self.file.size_bytes {
                inputs.turn(std::slice::from_ref(&self.file), pace).await?;
            } else {
                tokio::task::yield_now().await;
            }
            if !self.fill(inputs).await? {
                let summary = std::mem::take(&mut self.decoder).finish().map_err(|error| self.unfit(error.into()))?;
                self.summary = Some(summary);
                self.page = Vec::new();
                return Ok(None);
            }
        }
    }
}

/// Merges the inputs, oldest first, into an object: those up to the first that has another page size. `None` where that leaves less than `least`;
/// but nothing else will ever follow those before another page size, so that `least` does not count for them where it is not a snapshot.
///
/// Every input is read to its end and verified before the object becomes visible.
pub(super) async fn merge(
    from: Inputs<'_>,
    inputs: &[Listed],
    output: LtxName,
    (least, buffer_bytes): (usize, u64),
    pace: &Pace<'_>,
) -> Result<Option<Merged>, MaintainError> {
    let total: u64 = inputs.iter().map(|input| input.size_bytes).sum();
    let mut sources: Vec<Source> = Vec::with_capacity(inputs.len());
    let (mut least, mut is_cut) = (least, false);
    for together in inputs.chunks(OPENED_AT_ONCE) {
        if is_cut {
            break;
        }
        from.turn(together, pace).await?;
        let opened = together.iter().map(|input| {
            // Each gets its part of the memory: what is small is read at once.
            let part = u128::from(buffer_bytes) * u128::from(input.size_bytes) / u128::from(total.max(1));
            Source::open(from, *input, u64::try_from(part).unwrap_or(u64::MAX).min(CHUNK_BYTES))
        });
        for source in try_join_all(opened).await? {
            let page_size = |source: &Source| source.header.map(|header| header.page_size);
            is_cut |= sources.first().is_some_and(|first| page_size(first) != page_size(&source));
            if is_cut {
                least = if output.level == SNAPSHOT_LEVEL { least } else { 1 };
                break;
            }
            sources.push(source);
        }
    }
    let Some(last) = sources.last().and_then(|last| last.header).filter(|_| sources.len() >= least) else { return Ok(None) };
    let name = LtxName { max_txid: last.max_txid, ..output };
    let mut header = Header::new(last.page_size, last.commit_pages, name.min_txid, name.max_txid, last.timestamp);
    // As Litestream has it in what it merges: of no place in a log.
    (header.wal_offset, header.node_id) = (0, last.node_id);
    let inputs = sources.len();
    let size_bytes = stream(from, &mut sources, name, &header, pace).await?;
    Ok(Some(Merged { name, inputs, size_bytes, header }))
}

async fn stream(from: Inputs<'_>, sources: &mut [Source], name: LtxName, header: &Header, pace: &Pace<'_>) -> Result<u64, MaintainError> {
    let unfit = |error: LtxError| MaintainError::Unfit { object: name, why: error.into() };
    // The lowest page first; of one page, the newest version first.
    let mut heads = BinaryHeap::with_capacity(sources.len());
    for (age, source) in sources.iter_mut().enumerate() {
        if let Some(pgno) = source.next(from, pace).await? {
            heads.push((Reverse(pgno), age));
        }
    }
    let mut out = Sending { to: from, name, header, upload: None };
    let mut encoder = Encoder::new(Vec::new(), header).map_err(unfit)?;
    let part_bytes = from.store.part_size_bytes();
    let mut last: Option<PageNo> = None;
    let outcome = async {
        while let Some((Reverse(pgno), age)) = heads.pop() {
            let Some(source) = sources.get_mut(age) else { continue };
            if last != Some(pgno) && pgno.get() <= header.commit_pages {
                encoder.page(pgno, &source.page).map_err(unfit)?;
                out.parts(encoder.out_mut(), part_bytes, pace).await?;
            }
            last = Some(pgno);
            if let Some(next) = source.next(from, pace).await? {
                heads.push((Reverse(next), age));
            }
        }
        let mut finished = encoder.finish().map_err(unfit)?;
        out.parts(&mut finished.out, part_bytes, pace).await?;
        out.end(finished.out, finished.size_bytes, finished.file_checksum, pace).await?;
        Ok(finished.size_bytes)
    }
    .await;
    if outcome.is_err() {
        out.abort().await;
    }
    outcome
}

/// An object on its way.
struct Sending<'a> {
    to: Inputs<'a>,
    name: LtxName,
    header: &'a Header,
    upload: Option<Box<dyn Upload>>,
}

impl Sending<'_> {
    /// Sends what is complete.
    async fn parts(&mut self, buffer: &mut Vec<u8>, part_bytes: usize, pace: &Pace<'_>) -> Result<(), MaintainError> {
        while buffer.len() >= part_bytes {
            let rest = buffer.split_off(part_bytes);
            let part = std::mem::replace(buffer, rest);
            pace.wait().await?;
            self.part(part.into()).await?;
        }
        Ok(())
    }

    async fn part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => self.upload.insert(retried(async || self.to.store.upload(&self.name, self.header.timestamp).await).await?),
        };
        fault_point!("maintain.part");
        upload.part(part).await
    }

    /// Makes the object visible, and looks whether the store has what was sent.
    async fn end(&mut self, rest: Vec<u8>, size_bytes: u64, checksum: u64, pace: &Pace<'_>) -> Result<(), MaintainError> {
        let (rest, is_whole) = (Bytes::from(rest), self.upload.is_none());
        pace.wait().await?;
        if self.upload.is_some() && !rest.is_empty() {
            self.part(rest.clone()).await?;
        }
        fault_point!("maintain.create");
        let created = match self.upload.take() {
            Some(upload) => upload.finish().await?,
            None => retried(async || self.to.store.create(&self.name, rest.clone(), self.header.timestamp).await).await?,
        };
        fault_point!("maintain.created");
        pace.wait().await?;
        match (is_stored(self.to.store, &self.name, size_bytes, checksum).await?, created) {
            (true, _) => {
                if let Some(at_hand) = self.to.at_hand {
                    at_hand.made(&self.name, is_whole.then_some(rest));
                }
                Ok(())
            }
            // Somebody else's of the same TXIDs, as Litestream makes it: good, if it is good.
            (false, Created::AlreadyExists) => verify(self.to.store, &self.name, pace).await.map(|_| ()),
            (false, Created::New) => {
                // Nothing needs it, and a restore would trip over it. Where it cannot be deleted the error says what it is.
                let _ = self.to.store.delete(&[self.name]).await;
                Err(MaintainError::NotStored { object: self.name })
            }
        }
    }

    async fn abort(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.abort().await;
        }
    }
}

/// Whether an object has that size and ends with that checksum.
async fn is_stored(store: &dyn Store, name: &LtxName, size_bytes: u64, checksum: u64) -> Result<bool, StoreError> {
    if retried(async || store.head(name).await).await?.size_bytes != size_bytes {
        return Ok(false);
    }
    let last8 = retried(async || store.get_range(name, size_bytes.saturating_sub(8)..size_bytes).await).await?;
    Ok(last8.as_ref() == checksum.to_be_bytes())
}

/// Reads an object from its start to its end, and says what it is once every checksum was right.
pub(super) async fn verify(store: &dyn Store, name: &LtxName, pace: &Pace<'_>) -> Result<Summary, MaintainError> {
    let file = Listed { name: *name, ..retried(async || store.head(name).await).await? };
    let from = Inputs::stored(store);
    let mut source = Source::open(from, file, CHUNK_BYTES).await?;
    while source.next(from, pace).await?.is_some() {}
    source.summary.ok_or(MaintainError::Unfit { object: *name, why: Unfit::Short(file.size_bytes) })
}
