"""The Docker sandbox against a real engine: an image from the real template, and containers that end in every way."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from rwkvflow.base.errors import EnvironmentMissing, StepFailed
from rwkvflow.base.hashing import file_digest
from rwkvflow.documents.lock import LockedBase
from rwkvflow.plan.step import StepLimits
from rwkvflow.sandbox import daemon
from rwkvflow.sandbox.base import Command, EnvironmentSpec, Result
from rwkvflow.sandbox.choose import choose
from rwkvflow.sandbox.docker import DockerSandbox, reference
from rwkvflow.sandbox.image.archive import context, stream
from rwkvflow.sandbox.image.base_image import base_digest, ensure_base
from rwkvflow.sandbox.image.dockerfile import pinned_reference, render_dockerfile
from rwkvflow.sandbox.image.unpack import unpacked
from tests.wheels import requirement

pytestmark = pytest.mark.docker

NEVER = threading.Event()
NONE = StepLimits()
MIB = 1 << 20
# Stands where rwkvflow/worker will: the sandbox knows of it only that it makes out/engine of in/source and a request.
WORKER = """
import os, pathlib, shutil, socket, subprocess, sys
assert sys.argv[1:] == ["in/request.json"] and os.getuid() == 65534, (sys.argv, os.getuid())
ninja = os.environ["RWKVFLOW_TOOLCHAIN"] + "/bin/ninja"
print("ninja", subprocess.check_output([ninja, "--version"], text=True).strip())
print("networks", [name for _, name in socket.if_nameindex()])
shutil.copytree("in/source", "out/engine")
"""


def _ignore(line: str) -> None:
    pass


def _changed(spec: EnvironmentSpec, **changes: object) -> EnvironmentSpec:
    return EnvironmentSpec(**{**spec.__dict__, **changes})


@pytest.fixture(scope="module")
def spec(base: LockedBase, wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> EnvironmentSpec:
    folder = tmp_path_factory.mktemp("context")
    for name, text in (
        # Another one each time, so that the builder's cache does not have it.
        ("code/rwkvflow/worker/__main__.py", f"{WORKER}# {uuid.uuid4()}\n"),
        ("engine/librwkv.txt", "an engine\n"),
        ("requests/librwkv.json", "{}"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    wheels = {path.name.split("-")[0]: requirement(path) for path in wheelhouse.glob("*.whl")}
    return EnvironmentSpec(
        tag="5a" * 32,
        image="test",
        dockerfile=render_dockerfile(base=base, python="3.11", engines=["librwkv"], labels={"org.rwkvflow.lock": "x"}),
        base=pinned_reference(base),
        python="3.11",
        wheels=wheelhouse,
        requirements={
            "toolchain.txt": wheels["ninja"],
            "worker.txt": wheels["numpy"] + wheels["safetensors"],
        },
        context={
            "code/rwkvflow/worker": folder / "code/rwkvflow/worker",
            "engines/librwkv": folder / "engine",
            "requests": folder / "requests",
        },
        labels={"org.rwkvflow.recipe": "y"},
    )


def test_wheels_are_unpacked_as_pip_installs_them(wheelhouse: Path, tmp_path: Path) -> None:
    wheels = [path for path in sorted(wheelhouse.glob("*.whl")) if not path.name.startswith("pip-")]
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*argv, "--target", str(tmp_path), *map(str, wheels)], check=True)
    shutil.rmtree(tmp_path / "bin", ignore_errors=True)  # scripts that pip makes of entry points, and ninja's own
    made_by_pip = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
    theirs = {
        path.relative_to(tmp_path).as_posix(): (path.read_bytes(), os.access(path, os.X_OK))
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name not in made_by_pip
    }
    ours = {}
    for name, member in unpacked({path: frozenset({file_digest(path)[7:]}) for path in wheels}).items():
        if not name.startswith("bin/") and not name.endswith(made_by_pip):
            ours[name] = (member.open()[1].read(), member.executable)
    assert ours == theirs


@pytest.fixture(scope="module")
def built(client: Any, spec: EnvironmentSpec) -> Iterator[tuple[DockerSandbox, list[str]]]:
    sandbox = DockerSandbox(client)
    sandbox.remove(spec.tag)
    assert not sandbox.has(spec.tag)
    lines: list[str] = []
    sandbox.build(spec, StepLimits(time_s=500), lines.append, NEVER)
    yield sandbox, lines
    sandbox.remove(spec.tag)
    assert not sandbox.has(spec.tag)
    sandbox.prune()


@pytest.fixture
def sandbox(built: tuple[DockerSandbox, list[str]]) -> DockerSandbox:
    return built[0]


Run = Callable[..., tuple[Result, list[str]]]


@pytest.fixture
def run(sandbox: DockerSandbox, spec: EnvironmentSpec, tmp_path: Path, client: Any) -> Iterator[Run]:
    def run(
        program: str,
        *,
        inputs: dict[str, Path] | None = None,
        limits: StepLimits = NONE,
        cancel: threading.Event = NEVER,
        **more: Any,
    ) -> tuple[Result, list[str]]:
        lines: list[str] = []
        command = Command(("python3", "-c", program), inputs or {}, **more)
        return sandbox.run(spec.tag, command, tmp_path, limits, lines.append, cancel), lines

    yield run
    assert not _containers(client), "no container is left, however it ended"


def _containers(client: Any) -> list[Any]:
    mine = f"org.rwkvflow.pid={os.getpid()}"
    return list(client.containers.list(all=True, filters={"label": mine}))


# ---- images ----------------------------------------------------------------------------------------------------------


def test_image(built: tuple[DockerSandbox, list[str]], spec: EnvironmentSpec, client: Any) -> None:
    sandbox, lines = built
    assert sandbox.has(spec.tag)
    assert spec.tag in sandbox.tags()
    assert not sandbox.has("5a" * 12 + "00" * 20), "the name is shortened; the label is not"
    log = "\n".join(lines)
    assert "ninja 1.13" in log
    assert "networks ['lo']" in log
    image = client.images.get(reference(spec.tag))
    config = image.attrs["Config"]
    assert config["User"] == "65534:65534"
    assert config["Labels"]["org.rwkvflow.lock"] == "x"
    assert config["Labels"]["org.rwkvflow.recipe"] == "y"
    assert config["Labels"]["org.opencontainers.image.base.name"] == "rwkvflow-base:bookworm"
    history = str(image.history())
    assert "proxy" not in history.lower()


def test_image_holds_wheels_and_engine_but_no_toolchain(run: Run) -> None:
    result, lines = run(
        "import numpy, safetensors.numpy, os; print(numpy.arange(3).sum());"
        "print(open('/opt/rwkvflow/engine/librwkv/librwkv.txt').read().strip());"
        "print([p for p in ('/wheelhouse', '/opt/rwkvflow/toolchain') if os.path.exists(p)]);"
        "print(os.path.exists(os.path.join(os.path.dirname(numpy.__file__), '__pycache__')))"
    )
    assert (result.exit_code, lines) == (0, ["3", "an engine", "[]", "True"]), result.tail


def test_context_is_the_same_every_time(spec: EnvironmentSpec) -> None:
    import hashlib

    digests = set()
    for _ in range(2):
        digest = hashlib.sha256()
        for piece in stream(context(spec)):
            assert len(piece) <= MIB
            digest.update(piece)
        digests.add(digest.hexdigest())
        for folder in spec.context.values():
            for path in folder.rglob("*"):
                os.utime(path, (1, 1))
    assert len(digests) == 1


def test_second_build_takes_the_cache(built: Any, spec: EnvironmentSpec) -> None:
    sandbox = built[0]
    other = _changed(spec, tag="5b" * 32)
    lines: list[str] = []
    try:
        sandbox.build(other, NONE, lines.append, NEVER)
        assert any("Using cache" in line for line in lines)
        assert not any("ninja 1.13" in line for line in lines), "the engine is not built again"
        assert sandbox.has(other.tag)
        assert sandbox.has(spec.tag)
    finally:
        sandbox.remove(other.tag)


def test_failing_build_shows_its_log(sandbox: DockerSandbox, spec: EnvironmentSpec, tmp_path: Path) -> None:
    (tmp_path / "__main__.py").write_text("raise SystemExit('cmake: no such thing\\nüber')")
    bad = _changed(spec, tag="5c" * 32, context={**spec.context, "code/rwkvflow/worker": tmp_path})
    with pytest.raises(StepFailed, match=r"(?s)non-zero code.*cmake: no such thing\nüber"):
        sandbox.build(bad, NONE, _ignore, NEVER)
    assert not sandbox.has(bad.tag)


def test_other_python_than_the_base_has(sandbox: DockerSandbox, spec: EnvironmentSpec, base: LockedBase) -> None:
    bad = _changed(
        spec, tag="5d" * 32, dockerfile=render_dockerfile(base=base, python="3.12", engines=["librwkv"]), python="3.12"
    )
    with pytest.raises(StepFailed, match=r"the base image has Python 3\.11, the recipe asks for 3\.12"):
        sandbox.build(bad, NONE, _ignore, NEVER)


def test_damaged_wheel_is_found_while_it_is_sent(sandbox: DockerSandbox, spec: EnvironmentSpec, tmp_path: Path) -> None:
    for path in spec.wheels.glob("*.whl"):
        (tmp_path / path.name).symlink_to(path)
    victim = next(tmp_path.glob("safetensors*.whl"))
    data = bytearray(victim.read_bytes())
    data[1000] ^= 1
    victim.unlink()
    victim.write_bytes(data)
    with pytest.raises(StepFailed, match=r"safetensors.*has sha256 .* the lock says") as error:
        sandbox.build(_changed(spec, tag="5e" * 32, wheels=tmp_path), NONE, _ignore, NEVER)
    assert "cache verify" in str(error.value.remedy)


@pytest.mark.parametrize("how", ["cancel", "time"])
def test_a_build_can_be_stopped(
    sandbox: DockerSandbox, spec: EnvironmentSpec, tmp_path: Path, how: str, client: Any
) -> None:
    (tmp_path / "__main__.py").write_text(f"import time; print('slow {how}', flush=True); time.sleep(300)")
    slow = _changed(spec, tag="5f" * 32, context={**spec.context, "code/rwkvflow/worker": tmp_path})
    cancel = threading.Event()

    seen: list[Any] = []

    def on_line(line: str) -> None:
        if line == f"slow {how}":
            give_up = time.monotonic() + 10  # on a busy machine the engine lists a container later than it runs
            while not seen and time.monotonic() < give_up:
                seen.extend(_running(client, f"slow {how}"))
            if how == "cancel":
                cancel.set()

    start = time.monotonic()
    with pytest.raises(StepFailed, match="cancelled" if how == "cancel" else "took longer than 25 s"):
        sandbox.build(slow, StepLimits(time_s=25 if how == "time" else None), on_line, cancel)
    assert time.monotonic() - start < 100
    assert seen, "it was under way"
    deadline = time.monotonic() + 30
    while _running(client, f"slow {how}") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _running(client, f"slow {how}"), "the engine stopped the build as well"


def _running(client: Any, words: str) -> list[Any]:
    """The containers that run a worker with `words` in its code; other tests have theirs beside them."""
    found = []
    for container in client.containers.list(ignore_removed=True):
        with contextlib.suppress(docker.errors.APIError):  # it may be gone by now, or have no such file
            pieces, _ = container.get_archive("/opt/rwkvflow/code/rwkvflow/worker/__main__.py")
            if words.encode() in b"".join(pieces):
                found.append(container)
    return found


def test_base_that_is_absent_or_another(client: Any, base: LockedBase) -> None:
    absent = LockedBase(reference="rwkvflow-base:nosuch", digest="sha256:" + "0" * 64, kind="local")
    with pytest.raises(EnvironmentMissing, match="no image rwkvflow-base:nosuch") as error:
        ensure_base(pinned_reference(absent), client, _ignore)
    assert "rwkvflow image bootstrap" in str(error.value.remedy)
    other = LockedBase(reference=base.reference, digest="sha256:" + "0" * 64, kind="local")
    with pytest.raises(StepFailed, match="the lock says sha256:000"):
        ensure_base(pinned_reference(other), client, _ignore)
    with pytest.raises(EnvironmentMissing, match="no image rwkvflow-base:nosuch"):
        base_digest("rwkvflow-base:nosuch", client)


def test_registry_out_of_reach(client: Any) -> None:
    with pytest.raises(EnvironmentMissing) as error:
        base_digest("127.0.0.1:9/nobody/python:3.11", client)
    assert "docker load" in str(error.value.remedy)


# ---- containers ------------------------------------------------------------------------------------------------------


def test_layout(run: Run, tmp_path: Path) -> None:
    given = tmp_path / "odd name: ü"
    given.write_text("given")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("inside")
    result, lines = run(
        "import os; print(os.getcwd());"
        "print(open('in/a').read(), open('in/b/x').read(), open('in/request.json').read());"
        "os.makedirs('out/sub'); open('out/sub/result', 'w').write('done');"
        "print(os.environ['EXTRA'], os.environ['TZ'])",
        inputs={"a": given, "b": tmp_path / "folder"},
        request=b"{}",
        env={"EXTRA": "$HOME"},
    )
    assert (result.exit_code, lines) == (0, ["/job", "given inside {}", "$HOME UTC"]), result.tail
    made = tmp_path / "out/sub/result"  # which stays the container's until it is taken over
    assert made.read_text() == "done"
    made.unlink()


def test_walls(run: Run, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("given")
    program = """
