"""The text of `rwkvflow engine diff`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkvflow.app import engine_diff
from rwkvflow.base.errors import StoreError

FACTS = {
    "target": "x86_64-linux-gnu.2.17",
    "toolchain": "zig",
    "compiler": "Clang 22",
    "cmake": "4.4.4",
    "rules": [
        {"name": "native-baseline", "matches": 6, "shipped": True},
        {"name": "idle", "matches": 0, "shipped": True},
        {"name": "mine", "matches": 1, "shipped": False},
    ],
}


def test_rules_then_the_diff(tmp_path: Path) -> None:
    (tmp_path / "build.json").write_text(json.dumps(FACTS))
    (tmp_path / "patch.diff").write_text("--- a/x\n+++ b/x\n")
    assert engine_diff.render(*engine_diff.read(tmp_path)) == (
        "# engine for x86_64-linux-gnu.2.17, toolchain zig: Clang 22, CMake 4.4.4\n"
        "# native-baseline  6 matches (shipped)\n"
        "# mine             1 match (recipe)\n"
        "--- a/x\n+++ b/x\n"
    )


def test_nothing_to_patch() -> None:
    assert "no rule matched" in engine_diff.render(FACTS | {"rules": []}, "")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_no_engine(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "build.json").write_text(content)
        (tmp_path / "patch.diff").write_text("")
    with pytest.raises(StoreError):
        engine_diff.read(tmp_path)
