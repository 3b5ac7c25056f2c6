"""The models that are served: which files there are, and which of them are open."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import UsageError
from rwkvflow.base.files import read_json
from rwkvflow.base.hashing import file_digest
from rwkvflow.documents.formats import runs_in_librwkv
from rwkvflow.engine.binding import Library, Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.parts import is_later_part, parts_of
from rwkvflow.engine.states import fingerprint
from rwkvflow.engine.tokenizer import Tokenizer
from rwkvflow.release.names import QUALITY, is_plain, smoke_report
from rwkvflow.serve.batching.grammar import Grammars
from rwkvflow.serve.batching.scheduler import Scheduler, Settings
from rwkvflow.serve.chat_template import ChatTemplate, template_of
from rwkvflow.serve.errors import ApiError, closing
from rwkvflow.serve.states import KeptStates
from rwkvflow.worker.errors import WorkerError

MAGICS = (b"fmgg", b"GGUF")  # how ggml-* and gguf-* files begin


@dataclass(frozen=True)
class ServedFile:
    """A model file. `facts`: what its release says of it (format, sha256, verdict, kl_divergence, …); may be empty."""

    name: str
    path: Path
    size: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    release: Path | None = None


def find_models(paths: Iterable[Path]) -> list[ServedFile]:
    """The model files that are named, and every `ggml-*` and `gguf-*` file of the folders that are.

    A model is called as its file is, without the ending where no other one is called so. Raises UsageError.
    """
    entries: list[ServedFile] = []
    for path in paths:
        if path.is_dir():
            found = _of_folder(path)
            if not found:
                raise UsageError(
                    f"{path} holds no ggml-* or gguf-* file", remedy="name a model file, or a release with some"
                )
            entries += found
        elif path.is_file():
            if not _is_model(path):
                raise UsageError(f"{path} is no ggml-* or gguf-* file", remedy="convert it first: rwkvflow convert")
            entries.append(ServedFile(path.stem, path, _size(path)))
        else:
            raise UsageError(f"there is no file {path}")
    if not entries:
        raise UsageError("no model is named")
    names = [entry.name for entry in entries]
    entries = [replace(entry, name=entry.path.name) if names.count(entry.name) > 1 else entry for entry in entries]
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two models are called {name}", remedy="rename one of the files")
    return entries


def _of_folder(folder: Path) -> list[ServedFile]:
    quality = read_json(folder / QUALITY) or {}
    listed: dict[Path, dict[str, Any]] = {}
    artifacts = quality.get("artifacts")
    for artifact in artifacts if isinstance(artifacts, list) else ():
        path = artifact.get("path") if isinstance(artifact, dict) else None
        if not isinstance(path, str) or not is_plain(path):  # a release may be anybody's, and list what is not in it
            raise UsageError(
                f"{folder / QUALITY} is damaged: it names {path!a:.80}", remedy="`rwkvflow verify` says more"
            )
        if runs_in_librwkv(str(artifact.get("format", ""))):
            report = read_json(folder / smoke_report(path)) or {}
            kept = ("model", "format", "sha256", "perplexity", "perplexity_rise", "kl_divergence", "top1_agreement")
            facts = {name: artifact.get(name) for name in (*kept, "bits_per_weight", "weight_bytes")}
            if "passed" in report:
                facts["verdict"] = "passed" if report["passed"] else "failed"
            listed[folder / path] = facts
    found = sorted((*folder.rglob("*.bin"), *folder.rglob("*.gguf")))
    in_release = bool(listed)
    if listed:  # an artifact in parts is a folder of them
        inside = {path: sorted(path.glob("*.gguf"))[:1] if path.is_dir() else [path] for path in listed}
        listed = {file: listed[path] for path, files in inside.items() for file in files if file.is_file()}
    return [
        ServedFile(path.stem, path, _size(path), listed.get(path, {}), folder if in_release else None)
        for path in (listed if in_release else found)
        if _is_model(path) and not is_later_part(path)
    ]


def _size(path: Path) -> int:
    """Bytes of a model file, with its other parts."""
    return sum(part.stat().st_size for part in parts_of(path) if part.is_file())


def _is_model(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in MAGICS


@dataclass(eq=False)
class Served:
    """An open model and what goes with it."""

    entry: ServedFile
    scheduler: Scheduler
    tokenizer: Tokenizer
    states: KeptStates
    digest: str  # hex, of a fingerprint of the file
    template: ChatTemplate | None = None  # that it brings, where it is not RWKV's own
    _grammars: Grammars | None = None
    _making: threading.Lock = field(default_factory=threading.Lock)

    @property
    def model(self) -> Model:
        """The scheduler's: for its sizes only."""
        return self.scheduler.model

    def grammars(self) -> Grammars:
        """Made when first asked for: that takes a moment."""
        with self._making:
            if self._grammars is None:
                self._grammars = Grammars(self.tokenizer, self.model.n_vocab)
            return self._grammars


