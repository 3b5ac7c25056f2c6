"""`rwkvflow engine`: building the native engine, and what was patched for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rwkvflow.cli.options import prepared_run, recipe_argument, run_options, run_stages


@click.group()
def engine() -> None:
    """The native engine."""


@engine.command("build")
@recipe_argument
@run_options
def engine_build(recipe: Path, **options: Any) -> None:
    """Build only the engine of RECIPE, and say where it is."""
    for line in run_stages(recipe, options, ["engine"]):
        click.echo(line)


@engine.command()
@recipe_argument
@run_options
def diff(recipe: Path, **options: Any) -> None:
    """Show what was patched of what CMake wrote."""
    from rwkvflow.app.explain import engine_patches

    for line in engine_patches(prepared_run(recipe, options)):
        click.echo(line)
