//! What the store lets one do: each request that replication makes, tried with an object of no meaning, which is taken away again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use replicated::store::{About, Created, Scratch, Store, StoreError, StoreErrorKind};
use replicated::types::TimestampMs;

use super::address::{self, Address};
use super::bounded::{Late, Requests};
use super::report::{Report, brief};
use crate::text;

/// What is sent to and fro to see how fast that is.
const SAMPLE_BYTES: usize = 1 << 20;
/// All parts of a large file but the last, as replication sends them.
const PART_BYTES: f64 = (8 << 20) as f64;
/// Amazon refuses requests of a clock that differs by more.
const MOST_SKEW_MS: i64 = 15 * 60 * 1000;
const SKEW_TO_TELL_MS: i64 = 10_000;
const SLOW: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(24 * 3600);

/// What was found of a store that answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reached {
    /// Bytes a second that go up, and that come.
    pub(super) up: Option<f64>,
    pub(super) down: Option<f64>,
    pub(super) may_list: bool,
}

/// Looks at all of it. `None` where the store does not let itself be asked anything.
pub(super) struct Access<'a> {
    pub(super) store: &'a Arc<dyn Store>,
    pub(super) requests: &'a Requests,
    pub(super) limit: Duration,
    /// How long replication gives one request.
    pub(super) request_timeout: Duration,
}

/// Why a request brought nothing.
#[derive(Debug)]
enum Failed {
    Late(Late),
    Store(StoreError),
}

impl Failed {
    fn what(&self) -> String {
        match self {
            Self::Late(late) => late.to_string(),
            Self::Store(error) => error.cause.clone(),
        }
    }

    fn advice<'a>(&'a self, otherwise: &'a str) -> &'a str {
        match self {
            Self::Store(error) if !error.advice.is_empty() => error.advice,
            _ => otherwise,
        }
    }

    /// Whether the store has refused this, rather than having failed.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Store(error) if matches!(error.kind, StoreErrorKind::PermissionDenied | StoreErrorKind::Credentials))
    }
}

