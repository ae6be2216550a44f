//! The SQLite of the host: its version and known bugs, whether it loads extensions, and whether it loads this one.
//!
//! A library is looked at by a process of its own: what is wrong with it ends that one.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::report::Report;

/// What the other process of this program is asked by.
const PYTHON: &str = r#"
import json, sqlite3, sys
told = {"version": sqlite3.sqlite_version, "loads": hasattr(sqlite3.Connection, "enable_load_extension"), "error": None}
if told["loads"] and len(sys.argv) > 1:
    try:
        db = sqlite3.connect(":memory:")
        db.enable_load_extension(True)
        db.load_extension(sys.argv[1])
    except Exception as error:
        told["error"] = str(error)
print(json.dumps(told))
"#;

/// What was found out about one of them.
#[derive(Debug)]
struct Told {
    version: String,
    loads: bool,
    /// Why the extension did not load.
    error: Option<String>,
}

/// `3.40.1` as SQLite counts it: 3040001.
fn number(version: &str) -> Option<i32> {
    let mut parts = version.split('.').map(str::parse::<i32>);
    let (major, minor, patch) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next().unwrap_or(Ok(0)).ok()?);
    Some(major * 1_000_000 + minor * 1000 + patch)
}

/// The extension beside this program, or where packages put it.
fn beside_us() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?;
    let debians = format!("../lib/{}-linux-gnu/replicated.so", std::env::consts::ARCH);
    let names = ["replicated.so", "libreplicated_ext.so", "../lib/replicated.so", &debians];
    names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// Looks at the library that was named, or at what is on the path.
pub(super) fn look(library: Option<&Path>, extension: Option<&Path>, limit: Duration, report: &mut Report) {
    let extension = extension.map(Path::to_owned).or_else(beside_us);
    if let Some(missing) = extension.as_ref().filter(|path| !path.is_file()) {
        report.problem(
            "extension",
            format!("{} is not there", missing.display()),
            "SQLite says \"cannot open shared object file\"",
            "Correct its path; `make build` puts it into dist/",
        );
    }
    let extension = extension.filter(|path| path.is_file());
    match library {
        Some(library) => {
            let told = of_library(library, extension.as_deref(), limit);
            tell("sqlite", &library.display().to_string(), told, extension.as_deref(), true, report);
        }
        None => {
            let mut found = false;
            for (check, program) in [("sqlite3", "sqlite3"), ("python3", "python3")] {
                let Some(path) = on_path(program) else { continue };
                found = true;
                let told = if program == "python3" {
                    of_python(&path, extension.as_deref(), limit)
                } else {
                    of_shell(&path, extension.as_deref(), limit)
                };
                tell(check, &path.display().to_string(), told, extension.as_deref(), false, report);
            }
            if !found {
                report.skipped("sqlite", "neither sqlite3 nor python3 is on the path: name the library of the application with --sqlite");
            }
        }
    }
    if extension.is_none() {
        report.skipped("extension", "no replicated.so beside this program: whether it loads was not tried (--extension)");
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn tell(check: &'static str, name: &str, told: Result<Told, String>, extension: Option<&Path>, is_named: bool, report: &mut Report) {
    let told = match told {
        Ok(told) => told,
        Err(why) => {
            return report.unknown(check, format!("{name}: {why}"), "Name the SQLite library that the application uses with --sqlite");
        }
    };
    let what = format!("SQLite {} in {name}", told.version);
    let Some(version) = number(&told.version) else {
        return report.unknown(check, what, "Its version is none that is known");
    };
    let oldest = replicated::OLDEST_SQLITE;
    if version < oldest {
        return report.problem(
            check,
            what,
            format!("Too old: the extension needs {}.{}.{}", oldest / 1_000_000, oldest / 1000 % 1000, oldest % 1000),
            "Use a newer SQLite",
        );
    }
    let other = "Use another one for the application; a program that links SQLite can link the library (docs/clients.md)";
    if !told.loads {
        let means = "It was built without extension loading, so the extension cannot get into it";
        return if is_named { report.problem(check, what, means, other) } else { report.warning(check, what, means, other) };
    }
    if let Some(error) = &told.error {
        return report.problem(
            check,
            format!("{what}: {error}"),
            "The extension beside this program does not load in it",
            "It must be built for this system and its C library: build it here (`make build`)",
        );
    }
    let loaded = if extension.is_some() { ", and the extension loads in it" } else { ", which loads extensions" };
    if replicated::has_wal_reset_bug(version) {
        return report.warning(
            check,
            format!("{what}{loaded}"),
            "Versions before 3.51.3 (but 3.50.7 and 3.44.6) have a rare bug that can corrupt a database in WAL mode when two connections write and checkpoint at the same moment (the WAL-reset \
             bug)",
            "Upgrade it; until then let one connection write, and verify the bucket (`replicated verify`) now and then",
        );
    }
    report.ok(check, format!("{what}{loaded}"));
}

/// Runs a program that is not waited for longer than this; what it wrote.
fn run(command: &mut Command, limit: Duration) -> Result<(bool, String, String), String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let end = Instant::now() + limit;
    // What they write fits into a pipe.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                // It has ended, or is ended.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer within {}", super::report::brief(limit)));
            }
        }
    };
    let read = |pipe: Option<&mut dyn Read>| {
        let mut text = String::new();
        // What is no text is none of ours.
        let _ = pipe.map(|pipe| pipe.take(64 << 10).read_to_string(&mut text));
        text
    };
    let out = read(child.stdout.as_mut().map(|pipe| pipe as &mut dyn Read));
    let err = read(child.stderr.as_mut().map(|pipe| pipe as &mut dyn Read));
    if out.is_empty() && !status.success() {
        let line = err.lines().last().unwrap_or_default().trim().to_owned();
        return Err(if line.is_empty() { status.to_string() } else { line });
    }
    Ok((status.success(), out, err))
}

