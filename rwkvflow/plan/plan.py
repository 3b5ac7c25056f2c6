"""The plan: a DAG of Steps. Pure: made from documents, looked up in the store, no network, no Docker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.plan.explain import differences
from rwkvflow.plan.step import Json, LocalInput, Ref, Step, key_of


class Plan:
    """Steps in an order in which each comes after all that it needs. Raises RwkvflowError on cycles and bad names."""

    def __init__(self, steps: Iterable[Step], targets: Iterable[str]) -> None:
        self.steps: dict[str, Step] = {}
        given: dict[str, Step] = {}
        for step in steps:
            if given.setdefault(step.id, step) != step:
                raise RwkvflowError(f"two different steps are called {step.id}")
        for step in _sorted(given):
            self.steps[step.id] = step
        self.targets = tuple(dict.fromkeys(targets))
        for target in self.targets:
            if target not in self.steps:
                raise RwkvflowError(f"there is no step {target}")

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps.values())

    def __len__(self) -> int:
        return len(self.steps)


def needs(step: Step) -> list[str]:
    """Ids of the steps that must have ended before this one starts, its environment left out."""
    refs = [value.step for value in step.inputs.values() if isinstance(value, Ref)]
    return list(dict.fromkeys([*refs, *step.after]))


def _sorted(given: Mapping[str, Step]) -> Iterator[Step]:
    done: dict[str, bool] = {}  # False while a step is being visited
    for root in given:
        stack = [(root, iter(_all_needs(given[root])))] if root not in done else []
        if stack:
            done[root] = False
        while stack:
            name, rest = stack[-1]
            for need in rest:
                if need not in given:
                    raise RwkvflowError(f"{name} needs {need}, which is not in the plan")
                if done.get(need) is False:
                    raise RwkvflowError(f"{name} and {need} need each other")
                if need not in done:
                    done[need] = False
                    stack.append((need, iter(_all_needs(given[need]))))
                    break
            else:
                done[name] = True
                stack.pop()
                yield given[name]


def _all_needs(step: Step) -> list[str]:
    return [*needs(step), *step.environments]


def input_digests(step: Step, output_of: Callable[[Ref], str | None]) -> dict[str, str] | None:
    """Digest of each input; None when one is not known yet. A tolerant step does without what does not exist."""
    digests: dict[str, str] = {}
    for name, value in step.inputs.items():
        digest = value.digest if isinstance(value, LocalInput) else output_of(value)
        if digest is not None:
            digests[name] = digest
        elif not step.tolerant:
            return None
    return digests


class StepShelf(Protocol):
    """What a survey asks of the store."""

    def digests(self, step: Step, key: str) -> Mapping[str, str] | None:
        """Output name → digest of a finished step, or None."""

    def intact(self, step: Step, key: str) -> bool:
        """Whether everything that the step made is still there."""

    def last(self, step: str) -> Mapping[str, Json] | None:
        """What the step's key was made of in the last run."""


@dataclass(frozen=True)
class Standing:
    """How a step stands before a run."""

    step: str
    state: Literal["cached", "run", "waits"]
    why: str
    key: str | None = None


def survey(plan: Plan, shelf: StepShelf) -> list[Standing]:
    """What a run would do with each step, in plan order.

    A "waits" step has an input that is only known once another step has run; it may still turn out cached.
    """
    known: dict[Ref, str] = {}
    found: dict[str, Standing] = {}
    for step in plan:
        open_ = [need for need in needs(step) if found[need].state != "cached"]
        digests = input_digests(step, known.get)
        if open_ and (step.tolerant or digests is None):
            found[step.id] = Standing(step.id, "waits", f"for {open_[0]}" + (" and others" if len(open_) > 1 else ""))
            continue
        assert digests is not None  # noqa: S101 - nothing is open, so every input is known
        parts = step.parts(digests)
        key = key_of(parts)
        outputs = shelf.digests(step, key)
        if outputs is None:
            found[step.id] = Standing(step.id, "run", reason(parts, shelf.last(step.id)), key)
            continue
        known.update({Ref(step.id, name): digest for name, digest in outputs.items()})
        state: Literal["cached", "run"] = "cached" if shelf.intact(step, key) else "run"
        found[step.id] = Standing(step.id, state, "" if state == "cached" else "what it made is gone", key)
    return list(found.values())


def reason(parts: Mapping[str, Json], last: Mapping[str, Json] | None) -> str:
    """Why a step has to run, in a few words."""
    if last is None:
        return "never run"
    changed = differences(last, parts)
    if not changed:
        return "its result is not in the store"
    return "changed: " + ", ".join(change.what for change in changed[:3]) + (", …" if len(changed) > 3 else "")
