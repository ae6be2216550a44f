//! What the processes that have one database open tell each other: a page of memory that all of them map, and locks.
//!
//! The page lies in the control file, behind what that remembers. It holds what changes with every commit and every request, and nothing that must outlive the processes:
//! whoever opens the database while nobody else has it open clears it. A process may be killed between any two stores, so what consists of several words
//! is written beside what it replaces and then put in its place by one store, see `Slots`; and the rest are words that stand for themselves.
//!
//! ```text
//!   published     by whoever commits, under SQLite's own write lock; what somebody merely sees there goes into `looked`
//!   tail          by whoever holds the tail's lock
//!   progress      by the owner, whose uploader it is; those who wait for it sleep on one word of it (a futex)
//!   wishes        by those who commit and wait; a byte in the owner's FIFO makes it look
//! ```

mod locks;
mod slots;

use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

pub(crate) use self::locks::{Locks, Range};
pub(crate) use self::slots::Slots;
use super::stamp;
use crate::metrics::{Counted, Counters};

/// Where the page lies in the control file: at a multiple of the largest page that a machine has.
pub(crate) const PAGE_OFFSET: u64 = 65536;
/// How long it is.
pub(crate) const PAGE_BYTES: usize = 8192;
const ERROR_WORDS: usize = 120;
const URL_WORDS: usize = 90;
const MAINTENANCE_ERROR_WORDS: usize = 60;
/// What `Page::layout` says.
const LAYOUT: u64 = 0x5250_4c53_4841_5204;

/// A page that is there as long as this is.
pub(crate) trait Mapped: Send + Sync + Debug {
    fn page(&self) -> &Page;
}

/// Memory of this process alone.
#[derive(Debug, Default)]
pub(crate) struct Private(Box<Page>);

impl Mapped for Private {
    fn page(&self) -> &Page {
        &self.0
    }
}

/// The page as one process sees it.
#[derive(Debug)]
pub(crate) struct Shared {
    mapped: Box<dyn Mapped>,
    /// Instead of it, once this process has left the others.
    own: Private,
    has_left: AtomicBool,
}

impl Shared {
    pub(crate) fn new(mapped: Box<dyn Mapped>) -> Arc<Self> {
        Arc::new(Self { mapped, own: Private::default(), has_left: AtomicBool::new(false) })
    }

    /// From here on this process tells the others nothing, and sees nothing of them: a fault of ours has ended what it does.
    pub(crate) fn leave(&self) {
        if !self.has_left.swap(true, Ordering::AcqRel) {
            let (own, theirs) = (self.own.page(), self.mapped.page());
            own.begin();
            own.published.write(&theirs.published.read().1);
            own.acked_sequence.store(theirs.acked_sequence.load(Ordering::Relaxed), Ordering::Relaxed);
            own.remote_txid.store(theirs.remote_txid.load(Ordering::Relaxed), Ordering::Relaxed);
            own.captured_sequence.store(theirs.captured_sequence.load(Ordering::Relaxed), Ordering::Relaxed);
            // Those of this process who wait for the others' page.
            theirs.changed();
        }
    }

    /// What the others see, also where this process has left them.
    pub(crate) fn of_all(&self) -> &Page {
        self.mapped.page()
    }

    pub(crate) fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Acquire)
    }
}

impl Counted for Shared {
    fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Deref for Shared {
    type Target = Page;

    fn deref(&self) -> &Page {
        if self.has_left() { self.own.page() } else { self.mapped.page() }
    }
}

/// When something was sent last, when and why the full state was, and how large the bucket is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Earlier([u64; 4]);

/// The words. All zeros is how it begins, see `begin`.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Page {
    layout: AtomicU64,
    /// Another process has joined.
    pub(crate) joined: AtomicU64,
    /// Of the URL of the second replica that all of them have; 0 where they have none.
    pub(crate) second_hash: AtomicU64,
    /// Something that waits is in the memory of a process and not on the disk, which is full.
    pub(crate) in_memory: AtomicU64,

    // The tail.
    pub(crate) mode: AtomicU64,
    /// Somebody is changing it, or has died doing so.
    pub(crate) tail_held: AtomicU64,
    /// How often it was locked.
    pub(crate) tail_turns: AtomicU64,
    pub(crate) tail_flags: AtomicU64,
    /// Something could not be captured.
    pub(crate) lost: AtomicU64,
    /// Somebody has waited for the tail in vain: nobody else waits for long until it is locked again.
    pub(crate) stuck: AtomicU64,
    pub(crate) captured_sequence: AtomicU64,
    pub(crate) captured: Slots<3>,

