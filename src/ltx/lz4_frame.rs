//! LZ4 frames as Litestream 0.5.0 to 0.5.15 stored pages: one frame a page, without its length. See `docs/format.md`, "Page frames".
//!
//! Only what one page needs: no dictionaries, and no more blocks and bytes than a page can come to, so that a reader that meets a
//! hostile frame neither buffers nor walks far.

use lz4_flex::block::{decompress_into, decompress_into_with_dict};
use twox_hash::XxHash32;

const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// Version 1, independent blocks, content checksum; blocks of up to 64 KiB; the descriptor's check byte.
const DESCRIPTOR: [u8; 3] = [0x64, 0x40, 0xa7];

const VERSION_MASK: u8 = 0xc0;
const VERSION_1: u8 = 0x40;
const INDEPENDENT_BLOCKS: u8 = 0x20;
const BLOCK_CHECKSUMS: u8 = 0x10;
const CONTENT_SIZE: u8 = 0x08;
const CONTENT_CHECKSUM: u8 = 0x04;
const RESERVED_OR_DICTIONARY: u8 = 0x03;
const STORED: u32 = 1 << 31;

/// Real writers use one. More would let a frame of tiny blocks be walked again and again while it arrives.
const MAX_BLOCKS: usize = 16;

/// How much of a frame has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// At least so many bytes are needed to say more.
    Need(usize),
    /// The frame is complete and has so many bytes.
    Complete(usize),
}

/// Finds the end of the frame that `bytes` starts with, without decompressing. `data_limit` bounds the sum of its blocks' bytes.
pub(super) fn scan(bytes: &[u8], data_limit: usize) -> Result<Seen, String> {
    let mut cursor = Cursor { rest: bytes, taken: 0 };
    walk(&mut cursor, data_limit, &mut |_, _, _| Ok(())).map(|()| Seen::Complete(cursor.taken)).or_else(Stop::seen)
}

/// Decompresses exactly one frame into exactly `page`.
pub(super) fn decompress(bytes: &[u8], page: &mut [u8]) -> Result<(), String> {
    let mut cursor = Cursor { rest: bytes, taken: 0 };
    let mut length = 0;
    let expected = page.len();
    let walked = walk(&mut cursor, usize::MAX, &mut |flags, part, data| {
        match part {
            Part::ContentSize if u64_le(data) != expected as u64 => Err("its content size is not the page size".to_owned()),
            Part::ContentSize => Ok(()),
            Part::Stored | Part::Compressed => {
                let (before, free) = page.split_at_mut_checked(length).ok_or("it is longer than a page")?;
                length += match part {
                    Part::Stored => {
                        free.get_mut(..data.len()).ok_or("it is longer than a page")?.copy_from_slice(data);
                        data.len()
                    }
                    _ if flags & INDEPENDENT_BLOCKS == 0 && !before.is_empty() => {
                        decompress_into_with_dict(data, free, before).map_err(|e| e.to_string())?
                    }
                    _ => decompress_into(data, free).map_err(|e| e.to_string())?,
                };
                Ok(())
            }
            // Checked after the block, whose content is all that was decoded so far.
            Part::ContentChecksum => {
                let content = page.get(..length).unwrap_or_default();
                if XxHash32::oneshot(0, content).to_le_bytes() == data { Ok(()) } else { Err("its content checksum is wrong".to_owned()) }
            }
        }
    });
    match walked {
        Ok(()) if !cursor.rest.is_empty() => Err("bytes follow the frame".to_owned()),
        Ok(()) if length == expected => Ok(()),
        Ok(()) => Err(format!("it holds {length} bytes instead of {expected}")),
        Err(Stop::Need(_)) => Err("the frame is cut short".to_owned()),
        Err(Stop::Fault(reason)) => Err(reason),
    }
}

