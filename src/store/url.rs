//! Where a replica is: the URL forms that Litestream 0.5 reads, parsed into types.
//!
//! The keys that follow from a URL must be the ones that Litestream would use, its quirks included, so that a bucket can change hands
//! (`docs/stores.md`).

use std::fmt;
use std::path::PathBuf;

/// What a replica URL names, and the options it carries. Holds no secret: a URL with credentials is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaUrl {
    text: String,
    location: Location,
    options: UrlOptions,
}

/// The store and the place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `s3://bucket/path`.
    S3 {
        /// The bucket.
        bucket: String,
        /// The path without slashes at its ends; empty for `s3://bucket/`, whose keys begin with a slash.
        path: String,
    },
    /// `gs://bucket/path`.
    Gcs {
        /// The bucket.
        bucket: String,
        /// The path without slashes at its ends; may be empty.
        path: String,
    },
    /// `abs://account@container/path`.
    Azure {
        /// The storage account; `None` leaves it to the environment.
        account: Option<String>,
        /// The container.
        container: String,
        /// The path without slashes at its ends; may be empty.
        path: String,
    },
    /// `file:///path`.
    Folder {
        /// The absolute path.
        path: PathBuf,
    },
}

/// The options of a URL's query; each wins over what the caller and the environment say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UrlOptions {
    /// `endpoint`: where the store's API is, with its scheme.
    pub endpoint: Option<String>,
    /// `region`.
    pub region: Option<String>,
    /// `path_style` (also `force-path-style`, `forcePathStyle`): the bucket in the path rather than in the host name.
    pub path_style: Option<bool>,
    /// `allow_http`: unencrypted connections.
    pub allow_http: Option<bool>,
    /// `ca_bundle`: a PEM file with certificates to trust in addition.
    pub ca_bundle: Option<PathBuf>,
    /// `profile`: the AWS profile to take credentials from.
    pub profile: Option<String>,
}

/// A replica URL that cannot be used: what is wrong, what was given, what is allowed. Never repeats a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Not of the form `scheme://…`.
    #[error(
        "replica URL {got:?} has no scheme: write s3://bucket/path, gs://bucket/path, abs://account@container/path or file:///path{}",
        folder_hint(.got)
    )]
    NoScheme {
        /// What was given.
        got: String,
    },
    /// A scheme of no store.
    #[error("replica URL scheme {got:?} is not supported: use s3, gs, abs or file{}", endpoint_hint(.got))]
    UnknownScheme {
        /// The scheme.
        got: String,
    },
    /// No bucket or container.
    #[error("replica URL names no {what}: write {form}")]
    MissingBucket {
        /// What the store calls it.
        what: &'static str,
        /// The whole form.
        form: &'static str,
    },
    /// `s3://bucket`: Litestream keeps such a replica under keys that begin with `./`.
    #[error(
        "replica URL s3://{bucket} has no path. Litestream keeps such a replica under keys that begin with \"./\", which HTTP clients cannot \
         address: add a path (s3://{bucket}/db), or a slash (s3://{bucket}/) for keys at the root of the bucket"
    )]
    NoPath {
        /// The bucket.
        bucket: String,
    },
    /// A name that the store cannot have.
    #[error("replica URL {what} {got:?} is not valid: {allowed}")]
    InvalidName {
        /// What is named.
        what: &'static str,
        /// What was given.
        got: String,
        /// What would be accepted.
        allowed: &'static str,
    },
    /// `file://` with something else than an absolute path.
    #[error("replica URL file://{got} names no folder by an absolute path: write file:/// and the whole path, such as file:///backup/app")]
    RelativePath {
        /// What followed `file://`.
        got: String,
    },
    /// A name, password or key in the URL.
    #[error("replica URL carries credentials ({what}): URLs end up in logs and process lists; put them into the environment as {instead}")]
    Credentials {
        /// Which part, without its value.
        what: String,
        /// The variables to use.
        instead: &'static str,
    },
    /// A query key that is not known for this scheme.
    #[error("replica URL option {key:?} is not known for {scheme}://: allowed are {allowed}")]
    UnknownOption {
        /// The key.
        key: String,
        /// The URL's scheme.
        scheme: &'static str,
        /// The keys that are.
        allowed: &'static str,
    },
    /// A query key given twice.
    #[error("replica URL option {key:?} is given twice")]
    DuplicateOption {
        /// The key.
        key: String,
    },
    /// A query value that makes no sense.
    #[error("replica URL option {key}={got:?} is not valid: {allowed}")]
    InvalidOption {
        /// The key.
        key: &'static str,
        /// What was given.
        got: String,
        /// What would be accepted.
        allowed: &'static str,
    },
    /// A fragment, a port, a bad percent sign.
    #[error("replica URL is malformed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: &'static str,
    },
}

