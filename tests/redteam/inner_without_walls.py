"""What stands open on a host without walls is what SECURITY.md says; test_without_walls.py runs it on such a one."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from rwkvflow.sandbox.isolation.walls import Walls, walls
from tests.redteam.conftest import CANARY, Arena

OPEN = """
import os, socket, subprocess, sys
def attempt(name, function):
    try:
        function()
    except Exception as error:
        print(name, "denied", type(error).__name__)
    else:
        print(name, "WENT THROUGH")
attempt("read", lambda: print("read of", len(open({canary!r}).read())))
attempt("write", lambda: open({canary!r}, "r+").close())
attempt("mode", lambda: os.chmod({canary!r}, 0o600))
attempt("size", lambda: os.stat({canary!r}))
attempt("network", lambda: socket.create_connection(("127.0.0.1", {port}), 5))
attempt("processes", lambda: os.kill({pid}, 0))
attempt("cache", lambda: open({cache!r}, "w").close())
later = "import time; time.sleep(1); open({outlived!r}, 'w').close()"
attempt("outlive", lambda: subprocess.Popen([sys.executable, "-c", later], start_new_session=True))
libc = __import__("ctypes").CDLL(None)
print("the worker's memory", "denied" if libc.ptrace(16, os.getppid(), 0, 0) else "WENT THROUGH")
open("out/x", "w").write("done")
"""


@pytest.mark.parametrize("sandbox", ["host"], indirect=True)
def test_what_stands_open_is_what_the_table_says(arena: Arena, tmp_path: Path) -> None:
    assert walls() == Walls(), "this is no host without walls"
    server = socket.create_server(("127.0.0.1", 0))
    outlived = tmp_path / "outlived"
    program = OPEN.format(
        canary=str(arena.canary),
        port=server.getsockname()[1],
        pid=os.getpid(),
        cache=str(tmp_path / "another's cache"),
        outlived=str(outlived),
    )
    arena.run(program, worker=True)
    found = {line.rpartition(" WENT")[0] for line in arena.log if line.endswith("WENT THROUGH")}
    assert found == {"read", "write", "mode", "size", "network", "processes", "cache", "outlive"}, arena.log
    assert f"read of {len(CANARY)}" in arena.log
    end = time.monotonic() + 20
    while not outlived.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert outlived.exists()
