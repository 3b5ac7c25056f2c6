"""`rwkvflow bench` and `rwkvflow perplexity`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkvflow.base.errors import UsageError
from rwkvflow.base.text import bytes_text
from rwkvflow.cli.models import (
    engine_errors,
    engine_options,
    library_of,
    open_model,
    tokenizer_of,
    tokenizer_option,
)
from rwkvflow.cli.options import DocumentPath

if TYPE_CHECKING:
    from rwkvflow.app.bench import Measured
    from rwkvflow.worker.model.tokenizers import ModelTokenizer


@click.command()
@click.argument("models", nargs=-1, required=True, type=DocumentPath())
@click.option(
    "--against", type=DocumentPath(), help="Compare with this library, which needs the API of rwkv.h; both take turns"
)
@click.option(
    "-n",
    "--tokens",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Tokens to evaluate one by one in each round",
)
@click.option(
    "--prompt",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    help="Tokens of the prompt that is read at once; 0 for none",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Number of rounds")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@engine_options
def bench(
    models: tuple[Path, ...], against: Path | None, tokens: int, prompt: int, rounds: int, as_json: bool, **options: Any
) -> None:
    """Measure how fast model files run: time per token, tokens per second, loading, memory, share of the bandwidth.

    Every figure is the median of all rounds. The bandwidth is measured: how fast the same number of threads can read.
    """
    from rwkvflow.app.bench import BenchPlan, bandwidth, measure
    from rwkvflow.engine.binding import Library
    from rwkvflow.engine.threads import default_threads

    libraries = [library_of(options), *([against] if against else [])]
    with engine_errors():
        threads = options["threads"] or default_threads(Library(libraries[0]))
    plan = BenchPlan(models, libraries, threads, tokens, prompt, rounds, options["group_norm_eps"])
    speed = bandwidth(threads)
    rows = measure(plan, lambda text: click.echo(text, err=True))
    if as_json:
        content: dict[str, Any] = {"threads": threads, "bandwidth": speed, "rows": [row.as_json(speed) for row in rows]}
        if against:
            content["ratios"] = [_ratios(*pair) for pair in _pairs(rows)]
        click.echo(json.dumps(content, indent=2))
        return
    click.echo(f"{threads} threads; this machine reads {bytes_text(speed)}/s")
    for line in _table(rows, speed, against):
        click.echo(line)
    for pair in _pairs(rows) if against else ():
        found = _ratios(*pair)
        reading = f", {found['prompt']:.2f} times at reading a prompt" if found["prompt"] else ""
        click.echo(f"{found['model']}: {found['decode']:.2f} times as fast a token{reading} as {against}")


def _pairs(rows: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    return list(zip(rows[::2], rows[1::2], strict=True))


def _ratios(ours: Measured, theirs: Measured) -> dict[str, Any]:
    prompts = (ours.prompt_rate, theirs.prompt_rate)
    return {
        "model": ours.model.name,
        "decode": theirs.token / ours.token,
        "prompt": prompts[0] / prompts[1] if prompts[0] and prompts[1] else None,
    }


def _table(rows: Sequence[Measured], speed: float, against: Path | None) -> list[str]:
    named = against is not None
    header = ["model", *(["library"] if named else []), "type", "size", "load", "a token", "decode", "prompt"]
    cells = [[*header, "bandwidth", "memory"]]
    for row in rows:
        rate = row.prompt_rate
        cells.append(
            [
                row.model.name,
                *(["--against" if row.library == against else row.library.name] if named else []),
                row.kind,
                bytes_text(row.size),
                f"{sorted(row.load)[len(row.load) // 2] * 1e3:.1f} ms",
                f"{row.token * 1e3:.2f} ms",
                f"{1 / row.token:.1f}/s",
                f"{rate:.0f}/s" if rate else "",
                f"{row.share(speed):.0%}",
                bytes_text(row.peak) if row.peak is not None else "",
            ]
        )
    left = 3 if named else 2
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _ids_of(tokenizer: ModelTokenizer, path: Path) -> list[int]:
    """The tokens of a text. One that is not UTF-8 is read as the bytes that it is, by tokenizers of bytes."""
    from rwkvflow.worker.model.tokenizers import Bytes, World

    content = path.read_bytes()
    if isinstance(tokenizer, Bytes | World):
        return tokenizer.encode(content)
    try:
        return tokenizer.encode(content.decode())
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: byte {error.start} is not UTF-8, and the {tokenizer.name} tokenizer reads nothing else",
            remedy="convert the text, for example with iconv -f latin1 -t utf-8",
        ) from None


@click.command()
@click.argument("model", type=DocumentPath())
@click.argument("text", type=DocumentPath())
@click.option("-n", "--tokens", type=click.IntRange(2), help="Read only the first tokens of the text; default: all")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@tokenizer_option
@engine_options
def perplexity(model: Path, text: Path, tokens: int | None, as_json: bool, tokenizer: str, **options: Any) -> None:
    """Measure how well the model file MODEL predicts the file TEXT, as perplexity and bits per byte.

    The text is read as a whole from a fresh state; its first token is not predicted. Files of the same model can be
    compared by either figure, models with different tokenizers by bits per byte.
    """
    from rwkvflow.engine.measure import losses

    with engine_errors(), open_model(model, options) as opened:
        read = tokenizer_of(tokenizer, opened)
        ids = _ids_of(read, text)[:tokens]
        if len(ids) < 2:
            raise UsageError(f"{text}: a text needs two tokens or more")
        with click.progressbar(losses(opened, ids), length=len(ids) - 1, file=sys.stderr) as bar:
            found = list(bar)
    piece = getattr(read, "piece", None)  # a character may be cut, where the text is or between its first two tokens
    size = sum(len(piece(token)) for token in ids[1:]) if piece else len(read.decode(ids[1:]).encode())
    mean = math.fsum(found) / len(found)
    figures: dict[str, Any] = {
        "model": str(model),
        "text": str(text),
        "tokens": len(found),
        "bytes": size,
        "loss": mean,
        "perplexity": math.exp(mean),
        "bits_a_byte": math.fsum(found) / math.log(2) / size,
    }
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    click.echo(
        f"perplexity {figures['perplexity']:.4f}, {figures['bits_a_byte']:.4f} bits per byte "
        f"({len(found)} tokens, {size} bytes)"
    )
