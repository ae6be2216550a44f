//! A database that may be in use, as checksums of its pages at one moment, so that it can be compared with a state of its bucket.
//!
//! Where it has a WAL, that moment is the place in it up to which the bucket has it: the uploads say which that is, ours and Litestream's. Nothing is written
//! beside it, and nobody is kept from writing to it: an open read transaction keeps the WAL from being started anew while it is read, no more.
//!
//! ```text
//!   WAL frames     1 ........ c ........ m        c: what the bucket has        m: the last commit
//!   page 7         x     x         x              its frame at or before c
//!   page 8                        x               not comparable: its content at c may have been overwritten in the file
//!   page 9                                        from the database file, where nobody writes to it meanwhile
//! ```

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use replicated::ltx::Header;
use replicated::types::{PageNo, PageSize};
use replicated::wal;
use rusqlite::{Connection, OpenFlags};

use crate::file_head::{FileHead, free_pages};

/// Whoever writes all the time is given up on after so many looks.
const TRIES: u32 = 5;
/// Up to this size a file is read with a lock held, where it is written to all the time.
const LOCKED_BYTES: u64 = 32 << 20;
const BUSY: Duration = Duration::from_secs(10);

/// The pages of a database at one moment.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) page_size: PageSize,
    /// Its size in pages.
    pub(crate) pages: u32,
    /// Whether it had that size at that moment: the file may have grown since.
    pub(crate) is_size_known: bool,
    /// By page number, from 1; 0 where a page is not known at that moment.
    checksums: Vec<u64>,
    pub(crate) moment: Moment,
    /// Pages that were changed since, and whose content then is not known.
    pub(crate) unknown: u64,
    /// The change counter of the file's header.
    pub(crate) change_counter: u32,
    pub(crate) is_wal: bool,
}

/// Which moment it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Where the bucket's newest upload ends; so many commits and frames of the WAL came after.
    Uploaded { commits_since: u32, frames_since: u32 },
    /// The database file by itself; so many frames of a WAL beside it are not in it, or need not be.
    File { frames: u32 },
}

/// Why nothing can be said of it.
pub(crate) type Reason = String;

/// Why a database could not be read, or need not be.
#[derive(Debug)]
pub(crate) enum Unread {
    /// Nothing is said of it.
    NotChecked(Reason),
    /// It is not what the bucket has.
    Apart(Reason),
}

/// What a WAL says by itself.
struct Log {
    file: File,
    header: wal::Header,
    scan: wal::Scan,
}

impl Live {
    /// Reads it. `uploaded` is asked, once the WAL is held, for the header of the newest upload.
    ///
    /// # Errors
    /// Where it cannot be read, or is written to all the time.
    pub(crate) fn read(path: &Path, most_bytes: u64, uploaded: &mut dyn FnMut() -> Result<Option<Header>, Reason>) -> Result<Self, Unread> {
        // Which database it is says whoever tells it.
        let told = |error: io::Error| Unread::NotChecked(error.to_string());
        let path = std::fs::canonicalize(path).map_err(told)?;
        // Opened before SQLite opens it and closed after: closing it drops the locks that this process has on the file.
        let file = File::open(&path).map_err(told)?;
        let mut last = String::new();
        for attempt in 1..=TRIES {
            match Self::try_read(&path, &file, most_bytes, uploaded, attempt == TRIES) {
                Ok(Some(live)) => return Ok(live),
                Ok(None) => "it is written to all the time".clone_into(&mut last),
                Err(Failed::Lasting(why)) => return Err(Unread::NotChecked(why)),
                Err(Failed::Apart(why)) => return Err(Unread::Apart(why)),
                Err(Failed::Passing(why)) => last = why,
            }
        }
        Err(Unread::NotChecked(last))
    }

