"""SQLite's own speedtest1, plain and replicated, alternating."""

import os
import re
import shutil
import subprocess

import common

FULL = {"rounds": 5, "size": 100, "journals": ["wal", "delete"]}
SHORT = {"rounds": 1, "size": 2, "journals": ["wal"]}
MODES = ["plain", "replicated"]


def measure(bench, given):
    measured = []
    for number in range(given["rounds"]):
        for journal in given["journals"]:
            for mode in MODES if number % 2 == 0 else MODES[::-1]:
                seconds, tests = once(bench, mode, journal, given["size"])
                print(f"speedtest1, {journal}, round {number}: {mode}: {seconds:.3f} s", flush=True)
                measured.append({"journal": journal, "round": number, "mode": mode, "seconds": seconds, "tests": tests})
    return measured


def once(bench, mode, journal, size):
    folder, ours, server = bench.folder(), mode == "replicated", bench.seaweedfs
    env = server.environment()
    if ours:
        env |= {"BENCH_EXTENSION": bench.extension, "REPLICATED_REPLICA": f"s3://bench/speedtest/{os.getpid()}-{bench.numbers}"}
    command = [bench.programs["speedtest"], "--size", str(size), "--journal", journal, *(["--vfs", "replicated"] if ours else []), os.path.join(folder, "app.db")]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=folder).stdout
    if ours and not os.path.exists(os.path.join(folder, "app.db-replicated")):
        raise RuntimeError("speedtest1 ran without replication")
    shutil.rmtree(folder)
    tests = {number: float(seconds) for number, seconds in re.findall(r"^ *(\d+) - .*?(\d+\.\d+)s$", told, re.MULTILINE)}
    return float(re.search(r"TOTAL\.* +([\d.]+)s", told).group(1)), tests


def tables(result):
    rows = []
    for journal in result["parameters"]["journals"]:
        plain, ours = ([one["seconds"] for one in sorted(result["measured"], key=lambda one: one["round"]) if one["journal"] == journal and one["mode"] == mode] for mode in MODES)
        if plain:
            ratios = [slow / quick for slow, quick in zip(ours, plain)]
            rows.append([f"speedtest1, journal_mode={journal}", common.spread(plain, 2, " s"), common.spread(ours, 2, " s"), common.spread(ratios, 3)])
    text = (
        f"## SQLite's own speed test\n\n`speedtest1 --size {result['parameters']['size']}` of SQLite's sources: inserts, updates, look-ups, joins and more in large transactions, `synchronous=full`, until its last\n"
        "statement is done. What is left to be sent by then is sent after it.\n\n"
    )
    return {"speedtest": text + common.table(["what", *MODES, "ratio (median of rounds, lowest to highest)"], rows)}
