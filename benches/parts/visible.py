"""From COMMIT's return, after a pause, until the object can be seen in the bucket; and a bare PUT of as much through the same network."""

import json
import os
import shutil
from contextlib import ExitStack

import common
from run import HERE, go, said
from servers import BUCKET, Litestream, end, wait_until

MODES = ["replicated", "Litestream, 10 ms", "Litestream"]
# Round trips in milliseconds, to each server.
FULL = {"rounds": 2, "samples": 6, "delays_ms": {"seaweedfs": [0, 30, 100], "own": [0]}}
SHORT = {"rounds": 1, "samples": 1, "delays_ms": {"seaweedfs": [0, 30]}}


def measure(bench, given):
    measured = []
    for number in range(given["rounds"]):
        for name, delays_ms in given["delays_ms"].items():
            for delay_ms in delays_ms:
                for mode in MODES:
                    figures = once(bench, getattr(bench, name), mode, delay_ms, given["samples"])
                    print(f"visible, {name}, {delay_ms} ms, round {number}: {mode}: {[round(ms, 1) for ms in figures['visible_ms']]}, a PUT {[round(ms, 1) for ms in figures['put_ms']]} ms", flush=True)
                    measured.append({"server": name, "delay_ms": delay_ms, "round": number, "mode": mode} | {key: [round(ms, 3) for ms in values] for key, values in figures.items()})
    return measured


def once(bench, server, mode, delay_ms, samples):
    folder, prefix, ours = bench.folder(), f"visible/{os.getpid()}-{bench.numbers}", mode == "replicated"
    database = os.path.join(folder, "app.db")
    # It looks for the object past the network: what is measured is when the bucket has it.
    given = {"uri": bench.uri(database, prefix if ours else None), "prefix": prefix, "near": server.endpoint, "far": server.at(delay_ms), "key": server.key, "secret": server.secret}
    given |= {"bucket": BUCKET, "benches": HERE, "samples": samples, "seed": bench.numbers}
    if ours:
        given["extension"] = bench.extension
    with ExitStack() as stack:
        process = bench.host("visible", given, server.environment(delay_ms))
        stack.callback(end, process)
        assert said(process) == "ready"
        if not ours:
            stack.enter_context(Litestream(bench.litestream, server, {database: prefix}, folder, tuned=mode == MODES[1], delay_ms=delay_ms))
        wait_until("the first object", lambda: server.client().list(prefix + "/0000/"), pause=0.1)
        go(process)
        figures = json.loads(said(process))
        process.wait()
    shutil.rmtree(folder)
    return figures


def tables(result):
    rows = []
    names = {"seaweedfs": "SeaweedFS", "own": "the tests' server"}
    for server, delays_ms in result["parameters"]["delays_ms"].items():
        for delay_ms in delays_ms:
            these = [one for one in result["measured"] if (one["server"], one["delay_ms"]) == (server, delay_ms)]
            put = common.median([ms for one in these for ms in one["put_ms"]]) if these else 0
            cells = []
            for mode in MODES:
                samples = [ms for one in these if one["mode"] == mode for ms in one["visible_ms"]]
                cells.append(common.spread(samples, 1) if samples else "")
                if mode == "replicated":
                    cells.append(f"{common.median(samples) - put:+.1f}" if samples else "")
            if these:
                rows.append([f"{names[server]}, {delay_ms} ms", f"{put:.1f}", *cells])
    text = (
        "## How soon a commit is in the bucket\n\nMilliseconds from COMMIT's return, after a pause of more than a second, until the object can be seen by somebody beside the server; with a round trip of so many milliseconds\n"
        "between. A PUT of as many bytes is timed by its client, to which the answer has to come back: half of a round trip that the object does not wait for. Median of all samples, lowest to highest.\n\n"
    )
    return {"visible": text + common.table(["server, round trip", "a bare PUT", "replicated", "more than the PUT", *MODES[1:]], rows)}
