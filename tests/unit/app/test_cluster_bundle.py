"""The documents of a run as a cluster gets them: its plan has the keys of ours, and nothing comes from outside."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rwkvflow import __version__
from rwkvflow.app.clusters import on_worker
from rwkvflow.app.clusters.bundle import bundle, code_digest, machine, plan_of, stored
from rwkvflow.app.pipeline import Prepared, Request, make_plan
from rwkvflow.base.errors import UsageError
from rwkvflow.documents.load import named_stages, recipe_from_text
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.workflow import Workflow
from rwkvflow.execute.cluster.fitness import AWAY, CORES, MEMORY, parse_greeting
from rwkvflow.execute.cluster.words import Message, parse_answer
from rwkvflow.plan.matrix import expand
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import LocalInput, key_of
from rwkvflow.sandbox.host import HostSandbox, host_platform
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store
from tests.unit.stages.test_llama_stages import lock_of

TEXT = """\
name: x
models: [{name: a, source: a.pth}]
formats: [ggml-f16, ggml-q4_0, safetensors, {format: gguf-q8_0, split: 5GB}]
images: [{python: "3.11"}, {python: "3.12"}]
matrix: {exclude: [{format: safetensors, image: py3.12}]}
smoke: {text: texts/held.txt, prompts: ["A "], limits: {ggml-q4_0: {perplexity: 0.125}}}
card: {license: apache-2.0}
publish: [{to: out}]
"""


def prepared(folder: Path, text: str = TEXT) -> Prepared:
    (folder / "texts").mkdir(parents=True)
    (folder / "texts" / "held.txt").write_text("a text")
    (folder / "tool.py").write_text("print()")
    (folder / "x.yaml").write_text(text)
    recipe: Recipe = recipe_from_text(text, "x.yaml", folder)
    extra = {"name": "look", "each": "artifact", "needs": "convert", "command": ["python3", "in/tool"],
             "inputs": {"tool": "tool.py", "artifact": "artifact"}, "outputs": ["x"]}  # fmt: skip
    blueprint = Blueprint(
        recipe=recipe,
        recipe_path=folder / "x.yaml",
        workflow=Workflow.model_validate({"version": 1, "stages": {"smoke": {"memory": "1GiB"}}, "extra": [extra]}),
        workflow_path=folder / "workflow.yaml",
        lock=lock_of(recipe),
        sandbox="host",
        platform=host_platform(),
        artifacts=tuple(expand(recipe)),
    )
    lock = blueprint.lock
    blueprint = replace(
        blueprint,
        lock=lock.model_copy(
            update={
                "images": {
                    name: image.model_copy(update={"platforms": {host_platform(): image.platforms["linux-x86_64"]}})
                    for name, image in lock.images.items()
                }
            }
        ),
    )
    store = Store(folder / "store")
    plan = make_plan(blueprint)
    return Prepared(Request(folder / "x.yaml"), blueprint, plan, store, HostSandbox(folder / "env"), "")


def keys(plan: Plan) -> dict[str, str]:
    found = {}
    for step in plan:
        if step.stage == "publish":
            continue
        digests = {n: v.digest if isinstance(v, LocalInput) else f"{v.step}:{v.output}" for n, v in step.inputs.items()}
        found[step.id] = key_of(step.parts(digests))
    return found


def test_a_worker_makes_the_same_plan_of_what_it_gets(tmp_path: Path) -> None:
    mine = prepared(tmp_path / "home")
    remote = Remote(f"file://{tmp_path}/remote", print)
    output = stored(mine, mine.store, remote)[0]
    worker = Store(tmp_path / "worker")
    worker.remote = Remote(f"file://{tmp_path}/remote", print)
    plan = on_worker._plan(str(worker.root), output, worker)
    assert keys(plan) == keys(mine.plan)
    assert len(keys(plan)) > 20
    text = json.dumps(bundle(mine)[0])
    assert str(tmp_path) not in text, "no path of this machine"
    places = sorted(place for seen in bundle(mine)[1].values() for place in seen)
    both = [f"{of}/{name}" for of in ("recipe", "workflow") for name in ("texts/held.txt", "tool.py")]
    assert places == both, "the workflow lies beside the recipe"


def test_what_lies_outside_of_the_folder_goes_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("mine")
    mine = prepared(tmp_path / "home", TEXT.replace("texts/held.txt", "../secret.txt"))
    with pytest.raises(UsageError, match="outside of the recipe's folder"):
        bundle(mine)


def test_hostile_documents_lead_nowhere_on_a_worker(tmp_path: Path) -> None:
    mine = prepared(tmp_path / "home")
    output = stored(mine, mine.store, None)[0]
    documents: dict[str, Any] = json.loads(mine.store.path(output.digest).read_bytes())  # type: ignore[union-attr]
    for path in ("../../escaped", "/escaped", "a/../../../escaped"):
        documents["files"][0]["place"] = path
        with pytest.raises(Exception, match=r"escaped|\.\."):
            on_worker._workspace(documents, "sha256:" + "1" * 64, mine.store)
    assert not list(tmp_path.rglob("escaped"))
    with pytest.raises(ValueError, match=r"."):
        plan_of({**documents, "recipe": {"name": 3}}, tmp_path)


def message(mine: Prepared, folder: Path, **changes: Any) -> Message:
    output = stored(mine, mine.store, None)[0]
    step = next(step for step in mine.plan if step.action in AWAY)
    made = Message("t", "topic", output, {step.id: "ab" * 32}, {}, None, str(mine.store.root), "host")
    return replace(made, **changes)


def test_a_worker_whose_plan_is_another_refuses_by_name(tmp_path: Path) -> None:
    mine = prepared(tmp_path / "home")
    asked = message(mine, tmp_path)
    answer = parse_answer(on_worker.carry_out(asked.to_text()), list(asked.steps))
    assert "nothing was told" in answer.refused, answer
    other = replace(asked, steps={"convert/unheard/of@here": "ab" * 32})
    answer = parse_answer(on_worker.carry_out(other.to_text()), list(other.steps))
    assert "makes another plan: there is no convert/unheard/of@here" in answer.refused
    assert "does not understand" in parse_answer(on_worker.carry_out("{}"), ["x"]).refused


def test_a_worker_says_which_document_the_store_has_not(tmp_path: Path) -> None:
    """The documents themselves, then a file that they name: damaged, so that the home sends them again."""
    mine = prepared(tmp_path / "home")
    remote = Remote(f"file://{tmp_path}/remote", print)
    made = stored(mine, mine.store, remote)
    step = next(step for step in mine.plan if step.action in AWAY)
    for number, output in enumerate(made):
        place = tmp_path / "remote" / "blobs" / output.digest[7:9] / output.digest[7:]
        whole = place.read_bytes()
        place.write_bytes(b"x" * len(whole))
        store = str(tmp_path / f"worker{number}")
        text = Message("t", "topic", made[0], {step.id: "ab" * 32}, {}, remote.url, store, "host").to_text()
        answer = parse_answer(on_worker.carry_out(text), [step.id])
        assert answer.lost == (output.digest,), answer
        assert answer.refused == "it cannot get the documents of the run"
        place.write_bytes(whole)
        assert not parse_answer(on_worker.carry_out(text), [step.id]).lost


class DaskWorker:
    """What of Dask's worker a greeting asks for."""

    def __init__(self) -> None:
        self.name = "one"
        self.state = SimpleNamespace(nthreads=3, total_resources={})
        self.memory_manager = SimpleNamespace(memory_limit=5 << 30)

    async def set_resources(self, **amounts: float) -> None:
        self.state.total_resources.update(amounts)


