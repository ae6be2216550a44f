//! From WAL frames to an LTX file: the last version of each page of a frame range, ascending.
//!
//! Two passes, so that memory depends on the number of pages and not on their size: the first verifies the checksum chain and notes the
//! newest frame of each page, the second reads just those frames. Of frames that this process has written itself the first is not needed: see
//! `frames`.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::frames::FrameLog;
use crate::ltx::{Encoder, Finished, Header, LtxError};
use crate::types::{PageNo, PageSize, WalPos};
use crate::wal::{self, WAL_HEADER_BYTES, WalError};

/// Why a batch cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    /// The WAL cannot be opened or read.
    #[error("WAL {path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The WAL does not hold what it should.
    #[error("WAL {path}: {source}")]
    Wal {
        path: PathBuf,
        #[source]
        source: WalError,
    },
    /// The WAL has been restarted or replaced.
    #[error("WAL {path}: has salts {found:?}, not {expected:?}")]
    OtherGeneration { path: PathBuf, found: [u32; 2], expected: [u32; 2] },
    /// The range does not end with a commit.
    #[error("WAL {path}: frame {frame} is not the end of a transaction")]
    NotACommit { path: PathBuf, frame: u32 },
    /// A frame is another than was noted when it was written.
    #[error("WAL {path}: frame {frame} does not hold page {page} as it should")]
    OtherFrame { path: PathBuf, frame: u32, page: u32 },
    /// The pages could not be encoded.
    #[error("encoding the batch: {0}")]
    Ltx(#[from] LtxError),
}

impl BatchError {
    /// What should be in the WAL is not there any more.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Wal { .. } | Self::OtherGeneration { .. } | Self::OtherFrame { .. } => true,
            Self::Io { source, .. } => matches!(source.kind(), ErrorKind::UnexpectedEof | ErrorKind::NotFound),
            Self::NotACommit { .. } | Self::Ltx(_) => false,
        }
    }
}

/// The WAL, by a descriptor of our own: it carries no locks, so that opening and closing it harms nobody.
#[derive(Debug)]
pub(crate) struct WalFile {
    path: PathBuf,
    file: File,
    inode: u64,
}

impl WalFile {
    pub(crate) fn open(path: &Path) -> Result<Self, BatchError> {
        let io = |source| BatchError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let inode = file.metadata().map_err(io)?.ino();
        Ok(Self { path: path.to_owned(), file, inode })
    }

