//! From the objects of a generation to a database file.

use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use lz4_flex::frame::FrameDecoder;

use super::{GenerationError, GenerationPlan, GenerationReport, output_error};
use crate::restore::error::RestoreError;
use crate::restore::fetch::{CHUNK_BYTES, Retries};
use crate::restore::output::Draft;
use crate::restore::{MAX_PARALLELISM, RestoreOptions};
use crate::store::{GenerationFile, GenerationPart, Store, StoreError};
use crate::types::{PageNo, PageSize};
use crate::wal::{self, WAL_HEADER_BYTES};

const BUFFER_BYTES: usize = 256 << 10;
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// Nothing that SQLite makes has more pages: what would is no database.
const MOST_DATABASE_BYTES: u64 = 1 << 48;

pub(super) async fn run(
    store: &dyn Store,
    plan: GenerationPlan,
    options: &RestoreOptions<'_>,
    draft: &Draft,
    target: &Path,
) -> Result<GenerationReport, RestoreError> {
    // What is fetched, and the log that is put together: without names, so that nothing is left of them.
    let (compressed, log) = (Scratch::create(target)?, Scratch::create(target)?);
    let memory = usize::try_from(options.max_memory_bytes / CHUNK_BYTES).unwrap_or(MAX_PARALLELISM);
    let parallelism = options.parallelism.min(memory).clamp(1, MAX_PARALLELISM);
    let mut database = Database { store, target, draft, page_size: None, size_pages: 0, log, log_bytes: 0, place: (0, 0), last: None };
    draft.resize(0, false)?;
    let mut chunks = std::pin::pin!(chunks(store, plan.files().cloned().collect(), parallelism));
    while let Some(chunk) = chunks.next().await {
        let (file, range, body) = chunk?;
        compressed.write(&body, range.start)?;
        if let Some(progress) = options.progress {
            progress.applied(body.len() as u64);
        }
        if range.end == file.size_bytes {
            database.take(&file, &compressed)?;
        }
    }
    database.end_log()?;
    let (index, offset) = database.place;
    let (Some(page_size), size_pages) = (database.page_size, database.size_pages) else {
        return Err(database.damaged(&plan.snapshot, "it holds no database"));
    };
    let size_bytes = u64::from(size_pages) * u64::from(page_size.get());
    draft.file().set_len(size_bytes).map_err(|source| draft.failed("resize", source))?;
    Ok(GenerationReport { plan, index, offset, page_size, size_pages })
}

/// The objects in parts, in order.
fn chunks<'a>(
    store: &'a dyn Store,
    files: Vec<GenerationFile>,
    parallelism: usize,
) -> impl Stream<Item = Result<(GenerationFile, Range<u64>, Bytes), StoreError>> + 'a {
    let ranges = files.into_iter().flat_map(|file| {
        // An empty object is one part as well.
        let count = file.size_bytes.div_ceil(CHUNK_BYTES).max(1);
        (0..count).map(move |i| (file.clone(), i * CHUNK_BYTES..file.size_bytes.min((i + 1) * CHUNK_BYTES)))
    });
    stream::iter(ranges)
        .map(move |(file, range)| async move {
            let mut body = Vec::new();
            let mut retries = Retries::new();
            while let Err(error) = store.read_generation(&file, range.start + body.len() as u64..range.end, &mut body).await {
                retries.pause(error).await?;
            }
            Ok((file, range, body.into()))
        })
        .buffered(parallelism)
}

struct Database<'a> {
    store: &'a dyn Store,
    target: &'a Path,
    draft: &'a Draft,
    page_size: Option<PageSize>,
    size_pages: u32,
    /// The log whose segments arrive.
    log: Scratch,
    log_bytes: u64,
    /// Which log that is, and where in it the last commit ends.
    place: (u64, u64),
    last: Option<GenerationFile>,
}

