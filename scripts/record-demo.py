#!/usr/bin/env python3
"""Records a run of the demo as docs/demo.svg: what a terminal shows, when it shows it.

usage: record-demo.py [PROGRAM]      after `make demo`; PROGRAM is target/release/examples/demo unless it is named

The program runs under a terminal of its own (pty). Its output becomes text in an SVG that plays once, in the run's own time; where
animations are off, or not understood, it shows the end. Nothing but the standard library.
"""

import fcntl
import os
import pathlib
import pty
import re
import struct
import sys
import termios
import time
from html import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs/demo.svg"
COLUMNS, ROWS = 118, 40
# A character's width and a line's height, in the picture's units.
ACROSS, DOWN = 7.8, 19
PROMPT = "$ make demo"
# How long the prompt stands there before the program begins.
LEAD_S = 1.0
CLASSES = {"1": "bold", "1;36": "head", "32": "good", "0": "", "": ""}


def record(program):
    """When the program wrote what, and how it ended."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.environ["TERM"] = "xterm-256color"
        os.execv(program, [str(program)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    began, chunks = time.monotonic(), []
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux says so when the other side is closed.
            data = b""
        if not data:
            break
        chunks.append((time.monotonic() - began, data))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        sys.exit(f"record-demo.py: {program} ended with {status}:\n" + b"".join(data for _, data in chunks).decode())
    return chunks


def replay(chunks):
    """The lines that stay, with the time of each, and those that are overwritten, with their time and that of the next."""
    lines, passing, current, kind = [], [], [], ""
    shown = None  # since when the line that is being overwritten is seen
    for at, data in chunks:
        for piece in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\r\n|\r|\n|[^\x1b\r\n]+", data.decode()):
            if piece in ("\n", "\r\n"):
                lines.append((at, current))
                current = []
            elif piece == "\x1b[2K":
                if shown is not None:
                    passing[-1][1] = at
                    shown = None
                current = []
            elif piece == "\r":
                if current:
                    passing.append([at, at, len(lines), current])
                    shown, current = at, []
            elif piece.startswith("\x1b["):
                if not piece.endswith("m") or piece[2:-1] not in CLASSES:
                    sys.exit(f"record-demo.py: what is {piece!r}?")
                kind = CLASSES[piece[2:-1]]
            else:
                current.append((kind, piece))
    return lines, [line for line in passing if any(text.strip() for _, text in line[3])]


def spans(line):
    return "".join(f'<tspan class="{kind}">{escape(text)}</tspan>' if kind else escape(text) for kind, text in line)


def draw(lines, passing):
    while lines and not any(text.strip() for _, text in lines[-1][1]):
        lines.pop()
    height = 46 + DOWN * (len(lines) + 2)
    width = round(COLUMNS * ACROSS) + 40

    def text(row, content, style):
        return f'<text x="20" y="{46 + DOWN * row}" xml:space="preserve" style="{style}">{content}</text>'

    body = [text(0, f'<tspan class="good">$</tspan>{escape(PROMPT[1:])}', "")]
    body += [
        text(row + 1, spans(line), f"animation:show .01s {LEAD_S + at:.2f}s backwards")
        for row, (at, line) in enumerate(lines)
        if line
    ]
    body += [
        text(row + 1, spans(line), f"opacity:0;animation:pass {max(until - at, 0.01):.2f}s {LEAD_S + at:.2f}s")
        for at, until, row, line in passing
    ]
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="What make demo prints" font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="13">
  <!-- Made by scripts/record-demo.py of a run. -->
  <style>
    text {{ fill: #c9d1d9; white-space: pre }} .bold {{ font-weight: 700; fill: #ffffff }} .head {{ font-weight: 700; fill: #39c5cf }} .good {{ fill: #3fb950 }}
    @keyframes show {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }} @keyframes pass {{ from, to {{ opacity: 1 }} }}
    @media (prefers-reduced-motion: reduce) {{ text {{ animation: none !important }} }}
  </style>
  <rect width="{width}" height="{height}" rx="8" fill="#0d1117" stroke="#30363d"/>
  <circle cx="20" cy="17" r="5" fill="#f85149"/><circle cx="37" cy="17" r="5" fill="#d29922"/><circle cx="54" cy="17" r="5" fill="#3fb950"/>
  {chr(10).join("  " + line for line in body).strip()}
</svg>
"""


def main():
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    program = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/examples/demo").resolve()
    if not program.exists():
        sys.exit(f"record-demo.py: {program} is not there: run `make demo` first")
    PICTURE.write_text(draw(*replay(record(program))))


if __name__ == "__main__":
    main()
