//! Which objects of a replica of Litestream 0.3 make up the state that was asked for. Pure.

use std::collections::BTreeMap;

use super::{GenerationError, GenerationTarget, Moment};
use crate::store::{GenerationFile, GenerationPart};
use crate::types::TimestampMs;

/// The objects that make up a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationPlan {
    /// The generation.
    pub generation: u64,
    /// Where it begins.
    pub snapshot: GenerationFile,
    /// What follows of the logs, in order.
    pub wal: Vec<GenerationFile>,
}

impl GenerationPlan {
    /// All of its objects, in order.
    pub fn files(&self) -> impl Iterator<Item = &GenerationFile> {
        std::iter::once(&self.snapshot).chain(&self.wal)
    }

    /// Their size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.files().map(|file| file.size_bytes).sum()
    }

    /// When the last of them was stored.
    #[must_use]
    pub fn timestamp(&self) -> TimestampMs {
        self.files().map(|file| file.timestamp).max().unwrap_or(TimestampMs(0))
    }
}

/// Of all generations the one whose state is the latest; of it the last snapshot, and what follows on it without a gap.
pub(super) fn plan(files: &[GenerationFile], target: &GenerationTarget) -> Result<GenerationPlan, GenerationError> {
    let mut generations: BTreeMap<u64, Vec<&GenerationFile>> = BTreeMap::new();
    for file in files {
        generations.entry(file.generation).or_default().push(file);
    }
    if let Some(asked) = target.generation {
        generations.retain(|generation, _| *generation == asked);
        if generations.is_empty() {
            return Err(GenerationError::NoSuchGeneration { asked });
        }
    }
    let mut plans = Vec::new();
    for files in generations.values() {
        plans.extend(of_generation(files, target).transpose());
    }
    // A generation that cannot be restored is an error where its state is the one that was asked for: then there is no later one.
    plans.sort_by_key(|plan| match plan {
        Ok(plan) => plan.timestamp(),
        Err((at, _)) => *at,
    });
    match plans.pop() {
        Some(Ok(plan)) => Ok(plan),
        Some(Err((_, error))) => Err(error),
        None => Err(nothing(files, target)),
    }
}

type Failed = (TimestampMs, GenerationError);

fn of_generation(files: &[&GenerationFile], target: &GenerationTarget) -> Result<Option<GenerationPlan>, Failed> {
    let asked = |file: &&&GenerationFile| match target.moment {
        Moment::Latest => true,
        Moment::Timestamp(at) => file.timestamp <= at,
        Moment::Index(index) => file.index() <= index,
    };
    if let Moment::Index(asked) = target.moment
        && let Some(newest) = files.iter().map(|file| file.index()).max().filter(|newest| *newest < asked)
    {
        return Err((TimestampMs(i64::MIN), GenerationError::NotYet { asked, newest }));
    }
    let Some(newest) = files.iter().filter(asked).map(|file| file.timestamp).max() else { return Ok(None) };
    let mut wal: Vec<(u64, u64, &GenerationFile)> = files
        .iter()
        .filter_map(|file| match file.part {
            GenerationPart::Wal { index, offset } => Some((index, offset, *file)),
            GenerationPart::Snapshot { .. } => None,
        })
        .collect();
    wal.sort_by_key(|(index, offset, _)| (*index, *offset));
    let snapshots = files.iter().filter(asked).filter(|file| matches!(file.part, GenerationPart::Snapshot { .. }));
    let Some(snapshot) = snapshots.max_by_key(|file| file.index()) else {
        let generation = files.first().map_or(0, |file| file.generation);
        return Err((newest, GenerationError::NoSnapshot { generation }));
    };
    let first = snapshot.index();
    // They were stored in order: what follows the first that is too late is later still.
    let wal: Vec<GenerationFile> =
        wal.iter().filter(|(index, ..)| *index >= first).map(|(_, _, file)| *file).take_while(|file| asked(&file)).cloned().collect();
    let plan = GenerationPlan { generation: snapshot.generation, snapshot: (**snapshot).clone(), wal };
    match gap(&plan) {
        Some(error) => Err((newest, error)),
        None => Ok(Some(plan)),
    }
}

