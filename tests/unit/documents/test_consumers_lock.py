"""What formats need in an image to be tested: in the lock of recipes that make them, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from rwkvflow.base.errors import DocumentError
from rwkvflow.base.shipped import shipped
from rwkvflow.documents.load import recipe_from_text
from rwkvflow.documents.lock import disagreements, locked_parts, recipe_digest
from rwkvflow.documents.recipe import Recipe
from rwkvflow.lock.resolve import requirements_of
from rwkvflow.worker.formats import FORMATS

RECIPE = """\
name: x
models:
  - {name: a, source: a.pth}
  - {name: b, source: "hf://o/n@main/b.pth"}
formats:
  - ggml-f16
  - safetensors
images:
  - {python: "3.11"}
  - {python: "3.11", torch: "2.13.0"}
"""


def load(text: str = RECIPE) -> Recipe:
    return recipe_from_text(text, "x.yaml", Path())


@pytest.fixture
def needing(monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors is now tested with a package."""
    monkeypatch.setitem(FORMATS, "safetensors", replace(FORMATS["safetensors"], requires=("msgpack",)))


def test_formats_that_need_nothing_leave_the_lock_alone() -> None:
    without = RECIPE.replace("  - safetensors\n", "")
    assert recipe_digest(load()) == recipe_digest(load(without))
    assert "consumers" not in str(locked_parts(load()))
    recipe = load()
    assert [Requirement(text).name for text in requirements_of(recipe, recipe.images[0])["worker"]] == [
        "numpy",
        "safetensors",
    ]


@pytest.mark.usefixtures("needing")
def test_a_package_goes_into_the_images_that_make_the_format() -> None:
    recipe = load(RECIPE + 'matrix:\n  exclude:\n    - {format: safetensors, image: "*torch*"}\n')
    plain, with_torch = (requirements_of(recipe, image)["worker"] for image in recipe.images)
    pin = yaml.safe_load(shipped("images/pins.yaml").read_text(encoding="utf-8"))["consumers"]["msgpack"][0]["version"]
    assert f"msgpack=={pin}" in plain
    assert not any(text.startswith("msgpack") for text in with_torch)
    assert recipe_digest(recipe) != recipe_digest(load(RECIPE.replace("  - safetensors\n", "")))


@pytest.mark.usefixtures("needing")
def test_a_version_in_the_recipe_replaces_the_pin() -> None:
    recipe = load(RECIPE.replace('{python: "3.11"}', '{python: "3.11", wheels: ["msgpack==1.1.0"]}'))
    assert [text for text in requirements_of(recipe, recipe.images[0])["worker"] if "msgpack" in text] == [
        "msgpack==1.1.0"
    ]


@pytest.mark.usefixtures("needing")
def test_a_lock_without_the_package_disagrees() -> None:
    from tests.unit.documents.test_documents_lock import fitting, wheel

    recipe = load(RECIPE.replace('  - {python: "3.11", torch: "2.13.0"}\n', ""))
    lock = fitting(recipe)
    image, wheels = lock.images["py3.11"], lock.images["py3.11"].platforms["linux-x86_64"]
    found = disagreements(recipe, lock)
    assert found == ["images.py3.11 (linux-x86_64): msgpack, which a format of the recipe needs, is not in the lock"]
    more = wheels.model_copy(update={"worker": (*wheels.worker, wheel("msgpack", "1.2.4"))})
    image = image.model_copy(update={"platforms": {"linux-x86_64": more}})
    assert disagreements(recipe, lock.model_copy(update={"images": {"py3.11": image}})) == []


def test_a_format_that_needs_torch_is_refused_where_an_image_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "safetensors", replace(FORMATS["safetensors"], needs_torch=True))
    with pytest.raises(DocumentError) as caught:
        load()
    (finding,) = caught.value.findings
    assert (finding.line, finding.column, finding.path) == (7, 5, "formats[1]")
    assert finding.message == (
        "safetensors is tested with safetensors, which needs PyTorch, and image py3.11 has none; give it a version, "
        'e.g. torch: "2.13.0", or exclude it for this format in the matrix'
    )
    load(RECIPE + "matrix:\n  exclude:\n    - {format: safetensors, image: py3.11}\n")
    with pytest.raises(DocumentError, match="needs PyTorch") as caught:
        load(
            RECIPE.replace("  - safetensors\n", "")
            + "matrix:\n  include:\n    - {format: safetensors, image: py3.11}\n"
        )
    assert caught.value.findings[0].path == "matrix.include[0].format"


def test_what_formats_need_has_a_version() -> None:
    pins = yaml.safe_load(shipped("images/pins.yaml").read_text(encoding="utf-8"))["consumers"]
    for item in FORMATS.values():
        for text in item.requires:
            assert text in pins or Requirement(text).specifier, f"{item.name} needs {text}, of no version"
    assert set(pins) <= {text for item in FORMATS.values() for text in item.requires} | {
        "rwkv",
        "msgpack",
        "web-rwkv-py",
    }
