//! Reads one LTX file on several threads, verifying everything, without doing any I/O.
//!
//! ```text
//! bytes as they arrive -> Splitter (finds the frames, in order, decompresses nothing) -> Run -> any thread: Run::decode -> Sum
//!                                                                                       Sums, in any order -> Ledger -> the file's checksum
//! ```
//!
//! The checksum is over the pages and not over their compressed form; since it is a CRC, that of the whole is had from those of the parts.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::checksum::{CHECKSUM_FLAG, FileCrc, RollingChecksum};
use super::page::{self, PAGE_HEADER_BYTES, Step};
use super::{HEADER_BYTES, Header, IndexEntry, LtxError, TRAILER_BYTES};
use crate::types::PageNo;

/// Cuts a file, or a part of one, into runs of page frames.
#[derive(Debug)]
pub(crate) struct Splitter {
    header: Header,
    state: State,
    /// The beginning of a frame that goes on in the next chunk; in the tail, its last bytes.
    buffer: Vec<u8>,
    /// Where the buffer's first byte is in the file.
    offset: u64,
    last_page: u32,
    /// Of all that follows the last frame.
    tail: FileCrc,
    digest: FrameDigest,
    is_part: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Pages,
    /// Behind the last page. The last 16 bytes, wherever they are, are the trailer; what is before them is the page index.
    Tail,
}

/// Page frames that follow one another, all of them complete.
#[derive(Debug)]
pub(crate) struct Run {
    header: Header,
    /// Where its first frame is in the file.
    offset: u64,
    /// A frame whose bytes came in two chunks; empty where there is none.
    joined: Vec<u8>,
    frames: Bytes,
    /// Which of the frames' pages are wanted.
    wanted: Vec<bool>,
    is_part: bool,
}

/// What a run gives to the checksums of its file.
#[derive(Debug)]
pub(crate) struct Sum {
    crc: FileCrc,
    rolling: RollingChecksum,
}

/// What stands behind a file's last frame.
#[derive(Debug)]
pub(crate) struct Ending {
    crc: FileCrc,
    trailer: [u8; TRAILER_BYTES],
}

/// Puts a file's checksums together.
#[derive(Debug)]
pub(crate) struct Ledger {
    header: Header,
    crc: FileCrc,
    rolling: RollingChecksum,
    added: u64,
    early: BTreeMap<u64, Sum>,
}

impl Splitter {
    /// Begins a file: `bytes` are its first ones and hold the whole header. The next ones to be pushed are those after it.
    pub(crate) fn begin(bytes: &[u8]) -> Result<Self, LtxError> {
        Ok(Self { is_part: false, ..Self::within(Header::decode(bytes)?, HEADER_BYTES as u64) })
    }

    /// Begins in the midst of a file, at a frame.
    pub(crate) fn within(header: Header, offset: u64) -> Self {
        let (buffer, tail, digest) = (Vec::new(), FileCrc::new(), FrameDigest::new());
        Self { header, state: State::Pages, buffer, offset, last_page: 0, tail, digest, is_part: true }
    }

    pub(crate) const fn header(&self) -> &Header {
        &self.header
    }

    /// Takes the next bytes; the answer is the frames that they complete, if there are any. `want` is asked of each page, in their order.
    pub(crate) fn push(&mut self, bytes: &Bytes, want: &mut dyn FnMut(PageNo) -> bool) -> Result<Option<Run>, LtxError> {
        let (joined, frames, wanted) = Default::default();
        let mut run = Run { header: self.header, offset: self.offset, joined, frames, wanted, is_part: self.is_part };
        let mut rest: &[u8] = bytes;
        while self.state == State::Pages && !self.buffer.is_empty() {
            match page::scan(&self.buffer, self.header.page_size, self.offset)? {
                Step::Need(need) => {
                    let missing = need.saturating_sub(self.buffer.len());
                    let (taken, left) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
                    self.buffer.extend_from_slice(taken);
                    rest = left;
                    // `scan` never asks for nothing; were it to, nothing would ever come of it.
                    if taken.len() < missing || missing == 0 {
                        return Ok(None);
                    }
                }
                Step::Page { page, frame_bytes } => {
                    self.take_frame(page, frame_bytes, &mut run, want)?;
                    run.joined = std::mem::take(&mut self.buffer);
                }
                Step::Terminator => {
                    let terminator = std::mem::take(&mut self.buffer);
                    self.take_terminator(&terminator);
                }
            }
        }
        let start = bytes.len() - rest.len();
        let mut end = start;
        while self.state == State::Pages && !rest.is_empty() {
            match page::scan(rest, self.header.page_size, self.offset)? {
                Step::Need(_) => self.buffer.extend_from_slice(std::mem::take(&mut rest)),
                Step::Page { page, frame_bytes } => {
                    self.take_frame(page, frame_bytes, &mut run, want)?;
                    rest = rest.get(frame_bytes..).unwrap_or_default();
                    end += frame_bytes;
                }
                Step::Terminator => {
                    let (terminator, left) = rest.split_at_checked(PAGE_HEADER_BYTES).unwrap_or((rest, &[]));
                    self.take_terminator(terminator);
                    rest = left;
                }
            }
        }
        if self.state == State::Tail {
            self.take_tail(rest);
        }
        run.frames = bytes.slice(start..end);
        Ok(if run.wanted.is_empty() { None } else { Some(run) })
    }

