//! A bucket that is whole is found whole, whoever wrote it and whatever maintenance made of it; every kind of damage is found, and named; and the live
//! database is told from a bucket that is merely behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use replicated::ltx::{Decoder, Encoder, Header, LtxError, Reader};
use replicated::maintenance::{self, MaintainError, Turn};
use replicated::store::{Level, Listed, LtxName, SNAPSHOT_LEVEL};
use replicated::types::{PageNo, TimestampMs, Txid};
use replicated::verify::{self, Kind, Outcome, Report, Scope, Verifier};
use replicated_testkit::bucket::Bucket;
use replicated_testkit::host::{self, Db, Host, Program, eventually};
use replicated_testkit::maintenance::Order;
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::Server;
use replicated_testkit::tools;
use serde_json::Value;

const HOUR: Duration = Duration::from_secs(3600);

/// A database and its bucket.
struct Place {
    dir: tempfile::TempDir,
    server: Option<Server>,
    bucket: Bucket,
    host: Host,
    db: Db,
}

impl Place {
    fn new(on_s3: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, bucket) = Bucket::somewhere(on_s3, dir.path());
        Self::with(dir, server, &bucket.clone(), bucket)
    }

    /// Replicates through one bucket what is looked at through another.
    fn with(dir: tempfile::TempDir, server: Option<Server>, through: &Bucket, bucket: Bucket) -> Self {
        let mut host = Host::start(Program::Python, &through.env);
        let db = host.open(&host::replicated(&dir.path().join("app.db"), &through.url, &[("sync_interval", "10ms"), ("burst", "100")]));
        host.run(db, "PRAGMA journal_mode=WAL; BEGIN; CREATE TABLE ballast(x); INSERT INTO ballast VALUES (randomblob(60000)); CREATE TABLE t(id INTEGER PRIMARY KEY, x); COMMIT");
        host.sync(db);
        Self { dir, server, bucket, host, db }
    }

    fn database(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    /// So many uploads.
    fn commit(&mut self, uploads: usize) -> Txid {
        let mut txid = Txid::FIRST;
        for _ in 0..uploads {
            self.host.run(
                self.db,
                "BEGIN; INSERT INTO t(x) VALUES (randomblob(3500)); UPDATE t SET x = randomblob(3500) WHERE id % 3 = 1; COMMIT",
            );
            txid = Txid::from_hex(&self.host.sync(self.db)).unwrap();
        }
        txid
    }

    fn order(&self) -> Order {
        Order { change_percent: 100_000, ..Order::of(&self.bucket) }
    }

    fn maintain(&self, order: &Order) {
        let report = order.run(&self.bucket).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(report.problems, Vec::<String>::new());
    }

    fn cli(&self, arguments: &[&str]) -> (i32, Value, String) {
        cli(&self.bucket, arguments)
    }

    fn against(&self) -> (i32, Value) {
        let database = self.database();
        let (code, told, _) = self.cli(&["--against", database.to_str().unwrap(), "--json"]);
        (code, told["against"].clone())
    }
}

/// Runs the command; its exit code, its document and its errors.
fn cli(bucket: &Bucket, arguments: &[&str]) -> (i32, Value, String) {
    let mut command: Command = host::command(env!("CARGO_BIN_EXE_replicated"), &bucket.env);
    let output = command.arg("verify").arg(&bucket.url).args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    (output.status.code().unwrap_or_else(|| panic!("{err}")), serde_json::from_str(&out).unwrap_or(Value::Null), err)
}

fn look(bucket: &Bucket, scope: Scope, later: Duration) -> Report {
    let at = TimestampMs(maintenance::now().0 + i64::try_from(later.as_millis()).unwrap());
    verify::read(&Verifier::new(bucket.store(), scope), at).unwrap_or_else(|error| panic!("{error}"))
}

fn is_good(bucket: &Bucket) -> Report {
    let report = look(bucket, Scope::default(), Duration::ZERO);
    assert_eq!(report.outcome(), Outcome::Verified, "{report:#?}");
    report
}

/// A copy has the times of its copying in its listing, and promises no more for that.
#[test]
fn what_was_copied_yesterday_is_as_old_as_it_is() {
    let mut place = Place::new(false);
    place.commit(4);
    place.maintain(&place.order().later(Duration::from_secs(5)));
    place.commit(2);
    let order = Order { exact_ms: 3_600_000, ..place.order() };
    place.maintain(&order.later(27 * HOUR));
    place.commit(1);
    place.maintain(&order.later(27 * HOUR + Duration::from_secs(9)));
    let server = Server::start().unwrap();
    let to = Bucket::s3(&server, "app/db");
    replicated::copy::copy(&mut replicated::copy::Copier::new(place.bucket.store(), to.store(), replicated::copy::Options::default()))
        .unwrap();
    let scope = Scope { exact: HOUR, ..Scope::default() };
    for bucket in [&place.bucket, &to] {
        let report = look(bucket, scope.clone(), 27 * HOUR);
        assert_eq!(report.outcome(), Outcome::Verified, "{report:#?}");
        assert!(report.floor.is_some());
    }
}

