//! `replicated config`: whether a configuration file is right, and what counts for a database.

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand};
use replicated::config::{CONFIG_VARIABLE, ConfigFile, OPTIONS, Options, Resolved};
use replicated::store::{self, ReplicaUrl};
use serde_json::json;

use crate::{Failure, text};

/// Check a configuration file, or show which options count for a database and where each comes from.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read a configuration file and the environment, and say what is wrong with them
    Check {
        /// The file [default: the one that REPLICATED_CONFIG names]
        file: Option<PathBuf>,
    },
    /// Show every option as it counts for a database
    Show {
        /// Its path, or the URI that the application opens (file:app.db?...); without it what holds for all
        database: Option<String>,
        /// Show only what is not left to its default
        #[arg(long)]
        given: bool,
        /// Write to standard output as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Check { file } => check(file.as_deref()),
        Command::Show { database, given, json } => show(database.as_deref(), *given, *json),
    }
}

/// What the opens of databases are refused for.
fn refused(what: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure::Failed {
        what: what.to_owned(),
        why: why.to_string(),
        advice: "correct that, and check again; docs/configuration.md has every option, `replicated config show` tells what counts"
            .to_owned(),
        json: false,
    }
}

fn check(file: Option<&Path>) -> Result<(), Failure> {
    let wrong = |error| refused("the configuration is not used as it is: every open would be refused", &error);
    let environment = environment();
    let found = match file {
        Some(path) => Some(ConfigFile::read(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned())).map_err(wrong)?),
        None => ConfigFile::find(None, &environment).map_err(wrong)?,
    };
    let Some(found) = found else {
        return Err(Failure::Usage(format!("which file? Name it, or set {CONFIG_VARIABLE}")));
    };
    let general = Options::resolve_for(None, &[], &environment, Some(&found)).map_err(wrong)?;
    stores(&general, Path::new("/directory/app.db"))?;
    // What contradicts each other only where a section is added to what holds for all.
    for path in found.examples() {
        let of_it = |error| refused(&format!("a database such as {} would not be opened", path.display()), &error);
        let resolved = Options::resolve_for(Some(&path), &[], &environment, Some(&found)).map_err(of_it)?;
        stores(&resolved, &path)?;
    }
    let patterns: Vec<String> = found.patterns().map(|pattern| format!("  {pattern}\n")).collect();
    let sections = if patterns.is_empty() { "no [[database]]".to_owned() } else { format!("{} [[database]]:", patterns.len()) };
    text::to_stdout(&format!("{}: all right, {sections}\n{}", found.path().display(), patterns.concat()));
    Ok(())
}

/// Whether the replicas of a database can be opened as they are given, which uses no network.
fn stores(resolved: &Resolved, database: &Path) -> Result<(), Failure> {
    let second = resolved.options.second();
    for (name, options) in [("replica", Some(&resolved.options)), ("replica2", second.as_ref())] {
        let Some((options, url)) = options.and_then(|options| Some((options, options.replica_for(database)?))) else { continue };
        let opened = ReplicaUrl::parse(&url)
            .map_err(|error| error.to_string())
            .and_then(|url| store::open(&url, &options.store_options()).map_err(|error| error.to_string()));
        if let Err(why) = opened {
            let from = resolved.given.get(name).map(|given| format!("{}: ", given.source)).unwrap_or_default();
            let what = format!("a database such as {} would not be opened", database.display());
            return Err(refused(&what, &format!("{from}option {name}: {why}")));
        }
    }
    Ok(())
}

