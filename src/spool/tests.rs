use super::*;
use crate::ltx::{Encoder, LtxError, merge};
use crate::types::{PageNo, PageSize};

fn open(dir: &Path, disk_bytes: u64, first: u64, next: u64) -> Result<Spool, SpoolError> {
    Spool::open(dir, OwnerMode::of(dir).unwrap(), Limits { disk_bytes, memory_bytes: 0 }, first, next, None)
}

fn encode(out: &mut Out, header: &Header, pages: &[(u32, u8)]) -> Result<(), LtxError> {
    let mut encoder = Encoder::new(out, header)?;
    for (number, fill) in pages {
        encoder.page(PageNo::new(*number).unwrap(), &[*fill; 512])?;
    }
    encoder.finish().map(drop)
}

fn append(spool: &mut Spool, pages: &[(u32, u8)]) -> Result<(), SpoolError> {
    let header = entry_header(PageSize::MIN, 10_000, TimestampMs(1), 7, spool.next());
    spool.append(|out| encode(out, &header, pages).map_err(|error| SpoolError::of(Path::new("entry"), error)))
}

fn contents(spool: &Spool) -> Vec<(u32, u8)> {
    let (readers, header) = spool.readers().unwrap().unwrap();
    let merged = merge(readers, &header, Vec::new()).unwrap();
    let mut reader = Reader::new(merged.out.as_slice());
    let (mut pages, mut buf) = (Vec::new(), Vec::new());
    while let Some(number) = reader.next_page(&mut buf).unwrap() {
        pages.push((number.get(), buf[0]));
    }
    pages
}

#[test]
fn many_entries_are_merged_into_few_and_read_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path(), u64::MAX, 0, 0).unwrap();
    for i in 0..100_u32 {
        append(&mut spool, &[(1, i as u8), (2 + i % 7, i as u8)]).unwrap();
        spool.merge_waiting().unwrap();
        assert!(spool.entries.len() <= MOST_ENTRIES);
    }
    let expected = vec![(1, 99), (2, 98), (3, 99), (4, 93), (5, 94), (6, 95), (7, 96), (8, 97)];
    assert_eq!(contents(&spool), expected);
    let again = open(dir.path(), u64::MAX, spool.first(), spool.next()).unwrap();
    assert_eq!(contents(&again), expected);
}

#[test]
fn entries_are_few_where_nobody_merges() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path(), u64::MAX, 0, 0).unwrap();
    for i in 0..500_u32 {
        append(&mut spool, &[(1, i as u8), (2 + i % 7, i as u8)]).unwrap();
        assert!(spool.entries.len() <= MOST_UNMERGED);
    }
    assert_eq!(contents(&spool)[0], (1, 499_u32 as u8));
    let again = open(dir.path(), u64::MAX, spool.first(), spool.next()).unwrap();
    assert_eq!(contents(&again), contents(&spool));
}

#[test]
fn a_missing_entry_is_an_error_and_strays_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path(), u64::MAX, 5, 5).unwrap();
    append(&mut spool, &[(1, 1)]).unwrap();
    append(&mut spool, &[(1, 2)]).unwrap();
    std::fs::write(dir.path().join("half.tmp"), b"x").unwrap();
    assert!(matches!(open(dir.path(), u64::MAX, 5, 8), Err(SpoolError::Missing { first: 7, last: 7, .. })));
    assert!(!dir.path().join("half.tmp").exists());
    // What the control file does not name never happened.
    let shorter = open(dir.path(), u64::MAX, 5, 6).unwrap();
    assert_eq!(contents(&shorter), [(1, 1)]);
}

