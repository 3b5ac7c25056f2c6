"""librwkv's tokenizers against those that define them, and against files that are none."""

from __future__ import annotations

import functools
import itertools
import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from rwkvflow.engine import EngineError, Library, Tokenizer
from rwkvflow.worker.formats.gguf.pairs import head, token_pairs
from rwkvflow.worker.formats.gguf.tokens import vocabulary
from rwkvflow.worker.model.tokenizers import World, world_vocabulary
from tests.engine import librwkv, tokenizer_files
from tests.engine.test_librwkv_hostile import Opener

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
    """Trained here: as 20B, without a normalizer, and with a space before the first word: (file, tokenizer).

    The first two from a GGUF, too, which cannot say the third.
    """
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    made = []
    for options in ({}, {"normalizer": None}, {"add_prefix_space": True}):
        text = tokenizer_files.bpe(60, **options)
        path.write_text(text, encoding="utf-8")
        made.append((text, Tokenizer(path, library)))
        if "add_prefix_space" not in options:
            made.append((text, Tokenizer(as_gguf(path, 400), library)))
    return made


def as_gguf(path: Path, size: int) -> Path:
    """A GGUF without tensors that holds a tokenizer.json, for a model with so many rows, beside it."""
    target = path.with_suffix(".gguf")
    target.write_bytes(head(0, token_pairs(vocabulary(size, path))))
    return target


@pytest.fixture(scope="session")
def twenty(fixtures: Path, library: Library) -> tuple[str, Tokenizer]:
    path = fixtures / "20B_tokenizer.json"
    return path.read_text(encoding="utf-8"), Tokenizer(path, library)


