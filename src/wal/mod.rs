//! The byte formats of the write-ahead log and its index.
//!
//! The formats are SQLite's own, described in <https://www.sqlite.org/fileformat2.html#the_write_ahead_log> and
//! <https://www.sqlite.org/walformat.html>. A log is a 32-byte [`Header`] and frames: a 24-byte [`FrameHeader`] and a page each. Every
//! frame repeats the header's salts and carries a checksum that runs from the header through all frames before it, so a frame that an
//! earlier use of the file has left behind, or that a crash has torn, ends the log.
//!
//! Nothing here knows of locks: the caller sees to it that the frames asked for are not being overwritten meanwhile.

mod checksum;
mod error;
mod header;
mod index_header;
mod reader;

pub use checksum::checksum;
pub use error::WalError;
pub use header::{FRAME_HEADER_BYTES, FrameHeader, Header, WAL_HEADER_BYTES, end_offset, frame_offset};
pub use index_header::{INDEX_HEADER_BYTES, IndexHeader};
pub use reader::{OnFrame, ReadAt, Scan, frame_header, read_frames, scan, scan_to, verify_at};
