//! Each request that replication makes, tried with a scratch object; and how long they take.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use replicated::store::{Created, Scratch, StoreErrorKind};

use super::access::{Access, Failed};
use super::bounded::Late;
use super::report::{Report, brief};
use crate::text;

/// What is sent to and fro to see how fast that is.
const SAMPLE_BYTES: usize = 1 << 20;
/// All parts of a large file but the last, as replication sends them.
const PART_BYTES: f64 = (8 << 20) as f64;
const SLOW: Duration = Duration::from_secs(1);

impl Access<'_> {
    pub(super) fn operations(
        &self,
        scratch: &Arc<dyn Scratch>,
        listed: Result<Vec<String>, Failed>,
        report: &mut Report,
    ) -> Option<(f64, f64)> {
        let mut times = Vec::new();
        let body = Bytes::from_static(b"replicated doctor asks what this store lets it do\n");
        self.listing(&listed, report);

        let put = {
            let body = body.clone();
            self.ask(scratch, move |s: &dyn Scratch| s.create(body))
        };
        // A store that refuses conditions has created nothing yet.
        let (put, is_unconditional) = match put {
            Ok((None, _)) => {
                let body = body.clone();
                (self.ask(scratch, move |s: &dyn Scratch| s.put(body)).map(|((), took)| took), true)
            }
            Ok((Some(_), took)) => (Ok(took), false),
            Err(failed) => (Err(failed), false),
        };
        let is_put = put.is_ok();
        match &put {
            Ok(took) => {
                times.push(*took);
                report.ok("put", format!("an object was written ({})", brief(*took)));
            }
            Err(failed) => {
                self.refused("put", "write", failed, "Nothing can be sent: commits wait on the local disk", "s3:PutObject", report)
            }
        }
        if is_put {
            self.reading(scratch, &body, &mut times, report);
            self.fencing(scratch, is_unconditional, &body, report);
            self.parts(scratch, report);
        }
        let may_be_there = is_put || put.as_ref().is_err_and(Failed::may_have_been_done);
        let is_deleted = may_be_there && self.deleting(scratch, is_put, &mut times, report);
        if !is_put {
            report.skipped("get", "nothing could be written that could be read");
        }
        let speed = if is_put && is_deleted { self.speed(&times, report) } else { None };
        self.leftovers(scratch, listed, report);
        speed
    }

    fn listing(&self, listed: &Result<Vec<String>, Failed>, report: &mut Report) {
        match listed {
            Ok(_) => report.ok("list", "objects can be listed"),
            Err(failed) => self.refused(
                "list",
                "list",
                failed,
                "Nothing can be restored, and an open cannot find out what the bucket has",
                "s3:ListBucket (on the bucket itself, not on what is in it)",
                report,
            ),
        }
    }

    fn reading(&self, scratch: &Arc<dyn Scratch>, body: &Bytes, times: &mut Vec<Duration>, report: &mut Report) {
        match self.ask(scratch, |s: &dyn Scratch| s.read()) {
            Ok((read, took)) if read == *body => {
                times.push(took);
                report.ok("get", format!("the object was read back as it was written ({})", brief(took)));
            }
            Ok((read, _)) => report.problem(
                "get",
                format!("{} bytes came back, and not what was written", read.len()),
                "The store, or something on the way, changes what it is given",
                "Look for a gateway or a cache between; do not use this store",
            ),
            Err(failed) => {
                let means = "Nothing can be restored, and what was sent cannot be recognised after a crash";
                self.refused("get", "read", &failed, means, "s3:GetObject", report);
            }
        }
    }

    fn fencing(&self, scratch: &Arc<dyn Scratch>, is_unconditional: bool, body: &Bytes, report: &mut Report) {
        const MEANS: &str = "Two writers on one URL are found out only by a look before and after each upload (`fencing weak`), which one may slip past; it costs more requests";
        const NEXT: &str = "Make sure yourself that one host at a time has this database, or use a store that honours If-None-Match";
        let again = body.clone();
        let second =
            if is_unconditional { Ok(None) } else { self.ask(scratch, move |s: &dyn Scratch| s.create(again)).map(|(created, _)| created) };
        let by = if self.store.about().endpoint.is_some() { " (If-None-Match)" } else { "" };
        match second {
            Ok(Some(Created::AlreadyExists)) => {
                report.ok("fencing", format!("strong: the store refuses to replace an object when asked not to{by}"))
            }
            Ok(Some(Created::New)) => {
                report.warning("fencing", "weak: the store takes If-None-Match and replaces the object all the same", MEANS, NEXT)
            }
            Ok(None) => report.warning("fencing", "weak: the store refuses conditions (If-None-Match)", MEANS, NEXT),
            Err(failed) if failed.is_refusal() => self.refused(
                "fencing",
                "write on a condition",
                &failed,
                "Each upload is made so: nothing can be sent",
                "s3:PutObject, without a rule that forbids If-None-Match",
                report,
            ),
            Err(failed) => report.unknown("fencing", failed.what(), failed.advice("Ask again when the store answers")),
        }
        let replaced = body.clone();
        match self.ask(scratch, move |s: &dyn Scratch| s.replace_on_false_condition(replaced)) {
            Ok((false, _)) => report.ok("lease", "the store compares before it replaces: the option lease works"),
            Ok((true, _)) => report.warning(
                "lease",
                "the store takes If-Match and replaces the object all the same",
                "With the option lease two hosts that begin in the same moment both get it",
                "Do without lease here, or see to it that they do not begin at once",
            ),
            Err(failed) => report.warning(
                "lease",
                failed.what(),
                "The option lease does not work on this store; everything else does",
                failed.advice("Do without lease here"),
            ),
        }
    }

    fn parts(&self, scratch: &Arc<dyn Scratch>, report: &mut Report) {
        match self.ask(scratch, |s: &dyn Scratch| s.begin_parts()) {
            Ok(_) => report.ok("parts", "an upload in parts can be begun and given up"),
            Err(failed) => self.refused(
                "parts",
                "begin an upload in parts, or give it up",
                &failed,
                "Files over 8 MiB go up in parts: snapshots do not arrive, or leave parts behind that cost money",
                "s3:PutObject and s3:AbortMultipartUpload",
                report,
            ),
        }
    }

    fn deleting(&self, scratch: &Arc<dyn Scratch>, is_put: bool, times: &mut Vec<Duration>, report: &mut Report) -> bool {
        match self.ask(scratch, |s: &dyn Scratch| s.delete()) {
            Ok((_, took)) => {
                times.push(took);
                if is_put {
                    report.ok("delete", "the object was deleted");
                }
                true
            }
            Err(failed) => {
                let is = if is_put { "is" } else { "may be" };
                let what = format!("{}. The object {} {is} left in the bucket", failed.what(), scratch.name());
                let means = "Replication works; what is over `history` stays, so the bucket grows. That may be wanted: who has these keys cannot destroy the backup";
                let next = if self.store.about().endpoint.is_none() {
                    format!("Give this user write permission on the folder; then delete {}", scratch.name())
                } else {
                    format!(
                        "Allow s3:DeleteObject below the replica's path, or run `replicated maintain` with keys that may; then delete {}",
                        scratch.name()
                    )
                };
                report.warning("delete", what, means, next);
                false
            }
        }
    }

    fn leftovers(&self, scratch: &Arc<dyn Scratch>, listed: Result<Vec<String>, Failed>, report: &mut Report) {
        let Ok(mut names) = listed else { return };
        names.retain(|name| !name.ends_with(scratch.name().trim_start_matches('/')));
        let Some(first) = names.first() else { return };
        report.warning(
            "leftovers",
            format!("{} of clients that could not delete, such as {first}", text::count(names.len(), "small object")),
            "No reader looks at them; they cost next to nothing",
            "Delete them by their name, which begins with .replicated-probe-",
        );
    }

    /// Bytes a second, up and down.
    fn speed(&self, times: &[Duration], report: &mut Report) -> Option<(f64, f64)> {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let latency = sorted.get(sorted.len() / 2).copied()?;
        let scratch: Arc<dyn Scratch> = Arc::from(self.store.scratch()?);
        let sample: Bytes = std::iter::repeat_with(|| fastrand::u8(..)).take(SAMPLE_BYTES).collect();
        let up = self.ask(&scratch, move |s: &dyn Scratch| s.put(sample));
        let down = if up.is_ok() {
            self.ask(&scratch, |s: &dyn Scratch| s.read()).map(|(_, took)| took)
        } else {
            Err(Failed::Late(Late(self.limit)))
        };
        if let Err(failed) = self.ask(&scratch, |s: &dyn Scratch| s.delete()) {
            let what =
                format!("{}. The object {} ({}) is left in the bucket", failed.what(), scratch.name(), text::size(SAMPLE_BYTES as u64));
            report.warning("delete", what, "It was made to measure with", "Delete it");
        }
        let rate = |took: Duration| SAMPLE_BYTES as f64 / took.as_secs_f64().max(1e-6);
        let (Ok(((), up)), Ok(down)) = (&up, &down) else {
            let failed = up.err().or(down.err());
            report.unknown(
                "speed",
                format!("1 MiB: {}", failed.map(|failed| failed.what()).unwrap_or_default()),
                "Where it is slow only, give it more time: --timeout, and request_timeout for replication",
            );
            return None;
        };
        let (rate_up, rate_down) = (rate(*up), rate(*down));
        let shown = |rate: f64| format!("{}/s", text::size(rate as u64));
        let what =
            format!("a request takes {} ms, 1 MiB goes up at {} and comes at {}", latency.as_millis(), shown(rate_up), shown(rate_down));
        let part = Duration::from_secs_f64((PART_BYTES / rate_up).min(1e6));
        if part > self.request_timeout {
            report.problem(
                "speed",
                what,
                format!("A part of 8 MiB takes {}, longer than request_timeout: a snapshot never arrives", brief(part)),
                "Raise request_timeout (REPLICATED_REQUEST_TIMEOUT)",
            );
        } else if latency > SLOW {
            report.warning(
                "speed",
                what,
                "A commit is in the bucket that much later, and one that waits (durability=remote) takes that long",
                "Choose a region nearer to this host",
            );
        } else {
            report.ok("speed", what);
        }
        Some((rate_up, rate_down))
    }

    fn refused(&self, check: &'static str, verb: &str, failed: &Failed, means: &str, permission: &str, report: &mut Report) {
        let what = failed.what();
        match failed {
            Failed::Store(error) if error.kind == StoreErrorKind::Io => {
                report.problem(check, what, means, failed.advice("Look at the folder and its disk"))
            }
            Failed::Store(error) if failed.is_refusal() => {
                let is_folder = self.store.about().endpoint.is_none();
                let allow = format!("Allow the keys to {verb}: {permission}; docs/stores.md has the list for each store");
                report.problem(check, what, means, if is_folder { error.advice.to_owned() } else { allow });
            }
            Failed::Store(error) if !error.is_transient() => report.problem(check, what, means, failed.advice("See docs/stores.md")),
            _ => report.unknown(check, what, failed.advice("Ask again; where it is slow only, give it more time (--timeout)")),
        }
    }
}
