//! `sql-host` with the library's fail points in it: see `src/fault.rs` there.

fn main() -> std::io::Result<()> {
    replicated_testkit::sql_host::run()
}