/// Each state restores and is whole for SQLite.
fn all_points_are_good(bucket: &Bucket) {
    let (code, told, errors) = cli(bucket, &["--points", "1000", "--json"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{told:#}");
    assert_eq!(told["restored"].as_array().unwrap().len() as u64, told["states"].as_u64().unwrap());
}

#[test]
fn a_bucket_of_ours_is_whole_at_every_stage_of_its_life() {
    for on_s3 in [false, true] {
        let mut place = Place::new(on_s3);
        place.commit(4);
        let report = is_good(&place.bucket);
        // The snapshot, the file without pages beside it, and one for each upload.
        assert_eq!((report.files_read, report.states.len()), (report.files, report.files - 1));
        for _ in 0..3 {
            place.maintain(&place.order().later(Duration::from_secs(5)));
            place.commit(4);
            is_good(&place.bucket);
        }
        assert!(place.bucket.list().iter().any(|file| file.name.level.get() == 2));
        all_points_are_good(&place.bucket);
        // Another page size, in another mode, and back again.
        for page_size in [8192, 4096] {
            place.host.run(place.db, &format!("PRAGMA journal_mode=DELETE; PRAGMA page_size={page_size}; VACUUM; PRAGMA journal_mode=WAL"));
            place.commit(2);
            is_good(&place.bucket);
        }
        // Smaller, and larger again.
        place.host.run(place.db, "DELETE FROM t; VACUUM");
        place.commit(1);
        place.host.run(place.db, "INSERT INTO t(x) VALUES (randomblob(200000))");
        place.commit(1);
        place.maintain(&place.order().later(Duration::from_secs(9)));
        is_good(&place.bucket);
        // A day later a snapshot is made, and a day after that what was before it is gone.
        place.maintain(&place.order().later(25 * HOUR));
        assert_eq!(look(&place.bucket, Scope::default(), 25 * HOUR).outcome(), Outcome::Verified);
        let short = Order { exact_ms: 3_600_000, ..place.order() };
        place.maintain(&short.later(27 * HOUR));
        let scope = Scope { exact: HOUR, ..Scope::default() };
        let report = look(&place.bucket, scope.clone(), 27 * HOUR);
        assert_eq!(report.outcome(), Outcome::Verified, "{report:#?}");
        place.maintain(&short.later(60 * HOUR));
        let report = look(&place.bucket, scope, 60 * HOUR);
        assert_eq!(report.outcome(), Outcome::Verified, "{report:#?}");
        assert_eq!(report.floor.map(|floor| floor.name.level), Some(SNAPSHOT_LEVEL));
        // What is left of older states leads nowhere, and is whole all the same.
        let all = look(&place.bucket, Scope { everything: true, ..Scope::default() }, 60 * HOUR);
        assert_eq!((all.outcome(), all.files_read, all.files_not_promised), (Outcome::Verified, all.files, 0), "{all:#?}");
    }
}

/// The full state after a break, from a file that is smaller by then.
#[test]
fn a_break_of_continuity_is_no_damage() {
    let mut place = Place::new(false);
    place.commit(3);
    place.host.close(place.db);
    let plain = rusqlite::Connection::open(place.database()).unwrap();
    plain.execute_batch("DELETE FROM t WHERE id % 2 = 0; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(plain);
    place.db = place.host.open(&host::replicated(&place.database(), &place.bucket.url, &[("sync_interval", "10ms")]));
    place.commit(2);
    place.maintain(&place.order().later(Duration::from_secs(5)));
    is_good(&place.bucket);
    all_points_are_good(&place.bucket);
}

#[test]
fn what_litestream_wrote_is_whole() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for name in ["litestream-0.5.17-block", "litestream-0.5.15-frame", "litestream-0.5.6-frame"] {
        let bucket = Bucket::folder(&fixtures.join(name));
        let report = is_good(&bucket);
        assert_eq!(report.files_read, report.files, "{name}");
        all_points_are_good(&bucket);
    }
    let (code, told, errors) = cli(&Bucket::folder(&fixtures.join("litestream-0.3.13-generations")), &["--json"]);
    assert_eq!((code, told["status"].as_str()), (3, Some("not_checked")));
    assert!(errors.contains("Litestream 0.3"), "{errors}");
}

#[test]
fn what_litestream_writes_is_whole_and_compares_with_its_database() {
    let Some(tools) = tools::environment() else { return };
    for on_s3 in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (server, bucket) = Bucket::somewhere(on_s3, dir.path());
        let url = server.as_ref().map_or_else(
            || bucket.url.clone(),
            |server| format!("{}?endpoint={}&forcePathStyle=true&region=us-east-1", bucket.url, server.endpoint()),
        );
        let database = dir.path().join("app.db");
        let plain = rusqlite::Connection::open(&database).unwrap();
        plain.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(90000))").unwrap();
        let log = fs::File::create(dir.path().join("litestream.log")).unwrap();
        let mut litestream = host::command(tools.join("bin/litestream"), &bucket.env);
        litestream.arg("replicate").arg(&database).arg(&url).stdout(log.try_clone().unwrap()).stderr(log);
        let mut litestream = litestream.spawn().unwrap();
        let newest = || bucket.try_list().iter().map(|file| file.name.max_txid.get()).max().unwrap_or_default();
        for _ in 0..3 {
            let before = newest();
            plain.execute_batch("INSERT INTO t VALUES (randomblob(5000))").unwrap();
            eventually("Litestream's upload", || newest() > before);
        }
        let against = ["--against", database.to_str().unwrap(), "--json"];
        eventually("that all of it is there", || cli(&bucket, &against).1["against"]["status"] == "equal");
        litestream.kill().unwrap();
        litestream.wait().unwrap();
        is_good(&bucket);
        // Nobody replicates it any more, and somebody writes on: the bucket is behind, by what the WAL says.
        plain.execute_batch("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)").unwrap();
        let (code, told, errors) = cli(&bucket, &against);
        assert_eq!((code, &told["against"]["status"], &told["against"]["commits_behind"]), (0, &"behind".into(), &2.into()), "{errors}");
    }
}

/// The path of an object in a folder.
fn object(bucket: &Bucket, name: LtxName) -> PathBuf {
    let folder = bucket.url.strip_prefix("file://").unwrap();
    Path::new(folder).join(format!("ltx/{}/{}", name.level, name.file_name()))
}

fn copied(bucket: &Bucket, to: &Path) -> Bucket {
    let from = bucket.url.strip_prefix("file://").unwrap();
    for level in Level::all() {
        let (from, to) = (Path::new(from).join(format!("ltx/{level}")), to.join(format!("ltx/{level}")));
        let Ok(entries) = fs::read_dir(from) else { continue };
        fs::create_dir_all(&to).unwrap();
        for entry in entries.map(Result::unwrap) {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            let modified = entry.metadata().unwrap().modified().unwrap();
            fs::File::options().append(true).open(to.join(entry.file_name())).unwrap().set_modified(modified).unwrap();
        }
    }
    Bucket::folder(to)
}

fn flip(path: &Path, at: impl FnOnce(usize) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Where the page index begins, counted from the end.
fn index_bytes(bytes: &[u8]) -> usize {
    let at = bytes.len() - 24;
    usize::try_from(u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
}

/// Puts right checksums to what was changed.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut decoder = Decoder::new();
    decoder.push(&bytes, &mut |_, _| Ok(())).unwrap();
    if let Err(LtxError::FileChecksum { computed, .. }) = decoder.finish() {
        let at = bytes.len() - 8;
        bytes[at..].copy_from_slice(&computed.to_be_bytes());
    }
    bytes
}

/// A file of the same name with other pages.
fn made_anew(bytes: &[u8], change: impl FnOnce(&mut Header, &mut Vec<(PageNo, Vec<u8>)>)) -> Vec<u8> {
    let mut reader = Reader::new(bytes);
    let mut header = reader.read_header().unwrap();
    let (mut pages, mut page) = (Vec::new(), Vec::new());
    while let Some(number) = reader.next_page(&mut page).unwrap() {
        pages.push((number, page.clone()));
    }
    change(&mut header, &mut pages);
    let mut encoder = Encoder::new(Vec::new(), &header).unwrap();
    for (number, page) in pages {
        encoder.page(number, &page).unwrap();
    }
    encoder.finish().unwrap().out
}

fn name(level: u8, min: u64, max: u64) -> LtxName {
    LtxName { level: Level::new(level).unwrap(), min_txid: Txid::new(min).unwrap(), max_txid: Txid::new(max).unwrap() }
}

/// Damages a copy of a bucket, and says what is to be found: of which kinds, and about which object.
fn finds(healthy: &Bucket, what: &str, kinds: &[Kind], about: LtxName, damage: impl FnOnce(&Bucket)) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let bucket = copied(healthy, dir.path());
    damage(&bucket);
    let report = look(&bucket, Scope::default(), Duration::ZERO);
    assert_eq!(report.outcome(), Outcome::Wrong, "{what}: {report:#?}");
    let is_it = |finding: &verify::Finding| kinds.contains(&finding.kind) && finding.object == Some(about);
    assert!(report.findings.iter().any(is_it), "{what}: {:#?}", report.findings);
    assert!(report.findings.iter().all(|finding| !finding.what.is_empty() && !finding.advice.is_empty()));
    let (code, told, errors) = cli(&bucket, &["--json"]);
    assert_eq!((code, &told["status"]), (1, &"wrong".into()), "{what}");
    assert!(errors.contains(&about.to_string()), "{what}: {errors}");
    report
}

#[test]
fn every_kind_of_damage_is_found_and_named() {
    let mut place = Place::new(false);
    let newest = place.commit(9).get();
    let mut other = Place::new(false);
    other.commit(9);
    let plain = place.bucket.clone();
    let foreign = |name: LtxName| fs::read(object(&other.bucket, name)).unwrap();
    let maintained = tempfile::tempdir().unwrap();
    // Level 1 with some files, level 0 as it was.
    place.maintain(&place.order().later(Duration::from_secs(5)));
    let merged: Vec<Listed> = place.bucket.level(Level::new(1).unwrap());
    let [.., last_merged] = merged.as_slice() else { panic!("nothing was merged") };
    let maintained = copied(&place.bucket, maintained.path());
    for file in &merged {
        fs::remove_file(object(&plain, file.name)).unwrap();
    }
    for level in [2, 3] {
        for file in place.bucket.level(Level::new(level).unwrap()) {
            fs::remove_file(object(&plain, file.name)).unwrap();
            fs::remove_file(object(&maintained, file.name)).unwrap();
        }
    }
    is_good(&plain);
    is_good(&maintained);
    let (middle, base) = (name(0, 6, 6), name(9, 1, 2));
    let all = [Kind::Damaged];

    finds(&plain, "page data", &all, middle, |bucket| flip(&object(bucket, middle), |length| length / 2));
    finds(&plain, "page data of the snapshot", &all, base, |bucket| flip(&object(bucket, base), |length| length / 3));
    finds(&plain, "a page's header", &all, middle, |bucket| flip(&object(bucket, middle), |_| 103));
    finds(&plain, "the header", &[Kind::Damaged, Kind::Renamed], middle, |bucket| flip(&object(bucket, middle), |_| 22));
    finds(&plain, "the index", &all, middle, |bucket| flip(&object(bucket, middle), |length| length - 26));
    finds(&plain, "the trailer", &all, middle, |bucket| flip(&object(bucket, middle), |length| length - 1));
    finds(&plain, "the trailer's other half", &all, middle, |bucket| flip(&object(bucket, middle), |length| length - 9));
    let of_index = finds(&plain, "a wrong index with right checksums", &[Kind::Index], middle, |bucket| {
        let path = object(bucket, middle);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() - 24 - index_bytes(&bytes);
        bytes[at] ^= 1;
        fs::write(&path, with_checksum(bytes)).unwrap();
    });
    assert_eq!(of_index.findings.len(), 1, "{of_index:#?}");
    for (what, left) in [("cut short", 2), ("cut to a header", 100), ("cut to almost nothing", 1000), ("emptied", usize::MAX)] {
        finds(&plain, what, &all, middle, |bucket| {
            let path = object(bucket, middle);
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / left]).unwrap();
        });
    }
    finds(&plain, "bytes behind its end", &all, middle, |bucket| {
        let path = object(bucket, middle);
        fs::write(&path, [fs::read(&path).unwrap(), vec![0; 10]].concat()).unwrap();
    });
    let gap = finds(&plain, "a file is missing", &[Kind::Gap], middle, |bucket| fs::remove_file(object(bucket, middle)).unwrap());
    assert!(gap.findings.iter().any(|finding| finding.what.contains(&Txid::new(5).unwrap().to_string())), "the last good one: {gap:#?}");
    finds(&plain, "the snapshot is missing", &[Kind::NoBase], name(0, 2, 2), |bucket| fs::remove_file(object(bucket, base)).unwrap());
    finds(&plain, "a file of another name", &[Kind::Renamed], middle, |bucket| {
        fs::copy(object(bucket, name(0, 7, 7)), object(bucket, middle)).unwrap();
    });
    finds(&plain, "a file of another history", &[Kind::Foreign], middle, |bucket| {
        fs::write(object(bucket, middle), foreign(middle)).unwrap()
    });
    finds(&plain, "pages that it grew by are missing", &[Kind::Incomplete], middle, |bucket| {
        let path = object(bucket, middle);
        let anew = made_anew(&fs::read(&path).unwrap(), |header, pages| {
            let last = header.commit_pages;
            pages.retain(|(page, _)| page.get() != last);
        });
        fs::write(&path, anew).unwrap();
    });
    finds(&plain, "a snapshot that is no snapshot", &[Kind::Misplaced], name(9, 2, 5), |bucket| {
        let bytes = made_anew(&fs::read(object(bucket, name(0, 5, 5))).unwrap(), |header, _| header.min_txid = Txid::new(2).unwrap());
        fs::write(object(bucket, name(9, 2, 5)), bytes).unwrap();
    });
    finds(&plain, "a span in level 0", &[Kind::Misplaced], name(0, 5, 6), |bucket| {
        let bytes = made_anew(&fs::read(object(bucket, middle)).unwrap(), |header, _| header.min_txid = Txid::new(5).unwrap());
        fs::write(object(bucket, name(0, 5, 6)), bytes).unwrap();
    });
    // Where other levels hold the same, that is seen as well.
    let of_merge = last_merged.name;
    let inside = name(0, of_merge.max_txid.get() - 1, of_merge.max_txid.get() - 1);
    let hole = finds(&maintained, "a file is missing that level 1 spans", &[Kind::MissingFile], inside, |bucket| {
        fs::remove_file(object(bucket, inside)).unwrap();
    });
    assert!(hole.states.contains(&of_merge.max_txid), "{hole:#?}");
    let last = name(0, newest, newest);
    if of_merge.max_txid.get() == newest {
        finds(&maintained, "the newest upload is missing", &[Kind::MissingFile], last, |bucket| {
            fs::remove_file(object(bucket, last)).unwrap()
        });
    }
    finds(&maintained, "a merged file of other content", &[Kind::Contradiction], of_merge, |bucket| {
        let path = object(bucket, of_merge);
        let anew = made_anew(&fs::read(&path).unwrap(), |_, pages| pages[0].1[200] ^= 1);
        fs::write(&path, anew).unwrap();
    });
    finds(&maintained, "a merged file that lacks a page", &[Kind::Incomplete], of_merge, |bucket| {
        let path = object(bucket, of_merge);
        let anew = made_anew(&fs::read(&path).unwrap(), |_, pages| drop(pages.remove(1)));
        fs::write(&path, anew).unwrap();
    });
    let wrong = name(1, of_merge.min_txid.get() + 1, of_merge.max_txid.get());
    finds(&maintained, "an overlapping file of another history", &[Kind::Contradiction], wrong, |bucket| {
        let bytes = fs::read(object(&other.bucket, other.bucket.level(Level::ZERO).last().unwrap().name)).unwrap();
        let bytes = made_anew(&bytes, |header, _| (header.min_txid, header.max_txid) = (wrong.min_txid, wrong.max_txid));
        fs::write(object(bucket, wrong), bytes).unwrap();
    });
    finds(&maintained, "a snapshot of another history", &[Kind::Contradiction], name(9, 1, 5), |bucket| {
        let snapshot = fs::read(object(bucket, base)).unwrap();
        let bytes = made_anew(&snapshot, |header, _| header.max_txid = Txid::new(5).unwrap());
        fs::write(object(bucket, name(9, 1, 5)), bytes).unwrap();
    });
    // What a restore of the newest state reads is enough for the light form, and nothing else is read.
    let light = |bucket: &Bucket| verify::light(&Verifier::new(bucket.store(), Scope::default())).unwrap();
    let report = light(&maintained);
    assert_eq!(report.outcome(), Outcome::Verified, "{report:#?}");
    assert!(report.files_read < report.files && report.files_read + report.files_not_promised == report.files);
    let dir = tempfile::tempdir().unwrap();
    let bucket = copied(&maintained, dir.path());
    flip(&object(&bucket, of_merge), |length| length / 2);
    let report = light(&bucket);
    assert_eq!(report.findings.iter().map(|finding| (finding.kind, finding.object)).collect::<Vec<_>>(), [(Kind::Damaged, Some(of_merge))]);
    fs::remove_file(object(&bucket, base)).unwrap();
    assert_eq!(light(&bucket).outcome(), Outcome::Wrong);
}

