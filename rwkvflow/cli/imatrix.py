"""`rwkvflow imatrix`: an importance matrix for quantizing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rwkvflow.base.errors import UsageError
from rwkvflow.cli.models import engine_errors, engine_options, open_model, tokenizer_of, tokenizer_option
from rwkvflow.cli.options import DocumentPath, ModelName

FORM = "ggml-f16"  # what a checkpoint is run as


@click.command()
@click.argument("model", type=ModelName())
@click.argument("texts", metavar="[TEXT]...", nargs=-1, type=DocumentPath())
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write, such as m.gguf")
@click.option("--chunks", type=click.IntRange(1), help="Read at most so many chunks; default: all")
@click.option("--chunk-size", type=click.IntRange(8, 65536), default=512, show_default=True, help="Tokens of a chunk")
@click.option("--force", is_flag=True, help="Replace the file")
@tokenizer_option
@engine_options
def imatrix(
    model: str,
    texts: tuple[Path, ...],
    output: Path,
    chunks: int | None,
    chunk_size: int,
    force: bool,
    tokenizer: str,
    **options: Any,
) -> None:
    """Compute how much each column of MODEL's matrices counts over the TEXTs, for `convert --imatrix`.

    Without a TEXT the one that ships is read: English, Chinese, code, numbers and dialogue. The same model and texts
    give the same bytes on every machine. llama-quantize reads the file, too.
    """
    from rwkvflow.app.imatrix import CALIBRATION, write_imatrix
    from rwkvflow.base.outputs import check_output
    from rwkvflow.engine.importance import Gatherer, chunks_of

    read = texts or (CALIBRATION,)
    check_output(output, [*read, Path(model)], force=force)
    with engine_errors(), open_model(model, options, FORM) as opened:
        words = tokenizer_of(tokenizer, opened)
        tokens = [token for text in read for token in words.encode(text.read_bytes().decode("utf-8", "replace"))]
        parts = list(chunks_of(tokens, chunk_size, chunks))
        if not parts:
            raise UsageError(
                f"the texts have {len(tokens)} tokens, fewer than a chunk of {chunk_size}",
                remedy="name more text, or a smaller --chunk-size",
            )
        found = Gatherer(opened)
        with click.progressbar(parts, file=sys.stderr) as bar:
            for part in bar:
                found.add(part)
        line = write_imatrix(output, opened.version or "", found.sums(), len(parts), chunk_size, read)
    click.echo(line)