import os, socket
def attempt(name, function):
    try:
        function()
    except OSError as error:
        print(name, type(error).__name__)
    else:
        print(name, "WENT THROUGH")
attempt("root", lambda: open("/opt/x", "w"))
attempt("input", lambda: open("in/a", "w"))
attempt("more input", lambda: open("in/b", "w"))
attempt("network", lambda: socket.create_connection(("1.1.1.1", 53), 3))
attempt("setuid", lambda: os.setuid(0))
attempt("chown", lambda: os.chown("out", 0, 0))
open("/tmp/x", "w").write("#!/bin/sh"); os.chmod("/tmp/x", 0o755)
attempt("exec in tmp", lambda: os.execv("/tmp/x", ["x"]))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["CapEff"].strip(), status["CapBnd"].strip(), status["NoNewPrivs"].strip(), status["Uid"].split()[0] != "0")
"""
    result, lines = run(program, inputs={"a": tmp_path / "given"})
    assert result.exit_code == 0, result.tail
    assert "WENT THROUGH" not in result.tail
    assert lines[-1] == "0000000000000000 0000000000000000 1 True"
    assert (tmp_path / "given").read_text() == "given"


def test_no_proxy_or_token_gets_in(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "leak")
    monkeypatch.setenv("HTTPS_PROXY", "http://leak:leak@proxy")
    result, lines = run("import os; print(dict(os.environ))")
    assert result.exit_code == 0
    assert "leak" not in lines[0]
    assert "proxy" not in lines[0].lower()


def test_lines_are_whole(run: Run) -> None:
    # A character in two halves, a line without an end, and a line longer than the log driver's 16 kB pieces.
    program = (
        "import sys, time; w = sys.stdout.buffer; w.write('erste Zeile ü'.encode()[:-1]); w.flush(); time.sleep(0.5);"
        "w.write('ü'.encode()[1:] + b'\\n' + b'x' * 40000 + b'\\n'); w.flush();"
        "sys.stderr.write('half '); sys.stderr.flush(); w.write(b'the end'); w.flush(); time.sleep(0.5);"
        "sys.stderr.write('whole\\n'); sys.stderr.flush(); sys.exit(3)"
    )
    result, lines = run(program)
    assert result.exit_code == 3
    assert lines == ["erste Zeile ü", "x" * 40000, "half whole", "the end"], [line[:40] for line in lines]


def test_a_silence_longer_than_the_clients_patience(run: Run, sandbox: DockerSandbox) -> None:
    before, sandbox.client.api.timeout = sandbox.client.api.timeout, 3
    try:
        result, lines = run("import time; print(1, flush=True); time.sleep(6); print(2)")
    finally:
        sandbox.client.api.timeout = before
    assert (result.exit_code, lines) == (0, ["1", "2"])


@pytest.mark.parametrize("who", ["itself", "child"])
def test_memory_limit(run: Run, who: str) -> None:
    eat = "x = b'x' * (400 << 20)"
    child = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {eat!r}]) == 0)"
    result, _ = run(eat if who == "itself" else child, limits=StepLimits(memory=100 * MIB))
    assert result.out_of_memory
    assert result.exit_code == (137 if who == "itself" else 0)
    assert not result.timed_out


def test_process_limit(run: Run) -> None:
    program = """
