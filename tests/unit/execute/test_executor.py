"""The plan and the local executor, with actions that are plain Python functions."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.base.errors import Interrupted, RwkvflowError, SmokeFailed, StepFailed
from rwkvflow.base.events import Event, StepFinished, StepStarted
from rwkvflow.base.hashing import file_digest
from rwkvflow.execute.base import Job, Made, Outcome, Product, Work
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.plan.plan import Plan, survey
from rwkvflow.plan.step import LocalInput, Ref, Step, StepLimits
from rwkvflow.store.record import Output
from rwkvflow.store.store import Store


def step(name: str, *needs: str, **changes: object) -> Step:
    given = {
        "id": name,
        "stage": "test",
        "action": "join",
        "params": {"name": name},
        "inputs": {need: Ref(need, "out") for need in needs},
        "outputs": ("out",),
        "limits": StepLimits(cores=1),
    }
    return Step(**{**given, **changes})  # type: ignore[arg-type]


class World:
    """A store, and an action that writes its name and what its inputs hold; it notes each command it carried out."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.commands: list[list[str]] = []
        self.events: list[Event] = []
        self.failing: dict[str, RwkvflowError] = {}
        self.gone: set[str] = set()
        self.cancel = threading.Event()

    def join(self, jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
        self.commands.append([job.step.id for job in jobs])
        results: dict[str, Made | RwkvflowError] = {}
        for job in jobs:
            if job.step.id in self.failing:
                results[job.step.id] = self.failing[job.step.id]
                continue
            path = work.folder / job.step.id
            held = "".join(f"({job.inputs[name].read_text()})" for name in sorted(job.inputs))
            path.write_text(str(job.step.params["name"]) + held)
            self.gone.discard(job.step.id)
            results[job.step.id] = Made({"out": Product(path)}, {"note": job.step.id})
        return results

    def there(self, step: Step, key: str, outputs: Mapping[str, Output]) -> bool:
        return step.id not in self.gone

    def run(self, steps: Sequence[Step], *targets: str) -> dict[str, Outcome]:
        self.commands.clear()
        self.events.clear()
        executor = LocalExecutor(
            self.store,
            {"join": self.join},
            {"join": self.there},
            self.events.append,
            run="r",
            cores=2,
            cancel=self.cancel,
        )
        with self.store.using():
            return executor.run(Plan(steps, targets))

    def text(self, outcome: Outcome) -> str:
        path = self.store.path(outcome.outputs["out"].digest)
        assert path is not None
        return path.read_text()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "store")


CHAIN = [step("a"), step("b", "a"), step("c", "b")]


def test_a_second_run_does_nothing(world: World) -> None:
    first = world.run(CHAIN, "c")
    assert world.text(first["c"]) == "c(b(a))"
    assert world.commands == [["a"], ["b"], ["c"]]
    second = world.run(CHAIN, "c")
    assert world.commands == []
    assert {outcome.status for outcome in second.values()} == {"cached"}


def test_what_waits_for_the_disk_runs_beside_what_computes_one_at_a_time(world: World) -> None:
    """Two that wait, two that take all cores: at most one of each at a time, and one of each together."""
    waits, computes = StepLimits(beside=True), StepLimits()
    steps = [
        *(step(name, limits=waits) for name in ("w1", "w2")),
        *(step(name, limits=computes) for name in ("c1", "c2")),
    ]
    together: set[frozenset[str]] = set()
    running: set[str] = set()
    guard, met = threading.Lock(), threading.Event()
    join = world.join

    def noted(jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
        with guard:
            running.add(jobs[0].step.id)
            together.add(frozenset(running))
            if len(running) == 2:
                met.set()
        met.wait(10)
        with guard:
            running.discard(jobs[0].step.id)
            return join(jobs, work)

    world.join = noted  # type: ignore[method-assign]
    world.run([*steps, step("end", "w1", "w2", "c1", "c2")], "end")
    assert met.is_set()
    for found in together:
        assert sum(name.startswith("w") for name in found) <= 1
        assert sum(name.startswith("c") for name in found) <= 1


def test_a_change_runs_what_depends_on_it_and_says_why(world: World) -> None:
    world.run(CHAIN, "c")
    world.run([step("a"), step("b", "a", params={"name": "B"}), step("c", "b")], "c")
    assert world.commands == [["b"], ["c"]]
    why = [event.why for event in world.events if isinstance(event, StepStarted)]
    assert why == ["changed: params.name", "changed: input b"]


def test_equal_outputs_cut_a_change_off(world: World) -> None:
    world.run(CHAIN, "c")
    world.run([step("a"), step("b", "a", code="sha256:other"), step("c", "b")], "c")
    assert world.commands == [["b"]], "b made the same bytes, so c has nothing to do"


def test_only_what_is_missing_is_made_again(world: World) -> None:
    outcomes = world.run(CHAIN, "c")
    path = world.store.path(outcomes["b"].outputs["out"].digest)
    assert path is not None
    path.unlink()
    world.run(CHAIN, "c")
    assert world.commands == [], "nothing wants b's bytes while c is there"
    kept = world.store.path(outcomes["c"].outputs["out"].digest)
    assert kept is not None
    kept.unlink()
    world.run(CHAIN, "c")
    assert world.commands == [["b"], ["c"]]


def test_an_environment_is_made_again_only_when_a_command_has_to_run_in_it(world: World) -> None:
    steps = [step("env"), step("x", environment="env"), step("y", environment="env")]
    world.run(steps, "x")
    world.gone.add("env")
    world.run(steps, "x")
    assert world.commands == []
    world.run(steps, "x", "y")
    assert world.commands == [["env"], ["y"]]


def test_a_target_whose_effect_is_gone_is_carried_out_again(world: World) -> None:
    world.run(CHAIN, "c")
    world.gone.add("c")
    world.run(CHAIN, "c")
    assert world.commands == [["c"]]


def test_steps_of_a_batch_go_together_and_only_the_missing_ones(world: World) -> None:
    steps = [step("a"), *(step(name, "a", batch="all") for name in ("x", "y", "z"))]
    world.run(steps, "y")
    assert world.commands == [["a"], ["y"]]
    world.run(steps, "x", "y", "z")
    assert world.commands == [["x", "z"]]


def test_a_failure_stops_what_needs_it_and_nothing_else(world: World) -> None:
    world.failing["b"] = StepFailed("it broke", remedy="mend it")
    outcomes = world.run([*CHAIN, step("d", "a")], "c", "d")
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "a": "done",
        "b": "failed",
        "c": "skipped",
        "d": "done",
    }
    messages = {event.step: event.message for event in world.events if isinstance(event, StepFinished)}
    assert messages["b"] == "it broke\n  remedy: mend it"
    assert messages["c"] == "b failed"


