//! Which uploads go first.
//!
//! A request of the background begins when no upload of the process is under way, or when one has ended since it was to begin: so that where uploads follow
//! each other without a pause, one request goes with each of them, and what is due gets done.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::Housekeeping;

/// How often whoever waits looks whether there is still anything to wait for.
const LOOK: Duration = Duration::from_secs(1);
/// An upload that is expected and does not begin is waited for so many looks: something else holds it up, and others wait for their turn.
const MOST_LOOKS: u32 = 10;

/// The uploads of a process.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    under_way: Cell<u64>,
    ended: Cell<u64>,
    changed: Notify,
}

/// One upload.
#[derive(Debug)]
pub(in crate::replicator) struct UnderWay(Rc<Housekeeping>);

impl Traffic {
    pub(super) fn begin(housekeeping: &Rc<Housekeeping>) -> UnderWay {
        let traffic = &housekeeping.traffic;
        traffic.under_way.set(traffic.under_way.get() + 1);
        UnderWay(Rc::clone(housekeeping))
    }

    /// Waits as long as an upload is under way that was when this began, or is `expected` and has not ended since. `fits` ends it early.
    pub(super) async fn gone<E>(&self, expected: impl Fn() -> bool, fits: impl Fn() -> Result<(), E>) -> Result<(), E> {
        let (before, mut looks) = (self.ended.get(), 0);
        while self.ended.get() == before && (self.under_way.get() > 0 || expected() && looks < MOST_LOOKS) {
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(LOOK) => looks += 1,
            }
            fits()?;
        }
        Ok(())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let traffic = &self.0.traffic;
        traffic.under_way.set(traffic.under_way.get().saturating_sub(1));
        traffic.ended.set(traffic.ended.get() + 1);
        traffic.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_goes_with_each_upload_and_none_begins_during_one() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let housekeeping = Rc::new(Housekeeping::default());
            let begun = Rc::new(Cell::new(0));
            let upload = Traffic::begin(&housekeeping);
            let (others, counts) = (Rc::clone(&housekeeping), Rc::clone(&begun));
            tokio::task::spawn_local(async move {
                loop {
                    others.traffic.gone(|| false, || Ok::<(), ()>(())).await.unwrap();
                    counts.set(counts.get() + 1);
                    tokio::task::yield_now().await;
                }
            });
            let settle = || async {
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            };
            settle().await;
            assert_eq!(begun.get(), 0);
            let mut upload = Some(upload);
            for request in 1..5 {
                // The next one begins before the last one ends.
                let next = Traffic::begin(&housekeeping);
                drop(upload.replace(next));
                settle().await;
                assert_eq!(begun.get(), request);
            }
            drop(upload);
            settle().await;
            assert!(begun.get() > 8);
        });
    }
}
