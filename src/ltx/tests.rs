use super::*;
use crate::types::{PageNo, PageSize, TimestampMs, Txid, WalPos};

fn txid(n: u64) -> Txid {
    Txid::new(n).unwrap()
}

/// The first level-0 file that Litestream 0.5.17 wrote for a database of 6 pages.
const EXAMPLE: &str = "4c545831 00000002 00001000 00000006 0000000000000001 0000000000000001 000001a2037bf8eb \
    0000000000000000 0000000000000020 0000000000004060 0156b966 f8011574";

fn example() -> Vec<u8> {
    let digits: String = EXAMPLE.split_whitespace().collect();
    let mut bytes: Vec<u8> = (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect();
    bytes.resize(HEADER_BYTES, 0);
    bytes
}

#[test]
fn the_header_of_litestream_is_read_and_written_to_the_byte() {
    let header = Header::decode(&example()).unwrap();
    let expected = Header {
        wal_size: 0x4060,
        wal_salts: [0x0156_b966, 0xf801_1574],
        ..Header::new(PageSize::new(4096).unwrap(), 6, txid(1), txid(1), TimestampMs(0x01a2_037b_f8eb))
    };
    assert_eq!(header, expected);
    assert_eq!(header.encode().as_slice(), example());
    assert_eq!(header.wal_end(), Some(WalPos { salts: header.wal_salts, frame: 4, checksum: [0, 0] }));
}

#[test]
fn every_rule_of_the_header_is_checked() {
    let broken = |at: usize, bytes: &[u8]| {
        let mut header = example();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        Header::decode(&header).unwrap_err()
    };
    assert!(matches!(broken(0, b"LTX2"), LtxError::Magic { .. }));
    let fields = [
        (7, &[6_u8][..], "flags"),
        (4, &[0x80], "flags"),
        (8, &[0, 0, 0, 0], "page size"),
        (8, &[0, 0, 1, 0], "page size"),
        (8, &[0, 2, 0, 0], "page size"),
        (8, &[0, 0, 0x10, 1], "page size"),
        (23, &[0], "min TXID"),
        (31, &[0], "max TXID"),
        (23, &[2], "max TXID"),
        (47, &[1], "pre-apply checksum"),
        (48, &[0x80], "WAL offset"),
        (56, &[0x80], "WAL size"),
        (55, &[0], "WAL size"),
        (48, &[0; 16], "pair of WAL salts"),
    ];
    for (at, bytes, expected) in fields {
        match broken(at, bytes) {
            LtxError::Header { field, .. } => assert_eq!(field, expected, "at {at}"),
            other => panic!("at {at}: {other}"),
        }
    }
    for length in 0..HEADER_BYTES {
        assert!(matches!(Header::decode(&example()[..length]), Err(LtxError::Truncated { offset, .. }) if offset == length as u64));
    }
}

#[test]
fn the_rules_of_tracked_checksums_depend_on_the_first_txid() {
    let mut header = Header::new(PageSize::MIN, 1, txid(2), txid(2), TimestampMs(-1));
    header.no_checksum = false;
    assert!(Header::decode(&header.encode()).is_err());
    header.pre_apply_checksum = 1 << 63;
    assert_eq!(Header::decode(&header.encode()).unwrap(), header);
    header.min_txid = Txid::FIRST;
    assert!(Header::decode(&header.encode()).is_err());
    header.pre_apply_checksum = 0;
    assert_eq!(Header::decode(&header.encode()).unwrap(), header);
}

#[test]
fn a_wal_range_is_written_truthfully_and_read_back() {
    for page_size in [PageSize::MIN, PageSize::MAX] {
        for (start, frame) in [(0, 0), (0, 1), (3, 3), (7, 4_000_000_000)] {
            let mut header = Header::new(page_size, 1, txid(3), txid(3), TimestampMs(0));
            assert_eq!(header.wal_end(), None);
            let end = WalPos { salts: [1, 2], frame, checksum: [3, 4] };
            header.set_wal_range(start, &end);
            assert_eq!(header.wal_offset, 32 + u64::from(start) * (24 + u64::from(page_size.get())));
            assert_eq!(header.wal_size, u64::from(frame - start) * (24 + u64::from(page_size.get())));
            let header = Header::decode(&header.encode()).unwrap();
            assert_eq!(header.wal_end(), Some(end));
            assert_eq!(Header { wal_offset: header.wal_offset + 1, ..header }.wal_end(), None);
            assert_eq!(Header { wal_size: header.wal_size + 1, ..header }.wal_end(), None);
            assert_eq!(Header { wal_size: i64::MAX as u64, ..header }.wal_end(), None);
        }
    }
}

#[test]
fn the_smallest_file_is_131_bytes() {
    let header = Header::new(PageSize::new(4096).unwrap(), 9, txid(2), txid(2), TimestampMs(5));
    let finished = Encoder::new(Vec::new(), &header).unwrap().finish().unwrap();
    assert_eq!((finished.out.len(), finished.size_bytes, finished.page_count), (131, 131, 0));
    let mut decoder = Decoder::new();
    decoder.push(&finished.out, &mut |_, _| panic!("no page")).unwrap();
    let summary = decoder.finish().unwrap();
    assert_eq!((summary.header, summary.page_count, summary.index_matches), (header, 0, true));
    assert_eq!(summary.file_checksum, finished.file_checksum);
    let range = PageIndex::locate(&finished.out, 131).unwrap();
    assert_eq!(range, 106..107);
    assert_eq!(PageIndex::parse_at(&finished.out[106..107], &range).unwrap(), []);
}

#[test]
fn the_encoder_refuses_what_litestream_would_refuse() {
    let page = |n| PageNo::new(n).unwrap();
    let data = [7; 512];
    let header = Header::new(PageSize::MIN, 5, txid(2), txid(3), TimestampMs(0));
    let mut encoder = Encoder::new(Vec::new(), &header).unwrap();
    encoder.page(page(2), &data).unwrap();
    assert!(matches!(encoder.page(page(2), &data), Err(LtxError::PageOrder { expected: 3, exact: false, .. })));
    assert!(matches!(encoder.page(page(1), &data), Err(LtxError::PageOrder { .. })));
    assert!(matches!(encoder.page(page(6), &data), Err(LtxError::BeyondCommit { .. })));
    assert!(matches!(encoder.page(page(3), &data[1..]), Err(LtxError::PageLength { found: 511, .. })));
    encoder.page(page(5), &data).unwrap();
    assert_eq!(encoder.finish().unwrap().page_count, 2);

    let snapshot = Header { min_txid: Txid::FIRST, ..header };
    let mut encoder = Encoder::new(Vec::new(), &snapshot).unwrap();
    assert!(matches!(encoder.page(page(2), &data), Err(LtxError::PageOrder { expected: 1, exact: true, .. })));
    encoder.page(page(1), &data).unwrap();
    assert!(matches!(encoder.finish(), Err(LtxError::MissingPages { page: 2, commit_pages: 5 })));

    assert!(Encoder::new(Vec::new(), &Header { commit_pages: 0, ..header }).is_err());
    assert!(Encoder::new(Vec::new(), &Header { no_checksum: false, pre_apply_checksum: 1 << 63, ..header }).is_err());
    assert!(Encoder::new(Vec::new(), &Header { wal_offset: 0, wal_size: 1, ..header }).is_err());
    assert!(Encoder::new(Vec::new(), &Header { max_txid: Txid::FIRST, ..header }).is_err());
}

#[test]
fn the_lock_page_is_skipped_by_snapshots_and_refused_everywhere() {
    let page_size = PageSize::MAX;
    let lock = page_size.lock_page();
    let data = vec![0; page_size.bytes()];
    let header = Header::new(page_size, lock.get() + 1, Txid::FIRST, txid(1), TimestampMs(0));
    let mut encoder = Encoder::new(Vec::new(), &header).unwrap();
    for n in (1..=lock.get() + 1).filter(|n| *n != lock.get()) {
        let pgno = PageNo::new(n).unwrap();
        if n == lock.get() + 1 {
            assert!(matches!(encoder.page(lock, &data), Err(LtxError::LockPage { .. })));
        }
        encoder.page(pgno, &data).unwrap();
    }
    let finished = encoder.finish().unwrap();
    assert_eq!(finished.page_count, lock.get());
    let mut decoder = Decoder::new();
    decoder.push(&finished.out, &mut |_, _| Ok(())).unwrap();
    assert!(decoder.finish().unwrap().index_matches);

    // A snapshot whose last page is the lock page is complete without it.
    let header = Header { commit_pages: lock.get(), ..header };
    let mut encoder = Encoder::new(std::io::sink(), &header).unwrap();
    for n in 1..lock.get() {
        encoder.page(PageNo::new(n).unwrap(), &data).unwrap();
    }
    encoder.finish().unwrap();

    // The first page's number is behind the file's header.
    let mut forged = finished.out;
    forged[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&lock.get().to_be_bytes());
    assert!(matches!(Decoder::new().push(&forged, &mut |_, _| Ok(())), Err(LtxError::LockPage { offset: 100, .. })));
}

#[test]
fn a_failed_write_cannot_be_finished() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::StorageFull))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let header = Header::new(PageSize::MIN, 5, txid(2), txid(3), TimestampMs(0));
    assert!(matches!(Encoder::new(Full(99), &header), Err(LtxError::Io(_))));
    let mut encoder = Encoder::new(Full(100), &header).unwrap();
    assert!(matches!(encoder.page(PageNo::new(1).unwrap(), &[1; 512]), Err(LtxError::Io(_))));
    assert!(matches!(encoder.page(PageNo::new(2).unwrap(), &[1; 512]), Err(LtxError::Failed)));
    assert!(matches!(encoder.finish(), Err(LtxError::Failed)));
}

#[test]
fn a_decoder_is_dead_after_an_error_and_after_its_receiver_failed() {
    let mut decoder = Decoder::new();
    assert!(decoder.push(&[0; 100], &mut |_, _| Ok(())).is_err());
    assert!(matches!(decoder.push(&[0], &mut |_, _| Ok(())), Err(LtxError::Failed)));
    assert!(matches!(decoder.finish(), Err(LtxError::Failed)));

    let header = Header::new(PageSize::MIN, 5, txid(2), txid(3), TimestampMs(0));
    let mut encoder = Encoder::new(Vec::new(), &header).unwrap();
    encoder.page(PageNo::new(1).unwrap(), &[1; 512]).unwrap();
    let file = encoder.finish().unwrap().out;
    let mut decoder = Decoder::new();
    let full = || LtxError::Io(std::io::ErrorKind::StorageFull.into());
    assert!(matches!(decoder.push(&file, &mut |_, _| Err(full())), Err(LtxError::Io(_))));
    assert!(matches!(decoder.finish(), Err(LtxError::Failed)));
}
