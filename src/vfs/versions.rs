//! Versions of SQLite, as it counts them: 3040001 is 3.40.1.

/// The oldest that the extension works with.
pub const OLDEST_SQLITE: i32 = super::api::OLDEST_VERSION;

/// Versions with the WAL-reset bug: 3.7.0 to 3.51.2, without the two to which the fix was brought back (<https://www.sqlite.org/wal.html#walresetbug>).
#[must_use]
pub const fn has_wal_reset_bug(version: i32) -> bool {
    let is_mended = version >= 3_051_003 || (version >= 3_050_007 && version < 3_051_000) || (version >= 3_044_006 && version < 3_045_000);
    version >= 3_007_000 && !is_mended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bug_has_a_beginning_and_ends() {
        let has = [3_006_023, 3_007_000, 3_040_001, 3_044_005, 3_045_000, 3_050_006, 3_051_000, 3_051_002];
        assert_eq!(has.map(has_wal_reset_bug), [false, true, true, true, true, true, true, true]);
        assert_eq!([3_044_006, 3_050_007, 3_051_003, 3_053_000].map(has_wal_reset_bug), [false; 4]);
    }
}
