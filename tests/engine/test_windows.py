"""convert, inspect, compare, generate, chat and serve by Windows' own Python under wine, from the wheel for Windows.

Each is held against what is made and said here. Names and prompts are of no code page.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import build_wheels
from tests.engine import emulators, librwkv
from tests.helpers import windows
from tests.helpers.windows import Windows
from tests.standin import StandIn

pytestmark = pytest.mark.soak

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "demo" / "rwkv7-demo.pth"
MODEL = "模型 модель.pth"
MADE = ("模型 модель-Q4_K_M.gguf", "模型 модель-Q8_0.bin")
WORDS = ("--seed", "1", "-n", "12")
PROMPT = "Однажды 你好 é"


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Windows]:
    if platform.machine() != "x86_64":
        pytest.skip("wine runs programs for the machine's own processor")
    wine, server = emulators.find("wine wine64", "wine"), emulators.find("wine wine64", "wineserver")
    engine = build_wheels.build_engine("x86_64-windows-gnu", tmp_path_factory.mktemp("engine") / "work")
    wheel = build_wheels.build_wheel(engine, "win_amd64", tmp_path_factory.mktemp("dist"))
    folder = tmp_path_factory.mktemp("窗 é")
    try:
        made = windows.make(folder, wine, wheel)
    except windows.NotToBeHadError as error:
        pytest.skip(f"Windows' Python and its packages cannot be downloaded here: {error}")
    subprocess.run([server, "--persistent=60"], env=made.environment, check=True)
    yield made
    subprocess.run([server, "--kill"], env=made.environment, check=False)


def ran(there: Windows, folder: Path, *words: object, stdin: str = "", code: int = 0) -> str:
    """What rwkvflow prints there."""
    done = there.call("-m", "rwkvflow", *words, stdin=stdin, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr or "subprocess.py" in done.stderr, done.stderr
    return done.stdout if code == 0 else done.stderr


def ran_here(library: Path, folder: Path, *words: object, stdin: str = "") -> str:
    environment = {**os.environ, "RWKVFLOW_LIBRARY": str(library), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rwkvflow", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, input=stdin.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config) / "librwkv.so"


@pytest.fixture(scope="module")
def folder(there: Windows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the checkpoint, and two files made of it."""
    place = tmp_path_factory.mktemp("папка é")
    (place / MODEL).write_bytes(DEMO.read_bytes())
    told = ran(there, place, "convert", MODEL, "выход", "--format", "gguf-q4_k_m", "--format", "ggml-q8_0")
    assert told.count("proved by librwkv") == 2
    return place


def test_files_and_answers_are_those_of_linux(there: Windows, folder: Path, library: Path) -> None:
    ran_here(library, folder, "convert", MODEL, "здесь", "--format", "gguf-q4_k_m", "--format", "ggml-q8_0")
    for name in MADE:
        assert (folder / "выход" / name).read_bytes() == (folder / "здесь" / name).read_bytes()
    questions: list[tuple[tuple[str, ...], str]] = [
        (("inspect", MODEL), ""),
        (("inspect", f"выход/{MADE[0]}", "--json"), ""),
        (("compare", MODEL, f"выход/{MADE[1]}"), ""),
        (("generate", f"выход/{MADE[0]}", PROMPT, *WORDS), ""),
        (("generate", f"выход/{MADE[1]}", "-", *WORDS), PROMPT + "\r\n"),
        (("chat", f"выход/{MADE[1]}", *WORDS), f"{PROMPT}\n/save состояние\n/quit\n"),
        (("chat", f"выход/{MADE[1]}", "--state", "состояние", *WORDS), "é\n"),
    ]
    for words, stdin in questions:
        assert ran(there, folder, *words, stdin=stdin) == ran_here(library, folder, *words, stdin=stdin), words


def test_what_windows_refuses_is_said(there: Windows, folder: Path) -> None:
    for name, code in (("con.gguf", 1), ("q:m.gguf", 1), ("нет/" + "x" * 300 + ".gguf", 2)):
        told = ran(there, folder, "convert", MODEL, name, "--format", "gguf-f16", code=code)
        assert told.startswith("error: "), "before the work"
    assert not (folder / "нет").exists()


def test_one_at_a_time_by_the_systems_locks(there: Windows, folder: Path) -> None:
    code = """
import sys
from pathlib import Path
from rwkvflow.base.files import locked
from rwkvflow.base.machine import AT_ONCE, EXCLUSIVE
try:
    with locked(Path(sys.argv[1]), EXCLUSIVE | AT_ONCE, leave=False):
        print("mine", flush=True)
        sys.stdin.read()
except BlockingIOError:
    print("taken")
"""
    name = "замок.lock"
    words = [*there.words, "-c", code, name]
    # Windows' Python does not start under wine where one of its streams is a file.
    with subprocess.Popen(words, env=there.environment, cwd=folder, stdin=-1, stdout=-1, stderr=-1, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == "mine"
        assert there.call("-c", code, name, cwd=folder).stdout.strip() == "taken"
        first.communicate("")
    assert there.call("-c", code, name, cwd=folder).stdout.strip() == "mine"
    assert not (folder / name).exists()


def test_a_model_of_the_hub_is_fetched_converted_and_kept(there: Windows, folder: Path, tmp_path: Path) -> None:
    with StandIn(tmp_path / "standin") as hub:
        hub.hub.create("owner/model").commit({"é/модель.pth": DEMO.read_bytes(), "README.md": b"# Model"})
        there.more.update(HF_ENDPOINT=hub.endpoint, HF_HOME=windows.path(tmp_path), NO_PROXY="127.0.0.1,127.0.0.2")
        source = "hf://owner/model/é/модель.pth"
        assert "923.52K" in ran(there, folder, "inspect", source)
        assert ran(there, folder, "chat", source, *WORDS, stdin=PROMPT + "\n").strip()
        assert source in ran(there, folder, "cache", "models")
        assert "removed" in ran(there, folder, "cache", "models", "--empty")
        assert source not in ran(there, folder, "cache", "models")


def test_a_model_is_served_and_not_replaced_meanwhile(there: Windows, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [*there.words, "-m", "rwkvflow", "serve", f"выход/{MADE[0]}", "--port", str(port)]
    with subprocess.Popen(words, cwd=folder, env=there.environment, stdin=-3, stdout=-1, stderr=-2) as server:
        try:
            until = time.monotonic() + 300
            while True:
                assert server.poll() is None
                assert time.monotonic() < until
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=60) as answer:
                        assert json.load(answer)["data"][0]["id"] == MADE[0].removesuffix(".gguf")
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.5)
            asked = json.dumps({"prompt": PROMPT, "max_tokens": 8, "seed": 1}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions", asked, {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - of this machine
                assert json.load(answer)["choices"][0]["text"]
            told = ran(
                there, folder, "convert", MODEL, f"выход/{MADE[0]}", "--format", "gguf-q4_k_m", "--force", code=2
            )
            assert "cannot be replaced" in told
        finally:
            server.terminate()
            server.communicate()
