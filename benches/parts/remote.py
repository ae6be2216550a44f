"""Commits that wait for the bucket (`durability=remote`): how many more a second several threads make than one."""

import json
import os
import shutil
import subprocess

import common

FULL = {"rounds": 3, "threads": [1, 4, 16], "seconds": 3, "delay_ms": 30, "servers": ["seaweedfs", "own"]}
SHORT = {"rounds": 1, "threads": [1, 4], "seconds": 0.6, "servers": ["seaweedfs"]}
NAMES = {"seaweedfs": "SeaweedFS", "own": "the tests' server"}


def measure(bench, given):
    measured = []
    for number in range(given["rounds"]):
        for name in given["servers"]:
            for threads in given["threads"]:
                # A commit waits for a request or two.
                commits = max(5, int(given["seconds"] * 1000 / given["delay_ms"]))
                rate = once(bench, getattr(bench, name), threads, commits, given["delay_ms"])
                print(f"remote, {name}, round {number}: {threads} threads: {rate:.1f} commits a second", flush=True)
                measured.append({"server": name, "round": number, "threads": threads, "rate": round(rate, 2)})
    return measured


def once(bench, server, threads, commits, delay_ms):
    folder = bench.folder()
    uri = bench.uri(os.path.join(folder, "app.db"), f"remote/{os.getpid()}-{bench.numbers}", "&durability=remote")
    arguments = {"uri": uri, "extension": bench.extension, "threads": threads, "commits": commits, "warm": 1, "sync": 1, "busy_ms": 60_000}
    told = subprocess.run([bench.programs["writer"], *(f"{name}={value}" for name, value in arguments.items())], check=True, capture_output=True, text=True, env=server.environment(delay_ms))
    shutil.rmtree(folder)
    told = json.loads(told.stdout)
    return told["commits"] / ((told["ended_ns"] - told["begun_ns"]) / 1e9)


def tables(result):
    rows = []
    for server in result["parameters"]["servers"]:
        by_threads = {threads: [one["rate"] for one in result["measured"] if (one["server"], one["threads"]) == (server, threads)] for threads in result["parameters"]["threads"]}
        one = common.median(by_threads[result["parameters"]["threads"][0]])
        rows += [[NAMES[server], str(threads), common.spread(rates, 1), f"{common.median(rates) / one:.1f}"] for threads, rates in by_threads.items()]
    return {"remote": common.table(["server", "threads", "commits a second (median of rounds, lowest to highest)", "of one thread's"], rows)}
