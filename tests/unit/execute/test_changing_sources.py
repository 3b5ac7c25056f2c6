"""A checkout that changes while a run uses it: nothing is made of half of it, and nothing stands under a wrong key."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import RwkvflowError, StepFailed
from rwkvflow.base.hashing import file_digest, text_digest, tree_digest
from rwkvflow.execute import actions
from rwkvflow.execute.base import Job, Made, Outcome, Product, Work
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import LocalInput, Step, StepLimits
from rwkvflow.store.store import Store

CHANGES: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: (folder / "a.py").write_text("2"),
    "a new file": lambda folder: (folder / "b.py").write_text("1"),
    "a file gone": lambda folder: (folder / "a.py").unlink(),
    "a mode": lambda folder: (folder / "a.py").chmod(0o755),
}


def sources(folder: Path) -> dict[str, LocalInput]:
    folder.mkdir()
    (folder / "a.py").write_text("1")
    whole = LocalInput(tree_digest(folder), folder)
    return {
        "folder": whole,
        "file": LocalInput(file_digest(folder / "a.py"), folder / "a.py"),
        "made of others": LocalInput(text_digest("several"), folder, (whole,)),
    }


def run(store: Store, source: LocalInput, action: str, act: Callable[[], object]) -> Outcome:
    def carry_out(jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
        act()
        (work.folder / "x").write_text("made")
        return {job.step.id: Made({"x": Product(work.folder / "x")}) for job in jobs}

    step = Step("s", "convert", action, {}, {"code": source}, ("x",))
    executor = LocalExecutor(store, {action: carry_out}, {}, lambda event: None, run="r", cores=1)
    return executor.run(Plan([step], ["s"]))["s"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("kind", ["folder", "made of others"])
def test_what_has_changed_is_found_by_name_and_nothing_is_kept(
    tmp_path: Path, kind: str, when: str, change: str
) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "code"
    source = sources(folder)[kind]
    if when == "before":
        CHANGES[change](folder)
    outcome = run(store, source, "environment", lambda: CHANGES[change](folder) if when == "meanwhile" else None)
    assert isinstance(outcome.error, StepFailed)
    assert str(folder) in outcome.error.message
    assert "run again" in (outcome.error.remedy or "")
    assert not list((store.root / "index").rglob("*.json"))


@pytest.mark.parametrize("action", ["environment", "sandbox"])
def test_a_file_that_stays_is_no_trouble_and_one_that_is_replaced_is(tmp_path: Path, action: str) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "code"
    source = sources(folder)["file"]
    assert run(store, source, action, lambda: None).status == "done"
    (folder / "a.py").write_text("2")
    outcome = run(Store(tmp_path / "other"), source, action, lambda: None)
    assert isinstance(outcome.error, StepFailed)


def test_an_environment_that_was_made_meanwhile_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the key of what the plan saw, and the next run would take it for that."""
    monkeypatch.setattr(actions, "environment_spec", lambda *told: None)
    source = sources(tmp_path / "code")["folder"]
    there: set[str] = set()

    class Sandbox:
        def has(self, tag: str) -> bool:
            return tag in there

        def build(self, *told: Any) -> None:
            (tmp_path / "code" / "a.py").write_text("2")
            there.add("k")

        def remove(self, tag: str) -> None:
            there.discard(tag)

    quiet = lambda *told: None  # noqa: E731
    step = Step("image/x", "image", "environment", {"identity": {}}, {"worker": source}, ("environment",))
    job = Job(step, "k", None, {}, {}, quiet, quiet, quiet)
    with pytest.raises(StepFailed, match="has changed since this run began"):
        actions._Environments(Sandbox())([job], Work(tmp_path, StepLimits(), threading.Event()))  # type: ignore[arg-type]
    assert not there
