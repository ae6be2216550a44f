#!/usr/bin/env python3
"""Draws docs/performance.svg from the tables of docs/performance.md, so that the picture is of what was measured.

usage: chart.py [--print]

With --print to standard output. Nothing but the standard library; the same tables make the same bytes.
"""

import pathlib
import re
import sys
from html import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE, PICTURE = ROOT / "docs/performance.md", ROOT / "docs/performance.svg"

WIDTH, LEFT, BAR, RIGHT = 900, 300, 470, 16
STYLE = """
    .bg { fill: #ffffff } text { fill: #1f2328 } .small { font-size: 12px; fill: #57606a } .title { font-weight: 600 }
    .ours { fill: #0969da } .other { fill: #afb8c1 } .range { stroke: #1f2328; stroke-width: 1.5 } .axis { stroke: #d0d7de }
    @media (prefers-color-scheme: dark) {
      .bg { fill: #0d1117 } text { fill: #e6edf3 } .small { fill: #8b949e }
      .ours { fill: #58a6ff } .other { fill: #484f58 } .range { stroke: #e6edf3 } .axis { stroke: #30363d }
    }
  """


def rows(page, section):
    """The rows of the first table of a section, without its head."""
    _, _, text = page.partition(f"\n## {section}\n") if section else ("", "", page)
    table = []
    for line in text.splitlines():
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
        elif table or line.startswith("## "):
            break
    if len(table) < 3:
        sys.exit(f"chart.py: {PAGE}: no table in {section or 'its beginning'!r}")
    return table[2:]


def spread(text):
    """`6.18 s (6.05 to 6.72), 102 MiB` as three numbers."""
    found = re.match(r"([\d.]+)(?: s)? \(([\d.]+) to ([\d.]+)\)", text)
    if not found:
        sys.exit(f"chart.py: {PAGE}: {text!r} has no spread")
    return [float(number) for number in found.groups()]


class Chart:
    def __init__(self):
        self.parts, self.y = [], 12

    def text(self, x, y, text, kind="", anchor="start"):
        kind = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{kind} text-anchor="{anchor}">{escape(text)}</text>')

    def panel(self, title, note, legend=True):
        self.y += 22
        self.text(RIGHT, self.y, title, "title")
        self.text(RIGHT, self.y + 17, note, "small")
        if legend:
            for x, kind, name in [(WIDTH - 250, "other", "Litestream 0.5.17"), (WIDTH - 110, "ours", "replicated")]:
                self.parts.append(f'<rect x="{x - 16}" y="{self.y - 10}" width="11" height="11" class="{kind}"/>')
                self.text(x, self.y, name, "small")
        self.y += 28

    def bar(self, value, most, kind, told, range_=None):
        width = max(BAR * value / most, 1)
        self.parts.append(f'<rect x="{LEFT}" y="{self.y}" width="{width:.1f}" height="14" class="{kind}"/>')
        end = width
        if range_:
            low, high = (LEFT + BAR * bound / most for bound in range_)
            self.parts.append(f'<path class="range" d="M{low:.1f},{self.y + 7} H{high:.1f}"/>')
            end = max(width, high - LEFT)
        self.text(LEFT + end + 6, self.y + 11.5, told, "small")
        self.y += 16

    def label(self, text, lines):
        self.text(LEFT - 10, self.y + 8 * lines + 4, text, anchor="end")

    def svg(self, description):
        height = self.y + 10
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(description)}"'
            ' font-family="ui-sans-serif, system-ui, -apple-system, \'Segoe UI\', Helvetica, Arial, sans-serif" font-size="14">\n'
            f"  <!-- Made by scripts/chart.py of docs/performance.md. -->\n  <style>{STYLE}</style>\n"
            f'  <rect class="bg" width="{WIDTH}" height="{height}" rx="8"/>\n  ' + "\n  ".join(self.parts) + "\n</svg>\n"
        )


def draw(page):
    chart = Chart()

    chart.panel("Commits a second, of plain SQLite's", "single-row transactions, WAL; the line is from the lowest to the highest round", legend=False)
    for what, _, _, ratio in rows(page, None):
        if what.startswith("commits a second, "):
            median, low, high = spread(ratio)
            chart.label(what.removeprefix("commits a second, "), 1)
            chart.bar(median, 1.2, "ours", f"{100 * median:.0f} %", (low, high))
            chart.y += 6

    pairs = [("restore, " + row[0], row) for row in rows(page, "Restore") if not row[0].startswith("1 MB")]
    pairs += [("first state, " + row[0], row) for row in rows(page, "The first state")]
    most = 1.15 * max(spread(row[1])[2] for _, row in pairs)
    chart.panel("Seconds: less is better", "the same bucket, endpoint and machine, alternating; median of five rounds, and the line from the lowest to the highest")
    for name, (_, theirs, ours, *_) in pairs:
        chart.label(name.replace("increments, ", "files, "), 2)
        for kind, text in [("other", theirs), ("ours", ours)]:
            median, low, high = spread(text)
            chart.bar(median, most, kind, f"{median:.2f} s", (low, high))
        chart.y += 8

    costs = {}
    for workload, program, *_, dollars in rows(page, "Requests, and what they cost"):
        costs.setdefault(workload, {})[program] = float(dollars)
    most = 1.15 * max(max(both.values()) for both in costs.values())
    chart.panel("Dollars a month for requests: less is better", "each at its defaults, at the prices of S3 Standard in us-east-1")
    for workload, both in costs.items():
        chart.label(workload, 2)
        chart.bar(both["Litestream"], most, "other", f"${both['Litestream']:.2f}")
        chart.bar(both["replicated"], most, "ours", f"${both['replicated']:.2f}")
        chart.y += 8

    return chart.svg("Commits a second against plain SQLite; seconds to restore and to send the first state, and dollars for requests, against Litestream")


def main():
    if sys.argv[1:] not in ([], ["--print"]):
        sys.exit(__doc__)
    picture = draw(PAGE.read_text())
    if sys.argv[1:]:
        sys.stdout.write(picture)
    else:
        PICTURE.write_text(picture)


if __name__ == "__main__":
    main()