class Shelf:
    """Opens models when they are asked for. `limit`: bytes of model files that may be open; None for any.

    What is open and has nothing to do is closed for one that is asked for, the one that was not used for longest first.
    """

    def __init__(
        self,
        entries: Sequence[ServedFile],
        library: Library,
        settings: Settings,
        *,
        threads: int = 1,
        limit: int | None = None,
        open_tokenizer: Callable[[Model], Tokenizer],
        open_template: Callable[[Path], ChatTemplate | None] = template_of,
        draft: Path | None = None,
        eps: float | None = None,
    ) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self.settings = settings
        self._library, self._threads, self._limit, self._eps = library, threads, limit, eps
        self._open_tokenizer, self._open_template, self._draft = open_tokenizer, open_template, draft
        self._open: dict[str, Served] = {}
        self._lock = threading.Lock()  # of that table: held for a moment only, as the event loop takes it, too
        self._changing = threading.Lock()  # held as long as a model is being opened, or one is closed for it
        self._sums: dict[str, str] = {}
        self._closed = False
        self._adder = threading.Thread(target=self._add_up, name="sha256 of models", daemon=True)

    def entry(self, name: str | None) -> ServedFile:
        """The model of that name, the first one for None. Raises ApiError (404)."""
        if name is None or name == "":
            return next(iter(self.entries.values()))
        if name not in self.entries:
            known = ", ".join(self.entries)
            raise ApiError(404, f"there is no model {name!r}; there are {known}", param="model", code="model_not_found")
        return self.entries[name]

    def at_hand(self, name: str | None) -> Served | None:
        """The model where it is open. At once. Raises ApiError (404, 503)."""
        entry = self.entry(name)
        self._check_open()
        with self._lock:
            return self._open.get(entry.name)

    def get(self, name: str | None) -> Served:
        """The model, opened where it is not. Takes a moment then. Raises ApiError (404, 500, 503)."""
        with self._changing:
            found = self.at_hand(name)
            if found is not None:
                return found
            entry = self.entry(name)
            self._make_room(entry)
            try:
                found = self._opened(entry)
            except (EngineError, WorkerError, UsageError, OSError) as error:
                raise ApiError(500, f"{entry.name} cannot be opened: {error}", code="model_broken") from error
            with self._lock:
                if not self._closed:
                    self._open[entry.name] = found
                    return found
        found.scheduler.close()  # nobody else would: the shelf was closed meanwhile
        self._check_open()
        return found

    def _check_open(self) -> None:
        if self._closed:
            raise closing("the server is closing")

    def opened(self) -> list[Served]:
        """Those that are open now."""
        with self._lock:
            return list(self._open.values())

    def sha256(self, entry: ServedFile) -> str | None:
        """Of the file: as its release says, or once it has been added up."""
        return entry.facts.get("sha256") or self._sums.get(entry.name)

    def add_up(self) -> None:
        """Starts to compute the sums that no release tells, in a thread of its own."""
        self._adder.start()

    def close(self) -> None:
        """Ends every answer and closes every model. One that is just being opened is closed by who opens it."""
        with self._lock:
            self._closed = True
            served, self._open = list(self._open.values()), {}
        for each in served:
            each.scheduler.end()
        for each in served:
            each.scheduler.close()

    def _add_up(self) -> None:
        for entry in self.entries.values():
            if self._closed:
                return
            if not entry.facts.get("sha256"):
                try:
                    self._sums[entry.name] = file_digest(entry.path).removeprefix("sha256:")
                except OSError:  # it is told when somebody asks for the model
                    continue

    def _opened(self, entry: ServedFile) -> Served:
        def open_file(path: Path) -> Model:
            return Model(path, self._library, self._threads, self._eps)

        draft = self._draft
        scheduler_tokenizer = _Late()
        scheduler = Scheduler(
            lambda: open_file(entry.path),
            scheduler_tokenizer,
            self.settings,
            None if draft is None else lambda: open_file(draft),
        )
        try:
            tokenizer = self._open_tokenizer(scheduler.model)
            template = self._open_template(entry.path)
        except Exception:
            scheduler.close()
            raise
        scheduler_tokenizer.tokenizer = tokenizer
        mark = hashlib.sha256(fingerprint(entry.path)).hexdigest()[:16]
        return Served(entry, scheduler, tokenizer, KeptStates(self.settings.cache), mark, template)

    def _make_room(self, entry: ServedFile) -> None:
        """Closes idle models until this one fits. Raises ApiError (503) where those that are busy leave no room."""
        if self._limit is None:
            return
        while (opened := self.opened()) and sum(s.entry.size for s in opened) + entry.size > self._limit:
            idle = [s for s in opened if not s.scheduler.working and not s.scheduler.waiting]
            if not idle:
                raise ApiError(
                    503,
                    f"{entry.name} does not fit beside the models that are busy now",
                    code="no_memory",
                    headers={"retry-after": "5"},
                )
            oldest = min(idle, key=lambda served: served.scheduler.last_used)
            with self._lock:
                self._open.pop(oldest.entry.name, None)
            oldest.scheduler.close()


class _Late:
    """A tokenizer for a scheduler whose model has to be open before it is known which one fits."""

    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

    def piece(self, token: int) -> bytes:
        return self.tokenizer.piece(token)