def test_a_tolerant_step_sees_what_there_is(world: World) -> None:
    steps = [step("a"), step("b"), step("both", "a", "b", tolerant=True)]
    world.failing["b"] = SmokeFailed("not good enough")
    outcomes = world.run(steps, "both")
    assert world.text(outcomes["both"]) == "both(a)"
    world.failing.clear()
    outcomes = world.run(steps, "both")
    assert world.commands == [["b"], ["both"]]
    assert world.text(outcomes["both"]) == "both(a)(b)"


def test_retries_are_counted_and_the_last_error_told(world: World) -> None:
    world.failing["a"] = StepFailed("again")
    world.cancel.wait = lambda timeout=None: False  # type: ignore[method-assign]
    outcomes = world.run([step("a", limits=StepLimits(retries=2))], "a")
    assert len(world.commands) == 3
    assert str(outcomes["a"].error) == "again"


def test_an_output_that_was_not_made_is_a_failure(world: World) -> None:
    outcomes = world.run([step("a", outputs=("out", "other"))], "a")
    assert outcomes["a"].status == "failed"
    assert "made no other" in str(outcomes["a"].error)


def test_interrupting_keeps_what_is_finished(world: World) -> None:
    original = world.join

    def join(jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
        if jobs[0].step.id == "b":
            work.cancel.set()
            return {"b": StepFailed("stopped")}
        return original(jobs, work)

    world.join = join  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        world.run(CHAIN, "c")
    world.join = original  # type: ignore[method-assign]
    world.cancel.clear()
    world.run(CHAIN, "c")
    assert world.commands == [["b"], ["c"]]
    assert not list((world.store.root / "tmp").iterdir())


def test_a_damaged_input_names_its_step(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("s")
    outcomes = world.run([step("a", inputs={"s": LocalInput(file_digest(source), source)})], "a")
    assert world.text(outcomes["a"]) == "a(s)"
    outcomes = world.run([step("b", inputs={"s": LocalInput("sha256:" + "0" * 64, source)})], "b")
    assert f"{source} has changed" in str(outcomes["b"].error)


class Shelf:
    def __init__(self, world: World) -> None:
        self.world = world

    def digests(self, step: Step, key: str) -> Mapping[str, str] | None:
        record = self.world.store.lookup(key)
        return None if record is None else {name: output.digest for name, output in record.outputs.items()}

    def intact(self, step: Step, key: str) -> bool:
        return step.id not in self.world.gone

    def last(self, step: str) -> Mapping[str, object] | None:
        return self.world.store.recall("r", step)


def test_a_survey_tells_what_a_run_would_do(world: World) -> None:
    before = survey(Plan(CHAIN, ["c"]), Shelf(world))
    assert [(row.state, row.why) for row in before] == [("run", "never run"), ("waits", "for a"), ("waits", "for b")]
    world.run(CHAIN, "c")
    assert {row.state for row in survey(Plan(CHAIN, ["c"]), Shelf(world))} == {"cached"}


def test_a_plan_names_cycles_and_unknown_steps() -> None:
    with pytest.raises(RwkvflowError, match="need each other"):
        Plan([step("a", "b"), step("b", "a")], ["a"])
    with pytest.raises(RwkvflowError, match="not in the plan"):
        Plan([step("a", "nowhere")], ["a"])
    with pytest.raises(RwkvflowError, match="two different steps"):
        Plan([step("a"), step("a", params={})], ["a"])


dags = st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(dags, st.lists(st.integers(0, 11), max_size=2))
def test_every_dag_ends_with_each_step_settled_once(
    tmp_path_factory: pytest.TempPathFactory, shape: list[list[int]], broken: list[int]
) -> None:
    world = World(tmp_path_factory.mktemp("dag"))
    steps = [
        step(f"s{index:02}", *sorted({f"s{need:02}" for need in needs if need < index}))
        for index, needs in enumerate(shape)
    ]
    world.failing = {f"s{index:02}": StepFailed("broken") for index in broken}
    outcomes = world.run(steps, *(s.id for s in steps))
    assert set(outcomes) == {s.id for s in steps}
    for each in steps:
        bad = any(not outcomes[need].ok for need in each.inputs)
        wanted = "skipped" if bad else "failed" if each.id in world.failing else "done"
        assert outcomes[each.id].status == wanted
    ran = [name for command in world.commands for name in command]
    assert len(ran) == len(set(ran))
