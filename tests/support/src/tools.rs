//! Other people's programs that tests run: `scripts/test-env.sh` installs them.

use std::path::PathBuf;

/// The folder where they are installed; `None` where they are not, which is said, and is a failure where `REPLICATED_TEST_REQUIRE=1`.
///
/// # Panics
/// Where they are required and not there.
#[must_use]
pub fn environment() -> Option<PathBuf> {
    let folder = std::env::var_os("REPLICATED_TEST_ENV")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/test-env")), PathBuf::from);
    if folder.join("complete").exists() {
        return Some(folder);
    }
    assert!(std::env::var("REPLICATED_TEST_REQUIRE").as_deref() != Ok("1"), "{} is not there: run scripts/test-env.sh", folder.display());
    skipped("the tests' tools are not installed: run scripts/test-env.sh");
    None
}

/// Says why a test did nothing.
pub fn skipped(why: &str) {
    use std::io::Write;
    // Past the capture of the test harness, so that it is seen.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
