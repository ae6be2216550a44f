//! Pages whose commands are run: their fenced blocks, by the comment that stands above each.
//!
//! | comment | the block |
//! |---|---|
//! | `run: sh`, `run: python` | is run; all of a page's in one shell, as a reader would |
//! | `prints` | is what the block before it prints: `…` stands for anything within a line, and as a line for any number of lines |
//! | `file: app.py` | is written to a file of that name |
//! | `make` | lists targets of the Makefile |
//! | `as in examples/x` | stands in that file, line by line |
//! | `not run: why` | is not |

#![allow(clippy::panic)] // Part of tests.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use replicated_testkit::{host, tools};

use crate::built;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A fenced block, with what stands behind its fence and the comment above it.
pub(crate) struct Block {
    pub(crate) mark: String,
    pub(crate) language: String,
    pub(crate) text: String,
}

pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut mark, mut is_inside) = (String::new(), false);
    for line in page.lines() {
        if let Some(language) = line.strip_prefix("```") {
            if !is_inside {
                blocks.push(Block { mark: std::mem::take(&mut mark), language: language.to_owned(), text: String::new() });
            }
            is_inside = !is_inside;
        } else if is_inside && let Some(block) = blocks.last_mut() {
            block.text.push_str(line);
            block.text.push('\n');
        } else if let Some(comment) = line.strip_prefix("<!-- ").and_then(|l| l.strip_suffix(" -->")) {
            mark = comment.to_owned();
        } else if !line.is_empty() {
            mark.clear();
        }
    }
    assert!(!is_inside, "a block is not closed");
    blocks
}

/// Runs a page in a folder that has what `make build` leaves, and compares what is printed with what the page shows. What was printed.
pub(crate) fn run(page: &str, work: &Path) -> String {
    let blocks = blocks(&read(page));
    let script = script(page, work, &blocks);
    std::fs::write(work.join(".page.sh"), script).unwrap();
    let printed = shell(page, work);
    let parts: Vec<&str> = printed.split(SEPARATOR).skip(1).collect();
    let (mut at, mut different) = (None, String::new());
    for block in &blocks {
        if block.mark.starts_with("run: ") {
            at = Some(at.map_or(0, |n: usize| n + 1));
        } else if block.mark == "prints" {
            let part = at.and_then(|n| parts.get(n)).unwrap_or_else(|| panic!("{page}: nothing was run before\n{}", block.text));
            if !is_like(&block.text, part) {
                let _ = writeln!(different, "{page} shows\n{}\nand this was printed:\n{part}", block.text);
            }
        }
    }
    assert!(different.is_empty(), "{different}");
    parts.concat()
}

/// Stands before what a block prints: nothing else prints it.
const SEPARATOR: &str = "\u{1e}\n";

fn script(page: &str, work: &Path, blocks: &[Block]) -> String {
    let mut script = "set -eu\n".to_owned();
    for (number, block) in blocks.iter().enumerate() {
        let Block { mark, text, .. } = block;
        if mark == "run: sh" {
            let _ = writeln!(script, "printf '\\036\\n'\n{text}");
        } else if mark == "run: python" {
            let _ = writeln!(script, "printf '\\036\\n'\npython3 - <<'END OF BLOCK {number}'\n{text}END OF BLOCK {number}");
        } else if let Some(name) = mark.strip_prefix("file: ") {
            std::fs::write(work.join(name), text).unwrap();
        } else if mark == "make" {
            let makefile = read("Makefile");
            for line in text.lines() {
                let command = line.split('#').next().unwrap_or_default().trim();
                let target = command.strip_prefix("make ").unwrap_or_else(|| panic!("{page}: {command} is not make"));
                assert!(makefile.lines().any(|line| line.starts_with(&format!("{target}:"))), "{page}: make has no {target}");
            }
        } else {
            let is_known = mark == "prints" || ["as in ", "not run: "].iter().any(|known| mark.starts_with(known));
            assert!(is_known || !matches!(block.language.as_str(), "sh" | "python"), "{page}: who runs this?\n{text}");
        }
    }
    script
}

/// Runs the script in a group of processes of its own, which ends with it.
fn shell(page: &str, work: &Path) -> String {
    built::lay_out_dist(work);
    let (bin, server) = (work.join("bin"), work.join("target/release"));
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(&server).unwrap();
    std::os::unix::fs::symlink(host::python(), bin.join("python3")).unwrap();
    std::os::unix::fs::symlink(host::program("replicated-s3"), server.join("replicated-s3")).unwrap();
    // Copies: they look for what lies beside them.
    std::fs::create_dir_all(work.join("scripts")).unwrap();
    for script in ["scripts/drill.sh", "scripts/restore.sh"] {
        std::fs::copy(root().join(script), work.join(script)).unwrap();
    }
    let mut path = bin.into_os_string();
    if let Some(tools) = tools::environment() {
        path.push(":");
        path.push(tools.join("bin"));
    }
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());

    // To a file: what a page leaves running would keep a pipe open.
    let output = work.join(".page.out");
    let file = std::fs::File::create(&output).unwrap();
    let mut command = built::command("timeout");
    command.args([&host::PATIENCE.as_secs().to_string(), "sh", ".page.sh"]).current_dir(work).env("PATH", path).env("HOME", work);
    command.stdout(Stdio::from(file.try_clone().unwrap())).stderr(Stdio::from(file)).process_group(0);
    let mut child = command.spawn().unwrap();
    let status = child.wait().unwrap();
    // Whoever is left of the group.
    let _ = Command::new("sh").args(["-c", &format!("kill -9 -{}", child.id())]).stderr(Stdio::null()).status();
    let printed = std::fs::read_to_string(&output).unwrap();
    assert!(status.success(), "{page}: {status}\n{printed}");
    printed
}

/// Whether what was printed is what a page shows.
fn is_like(shown: &str, printed: &str) -> bool {
    fn lines(shown: &[&str], printed: &[&str]) -> bool {
        match (shown.split_first(), printed.split_first()) {
            (None, None) => true,
            (Some((&"…", rest)), _) => (0..=printed.len()).any(|skipped| lines(rest, &printed[skipped..])),
            (Some((one, shown)), Some((other, printed))) => line(one, other) && lines(shown, printed),
            _ => false,
        }
    }
    fn line(shown: &str, printed: &str) -> bool {
        let Some((first, rest)) = shown.split_once('…') else { return shown == printed };
        let Some(printed) = printed.strip_prefix(first) else { return false };
        (0..=printed.len()).filter(|&at| printed.is_char_boundary(at)).any(|at| line(rest, &printed[at..]))
    }
    let split = |text: &'_ str| text.trim().lines().map(str::trim_end).map(ToOwned::to_owned).collect::<Vec<String>>();
    let (shown, printed) = (split(shown), split(printed));
    lines(&shown.iter().map(String::as_str).collect::<Vec<_>>(), &printed.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn what_a_page_shows_is_compared() {
    assert!(is_like("a … c\n", "a b c\n"));
    assert!(is_like("a\n…\nc", "a\nb\nb\nc\n") && is_like("a\n…\nc", "a\nc\n"));
    assert!(!is_like("a\n…\nc", "a\nb\n") && !is_like("a … c", "a b d") && !is_like("a", "a\nb"));
}
