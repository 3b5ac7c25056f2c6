"""Imports point down only, the worker knows nothing of the host, and start-up loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.layers import ROOMS, WORKER_ROOMS

PACKAGE = Path(__file__).resolve().parents[2] / "rwkvflow"

LAYERS = ["__main__", *(room for room, _ in ROOMS)]  # from high to low
RANK = {room: len(LAYERS) - index for index, room in enumerate(LAYERS)}
WORKER_RANK = {room: len(WORKER_ROOMS) - index for index, (room, _) in enumerate(WORKER_ROOMS)}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree_of(path)):
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


def worker_modules() -> list[Path]:
    return sorted((PACKAGE / "worker").rglob("*.py"))


def test_every_room_of_the_worker_has_its_layer() -> None:
    rooms = {path.relative_to(PACKAGE / "worker").parts[0].removesuffix(".py") for path in worker_modules()}
    assert rooms - {"__init__"} == set(WORKER_RANK)


@pytest.mark.parametrize("path", worker_modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down_inside_the_worker(path: Path) -> None:
    own = path.relative_to(PACKAGE / "worker").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    wrong = []
    for name, line in imports_of(path):
        parts = name.split(".")
        other = parts[2] if parts[:2] == ["rwkvflow", "worker"] and len(parts) > 2 else own
        if other != own and WORKER_RANK[other] >= WORKER_RANK[own]:
            wrong.append(f"{path.name}:{line} imports {name}, which is not below {own}")
    assert not wrong, "\n".join(wrong)


# ---- circles ------------------------------------------------------------------------------------------------------


def arrows(sources: dict[str, str]) -> dict[str, set[str]]:
    """What each module imports of the others, by name: wherever in its source it does."""
    found: dict[str, set[str]] = {}
    for name, source in sources.items():
        found[name] = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {item if item in sources else str(node.module) for item in full}
        found[name] &= sources.keys() - {name}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules in which each one reaches every other (Tarjan), sorted."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in number:
            visit(name)
    return sorted(found)


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and under TYPE_CHECKING count: they hide a circle, they do not break it."""
    graph = arrows({name_of(path): path.read_text(encoding="utf-8") for path in modules()})
    found = circles(graph)
    shown = [f"{name} -> {', '.join(sorted(graph[name] & set(group)))}" for group in found for name in group]
    assert not found, "\n".join(shown)


def test_a_circle_is_found_wherever_it_hides() -> None:
    sources = {
        "a": "from p import b\n",
        "p.b": "def f():\n    import c\n",
        "c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import x\n",
        "d": "import a\n",
        "p": "",
    }
    assert circles(arrows(sources)) == [["a", "c", "p.b"]]
    assert circles(arrows(sources | {"c": ""})) == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_no_folder_holds_many_modules() -> None:
    """A folder with more of them holds two trades or three: group them."""
    many = {}
    for folder in sorted({path.parent for path in modules()}):
        found = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(found) > 15:
            many[folder.relative_to(PACKAGE).as_posix()] = len(found)
    assert not many


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
