"""Publishing to an OCI registry: Debian's docker-registry on loopback, read by PyPI's oras as a second opinion."""

from __future__ import annotations

import base64
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.app import rebuild
from rwkvflow.base.errors import FetchError, Interrupted, PublishError, StoreError
from rwkvflow.documents.destinations import OciDestination, parse_destination
from rwkvflow.net.oci_referrers import attach
from rwkvflow.net.oci_registry import INDEX, OciRegistry
from rwkvflow.net.progress import Told
from rwkvflow.publish.oci import ARTIFACT, FILEPATH, WEIGHT, OciPublisher, manifest_bytes
from tests.helpers.publishing import POLICY, contents, release
from tests.helpers.registry import serve
from tests.helpers.releases import made
from tests.unit.release.test_verify import key_pair
from tests.unit.release.test_vouching import key, rebuilders, verify, whole

OLD = {"a/a.bin": b"a" * 5000, "a/b.safetensors": b"b" * 5000, "gone.bin": b"g"}
NEW = {"a/a.bin": b"A" * 5000, "a/b.safetensors": b"b" * 5000, "empty.json": b""}
USER, PASSWORD = "me", "plantedPLANTEDplanted"


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def place(registry: str, request: pytest.FixtureRequest) -> OciDestination:
    name = "".join(char if char.isalnum() else "-" for char in request.node.name.lower()).strip("-")
    found = parse_destination(f"oci://{registry}/tests/{name}:v1")
    assert isinstance(found, OciDestination)
    return found


def get(url: str, **headers: str) -> tuple[bytes, dict[str, str]]:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310
        return response.read(), {key.lower(): value for key, value in response.headers.items()}


def test_a_release_is_a_model_artifact(place: OciDestination, tmp_path: Path) -> None:
    run = made(tmp_path / "run").assemble()
    published = OciPublisher(place, POLICY).apply(run, Told())
    accept = "application/vnd.oci.image.manifest.v1+json"
    data, headers = get(f"http://{place.registry}/v2/{place.repository}/manifests/v1", Accept=accept)
    assert data == manifest_bytes(run)
    assert published.to == f"{place}@{headers['docker-content-digest']}"
    manifest = json.loads(data)
    assert manifest["artifactType"] == ARTIFACT
    layers = {layer["annotations"][FILEPATH]: layer for layer in manifest["layers"]}
    assert {path: layer["digest"] for path, layer in layers.items()} == {file.path: file.digest for file in run.files}
    weights = {path for path, layer in layers.items() if layer["mediaType"] == WEIGHT}
    assert weights == {row.path for row in run.rows}
    config = json.loads(get(f"http://{place.registry}/v2/{place.repository}/blobs/{manifest['config']['digest']}")[0])
    assert config["modelfs"] == {"type": "layers", "diffIds": [file.digest for file in run.files]}
    assert config["config"]["architecture"] == "rwkv"
    assert config["descriptor"]["name"] == "tiny"


def test_oras_pulls_what_was_pushed(place: OciDestination, tmp_path: Path) -> None:
    oras = pytest.importorskip("oras.client", reason="PyPI's oras is not installed")
    OciPublisher(place, POLICY).apply(release(OLD, tmp_path / "store"), Told())
    client = oras.OrasClient(insecure=True)
    client.pull(f"{place.registry}/{place.repository}:v1", outdir=str(tmp_path / "pulled"))
    pulled = {
        path.relative_to(tmp_path / "pulled").as_posix(): path.read_bytes()
        for path in (tmp_path / "pulled").rglob("*")
        if path.is_file()
    }
    assert pulled == contents(release(OLD))


