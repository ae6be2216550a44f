//! Power losses: what was not synced is gone, or any part of it. With `synchronous=NORMAL` SQLite may lose commits that the bucket has. That is
//! found, said with the TXID that has them, and the file's state follows as the next TXID; no two histories are ever mixed.
//!
//! `REPLICATED_TEST_SEED` chooses what happens, `REPLICATED_TEST_CRASH_ROUNDS` how often the power fails in each campaign.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic)] // The helpers are part of tests.

use replicated_testkit::bucket::Bucket;
use replicated_testkit::crash::disk::Loss;
use replicated_testkit::crash::life::{Ending, Life, number};
use replicated_testkit::crash::own_files::Own;
use replicated_testkit::crash::session::{CUT_OFF, Style};
use replicated_testkit::crash::vfs::{Counted, End};

const BOTH: [Loss; 2] = [Loss::Synced, Loss::Torn];

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What replication may do after a power loss.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    /// Go on by itself.
    GoesOn,
    /// Or ask the user, because nothing is left that shows whose file this is.
    MayAsk,
}

fn campaign(name: &str, style: &Style, losses: &[Loss], own: &[Own], afterwards: Afterwards) {
    let seed = number("REPLICATED_TEST_SEED", 1);
    let rounds = number("REPLICATED_TEST_CRASH_ROUNDS", 8);
    let (mut deaths, mut lives) = (0, 0);
    while deaths < rounds {
        lives += 1;
        let mut life = Life::new(name, seed.wrapping_mul(1000) + lives, style.clone(), |folder| Bucket::folder(&folder.join("bucket")));
        deaths += live(&mut life, losses, own, afterwards, (rounds - deaths).min(15));
    }
}

fn live(life: &mut Life, losses: &[Loss], own: &[Own], afterwards: Afterwards, rounds: u64) -> u64 {
    let (mut calls, mut deaths) = (300, 0);
    while deaths < rounds {
        let end = End { call: life.random().u64(1..calls), counted: Counted::Changing, after: life.random().bool() };
        let (loss, own) = (*life.random().choice(losses).unwrap(), *life.random().choice(own).unwrap());
        let outcome = life.round(&Ending::PowerLoss(end, loss, own));
        if let Some(why) = &outcome.stopped {
            if afterwards == Afterwards::GoesOn || !why.contains("diverged") {
                life.fail(&format!("replication stopped: {why}"));
            }
            life.adopt();
        }
        if life.style.durability == "remote" {
            life.check_acknowledged();
        }
        calls = outcome.ended.as_ref().map_or(calls * 9 / 8, |ended| ended["changing"].as_u64().unwrap() * 5 / 4);
        deaths += u64::from(outcome.killed);
        if !life.database().exists() {
            // It was never synced, nor was its folder: the next one is another.
            return deaths;
        }
        if life.style.may_be_damaged && life.is_damaged() {
            life.check_bucket();
            life.end_damaged();
            return deaths.max(1);
        }
        life.check_prefix();
    }
    if afterwards == Afterwards::MayAsk {
        // What the last power loss left may be for the user to decide.
        let outcome = life.round(&Ending::Itself { closes: true });
        if outcome.stopped.is_some() {
            life.adopt();
        }
    }
    life.end();
    deaths
}

/// Caches and logs so small that everything happens often.
fn small() -> Style {
    Style { synchronous: words(&["NORMAL", "FULL"]), autocheckpoint_pages: 30, cache_pages: 20, ..Style::default() }
}

#[test]
fn what_was_not_synced_is_gone() {
    campaign("synced", &Style::default(), &[Loss::Synced], &[Own::AsTheyWere], Afterwards::GoesOn);
}

#[test]
fn any_part_of_what_was_not_synced_is_gone() {
    campaign("torn", &small(), &BOTH, &[Own::AsTheyWere], Afterwards::GoesOn);
}

#[test]
fn the_control_file_is_as_it_was_last_synced() {
    campaign("control", &small(), &BOTH, &[Own::ControlAsSynced], Afterwards::GoesOn);
}

#[test]
fn any_part_of_the_spool_and_of_the_control_file_is_gone() {
    campaign("random", &small(), &BOTH, &[Own::Random], Afterwards::MayAsk);
}

#[test]
fn everything_of_ours_is_gone() {
    campaign("lost", &small(), &BOTH, &[Own::Lost, Own::AsTheyWere], Afterwards::MayAsk);
}

#[test]
fn under_exclusive_locking() {
    let style = Style { locking: "EXCLUSIVE".to_owned(), ..small() };
    campaign("exclusive", &style, &BOTH, &[Own::AsTheyWere, Own::ControlAsSynced], Afterwards::GoesOn);
}

#[test]
fn with_a_rollback_journal() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        let style = Style { journal: words(&[mode]), synchronous: words(&["FULL", "EXTRA"]), ..small() };
        campaign(mode, &style, &BOTH, &[Own::AsTheyWere, Own::ControlAsSynced], Afterwards::GoesOn);
    }
}

#[test]
fn while_journal_modes_take_turns() {
    let style = Style { journal: words(&["WAL", "DELETE", "TRUNCATE", "PERSIST"]), ..small() };
    campaign("turns", &style, &BOTH, &[Own::AsTheyWere, Own::ControlAsSynced, Own::Random], Afterwards::MayAsk);
}

