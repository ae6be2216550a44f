use super::*;
use crate::ltx::page_checksum;
use crate::store::Level;
use crate::types::Txid;

fn name(level: u8, min: u64, max: u64) -> LtxName {
    LtxName { level: Level::new(level).unwrap(), min_txid: Txid::new(min).unwrap(), max_txid: Txid::new(max).unwrap() }
}

fn page(number: u32) -> PageNo {
    PageNo::new(number).unwrap()
}

fn sum(number: u32, byte: u8) -> u64 {
    page_checksum(number, &[byte; 512])
}

fn extend(pages: &mut Pages, name: LtxName, commit_pages: u32, changed: &[(u32, u8)]) {
    pages.step(name, commit_pages);
    for (number, byte) in changed {
        pages.set(page(*number), sum(*number, *byte));
    }
    pages.cut(commit_pages);
}

/// How many disagree, with which file the first one does, and how many are lacking.
fn compare(pages: &mut Pages, name: LtxName, has: &[(u32, u8)]) -> (usize, Option<LtxName>, u64) {
    let mut comparison = pages.comparison(name);
    let found: Vec<Disagreement> =
        has.iter().filter_map(|(number, byte)| pages.compare(page(*number), sum(*number, *byte), &mut comparison)).collect();
    (found.len(), found.first().map(|found| found.with), pages.lacking(&comparison))
}

fn history(memory_bytes: u64) -> Pages {
    let mut pages = Pages::new(memory_bytes);
    extend(&mut pages, name(9, 1, 2), 4, &[(1, b'a'), (2, b'b'), (3, b'c'), (4, b'd')]);
    extend(&mut pages, name(0, 3, 3), 4, &[(2, b'B')]);
    extend(&mut pages, name(0, 4, 4), 6, &[(1, b'A'), (5, b'e'), (6, b'f')]);
    extend(&mut pages, name(0, 5, 5), 5, &[(2, b'2')]);
    pages
}

#[test]
fn what_is_merged_must_hold_what_it_is_made_of() {
    let right = [(1, b'A'), (2, b'2'), (5, b'e')];
    assert_eq!(compare(&mut history(4096), name(1, 3, 5), &right), (0, None, 0));
    assert_eq!(compare(&mut history(4096), name(1, 3, 5), &right[1..]), (0, None, 1));
    assert_eq!(compare(&mut history(4096), name(1, 3, 5), &[right[0], (2, b'B'), right[2]]), (1, Some(name(0, 5, 5)), 0));
    // A snapshot must hold all, and another file of the very same TXID too.
    let whole = [(1, b'A'), (2, b'2'), (3, b'c'), (4, b'd'), (5, b'e')];
    assert_eq!(compare(&mut history(4096), name(9, 1, 5), &whole), (0, None, 0));
    assert_eq!(compare(&mut history(4096), name(9, 1, 5), &whole[1..]), (0, None, 1));
    assert_eq!(compare(&mut history(4096), name(0, 5, 5), &[(2, b'x')]), (1, Some(name(0, 5, 5)), 0));
    // One that begins in the midst of the snapshot needs none of its pages, but all that came after it.
    assert_eq!(compare(&mut history(4096), name(1, 2, 5), &right), (0, None, 0));
    assert_eq!(compare(&mut history(4096), name(1, 2, 5), &right[1..]), (0, None, 1));
}

#[test]
fn what_is_not_known_accuses_nobody() {
    let mut pages = history(4096);
    pages.forget();
    extend(&mut pages, name(0, 7, 7), 5, &[(2, b'z')]);
    assert_eq!(compare(&mut pages, name(1, 3, 7), &[(1, b'?')]), (0, None, 0));
    // It is known from then on.
    assert_eq!(compare(&mut pages, name(9, 1, 7), &[(1, b'!'), (2, b'z')]), (1, Some(name(9, 1, 7)), 0));
    assert_eq!(compare(&mut Pages::new(0), name(9, 1, 7), &[(1, b'!')]), (0, None, 0));
}

#[test]
fn with_little_memory_some_pages_are_kept() {
    let mut pages = Pages::new(12 * 4);
    extend(&mut pages, name(9, 1, 2), 3, &[(1, b'a'), (2, b'b'), (3, b'c')]);
    assert_eq!(pages.stride(), 1);
    let grown: Vec<(u32, u8)> = (4..=12).map(|number| (number, b'x')).collect();
    extend(&mut pages, name(0, 3, 3), 12, &grown);
    assert_eq!(pages.stride(), 4);
    let right: Vec<(u32, u8)> = [(1, b'?'), (2, b'?'), (3, b'?')].into_iter().chain(grown.iter().copied()).collect();
    assert_eq!(compare(&mut pages, name(9, 1, 3), &right), (0, None, 0));
    let wrong: Vec<(u32, u8)> = right.iter().map(|(number, byte)| (*number, if *number == 8 { b'y' } else { *byte })).collect();
    assert_eq!(compare(&mut pages, name(9, 1, 3), &wrong), (1, Some(name(0, 3, 3)), 0));
    assert_eq!(compare(&mut pages, name(1, 3, 3), &grown[..5]), (0, None, 1));
}

#[test]
fn the_checksum_of_the_database_follows_its_pages() {
    let size = PageSize::MIN;
    let rolling = |pages: &[(u32, u8)]| pages.iter().fold(0, |all, (number, byte)| all ^ sum(*number, *byte)) | CHECKSUM_FLAG;
    let mut pages = history(4096);
    assert_eq!(pages.rolling(size, 5), Some(rolling(&[(1, b'A'), (2, b'2'), (3, b'c'), (4, b'd'), (5, b'e')])));
    extend(&mut pages, name(0, 6, 6), 2, &[(1, b'1')]);
    assert_eq!(pages.rolling(size, 2), Some(rolling(&[(1, b'1'), (2, b'2')])));
    extend(&mut pages, name(0, 7, 7), 3, &[]);
    assert_eq!(pages.rolling(size, 3), None, "a page is missing");
}

#[test]
fn a_stranger_between_two_neighbours_is_told() {
    const NOBODY: [u64; 0] = [];
    let place = |txid: u64, node_id: u64, salt: u32, start: u64| Place {
        name: name(0, txid, txid),
        node_id,
        salts: [salt, salt],
        start,
        end: start + 100,
    };
    let told = |places: &[Place]| {
        let mut neighbours = Neighbours::default();
        places.iter().filter_map(|place| neighbours.take(*place)).map(|(name, _)| name.max_txid.get()).collect::<Vec<_>>()
    };
    assert_eq!(told(&[place(1, 7, 1, 0), place(2, 7, 1, 100), place(3, 7, 1, 200)]), NOBODY);
    // The log is started anew; another machine takes over.
    assert_eq!(told(&[place(1, 7, 1, 0), place(2, 7, 2, 0), place(3, 7, 2, 100)]), NOBODY);
    assert_eq!(told(&[place(1, 7, 1, 0), place(2, 8, 2, 0), place(3, 8, 2, 100)]), NOBODY);
    assert_eq!(told(&[place(1, 0, 1, 0), place(2, 0, 9, 700), place(3, 0, 1, 100)]), [2]);
    assert_eq!(told(&[place(1, 7, 1, 0), place(2, 8, 9, 0), place(3, 7, 3, 0)]), [2]);
    // Litestream in between, and a hole.
    assert_eq!(told(&[place(1, 7, 1, 0), place(2, 0, 9, 0), place(3, 7, 3, 0)]), NOBODY);
    assert_eq!(told(&[place(1, 7, 1, 0), place(3, 8, 9, 0), place(4, 7, 3, 0)]), NOBODY);
}