def test_a_greeting_says_what_a_worker_has_and_dask_is_told(tmp_path: Path) -> None:
    mine = prepared(tmp_path / "home")
    output = stored(mine, mine.store, None)[0]
    asked: dict[str, Any] = {
        "sandbox": "host", "walls": False, "store": str(mine.store.root), "machine": machine(), "remote": None,
        "probe": vars(output),
    }  # fmt: skip
    worker = DaskWorker()

    def greet(**changes: Any) -> Any:
        return parse_greeting(asyncio.run(on_worker.greet(json.dumps(asked | changes), worker)))

    found = greet()
    assert (found.version, found.code, found.platform) == (__version__, code_digest(), host_platform())
    assert (found.sandbox, found.cores, found.memory, found.problem) == ("host", 3, 5 << 30, "")
    assert worker.state.total_resources == {CORES: 3, MEMORY: float(5 << 30)}
    assert "another machine, and there is no remote store" in greet(machine="elsewhere").problem
    assert "does not see the store" in greet(store=str(tmp_path / "other")).problem
    away = greet(store=None, remote=f"file://{tmp_path}/nowhere")
    assert "does not see what this run wrote to the remote store" in away.problem
    remote = Remote(f"file://{tmp_path}/remote", print)
    path = mine.store.path(output.digest)
    assert path is not None
    assert remote.put(output, path, mine.store)
    assert greet(store=None, remote=remote.url).problem == ""


def test_which_limits_are_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "workflow.yaml"
    path.write_text("version: 1\nstages: {smoke: {memory: 1GiB}}\n")
    assert named_stages(path) == {"smoke", "extra"}
    assert named_stages(None) == frozenset()
