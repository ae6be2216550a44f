//! Where the credentials of a store come from.
//!
//! For S3 the order is that of the AWS SDK that Litestream uses: a profile that the URL or the caller names; keys in the environment
//! (Litestream's own variables too); a web identity; a profile of the shared files; the container's service; the instance's.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use object_store::CredentialProvider;
use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use object_store::client::{HttpError, HttpErrorKind};
use parking_lot::Mutex;

use super::StoreErrorKind;
use super::about::CredentialsSource;
use super::env::Env;
use super::http::{self, one_line};
use super::profile::{Keys, Profile, ProfileFiles, Stamp};
use super::remote_error::chain;
use crate::types::TimestampMs;

/// Credentials that could not be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{cause}")]
pub(super) struct CredentialsError {
    pub(super) kind: StoreErrorKind,
    pub(super) cause: String,
    pub(super) advice: &'static str,
}

impl CredentialsError {
    fn new(cause: impl Into<String>, advice: &'static str) -> Self {
        Self { kind: StoreErrorKind::Credentials, cause: cause.into(), advice }
    }
}

impl From<CredentialsError> for object_store::Error {
    fn from(error: CredentialsError) -> Self {
        Self::Unauthenticated { path: String::new(), source: Box::new(error) }
    }
}

const NO_CREDENTIALS: &str = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role";
const UNSUPPORTED: &str = "Put an access key into the profile, or have the tool that knows this source put one into the environment (aws configure export-credentials)";

/// What the environment and the profile say about S3.
pub(super) struct Aws {
    pub(super) provider: AwsCredentialProvider,
    pub(super) source: CredentialsSource,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
}

/// Finds the source of credentials and the settings that come with it. `ambient` builds a client that takes what the machine offers.
pub(super) fn aws(
    env: &Env,
    profile: Option<&str>,
    ambient: impl FnOnce(Option<&str>) -> AmazonS3Builder,
) -> Result<Aws, CredentialsError> {
    let files = ProfileFiles::locate(env, profile);
    let keys = environment_keys(env)?.filter(|_| profile.is_none());
    let web_identity = profile.is_none() && env.get("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() && env.get("AWS_ROLE_ARN").is_some();
    // Keys in the environment are good without files; those may then be unreadable or lack what AWS_PROFILE names.
    let read = files.read().map_err(|e| CredentialsError::new(e.to_string(), "Correct the file, or AWS_PROFILE"));
    let shared = if keys.is_some() || web_identity { read.unwrap_or_default() } else { read? };
    let region = env.first(&["AWS_REGION", "AWS_DEFAULT_REGION"]).map(str::to_owned).or_else(|| shared.region.clone());
    let endpoint = env.first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "LITESTREAM_S3_ENDPOINT"]);
    let endpoint = endpoint.map(str::to_owned).or_else(|| shared.endpoint.clone());
    let (provider, source): (AwsCredentialProvider, _) = match keys {
        Some(keys) => {
            let source = environment_source(env, &keys);
            (Arc::new(object_store::StaticCredentialProvider::new(credential(keys))), source)
        }
        None if web_identity => from_machine(env, &region, ambient)?,
        None => {
            let is_temporary = shared.keys.as_ref().is_some_and(|keys| keys.token.is_some());
            let source = CredentialsSource { from: files.describe(), expires: shared.expires, is_temporary, is_renewed: false };
            match ProfileProvider::take(files, shared)? {
                Some(provider) => (Arc::new(provider), source),
                None => from_machine(env, &region, ambient)?,
            }
        }
    };
    Ok(Aws { provider, source, region, endpoint })
}

fn environment_source(env: &Env, keys: &Keys) -> CredentialsSource {
    let names = ["AWS_ACCESS_KEY_ID", "LITESTREAM_ACCESS_KEY_ID"];
    let name = names.into_iter().find(|name| env.get(name).is_some()).unwrap_or_default();
    let with = if keys.token.is_some() { ", with AWS_SESSION_TOKEN" } else { "" };
    CredentialsSource {
        from: format!("the environment ({name}{with})"),
        // What puts short-lived keys there says so, as `aws configure export-credentials` does.
        expires: env.get("AWS_CREDENTIAL_EXPIRATION").filter(|_| keys.token.is_some()).and_then(TimestampMs::from_rfc3339),
        is_temporary: keys.token.is_some(),
        is_renewed: false,
    }
}

