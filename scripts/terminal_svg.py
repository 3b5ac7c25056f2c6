"""Runs a command in a terminal of its own and draws what was on the screen at its end, as SVG.

    python scripts/terminal_svg.py --output docs/images/run.svg -- .venv/bin/rwkvflow run recipes/demo.yaml

Nothing is made up: the command runs for real, and its own escape sequences are carried out. Lines longer than the
screen is wide are cut and end in "…". `--shown` is what stands after the prompt instead of the whole command.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import itertools
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import rich._export_format as export_format
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROWS = 60
SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]|\x1b[=>]")
Cell = tuple[str, str]  # a character and the SGR parameters that it was written with


class Screen:
    """As much of a terminal as rich's live display asks for; lines never wrap and never scroll away."""

    def __init__(self) -> None:
        self.lines: list[list[Cell]] = [[]]
        self.row = self.column = 0
        self.style = ""

    def feed(self, text: str) -> None:
        """Carry out what a program wrote."""
        at = 0
        while at < len(text):
            if found := SEQUENCE.match(text, at):
                self._control(found[1] or "", found[2] or "")
                at = found.end()
                continue
            self._character(text[at])
            at += 1

    def ansi(self, width: int) -> str:
        """What is on the screen, as text with colours."""
        lines = ["".join(self._cut(line, width)) for line in self.lines]
        return "\n".join(lines).rstrip("\n")

    def _cut(self, line: list[Cell], width: int) -> list[str]:
        cells = [*line[: width - 1], ("…", line[width - 1][1])] if len(line) > width else line
        runs = itertools.groupby(cells, key=lambda cell: cell[1])
        return [f"\x1b[0;{style}m{''.join(character for character, _ in run)}" for style, run in runs]

    def _character(self, character: str) -> None:
        if character == "\n":
            self.row += 1
            self.column = 0
            while len(self.lines) <= self.row:
                self.lines.append([])
        elif character == "\r":
            self.column = 0
        elif character >= " ":
            line = self.lines[self.row]
            line.extend([(" ", "")] * (self.column - len(line)))
            line[self.column : self.column + 1] = [(character, self.style)]
            self.column += 1

    def _control(self, parameters: str, command: str) -> None:
        number = int(parameters) if parameters.isdigit() else 0
        if command == "m":
            kept = parameters.strip("0;") if parameters.startswith("0;") else parameters
            self.style = "" if parameters in ("", "0") else ";".join(filter(None, (self.style, kept)))
        elif command == "A":
            self.row = max(0, self.row - max(1, number))
        elif command == "K":
            line = self.lines[self.row]
            del line[0 if number == 2 else self.column :]


def record(argv: list[str], columns: int) -> tuple[str, int]:
    """All that a command writes to a terminal, and its exit code."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(columns), "LINES": str(ROWS)}
    process = subprocess.Popen(argv, stdin=follower, stdout=follower, stderr=follower, env=environment, close_fds=True)
    os.close(follower)
    output = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # Linux says so when the last one that had the terminal open is gone
            break
        if not data:
            break
        output += data
    os.close(leader)
    return output.decode("utf-8", errors="replace"), process.wait()


def svg(text: str, columns: int, title: str) -> str:
    """The picture. Its fonts are those of the reader: rich's own are fetched from the network."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(text), soft_wrap=True, highlight=False)
    template = re.sub(r"\s*@font-face \{\{.*?\}\}|<!--.*?-->", "", export_format.CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    picture = console.export_svg(title=title, theme=MONOKAI, code_format=template, unique_id="run")
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


def main() -> int:
    """Exit code of the command; a command that failed is drawn as well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--columns", type=int, default=112)
    parser.add_argument("--title", default="rwkvflow")
    parser.add_argument("--shown", help="the command as the picture shows it")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    written, code = record(options.command, options.columns)
    screen = Screen()
    screen.feed(f"\x1b[1m$ {options.shown or shlex.join(options.command)}\x1b[0m\n{written}")
    options.output.write_text(svg(screen.ansi(options.columns), options.columns, options.title), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
