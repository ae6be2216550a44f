//! The store as it is to who holds a lease: nothing is written without one.
//!
//! Asked for right before each request that makes an object: a process may have been stopped at any step before, for longer than the
//! lease lasts. A request that is under way when the lease ends is not waited for.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Lease;
use crate::store::{Created, Level, Listed, LockObject, LockVersion, LockWritten, LtxName, Store, StoreError, StoreErrorKind, Upload};
use crate::types::{TimestampMs, Txid};

/// See the module.
#[derive(Debug)]
pub(crate) struct LeasedStore {
    store: Arc<dyn Store>,
    lease: Arc<Lease>,
}

impl LeasedStore {
    pub(crate) const fn new(store: Arc<dyn Store>, lease: Arc<Lease>) -> Self {
        Self { store, lease }
    }
}

fn error(lease: &Lease, kind: StoreErrorKind, operation: &'static str, what: &dyn fmt::Display) -> StoreError {
    let cause = if kind == StoreErrorKind::NoLease { "the lease is not ours" } else { "no answer before the lease ran out" };
    StoreError { kind, operation, object: format!("{what} in {}", lease.url()), cause: cause.to_owned(), advice: "", retry_after: None }
}

/// Awaits a request that writes, if the lease is ours, and for as long as it is.
///
/// The request is begun here and not before: a folder does all of its work at once.
async fn with_lease<T, R: Future<Output = Result<T, StoreError>>>(
    lease: &Lease,
    operation: &'static str,
    what: &(dyn fmt::Display + Sync),
    request: impl FnOnce() -> R,
) -> Result<T, StoreError> {
    let Some(mut left) = lease.left() else { return Err(error(lease, StoreErrorKind::NoLease, operation, what)) };
    let mut request = pin!(request());
    loop {
        tokio::select! {
            done = &mut request => return done,
            () = tokio::time::sleep(left) => {}
        }
        // Renewed meanwhile, as a rule.
        left = lease.left().ok_or_else(|| error(lease, StoreErrorKind::Timeout, operation, what))?;
    }
}

impl Store for LeasedStore {
    fn url(&self) -> &str {
        self.store.url()
    }

    fn list(&self, level: Level, from: Option<Txid>) -> BoxFuture<'_, Result<Vec<Listed>, StoreError>> {
        self.store.list(level, from)
    }

    fn create<'a>(&'a self, name: &'a LtxName, body: Bytes, timestamp: TimestampMs) -> BoxFuture<'a, Result<Created, StoreError>> {
        async move { with_lease(&self.lease, "create", name, || self.store.create(name, body, timestamp)).await }.boxed()
    }

    fn upload<'a>(&'a self, name: &'a LtxName, timestamp: TimestampMs) -> BoxFuture<'a, Result<Box<dyn Upload>, StoreError>> {
        async move {
            let upload = with_lease(&self.lease, "upload", name, || self.store.upload(name, timestamp)).await?;
            Ok(Box::new(LeasedUpload { upload, lease: Arc::clone(&self.lease), name: *name }) as Box<dyn Upload>)
        }
        .boxed()
    }

    fn part_size_bytes(&self) -> usize {
        self.store.part_size_bytes()
    }

    fn get_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.store.get_range(name, range)
    }

    fn read_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>, body: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.read_range(name, range, body)
    }

    fn head<'a>(&'a self, name: &'a LtxName) -> BoxFuture<'a, Result<Listed, StoreError>> {
        self.store.head(name)
    }

    fn delete<'a>(&'a self, names: &'a [LtxName]) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { with_lease(&self.lease, "delete", &"objects", || self.store.delete(names)).await }.boxed()
    }

    fn has_generations(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.store.has_generations()
    }

    fn read_note(&self) -> BoxFuture<'_, Result<Option<LockObject>, StoreError>> {
        self.store.read_note()
    }

    fn write_note<'a>(&'a self, body: Bytes, expected: Option<&'a LockVersion>) -> BoxFuture<'a, Result<LockWritten, StoreError>> {
        async move { with_lease(&self.lease, "put", &"maintenance.json", || self.store.write_note(body, expected)).await }.boxed()
    }

    fn creates_are_conditional(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.store.creates_are_conditional()
    }
}

/// An upload in parts, which nobody sees before its end: the parts may be sent without the lease, the end may not.
struct LeasedUpload {
    upload: Box<dyn Upload>,
    lease: Arc<Lease>,
    name: LtxName,
}

impl Upload for LeasedUpload {
    fn part(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        self.upload.part(body)
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<Created, StoreError>> {
        let Self { upload, lease, name } = *self;
        async move {
            if lease.left().is_none() {
                upload.abort().await;
                return Err(error(&lease, StoreErrorKind::NoLease, "upload", &name));
            }
            with_lease(&lease, "upload", &name, || upload.finish()).await
        }
        .boxed()
    }

    fn abort(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.upload.abort()
    }
}
