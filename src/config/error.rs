//! Why options were refused, in one line and without secrets.

use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A parameter of the database's URI (or a flag of the command-line tool).
    Uri,
    /// An environment variable.
    Env,
    /// A configuration file.
    File {
        /// Its path.
        path: Box<str>,
        /// The line, counted from 1.
        line: u32,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri => f.write_str("URI"),
            Self::Env => f.write_str("environment"),
            Self::File { path, line: 0 } => f.write_str(&printable(path)),
            Self::File { path, line } => write!(f, "{}, line {line}", printable(path)),
        }
    }
}

/// What was wrong with an option.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// There is no option of that name. The value is not kept: it may be a secret given to the wrong name.
    Unknown {
        /// The name that was probably meant.
        did_you_mean: Option<String>,
    },
    /// The same URI parameter twice.
    Duplicate,
    /// A configuration file that cannot be used, and why.
    File(String),
    /// A value that is not allowed.
    Invalid {
        /// What it got, shortened and without secrets.
        got: String,
        /// Why that is wrong.
        why: String,
        /// What is allowed.
        allowed: String,
    },
}

/// An option, or the file of them, that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The parameter, the environment variable or the key.
    pub name: String,
    /// Which of them it is.
    pub source: Source,
    /// What was wrong.
    pub problem: Problem,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.source {
            Source::Uri => "parameter",
            Source::Env => "environment variable",
            Source::File { .. } => {
                write!(f, "{}: ", self.source)?;
                "option"
            }
        };
        let name = printable(&self.name);
        match &self.problem {
            Problem::File(why) => f.write_str(&printable(why)),
            Problem::Unknown { did_you_mean: Some(meant) } => write!(f, "unknown {kind} {name}: did you mean {meant}?"),
            Problem::Unknown { did_you_mean: None } => {
                write!(f, "unknown {kind} {name}; allowed are {}", allowed_names(&self.source))
            }
            Problem::Duplicate => write!(f, "{kind} {name} is given twice; give it once"),
            Problem::Invalid { got, why, allowed } => {
                write!(f, "{kind} {name}: got \"{}\", {why}; allowed is {allowed}", printable(got))
            }
        }
    }
}

fn allowed_names(source: &Source) -> String {
    let names = super::table::OPTIONS.iter().map(|spec| match source {
        Source::Uri | Source::File { .. } => spec.name.to_owned(),
        Source::Env => spec.env_name(),
    });
    names.collect::<Vec<_>>().join(", ")
}

/// A text that fits in one line of a log, whatever it was.
fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 120;
    let mut line: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        line.push_str("...");
    }
    line
}

/// A replica or endpoint URL without anything that may be a secret: no user info, and of the query only what is known to be harmless.
///
/// Works on text that is no valid URL too, since that is when it is printed.
pub(super) fn without_secrets(url: &str) -> String {
    const HARMLESS: &[&str] = &["endpoint", "region", "path_style", "force-path-style", "allow_http", "profile"];
    let url = url.split('#').next().unwrap_or_default();
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let mut shown = without_user_info(base);
    for (i, pair) in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).enumerate() {
        shown.push(if i == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, value)) if HARMLESS.contains(&name) => {
                shown.push_str(name);
                shown.push('=');
                shown.push_str(&without_user_info(value));
            }
            Some((name, _)) => {
                shown.push_str(name);
                shown.push_str("=***");
            }
            None => shown.push_str("***"),
        }
    }
    shown
}

/// Azure names the account before the `@`; elsewhere that is where keys and passwords stand. A password may hold a `/`, so the
/// last `@` of the whole text counts, at the price of hiding too much of a path that holds one.
fn without_user_info(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, rest)| format!("***@{rest}"));
    };
    match rest.rsplit_once('@') {
        Some((account, rest)) if scheme == "abs" && !account.contains([':', '/', '%']) => format!("{scheme}://{account}@{rest}"),
        Some((_, rest)) => format!("{scheme}://***@{rest}"),
        None => text.to_owned(),
    }
}

/// The candidate that the user probably meant.
pub(super) fn closest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let name: String = name.chars().take(64).map(|c| c.to_ascii_lowercase()).collect();
    candidates
        .map(|candidate| (edit_distance(&name, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 4) && *distance < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (to, above) in b.iter().zip(row.iter_mut().skip(1)) {
            let cost = (diagonal + usize::from(from != *to)).min(left + 1).min(*above + 1);
            diagonal = *above;
            *above = cost;
            left = cost;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        assert_eq!(edit_distance("", ""), 0);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("sync_intervall", "sync_interval"), 1);
        assert_eq!(edit_distance("flaw", "lawn"), 2);
    }

    #[test]
    fn urls_are_shown_without_secrets() {
        assert_eq!(without_secrets("s3://bucket/path?region=eu"), "s3://bucket/path?region=eu");
        assert_eq!(without_secrets("s3://AKIA:s3cr/et@bucket/path"), "s3://***@bucket/path");
        assert_eq!(without_secrets("s3://b/p?sig=abc&endpoint=http://u:p@h:9000&x"), "s3://b/p?sig=***&endpoint=http://***@h:9000&***");
        assert_eq!(without_secrets("abs://account@container/path"), "abs://account@container/path");
        assert_eq!(without_secrets("abs://account:key@container/path"), "abs://***@container/path");
        assert_eq!(without_secrets("user:pass@host"), "***@host");
    }
}
