//! `sql-host` with the library's fail points in it, and with a log where `REPLICATED_TEST_LOG` names a file.

use std::io;

fn main() -> io::Result<()> {
    if let Some(log) = std::env::var_os("REPLICATED_TEST_LOG") {
        replicated_testkit::crash::session::log_to(log.as_ref())?;
    }
    replicated::register!(rusqlite::ffi).map_err(io::Error::other)?;
    replicated_testkit::serve::serve(|_| None)
}