impl Access<'_> {
    /// Makes a request of a scratch object, and says how long that took.
    fn ask<T: Send + 'static>(
        &self,
        scratch: &Arc<dyn Scratch>,
        request: impl for<'a> FnOnce(&'a dyn Scratch) -> BoxFuture<'a, Result<T, StoreError>> + Send + 'static,
    ) -> Result<(T, Duration), Failed> {
        let scratch = Arc::clone(scratch);
        let began = Instant::now();
        let answer = self.requests.ask(self.limit, async move { request(&*scratch).await }).map_err(Failed::Late)?;
        answer.map(|answer| (answer, began.elapsed())).map_err(Failed::Store)
    }

    /// `None` where nothing else needs to be asked of the store.
    pub(super) fn look(&self, address: Option<&Address>, report: &mut Report) -> Option<Reached> {
        let scratch: Arc<dyn Scratch> = Arc::from(self.store.scratch()?);
        let began = Instant::now();
        let listed = self.ask(&scratch, |s: &dyn Scratch| s.list());
        let took = began.elapsed();
        if let Err(Failed::Late(late)) = &listed {
            let (means, next) = if address.is_some() {
                ("The connection opens, and no answer comes", "Look at the endpoint's port, the network and the store itself")
            } else {
                (
                    "The folder's file system does not answer: a network file system whose server is away, most likely",
                    "Look at `mount` and at that server",
                )
            };
            report.problem("answer", late.to_string(), means, next);
            return None;
        }
        let answer = match &listed {
            Err(Failed::Store(error)) => Err(error),
            _ => Ok(()),
        };
        if !address::answered(address, answer, took, report) {
            return None;
        }
        if let Err(Failed::Store(error)) = &listed
            && !self.is_let_in(error, report)
        {
            return None;
        }
        self.credentials(report);
        let may_list = listed.is_ok();
        let rates = self.operations(&scratch, listed.map(|(names, _)| names), report);
        self.clock(report);
        Some(Reached { up: rates.map(|(up, _)| up), down: rates.map(|(_, down)| down), may_list })
    }

    /// Whether more than this one request may be refused: what is wrong with the keys, the bucket or the region is so for all of them.
    fn is_let_in(&self, error: &StoreError, report: &mut Report) -> bool {
        let cause = error.cause.as_str();
        let source = self.store.about().credentials.map(|credentials| credentials.from);
        let from = source.map(|from| format!(" They come from {from}.")).unwrap_or_default();
        match error.kind {
            StoreErrorKind::Credentials if cause.contains("RequestTimeTooSkewed") => {
                self.clock(report);
                report.problem("credentials", cause, "The store refuses requests of a clock that is wrong", error.advice);
            }
            StoreErrorKind::Credentials => {
                let means = format!("The store does not accept the keys, so nothing can be sent or restored.{from}");
                report.problem("credentials", cause, means, error.advice);
            }
            StoreErrorKind::NoSuchBucket => report.problem(
                "bucket",
                cause,
                "There is no bucket of that name there, or these keys are of another account's",
                "Create it, or correct the URL; replication never makes one",
            ),
            // A permission by itself may be missing: the others are tried.
            StoreErrorKind::PermissionDenied | StoreErrorKind::NotFound | StoreErrorKind::Io => return true,
            StoreErrorKind::Protocol if error.advice.contains("region") => report.problem(
                "bucket",
                cause,
                format!(
                    "Requests are signed for the region {}, and the bucket is in another",
                    self.store.about().region.unwrap_or_default()
                ),
                error.advice,
            ),
            StoreErrorKind::Throttled => {
                report.unknown("answer", cause, "The store asks for fewer requests: look who else makes them, and ask again")
            }
            StoreErrorKind::Server => report.problem(
                "answer",
                cause,
                "The store fails: commits wait on the local disk until it works again",
                "Look at the store's own log, or at its provider's status page, and ask again",
            ),
            _ => {
                let next = if error.advice.is_empty() { "Look at the endpoint, and whether it is a store" } else { error.advice };
                report.problem("answer", cause, "The store answers, and not as a store should", next);
            }
        }
        false
    }

    fn credentials(&self, report: &mut Report) {
        let About { credentials: Some(source), .. } = self.store.about() else { return };
        let Some(expires) = source.expires else {
            if source.is_temporary && !source.is_renewed {
                return report.warning(
                    "credentials",
                    format!("from {}", source.from),
                    "They are short-lived (a session token), nobody says until when, and nothing renews them: replication stops when they end",
                    "Give the process a role, or keys that last; those in ~/.aws are read again when that file changes, those in the environment are not",
                );
            }
            let lasts = if source.is_renewed { "renewed by themselves" } else { "they do not say that they end" };
            return report.ok("credentials", format!("from {}; {lasts}", source.from));
        };
        let left = Duration::from_millis(u64::try_from(expires.0.saturating_sub(now().0)).unwrap_or_default());
        let what = format!("from {}, good until {}", source.from, text::time(expires));
        if source.is_renewed {
            report.ok("credentials", format!("{what}, and then renewed by themselves"));
        } else if left.is_zero() {
            report.problem(
                "credentials",
                what,
                "They have ended",
                "Renew them; a process that has them in its environment must be started again",
            );
        } else if left < SOON {
            report.warning(
                "credentials",
                what,
                "Nothing renews them: replication stops then",
                "Give the process a role, or keys that last; those in ~/.aws are read again when that file changes, those in the environment are not",
            );
        } else {
            report.ok("credentials", what);
        }
    }

    fn operations(&self, scratch: &Arc<dyn Scratch>, listed: Result<Vec<String>, Failed>, report: &mut Report) -> Option<(f64, f64)> {
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
        let may_be_there = is_put || put.as_ref().is_err_and(|failed| !failed.is_refusal());
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
                "Nothing can be restored, and an open cannot find out what the bucket has; without it S3 also says 403 of what is not there",
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
                let next = format!(
                    "Allow s3:DeleteObject below the replica's path, or run `replicated maintain` with keys that may; then delete {}",
                    scratch.name()
                );
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

    fn clock(&self, report: &mut Report) {
        let Some(clock) = self.store.about().clock else { return };
        let off = clock.ahead_ms.saturating_abs().saturating_sub(clock.uncertainty_ms);
        let seconds = clock.ahead_ms as f64 / 1000.0;
        let which = if clock.ahead_ms > 0 { "behind" } else { "ahead of" };
        let what = format!("this machine's clock is {} {which} the store's", brief(Duration::from_secs_f64(seconds.abs())));
        let next = "Have the clock set by the network (chrony, systemd-timesyncd); in a virtual machine also after it was paused";
        if off > MOST_SKEW_MS {
            report.problem(
                "clock",
                what,
                "S3 refuses requests that are dated more than 15 minutes off, and restores to a time go wrong",
                next,
            );
        } else if off > SKEW_TO_TELL_MS {
            report.warning("clock", what, "Restores to a time are off by that much, and a lease must be over five times as long", next);
        } else {
            report.ok("clock", format!("agrees with the store's, as far as that tells ({:.1} s)", clock.uncertainty_ms as f64 / 1000.0));
        }
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

fn now() -> TimestampMs {
    replicated::maintenance::now()
}
