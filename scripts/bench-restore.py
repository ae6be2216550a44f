#!/usr/bin/env python3
"""Restores the same bucket with Litestream and with `replicated`, alternating, and prints a table: time, ratio, peak memory.

    scripts/bench-restore.py --litestream PATH --replicated PATH --folder DIR [--endpoint URL] [--megabytes 600] [--increments 1300] [--rounds 5]

The bucket is written by Litestream itself, from a database that is filled to its size first and then gets one commit after the other, so that what
`replicated` reads is what Litestream reads. With an endpoint (an S3-compatible server that takes the key and secret of the environment, a bucket
`bench` in it) it is restored from there, else from a folder. Standard library only, with `bench_common.py` beside it.
"""

import argparse
import hashlib
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time

from bench_common import environment, fill


def level0(arguments, replica):
    """How many level-0 files there are: counted by `replicated list`, for either kind of replica."""
    listed = subprocess.run([arguments.replicated, "list", replica, "--level", "0"], capture_output=True, text=True, env=environment(arguments.endpoint))
    return sum(line.strip().startswith("0 ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def write_bucket(arguments, name, megabytes, increments):
    """Returns Litestream's configuration file and the replica's URL for `replicated`."""
    folder = os.path.join(arguments.folder, name)
    config = os.path.join(folder, "litestream.yml")
    path = os.path.join(folder, "app.db")
    replica = f"s3://bench/{name}" if arguments.endpoint else f"file://{folder}/bucket"
    if os.path.exists(os.path.join(folder, "done")):
        return config, replica, path
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    if arguments.endpoint:
        where = f"type: s3\n      bucket: bench\n      path: {name}\n      endpoint: {arguments.endpoint}\n      region: us-east-1\n      force-path-style: true"
    else:
        where = f"type: file\n      path: {folder}/bucket"
    with open(config, "w", encoding="utf-8") as out:
        # One compaction level, far away: what is to be restored is a snapshot and increments.
        out.write(
            f"levels:\n  - interval: 24h\nsnapshot:\n  interval: 24h\ndbs:\n  - path: {path}\n    monitor-interval: 10ms\n    replica:\n"
            f"      {where}\n      sync-interval: 10ms\n"
        )
    database, rows = fill(path, megabytes)
    daemon = subprocess.Popen([arguments.litestream, "replicate", "-config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(arguments.endpoint))
    try:
        time.sleep(15 if megabytes > 50 else 3)
        noise = random.Random(8)
        # Each commit is followed by a pause in which the daemon makes a file of it; some 40 pages a commit, as a busy application has in a second.
        done = 0
        for _ in range(3 * increments):
            database.execute("BEGIN")
            for _ in range(20):
                database.execute("UPDATE t SET v = ? WHERE id = ?", (noise.randbytes(900), noise.randrange(1, rows)))
            database.execute("COMMIT")
            time.sleep(0.03)
            done += 1
            if done >= increments and done % 50 == 0 and level0(arguments, replica) >= increments:
                break
        time.sleep(3)
    finally:
        daemon.terminate()
        daemon.wait()
    database.close()
    open(os.path.join(folder, "done"), "w", encoding="utf-8").close()
    return config, replica, path


def run(command, env):
    """Seconds, and the peak resident memory in MiB."""
    started = time.monotonic()
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    elapsed = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{command}: {errors.decode()}")
    return elapsed, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(arguments, name, megabytes, increments):
    config, replica, path = write_bucket(arguments, name, megabytes, increments)
    count = level0(arguments, replica)
    env = environment(arguments.endpoint)
    output = os.path.join(arguments.folder, "restored.db")
    commands = {
        "litestream": [arguments.litestream, "restore", "-config", config, "-o", output, path],
        "replicated": [arguments.replicated, "restore", replica, "-o", output, "--quiet"],
    }
    found = {who: [] for who in commands}
    digests = set()
    for round_number in range(arguments.rounds + 1):
        for who, command in commands.items():
            for suffix in ("", "-wal", "-shm", "-txid"):
                if os.path.exists(output + suffix):
                    os.remove(output + suffix)
            shutil.rmtree(output + "-replicated", ignore_errors=True)
            os.sync()
            result = run(command, env)
            if round_number == 0:
                # The first one warms the caches, and tells whether both restore the same.
                digests.add(digest(output))
            else:
                found[who].append(result)
    if len(digests) != 1:
        sys.exit("the two restore different databases")
    size = os.path.getsize(output) / 1e6
    ratios = [slow[0] / quick[0] for slow, quick in zip(found["litestream"], found["replicated"])]

    def told(who):
        seconds, memory, cpu = (list(numbers) for numbers in zip(*found[who]))
        return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {max(memory):.0f} MiB, {statistics.median(cpu):.2f} s of CPU"

    where = "S3" if arguments.endpoint else "folder"
    print(
        f"| {size:.0f} MB, {count} increments, {where} | {told('litestream')} | {told('replicated')} "
        f"| {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litestream", required=True)
    parser.add_argument("--replicated", required=True)
    parser.add_argument("--folder", required=True, help="on the disk to be measured; the bucket is kept there for the next time")
    parser.add_argument("--endpoint")
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--increments", type=int, default=1300)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kind = "s3" if arguments.endpoint else "folder"
    print("| what | Litestream | replicated | how much faster |\n|---|---|---|---|", flush=True)
    measure(arguments, f"large-{kind}-{arguments.megabytes}-{arguments.increments}", arguments.megabytes, arguments.increments)
    measure(arguments, f"small-{kind}", 1, 20)


main()
