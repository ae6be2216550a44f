//! Real SQLite hosts as processes of their own, steered over a pipe: so that they get an environment, can be killed, and hold locks of
//! their own.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything that must happen may take. Never waited for in full where all is well.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A program with a SQLite of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The system's Python, which loads the extension into the system's SQLite.
    Python,
    /// A Rust program that links the bundled SQLite and the library.
    Rust,
    /// The same with fail points.
    Faulty,
}

/// One row; blobs are shown in hexadecimal.
pub type Row = Vec<Value>;

/// The folder with the binaries of this build.
///
/// # Panics
/// Where the test executable has no place.
#[must_use]
pub fn binaries() -> PathBuf {
    let executable = std::env::current_exe().expect("a test executable has a path");
    let folder = executable.parent().expect("a test executable lies in a folder");
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    folder.to_owned()
}

/// Builds the extension and the host programs, once, if they are not there as the sources are now.
fn build() {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| cargo_build(&["-p", "replicated-vfs-ext", "-p", "replicated-vfs-preload", "-p", "replicated-testkit"]));
}

/// Builds something into the folder of this build.
///
/// # Panics
/// Where it cannot be built.
fn cargo_build(what: &[&str]) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet"]).args(what);
    if binaries().file_name().is_some_and(|name| name == "release") {
        command.arg("--release");
    }
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells the tests it runs would make build scripts run again, there and back.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_") && n != "CARGO_HOME" && n != "CARGO_TARGET_DIR") {
            command.env_remove(name);
        }
    }
    let status = command.status().expect("cargo runs");
    assert!(status.success(), "cargo could not build {what:?}");
}

/// The loadable extension of this build.
#[must_use]
pub fn extension() -> PathBuf {
    build();
    binaries().join(if cfg!(target_os = "macos") { "libreplicated_ext.dylib" } else { "libreplicated_ext.so" })
}

/// The library for `LD_PRELOAD`. It looks for the extension beside itself, by the name that it is installed as.
#[must_use]
pub fn preload() -> PathBuf {
    build();
    binaries().join("libreplicated_preload.so")
}

/// A program of the testkit.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    build();
    binaries().join(name)
}

/// A program with what tests need of the library, which nothing else is built with.
#[must_use]
pub fn faulty_program(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let programs = ["crash-host", "fault-host", "clock-host", "maintain-host", "follow-host"].map(|name| ["--bin", name]);
        let mut what = vec!["-p", "replicated-testkit", "--features", "replicated-testkit/fault-injection"];
        what.extend(programs.as_flattened());
        cargo_build(&what);
    });
    binaries().join(name)
}

/// The points that a process comes to whose database is replicated. Those of a restore are met before there is a database (`restore_on_open`), those of a
/// conflict with another writer (`two_hosts`), those of maintenance without one, or with options that make it quick (`maintenance`, `maintenance_inside`), those
/// of a copy that follows beside it (`follow`), those of a verification where that is asked for (`verify_every`).
pub fn points() -> Vec<String> {
    let elsewhere = |point: &&str| {
        ["if-missing.", "fence.", "maintain.", "follow.", "upkeep.", "ledger.append", "recent.", "assure.", "proof."]
            .iter()
            .any(|part| point.starts_with(part))
    };
    let points = Command::new(faulty_program("crash-host")).arg("points").output().unwrap();
    String::from_utf8(points.stdout).unwrap().lines().filter(|point| !elsewhere(point)).map(ToOwned::to_owned).collect()
}

/// The program whose uploader's clock stands until it is told to move.
#[must_use]
pub fn clock_host() -> PathBuf {
    faulty_program("clock-host")
}

/// The Python whose SQLite loads extensions.
#[must_use]
pub fn python() -> &'static str {
    "/usr/bin/python3"
}

/// A variable that is not inherited: the tests' own must not reach the extension, and the caller's credentials reach nobody.
fn is_private(name: &str) -> bool {
    ["REPLICATED_", "AWS_", "RUST_LOG"].iter().any(|prefix| name.starts_with(prefix))
}

