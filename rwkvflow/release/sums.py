"""SHA256SUMS as `sha256sum -c` reads it: "<64 hex digits>  <path>" a line, sorted by path."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rwkvflow.release.names import is_plain

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def sums_text(digests: Mapping[str, str]) -> str:
    """The file; `digests` maps path → hex sha256."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))


def parse_sums(text: str) -> tuple[dict[str, str], list[str]]:
    """({path: hex sha256}, what is wrong with the text). Strict: what rwkvflow never writes is a problem."""
    found: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None or not is_plain(match[2]):
            problems.append(f"line {number} is not a digest and the name of a file of the release")
        elif match[2] in found:
            problems.append(f"line {number} names {match[2]} a second time")
        else:
            found[match[2]] = match[1]
    if not text.endswith("\n"):
        problems.append("its last line is cut off")
    if not problems and list(found) != sorted(found):
        problems.append("its lines are not in order")
    return found, problems
