"""Which workers of a cluster can carry a step out, and why others cannot. Pure."""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rwkvflow.base.errors import EnvironmentMissing, UsageError
from rwkvflow.base.text import shown
from rwkvflow.plan.step import Step

CORES, MEMORY = "rwkvflow-cores", "rwkvflow-memory"  # what workers have of them, as Dask's resources
AWAY = frozenset({"sandbox", "environment"})  # actions that a cluster carries out; the others need this machine's net


@dataclass(frozen=True)
class Need:
    """What a step needs of a worker. None: whatever there is."""

    cores: float | None = None
    memory: int | None = None  # bytes

    def __str__(self) -> str:
        cores = [] if self.cores is None else [f"{self.cores:g} cores"]
        memory = [] if self.memory is None else [f"{self.memory / 2**30:.2f} GiB"]
        return " and ".join([*cores, *memory]) or "any worker"


def need_of(step: Step, named: Iterable[str]) -> Need:
    """What a step needs. `named`: the stages that the user's own workflow limits; shipped limits are only limits."""
    if step.stage in named:
        return Need(step.limits.cores, step.limits.memory)
    return Need()


@dataclass(frozen=True)
class WantedWorker:
    """What all workers of a run have to be."""

    version: str
    code: str  # digest of what runs in the sandbox, and of the engine's sources
    platform: str
    sandbox: str


@dataclass(frozen=True)
class Greeting:
    """What a worker says of itself. `problem`: why it can carry out nothing of this run, as it sees it."""

    name: str
    version: str
    code: str
    platform: str
    sandbox: str
    cores: float
    memory: int | None
    problem: str = ""

    def to_text(self) -> str:
        """As it is sent."""
        return json.dumps(vars(self))


def parse_greeting(text: Any) -> Greeting:
    """A worker's greeting. Raises ValueError for whatever is odd about it."""
    try:
        entry = json.loads(text)
        cores, memory = float(entry["cores"]), entry["memory"]
        words = {
            name: shown(str(entry[name]))[:300]
            for name in ("name", "version", "code", "platform", "sandbox", "problem")
        }
        memory = None if memory is None else int(memory)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not (math.isfinite(cores) and 0 < cores < 1e6) or (memory is not None and memory <= 0):
        raise ValueError("it has no number of cores, or no memory")
    return Greeting(cores=cores, memory=memory, **words)


def unfit(worker: Greeting, wanted: WantedWorker) -> str | None:
    """Why a worker can carry out nothing of a run, in words."""
    if worker.version != wanted.version:
        return f"it has rwkvflow {worker.version}, and this is {wanted.version}"
    if worker.code != wanted.code:
        return f"its rwkvflow {worker.version} has other code ({worker.code[7:19]}, here {wanted.code[7:19]})"
    if worker.platform != wanted.platform:
        return f"it is {worker.platform}, and the lock is used for {wanted.platform}"
    if worker.sandbox != wanted.sandbox:
        return f"it has no sandbox {wanted.sandbox}"
    return worker.problem or None


def lacks(worker: Greeting, need: Need) -> bool:
    """Whether a worker has less than a step needs."""
    short = need.cores is not None and worker.cores < need.cores
    return short or (need.memory is not None and worker.memory is not None and worker.memory < need.memory)


def refusal(need: Need, fit: Mapping[str, Greeting], unfit_words: Mapping[str, str]) -> EnvironmentMissing:
    """Why no worker carries a step out: what the largest has, or why none is fit."""
    if fit:
        most = max(fit.values(), key=lambda worker: (worker.cores, worker.memory or 0))
        memory = "" if most.memory is None else f" and {most.memory / 2**30:.2f} GiB"
        words = f"it needs {need}; of {len(fit)} workers the largest has {most.cores:g} cores{memory}"
        return EnvironmentMissing(words, remedy="start a larger worker, or ask for less in your workflow")
    if unfit_words:
        listed = "".join(f"\n    {name}: {why}" for name, why in sorted(unfit_words.items())[:8])
        return EnvironmentMissing(
            f"none of the {len(unfit_words)} workers can carry it out:{listed}",
            remedy="docs/guides/clusters.md says what a worker has to have",
        )
    return EnvironmentMissing("the cluster has no worker", remedy="start one: dask worker ADDRESS")


def resources(need: Need, fit: Iterable[Greeting]) -> dict[str, float]:
    """What Dask takes from a worker while it carries a step out: all cores of the smallest, where none are named."""
    able = [worker.cores for worker in fit if not lacks(worker, need)]
    cores = need.cores if need.cores is not None else min(able, default=1.0)
    return {CORES: cores, **({MEMORY: float(need.memory)} if need.memory is not None else {})}


# ---- addresses -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Executor:
    """What --executor names: this process, a cluster of this machine's own, or the scheduler at an address."""

    kind: str  # local | own | at
    address: str = ""
    workers: int = 0  # of one's own; 0: as many as seem right


def parse_executor(text: str, *, insecure: bool = False) -> Executor:
    """local, dask, dask=4, dask=tls://host:8786. Raises UsageError; also for tcp:// to another machine, unless told."""
    kind, given, rest = text.partition("=")
    if kind == "local" and not given:
        return Executor("local")
    if kind != "dask" or (given and not rest):
        raise UsageError(
            f"--executor: {text!a} is none", remedy="local, dask, dask=4 (workers) or dask=tls://host:8786"
        )
    if not given:
        return Executor("own")
    if rest.isascii() and rest.isdecimal() and 1 <= int(rest) <= 256:
        return Executor("own", workers=int(rest))
    try:
        parts = urlsplit(rest)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"--executor: {rest!a} is no address: {error}") from error
    plain = not (parts.path or parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("tls", "tcp") or not host or port is None or not plain:
        raise UsageError(f"--executor: {rest!a} is no address of a scheduler", remedy="dask=tls://host:8786")
    if parts.scheme == "tcp" and not insecure and not _loopback(host):
        raise UsageError(
            f"--executor: {rest} has no TLS: whoever reaches that scheduler runs code on all its workers and here",
            remedy="dask=tls://… with certificates (docs/guides/clusters.md), or --executor-insecure in a network "
            "where nobody else is",
        )
    return Executor("at", rest)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
