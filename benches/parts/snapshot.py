"""The first state of the same database, sent by Litestream and by the extension in a Python process, alternating: time, and memory.

From the start of the process until the bucket has the object. Memory is the process's peak; what the extension's host has without it is told too.
"""

import os
import shutil
import sys
import time

import common
from run import said
from servers import Litestream, end, environment

FULL = {"rounds": 5, "megabytes": 600, "replicas": ["folder", "S3"]}
SHORT = {"rounds": 1, "megabytes": 5}
PATIENCE_SECONDS = 300


def measure(bench, given):
    folder = bench.folder()
    path = os.path.join(folder, "app.db")
    common.fill(path, given["megabytes"])[0].close()
    size, measured = os.path.getsize(path), []
    for replica in given["replicas"]:
        for number in range(given["rounds"]):
            for who in ("litestream", "replicated", "plain")[:: 1 if number % 2 == 0 else -1]:
                seconds, memory_mib = send(bench, who, path, replica, folder)
                print(f"snapshot, {replica}, round {number}: {who}: {seconds:.2f} s, {memory_mib:.0f} MiB", flush=True)
                measured.append({"replica": replica, "bytes": size, "round": number, "who": who, "seconds": round(seconds, 3), "peak_mib": round(memory_mib, 1)})
    shutil.rmtree(folder)
    return measured


def forget(path):
    for left in (f"{path}-replicated", os.path.join(os.path.dirname(path), f".{os.path.basename(path)}-litestream")):
        shutil.rmtree(left, ignore_errors=True)


def send(bench, who, path, replica, folder):
    """Seconds, and the peak resident memory in MiB."""
    forget(path)
    bench.numbers += 1
    prefix, bucket = f"snapshot/{os.getpid()}-{bench.numbers}", os.path.join(folder, "bucket")
    server = bench.seaweedfs if replica == "S3" else None
    os.sync()
    begun = time.monotonic()
    if who == "litestream":
        program = Litestream(bench.litestream, server, {path: prefix if server else bucket}, folder)
        process = program.process
    else:
        uri = bench.uri(path, prefix) if server else f"file:{path}?vfs=replicated&replica=file://{bucket}"
        given = {"uris": [uri if who == "replicated" else f"file:{path}"], "write": False, "sync": False} | ({"extension": bench.extension} if who == "replicated" else {})
        process = bench.host("hold", given, server.environment() if server else environment())
    try:
        if who == "plain":
            assert said(process) == "ready"
            return time.monotonic() - begun, common.memory_kib(process.pid, peak=True) / 1024
        while not (server.has_state(prefix + "/") if server else in_folder(bucket)):
            if process.poll() is not None or time.monotonic() - begun > PATIENCE_SECONDS:
                sys.exit(f"{who} has not sent the database")
            time.sleep(0.02)
        return time.monotonic() - begun, common.memory_kib(process.pid, peak=True) / 1024
    finally:
        end(process)
        shutil.rmtree(bucket, ignore_errors=True)
        forget(path)


def in_folder(bucket):
    return any(name.startswith(f"{1:016x}-") and name.endswith(".ltx") for _, _, names in os.walk(bucket) for name in names)


def tables(result):
    rows = []
    for replica in result["parameters"]["replicas"]:
        found = {who: [one for one in sorted(result["measured"], key=lambda one: one["round"]) if (one["replica"], one["who"]) == (replica, who)] for who in ("litestream", "replicated", "plain")}
        told = {who: f"{common.spread([one['seconds'] for one in these], 2, ' s')}, {max(one['peak_mib'] for one in these):.0f} MiB" for who, these in found.items()}
        ratios = [slow["seconds"] / quick["seconds"] for slow, quick in zip(found["litestream"], found["replicated"])]
        host = common.median([one["peak_mib"] for one in found["plain"]])
        rows.append([f"{result['measured'][0]['bytes'] / 1e6:.0f} MB, {replica}", told["litestream"], f"{told['replicated']} of which the host has {host:.0f} without it", common.spread(ratios, 1)])
    return {"snapshot": common.table(["what", common.litestream(result), "replicated", "how much faster"], rows)}
