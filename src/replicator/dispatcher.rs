//! The uploader's thread: one for all databases of the process, with a task for each.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::background::Housekeeping;
use super::hub::{Hub, HubReceiver, Notice};
use super::process::Registry;
use super::turns::Turns;
use super::uploader::Task;
use crate::logging::{PerProcess, event};
use crate::metrics::{endpoint, prometheus};

const MEMORY_STACK_BYTES: usize = 1024 * 1024;

/// What the dispatcher leaves for a database's task.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    pub(super) notify: Notify,
}

/// Until when stores have asked to be left alone, by their URL: closing a database and opening it again is no way around that.
pub(super) type LeftAlone = Rc<RefCell<HashMap<String, Instant>>>;

/// Runs the uploader's thread; returns when the process has no hub any more, that is never.
pub(crate) fn run(hub: &Arc<Hub>, receiver: HubReceiver, registry: &'static Registry) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().thread_stack_size(MEMORY_STACK_BYTES).build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, dispatch(hub, receiver, registry))
}

/// Reads wake-ups and passes on what the channel holds.
async fn dispatch(hub: &Arc<Hub>, receiver: HubReceiver, registry: &'static Registry) -> std::io::Result<()> {
    let HubReceiver { commits, notices, wake } = receiver;
    let wake = UnixStream::from_std(wake)?;
    let mailboxes: Rc<RefCell<HashMap<u64, Rc<Mailbox>>>> = Rc::default();
    let left_alone = LeftAlone::default();
    let mut turns = Turns::default();
    let housekeeping = Rc::<Housekeeping>::default();
    loop {
        wake.readable().await?;
        let mut bytes = [0; 64];
        // A wake-up that was read already is no reason to stop.
        let _ = wake.try_read(&mut bytes);
        hub.looked();
        while let Ok(notice) = notices.try_recv() {
            match notice {
                Notice::Opened(database) => {
                    let mailbox = Rc::new(Mailbox::default());
                    mailboxes.borrow_mut().insert(database.id, Rc::clone(&mailbox));
                    let turns = turns.of(&database);
                    let task = Task::new(database, mailbox, Rc::clone(&left_alone), turns, Rc::clone(&housekeeping));
                    let mailboxes = Rc::clone(&mailboxes);
                    tokio::task::spawn_local(async move {
                        let id = task.database.id;
                        task.run_guarded(registry).await;
                        mailboxes.borrow_mut().remove(&id);
                    });
                }
                Notice::Listening(listener) => {
                    tokio::task::spawn_local(async move {
                        let served = endpoint::serve(listener, || registry.statuses().map(|statuses| prometheus(&statuses))).await;
                        if let Err(error) = served {
                            event!(Error, "metrics", PerProcess, cause = error; "option metrics: nobody is answered: {error}");
                        }
                    });
                }
                Notice::Look(id) => {
                    if let Some(mailbox) = mailboxes.borrow().get(&id) {
                        mailbox.notify.notify_one();
                    }
                }
            }
        }
        while let Ok(frames) = commits.try_recv() {
            event!(
                Trace, "committed", PerProcess;
                "database {}: commit {} is frames {} to {}, {} pages in all",
                frames.database, frames.sequence, frames.first_frame, frames.end, frames.database_pages
            );
            if let Some(mailbox) = mailboxes.borrow().get(&frames.database) {
                mailbox.notify.notify_one();
            }
        }
    }
}