    /// `None` where somebody has written to it in a way that spoils what was read.
    fn try_read(
        path: &Path,
        file: &File,
        most_bytes: u64,
        uploaded: &mut dyn FnMut() -> Result<Option<Header>, Reason>,
        is_last: bool,
    ) -> Result<Option<Self>, Failed> {
        let has_wal = size(&with_suffix(path, "-wal")) > 0;
        let is_open = with_suffix(path, "-shm").exists();
        let head = head_of(file)?;
        let Some(page_size) = head.page_size else {
            return Err(Failed::Lasting(
                "it does not begin as a database does, or is encrypted: name the file that the application opens".to_owned(),
            ));
        };
        if head.is_wal || has_wal {
            // A WAL without shared memory is nobody's: what has it open would have that.
            let reader = if is_open { Some(Reader::begin(path)?) } else { None };
            let before = Stamp::of(path)?;
            let live = Self::with_log(path, file, page_size, most_bytes, uploaded)?;
            let now = Stamp::of(path)?;
            // With a reader the file's known pages are not written to, and without one nothing may be.
            let is_good = live.as_ref().is_some_and(|(_, header)| log_header(path) == *header) && (reader.is_some() || before == now);
            return Ok(live.filter(|_| is_good).map(|(live, _)| live));
        }
        // Asked first: what the bucket has is then no newer than the file, unless that is written to.
        let _ = uploaded().map_err(Failed::Lasting)?;
        let locked = Reader::begin(path)?;
        let before = (head_of(file)?, Stamp::of(path)?);
        if is_last && before.1.size <= LOCKED_BYTES {
            return Self::of_file(file, page_size, most_bytes, &|_| false, Moment::File { frames: 0 }).map(Some);
        }
        drop(locked);
        let live = Self::of_file(file, page_size, most_bytes, &|_| false, Moment::File { frames: 0 })?;
        let _locked = Reader::begin(path)?;
        let now = (head_of(file)?, Stamp::of(path)?);
        Ok((before == now).then_some(live))
    }

    fn with_log(
        path: &Path,
        file: &File,
        page_size: PageSize,
        most_bytes: u64,
        uploaded: &mut dyn FnMut() -> Result<Option<Header>, Reason>,
    ) -> Result<Option<(Self, Option<wal::Header>)>, Failed> {
        let newest = uploaded().map_err(Failed::Lasting)?;
        let Some(log) = Log::open(path)? else {
            let live = Self::of_file(file, page_size, most_bytes, &|_| false, Moment::File { frames: 0 })?;
            return Ok(Some((live, None)));
        };
        let Log { file: wal_file, header, scan } = &log;
        let last = scan.last_commit;
        let end = newest.filter(|newest| newest.page_size == header.page_size).and_then(|newest| newest.wal_end());
        let end = end.filter(|end| end.salts == header.salts);
        if let Some(end) = end.filter(|end| end.frame > last.frame) {
            return Err(Failed::Apart(format!(
                "the bucket's newest upload ends with frame {} of the WAL, which has {} only: a power loss may have taken them",
                end.frame, last.frame
            )));
        }
        let end = match end {
            Some(end) if end.checksum != [0; 2] && !wal::verify_at(wal_file, header, &end).map_err(wal_failed)? => {
                return Err(Failed::Apart(format!(
                    "frame {} of the WAL is another one than the bucket has: they have become two histories, see `replicated adopt`",
                    end.frame
                )));
            }
            end => end,
        };
        let upto = end.map_or(0, |end| end.frame);
        let (mut known, mut pages_then) = (std::collections::HashMap::new(), 0);
        let start = header.start();
        let at = wal::read_frames(wal_file, header, &start, upto, &mut |_, frame, page| {
            known.insert(frame.pgno, checksum(frame.pgno, page));
            pages_then = frame.commit_pages;
            Ok(())
        });
        let at = at.map_err(wal_failed)?;
        if (known.len() as u64) * 32 > most_bytes {
            return Err(Failed::Lasting("its WAL is larger than --max-memory-mib allows to compare".to_owned()));
        }
        let mut later = std::collections::HashSet::new();
        let mut commits_since = 0;
        wal::read_frames(wal_file, header, &at, last.frame, &mut |_, frame, _| {
            later.insert(frame.pgno);
            commits_since += u32::from(frame.is_commit());
            Ok(())
        })
        .map_err(wal_failed)?;
        let frames_since = last.frame.saturating_sub(upto);
        let moment = if end.is_some() { Moment::Uploaded { commits_since, frames_since } } else { Moment::File { frames: frames_since } };
        let mut live =
            Self::of_file(file, header.page_size, most_bytes, &|page| known.contains_key(&page) || later.contains(&page), moment)?;
        if upto > 0 {
            live.resize(pages_then);
        }
        for (page, checksum) in known {
            live.set(page, checksum);
        }
        let in_log = later.iter().filter(|page| live.get(**page) == Some(0)).count();
        live.unknown = in_log as u64;
        live.is_size_known = upto > 0 || later.is_empty();
        Ok(Some((live, Some(*header))))
    }

