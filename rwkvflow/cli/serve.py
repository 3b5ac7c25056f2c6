"""`rwkvflow serve`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkvflow.base.errors import EnvironmentMissing, UsageError
from rwkvflow.base.text import shown
from rwkvflow.cli.models import (
    KINDS,
    engine_errors,
    engine_options,
    library_of,
    template_option,
    tokenizer_option,
)
from rwkvflow.cli.options import DocumentPath, ModelPath

if TYPE_CHECKING:
    from rwkvflow.engine.binding import Model
    from rwkvflow.engine.tokenizer import Tokenizer

    _Param = click.ParamType[int]
else:
    _Param = click.ParamType

KEY_VARIABLE = "RWKVFLOW_API_KEY"
NEEDED = ("starlette", "uvicorn", "llguidance", "prometheus_client")


class ByteCount(_Param):
    """A number of bytes, as MiB or GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Fails with click's error for what is none."""
        from rwkvflow.documents.yaml.units import size_bytes

        if isinstance(value, int):
            return value
        try:
            return size_bytes(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("models", nargs=-1, required=True, type=ModelPath())
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen on this address")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Listen on this port; 0: any free one",
)
@click.option("--allow-host", multiple=True, metavar="NAME", help="Answer to this name, too; *: to any")
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Let pages of this origin call it, e.g. https://chat.example"
)
@click.option(
    "--api-key-file", type=DocumentPath(), help=f"Require a key of this file, one per line; or set {KEY_VARIABLE}"
)
@click.option(
    "--slots", type=click.IntRange(1, 256), default=8, show_default=True, help="Work on so many texts at once"
)
@click.option("--queue", type=click.IntRange(0, 100_000), default=64, show_default=True, help="Let so many texts wait")
@click.option(
    "--state-cache",
    type=ByteCount(),
    default="1GiB",
    show_default=True,
    help="Keep states of each model in this much memory",
)
@click.option("--memory", type=ByteCount(), help="Close models that are idle before open ones take more than this")
@click.option(
    "--max-prompt", type=click.IntRange(1), default=65536, show_default=True, help="Refuse prompts of more tokens"
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=16384, show_default=True, help="Refuse to write more tokens"
)
@click.option("--max-body", type=ByteCount(), default="16MiB", show_default=True, help="Refuse larger requests")
@click.option("--draft", metavar="lookup|FILE", help="Guess ahead: from the text, or with a smaller model")
@click.option(
    "--draft-tokens", type=click.IntRange(1, 32), default=3, show_default=True, help="Guess at most so many at once"
)
@tokenizer_option
@template_option
@engine_options
def serve(models: tuple[Path, ...], host: str, port: int, **options: Any) -> None:
    """Serve MODELS in the browser and behind an OpenAI-like API.

    A model is a ggml-* or gguf-* file, or a release folder, of which every such file is served. The same request gives
    the same answer, whoever else is being served.
    """
    _check_packages()
    from rwkvflow.engine.binding import Library
    from rwkvflow.engine.threads import default_threads
    from rwkvflow.serve.app import make_app
    from rwkvflow.serve.batching.scheduler import Settings
    from rwkvflow.serve.chat_template import template_of
    from rwkvflow.serve.guard import Rules, hosts_for
    from rwkvflow.serve.openai.work import RequestLimits
    from rwkvflow.serve.server import Server
    from rwkvflow.serve.shelf import Shelf, find_models

    keys = _keys(options["api_key_file"])
    entries = find_models(models)
    draft, lookup = options["draft"], options["draft"] == "lookup"
    if draft is not None and not lookup and not Path(draft).is_file():
        raise UsageError(f"--draft: {draft} is neither lookup nor a file")
    with engine_errors():
        library = Library(library_of(options))
        settings = Settings(
            slots=options["slots"],
            queue=options["queue"],
            cache=options["state_cache"],
            guesses=options["draft_tokens"] if draft else 0,
            lookup=lookup,
        )
        shelf = Shelf(
            entries,
            library,
            settings,
            threads=options["threads"] or default_threads(library),
            limit=options["memory"],
            open_tokenizer=lambda model: native_tokenizer(options["tokenizer"], model),
            open_template=lambda path: template_of(path, options["template"]),
            draft=None if draft is None or lookup else Path(draft),
            eps=options["group_norm_eps"],
        )
        _open_first(shelf)
    rules = Rules(
        hosts_for(host, options["allow_host"]),
        frozenset(options["cors"]),
        keys,
        options["max_body"],
        options["state_cache"],
    )
    app = make_app(shelf, rules, RequestLimits(options["max_prompt"], options["max_tokens"]))
    names = ", ".join(entry.name for entry in entries)
    server = Server(app, shelf, host, port, lambda address: click.echo(shown(f"{address} serves {names}"), err=True))
    try:
        shelf.add_up()
        with contextlib.suppress(SystemExit):  # uvicorn's own, where it cannot listen
            server.run()
    finally:
        if not server.finish():
            click.echo("a model is still being opened or evaluated; that ends with this process", err=True)
    if not server.started:
        raise UsageError(f"nothing can listen at {host} port {port}", remedy="name another --port")


def _open_first(shelf: Any) -> None:
    """So that what is wrong with it is said now, and not to the first client."""
    from rwkvflow.engine.errors import EngineError
    from rwkvflow.serve.errors import ApiError

    try:
        shelf.get(None)
    except ApiError as error:
        raise EngineError(error.message) from error


def native_tokenizer(kind: str, model: Model) -> Tokenizer:
    """librwkv's tokenizer, as the option asks for it; of a GGUF its own. Raises UsageError where it must be named."""
    from rwkvflow.engine.tokenizer import Tokenizer, is_gguf
    from rwkvflow.worker.model.tokenizers import BYTES, WORLD, misfit, misfit_of_kind, world_vocabulary

    vocabulary, n_vocab, library = world_vocabulary(), model.n_vocab, model.library
    if kind == "auto" and library.ours and is_gguf(model.path):
        return Tokenizer(model.path, library)
    if kind == "bytes" or (kind == "auto" and n_vocab == BYTES):
        found = Tokenizer(None, library)
    elif kind == "world" or (kind == "auto" and n_vocab == WORLD):
        if vocabulary is None:
            raise UsageError("World's vocabulary is not here", remedy="pip install rwkv, which brings it")
        found = Tokenizer(vocabulary, library)
    elif kind == "auto":
        raise UsageError(f"no tokenizer for a vocabulary of {n_vocab} is here", remedy="name one with --tokenizer")
    elif not Path(kind).is_file():
        raise UsageError(f"--tokenizer: {kind} is neither {', '.join(KINDS)} nor a file")
    else:
        found = Tokenizer(Path(kind), library)
    if why := misfit_of_kind(kind, n_vocab) or misfit(found.name, found.size, n_vocab):
        raise UsageError(f"--tokenizer: {why}")
    return found


def _check_packages() -> None:
    import importlib.util

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentMissing(
            f"serve needs {', '.join(missing)}", remedy="pip install 'rwkvflow[serve]', beside what runs rwkvflow"
        )


def _keys(file: Path | None) -> tuple[str, ...]:
    lines = file.read_text(encoding="utf-8").splitlines() if file is not None else []
    keys = [line.strip() for line in [os.environ.get(KEY_VARIABLE, ""), *lines]]
    keys = [key for key in keys if key and not key.startswith("#")]
    if file is not None and not keys:
        raise UsageError(f"--api-key-file: {file} holds no key")
    return tuple(keys)
