//! The testkit's S3 server as a process, for tests and demos in other languages.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use replicated_testkit::s3::{Options, Requests, Server};

const USAGE: &str = "usage: replicated-s3 [--port N] [--root FOLDER] [--bucket NAME] [--delay-ms N] [--counts]

Serves S3 on 127.0.0.1 until killed; with --counts until its standard input ends, and prints as JSON what was asked for, at each line of its standard input and at its end. Prints the variables that a client needs, one NAME=value a line, then an empty line.";

fn main() -> io::Result<()> {
    let (options, counts) = match arguments(std::env::args().skip(1)) {
        Ok(given) => given,
        Err(problem) => {
            let problem = if problem.is_empty() { String::new() } else { format!("replicated-s3: {problem}\n") };
            writeln!(io::stderr(), "{problem}{USAGE}")?;
            std::process::exit(2);
        }
    };
    let server = Server::with_options(options)?;
    let mut out = io::stdout().lock();
    for (name, value) in server.env() {
        writeln!(out, "{name}={value}")?;
    }
    writeln!(out, "REPLICATED_TEST_S3_ENDPOINT={}\nREPLICATED_TEST_S3_BUCKET={}\n", server.endpoint(), server.bucket())?;
    out.flush()?;
    if counts {
        for line in io::stdin().lines() {
            line?;
            print_counts(&server, &mut out)?;
        }
        return print_counts(&server, &mut out);
    }
    drop(out);
    loop {
        std::thread::park();
    }
}

fn print_counts(server: &Server, out: &mut impl Write) -> io::Result<()> {
    let Requests { put, get, list, delete, head, multipart } = server.requests();
    let [received_bytes, sent_bytes] = server.body_bytes();
    let counts = serde_json::json!({
        "put": put, "get": get, "list": list, "delete": delete, "head": head, "multipart": multipart,
        "received_bytes": received_bytes, "sent_bytes": sent_bytes,
    });
    writeln!(out, "{counts}")?;
    out.flush()
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<(Options, bool), String> {
    let (mut options, mut counts) = (Options::default(), false);
    while let Some(flag) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{flag} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{flag} {text:?} is no number"));
        match flag.as_str() {
            "--port" => options.port = number(value()?)?.try_into().map_err(|_| "--port is at most 65535".to_owned())?,
            "--root" => options.root = Some(PathBuf::from(value()?)),
            "--bucket" => options.bucket = value()?,
            "--counts" => counts = true,
            "--delay-ms" => options.delay = Duration::from_millis(number(value()?)?),
            "--help" | "-h" => return Err(String::new()),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok((options, counts))
}