/// A command with an environment of its own.
#[must_use]
pub fn command(program: impl AsRef<std::ffi::OsStr>, env: &[(String, String)]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_private) {
            command.env_remove(name);
        }
    }
    command.env("AWS_EC2_METADATA_DISABLED", "true").envs(env.iter().cloned());
    command
}

/// A program that does as it is told; killed when dropped.
#[derive(Debug)]
pub struct Host {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

/// A connection of a host.
#[derive(Clone, Copy, Debug)]
pub struct Db(u64);

impl Db {
    /// The connection of a number, as the host counts those that it opens.
    #[must_use]
    pub const fn of(number: u64) -> Self {
        Self(number)
    }
}

impl Host {
    /// Starts one.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn start(which: Program, env: &[(String, String)]) -> Self {
        Self::start_by(&[], which, env)
    }

    /// Starts one by another command, which is given the host's own and runs it in its place.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn start_by(wrapper: &[&str], which: Program, env: &[(String, String)]) -> Self {
        let of_host = match which {
            Program::Python => vec![python().into(), "-c".into(), PYTHON.into(), extension().into_os_string()],
            Program::Rust => vec![program("sql-host").into_os_string()],
            Program::Faulty => vec![faulty_program("fault-host").into_os_string()],
        };
        let mut words = wrapper.iter().map(std::ffi::OsString::from).chain(of_host);
        let Some(first) = words.next() else { unreachable!("there is at least the host's") };
        Self::of(command(first, env).args(words))
    }

    /// Starts Python without the extension.
    #[must_use]
    pub fn plain(env: &[(String, String)]) -> Self {
        let mut command = command(python(), env);
        command.args(["-c", PYTHON]);
        Self::of(&mut command)
    }

    /// Starts a program that was chosen and prepared by the caller.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn of(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the host starts");
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { unreachable!("both are pipes") };
        Self { child, to: Some(to), from: BufReader::new(from) }
    }

    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request without waiting for its answer.
    ///
    /// # Errors
    /// Where the host is gone.
    pub fn send(&mut self, request: &Value) -> io::Result<()> {
        let to = self.to.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        to.write_all(format!("{request}\n").as_bytes())?;
        to.flush()
    }

    /// Reads the answer to a request.
    ///
    /// # Errors
    /// What SQLite said, or that the host is gone.
    pub fn answer(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(1..) => {}
            other => return Err(format!("the host is gone: {other:?}")),
        }
        let mut answer: Value = serde_json::from_str(&line).map_err(|e| format!("{line}: {e}"))?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer["ok"].take()),
        }
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// What SQLite said, or that the host is gone.
    pub fn ask(&mut self, request: &Value) -> Result<Value, String> {
        self.send(request).map_err(|e| e.to_string())?;
        self.answer()
    }

    /// Opens a database by path or URI.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn try_open(&mut self, uri: &str) -> Result<Db, String> {
        let id = self.ask(&json!({"op": "open", "uri": uri}))?;
        id.as_u64().map(Db).ok_or_else(|| id.to_string())
    }

    /// Opens a database that must open.
    ///
    /// # Panics
    /// Where it does not.
    pub fn open(&mut self, uri: &str) -> Db {
        self.try_open(uri).unwrap_or_else(|error| panic!("{uri}: {error}"))
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn try_query(&mut self, db: Db, sql: &str) -> Result<Vec<Row>, String> {
        let rows = self.ask(&json!({"op": "sql", "db": db.0, "sql": sql}))?;
        serde_json::from_value(rows).map_err(|e| e.to_string())
    }

    /// Runs one statement that must work.
    ///
    /// # Panics
    /// Where it does not.
    pub fn query(&mut self, db: Db, sql: &str) -> Vec<Row> {
        self.try_query(db, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs several statements; semicolons separate them, and nothing else in them may be one.
    ///
    /// # Panics
    /// Where one fails.
    pub fn run(&mut self, db: Db, sql: &str) {
        for statement in sql.split(';').map(str::trim).filter(|s| !s.is_empty()) {
            self.query(db, statement);
        }
    }

    /// The only value of a statement's only row.
    ///
    /// # Panics
    /// Where the statement fails or gives anything else.
    pub fn value(&mut self, db: Db, sql: &str) -> Value {
        let rows = self.query(db, sql);
        match rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone(),
            _ => panic!("{sql}: {rows:?}"),
        }
    }

    /// Waits until everything is in the bucket; the TXID.
    ///
    /// # Panics
    /// Where it does not get there.
    pub fn sync(&mut self, db: Db) -> String {
        let txid = self.value(db, "PRAGMA replicated_sync='100s'");
        txid.as_str().unwrap_or_default().to_owned()
    }

    /// A value of `PRAGMA replicated_status`.
    ///
    /// # Panics
    /// Where there is no such value.
    pub fn status(&mut self, db: Db, name: &str) -> String {
        let text = self.value(db, "PRAGMA replicated_status");
        let text = text.as_str().unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not in {text}")).to_owned()
    }

    /// Closes a connection.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn try_close(&mut self, db: Db) -> Result<(), String> {
        self.ask(&json!({"op": "close", "db": db.0})).map(drop)
    }

    /// Copies another file into a database with the backup API. For `Program::Python`.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn backup_from(&mut self, db: Db, source: &Path) -> Result<(), String> {
        self.ask(&json!({"op": "backup", "db": db.0, "path": source, "into": true})).map(drop)
    }

    /// Copies a database into another file with the backup API. For `Program::Python`.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn backup_to(&mut self, db: Db, target: &Path) -> Result<(), String> {
        self.ask(&json!({"op": "backup", "db": db.0, "path": target, "into": false})).map(drop)
    }

    /// Closes a connection.
    ///
    /// # Panics
    /// Where that fails.
    pub fn close(&mut self, db: Db) {
        self.try_close(db).unwrap_or_else(|error| panic!("close: {error}"));
    }

    /// Ends it as programs end: its connections are closed.
    ///
    /// # Panics
    /// Where it ends otherwise.
    pub fn quit(mut self) {
        self.to = None;
        let status = self.child.wait().expect("a child ends");
        assert!(status.success(), "{status}");
    }

    /// kill -9.
    ///
    /// # Panics
    /// Where it does not end.
    pub fn kill(mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        self.child.wait().expect("a killed child ends");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition.
///
/// # Panics
/// Where it does not come true for a long time.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not so after {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A URI of a database with parameters, each encoded.
#[must_use]
pub fn uri(path: &Path, parameters: &[(&str, &str)]) -> String {
    let encode = |text: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte);
        text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect::<String>()
    };
    let parameters: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    format!("file:{}?{}", encode(&path.display().to_string()), parameters.join("&"))
}

