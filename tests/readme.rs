//! The pages do not rot: the README's commands are run, its snippets are the examples', links lead somewhere, and quoted messages are the
//! program's.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use pages::{blocks, read, root};
use replicated_testkit::tools;

mod built;
mod pages;

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

/// As `make demo` runs it, on this build; `make test` runs this.
#[test]
fn make_demo_runs_and_make_lists_its_targets() {
    if !built::has("make", &["--version"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    built::example("demo");
    built::lay_out_repository(work.path());
    let printed = built::make(work.path(), &["--no-print-directory", "demo", "CARGO=true"]);
    for said in [
        "1. A folder as the bucket",
        "2. An S3 server",
        "equal to the original, page by page",
        "Nothing that had reached the bucket was lost",
    ] {
        assert!(printed.contains(said), "{said} is not in {printed}");
    }
    for built in ["replicated", "replicated.so", "replicated-preload.so"] {
        assert!(work.path().join("dist").join(built).exists(), "make build leaves no {built}");
    }
    let listed = built::make(work.path(), &["--no-print-directory"]);
    for page in all_pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for target in text.split("`make ").skip(1).filter_map(|rest| rest.split(['`', ' ']).next()).filter(|target| !target.is_empty()) {
            assert!(listed.contains(&format!("  make {target} ")), "{}: make {target} is not listed:\n{listed}", page.display());
        }
    }
}

/// Every command of ours that a page quotes, in a sentence or in a block, is one of the tool's, with the flags that it has.
#[test]
fn quoted_commands_are_the_tools() {
    fn names(word: &str) -> bool {
        word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') && !word.is_empty()
    }
    let mut help: std::collections::BTreeMap<Vec<String>, Option<String>> = std::collections::BTreeMap::new();
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for page in all_pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let in_blocks: Vec<String> =
            blocks(&text).into_iter().flat_map(|block| block.text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let in_sentences = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned);
        for code in in_sentences.chain(in_blocks) {
            let (_, commands) = match code.split_once("replicated ") {
                Some((before, rest)) if before.is_empty() || before.ends_with([' ', '/', '(']) => (before, rest),
                _ => continue,
            };
            let words: Vec<&str> = commands.split(['|', ';', '&']).next().unwrap_or_default().split_whitespace().collect();
            let Some(&first) = words.first().filter(|word| names(word)) else { continue };
            let mut command = vec![first.to_owned()];
            command.extend(words.get(1).filter(|word| first == "config" && names(word)).map(|word| (*word).to_owned()));
            let told = help.entry(command.clone()).or_insert_with(|| {
                let output = built::command(env!("CARGO_BIN_EXE_replicated")).args(&command).arg("--help").output().unwrap();
                output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
            });
            let flags =
                words.iter().filter(|word| word.starts_with("--")).map(|word| word.split(['=', ')', ',']).next().unwrap_or_default());
            match told {
                // A sentence that goes on after the name of something else.
                None => wrong.push(format!("{}: no command {command:?}: {code}", page.display())),
                Some(told) => {
                    let has = |flag: &str| told.split([' ', '\n', ',', '=', '<', '[']).any(|word| word == flag);
                    wrong.extend(
                        flags.filter(|flag| !has(flag)).map(|flag| format!("{}: {command:?} has no {flag}: {code}", page.display())),
                    );
                    compared += 1;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 100, "{compared}");
}

/// Whether what the pages run is there.
fn can_run() -> bool {
    built::has("sqlite3", &["-version"]) && built::has_python() && tools::environment().is_some()
}

#[test]
fn what_the_readme_says_to_run_runs() {
    if !can_run() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let printed = pages::run("README.md", work.path());
    // The shell's first sync, the restored row, and Python's status. How many of the three commits an object takes up is the uploader's matter.
    let first_sync = printed.strip_prefix("wal\n").and_then(|rest| rest.lines().next()).and_then(|txid| u64::from_str_radix(txid, 16).ok());
    assert!(first_sync.is_some_and(|txid| (1..=3).contains(&txid)), "{printed}");
    assert!(printed.contains("\noff-site a moment later\n"), "{printed}");
    assert!(printed.contains("state "), "{printed}");
    let restore = format!("sh {}/scripts/restore.sh file://$PWD/bucket/app again.db", root().display());
    let printed = built::run(
        built::command("sh").args(["-euc", &restore]).env("PATH", path_with(&work.path().join("dist"))).current_dir(work.path()),
    );
    assert!(printed.contains("Next:"), "{printed}");
}

#[test]
fn the_tutorial_runs() {
    if can_run() {
        pages::run("docs/tutorial.md", tempfile::tempdir().unwrap().path());
    }
}

#[test]
fn what_operations_says_to_do_works() {
    if can_run() {
        pages::run("docs/operations.md", tempfile::tempdir().unwrap().path());
    }
}

/// The chart is of the tables that stand there, and the recording is of a demo that says what this one says.
#[test]
fn the_pictures_are_of_what_is_there() {
    if !built::has("python3", &["-c", ""]) {
        return;
    }
    let drawn = built::run(built::command("python3").arg(root().join("scripts/chart.py")).arg("--print"));
    assert_eq!(drawn, read("docs/performance.svg"), "make it anew by `python3 scripts/chart.py`");
    let (recorded, demo) = (read("docs/demo.svg"), read("examples/demo.rs"));
    let mut compared = 0;
    for kind in ["bold", "head"] {
        for said in recorded.split(&format!("<tspan class=\"{kind}\">")).skip(1).filter_map(|rest| rest.split('<').next()) {
            assert!(demo.contains(said), "the demo does not say {said:?}: record it anew by `make pictures`");
            compared += 1;
        }
    }
    assert!(compared > 3, "{compared}");
}

fn path_with(folder: &Path) -> std::ffi::OsString {
    let mut path = folder.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

/// Where the language is there. What the snippet prints last is the TXID up to which everything is in the bucket.
#[test]
fn what_the_clients_page_shows_runs() {
    let mut ran = 0;
    for block in blocks(&read("docs/clients.md")) {
        let Some(language) = block.mark.strip_prefix("run: ") else { continue };
        let work = tempfile::tempdir().unwrap();
        built::lay_out_dist(work.path());
        // PHP compares, and so wants it without links.
        let dist = work.path().canonicalize().unwrap().join("dist");
        let (program, probe, arguments) = match language {
            "sh" if built::has("sqlite3", &["-version"]) => ("sh".into(), "true".to_owned(), vec!["-euc".to_owned()]),
            "python with modules" => {
                let Some(environment) = tools::environment() else { continue };
                (environment.join("bin/python3"), "pass".to_owned(), vec!["-c".to_owned()])
            }
            "php" => (
                "php".into(),
                "exit(class_exists('SQLite3') ? 0 : 1);".to_owned(),
                vec!["-d".to_owned(), format!("sqlite3.extension_dir={}", dist.display()), "-r".to_owned()],
            ),
            "perl" => ("perl".into(), "use DBD::SQLite".to_owned(), vec!["-e".to_owned()]),
            // It reads files only.
            "tcl" => (
                "sh".into(),
                "echo 'puts [package require sqlite3]' | tclsh 2>&1 | grep -q ^3".to_owned(),
                vec!["-c".to_owned(), r#"printf '%s' "$1" >script.tcl && exec tclsh script.tcl"#.to_owned(), "sh".to_owned()],
            ),
            "sh" => continue,
            other => panic!("how is {other} run?"),
        };
        let probed = [arguments.iter().find(|a| ["-c", "-e", "-r", "-euc"].contains(&a.as_str())).unwrap(), &probe].map(String::as_str);
        if !built::has_optional(&program, &probed) {
            continue;
        }
        let printed = built::run(built::command(&program).args(&arguments).arg(&block.text).current_dir(work.path()));
        let is_txid = |word: &str| word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(printed.split(|c: char| !c.is_ascii_alphanumeric()).any(is_txid), "{language}: {printed}");
        let buckets: Vec<_> = std::fs::read_dir(work.path().join("bucket")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!buckets.is_empty());
        for bucket in buckets {
            let restored = work.path().join("restored.db");
            let url = format!("file://{}", work.path().join("bucket").join(&bucket).display());
            built::run(built::command(env!("CARGO_BIN_EXE_replicated")).args(["restore", &url, "--force", "-o"]).arg(&restored));
            let db = rusqlite::Connection::open(&restored).unwrap();
            assert_eq!(db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'notes'", [], |row| row.get::<_, i64>(0)), Ok(1));
        }
        ran += 1;
    }
    assert!(ran > 0 || tools::environment().is_none());
}

#[test]
fn the_pages_snippets_are_the_examples() {
    let mut compared = 0;
    let pages = ["README.md", "docs/clients.md"].map(read).join("\n");
    for block in blocks(&pages) {
        let Some(example) = block.mark.strip_prefix("as in ") else { continue };
        let text = read(example);
        let mut lines = text.lines().map(str::trim);
        for wanted in block.text.lines().map(str::trim) {
            assert!(lines.any(|line| line.contains(wanted)), "{example} has no {wanted:?}, or not in this order");
            compared += 1;
        }
    }
    assert!(compared > 35, "{compared}");
}

fn all_pages() -> Vec<PathBuf> {
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
    for page in all_pages() {
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
    let (sources, mut missing) = (sources(), Vec::new());
    // What is put in where there is a second replica, and the like.
    let plain: String = sources
        .split('{')
        .map(|part| part.split_once('}').map_or(part, |(inside, rest)| if inside.contains('\n') { part } else { rest }))
        .collect();
    for page in ["docs/troubleshooting.md", "docs/litestream.md"] {
        let text = read(page);
        let quotes: Vec<&str> = text.lines().filter_map(|line| line.trim_start().strip_prefix("> ")).collect();
        assert!(quotes.len() > 1, "{page}");
        for quote in quotes {
            // SQLite's own.
            if quote == "not authorized" {
                continue;
            }
            // A line of the log begins with its database. A short piece says nothing: "…: …".
            for piece in quote.strip_prefix("…: ").unwrap_or(quote).split('…').filter(|piece| piece.trim().len() > 4) {
                if !sources.contains(piece) && !plain.contains(piece) {
                    missing.push(format!("{page}: {quote}\nno message has {piece:?}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    let table = read("docs/troubleshooting.md");
    let rows = table.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('`').nth(1));
    for message in rows {
        // The ones of credentials are put together from two.
        let message = message.strip_prefix("no credentials from ").unwrap_or(message);
        assert!(sources.contains(message), "docs/troubleshooting.md: {message}");
    }
}

/// Every warning and error of the log that has words of its own is quoted and explained.
#[test]
fn what_the_log_warns_of_is_explained() {
    let page = read("docs/troubleshooting.md");
    let quotes = page.lines().filter_map(|line| line.trim_start().strip_prefix("> "));
    let pieces: Vec<&str> = quotes.flat_map(|quote| quote.split('…')).filter(|piece| piece.len() > 10).collect();
    let events = std::fs::read_to_string(root().join("docs/logs.md")).unwrap_or_default();
    let sources = sources();
    let plain = ["log::warn!(", "log::error!("].map(|mark| sources.split(mark).skip(1)).into_iter().flatten().map(|rest| {
        let rest = rest.trim_start();
        ("", if rest.starts_with("target:") { rest.split_once(',').map_or("", |(_, rest)| rest) } else { rest })
    });
    // `event!(Warn, "name", …; "text")`: its name may stand in the list of all events instead.
    let named = sources.split("event!(").skip(1).map(str::trim_start).filter(|rest| rest.starts_with("Warn") || rest.starts_with("Error"));
    let named = named.filter_map(|rest| Some((rest.split('"').nth(1)?, rest.split_once(';')?.1)));
    let mut warnings = 0;
    for (event, rest) in plain.chain(named) {
        let Some(said) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) else { continue };
        let words: usize = said.split(['{', '}']).step_by(2).map(|words| words.trim_matches([' ', ':', '.']).len()).sum();
        if words > 12 {
            let is_listed = !event.is_empty() && events.contains(&format!("`{event}`"));
            let is_explained = is_listed || pieces.iter().any(|piece| said.contains(piece));
            assert!(is_explained, "docs/troubleshooting.md does not explain what the log may say: {said:?}");
            warnings += 1;
        }
    }
    assert!(warnings > 20, "{warnings}");
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
