//! Whatever is written is read back, however it arrives; whatever is not what was written is noticed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::Write;

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;
use replicated::ltx::{
    Decoder, Encoder, HEADER_BYTES, Header, LtxError, PageForm, PageIndex, Reader, Summary, TRAILER_BYTES, decode_page_frame, merge,
};
use replicated::types::{PageNo, PageSize, TimestampMs, Txid};

type Pages = BTreeMap<u32, Vec<u8>>;

fn pgno(n: u32) -> PageNo {
    PageNo::new(n).unwrap()
}

fn encode(header: &Header, pages: &Pages, form: PageForm) -> Result<Vec<u8>, LtxError> {
    let mut encoder = Encoder::with_form(Vec::new(), header, form)?;
    for (n, page) in pages {
        encoder.page(pgno(*n), page)?;
    }
    let finished = encoder.finish()?;
    assert_eq!(finished.size_bytes, finished.out.len() as u64);
    Ok(finished.out)
}

/// Decodes bytes that arrive in pieces of these sizes, the last size again and again.
fn decode_in_pieces(bytes: &[u8], sizes: &[usize]) -> Result<(Summary, Pages), LtxError> {
    let mut pages = Pages::new();
    let mut decoder = Decoder::new();
    let mut sizes = sizes.iter().copied();
    let (mut size, mut rest) = (usize::MAX, bytes);
    while !rest.is_empty() {
        size = sizes.next().unwrap_or(size).max(1);
        let (piece, after) = rest.split_at(size.min(rest.len()));
        decoder.push(piece, &mut |n, page| {
            assert!(pages.insert(n.get(), page.to_vec()).is_none());
            Ok(())
        })?;
        rest = after;
    }
    Ok((decoder.finish()?, pages))
}

fn decode(bytes: &[u8]) -> Result<(Summary, Pages), LtxError> {
    decode_in_pieces(bytes, &[])
}

/// The checksum of the format, bit by bit.
fn crc64(parts: &[&[u8]]) -> u64 {
    let mut crc = u64::MAX;
    for byte in parts.iter().copied().flatten() {
        crc ^= u64::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xd800_0000_0000_0000 } else { crc >> 1 };
        }
    }
    !crc | 1 << 63
}

/// How one page is stored in a file that `plain_file` writes.
#[derive(Clone, Copy, Debug)]
enum Stored {
    Block,
    Literals,
    Frame { linked: bool, content_size: bool, block_checksums: bool, content_checksum: bool },
}

fn payload(page: &[u8], stored: Stored) -> Vec<u8> {
    match stored {
        Stored::Block => lz4_flex::block::compress(page),
        Stored::Literals => {
            let mut out = vec![0xf0];
            let mut rest = page.len() - 15;
            while rest >= 255 {
                out.push(255);
                rest -= 255;
            }
            out.push(rest as u8);
            out.extend_from_slice(page);
            out
        }
        Stored::Frame { linked, content_size, block_checksums, content_checksum } => {
            let info = FrameInfo::new()
                .block_size(BlockSize::Max64KB)
                .block_mode(if linked { BlockMode::Linked } else { BlockMode::Independent })
                .content_size(content_size.then_some(page.len() as u64))
                .block_checksums(block_checksums)
                .content_checksum(content_checksum);
            let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
            // A flush between ends a block, so that a linked one refers back.
            encoder.write_all(&page[..page.len() / 2]).unwrap();
            encoder.flush().unwrap();
            encoder.write_all(&page[page.len() / 2..]).unwrap();
            encoder.finish().unwrap()
        }
    }
}

/// A file written by the format's description alone: any form for each page, and checksums of the database.
fn plain_file(header: &Header, pages: &[(u32, Vec<u8>, Stored)], post_apply: Option<u64>) -> Vec<u8> {
    let mut file = header.encode().to_vec();
    let mut hashed = file.clone();
    let mut index = Vec::new();
    let mut rolling = 1 << 63;
    for (n, page, stored) in pages {
        let payload = payload(page, *stored);
        let mut frame = n.to_be_bytes().to_vec();
        match stored {
            Stored::Frame { .. } => frame.extend_from_slice(&[0, 0]),
            Stored::Block | Stored::Literals => {
                frame.extend_from_slice(&[0, 1]);
                frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
            }
        }
        hashed.extend_from_slice(&frame);
        hashed.extend_from_slice(page);
        frame.extend_from_slice(&payload);
        for mut number in [u64::from(*n), file.len() as u64, frame.len() as u64] {
            while number >= 128 {
                index.push(number as u8 | 128);
                number >>= 7;
            }
            index.push(number as u8);
        }
        file.extend_from_slice(&frame);
        rolling = (rolling ^ crc64(&[&n.to_be_bytes(), page])) | 1 << 63;
    }
    index.push(0);
    let post_apply = post_apply.unwrap_or(if header.no_checksum { 0 } else { rolling });
    let mut end = vec![0; 6];
    end.extend_from_slice(&index);
    end.extend_from_slice(&(index.len() as u64).to_be_bytes());
    end.extend_from_slice(&post_apply.to_be_bytes());
    let checksum = crc64(&[&hashed, &end]);
    file.extend_from_slice(&end);
    file.extend_from_slice(&checksum.to_be_bytes());
    file
}

