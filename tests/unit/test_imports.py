"""Imports point down only, the worker knows nothing of the host, and start-up loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.layers import ROOMS

PACKAGE = Path(__file__).resolve().parents[2] / "rwkvflow"

LAYERS = ["__main__", *(room for room, _ in ROOMS)]  # from high to low
RANK = {room: len(LAYERS) - index for index, room in enumerate(LAYERS)}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(path: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            if node.module == "rwkvflow":
                found += [(f"rwkvflow.{alias.name}", node.lineno) for alias in node.names]
            else:
                found.append((node.module or "", node.lineno))
    return [(name, line) for name, line in found if name.split(".")[0] == "rwkvflow"]


def test_every_room_has_its_layer() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} - {"__init__"}
    assert rooms <= set(RANK), f"give {rooms - set(RANK)} a layer"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    wrong = []
    for name, line in imports_of(path):
        other = room_of(name)
        if other in ("", "__version__", own):
            continue
        if RANK[other] >= RANK[own]:
            wrong.append(f"{path.name}:{line} imports {name}, which is not below {own}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [p for p in modules() if p.relative_to(PACKAGE).parts[0] in ("worker", "engine")])
def test_the_worker_imports_only_itself_and_the_engine(path: Path) -> None:
    others = {room_of(name) for name, _ in imports_of(path)} - {"worker", "engine"}
    assert not others


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


HEAVY = ("numpy", "torch", "docker", "rich", "huggingface_hub", "httpx", "jinja2", "pydantic", "safetensors", "fsspec")


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import rwkvflow.cli", HEAVY),
        ("import rwkvflow.app.pipeline", tuple(name for name in HEAVY if name != "pydantic")),
        ("import rwkvflow.worker.formats; rwkvflow.worker.formats.FORMATS", ("numpy", "safetensors", "pydantic")),
    ],
)
def test_start_up_loads_nothing_heavy(statement: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print(' '.join(n for n in {unwanted!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
