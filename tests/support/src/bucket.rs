//! Buckets as tests see them: opened with credentials of their own, restored, listed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use replicated::restore::{self, Report, RestoreError, RestoreOptions, Target};
use replicated::store::{Env, Level, Listed, ReplicaUrl, SNAPSHOT_LEVEL, Store, StoreOptions, open_with_env};
use replicated::types::Txid;
use rusqlite::Connection;

use crate::s3::Server;

/// A replica URL and what is needed to get at it.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// The replica URL, without endpoint.
    pub url: String,
    /// The environment of a process that uses it.
    pub env: Vec<(String, String)>,
}

impl Bucket {
    /// A path in a server's bucket.
    #[must_use]
    pub fn s3(server: &Server, path: &str) -> Self {
        Self { url: format!("s3://{}/{path}", server.bucket()), env: server.env() }
    }

    /// `app/db` on a server of its own, or a folder in `dir`.
    ///
    /// # Panics
    /// Where the server cannot be started.
    #[must_use]
    pub fn somewhere(on_s3: bool, dir: &Path) -> (Option<Server>, Self) {
        let server = on_s3.then(|| Server::start().expect("a port is free"));
        let bucket = server.as_ref().map_or_else(|| Self::folder(&dir.join("bucket")), |server| Self::s3(server, "app/db"));
        (server, bucket)
    }

    /// A folder.
    #[must_use]
    pub fn folder(path: &Path) -> Self {
        Self { url: format!("file://{}", path.display()), env: Vec::new() }
    }

    /// The same through another endpoint.
    #[must_use]
    pub fn through(&self, endpoint: &str) -> Self {
        let mut env = self.env.clone();
        for (name, value) in &mut env {
            if name == "AWS_ENDPOINT_URL" {
                endpoint.clone_into(value);
            }
        }
        Self { url: self.url.clone(), env }
    }

