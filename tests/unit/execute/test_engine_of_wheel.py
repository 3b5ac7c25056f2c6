"""The engine of the wheel is taken in the place of a build that would give the same bytes, and of no other."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.hashing import text_digest, tree_digest
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.execute import actions
from rwkvflow.execute.base import Job, Made, Work
from rwkvflow.execute.engine_of_wheel import FACTS, TOOLCHAIN, same_engine
from rwkvflow.plan.step import Step, StepLimits
from rwkvflow.stages.engine import plain_request
from rwkvflow.store.store import Store
from rwkvflow.worker.build.toolchain import host_platform
from rwkvflow.worker.tasks.build_engine import request_digest

FILES = {"bin/rwkv": b"tool", "lib/librwkv.so": b"library", "patch.diff": b""}
VERSIONS = {"cmake": "4.4.4", "ninja": "1.13.2", "ziglang": "0.17.0"}
WHEELS = [
    ["cmake-4.4.4-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "0" * 64],
    ["ninja-1.13.2-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "1" * 64],
    ["ziglang-0.17.0-py3-none-manylinux_2_12_x86_64.manylinux2010_x86_64.musllinux_1_1_x86_64.whl", "2" * 64],
]


def build_step(toolchain: list[list[str]] | None = None, **params: Any) -> Step:
    wanted = {"name": "librwkv", **plain_request(host_platform()), **params}
    return Step(
        id="engine/librwkv@py",
        stage="engine",
        action="sandbox",
        command=("worker",),
        params={"task": "build-engine", "params": wanted, "job": {}, "toolchain": toolchain or WHEELS},
        inputs={},
        outputs=("engine",),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The wheel's folder, as a build of these sources and toolchain.json."""
    place = tmp_path / "shipped"
    for name, data in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    request = request_digest(plain_request(host_platform()), PACKAGE / "engine")
    files = {name: text_digest(data) for name, data in FILES.items()}
    (place / FACTS).write_text(json.dumps({"request": request, "platform": host_platform(), "files": files}))
    (place / TOOLCHAIN).write_text(json.dumps(VERSIONS))
    return place


def test_it_is_taken_for_what_would_be_built(folder: Path) -> None:
    taken = same_engine(build_step(), folder)
    assert taken == {name: folder / name for name in (*FILES, FACTS)}


def test_not_for_another_compiler_other_options_or_another_step(folder: Path) -> None:
    newer = [["ziglang-0.18.0-py3-none-any.whl", "2" * 64], *WHEELS[:2]]
    for step in (
        build_step(newer),
        build_step(WHEELS[:2]),
        build_step([["no wheel", ""]]),
        build_step(cmake={"RWKV_TOOL": False}),
        build_step(target="aarch64-linux-musl"),
        build_step(stem="libllama"),
        build_step(name="custom"),  # of the recipe's own sources
    ):
        assert same_engine(step, folder) is None
    system = build_step(toolchain=WHEELS)
    del system.params["toolchain"]  # type: ignore[attr-defined] # a dictionary here
    assert same_engine(system, folder) is None


@pytest.mark.parametrize("damage", [*FILES, FACTS, TOOLCHAIN])
def test_not_where_a_file_is_gone_or_another(damage: str, folder: Path) -> None:
    path = folder / damage
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    assert same_engine(build_step(), folder) is None
    path.unlink()
    assert same_engine(build_step(), folder) is None
    path.write_bytes(whole)
    assert same_engine(build_step(), folder) is not None


class NeverRuns:
    """A sandbox that runs nothing."""

    name = "host"
    ran = 0

    def sweep(self) -> None:
        """Nothing is left."""

    def run(self, *_: Any) -> Any:
        """Counted."""
        self.ran += 1
        raise AssertionError("built")


def carried_out(taking: bool, sandbox: NeverRuns, tmp_path: Path) -> Any:
    work = Work(tmp_path / "work", StepLimits(), threading.Event())
    work.folder.mkdir()
    action = actions.actions(Store(tmp_path / "store"), sandbox, wheels_engine=taking)["sandbox"]  # type: ignore[arg-type]
    step = build_step()
    job = Job(step, "0" * 64, None, {}, {}, lambda line: None, lambda line: None, lambda *_: None)
    return action([job], work)


def test_a_step_that_takes_it_runs_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "same_engine", lambda step: same_engine(step, folder))
    sandbox = NeverRuns()
    made = carried_out(True, sandbox, tmp_path)["engine/librwkv@py"]
    assert isinstance(made, Made)
    place = made.outputs["engine"].path
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {*FILES, FACTS}
    modes = {name: (place / name).stat().st_mode & 0o777 for name in FILES}
    assert modes == {"bin/rwkv": 0o755, "lib/librwkv.so": 0o755, "patch.diff": 0o644}
    assert tree_digest(place).startswith("sha256:")
    assert sandbox.ran == 0


def test_whoever_wants_a_build_gets_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "same_engine", lambda step: same_engine(step, folder))
    with pytest.raises(AssertionError, match="built"):
        carried_out(False, NeverRuns(), tmp_path)
