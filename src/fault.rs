//! Fail points: places where a test makes the process die, panic or fail. The feature `fault-injection` compiles them in; without it the
//! macros leave nothing behind, and the loadable extension is built without it.
//!
//! `REPLICATED_TEST_FAULT` in the environment of the process says what happens where:
//!
//! ```text
//!   control.saved=kill@3                    at the third time that the control file was saved, the process ends as by kill -9
//!   send.put=panic;spool.create=error@2..   rules are separated by semicolons; 2.. is the second time and every later one,
//!                                           2..4 the second to the fourth
//!   *=kill@57                               at the 57th point of all that the process comes to
//! ```
//!
//! | action | what happens |
//! |---|---|
//! | `kill` | SIGKILL to the process itself |
//! | `stop` | SIGSTOP to the process itself: a test has it go on by SIGCONT |
//! | `slow` | the thread sleeps for 6 s |
//! | `panic` | a panic with the point's name |
//! | `error` | the function fails with EIO; at points that cannot fail nothing happens |
//! | `full` | the same with ENOSPC |
//!
//! `REPLICATED_TEST_POWER=<n>`: the power has failed n times. The kernel's boot id is another one each time, and a file's time of change, which no
//! test can set, is taken to be that of its modification, which one can.

/// A place where the process may die or panic.
#[cfg(not(feature = "fault-injection"))]
macro_rules! fault_point {
    ($name:literal) => {};
}
#[cfg(feature = "fault-injection")]
macro_rules! fault_point {
    ($name:literal) => {
        $crate::fault::reach($name)
    };
}

/// A place where a function may fail as well: an `io::Result<()>`.
#[cfg(not(feature = "fault-injection"))]
macro_rules! fault_io {
    ($name:literal) => {
        Ok::<(), std::io::Error>(())
    };
}
#[cfg(feature = "fault-injection")]
macro_rules! fault_io {
    ($name:literal) => {
        $crate::fault::reach_io($name)
    };
}

/// A value that a test replaces: by what a function makes of the number in a variable of the environment.
#[cfg(not(feature = "fault-injection"))]
macro_rules! fault_value {
    ($variable:literal, $value:expr, $replaced:expr) => {
        $value
    };
}
#[cfg(feature = "fault-injection")]
macro_rules! fault_value {
    ($variable:literal, $value:expr, $replaced:expr) => {
        $crate::fault::number($variable).map_or($value, $replaced)
    };
}

pub(crate) use {fault_io, fault_point, fault_value};

#[cfg(feature = "fault-injection")]
pub use active::{POINTS, hits, observe};
#[cfg(feature = "fault-injection")]
pub(crate) use active::{number, reach, reach_io};

#[cfg(feature = "fault-injection")]
mod active {
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::OnceLock;

    use parking_lot::Mutex;

    const VARIABLE: &str = "REPLICATED_TEST_FAULT";

    /// Every point, in the order in which a commit meets them.
    pub const POINTS: &[&str] = &[
        // Checkpoints ahead of SQLite's own.
        "ahead.begin",
        "ahead.done",
        // Restoring a database that is not there.
        "if-missing.noted",
        "if-missing.placed",
        "if-missing.restored",
        // Opening: the control file, its lock, the spool.
        "control.opened",
        "control.locked",
        "control.made",
        "open.saved",
        "open.registered",
        "resolve",
        // What SQLite's threads tell.
        "commit.publish",
        "commit.wake",
        "gate.asked",
        "seal.begin",
        "seal.saved",
        "generation.begins",
        "generation.save",
        "generation.saved",
        "wal.vanishes",
        "wal.vanished",
        "wal.shrinks",
        "stamp.take",
        "stamp.saved",
        // The control file and the spool.
        "control.save",
        "control.saved",
        "control.sync",
        "control.synced",
        "spool.create",
        "spool.written",
        "spool.renamed",
        "spool.remove",
        "capture.begin",
        "capture.spooled",
        "capture.saved",
        "merge.begin",
        "merge.written",
        "merge.removed",
        "attempt.write",
        "attempt.written",
        "attempt.rebuild",
        // Another writer has gone on.
        "fence.begin",
        // A batch.
        "freeze.encoded",
        "attempt.save",
        "attempt.saved",
        "freeze.spool-sent",
        "step",
        "send.put",
        "send.done",
        "send.compare",
        "ack.save",
        "ack.saved",
        "ack.told",
        // What is remembered of the bucket.
        "ledger.write",
        "ledger.written",
        "ledger.append",
        "ledger.count",
        "recent.write",
        "recent.read",
        // The bucket and this database, compared.
        "verify.begin",
        "verify.done",
        "resend",
        "probe.begin",
        "probe.done",
        // The full state.
        "lose.save",
        "lose.saved",
        "full.begin",
        "full.begun",
        "full.run",
        "full.part",
        "full.part-sent",
        "full.put",
        "full.put-done",
        "full.marker",
        "full.marked",
        "full.acked",
        "preserve.write",
        "preserve.aside",
        "preserve.restart",
        // A copy that follows.
        "follow.noted",
        "follow.journal",
        "follow.journal-written",
        "follow.locked",
        "follow.page",
        "follow.written",
        "follow.synced",
        "follow.committed",
        // Closing.
        "close.flush",
        "close.flushed",
        "forget.release",
        "forget.released",
        // Maintenance.
        "upkeep.begin",
        "upkeep.done",
        "maintain.claimed",
        "maintain.part",
        "maintain.create",
        "maintain.created",
        "maintain.merged",
        "maintain.verify",
        "maintain.delete",
        "maintain.deleted",
        "maintain.renew",
        "maintain.renewing",
        // Verification.
        "assure.begin",
        "assure.done",
        "proof.write",
        "proof.written",
    ];

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Action {
        Kill,
        Stop,
        Slow,
        Panic,
        Error(i32),
    }

