//! Transactions that change several databases of one connection (ATTACH), where a commit of one of them waits for the bucket.
//!
//! SQLite commits the databases one after the other, and has no use for an error by then:
//!
//! | the databases that are changed | an error from `COMMIT_PHASETWO` |
//! |---|---|
//! | all in WAL mode | is returned; all are committed |
//! | one in a rollback-journal mode | is returned; where that one comes after the database that fails it is rolled back, the others are not |
//! | several in a rollback-journal mode (a super-journal) | is ignored |
//!
//! The last two would break a transaction apart or a promise. Such a transaction is refused before anything of it is committed, so that all of it
//! is rolled back:
//!
//! ```text
//!   xOpen, xWrite of the super-journal    SQLite writes down which databases the transaction has
//!   xLock EXCLUSIVE                       all are known; nothing is written to the databases yet, unless the cache has overflowed
//!   xWrite of a WAL's commit frame        all are known; without that frame the transaction does not count
//!   SQLITE_FCNTL_SYNC with a name         the super-journal's, where another VFS has opened that
//! ```
//!
//! That a database was opened for writing is not enough: `BEGIN IMMEDIATE` does that with all that are attached. It has changed when its journal
//! says so. Temporary and in-memory databases are left out: what a failing COMMIT rolls back there nobody keeps.

use std::ffi::{c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::abi::{File, SQLITE_AUTH, SQLITE_LOCK_RESERVED, SQLITE_OK};
use super::api::Schema;
use super::main_file::MainFile;
use crate::logging::event;
use crate::replicator::process;
use crate::replicator::replicas::Replicas;
use crate::wal::IndexHeader;

/// The open files of each process of a chain of forks: a lock that is inherited may be held by nobody.
static OPEN: [Mutex<Vec<Open>>; process::MOST_FORKS] = [const { Mutex::new(Vec::new()) }; process::MOST_FORKS];

#[derive(Clone, Copy, PartialEq, Eq)]
struct Open(*const MainFile);

// SAFETY: what is behind it is looked at under the list's lock, which it leaves before it is freed, or by the thread that works with it.
unsafe impl Send for Open {}

/// To be called when a replicated file is open, and stays where it is.
pub(super) fn opened(main: &MainFile) {
    if let Some(open) = OPEN.get(main.generation) {
        open.lock().push(Open(main));
    }
}

/// To be called before an open file is freed, by the process that has opened it.
pub(super) fn closes(main: &MainFile) {
    if let Some(open) = OPEN.get(main.generation) {
        open.lock().retain(|other| *other != Open(main));
    }
}

/// The WAL-index of a database, by any connection that has it mapped. SQLite unmaps it under the list's lock.
pub(super) fn wal_index(path: &Path) -> Option<IndexHeader> {
    let open = OPEN.get(process::generation())?.lock();
    open.iter().find_map(|open| {
        // SAFETY: it is on the list, whose lock is held.
        let main = unsafe { &*open.0 };
        // Of a WAL that was cut to nothing at the last close the index still says what was there.
        // And one that is let go of had that name before.
        let is_it = |replicas: &&Replicas| {
            let stays = replicas.iter().any(|database| !database.shared.has_left());
            replicas.first.paths.database == path && stays && !main.wal_is_cut.load(Ordering::Relaxed)
        };
        main.replicas().filter(is_it)?;
        main.index_header()
    })
}

/// Does something while nobody reads a WAL-index by the list.
pub(super) fn while_nobody_reads<T>(main: &MainFile, body: impl FnOnce() -> T) -> T {
    let _open = OPEN.get(main.generation).map(|open| open.lock());
    body()
}

/// Why a transaction is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// SQLite would not tell that a commit has not reached the bucket.
    Ignored,
    /// SQLite would roll another database back and leave this one committed.
    Torn,
}

