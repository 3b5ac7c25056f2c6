"""Which base image a recipe gets that names none: Debian's docker-registry on loopback serves the official one."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rwkvflow.base.errors import DocumentError, EnvironmentMissing
from rwkvflow.base.events import Event, Notice
from rwkvflow.documents.load import load_lock
from rwkvflow.documents.lock import LockedBase
from rwkvflow.documents.names import REGISTRY
from rwkvflow.documents.recipe import Recipe
from rwkvflow.net.oci_registry import DOCKER, INDEX
from rwkvflow.sandbox.choose import choose
from rwkvflow.sandbox.image import base_choice
from rwkvflow.sandbox.image.base_choice import Bases, nothing_to_be_had, python_in
from tests.e2e.cli import ROOT, Project, project
from tests.e2e.conftest import CACHE
from tests.helpers.registry import serve

pytestmark = pytest.mark.docker
NOWHERE = "127.0.0.1:9"  # discard: nobody listens


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def named(registry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The registry as the one of official images, for this process and those that it starts."""
    monkeypatch.setenv(REGISTRY, registry)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return registry


def pushed(client: Any, registry: str, python: str, version: str, folder: Path) -> str:
    """An image of one file that says which Python it has, in the registry and not in the engine; its reference."""
    tar = folder / f"{python}.tar"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    name = f"{registry}/library/python"
    tag = f"{python}-slim"
    client.api.import_image_from_file(str(tar), repository=name, tag=tag, changes=[f"ENV PYTHON_VERSION={version}"])
    client.images.push(name, tag=tag)
    client.images.remove(f"{name}:{tag}")
    return f"{name}:{tag}"


def manifest(registry: str, reference: str, put: bytes | None = None) -> tuple[bytes, str]:
    """A manifest of library/python, or what putting one there gives; and its digest."""
    place = f"http://{registry}/v2/library/python/manifests/{reference}"
    if put is not None:
        httpx.put(place, content=put, headers={"Content-Type": INDEX}).raise_for_status()
    data = put or httpx.get(place, headers={"Accept": DOCKER}).raise_for_status().content
    return data, "sha256:" + hashlib.sha256(data).hexdigest()


def recipe_of(python: str, **image: str) -> Recipe:
    return Recipe.model_validate(
        {"name": "r", "models": [{"name": "m", "source": "m.pth"}], "formats": ["ggml-f16"]}
        | {"images": [{"python": python, **image}]}
    )


def test_the_slim_image_of_a_reached_registry_is_taken_and_pinned(named: str, client: Any, tmp_path: Path) -> None:
    reference = pushed(client, named, "3.12", "3.12.4", tmp_path)
    base = Bases(tmp_path)(None, "3.12")
    assert base == LockedBase(reference=reference, digest=manifest(named, "3.12-slim")[1], kind="registry")
    assert python_in(base, client) == "3.12", "read from the registry: nothing was pulled"
    assert not [tag for image in client.images.list() for tag in image.tags if tag == reference]
    assert nothing_to_be_had("3.12", client) is None
    assert choose("auto", tmp_path, [(None, "3.12")])[0].name == "docker"


def test_of_several_platforms_the_index_is_pinned_and_ours_is_looked_at(
    named: str, client: Any, tmp_path: Path
) -> None:
    rows = []
    ours = client.info()["Architecture"].replace("x86_64", "amd64").replace("aarch64", "arm64")
    for architecture, version in (("s390x", "3.9.1"), (ours, "3.14.0")):
        pushed(client, named, "3.14", version, tmp_path)
        data, digest = manifest(named, "3.14-slim")
        row = {"mediaType": DOCKER, "digest": digest, "size": len(data)}
        rows.append({**row, "platform": {"os": "linux", "architecture": architecture}})
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": rows}).encode()
    digest = manifest(named, "3.14-slim", index)[1]
    base = Bases(tmp_path)(None, "3.14")
    assert (base.kind, base.digest) == ("registry", digest)
    assert python_in(base, client) == "3.14"


