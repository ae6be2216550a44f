//! A replica in a bucket: S3 and what speaks its language, Google Cloud Storage, Azure Blob Storage.
//!
//! `object_store` does the talking, with its own retries off: a conditional creation that is retried below us would find its own object
//! and call it another writer's.

mod scratch;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use futures_util::{FutureExt, TryFutureExt};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions,
    PutResult, UpdateVersion,
};
use tokio::sync::OnceCell;

use self::scratch::RemoteScratch;
use super::about::Told;
use super::credentials::Secrets;
use super::env::Env;
use super::http::{HttpClients, Refusal, traced, traced_conditionally};
use super::keys::Keys;
use super::lock::{LOCK_FILE, MOST_LOCK_BYTES, NOTE_FILE};
use super::open::StoreOptions;
use super::parts::PartRetries;
use super::remote_error::Context;
use super::url::ReplicaUrl;
use super::{
    About, Created, GenerationFile, Level, Listed, LockObject, LockVersion, LockWritten, LtxName, PART_SIZE_BYTES, Scratch, Store,
    StoreError, StoreErrorKind, Upload, clients,
};
use crate::types::{TimestampMs, Txid};

/// What we need of an `object_store` client.
pub(super) trait Bucket: ObjectStore + PaginatedListStore {}
impl<T: ObjectStore + PaginatedListStore> Bucket for T {}

/// A client and how its store differs from others.
pub(super) struct Client {
    pub(super) bucket: Arc<dyn Bucket>,
    /// The same without requests that delete many objects at once, which not every store knows.
    pub(super) deletes_singly: Option<Arc<dyn Bucket>>,
    /// The same with a checksum in each upload, which S3 demands of a bucket with object lock and a default retention. Not every store knows it.
    pub(super) checksummed: Option<Arc<dyn Bucket>>,
    /// The user metadata in which Litestream keeps the time.
    pub(super) timestamp_key: &'static str,
    pub(super) content_type: Option<&'static str>,
    /// Whether the end of a multipart upload may be conditional.
    pub(super) completes_conditionally: bool,
    /// How it is reached.
    pub(super) about: About,
}

/// A replica in a bucket.
pub(super) struct RemoteStore(Arc<Inner>);

struct Inner {
    url: String,
    keys: Keys,
    client: Client,
    secrets: Secrets,
    told: Told,
    conditional: OnceCell<bool>,
    /// Set once the store has refused conditions altogether.
    refuses_conditions: AtomicBool,
    /// Set once the store has asked for checksums.
    wants_checksums: AtomicBool,
}

impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStore").field("url", &self.0.url).finish_non_exhaustive()
    }
}

const NO_CONDITIONS: &str = "This store knows no conditional writes, which a lease needs: open the database without the option lease";

/// The outcome of a request, and what it was refused with.
type Traced<T> = (object_store::Result<T>, Option<Refusal>);

impl RemoteStore {
    pub(super) fn open(url: &ReplicaUrl, settings: &StoreOptions, env: &Env, clients: &Arc<HttpClients>) -> Result<Self, StoreError> {
        let (secrets, told) = (Secrets::default(), Told::default());
        let keys = Keys::new(url.location());
        let client = clients::build(url, settings, env, (&secrets, &told), keys.begin_with_slash(), clients)
            .map_err(|error| StoreError { cause: secrets.redact(&error.cause), ..error })?;
        let (conditional, refuses_conditions, wants_checksums) = (OnceCell::new(), AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self(Arc::new(Inner { url: url.to_string(), keys, client, secrets, told, conditional, refuses_conditions, wants_checksums })))
    }
}

/// A refusal that says that the store does not know what was asked for.
fn is_unsupported(refusal: &Refusal) -> bool {
    matches!(refusal.status, 405 | 501) || refusal.code == "NotImplemented" || refusal.code == "MethodNotAllowed"
}

/// What S3 says to an upload without a checksum, where the bucket locks whatever comes.
fn wants_checksum(refusal: &Refusal) -> bool {
    refusal.status == 400 && refusal.message.contains("Content-MD5") && refusal.message.contains("x-amz-checksum")
}

fn is_bucket_missing(refusal: &Refusal) -> bool {
    matches!(refusal.code.as_str(), "NoSuchBucket" | "ContainerNotFound")
}

