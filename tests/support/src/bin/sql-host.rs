//! A Rust program that links its own SQLite and the library, and does as `host::Host` tells it.

use std::io;

fn main() -> io::Result<()> {
    replicated::register!(rusqlite::ffi).map_err(io::Error::other)?;
    replicated_testkit::serve::serve(|_| None)
}
