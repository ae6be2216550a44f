//! A log from anybody. Checksums are put right up to a frame that the first byte chooses, or nothing would get past the header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replicated::types::{PageSize, WalPos};
use replicated::wal::{
    FRAME_HEADER_BYTES, Header, INDEX_HEADER_BYTES, IndexHeader, WAL_HEADER_BYTES, checksum, read_frames, scan, verify_at,
};

fuzz_target!(|data: &[u8]| {
    if let Some(bytes) = data.first_chunk::<INDEX_HEADER_BYTES>() {
        let _ = IndexHeader::decode(bytes).map(|header| header.end());
    }
    let _ = Header::decode(data);
    if data.len() < WAL_HEADER_BYTES {
        return;
    }
    let mut log = data.to_vec();
    let sound_frames = log[0];
    let big_endian = log[3] & 1 == 1;
    log[..8].copy_from_slice(&[0x37, 0x7f, 0x06, 0x82 | u8::from(big_endian), 0, 0x2d, 0xe2, 0x18]);
    let page_size = log[8..].first_chunk().and_then(|bytes| PageSize::new(u32::from_be_bytes(*bytes)));
    let page_size = page_size.map_or(512 << (log[8] % 8), PageSize::get);
    log[8..12].copy_from_slice(&page_size.to_be_bytes());
    let mut sum = checksum(big_endian, [0; 2], &log[..24]);
    let put = |at: &mut [u8], sum: [u32; 2]| {
        at[..4].copy_from_slice(&sum[0].to_be_bytes());
        at[4..8].copy_from_slice(&sum[1].to_be_bytes());
    };
    put(&mut log[24..], sum);
    let header = Header::decode(&log).unwrap();
    let mut sound = 0;
    let (start, frames) = log.split_at_mut(WAL_HEADER_BYTES);
    let mut all_sound = true;
    for frame in frames.chunks_exact_mut(FRAME_HEADER_BYTES + page_size as usize).take(usize::from(sound_frames)) {
        frame[8..16].copy_from_slice(&start[16..24]);
        sum = checksum(big_endian, sum, &frame[..8]);
        sum = checksum(big_endian, sum, &frame[FRAME_HEADER_BYTES..]);
        put(&mut frame[16..], sum);
        all_sound &= frame[..4] != [0; 4];
        sound += u32::from(all_sound);
    }

    let mut delivered = 0;
    let mut positions: Vec<WalPos> = vec![header.start()];
    let outcome = read_frames(&log, &header, &header.start(), u32::MAX, &mut |frame, decoded, page| {
        delivered += 1;
        assert_eq!((frame, page.len()), (delivered, page_size as usize));
        positions.push(WalPos { salts: decoded.salts, frame, checksum: decoded.checksum });
        Ok(())
    });
    assert!(outcome.is_err() && delivered >= sound);
    let whole = scan(&log, &header, &header.start()).unwrap();
    assert_eq!(whole.last_commit.frame + whole.frames_beyond, delivered);
    for position in &positions {
        assert!(verify_at(&log, &header, position).unwrap());
        let found = scan(&log, &header, position).unwrap();
        assert_eq!(found.last_commit.frame + found.frames_beyond, delivered);
        assert!(found.last_commit.frame >= position.frame);
    }
});
