//! What a disk keeps of SQLite's files when the power fails: a model beside the real files.
//!
//! | | `Loss::Synced` | `Loss::Torn` |
//! |---|---|---|
//! | what a file's last xSync covered | is kept | is kept |
//! | what was written or cut since | is lost | each sector of 512 bytes is kept or lost, by chance |
//! | a file that was made and never synced | is empty | is empty, torn or gone |
//! | a file that was deleted with its directory synced | is gone | is gone |
//! | one deleted without that | is gone | is gone, or back |
//!
//! A directory counts as synced after an xDelete that asked for it, and after the first xSync of a file that was made in it, as SQLite's `unix`
//! VFS does it. The shared-memory file is memory: it is not modelled, and gone after a power loss.
//!
//! Where a deletion is undone, so is every later cut of another file: file systems keep these two in their order, and SQLite relies on it. It deletes the
//! journal, which commits, and then cuts off what a VACUUM has left over, of which the journal has nothing.
//!
//! For a test that needs one certain outcome there are two more, which leave nothing to chance: `Loss::Outrun` and `Loss::TornJournal`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

const SECTOR_BYTES: usize = 512;

/// How unkind the power loss is to SQLite's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loss {
    /// Exactly what was synced is there.
    Synced,
    /// And any part of the rest.
    Torn,
    /// What was synced is there, and all that was written to the database file, but its first page and the time of its change.
    Outrun,
    /// What was synced is there, and all of a journal that lies there, but this sector, which has zeros.
    TornJournal(usize),
}

/// What becomes of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It is not there.
    Gone,
    /// Its content is that of this file, last modified then.
    Content(PathBuf, Option<SystemTime>),
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Cut(u64),
}

#[derive(Clone, Debug, Default)]
struct Image {
    synced: Vec<u8>,
    /// With the moment of each.
    since: Vec<(u64, Change)>,
    /// Made since the process began, and its directory was not synced since.
    is_new: bool,
    /// When it was modified before the last sync.
    synced_at: Option<SystemTime>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    /// `None` where it does not exist.
    image: Option<Image>,
    /// What it was before a deletion that may be undone, and the moment of that.
    deleted: Option<(u64, Image)>,
}

/// All files of SQLite's that a process has opened.
#[derive(Debug, Default)]
pub struct Disk {
    files: BTreeMap<PathBuf, Entry>,
    /// Counts changes and deletions.
    moment: u64,
}

impl Disk {
    /// A file is about to be opened, or was asked for. What lies on the disk when a process begins is safe.
    pub fn known(&mut self, path: &Path) {
        if !self.files.contains_key(path) {
            let image = std::fs::read(path).ok().map(|synced| Image { synced, synced_at: modified(path), ..Image::default() });
            self.files.insert(path.to_owned(), Entry { image, deleted: None });
        }
    }

    /// A file has been opened, and may have been made by that.
    pub fn opened(&mut self, path: &Path) {
        let entry = self.files.entry(path.to_owned()).or_default();
        entry.image.get_or_insert_with(|| Image { is_new: true, ..Image::default() });
    }

    /// Bytes were written.
    pub fn written(&mut self, path: &Path, offset: u64, bytes: &[u8]) {
        self.changed(path, Change::Write(offset, bytes.to_vec()));
    }

    /// The file was cut or extended.
    pub fn cut(&mut self, path: &Path, bytes: u64) {
        self.changed(path, Change::Cut(bytes));
    }

    fn changed(&mut self, path: &Path, change: Change) {
        self.moment += 1;
        if let Some(image) = self.files.get_mut(path).and_then(|entry| entry.image.as_mut()) {
            image.since.push((self.moment, change));
        }
    }

    /// The file was synced.
    pub fn synced(&mut self, path: &Path) {
        let Some(image) = self.files.get_mut(path).and_then(|entry| entry.image.as_mut()) else { return };
        for (_, change) in std::mem::take(&mut image.since) {
            apply(&mut image.synced, &change, &mut |_| true);
        }
        image.synced_at = modified(path);
        if image.is_new {
            self.directory_synced();
        }
    }

    /// The file was deleted.
    pub fn deleted(&mut self, path: &Path, directory_synced: bool) {
        let Some(entry) = self.files.get_mut(path) else { return };
        self.moment += 1;
        if let Some(image) = entry.image.take() {
            entry.deleted = Some((self.moment, image));
        }
        if directory_synced {
            self.directory_synced();
        }
    }

    fn directory_synced(&mut self) {
        for entry in self.files.values_mut() {
            entry.deleted = None;
            if let Some(image) = &mut entry.image {
                image.is_new = false;
            }
        }
    }

