//! What all events have in common: a name, the database they are about, and where there are such a TXID and a cause.
//!
//! Said once, so that the text form and the structured one name the same: `event!(Warn, "lease_failed", database, cause = error; "it could not be let
//! go: {error}")` becomes the message `/srv/app.db: it could not be let go: …`, and the fields `event`, `database` and `cause`. What a field says stands in
//! the text as well: an application's own logger may know nothing of fields.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::replicator::database::Database;
use crate::replicator::local::{FIRST, Paths, SECOND};
use crate::replicator::tail::Tail;
use crate::types::Txid;

/// What an event is about.
pub(crate) trait Subject {
    /// The database, where it is about one.
    fn database(&self) -> Option<&Path>;

    /// Which replica of it, where it is not the first.
    fn replica(&self) -> &'static str {
        ""
    }

    /// What a line begins with.
    fn prefix(&self) -> Prefix<'_> {
        Prefix { database: self.database(), separator: ": " }
    }

    /// What a field says.
    fn name(&self) -> Prefix<'_> {
        Prefix { database: self.database(), separator: "" }
    }
}

impl Subject for Path {
    fn database(&self) -> Option<&Path> {
        Some(self)
    }
}

impl Subject for PathBuf {
    fn database(&self) -> Option<&Path> {
        Some(self)
    }
}

impl Subject for Paths {
    fn database(&self) -> Option<&Path> {
        Some(&self.database)
    }

    fn replica(&self) -> &'static str {
        if self.is_second() { "replica2" } else { "" }
    }
}

impl Subject for Database {
    fn database(&self) -> Option<&Path> {
        self.paths.database()
    }

    fn replica(&self) -> &'static str {
        self.paths.replica()
    }
}

impl Subject for Tail {
    fn database(&self) -> Option<&Path> {
        self.paths().database()
    }

    fn replica(&self) -> &'static str {
        self.paths().replica()
    }
}

impl<T: Subject + ?Sized> Subject for Arc<T> {
    fn database(&self) -> Option<&Path> {
        (**self).database()
    }

    fn replica(&self) -> &'static str {
        (**self).replica()
    }
}

impl<T: Subject + ?Sized> Subject for &mut T {
    fn database(&self) -> Option<&Path> {
        (**self).database()
    }

    fn replica(&self) -> &'static str {
        (**self).replica()
    }
}

impl<T: Subject + ?Sized> Subject for &T {
    fn database(&self) -> Option<&Path> {
        (**self).database()
    }

    fn replica(&self) -> &'static str {
        (**self).replica()
    }
}

/// What is about the process, or about no database that is known.
pub(crate) struct PerProcess;

impl Subject for PerProcess {
    fn database(&self) -> Option<&Path> {
        None
    }
}

/// A file of ours in the directory beside a database.
pub(crate) struct Beside<'a>(pub(crate) &'a Path);

impl Subject for Beside<'_> {
    fn database(&self) -> Option<&Path> {
        let directory = self.0.parent()?.as_os_str().as_bytes();
        let database = directory.strip_suffix(SECOND.as_bytes()).or_else(|| directory.strip_suffix(FIRST.as_bytes()))?;
        Some(Path::new(OsStr::from_bytes(database)))
    }
}

/// A database's name, as a line begins with it or as a field says it.
pub(crate) struct Prefix<'a> {
    database: Option<&'a Path>,
    separator: &'static str,
}

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.database {
            Some(database) => write!(f, "{}{}", database.display(), self.separator),
            None => Ok(()),
        }
    }
}

/// A field that is left out where there is nothing to say.
pub(crate) struct Unless<T>(pub(crate) Option<T>);

impl<T: fmt::Display> fmt::Display for Unless<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |value| value.fmt(f))
    }
}

/// Where a bucket is, as far as is known.
pub(crate) fn bucket_in_words(txid: Option<Txid>) -> String {
    txid.map_or_else(|| "what the bucket has is not known yet".to_owned(), |txid| format!("the bucket is at TXID {txid}"))
}

/// The same in short.
pub(crate) fn txid_in_words(txid: Option<Txid>) -> String {
    txid.map_or_else(|| "no TXID".to_owned(), |txid| format!("TXID {txid}"))
}

/// Logs an event: its level, its name (of the list in `docs/logs.md`, which is tested against them), what it is about, fields, and the text.
macro_rules! event {
    ($level:expr, $event:literal, $subject:expr $(, $key:ident = $value:expr)*; $($text:tt)+) => {{
        let level = {
            #[allow(unused_imports, reason = "a level is named, or a variable's")]
            use ::log::Level::{Debug, Error, Info, Trace, Warn};
            $level
        };
        let subject = &$subject;
        ::log::log!(
            target: "replicated",
            level,
            event = $event,
            database:% = $crate::logging::Subject::name(subject),
            replica = $crate::logging::Subject::replica(subject)
            $(, $key:% = $value)*;
            "{}{}",
            $crate::logging::Subject::prefix(subject),
            format_args!($($text)+)
        );
    }};
}
pub(crate) use event;

/// The same for what may come with every commit, such as a failure of the local disk: at once, and then summed up.
macro_rules! repeated_event {
    ($level:expr, $event:literal, $subject:expr $(, $key:ident = $value:expr)*; $($text:tt)+) => {{
        let text = format!($($text)+);
        if let Some(more) = $crate::logging::repeats::happens($crate::logging::Subject::database(&$subject), $event, &text) {
            $crate::logging::event!($level, $event, $subject $(, $key = $value)*; "{text}{}", $crate::logging::repeats::in_words(more));
        }
    }};
}
pub(crate) use repeated_event;
