//! The end of an LTX file from anybody, and single page frames: what is accepted lies within the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replicated::ltx::{PageIndex, decode_page_frame};
use replicated::types::PageSize;

fuzz_target!(|data: &[u8]| {
    if let Ok(entries) = PageIndex::parse(data) {
        assert!(entries.len() <= data.len() / 3);
        assert!(entries.windows(2).all(|pair| pair[0].pgno < pair[1].pgno && pair[0].offset + pair[0].size == pair[1].offset));
    }
    let Some((size, rest)) = data.split_first_chunk::<4>() else { return };
    let file_size = u64::from(u32::from_be_bytes(*size));
    if let Ok(range) = PageIndex::locate(rest, file_size) {
        assert!(range.start < range.end && range.end < file_size);
        let length = (range.end - range.start) as usize;
        if let Some(index) = rest.len().checked_sub(24).and_then(|end| rest.get(end.checked_sub(length)?..end)) {
            if let Ok(entries) = PageIndex::parse_at(index, &range) {
                assert!(entries.iter().all(|entry| entry.offset >= 100 && entry.offset + entry.size < range.start));
            }
        }
    }
    let page_size = PageSize::new(512 << (size[0] % 8)).unwrap();
    let mut page = Vec::new();
    if decode_page_frame(rest, page_size, &mut page).is_ok() {
        assert_eq!(page.len(), page_size.bytes());
    }
});
