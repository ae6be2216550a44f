//! What `make build` leaves, of this build, and running programs with it.

#![allow(clippy::panic, clippy::print_stdout)] // Part of tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use replicated_testkit::{host, tools};

/// Makes `dist/` in a folder: the extension, the library that preloads it, and the command-line tool.
#[allow(dead_code, reason = "not every test has a use for it")]
pub(crate) fn lay_out_dist(folder: &Path) {
    let dist = folder.join("dist");
    std::fs::create_dir_all(&dist).unwrap();
    std::fs::copy(host::extension(), dist.join("replicated.so")).unwrap();
    std::fs::copy(host::preload(), dist.join("replicated-preload.so")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_replicated"), dist.join("replicated")).unwrap();
}

/// Makes a folder in which `make` finds the repository, and this build where `cargo build --release` would leave it: with `CARGO=true` the recipes run as they
/// stand, and nothing is compiled.
#[allow(dead_code, reason = "not every test has a use for it")]
pub(crate) fn lay_out_repository(folder: &Path) {
    use std::os::unix::fs::symlink;
    for name in ["Makefile", "Cargo.toml", "Cargo.lock", "src", "vfs-ext", "vfs-preload", "include"] {
        symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), folder.join(name)).unwrap();
    }
    let release = folder.join("target/release");
    std::fs::create_dir_all(&release).unwrap();
    symlink(host::extension(), release.join("libreplicated_ext.so")).unwrap();
    symlink(host::preload(), release.join("libreplicated_preload.so")).unwrap();
    symlink(env!("CARGO_BIN_EXE_replicated"), release.join("replicated")).unwrap();
    symlink(host::binaries().join("examples"), release.join("examples")).unwrap();
}

/// `make` in such a folder, without what a `make` around the tests has told its own.
#[allow(dead_code, reason = "not every test has a use for it")]
pub(crate) fn make(folder: &Path, arguments: &[&str]) -> String {
    let mut make = command("make");
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "DESTDIR", "PREFIX", "CARGO"] {
        make.env_remove(name);
    }
    run(make.args(arguments).current_dir(folder))
}

/// An example's program. `cargo test` builds them all unless it is told to run some tests only.
#[allow(dead_code, reason = "not every test has a use for it")]
pub(crate) fn example(name: &str) -> PathBuf {
    let program = host::binaries().join("examples").join(name);
    if !program.exists() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--workspace", "--example", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if host::binaries().ends_with("release") {
            cargo.arg("--release");
        }
        run(&mut cargo);
    }
    program
}

/// A command whose environment holds no options of ours and no credentials.
#[allow(dead_code, reason = "not every test has a use for it")]
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = host::command(program, &[]);
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

/// Builds a C program that uses the system's SQLite; `None` where that cannot be done here. `flags` come after the libraries.
#[allow(dead_code, reason = "not every test has a use for it")]
pub(crate) fn c_program(folder: &Path, name: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
    let probe = "echo '#include <sqlite3.h>' | cc -E - && echo 'int main(void) { return 0; }' | cc -x c - -o /dev/null -lsqlite3";
    if !has("sh", &["-c", probe]) {
        return None;
    }
    let (file, program) = (folder.join(format!("{name}.c")), folder.join(name));
    std::fs::write(&file, source).unwrap();
    let mut cc = command("cc");
    cc.args(["-g", "-O1", "-Wl,--as-needed"]).arg(&file).arg("-o").arg(&program).args(["-lsqlite3", "-lpthread", "-ldl"]).args(flags);
    run(&mut cc);
    Some(program)
}

/// Whether a tool is there. Where all are required, one that is missing is a failure.
pub(crate) fn has(tool: &str, probe: &[&str]) -> bool {
    let found = Command::new(tool).args(probe).stdin(Stdio::null()).output().is_ok_and(|output| output.status.success());
    if !found {
        let why = format!("{tool} {probe:?} does not work here");
        assert!(std::env::var("REPLICATED_TEST_REQUIRE").as_deref() != Ok("1"), "{why}");
        tools::skipped(&why);
    }
    found
}

/// Whether a runtime is there which not every machine has: nothing fails where it is not.
#[allow(dead_code, reason = "not every test has a use for it")]
pub(crate) fn has_optional(tool: impl AsRef<std::ffi::OsStr>, probe: &[&str]) -> bool {
    let tool = tool.as_ref();
    let found = Command::new(tool).args(probe).stdin(Stdio::null()).output().is_ok_and(|output| output.status.success());
    if !found {
        tools::skipped(&format!("{} {probe:?} does not work here; scripts/test-env.sh installs it where it can", tool.display()));
    }
    found
}

/// Whether there is a Python whose SQLite loads extensions.
#[allow(dead_code, reason = "not every test has a use for it")]
pub(crate) fn has_python() -> bool {
    has(host::python(), &["-c", "import sqlite3; sqlite3.connect(':memory:').enable_load_extension(True)"])
}
