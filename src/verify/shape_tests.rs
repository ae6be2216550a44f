use std::time::Duration;

use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_000_000_000;

fn file(level: u8, min: u64, max: u64, age_seconds: i64) -> Listed {
    let name = LtxName { level: Level::new(level).unwrap(), min_txid: Txid::new(min).unwrap(), max_txid: Txid::new(max).unwrap() };
    Listed { name, size_bytes: 500, timestamp: TimestampMs(NOW - age_seconds * 1000), timestamp_is_exact: true }
}

fn shape(files: &[Listed], history: u64, exact: u64) -> Shape {
    let scope = Scope { history: Duration::from_secs(history), exact: Duration::from_secs(exact), ..Scope::default() };
    look(files, &scope, TimestampMs(NOW), &[])
}

fn about(findings: &[Finding]) -> Found {
    findings
        .iter()
        .map(|finding| {
            (
                finding.kind,
                finding.object.map_or_else(String::new, |name| format!("{}/{}-{}", name.level, name.min_txid.get(), name.max_txid.get())),
            )
        })
        .collect()
}

type Found = Vec<(Kind, String)>;

fn kinds(shape: &Shape) -> (Found, Found) {
    (about(&shape.findings), about(&shape.if_ours))
}

fn one(kind: Kind, object: &str) -> Found {
    vec![(kind, object.to_owned())]
}

fn ours() -> Vec<Listed> {
    let age = |txid: u64| i64::try_from(100 - 10 * txid).unwrap();
    let level0 = (2..=9).map(|txid| file(0, txid, txid, age(txid)));
    level0.chain([file(9, 1, 2, 80), file(1, 3, 5, 50), file(1, 6, 8, 20)]).collect()
}

fn without(level: u8, min: u64, max: u64) -> Vec<Listed> {
    let gone = file(level, min, max, 0).name;
    ours().into_iter().filter(|file| file.name != gone).collect()
}

#[test]
fn a_whole_bucket_has_no_findings() {
    let all = shape(&ours(), 1000, 1000);
    assert_eq!(kinds(&all), (vec![], vec![]));
    assert_eq!((all.states.len(), all.reads.len(), all.floor), (8, 11, None));
    // The shortest first, so that the others are compared with it.
    let order: Vec<String> = all.reads.iter().map(|file| file.name.to_string()).collect();
    assert_eq!(order[..2], [file(0, 2, 2, 0).name.to_string(), file(9, 1, 2, 0).name.to_string()]);
    assert_eq!(order[5..7], [file(1, 3, 5, 0).name.to_string(), file(0, 6, 6, 0).name.to_string()]);
    // What is older than the window is not read.
    let newer: Vec<Listed> = ours().into_iter().chain([file(9, 1, 6, 40)]).collect();
    let some = shape(&newer, 35, 35);
    assert_eq!(some.floor.map(|floor| floor.name.max_txid.get()), Some(6));
    assert_eq!((some.reads.len(), some.states.len()), (5, 4));
    assert_eq!(kinds(&some), (vec![], vec![]));
}

#[test]
fn holes_are_told_by_what_is_lost_with_them() {
    // Something spans it: the states in between are lost, if they are promised one by one.
    assert_eq!(kinds(&shape(&without(0, 4, 4), 1000, 1000)), (one(Kind::MissingFile, "0/4-4"), vec![]));
    assert_eq!(kinds(&shape(&without(0, 5, 5), 1000, 1000)), (one(Kind::MissingFile, "0/5-5"), vec![]));
    assert_eq!(kinds(&shape(&without(0, 4, 4), 1000, 15)), (vec![], vec![]));
    // Nothing does.
    let mut files = without(0, 4, 4);
    files.retain(|file| file.name.level.get() != 1);
    let gap = shape(&files, 1000, 1000);
    assert_eq!(kinds(&gap), (one(Kind::Gap, "0/4-4"), vec![]));
    assert!(gap.findings[0].advice.contains("adopt"), "the newest state is lost: {:?}", gap.findings);
    files.push(file(9, 1, 8, 20));
    let healed = shape(&files, 1000, 1000);
    assert_eq!(kinds(&healed), (one(Kind::Gap, "0/4-4"), vec![]));
    assert!(!healed.findings[0].advice.contains("adopt"), "{:?}", healed.findings);
    // In a level above.
    let level1: Vec<Listed> =
        ours().into_iter().chain([file(1, 9, 9, 10)]).filter(|file| file.name != self::file(1, 6, 8, 0).name).collect();
    assert_eq!(kinds(&shape(&level1, 1000, 1000)), (one(Kind::MissingFile, "1/6-8"), vec![]));
    // The newest.
    let mut merged = without(0, 9, 9);
    merged.push(file(1, 9, 9, 10));
    assert_eq!(kinds(&shape(&merged, 1000, 1000)), (one(Kind::MissingFile, "0/9-9"), vec![]));
}

