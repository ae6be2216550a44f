#!/usr/bin/python3
"""Commits that wait for the bucket: what is acknowledged survives the loss of the machine.

usage: durable_app.py REPLICA_URL [DATABASE]

As python_app.py, with durability=remote. What to look at is `commit`: one I/O error means that the transaction is committed here and not known to
be in the bucket.
"""

import os
import pathlib
import sqlite3
import sys
from urllib.parse import quote

HERE = pathlib.Path(__file__).resolve().parent
# A variable that begins with REPLICATED_ and is no option of ours refuses the open: hence pop, not get.
EXTENSION = os.environ.pop("REPLICATED_EXTENSION", str(HERE.parent / "dist" / "replicated.so"))
# SQLITE_IOERR_COMMIT_ATOMIC; the constant and sqlite_errorcode came with Python 3.11.
NOT_ACKNOWLEDGED = 10 | 30 << 8


def connect(path, replica):
    """Opens a replicated database whose commits wait for the bucket, for 10 s at the most."""
    scratch = sqlite3.connect(":memory:")
    scratch.enable_load_extension(True)
    scratch.load_extension(EXTENSION)
    uri = f"file:{quote(path)}?vfs=replicated&replica={quote(replica, safe=':/')}&durability=remote&ack_timeout=10s&request_timeout=5s"
    return sqlite3.connect(uri, uri=True)


def commit(db, sql, parameters=()):
    """Makes one transaction; True once the bucket has it, False where it is committed here only, as far as is known."""
    try:
        with db:
            db.execute(sql, parameters)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != NOT_ACKNOWLEDGED:
            raise  # Nothing is committed.
        return False  # Committed: it will get to the bucket, and must not be made again.
    return True


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    replica, path = sys.argv[1], (sys.argv[2:] or ["app.db"])[0]
    db = connect(path, replica)
    db.execute("PRAGMA journal_mode=wal")
    db.execute("CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)")
    for text in ("one that is safe", "two that is safe"):
        if commit(db, "INSERT INTO notes(text) VALUES (?)", (text,)):
            print(f"{text}: in the bucket")
        else:
            print(f"{text}: committed here, the bucket does not answer")
    # What can be lost needs no waiting.
    db.execute("PRAGMA replicated_durability=local")
    commit(db, "UPDATE notes SET text = text")
    db.execute("PRAGMA replicated_sync")
    (status,) = db.execute("PRAGMA replicated_status").fetchone()
    print(status)
    db.close()


if __name__ == "__main__":
    main()