/// A refusal that says that the object exists.
fn says_exists(error: &object_store::Error, refusal: Option<&Refusal>) -> bool {
    // 409 is also how S3 reports another write of the same key that is under way.
    let undecided = |r: &Refusal| matches!(r.code.as_str(), "ConditionalRequestConflict" | "OperationAborted" | "ContainerBeingDeleted");
    matches!(
        error,
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } | object_store::Error::NotModified { .. }
    ) && !refusal.is_some_and(undecided)
}

impl Inner {
    fn bucket(&self) -> &dyn Bucket {
        &*self.client.bucket
    }

    /// For what is written.
    fn writing(&self) -> &dyn Bucket {
        let checksummed = self.client.checksummed.as_deref().filter(|_| self.wants_checksums.load(Ordering::Relaxed));
        checksummed.unwrap_or(&*self.client.bucket)
    }

    /// Whether what was sent without a checksum was refused for want of it, and may be tried once more.
    fn is_to_have_checksum(&self, had_one: bool, refusal: Option<&Refusal>) -> bool {
        let is_so = !had_one && self.client.checksummed.is_some() && refusal.is_some_and(wants_checksum);
        if is_so {
            self.wants_checksums.store(true, Ordering::Relaxed);
        }
        is_so
    }

    async fn put_opts(&self, path: &Path, body: Bytes, options: PutOptions) -> Traced<PutResult> {
        let has_checksum = self.wants_checksums.load(Ordering::Relaxed);
        let (result, refusal) = traced(self.writing().put_opts(path, body.clone().into(), options.clone())).await;
        if self.is_to_have_checksum(has_checksum, refusal.as_ref()) {
            return traced(self.writing().put_opts(path, body.into(), options)).await;
        }
        (result, refusal)
    }

    fn singly(&self) -> &dyn Bucket {
        self.client.deletes_singly.as_deref().unwrap_or(&*self.client.bucket)
    }

