//! What the bucket holds, followed as it grows: every TXID is a state that was committed and continues the one before it, and nothing that was
//! there goes away or becomes something else.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

use replicated::ltx::Reader;
use replicated::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL};
use replicated::types::Txid;
use rusqlite::{Connection, OpenFlags};

use super::actor::look;
use super::model::Model;
use super::wire::Seen;
use crate::bucket::Bucket;
use crate::sqlite::integrity_check;

/// See the module.
pub struct Watch {
    objects: BTreeMap<LtxName, (u64, u64)>,
    pages: BTreeMap<u32, Vec<u8>>,
    page_bytes: usize,
    pages_in_all: u32,
    /// The state of every TXID so far.
    pub states: BTreeMap<Txid, u64>,
    /// Breaks in the history that the user has asked for.
    pub breaks: u64,
    scratch: PathBuf,
}

/// The state of a file that nobody has open.
///
/// # Errors
/// That it is no sound database.
pub fn state_of(path: &Path) -> Result<Seen, String> {
    integrity_check(path)?;
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|error| error.to_string())?;
    look(&db).map_err(|error| format!("{}: {error}", path.display()))
}

fn read(bucket: &Bucket, listed: &Listed) -> Result<Vec<u8>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let bytes = runtime.block_on(bucket.store().get_range(&listed.name, 0..listed.size_bytes));
    bytes.map(|bytes| bytes.to_vec()).map_err(|error| format!("I6: {}: {error}", listed.name))
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

