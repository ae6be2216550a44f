//! The long form of the simulation: `simulate --steps 1000000 --seed 1`.

#![allow(clippy::print_stdout, clippy::expect_used, reason = "it is a test, and says how it went")]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use replicated_testkit::s3::Server;
use replicated_testkit::simulation::place::Stores;
use replicated_testkit::simulation::run::{Counts, Plan, add, world};

const USAGE: &str = "simulate [--seed N] [--steps N] [--world STEPS_OF_A_WORLD] [--disasters OF_10000_STEPS] [--store folder|s3] [--jobs N] [--shorten SECONDS]";

struct Wish {
    seed: u64,
    steps: u64,
    world: u64,
    disasters: u32,
    s3: bool,
    jobs: u64,
    shorten: u64,
}

fn wish() -> Option<Wish> {
    let mut wish = Wish { seed: 1, steps: 100_000, world: 2000, disasters: 150, s3: false, jobs: 2, shorten: 120 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next()?;
        let number = value.parse::<u64>();
        match word.as_str() {
            "--seed" => wish.seed = number.ok()?,
            "--steps" => wish.steps = number.ok()?,
            "--world" => wish.world = number.ok()?.max(1),
            "--disasters" => wish.disasters = u32::try_from(number.ok()?).ok()?,
            "--store" => wish.s3 = value == "s3",
            "--jobs" => wish.jobs = number.ok()?.max(1),
            "--shorten" => wish.shorten = number.ok()?,
            _ => return None,
        }
    }
    Some(wish)
}

fn main() -> ExitCode {
    let Some(wish) = wish() else {
        println!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let server = Server::start().expect("a port is free");
    let plan = Plan {
        stores: if wish.s3 { Stores::S3(&server) } else { Stores::Folder },
        steps: usize::try_from(wish.world).unwrap_or(2000),
        disasters: wish.disasters,
        shorten_for: Duration::from_secs(wish.shorten),
    };
    let worlds = wish.steps.div_ceil(wish.world);
    let (next, begun, sum) = (AtomicU64::new(0), Instant::now(), Mutex::new(Counts::new()));
    let failed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..wish.jobs.min(worlds) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= worlds {
                        return;
                    }
                    match world(&plan, wish.seed + number) {
                        Ok(counts) => add(&mut sum.lock().expect("nobody panics with it"), &counts),
                        Err(why) => {
                            println!("FAILED {why}\n");
                            failed.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().expect("nobody panicked with it");
    let seconds = begun.elapsed().as_secs_f64();
    let steps = sum.get("steps").copied().unwrap_or(0);
    println!("{worlds} worlds from seed {}, {steps} steps in {seconds:.1} s, {:.0} a second: {sum:?}", wish.seed, steps as f64 / seconds);
    if failed.load(Ordering::SeqCst) > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