def test_again_nothing_then_one_blob_and_the_tag(place: OciDestination) -> None:
    publisher = OciPublisher(place, POLICY)
    first = publisher.plan(release(OLD))
    assert {change.kind for change in first.changes} == {"add"}
    one = publisher.apply(release(OLD), Told())
    assert publisher.plan(release(OLD)).lines() == [f"{place}: nothing to do", "  = 6 files there already"]
    two = publisher.apply(release(OLD), Told())
    assert (two.to, two.facts["uploaded"]) == (one.to, "0")
    plan = publisher.plan(release(NEW))
    kinds = {change.path: change.kind for change in plan.changes}
    assert kinds == {
        "a/a.bin": "replace",
        "empty.json": "add",
        "gone.bin": "delete",
        "provenance.json": "replace",
        "SHA256SUMS": "replace",
    }
    three = publisher.apply(release(NEW), Told())
    assert three.facts["uploaded"] == "5"  # four files and the model config
    assert three.to != one.to
    back = publisher.apply(release(OLD), Told())  # the registry has it all still
    assert (back.to, back.facts["uploaded"]) == (one.to, "0")


def test_something_else_under_the_tag_is_left_alone(place: OciDestination) -> None:
    from rwkvflow.release.artifacts import from_bytes

    config = from_bytes("config.json", b"{}")
    image = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.digest, "size": 2},
        "layers": [],
    }
    with OciRegistry(place, POLICY, Told()) as registry:
        registry.upload(config, lambda position: None)
        registry.put_manifest("v1", json.dumps(image).encode())
        with pytest.raises(PublishError, match="is no model but"):
            OciPublisher(place, POLICY).apply(release(OLD), Told())
        there = registry.manifest("v1")
        assert there is not None
        assert there[1]["config"]["digest"] == config.digest


def test_progress_and_stopping(place: OciDestination, tmp_path: Path) -> None:
    import threading

    big = release({"big.bin": b"0123456789abcdef" * (1 << 20)}, tmp_path / "store")
    stop = threading.Event()
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        if done > 8 << 20:
            stop.set()

    with pytest.raises(Interrupted):
        OciPublisher(place, POLICY).apply(big, Told(progress=progress, cancel=stop))
    assert told == sorted(told)
    assert OciPublisher(place, POLICY).plan(big).unchanged == 0  # the tag does not exist
    OciPublisher(place, POLICY).apply(big, Told())
    assert OciPublisher(place, POLICY).plan(big).changes == ()


def test_damage_in_the_store_is_not_published(place: OciDestination, tmp_path: Path) -> None:
    made = release(OLD, tmp_path / "store")
    (tmp_path / "store" / "gone.bin").write_bytes(b"G")
    with pytest.raises(StoreError, match=r"gone\.bin"):
        OciPublisher(place, POLICY).apply(made, Told())


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log: list[str] = []
    with pytest.raises(PublishError, match="gave up after 4 attempts"):
        OciPublisher(OciDestination(f"127.0.0.1:{port}", "a/b", "v1"), POLICY).apply(release(OLD), Told(log.append))
    assert len(log) == 3


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    """A registry that wants a login."""
    crypt = pytest.importorskip("crypt", reason="this Python has no crypt to write an htpasswd file with")
    hashed = crypt.crypt(PASSWORD, crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16))
    if not hashed or not hashed.startswith("$2"):
        pytest.skip("this system's crypt knows no bcrypt")
    (tmp_path / "htpasswd").write_text(f"{USER}:{hashed}\n")
    yield from serve(tmp_path / "locked", f"auth: {{htpasswd: {{realm: tests, path: {tmp_path}/htpasswd}}}}\n")


@pytest.mark.filterwarnings("ignore:'crypt' is deprecated")
def test_logins(locked: str, tmp_path: Path) -> None:
    publisher = OciPublisher(OciDestination(locked, "a/b", "v1"), POLICY)
    with pytest.raises(PublishError, match="the registry refuses: 401") as caught:
        publisher.apply(release(OLD), Told())
    assert f"docker login {locked}" in str(caught.value.remedy)
    config = tmp_path / "docker" / "config.json"
    config.parent.mkdir()
    for password, fine in (("wrong" + PASSWORD, False), (PASSWORD, True)):
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        config.write_text(json.dumps({"auths": {locked: {"auth": auth}}}))
        log: list[str] = []
        if fine:
            assert OciPublisher(publisher.place, POLICY).apply(release(OLD), Told(log.append)).facts["uploaded"] == "7"
        else:
            with pytest.raises(PublishError, match="the registry refuses") as caught:
                OciPublisher(publisher.place, POLICY).apply(release(OLD), Told(log.append))
            assert password not in str(caught.value)
            assert auth not in str(caught.value)
        assert not any(PASSWORD in line for line in log)


