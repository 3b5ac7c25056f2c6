"""What all tests share: where the fixtures are, and whether a Docker engine is there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO

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
