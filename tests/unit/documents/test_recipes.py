"""The shipped recipes: each is valid, plans with a lock that stands in for the hub, and asks for nothing odd."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rwkvflow.app.pipeline import make_plan
from rwkvflow.base.errors import UsageError
from rwkvflow.base.hashing import text_digest
from rwkvflow.documents.load import load_document, load_recipe, load_workflow
from rwkvflow.documents.lock import (
    BUILTIN_TOKENIZERS,
    Lock,
    LockedBase,
    LockedEngine,
    LockedFile,
    LockedImage,
    LockedWheel,
    LockedWheels,
    disagreements,
    packages_of,
    recipe_digest,
)
from rwkvflow.documents.recipe import Matrix, Recipe
from rwkvflow.documents.sources import HubSource, parse_source
from rwkvflow.lock.fit import check_recipe_versions
from rwkvflow.lock.pins import package
from rwkvflow.plan.ci import GITHUB_JOBS, jobs
from rwkvflow.plan.matrix import expand, select
from rwkvflow.plan.plan import survey
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.worker.formats import FORMATS

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
EVERY = RECIPES / "all-formats.yaml"
REAL = sorted(path for path in RECIPES.glob("rwkv*.yaml") if ".lock" not in path.name)
VERSIONS = {"4": {"4"}, "5": {"5.0", "5.1", "5.2"}, "6": {"6"}, "7": {"7"}}  # of a model, by the digit in its name


def names(path: Path) -> str:
    return path.stem


def sha(text: str) -> str:
    return text_digest(text).removeprefix("sha256:")


def wheel(name: str, version: str) -> LockedWheel:
    return LockedWheel(name=name, version=version, filename=f"{name}-{version}-py3-none-any.whl", sha256=sha(name))


def stand_in(recipe: Recipe) -> Lock:
    """A lock with the hashes that a lock would have, were the hub made of text."""

    def file(source: str) -> LockedFile:
        found = parse_source(source)
        resolved = f"hf://{found.repo}@{'ab' * 20}/{found.path}" if isinstance(found, HubSource) else source
        return LockedFile(source=source, resolved=resolved, sha256=sha(source), size=len(source))

    def base(reference: str) -> LockedBase:
        return LockedBase(reference=reference, digest=text_digest(reference), kind="local")

    requirements = {name for image in recipe.images for name in image.wheels}
    assert not requirements
    return Lock(
        recipe=recipe_digest(recipe),
        models={model.name: file(model.source) for model in recipe.models},
        tokenizers={m.name: file(m.tokenizer) for m in recipe.models if m.tokenizer not in BUILTIN_TOKENIZERS},
        images={
            image.name: LockedImage(
                python=image.python,
                base=base(image.base or f"python:{image.python}-slim"),
                platforms={
                    "linux-x86_64": LockedWheels(
                        worker=(wheel("numpy", "2.0"), *([wheel("torch", image.torch)] if image.torch else [])),
                        toolchain=(wheel("ziglang", "1"),),
                        installer=(wheel("pip", "1"),),
                    )
                },
            )
            for image in recipe.images
        },
        engine=LockedEngine(kind="builtin", resolved="builtin", digest=text_digest("")),
        packages={name: package(name) for name in packages_of(recipe)} or None,
    )


class Empty:
    """A shelf on which nothing stands."""

    def digests(self, step: object, key: str) -> None:
        return None

    def intact(self, step: object, key: str) -> bool:
        return False

    def last(self, step: str) -> None:
        return None


def test_all_families_are_there() -> None:
    assert [path.stem for path in REAL] == [
        "rwkv4-pile",
        "rwkv4-world",
        "rwkv5-world",
        "rwkv6-world",
        "rwkv7-g1",
        "rwkv7-world",
    ]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=names)
def test_valid(path: Path) -> None:
    assert load_document(path) in ("recipe", "lock")


@pytest.mark.parametrize("path", [*REAL, EVERY], ids=names)
@pytest.mark.parametrize("sandbox", ["host", "docker"])
def test_plans(path: Path, sandbox: str) -> None:
    recipe = load_recipe(path)
    artifacts = tuple(expand(recipe))
    blueprint = Blueprint(
        recipe=recipe,
        recipe_path=path,
        workflow=load_workflow(None),
        workflow_path=path,
        lock=stand_in(recipe),
        sandbox=sandbox,
        platform="linux-x86_64",
        artifacts=artifacts,
    )
    plan = make_plan(blueprint)
    for artifact in artifacts:
        assert {f"convert/{artifact.id}", f"smoke/{artifact.id}"} <= set(plan.steps)
    if path in REAL:
        assert all(isinstance(parse_source(model.source), HubSource) for model in recipe.models)
    standing = {row.step: row for row in survey(plan, Empty())}
    for model in recipe.models:
        assert standing[f"fetch/{model.name}"].state == "run"
    assert standing["publish"].state == "waits"
    assert len({step.id for step in plan if step.stage == "publish"}) == 1


@pytest.mark.parametrize("path", REAL, ids=names)
def test_lock_fits_but_for_the_consumers(path: Path) -> None:
    recipe = load_recipe(path)
    found = disagreements(recipe, stand_in(recipe))
    assert not [problem for problem in found if problem.startswith(("models", "tokenizers", "engine"))]


@pytest.mark.parametrize("path", REAL, ids=names)
def test_sources_are_the_authors_repositories(path: Path) -> None:
    recipe = load_recipe(path)
    digit = path.stem[4]
    for model in recipe.models:
        source = parse_source(model.source)
        assert isinstance(source, HubSource)
        assert source.repo.startswith("BlinkDL/rwkv")
        assert source.path.endswith(".pth")
        assert "/" not in source.path
        assert model.sha256 is None, "the lock's to know"
        assert model.name.startswith(f"rwkv{digit}-")
        assert re.search(rf"(?i)rwkv-?(x0)?{digit}", source.path), "the file is of the same version as its name"
        size = re.fullmatch(r".*?([0-9.]+)([bm])", model.name)
        assert size is not None
        written = size[1].replace(".", "[.B]") + ("" if "." in size[1] else size[2])
        assert re.search(rf"(?i)-{written}", source.path), "and of the same size"
        assert (model.tokenizer == "world") == ("pile" not in model.name)


@pytest.mark.parametrize("path", REAL, ids=names)
def test_formats_fit_the_version(path: Path) -> None:
    recipe = load_recipe(path)
    assert {"safetensors", "web-rwkv", "ggml-f16", "ggml-q5_1"} <= set(recipe.formats)
    first = {which.format for which in expand(recipe) if which.model == "rwkv5-world-0.1b"}  # the one that may be a 5.0
    for name in recipe.formats:
        assert isinstance(name, str)
        wanted = VERSIONS[path.stem[4]] - (set() if not first or name in first else {"5.0"})
        assert wanted <= FORMATS[name].versions
    assert ("gguf-q8_0" in recipe.formats) == (VERSIONS[path.stem[4]] <= FORMATS["gguf-q8_0"].versions)


@pytest.mark.parametrize("path", REAL, ids=names)
def test_each_artifact_can_be_chosen_and_fits_a_ci_matrix(path: Path) -> None:
    artifacts = expand(load_recipe(path))
    assert len(jobs(artifacts)) <= GITHUB_JOBS
    for model in {artifact.model for artifact in artifacts}:
        assert select(artifacts, [f"{model}/*"])


def test_one_recipe_shows_every_format_with_every_version_that_it_can_hold() -> None:
    recipe = load_recipe(EVERY)
    assert set(recipe.formats) == set(FORMATS)
    versions = {model.name: model.name.removeprefix("rwkv").partition("-")[0] for model in recipe.models}
    made = {(artifact.model, artifact.format) for artifact in expand(recipe)}
    assert made == {
        (model, name)
        for model, version in versions.items()
        for name in FORMATS
        if version in FORMATS[name].versions and (model, name) != ("rwkv6-demo", "transformers")
    }
    check_recipe_versions(recipe, RECIPES)
    with pytest.raises(UsageError, match=r"rwkv4-demo is version 4, which gguf-f32 .* cannot hold; these can: "):
        check_recipe_versions(recipe.model_copy(update={"matrix": Matrix()}), RECIPES)