/// The checksums of the database, which neither Litestream nor we write, and the format has.
#[test]
fn checksums_of_the_database_are_followed_from_file_to_file() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::folder(dir.path());
    let rolling = |pages: &[u8]| {
        let pages = (1..).zip(pages).map(|(page, byte)| verify::page_checksum(page, &[*byte; 512]));
        pages.fold(1 << 63, |sum, page| (sum ^ page) | 1 << 63)
    };
    let put = |name: LtxName, before: u64, changed: &[(u32, u8)], after: u64| {
        let size = replicated::types::PageSize::MIN;
        let mut encoder = Encoder::new(Vec::new(), &Header::new(size, 3, name.min_txid, name.max_txid, TimestampMs(1000))).unwrap();
        for (page, byte) in changed {
            encoder.page(PageNo::new(*page).unwrap(), &[*byte; 512]).unwrap();
        }
        let mut bytes = encoder.finish().unwrap().out;
        bytes[7] = 0;
        bytes[40..48].copy_from_slice(&before.to_be_bytes());
        let at = bytes.len() - 16;
        bytes[at..at + 8].copy_from_slice(&after.to_be_bytes());
        fs::create_dir_all(object(&bucket, name).parent().unwrap()).unwrap();
        fs::write(object(&bucket, name), with_checksum(bytes)).unwrap();
    };
    let states = [rolling(b"abc"), rolling(b"aQc"), rolling(b"aQZ")];
    put(name(9, 1, 1), 0, &[(1, b'a'), (2, b'b'), (3, b'c')], states[0]);
    put(name(0, 1, 1), 0, &[(1, b'a'), (2, b'b'), (3, b'c')], states[0]);
    put(name(0, 2, 2), states[0], &[(2, b'Q')], states[1]);
    put(name(0, 3, 3), states[1], &[(3, b'Z')], states[2]);
    is_good(&bucket);
    let about = |bucket: &Bucket| {
        look(bucket, Scope::default(), Duration::ZERO)
            .findings
            .into_iter()
            .map(|finding| (finding.kind, finding.object))
            .collect::<Vec<_>>()
    };
    // One that is of another database before it, or after.
    put(name(0, 3, 3), states[0], &[(3, b'Z')], states[2]);
    assert_eq!(about(&bucket), [(Kind::Foreign, Some(name(0, 3, 3)))]);
    put(name(0, 3, 3), states[1], &[(3, b'Z')], states[0]);
    assert_eq!(about(&bucket), [(Kind::Foreign, Some(name(0, 3, 3)))]);
}

