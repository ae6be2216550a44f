//! A last close that waits for a round: of a database that only processes use which live for a moment.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Whether a round has been left undone for so long that a closing process waits for it.
#[derive(Debug, Default)]
pub(in crate::replicator) struct Neglect {
    is_due: Mutex<bool>,
    done: Condvar,
}

impl Neglect {
    pub(super) fn begin(&self) {
        *self.is_due.lock() = true;
    }

    pub(super) fn end(&self) {
        *self.is_due.lock() = false;
        self.done.notify_all();
    }

    /// Waits until it is made good, has failed, or the time is over.
    pub(in crate::replicator) fn wait(&self, limit: Duration) {
        let mut is_due = self.is_due.lock();
        // Whether it was done or not, the close goes on.
        let _ = self.done.wait_while_for(&mut is_due, |is_due| *is_due, limit);
    }
}
