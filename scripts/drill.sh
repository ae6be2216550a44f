#!/bin/sh
# A disaster drill: restores what a bucket has, beside everything else, and says how long that took and what is in it.
#
# usage: drill.sh URL [SQL]
#
# Restores the newest state and the oldest one into a temporary folder (TMPDIR), each checked by SQLite, and deletes them again. SQL is
# asked of the newest one (with the sqlite3 shell): something that you know the answer to. Nothing is written to the bucket. Exit code 1: you have no backup.
set -eu

fail() {
    printf 'drill.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

case "${1:-}" in
-h | --help)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
{ [ $# -ge 1 ] && [ $# -le 2 ]; } || fail 'usage: drill.sh URL [SQL]' 2

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ -x "$here/../dist/replicated" ]; then
    program=$here/../dist/replicated
elif program=$(command -v replicated); then
    :
else
    fail "cannot find the program 'replicated' in ../dist or in PATH"
fi

folder=$(mktemp -d "${TMPDIR:-/tmp}/drill.XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM

echo "1. What is there?"
"$program" list "$1" >"$folder/list" || fail "the bucket cannot be read, or has nothing: see above"
range=$(sed -n 's/^Restorable from //p' "$folder/list")
[ -n "$range" ] || fail "nothing can be restored: $(tail -n 1 "$folder/list")"
echo "   from $range"

echo "2. The newest state"
began=$(date +%s)
"$program" restore "$1" -o "$folder/newest.db" --integrity-check full >"$folder/newest" || fail "the newest state cannot be restored: see above"
ended=$(date +%s)
sed -n 's/^  \(state\|time\|size\|read\|verified\)  */   \1: /p' "$folder/newest"
echo "   took: $((ended - began)) s; so long you are down, at least"

echo "3. The oldest state"
"$program" restore "$1" -o "$folder/oldest.db" --txid "$(echo "$range" | sed 's/^TXID \([0-9a-f]*\).*/\1/')" --integrity-check full >"$folder/oldest" ||
    fail "the oldest state cannot be restored: see above"
sed -n 's/^  \(state\|time\)  */   \1: /p' "$folder/oldest"

if [ $# -eq 2 ]; then
    echo "4. $2"
    sqlite3 -readonly "$folder/newest.db" "$2" >"$folder/answer" || fail "the restored database does not answer"
    sed 's/^/   /' "$folder/answer"
fi
echo "Passed. Is the time of the newest state as recent as it should be, and the answer right?"
