"""`rwkvflow verify --rebuild`: a release is made again from its own recipe and lock, and compared bit by bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.cli import Project, project
from tests.unit.release.test_verify import key_pair

HOST = ("--sandbox", "host")
ARTIFACT = "tiny4/tiny4-Q5_1.bin"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has been run, on the store that the tests of the host sandbox warm."""
    from tests.e2e.conftest import CACHE

    made = project(tmp_path_factory.mktemp("rebuild") / "p", CACHE / "store")
    done = made("run", "recipe.yaml", *HOST)
    assert done.code == 0, done.err
    return made


def forge(release: Path) -> None:
    """Change an artifact, and then everything that speaks of it: only a signature, or making it again, can tell."""
    data = bytearray((release / ARTIFACT).read_bytes())
    data[-1] ^= 1
    (release / ARTIFACT).write_bytes(data)
    old = {line[66:]: line[:64] for line in (release / "SHA256SUMS").read_text().splitlines()}
    for name in ("provenance.json", "sbom.cdx.json", "quality.json", "catalogue.json"):
        text = (release / name).read_text().replace(old[ARTIFACT], hashlib.sha256(data).hexdigest())
        (release / name).write_text(text)
    statement = json.loads((release / "provenance.json").read_text())
    for subject in statement["subject"]:
        digest = hashlib.sha256((release / subject["name"]).read_bytes()).hexdigest()
        subject["digest"]["sha256"] = digest
    (release / "provenance.json").write_text(json.dumps(statement))
    lines = [f"{hashlib.sha256((release / name).read_bytes()).hexdigest()}  {name}\n" for name in old]
    (release / "SHA256SUMS").write_text("".join(lines))


def test_an_honest_release_is_made_again_bit_by_bit(published: Project, tmp_path: Path) -> None:
    # The store of the fixture is shared with tests that write to it meanwhile; of this one, only downloads are known.
    usual = tmp_path / "store"
    shutil.copytree(published.store / "downloads", usual / "downloads", copy_function=os.link)
    key_pair(tmp_path, "ann")
    said = ("--attest", f"{tmp_path}/ann.key", "-o", f"{tmp_path}/ann.json")
    done = published("verify", "out", "--rebuild", "--recipe", "recipe.yaml", *HOST, "--store", str(usual), *said)
    assert done.code == 0, done.err
    assert "ok      rebuild: 7 files made again, each with the same bytes (host)" in done.out
    assert not list((usual / "index").rglob("*.json")), "in a store of its own"
    asked = ("--require-rebuilds", "1", "--rebuilder", f"ann={tmp_path}/ann.pub")
    assert published("verify", "out", *asked).code == 9
    done = published("verify", "out", *asked, "--attestations", f"{tmp_path}/ann.json")
    assert done.code == 0, done.out
    assert "ok      rebuilt by ann with the same bytes (" in done.out


@pytest.mark.soak
def test_a_release_of_the_host_is_made_again_in_docker_and_both_vouch_for_it(
    published: Project, tmp_path: Path
) -> None:
    pytest.importorskip("docker")
    lines = []
    for name, sandbox in (("ann", "host"), ("bob", "docker")):
        key_pair(tmp_path, name)
        said = ("--attest", f"{tmp_path}/{name}.key", "-o", f"{tmp_path}/said/{name}.json")
        (tmp_path / "said").mkdir(exist_ok=True)
        done = published("verify", "out", "--rebuild", "--recipe", "recipe.yaml", "--sandbox", sandbox, *said)
        assert done.code == 0, done.out + done.err
        assert f"7 files made again, each with the same bytes ({sandbox})" in done.out
        lines += [line for line in done.out.splitlines() if "differs" in line]
    assert not [line for line in lines if "patch" in line], "the published patch is the same as well"
    people = [text for name in ("ann", "bob") for text in ("--rebuilder", f"{name}={tmp_path}/{name}.pub")]
    asked = ("--require-rebuilds", "2", "--attestations", f"{tmp_path}/said", *people)
    done = published("verify", "out", *asked)
    assert done.code == 0, done.out
    (tmp_path / "said/bob.json").unlink()
    done = published("verify", "out", *asked)
    assert done.code == 9
    assert "nothing that counts came from bob" in done.out


def test_a_forgery_that_is_consistent_is_found_by_making_it_again(published: Project, tmp_path: Path) -> None:
    shutil.copytree(published.folder / "out", tmp_path / "forged")
    forge(tmp_path / "forged")
    assert published("verify", str(tmp_path / "forged")).code == 0, "nothing but making it again can tell"
    done = published("verify", str(tmp_path / "forged"), "--rebuild", "--recipe", "recipe.yaml", *HOST)
    assert done.code == 9
    wrong = [line for line in done.out.splitlines() if line.startswith("WRONG")]
    assert len(wrong) == 1, done.out
    assert wrong[0].startswith(f"WRONG   {ARTIFACT} differs: the release has ")


def test_checkpoints_that_are_not_here_are_said_with_the_remedy(published: Project) -> None:
    done = published("verify", "out", "--rebuild", *HOST)
    assert done.code == 2
    assert "models.tiny4: models/rwkv4-demo.pth cannot be read" in done.err
    assert "--recipe" in done.err
