//! An S3 server in the process: signatures and checksums are checked, conditional creates are atomic, requests are counted.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder as Connections;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::{Notify, RwLock};

use crate::google;
use crate::locked::{Lock, Locked, Version};

/// Whose language a server speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Amazon's, signatures checked.
    #[default]
    S3,
    /// Google's XML interface, nothing checked.
    Google,
}

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// 0 takes a free one.
    pub port: u16,
    /// Where objects are kept; `None` makes a folder that goes with the server.
    pub root: Option<PathBuf>,
    /// The bucket to create.
    pub bucket: String,
    /// The access key that clients must use.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// How much later each answer comes.
    pub delay: Duration,
    /// Whose language it speaks.
    pub dialect: Dialect,
    /// Whether it replaces objects even when asked not to, as some stores do that take the condition and say nothing.
    pub ignores_conditions: bool,
    /// The `Date` of all its answers, of a clock that is wrong.
    pub date: Option<&'static str>,
    /// What becomes of objects that are to be deleted or replaced.
    pub lock: Lock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            root: None,
            bucket: "replicas".to_owned(),
            access_key: "testkit-access-key".to_owned(),
            secret_key: "testkit-secret-key".to_owned(),
            delay: Duration::ZERO,
            dialect: Dialect::S3,
            ignores_conditions: false,
            date: None,
            lock: Lock::None,
        }
    }
}

/// Requests since the server began, refused ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Objects and parts of objects.
    pub put: u64,
    /// Reads of objects.
    pub get: u64,
    /// Listings.
    pub list: u64,
    /// Deletions, of many at once too.
    pub delete: u64,
    /// Looks at an object or the bucket.
    pub head: u64,
    /// Beginnings and ends of multipart uploads.
    pub multipart: u64,
}

/// One request, as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `PUT`, `GET` ...
    pub method: String,
    /// `/bucket/key`.
    pub path: String,
    /// What stands behind the `?`.
    pub query: String,
    /// Its place among all beginnings and ends of requests.
    pub began: u64,
    /// The same of its end; `None` while it is under way.
    pub ended: Option<u64>,
}

impl Seen {
    /// Whether it is an upload to level 0.
    #[must_use]
    pub fn is_upload(&self) -> bool {
        self.method == "PUT" && self.path.contains("/0000/")
    }
}

/// What is added to the delay of the options, in milliseconds.
#[derive(Default)]
struct Delays {
    all: AtomicU64,
    uploads: AtomicU64,
}

/// Requests in the order in which they came.
#[derive(Default)]
struct Log {
    seen: Vec<Seen>,
    moments: u64,
}

