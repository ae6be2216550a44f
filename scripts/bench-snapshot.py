#!/usr/bin/env python3
"""Sends the first state of the same database with Litestream and with the extension, alternating, and prints a table: time, ratio, memory.

    scripts/bench-snapshot.py --litestream PATH --extension dist/replicated.so --replicated dist/replicated --folder DIR [--endpoint URL] [--megabytes 600]
                              [--rounds 5] [--python /usr/bin/python3]

Counted is from the start of the process until the bucket lists the object. With an endpoint (an S3-compatible server that takes the key and secret of the
environment, a bucket `bench` in it) it goes there, else to a folder. Memory is the process's peak; of the extension's host what it has without it is told too.
Standard library only, with `bench_common.py` beside it.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

from bench_common import environment, fill

HOST = """
import sqlite3, sys
uri, extension = sys.argv[1:3]
if extension:
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(extension)
db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)
db.execute("SELECT count(*) FROM sqlite_master").fetchall()
print("open", flush=True)
sys.stdin.readline()
"""
PATIENCE_SECONDS = 300


def peak_mib(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read()).group(1)) / 1024


def is_there(arguments, replica):
    """Whether the whole state is in the bucket: both write it as the file that begins with TXID 1."""
    if not arguments.endpoint:
        found = (os.path.join(root, name) for root, _, names in os.walk(replica.removeprefix("file://")) for name in names)
        return any(re.search(r"/0{15}1-[0-9a-f]{16}\.ltx$", name) for name in found)
    listed = subprocess.run([arguments.replicated, "list", replica], capture_output=True, text=True, env=environment(arguments.endpoint))
    return listed.returncode == 0 and re.search(r"\b0{15}1-[0-9a-f]{16}", listed.stdout)


def send(arguments, who, path, name):
    """Seconds, and the peak resident memory in MiB."""
    replica = f"s3://bench/{name}" if arguments.endpoint else f"file://{arguments.folder}/bucket/{name}"
    env = environment(arguments.endpoint)
    for left in ("-replicated", "-litestream"):
        shutil.rmtree(path + left, ignore_errors=True)
    shutil.rmtree(os.path.join(os.path.dirname(path), ".app.db-litestream"), ignore_errors=True)
    os.sync()
    started = time.monotonic()
    if who == "litestream":
        config = os.path.join(arguments.folder, "litestream.yml")
        where = f"type: s3\n      bucket: bench\n      path: {name}\n      endpoint: {arguments.endpoint}\n      region: us-east-1\n      force-path-style: true"
        if not arguments.endpoint:
            where = f"type: file\n      path: {arguments.folder}/bucket/{name}"
        with open(config, "w", encoding="utf-8") as out:
            out.write(f"dbs:\n  - path: {path}\n    replica:\n      {where}\n")
        command = [arguments.litestream, "replicate", "-config", config]
    else:
        uri = f"file:{path}?vfs=replicated&replica={replica}" if who == "replicated" else f"file:{path}"
        command = [arguments.python, "-c", HOST, uri, os.path.abspath(arguments.extension) if who == "replicated" else ""]
    child = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE if who != "litestream" else subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if who == "plain":
            child.stdout.readline()
            return 0.0, peak_mib(child.pid)
        while not is_there(arguments, replica):
            if child.poll() is not None or time.monotonic() - started > PATIENCE_SECONDS:
                sys.exit(f"{who} has not sent the database")
            time.sleep(0.02)
        return time.monotonic() - started, peak_mib(child.pid)
    finally:
        child.terminate()
        child.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litestream", required=True)
    parser.add_argument("--extension", required=True)
    parser.add_argument("--replicated", required=True)
    parser.add_argument("--folder", required=True, help="on the disk to be measured; emptied")
    parser.add_argument("--endpoint")
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default="/usr/bin/python3")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    os.makedirs(arguments.folder)
    path = os.path.join(arguments.folder, "app.db")
    fill(path, arguments.megabytes)[0].close()
    found = {"litestream": [], "replicated": []}
    for number in range(arguments.rounds):
        for who, results in found.items():
            results.append(send(arguments, who, path, f"{who}-{os.getpid()}-{number}"))
            shutil.rmtree(os.path.join(arguments.folder, "bucket"), ignore_errors=True)
    _, without = send(arguments, "plain", path, "")
    ratios = [slow[0] / quick[0] for slow, quick in zip(found["litestream"], found["replicated"])]

    def told(who):
        seconds, memory = (list(numbers) for numbers in zip(*found[who]))
        return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {max(memory):.0f} MiB"

    print("| what | Litestream | replicated | how much faster |\n|---|---|---|---|")
    print(
        f"| {os.path.getsize(path) / 1e6:.0f} MB, {'S3' if arguments.endpoint else 'folder'} | {told('litestream')} | {told('replicated')}, of which the host has "
        f"{without:.0f} MiB without it | {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |"
    )


main()