    /// The pages of the file, but for some.
    fn of_file(file: &File, page_size: PageSize, most_bytes: u64, left_out: &dyn Fn(u32) -> bool, moment: Moment) -> Result<Self, Failed> {
        let head = head_of(file)?;
        let size = file.metadata().map_err(|error| Failed::Lasting(error.to_string()))?.len();
        let there = u32::try_from(size.div_ceil(u64::from(page_size.get()))).unwrap_or(u32::MAX);
        // As SQLite counts: by the header, where that is of the last change.
        let pages = if head.is_told && head.stored_pages > 0 { head.stored_pages.min(there) } else { there };
        if u64::from(pages) * 8 > most_bytes {
            let needed = (u64::from(pages) * 8).div_ceil(1 << 20) + 1;
            return Err(Failed::Lasting(format!("its {pages} pages take {needed} MiB to compare: raise --max-memory-mib")));
        }
        let is_wal = head.is_wal;
        let mut live = Self {
            page_size,
            pages: 0,
            is_size_known: true,
            checksums: Vec::new(),
            moment,
            unknown: 0,
            change_counter: head.change_counter,
            is_wal,
        };
        live.resize(pages);
        let mut run = vec![0; page_size.bytes() * (1 << 20 >> page_size.get().trailing_zeros())];
        let per_run = u32::try_from(run.len() / page_size.bytes()).unwrap_or(1).max(1);
        let mut first = 1;
        while first <= pages {
            let count = per_run.min(pages - first + 1);
            let bytes = run.get_mut(..count as usize * page_size.bytes()).unwrap_or_default();
            let Some(start) = PageNo::new(first) else { break };
            read_padded(file, bytes, page_size.offset_of(start)).map_err(|error| Failed::Lasting(error.to_string()))?;
            for (page, content) in (first..).zip(bytes.chunks_exact(page_size.bytes())) {
                if !left_out(page) {
                    live.set(page, checksum(page, content));
                }
            }
            first += count;
        }
        Ok(live)
    }

    fn resize(&mut self, pages: u32) {
        self.pages = pages;
        self.checksums.resize(pages as usize, 0);
    }

    fn get(&self, page: u32) -> Option<u64> {
        self.checksums.get((page as usize).checked_sub(1)?).copied()
    }

    fn set(&mut self, page: u32, checksum: u64) {
        if let Some(slot) = (page as usize).checked_sub(1).and_then(|at| self.checksums.get_mut(at)) {
            *slot = checksum;
        }
    }

    /// The pages in which a restored file differs, those left out that SQLite keeps nothing in.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(crate) fn differing(&self, restored: &Path) -> io::Result<Differences> {
        let file = File::open(restored)?;
        let bytes = file.metadata()?.len();
        let pages = u32::try_from(bytes / u64::from(self.page_size.get())).unwrap_or(u32::MAX);
        let mut found = Differences { restored_pages: pages, compared: 0, pages: Vec::new(), count: 0, free: 0 };
        let mut free: Option<std::collections::HashSet<u32>> = None;
        let mut content = vec![0; self.page_size.bytes()];
        for page in (1..=pages.min(self.pages)).filter(|page| *page != self.page_size.lock_page().get()) {
            let Some(known) = self.get(page).filter(|known| *known != 0) else { continue };
            let Some(number) = PageNo::new(page) else { continue };
            file.read_exact_at(&mut content, self.page_size.offset_of(number))?;
            found.compared += 1;
            if checksum(page, &content) == known {
                continue;
            }
            let free = match &free {
                Some(free) => free,
                None => free.insert(free_pages(&file, self.page_size, pages)?),
            };
            if free.contains(&page) {
                found.free += 1;
            } else {
                found.count += 1;
                if found.pages.len() < 10 {
                    found.pages.push(page);
                }
            }
        }
        Ok(found)
    }
}