/// Begins a frame of one block of `block_bytes`; `stored` where the block is not compressed.
pub(super) fn begin(out: &mut Vec<u8>, block_bytes: u32, stored: bool) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&DESCRIPTOR);
    out.extend_from_slice(&(block_bytes | if stored { STORED } else { 0 }).to_le_bytes());
}

/// Ends a frame whose content was `page`.
pub(super) fn end(out: &mut Vec<u8>, page: &[u8]) {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&XxHash32::oneshot(0, page).to_le_bytes());
}

#[derive(Clone, Copy)]
enum Part {
    ContentSize,
    Stored,
    Compressed,
    ContentChecksum,
}

enum Stop {
    Need(usize),
    Fault(String),
}

impl Stop {
    fn seen(self) -> Result<Seen, String> {
        match self {
            Self::Need(bytes) => Ok(Seen::Need(bytes)),
            Self::Fault(reason) => Err(reason),
        }
    }
}

impl From<&str> for Stop {
    fn from(reason: &str) -> Self {
        Self::Fault(reason.to_owned())
    }
}

type OnPart<'a> = dyn FnMut(u8, Part, &[u8]) -> Result<(), String> + 'a;

fn walk(cursor: &mut Cursor<'_>, data_limit: usize, on_part: &mut OnPart<'_>) -> Result<(), Stop> {
    if cursor.take(MAGIC.len())? != MAGIC {
        return Err("it is not an LZ4 frame".into());
    }
    let flags = walk_descriptor(cursor, on_part)?;
    let mut data_bytes = 0_usize;
    for _ in 0..=MAX_BLOCKS {
        let word = u32_le(cursor.take(4)?);
        if word == 0 {
            if flags & CONTENT_CHECKSUM != 0 {
                let checksum = cursor.take(4)?;
                on_part(flags, Part::ContentChecksum, checksum).map_err(Stop::Fault)?;
            }
            return Ok(());
        }
        let bytes = (word & !STORED) as usize;
        data_bytes = data_bytes.saturating_add(bytes);
        if data_bytes > data_limit {
            return Err("it has more bytes than a page can need".into());
        }
        let data = cursor.take(bytes)?;
        if flags & BLOCK_CHECKSUMS != 0 && cursor.take(4)? != XxHash32::oneshot(0, data).to_le_bytes() {
            return Err("a block checksum is wrong".into());
        }
        on_part(flags, if word & STORED == 0 { Part::Compressed } else { Part::Stored }, data).map_err(Stop::Fault)?;
    }
    Err("it has more blocks than a page can need".into())
}

fn walk_descriptor(cursor: &mut Cursor<'_>, on_part: &mut OnPart<'_>) -> Result<u8, Stop> {
    let flags = cursor.peek(1)?.first().copied().unwrap_or_default();
    if flags & VERSION_MASK != VERSION_1 || flags & RESERVED_OR_DICTIONARY != 0 {
        return Err("its LZ4 frame has flags that no writer of pages uses".into());
    }
    let size_bytes = if flags & CONTENT_SIZE == 0 { 0 } else { 8 };
    let descriptor = cursor.take(2 + size_bytes)?;
    let check = cursor.take(1)?;
    if XxHash32::oneshot(0, descriptor).to_le_bytes().get(1) != check.first() {
        return Err("its LZ4 frame's header checksum is wrong".into());
    }
    if let Some(size) = descriptor.get(2..).filter(|size| !size.is_empty()) {
        on_part(flags, Part::ContentSize, size).map_err(Stop::Fault)?;
    }
    Ok(flags)
}

struct Cursor<'a> {
    rest: &'a [u8],
    taken: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self, bytes: usize) -> Result<&'a [u8], Stop> {
        self.rest.get(..bytes).ok_or(Stop::Need(self.taken.saturating_add(bytes)))
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Stop> {
        let (field, rest) = self.rest.split_at_checked(bytes).ok_or(Stop::Need(self.taken.saturating_add(bytes)))?;
        self.rest = rest;
        self.taken += bytes;
        Ok(field)
    }
}

fn u32_le(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

fn u64_le(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}
