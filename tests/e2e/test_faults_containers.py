"""Whole runs whose containers are killed, and whose engine dies, at any step and moment: the next run ends well.

Each case begins with a store in which the wheels and the image are, and nothing that a container made. The k-th
container of the run is killed, or the engine is, so long after it was seen; then the error says what happened and what
to do, the store verifies, a new run goes on and finishes, and what it publishes are the right bytes. One is in
test_docker.py; here, RWKVFLOW_FAULTS says how many there are at random, and RWKVFLOW_SEED which.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from rwkvflow.documents.lock import LockedBase
from tests.e2e.cli import Project, Ran, project
from tests.e2e.conftest import CACHE
from tests.helpers.private_engine import PrivateEngine, private_engine, problem

pytestmark = pytest.mark.docker

DOCKER = ("--sandbox", "docker")
KEPT = ("wheels/", "image/", "fetch/")
BOUNDARIES = 5  # containers of such a run: engine, convert, reference, what is asked, what judges


@pytest.fixture(scope="module")
def whole(base: LockedBase, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has been run once, on the store that the other tests in Docker warm."""
    made = project(tmp_path_factory.mktemp("faults") / "p", CACHE / "docker-store")
    done = made("run", "recipe.yaml", *DOCKER)
    assert done.code == 0, done.err
    return made


def fresh(whole: Project, folder: Path) -> Project:
    """The same project, with a store of its own that has nothing that a container made."""
    made = project(folder / "p", folder / "store", seed=whole.store)
    shutil.copy(whole.folder / "recipe.lock.yaml", made.folder)
    for path in (made.store / "index").rglob("*.json"):
        if not str(json.loads(path.read_text()).get("step", "")).startswith(KEPT):
            path.unlink()
    return made


def struck(
    made: Project, client: Any, number: int, wait: float, strike: Callable[[Any], None], env: dict[str, str]
) -> tuple[Ran, bool]:
    """A run, and whether `strike` was called: with its container of this number, so long after it was seen."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rwkvflow", "run", "recipe.yaml", *DOCKER],
        cwd=made.folder,
        env=made.environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen: list[str] = []
    fell = threading.Event()

    def watch() -> None:
        label = {"label": f"org.rwkvflow.pid={process.pid}"}
        while process.poll() is None and len(seen) <= number:
            with contextlib.suppress(docker.errors.APIError):
                for container in client.containers.list(filters=label, ignore_removed=True):
                    if container.id not in seen:
                        seen.append(container.id)
                        if len(seen) > number:
                            time.sleep(wait)
                            strike(container)
                            fell.set()
                            return
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate(timeout=600)
    watcher.join()
    return Ran(process.returncode, out, err), fell.is_set()


def goes_on(made: Project, whole: Project, env: dict[str, str]) -> None:
    """The store is whole, and the next run finishes with the right bytes."""
    checked = made("cache", "verify", env=env)
    assert checked.code == 0, checked.out + checked.err
    done = made("run", "recipe.yaml", *DOCKER, env=env)
    assert done.code == 0, done.err
    assert made.files() == whole.files()
    assert made("cache", "verify", env=env).code == 0


def kill_one(made: Project, whole: Project, client: Any, number: int, wait: float) -> str:
    """One case; how it ended: "killed", or "late" where the container had ended by itself, or there was none."""
    ran, fell = struck(made, client, number, wait, lambda container: container.kill(), {})
    if ran.code:
        assert fell, ran.err
        assert "killed by signal 9, neither by rwkvflow nor for its memory limit" in ran.err
        assert "if nothing in it kills itself, run again" in " ".join(ran.err.split())
        assert "Traceback" not in ran.err
    goes_on(made, whole, {})
    return "killed" if ran.code else "late"


@pytest.mark.soak
def test_containers_that_are_killed_at_any_moment(whole: Project, tmp_path: Path, client: Any) -> None:
    dice = random.Random(os.environ.get("RWKVFLOW_SEED", "20261130"))
    cases = [(number, 0.0) for number in range(BOUNDARIES)]
    cases += [
        (dice.randrange(BOUNDARIES), dice.random() * 1.5) for _ in range(int(os.environ.get("RWKVFLOW_FAULTS", "60")))
    ]
    ended: Counter[str] = Counter()
    for case, (number, wait) in enumerate(cases):
        ended[kill_one(fresh(whole, tmp_path / str(case)), whole, client, number, wait)] += 1
        shutil.rmtree(tmp_path / str(case))
    print(dict(ended))
    assert ended["killed"] > len(cases) // 4


@pytest.fixture(scope="module")
def private(
    whole: Project, base: LockedBase, client: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrivateEngine]:
    """An engine of our own that has the images of such a run."""
    if (why := problem()) is not None:
        pytest.skip(why)
    tags = [base.reference]
    made = fresh(whole, tmp_path_factory.mktemp("asked"))
    struck(made, client, 0, 0, lambda container: tags.extend(container.image.tags), {})
    with private_engine() as engine:
        mine = engine.client()
        for tag in tags:
            mine.images.load(client.images.get(tag).save(named=tag))
        yield engine


@pytest.mark.soak
def test_an_engine_that_dies_at_any_moment_of_a_run(whole: Project, private: PrivateEngine, tmp_path: Path) -> None:
    dice = random.Random(os.environ.get("RWKVFLOW_SEED", "20261130"))
    cases = [(number, 0.0) for number in range(BOUNDARIES)]
    cases += [
        (dice.randrange(BOUNDARIES), dice.random() * 1.5)
        for _ in range(int(os.environ.get("RWKVFLOW_FAULTS", "60")) // 3)
    ]
    env = {"DOCKER_HOST": private.address}
    ended: Counter[str] = Counter()
    for case, (number, wait) in enumerate(cases):
        made = fresh(whole, tmp_path / str(case))
        ran, fell = struck(made, private.client(), number, wait, lambda container: private.kill(), env)
        if fell:
            private.start()
        if ran.code:
            assert fell, ran.err
            assert "Docker engine" in ran.err
            assert "remedy" in ran.err
            assert "Traceback" not in ran.err
        ended["died" if ran.code else "late"] += 1
        goes_on(made, whole, env)
        shutil.rmtree(tmp_path / str(case))
    print(dict(ended))
    assert ended["died"] > len(cases) // 4
