//! The `object_store` clients, from URL, options and environment.

use std::sync::Arc;

use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredential, Checksum};
use object_store::azure::{AzureConfigKey, AzureCredential, MicrosoftAzureBuilder};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::{BackoffConfig, Certificate, ClientOptions, HeaderValue, RetryConfig};

use super::about::{About, CredentialsSource, Told};
use super::credentials::{self, CredentialsError, Described, Recording, Secrets};
use super::env::Env;
use super::http::{Connector, HttpClients, one_line};
use super::open::{StoreOptions, setting_error};
use super::remote::Client;
use super::url::{Location, ReplicaUrl, endpoint as parse_endpoint};
use super::{StoreError, StoreErrorKind};

/// A client for the URL's store. `slash` says that keys begin with one.
pub(super) fn build(
    url: &ReplicaUrl,
    settings: &StoreOptions,
    env: &Env,
    (secrets, told): (&Secrets, &Told),
    slash: bool,
    clients: &Arc<HttpClients>,
) -> Result<Client, StoreError> {
    // Our copy of rustls; whoever installed one before us in it chose the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut plan = Plan { url, settings, env, secrets, told, clients, ca_bundle: Arc::default() };
    if let Some(path) = &settings.ca_bundle {
        plan.ca_bundle = std::fs::read(path).map_err(|e| plan.ca_error(path, &e))?.into();
    }
    match url.location() {
        Location::S3 { bucket, .. } => plan.s3(bucket, slash),
        Location::Gcs { bucket, .. } => plan.gcs(bucket),
        Location::Azure { account, container, .. } => plan.azure(account.as_deref(), container),
        Location::Folder { .. } => Err(setting_error(url, "a folder is no bucket")),
    }
}

struct Plan<'a> {
    url: &'a ReplicaUrl,
    settings: &'a StoreOptions,
    env: &'a Env,
    secrets: &'a Secrets,
    told: &'a Told,
    clients: &'a Arc<HttpClients>,
    /// What is in the file; empty without one.
    ca_bundle: Arc<[u8]>,
}

/// One attempt per request: retrying is the caller's.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, backoff: BackoffConfig::default(), retry_timeout: std::time::Duration::ZERO }
}

