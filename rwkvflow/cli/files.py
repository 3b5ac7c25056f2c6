"""`rwkvflow convert` and `rwkvflow compare`: single files, without a recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click

from rwkvflow.cli.options import DocumentPath, ModelPath
from rwkvflow.errors import RwkvflowError, UsageError

SHOWN = 20  # tensors that `compare` lists without --all


@click.command()
@click.argument("source", metavar="IN", type=ModelPath())
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--format", "name", required=True, metavar="NAME", help="`rwkvflow formats` lists them")
@click.option("--lora", type=DocumentPath(), help="A LoRA to merge first: a .pth or .safetensors file")
@click.option("--alpha", type=click.FloatRange(0, min_open=True), help="That the LoRA was trained with")
@click.option("--state", type=DocumentPath(), help="Initial states (blocks.N.att.time_state) that go along")
@click.option("--force", is_flag=True, help="Replace OUT")
@click.option("--threads", type=click.IntRange(1, 256), help="Default: one for each core of this machine")
@click.option("--library", type=DocumentPath(), help="librwkv, which encodes; default: the store's")
@click.option("--store", type=click.Path(file_okay=False, path_type=Path), envvar="RWKVFLOW_STORE")
def convert(
    source: Path,
    target: Path,
    name: str,
    lora: Path | None,
    alpha: float | None,
    state: Path | None,
    force: bool,
    threads: int | None,
    library: Path | None,
    store: Path | None,
) -> None:
    """Convert the checkpoint IN to the file or folder OUT, without a recipe. Nothing is verified: `run` does that."""
    from rwkvflow.display import display_for
    from rwkvflow.documents.nearest import did_you_mean
    from rwkvflow.events import Notice, StepProgress
    from rwkvflow.library import find_library
    from rwkvflow.worker.convert import Job
    from rwkvflow.worker.convert import convert as run
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.origin import Origin
    from rwkvflow.worker.protocol import WorkerError

    if (lora is None) != (alpha is None):
        raise UsageError("--lora and --alpha go together", remedy="say the alpha that the LoRA was trained with")
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}{did_you_mean(name, tuple(FORMATS))}", remedy="rwkvflow formats")
    if target.is_dir() and not force:
        target = target / (source.name.removesuffix(source.suffix) + FORMATS[name].suffix)
    if target.exists() and not force:
        raise UsageError(f"{target} exists already", remedy="name another file, or say --force")
    partial = target.with_name(f".{target.name}.part")
    display = display_for(as_json=False, verbose=False)
    try:
        engine = find_library(library, store, display)
        (outcome,) = run(
            Origin(source, lora, alpha, state),
            engine,
            [Job(name, name, partial)],
            threads=threads,
            on_progress=lambda done, total, tensor: display(StepProgress("convert", done, total, "B", tensor)),
        )
        for warning in outcome.warnings:
            display(Notice(warning, "warning"))
        if outcome.failure is not None:
            raise RwkvflowError(outcome.failure)
        _put(partial, target)
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error
    finally:
        display.close()
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
    size = outcome.written.size if outcome.written else 0
    click.echo(f"{target} {size} bytes" + (f" sha256:{outcome.written.sha256}" if outcome.written else ""))


def _put(partial: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    partial.replace(target)


@click.command()
@click.argument("first", type=ModelPath())
@click.argument("second", type=ModelPath())
@click.option("--json", "as_json", is_flag=True)
@click.option("--all", "every", is_flag=True, help="List equal tensors as well")
@click.option("--strict", is_flag=True, help="End with exit code 1 where anything differs")
def compare(first: Path, second: Path, as_json: bool, every: bool, strict: bool) -> None:
    """Tell, tensor by tensor, how two model files differ, whatever their formats."""
    from rwkvflow.worker.compare import compare as compared
    from rwkvflow.worker.protocol import WorkerError

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
            click.echo(_line(item.name, item.kind, item.dtypes, item.shapes, item.largest, item.relative))
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
