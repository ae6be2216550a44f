//! Another try for a part of a large object: starting over for one broken connection would keep a large database from ever arriving.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use object_store::retry::{RetryContext, RetryFailure, RetryPolicy};

use super::http::last_refusal;

/// What may pass is tried again a few times and for a short while; then the upload fails, and who sends decides.
#[derive(Debug)]
pub(super) struct PartRetries;

impl PartRetries {
    const MOST: usize = 5;
    const FIRST_PAUSE: Duration = Duration::from_millis(200);
    /// A request that timed out gets one more try.
    const LONGEST: Duration = Duration::from_secs(30);
    /// Whoever asks to be left alone for longer is.
    const LONGEST_ASKED: Duration = Duration::from_secs(10);

    /// How long to wait before another try; `None` for no more.
    fn pause(context: &RetryContext, asked: Option<Duration>, jitter: f64) -> Option<Duration> {
        let may_pass = match context.failure {
            RetryFailure::Status(status) => status.is_server_error() && status.as_u16() != 501 || matches!(status.as_u16(), 408 | 429),
            RetryFailure::Transport(_) => true,
            _ => false,
        };
        let is_early = context.attempt == 1 || context.attempt < Self::MOST && context.elapsed < Self::LONGEST;
        let asked = asked.unwrap_or_default();
        if !may_pass || !is_early || asked > Self::LONGEST_ASKED {
            return None;
        }
        let doubled = Self::FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(u32::try_from(context.attempt - 1).unwrap_or(u32::MAX).min(8)));
        Some(doubled.mul_f64(0.5 + jitter / 2.0).max(asked))
    }
}

impl RetryPolicy for PartRetries {
    fn retry<'life0, 'async_trait>(&'life0 self, context: RetryContext) -> BoxFuture<'async_trait, bool>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        async move {
            // What was refused before a connection broke says nothing of that.
            let was_refused = matches!(context.failure, RetryFailure::Status(_));
            let asked = if was_refused { last_refusal().and_then(|refusal| refusal.retry_after) } else { None };
            let Some(pause) = Self::pause(&context, asked, fastrand::f64()) else { return false };
            tokio::time::sleep(pause).await;
            true
        }
        .boxed()
    }
}