    /// Ends the file.
    pub(crate) fn finish(self) -> Result<Ending, LtxError> {
        let size_bytes = self.offset + self.buffer.len() as u64;
        let truncated = |part| LtxError::Truncated { offset: size_bytes, part };
        if self.state == State::Pages {
            return Err(truncated("pages"));
        }
        let trailer = self.buffer.first_chunk().ok_or_else(|| truncated("trailer"))?;
        Ok(Ending { crc: self.tail, trailer: *trailer })
    }

    /// Ends a part of a file, which must have been just the frames that its index gives.
    pub(crate) fn finish_part(self, expected: &FrameDigest) -> Result<(), LtxError> {
        if self.state == State::Pages && self.buffer.is_empty() && self.digest == *expected {
            Ok(())
        } else {
            Err(LtxError::Index { offset: 0, reason: "the frames are not those that it gives" })
        }
    }

    fn take_frame(
        &mut self,
        page: PageNo,
        frame_bytes: usize,
        run: &mut Run,
        want: &mut dyn FnMut(PageNo) -> bool,
    ) -> Result<(), LtxError> {
        if page.get() <= self.last_page {
            let expected = self.last_page.saturating_add(1);
            return Err(LtxError::PageOrder { offset: self.offset, page: page.get(), expected, exact: false });
        }
        if self.is_part {
            self.digest.add(&IndexEntry { pgno: page, offset: self.offset, size: frame_bytes as u64 });
        }
        self.last_page = page.get();
        self.offset += frame_bytes as u64;
        run.wanted.push(want(page));
        Ok(())
    }

    fn take_terminator(&mut self, bytes: &[u8]) {
        self.tail.update(bytes);
        self.offset += bytes.len() as u64;
        self.state = State::Tail;
    }

    /// Keeps the last 16 bytes; what they push out belongs to the page index.
    fn take_tail(&mut self, bytes: &[u8]) {
        let surplus = (self.buffer.len() + bytes.len()).saturating_sub(TRAILER_BYTES);
        let old = surplus.min(self.buffer.len());
        let (passed, kept) = bytes.split_at_checked(surplus - old).unwrap_or((bytes, &[]));
        self.tail.update(self.buffer.get(..old).unwrap_or_default());
        self.tail.update(passed);
        self.buffer.drain(..old);
        self.buffer.extend_from_slice(kept);
        self.offset += surplus as u64;
    }
}

impl Run {
    /// Decompresses every page, hands those that are wanted to `on_page`, and sums all of them up. Of a part of a file, which has no
    /// checksum of its own, only those that are wanted.
    pub(crate) fn decode(&self, on_page: &mut dyn FnMut(PageNo, &[u8]) -> std::io::Result<()>) -> Result<Sum, LtxError> {
        let mut sum = Sum { crc: FileCrc::new(), rolling: RollingChecksum::new() };
        let has_rolling = Ledger::has_rolling(&self.header);
        let mut content = vec![0; self.header.page_size.bytes()];
        let mut offset = self.offset;
        let mut wanted = self.wanted.iter();
        for mut rest in [self.joined.as_slice(), &self.frames] {
            while !rest.is_empty() {
                // The splitter has seen that these are complete frames.
                let Step::Page { page, frame_bytes } = page::scan(rest, self.header.page_size, offset)? else {
                    return Err(LtxError::Failed);
                };
                let (frame, left) = rest.split_at_checked(frame_bytes).ok_or(LtxError::Failed)?;
                let is_wanted = wanted.next().copied().unwrap_or_default();
                if is_wanted || !self.is_part {
                    page::decompress(frame, page, offset, &mut content)?;
                    sum.crc.update(frame.get(..page::hashed_bytes(frame)).unwrap_or_default());
                    sum.crc.update(&content);
                    if has_rolling {
                        sum.rolling.add(page.get(), &content);
                    }
                }
                if is_wanted {
                    on_page(page, &content).map_err(LtxError::Io)?;
                }
                rest = left;
                offset += frame_bytes as u64;
            }
        }
        Ok(sum)
    }
}

