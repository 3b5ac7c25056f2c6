"""Text of five domains: prose, Chinese, code, arithmetic, dialogue; for measuring files, and for training the demo.

    python scripts/domains.py            # compares rwkvflow/worker/data/{quality,search}/ with what is written here
    python scripts/domains.py --write

Made by seeded generators from lists that were written for this project, so it is ours to ship and may be made again.
What is measured, what types are searched with, and what is trained on come from different seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from random import Random

import calibration_text as lists
from demo_stories import story

FOLDER = Path(__file__).resolve().parents[1] / "rwkvflow" / "worker" / "data" / "quality"
SEARCH = FOLDER.with_name("search")  # what the search of types reads
MEASURED, TRAINED, SEARCHED = 411, 90, 733
CHARACTERS = {"prose": 42_000, "chinese": 14_000, "code": 36_000, "arithmetic": 26_000, "dialogue": 42_000}
SHARE = 4  # of these, to search with
TASKS = 64  # of each kind
TRAINING = 1_200_000  # bytes
SHOTS = "3 + 4 = 7\n20 - 8 = 12\n6 * 3 = 18\n"  # before each sum: what is wanted

NAMES = ("Anna", "Boris", "Clara", "David", "Emma", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Liam")
ROOMS = ("kitchen", "garden", "attic", "cellar", "office", "library", "garage", "workshop")
OBJECTS = ("lamp", "coin", "basket", "key", "ring", "jar", "bell", "cloak", "box", "letter", "map", "clock")
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")


def prose(r: Random) -> str:
    """A story, or a paragraph of plain statements."""
    kind = r.randrange(4)
    if kind == 0:
        return str(lists.english(r))
    return str(story(r)) if kind < 3 else last_word(r)[0]


def last_word(r: Random) -> tuple[str, str, list[str]]:
    """A paragraph whose last word follows from what was said before; the word, and what else it might be."""
    (a, b), (x, y) = r.sample(NAMES, 2), r.sample(OBJECTS, 2)
    (here, there), colour = r.sample(ROOMS, 2), r.choice(COLOURS)
    kind = r.randrange(3)
    if kind == 0:
        text = (
            f"{a} put the {x} in the {here}, and {b} put the {y} in the {there}. In the evening {a} wanted the {x}, "
            f"and went into the {here}"
        )
        return f"{text}.", here, [there]
    if kind == 1:
        text = f"{a} had a {colour} {x}, and {b} had a {y}. {b} liked what {a} had, and asked for the {colour} {x}"
        return f"{text}.", x, [y]
    text = (
        f"{a} gave the {x} to {b} and kept the {y}. When the {x} was lost, everybody asked {b}, for the one who had "
        f"it was {b}"
    )
    return f"{text}.", b, [a]


def arithmetic(r: Random) -> str:
    """Sums, one a line."""
    return "\n".join("".join(sum_of(r)) for _ in range(r.randint(3, 8)))


def sum_of(r: Random) -> tuple[str, str]:
    """A small sum, and its answer."""
    a, b = r.randint(2, 60), r.randint(2, 39)
    kind = r.randrange(4)
    if kind < 2:
        return f"{a} + {b} =", f" {a + b}"
    if kind == 2:
        return f"{a + b} - {b} =", f" {a}"
    a, b = r.randint(2, 12), r.randint(2, 9)
    return f"{a} * {b} =", f" {a * b}"


DOMAINS: dict[str, Callable[[Random], str]] = {
    "prose": prose,
    "chinese": lists.chinese,
    "code": lists.code,
    "arithmetic": arithmetic,
    "dialogue": lists.dialogue,
}


def measured(name: str) -> str:
    """The text of a domain that files are measured with."""
    return "\n\n".join(_pieces(name, MEASURED, CHARACTERS[name])) + "\n"


def searched(name: str) -> str:
    """The one that types are searched with, which has no piece of the other."""
    judged = set(_pieces(name, MEASURED, CHARACTERS[name]))
    return "\n\n".join(_pieces(name, SEARCHED, CHARACTERS[name] // SHARE, judged)) + "\n"


def _pieces(name: str, seed: int, characters: int, without: Container[str] = ()) -> list[str]:
    r, out, length = Random(f"{seed} {name}"), [], 0  # noqa: S311
    while length < characters:
        piece = DOMAINS[name](r)
        if piece not in without:
            out.append(piece)
            length += len(piece) + 2
    return out


def tasks() -> str:
    """Questions with one right answer, as JSON: the last word of a paragraph, of two that were named; small sums."""
    r = Random(f"{MEASURED} tasks")  # noqa: S311
    words: list[dict[str, object]] = []
    sums: list[dict[str, object]] = []
    while len(words) < TASKS:
        text, answer, others = last_word(r)
        text = text.removesuffix(f" {answer}.")
        words.append({"text": text, "answer": f" {answer}", "others": [f" {other}" for other in others]})
    while len(sums) < TASKS:
        asked, answer = sum_of(r)
        text = SHOTS + asked
        if all(item["text"] != text for item in sums):
            sums.append({"text": text, "answer": answer})
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in words)
    more = ",\n".join(json.dumps(item, ensure_ascii=False) for item in sums)
    return f'{{"last_words": [\n{lines}\n],\n"sums": [\n{more}\n]}}\n'


def training_text() -> str:
    """What the demo model learns: the domains by turns, none of it from the seed that is measured."""
    r, out, length = Random(TRAINED), [], 0  # noqa: S311
    turns = ("prose", "chinese", "code", "arithmetic", "dialogue", "prose", "arithmetic")
    while length < TRAINING:
        for name in turns:
            out.append(DOMAINS[name](r))
            length += len(out[-1].encode()) + 2
    return "\n\n".join(out) + "\n"


class DomainVocabulary:
    """A vocabulary of World's kind: the bytes, then what a text repeats most; the longest token that fits is taken."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        """tokens[i] has the id i + 1; 0 is the end of a text."""
        self.tokens = tuple(tokens)
        self._ids = {token: index for index, token in enumerate(self.tokens, 1)}
        self._longest = max(map(len, self.tokens))

    @classmethod
    def of_text(cls, text: str, rows: int) -> DomainVocabulary:
        """For a model with so many rows: pairs of what stands next to each other within a word, most frequent first."""
        words = Counter(re.findall(r" ?[A-Za-z]+| ?[0-9]|[^\x00-\x7f]|\s+|[^\sA-Za-z0-9]", text))
        pieces = {word: [char.encode() for char in word] for word in words}
        found: dict[bytes, None] = {}
        room = rows - 1 - 256
        letters: Counter[bytes] = Counter()
        for word, times in words.items():
            if not word.isascii():
                letters[word.encode()] += 2 * times
        while len(found) < room:
            pairs: Counter[tuple[bytes, bytes]] = Counter()
            for word, times in words.items():
                for pair in zip(pieces[word], pieces[word][1:], strict=False):
                    pairs[pair] += times
            (first, second), count = max(pairs.items(), key=lambda item: (item[1], item[0]))
            letter, most = max((item for item in letters.items() if item[0] not in found), key=lambda item: item[::-1])
            if most > count:
                found[letter] = None
                continue
            found[first + second] = None
            pieces = {word: _joined(parts, first, second) for word, parts in pieces.items()}
        return cls([*(bytes([value]) for value in range(256)), *found])

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        data, at, out = text.encode(), 0, []
        while at < len(data):
            length = next(n for n in range(self._longest, 0, -1) if data[at : at + n] in self._ids)
            piece = data[at : at + length]
            out.append(self._ids[piece])
            at += len(piece)
        return out

    def file(self) -> str:
        """The vocabulary as World's file has it."""
        return "".join(f"{self._ids[token]} {_literal(token)} {len(token)}\n" for token in self.tokens)


def _literal(token: bytes) -> str:
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def _joined(parts: list[bytes], first: bytes, second: bytes) -> list[bytes]:
    out: list[bytes] = []
    for part in parts:
        if part == second and out and out[-1] == first:
            out[-1] += part
        else:
            out.append(part)
    return out


def files() -> Iterator[tuple[Path, str]]:
    """Each file that ships, and what it holds."""
    for name in DOMAINS:
        yield FOLDER / f"{name}.txt", measured(name)
        yield SEARCH / f"{name}.txt", searched(name)
    yield FOLDER / "tasks.json", tasks()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the files")
    write = parser.parse_args().write
    for path, text in files():
        if write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 0 if all(path.read_text(encoding="utf-8") == text for path, text in files()) else 1


if __name__ == "__main__":
    sys.exit(main())
