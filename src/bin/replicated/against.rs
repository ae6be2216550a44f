//! A bucket's newest state beside the live database.

use std::path::{Path, PathBuf};
use std::time::Duration;

use replicated::ltx::Header;
use replicated::maintenance;
use replicated::restore::Target;
use replicated::store::Listed;
use replicated::types::{TimestampMs, Txid};
use replicated::verify::{self, Finding, Kind, Local, Point, PointReport, Report, Verifier};
use serde_json::{Value, json};

use crate::file_head::FileHead;
use crate::integrity::IntegrityCheck;
use crate::live::{Differences, Live, Moment, Unread};
use crate::text;

/// A difference that may be one of the moment is looked at so often.
const TRIES: u32 = 3;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    /// The bucket's state is one that the database has had; it has gone on since.
    Behind {
        commits: Option<u32>,
        why: String,
    },
    Differs(String),
    NotChecked(String),
}

/// A comparison and what it looked at.
#[derive(Debug)]
pub(crate) struct Against {
    path: PathBuf,
    relation: Relation,
    txid: Option<Txid>,
    differences: Option<Differences>,
    /// Pages that were changed since, and whose content then is not known.
    unknown: u64,
}

impl Relation {
    const fn name(&self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Behind { .. } => "behind",
            Self::Differs(_) => "differs",
            Self::NotChecked(_) => "not_checked",
        }
    }
}

/// Compares; what is wrong is added to the report. The newest state is restored for it, and looked at as any other point.
pub(crate) fn compare(
    verifier: &Verifier,
    path: &Path,
    folder: &Path,
    most_bytes: u64,
    check: IntegrityCheck,
    max_lag: Option<Duration>,
    report: &mut Report,
) -> (Against, Option<PointReport>) {
    let mut against = Against { path: path.to_owned(), relation: Relation::Equal, txid: None, differences: None, unknown: 0 };
    let mut point = None;
    for attempt in 1..=TRIES {
        (against, point) = once(verifier, path, folder, most_bytes, check, report);
        if !matches!(against.relation, Relation::Differs(_)) || attempt == TRIES {
            break;
        }
    }
    let name = path.display();
    match &against.relation {
        Relation::Differs(why) => report.add(Finding {
            kind: Kind::Against,
            object: None,
            what: format!("{name} is not what the bucket has: {why}"),
            advice: "Let SQLite check both (`PRAGMA integrity_check`). Where the database is right, `replicated adopt` has its next open send its full state; \
                     where the bucket is, restore it to a new name and look at what differs"
                .to_owned(),
        }),
        Relation::NotChecked(why) => report.not_checked.push(format!("{name} was not compared: {why}")),
        Relation::Behind { why, .. } => {
            let age = report.newest.map(|newest| maintenance::now().0.saturating_sub(newest.timestamp.0));
            let most = max_lag.map(|most| i64::try_from(most.as_millis()).unwrap_or(i64::MAX));
            if let (Some(newest), Some(true)) = (report.newest, age.zip(most).map(|(age, most)| age > most)) {
                report.add(Finding {
                    kind: Kind::Against,
                    object: None,
                    what: format!("{name} goes on from the bucket, whose newest state is of {}: {why}", text::time(newest.timestamp)),
                    advice: "Look whether it is replicated: `PRAGMA replicated_status` in a program that has it open, its log, or Litestream's".to_owned(),
                });
            }
        }
        Relation::Equal => {}
    }
    (against, point)
}

fn once(
    verifier: &Verifier,
    path: &Path,
    folder: &Path,
    most_bytes: u64,
    check: IntegrityCheck,
    report: &mut Report,
) -> (Against, Option<PointReport>) {
    let mut against = Against { path: path.to_owned(), relation: Relation::Equal, txid: None, differences: None, unknown: 0 };
    let from = report.newest.map(|newest| newest.name.max_txid);
    let mut newest: Option<(Listed, Header)> = None;
    let live = Live::read(path, most_bytes, &mut || {
        newest = verify::newest_upload(verifier.store(), from).map_err(|error| error.to_string())?;
        Ok(newest.map(|(_, header)| header))
    });
    let live = match live {
        Ok(live) => live,
        Err(unread) => {
            against.relation = match unread {
                Unread::NotChecked(why) => Relation::NotChecked(why),
                Unread::Apart(why) => Relation::Differs(why),
            };
            against.txid = newest.map(|(file, _)| file.name.max_txid);
            return (against, None);
        }
    };
    let Some((file, header)) = newest else {
        against.relation = Relation::NotChecked("the bucket has no upload (level 0) that it could be compared with".to_owned());
        return (against, None);
    };
    let txid = file.name.max_txid;
    (against.txid, against.unknown) = (Some(txid), live.unknown);
    let found: std::cell::RefCell<Option<(Differences, FileHead)>> = std::cell::RefCell::new(None);
    let point = Point { target: Target::Txid(txid), why: "newest" };
    let look = |_: &Point, restored: &Path| {
        let differences = live.differing(restored).and_then(|differences| Ok((differences, FileHead::of(restored)?)));
        *found.borrow_mut() = Some(differences.map_err(|error| format!("{}: {error}", restored.display()))?);
        check.run(restored)
    };
    let restored = verify::restore_points(verifier, &[point], folder, &look, report).map(|mut points| points.pop());
    let point = match restored {
        Ok(point) => point,
        Err(error) => {
            report.not_checked.push(error.to_string());
            None
        }
    };
    let Some((differences, head)) = found.into_inner() else {
        let why = point.as_ref().and_then(|point| point.problem.clone()).unwrap_or_default();
        against.relation = Relation::NotChecked(why);
        return (against, point);
    };
    let beside = match verify::local(path, verifier.store().url()) {
        Ok(beside) => beside,
        Err(error) => {
            report.notes.push(format!("what is kept beside {} cannot be read: {error}", path.display()));
            None
        }
    };
    against.relation = judge(&live, &differences, head, txid, beside.as_ref(), path, header.timestamp);
    against.differences = Some(differences);
    (against, point)
}

