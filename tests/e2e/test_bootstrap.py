"""Base images: bootstrapped reproducibly from Debian packages, and pinned in a real registry."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import EnvironmentMissing, StepFailed, UsageError
from rwkvflow.documents.lock import LockedBase
from rwkvflow.sandbox.image import bootstrap
from rwkvflow.sandbox.image.base_image import base_digest, chain_id, ensure_base, root_digest
from rwkvflow.sandbox.image.bootstrap import base_tar, bootstrap_image, import_base
from rwkvflow.sandbox.image.dockerfile import pinned_reference
from tests.helpers.registry import serve

pytestmark = pytest.mark.docker


def _ignore(line: str) -> None:
    pass


def test_the_digest_is_that_of_the_tar(base: LockedBase, client: Any) -> None:
    from tests.e2e.conftest import CACHE

    tar = base_tar("bookworm", root=CACHE)
    with tar.open("rb") as file:
        assert base.digest == "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    assert base_digest(base.reference, client) == base
    lines: list[str] = []
    assert bootstrap_image("bookworm", root=CACHE, client=client, on_line=lines.append) == base
    assert not any("importing" in line for line in lines), "it is there already"


@pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="mmdebstrap is not installed")
def test_two_runs_give_the_same_image(base: LockedBase, client: Any, tmp_path: Path) -> None:
    """Fails as well where the mirror gave newer packages than when the kept one was made: then that one is renewed."""
    from tests.e2e.conftest import CACHE

    tmp_path.chmod(0o700)  # apt's own user cannot look into it; the kept one was made where it can
    again = base_tar("bookworm", root=tmp_path)
    kept = base_tar("bookworm", root=CACHE)
    if again.read_bytes() != kept.read_bytes():
        kept = base_tar("bookworm", root=CACHE, refresh=True)
    assert again.read_bytes() == kept.read_bytes(), "not the same bytes"
    made = import_base(again, "rwkvflow-base:test-again", client)
    try:
        assert made.digest == import_base(kept, base.reference, client).digest
    finally:
        client.images.remove("rwkvflow-base:test-again")
    assert not list((tmp_path / "bases").glob(".*")), "no scratch is left"


def test_it_knows_no_machine_and_no_moment(base: LockedBase) -> None:
    from tests.e2e.conftest import CACHE

    with tarfile.open(base_tar("bookworm", root=CACHE)) as archive:
        members = {member.name.removeprefix("./"): member for member in archive}
    assert max(member.mtime for member in members.values()) <= 1704067200
    assert not [name for name in members if name.startswith("var/lib/apt/lists/") and members[name].size]
    assert not [name for name in members if name.startswith("var/cache/apt/archives/") and name.endswith(".deb")]
    assert not [name for name in members if name.startswith("usr/share/locale/") and members[name].isfile()]
    assert "usr/share/doc/python3.11/copyright" in members
    assert sum(member.size for member in members.values()) < 200 << 20


@pytest.mark.parametrize(
    "change", [{"suite": "nosuch"}, {"suite": "-x"}, {"mirror": "--hook"}, {"mirror": "http://a b"}, {"tag": "A B"}]
)
def test_hostile_names_are_refused(change: dict[str, str], client: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        bootstrap_image(**{"suite": "bookworm", "root": tmp_path, "client": client, **change})


def test_no_tool(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "tools", lambda: [])
    with pytest.raises(EnvironmentMissing, match="neither mmdebstrap nor debootstrap") as error:
        bootstrap_image("bookworm", root=tmp_path, client=client)
    assert "apt-get install mmdebstrap" in str(error.value.remedy)


@pytest.mark.skipif(not bootstrap.tools(), reason="neither mmdebstrap nor debootstrap is installed")
def test_mirror_out_of_reach(client: Any, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="ended with") as error:
        bootstrap_image("bookworm", root=tmp_path, client=client, mirror="http://127.0.0.1:9/debian")
    assert "--mirror" in str(error.value.remedy)
    assert not list((tmp_path / "bases").glob("*.tar"))


def test_cancel(tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    if not bootstrap.tools():
        pytest.skip("neither mmdebstrap nor debootstrap is installed")
    with pytest.raises(StepFailed, match="cancelled"):
        base_tar("bookworm", root=tmp_path, cancel=cancel)


def test_chain_id() -> None:
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert chain_id([one]) == one
    assert chain_id([one, two]) == "sha256:" + hashlib.sha256(f"{one} {two}".encode()).hexdigest()


# ---- a real registry ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(tmp_path_factory.mktemp("registry"))


def test_a_tag_is_pinned_to_the_registrys_digest(base: LockedBase, registry: str, client: Any, tmp_path: Path) -> None:
    small = tmp_path / "small.tar"
    with tarfile.open(small, "w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    name = f"{registry}/team/base"
    client.api.import_image_from_file(str(small), repository=name, tag="1")
    assert base_digest(f"{name}:1", client).kind == "local", "before it was pushed"
    client.images.push(name, tag="1")
    client.images.remove(f"{name}:1")

    locked = base_digest(f"{name}:1", client)
    assert locked.kind == "registry"
    assert locked.reference == f"{name}:1"
    with urllib.request.urlopen(
        urllib.request.Request(
            f"http://{registry}/v2/team/base/manifests/1",
            headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
        )
    ) as answer:
        assert locked.digest == "sha256:" + hashlib.sha256(answer.read()).hexdigest()

    # The tag moves on; the pin does not.
    client.api.import_image_from_file(str(small), repository=name, tag="1", changes=["LABEL moved=yes"])
    client.images.push(name, tag="1")
    client.images.remove(f"{name}:1")
    assert base_digest(f"{name}:1", client).digest != locked.digest
    lines: list[str] = []
    wanted = ensure_base(pinned_reference(locked), client, lines.append)
    try:
        assert any("pulling" in line for line in lines)
        image = client.images.get(wanted)
        assert "moved" not in (image.labels or {})
        assert root_digest(image).startswith("sha256:")
        ensure_base(pinned_reference(locked), client, lines.append)
        assert sum("pulling" in line for line in lines) == 1
    finally:
        client.images.remove(wanted)


def test_a_tag_that_the_registry_does_not_have(registry: str, client: Any) -> None:
    with pytest.raises(EnvironmentMissing, match="team/nosuch") as error:
        base_digest(f"{registry}/team/nosuch:1", client)
    assert error.value.remedy


def test_a_local_base_gets_a_name_with_its_digest(base: LockedBase, client: Any) -> None:
    wanted = ensure_base(pinned_reference(base), client, _ignore)
    assert wanted == f"rwkvflow/base:{base.digest[7:31]}"
    assert root_digest(client.images.get(wanted)) == base.digest
