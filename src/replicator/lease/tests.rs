use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::*;
use crate::store::{Created, Level, Listed, LockObject, LtxName, ReplicaUrl, StoreOptions, Upload};
use crate::types::Txid;

const TTL: Duration = Duration::from_secs(100);

fn folder(path: &Path) -> Arc<dyn Store> {
    let url = ReplicaUrl::parse(&format!("file://{}", path.display())).unwrap();
    crate::store::open(&url, &StoreOptions::default()).unwrap()
}

fn lease(store: &Arc<dyn Store>, node: u64) -> Lease {
    let options = Options { lease: TTL, ..Options::default() };
    Lease::new(Arc::clone(store), &options, node, Standing::default())
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap()
}

/// Whatever condition it is given, it holds; or none does.
#[derive(Debug)]
struct Careless(Arc<dyn Store>, bool);

impl Store for Careless {
    fn url(&self) -> &str {
        self.0.url()
    }

    fn list(&self, level: Level, from: Option<Txid>) -> BoxFuture<'_, Result<Vec<Listed>, StoreError>> {
        self.0.list(level, from)
    }

    fn create<'a>(&'a self, name: &'a LtxName, body: Bytes, timestamp: TimestampMs) -> BoxFuture<'a, Result<Created, StoreError>> {
        self.0.create(name, body, timestamp)
    }

    fn upload<'a>(&'a self, name: &'a LtxName, timestamp: TimestampMs) -> BoxFuture<'a, Result<Box<dyn Upload>, StoreError>> {
        self.0.upload(name, timestamp)
    }

    fn part_size_bytes(&self) -> usize {
        self.0.part_size_bytes()
    }

    fn get_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.0.get_range(name, range)
    }

    fn head<'a>(&'a self, name: &'a LtxName) -> BoxFuture<'a, Result<Listed, StoreError>> {
        self.0.head(name)
    }

    fn delete<'a>(&'a self, names: &'a [LtxName]) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.delete(names)
    }

    fn read_lock(&self) -> BoxFuture<'_, Result<Option<LockObject>, StoreError>> {
        self.0.read_lock()
    }

    fn write_lock<'a>(&'a self, body: Bytes, _expected: Option<&'a LockVersion>) -> BoxFuture<'a, Result<LockWritten, StoreError>> {
        async move {
            if !self.1 {
                return Ok(LockWritten::Changed);
            }
            let found = self.0.read_lock().await?.map(|lock| lock.version);
            self.0.write_lock(body, found.as_ref()).await
        }
        .boxed()
    }

    fn creates_are_conditional(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0.creates_are_conditional()
    }
}

#[test]
fn of_those_who_take_it_in_one_moment_one_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = folder(dir.path());
    let leases: Vec<Lease> = (1..=5).map(|node| lease(&store, node)).collect();
    run(async {
        for round in 1..=5 {
            let taken = futures_util::future::join_all(leases.iter().map(Lease::take)).await;
            let winners: Vec<&Lease> =
                leases.iter().zip(&taken).filter(|(_, taken)| matches!(taken, Ok(Whose::Ours))).map(|(lease, _)| lease).collect();
            let [winner] = winners.as_slice() else { panic!("round {round}: {taken:?}") };
            assert_eq!(leases.iter().filter(|lease| lease.left().is_some()).count(), 1);
            assert_eq!(winner.standing.lock().generation, Some(round));
            assert!(winner.release(true).await.unwrap());
            assert!(winner.left().is_none());
        }
    });
}

#[test]
fn nothing_is_written_without_it_nor_with_one_that_is_about_to_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = folder(dir.path());
    let lease = Arc::new(lease(&store, 1));
    let leased = LeasedStore::new(Arc::clone(&store), Arc::clone(&lease));
    let name = |txid| LtxName::level0(Txid::new(txid).unwrap());
    let create = async |txid| leased.create(&name(txid), Bytes::from_static(b"x"), TimestampMs(0)).await;
    run(async {
        assert_eq!(create(1).await.unwrap_err().kind, StoreErrorKind::NoLease);
        lease.take().await.unwrap();
        assert_eq!(create(1).await.unwrap(), Created::New);
        let upload = leased.upload(&name(2), TimestampMs(0)).await.unwrap();
        let fresh = lease.standing.lock().held.clone().unwrap();
        let margin = ms(lease.margin());
        for held in [
            // By the clock that nobody sets, and by the calendar.
            Held { until: Instant::now(), ..fresh.clone() },
            Held { expires_ms: now_ms() + margin, ..fresh.clone() },
            Held { expires_ms: 0, ..fresh },
        ] {
            lease.standing.lock().held = Some(held);
            assert_eq!(lease.turn(), None);
            assert_eq!(create(3).await.unwrap_err().kind, StoreErrorKind::NoLease);
            assert!(leased.upload(&name(3), TimestampMs(0)).await.is_err());
        }
        // One that was begun with it is not ended without.
        assert_eq!(upload.finish().await.unwrap_err().kind, StoreErrorKind::NoLease);
        assert_eq!(store.list(Level::ZERO, None).await.unwrap().len(), 1);
        // Nobody has taken it: it is ours by one more renewal.
        assert_eq!(lease.renew_or_take().await.unwrap(), Whose::Ours);
        assert_eq!(create(3).await.unwrap(), Created::New);
    });
}

