//! Restores over a store that fails: what passes is tried again, what does not is reported, and memory stays within its bound.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail where it stands")]

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use replicated::ltx::{Encoder, Header};
use replicated::restore::{RestoreError, RestoreOptions, restore};
use replicated::store::{self, Created, Level, Listed, LtxName, ReplicaUrl, Store, StoreError, StoreErrorKind, StoreOptions, Upload};
use replicated::types::{PageNo, PageSize, TimestampMs, Txid};

/// What happens before a request for bytes is passed on; the number counts them from 1.
type Fault = dyn Fn(u32, &LtxName) -> Option<StoreErrorKind> + Send + Sync;

struct Faulty {
    inner: Arc<dyn Store>,
    fault: Box<Fault>,
    requests: AtomicU32,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl std::fmt::Debug for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

impl Faulty {
    fn new(folder: &Path, fault: impl Fn(u32, &LtxName) -> Option<StoreErrorKind> + Send + Sync + 'static) -> Self {
        let url = ReplicaUrl::parse(&format!("file://{}", folder.display())).unwrap();
        let inner = store::open(&url, &StoreOptions::default()).unwrap();
        let (requests, open, most_open) = Default::default();
        Self { inner, fault: Box::new(fault), requests, open, most_open }
    }
}

impl Store for Faulty {
    replicated_testkit::pass_on!(url, list, create, upload, part_size_bytes, head, delete, creates_are_conditional);

    fn get_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        async move {
            assert!(range.end - range.start <= 4 << 20, "a request for {range:?}");
            let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_open.fetch_max(open, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.open.fetch_sub(1, Ordering::SeqCst);
            let request = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
            match (self.fault)(request, name) {
                Some(kind) => Err(StoreError {
                    kind,
                    operation: "get",
                    object: name.to_string(),
                    cause: "as the test wants".to_owned(),
                    advice: "",
                    retry_after: None,
                }),
                None => self.inner.get_range(name, range).await,
            }
        }
        .boxed()
    }
}

fn name(level: u8, min: u64, max: u64) -> LtxName {
    let txid = |number| Txid::new(number).unwrap();
    LtxName { level: Level::new(level).unwrap(), min_txid: txid(min), max_txid: txid(max) }
}

fn put(bucket: &Path, name: LtxName, commit_pages: u32, pages: impl Iterator<Item = (u32, Vec<u8>)>) {
    let header = Header::new(PageSize::new(4096).unwrap(), commit_pages, name.min_txid, name.max_txid, TimestampMs(0));
    let mut encoder = Encoder::new(Vec::new(), &header).unwrap();
    for (page, data) in pages {
        encoder.page(PageNo::new(page).unwrap(), &data).unwrap();
    }
    let folder = bucket.join(format!("ltx/{}", name.level));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name.file_name()), encoder.finish().unwrap().out).unwrap();
}

/// A snapshot of two pages and increments up to TXID 9, each of which writes its number to page 2.
fn small_bucket() -> tempfile::TempDir {
    let bucket = tempfile::tempdir().unwrap();
    put(bucket.path(), name(9, 1, 2), 2, (1..=2).map(|page| (page, vec![1; 4096])));
    for n in 3..=9 {
        put(bucket.path(), name(0, n.into(), n.into()), 2, [(2, vec![n; 4096])].into_iter());
    }
    bucket
}

#[test]
fn what_passes_is_tried_again() {
    let bucket = small_bucket();
    for kind in [StoreErrorKind::Timeout, StoreErrorKind::Throttled, StoreErrorKind::Server, StoreErrorKind::Truncated] {
        let store = Faulty::new(bucket.path(), move |request, _| (request % 3 == 1).then_some(kind));
        let output = bucket.path().join(format!("{kind:?}.db"));
        let report = restore(&store, &RestoreOptions::latest(&output)).unwrap();
        assert_eq!(report.txid.get(), 9);
        assert_eq!(std::fs::read(&output).unwrap()[4096], 9);
        assert!(store.requests.load(Ordering::SeqCst) > 8);
    }
}

#[test]
fn what_does_not_pass_ends_after_a_bounded_number_of_attempts() {
    let bucket = small_bucket();
    for (kind, attempts) in [(StoreErrorKind::Server, 5), (StoreErrorKind::Credentials, 1), (StoreErrorKind::PermissionDenied, 1)] {
        let store = Faulty::new(bucket.path(), move |_, _| Some(kind));
        let output = bucket.path().join("app.db");
        let error = restore(&store, &RestoreOptions { parallelism: 1, ..RestoreOptions::latest(&output) }).unwrap_err();
        assert!(matches!(&error, RestoreError::Store(error) if error.kind == kind), "{error}");
        assert_eq!(store.requests.load(Ordering::SeqCst), attempts, "{kind:?}");
        assert!(std::fs::read_dir(bucket.path()).unwrap().all(|entry| entry.unwrap().file_name() == "ltx"), "something is left");
    }
}

