//! Databases that a command is about, named or found.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::Failure;

/// What a command is about.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) databases: Vec<PathBuf>,
    /// Directories that could not be searched: nobody knows what is in them, so that nobody may say that all is well.
    pub(crate) unsearched: Vec<Unsearched>,
}

/// A directory that could not be searched, and why.
#[derive(Debug)]
pub(crate) struct Unsearched {
    pub(crate) directory: PathBuf,
    pub(crate) error: io::Error,
}

impl Unsearched {
    pub(crate) fn what(&self) -> String {
        format!("cannot look for databases below {}", self.directory.display())
    }

    pub(crate) fn advice(&self) -> &'static str {
        match self.error.kind() {
            ErrorKind::NotFound => "Name a directory that is there; where it was there before, look whether its volume is mounted",
            ErrorKind::NotADirectory => "Name directories with --all, and database files without it",
            ErrorKind::PermissionDenied => "Run this as a user who may read it, or name the directories that count",
            _ => "Look at the disk and at the system's log (dmesg)",
        }
    }

    pub(crate) fn failure(&self) -> Failure {
        Failure::Failed { what: self.what(), why: self.error.to_string(), advice: self.advice().to_owned(), json: false }
    }
}

/// Those that are named, or with `--all` those below the directories that are, or below this one.
pub(crate) fn databases(paths: &[PathBuf], all: bool) -> Found {
    if all { below(paths) } else { Found { databases: paths.to_vec(), unsearched: Vec::new() } }
}

/// The databases below directories that have something of ours beside them, in order.
fn below(directories: &[PathBuf]) -> Found {
    const SUFFIX: &str = "-replicated";
    /// Of the kernel, and without end.
    const NEVER: [&str; 3] = ["/proc", "/sys", "/dev"];
    let here = [PathBuf::from(".")];
    let named = if directories.is_empty() { &here } else { directories };
    let mut to_visit: Vec<PathBuf> = named.to_vec();
    let (mut found, mut unsearched) = (BTreeSet::new(), Vec::new());
    while let Some(directory) = to_visit.pop() {
        if NEVER.iter().any(|never| directory == Path::new(never)) {
            continue;
        }
        let items = match std::fs::read_dir(&directory) {
            Ok(items) => items,
            // It was there a moment ago.
            Err(error) if error.kind() == ErrorKind::NotFound && !named.contains(&directory) => continue,
            Err(error) => {
                unsearched.push(Unsearched { directory, error });
                continue;
            }
        };
        // What has gone meanwhile is not there.
        for item in items.flatten().filter(|item| item.file_type().is_ok_and(|kind| kind.is_dir())) {
            let (name, path) = (item.file_name(), item.path());
            match name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).filter(|name| !name.is_empty()) {
                // One that may not be looked into is told of by whoever looks at the database.
                Some(database) if path.join("control").try_exists().unwrap_or(true) => {
                    found.insert(path.with_file_name(database));
                }
                _ => to_visit.push(path),
            }
        }
    }
    unsearched.sort_by(|a: &Unsearched, b| a.directory.cmp(&b.directory));
    Found { databases: found.into_iter().collect(), unsearched }
}
