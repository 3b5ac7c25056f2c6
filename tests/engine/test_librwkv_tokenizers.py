"""librwkv's tokenizers against those that define them, and against files that are none."""

from __future__ import annotations

import functools
import json
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import librwkv
import pytest
import tokenizer_files
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from test_librwkv_hostile import Opener

from rwkvflow.engine import EngineError, Library, Tokenizer
from rwkvflow.worker.tokenizers import World, world_vocabulary

FILE, DATA, UNSUPPORTED = 2, 13, 9
# What Unicode says of letters that this Python does not know yet is not for tests to say.
LETTERS = st.characters(exclude_categories=["Cs", "Cn"])
PIECES = st.sampled_from(
    [
        "<|endoftext|>",
        "<|padding|>",
        "  ",
        "      ",
        "'s",
        "'ll",
        " '",
        "\n\n",
        "\u0958",
        "\ufb2c",
        "\u1e9b\u0323",
        "가",
        "ᄀ",
    ]
)
MARKS = st.characters(min_codepoint=0x300, max_codepoint=0x345)
TEXTS = st.lists(st.text(LETTERS, max_size=4) | PIECES | st.text(MARKS, max_size=4), max_size=30).map("".join)
CHECKED = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> Library:
    return Library(librwkv.with_zig(request.config) / "librwkv.so")