/// How a restored file differs.
#[derive(Clone, Debug)]
pub(crate) struct Differences {
    pub(crate) restored_pages: u32,
    pub(crate) compared: u64,
    /// The first ones.
    pub(crate) pages: Vec<u32>,
    pub(crate) count: u64,
    /// Others, which SQLite keeps nothing in and does not put back when a transaction is rolled back.
    pub(crate) free: u64,
}

/// Why a look failed.
enum Failed {
    /// Another look may do.
    Passing(Reason),
    Lasting(Reason),
    Apart(Reason),
}

fn wal_failed(error: wal::WalError) -> Failed {
    // Somebody has started it anew in between.
    Failed::Passing(format!("its WAL cannot be read: {error}"))
}

/// A read transaction: it keeps the WAL from being started anew, and in the other modes everybody from writing.
struct Reader(Connection);

impl Reader {
    fn begin(path: &Path) -> Result<Self, Failed> {
        let told = |error: rusqlite::Error| Failed::Passing(format!("SQLite cannot read it: {error}"));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(told)?;
        connection.busy_timeout(BUSY).map_err(told)?;
        connection.execute_batch("PRAGMA query_only=1; BEGIN; SELECT count(*) FROM sqlite_schema").map_err(told)?;
        Ok(Self(connection))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It is closed anyway.
        let _ = self.0.execute_batch("COMMIT");
    }
}

impl Log {
    /// `None` where there is none, or none that counts.
    fn open(path: &Path) -> Result<Option<Self>, Failed> {
        let path = with_suffix(path, "-wal");
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| Failed::Lasting(format!("{}: {error}", path.display())))?,
        };
        let mut bytes = [0; wal::WAL_HEADER_BYTES];
        if file.read_exact_at(&mut bytes, 0).is_err() {
            return Ok(None);
        }
        // One whose header is no good is none for SQLite either.
        let Ok(header) = wal::Header::decode(&bytes) else { return Ok(None) };
        let scan = wal::scan(&file, &header, &header.start()).map_err(wal_failed)?;
        Ok(Some(Self { file, header, scan }))
    }
}

fn log_header(path: &Path) -> Option<wal::Header> {
    let mut bytes = [0; wal::WAL_HEADER_BYTES];
    File::open(with_suffix(path, "-wal")).and_then(|file| file.read_exact_at(&mut bytes, 0)).ok()?;
    wal::Header::decode(&bytes).ok()
}

/// By which it shows that somebody has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    log: (u64, i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Result<Self, Failed> {
        let now = std::fs::metadata(path).map_err(|error| Failed::Lasting(error.to_string()))?;
        let log = std::fs::metadata(with_suffix(path, "-wal")).map_or((0, 0, 0), |log| (log.len(), log.mtime(), log.mtime_nsec()));
        Ok(Self { size: now.len(), modified: (now.mtime(), now.mtime_nsec()), changed: (now.ctime(), now.ctime_nsec()), log })
    }
}

fn head_of(file: &File) -> Result<FileHead, Failed> {
    FileHead::read(file).map_err(|error| Failed::Lasting(format!("its header cannot be read: {error}")))
}

/// SQLite reads zeros beyond the end of a file.
fn read_padded(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64)? {
            0 => {
                rest.fill(0);
                break;
            }
            read => done += read,
        }
    }
    Ok(())
}

/// Never 0.
fn checksum(page: u32, content: &[u8]) -> u64 {
    replicated::verify::page_checksum(page, content)
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().as_bytes().to_vec();
    name.extend_from_slice(suffix.as_bytes());
    std::ffi::OsStr::from_bytes(&name).into()
}
