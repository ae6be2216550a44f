//! From the WAL or the database file into the spool, before SQLite destroys or overwrites what is there.

use std::io::Write;
use std::sync::atomic::Ordering;

use super::{Body, Inflight, LiveEnd, Mode, Tail, TailError, open_wal};
use crate::fault::fault_point;
use crate::logging::event;
use crate::ltx::Encoder;
use crate::replicator::control::{Attempt, OpenTransaction, Stamp};
use crate::spool::{Merging, SpoolError, entry_header};
use crate::types::{PageNo, PageSize, TimestampMs, WalPos};

/// A commit that changed the database file itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileCommit {
    pub(crate) page_size: PageSize,
    /// The database's size in pages.
    pub(crate) pages: u32,
    pub(crate) committed_ms: i64,
    pub(crate) sequence: u64,
    /// The file after it.
    pub(crate) stamp: Option<Stamp>,
}

/// Reads a page of the database file; false where that fails.
pub(crate) type ReadPage<'a> = dyn FnMut(PageNo, &mut [u8]) -> bool + 'a;

impl Tail {
    /// Encodes what is in the WAL only into the spool, unless that is more than `most_frames`.
    pub(crate) fn capture_to_spool(&mut self, live: &LiveEnd, most_frames: u32) -> Result<(), TailError> {
        let frames = self.uncaptured_frames(&live.end);
        if frames > most_frames {
            return Err(TailError::TooMuch { frames });
        }
        if frames > 0
            && let Some(captured) = self.state.captured
        {
            fault_point!("capture.begin");
            let wal = open_wal(&mut self.wal, &self.paths)?;
            let pages = wal.committed_pages(&self.frames, &captured, &live.end)?;
            let mut header =
                entry_header(pages.page_size, pages.commit_pages, TimestampMs(live.committed_ms), self.state.node_id, self.spool.next());
            header.set_wal_range(captured.frame, &pages.end);
            self.spool.append(|out| wal.encode(&pages, &header, out).map(drop).map_err(TailError::Batch))?;
            self.shared.counters.spooled.fetch_add(1, Ordering::Relaxed);
            fault_point!("capture.spooled");
            self.state.page_size = pages.page_size.get();
            self.state.captured = Some(pages.end);
            self.captured_sequence = live.sequence;
            self.save()?;
            fault_point!("capture.saved");
        }
        Ok(())
    }

    /// What is noted of the database file will not be true of it after a loss of power; whether it would have been until now.
    pub(crate) fn file_may_be_lost(&mut self) -> bool {
        let was_safe = self.state.stamp.as_mut().is_some_and(|stamp| std::mem::take(&mut stamp.synced));
        if was_safe {
            self.save_or_warn();
        }
        was_safe
    }

    /// A rollback-mode transaction is about to write to the database file, which looks as given. False where somebody else has written to it
    /// since the last captured commit.
    pub(crate) fn begins_in_file(&mut self, transaction: OpenTransaction, now: Option<Stamp>) -> Result<bool, TailError> {
        if let Mode::Stopped(..) = self.mode {
            // See `seal`.
            if self.state.sealed {
                (self.state.sealed, self.state.next_salts) = (false, None);
                self.save()?;
            }
            return Ok(true);
        }
        if self.state.captured.is_none() {
            return Ok(true);
        }
        let words = |stamp: Option<Stamp>| stamp.map(|s| s.header_words);
        if !self.state.sealed || self.state.stamp.is_some() && words(self.state.stamp) != words(now) {
            return Ok(false);
        }
        self.state.stamp = self.state.stamp.or(now);
        self.state.next_salts = None;
        // What one without a journal left, and nothing has captured since, no later journal can undo.
        let left = self.state.open_transaction.filter(|&left| left == OpenTransaction::Unprotected);
        self.state.open_transaction = left.or(Some(transaction));
        self.save()?;
        Ok(true)
    }

    /// Encodes the pages of a commit that is in the database file into the spool: `pages`, ascending, and what else lies below its size.
    pub(crate) fn commits_in_file(
        &mut self,
        commit: &FileCommit,
        pages: impl Iterator<Item = u32>,
        read: &mut ReadPage<'_>,
    ) -> Result<(), TailError> {
        let was_protected = self.state.open_transaction.take() != Some(OpenTransaction::Unprotected);
        if matches!(self.mode, Mode::Full(_)) {
            // It only counts up, or was gone back to by the application itself.
            self.state.stamp = commit.stamp;
        }
        if self.state.captured.is_none() || matches!(self.mode, Mode::Stopped(..)) {
            return self.save();
        }
        let header = entry_header(commit.page_size, commit.pages, TimestampMs(commit.committed_ms), self.state.node_id, self.spool.next());
        self.spool.append(|out| {
            let mut encoder = Encoder::new(out, &header)?;
            let mut content = vec![0; commit.page_size.bytes()];
            for page in pages.filter_map(PageNo::new) {
                if page.get() > commit.pages {
                    break;
                }
                if page == commit.page_size.lock_page() {
                    continue;
                }
                if !read(page, &mut content) {
                    return Err(TailError::Page { page });
                }
                encoder.page(page, &content)?;
            }
            encoder.finish()?;
            Ok::<_, TailError>(())
        })?;
        self.shared.counters.spooled.fetch_add(1, Ordering::Relaxed);
        self.state.page_size = commit.page_size.get();
        (self.state.captured, self.state.sealed, self.state.next_salts) = (Some(WalPos::default()), true, None);
        // Where nothing undoes what the next one writes the file does not count as being on disk, so that this need not be synced before each.
        self.state.stamp = commit.stamp.map(|stamp| Stamp { synced: stamp.synced && was_protected, ..stamp });
        self.captured_sequence = commit.sequence;
        self.save()
    }

