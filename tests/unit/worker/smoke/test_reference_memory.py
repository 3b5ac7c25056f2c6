"""Weights stay in memory where there is room for them, and the answers do not show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference, memory, model
from rwkvflow.worker.smoke.questions import Questions
from tests.helpers import checkpoints

GIB = 1 << 30


def machine(root: Path, free: int | None, **cgroup: str) -> tuple[Path, Path]:
    """(/proc, /sys/fs/cgroup) of a machine with so many bytes free."""
    (root / "proc").mkdir()
    (root / "cgroup" / "memory").mkdir(parents=True)
    if free is not None:
        (root / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {free >> 10} kB\n")
    for name, text in cgroup.items():
        (root / "cgroup" / name.replace("__", "/").replace("_max", ".max").replace("_current", ".current")).write_text(
            text + "\n"
        )
    return root / "proc", root / "cgroup"


@pytest.mark.parametrize(
    ("free", "cgroup", "expected"),
    [
        (6 * GIB, {}, 3 * GIB),
        (100 * GIB, {}, memory.LARGEST),
        (100 * GIB, {"memory_max": str(4 * GIB), "memory_current": str(GIB)}, 3 * GIB // 2),
        (6 * GIB, {"memory_max": "max", "memory_current": str(GIB)}, 3 * GIB),
        (6 * GIB, {"memory_max": str(GIB), "memory_current": str(2 * GIB)}, 0),
        (None, {}, 0),
    ],
)
def test_room_is_half_of_what_is_free_here(free: int, cgroup: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert memory.room(*machine(tmp_path, free, **cgroup)) == expected


def test_this_machine_tells() -> None:
    assert 0 <= memory.room() <= memory.LARGEST


def test_a_model_that_there_is_room_for_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoints.make(tmp_path / "model.pth", version="7")
    found = {}
    for name, room in (("much", GIB), ("little", 0)):
        monkeypatch.setattr(model, "CACHE_BYTES", 0)
        monkeypatch.setattr(model, "room", lambda room=room: room)
        with open_checkpoint(path) as checkpoint:
            read: list[str] = []
            original = checkpoint.float32

            def noted(name: str, *rows: int, read: list[str] = read, original: object = original) -> object:
                read.append(name)
                return original(name, *rows)  # type: ignore[operator]

            monkeypatch.setattr(checkpoint, "float32", noted)
            text = Reference(checkpoint).greedy(Questions((), 0, ((1, 2, 3),), 5))
            found[name] = text, read.count("blocks.0.att.key.weight"), read.count("head.weight")
    assert found["much"] == (found["little"][0], 1, 1)
    assert found["little"][1:] == (5, 5)
