"""Single-row commits: throughput and latency, plain, replicated, and with Litestream beside. WAL, synchronous=normal, SQLite's own checkpoints."""

import contextlib
import json
import os
import shutil
import subprocess

import common
from run import go, said
from servers import Litestream, end, wait_until

PAUSED_US = 80
# Name, program, threads, processes, bytes of a row, commits of each thread.
WORKLOADS = [
    ("tight loop in C", "c", 1, 1, 70, 100_000),
    (f"as from a script ({PAUSED_US} us a commit)", "paused", 1, 1, 70, 30_000),
    ("as fast as Python goes", "python", 1, 1, 70, 60_000),
    ("4 threads", "c", 4, 1, 70, 10_000),
    ("4 processes", "c", 1, 4, 70, 10_000),
    ("1 KiB a transaction", "c", 1, 1, 1024, 50_000),
    ("100 KiB a transaction", "c", 1, 1, 102_400, 3_000),
]
MODES = ["plain", "plain, a second thread", "replicated", "Litestream", "Litestream, 10 ms"]
FULL = {"rounds": 5, "scale": 1.0, "workloads": [name for name, *_ in WORKLOADS], "delays_ms": [30, 100], "delayed": [WORKLOADS[0][0], WORKLOADS[1][0]], "delayed_rounds": 2}
SHORT = {"rounds": 1, "scale": 0.02, "delays_ms": [30], "delayed": [WORKLOADS[0][0]], "delayed_rounds": 1}


def measure(bench, given):
    measured = []
    for workload in WORKLOADS:
        name = workload[0]
        several = workload[2] > 1
        # An application with threads has its second thread already.
        modes = [mode for mode in MODES if not (several and mode == MODES[1])]
        if name in given["workloads"]:
            measured += rounds(bench, given, workload, modes, 0, given["rounds"])
        if name in given["delayed"]:
            for delay_ms in given["delays_ms"]:
                measured += rounds(bench, given, workload, [mode for mode in modes if mode != MODES[1]], delay_ms, given["delayed_rounds"])
    return measured


def rounds(bench, given, workload, modes, delay_ms, count):
    measured = []
    for number in range(count):
        # Another one begins each round: nobody is always the one after the slow one.
        for mode in modes[number % len(modes) :] + modes[: number % len(modes)]:
            figures = once(bench, workload, mode, delay_ms, given["scale"])
            print(f"{workload[0]}, {delay_ms} ms, round {number}: {mode}: {figures['rate']:.0f}/s, p50 {figures['p50_us']:.1f}, p99 {figures['p99_us']:.0f}, p99.9 {figures['p999_us']:.0f} us, {figures['busy']} busy", flush=True)
            measured.append({"workload": workload[0], "delay_ms": delay_ms, "round": number, "mode": mode} | figures)
    return measured


