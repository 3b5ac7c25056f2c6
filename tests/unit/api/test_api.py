"""The public names: all there, each with a docstring, loaded only when asked for, and deprecated with a warning."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvflow import api

SOURCE = Path(api.__file__)


@pytest.mark.parametrize("name", api.PUBLIC)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    found = getattr(api, name)
    assert found.__name__ == name
    assert inspect.getdoc(found), f"{name} has no docstring"


def test_type_checkers_see_the_same_names() -> None:
    told = {
        alias.name: node.module
        for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rwkvflow.")
        for alias in node.names
    }
    assert told == dict(api.PUBLIC)


def test_another_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(AttributeError, match=r"has no models; its names are .*Model"):
        _ = api.models


def test_a_deprecated_name_works_and_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "DEPRECATED", {"Old": ("rwkvflow.base.errors", "0.3", "RwkvflowError")})
    monkeypatch.setattr("rwkvflow.base.errors.Old", int, raising=False)
    with pytest.warns(DeprecationWarning, match=r"rwkvflow\.api\.Old goes in version 0\.3; use RwkvflowError"):
        assert api.Old is int


def test_importing_it_loads_nothing() -> None:
    code = (
        "import sys, rwkvflow.api; print([n for n in sys.modules if n.startswith('rwkvflow.') and n != 'rwkvflow.api'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_file_is_described(tmp_path: Path) -> None:
    demo = Path(__file__).resolve().parents[3] / "recipes" / "demo" / "rwkv7-demo.pth"
    assert api.describe(demo)["architecture"]["version"] == "7"
