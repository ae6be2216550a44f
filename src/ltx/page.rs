//! Page frames: a page's number and its compressed content. See `docs/format.md`, "Page frames".

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into};

use super::LtxError;
use super::lz4_frame::{self, Seen};
use crate::types::{PageNo, PageSize};

/// The page number and the flags.
pub(super) const PAGE_HEADER_BYTES: usize = 6;
const SIZE_BYTES: usize = 4;
const FLAG_SIZE: u16 = 0x1;

/// How the content of pages is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageForm {
    /// An LZ4 block with its size before it: what Litestream 0.5.16 and later write.
    #[default]
    Block,
    /// An LZ4 frame: the only form that Litestream 0.5.0 to 0.5.15 can read.
    Frame,
}

/// Decompresses the page frame that `bytes` consists of, as [`super::PageIndex`] locates it, into `out`, which becomes one page long.
///
/// # Errors
/// `Truncated`, `NotOneFrame`, or what is wrong with the page; offsets are from the start of `bytes`. The frame's content is not covered
/// by a checksum here: only decoding the whole file verifies it.
pub fn decode_page_frame(bytes: &[u8], page_size: PageSize, out: &mut Vec<u8>) -> Result<PageNo, LtxError> {
    let truncated = || LtxError::Truncated { offset: bytes.len() as u64, part: "page frame" };
    if bytes.len() < PAGE_HEADER_BYTES {
        return Err(truncated());
    }
    match scan(bytes, page_size, 0)? {
        Step::Need(_) => Err(truncated()),
        Step::Terminator => Err(LtxError::NotOneFrame { reason: "the page number is 0" }),
        Step::Page { frame_bytes, .. } if frame_bytes != bytes.len() => Err(LtxError::NotOneFrame { reason: "bytes follow it" }),
        Step::Page { page, .. } => {
            out.resize(page_size.bytes(), 0);
            decompress(bytes, page, 0, out)?;
            Ok(page)
        }
    }
}

/// The most bytes that an LZ4 block of one page can have: all literals, with their length.
pub(super) const fn max_block_bytes(page_size: PageSize) -> usize {
    page_size.bytes() + page_size.bytes() / 255 + 16
}

/// What the start of a page frame tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// At least so many bytes are needed to say more.
    Need(usize),
    /// The bytes start with a complete page frame of that length.
    Page { page: PageNo, frame_bytes: usize },
    /// No more pages: the page index follows.
    Terminator,
}

/// Looks at `bytes` from the start of a page frame, which is at `offset` of the file.
pub(super) fn scan(bytes: &[u8], page_size: PageSize, offset: u64) -> Result<Step, LtxError> {
    let Some((number, flags, rest)) = split_header(bytes) else {
        return Ok(Step::Need(PAGE_HEADER_BYTES));
    };
    let Some(page) = PageNo::new(number) else {
        return if flags == 0 { Ok(Step::Terminator) } else { Err(LtxError::PageFlags { offset, page: 0, flags }) };
    };
    if flags & !FLAG_SIZE != 0 {
        return Err(LtxError::PageFlags { offset, page: number, flags });
    }
    if page == page_size.lock_page() {
        return Err(LtxError::LockPage { offset, page: number });
    }
    let limit = max_block_bytes(page_size);
    let (before, seen) = if flags & FLAG_SIZE == 0 {
        let seen = lz4_frame::scan(rest, limit + 256).map_err(|reason| LtxError::Compression { offset, page: number, reason })?;
        (PAGE_HEADER_BYTES, seen)
    } else {
        let Some((size, payload)) = rest.split_first_chunk::<SIZE_BYTES>() else {
            return Ok(Step::Need(PAGE_HEADER_BYTES + SIZE_BYTES));
        };
        let size = u32::from_be_bytes(*size) as usize;
        if size > limit {
            return Err(LtxError::PayloadSize { offset, page: number, size: size as u64, limit: limit as u64 });
        }
        let seen = if payload.len() < size { Seen::Need(size) } else { Seen::Complete(size) };
        (PAGE_HEADER_BYTES + SIZE_BYTES, seen)
    };
    Ok(match seen {
        Seen::Need(bytes) => Step::Need(before + bytes),
        Seen::Complete(bytes) => Step::Page { page, frame_bytes: before + bytes },
    })
}

/// Decompresses a complete page frame into exactly `out`.
pub(super) fn decompress(frame: &[u8], page: PageNo, offset: u64, out: &mut [u8]) -> Result<(), LtxError> {
    let payload = frame.get(hashed_bytes(frame)..).unwrap_or_default();
    let result = if is_sized(frame) {
        match decompress_into(payload, out) {
            Ok(bytes) if bytes == out.len() => Ok(()),
            Ok(bytes) => Err(format!("it holds {bytes} bytes instead of {}", out.len())),
            Err(error) => Err(error.to_string()),
        }
    } else {
        lz4_frame::decompress(payload, out)
    };
    result.map_err(|reason| LtxError::Compression { offset, page: page.get(), reason })
}

/// How many bytes of a page frame the file checksum covers as they are; after them it covers the page, not its compressed form.
pub(super) fn hashed_bytes(frame: &[u8]) -> usize {
    if is_sized(frame) { PAGE_HEADER_BYTES + SIZE_BYTES } else { PAGE_HEADER_BYTES }
}

fn is_sized(frame: &[u8]) -> bool {
    split_header(frame).is_some_and(|(_, flags, _)| flags & FLAG_SIZE != 0)
}

fn split_header(bytes: &[u8]) -> Option<(u32, u16, &[u8])> {
    let (page, rest) = bytes.split_first_chunk::<4>()?;
    let (flags, rest) = rest.split_first_chunk::<2>()?;
    Some((u32::from_be_bytes(*page), u16::from_be_bytes(*flags), rest))
}

/// Makes page frames, in buffers of its own that it uses again.
pub(super) struct FrameWriter {
    form: PageForm,
    table: CompressTable,
    block: Vec<u8>,
    frame: Vec<u8>,
}

impl FrameWriter {
    pub(super) fn new(form: PageForm, page_size: PageSize) -> Self {
        let block = vec![0; lz4_flex::block::get_maximum_output_size(page_size.bytes())];
        Self { form, table: CompressTable::default(), block, frame: Vec::new() }
    }

    /// The frame of a page. `data` is one page long.
    pub(super) fn frame(&mut self, page: PageNo, data: &[u8]) -> Result<&[u8], LtxError> {
        let compressed = compress_into_with_table(data, &mut self.block, &mut self.table).map_err(|error| LtxError::Compression {
            offset: 0,
            page: page.get(),
            reason: error.to_string(),
        })?;
        let block = self.block.get(..compressed).unwrap_or_default();
        self.frame.clear();
        self.frame.extend_from_slice(&page.get().to_be_bytes());
        match self.form {
            PageForm::Block => {
                self.frame.extend_from_slice(&FLAG_SIZE.to_be_bytes());
                self.frame.extend_from_slice(&(block.len() as u32).to_be_bytes());
                self.frame.extend_from_slice(block);
            }
            PageForm::Frame => {
                // A frame's block may not be larger than what it decompresses to.
                let (bytes, stored) = if block.len() < data.len() { (block, false) } else { (data, true) };
                self.frame.extend_from_slice(&0_u16.to_be_bytes());
                lz4_frame::begin(&mut self.frame, bytes.len() as u32, stored);
                self.frame.extend_from_slice(bytes);
                lz4_frame::end(&mut self.frame, data);
            }
        }
        Ok(&self.frame)
    }
}
