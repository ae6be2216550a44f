//! The options of a replicated database: URI parameters over environment variables over a file over defaults.
//!
//! Pure, but for `ConfigFile::find`: everything is passed in, nothing is read or opened here. What is unknown or malformed is an error that says what would
//! be right, because an option that is silently ignored is found out on the day of the restore.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::store::StoreOptions;
use crate::types::Txid;

mod durability;
mod error;
mod file;
mod table;
mod upkeep;
mod value;

pub use durability::{Durability, WaitFor};
pub use error::{ConfigError, Problem, Source};
pub use file::{CONFIG_VARIABLE, ConfigFile, FILE_NAME};
pub use table::{Kind, OPTIONS, OptionSpec};
pub use upkeep::Upkeep;

/// Reads a time such as `500ms`, `10s`, `2m` or `1h`.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    value::duration(text)
}

/// A replica's or an endpoint's URL without anything in it that may be a secret.
#[must_use]
pub fn without_secrets(url: &str) -> String {
    error::without_secrets(url)
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// To the host's `sqlite3_log`.
    Sqlite,
    /// To standard error.
    Stderr,
    /// To a file, by its absolute path.
    File(PathBuf),
}

/// What a log line looks like on stderr and in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// The options of one database. `OPTIONS` describes each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The replica's URL as given, `{name}` and `{dir}` not yet replaced; see `replica_for`. `None`: pass-through.
    pub replica: Option<String>,
    /// The second replica's URL, in the same form; see `second`. `None`: there is one.
    pub replica2: Option<String>,
    /// Whether an open restores a database that is not there.
    pub restore_if_missing: bool,
    /// Whether it may do so from the second replica.
    pub restore_from_any: bool,
    /// See `OPTIONS`.
    pub restore_wait: Duration,
    /// See `OPTIONS`.
    pub restore_threads: u32,
    /// Whether commits fail once another writer has gone on with the replica.
    pub readonly_on_conflict: bool,
    /// How long the lease lasts that allows to write to the replica; zero for none.
    pub lease: Duration,
    /// See `OPTIONS`.
    pub lease_wait: Duration,
    /// See `OPTIONS`.
    pub sync_interval: Duration,
    /// See `OPTIONS`.
    pub burst: u32,
    /// See `OPTIONS`.
    pub durability: Durability,
    /// See `OPTIONS`.
    pub wait_for: WaitFor,
    /// See `OPTIONS`.
    pub max_lag: Duration,
    /// See `OPTIONS`.
    pub ack_timeout: Duration,
    /// See `OPTIONS`.
    pub close_timeout: Duration,
    /// See `OPTIONS`.
    pub sync_timeout: Duration,
    /// Whether checkpoints are run by a thread of the extension, ahead of SQLite's own.
    pub checkpoint_in_background: bool,
    /// See `OPTIONS`.
    pub max_memory_bytes: u64,
    /// See `OPTIONS`.
    pub max_local_bytes: u64,
    /// See `OPTIONS`.
    pub connect_timeout: Duration,
    /// See `OPTIONS`.
    pub request_timeout: Duration,
    /// See `OPTIONS`.
    pub log: LogTarget,
    /// See `OPTIONS`.
    pub log_level: LevelFilter,
    /// See `OPTIONS`.
    pub log_format: LogFormat,
    /// See `OPTIONS`.
    pub log_max_bytes: u64,
    /// Where metrics are told; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// `None`: the store decides, from the URL and its own environment variables. So with all that follow.
    pub endpoint: Option<String>,
    /// See `OPTIONS`.
    pub region: Option<String>,
    /// See `OPTIONS`.
    pub path_style: Option<bool>,
    /// See `OPTIONS`.
    pub allow_http: Option<bool>,
    /// See `OPTIONS`.
    pub ca_bundle: Option<PathBuf>,
    /// See `OPTIONS`.
    pub profile: Option<String>,
    /// Whether the process that uploads maintains the bucket too.
    pub maintenance: bool,
    /// How.
    pub upkeep: Upkeep,
    /// How often it verifies what the bucket has; zero for never.
    pub verify_every: Duration,
    /// See `OPTIONS`.
    pub refuse_lost_tail: bool,
    /// See `OPTIONS`.
    pub adopt: Option<Txid>,
    /// See `OPTIONS`.
    pub adopt2: Option<Txid>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            replica: None,
            replica2: None,
            restore_if_missing: false,
            restore_from_any: false,
            restore_wait: Duration::from_secs(600),
            restore_threads: 8,
            readonly_on_conflict: false,
            lease: Duration::ZERO,
            lease_wait: Duration::from_secs(120),
            sync_interval: Duration::from_secs(1),
            burst: 4,
            durability: Durability::Local,
            wait_for: WaitFor::Both,
            max_lag: Duration::from_secs(10),
            ack_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
            sync_timeout: Duration::from_secs(30),
            checkpoint_in_background: false,
            max_memory_bytes: 32 << 20,
            max_local_bytes: 4 << 30,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(60),
            log: LogTarget::Sqlite,
            log_level: LevelFilter::Info,
            log_format: LogFormat::Text,
            log_max_bytes: 16 << 20,
            metrics: None,
            endpoint: None,
            region: None,
            path_style: None,
            allow_http: None,
            ca_bundle: None,
            profile: None,
            maintenance: true,
            upkeep: Upkeep::default(),
            verify_every: Duration::ZERO,
            refuse_lost_tail: false,
            adopt: None,
            adopt2: None,
        }
    }
}

