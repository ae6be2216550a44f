//! Rounds of maintenance at any time, in this process or in one that dies on the way.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use replicated::maintenance::{self, MaintainError, Maintainer, Policy, Report};
use replicated::store::{Created, Level, Listed, LtxName, Store, StoreError, StoreErrorKind, Upload};
use replicated::types::{TimestampMs, Txid};
use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::host;

/// One round: of which bucket, as if it were when, by what policy. Times are in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The replica URL.
    pub url: String,
    /// How much later than now.
    pub later_ms: i64,
    /// See `Policy`, as what follows.
    pub history_ms: u64,
    /// See `Policy`.
    pub exact_ms: u64,
    /// See `Policy`.
    pub spans_ms: [u64; 3],
    /// See `Policy`.
    pub snapshot_ms: u64,
    /// See `Policy`.
    pub change_percent: u32,
}

impl Order {
    /// A round right now that keeps a day.
    #[must_use]
    pub fn of(bucket: &Bucket) -> Self {
        let day = 24 * 3600 * 1000;
        let spans_ms = [20, 200, 2000];
        Self { url: bucket.url.clone(), later_ms: 0, history_ms: day, exact_ms: day, spans_ms, snapshot_ms: day, change_percent: 100 }
    }

    /// The same, later.
    #[must_use]
    pub fn later(&self, later: Duration) -> Self {
        Self { later_ms: i64::try_from(later.as_millis()).unwrap_or(i64::MAX), ..self.clone() }
    }

    /// Its policy.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            history: Duration::from_millis(self.history_ms),
            exact: Duration::from_millis(self.exact_ms),
            grace: Duration::ZERO,
            spans: self.spans_ms.map(Duration::from_millis),
            snapshot_every: Duration::from_millis(self.snapshot_ms),
            snapshot_change_percent: self.change_percent,
            ..Policy::default()
        }
    }

    /// When it is.
    #[must_use]
    pub fn at(&self) -> TimestampMs {
        TimestampMs(maintenance::now().0 + self.later_ms)
    }

    /// Carries it out.
    ///
    /// # Errors
    /// As the library.
    pub fn run(&self, bucket: &Bucket) -> Result<Report, MaintainError> {
        maintenance::maintain(&mut Maintainer::new(bucket.store(), self.policy()), self.at())
    }

    /// Carries it out, and reads every file above level 0 for it.
    ///
    /// # Errors
    /// As the library.
    pub fn repair(&self, bucket: &Bucket) -> Result<Report, MaintainError> {
        maintenance::maintain(&mut Maintainer::new(bucket.store(), self.policy()).examining(), self.at())
    }

    /// Carries it out in a process that dies as `fault` says (`src/fault.rs`), or ends well. The answer is whether it died.
    ///
    /// # Errors
    /// What it said, where it failed.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn run_apart(&self, bucket: &Bucket, fault: &str) -> Result<bool, String> {
        let order = serde_json::to_string(self).expect("an order can be written");
        let mut command = host::command(host::faulty_program("maintain-host"), &bucket.env);
        // Who was killed keeps nobody out.
        command.env("REPLICATED_TEST_CLAIM_MS", "1").env("REPLICATED_TEST_FAULT", fault).arg(order);
        let output = command.output().expect("the program can be started");
        match output.status.code() {
            Some(0) => Ok(false),
            None => Ok(true),
            Some(_) => Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))),
        }
    }
}

/// A bucket whose credentials allow everything but to delete, or whose objects are locked.
#[derive(Debug)]
pub struct Locked {
    /// The bucket as it is.
    pub inner: Arc<dyn Store>,
}

impl Store for Locked {
    crate::pass_on!(url, list, create, upload, part_size_bytes, get_range, head, creates_are_conditional);

    fn delete<'a>(&'a self, _names: &'a [LtxName]) -> BoxFuture<'a, Result<(), StoreError>> {
        let (operation, object) = ("delete", "objects".to_owned());
        let (kind, cause) = (StoreErrorKind::PermissionDenied, "AccessDenied".to_owned());
        Box::pin(std::future::ready(Err(StoreError { kind, operation, object, cause, advice: "", retry_after: None })))
    }
}
