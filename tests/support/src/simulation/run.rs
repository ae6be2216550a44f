//! Worlds one after another, from seeds. What fails is told by its seed and the shortest list of steps that was found to fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::place::Stores;
use super::step::{Step, Style, steps};
use super::world::{OF_SQLITE, World};

/// Which worlds.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// The store.
    pub stores: Stores<'a>,
    /// Steps of a world.
    pub steps: usize,
    /// Of ten thousand steps so many are disasters.
    pub disasters: u32,
    /// How long a list of steps that fails may be tried to be shortened.
    pub shorten_for: Duration,
}

/// What happened, by name.
pub type Counts = BTreeMap<&'static str, u64>;

struct Failure {
    at: usize,
    did: Vec<bool>,
    why: String,
    logs: String,
}

fn folder() -> tempfile::TempDir {
    // In memory where there is such a place: what a kill leaves does not depend on the disk.
    let memory = Path::new("/dev/shm");
    let mut named = tempfile::Builder::new();
    named.prefix("simulation-");
    if memory.is_dir() { named.tempdir_in(memory) } else { named.tempdir() }.expect("a folder")
}

fn live(plan: &Plan<'_>, seed: u64, steps: &[Step], keep: Option<&mut PathBuf>) -> Result<Counts, Failure> {
    let dir = folder();
    let mut world = World::new(dir.path(), seed, style(plan, seed), plan.stores);
    let mut did = Vec::new();
    let mut lived = || {
        for (at, step) in steps.iter().enumerate() {
            did.push(true);
            let done = world.step(step).map_err(|why| (at, why))?;
            if let Some(last) = did.last_mut() {
                *last = done;
            }
            *world.counts.entry("steps that did something").or_default() += u64::from(done);
            *world.counts.entry("steps").or_default() += 1;
        }
        world.end(seed).map_err(|why| (steps.len(), why))
    };
    let ended = match lived() {
        Err((_, why)) if why.starts_with(OF_SQLITE) => {
            *world.counts.entry("ended by SQLite itself").or_default() += 1;
            Ok(())
        }
        ended => ended,
    };
    match ended {
        Ok(()) => {
            world.counts.insert("faults", world.place.faults());
            world.counts.insert("objects", world.watch.objects() as u64);
            world.counts.insert("breaks", world.watch.breaks);
            Ok(world.counts)
        }
        Err((at, why)) => {
            let logs = world.logs();
            drop(world);
            if let Some(path) = keep {
                *path = dir.keep();
            }
            Err(Failure { at, did, why, logs })
        }
    }
}

fn style(plan: &Plan<'_>, seed: u64) -> Style {
    Style::of(&mut fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)), plan.disasters)
}

/// One world. What happened.
///
/// # Errors
/// What does not hold, with what is needed to repeat it.
pub fn world(plan: &Plan<'_>, seed: u64) -> Result<Counts, String> {
    let steps = steps(seed, plan.steps, &style(plan, seed));
    let mut left = PathBuf::new();
    let failure = match live(plan, seed, &steps, Some(&mut left)) {
        Ok(counts) => return Ok(counts),
        Err(failure) => failure,
    };
    let (shortest, last) = shorten(plan, seed, &steps, &failure);
    let list: String = shortest.iter().map(|step| format!("  {step:?}\n")).collect();
    let of_shortest = last.map(|failure| format!("the shortened list fails with: {}\n", failure.why)).unwrap_or_default();
    Err(format!(
        "seed {seed}, step {} of {}: {}\nto repeat it: make simulate SEED={seed} STEPS={} WORLD={} DISASTERS={}{}\n{}{} steps are enough:\n{list}{}what is left: {}",
        failure.at + 1,
        steps.len(),
        failure.why,
        plan.steps,
        plan.steps,
        plan.disasters,
        if matches!(plan.stores, Stores::S3(_)) { " STORE=s3" } else { "" },
        of_shortest,
        shortest.len(),
        failure.logs,
        left.display()
    ))
}

/// A failure without what differs from time to time.
fn kind(why: &str) -> String {
    why.chars().take_while(|c| *c != '{').filter(char::is_ascii_alphabetic).take(60).collect()
}

/// Leaves steps out as long as it fails in the same way without them.
fn shorten(plan: &Plan<'_>, seed: u64, steps: &[Step], first: &Failure) -> (Vec<Step>, Option<Failure>) {
    let deadline = Instant::now() + plan.shorten_for;
    let fails = |steps: &[Step]| live(plan, seed, steps, None).err().filter(|failure| kind(&failure.why) == kind(&first.why));
    let mut shortest = steps[..steps.len().min(first.at + 1)].to_vec();
    let mut last = None;
    // What did nothing goes first.
    let effective: Vec<Step> = shortest.iter().zip(&first.did).filter(|(_, did)| **did).map(|(step, _)| step.clone()).collect();
    for _ in 0..3 {
        if let Some(failure) = fails(&effective) {
            (shortest, last) = (effective, Some(failure));
            break;
        }
    }
    let mut piece = shortest.len().div_ceil(2);
    while piece > 0 && Instant::now() < deadline {
        let mut at = 0;
        let mut was_shortened = false;
        while at < shortest.len() && Instant::now() < deadline {
            let mut without = shortest.clone();
            without.drain(at..(at + piece).min(shortest.len()));
            match fails(&without) {
                None => at += piece,
                Some(failure) => {
                    // Steps after the one that fails were not even begun.
                    without.truncate(failure.at + 1);
                    (shortest, last, was_shortened) = (without, Some(failure), true);
                }
            }
        }
        if piece == 1 && !was_shortened {
            break;
        }
        piece = if piece == 1 { 1 } else { piece.div_ceil(2) };
    }
    (shortest, last)
}

/// Adds up.
pub fn add(sum: &mut Counts, counts: &Counts) {
    for (name, count) in counts {
        *sum.entry(name).or_default() += count;
    }
}
