//! The log as SQLite writes it is read to exactly the place where SQLite says it ends, and damage anywhere ends it there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use replicated::types::{PageSize, WalPos};
use replicated::wal::{
    FRAME_HEADER_BYTES, Header, INDEX_HEADER_BYTES, IndexHeader, ReadAt, Scan, WAL_HEADER_BYTES, WalError, checksum, end_offset,
    frame_offset, read_frames, scan, verify_at,
};
use rusqlite::Connection;

const PAGE_SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

/// A database in WAL mode whose log is never checkpointed by itself.
struct Database {
    folder: tempfile::TempDir,
    connection: Connection,
}

impl Database {
    fn new(page_size: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let connection = open(&folder.path().join("db"));
        connection.execute_batch(&format!("PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; CREATE TABLE t(a);")).unwrap();
        Self { folder, connection }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("db{suffix}"))
    }

    fn sql(&self, sql: &str) {
        self.connection.execute_batch(sql).unwrap();
    }

    /// Adds that many rows of 300 random bytes in one transaction.
    fn insert(&self, rows: u32) {
        self.sql(&format!(
            "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<{rows}) INSERT INTO t SELECT randomblob(300) FROM n;"
        ));
    }

    fn wal(&self) -> (File, Header) {
        wal(&self.path("-wal"))
    }

    /// The first copy of the WAL-index header; the two are equal while nobody writes.
    fn index_header(&self) -> Option<IndexHeader> {
        index_header(&self.path("-shm"))
    }
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=OFF;").unwrap();
    connection
}

fn wal(path: &Path) -> (File, Header) {
    let header = Header::decode(&fs::read(path).unwrap()).unwrap();
    (File::open(path).unwrap(), header)
}

/// Closing the descriptor drops the POSIX locks of this process: harmless here, where each database has one connection.
fn index_header(path: &Path) -> Option<IndexHeader> {
    let shm = fs::read(path).unwrap();
    let copies: [&[u8; INDEX_HEADER_BYTES]; 2] = [shm.first_chunk().unwrap(), shm[INDEX_HEADER_BYTES..].first_chunk().unwrap()];
    assert_eq!(copies[0], copies[1]);
    IndexHeader::decode(copies[0])
}

/// All frames: page and commit size, by frame number.
fn frames(file: &dyn ReadAt, header: &Header, from: &WalPos, to: u32) -> (Vec<(u32, u32)>, Result<WalPos, WalError>) {
    let mut frames = Vec::new();
    let mut expected = from.frame;
    let end = read_frames(file, header, from, to, &mut |frame, decoded, page| {
        expected += 1;
        assert_eq!((frame, page.len()), (expected, header.page_size.bytes()));
        frames.push((decoded.pgno, decoded.commit_pages));
        Ok(())
    });
    (frames, end)
}

#[test]
fn the_log_is_read_to_where_the_wal_index_says_it_ends_at_every_page_size() {
    for page_size in PAGE_SIZES {
        let db = Database::new(page_size);
        let mut positions = Vec::new();
        for rows in [1, 40, 3, 400] {
            db.insert(rows);
            positions.push(db.index_header().unwrap());
        }
        let (file, header) = db.wal();
        assert_eq!(header.page_size.get(), page_size);
        let last = *positions.last().unwrap();
        assert_eq!((last.page_size, last.big_endian_checksum), (Some(header.page_size), header.big_endian_checksum));
        assert_eq!(fs::metadata(db.path("-wal")).unwrap().len(), end_offset(header.page_size, last.max_frame));

        // In one go, and from commit to commit.
        let (all, end) = frames(&file, &header, &header.start(), last.max_frame);
        assert_eq!(end.unwrap(), last.end(), "page size {page_size}");
        assert_eq!(all.last().unwrap().1, last.db_pages);
        let mut from = header.start();
        for position in &positions {
            let (read, end) = frames(&file, &header, &from, position.max_frame);
            from = end.unwrap();
            assert_eq!(from, position.end());
            assert_eq!(read.last().unwrap().1, position.db_pages);
            assert!(verify_at(&file, &header, &from).unwrap());
        }
        assert!(verify_at(&file, &header, &header.start()).unwrap());
        let whole = Scan { last_commit: last.end(), commit_pages: last.db_pages, frames_beyond: 0 };
        for from in positions.iter().map(IndexHeader::end).chain([header.start()]) {
            assert_eq!(scan(&file, &header, &from).unwrap(), whole);
        }
        // What is not there.
        let (_, beyond) = frames(&file, &header, &from, last.max_frame + 1);
        assert!(matches!(beyond, Err(WalError::Truncated { frame }) if frame == last.max_frame + 1));
        assert!(!verify_at(&file, &header, &WalPos { frame: last.max_frame + 1, ..from }).unwrap());
        assert!(!verify_at(&file, &header, &WalPos { frame: 1, ..from }).unwrap());
        assert!(!verify_at(&file, &header, &WalPos { salts: [0, 0], ..from }).unwrap());
        assert!(!verify_at(&file, &header, &WalPos { checksum: [0, 0], ..header.start() }).unwrap());
    }
}

