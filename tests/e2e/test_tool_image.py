"""The container image of rwkvflow itself: built from a wheel, and used as its page says."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from rwkvflow.documents.destinations import OciDestination
from rwkvflow.documents.load import load_lock
from rwkvflow.documents.lock import LockedBase
from rwkvflow.net.http import Policy
from rwkvflow.net.oci_registry import OciRegistry
from rwkvflow.net.progress import Told
from scripts import build_image
from tests.e2e.cli import DEMO, ROOT, Project
from tests.e2e.conftest import CACHE
from tests.helpers import network
from tests.helpers.registry import serve

pytestmark = [pytest.mark.docker, pytest.mark.soak]
TAG = "rwkvflow:test"
SOCKET = Path("/var/run/docker.sock")


@pytest.fixture(scope="module")
def image(base: LockedBase, wheel: Path, client: Any) -> Iterator[str]:
    """The image, on the base that is there."""
    argv = [sys.executable, "scripts/build_image.py", str(wheel), "--tag", TAG, "--store", str(CACHE)]
    done = subprocess.run([*argv, "--wheels", str(CACHE / "tool-wheels")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    yield TAG
    client.images.remove(TAG)


def docker(*words: str, code: int = 0) -> str:
    """What `docker run --rm …` prints, on its standard output or else on the other one."""
    network = () if "--network" in words else ("--network", "none")
    done = subprocess.run(["docker", "run", "--rm", *network, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout or done.stderr


def files(folder: Path) -> dict[str, str]:
    """Artifacts below a folder, by their digests."""
    found = (path for path in sorted(folder.rglob("*")) if path.suffix in (".bin", ".safetensors", ".gguf"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The demo, in a folder that the user of a container may write to."""
    (tmp_path / "recipes" / "demo").mkdir(parents=True)
    for name in ("demo.yaml", "demo/rwkv4-demo.pth", "demo/rwkv7-demo.pth"):
        shutil.copy(ROOT / "recipes" / name, tmp_path / "recipes" / name)
    return tmp_path


USER = ("--user", f"{os.getuid()}:{os.getgid()}")


def test_it_says_what_it_is_and_holds_no_installer(image: str, wheel: Path, client: Any) -> None:
    assert wheel.name.split("-")[1] in docker(image, "--version")
    assert "convert" in docker(image)
    missing = docker("--entrypoint", "python3", image, "-c", "import rwkvflow, uv, fastapi", code=1)
    assert "No module named 'fastapi'" in missing, "only what rwkvflow requires"
    docker("--entrypoint", "python3", image, "-c", "import s3fs, uvicorn, model_signing")
    labels = client.images.get(image).labels
    assert labels["org.opencontainers.image.base.name"] in ("rwkvflow-base:bookworm", "python:3.11-slim")
    checks = {check["name"]: check for check in json.loads(docker(image, "doctor", "--json"))}
    assert "Landlock" in checks["host walls"]["message"] or "no isolation" in checks["host walls"]["message"]
    assert checks["uv"]["status"] == "ok"
    assert "a container" in checks["container"]["message"]


def test_it_converts_in_a_folder_of_the_users(image: str, work: Path) -> None:
    checkpoint = "recipes/demo/rwkv7-demo.pth"
    formats = ("--format", "ggml-q8_0", "--format", "gguf-q4_k_m")
    told = docker(*USER, "-v", f"{work}:/work", image, "convert", checkpoint, "out/", *formats)
    assert told.count("proved by librwkv") == 2
    made = files(work / "out")
    here = subprocess.run(
        [sys.executable, "-m", "rwkvflow", "convert", str(DEMO / "rwkv7-demo.pth"), str(work / "here/"), *formats],
        check=False,
        capture_output=True,
        text=True,
    )
    assert here.returncode == 0, here.stderr
    assert made == files(work / "here")
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (work / "out").iterdir()}
    assert owners == {(os.getuid(), os.getgid())}


def test_it_runs_a_recipe_behind_the_walls_that_a_container_leaves(image: str, work: Path) -> None:
    """`--sandbox host` inside: no engine, no socket."""
    said = ("run", "recipes/demo.yaml", "--sandbox", "host")
    told = docker(*network.arguments(), *USER, "-v", f"{work}:/work", image, *said)
    assert "out/demo" in told
    made = files(work / "out" / "demo")
    assert len(made) == 16
    assert load_lock(work / "recipes" / "demo.lock.yaml").images["py3.11"].base is None
    assert made == _on_the_host(work)


