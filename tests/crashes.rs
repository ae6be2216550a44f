//! Processes that die at a call of SQLite's VFS or at a fail point of the extension, one after another. After each the bucket restores to a state
//! that was committed; the next one flushes, and the bucket is the database, page by page.
//!
//! `REPLICATED_TEST_SEED` chooses what happens, `REPLICATED_TEST_CRASH_ROUNDS` how many processes die in each campaign.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic)] // The helpers are part of tests.

use replicated_testkit::bucket::Bucket;
use replicated_testkit::crash::life::{Ending, Life, number};
use replicated_testkit::crash::session::Style;
use replicated_testkit::crash::vfs::{Counted, End};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What kills the processes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Call,
    FailPoint,
}

/// Whether kills may cost a full state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FullStates {
    /// The first one only.
    One,
    /// Where a commit was cut short.
    Some,
}

/// Many processes on one database.
fn campaign(name: &str, style: &Style, by: By, allowed: FullStates) {
    campaign_on(name, style, by, allowed, |_| ());
}

/// The same on one that is prepared.
fn campaign_on(name: &str, style: &Style, by: By, allowed: FullStates, prepare: impl Fn(&mut Life)) {
    let seed = number("REPLICATED_TEST_SEED", 1);
    let rounds = number("REPLICATED_TEST_CRASH_ROUNDS", 8);
    let mut deaths = 0;
    let mut lives = 0;
    while deaths < rounds {
        lives += 1;
        let mut life = Life::new(name, seed.wrapping_mul(1000) + lives, style.clone(), |folder| Bucket::folder(&folder.join("bucket")));
        prepare(&mut life);
        // A longer chain takes longer to restore.
        deaths += live(&mut life, by, allowed, (rounds - deaths).min(15));
    }
}

/// One database, until so many processes have died on it or SQLite has lost it. How many died.
fn live(life: &mut Life, by: By, allowed: FullStates, rounds: u64) -> u64 {
    // So many calls, and points, a process came to that was not killed.
    let (mut calls, mut changing, mut points) = (400, 200, 100);
    let (mut deaths, mut first_flush) = (0, None);
    while deaths < rounds {
        let after = life.random().bool();
        let ending = match life.random().u8(0..3) {
            _ if by == By::FailPoint => Ending::Fault(format!("*=kill@{}", life.random().u64(1..points))),
            0 => Ending::Call(End { call: life.random().u64(1..calls), counted: Counted::All, after }),
            _ => Ending::Call(End { call: life.random().u64(1..changing), counted: Counted::Changing, after }),
        };
        let outcome = life.round(&ending);
        if let Some(why) = &outcome.stopped {
            life.fail(&format!("replication stopped: {why}"));
        }
        first_flush = first_flush.or(outcome.synced.then(|| life.full_states()));
        if let Some(ended) = &outcome.ended {
            let seen = |name: &str| ended[name].as_u64().unwrap() * 5 / 4;
            (calls, changing, points) = (seen("calls"), seen("changing"), ended["points"]["*"].as_u64().unwrap() * 5 / 4);
        } else if outcome.killed {
            deaths += 1;
            // What was not reached is not known: further on next time.
            (calls, changing, points) = (calls * 9 / 8, changing * 9 / 8, points * 9 / 8);
        }
        if life.style.may_be_damaged && life.is_damaged() {
            life.check_bucket();
            life.end_damaged();
            return deaths.max(1);
        }
        life.check_prefix();
        if life.style.durability == "remote" {
            life.check_acknowledged();
        }
    }
    life.end();
    // A process that dies while the first full state is on its way may have to send it again. After that no kill costs another.
    let full_states = life.full_states();
    if allowed == FullStates::One && first_flush.is_some_and(|before| before != full_states) {
        life.fail(&format!("the full state was sent again: {full_states:?}"));
    }
    deaths
}

#[test]
fn at_any_call_of_the_vfs() {
    campaign("calls", &Style::default(), By::Call, FullStates::One);
}

#[test]
fn at_any_call_with_small_caches_and_many_restarts() {
    let style = Style {
        page_bytes: 1024,
        synchronous: words(&["OFF", "NORMAL", "FULL"]),
        cache_pages: 10,
        autocheckpoint_pages: 20,
        auto_vacuum: 2,
        most_bytes: 9000,
        ..Style::default()
    };
    campaign("restarts", &style, By::Call, FullStates::One);
}

