"""`convert --push`: the recipe that stands for it is right, stays as it is, and names what it was given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwkvflow.app import pipeline, push
from rwkvflow.app.push import Push, recipe_text
from rwkvflow.base.errors import UsageError
from rwkvflow.base.events import silent
from rwkvflow.cli import cli
from rwkvflow.documents.load import load_recipe


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Push:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("my model.pth", "b.pth", "lora.pth"):
        (tmp_path / "models" / name).write_bytes(b"x")
    return Push(("models/my model.pth", "hf://owner/x/b.pth"), ("ggml-q8_0", "gguf-f16"), Path("out/rel"), "me/mine")


def test_the_recipe_is_one_and_names_what_was_given(asked: Push, tmp_path: Path) -> None:
    more = replace(asked, lora=Path("models/lora.pth"), alpha=32.0, ignore=("x.*",), split="5GB")
    (tmp_path / "out").mkdir()
    more.recipe.write_text(recipe_text(more), encoding="utf-8")
    recipe = load_recipe(tmp_path / "out" / "rel.yaml")
    assert recipe.name == "mine"
    assert [(model.name, model.source) for model in recipe.models] == [
        ("my-model", "../models/my model.pth"),
        ("b", "hf://owner/x/b.pth"),
    ]
    assert recipe.models[0].lora is not None
    assert (recipe.models[0].lora.source, recipe.models[0].lora.alpha) == ("../models/lora.pth", 32.0)
    assert recipe.models[0].ignore_tensors == ("x.*",)
    assert recipe.split == "5GB"
    assert [place.to for place in recipe.publish] == ["rel", "hf://me/mine"]


def test_it_is_written_once_and_another_is_not_replaced(asked: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Path] = []
    monkeypatch.setattr(pipeline, "prepare", lambda request, emit: ran.append(request.recipe))
    monkeypatch.setattr(pipeline, "execute", lambda prepared, emit: None)
    asked.recipe.parent.mkdir()
    for _ in range(2):
        push.carry_out(asked, pipeline.Request(asked.recipe), silent)
    assert ran == [Path("out/rel.yaml")] * 2
    with pytest.raises(UsageError, match="another recipe"):
        push.carry_out(replace(asked, formats=("ggml-f16",)), pipeline.Request(asked.recipe), silent)
    assert "ggml-q8_0" in asked.recipe.read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repository": "me"}, "hf://me"),
        ({"repository": "https://x/y"}, "https"),
        ({"sources": ("models/b.pth", "hf://owner/x/b.pth")}, "would be called b"),
    ],
)
def test_what_cannot_be_is_said(asked: Push, change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_text(replace(asked, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [["--no-check"], ["--force"], ["--threads", "2"]])
def test_options_that_a_recipe_has_no_place_for_are_refused(asked: Push, words: list[str]) -> None:
    done = CliRunner().invoke(
        cli, ["convert", "models/b.pth", "out/rel", "--format", "ggml-f16", "--push", "me/mine", *words]
    )
    assert isinstance(done.exception, UsageError)
    assert words[0] in str(done.exception)
