//! The database file: who writes to it, what a snapshot needs of it before, what it looks like.

use std::fs::Metadata;
use std::io;
use std::sync::atomic::Ordering;

use super::Database;
use super::outside::FileChange;
use super::published::Published;
use crate::logging::{event, repeated_event};
use crate::replicator::control::Stamp;
use crate::replicator::file_header::{FileHeader, HEADER_BYTES};
use crate::replicator::mark::{self, Mark};
use crate::replicator::preserve::{DatabaseFile, Preserver};
use crate::replicator::shared::{Preserving, Range};
use crate::replicator::stamp;

#[derive(Debug, Default)]
pub(super) struct PreserverSlot {
    pub(super) active: Option<Preserver>,
    /// Checkpoints and transactions of this process that write to the database file now.
    writers: u32,
}

impl Database {
    /// Whether `before_write` has to be called.
    pub(crate) fn is_preserving(&self) -> bool {
        self.preserving.load(Ordering::Acquire)
    }

    /// A page of the database file is about to be overwritten.
    pub(crate) fn before_write(&self, offset: u64, bytes: usize, read: &mut dyn FnMut(&mut [u8], u64) -> bool) {
        if let Some(preserver) = &mut self.preserver.lock().active {
            preserver.before_write(offset, bytes, read);
        }
    }

    /// The database file is about to become shorter.
    pub(crate) fn before_truncate(&self, new_bytes: u64, read: &mut dyn FnMut(&mut [u8], u64) -> bool) {
        if let Some(preserver) = &mut self.preserver.lock().active {
            preserver.before_truncate(new_bytes, read);
        }
    }

    /// A checkpoint or transaction of this process begins or ends to write the database file.
    pub(crate) fn writes_file(&self, begins: bool) {
        let mut slot = self.preserver.lock();
        let before = slot.writers;
        slot.writers = if begins { before + 1 } else { before.saturating_sub(1) };
        match (before, slot.writers) {
            (0, 1) => self.tell_of_writing(true),
            (1, 0) => self.tell_of_writing(false),
            _ => {}
        }
        let is_over = slot.writers == 0;
        drop(slot);
        if is_over {
            self.look_for_snapshot();
        }
    }

    /// Other processes' uploaders do not begin to read the full state meanwhile. Also where a fault has ended what this process does: it writes all the same.
    fn tell_of_writing(&self, begins: bool) {
        let locks = self.locks.lock();
        let Some(locks) = locks.as_ref() else { return };
        if !begins {
            locks.unlock(Range::Writing);
        } else if let Err(error) = locks.lock(Range::Writing, false) {
            repeated_event!(Warn, "local_file", self, cause = error; "{} cannot be locked: {error}", self.paths.control().display());
        }
    }

    /// Whether the uploader of another process reads the full state.
    pub(crate) fn is_preserved_elsewhere(&self) -> bool {
        if self.shared.has_left() {
            // Where the file has been replaced the page is of the new one.
            return self.locks.lock().is_some() && Preserving::of(self.shared.of_all()) == Preserving::Yes;
        }
        !self.is_owner() && Preserving::of(&self.shared) == Preserving::Yes
    }

    /// The database file is about to be changed: what that uploader needs is set aside.
    pub(crate) fn set_aside(&self, change: FileChange, read: &mut dyn FnMut(&mut [u8], u64) -> bool) {
        let mut sets_aside = self.sets_aside.lock();
        let done = match change {
            FileChange::Write { offset, bytes } => sets_aside.before_write(&self.shared, &self.paths, offset, bytes, read),
            FileChange::Truncate { bytes } => sets_aside.before_truncate(&self.shared, &self.paths, bytes, read),
        };
        if let Err(error) = done {
            self.break_preserving(&error);
        }
    }

