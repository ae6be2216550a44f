//! Scratch objects in a bucket, and what the store is asked with one at its first use: whether it refuses to replace an object.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{PutMode, PutMultipartOptions, PutOptions, UpdateVersion};

use super::{Inner, delete_all, is_unsupported, says_exists};
use crate::store::http::traced;
use crate::store::lock::LockVersion;
use crate::store::scratch::{SCRATCH, Scratch};
use crate::store::{Created, Level, StoreError, StoreErrorKind};
use crate::types::TimestampMs;

/// A larger one is none of ours.
const MOST_BYTES: u64 = 64 << 20;

/// A scratch object.
#[derive(Clone)]
pub(super) struct RemoteScratch {
    store: Arc<Inner>,
    key: String,
}

impl std::fmt::Debug for RemoteScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteScratch").field("key", &self.key).finish_non_exhaustive()
    }
}

fn now() -> TimestampMs {
    TimestampMs(chrono::Utc::now().timestamp_millis())
}

impl RemoteScratch {
    pub(super) fn new(store: &Arc<Inner>) -> Self {
        let key = format!("{}{SCRATCH}{:016x}", store.keys.level(Level::ZERO), fastrand::u64(..));
        Self { store: Arc::clone(store), key }
    }

    fn path(&self, operation: &'static str) -> Result<Path, StoreError> {
        self.store.path(&self.store.context(operation, &self.key), &self.key)
    }

    async fn create_it(&self, body: Bytes) -> Result<Option<Created>, StoreError> {
        let context = self.store.context("create", &self.key);
        self.store.put_if_absent(&context, &self.path("create")?, body, now()).await
    }

    async fn put_it(&self, body: Bytes) -> Result<(), StoreError> {
        let put = self.store.put(&self.path("put")?, body, now(), PutMode::Overwrite).await;
        self.store.check(&self.store.context("put", &self.key), put)
    }

    async fn replace_it(&self, body: Bytes) -> Result<bool, StoreError> {
        let nothing = LockVersion::of_nothing();
        let mode = PutMode::Update(UpdateVersion { e_tag: nothing.e_tag, version: nothing.version });
        let options = PutOptions { mode, ..Default::default() };
        let (result, refusal) = traced(self.store.bucket().put_opts(&self.path("put")?, body.into(), options)).await;
        match result {
            Ok(_) => Ok(true),
            Err(e) if says_exists(&e, refusal.as_ref()) || matches!(e, object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => {
                let unsupported = refusal.as_ref().is_some_and(is_unsupported);
                let error = self.store.clean(self.store.context("put", &self.key).failure(&e, refusal.as_ref()));
                Err(if unsupported { StoreError { kind: StoreErrorKind::Protocol, advice: super::NO_CONDITIONS, ..error } } else { error })
            }
        }
    }

    async fn read_it(&self) -> Result<Bytes, StoreError> {
        let context = self.store.context("get", &self.key);
        let (result, refusal) = traced(self.store.bucket().get_opts(&self.path("get")?, Default::default())).await;
        let response = self.store.check(&context, (result, refusal))?;
        if response.meta.size > MOST_BYTES {
            return Err(context.error(StoreErrorKind::Protocol, format!("it has {} bytes", response.meta.size), ""));
        }
        response.bytes().await.map_err(|e| self.store.clean(context.failure(&e, None)))
    }

    async fn list_them(&self) -> Result<Vec<String>, StoreError> {
        let prefix = format!("{}{SCRATCH}", self.store.keys.level(Level::ZERO));
        // Who wants to know more can list the bucket.
        let options = PaginatedListOptions { max_keys: Some(1000), ..Default::default() };
        let page = traced(self.store.client.bucket.list_paginated(Some(&prefix), options)).await;
        let page = self.store.check(&self.store.context("list", &"level 0"), page)?;
        Ok(page.result.objects.into_iter().map(|object| object.location.as_ref().to_owned()).collect())
    }

    async fn begin(&self) -> Result<(), StoreError> {
        let context = self.store.context("upload", &self.key);
        let options = PutMultipartOptions { attributes: self.store.attributes(now()), ..Default::default() };
        let path = self.path("upload")?;
        let mut upload = self.store.check(&context, traced(self.store.bucket().put_multipart_opts(&path, options)).await)?;
        self.store.check(&context, traced(upload.abort()).await)
    }

    async fn delete_it(&self) -> Result<(), StoreError> {
        let context = self.store.context("delete", &self.key);
        let outcome = traced(delete_all(self.store.singly(), vec![self.path("delete")?])).await;
        self.store.deleted(&context, outcome)
    }

    /// Creates it twice.
    pub(super) async fn probe(&self) -> Result<bool, StoreError> {
        let create = async || {
            let body = Bytes::from_static(b"replicated asks whether this store refuses to replace an object\n");
            self.create_it(body).await.map_err(|error| StoreError { operation: "probe", ..error })
        };
        if create().await?.is_none() {
            return Ok(false);
        }
        let second = create().await;
        // Where deleting is not allowed, the answer still counts.
        let _ = self.delete_it().await;
        Ok(second? == Some(Created::AlreadyExists))
    }
}

impl Scratch for RemoteScratch {
    fn name(&self) -> &str {
        &self.key
    }

    fn create(&self, body: Bytes) -> BoxFuture<'_, Result<Option<Created>, StoreError>> {
        self.create_it(body).boxed()
    }

    fn put(&self, body: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        self.put_it(body).boxed()
    }

    fn replace_on_false_condition(&self, body: Bytes) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.replace_it(body).boxed()
    }

    fn read(&self) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        self.read_it().boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        self.list_them().boxed()
    }

    fn begin_parts(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.begin().boxed()
    }

    fn delete(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.delete_it().boxed()
    }
}
