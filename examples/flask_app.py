"""Replicates a database from Flask, under a server that forks its workers before they serve:

    NOTES_REPLICA=s3://bucket/app gunicorn --workers 4 flask_app:app

Each worker opens the database for itself; whichever of them they are, one uploads for all, and when that one goes another takes over.
The extension is dist/replicated.so of this repository (`make build`), or REPLICATED_EXTENSION.
"""

import atexit
import os
import pathlib
import sqlite3
from urllib.parse import quote

from flask import Flask, g, request

HERE = pathlib.Path(__file__).resolve().parent
# A variable that begins with REPLICATED_ and is no option of ours refuses the open: hence pop, not get.
EXTENSION = os.environ.pop("REPLICATED_EXTENSION", str(HERE.parent / "dist" / "replicated.so"))
DATABASE = os.path.abspath(os.environ.get("NOTES_DATABASE", "app.db"))
URI = f"file:{quote(DATABASE)}?vfs=replicated&replica={quote(os.environ['NOTES_REPLICA'], safe=':/')}&restore=if-missing"

app = Flask(__name__)

# Before the fork or after it, that is the same. What must not cross a fork is an open connection: that is SQLite's rule.
scratch = sqlite3.connect(":memory:")
scratch.enable_load_extension(True)
scratch.load_extension(EXTENSION)
scratch.close()

# One connection stays open in each worker, so that replication goes on between requests: the last close of all waits for the bucket.
kept = None


def keep_open():
    """Opens the database in this worker, which restores it where it is not there. By the first request at the latest; see also post_worker_init of gunicorn."""
    global kept
    if kept is None:
        kept = sqlite3.connect(URI, uri=True, timeout=30, check_same_thread=False)
        kept.execute("PRAGMA journal_mode=wal")
        kept.execute("CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)")
        atexit.register(kept.close)


def database():
    """The connection of this request."""
    keep_open()
    if "db" not in g:
        g.db = sqlite3.connect(URI, uri=True, timeout=30)
    return g.db


@app.teardown_appcontext
def close(_error):
    """What a request has opened is closed with it."""
    if "db" in g:
        g.db.close()


@app.post("/notes")
def add():
    """Adds a note; the answer says which worker it was."""
    db = database()
    with db:
        db.execute("INSERT INTO notes(text) VALUES (?)", (request.get_data(as_text=True),))
    return str(os.getpid())


@app.get("/notes")
def notes():
    """All notes."""
    return [text for (text,) in database().execute("SELECT text FROM notes ORDER BY id")]


@app.get("/health")
def health():
    """Whether the backup is current, for a load balancer or a health check."""
    (state,) = database().execute("SELECT value FROM replicated_status WHERE name = 'state'").fetchone()
    return state, 200 if state in ("idle", "uploading") else 503
