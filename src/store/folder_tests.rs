use super::*;

fn store(root: &Path) -> FolderStore {
    FolderStore::open(&ReplicaUrl::parse(&format!("file://{}", root.display())).unwrap(), root)
}

fn temporaries(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().ends_with(TEMPORARY)).count()
}

#[test]
fn times_survive_the_file_system() {
    for time in [0, 1, 1_763_819_345_448, -1, 4_102_444_800_001] {
        assert_eq!(timestamp(system_time(TimestampMs(time))), TimestampMs(time));
    }
}

#[test]
fn a_file_system_without_links_is_written_by_rename() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&from, "new").unwrap();
    assert_eq!(rename_if_absent(&from, &to).unwrap(), Published::Atomically);
    fs::write(&from, "newer").unwrap();
    assert_eq!(rename_if_absent(&from, &to).unwrap(), Published::Exists);
    assert_eq!(fs::read_to_string(&to).unwrap(), "new");
}

#[test]
fn what_crashed_writers_left_goes_only_when_it_is_old() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("0000000000000001-0000000000000001.ltx.00ff.tmp"), "half").unwrap();
    fs::write(dir.path().join("0000000000000001-0000000000000001.ltx"), "whole").unwrap();
    remove_abandoned(dir.path(), ABANDONED_AFTER);
    assert_eq!(temporaries(dir.path()), 1);
    std::thread::sleep(Duration::from_millis(20));
    remove_abandoned(dir.path(), Duration::from_millis(5));
    assert_eq!(temporaries(dir.path()), 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_file_where_the_folder_should_be_is_told_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("file");
    fs::write(&root, "").unwrap();
    let name = LtxName::level0(Txid::FIRST);
    let error = store(&root).create(&name, Bytes::from_static(b"x"), TimestampMs(0)).now_or_never().unwrap().unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Io);
    assert!(error.to_string().contains("must name a folder"), "{error}");
}

#[test]
fn a_full_disk_is_told_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let full = io::Error::from_raw_os_error(libc::ENOSPC);
    let name = LtxName::level0(Txid::FIRST);
    for error in [store(dir.path()).error("create", &name, &full), upload_error("file:///x", &name, &full)] {
        assert_eq!(error.kind, StoreErrorKind::Io);
        assert!(error.to_string().contains("No space left") && error.to_string().contains("Free space"), "{error}");
    }
}
