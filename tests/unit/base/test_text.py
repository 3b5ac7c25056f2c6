"""Text from outside, wherever it is shown; lines in bounds; folders of any depth removed."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
import time
import tty
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rwkvflow.base.events import Notice, RunFinished, RunStarted, StepFinished, StepLog, StepProgress, StepStarted
from rwkvflow.base.files import remove
from rwkvflow.base.lines import LONGEST, LineSplitter
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.base.text import json_shown, shown, shown_line, yaml_shown
from rwkvflow.cli.models import write
from rwkvflow.display.inspect import describe_lines
from rwkvflow.display.live import LiveDisplay
from rwkvflow.display.plain import PlainDisplay
from rwkvflow.execute.log_file import LogFile
from rwkvflow.release.model_card.front_matter import yaml_text
from rwkvflow.worker.protocol import Signer

BAD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = "\x1b[2J\x1b]0;title\x07 \x9b31m \u202eevil\u2066 \x7f \r \b \ud800 \x00 \u2028"
TEXTS = st.text(st.characters(exclude_categories=()), max_size=40) | st.just(HOSTILE)


@given(TEXTS)
def test_nothing_that_moves_a_cursor_is_left(text: str) -> None:
    found = shown(text)
    assert not BAD.search(found)
    found.encode()
    assert "\n" not in shown_line(text)
    assert shown(found) == found


@given(TEXTS)
def test_json_says_the_same(text: str) -> None:
    line = json_shown(json.dumps({"text": text}, ensure_ascii=False))
    assert not BAD.search(line)
    line.encode()
    assert json.loads(line)["text"] == json.loads(json.dumps(text))


def test_plain_text_of_every_script_stays() -> None:
    text = "Grüße, 世界 — مرحبا\tשלום 👩\u200d🔬 ‘“”’\n"
    assert shown(text) == text


EVENTS = [
    RunStarted(HOSTILE, "host", HOSTILE, 1),
    StepStarted("a/" + HOSTILE, "smoke", HOSTILE),
    StepProgress("a/" + HOSTILE, 1, 2, "", HOSTILE),
    StepLog("a/" + HOSTILE, HOSTILE),
    StepFinished("a/" + HOSTILE, "smoke", "done", 1.0, "", {}, {"continuation": HOSTILE, "to": HOSTILE, HOSTILE: "x"}),
    StepFinished("b", "smoke", "failed", 1.0, HOSTILE),
    Notice(HOSTILE, "warning"),
    RunFinished(1, 0, 0, 0, 1.0, (HOSTILE,)),
]


def test_displays_show_it_spelt_out() -> None:
    plain, live = io.StringIO(), io.StringIO()
    display = PlainDisplay(plain, verbose=True)
    bars = LiveDisplay(Console(file=live, force_terminal=False, width=200), verbose=True)
    for event in EVENTS:
        display(event)
        bars(event)
        assert not BAD.search(event.to_json())
    bars.close()
    for stream in (plain, live):
        text = stream.getvalue()
        assert "\\x1b[2J" in text
        assert "\\u202e" in text
        assert not BAD.search(text)


def test_a_model_files_names_are_spelt_out() -> None:
    description = {
        "file": HOSTILE, "format": "pth", "bytes": 1, "parameters": 1, "problem": HOSTILE, "types": {},
        "architecture": {"version": HOSTILE, "extra": [HOSTILE]}, "metadata": {HOSTILE: HOSTILE},
        "tensors": [{"name": HOSTILE, "dtype": "f32", "shape": [1], "bytes": 4}],
    }  # fmt: skip
    lines = list(describe_lines(description, tensors=True))
    assert len(lines) > 5
    assert not any(BAD.search(line) for line in lines)


def test_a_log_has_a_bound_and_says_so(tmp_path: Path) -> None:
    for limits in ({"most_lines": 10}, {"most_bytes": 1000}):
        file = io.StringIO()
        log = LogFile(file, **limits)
        kept = [log.keep(f"{number} \x1b[2J " + "x" * 100) for number in range(50)]
        text = file.getvalue()
        assert 0 < sum(kept) <= 10
        assert text.count("the rest is left out") == 1
        assert len(text) < 2500
        assert "\x1b" not in text


def test_lines_without_end_cost_time_that_is_linear() -> None:
    seen: list[int] = []
    splitter = LineSplitter(lambda line: seen.append(len(line)))
    start = time.monotonic()
    for _ in range(4000):
        splitter.feed(b"x" * (1 << 14))
    splitter.close()
    assert max(seen) <= LONGEST
    assert sum(seen) == 4000 << 14
    assert time.monotonic() - start < 20, "64 MB"


def test_a_folder_of_any_depth_is_removed_and_no_link_followed(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    (keep / "inner").mkdir(parents=True)
    (keep / "file").write_text("x")
    keep.chmod(0o500)
    top = tmp_path / "top"
    (top / ".removing-x" / "y").mkdir(parents=True)
    (top / "link").symlink_to(keep)
    (top / "file").write_text("x")
    handle = os.open(top, os.O_RDONLY)
    for number in range(3000):
        os.mkdir("d", dir_fd=handle)
        os.symlink(keep, "link2", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        if number % 3 == 0:
            os.fchmod(handle, 0o500)
        os.close(handle)
        handle = inner
    os.close(handle)
    remove(top)
    assert not top.exists()
    assert (keep / "file").read_text() == "x"
    assert keep.stat().st_mode & 0o777 == 0o500
    remove(tmp_path / "nothing")
    remove(keep)
    assert not keep.exists()


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=5), st.integers(0, 400)
)
def test_a_signed_line_is_a_message_once_and_in_its_place(messages: list[dict[str, str]], bit: int) -> None:
    ours, theirs, forger = Signer(b"k" * 32), Signer(b"k" * 32), Signer(b"f" * 32)
    for message in messages:
        line = ours.sign(message)
        assert "\n" not in line
        assert theirs.verify(forger.sign(message)) is None
        changed = line[: bit % len(line)] + chr(ord(line[bit % len(line)]) ^ 1) + line[bit % len(line) + 1 :]
        assert theirs.verify(changed) is None
        assert theirs.verify(line) == message
        assert theirs.verify(line) is None, "no line counts twice"


@pytest.mark.parametrize(
    "line", ["", "::rwkvflow", "::rwkvflow ", "::rwkvflow 0", "::rwkvflow 0 é {}", "::rwkvflow 0  {}"]
)
def test_what_is_no_signed_line_is_log(line: str) -> None:
    assert Signer(b"k" * 32).verify(line) is None


@given(st.text())
def test_yaml_says_the_same_without_control_sequences(text: str) -> None:
    found = yaml_text({"key": text})
    assert shown(found) == found
    assert yaml.safe_load(found) == {"key": text}
    assert yaml_shown(found) == found


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_model_writes_reaches_no_terminal_raw(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """`generate` and `chat` write token by token; a program that reads them gets the text as it is."""
    pieces = ["a\tb\n", "\x1b", "[2J", "\x9b31m", "\u202eevil", "\r\x07"]
    outer, inner = pty.openpty() if terminal else os.pipe()
    if terminal:
        tty.setraw(inner)
    with os.fdopen(inner, "w", encoding="utf-8", newline="") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        for piece in pieces:
            write(piece)
        write("END")
        monkeypatch.undo()
        data = b""
        while not data.endswith(b"END"):
            data += os.read(outer, 4096)
    os.close(outer)
    found = data.decode().removesuffix("END")
    assert found == (shown("".join(pieces)) if terminal else "".join(pieces))
    if terminal:
        assert found.startswith("a\tb\n\\x1b[2J")
        assert "\x1b" not in found


def test_everything_that_a_model_writes_goes_one_way() -> None:
    """No other place of the command line may write pieces of an answer."""
    for path in sorted((PACKAGE / "cli").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "sys.stdout.write" not in text or path.name == "models.py", path.name
