//! The batch that is frozen under a TXID and on its way, byte for byte until the bucket has it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{LiveEnd, Mode, Tail, TailError, open_wal};
use crate::fault::{fault_io, fault_point};
use crate::ltx::{Header, Reader};
use crate::replicator::batch::FramePages;
use crate::replicator::control::{Acked, Attempt};
use crate::spool::{Made, Merged, Merging, SpoolError, Stored};
use crate::types::{TimestampMs, Txid, WalPos};

/// The bytes of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Memory(Bytes),
    File(PathBuf),
}

/// A frozen batch on its way.
#[derive(Clone, Debug)]
pub(crate) struct Inflight {
    pub(crate) attempt: Attempt,
    pub(crate) body: Body,
    /// The commits that it contains.
    pub(crate) sequence: u64,
}

/// A batch that is made of what was spooled. Its name is its own as long as nothing else was frozen.
pub(crate) struct Spooled {
    txid: Txid,
    /// The commits that it contains.
    sequence: u64,
    merging: Merging,
}

/// The same, made.
pub(crate) struct SpooledBatch {
    txid: Txid,
    sequence: u64,
    header: Header,
    merged: Merged,
}

impl Spooled {
    /// Makes it. Needs no lock.
    pub(crate) fn run(self) -> SpooledBatch {
        SpooledBatch { txid: self.txid, sequence: self.sequence, header: *self.merging.header(), merged: self.merging.run() }
    }
}

impl Tail {
    /// The bytes of a batch on its way go to disk, so that a successor can send exactly them.
    pub(super) fn save_attempt(&mut self) -> Result<(), TailError> {
        let Some(inflight) = &mut self.inflight else { return Ok(()) };
        let Body::Memory(bytes) = &inflight.body else { return Ok(()) };
        let path = self.spool.attempt_path(inflight.attempt.txid);
        let write_error = |source| SpoolError::Io { path: path.clone(), source };
        fault_io!("attempt.write").map_err(write_error)?;
        // What a full disk does not take is still here. A successor misses it, and sends the full state.
        let _stored = self.spool.create_attempt(inflight.attempt.txid, |out| out.write_all(bytes).map_err(write_error))?;
        fault_point!("attempt.written");
        inflight.attempt.in_file = true;
        self.state.attempt = Some(inflight.attempt);
        Ok(())
    }

    /// Freezes the next batch: everything that is captured or in the WAL becomes one LTX file with the next TXID. What was spooled is returned, to be made without the lock
    /// on this, and to be frozen then by `freeze_spooled`.
    pub(crate) fn freeze(&mut self, live: &LiveEnd) -> Result<Option<Spooled>, TailError> {
        let Some(acked) = self.state.acked else { return Ok(None) };
        let txid = acked.txid.next();
        if !self.spool.is_empty() {
            self.capture_to_spool(live, u32::MAX)?;
            self.spool.bound()?;
            let (sequence, merging) = (self.captured_sequence, self.spool.merge_all(txid, self.state.node_id)?);
            return Ok(merging.map(|merging| Spooled { txid, sequence, merging }));
        }
        if self.uncaptured_frames(&live.end) == 0 {
            return Ok(None);
        }
        let Some(captured) = self.state.captured else { return Ok(None) };
        let wal = open_wal(&mut self.wal, &self.paths)?;
        let pages = wal.committed_pages(&self.frames, &captured, &live.end)?;
        let mut attempt = Attempt {
            txid,
            start: captured,
            end: pages.end,
            commit_pages: pages.commit_pages,
            timestamp_ms: live.committed_ms,
            size_bytes: 0,
            checksum: 0,
            in_file: pages.content_bytes() > self.memory_batch_bytes,
        };
        let header = attempt_header(&attempt, &pages, self.state.node_id);
        let body = if attempt.in_file {
            let stored = self.spool.create_attempt(txid, |out| {
                let finished = wal.encode(&pages, &header, out)?;
                (attempt.size_bytes, attempt.checksum) = (finished.size_bytes, finished.file_checksum);
                Ok::<_, TailError>(())
            })?;
            // Where it is in memory the WAL has it, too.
            attempt.in_file = matches!(stored, Stored::File(_));
            self.body(txid, stored)
        } else {
            let finished = wal.encode(&pages, &header, Vec::new())?;
            (attempt.size_bytes, attempt.checksum) = (finished.size_bytes, finished.file_checksum);
            Body::Memory(finished.out.into())
        };
        self.state.page_size = pages.page_size.get();
        self.state.captured = Some(pages.end);
        self.captured_sequence = live.sequence;
        self.begin_attempt(attempt, body, live.sequence).map(|()| None)
    }