#[derive(Default)]
struct Counters {
    put: AtomicU64,
    get: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    head: AtomicU64,
    multipart: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

impl Counters {
    fn count(&self, method: &Method, path: &str, query: &str) {
        let is_bucket = path.trim_matches('/').split_once('/').is_none();
        let asks = |key: &str| query.split('&').any(|part| part == key || part.starts_with(&format!("{key}=")));
        let counter = match *method {
            Method::PUT => &self.put,
            Method::HEAD => &self.head,
            Method::DELETE => &self.delete,
            Method::POST if asks("delete") => &self.delete,
            Method::POST => &self.multipart,
            _ if is_bucket => &self.list,
            _ => &self.get,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

/// The server, on a thread of its own; stops when dropped.
pub struct Server {
    options: Options,
    address: SocketAddr,
    root: PathBuf,
    requests: Arc<Counters>,
    log: Arc<Mutex<Log>>,
    delays_ms: Arc<Delays>,
    locked: Arc<Locked>,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
    _own_root: Option<tempfile::TempDir>,
}

impl Server {
    /// A server of its own folder, on a free port.
    ///
    /// # Errors
    ///
    /// Where a folder or a port cannot be had.
    pub fn start() -> io::Result<Self> {
        Self::with_options(Options::default())
    }

    /// A server as asked for.
    ///
    /// # Errors
    ///
    /// Where the folder or the port cannot be had.
    pub fn with_options(options: Options) -> io::Result<Self> {
        let own_root = options.root.is_none().then(tempfile::tempdir).transpose()?;
        let root = match (&options.root, &own_root) {
            (Some(root), _) => root.clone(),
            (None, Some(own)) => own.path().to_owned(),
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        std::fs::create_dir_all(root.join(&options.bucket))?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", options.port))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let files = s3s_fs::FileSystem::new(&root).map_err(|e| io::Error::other(format!("{e:?}")))?;
        let mut service = S3ServiceBuilder::new(files);
        if options.dialect == Dialect::S3 {
            service.set_auth(SimpleAuth::from_single(options.access_key.clone(), options.secret_key.clone()));
        }
        let requests = Arc::new(Counters::default());
        let log = Arc::<Mutex<Log>>::default();
        let delays_ms = Arc::<Delays>::default();
        let locked = Arc::new(Locked::new(options.lock));
        let handler = Handler {
            service: service.build(),
            requests: Arc::clone(&requests),
            log: Arc::clone(&log),
            delays_ms: Arc::clone(&delays_ms),
            locked: Arc::clone(&locked),
            writes: RwLock::new(()),
            ignores_conditions: options.ignores_conditions,
            date: options.date,
            delay: options.delay,
            root: root.clone(),
            dialect: options.dialect,
        };
        let stop = Arc::new(Notify::new());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let thread = std::thread::Builder::new().name("testkit-s3".to_owned()).spawn({
            let stop = Arc::clone(&stop);
            move || {
                runtime.block_on(serve(listener, Arc::new(handler), &stop));
                // Requests that hang in a test's proxy are not waited for.
                runtime.shutdown_timeout(Duration::from_millis(200));
            }
        })?;
        Ok(Self { options, address, root, requests, log, delays_ms, locked, stop, thread: Some(thread), _own_root: own_root })
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bucket that exists.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.options.bucket
    }

    /// The access key.
    #[must_use]
    pub fn access_key(&self) -> &str {
        &self.options.access_key
    }

    /// The secret of the access key.
    #[must_use]
    pub fn secret_key(&self) -> &str {
        &self.options.secret_key
    }

    /// `s3://<bucket>/<path>?endpoint=…`, or `gs://`; good together with `env`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.options.dialect == Dialect::Google { "gs" } else { "s3" };
        format!("{scheme}://{}/{}?endpoint={}", self.bucket(), path.trim_start_matches('/'), self.endpoint())
    }

    /// What a process needs in its environment to use the server: for S3 by a URL without options, for Google by that of `url`.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        if self.options.dialect == Dialect::Google {
            // A service account that asks nobody for a token.
            let account = r#"{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}"#;
            return vec![("GOOGLE_SERVICE_ACCOUNT_KEY".to_owned(), account.to_owned())];
        }
        [
            ("AWS_ACCESS_KEY_ID", self.access_key()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &self.endpoint()),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
    }

    /// Where objects are kept: `<root>/<bucket>/<key>`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// From here on the answer to an upload to level 0 comes so much later still.
    pub fn delay_uploads(&self, delay: Duration) {
        self.delays_ms.uploads.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// From here on each answer comes so much later still.
    pub fn delay_all(&self, delay: Duration) {
        self.delays_ms.all.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Each request since the log was taken last, in the order in which they came.
    #[allow(clippy::must_use_candidate, reason = "it may be taken to be thrown away")]
    pub fn take_log(&self) -> Vec<Seen> {
        std::mem::take(&mut self.log.lock().unwrap().seen)
    }

    /// The requests so far.
    #[must_use]
    pub fn requests(&self) -> Requests {
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let Counters { put, get, list, delete, head, multipart, .. } = &*self.requests;
        Requests { put: read(put), get: read(get), list: read(list), delete: read(delete), head: read(head), multipart: read(multipart) }
    }

    /// With `Lock::Versions`: what was deleted or replaced, in that order.
    #[must_use]
    pub fn versions(&self) -> Vec<Version> {
        self.locked.versions()
    }

    /// What the lock has refused: method, key and code.
    #[must_use]
    pub fn refused_by_lock(&self) -> Vec<String> {
        self.locked.refused()
    }

    /// Bytes of the bodies that came, and of those that went.
    #[must_use]
    pub fn body_bytes(&self) -> [u64; 2] {
        [&self.requests.received_bytes, &self.requests.sent_bytes].map(|counter| counter.load(Ordering::SeqCst))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Handler {
    service: S3Service,
    requests: Arc<Counters>,
    log: Arc<Mutex<Log>>,
    delays_ms: Arc<Delays>,
    locked: Arc<Locked>,
    /// The file system behind the server looks and then writes: one write at a time, and no read meanwhile, makes that one step.
    writes: RwLock<()>,
    ignores_conditions: bool,
    date: Option<&'static str>,
    delay: Duration,
    root: PathBuf,
    dialect: Dialect,
}

impl Handler {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        self.requests.count(request.method(), request.uri().path(), request.uri().query().unwrap_or_default());
        let began = self.begin(&request);
        let mut response = self.answer(request).await;
        if let Some(date) = self.date {
            response.headers_mut().insert("date", hyper::header::HeaderValue::from_static(date));
        }
        let mut log = self.log.lock().unwrap();
        log.moments += 1;
        let now = log.moments;
        // Taken meanwhile, it is not there.
        if let Some(seen) = log.seen.iter_mut().rfind(|seen| seen.began == began) {
            seen.ended = Some(now);
        }
        response
    }

    fn begin(&self, request: &Request<Incoming>) -> u64 {
        /// A test that never takes the log has enough of it.
        const MOST: usize = 100_000;
        let mut log = self.log.lock().unwrap();
        log.moments += 1;
        let began = log.moments;
        let query = request.uri().query().unwrap_or_default().to_owned();
        if log.seen.len() < MOST {
            let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
            log.seen.push(Seen { method, path, query, began, ended: None });
        }
        began
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let is_upload = request.method() == Method::PUT && request.uri().path().contains("/0000/");
        let Delays { all, uploads } = &*self.delays_ms;
        let more_ms = all.load(Ordering::SeqCst) + if is_upload { uploads.load(Ordering::SeqCst) } else { 0 };
        tokio::time::sleep(self.delay + Duration::from_millis(more_ms)).await;
        let (mut parts, body) = request.into_parts();
        if self.dialect == Dialect::Google {
            google::translate_request(&mut parts.headers);
        }
        // Read before the lock is taken, so that a slow client holds up nobody.
        let Ok(body) = body.collect().await else { return refusal(StatusCode::BAD_REQUEST, "") };
        let is_write = !matches!(parts.method, Method::GET | Method::HEAD);
        let body = body.to_bytes();
        self.requests.received_bytes.fetch_add(body.len() as u64, Ordering::SeqCst);
        let is_head = parts.method == Method::HEAD;
        let _alone = if is_write { Some(self.writes.write().await) } else { None };
        let _with_others = if is_write { None } else { Some(self.writes.read().await) };
        let taken = match self.locked.look(&self.root, &parts, &body) {
            Ok(taken) => taken,
            Err((status, answer)) => return answered(status, answer.into()),
        };
        let request = Request::from_parts(parts, Body::from(body));
        if self.ignores_conditions && request.headers().contains_key("if-none-match") {
            // The condition is among the signed headers and cannot be taken out; that nothing is there makes it hold.
            let _ = std::fs::remove_file(self.root.join(request.uri().path().trim_start_matches('/')));
        }
        // The file system behind the server would make the bucket.
        if self.lacks_bucket(request.uri().path()) {
            return refusal(StatusCode::NOT_FOUND, NO_SUCH_BUCKET);
        }
        let mut response = self.service.call(request).await.unwrap_or_else(|_| refusal(StatusCode::INTERNAL_SERVER_ERROR, ""));
        self.locked.keep(taken, response.status().is_success());
        if self.dialect == Dialect::Google {
            google::translate_response(response.headers_mut());
        }
        let length = response.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
        let sent_bytes = length.or_else(|| response.body().size_hint().exact()).filter(|_| !is_head).unwrap_or(0);
        self.requests.sent_bytes.fetch_add(sent_bytes, Ordering::SeqCst);
        response
    }

    fn lacks_bucket(&self, path: &str) -> bool {
        let bucket = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        !bucket.is_empty() && !self.root.join(bucket).is_dir()
    }
}

const NO_SUCH_BUCKET: &str = "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>";

fn refusal(status: StatusCode, body: &'static str) -> Response<Body> {
    answered(status, bytes::Bytes::from_static(body.as_bytes()))
}

fn answered(status: StatusCode, body: bytes::Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}

async fn serve(listener: std::net::TcpListener, handler: Arc<Handler>, stop: &Notify) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.notified() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        // Small answers at once, as a real server on a real network would.
        let _ = stream.set_nodelay(true);
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let handler = Arc::clone(&handler);
                async move { Ok::<_, Infallible>(handler.handle(request).await) }
            });
            // A connection that a client breaks off is the client's matter.
            let _ = Connections::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
