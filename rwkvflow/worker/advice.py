"""What messages advise where it differs: in a sandbox, whose image and model a recipe describes, and without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_recipe = False  # of the process, not of a thread: writers have threads of their own


@contextmanager
def given_by_recipe() -> Iterator[None]:
    """What runs inside was described by a recipe; without it, nothing was."""
    global _recipe
    before, _recipe = _recipe, True
    try:
        yield
    finally:
        _recipe = before


def install(package: str, beside: str | None = None) -> str:
    """How to get a missing package: in an image `package`, beside rwkvflow the one that it depends on itself."""
    return f"add {package} to the image's `wheels`" if _recipe else f"run: pip install {beside or package}"


def system_toolchain() -> str:
    """The other toolchain, for who can choose one."""
    return ", or write toolchain: system in the recipe" if _recipe else ""


def name_tokenizer() -> str:
    """How to say which tokenizer a model has."""
    if _recipe:
        return "name a tokenizer.json as the model's `tokenizer` in the recipe"
    return "chat, generate and serve take one (--tokenizer FILE), and a file of a release has what its recipe names"


def ignore_tensors() -> str:
    """How to leave tensors out."""
    return (
        "`ignore_tensors` of the recipe's model"
        if _recipe
        else "--ignore-tensors GLOB, or in a recipe `ignore_tensors`"
    )


def change_limit(name: str, what: str) -> str:
    """How a format gets another limit; nothing where there is no recipe to say so."""
    return f", which `smoke: {{limits: {{{name}: {{{what}: …}}}}}}` in the recipe changes" if _recipe else ""
