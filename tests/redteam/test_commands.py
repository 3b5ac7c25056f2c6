"""An extra stage and an engine that do their worst, in Docker and on the host: nothing is read, written or believed."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from rwkvflow.base.errors import RwkvflowError, StepFailed
from rwkvflow.base.hashing import text_digest
from rwkvflow.plan.step import StepLimits
from tests.redteam.conftest import CANARY, TOKEN, Arena

MIB = 1 << 20
OUTPUTS = {
    "a link to the canary": "os.symlink({canary!r}, 'out/x')",
    "a linked folder": "os.symlink({home!r}, 'out/x')",
    "a link in a folder": "os.mkdir('out/x'); os.symlink({canary!r}, 'out/x/y')",
    "out itself a link": "os.rename('out', 'old'); os.symlink({home!r}, 'out')",
    "a pipe": "os.mkfifo('out/x')",
    "a pipe in a folder": "os.mkdir('out/x'); os.mkfifo('out/x/y')",
    "a hole": "f = open('out/x', 'wb'); f.write(b'x'); f.truncate(1 << 43)",
    "three thousand folders": "os.mkdir('out/x'); os.chdir('out/x')\n"
    "for _ in range(3000):\n    os.mkdir('d'); os.chdir('d')",
    "a name that clears the screen": "os.mkdir('out/x'); open('out/x/\\x1b[2J', 'w')",
    "nothing": "pass",
}


@pytest.mark.parametrize("way", OUTPUTS)
def test_no_output_leads_out(arena: Arena, way: str) -> None:
    start = time.monotonic()
    program = "import os\n" + OUTPUTS[way].format(canary=str(arena.canary), home=str(arena.home))
    failure = arena.run(program)["step/0"]
    assert isinstance(failure, StepFailed)
    assert CANARY not in str(failure)
    assert "\x1b" not in str(failure)
    assert time.monotonic() - start < 60
    assert not list((arena.store.root / "tmp").iterdir()), "nothing is left behind"
    with arena.store.exclusive():
        pass


REACH = """
import os, socket, glob, stat
def attempt(name, function):
    try:
        found = function()
    except Exception as error:
        print(name, "denied", type(error).__name__)
    else:
        print(name, "WENT THROUGH", str(found)[:80])
attempt("canary", lambda: open({canary!r}).read())
attempt("canary, write", lambda: open({canary!r}, "a").write("x"))
attempt("canary, mode", lambda: os.chmod({canary!r}, 0o777))
attempt("canary, time", lambda: os.utime({canary!r}, (1, 1)))
attempt("canary, its size", lambda: os.stat({canary!r}).st_size)
attempt("compiler's cache", lambda: open(os.environ["RWKVFLOW_ZIG_CACHE"] + "/evil", "w"))
attempt("compiler's cache by its path", lambda: open({cache!r} + "/evil", "w"))
attempt("home, listed", lambda: os.listdir({home!r}))
attempt("home, new file", lambda: open({home!r} + "/evil", "w"))
attempt("store", lambda: os.listdir({store!r} + "/blobs"))
attempt("store, index", lambda: open({store!r} + "/index/evil", "w"))
attempt("another's blob", lambda: open({precious!r}).read())
attempt("input, write", lambda: open("in/engine", "a"))
attempt("input, mode", lambda: os.chmod("in/engine", 0o777))
attempt("temporary folder", lambda: open("/tmp/../var/tmp/evil", "w"))
attempt("network", lambda: socket.create_connection(("127.0.0.1", {port}), 2))
attempt("abroad", lambda: socket.create_connection(("1.1.1.1", 53), 2))
def token():
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            found.append(open(path, "rb").read())
        except OSError:
            pass
    assert {token!r}.encode() in b"".join(found)
    return "seen"
