"""Instructions of the application's own thread for each commit, counted by callgrind: a figure that a busy machine does not touch."""

import os
import re
import shutil
import subprocess

import common

# Commits of the shorter and the longer run: what both did once falls out of the difference. The first pair ends before SQLite's first checkpoint (1,000 pages
# of WAL; each commit writes one or two), the second goes through a good many of them.
FULL = {"rounds": 3, "between": [50, 350], "through": [1000, 13000], "spans": ["between", "through"]}
SHORT = {"rounds": 1, "between": [50, 100], "spans": ["between"]}
MODES = ["plain", "plain, a second thread", "replicated"]


def measure(bench, given):
    measured = []
    for number in range(given["rounds"]):
        for span in given["spans"]:
            for mode in MODES:
                few, many = given[span]
                counts = [counted(bench, mode, commits) for commits in (few, many)]
                each = (counts[1] - counts[0]) / (many - few)
                print(f"{span} checkpoints, round {number}: {mode}: {each:.0f} instructions a commit", flush=True)
                measured.append({"span": span, "round": number, "mode": mode, "instructions": round(each, 1)})
    return measured


def counted(bench, mode, commits):
    """All that the first thread of the program executed in user mode."""
    folder, ours = bench.folder(), mode == "replicated"
    prefix = f"instructions/{os.getpid()}-{bench.numbers}"
    arguments = {"uri": bench.uri(os.path.join(folder, "app.db"), prefix if ours else None), "commits": commits, "warm": 10, "idle": int(mode == MODES[1]), "sync": int(ours)}
    if ours:
        arguments["extension"] = bench.extension
    out = os.path.join(folder, "callgrind.out")
    subprocess.run(
        ["valgrind", "--tool=callgrind", "--separate-threads=yes", "--fair-sched=yes", f"--callgrind-out-file={out}", "--quiet",
         bench.programs["writer"], *(f"{name}={value}" for name, value in arguments.items())],
        check=True, stdout=subprocess.DEVNULL, env=bench.own.environment(),
    )  # fmt: skip
    # A file for each thread; the program's first one is 01.
    with open(f"{out}-01", encoding="utf-8") as file:
        total = int(re.search(r"^(?:summary|totals): (\d+)", file.read(), re.MULTILINE).group(1))
    shutil.rmtree(folder)
    return total


def tables(result):
    few, many = result["parameters"]["between"]
    names = {"between": "between two checkpoints", "through": f"with SQLite's checkpoints, over {result['parameters']['through'][1]:,} commits"}
    rows = []
    for span, name in names.items():
        found = {mode: [one["instructions"] for one in result["measured"] if one["span"] == span and one["mode"] == mode] for mode in MODES}
        if found["plain"]:
            added = [ours - plain for ours, plain in zip(found["replicated"], found["plain"])]
            rows.append([name, *[f"{common.median(found[mode]):,.0f}" for mode in MODES], common.spread(added, 0)])
    text = (
        "## Instructions\n\nWhat the application's own thread executes in user mode for a commit of a row of 70 bytes, counted by callgrind: two runs of different length, so that what comes\n"
        "once falls out. A busy machine does not change it, another compiler does. What the kernel does is not in it. With the checkpoints counted it depends on how far the uploader has got\n"
        "when SQLite begins its WAL anew: what has not been sent by then is encoded on the writer's thread.\n\n"
    )
    return {"instructions": text + common.table(["instructions a commit", *MODES, "added by replication"], rows)}