/// Pages as databases have them: empty, regular, and beyond compression.
fn any_page(page_size: u32) -> impl Strategy<Value = Vec<u8>> {
    (0..4_u8, any::<u64>()).prop_map(move |(kind, seed)| {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut page = vec![0; page_size as usize];
        match kind {
            0 => {}
            1 => page.fill_with(|| random.u8(..)),
            2 => page.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i as u64 * (seed % 97) / 31) as u8),
            _ => {
                let filled = random.usize(..page.len());
                page[filled..].fill_with(|| random.u8(b'a'..b'f'));
            }
        }
        page
    })
}

fn any_page_size() -> impl Strategy<Value = u32> {
    prop_oneof![8 => Just(512_u32), 4 => Just(4096), 1 => Just(65536)]
}

fn any_form() -> impl Strategy<Value = PageForm> {
    prop_oneof![Just(PageForm::Block), Just(PageForm::Frame)]
}

fn any_stored() -> impl Strategy<Value = Stored> {
    prop_oneof![
        Just(Stored::Block),
        Just(Stored::Literals),
        any::<[bool; 4]>().prop_map(|[linked, content_size, block_checksums, content_checksum]| Stored::Frame {
            linked,
            content_size,
            block_checksums,
            content_checksum
        }),
    ]
}

