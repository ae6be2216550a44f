//! What can be wrong with an LTX file, or with what is to become one.

use crate::types::PageSize;

/// Why an LTX file could not be read or written. `offset` is in bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LtxError {
    /// The file ends too early.
    #[error("the LTX file is cut short: it ends at byte {offset}, in the {part}")]
    Truncated {
        /// The file's length.
        offset: u64,
        /// The part that it ends in.
        part: &'static str,
    },
    /// The file does not begin with `LTX1`.
    #[error("not an LTX file: it begins with the bytes {found:02x?}")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A field of the file's header breaks a rule of the format.
    #[error("the LTX header's {field} is {value:#x}: {rule}")]
    Header {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The rule.
        rule: &'static str,
    },
    /// A page frame has flags that the format does not define.
    #[error("the header of page {page} at byte {offset} has the unknown flags {flags:#06x}")]
    PageFlags {
        /// Where the page frame starts.
        offset: u64,
        /// The page number that it gives.
        page: u32,
        /// The flags.
        flags: u16,
    },
    /// Pages are not in ascending order, or (when writing a snapshot) one was left out.
    #[error("page {page} at byte {offset} is out of order: expected {} page {expected}", if *.exact { "exactly" } else { "at least" })]
    PageOrder {
        /// Where the page frame starts.
        offset: u64,
        /// The page.
        page: u32,
        /// The lowest page number allowed here.
        expected: u32,
        /// Whether it is the only one allowed.
        exact: bool,
    },
    /// The page that SQLite keeps for its locks has no content and may not be in a file.
    #[error("page {page} at byte {offset} is the lock page, which no LTX file may hold")]
    LockPage {
        /// Where the page frame starts.
        offset: u64,
        /// The page.
        page: u32,
    },
    /// A compressed page is larger than any page of that size can be.
    #[error("page {page} at byte {offset} claims {size} compressed bytes, more than the {limit} that a page can need")]
    PayloadSize {
        /// Where the page frame starts.
        offset: u64,
        /// The page.
        page: u32,
        /// The size claimed, in bytes.
        size: u64,
        /// The largest size possible, in bytes.
        limit: u64,
    },
    /// A compressed page cannot be decompressed to exactly one page.
    #[error("page {page} at byte {offset} cannot be decompressed: {reason}")]
    Compression {
        /// Where the page frame starts.
        offset: u64,
        /// The page.
        page: u32,
        /// What is wrong with it.
        reason: String,
    },
    /// The bytes given for one page frame hold something else, or more than one.
    #[error("not exactly one page frame: {reason}")]
    NotOneFrame {
        /// What is wrong.
        reason: &'static str,
    },
    /// The page index cannot be right.
    #[error("the page index is wrong at its byte {offset}: {reason}")]
    Index {
        /// Bytes from the start of the index (from the start of the given bytes where the index was not found).
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The file's content is not what its checksum was computed over.
    #[error("file checksum mismatch: the file says {stored:016x}, its content gives {computed:016x}")]
    FileChecksum {
        /// The checksum in the trailer.
        stored: u64,
        /// The checksum of the content.
        computed: u64,
    },
    /// The checksum of the database after the file breaks a rule of the format, or is not that of the pages.
    #[error("post-apply checksum {stored:016x}: {rule}")]
    PostApplyChecksum {
        /// The checksum in the trailer.
        stored: u64,
        /// The rule.
        rule: &'static str,
    },
    /// Files of different page sizes cannot be merged.
    #[error("page size mismatch: expected {expected} bytes, input {input} has {found}")]
    PageSizeMismatch {
        /// Which of the inputs, from 0.
        input: usize,
        /// The page size of the output, in bytes.
        expected: PageSize,
        /// The page size of the input, in bytes.
        found: PageSize,
    },
    /// A page to be written does not have the length that the header gives.
    #[error("page {page} has {found} bytes instead of {expected}")]
    PageLength {
        /// The page.
        page: u32,
        /// The page size in bytes.
        expected: usize,
        /// The length given, in bytes.
        found: usize,
    },
    /// A page to be written is behind the end of the database.
    #[error("page {page} is behind the end of the database, which has {commit_pages} pages")]
    BeyondCommit {
        /// The page.
        page: u32,
        /// The size of the database in pages.
        commit_pages: u32,
    },
    /// A snapshot was finished before its last page.
    #[error("the snapshot ends before page {page} of {commit_pages}")]
    MissingPages {
        /// The first page that is missing.
        page: u32,
        /// The size of the database in pages.
        commit_pages: u32,
    },
    /// The page index would not fit in memory.
    #[error("no memory for the page index of {bytes} bytes")]
    OutOfMemory {
        /// The size of the index so far, in bytes.
        bytes: usize,
    },
    /// An earlier call failed; nothing more can be read or written.
    #[error("an earlier error has ended this LTX file")]
    Failed,
    /// Reading or writing failed, or the receiver of the pages did.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