    /// Its store.
    ///
    /// # Panics
    /// Where it cannot be opened.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        let env: Env = self.env.iter().cloned().collect();
        let url = ReplicaUrl::parse(&self.url).expect("the URL is right");
        open_with_env(&url, &StoreOptions::default(), &env).expect("the store opens")
    }

    /// Restores a state.
    ///
    /// # Errors
    /// As the library.
    pub fn try_restore(&self, target: Target, output: &Path) -> Result<Report, RestoreError> {
        let mut options = RestoreOptions::latest(output);
        (options.target, options.overwrite) = (target, true);
        restore::restore(&*self.store(), &options)
    }

    /// Restores the latest state, which must be there.
    ///
    /// # Panics
    /// Where it is not.
    pub fn restore(&self, output: &Path) -> Report {
        self.try_restore(Target::Latest, output).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Everything in it.
    ///
    /// # Panics
    /// Where it cannot be listed.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        restore::catalogue(&*self.store()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Everything in it, nothing where there is nothing.
    #[must_use]
    pub fn try_list(&self) -> Vec<Listed> {
        restore::catalogue(&*self.store()).unwrap_or_default()
    }

    /// Everything at a level.
    #[must_use]
    pub fn level(&self, level: Level) -> Vec<Listed> {
        self.list().into_iter().filter(|listed| listed.name.level == level).collect()
    }

    /// Every state of the bucket in its order, as a file that level-0 files are applied to one after another: without what restores it, and quicker
    /// than restoring each.
    ///
    /// # Errors
    /// What is wrong with a file, or with their order.
    ///
    /// # Panics
    /// Where the bucket cannot be read.
    pub fn replay(&self, file: &Path, mut visit: impl FnMut(Txid, &Path)) -> Result<(), String> {
        let store = self.store();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let read =
            |listed: &Listed| runtime.block_on(store.get_range(&listed.name, 0..listed.size_bytes)).expect("a listed file can be read");
        let snapshots = self.level(SNAPSHOT_LEVEL);
        let mut last: Option<Txid> = None;
        let mut pages = std::collections::BTreeMap::new();
        let mut files = self.level(Level::ZERO);
        // A process that died twice before it wrote the empty file beside its first snapshot leaves the snapshot alone; what follows says where it ends.
        let alone = snapshots.iter().filter(|snapshot| !files.iter().any(|file| file.name.max_txid == snapshot.name.max_txid));
        let first = alone.filter(|snapshot| files.iter().all(|file| file.name.min_txid > snapshot.name.max_txid)).copied().next();
        files.splice(0..0, first);
        for listed in files {
            let txid = listed.name.max_txid;
            if last.is_some_and(|last| listed.name.min_txid != last.next()) {
                return Err(format!("TXID {txid} follows on {last:?}"));
            }
            last = Some(txid);
            // The first state, and one with another page size, is a snapshot with an empty file beside it.
            let snapshot = snapshots.iter().find(|snapshot| snapshot.name.max_txid == txid);
            let bytes = read(snapshot.unwrap_or(&listed));
            let told = |error: replicated::ltx::LtxError| format!("TXID {txid}: {error}");
            let mut reader = replicated::ltx::Reader::new(&bytes[..]);
            let header = reader.read_header().map_err(told)?;
            let mut page = Vec::new();
            if snapshot.is_some() {
                pages.clear();
            }
            while let Some(number) = reader.next_page(&mut page).map_err(told)? {
                pages.insert(number.get(), page.clone());
            }
            pages.retain(|number, _| *number <= header.commit_pages);
            let mut content = Vec::new();
            for number in 1..=header.commit_pages {
                // A page that no file has is the lock page, or a fault that SQLite's own check finds.
                content.extend(pages.get(&number).cloned().unwrap_or_else(|| vec![0; header.page_size.bytes()]));
            }
            std::fs::write(file, content).expect("the state can be written");
            visit(txid, file);
        }
        Ok(())
    }

    /// How often the full state was sent: snapshots but those that maintenance has made of uploads, and level-0 files with every page.
    ///
    /// # Panics
    /// Where a file cannot be read.
    #[must_use]
    pub fn full_states(&self) -> usize {
        let store = self.store();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut files = self.list();
        files.sort_by_key(|listed| (listed.name.max_txid, std::cmp::Reverse(listed.name.level)));
        let mut pages_before = 0;
        let mut is_full = |listed: &Listed| {
            let bytes = runtime.block_on(store.get_range(&listed.name, 0..listed.size_bytes)).expect("a listed file can be read");
            let mut reader = replicated::ltx::Reader::new(&bytes[..]);
            let header = reader.read_header().expect("a file of ours has a header");
            let before = std::mem::replace(&mut pages_before, header.commit_pages);
            if listed.name.level == SNAPSHOT_LEVEL {
                // Beside one that was sent there is an empty file, or one with every page.
                let beside = files.iter().find(|file| file.name.level == Level::ZERO && file.name.max_txid == listed.name.max_txid);
                return beside.is_none_or(|file| file.size_bytes < 200 || file.size_bytes * 10 > listed.size_bytes * 9);
            }
            let (mut pages, mut page) = (0, Vec::new());
            while reader.next_page(&mut page).expect("a file of ours is whole").is_some() {
                pages += 1;
            }
            // A small database may change in all of its pages, as one that has just been made does: tests that count have pages that never change.
            listed.name.level == Level::ZERO && pages > 20 && pages == header.commit_pages && before > 20
        };
        files.iter().filter(|listed| is_full(listed)).count()
    }
}

/// The committed state of a database that nobody has open, WAL or hot journal included, as one file in `folder`.
///
/// # Panics
/// Where it cannot be copied or opened.
#[must_use]
pub fn flattened(database: &Path, folder: &Path) -> PathBuf {
    try_flattened(database, folder).unwrap_or_else(|error| panic!("{}: {error}", database.display()))
}

/// The same of a database that may be damaged.
///
/// # Errors
/// What SQLite says to it.
///
/// # Panics
/// Where it cannot be copied.
pub fn try_flattened(database: &Path, folder: &Path) -> Result<PathBuf, rusqlite::Error> {
    let copy = folder.join("flattened.db");
    let with = |path: &Path, suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    for suffix in ["", "-wal", "-shm", "-journal"] {
        // It may not be there.
        let _ = std::fs::remove_file(with(&copy, suffix));
    }
    std::fs::copy(database, &copy).expect("the database can be copied");
    for suffix in ["-wal", "-journal"] {
        if with(database, suffix).exists() {
            std::fs::copy(with(database, suffix), with(&copy, suffix)).expect("what lies beside the database can be copied");
        }
    }
    let connection = Connection::open(&copy)?;
    // Rolls back what a hot journal has, or copies the WAL.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    assert_eq!(busy, 0);
    connection.close().map_err(|(_, error)| error)?;
    Ok(copy)
}
