"""What version 0.1 (commit 2cd766a) made stays usable: a store, a lock, a release, the events of a run, model files.

Where something is told apart it is told with a remedy. All through the command line, whatever moves behind it.
`fixtures/v0.1/README.md` says how they were made; they are never made again by newer code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / "tests" / "fixtures" / "v0.1"
STEPS = 11  # five conversions, five smokes, a reference
OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_CONFIG_FILE": os.devnull,
    **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),
}

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(*arguments): rwkvflow in a copy of what was made, without a network."""
    shutil.copytree(MADE, tmp_path, dirs_exist_ok=True)

    def call(*arguments: str) -> Done:
        environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT), "RWKVFLOW_STORE": str(tmp_path / "store")}
        return subprocess.run(
            [sys.executable, "-m", "rwkvflow", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_store_is_listed_found_intact_and_not_collected(run: Run, tmp_path: Path) -> None:
    listed = run("cache", "ls", "--json")
    assert listed.returncode == 0, listed.stderr
    rows = json.loads(listed.stdout)
    assert len(rows) == STEPS
    assert {step for row in rows for step in row["steps"]} >= {
        "convert/tiny7/ggml-q4_k@py3.11",
        "smoke/tiny7/gguf-f16@py3.11",
        "reference/tiny7@py3.11",
    }
    assert run("cache", "verify").stdout == "all intact\n"
    assert run("cache", "gc").stdout == "0 removed, 0 B\n"
    digest = rows[0]["digest"].removeprefix("sha256:")
    flip(tmp_path / "store" / "blobs" / digest[:2] / digest)
    damaged = run("cache", "verify")
    assert damaged.returncode == 8
    assert digest in damaged.stdout


def test_of_the_release_verify_tells_what_was_made_wrongly_and_what_was_changed(run: Run, tmp_path: Path) -> None:
    done = run("verify", "release", "--json")
    assert done.returncode == 9, "for its Q4_K, which is told below"
    assert json.loads(done.stdout)["problems"] == []
    (fault,) = json.loads(done.stdout)["faults"]
    assert fault.startswith("tiny7/tiny7-Q4_K.bin: its Q4_K tensors have the numbers of rwkvflow 0.1")
    assert "Publish the release again" in fault
    assert "as it was published, and 1 of its files is wrong" in done.stderr
    flip(tmp_path / "release" / "tiny7" / "tiny7-Q4_K.bin")
    done = run("verify", "release")
    assert done.returncode == 9
    assert "tiny7-Q4_K.bin" in done.stdout + done.stderr


def test_recipe_and_lock_are_valid(run: Run) -> None:
    done = run("validate", "recipe.yaml", "recipe.lock.yaml")
    assert (done.returncode, done.stderr) == (0, "")


def test_of_the_lock_the_engine_alone_is_told_apart_and_the_remedy_keeps_the_rest(run: Run, tmp_path: Path) -> None:
    """librwkv comes with rwkvflow, so a lock names the one that was there when it was made."""
    refused = run("run", "recipe.yaml", "--sandbox", "host", "--locked")
    assert refused.returncode == 3
    problems = [line for line in refused.stderr.splitlines() if line.startswith("  ") and "remedy" not in line]
    assert problems == ["  engine: librwkv of this rwkvflow is not the one that was locked"]
    assert "remedy: run `rwkvflow lock`" in refused.stderr
    before = (tmp_path / "recipe.lock.yaml").read_text().splitlines()
    done = run("lock", "recipe.yaml", "--sandbox", "host")  # offline: nothing is resolved anew
    assert done.returncode == 0, done.stderr
    after = (tmp_path / "recipe.lock.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [old.strip().partition(" ")[0] for old, _ in changed] == ["digest:"]
    fits = run("run", "recipe.yaml", "--sandbox", "host", "--locked", "--only", "no/such@artifact")
    assert fits.returncode == 2, "the lock fits now, and the artifact is looked for"


def test_a_report_is_written_of_its_events(run: Run, tmp_path: Path) -> None:
    done = run("report", "events.jsonl", "--output", "report.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.html").read_text()
    assert "convert/tiny7/ggml-q4_k@py3.11" in text


@pytest.mark.parametrize(
    ("name", "dtype"), [("FP16.bin", "f16"), ("Q8_0.bin", "q8_0"), ("Q4_K.bin", "q4_k"), ("F16.gguf", "f16")]
)
def test_its_model_files_are_told_for_what_they_are(name: str, dtype: str, run: Run) -> None:
    done = run("inspect", f"release/tiny7/tiny7-{name}", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["problem"] is None
    assert dtype in told["types"]
    assert told["parameters"] > 86000


def test_the_fixtures_are_as_they_were_made() -> None:
    """They stand for what people have; newer code must not write into them."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(MADE).as_posix()}\n"
        for path in sorted(MADE.rglob("*"))
        if path.is_file() and path not in (MADE / "README.md", MADE / "SHA256SUMS")
    ]
    assert (MADE / "SHA256SUMS").read_text() == "".join(lines)
