"""What the benchmarks beside this file share. Standard library only."""

import os
import random
import sqlite3


def fill(path, megabytes):
    """Rows of a kilobyte, half of it compressible, and an index."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=OFF")
    database.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, v BLOB)")
    noise = random.Random(7)
    rows = megabytes * 1000
    for start in range(0, rows, 20000):
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO t(k, v) VALUES(?, ?)",
            ((f"key {noise.getrandbits(40)}", noise.randbytes(420) + b"some text that repeats " * 22) for _ in range(min(20000, rows - start))),
        )
        database.execute("COMMIT")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database, rows


def environment(endpoint):
    more = {}
    if endpoint:
        more = {"REPLICATED_ENDPOINT": endpoint, "REPLICATED_PATH_STYLE": "true", "REPLICATED_ALLOW_HTTP": "true", "REPLICATED_REGION": "us-east-1"}
    # A bundle of authorities is of no use without TLS, and Litestream's client does not start with one.
    return {name: text for name, text in os.environ.items() if name != "AWS_CA_BUNDLE"} | more
