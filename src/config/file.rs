//! `replicated.toml`: what holds for all databases, and what for those at some path.
//!
//! ```toml
//! replica = "s3://backups/{name}"
//! sync_interval = "500ms"
//!
//! [[database]]
//! path = "/srv/tenants/*/app.db"
//! replica = "s3://backups/{dir}/{name}"
//! durability = "remote"
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Problem, Source, closest};
use super::table::{self, OptionSpec};
use super::{Options, invalid, unknown};
use crate::logging::{PerProcess, event};

/// The environment variable that names the file, by an absolute path.
pub const CONFIG_VARIABLE: &str = "REPLICATED_CONFIG";
/// The file's name where it lies beside a database.
pub const FILE_NAME: &str = "replicated.toml";
/// A longer one is none.
const MOST_BYTES: u64 = 1 << 20;
/// The table of databases at some path, and the key that says which.
const DATABASE: &str = "database";
const PATH: &str = "path";

/// A star stops at a slash, and nothing is special about a name that begins with a dot.
const EXACT: MatchOptions = MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// A configuration file, all of which has been understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    path: PathBuf,
    general: Vec<Entry>,
    databases: Vec<Section>,
}

/// One option in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) spec: &'static OptionSpec,
    pub(super) text: String,
    pub(super) source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Section {
    pattern: Pattern,
    entries: Vec<Entry>,
}

impl ConfigFile {
    /// The file that counts for a database: the one that the environment names, otherwise the one beside it, where that belongs to this process's user or to
    /// root: in a directory that all may write to, another one's must not say where a database is sent.
    ///
    /// # Errors
    /// Where there is one and it cannot be read, or anything in it is unknown or malformed.
    pub fn find(database: Option<&Path>, env: &[(String, String)]) -> Result<Option<Self>, ConfigError> {
        if let Some((_, path)) = env.iter().find(|(name, path)| name == CONFIG_VARIABLE && !path.is_empty()) {
            let path = Path::new(path);
            // The host's working directory is not ours to rely on.
            return if path.is_absolute() {
                Self::read(path).map(Some)
            } else {
                Err(failed(path, 0, "REPLICATED_CONFIG is to name it by an absolute path, such as /etc/replicated.toml"))
            };
        }
        let Some(beside) = database.and_then(Self::beside) else { return Ok(None) };
        let trusted = match is_trusted(&beside) {
            None => return Ok(None),
            // Whoever may write to the directory may have put another one there since.
            Some(true) => Some(Self::open_beside(&beside)?).filter(|file| file.metadata().is_ok_and(|metadata| is_ours(&metadata))),
            Some(false) => None,
        };
        match trusted {
            Some(file) => Self::read_from(&beside, file).map(Some),
            None => {
                event!(
                    Warn, "config_ignored", PerProcess;
                    "{} is not heeded: it belongs to another user, or everybody may write to it. Name it with {CONFIG_VARIABLE}, or change its owner and mode",
                    beside.display()
                );
                Ok(None)
            }
        }
    }

    /// Where the file of a database lies that `find` looks at where the environment names none.
    fn beside(database: &Path) -> Option<PathBuf> {
        database.parent().map(|directory| directory.join(FILE_NAME))
    }

    /// The file beside a database where `find` does not heed it.
    #[must_use]
    pub fn unheeded(database: &Path, env: &[(String, String)]) -> Option<PathBuf> {
        let is_named = env.iter().any(|(name, path)| name == CONFIG_VARIABLE && !path.is_empty());
        Self::beside(database).filter(|beside| !is_named && is_trusted(beside) == Some(false))
    }