def test_it_runs_a_recipe_through_the_engines_socket(image: str, work: Path, base: LockedBase) -> None:
    """`--sandbox docker` inside: the engine sees the folders under the same paths."""
    if not SOCKET.exists():
        pytest.skip(f"the engine has no socket at {SOCKET}")
    store = work / "store"
    store.mkdir()
    mounts = ["-v", f"{SOCKET}:{SOCKET}", "-v", f"{work}:{work}", "-w", str(work), "-e", f"RWKVFLOW_STORE={store}"]
    group = ["--group-add", str(SOCKET.stat().st_gid)]
    said = ("run", "recipes/demo.yaml", "--sandbox", "docker")
    told = docker(*network.arguments(), *USER, *group, *mounts, image, *said)
    assert "out/demo" in told
    made = files(work / "out" / "demo")
    assert len(made) == 16
    assert made == _on_the_host(work)


def _on_the_host(work: Path) -> dict[str, str]:
    """The demo's artifacts as the host sandbox makes them here."""
    folder = work / "again"
    shutil.copytree(work / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("*.lock.yaml"))
    done = Project(folder, CACHE / "store")("run", "recipes/demo.yaml", "--sandbox", "host")
    assert done.code == 0, done.err
    return files(folder / "out" / "demo")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    yield from serve(tmp_path / "registry")


def in_registry(name: str, tag: str) -> tuple[str, dict[str, Any]]:
    """Digest and content of a manifest."""
    with OciRegistry(OciDestination.parse(f"oci://{name}:{tag}"), Policy(), Told()) as found:
        manifest = found.manifest(tag)
    assert manifest is not None
    return manifest[0], manifest[1]


def test_a_release_builds_the_same_once_more_and_pushes_it(
    image: str, wheel: Path, client: Any, registry: str, tmp_path: Path
) -> None:
    """The very command of the workflow, with a registry of our own."""
    document = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    (step,) = [step for step in document["jobs"]["image"]["steps"] if step.get("id") == "push"]
    (tmp_path / "dist").mkdir()
    shutil.copy(wheel, tmp_path / "dist")
    (tmp_path / "dist" / "rwkvflow-1-py3-none-musllinux_1_2_x86_64.whl").touch()
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    environment = {
        **os.environ,
        **step["env"],
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "REGISTRY": registry,
        "GITHUB_REPOSITORY": "Some-One/Rwkvflow",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "RWKVFLOW_STORE": str(CACHE),
    }
    name = f"{registry}/some-one/rwkvflow"
    version = Version(wheel.name.split("-")[1])
    made = f"rwkvflow:{str(version).replace('+', '-')}"
    argv = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    try:
        assert client.images.get(made).id == client.images.get(image).id, "built twice, each time from nothing"
        told = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
        digest, manifest = in_registry(name, build_image.tags(version)[0])
        assert told == {"name": name, "digest": digest}
        assert manifest["config"]["digest"] == client.images.get(image).id
        build_image.push(made, name, Version("9.9.9"))
        assert {in_registry(name, tag)[0] for tag in ("v9.9.9", "latest")} == {digest}
    finally:
        client.images.remove(made)
    pulled = f"{name}@{digest}"
    try:
        assert str(version) in docker(pulled, "--version")
    finally:
        client.images.remove(pulled)


def test_latest_is_no_pre_release() -> None:
    assert build_image.tags(Version("1.2.0")) == ["v1.2.0", "latest"]
    assert build_image.tags(Version("1.2.0rc1")) == ["v1.2.0rc1"]
    assert build_image.tags(Version("0+gabc")) == ["v0-gabc"]


def test_what_it_needs_is_what_its_wheel_says(wheel: Path) -> None:
    without, every = build_image.needs(wheel, ()), build_image.needs(wheel)
    assert set(without) < set(every)
    assert any(item.startswith("s3fs") for item in every)
    assert not any(item.startswith(("pytest", "torch", "mypy")) for item in every)
