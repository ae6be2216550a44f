//! Restores in parallel: connections that break off within a range, objects that go, files of which only a part is needed, damage in every kind of
//! file, over a thousand increments, a full disk, a restore that is given up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use replicated::ltx::{Encoder, Header, PageForm, PageIndex};
use replicated::restore::{self, Report, RestoreError, RestoreOptions, Target};
use replicated::store::{self, Created, Level, Listed, LtxName, ReplicaUrl, Store, StoreError, StoreErrorKind, StoreOptions, Upload};
use replicated::types::{PageNo, PageSize, TimestampMs, Txid};
use replicated_testkit::bucket::Bucket;
use replicated_testkit::net::{Mode, Proxy};
use replicated_testkit::s3::Server;

type Pages = BTreeMap<u32, Vec<u8>>;

/// Decides what becomes of a request for a range: how many of its bytes come before it breaks off, or the failure that it meets.
type Rule = dyn Fn(u64, &LtxName, &Range<u64>) -> Answer + Send + Sync;

enum Answer {
    Whole,
    Only(u64),
    /// It never comes.
    Never,
}

/// A folder whose answers break off, and which keeps account of what was asked.
struct Flaky {
    inner: Arc<dyn Store>,
    rule: Box<Rule>,
    requests: AtomicU64,
    delivered: Mutex<Vec<(LtxName, Range<u64>)>>,
    open: AtomicUsize,
}

impl std::fmt::Debug for Flaky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flaky")
    }
}

impl Flaky {
    fn new(bucket: &Path, rule: impl Fn(u64, &LtxName, &Range<u64>) -> Answer + Send + Sync + 'static) -> Self {
        let url = ReplicaUrl::parse(&format!("file://{}", bucket.display())).unwrap();
        let inner = store::open(&url, &StoreOptions::default()).unwrap();
        let (requests, delivered, open) = Default::default();
        Self { inner, rule: Box::new(rule), requests, delivered, open }
    }

    fn sound(bucket: &Path) -> Self {
        Self::new(bucket, |_, _, _| Answer::Whole)
    }

    fn delivered_bytes(&self) -> u64 {
        self.delivered.lock().unwrap().iter().map(|(_, range)| range.end - range.start).sum()
    }
}

fn failure(kind: StoreErrorKind, name: &LtxName) -> StoreError {
    let cause = "as the test wants".to_owned();
    StoreError { kind, operation: "get", object: name.to_string(), cause, advice: "", retry_after: None }
}

impl Store for Flaky {
    replicated_testkit::pass_on!(url, list, create, upload, part_size_bytes, get_range, head, delete, creates_are_conditional);

    fn read_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>, body: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            assert!(range.end - range.start <= 4 << 20, "a request for {range:?}");
            let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
            let only = match (self.rule)(number, name, &range) {
                Answer::Never => {
                    self.open.fetch_add(1, Ordering::SeqCst);
                    std::future::pending().await
                }
                Answer::Only(bytes) => bytes.min(range.end - range.start),
                Answer::Whole => range.end - range.start,
            };
            let came = range.start..range.start + only;
            body.extend_from_slice(&self.inner.get_range(name, came.clone()).await?);
            self.delivered.lock().unwrap().push((*name, came));
            if only < range.end - range.start { Err(failure(StoreErrorKind::Truncated, name)) } else { Ok(()) }
        }
        .boxed()
    }
}

fn name(level: u8, min: u64, max: u64) -> LtxName {
    let txid = |number| Txid::new(number).unwrap();
    LtxName { level: Level::new(level).unwrap(), min_txid: txid(min), max_txid: txid(max) }
}

fn path_of(bucket: &Path, name: LtxName) -> PathBuf {
    bucket.join(format!("ltx/{}", name.level)).join(name.file_name())
}

fn encoded(name: LtxName, page_size: u32, commit_pages: u32, form: PageForm, pages: &Pages) -> Vec<u8> {
    let header = Header::new(PageSize::new(page_size).unwrap(), commit_pages, name.min_txid, name.max_txid, TimestampMs(0));
    let mut encoder = Encoder::with_form(Vec::new(), &header, form).unwrap();
    for (page, data) in pages {
        encoder.page(PageNo::new(*page).unwrap(), data).unwrap();
    }
    encoder.finish().unwrap().out
}

fn put(bucket: &Path, name: LtxName, commit_pages: u32, pages: &Pages) {
    put_sized(bucket, name, 4096, commit_pages, pages);
}

