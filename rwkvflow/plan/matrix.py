"""Which artifacts a recipe stands for, and what each is called.

An identifier is model/format@image, e.g. rwkv7-world-0.1b/ggml-q5_1@py3.11: in messages, in CI jobs, for --only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rwkvflow.base.errors import UsageError
from rwkvflow.documents.combine import combinations
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.yaml.nearest import did_you_mean, nearest, shown


@dataclass(frozen=True, slots=True, order=True)
class Artifact:
    """One file to make; the fields are names in the recipe."""

    model: str
    format: str
    image: str

    @property
    def id(self) -> str:
        """The identifier: model/format@image."""
        return f"{self.model}/{self.format}@{self.image}"

    def __str__(self) -> str:
        return self.id


def expand(recipe: Recipe) -> list[Artifact]:
    """All artifacts of a recipe in its own order: by model, then format, then image; exclude, then include."""
    return [Artifact(*triple) for triple in combinations(recipe)]


def select(artifacts: Sequence[Artifact], patterns: Iterable[str]) -> list[Artifact]:
    """The artifacts whose identifier any of the globs matches, in their order; all where there are no patterns.

    `*` stands for any characters, / and @ included. Raises UsageError for a pattern that matches nothing.
    """
    wanted = list(dict.fromkeys(patterns))
    if not wanted:
        return list(artifacts)
    ids = [artifact.id for artifact in artifacts]
    chosen: set[str] = set()
    for pattern in wanted:
        found = {id for id in ids if id == pattern or fnmatchcase(id, pattern)}
        if not found:
            raise UsageError(
                f"no artifact of this recipe matches {shown(pattern)}{_suggest(pattern, artifacts)}",
                remedy="`rwkvflow matrix` lists the identifiers: model/format@image, * for any characters",
            )
        chosen |= found
    return [artifact for artifact, id in zip(artifacts, ids, strict=True) if id in chosen]


def _suggest(pattern: str, artifacts: Sequence[Artifact]) -> str:
    """A part that was left out is the likeliest slip, then a mistyped part."""
    for loose in (f"{pattern}/*", f"*/{pattern}@*", f"*@{pattern}", f"{pattern}@*", f"{pattern}*"):
        if any(fnmatchcase(artifact.id, loose) for artifact in artifacts):
            return f"; did you mean {shown(loose)}?"
    model, slash, rest = pattern.partition("/")
    format_name, at, image = rest.partition("@")
    if slash and at:
        parts = [
            word if any(fnmatchcase(name, word) for name in names) else nearest(word, names) or word
            for word, names in (
                (model, dict.fromkeys(artifact.model for artifact in artifacts)),
                (format_name, dict.fromkeys(artifact.format for artifact in artifacts)),
                (image, dict.fromkeys(artifact.image for artifact in artifacts)),
            )
        ]
        candidate = f"{parts[0]}/{parts[1]}@{parts[2]}"
        if any(artifact.id == candidate or fnmatchcase(artifact.id, candidate) for artifact in artifacts):
            return f"; did you mean {shown(candidate)}?"
    names = {name for artifact in artifacts for name in (artifact.model, artifact.format, artifact.image)}
    return did_you_mean(pattern, sorted(names) if len(pattern) < 100 else ())
