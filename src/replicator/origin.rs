//! What a database was restored from, for its other replica.
//!
//! A database that is restored from one of its two replicas goes on there. The other one holds a history as well, maybe not as long, and nothing of that file is
//! known to it. Both histories are of one database where one host has written the newest file of each, by its number in their headers; and the other one's is no
//! longer where that file ends at an earlier place. Then the database goes on there, too.
//!
//! A line in the file `origin` beside the control file, which says of which file it speaks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::control::Identity;
use super::local::{OwnerMode, Paths, identity};
use super::stamp;
use crate::ltx::Header;
use crate::types::{TimestampMs, Txid, WalPos};

/// A line of numbers.
const MOST_BYTES: usize = 512;
const BEGINNING: &str = "origin-1";

/// The newest file of what was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) txid: Txid,
    /// Who wrote it; 0 for other tools.
    pub(crate) node_id: u64,
    pub(crate) timestamp: TimestampMs,
    /// Where it ended in the WAL that it was made of.
    pub(crate) wal_end: Option<WalPos>,
}

/// How the other replica's newest file relates to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// It ends at the same commit.
    Same,
    /// It ends before that, or at the same.
    NotAhead,
    /// It goes on beyond that.
    Ahead,
    /// It was written by somebody else.
    Unknown,
}

impl Origin {
    pub(crate) fn relation_of(&self, newest: &Header) -> Relation {
        if self.node_id == 0 || newest.node_id != self.node_id {
            return Relation::Unknown;
        }
        match (self.wal_end, newest.wal_end()) {
            (Some(ours), Some(theirs)) if ours.salts == theirs.salts => match theirs.frame.cmp(&ours.frame) {
                std::cmp::Ordering::Less => Relation::NotAhead,
                std::cmp::Ordering::Equal if theirs.checksum == ours.checksum && ours.frame > 0 => Relation::Same,
                std::cmp::Ordering::Equal => Relation::Unknown,
                std::cmp::Ordering::Greater => Relation::Ahead,
            },
            // One host's clock has told the time of both.
            _ if newest.timestamp <= self.timestamp => Relation::NotAhead,
            _ => Relation::Ahead,
        }
    }
}

/// An origin, as it is found when the database is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) origin: Origin,
    /// Nobody has written to the file since.
    pub(crate) is_unchanged: bool,
}

fn path_of(paths: &Paths) -> PathBuf {
    paths.directory.join("origin")
}

/// Size and time of the last change.
fn looks(database: &Path) -> io::Result<(u64, i64)> {
    let metadata = std::fs::metadata(database)?;
    Ok((metadata.len(), stamp::mtime_ns(&metadata)))
}

/// Notes what the database was restored from, as it has just been put in its place.
pub(crate) fn write(paths: &Paths, owner: &OwnerMode, origin: &Origin) -> io::Result<()> {
    let Identity { device, inode, born_ns } = identity(&paths.database)?;
    let (size_bytes, mtime_ns) = looks(&paths.database)?;
    let WalPos { salts: [a, b], frame, checksum: [c, d] } = origin.wal_end.unwrap_or_default();
    let Origin { txid, node_id, timestamp, .. } = origin;
    let line = format!(
        "{BEGINNING} {device} {inode} {born_ns} {size_bytes} {mtime_ns} {} {node_id} {} {a} {b} {frame} {c} {d}\n",
        txid.get(),
        timestamp.0
    );
    let file = File::options().write(true).create(true).truncate(true).open(path_of(paths))?;
    owner.apply(&file)?;
    file.write_all_at(line.as_bytes(), 0)?;
    file.sync_all()
}

/// What is noted beside it, if it speaks of this very file.
pub(crate) fn find(paths: &Paths) -> Option<Found> {
    let mut text = [0; MOST_BYTES];
    let bytes = File::open(path_of(paths)).and_then(|file| file.read_at(&mut text, 0)).ok()?;
    let (of, looked, origin) = parse(std::str::from_utf8(text.get(..bytes)?).ok()?)?;
    (identity(&paths.database).ok()? == of)
        .then(|| Found { origin, is_unchanged: looks(&paths.database).is_ok_and(|now| now == looked) && !paths.has_log() })
}

