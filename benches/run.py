#!/usr/bin/env python3
"""Measures what replication costs, side by side with plain SQLite and with Litestream, and writes the tables of docs/performance.md.

    make bench                          everything but `requests`; some 40 minutes, on a machine that does nothing else
    make bench BENCH="commits visible"  parts of it; the others' tables stay
    make bench SHORT=1                  all of it so small that the figures mean nothing: whether it works

    benches/run.py [PART...] [--short] [--set PART.NAME=VALUE]... [--render]

Each part alternates what it compares and keeps each round's raw figures in benches/results/PART.json; the tables are made from those files alone (`--render`).
With --short nothing is written but target/bench. Standard library only; the programs it needs are named by flags, and `make bench` has them all.
"""

import argparse
import datetime
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback

import common
import programs
import servers

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
PARTS = ["commits", "background", "instructions", "speedtest", "visible", "remote", "snapshot", "restore", "reopen", "idle", "size", "requests"]
# Twenty minutes for itself, and nothing in it is a time.
ONLY_BY_NAME = ["requests"]


class Bench:
    """The programs and servers of a run; servers start when a part first asks."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.extension = os.path.abspath(arguments.extension)
        self.replicated, self.litestream, self.python = os.path.abspath(arguments.replicated), os.path.abspath(arguments.litestream), arguments.python
        self.work = os.path.abspath(arguments.work)
        self.programs = None
        self.running = {}
        self.numbers = 0

    def __enter__(self):
        os.makedirs(self.work, exist_ok=True)
        return self

    def __exit__(self, *_):
        for server in self.running.values():
            server.stop()
        shutil.rmtree(os.path.join(self.work, "scratch"), ignore_errors=True)

    def build(self, speedtest):
        self.programs = programs.build(os.path.join(self.work, "programs"), speedtest)

    @property
    def seaweedfs(self):
        if "seaweedfs" not in self.running:
            program = self.arguments.seaweedfs or common.output(["bash", os.path.join(ROOT, "scripts/seaweedfs.sh")])
            self.running["seaweedfs"] = servers.SeaweedFs(program, os.path.join(self.work, "scratch/seaweedfs"))
        return self.running["seaweedfs"]

    @property
    def own(self):
        if "own" not in self.running:
            self.running["own"] = servers.Own(os.path.abspath(self.arguments.server), os.path.join(self.work, "scratch/own"))
        return self.running["own"]

    def stop(self, name):
        """A server's work after a part must not be in the next one's."""
        if name in self.running:
            self.running.pop(name).stop()

    def folder(self):
        """A new folder; a part removes it when it is done with it."""
        self.numbers += 1
        path = os.path.join(self.work, "scratch", str(self.numbers))
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path)
        return path

    def uri(self, path, prefix=None, more="", bucket=servers.BUCKET):
        return f"file:{path}" + (f"?vfs=replicated&replica=s3://{bucket}/{prefix}{more}" if prefix else "")

    def host(self, task, given, env, **more):
        command = [self.python, os.path.join(HERE, "host.py"), task, json.dumps(given)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, **more)


def said(process):
    """A line of a process; the benchmark ends where there is none."""
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{os.path.basename(process.args[0])} ended with {process.wait()}: {process.args[1:]}")
    return line.strip()


def go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def put_into(page, name, text):
    marker = f"<!-- {name} -->\n"
    head, found, rest = page.partition(marker)
    _, ended, tail = rest.partition("<!-- end -->")
    if not found or not ended:
        sys.exit(f"docs/performance.md has no `<!-- {name} -->` with an end")
    return f"{head}{marker}{text}<!-- end -->{tail}"


def render(results, source, target):
    """Writes the page with what the results of the parts say."""
    with open(source, encoding="utf-8") as file:
        page = file.read()
    for name in PARTS:
        path = os.path.join(results, f"{name}.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                result = json.load(file)
            for marker, text in importlib.import_module(f"parts.{name}").tables(result).items():
                page = put_into(page, marker, text)
    with open(target, "w", encoding="utf-8") as file:
        file.write(page)


def parameters(part, arguments):
    module = importlib.import_module(f"parts.{part}")
    chosen = dict(module.FULL) | (dict(module.SHORT) if arguments.short else {})
    for given in arguments.set:
        name, _, text = given.partition("=")
        owner, _, name = name.partition(".")
        if owner == part:
            if name not in chosen:
                sys.exit(f"{part} has no {name}; it has {', '.join(chosen)}")
            chosen[name] = json.loads(text)
    return module, chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--render", action="store_true", help="only writes the page, from the results that are there")
    parser.add_argument("--page", help="with --render: written here instead")
    parser.add_argument("--set", action="append", default=[], metavar="PART.NAME=VALUE")
    parser.add_argument("--extension", default=os.path.join(ROOT, "dist/replicated.so"))
    parser.add_argument("--replicated", default=os.path.join(ROOT, "dist/replicated"))
    parser.add_argument("--server", default=os.path.join(ROOT, "target/release/replicated-s3"))
    parser.add_argument("--litestream", default=os.path.join(os.environ.get("REPLICATED_TEST_ENV", os.path.join(ROOT, "target/test-env")), "bin/litestream"))
    parser.add_argument("--seaweedfs", help="the program `weed`; installed if it is not named")
    parser.add_argument("--python", default="/usr/bin/python3", help="whose sqlite3 loads extensions")
    parser.add_argument("--work", default=os.path.join(ROOT, "target/bench"), help="on the disk to be measured; needs some 15 GB")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        sys.exit(f"no part {' '.join(unknown)}; there are {', '.join(PARTS)}")
    page = os.path.join(ROOT, "docs/performance.md")
    results, target = (os.path.join(arguments.work, "results"), os.path.join(arguments.work, "performance.md")) if arguments.short else (os.path.join(HERE, "results"), page)
    if arguments.render:
        return render(results, page, arguments.page or target)
    chosen = arguments.parts or [part for part in PARTS if part not in ONLY_BY_NAME]
    if arguments.short:
        # Of another run, and perhaps of another version.
        shutil.rmtree(results, ignore_errors=True)
    for program, part, package in [("valgrind", "instructions", "valgrind"), ("cc", None, "gcc")]:
        if (part is None or part in chosen) and not shutil.which(program):
            sys.exit(f"{part or 'the benchmark'} needs {program} (Debian: {package})")
    os.makedirs(results, exist_ok=True)
    # A run that is ended takes its processes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    began = time.monotonic()
    with Bench(arguments) as bench:
        # Before it builds anything: that is a load too.
        facts = common.machine(bench.work) | versions(bench)
        if facts["load_before"] > facts["cores"] / 2 and not arguments.short:
            print(f"the machine is busy (load {facts['load_before']}): what is measured now is worth little", flush=True)
        bench.build("speedtest" in chosen)
        failed = []
        for part in chosen:
            module, given = parameters(part, arguments)
            print(f"{part}: {given}", flush=True)
            started = time.monotonic()
            try:
                measured = module.measure(bench, given)
            except (Exception, SystemExit) as problem:  # pylint: disable=broad-except
                # The other parts take their time all the same, and are worth having.
                traceback.print_exc()
                failed.append(f"{part}: {problem}")
                bench.stop("own")
                continue
            result = {"part": part, "when": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"), "machine": facts, "parameters": given, "measured": measured}
            with open(os.path.join(results, f"{part}.json"), "w", encoding="utf-8") as file:
                file.write(written(result))
            render(results, page, target)
            print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)
            bench.stop("own")
            shutil.rmtree(os.path.join(bench.work, "scratch", "own"), ignore_errors=True)
    print(f"{time.monotonic() - began:.0f} s in all; the tables are in {os.path.relpath(target)}")
    if failed:
        sys.exit("\n".join(["these parts failed, and their tables are as they were:", *failed]))


def versions(bench):
    return {
        "revision": common.output(["git", "-C", ROOT, "describe", "--always", "--dirty"]),
        "sqlite": programs.sqlite_version(),
        "python": common.output([bench.python, "-c", "import platform, sqlite3; print(platform.python_version(), 'with SQLite', sqlite3.sqlite_version)"]),
        "litestream": common.output([bench.litestream, "version"]),
    }


def written(result):
    """JSON with a line for each round, so that a change of it can be read."""
    rounds = lambda value: ",\n".join(f"  {json.dumps(item)}" for item in value)
    measured = result["measured"]
    head = json.dumps({name: value for name, value in result.items() if name != "measured"}, indent=1)
    return head.removesuffix("\n}") + f',\n "measured": [\n{rounds(measured)}\n ]\n}}\n'


if __name__ == "__main__":
    # The parts import this file by its name.
    sys.modules["run"] = sys.modules["__main__"]
    main()
