"""Arguments and options that several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from rwkvflow.base.errors import DocumentError, UsageError

if TYPE_CHECKING:
    from rwkvflow.app.pipeline import Finished, Prepared, Request
    from rwkvflow.base.events import Listener


class DocumentPath(click.Path):
    """A file named on the command line."""

    def __init__(self, *, exists: bool = True) -> None:
        super().__init__(exists=exists, dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path. Raises UsageError, with what was probably meant, where it must be there and is not."""
        if self.exists and not Path(str(value)).exists():
            raise UsageError(f"there is no file {value}", remedy=_instead_of(str(value)))
        if self.exists and Path(str(value)).is_dir():
            inside = sorted(str(path) for path in Path(str(value)).glob("*.y*ml"))[:6]
            raise UsageError(f"{value} is a folder", remedy=f"name a file: {', '.join(inside)}" if inside else None)
        return super().convert(value, param, ctx)


class FormatName(click.ParamType[str]):
    """A format; shells complete it. What is wrong with one is told by whoever takes it."""

    name = "format"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As it is."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The formats that begin so, else those that have it in them."""
        from rwkvflow.documents.formats import suffixes

        return _begun(incomplete, suffixes())


class ArtifactId(click.ParamType[str]):
    """The identifier of an artifact, as --only takes it; shells complete it from the recipe."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As it is."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Of the recipe that stands on the line; nothing while there is none, or a wrong one."""
        from rwkvflow.documents.load import load_recipe
        from rwkvflow.plan.matrix import expand

        # While a line is not complete, click leaves its words where they are.
        for word in (str(ctx.params.get("recipe") or ""), *ctx.args):
            with suppress(UsageError, DocumentError, OSError, TypeError):
                return _begun(incomplete, [artifact.id for artifact in expand(load_recipe(Path(word)))])
        return []


def _begun(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    there = list(names)
    found = [name for name in there if name.startswith(incomplete)] or [name for name in there if incomplete in name]
    return [CompletionItem(name) for name in found]


class ModelPath(click.Path):
    """A model named on the command line: a file, the index or first file of a split one, or the folder of either."""

    def __init__(self) -> None:
        super().__init__(exists=True, path_type=Path)


class ModelName(click.ParamType[str]):
    """A model named on the command line: what ModelPath takes, or hf://owner/name/file or an address; as text."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as text. Raises UsageError, with what was probably meant."""
        from rwkvflow.documents.pages import without_page
        from rwkvflow.documents.sources import is_remote

        text = str(value) if Path(str(value)).exists() else without_page(str(value))
        if is_remote(text) or Path(text).exists():
            refuse_recipe(text)
            return text
        raise UsageError(f"there is no file {text}", remedy=_instead_of(text))


def refuse_recipe(text: str) -> None:
    """Raise UsageError where a document is given in the place of a model."""
    if text.endswith((".yaml", ".yml")) and Path(text).is_file():
        raise UsageError(f"{text} is a recipe, not a model", remedy=f"rwkvflow run {text}")


def _instead_of(text: str) -> str | None:
    """What a name that is no file here was probably meant to be."""
    from rwkvflow.documents.yaml.nearest import nearest

    path = Path(text)
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, names)
    if near:
        return f"did you mean {path.with_name(near)}?"
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/.+)?", text) and not path.parent.is_dir():
        return f"did you mean hf://{text}?"
    return None


def model_path(text: str, root: Path, emit: Listener) -> Path:
    """The file of a model's name, fetched into the store where it is elsewhere."""
    from rwkvflow.app.models import fetched
    from rwkvflow.documents.sources import is_remote

    return fetched(text, root, emit) if is_remote(text) else Path(text)


class RecipePath(DocumentPath):
    """A recipe; a model that is given instead is told by its first bytes, and what to do with it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path. Raises UsageError for a model file."""
        path = Path(str(super().convert(value, param, ctx)))
        with path.open("rb") as file:
            head = file.read(10)
        model = head[:4] in (b"PK\3\4", b"GGUF", b"fmgg") or head[:1] == b"\x80" or head[8:9] == b"{"
        if model:
            written = head[:4] in (b"GGUF", b"fmgg")
            raise UsageError(
                f"{path} is a model file, not a recipe" if written else f"{path} is a checkpoint, not a recipe",
                remedy=f"rwkvflow chat {path}" if written else f"rwkvflow init {path} -o recipe.yaml",
            )
        return path


recipe_argument = click.argument("recipe", type=RecipePath())


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
workflow_option = click.option(
    "--workflow", type=DocumentPath(), help="Limits and further stages; default: the shipped workflow.yaml"
)
allow_outside_option = click.option(
    "--allow-outside",
    is_flag=True,
    help="Let the recipe name templates, texts, keys and engine sources outside of its folder",
)
_RUN_OPTIONS: tuple[Callable[..., Any], ...] = (
    workflow_option,
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
        "--trust",
        multiple=True,
        metavar="KEY",
        help="Count only records of the remote store that this key signed: ed25519:… or a PEM file",
    ),
    click.option(
        "--store-key",
        type=DocumentPath(),
        envvar="RWKVFLOW_STORE_KEY",
        help="Private key (PEM) that signs what is sent to the remote store",
    ),
    allow_outside_option,
    click.option("--locked", is_flag=True, help="Refuse if the lock is missing or disagrees with the recipe"),
    click.option(
        "--only",
        multiple=True,
        metavar="ID",
        type=ArtifactId(),
        help="Make only these artifacts: model/format@image, globs allowed",
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
        trust=tuple(options["trust"]),
        store_key=options["store_key"],
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

    with closing(display_for(as_json=False, verbose=False)) as display:
        prepared = pipeline.only_stages(pipeline.prepare(request_of(recipe, options), display), stages)
        finished = pipeline.execute(prepared, display)
    finished.check()
    return prepared, finished