impl Database<'_> {
    fn take(&mut self, file: &GenerationFile, compressed: &Scratch) -> Result<(), RestoreError> {
        match file.part {
            GenerationPart::Snapshot { index } => {
                let length = self.decompress(file, compressed, None)?;
                self.place = (index, 0);
                self.begin(file, length)?;
            }
            GenerationPart::Wal { index, offset } => {
                if index != self.place.0 {
                    self.end_log()?;
                    (self.place, self.log_bytes) = ((index, 0), 0);
                }
                if offset != self.log_bytes {
                    let before = self.last.as_ref().map_or_else(String::new, ToString::to_string);
                    return Err(self.failed(GenerationError::Gap { before, after: file.to_string() }));
                }
                self.log_bytes += self.decompress(file, compressed, Some(offset))?;
            }
        }
        self.last = Some(file.clone());
        Ok(())
    }

    /// Puts what an object holds into the database, or into the log at a place; the answer is its length.
    fn decompress(&self, file: &GenerationFile, compressed: &Scratch, at: Option<u64>) -> Result<u64, RestoreError> {
        // The decoder takes an end between two blocks for the end.
        if !compressed.is_whole_frame(file.size_bytes)? {
            return Err(self.damaged(file, "it is no LZ4 frame, or not a whole one"));
        }
        let mut decoder = FrameDecoder::new(BufReader::with_capacity(BUFFER_BYTES, compressed.reader(file.size_bytes)));
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut length = 0_u64;
        loop {
            let read = decoder.read(&mut buffer).map_err(|error| self.damaged(file, &error.to_string()))?;
            let Some(data) = buffer.get(..read).filter(|data| !data.is_empty()) else { break };
            match at {
                Some(at) => self.log.write(data, at + length)?,
                None => self.draft.file().write_all_at(data, length).map_err(|source| self.draft.failed("write", source))?,
            }
            length += read as u64;
            if length > MOST_DATABASE_BYTES {
                return Err(self.damaged(file, "it holds more than a database can"));
            }
        }
        if length == 0 { Err(self.damaged(file, "it holds nothing")) } else { Ok(length) }
    }

    /// Looks at the snapshot.
    fn begin(&mut self, file: &GenerationFile, length: u64) -> Result<(), RestoreError> {
        let mut header = [0; 100];
        let is_read = self.draft.file().read_exact_at(&mut header, 0).is_ok();
        let bytes = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65536,
            bytes => u32::from(bytes),
        };
        let page_size = PageSize::new(bytes).filter(|_| is_read && header.starts_with(b"SQLite format 3\0"));
        let Some(page_size) = page_size else { return Err(self.damaged(file, "it holds no SQLite database")) };
        let page_bytes = u64::from(page_size.get());
        match u32::try_from(length / page_bytes) {
            Ok(pages) if length.is_multiple_of(page_bytes) => (self.page_size, self.size_pages) = (Some(page_size), pages),
            _ => return Err(self.damaged(file, &format!("it holds {length} bytes, which are no whole pages of {page_size}"))),
        }
        Ok(())
    }

    /// Writes what a log has committed.
    fn end_log(&mut self) -> Result<(), RestoreError> {
        let (Some(last), length) = (self.last.clone(), self.log_bytes) else { return Ok(()) };
        if length == 0 {
            return Ok(());
        }
        let mut bytes = [0; WAL_HEADER_BYTES];
        self.log.read(&mut bytes, length)?;
        let header = wal::Header::decode(&bytes).map_err(|error| self.damaged(&last, &format!("its log: {error}")))?;
        if self.page_size.is_some_and(|page_size| page_size != header.page_size) {
            return Err(self.damaged(&last, &format!("its log has pages of {} bytes, the database has others", header.page_size)));
        }
        let frame_bytes = wal::frame_offset(header.page_size, 1) - wal::frame_offset(header.page_size, 0);
        let frames = length.saturating_sub(WAL_HEADER_BYTES as u64) / frame_bytes;
        let frames = u32::try_from(frames).map_err(|_| self.damaged(&last, "its log is too long"))?;
        let bad = |error: wal::WalError| self.damaged(&last, &format!("its log: {error}"));
        // First where it ends: a transaction that was not completed is not written, and a frame that is not right is an error.
        let mut end = (0, 0);
        wal::read_frames(&*self.log.0, &header, &header.start(), frames, &mut |frame, decoded, _| {
            if decoded.is_commit() {
                end = (frame, decoded.commit_pages);
            }
            Ok(())
        })
        .map_err(bad)?;
        let (end, size_pages) = end;
        let file = self.draft.file();
        wal::read_frames(&*self.log.0, &header, &header.start(), end, &mut |_, decoded, page| {
            // A frame of page 0 is not valid and never comes here.
            PageNo::new(decoded.pgno).map_or(Ok(()), |pgno| Ok(file.write_all_at(page, header.page_size.offset_of(pgno))?))
        })
        .map_err(|error| match error {
            wal::WalError::Io(source) => self.draft.failed("write", source),
            error => self.damaged(&last, &format!("its log: {error}")),
        })?;
        if end > 0 {
            self.size_pages = size_pages;
            // What a later log makes longer again must not come back from here.
            let size_bytes = u64::from(size_pages) * u64::from(header.page_size.get());
            file.set_len(size_bytes).map_err(|source| self.draft.failed("resize", source))?;
        }
        self.place.1 = wal::end_offset(header.page_size, end);
        self.log_bytes = 0;
        self.log.0.set_len(0).map_err(|source| output_error("empty", self.target, source))
    }

    fn damaged(&self, file: &GenerationFile, why: &str) -> RestoreError {
        self.failed(GenerationError::Damaged { object: file.to_string(), why: why.to_owned() })
    }

    fn failed(&self, source: GenerationError) -> RestoreError {
        RestoreError::Generation { url: self.store.url().to_owned(), source }
    }
}

