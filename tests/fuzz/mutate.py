"""Changes of a file: blind ones, and ones that know what numbers, texts and JSON are. The same seed gives the same."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

ODD_NUMBERS: tuple[int, ...] = (
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    33,
    64,
    127,
    128,
    255,
    256,
    4095,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
)
ODD_NUMBERS += (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", " ", "0", "..", "/", "a/../b", "\0", "\n", "é", "\ud800", "x" * 300, "9" * 400),
    *([], {}, [[]], [None], {"": None}, ["a", 1], {"a": {"a": {}}}, [0] * 40),
)
BRACKETS: tuple[bytes, ...] = (
    b"{",
    b"}",
    b"[",
    b"]",
    b"(",
    b")",
    b'"',
    b"'",
    b":",
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"&a ",
    b"*a",
    b"!!x ",
    b"- ",
)
BRACKETS += (
    b"\\",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
    b"#",
    b"%",
    b"|",
    b"~",
    b"0x",
    b"1e999",
    b"\\u0000",
)
MOST = 1 << 17
SEPARATOR = b"\n=====\n"  # between the parts of an input that are different files or answers


def changed(data: bytes, others: Sequence[bytes], words: Sequence[bytes], text: bool, dice: random.Random) -> bytes:
    """One to four changes; `others` are files whose parts may be taken, `words` what such files are made of."""
    out = data
    for _ in range(dice.randint(1, 4)):
        parts = out.split(SEPARATOR)
        if len(parts) > 1 and dice.random() < 0.15:
            out = SEPARATOR.join(_parts(parts, others, dice))
            continue
        at = dice.randrange(len(parts))
        parts[at] = _changed(parts[at], others, words, text, dice)
        out = SEPARATOR.join(parts)
    return out[:MOST]


def _changed(data: bytes, others: Sequence[bytes], words: Sequence[bytes], text: bool, dice: random.Random) -> bytes:
    if dice.random() < 0.4 and (found := _json(data, words, dice)) is not None:
        return found
    if text or dice.random() < 0.15:
        return _text(data, others, words, dice)
    return _binary(data, others, dice)


def _parts(parts: list[bytes], others: Sequence[bytes], dice: random.Random) -> list[bytes]:
    """One of the parts is gone, twice there, or that of another input."""
    at, kind = dice.randrange(len(parts)), dice.randint(0, 2)
    if kind == 0:
        return parts[:at] + parts[at + 1 :]
    if kind == 1:
        return [*parts[:at], parts[dice.randrange(len(parts))], *parts[at:]]
    return [*parts[:at], dice.choice(dice.choice(others).split(SEPARATOR)) if others else b"", *parts[at + 1 :]]


def _stretch(data: bytes, dice: random.Random, most: int = 64) -> tuple[int, int]:
    start = dice.randint(0, len(data))
    return start, min(len(data), start + dice.randint(0, most))


def _binary(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    # What a file begins and ends with says most: half of all changes are there.
    place = dice.random()
    high = len(data) if place < 0.5 else min(len(data), 512)
    at = dice.randint(0, max(0, high))
    if place > 0.85:
        at = max(0, len(data) - at)
    kind = dice.randint(0, 7)
    if kind <= 2:
        width = dice.choice((1, 2, 4, 4, 8, 8))
        value = dice.choice(ODD_NUMBERS)
        if kind == 2 and at + width <= len(data):
            value = int.from_bytes(data[at : at + width], "little") + dice.choice((-8, -1, 1, 8, 32))
        raw = struct.pack("<Q", value & (2**64 - 1))[:width]
        return data[:at] + raw + data[at + width :]
    if kind == 3:
        return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
    if kind == 4:
        return data[:at]
    if kind == 5:
        start, end = _stretch(data, dice)
        return data[:start] + data[end:]
    if kind == 6:
        start, end = _stretch(data, dice)
        return data[:at] + data[start:end] + data[at:]
    other = dice.choice(others) if others else data
    start, end = _stretch(other, dice, 512)
    return data[:at] + other[start:end] + data[at + (end - start if dice.random() < 0.5 else 0) :]


def _text(data: bytes, others: Sequence[bytes], words: Sequence[bytes], dice: random.Random) -> bytes:
    start, end = _stretch(data, dice, 24)
    kind = dice.randint(0, 5)
    if kind == 0:
        return data[:start] + dice.choice(BRACKETS) * dice.choice((1, 1, 1, 2, 70, 3000)) + data[start:]
    if kind == 1 and words:
        return data[:start] + dice.choice(words) + data[end:]
    if kind == 2:
        return data[:start] + data[end:]
    if kind == 3:
        return data[:start] + str(dice.choice(ODD_NUMBERS)).encode() + data[end:]
    lines = data.split(b"\n")
    one, two = dice.randrange(len(lines)), dice.randrange(len(lines))
    if kind == 4:
        lines[one] = lines[two]
    else:
        more = dice.choice(others).split(b"\n") if others else lines
        lines.insert(one, dice.choice(more))
    return b"\n".join(lines)


def _json(data: bytes, words: Sequence[bytes], dice: random.Random) -> bytes | None:
    """A change of one value of a document; None for what is none."""
    if not data[:4096].lstrip().startswith((b"{", b"[")) or len(data) > MOST:
        return None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    places: list[tuple[Any, Any]] = []

    def walk(value: Any, depth: int) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            places.append((value, key))
            if depth < 40:
                walk(item, depth + 1)

    walk(content, 0)
    if not places:
        return json.dumps(dice.choice(ODD_VALUES)).encode()
    _change(places, words, dice)
    text = json.dumps(content)
    if dice.random() < 0.05:
        deep = dice.choice((70, 1200, 30000))
        text = text.replace("null", "[" * deep + "]" * deep, 1) if "null" in text else "[" * deep
    return text.encode()


def _change(places: Sequence[tuple[Any, Any]], words: Sequence[bytes], dice: random.Random) -> None:
    """Change one value, or one key, in place."""
    inside, key = dice.choice(places)
    word = dice.choice(words).decode("utf-8", "replace") if words else "a"
    kind = dice.randint(0, 6)
    if kind == 0:
        del inside[key]
    elif kind == 1:
        other, at = dice.choice(places)
        if not isinstance(other[at], dict | list):  # else it would hold itself
            inside[key] = other[at]
    elif kind == 2 and isinstance(inside, dict):
        inside[dice.choice(("", "a", "..", str(key) + "s", "\ud800", "__class__", word))] = inside.pop(key)
    elif kind == 3 and isinstance(inside, list):
        inside.insert(key, dice.choice((*ODD_VALUES, inside[key])) if dice.random() < 0.7 else word)
    elif kind == 4 and isinstance(inside, dict):
        inside[word] = dice.choice(ODD_VALUES)
    elif kind == 5 and isinstance(inside[key], str):
        text = inside[key]
        at = dice.randint(0, len(text))
        piece = dice.choice((word, "/", "..", ":", "@", "#", "%2f", " ", "\n", "\0", "é", "0", "=", ",", ";", '"'))
        inside[key] = text[:at] + piece + text[at + dice.choice((0, 0, 1, 4)) :]
    else:
        inside[key] = dice.choice((dice.choice(ODD_VALUES), word, [inside[key]], {word: inside[key]}))
