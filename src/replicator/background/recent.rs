//! What this process has put into the bucket lately, kept on the local disk (`recent`), so that maintenance need not ask the bucket for what it merges.
//!
//! ```text
//!   recent     |  level 0: 41  |  42  |  (free)  |  level 1: 20-40  |  44  |      whatever fits into a place that has come free, else behind the end
//! ```
//!
//! It is a cache and nothing else: a file without a header whose table is in memory, begun anew by each process and gone with the last close. It is not synced, and what it
//! holds is verified when it is merged, by the checksums that the objects have themselves. Written to when an upload has been acknowledged and told of, on the
//! uploader's thread; no commit waits for it. Where the disk gets full, or anything fails, there is none.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::local::OwnerMode;
use crate::fault::fault_io;
use crate::logging::{Beside, event};
use crate::maintenance::AtHand;
use crate::store::{Listed, LtxName, SNAPSHOT_LEVEL};

/// Of `max_local`.
const SHARE: u64 = 32;
/// Of that: an object that is larger would leave no room for others.
const OBJECT_SHARE: u64 = 8;
/// Their table is in memory, a hundred bytes each.
const MOST_OBJECTS: usize = 2048;
/// Of what is free on the disk; and where there is less than so much, nothing.
const FREE_SHARE: u64 = 8;
const LEAST_FREE_BYTES: u64 = 512 << 20;

/// Where an object is in the file.
#[derive(Clone, Copy, Debug)]
struct Object {
    name: LtxName,
    place: u64,
    bytes: u64,
}

/// What the file holds.
#[derive(Debug, Default)]
struct Table {
    /// Device and inode. Another file of its name is another process's.
    file: Option<(u64, u64)>,
    /// By age.
    objects: BTreeMap<u64, Object>,
    by_name: BTreeMap<LtxName, u64>,
    /// Where what begins ends.
    places: BTreeMap<u64, u64>,
    next: u64,
    bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Recent {
    path: PathBuf,
    database: PathBuf,
    limit_bytes: u64,
    least_free_bytes: u64,
    /// The uploader's thread alone takes it.
    table: Mutex<Table>,
}

impl Recent {
    pub(super) fn new(path: PathBuf, database: PathBuf, max_local_bytes: u64) -> Self {
        Self { path, database, limit_bytes: max_local_bytes / SHARE, least_free_bytes: LEAST_FREE_BYTES, table: Mutex::default() }
    }