attempt("token", token)
attempt("memory of the parent", lambda: open("/proc/%d/mem" % {pid}, "rb+"))
attempt("killing it", lambda: os.kill({pid}, 0) if open("/proc/%d/comm" % {pid}).read() == {comm!r} else 1 / 0)
attempt("root", lambda: (os.setuid(0), os.mknod("out/dev", 0o600 | stat.S_IFBLK, 0))[0])
open("out/x", "w").write("done")
"""


def reach(arena: Arena) -> str:
    precious = arena.store.path(arena.precious)
    cache = getattr(arena.sandbox, "root", arena.root) / "zig-cache"
    cache.mkdir(exist_ok=True)
    server = __import__("socket").create_server(("127.0.0.1", 0))
    return REACH.format(
        canary=str(arena.canary),
        home=str(arena.home),
        store=str(arena.store.root),
        precious=str(precious),
        cache=str(cache),
        port=server.getsockname()[1],
        token=TOKEN,
        pid=os.getpid(),
        comm=Path("/proc/self/comm").read_text(encoding="utf-8"),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="walls are Linux's")
@pytest.mark.parametrize("worker", [False, True], ids=["an extra stage", "an engine"])
def test_nothing_is_in_reach(arena: Arena, worker: bool) -> None:
    if not arena.kept_in:
        pytest.skip("this kernel has no walls for the host sandbox, and it says so")
    result = arena.run(reach(arena), worker=worker)["step/0"]
    assert len([line for line in arena.log if "denied" in line]) >= 14, (result, arena.log)
    through = [line for line in arena.log if "WENT THROUGH" in line]
    if not arena.kept_from_modes:
        through = [
            line
            for line in through
            if not line.startswith(("input, mode", "canary, mode", "canary, time", "killing it"))
        ]
    if arena.sandbox.name == "host":  # Landlock hides what files hold, not that they are there
        through = [line for line in through if not line.startswith("canary, its size")]
    assert not through
    assert all(TOKEN not in line and CANARY not in line for line in arena.log)
    if worker:  # the engine wrote over the worker's output before the worker told of it: that is its own step
        assert not isinstance(result, RwkvflowError)


@pytest.mark.skipif(sys.platform != "linux", reason="walls are Linux's")
def test_on_the_host_a_name_can_be_seen_and_no_more(arena: Arena) -> None:
    """Landlock hides what files hold, not that they are there, nor how large they are; a container has no such file."""
    if not arena.kept_in:
        pytest.skip("this kernel has no walls for the host sandbox, and it says so")
    program = (
        "import os\n"
        f"try: print('size', os.stat({str(arena.canary)!r}).st_size)\n"
        "except OSError: print('no file')\n"
        f"try: print('read', open({str(arena.canary)!r}).read())\n"
        "except OSError: print('no reading')\n"
        "open('out/x', 'w').write('done')"
    )
    arena.run(program)
    seen = f"size {len(CANARY)}" if arena.sandbox.name == "host" else "no file"
    assert arena.log == [seen, "no reading"]


FORGED = """
import glob, json, os, stat, sys, ctypes
other = {precious!r}
lines = []
for number in range(4):
    for job in ("step/0", "step/1"):
        message = {{"output": {{"job": job, "name": "x", "sha256": other, "size": 1}}}}
        for text in (json.dumps(message), "%d %s %s" % (number, "0" * 64, json.dumps(message))):
            lines.append("::rwkvflow " + text)
    lines.append("::rwkvflow " + json.dumps({{"note": {{"job": "step/0", "key": "verdict", "value": "forged"}}}}))
    lines.append("::rwkvflow " + json.dumps({{"failed": {{"job": "step/1", "message": "forged"}}}}))
text = "\\n".join(["", *lines, ""])
os.write(1, text.encode()); os.write(2, text.encode())
opened = 0
parent = above = os.getppid()  # the worker, rwkvflow, and whatever started it: nobody else's files are to be spoilt
paths = []
while above > 1 and above != {pid}:
    paths += glob.glob("/proc/%d/fd/*" % above)
    try:
        above = int(open("/proc/%d/stat" % above).read().rpartition(")")[2].split()[1])
    except OSError:
        break
paths += [path for path in glob.glob("/proc/%d/fd/*" % {pid}) if int(path.rpartition("/")[2]) > 2]  # not a shell's
for path in paths:
    try:
        if stat.S_ISREG(os.stat(path).st_mode):  # a channel is a pipe; what else the tests have open stays whole
            continue
        handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(handle, text.encode())
        opened += 1
    except OSError:
        pass
for name, mode in (("mem", os.O_RDWR), ("environ", os.O_RDONLY), ("maps", os.O_RDONLY)):
    try:
        os.read(os.open("/proc/%d/%s" % (parent, name), mode), 1)
        print("the worker's", name, "WENT THROUGH")
    except OSError as error:
        print("the worker's", name, "denied")