fn put_sized(bucket: &Path, name: LtxName, page_size: u32, commit_pages: u32, pages: &Pages) {
    let path = path_of(bucket, name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, encoded(name, page_size, commit_pages, PageForm::Block, pages)).unwrap();
}

/// A page that does not compress.
fn noise(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut page = vec![0; 4096];
    random.fill(&mut page);
    page
}

fn noisy(random: &mut fastrand::Rng, pages: impl Iterator<Item = u32>) -> Pages {
    pages.map(|page| (page, noise(random))).collect()
}

fn options(output: &Path) -> RestoreOptions<'static> {
    RestoreOptions { overwrite: true, threads: 3, ..RestoreOptions::latest(output) }
}

fn concatenated(pages: &Pages) -> Vec<u8> {
    pages.values().flatten().copied().collect()
}

/// A snapshot of 12 MiB that does not compress, and two increments.
fn large_bucket() -> (tempfile::TempDir, Vec<u8>) {
    let bucket = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let mut pages = noisy(&mut random, 1..=3000);
    put(bucket.path(), name(9, 1, 2), 3000, &pages);
    for txid in 3..=4 {
        let changed = noisy(&mut random, [7, 8, 1500, 3000].into_iter());
        put(bucket.path(), name(0, txid, txid), 3000, &changed);
        pages.extend(changed);
    }
    (bucket, concatenated(&pages))
}

#[test]
fn a_range_that_breaks_off_is_gone_on_with_where_it_ended() {
    let (bucket, expected) = large_bucket();
    let output = bucket.path().join("app.db");
    let size: u64 =
        [name(9, 1, 2), name(0, 3, 3), name(0, 4, 4)].map(|name| path_of(bucket.path(), name).metadata().unwrap().len()).iter().sum();
    let store = Flaky::new(bucket.path(), |_, _, range| Answer::Only((range.end - range.start) / 3 + 90_000));
    let report = restore::restore(&store, &options(&output)).unwrap();
    assert!(std::fs::read(&output).unwrap() == expected);
    assert_eq!(report.read_bytes, size);
    assert_eq!(store.delivered_bytes(), size, "something was asked for twice");
    assert!(store.requests.load(Ordering::SeqCst) > 10);
}

#[test]
fn what_brings_nothing_to_speak_of_ends_after_five_attempts() {
    let (bucket, _) = large_bucket();
    let output = bucket.path().join("app.db");
    let store = Flaky::new(bucket.path(), |_, name, _| if name.level.get() == 9 { Answer::Only(1000) } else { Answer::Whole });
    let error = restore::restore(&store, &RestoreOptions { parallelism: 1, ..options(&output) }).unwrap_err();
    assert!(matches!(&error, RestoreError::Store(error) if error.kind == StoreErrorKind::Truncated), "{error}");
    assert_eq!(store.requests.load(Ordering::SeqCst), 2 + 5);
    assert_eq!(left_behind(bucket.path()), Vec::<String>::new());
}

/// What there is beside the bucket's own folder.
fn left_behind(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "ltx").collect()
}

#[test]
fn connections_that_drop_within_an_object_cost_no_more_than_that() {
    let server = Server::start().unwrap();
    let whole = Bucket::s3(&server, "app");
    let (folder, expected) = large_bucket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for name in [name(9, 1, 2), name(0, 3, 3), name(0, 4, 4)] {
        let body = std::fs::read(path_of(folder.path(), name)).unwrap();
        runtime.block_on(whole.store().create(&name, body.into(), TimestampMs(5))).unwrap();
    }
    // Each connection carries 1.5 MiB of answers: no range of 4 MiB ever comes in one piece.
    let proxy = Proxy::start(&server.endpoint()).unwrap();
    proxy.set(Mode::Cut { after_bytes: 1536 << 10 }).unwrap();
    let output = folder.path().join("app.db");
    let store = whole.through(&proxy.endpoint()).store();
    restore::restore(&*store, &options(&output)).unwrap();
    assert!(std::fs::read(&output).unwrap() == expected);
    assert!(proxy.connections() > 8, "{} connections", proxy.connections());
}

