//! Makes one LTX file of several.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};

use super::{Encoder, Finished, Header, LtxError, Reader};
use crate::types::PageNo;

/// Merges files into one that has the effect of applying them in order: the newest version of each page, without the pages behind the
/// end of the database that `header` gives.
///
/// `inputs` are ordered from the oldest to the newest; whether their TXIDs are contiguous is for the caller to see to. All are read to
/// their end and verified, so where this fails `out` is not an LTX file and must not be kept. What is kept is one [`Reader`] and one page
/// an input, and the index of the output.
///
/// # Errors
/// What is wrong with an input, `PageSizeMismatch`, `Io`, and `PageOrder` or `MissingPages` where the output is a snapshot and no
/// input has one of its pages.
pub fn merge<R: Read, W: Write>(inputs: Vec<Reader<R>>, header: &Header, out: W) -> Result<Finished<W>, LtxError> {
    let mut inputs: Vec<Input<R>> = inputs.into_iter().map(|reader| Input { reader, page: Vec::new() }).collect();
    // The lowest page first; of one page, the newest version first.
    let mut heads = BinaryHeap::with_capacity(inputs.len());
    for (age, input) in inputs.iter_mut().enumerate() {
        let found = input.reader.read_header()?.page_size;
        if found != header.page_size {
            return Err(LtxError::PageSizeMismatch { input: age, expected: header.page_size, found });
        }
        if let Some(pgno) = input.next()? {
            heads.push((Reverse(pgno), age));
        }
    }
    let mut encoder = Encoder::new(out, header)?;
    let mut last: Option<PageNo> = None;
    while let Some((Reverse(pgno), age)) = heads.pop() {
        let Some(input) = inputs.get_mut(age) else { continue };
        if last != Some(pgno) && pgno.get() <= header.commit_pages {
            encoder.page(pgno, &input.page)?;
        }
        last = Some(pgno);
        if let Some(next) = input.next()? {
            heads.push((Reverse(next), age));
        }
    }
    encoder.finish()
}

struct Input<R: Read> {
    reader: Reader<R>,
    page: Vec<u8>,
}

impl<R: Read> Input<R> {
    fn next(&mut self) -> Result<Option<PageNo>, LtxError> {
        self.reader.next_page(&mut self.page)
    }
}