    #[derive(Debug)]
    struct Rule {
        point: String,
        action: Action,
        first: u64,
        last: u64,
    }

    #[derive(Debug, Default)]
    struct Counts {
        all: u64,
        of: BTreeMap<&'static str, u64>,
    }

    static RULES: OnceLock<Vec<Rule>> = OnceLock::new();
    static COUNTS: Mutex<Counts> = Mutex::new(Counts { all: 0, of: BTreeMap::new() });
    static OBSERVER: OnceLock<fn(&'static str)> = OnceLock::new();

    fn parse(text: &str) -> Option<Vec<Rule>> {
        let rule = |text: &str| {
            let (point, rest) = text.split_once('=')?;
            let (action, times) = rest.split_once('@').unwrap_or((rest, "1"));
            let action = match action {
                "kill" => Action::Kill,
                "stop" => Action::Stop,
                "panic" => Action::Panic,
                "slow" => Action::Slow,
                "error" => Action::Error(libc::EIO),
                "full" => Action::Error(libc::ENOSPC),
                _ => return None,
            };
            let (first, last) = match times.split_once("..") {
                Some((first, "")) => (first.parse().ok()?, u64::MAX),
                Some((first, last)) => (first.parse().ok()?, last.parse().ok()?),
                None => times.parse().ok().map(|only| (only, only))?,
            };
            let known = point == "*" || POINTS.contains(&point);
            known.then(|| Rule { point: point.to_owned(), action, first, last })
        };
        text.split(';').map(str::trim).filter(|text| !text.is_empty()).map(rule).collect()
    }

    fn rules() -> &'static [Rule] {
        RULES.get_or_init(|| {
            let text = std::env::var(VARIABLE).unwrap_or_default();
            // A rule that is not heeded would let a test pass that tests nothing.
            parse(&text).unwrap_or_else(|| give_up(&format!("{VARIABLE}: {text:?} is no rule, or names no point")))
        })
    }

    fn give_up(why: &str) -> ! {
        eprintln!("{why}");
        std::process::abort()
    }

    fn due(name: &'static str) -> Option<Action> {
        if !POINTS.contains(&name) {
            give_up(&format!("the fail point {name} is not in the list of points"));
        }
        if let Some(observer) = OBSERVER.get() {
            observer(name);
        }
        let (all, of_this) = {
            let mut counts = COUNTS.lock();
            counts.all += 1;
            let all = counts.all;
            let of_this = counts.of.entry(name).or_default();
            *of_this += 1;
            (all, *of_this)
        };
        let is_due = |rule: &&Rule| {
            let times = if rule.point == "*" { all } else { of_this };
            (rule.point == "*" || rule.point == name) && (rule.first..=rule.last).contains(&times)
        };
        rules().iter().find(is_due).map(|rule| rule.action)
    }

    fn die() -> ! {
        // Nothing of ours runs after the signal: the thread waits for it here.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }

    /// What a machine that is busy with other things takes at the worst.
    const SLOW: std::time::Duration = std::time::Duration::from_secs(6);

    fn stop() -> io::Result<()> {
        /// The signal is the process's, and this thread may go on for a moment.
        const MOMENT: std::time::Duration = std::time::Duration::from_millis(200);
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP)?;
        std::thread::sleep(MOMENT);
        Ok(())
    }

    pub(crate) fn reach(name: &'static str) {
        let _cannot_fail = reach_io(name);
    }

    #[allow(clippy::panic, reason = "what a test asked for")]
    pub(crate) fn reach_io(name: &'static str) -> io::Result<()> {
        match due(name) {
            None => Ok(()),
            Some(Action::Kill) => die(),
            Some(Action::Stop) => stop(),
            Some(Action::Slow) => {
                std::thread::sleep(SLOW);
                Ok(())
            }
            Some(Action::Panic) => panic!("the fail point {name} was told to panic"),
            Some(Action::Error(code)) => Err(io::Error::from_raw_os_error(code)),
        }
    }

    pub(crate) fn number(variable: &str) -> Option<u64> {
        std::env::var(variable).ok()?.parse().ok()
    }

    /// How often each point was come to, and in the first place all of them together, as `*`.
    #[must_use]
    pub fn hits() -> Vec<(&'static str, u64)> {
        let counts = COUNTS.lock();
        std::iter::once(("*", counts.all)).chain(counts.of.iter().map(|(name, times)| (*name, *times))).collect()
    }

    /// Has a function called at every point, before anything happens there, with whatever locks the point is under. The first call counts.
    pub fn observe(observer: fn(&'static str)) {
        let _first_counts = OBSERVER.set(observer);
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn rules_are_read_or_refused() {
            let rules = parse("control.saved=kill@3; *=error@2..;send.put=panic;resolve=full@2..4").unwrap();
            let read: Vec<_> = rules.iter().map(|r| (r.point.as_str(), r.action, r.first, r.last)).collect();
            assert_eq!(
                read,
                [
                    ("control.saved", Action::Kill, 3, 3),
                    ("*", Action::Error(libc::EIO), 2, u64::MAX),
                    ("send.put", Action::Panic, 1, 1),
                    ("resolve", Action::Error(libc::ENOSPC), 2, 4)
                ]
            );
            assert!(parse("").unwrap().is_empty());
            for wrong in ["nowhere=kill", "control.saved=explode", "control.saved", "control.saved=kill@x"] {
                assert!(parse(wrong).is_none(), "{wrong}");
            }
        }
    }
}