#[test]
fn over_a_thousand_increments_are_read_once_each() {
    let bucket = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    let mut pages = noisy(&mut random, 1..=600);
    put(bucket.path(), name(9, 1, 2), 600, &pages);
    let mut states = Vec::new();
    for txid in 3..=1302 {
        let last = 600 + txid as u32 / 10;
        // A page that every one has, one that is the database's new end, and one somewhere.
        let numbers = [1, random.u32(2..600)].into_iter().chain((!pages.contains_key(&last)).then_some(last));
        let changed = numbers.map(|number| (number, vec![random.u8(..); 4096])).collect();
        let last = last.max(600);
        put(bucket.path(), name(0, txid, txid), last, &changed);
        pages.extend(changed);
        if txid % 500 == 0 {
            states.push((txid, concatenated(&pages)));
        }
    }
    states.push((1302, concatenated(&pages)));
    let output = bucket.path().join("app.db");
    for (txid, expected) in states {
        let store = Flaky::sound(bucket.path());
        let target = Target::Txid(Txid::new(txid).unwrap());
        let report = restore::restore(&store, &RestoreOptions { target, ..options(&output) }).unwrap();
        assert!(std::fs::read(&output).unwrap() == expected, "TXID {txid}");
        assert_eq!(report.files.len() as u64, txid - 1);
        // Each with one request, but for the snapshot of 2.4 MiB, which is one, too.
        assert_eq!(store.requests.load(Ordering::SeqCst), txid - 1);
    }
}

/// A snapshot of 24 MiB of which increments have replaced all but some pages.
fn mostly_superseded() -> (tempfile::TempDir, Vec<u8>) {
    let bucket = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(9);
    let mut pages = noisy(&mut random, 1..=6000);
    put(bucket.path(), name(9, 1, 2), 6000, &pages);
    for (txid, range) in [(3, 200..=900), (4, 880..=1700), (5, 1800..=2600), (6, 2602..=3500), (7, 3700..=4600), (8, 4600..=5500)] {
        let changed: Pages = range.map(|page| (page, vec![txid as u8; 4096])).collect();
        put(bucket.path(), name(0, txid, txid), 6000, &changed);
        pages.extend(changed);
    }
    // The last one cuts off the end.
    put(bucket.path(), name(0, 9, 9), 5900, &Pages::from([(1, vec![9; 4096])]));
    pages.insert(1, vec![9; 4096]);
    pages.retain(|page, _| *page <= 5900);
    (bucket, concatenated(&pages))
}

#[test]
fn superseded_pages_can_be_left_out_and_the_database_is_the_same() {
    let (bucket, expected) = mostly_superseded();
    let output = bucket.path().join("app.db");
    let snapshot_bytes = path_of(bucket.path(), name(9, 1, 2)).metadata().unwrap().len();
    let whole = restore::restore(&Flaky::sound(bucket.path()), &options(&output)).unwrap();
    assert!(std::fs::read(&output).unwrap() == expected);
    assert_eq!(whole.files_in_part, 0);

    let store = Flaky::sound(bucket.path());
    let report = restore::restore(&store, &RestoreOptions { skip_superseded: true, ..options(&output) }).unwrap();
    assert!(std::fs::read(&output).unwrap() == expected);
    assert_eq!((report.files_in_part, report.files), (1, whole.files));
    // 1,400 of its 6,000 pages are needed: 200 at the start, 100, one between two others, 200, and 400 at the end.
    assert!(report.read_bytes < whole.read_bytes - snapshot_bytes * 2 / 3, "{} of {} bytes", report.read_bytes, whole.read_bytes);
    assert_eq!(report.read_bytes, store.delivered_bytes());
    // Head and tail, the six increments and the one that cuts off, and a range for each run of pages, none of which is above 4 MiB.
    let of_snapshot = store.delivered.lock().unwrap().iter().filter(|(name, _)| name.level.get() == 9).count();
    assert!((5..=9).contains(&of_snapshot), "{of_snapshot} requests for the snapshot");
}

#[test]
fn where_almost_everything_is_needed_a_file_is_read_whole_and_verified() {
    let (bucket, expected) = large_bucket();
    let output = bucket.path().join("app.db");
    let report = restore::restore(&Flaky::sound(bucket.path()), &RestoreOptions { skip_superseded: true, ..options(&output) }).unwrap();
    assert!(std::fs::read(&output).unwrap() == expected);
    assert_eq!(report.files_in_part, 0);
}

