"""Names of models in several files: which belong together, and where they lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.errors import UsageError
from rwkvflow.documents.names import part_of
from rwkvflow.documents.sources import parse_source
from rwkvflow.documents.template import guess_name
from rwkvflow.engine.parts import is_later, set_named
from rwkvflow.lock.sets import set_begun

SUFFIXES = st.sampled_from([".gguf", ".safetensors", ".bin"])


@given(st.text("ab-0.", min_size=1, max_size=8), st.integers(2, 40), SUFFIXES, st.data())
def test_each_part_names_the_same_set(stem: str, count: int, suffix: str, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, count))
    name = f"{stem}-{number:05d}-of-{count:05d}{suffix}"
    found = set_named(name)
    assert found is not None
    assert len(set(found.names)) == count
    assert found.names[number - 1] == name
    assert (found.index is None) == (suffix == ".gguf")
    assert found.place_of(name) == f"part {number} of {count}, {name}"
    assert {set_named(other).names for other in found.names} == {found.names}  # type: ignore[union-attr]
    assert is_later(f"folder/{name}") == (number > 1)
    if number == 1:
        assert set_begun(f"hf://o/r/{name}", name) == found
    else:
        with pytest.raises(UsageError, match=rf"is part {number} of {count}") as caught:
            set_begun(f"hf://o/r/{name}", name)
        assert found.names[0] in (caught.value.remedy or "")


@pytest.mark.parametrize(
    "name",
    [
        "m.gguf",
        "m-00001-of-00001.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-1-of-3.gguf",
        "m-00001-of-00003.pth",
        "model.safetensors.index.json",
        "",
    ],
)
def test_other_files_stand_alone(name: str) -> None:
    assert set_named(name) is None
    assert set_begun(name, name) is None
    assert not is_later(name)


def test_a_set_of_absurdly_many_files_is_refused() -> None:
    with pytest.raises(UsageError, match="one of 99999 files; at most 512"):
        set_begun("x", "m-00001-of-99999.gguf")


@pytest.mark.parametrize(
    ("folder", "name", "wanted"),
    [
        ("hf://o/r", "config.json", "hf://o/r/config.json"),
        ("hf://o/r@main/x/", "m.gguf", "hf://o/r@main/x/m.gguf"),
        ("hf://o/r/m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "hf://o/r/m-00002-of-00002.gguf"),
        ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00002-of-00002.gguf"),
        ("https://h/a/m-00001-of-00002.gguf?x=1", "m-00002-of-00002.gguf", "https://h/a/m-00002-of-00002.gguf?x=1"),
        ("models/hf", "m-00001-of-00002.safetensors", "models/hf/m-00001-of-00002.safetensors"),
    ],
)
def test_a_part_lies_beside_the_one_that_is_named(folder: str, name: str, wanted: str) -> None:
    assert part_of(folder, name) == wanted
    assert parse_source(wanted).name == name


def test_a_models_name_says_nothing_of_parts() -> None:
    assert guess_name("hf://a/b/rwkv7-g1-2.9b-00001-of-00003.gguf") == "rwkv7-g1-2.9b"
    assert guess_name("arwkv-7b-00001-of-00007.safetensors") == "arwkv-7b"
