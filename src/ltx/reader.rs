//! Reads one LTX file from anything that can be read.

use std::io::Read;

use super::{Decoder, Header, LtxError, Summary};
use crate::types::PageNo;

/// How many bytes are read at once unless the caller chooses.
const CHUNK_BYTES: usize = 32 * 1024;

/// Pulls the pages of one LTX file out of an [`std::io::Read`].
///
/// What is kept is one chunk of 32 KiB, one page frame and one page. The chunk is allocated at the first read and given back at the end.
#[derive(Debug)]
pub struct Reader<R: Read> {
    input: R,
    decoder: Decoder,
    chunk_bytes: usize,
    chunk: Vec<u8>,
    start: usize,
    end: usize,
    summary: Option<Summary>,
}

impl<R: Read> Reader<R> {
    /// A reader at the start of a file. Nothing is read yet.
    pub fn new(input: R) -> Self {
        Self::with_chunk_bytes(input, CHUNK_BYTES)
    }

    /// As [`Reader::new`], reading so many bytes at once: for many inputs less, for slow ones more.
    pub fn with_chunk_bytes(input: R, chunk_bytes: usize) -> Self {
        let chunk_bytes = chunk_bytes.max(1);
        Self { input, decoder: Decoder::new(), chunk_bytes, chunk: Vec::new(), start: 0, end: 0, summary: None }
    }

    /// The header, where it has been read: at the latest after the first [`Reader::next_page`].
    #[must_use]
    pub const fn header(&self) -> Option<&Header> {
        self.decoder.header()
    }

    /// Reads the header where it has not been read yet.
    ///
    /// # Errors
    /// What is wrong with it, or `Io`.
    pub fn read_header(&mut self) -> Result<Header, LtxError> {
        // The header ends before the first page starts, so feeding it alone completes no page.
        while self.decoder.header().is_none() {
            if self.start == self.end && self.fill()? == 0 {
                return Err(self.decoder.summary().err().unwrap_or(LtxError::Failed));
            }
            let mut one = self.chunk.get(self.start..self.end.min(self.start + 1)).unwrap_or_default();
            self.decoder.advance(&mut one)?;
            self.start += 1;
        }
        self.decoder.header().copied().ok_or(LtxError::Failed)
    }

    /// Puts the next page into `buf`, whose former content is gone, and returns its number; `None` at the end of the file, which has then
    /// been verified completely. Until then no page may be relied on.
    ///
    /// # Errors
    /// What is wrong with the file, or `Io`. Nothing can be read after an error.
    pub fn next_page(&mut self, buf: &mut Vec<u8>) -> Result<Option<PageNo>, LtxError> {
        if self.summary.is_some() {
            return Ok(None);
        }
        loop {
            let chunk = self.chunk.get(self.start..self.end).unwrap_or_default();
            let mut rest = chunk;
            let page = self.decoder.advance(&mut rest)?;
            self.start = self.end - rest.len();
            if page.is_some() {
                self.decoder.swap_page(buf);
                return Ok(page);
            }
            if self.fill()? == 0 {
                self.chunk = Vec::new();
                self.summary = Some(self.decoder.summary()?);
                return Ok(None);
            }
        }
    }

    /// What the file was, once [`Reader::next_page`] has returned `None`.
    #[must_use]
    pub const fn summary(&self) -> Option<&Summary> {
        self.summary.as_ref()
    }

    /// The input, read as far as it was needed.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Reads the next chunk; 0 at the end.
    fn fill(&mut self) -> Result<usize, LtxError> {
        if self.chunk.is_empty() {
            self.chunk = vec![0; self.chunk_bytes];
        }
        loop {
            match self.input.read(&mut self.chunk) {
                Ok(bytes) => {
                    (self.start, self.end) = (0, bytes.min(self.chunk.len()));
                    return Ok(bytes);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
