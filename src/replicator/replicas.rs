//! The replicas of a database that is open: one, or two that know nothing of each other.
//!
//! Each has a store, a position, a control file, a spool and a task of its own, as if it were the only one; what SQLite's threads tell goes to both, one
//! after the other. So an outage of one neither stops nor slows the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::database::{Database, at_one_moment};
use super::step::panic_text;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Replicas {
    pub(crate) first: Arc<Database>,
    pub(crate) second: Option<Arc<Database>>,
}

/// Something of each replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Each<T> {
    pub(crate) first: T,
    /// `None` where there is one replica.
    pub(crate) second: Option<T>,
}

impl<T: Copy> Each<T> {
    /// The same of both.
    pub(crate) const fn of(value: T) -> Self {
        Self { first: value, second: Some(value) }
    }
}

impl Each<bool> {
    pub(crate) fn all(self) -> bool {
        self.first && self.second.unwrap_or(true)
    }

    pub(crate) fn any(self) -> bool {
        self.first || self.second.unwrap_or(false)
    }
}

impl Replicas {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Database>> {
        std::iter::once(&self.first).chain(&self.second)
    }

    /// Does something with each. A panic ends the replication by that one, and harms nothing else.
    pub(crate) fn each<T: Copy>(&self, after_panic: T, mut body: impl FnMut(&Arc<Database>) -> T) -> Each<T> {
        let Some(second) = &self.second else {
            return Each { first: guarded(&self.first, after_panic, || body(&self.first)), second: None };
        };
        at_one_moment(|| {
            let first = guarded(&self.first, after_panic, || body(&self.first));
            Each { first, second: Some(guarded(second, after_panic, || body(second))) }
        })
    }

    /// A fault that is neither's.
    pub(crate) fn poison(&self, why: &str) {
        for database in self.iter() {
            guarded(database, (), || database.poison(why));
        }
    }
}

fn guarded<T>(database: &Database, after_panic: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        // Should the panic repeat here, it is caught as well; there is nothing left to do.
        let _ = catch_unwind(AssertUnwindSafe(|| database.poison(&panic_text(&*panic))));
        after_panic
    })
}
