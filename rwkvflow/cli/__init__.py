"""The commands, wired together. Each imports what it needs when it runs, so that --help is quick."""

from __future__ import annotations

import click

from rwkvflow import __version__
from rwkvflow.base.errors import exit_codes
from rwkvflow.cli.bench import bench, perplexity
from rwkvflow.cli.cache import cache
from rwkvflow.cli.ci import ci, matrix, publish
from rwkvflow.cli.documents import init, render, schema, validate
from rwkvflow.cli.files import compare, convert, formats, inspect
from rwkvflow.cli.generate import chat, generate
from rwkvflow.cli.image import image
from rwkvflow.cli.machine import completion, doctor, engine
from rwkvflow.cli.run import explain, lock, plan, report, run
from rwkvflow.cli.serve import serve
from rwkvflow.cli.verify import verify

_CODES = "\n".join(f"  {code:<4} {meaning}" for code, meaning in exit_codes().items())
EXIT_CODES = f"\b\nExit codes:\n{_CODES}\n"


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="rwkvflow")
def cli() -> None:
    """Turn RWKV checkpoints into verified, runnable artifacts, reproducibly."""


for _command in (
    bench,
    cache,
    chat,
    ci,
    compare,
    completion,
    convert,
    doctor,
    engine,
    explain,
    formats,
    generate,
    image,
    init,
    inspect,
    lock,
    matrix,
    perplexity,
    plan,
    publish,
    render,
    report,
    run,
    schema,
    serve,
    validate,
    verify,
):
    cli.add_command(_command)