import os, time
count = 0
try:
    for _ in range(200):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        count += 1
except OSError as error:
    print(type(error).__name__, count < 50)
"""
    result, lines = run(program, limits=StepLimits(pids=50))
    assert (result.exit_code, lines) == (0, ["BlockingIOError True"]), result.tail


def test_time_limit(run: Run) -> None:
    result, lines = run("import time; print('up', flush=True); time.sleep(300)", limits=StepLimits(time_s=4))
    assert result.timed_out
    assert not result.out_of_memory
    assert lines == ["up"]
    assert result.seconds < 60


def test_cancel(run: Run) -> None:
    cancel = threading.Event()
    timer = threading.Timer(2, cancel.set)
    timer.start()
    result, _ = run("import time; time.sleep(300)", cancel=cancel, limits=StepLimits(memory=100 * MIB))
    timer.join()
    assert result.cancelled
    assert not result.out_of_memory
    assert not result.timed_out


def test_more_cores_than_there_are(run: Run) -> None:
    result, _ = run("pass", limits=StepLimits(cores=1000))
    assert result.exit_code == 0


def test_a_listener_that_fails_leaves_no_container(
    sandbox: DockerSandbox, spec: EnvironmentSpec, tmp_path: Path, client: Any
) -> None:
    def on_line(line: str) -> None:
        raise KeyboardInterrupt

    command = Command(("python3", "-c", "import time; print(1, flush=True); time.sleep(300)"), {})
    with pytest.raises(KeyboardInterrupt):
        sandbox.run(spec.tag, command, tmp_path, NONE, on_line, NEVER)
    assert not _containers(client)


def test_input_that_only_root_may_read(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    if os.getuid() == 0:
        with pytest.raises(StepFailed, match="readable for its owner only"):
            run("pass", inputs={"a": secret})
    else:
        assert run("open('in/a')", inputs={"a": secret})[0].exit_code == 0


def test_input_that_is_absent(run: Run, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"input a: .* does not exist"):
        run("pass", inputs={"a": tmp_path / "nowhere"})


def test_image_that_is_absent(sandbox: DockerSandbox, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="no image rwkvflow/worker:eeee"):
        sandbox.run("e" * 64, Command(("python3",), {}), tmp_path, NONE, _ignore, NEVER)


def test_sweep_removes_what_a_killed_run_left(sandbox: DockerSandbox, spec: EnvironmentSpec, client: Any) -> None:
    program = (
        "import sys; from rwkvflow.sandbox.daemon import connect, owner_labels; c = connect();"
        f"print(c.containers.create({reference(spec.tag)!r}, ['python3'], labels=owner_labels()).id, flush=True);"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    sandbox.sweep()
    assert client.containers.get(name), "its run lives"
    process.kill()
    process.wait()
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()
    assert sandbox.sweep() >= 1

    with pytest.raises(docker.errors.NotFound):
        client.containers.get(name)


# ---- engines that are not there -------------------------------------------------------------------------------------


def test_engine_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(EnvironmentMissing, match="no Docker engine answers at unix://") as error:
        daemon.connect()
    assert "--sandbox host" in str(error.value.remedy)
    sandbox, why = choose("auto", tmp_path)
    assert sandbox.name == "host"
    assert "no Docker engine answers" in why


def test_auto_takes_an_engine_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox, why = choose("auto", tmp_path)
    assert sandbox.name == "docker"
    assert "a Docker engine answers" in why
    assert sandbox.platform.startswith("linux-")


def test_engine_that_goes_away_midway(spec: EnvironmentSpec, sandbox: DockerSandbox, tmp_path: Path) -> None:
    """A proxy in front of the engine's socket that dies, as seen from here, like an engine does."""
    proxy = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("socket_proxy.py")),
            str(tmp_path / "s"),
            _socket(sandbox.client),
        ],
        stdout=subprocess.PIPE,
    )
    assert proxy.stdout is not None
    proxy.stdout.readline()
    import docker

    behind = DockerSandbox(docker.DockerClient(base_url=f"unix://{tmp_path}/s"))
    command = Command(("python3", "-c", "import time; print('up', flush=True); time.sleep(300)"), {})
    try:
        with pytest.raises(StepFailed, match="the Docker engine stopped answering") as error:
            behind.run(spec.tag, command, tmp_path / "w", NONE, lambda line: proxy.kill(), NEVER)
        assert "docker info" in str(error.value.remedy)
    finally:
        proxy.kill()
        proxy.wait()
        proxy.stdout.close()
        for container in _containers(sandbox.client):
            container.remove(force=True)


def _socket(client: Any) -> str:
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not address.startswith("unix://"):
        pytest.skip("the engine is not behind a Unix socket")
    return address.removeprefix("unix://")