/// Where Google's are looked for, in the order in which they are.
pub(super) fn google(env: &Env) -> CredentialsSource {
    let variables = ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"];
    let named = variables.into_iter().chain(["GOOGLE_APPLICATION_CREDENTIALS"]).find(|name| env.get(name).is_some());
    let left = env.home().map(|home| home.join(".config/gcloud/application_default_credentials.json")).filter(|file| file.exists());
    let from = match (named, left) {
        (Some(name), _) => format!("a key file or key ({name})"),
        (None, Some(file)) => format!("what `gcloud auth application-default login` has left ({})", file.display()),
        (None, None) => "this machine's metadata service (its service account)".to_owned(),
    };
    CredentialsSource { from, is_renewed: true, ..CredentialsSource::default() }
}

/// Where Azure's are looked for.
pub(super) fn azure(env: &Env) -> CredentialsSource {
    let first = |names: &[&'static str]| names.iter().copied().find(|name| env.get(name).is_some());
    let keys = ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "LITESTREAM_AZURE_ACCOUNT_KEY"];
    let tokens = ["AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN", "LITESTREAM_AZURE_SAS_TOKEN"];
    if let Some(name) = first(&keys) {
        return CredentialsSource { from: format!("the environment ({name})"), ..CredentialsSource::default() };
    }
    if let Some(name) = first(&tokens) {
        let until = env.get(name).and_then(|token| token.trim_start_matches('?').split('&').find_map(|part| part.strip_prefix("se=")));
        let until = until.map(|until| until.replace("%3A", ":").replace("%3a", ":"));
        let expires = until.and_then(|until| TimestampMs::from_rfc3339(&until));
        return CredentialsSource { from: format!("the environment ({name})"), expires, is_temporary: true, is_renewed: false };
    }
    let from = if first(&["AZURE_CLIENT_SECRET", "AZURE_STORAGE_CLIENT_SECRET"]).is_some() {
        "a service principal (AZURE_CLIENT_SECRET)"
    } else if first(&["AZURE_FEDERATED_TOKEN_FILE"]).is_some() {
        "a workload identity (AZURE_FEDERATED_TOKEN_FILE)"
    } else {
        "this machine's identity service (a managed identity)"
    };
    CredentialsSource { from: from.to_owned(), is_renewed: true, ..CredentialsSource::default() }
}

fn credential(keys: Keys) -> AwsCredential {
    AwsCredential { key_id: keys.id, secret_key: keys.secret, token: keys.token }
}

fn environment_keys(env: &Env) -> Result<Option<Keys>, CredentialsError> {
    let id = env.first(&["AWS_ACCESS_KEY_ID", "LITESTREAM_ACCESS_KEY_ID"]);
    let secret = env.first(&["AWS_SECRET_ACCESS_KEY", "LITESTREAM_SECRET_ACCESS_KEY"]);
    match (id, secret) {
        (Some(id), Some(secret)) => {
            // A session token belongs to a key of AWS's own variables.
            let token = env.get("AWS_ACCESS_KEY_ID").and_then(|_| env.get("AWS_SESSION_TOKEN"));
            Ok(Some(Keys { id: id.to_owned(), secret: secret.to_owned(), token: token.map(str::to_owned) }))
        }
        (None, None) => Ok(None),
        (Some(_), None) => Err(CredentialsError::new("AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY", "Set both or none")),
        (None, Some(_)) => Err(CredentialsError::new("AWS_SECRET_ACCESS_KEY is set without AWS_ACCESS_KEY_ID", "Set both or none")),
    }
}

/// The variables by which a machine, a container or a cluster hands out credentials.
const MACHINE: [&str; 8] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_IMDSV1_FALLBACK",
];

