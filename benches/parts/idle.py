"""What is there when nothing happens: memory, processor time and requests of a process with one database, with many, and with one that was large to send.

For the extension it is what its host has more than the same host without it; for Litestream its process."""

import os
import shutil
import time

import common
from run import said
from servers import Litestream, end, wait_until

FULL = {"databases": [1, 1000], "megabytes": 600, "settle_s": 15, "seconds": 30}
SHORT = {"databases": [1, 5], "megabytes": 3, "settle_s": 1, "seconds": 1.5}
WHO = ["plain", "replicated", "litestream"]


def measure(bench, given):
    measured = []
    for name, count, megabytes in [*((f"{count:,} database{'s' if count > 1 else ''}", count, 0) for count in given["databases"]), (f"one of {given['megabytes']} MB, just sent", 1, given["megabytes"])]:
        for who in WHO:
            figures = once(bench, who, count, megabytes, given)
            print(f"idle, {name}: {who}: {figures}", flush=True)
            measured.append({"what": name, "databases": count, "who": who} | figures)
    return measured


def once(bench, who, count, megabytes, given):
    folder, running = bench.folder(), []
    buckets = {os.path.join(folder, f"app-{number}.db"): f"idle-{bench.numbers}-{number}" for number in range(count)}
    databases = dict.fromkeys(buckets, "app")
    for bucket in buckets.values():
        bench.own.make_bucket(bucket)
    if megabytes:
        common.fill(next(iter(databases)), megabytes)[0].close()
    try:
        ours = who == "replicated"
        uris = [bench.uri(path, "app" if ours else None, bucket=bucket) for path, bucket in buckets.items()]
        host = bench.host("hold", {"uris": uris, "write": not megabytes} | ({"extension": bench.extension} if ours else {}), bench.own.environment())
        running.append(host)
        assert said(host) == "ready"
        watched = host.pid
        if who == "litestream":
            program = Litestream(bench.litestream, bench.own, databases, folder, buckets=buckets)
            running.append(program.process)
            watched = program.pid
            wait_until("Litestream's first states", lambda: all(bench.own.has_state("app", bucket) for bucket in buckets.values()), seconds=300, pause=0.5)
        # The host alone is looked at for a moment only: nothing in it does anything.
        settle_s, seconds = (given["settle_s"], given["seconds"]) if who != "plain" else (0.5, 0.5)
        time.sleep(settle_s)
        before, cpu = bench.own.counts(), common.cpu_seconds(watched)
        time.sleep(seconds)
        after = bench.own.counts()
        return {
            "rss_kib": common.memory_kib(watched),
            "peak_kib": common.memory_kib(watched, peak=True),
            "cpu_s": round(common.cpu_seconds(watched) - cpu, 2),
            "requests": {name: after[name] - before[name] for name in ("put", "get", "list", "delete", "head", "multipart")},
        }
    finally:
        for process in running:
            end(process)
        shutil.rmtree(folder)


def tables(result):
    rows, minutes = [], result["parameters"]["seconds"] / 60
    for what in dict.fromkeys(one["what"] for one in result["measured"]):
        found = {one["who"]: one for one in result["measured"] if one["what"] == what}
        for who in WHO[1:]:
            one, base = found[who], found["plain"] if who == "replicated" else {"rss_kib": 0, "cpu_s": 0.0}
            requests = ", ".join(f"{count / minutes:.0f} {name}" for name, count in one["requests"].items() if count) or "0"
            rows.append([what, common.litestream(result) if who == "litestream" else "replicated, more than the host without it", f"{(one['rss_kib'] - base['rss_kib']) / 1024:.1f}", f"{100 * max(0.0, one['cpu_s'] - base['cpu_s']) / result['parameters']['seconds']:.1f}", requests])
    text = (
        f"## Idle\n\nResident memory, processor time and requests when nothing is committed, {result['parameters']['settle_s']} s after the first state of each was in the bucket and for {result['parameters']['seconds']} s.\n\n"
    )
    return {"idle": text + common.table(["databases", "who", "resident, MiB", "% of a core", "requests a minute"], rows)}
