"""Did you mean …? The nearest name by an edit distance that knows how people mistype."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_ALIKE = [frozenset(pair) for pair in ("0o", "1l", "1i", "li", "5s", "8b", "-_", "-.", "_.")]


def shown(text: str, limit: int = 60) -> str:
    """Text in single quotes for a message: one line, no control characters, not endless."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def _cost(a: str, b: str) -> float:
    if a == b:
        return 0.0
    a, b = a.lower(), b.lower()
    if a == b:
        return 0.2
    return 0.3 if frozenset((a, b)) in _ALIKE else 1.0


def distance(a: str, b: str) -> float:
    """Optimal string alignment distance; case costs 0.2, characters that look alike 0.3, a swap of neighbours 0.8."""
    before: list[float] = []
    row = [float(j) for j in range(len(b) + 1)]
    for i, x in enumerate(a, 1):
        following = [float(i)]
        for j, y in enumerate(b, 1):
            best = min(row[j] + 1, following[j - 1] + 1, row[j - 1] + _cost(x, y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y and x != y:
                best = min(best, before[j - 2] + 0.8)
            following.append(best)
        before, row = row, following
    return row[-1]


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name most like `word`, or None where none is near enough. Ties go to the first name."""
    if len(word) > 120:
        return None
    best, best_distance = None, 0.34 * len(word) + 0.67
    for name in names:
        if abs(len(name) - len(word)) <= best_distance and (found := distance(word, name)) < best_distance:
            best, best_distance = name, found
    return best


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message: "; did you mean 'x'?", or nothing."""
    near = nearest(word, names)
    return f"; did you mean {shown(near)}?" if near is not None and near != word else ""


def one_of(names: Sequence[str], limit: int = 20) -> str:
    """Names for a message, comma separated."""
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
