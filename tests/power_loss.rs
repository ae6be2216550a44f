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
use replicated_testkit::crash::session::Style;
use replicated_testkit::crash::vfs::{Counted, End};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn campaign(name: &str, style: &Style, losses: &[Loss], own: &[Own]) {
    let seed = number("REPLICATED_TEST_SEED", 1);
    let rounds = number("REPLICATED_TEST_CRASH_ROUNDS", 12);
    let mut life = Life::new(name, seed, style.clone(), |folder| Bucket::folder(&folder.join("bucket")));
    let mut calls = 300;
    let mut deaths = 0;
    for _ in 0..rounds {
        let end = End { call: life.random().u64(1..calls), counted: Counted::Changing, after: life.random().bool() };
        let (loss, own) = (*life.random().choice(losses).unwrap(), *life.random().choice(own).unwrap());
        let outcome = life.round(&Ending::PowerLoss(end, loss, own));
        if let Some(why) = &outcome.stopped {
            life.fail(&format!("replication stopped: {why}"));
        }
        calls = outcome.ended.as_ref().map_or(calls * 9 / 8, |ended| ended["changing"].as_u64().unwrap() * 5 / 4);
        deaths += u64::from(outcome.killed);
        life.check_prefix();
    }
    life.end();
    assert!(deaths * 3 > rounds, "{deaths} of {rounds} died");
    eprintln!("{name}: {deaths} of {rounds}; {:#?}", life.full_states());
}

#[test]
fn what_was_not_synced_is_gone() {
    campaign("synced", &Style::default(), &[Loss::Synced], &[Own::AsTheyWere]);
}

#[test]
fn any_part_of_what_was_not_synced_is_gone() {
    let style = Style { synchronous: words(&["NORMAL", "FULL"]), autocheckpoint_pages: 30, cache_pages: 20, ..Style::default() };
    campaign("torn", &style, &[Loss::Torn, Loss::Synced], &[Own::AsTheyWere]);
}

#[test]
fn the_control_file_is_as_it_was_last_synced() {
    let style = Style { autocheckpoint_pages: 30, cache_pages: 20, ..Style::default() };
    campaign("control", &style, &[Loss::Torn, Loss::Synced], &[Own::ControlAsSynced]);
}

#[test]
fn any_part_of_the_spool_and_of_the_control_file_is_gone() {
    let style = Style { autocheckpoint_pages: 30, cache_pages: 20, ..Style::default() };
    campaign("random", &style, &[Loss::Torn, Loss::Synced], &[Own::Random]);
}
