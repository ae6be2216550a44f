//! What Litestream 0.3 has left in a bucket: `generations/<16 hex>/snapshots/<index>.snapshot.lz4` and `generations/<16 hex>/wal/<index>_<offset>.wal.lz4`.

use std::fmt;

use crate::types::TimestampMs;

/// What one of its objects holds, each as one LZ4 frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GenerationPart {
    /// The database file as it was when the log of this number had begun.
    Snapshot {
        /// The number of the log.
        index: u64,
    },
    /// Bytes of a log.
    Wal {
        /// The number of the log.
        index: u64,
        /// Where in the log they begin.
        offset: u64,
    },
}

/// One of its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationFile {
    /// The generation: a history that began with a snapshot.
    pub generation: u64,
    /// What it holds.
    pub part: GenerationPart,
    /// Its name below `generations/`.
    pub path: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was stored.
    pub timestamp: TimestampMs,
}

impl GenerationFile {
    /// By its name below `generations/`; `None` for anything else.
    pub(super) fn parse(path: &str, size_bytes: u64, timestamp: TimestampMs) -> Option<Self> {
        let mut parts = path.split('/');
        let (generation, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || generation.len() != 16 {
            return None;
        }
        let part = match kind {
            "snapshots" => GenerationPart::Snapshot { index: number(name.strip_suffix(".snapshot.lz4")?)? },
            "wal" => {
                let (index, offset) = name.strip_suffix(".wal.lz4")?.split_once('_')?;
                GenerationPart::Wal { index: number(index)?, offset: number(offset)? }
            }
            _ => return None,
        };
        Some(Self { generation: number(generation)?, part, path: path.to_owned(), size_bytes, timestamp })
    }

    /// The number of the log.
    #[must_use]
    pub const fn index(&self) -> u64 {
        match self.part {
            GenerationPart::Snapshot { index } | GenerationPart::Wal { index, .. } => index,
        }
    }
}

impl fmt::Display for GenerationFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generations/{}", self.path)
    }
}

/// 8 to 16 lower-case hexadecimal digits.
fn number(text: &str) -> Option<u64> {
    let is_one = (8..=16).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_one { u64::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_litestreams_and_nothing_else_is_read() {
        let part = |path: &str| GenerationFile::parse(path, 1, TimestampMs(0)).map(|file| (file.generation, file.part));
        let generation = 0x9285_2a2d_de51_9981;
        assert_eq!(part("92852a2dde519981/snapshots/0000000a.snapshot.lz4"), Some((generation, GenerationPart::Snapshot { index: 10 })));
        assert_eq!(
            part("92852a2dde519981/wal/00000001_00004080.wal.lz4"),
            Some((generation, GenerationPart::Wal { index: 1, offset: 0x4080 }))
        );
        for other in [
            "",
            "92852a2dde519981",
            "92852a2dde51998/wal/00000001_00004080.wal.lz4",
            "92852a2dde519981/wal/00000001.wal.lz4",
            "92852a2dde519981/wal/00000001_00004080.wal",
            "92852a2dde519981/wal/00000001_00004080.wal.lz4/x",
            "92852a2dde519981/wal/1_0.wal.lz4",
            "92852a2dde519981/snapshots/0000000A.snapshot.lz4",
            "../x/wal/00000001_00004080.wal.lz4",
        ] {
            assert_eq!(part(other), None, "{other}");
        }
    }
}
