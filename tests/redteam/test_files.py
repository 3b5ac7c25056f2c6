"""A checkpoint that does its worst when somebody looks at it: nothing runs, and nothing reaches the terminal raw."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import checkpoints

ROOT = Path(__file__).resolve().parents[2]
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
NAME = "blocks.0.\x1b]0;owned\x07\x1b[2J\u202e\x9b.weight"


class Runs:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def rwkvflow(*words: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
    command = [sys.executable, "-m", "rwkvflow", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("words", [("inspect",), ("inspect", "--tensors"), ("inspect", "--json")], ids=" ".join)
def test_text_in_a_model_file_is_spelt_out(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = checkpoints.make(tmp_path / "evil\x1b[2J.safetensors", version="7", vocab=256)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size]) | {"__metadata__": {NAME: NAME, "title": NAME}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    done = rwkvflow(*words, path, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not RAW.search(done.stdout + done.stderr)
    assert re.search(r"\\x1b\]0;owned|\\u001b\]0;owned", done.stdout)


def test_names_of_tensors_that_are_none_are_spelt_out(tmp_path: Path) -> None:
    entries = checkpoints.entries("7", vocab=256)
    entries.append(type(entries[0])(**{**vars(entries[0]), "name": NAME}))
    checkpoints.write_pth(tmp_path / "evil.pth", entries)
    done = rwkvflow("inspect", tmp_path / "evil.pth", home=tmp_path)
    assert "Traceback" not in done.stderr
    assert not RAW.search(done.stdout + done.stderr)
    assert "\\x1b]0;owned" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_a_pickle_runs_nothing(tmp_path: Path, command: str) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "evil.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({NAME: Runs(canary)}, protocol=2))
        archive.writestr("archive/version", "3")
    words = (path,) if command == "inspect" else (path, tmp_path / "out.bin", "--to", "ggml-f16")
    done = rwkvflow(command, *words, home=tmp_path)
    assert done.returncode not in (0, -11)
    assert "Traceback" not in done.stderr
    assert not RAW.search(done.stdout + done.stderr)
    assert not canary.exists()
