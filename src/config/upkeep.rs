//! How a bucket is maintained: the options that an application and `replicated maintain` have in common, names, defaults and meaning alike.

use std::time::Duration;

use super::table::{self, Kind};
use super::{count_within, duration_within, value};
use crate::maintenance::{COMPACTED_LEVELS, Policy};

/// See `OPTIONS` for each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upkeep {
    history: Duration,
    /// `None`: all of `history`.
    exact: Option<Duration>,
    grace: Duration,
    spans: [Duration; COMPACTED_LEVELS],
    snapshot_every: Duration,
    snapshot_change_percent: u32,
}

impl Default for Upkeep {
    fn default() -> Self {
        let Policy { history, grace, spans, snapshot_every, snapshot_change_percent, .. } = Policy::default();
        Self { history, exact: None, grace, spans, snapshot_every, snapshot_change_percent }
    }
}

impl Upkeep {
    const NAMES: &[&str] = &["history", "exact", "grace", "spans", "snapshot_every", "snapshot_change"];

    /// Whether an option is one of these.
    #[must_use]
    pub fn has(name: &str) -> bool {
        Self::NAMES.contains(&name)
    }

    /// The default of one of them, as a user would write it.
    #[must_use]
    pub fn default_of(name: &str) -> &'static str {
        table::find(name).map_or("", |spec| spec.default)
    }

    /// Sets one by its name.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        let spec = table::find(name).ok_or("there is no such option")?;
        match name {
            "history" => self.history = duration_within(spec, text)?,
            "exact" => self.exact = Some(duration_within(spec, text)?),
            "grace" => self.grace = duration_within(spec, text)?,
            "spans" => self.spans = spans(text)?,
            "snapshot_every" => self.snapshot_every = duration_within(spec, text)?,
            "snapshot_change" => self.snapshot_change_percent = count_within(spec, text)?,
            _ => return Err("it has nothing to do with maintenance".to_owned()),
        }
        Ok(())
    }

    /// Checks a text for one of them alone.
    ///
    /// # Errors
    /// Says what is wrong with it, and what is allowed.
    pub fn check(name: &str, text: &str) -> Result<(), String> {
        let allowed = table::find(name).map(|spec| spec.kind).as_ref().map(Kind::allowed).unwrap_or_default();
        Self::default().set(name, text).map_err(|why| format!("{why}; allowed is {allowed}"))
    }

    /// Whether they go together.
    ///
    /// # Errors
    /// The one that does not, and why.
    pub fn agrees(&self) -> Result<(), (&'static str, String)> {
        if self.exact.is_some_and(|exact| exact > self.history) {
            return Err(("exact", format!("that is longer than history, which is {}", value::show_duration(self.history))));
        }
        Ok(())
    }

    /// What a round goes by.
    #[must_use]
    pub fn policy(&self, max_memory_bytes: u64, deletes: bool) -> Policy {
        Policy {
            history: self.history,
            exact: self.exact.unwrap_or(self.history),
            grace: self.grace,
            spans: self.spans,
            snapshot_every: self.snapshot_every,
            snapshot_change_percent: self.snapshot_change_percent,
            max_memory_bytes,
            deletes,
        }
    }
}

fn spans(text: &str) -> Result<[Duration; COMPACTED_LEVELS], String> {
    let spans: Vec<Duration> = text.split(',').map(|part| value::duration(part.trim())).collect::<Result<_, _>>()?;
    let spans = <[Duration; COMPACTED_LEVELS]>::try_from(spans).map_err(|_| "that are not three".to_owned())?;
    let ascend = spans.windows(2).all(|pair| pair.first() <= pair.last()) && spans.iter().all(|span| !span.is_zero());
    if ascend { Ok(spans) } else { Err("one is zero, or shorter than the one before".to_owned()) }
}
