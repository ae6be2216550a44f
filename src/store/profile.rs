//! AWS profiles: `~/.aws/config` and `~/.aws/credentials`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::env::Env;
use crate::types::TimestampMs;

/// The two files, and the profile to look for in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProfileFiles {
    credentials: Option<PathBuf>,
    config: Option<PathBuf>,
    /// The profile's name.
    pub(super) name: String,
    /// Whether somebody named it, so that its absence is a mistake.
    pub(super) named: bool,
}

/// What a profile says.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) keys: Option<Keys>,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
    /// The setting by which it gets its credentials, where that is one that we do not support.
    pub(super) unsupported: Option<&'static str>,
    /// Until when its keys are good, where the tool that has put them there says so.
    pub(super) expires: Option<TimestampMs>,
}

/// An access key. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("region", &self.region).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// Why a profile cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProfileError {
    #[error("the AWS profile {name:?} is in none of {files}")]
    Missing { name: String, files: String },
    #[error("{}: {error}", path.display())]
    Unreadable { path: PathBuf, error: String },
    #[error("{} line {line}: {reason}", path.display())]
    Syntax { path: PathBuf, line: usize, reason: &'static str },
    #[error("the AWS profile {name:?} has {has} without {lacks}")]
    HalfAKey { name: String, has: &'static str, lacks: &'static str },
}

/// When the files were last written; compared to notice a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp([Option<(SystemTime, u64)>; 2]);

/// Settings that name other sources of credentials. A process is never run, for it would run in the host.
const UNSUPPORTED: [&str; 8] = [
    "credential_process",
    "sso_session",
    "sso_start_url",
    "source_profile",
    "credential_source",
    "role_arn",
    "web_identity_token_file",
    "login_session",
];

/// What tools that put short-lived keys into the file call their end.
const EXPIRIES: [&str; 3] = ["x_security_token_expires", "aws_credential_expiration", "aws_expiration"];

