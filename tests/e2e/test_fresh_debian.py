"""A fresh Debian with what the README names and nothing else: `make demo && make test`, all of it; no Docker."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cli import ROOT
from tests.e2e.conftest import CACHE
from tests.helpers import network

pytestmark = [pytest.mark.docker, pytest.mark.soak]
# README: "You need …". Certificates are those of this machine, and a clone needs git.
NAMED = ("git", "make", "python3-venv")


@pytest.fixture(scope="module")
def debian(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A container with a clone of what is committed, and the name of it."""
    from rwkvflow.sandbox.image.bootstrap import bootstrap_image, tools

    if not tools():
        pytest.skip("neither mmdebstrap nor debootstrap is installed")
    image = bootstrap_image(root=CACHE, packages=NAMED, client=client).reference
    clone = tmp_path_factory.mktemp("clone") / "rwkvflow"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", f"file://{ROOT}", str(clone)], check=True)
    argv = [
        "docker",
        "run",
        "--detach",
        "--init",
        *network.arguments(),
        "-v",
        f"{clone}:/src:ro",
        image,
        "sleep",
        "14400",
    ]
    name = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        inside(name, "useradd --create-home someone && cp -r /src /home/someone/rwkvflow")
        inside(name, "chown -R someone:someone /home/someone")
        yield name
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)


def inside(name: str, command: str, user: str = "root") -> str:
    """What a command in the clone prints."""
    where = ["--user", user, "--workdir", "/home/someone/rwkvflow"] if user != "root" else []
    argv = ["docker", "exec", *where, "--env", f"HOME=/home/{user}" if user != "root" else "HOME=/root", name]
    done = subprocess.run([*argv, "sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-30000:]
    return done.stdout + done.stderr


def megabytes(name: str) -> float:
    """What the set-up takes by now; prints it by package."""
    told = inside(name, ".venv/bin/python scripts/set_up_size.py", "someone")
    print(told)
    return float(told.splitlines()[-1].split()[0])


def test_the_demo_and_then_all_tests(debian: str) -> None:
    told = inside(debian, "make demo", "someone")
    assert "out/demo" in told
    assert "the default socket" in told, "the host sandbox was taken, and why is said"
    assert megabytes(debian) < 300
    inside(debian, "make .venv/.dev", "someone")
    assert megabytes(debian) < 1500, "README says so"
    told = inside(debian, "make test", "someone")
    assert " passed" in told
    assert "lint, types, docs:" in told
    (left_out,) = [line for line in told.splitlines() if "tests were not run" in line]
    print(left_out)
    assert "that need a Docker engine (none answers)" in left_out
    assert "that need an emulator" in left_out
    assert "`.ci/run` insists on all" in left_out
    assert megabytes(debian) < 1800, "with the bytecode that the tests have written"
    inside(debian, "test ! -e .venv/.cache -a ! -e .venv/.excluded", "someone")
