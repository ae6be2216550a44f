//! The LTX byte format, both directions, streaming.
//!
//! `docs/format.md` describes the format to the byte. [`Encoder`] writes one file, [`Decoder`] reads one from chunks of any size as
//! they arrive, [`Reader`] pulls pages out of anything that implements [`std::io::Read`], [`merge`] makes one file of several, and
//! [`PageIndex`] with [`decode_page_frame`] reads single pages of a stored file.
//!
//! Everything that is read is taken for hostile: no length of the input is allocated unchecked, and what a reader keeps is about one page.

mod checksum;
mod decoder;
mod encoder;
mod error;
mod header;
mod index;
mod lz4_frame;
mod merge;
mod page;
mod parallel;
mod reader;

#[cfg(test)]
mod tests;

pub(crate) use checksum::{CHECKSUM_FLAG, page_checksum};
pub use decoder::{Decoder, OnPage, Summary};
pub use encoder::{Encoder, Finished};
pub use error::LtxError;
pub use header::{HEADER_BYTES, Header};
pub use index::{IndexEntry, PageIndex};
pub use merge::merge;
pub use page::{PageForm, decode_page_frame};
pub(crate) use parallel::{Ending, FrameDigest, Ledger, Run, Splitter, Sum};
pub use reader::Reader;

/// The bytes at the end of every file: the post-apply checksum and the file checksum.
pub const TRAILER_BYTES: usize = 16;
