use super::*;
use crate::ltx::{Encoder, LtxError};
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