    /// That has failed.
    pub(crate) fn break_preserving(&self, why: &io::Error) {
        event!(Info, "full_state_starts_over", self, cause = why; "the full state that another process reads starts over: {why}");
        let (yes, broken) = (Preserving::Yes as u64, Preserving::Broken as u64);
        // It has come to its end, otherwise.
        let _ = self.shared.of_all().preserving.compare_exchange(yes, broken, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// A checkpoint of this process begins to write the database file.
    pub(crate) fn checkpoint_begins(&self) {
        // Nobody else checkpoints now. Said before it is told that this process writes: whoever sees that looks no further, see `is_checkpointed_by_others`.
        if Preserving::of(&self.shared) == Preserving::Yes && !self.is_as_we_left_it() {
            self.break_preserving(&io::Error::other("a process without the extension has written to the database file"));
        }
        self.writes_file(true);
        let mut marks = self.marks.lock();
        if marks.is_none() {
            // How what is captured relates to what is there is decided before the file is changed.
            let Some(mut tail) = self.tail_or_lost() else { return };
            let live = self.published().live();
            tail.resolve(&live.end, &|| self.stamp());
            *marks = tail.control_file();
        }
        let known = marks.as_ref().map(|control| mark::write(control, None));
        drop(marks);
        self.warn_of_mark(known);
    }

    /// A checkpoint is about to write what no sync of the WAL has come before, as with `synchronous=OFF`: after a loss of power the file may have
    /// pages of commits that the WAL has lost, and what it held before counts no longer as being on disk.
    pub(crate) fn checkpoint_outruns_wal(&self) {
        let undone = self.tail_or_lost().map(|mut tail| tail.file_may_be_lost());
        if undone == Some(true) {
            self.sync_control();
        }
    }

    /// Whether nobody has written to the database file in WAL mode who does not replicate, since the full state that is read began: a checkpoint of
    /// theirs may have overwritten what it needs. One that comes in the same tick of the kernel's clock as the end of ours is not seen.
    pub(crate) fn is_as_we_left_it(&self) -> bool {
        let (_, left) = self.shared.left_as.read();
        // By its name: one more handle of SQLite's would be kept open by it.
        left == [0; 2] || std::fs::metadata(&self.paths.database).map_or(true, |now| left == size_and_time(&now))
    }

    /// A checkpoint under exclusive locking ends, which nobody tells of: no other process can have written, or is noticed by that.
    pub(crate) fn leave_unknown(&self) {
        self.shared.left_as.write(&[0; 2]);
    }

    fn leave_as(&self, now: &Stamp) {
        // Outside of WAL mode the tail tells.
        let left = if now.is_wal { [now.size_bytes, now.mtime_ns.cast_unsigned()] } else { [0; 2] };
        self.shared.left_as.write(&left);
    }

    /// A full state is about to be read. What processes without the extension have committed, and may have written to the database file, is to be part of it; what
    /// they write to it from here on shows.
    pub(crate) fn prepare_preserving(&self) {
        let read = |header: &mut [u8; HEADER_BYTES]| self.open_file()?.read_exact_at(header, 0);
        {
            let slot = self.preserver.lock();
            if slot.writers == 0
                && self.nobody_else_writes()
                && let Some(now) = stamp::settled(&self.paths.database, &read, self.is_file_synced())
            {
                self.leave_as(&now);
            }
        }
        self.look_at_mapped_index();
        self.look_for_restart();
    }

    /// Whether a process without the extension has checkpointed while the full state was read.
    pub(crate) fn is_checkpointed_by_others(&self) -> bool {
        let slot = self.preserver.lock();
        let shows = slot.writers == 0 && self.nobody_else_writes() && !self.is_as_we_left_it();
        drop(slot);
        // One of ours that writes now, or has written since, has looked before it began, and said so.
        shows || Preserving::of(&self.shared) == Preserving::Broken
    }

    /// The checkpoint that `checkpoint_begins` told of is about to give its lock up.
    pub(crate) fn checkpoint_ended(&self) {
        let Some(now) = self.stamp() else { return };
        self.leave_as(&now);
        let marked = self.marks.lock().as_ref().map(|control| mark::write(control, Some(Mark::of(&now))));
        self.warn_of_mark(marked);
    }

    fn warn_of_mark(&self, written: Option<std::io::Result<()>>) {
        if let Some(Err(error)) = written {
            event!(Debug, "local_file", self, cause = error; "{}: {error}", self.paths.control().display());
        }
    }

    /// Has the uploader look, where a snapshot waits for a transaction that may have ended.
    pub(crate) fn look_for_snapshot(&self) {
        if self.shared.snapshot_waits.swap(0, Ordering::AcqRel) != 0 {
            self.look_at_once();
        }
    }

    /// Whether a snapshot could begin now, as far as writes to the database file go; if not, the next end of one wakes the uploader.
    pub(crate) fn awaits_writers(&self) -> bool {
        self.end_if_rolled_back();
        let slot = self.preserver.lock();
        // Whoever ends after this finds it.
        self.shared.snapshot_waits.store(1, Ordering::SeqCst);
        let waits = slot.writers > 0 || !self.nobody_else_writes();
        if !waits {
            self.shared.snapshot_waits.store(0, Ordering::Release);
        }
        waits
    }

    /// Whether no other process writes to the database file. With the preserver locked, and none of this one doing so: the lock that is tried would be
    /// theirs, otherwise.
    fn nobody_else_writes(&self) -> bool {
        let locks = self.locks.lock();
        let Some(locks) = locks.as_ref() else { return true };
        let is_free = locks.try_lock(Range::Writing, true).unwrap_or(true);
        if is_free {
            locks.unlock(Range::Writing);
        }
        is_free
    }

    /// Does something while no process writes to the database file, or begins to; `None` where one does.
    pub(super) fn while_nobody_writes<T>(&self, body: impl FnOnce() -> T) -> Option<T> {
        let slot = self.preserver.lock();
        let locks = self.locks.lock();
        let locks = locks.as_ref().filter(|_| slot.writers == 0)?;
        if !locks.try_lock(Range::Writing, true).unwrap_or(false) {
            return None;
        }
        let result = body();
        locks.unlock(Range::Writing);
        Some(result)
    }

    /// The database file was written to, or synced.
    pub(crate) fn note_synced(&self, synced: bool) {
        self.shared.file_synced.store(u64::from(synced), Ordering::Relaxed);
    }

    /// Has the disk keep the database file as it is, so that what is built on it outlives a loss of power.
    pub(crate) fn sync_file(&self) {
        // Whoever writes meanwhile says so after this.
        self.note_synced(true);
        if let Err(error) = self.open_file().and_then(|file| file.sync()) {
            event!(Debug, "local_file", self, cause = error; "{error}");
            self.note_synced(false);
        }
    }

    pub(crate) fn is_file_synced(&self) -> bool {
        self.shared.file_synced.load(Ordering::Relaxed) != 0
    }

    /// Begins to preserve the state as it is now, if no checkpoint runs; `build` makes the preserver for it and completes what is published.
    pub(crate) fn begin_preserving<E>(
        &self,
        build: impl FnOnce(Published) -> Result<(Preserver, Published), E>,
    ) -> Result<Option<Published>, E> {
        let mut slot = self.preserver.lock();
        if slot.writers > 0 {
            return Ok(None);
        }
        // In this order: whoever begins to write in another process after this sees it.
        self.shared.preserving.store(Preserving::Yes as u64, Ordering::SeqCst);
        let built = if self.nobody_else_writes() { build(self.published_for_batch()).map(Some) } else { Ok(None) };
        let Ok(Some((preserver, published))) = built else {
            self.shared.preserving.store(Preserving::No as u64, Ordering::SeqCst);
            return built.map(|_| None);
        };
        slot.active = Some(preserver);
        self.preserving.store(true, Ordering::Release);
        Ok(Some(published))
    }

    /// Works with the preserver while SQLite's writes to the file wait.
    pub(crate) fn with_preserver<T>(&self, work: impl FnOnce(&mut Preserver) -> T) -> Option<T> {
        let mut slot = self.preserver.lock();
        let preserver = slot.active.as_mut()?;
        if Preserving::of(&self.shared) == Preserving::Broken {
            preserver.give_up("another process could not set aside what it has overwritten".to_owned());
        }
        Some(work(preserver))
    }

    pub(crate) fn end_preserving(&self) {
        let was_preserving = self.preserving.swap(false, Ordering::AcqRel);
        self.preserver.lock().active = None;
        if was_preserving {
            self.shared.preserving.store(Preserving::No as u64, Ordering::SeqCst);
        }
    }

    /// What the database file looks like now; `None` where it cannot be told.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        stamp::take(&self.paths.database, &self.file_header().ok()?, self.is_file_synced())
    }

    pub(crate) fn open_file(&self) -> io::Result<Box<dyn DatabaseFile>> {
        self.host.open_database(&self.paths.database)
    }

    /// The header of the database file, by a handle of its own.
    pub(crate) fn file_header(&self) -> io::Result<FileHeader> {
        let mut header = [0; HEADER_BYTES];
        self.open_file()?.read_exact_at(&mut header, 0)?;
        Ok(FileHeader::decode(&header))
    }
}

fn size_and_time(file: &Metadata) -> [u64; 2] {
    [file.len(), stamp::mtime_ns(file).cast_unsigned()]
}
