//! Who holds the lease of a bucket, for whoever only wants to know.

use super::{VerifyError, block_on};
use crate::maintenance;
use crate::replicator::lease::Record;
use crate::restore::fetch::retried;
use crate::store::Store;

/// What `lock.json` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// It is not there: nobody has ever asked for a lease.
    None,
    /// Somebody has it.
    Held {
        /// Who, and until when.
        by: String,
    },
    /// Anybody may take it.
    Free {
        /// Who had it last.
        last: String,
    },
    /// It is no lease.
    Garbage {
        /// Why.
        why: String,
    },
}

/// Reads it; blocks as `read`.
///
/// # Errors
/// Where the store fails.
pub fn lease(store: &dyn Store) -> Result<Lease, VerifyError> {
    block_on(async {
        let Some(object) = retried(async || store.read_lock().await).await? else { return Ok(Lease::None) };
        Ok(match Record::parse(&object.body) {
            Err(why) => Lease::Garbage { why },
            Ok(record) if record.is_released() => Lease::Free { last: record.owner },
            Ok(record) if record.expires_ms < maintenance::now().0 => Lease::Free { last: record.describe() },
            Ok(record) => Lease::Held { by: record.describe() },
        })
    })
}