impl Ledger {
    /// Begins with a file's header, as its first bytes have it.
    pub(crate) fn new(header: &Header, bytes: &[u8]) -> Self {
        let mut crc = FileCrc::new();
        crc.update(bytes.get(..HEADER_BYTES).unwrap_or_default());
        Self { header: *header, crc, rolling: RollingChecksum::new(), added: 0, early: BTreeMap::new() }
    }

    /// Takes the sum of the file's run of that number, from 0.
    pub(crate) fn add(&mut self, number: u64, sum: Sum) {
        self.early.insert(number, sum);
        while let Some(sum) = self.early.remove(&self.added) {
            self.crc.append(&sum.crc);
            self.rolling.merge(&sum.rolling);
            self.added += 1;
        }
    }

    /// How many runs have been added, none before them missing.
    pub(crate) const fn added(&self) -> u64 {
        self.added
    }

    /// Verifies the file, all of whose runs have been added.
    pub(crate) fn finish(mut self, ending: &Ending) -> Result<(), LtxError> {
        let Some((post_apply, rest)) = ending.trailer.split_first_chunk::<8>() else { return Err(LtxError::Failed) };
        let stored = rest.first_chunk::<8>().map_or(0, |stored| u64::from_be_bytes(*stored));
        self.crc.append(&ending.crc);
        self.crc.update(post_apply);
        let computed = self.crc.value();
        if stored != computed {
            return Err(LtxError::FileChecksum { stored, computed });
        }
        let post_apply = u64::from_be_bytes(*post_apply);
        let wrong = |rule| Err(LtxError::PostApplyChecksum { stored: post_apply, rule });
        match self.header.no_checksum {
            true if post_apply != 0 => wrong("it must be 0 in a file without checksums"),
            true => Ok(()),
            false if Self::has_rolling(&self.header) && self.rolling.value() != post_apply => {
                wrong("it is not the checksum of the snapshot's pages")
            }
            false if post_apply & CHECKSUM_FLAG == 0 => wrong("its highest bit must be set"),
            false => Ok(()),
        }
    }

    /// Whether the pages of a file are those of the whole database, whose checksum it has.
    const fn has_rolling(header: &Header) -> bool {
        !header.no_checksum && header.min_txid.get() == 1
    }
}

/// Tells whether frames are those that a page index gives, without keeping either.
#[derive(Clone, Debug)]
pub(crate) struct FrameDigest {
    crc: FileCrc,
    frames: u64,
}

impl FrameDigest {
    pub(crate) fn new() -> Self {
        Self { crc: FileCrc::new(), frames: 0 }
    }

    pub(crate) fn add(&mut self, entry: &IndexEntry) {
        self.crc.update(&entry.pgno.get().to_be_bytes());
        self.crc.update(&entry.offset.to_be_bytes());
        self.crc.update(&entry.size.to_be_bytes());
        self.frames += 1;
    }
}