const S3_FORM: &str = "s3://bucket/path";
const GCS_FORM: &str = "gs://bucket/path";
const ABS_FORM: &str = "abs://account@container/path";
const AWS_ENV: &str = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile";
const GCS_ENV: &str = "GOOGLE_APPLICATION_CREDENTIALS";
const ABS_ENV: &str = "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN";
const BOOLEAN: &str = "write true or false";

impl ReplicaUrl {
    /// Reads a URL.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| no_scheme(text))?;
        let plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
        if !plain(scheme) {
            return Err(no_scheme(text));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if rest.contains('#') || query.contains('#') {
            return Err(UrlError::Malformed { reason: "it contains '#', which begins a fragment; write %23 in a bucket's path" });
        }
        let (location, options) = match scheme.to_ascii_lowercase().as_str() {
            "s3" => (s3(rest)?, UrlOptions::parse(query, Scheme::S3)?),
            "gs" => (gcs(rest)?, UrlOptions::parse(query, Scheme::Gcs)?),
            "abs" => (azure(rest)?, UrlOptions::parse(query, Scheme::Azure)?),
            "file" => (folder(rest)?, UrlOptions::parse(query, Scheme::Folder)?),
            _ => return Err(UrlError::UnknownScheme { got: scheme.to_owned() }),
        };
        Ok(Self { text: text.to_owned(), location, options })
    }

    /// The store and the place in it.
    #[must_use]
    pub const fn location(&self) -> &Location {
        &self.location
    }

    /// The options of the query.
    #[must_use]
    pub const fn options(&self) -> &UrlOptions {
        &self.options
    }

    /// Whether one of the two lies in the other, as far as the URLs tell. `endpoint` is that of a URL which names none.
    pub(crate) fn meets(&self, other: &Self, endpoint: Option<&str>) -> bool {
        let within = |a: &str, b: &str| {
            let segments = |path: &str| path.split('/').map(ToOwned::to_owned).filter(|s| !s.is_empty()).collect::<Vec<_>>();
            let (a, b) = (segments(a), segments(b));
            a.starts_with(&b) || b.starts_with(&a)
        };
        let endpoint = endpoint.map(|text| self::endpoint(text).unwrap_or_else(|_| text.to_owned()));
        let endpoint_of = |url: &Self| url.options.endpoint.clone().or_else(|| endpoint.clone());
        match (&self.location, &other.location) {
            (Location::Folder { path: a }, Location::Folder { path: b }) => a.starts_with(b) || b.starts_with(a),
            (Location::S3 { bucket: a, path }, Location::S3 { bucket: b, path: other_path })
            | (Location::Gcs { bucket: a, path }, Location::Gcs { bucket: b, path: other_path }) => {
                a == b && endpoint_of(self) == endpoint_of(other) && within(path, other_path)
            }
            (
                Location::Azure { account: a, container, path },
                Location::Azure { account: b, container: other_container, path: other_path },
            ) => a == b && container == other_container && endpoint_of(self) == endpoint_of(other) && within(path, other_path),
            _ => false,
        }
    }

    /// The URL as it was given. It holds no secret.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for ReplicaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for ReplicaUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        Self::parse(text)
    }
}

/// A folder is most often meant by a path.
fn folder_hint(got: &str) -> String {
    if got.starts_with('/') { format!("; for that folder, file://{got}") } else { String::new() }
}

/// An address on the web is most often that of a store with the interface of S3.
fn endpoint_hint(scheme: &str) -> &'static str {
    let is_web = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    if is_web { "; a store's own address is the option endpoint: s3://bucket/path?endpoint=https://host:port" } else { "" }
}

/// Only a text without an `@` is repeated: what is not a URL may still hold a password.
fn no_scheme(text: &str) -> UrlError {
    UrlError::NoScheme { got: if text.contains(['@', '?']) { "…".to_owned() } else { text.to_owned() } }
}

