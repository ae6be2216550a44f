#!/usr/bin/python3
"""Replicates a database from Python: a few commits, a wait until the bucket has them, the status.

usage: python_app.py REPLICA_URL [DATABASE]

Nothing but the standard library. Its sqlite3 module must be able to load extensions: Debian's /usr/bin/python3 is, builds of pyenv often
are not. The extension is dist/replicated.so of this repository (`make build`), or REPLICATED_EXTENSION.
"""

import os
import pathlib
import sqlite3
import sys
from urllib.parse import quote

HERE = pathlib.Path(__file__).resolve().parent
# A variable that begins with REPLICATED_ and is no option of ours refuses the open: hence pop, not get.
EXTENSION = os.environ.pop("REPLICATED_EXTENSION", str(HERE.parent / "dist" / "replicated.so"))


def load_extension():
    """Registers the VFS for all connections that follow; the connection that loads it is not needed any more."""
    scratch = sqlite3.connect(":memory:")
    scratch.enable_load_extension(True)
    scratch.load_extension(EXTENSION)
    return scratch


def connect(path, replica):
    """Opens a replicated database."""
    uri = f"file:{quote(path)}?vfs=replicated&replica={quote(replica, safe=':/')}"
    return sqlite3.connect(uri, uri=True)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    replica, path = sys.argv[1], (sys.argv[2:] or ["app.db"])[0]
    scratch = load_extension()
    try:
        db = connect(path, replica)
    except sqlite3.OperationalError as error:
        # SQLite has one text for whatever goes wrong here.
        (reason,) = scratch.execute("SELECT replicated_last_error()").fetchone()
        sys.exit(f"{path}: {error}: {reason}")

    db.execute("PRAGMA journal_mode=wal")
    db.execute("CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)")
    for text in ("one from Python", "two from Python"):
        with db:
            db.execute("INSERT INTO notes(text) VALUES (?)", (text,))

    (txid,) = db.execute("PRAGMA replicated_sync").fetchone()
    print(f"everything is in the bucket, up to TXID {txid}")
    (status,) = db.execute("PRAGMA replicated_status").fetchone()
    print(status)
    db.close()


if __name__ == "__main__":
    main()
