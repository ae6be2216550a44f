//! What a database file looks like, so that it can be told later whether anybody has written to it.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::control::Stamp;
use super::file_header::{FileHeader, HEADER_BYTES};
use crate::fault::fault_value;

/// Reads the start of the database file, by whatever handle does no harm to the caller's locks.
pub(crate) type ReadHeader<'a> = dyn Fn(&mut [u8; HEADER_BYTES]) -> io::Result<()> + 'a;

const fn ns(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// When a file was last written to, since the epoch.
pub(crate) fn mtime_ns(metadata: &Metadata) -> i64 {
    ns(metadata.mtime(), metadata.mtime_nsec())
}

/// The file as it is now; `None` where it cannot be told. `synced` says whether SQLite has synced it since its last write.
pub(crate) fn take(database: &Path, header: &FileHeader, synced: bool) -> Option<Stamp> {
    let metadata = std::fs::metadata(database).ok()?;
    let mtime_ns = mtime_ns(&metadata);
    // Putting files back after a made-up power loss changes this time, and nothing else tells them from untouched ones.
    let ctime_ns = fault_value!("REPLICATED_TEST_POWER", ns(metadata.ctime(), metadata.ctime_nsec()), |_| mtime_ns);
    Some(Stamp {
        size_bytes: metadata.len(),
        mtime_ns,
        ctime_ns,
        header_words: header.words(),
        is_wal: header.is_wal,
        too_fresh: false,
        boot: boot(),
        synced,
    })
}

/// A stamp that a write in the same tick of the kernel's clock could not hide behind: waits for the next tick where it must.
pub(crate) fn settled(database: &Path, read: &ReadHeader<'_>, synced: bool) -> Option<Stamp> {
    let deadline = Instant::now() + 2 * TICK;
    loop {
        // Before the file is looked at: what is written after that has this time or a later one.
        let (clock_ns, unsure_ns) = clock_of_files();
        let mut header = [0; HEADER_BYTES];
        read(&mut header).ok()?;
        let stamp = take(database, &FileHeader::decode(&header), synced)?;
        let age_ns = clock_ns.saturating_sub(stamp.mtime_ns.max(stamp.ctime_ns));
        // A time ahead of a clock that was set back hides nothing either: whoever writes now leaves another.
        if age_ns > unsure_ns || age_ns < -TICK_NS {
            return Some(stamp);
        }
        if Instant::now() >= deadline {
            return Some(Stamp { too_fresh: true, ..stamp });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The longest that the clock of files' times stands still.
const TICK: Duration = Duration::from_millis(10);
const TICK_NS: i64 = 10_000_000;

/// The clock that files' times are taken from, and how far behind what it says they may be.
fn clock_of_files() -> (i64, i64) {
    // Linux has that clock, which moves on at ticks only.
    #[cfg(target_os = "linux")]
    {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        (now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec), 0)
    }
    #[cfg(not(target_os = "linux"))]
    {
        (super::database::now_ms().saturating_mul(1_000_000), TICK_NS)
    }
}

/// Which run of the machine this is, as a hash of the kernel's boot id; 0 where it tells none.
pub(crate) fn boot() -> u64 {
    static BOOT: OnceLock<u64> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let boot =
            std::fs::read("/proc/sys/kernel/random/boot_id").map_or(0, |id| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, &id));
        // A power loss that a test makes up: the machine was started again so many times.
        fault_value!("REPLICATED_TEST_POWER", boot, |times: u64| boot ^ times)
    })
}

impl Stamp {
    /// The same size, times and header.
    pub(crate) fn is_same_file(&self, now: &Self) -> bool {
        self.mtime_ns == now.mtime_ns && self.ctime_ns == now.ctime_ns && self.has_same_content(now)
    }

    /// The same size and header: where every commit counts the change counter up, the same content.
    pub(crate) fn has_same_content(&self, now: &Self) -> bool {
        self.size_bytes == now.size_bytes && self.header_words == now.header_words && self.is_wal == now.is_wal
    }

    /// The change counter only grows.
    pub(crate) fn is_counted_up_from(&self, then: &Self) -> bool {
        (1..1 << 30).contains(&self.header_words[0].wrapping_sub(then.header_words[0]))
    }

    /// What the file held then no loss of power has taken since.
    pub(crate) const fn is_durable(&self, now: &Self) -> bool {
        self.synced || self.boot == now.boot
    }

    /// Nobody has written since. In a rollback-journal mode a write that hides in the clock's tick still shows in the change counter.
    pub(crate) fn still_holds(&self, now: &Self) -> bool {
        self.is_same_file(now) && self.is_durable(now) && (!self.too_fresh || !self.is_wal)
    }

    /// A loss of power may have taken the file back to what it was before: the machine was started again, and nothing has written to the file
    /// since the stamp, but for SQLite rolling a journal back.
    pub(crate) const fn may_have_lost_power(&self, now: &Self, rolled_back: bool) -> bool {
        self.boot != now.boot && (rolled_back || now.ctime_ns <= self.ctime_ns)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_written_after_a_stamp_never_looks_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all_at(&[0; 4096], 0).unwrap();
        let read = |header: &mut [u8; HEADER_BYTES]| file.read_exact_at(header, 0);
        for round in 0..100_u8 {
            file.write_all_at(&[round], 2000).unwrap();
            let stamp = settled(&path, &read, true).unwrap();
            // At once, within the tick that the stamp was taken in.
            file.write_all_at(&[round], 2000).unwrap();
            let now = settled(&path, &read, true).unwrap();
            assert!(stamp.too_fresh || !stamp.is_same_file(&now), "round {round}");
        }
    }
}
