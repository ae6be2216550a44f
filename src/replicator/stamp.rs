//! What a database file looks like, so that it can be told later whether anybody has written to it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::control::Stamp;
use super::database::now_ms;

/// Bytes at the start of the file that are looked at.
pub(crate) const HEADER_BYTES: usize = 100;

/// Reads the start of the database file, by whatever handle does no harm to the caller's locks.
pub(crate) type ReadHeader<'a> = dyn Fn(&mut [u8; HEADER_BYTES]) -> io::Result<()> + 'a;

/// The file as it is now; `None` where it cannot be told.
pub(crate) fn take(database: &Path, read: &ReadHeader<'_>) -> Option<Stamp> {
    let metadata = std::fs::metadata(database).ok()?;
    let mut header = [0; HEADER_BYTES];
    read(&mut header).ok()?;
    let word = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let ns = |seconds: i64, nanoseconds: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
    Some(Stamp {
        size_bytes: metadata.len(),
        mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
        ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        header_words: [word(24)?, word(92)?],
        too_fresh: false,
    })
}

/// A stamp that a write in the same tick of the kernel's clock could not hide behind: waits for the next tick where it must.
pub(crate) fn settled(database: &Path, read: &ReadHeader<'_>) -> Option<Stamp> {
    const TICK: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + 2 * TICK;
    loop {
        let stamp = take(database, read)?;
        let age_ns = now_ms().saturating_mul(1_000_000).saturating_sub(stamp.mtime_ns.max(stamp.ctime_ns));
        // A time ahead of a clock that was set back hides nothing either: whoever writes now leaves another.
        if age_ns.unsigned_abs() > u64::try_from(TICK.as_nanos()).unwrap_or(u64::MAX) {
            return Some(stamp);
        }
        if Instant::now() >= deadline {
            return Some(Stamp { too_fresh: true, ..stamp });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
