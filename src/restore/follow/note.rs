//! What is remembered beside a copy: `<copy>-txid`, whose first line is the TXID, as in the file of the same name that Litestream's follow mode keeps.
//!
//! ```text
//!   000000000000001c                        the state that the copy has
//!   replicated-follow 1
//!   of s3://bucket/app                      the replica, without the query of its URL
//!   is 4096 12 77 1763899745448000000       what the file is like: page size, pages, change counter, time of its last change
//!   object 4189 e2f1ab0011223344            size and checksum of the level-0 object of that TXID: another one there is another history
//!   next 000000000000001d 4096 13 91        what it is about to become
//!   end
//! ```
//!
//! It is replaced whole, before a batch and after it. A process that died in between left a copy that is either what it was or what it was about to be: the change
//! counters tell, since one is ahead of the other by more than any writer counts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::journal::sync_folder_of;
use crate::types::{PageSize, Txid};

const KIND: &str = "replicated-follow 1";
const MOST_BYTES: u64 = 64 << 10;

/// What a database file is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Looks {
    pub(super) page_size: PageSize,
    pub(super) size_pages: u32,
    pub(super) counter: u32,
}

/// The level-0 object that a state ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) size_bytes: u64,
    pub(super) checksum: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) txid: Txid,
    pub(super) replica: String,
    pub(super) looks: Looks,
    /// In nanoseconds since 1970; `None` until the file is in its place.
    pub(super) mtime_ns: Option<i64>,
    pub(super) object: Option<Object>,
    pub(super) next: Option<(Txid, Looks)>,
}

/// Where it is.
pub(super) fn path_of(copy: &Path) -> PathBuf {
    let mut path = copy.as_os_str().to_owned();
    path.push("-txid");
    path.into()
}

/// How a replica is called there: however the store is reached, what it holds is compared anyway.
pub(super) fn replica_of(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

impl Note {
    /// `None` where there is none, `Some(None)` where there is something else.
    pub(super) fn load(copy: &Path) -> io::Result<Option<Option<Self>>> {
        let path = path_of(copy);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(found) if found.len() > MOST_BYTES => return Ok(Some(None)),
            Ok(_) => {}
        }
        Ok(Some(String::from_utf8(fs::read(&path)?).ok().and_then(|text| Self::parse(&text))))
    }

    /// Puts it in place, durably.
    pub(super) fn save(&self, copy: &Path) -> io::Result<()> {
        let path = path_of(copy);
        let mut temporary = path.clone().into_os_string();
        temporary.push(".tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(self.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        sync_folder_of(&path)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix("end\n")?.lines();
        let txid = Txid::from_hex(lines.next()?)?;
        if lines.next()? != KIND {
            return None;
        }
        let replica = lines.next()?.strip_prefix("of ")?.to_owned();
        let mut is = lines.next()?.strip_prefix("is ")?.split(' ');
        let looks = Looks::parse(&mut is)?;
        let mtime_ns = match is.next()? {
            "-" => None,
            number => Some(number.parse().ok()?),
        };
        let mut note = Self { txid, replica, looks, mtime_ns, object: None, next: None };
        for line in lines {
            let (kind, rest) = line.split_once(' ')?;
            let mut words = rest.split(' ');
            match kind {
                "object" => {
                    let size_bytes = words.next()?.parse().ok()?;
                    note.object = Some(Object { size_bytes, checksum: u64::from_str_radix(words.next()?, 16).ok()? });
                }
                "next" => note.next = Some((Txid::from_hex(words.next()?)?, Looks::parse(&mut words)?)),
                _ => return None,
            }
        }
        Some(note)
    }
}

impl Looks {
    fn parse<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut number = || words.next()?.parse::<u32>().ok();
        Some(Self { page_size: PageSize::new(number()?)?, size_pages: number()?, counter: number()? })
    }

    pub(super) const fn size_bytes(&self) -> u64 {
        self.page_size.get() as u64 * self.size_pages as u64
    }
}

impl std::fmt::Display for Looks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.page_size, self.size_pages, self.counter)
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mtime = self.mtime_ns.map_or_else(|| "-".to_owned(), |ns| ns.to_string());
        writeln!(f, "{}\n{KIND}\nof {}\nis {} {mtime}", self.txid, self.replica, self.looks)?;
        if let Some(Object { size_bytes, checksum }) = self.object {
            writeln!(f, "object {size_bytes} {checksum:016x}")?;
        }
        if let Some((txid, looks)) = &self.next {
            writeln!(f, "next {txid} {looks}")?;
        }
        f.write_str("end\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_anything_else_is_none() {
        let looks = Looks { page_size: PageSize::MAX, size_pages: 7, counter: u32::MAX };
        let txid = Txid::new(28).unwrap();
        let note = Note { txid, replica: "file:///a b".to_owned(), looks, mtime_ns: None, object: None, next: None };
        let full = Note {
            mtime_ns: Some(-5),
            object: Some(Object { size_bytes: 131, checksum: 1 }),
            next: Some((txid.next(), looks)),
            ..note.clone()
        };
        for note in [note, full] {
            let text = note.to_string();
            assert_eq!(text.lines().next(), Some("000000000000001c"));
            assert_eq!(Note::parse(&text), Some(note));
            for end in 0..text.len() {
                assert_eq!(Note::parse(&text[..end]), None);
            }
        }
        // As Litestream writes it.
        assert_eq!(Note::parse("000000000000001c\n"), None);
    }
}
