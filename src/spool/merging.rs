//! Entries that are made into one file. That takes a while where they are large, and needs no lock on the queue but at its beginning and its end: who has something
//! to add meanwhile adds it behind them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Entry, Input, Out, Room, Spool, SpoolError, Stored, fault_point, io_error, placeholder, write_file};
use crate::ltx::{Header, Reader, merge};
use crate::replicator::local::OwnerMode;
use crate::types::Txid;

/// What such files are called until the queue has them: others that look at its directory meanwhile leave them alone.
pub(super) const PREFIX: &str = "merging-";

/// Entries below this number are being merged by this process, and nobody else in it shall.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<AtomicU64>);

impl Held {
    pub(super) fn below(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lets them go.
struct Holding(Held);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.0.store(0, Ordering::Relaxed);
    }
}

/// Entries to be merged.
pub(crate) struct Merging {
    /// What each of them covers.
    inputs: Vec<(u64, u64)>,
    readers: Vec<Reader<Input>>,
    header: Header,
    file: Temporary,
    owner: OwnerMode,
    room: Room,
    holding: Option<Holding>,
}

/// What has become of them.
pub(crate) struct Merged {
    inputs: Vec<(u64, u64)>,
    file: Temporary,
    /// An error counts where they are still there: whoever has taken them meanwhile may have written over their files.
    made: Result<Made, SpoolError>,
    _holding: Option<Holding>,
}

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) stored: Stored,
    pub(crate) size_bytes: u64,
    pub(crate) file_checksum: u64,
}

/// A file that is removed unless it is given its name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // One that cannot be removed is removed at the next open.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Merging {
    /// The header that the file will have.
    pub(crate) const fn header(&self) -> &Header {
        &self.header
    }

    /// Makes the file. Needs no lock.
    pub(crate) fn run(self) -> Merged {
        let (path, mut sums) = (&self.file.0, (0, 0));
        let written = write_file(path, &self.owner, self.room, |out: &mut Out| {
            let done = merge(self.readers, &self.header, out).map_err(|source| SpoolError::of(path, source))?;
            sums = (done.size_bytes, done.file_checksum);
            Ok::<_, SpoolError>(())
        });
        let made = written.map(|stored| Made { stored, size_bytes: sums.0, file_checksum: sums.1 });
        Merged { inputs: self.inputs, file: self.file, made, _holding: self.holding }
    }
}

impl Merged {
    /// Gives the file its name. `None` where somebody has removed it.
    fn name(self, path: &Path) -> Result<Option<Made>, SpoolError> {
        let made = self.made?;
        if let Stored::File(_) = made.stored {
            match std::fs::rename(&self.file.0, path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                renamed => renamed.map_err(|source| io_error(path, source))?,
            }
        }
        fault_point!("spool.renamed");
        Ok(Some(made))
    }
}

impl Spool {
    /// Begins to merge the newest entries, as far as that is cheap: each byte is rewritten a number of times logarithmic in the backlog.
    pub(crate) fn merge_newest(&mut self) -> Result<Option<Merging>, SpoolError> {
        let free = self.unheld();
        let Some(run) = self.cheap_run(free) else { return Ok(None) };
        self.make_room();
        fault_point!("merge.begin");
        let from = self.entries.len() - run;
        let (Some(oldest), Some(newest)) = (self.entries.get(from), self.entries.back()) else { return Ok(None) };
        let mut header = self.header(newest)?;
        header.min_txid = placeholder(oldest.first);
        self.merging(from, header).map(Some)
    }

    /// Begins to merge all entries into the batch of that name.
    pub(crate) fn merge_all(&mut self, txid: Txid, node_id: u64) -> Result<Option<Merging>, SpoolError> {
        self.attempt_bytes = 0;
        self.make_room();
        let Some(newest) = self.entries.back() else { return Ok(None) };
        let mut header = self.header(newest)?;
        (header.min_txid, header.max_txid, header.node_id) = (txid, txid, node_id);
        self.merging(0, header).map(Some)
    }

    fn merging(&self, from: usize, header: Header) -> Result<Merging, SpoolError> {
        let inputs = || self.entries.range(from..);
        let holding = (self.held.below() == 0).then(|| {
            self.held.0.store(self.next, Ordering::Relaxed);
            Holding(self.held.clone())
        });
        Ok(Merging {
            inputs: inputs().map(|entry| (entry.first, entry.last)).collect(),
            readers: inputs().map(|entry| self.reader(entry)).collect::<Result<_, _>>()?,
            header,
            file: Temporary(self.directory.join(format!("{PREFIX}{:016x}.tmp", fastrand::u64(..)))),
            owner: self.owner,
            room: self.room(1),
            holding,
        })
    }

    /// Has the file that entries were merged into in their place. False where they are not there any more: somebody else has merged, sent or given them up.
    pub(crate) fn take(&mut self, merged: Merged) -> Result<bool, SpoolError> {
        let Some(from) = self.place_of(&merged) else { return Ok(false) };
        let (Some(&(first, _)), Some(&(_, last))) = (merged.inputs.first(), merged.inputs.last()) else { return Ok(false) };
        let (output, count) = (Entry { first, last, bytes: 0, memory: None }, merged.inputs.len());
        let Some(made) = merged.name(&self.path(&output))? else { return Ok(false) };
        fault_point!("merge.written");
        let after = self.entries.split_off(from + count);
        let inputs = self.entries.split_off(from);
        self.entries.push_back(output.stored(made.stored));
        self.entries.extend(after);
        // One that cannot be removed is removed at the next open.
        inputs.iter().filter(|input| input.is_on_disk()).try_for_each(|input| {
            self.discard(input)?;
            fault_point!("merge.removed");
            Ok(())
        })?;
        Ok(true)
    }

    /// Has the file that all entries were merged into as the batch of that name, and those entries no more; their files go when the caller has saved that they are not needed:
    /// see `remove_stale`. `None` where they are not there any more.
    pub(crate) fn take_attempt(&mut self, txid: Txid, merged: Merged) -> Result<Option<Made>, SpoolError> {
        let count = merged.inputs.len();
        if self.place_of(&merged) != Some(0) {
            return Ok(None);
        }
        let Some(made) = merged.name(&self.attempt_path(txid))? else { return Ok(None) };
        drop(self.entries.drain(..count));
        self.attempt_bytes = if let Stored::File(bytes) = made.stored { bytes } else { 0 };
        Ok(Some(made))
    }

    fn place_of(&self, merged: &Merged) -> Option<usize> {
        let (first, _) = *merged.inputs.first()?;
        let from = self.entries.iter().position(|entry| entry.first == first)?;
        let found = self.entries.range(from..).map(|entry| (entry.first, entry.last));
        found.take(merged.inputs.len()).eq(merged.inputs.iter().copied()).then_some(from)
    }
}
