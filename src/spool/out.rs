//! Where a file of the spool is written to: the disk or, where that is full, memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{IO_BUFFER_BYTES, SpoolError};
use crate::fault::fault_io;
use crate::replicator::local::OwnerMode;

/// What a file may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) disk_bytes: u64,
    pub(super) memory_bytes: u64,
    /// What the others take of the limit.
    pub(super) taken_bytes: u64,
    /// How often it will be there.
    pub(super) copies: u64,
    pub(super) limit_bytes: u64,
}

impl Room {
    /// It would have become as large as that at least.
    pub(super) fn over_limit(&self, path: &Path, bytes: u64) -> SpoolError {
        SpoolError::Full {
            directory: path.parent().unwrap_or(path).to_owned(),
            needed_bytes: self.taken_bytes.saturating_add(self.copies.saturating_mul(bytes)),
            limit_bytes: self.limit_bytes,
        }
    }
}

/// What has become of a file.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    /// It is on the disk, and has that many bytes.
    File(u64),
    /// The disk had no room for it.
    Memory(Bytes),
}

impl Stored {
    pub(super) const fn bytes(&self) -> u64 {
        match self {
            Self::File(bytes) => *bytes,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    pub(super) fn into_memory(self) -> Option<Bytes> {
        match self {
            Self::File(_) => None,
            Self::Memory(bytes) => Some(bytes),
        }
    }
}

/// A file in the making.
#[derive(Debug)]
pub(crate) struct Out {
    path: PathBuf,
    /// `None`: all of it is in the buffer.
    file: Option<File>,
    buffer: Vec<u8>,
    /// What the file has; the buffer comes behind it.
    flushed_bytes: u64,
    room: Room,
    /// How large the file would have become at least, where that is more than it may be.
    over_limit_bytes: Option<u64>,
}

/// There is no room on the disk, or none for this file or its owner.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

impl Out {
    pub(super) fn create(path: &Path, owner: &OwnerMode, room: Room) -> io::Result<Self> {
        let made = fault_io!("spool.create").and_then(|()| {
            // One that is written over is cut at its end only: a file that was cut to nothing, ext4 sends to the disk when it is closed.
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            owner.apply(&file)?;
            Ok(file)
        });
        let file = match made {
            Err(error) if !is_disk_full(&error) => return Err(error),
            made => made.ok(),
        };
        Ok(Self { path: path.to_owned(), file, buffer: Vec::new(), flushed_bytes: 0, room, over_limit_bytes: None })
    }

    /// Bytes written so far.
    const fn bytes(&self) -> u64 {
        self.flushed_bytes + self.buffer.len() as u64
    }

    /// How large the file would have become at least, where that is more than it may be.
    pub(super) const fn over_limit_bytes(&self) -> Option<u64> {
        self.over_limit_bytes
    }

    pub(super) fn finish(mut self) -> io::Result<Stored> {
        self.flush_buffer()?;
        if let Some(file) = &self.file {
            let cut = |()| if file.metadata()?.len() > self.flushed_bytes { file.set_len(self.flushed_bytes) } else { Ok(()) };
            match fault_io!("spool.written").and_then(cut) {
                Ok(()) => return Ok(Stored::File(self.flushed_bytes)),
                Err(error) => self.go_to_memory(error)?,
            }
        }
        Ok(Stored::Memory(self.buffer.into()))
    }

    fn flush_buffer(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if let Err(error) = file.write_all_at(&self.buffer, self.flushed_bytes) {
            return self.go_to_memory(error);
        }
        self.flushed_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// The disk is full: what the file has comes back. Fails where the error was another one, or where that is too much.
    fn go_to_memory(&mut self, error: io::Error) -> io::Result<()> {
        if !is_disk_full(&error) || self.bytes() > self.room.memory_bytes {
            return Err(error);
        }
        let Some(file) = self.file.take() else { return Err(error) };
        let mut all = vec![0; usize::try_from(self.flushed_bytes).map_err(io::Error::other)?];
        file.read_exact_at(&mut all, 0)?;
        all.append(&mut self.buffer);
        (self.buffer, self.flushed_bytes) = (all, 0);
        // At once: others need the room.
        let _ = std::fs::remove_file(&self.path);
        Ok(())
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let after = self.bytes().saturating_add(bytes.len() as u64);
        if self.file.is_some() && after > self.room.disk_bytes {
            self.over_limit_bytes = Some(after);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        if self.file.is_none() && after > self.room.memory_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= IO_BUFFER_BYTES {
            self.flush_buffer()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
