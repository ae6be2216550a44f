//! What an S3 bucket does with objects that it has a lock on, in front of a server that knows no versions.
//!
//! Amazon's object lock is about versions: a version that is retained cannot be deleted (403), but a deletion that names none, as ours, is answered well,
//! and puts a marker on top; so does a replacement put another version there. Uploads must carry a checksum. Other stores have locks, and bucket policies,
//! that refuse the deletion itself.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

/// What becomes of objects that are to be deleted or replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// They are.
    #[default]
    None,
    /// As S3 with versions, object lock and a retention for whatever comes: all versions stay, below markers and below newer ones.
    Versions,
    /// What has come stays where it is: a deletion is refused.
    NoDeletion,
    /// The same, and nothing can be replaced either.
    NoChange,
}

/// A version that is not the newest any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `path/0000/...`, without the bucket.
    pub key: String,
    /// What it held.
    pub body: Vec<u8>,
}

/// Older versions, and what was refused.
#[derive(Debug, Default)]
pub(crate) struct Locked {
    pub(crate) lock: Lock,
    versions: Mutex<Vec<Version>>,
    refused: Mutex<Vec<String>>,
}

/// What a request is about to take away.
#[derive(Debug, Default)]
pub(crate) struct Taken(Vec<Version>);

/// An answer that takes the place of the server's.
pub(crate) type Answer = (StatusCode, String);

impl Locked {
    pub(crate) fn new(lock: Lock) -> Self {
        Self { lock, ..Self::default() }
    }

    pub(crate) fn versions(&self) -> Vec<Version> {
        self.versions.lock().unwrap().clone()
    }

    /// Which requests it has refused: method, key, code.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap().clone()
    }

    /// Whether a request is answered otherwise than without a lock, or what it takes away.
    pub(crate) fn look(&self, root: &Path, parts: &Parts, body: &[u8]) -> Result<Taken, Answer> {
        if self.lock == Lock::None {
            return Ok(Taken::default());
        }
        let (path, query) = (parts.uri.path().trim_start_matches('/'), parts.uri.query().unwrap_or_default());
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let asks = |name: &str| query.split('&').any(|part| part == name || part.starts_with(&format!("{name}=")));
        let keys: Vec<String> = match parts.method {
            Method::DELETE if asks("uploadId") => return Ok(Taken::default()),
            Method::POST if asks("delete") => keys_of(&String::from_utf8_lossy(body)),
            Method::PUT | Method::DELETE => vec![key.to_owned()],
            Method::POST if asks("uploadId") => vec![key.to_owned()],
            _ => return Ok(Taken::default()),
        };
        let is_deletion = parts.method == Method::DELETE || asks("delete");
        if !is_deletion && self.lock == Lock::Versions && parts.method == Method::PUT && !has_checksum(parts) {
            let what = if asks("partNumber") { "Part" } else { "Object" };
            let message =
                format!("Content-MD5 OR x-amz-checksum- HTTP header is required for Put {what} requests with Object Lock parameters");
            return Err(self.refuse(parts, key, StatusCode::BAD_REQUEST, "InvalidRequest", &message));
        }
        let is_there = |key: &String| place(root, bucket, key).is_file();
        let is_locked = match self.lock {
            Lock::Versions => asks("versionId"),
            Lock::NoDeletion => is_deletion && keys.iter().any(is_there),
            // A part by itself changes nothing.
            Lock::NoChange => !asks("partNumber") && !is_conditional_creation(parts) && keys.iter().any(is_there),
            Lock::None => false,
        };
        let message = "Access Denied because object protected by object lock.";
        if is_locked && asks("delete") {
            // Answered key by key, with status 200.
            let of = |key: &String| {
                let outcome = if is_there(key) { "Error" } else { "Deleted" };
                let why = if is_there(key) { format!("<Code>AccessDenied</Code><Message>{message}</Message>") } else { String::new() };
                format!("<{outcome}><Key>{key}</Key>{why}</{outcome}>")
            };
            self.refuse(parts, key, StatusCode::OK, "AccessDenied", message);
            return Err((StatusCode::OK, format!("<DeleteResult>{}</DeleteResult>", keys.iter().map(of).collect::<String>())));
        }
        if is_locked {
            return Err(self.refuse(parts, key, StatusCode::FORBIDDEN, "AccessDenied", message));
        }
        if self.lock != Lock::Versions || asks("partNumber") {
            return Ok(Taken::default());
        }
        let version = |key: String| Some(Version { body: std::fs::read(place(root, bucket, &key)).ok()?, key });
        Ok(Taken(keys.into_iter().filter_map(version).collect()))
    }

    /// The request was done: what it has taken away is an older version now.
    pub(crate) fn keep(&self, taken: Taken, is_done: bool) {
        if is_done {
            self.versions.lock().unwrap().extend(taken.0);
        }
    }

    fn refuse(&self, parts: &Parts, key: &str, status: StatusCode, code: &str, message: &str) -> Answer {
        self.refused.lock().unwrap().push(format!("{} {key}: {code}", parts.method));
        (status, format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>"))
    }
}

fn place(root: &Path, bucket: &str, key: &str) -> PathBuf {
    root.join(bucket).join(key)
}

fn has_checksum(parts: &Parts) -> bool {
    parts.headers.keys().any(|name| name == "content-md5" || name.as_str().starts_with("x-amz-checksum-"))
}

/// It would be answered by 412, which the server does.
fn is_conditional_creation(parts: &Parts) -> bool {
    parts.headers.contains_key("if-none-match")
}

fn keys_of(body: &str) -> Vec<String> {
    body.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()).map(ToOwned::to_owned).collect()
}