/// What tells that the last close has left nothing behind is on disk before its WAL goes: the next open needs no full state.
#[test]
fn when_the_last_close_has_just_deleted_the_wal() {
    for (seed, loss) in [(1, Loss::Synced), (2, Loss::Torn), (3, Loss::Torn)] {
        let mut life = Life::new("closed", seed, Style::default(), |folder| Bucket::folder(&folder.join("bucket")));
        life.style.autocheckpoint_pages = 0;
        // Nothing is being sent while it closes: what was taken out of the spool by then may cost a full state.
        life.style.durability = "remote".to_owned();
        life.round(&Ending::Itself { closes: true });
        let end = End { call: 1, counted: Counted::WalDeletions, after: true };
        assert!(life.round(&Ending::PowerLoss(end, loss, Own::ControlAsSynced)).killed);
        life.check_prefix();
        life.end();
        assert_eq!(life.full_states().len(), 1, "{:?}", life.full_states());
    }
}

/// A commit that returned is in the bucket, whatever SQLite has lost of it.
#[test]
fn with_commits_that_wait_for_the_bucket() {
    for (mode, synchronous) in [("WAL", "OFF"), ("WAL", "NORMAL"), ("DELETE", "FULL")] {
        let style = Style { journal: words(&[mode]), synchronous: words(&[synchronous]), durability: "remote".to_owned(), ..small() };
        let style = Style { may_be_damaged: synchronous == "OFF", ..style };
        campaign(&format!("remote {mode} {synchronous}"), &style, &BOTH, &[Own::AsTheyWere, Own::ControlAsSynced], Afterwards::MayAsk);
    }
}

/// SQLite may lose the database, and the bucket then gets what is left of it, as long as SQLite can read anything there.
#[test]
fn where_nothing_is_synced() {
    for mode in ["WAL", "DELETE", "OFF"] {
        let style = Style { journal: words(&[mode]), synchronous: words(&["OFF"]), may_be_damaged: true, ..small() };
        campaign("nothing synced", &style, &BOTH, &[Own::AsTheyWere, Own::ControlAsSynced, Own::Random], Afterwards::MayAsk);
    }
}

/// A database whose state is in the bucket and on the disk, closed.
fn closed(name: &str, journal: &str, body: &str) -> Life {
    let mut life = Life::new(name, 1, Style::default(), |folder| Bucket::folder(&folder.join("bucket")));
    let insert = format!("INSERT INTO t VALUES (x'{body}')");
    life.scripted(
        &[
            &format!("PRAGMA journal_mode={journal}"),
            "PRAGMA synchronous=FULL",
            "CREATE TABLE t(x)",
            &insert,
            "PRAGMA replicated_sync='60s'",
        ],
        None,
    );
    life
}

/// The bucket is there again, and has to get what SQLite finds in the file: that it has changed nothing but its content tells.
fn is_sent_after_all(life: &mut Life, body: &str) {
    std::fs::remove_file(life.path("bucket")).unwrap();
    std::fs::rename(life.path("bucket.away"), life.path("bucket")).unwrap();
    let before = life.full_states().len();
    let check = format!("CREATE TEMP TABLE same(is_so CHECK (is_so)); INSERT INTO same SELECT x = x'{body}' FROM t");
    life.scripted(&[&check, "PRAGMA replicated_sync='60s'"], None);
    life.check_equal();
    let sent = life.full_states();
    assert_eq!(sent.len(), before + 1, "{sent:?}");
}

/// What a page holds beside zeros, where SQLite's checksum of a journal does not look: every 200th byte from the page's end.
fn body(marked: bool) -> String {
    (0..3000).map(|byte| if marked && (504..590).contains(&byte) { "aa" } else { "00" }).collect()
}

/// With `synchronous=OFF` a checkpoint writes to the database file before the WAL is on disk. The power takes the WAL, and nothing of the file shows that a
/// page of it is another one: not its size, nor its first page, nor its time.
#[test]
fn a_checkpoint_that_outruns_a_wal_which_is_never_synced() {
    let mut life = closed("outrun", "WAL", &body(false));
    let update = format!("UPDATE t SET x = x'{}'", body(true));
    life.scripted(
        &[CUT_OFF, "PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=0", &update, "PRAGMA wal_checkpoint(PASSIVE)"],
        Some((Loss::Outrun, Own::ControlAsSynced)),
    );
    is_sent_after_all(&mut life, &body(true));
}

/// With `synchronous=OFF` the database file is written before its journal is on disk. The power takes the journal, and a page stays.
#[test]
fn a_file_that_was_written_under_a_journal_which_is_never_synced() {
    let mut life = closed("unsynced", "DELETE", &body(false));
    let update = format!("UPDATE t SET x = x'{}'", body(true));
    life.scripted(&[CUT_OFF, "PRAGMA synchronous=OFF", &update], Some((Loss::Outrun, Own::ControlAsSynced)));
    is_sent_after_all(&mut life, &body(true));
}

/// With `synchronous=OFF` the power may leave a part of a journal that passes SQLite's checksum. It is rolled back, over a file that nobody had written to.
#[test]
fn a_journal_that_was_never_synced_is_rolled_back_over_an_untouched_file() {
    /// The journal's header is one sector, then come the page's number and its content: these are the page's bytes 1532 to 2044.
    const SECTOR: usize = 4;
    let mut life = closed("hot", "DELETE", &body(true));
    let update = format!("BEGIN; UPDATE t SET x = x'{}'", body(false));
    life.scripted(&[CUT_OFF, "PRAGMA synchronous=OFF", &update], Some((Loss::TornJournal(SECTOR), Own::ControlAsSynced)));
    is_sent_after_all(&mut life, &body(false));
}
