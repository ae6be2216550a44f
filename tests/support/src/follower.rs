//! `replicated restore --follow` as a process of its own, and readers of its copy.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use replicated::types::Txid;
use serde_json::Value;

use crate::bucket::Bucket;
use crate::host::{self, PATIENCE};

/// One that follows, and what it says; killed when dropped.
#[derive(Debug)]
pub struct Follower {
    child: Child,
    lines: Receiver<Value>,
    errors: Receiver<String>,
    told: String,
}

impl Follower {
    /// Starts the command-line tool, which is at `program`.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn start(program: impl AsRef<std::ffi::OsStr>, bucket: &Bucket, copy: &Path, more: &[&str]) -> Self {
        let mut command = host::command(program, &bucket.env);
        command.args(["restore", &bucket.url, "--follow", "--json", "--every", "100ms", "-o"]).arg(copy).args(more);
        Self::of(&mut command)
    }

    /// Starts it in the program that dies where `fault` says (`src/fault.rs`).
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn faulty(bucket: &Bucket, copy: &Path, fault: &str) -> Self {
        let mut command = host::command(host::faulty_program("follow-host"), &bucket.env);
        command.env("REPLICATED_TEST_FAULT", fault).arg(&bucket.url).arg(copy);
        Self::of(&mut command)
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else { unreachable!("both are pipes") };
        let (to, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if to.send(value).is_err() {
                    return;
                }
            }
        });
        let (to, errors) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, errors, told: String::new() }
    }

    /// Waits until it says something like that; `None` where it ends without it.
    ///
    /// # Panics
    /// Where it goes on without it.
    pub fn try_until(&mut self, is_it: impl Fn(&Value) -> bool) -> Option<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if is_it(&line) => return Some(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("it does not say so: {}", self.errors()),
            }
        }
    }

    /// Waits until it says something of that status.
    ///
    /// # Panics
    /// Where it does not.
    pub fn until(&mut self, status: &str) -> Value {
        let found = self.try_until(|line| line["status"] == status);
        found.unwrap_or_else(|| panic!("it ended before it said {status}: {}", self.errors()))
    }

    /// Waits until the copy has that state or a later one.
    ///
    /// # Panics
    /// Where it does not come to it.
    pub fn reaches(&mut self, txid: &str) {
        let wanted = Txid::from_hex(txid).expect("a TXID");
        let has = |line: &Value| line["txid"].as_str().and_then(Txid::from_hex).is_some_and(|txid| txid >= wanted);
        assert!(self.try_until(has).is_some(), "it ended before {txid}: {}", self.errors());
    }

    /// What it has said on standard error until now.
    pub fn errors(&mut self) -> String {
        while let Ok(line) = self.errors.try_recv() {
            self.told.push_str(&line);
            self.told.push('\n');
        }
        self.told.clone()
    }

    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Where it cannot be waited for.
    pub fn end(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("it ends");
        // All of it is there once the pipe is closed.
        while let Ok(line) = self.errors.recv() {
            self.told.push_str(&line);
            self.told.push('\n');
        }
        (status, std::mem::take(&mut self.told))
    }

    /// Asks it to stop, by the name of a signal, and waits: it ends well.
    ///
    /// # Panics
    /// Where it does not end with code 0.
    pub fn stop(self, signal: &str) -> String {
        let killed = Command::new("kill").args(["-s", signal, &self.id().to_string()]).status().expect("kill runs");
        assert!(killed.success());
        let (status, told) = self.end();
        assert_eq!(status.code(), Some(0), "{told}");
        told
    }

    /// Kills it.
    ///
    /// # Panics
    /// Where it cannot be waited for.
    pub fn kill(mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        self.child.wait().expect("it ends");
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes that read a copy all the time, each in its own way, and look whether what they see is one committed state of a `life::Life`.
#[derive(Debug)]
pub struct Readers {
    children: Vec<Child>,
    stop: PathBuf,
}

impl Readers {
    /// The ways to read.
    pub const WAYS: [&'static str; 4] = ["short", "anew", "long", "mapped"];

    /// Starts one of each.
    ///
    /// # Panics
    /// Where they cannot be started.
    #[must_use]
    pub fn start(copy: &Path, folder: &Path) -> Self {
        let stop = folder.join("stop-reading");
        let start = |way| {
            let mut command = host::command(host::python(), &[]);
            command.args(["-c", READER, way]).arg(copy).arg(&stop).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("Python starts")
        };
        let children = Self::WAYS.map(start).into();
        Self { children, stop }
    }

    /// Has them end; the answer is how many states each has seen.
    ///
    /// # Panics
    /// Where one has seen something else than a committed state.
    pub fn end(self) -> Vec<u64> {
        std::fs::write(&self.stop, "").expect("a file can be made");
        let ended = self.children.into_iter().zip(Self::WAYS).map(|(mut child, way)| {
            let (mut out, mut err) = (String::new(), String::new());
            child.stdout.take().expect("a pipe").read_to_string(&mut out).expect("text");
            child.stderr.take().expect("a pipe").read_to_string(&mut err).expect("text");
            assert!(child.wait().expect("it ends").success(), "reader {way}: {out}{err}");
            out.trim().parse().expect("a number")
        });
        ended.collect()
    }
}

const READER: &str = r#"
import os, sqlite3, sys, time
way, copy, stop = sys.argv[1:]
def connect():
    connection = sqlite3.connect(copy, isolation_level=None, timeout=60)
    if way == "mapped":
        connection.execute("PRAGMA mmap_size = 100000000")
    return connection
connection, seen, last = connect(), set(), -1
while not os.path.exists(stop):
    if way == "anew":
        connection.close()
        connection = connect()
    connection.execute("BEGIN")
    n = connection.execute("SELECT n FROM counter").fetchone()[0]
    if way == "long":
        time.sleep(0.05)
    newest, = connection.execute("SELECT coalesce(max(txn), 0) FROM ledger").fetchone()
    rows, parts = connection.execute("SELECT count(*), coalesce(max(parts), 0) FROM ledger WHERE txn = ?", (n,)).fetchone()
    churned, = connection.execute("SELECT max(txn) FROM churn").fetchone()
    ok = connection.execute("PRAGMA integrity_check").fetchone()[0]
    connection.execute("COMMIT")
    assert ok == "ok", ok
    assert n == newest and rows == parts and churned <= n and n >= last, (n, newest, rows, parts, churned, last)
    seen.add(n)
    last = n
    time.sleep(0.01)
print(len(seen))
"#;
