//! Objects of a bucket that go bad: what other files still have is made anew of them, what is lost is told, and the rest goes on. At every moment every state
//! that can be had is the state that it was, for us and for Litestream's programs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use replicated::maintenance::{self, Maintainer, Report};
use replicated::store::{Level, Listed, LtxName, Store};
use replicated::types::Txid;
use replicated_testkit::history::{Damage, History, succeeds};
use replicated_testkit::host;
use replicated_testkit::maintenance::{Locked, Order};
use replicated_testkit::tools;

const HOUR: Duration = Duration::from_secs(3600);
const SECONDS: Duration = Duration::from_secs(3);

/// Nothing is old enough to go.
fn keeping(history: &History, later: Duration) -> Order {
    Order { history_ms: 1000 * 3_600_000, exact_ms: 1000 * 3_600_000, spans_ms: [20, 100, 500], ..history.order().later(later) }
}

/// A bucket with files of every level, two snapshots among them, and some uploads that are not merged.
fn grown(on_s3: bool, seed: u64) -> History {
    let mut history = History::new(on_s3, seed);
    for round in 1..=12 {
        history.commit();
        if round % 3 == 0 {
            history.run(&keeping(&history, SECONDS));
        }
    }
    history.run(&keeping(&history, 25 * HOUR));
    history.commit();
    history.commit();
    assert!((1..=3).all(|level| !history.level(level).is_empty()) && history.level(9).len() == 2, "{:?}", history.level(3));
    history
}

fn sizes(files: &[Listed]) -> Vec<(LtxName, u64)> {
    let mut sizes: Vec<(LtxName, u64)> = files.iter().map(|file| (file.name, file.size_bytes)).collect();
    sizes.sort_unstable();
    sizes
}

fn middle(files: &[Listed]) -> LtxName {
    files[files.len() / 2].name
}

#[test]
fn a_damaged_file_of_each_level_is_made_anew() {
    let tools = tools::environment();
    for on_s3 in [true, false] {
        let history = grown(on_s3, 21);
        while !history.run(&keeping(&history, 26 * HOUR)).made.is_empty() {}
        let mut before = sizes(&history.bucket.list());
        for level in [1, 2, 3, 9] {
            let object = if level == 9 { history.level(9).last().unwrap().name } else { middle(&history.level(level)) };
            for damage in [Damage::Flipped, Damage::Cut, Damage::Empty, Damage::Missing] {
                history.damage(&object, damage);
                let order = keeping(&history, 26 * HOUR);
                let report = if damage == Damage::Missing { order.run(&history.bucket) } else { order.repair(&history.bucket) }.unwrap();
                assert_eq!(report.problems, Vec::<String>::new(), "{object} {damage:?}");
                if damage == Damage::Missing && level == 9 {
                    // Which snapshots there are is a matter of when: the older one leads to everything.
                    assert!(history.check(object.max_txid));
                    continue;
                }
                let is_told = report.repaired.iter().any(|what| what.starts_with(&object.to_string()));
                assert_eq!(is_told, damage != Damage::Missing, "{object} {damage:?}: {report:?}");
                let now = sizes(&history.bucket.list());
                let is_longer =
                    |made: LtxName| made.level == object.level && made.min_txid == object.min_txid && made.max_txid > object.max_txid;
                if damage == Damage::Missing && report.made.iter().any(|made| is_longer(made.name)) {
                    // Where it was its level's newest, what was merged below it since goes into it, too.
                    assert!(history.check(object.max_txid) && history.check(history.newest()));
                    before = now;
                    continue;
                }
                assert!(report.made.iter().any(|made| made.name == object), "{object} {damage:?}: {report:?}");
                let differs = |one: &[(LtxName, u64)], other: &[(LtxName, u64)]| one.iter().filter(|file| !other.contains(file)).count();
                assert_eq!((differs(&before, &now), differs(&now, &before)), (0, 0), "{object} {damage:?}: {report:?}");
                assert!(history.check(object.max_txid) && history.check(history.newest()));
            }
            if let Some(tools) = &tools {
                history.litestream_agrees(tools, None);
                history.litestream_agrees(tools, Some(object.max_txid));
            }
        }
        // From the command line, which is told of it by `verify`.
        let object = middle(&history.level(1));
        history.damage(&object, Damage::Flipped);
        let tool = |arguments: &[&str]| {
            let mut command = host::command(host::program("replicated"), &history.bucket.env);
            let output = command.arg(arguments[0]).arg(&history.bucket.url).args(&arguments[1..]).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
        };
        let (code, told) = tool(&["verify", "--history", "1d", "--no-restore"]);
        assert!(code == Some(1) && told.contains(&object.to_string()) && told.contains("replicated maintain URL --repair"), "{told}");
        let (code, told) = tool(&["maintain", "--history", "30d", "--repair"]);
        assert!(code == Some(0) && told.contains(&format!("was damaged: {object}: ")), "{told}");
        let (code, told) = tool(&["verify", "--history", "1d", "--no-restore"]);
        assert!(code == Some(0), "{told}");
        assert_eq!(history.available().len(), history.states.len());
    }
}

