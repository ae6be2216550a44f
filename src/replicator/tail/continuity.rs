//! How what is captured relates to the WAL and the database file as they are now.

use std::sync::atomic::Ordering;

use super::{Mode, StopKind, Tail, start_of};
use crate::fault::fault_point;
use crate::logging::event;
use crate::replicator::batch::WalFile;
use crate::replicator::control::{Control, FullReason, OpenTransaction, Stamp};
use crate::types::{Txid, WalPos};

/// A first salt that is greater by less than this is that of the same WAL, restarted.
pub(super) const MOST_RESTARTS: u32 = 1 << 20;

impl Tail {
    /// Decides, once, how what is captured relates to the WAL as it is. `stamp` reads the database file's stamp as it is now.
    pub(crate) fn resolve(&mut self, live: &WalPos, stamp: &dyn Fn() -> Option<Stamp>) {
        if self.mode != Mode::Unresolved {
            return;
        }
        fault_point!("resolve");
        event!(
            Debug, "resuming", self;
            "the WAL is at {live}; captured {:?}, sealed {}, then {:x?}; the file was {:?} and is {:?}",
            self.state.captured, self.state.sealed, self.state.next_salts, self.state.stamp, stamp()
        );
        self.exchanged = self.was_exchanged(stamp);
        let rebooted = matches!((self.state.stamp, stamp()), (Some(then), Some(now)) if then.boot != now.boot);
        self.rebooted_without_wal = rebooted && live.frame == 0;
        self.mode = match self.judge(live, stamp) {
            Mode::Full(FullReason::BucketAhead) if self.state.full.is_none() && self.refuse_lost_tail => self.lost_tail_refused(),
            mode => mode,
        };
        if self.mode == Mode::Running && self.state.to_compare.take().is_some() {
            self.save_or_warn();
        }
        if self.mode == Mode::Running && self.state.open_transaction.take().is_some() {
            // It left nothing.
            self.stamp(stamp());
            self.save_or_warn();
        }
        // From here on it counts as it is; before this no checkpoint of ours has begun.
        self.mark(stamp().as_ref());
        match &self.mode {
            Mode::Full(reason) => {
                // Nothing is captured that it could be compared with: only the change counter tells from here on.
                self.state.stamp = stamp().or(self.state.stamp);
                self.lose(*reason);
            }
            // What it is is not known yet.
            Mode::Stopped(..) if self.compares => self.save_or_warn(),
            Mode::Stopped(kind, message) => {
                let (kind, message) = (*kind, message.clone());
                self.save_or_warn();
                self.stop(kind, message);
            }
            Mode::Running => event!(Debug, "resuming", self; "continuing at {live}"),
            Mode::Unresolved => {}
        }
    }

    pub(super) fn judge(&mut self, live: &WalPos, stamp: &dyn Fn() -> Option<Stamp>) -> Mode {
        if let Some(message) = self.conflict() {
            return Mode::Stopped(StopKind::Fenced, message);
        }
        if self.state.conflict.take().is_some() {
            // The other one's stands under that name.
            self.state.attempt = None;
        }
        if let (Some(earlier), None) = (self.state.restored_earlier, self.state.adopt) {
            return Mode::Stopped(
                StopKind::Diverged,
                format!(
                    "this database was restored to TXID {}, the bucket goes on to {}: nothing is sent over it. \
                     Restore the newest state, or use another replica URL, or declare this file the truth with `replicated adopt`",
                    earlier.txid, earlier.newest
                ),
            );
        }
        if let Some(reason) = self.state.full {
            return if self.may_be_set_back(live, stamp) { self.neither(live, stamp()) } else { Mode::Full(reason) };
        }
        let adopted = |adopt: Txid| self.state.acked.is_none_or(|acked| adopt >= acked.txid);
        if self.state.captured.is_some() && self.state.adopt.is_some_and(adopted) {
            return Mode::Full(FullReason::Adopted);
        }
        let Some(captured) = self.state.captured.filter(|_| self.state.acked.is_some()) else {
            // Nothing is known of the bucket, so the bucket decides. Until then frames are kept from the start of the WAL; what was spooled of
            // an earlier one is in the database file.
            self.spool.clear();
            self.state.captured = Some(start_of(live));
            // With nothing in the WAL, whatever generation SQLite begins next follows on.
            (self.state.sealed, self.state.next_salts, self.state.stamp, self.state.open_transaction) = (live.frame == 0, None, None, None);
            return Mode::Running;
        };
        match self.judge_captured(&captured, live, stamp) {
            // What was committed since it was found may look like the work of others, and have the file look like the newer one.
            Mode::Full(_) if !self.is_newer_as_found() => self.neither(live, stamp()),
            mode => mode,
        }
    }

