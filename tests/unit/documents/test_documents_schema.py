"""The JSON Schemas that editors use, and the recipe that `init` writes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.errors import DocumentError, UsageError
from rwkvflow.documents.load import load_workflow, recipe_from_text
from rwkvflow.documents.parts import NAME
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.schema import DOCUMENTS, Document, schema_of, schema_text
from rwkvflow.documents.sources import source_problem
from rwkvflow.documents.template import guess_name, recipe_template
from rwkvflow.documents.yaml.source import parse

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_schemas_are_the_golden_ones(document: Document) -> None:
    path = GOLDEN / f"schema-{document}.json"
    if os.environ.get("RWKVFLOW_UPDATE_GOLDEN"):
        path.write_text(schema_text(document), encoding="utf-8")
    assert schema_text(document) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_schemas_are_schemas(document: Document) -> None:
    jsonschema.Draft202012Validator.check_schema(schema_of(document))


def errors(document: Document, data: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema_of(document))
    return [error.json_path for error in validator.iter_errors(data)]


def test_shipped_documents_fit_their_schemas() -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        if not path.name.endswith(".lock.yaml"):
            assert errors("recipe", parse(path.read_text(encoding="utf-8"), path.name).to_python()) == []
    workflow = (ROOT / "workflow.yaml").read_text(encoding="utf-8")
    assert errors("workflow", parse(workflow, "workflow.yaml").to_python()) == []
    assert errors("workflow", load_workflow().model_dump(mode="json", exclude_none=True)) == []


GOOD: dict[str, Any] = {"name": "r", "models": [{"name": "a", "source": "a.pth"}], "formats": ["ggml-f16"]}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"image": {"python": "3.11"}}, None),
        ({"images": [{"python": "3.11"}]}, None),
        ({"image": {}, "images": [{}]}, "$"),
        ({"nmae": 1}, "$"),
        ({"formats": ["ggml-q4_O"]}, "$.formats[0]"),
        ({"image": {"python": 3.11}}, "$.image.python"),
        ({"smoke": {"limits": {"ggml-x": {}}}}, "$.smoke.limits"),
        ({"engine": {"source": {"git": "x"}, "cmake": {"A": True}}}, None),
        ({"engine": {"source": "x"}}, "$.engine.source"),
    ],
)
def test_the_schema_and_the_loader_agree(changes: dict[str, Any], where: str | None) -> None:
    data = GOOD | changes
    assert errors("recipe", data) == ([] if where is None else [where])
    text = json.dumps(data)
    if where is None:
        assert isinstance(recipe_from_text(text, "r.yaml", ROOT), Recipe)
    else:
        with pytest.raises(DocumentError):
            recipe_from_text(text, "r.yaml", ROOT)


@pytest.mark.parametrize("document", ["recipe", "workflow"])
def test_every_field_that_users_write_is_described(document: Document) -> None:
    schema = schema_of(document)
    for name, definition in {document: schema, **schema["$defs"]}.items():
        assert definition["description"], name
        for field, value in definition["properties"].items():
            assert value.get("description"), f"{name}.{field}"


SOURCES = [
    ("RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth", "rwkv7-world-0.1b"),
    ("hf://BlinkDL/rwkv-4-pile-169m/RWKV-4-Pile-169M-20220807-8023.pth", "rwkv4-pile-169m"),
    ("/data/rwkv7-g1a-0.4b-20250905-ctx4096.pth", "rwkv7-g1a-0.4b"),
    ("https://example.org/RWKV-5-World-0.1B-v1-20230803-ctx4096.pth?download=true", "rwkv5-world-0.1b"),
    ("rwkv-x060-eng_single_round_qa-7B-20240516-ctx2048.pth", "rwkv6-eng-single-round-qa-7b"),
    ("модель.pth", "model"),
    ("a.safetensors", "a"),
]


@pytest.mark.parametrize(("source", "name"), SOURCES)
def test_a_name_is_guessed_from_the_file(source: str, name: str) -> None:
    assert guess_name(source) == name


@pytest.mark.parametrize("source", [source for source, _ in SOURCES])
def test_init_writes_a_recipe_that_is_right(source: str) -> None:
    recipe = recipe_from_text(recipe_template(source), "r.yaml", ROOT)
    assert recipe.models[0].source == source
    assert recipe.models[0].name == recipe.name == guess_name(source)
    assert recipe.publish


def test_everything_that_init_comments_out_is_right_too() -> None:
    text = recipe_template("a.pth", name="mine")
    all_on = re.sub(r"^(\s*)#(?! )", r"\1", text, flags=re.MULTILINE)
    assert all_on != text
    recipe = recipe_from_text(all_on, "r.yaml", ROOT)
    assert recipe.name == "mine"
    assert recipe.images[0].torch
    assert recipe.models[0].group_norm_eps == 1e-5
    assert "safetensors" in recipe.formats


def test_init_refuses_what_cannot_be_a_source_or_name() -> None:
    with pytest.raises(UsageError, match="http:// is only for this machine"):
        recipe_template("http://example.org/a.pth")
    with pytest.raises(UsageError, match="is no name"):
        recipe_template("a.pth", name="a/b")


@given(st.text(max_size=40))
def test_any_source_gives_a_right_recipe_or_is_refused(source: str) -> None:
    assert re.fullmatch(NAME, guess_name(source))
    if source_problem(source, folder=True) is None:
        try:
            text = recipe_template(source)
            text.encode()
        except UnicodeEncodeError:
            return
        assert recipe_from_text(text, "r.yaml", ROOT).models[0].source == source
    else:
        with pytest.raises(UsageError):
            recipe_template(source)