fn parse(text: &str) -> Option<(Identity, (u64, i64), Origin)> {
    // A line that was cut off says nothing.
    let mut words = text.strip_suffix('\n')?.split(' ');
    if words.next() != Some(BEGINNING) {
        return None;
    }
    let mut word = || words.next();
    let identity = Identity { device: word()?.parse().ok()?, inode: word()?.parse().ok()?, born_ns: word()?.parse().ok()? };
    let looked = (word()?.parse().ok()?, word()?.parse().ok()?);
    let txid = Txid::new(word()?.parse().ok()?)?;
    let (node_id, timestamp) = (word()?.parse().ok()?, TimestampMs(word()?.parse().ok()?));
    let mut number = || word()?.parse::<u32>().ok();
    let end = WalPos { salts: [number()?, number()?], frame: number()?, checksum: [number()?, number()?] };
    let wal_end = Some(end).filter(|end| end.salts != [0; 2]);
    Some((identity, looked, Origin { txid, node_id, timestamp, wal_end }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PageSize;

    fn at(frame: u32, checksum: u32) -> WalPos {
        WalPos { salts: [7, 8], frame, checksum: [checksum, 1] }
    }

    fn header(node_id: u64, timestamp: i64, end: Option<WalPos>) -> Header {
        let mut header = Header::new(PageSize::MIN, 1, Txid::FIRST.next(), Txid::FIRST.next(), TimestampMs(timestamp));
        header.node_id = node_id;
        if let Some(end) = end {
            header.set_wal_range(0, &end);
        }
        header
    }

    #[test]
    fn what_goes_on_beyond_the_origin_is_told_from_what_does_not() {
        let origin = Origin { txid: Txid::FIRST, node_id: 5, timestamp: TimestampMs(100), wal_end: Some(at(10, 3)) };
        let told = |node, timestamp, end| origin.relation_of(&header(node, timestamp, end));
        assert_eq!(told(5, 100, Some(at(10, 3))), Relation::Same);
        // Of one generation of the WAL, whatever the clock says.
        assert_eq!(told(5, 200, Some(at(9, 3))), Relation::NotAhead);
        assert_eq!(told(5, 50, Some(at(11, 3))), Relation::Ahead);
        assert_eq!(told(5, 100, Some(at(10, 4))), Relation::Unknown);
        assert_eq!(told(5, 100, None), Relation::NotAhead);
        assert_eq!(told(5, 101, None), Relation::Ahead);
        assert_eq!(told(5, 99, Some(WalPos { salts: [1, 2], ..at(99, 1) })), Relation::NotAhead);
        assert_eq!(told(6, 50, Some(at(9, 3))), Relation::Unknown);
        let foreign = Origin { node_id: 0, ..origin };
        assert_eq!(foreign.relation_of(&header(0, 1, None)), Relation::Unknown);
    }

    #[test]
    fn it_is_found_as_it_was_noted_and_of_this_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::of(&dir.path().join("app.db"));
        std::fs::write(&paths.database, "a database").unwrap();
        let owner = OwnerMode::of(&paths.database).unwrap();
        paths.create_directory(&owner).unwrap();
        assert!(find(&paths).is_none());
        for wal_end in [None, Some(at(u32::MAX, 9))] {
            let origin = Origin { txid: Txid::FIRST, node_id: u64::MAX, timestamp: TimestampMs(-5), wal_end };
            write(&paths, &owner, &origin).unwrap();
            let found = find(&paths).unwrap();
            assert_eq!((found.origin, found.is_unchanged), (origin, true));
        }
        std::fs::write(&paths.wal, "frames").unwrap();
        assert!(!find(&paths).unwrap().is_unchanged);
        let line = std::fs::read_to_string(path_of(&paths)).unwrap();
        assert!(line.len() <= MOST_BYTES && (0..line.len()).all(|end| parse(&line[..end]).is_none()));
        std::fs::write(dir.path().join("other"), "a database").unwrap();
        std::fs::rename(dir.path().join("other"), &paths.database).unwrap();
        assert!(find(&paths).is_none());
    }
}
