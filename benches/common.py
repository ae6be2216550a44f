"""What the parts of the benchmark share: figures, tables, the machine, a database to fill. Standard library only."""

import array
import os
import platform
import random
import re
import sqlite3
import statistics
import subprocess


def fill(path, megabytes):
    """Rows of a kilobyte, half of it compressible, and a key."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=OFF")
    database.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, v BLOB)")
    noise = random.Random(7)
    rows = megabytes * 1000
    for start in range(0, rows, 20000):
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO t(k, v) VALUES(?, ?)",
            ((f"key {noise.getrandbits(40)}", noise.randbytes(420) + b"some text that repeats " * 22) for _ in range(min(20000, rows - start))),
        )
        database.execute("COMMIT")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database, rows


def percentiles(files):
    """Of the latencies in files of 8-byte integers: p50, p99, p99.9 and the longest, in microseconds."""
    latencies = array.array("Q")
    for path in files:
        with open(path, "rb") as file:
            latencies.frombytes(file.read())
    ordered = sorted(latencies)
    at = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999, "longest_us": 1.0}
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000 for name, share in at.items()}


def memory_kib(pid, peak=False):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return int(re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status.read()).group(1))


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bytes_read(pid):
    """What the process read by system calls, from the cache or not: files and sockets."""
    with open(f"/proc/{pid}/io", encoding="utf-8") as file:
        return int(re.search(r"rchar: (\d+)", file.read()).group(1))


def median(values):
    return statistics.median(values)


def spread(values, digits=2, unit=""):
    """`1.23 s (1.20 to 1.31)`"""
    return f"{median(values):,.{digits}f}{unit} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(head, rows):
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows]).replace("| --- ", "|---").replace("--- |", "---|")


def litestream(result):
    return f"Litestream {result['machine']['litestream'].removeprefix('v')}"


def output(command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine(folder):
    """What a reader needs to judge the figures, and nothing that names the machine."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = re.search(r"model name\s*:\s*(.+)", file.read())
    with open("/proc/meminfo", encoding="utf-8") as file:
        kib = int(re.search(r"MemTotal:\s+(\d+)", file.read()).group(1))
    return {
        "processor": model.group(1).strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(kib / 1024 / 1024, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "file_system": output(["df", "--output=fstype", folder]).splitlines()[-1],
        # At the beginning of the run. Over one, with two cores, is no time to measure anything.
        "load_before": round(os.getloadavg()[0], 2),
    }
