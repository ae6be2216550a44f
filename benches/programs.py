"""Builds the programs in C: the writer, and SQLite's speedtest1. Both get the SQLite that the project itself is built with. Standard library only."""

import json
import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


def amalgamation():
    """The folder of the SQLite that libsqlite3-sys carries, in the version of Cargo.lock."""
    told = subprocess.run(["cargo", "metadata", "--format-version", "1"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for package in json.loads(told)["packages"]:
        if package["name"] == "libsqlite3-sys":
            return os.path.join(os.path.dirname(package["manifest_path"]), "sqlite3")
    raise RuntimeError("libsqlite3-sys is no dependency any more")


def build(folder, speedtest):
    """Paths of the writer and, if it is wanted, of speedtest1. What is there and newer than its sources stays."""
    os.makedirs(folder, exist_ok=True)
    sqlite = amalgamation()
    library = made(os.path.join(folder, "sqlite3.o"), [os.path.join(sqlite, "sqlite3.c")], ["-c", "-DSQLITE_THREADSAFE=1"])
    more = ["-I", sqlite, library, "-lpthread", "-ldl", "-lm"]
    programs = {"writer": made(os.path.join(folder, "writer"), [os.path.join(HERE, "writer.c")], more, library)}
    programs["peak"] = made(os.path.join(folder, "peak"), [os.path.join(HERE, "peak.c")], [])
    if speedtest:
        source = subprocess.run(["bash", os.path.join(ROOT, "scripts/sqlite-source.sh")], capture_output=True, text=True, check=True).stdout.strip()
        programs["speedtest"] = made(
            os.path.join(folder, "speedtest"), [os.path.join(HERE, "speedtest.c")], ["-w", "-I", os.path.join(source, "test"), *more], library
        )
    return programs


def made(target, sources, more, *also):
    if not os.path.exists(target) or any(os.path.getmtime(source) > os.path.getmtime(target) for source in [*sources, *also]):
        print(f"building {os.path.basename(target)}", flush=True)
        subprocess.run(["cc", "-O2", "-o", target, *sources, *more], check=True)
    return target


def sqlite_version():
    with open(os.path.join(amalgamation(), "sqlite3.h"), encoding="utf-8") as header:
        return next(line.split('"')[1] for line in header if line.startswith("#define SQLITE_VERSION "))
