//! The disk below the database: its kind, its space, whether it can be written to, and what the system allows.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, StatVfs, StatVfsMountFlags};
use rustix::process::{Resource, getrlimit};

use super::bounded::blocking;
use super::report::Report;
use crate::text;

/// With less SQLite itself runs into it: as the extension counts it.
const NEARLY_FULL_BYTES: u64 = 64 << 20;
/// Databases, WALs, connections: a process that replicates needs some beside its own.
const FEW_FILES: u64 = 1024;

/// What is the matter with a kind of file system, by its number in `statfs`.
const KINDS: [(u64, &str, Kind); 17] = [
    (0x6969, "NFS", Kind::Network),
    (0xff53_4d42, "CIFS (a Windows share)", Kind::Network),
    (0xfe53_4d42, "SMB (a Windows share)", Kind::Network),
    (0x517b, "SMB (a Windows share)", Kind::Network),
    (0x0102_1997, "9P (a folder of the machine around this one)", Kind::Network),
    (0x6a65_6a63, "fakeowner (a folder of Docker Desktop)", Kind::Network),
    (0x786f_4256, "a VirtualBox folder", Kind::Network),
    (0x00c3_6400, "Ceph", Kind::Network),
    (0x0bd0_0bd0, "Lustre", Kind::Network),
    (0x4750_4653, "GPFS", Kind::Network),
    (0x5346_414f, "AFS", Kind::Network),
    (0x6573_5546, "FUSE (s3fs, sshfs, virtiofs and others)", Kind::Unsure),
    (0x0102_1994, "tmpfs (memory)", Kind::Passing),
    (0x8584_58f6, "ramfs (memory)", Kind::Passing),
    (0x794c_7630, "overlayfs (the container's own layer)", Kind::Passing),
    (0x4d44, "FAT", Kind::Odd),
    (0x2011_bab0, "exFAT", Kind::Odd),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Network,
    Unsure,
    Passing,
    Odd,
}

/// What is asked of a disk.
pub(super) struct Disk<'a> {
    pub(super) database: &'a Path,
    /// The limit of what may wait beside the database.
    pub(super) max_local_bytes: u64,
    /// What waits there now.
    pub(super) waiting_bytes: u64,
    /// The replica's folder, where it is one.
    pub(super) replica: Option<&'a Path>,
    /// A process that has the database open.
    pub(super) process: Option<u32>,
}