/// What names alone tell of a gap. Where a segment ends is known once it has been read.
fn gap(plan: &GenerationPlan) -> Option<GenerationError> {
    let mut before = &plan.snapshot;
    for file in &plan.wal {
        let GenerationPart::Wal { index, offset } = file.part else { continue };
        let begins = match before.part {
            GenerationPart::Snapshot { index: snapshot } => index == snapshot && offset == 0,
            GenerationPart::Wal { index: last, .. } => (index == last && offset > 0) || (Some(index) == last.checked_add(1) && offset == 0),
        };
        if !begins {
            return Some(GenerationError::Gap { before: before.to_string(), after: file.to_string() });
        }
        before = file;
    }
    None
}

fn nothing(files: &[GenerationFile], target: &GenerationTarget) -> GenerationError {
    let snapshots = || files.iter().filter(|file| matches!(file.part, GenerationPart::Snapshot { .. }));
    match (target.moment, snapshots().map(|file| file.timestamp).min(), snapshots().map(GenerationFile::index).min()) {
        (Moment::Timestamp(asked), Some(oldest), _) => GenerationError::BeforeOldest { asked, oldest },
        (Moment::Index(asked), _, Some(oldest)) => GenerationError::NoSuchIndex { asked, oldest },
        _ => GenerationError::Empty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(generation: u64, index: u64, at: i64) -> GenerationFile {
        let part = GenerationPart::Snapshot { index };
        GenerationFile { generation, part, path: format!("{generation}/{index}"), size_bytes: 1, timestamp: TimestampMs(at) }
    }

    fn wal(generation: u64, index: u64, offset: u64, at: i64) -> GenerationFile {
        let part = GenerationPart::Wal { index, offset };
        GenerationFile { generation, part, path: format!("{generation}/{index}_{offset}"), size_bytes: 1, timestamp: TimestampMs(at) }
    }

    fn planned(files: &[GenerationFile], generation: Option<u64>, moment: Moment) -> Result<String, GenerationError> {
        let plan = plan(files, &GenerationTarget { generation, moment })?;
        Ok(plan.files().map(|file| file.path.clone()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_latest_state_is_that_of_the_generation_that_was_written_to_last() {
        let files = [
            wal(1, 1, 0, 30),
            snapshot(1, 0, 10),
            wal(1, 0, 50, 20),
            wal(1, 0, 0, 11),
            snapshot(2, 3, 40),
            wal(2, 3, 0, 41),
            snapshot(2, 4, 50),
            wal(2, 4, 0, 50),
        ];
        let at = |at| planned(&files, None, Moment::Timestamp(TimestampMs(at)));
        assert_eq!(planned(&files, None, Moment::Latest), Ok("2/4 2/4_0".to_owned()));
        assert_eq!(planned(&files, Some(1), Moment::Latest), Ok("1/0 1/0_0 1/0_50 1/1_0".to_owned()));
        assert_eq!(planned(&files, Some(1), Moment::Index(0)), Ok("1/0 1/0_0 1/0_50".to_owned()));
        assert_eq!(planned(&files, Some(2), Moment::Index(3)), Ok("2/3 2/3_0".to_owned()));
        assert_eq!(at(29), Ok("1/0 1/0_0 1/0_50".to_owned()));
        assert_eq!(at(40), Ok("2/3".to_owned()));
        assert_eq!(at(9), Err(GenerationError::BeforeOldest { asked: TimestampMs(9), oldest: TimestampMs(10) }));
        assert_eq!(planned(&files, Some(7), Moment::Latest), Err(GenerationError::NoSuchGeneration { asked: 7 }));
        assert_eq!(planned(&files, Some(2), Moment::Index(2)), Err(GenerationError::NoSuchIndex { asked: 2, oldest: 0 }));
        assert_eq!(planned(&files, Some(2), Moment::Index(5)), Err(GenerationError::NotYet { asked: 5, newest: 4 }));
        assert_eq!(planned(&[], None, Moment::Latest), Err(GenerationError::Empty));
        for missing in [2, 3] {
            let mut less = files[..4].to_vec();
            less.remove(missing);
            let expected = if missing == 2 { Ok("1/0 1/0_0 1/1_0".to_owned()) } else { planned(&less, None, Moment::Latest) };
            assert_eq!(planned(&less, None, Moment::Latest), expected);
        }
        assert!(matches!(planned(&files[..3], None, Moment::Latest), Err(GenerationError::Gap { .. })));
        assert!(matches!(planned(&[files[0].clone()], None, Moment::Latest), Err(GenerationError::NoSnapshot { generation: 1 })));
        assert!(matches!(planned(&[snapshot(1, 0, 1), wal(1, 1, 0, 2)], None, Moment::Latest), Err(GenerationError::Gap { .. })));
    }
}
