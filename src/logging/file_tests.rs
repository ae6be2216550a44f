use std::collections::HashSet;

use super::*;

const LIMIT_BYTES: u64 = 64 << 10;

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "a line was torn");
    text.lines().map(str::to_owned).collect()
}

fn line(writer: usize, n: usize) -> String {
    format!("{writer} {n} {}\n", "x".repeat(80))
}

/// Files that are opened by themselves are as those of several processes.
#[test]
fn many_writers_share_a_file_and_its_predecessor() {
    const WRITERS: usize = 4;
    const THREADS: usize = 2;
    const LINES: usize = 2000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let processes: Vec<LogFile> = (0..WRITERS).map(|_| LogFile::new(&path, LIMIT_BYTES)).collect();
    // Where whoever is about to rename is not given the processor, the others fill the file up to its bound; what they have no room for they say.
    let (missed, told) = (&Mutex::new(HashSet::new()), &AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (i, process) in processes.iter().enumerate() {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    for n in 0..LINES {
                        let line = line(i * THREADS + thread, n);
                        match process.put(&line) {
                            Put::Written => {}
                            Put::WrittenAgain { missed } => drop(told.fetch_add(missed, Ordering::Relaxed)),
                            Put::Missed { .. } => assert!(missed.lock().insert(line.trim_end().to_owned())),
                        }
                    }
                });
            }
        }
    });
    let rest: u64 = processes.iter().map(|process| process.missed.load(Ordering::Relaxed)).sum();
    assert_eq!(told.load(Ordering::Relaxed) + rest, missed.lock().len() as u64);
    let (older, newer) = (lines(&with_suffix(&path)), lines(&path));
    // Nobody renamed a file that was just begun.
    assert!(older.len() * line(0, 0).len() > LIMIT_BYTES as usize / 2, "{} lines", older.len());
    for file in [&path, &with_suffix(&path)] {
        assert!(std::fs::metadata(file).unwrap().len() <= LIMIT_BYTES * MOST_TIMES, "{file:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    let all: Vec<&String> = older.iter().chain(&newer).collect();
    let different: HashSet<&&String> = all.iter().collect();
    assert_eq!(different.len(), all.len());
    for told in all {
        assert!(!missed.lock().contains(told));
        let words: Vec<usize> = told.split(' ').take(2).map(|word| word.parse().unwrap()).collect();
        assert_eq!(format!("{told}\n"), line(words[0], words[1]));
    }
}

/// By one writer, so that every line has its place.
#[test]
fn nothing_is_lost_but_what_is_older_than_the_predecessor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let file = LogFile::new(&path, LIMIT_BYTES);
    let written: Vec<String> = (0..3000).map(|n| line(0, n)).collect();
    for line in &written {
        assert_eq!(file.put(line), Put::Written);
        assert!(std::fs::metadata(&path).unwrap().len() <= LIMIT_BYTES);
    }
    let kept = [lines(&with_suffix(&path)), lines(&path)].concat();
    assert!(kept.iter().map(|line| line.len() as u64 + 1).sum::<u64>() > LIMIT_BYTES - 200);
    let expected: Vec<&str> = written[written.len() - kept.len()..].iter().map(|line| line.trim_end()).collect();
    assert_eq!(kept, expected);
}

#[test]
fn a_file_that_somebody_else_renames_or_deletes_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, moved) = (dir.path().join("log"), dir.path().join("moved"));
    let file = LogFile::new(&path, LIMIT_BYTES);
    assert_eq!(file.put("one\n"), Put::Written);
    std::fs::rename(&path, &moved).unwrap();
    assert_eq!(file.put("two\n"), Put::Written);
    assert_eq!((lines(&moved), lines(&path)), (vec!["one".to_owned()], vec!["two".to_owned()]));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(file.put("three\n"), Put::Written);
    assert_eq!(lines(&path), ["three"]);
}

#[test]
fn a_link_stays_a_link_and_the_next_file_is_as_the_one_before() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (link, target) = (dir.path().join("link"), dir.path().join("log"));
    std::fs::write(&target, "older\n").unwrap();
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let file = LogFile::new(&link, LIMIT_BYTES);
    while !with_suffix(&target).exists() {
        assert_eq!(file.put(&line(0, 0)), Put::Written);
    }
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(lines(&with_suffix(&target))[0], "older");
    assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o777, 0o640);
}

/// A name of the predecessor that cannot be had: a directory is there.
#[test]
fn where_it_cannot_be_renamed_it_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::create_dir(with_suffix(&path)).unwrap();
    std::fs::write(with_suffix(&path).join("something"), "").unwrap();
    let file = LogFile::new(&path, LIMIT_BYTES);
    let put: Vec<Put> = (0..3000).map(|n| file.put(&line(0, n))).collect();
    assert!(std::fs::metadata(&path).unwrap().len() <= LIMIT_BYTES * MOST_TIMES);
    let told: Vec<&String> = put.iter().filter_map(|put| if let Put::Missed { cause } = put { cause.as_ref() } else { None }).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("is full and cannot be renamed"), "{told:?}");
    // Once it can be, it goes on.
    std::fs::remove_dir_all(with_suffix(&path)).unwrap();
    let missed = put.iter().filter(|put| **put != Put::Written).count() as u64;
    assert_eq!((file.put("next\n"), file.put("next\n")), (Put::WrittenAgain { missed }, Put::Written));
}

#[test]
fn what_cannot_be_written_is_told_once_and_again_after_it_could_be() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    let file = LogFile::new(&folder.join("log"), LIMIT_BYTES);
    let told = file.open_now().unwrap();
    assert!(told.contains("folder/log: No such file or directory") && told.ends_with(TO_SQLITE), "{told}");
    assert_eq!((file.put("one\n"), file.put("two\n")), (Put::Missed { cause: None }, Put::Missed { cause: None }));
    std::fs::create_dir(&folder).unwrap();
    assert_eq!((file.put("three\n"), file.put("four\n")), (Put::WrittenAgain { missed: 2 }, Put::Written));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(matches!(file.put("five\n"), Put::Missed { cause: Some(_) }));
    assert_eq!(file.put("six\n"), Put::Missed { cause: None });
}

#[test]
fn a_full_disk_and_a_pipe_without_a_reader_hold_nobody_up() {
    let full = LogFile::new(Path::new("/dev/full"), LIMIT_BYTES);
    assert_eq!(full.open_now(), None);
    let Put::Missed { cause: Some(cause) } = full.put("one\n") else { panic!("it was written") };
    assert!(cause.contains("No space left on device"), "{cause}");
    assert_eq!(full.put("two\n"), Put::Missed { cause: None });

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let pipe = LogFile::new(&path, LIMIT_BYTES);
    assert!(pipe.open_now().is_some());
    assert_eq!(pipe.put("one\n"), Put::Missed { cause: None });
    // It is there, and not renamed.
    assert!(!with_suffix(&path).exists());
}
