//! Replicas of Litestream 0.3: every state that one has is restored to the byte, and what is damaged or missing is named.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use replicated_testkit::bucket::{Bucket, flattened};
use replicated_testkit::s3::Server;
use replicated_testkit::sqlite::page_compare;
use rusqlite::Connection;
use serde_json::Value;

const GENERATION: &str = "92852a2dde519981";
const SECOND: u64 = 1_700_000_000;

/// A database, and what Litestream 0.3 would have made of it: a segment each second.
struct Replica {
    dir: tempfile::TempDir,
    connection: Connection,
    generation: String,
    index: u64,
    offset: u64,
    seconds: u64,
    /// Each state: when it was stored, and in which log.
    states: Vec<(u64, u64, PathBuf)>,
}

fn compressed(data: &[u8]) -> Vec<u8> {
    // As the library that Litestream used has it.
    let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB).content_checksum(true);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

impl Replica {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("app.db")).unwrap();
        connection.execute_batch("PRAGMA page_size=1024; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0").unwrap();
        connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t(x) VALUES (randomblob(30000))").unwrap();
        Self { dir, connection, generation: GENERATION.to_owned(), index: 0, offset: 0, seconds: SECOND, states: Vec::new() }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("bucket/generations").join(&self.generation)
    }

    fn put(&mut self, path: &str, data: &[u8]) {
        let path = self.folder().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, compressed(data)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.seconds);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }

    fn snapshot(&mut self) {
        let database = fs::read(self.dir.path().join("app.db")).unwrap();
        self.seconds += 1;
        self.put(&format!("snapshots/{:08x}.snapshot.lz4", self.index), &database);
        self.remember();
    }

    fn remember(&mut self) {
        let state = self.dir.path().join(format!("state-{}.db", self.states.len()));
        fs::copy(flattened(&self.dir.path().join("app.db"), self.dir.path()), &state).unwrap();
        self.states.push((self.seconds, self.index, state));
    }

    fn commit(&mut self, sql: &str) {
        self.connection.execute_batch(sql).unwrap();
        let wal = fs::read(self.dir.path().join("app.db-wal")).unwrap();
        let segment = wal[usize::try_from(self.offset).unwrap()..].to_vec();
        self.seconds += 1;
        self.put(&format!("wal/{:08x}_{:08x}.wal.lz4", self.index, self.offset), &segment);
        self.offset = wal.len() as u64;
        self.remember();
    }

    fn checkpoint(&mut self) {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        (self.index, self.offset) = (self.index + 1, 0);
    }

    /// Three logs, the second of which leaves a smaller database.
    fn life(&mut self) {
        self.checkpoint();
        self.snapshot();
        for _ in 0..3 {
            self.commit("INSERT INTO t(x) VALUES (randomblob(5000)); INSERT INTO t(x) VALUES (randomblob(90))");
        }
        self.checkpoint();
        self.commit("UPDATE t SET x = randomblob(700) WHERE id = 2");
        self.commit("DELETE FROM t WHERE id < 4; VACUUM");
        self.checkpoint();
        for _ in 0..3 {
            self.commit("INSERT INTO t(x) VALUES (randomblob(8000))");
        }
    }

    fn bucket(&self) -> Bucket {
        Bucket::folder(&self.dir.path().join("bucket"))
    }

    fn restored(&self, bucket: &Bucket, args: &[&str]) -> (i32, Value, String, Option<PathBuf>) {
        let output = self.dir.path().join("out.db");
        let _ = fs::remove_file(&output);
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicated"));
        command.args(["restore", &bucket.url, "--json", "-o"]).arg(&output).args(args).env_clear().envs(bucket.env.iter().cloned());
        let done = command.output().unwrap();
        let json = serde_json::from_slice(&done.stdout).unwrap_or(Value::Null);
        let names = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // A bucket of LTX files has a position, which is kept beside the output.
        let left = names.filter(|name| name.starts_with("out.db") && name != "out.db-replicated");
        let code = done.status.code().unwrap();
        assert_eq!(left.count(), usize::from(code == 0), "something else is beside the output");
        (code, json, String::from_utf8(done.stderr).unwrap(), output.exists().then_some(output))
    }

    fn gives(&self, args: &[&str], state: &Path) {
        let (code, _, told, output) = self.restored(&self.bucket(), args);
        assert_eq!(code, 0, "{args:?}: {told}");
        page_compare(&output.unwrap(), state).unwrap();
    }

    fn refused(&self, args: &[&str], words: &[&str]) {
        let (code, _, told, _) = self.restored(&self.bucket(), args);
        assert_eq!(code, 1, "{args:?}: it gave no {words:?}");
        words.iter().for_each(|word| assert!(told.contains(word), "{word:?} is not in: {told}"));
    }
}

