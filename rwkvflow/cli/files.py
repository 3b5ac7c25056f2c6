"""`rwkvflow convert` and `rwkvflow compare`: single files, without a recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkvflow.base.errors import RwkvflowError, UsageError
from rwkvflow.base.files import remove
from rwkvflow.base.outputs import beside, check_output, is_own, mark, put
from rwkvflow.base.text import shown_line
from rwkvflow.cli.options import DocumentPath, ModelPath, store_option

if TYPE_CHECKING:
    from rwkvflow.worker.model.origin import Origin

SHOWN = 20  # tensors that `compare` lists without --all


@click.command()
@click.argument("source", metavar="IN", type=ModelPath())
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--format", "name", required=True, metavar="NAME", help="Format to write; `rwkvflow formats` lists them")
@click.option("--lora", type=DocumentPath(), help="Merge this LoRA first: a .pth or .safetensors file")
@click.option("--alpha", type=click.FloatRange(0, min_open=True), help="Alpha that the LoRA was trained with")
@click.option("--state", type=DocumentPath(), help="Include these initial states (blocks.N.att.time_state)")
@click.option(
    "--ignore-tensors",
    "ignore",
    metavar="GLOB",
    multiple=True,
    help="Leave out tensors of such names, which rwkvflow does not know; may be given several times",
)
@click.option("--strategy", metavar="TEXT", help='Strategy of --format chatrwkv, such as "cuda fp16 *10 -> cpu fp32"')
@click.option(
    "--split", "limit", metavar="SIZE", help="Write files of at most this size, such as 5GB, into the folder OUT"
)
@click.option("--force", is_flag=True, help="Replace OUT: a file, or a folder that rwkvflow wrote")
@click.option("--threads", type=click.IntRange(1, 256), help="Number of threads; default: one for each core")
@click.option("--library", type=DocumentPath(), help="librwkv, which encodes the tensors; default: that of the store")
@store_option
def convert(
    source: Path,
    target: Path,
    name: str,
    lora: Path | None,
    alpha: float | None,
    state: Path | None,
    ignore: tuple[str, ...],
    strategy: str | None,
    limit: str | None,
    force: bool,
    threads: int | None,
    library: Path | None,
    store: Path | None,
) -> None:
    """Convert the checkpoint IN to the file or folder OUT, without a recipe. Nothing is tested; `run` does that."""
    from rwkvflow.app.library import find_library
    from rwkvflow.base.events import Notice, StepProgress
    from rwkvflow.display import display_for
    from rwkvflow.documents.formats import file_name, folder_name
    from rwkvflow.worker.conversion.convert import Job
    from rwkvflow.worker.conversion.convert import convert as run
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.formats.base import Split
    from rwkvflow.worker.model.origin import Origin

    if (lora is None) != (alpha is None):
        raise UsageError("--lora and --alpha go together", remedy="give the alpha that the LoRA was trained with")
    name, size = _format(name, strategy), _size(limit)
    folder = None
    if target.is_dir() and not is_own(target):  # a folder of the user's is where the result goes
        model = re.sub(r"(-00001-of-[0-9]{5})?(\.(safetensors|bin)\.index\.json|\.[^.]*)$", "", source.resolve().name)
        made, stem = folder_name(model, name)
        target, folder = target / file_name(model, name), target / made
    else:
        ending = f".{FORMATS[name].suffix.rpartition('.')[2]}"
        stem = target.name.removesuffix(ending) or target.name
    origin = Origin(source, lora, alpha, state, ignore)
    sources = [path for path in (source, *_files(source), lora, state, library) if path is not None]
    for place in {target, folder or target} if size else {target}:
        check_output(place, (path for path in sources if path != source or not path.is_dir()), force=force)
    _check(origin)
    partial = beside(target)
    display = display_for(as_json=False, verbose=False)
    try:
        engine = find_library(library, store, display)
        (outcome,) = run(
            origin,
            engine,
            [Job(name, name, partial, Split(size, stem) if size else None)],
            threads=threads,
            on_progress=lambda done, total, tensor: display(StepProgress("convert", done, total, "B", tensor)),
        )
        for warning in outcome.warnings:
            display(Notice(warning, "warning"))
        if outcome.failure is not None:
            raise RwkvflowError(outcome.failure)
        if folder is not None and partial.is_dir():
            target = folder
        if partial.is_dir():
            mark(partial)
        put(partial, target)
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error
    finally:
        display.close()
        remove(partial)
    total = outcome.written.size if outcome.written else 0
    digest = f" sha256:{outcome.written.sha256}" if outcome.written and outcome.written.sha256 else ""
    click.echo(f"{target} {total} bytes{digest}")


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


def _check(source: Origin) -> None:
    """Say what is wrong with a file before librwkv is looked for, and built where there is none."""
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.model.architecture import architecture_of
    from rwkvflow.worker.model.strangers import refuse_unknown
    from rwkvflow.worker.read.open import open_checkpoint

    try:
        with open_checkpoint(source) as checkpoint:
            refuse_unknown(checkpoint.tensors, architecture_of(checkpoint.tensors))
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error


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
