#!/usr/bin/env bash
# Runs SQLite's own test suite with the extension as the default VFS, replicating every database, and compares with a run without it.
# Fetches and builds what it needs into target/test-sqlite, once. Arguments go to tests/sqlite/run.py: names of files of the suite, or --list.
#
# REPLICATED_TEST_PROFILE=release takes the release build of the extension. REPLICATED_TEST_SKIP_SQLITE=1 skips it all, and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
home=$repository/target/test-sqlite

if [ "${REPLICATED_TEST_SKIP_SQLITE:-}" = 1 ]; then
  echo "SKIPPED, because REPLICATED_TEST_SKIP_SQLITE=1: SQLite's own test suite was not run, nothing of it is known to pass" >&2
  exit 0
fi

missing() { # What the build and the runs need and the machine lacks, as Debian's packages.
  command -v cc >/dev/null || echo gcc libc6-dev
  for program in make curl xz python3; do
    command -v $program >/dev/null || case $program in xz) echo xz-utils ;; *) echo $program ;; esac
  done
  command -v tclsh8.6 >/dev/null || echo tcl8.6
  ls /usr/include/tcl8.6/tcl.h /usr/include/tcl.h >/dev/null 2>&1 || [ -e /usr/include/tcl8.6/tcl.h ] || echo tcl8.6-dev
}

wanted=$(missing | xargs)
if [ -n "$wanted" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  # shellcheck disable=SC2086 # one word a package
  { apt-get update -q && apt-get install -q -y --no-install-recommends $wanted; } >&2 || true
  wanted=$(missing | xargs)
fi
if [ -n "$wanted" ]; then
  echo "SQLite's test suite cannot be built: install what Debian calls $wanted, or set REPLICATED_TEST_SKIP_SQLITE=1 to go without it" >&2
  exit 1
fi

source=$(bash scripts/sqlite-source.sh) || { echo "or set REPLICATED_TEST_SKIP_SQLITE=1 to go without these tests" >&2; exit 1; }
build=$source/fixture
if [ ! -f "$source/Makefile" ]; then
  (cd "$source" && ./configure --disable-shared) >"$home/build.log" 2>&1 || { tail -20 "$home/build.log" >&2; exit 1; }
fi
(cd "$source" && make -j"$(nproc)" -f "$repository/tests/sqlite/testfixture.mk" "HOOK=$repository/tests/sqlite/hook.c" \
  "FAULTS=$repository/tests/sqlite/faults.sed" fixture/testfixture) \
  >>"$home/build.log" 2>&1 || { echo "testfixture cannot be built; the log is $home/build.log" >&2; tail -20 "$home/build.log" >&2; exit 1; }

profile=${REPLICATED_TEST_PROFILE:-debug}
if [ "$profile" = release ]; then ${CARGO:-cargo} build --release --workspace; else ${CARGO:-cargo} build --workspace; fi
exec python3 tests/sqlite/run.py --fixture "$build/testfixture" --source "$source" \
  --extension "${CARGO_TARGET_DIR:-target}/$profile/libreplicated_ext.so" --tool "${CARGO_TARGET_DIR:-target}/$profile/replicated" --work "$home/work" "$@"