/// Whether a journal holds what would roll a transaction back: neither empty, nor finished, nor a WAL.
///
/// # Safety
/// `journal` is null or a file of SQLite's, open or not.
unsafe fn rolls_back(journal: *mut File) -> bool {
    let mut start = [0; JOURNAL_START_BYTES];
    // SAFETY: a file that is not open has no methods; the buffer is as long as it says.
    let read = unsafe {
        match journal.as_ref().and_then(|file| file.methods.as_ref()).and_then(|methods| methods.read) {
            Some(read) => read(journal, start.as_mut_ptr().cast::<c_void>(), start.len() as c_int, 0),
            None => return false,
        }
    };
    read == SQLITE_OK && begins_a_journal(&start)
}

const JOURNAL_START_BYTES: usize = 24;

/// Whether that is the start of a journal that says how to undo a transaction, or will.
fn begins_a_journal(start: &[u8; JOURNAL_START_BYTES]) -> bool {
    const WAL_MAGIC: u32 = 0x377f_0682;
    let word = |at: usize| start.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes);
    // The magic number of a journal is written when it is synced; the size of a sector at once, and set to zero when the transaction is over.
    word(0) & !1 != WAL_MAGIC && word(20) != 0
}

/// Whether the transaction changes that database, which is not only in memory, and has not committed it: then it can be rolled back.
fn can_be_rolled_back(schema: &Schema) -> bool {
    // SAFETY: SQLite's own pointers; a file name is a C string.
    schema.is_written && !schema.file_name.is_null() && unsafe { *schema.file_name != 0 && rolls_back(schema.journal) }
}

impl MainFile {
    /// The databases of the connection; none where that cannot be told.
    ///
    /// # Safety
    /// This thread is working with the connection.
    unsafe fn schemas(&self) -> Vec<Schema> {
        let connection = self.connection.load(Ordering::Acquire);
        if connection.is_null() {
            return Vec::new();
        }
        // SAFETY: SQLite keeps what it gave with `SQLITE_FCNTL_PDB` as long as the file is open.
        unsafe { self.api.schemas(*connection) }
    }

    /// Which of the connection's databases is this one, and which of them can be rolled back, in the order in which they commit.
    ///
    /// # Safety
    /// This thread is working with the connection.
    unsafe fn members(&self) -> Option<(usize, Vec<bool>)> {
        // SAFETY: passed on.
        let schemas = unsafe { self.schemas() };
        let own = schemas.iter().position(|schema| std::ptr::eq(schema.file_name, self.name))?;
        Some((own, schemas.iter().map(can_be_rolled_back).collect()))
    }

    /// The same with a SQLite that does not tell which databases a connection has. Those among them that are replicated are known, in the order in which
    /// they were opened, which is the order of attachment; and of what they have changed, as much as is in a journal on disk.
    ///
    /// # Safety
    /// This thread is working with the connection.
    unsafe fn replicated_members(&self) -> Option<(usize, Vec<bool>)> {
        let open = OPEN.get(self.generation)?.lock();
        let connection_of = |main: &Self| {
            let at = main.connection.load(Ordering::Acquire);
            // SAFETY: SQLite keeps what it gave with `SQLITE_FCNTL_PDB` as long as the file is open, which it is while it is on the list. Where another
            // connection uses the file, and shares its cache, that one may change it: then it is one or the other.
            (!at.is_null()).then(|| unsafe { at.read_volatile() })
        };
        let connection = connection_of(self)?;
        // SAFETY: they are on the list, whose lock is held.
        let members = open.iter().map(|open| unsafe { &*open.0 }).filter(|main| connection_of(main) == Some(connection));
        let (mut own, mut can_be_rolled_back) = (None, Vec::new());
        for (i, main) in members.enumerate() {
            if std::ptr::eq(main, self) {
                own = Some(i);
            }
            let has_journal =
                || main.database().is_some_and(|database| database.journal_start().is_some_and(|start| begins_a_journal(&start)));
            can_be_rolled_back.push(
                main.lock_level.load(Ordering::Relaxed) >= SQLITE_LOCK_RESERVED
                    && !main.in_wal_mode.load(Ordering::Relaxed)
                    && has_journal(),
            );
        }
        Some((own?, can_be_rolled_back))
    }

