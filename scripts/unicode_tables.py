"""Writes rwkvflow/engine/src/tokenizer/unicode_tables.h: what the engine's tokenizers know of Unicode.

    pip install unicodedata2==16.0.0
    python scripts/unicode_tables.py [--check]

Categories L and N and white space, for GPT-2's way of cutting text into words (the \\p{L}, \\p{N} and \\s of PyPI's
`tokenizers`, which has Unicode 16); combining classes, canonical decompositions and primary composites, for the normal
form NFC (Unicode Standard Annex 15). Hangul is computed, not listed. `unicodedata2` is Python's own unicodedata for a
version of Unicode that does not change with Python's. --check only says whether the file is what this would write.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import unicodedata2 as unicode  # type: ignore[import-not-found, unused-ignore]

TARGET = Path(__file__).resolve().parents[1] / "rwkvflow" / "engine" / "src" / "tokenizer" / "unicode_tables.h"
VERSION = "16.0.0"
LAST = 0x10FFFF
SPACES = {9, 10, 11, 12, 13, 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
OTHER, LETTER, NUMBER, SPACE = range(4)
HANGUL = range(0xAC00, 0xD7A4)


def word_class(code: int) -> int:
    """OTHER, LETTER, NUMBER or SPACE (the property White_Space)."""
    if code in SPACES:
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicode.category(chr(code))[0], OTHER)


def changes(value: Callable[[int], int]) -> list[int]:
    """First code point * 256 + value for each run of code points with one value."""
    out: list[int] = []
    for code in range(LAST + 1):
        found = value(code)
        if not out or out[-1] % 256 != found:
            out.append(code * 256 + found)
    return out


def decomposition(code: int) -> list[int]:
    """All of it, canonical; empty where there is none."""
    if code in HANGUL or 0xD800 <= code < 0xE000:
        return []
    whole = [ord(c) for c in unicode.normalize("NFD", chr(code))]
    return [] if whole == [code] else whole


def composites() -> list[tuple[int, int, int]]:
    """(first, second, composite), sorted: pairs that NFC puts together."""
    out = []
    for code in range(LAST + 1):
        if code in HANGUL or 0xD800 <= code < 0xE000:
            continue
        parts = unicode.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<") and unicode.normalize("NFC", chr(code)) == chr(code):
            out.append((int(parts[0], 16), int(parts[1], 16), code))
    return sorted(out)


def rows(values: Iterable[Any]) -> str:
    """Numbers in lines of at most 120 characters."""
    lines, line = [], "   "
    for value in values:
        word = f" {value},"
        if len(line) + len(word) > 120:
            lines.append(line)
            line = "   "
        line += word
    return "\n".join([*lines, line])


def text() -> str:
    """The header."""
    decomposed = [(code, decomposition(code)) for code in range(LAST + 1)]
    decomposed = [(code, parts) for code, parts in decomposed if parts]
    pool = [part for _, parts in decomposed for part in parts]
    starts, at = [], 0
    for code, parts in decomposed:
        starts.append(f"{{{code:#x}, {at}, {len(parts)}}}")
        at += len(parts)
    pairs = [f"{{{a:#x}, {b:#x}, {c:#x}}}" for a, b, c in composites()]
    return f"""// Made by scripts/unicode_tables.py from Unicode {VERSION}: do not edit.
// clang-format off
#pragma once

#include <stdint.h>

namespace rwkvflow {{
namespace {{

// First code point * 256 + value, for each run with one value: 1 letters, 2 numbers, 3 white space.
constexpr uint32_t kWordClasses[] = {{
{rows(map(hex, changes(word_class)))}
}};

// The same for combining classes.
constexpr uint32_t kCombining[] = {{
{rows(map(hex, changes(lambda code: int(unicode.combining(chr(code))))))}
}};

// Canonical decompositions, in full: where in kParts, and how many.
constexpr struct {{
    uint32_t code;
    uint16_t start, count;
}} kDecompositions[] = {{
{rows(starts)}
}};
constexpr uint32_t kParts[] = {{
{rows(map(hex, pool))}
}};

// Two code points that become one, sorted.
constexpr struct {{
    uint32_t first, second, composite;
}} kComposites[] = {{
{rows(pairs)}
}};

}}  // namespace
}}  // namespace rwkvflow
"""


def main() -> int:
    """Exit code 1 where --check finds another file."""
    if unicode.unidata_version != VERSION:
        sys.exit(f"Unicode {unicode.unidata_version} is not {VERSION}: pip install unicodedata2=={VERSION}")
    made = text()
    if "--check" in sys.argv[1:]:
        same = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == made
        print("the same" if same else f"{TARGET.name} differs")
        return 0 if same else 1
    TARGET.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
