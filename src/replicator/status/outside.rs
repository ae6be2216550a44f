//! The status of a database as anybody can see it who may read what is beside it: nothing is written, and no lock is taken, so that whoever writes to the database
//! does not notice.
//!
//! ```text
//!   control file       what was acknowledged, what waits in the spool            (two slots with a checksum each: whole, whenever it is read)
//!   its page           what changes with every commit and every request          (mapped to be read; it stays as it was when all processes are gone)
//!   its locks          who has the database open, and who uploads                (asked for, not taken: the kernel drops them with their process)
//!   WAL, spool         where nobody has it open: what waits                      (read; neither carries locks)
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Local, Parts};
use crate::config::Durability;
use crate::replicator::background::Proof;
use crate::replicator::control::{self, State as Saved};
use crate::replicator::database::published;
use crate::replicator::durability::Policy;
use crate::replicator::local::{Paths, identity};
use crate::replicator::process;
use crate::replicator::progress::{Facts, ReplicationState};
use crate::replicator::shared::{Locks, Mapped, Page, Private, Range};
use crate::replicator::stamp::mtime_ns;
use crate::replicator::tail::Mode;
use crate::spool::Waits;
use crate::status::{Row, Status, Uploader};
use crate::types::{PageSize, TimestampMs, Txid, WalPos};
use crate::vfs::map_to_look;
use crate::wal;

/// Why there is nothing to say of a database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookError {
    /// There is no such file, or it cannot be looked at.
    #[error("{path} cannot be looked at: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No process has ever opened it with a replica.
    #[error("{database} is not replicated: there is no {directory}, which the first open with a replica makes")]
    NotReplicated {
        /// The database.
        database: PathBuf,
        /// What should be beside it.
        directory: PathBuf,
    },
    /// What is beside it is of another version, or damaged.
    #[error("{0} is not what this version writes: it is damaged, or of another version")]
    Unreadable(PathBuf),
    /// A process has it open that shares nothing.
    #[error(
        "{0} is open in a process that does not tell others how it is: one of another version, or on a file system without shared memory"
    )]
    Untold(PathBuf),
    /// What is beside it was made for another file of that name.
    #[error("{0} belongs to another file that had this name before: this one was not opened with a replica since it is there")]
    OtherFile(PathBuf),
}

impl LookError {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> String {
        match self {
            Self::Io { path, .. } if path.to_string_lossy().contains("://") => {
                "Name the file of the database; `replicated list` and `replicated doctor` take the URL of a replica"
            }
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => {
                    "Name the file of the database. One that is gone is had back with `replicated restore`, or by an open with restore=if-missing"
                }
                io::ErrorKind::PermissionDenied => "Run this as a user who may read the database and what is beside it",
                _ => "Look at the disk and at the system's log (dmesg)",
            },
            Self::NotReplicated { database, .. } if database.is_dir() => {
                "Name the file of the database; `--all` finds the databases below a directory"
            }
            Self::NotReplicated { .. } => {
                "Open it with vfs=replicated and replica=URL (docs/clients.md), or name the database that the application opens: links lead to it, copies do not"
            }
            Self::Unreadable(_) => {
                "Use the tool of the version that the application has. The next open makes it anew, and goes on where the WAL shows that database and bucket are \
                 one history; where it does not, replication stops (diverged), until `replicated adopt` declares the file the truth"
            }
            Self::Untold(_) => "Ask that process, by `PRAGMA replicated_status`",
            Self::OtherFile(_) => {
                "The next open with a replica does not use it, and compares the file with the bucket; docs/troubleshooting.md, \"Replication has stopped\", says \
                 what comes of that"
            }
        }
        .to_owned()
    }
}

/// Looks at a database: one status for each of its replicas. It makes no difference whether a process has it open, and makes none to that process.
///
/// # Errors
/// Where it is not there, not replicated, or what is beside it cannot be read.
pub fn look(database: &Path) -> Result<Vec<Status>, LookError> {
    let told = |source| LookError::Io { path: database.to_owned(), source };
    let path = std::fs::canonicalize(database).map_err(told)?;
    let identity = identity(&path).map_err(told)?;
    let look = || {
        let first = status_of(&Paths::of(&path), identity)?;
        let second = Paths::second_of(&path);
        // One that is not there, or was given up, is none.
        let second = if second.control().exists() { status_of(&second, identity).ok() } else { None };
        Ok(std::iter::once(first).chain(second).collect())
    };
    // To open and close a control file here that this process has open would drop its locks.
    process::unless_open(&path, look).unwrap_or_else(|| {
        let opened = process::opened_at(&path);
        let statuses = opened.iter().flat_map(|replicas| replicas.iter().map(|database| database.status(&Policy::of(&database.options))));
        Ok(statuses.collect())
    })
}