/// Without what would make the extension replicate something.
fn quiet(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"REPLICATED_")) {
        command.env_remove(name);
    }
    command
}

fn parsed(out: &str) -> Result<Told, String> {
    let value: Value = serde_json::from_str(out.trim()).map_err(|_| "it does not answer as it should".to_owned())?;
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Told {
        version: text("version").ok_or("it does not say its version")?,
        loads: value.get("loads").and_then(Value::as_bool).unwrap_or_default(),
        error: text("error"),
    })
}

fn of_python(python: &Path, extension: Option<&Path>, limit: Duration) -> Result<Told, String> {
    let (_, out, _) = run(quiet(python).args(["-I", "-c", PYTHON]).args(extension), limit)?;
    parsed(&out)
}

fn of_shell(shell: &Path, extension: Option<&Path>, limit: Duration) -> Result<Told, String> {
    let ask = |commands: &[String]| run(quiet(shell).args(["-batch", "-init", "/dev/null", ":memory:"]).args(commands), limit);
    let (_, out, _) = ask(&["SELECT sqlite_version() || ' ' || sqlite_compileoption_used('OMIT_LOAD_EXTENSION');".to_owned()])?;
    let (version, omits) = out.trim().split_once(' ').ok_or("it does not answer as it should")?;
    let mut told = Told { version: version.to_owned(), loads: omits == "0", error: None };
    if let Some(extension) = extension.filter(|_| told.loads) {
        let (_, out, err) = ask(&[format!(".load '{}'", extension.display()), "SELECT 'loaded';".to_owned()])?;
        // It goes on after an error.
        if !out.contains("loaded") || err.contains("rror") {
            told.error = Some(err.trim().replace('\n', " "));
        }
    }
    Ok(told)
}

fn of_library(library: &Path, extension: Option<&Path>, limit: Duration) -> Result<Told, String> {
    if !library.is_file() {
        return Err("there is no such file".to_owned());
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let (_, out, _) = run(quiet(&program).args(["inspect-sqlite"]).arg(library).args(extension), limit)?;
    let told: Value = serde_json::from_str(out.trim()).map_err(|_| "it does not answer as it should".to_owned())?;
    match told.get("why").and_then(Value::as_str) {
        Some(why) => Err(why.to_owned()),
        None => parsed(&out),
    }
}

/// What the other process does.
pub(crate) fn inspect(library: &Path, extension: Option<&Path>) {
    let told = match replicated::inspect_sqlite(library, extension) {
        Ok(seen) => json!({ "version": seen.version, "loads": seen.loads_extensions, "error": seen.extension_error }),
        Err(why) => json!({ "why": why }),
    };
    crate::text::to_stdout(&format!("{told}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_counted_as_sqlite_counts() {
        assert_eq!((number("3.40.1"), number("3.7"), number("x")), (Some(3_040_001), Some(3_007_000), None));
    }
}
