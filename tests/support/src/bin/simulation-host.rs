//! A process of the simulation: see `replicated_testkit::simulation`.

use std::io;

fn main() -> io::Result<()> {
    replicated::register!(rusqlite::ffi).map_err(io::Error::other)?;
    replicated_testkit::simulation::actor::serve()
}
