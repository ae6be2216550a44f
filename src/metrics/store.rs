//! A store whose requests are counted.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Counted, Operation};
use crate::store::{
    Created, GenerationFile, Level, Listed, LockObject, LockVersion, LockWritten, LtxName, Store, StoreError, StoreErrorKind, Upload,
};
use crate::types::{TimestampMs, Txid};

/// Where requests are counted: nowhere, until it is known.
#[derive(Debug, Default)]
pub(crate) struct Meter(OnceLock<Arc<dyn Counted>>);

impl Meter {
    /// From here on they are counted there. A second call changes nothing.
    pub(crate) fn begin(&self, counted: Arc<dyn Counted>) {
        let _ = self.0.set(counted);
    }

    async fn count<T>(&self, operation: Operation, request: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        // One that is given up never comes to its end here.
        let mut running = Running { meter: self, operation, began: Instant::now(), error: Some(StoreErrorKind::Timeout) };
        let done = request.await;
        // Whoever asks whether an object is there has been answered.
        running.error = done.as_ref().err().map(|error| error.kind).filter(|kind| *kind != StoreErrorKind::NotFound);
        done
    }

    /// The same of a request that sends so many bytes, all of which count where it is answered.
    async fn send<T>(&self, bytes: usize, request: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let done = self.count(Operation::Put, request).await?;
        if let Some(counted) = self.0.get() {
            counted.counters().sent(bytes);
        }
        Ok(done)
    }

    fn received(&self, bytes: usize) {
        if let Some(counted) = self.0.get() {
            counted.counters().received(bytes);
        }
    }
}

/// A request, counted at its end.
struct Running<'a> {
    meter: &'a Meter,
    operation: Operation,
    began: Instant,
    error: Option<StoreErrorKind>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(counted) = self.meter.0.get() {
            counted.counters().request(self.operation, self.began.elapsed(), self.error);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MeasuredStore {
    store: Arc<dyn Store>,
    meter: Arc<Meter>,
}

impl MeasuredStore {
    pub(crate) const fn new(store: Arc<dyn Store>, meter: Arc<Meter>) -> Self {
        Self { store, meter }
    }
}

impl Store for MeasuredStore {
    fn url(&self) -> &str {
        self.store.url()
    }

    fn list(&self, level: Level, from: Option<Txid>) -> BoxFuture<'_, Result<Vec<Listed>, StoreError>> {
        async move { self.meter.count(Operation::List, async { self.store.list(level, from).await }).await }.boxed()
    }

    fn create<'a>(&'a self, name: &'a LtxName, body: Bytes, timestamp: TimestampMs) -> BoxFuture<'a, Result<Created, StoreError>> {
        async move { self.meter.send(body.len(), async { self.store.create(name, body, timestamp).await }).await }.boxed()
    }

    fn upload<'a>(&'a self, name: &'a LtxName, timestamp: TimestampMs) -> BoxFuture<'a, Result<Box<dyn Upload>, StoreError>> {
        async move {
            let upload = self.meter.count(Operation::Put, async { self.store.upload(name, timestamp).await }).await?;
            Ok(Box::new(MeasuredUpload { upload, meter: Arc::clone(&self.meter) }) as Box<dyn Upload>)
        }
        .boxed()
    }

    fn part_size_bytes(&self) -> usize {
        self.store.part_size_bytes()
    }

    fn get_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        async move {
            let body = self.meter.count(Operation::Get, async { self.store.get_range(name, range).await }).await?;
            self.meter.received(body.len());
            Ok(body)
        }
        .boxed()
    }

    fn read_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>, body: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let before = body.len();
            let done = self.meter.count(Operation::Get, async { self.store.read_range(name, range, body).await }).await;
            self.meter.received(body.len().saturating_sub(before));
            done
        }
        .boxed()
    }

    fn head<'a>(&'a self, name: &'a LtxName) -> BoxFuture<'a, Result<Listed, StoreError>> {
        async move { self.meter.count(Operation::Head, async { self.store.head(name).await }).await }.boxed()
    }

    fn delete<'a>(&'a self, names: &'a [LtxName]) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.meter.count(Operation::Delete, async { self.store.delete(names).await }).await }.boxed()
    }

    fn has_generations(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move { self.meter.count(Operation::List, async { self.store.has_generations().await }).await }.boxed()
    }

    fn list_generations(&self) -> BoxFuture<'_, Result<Vec<GenerationFile>, StoreError>> {
        async move { self.meter.count(Operation::List, async { self.store.list_generations().await }).await }.boxed()
    }

    fn read_generation<'a>(
        &'a self,
        file: &'a GenerationFile,
        range: Range<u64>,
        body: &'a mut Vec<u8>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.meter.count(Operation::Get, async { self.store.read_generation(file, range, body).await }).await }.boxed()
    }

    fn read_lock(&self) -> BoxFuture<'_, Result<Option<LockObject>, StoreError>> {
        async move { self.meter.count(Operation::Get, async { self.store.read_lock().await }).await }.boxed()
    }

    fn write_lock<'a>(&'a self, body: Bytes, expected: Option<&'a LockVersion>) -> BoxFuture<'a, Result<LockWritten, StoreError>> {
        async move { self.meter.send(body.len(), async { self.store.write_lock(body, expected).await }).await }.boxed()
    }

    fn read_note(&self) -> BoxFuture<'_, Result<Option<LockObject>, StoreError>> {
        async move { self.meter.count(Operation::Get, async { self.store.read_note().await }).await }.boxed()
    }

    fn write_note<'a>(&'a self, body: Bytes, expected: Option<&'a LockVersion>) -> BoxFuture<'a, Result<LockWritten, StoreError>> {
        async move { self.meter.send(body.len(), async { self.store.write_note(body, expected).await }).await }.boxed()
    }

    fn lacks_lock(&self) -> StoreError {
        self.store.lacks_lock()
    }

    fn creates_are_conditional(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        // Asked again and again, and answered from memory: no request is counted for it.
        self.store.creates_are_conditional()
    }
}

/// An upload in parts: each is a request, and so are its beginning and its end.
struct MeasuredUpload {
    upload: Box<dyn Upload>,
    meter: Arc<Meter>,
}

impl Upload for MeasuredUpload {
    fn part(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        let Self { upload, meter } = self;
        async move { meter.send(body.len(), async { upload.part(body).await }).await }.boxed()
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<Created, StoreError>> {
        let Self { upload, meter } = *self;
        async move { meter.count(Operation::Put, async { upload.finish().await }).await }.boxed()
    }

    fn abort(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.upload.abort()
    }
}