#[test]
fn an_index_that_is_wrong_never_gives_another_database() {
    let (bucket, expected) = mostly_superseded();
    let output = bucket.path().join("app.db");
    let path = path_of(bucket.path(), name(9, 1, 2));
    let original = std::fs::read(&path).unwrap();
    let index = PageIndex::locate(&original, original.len() as u64).unwrap();
    let mut random = fastrand::Rng::with_seed(13);
    let (mut refused, mut read_whole) = (0, 0);
    for _ in 0..60 {
        let mut body = original.clone();
        let at = random.usize(index.start as usize..index.end as usize);
        body[at] ^= 1 << random.u8(..8);
        std::fs::write(&path, body).unwrap();
        match restore::restore(&Flaky::sound(bucket.path()), &RestoreOptions { skip_superseded: true, ..options(&output) }) {
            Ok(report) => {
                assert!(std::fs::read(&output).unwrap() == expected, "byte {at}");
                read_whole += usize::from(report.files_in_part == 0);
            }
            Err(error) => {
                assert!(matches!(&error, RestoreError::Damaged { object, .. } if *object == name(9, 1, 2)), "{error}");
                refused += 1;
            }
        }
    }
    // Read whole, its checksum tells.
    assert_eq!((refused, read_whole), (60, 0));
}

/// Where the frame of a page is in a file.
fn frame(path: &Path, page: u32) -> Range<usize> {
    let bytes = std::fs::read(path).unwrap();
    let range = PageIndex::locate(&bytes, bytes.len() as u64).unwrap();
    let entries = PageIndex::parse(&bytes[range.start as usize..range.end as usize]).unwrap();
    let entry = entries.iter().find(|entry| entry.pgno.get() == page).unwrap();
    entry.offset as usize..(entry.offset + entry.size) as usize
}

#[test]
fn a_damaged_page_is_found_in_every_kind_of_file_needed_or_not() {
    for form in [PageForm::Block, PageForm::Frame] {
        let bucket = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(17);
        let store = |name: LtxName, pages: Pages| {
            let path = path_of(bucket.path(), name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, encoded(name, 4096, 1500, form, &pages)).unwrap();
        };
        // Page 1 is in all of them, and each has one that is in no newer one. The snapshot is read in two pieces.
        store(name(9, 1, 2), noisy(&mut random, 1..=1500));
        store(name(2, 3, 6), noisy(&mut random, [1, 20, 40].into_iter()));
        store(name(1, 7, 8), noisy(&mut random, [1, 20].into_iter()));
        store(name(0, 9, 9), noisy(&mut random, [1, 30].into_iter()));
        let output = bucket.path().join("app.db");
        restore::restore(&Flaky::sound(bucket.path()), &options(&output)).unwrap();
        let expected = std::fs::read(&output).unwrap();
        for (object, pages) in
            [(name(9, 1, 2), &[1, 700, 1500][..]), (name(2, 3, 6), &[1, 40]), (name(1, 7, 8), &[1, 20]), (name(0, 9, 9), &[1, 30])]
        {
            let path = path_of(bucket.path(), object);
            let original = std::fs::read(&path).unwrap();
            for page in pages {
                let frame = frame(&path, *page);
                // In its number, in its size, and in what it holds.
                for at in [frame.start + 3, frame.start + 8, frame.start + 300, frame.end - 40] {
                    let mut body = original.clone();
                    body[at] ^= 0x10;
                    std::fs::write(&path, body).unwrap();
                    match restore::restore(&Flaky::sound(bucket.path()), &options(&output)) {
                        Ok(_) => panic!("{object}, page {page}, byte {at} of {frame:?}: the damage was not found"),
                        Err(RestoreError::Damaged { object: found, .. }) => {
                            assert_eq!(found, object, "page {page}, byte {at} of {frame:?}")
                        }
                        Err(error) => panic!("{error}"),
                    }
                    assert!(std::fs::read(&output).unwrap() == expected, "what was there before is not any more");
                }
            }
            std::fs::write(&path, original).unwrap();
        }
    }
}

#[test]
fn an_object_that_vanishes_while_others_are_decoded_leads_to_a_new_plan() {
    for skip_superseded in [false, true] {
        let (bucket, expected) = mostly_superseded();
        let output = bucket.path().join("app.db");
        let root = bucket.path().to_owned();
        let store = Flaky::new(bucket.path(), move |_, object, range| {
            if object.level.get() == 9 && range.start > 0 && object.max_txid.get() == 2 {
                // Retention: a newer snapshot, and the old one goes with what was before it.
                let (database, old) = (&root.join("state"), path_of(&root, name(9, 1, 2)));
                if old.exists() {
                    let state = std::fs::read(database).unwrap();
                    put(&root, name(9, 1, 9), 5900, &(1..).zip(state.chunks(4096).map(<[u8]>::to_vec)).collect());
                    std::fs::remove_file(old).unwrap();
                }
            }
            Answer::Whole
        });
        std::fs::write(bucket.path().join("state"), &expected).unwrap();
        let report: Report = restore::restore(&store, &RestoreOptions { skip_superseded, ..options(&output) }).unwrap();
        assert_eq!(report.files, [name(9, 1, 9)]);
        assert!(std::fs::read(&output).unwrap() == expected);
    }
}