prop_compose! {
    /// A header and pages that fit it: a snapshot has all of them.
    fn any_content()(page_size in any_page_size())(
        page_size in Just(page_size),
        mut pages in btree_map(1..60_u32, any_page(page_size), 0..12),
        snapshot in any::<bool>(),
        (min, span) in (2..u64::MAX / 2, 0..1000_u64),
        timestamp in any::<i64>(),
        growth in 0..5_u32,
        node_id in any::<u64>(),
    ) -> (Header, Pages) {
        if snapshot {
            pages = pages.into_values().enumerate().map(|(i, page)| (i as u32 + 1, page)).collect();
            pages.entry(1).or_insert_with(|| vec![1; page_size as usize]);
        }
        let last = pages.keys().last().copied().unwrap_or(1);
        let min = if snapshot { 1 } else { min };
        let (min, max) = (Txid::new(min).unwrap(), Txid::new(min + span).unwrap());
        let commit_pages = if snapshot { last } else { last + growth };
        let header = Header::new(PageSize::new(page_size).unwrap(), commit_pages, min, max, TimestampMs(timestamp));
        (Header { node_id, ..header }, pages)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn what_is_written_is_read_back_in_any_pieces(
        (header, pages) in any_content(),
        form in any_form(),
        pieces in vec(prop_oneof![1..20_usize, 1..5000_usize], 1..20),
    ) {
        let file = encode(&header, &pages, form).unwrap();
        prop_assert_eq!(&encode(&header, &pages, form).unwrap(), &file, "written twice");
        let (summary, read) = decode_in_pieces(&file, &pieces).unwrap();
        prop_assert_eq!(summary.header, header);
        prop_assert_eq!(&read, &pages);
        prop_assert_eq!((summary.page_count as usize, summary.size_bytes), (pages.len(), file.len() as u64));
        prop_assert!(summary.index_matches);

        let mut reader = Reader::with_chunk_bytes(file.as_slice(), pieces[0]);
        prop_assert_eq!(reader.read_header().unwrap(), header);
        let (mut page, mut pulled) = (Vec::new(), Pages::new());
        while let Some(n) = reader.next_page(&mut page).unwrap() {
            pulled.insert(n.get(), page.clone());
        }
        prop_assert_eq!(reader.next_page(&mut page).unwrap(), None);
        prop_assert_eq!((pulled, reader.summary()), (read, Some(&summary)));

        let range = PageIndex::locate(&file[file.len() - PageIndex::LOCATE_BYTES..], file.len() as u64).unwrap();
        let entries = PageIndex::parse_at(&file[range.start as usize..range.end as usize], &range).unwrap();
        prop_assert_eq!(entries.len(), pages.len());
        for (entry, (n, expected)) in entries.iter().zip(&pages) {
            let frame = &file[entry.offset as usize..(entry.offset + entry.size) as usize];
            prop_assert_eq!(decode_page_frame(frame, header.page_size, &mut page).unwrap().get(), *n);
            prop_assert_eq!(&page, expected);
            prop_assert!(decode_page_frame(&frame[..frame.len() - 1], header.page_size, &mut page).is_err());
            prop_assert!(decode_page_frame(&file[entry.offset as usize..], header.page_size, &mut page).is_err());
        }
    }

    #[test]
    fn our_files_are_what_the_description_says((header, pages) in any_content()) {
        let file = encode(&header, &pages, PageForm::Block).unwrap();
        let plain: Vec<_> = pages.into_iter().map(|(n, page)| (n, page, Stored::Block)).collect();
        prop_assert_eq!(plain_file(&header, &plain, None), file);
    }

    #[test]
    fn every_form_that_the_description_allows_is_read(
        (mut header, pages) in any_content(),
        forms in vec(any_stored(), 12),
        tracked in any::<bool>(),
        pieces in vec(1..3000_usize, 1..20),
    ) {
        header.no_checksum = !tracked;
        if tracked && !header.is_snapshot() {
            header.pre_apply_checksum = 1 << 63 | 5;
        }
        let plain: Vec<_> = pages.iter().zip(&forms).map(|((n, page), form)| (*n, page.clone(), *form)).collect();
        let file = plain_file(&header, &plain, None);
        let (summary, read) = decode_in_pieces(&file, &pieces).unwrap();
        prop_assert_eq!((summary.header, read), (header, pages));
        prop_assert!(summary.index_matches);
        prop_assert_eq!(summary.post_apply_checksum >> 63 == 1, tracked);

        // A wrong checksum of the database, under a file checksum that covers it.
        let wrong = if tracked && header.is_snapshot() { summary.post_apply_checksum ^ 1 } else { 1 };
        let file = plain_file(&header, &plain, Some(wrong));
        let refused = matches!(decode(&file), Err(LtxError::PostApplyChecksum { stored, .. }) if stored == wrong);
        prop_assert!(refused);
    }

    #[test]
    fn a_flipped_bit_is_noticed_unless_the_pages_stay_the_same(
        (header, pages) in any_content(), form in any_form(), at in vec(any::<Index>(), 30), pieces in vec(1..3000_usize, 1..5),
    ) {
        let file = encode(&header, &pages, form).unwrap();
        for at in at {
            let bit = at.index(file.len() * 8);
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok((summary, read)) = decode_in_pieces(&damaged, &pieces) {
                prop_assert_eq!((summary.header, &read, summary.index_matches), (header, &pages, true), "bit {}", bit);
            }
        }
    }

    #[test]
    fn a_file_of_another_length_is_refused((header, pages) in any_content(), form in any_form(), at in vec(any::<Index>(), 20), more in vec(any::<u8>(), 1..40)) {
        let mut file = encode(&header, &pages, form).unwrap();
        for at in at {
            let length = at.index(file.len());
            match decode(&file[..length]) {
                Err(LtxError::Truncated { offset, .. }) => prop_assert_eq!(offset, length as u64),
                // The bytes before the new end were taken for the trailer.
                Err(LtxError::FileChecksum { .. }) => prop_assert!(length > file.len() - file.len().min(TRAILER_BYTES + 9 + 40 * pages.len())),
                other => prop_assert!(false, "{} of {}: {:?}", length, file.len(), other),
            }
            let mut reader = Reader::new(&file[..length]);
            let mut page = Vec::new();
            let outcome = loop {
                match reader.next_page(&mut page) {
                    Ok(Some(_)) => {}
                    other => break other,
                }
            };
            prop_assert!(outcome.is_err());
            prop_assert_eq!(Reader::new(&file[..length]).read_header().is_ok(), length >= HEADER_BYTES);
        }
        file.extend_from_slice(&more);
        let refused = matches!(decode(&file), Err(LtxError::FileChecksum { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn a_wrong_index_is_tolerated_but_told((header, pages) in any_content(), at in any::<Index>(), cut in any::<bool>()) {
        let file = encode(&header, &pages, PageForm::Block).unwrap();
        let range = PageIndex::locate(&file, file.len() as u64).unwrap();
        let at = range.start as usize + at.index(range.end as usize + 8 - range.start as usize);
        let mut wrong = file.clone();
        if cut {
            wrong.drain(at..range.end as usize + 8);
        } else {
            wrong[at] ^= 0x15;
        }
        // The checksum as a writer with such an index would store it.
        let index_start = range.start as usize;
        let mut hashed = file[..HEADER_BYTES].to_vec();
        let mut offset = HEADER_BYTES;
        for page in pages.values() {
            let size = u32::from_be_bytes(*file[offset + 6..].first_chunk().unwrap()) as usize;
            hashed.extend_from_slice(&file[offset..offset + 10]);
            hashed.extend_from_slice(page);
            offset += 10 + size;
        }
        let trailer = wrong.len() - 8;
        hashed.extend_from_slice(&wrong[index_start - 6..trailer]);
        wrong[trailer..].copy_from_slice(&crc64(&[&hashed]).to_be_bytes());
        let (summary, read) = decode(&wrong).unwrap();
        prop_assert_eq!((summary.header, read, summary.index_matches), (header, pages, false));
    }

    #[test]
    fn merging_keeps_the_newest_version_of_each_page(
        layers in vec((btree_map(1..40_u32, any_page(512), 0..20), any_form()), 1..6),
        commit_pages in 1..45_u32,
        snapshot in any::<bool>(),
    ) {
        let page_size = PageSize::MIN;
        let mut model = Pages::new();
        let mut inputs = Vec::new();
        for (i, (pages, form)) in layers.iter().enumerate() {
            let txid = Txid::new(i as u64 + 2).unwrap();
            inputs.push(encode(&Header::new(page_size, 60, txid, txid, TimestampMs(0)), pages, *form).unwrap());
            model.extend(pages.clone());
        }
        model.retain(|n, _| *n <= commit_pages);
        let min = if snapshot { Txid::FIRST } else { Txid::new(2).unwrap() };
        let header = Header::new(page_size, commit_pages, min, Txid::new(20).unwrap(), TimestampMs(7));
        let readers = |inputs: &[Vec<u8>]| inputs.iter().map(|file| Reader::new(std::io::Cursor::new(file.clone()))).collect();
        let merged = merge(readers(&inputs), &header, Vec::new());
        if snapshot && model.len() < commit_pages as usize {
            let refused = matches!(merged, Err(LtxError::PageOrder { exact: true, .. } | LtxError::MissingPages { .. }));
            prop_assert!(refused);
            return Ok(());
        }
        let merged = merged.unwrap();
        prop_assert_eq!(&merged.out, &encode(&header, &model, PageForm::Block).unwrap());
        let (summary, read) = decode(&merged.out).unwrap();
        prop_assert_eq!((summary.header, read, summary.file_checksum), (header, model, merged.file_checksum));

        // The last input is read to its end, whatever is behind the end of the database.
        let last = inputs.last_mut().unwrap();
        *last.last_mut().unwrap() ^= 1;
        let refused = matches!(merge(readers(&inputs), &header, Vec::new()), Err(LtxError::FileChecksum { .. }));
        prop_assert!(refused);
    }
}

#[test]
fn inputs_of_another_page_size_are_refused() {
    let txid = Txid::new(2).unwrap();
    let file = |page_size| encode(&Header::new(page_size, 5, txid, txid, TimestampMs(0)), &Pages::new(), PageForm::Block).unwrap();
    let (small, large) = (file(PageSize::MIN), file(PageSize::MAX));
    let inputs = vec![Reader::new(small.as_slice()), Reader::new(large.as_slice())];
    let header = Header::new(PageSize::MIN, 5, txid, txid, TimestampMs(0));
    assert!(matches!(merge(inputs, &header, Vec::new()), Err(LtxError::PageSizeMismatch { input: 1, .. })));
    assert!(merge(Vec::<Reader<&[u8]>>::new(), &header, Vec::new()).is_ok());
}

#[test]
fn lengths_in_a_file_are_not_believed() {
    let header = Header::new(PageSize::MIN, 5, Txid::new(2).unwrap(), Txid::new(2).unwrap(), TimestampMs(0));
    let file = |frame: &[u8]| [&header.encode(), frame].concat();
    let error = |frame: &[u8]| decode(&file(frame)).unwrap_err();
    assert!(matches!(error(&[0, 0, 0, 1, 0, 1, 0xff, 0xff, 0xff, 0xff]), LtxError::PayloadSize { size: 0xffff_ffff, limit: 530, .. }));
    assert!(matches!(error(&[0, 0, 0, 1, 0, 1, 0, 0, 2, 18]), LtxError::Truncated { offset: 110, .. }));
    assert!(matches!(error(&[0, 0, 0, 1, 0, 1, 0, 0, 2, 19]), LtxError::PayloadSize { .. }));
    assert!(matches!(error(&[0, 0, 0, 1, 0, 1, 0, 0, 0, 0]), LtxError::Compression { offset: 100, page: 1, .. }));
    assert!(matches!(error(&[0, 0, 0, 1, 0, 2]), LtxError::PageFlags { flags: 2, page: 1, .. }));
    assert!(matches!(error(&[0, 0, 0, 0, 0, 1]), LtxError::PageFlags { flags: 1, page: 0, .. }));
    // LZ4 frames: a block of 2 GiB less one, and blocks without content.
    let start = [0, 0, 0, 1, 0, 0, 0x04, 0x22, 0x4d, 0x18, 0x64, 0x40, 0xa7];
    assert!(matches!(error(&[start.as_slice(), &[0xff, 0xff, 0xff, 0x7f]].concat()), LtxError::Compression { .. }));
    assert!(matches!(error(&[start.as_slice(), &[1, 0, 0, 0, 0].repeat(1000)].concat()), LtxError::Compression { .. }));
    assert!(matches!(error(&[start.as_slice(), &[0, 0, 0, 0x80].repeat(1000)].concat()), LtxError::Compression { .. }));
    let mut longer = plain_file(&header, &[(1, vec![0; 1024], Stored::Block)], None);
    assert!(matches!(decode(&longer), Err(LtxError::Compression { .. })));
    longer = plain_file(&header, &[(1, vec![0; 511], Stored::Block)], None);
    assert!(matches!(decode(&longer), Err(LtxError::Compression { .. })));
}

#[test]
fn pages_behind_the_end_of_the_database_are_handed_out() {
    let header = Header::new(PageSize::MIN, 5, Txid::new(2).unwrap(), Txid::new(2).unwrap(), TimestampMs(0));
    let file = plain_file(&header, &[(5, vec![5; 512], Stored::Block), (9, vec![9; 512], Stored::Block)], None);
    let (summary, pages) = decode(&file).unwrap();
    assert_eq!((summary.page_count, pages.keys().copied().collect::<Vec<_>>()), (2, vec![5, 9]));
    for order in [[9, 5], [5, 5]] {
        let pages = order.map(|n| (n, vec![5; 512], Stored::Block));
        assert!(matches!(decode(&plain_file(&header, &pages, None)), Err(LtxError::PageOrder { exact: false, .. })));
    }
}

#[test]
fn an_index_that_cannot_be_right_is_refused() {
    let parse = |bytes: &[u8]| PageIndex::parse(bytes).map(|entries| entries.len());
    assert_eq!(parse(&[0]).unwrap(), 0);
    assert_eq!(parse(&[1, 100, 50, 3, 0x96, 1, 50, 0]).unwrap(), 2);
    let wrong: [&[u8]; 13] = [
        &[],
        &[1],
        &[1, 100],
        &[1, 100, 50],
        &[0, 0],
        &[1, 100, 50, 0, 0],
        &[0x80, 0],
        &[1, 101, 50, 0],
        &[1, 100, 6, 0],
        &[2, 100, 50, 2, 0x96, 1, 50, 0],
        &[1, 100, 50, 2, 0x97, 1, 50, 0],
        &[0xff, 0xff, 0xff, 0xff, 0x1f, 100, 50, 0],
        &[1, 100, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0],
    ];
    for bytes in wrong {
        assert!(matches!(parse(bytes), Err(LtxError::Index { .. })), "{bytes:?}");
    }
    assert!(matches!(parse(&[[0xff; 10].as_slice(), &[1, 100, 50, 0]].concat()), Err(LtxError::Index { .. })));

    let tail = |size: u64| [size.to_be_bytes().as_slice(), &[0; 16]].concat();
    assert_eq!(PageIndex::locate(&tail(1), 131).unwrap(), 106..107);
    for (size, file_size) in [(0, 131), (2, 131), (u64::MAX, 131), (1, 23), (1, 130), (u64::MAX, u64::MAX)] {
        assert!(PageIndex::locate(&tail(size), file_size).is_err(), "{size} of {file_size}");
    }
    assert!(PageIndex::locate(&tail(1)[1..], 131).is_err());
    assert!(PageIndex::parse_at(&[1, 100, 50, 0], &(156..160)).is_ok());
    assert!(PageIndex::parse_at(&[1, 100, 50, 0], &(157..161)).is_err());
}