    fn context<'a>(&'a self, operation: &'static str, object: &'a (dyn fmt::Display + Sync)) -> Context<'a> {
        Context { operation, object, url: &self.url, endpoint: self.client.about.endpoint.as_deref().unwrap_or_default() }
    }

    fn check<T>(&self, context: &Context<'_>, (result, refusal): Traced<T>) -> Result<T, StoreError> {
        result.map_err(|e| self.clean(context.failure(&e, refusal.as_ref())))
    }

    /// Whatever a store has to say, it does not get to repeat our secrets.
    fn clean(&self, error: StoreError) -> StoreError {
        StoreError { cause: self.secrets.redact(&error.cause), ..error }
    }

    /// A leading slash is dropped here; the client's endpoint has it where keys need it.
    fn path(&self, context: &Context<'_>, key: &str) -> Result<Path, StoreError> {
        Path::parse(key).map_err(|e| context.error(StoreErrorKind::Protocol, e.to_string(), "Choose another path for the replica"))
    }

    fn attributes(&self, timestamp: TimestampMs) -> Attributes {
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::Metadata(self.client.timestamp_key.into()), timestamp.to_rfc3339().into());
        if let Some(content_type) = self.client.content_type {
            attributes.insert(Attribute::ContentType, content_type.into());
        }
        attributes
    }

    async fn list(&self, level: Level, from: Option<Txid>) -> Result<Vec<Listed>, StoreError> {
        let what = format!("level {level}");
        let context = self.context("list", &what);
        let prefix = self.keys.level(level);
        // Names go on after their TXID, so they come after the TXID alone, the first one included.
        let offset = from.map(|from| format!("{prefix}{from}"));
        let mut listed = Vec::new();
        let mut page_token = None;
        loop {
            let options = PaginatedListOptions { offset: offset.clone(), page_token: page_token.take(), ..Default::default() };
            let page = self.check(&context, traced(self.client.bucket.list_paginated(Some(&prefix), options)).await)?;
            for object in page.result.objects {
                let file_name = object.location.as_ref().strip_prefix(prefix.trim_start_matches('/'));
                let Some(name) = file_name.and_then(|file_name| LtxName::parse(level, file_name)) else { continue };
                if from.is_none_or(|from| name.min_txid >= from) {
                    let timestamp = TimestampMs(object.last_modified.timestamp_millis());
                    listed.push(Listed { name, size_bytes: object.size, timestamp, timestamp_is_exact: false });
                }
            }
            match page.page_token {
                Some(token) => page_token = Some(token),
                None => break,
            }
        }
        listed.sort_unstable_by_key(|l| l.name);
        Ok(listed)
    }

    async fn has_generations(&self) -> Result<bool, StoreError> {
        let prefix = self.keys.generations();
        let context = self.context("list", &"generations");
        let options = PaginatedListOptions { max_keys: Some(1), ..Default::default() };
        let page = self.check(&context, traced(self.client.bucket.list_paginated(Some(&prefix), options)).await)?;
        Ok(!page.result.objects.is_empty())
    }

    async fn list_generations(&self) -> Result<Vec<GenerationFile>, StoreError> {
        let prefix = self.keys.generations();
        let context = self.context("list", &"generations");
        let (mut listed, mut page_token) = (Vec::new(), None);
        loop {
            let options = PaginatedListOptions { page_token: page_token.take(), ..Default::default() };
            let page = self.check(&context, traced(self.client.bucket.list_paginated(Some(&prefix), options)).await)?;
            listed.extend(page.result.objects.iter().filter_map(|object| {
                let path = object.location.as_ref().strip_prefix(prefix.trim_start_matches('/'))?;
                GenerationFile::parse(path, object.size, TimestampMs(object.last_modified.timestamp_millis()))
            }));
            match page.page_token {
                Some(token) => page_token = Some(token),
                None => return Ok(listed),
            }
        }
    }

    async fn put(&self, path: &Path, body: Bytes, timestamp: TimestampMs, mode: PutMode) -> Traced<()> {
        let options = PutOptions { mode, attributes: self.attributes(timestamp), ..Default::default() };
        let (result, refusal) = self.put_opts(path, body, options).await;
        (result.map(|_| ()), refusal)
    }

    async fn begin(&self, path: &Path, timestamp: TimestampMs) -> Traced<Box<dyn MultipartUpload>> {
        let options = PutMultipartOptions { attributes: self.attributes(timestamp), ..Default::default() };
        traced(self.writing().put_multipart_opts(path, options.with_retry_policy(Arc::new(PartRetries)))).await
    }

    /// `None` where the store knows no conditions.
    async fn put_if_absent(
        &self,
        context: &Context<'_>,
        path: &Path,
        body: Bytes,
        timestamp: TimestampMs,
    ) -> Result<Option<Created>, StoreError> {
        let (result, refusal) = self.put(path, body, timestamp, PutMode::Create).await;
        match result {
            Ok(()) => Ok(Some(Created::New)),
            Err(e) if says_exists(&e, refusal.as_ref()) => Ok(Some(Created::AlreadyExists)),
            Err(_) if refusal.as_ref().is_some_and(is_unsupported) => {
                self.refuses_conditions.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(e) => self.check(context, (Err(e), refusal)),
        }
    }

    async fn create(&self, name: &LtxName, body: Bytes, timestamp: TimestampMs) -> Result<Created, StoreError> {
        let context = self.context("create", name);
        let path = self.path(&context, &self.keys.file(name))?;
        if !self.refuses_conditions.load(Ordering::Relaxed)
            && let Some(created) = self.put_if_absent(&context, &path, body.clone(), timestamp).await?
        {
            return Ok(created);
        }
        if self.exists(&context, &path).await? {
            return Ok(Created::AlreadyExists);
        }
        let put = self.put(&path, body, timestamp, PutMode::Overwrite).await;
        self.check(&context, put).map(|()| Created::New)
    }

    async fn exists(&self, context: &Context<'_>, path: &Path) -> Result<bool, StoreError> {
        match traced(self.bucket().head(path)).await {
            (Ok(_), _) => Ok(true),
            (Err(object_store::Error::NotFound { .. }), _) => Ok(false),
            (Err(e), refusal) => self.check(context, (Err(e), refusal)),
        }
    }

    async fn get_range(&self, name: &LtxName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let mut body = Vec::with_capacity(usize::try_from(range.end.saturating_sub(range.start)).unwrap_or_default());
        self.read_range(name, range, &mut body).await?;
        Ok(body.into())
    }

    async fn read_range(&self, name: &LtxName, range: Range<u64>, body: &mut Vec<u8>) -> Result<(), StoreError> {
        self.read_key(&self.context("get", name), &self.keys.file(name), range, body).await
    }

    async fn read_key(&self, context: &Context<'_>, key: &str, range: Range<u64>, body: &mut Vec<u8>) -> Result<(), StoreError> {
        let path = self.path(context, key)?;
        if range.is_empty() {
            return Ok(());
        }
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..Default::default() };
        let response = self.check(context, traced(self.bucket().get_opts(&path, options)).await)?;
        let (before, wanted) = (body.len(), range.end.saturating_sub(range.start));
        let mut pieces = response.into_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|e| {
                let error = self.clean(context.failure(&e, None));
                // It was on its way and broke off.
                let kind = if error.kind == StoreErrorKind::Timeout { error.kind } else { StoreErrorKind::Truncated };
                StoreError { kind, advice: "", ..error }
            })?;
            body.extend_from_slice(&piece);
            if (body.len() - before) as u64 > wanted {
                break;
            }
        }
        let came = (body.len() - before) as u64;
        if came == wanted {
            return Ok(());
        }
        if came > wanted {
            // Whatever that is, it is not the beginning of what was asked for.
            body.truncate(before);
        }
        let cause = format!("{came} bytes came, bytes {} to {} were asked for", range.start, range.end);
        Err(context.error(StoreErrorKind::Truncated, cause, ""))
    }

    async fn read_lock(&self, file: &'static str) -> Result<Option<LockObject>, StoreError> {
        let context = self.context("get", &file);
        let path = self.path(&context, &self.keys.beside(file))?;
        let (result, refusal) = traced(self.bucket().get_opts(&path, GetOptions::default())).await;
        let response = match result {
            Err(object_store::Error::NotFound { .. }) if !refusal.as_ref().is_some_and(is_bucket_missing) => return Ok(None),
            other => self.check(&context, (other, refusal))?,
        };
        let version = LockVersion { e_tag: response.meta.e_tag.clone(), version: response.meta.version.clone() };
        if response.meta.size > MOST_LOCK_BYTES {
            let cause = format!("it has {} bytes, which no lease has", response.meta.size);
            return Err(context.error(StoreErrorKind::Protocol, cause, ""));
        }
        let body = response.bytes().await.map_err(|e| self.clean(context.failure(&e, None)))?;
        Ok(Some(LockObject { body, version }))
    }

    async fn write_lock(&self, file: &'static str, body: Bytes, expected: Option<&LockVersion>) -> Result<LockWritten, StoreError> {
        let context = self.context("put", &file);
        let path = self.path(&context, &self.keys.beside(file))?;
        let update = |expected: &LockVersion| UpdateVersion { e_tag: expected.e_tag.clone(), version: expected.version.clone() };
        let mode = expected.map_or(PutMode::Create, |expected| PutMode::Update(update(expected)));
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::ContentType, "application/json".into());
        let options = PutOptions { mode, attributes, ..Default::default() };
        let (result, refusal) = self.put_opts(&path, body.clone(), options).await;
        match result {
            // A store that does not say what it has written is asked for that.
            Ok(put) if put.e_tag.is_none() && put.version.is_none() => match self.read_lock(file).await? {
                Some(lock) if lock.body == body => Ok(LockWritten::Written(lock.version)),
                _ => Ok(LockWritten::Changed),
            },
            Ok(put) => Ok(LockWritten::Written(LockVersion { e_tag: put.e_tag, version: put.version })),
            Err(e) if refusal.as_ref().is_some_and(is_bucket_missing) => self.check(&context, (Err(e), refusal)),
            Err(e) if says_exists(&e, refusal.as_ref()) || matches!(e, object_store::Error::NotFound { .. }) => Ok(LockWritten::Changed),
            Err(e) => {
                let unsupported = refusal.as_ref().is_some_and(is_unsupported);
                let error = self.clean(context.failure(&e, refusal.as_ref()));
                Err(if unsupported { StoreError { advice: NO_CONDITIONS, ..error } } else { error })
            }
        }
    }

    async fn head(&self, name: &LtxName) -> Result<Listed, StoreError> {
        let context = self.context("head", name);
        let path = self.path(&context, &self.keys.file(name))?;
        let options = GetOptions { head: true, ..Default::default() };
        let response = self.check(&context, traced(self.bucket().get_opts(&path, options)).await)?;
        let stored = response.attributes.get(&Attribute::Metadata(self.client.timestamp_key.into()));
        let exact = stored.and_then(|text| TimestampMs::from_rfc3339(text));
        Ok(Listed {
            name: *name,
            size_bytes: response.meta.size,
            timestamp: exact.unwrap_or(TimestampMs(response.meta.last_modified.timestamp_millis())),
            timestamp_is_exact: exact.is_some(),
        })
    }

    async fn delete(&self, names: &[LtxName]) -> Result<(), StoreError> {
        let what = match names {
            [] => return Ok(()),
            [name] => name.to_string(),
            [first, ..] => format!("{first} and {} more", names.len() - 1),
        };
        let context = self.context("delete", &what);
        let paths: Vec<Path> = names.iter().map(|name| self.path(&context, &self.keys.file(name))).collect::<Result<_, _>>()?;
        if paths.len() == 1 {
            return self.deleted(&context, traced(delete_all(self.singly(), paths)).await);
        }
        let (result, refusal) = traced(delete_all(&*self.client.bucket, paths.clone())).await;
        match (result, &self.client.deletes_singly) {
            (Err(_), Some(singly)) if refusal.as_ref().is_some_and(is_unsupported) => {
                self.deleted(&context, traced(delete_all(&**singly, paths)).await)
            }
            (result, _) => self.deleted(&context, (result, refusal)),
        }
    }

    /// Objects that are gone already are no failure, a bucket that is gone is.
    fn deleted(&self, context: &Context<'_>, (result, refusal): Traced<()>) -> Result<(), StoreError> {
        match &refusal {
            Some(refusal) if result.is_ok() && is_bucket_missing(refusal) => Err(self.clean(context.refused(refusal))),
            _ => self.check(context, (result, refusal)),
        }
    }
}