/// Several at once, what one of them is made of among them, and one that is read because something else is due.
#[test]
fn damage_that_a_round_comes_across_is_repaired_before_it_goes_on() {
    for on_s3 in [true, false] {
        let mut history = History::new(on_s3, 22);
        for _ in 0..12 {
            history.commit();
        }
        // Files of level 1, which nothing has read yet.
        let hours = [20, 100 * 3_600_000, 200 * 3_600_000];
        history.run(&Order { spans_ms: hours, ..keeping(&history, SECONDS) });
        let first = history.level(1);
        assert!(first.len() > 1 && history.level(2).is_empty(), "{first:?}");
        for (file, damage) in first.iter().zip([Damage::Cut, Damage::Flipped]) {
            history.damage(&file.name, damage);
        }
        let report = history.run(&keeping(&history, 2 * SECONDS));
        assert_eq!(report.repaired.len(), 2, "{report:?}");
        assert!(!history.level(2).is_empty());
        // Now what level 2 is made of is damaged as well as itself: the one that is finer first.
        let (lower, upper) = (history.level(1)[0].name, history.level(2)[0].name);
        assert!(upper.min_txid <= lower.min_txid && lower.max_txid <= upper.max_txid);
        history.damage(&upper, Damage::Flipped);
        history.damage(&lower, Damage::Flipped);
        let report = keeping(&history, 3 * SECONDS).repair(&history.bucket).unwrap();
        assert_eq!((report.problems.len(), report.repaired.len()), (0, 2), "{report:?}");
        assert_eq!(history.available().len(), history.states.len());
        let again = keeping(&history, 4 * SECONDS).repair(&history.bucket).unwrap();
        assert_eq!((again.problems.len(), again.repaired.len()), (0, 0), "{again:?}");
    }
}

/// A snapshot that everything older is to go for.
#[test]
fn nothing_goes_for_a_snapshot_that_is_damaged_until_it_is_made_anew() {
    for on_s3 in [true, false] {
        let history = grown(on_s3, 23);
        let [first, second] = history.level(9)[..] else { panic!("two snapshots") };
        let aside = history.path("aside");
        std::fs::rename(history.object(&first.name), &aside).unwrap();
        history.damage(&second.name, if on_s3 { Damage::Flipped } else { Damage::Empty });
        // Without the first one nothing leads to it.
        let before = sizes(&history.bucket.list());
        let day = Order { history_ms: 24 * 3_600_000, exact_ms: 24 * 3_600_000, ..history.order().later(60 * HOUR) };
        let report = day.run(&history.bucket).unwrap();
        assert!(report.deleted.is_empty() && report.repaired.is_empty(), "{report:?}");
        let told = report.problems.join("; ");
        assert!(
            told.contains(&second.name.to_string()) && told.contains("cannot be made anew") && told.contains("the newest state"),
            "{told}"
        );
        assert!(before.iter().all(|file| sizes(&history.bucket.list()).contains(file)));
        // It is back.
        std::fs::rename(&aside, history.object(&first.name)).unwrap();
        let report = history.run(&day);
        assert!(report.repaired.iter().any(|what| what.starts_with(&second.name.to_string())), "{report:?}");
        let last = history.newest();
        assert!(history.check(last));
        // And now it stands for what came before it.
        let report = history.run(&day);
        assert!(!history.level(9).iter().any(|file| file.name == first.name), "{report:?}");
        assert!(history.check(last));
    }
}