fn from_machine(
    env: &Env,
    region: &Option<String>,
    ambient: impl FnOnce(Option<&str>) -> AmazonS3Builder,
) -> Result<(AwsCredentialProvider, CredentialsSource), CredentialsError> {
    let machine = |from: &str| CredentialsSource { from: from.to_owned(), is_renewed: true, ..CredentialsSource::default() };
    let container = env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some() || env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI").is_some();
    // What an error names, and what was there where it works.
    let (source, from) = if env.get("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() {
        let source = "the web identity (AWS_WEB_IDENTITY_TOKEN_FILE)";
        (source, source)
    } else if container {
        let source = "the container's credentials service";
        (source, source)
    } else if env.get("AWS_EC2_METADATA_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
        let cause = "no credentials in the environment or in a profile, and AWS_EC2_METADATA_DISABLED is set";
        return Ok((Arc::new(Refusing(CredentialsError::new(cause, NO_CREDENTIALS))), machine("nowhere")));
    } else {
        ("the environment, a profile or this machine's metadata service", "this machine's metadata service (its role)")
    };
    let ambient = ambient(region.as_deref());
    let ambient = match env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        Some(endpoint) => ambient.with_metadata_endpoint(endpoint),
        None => ambient,
    };
    let builder = MACHINE.iter().fold(ambient, |builder, name| match (env.get(name), name.to_ascii_lowercase().parse()) {
        (Some(value), Ok(key)) => builder.with_config(key, value),
        _ => builder,
    });
    let built = builder.build().map_err(|e| CredentialsError::new(one_line(&e.to_string()), NO_CREDENTIALS))?;
    Ok((Arc::new(Described::new(Arc::clone(built.credentials()), source, NO_CREDENTIALS)), machine(from)))
}

/// No source at all.
#[derive(Debug)]
struct Refusing(CredentialsError);

impl CredentialProvider for Refusing {
    type Credential = AwsCredential;

    fn get_credential<'life0, 'async_trait>(&'life0 self) -> BoxFuture<'async_trait, object_store::Result<Arc<AwsCredential>>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        async { Err(self.0.clone().into()) }.boxed()
    }
}

/// A profile's keys, read again when its files change: tools renew short-lived keys there.
///
/// Looking at two files costs microseconds, so it happens for every request, and in place.
struct ProfileProvider {
    files: ProfileFiles,
    last: Mutex<(Stamp, Arc<AwsCredential>)>,
}

impl ProfileProvider {
    /// `None` where the profile has no keys and names no other source.
    fn take(files: ProfileFiles, profile: Profile) -> Result<Option<Self>, CredentialsError> {
        let stamp = files.stamp();
        let Some(keys) = supported(&files, profile)? else { return Ok(None) };
        Ok(Some(Self { files, last: Mutex::new((stamp, Arc::new(credential(keys)))) }))
    }

    fn current(&self) -> Result<Arc<AwsCredential>, CredentialsError> {
        // Taken before reading, so that a write in between is noticed the next time.
        let stamp = self.files.stamp();
        let mut last = self.last.lock();
        if last.0 != stamp {
            let profile = self.files.read().map_err(|e| CredentialsError::new(e.to_string(), "Correct the file"))?;
            let keys = supported(&self.files, profile)?;
            let cause = || format!("the AWS profile {:?} no longer has an access key", self.files.name);
            *last = (stamp, Arc::new(credential(keys.ok_or_else(|| CredentialsError::new(cause(), NO_CREDENTIALS))?)));
        }
        Ok(Arc::clone(&last.1))
    }
}

fn supported(files: &ProfileFiles, profile: Profile) -> Result<Option<Keys>, CredentialsError> {
    match profile.unsupported {
        Some(setting) => {
            let cause = format!("the AWS profile {:?} gets its credentials by {setting}, which is not supported here", files.name);
            Err(CredentialsError::new(cause, UNSUPPORTED))
        }
        None => Ok(profile.keys),
    }
}

impl fmt::Debug for ProfileProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProfileProvider").field("files", &self.files).finish_non_exhaustive()
    }
}

impl CredentialProvider for ProfileProvider {
    type Credential = AwsCredential;

    fn get_credential<'life0, 'async_trait>(&'life0 self) -> BoxFuture<'async_trait, object_store::Result<Arc<AwsCredential>>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        async { Ok(self.current()?) }.boxed()
    }
}

