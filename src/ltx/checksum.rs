//! CRC-64/GO-ISO as the format uses it: over the file, and rolling over a database's pages.

use crc_fast::{CrcAlgorithm, Digest};

/// Set in every checksum that the format stores, so that zero can mean "none".
pub(crate) const CHECKSUM_FLAG: u64 = 1 << 63;

/// The checksum of a file as it is read or written.
#[derive(Clone, Debug)]
pub(super) struct FileCrc(Digest);

impl FileCrc {
    pub(super) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Goes on with the checksum of the bytes that follow.
    pub(super) fn append(&mut self, next: &Self) {
        if next.0.get_amount() > 0 {
            self.0.combine(&next.0);
        }
    }

    /// As the trailer stores it.
    pub(super) fn value(&self) -> u64 {
        self.0.finalize() | CHECKSUM_FLAG
    }
}

/// What a page gives to the rolling checksum of its database; never 0.
pub(crate) fn page_checksum(page: u32, data: &[u8]) -> u64 {
    let mut crc = FileCrc::new();
    crc.update(&page.to_be_bytes());
    crc.update(data);
    crc.value()
}

/// The rolling checksum of a database whose pages are given one by one, the lock page excepted. Any order gives the same.
#[derive(Clone, Debug)]
pub(super) struct RollingChecksum(u64);

impl RollingChecksum {
    pub(super) const fn new() -> Self {
        Self(CHECKSUM_FLAG)
    }

    pub(super) fn add(&mut self, page: u32, data: &[u8]) {
        self.0 = (self.0 ^ page_checksum(page, data)) | CHECKSUM_FLAG;
    }

    /// Adds the pages of another one.
    pub(super) const fn merge(&mut self, other: &Self) {
        self.0 = (self.0 ^ other.0) | CHECKSUM_FLAG;
    }

    pub(super) const fn value(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_crc_64_go_iso() {
        // The check value of the CRC catalogue; bit 63 happens to be set in it.
        let mut crc = FileCrc::new();
        crc.update(b"12345");
        crc.update(b"6789");
        assert_eq!(crc.value(), 0xb909_56c7_75a4_1001);
    }

    #[test]
    fn the_rolling_checksum_takes_pages_in_any_order() {
        let (mut forwards, mut backwards) = (RollingChecksum::new(), RollingChecksum::new());
        assert_eq!(forwards.value(), CHECKSUM_FLAG);
        forwards.add(1, &[1; 512]);
        forwards.add(2, &[2; 512]);
        backwards.add(2, &[2; 512]);
        backwards.add(1, &[1; 512]);
        assert_eq!(forwards.value(), backwards.value());
    }
}
