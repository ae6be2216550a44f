//! `make bench`: what replication costs a writer, side by side with plain SQLite in one run, and how soon a commit is in the bucket.
//!
//! `make bench BENCH=remote` measures commits that wait for the bucket instead: how many more a second several threads make than one.
//!
//! Everything is measured in child processes of this program, alternating, against an S3 server in a process of its own. Medians over rounds; the
//! machine may be noisy, so the ratios of a round are what counts. Nothing here fails because something was slow.

#![allow(clippy::print_stdout)] // It reports.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 7;
/// A tight loop, and one that does as much beside its commits as a script would.
const PACES: [(&str, u32, u64); 2] = [("tight loop", 100_000, 0), ("as from a script (80 us a commit)", 40_000, 80)];
const VISIBLE_SAMPLES: usize = 40;
/// Commits that wait: threads, and how many each makes.
const REMOTE: [(usize, usize); 3] = [(1, 100), (4, 100), (16, 100)];
const REMOTE_ROUNDS: usize = 5;
/// What the server takes for a request more than it has to, in milliseconds.
const REMOTE_DELAY_MS: u32 = 30;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("writer") => writer(&arguments),
        Some("visible") => visible(&arguments),
        Some("committers") => committers(&arguments),
        // cargo adds an argument of its own.
        _ if arguments.iter().any(|argument| argument == "remote") => report_remote(),
        _ => report(),
    }
}

fn extension() -> Result<PathBuf> {
    let extension = std::env::var_os("BENCH_EXTENSION").map_or_else(|| PathBuf::from("dist/replicated"), PathBuf::from);
    Ok(std::path::absolute(extension)?)
}

/// Commits with `durability=remote` by one thread and by several.
fn report_remote() -> Result<()> {
    let (extension, work) = (extension()?, tempfile::tempdir()?);
    let server = Server::start(&work.path().join("s3"), REMOTE_DELAY_MS)?;
    let mut rates = vec![Vec::new(); REMOTE.len()];
    for round in 0..REMOTE_ROUNDS {
        for ((threads, commits), rates) in REMOTE.iter().zip(&mut rates) {
            let replica = format!("{}&durability=remote", server.url(&format!("remote/{threads}/{round}")));
            let database = uri(&work.path().join(format!("{threads}-{round}.db")), Some(&replica));
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["committers", &threads.to_string(), &commits.to_string(), &database]).arg(&extension);
            let output = command.envs(server.env.iter().cloned()).stderr(Stdio::inherit()).output()?;
            let rate: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
            println!("{threads} threads, round {round}: {rate:.1} commits a second");
            rates.push(rate);
        }
    }
    let one = median(rates.first().ok_or("no rates")?);
    let mut table = String::from("| threads | commits a second (median of rounds, lowest to highest) | of one thread's |\n|---|---|---|\n");
    for ((threads, _), rates) in REMOTE.iter().zip(&rates) {
        let (low, high) = rates.iter().fold((f64::MAX, f64::MIN), |(l, h), r| (l.min(*r), h.max(*r)));
        let rate = median(rates);
        table.push_str(&format!("| {threads} | {rate:.1} ({low:.1} to {high:.1}) | {:.1} |\n", rate / one));
    }
    println!("\n{table}");
    write_page(&table, "remote")
}

