//! Litestream 0.5.17 and we read each other's buckets, and take each other's over.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic)] // The helpers are part of tests.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use replicated::restore::Target;
use replicated::store::Level;
use replicated::types::{TimestampMs, Txid};
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::{integrity_check, page_compare};
use replicated_testkit::tools;

mod built;
mod pages;

/// What a test needs: where Litestream is, a bucket, a folder.
struct Place {
    tools: PathBuf,
    server: Option<Server>,
    bucket: Bucket,
    dir: tempfile::TempDir,
}

impl Place {
    fn new(on_s3: bool) -> Option<Self> {
        let tools = tools::environment()?;
        let dir = tempfile::tempdir().unwrap();
        let (server, bucket) = Bucket::somewhere(on_s3, dir.path());
        Some(Self { tools, server, bucket, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The bucket's URL as Litestream wants it.
    fn url(&self) -> String {
        match &self.server {
            Some(server) => format!("{}?endpoint={}&forcePathStyle=true&region=us-east-1", self.bucket.url, server.endpoint()),
            None => self.bucket.url.clone(),
        }
    }

    fn litestream(&self) -> Command {
        host::command(self.tools.join("bin/litestream"), &self.bucket.env)
    }

    /// What Litestream restores.
    fn theirs(&self, arguments: &[&str]) -> PathBuf {
        let output = self.path("theirs.db");
        // It may not be there.
        let _ = std::fs::remove_file(&output);
        let done: Output = self.litestream().arg("restore").arg("-o").arg(&output).args(arguments).arg(self.url()).output().unwrap();
        assert!(done.status.success(), "{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        output
    }

    fn ours(&self, target: Target) -> PathBuf {
        let output = self.path("ours.db");
        self.bucket.try_restore(target, &output).unwrap_or_else(|error| panic!("{error}"));
        integrity_check(&output).unwrap();
        output
    }

    /// Both restore the latest state to the same bytes, which are the database's.
    fn agree(&self, database: &Path) {
        let ours = self.ours(Target::Latest);
        page_compare(&flattened(database, self.dir.path()), &ours).unwrap();
        page_compare(&ours, &self.theirs(&[])).unwrap();
    }

    fn open(&self, host: &mut Host, database: &Path) -> Db {
        let db = host.open(&host::replicated(database, &self.bucket.url, &[("sync_interval", "10ms")]));
        host.run(db, "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x)");
        db
    }

    /// Starts Litestream's replication.
    fn replicate(&self, database: &Path) -> Replicating {
        let log = std::fs::File::create(self.path("litestream.log")).unwrap();
        let errors = log.try_clone().unwrap();
        let mut command = self.litestream();
        command.arg("replicate").arg(database).arg(self.url()).stdout(Stdio::from(log)).stderr(Stdio::from(errors));
        Replicating(command.spawn().unwrap())
    }

    fn newest(&self) -> u64 {
        self.bucket.try_list().iter().map(|l| l.name.max_txid.get()).max().unwrap_or(0)
    }

    /// Waits until the bucket's latest state is the database.
    fn caught_up(&self, database: &Path) {
        let output = self.path("progress.db");
        let mut why = String::new();
        let log = || std::fs::read_to_string(self.path("litestream.log")).unwrap_or_default();
        let deadline = std::time::Instant::now() + host::PATIENCE;
        while std::time::Instant::now() < deadline {
            why = match self.bucket.try_restore(Target::Latest, &output) {
                Ok(_) => match page_compare(&flattened(database, self.dir.path()), &output) {
                    Ok(()) => return,
                    Err(difference) => difference,
                },
                Err(error) => error.to_string(),
            };
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{why}\n{}", log());
    }
}

/// A running Litestream; killed when dropped.
struct Replicating(Child);

impl Replicating {
    /// As a service manager stops it.
    fn stop(mut self) {
        assert!(Command::new("kill").arg(self.0.id().to_string()).status().unwrap().success());
        self.0.wait().unwrap();
    }
}

impl Drop for Replicating {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write(host: &mut Host, db: Db, rounds: usize) {
    for _ in 0..rounds {
        host.run(
            db,
            "INSERT INTO t(x) VALUES (randomblob(2500)); UPDATE t SET x = randomblob(900) WHERE id % 7 = (SELECT max(id) % 7 FROM t)",
        );
    }
}

fn litestream_restores_ours(on_s3: bool) {
    let Some(place) = Place::new(on_s3) else { return };
    let database = place.path("app.db");
    let mut host = Host::start(Program::Python, &place.bucket.env);
    let db = place.open(&mut host, &database);
    let mut txids = Vec::new();
    for _ in 0..6 {
        write(&mut host, db, 5);
        txids.push(host.sync(db));
        // So that there are moments at which nothing was committed: for an equal time the two tools need not agree.
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
    host.run(db, "DELETE FROM t WHERE id > 10; VACUUM");
    host.close(db);
    place.agree(&database);
    for txid in &txids {
        let ours = place.ours(Target::Txid(Txid::from_hex(txid).unwrap()));
        page_compare(&ours, &place.theirs(&["-txid", txid])).unwrap();
    }
    for txid in &txids[1..5] {
        let list = place.bucket.level(Level::ZERO);
        let committed = list.iter().find(|l| l.name.max_txid.to_string() == *txid).unwrap().timestamp;
        let after = TimestampMs(committed.0 + 10);
        let ours = place.ours(Target::Timestamp(after));
        page_compare(&ours, &place.theirs(&["-timestamp", &after.to_string()])).unwrap();
    }
}

#[test]
fn litestream_restores_our_bucket_on_s3() {
    litestream_restores_ours(true);
}

#[test]
fn litestream_restores_our_folder() {
    litestream_restores_ours(false);
}

#[test]
fn litestreams_read_replica_opens_our_bucket() {
    const SCRIPT: &str = r#"
import sqlite3, sys, litestream_vfs
loader = sqlite3.connect(":memory:")
litestream_vfs.load(loader)
replica = sqlite3.connect("file:replica.db?vfs=litestream", uri=True)
print(replica.execute("SELECT count(*), sum(length(x)), max(id) FROM t").fetchone())
assert replica.execute("PRAGMA integrity_check").fetchone() == ("ok",)
"#;
    for on_s3 in [true, false] {
        let Some(place) = Place::new(on_s3) else { return };
        let database = place.path("app.db");
        let mut host = Host::start(Program::Python, &place.bucket.env);
        let db = place.open(&mut host, &database);
        write(&mut host, db, 20);
        host.sync(db);
        write(&mut host, db, 20);
        host.sync(db);
        let row = host.query(db, "SELECT count(*), sum(length(x)), max(id) FROM t").remove(0);
        let mut command = host::command(place.tools.join("bin/python3"), &place.bucket.env);
        command.env("LITESTREAM_REPLICA_URL", place.url()).current_dir(place.dir.path()).args(["-c", SCRIPT]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("({}, {}, {})", row[0], row[1], row[2]));
    }
}

/// We write, Litestream takes the bucket over and goes on, we take it back and go on.
fn there_and_back_again(on_s3: bool) {
    let Some(place) = Place::new(on_s3) else { return };
    let database = place.path("app.db");
    let mut host = Host::start(Program::Python, &place.bucket.env);
    let db = place.open(&mut host, &database);
    write(&mut host, db, 10);
    host.close(db);
    place.agree(&database);
    let before = place.newest();

    let litestream = place.replicate(&database);
    let mut app = Host::plain(&[]);
    let plain = app.open(database.to_str().unwrap());
    write(&mut app, plain, 10);
    place.caught_up(&database);
    write(&mut app, plain, 10);
    place.caught_up(&database);
    let after = place.newest();
    assert!(after > before, "{before} to {after}");
    place.agree(&database);
    app.close(plain);
    litestream.stop();
    place.agree(&database);

    let db = place.open(&mut host, &database);
    write(&mut host, db, 10);
    host.sync(db);
    assert_eq!(host.status(db, "state"), "idle");
    write(&mut host, db, 10);
    host.close(db);
    place.agree(&database);
    assert!(place.newest() > after);
    assert_eq!(place.bucket.level(Level::new(9).unwrap()).len(), 1);
}

#[test]
fn litestream_takes_our_bucket_over_and_gives_it_back() {
    there_and_back_again(true);
}

#[test]
fn litestream_takes_our_folder_over_and_gives_it_back() {
    there_and_back_again(false);
}

/// The application never stopped: its WAL is still there, and shows where Litestream ended.
#[test]
fn we_take_over_from_litestream_in_the_middle_of_a_wal() {
    let Some(place) = Place::new(true) else { return };
    let database = place.path("app.db");
    let mut app = Host::plain(&[]);
    let plain = app.open(database.to_str().unwrap());
    app.run(plain, "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    write(&mut app, plain, 30);
    let litestream = place.replicate(&database);
    eventually("Litestream's first upload", || place.newest() > 0);
    write(&mut app, plain, 10);
    place.caught_up(&database);
    litestream.stop();
    place.caught_up(&database);
    let before = place.newest();
    // Killed, so that the WAL stays.
    app.kill();
    let full_states = place.bucket.full_states();

    let mut host = Host::start(Program::Python, &place.bucket.env);
    let db = place.open(&mut host, &database);
    host.run(db, "INSERT INTO t(x) VALUES (1)");
    host.sync(db);
    assert_eq!(place.bucket.full_states(), full_states, "the full state was sent, although the WAL shows the way");
    write(&mut host, db, 10);
    host.sync(db);
    place.agree(&database);
    assert!(place.newest() > before);
    host.close(db);
    place.agree(&database);
}

/// Rollback modes, and a page size that changes, look to Litestream like anything else.
#[test]
fn litestream_restores_what_was_written_in_every_mode() {
    for on_s3 in [true, false] {
        let Some(place) = Place::new(on_s3) else { return };
        let (path, mut host) = (place.path("app.db"), Host::start(Program::Python, &place.bucket.env));
        let db = place.open(&mut host, &path);
        write(&mut host, db, 3);
        let mut states = Vec::new();
        for set_up in [
            "PRAGMA journal_mode=DELETE",
            "PRAGMA page_size=8192; VACUUM",
            "PRAGMA journal_mode=PERSIST",
            "PRAGMA journal_mode=WAL; PRAGMA locking_mode=EXCLUSIVE",
            "PRAGMA journal_mode=OFF; PRAGMA page_size=1024; VACUUM",
        ] {
            host.run(db, set_up);
            write(&mut host, db, 3);
            let txid = host.sync(db);
            let copy = place.path(&format!("copy-{}.db", states.len()));
            std::fs::copy(flattened(&path, place.dir.path()), &copy).unwrap();
            place.agree(&path);
            states.push((txid, copy));
        }
        // Across the changes of the page size, too.
        for (txid, copy) in &states {
            page_compare(copy, &place.ours(Target::Txid(Txid::from_hex(txid).unwrap()))).unwrap();
            page_compare(copy, &place.theirs(&["-txid", txid])).unwrap();
        }
        host.close(db);
        // And Litestream goes on from there.
        let plain = rusqlite::Connection::open(&path).unwrap();
        plain.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(())).unwrap();
        let replicating = place.replicate(&path);
        plain.execute_batch("INSERT INTO t(x) VALUES (randomblob(2500))").unwrap();
        place.caught_up(&path);
        replicating.stop();
        drop(plain);
        page_compare(&place.ours(Target::Latest), &place.theirs(&[])).unwrap();
    }
}

#[test]
fn the_way_from_litestream_and_back_is_as_the_page_says() {
    if tools::environment().is_some() && built::has("sqlite3", &["-version"]) {
        pages::run("docs/litestream.md", tempfile::tempdir().unwrap().path());
    }
}

/// What the page quotes as names, such as options.
fn named(page: &str) -> Vec<&str> {
    page.split('`').skip(1).step_by(2).collect()
}

/// Every option that the program has in its configuration file, by the names that are in the program itself, and every one of ours.
#[test]
fn every_option_of_both_is_on_the_page() {
    let Some(tools) = tools::environment() else { return };
    // Without its blocks, whose fences are of the same character.
    let page: String = pages::read("docs/litestream.md").split("```").step_by(2).collect();
    let named = named(&page);
    let program = std::fs::read(tools.join("bin/litestream")).unwrap();
    let (mark, mut theirs) = (b"yaml:\"", std::collections::BTreeSet::new());
    for at in program.windows(mark.len()).enumerate().filter_map(|(at, bytes)| (bytes == mark).then_some(at + mark.len())) {
        let name: String = program[at..].iter().take(40).map(|&byte| char::from(byte)).take_while(|&c| c != '"').collect();
        if name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        {
            theirs.insert(name);
        }
    }
    assert!(theirs.len() > 80, "{theirs:?}");
    for option in &theirs {
        assert!(named.contains(&option.as_str()), "docs/litestream.md says nothing of Litestream's option {option}");
    }
    let configuration = pages::read("docs/configuration.md");
    let ours: Vec<&str> = configuration.lines().filter(|l| l.contains("| `REPLICATED_")).filter_map(|l| l.split('`').nth(1)).collect();
    assert!(ours.len() > 30, "{ours:?}");
    let (_, back) = page.split_once("## From here to there").unwrap();
    let named = self::named(back);
    for option in ours {
        assert!(named.contains(&option), "docs/litestream.md has nothing under \"From here to there\" of {option}");
    }
}
