"""Arguments and options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rwkvflow.app.pipeline import Finished, Prepared, Request


class DocumentPath(click.Path):
    """A file named on the command line."""

    def __init__(self, *, exists: bool = True) -> None:
        super().__init__(exists=exists, dir_okay=False, path_type=Path)


class ModelPath(click.Path):
    """A model named on the command line: a file, the index or first file of a split one, or the folder of either."""

    def __init__(self) -> None:
        super().__init__(exists=True, path_type=Path)


recipe_argument = click.argument("recipe", type=DocumentPath())


sandbox_option = click.option(
    "--sandbox",
    type=click.Choice(["auto", "docker", "host"]),
    default="auto",
    show_default=True,
    help="Where commands run; host has the kernel's walls, if any",
)
store_option = click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="RWKVFLOW_STORE",
    help="Folder for finished steps; default: rwkvflow in your cache folder",
)
_RUN_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option(
        "--workflow", type=DocumentPath(), help="Limits and further stages; default: the shipped workflow.yaml"
    ),
    sandbox_option,
    store_option,
    click.option(
        "--remote",
        envvar="RWKVFLOW_REMOTE",
        metavar="URL",
        help="Also use this shared store: any fsspec URL, e.g. s3://bucket/folder",
    ),
    click.option(
        "--remote-read-only",
        is_flag=True,
        envvar="RWKVFLOW_REMOTE_READ_ONLY",
        help="Take from the remote store, and send nothing to it",
    ),
    click.option(
        "--allow-outside",
        is_flag=True,
        help="Let the recipe name templates, texts, keys and engine sources outside of its folder",
    ),
    click.option("--locked", is_flag=True, help="Refuse if the lock is missing or disagrees with the recipe"),
    click.option(
        "--only", multiple=True, metavar="ID", help="Make only these artifacts: model/format@image, globs allowed"
    ),
)


def run_options(function: Callable[..., None]) -> Callable[..., None]:
    """What every command takes that prepares a run."""
    for option in reversed(_RUN_OPTIONS):
        function = option(function)
    return function


def request_of(recipe: Path, options: dict[str, Any]) -> Request:
    """The options as the pipeline takes them."""
    from rwkvflow.app.pipeline import Request

    return Request(
        recipe=recipe,
        workflow=options["workflow"],
        sandbox=options["sandbox"],
        store=options["store"],
        locked=options["locked"],
        only=tuple(options["only"]),
        remote=options["remote"],
        remote_read_only=options["remote_read_only"],
        allow_outside=options["allow_outside"],
    )


def prepared_run(recipe: Path, options: dict[str, Any]) -> Prepared:
    """A run that could start; notices go to standard error."""
    from rwkvflow.app.pipeline import prepare
    from rwkvflow.display.plain import PlainDisplay

    return prepare(request_of(recipe, options), PlainDisplay())


def run_stages(recipe: Path, options: dict[str, Any], stages: list[str]) -> tuple[Prepared, Finished]:
    """Carry out a recipe up to some stages. Raises what a failed step raises."""
    from rwkvflow.app import pipeline
    from rwkvflow.display import display_for

    display = display_for(as_json=False, verbose=False)
    try:
        prepared = pipeline.only_stages(pipeline.prepare(request_of(recipe, options), display), stages)
        finished = pipeline.execute(prepared, display)
    finally:
        display.close()
    error = finished.error()
    if error is not None:
        raise error
    return prepared, finished
