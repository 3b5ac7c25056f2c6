"""Environments of an image: one, or two where packages come that rwkvflow does not know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rwkvflow.app.pipeline import make_plan
from rwkvflow.base.shipped import shipped
from rwkvflow.documents.load import recipe_from_text
from rwkvflow.documents.lock import (
    Lock,
    LockedBase,
    LockedEngine,
    LockedFile,
    LockedImage,
    LockedWheel,
    LockedWheels,
    recipe_digest,
)
from rwkvflow.documents.workflow import Workflow
from rwkvflow.lock.pins import WORKED_WITH, brings, judging
from rwkvflow.plan.matrix import expand
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import Ref, Step
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.stages.publish import release_of
from rwkvflow.worker.model.tokenizers import WORLD_PACKAGES

OURS = ("numpy", "safetensors", "tokenizers", "torch", "onnxruntime", "jinja2")
RECIPE = """\
name: x
models: [{name: a, source: a.pth}]
formats: [ggml-f16]
images: [{python: "3.11"}]
"""
EXTRA = {"name": "look", "needs": "convert", "command": ["python3", "x.py"], "outputs": ["x"], "inputs": {}}


def wheel(name: str) -> LockedWheel:
    return LockedWheel(name=name, version="1", filename=f"{name}-1-py3-none-any.whl", sha256="0" * 64)


def lock_of(names: tuple[str, ...]) -> Lock:
    wheels = LockedWheels(worker=tuple(map(wheel, names)), toolchain=(wheel("ziglang"),), installer=(wheel("pip"),))
    base = LockedBase(reference="b:1", digest="sha256:" + "1" * 64, kind="local")
    return Lock(
        recipe=recipe_digest(recipe_from_text(RECIPE, "x.yaml", Path())),
        models={"a": LockedFile(source="a.pth", resolved="a.pth", sha256="0" * 64, size=1)},
        images={"py3.11": LockedImage(python="3.11", base=base, platforms={"linux-x86_64": wheels})},
        engine=LockedEngine(kind="builtin", resolved="builtin"),
    )


def blueprint(names: tuple[str, ...], sandbox: str = "docker") -> Blueprint:
    recipe = recipe_from_text(RECIPE, "x.yaml", Path())
    return Blueprint(
        recipe=recipe,
        recipe_path=Path("x.yaml").absolute(),
        workflow=Workflow.model_validate({"version": 1, "stages": {}, "extra": [EXTRA]}),
        workflow_path=Path("workflow.yaml").absolute(),
        lock=lock_of(names),
        sandbox=sandbox,
        platform="linux-x86_64",
        artifacts=tuple(expand(recipe)),
    )


def plan_of(names: tuple[str, ...], sandbox: str = "docker") -> Plan:
    return make_plan(blueprint(names, sandbox))


def installed(step: Step) -> set[str]:
    return {row[0].split("-")[0] for row in step.params["identity"]["wheels"]}


@pytest.mark.parametrize("sandbox", ["docker", "host"])
def test_without_packages_of_strangers_there_is_one_environment(sandbox: str) -> None:
    plan = plan_of(OURS, sandbox)
    made = [step for step in plan if step.stage == "image"]
    assert [step.id for step in made] == ["image/py3.11"]
    assert installed(made[0]) == set(OURS)
    assert {step.environment for step in plan if step.action == "sandbox"} == {"image/py3.11"}
    assert all(step.consumers is None and "consumers" not in step.inputs for step in plan)


@pytest.mark.parametrize("sandbox", ["docker", "host"])
def test_a_strangers_package_is_where_artifacts_are_run_and_nowhere_else(sandbox: str) -> None:
    """Whoever names it: the rule reads the lock alone, which holds what recipes name and may be a stranger's itself."""
    plan = plan_of((*OURS, "evil"), sandbox)
    assert installed(plan.steps["image/py3.11"]) == {"numpy", "safetensors", "tokenizers"}
    theirs = plan.steps["image/py3.11+consumers"]
    assert installed(theirs) == {*OURS, "evil"}
    assert not any("evil" in str(step.params) for step in plan if step.stage not in ("wheels", "image", "publish"))
    for step in plan:
        if step.action == "sandbox":
            in_it = {step.environment, step.consumers}
            assert (theirs.id in in_it) == (step.stage in ("smoke", "extra")), step.id
            assert (step.environment == theirs.id) == (step.stage == "extra"), step.id
    assert plan.steps["smoke/a/ggml-f16@py3.11"].inputs["consumers"] == Ref(theirs.id, "environment")
    assert "evil" not in plan.steps["image/py3.11"].local["requirements"]["worker.txt"]
    assert "evil" in theirs.local["requirements"]["worker.txt"]


def test_the_second_image_builds_nothing_and_needs_no_compiler() -> None:
    plan = plan_of((*OURS, "evil"))
    first, second = (plan.steps[name].local["dockerfile"] for name in ("image/py3.11", "image/py3.11+consumers"))
    assert "AS toolchain" in first
    assert "engine-librwkv" in first
    for words in ("toolchain", "engine", "build-engine", "zig"):
        assert words not in "\n".join(line for line in second.splitlines() if not line.startswith(("#", "LABEL")))
    assert [line for line in second.splitlines() if line.startswith("FROM")][1:] == [
        "FROM base AS wheels",
        "FROM wheels AS worker",
    ]


def test_packages_of_strangers_change_no_key_of_what_is_converted() -> None:
    one, other = plan_of(("numpy", "safetensors", "evil")), plan_of(("numpy", "safetensors", "worse"))
    same, differs = "image/py3.11", "image/py3.11+consumers"
    assert one.steps[same].params["identity"] == other.steps[same].params["identity"]
    assert one.steps[differs].params["identity"] != other.steps[differs].params["identity"]
    for stage in ("engine", "convert", "reference"):
        (step,) = (step for step in one if step.stage == stage)
        assert {value for value in step.inputs.values() if isinstance(value, Ref)} <= {
            Ref(same, "environment"), Ref("engine/librwkv@py3.11", "engine"), Ref("fetch/a", "file"),
        }  # fmt: skip


def test_a_release_names_the_packages_of_both(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(RECIPE, encoding="utf-8")
    release, _ = release_of(replace(blueprint((*OURS, "evil")), recipe_path=tmp_path / "x.yaml"))
    assert "evil-1-py3-none-any.whl" in str(release["images"])


def test_what_the_worker_works_with_is_named_once() -> None:
    pins = yaml.safe_load(shipped("images/pins.yaml").read_text(encoding="utf-8"))
    assert set(pins["worker"]) <= WORKED_WITH
    assert {name.replace("_", "-") for name in WORLD_PACKAGES} <= WORKED_WITH
    assert pins["dependencies"] == sorted(set(pins["dependencies"]))
    known = [*pins["worker"], *pins["consumers"], *pins["dependencies"]]
    assert judging(tuple(map(wheel, known))) == tuple(map(wheel, known))


def test_a_lock_with_a_strangers_package_brings_code() -> None:
    assert brings(lock_of(OURS)) is None
    assert brings(lock_of((*OURS, "evil"))) == "the lock names the package evil"
