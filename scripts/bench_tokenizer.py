"""Measures how fast librwkv's tokenizers encode, beside the packages of PyPI that define them, and prints ratios.

    python scripts/bench_tokenizer.py [--library FILE] [--twenty 20B_tokenizer.json] [--turns 7] [--only world]

World beside pyrwkv-tokenizer, whose vocabulary is used, and 20B beside `tokenizers`. All take turns in one process, on
one thread, from a text to a list of ids; a ratio is the median of those of the turns, so that a busy machine weighs on
both sides. The column C is librwkv without Python: no list of ids is made. Every text must give the same ids.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pydoc_data.topics
import random
import statistics
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkvflow.engine import Library, Tokenizer
from rwkvflow.worker.model.tokenizers import WORLD, world_vocabulary

ROOT = Path(__file__).resolve().parents[1]
TWENTY = ROOT.parent / "shared" / "fixtures" / "20B_tokenizer.json"
CHARACTERS = 400_000  # of each text
PROMPT = 1000


def texts(world: Tokenizer) -> dict[str, list[str]]:
    """By name; each in one or more pieces, which are encoded one by one."""
    english = "\n".join(pydoc_data.topics.topics.values())[:CHARACTERS]
    sources = sorted(Path(os.__file__).parent.glob("*.py"))
    code = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sources)[:CHARACTERS]
    pieces = [english[at : at + PROMPT] for at in range(0, len(english), PROMPT)]
    return {
        "English prose": [english],
        "English, prompts of 1,000": pieces,
        "one prompt over and over": pieces[1:2] * len(pieces),
        "source code": [code],
        "Chinese, Japanese and more": [other_languages(world)],
        "random bytes": [random.Random(7).randbytes(CHARACTERS).decode("latin-1")],  # noqa: S311
    }


def other_languages(world: Tokenizer) -> str:
    """Words of the vocabulary with letters that are not Latin: some of them often, as in a real text."""
    chance = random.Random(7)  # noqa: S311
    pieces = (world.decode(range(token, token + 1)) for token in range(WORLD))
    words = [word for word in pieces if word > "\u0300" and "\ufffd" not in word]
    chance.shuffle(words)
    often = [1 / (1 + place) for place in range(len(words))]
    half = CHARACTERS // 4
    return "".join(chance.choices(words, often, k=half) + chance.choices(words, k=half))[:CHARACTERS]


def each(encode: Callable[[str], Any], pieces: list[str]) -> Callable[[], None]:
    """Encodes the pieces to lists."""

    def work() -> None:
        for piece in pieces:
            encode(piece)

    return work


def in_c(library: Library, tokenizer: Tokenizer, pieces: list[str]) -> Callable[[], None]:
    """Encodes the pieces into memory that is there already."""
    data = [piece.encode() for piece in pieces]
    room = 2 * max(map(len, data))
    ids, count = array("i", (0,)) * room, ctypes.c_size_t()
    encode, handle, out = "rwkvflow_tokenizer_encode", tokenizer._tokenizer, ctypes.byref(count)

    def work() -> None:
        for piece in data:
            library.call(encode, handle, piece, len(piece), ids.buffer_info()[0], room, out)

    return work


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of processor time, which does not count what other programs use meanwhile."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(
    library: Library, ours: Tokenizer, name: str, theirs: Callable[[str], Any], options: argparse.Namespace
) -> None:
    """One table; `theirs` gives a list of ids."""
    print(f"\n{f'{ours.name}, MB/s':<28}  librwkv        C {name:>20}    ratio")
    for text, pieces in options.texts.items():
        size = sum(len(piece.encode()) for piece in pieces) / 1e6
        if any(ours.encode(piece) != theirs(piece) for piece in pieces):
            raise SystemExit(f"{text}: other ids than {name} has")
        works = [each(ours.encode, pieces), in_c(library, ours, pieces), each(theirs, pieces)]
        taken = [[seconds(work) for work in works] for _ in range(options.turns)]
        own, c, other = (size / statistics.median(column) for column in zip(*taken, strict=True))
        ratio = statistics.median(turn[2] / turn[0] for turn in taken)
        print(f"{text:<28} {own:8.1f} {c:8.1f} {other:20.1f} {ratio:8.2f}")


def opening(library: Library, path: Path, turns: int) -> None:
    """How long opening a vocabulary takes."""
    taken = statistics.median(seconds(lambda: Tokenizer(path, library)) for _ in range(turns))
    print(f"{path.name}: opened in {taken * 1000:.1f} ms")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure how fast tokenizers encode.")
    parser.add_argument("--library", type=Path, help="librwkv.so; or else $RWKVFLOW_LIBRARY, or the package's own")
    parser.add_argument("--twenty", type=Path, default=TWENTY, help="20B_tokenizer.json; nothing where it is not there")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", choices=["world", "20b"])
    options = parser.parse_args()
    library, vocabulary = Library(options.library), world_vocabulary()
    if vocabulary is None:
        raise SystemExit("no World vocabulary: pip install pyrwkv-tokenizer")
    world = Tokenizer(vocabulary, library)
    options.texts = texts(world)
    if options.only != "20b":
        import pyrwkv_tokenizer  # type: ignore[import-untyped, unused-ignore]

        opening(library, vocabulary, options.turns)
        compare(library, world, "pyrwkv-tokenizer", pyrwkv_tokenizer.RWKVTokenizer().encode, options)
    if options.only != "world" and options.twenty.is_file():
        import tokenizers

        other = tokenizers.Tokenizer.from_file(str(options.twenty))
        opening(library, options.twenty, options.turns)
        twenty = Tokenizer(options.twenty, library)
        compare(library, twenty, "tokenizers", lambda text: other.encode(text, add_special_tokens=False).ids, options)


if __name__ == "__main__":
    main()
