//! A process that works on a replicated database until it is told to die: see `replicated_testkit::crash`.

use std::io::Write;

use replicated_testkit::crash::own_files;
use replicated_testkit::crash::session::{Session, run};

fn main() {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let ended = serde_json::from_str::<Session>(&argument).map_err(|error| error.to_string()).and_then(|session| {
        if let Some(power) = &session.power {
            own_files::watch(&session.database, &power.folder).map_err(|error| error.to_string())?;
            replicated::fault::observe(own_files::at);
        }
        run(session)
    });
    if let Err(error) = ended {
        let _ = writeln!(std::io::stderr(), "crash-host: {error}");
        std::process::exit(3);
    }
}