/// The part before the first slash, and the rest with it; `None` where there is no slash.
fn split_authority(rest: &str) -> (&str, Option<&str>) {
    rest.find('/').map_or((rest, None), |at| (&rest[..at], Some(&rest[at..])))
}

/// Whether a name and a password come first. A password may hold a slash, and then the `@` is beyond it.
fn has_password(rest: &str) -> bool {
    split_authority(rest).0.contains(':') && rest.contains('@')
}

fn refuse_userinfo(rest: &str, instead: &'static str) -> Result<(), UrlError> {
    if split_authority(rest).0.contains('@') || has_password(rest) {
        return Err(UrlError::Credentials { what: "a name or key before '@'".to_owned(), instead });
    }
    Ok(())
}

fn s3(rest: &str) -> Result<Location, UrlError> {
    let (bucket, path) = split_authority(rest);
    refuse_userinfo(rest, AWS_ENV)?;
    let bucket = name("bucket", bucket, S3_FORM)?;
    let Some(path) = path else { return Err(UrlError::NoPath { bucket }) };
    Ok(Location::S3 { bucket, path: clean_path(path)? })
}

fn gcs(rest: &str) -> Result<Location, UrlError> {
    let (bucket, path) = split_authority(rest);
    refuse_userinfo(rest, GCS_ENV)?;
    Ok(Location::Gcs { bucket: name("bucket", bucket, GCS_FORM)?, path: clean_path(path.unwrap_or_default())? })
}

fn azure(rest: &str) -> Result<Location, UrlError> {
    let (authority, path) = split_authority(rest);
    let (account, container) = match authority.rsplit_once('@') {
        Some((account, container)) => (Some(account), container),
        None => (None, authority),
    };
    if account.is_some_and(|a| a.contains('@')) || has_password(rest) {
        return Err(UrlError::Credentials { what: "a password or key before '@'".to_owned(), instead: ABS_ENV });
    }
    let account = account.map(|a| name("storage account", a, ABS_FORM)).transpose()?;
    Ok(Location::Azure { account, container: name("container", container, ABS_FORM)?, path: clean_path(path.unwrap_or_default())? })
}

/// As Litestream does, the path is taken as it stands, without percent-decoding.
fn folder(rest: &str) -> Result<Location, UrlError> {
    if !rest.starts_with('/') {
        return Err(UrlError::RelativePath { got: if rest.contains('@') { "…".to_owned() } else { rest.to_owned() } });
    }
    let cleaned = clean(rest);
    if cleaned.is_empty() {
        return Err(UrlError::RelativePath { got: rest.to_owned() });
    }
    Ok(Location::Folder { path: PathBuf::from(format!("/{cleaned}")) })
}

fn name(what: &'static str, got: &str, form: &'static str) -> Result<String, UrlError> {
    if got.is_empty() {
        return Err(UrlError::MissingBucket { what, form });
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'$');
    if got.bytes().all(allowed) && !got.starts_with('.') {
        return Ok(got.to_owned());
    }
    let allowed = if got.contains(':') {
        "only a name goes before the path; give another host as ?endpoint=https://host:port"
    } else {
        "letters, digits, '-', '.' and '_' make up a name"
    };
    Err(UrlError::InvalidName { what, got: got.to_owned(), allowed })
}

/// A path in a bucket: decoded, without empty, `.` and `..` segments, without slashes at its ends.
fn clean_path(encoded: &str) -> Result<String, UrlError> {
    let decoded = percent_decode(encoded)?;
    if decoded.chars().any(|c| c.is_ascii_control()) {
        return Err(UrlError::Malformed { reason: "its path contains a control character" });
    }
    Ok(clean(&decoded))
}

fn clean(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    segments.join("/")
}

fn percent_decode(text: &str) -> Result<String, UrlError> {
    let bad = UrlError::Malformed {
        reason: "a '%' in its path is not followed by two hexadecimal digits of UTF-8; write %25 for a percent sign",
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok()).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(value) = digits.and_then(|d| u8::from_str_radix(d, 16).ok()) else { return Err(bad) };
        bytes.push(value);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| bad)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    S3,
    Gcs,
    Azure,
    Folder,
}