    /// Reads that file.
    ///
    /// # Errors
    /// Where it cannot be read, or anything in it is unknown or malformed.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_from(path, File::open(path).map_err(|error| unreadable(path, &error))?)
    }

    /// Opens one that was not named, and waits for nobody who would write to it, were it a pipe by now.
    fn open_beside(path: &Path) -> Result<File, ConfigError> {
        use std::os::unix::fs::OpenOptionsExt;
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        opened.map_err(|error| unreadable(path, &error))
    }

    fn read_from(path: &Path, file: File) -> Result<Self, ConfigError> {
        let mut text = String::new();
        file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(|error| unreadable(path, &error))?;
        if text.len() as u64 > MOST_BYTES {
            return Err(failed(path, 0, "it is longer than 1 MiB, and no configuration file"));
        }
        Self::parse(path, &text)
    }

    /// Understands the text of that file.
    ///
    /// # Errors
    /// Where anything in it is unknown or malformed.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let line_at = |at: usize| text.get(..at).map_or(1, |before| u32::try_from(before.matches('\n').count() + 1).unwrap_or(u32::MAX));
        let parsed = DeTable::parse(text).map_err(|error| {
            failed(path, error.span().map_or(1, |span| line_at(span.start)), &format!("it is no TOML: {}", error.message()))
        })?;
        let mut file = Self { path: path.to_owned(), general: Vec::new(), databases: Vec::new() };
        for (key, value) in parsed.get_ref() {
            match value.get_ref() {
                DeValue::Array(sections) if key.get_ref() == DATABASE => {
                    for section in sections.iter() {
                        file.databases.push(Section::of(path, section, &line_at)?);
                    }
                }
                _ if key.get_ref() == DATABASE => {
                    return Err(failed(path, line_at(key.span().start), "databases are listed as [[database]], in double brackets"));
                }
                _ => file.general.push(Entry::of(path, key.get_ref(), line_at(key.span().start), value.get_ref())?),
            }
        }
        Ok(file)
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The patterns of its databases, in their order.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.databases.iter().map(|section| section.pattern.as_str())
    }

    /// For each of its sections a path that it is meant for, to see what counts there. None for a pattern of which no such path can be told.
    pub fn examples(&self) -> impl Iterator<Item = PathBuf> {
        self.databases.iter().map(|section| &section.pattern).filter_map(|pattern| {
            let path = example(pattern.as_str());
            pattern.matches_path_with(&path, EXACT).then_some(path)
        })
    }

    /// Whether it has that database replicated.
    #[must_use]
    pub fn asks_for(&self, database: &Path) -> bool {
        self.entries_for(Some(database)).find(|entry| entry.spec.name == "replica").is_some_and(|entry| !entry.text.is_empty())
    }

    /// What it says of a database, what counts more first: of its sections a later one over an earlier one, and all of them over what holds in general.
    pub(super) fn entries_for(&self, database: Option<&Path>) -> impl Iterator<Item = &Entry> {
        let matches = move |section: &&Section| database.is_some_and(|path| section.pattern.matches_path_with(path, EXACT));
        self.databases.iter().rev().filter(matches).flat_map(|section| &section.entries).chain(&self.general)
    }
}

impl Section {
    fn of(file: &Path, section: &Spanned<DeValue<'_>>, line_at: &dyn Fn(usize) -> u32) -> Result<Self, ConfigError> {
        let line = line_at(section.span().start);
        let Some(table) = section.get_ref().as_table() else {
            return Err(failed(file, line, "databases are listed as [[database]], each with a path and options"));
        };
        let (mut pattern, mut entries) = (None, Vec::new());
        for (key, value) in table {
            let line = line_at(key.span().start);
            if key.get_ref() != PATH {
                entries.push(Entry::of(file, key.get_ref(), line, value.get_ref())?);
                continue;
            }
            let Some(text) = value.get_ref().as_str().filter(|text| !text.is_empty()) else {
                return Err(failed(file, line, "path is to be the path of a database, or a pattern such as \"/srv/*/app.db\""));
            };
            if text.starts_with('~') {
                return Err(failed(file, line, "path begins with ~, which only a shell understands: write the whole path"));
            }
            let absolute = absolute(file, text);
            pattern = Some(Pattern::new(&absolute).map_err(|error| failed(file, line, &format!("path is no pattern: {}", error.msg)))?);
        }
        let pattern = pattern.ok_or_else(|| failed(file, line, "a [[database]] has no path: which one is meant?"))?;
        Ok(Self { pattern, entries })
    }
}