fn show(database: Option<&str>, only_given: bool, json: bool) -> Result<(), Failure> {
    let of_config = |error| refused("a database would not be opened", &error);
    let (path, parameters) = match database {
        Some(text) => path_and_parameters(text).map(|(path, parameters)| (Some(path), parameters))?,
        None => (None, Vec::new()),
    };
    let environment = environment();
    let file = ConfigFile::find(path.as_deref(), &environment).map_err(of_config)?;
    let unheeded = path.as_deref().and_then(|path| ConfigFile::unheeded(path, &environment));
    let Resolved { options, given } = Options::resolve_for(path.as_deref(), &parameters, &environment, file.as_ref()).map_err(of_config)?;
    let rows = OPTIONS.iter().filter(|spec| !only_given || given.contains_key(spec.name)).map(|spec| {
        given.get(spec.name).map_or_else(
            || (spec.name, spec.default.to_owned(), "default".to_owned()),
            |given| (spec.name, given.shown(spec.name), given.source.to_string()),
        )
    });
    let rows: Vec<(&str, String, String)> = rows.collect();
    // With the placeholders replaced, and without what may be a secret: as the bucket is named in logs.
    let urls =
        path.as_deref().map(|path| [Some(&options), options.second().as_ref()].map(|options| options.and_then(|o| o.replica_for(path))));
    let [first, second] = urls.unwrap_or_default().map(|url| url.map(|url| replicated::config::without_secrets(&url)));
    if json {
        let options: serde_json::Map<_, _> =
            rows.into_iter().map(|(name, value, source)| (name.to_owned(), json!({ "value": value, "from": source }))).collect();
        text::to_stdout_json(&json!({
            "database": path, "file": file.as_ref().map(ConfigFile::path), "file_not_heeded": unheeded, "replica_url": first, "replica2_url": second, "options": options
        }));
        return Ok(());
    }
    let width = |column: fn(&(&str, String, String)) -> usize| rows.iter().map(column).max().unwrap_or_default();
    let (names, values) = (width(|row| row.0.len()), width(|row| row.1.chars().count()).min(60));
    let mut shown = String::new();
    if let Some(file) = &file {
        shown.push_str(&format!("file: {}\n", file.path().display()));
    }
    if let Some(file) = &unheeded {
        shown.push_str(&format!(
            "not heeded: {}, which belongs to another user, or everybody may write to it (name it with {CONFIG_VARIABLE}, or change its owner and mode)\n",
            file.display()
        ));
    }
    for (name, url) in [("replicated to", first), ("and to", second)] {
        if let Some(url) = url {
            shown.push_str(&format!("{name}: {url}\n"));
        }
    }
    for (name, value, source) in &rows {
        shown.push_str(&format!("{name:names$}  {value:values$}  {source}\n"));
    }
    text::to_stdout(&shown);
    Ok(())
}

/// As SQLite sees them: an absolute path without symbolic links, and the parameters of a URI.
fn path_and_parameters(text: &str) -> Result<(PathBuf, Vec<(String, String)>), Failure> {
    let (path, parameters) = match text.strip_prefix("file:") {
        None => (text.to_owned(), Vec::new()),
        Some(rest) => {
            let (path, query) = rest.split('#').next().unwrap_or(rest).split_once('?').unwrap_or((rest, ""));
            let path = path.strip_prefix("//").map_or(path, |path| path.find('/').and_then(|at| path.get(at..)).unwrap_or(path));
            (decoded(path), pairs(query))
        }
    };
    let path = Path::new(&path);
    let found = path.canonicalize().or_else(|_| match (path.parent().filter(|p| !p.as_os_str().is_empty()), path.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().map(|parent| parent.join(name)),
        _ => std::path::absolute(path),
    });
    let found = found.or_else(|_| std::path::absolute(path));
    found.map(|path| (path, parameters)).map_err(|error| Failure::Usage(format!("{text}: {error}")))
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let pair =
        |pair: &str| pair.split_once('=').map_or_else(|| (decoded(pair), String::new()), |(name, value)| (decoded(name), decoded(value)));
    query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect()
}

/// Percent escapes, as SQLite decodes them: a plus is a plus.
fn decoded(text: &str) -> String {
    let one = text.replace('+', "%2B").replace('=', "%3D").replace('&', "%26");
    url::form_urlencoded::parse(one.as_bytes()).next().map(|(name, _)| name.into_owned()).unwrap_or_default()
}

/// The variables of this process that are text.
pub(crate) fn environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?))).collect()
}
