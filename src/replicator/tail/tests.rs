//! What is concluded from a control file and a WAL, row by row of the table in `docs/` on resuming.

use rusqlite::Connection;

use super::continuity::MOST_RESTARTS;
use super::*;
use crate::replicator::control::{Acked, OpenTransaction, RestoredEarlier};
use crate::replicator::local::OwnerMode;
use crate::replicator::shared::Private;
use crate::spool::Limits;
use crate::types::Txid;

struct Fixture {
    dir: tempfile::TempDir,
    connection: Connection,
}

impl Fixture {
    /// A database in WAL mode with some commits in its WAL.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("app.db")).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x); INSERT INTO t VALUES (1)")
            .unwrap();
        Self { dir, connection }
    }

    fn paths(&self) -> Paths {
        Paths::of(&self.dir.path().join("app.db"))
    }

    /// As after the last close.
    fn remove_wal(&self) {
        std::fs::remove_file(self.paths().wal).unwrap();
    }

    fn remove_wal_if_there(&self) {
        let _ = std::fs::remove_file(self.paths().wal);
    }

    fn commit(&self) {
        self.connection.execute_batch("INSERT INTO t VALUES (randomblob(500))").unwrap();
    }

    /// The end of the WAL as recovery would find it.
    fn live(&self) -> WalPos {
        WalFile::open(&self.paths().wal)
            .unwrap()
            .last_commit_after(&WalPos::default(), u64::MAX)
            .unwrap()
            .map(|i| i.end())
            .unwrap_or_default()
    }

    fn live_end(&self) -> LiveEnd {
        LiveEnd { end: self.live(), committed_ms: 1, sequence: 1 }
    }

    fn tail(&self, state: State) -> Tail {
        let paths = self.paths();
        let owner = OwnerMode::of(&paths.database).unwrap();
        paths.create_directory(&owner).unwrap();
        let mut control = Control::open(&paths.control()).unwrap();
        control.load(&owner).unwrap();
        let spool = Spool::open(
            &paths.directory,
            owner,
            Limits { disk_bytes: u64::MAX, memory_bytes: 0 },
            state.spool_first,
            state.spool_next,
            state.attempt.map(|a| a.txid),
        )
        .unwrap();
        Tail::new(paths, control, Shared::new(Box::new(Private::default())), state, spool, 1 << 20)
    }

    /// Restarts the WAL, as a writer after a complete checkpoint does.
    fn restart(&self) -> [u32; 2] {
        self.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
        self.commit();
        self.live().salts
    }
}

fn captured(end: WalPos) -> State {
    State { acked: Some(Acked { txid: Txid::FIRST.next(), end }), captured: Some(end), ..State::default() }
}

const fn stamp(change_counter: u32) -> Stamp {
    Stamp {
        size_bytes: 4096,
        mtime_ns: 5,
        ctime_ns: 6,
        header_words: [change_counter, change_counter],
        is_wal: true,
        too_fresh: false,
        boot: 1,
        synced: false,
    }
}

fn resolved(fixture: &Fixture, state: State, now: Option<Stamp>) -> Tail {
    let mut tail = fixture.tail(state);
    tail.resolve(&fixture.live(), &|| now);
    tail
}

fn is_diverged(tail: &Tail) -> bool {
    matches!(tail.mode, Mode::Stopped(StopKind::Diverged, _))
}

fn freeze(tail: &mut Tail, live: &LiveEnd) {
    if let Some(spooled) = tail.freeze(live).unwrap() {
        assert!(tail.freeze_spooled(spooled.run()).unwrap());
    }
}

#[test]
fn with_nothing_known_the_whole_wal_is_kept_until_the_bucket_decides() {
    let fixture = Fixture::new();
    let mut tail = resolved(&fixture, State::default(), None);
    assert_eq!(tail.mode, Mode::Running);
    let live = fixture.live();
    assert_eq!(tail.state.captured, Some(WalPos { frame: 0, checksum: [0, 0], ..live }));
    assert_eq!(tail.uncaptured_frames(&live), live.frame);
}