/// Threads with a connection each, whose commits wait for the bucket.
fn committers(arguments: &[String]) -> Result<()> {
    let [_, _, threads, commits, uri, extension] = arguments else { return Err("wrong arguments".into()) };
    let (threads, commits): (usize, usize) = (threads.parse()?, commits.parse()?);
    let connections = (0..threads).map(|_| open(uri, Some(Path::new(extension)))).collect::<Result<Vec<_>>>()?;
    let row = "0123456789".repeat(7);
    let start = Instant::now();
    let running: Vec<_> = connections
        .into_iter()
        .map(|connection| {
            let row = row.clone();
            std::thread::spawn(move || -> rusqlite::Result<()> {
                connection.busy_timeout(Duration::from_secs(60))?;
                let mut insert = connection.prepare("INSERT INTO t(b) VALUES(?1)")?;
                (0..commits).try_for_each(|_| insert.execute([&row]).map(drop))
            })
        })
        .collect();
    for thread in running {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    println!("{}", (threads * commits) as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

fn report() -> Result<()> {
    let (extension, work) = (extension()?, tempfile::tempdir()?);
    let server = Server::start(&work.path().join("s3"), 0)?;
    let mut table = String::from("| what | plain | replicated | ratio (median of rounds, lowest to highest) |\n|---|---|---|---|\n");
    for (name, commits, pause_us) in PACES {
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let directory = work.path().join(format!("{pause_us}-{round}"));
            std::fs::create_dir(&directory)?;
            let plain = || run_writer(&directory.join("plain.db"), None, commits, pause_us, &server);
            let replica = server.url(&format!("bench/{pause_us}/{round}"));
            let ours = || run_writer(&directory.join("ours.db"), Some((&extension, &replica)), commits, pause_us, &server);
            let pair = if round % 2 == 0 {
                let p = plain()?;
                (p, ours()?)
            } else {
                let o = ours()?;
                (plain()?, o)
            };
            println!("{name}, round {round}: plain {} ours {}", pair.0, pair.1);
            rounds.push(pair);
        }
        for (label, figure) in [
            (format!("commits a second, {name}"), (|r: &Figures| r.rate) as fn(&Figures) -> f64),
            (format!("p50 commit latency, us, {name}"), |r| r.p50_us),
            (format!("p99 commit latency, us, {name}"), |r| r.p99_us),
            (format!("p99.9 commit latency, us, {name}"), |r| r.p999_us),
        ] {
            table.push_str(&row(&label, &rounds, figure));
        }
        let memory: Vec<f64> = rounds.iter().map(|(p, o)| (o.rss_kib - p.rss_kib) / 1024.0).collect();
        table.push_str(&format!("| resident memory added, MiB, {name} | | {:.1} | |\n", median(&memory)));
    }
    let (put_ms, visible_ms) = measure_visible(work.path(), &extension, &server)?;
    table.push_str(&format!(
        "| from COMMIT's return to the object in the bucket, after a pause, ms | {put_ms:.2} (a bare PUT of the same size) | {visible_ms:.2} | {:+.2} ms |\n",
        visible_ms - put_ms
    ));
    println!("\n{table}");
    write_page(&table, "table")
}

/// Puts a table where the page has it.
fn write_page(table: &str, name: &str) -> Result<()> {
    let path = Path::new("docs/performance.md");
    let page = std::fs::read_to_string(path)?;
    let marker = format!("<!-- {name} -->\n");
    let (head, rest) = page.split_once(&marker).ok_or("docs/performance.md has no table marker")?;
    let (_, tail) = rest.split_once("<!-- end -->").ok_or("docs/performance.md has no end marker")?;
    Ok(std::fs::write(path, format!("{head}{marker}{table}<!-- end -->{tail}"))?)
}

fn row(label: &str, rounds: &[(Figures, Figures)], figure: fn(&Figures) -> f64) -> String {
    let values = |pick: fn(&(Figures, Figures)) -> &Figures| rounds.iter().map(|r| figure(pick(r))).collect::<Vec<_>>();
    let ratios: Vec<f64> = rounds.iter().map(|(p, o)| figure(o) / figure(p)).collect();
    let (low, high) = ratios.iter().fold((f64::MAX, f64::MIN), |(l, h), r| (l.min(*r), h.max(*r)));
    format!(
        "| {label} | {:.1} | {:.1} | {:.2} ({low:.2} to {high:.2}) |\n",
        median(&values(|r| &r.0)),
        median(&values(|r| &r.1)),
        median(&ratios)
    )
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[derive(Clone, Copy, Debug)]
struct Figures {
    rate: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    rss_kib: f64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0}/s p50 {:.1} p99 {:.1} p99.9 {:.0} us, {:.1} MiB;",
            self.rate,
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.rss_kib / 1024.0
        )
    }
}

fn run_writer(database: &Path, replica: Option<(&Path, &str)>, commits: u32, pause_us: u64, server: &Server) -> Result<Figures> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["writer", &commits.to_string(), &pause_us.to_string()]).arg(uri(database, replica.map(|r| r.1)));
    if let Some((extension, _)) = replica {
        command.arg(extension);
    }
    let output = command.envs(server.env.iter().cloned()).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [rate, p50_us, p99_us, p999_us, rss_kib] = numbers.as_slice() else { return Err(format!("the writer said {text:?}").into()) };
    Ok(Figures { rate: *rate, p50_us: *p50_us, p99_us: *p99_us, p999_us: *p999_us, rss_kib: *rss_kib })
}

fn uri(database: &Path, replica: Option<&str>) -> String {
    match replica {
        Some(replica) => format!("file:{}?vfs=replicated&replica={replica}", database.display()),
        None => format!("file:{}", database.display()),
    }
}

/// Single-row transactions in WAL mode with `synchronous=normal`, each timed.
fn writer(arguments: &[String]) -> Result<()> {
    let [_, _, commits, pause_us, uri, extension @ ..] = arguments else { return Err("wrong arguments".into()) };
    let (commits, pause_us): (usize, u64) = (commits.parse()?, pause_us.parse()?);
    let connection = open(uri, extension.first().map(Path::new))?;
    let mut insert = connection.prepare("INSERT INTO t(b) VALUES(?1)")?;
    let mut latencies = Vec::with_capacity(commits);
    let row = "0123456789".repeat(7);
    let start = Instant::now();
    for _ in 0..commits {
        let begin = Instant::now();
        insert.execute([&row])?;
        latencies.push(begin.elapsed());
        while pause_us > 0 && begin.elapsed() < Duration::from_micros(pause_us) {
            std::hint::spin_loop();
        }
    }
    let rate = commits as f64 / start.elapsed().as_secs_f64();
    let rss_kib = resident_kib()?;
    latencies.sort_unstable();
    let at = |share: f64| latencies.get((commits as f64 * share) as usize).map_or(0.0, |d| d.as_secs_f64() * 1e6);
    println!("{rate} {} {} {} {rss_kib}", at(0.5), at(0.99), at(0.999));
    Ok(())
}

