"""A database that was closed in order is opened again: how long until the first row is there, what is done after that, and how long until a first commit is in the
bucket, in requests and bytes; for databases of two sizes, since it ought not to depend on it. Beside it Litestream, started again after an orderly end."""

import json
import os
import shutil
import time

import common
from run import go, said
from servers import Litestream, end, wait_until

FULL = {"rounds": 3, "megabytes": [10, 1000], "seconds": 6}
SHORT = {"rounds": 1, "megabytes": [1, 10], "seconds": 1.5}


def measure(bench, given):
    measured = []
    for megabytes in given["megabytes"]:
        folder = bench.folder()
        path = os.path.join(folder, "app.db")
        common.fill(path, megabytes)[0].close()
        for who in ("plain", "replicated", "litestream"):
            prefix = f"reopen/{os.getpid()}-{bench.numbers}-{who}"
            # The zeroth sends the database; the others find it as it was left.
            for number in range(-1, given["rounds"]):
                again = litestream if who == "litestream" else application
                figures = again(bench, who, path, prefix, folder, given["seconds"] if number >= 0 else None)
                if number >= 0:
                    print(f"reopen, {megabytes} MB, round {number}: {who}: {figures}", flush=True)
                    measured.append({"megabytes": megabytes, "bytes": os.path.getsize(path), "round": number, "who": who} | figures)
        shutil.rmtree(folder)
    return measured


def difference(after, before):
    requests = {name: after[name] - before[name] for name in ("put", "get", "list", "delete", "head", "multipart")}
    return {"requests": sum(requests.values()), "by_kind": {name: count for name, count in requests.items() if count}, "sent_bytes": after["received_bytes"] - before["received_bytes"]}


def application(bench, who, path, prefix, folder, seconds):
    ours = who == "replicated"
    given = {"uri": bench.uri(path, prefix if ours else None)} | ({"extension": bench.extension} if ours else {})
    process = bench.host("reopen", given, bench.own.environment())
    try:
        assert said(process) == "ready"
        before, read, cpu = bench.own.counts(), common.bytes_read(process.pid), common.cpu_seconds(process.pid)
        go(process)
        figures = json.loads(said(process))
        assert said(process) == "ready"
        # What comes after it.
        time.sleep(seconds or 0)
        later = bench.own.counts()
        figures |= difference(later, before) | {"read_bytes": common.bytes_read(process.pid) - read, "cpu_s": round(common.cpu_seconds(process.pid) - cpu, 2)}
        go(process)
        figures |= json.loads(said(process))
        figures |= {"commit_requests": difference(bench.own.counts(), later)["by_kind"]}
        assert said(process) == "ready"
        go(process)
        said(process)
        process.wait()
        return {name: round(value, 2) if name.endswith("_ms") else value for name, value in figures.items()}
    finally:
        end(process)


def litestream(bench, who, path, prefix, folder, seconds):
    before = bench.own.counts()
    begun = time.monotonic()
    with Litestream(bench.litestream, bench.own, {path: prefix}, folder) as program:
        if seconds is None:
            wait_until("Litestream's first state", lambda: bench.own.has_state(prefix), seconds=300, pause=0.2)
            time.sleep(2)
        else:
            time.sleep(seconds)
        figures = difference(bench.own.counts(), before) | {"read_bytes": common.bytes_read(program.pid), "cpu_s": round(common.cpu_seconds(program.pid), 2)}
        end(program.process, 30)
    figures["lasted_s"] = round(time.monotonic() - begun, 2)
    return figures


def tables(result):
    rows, seconds = [], result["parameters"]["seconds"]
    for megabytes in result["parameters"]["megabytes"]:
        for who in ("plain", "replicated", "litestream"):
            these = [one for one in result["measured"] if (one["megabytes"], one["who"]) == (megabytes, who)]
            if not these:
                continue
            middle = lambda figure: common.median([one[figure] for one in these])
            rows.append([
                f"{these[0]['bytes'] / 1e6:,.0f} MB", {"litestream": common.litestream(result)}.get(who, who),
                common.spread([one["open_ms"] for one in these], 1) if who != "litestream" else "",
                *([f"{middle('requests'):.0f}", f"{middle('sent_bytes') / 1e6:.2f}"] if who != "plain" else ["", ""]),
                f"{middle('read_bytes') / 1e6:.1f}", f"{middle('cpu_s'):.2f}",
                common.spread([one["commit_ms"] for one in these], 1) if who == "replicated" else "",
                f"{common.median([sum(one['commit_requests'].values()) for one in these]):.0f}" if who == "replicated" else "",
            ])  # fmt: skip
    text = (
        "## Opened again\n\nA database that was closed in order, whose bucket has all of it, is opened again: milliseconds to the first row; what was sent, read (by system calls, from the cache or not) and computed\n"
        f"in the {seconds} s after that; and then milliseconds until a first commit is in the bucket. Litestream is ended by SIGTERM and started again.\n\n"
    )
    head = ["database", "who", "first row, ms", f"requests in {seconds} s", "MB sent", "MB read", "s of CPU", "first commit in the bucket, ms", "requests for it"]
    return {"reopen": text + common.table(head, rows)}
