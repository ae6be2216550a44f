#!/bin/sh
# Runs every fuzz target of fuzz/ for a while, with Litestream's files as seeds.
#
# usage: fuzz.sh [SECONDS, default 60] [TARGET ...]
#
# What it finds lies in fuzz/artifacts/<target>/ afterwards, and the exit code is not 0.
set -eu
cd "$(dirname "$0")/.."

case "${1:-60}" in
*[!0-9]*)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
seconds=${1:-60}
[ $# -eq 0 ] || shift

if ! cargo fuzz --version >/dev/null 2>&1; then
    cat >&2 <<'HELP'
fuzz.sh: cargo-fuzz is missing. To install it:

    cargo install cargo-fuzz --version 0.13.2 --locked

It wants a nightly compiler (rustup toolchain install nightly) and a C++ compiler. The short form of the same checks, tests/hostile_bytes.rs, needs neither
and runs with every `make test`.
HELP
    exit 1
fi

# libFuzzer's instrumentation is unstable. Without a nightly the stable compiler is told to allow it.
if cargo +nightly --version >/dev/null 2>&1; then
    toolchain=+nightly
else
    toolchain=
    RUSTC_BOOTSTRAP=1
    export RUSTC_BOOTSTRAP
fi

if [ $# -eq 0 ]; then
    for file in fuzz/fuzz_targets/*.rs; do
        set -- "$@" "$(basename "$file" .rs)"
    done
fi
for target in "$@"; do
    corpus=fuzz/corpus/$target
    mkdir -p "$corpus"
    case $target in
    ltx_*) seeds=$(find fixtures -type d -path '*/ltx/[0-9]' | sort) ;;
    *) seeds= ;;
    esac
    printf '== %s, %s s\n' "$target" "$seconds"
    # shellcheck disable=SC2086 # no argument where there is no toolchain; one word a folder of seeds
    cargo $toolchain fuzz run "$target" "$corpus" $seeds -- -max_total_time="$seconds" -verbosity=0 -print_final_stats=1
done