impl Watch {
    /// Of an empty bucket.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            objects: BTreeMap::new(),
            pages: BTreeMap::new(),
            page_bytes: 0,
            pages_in_all: 0,
            states: BTreeMap::new(),
            breaks: 0,
            scratch: dir.join("watched.db"),
        }
    }

    /// The newest TXID that was looked at.
    #[must_use]
    pub fn newest(&self) -> Option<(Txid, u64)> {
        self.states.iter().next_back().map(|(txid, state)| (*txid, *state))
    }

    /// How many objects there are.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Whose object a TXID's is.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn writer_of(&self, bucket: &Bucket, txid: Txid) -> Result<Option<u64>, String> {
        let Some(listed) = bucket.try_list().into_iter().find(|listed| listed.name.max_txid == txid && listed.name.level == Level::ZERO)
        else {
            return Ok(None);
        };
        let header = Reader::new(read(bucket, &listed)?.as_slice()).read_header().map_err(|error| error.to_string())?;
        Ok(Some(header.node_id))
    }

    /// Looks at what is new (I1, I5), and that what was there is there (I6): by name and size, and `thoroughly` by content.
    ///
    /// When compaction comes, what may vanish is a name of a level below 9 whose TXIDs an object of another level has, which was read back
    /// here before: this is the place that says so.
    ///
    /// # Errors
    /// What does not hold.
    pub fn look(&mut self, bucket: &Bucket, model: &Model, thoroughly: bool) -> Result<(), String> {
        let listed = bucket.try_list();
        let there: BTreeMap<LtxName, Listed> = listed.iter().map(|listed| (listed.name, *listed)).collect();
        for (name, (size, sum)) in &self.objects {
            let Some(listed) = there.get(name) else { return Err(format!("I6: {name} was in the bucket and is there no more")) };
            if listed.size_bytes != *size {
                return Err(format!("I6: {name} had {size} bytes and has {}", listed.size_bytes));
            }
            if thoroughly && hash(&read(bucket, listed)?) != *sum {
                return Err(format!("I6: {name} holds something else than before"));
            }
        }
        let mut new = BTreeMap::new();
        for listed in &listed {
            if self.objects.contains_key(&listed.name) {
                continue;
            }
            let bytes = read(bucket, listed)?;
            self.objects.insert(listed.name, (listed.size_bytes, hash(&bytes)));
            new.insert(listed.name, bytes);
        }
        self.follow(&there, &new, bucket, model)
    }

    fn follow(
        &mut self,
        there: &BTreeMap<LtxName, Listed>,
        new: &BTreeMap<LtxName, Vec<u8>>,
        bucket: &Bucket,
        model: &Model,
    ) -> Result<(), String> {
        let last = self.newest().map(|(txid, _)| txid);
        let is_new = |name: &&LtxName| last.is_none_or(|last| name.max_txid > last);
        let snapshot = |txid: Txid| there.keys().find(|name| name.level == SNAPSHOT_LEVEL && name.max_txid == txid);
        let increments: Vec<LtxName> = there.keys().filter(|name| name.level == Level::ZERO).filter(is_new).copied().collect();
        // A process that died before it wrote the empty file beside its snapshot leaves the snapshot alone: what follows says where it ends.
        let alone = there.keys().filter(|name| name.level == SNAPSHOT_LEVEL).filter(is_new);
        let alone = alone.filter(|name| increments.first().is_some_and(|first| first.min_txid == name.max_txid.next()));
        let mut files: Vec<LtxName> = alone.copied().collect();
        files.extend(increments);
        for name in files {
            let txid = name.max_txid;
            let last = self.newest().map(|(txid, _)| txid);
            if last.is_some_and(|last| name.min_txid != last.next()) && name.level == Level::ZERO {
                return Err(format!("I1: TXID {txid} follows on {last:?}"));
            }
            let of = snapshot(txid).unwrap_or(&name);
            let again;
            let bytes = match new.get(of) {
                Some(bytes) => bytes,
                // It was there already, without what makes it count.
                None => {
                    let listed = there.get(of).ok_or_else(|| format!("I6: {of} is gone"))?;
                    again = read(bucket, listed)?;
                    &again
                }
            };
            self.apply(bytes, of.level == SNAPSHOT_LEVEL).map_err(|error| format!("I1: TXID {txid}: {error}"))?;
            let seen = self.write().map_err(|error| format!("I1: TXID {txid}: {error}"))?;
            if model.doubtful.contains(&seen.id) && !model.knows(seen.id) {
                // Another process of that host has sent what one has committed that was stopped then: who reads there next tells, and the next look sees it.
                return Ok(());
            }
            model.check(seen).map_err(|error| format!("I1: TXID {txid}: {error}"))?;
            if let Some((before, state)) = self.newest()
                && !model.continues(seen.id, state)
            {
                if !model.allows_break_after(before) {
                    return Err(format!(
                        "TXID {txid} is state {}, which does not continue state {state} of TXID {before}; declared the truth was over {:?}",
                        seen.id, model.adopted
                    ));
                }
                self.breaks += 1;
            }
            self.states.insert(txid, seen.id);
        }
        Ok(())
    }

    fn apply(&mut self, bytes: &[u8], is_snapshot: bool) -> Result<(), String> {
        let told = |error: replicated::ltx::LtxError| error.to_string();
        let mut reader = Reader::new(bytes);
        let header = reader.read_header().map_err(told)?;
        if is_snapshot {
            self.pages.clear();
        } else if self.page_bytes != header.page_size.bytes() {
            return Err("another page size without a snapshot".to_owned());
        }
        let mut page = Vec::new();
        while let Some(number) = reader.next_page(&mut page).map_err(told)? {
            self.pages.insert(number.get(), page.clone());
        }
        self.pages.retain(|number, _| *number <= header.commit_pages);
        (self.page_bytes, self.pages_in_all) = (header.page_size.bytes(), header.commit_pages);
        Ok(())
    }

    fn write(&self) -> Result<Seen, String> {
        let mut content = Vec::with_capacity(self.page_bytes * self.pages_in_all as usize);
        for number in 1..=self.pages_in_all {
            match self.pages.get(&number) {
                Some(page) => content.extend(page),
                None => return Err(format!("page {number} of {} is in no file", self.pages_in_all)),
            }
        }
        std::fs::write(&self.scratch, content).map_err(|error| error.to_string())?;
        if self.pages_in_all == 0 {
            return Ok(Seen::default());
        }
        state_of(&self.scratch)
    }

    /// What was promised is there (I2).
    ///
    /// # Errors
    /// Which promise was broken.
    pub fn keeps_promises(&self, model: &Model) -> Result<(), String> {
        for promise in &model.promises {
            let kept = self.states.range(..=promise.txid).rev().any(|(_, state)| model.continues(*state, promise.id));
            if !kept {
                return Err(format!(
                    "I2: state {} was acknowledged as TXID {} at the latest, and is in none up to it",
                    promise.id, promise.txid
                ));
            }
        }
        Ok(())
    }
}
