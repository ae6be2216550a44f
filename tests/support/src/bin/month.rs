//! The size of a bucket that is maintained, over simulated time: `month --days 30 --pages 10000 --a-minute 1 --changes 3`.
//!
//! Commits are level-0 files with the times that they would have had, written to a folder; every five minutes a round of maintenance follows, as of that time. At the
//! end the newest state is restored and compared with what was committed.

#![allow(clippy::print_stdout, clippy::expect_used, clippy::indexing_slicing, reason = "it is a measurement, and says how it went")]

use std::collections::BTreeMap;
use std::time::Duration;

use replicated::ltx::{Encoder, Header};
use replicated::maintenance::{self, Maintainer, Policy};
use replicated::store::{Level, LtxName, SNAPSHOT_LEVEL, Store};
use replicated::types::{PageNo, PageSize, TimestampMs, Txid};
use replicated_testkit::bucket::Bucket;

const PAGE_BYTES: usize = 4096;
const MINUTE_MS: i64 = 60_000;
const ROUND_MINUTES: i64 = 5;

struct Wish {
    days: i64,
    pages: u32,
    a_minute: i64,
    changes: u32,
    history: Duration,
}

fn wish() -> Option<Wish> {
    let mut wish = Wish { days: 30, pages: 10_000, a_minute: 1, changes: 3, history: Duration::from_secs(24 * 3600) };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--days" => wish.days = value.parse().ok()?,
            "--pages" => wish.pages = value.parse().ok()?,
            "--a-minute" => wish.a_minute = value.parse().ok()?,
            "--changes" => wish.changes = value.parse().ok()?,
            "--history-hours" => wish.history = Duration::from_secs(value.parse::<u64>().ok()? * 3600),
            _ => return None,
        }
    }
    Some(wish)
}

/// A page of which half can be compressed.
fn content(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut page = vec![b'x'; PAGE_BYTES];
    random.fill(&mut page[..PAGE_BYTES / 2]);
    page
}

fn file<'a>(size: u32, first: Txid, txid: Txid, at: i64, pages: impl Iterator<Item = (u32, &'a Vec<u8>)>) -> bytes::Bytes {
    let page_size = PageSize::new(PAGE_BYTES as u32).expect("a page size");
    let header = Header::new(page_size, size, first, txid, TimestampMs(at));
    let mut encoder = Encoder::new(Vec::new(), &header).expect("a header");
    for (number, page) in pages {
        encoder.page(PageNo::new(number).expect("a page"), page).expect("memory");
    }
    encoder.finish().expect("memory").out.into()
}

fn create(store: &dyn Store, name: &LtxName, body: bytes::Bytes, at: i64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(store.create(name, body, TimestampMs(at))).expect("the folder takes it");
}

fn main() {
    let Some(wish) = wish() else {
        println!("month [--days N] [--pages N] [--a-minute COMMITS] [--changes PAGES_OF_A_COMMIT] [--history-hours N]");
        std::process::exit(2);
    };
    let dir = tempfile::tempdir().expect("a folder");
    let bucket = Bucket::folder(&dir.path().join("bucket"));
    let store = bucket.store();
    let policy = Policy { history: wish.history, exact: wish.history, ..Policy::default() };
    let mut maintainer = Maintainer::new(bucket.store(), policy);
    let mut random = fastrand::Rng::with_seed(1);
    let mut pages: Vec<Vec<u8>> = (0..wish.pages).map(|_| content(&mut random)).collect();
    // A month that has ended, so that the folder's own times lie beyond it.
    let begun = maintenance::now().0 - (wish.days + 1) * 24 * 60 * MINUTE_MS;
    let mut txid = Txid::FIRST.next();
    let all = |pages: &[Vec<u8>]| pages.iter().enumerate().map(|(at, page)| (at as u32 + 1, page.clone())).collect::<BTreeMap<_, _>>();
    let whole = all(&pages);
    let snapshot = file(wish.pages, Txid::FIRST, txid, begun, whole.iter().map(|(number, page)| (*number, page)));
    let database_bytes = f64::from(wish.pages) * PAGE_BYTES as f64;
    println!("a database of {:.1} MB, {:.1} MB compressed", database_bytes / 1e6, snapshot.len() as f64 / 1e6);
    create(&*store, &LtxName::snapshot(txid), snapshot, begun);
    println!("| day | level 0 | levels 1 to 3 | snapshots | objects | MB | of the database |\n|---|---|---|---|---|---|---|");
    for minute in 1..=wish.days * 24 * 60 {
        let now = begun + minute * MINUTE_MS;
        for commit in 0..wish.a_minute {
            let at = now - MINUTE_MS + (commit + 1) * MINUTE_MS / (wish.a_minute + 1);
            let mut changed = BTreeMap::new();
            while changed.len() < wish.changes as usize {
                changed.insert(random.u32(0..wish.pages), content(&mut random));
            }
            txid = txid.next();
            create(&*store, &LtxName::level0(txid), file(wish.pages, txid, txid, at, changed.iter().map(|(at, page)| (at + 1, page))), at);
            for (at, page) in changed {
                pages[at as usize] = page;
            }
        }
        if minute % ROUND_MINUTES == 0 {
            let report = maintenance::maintain(&mut maintainer, TimestampMs(now)).expect("a round");
            assert!(report.problems.is_empty(), "{:?}", report.problems);
        }
        let day = minute / (24 * 60);
        if minute % (24 * 60) == 0 && [1, 2, 3, 7, 14, 21, 30].contains(&day) {
            let listed = bucket.list();
            let of = |level: &dyn Fn(Level) -> bool| {
                listed.iter().filter(|file| level(file.name.level)).map(|file| file.size_bytes).sum::<u64>() as f64 / 1e6
            };
            let (uploads, snapshots) = (of(&|level| level == Level::ZERO), of(&|level| level == SNAPSHOT_LEVEL));
            let bytes = of(&|_| true);
            println!(
                "| {day} | {uploads:.1} MB | {:.1} MB | {snapshots:.1} MB | {} | {bytes:.1} | {:.1} |",
                bytes - uploads - snapshots,
                listed.len(),
                bytes * 1e6 / database_bytes
            );
        }
    }
    let restored = dir.path().join("restored.db");
    bucket.restore(&restored);
    let bytes = std::fs::read(&restored).expect("it was restored");
    assert!(bytes.chunks(PAGE_BYTES).eq(pages.iter().map(Vec::as_slice)), "the newest state is another");
}