impl Options {
    /// As `resolve_for`, without a file.
    ///
    /// # Errors
    ///
    /// As `resolve_for`.
    pub fn resolve(uri: &[(String, String)], env: &[(String, String)]) -> Result<Self, ConfigError> {
        Self::resolve_for(None, uri, env, None).map(|resolved| resolved.options)
    }

    /// Reads the parameters of a database's URI, the environment of the process, and what a file says of that database, or for want of one of all.
    /// Parameters and environment may hold what is none of ours: SQLite's own parameters and those of drivers, and every variable that does not begin with `REPLICATED_`.
    ///
    /// An empty environment variable counts as not set. An empty `replica` parameter switches off what the environment and the file say.
    ///
    /// # Errors
    ///
    /// On the first parameter, then the first variable, that is unknown, malformed or given twice.
    pub fn resolve_for(
        database: Option<&Path>,
        uri: &[(String, String)],
        env: &[(String, String)],
        file: Option<&ConfigFile>,
    ) -> Result<Resolved, ConfigError> {
        let mut options = Self::default();
        let mut given = BTreeMap::new();
        for (name, text) in uri {
            let spec = match table::find(name) {
                Some(spec) => spec,
                None if table::SQLITE_PARAMETERS.contains(&name.as_str()) || name.starts_with(table::DRIVERS_PREFIX) => continue,
                None => return Err(unknown(name, Source::Uri)),
            };
            if given.insert(spec.name, Given { source: Source::Uri, text: text.clone() }).is_some() {
                return Err(ConfigError { name: name.clone(), source: Source::Uri, problem: Problem::Duplicate });
            }
            options.set(spec, text).map_err(|why| invalid(spec, Source::Uri, text, why))?;
        }
        for (name, text) in env {
            let Some(spec) = option_of_variable(name)? else { continue };
            if !text.is_empty() && !given.contains_key(spec.name) {
                options.set(spec, text).map_err(|why| invalid(spec, Source::Env, text, why))?;
                given.insert(spec.name, Given { source: Source::Env, text: text.clone() });
            }
        }
        for entry in file.into_iter().flat_map(|file| file.entries_for(database)) {
            if !given.contains_key(entry.spec.name) {
                options.set(entry.spec, &entry.text).map_err(|why| invalid(entry.spec, entry.source.clone(), &entry.text, why))?;
                given.insert(entry.spec.name, Given { source: entry.source.clone(), text: entry.text.clone() });
            }
        }
        if options.replica.is_none()
            && let Some(text) = options.replica2.take()
            // One that is switched off is both.
            && !given.contains_key("replica")
            && let (Some(spec), Some(given)) = (table::find("replica2"), given.get("replica2"))
        {
            return Err(invalid(spec, given.source.clone(), &text, "there is no replica beside it".to_owned()));
        }
        options.upkeep.agrees().map_err(|(name, why)| contradiction(name, &given, why))?;
        Ok(Resolved { options, given })
    }