/// Of one replica. A process that is just opening the database has made its page a moment later.
fn status_of(paths: &Paths, identity: control::Identity) -> Result<Status, LookError> {
    const LOOKS: u32 = 10;
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 0..LOOKS {
        match Beside::open(paths.clone()).and_then(|beside| beside.status(identity)) {
            Err(LookError::Untold(_)) => std::thread::sleep(PAUSE),
            told => return told,
        }
    }
    Err(LookError::Untold(paths.database.clone()))
}

/// What is beside a database.
struct Beside {
    paths: Paths,
    control: Arc<File>,
    /// All zeros where there is none, or none of this version.
    page: Box<dyn Mapped>,
}

impl Beside {
    fn open(paths: Paths) -> Result<Self, LookError> {
        let control = match File::open(paths.control()) {
            Ok(control) => Arc::new(control),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LookError::NotReplicated { database: paths.database.clone(), directory: paths.directory.clone() });
            }
            Err(source) => return Err(LookError::Io { path: paths.control(), source }),
        };
        let page = map_to_look(&control).ok().filter(|mapped| mapped.page().is_begun()).unwrap_or_else(|| Box::new(Private::default()));
        Ok(Self { paths, control, page })
    }

    fn status(&self, identity: control::Identity) -> Result<Status, LookError> {
        let (page, paths) = (self.page.page(), &self.paths);
        let locks = Locks::new(Arc::clone(&self.control));
        let uploader = match (locks.holder(Range::Owner), locks.holder(Range::Present)) {
            (Some(pid), _) => Uploader::Process(pid),
            (None, Some(_)) => Uploader::Nobody,
            (None, None) => Uploader::NotOpen,
        };
        let saved = control::peek(&self.control).ok_or_else(|| LookError::Unreadable(paths.control()))?;
        if saved.identity.is_some_and(|saved| saved != identity) {
            return Err(LookError::OtherFile(paths.directory.clone()));
        }
        let is_open = uploader != Uploader::NotOpen;
        if is_open && !page.is_begun() {
            return Err(LookError::Untold(paths.database.clone()));
        }
        let facts = facts(page, &saved, uploader);
        let (published, frames) = published::of_page(page);
        // A process that has opened it and not read from it yet knows nothing of what the one before has left.
        let is_told = is_open && published.known;
        let waiting = if is_told { Left::default() } else { Left::of(&saved, paths, page) };
        let spool = Waits::beside(&paths.directory, saved.spool_first, saved.spool_next);
        let mode = saved.full.map_or(Mode::Running, Mode::Full);
        let frames = if is_told { frames } else { waiting.frames };
        let local = Local::new(&saved, &mode, &facts, saved.attempt.map(|attempt| attempt.size_bytes), spool, frames);
        // Where a process was killed between two stores, or one without the extension has written, what lies there tells more than what was counted.
        let counted = published.sequence.saturating_sub(facts.acked_sequence);
        let found = waiting.commits + spool.files + u64::from(local.batch_bytes.is_some()) + u64::from(saved.full.is_some());
        let waiting_commits = if is_told { counted } else { counted.max(found) };
        let remote_txid = facts.remote_txid.max(saved.acked.map(|acked| acked.txid));
        let local_txid =
            if waiting_commits == 0 && saved.adopt.is_none() { remote_txid } else { local.txid_of_all(remote_txid.map_or(0, Txid::get)) };
        let durability = page.durability.load(Ordering::Relaxed).checked_sub(1).and_then(|at| Durability::ALL.get(at as usize).copied());
        let proof = Proof::beside(paths, saved.replica_hash);
        let (is_verified, proof) = (proof.is_some(), proof.unwrap_or_default());
        let max_lag_ms = page.max_lag_ms.load(Ordering::Relaxed);
        Ok(Parts {
            paths,
            counts: page.counters.read(),
            local,
            local_txid,
            remote_txid,
            uploader,
            waiting_commits,
            lag: page.lag().or_else(|| waiting.oldest(&spool, saved.attempt.map(|attempt| attempt.timestamp_ms))),
            page_size: published.page_size.or_else(|| PageSize::new(saved.page_size)),
            is_unproved: waiting.is_unproved && !is_open,
            durability: durability.unwrap_or_default(),
            max_lag: if max_lag_ms == 0 { crate::config::Options::default().max_lag } else { Duration::from_millis(max_lag_ms) },
            max_local_bytes: Some(page.max_local_bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0),
            replica: page.url(),
            verification: proof.verification(is_verified),
            more: proof.rows(is_verified).into_iter().map(Row::of_text).collect(),
            facts,
        }
        .status())
    }
}

