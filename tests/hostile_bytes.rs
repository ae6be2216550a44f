//! Bytes that somebody else prepared end in an error or in the content that was written, never in a panic.
//!
//! The short form of the targets in `fuzz/`: seeded, so that a failure can be repeated.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use replicated::ltx::{Decoder, Encoder, Header, LtxError, PageForm, PageIndex, decode_page_frame};
use replicated::types::{PageNo, PageSize, TimestampMs, Txid};
use replicated::wal;

/// Mutations of each seed input.
const ROUNDS: usize = 4000;

type Pages = Vec<(PageNo, Vec<u8>)>;

/// Changes bytes as accidents and adversaries do.
fn mutate(random: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    for _ in 0..random.usize(1..4) {
        let at = random.usize(0..=bytes.len());
        let end = (at + random.usize(0..64)).min(bytes.len());
        let word = random.choice([0, 1, 0x7f, 0x80, 0xff, 0x200, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX]).unwrap();
        match random.u8(0..10) {
            0..3 if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
            3 if at < bytes.len() => bytes[at] = random.u8(..),
            4 if at + 4 <= bytes.len() => bytes[at..at + 4].copy_from_slice(&word.to_be_bytes()),
            5 if at + 4 <= bytes.len() => bytes[at..at + 4].copy_from_slice(&word.to_le_bytes()),
            6 => drop(bytes.drain(at..end)),
            7 => bytes.truncate(at),
            8 => {
                let copied = bytes[at..end].to_vec();
                let to = random.usize(0..=bytes.len());
                drop(bytes.splice(to..to, copied));
            }
            _ => {
                let made: Vec<u8> = (0..random.usize(1..20)).map(|_| random.u8(..)).collect();
                drop(bytes.splice(at..at, made));
            }
        }
    }
}

fn decode(bytes: &[u8], piece: usize) -> Result<(Header, Pages), LtxError> {
    let mut pages = Pages::new();
    let mut decoder = Decoder::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece, &mut |pgno, page| {
            pages.push((pgno, page.to_vec()));
            Ok(())
        })?;
    }
    decoder.finish().map(|summary| (summary.header, pages))
}

fn ltx_seeds() -> Vec<Vec<u8>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let real = [
        "litestream-0.5.17-block/ltx/1/0000000000000001-0000000000000001.ltx",
        "litestream-0.5.17-block/ltx/0/000000000000001c-000000000000001c.ltx",
        "litestream-0.5.6-frame/ltx/0/0000000000000003-0000000000000003.ltx",
    ];
    let mut seeds: Vec<_> = real.iter().map(|name| fs::read(fixtures.join(name)).unwrap()).collect();
    for form in [PageForm::Block, PageForm::Frame] {
        let header = Header::new(PageSize::MIN, 9, Txid::FIRST.next(), Txid::FIRST.next(), TimestampMs(1));
        let mut encoder = Encoder::with_form(Vec::new(), &header, form).unwrap();
        for n in [1, 3, 9] {
            encoder.page(PageNo::new(n).unwrap(), &[n as u8; 512]).unwrap();
        }
        seeds.push(encoder.finish().unwrap().out);
    }
    seeds
}

#[test]
fn a_hostile_ltx_file_is_refused_or_read_as_it_was_written() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut accepted = 0;
    for seed in ltx_seeds() {
        let original = decode(&seed, usize::MAX).unwrap();
        for _ in 0..ROUNDS {
            let mut bytes = seed.clone();
            mutate(&mut random, &mut bytes);
            let piece = random.choice([7, 100, 4096, usize::MAX]).unwrap();
            if let Ok(read) = decode(&bytes, piece) {
                accepted += 1;
                assert_eq!(read, original);
            }
        }
    }
    // Mutations that cancel each other out, or change only how a page is compressed.
    assert!(accepted < ROUNDS / 10, "{accepted}");
}

#[test]
fn a_hostile_page_frame_or_index_is_refused_or_within_its_bounds() {
    let mut random = fastrand::Rng::with_seed(2);
    let mut page = Vec::new();
    for seed in ltx_seeds() {
        let page_size = Header::decode(&seed).unwrap().page_size;
        let range = PageIndex::locate(&seed, seed.len() as u64).unwrap();
        let index = &seed[range.start as usize..range.end as usize];
        let entries = PageIndex::parse_at(index, &range).unwrap();
        for _ in 0..ROUNDS {
            let mut bytes = index.to_vec();
            mutate(&mut random, &mut bytes);
            if let Ok(entries) = PageIndex::parse_at(&bytes, &range) {
                let end = entries.iter().map(|entry| entry.offset + entry.size).max().unwrap_or(100);
                assert_eq!(end + 6, range.start);
            }
            let mut bytes = seed[range.start as usize..].to_vec();
            mutate(&mut random, &mut bytes);
            let file_size = random.u64(0..2 * seed.len() as u64);
            if let Ok(found) = PageIndex::locate(&bytes, file_size) {
                assert!(found.start >= 106 && found.start < found.end && found.end < file_size);
            }
            let entry = random.choice(&entries).unwrap();
            let mut bytes = seed[entry.offset as usize..(entry.offset + entry.size) as usize].to_vec();
            mutate(&mut random, &mut bytes);
            if decode_page_frame(&bytes, page_size, &mut page).is_ok() {
                assert_eq!(page.len(), page_size.bytes());
            }
        }
    }
}

#[test]
fn a_hostile_log_is_read_no_further_than_it_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(folder.path().join("db")).unwrap();
    connection.execute_batch("PRAGMA page_size=512; PRAGMA journal_mode=WAL; CREATE TABLE t(a);").unwrap();
    for _ in 0..10 {
        connection.execute_batch("INSERT INTO t SELECT randomblob(300);").unwrap();
    }
    let seed = fs::read(folder.path().join("db-wal")).unwrap();
    let index: [u8; wal::INDEX_HEADER_BYTES] = *fs::read(folder.path().join("db-shm")).unwrap().first_chunk().unwrap();
    let original = wal::Header::decode(&seed).unwrap();
    let frame_bytes = wal::FRAME_HEADER_BYTES + original.page_size.bytes();

    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..4 * ROUNDS {
        let mut bytes = seed.clone();
        mutate(&mut random, &mut bytes);
        // A damaged header is an error; the frames are then read as the sound header describes them.
        let header = wal::Header::decode(&bytes).unwrap_or(original);
        let unchanged = bytes.iter().zip(&seed).take_while(|(a, b)| a == b).count().max(wal::WAL_HEADER_BYTES);
        let whole_frames = ((unchanged - wal::WAL_HEADER_BYTES) / frame_bytes) as u32;
        let found = wal::scan(&bytes, &header, &header.start()).unwrap();
        let valid = found.last_commit.frame + found.frames_beyond;
        assert!(valid == whole_frames || bytes[..wal::WAL_HEADER_BYTES] != seed[..wal::WAL_HEADER_BYTES], "{valid} {whole_frames}");
        assert!(wal::verify_at(&bytes, &header, &found.last_commit).unwrap());
        let mut delivered = 0;
        let outcome = wal::read_frames(&bytes, &header, &header.start(), u32::MAX, &mut |_, _, _| {
            delivered += 1;
            Ok(())
        });
        assert!(outcome.is_err());
        assert_eq!(delivered, valid);

        let mut bytes = index.to_vec();
        mutate(&mut random, &mut bytes);
        bytes.resize(index.len(), 0);
        let mutated = bytes.first_chunk().unwrap();
        assert!(wal::IndexHeader::decode(mutated).is_none() || *mutated == index);
    }
}
