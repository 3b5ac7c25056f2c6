"""What all tests share: where the fixtures are, and whether a Docker engine is there."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import hypothesis
import pytest

from tests import kept, shared_errors, spent

# huggingface_hub reads it once, when it is first imported, which another test in this process may do before ours.
os.environ["HF_HUB_DISABLE_XET"] = "1"

# A job that a shell starts in the background ignores it, and so would every program that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
KEPT = pytest.StashKey[IO[str]]()  # open as long as this run lasts
FIXTURES = Path(os.environ.get("RWKVFLOW_FIXTURES", ROOT.parent / "shared" / "fixtures"))

# A deadline in milliseconds asserts time, and on a busy machine fails for no reason. CI tries the same examples every
# time, so that a change fails for what it changes; new ones are tried wherever people run the tests.
SAME_EXAMPLES = bool(os.environ.get("RWKVFLOW_SAME_EXAMPLES"))
hypothesis.settings.register_profile("rwkvflow", deadline=None, derandomize=SAME_EXAMPLES)
hypothesis.settings.load_profile("rwkvflow")


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What a test, or a library that it runs in this process, leaves in the environment ends with the test."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder with fixtures that the project does not contain."""
    if not FIXTURES.is_dir():
        pytest.skip(f"no fixtures at {FIXTURES.name}/ beside the checkout; set RWKVFLOW_FIXTURES")
    return FIXTURES


def pytest_configure(config: pytest.Config) -> None:
    """Our own plugins."""
    for plugin in (shared_errors, spent):
        config.pluginmanager.register(plugin)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make room for what tests keep between runs; once, before the workers of xdist start."""
    if not hasattr(session.config, "workerinput"):
        session.config.stash[KEPT] = kept.use(ROOT / ".rwkvflow" / "tests")


#: What is found in the reason of a test that was left out, and how that is summed up; the first that is found counts.
LEFT_OUT = (
    ("no Docker engine", "that need a Docker engine (none answers)"),
    ("qemu|bochs|wine|emulator", "that need an emulator (qemu-user-static, bochs, wine)"),
    (r"\bg\+\+|\bgcc\b|clang|C\+\+ compiler|toolchain system|readelf", "that need the system's compiler (g++, clang)"),
    ("chromium|npm", "that need a browser (chromium)"),
    ("docker-registry|debootstrap|dockerd|openssl|slurm|no make|no ninja|bcrypt", "that need another program"),
    ("processor runs the avx512 kernels itself", "of kernels that run here without an emulator"),
    ("takes root|cannot be mounted|not the network|network namespace", "that need root"),
    ("fixtures|names no clone", "that need files from outside of the project"),
    ("package index|cannot bring|not installed|not here", "that need a package that could not be had"),
    ("hold this version|not a version of this format", "of a version that its format does not hold"),
)


def left_out(reasons: list[str]) -> str:
    """One line that says how many tests were left out, and why."""
    told: dict[str, int] = {}
    for reason in reasons:
        why = next((summed for words, summed in LEFT_OUT if re.search(words, reason)), "for other reasons")
        told[why] = told.get(why, 0) + 1
    order = [*(summed for _, summed in LEFT_OUT), "for other reasons"]
    parts = [f"{told[summed]} {summed}" for summed in order if summed in told]
    return f"{len(reasons)} tests were not run: {', '.join(parts)}; `.ci/run` insists on all"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say at the end, in a line that nobody overlooks, what a green run has left out."""
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", ()) if report.longrepr]
    if reasons:
        terminalreporter.section("left out", sep="=")
        terminalreporter.write_line(left_out(reasons))


def _docker_problem() -> str | None:
    try:
        import docker

        client = docker.from_env(timeout=10)
        client.ping()
        client.close()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Docker tests skip with the reason where no engine answers, and fail where one is required (CI)."""
    wanted = [item for item in items if item.get_closest_marker("docker")]
    if not wanted:
        return
    problem = _docker_problem()
    if problem is None:
        return
    if os.environ.get("RWKVFLOW_REQUIRE_DOCKER"):
        raise pytest.UsageError(f"RWKVFLOW_REQUIRE_DOCKER is set and no Docker engine answers: {problem}")
    for item in wanted:
        item.add_marker(pytest.mark.skip(reason=f"no Docker engine: {problem}"))