#[test]
fn without_a_beginning_nothing_can_be_restored() {
    assert_eq!(kinds(&shape(&without(9, 1, 2), 1000, 1000)), (one(Kind::NoBase, "0/2-2"), vec![]));
    // A later snapshot leads to what follows it, and what was before is lost. Litestream deletes that way.
    let mut files = without(9, 1, 2);
    files.push(file(9, 1, 7, 30));
    assert_eq!(kinds(&shape(&files, 1000, 1000)), (vec![], one(Kind::NoBase, "0/2-2")));
    assert_eq!(kinds(&shape(&files, 25, 25)), (vec![], vec![]), "it is older than the window");
    assert_eq!(kinds(&shape(&[], 1000, 1000)).0, one(Kind::Empty, ""));
}

#[test]
fn the_beginning_of_level_0_may_be_gone_where_it_is_not_promised() {
    let files: Vec<Listed> = ours().into_iter().filter(|file| file.name.level.get() != 0 || file.name.max_txid.get() > 5).collect();
    assert_eq!(kinds(&shape(&files, 1000, 1000)), (vec![], one(Kind::MissingFile, "0/5-5")));
    assert_eq!(kinds(&shape(&files, 1000, 45)), (vec![], vec![]));
    // As Litestream does, which leaves a part of what is spanned.
    let files: Vec<Listed> = ours().into_iter().filter(|file| file.name.level.get() != 0 || file.name.max_txid.get() > 6).collect();
    assert_eq!(kinds(&shape(&files, 1000, 1000)), (vec![], one(Kind::MissingFile, "0/6-6")));
}

/// What a lifecycle rule takes ends anywhere: here in the midst of what a file of level 1 spans.
#[test]
fn the_beginning_of_level_0_is_missed_where_it_ends_within_a_merged_file() {
    let left: Vec<Listed> = ours().into_iter().filter(|file| file.name.level != Level::ZERO || file.name.min_txid.get() > 7).collect();
    assert_eq!(kinds(&shape(&left, 100, 100)).1, one(Kind::MissingFile, "0/7-7"));
    // TXID 5 was before that time, and 7 may have been.
    assert_eq!(kinds(&shape(&left, 100, 45)), (vec![], vec![]));
}

#[test]
fn what_is_kept_is_read_whatever_its_age() {
    let files: Vec<Listed> = ours().into_iter().chain([file(9, 1, 6, 40)]).collect();
    let scope = Scope { history: Duration::from_secs(35), exact: Duration::from_secs(35), ..Scope::default() };
    let kept = |txid| look(&files, &scope, TimestampMs(NOW), &[Txid::new(txid).unwrap()]);
    assert!(kept(4).reads.iter().any(|read| read.name == file(0, 4, 4, 0).name));
    assert_eq!(about(&kept(77).findings), one(Kind::Gap, ""));
}

fn any_file() -> impl Strategy<Value = Listed> {
    let span = prop_oneof![4 => Just(0_u64), 2 => 0_u64..6];
    let level = prop_oneof![4 => Just(0_u8), 3 => 1_u8..9, 2 => Just(9_u8)];
    (level, 1_u64..24, span, prop::bool::weighted(0.05)).prop_map(|(level, min, span, short)| {
        let min = if level == 9 { 1 } else { min };
        Listed { size_bytes: if short { 10 } else { 500 }, ..file(level, min, min + span, 100 - i64::try_from(min + span).unwrap()) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The states that are said to be there are those that a restore would find a plan for, and where some are missing something is found.
    #[test]
    fn states_are_those_that_a_restore_has_a_plan_for(files in prop::collection::vec(any_file(), 0..30)) {
        let shape = shape(&files, 10_000, 10_000);
        let ends: BTreeSet<Txid> = files.iter().filter(|file| is_usable(file)).map(|file| file.name.max_txid).collect();
        let planned: Vec<Txid> = ends.iter().filter(|txid| restore::plan(&files, Target::Txid(**txid)).is_ok()).copied().collect();
        prop_assert_eq!(&shape.states, &planned);
        if planned.len() < ends.len() {
            prop_assert!(!(shape.findings.is_empty() && shape.if_ours.is_empty()));
        }
        for file in &files {
            let others: Vec<Listed> = files.iter().filter(|other| other.name != file.name).copied().collect();
            let lost = lost_without(&files, &file.name, None);
            for txid in &planned {
                prop_assert_eq!(lost.contains(txid), restore::plan(&others, Target::Txid(*txid)).is_err(), "{} without {}", txid, file.name);
            }
        }
    }
}