    /// Freezes a batch that was made of what was spooled, and keeps what was spooled since. False where that is not there any more, or continuity was lost.
    pub(crate) fn freeze_spooled(&mut self, batch: SpooledBatch) -> Result<bool, TailError> {
        let (txid, header) = (batch.txid, batch.header);
        let is_next =
            self.state.acked.is_some_and(|acked| acked.txid.next() == txid) && self.state.attempt.is_none() && self.inflight.is_none();
        if !is_next || self.mode != Mode::Running {
            return Ok(false);
        }
        let Some(Made { stored, size_bytes, file_checksum }) = self.spool.take_attempt(txid, batch.merged)? else { return Ok(false) };
        // A successor finds it in the file, or misses it.
        let attempt = Attempt {
            txid,
            start: WalPos::default(),
            end: header.wal_end().unwrap_or_default(),
            commit_pages: header.commit_pages,
            timestamp_ms: header.timestamp.0,
            size_bytes,
            checksum: file_checksum,
            in_file: true,
        };
        self.begin_attempt(attempt, self.body(txid, stored), batch.sequence)?;
        fault_point!("freeze.spool-sent");
        self.spool.remove_stale(Some(txid))?;
        Ok(true)
    }

    pub(super) fn body(&self, txid: Txid, stored: Stored) -> Body {
        match stored {
            Stored::File(_) => Body::File(self.spool.attempt_path(txid)),
            Stored::Memory(bytes) => Body::Memory(bytes),
        }
    }

    fn begin_attempt(&mut self, attempt: Attempt, body: Body, sequence: u64) -> Result<(), TailError> {
        fault_point!("freeze.encoded");
        self.inflight = Some(Inflight { attempt, body, sequence });
        self.state.attempt = Some(attempt);
        fault_point!("attempt.save");
        self.save()?;
        fault_point!("attempt.saved");
        Ok(())
    }

    /// Builds the batch again that a predecessor may have sent; false where its bytes cannot be had any more.
    pub(crate) fn rebuild_attempt(&mut self) -> Result<bool, TailError> {
        let Some(attempt) = self.state.attempt else { return Ok(true) };
        fault_point!("attempt.rebuild");
        let body = if attempt.in_file {
            let path = self.spool.attempt_path(attempt.txid);
            // A power loss can leave a file of the right length without its content.
            is_intact(&path, &attempt).then_some(Body::File(path))
        } else {
            self.encode_attempt(&attempt).unwrap_or_default().map(Body::Memory)
        };
        let Some(body) = body else { return Ok(false) };
        self.inflight = Some(Inflight { attempt, body, sequence: 0 });
        Ok(true)
    }

    pub(super) fn encode_attempt(&mut self, attempt: &Attempt) -> Result<Option<Bytes>, TailError> {
        let node_id = self.state.node_id;
        let wal = open_wal(&mut self.wal, &self.paths)?;
        let pages = wal.pages(&attempt.start, attempt.end.frame)?;
        if pages.end != attempt.end {
            return Ok(None);
        }
        let finished = wal.encode(&pages, &attempt_header(attempt, &pages, node_id), Vec::new())?;
        Ok((finished.file_checksum == attempt.checksum).then(|| finished.out.into()))
    }

    /// The bucket has the batch that was on its way.
    pub(crate) fn acknowledged(&mut self) -> Result<Option<Inflight>, TailError> {
        let Some(inflight) = self.inflight.take() else { return Ok(None) };
        self.state.acked = Some(Acked { txid: inflight.attempt.txid, end: inflight.attempt.end });
        self.state.attempt = None;
        // Nobody had taken the name.
        self.state.looks.compared();
        fault_point!("ack.save");
        self.save()?;
        fault_point!("ack.saved");
        if inflight.attempt.in_file {
            self.spool.remove_attempt(inflight.attempt.txid);
        }
        Ok(Some(inflight))
    }
}

fn attempt_header(attempt: &Attempt, pages: &FramePages, node_id: u64) -> Header {
    let mut header = Header::new(pages.page_size, pages.commit_pages, attempt.txid, attempt.txid, TimestampMs(attempt.timestamp_ms));
    header.set_wal_range(attempt.start.frame, &pages.end);
    header.node_id = node_id;
    header
}

/// Whether a file holds the attempt's bytes.
fn is_intact(path: &Path, attempt: &Attempt) -> bool {
    let Ok(file) = File::open(path) else { return false };
    if !file.metadata().is_ok_and(|m| m.len() == attempt.size_bytes) {
        return false;
    }
    let (mut reader, mut page) = (Reader::new(file), Vec::new());
    while let Ok(next) = reader.next_page(&mut page) {
        if next.is_none() {
            return reader.summary().is_some_and(|s| s.file_checksum == attempt.checksum);
        }
    }
    false
}
