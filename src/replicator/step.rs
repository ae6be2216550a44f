//! What a step of the uploader comes to, and what a local failure or a conflict in it means.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::control::FullReason;
use super::database::Database;
use super::tail::{StopKind, Tail, TailError};
use crate::logging::event;
use crate::store::StoreError;

/// Why a step could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tail(#[from] TailError),
    /// Reading the live database.
    #[error("reading the database: {0}")]
    Database(#[from] std::io::Error),
    #[error("encoding: {0}")]
    Ltx(#[from] crate::ltx::LtxError),
    /// The last handle was closed meanwhile.
    #[error("closed")]
    Closed,
    /// What the full state is made of was lost while it was read.
    #[error("the snapshot starts over: {0}")]
    StartOver(String),
    /// SQLite cannot read the database file.
    #[error(
        "the database file is damaged: {0}. SQLite cannot read it, and nothing of it is sent. Restore what the bucket has, or repair the file: \
         replication goes on by itself then"
    )]
    Damaged(String),
    /// An object of the bucket is no LTX file, however often it is read.
    #[error("{0}")]
    Unreadable(String),
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// There may be more.
    Again,
    /// Nothing until something is committed.
    Idle,
    /// Nothing until something is committed, or the time has passed.
    Quiet(Duration),
    /// Nothing for a moment, in real time, unless another commit waits or there is much to spool.
    Moment(Duration),
    /// Nothing, whatever is committed, until somebody acts.
    Stopped,
    /// Nothing until a commit waits, or the time has passed.
    After(Duration),
    /// Nothing until the time has passed: the second, shorter one where a commit waits.
    Backoff(Duration, Duration),
}

/// What a local failure means: the full state where something is lost, another try where it may pass.
pub(crate) fn recover(database: &Database, tail: &mut Tail, error: TailError) -> Result<Next, StepError> {
    match &error {
        TailError::Spool(lost) if lost.is_lasting() => {
            event!(Warn, "local_file", database, cause = error; "{error}");
            database.lose(tail, FullReason::SpoolLost);
            Ok(Next::Again)
        }
        // Without us the WAL was restarted, cut or taken away.
        TailError::Batch(error) if error.is_lasting() => {
            event!(Warn, "local_file", database, cause = error; "{error}");
            database.lose(tail, FullReason::ContinuityLost);
            Ok(Next::Again)
        }
        _ => Err(error.into()),
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

/// Stops the replication of a database until somebody acts.
pub(crate) fn stop(database: &Database, kind: StopKind, message: String) {
    database.lock_tail().stop(kind, message.clone());
    report_stop(database, kind, message);
}

pub(crate) fn report_stop(database: &Database, kind: StopKind, message: String) {
    if kind == StopKind::Failed {
        // A fault of this process alone. It is told by whoever has caught it, once the others do not hear it any more: they go on.
        return;
    }
    if database.options.readonly_on_conflict && matches!(kind, StopKind::Fenced | StopKind::Diverged) {
        database.shared.refuses_writes.store(1, Ordering::Release);
    }
    database.progress.update(|f| {
        f.state = kind.into();
        (f.last_error, f.error_kind) = (Some(message), None);
    });
}
