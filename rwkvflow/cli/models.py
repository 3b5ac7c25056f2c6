"""Options and helpers of the commands that run a model file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkvflow.base.errors import RwkvflowError, UsageError
from rwkvflow.base.text import shown
from rwkvflow.cli.options import DocumentPath

if TYPE_CHECKING:
    from rwkvflow.engine.binding import Model
    from rwkvflow.worker.model.tokenizers import ModelTokenizer

KINDS = ("auto", "bytes", "world")


def engine_options(function: Callable[..., None]) -> Callable[..., None]:
    """Which library runs the model, and how."""
    for option in (
        click.option(
            "--group-norm-eps",
            type=click.FloatRange(0, 1, min_open=True),
            help="Epsilon of the group norm of versions 5 to 7; default: 64e-5",
        ),
        click.option(
            "--threads", type=click.IntRange(1, 256), help="Number of threads; default: one for each performance core"
        ),
        click.option(
            "--store",
            type=click.Path(file_okay=False, path_type=Path),
            envvar="RWKVFLOW_STORE",
            help="Store that holds the library; it is built there if it is missing",
        ),
        click.option(
            "--library", type=DocumentPath(), help="Library to use: librwkv, or any other with the API of rwkv.h"
        ),
    ):
        function = option(function)
    return function


tokenizer_option = click.option(
    "--tokenizer",
    default="auto",
    show_default=True,
    metavar="KIND|FILE",
    help="auto (a GGUF's own, else by the size of the vocabulary), bytes, world, or a file: a tokenizer.json or "
    "World's vocabulary",
)


template_option = click.option(
    "--template",
    default="auto",
    show_default=True,
    metavar="KIND|FILE",
    help="How conversations are written: auto (a GGUF's own), rwkv, or a file with a Jinja template",
)


@contextlib.contextmanager
def engine_errors() -> Iterator[None]:
    """What the engine and the worker's modules raise, as an error of the command."""
    from rwkvflow.engine.errors import EngineError
    from rwkvflow.worker.errors import WorkerError

    try:
        yield
    except (EngineError, WorkerError) as error:
        raise RwkvflowError(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def library_of(options: dict[str, Any]) -> Path:
    """The library that the options ask for."""
    from rwkvflow.app.library import find_library
    from rwkvflow.display.plain import PlainDisplay

    return find_library(options["library"], options["store"], PlainDisplay())


def open_model(name: str | Path, options: dict[str, Any], form: str | None = None) -> Model:
    """The model, in the library that the options ask for; fetched and converted where needed. Raises EngineError.

    `form`: the format that a checkpoint is run as; None for that of conversations.
    """
    from rwkvflow.app.models import CHAT_FORMAT, playable
    from rwkvflow.cli.options import model_path
    from rwkvflow.display import display_for
    from rwkvflow.engine.binding import Library, Model
    from rwkvflow.engine.threads import default_threads
    from rwkvflow.store.store import default_root

    root = options["store"] or default_root()
    with contextlib.closing(display_for(as_json=False, verbose=False)) as display:
        path = model_path(str(name), root, display)  # a wrong name is told before a library is built for it
    library = library_of(options)
    with contextlib.closing(display_for(as_json=False, verbose=False)) as display:
        path = playable(path, root, display, library, options["threads"], form or CHAT_FORMAT)
    opened = Library(library)
    return Model(path, opened, options["threads"] or default_threads(opened), options["group_norm_eps"])


def tokenizer_of(kind: str, model: Model) -> ModelTokenizer:
    """The tokenizer that the option asks for: of a GGUF its own. Raises UsageError where it must be named."""
    from rwkvflow.engine.tokenizer import Tokenizer as Native
    from rwkvflow.engine.tokenizer import is_gguf
    from rwkvflow.worker.model.tokenizers import TWENTY_B, WORLD, PseudoRandom, open_tokenizer

    n_vocab = model.n_vocab
    if kind == "auto" and model.library.ours and is_gguf(model.path):
        return Native(model.path, model.library)
    if kind in KINDS:
        found = open_tokenizer(kind, n_vocab)
    else:
        path = Path(kind)
        if not path.is_file():
            raise UsageError(f"--tokenizer: {kind} is neither {', '.join(KINDS)} nor a file")
        found = open_tokenizer("auto", n_vocab, path)
    if isinstance(found, PseudoRandom):
        remedy = {
            WORLD: "pip install rwkv, which brings World's vocabulary",
            TWENTY_B: "name the model's tokenizer.json with --tokenizer",
        }
        raise UsageError(
            f"no tokenizer for a vocabulary of {n_vocab} is here",
            remedy=remedy.get(n_vocab, "name one with --tokenizer"),
        )
    return found


def write(text: str) -> None:
    """To standard output at once, whatever its encoding can hold.

    On a terminal, control sequences that a model writes are spelt out; a file or another program gets them as they are.
    """
    if sys.stdout.isatty():
        text = shown(text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
