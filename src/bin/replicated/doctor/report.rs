//! What was found out, line by line.

use std::time::Duration;

use serde_json::{Value, json};

use crate::text;

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    /// It works, and may cost something one day.
    Warning,
    /// It does not work, or will not when it is needed.
    Problem,
    NotChecked,
    /// There is nothing to check here, or something before it stands in the way.
    Skipped,
}

impl Verdict {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
            Self::NotChecked => "not_checked",
            Self::Skipped => "skipped",
        }
    }

    const fn shown(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "WARNING",
            Self::Problem => "PROBLEM",
            Self::NotChecked => "UNKNOWN",
            Self::Skipped => "-",
        }
    }
}

/// One check and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) what: String,
    /// What that means; empty where all is well.
    pub(super) means: String,
    /// What to do; empty where there is nothing.
    pub(super) next: String,
}

/// All of them, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) lines: Vec<Line>,
}

impl Report {
    pub(super) fn add(
        &mut self,
        check: &'static str,
        verdict: Verdict,
        what: impl Into<String>,
        means: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.lines.push(Line { check, verdict, what: what.into(), means: means.into(), next: next.into() });
    }

    pub(super) fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.add(check, Verdict::Ok, what, "", "");
    }

    pub(super) fn skipped(&mut self, check: &'static str, what: impl Into<String>) {
        self.add(check, Verdict::Skipped, what, "", "");
    }

    pub(super) fn warning(&mut self, check: &'static str, what: impl Into<String>, means: impl Into<String>, next: impl Into<String>) {
        self.add(check, Verdict::Warning, what, means, next);
    }

    pub(super) fn problem(&mut self, check: &'static str, what: impl Into<String>, means: impl Into<String>, next: impl Into<String>) {
        self.add(check, Verdict::Problem, what, means, next);
    }

    pub(super) fn unknown(&mut self, check: &'static str, what: impl Into<String>, next: impl Into<String>) {
        self.add(check, Verdict::NotChecked, what, "", next);
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.lines.iter().filter(|line| line.verdict == verdict).count()
    }

    /// One word for all, and the exit code; as `replicated verify` has them.
    pub(super) fn outcome(&self) -> (&'static str, u8) {
        if self.count(Verdict::Problem) > 0 {
            ("problems", 1)
        } else if self.count(Verdict::NotChecked) > 0 {
            ("not_checked", 3)
        } else {
            ("well", 0)
        }
    }

    pub(super) fn as_text(&self, is_quiet: bool) -> String {
        let mut out = String::new();
        for line in &self.lines {
            if is_quiet && matches!(line.verdict, Verdict::Ok | Verdict::Skipped) {
                continue;
            }
            out.push_str(&format!("{:<8} {:<13} {}\n", line.verdict.shown(), line.check, line.what));
            for (name, text) in [("means", &line.means), ("next", &line.next)] {
                if !text.is_empty() {
                    out.push_str(&format!("{:<22} {name}: {text}\n", ""));
                }
            }
        }
        let told: Vec<String> = [(Verdict::Problem, "problem"), (Verdict::Warning, "warning"), (Verdict::NotChecked, "check")]
            .into_iter()
            .filter(|(verdict, _)| self.count(*verdict) > 0)
            .map(|(verdict, noun)| {
                let count = text::count(self.count(verdict), noun);
                if verdict == Verdict::NotChecked { format!("{count} could not be made") } else { count }
            })
            .collect();
        if told.is_empty() {
            if !is_quiet {
                out.push_str("all well\n");
            }
        } else {
            out.push_str(&told.join(", "));
            out.push('\n');
        }
        out
    }

    pub(super) fn as_json(&self) -> Value {
        let lines: Vec<Value> = self
            .lines
            .iter()
            .map(|line| {
                json!({ "check": line.check, "verdict": line.verdict.name(), "what": line.what, "means": line.means, "next": line.next })
            })
            .collect();
        Value::from(lines)
    }
}

/// `12 ms`, `1.20 s` or `3 min 20 s`.
pub(super) fn brief(duration: Duration) -> String {
    if duration < Duration::from_secs(1) { format!("{} ms", duration.as_millis()) } else { text::elapsed(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_counts_more_than_what_could_not_be_checked() {
        let mut report = Report::default();
        assert_eq!(report.outcome(), ("well", 0));
        report.warning("clock", "late", "m", "n");
        report.skipped("tls", "a folder");
        assert_eq!(report.outcome(), ("well", 0));
        report.unknown("integrity", "took too long", "n");
        assert_eq!(report.outcome(), ("not_checked", 3));
        report.problem("get", "refused", "m", "n");
        assert_eq!(report.outcome(), ("problems", 1));
        let text = report.as_text(true);
        assert!(text.ends_with("1 problem, 1 warning, 1 check could not be made\n"), "{text}");
        assert!(!text.contains("a folder") && text.contains("means: m\n"), "{text}");
    }
}