/// The last commit was made outside of WAL mode, so that no salts are known. Those of a WAL that is there now, small by chance, tell nothing; nor does the
/// absence of one, whatever the salts were.
#[test]
fn no_salts_are_no_proof_that_a_file_is_newer() {
    let fixture = Fixture::new();
    let outside = State { sealed: true, stamp: Some(Stamp { is_wal: false, ..stamp(9) }), ..captured(WalPos::default()) };
    let judged = |state: State, live: WalPos, now: Stamp| {
        let mut tail = fixture.tail(state);
        tail.resolve(&live, &|| Some(now));
        is_diverged(&tail)
    };
    for first in [1, 77, MOST_RESTARTS - 1, MOST_RESTARTS, u32::MAX] {
        let live = WalPos { salts: [first, 5], frame: 3, checksum: [1, 2] };
        assert!(judged(outside.clone(), live, stamp(3)), "{first}");
        fixture.remove_wal_if_there();
        let before = captured(WalPos { salts: [0_u32.wrapping_sub(first), 5], frame: 0, checksum: [0, 0] });
        assert!(judged(State { stamp: Some(stamp(9)), ..before }, WalPos::default(), stamp(3)), "{first}");
    }
    // And where they are known they are one.
    let live = WalPos { salts: [8, 5], frame: 3, checksum: [1, 2] };
    assert!(!judged(captured(WalPos { salts: [7, 4], frame: 2, checksum: [3, 4] }), live, stamp(3)));
}

#[test]
fn before_the_first_upload_nothing_can_be_lost() {
    let fixture = Fixture::new();
    let end = fixture.live();
    fixture.restart();
    let never_sent = State { captured: Some(end), sealed: true, stamp: Some(stamp(9)), ..State::default() };
    let tail = resolved(&fixture, never_sent.clone(), Some(stamp(3)));
    assert_eq!((&tail.mode, tail.state.captured), (&Mode::Running, Some(start_of(&fixture.live()))));
    let mut tail = fixture.tail(never_sent);
    tail.resolve(&WalPos::default(), &|| None);
    assert_eq!(tail.mode, Mode::Running);
    // The first generation after an empty WAL follows on.
    assert!(tail.generation_begins(fixture.live().salts, &WalPos::default()));
    assert_eq!(tail.uncaptured_frames(&fixture.live()), fixture.live().frame);
    assert_eq!(tail.mode, Mode::Running);
}

#[test]
fn a_wal_that_holds_the_last_frame_is_continued_after_it() {
    let fixture = Fixture::new();
    let end = fixture.live();
    assert_eq!(resolved(&fixture, captured(end), None).mode, Mode::Running);
    fixture.commit();
    // A seal that nothing came of does not matter.
    let mut tail = resolved(&fixture, State { sealed: true, next_salts: Some([1, 2]), ..captured(end) }, Some(stamp(9)));
    assert_eq!(tail.mode, Mode::Running);
    assert_eq!(tail.uncaptured_frames(&fixture.live()), fixture.live().frame - end.frame);
    assert!(!tail.state.sealed);
}

#[test]
fn a_generation_that_was_seen_to_begin_after_the_seal_is_sent_from_its_start() {
    let fixture = Fixture::new();
    let end = fixture.live();
    let salts = fixture.restart();
    assert_ne!(salts, end.salts);
    let mut tail = resolved(&fixture, State { sealed: true, next_salts: Some(salts), ..captured(end) }, None);
    assert_eq!(tail.mode, Mode::Running);
    assert_eq!(tail.uncaptured_frames(&fixture.live()), fixture.live().frame);
    // Its header is written and nothing in it is committed yet.
    let mut tail = fixture.tail(State { sealed: true, next_salts: Some(salts), ..captured(end) });
    tail.resolve(&WalPos { salts, ..WalPos::default() }, &|| None);
    assert_eq!(tail.mode, Mode::Running);
}

