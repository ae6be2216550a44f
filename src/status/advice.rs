//! What to do about a state, in a sentence or two.

use super::{State, Uploader};

/// `None` where nothing need be done, or where the error says it.
pub(crate) fn of(state: State, reason: Option<&str>) -> Option<&'static str> {
    Some(match (state, reason?) {
        (State::Lagging, "not_open") => {
            "No process has the database open, so that nobody uploads. Start the application, or open the database once with its replica: what waits is \
             sent then"
        }
        (State::Lagging, "changed_outside") => {
            "The database was changed, or its process was killed, since it was known to be what the bucket has. Open it with its replica: it is compared \
             then, and what is missing is sent"
        }
        (State::Lagging, "no_uploader") => {
            "The process that uploaded has ended; another one that has the database open takes over with its next commit"
        }
        (State::Lagging, "slow") => {
            "The uploader is there and meets no error, but does not keep up. Look at the network, at bytes_sent against what is written, and whether the \
             process was stopped"
        }
        (State::Fenced, "lease") => "Another host holds the lease and replicates this database. Stop it, or wait until it lets go",
        (State::Fenced, "another_writer") => {
            "Another writer has written to the bucket path. Stop one of the two; then restore what the bucket has, or declare this file the truth with \
             `replicated adopt`"
        }
        (State::Fenced, "diverged") => {
            "The file and the bucket are not provably one history. Restore what the bucket has, or declare this file the truth with `replicated adopt`"
        }
        (State::Failed, "fault") => "Close the database everywhere in this process and open it again; the log says what has happened",
        _ => return None,
    })
}

impl Uploader {
    /// The words of the row `uploader`.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Process(_) => "process",
            Self::Nobody => "nobody",
            Self::NotOpen => "not_open",
        }
    }
}