    /// The full state is due, whatever the file holds, but not that of an older copy that has come in its place meanwhile. The user may have declared it the
    /// truth.
    fn may_be_set_back(&mut self, live: &WalPos, stamp: &dyn Fn() -> Option<Stamp>) -> bool {
        if self.state.acked.is_none() || self.state.adopt.is_some() {
            return false;
        }
        // What the last checkpoint has left, where the stamp is of before that.
        let left = self.control.as_ref().and_then(Control::left);
        if let (Some(left), Some(then)) = (left, self.state.stamp)
            && left.is_counted_up_from(&then)
        {
            self.state.stamp = Some(left);
        }
        let (Some(then), Some(now)) = (self.state.stamp, stamp()) else { return false };
        if !self.is_newer_as_found() {
            return true;
        }
        if then.may_have_lost_power(&now, self.rolled_back) {
            return false;
        }
        // Without a change of the first page SQLite counts nothing in WAL mode: then only the bucket can tell another file from an older one.
        let is_as_left = || then.is_same_file(&now) || left.is_some_and(|left| left.is_same_file(&now));
        let is_uncounted = || live.frame == 0 && now.is_wal && now.header_words[0] == then.header_words[0] && !is_as_left();
        then.is_counted_up_from(&now) || is_uncounted()
    }

    fn judge_captured(&mut self, captured: &WalPos, live: &WalPos, stamp: &dyn Fn() -> Option<Stamp>) -> Mode {
        let live = &self.with_salts(live);
        let sealed_before_live = self.state.sealed && self.state.next_salts == Some(live.salts);
        let same_log = live.salts == captured.salts;
        if live.frame == 0 && (sealed_before_live && self.kept_earlier_logs(stamp) || self.is_unchanged(stamp)) {
            return Mode::Running;
        }
        if same_log && live.frame < captured.frame {
            // A power loss took frames, all of them even where only the WAL's header had been synced.
            return Mode::Full(FullReason::BucketAhead);
        }
        if live.frame == 0 {
            return self.judge_lost(live, stamp);
        }
        if (same_log || sealed_before_live) && self.exchanged {
            return Mode::Full(FullReason::Exchanged);
        }
        if same_log {
            return if self.wal().is_ok_and(|w| w.holds(captured)) && self.kept_earlier_logs(stamp) {
                self.state.sealed = false;
                Mode::Running
            } else {
                Mode::Full(FullReason::BucketAhead)
            };
        }
        if sealed_before_live && !self.kept_earlier_logs(stamp) {
            return Mode::Full(FullReason::BucketAhead);
        }
        if sealed_before_live || self.is_unchanged(stamp) {
            self.begin_at(live);
            return Mode::Running;
        }
        self.judge_lost(live, stamp)
    }

    /// SQLite does not look at the header of a WAL that has nothing else, as a power loss may leave it. The salts are there.
    pub(super) fn with_salts(&mut self, live: &WalPos) -> WalPos {
        if live.frame > 0 || live.salts != [0; 2] {
            return *live;
        }
        let header = self.wal().and_then(WalFile::header);
        header.map_or(*live, |header| WalPos { salts: header.salts, ..WalPos::default() })
    }

    pub(super) fn lost_tail_refused(&self) -> Mode {
        let newest = self.state.attempt.map(|a| a.txid).or(self.state.acked.map(|a| a.txid));
        Mode::Stopped(
            StopKind::Diverged,
            format!(
                "a power loss took commits that the bucket still has, up to TXID {} at least, and refuse_lost_tail is set: nothing is sent. Restore \
                 the newest state, or declare this file the truth with `replicated adopt`",
                newest.map_or_else(|| "?".to_owned(), |txid| txid.to_string())
            ),
        )
    }

