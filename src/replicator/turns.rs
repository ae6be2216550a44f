//! Whose turn it is: how many requests and full states of a process are under way with one store.

use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::Semaphore;

use super::database::Database;

/// Requests to one store that a process has under way at once, each with a connection: a thousand databases, in as many buckets, must not take the descriptors
/// that the application has been given, nor 30 KiB for each connection. A database that is opened compares itself with several listings at once, and counts for
/// as many.
const MOST_REQUESTS: usize = 64;
pub(crate) const REQUESTS_OF_VERIFY: u32 = 8;
/// Full states that are sent to one store at once. Apart from the others: one may take hours.
const MOST_FULL: usize = 8;

/// Whose turn it is with each store.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    stores: HashMap<String, Rc<StoreTurns>>,
}

/// The turns of one store: of all buckets that one endpoint serves.
#[derive(Debug)]
pub(crate) struct StoreTurns {
    pub(crate) requests: Semaphore,
    pub(crate) full: Semaphore,
}

impl Turns {
    /// Stores that are told apart; what comes then shares the turns of all the others that came then.
    const MOST: usize = 1000;

    /// A store that does not answer holds up its own databases only.
    pub(crate) fn of(&mut self, database: &Database) -> Rc<StoreTurns> {
        let url = database.store.url();
        let scheme = url.split_once("://").map_or(url, |(scheme, _)| scheme);
        let endpoint = database.options.store_options().endpoint.unwrap_or_default();
        let query = url.split_once('?').map_or("", |(_, query)| query);
        let mut store = format!("{scheme} {endpoint} {query}");
        if self.stores.len() >= Self::MOST && !self.stores.contains_key(&store) {
            store.clear();
        }
        let new = || StoreTurns { requests: Semaphore::new(MOST_REQUESTS), full: Semaphore::new(MOST_FULL) };
        Rc::clone(self.stores.entry(store).or_insert_with(|| Rc::new(new())))
    }
}