#[allow(unsafe_code)]
fn open(uri: &str, extension: Option<&Path>) -> Result<Connection> {
    if let Some(extension) = extension {
        let scratch = Connection::open_in_memory()?;
        // SAFETY: it is our own extension.
        unsafe {
            scratch.load_extension_enable()?;
            scratch.load_extension(extension, None::<&str>)?;
        }
    }
    let connection = Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI)?;
    connection.query_row("PRAGMA journal_mode=wal", [], |_| Ok(()))?;
    connection.execute_batch("PRAGMA synchronous=normal; CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")?;
    Ok(connection)
}

fn resident_kib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no VmRSS")?.parse()?)
}

fn measure_visible(work: &Path, extension: &Path, server: &Server) -> Result<(f64, f64)> {
    let database = work.join("visible.db");
    let replica = server.url("bench/visible");
    let output = Command::new(std::env::current_exe()?)
        .arg("visible")
        .arg(uri(&database, Some(&replica)))
        .args([extension, &server.root.join("replicas/bench/visible/0000")])
        .arg(&replica)
        .envs(server.env.iter().cloned())
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
    let [put_ms, visible_ms] = numbers.as_slice() else { return Err(format!("the prober said {text:?}").into()) };
    Ok((*put_ms, *visible_ms))
}

/// Commits after a pause, and looks for the object in the server's own directory; beside it a bare PUT of as many bytes.
fn visible(arguments: &[String]) -> Result<()> {
    use replicated::store::{self, LtxName, ReplicaUrl, StoreOptions};
    use replicated::types::{TimestampMs, Txid};
    let [_, _, uri, extension, objects, replica] = arguments else { return Err("wrong arguments".into()) };
    let connection = open(uri, Some(Path::new(extension)))?;
    let sync = || connection.query_row("PRAGMA replicated_sync", [], |row| row.get::<_, String>(0));
    sync()?;
    let store = store::open(&ReplicaUrl::parse(&format!("{replica}-puts"))?, &StoreOptions::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = std::fs::read(Path::new(objects).join(format!("{}.ltx", "0000000000000002-0000000000000002")))?;
    let (mut puts, mut commits) = (Vec::new(), Vec::new());
    for sample in 0..VISIBLE_SAMPLES {
        // Longer than the budget's interval, so that a token is there.
        std::thread::sleep(Duration::from_millis(1100));
        let name = LtxName::level0(Txid::new(sample as u64 + 1).ok_or("no txid")?);
        let begin = Instant::now();
        runtime.block_on(store.create(&name, body.clone().into(), TimestampMs(0)))?;
        puts.push(begin.elapsed().as_secs_f64() * 1e3);

        let last = Txid::from_hex(&sync()?).ok_or("no txid")?;
        let object = Path::new(objects).join(format!("{}-{}.ltx", last.next(), last.next()));
        connection.execute("INSERT INTO t(b) VALUES('x')", [])?;
        let begin = Instant::now();
        while !object.exists() {
            std::thread::sleep(Duration::from_micros(50));
        }
        commits.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    println!("{} {}", median(&puts), median(&commits));
    Ok(())
}

/// The S3 server in its own process, so that its memory and its work are not the writer's.
struct Server {
    child: Child,
    env: Vec<(String, String)>,
    root: PathBuf,
}

impl Server {
    fn start(root: &Path, delay_ms: u32) -> Result<Self> {
        std::fs::create_dir_all(root)?;
        let program = std::env::var_os("BENCH_S3").map_or_else(|| PathBuf::from("target/release/replicated-s3"), PathBuf::from);
        let mut child = Command::new(&program)
            .arg("--root")
            .arg(root)
            .args(["--delay-ms", &delay_ms.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}; run `make bench`", program.display()))?;
        let mut env = Vec::new();
        for line in BufReader::new(child.stdout.take().ok_or("no output")?).lines() {
            let line = line?;
            let Some((name, value)) = line.split_once('=') else { break };
            if name.starts_with("AWS_") {
                env.push((name.to_owned(), value.to_owned()));
            }
        }
        Ok(Self { child, env, root: root.to_owned() })
    }

    fn url(&self, path: &str) -> String {
        format!("s3://replicas/{path}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