/// A URI of a replicated database.
#[must_use]
pub fn replicated(path: &Path, replica: &str, more: &[(&str, &str)]) -> String {
    let mut parameters = vec![("vfs", "replicated"), ("replica", replica)];
    parameters.extend_from_slice(more);
    uri(path, &parameters)
}

const PYTHON: &str = r#"
import json, sqlite3, sys
if len(sys.argv) > 1:
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(sys.argv[1])
databases, opened = {}, 0
for line in sys.stdin:
    request = json.loads(line)
    try:
        if request["op"] == "open":
            opened += 1
            databases[opened] = sqlite3.connect(request["uri"], uri=True, isolation_level=None, timeout=30)
            answer = opened
        elif request["op"] == "close":
            databases.pop(request["db"]).close()
            answer = None
        elif request["op"] == "backup":
            other = sqlite3.connect(request["path"])
            ends = (other, databases[request["db"]])
            source, target = ends if request["into"] else reversed(ends)
            source.backup(target)
            other.close()
            answer = None
        else:
            rows = databases[request["db"]].execute(request["sql"]).fetchall()
            answer = [[v.hex() if isinstance(v, bytes) else v for v in row] for row in rows]
        print(json.dumps({"ok": answer}), flush=True)
    except sqlite3.Error as error:
        print(json.dumps({"error": str(error)}), flush=True)
for database in databases.values():
    database.close()
"#;
