"""Which artifacts a recipe stands for, their identifiers, and choosing among them."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.errors import UsageError
from rwkvflow.documents.recipe import Combination, Image, Matrix, Model, Recipe
from rwkvflow.plan.matrix import Artifact, expand, select

FORMATS = ("ggml-q5_1", "ggml-q8_0", "safetensors")


def recipe(
    models: tuple[str, ...] = ("a", "b"),
    formats: tuple[str, ...] = FORMATS,
    images: tuple[str, ...] = ("py3.11", "py3.11-torch2.13.0"),
    **matrix: tuple[Combination, ...],
) -> Recipe:
    return Recipe(
        name="r",
        models=tuple(Model(name=name, source="x.pth") for name in models),
        formats=formats,
        images=tuple(Image(name=name) for name in images),
        matrix=Matrix(**matrix),
    )


def ids(subject: Recipe) -> list[str]:
    return [artifact.id for artifact in expand(subject)]


def test_identifiers_in_the_order_of_the_recipe() -> None:
    assert ids(recipe(formats=("safetensors", "ggml-f16"))) == [
        "a/safetensors@py3.11",
        "a/safetensors@py3.11-torch2.13.0",
        "a/ggml-f16@py3.11",
        "a/ggml-f16@py3.11-torch2.13.0",
        "b/safetensors@py3.11",
        "b/safetensors@py3.11-torch2.13.0",
        "b/ggml-f16@py3.11",
        "b/ggml-f16@py3.11-torch2.13.0",
    ]


def test_exclude_then_include() -> None:
    subject = recipe(
        exclude=(Combination(image="*torch*"), Combination(model="b", format="ggml-*")),
        include=(Combination(model="b", format="ggml-q5_1", image="py3.11-*"),),
    )
    assert ids(subject) == [
        "a/ggml-q5_1@py3.11",
        "a/ggml-q8_0@py3.11",
        "a/safetensors@py3.11",
        "b/ggml-q5_1@py3.11-torch2.13.0",
        "b/safetensors@py3.11",
    ]


def test_include_adds_a_format_for_what_it_names_only() -> None:
    subject = recipe(include=(Combination(model="b", format="ggml-f32", image="py3.11"),))
    assert [id for id in ids(subject) if "f32" in id] == ["b/ggml-f32@py3.11"]
    assert len(ids(subject)) == 13


def test_a_glob_in_include_adds_no_format() -> None:
    assert ids(recipe(include=(Combination(format="ggml-*"),))) == ids(recipe())


def test_selecting_by_globs_keeps_the_order() -> None:
    artifacts = expand(recipe())
    assert select(artifacts, []) == artifacts
    chosen = select(artifacts, ["b/*@py3.11", "a/safetensors@py3.11", "a/safetensors@*"])
    assert [artifact.id for artifact in chosen] == [
        "a/safetensors@py3.11",
        "a/safetensors@py3.11-torch2.13.0",
        "b/ggml-q5_1@py3.11",
        "b/ggml-q8_0@py3.11",
        "b/safetensors@py3.11",
    ]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("a", "'a/*'"),
        ("ggml-q5_1", "'*/ggml-q5_1@*'"),
        ("py3.11", "'*@py3.11'"),
        ("b/ggml-q5_1", "'b/ggml-q5_1@*'"),
        ("b/ggml-q5-1@py3.11", "'b/ggml-q5_1@py3.11'"),
        ("*/ggml-q5-1@*", "'*/ggml-q5_1@*'"),
        ("safetensosr", "'safetensors'"),
    ],
)
def test_a_pattern_that_matches_nothing_names_what_is_near(pattern: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(expand(recipe()), ["a/*", pattern])
    assert f"matches '{pattern}'; did you mean {meant}?" in caught.value.message


names = st.lists(st.sampled_from(["a", "ab", "b-1", "b.2", "c"]), min_size=1, max_size=4, unique=True).map(tuple)
globs = st.sampled_from(["*", "a", "a*", "?", "b*", "*-*", "ggml*", "ggml-q5_1", "safetensors", "[ab]*"])
rules = st.lists(st.builds(Combination, model=globs, format=globs, image=globs), max_size=3).map(tuple)


@given(names, names, rules, rules)
def test_expansion_is_what_the_rules_say(
    models: tuple[str, ...],
    images: tuple[str, ...],
    exclude: tuple[Combination, ...],
    include: tuple[Combination, ...],
) -> None:
    known = [rule for rule in include if rule.format not in ("a", "a*", "?", "b*", "[ab]*")]
    found = expand(recipe(models, FORMATS, images, exclude=exclude, include=tuple(known)))

    def matches(rule: Combination, artifact: Artifact) -> bool:
        pairs = ((artifact.model, rule.model), (artifact.format, rule.format), (artifact.image, rule.image))
        return all(fnmatchcase(name, pattern) for name, pattern in pairs)

    everything = [Artifact(model, name, image) for model in models for name in FORMATS for image in images]
    assert found == [
        artifact
        for artifact in everything
        if not any(matches(rule, artifact) for rule in exclude) or any(matches(rule, artifact) for rule in known)
    ]
    assert len({artifact.id for artifact in found}) == len(found)
