//! What can be wrong with a write-ahead log.

/// Why a log's header or frames could not be read. Frames are numbered from 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The log is shorter than its header.
    #[error("the write-ahead log has {bytes} bytes, fewer than its header of 32")]
    ShortHeader {
        /// The bytes that there are.
        bytes: usize,
    },
    /// The log does not begin with one of the two magic numbers.
    #[error("not a write-ahead log: its magic number is {found:#010x}")]
    Magic {
        /// The number found.
        found: u32,
    },
    /// The log is of another version of the format.
    #[error("the write-ahead log has the format version {found}; only 3007000 is known")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The header's page size is none that SQLite allows.
    #[error("the write-ahead log's page size is {found}, not a power of two from 512 to 65536")]
    PageSize {
        /// The value found, in bytes.
        found: u32,
    },
    /// The header's checksum is wrong.
    #[error("the checksum of the write-ahead log's header is wrong")]
    HeaderChecksum,
    /// A frame is not of this log: its salts are others, or the place asked for is one in another log.
    #[error("frame {frame} of the write-ahead log has the salts {found:08x?} instead of {expected:08x?}")]
    SaltMismatch {
        /// The frame; 0 where the header's salts are meant.
        frame: u32,
        /// The salts of the log's header.
        expected: [u32; 2],
        /// The salts found.
        found: [u32; 2],
    },
    /// A frame's checksum does not continue that of the frame before.
    #[error("frame {frame} of the write-ahead log has a wrong checksum")]
    ChecksumMismatch {
        /// The frame.
        frame: u32,
    },
    /// A frame gives page number 0, which SQLite takes for the end of the log.
    #[error("frame {frame} of the write-ahead log is for page 0")]
    PageZero {
        /// The frame.
        frame: u32,
    },
    /// The log ends before the end of a frame.
    #[error("the write-ahead log ends within frame {frame}")]
    Truncated {
        /// The frame.
        frame: u32,
    },
    /// Reading failed, or the receiver of the frames did.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