/// What the page says, and what the control file knows better once the processes are gone.
fn facts(page: &Page, saved: &Saved, uploader: Uploader) -> Facts {
    let mut facts = Facts::of(page);
    facts.fencing = facts.fencing.or(saved.fencing);
    if uploader != Uploader::NotOpen {
        return facts;
    }
    let conflict = saved.conflict.filter(|conflict| saved.adopt.is_none_or(|adopt| adopt < conflict.txid));
    if let Some(conflict) = conflict {
        (facts.state, facts.error_kind, facts.last_error) = (ReplicationState::Fenced, None, Some(conflict.message(saved.node_id)));
    } else if saved.adopt.is_some() {
        // Decided, and not acted upon yet.
        (facts.state, facts.error_kind, facts.last_error) = (ReplicationState::Idle, None, None);
    }
    facts
}

/// What the processes have left that are gone.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    /// Commits in the WAL that nobody has captured, and their frames.
    commits: u64,
    frames: u64,
    /// Nobody can tell from here whether the database file is what was captured.
    is_unproved: bool,
    written: Option<TimestampMs>,
}

impl Left {
    fn of(saved: &Saved, paths: &Paths, page: &Page) -> Self {
        if saved.acked.is_none() && saved.full.is_none() && !page.is_begun() {
            // Nothing was ever sent.
            return Self { commits: 1, written: written(&paths.database), ..Self::default() };
        }
        let log = Log::open(&paths.wal);
        if let Some(log) = &log {
            let (commits, frames) = log.after(saved);
            return Self { commits, frames, is_unproved: false, written: written(&paths.wal) };
        }
        let has_wal = std::fs::metadata(&paths.wal).is_ok();
        let is_as_noted = std::fs::metadata(&paths.database).is_ok_and(|now| {
            use std::os::unix::fs::MetadataExt;
            let changed_ns = now.ctime().saturating_mul(1_000_000_000).saturating_add(now.ctime_nsec());
            saved.stamp.is_some_and(|stamp| (stamp.size_bytes, stamp.mtime_ns, stamp.ctime_ns) == (now.len(), mtime_ns(&now), changed_ns))
        });
        Self { is_unproved: !has_wal && !is_as_noted, written: written(&paths.database), ..Self::default() }
    }

    /// How old the oldest of it is at least, by the times of files.
    fn oldest(&self, spool: &Waits, batch_ms: Option<i64>) -> Option<Duration> {
        let oldest_ms = [self.written.map(|at| at.0), spool.oldest_ms, batch_ms].into_iter().flatten().min()?;
        Some(Duration::from_millis(u64::try_from(crate::replicator::database::now_ms().saturating_sub(oldest_ms)).unwrap_or(0)))
    }
}

fn written(path: &Path) -> Option<TimestampMs> {
    std::fs::metadata(path).ok().map(|metadata| TimestampMs(mtime_ns(&metadata) / 1_000_000))
}

/// A WAL that nobody has open.
struct Log {
    file: File,
    header: wal::Header,
}

impl Log {
    /// `None` where there is none, or none that counts for SQLite either.
    fn open(path: &Path) -> Option<Self> {
        use std::os::unix::fs::FileExt;
        let file = File::open(path).ok()?;
        let mut bytes = [0; wal::WAL_HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let header = wal::Header::decode(&bytes).ok()?;
        Some(Self { file, header })
    }

    /// How many commits, and frames of them, lie behind what is captured.
    fn after(&self, saved: &Saved) -> (u64, u64) {
        let is_of_this = |pos: &WalPos| pos.salts == self.header.salts && wal::verify_at(&self.file, &self.header, pos).unwrap_or(false);
        let from = saved.captured.filter(is_of_this).unwrap_or_else(|| self.header.start());
        let (mut commits, mut last) = (0, from.frame);
        // It ends with the first frame that is not valid.
        let _ = wal::read_frames(&self.file, &self.header, &from, u32::MAX, &mut |frame, decoded, _| {
            if decoded.is_commit() {
                (commits, last) = (commits + 1, frame);
            }
            Ok(())
        });
        (commits, u64::from(last - from.frame))
    }
}
