//! The command-line tool: arguments, progress and output around the library's public interface.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use replicated::config::LogFormat;

mod adopt;
mod against;
mod config;
mod copy;
mod doctor;
mod file_head;
mod follow;
mod found;
mod generation;
mod integrity;
mod list;
mod live;
mod maintain;
mod metrics;
mod moment;
mod private;
mod restore;
mod rounds;
mod status;
mod status_text;
mod store_flags;
mod text;
mod values;
mod verify;

/// Restores, inspects, verifies, copies and maintains what the `replicated` SQLite extension (or Litestream 0.5) keeps in a bucket.
#[derive(Debug, Parser)]
#[command(name = "replicated", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Restore(restore::Args),
    Adopt(adopt::Args),
    List(list::Args),
    Maintain(maintain::Args),
    Verify(verify::Args),
    Copy(copy::Args),
    Status(status::Args),
    Metrics(metrics::Args),
    Config(config::Args),
    Doctor(doctor::Args),
    /// What `doctor` runs to look at a SQLite library in a process of its own.
    #[command(hide = true)]
    InspectSqlite {
        library: std::path::PathBuf,
        extension: Option<std::path::PathBuf>,
    },
}

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 failed, 2 wrong usage; of verify and doctor also 3: could not be checked; of status 3: behind, 4: stands still.";

/// Long flags that Litestream's users write with one dash, and that clap would take for a row of short ones.
const SINGLE_DASH: &[&str] = &[
    "txid",
    "timestamp",
    "if-db-not-exists",
    "if-replica-exists",
    "integrity-check",
    "parallelism",
    "max-memory-mib",
    "threads",
    "skip-superseded",
    "force",
    "generation",
    "index",
    "follow",
    "every",
    "json",
    "dry-run",
    "quiet",
    "level",
];

