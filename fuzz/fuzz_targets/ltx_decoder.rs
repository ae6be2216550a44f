//! An LTX file from anybody: no panic, the same result in whatever pieces it arrives, and what is accepted survives being written again.
//!
//! Real files (`fixtures/*/ltx/*`) are good seeds. Without help no input would get past the file checksum, so each is also tried with the right one put in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replicated::ltx::{Decoder, Encoder, Header, LtxError};
use replicated::types::PageNo;

type Pages = Vec<(PageNo, Vec<u8>)>;

fn decode(bytes: &[u8], piece: usize) -> (Pages, Result<Header, LtxError>) {
    let mut pages = Pages::new();
    let mut decoder = Decoder::new();
    for piece in bytes.chunks(piece) {
        let pushed = decoder.push(piece, &mut |pgno, page| {
            assert!(page.len() <= 65536 && pages.last().is_none_or(|(last, _): &(PageNo, _)| *last < pgno));
            pages.push((pgno, page.to_vec()));
            Ok(())
        });
        if let Err(error) = pushed {
            return (pages, Err(error));
        }
    }
    (pages, decoder.finish().map(|summary| summary.header))
}

fuzz_target!(|data: &[u8]| {
    let (pages, whole) = decode(data, usize::MAX);
    let (in_pieces, result) = decode(data, data.len() % 97 + 1);
    assert_eq!((&pages, whole.is_ok()), (&in_pieces, result.is_ok()));

    let mut file = data.to_vec();
    let header = match whole {
        Ok(header) => header,
        Err(LtxError::FileChecksum { computed, .. }) => {
            let at = file.len() - 8;
            file[at..].copy_from_slice(&computed.to_be_bytes());
            match decode(&file, usize::MAX).1 {
                Ok(header) => header,
                Err(_) => return,
            }
        }
        Err(_) => return,
    };
    let written = || {
        let header = Header { no_checksum: true, pre_apply_checksum: 0, ..header };
        let mut encoder = Encoder::new(Vec::new(), &header).ok()?;
        for (pgno, page) in &pages {
            encoder.page(*pgno, page).ok()?;
        }
        Some((header, encoder.finish().ok()?.out))
    };
    if let Some((header, written)) = written() {
        let (again, result) = decode(&written, usize::MAX);
        assert_eq!((again, result.unwrap()), (pages, header));
    }
});