#[test]
fn after_a_clean_close_an_unchanged_file_is_continued() {
    let fixture = Fixture::new();
    let end = fixture.live();
    let closed = |stamp| State { sealed: true, stamp: Some(stamp), ..captured(end) };
    // The WAL is gone.
    let mut tail = fixture.tail(closed(stamp(7)));
    tail.resolve(&WalPos::default(), &|| Some(stamp(7)));
    assert_eq!(tail.mode, Mode::Running);
    // Or it is new.
    fixture.restart();
    let mut tail = resolved(&fixture, closed(stamp(7)), Some(stamp(7)));
    assert_eq!(tail.mode, Mode::Running);
    assert_eq!(tail.uncaptured_frames(&fixture.live()), fixture.live().frame);
    // Whatever of the file is another.
    let seven = stamp(7);
    for other in [
        Stamp { size_bytes: 8192, ..seven },
        Stamp { mtime_ns: 99, ..seven },
        Stamp { ctime_ns: 99, ..seven },
        Stamp { header_words: [7, 8], ..seven },
        Stamp { header_words: [8, 7], ..seven },
        Stamp { boot: 2, ..seven },
    ] {
        let mut tail = fixture.tail(closed(seven));
        tail.resolve(&WalPos::default(), &|| Some(other));
        assert_ne!(tail.mode, Mode::Running, "{other:?}");
    }
    // What was synced outlives a loss of power.
    let mut tail = fixture.tail(closed(Stamp { synced: true, ..seven }));
    tail.resolve(&WalPos::default(), &|| Some(Stamp { boot: 2, ..seven }));
    assert_eq!(tail.mode, Mode::Running);
}

/// A change of the journal mode that was cut off, with its WAL deleted: before or after it has written to the database file, which SQLite puts back.
#[test]
fn a_change_of_the_journal_mode_that_is_rolled_back_left_nothing() {
    let fixture = Fixture::new();
    let sealed = State { sealed: true, stamp: Some(stamp(7)), ..captured(fixture.live()) };
    fixture.remove_wal();
    let (rolled_back, written) = (Stamp { mtime_ns: 99, ctime_ns: 99, ..stamp(7) }, Stamp { mtime_ns: 98, ..stamp(8) });
    let judge_after = |begun: Option<OpenTransaction>, found: Option<Stamp>, now: Stamp, synced: bool| {
        let mut tail = fixture.tail(State { open_transaction: begun, ..sealed.clone() });
        if found.is_some() {
            tail.rolls_back_in_file(found, synced);
        }
        tail.resolve(&WalPos::default(), &|| Some(now));
        tail.mode == Mode::Running
    };
    let judge = |begun, found, now| judge_after(begun, found, now, true);
    let journaled = Some(OpenTransaction::Journaled);
    assert!(judge(None, Some(stamp(7)), rolled_back));
    assert!(judge(journaled, Some(written), rolled_back));
    // Somebody else has written before that.
    assert!(!judge(None, Some(written), rolled_back));
    // Or since.
    assert!(!judge(journaled, Some(written), stamp(9)));
    // Somebody else has rolled it back, and may have committed to a WAL since.
    assert!(!judge(journaled, None, rolled_back));
    // The journal was never synced, and the power has failed: it may have held anything.
    let safe = State { stamp: Some(Stamp { synced: true, ..stamp(7) }), ..sealed.clone() };
    for (synced, boot) in [(true, 1), (false, 1), (true, 2), (false, 2)] {
        let mut tail = fixture.tail(safe.clone());
        tail.rolls_back_in_file(Some(Stamp { boot, ..stamp(7) }), synced);
        tail.resolve(&WalPos::default(), &|| Some(Stamp { boot, ..rolled_back }));
        assert_eq!(tail.mode == Mode::Running, synced || boot == 1);
    }
}