#[test]
fn the_newest_version_of_each_page_is_what_a_checkpoint_writes() {
    let db = Database::new(1024);
    db.insert(200);
    db.sql("UPDATE t SET a=randomblob(200) WHERE rowid%3=0; DELETE FROM t WHERE rowid>150;");
    let index = db.index_header().unwrap();
    let (file, header) = db.wal();
    let mut pages: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    read_frames(&file, &header, &header.start(), index.max_frame, &mut |_, frame, page| {
        pages.insert(frame.pgno, page.to_vec());
        Ok(())
    })
    .unwrap();
    db.sql("PRAGMA wal_checkpoint(TRUNCATE);");
    let database = fs::read(db.path("")).unwrap();
    assert_eq!(database.len(), index.db_pages as usize * 1024);
    // Page 1 excepted, which SQLite wrote before WAL mode, the log had every page.
    for (page, content) in pages.range(..=index.db_pages) {
        let at = (*page as usize - 1) * 1024;
        assert_eq!(&database[at..at + 1024], content, "page {page}");
    }
}

#[test]
fn a_transaction_that_spilled_is_beyond_the_end_until_it_commits_and_valid_after_its_headers_were_rewritten() {
    let db = Database::new(1024);
    db.sql("PRAGMA cache_size=5;");
    db.insert(50);
    let before = db.index_header().unwrap();
    db.sql("BEGIN;");
    db.insert(300);
    // Pages that were spilled are made dirty again, and are overwritten in place at the next spill.
    for _ in 0..3 {
        db.sql("UPDATE t SET a=randomblob(300);");
    }
    let (file, header) = db.wal();
    let length = fs::metadata(db.path("-wal")).unwrap().len();
    assert!(length > end_offset(header.page_size, before.max_frame), "nothing was spilled");
    let found = scan(&file, &header, &header.start()).unwrap();
    assert_eq!((found.last_commit, found.commit_pages), (before.end(), before.db_pages));
    assert_eq!(db.index_header().unwrap(), before);
    db.sql("COMMIT;");
    let after = db.index_header().unwrap();
    let (_, end) = frames(&file, &header, &before.end(), after.max_frame);
    assert_eq!(end.unwrap(), after.end());
    assert_eq!(scan(&file, &header, &header.start()).unwrap().last_commit, after.end());
}

#[test]
fn a_rolled_back_tail_is_not_part_of_the_log() {
    let db = Database::new(1024);
    db.insert(10);
    db.sql("PRAGMA cache_size=5; BEGIN;");
    db.insert(300);
    db.sql("ROLLBACK;");
    let index = db.index_header().unwrap();
    let (file, header) = db.wal();
    let found = scan(&file, &header, &header.start()).unwrap();
    assert_eq!((found.last_commit, found.commit_pages), (index.end(), index.db_pages));
    assert!(found.frames_beyond > 0);
    // The scan may begin at the last commit, or behind it where it has nothing to say.
    assert_eq!(scan(&file, &header, &index.end()).unwrap(), found);
}

#[test]
fn the_frames_of_an_earlier_use_of_the_file_are_not_part_of_the_log() {
    let db = Database::new(4096);
    db.insert(500);
    let old = db.index_header().unwrap();
    let (file, old_header) = db.wal();
    db.sql("PRAGMA wal_checkpoint(RESTART);");
    db.insert(1);
    let index = db.index_header().unwrap();
    let (_, header) = db.wal();
    assert_eq!(header.salts[0], old_header.salts[0].wrapping_add(1));
    assert!(index.max_frame > 0 && index.max_frame < old.max_frame);
    let (_, end) = frames(&file, &header, &header.start(), index.max_frame);
    assert_eq!(end.unwrap(), index.end());
    let (read, beyond) = frames(&file, &header, &header.start(), old.max_frame);
    assert_eq!(read.len(), index.max_frame as usize);
    assert!(matches!(beyond, Err(WalError::SaltMismatch { frame, .. }) if frame == index.max_frame + 1));
    assert_eq!(
        scan(&file, &header, &header.start()).unwrap(),
        Scan { last_commit: index.end(), commit_pages: index.db_pages, frames_beyond: 0 }
    );
    // A place of the earlier use is not in this log, whatever is stored there.
    assert!(!verify_at(&file, &header, &old.end()).unwrap());
    assert!(matches!(scan(&file, &header, &old.end()), Err(WalError::SaltMismatch { .. })));
    assert!(matches!(frames(&file, &header, &old.end(), u32::MAX).1, Err(WalError::SaltMismatch { .. })));
}

