#!/usr/bin/env python3
"""What replication costs in requests and bytes: the same four workloads with Litestream and with the extension, side by side, each against an S3 server of its own
that counts, and what that comes to in a day on S3.

    scripts/bench-requests.py --litestream PATH --extension dist/replicated.so --server target/debug/replicated-s3 [--minutes 10] [--python /usr/bin/python3]

Counted is from the moment when the first state is in the bucket: what a day costs, not what beginning costs. Standard library only.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

# Commits an hour; `sustained` is as fast as one connection at a script's pace goes, for the whole time.
WORKLOADS = {"idle": 0, "one commit a minute": 60, "one commit a second": 3600, "sustained, 100 commits a second": 360_000}
# US dollars for a thousand requests, S3 Standard in us-east-1: https://aws.amazon.com/s3/pricing/. Deletions cost nothing, what comes in neither.
PRICES = {"put": 0.005, "list": 0.005, "multipart": 0.005, "get": 0.0004, "head": 0.0004, "delete": 0.0}

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

    def __init__(self, arguments, tool, per_hour, folder):
        self.tool, self.per_hour = tool, per_hour
        os.makedirs(folder)
        self.server = subprocess.Popen([arguments.server, "--counts"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        env = {name: text for name, text in os.environ.items() if name != "AWS_CA_BUNDLE"}
        for line in iter(self.server.stdout.readline, "\n"):
            name, _, text = line.rstrip("\n").partition("=")
            env[name] = text
        bucket, endpoint = env["REPLICATED_TEST_S3_BUCKET"], env["REPLICATED_TEST_S3_ENDPOINT"]
        database = os.path.join(folder, "app.db")
        self.daemon = None
        if tool == "litestream":
            extension, uri = "", f"file:{database}"
        else:
            extension, uri = os.path.abspath(arguments.extension), f"file:{database}?vfs=replicated&replica=s3://{bucket}/app"
        self.writer = subprocess.Popen(
            [arguments.python, "-c", WRITER, extension, uri, str(per_hour), str(arguments.minutes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )
        assert self.writer.stdout.readline() == "ready\n", "the writer did not start"
        if tool == "litestream":
            config = os.path.join(folder, "litestream.yml")
            with open(config, "w") as file:
                file.write(
                    f"dbs:\n  - path: {database}\n    replica:\n      type: s3\n      bucket: {bucket}\n      path: app\n      endpoint: {endpoint}\n"
                    "      region: us-east-1\n      force-path-style: true\n"
                )
            log = open(os.path.join(folder, "litestream.log"), "w")
            self.daemon = subprocess.Popen([arguments.litestream, "replicate", "-config", config], env=env, stdout=log, stderr=log)

    def begin(self):
        self.writer.stdin.write("go\n")
        self.writer.stdin.flush()

    def end(self):
        """What was asked of the server in all, and how many commits were made."""
        commits = int(self.writer.stdout.readline())
        self.server.stdin.close()
        counts = json.loads(self.server.stdout.read())
        if self.daemon:
            self.daemon.send_signal(signal.SIGKILL)
        self.writer.kill()
        self.server.wait()
        return counts, commits


def measured(arguments, folder):
    """Two runs of each: one that ends as it begins, whose counts are what beginning costs."""
    rows = {}
    for length in (0.2, arguments.minutes):
        limited = argparse.Namespace(**{**vars(arguments), "minutes": length})
        runs = {
            (tool, name): Run(limited, tool, per_hour, os.path.join(folder, f"{length}-{tool}-{per_hour}"))
            for tool in ("litestream", "replicated")
            for name, per_hour in WORKLOADS.items()
        }
        time.sleep(5)
        for run in runs.values():
            run.begin()
        for key, run in runs.items():
            rows.setdefault(key, []).append(run.end())
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litestream", required=True)
    parser.add_argument("--extension", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--python", default="/usr/bin/python3")
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    if arguments.minutes <= 1:
        sys.exit("--minutes must be more than 1")
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(arguments, folder)
    print("| workload | | writes a day | lists a day | reads and looks a day | MB sent a day | $ a month |")
    print("|---|---|---|---|---|---|---|")
    for name in WORKLOADS:
        for tool in ("litestream", "replicated"):
            (first, _), (all, commits) = rows[tool, name]
            scale = 24 * 60 / (arguments.minutes - 0.2)
            day = {key: max(0, all[key] - first[key]) * scale for key in all}
            month = 30 * sum(day[key] / 1000 * price for key, price in PRICES.items())
            writes, reads = day["put"] + day["multipart"], day["get"] + day["head"]
            print(
                f"| {name} | {'Litestream' if tool == 'litestream' else 'replicated'} | {writes:,.0f} | {day['list']:,.0f} | {reads:,.0f} "
                f"| {day['received_bytes'] / 1e6:,.0f} | {month:.2f} |"
            )


if __name__ == "__main__":
    main()
