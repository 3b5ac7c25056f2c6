"""The publish steps: assemble the release, hand it to the publisher of its place, remember what stands there.

A run in which nothing changed asks nobody: the store remembers, for each place, which step was published there last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.base.files import read_json, write_json
from rwkvflow.base.hashing import text_digest
from rwkvflow.documents.destinations import DESTINATIONS, parse_destination
from rwkvflow.execute.base import Action, Job, Made, Outcome, Probe, Product, Work
from rwkvflow.plan.step import Step, canonical
from rwkvflow.store.store import Store

if TYPE_CHECKING:
    from rwkvflow.publish.base import LocalPublisher


def publish_actions(store: Store) -> dict[str, Action]:
    """One action, under the names of all places."""

    def action(job: Job, work: Work) -> Made | RwkvflowError:
        try:
            return _publish(store, job, work)
        except RwkvflowError as error:
            return error

    return {f"publish-{kind.kind}": _each(action) for kind in DESTINATIONS}


def _each(action: Callable[[Job, Work], Made | RwkvflowError]) -> Action:
    return lambda jobs, work: {job.step.id: action(job, work) for job in jobs}


def _publish(store: Store, job: Job, work: Work) -> Made:
    from rwkvflow.net.progress import Told
    from rwkvflow.publish.places import publisher
    from rwkvflow.release.release import assemble

    step = job.step
    release = assemble(step.params["release"], job.inputs, job.digests, step.local)
    told = Told(job.log, lambda done, total: job.progress(done, total, "B", ""), work.cancel)
    state = _state(store, step)
    remembered = not parse_destination(str(step.params["to"])).local
    if remembered:
        state.unlink(missing_ok=True)  # from here on it may be either release
    published = publisher(step.params, Path(step.local["folder"]), job.key).apply(release, told)
    if remembered:
        state.parent.mkdir(exist_ok=True)
        write_json(state, {"key": job.key, "to": published.to})
    record = work.folder / "release.json"
    record.write_bytes(canonical(release.summary()) + b"\n")
    return Made({"release": Product(record)}, {"to": published.to, **published.facts})


def publish_probes(store: Store) -> dict[str, Probe]:
    """Whether a place still is what a step made of it, as far as this machine knows; no network is asked."""

    def local(step: Step, key: str, outputs: object) -> bool:
        from rwkvflow.publish.places import publisher

        found = cast("LocalPublisher", publisher(step.params, Path(step.local["folder"]), key))
        return found.intact()

    def remote(step: Step, key: str, outputs: object) -> bool:
        return (read_json(_state(store, step)) or {}).get("key") == key

    return {f"publish-{kind.kind}": local if kind.local else remote for kind in DESTINATIONS}


def look_again(store: Store, steps: Iterable[Step]) -> None:
    """Trust no memory of what stands at these steps' places: the next run asks them, and does what lacks."""
    for step in steps:
        if step.stage == "publish":
            _state(store, step).unlink(missing_ok=True)


def published_sums(store: Store, outcomes: Mapping[str, Outcome]) -> str:
    """The sha256 of every file that publish steps published, a line each as sha256sum has them.

    A file that differs from place to place, as a card may, has a line for each.
    """
    lines = set()
    for outcome in outcomes.values():
        output = outcome.outputs.get("release") if outcome.ok else None
        path = None if output is None else store.path(output.digest)
        if path is not None:
            files = (read_json(path) or {})["files"]
            lines |= {f"{digest.removeprefix('sha256:')}  {name}\n" for name, digest in files.items()}
    return "".join(sorted(lines, key=lambda line: line[66:]))


def _state(store: Store, step: Step) -> Path:
    place = {name: step.params.get(name) for name in ("to", "branch", "endpoint")}
    return store.root / "published" / f"{text_digest(canonical(place)).removeprefix('sha256:')[:32]}.json"
