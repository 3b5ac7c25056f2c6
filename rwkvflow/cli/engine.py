"""`rwkvflow engine`: building the native engine, and what was patched for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rwkvflow.base.text import shown
from rwkvflow.cli.options import prepared_run, recipe_argument, run_options, run_stages


@click.group()
def engine() -> None:
    """Build the native engine, and show how it was patched."""


@engine.command("build")
@recipe_argument
@run_options
@click.option("--print-path", is_flag=True, help="Print only the path of librwkv's folder, for scripts")
def engine_build(recipe: Path, print_path: bool, **options: Any) -> None:
    """Build only the engine of RECIPE, and print where it is."""
    from rwkvflow.app import pipeline

    prepared, finished = run_stages(recipe, options, ["engine"])
    if print_path:
        click.echo(pipeline.librwkv_folder(prepared, finished))
        return
    for line in pipeline.where(prepared, finished):
        click.echo(shown(line))


@engine.command()
@recipe_argument
@run_options
def diff(recipe: Path, **options: Any) -> None:
    """Show how the files that CMake wrote were patched."""
    from rwkvflow.app.explain import engine_patches

    for line in engine_patches(prepared_run(recipe, options)):
        click.echo(shown(line))
