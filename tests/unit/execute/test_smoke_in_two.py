"""Who sees what in a smoke: consumers no reference, the judge no engine of the recipe's, nor artifacts that it runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rwkvflow.base.errors import RwkvflowError, SmokeFailed
from rwkvflow.execute.base import Job, Made, Product, Work
from rwkvflow.execute.smoke import in_two
from rwkvflow.plan.step import Step, StepLimits

SECRET = {"reference", "tokenizer"}
COMMON = ("reference", "questions", "tokenizer", "environment", "engine", "librwkv", "checkpoint/a", "lora")


def job(name: str, *, apart: bool) -> Job:
    kind = f"artifact-{name}"
    paths = {key: Path("/in") / key for key in (*COMMON, kind)}
    step = Step(
        f"smoke/{name}",
        "smoke",
        "sandbox",
        {"task": "smoke", "params": {"tokens": 1}, "job": {"format": name, "input": kind}},
        {},
        ("smoke",),
        local={"apart": apart, "compares": not name.startswith("ggml"), "equal": name == "safetensors"},
    )
    quiet = lambda *told: None  # noqa: E731
    return Job(step, "k", "e", paths, {key: f"sha256:{key}" for key in paths}, quiet, quiet, quiet)


class Commands:
    """Notes each command's task, folder and the inputs of each of its jobs."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, set[str], list[str]]] = []
        self.engines: list[Path] = []
        self.bad: set[str] = set()

    def __call__(self, jobs: Sequence[Job], work: Work) -> Mapping[str, Made | RwkvflowError]:
        inputs = {name for one in jobs for name in one.inputs}
        self.seen.append((jobs[0].step.params["task"], inputs, [one.step.id for one in jobs]))
        self.engines += [one.inputs["engine"] for one in jobs if "engine" in one.inputs]
        assert work.folder.is_dir()
        assert not list(work.folder.iterdir())
        return {
            one.step.id: SmokeFailed("it crashed")
            if one.step.id in self.bad
            else Made({name: Product(work.folder / f"{one.step.id}.{name}") for name in one.step.outputs})
            for one in jobs
        }


def run(commands: Commands, folder: Path, *, apart: bool) -> Mapping[str, Made | RwkvflowError]:
    jobs = [job(name, apart=apart) for name in ("ggml-f16", "ggml-q4_0", "safetensors")]
    return in_two(commands, jobs, Work(folder, StepLimits(), threading.Event()))


@pytest.mark.parametrize("apart", [False, True])
def test_no_consumer_sees_the_reference_and_the_judge_runs_nothing(tmp_path: Path, apart: bool) -> None:
    commands = Commands()
    results = run(commands, tmp_path, apart=apart)
    assert all(isinstance(made, Made) and set(made.outputs) == {"smoke"} for made in results.values())
    *asked, judged = commands.seen
    assert judged[0] == "smoke"
    assert judged[1] == {
        "reference", "tokenizer", "environment", "engine", "checkpoint/a", "lora",
        "answers-ggml-f16", "answers-ggml-q4_0", "answers-safetensors", "artifact-safetensors",
    }  # fmt: skip
    assert commands.engines[-1] == Path("/in/librwkv"), "librwkv tells the sizes of formats, never the recipe's engine"
    for task, inputs, _ in asked:
        assert task == "ask"
        assert "questions" in inputs
        assert not inputs & SECRET
    assert len(asked) == (3 if apart else 1)


def test_an_engine_of_the_recipes_sees_one_artifact_and_no_checkpoint(tmp_path: Path) -> None:
    commands = Commands()
    run(commands, tmp_path, apart=True)
    seen = {tuple(names): inputs for task, inputs, names in commands.seen if task == "ask"}
    assert seen[("smoke/ggml-f16",)] == {"questions", "engine", "artifact-ggml-f16"}
    assert seen[("smoke/ggml-q4_0",)] == {"questions", "engine", "artifact-ggml-q4_0"}
    assert "engine" not in seen[("smoke/safetensors",)]
    assert {"checkpoint/a", "lora"} <= seen[("smoke/safetensors",)]


def test_what_does_not_answer_is_not_judged(tmp_path: Path) -> None:
    commands = Commands()
    commands.bad = {"smoke/ggml-q4_0"}
    results = run(commands, tmp_path, apart=False)
    assert isinstance(results["smoke/ggml-q4_0"], SmokeFailed)
    assert commands.seen[-1][2] == ["smoke/ggml-f16", "smoke/safetensors"]
