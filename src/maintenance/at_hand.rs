//! Objects that need not be asked of the store: whoever maintains the bucket has just put them there, and still has what it sent.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use super::error::{MaintainError, Unfit};
use super::pace::Pace;
use crate::restore::fetch::retried;
use crate::store::{Listed, LtxName, Store, StoreErrorKind};

/// What has such objects. It is believed no more than the store is: what it gives is verified as every input is, and where it is no good the store is asked.
/// Nothing that is to be verified, before something else is deleted, is read from here.
pub(crate) trait AtHand: fmt::Debug + Send + Sync {
    /// Whether it has an object of that name and that size.
    fn has(&self, file: &Listed) -> bool;

    /// A range of it; `None` where it does not have the object, or cannot read it.
    fn read(&self, file: &Listed, range: Range<u64>) -> Option<Bytes>;

    /// The store has this now, made of files of lower levels, which nobody asks for any more; all of it, where it went in one request.
    fn made(&self, name: &LtxName, content: Option<Bytes>);

    /// What it gave of an object was no good. Whether it had it; it has it no more.
    fn discard(&self, name: &LtxName) -> bool;

    /// Somebody else has worked in the bucket, or something was not as it should be.
    fn forget(&self);
}

/// Where the inputs of a merge are read.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) at_hand: Option<&'a dyn AtHand>,
}

impl<'a> Inputs<'a> {
    /// From the store alone.
    pub(super) const fn stored(store: &'a dyn Store) -> Self {
        Self { store, at_hand: None }
    }

    /// Returns when one more may be read of these files: at once, where that takes no request.
    pub(super) async fn turn(&self, files: &[Listed], pace: &Pace<'_>) -> Result<(), MaintainError> {
        if files.iter().all(|file| self.at_hand.is_some_and(|at_hand| at_hand.has(file))) {
            tokio::task::yield_now().await;
            return Ok(());
        }
        pace.wait().await
    }

    pub(super) async fn range(&self, file: &Listed, range: Range<u64>) -> Result<Bytes, MaintainError> {
        if let Some(bytes) = self.at_hand.and_then(|at_hand| at_hand.read(file, range.clone())) {
            return Ok(bytes);
        }
        match retried(async || self.store.get_range(&file.name, range.clone()).await).await {
            Err(error) if error.kind == StoreErrorKind::Truncated => {
                Err(MaintainError::Unfit { object: file.name, why: Unfit::Cut(range.end) })
            }
            outcome => Ok(outcome?),
        }
    }
}