    /// Whether a parameter of a URI that says nothing of us is an option all the same, or a slip of one: where the environment alone asks for
    /// replication, the application's URIs may have parameters for others.
    #[must_use]
    pub fn is_meant(name: &str) -> bool {
        /// Any name of a few letters is near to a short option's.
        const TELLING_LETTERS: usize = 5;
        table::find(name).is_some()
            || name.len() >= TELLING_LETTERS && error::closest(name, table::OPTIONS.iter().map(|spec| spec.name)).is_some()
    }

    /// The replica's URL for a database, by its path.
    #[must_use]
    pub fn replica_for(&self, database: &Path) -> Option<String> {
        let name = |path: Option<&Path>| url_encoded(path.and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default());
        // A name that looks like the other placeholder is encoded.
        Some(self.replica.as_ref()?.replace("{name}", &name(Some(database))).replace("{dir}", &name(database.parent())))
    }

    /// The same options for the second replica, as if it were the only one; `None` where there is none.
    #[must_use]
    pub fn second(&self) -> Option<Self> {
        let second = self.replica2.clone().filter(|_| self.replica.is_some())?;
        Some(Self { replica: Some(second), replica2: None, adopt: self.adopt2, adopt2: None, ..self.clone() })
    }

    /// What of these concerns the store.
    #[must_use]
    pub fn store_options(&self) -> StoreOptions {
        StoreOptions {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style,
            allow_http: self.allow_http,
            ca_bundle: self.ca_bundle.clone(),
            profile: self.profile.clone(),
            request_timeout: self.request_timeout,
            connect_timeout: self.connect_timeout,
        }
    }

    fn set(&mut self, spec: &OptionSpec, text: &str) -> Result<(), String> {
        match spec.name {
            "replica" => self.replica = replica(text)?,
            "replica2" => self.replica2 = replica(text)?,
            "restore_from" => self.restore_from_any = one_of(text, ["first", "any"])?,
            "restore_wait" => self.restore_wait = duration_within(spec, text)?,
            "restore_threads" => self.restore_threads = count_within(spec, text)?,
            "restore" => self.restore_if_missing = one_of(text, ["never", "if-missing"])?,
            "on_conflict" => self.readonly_on_conflict = one_of(text, ["continue", "readonly"])?,
            // Long enough to be renewed over a network.
            "lease" => self.lease = zero_or(spec, text, table::SHORTEST_LEASE, "200ms or more, or 0s for none")?,
            "lease_wait" => self.lease_wait = duration_within(spec, text)?,
            "sync_interval" => self.sync_interval = duration_within(spec, text)?,
            "burst" => self.burst = count_within(spec, text)?,
            "durability" => self.durability = Durability::parse(text).ok_or("that is none of the three")?,
            "wait_for" => self.wait_for = WaitFor::parse(text).ok_or("that is none of the three")?,
            "max_lag" => self.max_lag = duration_within(spec, text)?,
            "ack_timeout" => self.ack_timeout = duration_within(spec, text)?,
            "close_timeout" => self.close_timeout = duration_within(spec, text)?,
            "sync_timeout" => self.sync_timeout = duration_within(spec, text)?,
            "checkpoint" => self.checkpoint_in_background = one_of(text, ["inline", "background"])?,
            "max_memory" => self.max_memory_bytes = bytes_within(spec, text)?,
            "max_local" => self.max_local_bytes = bytes_within(spec, text)?,
            "connect_timeout" => self.connect_timeout = duration_within(spec, text)?,
            "request_timeout" => self.request_timeout = duration_within(spec, text)?,
            "log" => self.log = log_target(text)?,
            "log_level" => self.log_level = log_level(text)?,
            "log_format" => self.log_format = if one_of(text, ["text", "json"])? { LogFormat::Json } else { LogFormat::Text },
            "log_max_bytes" => self.log_max_bytes = bytes_within(spec, text)?,
            "metrics" => self.metrics = Some(text.parse().map_err(|_| "that is no address with a port")?),
            "endpoint" => self.endpoint = Some(non_empty(text)?),
            "region" => self.region = Some(non_empty(text)?),
            "path_style" => self.path_style = Some(value::switch(text)?),
            "allow_http" => self.allow_http = Some(value::switch(text)?),
            "ca_bundle" => self.ca_bundle = Some(non_empty(text)?.into()),
            "profile" => self.profile = Some(non_empty(text)?),
            "maintenance" => self.maintenance = !one_of(text, ["on", "off"])?,
            "verify_every" => self.verify_every = zero_or(spec, text, table::LEAST_VERIFY, "1m or more, or 0s for never")?,
            name if Upkeep::has(name) => self.upkeep.set(name, text)?,
            "refuse_lost_tail" => self.refuse_lost_tail = value::switch(text)?,
            "adopt" => self.adopt = Some(Txid::from_hex(text).ok_or("that is no TXID")?),
            "adopt2" => self.adopt2 = Some(Txid::from_hex(text).ok_or("that is no TXID")?),
            other => return Err(format!("the option {other} has no place to be kept")),
        }
        Ok(())
    }
}