/// A source that asks somebody over the network; says so when it fails.
pub(super) struct Described<T> {
    inner: Arc<dyn CredentialProvider<Credential = T>>,
    source: &'static str,
    advice: &'static str,
    has_worked: AtomicBool,
}

impl<T> Described<T> {
    pub(super) fn new(inner: Arc<dyn CredentialProvider<Credential = T>>, source: &'static str, advice: &'static str) -> Self {
        Self { inner, source, advice, has_worked: AtomicBool::new(false) }
    }

    fn failure(&self, error: &object_store::Error) -> CredentialsError {
        let refused = http::last_refusal().filter(|refusal| refusal.by_credentials_source);
        let broken = chain(error).find_map(|e| e.downcast_ref::<HttpError>());
        let (kind, detail) = match (broken, refused) {
            // A source that has worked before and cannot be reached now will be back. One that never has is not there.
            (Some(e), _) if self.has_worked.load(Ordering::Relaxed) => match e.kind() {
                HttpErrorKind::Timeout => (StoreErrorKind::Timeout, e.to_string()),
                _ => (StoreErrorKind::Unreachable, e.to_string()),
            },
            (Some(e), _) => (StoreErrorKind::Credentials, e.to_string()),
            (None, Some(r)) if r.status >= 500 => (StoreErrorKind::Server, format!("HTTP {} {} {}", r.status, r.code, r.message)),
            (None, Some(r)) => (StoreErrorKind::Credentials, format!("HTTP {} {} {}", r.status, r.code, r.message)),
            (None, None) => (StoreErrorKind::Credentials, error.to_string()),
        };
        CredentialsError { kind, cause: one_line(&format!("no credentials from {}: {detail}", self.source)), advice: self.advice }
    }
}

impl<T> fmt::Debug for Described<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Described").field("source", &self.source).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> CredentialProvider for Described<T> {
    type Credential = T;

    fn get_credential<'life0, 'async_trait>(&'life0 self) -> BoxFuture<'async_trait, object_store::Result<Arc<T>>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        async {
            let credential = self.inner.get_credential().await.map_err(|e| self.failure(&e))?;
            self.has_worked.store(true, Ordering::Relaxed);
            Ok(credential)
        }
        .boxed()
    }
}

/// What must never be said. Filled with what was handed to the signer, and with the secrets of the environment.
#[derive(Clone, Default)]
pub(super) struct Secrets(Arc<Mutex<Vec<String>>>);

impl Secrets {
    /// Remembers a few of them, the newest first.
    pub(super) fn add<'a>(&self, secrets: impl IntoIterator<Item = &'a str>) {
        const REMEMBERED: usize = 32;
        let mut known = self.0.lock();
        for secret in secrets {
            // A shorter one would blot out words; no store issues any.
            if secret.len() >= 8 && !known.iter().any(|k| k == secret) {
                known.insert(0, secret.to_owned());
                known.truncate(REMEMBERED);
            }
        }
    }

    /// The text without them.
    pub(super) fn redact(&self, text: &str) -> String {
        self.0.lock().iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

/// Remembers what it hands out.
pub(super) struct Recording<T> {
    inner: Arc<dyn CredentialProvider<Credential = T>>,
    secrets: Secrets,
    of: fn(&T) -> Vec<&str>,
}

impl<T> Recording<T> {
    pub(super) fn new(inner: Arc<dyn CredentialProvider<Credential = T>>, secrets: &Secrets, of: fn(&T) -> Vec<&str>) -> Self {
        Self { inner, secrets: secrets.clone(), of }
    }
}

impl<T> fmt::Debug for Recording<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recording")
    }
}

impl<T: Send + Sync + 'static> CredentialProvider for Recording<T> {
    type Credential = T;

    fn get_credential<'life0, 'async_trait>(&'life0 self) -> BoxFuture<'async_trait, object_store::Result<Arc<T>>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        async {
            let credential = self.inner.get_credential().await?;
            self.secrets.add((self.of)(&credential));
            Ok(credential)
        }
        .boxed()
    }
}
