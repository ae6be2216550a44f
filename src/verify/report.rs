//! What a look at a bucket has found.

use crate::maintenance::Kept;
use crate::store::{Listed, LtxName};
use crate::types::Txid;

/// Findings that are told; of more only the number.
pub const MOST_FINDINGS: usize = 200;

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// There is nothing to restore.
    Empty,
    /// No snapshot leads to some states, or to none.
    NoBase,
    /// TXIDs are in no file, so that the states behind them cannot be restored.
    Gap,
    /// A file of a level is missing. Other levels may hold the same.
    MissingFile,
    /// A file that no bucket has: of a level that does not take such a span.
    Misplaced,
    /// An object is not what its checksums say, or is cut short.
    Damaged,
    /// An object is good but for its page index, which readers of single pages need.
    Index,
    /// An object is a good file of other TXIDs than its name says.
    Renamed,
    /// An object does not go together with its neighbours: it is one of another history.
    Foreign,
    /// Two objects that hold the same state hold different pages.
    Contradiction,
    /// An object lacks pages that it must have.
    Incomplete,
    /// A state could not be restored.
    Restore,
    /// SQLite finds a restored state damaged.
    Integrity,
    /// The live database is another one than the bucket has.
    Against,
}

impl Kind {
    /// As programs read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NoBase => "no_base",
            Self::Gap => "gap",
            Self::MissingFile => "missing_file",
            Self::Misplaced => "misplaced",
            Self::Damaged => "damaged",
            Self::Index => "index",
            Self::Renamed => "renamed",
            Self::Foreign => "foreign",
            Self::Contradiction => "contradiction",
            Self::Incomplete => "incomplete",
            Self::Restore => "restore",
            Self::Integrity => "integrity",
            Self::Against => "against",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// The object that it is about, if it is about one.
    pub object: Option<LtxName>,
    /// What is wrong, in a sentence.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

/// What a look has found, and what it has looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that the bucket has, and their size together.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Files that were read to their end.
    pub files_read: usize,
    /// Bytes that were read of them.
    pub bytes_read: u64,
    /// Files that nothing within the window needs, and that were not read.
    pub files_not_promised: usize,
    /// Files that were gone when they were to be read, and that no listing has any more: maintenance was at work.
    pub files_gone: usize,
    /// The snapshot that the oldest states of the window begin with; `None` where all of the bucket is younger than the window.
    pub floor: Option<Listed>,
    /// The newest file.
    pub newest: Option<Listed>,
    /// The states that can be restored, within the window and by their names alone, ascending.
    pub states: Vec<Txid>,
    /// States that are kept whatever their age.
    pub kept: Vec<Kept>,
    /// Of how many pages one was compared between the levels; 1 is all of them, 0 none.
    pub compared_one_page_of: u32,
    /// What is wrong. At most `MOST_FINDINGS`.
    pub findings: Vec<Finding>,
    /// How many more things are wrong.
    pub more_findings: usize,
    /// What is not wrong and worth knowing.
    pub notes: Vec<String>,
    /// What could not be looked at, and why. Nothing is said of that.
    pub not_checked: Vec<String>,
}

/// What all of it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All that was to be looked at was, and is good.
    Verified,
    /// Something is wrong.
    Wrong,
    /// Nothing that was seen is wrong, but not all could be looked at.
    NotChecked,
}

impl Outcome {
    /// As programs read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Wrong => "wrong",
            Self::NotChecked => "not_checked",
        }
    }
}

impl Report {
    /// What it comes to.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match (self.findings.is_empty(), self.not_checked.is_empty()) {
            (false, _) => Outcome::Wrong,
            (true, false) => Outcome::NotChecked,
            (true, true) => Outcome::Verified,
        }
    }

    /// Adds what is wrong.
    pub fn add(&mut self, finding: Finding) {
        if self.findings.contains(&finding) {
            return;
        }
        if self.findings.len() < MOST_FINDINGS {
            self.findings.push(finding);
        } else {
            self.more_findings += 1;
        }
    }

    pub(super) fn wrong(&mut self, kind: Kind, object: impl Into<Option<LtxName>>, what: impl Into<String>, advice: impl Into<String>) {
        self.add(Finding { kind, object: object.into(), what: what.into(), advice: advice.into() });
    }
}