    /// Whether the path still names this file.
    pub(crate) fn is_current(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|m| m.ino() == self.inode)
    }

    pub(crate) fn header(&self) -> Result<wal::Header, BatchError> {
        let mut bytes = [0; WAL_HEADER_BYTES];
        self.file.read_exact_at(&mut bytes, 0).map_err(|source| BatchError::Io { path: self.path.clone(), source })?;
        wal::Header::decode(&bytes).map_err(|e| self.error(e))
    }

    /// Whether the frame before that place is the one that it was.
    pub(crate) fn holds(&self, pos: &WalPos) -> bool {
        self.header().is_ok_and(|h| h.salts == pos.salts && (pos.frame == 0 || wal::verify_at(&self.file, &h, pos).unwrap_or(false)))
    }

    /// Whether there are commits behind a place.
    pub(crate) fn goes_on_after(&self, end: &WalPos) -> bool {
        self.last_commit_after(end, u64::MAX).is_ok_and(|found| found.is_some())
    }

    /// What a WAL-index would say of the last transaction behind a place (or of all, where that is of another generation), as SQLite's recovery
    /// would find it.
    ///
    /// Looks at the first `to_bytes` of the file.
    pub(crate) fn last_commit_after(&self, from: &WalPos, to_bytes: u64) -> Result<Option<wal::IndexHeader>, BatchError> {
        let header = self.header()?;
        let start = if header.salts == from.salts && from.frame > 0 { *from } else { header.start() };
        let frame_bytes = u64::from(header.page_size.get()) + wal::FRAME_HEADER_BYTES as u64;
        let frames = to_bytes.saturating_sub(WAL_HEADER_BYTES as u64) / frame_bytes;
        let scan = wal::scan_to(&self.file, &header, &start, u32::try_from(frames).unwrap_or(u32::MAX)).map_err(|e| self.error(e))?;
        Ok((scan.last_commit.frame > start.frame).then_some(wal::IndexHeader {
            page_size: Some(header.page_size),
            max_frame: scan.last_commit.frame,
            db_pages: scan.commit_pages,
            frame_checksum: scan.last_commit.checksum,
            salts: header.salts,
            change_counter: 0,
            is_init: true,
            big_endian_checksum: header.big_endian_checksum,
        }))
    }

    /// Notes the newest frame of each page after `start` up to `to_frame`, which must end a transaction.
    pub(crate) fn pages(&self, start: &WalPos, to_frame: u32) -> Result<FramePages, BatchError> {
        let header = self.header()?;
        if header.salts != start.salts {
            return Err(BatchError::OtherGeneration { path: self.path.clone(), found: header.salts, expected: start.salts });
        }
        let from = if start.frame == 0 { header.start() } else { *start };
        let mut newest: Vec<(u32, u32)> = Vec::new();
        let mut commit_pages = 0;
        let end = wal::read_frames(&self.file, &header, &from, to_frame, &mut |number, frame, _page| {
            newest.push((frame.pgno, number));
            commit_pages = frame.commit_pages;
            Ok(())
        })
        .map_err(|e| self.error(e))?;
        if end.frame != from.frame && commit_pages == 0 {
            return Err(BatchError::NotACommit { path: self.path.clone(), frame: end.frame });
        }
        // Newest first within a page, so that the deduplication keeps it.
        newest.sort_unstable_by_key(|&(page, frame)| (page, std::cmp::Reverse(frame)));
        newest.dedup_by_key(|&mut (page, _)| page);
        newest.shrink_to_fit();
        Ok(FramePages { page_size: header.page_size, commit_pages, end, newest })
    }

    /// As `pages`, up to the commit that `to` is the end of. The frames are not read where it was noted what they hold.
    pub(crate) fn committed_pages(&self, log: &FrameLog, after: &WalPos, to: &WalPos) -> Result<FramePages, BatchError> {
        if let Some(newest) = log.newest(after, to)
            && let Some(pages) = self.noted_pages(to, newest)?
        {
            return Ok(pages);
        }
        log.forget();
        self.pages(after, to.frame)
    }

    /// `None` where the WAL does not have that commit.
    fn noted_pages(&self, end: &WalPos, newest: Vec<(u32, u32)>) -> Result<Option<FramePages>, BatchError> {
        let header = self.header()?;
        let last = wal::frame_header(&self.file, &header, end.frame).map_err(|e| self.error(e))?;
        let is_last = |last: &wal::FrameHeader| last.salts == end.salts && last.checksum == end.checksum && last.is_commit();
        let Some(last) = last.filter(|last| header.salts == end.salts && is_last(last)) else { return Ok(None) };
        Ok(Some(FramePages { page_size: header.page_size, commit_pages: last.commit_pages, end: *end, newest }))
    }

    /// Reads the page of a frame that `pages` has verified.
    pub(crate) fn read_page(&self, page_size: PageSize, frame: u32, page: &mut [u8]) -> Result<(), BatchError> {
        let offset = wal::frame_offset(page_size, frame - 1) + wal::FRAME_HEADER_BYTES as u64;
        self.file.read_exact_at(page, offset).map_err(|source| BatchError::Io { path: self.path.clone(), source })
    }

    /// A frame's place (with its checksum as stored), page number and page.
    pub(crate) fn frame(&self, page_size: PageSize, frame: u32) -> Result<(WalPos, PageNo, Vec<u8>), BatchError> {
        let io = |source| BatchError::Io { path: self.path.clone(), source };
        let mut header = [0; wal::FRAME_HEADER_BYTES];
        self.file.read_exact_at(&mut header, wal::frame_offset(page_size, frame.saturating_sub(1))).map_err(io)?;
        let header = wal::FrameHeader::decode(&header);
        let page = PageNo::new(header.pgno).ok_or_else(|| io(std::io::ErrorKind::InvalidData.into()))?;
        let mut content = vec![0; page_size.bytes()];
        self.read_page(page_size, frame, &mut content)?;
        Ok((WalPos { salts: header.salts, frame, checksum: header.checksum }, page, content))
    }

    /// Encodes the pages of a range. `header`'s WAL range must be set by the caller.
    pub(crate) fn encode<W: Write>(&self, pages: &FramePages, header: &Header, out: W) -> Result<Finished<W>, BatchError> {
        let mut encoder = Encoder::new(out, header)?;
        let mut bytes = vec![0; wal::FRAME_HEADER_BYTES + pages.page_size.bytes()];
        for &(number, frame) in &pages.newest {
            let Some(number) = PageNo::new(number) else { continue };
            // A page past the end was cut off by a later commit of the range.
            if number.get() > header.commit_pages || number == pages.page_size.lock_page() {
                continue;
            }
            let offset = wal::frame_offset(pages.page_size, frame.saturating_sub(1));
            self.file.read_exact_at(&mut bytes, offset).map_err(|source| BatchError::Io { path: self.path.clone(), source })?;
            match bytes.split_first_chunk() {
                Some((start, page)) if wal::FrameHeader::decode(start).is_of(number, pages.end.salts) => encoder.page(number, page)?,
                _ => return Err(BatchError::OtherFrame { path: self.path.clone(), frame, page: number.get() }),
            }
        }
        Ok(encoder.finish()?)
    }

    fn error(&self, source: WalError) -> BatchError {
        BatchError::Wal { path: self.path.clone(), source }
    }
}

/// The newest frame of each page of a range.
#[derive(Debug)]
pub(crate) struct FramePages {
    pub(crate) page_size: PageSize,
    /// The database's size in pages after the last commit.
    pub(crate) commit_pages: u32,
    pub(crate) end: WalPos,
    /// (page, frame), ascending by page.
    newest: Vec<(u32, u32)>,
}

impl FramePages {
    /// Nothing at all: a snapshot of a database whose WAL is empty.
    pub(crate) const fn none(page_size: PageSize, commit_pages: u32, at: WalPos) -> Self {
        Self { page_size, commit_pages, end: at, newest: Vec::new() }
    }

    /// What the pages take uncompressed.
    pub(crate) fn content_bytes(&self) -> u64 {
        self.newest.len() as u64 * u64::from(self.page_size.get())
    }

    /// The newest frame of a page.
    pub(crate) fn frame_of(&self, page: u32) -> Option<u32> {
        self.newest.binary_search_by_key(&page, |&(number, _)| number).ok().and_then(|i| self.newest.get(i)).map(|&(_, frame)| frame)
    }

    /// All (page, frame) from a page on.
    pub(crate) fn after(&self, page: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let from = self.newest.partition_point(|&(number, _)| number <= page);
        self.newest.iter().skip(from).copied()
    }
}
