"""What workers of a Dask cluster do in tests of faults: the small plan of test_faults, and a fault that waits for one.

The worker's own code carries the steps out; only the plan, and what a step does, are those of the tests. A fault lies
as fault.json beside the remote store, and comes to the worker that takes it first.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

from rwkvflow.app.clusters import on_worker
from rwkvflow.execute import actions
from rwkvflow.execute.cluster.fitness import Greeting
from rwkvflow.execute.cluster.words import parse_message
from tests.helpers.faults import Fault

SAID = Greeting("", "1", "code", "linux-x86_64", "host", 1.0, None, "")


async def greet(text: str, dask_worker: object) -> str:
    """A worker that is fit, with one core."""
    await dask_worker.set_resources(**{"rwkvflow-cores": 1.0})  # type: ignore[attr-defined]
    return replace(SAID, name=str(dask_worker.name)).to_text()  # type: ignore[attr-defined]


def carry_out(text: str) -> str:
    """As the real one; each worker has a store of its own beside the remote store."""
    from tests.unit.execute.test_faults import make, plan

    trial = Path(str(parse_message(text).remote).removeprefix("file://")).parent
    with (
        mock.patch.object(on_worker, "_root", return_value=trial / f"worker-{os.getpid()}"),
        mock.patch.object(on_worker, "_plan", return_value=plan()),
        mock.patch.object(on_worker, "_sandbox", return_value=None),
        mock.patch.object(actions, "actions", return_value={"sandbox": make}),
        mock.patch.object(actions, "probes", return_value={}),
        _fault(trial),
    ):
        return on_worker.carry_out(text)


@contextlib.contextmanager
def _fault(trial: Path) -> Iterator[None]:
    mine = trial / f"fault-{os.getpid()}.json"
    with contextlib.suppress(FileNotFoundError):
        (trial / "fault.json").rename(mine)
    if not mine.exists():
        yield
        return
    kind, left = json.loads(mine.read_text(encoding="utf-8"))

    def tell(words: str) -> None:
        with (trial / "came").open("a", encoding="utf-8") as file:
            file.write(f"{words}, in process {os.getpid()}\n")

    fault = Fault(kind, left, tell)
    try:
        yield
    finally:
        fault.undo()
        if fault.came and not fault.lasting:
            mine.unlink()
        else:  # it goes on in the next task
            mine.write_text(json.dumps([kind, max(1, fault.left)]), encoding="utf-8")