    /// SQLite is about to roll back what a dead process left in the database file, which looks as given. A journal that was not synced may hold anything after a
    /// loss of power.
    pub(crate) fn rolls_back_in_file(&mut self, now: Option<Stamp>, journal_was_synced: bool) {
        self.rolled_back = true;
        let untouched = matches!((self.state.stamp, now), (Some(then), Some(now)) if then.still_holds(&now) && (journal_was_synced || then.boot == now.boot));
        if self.mode == Mode::Unresolved && self.state.sealed && untouched && self.state.open_transaction.is_none() {
            // It died when it had synced its journal and not written to the database yet. From here on the file's times tell nothing.
            self.state.open_transaction = Some(OpenTransaction::Journaled);
            self.save_or_warn();
        }
    }

    /// A transaction that wrote to the database file was rolled back, by its journal: the file holds what it held before.
    pub(crate) fn rolled_back_in_file(&mut self, now: Option<Stamp>) -> Result<(), TailError> {
        if self.mode == Mode::Unresolved {
            // Still to be judged by what is noted.
            return Ok(());
        }
        let same = matches!((self.state.stamp, now), (Some(then), Some(now)) if then.header_words == now.header_words);
        if self.state.captured.is_some() && self.state.sealed && same && !matches!(self.mode, Mode::Stopped(..)) {
            self.state.stamp = now;
        }
        self.state.open_transaction = None;
        self.save()
    }

    /// Makes everything safe that SQLite is about to destroy, so that a generation of the WAL may end.
    pub(crate) fn seal(&mut self, live: &LiveEnd, most_frames: u32, stamp: Option<Stamp>) -> Result<(), TailError> {
        if let Mode::Stopped(..) = self.mode {
            // What is committed while nothing is captured must never pass for captured: a later open then finds continuity lost.
            if self.state.sealed && live.end.frame > 0 && self.state.captured != Some(live.end) {
                (self.state.sealed, self.state.next_salts) = (false, None);
                self.save()?;
            }
            return Ok(());
        }
        fault_point!("seal.begin");
        self.capture_to_spool(live, most_frames)?;
        if self.inflight.is_none() && !matches!(self.mode, Mode::Full(_)) {
            // A predecessor's, which the uploader has not come to yet: its frames go now. Where it cannot be built the uploader finds that out.
            self.rebuild_attempt()?;
        }
        self.save_attempt()?;
        self.spool.settle();
        if self.state.captured.is_some() {
            self.state.sealed = true;
            self.stamp(stamp);
        }
        self.wal = None;
        self.save()?;
        fault_point!("seal.saved");
        Ok(())
    }

    /// SQLite writes the header of a new generation.
    ///
    /// False where frames of the one before may have been lost by that.
    pub(crate) fn generation_begins(&mut self, salts: [u32; 2], live: &WalPos) -> bool {
        let Some(captured) = self.state.captured else { return true };
        if let Mode::Stopped(..) = self.mode {
            // What goes on in a file that was not recognised must not vouch for it at the next open.
            return true;
        }
        if captured.salts == salts || self.state.next_salts == Some(salts) {
            return true;
        }
        fault_point!("generation.save");
        if self.state.sealed {
            self.state.next_salts = Some(salts);
            self.save_or_warn();
        } else if captured.frame == 0 && live.frame == 0 {
            // Nothing was ever committed to the generation before: a transaction that was rolled back had written its header.
            self.state.captured = Some(WalPos { salts, ..WalPos::default() });
            self.save_or_warn();
        } else {
            return false;
        }
        fault_point!("generation.saved");
        true
    }

    /// Begins to merge waiting spool entries, where they are many. To be made without the lock on this, and to be taken then by `Spool::take`.
    pub(crate) fn merge_waiting(&mut self) -> Result<Option<Merging>, TailError> {
        self.settle();
        Ok(self.spool.merge_newest()?)
    }

    /// Puts what a full disk did not take there, if it has room now. The control file speaks of it already.
    pub(super) fn settle(&mut self) {
        self.spool.settle();
        if let Some(Inflight { attempt: Attempt { in_file: true, txid, .. }, body: Body::Memory(bytes), .. }) = &self.inflight
            && !self.spool.has_attempt()
        {
            let path = self.spool.attempt_path(*txid);
            let io = |source| SpoolError::Io { path: path.clone(), source };
            if let Err(error) = self.spool.create_attempt(*txid, |out| out.write_all(bytes).map_err(io)) {
                event!(Debug, "local_file", self, cause = error; "{error}");
            }
        }
    }
}
