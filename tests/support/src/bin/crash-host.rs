//! A process that works on a replicated database until it is told to die: see `replicated_testkit::crash`. With `committers` as its first argument
//! it does what the program of that name does, with fail points.

use std::io::Write;

use replicated_testkit::committers;
use replicated_testkit::crash::own_files;
use replicated_testkit::crash::session::{Session, run};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = arguments.first().map_or("", String::as_str);
    if argument == "points" {
        let _ = writeln!(std::io::stdout(), "{}", replicated::fault::POINTS.join("\n"));
        return;
    }
    if argument == "committers" {
        return finish(committers::run(arguments.get(1..).unwrap_or_default()).map_err(|error| error.to_string()));
    }
    let ended = serde_json::from_str::<Session>(argument).map_err(|error| error.to_string()).and_then(|session| {
        if let Some(power) = &session.power {
            own_files::watch(&session.database, &power.folder).map_err(|error| error.to_string())?;
            replicated::fault::observe(own_files::at);
        }
        run(session)
    });
    finish(ended);
}

fn finish(ended: Result<(), String>) {
    if let Err(error) = ended {
        let _ = writeln!(std::io::stderr(), "crash-host: {error}");
        std::process::exit(3);
    }
}
