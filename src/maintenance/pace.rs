//! How the work makes way for others: asked before each request.

use futures_util::future::LocalBoxFuture;

use super::error::MaintainError;
use super::note::Claim;

/// What is asked before each request; an error ends the work.
pub type Turn = dyn Fn() -> LocalBoxFuture<'static, Result<(), MaintainError>>;

/// Who else there is to make way for, and what has to be renewed meanwhile.
pub(super) struct Pace<'a> {
    turn: Option<&'a Turn>,
    claim: Option<&'a Claim<'a>>,
}

impl<'a> Pace<'a> {
    pub(super) const fn none() -> Self {
        Self { turn: None, claim: None }
    }

    pub(super) const fn new(turn: Option<&'a Turn>, claim: Option<&'a Claim<'a>>) -> Self {
        Self { turn, claim }
    }

    /// Returns when there is time for one more request.
    pub(super) async fn wait(&self) -> Result<(), MaintainError> {
        // A folder's requests never wait by themselves.
        tokio::task::yield_now().await;
        if let Some(turn) = self.turn {
            turn().await?;
        }
        match self.claim {
            Some(claim) => claim.renew_in_time().await,
            None => Ok(()),
        }
    }
}
