//! From a URL to a store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::env::Env;
use super::folder::FolderStore;
use super::http::HttpClients;
use super::remote::RemoteStore;
use super::url::{Location, ReplicaUrl};
use super::{Store, StoreError, StoreErrorKind};

/// How to reach a store. What the URL's query says wins over these, and these win over the environment.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Where the store's API is, such as `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// The region (S3).
    pub region: Option<String>,
    /// The bucket in the path rather than in the host name (S3). Unset: in the path if there is an endpoint.
    pub path_style: Option<bool>,
    /// Unencrypted connections. Unset: only to an endpoint that begins with `http://`.
    pub allow_http: Option<bool>,
    /// A PEM file with certificates to trust beside the system's.
    pub ca_bundle: Option<PathBuf>,
    /// The AWS profile to take credentials from (S3); leaves out the keys of the environment.
    pub profile: Option<String>,
    /// How long one request may take, its body included.
    pub request_timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            path_style: None,
            allow_http: None,
            ca_bundle: None,
            profile: None,
            // A part of 8 MiB within this takes 1.1 Mbit/s.
            request_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// Opens the store that a URL names. Uses no network: what is wrong with the bucket or the credentials shows at the first operation.
///
/// # Errors
///
/// What is wrong with the settings: an unreadable certificate file, a profile that does not exist, a key without its secret.
pub fn open(url: &ReplicaUrl, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    open_with_env(url, options, &Env::process())
}

/// As `open`, with an environment of the caller's choice in place of the process's.
///
/// # Errors
///
/// As `open`.
pub fn open_with_env(url: &ReplicaUrl, options: &StoreOptions, env: &Env) -> Result<Arc<dyn Store>, StoreError> {
    open_sharing(url, options, env, &Arc::default())
}

/// As `open_with_env`, with the HTTP clients of other stores. The requests of all of them must run on one runtime.
pub(crate) fn open_sharing(
    url: &ReplicaUrl,
    options: &StoreOptions,
    env: &Env,
    clients: &Arc<HttpClients>,
) -> Result<Arc<dyn Store>, StoreError> {
    match url.location() {
        Location::Folder { path } => Ok(Arc::new(FolderStore::open(url, path))),
        Location::S3 { .. } | Location::Gcs { .. } | Location::Azure { .. } => {
            let settings = options.merged(url)?;
            Ok(Arc::new(RemoteStore::open(url, &settings, env, clients)?))
        }
    }
}

impl StoreOptions {
    /// These, with those of the URL before them.
    fn merged(&self, url: &ReplicaUrl) -> Result<Self, StoreError> {
        let from_url = url.options().clone();
        let endpoint = match (from_url.endpoint, &self.endpoint) {
            (Some(endpoint), _) => Some(endpoint),
            (None, Some(endpoint)) => Some(super::url::endpoint(endpoint).map_err(|e| setting_error(url, e.to_string()))?),
            (None, None) => None,
        };
        Ok(Self {
            endpoint,
            region: from_url.region.or_else(|| self.region.clone()),
            path_style: from_url.path_style.or(self.path_style),
            allow_http: from_url.allow_http.or(self.allow_http),
            ca_bundle: from_url.ca_bundle.or_else(|| self.ca_bundle.clone()),
            profile: from_url.profile.or_else(|| self.profile.clone()),
            ..*self
        })
    }
}

/// A setting that makes a store impossible to open.
pub(super) fn setting_error(url: &ReplicaUrl, cause: impl Into<String>) -> StoreError {
    StoreError {
        kind: StoreErrorKind::Protocol,
        operation: "open",
        object: url.to_string(),
        cause: cause.into(),
        advice: "",
        retry_after: None,
    }
}
