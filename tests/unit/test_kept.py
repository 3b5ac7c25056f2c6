"""Room is made for a new run of the tests: what is quickly made again goes first, and nothing while others use it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import kept

MIB = 1 << 20


def fill(path: Path, size: int, age: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    for changed in (path, path.parent):
        os.utime(changed, (1e9 - age, 1e9 - age))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with results, two environments and a wheel under two names; a build beside it."""
    root = tmp_path / "tests"
    fill(root / "store/index/aa/aa.json", 1)
    fill(root / "store/blobs/aa/aa", 4 * MIB)
    fill(root / "store/environments/old/venv", MIB, age=9)
    fill(root / "store/environments/new/venv", MIB)
    wheel = fill(root / "store/downloads/wheels/torch.whl", MIB)
    (root / "store/trees/bb").mkdir(parents=True)
    (root / "store/trees/bb/torch.whl").hardlink_to(wheel)
    fill(root / "llama-0123/llama/lib", MIB)
    return root


def names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_nothing_goes_where_there_is_room(root: Path) -> None:
    before = names(root)
    assert kept.sweep(root, 9 * MIB) == []
    assert names(root) == before


def test_results_go_before_environments_and_those_before_builds_and_downloads(root: Path) -> None:
    assert {path.name for path in kept.sweep(root, 5 * MIB)} == {"blobs"}
    assert [path.name for path in kept.sweep(root, 3 * MIB + MIB // 2)] == ["trees", "index", "old"]
    assert names(root) == {
        "store/environments/new/venv",
        "store/downloads/wheels/torch.whl",
        "llama-0123/llama/lib",
    }
    kept.sweep(root, MIB + MIB // 2)
    assert names(root) == {"store/downloads/wheels/torch.whl"}
    kept.sweep(root, 0)
    assert names(root) == set()


def test_a_file_with_two_names_counts_once(root: Path) -> None:
    assert 8 * MIB <= kept.used(root) < 9 * MIB


def test_what_another_run_uses_stays(root: Path) -> None:
    with kept.use(root, 9 * MIB):
        before = names(root)
        with kept.use(root, 0):
            assert names(root) == before
    with kept.use(root, 0):
        assert names(root) == {"in-use.lock"}


def test_what_is_mounted_is_neither_counted_nor_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base image in the making has the machine's /proc and /dev below it."""
    dev = fill(root / "bases/.making/dev/null", 8 * MIB).parent
    monkeypatch.setattr(kept, "mounts", lambda: {str(dev)})
    assert kept.used(root) < 9 * MIB
    assert kept.sweep(root, 0)
    assert names(root) == {"bases/.making/dev/null"}


def test_mounts_are_those_of_the_machine() -> None:
    assert "/" in kept.mounts()
    assert "/proc" in kept.mounts()


def test_what_vanishes_while_it_is_counted_does_not_count(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: str) -> os.stat_result:
        if path.endswith("torch.whl"):
            raise FileNotFoundError(path)
        return lstat(path)

    lstat = os.lstat
    before = kept.used(root)
    monkeypatch.setattr(os, "lstat", gone)
    assert before - 2 * MIB < kept.used(root) <= before - MIB