def once(bench, workload, mode, delay_ms, scale):
    _, program, threads, processes, size, commits = workload
    folder, server = bench.folder(), bench.seaweedfs
    database, prefix = os.path.join(folder, "app.db"), f"commits/{os.getpid()}-{bench.numbers}"
    ours, idle = mode == "replicated", mode == MODES[1]
    alone = threads == processes == 1
    uri = bench.uri(database, prefix if ours else None)
    # Writers that meet wait for each other, as SQLite's users are told to; one alone sees BUSY only where somebody else takes its lock.
    shared = {"uri": uri, "commits": max(50, int(commits * scale)), "bytes": size, "warm": 50, "idle": int(idle), "sync": int(ours), "busy_ms": 0 if alone else 60_000}
    if ours:
        shared["extension"] = bench.extension
    files = [os.path.join(folder, f"latencies-{number}") for number in range(processes)]
    running = []
    with contextlib.ExitStack() as stack:
        for file in files:
            given = shared | {"latencies": file}
            if program == "python":
                process = bench.host("commits", given, server.environment(delay_ms))
            else:
                arguments = [f"{name}={value}" for name, value in (given | {"threads": threads, "go": 1, "pause_us": PAUSED_US if program == "paused" else 0}).items()]
                process = subprocess.Popen([bench.programs["writer"], *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=server.environment(delay_ms))
            stack.callback(end, process)
            running.append(process)
            assert said(process) == "ready"
        if mode.startswith("Litestream"):
            stack.enter_context(Litestream(bench.litestream, server, {database: prefix}, folder, tuned=mode == MODES[4], delay_ms=delay_ms))
            wait_until("Litestream's first object", lambda: server.has_state(prefix + "/"), pause=0.1)
        for process in running:
            go(process)
        told = [json.loads(said(process)) for process in running]
        for process in running:
            process.wait()
    begun, ended = min(one["begun_ns"] for one in told), max(one["ended_ns"] for one in told)
    done = sum(one["commits"] for one in told)
    figures = {"rate": round(done / ((ended - begun) / 1e9), 1)} | {name: round(value, 2) for name, value in common.percentiles(files).items()}
    figures |= {"busy": sum(one["busy"] for one in told), "rss_kib": max(one["rss_kib"] for one in told), "cpu_s": round(sum(one["cpu_s"] for one in told), 3)}
    shutil.rmtree(folder)
    return figures


def chosen(result, workload, mode, delay_ms):
    return [one for one in result["measured"] if (one["workload"], one["mode"], one["delay_ms"]) == (workload, mode, delay_ms)]


def ratios(ours, plain, figure):
    """Of the rounds, each by itself."""
    by_round = {one["round"]: one[figure] for one in plain}
    return [one[figure] / by_round[one["round"]] for one in ours if by_round.get(one["round"])]


FIGURES = [("commits a second", "rate"), ("p50 commit latency, us", "p50_us"), ("p99 commit latency, us", "p99_us"), ("p99.9 commit latency, us", "p999_us")]


def tables(result):
    names = [name for name, *_ in WORKLOADS if chosen(result, name, "plain", 0)]
    first, second = [], []
    for name in names:
        plain, ours = chosen(result, name, "plain", 0), chosen(result, name, "replicated", 0)
        for told, figure in FIGURES:
            medians = [f"{common.median([one[figure] for one in these]):.1f}" for these in (plain, ours)]
            first.append([f"{told}, {name}", *medians, common.spread(ratios(ours, plain, figure))])
        first.append([f"resident memory added, MiB, {name}", "", f"{(common.median([one['rss_kib'] for one in ours]) - common.median([one['rss_kib'] for one in plain])) / 1024:.1f}", ""])
        for told, figure in FIGURES:
            cells = [f"{common.median([one[figure] for one in plain]):,.1f}"]
            for mode in MODES[1:]:
                others = chosen(result, name, mode, 0)
                cells.append(common.spread(ratios(others, plain, figure)) if others else "")
            second.append([f"{told}, {name}", *cells])
        if any(one["busy"] for mode in MODES for one in chosen(result, name, mode, 0)):
            second.append([f"BUSY in all rounds, {name}", *[busy(chosen(result, name, mode, 0)) for mode in MODES]])
    third = []
    for name in names:
        for delay_ms in result["parameters"]["delays_ms"]:
            plain = chosen(result, name, "plain", delay_ms)
            for told, figure in FIGURES if plain else []:
                cells = [common.spread(ratios(these, plain, figure)) if (these := chosen(result, name, mode, delay_ms)) else "" for mode in MODES[2:]]
                third.append([f"{told}, {name}, {delay_ms} ms", f"{common.median([one[figure] for one in plain]):,.1f}", *cells])
    head = ["what", "plain", "replicated", "ratio (median of rounds, lowest to highest)"]
    page = {"table": common.table(head, first)}
    page["beside"] = "The same, as ratios to plain SQLite in the same round, with Litestream beside it (the application opens its database as plain as can be):\n\n" + common.table(["what", "plain", *MODES[1:]], second)
    if third:
        page["distance"] = "With so many milliseconds of round trip between the machine and the bucket:\n\n" + common.table(["what", "plain", *MODES[2:]], third)
    return page


def busy(these):
    return str(sum(one["busy"] for one in these)) if these else ""
