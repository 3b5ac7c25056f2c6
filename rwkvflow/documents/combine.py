"""Models × formats × images of a recipe, with what its matrix takes away and adds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from rwkvflow.documents.recipe import Combination, Recipe

Triple = tuple[str, str, str]  # model, format, image


def combinations(recipe: Recipe) -> list[Triple]:
    """All (model, format, image) to make, in the recipe's order: by model, then format, then image.

    `exclude` rules apply to the full product first; `include` rules then bring combinations back. An include rule
    whose format is the plain name of a format outside `formats` adds that format, after the others.
    """
    models = [model.name for model in recipe.models]
    images = [image.name for image in recipe.images]
    formats = list(recipe.format_names)
    for rule in recipe.matrix.include:
        if rule.format not in formats and not any(fnmatchcase(name, rule.format) for name in formats):
            formats.append(rule.format)
    own = frozenset(recipe.format_names)
    if not recipe.matrix.exclude and not recipe.matrix.include:
        return [(model, name, image) for model in models for name in formats for image in images]
    excluded = [_Rule(rule, models, recipe.format_names, images) for rule in recipe.matrix.exclude]
    included = [_Rule(rule, models, formats, images) for rule in recipe.matrix.include]
    return [
        triple
        for model in models
        for name in formats
        for image in images
        if (name in own and not _any(excluded, triple := (model, name, image)))
        or _any(included, triple := (model, name, image))
    ]


def formats_of(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """The formats that are made in each image, by its name, sorted."""
    found: dict[str, set[str]] = {image.name: set() for image in recipe.images}
    for _, name, image in combinations(recipe):
        found[image].add(name)
    return {image: tuple(sorted(names)) for image, names in found.items()}


class _Rule:
    """The names that a rule's globs match, worked out once."""

    def __init__(self, rule: Combination, models: Sequence[str], formats: Sequence[str], images: Sequence[str]) -> None:
        self.models = _matching(models, rule.model)
        self.formats = _matching(formats, rule.format)
        self.images = _matching(images, rule.image)


def _matching(names: Iterable[str], pattern: str) -> frozenset[str]:
    return frozenset(name for name in names if fnmatchcase(name, pattern))


def _any(rules: Sequence[_Rule], triple: Triple) -> bool:
    model, name, image = triple
    return any(model in rule.models and name in rule.formats and image in rule.images for rule in rules)
