use super::*;
use crate::store::Level;
use crate::types::{TimestampMs, Txid};

/// Room for 64 KiB, of objects of up to 8 KiB.
fn recent(folder: &std::path::Path) -> Recent {
    let database = folder.join("app.db");
    std::fs::write(&database, "").unwrap();
    let mut recent = Recent::new(folder.join("recent"), database, SHARE << 16);
    recent.least_free_bytes = 0;
    recent
}

fn name(level: u8, min: u64, max: u64) -> LtxName {
    LtxName { level: Level::new(level).unwrap(), min_txid: Txid::new(min).unwrap(), max_txid: Txid::new(max).unwrap() }
}

fn listed(name: LtxName, size_bytes: usize) -> Listed {
    Listed { name, size_bytes: size_bytes as u64, timestamp: TimestampMs(0), timestamp_is_exact: true }
}

fn content(name: &LtxName, bytes: usize) -> Bytes {
    let seed = name.max_txid.get().wrapping_mul(u64::from(name.level.get()) + 1);
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(bytes).collect()
}

#[test]
fn what_was_kept_is_read_back_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let recent = recent(folder.path());
    let (name, other) = (name(0, 7, 7), name(1, 7, 7));
    recent.keep(&name, &content(&name, 5000));
    assert_eq!(recent.read(&listed(name, 5000), 0..5000), Some(content(&name, 5000)));
    assert_eq!(recent.read(&listed(name, 5000), 4000..5000), Some(content(&name, 5000).slice(4000..)));
    assert_eq!(recent.read(&listed(name, 5000), 4000..5001), None);
    // Another's object under the same name, by its size.
    assert!(!recent.has(&listed(name, 5001)));
    assert_eq!((recent.read(&listed(name, 5001), 0..10), recent.read(&listed(other, 5000), 0..10)), (None, None));
    // The same name again.
    recent.keep(&name, &content(&other, 3000));
    assert_eq!(recent.read(&listed(name, 3000), 0..3000), Some(content(&other, 3000)));
    assert!(recent.discard(&name) && !recent.discard(&name));
    assert_eq!(recent.read(&listed(name, 3000), 0..3000), None);
    drop(recent);
    assert!(!folder.path().join("recent").exists());
}

#[test]
fn a_burst_takes_no_more_room_than_it_may_and_the_oldest_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let recent = recent(folder.path());
    let mut random = fastrand::Rng::with_seed(11);
    let mut sizes: Vec<(LtxName, usize)> = Vec::new();
    for txid in 1..3000 {
        let (name, bytes) = (name(0, txid, txid), random.usize(100..9000));
        recent.keep(&name, &content(&name, bytes));
        sizes.push((name, bytes));
        if txid % 97 == 0 {
            // What was merged makes room, wherever it was.
            recent.made(&self::name(1, txid - 20, txid - 5), None);
        }
        assert!(std::fs::metadata(folder.path().join("recent")).map_or(0, |file| file.len()) <= 64 << 10);
        let table = recent.table.lock();
        assert_eq!(table.bytes, table.objects.values().map(|object| object.bytes).sum::<u64>());
        assert!(table.bytes <= 64 << 10 && table.objects.len() == table.places.len() && table.objects.len() == table.by_name.len());
    }
    let had: Vec<&(LtxName, usize)> = sizes.iter().filter(|(name, bytes)| recent.has(&listed(*name, *bytes))).collect();
    for (name, bytes) in &had {
        assert_eq!(recent.read(&listed(*name, *bytes), 0..*bytes as u64).unwrap(), content(name, *bytes), "{name}");
    }
    // An object that is too large for it is not kept, and drives none out.
    let newest: Vec<LtxName> = sizes.iter().filter(|(_, bytes)| *bytes <= 8192).map(|(name, _)| *name).rev().take(had.len()).collect();
    assert!(had.len() >= 8 && had.iter().rev().map(|(name, _)| *name).eq(newest), "{had:?}");
}

#[test]
fn what_was_merged_goes_and_the_disk_gets_its_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let recent = recent(folder.path());
    let length = || std::fs::metadata(folder.path().join("recent")).map_or(0, |file| file.len());
    for txid in 2..=11 {
        recent.keep(&name(0, txid, txid), &content(&name(0, txid, txid), 4000));
    }
    assert_eq!(length(), 40_000);
    // The first level's file takes the place of one of those that it was made of.
    recent.made(&name(1, 2, 6), Some(content(&name(1, 2, 6), 3000)));
    assert!((2..=6).all(|txid| !recent.has(&listed(name(0, txid, txid), 4000))));
    assert!((7..=11).all(|txid| recent.has(&listed(name(0, txid, txid), 4000))));
    assert_eq!(recent.read(&listed(name(1, 2, 6), 3000), 0..3000), Some(content(&name(1, 2, 6), 3000)));
    // A snapshot takes nothing away: what it was made of is merged further.
    recent.made(&name(9, 1, 11), None);
    assert!(recent.has(&listed(name(0, 11, 11), 4000)));
    recent.made(&name(1, 7, 11), None);
    assert_eq!(length(), 3000);
    recent.made(&name(2, 2, 11), None);
    assert!(!folder.path().join("recent").exists());
}

#[test]
fn a_file_that_is_another_processs_or_is_cut_short_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recent");
    let (ours, object) = (recent(folder.path()), name(0, 3, 3));
    ours.keep(&object, &content(&object, 4000));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(folder.path().join("taken"), "so that the inode is another one").unwrap();
    let theirs = recent(folder.path());
    theirs.begin();
    theirs.keep(&name(0, 9, 9), &content(&name(0, 9, 9), 4000));
    assert_eq!(ours.read(&listed(object, 4000), 0..4000), None);
    assert!(!ours.has(&listed(object, 4000)));
    // And what is kept from here on is kept anew.
    ours.keep(&object, &content(&object, 4000));
    assert_eq!(ours.read(&listed(object, 4000), 0..4000), Some(content(&object, 4000)));
    std::fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert_eq!(ours.read(&listed(object, 4000), 0..4000), None);
    assert!(!path.exists());
}

#[test]
fn what_a_killed_process_has_left_goes_and_a_disk_with_little_room_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recent");
    std::fs::write(&path, vec![1; 10_000]).unwrap();
    let mut recent = recent(folder.path());
    recent.begin();
    assert!(!path.exists());
    let object = name(0, 3, 3);
    recent.keep(&object, &content(&object, 4000));
    assert!(path.exists());
    recent.least_free_bytes = u64::MAX;
    recent.keep(&name(0, 4, 4), &content(&object, 4000));
    assert!(!path.exists() && !recent.has(&listed(object, 4000)));
}
