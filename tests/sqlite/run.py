#!/usr/bin/env python3
"""Runs files of SQLite's own test suite twice, with and without the extension, and compares: every test case must end alike.

After each file every database that is left is opened once more, restored from its replica and compared byte for byte.
What may differ is listed, with its reason, in expected.txt. Called by scripts/test-sqlite.sh, which builds what this needs.
"""

import argparse
import concurrent.futures
import fnmatch
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The suite takes away rights of files and looks whether SQLite obeys, which the kernel does not make root do.
NOBODY = 65534
# A plain run that takes longer is cut off; the other one may take six times as long.
LIMIT_S = 600

# Files that need the page of SQLite's locks at 64 KiB, where the suite puts it: see prelude.tcl.
LOW_LOCK_PAGE = {
    "autovacuum", "backup", "backup_ioerr", "corrupt2", "corruptN", "memdb1", "mmap1", "mmapwarm", "pager1", "temptable2", "tkt4018", "wal", "wal2",
}
LOW_LOCK_PAGE_BYTES = 0x10000

# Files about threads print dots on the way.
CASE = re.compile(r"^\.*([^\s.]\S*?)\.\.\.( Ok$)?", re.M)
TOTAL = re.compile(r"^(\d+) errors out of (\d+) tests", re.M)
FAILURES = re.compile(r"^!Failures on these tests: (.*)$", re.M)
LEFT_OPEN = re.compile(r"^(\d+) files were left open", re.M)
UNFREED = re.compile(r"^Unfreed memory: ", re.M)


# What may be said of a database without a word in expected.txt.
FINE = {
    "equal", "equal but for what free pages hold", "empty", "no database to SQLite either", "written by other means than SQLite",
    "reaches a lock page that was moved",
}


@dataclass
class Run:
    """One file in one mode."""

    seconds: float
    # Name of a case -> how often it passed; the same for failures.
    passed: Counter
    failed: Counter
    # What ended it before its end, or went wrong beside its cases.
    troubles: list
    output: str

    @property
    def cases(self):
        return self.passed.total() + self.failed.total()

    @property
    def word(self):
        if self.failed or self.troubles:
            return "fail"
        return "pass" if self.cases else "skip"


@dataclass
class Result:
    """One file: both runs, the databases left behind, and the differences as (case, what)."""

    name: str
    plain: Run = None
    ours: Run = None
    databases: list = field(default_factory=list)
    # How often the suite deleted or replaced a replicated database, and its replica was begun anew.
    replaced: int = 0
    differences: list = field(default_factory=list)


@dataclass
class Database:
    name: str
    # equal, different, or why nothing can be said.
    outcome: str
    detail: str = ""
    settled: bool = True


class Expected:
    """The committed list: file pattern, case pattern, reason."""

    def __init__(self, path):
        self.lines = []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                parts = line.split(None, 2)
                if len(parts) != 3:
                    sys.exit(f"{path}:{number}: a line is: file, case, reason; got {line!r}")
                self.lines.append((*parts, number))
        self.seen = set()

    def reason(self, file, case):
        for file_pattern, case_pattern, reason, number in self.lines:
            if fnmatch.fnmatchcase(file, file_pattern) and fnmatch.fnmatchcase(case, case_pattern):
                self.seen.add(number)
                return reason
        return None

    def unseen(self, files):
        return [line for line in self.lines if line[3] not in self.seen and any(fnmatch.fnmatchcase(f, line[0]) for f in files)]


