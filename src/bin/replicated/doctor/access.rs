//! Whether the store lets one in, and with which keys; whether its clock is ours.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use replicated::store::{About, Scratch, Store, StoreError, StoreErrorKind};
use replicated::types::TimestampMs;

use super::address::{self, Address};
use super::bounded::{Late, Requests};
use super::report::{Report, brief};
use crate::text;

/// Amazon refuses requests of a clock that differs by more.
const MOST_SKEW_MS: i64 = 15 * 60 * 1000;
const SKEW_TO_TELL_MS: i64 = 10_000;
const SOON: Duration = Duration::from_secs(24 * 3600);

/// What was found of a store that answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reached {
    /// Bytes a second that go up, and that come.
    pub(super) up: Option<f64>,
    pub(super) down: Option<f64>,
    pub(super) may_list: bool,
}

/// A store that is asked.
pub(super) struct Access<'a> {
    pub(super) store: &'a Arc<dyn Store>,
    pub(super) requests: &'a Requests,
    pub(super) limit: Duration,
    /// How long replication gives one request.
    pub(super) request_timeout: Duration,
}

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failed {
    Late(Late),
    Store(StoreError),
}

impl Failed {
    pub(super) fn what(&self) -> String {
        match self {
            Self::Late(late) => late.to_string(),
            Self::Store(error) => error.cause.clone(),
        }
    }

    pub(super) fn advice<'a>(&'a self, otherwise: &'a str) -> &'a str {
        match self {
            Self::Store(error) if !error.advice.is_empty() => error.advice,
            _ => otherwise,
        }
    }

    /// Whether the store may have done it all the same.
    pub(super) fn may_have_been_done(&self) -> bool {
        match self {
            Self::Late(_) => true,
            Self::Store(error) => error.is_transient() && error.may_have_been_done(),
        }
    }

    /// Whether the store has refused this, rather than having failed.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Store(error) if matches!(error.kind, StoreErrorKind::PermissionDenied | StoreErrorKind::Credentials))
    }
}

impl Access<'_> {
    /// Makes a request of a scratch object, and says how long that took.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        scratch: &Arc<dyn Scratch>,
        request: impl for<'a> FnOnce(&'a dyn Scratch) -> BoxFuture<'a, Result<T, StoreError>> + Send + 'static,
    ) -> Result<(T, Duration), Failed> {
        let scratch = Arc::clone(scratch);
        let began = Instant::now();
        let answer = self.requests.ask(self.limit, async move { request(&*scratch).await }).map_err(Failed::Late)?;
        answer.map(|answer| (answer, began.elapsed())).map_err(Failed::Store)
    }

    /// Asks it everything. `None` where what is wrong is so for all that could be asked.
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
            StoreErrorKind::NoSuchBucket if error.advice.contains("no store") => report.problem(
                "answer",
                cause,
                "What answers there does not say what it lacks, as a store would: it is another program, a console or a proxy, or the path is wrong",
                error.advice,
            ),
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
}

fn now() -> TimestampMs {
    replicated::maintenance::now()
}
