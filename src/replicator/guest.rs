//! A database that another process uploads: its commits are told to that one, until this process takes over.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::aside;
use super::database::Database;
use super::lease::RELEASE_LIMIT;
use super::shared::{Preserving, Range};
use super::wake::{Bell, Listener};
use crate::logging::event;

/// How long to wait for a process that has become the owner to listen.
const OWNER_PAUSE: Duration = Duration::from_millis(20);

impl Database {
    /// Whether this process uploads.
    pub(crate) fn is_owner(&self) -> bool {
        self.owns.load(Ordering::Acquire)
    }

    /// Becomes the process that uploads, where nobody else is.
    fn try_own(&self) -> bool {
        if self.is_owner() {
            return true;
        }
        let Some(locks) = self.locks().filter(|_| !self.shared.has_left()) else { return false };
        if !locks.try_lock(Range::Owner, true).unwrap_or(false) {
            return false;
        }
        self.owns.store(true, Ordering::Release);
        // What the one before was at has ended with it.
        self.shared.preserving.store(Preserving::No as u64, Ordering::SeqCst);
        aside::remove(&self.paths);
        self.shared.dozing.store(0, Ordering::SeqCst);
        self.lock_tail_here().inflight = None;
        if let Some(lease) = &self.lease {
            lease.is_taken_over();
        }
        self.progress.update(|f| f.awaits_open = false);
        event!(Info, "taken_over", self; "this process uploads from here on");
        true
    }

    /// What wakes this process when another one has committed; `None` where that cannot be had, and then nobody else does.
    pub(crate) fn listen(&self) -> Option<Listener> {
        let path = self.paths.wake();
        let owner = super::local::OwnerMode::of(&self.paths.database);
        let opened = owner.and_then(|owner| Listener::open(&path, &owner));
        opened
            .inspect_err(|error| {
                event!(
                    Error, "local_file", self, cause = error;
                    "{}: {error}: what other processes commit is uploaded only when this one commits, too",
                    path.display()
                );
            })
            .ok()
    }
}

/// Whether the lease may be left to this process, which is about to leave: by who uploads, and saw that this one had it open.
fn is_awaited(database: &Database, leaves_by: &mut Option<Instant>) -> bool {
    if !database.closing.load(Ordering::Acquire) {
        // It may have been opened again.
        *leaves_by = None;
        return false;
    }
    if database.lease.is_none() || database.shared.has_left() || !database.nobody_else_stays() {
        return false;
    }
    Instant::now() < *leaves_by.get_or_insert_with(|| Instant::now() + RELEASE_LIMIT)
}

/// Passes on what is committed here, until `ends` says so or this process uploads; true in the second case. `called` waits for whatever there is to look at.
pub(super) async fn serve(database: &Database, called: &tokio::sync::Notify, ends: impl Fn() -> bool) -> bool {
    let mut bell = None;
    let mut leaves_by = None;
    loop {
        // At every call: a child that was forked may still listen in the place of one that has died. Also at the end, for what there is to be let go.
        if database.try_own() {
            return true;
        }
        if is_awaited(database, &mut leaves_by) {
            tokio::time::sleep(OWNER_PAUSE).await;
            continue;
        }
        if ends() {
            return false;
        }
        bell = bell.or_else(|| Bell::open(&database.paths.wake()).ok());
        let rung = bell.as_ref().is_some_and(Bell::ring);
        match &bell {
            _ if database.shared.has_left() => called.notified().await,
            Some(open) if rung => {
                tokio::select! {
                    () = called.notified() => {}
                    () = open.is_unheard() => bell = None,
                }
            }
            _ => {
                bell = None;
                tokio::select! {
                    () = called.notified() => {}
                    () = tokio::time::sleep(OWNER_PAUSE) => {}
                }
            }
        }
    }
}