#[test]
fn a_stamp_that_proves_nothing_is_not_believed() {
    let fixture = Fixture::new();
    let end = fixture.live();
    fixture.remove_wal();
    // The clock's tick could hide a write, which can only have come after the stamp: the file is the newer one, and unproved.
    let mut tail = fixture.tail(State { sealed: true, stamp: Some(Stamp { too_fresh: true, ..stamp(7) }), ..captured(end) });
    tail.resolve(&WalPos::default(), &|| Some(stamp(7)));
    assert_eq!(tail.mode, Mode::Full(FullReason::ContinuityLost));
    for state in [
        // Not taken at a clean close.
        State { sealed: false, stamp: Some(stamp(7)), ..captured(end) },
        State { sealed: true, stamp: None, ..captured(end) },
    ] {
        let mut tail = fixture.tail(state);
        tail.resolve(&WalPos::default(), &|| Some(stamp(7)));
        assert!(is_diverged(&tail), "{:?}", tail.mode);
    }
    // The clock's tick could hide a write, but only one that came later.
    let mut tail = fixture.tail(State { sealed: true, stamp: Some(Stamp { too_fresh: true, ..stamp(7) }), ..captured(end) });
    tail.resolve(&WalPos::default(), &|| Some(stamp(7)));
    assert_eq!(tail.mode, Mode::Full(FullReason::ContinuityLost));
}

#[test]
fn a_file_that_somebody_wrote_on_is_sent_again_and_an_older_one_is_not() {
    let fixture = Fixture::new();
    let end = fixture.live();
    fixture.remove_wal();
    let closed = || State { sealed: true, stamp: Some(stamp(7)), ..captured(end) };
    let judge = |now| {
        let mut tail = fixture.tail(closed());
        tail.resolve(&WalPos::default(), &|| now);
        tail
    };
    assert_eq!(judge(Some(stamp(8))).mode, Mode::Full(FullReason::ContinuityLost));
    assert!(is_diverged(&judge(Some(stamp(6)))));
    // The same counter in a changed file: a copy of another time.
    assert!(is_diverged(&judge(Some(Stamp { mtime_ns: 99, ..stamp(7) }))));
    assert!(is_diverged(&judge(None)));
}

/// The bucket may tell what it is, unless it was written to: what is in the WAL counts only where it was there at first.
#[test]
fn a_file_of_which_nothing_tells_is_to_be_compared_as_it_was_found() {
    let fixture = Fixture::new();
    let elsewhere = WalPos { salts: [fixture.live().salts[0].wrapping_add(MOST_RESTARTS), 3], ..fixture.live() };
    let found = Stamp { mtime_ns: 99, ..stamp(7) };
    let closed = State { sealed: true, stamp: Some(stamp(7)), ..captured(elsewhere) };
    let judged = |state: State, began_empty: bool, now: Stamp| {
        let mut tail = fixture.tail(state);
        tail.shared.began_empty.store(u64::from(began_empty), std::sync::atomic::Ordering::Relaxed);
        tail.resolve(&fixture.live(), &|| Some(now));
        assert!(is_diverged(&tail), "{:?}", tail.mode);
        (tail.to_be_compared(), tail.state)
    };
    assert_eq!(judged(closed.clone(), false, found).0, None);
    let (to_compare, state) = judged(closed, true, found);
    assert_eq!(to_compare, Some(found));
    // At the next open.
    assert_eq!(judged(state.clone(), true, found).0, Some(found));
    assert_eq!(judged(state, true, Stamp { header_words: [8, 8], ..found }).0, None);
}

