"""`engine.targets`: what recipes may say, the steps that follow, and what of it ends up in a release."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import DocumentError
from rwkvflow.documents.load import load_workflow, recipe_from_text
from rwkvflow.plan.matrix import expand
from rwkvflow.plan.step import Ref
from rwkvflow.release.check import check_release
from rwkvflow.stages import engine, publish
from rwkvflow.stages.blueprint import Blueprint
from tests.helpers.releases import RECIPE, Made, engine_folder, lock_of, made, zeros

TARGETS = ["aarch64-linux-musl", "x86_64-windows-gnu"]
MORE = f"engine: {{targets: [{', '.join(TARGETS)}]}}\n"


def blueprint(folder: Path, more: str) -> Blueprint:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE + more, encoding="utf-8")
    recipe = recipe_from_text(RECIPE + more, str(path), folder)
    (folder / "models").mkdir(exist_ok=True)
    checkpoint = zeros(folder / "models" / "tiny4.safetensors", "4")
    lock = lock_of({"tiny7": ("hf://someone/tiny7/tiny7.safetensors", checkpoint), "tiny4": ("models/x", checkpoint)})
    return Blueprint(
        recipe=recipe,
        recipe_path=path,
        workflow=load_workflow(),
        workflow_path=path,
        lock=lock,
        sandbox="host",
        platform="linux-x86_64",
        artifacts=tuple(expand(recipe)),
    )


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (MORE, None),
        ("engine: {targets: [arm64]}\n", "engine.targets[0]: target 'arm64' is no zig target triple such as"),
        ("engine: {targets: [x86_64-beos]}\n", "unknown system 'beos'; there are linux, macos, windows, wasi"),
        ("engine: {target: x86_64-beos}\n", "engine.target: target 'x86_64-beos': unknown system"),
        ("engine: {targets: [aarch64-macos, aarch64-macos]}\n", "duplicate target 'aarch64-macos'"),
        ("engine: {targets: [aarch64-macos], toolchain: system}\n", "engine.targets[0]: the system's compiler builds"),
        ("engine: {targets: aarch64-macos}\n", "engine.targets: expected a list"),
        ("engine: {targets: ['../x']}\n", "engine.targets[0]: "),
    ],
)
def test_what_a_recipe_may_say(more: str, expected: str | None, tmp_path: Path) -> None:
    if expected is None:
        assert list(recipe_from_text(RECIPE + more, "recipe.yaml", tmp_path).engine.targets) == TARGETS
        return
    with pytest.raises(DocumentError) as caught:
        recipe_from_text(RECIPE + more, "recipe.yaml", tmp_path)
    assert expected in str(caught.value)


def test_each_target_is_a_step_that_nothing_but_publishing_waits_for(tmp_path: Path) -> None:
    plan = blueprint(tmp_path, MORE)
    steps = {step.id: step for step in engine.steps(plan)}
    ids = [f"engine/librwkv.{target}@py3.11" for target in TARGETS]
    assert list(steps) == ["engine/librwkv@py3.11", *ids]
    asked = [steps[name].params["params"]["target"] for name in steps]
    assert asked == ["x86_64-linux-gnu.2.17", *TARGETS]
    others = [{**steps[name].params["params"], "target": None} for name in steps]
    assert others[0] == others[1] == others[2], "built like the engine that smoke uses"
    (release,) = publish.steps(plan)
    assert [release.inputs[f"target/{target}"] for target in TARGETS] == [Ref(name, "engine") for name in ids]
    # An image holds the engine of its own machine only.
    assert list(engine.builds(plan, "py3.11")) == ["librwkv"]


def test_an_engine_of_the_recipes_own_is_built_for_them_too(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "CMakeLists.txt").write_text("")
    plan = blueprint(tmp_path, "engine: {source: {path: mine}, cmake: {A: true}, targets: [aarch64-macos]}\n")
    step = list(engine.steps(plan))[-1]
    assert step.id == "engine/custom.aarch64-macos@py3.11"
    assert step.params["params"]["cmake"] == {"A": True}


def test_without_targets_nothing_changes(tmp_path: Path) -> None:
    (release,) = publish.steps(blueprint(tmp_path, ""))
    assert "targets" not in release.params["release"]
    assert not any(name.startswith("target/") for name in release.inputs)


# ---- releases ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Made:
    """A run whose first target was built, and whose second was not."""
    run = made(tmp_path / "store")
    run.params["targets"] = {target: {"toolchain": "zig", "target": target, "library": None} for target in TARGETS}
    run.add(f"target/{TARGETS[0]}", engine_folder(tmp_path / "cross", patched=False))
    return run


def statement(release: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((release / "provenance.json").read_text())
    return found


def test_a_release_holds_what_was_built_and_says_what_was_not(run: Made, tmp_path: Path) -> None:
    out = run.publish(tmp_path / "out")
    library = out / "engine" / TARGETS[0] / "lib" / "librwkv.so"
    assert library.read_bytes() == b"\x7fELF and so on"
    assert not (out / "engine" / TARGETS[1]).exists()
    card = (out / "README.md").read_text()
    assert f"* `engine/{TARGETS[1]}`: it was not built" in card
    assert f"built for {TARGETS[0]}: see the folders below engine/." in card
    told = statement(out)
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in told["subject"]}
    assert subjects[f"engine/{TARGETS[0]}/lib/librwkv.so"] == hashlib.sha256(library.read_bytes()).hexdigest()
    internal = told["predicate"]["buildDefinition"]["internalParameters"]
    assert internal["engine"]["targets"][TARGETS[0]] == {"toolchain": "zig", "target": TARGETS[0]}
    assert internal["leftOut"] == {f"engine/{TARGETS[1]}": "it was not built"}


def test_a_release_with_them_verifies_and_a_changed_library_does_not(run: Made, tmp_path: Path) -> None:
    out = run.publish(tmp_path / "out")
    assert not check_release(out).problems
    library = out / "engine" / TARGETS[0] / "lib" / "librwkv.so"
    library.chmod(0o644)
    library.write_bytes(b"\x7fELF and so forth")
    assert any("librwkv.so" in problem for problem in check_release(out).problems)


def test_cards_of_others_say_nothing_of_targets(tmp_path: Path) -> None:
    out = made(tmp_path / "store").publish(tmp_path / "out")
    assert "Other machines" not in (out / "README.md").read_text()