    /// Whether an error from this database's `COMMIT_PHASETWO` would do harm. To be asked when all databases of the transaction are known.
    ///
    /// # Safety
    /// This thread is working with the connection.
    pub(super) unsafe fn refuses_group(&self) -> Option<Refusal> {
        if !self.policy.waits() {
            return None;
        }
        // SAFETY: passed on.
        let (own, can_be_rolled_back) = unsafe { if self.api.tells_schemas() { self.members() } else { self.replicated_members() } }?;
        let others: Vec<usize> =
            can_be_rolled_back.iter().enumerate().filter(|(i, can_be)| *i != own && **can_be).map(|(i, _)| i).collect();
        let is_changed = self.in_wal_mode.load(Ordering::Relaxed) || can_be_rolled_back.get(own).copied().unwrap_or(false);
        match others.as_slice() {
            _ if !is_changed => None,
            // Two journals have a super-journal above them.
            [_, _, ..] => Some(Refusal::Ignored),
            [other] if *other > own => Some(Refusal::Torn),
            _ => None,
        }
    }

    /// Whether the transaction changes no other database of the connection; false where that cannot be told.
    ///
    /// # Safety
    /// This thread is working with the connection.
    pub(super) unsafe fn changes_alone(&self) -> bool {
        // SAFETY: passed on.
        let schemas = unsafe { self.schemas() };
        let is_own = |schema: &Schema| std::ptr::eq(schema.file_name, self.name);
        let connection = self.connection.load(Ordering::Acquire);
        // SAFETY: as above; the list is empty where the connection is not known.
        schemas.iter().any(is_own)
            && schemas.iter().all(|schema| is_own(schema) || !schema.is_written)
            && unsafe { !self.api.writes_temp(*connection) }
    }

    /// Refuses a transaction, and tells why.
    pub(super) fn refuse_group(&self, refusal: Refusal) -> c_int {
        let Some(database) = self.database() else { return SQLITE_AUTH };
        let why = match refusal {
            Refusal::Ignored => {
                "SQLite would not report that it has not reached the bucket, as several of its databases are in a rollback-journal mode"
            }
            Refusal::Torn => {
                "if it did not reach the bucket, SQLite would roll back a database of it that is in a rollback-journal mode, and not this one"
            }
        };
        let told = format!(
            "a transaction over several databases is refused and rolled back: with durability={} {why}. Change the databases in transactions of \
             their own, have all of them in WAL mode, or set PRAGMA replicated_durability=local for this one",
            self.policy.durability()
        );
        super::note_refusal(&format!("{}: {told}", database.paths.database.display()));
        if !self.told_of_group.swap(true, Ordering::Relaxed) {
            event!(Error, "group_refused", database, cause = why; "{told}");
        }
        SQLITE_AUTH
    }
}

/// A super-journal is about to get the name of a database's journal; refuses where a commit of that database waits for the bucket.
///
/// # Safety
/// `name` is what SQLite writes to a super-journal, on the thread of the connection that commits.
pub(super) unsafe fn joins_super_journal(name: &[u8]) -> Option<c_int> {
    let path = name.strip_suffix(b"\0").unwrap_or(name).strip_suffix(b"-journal")?;
    let member = {
        let open = OPEN.get(process::generation())?.lock();
        open.iter().copied().find(|open| {
            // SAFETY: it is on the list, whose lock is held.
            let main = unsafe { &*open.0 };
            let may_write = main.lock_level.load(Ordering::Relaxed) >= SQLITE_LOCK_RESERVED || main.holds_write.load(Ordering::Relaxed);
            may_write && main.policy.waits() && main.database().is_some_and(|d| d.paths.database.as_os_str().as_bytes() == path)
        })?
    };
    // SAFETY: it may write to a database that the committing connection writes to: it is that connection's, which this thread works with.
    let main = unsafe { &*member.0 };
    let is_changed = main.in_wal_mode.load(Ordering::Relaxed) || {
        // SAFETY: as above.
        let schemas = unsafe { main.schemas() };
        let own = schemas.iter().find(|schema| std::ptr::eq(schema.file_name, main.name));
        own.is_none_or(can_be_rolled_back)
    };
    is_changed.then(|| main.refuse_group(Refusal::Ignored))
}

/// The file name that SQLite passed to `xOpen`, to be compared and nothing else.
pub(super) type FileName = *const c_char;