#[test]
fn each_object_is_read_once_and_nothing_is_written() {
    let mut place = Place::new(true);
    place.commit(5);
    place.maintain(&place.order().later(Duration::from_secs(5)));
    let server = place.server.as_ref().unwrap();
    let before = server.requests();
    let report = is_good(&place.bucket);
    let after = server.requests();
    assert_eq!(after.get - before.get, report.files as u64 + 1, "the files, and the note of the maintenance");
    assert_eq!((after.list - before.list, after.head), (10, before.head));
    assert_eq!((after.put, after.delete, after.multipart), (before.put, before.delete, before.multipart));
}

#[test]
fn what_maintenance_takes_away_meanwhile_is_no_loss() {
    let mut place = Place::new(false);
    place.commit(6);
    place.maintain(&place.order().later(Duration::from_secs(5)));
    let (bucket, order) = (place.bucket.clone(), place.order().later(25 * HOUR));
    let is_done = Rc::new(Cell::new(false));
    let done = Rc::clone(&is_done);
    let turn: Box<Turn> = Box::new(move || {
        if !done.replace(true) {
            let (bucket, order) = (bucket.clone(), order.clone());
            // It runs an event loop of its own.
            std::thread::spawn(move || order.run(&bucket).unwrap()).join().unwrap();
        }
        std::future::ready(Ok::<_, MaintainError>(())).boxed_local()
    });
    let verifier = Verifier::new(place.bucket.store(), Scope::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = runtime.block_on(verifier.read(place.order().later(25 * HOUR).at(), Some(&*turn))).unwrap();
    assert!(report.files_gone > 0 && is_done.get(), "{report:#?}");
    assert_eq!(report.outcome(), Outcome::Verified, "{report:#?}");
    // Whoever gives the turns may end the work.
    let stop: Box<Turn> = Box::new(|| std::future::ready(Err(MaintainError::Stopped)).boxed_local());
    assert!(runtime.block_on(verifier.light(Some(&*stop))).is_err());
}

#[test]
fn what_cannot_be_looked_at_is_not_called_wrong() {
    let mut place = Place::new(true);
    place.commit(2);
    let proxy = Proxy::start(&place.server.as_ref().unwrap().endpoint()).unwrap();
    let bucket = place.bucket.through(&proxy.endpoint());
    assert_eq!(cli(&bucket, &["--light"]).0, 0);
    proxy.set(Mode::Refuse).unwrap();
    let (code, told, errors) = cli(&bucket, &["--json"]);
    assert_eq!((code, &told["status"]), (3, &"not_checked".into()), "{errors}");
    let mut wrong_key = place.bucket.clone();
    for (_, value) in wrong_key.env.iter_mut().filter(|(name, _)| name == "AWS_SECRET_ACCESS_KEY") {
        "wrong".clone_into(value);
    }
    assert_eq!(cli(&wrong_key, &[]).0, 3);
    // An empty path is another thing: nothing can be restored from it.
    let nothing = Bucket { url: format!("{}-other", place.bucket.url), ..place.bucket.clone() };
    let (code, told, _) = cli(&nothing, &["--json"]);
    assert_eq!((code, &told["findings"][0]["kind"]), (1, &"empty".into()));
    for usage in [
        &["--txid", "xyz"][..],
        &["--exact", "2h", "--history", "1h"],
        &["--against", "/nowhere/app.db"],
        &["--temp-dir", "/nowhere"],
        &["--light", "--all"],
    ] {
        assert_eq!(cli(&place.bucket, usage).0, 2, "{usage:?}");
    }
    let (code, told, _) = cli(&place.bucket, &["--txid", "ff", "--no-restore", "--json"]);
    assert_eq!((code, &told["findings"][0]["kind"]), (1, &"restore".into()), "a state that is not there");
}

#[test]
fn states_that_are_asked_for_are_restored_and_leave_nothing_behind() {
    let mut place = Place::new(false);
    let txid = place.commit(6).to_string();
    let temporary = place.dir.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let folder = temporary.to_str().unwrap();
    let (code, told, errors) = place.cli(&["--temp-dir", folder, "--points", "2", "--txid", "4", "--timestamp", "now", "--json"]);
    assert_eq!(code, 0, "{errors}");
    let whys: Vec<&str> = told["restored"].as_array().unwrap().iter().map(|point| point["why"].as_str().unwrap()).collect();
    assert_eq!(whys, ["newest", "floor", "random", "random", "txid", "timestamp"]);
    assert_eq!(told["restored"][0]["txid"], txid);
    assert_eq!(told["restored"][5]["txid"], txid);
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
}

#[test]
fn a_state_that_sqlite_finds_damaged_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut place = Place::new(false);
    place.commit(2);
    place.host.close(place.db);
    // Damaged where it is, by a disk or by a program: what is sent is what is there.
    let bucket = copied(&place.bucket, dir.path());
    let path = object(&bucket, bucket.level(Level::ZERO).last().unwrap().name);
    let anew = made_anew(&fs::read(&path).unwrap(), |_, pages| {
        // A leaf of a table that says that it is none.
        let leaf = pages.iter_mut().find(|(number, page)| number.get() > 1 && page[0] == 0x0d).unwrap();
        leaf.1[0] = 0x77;
    });
    fs::write(&path, anew).unwrap();
    assert_eq!(look(&bucket, Scope::default(), Duration::ZERO).outcome(), Outcome::Verified, "every checksum is right");
    let (code, told, errors) = cli(&bucket, &["--json"]);
    assert_eq!((code, &told["findings"][0]["kind"]), (1, &"integrity".into()), "{errors}");
    assert_eq!(cli(&bucket, &["--integrity-check", "none"]).0, 0);
}