#[test]
fn an_empty_log_has_a_wal_index_header_without_frames() {
    let db = Database::new(4096);
    db.insert(5);
    let (_, old_header) = db.wal();
    let before = db.index_header().unwrap();

    // A RESTART checkpoint leaves the restart itself to the next writer.
    db.sql("PRAGMA wal_checkpoint(RESTART);");
    assert_eq!(db.index_header().unwrap().end(), before.end());

    // Restarted, not yet written: the index has new salts, and the words of an older frame.
    db.sql("PRAGMA wal_checkpoint(TRUNCATE);");
    assert_eq!(fs::metadata(db.path("-wal")).unwrap().len(), 0);
    let restarted = db.index_header().unwrap();
    assert_eq!((restarted.max_frame, restarted.page_size), (0, PageSize::new(4096)));
    assert_eq!(restarted.salts[0], old_header.salts[0].wrapping_add(1));
    assert_eq!(restarted.frame_checksum, before.frame_checksum);
    db.insert(1);
    let written = db.index_header().unwrap();
    let (file, header) = db.wal();
    assert_eq!([written.salts, header.salts], [restarted.salts; 2]);
    assert_eq!(frames(&file, &header, &header.start(), written.max_frame).1.unwrap(), written.end());

    // Made for a log of no bytes: not even the page size is known.
    db.sql("PRAGMA wal_checkpoint(TRUNCATE);");
    assert_eq!(fs::metadata(db.path("-wal")).unwrap().len(), 0);
    let folder = db.folder;
    drop(db.connection);
    let connection = open(&folder.path().join("db"));
    let rows: u32 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 6);
    let empty = index_header(&folder.path().join("db-shm")).unwrap();
    assert_eq!((empty.max_frame, empty.page_size), (0, None));
}

#[test]
fn a_wal_index_header_that_is_being_written_is_not_read() {
    let db = Database::new(4096);
    db.insert(5);
    let shm = fs::read(db.path("-shm")).unwrap();
    let good: [u8; INDEX_HEADER_BYTES] = *shm.first_chunk().unwrap();
    assert!(IndexHeader::decode(&good).is_some());
    assert_eq!(IndexHeader::decode(&[0; INDEX_HEADER_BYTES]), None);
    for bit in 0..good.len() * 8 {
        let mut torn = good;
        torn[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(IndexHeader::decode(&torn), None, "bit {bit}");
    }
}

#[test]
fn sqlite_recovers_a_log_in_either_byte_order_to_where_we_say_it_ends() {
    for big_endian in [false, true] {
        let db = Database::new(2048);
        db.insert(30);
        db.insert(3);
        let index = db.index_header().unwrap();
        let (file, header) = db.wal();
        let mut copied = Log::new(big_endian, 2048, header.salts);
        read_frames(&file, &header, &header.start(), index.max_frame, &mut |_, frame, page| {
            copied.append(frame.pgno, frame.commit_pages, page);
            Ok(())
        })
        .unwrap();
        // The beginning of a transaction, and a torn frame.
        copied.append(2, 0, &[7; 2048]);
        copied.bytes.extend_from_slice(&[1; 100]);

        let folder = tempfile::tempdir().unwrap();
        fs::copy(db.path(""), folder.path().join("db")).unwrap();
        fs::write(folder.path().join("db-wal"), &copied.bytes).unwrap();
        let (file, header) = wal(&folder.path().join("db-wal"));
        assert_eq!(header.big_endian_checksum, big_endian);
        let found = scan(&file, &header, &header.start()).unwrap();
        assert_eq!((found.last_commit.frame, found.commit_pages, found.frames_beyond), (index.max_frame, index.db_pages, 1));

        let connection = open(&folder.path().join("db"));
        let rows: u32 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 33);
        let recovered = index_header(&folder.path().join("db-shm")).unwrap();
        assert_eq!((recovered.end(), recovered.big_endian_checksum), (found.last_commit, big_endian));
    }
}

