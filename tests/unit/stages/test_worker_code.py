"""What can change an artifact or a verdict is in the digest of the code that makes it."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rwkvflow.base.shipped import PACKAGE
from rwkvflow.stages import blueprint
from rwkvflow.stages.blueprint import ENGINE_CODE, Blueprint


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rwkvflow"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def engine_files(paths: set[Path]) -> set[Path]:
    """The engine's modules that these import, with the folder's own, which is imported before any of them."""
    found = {PACKAGE / "engine" / "__init__.py"}
    for path in paths:
        for name in imported(path):
            parts = name.split(".")
            if parts[:2] == ["rwkvflow", "engine"] and len(parts) > 2:
                found.add(PACKAGE / "engine" / f"{parts[2]}.py")
    return {path for path in found if path.is_file()}


def test_the_engines_modules_that_the_worker_imports_are_listed() -> None:
    found: set[Path] = set()
    seen = set((PACKAGE / "worker").rglob("*.py"))
    while new := engine_files(seen) - found:
        found |= new
        seen = new
    assert sorted(path.name for path in found) == sorted(ENGINE_CODE)


@pytest.mark.parametrize("name", [*(f"engine/{name}" for name in ENGINE_CODE), "worker/data/smoke.txt"])
def test_a_change_of_it_is_another_digest(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest() -> str:
        place: Any = SimpleNamespace(own_worker=Blueprint.own_worker.func(None), format_packages=())  # type: ignore[attr-defined]
        found: str = Blueprint.worker.func(place).digest  # type: ignore[attr-defined]
        return found

    before = digest()
    for folder in ("worker", "engine"):
        shutil.copytree(PACKAGE / folder, tmp_path / folder, ignore=shutil.ignore_patterns("src", "__pycache__"))
    monkeypatch.setattr(blueprint, "PACKAGE", tmp_path)
    assert digest() == before
    (tmp_path / name).write_text((tmp_path / name).read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    assert digest() != before