#[test]
fn every_state_is_restored_by_time_and_by_log() {
    let mut replica = Replica::new();
    replica.life();
    let latest = replica.states.last().unwrap().2.clone();
    replica.gives(&["--integrity-check", "full"], &latest);
    for (seconds, _, state) in &replica.states {
        replica.gives(&["--timestamp", &rfc3339(*seconds)], state);
        replica.gives(&["--timestamp", &rfc3339(*seconds).replace('Z', ".999Z")], state);
    }
    for index in 1..=3 {
        let (.., state) = replica.states.iter().rev().find(|(_, of, _)| *of == index).unwrap();
        replica.gives(&["--generation", GENERATION, "--index", &format!("{index:x}")], state);
    }
    replica.refused(&["--timestamp", &rfc3339(SECOND)], &["nothing as old as", "the oldest snapshot is of 2023-11-14T22:13:21.000Z"]);
    replica.refused(&["--generation", GENERATION, "--index", "0"], &["the log 00000000 is before the oldest snapshot"]);
    replica.refused(&["--generation", GENERATION, "--index", "4"], &["the log 00000004 is not there: the last is 00000003"]);
    replica.refused(&["--generation", "0000000000000001"], &["it has no generation 0000000000000001"]);
    replica.refused(&["--txid", "1"], &["no TXIDs", "--timestamp"]);
}

#[test]
fn the_generation_that_was_written_to_last_counts_and_a_later_snapshot_saves_logs() {
    let mut replica = Replica::new();
    replica.life();
    let (seconds, _, of_first) = replica.states.last().unwrap().clone();
    replica.generation = "0000000000000abc".to_owned();
    replica.index = 0;
    replica.offset = 0;
    replica.life();
    replica.checkpoint();
    replica.snapshot();
    replica.commit("DELETE FROM t");
    let latest = replica.states.last().unwrap().2.clone();
    replica.gives(&[], &latest);
    replica.gives(&["--timestamp", &rfc3339(seconds)], &of_first);
    replica.gives(&["--generation", GENERATION], &of_first);
    // From the later snapshot on: what is before it may be gone.
    fs::remove_file(replica.folder().join("wal/00000002_00000000.wal.lz4")).unwrap();
    replica.gives(&[], &latest);
}

#[test]
fn what_is_missing_or_damaged_is_named_and_nothing_is_put_in_place() {
    let mut replica = Replica::new();
    replica.life();
    let wal = replica.folder().join("wal");
    let mut names: Vec<String> = fs::read_dir(&wal).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for (i, name) in names.iter().enumerate() {
        let path = wal.join(name);
        let good = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        // That the last segment of a log is missing nobody can tell.
        if names.get(i + 1).is_some_and(|next| next[..8] == name[..8]) {
            replica.refused(&[], &["segments are missing between"]);
        }
        let damage = |bytes: &[u8], words: &[&str]| {
            fs::write(&path, bytes).unwrap();
            replica.refused(&[], words);
        };
        damage(&[], &[name]);
        for cut in [1, 7, good.len() / 3, good.len() / 2, good.len() - 9, good.len() - 8, good.len() - 4, good.len() - 1] {
            damage(&good[..cut], &[name]);
        }
        damage(&[good.clone(), vec![1]].concat(), &[name]);
        // Where the frame is right, but what it holds is not.
        damage(&compressed(&[7; 4000]), &[]);
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 0x10;
        damage(&flipped, &[]);
        fs::write(&path, good).unwrap();
    }
    let snapshot = replica.folder().join("snapshots/00000001.snapshot.lz4");
    fs::write(&snapshot, compressed(&[5; 4096])).unwrap();
    replica.refused(&[], &["snapshots/00000001.snapshot.lz4", "no SQLite database"]);
    fs::remove_file(&snapshot).unwrap();
    replica.refused(&[], &["generation 92852a2dde519981 has no snapshot"]);
}

#[test]
fn a_replica_in_s3_and_one_that_litestream_0_5_has_gone_on_with() {
    let mut replica = Replica::new();
    replica.life();
    let latest = replica.states.last().unwrap().2.clone();
    let server = Server::start().unwrap();
    let to = server.root().join(server.bucket()).join("app/db");
    copy_folder(&replica.dir.path().join("bucket"), &to);
    let (code, json, told, output) = replica.restored(&Bucket::s3(&server, "app/db"), &[]);
    assert_eq!(code, 0, "{told}");
    assert_eq!((json["generation"].as_str(), json["index"].as_str()), (Some(GENERATION), Some("00000003")));
    page_compare(&output.unwrap(), &latest).unwrap();

    // What is newer has the word, but for times before it.
    let newer = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/litestream-0.5.17-block/ltx");
    copy_folder(&newer, &replica.dir.path().join("bucket/ltx"));
    let (code, json, told, _) = replica.restored(&replica.bucket(), &[]);
    assert_eq!((code, json["txid"].is_string()), (0, true), "{told}");
    let (seconds, _, state) = &replica.states[2];
    replica.gives(&["--timestamp", &rfc3339(*seconds)], state);
    replica.gives(&["--generation", GENERATION], &latest);
    replica.refused(&["--timestamp", &rfc3339(SECOND)], &["nothing as old as", "TXID"]);
}

fn rfc3339(seconds: u64) -> String {
    replicated::types::TimestampMs(i64::try_from(seconds * 1000).unwrap()).to_rfc3339().replace(".000Z", "Z")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