    // What is committed.
    pub(crate) published: Slots<6>,
    pub(crate) looked: Slots<7>,
    /// There was nothing in the WAL when it was seen first.
    pub(crate) began_empty: AtomicU64,
    /// When the oldest commit was made that is not in the bucket; and the oldest that is not in a batch either. 0 for none.
    pub(crate) oldest_waiting_ns: AtomicU64,
    pub(crate) oldest_behind_batch_ns: AtomicU64,
    pub(crate) batch_sequence: AtomicU64,
    /// Commits up to this one shall be on their way at that time; 0 for none.
    pub(crate) due_sequence: AtomicU64,
    pub(crate) due_ns: AtomicU64,
    /// What was committed outside the WAL since the uploader looked, counted as if it were frames.
    pub(crate) unseen_frames: AtomicU64,

    // What the uploader is asked for.
    /// It sleeps until so many frames are behind what is captured.
    pub(crate) wake_frames: AtomicU64,
    pub(crate) urgent: AtomicU64,
    pub(crate) asked: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) dozing: AtomicU64,
    pub(crate) snapshot_waits: AtomicU64,
    /// See `Preserving`.
    pub(crate) preserving: AtomicU64,
    // What it needs, and has been set aside by others: see `aside`.
    pub(crate) aside_snapshot: AtomicU64,
    pub(crate) aside_pages: AtomicU64,
    pub(crate) aside_cursor: AtomicU64,
    pub(crate) aside_records: AtomicU64,
    pub(crate) aside_wal_frames: AtomicU64,
    pub(crate) aside_wal_copied: AtomicU64,
    /// Size and time of the database file when one of those who replicate had last written to it: see `Database::is_as_we_left_it`.
    pub(crate) left_as: Slots<2>,
    pub(crate) refuses_writes: AtomicU64,
    pub(crate) file_synced: AtomicU64,

    // How far it is.
    version: AtomicU32,
    _unused: AtomicU32,
    pub(crate) state: AtomicU64,
    pub(crate) acked_sequence: AtomicU64,
    pub(crate) remote_txid: AtomicU64,
    pub(crate) last_success_ms: AtomicU64,
    pub(crate) uploads: AtomicU64,
    pub(crate) snapshots: AtomicU64,
    pub(crate) fencing: AtomicU64,
    pub(crate) awaits_open: AtomicU64,
    pub(crate) last_maintenance_ms: AtomicU64,
    /// 1 and what the files of the bucket took then; 0 where that is not known.
    pub(crate) bucket_bytes: AtomicU64,
    /// 1 and the number of a `StoreErrorKind`; 0 for none.
    pub(crate) error_kind: AtomicU64,
    pub(crate) last_error_ms: AtomicU64,
    pub(crate) last_snapshot_ms: AtomicU64,
    /// The number of a `FullReason`.
    pub(crate) last_snapshot_reason: AtomicU64,

    // For whoever looks from outside.
    /// Which run of the machine all times of its clock are of.
    pub(crate) boot: AtomicU64,
    /// 1 and the number of a `Durability`, and how old what waits may be: as the process was told that opened the database first.
    pub(crate) durability: AtomicU64,
    pub(crate) max_lag_ms: AtomicU64,
    pub(crate) max_local_bytes: AtomicU64,
    pub(crate) counters: Counters,
    url: Slots<URL_WORDS>,
    error: Slots<ERROR_WORDS>,
    maintenance_error: Slots<MAINTENANCE_ERROR_WORDS>,
    /// See `Facts::full_txid`.
    pub(crate) full_txid: AtomicU64,
    /// A process checkpoints ahead of SQLite, or has died doing so.
    pub(crate) checkpointing: AtomicU64,
}

const _: () = assert!(size_of::<Page>() <= PAGE_BYTES);

impl Page {
    /// Whether it is a page of this layout, which somebody has begun.
    pub(crate) fn is_begun(&self) -> bool {
        self.layout.load(Ordering::Acquire) == LAYOUT
    }

    /// Makes zeros one, for a database that nobody has told of yet. Nobody else has it mapped.
    pub(crate) fn begin(&self) {
        self.wake_frames.store(1, Ordering::Relaxed);
        self.layout.store(LAYOUT, Ordering::Release);
    }

    /// What the processes before have left that is of use to those who come now, where it is of the same replica.
    pub(crate) fn of_replica(&self, url: &str) -> Option<Earlier> {
        let words = || self.of_earlier().map(|word| word.load(Ordering::Relaxed));
        (self.is_begun() && self.url().as_deref() == Some(url)).then(words).map(Earlier)
    }

    /// Goes on with it.
    pub(crate) fn remember(&self, Earlier(words): &Earlier) {
        for (word, earlier) in self.of_earlier().into_iter().zip(words) {
            word.store(*earlier, Ordering::Relaxed);
        }
    }

    const fn of_earlier(&self) -> [&AtomicU64; 4] {
        [&self.last_success_ms, &self.last_snapshot_ms, &self.last_snapshot_reason, &self.bucket_bytes]
    }

