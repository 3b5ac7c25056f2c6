"""Two engines that make the same image, and an engine that dies: while it builds, and while a command runs.

The engine that dies is one of the tests' own; see tests/helpers/private_engine.py.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import MachineFailed
from rwkvflow.documents.lock import LockedBase
from rwkvflow.plan.step import StepLimits
from rwkvflow.sandbox.base import Command
from rwkvflow.sandbox.docker import DockerSandbox, reference
from tests.helpers.private_engine import PrivateEngine, private_engine, problem
from tests.helpers.small_environment import small_environment

pytestmark = pytest.mark.docker

NEVER = threading.Event()
NONE = StepLimits()
PROGRAM = "import hello; print(hello.said, open('/opt/rwkvflow/engine/librwkv/lib/librwkv.so').read().strip())"


def _ignore(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def private(base: LockedBase, client: Any) -> Iterator[PrivateEngine]:
    """An engine of our own that has the base image, and nothing else."""
    if (why := problem()) is not None:
        pytest.skip(why)
    with private_engine() as engine:
        engine.client().images.load(client.images.get(base.reference).save(named=base.reference))
        yield engine


def test_two_engines_give_an_image_the_same_id(
    client: Any, base: LockedBase, private: PrivateEngine, tmp_path: Path
) -> None:
    made = {}
    for name, engine, time in (("a", client, 1), ("elsewhere/b", private.client(), 1_700_000_000)):
        spec = small_environment(base, tmp_path / name, tag="1d" * 32, time=time)
        sandbox = DockerSandbox(engine)
        lines: list[str] = []
        try:
            sandbox.build(spec, NONE, lines.append, NEVER)
            made[name] = engine.images.get(reference(spec.tag)).attrs
            assert f"image {made[name]['Id']}" in lines
            result = sandbox.run(spec.tag, Command(("python3", "-c", PROGRAM), {}), tmp_path, NONE, _ignore, NEVER)
            assert (result.exit_code, result.tail) == (0, "hello an engine")
        finally:
            sandbox.remove(spec.tag)
    one, other = made.values()
    assert one["RootFS"] == other["RootFS"], "the bytes of all layers"
    assert one["Id"] == other["Id"]
    kept = {key: one["Config"][key] for key in ("User", "Cmd", "WorkingDir", "Entrypoint")}
    assert kept == {"User": "65534:65534", "Cmd": ["python3"], "WorkingDir": "/job", "Entrypoint": None}
    assert one["Config"]["Labels"]["org.rwkvflow.tag"] == "1d" * 32
    assert str(tmp_path) not in json.dumps([one["Config"], other["Config"]]), "no name of this machine's folders"


def layers_of(engine: Any, name: str, folder: Path) -> list[list[tuple[Any, ...]]]:
    """What is in each layer of an image but the first, in its order: names, kinds, modes, owners, times, contents."""
    folder.mkdir()
    with (folder / "saved.tar").open("wb") as file:
        for chunk in engine.images.get(name).save():
            file.write(chunk)
    found = []
    with tarfile.open(folder / "saved.tar") as saved:
        listed = saved.extractfile("manifest.json")
        assert listed is not None
        for layer in json.load(listed)[0]["Layers"][1:]:
            with tarfile.open(fileobj=saved.extractfile(layer)) as inside:
                found.append([(one.get_info(), _digest(inside, one)) for one in inside.getmembers()])
    return found


def _digest(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member) if member.isreg() else None
    return hashlib.sha256(file.read()).hexdigest() if file is not None else ""


@pytest.mark.soak
def test_another_storage_driver_changes_the_order_within_a_layer_and_nothing_else(
    client: Any, base: LockedBase, tmp_path: Path
) -> None:
    """overlay2 lists a layer folder by folder, vfs by whole names: "a-1/x" stands behind "a/x", or before it."""
    found = {}
    with private_engine("--storage-driver", "vfs") as engine:
        other = engine.client()
        assert other.info()["Driver"] == "vfs" != client.info()["Driver"]
        other.images.load(client.images.get(base.reference).save(named=base.reference))
        for name, one in (("a", client), ("b", other)):
            spec = small_environment(base, tmp_path / name, tag="4d" * 32)
            DockerSandbox(one).build(spec, NONE, _ignore, NEVER)
            found[name] = layers_of(one, reference(spec.tag), tmp_path / f"{name}-saved")
        DockerSandbox(client).remove(spec.tag)
    assert len(found["a"]) == len(found["b"]) == 6

    def named(entry: Any) -> str:
        return str(entry[0]["name"]).rstrip("/")

    for mine, theirs in zip(found["a"], found["b"], strict=True):
        assert sorted(mine, key=named) == sorted(theirs, key=named)
        assert [named(entry).split("/") for entry in mine] == sorted(named(entry).split("/") for entry in mine)
        assert list(map(named, theirs)) == sorted(map(named, theirs))
    assert [mine == theirs for mine, theirs in zip(found["a"], found["b"], strict=True)].count(False) == 1, "the wheels"


@pytest.mark.soak
def test_an_engine_that_dies_while_it_builds(private: PrivateEngine, base: LockedBase, tmp_path: Path) -> None:
    spec = small_environment(
        base, tmp_path / "s", tag="2d" * 32, first="import time; print('up', flush=True); time.sleep(3)"
    )

    def on_line(line: str) -> None:
        if line == "up":
            private.kill()

    with pytest.raises(MachineFailed, match="the Docker engine stopped answering") as error:
        DockerSandbox(private.client()).build(spec, NONE, on_line, NEVER)
    assert "docker info" in str(error.value.remedy)
    private.start()
    again = DockerSandbox(private.client())
    assert not again.has(spec.tag)
    lines: list[str] = []
    again.build(spec, NONE, lines.append, NEVER)
    assert again.has(spec.tag)
    assert any("Using cache" in line for line in lines), "it goes on where it was"


def test_an_engine_that_dies_while_a_command_runs(private: PrivateEngine, base: LockedBase, tmp_path: Path) -> None:
    spec = small_environment(base, tmp_path / "s", tag="3d" * 32)
    sandbox = DockerSandbox(private.client())
    sandbox.build(spec, NONE, _ignore, NEVER)
    slow = Command(("python3", "-c", "import time; print('up', flush=True); time.sleep(300)"), {})
    with pytest.raises(MachineFailed, match="the Docker engine stopped answering") as error:
        sandbox.run(spec.tag, slow, tmp_path / "w", NONE, lambda line: private.kill(), NEVER)
    assert "run again" in str(error.value.remedy)
    private.start()
    again = DockerSandbox(private.client())
    result = again.run(spec.tag, Command(("python3", "-c", PROGRAM), {}), tmp_path / "w", NONE, _ignore, NEVER)
    assert (result.exit_code, result.tail) == (0, "hello an engine")
    left = private.client().containers.list(all=True)
    assert all(item.status != "running" for item in left)
    for item in left:  # its rwkvflow, this test, still runs; `sweep` of the next one removes it
        item.remove(force=True)
