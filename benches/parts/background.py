"""Commit latency with `checkpoint=background`: plain SQLite, replicated, and replicated with it. WAL, synchronous=normal, SQLite's default of a checkpoint each 1,000 pages."""

import json
import os
import shutil
import subprocess

import common
from run import go, said
from servers import end

# Name, the writer's pause between commits, commits.
WORKLOADS = [
    ("5 ms of sleep between commits", {"sleep_us": 5000}, 3000),
    ("1 ms of sleep between commits", {"sleep_us": 1000}, 8000),
    ("80 us of work a commit", {"pause_us": 80}, 30_000),
    ("tight loop", {}, 100_000),
]
MODES = ["plain", "replicated", "replicated, checkpoint=background"]
FULL = {"rounds": 4, "scale": 1.0}
SHORT = {"rounds": 1, "scale": 0.02}
FIGURES = [("p50, us", "p50_us"), ("p99, us", "p99_us"), ("p99.9, us", "p999_us"), ("commits a second", "rate")]


def measure(bench, given):
    measured = []
    for number in range(given["rounds"]):
        for workload in WORKLOADS:
            for mode in MODES[number % len(MODES) :] + MODES[: number % len(MODES)]:
                figures = once(bench, workload, mode, given["scale"])
                print(f"{workload[0]}, round {number}: {mode}: p50 {figures['p50_us']:.1f}, p99 {figures['p99_us']:.0f}, p99.9 {figures['p999_us']:.0f} us, WAL {figures['wal_kib']} KiB, {figures['busy']} busy", flush=True)
                measured.append({"workload": workload[0], "round": number, "mode": mode} | figures)
    return measured


def once(bench, workload, mode, scale):
    _, pause, commits = workload
    folder, server, ours = bench.folder(), bench.seaweedfs, mode != MODES[0]
    database, file = os.path.join(folder, "app.db"), os.path.join(folder, "latencies")
    uri = bench.uri(database, f"background/{os.getpid()}-{bench.numbers}" if ours else None, "&checkpoint=background" if mode == MODES[2] else "")
    given = {"uri": uri, "commits": max(50, int(commits * scale)), "warm": 50, "sync": int(ours), "go": 1, "latencies": file} | pause
    if ours:
        given["extension"] = bench.extension
    arguments = [f"{name}={value}" for name, value in given.items()]
    process = subprocess.Popen([bench.programs["writer"], *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=server.environment())
    try:
        assert said(process) == "ready"
        go(process)
        told = json.loads(said(process))
        process.wait()
    finally:
        end(process)
    figures = {"rate": round(told["commits"] / ((told["ended_ns"] - told["begun_ns"]) / 1e9), 1)} | {name: round(value, 2) for name, value in common.percentiles([file]).items()}
    figures |= {"busy": told["busy"], "wal_kib": os.path.getsize(database + "-wal") // 1024}
    shutil.rmtree(folder)
    return figures


def tables(result):
    rows = []
    for name, *_ in WORKLOADS:
        these = {mode: sorted((one for one in result["measured"] if (one["workload"], one["mode"]) == (name, mode)), key=lambda one: one["round"]) for mode in MODES}
        plain = these[MODES[0]]
        for told, figure in FIGURES if plain else []:
            cells = [f"{common.median([one[figure] for one in plain]):,.1f}"]
            cells += [common.spread([one[figure] / before[figure] for one, before in zip(these[mode], plain)]) for mode in MODES[1:]]
            rows.append([f"{told}, {name}", *cells])
        if plain:
            rows.append([f"the WAL's largest, KiB, {name}", *[f"{max(one['wal_kib'] for one in these[mode]):,}" for mode in MODES]])
    text = (
        "## Checkpoints in the background\n\n`checkpoint=background` beside plain SQLite and the default, as ratios to plain SQLite in the same round (median, lowest to highest). SQLite checkpoints in one of some 700 of these commits, so\n"
        "that p99.9 is the time of a checkpoint, where commits have any.\n\n"
    )
    return {"background": text + common.table(["what", "plain", *MODES[1:]], rows)}