def test_another_python_is_told_when_the_lock_is_made(named: str, client: Any, tmp_path: Path) -> None:
    reference = pushed(client, named, "3.10", "3.9.18", tmp_path)
    made = project(tmp_path / "p", CACHE / "docker-store", more=f"image: {{base: '{reference}', python: '3.11'}}\n")
    done = made("lock", "recipe.yaml", "--sandbox", "docker")
    assert done.code == DocumentError.exit_code, done.err
    for words in ("recipe.yaml:", "image.python", f"{reference} has Python 3.9, not 3.11", "rwkvflow-base:bookworm"):
        assert words in done.err
    assert not (made.folder / "recipe.lock.yaml").exists()
    file = made.folder / "recipe.yaml"
    with pytest.raises(DocumentError, match=r"has Python 3\.9, not 3\.10"):
        Bases(tmp_path, recipe_of("3.10"), file)(None, "3.10")


def test_out_of_reach_the_image_of_debian_packages_is_taken_and_said(
    base: LockedBase, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REGISTRY, NOWHERE)
    told: list[Event] = []
    assert Bases(tmp_path, emit=told.append)(None, "3.11") == base
    (notice,) = told
    assert isinstance(notice, Notice)
    assert f"{NOWHERE}/library/python:3.11-slim" in notice.message
    assert "the base image is rwkvflow-base:bookworm" in notice.message
    assert nothing_to_be_had("3.11", client) is None
    monkeypatch.setenv(REGISTRY, "none")
    assert Bases(tmp_path)(None, "3.11") == base


def test_without_any_the_reason_and_the_remedy_are_said(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REGISTRY, NOWHERE)
    with pytest.raises(EnvironmentMissing, match=r"no release of Debian has Python 3\.12") as error:
        Bases(tmp_path)(None, "3.12")
    assert "image.base" in str(error.value.remedy)
    sandbox, why = choose("auto", tmp_path, [(None, "3.12")])
    assert sandbox.name == "host"
    assert f"{NOWHERE}/library/python:3.12-slim" in why
    monkeypatch.setattr(base_choice, "own_base", lambda python: "rwkvflow-base:bookworm_no-such-package")
    monkeypatch.setattr(base_choice, "tools", list)
    with pytest.raises(EnvironmentMissing, match="there is no rwkvflow-base:bookworm_no-such-package") as error:
        Bases(tmp_path)(None, "3.11")
    assert "rwkvflow image bootstrap --package no-such-package" in str(error.value.remedy)


@pytest.mark.soak
def test_the_same_bytes_on_the_registrys_base_and_on_our_own(
    base: LockedBase, named: str, client: Any, tmp_path: Path
) -> None:
    """The whole demo on a base that is pulled from the registry, with files that our own does not have."""
    name = f"{named}/library/python"
    container = client.containers.create(base.reference, ["python3", "-c", "open('/etc/other', 'w').write('other')"])
    try:
        container.start()
        assert container.wait()["StatusCode"] == 0
        container.commit(
            name, "3.11-slim", conf={"Env": ["PYTHON_VERSION=3.11.2", "PATH=/usr/local/bin:/usr/bin:/bin"]}
        )
    finally:
        container.remove(force=True)
    client.images.push(name, tag="3.11-slim")
    client.images.remove(f"{name}:3.11-slim")
    files = {}
    for registry in (named, "none"):
        folder = tmp_path / registry.replace(":", "-")
        (folder / "recipes").mkdir(parents=True)
        for part in ("demo.yaml", "demo/rwkv4-demo.pth", "demo/rwkv7-demo.pth"):
            (folder / "recipes" / part).parent.mkdir(exist_ok=True)
            (folder / "recipes" / part).write_bytes((ROOT / "recipes" / part).read_bytes())
        made = Project(folder, CACHE / "docker-store")
        done = made("run", "recipes/demo.yaml", "--sandbox", "docker", env={REGISTRY: registry})
        assert done.code == 0, done.err
        locked = load_lock(folder / "recipes" / "demo.lock.yaml").images["py3.11"].base
        assert locked is not None
        assert locked.kind == ("local" if registry == "none" else "registry")
        files[registry] = {
            path: digest for path, digest in made.files("out/demo").items() if path.endswith((".bin", ".safetensors"))
        }
    assert len(files["none"]) == 16
    assert files["none"] == files[named]