/// Deletes all that are there; goes on after a failure and reports the first.
async fn delete_all(bucket: &dyn Bucket, paths: Vec<Path>) -> object_store::Result<()> {
    let mut outcomes = bucket.delete_stream(stream::iter(paths.into_iter().map(Ok)).boxed());
    let mut failure = None;
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(e) => failure = failure.or(Some(e)),
        }
    }
    failure.map_or(Ok(()), Err)
}

impl Store for RemoteStore {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn list(&self, level: Level, from: Option<Txid>) -> BoxFuture<'_, Result<Vec<Listed>, StoreError>> {
        self.0.list(level, from).boxed()
    }

    fn create<'a>(&'a self, name: &'a LtxName, body: Bytes, timestamp: TimestampMs) -> BoxFuture<'a, Result<Created, StoreError>> {
        self.0.create(name, body, timestamp).boxed()
    }

    fn upload<'a>(&'a self, name: &'a LtxName, timestamp: TimestampMs) -> BoxFuture<'a, Result<Box<dyn Upload>, StoreError>> {
        async move {
            let inner = &self.0;
            let context = inner.context("upload", name);
            let path = inner.path(&context, &inner.keys.file(name))?;
            let has_checksums = inner.wants_checksums.load(Ordering::Relaxed);
            let upload = inner.check(&context, inner.begin(&path, timestamp).await)?;
            let store = Arc::clone(inner);
            Ok(Box::new(RemoteUpload { store, name: *name, path, timestamp, upload, has_checksums, has_parts: false }) as Box<dyn Upload>)
        }
        .boxed()
    }

    fn part_size_bytes(&self) -> usize {
        PART_SIZE_BYTES
    }

    fn get_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.0.get_range(name, range).boxed()
    }

    fn read_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>, body: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.read_range(name, range, body).boxed()
    }

    fn head<'a>(&'a self, name: &'a LtxName) -> BoxFuture<'a, Result<Listed, StoreError>> {
        self.0.head(name).boxed()
    }

    fn delete<'a>(&'a self, names: &'a [LtxName]) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.delete(names).boxed()
    }

    fn has_generations(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0.has_generations().boxed()
    }

    fn list_generations(&self) -> BoxFuture<'_, Result<Vec<GenerationFile>, StoreError>> {
        self.0.list_generations().boxed()
    }

    fn read_generation<'a>(
        &'a self,
        file: &'a GenerationFile,
        range: Range<u64>,
        body: &'a mut Vec<u8>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let inner = &self.0;
            let key = format!("{}{}", inner.keys.generations(), file.path);
            inner.read_key(&inner.context("get", file), &key, range, body).await
        }
        .boxed()
    }

    fn read_lock(&self) -> BoxFuture<'_, Result<Option<LockObject>, StoreError>> {
        self.0.read_lock(LOCK_FILE).boxed()
    }

    fn write_lock<'a>(&'a self, body: Bytes, expected: Option<&'a LockVersion>) -> BoxFuture<'a, Result<LockWritten, StoreError>> {
        self.0.write_lock(LOCK_FILE, body, expected).boxed()
    }

    fn read_note(&self) -> BoxFuture<'_, Result<Option<LockObject>, StoreError>> {
        self.0.read_lock(NOTE_FILE).boxed()
    }

    fn write_note<'a>(&'a self, body: Bytes, expected: Option<&'a LockVersion>) -> BoxFuture<'a, Result<LockWritten, StoreError>> {
        self.0.write_lock(NOTE_FILE, body, expected).boxed()
    }

    fn scratch(&self) -> Option<Box<dyn Scratch>> {
        Some(Box::new(RemoteScratch::new(&self.0)))
    }

    fn about(&self) -> About {
        self.0.told.added_to(&self.0.client.about)
    }

    fn creates_are_conditional(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0.conditional.get_or_try_init(async || RemoteScratch::new(&self.0).probe().await).map_ok(|answer| *answer).boxed()
    }
}

