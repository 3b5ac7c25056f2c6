"""Two engines that make the same image, and an engine that dies: while it builds, and while a command runs.

The engine that dies is one of the tests' own; see tests/helpers/private_engine.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
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
from rwkvflow.sandbox.docker import TAG_LABEL, DockerSandbox, reference
from tests.e2e.cli import ROOT, Project, project
from tests.e2e.conftest import CACHE
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


def demo(folder: Path, store: Path) -> Project:
    """The demo, in a folder of its own."""
    shutil.copytree(ROOT / "recipes" / "demo", folder / "recipes" / "demo")
    shutil.copy(ROOT / "recipes" / "demo.yaml", folder / "recipes")
    return Project(folder, store)


def seeded(folder: Path, kept: tuple[str, ...]) -> Path:
    """A store that has of the tests' store what steps with these names made."""
    made = project(folder / "seed", folder / "store", seed=CACHE / "docker-store")
    for path in (made.store / "index").rglob("*.json"):
        if not str(json.loads(path.read_text()).get("step", "")).startswith(kept):
            path.unlink()
    return made.store


def demos_image(made: Project, client: Any, address: str) -> dict[str, Any]:
    """Build the demo's image by the engine there; what that engine says of it."""
    argv = ["image", "build", "recipes/demo.yaml", "--locked", "--sandbox", "docker"]
    done = made(*argv, env={"DOCKER_HOST": address})
    assert done.code == 0, done.err
    (image,) = client.images.list(name="rwkvflow/worker")
    return dict(image.attrs)


@pytest.mark.soak
def test_the_demos_own_image_is_made_twice_without_a_cache_and_has_the_same_id(
    client: Any, base: LockedBase, private: PrivateEngine, tmp_path: Path
) -> None:
    """With what an earlier run made, and with nothing but what was downloaded; by an engine that kept no layer."""
    other, made = private.client(), {}
    usual = demo(tmp_path / "usual", CACHE / "docker-store")
    done = usual("image", "build", "recipes/demo.yaml", "--sandbox", "docker")
    assert done.code == 0, done.err
    for name, kept in (("a", ("wheels/", "fetch/", "engine/")), ("elsewhere/b", ("wheels/", "fetch/"))):
        mine = demo(tmp_path / name, seeded(tmp_path / name, kept))
        shutil.copy(usual.folder / "recipes" / "demo.lock.yaml", mine.folder / "recipes")
        made[name] = demos_image(mine, other, private.address)
        for image in other.images.list(filters={"label": TAG_LABEL}):
            other.images.remove(image.id, force=True)
        other.images.prune({"dangling": True})
        left = {image.id for image in other.images.list(all=True)}
        assert left == {other.images.get(base.reference).id}, "no layer from which the next one could be taken"
    one, two = made.values()
    assert one["RootFS"] == two["RootFS"], "the bytes of all layers"
    assert one["Id"] == two["Id"]
    assert len(one["RootFS"]["Layers"]) > 3


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