    /// The power fails: what is left of each file. Contents are put into `folder`.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn lose(&self, loss: Loss, random: &mut fastrand::Rng, folder: &Path) -> std::io::Result<Vec<(PathBuf, Fate)>> {
        let mut fates = Vec::new();
        let may_come_back = |entry: &Entry| entry.image.is_none().then_some(entry.deleted.as_ref()).flatten().map(|(moment, _)| *moment);
        let come_back: Vec<bool> =
            self.files.values().map(|entry| loss == Loss::Torn && may_come_back(entry).is_some() && random.bool()).collect();
        let undone =
            self.files.values().zip(&come_back).filter(|(_, comes_back)| **comes_back).filter_map(|(entry, _)| may_come_back(entry));
        let no_cut_after = undone.min().unwrap_or(u64::MAX);
        for (number, ((path, entry), comes_back)) in self.files.iter().zip(come_back).enumerate() {
            // The time is the inode's, which goes to disk with or without what was written.
            let now = entry.image.as_ref().and_then(|_| modified(path));
            let at = |image: &Image, random: &mut fastrand::Rng| {
                if loss == Loss::Torn && random.bool() { now.or(image.synced_at) } else { image.synced_at.or(now) }
            };
            let left = match (&entry.image, &entry.deleted) {
                (Some(image), _) => left_of(path, image, loss, no_cut_after, random).map(|content| (content, at(image, random))),
                (None, Some((_, deleted))) if comes_back => {
                    left_of(path, deleted, loss, no_cut_after, random).map(|content| (content, at(deleted, random)))
                }
                (None, _) => None,
            };
            let fate = match left {
                None => Fate::Gone,
                Some((content, at)) => {
                    // What lost nothing keeps its time.
                    let is_whole = loss != Loss::Outrun && std::fs::read(path).is_ok_and(|now| now == content);
                    let at = at.filter(|_| !is_whole);
                    let kept = folder.join(format!("{number}.left"));
                    std::fs::write(&kept, content)?;
                    Fate::Content(kept, at)
                }
            };
            fates.push((path.clone(), fate));
        }
        Ok(fates)
    }
}

fn left_of(path: &Path, image: &Image, loss: Loss, no_cut_after: u64, random: &mut fastrand::Rng) -> Option<Vec<u8>> {
    let mut content = image.synced.clone();
    let ends_with = |suffix: &str| path.as_os_str().as_encoded_bytes().ends_with(suffix.as_bytes());
    match loss {
        Loss::Outrun if !ends_with("-wal") && !ends_with("-journal") => {
            let of_first_page = |change: &Change| matches!(change, Change::Write(0, _));
            for (_, change) in image.since.iter().filter(|(_, change)| !of_first_page(change)) {
                apply(&mut content, change, &mut |_| true);
            }
        }
        Loss::TornJournal(lost) if ends_with("-journal") => {
            for (_, change) in &image.since {
                apply(&mut content, change, &mut |sector| sector != lost);
            }
        }
        _ => {}
    }
    if loss == Loss::Torn {
        if image.is_new && random.u8(0..4) == 0 {
            return None;
        }
        // Often all or nothing: then the file is of one moment, and looks the most like a good one.
        let chance = *random.choice(&[0, 0, 5, 20, 50, 80, 95, 100, 100]).unwrap_or(&0);
        let whole_writes = random.bool();
        for (moment, change) in &image.since {
            let kept = random.u8(0..100) < chance;
            if matches!(change, Change::Cut(_)) && *moment > no_cut_after {
                continue;
            }
            apply(&mut content, change, &mut |_| if whole_writes { kept } else { random.u8(0..100) < chance });
        }
    }
    Some(content)
}

