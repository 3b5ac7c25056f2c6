"""Base images by name: their Python, what a recipe without any may be given, and that old locks go on fitting."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvflow.documents.load import load_lock, load_recipe
from rwkvflow.documents.lock import LockedBase, bases_of, disagreements, recipe_digest
from rwkvflow.documents.names import REGISTRY, may_be_given, official_base, own_base, python_of
from rwkvflow.documents.recipe import Recipe

OLD = Path(__file__).resolve().parents[2] / "fixtures" / "v0.1"


@pytest.mark.parametrize(
    ("reference", "python"),
    [
        ("rwkvflow-base:bookworm", "3.11"),
        ("rwkvflow-base:trixie_mesa-vulkan-drivers", "3.13"),
        ("python:3.12-slim", "3.12"),
        ("docker.io/library/python:3.12.4-slim-bookworm@sha256:0", "3.12"),
        ("python:3", None),
        ("registry.example/python:3.12", None),
        ("debian:bookworm", None),
    ],
)
def test_a_name_tells_its_python(reference: str, python: str | None) -> None:
    assert python_of(reference) == python


def test_the_environment_names_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REGISTRY, raising=False)
    assert official_base("3.12") == "python:3.12-slim"
    monkeypatch.setenv(REGISTRY, "mirror.example:5000/hub/")
    assert official_base("3.12") == "mirror.example:5000/hub/library/python:3.12-slim"
    monkeypatch.setenv(REGISTRY, "none")
    assert official_base("3.12") is None


def test_only_these_may_be_given_to_a_recipe_that_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REGISTRY, "mirror.example")
    assert (own_base("3.11"), own_base("3.13"), own_base("3.12")) == (
        "rwkvflow-base:bookworm",
        "rwkvflow-base:trixie",
        None,
    )
    for good in ("python:3.11-slim", "mirror.example/library/python:3.11-slim", "rwkvflow-base:bookworm"):
        assert may_be_given(good, "3.11")
        assert not may_be_given(good, "3.13")
    for bad in ("evil.example/library/python:3.11-slim", "python:3.11", "debian:bookworm", "rwkvflow-base:trixie"):
        assert not may_be_given(bad, "3.11")


def _recipe(**image: str) -> Recipe:
    return Recipe.model_validate(
        {"name": "r", "models": [{"name": "m", "source": "m.pth"}], "formats": ["ggml-f16"], "images": [image]}
    )


def test_a_lock_cannot_bring_a_base_that_the_recipe_does_not_name() -> None:
    recipe, lock = load_recipe(OLD / "recipe.yaml"), load_lock(OLD / "recipe.lock.yaml")
    name = recipe.images[0].name

    def with_base(reference: str) -> list[str]:
        base = LockedBase(reference=reference, digest="sha256:" + "0" * 64, kind="registry")
        image = lock.images[name].model_copy(update={"base": base})
        changed = lock.model_copy(update={"images": {name: image}})
        assert bases_of(recipe, changed) == [(reference if "evil" not in reference else None, "3.11")]
        return [item for item in disagreements(recipe, changed) if "base" in item]

    assert with_base("python:3.11-slim") == with_base("rwkvflow-base:bookworm") == []
    assert with_base("evil.example/library/python:3.11-slim") == [
        f"images.{name}: base was evil.example/library/python:3.11-slim in the lock, is unsaid in the recipe"
    ]


def test_locks_from_before_there_was_a_choice_go_on_fitting() -> None:
    unsaid, said = _recipe(python="3.11"), _recipe(python="3.11", base="rwkvflow-base:bookworm")
    assert recipe_digest(unsaid) == recipe_digest(said)
    assert recipe_digest(unsaid) != recipe_digest(_recipe(python="3.11", base="python:3.11-slim"))
