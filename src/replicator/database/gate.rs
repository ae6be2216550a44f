//! The gate: what SQLite may destroy of the WAL, and what is made safe before it does.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Database;
use crate::logging::{event, repeated_event};

use crate::fault::{fault_io, fault_point};
use crate::replicator::aside;
use crate::replicator::control::FullReason;
use crate::replicator::hub::Notice;
use crate::replicator::stamp;
use crate::replicator::tail::{Mode, Tail, TailError, restarted_from};
use crate::types::{PageSize, WalPos};
use crate::wal::IndexHeader;

/// A writer that wants to restart the WAL waits at the most this long for the uploader to let go of the tail; then it appends.
const GATE_PATIENCE: Duration = Duration::from_millis(20);
/// And encodes at the most this many bytes itself.
const GATE_BYTES: u32 = 16 * 1024 * 1024;
/// A checkpoint that somebody asked for waits this long for whoever has the tail: it takes what it takes, but not where a process was stopped that has it.
const ASKED_PATIENCE: Duration = Duration::from_secs(10);
/// With less room on the disk it does as an explicit checkpoint does: what it would append might not fit.
const NEARLY_FULL_BYTES: u64 = 64 * 1024 * 1024;

impl Database {
    /// The WAL is to be restarted, with the write lock held and the WAL-index as given. False: the caller must append, or report busy.
    ///
    /// A writer waits for a moment only. A checkpoint that somebody asked for takes what it takes, as it does without us.
    pub(crate) fn may_restart(&self, index: &IndexHeader, asked_for: bool) -> bool {
        self.observe(index);
        fault_point!("gate.asked");
        // Nor does a writer that cannot append instead.
        let (tail, most_frames) = if asked_for || self.is_disk_nearly_full() {
            (self.tail_within(ASKED_PATIENCE), u32::MAX)
        } else {
            (self.try_lock_tail_for(GATE_PATIENCE), self.most_gate_frames())
        };
        let refusals = &self.shared.counters.gate_refusals;
        let Some(mut tail) = tail else {
            refusals.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        match self.secure(&mut tail, most_frames) {
            Ok(()) => true,
            Err(error) => {
                refusals.fetch_add(1, Ordering::Relaxed);
                event!(Debug, "wal_kept", self, cause = error; "the WAL is not restarted yet: {error}");
                drop(tail);
                self.hub.notify(Notice::Look(self.id));
                false
            }
        }
    }

    /// Whether the WAL may find no room to grow. A disk that does not say has room.
    fn is_disk_nearly_full(&self) -> bool {
        rustix::fs::statvfs(&self.paths.database).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < NEARLY_FULL_BYTES)
    }

    /// How many frames a writer encodes itself that wants to restart the WAL.
    pub(crate) fn most_gate_frames(&self) -> u32 {
        GATE_BYTES / self.published().page_size.unwrap_or(PageSize::MIN).get()
    }

    fn secure(&self, tail: &mut Tail, most_frames: u32) -> Result<(), TailError> {
        let live = self.published().live();
        tail.resolve(&live.end, &|| self.stamp());
        if self.is_preserved_elsewhere() {
            if most_frames < u32::MAX && aside::wal_bytes_needed(&self.shared) > u64::from(GATE_BYTES) {
                return Err(TailError::Preserved);
            }
            if let Err(error) = aside::before_restart(&self.shared, &self.paths) {
                self.break_preserving(&error);
            }
        }
        let frames = self.with_preserver(|p| p.frames_needed()).unwrap_or(0);
        if frames > most_frames {
            return Err(TailError::TooMuch { frames });
        }
        self.preserve_wal(tail);
        let result = tail.seal(&live, most_frames, self.stamp());
        if let Err(error) = &result
            && error.is_out_of_room()
        {
            // The user's limit, or the disk's: the WAL must not grow instead, where it can grow at all.
            repeated_event!(Warn, "local_file", self, cause = error; "{error}");
            self.lose(tail, FullReason::SpoolLost);
            return Ok(());
        }
        self.note_captured(tail);
        if result.is_ok() && tail.spool.is_crowded() {
            // Entries that wait are merged by the uploader, which may not have been told of frames as few as these.
            self.hub.notify(Notice::Look(self.id));
        }
        result
    }

