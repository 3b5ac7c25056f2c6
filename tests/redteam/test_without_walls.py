"""A host whose kernel has no walls, in earnest: a filter answers the calls of Landlock and namespaces with "not known".

Nothing happens there by rwkvflow's own hand - no output is followed, no line believed, nothing unbounded - and a
recipe that brings code of its own runs only when the person says so. (Documents, stores and hubs are refused before any
command runs; for them the walls make no difference.)
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rwkvflow.documents.load import load_recipe
from rwkvflow.documents.lock import recipe_digest
from rwkvflow.sandbox.isolation import launch
from rwkvflow.sandbox.isolation.walls import NETWORK_LANDLOCK, walls
from tests.helpers import no_walls
from tests.redteam.test_documents import Guest, _wheels, guest, lock_of  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[2]
FILTER = Path(no_walls.__file__)
NO_DOCKER = {"DOCKER_HOST": "tcp://no-docker-here.invalid:1"}
TOUCH = 'execute_process(COMMAND touch "{0}")'
#: What a recipe, its workflow or its lock brings in of its own.
BRINGS: dict[str, dict[str, Any]] = {
    "an engine's folder": {"engine": {"source": {"path": "engine"}}},
    "an engine's repository": {"engine": {"source": {"git": "https://example.org/e", "commit": "c" * 40}}},
    "a CMake option": {"engine": {"cmake": {"CMAKE_CXX_COMPILER_LAUNCHER": "./evil"}}},
    "a patch": {"engine": {"patches": [{"name": "p", "files": ["*"], "pattern": "a", "replace": "b"}]}},
    "a wheel": {"image": {"wheels": ["evil==1.0"]}},
    "an extra stage": {},
    "a package of the lock alone": {},
}


def without(what: str, *command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a kernel that lacks `what`; the test is skipped where this one has no such filters."""
    done = subprocess.run(
        [sys.executable, str(FILTER), what, *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=240, check=False,
    )  # fmt: skip
    if done.returncode == no_walls.CANNOT:
        pytest.skip("this kernel has no filters of system calls")
    return done


def test_each_wall_is_missed_and_told() -> None:
    """What is said is what the kernel answers: nothing here is patched."""
    program = "from rwkvflow.sandbox.isolation.walls import walls as w; print(w().files, w().network, w().whole, w())"
    for what, expected in (("walls", "False False False no isolation"), ("landlock", "False ")):
        assert without(what, sys.executable, "-c", program).stdout.startswith(expected)
    said = without("namespaces", sys.executable, "-c", program).stdout
    assert "namespaces" not in said


def test_nothing_is_followed_believed_or_unbounded(tmp_path: Path) -> None:
    """The red team's own commands, with the walls away."""
    names = "no_output or no_line or after_it_told or flood_of_files or stands_open"
    done = without(
        "walls", sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider",
        "--basetemp", tmp_path / "inner", "-m", "not docker", "-k", f"host and ({names})",
        "tests/redteam/test_commands.py", "tests/redteam/inner_without_walls.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    passed = set(re.findall(r"^PASSED .*::(\w+)\[host", done.stdout, re.MULTILINE))
    assert passed == {
        "test_no_output_leads_out",
        "test_no_line_of_an_engine_is_a_message",
        "test_a_command_that_fails_after_it_told_ends_its_step",
        "test_a_flood_of_files_ends_at_the_disk_limit",
        "test_what_stands_open_is_what_the_table_says",
    }
    assert "skipped" not in done.stdout


CONNECT = """
import socket, sys
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try:
        socket.socket(socket.AF_INET, kind).connect(("127.0.0.1", int(sys.argv[1])))
        print(kind.name, "WENT THROUGH")
    except OSError:
        print(kind.name, "denied")
"""


def test_landlock_alone_keeps_tcp_in_and_no_more() -> None:
    """As the table says of the network, on a kernel without namespaces."""
    if walls().landlock < NETWORK_LANDLOCK:
        pytest.skip("this kernel's Landlock knows no ports")
    rules = {"namespaces": False, "readonly": False, "landlock": True, "read": ["/"], "write": ["/dev/null"]}
    launcher = Path(launch.__file__)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = (launcher, json.dumps(rules), "--", sys.executable, "-c", CONNECT, port)
        done = without("namespaces", sys.executable, "-I", "-S", *command)
    assert done.stdout.split("\n")[:2] == ["SOCK_STREAM denied", "SOCK_DGRAM WENT THROUGH"], done.stderr


def ways(folder: Path) -> None:
    """In the process without walls: run each of `BRINGS`, unasked and with the person's word; print how it ended."""
    from rwkvflow.cli import cli

    for number, (way, changes) in enumerate(BRINGS.items()):
        made = Guest(_new(folder / str(number)))
        (made.folder / "engine").mkdir()
        canary = made.home / "ran"
        (made.folder / "engine/CMakeLists.txt").write_text(TOUCH.format(canary), encoding="utf-8")
        path = made.recipe(**changes)
        words = ["run", str(path), "--store", str(made.store.root)]
        if way == "an extra stage":
            extra = {"name": "own", "command": ["touch", str(canary)], "outputs": ["x"]}
            (made.folder / "w.yaml").write_text(yaml.safe_dump({"extra": [extra]}), encoding="utf-8")
            words += ["--workflow", str(made.folder / "w.yaml")]
        if way == "a package of the lock alone":
            lock = lock_of(made)
            wheel = {**_wheels(lock)["worker"][0], "name": "evil", "version": "1.0"}
            _wheels(lock)["worker"].append({**wheel, "filename": "evil-1.0-py3-none-any.whl"})
            lock["recipe"] = recipe_digest(load_recipe(path))
            path.with_name("recipe.lock.yaml").write_text(json.dumps(lock), encoding="utf-8")
            words.append("--locked")
        for said in ([], ["--sandbox", "host"]):
            error = CliRunner().invoke(cli, [*words, *said]).exception
            print(json.dumps([way, bool(said), type(error).__name__, str(error), canary.exists()]))


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_no_such_recipe_runs_without_the_persons_word(tmp_path: Path) -> None:
    program = "import pathlib, sys; from tests.redteam.test_without_walls import ways; ways(pathlib.Path(sys.argv[1]))"
    nowhere = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    done = without("walls", sys.executable, "-c", program, tmp_path, **NO_DOCKER, **nowhere)
    assert done.returncode == 0, done.stderr
    ended = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [(way, said) for way, said, *_ in ended] == [(way, said) for way in BRINGS for said in (False, True)]
    for way, said, kind, text, ran in ended:
        refused = kind == "EnvironmentMissing" and "nothing here would keep it in" in text
        assert refused != said, (way, said, kind, text)
        assert not ran
    stores = [tmp_path / str(number) / "store/environments" for number in range(len(BRINGS))]
    assert not any(store.exists() and any(store.iterdir()) for store in stores)


def test_doctor_and_the_report_say_so(guest: Guest) -> None:  # noqa: F811 - the fixture
    said = without("walls", sys.executable, "-m", "rwkvflow", "doctor", **NO_DOCKER).stdout
    assert re.search(r"host walls.*no isolation: commands run as you, with your files and network in reach", said)
    assert "need Docker here, or your word: --sandbox host" in said
    path = guest.recipe()
    path.with_name("recipe.lock.yaml").write_text(json.dumps(lock_of(guest)), encoding="utf-8")
    nowhere = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "RWKVFLOW_STORE": str(guest.store.root)}
    ran = without("walls", sys.executable, "-m", "rwkvflow", "run", path, "--locked", **NO_DOCKER, **nowhere)
    assert "no isolation" in ran.stdout + ran.stderr, "its shipped code runs there, and is told where"
    assert ran.returncode not in (0, 2, 4), "there are no wheels to go on with"
    page = guest.root / "report.html"
    done = without("walls", sys.executable, "-m", "rwkvflow", "report", path, "-o", page, **nowhere)
    assert done.returncode == 0, done.stderr
    assert "no isolation" in page.read_text(encoding="utf-8")
