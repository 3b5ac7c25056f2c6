"""The host sandbox for real: virtual environments from real wheels, commands that end in every way."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkvflow.base.errors import EnvironmentMissing, StepFailed
from rwkvflow.plan.step import StepLimits
from rwkvflow.sandbox.base import Command, EnvironmentSpec, Result
from rwkvflow.sandbox.host import HostSandbox, host_platform
from rwkvflow.sandbox.isolation.walls import walls
from rwkvflow.sandbox.pythons import find_python, probe
from tests.wheels import make_wheel, requirement

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
NEVER = threading.Event()
NONE = StepLimits()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EnvironmentSpec:
    """An environment with one worker wheel, one toolchain wheel and some code."""
    folder = tmp_path_factory.mktemp("wheelhouse with spaces")
    hello = make_wheel(folder, "hello", "1.2", {"hello.py": "WHO = 'a wheel'\n"})
    tool = make_wheel(folder, "tool", "3.0", {"tool.py": "WHO = 'a tool'\n"})
    code = tmp_path_factory.mktemp("code")
    (code / "mycode.py").write_text("WHO = 'code'\n")
    return EnvironmentSpec(
        tag="a" * 64,
        image="test",
        dockerfile="",
        base=None,
        python=PYTHON,
        wheels=folder,
        requirements={
            "toolchain.txt": requirement(tool),
            "worker.txt": requirement(hello),
        },
        context={"code/inner": code, "engines/librwkv": code},
    )


@pytest.fixture(scope="module")
def sandbox(spec: EnvironmentSpec, tmp_path_factory: pytest.TempPathFactory) -> HostSandbox:
    sandbox = HostSandbox(tmp_path_factory.mktemp("store") / "environments")
    assert not sandbox.has(spec.tag)
    sandbox.build(spec, StepLimits(), lambda line: None, NEVER)
    return sandbox


Run = Callable[..., tuple[Result, list[str]]]


@pytest.fixture
def run(sandbox: HostSandbox, spec: EnvironmentSpec, tmp_path: Path) -> Run:
    """Runs a Python program in the sandbox."""

    def run(
        program: str, *, inputs: dict[str, Path] | None = None, limits: StepLimits = NONE, **more: object
    ) -> tuple[Result, list[str]]:
        lines: list[str] = []
        command = Command(("python3", "-c", program), inputs or {}, **{k: v for k, v in more.items() if k != "cancel"})  # type: ignore[arg-type]
        cancel = more.get("cancel", NEVER)
        assert isinstance(cancel, threading.Event)
        return sandbox.run(spec.tag, command, tmp_path / "work", limits, lines.append, cancel), lines

    return run


def test_environment_has_wheels_toolchain_and_code(run: Run, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("given")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("inside")
    result, lines = run(
        "import hello, inner.mycode, os, sys; print(hello.WHO, inner.mycode.WHO);"
        "sys.path.append(os.environ['RWKVFLOW_TOOLCHAIN']); import tool; print(tool.WHO);"
        "print(open('in/a').read(), open('in/b/x').read(), open('in/request.json').read());"
        "open('out/result', 'w').write('done')",
        inputs={"a": tmp_path / "given", "b": tmp_path / "folder"},
        request=b"{}",
    )
    assert (result.exit_code, lines) == (0, ["a wheel code", "a tool", "given inside {}"]), result.tail
    assert (tmp_path / "work/out/result").read_text() == "done"
    assert not (tmp_path / "work/tmp").exists()


def test_environment_is_clean(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HTTPS_PROXY", "PYTHONPATH", "LD_PRELOAD", "LC_NUMERIC", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "leak")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    result, lines = run("import os, json; print(json.dumps(dict(os.environ)))", env={"EXTRA": "1"})
    assert result.exit_code == 0
    assert "leak" not in lines[0]
    assert '"TZ": "UTC"' in lines[0]
    assert '"EXTRA": "1"' in lines[0]
    assert '"OMP_WAIT_POLICY": "passive"' in lines[0]


def test_failure_has_exit_code_and_tail(run: Run) -> None:
    result, lines = run("import sys; print('über'); print('no good', file=sys.stderr); sys.exit(3)")
    assert result.exit_code == 3
    assert sorted(lines) == ["no good", "über"]
    assert "no good" in result.tail


def test_time_limit(run: Run) -> None:
    start = time.monotonic()
    result, lines = run("import time; print('up', flush=True); time.sleep(60)", limits=StepLimits(time_s=1))
    assert result.timed_out
    assert not result.cancelled
    assert lines == ["up"]
    assert time.monotonic() - start < 20


def test_cancel(run: Run) -> None:
    cancel = threading.Event()
    timer = threading.Timer(0.5, cancel.set)
    timer.start()
    result, _ = run("import time; time.sleep(60)", cancel=cancel)
    timer.join()
    assert result.cancelled
    assert not result.timed_out
    assert not result.out_of_memory


@pytest.mark.skipif(sys.platform != "linux", reason="memory is watched through /proc")
@pytest.mark.parametrize("where", ["itself", "child"])
def test_memory_limit(run: Run, where: str) -> None:
    eat = "import time; x = b'x' * (300 << 20); time.sleep(60)"
    program = eat if where == "itself" else f"import subprocess, sys; subprocess.run([sys.executable, '-c', {eat!r}])"
    result, _ = run(program, limits=StepLimits(memory=100 << 20, time_s=50))
    assert result.out_of_memory
    assert not result.timed_out
    assert not result.cancelled


@pytest.mark.skipif(sys.platform != "linux", reason="memory is watched through /proc")
def test_mapped_files_do_not_count(run: Run, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(300 << 20)
    program = (
        "import mmap; f = open('in/big', 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ);"
        "print(sum(m[i] for i in range(0, len(m), 4096))); import time; time.sleep(0.5)"
    )
    result, _ = run(program, inputs={"big": big}, limits=StepLimits(memory=100 << 20, time_s=50))
    assert result.exit_code == 0, result.tail
    assert not result.out_of_memory


@pytest.mark.parametrize("session", [False, True])
def test_nothing_keeps_running(run: Run, session: bool) -> None:
    """A background process that lets go of the output does not outlive the command."""
    if session and not walls().namespaces:
        pytest.skip("without namespaces, what made a session of its own gets away")
    mark = f"mark-{uuid.uuid4().hex}"
    result, _ = run(
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'],"
        f"stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session={session}); print('up')"
    )
    assert result.exit_code == 0, result.tail
    deadline = time.monotonic() + 10
    while _runs(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(mark)


def _runs(mark: str) -> bool:
    """Not by ps, which a small Debian lacks."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace")
            if mark in words and "start_new_session" not in words:
                return True
    return False