impl Plan<'_> {
    fn connector(&self, for_credentials: bool) -> Connector {
        let (clients, ca_bundle) = (Arc::clone(self.clients), Arc::clone(&self.ca_bundle));
        Connector { clients, ca_bundle, secrets: self.secrets.clone(), for_credentials, told: self.told.clone() }
    }

    fn error(&self, cause: impl std::fmt::Display) -> StoreError {
        setting_error(self.url, one_line(&cause.to_string()))
    }

    /// What the client for a store finds wrong with its settings, without the words that each of its errors begins with.
    fn refused(&self, error: &object_store::Error, advice: &'static str) -> StoreError {
        let text = error.to_string();
        let cause = text.strip_prefix("Generic ").and_then(|rest| rest.split_once(" error: ")).map_or(text.as_str(), |(_, cause)| cause);
        StoreError { advice, ..self.error(cause) }
    }

    fn ca_error(&self, path: &std::path::Path, why: &dyn std::fmt::Display) -> StoreError {
        StoreError { advice: CA_ADVICE, ..self.error(format_args!("ca_bundle {}: {why}", path.display())) }
    }

    fn credentials_error(&self, error: CredentialsError) -> StoreError {
        StoreError { kind: StoreErrorKind::Credentials, advice: error.advice, ..self.error(error.cause) }
    }

    /// The endpoint of the options, or else that of the environment.
    fn endpoint(&self, from_env: Option<&str>) -> Result<Option<String>, StoreError> {
        match (&self.settings.endpoint, from_env) {
            (Some(endpoint), _) => Ok(Some(endpoint.clone())),
            (None, Some(endpoint)) => parse_endpoint(endpoint).map(Some).map_err(|e| self.error(e)),
            (None, None) => Ok(None),
        }
    }

    fn http(&self, endpoint: Option<&str>) -> Result<ClientOptions, StoreError> {
        let plain = endpoint.is_some_and(|e| e.starts_with("http://"));
        if plain && self.settings.allow_http == Some(false) {
            let advice = "Write https:// before it, or allow_http=true where nobody else hears that network";
            return Err(StoreError { advice, ..self.error("the endpoint begins with http:// and allow_http is false") });
        }
        let agent = HeaderValue::from_static(concat!("replicated/", env!("CARGO_PKG_VERSION")));
        let mut options = ClientOptions::new()
            .with_user_agent(agent)
            .with_allow_http(self.settings.allow_http.unwrap_or(plain))
            .with_timeout(self.settings.request_timeout)
            .with_connect_timeout(self.settings.connect_timeout);
        if let Some(path) = &self.settings.ca_bundle {
            let certificates = Certificate::from_pem_bundle(&self.ca_bundle).map_err(|e| self.ca_error(path, &e))?;
            if certificates.is_empty() {
                return Err(self.ca_error(path, &"there is no certificate in it"));
            }
            options = certificates.into_iter().fold(options, ClientOptions::with_root_certificate);
        }
        Ok(options)
    }

    fn s3(&self, bucket: &str, slash: bool) -> Result<Client, StoreError> {
        let machine_http = self.http(None)?;
        let ambient = |region: Option<&str>| {
            AmazonS3Builder::new()
                .with_bucket_name(bucket)
                .with_region(self.settings.region.as_deref().or(region).unwrap_or(DEFAULT_REGION))
                .with_client_options(machine_http)
                .with_retry(no_retries())
                .with_http_connector(self.connector(true))
        };
        let aws = credentials::aws(self.env, self.settings.profile.as_deref(), ambient).map_err(|e| self.credentials_error(e))?;
        let region = self.settings.region.clone().or(aws.region).unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let endpoint = self.endpoint(aws.endpoint.as_deref())?;
        let mut base = self.bucket_url(bucket, &region, endpoint.as_deref())?;
        if slash {
            base.push('/');
        }
        let about = About { endpoint: Some(base.clone()), region: Some(region.clone()), credentials: Some(aws.source), clock: None };
        // "Virtual hosted" tells object_store to take the endpoint as it is.
        let builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(region)
            .with_endpoint(base)
            .with_virtual_hosted_style_request(true)
            .with_credentials(Arc::new(Recording::new(aws.provider, self.secrets, aws_secrets)))
            .with_client_options(self.http(endpoint.as_deref())?)
            .with_retry(no_retries())
            .with_http_connector(self.connector(false));
        let build = |builder: AmazonS3Builder| -> Result<Arc<AmazonS3>, StoreError> {
            builder.build().map(Arc::new).map_err(|e| self.refused(&e, ""))
        };
        let singly = build(builder.clone().with_config(object_store::aws::AmazonS3ConfigKey::DisableBulkDelete, "true"))?;
        let checksummed = build(builder.clone().with_checksum_algorithm(Checksum::SHA256))?;
        // A list of keys to delete would lack the slash that only our endpoint adds.
        let bucket = if slash { Arc::clone(&singly) } else { build(builder)? };
        Ok(Client {
            bucket,
            deletes_singly: Some(singly),
            checksummed: Some(checksummed),
            timestamp_key: "litestream-timestamp",
            content_type: None,
            completes_conditionally: true,
            about,
        })
    }

    /// The URL below which the bucket's objects are.
    fn bucket_url(&self, bucket: &str, region: &str, endpoint: Option<&str>) -> Result<String, StoreError> {
        // A certificate for *.s3.region.amazonaws.com does not cover names with dots.
        let path_style = self.settings.path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));
        let amazon = || {
            let country = if region.starts_with("cn-") { ".cn" } else { "" };
            format!("https://s3.{region}.amazonaws.com{country}")
        };
        let endpoint = endpoint.map_or_else(amazon, str::to_owned);
        if path_style {
            return Ok(format!("{endpoint}/{bucket}"));
        }
        let (scheme, host) = endpoint.split_once("://").ok_or_else(|| self.error("the endpoint has no scheme"))?;
        Ok(format!("{scheme}://{bucket}.{host}"))
    }

    fn about(&self, endpoint: &str, credentials: CredentialsSource) -> About {
        About { endpoint: Some(endpoint.to_owned()), credentials: Some(credentials), ..About::default() }
    }

    fn gcs(&self, bucket: &str) -> Result<Client, StoreError> {
        let endpoint = self.endpoint(None)?;
        let with = |connector: Connector| -> Result<GoogleCloudStorageBuilder, StoreError> {
            let mut builder = GoogleCloudStorageBuilder::new();
            if let Some(path) = self.env.get("SERVICE_ACCOUNT") {
                builder = builder.with_service_account_path(path);
            }
            for (name, value) in self.env.with_prefix("GOOGLE_") {
                if is_secret(name) {
                    self.secrets.add([value]);
                }
                // What the bucket is and how to connect are not for the environment to say.
                let key = name.to_ascii_lowercase().parse().ok();
                if let Some(key) = key.filter(|_| !matches!(name, "GOOGLE_BUCKET" | "GOOGLE_BUCKET_NAME")) {
                    builder = builder.with_config(key, value);
                }
            }
            if let Some(endpoint) = &endpoint {
                builder = builder.with_base_url(endpoint);
            }
            let http = self.http(endpoint.as_deref())?;
            Ok(builder.with_bucket_name(bucket).with_client_options(http).with_retry(no_retries()).with_http_connector(connector))
        };
        let build = |builder: GoogleCloudStorageBuilder| builder.build().map_err(|e| self.refused(&e, GCS_SETTING_ADVICE));
        let source = Arc::clone(build(with(self.connector(true))?)?.credentials());
        let described = Described::new(source, "Google's application default credentials or metadata server", GCS_ADVICE);
        let provider = Arc::new(Recording::new(Arc::new(described), self.secrets, gcp_secrets));
        let bucket = Arc::new(build(with(self.connector(false))?.with_credentials(provider))?);
        Ok(Client {
            bucket,
            deletes_singly: None,
            checksummed: None,
            timestamp_key: "litestream-timestamp",
            content_type: None,
            completes_conditionally: false,
            about: self.about(endpoint.as_deref().unwrap_or("https://storage.googleapis.com"), credentials::google(self.env)),
        })
    }

    fn azure(&self, account: Option<&str>, container: &str) -> Result<Client, StoreError> {
        let endpoint = self.endpoint(None)?;
        let with = |connector: Connector| -> Result<MicrosoftAzureBuilder, StoreError> {
            let mut builder = MicrosoftAzureBuilder::new();
            for (name, value) in self.env.with_prefix("AZURE_") {
                if is_secret(name) {
                    self.secrets.add([value]);
                }
                // Asking the `az` tool would run a process in the host.
                let runs_a_process = name == "AZURE_USE_AZURE_CLI" || value == "azure_cli";
                if runs_a_process || name == "AZURE_CONTAINER_NAME" {
                    continue;
                }
                if let Ok(key) = name.to_ascii_lowercase().parse() {
                    builder = builder.with_config(key, value);
                }
            }
            for (name, key) in
                [("LITESTREAM_AZURE_ACCOUNT_KEY", AzureConfigKey::AccessKey), ("LITESTREAM_AZURE_SAS_TOKEN", AzureConfigKey::SasKey)]
            {
                if let Some(value) = self.env.get(name).filter(|_| builder.get_config_value(&key).is_none()) {
                    self.secrets.add([value]);
                    builder = builder.with_config(key, value);
                }
            }
            if let Some(account) = account {
                builder = builder.with_account(account);
            }
            if let Some(endpoint) = &endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            let http = self.http(endpoint.as_deref())?;
            Ok(builder.with_container_name(container).with_client_options(http).with_retry(no_retries()).with_http_connector(connector))
        };
        let build = |builder: MicrosoftAzureBuilder| {
            let is_account_named = builder.get_config_value(&AzureConfigKey::AccountName).is_some();
            let advice = if is_account_named { AZURE_SETTING_ADVICE } else { AZURE_ACCOUNT_ADVICE };
            builder.build().map_err(|e| self.refused(&e, advice))
        };
        let at = endpoint.clone().unwrap_or_else(|| {
            let account = with(self.connector(true)).ok().and_then(|builder| builder.get_config_value(&AzureConfigKey::AccountName));
            format!("https://{}.blob.core.windows.net", account.unwrap_or_default())
        });
        let source = Arc::clone(build(with(self.connector(true))?)?.credentials());
        let described = Described::new(source, "Azure's identity service", AZURE_ADVICE);
        let provider = Arc::new(Recording::new(Arc::new(described), self.secrets, azure_secrets));
        let bucket = Arc::new(build(with(self.connector(false))?.with_credentials(provider))?);
        Ok(Client {
            bucket,
            deletes_singly: None,
            checksummed: None,
            // Azure's metadata names are identifiers, without hyphens.
            timestamp_key: "litestreamtimestamp",
            content_type: Some("application/octet-stream"),
            completes_conditionally: false,
            about: self.about(&at, credentials::azure(self.env)),
        })
    }
}

