//! What objects are called: the layouts of Litestream 0.5.

use super::url::Location;
use super::{Level, LtxName};

/// How the keys of one replica are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    /// What stands before the level, as Litestream joins it.
    prefix: String,
    layout: Layout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// `<path>/<four hexadecimal digits>/`.
    S3,
    /// `<path>/ltx/<decimal>/`.
    Others,
}

impl Keys {
    /// The keys of a replica in a bucket, or, relative to its folder, of one in the file system.
    pub(super) fn new(location: &Location) -> Self {
        match location {
            // Plain concatenation, so that an empty path makes keys that begin with a slash. Litestream does just that.
            Location::S3 { path, .. } => Self { prefix: format!("{path}/"), layout: Layout::S3 },
            Location::Gcs { path, .. } | Location::Azure { path, .. } if !path.is_empty() => {
                Self { prefix: format!("{path}/ltx/"), layout: Layout::Others }
            }
            Location::Gcs { .. } | Location::Azure { .. } | Location::Folder { .. } => {
                Self { prefix: "ltx/".to_owned(), layout: Layout::Others }
            }
        }
    }

    /// What all keys of a level begin with, its slash included.
    pub(super) fn level(&self, level: Level) -> String {
        match self.layout {
            Layout::S3 => format!("{}{:04x}/", self.prefix, level.get()),
            Layout::Others => format!("{}{}/", self.prefix, level.get()),
        }
    }

    /// The key of a file.
    pub(super) fn file(&self, name: &LtxName) -> String {
        self.level(name.level) + &name.file_name()
    }

    /// What all keys of a Litestream 0.3 replica in the same place begin with.
    pub(super) fn generations(&self) -> String {
        let path = match self.layout {
            Layout::S3 => &self.prefix,
            Layout::Others => self.prefix.strip_suffix("ltx/").unwrap_or(&self.prefix),
        };
        format!("{path}generations/")
    }

    /// The key of an object beside the levels.
    pub(super) fn beside(&self, file: &str) -> String {
        let path = match self.layout {
            Layout::S3 => &self.prefix,
            Layout::Others => self.prefix.strip_suffix("ltx/").unwrap_or(&self.prefix),
        };
        format!("{path}{file}")
    }

    /// Whether keys begin with a slash.
    pub(super) fn begin_with_slash(&self) -> bool {
        self.prefix.starts_with('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::url::ReplicaUrl;
    use crate::types::Txid;

    #[test]
    fn generations_are_beside_the_levels() {
        let generations = |url: &str| Keys::new(ReplicaUrl::parse(url).unwrap().location()).generations();
        assert_eq!(generations("s3://b/app/db"), "app/db/generations/");
        assert_eq!(generations("gs://b"), "generations/");
        assert_eq!(generations("abs://a@c/app"), "app/generations/");
        assert_eq!(generations("file:///backup/app"), "generations/");
    }

    #[test]
    fn the_lock_is_beside_the_levels() {
        let lock = |url: &str| Keys::new(ReplicaUrl::parse(url).unwrap().location()).beside("lock.json");
        assert_eq!(lock("s3://b/app/db"), "app/db/lock.json");
        assert_eq!(lock("gs://b"), "lock.json");
        assert_eq!(lock("abs://a@c/app"), "app/lock.json");
        assert_eq!(lock("file:///backup/app"), "lock.json");
    }

    fn key(url: &str, level: u8) -> String {
        let name = LtxName { level: Level::new(level).unwrap(), min_txid: Txid::new(1).unwrap(), max_txid: Txid::new(28).unwrap() };
        Keys::new(ReplicaUrl::parse(url).unwrap().location()).file(&name)
    }

    #[test]
    fn keys_are_litestreams() {
        let file = "0000000000000001-000000000000001c.ltx";
        assert_eq!(key("s3://b/app/db", 9), format!("app/db/0009/{file}"));
        assert_eq!(key("s3://b/app/db/", 0), format!("app/db/0000/{file}"));
        assert_eq!(key("s3://b/", 0), format!("/0000/{file}"));
        assert_eq!(key("gs://b/app", 9), format!("app/ltx/9/{file}"));
        assert_eq!(key("gs://b", 0), format!("ltx/0/{file}"));
        assert_eq!(key("abs://a@c/app", 1), format!("app/ltx/1/{file}"));
        assert_eq!(key("file:///backup/app", 2), format!("ltx/2/{file}"));
    }
}