#[test]
fn the_live_database_is_equal_behind_or_another() {
    for mode in ["WAL", "DELETE"] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start().unwrap();
        let proxy = Proxy::start(&server.endpoint()).unwrap();
        let direct = Bucket::s3(&server, "app/db");
        let through = direct.through(&proxy.endpoint());
        let mut place = Place::with(dir, Some(server), &through, direct);
        place.host.run(place.db, &format!("PRAGMA journal_mode={mode}"));
        place.commit(3);
        let (code, told) = place.against();
        assert_eq!((code, &told["status"]), (0, &"equal".into()), "{mode}: {told}");
        // The bucket is out of reach, and the application goes on.
        proxy.set(Mode::Refuse).unwrap();
        for _ in 0..3 {
            place.host.run(place.db, "INSERT INTO t(x) VALUES (randomblob(3000))");
        }
        let (code, told) = place.against();
        assert_eq!((code, &told["status"]), (0, &"behind".into()), "{mode}: {told}");
        if mode == "WAL" {
            assert_eq!(told["commits_behind"], 3, "{told}");
        }
        // Also when it was checkpointed, so that the file is ahead.
        if mode == "WAL" {
            place.host.run(place.db, "PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t(x) VALUES (1)");
            let (code, told) = place.against();
            assert_eq!((code, &told["status"]), (0, &"behind".into()), "{told}");
        }
        proxy.set(Mode::Forward).unwrap();
        place.host.sync(place.db);
        let (code, told) = place.against();
        assert_eq!((code, &told["status"]), (0, &"equal".into()), "{mode}: {told}");
        place.host.close(place.db);
        let (code, told) = place.against();
        assert_eq!((code, &told["status"]), (0, &"equal".into()), "{mode}, closed: {told}");
        // Nothing was made beside it, and what tells that it is unchanged still does.
        assert!(!place.database().with_extension("db-shm").exists() && !place.database().with_extension("db-wal").exists());
        let full_states = place.bucket.full_states();
        place.db = place.host.open(&host::replicated(&place.database(), &through.url, &[("sync_interval", "10ms")]));
        place.commit(1);
        assert_eq!(place.bucket.full_states(), full_states);
        place.host.close(place.db);

        // Nobody replicates it any more: it is compared by what is in it.
        let beside = place.dir.path().join("app.db-replicated");
        let away = place.dir.path().join("away");
        fs::rename(&beside, &away).unwrap();
        let (code, told) = place.against();
        assert_eq!((code, &told["status"]), (0, &"equal".into()), "{mode}: {told}");
        fs::rename(&away, &beside).unwrap();
        // Written to by a program without the extension, as if it were not replicated any more.
        let (copy, plain) = (place.dir.path().join("plain.db"), || rusqlite::Connection::open(place.dir.path().join("plain.db")).unwrap());
        fs::copy(place.database(), &copy).unwrap();
        plain().execute_batch("CREATE TABLE more(x); INSERT INTO more VALUES (1)").unwrap();
        let copy = copy.to_str().unwrap();
        let (code, told, errors) = place.cli(&["--against", copy, "--json"]);
        assert_eq!((code, &told["against"]["status"]), (0, &"behind".into()), "{mode}: {errors}");
        std::thread::sleep(Duration::from_millis(5));
        let (code, told, _) = place.cli(&["--against", copy, "--json", "--max-lag", "1ms"]);
        assert_eq!((code, &told["findings"][0]["kind"]), (1, &"against".into()), "{mode}");
        // A page of it goes bad.
        flip(&place.database(), |length| length - 100);
        let (code, told) = place.against();
        assert_eq!((code, &told["status"], &told["pages_differing"]), (1, &"differs".into(), &1.into()), "{mode}: {told}");
    }
}

