//! The running checksum of a write-ahead log.

/// Continues the checksum words `init` over `data`, whose 32-bit words are read in the byte order that the log's magic number names.
///
/// The checksum is defined on pairs of words: `data` has a multiple of 8 bytes, what is over is left out.
#[must_use]
pub fn checksum(big_endian: bool, init: [u32; 2], data: &[u8]) -> [u32; 2] {
    if big_endian { run(init, data, u32::from_be_bytes) } else { run(init, data, u32::from_le_bytes) }
}

#[inline(always)]
fn run(init: [u32; 2], data: &[u8], word: impl Fn([u8; 4]) -> u32) -> [u32; 2] {
    let [mut s0, mut s1] = init;
    for pair in data.as_chunks::<8>().0 {
        let [a, b, c, d, e, f, g, h] = *pair;
        // Each half waits for the other, but only for one addition: the loads and the first additions run ahead.
        s0 = s0.wrapping_add(word([a, b, c, d])).wrapping_add(s1);
        s1 = s1.wrapping_add(word([e, f, g, h])).wrapping_add(s0);
    }
    [s0, s1]
}
