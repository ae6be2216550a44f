#!/bin/sh
# Measures and writes the table of docs/performance.md.
set -eu
cd "$(dirname "$0")/.."
cargo bench --bench commits
