"""Formats that can only be tested with PyTorch need an image that has it."""

from __future__ import annotations

from fnmatch import fnmatchcase

from rwkvflow.base.errors import Finding
from rwkvflow.documents.combine import combinations
from rwkvflow.documents.formats import needs_torch
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.yaml.source import DocumentSource, Path_


def check_torch(recipe: Recipe, source: DocumentSource) -> list[Finding]:
    """A finding for each format of a valid recipe that is made in an image where its consumer cannot run."""
    without = {image.name for image in recipe.images if image.torch is None}
    lacking: dict[str, dict[str, None]] = {}  # images by format, in the recipe's order
    for _, name, image in combinations(recipe):
        if image in without and needs_torch(name):
            lacking.setdefault(name, {})[image] = None
    return [
        source.finding(
            place_of_format(recipe, name),
            f"{name} is tested with {needs_torch(name)}, which needs PyTorch, and image "
            f"{' and '.join(images)} has none; "
            'give it a version, e.g. torch: "2.13.0", or exclude it for this format in the matrix',
        )
        for name, images in lacking.items()
    ]


def place_of_format(recipe: Recipe, name: str) -> Path_:
    """Where a recipe asks for a format."""
    if name in recipe.format_names:
        return ("formats", recipe.format_names.index(name))
    for index, rule in enumerate(recipe.matrix.include):
        if fnmatchcase(name, rule.format):
            return ("matrix", "include", index, "format")
    return ("formats",)
