//! What the command-line tool says when it cannot do what it is asked: what was tried, on what, why it failed, and what to do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod built;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder with a bucket, a database that was restored from it, and files that are none.
struct Place {
    dir: TempDir,
    url: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/litestream-0.5.17-block/ltx");
        for level in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = dir.path().join("bucket/ltx").join(level.file_name());
            std::fs::create_dir_all(&to).unwrap();
            for file in std::fs::read_dir(level.path()).unwrap().map(Result::unwrap) {
                std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
        let url = format!("file://{}/bucket", dir.path().display());
        let place = Self { dir, url };
        std::fs::write(place.path("text.txt"), "no database, and long enough to be taken for the hundred bytes of a header ".repeat(3))
            .unwrap();
        std::fs::write(place.path("bad.toml"), "max_locl = 1\n").unwrap();
        let (code, told) = place.run(&["restore", "URL", "-o", "app.db"]);
        assert_eq!(code, 0, "{told}");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// In that folder; `URL` is the bucket's. The exit code, and what stderr has.
    fn run(&self, args: &[&str]) -> (i32, String) {
        self.run_with(args, &[])
    }

    fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
        let args = args.iter().map(|arg| if *arg == "URL" { self.url.as_str() } else { arg });
        let mut command = built::command(env!("CARGO_BIN_EXE_replicated"));
        let output = command.args(args).current_dir(self.dir.path()).envs(env.iter().copied()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// What lies in the folder.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(self.dir.path()).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// What a value looks like that was printed for programmers, or wrapped by a library.
fn is_for_people(told: &str) {
    for raw in ["Some(", "Err(", "Error {", "Os {", "kind:", "Generic ", "1..=", "invalid digit", "stream did not"] {
        assert!(!told.contains(raw), "{raw:?} in: {told}");
    }
}

#[test]
fn a_wrong_command_is_told_with_what_is_allowed() {
    let place = Place::new();
    let cases: &[(&[&str], &str)] = &[
        (&["list", "/srv/bucket"], "\"/srv/bucket\" has no scheme: write s3://bucket/path"),
        (&["list", "/srv/bucket"], "; for that folder, file:///srv/bucket"),
        (&["list", "https://host/bucket"], "use s3, gs, abs or file; a store's own address is the option endpoint"),
        (&["list", "file://bucket"], "write file:/// and the whole path"),
        (&["list", "s3://"], "names no bucket: write s3://bucket/path"),
        (&["list", "s3://key:hush@b/p"], "put them into the environment as AWS_ACCESS_KEY_ID"),
        (&["list", "abs://container/p"], "Account must be specified. Write abs://account@container/path"),
        (&["list", "s3://b/p", "--ca-bundle", "none.pem"], "ca_bundle none.pem: No such file or directory (os error 2). Name a file"),
        (&["list", "URL", "--log-level", "loud"], "--log-level: got \"loud\", that is no level; allowed is error, warn"),
        (&["list", "URL", "--request-timeout", "5"], "--request-timeout: got \"5\", the unit is missing"),
        (&["restore", "URL", "-o", "x.db", "--parallelism", "0"], "allowed is a whole number from 1 to 128"),
        (&["restore", "URL", "-o", "x.db", "--threads", "many"], "allowed is a whole number from 1 to 64"),
        (&["restore", "URL", "-o", "x.db", "--txid", "xyz"], "a TXID is 1 to 16 hexadecimal digits"),
        (&["restore", "URL", "-o", "x.db", "--timestamp", "5m"], "that is how long, not when: write \"5m ago\""),
        (&["restore", "URL", "-o", "x.db", "--timestamp", "2026-13-01"], "write it as 2026-11-22T13:49:05.448Z"),
        (&["restore", "URL", "-o", "x.db", "--follow", "--every", "soon"], "allowed is a duration such as 500ms"),
        (&["status", "app.db", "--watch=0s"], "the shortest is 100ms"),
        (&["status", "app.db", "--max-lag", "abc"], "allowed is a duration such as 500ms"),
        (&["doctor", "URL", "--timeout", "0s"], "the shortest is 100ms"),
        (&["verify", "URL", "--max-memory-mib", "1"], "allowed is a whole number from 8 to 65536"),
        (&["maintain", "URL", "--every", "1"], "the unit is missing: 1ms, 1s, 1m, 1h or 1d; allowed is a duration such as"),
    ];
    for (args, part) in cases {
        let (code, told) = place.run(args);
        assert!(code == 2 && told.contains(part), "{args:?}: {code}: {told}");
        assert!(!told.contains("hush"), "{told}");
        is_for_people(&told);
    }
    let gcs: &[(&str, &str)] = &[("GOOGLE_APPLICATION_CREDENTIALS", "none.json")];
    let azure: &[(&str, &str)] = &[("AZURE_STORAGE_ACCOUNT_KEY", "no base64!")];
    for (url, env, part) in [
        ("gs://b/p", gcs, "No such file or directory (os error 2). Correct the key file that GOOGLE_APPLICATION_CREDENTIALS"),
        ("abs://a@c/p", azure, "Set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"),
        ("s3://b/p", &[("AWS_ACCESS_KEY_ID", "x")], "AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY. Set both or none"),
        (
            "s3://b/p",
            &[("REPLICATED_CONFIG", "/none.toml")],
            "No such file or directory (os error 2). Correct its path (REPLICATED_CONFIG)",
        ),
        ("s3://b/p", &[("REPLICATED_MAX_LOCAL", "abc")], "environment variable REPLICATED_MAX_LOCAL: got \"abc\""),
    ] {
        let (code, told) = place.run_with(&["list", url], env);
        assert!(code == 2 && told.contains(part), "{url}: {code}: {told}");
        assert!(!told.contains("base64!"), "{told}");
        is_for_people(&told);
    }
}

#[test]
fn what_cannot_be_done_is_told_with_why_and_what_to_do() {
    let place = Place::new();
    std::fs::create_dir(place.path("folder")).unwrap();
    std::fs::create_dir(place.path("lost")).unwrap();
    std::fs::write(place.path("lost/app.db"), "").unwrap();
    std::fs::create_dir(place.path("lost/app.db-replicated")).unwrap();
    std::fs::write(place.path("lost/app.db-replicated/control"), "damaged").unwrap();
    let nothing = format!("file://{}/nothing", place.dir.path().display());
    let no_folder = format!("file://{}/text.txt", place.dir.path().display());
    let before = place.names();
    // The command; what it says of why, and of what to do.
    let cases: &[(&[&str], &str, &str)] = &[
        (&["list", &nothing], "the bucket has no LTX files", "check the URL"),
        (&["list", &no_folder], "Not a directory", "must name a folder"),
        (&["restore", "URL", "-o", "app.db"], "app.db exists already", "--force"),
        (&["restore", "URL", "-o", "none/x.db"], "No such file or directory", "make the directory of the output first"),
        (&["restore", "URL", "-o", "text.txt/x.db"], "Not a directory", "make the directory of the output first"),
        (&["restore", "URL", "-o", "folder"], "folder is a directory", "name a file that is not there yet"),
        (&["restore", "URL", "-o", "folder", "--force"], "folder is a directory", "name a file that is not there yet"),
        (&["restore", "URL", "-o", "x.db", "--txid", "ffff"], "the newest is 000000000000001c", "--txid 000000000000001c"),
        (&["restore", "URL", "-o", "x.db", "--timestamp", "2001-01-01T00:00:00Z"], "nothing as old as 2001", "--txid"),
        (&["restore", "URL", "-o", "text.txt", "--follow"], "does not say that it is a copy", "choose another output"),
        (&["adopt", "none.db", "URL"], "none.db is not there", "Correct the path"),
        (&["adopt", "folder", "URL"], "folder is no file", "Name the database file"),
        (&["adopt", "text.txt", "URL"], "does not begin as a SQLite database does", "Look whether this is the right file"),
        (&["adopt", "app.db", &nothing], "the bucket has no LTX files", "check the URL"),
        (&["copy", &nothing, "URL"], "the bucket has no LTX files", "Check the URL"),
        (&["config", "check", "none.toml"], "No such file or directory", "check again"),
        (&["config", "check", "bad.toml"], "line 1: unknown option max_locl: did you mean max_local?", "docs/configuration.md"),
        (&["status", "none.db"], "none.db cannot be looked at: No such file", "`replicated restore`"),
        (&["status", "text.txt"], "is not replicated: there is no", "vfs=replicated and replica=URL"),
        (&["status", "folder"], "is not replicated: there is no", "`--all` finds the databases below a directory"),
        (&["status", "URL"], "cannot be looked at", "Name the file of the database"),
        (&["status", "lost/app.db"], "control is not what this version writes", "`replicated adopt`"),
        (&["status", "--all", "none"], "No such file or directory", "look whether its volume is mounted"),
        (&["status", "--all", "app.db"], "Not a directory", "Name directories with --all"),
        (&["metrics", "none.db"], "none.db cannot be looked at: No such file", "`replicated restore`"),
        (&["metrics", "--all", "none"], "No such file or directory", "look whether its volume is mounted"),
        (&["metrics", "app.db", "--textfile", "none/x.prom"], "No such file or directory", "Make the directory first"),
        (&["metrics", "app.db", "--textfile", "folder"], "Is a directory", "write to the directory"),
    ];
    for (args, why, advice) in cases {
        let (code, told) = place.run(args);
        assert_eq!(code, 1, "{args:?}: {told}");
        let line = |mark: &str| told.lines().find_map(|line| line.strip_prefix(mark)).unwrap_or_else(|| panic!("no {mark:?}: {told}"));
        assert!(line("error: ").len() > 10, "{told}");
        assert!(line("  why: ").contains(why), "{args:?}: {why:?} is not in: {told}");
        assert!(line("  try: ").contains(advice), "{args:?}: {advice:?} is not in: {told}");
        // Nothing is said twice: what to do, nor the bucket.
        assert!(!line("  why: ").starts_with(&format!("{nothing}: ")), "{told}");
        assert!(!line("  why: ").contains(line("  try: ")), "{told}");
        is_for_people(&told);
    }
    assert_eq!(place.names(), before, "something was made or taken away");
}

/// A device such as /dev/null has a length of zero, too.
#[test]
fn an_output_that_is_no_file_is_never_replaced() {
    let place = Place::new();
    let _socket = UnixListener::bind(place.path("socket")).unwrap();
    std::os::unix::fs::symlink("socket", place.path("link")).unwrap();
    let before = place.names();
    for output in ["socket", "link"] {
        for more in [&[][..], &["--force"]] {
            let (code, told) = place.run(&[&["restore", "URL", "-o", output], more].concat());
            assert!(code == 1 && told.contains("is a device, a socket or a FIFO") && told.contains("  try: name a file"), "{told}");
            let (code, told) = place.run(&[&["restore", "URL", "-o", output, "--follow"], more].concat());
            assert_eq!(code, 1, "{told}");
            assert!(std::fs::metadata(place.path(output)).unwrap().file_type().is_socket());
        }
    }
    assert_eq!(place.names(), before);
}

/// Cron, as a user who may not read what it is to look at, must not be told that all is current.
#[test]
fn what_may_not_be_read_is_not_all_well() {
    let place = Place::new();
    let program = place.path("replicated");
    std::fs::copy(env!("CARGO_BIN_EXE_replicated"), &program).unwrap();
    std::fs::create_dir(place.path("closed")).unwrap();
    let closed = [place.path("closed"), place.path("app.db-replicated")];
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    set(place.dir.path(), 0o755);
    set(&program, 0o755);
    closed.iter().for_each(|path| set(path, 0o000));
    let told: Vec<(Option<i32>, String)> =
        [&["status", "--all", "closed", "-q"][..], &["status", "app.db", "-q"], &["status", "--all", "-q"]]
            .into_iter()
            .map(|args| {
                let mut command = built::command(&program);
                if rustix::process::geteuid().is_root() {
                    command.uid(65534).gid(65534);
                }
                let output = command.args(args).current_dir(place.dir.path()).output().unwrap();
                (output.status.code(), String::from_utf8(output.stderr).unwrap())
            })
            .collect();
    closed.iter().for_each(|path| set(path, 0o755));
    for ((code, told), about) in told.iter().zip(["cannot look for databases below closed", "app.db-replicated", "app.db-replicated"]) {
        assert!(*code == Some(1) && told.contains(about) && told.contains("Permission denied"), "{told}");
        assert!(told.contains("  try: Run this as a user who may read"), "{told}");
    }
}

/// An object that is too short leads nowhere: what it was to lead to is lost, and nobody is told to leave it.
#[test]
fn a_short_object_is_missed() {
    let place = Place::new();
    let level = |level: &str| -> Vec<PathBuf> {
        let files = std::fs::read_dir(place.path("bucket/ltx").join(level)).into_iter().flatten();
        files.map(|file| file.unwrap().path()).collect()
    };
    let newest = level("0").into_iter().max().unwrap();
    std::fs::write(&newest, "").unwrap();
    // Nothing else leads there.
    let end = newest.to_str().unwrap().rsplit_once('-').unwrap().1.to_owned();
    for file in ["1", "2", "3", "9"].into_iter().flat_map(level).filter(|file| file.to_str().unwrap().ends_with(&end)) {
        std::fs::remove_file(file).unwrap();
    }
    let (code, told) = place.run(&["verify", "URL"]);
    assert!(code == 1 && told.contains("it has 0 bytes, fewer than any LTX file"), "{told}");
    assert!(told.contains("cannot be restored without it") && !told.contains("leave it to retention"), "{told}");
}
