//! The pages do not rot: the README's commands are run, its snippets are the examples', links lead somewhere, and quoted messages are the
//! program's.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use replicated_testkit::host;

mod built;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A fenced block with the comment above it, such as `run: sh`.
struct Block {
    mark: String,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut mark, mut is_inside) = (String::new(), false);
    for line in page.lines() {
        if let Some(comment) = line.strip_prefix("<!-- ").and_then(|l| l.strip_suffix(" -->")) {
            mark = comment.to_owned();
        } else if line.starts_with("```") {
            if !is_inside {
                blocks.push(Block { mark: std::mem::take(&mut mark), text: String::new() });
            }
            is_inside = !is_inside;
        } else if is_inside && let Some(block) = blocks.last_mut() {
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    assert!(!is_inside, "a block is not closed");
    blocks
}

#[test]
fn the_first_commands_are_demo_and_test() {
    let readme = read("README.md");
    let first = blocks(&readme).remove(0).text;
    let commands: Vec<&str> = first.lines().map(|l| l.split('#').next().unwrap_or_default().trim()).collect();
    assert_eq!(commands, ["make demo", "make test"]);
    let makefile = read("Makefile");
    for target in commands.iter().filter_map(|c| c.strip_prefix("make ")) {
        assert!(makefile.lines().any(|line| line.starts_with(&format!("{target}:"))), "{target}");
    }
}

#[test]
fn what_the_readme_says_to_run_runs() {
    if !(built::has("sqlite3", &["-version"]) && built::has_python()) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    let mut printed = String::new();
    for block in blocks(&read("README.md")) {
        let mut command = match block.mark.strip_prefix("run: ") {
            Some("sh") => built::command("sh"),
            Some("python") => built::command(host::python()),
            Some(other) => panic!("how is {other} run?"),
            None => continue,
        };
        let option = if block.mark.ends_with("sh") { "-euc" } else { "-c" };
        printed.push_str(&built::run(command.arg(option).arg(&block.text).current_dir(work.path())));
    }
    // The shell's first sync, the restored row, and Python's status.
    assert!(printed.starts_with("wal\n0000000000000002\n"), "{printed}");
    assert!(printed.contains("\noff-site a moment later\n"), "{printed}");
    assert!(printed.contains("\nstate "), "{printed}");
    let restore = format!("sh {}/scripts/restore.sh file://$PWD/bucket/app again.db", root().display());
    let printed = built::run(
        built::command("sh").args(["-euc", &restore]).env("PATH", path_with(&work.path().join("dist"))).current_dir(work.path()),
    );
    assert!(printed.contains("Next:"), "{printed}");
}

fn path_with(folder: &Path) -> std::ffi::OsString {
    let mut path = folder.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

#[test]
fn the_readmes_snippets_are_the_examples() {
    let mut compared = 0;
    for block in blocks(&read("README.md")) {
        let Some(example) = block.mark.strip_prefix("as in ") else { continue };
        let text = read(example);
        let mut lines = text.lines().map(str::trim);
        for wanted in block.text.lines().map(str::trim) {
            assert!(lines.any(|line| line.contains(wanted)), "{example} has no {wanted:?}, or not in this order");
            compared += 1;
        }
    }
    assert!(compared > 5);
}

fn pages() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages: Vec<PathBuf> =
        docs.chain([root().join("README.md"), root().join("CHANGELOG.md")]).filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    assert!(pages.len() > 8);
    pages
}

/// As GitHub makes them of headings.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, section) = link.split_once('#').map_or((link, None), |(path, section)| (path, Some(section)));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: {link}", page.display());
            if let Some(section) = section {
                let text = std::fs::read_to_string(&target).unwrap();
                let mut headings =
                    text.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
                assert!(headings.any(|heading| anchor(heading) == section), "{}: {link}", page.display());
            }
        }
    }
}

/// All sources, with string literals that go over several lines put together.
fn sources() -> String {
    fn add(folder: &Path, all: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(&path, all);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let mut continued = false;
                for line in std::fs::read_to_string(&path).unwrap().lines() {
                    let line = if continued { line.trim_start() } else { line };
                    continued = line.ends_with('\\');
                    all.push_str(line.strip_suffix('\\').unwrap_or(line));
                    if !continued {
                        all.push('\n');
                    }
                }
            }
        }
    }
    let mut all = String::new();
    add(&root().join("src"), &mut all);
    all.replace("\\\"", "\"")
}

#[test]
fn quoted_messages_are_the_programs() {
    let sources = sources();
    for page in ["docs/troubleshooting.md", "docs/litestream.md"] {
        let text = read(page);
        let quotes: Vec<&str> = text.lines().filter_map(|line| line.trim_start().strip_prefix("> ")).collect();
        assert!(quotes.len() > 1, "{page}");
        for quote in quotes {
            // SQLite's own.
            if quote == "not authorized" {
                continue;
            }
            // A short piece says nothing: "…: …".
            for piece in quote.split('…').filter(|piece| piece.trim().len() > 4) {
                assert!(sources.contains(piece), "{page}: {quote}\nno message has {piece:?}");
            }
        }
    }
    let table = read("docs/troubleshooting.md");
    let rows = table.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('`').nth(1));
    for message in rows {
        // The ones of credentials are put together from two.
        let message = message.strip_prefix("no credentials from ").unwrap_or(message);
        assert!(sources.contains(message), "docs/troubleshooting.md: {message}");
    }
}

/// `docs/invariants.md` names tests and sources; each is there.
#[test]
fn what_the_invariants_name_is_there() {
    let page = read("docs/invariants.md");
    let quoted: Vec<&str> = page.split('`').skip(1).step_by(2).collect();
    let (mut tests, mut files) = (0, 0);
    for name in quoted {
        if let Some((file, function)) = name.split_once("::") {
            let path = if file.contains('/') { file.to_owned() } else { format!("tests/{file}.rs") };
            assert!(read(&path).contains(&format!("fn {function}(")), "docs/invariants.md: {name} is not there");
            tests += 1;
        } else if name.ends_with(".rs") {
            let there = ["src", "tests", ""].iter().any(|folder| root().join(folder).join(name).exists());
            assert!(there, "docs/invariants.md: {name} is not there");
            files += 1;
        }
    }
    assert!(tests > 40 && files > 20, "{tests} tests, {files} files");
    for number in 1..=10 {
        assert!(page.contains(&format!("## I{number}: ")), "I{number} has no section");
    }
}

/// docs/testing.md lists what tests/sqlite/expected.txt lets differ from SQLite's own tests, each with its reason, and nothing else.
#[test]
fn the_differences_in_sqlites_own_tests_are_told() {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for line in read("tests/sqlite/expected.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (file, rest) = line.split_once(' ').unwrap();
        let (case, reason) = rest.trim_start().split_once(' ').unwrap();
        let (place, reason) = (format!("`{file}` `{case}`"), reason.trim_start().to_owned());
        match rows.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, places)) => places.push(place),
            None => rows.push((reason, vec![place])),
        }
    }
    assert!(!rows.is_empty());
    let rows: String = rows.iter().map(|(reason, places)| format!("| {} | {reason} |\n", places.join(", "))).collect();
    let page = read("docs/testing.md");
    let (_, told) = page.split_once("### What differs, and why").unwrap();
    let (_, told) = told.split_once("| where | why |\n|---|---|\n").unwrap();
    assert_eq!(told.trim_end(), rows.trim_end(), "make it by `python3 tests/sqlite/run.py --table`");
}