#[test]
fn a_power_loss_stops_replication_where_that_is_asked_for_until_the_file_is_adopted() {
    let fixture = Fixture::new();
    let beyond = WalPos { frame: fixture.live().frame + 5, ..fixture.live() };
    let judged = |state: State| {
        let mut tail = fixture.tail(state);
        tail.refuse_lost_tail();
        tail.resolve(&fixture.live(), &|| None);
        tail.mode
    };
    let Mode::Stopped(StopKind::Diverged, message) = judged(captured(beyond)) else { panic!("it goes on") };
    assert!(message.contains("refuse_lost_tail") && message.contains("0000000000000002"), "{message}");
    let adopted = State { adopt: Some(Txid::FIRST.next()), ..captured(beyond) };
    assert_eq!(judged(adopted), Mode::Full(FullReason::Adopted));
    // What was decided before the option was set goes on.
    assert_eq!(judged(State { full: Some(FullReason::BucketAhead), ..captured(beyond) }), Mode::Full(FullReason::BucketAhead));
}

#[test]
fn a_power_loss_that_took_replicated_frames_costs_the_full_state() {
    let fixture = Fixture::new();
    let end = fixture.live();
    for lost in [WalPos { frame: end.frame + 1, ..end }, WalPos { checksum: [1, 2], ..end }] {
        let tail = resolved(&fixture, captured(lost), None);
        assert_eq!(tail.mode, Mode::Full(FullReason::BucketAhead));
        assert_eq!(tail.state.captured, None);
    }
}

#[test]
fn a_restart_that_nobody_saw_costs_the_full_state_where_the_file_is_newer() {
    let fixture = Fixture::new();
    let end = fixture.live();
    let salts = fixture.restart();
    assert_eq!(salts[0], end.salts[0].wrapping_add(1), "a connection that knows the WAL counts up");
    assert_eq!(resolved(&fixture, captured(end), None).mode, Mode::Full(FullReason::ContinuityLost));
    // Other salts than those that were seen to begin.
    let other = State { sealed: true, next_salts: Some([salts[0], salts[1] ^ 1]), ..captured(end) };
    assert_eq!(resolved(&fixture, other, None).mode, Mode::Full(FullReason::ContinuityLost));
    // Older than what was captured.
    let newer = WalPos { salts: [salts[0].wrapping_add(5), 3], ..end };
    assert!(is_diverged(&resolved(&fixture, captured(newer), None)));
}

#[test]
fn a_database_restored_to_an_earlier_state_waits_for_the_user() {
    let fixture = Fixture::new();
    let earlier = RestoredEarlier { txid: Txid::FIRST.next(), newest: Txid::FIRST.next().next() };
    let state = State { restored_earlier: Some(earlier), sealed: true, stamp: Some(stamp(1)), ..captured(WalPos::default()) };
    assert!(is_diverged(&resolved(&fixture, state.clone(), Some(stamp(1)))));
    let adopted = State { adopt: Some(earlier.newest), ..state };
    assert_eq!(resolved(&fixture, adopted, Some(stamp(1))).mode, Mode::Full(FullReason::Adopted));
}

#[test]
fn an_unfinished_full_state_is_begun_again() {
    let fixture = Fixture::new();
    let state = State { full: Some(FullReason::Unfinished), ..captured(fixture.live()) };
    assert_eq!(resolved(&fixture, state, None).mode, Mode::Full(FullReason::Unfinished));
}

#[test]
fn a_seal_puts_everything_into_the_spool_and_the_next_generation_follows_on() {
    let fixture = Fixture::new();
    let mut tail = resolved(&fixture, captured(start_of(&fixture.live())), None);
    let sealed = fixture.live_end();
    tail.seal(&sealed, u32::MAX, None).unwrap();
    assert!(tail.state.sealed && !tail.spool.is_empty());
    assert_eq!(tail.state.captured, Some(sealed.end));
    let salts = fixture.restart();
    assert!(tail.generation_begins(salts, &sealed.end));
    assert_eq!(tail.uncaptured_frames(&fixture.live()), fixture.live().frame);
    freeze(&mut tail, &fixture.live_end());
    // Both generations are one batch, and what is captured is the live end.
    let inflight = tail.acknowledged().unwrap().unwrap();
    assert_eq!((inflight.attempt.txid, inflight.attempt.end), (Txid::FIRST.next().next(), fixture.live()));
    assert!(tail.spool.is_empty());
}

