"""From nothing to a model that answers: the wheel of this platform, an empty environment with only uv, two lines."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from rwkvflow.base.hashing import tree_digest
from rwkvflow.worker.read.gguf_file import read_gguf_index
from tests.e2e import first_minute
from tests.e2e.cli import ROOT, project
from tests.e2e.conftest import NAME
from tests.engine import librwkv

PROCESSOR = 30  # seconds, of all that is typed
DOWNLOADS = 100_000_000  # bytes besides the checkpoint: the wheel and all that it needs


def test_the_wheels_library_is_that_of_a_build_from_source(wheel: Path, request: pytest.FixtureRequest) -> None:
    """Built by another way in another folder, at another time: the same digest."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = archive.read(f"rwkvflow/_shipped/engine/lib/{NAME}")
    built = (librwkv.with_zig(request.config) / NAME).read_bytes()
    assert hashlib.sha256(shipped).hexdigest() == hashlib.sha256(built).hexdigest()


def test_the_host_takes_the_wheels_engine_which_is_that_of_a_build(wheel: Path, tmp_path: Path) -> None:
    """The same digest of all files, so whoever has the release made again by a build gets the same bytes."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            archive.extract(name, tmp_path / "site")
    made: dict[str, str] = {}
    for name, code in (("taken", tmp_path / "site"), ("built", ROOT)):
        small = project(tmp_path / name, tmp_path / "stores" / name)
        if made:
            shutil.copytree(tmp_path / "stores/taken/downloads", small.store / "downloads")
        words = ("engine", "build", "recipe.yaml", "--sandbox", "host", "--print-path")
        done = small(*words, env={"PYTHONPATH": str(code)})
        assert done.code == 0, done.err
        assert ("from the wheel of rwkvflow" in done.err) == (name == "taken"), done.err
        made[name] = tree_digest(Path(done.out.strip()))
    assert made["taken"] == made["built"]


@pytest.mark.soak
def test_a_wheel_of_the_source_package_is_of_the_same_version(wheel: Path, tmp_path: Path) -> None:
    """Built where there is no git; and what is installed says the version of its metadata."""
    version = wheel.name.split("-")[1]
    hatch = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run([*hatch, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True)
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    subprocess.run([*hatch, "-t", "wheel"], cwd=tmp_path / source.name.removesuffix(".tar.gz"), check=True)
    (made,) = tmp_path.glob("*.whl")
    assert made.name == f"rwkvflow-{version}-py3-none-any.whl"
    for path in (made, wheel):
        with zipfile.ZipFile(path) as archive:
            assert archive.read("rwkvflow/_version.py").decode() == f'__version__ = "{version}"\n'
            assert "rwkvflow/_shipped/recipes/demo.yaml" in archive.namelist()


def test_one_line_proves_and_a_second_one_talks(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = first_minute.first_minute(wheel, first_minute.DEMO, tmp_path)
    told = "\n".join(first_minute.printed(lines, wheel))
    with capsys.disabled():
        print(f"\n{told}")
    assert [line.code for line in lines] == [0, 0], told
    convert, chat = lines
    assert convert.output.count("proved by librwkv") == len(first_minute.FORMATS), told
    made = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in made] == ["rwkv7-demo-Q4_K_M.gguf", "rwkv7-demo-Q8_0.bin"]
    assert read_gguf_index(made[0]).tensors
    assert chat.output.strip(), told
    assert sum(line.cpu for line in lines) <= PROCESSOR, told
    downloaded = convert.downloaded + wheel.stat().st_size
    assert 20_000_000 < downloaded <= DOWNLOADS, told  # less, and the proxy has not seen what came
    assert "compil" not in told
    for store in (tmp_path / "home").rglob("zig-cache"):
        pytest.fail(f"something was compiled: {store}")