#[test]
fn at_any_call_and_fail_point_while_a_thread_checkpoints() {
    let style = Style { page_bytes: 1024, cache_pages: 10, autocheckpoint_pages: 40, most_bytes: 4000, ..Style::default() };
    for by in [By::Call, By::FailPoint] {
        campaign_on("ahead", &style, by, FullStates::One, |life| life.checkpoints_ahead(15));
    }
}

#[test]
fn at_any_fail_point() {
    campaign("points", &Style::default(), By::FailPoint, FullStates::One);
}

#[test]
fn at_any_fail_point_with_small_caches_and_many_restarts() {
    let style = Style { page_bytes: 512, cache_pages: 10, autocheckpoint_pages: 30, most_bytes: 4000, ..Style::default() };
    campaign("restarting points", &style, By::FailPoint, FullStates::One);
}

fn two_threads() -> Style {
    Style { cache_pages: 20, autocheckpoint_pages: 20, journal_size_limit: 20_000, threads: true, ..Style::default() }
}

#[test]
fn at_any_call_with_two_threads() {
    campaign("threads", &two_threads(), By::Call, FullStates::One);
}

#[test]
fn at_any_fail_point_with_two_threads() {
    campaign("threaded points", &two_threads(), By::FailPoint, FullStates::One);
}

#[test]
fn at_any_call_under_exclusive_locking() {
    let style = Style { locking: "EXCLUSIVE".to_owned(), cache_pages: 20, autocheckpoint_pages: 40, ..Style::default() };
    campaign("exclusive", &style, By::Call, FullStates::One);
}

/// With a rollback journal on disk.
fn rollback(journal: &[&str]) -> Style {
    Style { journal: words(journal), synchronous: words(&["NORMAL", "FULL", "EXTRA"]), cache_pages: 10, ..Style::default() }
}

#[test]
fn at_any_call_with_a_rollback_journal() {
    campaign("delete", &rollback(&["DELETE"]), By::Call, FullStates::Some);
    campaign("truncate", &rollback(&["TRUNCATE"]), By::Call, FullStates::Some);
    campaign("persist", &rollback(&["PERSIST"]), By::Call, FullStates::Some);
}

#[test]
fn at_any_fail_point_with_a_rollback_journal() {
    campaign("rollback points", &rollback(&["DELETE"]), By::FailPoint, FullStates::Some);
}

#[test]
fn at_any_call_with_a_rollback_journal_under_exclusive_locking() {
    let style = Style { locking: "EXCLUSIVE".to_owned(), ..rollback(&["PERSIST"]) };
    campaign("exclusive persist", &style, By::Call, FullStates::Some);
}

#[test]
fn at_any_call_while_journal_modes_take_turns() {
    campaign("turns", &rollback(&["WAL", "DELETE", "TRUNCATE", "PERSIST"]), By::Call, FullStates::Some);
    campaign("turning points", &rollback(&["WAL", "DELETE", "TRUNCATE", "PERSIST"]), By::FailPoint, FullStates::Some);
}

/// SQLite may lose the database; what is sent then is what is left.
#[test]
fn at_any_call_without_a_journal_on_disk() {
    for journal in [["OFF"].as_slice(), &["MEMORY"], &["WAL", "MEMORY", "OFF", "DELETE"]] {
        let style = Style { may_be_damaged: true, ..rollback(journal) };
        campaign("no journal", &style, By::Call, FullStates::Some);
    }
}

/// Every commit that returned is in a restore on a fresh machine.
fn remote(style: Style) -> Style {
    Style { durability: "remote".to_owned(), ..style }
}

#[test]
fn at_any_call_with_commits_that_wait_for_the_bucket() {
    campaign("remote", &remote(Style::default()), By::Call, FullStates::One);
    let restarts = Style { synchronous: words(&["OFF", "NORMAL", "FULL"]), cache_pages: 10, autocheckpoint_pages: 20, ..Style::default() };
    campaign("remote restarts", &remote(restarts), By::Call, FullStates::One);
    let exclusive = Style { locking: "EXCLUSIVE".to_owned(), cache_pages: 20, autocheckpoint_pages: 40, ..Style::default() };
    campaign("remote exclusive", &remote(exclusive), By::Call, FullStates::One);
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        campaign(&format!("remote {mode}"), &remote(rollback(&[mode])), By::Call, FullStates::Some);
    }
}

#[test]
fn at_any_fail_point_with_commits_that_wait_for_the_bucket() {
    campaign("remote points", &remote(Style::default()), By::FailPoint, FullStates::One);
    campaign("remote rollback points", &remote(rollback(&["DELETE", "TRUNCATE", "PERSIST"])), By::FailPoint, FullStates::Some);
}
