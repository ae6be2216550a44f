//! A web application under a server that forks its workers: as an example, and as deploy/container has it. No container is made here; what is in the Dockerfile and
//! in the Compose file is laid out in a folder, and run there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::panic, clippy::print_stdout)] // The helpers are part of tests.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use replicated_testkit::host::PATIENCE;
use replicated_testkit::{sqlite, tools};

mod built;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// gunicorn, as a process of its own.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts it, by a command that is told which socket, and waits until it answers.
    fn start(command: &mut Command, socket: &Path) -> Self {
        let child = command.arg("--bind").arg(format!("unix:{}", socket.display())).spawn().unwrap();
        let mut server = Self { child, socket: socket.to_owned() };
        let began = Instant::now();
        while server.ask("GET", "/notes", "").is_none() {
            assert!(server.child.try_wait().unwrap().is_none(), "the server has ended");
            assert!(began.elapsed() < PATIENCE, "the server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// The body of an answer that says that all is well.
    fn ask(&self, method: &str, path: &str, body: &str) -> Option<String> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.split(' ').nth(1).filter(|code| *code == "200").map(|_| body.to_owned())
    }

    /// Adds notes; which of them were acknowledged, and by which worker the last one was.
    fn add(&self, notes: impl Iterator<Item = String>) -> (Vec<String>, i32) {
        let mut last = 0;
        let acknowledged =
            notes.filter(|note| self.ask("POST", "/notes", note).is_some_and(|worker| worker.parse().map(|pid| last = pid).is_ok()));
        (acknowledged.collect(), last)
    }

    fn notes(&self) -> Vec<String> {
        serde_json::from_str(&self.ask("GET", "/notes", "").unwrap()).unwrap()
    }

    /// As whoever stops a service asks it to.
    fn terminate(mut self) -> ExitStatus {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    /// Where a test fails: the workers notice that it is gone.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn restored_equals(url: &str, database: &Path, work: &Path) {
    let restored = work.join("restored.db");
    // Of two connections that are closed at once SQLite may take neither for the last one, and leave the WAL behind.
    let checkpointed: i64 =
        rusqlite::Connection::open(database).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert_eq!(checkpointed, 0);
    built::run(built::command(env!("CARGO_BIN_EXE_replicated")).args(["restore", url, "--force", "-o"]).arg(&restored));
    sqlite::page_compare(database, &restored).unwrap();
}

/// With the application loaded by each worker, and once before they are forked. A worker is killed, another takes over.
#[test]
fn the_flask_example_replicates_under_a_server_that_forks() {
    let Some(environment) = tools::environment() else { return };
    for flags in [&["--workers", "3"][..], &["--workers", "3", "--preload"]] {
        let work = tempfile::tempdir().unwrap();
        built::lay_out_dist(work.path());
        let (database, bucket) = (work.path().join("app.db"), format!("file://{}", work.path().join("bucket").display()));
        let mut gunicorn = built::command(environment.join("bin/gunicorn"));
        gunicorn.args(["--log-level", "warning", "--chdir"]).arg(root().join("examples")).args(flags).arg("flask_app:app");
        gunicorn
            .env("NOTES_REPLICA", &bucket)
            .env("NOTES_DATABASE", &database)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("HOME", work.path());
        gunicorn.env("REPLICATED_EXTENSION", work.path().join("dist/replicated.so"));
        let server = Server::start(&mut gunicorn, &work.path().join("socket"));
        let (mut acknowledged, worker) = server.add((0..20).map(|n| format!("note {n}")));
        assert_eq!(acknowledged.len(), 20);
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        acknowledged.extend(server.add((20..40).map(|n| format!("note {n}"))).0);
        assert!(acknowledged.len() > 20);
        assert!(server.ask("GET", "/health", "").is_some());
        let told = server.notes();
        assert!(server.terminate().success());
        assert!(acknowledged.iter().all(|note| told.contains(note)), "{told:?}");
        restored_equals(&bucket, &database, work.path());
    }
}

/// An instruction of a Dockerfile and what it says.
type Instruction = (String, String);

/// The instructions of each stage, by its name.
fn stages(dockerfile: &str) -> BTreeMap<String, Vec<Instruction>> {
    let mut stages: Vec<(String, Vec<Instruction>)> = Vec::new();
    let text: Vec<&str> = dockerfile.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    for line in text.join("\n").replace("\\\n", " ").lines().filter(|line| !line.trim().is_empty()) {
        let (name, says) = line.split_once(' ').unwrap();
        let says = says.split_whitespace().collect::<Vec<_>>().join(" ");
        if name == "FROM" {
            stages.push((says.split_once(" AS ").unwrap().1.to_owned(), Vec::new()));
        } else {
            stages.last_mut().unwrap().1.push((name.to_owned(), says));
        }
    }
    stages.into_iter().collect()
}

/// The application's stage, laid out below a folder.
struct Image {
    root: PathBuf,
    environment: Vec<(String, String)>,
    command: Vec<String>,
    health: Vec<String>,
}

impl Image {
    fn of(stage: &[Instruction], dist: &Path, root_of_image: &Path) -> Self {
        let mut image = Self { root: root_of_image.to_owned(), environment: Vec::new(), command: Vec::new(), health: Vec::new() };
        std::fs::create_dir_all(image.root.join("data")).unwrap();
        let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
        for (name, says) in stage {
            match name.as_str() {
                "COPY" => {
                    let mut words: Vec<&str> = says.split(' ').collect();
                    let target = image.inside(words.pop().unwrap());
                    let is_built = words.first() == Some(&"--from=extension");
                    for source in &words[usize::from(is_built)..] {
                        let source = if is_built {
                            let built = source.strip_prefix("/src/dist/").unwrap();
                            assert!(makefile.contains(&format!("$(DIST)/{built}\n")), "make build makes no {built}");
                            dist.join(built)
                        } else {
                            root().join(source)
                        };
                        let target = if target.ends_with('/') {
                            Path::new(&target).join(source.file_name().unwrap())
                        } else {
                            target.clone().into()
                        };
                        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
                        std::fs::copy(&source, &target).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
                    }
                }
                "ENV" => {
                    let set = says.split(' ').map(|word| word.split_once('=').unwrap());
                    image.environment.extend(set.map(|(name, value)| (name.to_owned(), image.inside(value))).collect::<Vec<_>>());
                }
                "CMD" => image.command = image.words(says),
                "HEALTHCHECK" => image.health = image.words(says.split_once("CMD ").unwrap().1),
                _ => {}
            }
        }
        image
    }

    /// A path in the image as one in the folder; other words as they are.
    fn inside(&self, word: &str) -> String {
        if word.starts_with('/') { format!("{}{word}", self.root.display()) } else { word.to_owned() }
    }

    /// The words of the form that no shell comes before, which would keep signals away.
    fn words(&self, json: &str) -> Vec<String> {
        let words: Vec<String> = serde_json::from_str(json).unwrap_or_else(|_| panic!("{json} goes through a shell"));
        words.iter().map(|word| word.split(' ').map(|part| self.inside(part)).collect::<Vec<_>>().join(" ")).collect()
    }

    /// With what the image has in its environment, the service in its, and nothing else.
    fn command(&self, words: &[String], service: &[(String, String)]) -> Command {
        let tools = tools::environment().unwrap().join("bin");
        let path = format!("{}:{}:/usr/bin:/bin", self.root.join("usr/local/bin").display(), tools.display());
        let mut command = Command::new("env");
        // Some gunicorns keep a socket in the home directory.
        command.arg("-i").arg(format!("PATH={path}")).arg(format!("HOME={}", self.root.display()));
        command.args(self.environment.iter().chain(service).map(|(name, value)| format!("{name}={value}")));
        command.args(words).current_dir(self.root.join("app"));
        command
    }
}

/// What a Compose file says, read by a library that knows its specification and refuses what is not in it.
fn compose(environment: &Path) -> serde_json::Value {
    const READ: &str =
        "import sys, compose_spec as c\nfile = c.PyCompose.from_yaml(sys.stdin.read())\nfile.validate()\nprint(file.to_json())";
    let mut python = built::command(environment.join("bin/python3"));
    let file = std::fs::File::open(root().join("deploy/container/compose.yaml")).unwrap();
    serde_json::from_str(&built::run(python.args(["-c", READ]).stdin(file))).unwrap()
}

/// The image's files, environment, command and health check, with the environment of the Compose file and a folder for the bucket: it starts, is healthy, ends on
/// SIGTERM with everything in the bucket, and starts again with an empty disk.
#[test]
fn the_container_replicates_and_starts_from_its_bucket() {
    let Some(environment) = tools::environment() else { return };
    let work = tempfile::tempdir().unwrap();
    built::lay_out_dist(work.path());
    let file = std::fs::read_to_string(root().join("deploy/container/Dockerfile")).unwrap();
    built::run(built::command(environment.join("bin/hadolint")).arg(root().join("deploy/container/Dockerfile")));
    let stages = stages(&file);
    assert!(stages["extension"].contains(&("RUN".to_owned(), "make build".to_owned())));
    let image = Image::of(&stages["application"], &work.path().join("dist"), &work.path().join("image"));

    let compose = compose(&environment);
    let service = &compose["services"]["app"];
    assert_eq!(compose["services"].as_object().unwrap().len(), 1, "no sidecar");
    let context = root().join("deploy/container").join(service["build"]["context"].as_str().unwrap()).canonicalize().unwrap();
    assert!(context.join("Makefile").exists() && context.join(service["build"]["dockerfile"].as_str().unwrap()).exists());
    assert_eq!(service["volumes"], serde_json::json!(["data:/data"]));
    let bucket = format!("file://{}", work.path().join("bucket").display());
    let mut of_service: Vec<(String, String)> = Vec::new();
    for (name, value) in service["environment"].as_object().unwrap() {
        // What has no value there is handed on where it is set.
        let Some(value) = value.as_str() else { continue };
        of_service.push((name.clone(), if name == "NOTES_REPLICA" { bucket.clone() } else { value.to_owned() }));
    }
    // SIGTERM, then the requests, then the close, and only then the kill.
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u32>().unwrap();
    let settings = std::fs::read_to_string(root().join("deploy/container/gunicorn.conf.py")).unwrap();
    let graceful = settings.lines().find_map(|line| line.strip_prefix("graceful_timeout = ")).map(seconds).unwrap();
    assert!(seconds(service["stop_grace_period"].as_str().unwrap()) > graceful + 5);

    let data = image.root.join("data");
    let mut expected = Vec::new();
    for round in 0..2 {
        let server = Server::start(&mut image.command(&image.command, &of_service), &work.path().join("socket"));
        assert_eq!(server.notes(), expected);
        let (added, _) = server.add((0..5).map(|n| format!("note {n} of round {round}")));
        expected.extend(added);
        assert_eq!((server.notes(), expected.len()), (expected.clone(), 5 * (round + 1)));
        built::run(&mut image.command(&image.health, &of_service));
        assert!(server.terminate().success());
        restored_equals(&bucket, &data.join("app.db"), work.path());
        // Nobody has it open: that is not healthy.
        assert_eq!(image.command(&image.health, &of_service).status().unwrap().code(), Some(1));
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::create_dir(&data).unwrap();
    }
}
