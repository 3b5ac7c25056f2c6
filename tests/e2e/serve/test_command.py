"""`rwkvflow serve` as a process: a release folder, a key, a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rwkvflow.engine.binding import Library
from rwkvflow.worker.conversion.convert import ConversionJob, convert

from .conftest import ROOT


def command(*arguments: str | Path, before: str = "") -> list[str]:
    """`rwkvflow serve`; with `before`, Python that its process runs first."""
    program = f"{before}; from rwkvflow.__main__ import main; main()"
    return [sys.executable, *(["-c", program] if before else ["-m", "rwkvflow"]), "serve", *map(str, arguments)]


@contextmanager
def serving(
    *arguments: str | Path, before: str = "", **environment: str
) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    argv = command(*arguments, "--port", "0", before=before)
    env = {**os.environ, "PYTHONUTF8": "1", **environment}
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("http://127.0.0.1:"), line + process.stderr.read()
        with httpx.Client(base_url=line.split()[0], timeout=60) as client:
            yield client, process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_release_behind_a_key_until_a_signal(models: dict[str, Path], library: Library, tmp_path: Path) -> None:
    release = tmp_path / "demo"
    release.mkdir()
    artifacts = []
    for name, path in models.items():
        (release / path.name).write_bytes(path.read_bytes())
        kind = f"ggml-{name.rpartition('-')[2]}"
        artifacts.append({"path": path.name, "format": kind, "sha256": name, "kl_divergence": 0.1})
    (release / "quality.json").write_text(json.dumps({"artifacts": artifacts[:2]}))
    (release / "quality.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    options = ("--library", library.path, "--threads", "1", "--draft", "lookup")
    with serving(release, *options, RWKVFLOW_API_KEY="secret") as (client, process):
        assert client.get("/v1/models").status_code == 401
        client.headers["authorization"] = "Bearer secret"
        listed = client.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == list(models)[:2]
        assert [model["kl_divergence"] for model in listed] == [0.1, 0.1]
        assert listed[0]["sha256"] == next(iter(models))
        assert client.get("/plot").text.startswith("<svg")
        body: dict[str, Any] = {"prompt": "Once", "max_tokens": 10_000, "stream": True, "logit_bias": {"0": -1000}}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
            process.send_signal(signal.SIGTERM)
            told = [line for line in lines if line]
        assert told[-1] == "data: [DONE]"
        assert "server_closing" in told[-2]
        assert process.wait(30) in (130, 143, -signal.SIGTERM)


def test_an_interrupt_ends_it(models: dict[str, Path], library: Library) -> None:
    with serving(models["rwkv7-demo-q4_0"], "--library", library.path) as (client, process):
        assert client.get("/health").json()["status"] == "ok"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_gguf_is_served_with_the_vocabulary_that_is_in_it(library: Library, tmp_path: Path) -> None:
    """With the figures of its release, and the text that `generate` writes."""
    source = ROOT / "recipes" / "demo" / "rwkv7-demo.pth"
    target = tmp_path / "demo" / "demo-Q8_0.gguf"
    target.parent.mkdir()
    (outcome,) = convert(source, library.path, [ConversionJob("x", "gguf-q8_0", target)])
    assert outcome.failure is None
    artifact = {"path": target.name, "format": "gguf-q8_0", "sha256": "ab", "kl_divergence": 0.2}
    (target.parent / "quality.json").write_text(json.dumps({"artifacts": [artifact]}))
    with serving(target.parent, "--library", library.path, "--threads", "1") as (client, _):
        (listed,) = client.get("/v1/models").json()["data"]
        assert (listed["id"], listed["format"], listed["kl_divergence"]) == ("demo-Q8_0", "gguf-q8_0", 0.2)
        body = {"prompt": "Once there", "max_tokens": 20, "seed": 2, "temperature": 0}
        text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    command = [
        sys.executable,
        "-m",
        "rwkvflow",
        "generate",
        str(target),
        "Once there",
        "-n",
        "20",
        "--temperature",
        "0",
    ]
    done = subprocess.run(
        [*command, "--library", str(library.path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert text
    assert done.stdout.strip() == text.strip()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["README.md"], 2, "no ggml"),
        (["docs"], 2, "holds no ggml"),
        (["MODEL", "--draft", "absent.bin"], 2, "neither lookup nor a file"),
        (["MODEL", "--draft", "README.md"], 1, "README.md"),
        (["MODEL", "--state-cache", "lots"], 2, "a size such as"),
        (["MODEL", "--api-key-file", "recipes/demo.lock.none"], 2, "no file"),
        (["MODEL", "--host", "203.0.113.7"], 2, "nothing can listen"),
    ],
)
def test_wrong_calls_say_what_is_wrong(
    arguments: list[str], code: int, words: str, models: dict[str, Path], library: Library
) -> None:
    given = [str(models["rwkv7-demo-q4_0"]) if each == "MODEL" else each for each in arguments]
    argv = command(*given, "--library", library.path)
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
