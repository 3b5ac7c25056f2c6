"""Commands about single files, without a recipe: inspect, formats, convert, compare."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkvflow.base.errors import RwkvflowError, UsageError
from rwkvflow.base.text import json_shown, shown, shown_line
from rwkvflow.cli.options import (
    DocumentPath,
    FormatName,
    ModelName,
    ModelPath,
    model_path,
    sandbox_option,
    store_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rwkvflow.app.push import Push

SHOWN = 20  # tensors that `compare` lists without --all


@click.command()
@click.argument("file", type=ModelName())
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@click.option("--tensors", is_flag=True, help="List all tensors")
@click.option("--prompts", is_flag=True, help="Show how conversations are written for RWKV's chat models")
def inspect(file: str, as_json: bool, tensors: bool, prompts: bool) -> None:
    """Describe a model file, or one on the hub or the web without downloading it.

    No code in it is run. Of a .pth, .safetensors, .gguf, .bin or .prefab that is elsewhere (hf://owner/name/file or an
    address) the headers are read, in ranges.
    """
    from rwkvflow.display.inspect import describe_lines
    from rwkvflow.documents.sources import is_remote
    from rwkvflow.engine.prompts import STOPS, examples
    from rwkvflow.lock.header import describe_source
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.read.inspect import describe

    try:
        description = describe_source(file) if is_remote(file) else describe(Path(file))
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error
    if prompts:
        description["prompts"] = {"stops": list(STOPS), **dict(examples())}
    if as_json:
        click.echo(json_shown(json.dumps(description, indent=2, ensure_ascii=False)))
        return
    for line in describe_lines(description, tensors=tensors):
        click.echo(shown(line))
    for name, text in description.get("prompts", {}).items():
        click.echo(f"  {name}: {json.dumps(text, ensure_ascii=False)}")


@click.command()
def formats() -> None:
    """List the formats that can be written."""
    from rwkvflow.worker.formats import FORMATS

    for entry in FORMATS.values():
        versions = " ".join(sorted(entry.versions))
        click.echo(f"{entry.name:<24} {entry.suffix:<22} versions {versions:<24} tested with {entry.consumer}")


@click.command()
@click.argument("sources", metavar="IN", nargs=-1, required=True, type=ModelName())
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "names",
    multiple=True,
    required=True,
    metavar="NAME",
    type=FormatName(),
    help="Format to write; `rwkvflow formats` lists them. Repeat it to write several from one read",
)
@click.option("--lora", type=DocumentPath(), help="Merge this LoRA, PiSSA, Bone or DiSHA first: a .pth or .safetensors")
@click.option(
    "--lora-init", "init", type=DocumentPath(), help="What a PiSSA began with: its init_lora_A and init_lora_B"
)
@click.option("--alpha", type=click.FloatRange(0, min_open=True), help="Alpha that the LoRA was trained with")
@click.option("--state", type=DocumentPath(), help="Include these initial states (blocks.N.att.time_state)")
@click.option(
    "--ignore-tensors",
    "ignore",
    metavar="GLOB",
    multiple=True,
    help="Leave out tensors of such names, which rwkvflow does not know",
)
@click.option("--strategy", metavar="TEXT", help='Strategy of --format chatrwkv, such as "cuda fp16 *10 -> cpu fp32"')
@click.option(
    "--split", "limit", metavar="SIZE", help="Write files of at most this size, such as 5GB, into the folder OUT"
)
@click.option(
    "--imatrix", type=DocumentPath(), help="Quantize gguf-* with this importance matrix: a .gguf or .dat of one"
)
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="REGEX=TYPE",
    help="Type of the tensors of quantized gguf-* files in whose names REGEX is found; the first one that is decides",
)
@click.option("--dry-run", is_flag=True, help="Only print each file and its exact size in bytes")
@click.option("--no-check", is_flag=True, help="Do not run the files and compare them with the checkpoint")
@click.option("--force", is_flag=True, help="Replace OUT: a file, or a folder that rwkvflow wrote")
@click.option(
    "--push",
    "repository",
    metavar="OWNER/NAME",
    help="Also publish to this hub repository, with card and provenance: OUT.yaml becomes the recipe of it, and is run",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Number of threads; default: one for each core")
@click.option("--library", type=DocumentPath(), help="librwkv, which encodes the tensors; default: that of the store")
@sandbox_option
@store_option
def convert(
    sources: tuple[str, ...],
    target: Path,
    names: tuple[str, ...],
    lora: Path | None,
    init: Path | None,
    alpha: float | None,
    state: Path | None,
    ignore: tuple[str, ...],
    strategy: str | None,
    limit: str | None,
    imatrix: Path | None,
    tensor_types: tuple[str, ...],
    dry_run: bool,
    no_check: bool,
    force: bool,
    threads: int | None,
    library: Path | None,
    repository: str | None,
    sandbox: str,
    store: Path | None,
) -> None:
    """Convert the checkpoints IN to the file or folder OUT, without a recipe.

    IN is a file, a folder, https://... or hf://owner/name/file, which is downloaded into the store and kept there. With
    several formats or checkpoints, OUT is a folder. Files that librwkv runs are compared with the checkpoint before
    they are put in place; other formats are tested by `run` alone.

    With --push, the recipe OUT.yaml is written and run: every format is then tested by what its users run it with, and
    OUT is a release, as is the repository. --sandbox is for that alone.
    """
    from rwkvflow.app.convert import Order, carry_out, foresee, told_of
    from rwkvflow.app.models import place_of
    from rwkvflow.app.push import Push
    from rwkvflow.display import display_for
    from rwkvflow.documents.sources import is_remote
    from rwkvflow.store.store import default_root
    from rwkvflow.worker.model.origin import Origin

    if lora is None and (alpha is not None or init is not None):
        raise UsageError(f"{'--alpha' if init is None else '--lora-init'} is for --lora", remedy="name the LoRA's file")
    formats = tuple(dict.fromkeys(_format(name, strategy) for name in names))
    size = _size(limit)
    if repository is not None:
        given: dict[str, Any] = {"--strategy": strategy, "--no-check": no_check, "--force": force, "--threads": threads}
        given |= {"--library": library, "--imatrix": imatrix, "--tensor-type": tensor_types, "--dry-run": dry_run}
        if refused := [name for name, value in given.items() if value]:
            raise UsageError(f"--push takes no {refused[0]}", remedy="write a recipe: rwkvflow init")
        if not target.name:
            raise UsageError(f"--push: {target} is no name of a folder", remedy="name the folder OUT")
        _push(Push(sources, formats, target, repository, lora, alpha, state, ignore, limit, init), sandbox, store)
        return
    root = store or default_root()
    several = len(sources) > 1 or len(formats) > 1

    def order(source: str, path: Path, files: Sequence[Path]) -> Order:
        read = [item for item in (path, *files, lora, init, state, library, imatrix) if item is not None]
        return Order(
            Origin(path, lora, alpha, state, ignore, init),
            tuple(item for item in read if item != path or not path.is_dir()),
            formats,
            target,
            several or str(target).endswith(("/", os.sep)),
            split=size,
            force=force,
            check=not no_check,
            threads=threads,
            library=library,
            store=store,
            imatrix=imatrix,
            tensor_types=tensor_types,
            dry_run=dry_run,
            about=told_of(source),
        )

    with closing(display_for(as_json=False, verbose=False)) as display:
        for source in filter(is_remote, sources):
            foresee(order(source, place_of(source, root), ()), source)
        for source in sources:
            path = model_path(source, root, display)
            for line in carry_out(order(source, path, _files(path)), display):
                click.echo(line)


def _push(push: Push, sandbox: str, store: Path | None) -> None:
    from rwkvflow.app import push as pushing
    from rwkvflow.app.pipeline import Request
    from rwkvflow.display import display_for

    with closing(display_for(as_json=False, verbose=False)) as display:
        finished = pushing.carry_out(push, Request(push.recipe, sandbox=sandbox, store=store), display)
    finished.check()


def _format(name: str, strategy: str | None) -> str:
    """The format that the options name. Raises UsageError."""
    from rwkvflow.documents.check.formats import FAMILY, unknown_format
    from rwkvflow.documents.formats import is_format, strategy_format

    if strategy is not None:
        if name != FAMILY:
            raise UsageError(f"only {FAMILY} takes a strategy; {name} has none", remedy=f"say --format {FAMILY}")
        try:
            return strategy_format(strategy)
        except ValueError as error:
            raise UsageError(f"--strategy: not one of the rwkv package: {error}") from None
    if not is_format(name):
        raise UsageError(unknown_format(name), remedy="rwkvflow formats")
    return name


def _size(text: str | None) -> int | None:
    from rwkvflow.documents.yaml.units import split_bytes

    try:
        return None if text is None else split_bytes(text)
    except ValueError as error:
        raise UsageError(f"--split: {error}") from None


def _files(source: Path) -> list[Path]:
    """All files that the model at `source` is read from."""
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.read.shards import files_of

    try:
        found = files_of(source)
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error
    return [*found, *(path for path in source.iterdir() if path.is_file())] if source.is_dir() else found


@click.command()
@click.argument("first", type=ModelPath())
@click.argument("second", type=ModelPath())
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@click.option("--all", "every", is_flag=True, help="Also list equal tensors")
@click.option("--strict", is_flag=True, help="Exit with code 1 if anything differs")
def compare(first: Path, second: Path, as_json: bool, every: bool, strict: bool) -> None:
    """Compare two model files tensor by tensor, whatever their formats."""
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.read.compare import compare as compared

    try:
        found = list(compared(first, second))
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error
    different = [item for item in found if item.kind != "equal"]
    if as_json:
        rows = found if every else different
        click.echo(json.dumps([_finite(item.__dict__) for item in rows], indent=2))
    else:
        rows = sorted(found if every else different, key=lambda item: (item.kind == "equal", -item.relative))
        for item in rows if every else rows[:SHOWN]:
            click.echo(shown_line(_line(item.name, item.kind, item.dtypes, item.shapes, item.largest, item.relative)))
        if len(rows) > SHOWN and not every:
            click.echo(f"and {len(rows) - SHOWN} more (--all lists them)")
        click.echo(f"{len(found) - len(different)} tensors hold the same values, {len(different)} differ")
    if strict and different:
        raise click.exceptions.Exit(1)


def _finite(values: dict[str, object]) -> dict[str, object]:
    """JSON has no infinity."""
    return {key: str(value) if value in (float("inf"),) else value for key, value in values.items()}


def _line(
    name: str,
    kind: str,
    dtypes: tuple[str, str],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    largest: float,
    relative: float,
) -> str:
    types = dtypes[0] if dtypes[0] == dtypes[1] else " → ".join(dtypes)
    if kind == "first":
        return f"{name:<40} only in the first: {dtypes[0]} {list(shapes[0])}"
    if kind == "second":
        return f"{name:<40} only in the second: {dtypes[1]} {list(shapes[1])}"
    if kind == "shape":
        return f"{name:<40} {types}, shape {list(shapes[0])} → {list(shapes[1])}"
    if kind == "equal":
        return f"{name:<40} {types}, equal"
    return f"{name:<40} {types}, off by {relative:.3g} of its size, at most {largest:.4g}"