/// What was found, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The options.
    pub options: Options,
    /// Those that are not left to their default, by name.
    pub given: BTreeMap<&'static str, Given>,
}

/// What was said of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Where.
    pub source: Source,
    text: String,
}

impl Given {
    /// What was said, without what may be a secret.
    #[must_use]
    pub fn shown(&self, name: &str) -> String {
        shown(name, &self.text)
    }
}

/// Two options that are right by themselves and do not go together.
fn contradiction(name: &str, given: &BTreeMap<&'static str, Given>, why: String) -> ConfigError {
    let (source, got) = given.get(name).map_or((Source::Uri, String::new()), |given| (given.source.clone(), given.text.clone()));
    match table::find(name) {
        Some(spec) => invalid(spec, source, &got, why),
        None => ConfigError { name: name.to_owned(), source, problem: Problem::Invalid { got, why, allowed: String::new() } },
    }
}

fn unknown(name: &str, source: Source) -> ConfigError {
    let of_sqlite = if source == Source::Uri { table::SQLITE_PARAMETERS } else { &[] };
    let candidates = table::OPTIONS.iter().map(|spec| spec.name).chain(of_sqlite.iter().copied());
    let did_you_mean = error::closest(name, candidates);
    ConfigError { name: name.to_owned(), source, problem: Problem::Unknown { did_you_mean } }
}

/// The option that an environment variable sets; `None` for variables that are none of ours or no options.
fn option_of_variable(name: &str) -> Result<Option<&'static OptionSpec>, ConfigError> {
    if !name.starts_with(table::ENV_PREFIX) || name.starts_with(table::ENV_TESTS) || table::ENV_OTHERS.contains(&name) {
        return Ok(None);
    }
    if let Some(spec) = table::OPTIONS.iter().find(|spec| spec.env_name() == name) {
        return Ok(Some(spec));
    }
    let names: Vec<String> = table::OPTIONS.iter().map(OptionSpec::env_name).collect();
    let did_you_mean = error::closest(name, names.iter().map(String::as_str).chain(table::ENV_OTHERS.iter().copied()));
    Err(ConfigError { name: name.to_owned(), source: Source::Env, problem: Problem::Unknown { did_you_mean } })
}

