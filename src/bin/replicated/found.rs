//! Databases that a command is about, named or found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::text;

/// Those that are named, or with `--all` those below the directories that are, or below this one.
pub(crate) fn databases(paths: &[PathBuf], all: bool) -> Vec<PathBuf> {
    if all { below(paths) } else { paths.to_vec() }
}

/// The databases below directories that have something of ours beside them, in order.
fn below(directories: &[PathBuf]) -> Vec<PathBuf> {
    const SUFFIX: &str = "-replicated";
    /// Of the kernel, and without end.
    const NEVER: [&str; 3] = ["/proc", "/sys", "/dev"];
    let here = [PathBuf::from(".")];
    let mut to_visit: Vec<PathBuf> = if directories.is_empty() { here.to_vec() } else { directories.to_vec() };
    let mut found = BTreeSet::new();
    while let Some(directory) = to_visit.pop() {
        if NEVER.iter().any(|never| directory == Path::new(never)) {
            continue;
        }
        let items = match std::fs::read_dir(&directory) {
            Ok(items) => items,
            Err(error) => {
                text::to_stderr(&format!("warning: {}: {error}\n", directory.display()));
                continue;
            }
        };
        // What has gone meanwhile is not there.
        for item in items.flatten().filter(|item| item.file_type().is_ok_and(|kind| kind.is_dir())) {
            let (name, path) = (item.file_name(), item.path());
            match name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).filter(|name| !name.is_empty()) {
                Some(database) if path.join("control").exists() => {
                    found.insert(path.with_file_name(database));
                }
                _ => to_visit.push(path),
            }
        }
    }
    found.into_iter().collect()
}