/// A log written the plain way.
#[derive(Clone, Debug)]
struct Log {
    bytes: Vec<u8>,
    big_endian: bool,
    salts: [u32; 2],
    sum: [u32; 2],
    /// The end of each frame and its commit size.
    frames: Vec<(WalPos, u32)>,
}

impl Log {
    fn new(big_endian: bool, page_size: u32, salts: [u32; 2]) -> Self {
        let words = [0x377f_0682 | u32::from(big_endian), 3_007_000, page_size, 9, salts[0], salts[1]];
        let mut log = Self { bytes: Vec::new(), big_endian, salts, sum: [0; 2], frames: Vec::new() };
        log.put(&words);
        let header = log.bytes.clone();
        log.add(&header);
        log.put(&log.sum.clone());
        log
    }

    fn put(&mut self, words: &[u32]) {
        self.bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    }

    /// The definition in SQLite's documentation, word for word.
    fn add(&mut self, data: &[u8]) {
        let words: Vec<u32> = data
            .chunks(4)
            .map(|b| [b[0], b[1], b[2], b[3]])
            .map(|b| if self.big_endian { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) })
            .collect();
        for pair in words.chunks(2) {
            self.sum[0] = self.sum[0].wrapping_add(pair[0].wrapping_add(self.sum[1]));
            self.sum[1] = self.sum[1].wrapping_add(pair[1].wrapping_add(self.sum[0]));
        }
    }

    fn append(&mut self, page: u32, commit_pages: u32, data: &[u8]) {
        self.put(&[page, commit_pages]);
        let start = self.bytes[self.bytes.len() - 8..].to_vec();
        self.add(&start);
        self.add(data);
        self.put(&[self.salts[0], self.salts[1], self.sum[0], self.sum[1]]);
        self.bytes.extend_from_slice(data);
        let frame = self.frames.len() as u32 + 1;
        self.frames.push((WalPos { salts: self.salts, frame, checksum: self.sum }, commit_pages));
    }

    /// What a scan from `from` must find if only the first `valid` frames are valid.
    fn expected_scan(&self, from: &WalPos, valid: usize) -> Scan {
        let at_start = (*from, self.frames.get((from.frame as usize).wrapping_sub(1)).map_or(0, |f| f.1));
        let committed = self.frames[..valid.max(from.frame as usize)].iter().skip(from.frame as usize).rev().find(|f| f.1 != 0);
        let (last_commit, commit_pages) = committed.copied().unwrap_or(at_start);
        let frames_beyond = (valid as u32).max(from.frame) - last_commit.frame;
        Scan { last_commit, commit_pages, frames_beyond }
    }
}

