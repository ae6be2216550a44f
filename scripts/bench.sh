#!/bin/sh
# Measures and writes the table of docs/performance.md.
set -eu
cd "$(dirname "$0")/.."
# $BENCH: a part of it.
cargo bench --bench commits -- ${BENCH:-}
