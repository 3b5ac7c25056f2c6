"""What a person types in `rwkvflow chat`: questions, with editing and history on a terminal, and a few commands."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from rwkvflow.cli.models import write

HELP = """\
/help        this
/reset       forget the conversation so far
/save FILE   keep it; `rwkvflow chat MODEL --state FILE` goes on from there
/quit        leave, as Ctrl-D does; Ctrl-C ends an answer
Two slashes begin a question with a slash: //etc is read as /etc."""
HISTORY = 1000  # lines that are kept


def questions(save: Callable[[Path], object]) -> Iterator[str | None]:
    """Each question; None where the conversation is to begin anew. Ends at the end of the input, or at /quit."""
    with _lines() as lines:
        for line in lines:
            text = line.strip()
            if text.startswith("//"):
                yield text[1:]
            elif text.startswith("/"):
                word, _, rest = text.partition(" ")
                if word in ("/quit", "/exit", "/bye"):
                    return
                if word == "/reset":
                    yield None
                    click.echo("the conversation begins anew", err=True)
                else:
                    _answer(word, rest.strip(), save)
            elif text:
                yield line.rstrip("\r\n")


def _answer(word: str, rest: str, save: Callable[[Path], object]) -> None:
    """/help and /save, and what is none."""
    if word == "/help":
        click.echo(HELP, err=True)
    elif word == "/save" and rest:
        try:
            save(Path(rest).expanduser())
            click.echo(f"kept in {rest}", err=True)
        except OSError as error:
            click.echo(f"{rest} cannot be written: {error.strerror}", err=True)
    elif word == "/save":
        click.echo("/save wants the name of a file", err=True)
    else:
        click.echo(f"{word} is no command; /help lists them", err=True)


@contextlib.contextmanager
def _lines() -> Iterator[Iterator[str]]:
    """The lines of standard input; on a terminal with a prompt, editing and the history of earlier conversations."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield _plain()
        return
    from rwkvflow.store.store import default_root

    click.echo("Ctrl-D or /quit leaves, /help lists what else there is", err=True)
    history = default_root() / "chat-history"
    try:
        import readline
    except ImportError:  # Windows: its console edits lines itself
        yield _typed()
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(HISTORY)
    try:
        yield _typed()
    finally:
        with contextlib.suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)
            history.chmod(0o600)  # what one asks is nobody else's


def _plain() -> Iterator[str]:
    while line := sys.stdin.buffer.readline().decode("utf-8", "replace"):
        yield line


def _typed() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except EOFError:
            write("\n")
            return
