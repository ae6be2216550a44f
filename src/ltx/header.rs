//! The 100 bytes that every LTX file starts with. See `docs/format.md`, "Header".

use super::LtxError;
use super::checksum::CHECKSUM_FLAG;
use crate::types::{PageSize, TimestampMs, Txid, WalPos};
use crate::wal;

/// The size of the header in bytes.
pub const HEADER_BYTES: usize = 100;

const MAGIC: [u8; 4] = *b"LTX1";
const FLAG_NO_CHECKSUM: u32 = 0x2;

/// The header of an LTX file.
///
/// A file whose `min_txid` is 1 is a snapshot: it holds the whole database and can be applied to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The database's page size.
    pub page_size: PageSize,
    /// The size of the database in pages once the file is applied.
    pub commit_pages: u32,
    /// The first transaction of the file.
    pub min_txid: Txid,
    /// The last transaction of the file.
    pub max_txid: Txid,
    /// When the last transaction was committed.
    pub timestamp: TimestampMs,
    /// Whether the two checksums of the database (`pre_apply_checksum` and the trailer's) are absent. True in all that we write.
    pub no_checksum: bool,
    /// The rolling checksum of the database that the file is to be applied to; 0 where there is none.
    pub pre_apply_checksum: u64,
    /// Where the file's frames start in the write-ahead log, in bytes; 0 where there is none.
    pub wal_offset: u64,
    /// How many bytes of the write-ahead log the file was made of.
    pub wal_size: u64,
    /// The salts of that log, as big-endian numbers; zeros where there is none.
    pub wal_salts: [u32; 2],
    /// Who wrote the file. Litestream writes 0 and does not look at it.
    pub node_id: u64,
    /// The checksum words stored in the last of the log's frames in the file (in the log's header where there is no frame).
    ///
    /// Our own addition, in bytes 80..88, which are reserved: zeros in files of others.
    pub wal_checksum: [u32; 2],
}

impl Header {
    /// A header without a place in a write-ahead log: `wal_offset` is that of the first frame, the least that Litestream resumes from.
    #[must_use]
    pub const fn new(page_size: PageSize, commit_pages: u32, min_txid: Txid, max_txid: Txid, timestamp: TimestampMs) -> Self {
        Self {
            page_size,
            commit_pages,
            min_txid,
            max_txid,
            timestamp,
            no_checksum: true,
            pre_apply_checksum: 0,
            wal_offset: wal::WAL_HEADER_BYTES as u64,
            wal_size: 0,
            wal_salts: [0; 2],
            node_id: 0,
            wal_checksum: [0; 2],
        }
    }

