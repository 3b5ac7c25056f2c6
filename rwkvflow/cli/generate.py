"""`rwkvflow generate` and `rwkvflow chat`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkvflow.base.errors import UsageError
from rwkvflow.base.outputs import refuse_sources
from rwkvflow.cli.models import (
    engine_errors,
    engine_options,
    open_model,
    template_option,
    tokenizer_of,
    tokenizer_option,
    write,
)
from rwkvflow.cli.options import DocumentPath, ModelName

if TYPE_CHECKING:
    from rwkvflow.engine.binding import Model
    from rwkvflow.engine.drafts import Guesser
    from rwkvflow.engine.session import Session


def _writing_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Print the speed and the seed on standard error"),
        click.option(
            "--save-state",
            type=DocumentPath(exists=False),
            metavar="FILE",
            help="Save the state of the model at the end",
        ),
        click.option(
            "--state",
            type=DocumentPath(),
            metavar="FILE",
            help="Continue from a state that --save-state wrote, or begin with trained initial states",
        ),
        click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text"),
        click.option(
            "--draft-tokens",
            type=click.IntRange(1, 32),
            default=3,
            show_default=True,
            help="Guess at most so many tokens at once",
        ),
        click.option(
            "--draft",
            metavar="lookup|FILE",
            help="Guess ahead, from the text or with a smaller model; the text stays the same",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**64 - 1),
            help="Seed of the random choices; the same seed gives the same text",
        ),
        click.option(
            "--penalty-decay",
            type=float,
            default=0.996,
            show_default=True,
            help="Factor by which the counts of used tokens shrink at every token",
        ),
        click.option(
            "--frequency-penalty",
            type=float,
            default=0.0,
            show_default=True,
            help="Penalty on a token for each time it was used",
        ),
        click.option(
            "--presence-penalty",
            type=float,
            default=0.0,
            show_default=True,
            help="Penalty on a token that was used before",
        ),
        click.option(
            "--top-k", type=int, default=0, show_default=True, help="Choose among the K likeliest tokens; 0 for all"
        ),
        click.option(
            "--top-p",
            type=float,
            default=0.7,
            show_default=True,
            help="Choose among the likeliest tokens that together reach this probability",
        ),
        click.option(
            "--temperature",
            type=float,
            default=1.0,
            show_default=True,
            help="Randomness of the choice; 0 always takes the likeliest token",
        ),
    ):
        function = option(function)
    return engine_options(tokenizer_option(function))


@click.command()
@click.argument("model", type=ModelName())
@click.argument("prompt", default="")
@click.option("-n", "--max-tokens", type=click.IntRange(0), default=256, show_default=True, help="Most tokens to write")
@_writing_options
def generate(model: str, prompt: str, max_tokens: int, **options: Any) -> None:
    """Continue PROMPT with the model file MODEL. If PROMPT is -, it is read from standard input."""
    text = sys.stdin.buffer.read().decode("utf-8", "replace") if prompt == "-" else _whole(prompt)
    _check_stops(options["stop"])
    _check_kept(model, options)
    with engine_errors(), open_model(model, options) as opened:
        session = _session(opened, options)
        with _saved(session, options):
            start = time.monotonic()
            session.feed(text)
            read, begun, last = session.evaluated, time.monotonic(), ""
            for piece in session.generate(max_tokens, options["stop"]):
                write(piece)
                last = piece
            if not last.endswith("\n"):
                write("\n")
        if options["verbose"]:
            _say_how(session, read, begun - start, time.monotonic() - begun)


@click.command()
@click.argument("model", type=ModelName())
@click.option(
    "-n", "--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Most tokens in one answer"
)
@click.option("--think/--no-think", default=None, help="Begin answers with a thought, or without; G1 models think")
@click.option("--system", help="Instructions that the model reads before the first question")
@click.option(
    "--user", default="User", show_default=True, help="Name of the one who asks, in the text that the model reads"
)
@click.option("--assistant", default="Assistant", show_default=True, help="Name of the one who answers")
@template_option
@_writing_options
def chat(
    model: str, max_tokens: int, think: bool | None, system: str | None, user: str, assistant: str, **options: Any
) -> None:
    """Chat with MODEL: a file, hf://owner/name/file, or a checkpoint, which is converted first and kept.

    Each line is a question; Ctrl-C ends an answer, Ctrl-D or /quit the conversation. /help lists what else there is.
    """
    from rwkvflow.cli.talk import questions
    from rwkvflow.engine.session import ChatSession
    from rwkvflow.serve.chat_template import TemplatedChat, template_of

    user, assistant = _whole(user), _whole(assistant)
    system = None if system is None else _whole(system)
    _check_stops(options["stop"])
    _check_kept(model, options)
    with engine_errors(), open_model(model, options) as opened:
        session = _session(opened, options)
        brought = template_of(opened.path, options["template"])
        if brought is not None:
            _check_brought(brought.name, options, renamed=(user, assistant) != ("User", "Assistant"))

        def begin() -> ChatSession | TemplatedChat:
            if brought is not None:
                talk: ChatSession | TemplatedChat = TemplatedChat(session, brought, think)
            else:
                talk = ChatSession(session, user, assistant, think)
            if system:
                talk.system(system)
            return talk

        talk = begin()
        with _saved(session, options):
            for question in questions(session.save):
                if question is None:  # /reset
                    session.reset()
                    talk = begin()
                    continue
                before, begun = session.generated, time.monotonic()
                try:
                    for piece in talk.ask(question, max_tokens, options["stop"]):
                        write(piece)
                except KeyboardInterrupt:
                    pass
                write("\n")
                if options["verbose"]:
                    count, seconds = session.generated - before, time.monotonic() - begun
                    click.echo(f"{count} tokens, {count / seconds:.1f} per second", err=True)


def _check_brought(name: str, options: dict[str, Any], *, renamed: bool) -> None:
    """Raises UsageError for what does not go together with a template of the model's own."""
    if renamed or options["state"] is not None:
        what = "--user and --assistant" if renamed else "--state"
        raise UsageError(f"{what}: {name} writes conversations in its own way", remedy="say --template rwkv, too")