    /// SQLite is about to destroy the WAL and cannot be refused. What cannot be saved costs a full upload later.
    pub(crate) fn wal_vanishes(&self) {
        if !self.is_known() {
            self.observe_without_index();
        }
        let tail = self.tail_or_lost();
        fault_point!("wal.vanishes");
        if let Some(mut tail) = tail {
            if let Err(error) = self.secure(&mut tail, u32::MAX) {
                repeated_event!(Warn, "local_file", self, cause = error; "{error}");
                self.lose(&mut tail, FullReason::SpoolLost);
            }
            self.stamp_due.store(true, Ordering::Relaxed);
        }
        self.wal_is_empty();
        self.sync_seal();
        fault_point!("wal.vanished");
    }

    /// All of the WAL is in the database file, which alone is the newest state: SQLite holds the lock under which it begins a new generation,
    /// or is about to delete the WAL or to cut it to nothing. Frames are destroyed only later, with the tail locked.
    pub(crate) fn wal_is_empty(&self) {
        self.set_end(WalPos { salts: self.published().end.salts, ..WalPos::default() });
    }

    /// The WAL is about to be cut to that many bytes.
    pub(crate) fn wal_shrinks(&self, bytes: u64) {
        let published = self.published();
        let end = published.page_size.map_or(0, |size| crate::wal::end_offset(size, published.end.frame));
        if bytes >= end {
            // `journal_size_limit` cuts off what no commit is in.
            return;
        }
        let Some(mut tail) = self.tail_or_lost() else { return };
        fault_point!("wal.shrinks");
        if published.end.frame > 0 {
            // Sealed is what lay there before these frames, if anything.
            drop(tail);
            self.wal_vanishes();
        } else {
            self.preserve_wal(&mut tail);
            drop(tail);
            if bytes == 0 {
                self.sync_seal();
            }
        }
    }

    /// What the control file says of the WAL's end goes to disk before the WAL goes, where SQLite saw to it that the database file has it all:
    /// after a loss of power nothing else would tell.
    fn sync_seal(&self) {
        if self.is_file_synced() {
            self.sync_control();
        }
    }

    /// Syncs the control file, without the lock that a writer needs to restart the WAL.
    pub(crate) fn sync_control(&self) {
        let unsynced = self.tail_or_lost().and_then(|mut tail| tail.unsynced());
        if let Some(control) = unsynced {
            // The next sync includes this one.
            let _ = fault_io!("control.sync").and_then(|()| control.sync_data());
            fault_point!("control.synced");
        }
    }

    /// SQLite has synced the WAL: its new header, maybe, which continues nothing that could be told by its salts.
    pub(crate) fn wal_synced(&self) {
        if self.begins_afresh.swap(false, Ordering::Relaxed) {
            self.sync_control();
        }
    }

    /// A snapshot that still needs frames gets them set aside before they are destroyed.
    fn preserve_wal(&self, tail: &mut Tail) {
        if !self.preserving.load(Ordering::Acquire) {
            return;
        }
        if let Some(preserver) = self.preserver.lock().active.as_mut().filter(|p| p.reads_wal()) {
            match tail.wal() {
                Ok(wal) => preserver.before_restart(wal),
                Err(error) => preserver.give_up(error.to_string()),
            }
        }
    }

    /// The header of a new WAL generation is about to be written.
    pub(crate) fn generation_begins(&self, salts: [u32; 2]) {
        let Some(mut tail) = self.tail_or_lost() else {
            return self.set_end(WalPos { salts, ..WalPos::default() });
        };
        fault_point!("generation.begins");
        let live = self.published().live();
        tail.resolve(&live.end, &|| self.stamp());
        self.preserve_wal(&mut tail);
        // A restart by a connection that knows the log counts the first salt up; others choose it by chance.
        let follows = tail.state.captured.is_some_and(|captured| restarted_from(salts, captured.salts));
        self.begins_afresh.store(!follows, Ordering::Relaxed);
        if !tail.generation_begins(salts, &live.end) {
            self.lose(&mut tail, FullReason::ContinuityLost);
        }
        // All of the generation before is in the database file.
        self.set_end(WalPos { salts, ..WalPos::default() });
    }

    /// The last lock on the database is about to be given up, after the WAL was deleted: nobody can have written since.
    pub(crate) fn stamp_clean(&self) {
        self.stamp_due.store(false, Ordering::Relaxed);
        let Some(mut tail) = self.tail_or_lost() else { return };
        if tail.state.sealed && !matches!(tail.mode, Mode::Stopped(..)) || matches!(tail.mode, Mode::Full(_)) {
            fault_point!("stamp.take");
            let settled = stamp::settled(&self.paths.database, &|header| self.open_file()?.read_exact_at(header, 0), self.is_file_synced());
            tail.stamp(settled);
            if let Err(error) = tail.save() {
                repeated_event!(Warn, "local_file", self, cause = error; "{error}");
            }
            fault_point!("stamp.saved");
        }
    }
}