libc = ctypes.CDLL(None, use_errno=True)
print("attach", "denied" if libc.ptrace(16, parent, 0, 0) else "WENT THROUGH")
print("key", "WENT THROUGH" if os.path.exists("out/.channel") else "denied")
print("::rwkvflow " + json.dumps({{"progress": {{"done": 1e400, "total": "x"}}}}))
print("::rwkvflow " + json.dumps({{"progress": {{"done": 7, "total": 9, "label": "\\x1b[2J"}}}}))
"""


def test_no_line_of_an_engine_is_a_message(arena: Arena) -> None:
    """Its lines on both streams, and in whatever descriptor it can open, have no effect; its progress is shown."""
    program = FORGED.format(precious=arena.precious.removeprefix("sha256:"), pid=os.getpid())
    results = arena.run(program, worker=True, jobs=2)
    for name in ("step/0", "step/1"):
        output, notes = results[name]
        assert output.digest == text_digest(f"what the worker made for {name}")
        assert notes == {"verdict": "of the worker"}
    assert [line for line in arena.log if line.endswith("denied")]
    assert not [line for line in arena.log if "WENT THROUGH" in line], arena.log
    assert (1, 2, "", "") in arena.progress
    assert (7, 9, "", "\x1b[2J") in arena.progress, "displays spell it out"
    assert all(isinstance(done, int | float) and done < 1e18 for done, *_ in arena.progress)


def test_an_engine_that_changes_what_the_worker_wrote_is_found(arena: Arena) -> None:
    """Its sibling runs on while the worker tells of an output; what was told and what is there must agree."""
    program = (
        "import os, subprocess, sys\n"
        "code = '''import time\n"
        "end = time.monotonic() + 3\n"
        "while time.monotonic() < end:\n"
        '    try: open("out/0.x", "r+").write(str(time.monotonic_ns()))\n'
        "    except OSError: pass\n"
        "'''\n"
        "subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
        "import time; time.sleep(0.5)\n"
    )
    result = arena.run(program, worker=True)["step/0"]
    if isinstance(result, RwkvflowError):
        assert "and the worker wrote" in str(result) or "changed while it was read" in str(result), result
    else:  # nobody wrote in between
        output, _ = result
        path = arena.store.path(output.digest)
        assert path is not None
        assert text_digest(path.read_bytes()) == output.digest, "what is stored is what its name says"


def test_a_command_that_fails_after_it_told_ends_its_step(arena: Arena) -> None:
    alone = arena.run("pass", worker=True, inputs={"crash": ""})["step/0"]
    assert isinstance(alone, StepFailed)
    assert "exit code 3" in str(alone)
    batch = arena.run("pass", worker=True, inputs={"crash": ""}, jobs=2)
    assert [output.digest for output, _ in batch.values()] == [
        text_digest(f"what the worker made for step/{number}") for number in (0, 1)
    ], "what was taken over and checked before stays"
    plain = arena.run("open('out/x', 'w').write('made'); raise SystemExit(4)")["step/0"]
    assert "exit code 4" in str(plain)


def test_a_flood_of_output_costs_neither_time_nor_memory(arena: Arena) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    program = "import os\npiece = b'x' * (1 << 20)\nwhile True: os.write(1, piece)"
    failure = arena.run(program, limits=StepLimits(time_s=5))["step/0"]
    assert "time limit of 5 s" in str(failure)
    assert time.monotonic() - start < 45
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < 128 * MIB


def test_a_flood_of_files_ends_at_the_disk_limit(arena: Arena) -> None:
    program = "import os\nf = open('out/x', 'wb')\nfor _ in range(600): f.write(os.urandom(1 << 20)); f.flush()"
    failure = arena.run(program, limits=StepLimits(time_s=100, disk=20 * MIB))["step/0"]
    assert "of the disk, and its limit is 0.02 GiB" in str(failure)
    assert "stages.extra.disk" in str(failure)


HIDDEN = {
    "sixty-five folders deep": "for _ in range(70):\n    os.mkdir('d'); os.chdir('d')\nf = open('x', 'wb')",
    "in a file without a name": "f = open('x', 'wb'); os.unlink('x')",
}


@pytest.mark.parametrize("way", HIDDEN)
def test_nothing_is_hidden_from_the_disk_limit(arena: Arena, way: str) -> None:
    if arena.sandbox.name == "docker" and way == "in a file without a name":
        pytest.skip("a container's processes are not ours to look into: SECURITY.md says so")
    fill = "for _ in range(60): f.write(os.urandom(1 << 20)); f.flush()\nimport time; time.sleep(50)"
    program = f"import os\nos.chdir('out')\n{HIDDEN[way]}\n{fill}"
    failure = arena.run(program, limits=StepLimits(time_s=40, disk=20 * MIB))["step/0"]
    assert "of the disk" in str(failure), failure


def test_an_input_that_was_changed_is_told_and_dropped(arena: Arena) -> None:
    if arena.kept_in and os.getuid() == 0:
        # Not even root inside gets there, so somebody else does it meanwhile.
        path = arena.root / "new-data"

        def change() -> None:
            blob = arena.store.path(text_digest("data"))
            assert blob is not None
            blob.chmod(0o644)
            blob.write_text("DATA")

        threading.Timer(1.0, change).start()
        program = "import time; time.sleep(3); open('out/x', 'w').write('made')"
        failure = arena.run(program, inputs={"data": "data"})["step/0"]
        assert not path.exists()
        assert "changed its input data" in str(failure)
        assert arena.store.path(text_digest("data")) is None, "it is made or fetched again"


def test_out_of_memory_and_killed_by_somebody_are_told_apart(arena: Arena) -> None:
    eat = "import time; x = b'x' * (300 << 20); time.sleep(60)"
    failure = arena.run(eat, limits=StepLimits(time_s=50, memory=100 * MIB))["step/0"]
    assert "ran out of its memory limit" in str(failure)
    suicide = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    failure = arena.run(suicide, limits=StepLimits(time_s=50, memory=100 * MIB))["step/0"]
    assert "exit code 137" in str(failure)
    assert "memory limit of" not in str(failure)
    assert "signal 9" in str(failure)
    assert "run again" in str(failure.remedy)