def test_missing_input_and_environment(sandbox: HostSandbox, run: Run, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"input x: .* does not exist"):
        run("pass", inputs={"x": tmp_path / "nowhere"})
    with pytest.raises(EnvironmentMissing, match="no environment"):
        sandbox.run("b" * 64, Command(("python3",), {}), tmp_path, StepLimits(), lambda line: None, NEVER)


def _changed(spec: EnvironmentSpec, **changes: object) -> EnvironmentSpec:
    return EnvironmentSpec(**{**spec.__dict__, **changes})


def test_wrong_hash_is_refused_and_nothing_stays(sandbox: HostSandbox, spec: EnvironmentSpec) -> None:
    bad = spec.requirements["worker.txt"].split("sha256:")[0] + "sha256:" + "0" * 64 + "\n"
    other = _changed(spec, tag="c" * 64, requirements={**spec.requirements, "worker.txt": bad})
    with pytest.raises(StepFailed, match=r"(?s)ended with 1.*Hash mismatch"):
        sandbox.build(other, StepLimits(), lambda line: None, NEVER)
    assert not (sandbox.root / other.tag).exists()


def test_missing_wheel_is_named(sandbox: HostSandbox, spec: EnvironmentSpec) -> None:
    more = {**spec.requirements, "worker.txt": f"torch==2.13.0 --hash=sha256:{'0' * 64}\n"}
    with pytest.raises(StepFailed, match=r"no wheel of torch 2\.13\.0"):
        sandbox.build(_changed(spec, tag="d" * 64, requirements=more), StepLimits(), lambda line: None, NEVER)


def test_absent_python_is_told_with_those_that_are_here(sandbox: HostSandbox, spec: EnvironmentSpec) -> None:
    with pytest.raises(EnvironmentMissing, match=r"no Python 3\.99 .*found: .*" + PYTHON.replace(".", r"\.")) as error:
        sandbox.build(_changed(spec, tag="e" * 64, python="3.99"), StepLimits(), lambda line: None, NEVER)
    assert "--sandbox docker" in str(error.value.remedy)


def test_half_built_environment_is_built_again(spec: EnvironmentSpec, tmp_path: Path) -> None:
    sandbox = HostSandbox(tmp_path)
    half = tmp_path / spec.tag / "venv" / "bin"
    half.mkdir(parents=True)
    (half / "python").symlink_to(sys.executable)
    assert not sandbox.has(spec.tag)
    assert sandbox.sweep() == 1
    half.mkdir(parents=True)
    (half / "leftover").write_text("")
    sandbox.build(spec, StepLimits(), lambda line: None, NEVER)
    assert sandbox.has(spec.tag)
    assert not (half / "leftover").exists()
    assert sandbox.tags() == [spec.tag]
    assert sandbox.sweep() == 0
    sandbox.remove(spec.tag)
    assert not sandbox.has(spec.tag)


def test_two_builders_make_it_once(spec: EnvironmentSpec, tmp_path: Path) -> None:
    made: list[str] = []
    errors: list[BaseException] = []

    def build() -> None:
        try:
            HostSandbox(tmp_path).build(
                spec, StepLimits(), lambda line: made.append(line) if "virtual env" in line else None, NEVER
            )
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(made) == 1
    assert HostSandbox(tmp_path).has(spec.tag)


def test_cancelled_build_leaves_nothing(spec: EnvironmentSpec, tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(StepFailed, match="cancelled"):
        HostSandbox(tmp_path).build(spec, StepLimits(), lambda line: None, cancel)
    assert not (tmp_path / spec.tag).exists()


def test_find_python() -> None:
    found = find_python(PYTHON)
    out = subprocess.run([found, "-c", "import sys; print(sys.version_info[:2])"], check=True, capture_output=True)
    assert out.stdout.decode().strip() == str(sys.version_info[:2])
    assert probe(Path("/bin/false")) is None
    assert probe(Path("/nowhere/python")) is None


def test_platform_is_one_that_locks_know() -> None:
    system, _, machine = host_platform().partition("-")
    assert system in ("linux", "macos")
    assert machine
