"""A recipe with every key: it is the recipe that it was made from, and what it offers beside can be switched on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

from rwkvflow.base.errors import UsageError
from rwkvflow.base.shipped import shipped
from rwkvflow.cli import cli
from rwkvflow.documents.load import load_recipe, load_workflow, recipe_from_text
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.template import recipe_template
from rwkvflow.documents.workflow import Workflow
from rwkvflow.documents.yaml.full import full_text, models_in

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
EXTREME = """\
name: x
models:
  - {name: a, source: "a \\"b\\" 模型.pth", lora: {source: l.pth, alpha: 32}, group_norm_eps: 1.0e-5}
  - {name: b, source: "hf://a/b/c.pth", ignore_tensors: ["*.x", "# no comment"], state: {source: s.pth}}
formats: [ggml-f16, {format: gguf-q4_k_m-mixed, tensor_types: {"a: #b": f16}, target: {bits_per_weight: 4.5}}]
images: [{python: "3.10", wheels: [tokenizers==0.20.3]}, {base: "x:y", torch: "2.13.0", name: other}]
engine:
  source: {git: "https://example.org/e.git", commit: a123456789012345678901234567890123456789, submodules: [a, b]}
  cmake: {A: true, B: "no", C: 3}
  patches: [{name: p, files: ["**"], pattern: '(\\\\s)"', replace: '\\\\1', when: {host: "linux-*"}}]
smoke: {prompts: ["a\\nb", "-"], quality: full, limits: {ggml-f16: {logits: 0.5, domains: {code: {kl: 0.1}}}}}
publish: [{to: out}, {to: "hf://me/mine", private: true}]
card: {about: "# One\\n\\n- two\\n", language: [en, zh]}
matrix: {exclude: [{model: a, image: other}]}
"""


def named(text: str, name: str = "recipe.yaml") -> Recipe:
    return recipe_from_text(text, name, ROOT)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_with_every_key_is_the_same_recipe(path: Path) -> None:
    if path.name.endswith(".lock.yaml"):
        pytest.skip("a lock")
    recipe = load_recipe(path)
    assert recipe_from_text(full_text(recipe), "full.yaml", path.parent) == recipe


def test_whatever_a_recipe_says_is_said_again() -> None:
    recipe = named(EXTREME)
    assert named(full_text(recipe)) == recipe
    assert named(full_text(named(full_text(recipe)))) == recipe


def test_a_workflow_as_well(tmp_path: Path) -> None:
    workflow = load_workflow(shipped("workflow.yaml"))
    (tmp_path / "w.yaml").write_text(full_text(workflow), encoding="utf-8")
    assert load_workflow(tmp_path / "w.yaml") == workflow


def reached(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for other in models_in(field.annotation):
            yield from reached(other)


def switched_on(text: str) -> str:
    """All keys that are comments, as keys; a value gives way to what stands below it in its place."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("# ")]
    for number, (line, below) in enumerate(itertools.pairwise(lines)):
        deeper = len(below) - len(below.lstrip()) > len(line) - len(line.lstrip())
        if deeper and below.lstrip().startswith("#") and not re.fullmatch(r" *#?-? ?([\\w]+:)?", line):
            lines[number] = line[: line.index(":") + 1]
    return "\n".join(re.sub(r"^( *)#", r"\1", line) for line in lines)


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from mappings(part)


@pytest.mark.parametrize("document", [named(recipe_template("a.pth")), load_workflow()], ids=["recipe", "workflow"])
def test_every_key_of_every_part_is_there_and_can_be_switched_on(document: Recipe | Workflow) -> None:
    text = full_text(document)
    assert max(map(len, text.splitlines())) <= 120
    if isinstance(document, Recipe):  # lists that are there keep what they hold, and get what they may hold
        text = re.sub(r'formats:\n(  - "\S+"\n)+', "formats: []\n", text)
    there = list(mappings(yaml.safe_load(switched_on(text))))
    for model in reached(type(document)):
        assert any(set(model.model_fields) <= set(mapping) for mapping in there), model
    for model in reached(type(document)):
        for field in model.model_fields.values():
            first = " ".join((field.description or "").split()[:8])
            assert first in re.sub(r"\s+# ", " ", text), field


def test_init_full_writes_what_init_writes_with_all_that_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "hf://BlinkDL/rwkv-7-world/RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth"
    monkeypatch.setattr("rwkvflow.app.starts.choices", lambda source: None)
    monkeypatch.setattr("rwkvflow.cli.documents._refuse_unknown", lambda source: None)
    for words in (["-o", "short.yaml"], ["--full", "-o", "full.yaml"]):
        done = CliRunner().invoke(cli, ["init", source, *words])
        assert done.exit_code == 0, done.output
    assert load_recipe(tmp_path / "full.yaml") == load_recipe(tmp_path / "short.yaml")
    told = (tmp_path / "full.yaml").read_text(encoding="utf-8")
    assert '  toolchain: "zig"\n' in told
    assert "\n    #lora:\n" in told
    assert "\n      #alpha:\n" in told, "what is below a key that is off stands below it"


def test_a_recipe_that_is_copied_is_copied_as_it_is() -> None:
    done = CliRunner().invoke(cli, ["init", "--from", "demo", "--full"])
    assert isinstance(done.exception, UsageError)
    assert "--full" in str(done.exception)