prop_compose! {
    fn any_log()(
        big_endian in any::<bool>(),
        page_size in prop_oneof![4 => Just(512_u32), 1 => Just(4096)],
        salts in any::<[u32; 2]>(),
        frames in proptest::collection::vec((1..100_u32, prop_oneof![Just(0), 1..100_u32], any::<u64>()), 0..12),
    ) -> Log {
        let mut log = Log::new(big_endian, page_size, salts);
        for (page, commit_pages, seed) in frames {
            let mut random = fastrand::Rng::with_seed(seed);
            let data: Vec<u8> = (0..page_size).map(|_| random.u8(..)).collect();
            log.append(page, commit_pages, &data);
        }
        log
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sound_log_is_read_from_anywhere(log in any_log(), from in any::<prop::sample::Index>()) {
        let header = Header::decode(&log.bytes).unwrap();
        let count = log.frames.len() as u32;
        let from = from.index(log.frames.len() + 1);
        let start = if from == 0 { header.start() } else { log.frames[from - 1].0 };
        prop_assert!(verify_at(&log.bytes, &header, &start).unwrap());
        let (read, end) = frames(&log.bytes, &header, &start, count);
        prop_assert_eq!(read.len(), log.frames.len() - from);
        prop_assert_eq!(end.unwrap(), log.frames.last().map_or(header.start(), |f| f.0));
        prop_assert_eq!(scan(&log.bytes, &header, &start).unwrap(), log.expected_scan(&start, log.frames.len()));
    }

    #[test]
    fn damage_anywhere_ends_the_log_there(mut log in any_log(), at in any::<prop::sample::Index>(), change in 1..=255_u8) {
        let header = Header::decode(&log.bytes).unwrap();
        let at = at.index(log.bytes.len());
        log.bytes[at] ^= change;
        if at < WAL_HEADER_BYTES {
            prop_assert!(Header::decode(&log.bytes).is_err());
            return Ok(());
        }
        let frame_bytes = FRAME_HEADER_BYTES + header.page_size.bytes();
        let valid = (at - WAL_HEADER_BYTES) / frame_bytes;
        let damaged = valid as u32 + 1;
        let (read, end) = frames(&log.bytes, &header, &header.start(), log.frames.len() as u32);
        prop_assert_eq!(read.len(), valid);
        let frame = match end {
            Err(WalError::SaltMismatch { frame, .. } | WalError::ChecksumMismatch { frame } | WalError::PageZero { frame }) => frame,
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert_eq!(frame, damaged);
        prop_assert_eq!(scan(&log.bytes, &header, &header.start()).unwrap(), log.expected_scan(&header.start(), valid));
        // Where a frame's stored words are damaged, its place is not found; its page does not matter for that.
        let offset = at as u64 - frame_offset(header.page_size, valid as u32);
        prop_assert_eq!(verify_at(&log.bytes, &header, &log.frames[valid].0).unwrap(), !(8..24).contains(&offset));
    }

    #[test]
    fn a_log_that_was_cut_short_ends_with_its_last_whole_frame(mut log in any_log(), at in any::<prop::sample::Index>()) {
        let header = Header::decode(&log.bytes).unwrap();
        let at = at.index(log.bytes.len());
        log.bytes.truncate(at);
        if at < WAL_HEADER_BYTES {
            let short = matches!(Header::decode(&log.bytes), Err(WalError::ShortHeader { bytes }) if bytes == at);
            prop_assert!(short);
            return Ok(());
        }
        let valid = (at - WAL_HEADER_BYTES) / (FRAME_HEADER_BYTES + header.page_size.bytes());
        let (read, end) = frames(&log.bytes, &header, &header.start(), log.frames.len() as u32);
        prop_assert_eq!(read.len(), valid);
        let truncated = matches!(end, Err(WalError::Truncated { frame }) if frame == valid as u32 + 1);
        prop_assert!(truncated);
        prop_assert_eq!(scan(&log.bytes, &header, &header.start()).unwrap(), log.expected_scan(&header.start(), valid));
    }

    #[test]
    fn the_checksum_can_be_continued_at_any_pair_of_words(words in proptest::collection::vec(any::<u64>(), 0..50), cut in 0..50_usize) {
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let cut = cut.min(words.len()) * 8;
        for big_endian in [false, true] {
            let mut plain = Log::new(big_endian, 512, [0; 2]);
            plain.sum = [3, 4];
            plain.add(&data);
            prop_assert_eq!(checksum(big_endian, [3, 4], &data), plain.sum);
            let first = checksum(big_endian, [3, 4], &data[..cut]);
            prop_assert_eq!(checksum(big_endian, first, &data[cut..]), plain.sum);
        }
    }
}

#[test]
fn a_file_that_answers_in_small_pieces_is_read_all_the_same() {
    struct Pieces(Vec<u8>, Cell<u64>);
    impl ReadAt for Pieces {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
            self.1.set(self.1.get() + 1);
            if self.1.get().is_multiple_of(3) {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            let bytes = buf.len().min(1 + self.1.get() as usize % 300);
            self.0.read_at(&mut buf[..bytes], offset)
        }
    }
    let mut log = Log::new(false, 512, [1, 2]);
    for page in 1..2000 {
        log.append(page, page, &[page as u8; 512]);
    }
    let header = Header::decode(&log.bytes).unwrap();
    let last = log.frames.last().unwrap().0;
    assert_eq!(frames(&Pieces(log.bytes, Cell::new(0)), &header, &header.start(), last.frame).1.unwrap(), last);
}

#[test]
fn an_error_of_the_file_or_of_the_receiver_is_handed_on() {
    struct Broken;
    impl ReadAt for Broken {
        fn read_at(&self, _: &mut [u8], _: u64) -> std::io::Result<usize> {
            Err(std::io::Error::other("broken"))
        }
    }
    let mut log = Log::new(true, 512, [1, 2]);
    log.append(1, 1, &[1; 512]);
    let header = Header::decode(&log.bytes).unwrap();
    let end = log.frames[0].0;
    assert!(matches!(frames(&Broken, &header, &header.start(), 1).1, Err(WalError::Io(_))));
    assert!(matches!(verify_at(&Broken, &header, &end), Err(WalError::Io(_))));
    assert!(matches!(scan(&Broken, &header, &header.start()), Err(WalError::Io(_))));
    let full = || WalError::Io(std::io::ErrorKind::StorageFull.into());
    assert!(matches!(read_frames(&log.bytes, &header, &header.start(), 1, &mut |_, _, _| Err(full())), Err(WalError::Io(_))));
}