const DEFAULT_REGION: &str = "us-east-1";
const GCS_ADVICE: &str = "Set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file, or give the machine a service account";
const GCS_SETTING_ADVICE: &str = "Correct the key file that GOOGLE_APPLICATION_CREDENTIALS (or GOOGLE_SERVICE_ACCOUNT) names: it is the JSON that Google gives for a service account";
const AZURE_ACCOUNT_ADVICE: &str = "Write abs://account@container/path, or set AZURE_STORAGE_ACCOUNT_NAME";
const AZURE_SETTING_ADVICE: &str =
    "Set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN to what the portal shows, whole and without quotes";
const CA_ADVICE: &str = "Name a file with the authority's certificate in PEM (-----BEGIN CERTIFICATE-----) that this user may read";
const AZURE_ADVICE: &str = "Set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or give the machine an identity";

fn is_secret(variable: &str) -> bool {
    ["KEY", "SECRET", "TOKEN", "SAS", "PASSWORD"].iter().any(|word| variable.contains(word))
}

fn aws_secrets(credential: &AwsCredential) -> Vec<&str> {
    [Some(credential.key_id.as_str()), Some(credential.secret_key.as_str()), credential.token.as_deref()].into_iter().flatten().collect()
}

fn gcp_secrets(credential: &GcpCredential) -> Vec<&str> {
    vec![&credential.bearer]
}

fn azure_secrets(credential: &AzureCredential) -> Vec<&str> {
    match credential {
        // Only its signatures leave this process; the key itself comes from the environment and is known from there.
        AzureCredential::AccessKey(_) => Vec::new(),
        AzureCredential::SASToken(pairs) => pairs.iter().filter(|(name, _)| name == "sig").map(|(_, value)| value.as_str()).collect(),
        AzureCredential::BearerToken(token) => vec![token],
    }
}
