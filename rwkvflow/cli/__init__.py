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
from rwkvflow.cli.imatrix import imatrix
from rwkvflow.cli.machine import completion, doctor, engine, man
from rwkvflow.cli.run import explain, lock, plan, report, run, work
from rwkvflow.cli.serve import serve
from rwkvflow.cli.verify import choose, verify

_CODES = "\n".join(f"  {code:<4} {meaning}" for code, meaning in exit_codes().items())
EXIT_CODES = f"\b\nExit codes:\n{_CODES}\n"


#: What there is to do, in the order in which a newcomer meets it.
SECTIONS: tuple[tuple[str, tuple[click.Command, ...]], ...] = (
    ("One model file", (convert, chat, generate, serve, inspect, compare, perplexity, bench, imatrix, formats)),
    ("Recipes", (init, validate, lock, plan, run, report, explain)),
    ("Releases and CI", (verify, choose, publish, matrix, work, ci)),
    ("This machine", (doctor, image, engine, cache)),
    ("For editors and shells", (render, schema, completion, man)),
)


class _Sections(click.Group):
    """A group whose help lists the commands by section, each summary whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, and under the last one whatever stands in none."""
        width = max(len(name) for name in self.commands)
        for title, commands in SECTIONS:
            with formatter.section(title):
                formatter.write_dl([((each.name or "").ljust(width), _summary(each)) for each in commands])


def _summary(command: click.Command) -> str:
    """The first paragraph of a command's help, as one line."""
    return " ".join((command.help or "").split("\n\n")[0].replace("\b", "").split()).rstrip(".")


@click.group(
    cls=_Sections,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="rwkvflow")
def cli() -> None:
    """Turn RWKV checkpoints into verified, runnable artifacts, reproducibly."""


for _title, _commands in SECTIONS:
    for _command in _commands:
        cli.add_command(_command)