/// A large object on its way, one part in flight.
struct RemoteUpload {
    store: Arc<Inner>,
    name: LtxName,
    path: Path,
    timestamp: TimestampMs,
    upload: Box<dyn MultipartUpload>,
    has_checksums: bool,
    has_parts: bool,
}

impl RemoteUpload {
    async fn finish(mut self) -> Result<Created, StoreError> {
        let store = Arc::clone(&self.store);
        let context = store.context("upload", &self.name);
        if store.exists(&context, &self.path).await? {
            self.give_up().await;
            return Ok(Created::AlreadyExists);
        }
        let conditional = store.client.completes_conditionally && !store.refuses_conditions.load(Ordering::Relaxed);
        let (result, refusal) =
            if conditional { traced_conditionally(self.upload.complete()).await } else { traced(self.upload.complete()).await };
        match result {
            Ok(_) => Ok(Created::New),
            Err(e) if says_exists(&e, refusal.as_ref()) => {
                self.give_up().await;
                Ok(Created::AlreadyExists)
            }
            Err(e) => {
                if conditional && refusal.as_ref().is_some_and(is_unsupported) {
                    store.refuses_conditions.store(true, Ordering::Relaxed);
                }
                let definite = refusal.is_some();
                let error = store.clean(context.failure(&e, refusal.as_ref()));
                // Without an answer the upload may just have been completed, and the network is the likelier cause anyway.
                if definite && error.retry_after.is_none() {
                    self.give_up().await;
                }
                Err(error)
            }
        }
    }

    /// What remains in the store costs space until a lifecycle rule removes it; there is nobody to tell.
    async fn give_up(&mut self) {
        let _ = traced(self.upload.abort()).await;
    }
}

impl Upload for RemoteUpload {
    fn part(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let store = Arc::clone(&self.store);
            let name = self.name;
            let context = store.context("upload", &name);
            let mut outcome = traced(self.upload.put_part(body.clone().into())).await;
            // It began without, so that it begins once more.
            if !self.has_parts && store.is_to_have_checksum(self.has_checksums, outcome.1.as_ref()) {
                self.give_up().await;
                self.has_checksums = true;
                self.upload = store.check(&context, store.begin(&self.path, self.timestamp).await)?;
                outcome = traced(self.upload.put_part(body.into())).await;
            }
            self.has_parts = true;
            store.check(&context, outcome)
        }
        .boxed()
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<Created, StoreError>> {
        Self::finish(*self).boxed()
    }

    fn abort(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        async move { self.give_up().await }.boxed()
    }
}