impl PartialEq for FrameDigest {
    fn eq(&self, other: &Self) -> bool {
        self.frames == other.frames && self.crc.value() == other.crc.value()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ltx::{Decoder, Encoder, PageForm};
    use crate::types::{PageSize, TimestampMs, Txid};

    type Pages = Vec<(u32, Vec<u8>)>;

    /// What the decoder of one thread says, and what it hands out.
    fn in_order(bytes: &[u8]) -> (Result<(), String>, Pages) {
        let mut pages = Vec::new();
        let mut decoder = Decoder::new();
        let pushed = decoder.push(bytes, &mut |page, data| {
            pages.push((page.get(), data.to_vec()));
            Ok(())
        });
        (pushed.and_then(|()| decoder.finish().map(drop)).map_err(|error| error.to_string()), pages)
    }

    fn in_parts(bytes: &[u8], chunk_bytes: usize, backwards: bool) -> (Result<(), String>, Pages) {
        let mut pages = Vec::new();
        let outcome = (|| {
            let mut splitter = Splitter::begin(bytes)?;
            let mut ledger = Ledger::new(splitter.header(), bytes);
            let mut runs = Vec::new();
            for chunk in bytes[HEADER_BYTES..].chunks(chunk_bytes) {
                runs.extend(splitter.push(&Bytes::copy_from_slice(chunk), &mut |_| true)?);
            }
            let count = runs.len() as u64;
            let mut numbered: Vec<(u64, Run)> = (0..).zip(runs).collect();
            if backwards {
                numbered.reverse();
            }
            for (number, run) in numbered {
                ledger.add(
                    number,
                    run.decode(&mut |page, data| {
                        pages.push((page.get(), data.to_vec()));
                        Ok(())
                    })?,
                );
            }
            assert_eq!(ledger.added(), count);
            ledger.finish(&splitter.finish()?)
        })();
        pages.sort();
        (outcome.map_err(|error: LtxError| error.to_string()), pages)
    }

    proptest! {
        #[test]
        fn parts_in_any_order_give_what_one_thread_gives(
            pages in proptest::collection::btree_map(1_u32..300, (any::<u8>(), any::<bool>()), 0..60),
            chunk_bytes in 1_usize..3000,
            backwards: bool,
            is_framed: bool,
            damage in proptest::option::of((any::<prop::sample::Index>(), 1_u8..)),
        ) {
            let header = Header::new(PageSize::MIN, 300, Txid::new(2).unwrap(), Txid::new(3).unwrap(), TimestampMs(5));
            let form = if is_framed { PageForm::Frame } else { PageForm::Block };
            let mut encoder = Encoder::with_form(Vec::new(), &header, form).unwrap();
            for (number, (byte, is_noise)) in &pages {
                let mut data = vec![*byte; 512];
                if *is_noise {
                    fastrand::Rng::with_seed(u64::from(*byte)).fill(&mut data);
                }
                encoder.page(PageNo::new(*number).unwrap(), &data).unwrap();
            }
            let mut bytes = encoder.finish().unwrap().out;
            if let Some((at, bits)) = damage {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            let (expected, expected_pages) = in_order(&bytes);
            let (found, found_pages) = if bytes.len() < HEADER_BYTES {
                (expected.clone(), expected_pages.clone())
            } else {
                in_parts(&bytes, chunk_bytes, backwards)
            };
            prop_assert_eq!(found.is_ok(), expected.is_ok(), "{:?} against {:?}", found, expected);
            if expected.is_ok() {
                prop_assert_eq!(found_pages, expected_pages);
            }
        }
    }

    #[test]
    fn the_checksum_of_a_databases_pages_is_put_together_too() {
        let header = Header::new(PageSize::MIN, 40, Txid::FIRST, Txid::FIRST, TimestampMs(5));
        let mut encoder = Encoder::new(Vec::new(), &header).unwrap();
        let mut rolling = RollingChecksum::new();
        for number in 1..=40 {
            encoder.page(PageNo::new(number).unwrap(), &[number as u8; 512]).unwrap();
            rolling.add(number, &[number as u8; 512]);
        }
        let mut bytes = encoder.finish().unwrap().out;
        // What we never write: a file with the checksum of its database, the right one and a wrong one.
        bytes[7] = 0;
        for (stored, is_right) in [(rolling.value(), true), (rolling.value() ^ 1, false)] {
            let at = bytes.len() - TRAILER_BYTES;
            bytes[at..at + 8].copy_from_slice(&stored.to_be_bytes());
            let mut decoder = Decoder::new();
            decoder.push(&bytes, &mut |_, _| Ok(())).unwrap();
            if let Err(LtxError::FileChecksum { computed, .. }) = decoder.finish() {
                bytes[at + 8..].copy_from_slice(&computed.to_be_bytes());
            }
            let (expected, pages) = in_order(&bytes);
            assert_eq!(expected.is_ok(), is_right);
            for chunk_bytes in [1, 7, 100, 1 << 20] {
                assert_eq!(in_parts(&bytes, chunk_bytes, true), (expected.clone(), pages.clone()));
            }
        }
    }
}