/// An upload that no other file has: told with what is lost, and what to do about it, which is then done.
#[test]
fn an_upload_that_is_damaged_is_told_and_given_up_as_the_advice_says() {
    let tools = tools::environment();
    for on_s3 in [true, false] {
        let mut history = History::new(on_s3, 24);
        for _ in 0..5 {
            history.commit();
        }
        history.run(&keeping(&history, SECONDS));
        let lost: Vec<Txid> = (0..4).map(|_| history.commit()).collect();
        let (object, later) = (LtxName::level0(lost[1]), Order { history_ms: 0, exact_ms: 0, ..history.order().later(2 * SECONDS) });
        history.damage(&object, Damage::Flipped);
        let mut before = Vec::new();
        for _ in 0..2 {
            before = sizes(&history.bucket.list());
            let report = later.run(&history.bucket).unwrap();
            let told = report.problems.join("; ");
            assert!(told.contains(&format!("{object}: ")) && told.contains("cannot be made anew"), "{told}");
            let states = lost[3].get() - lost[1].get() + 1;
            let what =
                format!("Without it TXID {} to {} ({states} states) cannot be restored, the newest state among them", lost[1], lost[3]);
            assert!(told.contains(&what), "{told}");
            assert!(report.deleted.is_empty(), "{report:?}");
        }
        // What comes before it was merged in the first one.
        assert_eq!(sizes(&history.bucket.list()), before);
        assert!(history.check(lost[0]));
        // Out of the bucket with it, and the full state sent.
        let aside = history.path("aside");
        std::fs::rename(history.object(&object), &aside).unwrap();
        history.host.close(history.db);
        let mut adopt = host::command(host::program("replicated"), &history.bucket.env);
        succeeds(adopt.arg("adopt").arg(history.path("app.db")).arg(&history.bucket.url));
        let uri = host::replicated(&history.path("app.db"), &history.bucket.url, &[("sync_interval", "10ms"), ("burst", "100")]);
        history.db = history.host.open(&uri);
        history.commit();
        history.commit();
        assert!(history.check(history.newest()));
        let report = history.run(&keeping(&history, 3 * SECONDS));
        assert!(!report.made.is_empty());
        // Also where it lies in the bucket as it was: what is behind it is merged, it is told, and nothing that must stay goes.
        std::fs::rename(&aside, history.object(&object)).unwrap();
        history.commit();
        let report = keeping(&history, 30 * HOUR).repair(&history.bucket).unwrap();
        assert!(!report.made.is_empty(), "{report:?}");
        history.commit();
        history.commit();
        assert!(!keeping(&history, 31 * HOUR).run(&history.bucket).unwrap().made.is_empty());
        assert!(history.check(history.newest()) && history.check(lost[0]));
        if let Some(tools) = &tools {
            history.litestream_agrees(tools, None);
        }
    }
}

/// Killed when the damaged object is gone and the new one is not there yet, and before.
#[test]
fn a_repair_may_die_at_each_step() {
    let tools = tools::environment();
    for (on_s3, point) in [(true, "renewing"), (false, "renewing"), (false, "create")] {
        let history = grown(on_s3, 25);
        let object = middle(&history.level(2));
        history.damage(&object, Damage::Empty);
        let order = keeping(&history, 26 * HOUR);
        let fault = format!("maintain.{point}=kill@1");
        assert!(order.run_apart(&history.bucket, &fault).unwrap_or_else(|error| panic!("{fault}: {error}")));
        assert!(history.check(object.max_txid) && history.check(history.newest()), "{fault}");
        if let Some(tools) = &tools {
            history.litestream_agrees(tools, None);
            history.litestream_agrees(tools, Some(object.max_txid));
        }
        history.run(&order);
        let report = order.repair(&history.bucket).unwrap();
        assert_eq!((report.problems.len(), report.repaired.len()), (0, 0), "{fault}: {report:?}");
        assert!(history.level(2).iter().any(|file| file.name == object), "{fault}");
        assert_eq!(history.available().len(), history.states.len(), "{fault}");
    }
}

/// What cannot be replaced is gone around, and told.
#[test]
fn without_the_right_to_delete_what_is_damaged_is_gone_around() {
    let mut history = grown(true, 26);
    let (object, other) = (history.level(3).last().unwrap().name, middle(&history.level(1)));
    history.damage(&object, Damage::Flipped);
    history.damage(&other, Damage::Empty);
    history.commit();
    let order = keeping(&history, 49 * HOUR);
    let snapshots = history.level(9).len();
    let round = |order: &Order| -> Report {
        let locked: Arc<dyn Store> = Arc::new(Locked { inner: history.bucket.store() });
        maintenance::maintain(&mut Maintainer::new(locked, order.policy()).examining(), order.at()).unwrap()
    };
    let first = history.level(1).len();
    let report = round(&order);
    let told = report.problems.join("; ");
    assert!(history.level(1).len() > first, "{report:?}");
    assert!(
        told.contains(&object.to_string())
            && told.contains(&other.to_string())
            && told.contains("AccessDenied")
            && told.contains("move it out of the bucket"),
        "{told}"
    );
    // The snapshot that was due is made of the other files.
    assert_eq!(history.level(9).len(), snapshots + 1);
    assert!(history.check(history.newest()));
    // Level 3 is as it was: it is read by whoever does not know.
    assert!(history.bucket.level(Level::new(3).unwrap()).iter().any(|file| file.name == object));
    let report = order.repair(&history.bucket).unwrap();
    assert_eq!((report.problems.len(), report.repaired.len()), (0, 2), "{report:?}");
    assert_eq!(history.available().len(), history.states.len());
}