def _whole(text: str) -> str:
    """A text of the command line without halves of characters, which no tokenizer takes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _check_stops(stops: tuple[str, ...]) -> None:
    """Raises UsageError for a stop text that is not UTF-8: nothing that is written could hold it."""
    for stop in stops:
        if _whole(stop) != stop:
            raise UsageError(f"--stop: {stop!a} is not UTF-8, and what a model writes is", remedy="write it in UTF-8")


def _check_kept(model: str, options: dict[str, Any]) -> None:
    """Raises UsageError where the state cannot be kept; it may replace the one that is gone on from."""
    if (kept := options["save_state"]) is None:
        return
    if not kept.absolute().parent.is_dir():
        raise UsageError(f"--save-state: there is no folder {kept.parent}")
    read = [Path(model), *(Path(options[name]) for name in ("tokenizer", "library") if options.get(name))]
    refuse_sources(kept, read)


def _session(model: Model, options: dict[str, Any]) -> Session:
    from rwkvflow.engine.sampling import Sampling
    from rwkvflow.engine.session import Session, random_seed

    sampling = Sampling(
        temperature=options["temperature"],
        top_p=options["top_p"],
        top_k=options["top_k"],
        presence=options["presence_penalty"],
        frequency=options["frequency_penalty"],
        decay=options["penalty_decay"],
    )
    seed = random_seed() if options["seed"] is None else options["seed"]
    if options["verbose"]:
        click.echo(f"seed {seed}", err=True)
    tokenizer = tokenizer_of(options["tokenizer"], model)
    session = Session(model, tokenizer, sampling, seed, _guesser(model, options))
    if (state := options["state"]) is not None:
        _load(session, state)
    return session


def _load(session: Session, path: Path) -> None:
    """A state that was saved, or trained ones of a .pth or .safetensors file. Raises EngineError, WorkerError."""
    from rwkvflow.engine.errors import EngineError
    from rwkvflow.engine.states import from_heads, heads_of, is_saved
    from rwkvflow.worker.read.adapters import initial_states

    with path.open("rb") as file:
        saved = is_saved(file.read(8))
    if saved:
        session.load(path)
    else:
        try:
            heads = heads_of(session.model)
        except EngineError as error:
            raise EngineError(f"{path.name} is no state that --save-state wrote, and {error}") from None
        session.begin(from_heads(initial_states(path, *heads), session.model))


def _guesser(model: Model, options: dict[str, Any]) -> Guesser | None:
    """Who guesses ahead, as --draft has it. Raises UsageError."""
    from rwkvflow.engine.binding import Model as Opened
    from rwkvflow.engine.drafts import Guesser, SmallModel
    from rwkvflow.engine.threads import default_threads

    draft = options["draft"]
    if draft is None:
        return None
    if not model.library.takes_sequences:
        raise UsageError("--draft: only librwkv of this version can guess ahead")
    if draft == "lookup":
        return Guesser(options["draft_tokens"])
    if not Path(draft).is_file():
        raise UsageError(f"--draft: {draft} is neither lookup nor a file")
    small = Opened(
        draft, model.library, options["threads"] or default_threads(model.library), options["group_norm_eps"]
    )
    if small.n_vocab != model.n_vocab:
        raise UsageError(f"--draft: it has {small.n_vocab} tokens, the model {model.n_vocab}")
    return Guesser(options["draft_tokens"], SmallModel(small))


@contextmanager
def _saved(session: Session, options: dict[str, Any]) -> Iterator[None]:
    """Keeps the state at the end, for --save-state; Ctrl-C is an end too."""
    try:
        yield
    except KeyboardInterrupt:
        _save(session, options["save_state"])
        raise
    _save(session, options["save_state"])


def _save(session: Session, path: Path | None) -> None:
    if path is not None:
        try:
            session.save(path)
        except OSError as error:
            raise UsageError(f"--save-state: {error}") from error


def _say_how(session: Session, read: int, reading: float, writing: float) -> None:
    ended = {"stop": "a stop text", "end": "the model's end of text", "length": "--max-tokens"}[
        session.finish or "length"
    ]
    rate = f", {session.generated / writing:.1f} per second" if session.generated else ""
    click.echo(f"read {read} tokens in {reading:.2f} s", err=True)
    click.echo(f"wrote {session.generated} tokens in {writing:.2f} s{rate}; ended by {ended}", err=True)
