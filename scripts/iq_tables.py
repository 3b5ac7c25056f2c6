"""Writes rwkvflow/engine/src/quantize/iq_tables.h: the points of the IQ3 types' grids, from PyPI's `gguf`.

python scripts/iq_tables.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import quants

TARGET = Path(__file__).resolve().parents[1] / "rwkvflow" / "engine" / "src" / "quantize" / "iq_tables.h"
HEAD = """\
// Grids of the IQ3 types, made by scripts/iq_tables.py from PyPI's gguf.
//
// A point has four levels of 0 to 7, three bits each from the lowest; it stands in files by its index.
#pragma once

#include <stdint.h>

namespace rwkvflow {
"""


def points(kind: Any) -> list[int]:
    """The grid's points as 12 bits each, in the order of their indices."""
    kind.init_grid()
    levels = {int(value): level for level, value in enumerate(kind.grid_map)}
    grid = kind.grid.reshape(kind.grid_shape)
    return [sum(levels[int(value)] << 3 * place for place, value in enumerate(row)) for row in grid]


def table(name: str, numbers: list[int]) -> str:
    """A C++ array, lines of at most 120 columns."""
    lines, line = [], "   "
    for number in numbers:
        text = f" {number},"
        if len(line) + len(text) > 118:
            lines.append(line)
            line = "   "
        line += text
    return "\n".join([f"constexpr uint16_t {name}[{len(numbers)}] = {{", *lines, line, "};"])


def main() -> None:
    """Write the header."""
    kinds = {"kPointsIQ3_XXS": quants.IQ3_XXS, "kPointsIQ3_S": quants.IQ3_S}
    tables = [table(name, points(kind)) for name, kind in kinds.items()]
    scale = table("kLevelsIQ3_XXS", [int(value) for value in quants.IQ3_XXS.grid_map])
    text = "\n\n".join([HEAD.rstrip(), *tables, scale, "}  // namespace rwkvflow"]) + "\n"
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