/// A path that a pattern matches: stars and question marks match themselves, and of a set the first character is taken.
fn example(pattern: &str) -> PathBuf {
    let (mut path, mut rest) = (String::new(), pattern);
    while let Some((before, set)) = rest.split_once('[') {
        path.push_str(before);
        let mut characters = set.chars();
        path.extend(characters.next());
        // A `]` that is the first one belongs to the set.
        rest = characters.as_str().split_once(']').map_or("", |(_, rest)| rest);
    }
    path.push_str(rest);
    path.into()
}

/// A pattern that begins with no slash is meant from the file's directory on, which is named as SQLite names a database: without symbolic links.
fn absolute(file: &Path, pattern: &str) -> String {
    if pattern.starts_with('/') {
        return pattern.to_owned();
    }
    let directory = file.parent().map(|directory| directory.canonicalize().unwrap_or_else(|_| directory.to_owned()));
    let (mut directory, mut rest) = (directory.unwrap_or_default(), pattern);
    loop {
        if let Some(below) = rest.strip_prefix("./") {
            rest = below;
        } else if let Some(above) = rest.strip_prefix("../") {
            directory.pop();
            rest = above;
        } else {
            let directory = directory.to_str().map(Pattern::escape).unwrap_or_default();
            return format!("{}/{rest}", directory.trim_end_matches('/'));
        }
    }
}

impl Entry {
    fn of(file: &Path, key: &str, line: u32, value: &DeValue<'_>) -> Result<Self, ConfigError> {
        let source = Source::File { path: file.display().to_string().into(), line };
        let Some(spec) = table::find(key) else {
            let mut error = unknown(key, source);
            if let (Problem::Unknown { did_you_mean }, Some(other)) = (&mut error.problem, closest(key, [DATABASE, PATH].into_iter())) {
                did_you_mean.get_or_insert(other);
            }
            return Err(error);
        };
        let text = match value {
            DeValue::String(text) => text.clone().into_owned(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
            DeValue::Boolean(switch) => switch.to_string(),
            _ => return Err(invalid(spec, source, "", "it is to be a text in quotes, a number, true or false".to_owned())),
        };
        // Also what counts for no database now.
        Options::default().set(spec, &text).map_err(|why| invalid(spec, source.clone(), &text, why))?;
        Ok(Self { spec, text, source })
    }
}

/// Whether a file is there, and whose it is.
fn is_trusted(path: &Path) -> Option<bool> {
    std::fs::metadata(path).ok().map(|metadata| is_ours(&metadata))
}

fn is_ours(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    const WRITABLE_BY_ALL: u32 = 0o002;
    let is_ours = metadata.uid() == 0 || metadata.uid() == rustix::process::geteuid().as_raw();
    is_ours && metadata.mode() & WRITABLE_BY_ALL == 0
}

fn unreadable(path: &Path, error: &std::io::Error) -> ConfigError {
    let (why, next) = match error.kind() {
        ErrorKind::InvalidData => ("it is no text in UTF-8".to_owned(), "Save it as such, or correct its path"),
        ErrorKind::PermissionDenied => (error.to_string(), "Correct its owner or mode"),
        _ => (error.to_string(), "Correct its path"),
    };
    failed(path, 0, &format!("the configuration file cannot be read: {why}. {next} ({CONFIG_VARIABLE})"))
}

/// With line 0 for the whole file.
fn failed(path: &Path, line: u32, why: &str) -> ConfigError {
    ConfigError {
        name: FILE_NAME.to_owned(),
        source: Source::File { path: path.display().to_string().into(), line },
        problem: Problem::File(why.to_owned()),
    }
}