/// While it is open, of a database whose WAL has some of its pages.
#[test]
fn a_page_that_goes_bad_under_an_open_database_is_found() {
    let mut place = Place::new(false);
    place.commit(3);
    place.host.run(place.db, "PRAGMA wal_checkpoint(TRUNCATE)");
    place.host.run(place.db, "INSERT INTO t(x) VALUES (1)");
    place.host.sync(place.db);
    let (code, told) = place.against();
    assert_eq!((code, &told["status"]), (0, &"equal".into()), "{told}");
    // One that the WAL does not have: of the first row.
    flip(&place.database(), |_| 4096 * 5 + 99);
    let (code, told) = place.against();
    assert_eq!((code, &told["status"], &told["first_differing"]), (1, &"differs".into(), &serde_json::json!([6])), "{told}");
}

#[test]
fn writers_at_work_are_neither_hindered_nor_mistaken_for_damage() {
    for mode in ["WAL", "DELETE"] {
        let mut place = Place::new(false);
        place.host.run(place.db, &format!("PRAGMA journal_mode={mode}; PRAGMA wal_autocheckpoint=50"));
        place.commit(2);
        let (database, bucket) = (place.database(), place.bucket.clone());
        let (is_over, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (mut host, db, over, counted) = (place.host, place.db, Arc::clone(&is_over), Arc::clone(&commits));
        let writer = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                host.run(db, "BEGIN; INSERT INTO t(x) VALUES (randomblob(3000)); UPDATE t SET x = randomblob(2500) WHERE id % 5 = abs(random() % 5); COMMIT");
                counted.fetch_add(1, Ordering::Relaxed);
                // One that is written to without a pause in a rollback-journal mode is never the same at two moments.
                std::thread::sleep(Duration::from_millis(if mode == "WAL" { 1 } else { 60 }));
            }
            host
        });
        for round in 0.. {
            if round >= 6 && commits.load(Ordering::Relaxed) > 20 {
                break;
            }
            let (code, told, errors) = cli(&bucket, &["--against", database.to_str().unwrap(), "--json", "--no-restore"]);
            let status = told["against"]["status"].as_str().unwrap();
            assert!(code == 0 && ["equal", "behind"].contains(&status), "{mode}: {told:#}\n{errors}");
        }
        is_over.store(true, Ordering::Relaxed);
        writer.join().unwrap().quit();
    }
}