#[test]
fn anothers_is_taken_a_margin_after_it_has_run_out_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = folder(dir.path());
    let ours = lease(&store, 1);
    let margin = ms(ours.margin());
    run(async {
        for (expires_ms, is_taken) in [(now_ms() + margin, false), (now_ms() - margin / 2, false), (now_ms() - margin - 1, true)] {
            let theirs = Record { generation: 7, expires_ms, owner: "sidecar:1".to_owned(), node: None };
            let found = store.read_lock().await.unwrap().map(|lock| lock.version);
            assert!(matches!(store.write_lock(theirs.encode().into(), found.as_ref()).await.unwrap(), LockWritten::Written(_)));
            let expected = if is_taken { Whose::Ours } else { Whose::Theirs(theirs) };
            assert_eq!(ours.renew_or_take().await.unwrap(), expected);
            assert_eq!(ours.left().is_some(), is_taken);
        }
        assert_eq!(ours.standing.lock().generation, Some(8));
    });
}

#[test]
fn it_counts_whether_somebody_else_may_have_had_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = folder(dir.path());
    let (ours, theirs) = (lease(&store, 1), lease(&store, 2));
    run(async {
        ours.take().await.unwrap();
        let turn = ours.turn();
        // The answer to a renewal was lost, or another process of this host has written it.
        lease(&store, 1).take().await.unwrap();
        assert_eq!(ours.renew_or_take().await.unwrap(), Whose::Ours);
        assert_eq!(ours.turn(), turn);
        // A release finds what a renewal has written whose answer was lost.
        let held = ours.standing.lock().held.clone();
        ours.renew_or_take().await.unwrap();
        ours.standing.lock().held = held;
        assert!(ours.release(true).await.unwrap());
        ours.take().await.unwrap();
        // What another process of this host has written is let go for it by who replicates the database, and by nobody else.
        let (other, pid) = (lease(&store, 1), ours.owner.clone());
        let other = Lease { owner: format!("{pid}0"), ..other };
        other.take().await.unwrap();
        let held = ours.standing.lock().held.clone();
        assert!(!ours.release(false).await.unwrap());
        ours.standing.lock().held = held;
        assert!(ours.release(true).await.unwrap());
        ours.take().await.unwrap();
        // Let go and taken again, with nobody in between.
        ours.release(true).await.unwrap();
        ours.take().await.unwrap();
        assert_eq!(ours.turn(), turn);
        ours.release(true).await.unwrap();
        theirs.take().await.unwrap();
        assert!(matches!(ours.renew_or_take().await.unwrap(), Whose::Theirs(_)));
        assert_eq!(ours.turn(), None);
        theirs.release(true).await.unwrap();
        ours.take().await.unwrap();
        assert_eq!(ours.turn(), turn.map(|turn| turn + 1));
    });
}

#[test]
fn a_late_release_leaves_the_next_ones_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = folder(dir.path());
    let (ours, theirs) = (lease(&store, 1), lease(&store, 2));
    run(async {
        ours.take().await.unwrap();
        let held = ours.standing.lock().held.clone();
        ours.release(true).await.unwrap();
        theirs.take().await.unwrap();
        // As if it had been stopped before its request.
        ours.standing.lock().held = held;
        assert!(!ours.release(true).await.unwrap());
        assert!(theirs.left().is_some());
        assert!(matches!(lease(&store, 3).take().await.unwrap(), Whose::Theirs(record) if record.node == Some(2)));
    });
}

#[test]
fn a_store_that_ignores_conditions_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = folder(dir.path());
    let careless: Arc<dyn Store> = Arc::new(Careless(Arc::clone(&store), true));
    let (strong, weak) = (lease(&store, 1), lease(&careless, 1));
    run(async {
        strong.take().await.unwrap();
        assert_eq!(strong.rows()[0].1, "ours");
        weak.take().await.unwrap();
        assert!(weak.rows()[0].1.contains("weak"), "{:?}", weak.rows());
        // What the probe has written is what is renewed.
        assert_eq!(weak.renew_or_take().await.unwrap(), Whose::Ours);
        // Somebody else has taken it since: it is neither renewed nor let go over that.
        let theirs = Record { generation: 9, expires_ms: now_ms() + ms(TTL), owner: "other:1".to_owned(), node: Some(2) };
        let found = store.read_lock().await.unwrap().map(|lock| lock.version);
        store.write_lock(theirs.encode().into(), found.as_ref()).await.unwrap();
        let held = weak.standing.lock().held.clone();
        assert_eq!(weak.renew_or_take().await.unwrap(), Whose::Theirs(theirs.clone()));
        weak.standing.lock().held = held;
        assert!(!weak.release(true).await.unwrap());
        assert_eq!(Record::parse(&store.read_lock().await.unwrap().unwrap().body), Ok(theirs));
    });
}

#[test]
fn a_store_that_no_condition_satisfies_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = folder(dir.path());
    let stubborn: Arc<dyn Store> = Arc::new(Careless(Arc::clone(&store), false));
    run(async {
        lease(&store, 1).take().await.unwrap();
        let error = lease(&stubborn, 1).take().await.unwrap_err();
        assert!(!error.passes() && error.to_string().contains("If-Match"), "{error}");
    });
}
