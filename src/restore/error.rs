//! Why a restore failed: which object, which TXID, how far the bucket is good, what to do.

use std::io;
use std::path::PathBuf;

use super::generations::GenerationError;
use super::plan::{PlanError, Target, last_good_words};
use crate::ltx::LtxError;
use crate::store::{LtxName, StoreError, StoreErrorKind};
use crate::types::{PageNo, PageSize, Txid};

/// Why a restore failed. Whatever it is, no output file was made or replaced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The state that was asked for is not in the bucket.
    #[error("{url}: {source}")]
    Plan {
        /// The bucket.
        url: String,
        /// What was asked for.
        target: Target,
        /// Why not.
        source: PlanError,
    },
    /// The bucket holds a replica of Litestream 0.3 and nothing newer, which has no TXIDs: see `generations::restore_generation`.
    #[error("{url}: this is a bucket of Litestream 0.3: it has generations and no LTX files")]
    Generations {
        /// The bucket.
        url: String,
    },
    /// What Litestream 0.3 has left there cannot be restored.
    #[error("{url}: {source}")]
    Generation {
        /// The bucket.
        url: String,
        /// Why not.
        source: GenerationError,
    },
    /// The caller's check of a database restored from there refused it.
    #[error("the database restored from {url} was refused: {why}")]
    RefusedGeneration {
        /// The bucket.
        url: String,
        /// What the check said.
        why: String,
    },
    /// The store failed, retries included.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is not what its name, its checksum or the other files say.
    #[error("{object} in {url}: {damage}; {}", last_good_words(*.last_good))]
    Damaged {
        /// The bucket.
        url: String,
        /// The object.
        object: LtxName,
        /// What is wrong with it.
        damage: Damage,
        /// The last TXID that the other files lead to, as far as their names tell.
        last_good: Option<Txid>,
    },
    /// All files are good, but none has a page that the database must have.
    #[error("{url}: page {page} of {commit_pages} is in none of the {files} files that lead to TXID {txid}; the last file is {newest}")]
    MissingPage {
        /// The bucket.
        url: String,
        /// The first page that is missing.
        page: PageNo,
        /// The size of the database in pages.
        commit_pages: u32,
        /// How many files were read.
        files: usize,
        /// The state that was being restored.
        txid: Txid,
        /// The file that gives the size of the database.
        newest: LtxName,
    },
    /// Something is in the place of the output.
    #[error("{path} exists already")]
    OutputExists {
        /// The file in the way.
        path: PathBuf,
    },
    /// The output is something that must not be replaced.
    #[error("{path} is {is}, and no file that could become a database")]
    NotAFile {
        /// What is in the way.
        path: PathBuf,
        /// What that is.
        is: &'static str,
    },
    /// The output could not be written.
    #[error("cannot {operation} {path}: {source}")]
    Output {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk is too small.
    #[error("{path} needs {needed_bytes} bytes, but its file system has {available_bytes} left")]
    NoSpace {
        /// The output.
        path: PathBuf,
        /// The size of the database.
        needed_bytes: u64,
        /// What is left.
        available_bytes: u64,
    },
    /// The caller's check of the restored database refused it.
    #[error("the database restored from {url} at TXID {txid} was refused: {why}")]
    Refused {
        /// The bucket.
        url: String,
        /// The state that was restored.
        txid: Txid,
        /// What the check said.
        why: String,
    },
    /// The runtime that drives the requests could not be started.
    #[error("what makes requests could not be started: {0}. Raise the limits on open files and threads (ulimit -n, ulimit -u)")]
    Runtime(io::Error),
}

/// What is wrong with an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// It is no good LTX file.
    #[error(transparent)]
    File(LtxError),
    /// It is a good one of another name.
    #[error("it says that it holds TXID {min_txid} to {max_txid}")]
    Name {
        /// The first TXID by its header.
        min_txid: Txid,
        /// The last one.
        max_txid: Txid,
    },
    /// Its pages have another size than those of the newest file.
    #[error("its page size is {found} bytes, that of {newest} is {expected} bytes")]
    PageSize {
        /// Its own page size.
        found: PageSize,
        /// The page size of the newest file.
        expected: PageSize,
        /// The newest file.
        newest: LtxName,
    },
    /// It leaves nothing of the database.
    #[error("it gives the database no pages")]
    NoPages,
    /// It gives a size of the database that the files cannot fill.
    #[error("it gives the database {commit_pages} pages, more than the {plan_bytes} bytes of all files can hold")]
    Size {
        /// The size that it gives.
        commit_pages: u32,
        /// The size of all files.
        plan_bytes: u64,
    },
}