/// A file beside the output that has no name.
struct Scratch(std::sync::Arc<std::fs::File>, std::path::PathBuf);

impl Scratch {
    fn create(target: &Path) -> Result<Self, RestoreError> {
        let mut path = target.as_os_str().to_owned();
        path.push(format!(".replicated-tmp-{}-{:08x}", std::process::id(), fastrand::u32(..)));
        let path = std::path::PathBuf::from(path);
        let opened = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = opened.map_err(|source| output_error("create", &path, source))?;
        std::fs::remove_file(&path).map_err(|source| output_error("unlink", &path, source))?;
        Ok(Self(file.into(), path))
    }

    fn write(&self, data: &[u8], at: u64) -> Result<(), RestoreError> {
        self.0.write_all_at(data, at).map_err(|source| output_error("write", &self.1, source))
    }

    fn read(&self, data: &mut [u8], length: u64) -> Result<(), RestoreError> {
        // What is too short is left as zeroes, which are no header.
        if length < data.len() as u64 {
            return Ok(());
        }
        self.0.read_exact_at(data, 0).map_err(|source| output_error("read", &self.1, source))
    }

    /// Whether it is one LZ4 frame from its magic number to what follows its end mark, and nothing else.
    fn is_whole_frame(&self, length: u64) -> Result<bool, RestoreError> {
        const CONTENT_SIZE: u8 = 0x08;
        const CONTENT_CHECKSUM: u8 = 0x04;
        const BLOCK_CHECKSUMS: u8 = 0x10;
        let mut head = [0; 7];
        if length < head.len() as u64 {
            return Ok(false);
        }
        self.read(&mut head, length)?;
        let flags = head[4];
        let size_of = |flag: u8, bytes: u64| if flags & flag == 0 { 0 } else { bytes };
        let mut at = head.len() as u64 + size_of(CONTENT_SIZE, 8);
        while at.checked_add(4).is_some_and(|end| end <= length) {
            let mut word = [0; 4];
            self.0.read_exact_at(&mut word, at).map_err(|source| output_error("read", &self.1, source))?;
            let word = u32::from_le_bytes(word);
            at += 4;
            if word == 0 {
                return Ok(head.starts_with(&LZ4_MAGIC) && at + size_of(CONTENT_CHECKSUM, 4) == length);
            }
            // The highest bit says that it is not compressed.
            at += u64::from(word & !(1 << 31)) + size_of(BLOCK_CHECKSUMS, 4);
        }
        Ok(false)
    }

    fn reader(&self, length: u64) -> impl Read + use<> {
        Reading { file: std::sync::Arc::clone(&self.0), at: 0, length }
    }
}

struct Reading {
    file: std::sync::Arc<std::fs::File>,
    at: u64,
    length: u64,
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.length - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
