//! kill -9 at each fail point: every step of opening, capturing, uploading and closing. The next process goes on, and nothing is lost or invented.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use replicated_testkit::bucket::Bucket;
use replicated_testkit::crash::life::{Ending, Life, number};
use replicated_testkit::crash::session::Style;
use replicated_testkit::host;
use replicated_testkit::s3::{Options, Server};

/// Ways to use a database, which meet different points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Uploads follow each commit.
    Promptly,
    /// Nothing is sent but when it is asked for, so that the spool fills.
    Seldom,
    /// The store takes its time, and somebody writes meanwhile.
    Slowly,
    /// The full state has to be sent while a large database is written to.
    FullStates,
    /// Without a WAL.
    Rollback,
    /// A thread checkpoints, while commits go on.
    Ahead,
}

const USES: [Use; 6] = [Use::Promptly, Use::Seldom, Use::Slowly, Use::FullStates, Use::Rollback, Use::Ahead];

fn life(which: Use, point: &str, server: &Server) -> Life {
    let seed = number("REPLICATED_TEST_SEED", 1);
    let small = Style { cache_pages: 20, autocheckpoint_pages: 20, ..Style::default() };
    let style = match which {
        Use::FullStates => Style { most_bytes: 9000, ..small },
        Use::Rollback => Style { journal: vec!["DELETE".to_owned()], ..small },
        Use::Promptly | Use::Seldom | Use::Slowly | Use::Ahead => small,
    };
    let in_server = matches!(which, Use::Slowly | Use::FullStates);
    let path = format!("{which:?}-{point}");
    let mut life =
        Life::new(point, seed, style, |folder| if in_server { Bucket::s3(server, &path) } else { Bucket::folder(&folder.join("bucket")) });
    if which == Use::Ahead {
        life.checkpoints_ahead(6);
    }
    if which == Use::Seldom {
        for (name, value) in &mut life.options {
            if name == "sync_interval" || name == "burst" {
                *value = if name == "burst" { "1" } else { "60s" }.to_owned();
            }
        }
    }
    life
}

/// Whether a process died at the point, in a way to use the database that comes to it.
fn dies(point: &str, which: Use, server: &Server) -> bool {
    let mut life = life(which, point, server);
    // What a process that died before leaves may be what brings the next one to the point.
    let before = life.round(&Ending::Fault(format!("send.done=kill@3;{point}=kill@1")));
    let mut died = before.killed && life.logged(point).is_empty();
    for attempt in 1..6 {
        life.check_prefix();
        if which == Use::FullStates {
            life.disturb();
            life.flushes_first = attempt % 2 == 0;
        }
        let times = life.random().u64(1..=attempt);
        let outcome = life.round(&Ending::Fault(format!("{point}=kill@{times}")));
        if let Some(why) = &outcome.stopped {
            life.fail(why);
        }
        if outcome.killed {
            died = true;
            break;
        }
    }
    life.check_prefix();
    life.end();
    died
}

#[test]
fn a_process_may_die_at_each_point() {
    let server = Server::with_options(Options { delay: Duration::from_millis(10), ..Options::default() }).unwrap();
    let mut never = Vec::new();
    for point in host::points() {
        if !USES.iter().any(|which| dies(&point, *which, &server)) {
            never.push(point);
        }
    }
    assert!(never.is_empty(), "no process came to {never:?}");
}
