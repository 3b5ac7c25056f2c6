"""From nothing to a model that answers: the wheel of this platform, an empty environment with only uv, two lines."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from rwkvflow.engine.binding import NAMES
from rwkvflow.stages.engine import TARGETS
from rwkvflow.worker.build.toolchain import CACHE_VARIABLE, host_platform
from rwkvflow.worker.read.gguf_file import read_gguf_index
from scripts import build_wheels
from tests.e2e import first_minute
from tests.engine import librwkv

PROCESSOR = 30  # seconds, of all that is typed
DOWNLOADS = 100_000_000  # bytes besides the checkpoint: the wheel and all that it needs
NAME = NAMES.get(sys.platform, "librwkv.so")


@pytest.fixture(scope="module")
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this platform, made as a release makes it."""
    librwkv.with_zig(request.config)  # skips where there is no zig
    assert request.config.cache is not None
    os.environ.setdefault(CACHE_VARIABLE, str(request.config.cache.mkdir("zig")))
    target = TARGETS[host_platform()]
    tag = next(tag for tag, zig in build_wheels.TARGETS.items() if zig == target)
    work = tmp_path_factory.mktemp("wheel")
    engine = build_wheels.build_engine(target, work / "engine")
    return build_wheels.build_wheel(engine, build_wheels.fitting_tag(tag, engine / "lib" / NAME), work / "dist")


def test_the_wheels_library_is_that_of_a_build_from_source(wheel: Path, request: pytest.FixtureRequest) -> None:
    """Built by another way in another folder, at another time: the same digest."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = archive.read(f"rwkvflow/_shipped/engine/lib/{NAME}")
    built = (librwkv.with_zig(request.config) / NAME).read_bytes()
    assert hashlib.sha256(shipped).hexdigest() == hashlib.sha256(built).hexdigest()


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
