"""The `replicated` SQLite extension: every commit in object storage a moment later.

    import replicated

    db = replicated.connect("app.db", replica="s3://bucket/app")

Any other driver works too: `replicated.load(connection)` once in the process, then open `file:app.db?vfs=replicated&replica=...` as a URI.
"""

import contextlib
import os
import sqlite3
import urllib.parse

__all__ = ["__version__", "connect", "load", "path", "tool", "uri"]
__version__ = "@VERSION@"

_HERE = os.path.dirname(os.path.abspath(__file__))


def path():
    """The extension's file, as `load_extension` takes it."""
    return os.path.join(_HERE, "replicated.so")


def tool():
    """The command-line tool (`replicated restore`, `list`, `verify`, ...), which is also `python -m replicated`."""
    return os.path.join(_HERE, "replicated-tool")


def load(connection=None):
    """Registers the VFS in the SQLite that this connection belongs to, for the whole process.

    Without one: in that of the module `sqlite3`. A connection that was opened before is not replicated by it.
    """
    loader = connection if connection is not None else sqlite3.connect(":memory:")
    try:
        loader.enable_load_extension(True)
    except AttributeError:
        raise RuntimeError(
            "this Python was built without loadable extensions (pyenv's and macOS's often are): "
            "use the system's python3, or the module pysqlite3, and pass a connection of it"
        ) from None
    try:
        loader.load_extension(path())
    finally:
        loader.enable_load_extension(False)
        if connection is None:
            loader.close()


def uri(database, replica=None, **options):
    """The URI of a database that is replicated, for `sqlite3.connect(..., uri=True)` and every other driver."""
    options = {"vfs": "replicated", **({} if replica is None else {"replica": replica}), **options}
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
    return f"file:{urllib.parse.quote(os.path.abspath(database))}?{urllib.parse.urlencode(texts, quote_via=urllib.parse.quote)}"


def connect(database, replica=None, *, options=None, **arguments):
    """As `sqlite3.connect`, replicated: to `replica`, or where REPLICATED_REPLICA or a configuration file says. `options` are those of the URI."""
    load()
    try:
        return sqlite3.connect(uri(database, replica, **(options or {})), uri=True, **arguments)
    except sqlite3.OperationalError as error:
        # SQLite itself says "unable to open database file" whatever it was.
        with contextlib.closing(sqlite3.connect(":memory:")) as asked:
            why = asked.execute("SELECT replicated_last_error()").fetchone()[0]
        raise sqlite3.OperationalError(f"{error}: {why}" if why else str(error)) from error
