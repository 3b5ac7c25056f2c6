"""Where commands without a recipe find librwkv: named, in the environment, in the store."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.app import library, pipeline
from rwkvflow.base.errors import EnvironmentMissing, StepFailed, UsageError
from rwkvflow.base.events import Event, Notice, StepFinished
from rwkvflow.base.hashing import text_digest
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.engine.binding import NAMES
from rwkvflow.stages.engine import plain_request
from rwkvflow.store.store import Store
from rwkvflow.worker.build.toolchain import host_platform
from rwkvflow.worker.tasks.build_engine import request_digest

NAME = NAMES.get(sys.platform, "librwkv.so")


@pytest.fixture(autouse=True)
def _no_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RWKVFLOW_LIBRARY", raising=False)


def put(root: Path, *, age: float = 0, data: bytes = library.OURS, **facts: Any) -> Path:
    """An engine in the store, as the engine stage leaves it."""
    folder = root / "new"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / NAME).write_bytes(data)
    wanted = {"request": request_digest(plain_request(host_platform()), PACKAGE / "engine")}
    (folder / "build.json").write_text(json.dumps({**wanted, "platform": host_platform(), **facts}))
    stored = Store(root).path(Store(root).put_tree(folder).digest)
    assert stored is not None
    changed = (stored / "build.json").stat().st_mtime - age
    os.utime(stored / "build.json", (changed, changed))
    return stored / "lib" / NAME


@pytest.fixture
def cannot_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*arguments: Any) -> None:
        raise EnvironmentMissing("there is no compiler")

    monkeypatch.setattr(pipeline, "prepare", prepare)


def test_what_is_named_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "store")
    for name in ("one.so", "two.so"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setenv("RWKVFLOW_LIBRARY", str(tmp_path / "two.so"))
    assert library.find_library(tmp_path / "one.so", tmp_path / "store") == tmp_path / "one.so"
    assert library.find_library(None, tmp_path / "store") == tmp_path / "two.so"


def test_what_is_named_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--library: there is no file .*absent"):
        library.find_library(tmp_path / "absent", tmp_path)
    monkeypatch.setenv("RWKVFLOW_LIBRARY", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="RWKVFLOW_LIBRARY: there is no file"):
        library.find_library(None, tmp_path)


@pytest.mark.usefixtures("cannot_build")
def test_the_store_gives_the_engine_of_these_sources(tmp_path: Path) -> None:
    put(tmp_path, data=b"another", request="sha256:" + "0" * 64)
    wanted = put(tmp_path, age=1000)
    put(tmp_path, data=b"other machine", platform="macos-x86_64")
    assert library.in_store(tmp_path) == wanted
    assert library.find_library(None, tmp_path) == wanted


@pytest.mark.usefixtures("cannot_build")
def test_an_older_one_will_do_where_none_can_be_built_and_it_is_said(tmp_path: Path) -> None:
    put(tmp_path, age=1000, data=b"oldest" + library.OURS, request="sha256:" + "1" * 64)
    wanted = put(tmp_path, age=500, data=b"older" + library.OURS, request="sha256:" + "2" * 64)
    put(tmp_path, data=b"an engine of somebody else", request="sha256:" + "3" * 64)
    heard: list[Event] = []
    assert library.find_library(None, tmp_path, heard.append) == wanted
    last = heard[-1]
    assert isinstance(last, Notice)
    assert last.level == "warning"
    assert "there is no compiler" in last.message


@pytest.mark.usefixtures("cannot_build")
def test_without_any_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="there is no compiler"):
        library.find_library(None, tmp_path)


def test_nobody_without_a_recipe_is_told_to_change_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the step that failed, nor by the error: the recipe is rwkvflow's own."""
    from rwkvflow.worker.advice import given_by_recipe
    from rwkvflow.worker.build.toolchain import _missing

    with given_by_recipe():
        of_recipe = str(_missing("ninja"))
    assert "toolchain: system in the recipe" in of_recipe
    assert "recipe" not in str(_missing("ninja"))

    class Failing:
        plan = type("Plan", (), {"targets": ("engine",)})()

        def check(self) -> None:
            raise StepFailed("1 step failed: engine", remedy="write toolchain: system in the recipe")

    def execute(prepared: Any, emit: Any) -> Failing:
        emit(StepFinished("engine", "engine", "failed", 1.0, of_recipe))
        return Failing()

    monkeypatch.setattr(pipeline, "prepare", lambda request, emit: None)
    monkeypatch.setattr(pipeline, "only_stages", lambda prepared, stages: Failing())
    monkeypatch.setattr(pipeline, "execute", execute)
    heard: list[Event] = []
    with pytest.raises(StepFailed) as caught:
        library.find_library(None, tmp_path, heard.append)
    told = "\n".join([str(caught.value), *(event.message for event in heard if isinstance(event, StepFinished))])
    assert "the zig toolchain lacks ninja" in told
    assert "toolchain:" not in told
    assert "wheel of this platform" in told


def test_the_recipe_that_builds_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is planned for real; only carrying it out would take the network."""
    from rwkvflow.documents.load import load_recipe

    class Stop(Exception):
        pass

    def prepare(request: pipeline.Request, emit: Any) -> None:
        recipe = load_recipe(request.recipe)
        assert recipe.engine == type(recipe.engine)()
        (model,) = recipe.models
        assert Path(model.source).is_file()
        assert recipe.images[0].python == f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise Stop

    monkeypatch.setattr(pipeline, "prepare", prepare)
    with pytest.raises(Stop):
        library.find_library(None, tmp_path / "it's a store")


def test_the_wheels_library_is_taken_where_it_is_of_these_sources(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / NAME).write_bytes(library.OURS)
    request = plain_request(host_platform())

    def write(target: str, **facts: Any) -> None:
        wanted = request_digest({**request, "target": target}, PACKAGE / "engine")
        files = {f"lib/{NAME}": text_digest(library.OURS)}
        all_facts = {"request": wanted, "target": target, "platform": host_platform(), "files": files, **facts}
        (folder / "build.json").write_text(json.dumps(all_facts))

    assert library.in_wheel(folder) is None
    for target in (request["target"], "x86_64-linux-musl"):  # a wheel for musl says so
        write(target)
        assert library.in_wheel(folder) == folder / "lib" / NAME
    write(request["target"], platform="plan9-mips")
    assert library.in_wheel(folder) is None
    write(request["target"], request="sha256:" + "0" * 64)
    assert library.in_wheel(folder) is None
    for names in (["../escaped"], [f"/lib/{NAME}"], []):
        write(request["target"], files=dict.fromkeys(names, text_digest(library.OURS)))
        assert library.in_wheel(folder) is None
    write(request["target"])
    (folder / "lib" / NAME).write_bytes(library.OURS + b"changed")
    assert library.in_wheel(folder) is None
    (folder / "lib" / NAME).unlink()
    assert library.in_wheel(folder) is None
