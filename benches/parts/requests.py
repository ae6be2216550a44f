"""What replication costs in requests and bytes: the same four workloads with Litestream and with the extension, side by side, each against an S3 server of its own
that counts, and what that comes to in a day on S3. Counted is from the moment when the first state is in the bucket: what a day costs, not what beginning costs.
"""

import os
import shutil
import subprocess
import time

import common
from run import go, said
from servers import Litestream, Own, end, wait_until

# Commits an hour; `sustained` is as fast as one connection at a script's pace goes, for the whole time.
WORKLOADS = {"idle": 0, "one commit a minute": 60, "one commit a second": 3600, "sustained, 100 commits a second": 360_000}
# US dollars for a thousand requests, S3 Standard in us-east-1: https://aws.amazon.com/s3/pricing/. Deletions cost nothing, what comes in neither.
PRICES = {"put": 0.005, "list": 0.005, "multipart": 0.005, "get": 0.0004, "head": 0.0004, "delete": 0.0}

# Each is run twice: for a moment, whose counts are what beginning costs, and for its time. A day is the rest, times what a day has of it.
FULL = {"minutes": 20, "moment": 0.2, "workloads": list(WORKLOADS)}
SHORT = {"minutes": 0.1, "moment": 0.02}

WRITER = """
import sqlite3, sys, time
extension, uri, per_hour, minutes = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
if extension:
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(extension)
db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA synchronous=NORMAL")
db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v BLOB)")
db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) INSERT INTO t(v) SELECT randomblob(1000) FROM n")
if extension:
    db.execute("PRAGMA replicated_sync='60s'").fetchall()
print("ready", flush=True)
sys.stdin.readline()
begun, done = time.monotonic(), 0
while True:
    now = time.monotonic() - begun
    if now >= minutes * 60: break
    due = now * per_hour / 3600
    if done < due:
        db.execute("UPDATE t SET v = randomblob(1000) WHERE id = ?", (done % 2000 + 1,))
        done += 1
    else:
        time.sleep(0.005 if per_hour > 3600 else 0.1)
print(done, flush=True)
sys.stdin.readline()
"""


class Run:
    """One workload with one tool."""

    def __init__(self, bench, tool, per_hour, minutes):
        self.folder, self.running = bench.folder(), []
        self.server = Own(os.path.abspath(bench.arguments.server), os.path.join(self.folder, "s3"))
        database, ours = os.path.join(self.folder, "app.db"), tool == "replicated"
        command = [bench.python, "-c", WRITER, bench.extension if ours else "", bench.uri(database, "app" if ours else None), str(per_hour), str(minutes)]
        self.writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.server.environment())
        self.running.append(self.writer)
        assert said(self.writer) == "ready", "the writer did not start"
        if not ours:
            self.running.append(Litestream(bench.litestream, self.server, {database: "app"}, self.folder).process)
        wait_until("the first state", lambda: self.server.has_state("app"))

    def result(self):
        """What was asked of the server in all, and how many commits were made."""
        commits = int(said(self.writer))
        return self.server.counts() | {"commits": commits}

    def stop(self):
        for process in self.running:
            end(process)
        self.server.stop()
        shutil.rmtree(self.folder)


def measure(bench, given):
    measured = []
    for length in ("moment", "minutes"):
        runs = {}
        try:
            for name in given["workloads"]:
                for tool in ("litestream", "replicated"):
                    runs[tool, name] = Run(bench, tool, WORKLOADS[name], given[length])
            time.sleep(5)
            for run in runs.values():
                go(run.writer)
            for (tool, name), run in runs.items():
                measured.append({"workload": name, "who": tool, "length": length, "counts": run.result()})
                print(f"requests: {measured[-1]}", flush=True)
        finally:
            for run in runs.values():
                run.stop()
    return measured


def tables(result):
    found = {(one["workload"], one["who"], one["length"]): one["counts"] for one in result["measured"]}
    scale = 24 * 60 / (result["parameters"]["minutes"] - result["parameters"]["moment"])
    rows = []
    for name in result["parameters"]["workloads"]:
        for tool in ("litestream", "replicated"):
            first, everything = found[name, tool, "moment"], found[name, tool, "minutes"]
            day = {key: max(0, everything[key] - first[key]) * scale for key in everything}
            month = 30 * sum(day[key] / 1000 * price for key, price in PRICES.items())
            numbers = [day["put"] + day["multipart"], day["list"], day["get"] + day["head"], day["received_bytes"] / 1e6]
            rows.append([name, "Litestream" if tool == "litestream" else "replicated", *[f"{number:,.0f}" for number in numbers], f"{month:.2f}"])
    head = ["workload", "", "writes a day", "lists a day", "reads and looks a day", "MB sent a day", "$ a month"]
    return {"requests": common.table(head, rows)}