@pytest.fixture(scope="session")
def theirs() -> Callable[[str], Any]:
    """PyPI's `tokenizers` on a tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    return functools.cache(tokenizers.Tokenizer.from_str)


@pytest.fixture(scope="session")
def small(library: Library, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Tokenizer]]:
    """Trained here: as 20B, without a normalizer, and with a space before the first word: (file, tokenizer)."""
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    made = []
    for options in ({}, {"normalizer": None}, {"add_prefix_space": True}):
        text = tokenizer_files.bpe(60, **options)
        path.write_text(text, encoding="utf-8")
        made.append((text, Tokenizer(path, library)))
    return made


@pytest.fixture(scope="session")
def twenty(fixtures: Path, library: Library) -> tuple[str, Tokenizer]:
    path = fixtures / "20B_tokenizer.json"
    return path.read_text(encoding="utf-8"), Tokenizer(path, library)


def agree(text: str, ours: Tokenizer, other: Any) -> None:
    # Which marks go where is a matter of Unicode's version; `tokenizers` has an old one there.
    if other.normalizer is not None:
        assume(other.normalizer.normalize_str(text) == unicodedata.normalize("NFC", text))
    ids = ours.encode(text)
    assert ids == other.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == other.decode(ids)


@settings(max_examples=300, suppress_health_check=CHECKED)
@given(text=TEXTS)
@example(text="")
@example(text="x  y   z\u00a0\u2003 \u0085w\r\n \n'twas we'LL 12½ ²x_y")
@example(text="\ud55c\u1112\u1161\u11ab\u1100\u1161 q\u0307\u0323 \u212b\u2126")
@example(text="a" * 3000 + " " * 3000 + "\u0301\u0323" * 3000)
def test_bpe_is_what_tokenizers_does(
    text: str, small: list[tuple[str, Tokenizer]], theirs: Callable[[str], Any]
) -> None:
    for made, ours in small:
        agree(text, ours, theirs(made))


@settings(max_examples=200, suppress_health_check=CHECKED)
@given(text=TEXTS)
@example(text=Path(__file__).read_text(encoding="utf-8"))
def test_20b_is_what_tokenizers_does(text: str, twenty: tuple[str, Tokenizer], theirs: Callable[[str], Any]) -> None:
    agree(text, twenty[1], theirs(twenty[0]))


def test_20b_has_its_tokens(twenty: tuple[str, Tokenizer], theirs: Callable[[str], Any]) -> None:
    ours = twenty[1]
    assert (ours.name, ours.size) == ("tokenizer.json", 50277)
    other = theirs(twenty[0])
    for token in range(2, 50277, 17):
        assert ours.piece(token).decode(errors="replace") == other.decode([token])
    assert ours.piece(0) == b""
    assert ours.piece(50277) == b"\xff"


def test_letters_and_numbers_are_those_of_tokenizers(
    theirs: Callable[[str], Any], library: Library, tmp_path: Path
) -> None:
    """A letter, a number and a sign each merge with any first byte of what is in the same word: cuts show."""
    made = json.loads(tokenizer_files.bpe(0, normalizer=None))
    vocab, merges = made["model"]["vocab"], []
    for before in "a1!":
        for letter in [key for key in vocab if len(key) == 1]:
            merges.append(f"{before} {letter}")
            vocab[before + letter] = len(vocab)
    text = json.dumps({**made, "model": {**made["model"], "merges": merges}, "added_tokens": []})
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    ours, other = Tokenizer(tmp_path / "tokenizer.json", library), theirs(text)
    codes = [code for code in (*range(0x3100), *range(0x3100, sys.maxunicode, 13)) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(codes), 500):
        piece = "".join(f"a{chr(c)}\n1{chr(c)}\n!{chr(c)}\n" for c in codes[start : start + 500])
        assert ours.encode(piece) == other.encode(piece, add_special_tokens=False).ids, hex(codes[start])


@settings(max_examples=200, suppress_health_check=CHECKED)
@given(data=st.binary(max_size=60) | TEXTS.map(str.encode))
def test_no_byte_is_lost(data: bytes, small: list[tuple[str, Tokenizer]], library: Library) -> None:
    """Whether it is UTF-8 or not, where nothing is normalized."""
    ours = small[1][1]
    assume(b"<|" not in data)
    assert ours.decode_bytes(ours.encode(data)) == data
    assert Tokenizer(None, library).encode(data) == list(data)


@pytest.fixture(scope="session")
def world(library: Library) -> tuple[Tokenizer, World, Any]:
    path = world_vocabulary()
    theirs = pytest.importorskip("pyrwkv_tokenizer").RWKVTokenizer()
    assert path is not None
    return Tokenizer(path, library), World(path), theirs


@settings(max_examples=300, suppress_health_check=CHECKED)
@given(text=TEXTS)
@example(text=Path(__file__).read_text(encoding="utf-8"))
def test_world_is_what_pyrwkv_tokenizer_does(text: str, world: tuple[Tokenizer, World, Any]) -> None:
    ours, python, theirs = world
    ids = ours.encode(text)
    assert ids == list(theirs.encode(text))
    assert ids == python.encode(text)
    assert ours.decode(ids) == text


def test_world_has_its_tokens(world: tuple[Tokenizer, World, Any]) -> None:
    ours, python, _ = world
    assert (ours.name, ours.size) == ("world", python.size)
    for token in range(65536):
        assert ours.piece(token) == python.piece(token)


# ---- what is none ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opener(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    """With address and undefined behaviour sanitizers."""
    out = Opener(librwkv.with_sanitizers(request.config), tmp_path_factory.mktemp("hostile"), "tokenizer")
    yield out
    out.close()


@functools.cache
def good() -> dict[str, bytes]:
    """Read once: an example must not have to train."""
    return {"world": tokenizer_files.world().encode(), "json": tokenizer_files.bpe(40).encode()}


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("normalizer", {"type": "Lowercase"}, UNSUPPORTED),
        ("pre_tokenizer", None, UNSUPPORTED),
        ("pre_tokenizer", {"type": "Whitespace"}, UNSUPPORTED),
        ("pre_tokenizer", {"type": "ByteLevel", "use_regex": False}, UNSUPPORTED),
        ("pre_tokenizer", {"type": "ByteLevel", "use_regex": 3}, DATA),
        ("decoder", None, UNSUPPORTED),
        ("truncation", {"max_length": 4}, UNSUPPORTED),
        ("padding", {"length": 4}, UNSUPPORTED),
        ("added_tokens", [{"id": 900, "content": "x", "lstrip": True}], UNSUPPORTED),
        ("added_tokens", [{"id": 900, "content": ""}], DATA),
        ("added_tokens", [{"id": 5, "content": "neither"}], DATA),
        ("added_tokens", [{"id": 900, "content": "one"}, {"id": 901, "content": "one"}], DATA),
        ("added_tokens", [{"content": "one"}], DATA),
        ("added_tokens", {}, DATA),
        ("model", None, DATA),
        ("model", {"type": "BPE"}, DATA),
        ("model", {"type": "WordPiece", "vocab": {}, "merges": []}, UNSUPPORTED),
        ("model", {"vocab": {"a": 0}, "merges": [], "dropout": 0.1}, UNSUPPORTED),
        ("model", {"vocab": {"a": 0}, "merges": [], "byte_fallback": True}, UNSUPPORTED),
        ("model", {"vocab": {"a": 0}, "merges": [], "ignore_merges": True}, UNSUPPORTED),
        ("model", {"vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}, UNSUPPORTED),
        ("model", {"vocab": {"a": 0, "b": 0}, "merges": []}, DATA),
        ("model", {"vocab": {"a": -1}, "merges": []}, DATA),
        ("model", {"vocab": {"a": 1 << 20}, "merges": []}, DATA),
        ("model", {"vocab": {"a": 1.0}, "merges": []}, DATA),
        ("model", {"vocab": {"": 1}, "merges": []}, DATA),
        ("model", {"vocab": {"a" * 5000: 1}, "merges": []}, DATA),
        ("model", {"vocab": {"a": 0}, "merges": ["a a"]}, DATA),
        ("model", {"vocab": {"a": 0, "aa": 1}, "merges": ["aa"]}, DATA),
        ("model", {"vocab": {"a": 0, "aa": 1}, "merges": ["a  a"]}, DATA),
        ("model", {"vocab": {"a": 0, "aa": 1}, "merges": [["a", "a", "a"]]}, DATA),
        ("model", {"vocab": {"a": 0}, "merges": {}}, DATA),
    ],
)
def test_parts_that_make_no_sense(name: str, value: Any, what: int, opener: Opener) -> None:
    changed = json.dumps({**json.loads(good()["json"]), name: value})
    assert opener(changed.encode())[:2] == (FILE, what)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"model": {}, "model": {}}',
        "{" * 100000,
        '{"a": ' + "[" * 100000,
        '{"model": "\\ud800"}',
        '{"model": "\x01"}',
        '{"model": 01}',
        '{"model": 1.}',
        '{"model": tru}',
        '{"model": {}} x',
        '{"model": {},}',
    ],
)
def test_what_is_no_json(text: str, opener: Opener) -> None:
    assert opener(text.encode())[:2] == (FILE, DATA)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no tokens"),
        ("\n\n", "no tokens"),
        ("1 'a' 2", "1: not a vocabulary of World models: another length"),
        ("1 'a' 1\n2 'b", "2: not a vocabulary"),
        ("1048576 'a' 1", "too large"),
        ("1 'a' 1\n1 'b' 1", "there already"),
        ("1 'a' 1\n2 'a' 1", "there twice"),
        ("1 '' 0", "another length"),
        (f"1 '{'a' * 4097}' 4097", "too long"),
        ("1 b'é' 2", "not an id"),
        ("1 'é' 1", "another length"),
    ],
)
def test_what_is_no_world_vocabulary(text: str, why: str, opener: Opener) -> None:
    where, what, message = opener(text.encode())
    assert (where, what) == (FILE, DATA)
    assert why in message


def test_large_files_of_nothing(opener: Opener) -> None:
    """Memory goes by what is in a file, not by its size."""
    assert opener(b"\n" * 3_000_000)[:2] == (FILE, DATA)
    assert opener(b"1 'a' 1" + b"\n" * 3_000_000) == (0, 0, "opened")
    many = json.dumps({**json.loads(good()["json"]), "model": {"vocab": {"a": 0}, "merges": ["0"]}})
    refused = opener(many.replace('"0"', ",".join(['""'] * 4_200_000)).encode())
    assert refused[:2] == (FILE, DATA)
    assert "more merges" in refused[2]


@pytest.mark.parametrize("kind", ["world", "json"])
def test_truncated_and_no_text(kind: str, opener: Opener) -> None:
    whole = good()[kind]
    assert opener(whole) == (0, 0, "opened")
    for cut in range(0, len(whole) - 2, 1 + len(whole) // 150):
        assert kind == "world" or opener(whole[:cut])[:2] == (FILE, DATA), cut
        opener(whole[:cut])
    assert opener(whole.replace(b"a", b"\xff", 1))[:2] == (FILE, DATA)


@settings(max_examples=150, suppress_health_check=CHECKED)
@given(data=st.data())
def test_damaged_vocabularies_never_crash(data: Any, opener: Opener) -> None:
    damaged = good()[data.draw(st.sampled_from(["world", "json"]))]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged = damaged[:at] + data.draw(st.binary(max_size=6)) + damaged[at + data.draw(st.integers(0, 6)) :]
    opener(damaged)


def test_the_binding_refuses_what_makes_no_sense(library: Library, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot open .*absent"):
        Tokenizer(tmp_path / "absent", library)
    (tmp_path / "vocabulary").write_text("1 'a' 1\n", encoding="utf-8")
    one = Tokenizer(tmp_path / "vocabulary", library)
    assert one.encode("aa") == [1, 1]
    with pytest.raises(EngineError, match="none for the byte 98 at 1"):
        one.encode("ab")
