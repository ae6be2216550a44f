#!/bin/sh
# Restores a SQLite database from its replica, on a machine that has nothing but the `replicated` program.
#
# usage: restore.sh URL PATH [options of `replicated restore`, such as --txid or --timestamp]
#
# The program restores to a temporary name beside PATH, lets SQLite check the whole database, and only then puts it in place. An existing
# PATH, or a -wal, -shm or -journal beside it, is left alone unless FORCE=1 is in the environment.
set -eu

fail() {
    printf 'restore.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

case "${1:-}" in
-h | --help)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
[ $# -ge 2 ] || fail 'usage: restore.sh URL PATH [options of "replicated restore"]' 2
url=$1
path=$2
shift 2

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ -x "$here/replicated" ]; then
    program=$here/replicated
elif [ -x "$here/../dist/replicated" ]; then
    program=$here/../dist/replicated
elif program=$(command -v replicated); then
    :
else
    fail "cannot find the program 'replicated' beside this script, in ../dist or in PATH"
fi

if [ "${FORCE:-0}" = 1 ]; then
    set -- --force "$@"
else
    for file in "$path" "$path-wal" "$path-shm" "$path-journal"; do
        if [ -s "$file" ]; then
            fail "$file exists; stop what uses it and set FORCE=1 to replace it, or choose another path"
        fi
    done
fi

"$program" restore "$url" -o "$path" --integrity-check full "$@"
[ -f "$path" ] || exit 0

cat <<NEXT

Next:
  look      sqlite3 "$path" 'PRAGMA integrity_check; SELECT count(*) FROM sqlite_schema;'
  start     start your application on $path
  owner     the file belongs to $(id -un): change that if your application runs as another user
NEXT
