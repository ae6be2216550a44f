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

/// Many processes on one database.
fn campaign(name: &str, style: &Style, at_points: bool) {
    let seed = number("REPLICATED_TEST_SEED", 1);
    let rounds = number("REPLICATED_TEST_CRASH_ROUNDS", 12);
    let mut life = Life::new(name, seed, style.clone(), |folder| Bucket::folder(&folder.join("bucket")));
    // So many calls, and points, a process came to that was not killed.
    let (mut calls, mut changing, mut points) = (400, 200, 100);
    let (mut deaths, mut first_flush) = (0, None);
    for _ in 0..rounds {
        let after = life.random().bool();
        let ending = match life.random().u8(0..3) {
            _ if at_points => Ending::Fault(format!("*=kill@{}", life.random().u64(1..points))),
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
        } else {
            assert!(outcome.killed);
            deaths += 1;
            // What was not reached is not known: further on next time.
            (calls, changing, points) = (calls * 9 / 8, changing * 9 / 8, points * 9 / 8);
        }
        life.check_prefix();
    }
    life.end();
    assert!(deaths * 3 > rounds, "{deaths} of {rounds} died");
    // A process that dies while the first full state is on its way may have to send it again. After that no kill costs another.
    let full_states = life.full_states();
    if first_flush.is_some_and(|before| before != full_states) {
        life.fail(&format!("the full state was sent again: {full_states:?}"));
    }
}

#[test]
fn killed_at_any_call_of_the_vfs() {
    campaign("calls", &Style::default(), false);
}

#[test]
fn killed_at_any_call_with_small_caches_and_many_restarts() {
    let style = Style {
        page_bytes: 1024,
        synchronous: words(&["OFF", "NORMAL", "FULL"]),
        cache_pages: 10,
        autocheckpoint_pages: 20,
        auto_vacuum: 2,
        most_bytes: 9000,
        ..Style::default()
    };
    campaign("restarts", &style, false);
}

#[test]
fn killed_at_any_fail_point() {
    campaign("points", &Style::default(), true);
}

#[test]
fn killed_at_any_fail_point_with_small_caches_and_many_restarts() {
    let style = Style { page_bytes: 512, cache_pages: 10, autocheckpoint_pages: 30, most_bytes: 4000, ..Style::default() };
    campaign("restarting points", &style, true);
}

#[test]
fn killed_with_two_threads() {
    let style = Style { cache_pages: 20, autocheckpoint_pages: 20, journal_size_limit: 20_000, threads: true, ..Style::default() };
    campaign("threads", &style, false);
}

#[test]
fn killed_at_any_fail_point_with_two_threads() {
    let style = Style { cache_pages: 20, autocheckpoint_pages: 20, journal_size_limit: 20_000, threads: true, ..Style::default() };
    campaign("threaded points", &style, true);
}