#[test]
fn another_page_size_begins_a_new_line_and_the_one_before_stays_restorable() {
    let bucket = tempfile::tempdir().unwrap();
    let pages = |page_size: usize, byte: u8, numbers: Range<u32>| numbers.map(|page| (page, vec![byte; page_size])).collect::<Pages>();
    put_sized(bucket.path(), name(9, 1, 2), 4096, 8, &pages(4096, 1, 1..9));
    put_sized(bucket.path(), name(0, 3, 3), 4096, 8, &pages(4096, 3, 2..3));
    put_sized(bucket.path(), name(9, 1, 4), 1024, 20, &pages(1024, 4, 1..21));
    put_sized(bucket.path(), name(0, 4, 4), 1024, 20, &Pages::new());
    put_sized(bucket.path(), name(0, 5, 5), 1024, 20, &pages(1024, 5, 20..21));
    let output = bucket.path().join("app.db");
    for (txid, page_size, expected) in [
        (5, 1024, [vec![4; 19 * 1024], vec![5; 1024]].concat()),
        (4, 1024, vec![4; 20 * 1024]),
        (3, 4096, [vec![1; 4096], vec![3; 4096], vec![1; 6 * 4096]].concat()),
        (2, 4096, vec![1; 8 * 4096]),
    ] {
        let target = Target::Txid(Txid::new(txid).unwrap());
        let report = restore::restore(&Flaky::sound(bucket.path()), &RestoreOptions { target, ..options(&output) }).unwrap();
        assert_eq!(report.page_size.get(), page_size);
        assert!(std::fs::read(&output).unwrap() == expected, "TXID {txid}");
    }
}

#[test]
fn one_that_is_given_up_leaves_nothing() {
    let (bucket, expected) = large_bucket();
    let output = bucket.path().join("app.db");
    // The third piece of the snapshot never comes; what came before it is being decoded.
    let store = Flaky::new(bucket.path(), |_, name, range| match name.level.get() {
        9 if range.start > 4 << 20 => Answer::Never,
        _ => Answer::Whole,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let how = options(&output);
        let restoring = restore::restore_to_path(&store, &how);
        let hanging = async {
            while store.open.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            outcome = restoring => panic!("{outcome:?}"),
            () = hanging => {}
        }
    });
    assert_eq!(left_behind(bucket.path()), Vec::<String>::new());
    restore::restore(&Flaky::sound(bucket.path()), &options(&output)).unwrap();
    assert!(std::fs::read(&output).unwrap() == expected);
}

#[test]
fn memory_of_two_pieces_is_enough_for_any_number_of_requests_and_threads() {
    let (bucket, expected) = large_bucket();
    let output = bucket.path().join("app.db");
    for (max_memory_bytes, parallelism, threads) in [(0, 128, 64), (8 << 20, 1, 1), (9 << 20, 2, 2)] {
        let store = Flaky::sound(bucket.path());
        restore::restore(&store, &RestoreOptions { max_memory_bytes, parallelism, threads, ..options(&output) }).unwrap();
        assert!(std::fs::read(&output).unwrap() == expected, "{max_memory_bytes} bytes, {parallelism} requests, {threads} threads");
    }
}

/// In a process of its own: the limit on the size of files holds for all of its threads.
#[test]
fn a_disk_that_takes_no_more_is_an_error_that_leaves_nothing() {
    let (bucket, _) = large_bucket();
    let output = bucket.path().join("app.db");
    let program = Path::new(env!("CARGO_BIN_EXE_replicated"));
    let mut limited = std::process::Command::new("sh");
    // Blocks of 512 bytes, 6 MiB: half of the database.
    limited.args(["-c", "trap '' XFSZ; ulimit -f 12288; exec \"$@\"", "sh"]).arg(program);
    limited.args(["restore", &format!("file://{}", bucket.path().display()), "-o"]).arg(&output).args(["--threads", "2"]);
    let result = limited.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", bucket.path()).output().unwrap();
    let told = String::from_utf8(result.stderr).unwrap();
    assert_eq!(result.status.code(), Some(1), "{told}");
    assert!(told.contains("File too large"), "{told}");
    assert_eq!(left_behind(bucket.path()), Vec::<String>::new());
}