impl ProfileFiles {
    /// Where the AWS tools look, for the profile that the caller or `AWS_PROFILE` names, or `default`.
    pub(super) fn locate(env: &Env, name: Option<&str>) -> Self {
        let in_home = |file: &str| env.home().map(|home| home.join(".aws").join(file));
        let path = |variable: &str, file: &str| env.get(variable).map(|path| expand(env, path)).or_else(|| in_home(file));
        let name = name.or_else(|| env.get("AWS_PROFILE"));
        Self {
            credentials: path("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: path("AWS_CONFIG_FILE", "config"),
            name: name.unwrap_or("default").to_owned(),
            named: name.is_some(),
        }
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let files: Vec<_> = [&self.credentials, &self.config].into_iter().flatten().filter(|path| path.exists()).collect();
        let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        format!("the AWS profile {:?} ({})", self.name, files.join(", "))
    }

    /// When the files were last written.
    pub(super) fn stamp(&self) -> Stamp {
        let one = |path: &Option<PathBuf>| {
            let metadata = std::fs::metadata(path.as_ref()?).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        Stamp([one(&self.credentials), one(&self.config)])
    }

    /// Reads the profile. One that nobody named may be absent.
    pub(super) fn read(&self) -> Result<Profile, ProfileError> {
        let (mut settings, mut found) = (Settings::new(), false);
        let mut services = Settings::new();
        if let Some(path) = &self.config {
            let sections = load(path)?;
            let heading = format!("profile {}", self.name);
            // `[default]` needs no `profile ` before it, `[profile default]` wins where both are there.
            let bare = if self.name == "default" { sections.get("default") } else { None };
            for section in [bare, sections.get(&heading)].into_iter().flatten() {
                found = true;
                settings.extend(section.clone());
            }
            if let Some(section) = settings.get("services").and_then(|name| sections.get(&format!("services {name}"))) {
                services.extend(section.clone());
            }
        }
        if let Some(path) = &self.credentials
            && let Some(section) = load(path)?.remove(&self.name)
        {
            found = true;
            settings.extend(section);
        }
        if !found && self.named {
            let files: Vec<_> = [&self.credentials, &self.config].into_iter().flatten().map(|p| p.display().to_string()).collect();
            return Err(ProfileError::Missing { name: self.name.clone(), files: files.join(", ") });
        }
        self.interpret(&settings, &services)
    }

    fn interpret(&self, settings: &Settings, services: &Settings) -> Result<Profile, ProfileError> {
        let get = |name: &str| settings.get(name).filter(|value| !value.is_empty()).cloned();
        let half = |has, lacks| ProfileError::HalfAKey { name: self.name.clone(), has, lacks };
        let keys = match (get("aws_access_key_id"), get("aws_secret_access_key")) {
            (Some(id), Some(secret)) => Some(Keys { id, secret, token: get("aws_session_token") }),
            (Some(_), None) => return Err(half("aws_access_key_id", "aws_secret_access_key")),
            (None, Some(_)) => return Err(half("aws_secret_access_key", "aws_access_key_id")),
            (None, None) => None,
        };
        // A role is assumed even where there are keys, since they are those of the source profile.
        let unsupported = UNSUPPORTED.into_iter().find(|name| get(name).is_some() && (keys.is_none() || *name == "role_arn"));
        Ok(Profile {
            keys,
            region: get("region"),
            endpoint: services.get("s3.endpoint_url").cloned().or_else(|| get("endpoint_url")),
            unsupported,
            expires: EXPIRIES.into_iter().find_map(get).and_then(|at| TimestampMs::from_rfc3339(&at)),
        })
    }
}

fn expand(env: &Env, path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), env.home()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

type Settings = BTreeMap<String, String>;

fn load(path: &Path) -> Result<BTreeMap<String, Settings>, ProfileError> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(|(line, reason)| ProfileError::Syntax { path: path.to_owned(), line, reason }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(e) => Err(ProfileError::Unreadable { path: path.to_owned(), error: e.to_string() }),
    }
}

/// Reads the dialect of INI that the AWS tools share. Indented settings belong to the one before them: `s3 =` and then
/// `  endpoint_url = x` give `s3.endpoint_url`.
fn parse(text: &str) -> Result<BTreeMap<String, Settings>, (usize, &'static str)> {
    let mut sections: BTreeMap<String, Settings> = BTreeMap::new();
    let (mut section, mut parent): (Option<String>, Option<String>) = (None, None);
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let number = number + 1;
        let content = line.trim();
        if content.is_empty() || content.starts_with(['#', ';']) {
            continue;
        }
        if let Some(heading) = content.strip_prefix('[') {
            let (heading, _) = heading.split_once(']').ok_or((number, "a '[' without its ']'"))?;
            let heading = heading.split_whitespace().collect::<Vec<_>>().join(" ").replace('"', "");
            sections.entry(heading.clone()).or_default();
            (section, parent) = (Some(heading), None);
            continue;
        }
        let settings = section.as_ref().and_then(|name| sections.get_mut(name)).ok_or((number, "a setting before the first [section]"))?;
        let nested = line.starts_with([' ', '\t']) && parent.is_some();
        let Some((key, value)) = content.split_once('=') else {
            // The continuation of a value that is none of ours.
            if nested {
                continue;
            }
            return Err((number, "neither a [section] nor a setting"));
        };
        let (key, value) = (key.trim().to_ascii_lowercase(), uncommented(value).to_owned());
        if let (true, Some(parent)) = (nested, &parent) {
            settings.insert(format!("{parent}.{key}"), value);
        } else {
            parent = Some(key.clone());
            settings.insert(key, value);
        }
    }
    Ok(sections)
}

/// A comment behind a value begins with a space.
fn uncommented(value: &str) -> &str {
    let comment = [" #", " ;", "\t#", "\t;"].into_iter().filter_map(|mark| value.find(mark)).min();
    value[..comment.unwrap_or(value.len())].trim()
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
