//! A Rust program that links its own SQLite and the library, and does as `host::Host` tells it.

fn main() -> std::io::Result<()> {
    replicated_testkit::sql_host::run()
}
