//! The numbers that travel between the parts, each as a type of its own so that they cannot be mixed up.

use std::fmt;

/// A transaction identifier of the bucket: one level-0 LTX file, which may hold several SQLite transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(u64);

impl Txid {
    /// The first one; an LTX file that starts here is a snapshot.
    pub const FIRST: Self = Self(1);

    /// `None` for zero, which the format does not allow.
    #[must_use]
    pub const fn new(value: u64) -> Option<Self> {
        if value == 0 { None } else { Some(Self(value)) }
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after this; saturates.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Reads 1 to 16 hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.len() <= 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if digits { u64::from_str_radix(text, 16).ok().and_then(Self::new) } else { None }
    }
}

impl fmt::Display for Txid {
    /// 16 lower-case hexadecimal digits, as in object names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A page number of a database, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(u32);

impl PageNo {
    /// `None` for zero.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value == 0 { None } else { Some(Self(value)) }
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for PageNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A database's page size in bytes: a power of two from 512 to 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// The smallest that SQLite allows.
    pub const MIN: Self = Self(512);
    /// The largest that SQLite allows.
    pub const MAX: Self = Self(65536);

    /// `None` unless it is a page size that SQLite allows.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 65536 { Some(Self(bytes)) } else { None }
    }

    /// Bytes.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Bytes, for buffers.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The page that SQLite keeps for its locks (the one at 1 GiB). It has no content and is in no LTX file.
    #[must_use]
    pub const fn lock_page(self) -> PageNo {
        PageNo(0x4000_0000 / self.0 + 1)
    }

    /// Where a page starts in the database file, in bytes.
    #[must_use]
    pub const fn offset_of(self, page: PageNo) -> u64 {
        (page.get() as u64 - 1) * self.0 as u64
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimestampMs(pub i64);

impl TimestampMs {
    /// RFC 3339 in UTC with milliseconds, as Litestream writes it.
    #[must_use]
    pub fn to_rfc3339(self) -> String {
        chrono::DateTime::from_timestamp_millis(self.0).unwrap_or_default().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
    }

    /// `None` unless the text is RFC 3339.
    #[must_use]
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        chrono::DateTime::parse_from_rfc3339(text).ok().map(|t| Self(t.timestamp_millis()))
    }
}

impl fmt::Display for TimestampMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

/// A place in a write-ahead log: the end of a frame, or the log's start where `frame` is 0.
///
/// Salts and a frame number do not identify a frame after a power loss; the running checksum does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WalPos {
    /// The two salt words of the log's header, as big-endian numbers.
    pub salts: [u32; 2],
    /// Frames before this place.
    pub frame: u32,
    /// The checksum words stored in the last of those frames' headers (in the log's header where `frame` is 0).
    pub checksum: [u32; 2],
}

impl fmt::Display for WalPos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}:{:08x}/{}", self.salts[0], self.salts[1], self.frame)
    }
}