    /// Whether the file under this WAL is another than the one that it belongs to.
    pub(super) fn was_exchanged(&self, stamp: &dyn Fn() -> Option<Stamp>) -> bool {
        match (&self.control, stamp()) {
            (Some(control), Some(now)) => control.was_exchanged(&now),
            _ => false,
        }
    }

    /// Whether the database file has all of the generations before this one: with `synchronous=OFF` it may have lost them with the power.
    pub(super) fn kept_earlier_logs(&self, stamp: &dyn Fn() -> Option<Stamp>) -> bool {
        !matches!((self.state.stamp, stamp()), (Some(then), Some(now)) if !then.is_durable(&now))
    }

    /// Whether the database file holds what was captured last, and nothing else.
    pub(super) fn is_unchanged(&self, stamp: &dyn Fn() -> Option<Stamp>) -> bool {
        let (true, Some(then), Some(now)) = (self.state.sealed, self.state.stamp, stamp()) else { return false };
        // A transaction that was cut off has touched the file. It left nothing where SQLite rolled it back, which it does unless it was committed.
        // A commit to a WAL need not count the change counter up: in that mode somebody else may have rolled it back, and committed since.
        let left_nothing = |told: bool| told && (self.rolled_back || !now.is_wal) && then.has_same_content(&now) && then.is_durable(&now);
        match self.state.open_transaction {
            None => then.still_holds(&now),
            Some(OpenTransaction::Journaled) => left_nothing(true),
            Some(OpenTransaction::Uncounted) => left_nothing(self.rolled_back),
            Some(OpenTransaction::Unprotected) => false,
        }
    }

    /// Continuity is lost: is this file at least provably the newer one?
    pub(super) fn judge_lost(&mut self, live: &WalPos, stamp: &dyn Fn() -> Option<Stamp>) -> Mode {
        if self.state.acked.is_none() {
            // There is nothing that this file would have to continue. Whether the bucket has something else is asked there.
            return Mode::Full(FullReason::ContinuityLost);
        }
        let follows = |salts: [u32; 2]| live.salts != salts && restarted_from(live.salts, salts);
        if self.state.captured.is_some_and(|captured| follows(captured.salts)) || self.state.next_salts.is_some_and(follows) {
            return Mode::Full(FullReason::ContinuityLost);
        }
        if let (Some(then), Some(now)) = (self.state.stamp, stamp()) {
            if now.is_counted_up_from(&then) {
                return self.newer(live, now);
            }
            // An equal change counter under a changed file proves nothing.
            let counted = now.header_words[0].wrapping_sub(then.header_words[0]);
            // Where a process died in the midst of a transaction the file is its work, whatever became of it.
            if counted == 0 && self.state.sealed && self.state.open_transaction.is_some() {
                return Mode::Full(FullReason::Unprotected);
            }
            // Outside the WAL a file that was touched without a commit is one in which somebody else's transaction was rolled back.
            if counted == 0 && !then.is_wal && !now.is_wal {
                return Mode::Full(FullReason::ContinuityLost);
            }
            // The same but for a write that the clock's tick may hide, which can only have come after the stamp, or for what a loss of power took.
            if self.state.sealed && then.is_same_file(&now) {
                return Mode::Full(FullReason::ContinuityLost);
            }
            if then.may_have_lost_power(&now, self.rolled_back) {
                return Mode::Full(FullReason::BucketAhead);
            }
        }
        self.neither(live, stamp())
    }

    /// Newer than its stamp. That is also a file to which somebody has written, after a kill, what had been captured of its WAL, and a copy of it from before
    /// the kill: where the bucket can tell, it is asked, and otherwise the full state is sent.
    fn newer(&mut self, live: &WalPos, now: Stamp) -> Mode {
        let was_captured = !self.state.sealed && self.state.captured.is_some_and(|captured| captured.frame > 0);
        if was_captured && self.is_newer_as_found() {
            let compared = self.neither(live, Some(now));
            if self.compares {
                return compared;
            }
            self.state.to_compare = None;
        }
        Mode::Full(FullReason::ContinuityLost)
    }

