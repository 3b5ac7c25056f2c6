"""convert, inspect, compare, chat, generate and serve run where fcntl and the rest of POSIX do not exist.

Linux without them stands in for Windows in every run of the tests; test_windows.py runs Windows' own Python under wine,
with its locks and its names.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine import librwkv
from tests.standin import StandIn

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "demo" / "rwkv7-demo.pth"
HERE = Path(__file__).resolve().parent / "without_posix"

Run = Callable[..., str]


@pytest.fixture(scope="module")
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    library = librwkv.with_zig(request.config) / "librwkv.so"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
        "RWKVFLOW_LIBRARY": str(library),
        "RWKVFLOW_STORE": str(tmp_path_factory.mktemp("store")),
    }


@pytest.fixture(scope="module")
def standin(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn(tmp_path_factory.mktemp("standin")) as hub:
        environment.update(
            HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path_factory.mktemp("home")), NO_PROXY="127.0.0.1,127.0.0.2"
        )
        yield hub


@pytest.fixture(scope="module")
def run(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(*words): what rwkvflow printed; in a folder with a name that is not ASCII."""
    folder = tmp_path_factory.mktemp("模型é")

    def call(*words: object, stdin: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "rwkvflow", *map(str, words)],
            cwd=folder,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_the_stand_in_has_no_posix(environment: dict[str, str]) -> None:
    code = (
        "import os, importlib.util as u\ntry:\n import fcntl\nexcept ImportError: print('gone', hasattr(os, 'pwrite'))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "gone False\n"


def test_the_stand_in_keeps_what_is_open_or_read_only(environment: dict[str, str], tmp_path: Path) -> None:
    code = """
import mmap, os
from pathlib import Path
from rwkvflow.base.files import remove
def tried(what, *words):
    try:
        what(*words)
    except PermissionError as error:
        return error.strerror
for name in "abcde":
    Path(name).write_text("x")
with open("a") as file:
    print(tried(os.unlink, "a"), tried(os.replace, "b", "a"), tried(os.replace, "a", "b"))
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print(tried(os.unlink, "a"), tried(os.symlink, "b", "l"), tried(os.rename, "b", "c"), tried(os.replace, "b", "c"))
os.chmod("d", 0o444)
print(tried(os.unlink, "d"), tried(remove, Path("d")), os.path.exists("d"))
os.mkdir("f"); os.replace("e", "f/e"); os.chmod("f/e", 0o444)
print(tried(remove, Path("f")), os.path.exists("f"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "in use in use in use\nin use a privilege is missing is there None\nread-only None False\nNone False\n"
    )


def test_every_module_can_be_imported(environment: dict[str, str]) -> None:
    """Also where ctypes finds no functions of the program's own, as on Windows."""
    code = """
import ctypes, importlib, pkgutil, rwkvflow
own = ctypes.CDLL.__init__
def refuse(self, name, *rest, **more):
    assert name is not None, f"while importing {module.name}"
    own(self, name, *rest, **more)
names = list(pkgutil.walk_packages(rwkvflow.__path__, "rwkvflow."))
ctypes.CDLL.__init__ = refuse
for module in names:
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300


def test_one_at_a_time_without_the_systems_locks(environment: dict[str, str], tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from rwkvflow.base.files import locked
from rwkvflow.base.machine import AT_ONCE, EXCLUSIVE
try:
    with locked(Path(sys.argv[1]), EXCLUSIVE | AT_ONCE):
        print("mine", flush=True)
        sys.stdin.read()
except BlockingIOError:
    print("taken")
"""
    words = [sys.executable, "-c", code, str(tmp_path / "a.lock")]
    with subprocess.Popen(words, env=environment, stdin=-1, stdout=-1, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "mine\n"
        second = subprocess.run(words, env=environment, input="", capture_output=True, text=True, check=True)
        assert second.stdout == "taken\n"
        first.communicate("")
    third = subprocess.run(words, env=environment, input="", capture_output=True, text=True, check=True)
    assert third.stdout == "mine\n"


def test_a_library_that_nothing_can_build_is_told(environment: dict[str, str]) -> None:
    code = "import sys; from rwkvflow.app import library; library.in_wheel = lambda: None; library.find_library()"
    without = {name: value for name, value in environment.items() if name != "RWKVFLOW_LIBRARY"}
    done = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, check=False)
    assert "no sandbox of this system can build it" in done.stderr
    assert "wheel of this platform" in done.stderr


def test_files_are_made_proved_and_compared(run: Run, tmp_path: Path) -> None:
    told = run("convert", DEMO, tmp_path / "é", "--format", "gguf-q4_k_m", "--format", "ggml-f16")
    assert told.count("proved by librwkv") == 2
    made = {path.suffix: path for path in (tmp_path / "é").iterdir()}
    assert "differ" in run("compare", DEMO, made[".bin"])
    assert json.loads(run("inspect", made[".gguf"], "--json"))["parameters"] > 900_000
    assert "Q4_K" in run("inspect", made[".gguf"], "--tensors")
    words = ("--seed", 1, "-n", 8)
    said = run("generate", made[".gguf"], "Once upon a time, 你好", *words)
    assert said.strip()
    assert run("chat", made[".bin"], *words, stdin="Hello é\n/quit\n").strip()
    run("convert", DEMO, tmp_path / "é", "--format", "ggml-f16", "--force", "--no-check")
    assert run("chat", DEMO, *words, stdin="Hello\n").strip()  # converted to the store, under a lock, and kept
    assert str(DEMO) in run("cache", "models")
    run("cache", "models", "--empty")


def test_a_model_of_the_hub_is_fetched_converted_and_kept(run: Run, standin: StandIn) -> None:
    """What was open while it arrived is moved and removed only when it no longer is."""
    standin.hub.create("owner/model").commit({"é/m.pth": DEMO.read_bytes(), "README.md": b"# Model"})
    source = "hf://owner/model/é/m.pth"
    assert "923.52K" in run("inspect", source)
    assert "proved by librwkv" in run("convert", source, "ü.gguf", "--format", "gguf-q4_k_m")
    assert run("chat", source, "--seed", 1, "-n", 8, stdin="Hello\n").strip()
    assert source in run("cache", "models")
    assert "removed" in run("cache", "models", "--empty")
    assert source not in run("cache", "models")


def test_a_model_is_served(environment: dict[str, str], run: Run, tmp_path: Path) -> None:
    run("convert", DEMO, tmp_path / "m.bin", "--format", "ggml-f16", "--no-check")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "rwkvflow", "serve", str(tmp_path / "m.bin"), "--port", str(port)]
    log = (tmp_path / "log").open("w+")
    with log, subprocess.Popen(words, env=environment, stdout=log, stderr=log) as server:
        try:
            until = time.monotonic() + 60
            while True:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < until, (tmp_path / "log").read_text()
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
                        assert json.load(answer)["data"]
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.2)
        finally:
            server.terminate()
