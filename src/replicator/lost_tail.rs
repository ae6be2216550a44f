//! A tail that a power loss took from this database is still in the bucket: there it is kept, whatever its age, until somebody has decided.

use super::database::Database;
use super::step::StepError;
use crate::logging::event;
use crate::maintenance::{MaintainError, note};
use crate::store::StoreErrorKind;
use crate::types::Txid;

/// Says so in the bucket, before anything follows on it. A store that cannot keep such a note does not keep the database from going on.
pub(crate) async fn keep(database: &Database, lost: Txid) -> Result<(), StepError> {
    match note::keep(&*database.store, lost, "the last commits that a power loss took from the database").await {
        Ok(()) => {
            event!(
                Warn, "tail_kept", database, txid = lost;
                "TXID {lost} is kept in the bucket until it is acknowledged, with `replicated maintain --acknowledge {lost}` or `replicated adopt`"
            );
            Ok(())
        }
        Err(MaintainError::Store(error)) if error.is_transient() || error.kind == StoreErrorKind::NoLease => Err(error.into()),
        Err(error) => {
            event!(Warn, "tail_not_kept", database, txid = lost, cause = error; "TXID {lost} may be deleted one day, since the bucket cannot take a note to keep it: {error}");
            Ok(())
        }
    }
}
