//! Two hosts with processes that come, commit, stop and are killed, a program without the extension, a store with its weather, and a user who
//! decides, all chosen by seeds and held against a model: I1 to I6 in the short form, with real processes on real files. `make simulate` is the
//! long one. docs/testing.md says what is checked.
//!
//! `REPLICATED_TEST_SEED` chooses the first seed, `REPLICATED_TEST_ROUNDS` how many there are.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use replicated_testkit::crash::life::number;
use replicated_testkit::s3::Server;
use replicated_testkit::simulation::place::Stores;
use replicated_testkit::simulation::run::{Counts, Plan, add, world};

/// Many short worlds, in which disasters are frequent.
fn worlds(first: u64, stores: Stores<'_>, must_happen: &[&str]) {
    let plan = Plan { stores, steps: 60, disasters: 1200, shorten_for: Duration::from_secs(60) };
    let first = first + number("REPLICATED_TEST_SEED", 0);
    let rounds = number("REPLICATED_TEST_ROUNDS", 10);
    let mut sum = Counts::new();
    for seed in first..first + rounds {
        match world(&plan, seed) {
            Ok(counts) => add(&mut sum, &counts),
            Err(why) => panic!("{why}"),
        }
    }
    // Worlds in which nothing happens prove nothing.
    for what in must_happen {
        assert!(sum.get(what).is_some_and(|times| *times > 0), "no {what}: {sum:?}");
    }
}

const ALWAYS: &[&str] =
    &["commit", "open", "close", "kill", "kill within", "sync", "read", "checkpoint", "weather", "look", "equal in the end", "twin equal"];

#[test]
fn worlds_with_a_store_over_http() {
    let server = Server::start().unwrap();
    worlds(100, Stores::S3(&server), &[ALWAYS, &["faults"]].concat());
}

#[test]
fn worlds_with_a_folder() {
    worlds(200, Stores::Folder, ALWAYS);
}