#[test]
fn an_object_that_maintenance_deletes_meanwhile_leads_to_a_new_plan() {
    let bucket = small_bucket();
    let root = bucket.path().to_owned();
    let store = Faulty::new(bucket.path(), move |request, _| {
        if request == 2 {
            // What compaction does: a file of level 1, and then those below it go.
            put(&root, name(1, 3, 9), 2, [(2, vec![9; 4096])].into_iter());
            for n in 3..=8 {
                let _ = std::fs::remove_file(root.join("ltx/0").join(name(0, n, n).file_name()));
            }
        }
        None
    });
    let output = bucket.path().join("app.db");
    let report = restore(&store, &RestoreOptions { parallelism: 1, ..RestoreOptions::latest(&output) }).unwrap();
    assert_eq!(report.files, [name(9, 1, 2), name(1, 3, 9)]);
    assert_eq!(std::fs::read(&output).unwrap()[4096], 9);

    let store = Faulty::new(bucket.path(), |_, _| Some(StoreErrorKind::NotFound));
    let error = restore(&store, &RestoreOptions::latest(bucket.path().join("other.db"))).unwrap_err();
    assert!(matches!(error, RestoreError::Store(_)) && error.advice().contains("try again"), "{error}");
}

#[test]
fn large_files_are_read_in_parallel_chunks_within_the_bound() {
    let bucket = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let pages: Vec<Vec<u8>> = (0..6000).map(|_| std::iter::repeat_with(|| random.u8(..)).take(4096).collect()).collect();
    put(bucket.path(), name(9, 1, 2), 6000, (1..).zip(pages.iter().cloned()));
    put(bucket.path(), name(0, 3, 3), 6000, [(5, pages[0].clone()), (6000, pages[1].clone())].into_iter());
    for parallelism in [1, 3, 128] {
        let store = Faulty::new(bucket.path(), |_, _| None);
        let output = bucket.path().join(format!("{parallelism}.db"));
        restore(&store, &RestoreOptions { parallelism, ..RestoreOptions::latest(&output) }).unwrap();
        let mut expected = pages.concat();
        expected[4 * 4096..5 * 4096].copy_from_slice(&pages[0]);
        expected[5999 * 4096..].copy_from_slice(&pages[1]);
        assert!(std::fs::read(&output).unwrap() == expected, "parallelism {parallelism}");
        let most_open = store.most_open.load(Ordering::SeqCst);
        assert!(most_open <= parallelism && (parallelism == 1 || most_open > 1), "{most_open} requests at once");
    }
}

#[test]
fn two_restores_of_one_process_to_one_place_do_not_mix() {
    let bucket = small_bucket();
    let output = bucket.path().join("app.db");
    let inner_output = output.clone();
    let root = bucket.path().to_owned();
    let store = Faulty::new(bucket.path(), move |request, _| {
        if request == 1 {
            let (root, output) = (root.clone(), inner_output.clone());
            let second = std::thread::spawn(move || restore(&Faulty::new(&root, |_, _| None), &RestoreOptions::latest(output)).map(|_| ()));
            assert!(matches!(second.join().unwrap(), Err(RestoreError::Output { .. })));
        }
        None
    });
    restore(&store, &RestoreOptions::latest(&output)).unwrap();
    assert_eq!(std::fs::read(&output).unwrap()[4096], 9);
}

/// Whatever happens to a byte of a bucket, a restore gives the true database or none.
#[test]
fn no_damaged_byte_and_no_lost_tail_gives_another_database() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/litestream-0.5.15-frame/ltx");
    let bucket = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (level, range) in [(9, 1..=1), (0, 2..=6)] {
        for n in range {
            let file = format!("ltx/{level}/{}", name(level, n, n).file_name());
            let to = bucket.path().join(&file);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(fixture.parent().unwrap().join(&file), &to).unwrap();
            files.push(to);
        }
    }
    let output = bucket.path().join("app.db");
    let restored =
        || restore(&Faulty::new(bucket.path(), |_, _| None), &RestoreOptions { overwrite: true, ..RestoreOptions::latest(&output) });
    restored().unwrap();
    let expected = std::fs::read(&output).unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let mut refused = 0;
    for round in 0..400 {
        std::fs::remove_file(&output).unwrap_or_default();
        let path = &files[random.usize(..files.len())];
        let original = std::fs::read(path).unwrap();
        let mut body = original.clone();
        let at = random.usize(..body.len());
        if round % 4 == 0 {
            body.truncate(at);
        } else {
            body[at] ^= 1 << random.u8(..8);
        }
        std::fs::write(path, body).unwrap();
        match restored() {
            // Different compressed bytes can stand for the same page.
            Ok(_) => assert!(std::fs::read(&output).unwrap() == expected, "byte {at} of {}", path.display()),
            Err(_) => {
                assert!(!output.exists());
                refused += 1;
            }
        }
        std::fs::write(path, original).unwrap();
    }
    assert!(refused > 390, "{refused} of 400 damages were refused");
}