impl RestoreError {
    /// What the user can do; empty where there is nothing to say that the message has not said.
    #[must_use]
    pub fn advice(&self) -> String {
        match self {
            Self::Plan { source, target, .. } => plan_advice(source, *target),
            Self::Generations { .. } => "`replicated restore URL -o PATH` restores it, to its newest state or with --timestamp; what replicates from there on begins a new history".to_owned(),
            Self::Generation { source, .. } => source.advice().to_owned(),
            Self::RefusedGeneration { .. } => "restore an earlier state with --timestamp, or with --generation and --index".to_owned(),
            Self::Store(error) if error.kind == StoreErrorKind::NotFound => {
                "an object that was listed is gone: something deletes from this bucket, try again".to_owned()
            }
            Self::Damaged { last_good: Some(txid), object, .. } if *txid < object.max_txid => {
                format!("restore the state before it with --txid {txid}, or bring back the object from a copy")
            }
            Self::Damaged { last_good: Some(txid), .. } => {
                format!(
                    "other files lead to TXID {txid} without this object: have it made anew with `replicated maintain URL --repair`, or move it out of the \
                     bucket, and restore again"
                )
            }
            Self::Damaged { last_good: None, .. } => "restore the object from a copy or an older version of the bucket".to_owned(),
            Self::MissingPage { .. } => "an earlier state may be whole: see `replicated list`, then use --txid".to_owned(),
            Self::OutputExists { .. } => "choose another output, or replace it with --force once nothing has it open".to_owned(),
            Self::NoSpace { .. } => "free space or choose an output on another file system".to_owned(),
            Self::Refused { .. } => "restore an earlier state with --txid or --timestamp; `replicated list` shows what there is".to_owned(),
            Self::NotAFile { .. } => "name a file that is not there yet, or one to replace with --force".to_owned(),
            Self::Output { source, .. } => output_advice(source).to_owned(),
            Self::Store(_) | Self::Runtime(_) => String::new(),
        }
    }

    /// What the store said, where it is the store's.
    #[must_use]
    pub const fn store(&self) -> Option<&StoreError> {
        if let Self::Store(error) = self { Some(error) } else { None }
    }

    /// The bucket has nothing of ours.
    #[must_use]
    pub const fn is_empty_bucket(&self) -> bool {
        matches!(self, Self::Plan { source: PlanError::Empty, .. })
    }

    /// An object was listed and then not there: compaction or retention was at work.
    pub(super) fn is_vanished_object(&self) -> bool {
        matches!(self, Self::Store(error) if error.kind == StoreErrorKind::NotFound)
    }
}

/// What to do where a file cannot be written.
pub(super) fn output_advice(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound | Kind::NotADirectory => "make the directory of the output first, or choose another output",
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => {
            "run this as a user who may write to the directory of the output, or choose another output: a file is made there and renamed"
        }
        Kind::StorageFull | Kind::QuotaExceeded => "free space or choose an output on another file system",
        Kind::FileTooLarge => "raise this process's limit on file sizes (ulimit -f), or choose another file system",
        Kind::InvalidFilename => "choose a shorter name: a part is put behind it while it is written",
        _ => "look at the disk and at the system's log (dmesg), or choose an output on another file system",
    }
}

fn plan_advice(error: &PlanError, target: Target) -> String {
    match error {
        PlanError::Empty => "check the URL: is it the path that the replica was written to?".to_owned(),
        PlanError::NotYet { newest, .. } => format!("use --txid {newest}, or leave it out for the newest state"),
        PlanError::TooOld { oldest, .. } | PlanError::BeforeOldest { oldest, .. } => {
            format!("the oldest state is had with --txid {oldest}")
        }
        PlanError::NoBase { .. } => {
            "a snapshot or the first files were deleted: look for them in a copy or in older versions of the bucket".to_owned()
        }
        PlanError::Gap { last_good, .. } => {
            format!("restore the state before it with --txid {last_good}, or bring the missing files back")
        }
        PlanError::TooShort { last_good: Some(last_good), .. } => {
            format!("restore the state before it with --txid {last_good}, or bring back the object from a copy")
        }
        PlanError::TooShort { last_good: None, .. } => "restore the object from a copy or an older version of the bucket".to_owned(),
        PlanError::Merged { asked, last_good, next_good, .. } => {
            let stands_for = match target {
                Target::Timestamp(at) => format!("{at} stands for TXID {asked}; "),
                Target::Latest | Target::Txid(_) => String::new(),
            };
            format!("{stands_for}choose --txid {last_good} or --txid {next_good}")
        }
    }
}