/// Why a command ended without success.
#[derive(Debug)]
enum Failure {
    /// The arguments or the environment make no sense.
    Usage(String),
    /// It has been told already.
    Told(u8),
    /// It could not be done.
    Failed {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        why: String,
        /// What to do about it; may be empty.
        advice: String,
        /// Whether standard output is read by a program.
        json: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse_from(with_double_dashes(std::env::args_os()));
    let outcome = match cli.command {
        Command::Restore(args) => restore::run(&args),
        Command::Adopt(args) => adopt::run(&args),
        Command::List(args) => list::run(&args),
        Command::Maintain(args) => maintain::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Copy(args) => copy::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Metrics(args) => metrics::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::InspectSqlite { library, extension } => {
            doctor::inspect(&library, extension.as_deref());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    match failure {
        Failure::Usage(why) => {
            text::to_stderr(&format!("error: {why}\n\nFor more information, try '--help'.\n"));
            ExitCode::from(2)
        }
        Failure::Told(code) => ExitCode::from(*code),
        Failure::Failed { what, why, advice, json } => {
            text::to_stderr(&failed_text(what, why, advice));
            if *json {
                text::to_stdout_json(&serde_json::json!({ "status": "error", "what": what, "why": why, "advice": advice }));
            }
            ExitCode::FAILURE
        }
    }
}

fn failed_text(what: &str, why: &str, advice: &str) -> String {
    let advice = if advice.is_empty() { String::new() } else { format!("  try: {advice}\n") };
    format!("error: {what}\n  why: {why}\n{advice}")
}

fn with_double_dashes(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut is_verbatim = false;
    args.map(|arg| {
        is_verbatim |= arg == "--";
        let flag = arg.to_str().and_then(|arg| arg.strip_prefix('-')).filter(|_| !is_verbatim);
        let is_long = flag.is_some_and(|flag| SINGLE_DASH.contains(&flag.split('=').next().unwrap_or(flag)));
        match flag {
            Some(flag) if is_long => format!("--{flag}").into(),
            _ => arg,
        }
    })
    .collect()
}

/// Messages of the library, on stderr. Those of the libraries below it are not: what stands in them is not ours to answer for.
fn log_to_stderr(level: log::LevelFilter, format: LogFormat) {
    let mut builder = env_logger::Builder::new();
    builder.filter_module("replicated", level).format(move |out, record| match format {
        LogFormat::Text => writeln!(out, "{}: {}", record.level().as_str().to_lowercase(), record.args()),
        LogFormat::Json => write!(out, "{}", replicated::log_line(record, format)),
    });
    // Only this function sets a logger.
    let _ = builder.try_init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_restore_is_documented() {
        let page = include_str!("../../../docs/restore.md");
        let command = Cli::command();
        let restore = command.find_subcommand("restore").unwrap();
        let flags: Vec<String> = restore.get_arguments().filter_map(|arg| Some(format!("`--{}", arg.get_long()?))).collect();
        assert!(flags.len() > 15);
        let missing: Vec<&String> = flags.iter().filter(|flag| !page.contains(flag.as_str())).collect();
        assert!(missing.is_empty(), "not in docs/restore.md: {missing:?}");
    }

    /// Flags that all commands have which take a URL.
    const OF_STORE: [&str; 10] = [
        "endpoint",
        "region",
        "path-style",
        "allow-http",
        "ca-bundle",
        "profile",
        "connect-timeout",
        "request-timeout",
        "log-level",
        "log-format",
    ];

    #[test]
    fn every_flag_of_maintain_is_documented() {
        let page = include_str!("../../../docs/maintenance.md");
        let command = Cli::command();
        let maintain = command.find_subcommand("maintain").unwrap();
        let flags = maintain.get_arguments().filter_map(|arg| arg.get_long()).filter(|flag| !OF_STORE.contains(flag) && *flag != "help");
        let (documented, missing): (Vec<&str>, Vec<&str>) =
            flags.partition(|flag| page.contains(&format!("| `--{flag}")) || page.contains(&format!(", `--{flag}`")));
        assert!(documented.len() > 10 && missing.is_empty(), "not in docs/maintenance.md: {missing:?}");
    }

    #[test]
    fn every_flag_of_verify_copy_and_doctor_is_documented() {
        let pages = [
            ("verify", include_str!("../../../docs/verify.md")),
            ("copy", include_str!("../../../docs/copy.md")),
            ("doctor", include_str!("../../../docs/doctor.md")),
        ];
        for (name, page) in pages {
            let command = Cli::command();
            let arguments = command.find_subcommand(name).unwrap().get_arguments();
            let flags = arguments.filter_map(|arg| arg.get_long()).filter(|flag| !OF_STORE.contains(flag) && *flag != "help");
            let (documented, missing): (Vec<&str>, Vec<&str>) =
                flags.partition(|flag| page.contains(&format!("| `--{flag}")) || page.contains(&format!(", `--{flag}")));
            assert!(documented.len() > 5 && missing.is_empty(), "not in docs/{name}.md: {missing:?}");
        }
    }

    #[test]
    fn every_flag_of_status_and_metrics_is_documented() {
        let page = include_str!("../../../docs/status.md");
        let command = Cli::command();
        for (name, least, page) in [("status", 6, page), ("metrics", 3, include_str!("../../../docs/metrics.md"))] {
            let flags: Vec<&str> = command.find_subcommand(name).unwrap().get_arguments().filter_map(|arg| arg.get_long()).collect();
            let missing: Vec<&&str> = flags.iter().filter(|flag| **flag != "help" && !page.contains(&format!("| `--{flag}"))).collect();
            assert!(flags.len() >= least && missing.is_empty(), "not in docs/{name}.md: {missing:?}");
        }
    }

    #[test]
    fn litestreams_spellings_are_understood() {
        let args = ["replicated", "restore", "-o", "out", "-txid=1c", "-force", "-x", "--json", "--", "-txid"].map(OsString::from);
        let expected = ["replicated", "restore", "-o", "out", "--txid=1c", "--force", "-x", "--json", "--", "-txid"].map(OsString::from);
        assert_eq!(with_double_dashes(args.into_iter()), expected);
    }
}