    /// Whether the full state follows where the bucket cannot tell what this file is.
    pub(crate) fn is_newer(&self, now: &Stamp) -> bool {
        self.state.stamp.is_some_and(|then| now.is_counted_up_from(&then))
    }

    /// Whether nothing speaks against the full state in what was found before and is still to be compared.
    fn is_newer_as_found(&self) -> bool {
        self.state.to_compare.is_none_or(|found| self.is_newer(&found))
    }

    /// Neither provably newer nor provably unchanged. The bucket may tell, where the whole state is in the file and nobody has written to that since it was
    /// found like this: what is committed now could not be told from what made it so.
    fn neither(&mut self, live: &WalPos, now: Option<Stamp>) -> Mode {
        let is_as_found = now.is_some_and(|now| self.state.to_compare.get_or_insert(now).is_same_file(&now));
        // What this process has committed before it came here is in the WAL only.
        self.compares = is_as_found && (live.frame == 0 || self.shared.began_empty.load(Ordering::Relaxed) != 0);
        let why = match (is_as_found, self.compares) {
            (_, true) => "it is being compared with the bucket",
            (true, false) => "a WAL of others lies beside it, so that it cannot be compared with the bucket",
            (false, _) => "it was written to before it could be compared with the bucket",
        };
        Mode::Stopped(StopKind::Diverged, undecided(why))
    }

    /// The file that was found, where it is still to be compared.
    pub(crate) fn to_be_compared(&self) -> Option<Stamp> {
        self.state.to_compare.filter(|_| self.compares && matches!(self.mode, Mode::Stopped(StopKind::Diverged, _)))
    }

    /// Its comparison has ended, without or with this result: the file holds what the bucket has.
    pub(crate) fn was_compared(&mut self, unchanged: Option<Stamp>, live: &WalPos) {
        self.compares = false;
        let Some(stamp) = unchanged else { return };
        (self.state.to_compare, self.state.open_transaction, self.state.next_salts) = (None, None, None);
        (self.state.sealed, self.state.stamp) = (true, Some(stamp));
        self.mode = Mode::Unresolved;
        self.resolve(live, &|| Some(stamp));
        self.save_or_warn();
    }

    /// How many frames are in the WAL only. Notices a generation that began with and without us.
    pub(crate) fn uncaptured_frames(&mut self, live: &WalPos) -> u32 {
        let Some(captured) = self.state.captured else { return 0 };
        if live.frame == 0 {
            return 0;
        }
        if live.salts == captured.salts {
            if live.frame < captured.frame {
                self.lose(FullReason::ContinuityLost);
                return 0;
            }
            if live.frame > captured.frame {
                // The generation goes on after a seal that nothing came of.
                (self.state.sealed, self.state.next_salts) = (false, None);
            }
            return live.frame - captured.frame;
        }
        if self.state.sealed && self.state.next_salts == Some(live.salts) {
            self.begin_at(live);
            return live.frame;
        }
        self.lose(FullReason::ContinuityLost);
        0
    }

    /// How many pages those frames are of; `None` where that is not known without reading them.
    pub(crate) fn uncaptured_pages(&self, live: &WalPos) -> Option<u32> {
        u32::try_from(self.frames.newest(&self.state.captured?, live)?.len()).ok()
    }

    pub(super) fn begin_at(&mut self, live: &WalPos) {
        self.state.captured = Some(start_of(live));
        self.state.sealed = false;
        self.state.next_salts = None;
    }
}

/// What is said of a file whose place in its history is not known.
pub(crate) fn undecided(why: &str) -> String {
    format!(
        "the database file is neither provably newer nor provably unchanged since the last replicated commit, and {why} (was an older copy put in its place?): \
         nothing is sent. Restore the newest state, or declare this file the truth with `replicated adopt`"
    )
}

/// Whether a generation of the WAL is an earlier one, restarted by connections that know the log: each adds one to the first salt, where others choose
/// it by chance. Salts of zero are those of no WAL at all, outside of WAL mode, and nothing follows on them or from them.
pub(crate) fn restarted_from(salts: [u32; 2], earlier: [u32; 2]) -> bool {
    salts != [0; 2] && earlier != [0; 2] && salts[0].wrapping_sub(earlier[0]) < MOST_RESTARTS
}
