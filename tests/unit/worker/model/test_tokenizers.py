"""Tokenizers: against the packages that define them, and their choice by vocabulary size."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tokenizers import Bytes, PseudoRandom, World, open_tokenizer, world_vocabulary

TEXT = "The quiet owl — found 3 bells,\r\n\t\u2028 in the\u00a0grass. Привет, 世界! 🦉"


@pytest.fixture(scope="module")
def world() -> World:
    path = world_vocabulary()
    if path is None:
        pytest.skip("neither pyrwkv-tokenizer nor rwkv is installed, and the World vocabulary comes with them")
    return World(path)


def test_world_is_what_pyrwkv_tokenizer_gives(world: World) -> None:
    theirs = pytest.importorskip("pyrwkv_tokenizer").RWKVTokenizer()
    for text in (TEXT, "", " ", "\n\n", "a" * 300, "User: hi\n\nAssistant: hello", (Path(__file__)).read_text()):
        assert world.encode(text) == list(theirs.encode(text))


def test_world_covers_its_vocabulary(world: World) -> None:
    assert (len(world._ids), world.size) == (65529, 65530)
    assert world.decode([0]) == ""
    assert world.decode([65535]) == "\ufffd"


@functools.cache
def readers() -> tuple[Bytes | World, ...]:
    """Opening the World vocabulary takes half a second, and hypothesis asks a hundred times."""
    path = world_vocabulary()
    return (Bytes(), World(path)) if path else (Bytes(),)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_every_text_survives(text: str) -> None:
    for tokenizer in readers():
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_beyond_a_byte_and_half_a_character() -> None:
    assert Bytes().decode([72, 105, 300]) == "Hi\ufffd"
    assert Bytes().decode([0xC3]) == "\ufffd"


def test_20b_reads_the_fixture(fixtures: Path) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = open_tokenizer("tokenizer.json", 50277, fixtures / "20B_tokenizer.json")
    tokens = tokenizer.encode(TEXT)
    assert tokenizer.decode(tokens) == TEXT
    assert tokenizer.encode("Hello world") == [12092, 1533]  # GPT-NeoX's ids, widely published
    with pytest.raises(WorkerError, match=r"vocabulary of 256: name the tokenizer"):
        open_tokenizer("tokenizer.json", 256, fixtures / "20B_tokenizer.json")


def test_auto_goes_by_the_vocabulary() -> None:
    assert open_tokenizer("auto", 256).name == "bytes"
    if world_vocabulary():
        assert open_tokenizer("auto", 65536).name == "world"
    for size, why in ((50277, "tokenizer.json"), (320, "no known tokenizer has 320")):
        tokenizer = open_tokenizer("auto", size)
        assert tokenizer.name == "pseudo-random"
        assert why in (tokenizer.note or "")


def test_world_absent_falls_back_only_when_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tokenizer = open_tokenizer("auto", 65536)
    assert "pip install rwkv" in (tokenizer.note or "")
    with pytest.raises(WorkerError, match="pip install rwkv"):
        open_tokenizer("world", 65536)


def test_named_ones_that_do_not_fit_are_refused() -> None:
    with pytest.raises(WorkerError, match="vocabulary of 128"):
        open_tokenizer("bytes", 128)
    with pytest.raises(WorkerError, match="unknown tokenizer 'wrold'"):
        open_tokenizer("wrold", 256)
    with pytest.raises(WorkerError, match=r"the tokenizer file is missing"):
        open_tokenizer("tokenizer.json", 256)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=100, alphabet=st.characters(exclude_categories=["Cs"])), st.integers(2, 70000))
def test_pseudo_random_ids_are_seeded_and_inside(text: str, size: int) -> None:
    tokens = PseudoRandom(size, "").encode(text)
    assert tokens == PseudoRandom(size, "other").encode(text)
    assert tokens
    assert all(0 <= token < size for token in tokens)


@pytest.mark.parametrize(
    "line",
    [
        "1 'a' 2",
        "x 'a' 1",
        "1",
        "1 __import__('os').system('true') 1",
        "1 5 1",
        "-1 'a' 1",
        "1 '' 0",
        "1 'a" + "b" * 5000 + "' 5001",
    ],
)
def test_a_bad_vocabulary_names_the_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text(f"2 'ok' 2\n{line}\n")
    with pytest.raises(WorkerError, match=r"vocabulary\.txt:2: not a line"):
        open_tokenizer("tokenizer.json", 70000, path)


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": 3}')
    with pytest.raises(WorkerError, match=r"is not a tokenizer\.json"):
        open_tokenizer("auto", 50277, path)