    /// How long the oldest commit that the bucket does not have has waited, by the clock that runs since the machine was started.
    pub(crate) fn lag(&self) -> Option<Duration> {
        let oldest = self.oldest_waiting_ns.load(Ordering::Acquire);
        (oldest != 0 && self.boot.load(Ordering::Relaxed) == stamp::boot())
            .then(|| Duration::from_nanos(monotonic_ns().saturating_sub(oldest)))
    }

    /// Tells those who wait that something has changed.
    pub(crate) fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
        wake_all(&self.version);
    }

    /// What to hand to `wait_changed`; to be read before what is waited for.
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Waits until something has changed since `version` was read, at the most that long.
    pub(crate) fn wait_changed(&self, version: u32, limit: Duration) {
        wait(&self.version, version, limit);
    }

    /// Text for people, cut where it is too long.
    pub(crate) fn set_error(&self, text: Option<&str>) {
        set_text(&self.error, text);
    }

    pub(crate) fn error(&self) -> Option<String> {
        text(&self.error)
    }

    /// The replica's URL, which has no secrets.
    pub(crate) fn set_url(&self, url: &str) {
        set_text(&self.url, Some(url));
    }

    pub(crate) fn url(&self) -> Option<String> {
        text(&self.url)
    }

    /// The same, of the maintenance.
    pub(crate) fn set_maintenance_error(&self, text: Option<&str>) {
        set_text(&self.maintenance_error, text);
    }

    pub(crate) fn maintenance_error(&self) -> Option<String> {
        text(&self.maintenance_error)
    }
}

fn set_text<const N: usize>(slots: &Slots<N>, text: Option<&str>) {
    let mut words = [0_u64; N];
    let Some((length, content)) = words.split_first_mut() else { return };
    let text = text.unwrap_or_default();
    let end = (0..=text.len().min(content.len() * 8)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    *length = end as u64;
    for (word, bytes) in content.iter_mut().zip(text.as_bytes().get(..end).unwrap_or_default().chunks(8)) {
        let mut padded = [0; 8];
        padded.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        *word = u64::from_ne_bytes(padded);
    }
    slots.write(&words);
}

fn text<const N: usize>(slots: &Slots<N>) -> Option<String> {
    let (_, words) = slots.read();
    let (length, content) = words.split_first()?;
    let bytes: Vec<u8> = content.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let text = bytes.get(..usize::try_from(*length).ok()?)?;
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

/// Whether a full state is being read, by the uploader of whichever process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preserving {
    No = 0,
    /// What it needs is set aside by the others before they overwrite it.
    Yes = 1,
    /// That has failed: it has to start over.
    Broken = 2,
}

impl Preserving {
    pub(crate) fn of(page: &Page) -> Self {
        match page.preserving.load(Ordering::SeqCst) {
            0 => Self::No,
            1 => Self::Yes,
            _ => Self::Broken,
        }
    }
}

/// Nanoseconds of a clock that all processes of the machine have in common, and never 0.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    (seconds * 1_000_000_000 + nanoseconds).max(1)
}

#[cfg(target_os = "linux")]
fn wait(word: &AtomicU32, expected: u32, limit: Duration) {
    use rustix::thread::futex;
    let limit = futex::Timespec { tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(limit.subsec_nanos()) };
    // Woken, interrupted, timed out or changed already: the caller looks.
    let _ = futex::wait(word, futex::Flags::empty(), expected, Some(&limit));
}

#[cfg(target_os = "linux")]
fn wake_all(word: &AtomicU32) {
    let _ = rustix::thread::futex::wake(word, rustix::thread::futex::Flags::empty(), i32::MAX as u32);
}

/// Where there is no futex that works between processes whoever waits looks every few milliseconds.
#[cfg(not(target_os = "linux"))]
fn wait(word: &AtomicU32, expected: u32, limit: Duration) {
    const PAUSE: Duration = Duration::from_millis(2);
    if word.load(Ordering::Acquire) == expected {
        std::thread::sleep(PAUSE.min(limit));
    }
}

#[cfg(not(target_os = "linux"))]
fn wake_all(_word: &AtomicU32) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_where_a_character_ends() {
        let page = Page::default();
        assert_eq!(page.error(), None);
        page.set_error(Some("short"));
        assert_eq!(page.error().unwrap(), "short");
        let long = "ä".repeat(1000);
        page.set_error(Some(&long));
        let cut = page.error().unwrap();
        assert!(cut.len() > 900 && long.starts_with(&cut), "{}", cut.len());
        page.set_error(None);
        assert_eq!(page.error(), None);
    }

    #[test]
    fn whoever_waits_is_woken() {
        let page = Page::default();
        let version = page.version();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while page.version() == version {
                    page.wait_changed(version, Duration::from_secs(60));
                }
            });
            page.changed();
        });
        assert_ne!(page.version(), version);
    }
}