fn judge(
    live: &Live,
    found: &Differences,
    restored: FileHead,
    txid: Txid,
    local: Option<&Local>,
    path: &Path,
    newest: TimestampMs,
) -> Relation {
    let same_size = found.restored_pages == live.pages || !live.is_size_known;
    let is_equal = found.count == 0 && same_size && restored.page_size == Some(live.page_size);
    let differ = || {
        if let Some(other) = restored.page_size.filter(|other| *other != live.page_size) {
            return format!("its pages have {} bytes, and those of the bucket's TXID {txid} {other}", live.page_size);
        }
        if found.count == 0 {
            return format!("it has {}, and the bucket's TXID {txid} {}", text::count(live.pages as usize, "page"), found.restored_pages);
        }
        let pages: Vec<String> = found.pages.iter().map(u32::to_string).collect();
        let more = if found.count > found.pages.len() as u64 { ", ..." } else { "" };
        format!("{} of {} pages differ from TXID {txid} ({}{more})", found.count, live.pages, pages.join(", "))
    };
    match live.moment {
        Moment::Uploaded { .. } if !is_equal => Relation::Differs(format!("{}, at the very commit that was uploaded", differ())),
        Moment::Uploaded { commits_since: 0, .. } => Relation::Equal,
        Moment::Uploaded { commits_since, frames_since } => Relation::Behind {
            commits: Some(commits_since),
            why: format!("{} in {frames_since} frames of the WAL came after it", text::count(commits_since as usize, "commit")),
        },
        Moment::File { frames: 0 } if is_equal => Relation::Equal,
        Moment::File { frames } if is_equal => Relation::Behind { commits: None, why: format!("{frames} frames of the WAL came after it") },
        Moment::File { .. } => {
            let is_settled = local.is_some_and(|local| local.is_unchanged && local.waits.is_none() && local.acked == Some(txid));
            let acked = local.and_then(|local| local.acked);
            if let Some(apart) = local.and_then(|local| local.apart.as_ref()) {
                return Relation::Differs(format!("{}; {apart}", differ()));
            }
            if let Some(waits) = local.and_then(|local| local.waits.as_ref()).filter(|_| !is_settled) {
                return Relation::Behind { commits: None, why: format!("{}; {waits}", differ()) };
            }
            // With a WAL not every commit counts it up.
            let ahead = live.change_counter.wrapping_sub(restored.change_counter);
            if !is_settled && acked.is_none_or(|acked| acked >= txid) && (1..1 << 31).contains(&ahead) {
                let (commits, least) = if live.is_wal { (None, "at least ") } else { (Some(ahead), "") };
                let why = format!("{}; by its change counter it is {least}{} ahead", differ(), text::count(ahead as usize, "commit"));
                return Relation::Behind { commits, why };
            }
            if let Some(acked) = acked.filter(|acked| *acked < txid) {
                return Relation::Differs(format!(
                    "{}, and it knows of TXID {acked} only: it is an older copy, or another writer has gone on",
                    differ()
                ));
            }
            let written = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
            let written =
                written.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).and_then(|at| i64::try_from(at.as_millis()).ok());
            let hint = match written {
                Some(at) if !is_settled && at > newest.0 => format!(
                    ". It was written to at {}, after the bucket's newest state ({}): where what was written then was not replicated, the bucket is merely behind",
                    text::time(TimestampMs(at)),
                    text::time(newest)
                ),
                _ => String::new(),
            };
            Relation::Differs(differ() + &hint)
        }
    }
}

impl Against {
    /// A line of the report.
    pub(crate) fn as_text(&self) -> String {
        let at = self.txid.map_or_else(String::new, |txid| format!(" TXID {txid}"));
        let compared = self.differences.as_ref().map_or_else(String::new, |found| {
            let free = if found.free > 0 { format!(", {} free ones differ in what means nothing", found.free) } else { String::new() };
            let unknown = if self.unknown > 0 { format!(", {} changed since and not compared", self.unknown) } else { String::new() };
            format!(" ({} compared{unknown}{free})", text::count(usize::try_from(found.compared).unwrap_or(usize::MAX), "page"))
        });
        let name = self.path.display();
        match &self.relation {
            Relation::Equal => format!("{name} is the bucket's{at}{compared}"),
            Relation::Behind { why, .. } => format!("{name} goes on from the bucket's{at}, which is behind: {why}{compared}"),
            Relation::Differs(_) => format!("{name} differs from the bucket's{at}{compared}"),
            Relation::NotChecked(_) => format!("{name} was not compared"),
        }
    }

    pub(crate) fn as_json(&self) -> Value {
        let (commits, why) = match &self.relation {
            Relation::Equal => (Some(0), None),
            Relation::Behind { commits, why } => (*commits, Some(why)),
            Relation::Differs(why) | Relation::NotChecked(why) => (None, Some(why)),
        };
        let found = self.differences.as_ref();
        json!({
            "database": self.path.to_string_lossy(),
            "status": self.relation.name(),
            "txid": self.txid.map(|txid| txid.to_string()),
            "commits_behind": commits,
            "why": why,
            "pages_compared": found.map(|found| found.compared),
            "pages_differing": found.map(|found| found.count),
            "first_differing": found.map(|found| found.pages.clone()),
            "free_pages_differing": found.map(|found| found.free),
            "pages_changed_since": self.unknown,
        })
    }
}
