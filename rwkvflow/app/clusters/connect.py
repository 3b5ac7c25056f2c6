"""A run whose commands a cluster carries out: the documents as the workers get them, and who is asked."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwkvflow.app.clusters.bundle import code_digest, machine, stored
from rwkvflow.app.pipeline import Prepared
from rwkvflow.base.errors import UsageError
from rwkvflow.base.events import Listener, Notice
from rwkvflow.documents.load import named_stages
from rwkvflow.execute.cluster.fitness import AWAY, Executor, WantedWorker, need_of
from rwkvflow.store.remote import Remote

if TYPE_CHECKING:
    from rwkvflow.execute.cluster.connection import Certificates
    from rwkvflow.execute.cluster.elsewhere import Elsewhere


@dataclass(frozen=True)
class Cluster:
    """What the command line says of a cluster."""

    executor: Executor
    certificates: Certificates


@contextlib.contextmanager
def elsewhere(prepared: Prepared, cluster: Cluster, emit: Listener) -> Iterator[Elsewhere]:
    """The cluster, connected to, with workers of whom each step can be carried out by one at least.

    Raises UsageError and EnvironmentMissing before anything begins.
    """
    from rwkvflow import __version__
    from rwkvflow.app.clusters import on_worker
    from rwkvflow.execute.cluster.connection import connect
    from rwkvflow.execute.cluster.dask import DaskCrew
    from rwkvflow.execute.cluster.elsewhere import Elsewhere

    blueprint, store = prepared.blueprint, prepared.store
    remote = _remote(prepared, cluster)
    with store.using():
        bundle = stored(prepared, store, remote)
    url = remote.url if remote is not None else None
    asked = {
        "sandbox": blueprint.sandbox,
        "walls": _must_be_kept_in(prepared),
        "store": None if remote is not None else str(store.root),
        "machine": machine(),
        "remote": url,
        "probe": dict(vars(bundle[0])),
    }
    topic = f"rwkvflow-{uuid.uuid4().hex}"
    wanted = WantedWorker(__version__, code_digest(), blueprint.platform, blueprint.sandbox)
    client, close = connect(cluster.executor, cluster.certificates, os.cpu_count() or 1)
    crew = DaskCrew(
        client,
        wanted,
        topic=topic,
        greet=on_worker.greet,
        greeting=json.dumps(asked),
        carry_out=on_worker.carry_out,
        close=close,
    )
    named = named_stages(prepared.request.workflow)
    with crew:
        needs = {step.id: need_of(step, named) for step in prepared.plan if step.action in AWAY}
        crew.refuse(needs)
        emit(Notice(_words(cluster, crew.fit(), crew.unfit())))
        yield Elsewhere(
            store,
            crew,
            bundle,
            topic=topic,
            sandbox=blueprint.sandbox,
            need=lambda step: needs[step.id],
            remote=remote,
            url=url,
        )


def _words(cluster: Cluster, fit: Mapping[str, Any], unfit: Mapping[str, str]) -> str:
    cores = sum(worker.cores for worker in fit.values())
    where = cluster.executor.address or "of this machine"
    left = "".join(f"\n  left out: {why}" for why in list(unfit.values())[:8])
    return f"cluster {where}: {len(fit)} workers with {cores:g} cores{left}"


def _remote(prepared: Prepared, cluster: Cluster) -> Remote | None:
    """The store that bytes go through; None for a cluster of this machine's own, which has its store."""
    remote = prepared.store.remote
    if cluster.executor.kind == "own" or not isinstance(remote, Remote):
        return None
    if not remote.write:
        raise UsageError("what a cluster makes goes to the remote store", remedy="leave out --remote-read-only")
    if remote.shown != remote.url:
        raise UsageError(
            "the remote store's URL holds credentials, which would go through the scheduler",
            remedy="give them to each worker by its environment, as the store's own clients take them",
        )
    return remote


def _must_be_kept_in(prepared: Prepared) -> bool:
    """Whether a worker without walls must not run this: as here, unless the person said so."""
    from rwkvflow.lock.pins import brings
    from rwkvflow.sandbox.choose import brings_code

    blueprint = prepared.blueprint
    own = brings_code(blueprint.recipe, blueprint.workflow) or brings(blueprint.lock)
    return bool(own) and prepared.request.sandbox == "auto" and blueprint.sandbox == "host"
