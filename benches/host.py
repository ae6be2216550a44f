"""An application in Python, as the benchmark needs one; run by a Python whose SQLite loads extensions. Standard library only.

    host.py TASK JSON

Says `ready` and waits for a line between what is not measured and what is; prints one line of JSON.
"""

import array
import json
import random
import resource
import sqlite3
import sys
import threading
import time


def load(extension):
    if extension:
        loader = sqlite3.connect(":memory:")
        loader.enable_load_extension(True)
        loader.load_extension(extension)


def connect(uri, busy_s=60.0):
    database = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy_s)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    return database


def synced(database):
    (text,) = database.execute("PRAGMA replicated_sync='120s'").fetchone()
    return text


def ready():
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit(1)


def memory_kib():
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def commits(given):
    """One row after the other, as fast as Python goes."""
    load(given.get("extension"))
    if given.get("idle"):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    database = connect(given["uri"])
    database.execute("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
    row, insert = ("0123456789" * given["bytes"])[: given["bytes"]], "INSERT INTO t(b) VALUES(?1)"
    for _ in range(given["warm"]):
        database.execute(insert, (row,))
    if given.get("sync"):
        synced(database)
    database.execute(f"PRAGMA busy_timeout={given['busy_ms']}")
    latencies, busy = array.array("Q", bytes(8 * given["commits"])), 0
    ready()
    clock = time.monotonic_ns
    cpu = time.process_time()
    begun = clock()
    for number in range(given["commits"]):
        moment = clock()
        while True:
            try:
                database.execute(insert, (row,))
                break
            except sqlite3.OperationalError as problem:
                if "locked" not in str(problem):
                    raise
                busy += 1
        latencies[number] = clock() - moment
    ended = clock()
    with open(given["latencies"], "wb") as file:
        latencies.tofile(file)
    return {"begun_ns": begun, "ended_ns": ended, "commits": given["commits"], "busy": busy, "rss_kib": memory_kib(), "cpu_s": time.process_time() - cpu}


def hold(given):
    """Databases that are open, with something in each, and then nothing happens."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load(given.get("extension"))
    databases = []
    for uri in given["uris"]:
        databases.append(connect(uri))
        if given.get("write", True):
            databases[-1].execute("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
            databases[-1].execute("INSERT INTO t(b) VALUES('x')")
    for database in databases:
        database.execute("SELECT count(*) FROM sqlite_master").fetchall()
        if given.get("extension") and given.get("sync", True):
            synced(database)
    ready()
    return {}


def reopen(given):
    """From `connect` to the first row; and then until a first commit is in the bucket."""
    load(given.get("extension"))
    ready()
    begun = time.monotonic()
    database = connect(given["uri"])
    database.execute("SELECT v FROM t WHERE id = 1").fetchone()
    opened = time.monotonic()
    print(json.dumps({"open_ms": 1000 * (opened - begun)}), flush=True)
    # Whatever the open still does is counted until a line comes.
    ready()
    begun = time.monotonic()
    database.execute("UPDATE t SET k = 'again' || random() WHERE id = 1")
    if given.get("extension"):
        synced(database)
    print(json.dumps({"commit_ms": 1000 * (time.monotonic() - begun)}), flush=True)
    ready()
    database.close()
    return {}


def visible(given):
    """After pauses: one commit, and how long until its object can be seen. Beside it a bare PUT of as much, through the same network."""
    sys.path.insert(0, given["benches"])
    from s3 import Client

    load(given.get("extension"))
    near, far = (Client(given[where], given["key"], given["secret"], given["bucket"]) for where in ("near", "far"))
    database = connect(given["uri"])
    database.execute("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
    database.execute("INSERT INTO t(b) VALUES('x')")
    ready()
    prefix, chance = given["prefix"] + "/0000/", random.Random(given["seed"])
    commits, puts = [], []
    far.put(given["prefix"] + "-puts/connected", b"x")
    for sample in range(given["samples"]):
        # Longer than the interval of any of them, and not in step with it.
        time.sleep(1.2 + chance.random())
        newest = max(near.list(prefix))
        body = near.get(newest)[:4096]
        begun = time.monotonic()
        far.put(f"{given['prefix']}-puts/{sample}", body)
        puts.append(1000 * (time.monotonic() - begun))
        time.sleep(0.05)
        following = f"{int(newest.rpartition('-')[2].removesuffix('.ltx'), 16) + 1:016x}"
        is_there = near.head(f"{prefix}{following}-{following}.ltx")
        if is_there():
            # Litestream's own checkpoint has written something of its own; the next pause finds it.
            continue
        database.execute("INSERT INTO t(b) VALUES('x')")
        begun = time.monotonic()
        while not is_there():
            if time.monotonic() - begun > 60:
                sys.exit("the object never came")
            time.sleep(0.0002)
        commits.append(1000 * (time.monotonic() - begun))
    return {"visible_ms": commits, "put_ms": puts}


def main():
    task = {"commits": commits, "hold": hold, "reopen": reopen, "visible": visible}[sys.argv[1]]
    print(json.dumps(task(json.loads(sys.argv[2]))), flush=True)


main()
