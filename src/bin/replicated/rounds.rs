//! `--every`: a command that goes on, with a round every so often.

use std::time::Duration;

use crate::{Failure, failed_text, text};

/// Refuses what would be no pause.
pub(crate) fn check(every: Option<Duration>) -> Result<(), Failure> {
    if every.is_some_and(|every| every < Duration::from_secs(1)) {
        return Err(Failure::Usage("--every must be 1s or more".to_owned()));
    }
    Ok(())
}

/// Does it once, or again and again.
pub(crate) fn run(every: Option<Duration>, mut once: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    let Some(every) = every else { return once() };
    loop {
        match once() {
            Ok(()) => {}
            // A service goes on: the store may be back, another one that was at work may have ended.
            Err(Failure::Failed { what, why, advice, .. }) => text::to_stderr(&failed_text(&what, &why, &advice)),
            Err(other) => return Err(other),
        }
        std::thread::sleep(every);
    }
}
