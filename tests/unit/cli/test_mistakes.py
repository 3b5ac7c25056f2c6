"""Mistakes that people make, each with what it says, the remedy and the exit code; as a user would, from a shell."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "recipes" / "demo" / "rwkv7-demo.pth"
RECIPE = """name: test
models: [{name: m, source: MODEL}]
formats: [ggml-q5_1]
"""
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@dataclass(frozen=True)
class Mistake:
    """What is typed, what stands in the folder, and what must be said: words in order, and the exit code."""

    name: str
    words: tuple[str, ...]
    says: tuple[str, ...]
    code: int
    recipe: str = RECIPE


MISTAKES = (
    Mistake(
        "a wrong key",
        ("validate", "r.yaml"),
        ("r.yaml:3:1", "format", "formats"),
        2,
        RECIPE.replace("formats:", "fromats:"),
    ),
    Mistake(
        "indentation",
        ("validate", "r.yaml"),
        ("r.yaml:6:3", "indentation"),
        2,
        RECIPE + "image:\n   python: '3.11'\n  base: x\n",
    ),
    Mistake(
        "a version as a number", ("validate", "r.yaml"), ("r.yaml:4:", "quotes"), 2, RECIPE + "image: {python: 3.10}\n"
    ),
    Mistake(
        "an unknown tokenizer",
        ("validate", "r.yaml"),
        ("r.yaml:2:", "tokenizer", "world"),
        2,
        RECIPE.replace("MODEL", "m.pth, tokenizer: wrld"),
    ),
    Mistake(
        "a wanted format",
        ("validate", "r.yaml"),
        ("r.yaml:3:", "unknown format 'q4_0'", "ggml-q4_0 or gguf-q4_0"),
        2,
        RECIPE.replace("ggml-q5_1", "q4_0"),
    ),
    Mistake(
        "a wanted format of convert",
        ("convert", "m.pth", "out.bin", "--format", "q5_1"),
        ("ggml-q5_1 or gguf-q5_1",),
        2,
    ),
    Mistake(
        "a missing checkpoint",
        ("convert", "n.pth", "out.bin", "--format", "ggml-f16"),
        ("no file n.pth", "did you mean m.pth?"),
        2,
    ),
    Mistake(
        "a bare owner/repo/file",
        ("convert", "BlinkDL/rwkv-7-world/x.pth", "out", "--format", "ggml-f16"),
        ("no file BlinkDL", "did you mean hf://BlinkDL/rwkv-7-world/x.pth?"),
        2,
    ),
    Mistake(
        "a bare owner/repo in chat", ("chat", "BlinkDL/rwkv-7-world"), ("did you mean hf://BlinkDL/rwkv-7-world?",), 2
    ),
    Mistake(
        "a checkpoint as recipe", ("run", "m.pth"), ("m.pth is a checkpoint, not a recipe", "rwkvflow init m.pth"), 2
    ),
    Mistake(
        "a model file as recipe", ("run", "m.gguf"), ("m.gguf is a model file, not a recipe", "rwkvflow chat m.gguf"), 2
    ),
    Mistake("a pointer file", ("inspect", "pointer.pth"), ("pointer.pth", "git lfs pull"), 1),
    Mistake("a page instead of a file", ("inspect", "page.pth"), ("page.pth: a web page", "Check the address"), 1),
    Mistake("a truncated ZIP", ("inspect", "half.pth"), ("half.pth",), 1),
    Mistake("an unknown option", ("run", "r.yaml", "--lockd"), ("--lockd", "--locked"), 2),
    Mistake("an unknown command", ("conver",), ("conver",), 2),
    Mistake(
        "an output of another format",
        ("convert", "m.pth", "out.gguf", "--format", "ggml-f16"),
        ("out.gguf ends as another format does", ".bin"),
        2,
    ),
    Mistake(
        "a LoRA without its alpha",
        ("convert", "m.pth", "o", "--format", "ggml-f16", "--lora", "m.pth"),
        ("--alpha",),
        2,
    ),
    Mistake("an unknown shell", ("completion", "tcsh"), ("tcsh", "bash"), 2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, and with what is taken for one."""
    path = tmp_path_factory.mktemp("mistakes")
    (path / "m.pth").write_bytes(DEMO.read_bytes())
    (path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    (path / "pointer.pth").write_text(POINTER)
    (path / "page.pth").write_text("<!doctype html><title>Sign in</title>")
    (path / "half.pth").write_bytes(DEMO.read_bytes()[:5000])
    assert not zipfile.is_zipfile(path / "half.pth")
    return path


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda item: item.name)
def test_a_mistake_is_told_with_place_remedy_and_code(mistake: Mistake, folder: Path) -> None:
    (folder / "r.yaml").write_text(mistake.recipe.replace("MODEL", "m.pth"))
    done = subprocess.run(
        [sys.executable, "-m", "rwkvflow", *mistake.words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RWKVFLOW_STORE": str(folder / "store"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    told = done.stdout + done.stderr
    assert "Traceback" not in told
    at = 0
    for word in mistake.says:
        found = told.find(word, at)
        assert found >= 0, f"{word!r} is not said (in this order):\n{told}"
        at = found
    assert done.returncode == mistake.code, told
