//! Buckets that Litestream wrote are read: every file verifies, and merging a plan gives the database that Litestream restores.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use replicated::ltx::{Decoder, Header, PageIndex, Reader, decode_page_frame, merge};
use replicated::store::{Level, LtxName, SNAPSHOT_LEVEL};
use replicated::types::{PageNo, Txid};
use sha2::{Digest, Sha256};

/// The fixtures of the LTX format, and whether their pages have the form that was written up to 0.5.15.
const BUCKETS: [(&str, bool); 3] =
    [("litestream-0.5.17-block", false), ("litestream-0.5.15-frame", true), ("litestream-0.5.6-frame", true)];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The files of a level, ascending.
fn level(bucket: &str, level: Level) -> Vec<(LtxName, PathBuf)> {
    let folder = fixtures().join(bucket).join("ltx").join(level.to_string());
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (LtxName::parse(level, entry.file_name().to_str().unwrap()).unwrap(), entry.path()))
        .collect();
    files.sort_by_key(|(name, _)| *name);
    files
}

/// What Litestream 0.5.17 restored.
fn expected_sha256(bucket: &str) -> String {
    let manifest = fs::read_to_string(fixtures().join("MANIFEST.txt")).unwrap();
    let line = manifest.lines().find(|line| line.starts_with(bucket)).unwrap();
    line.split_once("sha256=").unwrap().1.trim().to_owned()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header_of(path: &Path) -> Header {
    Reader::new(File::open(path).unwrap()).read_header().unwrap()
}

/// Merges files from the oldest to the newest into one snapshot and returns the database that it holds.
fn merged_database(plan: &[PathBuf]) -> Vec<u8> {
    let newest = header_of(plan.last().unwrap());
    let header = Header::new(newest.page_size, newest.commit_pages, Txid::FIRST, newest.max_txid, newest.timestamp);
    let inputs = plan.iter().map(|path| Reader::new(File::open(path).unwrap())).collect();
    let merged = merge(inputs, &header, Vec::new()).unwrap();
    assert_eq!(merged.page_count, newest.commit_pages);
    let mut database = Vec::new();
    let mut reader = Reader::new(merged.out.as_slice());
    let mut page = Vec::new();
    while let Some(pgno) = reader.next_page(&mut page).unwrap() {
        assert_eq!(header.page_size.offset_of(pgno), database.len() as u64);
        database.extend_from_slice(&page);
    }
    database
}

#[test]
fn every_file_verifies_and_says_what_its_name_says() {
    for (bucket, frame_form) in BUCKETS {
        for (name, path) in Level::all().flat_map(|l| level(bucket, l)) {
            let bytes = fs::read(&path).unwrap();
            let mut decoder = Decoder::new();
            let mut pages = 0;
            decoder
                .push(&bytes, &mut |_, _| {
                    pages += 1;
                    Ok(())
                })
                .unwrap();
            let summary = decoder.finish().unwrap();
            let header = summary.header;
            assert_eq!((header.min_txid, header.max_txid), (name.min_txid, name.max_txid), "{bucket} {name}");
            assert_eq!((summary.page_count, summary.size_bytes), (pages, bytes.len() as u64), "{bucket} {name}");
            assert!(summary.index_matches, "{bucket} {name}");
            assert_eq!(summary.post_apply_checksum, 0, "{bucket} {name}");
            assert_eq!(bytes[105] == 0, frame_form, "{bucket} {name}: flags of the first page");
        }
    }
}

#[test]
fn the_page_index_finds_every_page() {
    for (bucket, _) in BUCKETS {
        for (name, path) in Level::all().flat_map(|l| level(bucket, l)) {
            let bytes = fs::read(&path).unwrap();
            let page_size = header_of(&path).page_size;
            let mut pages: Vec<(PageNo, Vec<u8>)> = Vec::new();
            Decoder::new()
                .push(&bytes, &mut |pgno, page| {
                    pages.push((pgno, page.to_vec()));
                    Ok(())
                })
                .unwrap();

            let tail = &bytes[bytes.len().saturating_sub(32 * 1024)..];
            let range = PageIndex::locate(tail, bytes.len() as u64).unwrap();
            let entries = PageIndex::parse_at(&bytes[range.start as usize..range.end as usize], &range).unwrap();
            assert_eq!(entries.len(), pages.len(), "{bucket} {name}");
            let mut page = Vec::new();
            for (entry, expected) in entries.iter().zip(&pages) {
                let frame = &bytes[entry.offset as usize..(entry.offset + entry.size) as usize];
                assert_eq!(decode_page_frame(frame, page_size, &mut page).unwrap(), entry.pgno);
                assert_eq!((entry.pgno, &page), (expected.0, &expected.1), "{bucket} {name}");
            }
        }
    }
}

#[test]
fn a_snapshot_and_the_level_0_files_after_it_merge_into_the_database_that_litestream_restores() {
    for (bucket, _) in BUCKETS {
        let (snapshot, path) = level(bucket, SNAPSHOT_LEVEL).pop().unwrap();
        let mut plan = vec![path];
        plan.extend(level(bucket, Level::ZERO).into_iter().filter(|(name, _)| name.min_txid > snapshot.max_txid).map(|(_, path)| path));
        assert_eq!(sha256(&merged_database(&plan)), expected_sha256(bucket), "{bucket}");
    }
}

#[test]
fn compactions_of_every_level_merge_into_the_same_database() {
    // Level 2 to TXID 0x1b, then level 1; and level 1 alone.
    let bucket = "litestream-0.5.17-block";
    let paths = |l: u8| level(bucket, Level::new(l).unwrap());
    let mut levels_2_and_1: Vec<_> = paths(2).into_iter().map(|(_, path)| path).collect();
    levels_2_and_1.extend(paths(1).pop().map(|(_, path)| path));
    let level_1: Vec<_> = paths(1).into_iter().map(|(_, path)| path).collect();
    for plan in [levels_2_and_1, level_1] {
        assert_eq!(sha256(&merged_database(&plan)), expected_sha256(bucket));
    }
    // The page form of the older releases, incremental files over the first.
    let bucket = "litestream-0.5.6-frame";
    let plan: Vec<_> = level(bucket, Level::ZERO).into_iter().map(|(_, path)| path).collect();
    assert_eq!(sha256(&merged_database(&plan)), expected_sha256(bucket));
}
