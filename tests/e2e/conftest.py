"""What tests share: a base image of Debian packages and a wheelhouse, both kept between runs; the stand-in hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.engine.binding import NAMES
from rwkvflow.worker.build.toolchain import CACHE_VARIABLE
from scripts import build_wheels
from tests.engine import librwkv
from tests.helpers.hub_releases import TOKEN
from tests.standin import StandIn

NAME = NAMES.get(sys.platform, "librwkv.so")
CACHE = Path(__file__).resolve().parents[2] / ".rwkvflow" / "tests"


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """A client of the Docker engine that answers."""
    from rwkvflow.sandbox.daemon import connect

    client = connect()
    yield client
    client.close()


@pytest.fixture(scope="session")
def base(client: Any) -> Any:
    """LockedBase of rwkvflow-base:bookworm, bootstrapped once per checkout."""
    from rwkvflow.sandbox.image.bootstrap import bootstrap_image, tools

    if not tools():
        pytest.skip("neither mmdebstrap nor debootstrap is installed; no base image can be made")
    return bootstrap_image("bookworm", root=CACHE, client=client)


@pytest.fixture(scope="session")
def wheelhouse() -> Path:
    """The pinned wheels of all roles but zig and CMake (130 MB), for Linux and Python 3.11."""
    from rwkvflow.lock.pins import pinned

    folder = CACHE / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    roles = pinned("3.11")
    wanted = [*roles["worker"], *(item for item in roles["toolchain"] if item.startswith("ninja"))]
    there = {"==".join(path.name.split("-")[:2]).replace("_", "-") for path in folder.glob("*.whl")}
    if not {item.replace("_", "-") for item in wanted} <= there:
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        argv += ["--python-version=3.11", "--implementation=cp", "--dest", str(folder)]
        for tag in ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64"):
            argv += ["--platform", tag]
        done = subprocess.run([*argv, *wanted], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no wheels from the package index: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="session")
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this platform, made as a release makes it."""
    librwkv.with_zig(request.config)  # skips where there is no zig
    assert request.config.cache is not None
    os.environ.setdefault(CACHE_VARIABLE, str(request.config.cache.mkdir("zig")))
    work = tmp_path_factory.mktemp("wheel")
    return build_wheels.of_this_machine(work / "engine", work / "dist")


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in hub as the hub of this process, with a token that may write to `me/`."""
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with StandIn(tmp_path / "hub") as net:
        net.tokens[TOKEN] = "me"
        monkeypatch.setenv("HF_ENDPOINT", net.endpoint)
        yield net
