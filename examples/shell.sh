#!/bin/sh
# Replicates a database from the sqlite3 shell: a few commits, a wait until the bucket has them, the status.
#
# usage: shell.sh REPLICA_URL [DATABASE]
#
# The extension is dist/replicated.so of this repository (`make build`), or REPLICATED_EXTENSION.
set -eu

[ $# -ge 1 ] || {
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
database=${2:-app.db}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
extension=${REPLICATED_EXTENSION:-$here/../dist/replicated.so}

# The URL stands inside of another one: what has a meaning there is escaped.
replica=$(printf '%s' "$1" | sed 's/%/%25/g; s/&/%26/g; s/#/%23/g')

# A variable that begins with REPLICATED_ and is no option of ours refuses the open.
unset REPLICATED_EXTENSION

sqlite3 -bail <<SQL
.load '$extension'
.log stderr
.open 'file:$database?vfs=replicated&replica=$replica'
.timeout 5000
PRAGMA journal_mode=wal;
CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT);
INSERT INTO notes(text) VALUES ('one from the shell');
INSERT INTO notes(text) VALUES ('two from the shell');
PRAGMA replicated_sync;
PRAGMA replicated_status;
SQL