def test_two_who_made_it_again_vouch_for_it_in_a_registry(
    place: OciDestination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "store").publish(tmp_path / "release")
    OciPublisher(place, POLICY).apply(made(tmp_path / "again").assemble(), Told())
    image = f"oci://{place.registry}/{place.repository}:v1"
    monkeypatch.setattr(rebuild, "rebuild", lambda release, emit, **options: whole(release))
    addresses = []
    for name in ("ann", "bob", "ann"):
        if not (tmp_path / f"keys/{name}.key").exists():
            key_pair(tmp_path / "keys", name)
        out = tmp_path / f"{name}.json"
        if not out.exists():
            said = ("--rebuild", "--attest", str(key(tmp_path, name)), "-o", str(out), "--attach", image)
            code, text = verify(tmp_path, *said)
            assert code == 0, text
            addresses.append(text.split()[-1])
        else:
            assert attach(image, out.read_bytes(), POLICY) in addresses, "the same again changes nothing"
    with OciRegistry(place, POLICY, Told()) as registry:
        subject = registry.manifest("v1")
        assert subject is not None
        assert registry.referrers(subject[0]) is None, "Debian's keeps no such list"
        tag = subject[0].replace(":", "-")
        index = registry.manifest(tag)
    assert index is not None
    assert [row["digest"] for row in index[1]["manifests"]] == [address.partition("@")[2] for address in addresses]
    asked = ("--require-rebuilds", "2", "--attestations", image)
    code, text = verify(tmp_path, *asked, *rebuilders(tmp_path, "ann", "bob"))
    assert code == 0, text
    assert "rebuilt by ann with the same bytes" in text
    assert "rebuilt by bob with the same bytes" in text
    with OciRegistry(place, POLICY, Told()) as registry:  # bob takes his back
        rest = {**index[1], "manifests": index[1]["manifests"][:1]}
        registry.put_manifest(tag, json.dumps(rest).encode(), INDEX)
    code, text = verify(tmp_path, *asked, *rebuilders(tmp_path, "ann", "bob"))
    assert code == 9
    assert "nothing that counts came from bob" in text
    code, text = verify(tmp_path, *asked, *rebuilders(tmp_path, "ann"))
    assert code == 2
    assert "needs as many people whom you trust" in text


def test_nothing_is_attached_to_an_image_that_is_not_there(place: OciDestination) -> None:
    with pytest.raises(FetchError, match="there is no such image"):
        attach(f"oci://{place.registry}/{place.repository}:none", b"{}", POLICY)


@pytest.mark.docker
def test_images_are_pushed_and_named_by_digest(place: OciDestination, client: Any) -> None:
    import io
    import tarfile

    from rwkvflow.base.errors import EnvironmentMissing
    from rwkvflow.sandbox.image.image_push import push_image

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("nothing"))
    client.api.import_image_from_data(layer.getvalue(), repository="rwkvflow-tests/push", tag="one")
    lines: list[str] = []
    try:
        pushed = push_image(client, "rwkvflow-tests/push:one", place, lines.append)
        again = push_image(client, "rwkvflow-tests/push:one", place, lines.append)
    finally:
        client.images.remove("rwkvflow-tests/push:one")
    assert pushed == again
    assert lines
    name, _, digest = pushed.partition("@")
    assert name == f"{place.registry}/{place.repository}"
    accept = "application/vnd.docker.distribution.manifest.v2+json"
    _, headers = get(f"http://{place.registry}/v2/{place.repository}/manifests/{digest}", Accept=accept)
    assert headers["docker-content-digest"] == digest
    assert not client.images.list(name)
    with pytest.raises(EnvironmentMissing):
        push_image(client, "rwkvflow-tests/push:none", place, lines.append)
