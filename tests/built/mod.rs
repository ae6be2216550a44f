//! The extension and the examples of this build, laid out as `make build` leaves them.

#![allow(clippy::panic, clippy::print_stdout)] // Part of tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder with the binaries of this build.
fn binaries() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    executable.parent().unwrap().parent().unwrap().to_owned()
}

/// Makes `dist/` in a folder: the extension and the command-line tool. Builds what is not there.
pub(crate) fn lay_out_dist(folder: &Path) {
    build(&["--workspace"]);
    let dist = folder.join("dist");
    std::fs::create_dir_all(&dist).unwrap();
    std::fs::copy(binaries().join("libreplicated_ext.so"), dist.join("replicated.so")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_replicated"), dist.join("replicated")).unwrap();
}

/// An example's program.
#[allow(dead_code, reason = "not every test has a use for it")]
pub(crate) fn example(name: &str) -> PathBuf {
    build(&["--workspace", "--example", name]);
    binaries().join("examples").join(name)
}

/// Features are those of the workspace, so that nothing is built twice after `cargo build` and `cargo test` of it.
fn build(arguments: &[&str]) {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet"]).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    if binaries().ends_with("release") {
        command.arg("--release");
    }
    assert!(command.status().unwrap().success(), "cargo build {arguments:?}");
}

/// A command whose environment holds no options of ours but those that a test gives it.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("REPLICATED_")) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command that must work; what it wrote.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// Whether a tool is there. Where all are required, one that is missing is a failure.
pub(crate) fn has(tool: &str, probe: &[&str]) -> bool {
    let found = Command::new(tool).args(probe).stdin(Stdio::null()).output().is_ok_and(|output| output.status.success());
    if !found {
        assert!(std::env::var_os("REPLICATED_TEST_REQUIRE").is_none_or(|v| v != "1"), "{tool} {probe:?} does not work here");
        println!("skipped: {tool} {probe:?} does not work here");
    }
    found
}

/// The Python whose SQLite loads extensions.
pub(crate) const PYTHON: &str = "/usr/bin/python3";
/// Shows whether it does.
pub(crate) const PYTHON_PROBE: &[&str] = &["-c", "import sqlite3; sqlite3.connect(':memory:').enable_load_extension(True)"];
