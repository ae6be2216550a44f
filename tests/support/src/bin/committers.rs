//! A Rust program with threads that commit: see `replicated_testkit::committers`.

fn main() -> std::io::Result<()> {
    replicated_testkit::committers::run(&std::env::args().skip(1).collect::<Vec<_>>())
}
