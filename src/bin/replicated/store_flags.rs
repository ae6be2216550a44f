//! The flags that say where a bucket is and how to reach it; the same names as the extension's options.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use replicated::config::{ConfigError, ConfigFile, Options, Resolved, Source};
use replicated::store::{ReplicaUrl, Store};

use crate::Failure;

/// How to reach the bucket. Credentials come from where the AWS tools, Google's and Azure's look for them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Store options (each also by environment: REPLICATED_ENDPOINT, ...)")]
pub(crate) struct StoreFlags {
    /// Endpoint of an S3-compatible store, such as http://127.0.0.1:9000
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Region of the bucket
    #[arg(long)]
    region: Option<String>,
    /// Whether the bucket stands in the path of requests instead of the host name
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    path_style: Option<String>,
    /// Whether an endpoint without TLS is allowed
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_http: Option<String>,
    /// PEM file with certificates of authorities to trust beside the system's
    #[arg(long, value_name = "FILE")]
    ca_bundle: Option<String>,
    /// Profile in ~/.aws
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Limit for opening a connection, such as 5s
    #[arg(long, value_name = "DURATION")]
    connect_timeout: Option<String>,
    /// Limit for one request, such as 30s
    #[arg(long, value_name = "DURATION")]
    request_timeout: Option<String>,
    /// What to log on stderr: error, warn, info, debug or off [default: warn]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// The form of these lines: text or json [default: text]
    #[arg(long, value_name = "FORM")]
    log_format: Option<String>,
}

/// What is a parameter to the extension was given as a flag here.
fn refused(error: ConfigError) -> Failure {
    let text = error.to_string();
    let flag = || Some(format!("--{}{}", error.name.replace('_', "-"), text.strip_prefix("parameter ")?.strip_prefix(&error.name)?));
    let text = if error.source == Source::Uri { flag().unwrap_or(text) } else { text };
    Failure::Usage(text)
}

impl StoreFlags {
    /// Opens the bucket. Flags win over the environment.
    pub(crate) fn open(&self, url: &str) -> Result<Arc<dyn Store>, Failure> {
        let options = self.options(None)?;
        let url = ReplicaUrl::parse(url).map_err(|error| Failure::Usage(error.to_string()))?;
        replicated::store::open(&url, &options.store_options()).map_err(|error| Failure::Usage(error.to_string()))
    }

    /// All options, as an open of that database would have them, with the flags before them.
    pub(crate) fn options(&self, database: Option<&Path>) -> Result<Options, Failure> {
        let environment = crate::config::environment();
        let flags = self.as_parameters();
        let file = ConfigFile::find(None, &environment).map_err(refused)?;
        let Resolved { options, given } = Options::resolve_for(database, &flags, &environment, file.as_ref()).map_err(refused)?;
        let level = if given.contains_key("log_level") { options.log_level } else { log::LevelFilter::Warn };
        crate::log_to_stderr(level, options.log_format);
        Ok(options)
    }

    fn as_parameters(&self) -> Vec<(String, String)> {
        let given = [
            ("endpoint", &self.endpoint),
            ("region", &self.region),
            ("path_style", &self.path_style),
            ("allow_http", &self.allow_http),
            ("ca_bundle", &self.ca_bundle),
            ("profile", &self.profile),
            ("connect_timeout", &self.connect_timeout),
            ("request_timeout", &self.request_timeout),
            ("log_level", &self.log_level),
            ("log_format", &self.log_format),
        ];
        given.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.clone()?))).collect()
    }
}