/// Carries a change out, as far as `keeps` says for each sector that it touches.
fn apply(content: &mut Vec<u8>, change: &Change, keeps: &mut dyn FnMut(usize) -> bool) {
    match change {
        Change::Cut(bytes) => {
            if keeps(0) {
                content.resize(usize::try_from(*bytes).unwrap_or(usize::MAX), 0);
            }
        }
        Change::Write(offset, bytes) => {
            let start = usize::try_from(*offset).unwrap_or(usize::MAX);
            let mut done = 0;
            while done < bytes.len() {
                let at = start + done;
                let length = (SECTOR_BYTES - at % SECTOR_BYTES).min(bytes.len() - done);
                if keeps(at / SECTOR_BYTES) {
                    if content.len() < at + length {
                        content.resize(at + length, 0);
                    }
                    content[at..at + length].copy_from_slice(&bytes[done..done + length]);
                }
                done += length;
            }
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// Puts the files as a power loss left them. A file keeps its inode.
///
/// # Errors
/// Where a file cannot be written.
pub fn put_back(fates: &[(PathBuf, Fate)]) -> std::io::Result<()> {
    for (path, fate) in fates {
        match fate {
            Fate::Gone => match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
            Fate::Content(kept, modified) => {
                let content = std::fs::read(kept)?;
                let is_whole = std::fs::read(path).is_ok_and(|now| now == content);
                // Not `fs::write`: the file that is there stays the same file.
                let file = std::fs::File::options().write(true).create(true).truncate(!is_whole).open(path)?;
                if !is_whole {
                    std::io::Write::write_all(&mut &file, &content)?;
                }
                if let Some(modified) = modified {
                    file.set_modified(*modified)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(disk: &Disk, loss: Loss, seed: u64) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let folder = tempfile::tempdir().unwrap();
        let fates = disk.lose(loss, &mut fastrand::Rng::with_seed(seed), folder.path()).unwrap();
        fates
            .into_iter()
            .map(|(path, fate)| match fate {
                Fate::Gone => (path, None),
                Fate::Content(kept, _) => (path, Some(std::fs::read(kept).unwrap())),
            })
            .collect()
    }

    #[test]
    fn what_was_not_synced_is_lost() {
        let (mut disk, file) = (Disk::default(), Path::new("/nowhere/a"));
        disk.known(file);
        disk.opened(file);
        disk.written(file, 0, &[1; 1000]);
        assert_eq!(left(&disk, Loss::Synced, 1), [(file.to_owned(), Some(Vec::new()))]);
        disk.synced(file);
        disk.written(file, 100, &[2; 600]);
        disk.cut(file, 300);
        assert_eq!(left(&disk, Loss::Synced, 1), [(file.to_owned(), Some(vec![1; 1000]))]);
        disk.deleted(file, true);
        assert_eq!(left(&disk, Loss::Torn, 1), [(file.to_owned(), None)]);
    }

    #[test]
    fn a_torn_write_is_torn_at_sectors_and_what_was_synced_is_kept() {
        let (mut disk, file) = (Disk::default(), Path::new("/nowhere/a"));
        disk.known(file);
        disk.opened(file);
        disk.written(file, 0, &[1; 4096]);
        disk.synced(file);
        disk.written(file, 512, &[2; 2048]);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let files = left(&disk, Loss::Torn, seed);
            let [(_, Some(content))] = files.as_slice() else { panic!("it is gone") };
            let content = content.clone();
            assert_eq!(content.len(), 4096);
            for (number, sector) in content.chunks(512).enumerate() {
                assert!(sector.iter().all(|b| *b == sector[0]), "sector {number}");
                assert!(sector[0] == 1 || (1..5).contains(&number));
            }
            seen.insert(content);
        }
        assert!(seen.len() > 4, "{} outcomes", seen.len());
    }

    #[test]
    fn what_a_test_chooses_is_left_and_nothing_else() {
        let (mut disk, file, wal, journal) =
            (Disk::default(), Path::new("/nowhere/a"), Path::new("/nowhere/a-wal"), Path::new("/nowhere/a-journal"));
        for path in [file, wal, journal] {
            disk.known(path);
            disk.opened(path);
            disk.written(path, 0, &[1; 2048]);
            disk.synced(path);
            for page in 0..2 {
                disk.written(path, page * 1024, &[2; 1024]);
            }
        }
        let (before, first_page_before) = (vec![1; 2048], [[1; 1024], [2; 1024]].concat());
        // Ordered by their names.
        let named = |file_left, journal_left, wal_left| {
            vec![(file.to_owned(), Some(file_left)), (journal.to_owned(), Some(journal_left)), (wal.to_owned(), Some(wal_left))]
        };
        assert_eq!(left(&disk, Loss::Outrun, 1), named(first_page_before, before.clone(), before.clone()));
        let torn = [[2; 1024].as_slice(), &[1; 512], &[2; 512]].concat();
        assert_eq!(left(&disk, Loss::TornJournal(2), 1), named(before.clone(), torn, before));
    }

    #[test]
    fn a_deletion_without_a_sync_of_the_directory_may_be_undone() {
        let (mut disk, file) = (Disk::default(), Path::new("/nowhere/a"));
        disk.known(file);
        disk.opened(file);
        disk.written(file, 0, b"journal");
        disk.synced(file);
        disk.deleted(file, false);
        let outcomes: std::collections::BTreeSet<_> = (0..20).map(|seed| left(&disk, Loss::Torn, seed)[0].1.clone()).collect();
        assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), [None, Some(b"journal".to_vec())]);
        assert_eq!(left(&disk, Loss::Synced, 1)[0].1, None);
    }

    #[test]
    fn a_cut_behind_a_deletion_is_undone_with_it() {
        let (mut disk, file, journal) = (Disk::default(), Path::new("/nowhere/a"), Path::new("/nowhere/a-journal"));
        for (path, content) in [(file, [1; 1000]), (journal, [2; 1000])] {
            disk.known(path);
            disk.opened(path);
            disk.written(path, 0, &content);
            disk.synced(path);
        }
        disk.deleted(journal, false);
        disk.cut(file, 500);
        let outcomes: std::collections::BTreeSet<_> = (0..200)
            .map(|seed| left(&disk, Loss::Torn, seed))
            .map(|files| (files[0].1.as_ref().map(Vec::len), files[1].1.is_some()))
            .collect();
        assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), [(Some(500), false), (Some(1000), false), (Some(1000), true)]);
    }
}
