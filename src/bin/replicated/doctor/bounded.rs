//! Everything that may hang is done on a thread of its own, which is left behind where it does: a host that does not answer, a dead network file system.

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::Runtime;

/// It has not ended in time, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Late(pub(super) Duration);

impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no answer within {}", super::report::brief(self.0))
    }
}

/// Requests may end by themselves a moment after their own limit.
const GRACE: Duration = Duration::from_millis(500);

/// Does something that blocks.
pub(super) fn blocking<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Late> {
    let (sender, receiver) = mpsc::channel();
    let spawned = std::thread::Builder::new().name("doctor".to_owned()).spawn(move || {
        // Nobody waits for what comes too late.
        let _ = sender.send(work());
    });
    spawned.map_err(|_| Late(Duration::ZERO))?;
    receiver.recv_timeout(limit).map_err(|_| Late(limit))
}

/// The event loop of the store's connections.
#[derive(Clone, Debug)]
pub(super) struct Requests(Arc<Runtime>);

impl Requests {
    pub(super) fn new() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let requests = Self(Arc::new(runtime));
        // Its end would wait for a name that is still being resolved.
        std::mem::forget(requests.clone());
        Ok(requests)
    }

    /// Makes a request.
    pub(super) fn ask<T: Send + 'static>(&self, limit: Duration, request: impl Future<Output = T> + Send + 'static) -> Result<T, Late> {
        let runtime = Arc::clone(&self.0);
        // A folder's futures block: their own limit would not end them.
        let asked = blocking(limit + GRACE, move || runtime.block_on(async { tokio::time::timeout(limit, request).await }));
        asked.map_err(|_| Late(limit))?.map_err(|_| Late(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_left_behind() {
        let forever = Duration::from_secs(3600);
        assert_eq!(blocking(Duration::from_millis(20), move || std::thread::sleep(forever)), Err(Late(Duration::from_millis(20))));
        assert_eq!(blocking(forever, || 7), Ok(7));
        let requests = Requests::new().unwrap();
        let limit = Duration::from_millis(20);
        assert_eq!(requests.ask(limit, std::future::pending::<()>()), Err(Late(limit)));
        assert_eq!(requests.ask(limit, async move { std::thread::sleep(forever) }), Err(Late(limit)));
        // One that hangs keeps no other from being made.
        assert_eq!(requests.ask(forever, async { 7 }), Ok(7));
    }
}