class Runner:
    def __init__(self, options, work):
        self.options = options
        self.work = work
        self.suite = work / "suite"
        self.lock = threading.Lock()
        self.children = set()

    def prepare(self):
        """Copies what the runs need to where the user of the runs may read it."""
        for name, source in [
            ("testfixture", self.options.fixture),
            ("replicated.so", self.options.extension),
            ("prelude.tcl", HERE / "prelude.tcl"),
            ("settle.tcl", HERE / "settle.tcl"),
        ]:
            shutil.copy(source, self.work / name)
        # The suite reads its own source tree: test/*.tcl, ext/*/test/*.
        shutil.copytree(self.options.source / "test", self.suite / "test")
        for part in ("ext", "src"):
            os.symlink(self.options.source / part, self.suite / part)

    def environment(self, directory, mode, low_lock_page):
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("REPLICATED_", "SQLITE", "AWS_"))}
        clean.update(LC_ALL="C.UTF-8", HOME=str(directory), HOSTNAME="localhost")
        if low_lock_page:
            clean.update(REPLICATED_TEST_LOW_LOCK_PAGE="1")
        if mode == "plain":
            return clean
        clean.update(REPLICATED_TEST_EXTENSION=str(self.work / "replicated.so"), REPLICATED_DEFAULT="1", RUST_BACKTRACE="1")
        clean.update(REPLICATED_LOG=str(directory / "extension.log"))
        if mode == "through":
            return clean
        bucket = directory / "bucket"
        clean.update(
            REPLICATED_REPLICA=f"file://{bucket}/{{name}}",
            REPLICATED_TEST_BUCKET=str(bucket),
            REPLICATED_TEST_NOTES=str(directory / "notes"),
            REPLICATED_SYNC_INTERVAL="50ms",
            # Long, so that a close which waits in vain is no matter of how busy the machine is.
            REPLICATED_CLOSE_TIMEOUT="20s",
        )
        if self.options.keep_replicas:
            clean.update(REPLICATED_TEST_KEEP="1")
        return clean

    def call(self, arguments, directory, mode, limit_s, output, low_lock_page=False):
        """Runs testfixture; returns its exit code, or None past the limit. Its whole group is gone afterwards."""
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        with open(output, "wb") as out:
            child = subprocess.Popen(
                [str(self.work / "testfixture"), *map(str, arguments)],
                cwd=directory, env=self.environment(directory, mode, low_lock_page), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, **user,
            )
            with self.lock:
                self.children.add(child.pid)
            try:
                return child.wait(limit_s)
            except subprocess.TimeoutExpired:
                return None
            finally:
                try:
                    os.killpg(child.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                child.wait()
                with self.lock:
                    self.children.discard(child.pid)

    def stop(self):
        with self.lock:
            for pid in self.children:
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def directory(self, name, mode):
        # As long a path in each mode: what SQLite allocates, and some tests, depend on it.
        directory = self.work / {"plain": "without", "ours": "with-it", "through": "through"}[mode] / name.replace(":", "-")
        (directory / "testdir").mkdir(parents=True)
        (directory / "bucket").mkdir()
        if os.geteuid() == 0:
            for path in (directory, directory / "testdir", directory / "bucket"):
                os.chown(path, NOBODY, NOBODY)
        return directory

    def run(self, name, mode, limit_s):
        directory = self.directory(name, mode)
        permutation, _, file = name.rpartition(":")
        if permutation:
            arguments = [self.suite / "test" / "permutations.test", permutation, f"{file}.test"]
        else:
            arguments = [self.suite / "test" / f"{file}.test"]
        output = directory / "output"
        begin = time.monotonic()
        code = self.call([self.work / "prelude.tcl", *arguments], directory, mode, limit_s, output, name in LOW_LOCK_PAGE)
        seconds = time.monotonic() - begin
        return directory, parse(output.read_text(errors="replace"), code, seconds)

    def databases(self, directory, low_lock_page):
        """Every database that is left and was replicated: opened once more, restored, compared."""
        testdir = directory / "testdir"
        left = sorted(d.with_name(d.name.removesuffix("-replicated")) for d in testdir.rglob("*-replicated") if (d / "control").exists())
        left = [path for path in left if path.is_file()]
        notes = defaultdict(set)
        if (directory / "notes").exists():
            for line in (directory / "notes").read_text().splitlines():
                what, path = line.split("\t", 1)
                notes[path].add(what)
        if not left:
            return []
        output = directory / "settled"
        code = self.call([self.work / "settle.tcl", *left], directory, "ours", 60 + 30 * len(left), output)
        told = read_settled(output)
        found = []
        for path in left:
            name = str(path.relative_to(testdir))
            facts = told.get(str(path))
            if facts is None or "status" not in facts:
                found.append(Database(name, "different", f"could not be opened once more (exit code {code}): {facts}", False))
                continue
            state = next((part.removeprefix("state ") for part in facts["status"] if part.startswith("state ")), "unknown")
            # What it was stopped for is a finer word than the state.
            reason = next((part.removeprefix("reason ") for part in facts["status"] if part.startswith("reason ")), "-")
            state = reason if state in ("fenced", "failed") and reason != "-" else state
            found.append(self.compare(directory, path, name, state, facts, notes[str(path)], low_lock_page))
        return found

    def compare(self, directory, path, name, state, facts, notes, low_lock_page):
        size = path.stat().st_size
        no_database = "file is not a database" in facts.get("read", [])
        if state != "idle" and no_database:
            return Database(name, "no database to SQLite either")
        if state == "diverged" and "written" in notes:
            return Database(name, "written by other means than SQLite")
        if state != "idle":
            return Database(name, state, "; ".join(facts["status"] + sorted(notes)))
        if size == 0 and not any((directory / "bucket" / path.name).rglob("*.ltx")):
            return Database(name, "empty")
        restored = directory / "restored" / name
        restored.parent.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("REPLICATED_")}
        tool = subprocess.run(
            [str(self.options.tool), "restore", "-q", "-o", str(restored), f"file://{directory}/bucket/{path.name}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )
        if tool.returncode != 0:
            difference = f"restore failed: {tool.stdout.strip()}"
        else:
            difference = bytes_differ(path, restored)
        if difference is None:
            return Database(name, "equal")
        if tool.returncode == 0 and same_but_for_free_pages(path.read_bytes(), restored.read_bytes()):
            return Database(name, "equal but for what free pages hold")
        if no_database:
            return Database(name, "no database to SQLite either", difference)
        if low_lock_page and size > LOW_LOCK_PAGE_BYTES:
            return Database(name, "reaches a lock page that was moved", difference)
        if "written" in notes:
            return Database(name, "written by other means than SQLite", difference)
        return Database(name, "different", difference + "; " + "; ".join(facts["status"] + sorted(notes)))

    def file(self, name):
        result = Result(name)
        result.plain = self.plain(name)
        directory, result.ours = self.run(name, self.options.mode, 6 * LIMIT_S)
        result.differences = differences(result.plain, result.ours)
        if self.options.mode == "ours":
            result.databases = self.databases(directory, name in LOW_LOCK_PAGE)
            for database in result.databases:
                if database.outcome not in FINE:
                    result.differences.append((f"database:{database.name}", f"{database.outcome}: {database.detail}"))
            result.replaced = replaced(directory)
        log = directory / "extension.log"
        log = log.read_text(errors="replace").splitlines() if log.exists() else []
        for what, text in (("fault", "a fault in the extension"), ("slow-close", "closed with commits that are not in the bucket")):
            # Where the suite has deleted a database or its WAL under an open connection nothing is left to send.
            lines = [line for line in log if text in line and "No such file or directory" not in line]
            if lines:
                result.differences.append((f"extension:{what}", f"{len(lines)} times, first {lines[0]}"))
        self.tidy(directory, not result.differences)
        return result

    def plain(self, name):
        """The run to compare with; the one before, where that is asked for."""
        kept = self.options.work / "plain" / f"{name.replace(':', '-')}.pickle"
        changed = max(path.stat().st_mtime for path in (self.options.fixture, HERE / "prelude.tcl", HERE / "run.py"))
        if self.options.reuse_plain and kept.exists() and kept.stat().st_mtime > changed:
            return pickle.loads(kept.read_bytes())
        directory, run = self.run(name, "plain", LIMIT_S)
        self.tidy(directory, run.word != "fail")
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(pickle.dumps(run))
        return run

    def tidy(self, directory, fine):
        if fine and not self.options.keep:
            shutil.rmtree(directory)


def replaced(directory):
    notes = directory / "notes"
    return sum(line.startswith("replaced\t") for line in notes.read_text().splitlines()) if notes.exists() else 0


def parse(output, code, seconds):
    """What testfixture says of its cases."""
    begun = CASE.findall(output)
    seen = Counter(name for name, _ in begun)
    failures = FAILURES.search(output)
    failed = Counter(failures.group(1).split()) if failures else Counter()
    troubles = []
    total = TOTAL.search(output)
    if code is None:
        troubles.append("time limit")
    elif code < 0:
        troubles.append(f"killed by signal {-code}")
    if not total:
        troubles.append("ended before its end")
        # Without the summary there is no list of failures: what began and did not pass.
        failed = seen - Counter(name for name, ok in begun if ok)
    if LEFT_OPEN.search(output):
        troubles.append("files left open")
    if UNFREED.search(output):
        troubles.append("unfreed memory")
    return Run(seconds, seen - failed, failed, troubles, output)


def differences(plain, ours):
    found = []
    for case in sorted((ours.failed - plain.failed) | (plain.failed - ours.failed)):
        before, after = ("fails" if case in run.failed else "passes" if case in run.passed else "does not run" for run in (plain, ours))
        found.append((case, f"{before} without, {after} with the extension: {excerpt(ours.output if case in ours.failed else plain.output, case)}"))
    known = {case for case, _ in found}
    before, after = plain.passed + plain.failed, ours.passed + ours.failed
    loops = {loop(case) for case in before} & {loop(case) for case in after}
    for what, more, less in (("without", before, after), ("with", after, before)):
        for case in sorted(set(more - less) - known):
            # One more round of a loop is something else than a case that is not run.
            found.append((f"{'round' if loop(case) in loops else 'case'}:{case}", f"runs only {what} the extension"))
    for trouble in sorted(set(ours.troubles) ^ set(plain.troubles)):
        tail = " | ".join(ours.output.strip().splitlines()[-3:])[-300:]
        found.append((trouble.replace(" ", "-"), f"only {'with' if trouble in ours.troubles else 'without'} the extension: {tail}"))
    return found


def loop(case):
    """The name of a case without its last number: the same for all rounds of a loop that counts there."""
    return re.sub(r"[0-9]+$", "", case)


def excerpt(output, case):
    """The lines that tell of a failure."""
    lines = [line for line in output.splitlines() if line.startswith(f"! {case} ")]
    if not lines:
        at = output.find(f"{case}...\nError: ")
        lines = output[at:].splitlines()[1:2] if at >= 0 else []
    return " / ".join(line[:200] for line in lines[:2])


def read_settled(output):
    told, facts = {}, None
    for line in output.read_text(errors="replace").splitlines():
        key, _, value = line.partition("\t")
        if key == "database":
            facts = told[value] = {}
        elif facts is not None:
            facts[key] = value.split("\t")[1:]
    return told


def bytes_differ(path, restored):
    """None where both are the same database, else where they differ first."""
    one, other = path.read_bytes(), restored.read_bytes()
    # The last page may be there in part: SQLite reads zeros behind it.
    one += bytes(-len(one) % page_bytes(one))
    # A file may be longer than its database: then the header says where that ends, if its two counters agree.
    if len(one) > len(other) and one[24:28] == one[92:96] and int.from_bytes(one[28:32], "big") * page_bytes(one) == len(other):
        one = one[: len(other)]
    if one == other:
        return None
    at = next((i for i, (x, y) in enumerate(zip(one, other)) if x != y), min(len(one), len(other)))
    return f"byte {at} differs, sizes {len(one)} and (restored) {len(other)}"


def same_but_for_free_pages(one, other):
    """What a free page holds means nothing, and SQLite does not put it back where it rolls back. Where the list of free pages is kept counts."""
    size = page_bytes(one)
    if len(one) != len(other) or len(one) % size:
        return False
    numbers = [number for number in range(1, len(one) // size + 1) if one[(number - 1) * size : number * size] != other[(number - 1) * size : number * size]]
    return set(numbers) <= free_leaves(one, size)


def free_leaves(database, size):
    word = lambda at: int.from_bytes(database[at : at + 4], "big")
    leaves, trunks, trunk = set(), set(), word(32)
    while trunk and trunk not in trunks and trunk * size <= len(database):
        trunks.add(trunk)
        at = (trunk - 1) * size
        leaves |= {word(at + 8 + 4 * index) for index in range(min(word(at + 4), size // 4 - 2))}
        trunk = word(at)
    return leaves - trunks


def page_bytes(database):
    size = int.from_bytes(database[16:18], "big")
    return 65536 if size == 1 else max(size, 512)


def report(results, expected, options, seconds, out):
    unexplained = 0
    explained = defaultdict(list)
    print(f"{'file':28}{'plain':>7}{'cases':>8}{'s':>7}{options.mode:>9}{'cases':>8}{'s':>7}  databases", file=out)
    for result in sorted(results, key=lambda r: r.name):
        databases = Counter(d.outcome for d in result.databases)
        text = ", ".join(f"{n} {outcome}" for outcome, n in sorted(databases.items()))
        p, o = result.plain, result.ours
        print(f"{result.name:28}{p.word:>7}{p.cases:>8}{p.seconds:>7.1f}{o.word:>9}{o.cases:>8}{o.seconds:>7.1f}  {text}", file=out)
    print("\nDifferences that are not in expected.txt:", file=out)
    for result in sorted(results, key=lambda r: r.name):
        for case, what in result.differences:
            reason = expected.reason(result.name, case)
            if reason is None:
                unexplained += 1
                print(f"  {result.name} {case}: {what}", file=out)
            else:
                explained[reason].append(f"{result.name} {case}")
    if not unexplained:
        print("  none", file=out)
    print("\nDifferences that are expected, by reason:", file=out)
    for reason, cases in sorted(explained.items()):
        print(f"  {len(cases):5}  {reason}\n         {', '.join(cases[:8])}{' ...' if len(cases) > 8 else ''}", file=out)
    for file, case, reason, number in expected.unseen([r.name for r in results]):
        print(f"  not seen: expected.txt:{number}: {file} {case} {reason}", file=out)
    words = Counter((r.plain.word, r.ours.word) for r in results)
    databases = Counter(d.outcome for r in results for d in r.databases)
    print(f"\n{len(results)} files in {seconds:.0f} s: " + ", ".join(f"{n} {p} without / {o} with" for (p, o), n in sorted(words.items())), file=out)
    print(f"cases: {sum(r.plain.cases for r in results)} without, {sum(r.ours.cases for r in results)} with the extension", file=out)
    print(f"time: {sum(r.plain.seconds for r in results):.0f} s without, {sum(r.ours.seconds for r in results):.0f} s with the extension", file=out)
    print("databases: " + (", ".join(f"{n} {outcome}" for outcome, n in databases.most_common()) or "none"), file=out)
    if options.mode == "ours":
        print(f"not compared: {sum(r.replaced for r in results)} times a database was deleted or replaced by the suite before the end of its file", file=out)
        bare = sorted(r.name for r in results if r.ours.cases and not any(d.outcome.startswith("equal") for d in r.databases))
        print(f"files that left no database to compare: {len(bare)}{': ' + ' '.join(bare) if bare else ''}", file=out)
    print(f"differences: {unexplained} unexplained, {sum(map(len, explained.values()))} expected", file=out)
    return unexplained == 0 and (options.mode != "ours" or databases["equal"] > 0)


def table(expected):
    """expected.txt for docs/testing.md: a row for each reason, in the order of the file."""
    where = defaultdict(list)
    for file, case, reason, _ in expected.lines:
        where[reason].append(f"`{file}` `{case}`")
    return "".join(["| where | why |\n|---|---|\n", *(f"| {', '.join(places)} | {reason} |\n" for reason, places in where.items())])


def shortened(text, most_lines=6):
    """The report without its table, and with few lines of each file."""
    lines, of_file = [], Counter()
    for line in text[text.index("\nDifferences that are not") :].splitlines():
        file = line.split()[0] if line.startswith("  ") and line.split() else ""
        of_file[file] += 1
        if not file or of_file[file] <= most_lines:
            lines.append(line[:400])
        elif of_file[file] == most_lines + 1:
            lines.append(f"  {file} ... more in the report")
    return "\n".join(lines)


def chosen(options):
    """The files to run: patterns of a list, or names."""
    there = {path.stem for path in (options.source / "test").glob("*.test")}
    names, patterns = [], options.names
    if not patterns:
        patterns = [line.split("#")[0].strip() for line in options.list.read_text().splitlines()]
    for pattern in filter(None, patterns):
        if pattern.startswith("-"):
            names = [name for name in names if not fnmatch.fnmatchcase(name, pattern[1:])]
            continue
        permutation, _, file = pattern.rpartition(":")
        found = sorted(fnmatch.filter(there, file))
        if not found:
            sys.exit(f"{pattern}: this suite has no such file")
        names += [f"{permutation}:{name}" if permutation else name for name in found]
    return list(dict.fromkeys(names))


def may_reach(directory):
    """Whether the user of the runs may read there."""
    if os.geteuid() != 0:
        return True
    probe = subprocess.run(["test", "-x", str(directory)], user=NOBODY, group=NOBODY, extra_groups=[], check=False)
    return probe.returncode == 0


def main():
    if sys.argv[1:] == ["--table"]:
        print(table(Expected(HERE / "expected.txt")), end="")
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fixture", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--extension", type=Path, required=True)
    parser.add_argument("--tool", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--list", type=Path, default=HERE / "all.txt")
    parser.add_argument("--mode", choices=["ours", "through"], default="ours", help="through: the extension without a replica")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", action="store_true", help="keep the directories of files without a difference, too")
    parser.add_argument("--keep-replicas", action="store_true", help="do not start a replica anew where a test replaces its database")
    parser.add_argument("--reuse-plain", action="store_true", help="compare with the last run without the extension, where there is one")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()

    names = chosen(options)
    options.work.mkdir(parents=True, exist_ok=True)
    parent = options.work if may_reach(options.work) else Path("/var/tmp")
    work = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    work.chmod(0o755)
    runner = Runner(options, work)
    runner.prepare()
    expected = Expected(HERE / "expected.txt")
    begin = time.monotonic()
    results = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        try:
            futures = [pool.submit(runner.file, name) for name in names]
            for future in concurrent.futures.as_completed(futures):
                result = future.result()
                results.append(result)
                unexplained = sum(expected.reason(result.name, case) is None for case, _ in result.differences)
                mark = f"{unexplained} DIFFERENCES" if unexplained else "as expected" if result.differences else "equal"
                print(f"[{len(results)}/{len(names)}] {result.name}: {result.plain.word}, {result.plain.seconds:.1f} s / {result.ours.word}, {result.ours.seconds:.1f} s: {mark}", flush=True)
                with open(work / "differences.txt", "a") as out:
                    for case, what in result.differences:
                        print(f"{result.name} {case}: {what}", file=out)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise
    seconds = time.monotonic() - begin
    path = options.work / "report.txt"
    with open(path, "w") as out:
        fine = report(results, expected, options, seconds, out)
    print(shortened(path.read_text()))
    print(f"the whole report: {path}\nthe directories of the runs: {work}")
    if fine and not options.keep:
        shutil.rmtree(work)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