impl Disk<'_> {
    pub(super) fn look(&self, limit: Duration, report: &mut Report) {
        let folder = self.database.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        let at = folder.clone();
        let asked = blocking(limit, move || -> io::Result<_> { Ok((rustix::fs::statfs(&at)?.f_type, rustix::fs::statvfs(&at)?)) });
        match asked {
            Ok(Ok((kind, space))) => {
                #[allow(clippy::unnecessary_cast, reason = "its width differs between systems")]
                kind_of(kind as u64 & 0xffff_ffff, report);
                self.room(&space, report);
                self.may_write(&folder, &space, report);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => report.problem(
                "disk",
                format!("the folder {} is not there", folder.display()),
                "An open of the database fails",
                "Make it, or correct the path; where it is to be a volume, look whether that is mounted",
            ),
            Ok(Err(error)) => report.unknown("disk", format!("{}: {error}", folder.display()), "Look at `mount`"),
            Err(late) => {
                report.unknown("disk", format!("{}: {late}", folder.display()), "Its file system does not answer: look at `mount`")
            }
        }
        self.is_apart(limit, &folder, report);
        self.limits(report);
    }

    fn room(&self, space: &StatVfs, report: &mut Report) {
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let what = format!(
            "{} free; up to {} may wait there (max_local), {} do",
            text::size(free),
            text::size(self.max_local_bytes),
            text::size(self.waiting_bytes)
        );
        if free < NEARLY_FULL_BYTES {
            report.problem(
                "space",
                what,
                "SQLite's next commits fail, and nothing can be kept for an outage: the full state would follow it",
                "Free some space on that disk",
            );
        } else if free < self.max_local_bytes.saturating_sub(self.waiting_bytes) {
            report.warning(
                "space",
                what,
                "A long outage of the store finds less room than it may take. No more waits than is left free; beyond that the full state is sent afterwards",
                "Give the disk more room, or set max_local to what it has",
            );
        } else {
            report.ok("space", what);
        }
        if space.f_files > 0 && space.f_favail < 100 {
            report.problem(
                "inodes",
                format!("{} files can be made on that disk", space.f_favail),
                "Neither SQLite nor the spool can make a file then",
                "Delete files",
            );
        }
    }

    fn may_write(&self, folder: &Path, space: &StatVfs, report: &mut Report) {
        const MEANS: &str =
            "An open for replication fails: the position is kept in a directory beside the database, and SQLite needs its journal there";
        let user = rustix::process::geteuid();
        if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return report.problem(
                "writable",
                format!("{} is on a file system that is mounted read-only", folder.display()),
                MEANS,
                "Mount it for writing, or open with mode=ro",
            );
        }
        let beside = super::database::with_suffix(self.database, "-replicated");
        let control = beside.join("control");
        let places: [(&Path, Access); 4] = [
            (folder, Access::WRITE_OK | Access::EXEC_OK),
            (self.database, Access::WRITE_OK | Access::READ_OK),
            (&beside, Access::WRITE_OK | Access::EXEC_OK),
            (&control, Access::WRITE_OK | Access::READ_OK),
        ];
        let refused = places.iter().find_map(|(place, access)| match rustix::fs::access(*place, *access) {
            Err(error) if error != rustix::io::Errno::NOENT => Some((place.display().to_string(), io::Error::from(error))),
            _ => None,
        });
        match refused {
            Some((place, error)) => report.problem(
                "writable",
                format!("{place}: {error}, for user {}", user.as_raw()),
                MEANS,
                "Give the application's user write permission on the folder, the database and what is beside it; a database that nobody may write is opened with mode=ro",
            ),
            None if user.is_root() => report.ok("writable", "for root; run this as the application's user to know it of that one"),
            None => report.ok("writable", format!("the folder and the database, for user {}", user.as_raw())),
        }
    }

    /// A backup on the disk of what it is of.
    fn is_apart(&self, limit: Duration, folder: &Path, report: &mut Report) {
        let Some(replica) = self.replica else { return };
        let (here, there) = (folder.to_owned(), nearest(replica));
        let devices = blocking(limit, move || -> io::Result<_> { Ok((std::fs::metadata(here)?.dev(), std::fs::metadata(there)?.dev())) });
        if let Ok(Ok((here, there))) = devices
            && here == there
        {
            report.warning(
                "apart",
                "the replica is on the same file system as the database",
                "What takes that disk takes both",
                "Put the replica on another disk, another machine or in a bucket",
            );
        }
    }

    fn limits(&self, report: &mut Report) {
        let of_process = self.process.and_then(|process| std::fs::read_to_string(format!("/proc/{process}/limits")).ok());
        let whose = if of_process.is_some() { "the process that uploads" } else { "this shell; a service's may be others" };
        let read = |line: &str, own: Option<u64>| match &of_process {
            Some(limits) => limits
                .lines()
                .find(|text| text.starts_with(line))
                .and_then(|text| text.get(line.len()..)?.split_whitespace().next()?.parse().ok()),
            None => own,
        };
        let files = read("Max open files", getrlimit(Resource::Nofile).current);
        let file_bytes = read("Max file size", getrlimit(Resource::Fsize).current);
        let shown = |limit: Option<u64>| limit.map_or_else(|| "any number of".to_owned(), |limit| limit.to_string());
        if let Some(most) = file_bytes {
            return report.problem(
                "limits",
                format!("files may have {} ({whose})", text::size(most)),
                "A database, a WAL or a restored file that grows beyond that fails",
                "Lift it: ulimit -f unlimited, LimitFSIZE=infinity in the unit",
            );
        }
        if files.is_some_and(|files| files < FEW_FILES) {
            return report.warning(
                "limits",
                format!("{} files may be open ({whose})", shown(files)),
                "Each replicated database takes five or so, and connections to the store some more",
                "Raise it: ulimit -n 4096, LimitNOFILE=4096 in the unit",
            );
        }
        report.ok("limits", format!("{} files may be open ({whose})", shown(files)));
    }
}

fn kind_of(number: u64, report: &mut Report) {
    let Some((_, name, kind)) = KINDS.iter().find(|(known, ..)| *known == number) else {
        return report.ok("disk", "a local file system, as far as that tells");
    };
    match kind {
        Kind::Network => report.problem(
            "disk",
            format!("the database is on {name}"),
            "SQLite's locks and its shared memory cannot be relied on there: databases are damaged in that way, with and without replication",
            "Put the database on a local disk (a volume, not a share)",
        ),
        Kind::Unsure => report.warning(
            "disk",
            format!("the database is on {name}"),
            "Whether SQLite's locks and its shared memory can be relied on depends on what is behind it; with s3fs or sshfs they cannot",
            "Put the database on a local disk (a volume, not a share)",
        ),
        Kind::Passing => report.warning(
            "disk",
            format!("the database is on {name}"),
            "It goes with the container or the machine, together with what waits to be sent",
            "Put it on a volume; where it is meant so, restore=if-missing brings it back, and durability=remote loses nothing",
        ),
        Kind::Odd => report.warning(
            "disk",
            format!("the database is on {name}"),
            "It has no owners, and its times are coarse: more is compared after an open",
            "Put it on a file system of Linux's own",
        ),
    }
}

/// The folder, or the first above it that is there.
fn nearest(path: &Path) -> PathBuf {
    path.ancestors().find(|folder| folder.exists()).unwrap_or(path).to_owned()
}