fn bytes_in(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// What waits, what is being sent and what is in the making: whatever waits can still be merged, and sent.
#[test]
fn the_limit_is_kept() {
    const LIMIT_BYTES: u64 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path(), LIMIT_BYTES, 0, 0).unwrap();
    let attempted = |spool: &mut Spool, bytes: usize| {
        spool.create_attempt(Txid::FIRST, |out| out.write_all(&vec![1; bytes]).map_err(|source| io_error(Path::new("attempt"), source)))
    };
    attempted(&mut spool, 5000).unwrap();
    let mut number = 0;
    let full = loop {
        number += 1;
        match append(&mut spool, &[(number, 1), (number + 1000, 2)]) {
            Ok(()) => {
                assert!(2 * spool.bytes() + spool.spare_bytes() + 5000 <= LIMIT_BYTES);
                assert_eq!(spool.bytes() + spool.spare_bytes() + 5000, bytes_in(dir.path()));
                spool.merge_waiting().unwrap();
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(full, SpoolError::Full { needed_bytes: LIMIT_BYTES.., limit_bytes: LIMIT_BYTES, .. }), "{full}");
    assert!(spool.bytes() > 6000 && contents(&spool).len() == 2 * (number as usize - 1));
    spool.remove_attempt(Txid::FIRST);
    append(&mut spool, &[(1, 3)]).unwrap();
    // A batch of all that waits fits, and a larger one stops where the limit is.
    let waiting = usize::try_from(spool.bytes()).unwrap();
    attempted(&mut spool, waiting).unwrap();
    assert!(bytes_in(dir.path()) <= LIMIT_BYTES);
    let rest = usize::try_from(LIMIT_BYTES - spool.bytes() - spool.spare_bytes()).unwrap();
    assert!(matches!(attempted(&mut spool, rest + 1), Err(SpoolError::Full { .. })));
    assert!(bytes_in(dir.path()) <= LIMIT_BYTES);
}

#[test]
fn what_is_kept_in_memory_is_merged_and_put_onto_the_disk_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path(), u64::MAX, 0, 0).unwrap();
    for number in 1..20_u32 {
        append(&mut spool, &[(1, number as u8), (1 + number, 1)]).unwrap();
        // As if the disk had been full.
        let newest = spool.entries.pop_back().unwrap();
        let path = spool.path(&newest);
        let bytes = Bytes::from(std::fs::read(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        spool.entries.push_back(newest.stored(Stored::Memory(bytes)));
        spool.merge_waiting().unwrap();
    }
    let expected = contents(&spool);
    assert_eq!((expected.len(), expected[0]), (20, (1, 19)));
    assert!(spool.entries.iter().any(|entry| !entry.is_on_disk()));
    spool.settle();
    assert!(spool.entries.iter().all(Entry::is_on_disk));
    let again = open(dir.path(), u64::MAX, spool.first(), spool.next()).unwrap();
    assert_eq!(contents(&again), expected);
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

/// Nine entries of pages 1 and 100 to 108.
fn crowded(dir: &Path) -> Spool {
    let mut spool = open(dir, u64::MAX, 0, 0).unwrap();
    for i in 0..9 {
        append(&mut spool, &[(1, i as u8), (100 + i, 1)]).unwrap();
    }
    spool
}

#[test]
fn what_comes_while_entries_are_merged_stays_behind_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = crowded(dir.path());
    let merging = spool.merge_newest().unwrap().unwrap();
    // Whoever adds so many merges them, and leaves alone what is being merged.
    for i in 0..40 {
        append(&mut spool, &[(1, 100), (200 + i, 2)]).unwrap();
    }
    assert!(spool.entries.len() > 9 + 1 && spool.entries.len() < 9 + MOST_UNMERGED);
    let before = contents(&spool);
    let merged = merging.run();
    assert!(spool.take(merged).unwrap());
    assert_eq!(spool.entries.front().map(|entry| (entry.first, entry.last)), Some((0, 8)));
    assert_eq!((contents(&spool), before.len(), before[0]), (before.clone(), 50, (1, 100)));
    let again = open(dir.path(), u64::MAX, 0, spool.next()).unwrap();
    assert_eq!(contents(&again), before);
    // And they are merged with the others from then on.
    while spool.is_crowded() {
        spool.merge_waiting().unwrap();
    }
    assert_eq!(contents(&spool), before);
}

#[test]
fn what_comes_while_a_batch_is_made_is_not_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = crowded(dir.path());
    let txid = Txid::FIRST.next();
    let merging = spool.merge_all(txid, 7).unwrap().unwrap();
    append(&mut spool, &[(1, 100)]).unwrap();
    let Made { stored, size_bytes, .. } = spool.take_attempt(txid, merging.run()).unwrap().unwrap();
    assert!(matches!(stored, Stored::File(bytes) if bytes == size_bytes) && spool.has_attempt());
    assert_eq!((spool.first(), contents(&spool)), (9, vec![(1, 100)]));
    let mut reader = Reader::new(std::fs::File::open(spool.attempt_path(txid)).unwrap());
    let mut page = Vec::new();
    assert_eq!((reader.next_page(&mut page).unwrap(), page[0]), (PageNo::new(1), 8));
    assert_eq!(reader.read_header().unwrap().min_txid, txid);
    spool.remove_stale(Some(txid)).unwrap();
    assert_eq!(files(dir.path()), 2);
}

/// Given up, or merged or sent by another process.
#[test]
fn entries_that_have_gone_meanwhile_do_not_come_back() {
    for tampers in [false, true] {
        for batch in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut spool = crowded(dir.path());
            let txid = Txid::FIRST.next();
            let merging = if batch { spool.merge_all(txid, 7) } else { spool.merge_newest() }.unwrap().unwrap();
            // A file that is written over, as those of merged entries are, is no error where nobody needs it.
            let first = spool.path(&spool.entries[0]);
            if tampers {
                std::fs::OpenOptions::new().write(true).truncate(true).open(first).unwrap();
            }
            let mut other = spool.reopen(0, spool.next(), None).unwrap();
            other.clear();
            other.remove_stale(None).unwrap();
            let merged = merging.run();
            if batch {
                assert!(other.take_attempt(txid, merged).unwrap().is_none());
            } else {
                assert!(!other.take(merged).unwrap());
            }
            assert_eq!((files(dir.path()), other.is_empty()), (0, true));
        }
    }
}

#[test]
fn an_entry_that_cannot_be_merged_is_an_error_where_it_is_still_needed() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = crowded(dir.path());
    let merging = spool.merge_newest().unwrap().unwrap();
    let first = spool.path(&spool.entries[0]);
    std::fs::OpenOptions::new().write(true).truncate(true).open(first).unwrap();
    let merged = merging.run();
    assert!(spool.take(merged).is_err_and(|error| error.is_lasting()));
    assert_eq!(files(dir.path()), 9);
    assert_eq!(spool.held.below(), 0);
}

/// Only who comes first removes what a process left that died while it merged: others may be merging.
#[test]
fn a_file_in_the_making_is_left_alone_by_those_who_join() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = crowded(dir.path());
    let merging = spool.merge_newest().unwrap().unwrap();
    let merged = merging.run();
    drop(spool.reopen(0, 9, None).unwrap());
    assert_eq!(files(dir.path()), 10);
    drop(open(dir.path(), u64::MAX, 0, 9).unwrap());
    assert_eq!(files(dir.path()), 9);
    // The entries are there all the same.
    assert!(!spool.take(merged).unwrap());
    assert_eq!(contents(&spool).len(), 10);
}
