"""`rwkvflow verify --rebuild`: a release is made again from its own recipe and lock, and compared bit by bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.cli import Project, project

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
    for name in ("provenance.json", "README.md", "sbom.cdx.json", "quality.json"):
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
    here = {"RWKVFLOW_STORE": str(usual)}
    done = published("verify", "out", "--rebuild", "--recipe", "recipe.yaml", *HOST, env=here)
    assert done.code == 0, done.err
    assert "ok      rebuild: 7 files made again, each with the same bytes" in done.out
    assert not list((usual / "index").rglob("*.json")), "in a store of its own"


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
