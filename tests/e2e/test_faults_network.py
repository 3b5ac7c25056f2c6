"""A run whose network to the remote store is cut, garbled, slow or gone, after any number of bytes: it ends well.

The store is moto's S3 behind a proxy. Once the fault comes while a run sends what it made, once while another takes
it. Both end with the right bytes, whatever happens; the store at home is whole, and so is what the next one gets.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from rwkvflow.execute.local import LocalExecutor
from rwkvflow.store.collect import verify
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store
from tests.e2e.test_remote_s3 import SECRET, client, s3  # noqa: F401 - a fixture
from tests.helpers.tcp_proxy import Kind, Proxy
from tests.unit.execute.test_faults import WHOLE, make, plan

pytest.importorskip("s3fs")
KINDS: tuple[Kind, ...] = get_args(Kind)
QUICK = {"retries": {"max_attempts": 1}, "connect_timeout": 5, "read_timeout": 5}


@pytest.fixture(scope="module")
def proxy(s3: dict[str, str]) -> Iterator[Proxy]:  # noqa: F811
    """The bucket's server as this process sees it."""
    import fsspec.config

    host, port = s3["FSSPEC_S3_ENDPOINT_URL"].removeprefix("http://").split(":")
    one = Proxy((host, int(port)))
    kept = dict(fsspec.config.conf)
    fsspec.config.conf["s3"] = {
        "endpoint_url": f"http://127.0.0.1:{one.port}",
        "key": "user",
        "secret": SECRET,
        "config_kwargs": QUICK,
        "use_listings_cache": False,
    }
    yield one
    fsspec.config.conf.clear()
    fsspec.config.conf.update(kept)
    one.close()


def run(root: Path, url: str) -> str:
    """Carry the plan out as anybody does; what it made, or "" where a step failed."""
    store = Store(root)
    told: list[str] = []
    store.remote = Remote(url, told.append)
    executor = LocalExecutor(store, {"sandbox": make}, {}, lambda event: None, run="r", cores=2)
    with store.using():
        outcome = executor.run(plan())["d"]
    if not outcome.ok or not store.bring([outcome.outputs["file"]]):
        return ""
    path = store.path(outcome.outputs["file"].digest)
    assert path is not None
    assert not any(SECRET in text for text in told)
    return path.read_text()


class Trial:
    """Runs on prefixes of one bucket."""

    def __init__(self, proxy: Proxy, folder: Path) -> None:
        self.proxy, self.folder, self.number = proxy, folder, 0
        proxy.arm(None)
        assert run(folder / "first", "s3://bucket/sizes") == WHOLE
        self.sent = proxy.passed
        proxy.arm(None)
        assert run(folder / "second", "s3://bucket/sizes") == WHOLE
        self.taken = proxy.passed

    def check(self, kind: Kind, way: str, after: int) -> bool:
        """Whether the fault came at all; everything else is asserted."""
        self.number += 1
        url, mine = f"s3://bucket/{self.number}", self.folder / f"mine{self.number}"
        what = f"{kind} while {way}, after {after} bytes"
        self.proxy.arm(None)
        if way == "taking":
            assert run(self.folder / f"giver{self.number}", url) == WHOLE
        self.proxy.arm(kind, after)
        assert run(mine, url) == WHOLE, what
        came = self.proxy.happened
        self.proxy.arm(None)
        with Store(mine).using():
            assert verify(Store(mine)) == [], what
            assert list((mine / "tmp").iterdir()) == [], what
        for name in (f"mine{self.number}", f"yours{self.number}"):
            assert run(self.folder / name, url) == WHOLE, f"{what}: {name}, afterwards"
        return came


@pytest.fixture(scope="module")
def trial(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial(proxy, tmp_path_factory.mktemp("network"))


@pytest.mark.parametrize("way", ["sending", "taking"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_fails_costs_nothing_but_time(trial: Trial, kind: Kind, way: str) -> None:
    most = trial.sent if way == "sending" else trial.taken
    chance = random.Random(f"{kind} {way}")
    assert trial.check(kind, way, chance.randrange(most // 2)), "it came"


@pytest.mark.soak
def test_three_hundred_faults_of_a_network(trial: Trial, request: Any) -> None:
    seed = int(os.environ.get("RWKVFLOW_FAULTS_SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    came: Counter[str] = Counter()
    for number in range(int(os.environ.get("RWKVFLOW_FAULTS", "300"))):
        kind, way = chance.choice(KINDS), chance.choice(["sending", "taking"])
        came[kind] += trial.check(kind, way, chance.randrange(trial.sent if way == "sending" else trial.taken))
        print(f"seed {seed}: {number + 1} runs, faults that came {dict(came)}", flush=True)