    /// Whether the file holds the whole database: `min_txid` is 1, at whatever level it is stored.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.min_txid == Txid::FIRST
    }

    /// Says which frames of a write-ahead log the file is made of: those after the first `start_frame` up to `end`.
    ///
    /// The page size must be that of the log.
    pub fn set_wal_range(&mut self, start_frame: u32, end: &WalPos) {
        self.wal_offset = wal::end_offset(self.page_size, start_frame);
        self.wal_size = wal::end_offset(self.page_size, end.frame).saturating_sub(self.wal_offset);
        self.wal_salts = end.salts;
        self.wal_checksum = end.checksum;
    }

    /// How far into a write-ahead log the file reaches; the inverse of [`Header::set_wal_range`].
    ///
    /// `None` where the header names no log, or a place that is not the end of a frame. In files that Litestream wrote the checksum
    /// words are zeros, so the place is not proved by them.
    #[must_use]
    pub fn wal_end(&self) -> Option<WalPos> {
        if self.wal_salts == [0; 2] {
            return None;
        }
        let frame_bytes = u64::from(self.page_size.get()) + wal::FRAME_HEADER_BYTES as u64;
        let start = self.wal_offset.checked_sub(wal::WAL_HEADER_BYTES as u64)?;
        let end = start.checked_add(self.wal_size)?;
        if start % frame_bytes != 0 || end % frame_bytes != 0 {
            return None;
        }
        let frame = u32::try_from(end / frame_bytes).ok()?;
        Some(WalPos { salts: self.wal_salts, frame, checksum: self.wal_checksum })
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let flags = if self.no_checksum { FLAG_NO_CHECKSUM } else { 0 };
        let mut out = [0; HEADER_BYTES];
        let mut rest = out.as_mut_slice();
        let mut put = |bytes: &[u8]| {
            if let Some((field, tail)) = std::mem::take(&mut rest).split_at_mut_checked(bytes.len()) {
                field.copy_from_slice(bytes);
                rest = tail;
            }
        };
        put(&MAGIC);
        put(&flags.to_be_bytes());
        put(&self.page_size.get().to_be_bytes());
        put(&self.commit_pages.to_be_bytes());
        put(&self.min_txid.get().to_be_bytes());
        put(&self.max_txid.get().to_be_bytes());
        put(&self.timestamp.0.to_be_bytes());
        put(&self.pre_apply_checksum.to_be_bytes());
        put(&self.wal_offset.to_be_bytes());
        put(&self.wal_size.to_be_bytes());
        put(&self.wal_salts[0].to_be_bytes());
        put(&self.wal_salts[1].to_be_bytes());
        put(&self.node_id.to_be_bytes());
        put(&self.wal_checksum[0].to_be_bytes());
        put(&self.wal_checksum[1].to_be_bytes());
        out
    }

    /// Reads the header at the start of `bytes`, which may go on behind it.
    ///
    /// # Errors
    /// `Truncated` below 100 bytes, `Magic`, and `Header` for every field that breaks a rule of the format.
    pub fn decode(bytes: &[u8]) -> Result<Self, LtxError> {
        let Some(mut fields) = Fields::of(bytes) else {
            return Err(LtxError::Truncated { offset: bytes.len() as u64, part: "header" });
        };
        let magic = fields.u32().to_be_bytes();
        if magic != MAGIC {
            return Err(LtxError::Magic { found: magic });
        }
        let flags = fields.u32();
        if flags & !FLAG_NO_CHECKSUM != 0 {
            return Err(broken("flags", flags.into(), "only 0x2 is defined"));
        }
        let page_bytes = fields.u32();
        let page_size = PageSize::new(page_bytes)
            .ok_or_else(|| broken("page size", page_bytes.into(), "it must be a power of two from 512 to 65536"))?;
        let commit_pages = fields.u32();
        let min_txid = Txid::new(fields.u64()).ok_or_else(|| broken("min TXID", 0, "TXIDs start at 1"))?;
        let max_txid = Txid::new(fields.u64()).ok_or_else(|| broken("max TXID", 0, "TXIDs start at 1"))?;
        let header = Self {
            page_size,
            commit_pages,
            min_txid,
            max_txid,
            timestamp: TimestampMs(fields.u64().cast_signed()),
            no_checksum: flags & FLAG_NO_CHECKSUM != 0,
            pre_apply_checksum: fields.u64(),
            wal_offset: fields.u64(),
            wal_size: fields.u64(),
            wal_salts: [fields.u32(), fields.u32()],
            node_id: fields.u64(),
            wal_checksum: [fields.u32(), fields.u32()],
        };
        header.validate()?;
        Ok(header)
    }

    /// The rules that hold between fields.
    pub(super) fn validate(&self) -> Result<(), LtxError> {
        if self.max_txid < self.min_txid {
            return Err(broken("max TXID", self.max_txid.get(), "it is below the min TXID"));
        }
        if self.wal_offset > i64::MAX as u64 {
            return Err(broken("WAL offset", self.wal_offset, "it is negative"));
        }
        if self.wal_size > i64::MAX as u64 {
            return Err(broken("WAL size", self.wal_size, "it is negative"));
        }
        if self.wal_offset == 0 && self.wal_size != 0 {
            return Err(broken("WAL size", self.wal_size, "it must be 0 where the WAL offset is"));
        }
        if self.wal_offset == 0 && self.wal_salts != [0; 2] {
            let salts = u64::from(self.wal_salts[0]) << 32 | u64::from(self.wal_salts[1]);
            return Err(broken("pair of WAL salts", salts, "they must be 0 where the WAL offset is"));
        }
        let pre = self.pre_apply_checksum;
        match (self.no_checksum, self.is_snapshot()) {
            (true, _) if pre != 0 => Err(broken("pre-apply checksum", pre, "it must be 0 in a file without checksums")),
            (false, true) if pre != 0 => Err(broken("pre-apply checksum", pre, "it must be 0 in a snapshot")),
            (false, false) if pre & CHECKSUM_FLAG == 0 => Err(broken("pre-apply checksum", pre, "its highest bit must be set")),
            _ => Ok(()),
        }
    }
}

const fn broken(field: &'static str, value: u64, rule: &'static str) -> LtxError {
    LtxError::Header { field, value, rule }
}

/// Takes big-endian numbers off the front of a header's bytes, whose number was checked.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        bytes.first_chunk::<HEADER_BYTES>().map(|header| Self(header))
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}
