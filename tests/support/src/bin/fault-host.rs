//! `sql-host` with the library's fail points in it.

use std::io;

fn main() -> io::Result<()> {
    replicated::register!(rusqlite::ffi).map_err(io::Error::other)?;
    replicated_testkit::serve::serve(|_| None)
}
