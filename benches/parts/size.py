"""What is installed: sizes of files, and how long the extension takes to load."""

import json
import os
import subprocess

import common

FULL = {"loads": 50}
SHORT = {"loads": 5}


def measure(bench, given):
    measured = [{"what": name, "bytes": os.path.getsize(path)} for name, path in {"replicated.so": bench.extension, "replicated": bench.replicated, "litestream": bench.litestream}.items()]
    loads = []
    for _ in range(given["loads"]):
        told = subprocess.run([bench.programs["writer"], f"extension={bench.extension}", "load_only=1"], check=True, capture_output=True, text=True)
        loads.append(json.loads(told.stdout)["load_ns"] / 1e6)
    print(f"size: {measured}, loaded in {common.spread(loads)} ms", flush=True)
    return [*measured, {"what": "load_ms", "milliseconds": [round(ms, 4) for ms in loads]}]


def tables(result):
    told = {"replicated.so": "`replicated.so`, the extension", "replicated": "`replicated`, the tool", "litestream": "`litestream`, the released program"}
    rows = [[told[one["what"]], f"{one['bytes'] / 1e6:.1f} MB"] for one in result["measured"] if one["what"] in told]
    loads = next(one["milliseconds"] for one in result["measured"] if one["what"] == "load_ms")
    rows.append(["`sqlite3_load_extension`, in a new process", common.spread(loads, 2, " ms")])
    return {"size": "## What is installed\n\n" + common.table(["what", "size, time"], rows)}