fn invalid(spec: &OptionSpec, source: Source, text: &str, why: String) -> ConfigError {
    let name = if source == Source::Env { spec.env_name() } else { spec.name.to_owned() };
    ConfigError { name, source, problem: Problem::Invalid { got: shown(spec.name, text), why, allowed: spec.kind.allowed() } }
}

/// An option's value without what may be a secret.
fn shown(name: &str, text: &str) -> String {
    match name {
        "replica" | "replica2" | "endpoint" => error::without_secrets(text),
        _ => text.to_owned(),
    }
}

/// Whether the store understands the URL is the store's to say; here only the form and the placeholders are looked at.
fn replica(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let Some((scheme, rest)) = text.split_once("://") else { return Err("it has no scheme".to_owned()) };
    if scheme.is_empty() || rest.is_empty() {
        return Err("it is incomplete".to_owned());
    }
    let without_name = text.replace("{name}", "").replace("{dir}", "");
    match without_name.find(['{', '}']) {
        Some(at) if without_name.get(at..).is_some_and(|rest| rest.starts_with('{') && rest.contains('}')) => {
            Err("it has an unknown placeholder: there are {name} and {dir}".to_owned())
        }
        Some(_) => Err("it has a brace that belongs to no placeholder: there are {name} and {dir}".to_owned()),
        None => Ok(Some(text.to_owned())),
    }
}

fn duration_within(spec: &OptionSpec, text: &str) -> Result<Duration, String> {
    let duration = value::duration(text)?;
    match spec.kind {
        Kind::Duration { min, .. } if duration < min => Err("that is too short".to_owned()),
        Kind::Duration { max, .. } if duration > max => Err("that is too long".to_owned()),
        _ => Ok(duration),
    }
}

/// Nothing, or as long as that.
fn zero_or(spec: &OptionSpec, text: &str, least: Duration, allowed: &str) -> Result<Duration, String> {
    let duration = duration_within(spec, text)?;
    if duration.is_zero() || duration >= least { Ok(duration) } else { Err(format!("that is too short: {allowed}")) }
}

fn count_within(spec: &OptionSpec, text: &str) -> Result<u32, String> {
    let count = value::count(text)?;
    match spec.kind {
        Kind::Count { min, .. } if count < min => Err("that is too small".to_owned()),
        Kind::Count { max, .. } if count > max => Err("that is too large".to_owned()),
        _ => Ok(count),
    }
}

fn bytes_within(spec: &OptionSpec, text: &str) -> Result<u64, String> {
    let bytes = value::bytes(text)?;
    match spec.kind {
        Kind::Bytes { min, .. } if bytes < min => Err("that is too small".to_owned()),
        Kind::Bytes { max, .. } if bytes > max => Err("that is too large".to_owned()),
        _ => Ok(bytes),
    }
}

/// Whether it is the second of two words.
fn one_of(text: &str, [first, second]: [&str; 2]) -> Result<bool, String> {
    if text == first || text == second { Ok(text == second) } else { Err("that is none of the two".to_owned()) }
}

fn log_target(text: &str) -> Result<LogTarget, String> {
    match text {
        "sqlite" => Ok(LogTarget::Sqlite),
        "stderr" => Ok(LogTarget::Stderr),
        path if path.starts_with('/') => Ok(LogTarget::File(path.into())),
        // The host's working directory is not ours to rely on.
        _ => Err("that is neither a target nor an absolute path".to_owned()),
    }
}

fn log_level(text: &str) -> Result<LevelFilter, String> {
    match text {
        "error" => Ok(LevelFilter::Error),
        "warn" => Ok(LevelFilter::Warn),
        "info" => Ok(LevelFilter::Info),
        "debug" => Ok(LevelFilter::Debug),
        "off" => Ok(LevelFilter::Off),
        _ => Err("that is no level".to_owned()),
    }
}

fn non_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// A file name as one segment of a URL's path.
fn url_encoded(file_name: &str) -> String {
    let mut encoded = String::with_capacity(file_name.len());
    for byte in file_name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
