"""The same bucket restored by Litestream and by `replicated`, alternating: time, peak memory, and processor time.

The bucket is written by Litestream itself, from a database that is filled to its size first and then gets one commit after the other, so that what `replicated`
reads is what Litestream reads.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time

import common
from servers import BUCKET, end, environment, wait_until

# Megabytes, and increments.
FULL = {"rounds": 5, "replicas": ["folder", "S3"], "sizes": [[600, 1300], [1, 50]]}
SHORT = {"rounds": 1, "replicas": ["S3"], "sizes": [[2, 5]]}


def measure(bench, given):
    measured = []
    for megabytes, increments in given["sizes"]:
        for replica in given["replicas"]:
            measured += restores(bench, given, replica, megabytes, increments)
    return measured


def variables(bench, replica):
    return bench.seaweedfs.environment() if replica == "S3" else environment()


def level0(bench, replica, url):
    """How many level-0 files there are: counted by `replicated list`, for either kind of replica."""
    listed = subprocess.run([bench.replicated, "list", url, "--level", "0"], capture_output=True, text=True, env=variables(bench, replica))
    return sum(line.strip().startswith("0 ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def write_bucket(bench, replica, megabytes, increments, folder):
    """Returns Litestream's configuration file, the replica's URL for `replicated`, the database's path and how many increments there are."""
    config, path = os.path.join(folder, "litestream.yml"), os.path.join(folder, "app.db")
    name = f"restore/{os.getpid()}-{bench.numbers}"
    if replica == "S3":
        url = f"s3://{BUCKET}/{name}"
        where = f"type: s3\n      bucket: {BUCKET}\n      path: {name}\n      endpoint: {bench.seaweedfs.endpoint}\n      region: us-east-1\n      force-path-style: true"
    else:
        url = f"file://{folder}/bucket"
        where = f"type: file\n      path: {folder}/bucket"
    with open(config, "w", encoding="utf-8") as out:
        # One compaction level, far away: what is to be restored is a snapshot and increments.
        out.write(
            f"levels:\n  - interval: 24h\nsnapshot:\n  interval: 24h\ndbs:\n  - path: {path}\n    monitor-interval: 10ms\n    replica:\n"
            f"      {where}\n      sync-interval: 10ms\n"
        )
    database, rows = common.fill(path, megabytes)
    daemon = subprocess.Popen([bench.litestream, "replicate", "-config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables(bench, replica))
    try:
        wait_until("Litestream's first state", lambda: level0(bench, replica, url) > 0, seconds=300, pause=0.5)
        noise = random.Random(8)
        # Each commit is followed by a pause in which the daemon makes a file of it; some 40 pages a commit, as a busy application has in a second.
        count = 0
        for done in range(1, 3 * increments + 1):
            database.execute("BEGIN")
            for _ in range(20):
                database.execute("UPDATE t SET v = ? WHERE id = ?", (noise.randbytes(900), noise.randrange(1, rows)))
            database.execute("COMMIT")
            time.sleep(0.03)
            if done >= increments and done % 50 == 0 and level0(bench, replica, url) >= increments:
                break
        time.sleep(2)
        count = level0(bench, replica, url)
    finally:
        end(daemon, 30)
    database.close()
    return config, url, path, count


def run(bench, command, env):
    """Seconds, the peak resident memory in MiB, and seconds of processor time."""
    done = subprocess.run([bench.programs["peak"], *command], env=env, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    if told["status"] != 0:
        sys.exit(f"{command}: {done.stderr}")
    return told["seconds"], told["peak_kib"] / 1024, told["cpu_s"]


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def restores(bench, given, replica, megabytes, increments):
    folder = bench.folder()
    config, url, path, count = write_bucket(bench, replica, megabytes, increments, folder)
    env, output = variables(bench, replica), os.path.join(folder, "restored.db")
    commands = {
        "litestream": [bench.litestream, "restore", "-config", config, "-o", output, path],
        "replicated": [bench.replicated, "restore", url, "-o", output, "--quiet"],
    }
    measured, digests = [], set()
    # The first round, which is not counted, warms the caches, and tells whether both restore the same.
    for number in range(-1, given["rounds"]):
        for who, command in list(commands.items())[:: 1 if number % 2 == 0 else -1]:
            for suffix in ("", "-wal", "-shm", "-txid"):
                if os.path.exists(output + suffix):
                    os.remove(output + suffix)
            shutil.rmtree(output + "-replicated", ignore_errors=True)
            os.sync()
            seconds, peak_mib, cpu_s = run(bench, command, env)
            print(f"restore, {replica}, {megabytes} MB, round {number}: {who}: {seconds:.2f} s, {peak_mib:.0f} MiB, {cpu_s:.2f} s of CPU", flush=True)
            if number < 0:
                digests.add(digest(output))
            else:
                of = {"replica": replica, "megabytes": megabytes, "bytes": os.path.getsize(output), "increments": count}
                measured.append(of | {"round": number, "who": who, "seconds": round(seconds, 3), "peak_mib": round(peak_mib, 1), "cpu_s": round(cpu_s, 3)})
    if len(digests) != 1:
        sys.exit("the two restore different databases")
    shutil.rmtree(folder)
    return measured


def tables(result):
    rows = []
    for megabytes, _ in result["parameters"]["sizes"]:
        for replica in result["parameters"]["replicas"]:
            these = sorted((one for one in result["measured"] if (one["replica"], one["megabytes"]) == (replica, megabytes)), key=lambda one: one["round"])
            found = {who: [one for one in these if one["who"] == who] for who in ("litestream", "replicated")}
            ratios = [slow["seconds"] / quick["seconds"] for slow, quick in zip(found["litestream"], found["replicated"])]
            cells = [
                f"{common.spread([one['seconds'] for one in some], 2, ' s')}, {max(one['peak_mib'] for one in some):.0f} MiB, {common.median([one['cpu_s'] for one in some]):.2f} s of CPU"
                for some in found.values()
            ]
            rows.append([f"{these[0]['bytes'] / 1e6:.0f} MB, {these[0]['increments']} increments, {replica}", *cells, common.spread(ratios, 1)])
    return {"restore": common.table(["what", common.litestream(result), "replicated", "how much faster"], rows)}
