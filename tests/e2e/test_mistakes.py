"""Mistakes that people make, each with what it says, the remedy and the exit code; as a user would, from a shell.

The hub is a stand-in with a repository `owner/model`, and `owner/closed` that wants a token.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine import librwkv
from tests.standin import StandIn

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "demo" / "rwkv7-demo.pth"
OLD = ROOT / "recipes" / "demo" / "rwkv4-demo.pth"
HUB = "https://huggingface.co/owner/model"
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
    environment: tuple[tuple[str, str], ...] = ()
    docker: bool = False  # an engine has to answer
    full: bool = False  # OUT is below `small/`, a file system of 1 MB


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
        "a checkpoint as a LoRA",
        ("convert", "m.pth", "o", "--format", "ggml-f16", "--lora", "m.pth"),
        ("m.pth: no LoRA", "lora_A"),
        1,
    ),
    Mistake("an unknown shell", ("completion", "tcsh"), ("tcsh", "bash"), 2),
    Mistake(
        "version 4 as GGUF",
        ("convert", "old.pth", "out.gguf", "--format", "gguf-f16"),
        ("old.pth is version 4, which gguf-f16 cannot hold", "these can:", "ggml-*"),
        2,
    ),
    Mistake(
        "version 4 as GGUF in a recipe",
        ("validate", "r.yaml"),
        ("r.yaml:3:22: formats[1]", "m is version 4, which gguf-f16 cannot hold", "ggml-*", "exclude"),
        2,
        RECIPE.replace("ggml-q5_1", "ggml-q5_1, gguf-f16").replace("MODEL", "old.pth"),
    ),
    Mistake(
        "a missing checkpoint of a recipe",
        ("validate", "r.yaml"),
        ("r.yaml:2:28: models[0].source", "no file n.pth", "did you mean 'm.pth'?"),
        2,
        RECIPE.replace("MODEL", "n.pth"),
    ),
    Mistake(
        "a page as a recipe's source",
        ("validate", "r.yaml"),
        ("r.yaml:2:28: models[0].source", "is a page", "write hf://owner/model/m.pth"),
        2,
        RECIPE.replace("MODEL", f"'{HUB}/blob/main/m.pth'"),
    ),
    Mistake("a missing recipe", ("run", "q.yaml"), ("no file q.yaml", "did you mean r.yaml?"), 2),
    Mistake("a folder as recipe", ("plan", "."), (". is a folder", "r.yaml"), 2),
    Mistake(
        "a recipe as checkpoint", ("convert", "r.yaml", "o.bin", "--format", "ggml-f16"), ("is a recipe", "run"), 2
    ),
    Mistake("init of a recipe", ("init", "r.yaml"), ("r.yaml is a recipe", "rwkvflow run r.yaml"), 2),
    Mistake(
        "a folder of checkpoints",
        ("convert", "several", "out", "--format", "ggml-f16"),
        ("several: a folder of checkpoints", "a.pth, b.pth"),
        1,
    ),
    Mistake("a wrong case", ("inspect", "hf://owner/model/M.pth"), ("no file 'M.pth'", "did you mean 'm.pth'?"), 7),
    Mistake(
        "a wrong case of convert",
        ("convert", "hf://owner/model/M.PTH", "o.bin", "--format", "ggml-f16"),
        ("'M.PTH'", "did you mean 'm.pth'?"),
        7,
    ),
    Mistake("a wrong repository", ("init", "owner/modle"), ("no repository owner/modle", "check the name"), 7),
    Mistake(
        "a private repository",
        ("convert", "hf://owner/closed/m.pth", "o.bin", "--format", "ggml-f16"),
        ("owner/closed", "private", "HF_TOKEN"),
        7,
    ),
    Mistake(
        "a repository instead of a file",
        ("convert", HUB, "o.bin", "--format", "ggml-f16"),
        ("is a repository, not a file", "hf://owner/model/m.pth"),
        2,
    ),
    Mistake(
        "a page of a file that is not there", ("inspect", f"{HUB}/blob/main/n.pth"), ("no file 'n.pth'", "m.pth"), 7
    ),
    Mistake(
        "no space",
        ("convert", "m.pth", "small/o.bin", "--format", "ggml-f32"),
        ("small/o.bin: the artifacts need 3.70 MB", "1.05 MB are free", "free some"),
        8,
        full=True,
    ),
    Mistake(
        "a name that is too long",
        ("convert", "m.pth", "x" * 300 + ".bin", "--format", "ggml-f32"),
        ("File name too long", "choose a shorter name"),
        2,
    ),
    Mistake(
        "no Docker",
        ("run", "r.yaml", "--sandbox", "docker"),
        ("no Docker engine answers at unix:///nowhere", "--sandbox host"),
        4,
        environment=(("DOCKER_HOST", "unix:///nowhere"),),
    ),
    Mistake(
        "torch and a Python that has none",
        ("lock", "r.yaml", "--sandbox", "host"),
        ("no wheel of torch 1.13.1 for Python 3.13", "torch 1.13.1 has wheels for Python", "go together"),
        3,
        RECIPE + "image: {python: '3.13', torch: '1.13.1'}\n",
    ),
    Mistake(
        "the Python of the base",
        ("lock", "r.yaml", "--sandbox", "docker"),
        ("r.yaml:4:17: image.python", "rwkvflow-base:trixie has Python 3.13, not 3.11", "python: '3.13'", "bookworm"),
        2,
        RECIPE + "image: {python: '3.11', base: 'rwkvflow-base:trixie'}\n",
        docker=True,
    ),
    Mistake(
        "--only of a part",
        ("matrix", "r.yaml", "--only", "ggml-q5_1"),
        ("no artifact", "'ggml-q5_1'", "did you mean '*/ggml-q5_1@*'?", "rwkvflow matrix"),
        2,
    ),
    Mistake("a step's name", ("explain", "smok", "r.yaml"), ("no step smok", "smoke/m/ggml-q5_1"), 2),
    Mistake(
        "a wrong destination",
        ("validate", "r.yaml"),
        ("r.yaml:4:16: publish[0].to", "'hf:/me/x' lacks the // after the scheme"),
        2,
        RECIPE + "publish: [{to: 'hf:/me/x'}]\n",
    ),
    Mistake(
        "what is there already",
        ("convert", "m.pth", "there.bin", "--format", "ggml-f16"),
        ("there.bin exists already", "--force"),
        2,
    ),
    Mistake("a recipe that is there", ("init", "m.pth", "-o", "r.yaml"), ("r.yaml exists already", "another"), 2),
    Mistake("in place", ("convert", "m.pth", "m.pth", "--format", "safetensors"), ("m.pth is what is read",), 2),
    Mistake("a folder that is no release", ("verify", "several"), ("several is no release", "publishes"), 9),
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
    (path / "old.pth").write_bytes(OLD.read_bytes())
    (path / "there.bin").write_bytes(b"mine")
    (path / "small").mkdir()
    (path / "several").mkdir()
    for name in ("a.pth", "b.pth"):
        (path / "several" / name).write_bytes(b"PK")
    assert not zipfile.is_zipfile(path / "half.pth")
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn(tmp_path_factory.mktemp("hub")) as net:
        net.hub.create("owner/model").commit({"m.pth": DEMO.read_bytes(), "README.md": b"# Model"})
        net.hub.create("owner/closed", private=True).commit({"m.pth": DEMO.read_bytes()})
        yield net


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(item, id=item.name, marks=pytest.mark.docker if item.docker else ()) for item in MISTAKES],
)
def test_a_mistake_is_told_with_place_remedy_and_code(
    mistake: Mistake, folder: Path, hub: StandIn, request: pytest.FixtureRequest
) -> None:
    (folder / "r.yaml").write_text(mistake.recipe.replace("MODEL", "m.pth"))
    words = [sys.executable, "-m", "rwkvflow", *mistake.words]
    if mistake.full:
        apart = ["unshare", "--user", "--map-root-user", "--mount"]
        if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
            pytest.skip("a small file system cannot be mounted here: no user namespaces, as in most containers")
        mount = 'mount -t tmpfs -o size=1m none small && exec "$@"'
        words = [*apart, "sh", "-c", mount, "sh", *words]
    given = {"RWKVFLOW_LIBRARY": str(librwkv.with_zig(request.config) / "librwkv.so")} if mistake.full else {}
    done = subprocess.run(
        words,
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if name != "HF_TOKEN"},
            "PYTHONPATH": str(ROOT),
            "RWKVFLOW_STORE": str(folder / "store"),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": hub.endpoint,
            "NO_PROXY": "127.0.0.1,127.0.0.2",
            "COLUMNS": "200",
            **given,
            **dict(mistake.environment),
        },
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