#[test]
fn what_is_sealed_while_a_batch_is_made_is_for_the_next() {
    let fixture = Fixture::new();
    let mut tail = resolved(&fixture, captured(start_of(&fixture.live())), None);
    let first = LiveEnd { sequence: 5, ..fixture.live_end() };
    tail.seal(&first, u32::MAX, None).unwrap();
    let spooled = tail.freeze(&first).unwrap().unwrap();
    fixture.commit();
    let second = LiveEnd { sequence: 6, ..fixture.live_end() };
    tail.seal(&second, u32::MAX, None).unwrap();
    assert!(tail.freeze_spooled(spooled.run()).unwrap());
    let inflight = tail.inflight.clone().unwrap();
    assert_eq!((inflight.attempt.end, inflight.sequence), (first.end, 5));
    assert_eq!((tail.state.captured, tail.spool.is_empty()), (Some(second.end), false));
    tail.acknowledged().unwrap();
    freeze(&mut tail, &second);
    let inflight = tail.inflight.clone().unwrap();
    assert_eq!((inflight.attempt.end, inflight.sequence, tail.spool.is_empty()), (second.end, 6, true));
    // A process that comes later finds both.
    let state = tail.state.clone();
    drop(tail);
    assert!(fixture.tail(state).rebuild_attempt().unwrap());
}

#[test]
fn a_batch_is_not_sent_where_continuity_was_lost_while_it_was_made() {
    let fixture = Fixture::new();
    let mut tail = resolved(&fixture, captured(start_of(&fixture.live())), None);
    tail.seal(&fixture.live_end(), u32::MAX, None).unwrap();
    let spooled = tail.freeze(&fixture.live_end()).unwrap().unwrap();
    tail.lose(FullReason::ContinuityLost);
    assert!(!tail.freeze_spooled(spooled.run()).unwrap());
    assert!(tail.inflight.is_none() && tail.state.attempt.is_none() && tail.spool.is_empty());
    let left = std::fs::read_dir(&fixture.paths().directory).unwrap().filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".ltx") || name.to_string_lossy().ends_with(".tmp")
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn more_than_is_allowed_is_not_encoded_while_a_writer_waits() {
    let fixture = Fixture::new();
    let mut tail = resolved(&fixture, captured(start_of(&fixture.live())), None);
    assert!(matches!(tail.seal(&fixture.live_end(), 1, None), Err(TailError::TooMuch { .. })));
    assert!(!tail.state.sealed && tail.spool.is_empty());
}

#[test]
fn a_generation_that_begins_without_a_seal_is_a_break() {
    let fixture = Fixture::new();
    let end = fixture.live();
    let mut tail = resolved(&fixture, captured(end), None);
    assert!(tail.generation_begins(end.salts, &end));
    assert!(!tail.generation_begins([1, 2], &end));
}

/// A predecessor's batch, not yet looked at: its bytes survive the restart of the WAL that it was made of.
#[test]
fn a_predecessors_batch_is_saved_before_its_frames_go() {
    let fixture = Fixture::new();
    let mut first = resolved(&fixture, captured(start_of(&fixture.live())), None);
    freeze(&mut first, &fixture.live_end());
    let Some(Inflight { body: Body::Memory(bytes), .. }) = first.inflight.clone() else { panic!("it is small") };
    let state = first.state.clone();
    drop(first);
    assert!(state.attempt.is_some_and(|a| !a.in_file));
    let mut second = resolved(&fixture, state, None);
    second.seal(&fixture.live_end(), u32::MAX, None).unwrap();
    fixture.restart();
    let saved = second.state.clone();
    drop(second);
    let mut third = fixture.tail(saved);
    assert!(third.rebuild_attempt().unwrap());
    let Some(Inflight { body: Body::File(path), .. }) = third.inflight else { panic!("it was saved") };
    assert_eq!(std::fs::read(path).unwrap(), bytes);
}