impl Scheme {
    const fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "abs",
            Self::Folder => "file",
        }
    }

    const fn allowed(self) -> &'static str {
        match self {
            Self::S3 => "endpoint, region, path_style, allow_http, ca_bundle, profile",
            Self::Gcs | Self::Azure => "endpoint, allow_http, ca_bundle",
            Self::Folder => "none",
        }
    }

    const fn environment(self) -> &'static str {
        match self {
            Self::S3 | Self::Folder => AWS_ENV,
            Self::Gcs => GCS_ENV,
            Self::Azure => ABS_ENV,
        }
    }
}

impl UrlOptions {
    fn parse(query: &str, scheme: Scheme) -> Result<Self, UrlError> {
        let mut options = Self::default();
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            options.set(scheme, &key, &value).map_err(|error| match error {
                // What stands there without a value may be one: a token, say.
                UrlError::UnknownOption { scheme, allowed, .. } if value.is_empty() => {
                    UrlError::UnknownOption { key: "***".to_owned(), scheme, allowed }
                }
                error => error,
            })?;
        }
        Ok(options)
    }

    fn set(&mut self, scheme: Scheme, key: &str, value: &str) -> Result<(), UrlError> {
        let duplicate = || UrlError::DuplicateOption { key: key.to_owned() };
        match (key, scheme) {
            ("endpoint", Scheme::S3 | Scheme::Gcs | Scheme::Azure) => put(&mut self.endpoint, endpoint(value)?).ok_or_else(duplicate),
            ("allow_http", Scheme::S3 | Scheme::Gcs | Scheme::Azure) => {
                put(&mut self.allow_http, boolean("allow_http", value)?).ok_or_else(duplicate)
            }
            ("ca_bundle", Scheme::S3 | Scheme::Gcs | Scheme::Azure) => {
                let path = some("ca_bundle", value, "give the path of a PEM file")?;
                put(&mut self.ca_bundle, PathBuf::from(path)).ok_or_else(duplicate)
            }
            ("region", Scheme::S3) => {
                put(&mut self.region, some("region", value, "give a region such as eu-central-1")?).ok_or_else(duplicate)
            }
            ("path_style" | "force-path-style" | "forcePathStyle", Scheme::S3) => {
                put(&mut self.path_style, boolean("path_style", value)?).ok_or_else(duplicate)
            }
            ("profile", Scheme::S3) => put(&mut self.profile, some("profile", value, "give a profile's name")?).ok_or_else(duplicate),
            _ if is_credential(key) => Err(UrlError::Credentials { what: format!("the option {key:?}"), instead: scheme.environment() }),
            _ => Err(UrlError::UnknownOption { key: key.to_owned(), scheme: scheme.name(), allowed: scheme.allowed() }),
        }
    }
}

fn is_credential(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    key == "sig" || ["access", "key", "secret", "token", "password", "credential", "signature"].iter().any(|word| key.contains(word))
}

/// `None` where the slot is taken.
fn put<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    if slot.is_some() {
        return None;
    }
    *slot = Some(value);
    Some(())
}

fn some(key: &'static str, value: &str, allowed: &'static str) -> Result<String, UrlError> {
    if value.is_empty() || value.chars().any(char::is_control) {
        return Err(UrlError::InvalidOption { key, got: value.to_owned(), allowed });
    }
    Ok(value.to_owned())
}

/// The spellings that Litestream reads.
fn boolean(key: &'static str, value: &str) -> Result<bool, UrlError> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "t" | "yes" => Ok(true),
        "false" | "0" | "f" | "no" => Ok(false),
        _ => Err(UrlError::InvalidOption { key, got: value.to_owned(), allowed: BOOLEAN }),
    }
}

/// An endpoint with its scheme, without a slash at its end. One without a scheme is taken for https.
pub(super) fn endpoint(value: &str) -> Result<String, UrlError> {
    const ALLOWED: &str = "write http://host:port or https://host:port";
    let text = if value.contains("://") { value.to_owned() } else { format!("https://{value}") };
    let parsed = url::Url::parse(&text).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
    let parsed = parsed.ok_or_else(|| UrlError::InvalidOption {
        key: "endpoint",
        got: if value.contains('@') { "…".to_owned() } else { value.to_owned() },
        allowed: ALLOWED,
    })?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(UrlError::Credentials { what: "in the endpoint".to_owned(), instead: "the store's variables" });
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(UrlError::InvalidOption { key: "endpoint", got: "…".to_owned(), allowed: "it must have no query" });
    }
    Ok(parsed.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