    /// This process uploads from here on: what another one has left of no use to it goes.
    pub(super) fn begin(&self) {
        if self.table.lock().file.is_none() {
            // There is hardly ever one.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// The store has acknowledged an object.
    pub(super) fn keep(&self, name: &LtxName, content: &Bytes) {
        let bytes = content.len() as u64;
        if bytes > self.limit_bytes / OBJECT_SHARE {
            return;
        }
        let mut table = self.table.lock();
        if let Err(error) = self.write(&mut table, name, content) {
            event!(Debug, "local_file", Beside(&self.path), cause = error; "{}: {error}", self.path.display());
            self.clear(&mut table);
        }
    }

    fn write(&self, table: &mut Table, name: &LtxName, content: &Bytes) -> io::Result<()> {
        let bytes = content.len() as u64;
        table.take(name);
        self.has_room(table.bytes + bytes)?;
        let place = loop {
            match table.place(bytes, self.limit_bytes) {
                Some(place) if table.objects.len() < MOST_OBJECTS => break place,
                _ => {
                    let Some(oldest) = table.objects.first_key_value().map(|(_, object)| object.name) else {
                        return Err(io::ErrorKind::StorageFull.into());
                    };
                    table.take(&oldest);
                }
            }
        };
        fault_io!("recent.write")?;
        self.open(table, true)?.write_all_at(content, place)?;
        table.put(Object { name: *name, place, bytes });
        Ok(())
    }

    /// Others may need the disk more.
    fn has_room(&self, bytes: u64) -> io::Result<()> {
        let disk = rustix::fs::statvfs(self.path.parent().unwrap_or(&self.path))?;
        // What is in the file is not free.
        let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free_bytes < self.least_free_bytes || bytes > free_bytes / FREE_SHARE {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// The file that the table is of. It is not held open: there may be thousands of databases.
    fn open(&self, table: &mut Table, writes: bool) -> io::Result<File> {
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        if table.file.is_none() {
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(&self.path)?;
            OwnerMode::of(&self.database)?.apply(&file)?;
            table.file = Some(identity(&file)?);
            return Ok(file);
        }
        let file = OpenOptions::new().read(!writes).write(writes).open(&self.path)?;
        if table.file == Some(identity(&file)?) { Ok(file) } else { Err(io::Error::other("it is another process's now")) }
    }

    fn clear(&self, table: &mut Table) {
        if std::mem::take(table).file.is_some() {
            // It may be gone.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Gives the disk back what is free behind the last object.
    fn cut(&self, table: &mut Table) {
        let end = table.places.last_key_value().map_or(0, |(_, end)| *end);
        if end == 0 || self.open(table, true).and_then(|file| file.set_len(end)).is_err() {
            self.clear(table);
        }
    }
}

impl AtHand for Recent {
    fn has(&self, file: &Listed) -> bool {
        self.table.lock().find(file).is_some()
    }

    fn read(&self, file: &Listed, range: Range<u64>) -> Option<Bytes> {
        let mut table = self.table.lock();
        let object = table.find(file).filter(|object| range.start <= range.end && range.end <= object.bytes)?;
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        let read =
            fault_io!("recent.read").and_then(|()| self.open(&mut table, false)?.read_exact_at(&mut bytes, object.place + range.start));
        if let Err(error) = read {
            event!(Debug, "local_file", Beside(&self.path), cause = error; "{}: {error}", self.path.display());
            self.clear(&mut table);
            return None;
        }
        Some(bytes.into())
    }

    fn made(&self, name: &LtxName, content: Option<Bytes>) {
        if name.level != SNAPSHOT_LEVEL {
            let mut table = self.table.lock();
            let is_in_it = |other: &LtxName| other.level < name.level && other.min_txid >= name.min_txid && other.max_txid <= name.max_txid;
            let merged: Vec<LtxName> = table.by_name.keys().copied().filter(is_in_it).collect();
            for other in &merged {
                table.take(other);
            }
            if !merged.is_empty() {
                self.cut(&mut table);
            }
        }
        if let Some(content) = content {
            self.keep(name, &content);
        }
    }

    fn discard(&self, name: &LtxName) -> bool {
        self.table.lock().take(name)
    }

    fn forget(&self) {
        self.clear(&mut self.table.lock());
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Table {
    fn find(&self, file: &Listed) -> Option<Object> {
        let object = self.by_name.get(&file.name).and_then(|age| self.objects.get(age))?;
        (object.bytes == file.size_bytes).then_some(*object)
    }

    /// A place for so many bytes.
    fn place(&self, bytes: u64, limit_bytes: u64) -> Option<u64> {
        let mut free = 0;
        for (begin, end) in &self.places {
            if begin - free >= bytes {
                return Some(free);
            }
            free = *end;
        }
        (free + bytes <= limit_bytes).then_some(free)
    }

    fn put(&mut self, object: Object) {
        self.next += 1;
        self.objects.insert(self.next, object);
        self.by_name.insert(object.name, self.next);
        self.places.insert(object.place, object.place + object.bytes);
        self.bytes += object.bytes;
    }

    fn take(&mut self, name: &LtxName) -> bool {
        let Some(object) = self.by_name.remove(name).and_then(|age| self.objects.remove(&age)) else { return false };
        self.places.remove(&object.place);
        self.bytes -= object.bytes;
        true
    }
}

#[cfg(test)]
#[path = "recent_tests.rs"]
mod tests;