@pytest.fixture(scope="session")
def twenty_gguf(fixtures: Path, library: Library, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("gguf") / "20B.json"
    path.write_bytes((fixtures / "20B_tokenizer.json").read_bytes())
    return Tokenizer(as_gguf(path, 50304), library)


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
@example(text="xe\u0323\u0301 é\u0323é\u0301ñÅ\u0301\u0301 e\u00ade\u0301")
def test_bpe_is_what_tokenizers_does(
    text: str, small: list[tuple[str, Tokenizer]], theirs: Callable[[str], Any]
) -> None:
    for made, ours in small:
        agree(text, ours, theirs(made))


@settings(max_examples=200, suppress_health_check=CHECKED)
@given(text=TEXTS)
@example(text=Path(__file__).read_text(encoding="utf-8"))
def test_20b_is_what_tokenizers_does(
    text: str, twenty: tuple[str, Tokenizer], twenty_gguf: Tokenizer, theirs: Callable[[str], Any]
) -> None:
    agree(text, twenty[1], theirs(twenty[0]))
    agree(text, twenty_gguf, theirs(twenty[0]))


def test_a_gguf_holds_the_same_pieces(twenty: tuple[str, Tokenizer], twenty_gguf: Tokenizer) -> None:
    assert (twenty_gguf.name, twenty_gguf.size) == ("tokenizer.json", 50277)
    assert twenty_gguf.ids == twenty[1].ids
    assert [twenty_gguf.piece(token) for token in twenty[1].ids] == [twenty[1].piece(token) for token in twenty[1].ids]


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
    ours = small[2][1]
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


# What breaks literals and tables: zeros, line ends, quotes, the last byte. Few, so that tokens begin alike.
BYTES = st.sampled_from(b"\x00\x01\n'\"\\ab\x7f\x80\xff")
SHORT = st.lists(BYTES, min_size=1, max_size=12).map(bytes)


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[bytes, int]:
    """Tokens and their ids. Some go on for long, and others begin as they do, or leave them on the way."""
    tokens = set(draw(st.lists(SHORT, min_size=1, max_size=30)))
    for stem in draw(st.lists(SHORT, max_size=3)):
        whole = (stem * 4096)[: draw(st.integers(1, 30) | st.integers(1, 4096))]
        for size in draw(st.lists(st.integers(1, len(whole)), max_size=8)):
            tokens.add(whole[:size])
            tokens.add(whole[: size - 1] + bytes([draw(BYTES)]))
    ids = draw(st.lists(st.integers(1, (1 << 20) - 1), min_size=len(tokens), max_size=len(tokens), unique=True))
    return dict(zip(sorted(tokens), ids, strict=True))


def longest_first(vocabulary: dict[bytes, int], data: bytes) -> list[int] | str:
    """Token ids, or what the error says: by trying all sizes."""
    sizes, ids, at = sorted({len(token) for token in vocabulary}, reverse=True), [], 0
    while at < len(data):
        size = next((size for size in sizes if data[at : at + size] in vocabulary and at + size <= len(data)), None)
        if size is None:
            return f"none for the byte {data[at]} at {at}"
        ids.append(vocabulary[data[at : at + size]])
        at += size
    return ids


def opened(vocabulary: dict[bytes, int], library: Library, folder: Path) -> Tokenizer:
    lines = (f"{number} {token!r} {len(token)}\n" for token, number in vocabulary.items())
    (folder / "vocabulary").write_text("".join(lines), encoding="utf-8")
    return Tokenizer(folder / "vocabulary", library)


@settings(max_examples=300, suppress_health_check=CHECKED)
@given(vocabulary=vocabularies(), data=st.data())
def test_the_longest_token_is_taken(vocabulary: dict[bytes, int], data: Any, library: Library, tmp_path: Path) -> None:
    tokens = st.sampled_from(sorted(vocabulary))
    begun = st.builds(lambda token, size: token[:size], tokens, st.integers(0, 40))
    text = b"".join(data.draw(st.lists(tokens | begun | SHORT, max_size=20)))
    ours = opened(vocabulary, library, tmp_path)
    wanted = longest_first(vocabulary, text)
    if isinstance(wanted, str):
        with pytest.raises(EngineError, match=wanted):
            ours.encode(text)
    else:
        assert ours.encode(text) == wanted
        assert ours.decode_bytes(wanted) == text
    for token, number in vocabulary.items():
        assert ours.encode(token) == [number]


def test_every_pair_of_bytes_is_a_token(library: Library, tmp_path: Path) -> None:
    """The fullest table that there can be, and some that leave it after three bytes and after many."""
    vocabulary = {bytes([byte]): byte for byte in range(256)}
    vocabulary |= {bytes([first, second]): 256 + 256 * first + second for first in range(256) for second in range(256)}
    further = [bytes([byte, 255 - byte]) * (1 + byte) + bytes([last]) for byte in range(256) for last in (0, byte, 255)]
    vocabulary |= {token: 70000 + number for number, token in enumerate(sorted({*further} - {*vocabulary}))}
    ours, chance = opened(vocabulary, library, tmp_path), random.Random(3)
    texts = [chance.randbytes(3000), b"".join(chance.choices(further, k=60)), b"".join(part[:-1] for part in further)]
    for text in texts:
        assert ours.encode(text) == longest_first(vocabulary, text)


PEAK = """
import re, sys
from pathlib import Path
from rwkvflow.engine import Library, Tokenizer
library = Library(sys.argv[1])
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
before = peak()
Tokenizer(sys.argv[2], library)
print(peak() - before)
"""


def hostile(name: str) -> Iterator[bytes]:
    """Tokens without end that would fill a carelessly built table with nothing."""
    for number in itertools.count():
        begin = number.to_bytes(3, "big")
        if name == "long and alike":
            yield b"a" * 4090 + begin
        elif name == "long and different":
            yield begin + b"a" * 150
        elif name == "a chain":  # each begins with the one before
            yield bytes([97 + number // 4096]) * (number % 4096 + 1)
        else:  # children whose places, as sets, are in each other's way wherever they are put: lines through one point
            yield from (begin + bytes([place << 4 | times(number % 16, place)]) for place in range(16))


def times(a: int, b: int) -> int:
    """In the field of sixteen."""
    out = 0
    for bit in range(4):
        out ^= a << bit if b >> bit & 1 else 0
    for bit in (2, 1, 0):
        out ^= 0b10011 << bit if out >> bit & 16 else 0
    return out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["long and alike", "long and different", "a chain", "in the way"])
def test_memory_goes_by_the_vocabulary(name: str, library: Library, tmp_path: Path) -> None:
    vocabulary: dict[bytes, int] = {}
    for token in hostile(name):
        vocabulary[token] = len(vocabulary)
        if len(vocabulary) == 100_000 or len(token) * len(vocabulary) > 16_000_000:
            break
    opened(vocabulary, library, tmp_path)
    file = tmp_path / "vocabulary"
    command = [sys.executable, "-c", PEAK, str(library.path), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * file.stat().st_size + 250 * len(vocabulary) + (8 << 20)


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
