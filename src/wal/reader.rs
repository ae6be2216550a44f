//! Reads frames and follows their checksum chain.

use std::io;

use super::header::{frame_bytes, frame_offset};
use super::{FRAME_HEADER_BYTES, FrameHeader, Header, WAL_HEADER_BYTES, WalError, checksum};
use crate::types::WalPos;

/// How many bytes are read at once, unless a single frame is larger.
const CHUNK_BYTES: u64 = 512 * 1024;

/// Something that can be read at any place, without a position of its own.
pub trait ReadAt {
    /// Reads up to `buf.len()` bytes that start `offset` bytes into the file; fewer only at its end, or as [`io::Read::read`] may.
    ///
    /// # Errors
    /// Where reading fails.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

#[cfg(unix)]
impl ReadAt for std::fs::File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buf, offset)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let bytes = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..bytes), rest.get(..bytes)) {
            to.copy_from_slice(from);
        }
        Ok(bytes)
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.as_slice().read_at(buf, offset)
    }
}

/// What [`read_frames`] hands frames to: the frame's number (from 1), its header and its page.
pub type OnFrame<'a> = dyn FnMut(u32, &FrameHeader, &[u8]) -> Result<(), WalError> + 'a;

/// Reads the frames after `from` up to the frame number `to_frame`, hands each to `on_frame` with its number, header and page, and
/// returns the end of the last one. `from` itself is trusted: see [`verify_at`].
///
/// What is kept is one chunk of about 512 KiB. A frame is verified before it is handed out.
///
/// # Errors
/// `SaltMismatch`, `PageZero`, `ChecksumMismatch` and `Truncated` for the first frame that is not valid, after those before it were
/// handed out; `Io`; the error of `on_frame`.
pub fn read_frames(
    file: &dyn ReadAt,
    header: &Header,
    from: &WalPos,
    to_frame: u32,
    on_frame: &mut OnFrame<'_>,
) -> Result<WalPos, WalError> {
    check_salts(header, from.frame, from.salts)?;
    let frame_bytes = frame_bytes(header.page_size);
    let frames_left = to_frame.saturating_sub(from.frame);
    let frames_per_chunk = u32::try_from(CHUNK_BYTES / frame_bytes).unwrap_or(1).max(1).min(frames_left);
    let mut buffer = vec![0; frames_per_chunk as usize * frame_bytes as usize];
    let mut end = *from;
    while end.frame < to_frame {
        let frames = frames_per_chunk.min(to_frame - end.frame);
        let chunk = buffer.get_mut(..frames as usize * frame_bytes as usize).unwrap_or_default();
        let read = read_fully(file, chunk, frame_offset(header.page_size, end.frame))?;
        for frame in chunk.get(..read).unwrap_or_default().chunks_exact(frame_bytes as usize) {
            let Some((frame_header, page)) = frame.split_first_chunk::<FRAME_HEADER_BYTES>() else { break };
            let decoded = FrameHeader::decode(frame_header);
            end = verify(header, &end, frame_header, &decoded, page)?;
            on_frame(end.frame, &decoded, page)?;
        }
        if read < chunk.len() {
            return Err(WalError::Truncated { frame: end.frame + 1 });
        }
    }
    Ok(end)
}

/// Whether a place is in this log: the frame has the same salts and checksum words stored in its header. The frame's content is not read.
///
/// For frame 0 the log's header is compared.
///
/// # Errors
/// `Io`.
pub fn verify_at(file: &dyn ReadAt, header: &Header, pos: &WalPos) -> Result<bool, WalError> {
    if pos.salts != header.salts {
        return Ok(false);
    }
    let stored = frame_header(file, header, pos.frame)?;
    Ok(match stored {
        _ if pos.frame == 0 => *pos == header.start(),
        Some(frame) => frame.salts == pos.salts && frame.checksum == pos.checksum,
        None => false,
    })
}

/// What [`scan`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The end of the last valid frame that ends a transaction; where the scan began if there is none after it.
    pub last_commit: WalPos,
    /// The size of the database in pages after that frame; 0 where the scan began at frame 0, or within a transaction, and found none.
    pub commit_pages: u32,
    /// How many valid frames follow it: the beginning of a transaction that was not completed.
    pub frames_beyond: u32,
}

/// Follows the frames after `from` as far as they are valid, as SQLite does when it recovers a log, and finds the last commit.
///
/// # Errors
/// `SaltMismatch` where `from` is of another log, `Io`. Frames that are not valid end the log and are no error.
pub fn scan(file: &dyn ReadAt, header: &Header, from: &WalPos) -> Result<Scan, WalError> {
    scan_to(file, header, from, u32::MAX)
}

/// As [`scan`], but no further than the frame number `to_frame`.
///
/// # Errors
/// As [`scan`].
pub fn scan_to(file: &dyn ReadAt, header: &Header, from: &WalPos, to_frame: u32) -> Result<Scan, WalError> {
    check_salts(header, from.frame, from.salts)?;
    let commit_pages = frame_header(file, header, from.frame)?.map_or(0, |frame| frame.commit_pages);
    let mut found = Scan { last_commit: *from, commit_pages, frames_beyond: 0 };
    let outcome = read_frames(file, header, from, to_frame, &mut |frame, decoded, _| {
        if decoded.is_commit() {
            found.last_commit = WalPos { salts: header.salts, frame, checksum: decoded.checksum };
            found.commit_pages = decoded.commit_pages;
        }
        found.frames_beyond = frame - found.last_commit.frame;
        Ok(())
    });
    match outcome {
        Err(error @ WalError::Io(_)) => Err(error),
        _ => Ok(found),
    }
}

/// The header of a frame as it is stored, not verified; `None` for frame 0 and where the log is too short for the whole header.
///
/// # Errors
/// `Io`.
pub fn frame_header(file: &dyn ReadAt, header: &Header, frame: u32) -> Result<Option<FrameHeader>, WalError> {
    let Some(index) = frame.checked_sub(1) else { return Ok(None) };
    let mut bytes = [0; FRAME_HEADER_BYTES];
    let read = read_fully(file, &mut bytes, frame_offset(header.page_size, index))?;
    Ok((read == bytes.len()).then(|| FrameHeader::decode(&bytes)))
}

fn verify(
    header: &Header,
    before: &WalPos,
    frame_header: &[u8; FRAME_HEADER_BYTES],
    decoded: &FrameHeader,
    page: &[u8],
) -> Result<WalPos, WalError> {
    let frame = before.frame + 1;
    check_salts(header, frame, decoded.salts)?;
    if decoded.pgno == 0 {
        return Err(WalError::PageZero { frame });
    }
    // The salts are left out, and of course the checksum itself.
    let summed = frame_header.first_chunk::<8>().map_or([].as_slice(), |start| start);
    let big_endian = header.big_endian_checksum;
    let sum = checksum(big_endian, checksum(big_endian, before.checksum, summed), page);
    if sum != decoded.checksum {
        return Err(WalError::ChecksumMismatch { frame });
    }
    Ok(WalPos { salts: header.salts, frame, checksum: sum })
}

fn check_salts(header: &Header, frame: u32, found: [u32; 2]) -> Result<(), WalError> {
    if found == header.salts { Ok(()) } else { Err(WalError::SaltMismatch { frame, expected: header.salts, found }) }
}

/// Fills `buf` as far as the file goes.
fn read_fully(file: &dyn ReadAt, buf: &mut [u8], offset: u64) -> Result<usize, WalError> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done.min(buf.len()))
}

const _: () = assert!(WAL_HEADER_BYTES.is_multiple_of(8) && FRAME_HEADER_BYTES.is_multiple_of(8));
